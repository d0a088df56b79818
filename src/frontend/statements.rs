//! The prepared statements of one client in transaction pooling, by the names the client gave them,
//! and how the messages that name one are rewritten for the server connection at hand.
//!
//! A statement that the connection has not parsed yet is parsed just before its use; a Parse of
//! one that it has is answered by the proxy. A Close only ends the client's name: the connection keeps
//! the statement for others.

use std::collections::HashMap;
use std::sync::Arc;

use crate::backend::prepared::{Interner, Parsed, Statement, frame};
use crate::error::{Error, Kind, Result};
use crate::frontend::ledger::{Failed, Ledger, Owed};
use crate::protocol::buffer::Buffer;
use crate::protocol::frame::{FrontendTag, HEADER, split_cstr};

/// Longest unnamed Parse that is remembered for a Bind in a later transaction, in bytes.
const MAX_UNNAMED: usize = 64 * 1024;
/// Longest unnamed statement that is brought back after one in its place was skipped, in bytes.
const MAX_UNDONE: usize = 4096;
/// Most bytes of all named statements of one client.
const MAX_NAMED_BYTES: usize = 16 << 20;
/// A definition from this size on is checked against that.
const LARGE: usize = 1024;
/// Longest Parse of a named statement, and longest names in a Bind, in bytes.
const MAX_COLLECTED: usize = 1 << 20;
/// Most named statements of one client.
const MAX_NAMED: usize = 10_000;

#[derive(Default)]
pub struct Statements {
    named: HashMap<Box<[u8]>, Arc<Statement>>,
    unnamed: Unnamed,
    /// The unnamed statement of the server connection at hand is this client's.
    unnamed_is_there: bool,
}

/// The unnamed statement, which the next Parse of it or the next simple Query ends.
#[derive(Debug, Clone, Default)]
pub enum Unnamed {
    #[default]
    None,
    /// Its Parse frame.
    Known(Vec<u8>),
    /// Too long to be remembered: it exists where it was parsed, and only there.
    TooLong,
}

/// How to take back what a message did to the client's names, if the server does not carry it out.
#[derive(Debug, Clone)]
pub enum Undo {
    Nothing,
    /// The name meant this before.
    Name(Box<[u8]>, Option<Arc<Statement>>),
    /// The unnamed statement was this before, and was there or not.
    Unnamed(Unnamed, bool),
}

/// Where a rewritten message goes.
pub struct Target<'a> {
    pub parsed: &'a mut Parsed,
    pub outbox: &'a mut Buffer,
    pub ledger: &'a mut Ledger,
    pub interner: &'a Interner,
}

/// How the names begin that statements have on servers.
const PREFIX: &[u8] = Statement::NAME_PREFIX.as_bytes();

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Rewritten {
    /// More bytes of it are needed.
    NeedMore,
    /// The first bytes of it, so many, are dealt with; the rest passes as it is.
    Consumed(usize),
}

fn malformed() -> Error {
    Error::new(Kind::ProtocolViolation, "invalid message format")
}

impl Statements {
    /// The client's tenant lives in another pool now.
    pub fn rehome(&mut self, interner: &Interner) {
        for statement in self.named.values_mut() {
            *statement = statement.intern_in(interner);
        }
    }

    /// The client holds another server connection now.
    pub fn begin_lease(&mut self) {
        self.unnamed_is_there = false;
    }

    /// A simple Query was sent: the server drops the unnamed statement.
    pub fn drop_unnamed(&mut self) {
        self.unnamed = Unnamed::None;
        self.unnamed_is_there = false;
    }

    /// Takes back what messages did that took no effect; `failed` in the order they were sent.
    pub fn undo(&mut self, failed: Vec<Failed>, parsed: &mut Parsed) {
        for Failed { message, skipped } in failed.into_iter().rev() {
            match message {
                Owed::SwallowedClose(statement) => parsed.restore(statement),
                Owed::SwallowedParse(None) => self.unnamed_is_there = false,
                Owed::SwallowedParse(Some(statement)) => parsed.forget(&statement),
                // One that was looked at and failed has ended the unnamed statement before it.
                Owed::Parse(_, Undo::Unnamed(..)) if !skipped => self.drop_unnamed(),
                Owed::Parse(statement, undo) => {
                    if let Some(statement) = statement {
                        parsed.forget(&statement);
                    }
                    self.take_back(undo);
                }
                Owed::FakeParse(undo) | Owed::FakeClose(undo) | Owed::Close(undo) => {
                    self.take_back(undo);
                }
                _ => {}
            }
        }
    }

