//! The prepared statements of one client in transaction pooling, by the names the client gave them,
//! and how the messages that name one are rewritten for the server connection at hand.
//!
//! A statement that the connection has not parsed yet is parsed just before its use; a Parse of
//! one that it has is answered by the proxy. A Close only ends the client's name: the connection keeps
//! the statement for others.

use std::collections::HashMap;
use std::sync::Arc;

use crate::backend::context::Settings;
use crate::backend::prepared::{Has, Interner, Parsed, Statement, frame};
use crate::error::{Error, Kind, Result};
use crate::frontend::ledger::{Failed, Ledger, Owed};
use crate::protocol::buffer::Buffer;
use crate::protocol::frame::{FrontendTag, HEADER, split_cstr};
use crate::sql::effects::{Effects, What};

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
    named: HashMap<Box<[u8]>, Known>,
    unnamed: Unnamed,
    /// What an execution of the unnamed statement may do to the session.
    unnamed_effects: Effects,
    /// It was read with backslash escapes in plain strings.
    unnamed_backslashes: bool,
    /// The unnamed statement of the server connection at hand is this client's.
    unnamed_is_there: bool,
    /// The client's settings, and what of them changes the meaning of its statements.
    meaning: Option<(Arc<Settings>, u64)>,
    /// What a DEALLOCATE that the server was sent takes away.
    deallocating: Option<(Box<[u8]>, Arc<Statement>)>,
}

/// A statement as a client prepared it.
#[derive(Debug, Clone)]
pub struct Known {
    statement: Arc<Statement>,
    /// The schema's epoch when it did: what was parsed before that may mean something else.
    since: u64,
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
    Name(Box<[u8]>, Option<Known>),
    /// The unnamed statement was this before, and was there or not.
    Unnamed(Unnamed, bool),
}

/// Where a rewritten message goes.
pub struct Target<'a> {
    pub parsed: &'a mut Parsed,
    pub outbox: &'a mut Buffer,
    pub ledger: &'a mut Ledger,
    pub interner: &'a Interner,
    pub settings: &'a Arc<Settings>,
    /// `standard_conforming_strings` is off.
    pub backslashes: bool,
    /// Whether sequence values on this connection are the client's own.
    pub owns_sequences: bool,
    /// What is run by the message may do this.
    pub effects: Effects,
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
    /// It asks for sequence values, and those of the connection are another client's.
    ForeignSequence,
}

fn malformed() -> Error {
    Error::new(Kind::ProtocolViolation, "invalid message format")
}

