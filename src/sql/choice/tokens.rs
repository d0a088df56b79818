//! The tokens of a text with their values, as PostgreSQL's scanner (scan.l) cuts and reads them:
//! for texts in which a value matters. [`crate::sql::lexer`] reads what only passes.

use std::ops::Range;

/// A token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// A keyword or a name without quotes, its ASCII letters in lower case.
    Word(String),
    /// A name in double quotes.
    Quoted(String),
    /// A string, whichever way it is written.
    Text(String),
    /// A number as it is written.
    Number(String),
    /// A string of bits, `X'…'` or `B'…'`.
    Bits,
    /// `$n`.
    Parameter(u16),
    /// `::`, as one.
    Cast,
    /// `->>`, as one.
    AsText,
    Symbol(char),
}

impl Token {
    pub fn is_word(&self, word: &str) -> bool {
        matches!(self, Self::Word(own) if own == word)
    }

    pub fn is_symbol(&self, symbol: char) -> bool {
        *self == Self::Symbol(symbol)
    }

    /// As the name of something, or a part of one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Word(name) | Self::Quoted(name) => Some(name),
            _ => None,
        }
    }
}

/// All tokens of a text. None: what is not cut with certainty, such as a string without its end or
/// a plain string with backslashes where `backslashes` may be escapes.
pub fn tokens(text: &str, backslashes: bool) -> Option<Vec<Token>> {
    let placed = placed_tokens(text, backslashes)?.into_iter();
    Some(placed.map(|(token, _)| token).collect())
}

/// As [`tokens`], each with where it stands.
pub fn placed_tokens(text: &str, backslashes: bool) -> Option<Vec<(Token, Range<usize>)>> {
    let mut reader = Reader {
        rest: text,
        backslashes,
    };
    let mut tokens = Vec::new();
    loop {
        reader.skip_space()?;
        if reader.rest.is_empty() {
            return Some(tokens);
        }
        let begin = text.len() - reader.rest.len();
        let token = reader.token()?;
        tokens.push((token, begin..text.len() - reader.rest.len()));
    }
}

struct Reader<'t> {
    rest: &'t str,
    backslashes: bool,
}

fn begins_name(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
}

