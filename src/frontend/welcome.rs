//! From a login to a session: at a worker of its instance the client is told that it is in, the
//! parameters of its server and its cancel key.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use crate::auth::MAX_MESSAGE;
use crate::backend::binding::{Binding, Refusal, Settings};
use crate::backend::connection::Parameters;
use crate::backend::context;
use crate::backend::instance::Pool;
use crate::backend::instance::lease::{Lease, permit_settings};
use crate::client::Activity;
use crate::config::{Access, Pooling, Route};
use crate::error::{Error, Kind, Result};
use crate::frontend::attempts;
use crate::frontend::choosing::Choosing;
use crate::frontend::logged_in::LoggedIn;
use crate::frontend::relay::ClientSide;
use crate::frontend::replication;
use crate::frontend::session::{Session, guard_of, live, log_refusal, say_last, write};
use crate::frontend::standing::{Standing, farewell};
use crate::frontend::state::SessionState;
use crate::frontend::statements::Statements;
use crate::frontend::tablespaces;
use crate::frontend::throttle::Throttle;
use crate::protocol::buffer::Buffer;
use crate::tenant::state::TenantState;
use crate::timer;
use crate::workers::WorkerId;

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
    let needs_server = known_profile(&pool, &login.route, &login.settings).is_none();
    if needs_server && !Box::pin(wait_for_the_end_of_a_pause(&mut login)).await {
        return None;
    }
    let settings = std::mem::take(&mut login.settings);
    if login.route.pooling == Pooling::Transaction && pool.is_profile_due(&settings) {
        let asking = ask_anew(&pool, &login.tenant, &login.route, &settings, worker);
        let deadline = login.tenant.login_timeout(&login.app.config().timeouts);
        // With no answer, what is known stands: whether the server is there is not a login's to
        // find out.
        let _ = Box::pin(timer::timeout(deadline, asking)).await;
    }
    let profile = match known_profile(&pool, &login.route, &settings) {
        Some(profile) => profile,
        None => {
            let deadline = login.tenant.login_timeout(&login.app.config().timeouts);
            let profile = profile(&pool, &login.tenant, &login.route, settings, worker);
            login.registered.set_activity(Activity::Waiting);
            let waited = Box::pin(timer::timeout(deadline, profile)).await;
            login.registered.set_activity(Activity::Idle);
            match waited.unwrap_or_else(|_| Err(no_connection_in_time())) {
                Ok(profile) => profile,
                Err(error) => {
                    let error = error.spelling(&login.spelled);
                    log_refusal(&login.registered, &error);
                    let last = login.greeting.fatal(&error).bytes();
                    let _ = write(&mut login.stream, last).await;
                    return None;
                }
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

/// PostgreSQL has no such wait, and says nothing to a client whose authentication takes too long.
fn no_connection_in_time() -> Error {
    Error::new(
        Kind::TooManyConnections,
        "timed out while waiting for a server connection during login",
    )
}

/// A client of a paused tenant waits here, however long that takes: its login may need a server
/// connection. False: it has left, or must go.
async fn wait_for_the_end_of_a_pause(login: &mut LoggedIn) -> bool {
    let LoggedIn {
        stream,
        inbox,
        registered,
        tenant,
        ..
    } = login;
    if !tenant.is_paused() {
        return true;
    }
    let leaves = poll_fn(|cx| {
        registered.calls(cx.waker());
        if registered.must_go() {
            return Poll::Ready(());
        }
        while inbox.len() < MAX_MESSAGE {
            match inbox.poll_fill(cx, stream) {
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Pending
    });
    registered.set_activity(Activity::Waiting);
    let stays = tokio::select! {
        () = tenant.resumed() => true,
        () = leaves => false,
    };
    registered.set_activity(Activity::Idle);
    if !stays && login.registered.must_go() {
        let last = login.greeting.fatal(&farewell(&login.registered)).bytes();
        let _ = write(&mut login.stream, last).await;
    }
    stays
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
        accepted,
        ..
    } = login;
    let Profile {
        settings,
        reported,
        lease,
    } = profile;
    tenant.metrics.logins.add(1);
    tenant.metrics.login_times.record(accepted.elapsed());
    tenant.metrics.assignments.add(u64::from(lease.is_some()));
    tracing::debug!(tenant = %tenant.id, user = %registered.user, client = registered.id, "logged in");
    if app.audit.records(Access::Logins) {
        let who = attempts::who(&registered, &tenant.metrics);
        app.audit.record_access(who, "login");
    }
    let application = app.config().applications.get(&tenant.id).cloned();
    let choosing =
        application.map(|application| Box::new(Choosing::new(app.clone(), &application)));
    let guard = guard_of(&route, &pool, choosing.as_deref());
    let side = ClientSide {
        choosing,
        stream,
        inbox,
        outbox: Buffer::new(),
        statements: (route.pooling == Pooling::Transaction).then(Statements::default),
        state: SessionState::new(&route, &settings),
        guard,
        limits: route.placement.transaction,
        throttle: Throttle::new(&app, &tenant, &route, &pool.instance),
        audit: app.audit.clone(),
        settings,
        reported,
        texts: None,
        setters: None,
    };
    let standing = Standing {
        registered,
        tenant,
        route,
        credential,
        pool,
        worker,
        was_asked_to_park: false,
        answered: 0,
        guards,
    };
    standing.note_application(&side.reported);
    Box::new(Session::new(standing, side, lease))
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

/// Asks a server what it reports now to a client with `settings`, if a connection can be had
/// without waiting for it.
async fn ask_anew(
    pool: &Arc<Pool>,
    tenant: &Arc<TenantState>,
    route: &Arc<Route>,
    settings: &Settings,
    worker: WorkerId,
) {
    let Some((settings, _)) = pool.profile(settings) else {
        return;
    };
    let wanted = Binding {
        tenant: tenant.id.clone(),
        route: route.clone(),
        settings,
        stale: false,
    };
    while let Some(grant) = pool.try_checkout(tenant, worker) {
        match grant.lease(&wanted).await {
            Ok(Some(mut lease)) => {
                if lease.ask_what_changed().await.is_ok() {
                    pool.remember_profile(&wanted.settings, &lease.parameters);
                    lease.checkin();
                }
                return;
            }
            // It had died.
            Ok(None) => {}
            Err(_) => return,
        }
    }
}

/// What a server reports to a client with `settings`; asks one unless it is known. In session
/// pooling the client gets its server connection here, as it would direct.
async fn profile(
    pool: &Arc<Pool>,
    tenant: &Arc<TenantState>,
    route: &Arc<Route>,
    mut settings: Settings,
    worker: WorkerId,
) -> Result<Profile> {
    let in_transactions = route.pooling == Pooling::Transaction;
    let wanted = |settings| Binding {
        tenant: tenant.id.clone(),
        route: route.clone(),
        settings,
        stale: false,
    };
    if route.has_connections_of_their_own() {
        let wanted = wanted(Arc::default());
        return own_connection(pool, tenant, &wanted, settings, worker).await;
    }
    let is_given = |name: &&str| settings.contains_key(*name);
    if is_given(&LIBRARIES) || OF_LOGIN.iter().any(is_given) {
        Box::pin(try_login(pool, tenant, route, &settings, worker)).await?;
        settings.retain(|name, _| !OF_LOGIN.contains(&&**name));
    }
    let known = pool.profile(&settings);
    let settings = known.map_or_else(|| Arc::new(settings), |(settings, _)| settings);
    let mut wanted = wanted(settings);
    let since = Instant::now();
    let lease = loop {
        let grant = pool.checkout(tenant, worker, since).await?;
        match grant.lease(&wanted).await {
            Ok(Some(lease)) => break lease,
            Ok(None) => {}
            Err(error) => {
                let narrowed = tablespaces::narrowed(pool, tenant, &wanted, &error, worker);
                if let Some(settings) = Box::pin(narrowed).await? {
                    wanted.settings = Arc::new(settings);
                    continue;
                }
                let settings = &wanted.settings;
                // PostgreSQL has other words at login than later for an encoding that it cannot
                // convert, and for what can only be set at login.
                let is_of_encoding = error.sqlstate() == Kind::FeatureNotSupported.sqlstate()
                    && settings.contains_key("client_encoding");
                if is_of_encoding || error.sqlstate() == CANNOT_CHANGE {
                    Box::pin(try_login(pool, tenant, route, settings, worker)).await?;
                }
                return Err(error);
            }
        }
    };
    let settings = wanted.settings;
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

/// A connection that is made for the client: it begins with the `settings` that the client asks
/// for, as the tenant of `wanted`, and RESET returns to that, also in a transaction, where nothing
/// else could set the variables again.
async fn own_connection(
    pool: &Arc<Pool>,
    tenant: &Arc<TenantState>,
    wanted: &Binding,
    settings: Settings,
    worker: WorkerId,
) -> Result<Profile> {
    let key = wanted
        .route
        .pool
        .with_own(settings.clone(), variables(&wanted.route));
    let mut lease = pool.connect_alone(tenant, worker, &key).await?;
    let deadline = tenant.connect_timeout(&pool.instance.timeouts());
    permit_settings(pool, &mut lease, &wanted.route, &settings, deadline)
        .await
        .map_err(Refusal::into_error)?;
    let nobody = &mut Buffer::new();
    context::adopt(&mut lease, wanted, deadline, None, nobody)
        .await
        .map_err(Refusal::into_error)?;
    Ok(Profile {
        settings: wanted.settings.clone(),
        reported: lease.parameters.clone(),
        lease: Some(lease),
    })
}

/// cant_change_runtime_param.
const CANNOT_CHANGE: &str = "55P02";

/// The parameter that means another thing in a StartupMessage than in a session: the libraries are
/// loaded then.
const LIBRARIES: &str = "local_preload_libraries";

/// Parameters of a StartupMessage that PostgreSQL checks, and that are over with the login: its
/// user overwrites the first, the others are of its transaction, and `seed`, which is of the
/// session, cannot be taken back from a server connection.
const OF_LOGIN: [&str; 5] = [
    "session_authorization",
    "seed",
    "transaction_deferrable",
    "transaction_isolation",
    "transaction_read_only",
];

/// Asks the server whether it takes `settings` in a StartupMessage, by a connection that is closed
/// again.
///
/// # Errors
/// What the server says of them, and those of a login.
async fn try_login(
    pool: &Arc<Pool>,
    tenant: &Arc<TenantState>,
    route: &Arc<Route>,
    settings: &Settings,
    worker: WorkerId,
) -> Result<()> {
    let own = settings
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()));
    let key = route.pool.with_own(own, []);
    drop(pool.connect_alone(tenant, worker, &key).await?);
    Ok(())
}

/// Of the tenant's context, the variables that no server knows before they are set: any may be set
/// in a StartupMessage.
fn variables(route: &Route) -> impl Iterator<Item = (String, String)> {
    let context = route.context.iter().filter(|(name, _)| name.contains('.'));
    context.map(|(name, value)| (name.clone(), value.clone()))
}
