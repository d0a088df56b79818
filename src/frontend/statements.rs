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

/// What a client calls a prepared statement.
pub type Name = Arc<[u8]>;

#[derive(Default)]
pub struct Statements {
    named: HashMap<Name, Arc<Statement>>,
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
    Name(Name, Option<Arc<Statement>>),
    /// The unnamed statement was this before, and was there or not.
    Unnamed(Unnamed, bool),
}

impl Undo {
    /// Both are of the same name, or of the unnamed statement.
    pub fn is_of_same(&self, other: &Undo) -> bool {
        match (self, other) {
            (Self::Name(a, _), Self::Name(b, _)) => a == b,
            (Self::Unnamed(..), Self::Unnamed(..)) => true,
            _ => false,
        }
    }
}

/// Where a rewritten message goes.
pub struct Target<'a> {
    pub parsed: &'a mut Parsed,
    pub outbox: &'a mut Buffer,
    pub ledger: &'a mut Ledger,
    pub interner: &'a Interner,
}

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Rewritten {
    /// More bytes of it are needed.
    NeedMore,
    /// The first bytes of it, so many, are dealt with; the rest passes as it is.
    Consumed(usize),
}

fn too_long_names() -> Error {
    Error::new(
        Kind::ProgramLimitExceeded,
        format!("the names in a Bind message are limited to {MAX_COLLECTED} bytes"),
    )
}

/// Puts the client's name of a statement into a server's error in place of the proxy's. None: it is not in it.
pub fn translate(error: &[u8], name: &[u8], statement: &Statement) -> Option<Vec<u8>> {
    let ours = statement.server_name().as_bytes();
    let at = error
        .windows(ours.len())
        .position(|window| window == ours)?;
    let after = &error[at + ours.len()..];
    // Not the first digits of another number.
    let is_whole = !after.first().is_some_and(u8::is_ascii_digit);
    is_whole.then(|| [&error[..at], name, after].concat())
}

/// The statement that a Describe or Close names, if it names one and is well-formed.
fn statement_named(body: &[u8]) -> Option<&[u8]> {
    let (kind, name) = body.split_at_checked(1)?;
    split_cstr(name)
        .filter(|(_, rest)| kind == b"S" && rest.is_empty())
        .map(|(name, _)| name)
}

/// Whether it may be what the proxy calls a statement, of this client or of another.
fn is_ours(name: &[u8]) -> bool {
    name.starts_with(Statement::NAME_PREFIX.as_bytes())
}

/// Whether a Parse body is, after the statement's name, a text and as many types as it says.
fn is_definition(bytes: &[u8]) -> bool {
    let types = split_cstr(bytes).and_then(|(_, types)| types.split_first_chunk::<2>());
    types.is_some_and(|(count, types)| types.len() == usize::from(u16::from_be_bytes(*count)) * 4)
}

impl Statements {
    /// Whether a message must wait until it is known what the name in it means.
    pub fn must_wait(&self, tag: FrontendTag, body: &[u8], ledger: &Ledger) -> bool {
        let name = match tag {
            FrontendTag::PARSE => split_cstr(body),
            FrontendTag::BIND => split_cstr(body).and_then(|(_, rest)| split_cstr(rest)),
            FrontendTag::DESCRIBE => body.strip_prefix(b"S").and_then(split_cstr),
            _ => None,
        };
        let replaces_unnamed = |name: &[u8]| tag == FrontendTag::PARSE && name.is_empty();
        name.is_some_and(|(name, _)| {
            !replaces_unnamed(name) && ledger.may_change(name, self.named.get(name))
        })
    }

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

    /// A simple Query is sent: the server drops the unnamed statement, unless it skips the Query.
    pub fn query(&mut self) -> Undo {
        let undo = self.replace_unnamed(Unnamed::None);
        self.unnamed_is_there = false;
        undo
    }

    /// Takes back what messages did that took no effect; `failed` in the order they were sent.
    pub fn undo(&mut self, failed: Vec<Failed>, parsed: &mut Parsed, ledger: &mut Ledger) {
        for Failed { message, skipped } in failed.into_iter().rev() {
            match message {
                Owed::SwallowedClose(Some(statement)) => parsed.doubt(&statement),
                Owed::SwallowedParse(None) | Owed::SwallowedClose(None) => {
                    self.unnamed_is_there = false;
                }
                Owed::SwallowedParse(Some(statement)) => parsed.doubt(&statement),
                // One that was looked at and failed has ended the unnamed statement before it.
                Owed::Parse(_, Undo::Unnamed(..)) if !skipped => {
                    self.take_back(Undo::Unnamed(Unnamed::None, false), ledger);
                }
                Owed::Parse(statement, undo) => {
                    if let Some(statement) = statement {
                        parsed.doubt(&statement);
                    }
                    self.take_back(undo, ledger);
                }
                Owed::Query(undo)
                | Owed::FakeParse(undo)
                | Owed::FakeClose(undo)
                | Owed::Close(undo) => self.take_back(undo, ledger),
                _ => {}
            }
        }
    }

