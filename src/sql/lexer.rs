//! Cuts SQL into tokens as PostgreSQL's scan.l does, in pieces of any size as they arrive.
//!
//! Comments are passed over, words are folded to lower case and cut at 63 bytes as names are. What
//! a string holds is told up to [`MAX_TEXT`] bytes; where the sink reads code, up to
//! [`MAX_COMMAND`], and with simple escapes.
//!
//! A dollar-quoted string ends at its own tag and nowhere else, whatever stands in it: comments,
//! quotes and other tags mean nothing there. So it is told as one string, also where it holds code,
//! and whoever reads the code reads it as a text of its own.
//!
//! Deliberately absent: operators of several characters (each is a symbol of its own), the kinds of
//! numbers, and Unicode escapes, which are told as [`Token::Unicode`] without being decoded.

/// Longest name in bytes (NAMEDATALEN - 1); a longer one is cut, as PostgreSQL cuts it.
pub const MAX_NAME: usize = 63;
/// Length in bytes of `\+XXXXXX`, the longest escape of a character.
const LONGEST_ESCAPE: usize = 8;
/// Longest text of a string that is told, in bytes,
const MAX_TEXT: usize = 128;
/// and in code, where a string may be a command.
const MAX_COMMAND: usize = 64 * 1024;
/// Longest tag of a dollar quote, in bytes. PostgreSQL has no limit; behind a longer one nothing is
/// read.
const MAX_TAG: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token<'a> {
    /// A keyword or a name without quotes, in lower case.
    Word(&'a [u8]),
    /// A name in double quotes.
    Quoted(&'a [u8]),
    /// A name or string with Unicode escapes (`U&…`), which can spell anything: a name's text as it
    /// is written, without its quotes. None: a string, or too long.
    Unicode(Option<&'a [u8]>),
    /// A string. None: too long, or with escapes in it.
    Text(Option<&'a [u8]>),
    Number,
    /// `$1`.
    Parameter,
    Symbol(u8),
}

/// Who is told the tokens.
pub trait Sink {
    fn token(&mut self, token: Token<'_>);

    /// Whether the string that begins here may be code, and is to be told up to [`MAX_COMMAND`]
    /// bytes.
    fn reads_code(&self) -> bool;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Between,
    Word,
    Number,
    Parameter,
    /// In a string; with backslash escapes or not.
    Text {
        escapes: bool,
    },
    /// After a backslash in a string.
    Escaped,
    /// After a quote in a string: the end, or the first of two that mean one.
    TextQuote {
        escapes: bool,
    },
    /// After a string: white space, which with a newline in it and a quote behind it continues the
    /// string.
    TextEnd {
        escapes: bool,
        newline: bool,
    },
    /// In a comment to the end of the line after a string.
    TextEndComment {
        escapes: bool,
    },
    TextEndDash {
        escapes: bool,
    },
    Name,
    NameQuote,
    Dash,
    LineComment,
    Slash,
    /// In comments, so many deep; the last byte was the first of a possible `/*` or `*/`.
    Comment {
        depth: u32,
        last: u8,
    },
    /// After `$`: a parameter, or the tag of a dollar quote.
    Dollar,
    /// In a dollar-quoted string; so many bytes of a possible end were seen.
    Body {
        matched: usize,
    },
    /// After `u&`.
    UnicodePrefix,
    /// Behind what may be the tag of a dollar quote and is too long to be kept: nothing is certain
    /// there.
    Lost,
}

/// See the module.
#[derive(Debug)]
pub struct Lexer {
    state: State,
    /// Whether a backslash escapes in plain strings (`standard_conforming_strings` is off).
    backslashes: bool,
    /// The word, name, string or dollar tag that is being read.
    text: Vec<u8>,
    /// The string was too long, or has escapes.
    opaque: bool,
    /// The name or string began with `U&`.
    unicode: bool,
    /// The tag of the dollar-quoted string that is being read, with both its `$`.
    tag: Vec<u8>,
    /// The string that is being read may be code.
    is_code: bool,
}

const SPACE: u8 = 1;
const STARTS_WORD: u8 = 2;
const CONTINUES_WORD: u8 = 4;

/// What each byte can be: a table, since this is on the way of every statement.
static CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        classes[byte] = match byte as u8 {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => SPACE,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80.. => STARTS_WORD | CONTINUES_WORD,
            b'0'..=b'9' | b'$' => CONTINUES_WORD,
            _ => 0,
        };
        byte += 1;
    }
    classes
}

fn is(byte: u8, class: u8) -> bool {
    CLASSES[usize::from(byte)] & class != 0
}

/// Each byte that continues a word, in lower case; 0 for all others.
static IN_WORD: [u8; 256] = in_word();

const fn in_word() -> [u8; 256] {
    let mut folded = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        if CLASSES[byte] & CONTINUES_WORD != 0 {
            folded[byte] = (byte as u8).to_ascii_lowercase();
        }
        byte += 1;
    }
    folded
}

/// How many of the first bytes are of a class.
fn run_of(bytes: &[u8], class: u8) -> usize {
    bytes
        .iter()
        .position(|&byte| !is(byte, class))
        .unwrap_or(bytes.len())
}

fn starts_word(byte: u8) -> bool {
    is(byte, STARTS_WORD)
}

fn continues_word(byte: u8) -> bool {
    is(byte, CONTINUES_WORD)
}

fn is_space(byte: u8) -> bool {
    is(byte, SPACE)
}

/// How many of the first bytes are before the first `end`.
fn run_to(bytes: &[u8], end: u8) -> usize {
    memchr::memchr(end, bytes).unwrap_or(bytes.len())
}

impl Lexer {
    /// `backslashes`: `standard_conforming_strings` is off.
    pub fn new(backslashes: bool) -> Self {
        Self {
            state: State::Between,
            backslashes,
            text: Vec::new(),
            opaque: false,
            unicode: false,
            tag: Vec::new(),
            is_code: false,
        }
    }

    /// Begins another text.
    pub fn restart(&mut self, backslashes: bool) {
        self.state = State::Between;
        self.backslashes = backslashes;
    }

    /// Reads the next bytes of the text.
    pub fn feed(&mut self, bytes: &[u8], sink: &mut impl Sink) {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            at += match self.state {
                // What most of a text is: these two are all the others together.
                State::Between if is_space(byte) => 1,
                State::Between if starts_word(byte) => self.word(&bytes[at..], sink),
                _ => self.step(&bytes[at..], sink),
            };
        }
    }

    /// A word that is whole, and nothing else, is told without being kept. Returns how many bytes
    /// it has.
    fn word(&mut self, bytes: &[u8], sink: &mut impl Sink) -> usize {
        let mut word = [0; MAX_NAME];
        let mut length = 0;
        for (folded, &byte) in word.iter_mut().zip(bytes) {
            *folded = IN_WORD[usize::from(byte)];
            if *folded == 0 {
                break;
            }
            length += 1;
        }
        match bytes.get(length) {
            Some(next) if length < MAX_NAME && !matches!(next, b'\'' | b'&') => {
                sink.token(Token::Word(&word[..length]));
                length
            }
            _ => {
                self.text.clear();
                self.state = State::Word;
                0
            }
        }
    }

    /// The text is at its end. False: in the middle of a string, a quoted name or a comment.
    pub fn finish(&mut self, sink: &mut impl Sink) -> bool {
        match std::mem::replace(&mut self.state, State::Between) {
            State::Word => {
                sink.token(Token::Word(&self.text));
                true
            }
            State::UnicodePrefix => {
                sink.token(Token::Word(b"u"));
                sink.token(Token::Symbol(b'&'));
                true
            }
            State::TextQuote { .. } | State::TextEnd { .. } | State::TextEndComment { .. } => {
                self.tell_text(sink);
                true
            }
            State::TextEndDash { .. } => {
                self.tell_text(sink);
                sink.token(Token::Symbol(b'-'));
                true
            }
            State::NameQuote => {
                self.tell_name(sink);
                true
            }
            State::Number => {
                sink.token(Token::Number);
                true
            }
            State::Parameter => {
                sink.token(Token::Parameter);
                true
            }
            State::Dash => {
                sink.token(Token::Symbol(b'-'));
                true
            }
            State::Slash => {
                sink.token(Token::Symbol(b'/'));
                true
            }
            State::Dollar => {
                sink.token(Token::Symbol(b'$'));
                if self.begin_word_of_tag() {
                    sink.token(Token::Word(&self.text));
                    self.state = State::Between;
                }
                true
            }
            State::Between | State::LineComment => true,
            State::Text { .. }
            | State::Escaped
            | State::Name
            | State::Comment { .. }
            | State::Body { .. }
            | State::Lost => false,
        }
    }

    fn begin_text(&mut self, escapes: bool, unicode: bool, sink: &impl Sink) {
        self.is_code = sink.reads_code();
        self.text.clear();
        self.opaque = false;
        self.unicode = unicode;
        self.state = State::Text { escapes };
    }

    fn keep_text(&mut self, bytes: &[u8]) {
        let most = match self.is_code {
            true => MAX_COMMAND,
            false => MAX_TEXT,
        };
        self.keep(bytes, most);
    }

    fn keep_name(&mut self, bytes: &[u8]) {
        let most = match self.unicode {
            true => MAX_NAME * LONGEST_ESCAPE,
            false => MAX_NAME,
        };
        self.keep(bytes, most);
    }

    fn keep(&mut self, bytes: &[u8], most: usize) {
        let room = most.saturating_sub(self.text.len());
        self.opaque |= bytes.len() > room;
        self.text.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn tell_text(&mut self, sink: &mut impl Sink) {
        sink.token(match self.unicode {
            true => Token::Unicode(None),
            false => Token::Text((!self.opaque).then_some(&self.text)),
        });
    }

    fn tell_name(&mut self, sink: &mut impl Sink) {
        sink.token(match self.unicode {
            true => Token::Unicode((!self.opaque).then_some(&self.text)),
            false => Token::Quoted(&self.text),
        });
    }

    /// Reads at least one byte at the start of `bytes`, unless only the state changes; returns how
    /// many.
    #[expect(clippy::too_many_lines, reason = "an arm for each state")]
    fn step(&mut self, bytes: &[u8], sink: &mut impl Sink) -> usize {
        let byte = bytes[0];
        match self.state {
            State::Between => self.begin(bytes, sink),
            State::Word => {
                let run = run_of(bytes, CONTINUES_WORD);
                let before = self.text.len();
                let room = MAX_NAME.saturating_sub(before).min(run);
                self.text.extend_from_slice(&bytes[..room]);
                self.text[before..].make_ascii_lowercase();
                if run < bytes.len() {
                    return run + self.end_word(bytes[run], sink);
                }
                run
            }
            State::Number => {
                let run = bytes
                    .iter()
                    .take_while(|b| b.is_ascii_digit() || **b == b'.')
                    .count();
                if run < bytes.len() {
                    self.state = State::Between;
                    sink.token(Token::Number);
                }
                run
            }
            State::Parameter => {
                let run = bytes.iter().take_while(|b| b.is_ascii_digit()).count();
                if run < bytes.len() {
                    self.state = State::Between;
                    sink.token(Token::Parameter);
                }
                run
            }
            State::Text { escapes } => {
                let run = match escapes {
                    true => memchr::memchr2(b'\'', b'\\', bytes).unwrap_or(bytes.len()),
                    false => run_to(bytes, b'\''),
                };
                self.keep_text(&bytes[..run]);
                match bytes.get(run) {
                    None => run,
                    Some(b'\'') => {
                        self.state = State::TextQuote { escapes };
                        run + 1
                    }
                    Some(_) => {
                        self.state = State::Escaped;
                        run + 1
                    }
                }
            }
            State::Escaped => {
                match byte {
                    b'b' | b'f' | b'n' | b'r' | b't' if self.is_code => self.keep_text(b" "),
                    b'\\' | b'\'' if self.is_code => self.keep_text(&[byte]),
                    _ => self.opaque = true,
                }
                self.state = State::Text { escapes: true };
                1
            }
            State::TextQuote { escapes } if byte == b'\'' => {
                self.keep_text(b"'");
                self.state = State::Text { escapes };
                1
            }
            State::TextQuote { escapes } => {
                self.state = State::TextEnd {
                    escapes,
                    newline: false,
                };
                0
            }
            State::TextEnd { escapes, newline } => self.after_text(byte, escapes, newline, sink),
            State::TextEndDash { escapes } if byte == b'-' => {
                self.state = State::TextEndComment { escapes };
                1
            }
            State::TextEndDash { .. } => {
                self.tell_text(sink);
                sink.token(Token::Symbol(b'-'));
                self.state = State::Between;
                0
            }
            State::TextEndComment { escapes } => {
                let run = bytes
                    .iter()
                    .take_while(|b| !matches!(**b, b'\n' | b'\r'))
                    .count();
                if run < bytes.len() {
                    self.state = State::TextEnd {
                        escapes,
                        newline: true,
                    };
                    return run + 1;
                }
                run
            }
            State::Name => {
                let run = run_to(bytes, b'"');
                self.keep_name(&bytes[..run]);
                if run < bytes.len() {
                    self.state = State::NameQuote;
                    return run + 1;
                }
                run
            }
            State::NameQuote if byte == b'"' => {
                self.keep_name(b"\"");
                self.state = State::Name;
                1
            }
            State::NameQuote => {
                self.state = State::Between;
                self.tell_name(sink);
                0
            }
            State::Dash if byte == b'-' => {
                self.state = State::LineComment;
                1
            }
            State::Dash => {
                self.state = State::Between;
                sink.token(Token::Symbol(b'-'));
                0
            }
            State::LineComment => {
                let run = bytes
                    .iter()
                    .take_while(|b| !matches!(**b, b'\n' | b'\r'))
                    .count();
                if run < bytes.len() {
                    self.state = State::Between;
                }
                run
            }
            State::Slash if byte == b'*' => {
                self.state = State::Comment { depth: 1, last: 0 };
                1
            }
            State::Slash => {
                self.state = State::Between;
                sink.token(Token::Symbol(b'/'));
                0
            }
            State::Comment { depth, last } => {
                self.state = match (last, byte) {
                    (b'/', b'*') => State::Comment {
                        depth: depth + 1,
                        last: 0,
                    },
                    (b'*', b'/') if depth == 1 => State::Between,
                    (b'*', b'/') => State::Comment {
                        depth: depth - 1,
                        last: 0,
                    },
                    _ => State::Comment { depth, last: byte },
                };
                1
            }
            State::Dollar => self.dollar(byte, sink),
            State::Body { matched } => self.body(bytes, matched, sink),
            State::Lost => bytes.len(),
            State::UnicodePrefix => {
                self.text.clear();
                self.opaque = false;
                self.unicode = true;
                match byte {
                    b'\'' => self.begin_text(false, true, sink),
                    b'"' => self.state = State::Name,
                    _ => {
                        self.state = State::Between;
                        sink.token(Token::Word(b"u"));
                        sink.token(Token::Symbol(b'&'));
                        return 0;
                    }
                }
                1
            }
        }
    }

    /// The first byte of a token that is no word.
    fn begin(&mut self, bytes: &[u8], sink: &mut impl Sink) -> usize {
        let byte = bytes[0];
        match byte {
            b'\'' => self.begin_text(self.backslashes, false, sink),
            b'"' => {
                self.text.clear();
                self.opaque = false;
                self.unicode = false;
                self.state = State::Name;
            }
            b'-' => self.state = State::Dash,
            b'/' => self.state = State::Slash,
            b'$' => {
                self.tag.clear();
                self.tag.push(b'$');
                self.state = State::Dollar;
            }
            b'0'..=b'9' => self.state = State::Number,
            _ => sink.token(Token::Symbol(byte)),
        }
        1
    }

    /// A word is at its end before `next`; returns how many bytes of what follows belong to it.
    fn end_word(&mut self, next: u8, sink: &mut impl Sink) -> usize {
        match (&self.text[..], next) {
            (b"e", b'\'') => self.begin_text(true, false, sink),
            (b"b" | b"x", b'\'') => self.begin_text(false, false, sink),
            (b"n", b'\'') => self.begin_text(self.backslashes, false, sink),
            (b"u", b'&') => self.state = State::UnicodePrefix,
            _ => {
                self.state = State::Between;
                sink.token(Token::Word(&self.text));
                return 0;
            }
        }
        1
    }

    fn after_text(
        &mut self,
        byte: u8,
        escapes: bool,
        newline: bool,
        sink: &mut impl Sink,
    ) -> usize {
        match byte {
            b'\n' | b'\r' => {
                self.state = State::TextEnd {
                    escapes,
                    newline: true,
                };
            }
            _ if is_space(byte) => {}
            b'\'' if newline => self.state = State::Text { escapes },
            b'-' => self.state = State::TextEndDash { escapes },
            _ => {
                self.state = State::Between;
                self.tell_text(sink);
                return 0;
            }
        }
        1
    }

    fn dollar(&mut self, byte: u8, sink: &mut impl Sink) -> usize {
        match byte {
            b'0'..=b'9' if self.tag.len() == 1 => {
                self.state = State::Parameter;
                return 0;
            }
            b'$' => {
                self.tag.push(b'$');
                self.begin_text(false, false, sink);
                self.state = State::Body { matched: 0 };
            }
            _ if continues_word(byte) && self.tag.len() >= MAX_TAG => self.state = State::Lost,
            _ if continues_word(byte) => self.tag.push(byte),
            _ => {
                // No dollar quote after all. What looked like its tag is a word.
                self.state = State::Between;
                sink.token(Token::Symbol(b'$'));
                self.begin_word_of_tag();
                return 0;
            }
        }
        1
    }

    /// Behind a `$`, what looked like the tag of a dollar quote is a word, if there is anything of
    /// it.
    fn begin_word_of_tag(&mut self) -> bool {
        if self.tag.len() <= 1 {
            return false;
        }
        let word = self.tag[1..].iter().take(MAX_NAME);
        self.text.clear();
        self.text.extend(word.map(u8::to_ascii_lowercase));
        self.state = State::Word;
        true
    }

    fn body(&mut self, bytes: &[u8], matched: usize, sink: &mut impl Sink) -> usize {
        if matched == 0 {
            let run = run_to(bytes, b'$');
            self.keep_text(&bytes[..run]);
            if run < bytes.len() {
                self.state = State::Body { matched: 1 };
                return run + 1;
            }
            return run;
        }
        let byte = bytes[0];
        if byte != self.tag[matched] {
            // The start of a tag that is not the right one belongs to the string. The `$` that ends
            // a wrong tag may begin the right one.
            let tag = std::mem::take(&mut self.tag);
            self.keep_text(&tag[..matched]);
            self.tag = tag;
            self.state = State::Body { matched: 0 };
            return 0;
        }
        if matched + 1 < self.tag.len() {
            self.state = State::Body {
                matched: matched + 1,
            };
        } else {
            self.state = State::Between;
            self.tell_text(sink);
        }
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Told {
        tokens: Vec<String>,
        code: bool,
    }

    impl Sink for Told {
        fn token(&mut self, token: Token<'_>) {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            self.tokens.push(match token {
                Token::Word(word) => text(word),
                Token::Quoted(name) => format!("\"{}\"", text(name)),
                Token::Unicode(_) => "U&".into(),
                Token::Text(Some(string)) => format!("'{}'", text(string)),
                Token::Text(None) => "''".into(),
                Token::Number => "0".into(),
                Token::Parameter => "$1".into(),
                Token::Symbol(symbol) => (symbol as char).into(),
            });
        }

        fn reads_code(&self) -> bool {
            self.code
        }
    }

    /// The tokens, and whether the text was complete; the same in one piece and byte by byte.
    fn tokens(sql: &str, backslashes: bool, code: bool) -> (String, bool) {
        let read = |piece: usize| {
            let mut told = Told {
                code,
                ..Told::default()
            };
            let mut lexer = Lexer::new(backslashes);
            for piece in sql.as_bytes().chunks(piece) {
                lexer.feed(piece, &mut told);
            }
            let complete = lexer.finish(&mut told);
            (told.tokens.join(" "), complete)
        };
        let whole = read(sql.len().max(1));
        assert_eq!(whole, read(1), "{sql}");
        assert_eq!(whole, read(3), "{sql}");
        whole
    }

    #[test]
    fn sql_is_cut_as_postgresql_cuts_it() {
        for (sql, expected) in [
            ("SELECT 1", "select 0"),
            ("select a.b+$1", "select a . b + $1"),
            ("SET x='a''b'", "set x = 'a'b'"),
            (r"'a\' b", r"'a\' b"),
            (r"E'a\' b' c", "'' c"),
            (r"e'a\\' b", "'' b"),
            ("E'a'\n'b\\' c' d", "'' d"),
            ("'a' 'b'", "'a' 'b'"),
            ("'a'\n 'b'", "'ab'"),
            ("'a' -- x\n'b' c", "'ab' c"),
            ("'a' - 1", "'a' - 0"),
            ("'a' /* x */ b", "'a' b"),
            ("n'a\\' b", "'a\\' b"),
            ("b'0' x'1F'", "'0' '1F'"),
            (r#"U&"d\0061t" u&'x' u & v"#, "U& U& u & v"),
            (r#""A ""b""" c"#, r#""A "b"" c"#),
            ("a /* b /* c */ d */ e", "a e"),
            ("a /**/ b /***/ c /*/ d */ e", "a b c e"),
            ("a -- b 'c\nd", "a d"),
            ("1-1", "0 - 0"),
            ("a/b", "a / b"),
            ("$$ a ' b $$ c", "' a ' b ' c"),
            ("$x$ $$ $y$ $x $x$ c", "' $$ $y$ $x ' c"),
            ("$x$$xx$x$ c", "'$xx' c"),
            ("$x$a$$x$ c", "'a$' c"),
            ("$$ a -- $$ c", "' a -- ' c"),
            ("$$ /* $$ c $$ */ $$", "' /* ' c ' */ '"),
            ("a$b$c d", "a$b$c d"),
            ("$ x", "$ x"),
            ("$abc x", "$ abc x"),
            ("$abc", "$ abc"),
            ("1e5 1abc", "0 e5 0 abc"),
            ("SÉT", "sÉt"),
        ] {
            assert_eq!(
                tokens(sql, false, false),
                (expected.to_owned(), true),
                "{sql}"
            );
        }
    }

    #[test]
    fn backslashes_escape_where_strings_do_not_conform_to_the_standard() {
        assert_eq!(tokens(r"'a\' c' d", true, false).0, "'' d");
        assert_eq!(
            tokens(r"'a\' c' d", false, false),
            (r"'a\' c".to_owned(), false)
        );
    }

    #[test]
    fn what_is_not_closed_is_told() {
        for sql in [
            "'a",
            "\"a",
            "/* a",
            "/* a /* b */",
            "$$ a",
            "$x$ a $x",
            "E'a\\'",
        ] {
            assert!(!tokens(sql, false, false).1, "{sql}");
        }
        for sql in ["'a'", "a -- b", "a /", "a -", "$1", "$"] {
            assert!(tokens(sql, false, false).1, "{sql}");
        }
    }

    #[test]
    fn a_dollar_quoted_string_is_one_string_also_where_it_is_code() {
        assert_eq!(
            tokens("DO $$ BEGIN x -- $y$ z ' $$ ;", false, true).0,
            "do ' BEGIN x -- $y$ z ' ' ;"
        );
        assert!(!tokens("DO $$ BEGIN", false, true).1);
    }

    #[test]
    fn a_tag_of_a_dollar_quote_may_have_any_length() {
        let tag = format!("${}$", "x".repeat(300));
        let sql = format!("a {tag} ' {tag} b");
        assert_eq!(tokens(&sql, false, false), ("a ' ' ' b".to_owned(), true));
    }

    #[test]
    fn behind_a_tag_that_is_too_long_nothing_is_read() {
        let tag = format!("${}$", "x".repeat(MAX_TAG));
        assert_eq!(
            tokens(&format!("a {tag} b {tag} c"), false, false),
            ("a".to_owned(), false)
        );
    }

    #[test]
    fn in_code_a_string_is_told_whole_and_without_simple_escapes() {
        let long = "x".repeat(130);
        let sql = format!(r"'{long}' E'a\tb\'' E'\x41' $${long}$$");
        let expected = format!("'{long}' 'a b'' '' '{long}'");
        assert_eq!(tokens(&sql, false, true).0, expected);
    }

    #[test]
    fn names_are_cut_at_63_bytes() {
        let long = "a".repeat(70);
        assert_eq!(tokens(&long, false, false).0.len(), 63);
        assert_eq!(tokens(&format!("\"{long}\""), false, false).0.len(), 65);
    }
}