    fn take_back(&mut self, undo: Undo) {
        match undo {
            Undo::Nothing => {}
            Undo::Name(name, Some(before)) => {
                self.named.insert(name, before);
            }
            Undo::Name(name, None) => {
                self.named.remove(&name);
            }
            Undo::Unnamed(before, was_there) => {
                self.unnamed = before;
                self.unnamed_is_there = was_there;
            }
        }
    }

    /// Puts the client's names into a server's error in place of the proxy's. None: it has none of these.
    pub fn translate(&self, error: &[u8]) -> Option<Vec<u8>> {
        let at = error
            .windows(PREFIX.len())
            .position(|window| window == PREFIX)?;
        let digits = error[at + PREFIX.len()..]
            .iter()
            .take_while(|b| b.is_ascii_digit())
            .count();
        let ours = &error[at..at + PREFIX.len() + digits];
        let known = self
            .named
            .iter()
            .find(|(_, statement)| statement.server_name().as_bytes() == ours)?;
        Some([&error[..at], known.0, &error[at + ours.len()..]].concat())
    }

    /// The server dropped them all (DISCARD ALL, DEALLOCATE ALL).
    pub fn clear(&mut self) {
        self.named = HashMap::new();
        self.drop_unnamed();
    }

    /// Deals with a Parse, Bind, Describe or Close frame of `size` bytes, of which `bytes` holds the first.
    ///
    /// # Errors
    /// 08P01 for a malformed message, 54000 for one too long to be held.
    pub fn rewrite(
        &mut self,
        tag: FrontendTag,
        bytes: &[u8],
        size: usize,
        target: &mut Target<'_>,
    ) -> Result<Rewritten> {
        if tag == FrontendTag::BIND {
            return self.bind(bytes, size, target);
        }
        if bytes.len() < size {
            let named = tag == FrontendTag::PARSE && bytes.get(HEADER).is_some_and(|&b| b != 0);
            return match tag == FrontendTag::PARSE && size > MAX_UNNAMED {
                // A long unnamed Parse streams.
                true if bytes.len() > HEADER && !named => {
                    let undo = self.replace_unnamed(Unnamed::TooLong);
                    target.ledger.push(Owed::Parse(None, undo));
                    Ok(Rewritten::Consumed(0))
                }
                true if size > MAX_COLLECTED => Err(Error::new(
                    Kind::ProgramLimitExceeded,
                    format!("named prepared statements are limited to {MAX_COLLECTED} bytes"),
                )
                .with_hint("Use session pooling for this tenant.")),
                _ => Ok(Rewritten::NeedMore),
            };
        }
        let body = &bytes[HEADER..size];
        match tag {
            FrontendTag::PARSE => self.parse(&bytes[..size], body, target)?,
            FrontendTag::DESCRIBE => {
                let Some((b"S", name)) = body.split_at_checked(1) else {
                    target.ledger.push(Owed::Describe);
                    return Ok(Rewritten::Consumed(0));
                };
                let name = split_cstr(name).ok_or_else(malformed)?.0;
                let known = self.provide(name, target);
                target.ledger.push(Owed::Describe);
                let Some(known) = known else {
                    return Ok(Rewritten::Consumed(0));
                };
                let name = known.server_name();
                target
                    .outbox
                    .extend(&frame(tag.0, &[b"S", name.as_bytes(), b"\0"]));
            }
            _ => {
                let Some((b"S", name)) =
                    body.split_at_checked(1).filter(|(_, name)| *name != b"\0")
                else {
                    let undo = match body {
                        b"S\0" => self.replace_unnamed(Unnamed::None),
                        _ => Undo::Nothing,
                    };
                    target.ledger.push(Owed::Close(undo));
                    return Ok(Rewritten::Consumed(0));
                };
                let name = split_cstr(name).ok_or_else(malformed)?.0;
                let before = self.named.remove(name);
                target
                    .ledger
                    .push(Owed::FakeClose(Undo::Name(name.into(), before)));
            }
        }
        Ok(Rewritten::Consumed(size))
    }

