//! Server to client: what passes, and what is noted of it.

use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use crate::audit::Event;
use crate::backend::binding::{Context, is_reported};
use crate::backend::connection::{Parameters, ServerConnection, TooMuchReported};
use crate::backend::switch::{self, Progress};
use crate::client::{ClientHandle, Reason};
use crate::error::{Error, Kind, Result};
use crate::frontend::attempts;
use crate::frontend::ledger::{Current, Reply};
use crate::frontend::owed::{NO_PORTAL, Owed};
use crate::frontend::standing::timed_out;
use crate::frontend::statements::translate;
use crate::protocol::executed::Executed;
use crate::protocol::frame::{
    BackendTag, FrontendTag, HEADER, Header, frame, split_cstr, split_pair,
};
use crate::protocol::reply::{self, Replies};

use super::notices::names_anothers_parameter;
use super::{ClientSide, End, Relay, frame_size};

/// Longest message of a server that is collected to be looked at, in bytes.
const MAX_COLLECTED: usize = 1 << 20;
/// The severity and the SQLSTATE of an ErrorResponse or NoticeResponse, which come first, are
/// within this many bytes of its frame.
const SEVERITY_WITHIN: usize = 64;
/// Errors up to this size are searched for names of the proxy's own.
const MAX_TRANSLATED: usize = 64 * 1024;
/// The parameter by which applications say who they are.
const APPLICATION_NAME: &str = "application_name";

