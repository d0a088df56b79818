//! The life of a client that is logged in: welcome, then wait for a message, check a server
//! connection out, relay, give it back.
//!
//! ```text
//!   welcome ──► Idle ──message──► Waiting ──grant──► Active ──clean point──► Idle
//!                │ Terminate, EOF      │ refused: error, stays         │ else
//!                ▼                     ▼                               ▼
//!               end                   Idle                end; the server connection closes
//! ```
//!
//! In session pooling the client has a server connection from the start and keeps it. In transaction pooling it
//! keeps one for as long as that holds something of its session that cannot be carried along (`state`).

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Instant;

use tokio::runtime;

use crate::app::{App, CountedConnection, PlacedClient, Registered, moved};
use crate::backend::connection::Parameters;
use crate::backend::context::{self, Binding, Context, Refusal, Settings};
use crate::backend::instance::Pool;
use crate::backend::lease::{Grant, Lease};
use crate::backend::residue::{self, Answer, Pins, Question};
use crate::client::Activity;
use crate::config::{Credential, Pooling, Route, SEALED_VARIABLE};
use crate::error::{Error, Kind, Result};
use crate::frontend::relay::{ClientSide, End, Relay, foreign_sequence, frame_size};
use crate::frontend::replication::{self, Wanted};
use crate::frontend::state::SessionState;
use crate::frontend::statements::Statements;
use crate::net::stream::Stream;
use crate::protocol::buffer::Buffer;
use crate::protocol::frame::{FrontendTag, Header};
use crate::protocol::reply::Replies;
use crate::sql::guard::Guard;
use crate::tenant::state::{ClientGuard, TenantState};
use crate::workers::WorkerId;

/// While a client waits for a server connection, this much of what it sends is read ahead: enough to see
/// that it has left.
const READ_AHEAD: usize = 64 * 1024;

/// How often sources of functions are looked up for one transaction: functions call functions.
const MAX_ROUNDS: usize = 8;

/// What login hands over.
pub struct LoggedIn {
    pub app: Arc<App>,
    pub stream: Stream,
    /// What the client has said since it proved who it is.
    pub inbox: Buffer,
    /// The runtime that the stream is registered with.
    pub accepted_by: runtime::Id,
    pub registered: Registered,
    pub tenant: Arc<TenantState>,
    pub route: Arc<Route>,
    pub credential: Arc<Credential>,
    pub settings: Settings,
    /// What the client is to be told before it is ready: the end of authentication.
    pub greeting: Replies,
    /// It asks for a replication connection.
    pub replication: Option<Wanted>,
    pub guards: Guards,
}

/// What the client is counted in.
pub struct Guards {
    pub connection: CountedConnection,
    pub placement: PlacedClient,
    pub tenant: ClientGuard,
}

pub struct Session {
    app: Arc<App>,
    registered: Registered,
    tenant: Arc<TenantState>,
    route: Arc<Route>,
    credential: Arc<Credential>,
    pool: Arc<Pool>,
    side: ClientSide,
    /// Where it is.
    worker: WorkerId,
    /// The server connection it begins with, here or after it has moved.
    lease: Option<Box<Lease>>,
    /// Bytes still to come of a message that is passed over.
    stray: usize,
    /// Calls of the handle that were answered.
    answered: u64,
    guards: Guards,
}

/// The life of a client on one worker: in a task of its own, which is of the size of what it needs while it is idle. That is why what goes
/// before is boxed, and what it needs while it does something, too.
pub async fn live(begun: Pin<Box<impl Future<Output = Option<Box<Session>>>>>) {
    let Some(mut session) = begun.await.map(|session| *session) else {
        return;
    };
    let end = session.run().await;
    Box::pin(session.end(end)).await;
}

/// Begins to serve a client on a worker of its instance. Some: it is to [go on](live) here.
pub async fn start(mut login: Box<LoggedIn>) -> Option<Box<Session>> {
    let pool = match login.app.pool(&login.route) {
        Ok(pool) => pool,
        Err(error) => {
            say_last(&mut login.stream, &error).await;
            return None;
        }
    };
    let workers = login.app.workers().clone();
    let worker = login.app.place(&login.tenant, &pool.instance);
    login.registered.set_worker(worker);
    let is_here = workers.handle(worker).id() == login.accepted_by;
    let begun = begin(login, pool, worker);
    if is_here {
        return begun.await;
    }
    workers.spawn(worker, live(Box::pin(begun)));
    None
}

