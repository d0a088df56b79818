//! Looking at the texts of Query and Parse, and at what a FunctionCall calls: what they may do to
//! the session, and whether they may.

use thin_vec::ThinVec;

use crate::audit::{self, Event};
use crate::backend::binding::SET_CONFIG_OID;
use crate::config::Shared;
use crate::error::{Error, Kind, Result};
use crate::frontend::attempts;
use crate::frontend::choosing::{bound_values, returned_bind, set_by_call};
use crate::frontend::ledger::UnnamedPortal;
use crate::frontend::owed::{NO_PORTAL, Owed};
use crate::frontend::statements::{Statements, asks_for_foreign_sequence, reserved};
use crate::guard::{Guard, Offence, Passed, unreadable};
use crate::protocol::frame::{FrontendTag, HEADER, frame, split_cstr};
use crate::protocol::reply::Replies;
use crate::sql::effects::uses::Use;
use crate::sql::effects::{Effects, What};
use crate::sql::finds;

use super::calls::Known;
use super::{ClientSide, Hold, Relay, foreign_sequence};

/// A Query or Parse up to this size is held until it is whole, and then looked at before it passes;
/// a longer one is looked at as it passes.
pub(super) const LOOKED_AT_WHOLE: usize = 8 * 1024;
/// The same for a client whose prepared statements a text may name: what it names must be known
/// before it passes.
const LOOKED_AT_FOR_NAMES: usize = 64 * 1024;
/// Functions that a FunctionCall may name without being suspected of anything (pg_proc.dat: `lo_*`,
/// `loread`, `lowrite`): what drivers use the message for. What they leave ends with the
/// transaction.
const LARGE_OBJECT_FUNCTIONS: [u32; 20] = [
    715, 764, 765, 767, 952, 953, 954, 955, 956, 957, 958, 964, 1004, 3170, 3171, 3172, 3457, 3458,
    3459, 3460,
];

