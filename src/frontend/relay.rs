//! Passing frames between a client and the server connection it holds, until a clean point.
//!
//! Frames pass as bytes. Looked at are their tags, for the [`Ledger`]; of what the server says,
//! ReadyForQuery, ParameterStatus, ErrorResponse, NoticeResponse, NotificationResponse and
//! CommandComplete; and, in transaction pooling, the names in Parse, Bind, Describe and Close.
//! Bodies stream: no message is collected but those.
//!
//! One task polls both sockets; nothing is handed from task to task. Each side is read only while
//! the other takes what was read before, so memory is bounded.

mod calls;
mod choice;
mod inspect;
mod messages;
mod naming;
mod notices;
mod rates;
mod replies;
mod setters;
mod slow;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use tokio::io::AsyncWrite;

use crate::audit::Audit;
use crate::backend::binding::Settings;
use crate::backend::connection::{Parameters, ServerConnection};
use crate::backend::instance::Pool;
use crate::client::{ClientHandle, Phase};
use crate::config::TransactionLimits;
use crate::error::{Error, Kind, Result};
use crate::frontend::choosing::Choosing;
use crate::frontend::ledger::Ledger;
use crate::frontend::locks::Locks;
use crate::frontend::state::SessionState;
use crate::frontend::statements::Statements;
use crate::frontend::text::TextReader;
use crate::frontend::throttle::Throttle;
use crate::guard::Guard;
use crate::metrics::TenantMetrics;
use crate::net::silence::Silence;
use crate::net::stream::Stream;
use crate::protocol::buffer::Buffer;
use crate::protocol::executed::Executed;
use crate::protocol::frame::{FrontendTag, Header};
use crate::protocol::reply;
use crate::sql::fingerprint::Fingerprint;
use crate::timer;

use self::calls::Inquiry;
use self::messages::Step;
use self::naming::Names;
use self::setters::Setters;
pub use self::slow::{SlowLog, Texts};

/// A side is not read while the other still holds this many bytes of it.
const HIGH_WATER: usize = 64 * 1024;

/// After the client has gone, the server may go on for this many bytes of reply: about what a
/// socket takes before a server that sends to nobody notices.
const PLAY_OUT_LIMIT: usize = 1 << 20;

/// And for this long, unless it is a COMMIT that it is at: then the server connection is closed,
/// and what runs on it is cancelled. Direct, PostgreSQL would go on to the end of the statement.
const PLAY_OUT_TIME: Duration = Duration::from_millis(500);

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
    pub limits: TransactionLimits,
    /// Of a client that may not go as fast as it can.
    pub throttle: Option<Box<Throttle>>,
    pub audit: Audit,
    /// Of an application: for whom it works.
    pub choosing: Option<Box<Choosing>>,
    /// In session pooling, while the slow log is on: what it has prepared.
    pub texts: Option<Box<Texts>>,
    /// In session pooling: what it has prepared that sets its tenant's variable by a parameter.
    pub setters: Option<Box<Setters>>,
}

impl ClientSide {
    /// Nothing of what was to be served was run. Returns the status of the next ReadyForQuery.
    pub fn not_served(&mut self) -> u8 {
        self.choosing.as_mut().map_or(b'I', |choosing| {
            choosing.not_served();
            choosing.status()
        })
    }

    /// Waits until all that the client was told has left for the operating system, or it takes no
    /// more, or is killed: as a server that closes a connection does.
    pub async fn told(&mut self, handle: &ClientHandle) {
        poll_fn(|cx| {
            handle.calls(cx.waker());
            let drained = self.outbox.poll_drain(cx, &mut self.stream);
            let told = match drained {
                Poll::Ready(Ok(())) => self.stream.poll_settled(cx),
                Poll::Ready(Err(_)) => Poll::Ready(()),
                Poll::Pending => Poll::Pending,
            };
            match handle.is_killed() {
                true => Poll::Ready(()),
                false => told,
            }
        })
        .await;
    }
}

/// Why a relay ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing is owed, no transaction is open; in session pooling, and for a client that keeps its
    /// connection, if there is something to see to.
    Clean,
    /// The client asks for sequence values that on this connection are another's. Nothing of it was
    /// sent.
    ForeignSequence,
    /// The client said Terminate, closed its side, or is refused (see [`Relay::refusal`]).
    ClientGone,
    /// Called while clean (session pooling), or killed anywhere.
    Called,
    /// The server closed the connection; the client was sent all it said.
    ServerGone,
    /// The change of tenant ahead of the client's bytes failed, and the server skipped these. The
    /// client was told the error, and of the end of its batch if that was `answered`; `stray` bytes
    /// of its last message are still to come.
    NotSwitched { answered: bool, stray: usize },
}

