//! The life of a client that was welcomed: wait for a message, check a server connection out,
//! relay, give it back.
//!
//! ```text
//!   welcome ──► Idle ──message──► Waiting ──grant──► Active ──clean point──► Idle
//!                │ Terminate, EOF      │ refused: error, stays         │ else
//!                ▼                     ▼                               ▼
//!               end                   Idle                end; the server connection closes
//! ```
//!
//! What is idle for a while is [parked](parking).
//!
//! In session pooling the client has a server connection from the start and keeps it. In
//! transaction pooling it keeps one for as long as that holds something of its session that cannot
//! be carried along (`state`).

pub mod parking;

use std::future::poll_fn;
use std::io;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use self::parking::Parked;
use crate::app::{Registered, moved};
use crate::backend::ahead;
use crate::backend::binding::{Binding, Context, Refusal, Settings};
use crate::backend::context;
use crate::backend::instance::Pool;
use crate::backend::instance::lease::{Grant, Lease};
use crate::backend::residue::{self, Answer, Pins, Question};
use crate::client::{Activity, Phase};
use crate::config::{Pooling, Route};
use crate::error::{Error, Kind, Result};
use crate::frontend::choosing::Choosing;
use crate::frontend::relay::{ClientSide, End, Relay, SlowLog, foreign_sequence, frame_size};
use crate::frontend::standing::{Standing, farewell};
use crate::frontend::statements::Statements;
use crate::frontend::throttle::Toll;
use crate::guard::Guard;
use crate::net::stream::Stream;
use crate::net::watch::Watch;
use crate::protocol::buffer::Buffer;
use crate::protocol::frame::{FrontendTag, Header};
use crate::protocol::reply::Replies;
use crate::timer;
use crate::workers::WorkerId;

/// While a client waits for a server connection, this much of what it sends is read ahead: enough
/// to see that it has left.
const READ_AHEAD: usize = 64 * 1024;

/// How often sources of functions are looked up for one transaction: functions call functions.
const MAX_ROUNDS: usize = 8;

pub struct Session {
    pub(super) standing: Standing,
    pub(super) side: ClientSide,
    /// The server connection it begins with, here or after it has moved.
    lease: Option<Box<Lease>>,
    /// Bytes still to come of a message that is passed over.
    pub(super) stray: usize,
}

/// How a client's time in its task ends.
enum Departure {
    /// It has left.
    Left,
    /// It goes on at another worker.
    Moves,
    /// It has nothing to say for a while, and needs no task.
    Parks,
}

/// The life of a client on one worker: in a task of its own, which is of the size of what it needs
/// while it is idle. That is why what goes before is boxed, and what it needs while it does
/// something, too.
pub async fn live(begun: Pin<Box<impl Future<Output = Option<Box<Session>>>>>) {
    let Some(mut session) = begun.await.map(|session| *session) else {
        return;
    };
    let end = session.run().await;
    Box::pin(session.end(end)).await;
}

/// Goes on at the worker where the client is asked to be.
fn move_on(mut session: Box<Session>) {
    let worker = session.standing.registered.worker();
    let workers = session.standing.app().workers().clone();
    let arrives = async move {
        match session.arrive(worker).await {
            Ok(()) => Some(session),
            Err(error) => {
                tracing::warn!(%error, "could not move a client");
                None
            }
        }
    };
    workers.spawn(worker, live(Box::pin(arrives)));
}

/// What a client may not run that is served at `route`, by `pool`.
pub(super) fn guard_of(
    route: &Route,
    pool: &Pool,
    choosing: Option<&Choosing>,
) -> Option<Arc<Guard>> {
    let guard = match choosing {
        Some(choosing) => Some(choosing.guard(route)),
        None => Guard::of(route),
    }?;
    Some(Arc::new(guard.with_policies(route, &pool.policies)))
}

/// The server does not say what the client left.
fn not_told() -> Error {
    Error::new(
        Kind::ConnectionFailure,
        "the server connection was lost while it was in use",
    )
    .caused_by("the server does not say what the session holds")
}

