//! Passing frames between a client and the server connection it holds, until a clean point.
//!
//! Frames pass as bytes. Looked at are their tags, for the [`Ledger`]; of what the server says,
//! ReadyForQuery, ParameterStatus, ErrorResponse, NotificationResponse and CommandComplete; and, in transaction pooling,
//! the names in Parse, Bind, Describe and Close. Bodies stream: no message is collected but those.
//!
//! One task polls both sockets; nothing is handed from task to task. Each side is read only while
//! the other takes what was read before, so memory is bounded.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Instant;

use tokio::io::AsyncWrite;

use crate::audit::{self, Audit, Event};
use crate::backend::connection::{Parameters, ServerConnection};
use crate::backend::context::{Context, Settings, follows_client};
use crate::backend::instance::Pool;
use crate::backend::prepared::frame;
use crate::backend::switch::{self, Progress};
use crate::client::ClientHandle;
use crate::config::Shared;
use crate::error::{Error, Kind, Result};
use crate::frontend::attempts;
use crate::frontend::ledger::{Current, Ledger, Reply};
use crate::frontend::owed::Owed;
use crate::frontend::state::SessionState;
use crate::frontend::statements::{
    Rewritten, Statements, Target, Undo, asks_for_foreign_sequence, translate,
};
use crate::frontend::text::TextReader;
use crate::metrics::TenantMetrics;
use crate::protocol::buffer::Buffer;
use crate::protocol::frame::{BackendTag, FrontendTag, HEADER, Header, split_cstr, split_pair};
use crate::protocol::reply::{self, Replies};
use crate::protocol::stream::Stream;
use crate::sql::effects::{Effects, What};
use crate::sql::guard::Guard;

/// A side is not read while the other still holds this many bytes of it.
const HIGH_WATER: usize = 64 * 1024;
/// Longest message of a server that is collected to be looked at, in bytes.
const MAX_COLLECTED: usize = 1 << 20;

/// The severity of an ErrorResponse, which comes first, is within this many bytes of its frame.
const SEVERITY_WITHIN: usize = 64;
/// Errors up to this size are searched for names of the proxy's own.
const MAX_TRANSLATED: usize = 64 * 1024;
/// A Query or Parse up to this size is held until it is whole, and then looked at before it passes; a longer one is
/// looked at as it passes.
const LOOKED_AT_WHOLE: usize = 8 * 1024;
/// Most messages owed before the client is not heard until some are answered.
const MAX_OWED: usize = 4096;
/// Functions that a FunctionCall may name without being suspected of anything (pg_proc.dat: `lo_*`, `loread`,
/// `lowrite`): what drivers use the message for. What they leave ends with the transaction.
const LARGE_OBJECT_FUNCTIONS: [u32; 20] = [
    715, 764, 765, 767, 952, 953, 954, 955, 956, 957, 958, 964, 1004, 3170, 3171, 3172, 3457, 3458,
    3459, 3460,
];
/// After the client has gone, the server may go on for this many bytes of reply: about what a
/// socket takes before a server that sends to nobody notices.
const PLAY_OUT_LIMIT: usize = 1 << 20;

/// A client's socket and what the proxy knows of its session.
pub struct ClientSide {
    pub stream: Stream,
    pub inbox: Buffer,
    pub outbox: Buffer,
    /// In transaction pooling: its prepared statements.
    pub statements: Option<Statements>,
    /// The run-time parameters it asked for.
    pub settings: Arc<Settings>,
    /// The parameters it was told.
    pub reported: Arc<Parameters>,
    /// What it may hold beside its transaction.
    pub state: SessionState,
    /// In posture guarded and up.
    pub guard: Option<Arc<Guard>>,
    pub audit: Audit,
}

/// Why a relay ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing is owed, no transaction is open; in session pooling, and for a client that keeps its connection, if
    /// there is something to see to.
    Clean,
    /// The client asks for sequence values that on this connection are another's. Nothing of it was sent.
    ForeignSequence,
    /// The client said Terminate, closed its side, or is refused (see [`Relay::refusal`]).
    ClientGone,
    /// Called while clean (session pooling), or killed anywhere.
    Called,
    /// The server closed the connection; the client was sent all it said.
    ServerGone,
    /// The change of tenant ahead of the client's bytes failed, and the server skipped these. The client was told the
    /// error, and of the end of its batch if that was `answered`; `stray` bytes of its last message are still to come.
    NotSwitched { answered: bool, stray: usize },
}