pub struct Relay<'a> {
    pub client: &'a mut ClientSide,
    pub server: &'a mut ServerConnection,
    pub pool: &'a Pool,
    pub handle: &'a ClientHandle,
    pub metrics: &'a TenantMetrics,
    slow: SlowLog<'a>,
    /// Calls answered so far.
    pub answered: u32,
    /// Session pooling, or the connection is pinned: a clean point is no end.
    pub keep: bool,
    pub ledger: Ledger,
    /// Why the client is not heard any more: 08P01 for bytes that are not the protocol, 54000 for a
    /// statement too long for transaction pooling.
    refused: Option<Error>,
    /// Bytes of a frame that is passing, still to come from the client and from the server.
    client_rest: usize,
    server_rest: usize,
    /// What is still to come from the server of a frame is not for the client.
    swallows_rest: bool,
    transaction_began: Option<Instant>,
    /// Since what was sent first that no ReadyForQuery has answered; or since the last one, if more
    /// was sent before that.
    statement_began: Option<Instant>,
    /// Once it was asked for: the clock is read once for all that one read has brought.
    now: Option<Instant>,
    /// ReadyForQuery messages that are not in the metrics yet, which other workers write, too.
    queries: u64,
    /// The same of statements that have ended.
    executed: Executed,
    /// The client was told the last word of its server connection.
    fatal_seen: bool,
    /// The server connection has ended, and the client needs nothing more of it.
    outlived: bool,
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
    /// What the client says next waits until what it said before the last Sync is answered: that
    /// decides what the name of a statement means.
    name_is_open: bool,
    /// The server was asked to answer what it can, since a lot is owed.
    flush_asked: bool,
    /// The size of the last Query that was sent in one piece.
    query_size: usize,
    /// A portal was used of which it is not known what it runs.
    obscure: bool,
    locks: Locks,
    /// SQL that names prepared statements.
    names: Names,
    inquiry: Inquiry,
    /// A choice waits until what was sent before it is answered.
    choice_waits: bool,
    /// The message at hand chooses the tenant that it is served for.
    chooses: bool,
    /// The client is not heard before its next statement is within its rates.
    awaits_rate: bool,
    /// The server is not read before what it sent is within the rates.
    is_slowed: bool,
    /// The client has been told all there is, and has said nothing since.
    is_quiet: bool,
    /// The client went when it was not heard, and what it had said before waits.
    left_words: bool,
    /// Of the client and the server, once they were looked at.
    silences: Option<Box<[Silence; 2]>>,
}

