//! What PostgreSQL says to the statements of an application that the proxy answers in its place.

use bytes::BufMut;

use crate::error::Error;
use crate::protocol::frame::{self, BackendTag};
use crate::protocol::reply::{CLOSE_COMPLETE, PARSE_COMPLETE, Replies};

/// `text` (pg_type.dat).
pub const TEXT_OID: u32 = 25;

/// Replies, one after the other.
#[derive(Debug, Default)]
pub struct Said(pub Vec<u8>);

impl Said {
    fn frame(&mut self, tag: BackendTag, body: impl FnOnce(&mut Vec<u8>)) {
        frame::put(&mut self.0, tag.0, body);
    }

    pub fn parse_complete(&mut self) {
        self.0.extend_from_slice(PARSE_COMPLETE);
    }

    pub fn close_complete(&mut self) {
        self.0.extend_from_slice(CLOSE_COMPLETE);
    }

    pub fn bind_complete(&mut self) {
        self.frame(BackendTag::BIND_COMPLETE, |_| {});
    }

    pub fn no_data(&mut self) {
        self.frame(BackendTag::NO_DATA, |_| {});
    }

    pub fn empty_query(&mut self) {
        self.frame(BackendTag::EMPTY_QUERY_RESPONSE, |_| {});
    }

    pub fn suspended(&mut self) {
        self.frame(BackendTag::PORTAL_SUSPENDED, |_| {});
    }

    pub fn complete(&mut self, tag: &str) {
        self.frame(BackendTag::COMMAND_COMPLETE, |body| {
            body.put_slice(tag.as_bytes());
            body.put_u8(0);
        });
    }

    pub fn ready(&mut self, status: u8) {
        self.frame(BackendTag::READY_FOR_QUERY, |body| body.put_u8(status));
    }

    /// Columns of type text. `formats`, as in a Bind: for each, for all, or none; 0 is text, 1
    /// binary.
    pub fn row_description(&mut self, columns: &[&str], formats: &[i16]) {
        self.frame(BackendTag::ROW_DESCRIPTION, |body| {
            body.put_i16(i16::try_from(columns.len()).unwrap_or(i16::MAX));
            for (i, column) in columns.iter().enumerate() {
                body.put_slice(column.as_bytes());
                body.put_u8(0);
                // Of no table, of no fixed length, without a modifier.
                body.put_i32(0);
                body.put_i16(0);
                body.put_u32(TEXT_OID);
                body.put_i16(-1);
                body.put_i32(-1);
                body.put_i16(match formats {
                    [one] => *one,
                    _ => formats.get(i).copied().unwrap_or_default(),
                });
            }
        });
    }

    /// One value: of type text it is the same in both formats.
    pub fn row(&mut self, value: &str) {
        self.frame(BackendTag::DATA_ROW, |body| {
            body.put_i16(1);
            body.put_i32(i32::try_from(value.len()).unwrap_or(i32::MAX));
            body.put_slice(value.as_bytes());
        });
    }

    pub fn parameters(&mut self, types: &[u32]) {
        self.frame(BackendTag::PARAMETER_DESCRIPTION, |body| {
            body.put_u16(u16::try_from(types.len()).unwrap_or(u16::MAX));
            types.iter().for_each(|oid| body.put_u32(*oid));
        });
    }

    pub fn error(&mut self, error: &Error) {
        self.0
            .extend_from_slice(Replies::new().error(error).bytes());
    }

    pub fn warning(&mut self, sqlstate: &str, message: &str) {
        self.frame(BackendTag::NOTICE_RESPONSE, |body| {
            for (field, text) in [
                (b'S', "WARNING"),
                (b'V', "WARNING"),
                (b'C', sqlstate),
                (b'M', message),
            ] {
                body.put_u8(field);
                body.put_slice(text.as_bytes());
                body.put_u8(0);
            }
            body.put_u8(0);
        });
    }
}
