//! Which prepared statements a text names in SQL: PREPARE, EXECUTE and DEALLOCATE (gram.y:
//! PrepareStmt, ExecuteStmt, DeallocateStmt, DiscardStmt).
//!
//! `PREPARE` and `TRANSACTION` are words that a statement may be called, too: what stands behind
//! them decides. Names with Unicode escapes are decoded to UTF-8, which is right where that is the
//! client's encoding, or the name is ASCII.

use super::Effects;
use crate::sql::lexer::{MAX_NAME, Token};

/// What is done with a prepared statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Prepare,
    Execute,
    Deallocate,
}

/// Which statement a text names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// As the server reads the name.
    Name(Box<[u8]>),
    /// DEALLOCATE ALL, DISCARD ALL.
    All,
    /// The name could not be read.
    Unread,
}

/// A place where a text names a prepared statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    pub verb: Verb,
    pub which: Which,
    /// It stands in the code of DO or of a function: it may be carried out, or not.
    pub in_code: bool,
    /// What a statement that is prepared here does when it is executed.
    pub effects: Option<Box<Effects>>,
}

/// Where in the naming of a prepared statement the reader is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Using {
    /// In none, or behind it.
    #[default]
    No,
    /// Before the name.
    Begins(Verb),
    /// Behind DISCARD.
    Discards,
    /// Behind a word that is a keyword or the name.
    Word(Verb, &'static [u8]),
    /// Behind a name with escapes, before UESCAPE if it follows.
    Escaped(Verb, Box<[u8]>),
    /// Behind UESCAPE.
    Escape(Verb, Box<[u8]>),
}

impl Using {
    /// Takes the next token of the statement, or the `;` that ends it.
    pub fn take(&mut self, token: Token<'_>) -> Option<(Verb, Which)> {
        match std::mem::take(self) {
            Self::No => None,
            Self::Begins(verb) => self.begin(verb, token),
            Self::Discards => {
                (token == Token::Word(b"all")).then_some((Verb::Deallocate, Which::All))
            }
            Self::Word(Verb::Prepare, _) if matches!(token, Token::Text(_)) => None,
            Self::Word(Verb::Deallocate, _) if is_name(token) => {
                self.begin_name(Verb::Deallocate, token)
            }
            Self::Word(verb, word) => Some((verb, named(word))),
            Self::Escaped(verb, text) if token == Token::Word(b"uescape") => {
                *self = Self::Escape(verb, text);
                None
            }
            Self::Escaped(verb, text) => Some((verb, decoded(&text, b'\\'))),
            Self::Escape(verb, text) => Some((
                verb,
                match token {
                    Token::Text(Some(&[escape])) => decoded(&text, escape),
                    _ => Which::Unread,
                },
            )),
        }
    }

    /// The statement is at its end.
    pub fn finish(&mut self) -> Option<(Verb, Which)> {
        match std::mem::take(self) {
            Self::Word(verb, word) => Some((verb, named(word))),
            Self::Escaped(verb, text) => Some((verb, decoded(&text, b'\\'))),
            Self::Escape(verb, _) => Some((verb, Which::Unread)),
            Self::No | Self::Begins(_) | Self::Discards => None,
        }
    }

    fn begin(&mut self, verb: Verb, token: Token<'_>) -> Option<(Verb, Which)> {
        match (verb, token) {
            (Verb::Deallocate, Token::Word(b"prepare")) => *self = Self::Word(verb, b"prepare"),
            (Verb::Prepare, Token::Word(b"transaction")) => {
                *self = Self::Word(verb, b"transaction");
            }
            _ => return self.begin_name(verb, token),
        }
        None
    }

    fn begin_name(&mut self, verb: Verb, token: Token<'_>) -> Option<(Verb, Which)> {
        let which = match token {
            Token::Word(b"all") if verb == Verb::Deallocate => Which::All,
            Token::Word(name) | Token::Quoted(name) => named(name),
            Token::Unicode(Some(text)) => {
                *self = Self::Escaped(verb, text.into());
                return None;
            }
            Token::Unicode(None) => Which::Unread,
            // PostgreSQL's grammar has nothing else here: the statement fails.
            _ => return None,
        };
        Some((verb, which))
    }
}

fn is_name(token: Token<'_>) -> bool {
    matches!(token, Token::Word(_) | Token::Quoted(_) | Token::Unicode(_))
}

fn named(name: &[u8]) -> Which {
    Which::Name(name.into())
}

/// The name that a text with escapes means (parser.c: `str_udeescape`).
fn decoded(text: &[u8], escape: u8) -> Which {
    decode(text, escape).map_or(Which::Unread, |mut name| {
        while name.len() > MAX_NAME {
            name.pop();
        }
        Which::Name(name.into_bytes().into())
    })
}