impl Relay<'_> {
    /// Reads once and passes what came. `Ok(false)`: the server has closed.
    pub(super) fn poll_server(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<bool>> {
        let ServerConnection { inbox, stream, .. } = &mut *self.server;
        self.now = None;
        match inbox.poll_fill(cx, stream) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(Ok(false)),
            Poll::Ready(Ok(_)) => {
                let before = self.client.outbox.len();
                let passed = self.pass_server_frames();
                self.end_timing();
                self.server.inbox.trim();
                let sent = self.client.outbox.len() - before;
                self.metrics.sent.add(sent as u64);
                if let Some(throttle) = &mut self.client.throttle {
                    self.is_slowed = throttle.note_received(sent);
                }
                self.metrics.queries.add(std::mem::take(&mut self.queries));
                self.count_executed();
                if let Some(named) = self.ledger.take_counts() {
                    self.metrics.client_parses.add(named.client_parses.into());
                    self.metrics.server_parses.add(named.server_parses.into());
                    self.metrics.binds.add(named.binds.into());
                }
                Poll::Ready(passed.map(|()| true))
            }
        }
    }

    /// Other workers write these counters, too: once for all that one read has brought.
    fn count_executed(&mut self) {
        let Executed {
            statements, rows, ..
        } = &mut self.executed;
        if *statements > 0 {
            self.metrics.executed.add(std::mem::take(statements));
        }
        if *rows > 0 {
            self.metrics.rows.add(std::mem::take(rows));
        }
    }

    #[expect(
        clippy::too_many_lines,
        reason = "one pass over what has come, with an arm for each message"
    )]
    fn pass_server_frames(&mut self) -> Result<()> {
        // `run` bytes at the front of the inbox pass as they are.
        let mut run = 0;
        loop {
            let inbox = &self.server.inbox;
            if self.server_rest > 0 {
                let n = self.server_rest.min(inbox.len() - run);
                self.server_rest -= n;
                match self.swallows_rest {
                    true => self.server.inbox.consume(n),
                    false => run += n,
                }
            }
            if self.server_rest > 0 {
                break;
            }
            if self.server.switch.is_some() {
                match self.note_switch()? {
                    true => continue,
                    false => break,
                }
            }
            if self.inquiry.is_pending() {
                self.server.inbox.move_to(&mut self.client.outbox, run);
                run = 0;
                match self.note_inquiry()? {
                    Some(true) => continue,
                    Some(false) => {}
                    None => break,
                }
            }
            while let Some(fake) = self.ledger.take_fake() {
                self.server.inbox.move_to(&mut self.client.outbox, run);
                run = 0;
                self.client.outbox.extend(fake);
            }
            let bytes = &self.server.inbox.bytes()[run..];
            let Some(header) = Header::read(bytes) else {
                break;
            };
            let Some(size) = header.backend_size() else {
                return Err(self.broken(run, lost("impossible message length")));
            };
            let tag = BackendTag(header.tag);
            let needed = match tag {
                BackendTag::READY_FOR_QUERY
                | BackendTag::PARAMETER_STATUS
                | BackendTag::COMMAND_COMPLETE
                | BackendTag::PARSE_COMPLETE
                | BackendTag::CLOSE_COMPLETE => size,
                BackendTag::ERROR_RESPONSE
                | BackendTag::NOTICE_RESPONSE
                | BackendTag::NOTIFICATION_RESPONSE
                    if size <= MAX_TRANSLATED =>
                {
                    size
                }
                BackendTag::ERROR_RESPONSE | BackendTag::NOTICE_RESPONSE => {
                    size.min(SEVERITY_WITHIN)
                }
                _ => HEADER,
            };
            if bytes.len() < needed {
                if needed > MAX_COLLECTED {
                    return Err(self.broken(run, lost("a message is too long to be looked at")));
                }
                break;
            }
            if std::mem::take(&mut self.just_switched)
                && tag == BackendTag::ERROR_RESPONSE
                && self.ledger.ends_with_query()
                && let Some(error) = switch::canceled(&bytes[HEADER..size.min(bytes.len())])
            {
                // It may have come between the end of the change and the client's message, which is
                // skipped then and never answered (PostgreSQL looks for cancels when it logs
                // durations). Either way it is canceled.
                self.server.inbox.move_to(&mut self.client.outbox, run);
                self.give_up_switch(&error);
                return Ok(());
            }
            // Before the reply is noted: then the name may be gone.
            let translated = match tag {
                BackendTag::ERROR_RESPONSE if bytes.len() >= size => {
                    let refusal = self.ledger.refusal().map(|error| error.to_vec());
                    let refusal = match self.ledger.has_no_portal() {
                        true => Some(without(&bytes[HEADER..size], NO_PORTAL)),
                        false => refusal,
                    };
                    let refusal = refusal.or_else(|| self.timed_out(&bytes[HEADER..size]));
                    refusal.or_else(|| {
                        let renamed = self.ledger.renamed();
                        renamed.and_then(|(name, statement)| {
                            translate(&bytes[HEADER..size], name, statement)
                        })
                    })
                }
                BackendTag::NOTIFICATION_RESPONSE
                    if bytes.len() >= size && self.client.statements.is_some() =>
                {
                    self.as_own(&bytes[HEADER..size])
                }
                _ => None,
            };
            if tag == BackendTag::ERROR_RESPONSE {
                self.audit_error(&bytes[HEADER..size.min(bytes.len())]);
            }
            if self.slow.is_timing() {
                self.time_reply(tag);
            }
            let reply = match tag {
                BackendTag::DATA_ROW | BackendTag::COPY_DATA => match self.ledger.owes_rows() {
                    true => {
                        self.executed.row();
                        Reply::Forward
                    }
                    false => Reply::Unfit,
                },
                BackendTag::NOTICE_RESPONSE => self.pass_notice(run, size),
                _ => match self.note_reply(tag, run, size) {
                    Ok(reply) => reply,
                    Err(error) => return Err(self.broken(run, error)),
                },
            };
            if reply == Reply::Unfit {
                return Err(self.broken(run, unfit(tag)));
            }
            if let Some(body) = translated {
                self.server.inbox.move_to(&mut self.client.outbox, run);
                self.server.inbox.consume(size);
                run = 0;
                self.client.outbox.extend(&frame(tag.0, &[&body]));
                continue;
            }
            match reply {
                Reply::Unfit => {}
                Reply::Forward => {
                    let whole = size.min(self.server.inbox.len() - run);
                    run += whole;
                    self.server_rest = size - whole;
                    self.swallows_rest = false;
                }
                Reply::Swallow => {
                    self.server.inbox.move_to(&mut self.client.outbox, run);
                    run = 0;
                    let whole = size.min(self.server.inbox.len());
                    self.server.inbox.consume(whole);
                    self.server_rest = size - whole;
                    self.swallows_rest = true;
                }
            }
        }
        self.server.inbox.move_to(&mut self.client.outbox, run);
        Ok(())
    }

    /// The server is not heard any more, for `error`; what it has said before, `run` bytes of its
    /// inbox, is for the client.
    fn broken(&mut self, run: usize, error: Error) -> Error {
        self.server.inbox.move_to(&mut self.client.outbox, run);
        error
    }

    /// Takes an answer to the change of tenant ahead of the client's bytes; the server's inbox
    /// begins with it. False: it is not whole, or the change has failed.
    fn note_switch(&mut self) -> Result<bool> {
        let Some((tag, size)) = self.server.whole()? else {
            return Ok(false);
        };
        if tag == BackendTag::PARAMETER_STATUS {
            let body = self.server.inbox.bytes()[HEADER..size].to_vec();
            self.server.note_parameter(&body)?;
        }
        let ServerConnection { inbox, switch, .. } = &mut *self.server;
        let Some(pending) = switch else {
            return Err(lost("an answer to no change of tenant"));
        };
        let progress = pending.take(tag, &inbox.bytes()[HEADER..size]);
        inbox.consume(size);
        match progress {
            Progress::Pending => {}
            Progress::Done => {
                self.server.context = Context::Bound(pending.binding().clone());
                self.server.switch = None;
                self.just_switched = true;
            }
            Progress::Failed(error) => {
                self.give_up_switch(&error);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Nothing of the client was run, and nothing will be.
    pub(super) fn give_up_switch(&mut self, error: &Error) {
        tracing::warn!(tenant = %self.handle.tenant, user = %self.handle.user, client = self.handle.id, %error,
            "a server connection could not change hands");
        self.metrics.errors.add(1);
        let answered = self.ledger.give_up();
        self.undo_failed();
        self.client.state.give_up();
        let mut replies = Replies::new();
        replies.error(error);
        if answered {
            replies.ready_for(self.client.not_served());
        }
        self.client.outbox.extend(replies.bytes());
        self.not_switched = Some(End::NotSwitched {
            answered,
            stray: self.client_rest,
        });
    }

    /// A notification that the client sent itself comes from the process that it knows as its own:
    /// drivers tell by that which are their own.
    fn as_own(&self, notification: &[u8]) -> Option<Vec<u8>> {
        let (sender, rest) = notification.split_first_chunk::<4>()?;
        let is_own = i32::from_be_bytes(*sender) == self.server.fence().pid();
        is_own.then(|| [&self.handle.key().pid.to_be_bytes(), rest].concat())
    }

    /// Whether a NoticeResponse whose frame starts at `at` in the server's inbox is for the client.
    fn pass_notice(&self, at: usize, size: usize) -> Reply {
        let bytes = &self.server.inbox.bytes()[at..];
        let body = &bytes[HEADER..size.min(bytes.len())];
        let ClientSide {
            settings, state, ..
        } = &*self.client;
        match names_anothers_parameter(body, settings, state) {
            true => Reply::Swallow,
            false => Reply::Forward,
        }
    }

    /// Takes note of a reply whose frame starts at `at` in the server's inbox.
    ///
    /// # Errors
    /// 08006: the server reports more parameters than are kept.
    #[expect(
        clippy::too_many_lines,
        reason = "one pass over what has come, with an arm for each message"
    )]
    fn note_reply(&mut self, tag: BackendTag, at: usize, size: usize) -> Result<Reply> {
        let is_done_with = tag == BackendTag::ERROR_RESPONSE && self.is_done_with();
        let ServerConnection {
            inbox,
            outbox,
            context,
            parameters,
            parsed,
            sealed,
            sequences_of,
            ..
        } = &mut *self.server;
        let bytes = &inbox.bytes()[at..];
        match tag {
            BackendTag::READY_FOR_QUERY => {
                let status = bytes.get(HEADER).copied().unwrap_or_default();
                self.queries += 1;
                if let Some(choosing) = &mut self.client.choosing {
                    choosing.ready(status);
                }
                let reply = self.ledger.reply(tag, status);
                if status == b'I' {
                    self.locks.end(self.ledger.is_empty());
                }
                self.names.end();
                if self.ledger.is_empty() {
                    if status == b'I' {
                        self.names.forget_portals();
                        self.slow.end_portals();
                    }
                    // Nothing that was sent can fail any more, and outside of a transaction there
                    // are no portals. In one, what was sent last stays: the console may ask what it
                    // was.
                    if status == b'I' {
                        outbox.trim();
                    }
                    self.obscure &= status != b'I';
                }
                if reply != Reply::Unfit {
                    self.note_ready(status);
                    self.enter_phase(status);
                }
                return Ok(reply);
            }
            BackendTag::COMMAND_COMPLETE => {
                let command = bytes.get(HEADER..size - 1).unwrap_or_default();
                // All that is owed to the client: the proxy's own statements are answered before.
                self.executed.complete(command);
                if let Some(choosing) = &mut self.client.choosing {
                    choosing.complete(command);
                }
                if let Err(error) = self.locks.complete(command, &self.client.limits) {
                    self.refused.get_or_insert(error);
                }
                match command {
                    b"SET" | b"RESET" => context.make_stale(),
                    b"ROLLBACK" => self.client.state.note_failure(),
                    b"DISCARD ALL" | b"DEALLOCATE ALL" => {
                        // Behind it, and the Sync of its batch, others may have been prepared.
                        match self.ledger.len() <= 2 {
                            true => parsed.clear(),
                            false => parsed.doubt_all(),
                        }
                        self.client.state.unpin_statements();
                        if let Some(statements) = &mut self.client.statements {
                            statements.clear();
                        }
                        self.client.texts = None;
                        if command == b"DISCARD ALL" {
                            *sequences_of = None;
                            // Not clean: something may have been pipelined behind it.
                            context.make_stale();
                            self.client.state.discard();
                        }
                    }
                    b"DISCARD SEQUENCES" => {
                        *sequences_of = None;
                        context.make_stale();
                    }
                    b"DEALLOCATE" => self.note_deallocated(),
                    b"PREPARE" => self.note_prepared(),
                    _ => {}
                }
            }
            BackendTag::EMPTY_QUERY_RESPONSE | BackendTag::PORTAL_SUSPENDED => {
                if let Some(choosing) = &mut self.client.choosing {
                    choosing.complete(b"");
                }
                if tag == BackendTag::PORTAL_SUSPENDED {
                    self.executed.suspend();
                }
            }
            BackendTag::COPY_IN_RESPONSE
            | BackendTag::COPY_OUT_RESPONSE
            | BackendTag::COPY_BOTH_RESPONSE => self.handle.note_copy(),
            BackendTag::CLOSE_COMPLETE => self.note_closed(),
            BackendTag::PARSE_COMPLETE => self.note_redefined(),
            BackendTag::PARAMETER_STATUS => {
                if let Some((name, value)) = split_pair(&bytes[HEADER..size]) {
                    let known = |told: &Parameters| told.get(name).is_some_and(|v| v == value);
                    if self.switches && known(parameters) && known(&self.client.reported) {
                        return Ok(Reply::Swallow);
                    }
                    note_parameter(self.handle, self.client, context, parameters, name, value)
                        .map_err(lost)?;
                }
            }
            BackendTag::ERROR_RESPONSE => {
                self.metrics.errors.add(1);
                self.executed.fail();
                let body = &bytes[HEADER..size.min(bytes.len())];
                self.metrics.sqlstates.count(body);
                let fatal = is_fatal(body);
                if fatal && is_done_with {
                    self.outlived = true;
                    return Ok(Reply::Swallow);
                }
                self.client.state.note_failure();
                if let Some(choosing) = &mut self.client.choosing {
                    choosing.fail();
                }
                self.fatal_seen |= fatal;
                if sealed.may_be_refused_by(body) {
                    context.make_stale();
                }
                let of_ours = self.ledger.renamed().is_some();
                if is_outdated_plan(body) || (of_ours && is_unknown_statement(body)) {
                    parsed.outdate();
                }
                let skips = self.ledger.would_skip_query();
                self.names.end();
                let reply = match self.ledger.reply(tag, 0) {
                    Reply::Unfit if fatal => Reply::Forward,
                    reply => reply,
                };
                self.undo_failed();
                if skips {
                    // So it ends like the Query.
                    self.server.outbox.extend(reply::SYNC);
                    self.ledger.push(Owed::Sync);
                }
                return Ok(reply);
            }
            _ => {}
        }
        Ok(self.ledger.reply(tag, 0))
    }

    /// In place of an error by which a statement was cancelled since it took too long.
    fn timed_out(&self, body: &[u8]) -> Option<Vec<u8>> {
        let is_cancelled = has_field(body, b"C57014\0") && self.handle.take_timeout();
        is_cancelled.then(|| {
            let mut replies = Replies::new();
            replies.error(&timed_out(Reason::Statement));
            replies.bytes()[HEADER..].to_vec()
        })
    }

    /// Whether the error, of which `body` is the start at least, is for the audit. Before its reply
    /// is noted.
    fn audit_error(&self, body: &[u8]) {
        let Some((kind, sqlstate)) = attempts::of_server_error(body) else {
            return;
        };
        self.client.audit.record(&Event {
            kind,
            who: attempts::who(self.handle, self.metrics),
            sqlstate: Some(&sqlstate),
            detail: None,
            statement: self.current_text(),
        });
    }

    /// The text that the server's next error is about, where it is at hand: nothing is kept for
    /// this.
    pub(super) fn current_text(&self) -> Option<&[u8]> {
        match self.ledger.current(self.obscure) {
            Current::Query => self.last_query(),
            Current::Statement(statement) => Some(statement.text()),
            Current::Text(text) => Some(text),
            Current::Unnamed(before) => self.client.statements.as_ref()?.unnamed_text(before),
            Current::Unknown => None,
        }
    }

    /// The text of what is run, or else of what was run last, where it is at hand.
    pub(super) fn last_text(&self) -> Option<&[u8]> {
        let current = self.current_text().or_else(|| self.last_query());
        current.or_else(|| match self.ledger.last_bound(self.obscure) {
            Current::Statement(statement) => Some(statement.text()),
            Current::Unnamed(before) => self.client.statements.as_ref()?.unnamed_text(before),
            Current::Query | Current::Text(_) | Current::Unknown => None,
        })
    }

    /// The text of the last Query, if it was sent last, and in one piece.
    fn last_query(&self) -> Option<&[u8]> {
        let sent = self.server.outbox.last_sent();
        let frame = &sent[sent.len().checked_sub(self.query_size)?..];
        let header = Header::read(frame)?;
        let is_query = FrontendTag(header.tag) == FrontendTag::QUERY;
        (is_query && frame_size(header).ok()? == frame.len())
            .then(|| split_cstr(&frame[HEADER..]).map(|(text, _)| text))?
    }
}

