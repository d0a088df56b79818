//! What the proxy itself says to a client, as frames; never on the way of a query. What each login
//! is told is written in place, the rest is built with pgwire's message types.

use bytes::{BufMut, Bytes, BytesMut};
use pgwire::messages::Message;
use pgwire::messages::response::{ErrorResponse, ReadyForQuery, TransactionStatus};
use pgwire::messages::startup::{BackendKeyData, NegotiateProtocolVersion, SecretKey};

use crate::error::{Error, Kind};
use crate::protocol::frame::{self, BackendTag};
use crate::protocol::startup::{CancelKey, Version};

/// ParseComplete, whole.
pub const PARSE_COMPLETE: &[u8] = b"1\0\0\0\x04";
/// CloseComplete, whole.
pub const CLOSE_COMPLETE: &[u8] = b"3\0\0\0\x04";
/// Sync, whole.
pub const SYNC: &[u8] = b"S\0\0\0\x04";
/// Flush, whole.
pub const FLUSH: &[u8] = b"H\0\0\0\x04";
/// Terminate, whole.
pub const TERMINATE: &[u8] = b"X\0\0\0\x04";

/// Room for what is to be said, in bytes: enough for the end of a usual login.
const USUAL: usize = 1024;

fn put_cstr(body: &mut BytesMut, text: &str) {
    body.put_slice(text.as_bytes());
    body.put_u8(0);
}

/// Frames one after the other.
#[derive(Default)]
pub struct Replies(BytesMut);

impl Replies {
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a message; one too long for the protocol is left out and logged.
    fn push(&mut self, message: &impl Message) -> &mut Self {
        let before = self.0.len();
        if let Err(e) = message.encode(&mut self.0) {
            self.0.truncate(before);
            tracing::error!(error = %e, "could not encode a message");
        }
        self
    }

    /// Appends a frame whose body `write` writes.
    fn frame(&mut self, tag: BackendTag, write: impl FnOnce(&mut BytesMut)) -> &mut Self {
        if self.0.is_empty() {
            self.0.reserve(USUAL);
        }
        frame::put(&mut self.0, tag.0, write);
        self
    }

    /// An authentication request of this kind ("Message Formats" in PostgreSQL's documentation).
    fn authentication(&mut self, kind: u32, rest: impl FnOnce(&mut BytesMut)) -> &mut Self {
        self.frame(BackendTag::AUTHENTICATION, |body| {
            body.put_u32(kind);
            rest(body);
        })
    }

    pub fn authentication_ok(&mut self) -> &mut Self {
        self.authentication(0, |_| {})
    }

    /// AuthenticationSASL.
    pub fn sasl<'a>(&mut self, mechanisms: impl Iterator<Item = &'a str>) -> &mut Self {
        self.authentication(10, |body| {
            mechanisms.for_each(|mechanism| put_cstr(body, mechanism));
            body.put_u8(0);
        })
    }

    pub fn sasl_continue(&mut self, message: &str) -> &mut Self {
        self.authentication(11, |body| body.put_slice(message.as_bytes()))
    }

    pub fn sasl_final(&mut self, message: &str) -> &mut Self {
        self.authentication(12, |body| body.put_slice(message.as_bytes()))
    }

    pub fn parameter_status(&mut self, name: &str, value: &str) -> &mut Self {
        self.frame(BackendTag::PARAMETER_STATUS, |body| {
            put_cstr(body, name);
            put_cstr(body, value);
        })
    }

    pub fn backend_key_data(&mut self, key: &CancelKey) -> &mut Self {
        let secret = SecretKey::Bytes(Bytes::copy_from_slice(&key.secret));
        self.push(&BackendKeyData::new(key.pid, secret))
    }

    pub fn negotiate_protocol_version(&mut self, newest: Version, unknown: &[String]) -> &mut Self {
        self.push(&NegotiateProtocolVersion::new(
            newest.code(),
            unknown.to_vec(),
        ))
    }

    /// ReadyForQuery outside a transaction.
    pub fn ready(&mut self) -> &mut Self {
        self.push(&ReadyForQuery::new(TransactionStatus::Idle))
    }

    /// ReadyForQuery with this status: `I`, `T` or `E`.
    pub fn ready_for(&mut self, status: u8) -> &mut Self {
        self.frame(BackendTag::READY_FOR_QUERY, |body| body.put_u8(status))
    }

    /// An ErrorResponse of severity FATAL: the connection ends after it.
    pub fn fatal(&mut self, error: &Error) -> &mut Self {
        self.error_response("FATAL", error)
    }

    /// An ErrorResponse of severity ERROR: the connection goes on.
    pub fn error(&mut self, error: &Error) -> &mut Self {
        self.error_response("ERROR", error)
    }

    fn error_response(&mut self, severity: &str, error: &Error) -> &mut Self {
        let field = |code: u8, text: &str| (code, text.replace('\0', ""));
        let mut fields = vec![
            field(b'S', severity),
            field(b'V', severity),
            field(b'C', error.sqlstate()),
            field(b'M', error.message()),
        ];
        fields.extend(error.detail().map(|detail| field(b'D', detail)));
        fields.extend(error.hint().map(|hint| field(b'H', hint)));
        self.push(&ErrorResponse::new(fields))
    }

    pub fn raw(&mut self, frames: &[u8]) -> &mut Self {
        self.0.extend_from_slice(frames);
        self
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The fields of an ErrorResponse or NoticeResponse body that the proxy reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErrorFields {
    pub severity: String,
    pub sqlstate: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// Where in the server's SQL it was, and in which routine of its source.
    pub context: String,
    pub routine: String,
}

impl ErrorFields {
    /// The server's words as an error of the proxy's.
    pub fn into_error(self, kind: Kind) -> Error {
        let mut error = Error::new(kind, self.message).with_sqlstate(self.sqlstate);
        if let Some(detail) = self.detail {
            error = error.with_detail(detail);
        }
        if let Some(hint) = self.hint {
            error = error.with_hint(hint);
        }
        error
    }

    /// Reads what it can of `body`; a malformed one leaves fields empty.
    pub fn read(mut body: &[u8]) -> Self {
        let mut fields = Self::default();
        while let Some((&code, rest)) = body.split_first() {
            let Some((text, rest)) = crate::protocol::frame::split_cstr(rest) else {
                break;
            };
            let text = || String::from_utf8_lossy(text).into_owned();
            match code {
                b'V' => fields.severity = text(),
                b'S' if fields.severity.is_empty() => fields.severity = text(),
                b'C' => fields.sqlstate = text(),
                b'M' => fields.message = text(),
                b'D' => fields.detail = Some(text()),
                b'H' => fields.hint = Some(text()),
                b'W' => fields.context = text(),
                b'R' => fields.routine = text(),
                _ => {}
            }
            body = rest;
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_read_back_as_it_was_written() {
        let error = Error::new(Kind::TooManyConnections, "too many").with_hint("fewer");
        let mut replies = Replies::new();
        replies.fatal(&error);
        assert_eq!(
            ErrorFields::read(&replies.bytes()[5..]),
            ErrorFields {
                severity: "FATAL".into(),
                sqlstate: "53300".into(),
                message: "too many".into(),
                detail: None,
                hint: Some("fewer".into()),
                ..ErrorFields::default()
            }
        );
    }
}
