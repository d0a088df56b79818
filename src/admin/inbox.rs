//! Messages from a user of the console. pgwire's decoders trust counts and lengths and may panic on
//! a malformed message, so each is measured here first and handed over alone.

use bytes::{Buf, BytesMut};
use pgwire::messages::{DecodeContext, PgWireFrontendMessage};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::error::{Error, Kind, Result};
use crate::protocol::frame::{FrontendTag, HEADER, Header, split_cstr};

/// Longest message without its tag, in bytes: no command comes near it.
const MAX_MESSAGE: usize = 64 * 1024;

/// Most rows an Execute may ask for: pgwire makes room for that many. A cursor over more goes on
/// with the next Execute.
const MAX_ROWS: i32 = 10_000;

#[derive(Default)]
pub struct Inbox(BytesMut);

impl Inbox {
    /// `begun`: what came already.
    pub fn new(begun: &[u8]) -> Self {
        Self(BytesMut::from(begun))
    }

    /// The next message; none at the end of the stream. Those of COPY are left out, as PostgreSQL
    /// does outside of one.
    ///
    /// Cancel safe: a part of a message stays here.
    ///
    /// # Errors
    /// 08P01 for what is not the protocol, 08006 for the network.
    pub async fn next(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
    ) -> Result<Option<PgWireFrontendMessage>> {
        loop {
            while let Some(frame) = self.cut()? {
                if let Some(message) = decode(frame)? {
                    return Ok(Some(message));
                }
            }
            let read = stream.read_buf(&mut self.0).await;
            if read
                .map_err(|e| Error::new(Kind::ConnectionFailure, "the client left").caused_by(e))?
                == 0
            {
                return Ok(None);
            }
        }
    }

    /// A whole frame, if there is one.
    fn cut(&mut self) -> Result<Option<BytesMut>> {
        let Some(header) = Header::read(&self.0) else {
            return Ok(None);
        };
        let size = header
            .size(MAX_MESSAGE)
            .ok_or_else(|| violation("invalid message length"))?;
        Ok((self.0.len() >= size).then(|| self.0.split_to(size)))
    }
}

fn violation(message: impl Into<String>) -> Error {
    Error::new(Kind::ProtocolViolation, message)
}

/// None: a message to be ignored.
fn decode(mut frame: BytesMut) -> Result<Option<PgWireFrontendMessage>> {
    let tag = FrontendTag(frame[0]);
    if let FrontendTag::COPY_DATA | FrontendTag::COPY_DONE | FrontendTag::COPY_FAIL = tag {
        return Ok(None);
    }
    if !is_whole(tag, &frame[HEADER..]) {
        return Err(violation(format!(
            "invalid frontend message type {}",
            frame[0]
        )));
    }
    let mut context = DecodeContext::default();
    context.awaiting_frontend_ssl = false;
    context.awaiting_frontend_startup = false;
    let message = PgWireFrontendMessage::decode(&mut frame, &context)
        .map_err(|e| violation("invalid message format").caused_by(e))?;
    Ok(message.map(|message| match message {
        PgWireFrontendMessage::Execute(mut execute) => {
            if !(0..=MAX_ROWS).contains(&execute.max_rows) {
                execute.max_rows = if execute.max_rows < 0 { 0 } else { MAX_ROWS };
            }
            PgWireFrontendMessage::Execute(execute)
        }
        message => message,
    }))
}

/// Whether `body` is what the protocol says it is for `tag`, to the last byte.
fn is_whole(tag: FrontendTag, body: &[u8]) -> bool {
    let rest = match tag {
        FrontendTag::QUERY => string(body),
        FrontendTag::PARSE => string(body).and_then(string).and_then(|b| array(b, 4)),
        FrontendTag::BIND => string(body)
            .and_then(string)
            .and_then(|b| array(b, 2))
            .and_then(values)
            .and_then(|b| array(b, 2)),
        FrontendTag::DESCRIBE | FrontendTag::CLOSE => match body {
            [b'S' | b'P', name @ ..] => string(name),
            _ => None,
        },
        FrontendTag::EXECUTE => string(body).and_then(|b| b.split_at_checked(4).map(|(_, b)| b)),
        FrontendTag::FLUSH | FrontendTag::SYNC | FrontendTag::TERMINATE => Some(body),
        _ => None,
    };
    rest.is_some_and(<[u8]>::is_empty)
}