pub(super) async fn write(stream: &mut Stream, bytes: &[u8]) -> std::io::Result<()> {
    let mut buffer = Buffer::new();
    buffer.extend(bytes);
    poll_fn(|cx| buffer.poll_drain(cx, stream)).await
}

pub(super) async fn say_last(stream: &mut Stream, error: &Error) {
    let _ = write(stream, Replies::new().fatal(error).bytes()).await;
    let _ = tokio::io::AsyncWriteExt::shutdown(stream).await;
}

pub(super) fn log_refusal(registered: &Registered, error: &Error) {
    tracing::info!(tenant = %registered.tenant, user = %registered.user, client = registered.id,
        peer = registered.peer.map(tracing::field::display), sqlstate = error.sqlstate(), %error, "client refused");
}

/// What an idle client woke up for.
enum Woken {
    Message,
    Called,
    Gone,
}

/// How a wait for a server connection ended.
enum Checkout {
    /// After so long a wait.
    Leased(Lease, Duration),
    Refused(Error),
    Gone,
}

impl Session {
    pub(super) fn new(standing: Standing, side: ClientSide, lease: Option<Lease>) -> Self {
        Self {
            standing,
            side,
            lease: lease.map(Box::new),
            stray: 0,
        }
    }

    /// `watch` tells `key` when the client has said something or left.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn watch_by(&self, watch: &Watch, key: usize) -> io::Result<()> {
        watch.add(&self.side.stream, key)
    }

    /// What is left of it while it is [parked](Self::can_park).
    ///
    /// # Errors
    /// As [`Stream::detach`].
    pub(super) fn rest(self) -> io::Result<Parked> {
        let Self { standing, side, .. } = self;
        let socket = side.stream.detach()?;
        standing.registered.new_watch();
        standing.registered.move_in();
        Ok(Parked {
            standing,
            socket,
            settings: side.settings,
            reported: side.reported,
            state: side.state,
            statements: side.statements.filter(|s| !s.is_empty()).map(Box::new),
            choosing: side.choosing,
        })
    }

    /// Of one that was parked.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn resume(parked: Parked) -> io::Result<Self> {
        let Parked {
            standing,
            socket,
            settings,
            reported,
            state,
            statements,
            choosing,
        } = parked;
        let guard = guard_of(&standing.route, &standing.pool, choosing.as_deref());
        let side = ClientSide {
            choosing,
            stream: Stream::attach(socket)?,
            inbox: Buffer::new(),
            outbox: Buffer::new(),
            statements: Some(statements.map_or_else(Statements::default, |boxed| *boxed)),
            state,
            guard,
            limits: standing.route.placement.transaction,
            throttle: standing.throttle(),
            audit: standing.app().audit.clone(),
            settings,
            reported,
            texts: None,
            setters: None,
        };
        Ok(Self::new(standing, side, None))
    }

    /// What comes after [`run`](Self::run).
    async fn end(mut self, end: Result<Departure>) {
        match end {
            // It asks nothing more, and gets all that it was told.
            Ok(Departure::Left) => self.side.told(&self.standing.registered).await,
            Ok(Departure::Moves) => move_on(Box::new(self)),
            Ok(Departure::Parks) => parking::park(self),
            Err(error) => self.refuse_and_close(&error).await,
        }
    }

    /// Until the client leaves, must go on at another worker, or is idle for a while.
    ///
    /// # Errors
    /// What ends the client: it is told so as FATAL.
    async fn run(&mut self) -> Result<Departure> {
        self.standing.registered.move_in();
        if let Some(lease) = self.lease.take()
            && Box::pin(self.use_lease(*lease, Duration::ZERO))
                .await?
                .is_break()
        {
            return Ok(Departure::Left);
        }
        self.enrol();
        loop {
            if self.lease.is_some() {
                return Ok(Departure::Moves);
            }
            match poll_fn(|cx| self.poll_idle(cx)).await? {
                Woken::Gone => return Ok(Departure::Left),
                Woken::Called => {
                    if self.look_around()? {
                        return Ok(Departure::Moves);
                    }
                    if self.is_asked_to_park() {
                        if self.can_park() {
                            return Ok(Departure::Parks);
                        }
                        self.enrol();
                    }
                }
                Woken::Message => {
                    if Box::pin(self.serve_message()).await?.is_break() {
                        return Ok(Departure::Left);
                    }
                }
            }
        }
    }

    /// Has it asked to park when it is idle for a while, if it ever can.
    fn enrol(&self) {
        if self.may_park() {
            parking::enrol(&self.standing);
        }
    }

    /// In transaction pooling without TLS.
    fn may_park(&self) -> bool {
        self.side.statements.is_some() && !self.side.stream.is_tls()
    }

    fn is_asked_to_park(&mut self) -> bool {
        let is_asked = self.standing.registered.take_asked_to_park();
        self.standing.was_asked_to_park |= is_asked;
        is_asked
    }

    /// Whether nothing of it is under way: neither bytes nor a server connection.
    fn can_park(&self) -> bool {
        let ClientSide {
            stream,
            inbox,
            outbox,
            choosing,
            ..
        } = &self.side;
        let is_at_rest = choosing
            .as_ref()
            .is_none_or(|choosing| choosing.is_at_rest());
        let is_still = is_at_rest && inbox.is_empty() && outbox.is_drained() && self.stray == 0;
        self.may_park() && is_still && self.lease.is_none() && stream.can_detach()
    }

    /// From a message of the client that is there to the clean point behind it. `Break`: the client
    /// has left.
    async fn serve_message(&mut self) -> Result<ControlFlow<()>> {
        if self.side.choosing.is_some() {
            return Box::pin(self.serve_application()).await;
        }
        self.serve_here(&[]).await
    }

    /// The same where it is served now. `held`: with what the client's transaction begins.
    pub(super) async fn serve_here(&mut self, held: &[String]) -> Result<ControlFlow<()>> {
        if self.side.throttle.is_some() {
            match Box::pin(self.wait_for_rates()).await {
                Ok(()) => {}
                Err(Some(error)) => return Box::pin(self.refuse_batch(&error)).await,
                Err(None) => return Ok(ControlFlow::Break(())),
            }
        }
        let checkout = match self.checkout_at_once() {
            Ok(lease) => Checkout::Leased(lease, Duration::ZERO),
            Err(grant) => Box::pin(self.checkout(grant)).await,
        };
        match checkout {
            Checkout::Leased(mut lease, waited) => {
                if !held.is_empty() {
                    ahead::begin_with(&mut lease, held);
                }
                self.standing.tenant.metrics.assignments.add(1);
                self.use_lease(lease, waited).await
            }
            Checkout::Refused(error) => Box::pin(self.refuse_batch(&error)).await,
            Checkout::Gone => Ok(ControlFlow::Break(())),
        }
    }

    /// Waits, without a server connection, for the start of a message or for a call.
    fn poll_idle(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<Woken>> {
        let ClientSide {
            stream,
            inbox,
            outbox,
            ..
        } = &mut self.side;
        // First of all, or a client that never pauses would never hear it.
        if self.standing.registered.calls(cx.waker()) != self.standing.answered {
            return Poll::Ready(Ok(Woken::Called));
        }
        if !outbox.is_drained()
            && let Poll::Ready(Err(_)) = outbox.poll_drain(cx, stream)
        {
            return Poll::Ready(Ok(Woken::Gone));
        }
        loop {
            let stray = self.stray.min(inbox.len());
            inbox.consume(stray);
            self.stray -= stray;
            if let Some(header) = Header::read(inbox.bytes()) {
                let size = frame_size(header)?;
                match FrontendTag(header.tag) {
                    FrontendTag::TERMINATE => return Poll::Ready(Ok(Woken::Gone)),
                    // The rest of a COPY that failed, a Flush of nothing: PostgreSQL passes over
                    // them, and no server connection is worth them.
                    FrontendTag::FLUSH
                    | FrontendTag::COPY_DATA
                    | FrontendTag::COPY_DONE
                    | FrontendTag::COPY_FAIL => {
                        self.stray = size;
                        continue;
                    }
                    _ => return Poll::Ready(Ok(Woken::Message)),
                }
            }
            match inbox.poll_fill(cx, stream) {
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(_) => return Poll::Ready(Ok(Woken::Gone)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Takes its sockets over to `worker`, which this is called on.
    ///
    /// # Errors
    /// The operating system's.
    async fn arrive(&mut self, worker: WorkerId) -> std::io::Result<()> {
        self.standing.worker = worker;
        self.side.stream.adopt().await?;
        match &mut self.lease {
            Some(lease) => lease.move_to(worker).await,
            None => Ok(()),
        }
    }

    /// Answers a call, as [`Standing::look_around`].
    fn look_around(&mut self) -> Result<bool> {
        let route = self.standing.route.clone();
        let moves = self.standing.look_around(self.side.statements.as_mut())?;
        self.side.throttle = self.standing.throttle();
        if !Arc::ptr_eq(&route, &self.standing.route) {
            let (standing, choosing) = (&self.standing, self.side.choosing.as_deref());
            self.side.guard = guard_of(&standing.route, &standing.pool, choosing);
            self.side.limits = self.standing.route.placement.transaction;
        }
        Ok(moves)
    }

    fn binding(&self) -> Binding {
        Binding {
            tenant: self.standing.tenant.id.clone(),
            route: self.standing.route.clone(),
            settings: self.side.settings.clone(),
            stale: false,
        }
    }

    /// An idle connection that carries all the client needs. Else what else was granted, if
    /// anything was.
    fn checkout_at_once(&self) -> Result<Lease, Option<Grant>> {
        let settings = &self.side.settings;
        self.standing.pool.try_lease(
            &self.standing.tenant,
            &self.standing.route,
            settings,
            self.standing.worker,
        )
    }

    /// A server connection, as soon as there is one. `granted`: what there is already.
    async fn checkout(&mut self, mut granted: Option<Grant>) -> Checkout {
        let since = Instant::now();
        loop {
            let grant = match granted.take() {
                Some(grant) => grant,
                None => match self.wait_in_line(since).await {
                    Some(Ok(grant)) => grant,
                    Some(Err(error)) => return Checkout::Refused(error),
                    None => return Checkout::Gone,
                },
            };
            let grant = match grant.lease_at_once(&self.standing.route, &self.side.settings) {
                Ok(lease) => return Checkout::Leased(lease, since.elapsed()),
                Err(grant) => grant,
            };
            let wanted = self.binding();
            match Box::pin(grant.lease_for_message(&wanted)).await {
                Ok(Some(lease)) => return Checkout::Leased(lease, since.elapsed()),
                Ok(None) => {}
                Err(error) => return Checkout::Refused(error),
            }
        }
    }

    /// Waits until the client's next statement is within its rates.
    ///
    /// # Errors
    /// Why it is not to be served; none if the client has left.
    async fn wait_for_rates(&mut self) -> Result<(), Option<Error>> {
        let mut is_first = true;
        loop {
            let Some(throttle) = &mut self.side.throttle else {
                return Ok(());
            };
            match throttle.pay(true) {
                Toll::Paid => return Ok(()),
                Toll::Refused(error) => return Err(Some(error)),
                Toll::Waits => {}
            }
            if std::mem::take(&mut is_first) {
                // A cancel of an earlier wait that came too late.
                self.standing.registered.take_cancelled();
            }
            self.standing.registered.set_activity(Activity::Waiting);
            let waited = poll_fn(|cx| {
                if let Poll::Ready(error) = self.poll_wait(cx) {
                    return Poll::Ready(Err(error));
                }
                let throttle = self.side.throttle.as_mut();
                throttle.map_or(Poll::Ready(()), |t| t.poll(cx)).map(Ok)
            });
            let waited = waited.await;
            self.standing.registered.set_activity(Activity::Idle);
            waited?;
        }
    }

    /// Waits for its turn, as it has since then. None: the client has left.
    async fn wait_in_line(&mut self, since: Instant) -> Option<Result<Grant>> {
        let Standing {
            tenant,
            route,
            pool,
            ..
        } = &self.standing;
        let app = self.standing.app();
        let _counted = match app.admit_to_wait(tenant, route, &pool.instance) {
            Ok(counted) => counted,
            Err(error) => return Some(Err(error)),
        };
        // A cancel of an earlier wait that came too late.
        self.standing.registered.take_cancelled();
        self.standing.registered.set_activity(Activity::Waiting);
        let pool = self.standing.pool.clone();
        let tenant = self.standing.tenant.clone();
        let waited = tokio::select! {
            biased;
            granted = pool.checkout(&tenant, self.standing.worker, since) => Some(granted),
            error = poll_fn(|cx| self.poll_wait(cx)) => error.map(Err),
        };
        self.standing.registered.set_activity(Activity::Idle);
        waited
    }

    /// While waiting in line or for a rate: ready when the client has left (None), or its wait was
    /// cancelled or must end.
    fn poll_wait(&mut self, cx: &mut TaskContext<'_>) -> Poll<Option<Error>> {
        self.standing.registered.calls(cx.waker());
        if self.standing.registered.must_go() {
            return Poll::Ready(Some(farewell(&self.standing.registered)));
        }
        if self.standing.registered.take_cancelled() {
            return Poll::Ready(Some(Error::new(
                Kind::QueryCanceled,
                "canceling statement due to user request",
            )));
        }
        let ClientSide { stream, inbox, .. } = &mut self.side;
        while inbox.len() < READ_AHEAD {
            match inbox.poll_fill(cx, stream) {
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(_) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Pending
    }

    /// Relays on a lease until it is given back or the client is at its end (`Break`). `waited`:
    /// for how long the client did for it.
    async fn use_lease(
        &mut self,
        mut lease: Lease,
        mut waited: Duration,
    ) -> Result<ControlFlow<()>> {
        self.tell_parameters(&lease);
        self.standing.registered.set_activity(Activity::Active);
        let (end, clean) = loop {
            let (end, clean) = self.relay(&mut lease, std::mem::take(&mut waited)).await;
            match end {
                Ok(End::Clean) if clean => {
                    if self.is_settled() || Box::pin(self.settle(&mut lease)).await? {
                        break (Ok(End::Clean), true);
                    }
                }
                Ok(End::Called) if clean && !self.standing.registered.is_killed() => {
                    match self.look_around_holding() {
                        Ok(false) => {}
                        Ok(true) => {
                            lease.busy = false;
                            self.lease = Some(Box::new(lease));
                            return Ok(ControlFlow::Continue(()));
                        }
                        Err(error) => break (Err(error), clean),
                    }
                }
                end => break (end, clean),
            }
        };
        if let Some(choosing) = &mut self.side.choosing {
            choosing.let_go();
        }
        self.standing.registered.set_activity(Activity::Idle);
        self.standing.registered.enter(Phase::Idle);
        if self.side.state.may_have_made_code() {
            self.standing.pool.leftovers.forget();
        }
        self.standing.registered.set_pins(Pins::empty());
        if clean
            && !self.side.state.is_stuck()
            && !self.standing.route.has_connections_of_their_own()
        {
            match self.is_settled() {
                true => lease.checkin(),
                false => Box::pin(self.scrub(lease)).await,
            }
        } else {
            drop(lease);
        }
        match end? {
            End::Clean => Ok(ControlFlow::Continue(())),
            End::ForeignSequence => Box::pin(self.refuse_batch(&foreign_sequence())).await,
            End::ServerGone => {
                tracing::info!(tenant = %self.standing.tenant.id, user = %self.standing.registered.user, client = self.standing.registered.id,
                    "the server connection was lost while it was in use");
                Ok(ControlFlow::Break(()))
            }
            End::NotSwitched { answered, stray } => {
                self.stray = stray;
                self.standing.tenant.metrics.refused.add(1);
                match answered {
                    true => Ok(ControlFlow::Continue(())),
                    false => Box::pin(self.skip_batch()).await,
                }
            }
            End::ClientGone => Ok(ControlFlow::Break(())),
            End::Called => Err(farewell(&self.standing.registered)),
        }
    }

    /// Whether a server connection at a clean point holds nothing of the client's session.
    fn is_settled(&self) -> bool {
        let statements = self.side.statements.as_ref();
        self.standing.route.pooling == Pooling::Transaction
            && self.side.state.is_settled()
            && !statements.is_some_and(Statements::must_tidy)
    }

    /// Gives back what one client had to itself. It may hold anything of its session, which ends
    /// here: as where there is no pool, its locks, tables and subscriptions do not stay until the
    /// next client comes.
    async fn scrub(&self, mut lease: Lease) {
        lease.busy = true;
        let deadline = self.standing.connect_timeout();
        match context::scrub(&mut lease, deadline).await {
            Ok(()) => {
                lease.busy = false;
                lease.checkin();
            }
            Err(error) => {
                tracing::warn!(tenant = %self.standing.tenant.id, client = self.standing.registered.id, %error, "could not scrub a server connection");
            }
        }
    }

    /// Sees to what the client may have left in its session: what can be is carried along from here
    /// on; for what cannot, the client keeps the server connection. True: it need not.
    async fn settle(&mut self, lease: &mut Lease) -> Result<bool> {
        let in_transactions = self.standing.route.pooling == Pooling::Transaction;
        lease.busy = true;
        if self.side.state.may_have_changed_schema() {
            self.standing.pool.statements.begin_epoch();
            self.standing.pool.functions.forget();
        }
        if self.side.state.may_have_made_code() {
            self.standing.pool.leftovers.forget();
        }
        let (question, answer) = self.ask(lease).await?;
        if answer
            .as_ref()
            .is_some_and(|answer| lease.note_answer(answer))
        {
            self.tell_parameters(lease);
        }
        let ClientSide {
            state, settings, ..
        } = &mut self.side;
        if state.is_discarded() {
            lease.context = Context::Clean;
        } else if state.may_have_changed_context() {
            lease.context.make_stale();
        }
        let login = &self.standing.route.pool.login.user;
        match &mut lease.context {
            Context::Bound(binding) if !question.is_empty() => {
                let mut applied = (*binding.settings).clone();
                state.answer(&question, answer.as_ref(), settings, &mut applied, login);
                binding.settings = match applied == **settings {
                    true => settings.clone(),
                    false => Arc::new(applied),
                };
            }
            _ => state.answer(
                &question,
                answer.as_ref(),
                settings,
                &mut Settings::new(),
                login,
            ),
        }
        self.standing.registered.set_pins(state.pins());
        self.tidy_names(lease, &question, answer.as_ref()).await?;
        let state = &self.side.state;
        if in_transactions && state.pins().is_empty() {
            return Ok(true);
        }
        self.renew(lease).await?;
        Ok(false)
    }

    /// Closes what the server connection has under the client's own names for the sake of SQL.
    async fn tidy_names(
        &mut self,
        lease: &mut Lease,
        question: &Question,
        answer: Option<&Answer>,
    ) -> Result<()> {
        let ClientSide {
            statements: Some(statements),
            outbox,
            ..
        } = &mut self.side
        else {
            return Ok(());
        };
        if let Some(answer) = answer.filter(|_| question.names) {
            statements.settle_doubt(&answer.prepared, &answer.parsed);
        }
        let frames = statements.take_copies();
        if frames.is_empty() {
            return Ok(());
        }
        let deadline = self.standing.connect_timeout();
        let closed = timer::timeout(deadline, residue::close(lease, &frames, outbox));
        closed.await.unwrap_or_else(|_| Err(not_told()))
    }

    /// Asks the server what cannot be known without it.
    async fn ask(&mut self, lease: &mut Lease) -> Result<(Question, Option<Answer>)> {
        let deadline = self.standing.connect_timeout();
        for round in 0.. {
            let ClientSide {
                state,
                settings,
                outbox,
                statements,
                ..
            } = &mut self.side;
            if round == MAX_ROUNDS {
                state.despair_of_functions();
            }
            let mut question = state.question(settings, &self.standing.pool.functions);
            if self.standing.pool.hides_locks() {
                question.forgo_locks();
            }
            let in_doubt = statements.as_ref().is_some_and(Statements::is_in_doubt);
            question.names |= in_doubt && !question.asks_for_functions();
            if question.is_empty() {
                return Ok((question, Some(Answer::default())));
            }
            if let Some(statements) = statements {
                // A simple Query ends the unnamed statement.
                statements.begin_lease();
            }
            let ask = async |lease: &mut Lease, question: &Question, outbox: &mut Buffer| {
                let asked = timer::timeout(deadline, residue::ask(lease, question, outbox));
                asked.await.unwrap_or_else(|_| Err(not_told()))
            };
            let mut answer = ask(lease, &question, outbox).await?;
            if answer.is_none() && question.forgo_locks() {
                answer = ask(lease, &question, outbox).await?;
                if answer.is_some() {
                    self.standing.pool.hide_locks();
                }
            }
            if answer.is_none() && question.be_careful() {
                answer = ask(lease, &question, outbox).await?;
            }
            if !question.asks_for_functions() {
                return Ok((question, answer));
            }
            match answer {
                None => state.despair_of_functions(),
                Some(answer) => {
                    let functions = &self.standing.pool.functions;
                    functions.learn(&question, &answer, Instant::now());
                    if question.own {
                        self.side.state.learn_own(&answer);
                    }
                }
            }
        }
        Err(not_told())
    }

    /// Relays once. Returns whether the server connection is at a clean point, with no cancel under
    /// way; if not, the lease knows whether something may still run on it.
    async fn relay(&mut self, lease: &mut Lease, waited: Duration) -> (Result<End>, bool) {
        self.standing.registered.take_hold(lease.fence());
        lease.busy = true;
        let placement = self.standing.route.placement.name.as_str();
        let slow = SlowLog::new(&self.standing.tenant, placement, waited);
        let mut relay = Relay::new(
            &mut self.side,
            lease,
            &self.standing.pool,
            &self.standing.registered,
            slow,
        );
        relay.answered = self.standing.answered;
        let mut end = relay.run().await;
        let mut clean = match &end {
            Ok(End::ClientGone) => relay.play_out().await,
            Ok(End::ServerGone | End::NotSwitched { .. }) | Err(_) => false,
            Ok(End::ForeignSequence) => true,
            Ok(_) => relay.is_clean() && relay.is_good(),
        };
        if clean && relay.has_words_for_later() {
            // It has gone, and what it said before is run as if it had not.
            end = Ok(End::Clean);
        }
        if !clean {
            relay.tell_unfinished();
        }
        let owed = !relay.ledger.is_empty();
        let end = relay.refusal().map_or(end, Err);
        lease.busy = owed && !relay.server_gone;
        if !self.standing.registered.let_go() {
            clean &= lease.fence().clone().settled().await;
        }
        (end, clean)
    }

    /// Sets the tenant context, and the client's settings, again for a client that keeps its
    /// connection.
    async fn renew(&mut self, lease: &mut Lease) -> Result<()> {
        let wanted = self.binding();
        let deadline = self.standing.connect_timeout();
        context::adopt(lease, &wanted, deadline, None, &mut self.side.outbox)
            .await
            .map_err(Refusal::into_error)?;
        self.tell_parameters(lease);
        Ok(())
    }

    /// As [`look_around`](Self::look_around), for a client that holds a server connection: it
    /// cannot go on at another instance, but it can take the connection to another worker.
    fn look_around_holding(&mut self) -> Result<bool> {
        let (pool, route) = (self.standing.pool.clone(), self.standing.route.clone());
        let elsewhere = self.look_around()?;
        if self.is_asked_to_park() {
            self.enrol();
        }
        let is_there = match &self.side.choosing {
            Some(choosing) => choosing.place()?.route.pool == route.pool,
            None => true,
        };
        let same_pool = is_there && Arc::ptr_eq(&pool, &self.standing.pool);
        match same_pool && route.same_context(&self.standing.route) {
            true => Ok(elsewhere),
            false => Err(moved()),
        }
    }

    /// Tells the client what this server connection reports other than it was told before.
    fn tell_parameters(&mut self, lease: &Lease) {
        if Arc::ptr_eq(&self.side.reported, &lease.parameters) {
            return;
        }
        let mut replies = Replies::new();
        for (name, value) in lease.parameters.iter() {
            if self.side.reported.get(name) != Some(value) {
                replies.parameter_status(name, value);
            }
        }
        self.side.outbox.extend(replies.bytes());
        self.side.reported = lease.parameters.clone();
        self.standing.note_application(&self.side.reported);
    }

    /// Answers the message that could not be served, and leaves the client as it was: a Query or
    /// FunctionCall with an error, an extended batch with an error up to its Sync.
    pub(super) async fn refuse_batch(&mut self, error: &Error) -> Result<ControlFlow<()>> {
        if self.standing.registered.must_go() {
            return Err(error.clone());
        }
        log_refusal(&self.standing.registered, error);
        self.standing.tenant.metrics.refused.add(1);
        self.side.not_served();
        self.side.outbox.extend(Replies::new().error(error).bytes());
        self.skip_batch().await
    }

    /// After an error: skips what the client sent with it, and says that it is ready.
    async fn skip_batch(&mut self) -> Result<ControlFlow<()>> {
        loop {
            let Some(tag) = self.skip_message().await? else {
                return Ok(ControlFlow::Break(()));
            };
            match tag {
                FrontendTag::QUERY | FrontendTag::FUNCTION_CALL | FrontendTag::SYNC => break,
                FrontendTag::TERMINATE => return Ok(ControlFlow::Break(())),
                _ => {}
            }
        }
        let status = self.side.choosing.as_ref();
        let status = status.map_or(b'I', |choosing| choosing.status());
        let mut replies = Replies::new();
        self.side.outbox.extend(replies.ready_for(status).bytes());
        let ClientSide { outbox, stream, .. } = &mut self.side;
        let flushed = poll_fn(|cx| outbox.poll_drain(cx, stream)).await;
        Ok(match flushed {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        })
    }

    /// Reads a message and throws it away. None: the client has left.
    ///
    /// # Errors
    /// 57P01 if it must go, 08P01 for what is no message.
    async fn skip_message(&mut self) -> Result<Option<FrontendTag>> {
        let stray = std::mem::take(&mut self.stray);
        // Of no tag: the end of a message.
        let mut rest = (stray > 0).then_some((FrontendTag(0), stray));
        loop {
            let ClientSide {
                stream,
                inbox,
                outbox,
                ..
            } = &mut self.side;
            match rest {
                None => {
                    if let Some(header) = Header::read(inbox.bytes()) {
                        rest = Some((FrontendTag(header.tag), frame_size(header)?));
                        continue;
                    }
                }
                Some((tag, size)) if size <= inbox.len() => {
                    inbox.consume(size);
                    return Ok(Some(tag));
                }
                Some((tag, size)) => {
                    rest = Some((tag, size - inbox.len()));
                    inbox.consume(inbox.len());
                }
            }
            let registered = &self.standing.registered;
            let filled = poll_fn(|cx| {
                registered.calls(cx.waker());
                if registered.must_go() {
                    return Poll::Ready(Err(farewell(registered)));
                }
                if !outbox.is_drained() {
                    let _ = outbox.poll_drain(cx, stream);
                }
                inbox
                    .poll_fill(cx, stream)
                    .map(|filled| Ok(filled.unwrap_or(0)))
            });
            if filled.await? == 0 {
                return Ok(None);
            }
        }
    }

    /// The last word.
    pub(super) async fn refuse_and_close(&mut self, error: &Error) {
        log_refusal(&self.standing.registered, error);
        let ClientSide { stream, outbox, .. } = &mut self.side;
        outbox.extend(Replies::new().fatal(error).bytes());
        let goodbye = async {
            let _ = poll_fn(|cx| outbox.poll_drain(cx, stream)).await;
            let _ = tokio::io::AsyncWriteExt::shutdown(stream).await;
        };
        let _ = timer::timeout(self.standing.connect_timeout(), goodbye).await;
    }
}
