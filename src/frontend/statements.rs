//! The prepared statements of one client in transaction pooling, by the names the client gave them,
//! and how the messages that name one are rewritten for the server connection at hand.
//!
//! A statement that the connection has not parsed yet is parsed just before its use; a Parse of one
//! that it has is answered by the proxy. A Close only ends the client's name: the connection keeps
//! the statement for others.

mod in_sql;

use std::collections::HashMap;
use std::sync::Arc;

use crate::backend::binding::Settings;
use crate::backend::prepared::{Has, Interner, Parsed, Statement};
use crate::config::TransactionLimits;
use crate::error::{Error, Kind, Result};
use crate::frontend::ledger::{Failed, Ledger};
use crate::frontend::locks::Locks;
use crate::frontend::owed::{Owed, Portal, Ran};
use crate::frontend::prepared::{Known, Name, Parse, Undo, Unnamed};
use crate::guard::Guard;
use crate::protocol::buffer::Buffer;
use crate::protocol::frame::{FrontendTag, HEADER, frame, split_cstr};
use crate::sql::effects::uses::{Use, Verb, Which};
use crate::sql::effects::{Effects, What};

use self::in_sql::Own;
pub use self::in_sql::reserved;

/// Longest unnamed Parse that is remembered for a Bind in a later transaction, in bytes.
const MAX_UNNAMED: usize = 64 * 1024;
/// Longest unnamed statement that is brought back after one in its place was skipped, in bytes.
const MAX_UNDONE: usize = 4096;
/// A definition from this size on is checked against what all named statements of one client may
/// take.
const LARGE: usize = 1024;
/// Longest Parse of a named statement, and longest names in a Bind, in bytes.
const MAX_COLLECTED: usize = 1 << 20;

#[derive(Default)]
pub struct Statements {
    named: Named,
    unnamed: Unnamed,
    /// The unnamed statement of the server connection at hand is this client's.
    unnamed_is_there: bool,
    /// It is too long to be remembered, and was not bound yet: the client must keep the connection.
    unnamed_awaits: bool,
    /// The client's settings, and what of them changes the meaning of its statements.
    meaning: Option<(Arc<Settings>, u64)>,
    /// What the server connection at hand has under the client's own names.
    own: Option<Box<Own>>,
    /// Some of them may set a variable of the context to what their parameters say.
    checks_binds: bool,
}

/// The named statements of a client. Most clients have none, or are idle, so what is always there
/// is small.
#[derive(Default)]
#[expect(clippy::box_collection, reason = "a map is of 48 bytes, empty or not")]
struct Named(Option<Box<HashMap<Name, Known>>>);

impl Named {
    fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |map| map.len())
    }

    fn get(&self, name: &[u8]) -> Option<&Known> {
        self.0.as_ref()?.get(name)
    }

    fn get_key_value(&self, name: &[u8]) -> Option<(&Name, &Known)> {
        self.0.as_ref()?.get_key_value(name)
    }

    fn contains_key(&self, name: &[u8]) -> bool {
        self.get(name).is_some()
    }

    fn names(&self) -> impl Iterator<Item = &Name> {
        self.0.iter().flat_map(|map| map.keys())
    }

    fn values(&self) -> impl Iterator<Item = &Known> {
        self.0.iter().flat_map(|map| map.values())
    }

    fn values_mut(&mut self) -> impl Iterator<Item = &mut Known> {
        self.0.iter_mut().flat_map(|map| map.values_mut())
    }

    fn insert(&mut self, name: Name, known: Known) {
        self.0.get_or_insert_default().insert(name, known);
    }

    fn remove(&mut self, name: &[u8]) -> Option<Known> {
        self.0.as_mut()?.remove(name)
    }
}