/// Whether an ErrorResponse says that a statement means something else since the schema changed
/// (RevalidateCachedQuery in plancache.c).
fn is_outdated_plan(body: &[u8]) -> bool {
    has_field(body, b"C0A000\0") && has_field(body, b"RRevalidateCachedQuery\0")
}

/// Whether an ErrorResponse says that there is no such statement: something that nobody saw may
/// have taken it away.
fn is_unknown_statement(body: &[u8]) -> bool {
    has_field(body, b"C26000\0")
}

fn has_field(body: &[u8], field: &[u8]) -> bool {
    memchr::memmem::find(body, field).is_some()
}

/// An error without a name in it.
fn without(error: &[u8], name: &[u8]) -> Vec<u8> {
    match memchr::memmem::find(error, name) {
        Some(at) => [&error[..at], &error[at + name.len()..]].concat(),
        None => error.to_vec(),
    }
}

/// A reply that fits nothing that is owed: those behind it would be taken for answers to what they
/// do not answer.
fn unfit(tag: BackendTag) -> Error {
    lost(format_args!(
        "the server says what nobody is owed (message type \"{}\")",
        tag.0.escape_ascii()
    ))
}

pub(super) fn lost(cause: impl std::fmt::Display) -> Error {
    Error::new(Kind::ConnectionFailure, "the server connection was lost").caused_by(cause)
}

