//! SQL as far as the proxy must understand it: what is a word and what is a string ([`lexer`]), and
//! what a text may leave behind in its session ([`effects`]). Nothing here knows grammar beyond
//! that, and nothing decides.

/// The newest PostgreSQL whose grammar the reader is compared with (`tests/oracle`).
pub const NEWEST_POSTGRESQL: i32 = 18;

pub mod builtin;
pub mod choice;
pub mod effects;
pub mod fingerprint;
pub mod lexer;
pub mod naming;
pub mod policies;

/// A name as SQL has it in double quotes.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A name as SQL has it: in double quotes where it must be. Keywords are not looked for.
pub fn quoted_if_needed(name: &str) -> String {
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    let goes_on = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    match begins && name.chars().all(goes_on) {
        true => name.to_owned(),
        false => quoted(name),
    }
}

/// A text in single quotes; a backslash is only itself, as `standard_conforming_strings` has it.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A text in single quotes that means the same whatever `standard_conforming_strings` is.
pub fn safe_literal(text: &str) -> String {
    match text.contains('\\') {
        true => format!("E{}", literal(&text.replace('\\', "\\\\"))),
        false => literal(text),
    }
}

/// Whether a text has a word in it, in capitals or not.
pub fn finds(text: &[u8], word: &[u8]) -> bool {
    let word = Word::new(word);
    let (lower, upper) = (
        word.byte.to_ascii_lowercase(),
        word.byte.to_ascii_uppercase(),
    );
    memchr::memchr2_iter(lower, upper, text).any(|at| word.is_at(text, at))
}

/// A word, and the byte of it that is looked for: most names of variables have one that few texts
/// have.
#[derive(Debug)]
struct Word<W> {
    text: W,
    at: usize,
    byte: u8,
}

impl<W: AsRef<[u8]>> Word<W> {
    fn new(text: W) -> Self {
        let is_rare =
            |byte: &u8| matches!(byte, b'_' | b'&' | b'0'..=b'9' | b'j' | b'q' | b'x' | b'z');
        let bytes = text.as_ref();
        let at = bytes.iter().position(is_rare).unwrap_or_default();
        let byte = bytes.get(at).copied().unwrap_or_default();
        Self { text, at, byte }
    }

    /// Whether it stands in a text where its byte was found.
    fn is_at(&self, text: &[u8], found: usize) -> bool {
        let word = self.text.as_ref();
        let begin = found.checked_sub(self.at);
        let window = begin.and_then(|begin| text.get(begin..begin + word.len()));
        window.is_some_and(|window| window.eq_ignore_ascii_case(word))
    }
}

/// Words that are looked for in many texts, in capitals or not, and a backslash, by which any may
/// be written.
#[derive(Debug)]
pub struct Finder {
    words: Box<[Word<Box<[u8]>>]>,
    /// The bytes of all words, where two are enough.
    bytes: Option<[u8; 2]>,
}

impl Finder {
    pub fn new<'w>(words: impl IntoIterator<Item = &'w [u8]>) -> Self {
        let words: Box<[_]> = words
            .into_iter()
            .map(|word| Word::new(word.into()))
            .collect();
        let mut bytes: Vec<u8> = words.iter().map(|word| word.byte).collect();
        bytes.sort_unstable();
        bytes.dedup();
        let bytes = match bytes[..] {
            _ if bytes.iter().any(u8::is_ascii_alphabetic) => None,
            [one] => Some([one, one]),
            [one, other] => Some([one, other]),
            _ => None,
        };
        Self { words, bytes }
    }

    /// Whether a text has one of them in it.
    pub fn is_in(&self, text: &[u8]) -> bool {
        let Some([one, other]) = self.bytes else {
            return memchr::memchr(b'\\', text).is_some()
                || self.words.iter().any(|word| finds(text, &word.text));
        };
        let mut found = memchr::memchr3_iter(b'\\', one, other, text);
        found.any(|at| text[at] == b'\\' || self.words.iter().any(|word| word.is_at(text, at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_wherever_they_stand() {
        let finder = Finder::new([&b"tenant_id"[..], b"set_config"]);
        let letters = Finder::new([&b"tenant"[..], b"set_config"]);
        for (text, expected) in [
            ("SET app.Tenant_ID = 'a'", true),
            ("tenant_id", true),
            ("SELECT set_CONFIG($1, $2, true)", true),
            ("SELECT E'\\x5f'", true),
            (
                "SELECT abalance FROM pgbench_accounts WHERE aid = $1",
                false,
            ),
            ("_", false),
            ("tenant_i", false),
            ("", false),
        ] {
            assert_eq!(finder.is_in(text.as_bytes()), expected, "{text}");
            let of_letters = expected || text.contains("tenant");
            assert_eq!(letters.is_in(text.as_bytes()), of_letters, "{text}");
            let found =
                finds(text.as_bytes(), b"tenant_id") || finds(text.as_bytes(), b"SET_config");
            assert_eq!(found || text.contains('\\'), expected, "{text}");
        }
    }

    #[test]
    fn a_schema_is_quoted_unless_it_is_a_plain_identifier() {
        for (schema, element) in [
            ("t_globex", "t_globex"),
            ("T", "\"T\""),
            ("1a", "\"1a\""),
            ("a-b", "\"a-b\""),
            ("a\"b, public", "\"a\"\"b, public\""),
        ] {
            assert_eq!(quoted_if_needed(schema), element);
        }
    }
}