/// After a statement that may change the session, the client is not heard until it is answered:
/// what it sent behind it must find its tenant context, and its statements, as the proxy knows
/// them.
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
        slow: SlowLog<'a>,
    ) -> Self {
        let keep = client.statements.is_none() || !client.state.pins().is_empty();
        let switches = server.switch.is_some();
        client.state.doubt_reports(switches);
        if let Some(choosing) = &mut client.choosing {
            choosing.keep(keep);
        }
        let mut ledger = Ledger::default();
        match (&mut client.statements, keep) {
            (Some(statements), false) => {
                statements.leave_connection();
                statements.begin_lease();
            }
            _ => ledger.begin_clean(),
        }
        Self {
            client,
            server,
            pool,
            handle,
            metrics: slow.metrics(),
            slow,
            answered: 0,
            keep,
            ledger,
            refused: None,
            client_rest: 0,
            server_rest: 0,
            swallows_rest: false,
            transaction_began: None,
            statement_began: None,
            now: None,
            queries: 0,
            executed: Executed::default(),
            fatal_seen: false,
            outlived: false,
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
            locks: Locks::default(),
            names: Names::default(),
            inquiry: Inquiry::default(),
            choice_waits: false,
            chooses: false,
            awaits_rate: false,
            is_slowed: false,
            is_quiet: true,
            left_words: false,
            silences: None,
        }
    }

    /// Relays until the [`End`].
    ///
    /// Cancel safe in that nothing is lost, but the server connection is then in an unknown state:
    /// close it.
    ///
    /// # Errors
    /// 08006 for bytes of the server that are not the protocol.
    pub async fn run(&mut self) -> Result<End> {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// After the client has closed its side: lets the server finish what it was sent, as it would
    /// direct. The client is sent the replies for as long as it takes them. True: the connection
    /// came to a clean point. If it cannot, the server is told that the client has gone, and ends
    /// as it would direct.
    pub async fn play_out(&mut self) -> bool {
        let mut thrown_away = 0;
        let in_time = poll_fn(|cx| self.poll_play_out(cx, &mut thrown_away));
        match timer::timeout(PLAY_OUT_TIME, in_time).await {
            Ok(clean) => clean,
            Err(_) if self.current_text().is_some_and(is_commit) => {
                poll_fn(|cx| self.poll_play_out(cx, &mut thrown_away)).await
            }
            Err(_) => false,
        }
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
            if self.has_words_for_later() {
                return Poll::Ready(true);
            }
            self.pass_left_words();
            // What it was sent may turn out to be a COPY whose data nobody sends.
            let hopeless = !self.left_words && (self.client_rest > 0 || !self.ledger.will_settle());
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
            if self.client.throttle.is_some() && self.poll_rates(cx) {
                continue;
            }
            self.handle.calls(cx.waker());
            return Poll::Pending;
        }
    }

    /// All that comes without another message has come, and gone on.
    fn has_rested(&self) -> bool {
        !self.parted
            && !self.left_words
            && self.ledger.is_empty()
            && !self.inquiry.is_pending()
            && self.client.outbox.is_drained()
    }

    /// Tells the server what the client said last: Terminate, the start of a message, or nothing.
    /// Never a whole message.
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
        self.is_clean_but_for_what_is_read() && self.server.inbox.is_empty()
    }

    fn is_clean_but_for_what_is_read(&self) -> bool {
        self.ledger.is_clean()
            && self.server.switch.is_none()
            && !self.inquiry.is_pending()
            && self.client_rest == 0
            && self.server_rest == 0
            && self.server.outbox.is_drained()
    }

    /// Whether the server connection is good for somebody else.
    pub fn is_good(&self) -> bool {
        !self.outlived && !self.fatal_seen
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
            if !moved && !self.is_slowed && self.client.outbox.len() < HIGH_WATER {
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
            if self.is_clean() && !self.fatal_seen {
                let due = self.server.sealed.is_due();
                if !self.keep || due || self.has_news() {
                    return Poll::Ready(Ok(End::Clean));
                }
                if self.handle.calls(cx.waker()) != self.answered {
                    self.tell_if_asked();
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
                if self.client.throttle.is_some() && self.poll_rates(cx) {
                    continue;
                }
                if self.handle.calls(cx.waker()) != self.answered {
                    self.tell_if_asked();
                }
                if self.handle.take_look()
                    && let Some(end) = self.look_at_ends()
                {
                    return Poll::Ready(end);
                }
                return match self.handle.is_killed() {
                    true => Poll::Ready(Ok(End::Called)),
                    false => Poll::Pending,
                };
            }
        }
    }

    /// Whether the client or the server have acknowledged nothing for as long as TCP's keepalives
    /// would wait for.
    fn look_at_ends(&mut self) -> Option<Result<End>> {
        let now = Instant::now();
        let patience = self.server.server().tcp_keepalives.patience();
        let [client, server] = &mut **self.silences.get_or_insert_default();
        if client.look(&self.client.stream, now) >= patience {
            tracing::info!(tenant = %self.handle.tenant, user = %self.handle.user, client = self.handle.id,
                "the client is gone without a word");
            self.client.outbox.abandon();
            return Some(Ok(End::ClientGone));
        }
        (server.look(&self.server.stream, now) >= patience)
            .then(|| Err(replies::lost("the server is gone without a word")))
    }

    /// Whether the server must be asked what the client has left, before it goes to somebody else.
    pub(super) fn has_news(&self) -> bool {
        self.heard && self.has_something_to_see_to()
    }

    /// Whether a server connection that ends now is nothing to the client: it was about to go back
    /// to the pool.
    fn is_done_with(&self) -> bool {
        self.is_clean_but_for_what_is_read() && !self.keep && self.heard && !self.has_news()
    }

    /// Whether a client that keeps its connection may have changed its session, or its tenant
    /// context.
    fn has_something_to_see_to(&self) -> bool {
        let ClientSide {
            state, statements, ..
        } = &*self.client;
        let tidy = !statements.as_ref().is_some_and(Statements::must_tidy);
        !state.is_settled() || !tidy || self.server.context.is_stale()
    }

    /// Says what the session is at after a ReadyForQuery with this status.
    fn enter_phase(&mut self, status: u8) {
        let is_idle = status == b'I';
        self.is_quiet = self.ledger.is_empty();
        match (self.is_quiet, is_idle) {
            (true, true) => self.handle.enter(Phase::Idle),
            (true, false) => self.handle.enter(Phase::InTransaction),
            (false, _) => {
                if is_idle {
                    self.handle.enter(Phase::Idle);
                }
                self.handle.enter(Phase::Running);
            }
        }
        if !self.is_quiet {
            self.begin_next();
        }
        // A cancel that came too late was for what has just ended.
        self.handle.take_timeout();
    }

    /// Says what it runs, or ran last, if the console wants to know.
    #[cold]
    fn tell_if_asked(&self) {
        if self.handle.is_asked() {
            let fingerprint = self.last_text().and_then(Fingerprint::of);
            self.handle
                .tell(fingerprint.map(|fingerprint| fingerprint.text));
        }
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

    /// Why the client is not heard any more, unless the server had a last word of its own.
    pub fn refusal(&mut self) -> Option<Error> {
        self.refused.take().filter(|_| !self.fatal_seen)
    }
}

/// Whether a text ends a transaction for good. One that begins with a comment is taken for another.
fn is_commit(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    let begins = |word: &str| {
        text.get(..word.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()))
    };
    begins("commit") || begins("end") || begins("prepare transaction")
}

/// The error of a client that asks for sequence values where another client's are.
pub fn foreign_sequence() -> Error {
    Error::new(
        Kind::FeatureNotSupported,
        "sequence values of an earlier transaction are not kept in transaction pooling",
    )
    .with_hint("Use INSERT … RETURNING, ask in the same transaction, or use session pooling.")
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
