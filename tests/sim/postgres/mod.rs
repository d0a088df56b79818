//! A model of PostgreSQL: what one session of it says to what it hears.
//!
//! [`Session`] is a value without a clock and without sockets. The servers of the simulation run
//! sessions behind the proxy, and each client has one of its own beside it, which says what direct
//! PostgreSQL would answer. So both know exactly the same SQL, which is what the programs of the
//! clients use and what the proxy sends itself.

mod session;
mod sql;
mod statements;

pub use session::{REPORTED, Session, frames};

/// An error of PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub sqlstate: &'static str,
    pub message: String,
}

impl Failure {
    pub fn new(sqlstate: &'static str, message: impl Into<String>) -> Self {
        Self {
            sqlstate,
            message: message.into(),
        }
    }
}

/// A frame of the protocol.
pub fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("a short message");
    let mut bytes = vec![tag];
    bytes.extend(length.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// An ErrorResponse or a NoticeResponse.
pub fn problem(tag: u8, severity: &str, failure: &Failure) -> Vec<u8> {
    let fields = [
        ("S", severity),
        ("V", severity),
        ("C", failure.sqlstate),
        ("M", &failure.message),
    ];
    let mut body = Vec::new();
    for (name, value) in fields {
        body.extend(name.as_bytes());
        body.extend(value.as_bytes());
        body.push(0);
    }
    body.push(0);
    frame(tag, &body)
}

/// The whole frames at the beginning of `bytes`, which are taken from it.
pub fn cut(bytes: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let length = u32::from_be_bytes(*bytes.get(1..5)?.first_chunk()?) as usize;
    if bytes.len() < length + 1 {
        return None;
    }
    let body = bytes[5..=length].to_vec();
    let tag = bytes[0];
    bytes.drain(..=length);
    Some((tag, body))
}

/// A string that ends with a zero byte, and what follows it.
pub fn text(bytes: &[u8]) -> (String, &[u8]) {
    let end = bytes.iter().position(|byte| *byte == 0);
    let end = end.unwrap_or(bytes.len());
    let rest = bytes.get(end + 1..).unwrap_or_default();
    (String::from_utf8_lossy(&bytes[..end]).into_owned(), rest)
}

/// How many rows a tenant has in the table that row level security guards.
pub fn rows_of(tenant: &str) -> usize {
    match tenant.is_empty() {
        true => 0,
        false => 1 + tenant.bytes().map(usize::from).sum::<usize>() % 3,
    }
}

/// What stands in one of its rows.
pub fn row_of(tenant: &str, number: usize) -> String {
    format!("~{tenant}.row.{number}~")
}

/// The variable that the policies of the database ask for.
pub const VARIABLE: &str = "app.tenant_id";

/// Who a statement is of, by the mark that it has as a literal: `'~<tenant>.<what>~'`.
pub fn marks(text: &str) -> impl Iterator<Item = &str> {
    text.split('~')
        .skip(1)
        .step_by(2)
        .filter_map(|mark| mark.split_once('.').map(|(tenant, _)| tenant))
}