    fn parse(&mut self, frame: &[u8], body: &[u8], target: &mut Target<'_>) -> Result<()> {
        let (name, definition) = split_cstr(body).ok_or_else(malformed)?;
        if name.is_empty() {
            let undo = self.replace_unnamed(match frame.len() {
                0..=MAX_UNNAMED => Unnamed::Known(frame.to_vec()),
                _ => Unnamed::TooLong,
            });
            target.outbox.extend(frame);
            target.ledger.push(Owed::Parse(None, undo));
            return Ok(());
        }
        if let Some(known) = self.named.get(name).cloned() {
            // The server refuses to define it twice; let it say so.
            ensure_parsed(&known, target);
            target.outbox.extend(&known.parse_frame());
            target.ledger.push(Owed::Parse(None, Undo::Nothing));
            return Ok(());
        }
        let held = || self.named.values().map(|known| known.size()).sum::<usize>();
        let too_large = definition.len() >= LARGE && held() + definition.len() > MAX_NAMED_BYTES;
        if self.named.len() >= MAX_NAMED || too_large {
            return Err(Error::new(
                Kind::ProgramLimitExceeded,
                format!(
                    "a client may have {MAX_NAMED} prepared statements and {MAX_NAMED_BYTES} bytes of them"
                ),
            ));
        }
        let statement = target.interner.intern(definition);
        self.named.insert(name.into(), statement.clone());
        let undo = Undo::Name(name.into(), None);
        if target.parsed.touch(&statement) {
            target.ledger.push(Owed::FakeParse(undo));
        } else {
            parse_on(
                &statement,
                target,
                Owed::Parse(Some(statement.clone()), undo),
            );
        }
        Ok(())
    }

    fn replace_unnamed(&mut self, with: Unnamed) -> Undo {
        let was_there = std::mem::replace(&mut self.unnamed_is_there, true);
        let before = match std::mem::replace(&mut self.unnamed, with) {
            // A pipeline holds one for each Parse in it.
            Unnamed::Known(frame) if frame.len() > MAX_UNDONE => Unnamed::TooLong,
            before => before,
        };
        Undo::Unnamed(before, was_there)
    }

