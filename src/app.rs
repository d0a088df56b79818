//! What all parts of a running proxy share: built once, passed as `Arc<App>`, no statics. Two
//! proxies can run in one process.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use dashmap::{DashMap, DashSet};
use rustc_hash::FxBuildHasher;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use crate::audit::Audit;
use crate::auth::Verifiers;
use crate::backend::dns::Resolver;
use crate::backend::instance::{Instance, Pool};
use crate::catalog;
use crate::client::{ClientHandle, FIRST_PID};
use crate::config::{Application, Config, Extras, Pooling, Roster, Route, Tenant};
use crate::error::{Error, Kind, Result};
use crate::findings::Findings;
use crate::id::{PlacementName, ServerName, TenantId};
use crate::metrics::ProxyMetrics;
use crate::places::{self, Place, Places};
use crate::protocol::startup::{CancelKey, Secret};
use crate::tenant::level::Level;
use crate::tenant::meter::Meter;
use crate::tenant::state::TenantState;
use crate::timer;
use crate::tls::Door;
use crate::workers::{WorkerId, Workers};

mod admission;
mod halts;
mod periods;
mod reload;
mod stop;
mod warm;

use admission::PlacementState;
pub use admission::{PlacedClient, WaitingClient};
pub use halts::{Scope, state_lets_in};
pub use periods::Periods;
pub use stop::{OpenConsole, Stop};

/// Connections that may be open for a moment above all limits.
const CLOSING: usize = 100;

/// A tenant's route, what it is for an application, and the application's variables.
type DerivedRoute = (Arc<Route>, Arc<Route>, Arc<[Box<str>]>);

pub struct App {
    config: ArcSwap<Config>,
    workers: Arc<Workers>,
    /// Finds the addresses of servers whose hosts are names.
    resolver: Resolver,
    next_home: AtomicUsize,
    instances: ArcSwap<HashMap<ServerName, Arc<Instance>>>,
    tenants: DashMap<TenantId, Arc<TenantState>, FxBuildHasher>,
    placements: DashMap<PlacementName, Arc<PlacementState>, FxBuildHasher>,
    /// Clients that wait for a server connection.
    waiting: AtomicUsize,
    /// Server connections in use, where that is limited.
    active: Arc<Level>,
    /// What all clients have used of the rates of the whole proxy.
    pub meter: Arc<Meter>,
    /// Clients that are logged in, by the secret of what they cancel with.
    clients: DashSet<BySecret, FxBuildHasher>,
    next_client: AtomicU64,
    pub places: Arc<Places>,
    /// Of applications for tenants: the tenant's route, and the one with the application's
    /// variables.
    routes: DashMap<(TenantId, TenantId), DerivedRoute, FxBuildHasher>,
    draining: watch::Sender<bool>,
    /// How the console wants the process to end.
    stop: watch::Sender<Option<Stop>>,
    /// What the console has paused and disabled.
    halts: halts::Halts,
    /// Sessions of the console that wait for something, by the secret of what they cancel with.
    consoles: DashMap<Secret, (i32, Arc<Notify>), FxBuildHasher>,
    /// What each main port offers.
    doors: ArcSwap<Vec<Arc<Door>>>,
    /// What a reload reads again.
    config_path: Option<PathBuf>,
    pub verifiers: Verifiers,
    pub audit: Audit,
    pub metrics: ProxyMetrics,
    /// What the doctor found last.
    pub findings: Findings,
    pub started: Instant,
    periods: Mutex<periods::Periods>,
    /// When that was, in milliseconds of Unix time: no other process has the same.
    generation: u64,
    /// One change of the configuration at a time. What tenants of a catalog are put with, where
    /// there is one.
    roster: Mutex<Option<Roster>>,
    /// What the catalog has beside tenants.
    extras: Mutex<Extras>,
    /// When tenants change their states by themselves.
    due: reload::Due,
    pub catalog: catalog::Status,
}