pub struct Relay<'a> {
    pub client: &'a mut ClientSide,
    pub server: &'a mut ServerConnection,
    pub pool: &'a Pool,
    pub handle: &'a ClientHandle,
    pub metrics: &'a TenantMetrics,
    /// Calls answered so far.
    pub answered: u64,
    /// Session pooling, or the connection is pinned: a clean point is no end.
    pub keep: bool,
    pub ledger: Ledger,
    /// Why the client is not heard any more: 08P01 for bytes that are not the protocol, 54000 for a statement too
    /// long for transaction pooling.
    refused: Option<Error>,
    /// Bytes of a frame that is passing, still to come from the client and from the server.
    client_rest: usize,
    server_rest: usize,
    transaction_began: Option<Instant>,
    /// Once it was asked for: the clock is read once for all that one read has brought.
    now: Option<Instant>,
    /// ReadyForQuery messages that are not in the metrics yet, which other workers write, too.
    queries: u64,
    fatal_seen: bool,
    /// Something of the client was sent to the server.
    heard: bool,
    /// Reads a text that is too long to be looked at whole.
    text: Option<Box<TextReader>>,
    /// The client asked for what is another's sequence value.
    asked_foreign: bool,
    /// What is sent in place of the message at hand.
    refused_frames: Vec<u8>,
    /// The client has gone, and the server is told so.
    parted: bool,
    /// The server has closed the connection.
    pub server_gone: bool,
    /// It began with a change of tenant: the server may report what the client was told already.
    switches: bool,
    not_switched: Option<End>,
    /// The change is acknowledged, and nothing of the client's was answered since.
    just_switched: bool,
    hold: Hold,
    /// What the client says next waits until what it said before the last Sync is answered: that decides what the name
    /// of a statement means.
    name_is_open: bool,
    /// The server was asked to answer what it can, since a lot is owed.
    flush_asked: bool,
    /// The size of the last Query that was sent in one piece.
    query_size: usize,
    /// A portal was used of which it is not known what it runs.
    obscure: bool,
}

/// After a statement that may change the session, the client is not heard until it is answered: what it
/// sent behind it must find its tenant context, and its statements, as the proxy knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    No,
    /// From the next Sync on, or what else ends the implicit transaction.
    AtSync,
    Now,
}

impl<'a> Relay<'a> {
    pub fn new(
        client: &'a mut ClientSide,
        server: &'a mut ServerConnection,
        pool: &'a Pool,
        handle: &'a ClientHandle,
        metrics: &'a TenantMetrics,
    ) -> Self {
        let keep = client.statements.is_none() || !client.state.pins().is_empty();
        let switches = server.switch.is_some();
        client.state.doubt_reports(switches);
        let mut ledger = Ledger::default();
        match (&mut client.statements, keep) {
            (Some(statements), false) => statements.begin_lease(),
            _ => ledger.begin_clean(),
        }
        Self {
            client,
            server,
            pool,
            handle,
            metrics,
            answered: 0,
            keep,
            ledger,
            refused: None,
            client_rest: 0,
            server_rest: 0,
            transaction_began: None,
            now: None,
            queries: 0,
            fatal_seen: false,
            heard: false,
            text: None,
            asked_foreign: false,
            refused_frames: Vec::new(),
            parted: false,
            server_gone: false,
            switches,
            not_switched: None,
            just_switched: false,
            hold: Hold::No,
            name_is_open: false,
            flush_asked: false,
            query_size: 0,
            obscure: false,
        }
    }

