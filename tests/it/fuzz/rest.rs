//! What PostgreSQL still owes for what it was sent, from what it has said so far: so that a client
//! knows when it has read all there is to read, without waiting for silence.
//!
//! This is a second opinion on what `frontend::ledger` decides, made from the protocol chapter and
//! postgres.c alone.

use std::collections::VecDeque;

/// A message on its way, as far as its answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// Of this tag: `QFS`, answered up to ReadyForQuery; `PBDCE`, answered by one message; `Hcfd`.
    Message(u8),
    /// A Flush with a body: answered by an error.
    BadFlush,
    /// The end of the connection: Terminate, or a header that is refused.
    End,
}

#[derive(Default)]
pub struct Rest {
    /// Of a frame that is not complete.
    bytes: Vec<u8>,
    sent: VecDeque<Sent>,
    answering: Option<Sent>,
    skipping: bool,
    copying: bool,
    swallowed_sync: bool,
    /// A message that is no part of a COPY was sent within one: the end, unless the COPY had
    /// failed.
    stray: bool,
    /// Nothing more is answered, but the connection closed.
    pub ends: bool,
    /// It cannot be told how much is owed, until a mark is reached.
    pub lost: bool,
}

/// The longest message of a tag without the tag; none if there is no such message (SocketBackend in
/// postgres.c).
fn limit(tag: u8) -> Option<u32> {
    match tag {
        b'Q' | b'P' | b'B' | b'F' | b'd' | b'f' => Some(0x3fff_fffe),
        b'C' | b'D' | b'E' | b'H' | b'S' | b'c' | b'X' => Some(10_000),
        _ => None,
    }
}

impl Rest {
    /// Takes note of what is sent.
    pub fn send(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        while let [tag, a, b, c, d, ..] = self.bytes[..] {
            let length = u32::from_be_bytes([a, b, c, d]);
            if !limit(tag).is_some_and(|limit| (4..=limit).contains(&length)) {
                self.sent.push_back(Sent::End);
                self.bytes.clear();
                break;
            }
            let size = length as usize + 1;
            if self.bytes.len() < size {
                break;
            }
            self.sent.push_back(match tag {
                b'X' => Sent::End,
                b'H' if size > 5 => Sent::BadFlush,
                _ => Sent::Message(tag),
            });
            self.bytes.drain(..size);
        }
        self.advance();
    }

    /// Takes note of an answer.
    pub fn receive(&mut self, tag: u8) {
        let answering = match self.answering {
            Some(Sent::Message(tag)) => tag,
            Some(_) => b'H',
            None => 0,
        };
        match (tag, answering) {
            (b'Z', _) => self.done(),
            (b'G', _) => {
                self.copying = true;
                self.swallowed_sync = false;
            }
            (b'E', b'P' | b'B' | b'D' | b'C' | b'E' | b'H') => {
                self.lost |= self.stray || std::mem::take(&mut self.swallowed_sync);
                self.skipping = true;
                self.done();
            }
            // Its ReadyForQuery follows.
            (b'E', _) => {
                self.lost |= self.stray || std::mem::take(&mut self.swallowed_sync);
                self.copying = false;
            }
            (b'1', b'P') | (b'2', b'B') | (b'3', b'C') | (b'T' | b'n', b'D') => self.done(),
            (b'C' | b'I' | b's', b'E') => self.done(),
            _ => {}
        }
        self.advance();
    }

    fn done(&mut self) {
        self.answering = None;
        self.copying = false;
        self.swallowed_sync = false;
    }

    /// Whether all that is owed has come, or nothing comes without another message.
    pub fn is_reached(&self) -> bool {
        let flushed = self.answering.is_none()
            || self.copying
            || matches!(self.answering, Some(Sent::Message(b'Q' | b'F' | b'S')))
            || self
                .sent
                .iter()
                .any(|sent| matches!(sent, Sent::Message(b'Q' | b'F' | b'S' | b'H')));
        let waits = match self.copying {
            true => !self.sent.is_empty(),
            false => self.answering.is_some(),
        };
        self.lost || self.ends || !waits || !flushed
    }

    /// Passes over what has no answer, up to what has one.
    fn advance(&mut self) {
        while !self.ends {
            if self.copying {
                match self.sent.front() {
                    Some(Sent::Message(b'd' | b'H') | Sent::BadFlush) => {}
                    Some(Sent::Message(b'S')) => self.swallowed_sync = true,
                    Some(Sent::Message(b'c' | b'f')) => self.copying = false,
                    Some(_) => {
                        self.ends = true;
                        self.stray = true;
                        return;
                    }
                    None => return,
                }
                self.sent.pop_front();
                continue;
            }
            if self.answering.is_some() {
                return;
            }
            let Some(sent) = self.sent.pop_front() else {
                return;
            };
            match sent {
                Sent::End => self.ends = true,
                Sent::Message(b'S') => {
                    self.skipping = false;
                    self.answering = Some(sent);
                }
                _ if self.skipping => {}
                Sent::Message(b'H' | b'c' | b'f' | b'd') => {}
                _ => self.answering = Some(sent),
            }
        }
    }

    /// A mark was answered: all before it is over.
    pub fn found_again(&mut self) {
        *self = Self::default();
    }
}

#[test]
fn a_client_knows_when_it_has_all_it_is_owed() {
    use crate::wire::{copy_data, copy_done, execute, flush, parse, query, sync};
    let reached = |sent: &[Vec<u8>], said: &[u8]| {
        let mut rest = Rest::default();
        rest.send(&sent.concat());
        said.iter().for_each(|tag| rest.receive(*tag));
        (rest.is_reached(), rest.lost)
    };
    let extended = || [parse("", ""), execute("", 0)].concat();
    for (sent, said, expected) in [
        (vec![query("")], &b"I"[..], (false, false)),
        (vec![query("")], b"IZ", (true, false)),
        (vec![query(""), query("")], b"IZ", (false, false)),
        (vec![extended()], b"", (true, false)),
        (vec![extended(), flush()], b"1", (false, false)),
        (vec![extended(), flush()], b"1C", (true, false)),
        (vec![extended(), flush()], b"E", (true, false)),
        (vec![extended(), query(""), sync()], b"E", (false, false)),
        (vec![extended(), query(""), sync()], b"EZ", (true, false)),
        (vec![query("COPY")], b"G", (true, false)),
        (vec![query("COPY"), copy_done()], b"G", (false, false)),
        (vec![query("COPY"), copy_done()], b"GCZ", (true, false)),
        (
            vec![extended(), copy_data(b""), sync()],
            b"1G",
            (true, false),
        ),
        (
            vec![extended(), copy_data(b""), sync()],
            b"1GE",
            (true, true),
        ),
        (vec![b"!\0\0\0\x04".to_vec()], b"", (true, false)),
    ] {
        assert_eq!(reached(&sent, said), expected, "{said:?}");
    }
}