impl Relay<'_> {
    /// Looks at the text of a Query or Parse of `size` bytes at `at` in the client's inbox, of
    /// which `here` are there.
    pub(super) fn look_at_text(
        &mut self,
        tag: FrontendTag,
        at: usize,
        here: usize,
        size: usize,
    ) -> Result<Looked> {
        let backslashes = self.backslashes();
        let body = &self.client.inbox.bytes()[at + HEADER..at + here.min(size)];
        if here < size {
            let statements = self.client.statements.as_ref();
            let most = match statements.is_some_and(Statements::has_names) {
                true => LOOKED_AT_FOR_NAMES,
                false => LOOKED_AT_WHOLE,
            };
            return Ok(match size <= most {
                true => Looked::NeedMore,
                false => Looked::Passes,
            });
        }
        // What is prepared in transaction pooling is looked at where its names are.
        let prepares = tag == FrontendTag::PARSE && self.client.statements.is_some();
        let (_, text) = name_and_text(tag, body);
        let guard = self.client.guard.as_ref();
        if prepares && guard.is_none_or(|guard| guard.passes_unread(text)) {
            return Ok(Looked::Passes);
        }
        let effects = Effects::of(text, backslashes);
        if guard.is_some_and(|guard| guard.names(&effects)) && self.return_to_own(tag, at, size) {
            return Ok(Looked::Replaced);
        }
        if matches!(self.look_up_calls(&effects), Known::NotYet) {
            return Ok(Looked::NeedMore);
        }
        let body = &self.client.inbox.bytes()[at + HEADER..at + size];
        let (name, text) = name_and_text(tag, body);
        let is_named = !name.is_empty();
        let permitted = self.permit(&effects, Some(text));
        self.end_inquiry(&effects);
        // What is prepared takes nothing before it is run.
        let permitted = permitted.and_then(|by_parameters| match prepares {
            true => Ok(by_parameters),
            false => (self.locks.check(&effects, &self.client.limits)).map(|()| by_parameters),
        });
        let permitted = permitted.and_then(|by_parameters| {
            self.note_setter(tag, at, size, by_parameters)?;
            match &self.client.setters {
                Some(setters) => setters.check_uses(&effects.uses),
                None => Ok(()),
            }
        });
        if let Err(error) = permitted {
            self.send_refused(tag, is_named, &error);
            return Ok(Looked::Answered);
        }
        if prepares {
            return Ok(Looked::Passes);
        }
        if asks_for_foreign_sequence(&effects) && !self.owns_sequences() && !self.keep {
            return self.refuse_sequence().map(|()| Looked::Refused);
        }
        if !effects.uses.is_empty() && self.client.statements.is_some() {
            return Ok(self.look_at_names(effects));
        }
        self.note_text(tag, &effects);
        Ok(Looked::Passes)
    }

    /// Takes note of a statement, a whole message of `size` bytes at `at` in the client's inbox,
    /// that sets a variable of the context by its parameters, or that is prepared in the place of
    /// one.
    ///
    /// # Errors
    /// 42501 if there are too many.
    fn note_setter(
        &mut self,
        tag: FrontendTag,
        at: usize,
        size: usize,
        by_parameters: bool,
    ) -> Result<()> {
        let is_certain = self.ledger.is_empty() && !self.ledger.is_skipping();
        let ClientSide {
            inbox,
            statements,
            setters,
            ..
        } = &mut *self.client;
        let body = &inbox.bytes()[at + HEADER..at + size];
        match (statements, split_cstr(body)) {
            (Some(statements), _) if by_parameters => statements.check_binds(),
            (None, Some((name, definition))) if tag == FrontendTag::PARSE => {
                if let Some(setters) = setters.as_mut().filter(|_| is_certain) {
                    setters.forget(name);
                }
                if by_parameters {
                    let setters = setters.get_or_insert_default();
                    return setters.note(name, definition);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes note of a Close of `size` bytes at `at` in the client's inbox.
    pub(super) fn note_close(&mut self, at: usize, here: usize, size: usize) -> Looked {
        if here < size {
            return Looked::NeedMore;
        }
        let is_certain = self.ledger.is_empty() && !self.ledger.is_skipping();
        let ClientSide { inbox, setters, .. } = &mut *self.client;
        let body = &inbox.bytes()[at + HEADER..at + size];
        if let (Some((b'S', name)), Some(setters)) = (body.split_first(), setters)
            && let Some((name, _)) = split_cstr(name)
            && is_certain
        {
            setters.forget(name);
        }
        Looked::Passes
    }

    /// A tenant's own client that returns a variable of its context to the default, returns it to
    /// what it is: the text at `at` in the client's inbox, a whole message of `size` bytes, is
    /// replaced by one that does. False: it does not.
    fn return_to_own(&mut self, tag: FrontendTag, at: usize, size: usize) -> bool {
        let Some(guard) = self
            .client
            .guard
            .as_ref()
            .filter(|_| self.client.choosing.is_none())
        else {
            return false;
        };
        let body = &self.client.inbox.bytes()[at + HEADER..at + size];
        let (name, text) = name_and_text(tag, body);
        let Some(returned) = guard.returned(text, self.backslashes()) else {
            return false;
        };
        let before = match tag {
            FrontendTag::PARSE => &body[..=name.len()],
            _ => &[],
        };
        let behind = &body[before.len() + text.len()..];
        let replaced = frame(tag.0, &[before, returned.as_bytes(), behind]);
        self.client.inbox.replace(at, size, &replaced);
        true
    }

    /// Looks at the prepared statements that a Query names.
    fn look_at_names(&mut self, mut effects: Effects) -> Looked {
        if let Some(error) = reserved(&effects.uses) {
            self.send_refused(FrontendTag::QUERY, false, &error);
            return Looked::Answered;
        }
        if self.ledger.owes_ready() {
            self.name_is_open = true;
            return Looked::NeedMore;
        }
        let uses = std::mem::take(&mut effects.uses);
        let uses = self.followed(uses);
        if let Some(statements) = &self.client.statements {
            let mut all = statements.executed(&uses);
            all.add(&effects);
            if let Err(error) = self.locks.check(&all, &self.client.limits) {
                self.send_refused(FrontendTag::QUERY, false, &error);
                return Looked::Answered;
            }
        }
        self.note_text(FrontendTag::QUERY, &effects);
        self.hold = Hold::Now;
        Looked::Names(uses)
    }

    /// Looks at which function is called by a FunctionCall of `size` bytes at `at` in the client's
    /// inbox, of which `here` are there. False: more of it is needed.
    pub(super) fn look_at_call(&mut self, at: usize, here: usize, size: usize) -> Result<Looked> {
        let body = &self.client.inbox.bytes()[at + HEADER..at + here.min(size)];
        let oid = body.first_chunk().map(|oid| u32::from_be_bytes(*oid));
        if oid.is_none() && here < size {
            return Ok(Looked::NeedMore);
        }
        let guard = self.client.guard.as_ref();
        let may_use = guard.is_none_or(|guard| guard.allows(Shared::LargeObjects));
        let is_certain = |guard: &Guard| match oid {
            Some(SET_CONFIG_OID) if here >= size => {
                let set = set_by_call(body.get(4..).unwrap_or_default());
                set.is_some_and(|(name, value)| guard.check_bound([(&*name, &*value)]).is_ok())
            }
            oid => oid != Some(SET_CONFIG_OID),
        };
        let guard = guard.filter(|guard| !(guard.allows_calls_by_oid() && is_certain(guard)));
        if may_use && oid.is_some_and(|oid| LARGE_OBJECT_FUNCTIONS.contains(&oid)) {
            return Ok(Looked::Passes);
        }
        if guard.is_some() {
            let message = "permission denied to call functions by their oid";
            let error = Error::new(Kind::InsufficientPrivilege, message);
            // It is thrown away whole, or with its client if it is long.
            if here < size && size <= LOOKED_AT_WHOLE {
                return Ok(Looked::NeedMore);
            }
            self.note_refused("function", None, &error);
            if here < size {
                return Err(error);
            }
            self.send_refused(FrontendTag::FUNCTION_CALL, true, &error);
            return Ok(Looked::Answered);
        }
        self.note_effects(&Effects {
            what: What::CONTROL | What::OPAQUE | What::STUCK,
            ..Effects::default()
        });
        self.hold = Hold::Now;
        Ok(Looked::Passes)
    }

    /// Looks at the portal that an Execute or Describe of `size` bytes at `at` in the client's
    /// inbox names, of which `here` are there. One that a failed Query has left is not for any
    /// client (see [`Ledger::unnamed_portal`]).
    ///
    /// [`Ledger::unnamed_portal`]: crate::frontend::ledger::Ledger::unnamed_portal
    pub(super) fn look_at_portal(
        &mut self,
        tag: FrontendTag,
        at: usize,
        here: usize,
        size: usize,
    ) -> Result<Looked> {
        let body = &self.client.inbox.bytes()[at + HEADER..at + here.min(size)];
        let portal = match (tag, body.split_first()) {
            (FrontendTag::EXECUTE, _) => body,
            (_, Some((b'P', name))) => name,
            (_, None) if here < size => return Ok(Looked::NeedMore),
            _ => return Ok(Looked::Passes),
        };
        match portal.first() {
            None if here < size => return Ok(Looked::NeedMore),
            Some(0) => {}
            _ => return Ok(Looked::Passes),
        }
        match self.ledger.unnamed_portal() {
            UnnamedPortal::Bound => return Ok(Looked::Passes),
            UnnamedPortal::Open => {
                self.name_is_open = true;
                return Ok(Looked::NeedMore);
            }
            UnnamedPortal::Stale => {}
        }
        if here < size {
            return match size <= LOOKED_AT_WHOLE {
                true => Ok(Looked::NeedMore),
                false => Err(Error::new(
                    Kind::ProtocolViolation,
                    "invalid message format",
                )),
            };
        }
        let kind: &[u8] = match tag {
            FrontendTag::DESCRIBE => b"P",
            _ => b"",
        };
        let rest = portal
            .get(1..size - HEADER - kind.len())
            .unwrap_or_default();
        self.refused_frames
            .extend(frame(tag.0, &[kind, NO_PORTAL, b"\0", rest]));
        self.ledger.push(Owed::NoPortal);
        self.undo_failed();
        self.heard = true;
        Ok(Looked::Answered)
    }

    /// Has the server fail in place of an extended message of `size` bytes, of which `here` are
    /// there.
    ///
    /// # Errors
    /// The same error, for a message that is too long to be thrown away whole: the client goes with
    /// it.
    pub(super) fn refuse_message(
        &mut self,
        here: usize,
        size: usize,
        error: Error,
    ) -> Result<Looked> {
        match (here < size, size <= LOOKED_AT_WHOLE) {
            (true, true) => return Ok(Looked::NeedMore),
            (true, false) => return Err(error),
            (false, _) => {}
        }
        // There is nothing of this kind to describe.
        self.send_in_place(&frame(FrontendTag::DESCRIBE.0, &[b"\0\0"]), false, &error);
        Ok(Looked::Answered)
    }

    /// Reads on in a text that passes: `n` bytes at `at` in the client's inbox.
    pub(super) fn read_text(&mut self, at: usize, n: usize) -> Result<()> {
        let Some(reader) = self.text.as_mut().filter(|reader| reader.is_reading()) else {
            return Ok(());
        };
        reader.feed(&self.client.inbox.bytes()[at..at + n]);
        if self.client_rest > 0 {
            return Ok(());
        }
        let tag = reader.tag();
        let Some(effects) = reader.finish() else {
            return Ok(());
        };
        self.permit(&effects, None)?;
        if let Some(setters) = &self.client.setters {
            setters.check_uses(&effects.uses)?;
        }
        if tag == FrontendTag::QUERY && effects.controls && self.client.choosing.is_some() {
            let message = "a text of this length cannot begin or end a transaction";
            return Err(Error::new(Kind::FeatureNotSupported, message));
        }
        if tag == FrontendTag::QUERY || self.client.statements.is_none() {
            self.locks.check(&effects, &self.client.limits)?;
        }
        if asks_for_foreign_sequence(&effects) && !self.owns_sequences() && !self.keep {
            return Err(foreign_sequence());
        }
        if let Some(error) = self
            .client
            .statements
            .as_ref()
            .and_then(|_| reserved(&effects.uses))
        {
            return Err(error);
        }
        if tag == FrontendTag::QUERY && !effects.uses.is_empty() {
            // It is too late to lend what it names of the protocol's; of SQL's own the answers
            // tell.
            self.note_executed(&effects.uses);
            self.names.begin(effects.uses.clone());
            self.hold = Hold::Now;
        }
        self.note_text(tag, &effects);
        if tag == FrontendTag::PARSE
            && let Some(statements) = &mut self.client.statements
        {
            self.client.state.note(&effects);
            statements.note_unnamed(effects);
        }
        Ok(())
    }

    /// Whether the client may run what does this. `text`: the statement, if it is at hand. True: if
    /// what it sets by its parameters is what it is.
    ///
    /// # Errors
    /// 42501 in posture guarded and up.
    pub(super) fn permit(&self, effects: &Effects, text: Option<&[u8]>) -> Result<bool> {
        let guard = self.client.guard.as_ref();
        let Some(guard) = guard.filter(|guard| !guard.passes(effects)) else {
            return Ok(false);
        };
        let choosing = self.client.choosing.as_ref().filter(|_| self.chooses);
        let chosen = choosing.map_or(&[][..], |choosing| choosing.variables());
        let checked = match text {
            Some(text) => guard.check_text(effects, text, self.backslashes(), chosen),
            None => guard.check_but(effects, chosen).map(|()| Passed::default()),
        };
        let passed = checked.map_err(|offence| {
            let kind = offence.kind;
            let error = offence.into_error();
            self.note_refused(kind, text, &error);
            error
        })?;
        self.note_for_all(&passed, text);
        self.permit_calls(effects)
            .inspect_err(|error| self.note_refused("code", text, error))?;
        Ok(passed.by_parameters)
    }

    /// Looks at what a Bind of `size` bytes at `at` in the client's inbox, of which `here` are
    /// there, sets a variable of the context to, if its statement does.
    pub(super) fn look_at_bound(&mut self, at: usize, here: usize, size: usize) -> Result<Looked> {
        let Some(guard) = &self.client.guard else {
            return Ok(Looked::Passes);
        };
        if here < size && size <= LOOKED_AT_FOR_NAMES {
            return Ok(Looked::NeedMore);
        }
        let body = &self.client.inbox.bytes()[at + HEADER..at + here.min(size)];
        let names = split_cstr(body).and_then(|(_, rest)| split_cstr(rest));
        let Some((name, bound)) = names else {
            return Ok(Looked::Passes);
        };
        let definitions: Vec<_> = match (&self.client.statements, &self.client.setters) {
            (Some(statements), _) => statements.definition(name).into_iter().collect(),
            (None, Some(setters)) => setters.named(name).filter_map(split_cstr).collect(),
            _ => Vec::new(),
        };
        for definition in definitions {
            match self.look_at_values(guard, definition, name, bound, here >= size) {
                Ok(None) => {}
                Ok(Some(returned)) => {
                    let before = &body[..body.len() - bound.len()];
                    let replaced = frame(FrontendTag::BIND.0, &[before, &returned]);
                    self.client.inbox.replace(at, size, &replaced);
                    return Ok(Looked::Replaced);
                }
                Err(offence) => {
                    let kind = offence.kind;
                    let error = offence.into_error();
                    self.note_refused(kind, None, &error);
                    return self.refuse_message(here, size, error);
                }
            }
        }
        Ok(Looked::Passes)
    }

    /// Looks at what a statement is bound to: `bound` is what is behind the names of the Bind, the
    /// whole of it if it `is_whole`. Returned is what goes in its place, if variables return to
    /// what they are.
    ///
    /// # Errors
    /// It sets a variable of the context to something else, or to what cannot be read.
    fn look_at_values(
        &self,
        guard: &Guard,
        (text, types): (&[u8], &[u8]),
        name: &[u8],
        bound: &[u8],
        is_whole: bool,
    ) -> std::result::Result<Option<Vec<u8>>, Offence> {
        let backslashes = self.backslashes();
        let chosen = self.client.choosing.as_ref().map(|c| c.variables());
        let sets = match chosen {
            // It may have chosen by parameters what it sets.
            Some(_) => text_calls(text),
            None if guard.refuses_unread() => guard.names(&Effects::of(text, backslashes)),
            None => text_calls(text),
        };
        if !sets {
            return Ok(None);
        }
        let values = bound_values(text, types, bound, name, backslashes);
        let Some(values) = values.filter(|_| is_whole) else {
            return match guard.refuses_unread() {
                true => Err(unreadable()),
                false => Ok(None),
            };
        };
        let values = values
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_deref().unwrap_or_default()));
        let Some(chosen) = chosen else {
            let own = |name: &str| guard.own(name);
            let returned = returned_bind(text, bound, &own, backslashes);
            return match returned {
                None => guard.check_bound(values).map(|_| None),
                returned => Ok(returned),
            };
        };
        // For whom it works was looked at before.
        let is_chosen = |name: &str| chosen.iter().any(|c| c.eq_ignore_ascii_case(name));
        for (name, value) in values.filter(|(name, _)| !is_chosen(name)) {
            let passed = guard.check_call(name, value)?;
            self.note_for_all(&passed, Some(text));
        }
        Ok(None)
    }

    /// An application that acts for all tenants is for the audit.
    fn note_for_all(&self, passed: &Passed, statement: Option<&[u8]>) {
        let Some(variable) = &passed.for_all else {
            return;
        };
        let who = attempts::who(self.handle, self.metrics);
        attempts::note_for_all(&self.client.audit, who, variable, statement);
    }

    /// The guard has refused something.
    pub(super) fn note_refused(&self, rule: &str, statement: Option<&[u8]>, error: &Error) {
        self.metrics.refused.add(1);
        self.client.audit.record(&Event {
            kind: audit::Kind::Guard,
            who: attempts::who(self.handle, self.metrics),
            sqlstate: Some(error.sqlstate()),
            detail: Some(rule),
            statement,
        });
    }

    /// Sends something in place of a message that the client may not send, at which the server
    /// fails as the message should: the transaction fails with it, and what the client is told
    /// comes in its turn.
    pub(super) fn send_refused(&mut self, tag: FrontendTag, is_named: bool, error: &Error) {
        const TEXT: &[u8] = b"refused by pgtenant\0";
        let parses = tag == FrontendTag::PARSE;
        let sent = match (parses, is_named) {
            (true, true) => frame(tag.0, &[b"pgtenant_refused\0", TEXT, b"\0\0"]),
            (true, false) => frame(tag.0, &[b"\0", TEXT, b"\0\0"]),
            (false, _) => frame(FrontendTag::QUERY.0, &[TEXT]),
        };
        if let Some(statements) = &mut self.client.statements
            && !is_named
        {
            statements.query();
        }
        self.send_in_place(&sent, !parses, error);
    }

    /// Sends a message at which the server fails in place of the client's, who is told `error` in
    /// its turn. `ready`: it is answered up to a ReadyForQuery.
    fn send_in_place(&mut self, sent: &[u8], ready: bool, error: &Error) {
        self.refused_frames.extend(sent);
        let mut replies = Replies::new();
        replies.error(error);
        self.ledger.push(Owed::Refused {
            ready,
            error: replies.bytes()[HEADER..].into(),
        });
        self.undo_failed();
        self.heard = true;
    }

    /// Takes note of what a statement that is sent now may do to the session.
    pub(super) fn note_effects(&mut self, effects: &Effects) {
        let what = effects.what;
        if what.intersects(What::CREATES | What::DROPS) {
            self.pool.statements.begin_epoch();
        }
        let advances = What::ADVANCES_SEQUENCE | What::WRITES | What::OPAQUE;
        if what.intersects(advances) || !effects.functions.is_empty() {
            self.server.sequences_of = Some(self.handle.id);
        }
        self.client.state.note(effects);
    }

    /// The text of a Query or Parse was read. What may change the session holds back what is sent
    /// behind it.
    fn note_text(&mut self, tag: FrontendTag, effects: &Effects) {
        let holds = effects.what.contains(What::CONTROL);
        if tag == FrontendTag::QUERY || self.client.statements.is_none() {
            self.locks.note(effects);
        }
        match tag {
            FrontendTag::QUERY => {
                self.note_effects(effects);
                if self.client.statements.is_none() && effects.what.contains(What::PREPARE) {
                    // A Bind of the protocol may run it at any time.
                    self.client.state.note_prepared(effects);
                }
                if holds {
                    self.hold = Hold::Now;
                }
            }
            _ => {
                if self.client.statements.is_none() {
                    self.client.state.note_prepared(effects);
                }
                if holds {
                    self.hold = Hold::AtSync;
                }
            }
        }
    }

    /// Whether plain strings have backslash escapes now.
    pub(super) fn backslashes(&self) -> bool {
        self.server.parameters.backslashes()
    }

    /// Whether the sequence values of this connection are nobody's or the client's own.
    pub(super) fn owns_sequences(&self) -> bool {
        self.server
            .sequences_of
            .is_none_or(|id| id == self.handle.id)
    }

    /// Sequence values that are another client's must not be told.
    ///
    /// # Errors
    /// 0A000 where the client has a transaction open, which ends with its connection.
    pub(super) fn refuse_sequence(&mut self) -> Result<()> {
        self.client.state.note_sequence_wanted();
        match self.heard {
            true => Err(foreign_sequence()),
            false => {
                self.asked_foreign = true;
                Ok(())
            }
        }
    }
}

/// What became of a look at a text.
pub(super) enum Looked {
    Passes,
    NeedMore,
    /// Another message stands in its place, and is looked at.
    Replaced,
    /// It passes, and names these prepared statements.
    Names(ThinVec<Use>),
    /// The proxy has answered it.
    Answered,
    /// The relay ends without it.
    Refused,
}

/// The name of a statement and its text, of the body of a Query or Parse.
fn name_and_text(tag: FrontendTag, body: &[u8]) -> (&[u8], &[u8]) {
    let (name, text) = match tag {
        FrontendTag::PARSE => split_cstr(body).unwrap_or_default(),
        _ => (&b""[..], body),
    };
    (name, split_cstr(text).map_or(text, |(text, _)| text))
}

pub(super) fn has_text(tag: FrontendTag) -> bool {
    matches!(tag, FrontendTag::QUERY | FrontendTag::PARSE)
}

/// Whether a text calls `set_config`, or may.
fn text_calls(text: &[u8]) -> bool {
    finds(text, b"set_config")
}