    /// Relays until the [`End`].
    ///
    /// Cancel safe in that nothing is lost, but the server connection is then in an unknown state: close it.
    ///
    /// # Errors
    /// 08006 for bytes of the server that are not the protocol.
    pub async fn run(&mut self) -> Result<End> {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// After the client has closed its side: lets the server finish what it was sent, as it would
    /// direct. The client is sent the replies for as long as it takes them. True: the connection came to a clean
    /// point. If it cannot, the server is told that the client has gone, and ends as it would direct.
    pub async fn play_out(&mut self) -> bool {
        let mut thrown_away = 0;
        poll_fn(|cx| self.poll_play_out(cx, &mut thrown_away)).await
    }

    fn poll_play_out(&mut self, cx: &mut TaskContext<'_>, thrown_away: &mut usize) -> Poll<bool> {
        loop {
            let ClientSide { outbox, stream, .. } = &mut *self.client;
            if !outbox.is_drained()
                && let Poll::Ready(Err(_)) = outbox.poll_drain(cx, stream)
            {
                *thrown_away += outbox.len();
                outbox.abandon();
            }
            if *thrown_away > PLAY_OUT_LIMIT || self.handle.is_killed() {
                return Poll::Ready(false);
            }
            // What it was sent may turn out to be a COPY whose data nobody sends.
            let hopeless = self.client_rest > 0 || !self.ledger.will_settle();
            if hopeless && !self.parted {
                self.part();
            }
            if self.write_server(cx).is_err() {
                self.server.outbox.abandon();
            }
            if self.parted && self.server.outbox.is_drained() {
                // Closed for writing; to be polled again does no harm.
                let _ = Pin::new(&mut self.server.stream).poll_shutdown(cx);
            }
            if self.client.outbox.len() < HIGH_WATER && !self.server_gone {
                match self.poll_server(cx) {
                    Poll::Ready(Ok(true)) if self.not_switched.is_some() => {
                        return Poll::Ready(false);
                    }
                    Poll::Ready(Ok(true)) => continue,
                    Poll::Ready(Ok(false)) => self.server_gone = true,
                    Poll::Ready(Err(_)) => return Poll::Ready(false),
                    Poll::Pending if self.has_rested() => return Poll::Ready(self.is_clean()),
                    Poll::Pending => {}
                }
            }
            if self.server_gone {
                return self.poll_last_words(cx).map(|_| false);
            }
            self.handle.calls(cx.waker());
            return Poll::Pending;
        }
    }

    /// All that comes without another message has come, and gone on.
    fn has_rested(&self) -> bool {
        !self.parted && self.ledger.is_empty() && self.client.outbox.is_drained()
    }

    /// Tells the server what the client said last: Terminate, the start of a message, or nothing. Never a whole message.
    fn part(&mut self) {
        self.parted = true;
        if self.client_rest > 0 {
            return;
        }
        let said = self.client.inbox.bytes();
        match Header::read(said) {
            Some(header) if FrontendTag(header.tag) == FrontendTag::TERMINATE => {
                self.server.outbox.extend(reply::TERMINATE);
            }
            Some(header) if frame_size(header).is_ok_and(|size| size <= said.len()) => {}
            Some(_) if self.refused.is_some() => {}
            _ => self.server.outbox.extend(said),
        }
    }

    /// Nothing is owed or half passed, and no transaction is open.
    pub fn is_clean(&self) -> bool {
        self.ledger.is_clean()
            && self.server.switch.is_none()
            && self.client_rest == 0
            && self.server_rest == 0
            && self.server.inbox.is_empty()
            && self.server.outbox.is_drained()
    }

    /// Whether the client can be told something of the proxy's own: it has all of the last message.
    pub fn is_between_frames(&self) -> bool {
        self.server_rest == 0
    }

    /// As [`run`](Self::run), for those who wait for something else, too.
    pub fn poll(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<End>> {
        // A server that was asked nothing has said nothing: it is sent the client's message first.
        let mut begins = !self.heard && !self.client.inbox.is_empty();
        loop {
            let mut moved = std::mem::take(&mut begins);
            // 1. What the server says comes first: it frees the connection.
            if !moved && self.client.outbox.len() < HIGH_WATER {
                match self.poll_server(cx) {
                    Poll::Ready(Ok(true)) => moved = true,
                    Poll::Ready(Ok(false)) => return self.poll_last_words(cx),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {}
                }
            }
            if let Some(end) = self.not_switched.take() {
                return Poll::Ready(Ok(end));
            }
            let had = self.client.outbox.len();
            let ClientSide { outbox, stream, .. } = &mut *self.client;
            if !outbox.is_drained() {
                match outbox.poll_drain(cx, stream) {
                    Poll::Ready(Ok(())) => moved |= had >= HIGH_WATER,
                    Poll::Ready(Err(_)) => return Poll::Ready(Ok(End::ClientGone)),
                    Poll::Pending => moved |= had >= HIGH_WATER && outbox.len() < HIGH_WATER,
                }
            }
            // 2. At a clean point the connection goes back before the client is heard again.
            if self.is_clean() {
                let due = self.server.sealed.is_due();
                if !self.keep || due || (self.heard && self.has_something_to_see_to()) {
                    return Poll::Ready(Ok(End::Clean));
                }
                if self.handle.calls(cx.waker()) != self.answered {
                    return Poll::Ready(Ok(End::Called));
                }
            }
            // 3. What the client says.
            match self.poll_client(cx) {
                Step::Moved => moved = true,
                Step::Gone => return Poll::Ready(Ok(End::ClientGone)),
                Step::Still => {}
            }
            let was_full = self.server.outbox.len() >= HIGH_WATER;
            match self.write_server(cx) {
                Ok(()) => moved |= was_full && self.server.outbox.len() < HIGH_WATER,
                // It hears no more; why, and that it has closed, is still to be read.
                Err(_) => {
                    self.server.outbox.abandon();
                    moved = true;
                }
            }
            if self.asked_foreign {
                return Poll::Ready(Ok(End::ForeignSequence));
            }
            if !moved {
                self.handle.calls(cx.waker());
                return match self.handle.is_killed() {
                    true => Poll::Ready(Ok(End::Called)),
                    false => Poll::Pending,
                };
            }
        }
    }

    /// Whether a client that keeps its connection may have changed its session, or its tenant context.
    fn has_something_to_see_to(&self) -> bool {
        let context = &self.server.context;
        !self.client.state.is_settled() || context.is_stale()
    }

    /// The server is gone: what it said last goes to the client.
    fn poll_last_words(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<End>> {
        self.server_gone = true;
        let rest = self.server.inbox.len().min(self.server_rest);
        self.server.inbox.move_to(&mut self.client.outbox, rest);
        let ClientSide { outbox, stream, .. } = &mut *self.client;
        let sent = outbox.poll_drain(cx, stream).is_ready();
        self.handle.calls(cx.waker());
        if sent || self.handle.is_killed() {
            return Poll::Ready(Ok(End::ServerGone));
        }
        Poll::Pending
    }

    // ---- server to client ----

    /// Reads once and passes what came. `Ok(false)`: the server has closed.
    fn poll_server(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<bool>> {
        let ServerConnection { inbox, stream, .. } = &mut *self.server;
        self.now = None;
        match inbox.poll_fill(cx, stream) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(Ok(false)),
            Poll::Ready(Ok(_)) => {
                let before = self.client.outbox.len();
                let passed = self.pass_server_frames();
                self.server.inbox.trim();
                self.metrics
                    .sent
                    .add((self.client.outbox.len() - before) as u64);
                self.metrics.queries.add(std::mem::take(&mut self.queries));
                Poll::Ready(passed.map(|()| true))
            }
        }
    }

    fn pass_server_frames(&mut self) -> Result<()> {
        // `run` bytes at the front of the inbox pass as they are.
        let mut run = 0;
        loop {
            let inbox = &self.server.inbox;
            if self.server_rest > 0 {
                let n = self.server_rest.min(inbox.len() - run);
                run += n;
                self.server_rest -= n;
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
            while let Some(fake) = self.ledger.take_fake() {
                self.server.inbox.move_to(&mut self.client.outbox, run);
                run = 0;
                self.client.outbox.extend(fake);
            }
            let bytes = &self.server.inbox.bytes()[run..];
            let Some(header) = Header::read(bytes) else {
                break;
            };
            let size = header
                .backend_size()
                .ok_or_else(|| lost("impossible message length"))?;
            let tag = BackendTag(header.tag);
            let needed = match tag {
                BackendTag::READY_FOR_QUERY
                | BackendTag::PARAMETER_STATUS
                | BackendTag::COMMAND_COMPLETE
                | BackendTag::PARSE_COMPLETE
                | BackendTag::CLOSE_COMPLETE => size,
                BackendTag::ERROR_RESPONSE | BackendTag::NOTIFICATION_RESPONSE
                    if size <= MAX_TRANSLATED =>
                {
                    size
                }
                BackendTag::ERROR_RESPONSE => size.min(SEVERITY_WITHIN),
                _ => HEADER,
            };
            if bytes.len() < needed {
                if needed > MAX_COLLECTED {
                    return Err(lost("a message is too long to be looked at"));
                }
                break;
            }
            if std::mem::take(&mut self.just_switched)
                && tag == BackendTag::ERROR_RESPONSE
                && self.ledger.ends_with_query()
                && let Some(error) = switch::canceled(&bytes[HEADER..size.min(bytes.len())])
            {
                // It may have come between the end of the change and the client's message, which is skipped then and never
                // answered (PostgreSQL looks for cancels when it logs durations). Either way it is canceled.
                self.server.inbox.move_to(&mut self.client.outbox, run);
                self.give_up_switch(&error);
                return Ok(());
            }
            // Before the reply is noted: then the name may be gone.
            let translated = match tag {
                BackendTag::ERROR_RESPONSE if bytes.len() >= size => {
                    let refusal = self.ledger.refusal().map(|error| error.to_vec());
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
            let reply = match tag {
                BackendTag::DATA_ROW | BackendTag::COPY_DATA => Reply::Forward,
                _ => self.note_reply(tag, run, size),
            };
            if let Some(body) = translated {
                self.server.inbox.move_to(&mut self.client.outbox, run);
                self.server.inbox.consume(size);
                run = 0;
                self.client.outbox.extend(&frame(tag.0, &[&body]));
                continue;
            }
            match reply {
                Reply::Forward => {
                    let whole = size.min(self.server.inbox.len() - run);
                    run += whole;
                    self.server_rest = size - whole;
                }
                Reply::Swallow => {
                    self.server.inbox.move_to(&mut self.client.outbox, run);
                    self.server.inbox.consume(size);
                    run = 0;
                }
            }
        }
        self.server.inbox.move_to(&mut self.client.outbox, run);
        Ok(())
    }

    /// Takes an answer to the change of tenant ahead of the client's bytes; the server's inbox begins with it. False: it is
    /// not whole, or the change has failed.
    fn note_switch(&mut self) -> Result<bool> {
        let Some((tag, size)) = self.server.whole()? else {
            return Ok(false);
        };
        if tag == BackendTag::PARAMETER_STATUS {
            let body = self.server.inbox.bytes()[HEADER..size].to_vec();
            self.server.note_parameter(&body);
        }
        let ServerConnection { inbox, switch, .. } = &mut *self.server;
        let Some(pending) = switch else {
            return Ok(true);
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
    fn give_up_switch(&mut self, error: &Error) {
        tracing::warn!(tenant = %self.handle.tenant, user = %self.handle.user, client = self.handle.id, %error,
            "a server connection could not change hands");
        self.metrics.errors.add(1);
        let answered = self.ledger.give_up();
        self.undo_failed();
        self.client.state.give_up();
        let mut replies = Replies::new();
        replies.error(error);
        if answered {
            replies.ready();
        }
        self.client.outbox.extend(replies.bytes());
        self.not_switched = Some(End::NotSwitched {
            answered,
            stray: self.client_rest,
        });
    }

    /// A notification that the client sent itself comes from the process that it knows as its own: drivers tell by
    /// that which are their own.
    fn as_own(&self, notification: &[u8]) -> Option<Vec<u8>> {
        let (sender, rest) = notification.split_first_chunk::<4>()?;
        let is_own = i32::from_be_bytes(*sender) == self.server.fence().pid();
        is_own.then(|| [&self.handle.key().pid.to_be_bytes(), rest].concat())
    }

    /// Takes note of a reply whose frame starts at `at` in the server's inbox.
    fn note_reply(&mut self, tag: BackendTag, at: usize, size: usize) -> Reply {
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
                if status == b'I'
                    && let Some(began) = self.transaction_began.take()
                {
                    let now = *self.now.get_or_insert_with(Instant::now);
                    let time = now.saturating_duration_since(began);
                    self.metrics.transactions.record(time);
                }
                let reply = self.ledger.reply(tag, status);
                if self.ledger.is_empty() {
                    // Nothing that was sent can fail any more, and outside of a transaction there are no portals.
                    outbox.trim();
                    self.obscure &= status != b'I';
                }
                return reply;
            }
            BackendTag::COMMAND_COMPLETE => {
                let command = bytes.get(HEADER..size - 1).unwrap_or_default();
                match command {
                    b"SET" | b"RESET" => context.make_stale(),
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
                    b"DEALLOCATE" => {
                        if let Some(statements) = &mut self.client.statements {
                            statements.note_deallocated(parsed);
                        }
                    }
                    _ => {}
                }
            }
            BackendTag::PARAMETER_STATUS => {
                if let Some((name, value)) = split_pair(&bytes[HEADER..size]) {
                    let known = |told: &Parameters| told.get(name).is_some_and(|v| v == value);
                    if self.switches && known(parameters) && known(&self.client.reported) {
                        return Reply::Swallow;
                    }
                    note_parameter(self.client, context, parameters, name, value);
                }
            }
            BackendTag::ERROR_RESPONSE => {
                self.metrics.errors.add(1);
                let body = &bytes[HEADER..size.min(bytes.len())];
                self.fatal_seen |= is_fatal(body);
                if sealed.may_be_refused_by(body) {
                    context.make_stale();
                }
                let of_ours = self.ledger.renamed().is_some();
                if is_outdated_plan(body) || (of_ours && is_unknown_statement(body)) {
                    parsed.outdate();
                }
                let reply = self.ledger.reply(tag, 0);
                self.undo_failed();
                return reply;
            }
            _ => {}
        }
        self.ledger.reply(tag, 0)
    }

    /// Whether the error, of which `body` is the start at least, is for the audit. Before its reply is noted.
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

    /// The text that the server's next error is about, where it is at hand: nothing is kept for this.
    fn current_text(&self) -> Option<&[u8]> {
        match self.ledger.current(self.obscure) {
            Current::Query => self.last_query(),
            Current::Statement(statement) => Some(statement.text()),
            Current::Unnamed(before) => self.client.statements.as_ref()?.unnamed_text(before),
            Current::Unknown => None,
        }
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

    // ---- client to server ----

    fn poll_client(&mut self, cx: &mut TaskContext<'_>) -> Step {
        if self.is_deaf() {
            return Step::Still;
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

    /// Whether the client is not heard for now: what it sent before has not gone on, or not been answered.
    fn is_deaf(&mut self) -> bool {
        if self.ledger.is_empty() && self.hold == Hold::Now {
            self.hold = Hold::No;
        }
        self.name_is_open = self.name_is_open && self.ledger.owes_ready();
        self.flush_asked &= self.ledger.len() >= MAX_OWED;
        // A COPY is not answered before its data has come.
        (self.waits() && self.client_rest == 0 && !self.ledger.copy_is_open())
            || self.owes_too_much()
            // A Sync ends what guards the change of tenant.
            || (self.server.switch.is_some() && self.client_rest == 0 && self.ledger.has_sent_end())
            || self.server.outbox.len() >= HIGH_WATER
            || self.client.outbox.len() >= HIGH_WATER
    }

    fn waits(&self) -> bool {
        self.hold == Hold::Now || self.name_is_open
    }

    /// Whether so much is owed that some must be answered first; never in the middle of a message.
    fn owes_too_much(&self) -> bool {
        self.ledger.len() >= MAX_OWED && self.client_rest == 0
    }

    /// Takes note of what a statement that is sent now may do to the session.
    fn note_effects(&mut self, effects: &Effects) {
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

    /// The text of a Query or Parse was read. What may change the session holds back what is sent behind it.
    fn note_text(&mut self, tag: FrontendTag, effects: &Effects) {
        let holds = effects.what.contains(What::CONTROL);
        match tag {
            FrontendTag::QUERY => {
                self.note_effects(effects);
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

    /// Whether the client may run what does this. `text`: the statement, if it is at hand.
    ///
    /// # Errors
    /// 42501 in posture guarded and up.
    fn permit(&self, effects: &Effects, text: Option<&[u8]>) -> Result<()> {
        let Some(guard) = &self.client.guard else {
            return Ok(());
        };
        guard.check(effects).map_err(|offence| {
            let error =
                Error::new(Kind::InsufficientPrivilege, offence.message).with_hint(offence.hint);
            self.note_refused(offence.kind, text, &error);
            error
        })
    }

    /// The guard has refused something.
    fn note_refused(&self, rule: &str, statement: Option<&[u8]>, error: &Error) {
        self.metrics.refused.add(1);
        self.client.audit.record(&Event {
            kind: audit::Kind::Guard,
            who: attempts::who(self.handle, self.metrics),
            sqlstate: Some(error.sqlstate()),
            detail: Some(rule),
            statement,
        });
    }

    /// Sends something in place of a message that the client may not send, at which the server fails as the message
    /// should: the transaction fails with it, and what the client is told comes in its turn.
    fn send_refused(&mut self, tag: FrontendTag, is_named: bool, error: &Error) {
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
        self.refused_frames.extend(sent);
        let mut replies = Replies::new();
        replies.error(error);
        self.ledger.push(Owed::Refused {
            ready: !parses,
            error: replies.bytes()[HEADER..].into(),
        });
        self.undo_failed();
        self.heard = true;
    }

    /// Whether plain strings have backslash escapes now.
    fn backslashes(&self) -> bool {
        self.server.parameters.backslashes()
    }

    /// Whether the sequence values of this connection are nobody's or the client's own.
    fn owns_sequences(&self) -> bool {
        self.server
            .sequences_of
            .is_none_or(|id| id == self.handle.id)
    }

    /// Looks at the text of a Query or Parse of `size` bytes at `at` in the client's inbox, of which `here` are there.
    fn look_at_text(
        &mut self,
        tag: FrontendTag,
        at: usize,
        here: usize,
        size: usize,
    ) -> Result<Looked> {
        let backslashes = self.backslashes();
        let body = &self.client.inbox.bytes()[at + HEADER..at + here.min(size)];
        if here < size {
            return Ok(match size <= LOOKED_AT_WHOLE {
                true => Looked::NeedMore,
                false => Looked::Passes,
            });
        }
        // What is prepared in transaction pooling is looked at where its names are.
        let prepares = tag == FrontendTag::PARSE && self.client.statements.is_some();
        if prepares && self.client.guard.is_none() {
            return Ok(Looked::Passes);
        }
        let (name, text) = match tag {
            FrontendTag::PARSE => split_cstr(body).unwrap_or_default(),
            _ => (&b""[..], body),
        };
        let is_named = !name.is_empty();
        let text = split_cstr(text).map_or(text, |(text, _)| text);
        let effects = Effects::of(text, backslashes);
        if let Err(error) = self.permit(&effects, Some(text)) {
            self.send_refused(tag, is_named, &error);
            return Ok(Looked::Answered);
        }
        if prepares {
            return Ok(Looked::Passes);
        }
        if asks_for_foreign_sequence(&effects) && !self.owns_sequences() && !self.keep {
            return self.refuse_sequence().map(|()| Looked::Refused);
        }
        if effects.what.contains(What::DEALLOCATES)
            && let Some(statements) = &mut self.client.statements
            && let Some(name) = statements.named_in_deallocate(text)
        {
            if self.server_rest > 0 || (!self.ledger.is_empty() && self.ledger.will_settle()) {
                self.hold = Hold::Now;
                return Ok(Looked::NeedMore);
            }
            if let Some(status) = self.ledger.status()
                && self.ledger.is_empty()
                && self.ledger.is_synced()
            {
                statements.deallocate(&name);
                statements.query();
                self.client.outbox.extend(&deallocated(status));
                if !self.heard {
                    self.ledger.begin_clean();
                }
                return Ok(Looked::Answered);
            }
        }
        self.note_text(tag, &effects);
        Ok(Looked::Passes)
    }

    /// Looks at which function is called by a FunctionCall of `size` bytes at `at` in the client's inbox, of which
    /// `here` are there. False: more of it is needed.
    fn look_at_call(&mut self, at: usize, here: usize, size: usize) -> Result<Looked> {
        let body = &self.client.inbox.bytes()[at + HEADER..at + here.min(size)];
        let oid = body.first_chunk().map(|oid| u32::from_be_bytes(*oid));
        if oid.is_none() && here < size {
            return Ok(Looked::NeedMore);
        }
        let guard = self.client.guard.as_ref();
        let may_use = guard.is_none_or(|guard| guard.allows(Shared::LargeObjects));
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

    /// Sequence values that are another client's must not be told.
    ///
    /// # Errors
    /// 0A000 where the client has a transaction open, which ends with its connection.
    fn refuse_sequence(&mut self) -> Result<()> {
        self.client.state.note_sequence_wanted();
        match self.heard {
            true => Err(foreign_sequence()),
            false => {
                self.asked_foreign = true;
                Ok(())
            }
        }
    }

    /// Reads on in a text that passes: `n` bytes at `at` in the client's inbox.
    fn read_text(&mut self, at: usize, n: usize) -> Result<()> {
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
        if asks_for_foreign_sequence(&effects) && !self.owns_sequences() && !self.keep {
            return Err(foreign_sequence());
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

    fn write_server(&mut self, cx: &mut TaskContext<'_>) -> io::Result<()> {
        let ServerConnection { outbox, stream, .. } = &mut *self.server;
        if outbox.is_drained() {
            return Ok(());
        }
        match outbox.poll_drain_keeping(cx, stream) {
            Poll::Ready(Err(e)) => Err(e),
            _ => Ok(()),
        }
    }

    /// Why the client is not heard any more, unless the server had a last word of its own.
    pub fn refusal(&mut self) -> Option<Error> {
        self.refused.take().filter(|_| !self.fatal_seen)
    }

    /// The client is not heard any more because of what it said; what it said before is still answered.
    fn refuse(&mut self, error: Error) -> bool {
        self.refused = Some(error);
        true
    }

    /// Passes what the client's inbox holds. True: it said Terminate, or what cannot be served.
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
            if self.transaction_began.is_none() {
                self.transaction_began = Some(*self.now.get_or_insert_with(Instant::now));
            }
            if self.waits() && !is_of_copy(tag) {
                // It waits for an answer that comes only when the COPY is over; the server passes over this if it
                // has failed already.
                self.client.inbox.move_to(&mut self.server.outbox, run);
                run = 0;
                self.server
                    .outbox
                    .extend(&frame(FrontendTag::COPY_FAIL.0, &[b"unexpected message\0"]));
                self.ledger.push(Owed::CopyEnd);
                break false;
            }
            let looked = match tag {
                _ if !self.client.state.is_watched() => Ok(Looked::Passes),
                FrontendTag::FUNCTION_CALL => self.look_at_call(run, here, size),
                _ if has_text(tag) => self.look_at_text(tag, run, here, size),
                _ => Ok(Looked::Passes),
            };
            match looked {
                Ok(Looked::Passes) => {}
                Ok(Looked::NeedMore | Looked::Refused) => break false,
                Err(error) => break self.refuse(error),
                Ok(Looked::Answered) => {
                    self.client.inbox.move_to(&mut self.server.outbox, run);
                    self.server
                        .outbox
                        .extend(&std::mem::take(&mut self.refused_frames));
                    self.client.inbox.consume(size);
                    run = 0;
                    continue;
                }
            }
            if ends_transaction(tag) && self.hold == Hold::AtSync {
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
                    Ok(Rewritten::Consumed(n)) => {
                        self.client.inbox.consume(n);
                        rest -= n;
                    }
                    Err(error) => break self.refuse(error),
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
        };
        self.client.inbox.move_to(&mut self.server.outbox, run);
        if self.owes_too_much() && !std::mem::replace(&mut self.flush_asked, true) {
            // Without a Sync the server may keep its answers to itself for long.
            self.server.outbox.extend(reply::FLUSH);
        }
        // What the proxy answers at once; never in the middle of a frame that is passing.
        while self.server_rest == 0
            && let Some(fake) = self.ledger.take_fake()
        {
            self.client.outbox.extend(fake);
        }
        leaves
    }

    /// Deals with a message that names a prepared statement, at the front of the client's inbox.
    fn rewrite(&mut self, tag: FrontendTag, size: usize) -> Result<Rewritten> {
        let owned = (self.backslashes(), self.owns_sequences() || self.keep);
        let Some(statements) = &mut self.client.statements else {
            return Ok(Rewritten::Consumed(0));
        };
        let (backslashes, owns_sequences) = owned;
        let ServerConnection { parsed, outbox, .. } = &mut *self.server;
        let mut target = Target {
            parsed,
            outbox,
            ledger: &mut self.ledger,
            interner: &self.pool.statements,
            settings: &self.client.settings,
            backslashes,
            owns_sequences,
            effects: Effects::default(),
            pins: false,
            obscure: false,
        };
        let rewritten = statements.rewrite(tag, self.client.inbox.bytes(), size, &mut target)?;
        let Target {
            effects,
            pins,
            obscure,
            ..
        } = target;
        self.obscure |= obscure;
        let awaits = statements.awaits_bind();
        if pins {
            self.client.state.pin_statement();
        }
        self.client.state.pin_unbound(awaits);
        self.undo_failed();
        if !effects.is_empty() {
            if effects.what.contains(What::CONTROL) {
                self.hold = Hold::AtSync;
            }
            self.note_effects(&effects);
        }
        Ok(rewritten)
    }

    /// An error takes back what a message did, and those that the server skips up to the next Sync.
    fn undo_failed(&mut self) {
        if !self.ledger.has_failed() {
            return;
        }
        let failed = self.ledger.take_failed();
        if let Some(statements) = &mut self.client.statements {
            statements.undo(failed, &mut self.server.parsed, &mut self.ledger);
        }
    }

    /// What a message of `size` bytes at `at` in the client's inbox, that passes as it is, will be answered with.
    fn owed(&mut self, tag: FrontendTag, at: usize, size: usize) -> Option<Owed> {
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
            FrontendTag::PARSE => Owed::Parse(None, Undo::Nothing),
            FrontendTag::BIND => Owed::Bind(None),
            FrontendTag::DESCRIBE => Owed::Describe(None),
            FrontendTag::EXECUTE => {
                let portal = self.client.inbox.bytes()[at..].get(HEADER);
                self.obscure |= portal != Some(&0);
                Owed::Execute
            }
            FrontendTag::CLOSE => Owed::Close(Undo::Nothing),
            FrontendTag::COPY_DONE | FrontendTag::COPY_FAIL => Owed::CopyEnd,
            _ => return None,
        })
    }
}

enum Step {
    Moved,
    Still,
    Gone,
}

/// What became of a look at a text.
enum Looked {
    Passes,
    NeedMore,
    /// The proxy has answered it.
    Answered,
    /// The relay ends without it.
    Refused,
}

/// The answer to a DEALLOCATE, and what the transaction is then.
fn deallocated(status: u8) -> Vec<u8> {
    [
        frame(BackendTag::COMMAND_COMPLETE.0, &[b"DEALLOCATE\0"]),
        frame(BackendTag::READY_FOR_QUERY.0, &[&[status]]),
    ]
    .concat()
}

/// The error of a client that asks for sequence values where another client's are.
pub fn foreign_sequence() -> Error {
    Error::new(
        Kind::FeatureNotSupported,
        "sequence values of an earlier transaction are not kept in transaction pooling",
    )
    .with_hint("Use INSERT … RETURNING, ask in the same transaction, or use session pooling.")
}

/// Whether an ErrorResponse says that a statement means something else since the schema changed
/// (RevalidateCachedQuery in plancache.c).
fn is_outdated_plan(body: &[u8]) -> bool {
    has_field(body, b"C0A000\0") && has_field(body, b"RRevalidateCachedQuery\0")
}

/// Whether an ErrorResponse says that there is no such statement: something that nobody saw may have taken it away.
fn is_unknown_statement(body: &[u8]) -> bool {
    has_field(body, b"C26000\0")
}

fn has_field(body: &[u8], field: &[u8]) -> bool {
    memchr::memmem::find(body, field).is_some()
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

fn has_text(tag: FrontendTag) -> bool {
    matches!(tag, FrontendTag::QUERY | FrontendTag::PARSE)
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

/// The size of a client's frame.
///
/// # Errors
/// 08P01 for a tag or a length that PostgreSQL would not take.
pub fn frame_size(header: Header) -> Result<usize> {
    let limit = FrontendTag(header.tag).limit().ok_or_else(|| {
        Error::new(
            Kind::ProtocolViolation,
            format!("invalid frontend message type {}", header.tag),
        )
    })?;
    header
        .size(limit)
        .ok_or_else(|| Error::new(Kind::ProtocolViolation, "invalid message length"))
}

fn lost(cause: &str) -> Error {
    Error::new(Kind::ConnectionFailure, "the server connection was lost").caused_by(cause)
}

/// A parameter changed while the client held the connection: the client is told by the frame
/// itself, and what it can set follows it from now on.
fn note_parameter(
    client: &mut ClientSide,
    context: &mut Context,
    parameters: &mut Arc<Parameters>,
    name: &str,
    value: &str,
) {
    Arc::make_mut(parameters).insert(name, value);
    Arc::make_mut(&mut client.reported).insert(name, value);
    if follows_client(name) {
        Arc::make_mut(&mut client.settings).insert(name.to_ascii_lowercase(), value.to_owned());
        if let Context::Bound(binding) = context {
            binding.settings = client.settings.clone();
        }
    }
}

/// Whether an ErrorResponse, of which `body` is at least the start, ends the connection: its first field is
/// the severity, its second the same in English.
fn is_fatal(body: &[u8]) -> bool {
    let severity = split_cstr(body).and_then(|(_, rest)| split_cstr(rest));
    severity.is_some_and(|(field, _)| field == b"VFATAL" || field == b"VPANIC")
}
