//! Client to server: what passes, what is rewritten, and when the client is not heard.

use std::io;
use std::task::{Context as TaskContext, Poll};

use crate::backend::connection::ServerConnection;
use crate::error::{Error, Result};
use crate::frontend::choosing::bound_values;
use crate::frontend::owed::{Owed, Portal};
use crate::frontend::prepared::Undo;
use crate::frontend::statements::{Rewritten, Statements, Target};
use crate::protocol::frame::{FrontendTag, HEADER, Header, frame, split_cstr};
use crate::protocol::reply;
use crate::sql::effects::{Effects, What};

use super::choice::Heard;
use super::inspect::{Looked, has_text};
use super::naming::Executed;
use super::rates::Passage;
use super::{ClientSide, HIGH_WATER, Hold, Relay, frame_size};

/// So much of what the client says is read while it is not heard, in bytes.
const READ_AHEAD: usize = 16 * 1024;

/// Most messages owed before the client is not heard until some are answered.
const MAX_OWED: usize = 4096;

impl Relay<'_> {
    pub(super) fn poll_client(&mut self, cx: &mut TaskContext<'_>) -> Step {
        if self.refused.is_some() {
            return Step::Gone;
        }
        if self.is_deaf() {
            return self.poll_end(cx);
        }
        // A cancel that is under way was meant for what has just ended, not for what comes next.
        let between = self.ledger.is_empty() && self.client_rest == 0;
        if between && self.server.fence().poll_quiet(cx).is_pending() {
            return Step::Still;
        }
        // Bytes that came before the checkout, or were left by backpressure, go first.
        self.now = None;
        let before = self.server.outbox.len();
        let answered = self.client.outbox.len();
        if !self.client.inbox.is_empty() && self.pass_client_frames() {
            return Step::Gone;
        }
        // The proxy may have answered some of it.
        let passed = self.server.outbox.len() > before || self.client.outbox.len() > answered;
        let mut step = match passed {
            true => Step::Moved,
            false => Step::Still,
        };
        if !passed && !self.is_deaf() {
            let ClientSide { inbox, stream, .. } = &mut *self.client;
            match inbox.poll_fill(cx, stream) {
                Poll::Pending => {}
                Poll::Ready(Ok(0) | Err(_)) => return Step::Gone,
                Poll::Ready(Ok(_)) => {
                    step = Step::Moved;
                    if self.pass_client_frames() {
                        return Step::Gone;
                    }
                }
            }
        }
        let received = self.server.outbox.len() - before;
        if received > 0 {
            self.metrics.received.add(received as u64);
        }
        self.client.inbox.trim();
        step
    }

    /// Whether the client has gone, while it is not heard. What it says now waits.
    fn poll_end(&mut self, cx: &mut TaskContext<'_>) -> Step {
        let ClientSide { inbox, stream, .. } = &mut *self.client;
        while inbox.len() < READ_AHEAD {
            match inbox.poll_fill(cx, stream) {
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(_) => {
                    self.left_words = !inbox.is_empty();
                    return Step::Gone;
                }
                Poll::Pending => break,
            }
        }
        let next = Header::read(inbox.bytes()).filter(|_| self.client_rest == 0);
        match next.is_some_and(|header| FrontendTag(header.tag) == FrontendTag::TERMINATE) {
            true => Step::Gone,
            false => Step::Still,
        }
    }

    /// After the client has gone: whether something of its session must be seen to before what
    /// waits of what it said is passed.
    pub fn has_words_for_later(&self) -> bool {
        self.left_words && self.is_clean() && self.has_news()
    }

    /// After the client has gone: passes what waits of what it said before, as far as it can be
    /// now.
    pub(super) fn pass_left_words(&mut self) {
        if self.left_words && !self.is_deaf() {
            let is_over = self.pass_client_frames();
            let is_deaf = self.is_deaf();
            self.left_words = !is_over && is_deaf && !self.client.inbox.is_empty();
        }
    }

    /// Whether the client is not heard for now: what it sent before has not gone on, or not been
    /// answered.
    fn is_deaf(&mut self) -> bool {
        // This is asked for each message. It hardly ever waits for anything, and one look is enough
        // to see that.
        let waits = (self.hold != Hold::No)
            | self.name_is_open
            | self.names.drains()
            | self.flush_asked
            | self.choice_waits
            | self.inquiry.is_pending()
            | self.awaits_rate
            | self.server.switch.is_some();
        (waits && self.still_waits())
            || self.owes_too_much()
            || self.server.outbox.len() >= HIGH_WATER
            || self.client.outbox.len() >= HIGH_WATER
    }

    /// Whether what it waited for has not come. What has is forgotten.
    #[cold]
    fn still_waits(&mut self) -> bool {
        if self.hold == Hold::Now {
            self.hold = match (self.ledger.is_empty(), self.ledger.has_sent_end()) {
                // Part of a notification has come: what the client says waits for the rest, so
                // that the session is seen to first.
                (true, _) if self.ledger.is_clean() && !self.is_clean() => Hold::Now,
                (true, _) => Hold::No,
                (false, true) => Hold::Now,
                // A COPY has swallowed the Sync: the implicit transaction is still open, and
                // without another Sync the server may keep its answers to itself for ever.
                (false, false) => Hold::AtSync,
            };
        }
        self.name_is_open = self.name_is_open && self.ledger.owes_ready();
        if self.names.drains() {
            self.note_drained();
        }
        self.flush_asked &= self.ledger.len() >= MAX_OWED;
        self.choice_waits &= !self.ledger.is_empty() && !self.ledger.copy_is_open();
        // A COPY is not answered before its data has come.
        (self.waits() && self.client_rest == 0 && !self.ledger.copy_is_open())
            || self.choice_waits
            || self.inquiry.is_pending()
            || self.awaits_rate
            // A Sync ends what guards the change of tenant.
            || (self.server.switch.is_some() && self.client_rest == 0 && self.ledger.has_sent_end())
    }

    fn checks_binds(&self) -> bool {
        let statements = self.client.statements.as_ref();
        statements.is_some_and(Statements::checks_binds) || self.client.setters.is_some()
    }

    pub(super) fn waits(&self) -> bool {
        self.hold == Hold::Now || self.name_is_open || self.names.drains()
    }

    /// Whether so much is owed that some must be answered first; never in the middle of a message.
    fn owes_too_much(&self) -> bool {
        self.ledger.len() >= MAX_OWED && self.client_rest == 0
    }

    /// Passes what the client's inbox holds. True: it said Terminate, or what cannot be served.
    #[expect(
        clippy::too_many_lines,
        reason = "one pass over what has come, with an arm for each message"
    )]
    fn pass_client_frames(&mut self) -> bool {
        // `run` bytes at the front of the inbox pass as they are.
        let mut run = 0;
        let leaves = loop {
            let inbox = &self.client.inbox;
            if self.client_rest > 0 {
                let n = self.client_rest.min(inbox.len() - run);
                self.client_rest -= n;
                if let Err(error) = self.read_text(run, n) {
                    // The end of the message never goes on: the server does not run it.
                    self.client_rest += n;
                    break self.refuse(error);
                }
                run += n;
            }
            let inbox = &self.client.inbox;
            let bytes = &inbox.bytes()[run..];
            let here = bytes.len();
            let Some(header) = Header::read(bytes).filter(|_| self.client_rest == 0) else {
                break false;
            };
            if self.server.outbox.len() + run >= HIGH_WATER || self.is_deaf() {
                break false;
            }
            let size = match frame_size(header) {
                Ok(size) => size,
                Err(error) => break self.refuse(error),
            };
            let tag = FrontendTag(header.tag);
            if tag == FrontendTag::TERMINATE {
                break true;
            }
            if self.client.throttle.is_some() {
                match self.pay(tag, here, size) {
                    Passage::Open => {}
                    Passage::Closed => break false,
                    Passage::Refused => {
                        self.client.inbox.move_to(&mut self.server.outbox, run);
                        run = 0;
                        self.pass_refused(tag, size);
                        continue;
                    }
                }
            }
            self.begin_message();
            let is_stepwise = self.client.choosing.is_some();
            let ends_copy = is_stepwise && self.ledger.copy_is_open();
            if (self.waits() || ends_copy) && !is_of_copy(tag) {
                // It waits for an answer that comes only when the COPY is over; the server passes
                // over this if it has failed already.
                self.client.inbox.move_to(&mut self.server.outbox, run);
                run = 0;
                self.server
                    .outbox
                    .extend(&frame(FrontendTag::COPY_FAIL.0, &[b"unexpected message\0"]));
                self.ledger.push(Owed::CopyEnd);
                // What the COPY has left of the transaction is known then.
                self.choice_waits = is_stepwise;
                break false;
            }
            if is_stepwise {
                match self.look_at_choice(tag, run, here, size) {
                    Ok(Heard::Passes) => {}
                    Ok(Heard::Waits) => break false,
                    Ok(Heard::Answered) => {
                        self.client.inbox.move_to(&mut self.server.outbox, run);
                        run = 0;
                        self.pass_refused(tag, size);
                        self.heard = true;
                        continue;
                    }
                    Err(error) => break self.refuse(error),
                }
            }
            let looked = match tag {
                FrontendTag::EXECUTE | FrontendTag::DESCRIBE => {
                    self.look_at_portal(tag, run, here, size)
                }
                _ if self.slow.holds(tag, here, size) => Ok(Looked::NeedMore),
                // Which portal it makes must be known.
                FrontendTag::BIND if here == HEADER && size > HEADER => Ok(Looked::NeedMore),
                FrontendTag::BIND if self.checks_binds() => self.look_at_bound(run, here, size),
                FrontendTag::CLOSE if self.client.setters.is_some() => {
                    Ok(self.note_close(run, here, size))
                }
                _ if !self.client.state.is_watched() => Ok(Looked::Passes),
                FrontendTag::FUNCTION_CALL => self.look_at_call(run, here, size),
                _ if has_text(tag) => self.look_at_text(tag, run, here, size),
                _ => Ok(Looked::Passes),
            };
            match looked {
                Ok(Looked::Passes) => {}
                Ok(Looked::Replaced) => continue,
                Ok(Looked::NeedMore | Looked::Refused) => break false,
                Err(error) => break self.refuse(error),
                Ok(Looked::Answered) => {
                    self.client.inbox.move_to(&mut self.server.outbox, run);
                    run = 0;
                    self.pass_refused(tag, size);
                    continue;
                }
                Ok(Looked::Names(uses)) => {
                    self.client.inbox.move_to(&mut self.server.outbox, run);
                    run = 0;
                    self.begin_names(uses);
                }
            }
            if ends_transaction(tag) && (is_stepwise || self.hold == Hold::AtSync) {
                self.hold = Hold::Now;
            }
            let mut rest = size;
            if let Some(statements) = &self.client.statements
                && names_a_statement(tag)
            {
                let body = &self.client.inbox.bytes()[run..][HEADER..];
                if statements.must_wait(tag, body, &self.ledger) {
                    self.name_is_open = true;
                    break false;
                }
                self.client.inbox.move_to(&mut self.server.outbox, run);
                run = 0;
                match self.rewrite(tag, size) {
                    Ok(Rewritten::NeedMore) => break false,
                    Ok(Rewritten::ForeignSequence) => match self.refuse_sequence() {
                        Ok(()) => break false,
                        Err(error) => break self.refuse(error),
                    },
                    Ok(Rewritten::Refused(error)) => match self.refuse_message(here, size, error) {
                        Ok(Looked::Answered) => {
                            self.pass_refused(tag, size);
                            continue;
                        }
                        Ok(_) => break false,
                        Err(error) => break self.refuse(error),
                    },
                    Ok(Rewritten::Waits) => {
                        self.name_is_open = true;
                        break false;
                    }
                    Ok(Rewritten::Consumed(n)) => {
                        self.client.inbox.consume(n);
                        rest -= n;
                    }
                    Err(error) => break self.refuse(error),
                }
            } else if tag == FrontendTag::EXECUTE
                && let Some(waits) = self.execute(&mut run, here, size)
            {
                if waits {
                    break false;
                }
            } else if let Some(owed) = self.owed(tag, run, size) {
                self.ledger.push(owed);
                self.undo_failed();
            }
            let here = rest.min(self.client.inbox.len() - run);
            self.client_rest = rest - here;
            if self.client_rest > 0 && has_text(tag) && self.client.state.is_watched() {
                let backslashes = self.backslashes();
                let reader = self.text.get_or_insert_default();
                reader.begin(tag, backslashes);
                reader.feed(&self.client.inbox.bytes()[run + HEADER..run + here]);
            }
            run += here;
            self.heard = true;
            self.note_sent();
            if let Some(throttle) = &mut self.client.throttle {
                throttle.note_sent(tag);
            }
        };
        self.client.inbox.move_to(&mut self.server.outbox, run);
        if self.choice_waits {
            self.server.outbox.extend(reply::FLUSH);
        }
        if self.owes_too_much() && !std::mem::replace(&mut self.flush_asked, true) {
            // Without a Sync the server may keep its answers to itself for long.
            self.server.outbox.extend(reply::FLUSH);
        }
        self.ask_to_drain();
        // What the proxy answers at once; never in the middle of a frame that is passing.
        while self.server_rest == 0
            && let Some(fake) = self.ledger.take_fake()
        {
            self.client.outbox.extend(fake);
        }
        leaves
    }

    /// Sends what goes in the place of a message of this kind and of `size` bytes, at the front of
    /// the client's inbox.
    fn pass_refused(&mut self, tag: FrontendTag, size: usize) {
        if let Some(throttle) = &mut self.client.throttle {
            throttle.note_sent(tag);
        }
        let sent = std::mem::take(&mut self.refused_frames);
        self.server.outbox.extend(&sent);
        self.client.inbox.consume(size);
        self.note_sent();
    }

    /// Deals with an Execute at `run` in the client's inbox, if its statement names prepared
    /// statements. True: it waits, for the rest of it or for answers.
    fn execute(&mut self, run: &mut usize, here: usize, size: usize) -> Option<bool> {
        let uses = match self.look_at_execute(*run, here, size) {
            Executed::Passes => return None,
            Executed::NeedMore => return Some(true),
            Executed::Names(uses) => uses,
        };
        if self.ledger.owes_ready() {
            self.name_is_open = true;
            return Some(true);
        }
        self.client.inbox.move_to(&mut self.server.outbox, *run);
        *run = 0;
        self.begin_names_in_batch(uses);
        if let Some(owed) = self.owed(FrontendTag::EXECUTE, 0, size) {
            self.ledger.push(owed);
        }
        Some(false)
    }

    /// Deals with a message that names a prepared statement, at the front of the client's inbox.
    fn rewrite(&mut self, tag: FrontendTag, size: usize) -> Result<Rewritten> {
        let owned = (self.backslashes(), self.owns_sequences() || self.keep);
        let Some(statements) = &mut self.client.statements else {
            return Ok(Rewritten::Consumed(0));
        };
        let (backslashes, owns_sequences) = owned;
        let ServerConnection { parsed, outbox, .. } = &mut *self.server;
        let (state, functions) = (&self.client.state, &self.pool.functions);
        let mut target = Target {
            parsed,
            outbox,
            ledger: &mut self.ledger,
            interner: &self.pool.statements,
            settings: &self.client.settings,
            is_meaning_open: &|| state.may_have_changed_meaning(functions),
            backslashes,
            owns_sequences,
            locks: (&self.locks, &self.client.limits),
            guard: self.client.guard.as_deref(),
            effects: Effects::default(),
            pins: false,
            obscure: false,
        };
        let rewritten = statements.rewrite(tag, self.client.inbox.bytes(), size, &mut target)?;
        let Target {
            mut effects,
            pins,
            obscure,
            ..
        } = target;
        self.obscure |= obscure;
        let is_sent = matches!(rewritten, Rewritten::Consumed(_));
        let awaits = statements.awaits_bind();
        if pins {
            self.client.state.pin_statement();
        }
        self.client.state.pin_unbound(awaits);
        self.undo_failed();
        self.locks.note(&effects);
        let uses = std::mem::take(&mut effects.uses);
        match tag {
            FrontendTag::BIND => {
                if effects.what.contains(What::SETS_UNKNOWN) {
                    self.know_settings(size, &mut effects);
                }
                if !uses.is_empty() {
                    self.note_executed(&uses);
                }
                self.note_portal(uses);
            }
            _ if !uses.is_empty() => self.begin_names_in_batch(uses),
            _ => {}
        }
        if !effects.is_empty() {
            if effects.what.contains(What::CONTROL) {
                self.hold = Hold::AtSync;
            }
            self.note_effects(&effects);
        }
        if is_sent {
            self.note_named(tag, 0, size);
        }
        Ok(rewritten)
    }

    /// A statement that names by its parameters what it sets is bound by a message of `size` bytes,
    /// at the front of the client's inbox: its `effects` are those of the names that are bound.
    /// Nothing changes if they cannot be read.
    #[cold]
    fn know_settings(&self, size: usize, effects: &mut Effects) {
        let body = self.client.inbox.bytes().get(HEADER..size);
        let names = body.and_then(split_cstr).map(|(_, rest)| rest);
        let Some((name, bound)) = names.and_then(split_cstr) else {
            return;
        };
        let statements = self.client.statements.as_ref();
        let Some((text, types)) = statements.and_then(|known| known.definition(name)) else {
            return;
        };
        let values = bound_values(text, types, bound, name, self.backslashes());
        let Some(values) = values.filter(|values| !values.is_empty()) else {
            return;
        };
        effects.know_settings(
            values
                .iter()
                .map(|(name, value)| (&**name, value.is_none())),
        );
    }

    /// An error takes back what a message did, and those that the server skips up to the next Sync.
    #[inline]
    pub(super) fn undo_failed(&mut self) {
        if self.ledger.has_failed() {
            self.undo_what_failed();
        }
    }

    #[cold]
    fn undo_what_failed(&mut self) {
        let failed = self.ledger.take_failed();
        if let Some(statements) = &mut self.client.statements {
            statements.undo(failed, &mut self.server.parsed, &mut self.ledger);
        }
    }

    /// What a message of `size` bytes at `at` in the client's inbox, that passes as it is, will be
    /// answered with.
    pub(super) fn owed(&mut self, tag: FrontendTag, at: usize, size: usize) -> Option<Owed> {
        self.note_named(tag, at, size);
        Some(match tag {
            FrontendTag::QUERY => {
                let last = self.client.inbox.bytes()[at..].get(size - 1);
                let is_text = last.is_none_or(|last| *last == 0);
                let statements = self.client.statements.as_mut().filter(|_| is_text);
                self.query_size = size;
                self.client.state.pin_unbound(false);
                Owed::Query(statements.map_or(Undo::Nothing, Statements::query))
            }
            FrontendTag::FUNCTION_CALL => Owed::FunctionCall,
            FrontendTag::SYNC => Owed::Sync,
            FrontendTag::PARSE => {
                let name = self.client.inbox.bytes()[at..].get(HEADER);
                if name.is_some_and(|first| *first != 0) {
                    self.ledger.count_passed(true);
                }
                Owed::Parse(None, Undo::Nothing)
            }
            FrontendTag::BIND => {
                let body = self.client.inbox.bytes()[at..].get(HEADER..)?;
                let name = split_cstr(body).and_then(|(_, rest)| rest.first());
                if name.is_some_and(|first| *first != 0) {
                    self.ledger.count_passed(false);
                }
                Owed::Bind(Portal::named(body), None)
            }
            FrontendTag::DESCRIBE => Owed::Describe(None),
            FrontendTag::EXECUTE => {
                let body = self.client.inbox.bytes()[at..].get(HEADER..);
                let body = body.unwrap_or_default();
                self.obscure |= body.first() != Some(&0);
                Owed::Execute(self.slow.executes(body))
            }
            FrontendTag::CLOSE => Owed::Close(Undo::Nothing),
            FrontendTag::COPY_DONE | FrontendTag::COPY_FAIL => Owed::CopyEnd,
            _ => return None,
        })
    }

    pub(super) fn write_server(&mut self, cx: &mut TaskContext<'_>) -> io::Result<()> {
        let ServerConnection { outbox, stream, .. } = &mut *self.server;
        if outbox.is_drained() {
            return Ok(());
        }
        match outbox.poll_drain_keeping(cx, stream) {
            Poll::Ready(Err(e)) => Err(e),
            _ => Ok(()),
        }
    }

    /// The client is not heard any more because of what it said; what it said before is still
    /// answered.
    fn refuse(&mut self, error: Error) -> bool {
        self.refused = Some(error);
        true
    }
}

pub(super) enum Step {
    Moved,
    Still,
    Gone,
}

/// Whether the server takes it while it waits for the data of a COPY.
fn is_of_copy(tag: FrontendTag) -> bool {
    matches!(
        tag,
        FrontendTag::COPY_DATA
            | FrontendTag::COPY_DONE
            | FrontendTag::COPY_FAIL
            | FrontendTag::SYNC
            | FrontendTag::FLUSH
    )
}

/// Whether the implicit transaction of extended messages ends with it.
fn ends_transaction(tag: FrontendTag) -> bool {
    matches!(
        tag,
        FrontendTag::SYNC | FrontendTag::QUERY | FrontendTag::FUNCTION_CALL
    )
}

fn names_a_statement(tag: FrontendTag) -> bool {
    matches!(
        tag,
        FrontendTag::PARSE | FrontendTag::BIND | FrontendTag::DESCRIBE | FrontendTag::CLOSE
    )
}