fn string(bytes: &[u8]) -> Option<&[u8]> {
    split_cstr(bytes).map(|(_, rest)| rest)
}

fn count(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (count, rest) = bytes.split_first_chunk::<2>()?;
    Some((usize::from(u16::from_be_bytes(*count)), rest))
}

/// A count and as many items of `width` bytes.
fn array(bytes: &[u8], width: usize) -> Option<&[u8]> {
    let (count, rest) = count(bytes)?;
    rest.split_at_checked(count * width).map(|(_, rest)| rest)
}

/// A count and as many values, each with its length before it; -1 is NULL.
fn values(bytes: &[u8]) -> Option<&[u8]> {
    let (count, mut rest) = count(bytes)?;
    for _ in 0..count {
        let (mut length, after) = rest.split_at_checked(4)?;
        rest = match length.get_i32() {
            -1 => after,
            length => after.get(usize::try_from(length).ok()?..)?,
        };
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[tag][..], &length, body].concat()
    }

    async fn read(bytes: &[u8]) -> Result<Option<PgWireFrontendMessage>> {
        Inbox::default().next(&mut &*bytes).await
    }

    #[tokio::test]
    async fn messages_that_are_whole_are_read() {
        for (tag, body) in [
            (b'Q', &b"SHOW HELP\0"[..]),
            (b'P', b"\0SHOW HELP\0\0\0"),
            (b'P', b"name\0SHOW HELP\0\0\x01\0\0\0\x19"),
            (b'B', b"\0\0\0\0\0\0\0\0"),
            (
                b'B',
                b"\0\0\0\x01\0\x01\0\x02\0\0\0\x01x\xff\xff\xff\xff\0\x01\0\x01",
            ),
            (b'D', b"S\0"),
            (b'C', b"Pportal\0"),
            (b'E', b"\0\0\0\0\0"),
            (b'H', b""),
            (b'S', b""),
            (b'X', b""),
        ] {
            let message = read(&frame(tag, body)).await;
            assert!(
                matches!(message, Ok(Some(_))),
                "{tag} {body:?}: {message:?}"
            );
        }
    }

    #[tokio::test]
    async fn messages_that_are_not_are_refused_without_a_panic() {
        let good = frame(b'Q', b"SHOW HELP\0");
        for (tag, body) in [
            (b'Q', &b"SHOW"[..]),
            (b'Q', b"SHOW\0x"),
            (b'P', b"\0\0\0"),
            (b'P', b"\0\0\xff\xff"),
            (b'B', b"\0\0\0\0\0\x01\0\0\0\x09x\0\0"),
            (b'B', b"\0\0\0\0\0\x01\xff\xff\xff\xfe\0\0"),
            (b'B', b"\0\0\0\0\0\0\0"),
            (b'D', b""),
            (b'D', b"x\0"),
            (b'E', b"\0\0\0"),
            (b'S', b"x"),
            (b'p', b"secret\0"),
            (b'F', b""),
            (b'!', b""),
        ] {
            let bytes = [frame(tag, body), good.clone()].concat();
            let refused = read(&bytes).await.unwrap_err();
            assert_eq!(refused.sqlstate(), "08P01", "{tag} {body:?}");
        }
        for header in [b"Q\0\0\0\x03", b"Q\xff\xff\xff\xff", b"Q\0\x01\0\x01"] {
            let refused = read(header).await.unwrap_err();
            assert_eq!(refused.sqlstate(), "08P01", "{header:?}");
        }
    }

    #[tokio::test]
    async fn messages_of_copy_are_left_out_and_half_a_message_is_none() {
        let bytes = [frame(b'd', b"row"), frame(b'c', b""), frame(b'S', b"")].concat();
        let message = read(&bytes).await;
        assert!(matches!(message, Ok(Some(PgWireFrontendMessage::Sync(_)))));
        assert!(matches!(read(b"Q\0\0\0\x20SHOW").await, Ok(None)));
    }

    #[tokio::test]
    async fn an_execute_cannot_ask_for_a_huge_reservation() {
        for (asked, given) in [(-5_i32, 0), (0, 0), (7, 7), (i32::MAX, MAX_ROWS)] {
            let body = [&[0][..], &asked.to_be_bytes()].concat();
            let Ok(Some(PgWireFrontendMessage::Execute(execute))) = read(&frame(b'E', &body)).await
            else {
                panic!("not an Execute");
            };
            assert_eq!(execute.max_rows, given);
        }
    }
}