/// A parameter changed while the client held the connection: the client is told by the frame
/// itself, and what it can set follows it from now on.
fn note_parameter(
    handle: &ClientHandle,
    client: &mut ClientSide,
    context: &mut Context,
    parameters: &mut Arc<Parameters>,
    name: &str,
    value: &str,
) -> Result<(), TooMuchReported> {
    Arc::make_mut(parameters).insert(name, value)?;
    Arc::make_mut(&mut client.reported).insert(name, value)?;
    if name == APPLICATION_NAME {
        handle.set_application(Some(value.into()));
    }
    // What newer versions report besides (search_path) is asked for where a text has set it: what
    // it returns to behind a transaction is the place's own, and would be wrong in another place.
    let name = name.to_ascii_lowercase();
    if is_reported(&name) {
        Arc::make_mut(&mut client.settings).insert(name, value.to_owned());
        if let Context::Bound(binding) = context {
            binding.settings = client.settings.clone();
        }
    }
    Ok(())
}

/// Whether an ErrorResponse, of which `body` is at least the start, ends the connection: its first
/// field is the severity, its second the same in English.
fn is_fatal(body: &[u8]) -> bool {
    let severity = split_cstr(body).and_then(|(_, rest)| split_cstr(rest));
    severity.is_some_and(|(field, _)| field == b"VFATAL" || field == b"VPANIC")
}
