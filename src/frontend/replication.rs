//! Replication clients: pg_basebackup, pg_receivewal, standbys, logical subscribers.
//!
//! Each has a server connection of its own, logged in with its own startup parameters: a walsender
//! takes no FunctionCall and, before PostgreSQL 17, no extended query, so nothing can be set on it
//! afterwards. It counts in the instance's budget and the tenant's limits like any other, is never
//! shared, and is closed when the client leaves.
//!
//! What a walsender sends is of the whole instance or of a whole database, so only a tenant that
//! has a server of its own may have one ([`permit`]).
//!
//! A stream hardly ever comes to a clean point. A reload that takes the tenant, or its user, away
//! therefore ends it between two messages; while the proxy stops, it may go on until
//! `timeouts.shutdown`, since a backup may be under way.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use crate::app::{App, Registered, moved};
use crate::backend::binding::{Binding, Context};
use crate::backend::instance::Pool;
use crate::backend::instance::lease::Lease;
use crate::client::{Activity, Phase};
use crate::config::{Config, Credential, Route, Server, Tenant, Tier, TransactionLimits};
use crate::error::{Error, Kind, Result};
use crate::frontend::logged_in::{LoggedIn, Wanted};
use crate::frontend::relay::{ClientSide, End, Relay, SlowLog};
use crate::frontend::session::{log_refusal, say_last, write};
use crate::frontend::standing::{Guards, stopped};
use crate::frontend::state::SessionState;
use crate::frontend::throttle::Throttle;
use crate::protocol::buffer::Buffer;
use crate::tenant::state::TenantState;
use crate::timer;

/// Whether a tenant may replicate: one that has a server of its own by its placement. What its role
/// may is PostgreSQL's to say: it needs the attribute REPLICATION.
///
/// # Errors
/// 0A000.
pub fn permit(tenant: &Tenant) -> Result<()> {
    if tenant.route.placement.tier == Tier::Instance && tenant.route.context.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Kind::FeatureNotSupported,
        format!(
            "replication connections are not available to tenant \"{}\"",
            tenant.id
        ),
    )
    .with_detail("What a server sends by replication is of all tenants that live there.")
    .with_hint(
        "A tenant can replicate from a server of its own: a placement of tier \"instance\" without \"context\".",
    ))
}

/// Tells the operator of a stream that may hold what is other tenants'.
pub fn warn_of_neighbours(config: &Config, tenant: &Tenant) {
    let home = &tenant.route.pool.server;
    let neighbour = config
        .tenants
        .values()
        .find(|other| other.id != tenant.id && other.route.pool.server == *home);
    if let Some(neighbour) = neighbour {
        tracing::warn!(tenant = %tenant.id, server = %home, neighbour = %neighbour.id,
            "a replication client reads the WAL of a server where other tenants live too");
    }
}

/// Serves a replication client to its end, on a worker of its instance.
#[expect(clippy::too_many_lines, reason = "the stages of a login, in order")]
pub async fn serve(login: LoggedIn) {
    let LoggedIn {
        app,
        mut stream,
        inbox,
        accepted,
        accepted_by,
        registered,
        tenant,
        route,
        credential,
        settings,
        spelled,
        mut greeting,
        replication,
        guards,
    } = login;
    let Some(wanted) = replication else { return };
    if let Err(error) = stream.move_here(accepted_by).await {
        tracing::warn!(%error, "could not move a client to its worker");
        return;
    }
    let client = Client {
        app,
        registered,
        tenant,
        route,
        credential,
        _guards: guards,
    };
    let (pool, mut lease) = match client.connect(&wanted).await {
        Ok(made) => made,
        Err(error) => {
            let error = error.spelling(&spelled);
            log_refusal(&client.registered, &error);
            client.tenant.metrics.refused.add(1);
            let _ = write(&mut stream, greeting.fatal(&error).bytes()).await;
            return;
        }
    };
    // There is no other backend that its process id could mean.
    client.registered.set_pid(lease.fence().pid());
    for (name, value) in lease.parameters.iter() {
        greeting.parameter_status(name, value);
    }
    greeting.backend_key_data(&client.registered.key()).ready();
    if write(&mut stream, greeting.bytes()).await.is_err() {
        return;
    }
    let metrics = &client.tenant.metrics;
    metrics.logins.add(1);
    metrics.login_times.record(accepted.elapsed());
    metrics.assignments.add(1);
    tracing::debug!(tenant = %client.tenant.id, user = %client.registered.user, client = client.registered.id,
        replication = wanted.mode.value(), "logged in");
    let side = ClientSide {
        choosing: None,
        stream,
        inbox,
        outbox: Buffer::new(),
        statements: None,
        state: SessionState::unwatched(),
        guard: None,
        limits: TransactionLimits::NONE,
        throttle: Throttle::new(&client.app, &client.tenant, &client.route, &pool.instance),
        audit: client.app.audit.clone(),
        settings: Arc::new(settings),
        reported: lease.parameters.clone(),
        texts: None,
        setters: None,
    };
    client.run(side, &pool, &mut lease).await;
    if !client.registered.let_go() {
        // A cancel under way must not meet the next backend of this process id.
        lease.fence().clone().settled().await;
    }
}