async fn begin(login: Box<LoggedIn>, pool: Arc<Pool>, worker: WorkerId) -> Option<Box<Session>> {
    if login.replication.is_some() {
        Box::pin(replication::serve(*login)).await;
        return None;
    }
    welcome(login, pool, worker).await
}

/// Goes on at the worker where the client is asked to be.
fn move_on(mut session: Box<Session>) {
    let worker = session.registered.worker();
    let workers = session.app.workers().clone();
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

/// Tells the client the end of authentication, its parameters and its cancel key.
async fn welcome(
    mut login: Box<LoggedIn>,
    pool: Arc<Pool>,
    worker: WorkerId,
) -> Option<Box<Session>> {
    if let Err(error) = login.stream.move_here(login.accepted_by).await {
        tracing::warn!(%error, "could not move a client to its worker");
        return None;
    }
    let settings = std::mem::take(&mut login.settings);
    let profile = match known_profile(&pool, &login.route, &settings) {
        Some(profile) => profile,
        None => {
            let deadline = login.app.config().timeouts.login;
            let profile = profile(&pool, &login.tenant, &login.route, settings, worker);
            match Box::pin(tokio::time::timeout(deadline, profile)).await {
                Ok(Ok(profile)) => profile,
                Ok(Err(error)) => {
                    log_refusal(&login.registered, &error);
                    let last = login.greeting.fatal(&error).bytes();
                    let _ = write(&mut login.stream, last).await;
                    return None;
                }
                Err(_) => return None,
            }
        }
    };
    if let Some(lease) = &profile.lease {
        login.registered.set_pid(lease.fence().pid());
    }
    for (name, value) in profile.reported.iter() {
        login.greeting.parameter_status(name, value);
    }
    let key = login.registered.key();
    let greeting = login.greeting.backend_key_data(&key).ready();
    if write(&mut login.stream, greeting.bytes()).await.is_err() {
        return None;
    }
    Some(begin_session(*login, pool, worker, profile))
}

/// What a client that was welcomed goes on with.
fn begin_session(
    login: LoggedIn,
    pool: Arc<Pool>,
    worker: WorkerId,
    profile: Profile,
) -> Box<Session> {
    let LoggedIn {
        app,
        stream,
        inbox,
        registered,
        tenant,
        route,
        credential,
        guards,
        ..
    } = login;
    let Profile {
        settings,
        reported,
        lease,
    } = profile;
    tenant.metrics.logins.add(1);
    tracing::debug!(tenant = %tenant.id, user = %registered.user, client = registered.id, "logged in");
    let side = ClientSide {
        stream,
        inbox,
        outbox: Buffer::new(),
        statements: (route.pooling == Pooling::Transaction).then(Statements::default),
        state: SessionState::new(&route, &settings),
        guard: guard(&route),
        audit: app.audit.clone(),
        settings,
        reported,
    };
    Box::new(Session {
        app,
        registered,
        tenant,
        route,
        credential,
        pool,
        side,
        worker,
        lease: lease.map(Box::new),
        stray: 0,
        answered: 0,
        guards,
    })
}

/// What a client begins with.
struct Profile {
    settings: Arc<Settings>,
    /// What a server reports to a client with these settings.
    reported: Arc<Parameters>,
    /// In session pooling: its server connection.
    lease: Option<Lease>,
}

/// In transaction pooling, what a server is known to report to a client with `settings`.
fn known_profile(pool: &Pool, route: &Route, settings: &Settings) -> Option<Profile> {
    if route.pooling != Pooling::Transaction {
        return None;
    }
    let (settings, reported) = pool.profile(settings)?;
    Some(Profile {
        settings,
        reported,
        lease: None,
    })
}

/// What a server reports to a client with `settings`; asks one unless it is known. In session pooling the client
/// gets its server connection here, as it would direct.
async fn profile(
    pool: &Arc<Pool>,
    tenant: &Arc<TenantState>,
    route: &Arc<Route>,
    settings: Settings,
    worker: WorkerId,
) -> Result<Profile> {
    let in_transactions = route.pooling == Pooling::Transaction;
    let known = pool.profile(&settings);
    let wanted = |settings| Binding {
        tenant: tenant.id.clone(),
        route: route.clone(),
        settings,
        stale: false,
    };
    if route.has_connections_of_their_own() {
        // It begins with what the client asks for, as the tenant, and RESET returns to that: also in a transaction,
        // where nothing else could set the variables again.
        let key = route
            .pool
            .with_own(settings.into_iter().chain(variables(route)));
        let grant = pool.checkout(tenant, worker).await?;
        let mut lease = grant.connect(&key).await?;
        let settings: Arc<Settings> = Arc::default();
        let deadline = pool.instance.timeouts().connect;
        let nobody = &mut Buffer::new();
        context::adopt(
            &mut lease,
            &wanted(settings.clone()),
            deadline,
            None,
            nobody,
        )
        .await
        .map_err(Refusal::into_error)?;
        return Ok(Profile {
            settings,
            reported: lease.parameters.clone(),
            lease: Some(lease),
        });
    }
    let settings = known.map_or_else(|| Arc::new(settings), |(settings, _)| settings);
    let wanted = wanted(settings.clone());
    let lease = loop {
        let grant = pool.checkout(tenant, worker).await?;
        if let Some(lease) = grant.lease(&wanted).await? {
            break lease;
        }
    };
    let reported = lease.parameters.clone();
    pool.remember_profile(&settings, &reported);
    let lease = match in_transactions {
        true => {
            lease.checkin();
            None
        }
        false => Some(lease),
    };
    Ok(Profile {
        settings,
        reported,
        lease,
    })
}

/// Of the tenant's context, the variables that no server knows before they are set: any may be set in a StartupMessage.
fn variables(route: &Route) -> impl Iterator<Item = (String, String)> {
    let context = route.context.iter().filter(|(name, _)| name.contains('.'));
    context.map(|(name, value)| (name.clone(), value.clone()))
}

/// The server does not say what the client left.
fn not_told() -> Error {
    Error::new(
        Kind::ConnectionFailure,
        "the server connection was lost while it was in use",
    )
    .caused_by("the server does not say what the session holds")
}

/// What the tenants of a placement may not run, in posture guarded and up.
pub(super) fn guard(route: &Route) -> Option<Arc<Guard>> {
    let names = route.context.iter().map(|(name, _)| name.as_str());
    let names = names.chain([SEALED_VARIABLE]);
    let placement = &route.placement;
    placement
        .guard
        .then(|| Arc::new(Guard::new(names, placement.allow.clone())))
}

pub(super) fn stopped() -> Error {
    Error::new(
        Kind::AdminShutdown,
        "terminating connection due to administrator command",
    )
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
    Leased(Lease),
    Refused(Error),
    Gone,
}

impl Session {
    /// What comes after [`run`](Self::run).
    async fn end(mut self, end: Result<ControlFlow<()>>) {
        match end {
            // It asks nothing more, and gets all that it was told.
            Ok(ControlFlow::Break(())) => self.side.told(&self.registered).await,
            Ok(ControlFlow::Continue(())) => move_on(Box::new(self)),
            Err(error) => self.refuse_and_close(&error).await,
        }
    }

    /// Until the client leaves (`Break`) or must go on at another worker (`Continue`).
    ///
    /// # Errors
    /// What ends the client: it is told so as FATAL.
    async fn run(&mut self) -> Result<ControlFlow<()>> {
        self.registered.move_in();
        if let Some(lease) = self.lease.take()
            && Box::pin(self.use_lease(*lease)).await?.is_break()
        {
            return Ok(ControlFlow::Break(()));
        }
        loop {
            if self.lease.is_some() {
                return Ok(ControlFlow::Continue(()));
            }
            match poll_fn(|cx| self.poll_idle(cx)).await? {
                Woken::Gone => return Ok(ControlFlow::Break(())),
                Woken::Called => {
                    if self.look_around()? {
                        return Ok(ControlFlow::Continue(()));
                    }
                }
                Woken::Message => {
                    if Box::pin(self.serve_message()).await?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
            }
        }
    }

    /// From a message of the client that is there to the clean point behind it. `Break`: the client has left.
    async fn serve_message(&mut self) -> Result<ControlFlow<()>> {
        let checkout = match self.checkout_at_once() {
            Ok(lease) => Checkout::Leased(lease),
            Err(grant) => Box::pin(self.checkout(grant)).await,
        };
        match checkout {
            Checkout::Leased(lease) => self.use_lease(lease).await,
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
        if self.registered.calls(cx.waker()) != self.answered {
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
                    // The rest of a COPY that failed, a Flush of nothing: PostgreSQL passes over them, and no
                    // server connection is worth them.
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
        self.worker = worker;
        self.side.stream.adopt().await?;
        match &mut self.lease {
            Some(lease) => lease.move_to(worker).await,
            None => Ok(()),
        }
    }

    /// Answers a call: may this client go on, and where? True: at another worker.
    ///
    /// # Errors
    /// 57P01 if the proxy stops, or if the tenant, the user or its credential is gone.
    fn look_around(&mut self) -> Result<bool> {
        self.answered = self.registered.called();
        if self.app.is_draining() || self.registered.is_killed() {
            return Err(stopped());
        }
        let config = self.app.config();
        let tenant = config.tenants.get(&self.tenant.id).ok_or_else(moved)?;
        let credential = tenant.users.get(&*self.registered.user).ok_or_else(moved)?;
        if *credential != self.credential {
            return Err(moved());
        }
        if tenant.route == self.route {
            return Ok(self.registered.worker() != self.worker);
        }
        if tenant.route.pooling != self.route.pooling {
            return Err(moved());
        }
        if tenant.route.placement.name != self.route.placement.name {
            self.guards.placement = self.app.admit_to_placement(&tenant.route)?;
        }
        self.route = tenant.route.clone();
        self.side.guard = guard(&self.route);
        let pool = self.app.pool(&self.route)?;
        if !Arc::ptr_eq(&pool.instance, &self.pool.instance) {
            let worker = self.app.place(&self.tenant, &pool.instance);
            self.registered.set_worker(worker);
        }
        if !Arc::ptr_eq(&pool, &self.pool)
            && let Some(statements) = &mut self.side.statements
        {
            statements.rehome(&pool.statements);
        }
        self.pool = pool;
        Ok(self.registered.worker() != self.worker)
    }

    fn binding(&self) -> Binding {
        Binding {
            tenant: self.tenant.id.clone(),
            route: self.route.clone(),
            settings: self.side.settings.clone(),
            stale: false,
        }
    }

    /// An idle connection that carries all the client needs. Else what else was granted, if anything was.
    fn checkout_at_once(&self) -> Result<Lease, Option<Grant>> {
        let settings = &self.side.settings;
        self.pool
            .try_lease(&self.tenant, &self.route, settings, self.worker)
    }

    /// A server connection, as soon as there is one. `granted`: what there is already.
    async fn checkout(&mut self, mut granted: Option<Grant>) -> Checkout {
        loop {
            let grant = match granted.take() {
                Some(grant) => grant,
                None => match self.wait_in_line().await {
                    Some(Ok(grant)) => grant,
                    Some(Err(error)) => return Checkout::Refused(error),
                    None => return Checkout::Gone,
                },
            };
            let grant = match grant.lease_at_once(&self.route, &self.side.settings) {
                Ok(lease) => return Checkout::Leased(lease),
                Err(grant) => grant,
            };
            let wanted = self.binding();
            match Box::pin(grant.lease_for_message(&wanted)).await {
                Ok(Some(lease)) => return Checkout::Leased(lease),
                Ok(None) => {}
                Err(error) => return Checkout::Refused(error),
            }
        }
    }

    /// Waits for its turn. None: the client has left.
    async fn wait_in_line(&mut self) -> Option<Result<Grant>> {
        // A cancel of an earlier wait that came too late.
        self.registered.take_cancelled();
        self.registered.set_activity(Activity::Waiting);
        let pool = self.pool.clone();
        let tenant = self.tenant.clone();
        let waited = tokio::select! {
            biased;
            granted = pool.checkout(&tenant, self.worker) => Some(granted),
            error = poll_fn(|cx| self.poll_wait(cx)) => error.map(Err),
        };
        self.registered.set_activity(Activity::Idle);
        waited
    }

    /// While waiting in line: ready when the client has left (None), or its wait was cancelled or must end.
    fn poll_wait(&mut self, cx: &mut TaskContext<'_>) -> Poll<Option<Error>> {
        self.registered.calls(cx.waker());
        if self.registered.is_killed() {
            return Poll::Ready(None);
        }
        if self.app.is_draining() {
            return Poll::Ready(Some(stopped()));
        }
        if self.registered.take_cancelled() {
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

    /// Relays on a lease until it is given back or the client is at its end (`Break`).
    async fn use_lease(&mut self, mut lease: Lease) -> Result<ControlFlow<()>> {
        self.tell_parameters(&lease);
        self.registered.set_activity(Activity::Active);
        let (end, clean) = loop {
            let (end, clean) = self.relay(&mut lease).await;
            match end {
                Ok(End::Clean) if clean => {
                    if self.is_settled() || Box::pin(self.settle(&mut lease)).await? {
                        break (Ok(End::Clean), true);
                    }
                }
                Ok(End::Called) if clean && !self.registered.is_killed() => {
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
        self.registered.set_activity(Activity::Idle);
        let pins = self.side.state.pins();
        self.registered.set_pins(Pins::empty());
        if clean && !pins.contains(Pins::STUCK) && !self.route.has_connections_of_their_own() {
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
                tracing::info!(tenant = %self.tenant.id, user = %self.registered.user, client = self.registered.id,
                    "the server connection was lost while it was in use");
                Ok(ControlFlow::Break(()))
            }
            End::NotSwitched { answered, stray } => {
                self.stray = stray;
                self.tenant.metrics.refused.add(1);
                match answered {
                    true => Ok(ControlFlow::Continue(())),
                    false => Box::pin(self.skip_batch()).await,
                }
            }
            End::ClientGone => Ok(ControlFlow::Break(())),
            End::Called => Err(stopped()),
        }
    }

    /// Whether a server connection at a clean point holds nothing of the client's session.
    fn is_settled(&self) -> bool {
        self.route.pooling == Pooling::Transaction && self.side.state.is_settled()
    }

    /// Gives back what one client had to itself. It may hold anything of its session, which ends here: as where
    /// there is no pool, its locks, tables and subscriptions do not stay until the next client comes.
    async fn scrub(&self, mut lease: Lease) {
        lease.busy = true;
        let deadline = self.app.config().timeouts.connect;
        match context::scrub(&mut lease, deadline).await {
            Ok(()) => {
                lease.busy = false;
                lease.checkin();
            }
            Err(error) => {
                tracing::warn!(tenant = %self.tenant.id, client = self.registered.id, %error, "could not scrub a server connection");
            }
        }
    }

    /// Sees to what the client may have left in its session: what can be is carried along from here on; for what
    /// cannot, the client keeps the server connection. True: it need not.
    async fn settle(&mut self, lease: &mut Lease) -> Result<bool> {
        let in_transactions = self.route.pooling == Pooling::Transaction;
        lease.busy = true;
        if self.side.state.may_have_changed_schema() {
            self.pool.statements.begin_epoch();
            self.pool.functions.forget();
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
        let login = &self.route.pool.login.user;
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
        self.registered.set_pins(state.pins());
        if in_transactions && state.pins().is_empty() {
            return Ok(true);
        }
        self.renew(lease).await?;
        Ok(false)
    }

    /// Asks the server what cannot be known without it.
    async fn ask(&mut self, lease: &mut Lease) -> Result<(Question, Option<Answer>)> {
        let deadline = self.app.config().timeouts.connect;
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
            let mut question = state.question(settings, &self.pool.functions);
            if self.pool.hides_locks() {
                question.forgo_locks();
            }
            if question.is_empty() {
                return Ok((question, Some(Answer::default())));
            }
            if let Some(statements) = statements {
                // A simple Query ends the unnamed statement.
                statements.begin_lease();
            }
            let ask = async |lease: &mut Lease, question: &Question, outbox: &mut Buffer| {
                let asked = tokio::time::timeout(deadline, residue::ask(lease, question, outbox));
                asked.await.unwrap_or_else(|_| Err(not_told()))
            };
            let mut answer = ask(lease, &question, outbox).await?;
            if answer.is_none() && question.forgo_locks() {
                answer = ask(lease, &question, outbox).await?;
                if answer.is_some() {
                    self.pool.hide_locks();
                }
            }
            if question.functions.is_empty() && !question.triggers {
                return Ok((question, answer));
            }
            match answer {
                None => state.despair_of_functions(),
                Some(answer) => self
                    .pool
                    .functions
                    .learn(&question, &answer, Instant::now()),
            }
        }
        Err(not_told())
    }

    /// Relays once. Returns whether the server connection is at a clean point, with no cancel under
    /// way; if not, the lease knows whether something may still run on it.
    async fn relay(&mut self, lease: &mut Lease) -> (Result<End>, bool) {
        self.registered.take_hold(lease.fence());
        lease.busy = true;
        let metrics = &self.tenant.metrics;
        let mut relay = Relay::new(&mut self.side, lease, &self.pool, &self.registered, metrics);
        relay.answered = self.answered;
        let end = relay.run().await;
        let mut clean = match &end {
            Ok(End::ClientGone) => relay.play_out().await,
            Ok(End::ServerGone | End::NotSwitched { .. }) | Err(_) => false,
            Ok(End::ForeignSequence) => true,
            Ok(_) => relay.is_clean(),
        };
        let owed = !relay.ledger.is_empty();
        let end = relay.refusal().map_or(end, Err);
        lease.busy = owed && !relay.server_gone;
        if !self.registered.let_go() {
            clean &= lease.fence().clone().settled().await;
        }
        (end, clean)
    }

    /// Sets the tenant context, and the client's settings, again for a client that keeps its connection.
    async fn renew(&mut self, lease: &mut Lease) -> Result<()> {
        let wanted = self.binding();
        let deadline = self.app.config().timeouts.connect;
        context::adopt(lease, &wanted, deadline, None, &mut self.side.outbox)
            .await
            .map_err(Refusal::into_error)?;
        self.tell_parameters(lease);
        Ok(())
    }

    /// As [`look_around`](Self::look_around), for a client that holds a server connection: it cannot go
    /// on at another instance, but it can take the connection to another worker.
    fn look_around_holding(&mut self) -> Result<bool> {
        let (pool, route) = (self.pool.clone(), self.route.clone());
        let elsewhere = self.look_around()?;
        match Arc::ptr_eq(&pool, &self.pool) && route.same_context(&self.route) {
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
    }

    /// Answers the message that could not be served, and leaves the client as it was: a Query or
    /// FunctionCall with an error, an extended batch with an error up to its Sync.
    async fn refuse_batch(&mut self, error: &Error) -> Result<ControlFlow<()>> {
        if self.registered.is_killed() || self.app.is_draining() {
            return Err(error.clone());
        }
        log_refusal(&self.registered, error);
        self.tenant.metrics.refused.add(1);
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
        self.side.outbox.extend(Replies::new().ready().bytes());
        let ClientSide { outbox, stream, .. } = &mut self.side;
        let flushed = poll_fn(|cx| outbox.poll_drain(cx, stream)).await;
        Ok(match flushed {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        })
    }

    /// Reads a message and throws it away. None: the client has left.
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
            let filled = poll_fn(|cx| {
                if !outbox.is_drained() {
                    let _ = outbox.poll_drain(cx, stream);
                }
                inbox.poll_fill(cx, stream)
            });
            if !matches!(filled.await, Ok(n) if n > 0) {
                return Ok(None);
            }
        }
    }

    /// The last word.
    async fn refuse_and_close(&mut self, error: &Error) {
        log_refusal(&self.registered, error);
        let ClientSide { stream, outbox, .. } = &mut self.side;
        outbox.extend(Replies::new().fatal(error).bytes());
        let goodbye = async {
            let _ = poll_fn(|cx| outbox.poll_drain(cx, stream)).await;
            let _ = tokio::io::AsyncWriteExt::shutdown(stream).await;
        };
        let _ = tokio::time::timeout(self.app.config().timeouts.connect, goodbye).await;
    }
}
