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