/// A replication client that is logged in.
struct Client {
    app: Arc<App>,
    registered: Registered,
    tenant: Arc<TenantState>,
    route: Arc<Route>,
    credential: Arc<Credential>,
    _guards: Guards,
}

impl Client {
    /// Makes its server connection, when there is room for one.
    async fn connect(&self, wanted: &Wanted) -> Result<(Arc<Pool>, Lease)> {
        let key = &self.route.pool;
        let key = key.replicating(&wanted.parameters, wanted.mode.value());
        let instances = self.app.instances();
        let instance = instances.get(&key.server).ok_or_else(moved)?;
        let pool = instance.pool(&key, self.route.pool_limits());
        self.registered.set_activity(Activity::Waiting);
        let worker = self.registered.worker();
        let lease = pool.connect_alone(&self.tenant, worker, &pool.key);
        let ends = poll_fn(|cx| {
            self.registered.calls(cx.waker());
            match self.registered.must_go() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        });
        let lease = tokio::select! {
            biased;
            lease = lease => lease?,
            () = ends => return Err(stopped()),
        };
        Ok((pool, lease))
    }

    /// Relays until the client or the server leaves, or it must end, and tells the client so if it
    /// can be told.
    async fn run(&self, mut side: ClientSide, pool: &Pool, lease: &mut Lease) {
        self.registered.take_hold(lease.fence());
        self.registered.set_activity(Activity::Active);
        self.registered.enter(Phase::Streaming);
        let slow = SlowLog::of_replication(&self.tenant);
        let mut relay = Relay::new(&mut side, lease, pool, &self.registered, slow);
        let end = self.relay(&mut relay).await;
        if let Ok(End::ClientGone) = end {
            relay.play_out().await;
        }
        let server_is_gone = matches!(end, Ok(End::ServerGone));
        let owed = !relay.ledger.is_empty();
        let can_be_told = relay.is_between_frames();
        lease.busy = owed && !server_is_gone;
        if let Err(error) = end {
            log_refusal(&self.registered, &error);
            if !can_be_told {
                return;
            }
            let deadline = self.tenant.connect_timeout(&self.app.config().timeouts);
            let ClientSide { stream, outbox, .. } = &mut side;
            let goodbye = async {
                let _ = poll_fn(|cx| outbox.poll_drain(cx, stream)).await;
                say_last(stream, &error).await;
            };
            let _ = timer::timeout(deadline, goodbye).await;
            return;
        }
        side.told(&self.registered).await;
    }

    /// # Errors
    /// 57P01 if the proxy stops or a reload has ended the right to be here.
    async fn relay(&self, relay: &mut Relay<'_>) -> Result<End> {
        let mut heard = None;
        loop {
            // The relay looks for a stale tenant context: there is none here.
            relay.server.context = self.context();
            let end = poll_fn(|cx| {
                // A stream is called between any two messages.
                let calls = self.registered.calls(cx.waker());
                if heard != Some(calls) && relay.is_between_frames() {
                    return Poll::Ready(Ok(End::Called));
                }
                relay.poll(cx)
            });
            match end.await? {
                End::Called => {
                    let calls = self.registered.called();
                    let is_clean = relay.is_clean();
                    if self.registered.is_killed() || (is_clean && self.app.is_draining()) {
                        return Err(stopped());
                    }
                    self.may_go_on(relay.server.server())?;
                    let instance = &relay.pool.instance;
                    let throttle = Throttle::new(&self.app, &self.tenant, &self.route, instance);
                    relay.set_throttle(throttle);
                    heard = Some(calls);
                    if is_clean {
                        relay.answered = calls;
                    }
                }
                End::Clean => {}
                end => return Ok(end),
            }
        }
    }

    fn context(&self) -> Context {
        Context::Bound(Binding {
            tenant: self.tenant.id.clone(),
            route: self.route.clone(),
            settings: Arc::default(),
            stale: false,
        })
    }

    /// Whether the config still gives it this place.
    fn may_go_on(&self, server: &Server) -> Result<()> {
        let config = self.app.config();
        let tenant = config
            .tenants
            .get(self.tenant.id.as_str())
            .ok_or_else(moved)?;
        let credential = tenant.users.get(&self.registered.user);
        let now = config.servers.get(&self.route.pool.server);
        let stays = credential == Some(&self.credential)
            && tenant.route.pool == self.route.pool
            && tenant.route.placement.name == self.route.placement.name
            && now.is_some_and(|now| now.address == server.address && now.tls == server.tls)
            && permit(tenant).is_ok();
        if stays { Ok(()) } else { Err(moved()) }
    }
}