/// Where a rewritten message goes.
pub struct Target<'a> {
    pub parsed: &'a mut Parsed,
    pub outbox: &'a mut Buffer,
    pub ledger: &'a mut Ledger,
    pub interner: &'a Interner,
    pub settings: &'a Arc<Settings>,
    /// Of these some that change what a statement means may be other by now.
    pub is_meaning_open: &'a dyn Fn() -> bool,
    /// `standard_conforming_strings` is off.
    pub backslashes: bool,
    /// Whether sequence values on this connection are the client's own.
    pub owns_sequences: bool,
    /// What the transaction has locked, and may lock.
    pub locks: (&'a Locks, &'a TransactionLimits),
    /// What SQL may not execute by name.
    pub guard: Option<&'a Guard>,
    /// What is run by the message may do this.
    pub effects: Effects,
    /// It prepares what only this connection will have.
    pub pins: bool,
    /// It binds what cannot be told from the message alone later.
    pub obscure: bool,
}

/// What became of a message.
#[derive(Debug)]
pub enum Rewritten {
    /// More bytes of it are needed.
    NeedMore,
    /// The first bytes of it, so many, are dealt with; the rest passes as it is.
    Consumed(usize),
    /// It asks for sequence values, and those of the connection are another client's.
    ForeignSequence,
    /// It would run what the client may not run now. Nothing of it was sent.
    Refused(Error),
    /// It must wait until it is known what the names in its text mean.
    Waits,
}

fn too_long_names() -> Error {
    Error::new(
        Kind::ProgramLimitExceeded,
        format!("the names in a Bind message are limited to {MAX_COLLECTED} bytes"),
    )
}