impl Statements {
    /// The client's tenant lives in another pool now.
    pub fn rehome(&mut self, interner: &Interner) {
        for known in self.named.values_mut() {
            known.statement = known.statement.intern_in(interner);
            known.since = interner.epoch();
        }
        self.meaning = None;
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
                Owed::SwallowedClose(statement) => parsed.restore(&statement),
                Owed::SwallowedParse(None) => self.unnamed_is_there = false,
                Owed::SwallowedParse(Some(statement)) => refused(&statement, skipped, parsed),
                // One that was looked at and failed has ended the unnamed statement before it.
                Owed::Parse(_, Undo::Unnamed(..)) if !skipped => self.drop_unnamed(),
                Owed::Parse(statement, undo) => {
                    if let Some(statement) = statement {
                        refused(&statement, skipped, parsed);
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
            .find(|(_, known)| known.statement.server_name().as_bytes() == ours)?;
        Some([&error[..at], known.0, &error[at + ours.len()..]].concat())
    }

    /// The server dropped them all (DISCARD ALL, DEALLOCATE ALL).
    pub fn clear(&mut self) {
        self.named = HashMap::new();
        self.drop_unnamed();
    }

    /// The name that an SQL DEALLOCATE of a single statement takes away, if the client prepared it by the protocol.
    pub fn named_in_deallocate(&self, text: &[u8]) -> Option<Box<[u8]>> {
        let name = name_in_deallocate(text)?;
        self.named.contains_key(&*name).then_some(name)
    }

    /// What the unnamed statement does, whose text was too long to be looked at whole.
    pub fn note_unnamed(&mut self, effects: Effects) {
        self.unnamed_effects = effects;
    }

    /// The client deallocated this name; the connection keeps the statement for others.
    pub fn deallocate(&mut self, name: &[u8]) {
        self.named.remove(name);
    }

    /// The server has done a DEALLOCATE: of which statement is not always known.
    pub fn note_deallocated(&mut self, parsed: &mut Parsed) {
        match self.deallocating.take() {
            Some((name, statement)) => {
                parsed.restore(&statement);
                self.named.remove(&name);
            }
            None => parsed.outdate(),
        }
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
            FrontendTag::PARSE => return self.parse(&bytes[..size], body, target),
            FrontendTag::DESCRIBE => {
                let Some((b"S", name)) = body.split_at_checked(1) else {
                    target.ledger.push(Owed::Describe);
                    return Ok(Rewritten::Consumed(0));
                };
                let name = split_cstr(name).ok_or_else(malformed)?.0;
                let known = self.provide(name, target);
                target.ledger.push(Owed::Describe);
                let Some(name) = name_to_send(known.as_deref(), name) else {
                    return Ok(Rewritten::Consumed(0));
                };
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

    fn parse(&mut self, frame: &[u8], body: &[u8], target: &mut Target<'_>) -> Result<Rewritten> {
        let done = Ok(Rewritten::Consumed(frame.len()));
        let (name, definition) = split_cstr(body).ok_or_else(malformed)?;
        if name.is_empty() {
            let effects = match &self.unnamed {
                Unnamed::Known(before)
                    if before == frame && self.unnamed_backslashes == target.backslashes =>
                {
                    self.unnamed_effects.clone()
                }
                _ => {
                    let text = split_cstr(definition).map_or(&[][..], |(text, _)| text);
                    Effects::of(text, target.backslashes)
                }
            };
            if !target.owns_sequences && asks_for_foreign_sequence(&effects) {
                return Ok(Rewritten::ForeignSequence);
            }
            let renamed = self.rename_deallocate(definition, target);
            let frame = renamed.as_deref().unwrap_or(frame);
            let undo = self.replace_unnamed(match frame.len() {
                0..=MAX_UNNAMED => Unnamed::Known(frame.to_vec()),
                _ => Unnamed::TooLong,
            });
            self.unnamed_effects = effects;
            self.unnamed_backslashes = target.backslashes;
            target.outbox.extend(frame);
            target.ledger.push(Owed::Parse(None, undo));
            return done;
        }
        if let Some(known) = self.named.get(name).cloned() {
            // The server refuses to define it twice; let it say so.
            ensure_parsed(&known, target);
            target.outbox.extend(&known.statement.parse_frame());
            target.ledger.push(Owed::Parse(None, Undo::Nothing));
            return done;
        }
        let held = || {
            let sizes = self.named.values().map(|known| known.statement.size());
            sizes.sum::<usize>()
        };
        let too_large = definition.len() >= LARGE && held() + definition.len() > MAX_NAMED_BYTES;
        if self.named.len() >= MAX_NAMED || too_large {
            return Err(Error::new(
                Kind::ProgramLimitExceeded,
                format!(
                    "a client may have {MAX_NAMED} prepared statements and {MAX_NAMED_BYTES} bytes of them"
                ),
            ));
        }
        let meaning = self.meaning(target);
        let statement = target
            .interner
            .intern(definition, meaning, target.backslashes);
        if !target.owns_sequences && asks_for_foreign_sequence(&statement.effects) {
            return Ok(Rewritten::ForeignSequence);
        }
        let known = Known {
            statement: statement.clone(),
            since: target.interner.epoch(),
        };
        let undo = Undo::Name(name.into(), None);
        match target.parsed.touch(&statement, known.since) {
            // In a transaction that has failed the server decides what may be prepared.
            Has::Yes if target.ledger.status().is_none() => {
                let owed = Owed::Parse(Some(statement), undo);
                parse_on(&known, Has::Outdated, target, owed);
            }
            Has::Yes => target.ledger.push(Owed::FakeParse(undo)),
            has => {
                let owed = Owed::Parse(Some(statement), undo);
                parse_on(&known, has, target, owed);
            }
        }
        self.named.insert(name.into(), known);
        done
    }

    fn meaning(&mut self, target: &Target<'_>) -> u64 {
        match &self.meaning {
            Some((settings, meaning)) if Arc::ptr_eq(settings, target.settings) => *meaning,
            _ => {
                let meaning = target.interner.meaning(target.settings);
                self.meaning = Some((target.settings.clone(), meaning));
                meaning
            }
        }
    }

    /// A Parse of an SQL DEALLOCATE that names the statement as the server knows it. It takes it away from
    /// the connection.
    fn rename_deallocate(&mut self, definition: &[u8], target: &mut Target<'_>) -> Option<Vec<u8>> {
        let (text, parameters) = split_cstr(definition)?;
        let name = name_in_deallocate(text)?;
        let known = self.named.get(&name)?.clone();
        ensure_parsed(&known, target);
        let text = format!("DEALLOCATE {}\0", known.statement.server_name());
        self.deallocating = Some((name, known.statement));
        Some(frame(
            FrontendTag::PARSE.0,
            &[b"\0", text.as_bytes(), parameters],
        ))
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
        let effects = match statement {
            b"" => Some(&self.unnamed_effects),
            name => self.named.get(name).map(|known| &known.statement.effects),
        };
        if let Some(effects) = effects {
            if !target.owns_sequences && asks_for_foreign_sequence(effects) {
                return Ok(Rewritten::ForeignSequence);
            }
            target.effects.add(effects);
        }
        let known = self.provide(statement, target);
        target.ledger.push(Owed::Bind);
        let Some(name) = name_to_send(known.as_deref(), statement) else {
            return Ok(Rewritten::Consumed(0));
        };
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
        Some(known.statement)
    }
}

/// The name by which the server is asked for the statement that a client calls `name`. None: by the same. What another
/// client's statement is called there is no name of this client's.
fn name_to_send<'a>(known: Option<&'a Statement>, name: &[u8]) -> Option<&'a str> {
    match known {
        Some(known) => Some(known.server_name()),
        None if name.starts_with(PREFIX) => Some(Statement::NAME_PREFIX),
        None => None,
    }
}

/// A Parse was refused or skipped. The server that refuses one may have the name already, though it should not.
fn refused(statement: &Arc<Statement>, skipped: bool, parsed: &mut Parsed) {
    match skipped {
        true => parsed.forget(statement),
        false => parsed.restore(statement),
    }
}

fn ensure_parsed(known: &Known, target: &mut Target<'_>) {
    let has = target.parsed.touch(&known.statement, known.since);
    if has != Has::Yes {
        let owed = Owed::SwallowedParse(Some(known.statement.clone()));
        parse_on(known, has, target, owed);
    }
}

/// Parses a statement on the connection, which has it not, or as it was.
fn parse_on(known: &Known, has: Has, target: &mut Target<'_>, owed: Owed) {
    let statement = &known.statement;
    if has == Has::Outdated {
        target.parsed.forget(statement);
        close_on(statement.clone(), target);
    }
    if let Some(evicted) = target.parsed.insert(statement, target.interner.epoch()) {
        close_on(evicted, target);
    }
    target.outbox.extend(&statement.parse_frame());
    target.ledger.push(owed);
}

fn close_on(statement: Arc<Statement>, target: &mut Target<'_>) {
    target.outbox.extend(&statement.close_frame());
    target.ledger.push(Owed::SwallowedClose(statement));
}

/// Whether a text asks for sequence values and makes none itself before.
pub fn asks_for_foreign_sequence(effects: &Effects) -> bool {
    effects.what.contains(What::READS_SEQUENCE) && !effects.what.contains(What::ADVANCES_SEQUENCE)
}

/// The name in `DEALLOCATE [PREPARE] name`, as PostgreSQL reads it; none of ALL.
fn name_in_deallocate(text: &[u8]) -> Option<Box<[u8]>> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let text = text.strip_suffix(';').unwrap_or(text).trim_end();
    let (word, mut name) = text.split_once(|c: char| c.is_ascii_whitespace())?;
    if !word.eq_ignore_ascii_case("deallocate") {
        return None;
    }
    name = name.trim_start();
    if let Some((word, rest)) = name.split_once(|c: char| c.is_ascii_whitespace())
        && word.eq_ignore_ascii_case("prepare")
    {
        name = rest.trim_start();
    }
    if let Some(quoted) = name
        .strip_prefix('"')
        .and_then(|name| name.strip_suffix('"'))
    {
        let name = quoted.replace("\"\"", "\0");
        return (!name.contains('"')).then(|| name.replace('\0', "\"").into_bytes().into());
    }
    let is_name = !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'$' || b >= 0x80);
    let name = name.to_ascii_lowercase();
    (is_name && name != "all").then(|| name.into_bytes().into())
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
                settings: &Arc::default(),
                backslashes: false,
                owns_sequences: true,
                effects: Effects::default(),
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