    fn take_back(&mut self, undo: Undo, ledger: &mut Ledger) {
        // What was sent after it and has changed the same finds another state before it.
        if let Some(next) = ledger.next_change(&undo) {
            *next = undo;
            return;
        }
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

    /// The server dropped all that have names (DISCARD ALL, DEALLOCATE ALL).
    pub fn clear(&mut self) {
        self.named = HashMap::new();
    }

    /// Deals with a Parse, Bind, Describe or Close frame of `size` bytes, of which `bytes` holds the first. A malformed
    /// one passes as it is: the server says what is wrong with it.
    ///
    /// # Errors
    /// 54000 for a message too long to be held.
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
                let known = statement_named(body).and_then(|name| self.provide(name, target));
                let Some((name, known)) = known else {
                    target.ledger.push(Owed::Describe(None));
                    return Ok(Rewritten::Consumed(0));
                };
                let server_name = known.server_name();
                target
                    .outbox
                    .extend(&frame(tag.0, &[b"S", server_name.as_bytes(), b"\0"]));
                target.ledger.push(Owed::Describe(Some((name, known))));
            }
            _ => {
                let undo = match statement_named(body) {
                    Some(b"") => self.replace_unnamed(Unnamed::None),
                    Some(name) if self.named.contains_key(name) || is_ours(name) => {
                        let before = self.named.remove(name);
                        let undo = Undo::Name(name.into(), before);
                        target.ledger.push(Owed::FakeClose(undo));
                        return Ok(Rewritten::Consumed(size));
                    }
                    Some(name) => Undo::Name(name.into(), None),
                    None => Undo::Nothing,
                };
                target.ledger.push(Owed::Close(undo));
                return Ok(Rewritten::Consumed(0));
            }
        }
        Ok(Rewritten::Consumed(size))
    }

    fn parse(&mut self, frame: &[u8], body: &[u8], target: &mut Target<'_>) -> Result<()> {
        let Some((name, definition)) =
            split_cstr(body).filter(|(_, definition)| is_definition(definition))
        else {
            target.outbox.extend(frame);
            target.ledger.push(Owed::Parse(None, Undo::Nothing));
            return Ok(());
        };
        if name.is_empty() {
            let undo = self.replace_unnamed(match frame.len() {
                0..=MAX_UNNAMED => Unnamed::Known(frame.to_vec()),
                _ => Unnamed::TooLong,
            });
            target.outbox.extend(frame);
            target.ledger.push(Owed::Parse(None, undo));
            return Ok(());
        }
        if let Some((name, known)) = self.known(name) {
            // The server says what is wrong with the definition; if nothing is, that the name is taken.
            let other = target.interner.intern(definition);
            if !is_surely_parsed(&other, target) {
                let owed = Owed::SwallowedParse(Some(other.clone()));
                parse_on(&other, target, owed);
            }
            ensure_parsed(&known, target);
            target.outbox.extend(&known.parse_frame());
            target.ledger.push(Owed::Redefine(name, known));
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
        let name = Name::from(name);
        self.named.insert(name.clone(), statement.clone());
        let undo = Undo::Name(name, None);
        if is_surely_parsed(&statement, target) {
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
            if bytes.len() >= size {
                target.ledger.push(Owed::Bind(None));
                return Ok(Rewritten::Consumed(0));
            }
            return match body.len() > MAX_COLLECTED {
                true => Err(too_long_names()),
                false => Ok(Rewritten::NeedMore),
            };
        };
        let known = self.provide(statement, target);
        target.ledger.push(Owed::Bind(known.clone()));
        let Some((_, known)) = known else {
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
    fn provide(&mut self, name: &[u8], target: &mut Target<'_>) -> Option<(Name, Arc<Statement>)> {
        if name.is_empty() {
            if std::mem::replace(&mut self.unnamed_is_there, true) {
                return None;
            }
            if let Unnamed::Known(frame) = &self.unnamed {
                target.outbox.extend(frame);
                target.ledger.push(Owed::SwallowedParse(None));
            } else {
                // The connection's may be another client's.
                target
                    .outbox
                    .extend(&frame(FrontendTag::CLOSE.0, &[b"S\0"]));
                target.ledger.push(Owed::SwallowedClose(None));
            }
            return None;
        }
        let Some(known) = self.known(name) else {
            return is_ours(name).then(|| (name.into(), Statement::of_nobody()));
        };
        ensure_parsed(&known.1, target);
        Some(known)
    }

    fn known(&self, name: &[u8]) -> Option<(Name, Arc<Statement>)> {
        let (name, known) = self.named.get_key_value(name)?;
        Some((name.clone(), known.clone()))
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

/// Whether the server connection has the statement and would parse it again. If that is open, or its transaction has
/// failed, the server is to say itself what comes of a Parse.
fn is_surely_parsed(statement: &Arc<Statement>, target: &mut Target<'_>) -> bool {
    if !target.parsed.touch(statement) {
        return false;
    }
    let is_healthy = target.ledger.is_healthy();
    if !is_healthy {
        target.parsed.doubt(statement);
    }
    is_healthy
}

fn parse_on(statement: &Arc<Statement>, target: &mut Target<'_>, owed: Owed) {
    let evicted = target.parsed.insert(statement);
    let doubtful = target.parsed.is_doubtful().then(|| statement.clone());
    for closed in [evicted, doubtful].into_iter().flatten() {
        target.outbox.extend(&closed.close_frame());
        target.ledger.push(Owed::SwallowedClose(Some(closed)));
    }
    target.outbox.extend(&statement.parse_frame());
    target.ledger.push(owed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frame::BackendTag;

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
        f.statements.query();
        f.other_connection();
        assert_eq!(
            f.send(b'B', b"\0\0\0\0\0\0\0\0"),
            "C(S~)B(~~~~~~~~)",
            "the connection's may be another client's"
        );
    }

    #[test]
    fn a_name_like_those_of_the_proxy_finds_nothing() {
        let mut f = Fixture::default();
        f.send(b'P', b"s1\0SELECT 1\0\0\0");
        assert_eq!(
            f.send(b'B', b"\0pgtenant_1\0\0\0\0\0\0\0"),
            "B(~pgtenant_0~~~~~~~)"
        );
        assert_eq!(f.send(b'C', b"Spgtenant_1\0"), "");
        assert_eq!(f.send(b'D', b"Ss1\0"), "D(Spgtenant_1~)");
    }

    #[test]
    fn a_malformed_message_passes_as_it_is() {
        let mut f = Fixture::default();
        f.send(b'P', b"s1\0SELECT 1\0\0\0");
        for (tag, body) in [
            (b'P', &b"s1"[..]),
            (b'P', b"s1\0SELECT 1"),
            (b'P', b"s1\0SELECT 1\0\0\x01"),
            (b'B', b"\0s1"),
            (b'D', b"Ss1"),
            (b'D', b"Ss1\0more"),
            (b'C', b"Ss1\0more"),
        ] {
            let sent = f.send(tag, body);
            assert_eq!(sent, frames(&frame(tag, &[body])));
        }
    }

    #[test]
    fn what_a_name_means_waits_for_the_answers_to_an_earlier_batch_about_it() {
        let mut f = Fixture::default();
        let waits = |f: &Fixture, tag, body| f.statements.must_wait(tag, body, &f.ledger);
        f.send(b'P', b"s1\0SELEC\0\0\0");
        assert!(!waits(&f, FrontendTag::BIND, b"\0s1\0"), "of one batch");
        f.ledger.push(Owed::Sync);
        assert!(waits(&f, FrontendTag::BIND, b"\0s1\0"));
        assert!(waits(&f, FrontendTag::PARSE, b"s1\0SELECT 1\0\0\0"));
        assert!(!waits(&f, FrontendTag::BIND, b"\0s2\0"), "another name");
        f.ledger.reply(BackendTag::ERROR_RESPONSE, false);
        f.ledger.reply(BackendTag::READY_FOR_QUERY, true);
        assert!(!waits(&f, FrontendTag::BIND, b"\0s1\0"));
    }

    #[test]
    fn portals_pass_as_they_are() {
        let mut f = Fixture::default();
        assert_eq!(f.send(b'D', b"Pp\0"), "D(Pp~)");
        assert_eq!(f.send(b'C', b"Pp\0"), "C(Pp~)");
        assert_eq!(f.send(b'C', b"S\0"), "C(S~)");
    }
}