impl App {
    /// # Errors
    /// TLS settings of a main port that cannot be used, a thread that cannot be started.
    pub fn new(
        config: Config,
        config_path: Option<PathBuf>,
        workers: Vec<Handle>,
        resolver: Resolver,
    ) -> Result<Arc<Self>> {
        let audit = Audit::start(config.audit.clone())
            .map_err(|e| Error::new(Kind::Internal, "could not start the audit").caused_by(e))?;
        let started = Instant::now();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default();
        let app = Arc::new(Self {
            workers: Workers::new(workers),
            resolver,
            next_home: AtomicUsize::new(0),
            instances: ArcSwap::default(),
            tenants: DashMap::default(),
            placements: DashMap::default(),
            waiting: AtomicUsize::new(0),
            active: Arc::default(),
            meter: Arc::default(),
            clients: DashSet::default(),
            next_client: AtomicU64::new(1),
            places: Arc::default(),
            routes: DashMap::default(),
            draining: watch::Sender::new(false),
            stop: watch::Sender::new(None),
            halts: halts::Halts::default(),
            consoles: DashMap::default(),
            doors: ArcSwap::from_pointee(doors(&config)?),
            config: ArcSwap::from_pointee(config),
            config_path,
            verifiers: Verifiers::new(),
            audit,
            metrics: ProxyMetrics::default(),
            findings: Findings::default(),
            started,
            periods: Mutex::new(periods::Periods::from(started)),
            generation: now.as_millis().try_into().unwrap_or(0),
            roster: Mutex::default(),
            extras: Mutex::default(),
            due: reload::Due::default(),
            catalog: catalog::Status::default(),
        });
        app.arrange(&app.config());
        app.set_rates(&app.config());
        app.note_times(&app.config());
        Ok(app)
    }