    #[test]
    fn what_was_parsed_before_the_schema_changed_is_parsed_anew_for_who_prepares_it_after() {
        let mut f = Fixture::default();
        f.send(b'P', b"s1\0SELECT 1\0\0\0");
        f.interner.begin_epoch();
        assert_eq!(
            f.send(b'B', b"\0s1\0\0\0\0\0\0\0"),
            "B(~pgtenant_1~~~~~~~)",
            "as direct, where the plan may now be refused"
        );
        assert_eq!(
            f.send(b'P', b"s2\0SELECT 1\0\0\0"),
            "C(Spgtenant_1~)P(pgtenant_1~SELECT 1~~~)"
        );
        f.parsed.outdate();
        assert_eq!(
            f.send(b'B', b"\0s1\0\0\0\0\0\0\0"),
            "C(Spgtenant_1~)P(pgtenant_1~SELECT 1~~~)B(~pgtenant_1~~~~~~~)"
        );
    }

    #[test]
    fn a_deallocate_in_sql_finds_the_statement_of_the_protocol() {
        for (text, name) in [
            ("DEALLOCATE s1", Some("s1")),
            (" deallocate  prepare S1 ; ", Some("s1")),
            ("DEALLOCATE \"S\"\"1\"", Some("S\"1")),
            ("DEALLOCATE PREPARE \"a b\"", Some("a b")),
            ("DEALLOCATE ALL", None),
            ("DEALLOCATE \"all\"", Some("all")),
            ("DEALLOCATE a; SELECT 1", None),
            ("DEALLOCATE", None),
            ("SELECT 1", None),
        ] {
            let found = name_in_deallocate(text.as_bytes());
            assert_eq!(found.as_deref(), name.map(str::as_bytes), "{text}");
        }
        let mut f = Fixture::default();
        f.send(b'P', b"s1\0SELECT 1\0\0\0");
        assert_eq!(
            f.send(b'P', b"\0DEALLOCATE s1\0\0\0"),
            "P(~DEALLOCATE pgtenant_1~~~)"
        );
        f.statements.note_deallocated(&mut f.parsed);
        assert!(f.statements.named.is_empty());
    }
}
