//! SQL as far as the proxy must understand it: what is a word and what is a string ([`lexer`]), and what a text
//! may leave behind in its session ([`effects`]). Nothing here knows grammar beyond that, and nothing decides.

/// The newest PostgreSQL whose grammar the reader is compared with (`tests/oracle`).
pub const NEWEST_POSTGRESQL: i32 = 18;

pub mod builtin;
pub mod choice;
pub mod effects;
pub mod fingerprint;
pub mod guard;
pub mod lexer;
pub mod naming;
pub mod uses;

/// A name as SQL has it in double quotes.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Whether a text has a word in it, in capitals or not.
pub fn finds(text: &[u8], word: &[u8]) -> bool {
    // Most names of variables have a byte that few texts have, and that one is looked for.
    let is_rare = |byte: &u8| matches!(byte, b'_' | b'&' | b'0'..=b'9' | b'j' | b'q' | b'x' | b'z');
    let at = word.iter().position(is_rare).unwrap_or_default();
    let Some(byte) = word.get(at) else {
        return true;
    };
    let is_there = |found: usize| {
        let begin = found.checked_sub(at);
        let window = begin.and_then(|begin| text.get(begin..begin + word.len()));
        window.is_some_and(|window| window.eq_ignore_ascii_case(word))
    };
    let (lower, upper) = (byte.to_ascii_lowercase(), byte.to_ascii_uppercase());
    memchr::memchr2_iter(lower, upper, text).any(is_there)
}