/// Puts the client's name of a statement into a server's error in place of the proxy's. None: it is
/// not in it.
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
    /// Whether it is as that of a client that has none.
    pub fn is_empty(&self) -> bool {
        let Self {
            named,
            unnamed,
            unnamed_is_there: _,
            unnamed_awaits,
            // It is found again.
            meaning: _,
            own: _,
            checks_binds: _,
        } = self;
        let is_unnamed = matches!(unnamed, Unnamed::None) && !unnamed_awaits;
        named.len() == 0 && is_unnamed
    }

    /// Whether a message must wait until it is known what the name in it means.
    pub fn must_wait(&self, tag: FrontendTag, body: &[u8], ledger: &Ledger) -> bool {
        if !ledger.may_change_any() {
            return false;
        }
        let name = match tag {
            FrontendTag::PARSE => split_cstr(body),
            FrontendTag::BIND => split_cstr(body).and_then(|(_, rest)| split_cstr(rest)),
            FrontendTag::DESCRIBE => body.strip_prefix(b"S").and_then(split_cstr),
            _ => None,
        };
        let replaces_unnamed = |name: &[u8]| tag == FrontendTag::PARSE && name.is_empty();
        name.is_some_and(|(name, _)| {
            !replaces_unnamed(name)
                && ledger.may_change(name, self.named.get(name).map(|known| &known.statement))
        })
    }

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
                    let was_there = match ledger.next_change(&Undo::Unnamed(Unnamed::None, false)) {
                        Some(Undo::Unnamed(_, was_there)) => was_there,
                        _ => &mut self.unnamed_is_there,
                    };
                    *was_there = false;
                }
                Owed::SwallowedParse(Some(statement)) => parsed.doubt(&statement),
                Owed::Copy(name) | Owed::CloseCopy(name) => self.doubt_copy(name),
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
        self.named = Named::default();
        self.own = None;
    }

    /// What the unnamed statement does, whose text was too long to be looked at whole.
    pub fn note_unnamed(&mut self, effects: Effects) {
        if let Unnamed::TooLong(known) = &mut self.unnamed {
            **known = effects;
        }
    }

    /// Deals with a Parse, Bind, Describe or Close frame of `size` bytes, of which `bytes` holds
    /// the first. A malformed one passes as it is: the server says what is wrong with it.
    ///
    /// # Errors
    /// 54000 for a message too long to be held.
    #[expect(clippy::too_many_lines, reason = "an arm for each message")]
    pub fn rewrite(
        &mut self,
        tag: FrontendTag,
        bytes: &[u8],
        size: usize,
        target: &mut Target<'_>,
    ) -> Result<Rewritten> {
        self.read_unnamed_again(target.backslashes);
        if tag == FrontendTag::BIND {
            return self.bind(bytes, size, target);
        }
        if bytes.len() < size {
            let named = tag == FrontendTag::PARSE && bytes.get(HEADER).is_some_and(|&b| b != 0);
            return match tag == FrontendTag::PARSE && size > MAX_UNNAMED {
                // A long unnamed Parse streams.
                true if bytes.len() > HEADER && !named => {
                    let undo = self.replace_unnamed(Unnamed::TooLong(Box::default()));
                    self.unnamed_awaits = true;
                    target.ledger.push(Owed::Parse(None, undo));
                    Ok(Rewritten::Consumed(0))
                }
                true if size > MAX_COLLECTED => self.long_parse(&bytes[HEADER..], target),
                _ => Ok(Rewritten::NeedMore),
            };
        }
        let body = &bytes[HEADER..size];
        match tag {
            FrontendTag::PARSE => return self.parse(&bytes[..size], body, target),
            FrontendTag::DESCRIBE => {
                let effects = match statement_named(body) {
                    Some(b"") => self.unnamed.effects(),
                    Some(name) => self.named.get(name).map(|known| &known.statement.effects),
                    None => None,
                };
                if effects.is_some_and(|effects| must_wait_to_name(effects, target)) {
                    return Ok(Rewritten::Waits);
                }
                let known = statement_named(body).and_then(|name| {
                    let known = self.known_on(name, target);
                    self.provide(name, known, target)
                });
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
                        self.close_copy(name, target);
                        let before = self.named.remove(name);
                        let undo = Undo::Name(name.into(), before);
                        target.ledger.push(Owed::FakeClose(undo));
                        return Ok(Rewritten::Consumed(size));
                    }
                    Some(name) if self.effects_of_prepared(name).is_some() => {
                        // As if SQL deallocated it.
                        target.effects.what |= What::DEALLOCATES;
                        target.effects.uses.push(Use {
                            verb: Verb::Deallocate,
                            which: Which::Name(name.into()),
                            in_code: false,
                            effects: None,
                        });
                        Undo::Nothing
                    }
                    Some(name) => {
                        self.close_copy(name, target);
                        Undo::Name(name.into(), None)
                    }
                    None => Undo::Nothing,
                };
                target.ledger.push(Owed::Close(undo));
                return Ok(Rewritten::Consumed(0));
            }
        }
        Ok(Rewritten::Consumed(size))
    }

    #[expect(clippy::too_many_lines, reason = "an arm for each message")]
    fn parse(&mut self, frame: &[u8], body: &[u8], target: &mut Target<'_>) -> Result<Rewritten> {
        let done = Ok(Rewritten::Consumed(frame.len()));
        let Some((name, definition)) =
            split_cstr(body).filter(|(_, definition)| is_definition(definition))
        else {
            target.outbox.extend(frame);
            target.ledger.push(Owed::Parse(None, Undo::Nothing));
            return done;
        };
        if name.is_empty() {
            // The same again, as drivers send it for each use of a query.
            let same = match &self.unnamed {
                Unnamed::Known(before)
                    if *before.frame == *frame && before.backslashes == target.backslashes =>
                {
                    Some(before.clone())
                }
                _ => None,
            };
            let effects = match &same {
                Some(same) => same.effects.clone(),
                None => {
                    let text = split_cstr(definition).map_or(&[][..], |(text, _)| text);
                    Effects::of(text, target.backslashes)
                }
            };
            if !target.owns_sequences && asks_for_foreign_sequence(&effects) {
                return Ok(Rewritten::ForeignSequence);
            }
            if let Some(error) = reserved(&effects.uses) {
                return Ok(Rewritten::Refused(error));
            }
            if must_wait_to_name(&effects, target) {
                return Ok(Rewritten::Waits);
            }
            self.lend(&effects.uses, true, target);
            let undo = self.replace_unnamed(match same {
                Some(same) => Unnamed::Known(same),
                None if frame.len() <= MAX_UNNAMED => Unnamed::Known(Arc::new(Parse {
                    frame: frame.into(),
                    effects,
                    backslashes: target.backslashes,
                })),
                None => Unnamed::TooLong(effects.into()),
            });
            target.outbox.extend(frame);
            target.ledger.push(Owed::Parse(None, undo));
            return done;
        }
        if self.is_taken(name) {
            self.pass_redefinition(name, definition, frame, target);
            return done;
        }
        let held = || {
            let sizes = self.named.values().map(|known| known.statement.size());
            sizes.sum::<usize>()
        };
        let TransactionLimits {
            statements: most,
            statement_memory: room,
            ..
        } = *target.locks.1;
        let too_large = definition.len() >= LARGE && held() + definition.len() > room;
        if self.named.len() >= most || too_large {
            let message =
                format!("a client may have {most} prepared statements and {room} bytes of them");
            let error = Error::new(Kind::ProgramLimitExceeded, message);
            return Err(error.with_hint("Close those that are not used any more."));
        }
        let statement = self.intern(definition, target);
        if !target.owns_sequences && asks_for_foreign_sequence(&statement.effects) {
            return Ok(Rewritten::ForeignSequence);
        }
        if let Some(error) = reserved(&statement.effects.uses) {
            return Ok(Rewritten::Refused(error));
        }
        if must_wait_to_name(&statement.effects, target) {
            return Ok(Rewritten::Waits);
        }
        self.lend(&statement.effects.uses, true, target);
        let known = Known {
            statement: statement.clone(),
            since: target.interner.epoch(),
        };
        let name = Name::from(name);
        let undo = Undo::Name(name.clone(), None);
        match surely_has(&known, target) {
            Has::Yes => target.ledger.push(Owed::FakeParse(undo)),
            has => {
                let owed = Owed::Parse(Some(statement), undo);
                parse_on(&known, has, target, owed);
            }
        }
        self.named.insert(name, known);
        done
    }

    /// Takes note of a statement that the client has prepared and no server knows yet: the proxy
    /// answers its Parse, of which this is the whole frame.
    ///
    /// # Errors
    /// 42P05 for a name that is taken.
    pub fn define(
        &mut self,
        frame: &[u8],
        settings: &Arc<Settings>,
        interner: &Interner,
        backslashes: bool,
    ) -> Result<()> {
        let Some((name, definition)) = frame.get(HEADER..).and_then(split_cstr) else {
            return Ok(());
        };
        if name.is_empty() {
            let text = split_cstr(definition).map_or(&[][..], |(text, _)| text);
            self.replace_unnamed(Unnamed::Known(Arc::new(Parse {
                frame: frame.into(),
                effects: Effects::of(text, backslashes),
                backslashes,
            })));
            self.unnamed_is_there = false;
            return Ok(());
        }
        if self.is_taken(name) {
            let name = String::from_utf8_lossy(name);
            let message = format!("prepared statement \"{name}\" already exists");
            return Err(Error::new(Kind::DuplicatePreparedStatement, message));
        }
        let meaning = interner.meaning(settings);
        let known = Known {
            statement: interner.intern(definition, meaning, backslashes),
            since: interner.epoch(),
        };
        self.named.insert(name.into(), known);
        Ok(())
    }

    /// From here on, what is bound is looked at.
    pub fn check_binds(&mut self) {
        self.checks_binds = true;
    }

    pub fn checks_binds(&self) -> bool {
        self.checks_binds
    }

    /// Forgets a statement that only the proxy knows of.
    pub fn forget(&mut self, name: &[u8]) {
        match name.is_empty() {
            true => {
                self.replace_unnamed(Unnamed::None);
                self.unnamed_is_there = false;
            }
            false => {
                self.named.remove(name);
            }
        }
    }

    /// The text of a statement and the types of its parameters, as its Parse gave them.
    pub fn definition(&self, name: &[u8]) -> Option<(&[u8], &[u8])> {
        let definition = match name.is_empty() {
            true => {
                let Unnamed::Known(parse) = &self.unnamed else {
                    return None;
                };
                split_cstr(parse.frame.get(HEADER..)?)?.1
            }
            false => self.named.get(name)?.statement.definition(),
        };
        split_cstr(definition)
    }

    fn meaning(&mut self, target: &Target<'_>) -> u64 {
        if (target.is_meaning_open)() {
            return target.interner.private_meaning();
        }
        match &self.meaning {
            Some((settings, meaning)) if Arc::ptr_eq(settings, target.settings) => *meaning,
            _ => {
                let meaning = target.interner.meaning(target.settings);
                self.meaning = Some((target.settings.clone(), meaning));
                meaning
            }
        }
    }

    /// What a Parse defines. What SQL EXECUTE of a name gives back is settled when it is parsed,
    /// and a name is a client's own.
    fn intern(&mut self, definition: &[u8], target: &Target<'_>) -> Arc<Statement> {
        let meaning = self.meaning(target);
        let intern = |meaning| (target.interner).intern(definition, meaning, target.backslashes);
        let statement = intern(meaning);
        match in_sql::executes(&statement) {
            true => intern(target.interner.private_meaning()),
            false => statement,
        }
    }

    /// The text of the unnamed statement, as it is or as it was `before`.
    pub fn unnamed_text<'a>(&'a self, before: Option<&'a Unnamed>) -> Option<&'a [u8]> {
        let Unnamed::Known(parse) = before.unwrap_or(&self.unnamed) else {
            return None;
        };
        parse.text()
    }

    /// The statement of this name, as it is; the one without a name has the empty one.
    pub fn ran(&self, name: &[u8]) -> Option<Ran> {
        match (name, &self.unnamed) {
            (b"", Unnamed::Known(parse)) => Some(Ran::Unnamed(parse.clone())),
            (b"", _) => None,
            _ => {
                let known = self.named.get(name)?;
                Some(Ran::Statement(known.statement.clone()))
            }
        }
    }

    /// Whether only the connection at hand has what the client will bind.
    pub fn awaits_bind(&self) -> bool {
        self.unnamed_awaits
    }

    /// Where the unnamed statement has to be parsed anew, it is read as the server reads it now.
    fn read_unnamed_again(&mut self, backslashes: bool) {
        if let Unnamed::Known(parse) = &self.unnamed
            && !self.unnamed_is_there
            && parse.backslashes != backslashes
        {
            let text = self.unnamed_text(None).unwrap_or_default();
            self.unnamed = Unnamed::Known(Arc::new(Parse {
                frame: parse.frame.clone(),
                effects: Effects::of(text, backslashes),
                backslashes,
            }));
        }
    }

    fn replace_unnamed(&mut self, with: Unnamed) -> Undo {
        self.unnamed_awaits = false;
        let was_there = std::mem::replace(&mut self.unnamed_is_there, true);
        let before = match std::mem::replace(&mut self.unnamed, with) {
            // A pipeline holds one for each Parse in it.
            Unnamed::Known(parse) if parse.frame.len() > MAX_UNDONE => {
                Unnamed::TooLong(parse.effects.clone().into())
            }
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
                target.ledger.push(Owed::Bind(Portal::Named, None));
                return Ok(Rewritten::Consumed(0));
            }
            return match body.len() > MAX_COLLECTED {
                true => Err(too_long_names()),
                false => Ok(Rewritten::NeedMore),
            };
        };
        let known = self.known_on(statement, target);
        let effects = match &known {
            Some((_, known)) => Some(&known.statement.effects),
            None if statement.is_empty() => self.unnamed.effects(),
            None => self.effects_of_prepared(statement),
        };
        if let Some(effects) = effects {
            if !target.owns_sequences && asks_for_foreign_sequence(effects) {
                return Ok(Rewritten::ForeignSequence);
            }
            let (locks, limits) = target.locks;
            if let Err(error) = locks.check(effects, limits) {
                return Ok(Rewritten::Refused(error));
            }
            if must_wait_to_name(effects, target) {
                return Ok(Rewritten::Waits);
            }
            target.effects.add(effects);
        }
        self.unnamed_awaits &= !statement.is_empty();
        let uses = std::mem::take(&mut target.effects.uses);
        self.lend(&uses, true, target);
        target.effects.uses = uses;
        let known = self.provide(statement, known, target);
        target.obscure = !portal.is_empty() || (known.is_none() && !statement.is_empty());
        let bound = Portal::named(portal);
        if known.is_none() && !statement.is_empty() {
            target.ledger.count_passed(false);
        }
        target.ledger.push(Owed::Bind(bound, known.clone()));
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

    /// A Parse of a named statement that is too long to be held: only the connection at hand has
    /// it, by the client's own name, and the client keeps that connection.
    fn long_parse(&mut self, body: &[u8], target: &mut Target<'_>) -> Result<Rewritten> {
        let Some((name, _)) = split_cstr(body) else {
            return Ok(Rewritten::NeedMore);
        };
        if self.named.contains_key(name) || is_ours(name) {
            return Err(Error::new(
                Kind::ProgramLimitExceeded,
                format!("prepared statements of this name are limited to {MAX_COLLECTED} bytes"),
            ));
        }
        target.pins = true;
        target.ledger.count_passed(true);
        target.ledger.push(Owed::Parse(None, Undo::Nothing));
        Ok(Rewritten::Consumed(0))
    }

    /// Sees to it that the statement the client calls `name`, which is `known` by it, is on the
    /// server connection. None: it is the unnamed one, or the client has none of that name, and the
    /// server will say so.
    fn provide(
        &mut self,
        name: &[u8],
        known: Option<(Name, Known)>,
        target: &mut Target<'_>,
    ) -> Option<(Name, Arc<Statement>)> {
        if name.is_empty() {
            if std::mem::replace(&mut self.unnamed_is_there, true) {
                return None;
            }
            if let Unnamed::Known(parse) = &self.unnamed {
                let parse = parse.clone();
                self.lend(&parse.effects.uses, true, target);
                target.outbox.extend(&parse.frame);
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
        let Some((name, known)) = known else {
            self.close_copy(name, target);
            return is_ours(name).then(|| (name.into(), Statement::of_nobody()));
        };
        if self.is_copy_used(&name) {
            return None;
        }
        self.lend(&known.statement.effects.uses, true, target);
        ensure_parsed(&known, target);
        Some((name, known.statement))
    }

    /// As [`known`](Self::known). A statement that has to be parsed on the connection means there
    /// what the client's settings say now. If it meant something else before, it becomes another
    /// statement: those who share it must find it as they know it, and what it does must be what is
    /// known of it.
    fn known_on(&mut self, name: &[u8], target: &mut Target<'_>) -> Option<(Name, Known)> {
        let (name, mut known) = self.known(name)?;
        let has = target.parsed.touch(&known.statement, known.since);
        if has != Has::Yes && !known.statement.is_private(target.backslashes) {
            let meaning = self.meaning(target);
            let statement = &known.statement;
            if !statement.means(meaning, target.backslashes) {
                known.statement = statement.intern_as(target.interner, meaning, target.backslashes);
                self.named.insert(name.clone(), known.clone());
            }
        }
        Some((name, known))
    }

    /// None for the unnamed one.
    fn known(&self, name: &[u8]) -> Option<(Name, Known)> {
        if name.is_empty() {
            return None;
        }
        let (name, known) = self.named.get_key_value(name)?;
        Some((name.clone(), known.clone()))
    }
}

fn ensure_parsed(known: &Known, target: &mut Target<'_>) {
    let has = target.parsed.touch(&known.statement, known.since);
    if has != Has::Yes {
        let owed = Owed::SwallowedParse(Some(known.statement.clone()));
        parse_on(known, has, target, owed);
    }
}

/// Whether a text names statements that may not be what they are taken for, until what was sent is
/// answered.
fn must_wait_to_name(effects: &Effects, target: &Target<'_>) -> bool {
    !effects.uses.is_empty() && target.ledger.owes_ready()
}

/// Whether the server connection has the statement and would parse it again. If that is open, or
/// its transaction has failed, the server is to say itself what comes of a Parse.
fn surely_has(known: &Known, target: &mut Target<'_>) -> Has {
    let has = target.parsed.touch(&known.statement, known.since);
    if has == Has::Yes && !target.ledger.is_healthy() {
        target.parsed.doubt(&known.statement);
        return Has::No;
    }
    has
}

/// Parses a statement on the connection, which has it not, or as it was.
fn parse_on(known: &Known, has: Has, target: &mut Target<'_>, owed: Owed) {
    let statement = &known.statement;
    let own = has == Has::Outdated || target.parsed.is_doubtful();
    if own {
        target.parsed.forget(statement);
    }
    let evicted = target.parsed.insert(statement, target.interner.epoch());
    for closed in [evicted, own.then(|| statement.clone())]
        .into_iter()
        .flatten()
    {
        target.outbox.extend(&closed.close_frame());
        target.ledger.push(Owed::SwallowedClose(Some(closed)));
    }
    target.outbox.extend(&statement.parse_frame());
    target.ledger.push(owed);
}

/// Whether a text asks for sequence values and makes none itself before.
pub fn asks_for_foreign_sequence(effects: &Effects) -> bool {
    effects.what.contains(What::READS_SEQUENCE) && !effects.what.contains(What::ADVANCES_SEQUENCE)
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
        /// What the last frame that was sent may do.
        effects: Effects,
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
                is_meaning_open: &|| false,
                backslashes: false,
                owns_sequences: true,
                locks: (&Locks::default(), &TransactionLimits::NONE),
                guard: None,
                effects: Effects::default(),
                pins: false,
                obscure: false,
            };
            let Rewritten::Consumed(n) = self
                .statements
                .rewrite(FrontendTag(tag), &frame, frame.len(), &mut target)
                .unwrap()
            else {
                panic!("whole frame")
            };
            self.effects = target.effects;
            outbox.extend(&frame[n..]);
            frames(outbox.bytes())
        }

        /// What the server answers, tag by tag.
        fn answer(&mut self, tags: &[u8]) {
            for &tag in tags {
                self.ledger.reply(BackendTag(tag), b'I');
            }
            let failed = self.ledger.take_failed();
            self.statements
                .undo(failed, &mut self.parsed, &mut self.ledger);
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
        assert_eq!(f.send(b'C', b"Ss1\0"), "C(Ss1~)");
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
    fn an_unnamed_statement_that_is_brought_back_does_what_it_did() {
        let mut f = Fixture::default();
        f.send(b'P', b"\0LISTEN a\0\0\0");
        f.ledger.push(Owed::Sync);
        f.answer(b"1Z");
        f.send(b'B', b"\0nobody\0\0\0\0\0\0\0");
        f.send(b'P', b"\0SELECT 1\0\0\0");
        f.ledger.push(Owed::Sync);
        f.answer(b"EZ");
        f.send(b'B', b"\0\0\0\0\0\0\0\0");
        assert_eq!(f.effects.what, What::LISTEN);
        f.send(b'P', b"\0LISTEN a\0\0\0");
        f.send(b'B', b"\0\0\0\0\0\0\0\0");
        assert_eq!(f.effects.what, What::LISTEN);
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
        f.ledger.reply(BackendTag::ERROR_RESPONSE, 0);
        f.ledger.reply(BackendTag::READY_FOR_QUERY, b'I');
        assert!(!waits(&f, FrontendTag::BIND, b"\0s1\0"));
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
}
