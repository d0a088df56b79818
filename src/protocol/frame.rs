//! Frames: a tag byte, a length of four bytes that counts itself, a body.

use bytes::BufMut;

/// Bytes before a frame's body: tag and length.
pub const HEADER: usize = 5;

/// Appends a frame of `tag` to `out`, in place: `body` appends its body, which is shorter than the
/// protocol allows.
pub fn put<B: BufMut + AsRef<[u8]> + AsMut<[u8]>>(out: &mut B, tag: u8, body: impl FnOnce(&mut B)) {
    let at = out.as_ref().len() + 1;
    out.put_slice(&[tag, 0, 0, 0, 0]);
    body(out);
    let length = u32::try_from(out.as_ref().len() - at).unwrap_or(u32::MAX);
    out.as_mut()[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// A frame of `tag` around the given parts.
pub fn frame(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body: usize = parts.iter().map(|part| part.len()).sum();
    let mut frame = Vec::with_capacity(HEADER + body);
    put(&mut frame, tag, |frame| {
        for part in parts {
            frame.extend_from_slice(part);
        }
    });
    frame
}

/// PostgreSQL's PQ_LARGE_MESSAGE_LIMIT (libpq.h): MaxAllocSize - 1.
const LARGE_LIMIT: usize = 0x3fff_fffe;
/// PostgreSQL's PQ_SMALL_MESSAGE_LIMIT (libpq.h), for messages that hold no data of the user's.
const SMALL_LIMIT: usize = 10_000;

macro_rules! tags {
    ($(#[$doc:meta])* $type:ident { $($name:ident = $byte:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $type(pub u8);

        impl $type {
            $(pub const $name: Self = Self($byte);)*
        }
    };
}

tags!(
    /// The tag of a message from a client.
    FrontendTag {
        BIND = b'B',
        CLOSE = b'C',
        COPY_DATA = b'd',
        COPY_DONE = b'c',
        COPY_FAIL = b'f',
        DESCRIBE = b'D',
        EXECUTE = b'E',
        FLUSH = b'H',
        FUNCTION_CALL = b'F',
        PARSE = b'P',
        PASSWORD = b'p',
        QUERY = b'Q',
        SYNC = b'S',
        TERMINATE = b'X',
    }
);

tags!(
    /// The tag of a message from a server.
    BackendTag {
        AUTHENTICATION = b'R',
        BACKEND_KEY_DATA = b'K',
        BIND_COMPLETE = b'2',
        CLOSE_COMPLETE = b'3',
        COMMAND_COMPLETE = b'C',
        COPY_BOTH_RESPONSE = b'W',
        COPY_DATA = b'd',
        COPY_DONE = b'c',
        COPY_IN_RESPONSE = b'G',
        COPY_OUT_RESPONSE = b'H',
        DATA_ROW = b'D',
        EMPTY_QUERY_RESPONSE = b'I',
        ERROR_RESPONSE = b'E',
        FUNCTION_CALL_RESPONSE = b'V',
        NEGOTIATE_PROTOCOL_VERSION = b'v',
        NO_DATA = b'n',
        NOTICE_RESPONSE = b'N',
        NOTIFICATION_RESPONSE = b'A',
        PARAMETER_DESCRIPTION = b't',
        PARAMETER_STATUS = b'S',
        PARSE_COMPLETE = b'1',
        PORTAL_SUSPENDED = b's',
        READY_FOR_QUERY = b'Z',
        ROW_DESCRIPTION = b'T',
    }
);

impl FrontendTag {
    /// The longest message of this tag that PostgreSQL reads, without the tag (SocketBackend in
    /// postgres.c); none for a tag it does not know.
    pub fn limit(self) -> Option<usize> {
        match self {
            Self::QUERY
            | Self::PARSE
            | Self::BIND
            | Self::FUNCTION_CALL
            | Self::COPY_DATA
            | Self::COPY_FAIL => Some(LARGE_LIMIT),
            Self::CLOSE
            | Self::DESCRIBE
            | Self::EXECUTE
            | Self::FLUSH
            | Self::SYNC
            | Self::COPY_DONE
            | Self::TERMINATE => Some(SMALL_LIMIT),
            _ => None,
        }
    }
}

/// A frame's first five bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub tag: u8,
    /// The length field: the frame without its tag. Not yet checked; can be anything.
    pub length: u32,
}

impl Header {
    /// The header at the start of `bytes`, if they reach that far.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [tag, a, b, c, d, ..] => Some(Self {
                tag: *tag,
                length: u32::from_be_bytes([*a, *b, *c, *d]),
            }),
            _ => None,
        }
    }

    /// The whole frame's size in bytes, or none if the length field is shorter than itself or
    /// longer than `limit`.
    pub fn size(self, limit: usize) -> Option<usize> {
        let length = self.length as usize;
        (4..=limit).contains(&length).then_some(length + 1)
    }

    /// The whole frame's size if a server may send it: at most 1 GiB, which is PostgreSQL's own
    /// limit for a message.
    pub fn backend_size(self) -> Option<usize> {
        self.size(LARGE_LIMIT + 1)
    }
}

/// The NUL-terminated string at the start of `bytes` without its NUL, and what follows it.
pub fn split_cstr(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(0, bytes)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// Two NUL-terminated strings, as in the body of a ParameterStatus.
pub fn split_pair(bytes: &[u8]) -> Option<(&str, &str)> {
    let (name, rest) = split_cstr(bytes)?;
    let (value, _) = split_cstr(rest)?;
    Some((
        std::str::from_utf8(name).ok()?,
        std::str::from_utf8(value).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_that_lies_gives_no_size() {
        for (length, limit, size) in [
            (0, 100, None),
            (3, 100, None),
            (4, 100, Some(5)),
            (100, 100, Some(101)),
            (101, 100, None),
            (u32::MAX, LARGE_LIMIT, None),
            (0x8000_0000, LARGE_LIMIT, None),
        ] {
            assert_eq!(Header { tag: b'Q', length }.size(limit), size, "{length}");
        }
    }

    #[test]
    fn a_header_needs_five_bytes() {
        assert_eq!(Header::read(b"Q\0\0\0"), None);
        assert_eq!(
            Header::read(b"Q\0\0\0\x04rest"),
            Some(Header {
                tag: b'Q',
                length: 4
            })
        );
    }

    #[test]
    fn a_string_without_its_nul_is_no_string() {
        assert_eq!(split_cstr(b"abc"), None);
        assert_eq!(split_cstr(b"abc\0d"), Some((&b"abc"[..], &b"d"[..])));
        assert_eq!(split_cstr(b"\0"), Some((&b""[..], &b""[..])));
    }
}