/// As long as a name is to PostgreSQL (scansup.c: truncate_identifier).
fn cut_name(name: &str) -> &str {
    let mut ends = (0..=name.len().min(63)).rev();
    let end = ends.find(|at| name.is_char_boundary(*at));
    &name[..end.unwrap_or_default()]
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

impl<'t> Reader<'t> {
    fn take(&mut self, bytes: usize) -> &'t str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.rest = rest;
        taken
    }

    fn take_while(&mut self, is_of: impl Fn(char) -> bool) -> &'t str {
        let end = self.rest.find(|c| !is_of(c)).unwrap_or(self.rest.len());
        self.take(end)
    }

    fn take_if(&mut self, prefix: &str) -> bool {
        let is_there = self.rest.starts_with(prefix);
        if is_there {
            self.take(prefix.len());
        }
        is_there
    }

    /// White space and comments. True: there was a newline.
    fn skip_space(&mut self) -> Option<bool> {
        let mut newline = false;
        loop {
            let space = self.take_while(is_space);
            newline |= space.contains(['\n', '\r']);
            if self.take_if("--") {
                self.take_while(|c| !matches!(c, '\n' | '\r'));
            } else if self.take_if("/*") {
                let mut depth = 1;
                while depth > 0 {
                    let at = self.rest.find(['*', '/'])?;
                    self.take(at);
                    if self.take_if("/*") {
                        depth += 1;
                    } else if self.take_if("*/") {
                        depth -= 1;
                    } else {
                        self.take(1);
                    }
                }
            } else {
                return Some(newline);
            }
        }
    }

    fn token(&mut self) -> Option<Token> {
        let mut chars = self.rest.chars();
        let first = chars.next()?;
        let second = chars.next();
        match (first, second) {
            ('\'', _) => self.text().map(Token::Text),
            ('e' | 'E', Some('\'')) => self.escaped().map(Token::Text),
            ('n' | 'N', Some('\'')) => {
                self.take(1);
                self.text().map(Token::Text)
            }
            ('b' | 'B' | 'x' | 'X', Some('\'')) => {
                self.take(1);
                self.text().map(|_| Token::Bits)
            }
            ('u' | 'U', Some('&')) if matches!(chars.next(), Some('\'' | '"')) => self.unicode(),
            ('"', _) => self.quoted().map(Token::Quoted),
            ('$', Some('0'..='9')) => {
                self.take(1);
                let digits = self.take_while(|c| c.is_ascii_digit());
                let follows = self.rest.chars().next().is_some_and(begins_name);
                let number = digits.parse().ok().filter(|_| !follows);
                number.map(Token::Parameter)
            }
            ('$', _) => self.dollars().map(Token::Text),
            ('0'..='9', _) | ('.', Some('0'..='9')) => self.number(),
            _ if begins_name(first) => {
                let word = self.take_while(|c| begins_name(c) || c.is_ascii_digit() || c == '$');
                Some(Token::Word(cut_name(word).to_ascii_lowercase()))
            }
            (':', Some(':')) => {
                self.take(2);
                Some(Token::Cast)
            }
            ('-', Some('>')) if self.take_if("->>") => Some(Token::AsText),
            _ => {
                self.take(first.len_utf8());
                Some(Token::Symbol(first))
            }
        }
    }

    /// A number that every PostgreSQL takes for one: digits, a fraction, an exponent.
    fn number(&mut self) -> Option<Token> {
        let digits = |c: char| c.is_ascii_digit();
        let before = self.rest;
        self.take_while(digits);
        if self.take_if(".") {
            self.take_while(digits);
        }
        if self.rest.starts_with(['e', 'E']) {
            self.take(1);
            if self.rest.starts_with(['+', '-']) {
                self.take(1);
            }
            if self.take_while(digits).is_empty() {
                return None;
            }
        }
        let written = &before[..before.len() - self.rest.len()];
        let follows = self.rest.chars().next();
        let is_whole = !follows.is_some_and(|c| begins_name(c) || c == '.' || c == '$');
        is_whole.then(|| Token::Number(written.to_owned()))
    }

    /// A string goes on behind white space with a newline in it. None: there are comments in it,
    /// too.
    fn goes_on(&mut self) -> Option<bool> {
        let before = self.rest;
        let (mut newline, mut comment) = (false, false);
        // These are part of a string's white space (scan.l: whitespace_with_newline).
        loop {
            newline |= self.take_while(is_space).contains(['\n', '\r']);
            if !self.take_if("--") {
                break;
            }
            self.take_while(|c| !matches!(c, '\n' | '\r'));
            comment = true;
        }
        let continues = newline && self.rest.starts_with('\'');
        if !continues {
            self.rest = before;
        }
        (!(continues && comment)).then_some(continues)
    }

    fn text(&mut self) -> Option<String> {
        let mut text = String::new();
        loop {
            self.take(1);
            loop {
                let end = self.rest.find('\'')?;
                text.push_str(self.take(end));
                if !self.take_if("''") {
                    break;
                }
                text.push('\'');
            }
            self.take(1);
            if !self.goes_on()? {
                break;
            }
        }
        (!(self.backslashes && text.contains('\\'))).then_some(text)
    }

    /// `E'…'`.
    fn escaped(&mut self) -> Option<String> {
        let mut bytes = Vec::new();
        self.take(1);
        loop {
            self.take(1);
            loop {
                let end = self.rest.find(['\'', '\\'])?;
                bytes.extend_from_slice(self.take(end).as_bytes());
                if self.take_if("''") {
                    bytes.push(b'\'');
                } else if self.take_if("\\") {
                    self.escape(&mut bytes)?;
                } else {
                    break;
                }
            }
            self.take(1);
            if !self.goes_on()? {
                break;
            }
        }
        let text = String::from_utf8(bytes).ok()?;
        (!text.contains('\0')).then_some(text)
    }

    /// What is behind a backslash.
    fn escape(&mut self, bytes: &mut Vec<u8>) -> Option<()> {
        let c = self.rest.chars().next()?;
        self.take(c.len_utf8());
        let simple = match c {
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'x' => self.code(16, 1, 2)?.try_into().ok()?,
            '0'..='7' => {
                self.rest = self.rest.get(0..).unwrap_or_default();
                let more = self.digits(8, 0, 2)?;
                let digits = format!("{c}{more}");
                // PostgreSQL keeps the low byte.
                (u32::from_str_radix(&digits, 8).ok()? & 0xff)
                    .try_into()
                    .ok()?
            }
            'u' | 'U' => {
                let length = if c == 'u' { 4 } else { 8 };
                let c = char::from_u32(self.code(16, length, length)?)?;
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                return Some(());
            }
            other => {
                bytes.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes());
                return Some(());
            }
        };
        bytes.push(simple);
        Some(())
    }

    fn digits(&mut self, radix: u32, least: usize, most: usize) -> Option<&'t str> {
        let digits = self.rest.chars().take(most);
        let count = digits.take_while(|c| c.is_digit(radix)).count();
        (count >= least).then(|| self.take(count))
    }

    fn code(&mut self, radix: u32, least: usize, most: usize) -> Option<u32> {
        u32::from_str_radix(self.digits(radix, least, most)?, radix).ok()
    }

    /// `U&'…'` or `U&"…"`, without UESCAPE.
    fn unicode(&mut self) -> Option<Token> {
        self.take(2);
        let is_name = self.rest.starts_with('"');
        // There a backslash is an escape of its own, and needs standard_conforming_strings.
        if !is_name && self.backslashes {
            return None;
        }
        let written = match is_name {
            true => self.quoted()?,
            false => self.text()?,
        };
        let before = self.rest;
        self.skip_space()?;
        let follows = self.rest.get(..7);
        if follows.is_some_and(|word| word.eq_ignore_ascii_case("uescape")) {
            return None;
        }
        self.rest = before;
        let mut inner = Reader {
            rest: &written,
            backslashes: false,
        };
        let mut text = String::new();
        while let Some(at) = inner.rest.find('\\') {
            text.push_str(inner.take(at));
            inner.take(1);
            if inner.take_if("\\") {
                text.push('\\');
                continue;
            }
            let length = if inner.take_if("+") { 6 } else { 4 };
            let c = char::from_u32(inner.code(16, length, length)?)?;
            text.push(Some(c).filter(|c| *c != '\0')?);
        }
        text.push_str(inner.rest);
        Some(match is_name {
            true => Token::Quoted(text),
            false => Token::Text(text),
        })
    }

    fn quoted(&mut self) -> Option<String> {
        let mut name = String::new();
        self.take(1);
        loop {
            let end = self.rest.find('"')?;
            name.push_str(self.take(end));
            if self.take_if("\"\"") {
                name.push('"');
            } else {
                self.take(1);
                // Longer names are cut off by the server.
                return (!name.is_empty() && name.len() < 64).then_some(name);
            }
        }
    }

    /// `$tag$…$tag$`.
    fn dollars(&mut self) -> Option<String> {
        let end = 1 + self.rest[1..].find('$')?;
        let tag = &self.rest[..=end];
        let name = &tag[1..end];
        let begins = name.chars().next().is_none_or(begins_name);
        if !begins || !name.chars().all(|c| begins_name(c) || c.is_ascii_digit()) {
            return None;
        }
        self.take(tag.len());
        let length = self.rest.find(tag)?;
        let text = self.take(length).to_owned();
        self.take(tag.len());
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(sql: &str) -> Option<Vec<String>> {
        let tokens = tokens(sql, false)?;
        Some(
            tokens
                .into_iter()
                .map(|token| match token {
                    Token::Word(word) => word,
                    Token::Quoted(name) => format!("\"{name}\""),
                    Token::Text(text) => format!("'{text}'"),
                    Token::Number(number) => number,
                    Token::Bits => "bits".to_owned(),
                    Token::Parameter(number) => format!("${number}"),
                    Token::Cast => "::".to_owned(),
                    Token::AsText => "->>".to_owned(),
                    Token::Symbol(symbol) => symbol.to_string(),
                })
                .collect(),
        )
    }

    #[test]
    fn strings_are_read_as_postgresql_reads_them() {
        for (sql, expected) in [
            ("'a''b'", "'a'b'"),
            ("'a' \n 'b'", "'ab'"),
            ("E'\\x41\\101\\u0042\\n\\q'", "'AAB\nq'"),
            ("e'it\\'s'", "'it's'"),
            ("U&'d\\0061t\\+000061'", "'data'"),
            ("U&\"d\\0061t\"", "\"dat\""),
            ("$$a'b$$ $x$ $$ $x$", "'a'b' ' $$ '"),
            ("N'a'", "'a'"),
            ("x'41' B'1'\n'0'", "bits bits"),
            ("'a' -- b\n, 'c'", "'a' , 'c'"),
            ("1 1.5 .5 1e3 $12", "1 1.5 .5 1e3 $12"),
            ("a/* x /* y */ */b -- c\n::d->>0", "a b :: d ->> 0"),
            ("\"a\"\"b\" É", "\"a\"b\" É"),
        ] {
            let read = texts(sql).map(|texts| texts.join(" "));
            assert_eq!(read.as_deref(), Some(expected), "{sql}");
        }
        for sql in [
            "'a",
            "\"a",
            "/* a",
            "E'\\",
            "E'\\x'",
            "E'\\000'",
            "'a' -- b\n'c'",
            "E'a'--\n'b\\' ; --'",
            "$1a",
            "1a",
            "1..2",
            "U&'\\00'",
            "U&'a!0041' UESCAPE '!'",
            "$a$ x",
            "'a' -- b\n 'c'\n-- d\n'e'",
            "\"\"",
        ] {
            assert_eq!(texts(sql), None, "{sql}");
        }
        assert_eq!(tokens("'a\\b'", true), None);
    }
}