    pub fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// What tells this process from one before it or after it: the numbers of clients begin anew in
    /// each.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn workers(&self) -> &Arc<Workers> {
        &self.workers
    }

    // ---- instances and pools ----

    pub fn instances(&self) -> Arc<HashMap<ServerName, Arc<Instance>>> {
        self.instances.load_full()
    }

    /// The pool of a route.
    ///
    /// # Errors
    /// 57P01 if a reload has just removed its server.
    pub fn pool(&self, route: &Route) -> Result<Arc<Pool>> {
        let instances = self.instances.load();
        let instance = instances.get(&route.pool.server).ok_or_else(moved)?;
        Ok(instance.pool(&route.pool, route.pool_limits()))
    }

    /// Where a client of `tenant` on `instance` is to be served: with the tenant's others, at the
    /// home of the instance, or where there is least to do.
    pub fn place(&self, tenant: &TenantState, instance: &Instance) -> WorkerId {
        let together = tenant.worker().filter(|_| tenant.clients() > 1);
        let wanted = [together.unwrap_or(instance.home), instance.home];
        let worker = self.workers.place(&wanted);
        tenant.set_worker(worker);
        worker
    }

    /// Where an application is served for a tenant that it calls `value`: where the tenant lives,
    /// with the application's variables beside those of the placement.
    pub fn route_for(
        &self,
        application: &Application,
        tenant: &Arc<Tenant>,
        value: &str,
    ) -> Arc<Route> {
        let base = &tenant.route;
        let is_missing = |name: &str| base.pinned(name).is_none();
        let needs_none = base.pooling == Pooling::Transaction
            && !application.variables.iter().any(|name| is_missing(name));
        if needs_none {
            return base.clone();
        }
        let key = (application.login.id.clone(), tenant.id.clone());
        if let Some(known) = self.routes.get(&key)
            && Arc::ptr_eq(&known.0, base)
            && known.2 == application.variables
        {
            return known.1.clone();
        }
        let mut route = (**base).clone();
        let variables = application.variables.iter();
        let missing = variables.filter(|name| is_missing(name));
        let missing: Vec<_> = missing
            .map(|name| (name.to_string(), value.to_owned()))
            .collect();
        route.context.extend(missing);
        route.pooling = Pooling::Transaction;
        let route = Arc::new(route);
        let known = (base.clone(), route.clone(), application.variables.clone());
        self.routes.insert(key, known);
        route
    }

    /// Makes the instances fit `config`: new ones are built, changed ones reconfigured, others left
    /// alone.
    fn arrange(&self, config: &Config) {
        let old = self.instances.load();
        let instances = config
            .servers
            .iter()
            .map(|(name, server)| {
                let instance = match old.get(name) {
                    Some(instance) => {
                        instance.reconfigure(server.clone(), config.timeouts.clone());
                        instance.clone()
                    }
                    None => {
                        let count = self.next_home.fetch_add(1, Ordering::Relaxed);
                        let home = self.workers.in_turn(count);
                        let timeouts = config.timeouts.clone();
                        let (workers, resolver) = (self.workers.clone(), self.resolver.clone());
                        Instance::new(server.clone(), timeouts, workers, home, resolver)
                    }
                };
                (name.clone(), instance)
            })
            .collect::<HashMap<_, _>>();
        for (name, gone) in old
            .iter()
            .filter(|(name, _)| !instances.contains_key(*name))
        {
            tracing::info!(server = %name, "server removed");
            gone.retire_pools(|_| true);
        }
        self.instances.store(Arc::new(instances));
    }

    /// What the main port at this position of the config offers.
    pub fn door(&self, position: usize) -> Option<Arc<Door>> {
        self.doors.load().get(position).cloned()
    }

    // ---- tenants ----

    /// What is known of a tenant while the proxy runs.
    pub fn tenant(&self, id: &TenantId) -> Arc<TenantState> {
        if let Some(state) = self.tenants.get(id) {
            return state.clone();
        }
        let state = TenantState::new(id.clone());
        let config = self.config();
        self.set_up(&config, &state);
        let entry = self.tenants.entry(id.clone());
        let state = entry.or_insert_with(|| Arc::new(state)).clone();
        // Once it is there: a pause that comes from now on finds it, one that came before is looked
        // for here.
        self.apply_pauses_to(&state);
        state
    }

    /// Puts in force for a tenant what the config says of it.
    fn set_up(&self, config: &Config, state: &TenantState) {
        if let Some(tenant) = config.login(state.id.as_str()) {
            state.set_levels(self.levels_of(config, tenant));
            state.set_limits(tenant.terms.limits);
            state.set_slow(tenant.terms.slow);
            state.set_timeouts(tenant.terms.own_timeouts);
        }
    }

    /// Tenants that have been seen since the start, by name.
    pub fn seen_tenants(&self) -> Vec<Arc<TenantState>> {
        let mut tenants = self.seen_in_no_order();
        tenants.sort_by(|a, b| a.id.cmp(&b.id));
        tenants
    }

    /// A tenant, if it has been seen since the start.
    pub fn seen(&self, id: &TenantId) -> Option<Arc<TenantState>> {
        self.tenants.get(id).map(|tenant| tenant.clone())
    }

    pub fn seen_in_no_order(&self) -> Vec<Arc<TenantState>> {
        let tenants = self.tenants.iter();
        tenants.map(|tenant| tenant.value().clone()).collect()
    }

    // ---- clients ----

    /// Counts a connection in. None: there are so many that it is dropped unheard. There is room
    /// for all that may be, and for some that are just being closed.
    pub fn count_connection(&self) -> Option<Place> {
        let limits = self.config.load().limits;
        let most = limits.clients + limits.logins + limits.console + CLOSING;
        self.places.take(places::Kind::Socket, most)
    }

    /// Whether anybody may log in.
    ///
    /// # Errors
    /// 57P03 while the proxy stops.
    pub fn may_log_in(&self) -> Result<()> {
        match self.is_draining() {
            true => Err(Error::new(
                Kind::CannotConnectNow,
                "the proxy is shutting down",
            )),
            false => Ok(()),
        }
    }

    /// A place for a client of a tenant, or of the console.
    ///
    /// # Errors
    /// 53300: all are taken.
    pub fn place_for(&self, kind: places::Kind) -> Result<Place> {
        let limits = self.config.load().limits;
        let most = match kind {
            places::Kind::Console => limits.console,
            places::Kind::Tenant | places::Kind::Socket => limits.clients,
        };
        let place = self.places.take(kind, most);
        place.ok_or_else(|| Error::new(Kind::TooManyConnections, "sorry, too many clients already"))
    }

    /// Connections of clients, logged in or not.
    pub fn connections(&self) -> usize {
        self.places.taken(places::Kind::Socket)
    }

    /// Puts the rates of the proxy and of its placements in force; servers and tenants have theirs
    /// with their other settings.
    fn set_rates(&self, config: &Config) {
        self.meter.set(config.rates);
        for placement in config.placements.values() {
            self.placement_meter(&placement.name).set(placement.rates);
        }
    }

    /// A number for a client that no other had or will have.
    pub fn next_client_id(&self) -> u64 {
        self.next_client.fetch_add(1, Ordering::Relaxed)
    }

    pub fn register(self: &Arc<Self>, client: Arc<ClientHandle>) -> Registered {
        self.clients.insert(BySecret(client.clone()));
        Registered {
            app: self.clone(),
            client,
        }
    }

    /// The client that cancels with `key`.
    pub fn client(&self, key: &CancelKey) -> Option<Arc<ClientHandle>> {
        let client = self.clients.get(&key.secret[..])?.0.clone();
        (client.key() == *key).then_some(client)
    }

    /// A cancel key whose secret, of this many bytes, nobody has.
    pub fn new_key(&self, length: usize) -> CancelKey {
        loop {
            let mut secret = Secret::from_elem(0, length);
            rand::fill(&mut secret[..]);
            if !self.clients.contains(&secret[..]) {
                return CancelKey {
                    pid: rand::random_range(FIRST_PID..=i32::MAX),
                    secret,
                };
            }
        }
    }

    /// Every client, oldest first.
    pub fn clients(&self) -> Vec<Arc<ClientHandle>> {
        let clients = self.clients.iter();
        let mut clients: Vec<_> = clients.map(|client| client.0.clone()).collect();
        clients.sort_by_key(|client| client.id);
        clients
    }

    /// Every client, in no order.
    pub fn each_client(&self, mut does: impl FnMut(&Arc<ClientHandle>)) {
        self.clients.iter().for_each(|client| does(&client.0));
    }

    fn call_clients(&self) {
        self.clients.iter().for_each(|client| client.0.call());
    }

    // ---- the end ----

    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Ready once the proxy takes no new clients.
    ///
    /// Cancel safe.
    pub async fn draining(&self) {
        let mut draining = self.draining.subscribe();
        // The sender lives as long as self.
        let _ = draining.wait_for(|draining| *draining).await;
    }

    /// Takes no new clients and ends the others at their next clean point.
    pub fn drain(&self) {
        self.draining.send_replace(true);
        self.call_clients();
    }

    /// Closes idle server connections and waits until the servers have let them go, or a few
    /// seconds.
    pub async fn close_servers(&self) {
        let instances = self.instances();
        for instance in instances.values() {
            instance.retire_pools(|_| true);
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        while instances
            .values()
            .any(|instance| instance.connections() > 0)
            && Instant::now() < deadline
        {
            timer::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Lets go of every server connection at once: the workers have ended.
    pub fn abandon(&self) {
        for instance in self.instances().values() {
            instance.abandon();
        }
    }

    /// Ends every client wherever it is.
    pub fn kill_clients(&self) {
        self.clients.iter().for_each(|client| client.0.kill());
    }
}

fn doors(config: &Config) -> Result<Vec<Arc<Door>>> {
    config
        .listen
        .iter()
        .map(|listen| Door::new(listen).map(Arc::new))
        .collect()
}

/// The error of a client whose tenant is no longer where it was.
pub fn moved() -> Error {
    Error::new(
        Kind::AdminShutdown,
        "terminating connection due to administrator command",
    )
    .with_detail("The tenant was changed or removed by a reload of the configuration.")
}

/// A client, as the one whose secret this is.
struct BySecret(Arc<ClientHandle>);

impl Borrow<[u8]> for BySecret {
    fn borrow(&self) -> &[u8] {
        &self.0.secret
    }
}

impl Hash for BySecret {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.secret.hash(state);
    }
}

impl PartialEq for BySecret {
    fn eq(&self, other: &Self) -> bool {
        self.0.secret == other.0.secret
    }
}

impl Eq for BySecret {}

/// A client that others can find, for as long as this lives.
pub struct Registered {
    app: Arc<App>,
    client: Arc<ClientHandle>,
}

impl Registered {
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Whether the client is to be ended, as soon as it is at a clean point.
    pub fn must_go(&self) -> bool {
        self.app.is_draining() || self.is_killed() || self.is_revoked()
    }
}

impl std::ops::Deref for Registered {
    type Target = Arc<ClientHandle>;

    fn deref(&self) -> &Arc<ClientHandle> {
        &self.client
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.client.let_go();
        self.client.new_watch();
        self.app.clients.remove(&self.client.secret[..]);
    }
}
