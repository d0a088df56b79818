//! What a statement is like, without anything that it is about: names and keywords stay, every
//! literal is a `?`, comments go. For the audit, which must say what was tried and must not keep a
//! customer's data.
//!
//! Where it is not certain what is a literal there is no fingerprint at all: a text that ends in
//! the middle of one, one that reads differently with and without backslash escapes, one in whose
//! encoding a backslash may be a part of a character. It is not used on the way of a query.

use sha2::{Digest, Sha256};

use super::lexer::{Lexer, Sink, Token};

/// Longest text of a fingerprint that is told, in bytes. The hash is of all of it.
const MAX_TEXT: usize = 512;
/// A longer statement, in bytes, has no fingerprint: to read it would take a worker too long.
const MAX_STATEMENT: usize = 64 * 1024;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    /// At most 512 bytes.
    pub text: String,
    /// The first 64 bits of the SHA-256 of the whole text: the same for statements that differ in
    /// literals, comments and spaces alone.
    pub hash: u64,
}

impl Fingerprint {
    /// None: it cannot be told for certain what is a literal in it.
    pub fn of(sql: &[u8]) -> Option<Self> {
        if sql.len() > MAX_STATEMENT || has_ambiguous_backslash(sql) {
            return None;
        }
        let normal = normalise(sql, false)?;
        if sql.contains(&b'\\') && normalise(sql, true)? != normal {
            return None;
        }
        let digest = Sha256::digest(&normal);
        let hash = digest.iter().take(8);
        let hash = hash.fold(0, |hash, byte| hash << 8 | u64::from(*byte));
        Some(Self {
            text: excerpt(&normal),
            hash,
        })
    }
}

/// Whether a backslash may be the second half of a character: of SJIS, BIG5, GBK, UHC and their
/// like, in which it stands behind a byte that is not ASCII. No other byte that the lexer looks for
/// can be one.
fn has_ambiguous_backslash(sql: &[u8]) -> bool {
    sql.windows(2)
        .any(|pair| !pair[0].is_ascii() && pair[1] == b'\\')
}