    fn bind(&mut self, bytes: &[u8], size: usize, target: &mut Target<'_>) -> Result<Rewritten> {
        let body = &bytes[HEADER..size.min(bytes.len())];
        let Some((portal, statement, values)) = split_cstr(body).and_then(|(portal, rest)| {
            split_cstr(rest).map(|(statement, values)| (portal, statement, values))
        }) else {
            return match bytes.len() >= size || body.len() > MAX_COLLECTED {
                true => Err(malformed()),
                false => Ok(Rewritten::NeedMore),
            };
        };
        let known = self.provide(statement, target);
        target.ledger.push(Owed::Bind);
        let Some(known) = known else {
            return Ok(Rewritten::Consumed(0));
        };
        let name = known.server_name();
        let names = HEADER + body.len() - values.len();
        let length = 4 + portal.len() + name.len() + 2 + size - names;
        target.outbox.extend(&[FrontendTag::BIND.0]);
        target
            .outbox
            .extend(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        for part in [portal, b"\0", name.as_bytes(), b"\0"] {
            target.outbox.extend(part);
        }
        Ok(Rewritten::Consumed(names))
    }

    /// Sees to it that the statement the client calls `name` is on the server connection. None: it is the
    /// unnamed one, or the client has none of that name, and the server will say so.
    fn provide(&mut self, name: &[u8], target: &mut Target<'_>) -> Option<Arc<Statement>> {
        if name.is_empty() {
            if let Unnamed::Known(frame) = &self.unnamed
                && !self.unnamed_is_there
            {
                target.outbox.extend(frame);
                target.ledger.push(Owed::SwallowedParse(None));
                self.unnamed_is_there = true;
            }
            return None;
        }
        let known = self.named.get(name)?.clone();
        ensure_parsed(&known, target);
        Some(known)
    }
}

fn ensure_parsed(statement: &Arc<Statement>, target: &mut Target<'_>) {
    if !target.parsed.touch(statement) {
        parse_on(
            statement,
            target,
            Owed::SwallowedParse(Some(statement.clone())),
        );
    }
}

fn parse_on(statement: &Arc<Statement>, target: &mut Target<'_>, owed: Owed) {
    if let Some(evicted) = target.parsed.insert(statement) {
        target.outbox.extend(&evicted.close_frame());
        target.ledger.push(Owed::SwallowedClose(evicted));
    }
    target.outbox.extend(&statement.parse_frame());
    target.ledger.push(owed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Fixture {
        statements: Statements,
        interner: Interner,
        parsed: Parsed,
        ledger: Ledger,
    }

    impl Fixture {
        /// What the server is sent for a frame of the client's.
        fn send(&mut self, tag: u8, body: &[u8]) -> String {
            let frame = frame(tag, &[body]);
            let mut outbox = Buffer::new();
            let mut target = Target {
                parsed: &mut self.parsed,
                outbox: &mut outbox,
                ledger: &mut self.ledger,
                interner: &self.interner,
            };
            let Rewritten::Consumed(n) = self
                .statements
                .rewrite(FrontendTag(tag), &frame, frame.len(), &mut target)
                .unwrap()
            else {
                panic!("whole frame")
            };
            outbox.extend(&frame[n..]);
            frames(outbox.bytes())
        }

        /// A server connection that has parsed nothing.
        fn other_connection(&mut self) {
            self.parsed = Parsed::default();
            self.statements.begin_lease();
        }
    }

    fn frames(mut bytes: &[u8]) -> String {
        let mut out = String::new();
        while let Some(header) = crate::protocol::frame::Header::read(bytes) {
            let size = header.size(1 << 20).unwrap();
            let body = String::from_utf8_lossy(&bytes[HEADER..size]).replace('\0', "~");
            out += &format!("{}({body})", header.tag as char);
            bytes = &bytes[size..];
        }
        out
    }

    #[test]
    fn a_named_statement_follows_its_client_to_every_connection() {
        let mut f = Fixture::default();
        assert_eq!(
            f.send(b'P', b"s1\0SELECT 1\0\0\0"),
            "P(pgtenant_1~SELECT 1~~~)"
        );
        assert_eq!(
            f.send(b'B', b"po\0s1\0\0\0\0\0\0\0"),
            "B(po~pgtenant_1~~~~~~~)"
        );
        assert_eq!(f.send(b'D', b"Ss1\0"), "D(Spgtenant_1~)");
        f.other_connection();
        assert_eq!(
            f.send(b'B', b"\0s1\0\0\0\0\0\0\0"),
            "P(pgtenant_1~SELECT 1~~~)B(~pgtenant_1~~~~~~~)"
        );
        assert_eq!(
            f.send(b'P', b"s2\0SELECT 1\0\0\0"),
            "",
            "parsed already: the proxy answers"
        );
        assert_eq!(f.send(b'C', b"Ss1\0"), "", "the connection keeps it");
        assert_eq!(
            f.send(b'B', b"\0s1\0\0\0\0\0\0\0"),
            "B(~s1~~~~~~~)",
            "unknown: the server says so"
        );
    }

    #[test]
    fn the_unnamed_statement_follows_until_a_query_ends_it() {
        let mut f = Fixture::default();
        assert_eq!(f.send(b'P', b"\0SELECT 1\0\0\0"), "P(~SELECT 1~~~)");
        assert_eq!(f.send(b'B', b"\0\0\0\0\0\0\0\0"), "B(~~~~~~~~)");
        f.other_connection();
        assert_eq!(f.send(b'D', b"S\0"), "P(~SELECT 1~~~)D(S~)");
        assert_eq!(f.send(b'B', b"\0\0\0\0\0\0\0\0"), "B(~~~~~~~~)");
        f.statements.drop_unnamed();
        f.other_connection();
        assert_eq!(f.send(b'B', b"\0\0\0\0\0\0\0\0"), "B(~~~~~~~~)");
    }

    #[test]
    fn portals_pass_as_they_are() {
        let mut f = Fixture::default();
        assert_eq!(f.send(b'D', b"Pp\0"), "D(Pp~)");
        assert_eq!(f.send(b'C', b"Pp\0"), "C(Pp~)");
        assert_eq!(f.send(b'C', b"S\0"), "C(S~)");
    }
}