fn decode(text: &[u8], escape: u8) -> Option<String> {
    let mut name = String::new();
    let mut units = Vec::new();
    let mut rest = std::str::from_utf8(text).ok()?;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        if u32::from(c) != u32::from(escape) {
            name.push(c);
            continue;
        }
        if let Some(after) = rest.strip_prefix(c) {
            name.push(c);
            rest = after;
            continue;
        }
        let (start, digits) = match rest.starts_with('+') {
            true => (1, 6),
            false => (0, 4),
        };
        let code = u32::from_str_radix(rest.get(start..start + digits)?, 16).ok()?;
        rest = &rest[start + digits..];
        // One half of a pair is followed by the other.
        match u16::try_from(code) {
            Ok(unit @ 0xd800..0xe000) => units.push(unit),
            _ => name.push(char::from_u32(code)?),
        }
        if units.len() == 2 {
            name.push_str(&String::from_utf16(&units).ok()?);
            units.clear();
        }
    }
    units.is_empty().then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uses(sql: &str) -> String {
        let effects = Effects::of(sql.as_bytes(), false);
        let told = effects.uses.iter().map(|used| {
            let which = match &used.which {
                Which::Name(name) => String::from_utf8_lossy(name).into_owned(),
                Which::All => "ALL".to_owned(),
                Which::Unread => "?".to_owned(),
            };
            let code = if used.in_code { "~" } else { "" };
            format!("{code}{:?} {which}", used.verb)
        });
        told.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn what_names_a_statement_is_told_in_order() {
        for (sql, expected) in [
            ("DEALLOCATE s1", "Deallocate s1"),
            ("/* x */ deallocate -- y\n prepare S1 ; ", "Deallocate s1"),
            ("DEALLOCATE \"S\"\"1\"", "Deallocate S\"1"),
            ("DEALLOCATE PREPARE \"a b\"", "Deallocate a b"),
            ("DEALLOCATE a\u{a0}", "Deallocate a\u{a0}"),
            ("DEALLOCATE ALL", "Deallocate ALL"),
            ("DEALLOCATE PREPARE ALL", "Deallocate ALL"),
            ("DISCARD ALL", "Deallocate ALL"),
            ("DISCARD PLANS; DISCARD TEMP; SELECT all", ""),
            ("DEALLOCATE \"all\"", "Deallocate all"),
            ("DEALLOCATE prepare", "Deallocate prepare"),
            ("DEALLOCATE prepare; SELECT 1", "Deallocate prepare"),
            ("DEALLOCATE", ""),
            ("SELECT 'DEALLOCATE a', deallocate, \"EXECUTE\"", ""),
            (
                "SAVEPOINT x; DEALLOCATE \"a\"; RELEASE x; DEALLOCATE b",
                "Deallocate a, Deallocate b",
            ),
            ("DEALLOCATE U&\"\\0061\"", "Deallocate a"),
            ("DEALLOCATE U&\"!0061!!\\\" UESCAPE '!'", "Deallocate a!\\"),
            (
                "DEALLOCATE U&\"\\+01F600\\D83D\\DE00\"; SELECT 1",
                "Deallocate \u{1f600}\u{1f600}",
            ),
            ("DEALLOCATE U&\"\\00\"", "Deallocate ?"),
            ("PREPARE a (int) AS SELECT $1", "Prepare a"),
            ("PREPARE transaction AS SELECT 1", "Prepare transaction"),
            (
                "PREPARE TRANSACTION 'x'; PREPARE b AS SELECT 1",
                "Prepare b",
            ),
            ("EXECUTE a(1, 'b'); EXECUTE \"B\"", "Execute a, Execute B"),
            ("EXPLAIN (COSTS OFF) EXECUTE a", "Execute a"),
            ("CREATE TABLE t AS EXECUTE a(1)", "Execute a"),
            ("DO $$ BEGIN DEALLOCATE a; END $$", "~Deallocate a"),
            (
                "DO $$ BEGIN EXECUTE 'PREPARE a AS SELECT 1'; END $$",
                "~Prepare a",
            ),
        ] {
            assert_eq!(uses(sql), expected, "{sql}");
        }
    }

    #[test]
    fn what_is_prepared_is_told_apart_from_what_stands_beside_it() {
        let sql = "SELECT f(); PREPARE a AS SELECT set_config('x.y', $1, false), g(); LISTEN z";
        let effects = Effects::of(sql.as_bytes(), false);
        let prepared = effects.uses[0].effects.as_ref().unwrap();
        assert_eq!(&*prepared.settings[0].name, "x.y");
        assert_eq!(&*prepared.functions, &[Box::from("g")]);
        assert_eq!(prepared.what, super::super::What::CONTROL);
        assert_eq!(effects.functions.len(), 2);
    }
}