fn excerpt(normal: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(normal).into_owned();
    let mut end = MAX_TEXT.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

fn normalise(sql: &[u8], backslashes: bool) -> Option<Vec<u8>> {
    let mut normal = Normal::default();
    let mut lexer = Lexer::new(backslashes);
    // One byte at a time, so that it is known what stands behind a token.
    for byte in sql {
        normal.next = *byte;
        lexer.feed(std::slice::from_ref(byte), &mut normal);
    }
    normal.next = b' ';
    let complete = lexer.finish(&mut normal);
    while normal.text.last() == Some(&b';') {
        normal.text.pop();
    }
    (complete && !normal.unclear).then_some(normal.text)
}

/// Where in a statement that may set a parameter: its value may be a word without quotes, and is a
/// literal all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Setting {
    #[default]
    Start,
    /// It is none of those.
    Never,
    /// ALTER or CREATE, in which a SET may come.
    May,
    /// Behind SET.
    Name,
    /// Behind `=` or TO: all up to the end of the statement is the value.
    Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Last {
    #[default]
    Nothing,
    Word,
    Symbol(u8),
}

/// Writes tokens down as they are told.
#[derive(Debug, Default)]
struct Normal {
    text: Vec<u8>,
    last: Last,
    /// The byte that is read: what ends a token, when one is told.
    next: u8,
    /// A number is followed by letters without a space: what is told next may be the rest of it
    /// (`1e5`, `0x1F`, `1_000`).
    in_number: bool,
    setting: Setting,
    /// PostgreSQL would not read it either.
    unclear: bool,
}

impl Sink for Normal {
    fn token(&mut self, token: Token<'_>) {
        let in_number = std::mem::take(&mut self.in_number);
        if self.setting == Setting::Value && token != Token::Symbol(b';') {
            return;
        }
        match token {
            Token::Word(_) if in_number => {}
            Token::Word(word) => {
                self.word(word);
                self.note_word(word);
            }
            Token::Quoted(name) => {
                let name = name
                    .iter()
                    .flat_map(|&byte| std::iter::repeat_n(byte, 1 + usize::from(byte == b'"')));
                let quoted: Vec<u8> = [b'"'].into_iter().chain(name).chain([b'"']).collect();
                self.word(&quoted);
                self.begin_other();
            }
            Token::Number | Token::Parameter => {
                self.in_number =
                    self.next.is_ascii_alphanumeric() || matches!(self.next, b'_' | b'$' | 0x80..);
                self.literal();
            }
            Token::Unicode(_) | Token::Text(_) => self.literal(),
            Token::Symbol(symbol) => self.symbol(symbol),
        }
    }

    fn reads_code(&self) -> bool {
        false
    }
}

impl Normal {
    fn word(&mut self, word: &[u8]) {
        if !matches!(self.last, Last::Nothing | Last::Symbol(b'(' | b'.' | b'[')) {
            self.text.push(b' ');
        }
        self.text.extend_from_slice(word);
        self.last = Last::Word;
    }

    /// Of a list of literals one stays, however long it is.
    fn literal(&mut self) {
        if self.text.ends_with(b"?,") {
            self.text.pop();
            self.last = Last::Word;
            return;
        }
        self.word(b"?");
        self.begin_other();
    }

    fn symbol(&mut self, symbol: u8) {
        self.unclear |= matches!(symbol, b'$' | b'\\');
        let glued = matches!(symbol, b',' | b';' | b'.' | b'(' | b')' | b'[' | b']');
        if self.last == Last::Word && !glued {
            self.text.push(b' ');
        }
        self.text.push(symbol);
        self.last = Last::Symbol(symbol);
        self.setting = match (symbol, self.setting) {
            (b';', _) => Setting::Start,
            (b'=', Setting::Name) => return self.begin_value(),
            (_, Setting::Start) => Setting::Never,
            (_, setting) => setting,
        };
    }

    fn note_word(&mut self, word: &[u8]) {
        self.setting = match (self.setting, word) {
            (Setting::Start | Setting::May, b"set") => Setting::Name,
            (Setting::Start, b"alter" | b"create") => Setting::May,
            (Setting::Start, _) => Setting::Never,
            (Setting::Name, b"to") => return self.begin_value(),
            (setting, _) => setting,
        };
    }

    fn begin_value(&mut self) {
        self.word(b"?");
        self.setting = Setting::Value;
    }

    /// A statement that begins like this sets nothing.
    fn begin_other(&mut self) {
        if self.setting == Setting::Start {
            self.setting = Setting::Never;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(sql: &str) -> Option<String> {
        Fingerprint::of(sql.as_bytes()).map(|fingerprint| fingerprint.text)
    }

    #[test]
    fn names_stay_and_literals_go() {
        for (sql, expected) in [
            ("SELECT 1", "select ?"),
            (
                "SELECT a.b, \"C\"\"d\" FROM  t -- c\nWHERE x = 'y'",
                "select a.b, \"C\"\"d\" from t where x = ?",
            ),
            ("select f( 1 , 'x', $2 ) ;", "select f(?)"),
            (
                "INSERT INTO t VALUES (1,'a'), (2,'b')",
                "insert into t values(?),(?)",
            ),
            (
                "SELECT x::text || E'a\\'b' <= -5",
                "select x :: text || ? <=- ?",
            ),
            (
                "SELECT N'a', B'1', X'1F', U&'\\0041' UESCAPE '!'",
                "select ? uescape ?",
            ),
            ("SELECT 1e5, 0x1Fab, 1_000, 1.5E-7, .5", "select ? - ?,.?"),
            ("SELECT 'a'\n'b'", "select ?"),
            ("DO $x$ BEGIN PERFORM 'secret'; END $x$", "do ?"),
            ("SET app.tenant_id = other", "set app.tenant_id = ?"),
            (
                "set local a.b to c, 'd', 5; SELECT e",
                "set local a.b to ?; select e",
            ),
            ("ALTER ROLE r SET a.b = c", "alter role r set a.b = ?"),
            (
                "CREATE FUNCTION f() RETURNS int SET a TO b AS 'x'",
                "create function f() returns int set a to ?",
            ),
            (
                "UPDATE t SET a = b WHERE c = 1",
                "update t set a = b where c = ?",
            ),
            ("SELECT 'x'; SET a = b", "select ?; set a = ?"),
            ("SET ROLE r", "set role r"),
            ("/* a /* b */ c */ SELECT x[1]", "select x[?]"),
            ("SELECT 'näh', \"ä\"", "select ?, \"ä\""),
            ("", ""),
        ] {
            assert_eq!(text(sql).as_deref(), Some(expected), "{sql}");
        }
    }

    #[test]
    fn what_cannot_be_read_for_certain_has_none() {
        for sql in [
            "SELECT 'a",
            "SELECT \"a",
            "SELECT 1 /* a",
            "SELECT $$ a",
            "SELECT $a b",
            "SELECT 'a\\' b, c '",
            "SELECT 'a\\'",
            "SELECT \\ a",
            "SELECT E'ä\\' secret '",
        ] {
            assert_eq!(text(sql), None, "{sql}");
        }
        assert_eq!(Fingerprint::of(b"SELECT E'\x95\\' secret '"), None);
        assert_eq!(
            text(&format!("SELECT {}1", " ".repeat(MAX_STATEMENT))),
            None
        );
    }

    #[test]
    fn statements_that_differ_in_literals_alone_have_the_same_hash() {
        let hash = |sql: &str| Fingerprint::of(sql.as_bytes()).unwrap().hash;
        let one = hash("SELECT * FROM t WHERE id IN (1, 2) AND name = 'x'");
        for same in [
            "select * from T where id in ($1) and name = $2;",
            "SELECT *\nFROM t /* x */ WHERE id IN (7,8,9) AND name = $$y$$",
        ] {
            assert_eq!(hash(same), one, "{same}");
        }
        assert_ne!(
            hash("SELECT * FROM u WHERE id IN (1, 2) AND name = 'x'"),
            one
        );
        // It is written down, so it must not change from one version to the next.
        assert_eq!(hash("SELECT 1"), 0xe1c7_1d16_61ae_46e0);
    }

    #[test]
    fn a_long_one_is_cut_at_a_character_and_hashed_whole() {
        let sql = |last: &str| format!("SELECT a{}, {last}", ", ä".repeat(400));
        let (one, two) = (sql("b"), sql("c"));
        let one = Fingerprint::of(one.as_bytes()).unwrap();
        let two = Fingerprint::of(two.as_bytes()).unwrap();
        assert!(one.text.len() <= MAX_TEXT && one.text.len() > MAX_TEXT - 4);
        assert_eq!(one.text, two.text);
        assert_ne!(one.hash, two.hash);
    }

    /// Every form of literal and comment that PostgreSQL knows, each with the secret in it.
    const SECRETS: [&str; 24] = [
        "'s3cr3t'",
        "'it''s s3cr3t'",
        "'a' 's3cr3t'",
        "'a'\n  's3cr3t'",
        "'a' -- 's3cr3t\n 's3cr3t'",
        "E'\\'s3cr3t\\\\'",
        "e's3cr3t\\x41'",
        "'s3cr3t\\'",
        "'\\\\s3cr3t'",
        "U&'s3cr3t'",
        "n's3cr3t'",
        "$$s3cr3t ' \" $a$ s3cr3t$$",
        "$x$ $$ s3cr3t $y$ s3cr3t $x$",
        "/* s3cr3t ' /* \" s3cr3t */ $$ */ 1",
        "-- s3cr3t '\n 1",
        "1e733, 1.5e+733, 733, 1_733",
        "0xs3cr3t, 0x733, 733s3cr3t",
        "b'733', x'733'",
        "_utf8's3cr3t'",
        "'ü\\' || 's3cr3t'",
        "E'\u{3042}\\'s3cr3t'",
        "(SELECT 's3cr3t' FROM \"t\" WHERE \"a\" = 's3cr3t')",
        "ARRAY['s3cr3t', E's3cr3t']",
        "'s3cr3t'::text",
    ];

    #[test]
    fn no_literal_is_ever_told_whole_or_in_pieces() {
        let told = |sql: &[u8]| {
            let text = Fingerprint::of(sql).map(|fingerprint| fingerprint.text);
            text.is_some_and(|text| ["s3", "cr", "733"].iter().any(|part| text.contains(part)))
        };
        for one in SECRETS {
            for other in SECRETS {
                for (before, between) in [
                    ("SELECT ", ", "),
                    ("INSERT INTO t VALUES (", ") , ("),
                    ("SET a.b = ", ", "),
                    ("SELECT E'\\\\', ", " || "),
                ] {
                    let sql = format!("{before}{one}{between}{other}");
                    // Whatever is cut off, as where a message ends in the middle.
                    for end in 0..=sql.len() {
                        let cut = &sql.as_bytes()[..end];
                        assert!(!told(cut), "{}", String::from_utf8_lossy(cut));
                    }
                }
            }
        }
    }
}
