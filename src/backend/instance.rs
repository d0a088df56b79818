//! A PostgreSQL instance as the proxy uses it: one budget of connections, and the pools that share
//! it. Its clients may be on several workers; its lock is held for well under a microsecond, and
//! never across a wait.

pub mod lease;
pub(super) mod queue;
mod warm;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;

use crate::backend::binding::Settings;
use crate::backend::cancel::Fence;
use crate::backend::connect;
use crate::backend::connection::{Parameters, ServerConnection};
use crate::backend::context;
use crate::backend::dns::{self, Names, Resolver};
use crate::backend::functions::Functions;
use crate::backend::health::Health;
use crate::backend::instance::lease::{Grant, Lease};
use crate::backend::instance::queue::{Granted, PoolCounts, Queue};
use crate::backend::leftovers::Leftovers;
use crate::backend::prepared::Interner;
use crate::config::{PoolKey, PoolLimits, Route, Server, Timeouts};
use crate::error::{Blame, Error, Kind, Result};
use crate::id::{PoolId, TenantId};
use crate::metrics::InstanceMetrics;
use crate::sql::policies::PolicyVariables;
use crate::tenant::level::{Level, Turns};
use crate::tenant::meter::Meter;
use crate::tenant::state::TenantState;
use crate::timer;
use crate::workers::{WorkerId, Workers};

/// After a login that the server refuses for good, others are refused for this long without trying.
const BACKOFF: Duration = Duration::from_millis(500);

/// A tenant that holds no connection waits this long for one to come back to its pool before it may
/// have one of the reserve; in vain, it asks again after twice as long each time, up to a limit.
/// Who holds one asks seldom.
const RESERVE_AFTER: Duration = Duration::from_millis(5);
const RESERVE_AGAIN: Duration = Duration::from_millis(250);

/// How often idle connections are looked after.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// How often room in the budget is looked for.
const ROOM_POLL: Duration = Duration::from_millis(50);

/// What a server is known to report is asked for again after this long, if a connection is at hand.
const PROFILE_LIFE: Duration = Duration::from_secs(1);

/// Reported parameters that say what the server is, whoever asks.
const OF_SERVER: [&str; 3] = ["in_hot_standby", "server_encoding", "server_version"];

/// Most session settings of clients whose effect is remembered, per pool.
const MAX_PROFILES: usize = 256;

pub struct Instance {
    server: ArcSwap<Server>,
    timeouts: ArcSwap<Timeouts>,
    workers: Arc<Workers>,
    /// Where its clients are as long as there is not too much to do.
    pub home: WorkerId,
    queue: Mutex<Queue>,
    by_key: Mutex<HashMap<PoolKey, Weak<Pool>>>,
    next_pool: AtomicU64,
    pub metrics: InstanceMetrics,
    /// What all its clients have used of its rates.
    pub meter: Arc<Meter>,
    /// Clients of its tenants, and those of them that wait for a server connection.
    pub clients: AtomicUsize,
    pub waiting: AtomicUsize,
    /// The addresses of the server, if its host is a name.
    pub names: Arc<Names>,
    /// What the last health check found.
    pub health: Health,
    /// Why no connection could be made last, by database and user, where none was made since.
    failures: Mutex<BTreeMap<(String, String), Failure>>,
}

/// Why a connection could not be made, for the operator alone.
#[derive(Debug, Clone)]
pub struct Failure {
    pub when: SystemTime,
    pub error: Error,
}

/// Server connections with the same server, database, login and pinned parameters.
pub struct Pool {
    pub id: PoolId,
    pub key: PoolKey,
    pub instance: Arc<Instance>,
    size: AtomicUsize,
    reserve: AtomicUsize,
    min: AtomicUsize,
    /// The config routes nobody here any more: connections are closed instead of kept.
    retired: AtomicBool,
    /// Connections that were begun before are closed instead of kept: microseconds after `made`, or
    /// 0.
    renewed: AtomicU64,
    made: Instant,
    /// When a connection could not be made last that nobody waited for: milliseconds after `made`,
    /// or 0.
    spare_failed: AtomicU64,
    /// Its connections, and when each was begun; some of them may be closed by now.
    connections: Mutex<Vec<(Instant, Weak<Fence>)>>,
    /// The server does not tell its login which locks it holds.
    hides_locks: AtomicBool,
    pub statements: Interner,
    pub functions: Functions,
    pub leftovers: Leftovers,
    pub policies: Arc<PolicyVariables>,
    last_failure: Mutex<Option<(Instant, Error)>>,
    /// What a server reported to a client with such settings.
    profiles: Mutex<HashMap<Arc<Settings>, Remembered>>,
}

/// What a server reported.
struct Remembered {
    reported: Arc<Parameters>,
    /// When it was asked for last.
    asked: Instant,
}

/// A place in an instance's budget, until dropped.
pub struct Room(Arc<Instance>);

impl Drop for Room {
    fn drop(&mut self) {
        self.0.queue().give_back();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The budget for clients: what the config gives, less the health check's own connection.
fn budget(server: &Server) -> usize {
    server.max_connections - usize::from(server.admin.is_some())
}

impl Instance {
    /// An instance without connections; starts to look after idle ones at `home`.
    pub fn new(
        server: Arc<Server>,
        timeouts: Timeouts,
        workers: Arc<Workers>,
        home: WorkerId,
        resolver: Resolver,
    ) -> Arc<Self> {
        let instance = Arc::new(Self {
            queue: Mutex::new(Queue::new(budget(&server))),
            server: ArcSwap::new(server),
            timeouts: ArcSwap::from_pointee(timeouts),
            workers,
            home,
            by_key: Mutex::default(),
            next_pool: AtomicU64::new(1),
            metrics: InstanceMetrics::default(),
            meter: Arc::default(),
            clients: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            names: Arc::new(Names::new(resolver)),
            health: Health::default(),
            failures: Mutex::default(),
        });
        instance.meter.set(instance.server().rates);
        let watched = Arc::downgrade(&instance);
        instance.workers.spawn(home, sweep(watched.clone()));
        instance.workers.spawn(home, watch_name(watched.clone()));
        let turns = instance.queue().turns().clone();
        instance.workers.spawn(home, take_turns(watched, turns));
        instance
    }

    pub fn server(&self) -> Arc<Server> {
        self.server.load_full()
    }

    pub fn timeouts(&self) -> arc_swap::Guard<Arc<Timeouts>> {
        self.timeouts.load()
    }

    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    /// Takes over a changed config. Connections made with other settings are closed when they are
    /// idle; a new budget holds at once for new connections.
    pub fn reconfigure(self: &Arc<Self>, server: Arc<Server>, timeouts: Timeouts) {
        self.timeouts.store(Arc::new(timeouts));
        let limit = budget(&server);
        self.meter.set(server.rates);
        if *self.server() != *server {
            self.server.store(server);
        }
        self.queue().set_limit(limit);
        self.close_idle(|_, connection| !self.is_current(connection));
    }

    /// Ends the pools that `retired` names: idle connections are closed now, those in use when they
    /// are given back.
    pub fn retire_pools(self: &Arc<Self>, retired: impl Fn(&PoolKey) -> bool) {
        for (pool, _) in self.pools() {
            if retired(&pool.key) {
                pool.retired.store(true, Relaxed);
            }
        }
        self.close_idle(|pool, _| pool.is_retired());
        self.queue().drop_unused_pools();
    }

    /// Has the connections of the pools that `which` names made anew: idle ones are closed now,
    /// those in use when they are given back.
    pub fn renew_pools(self: &Arc<Self>, which: impl Fn(&PoolKey) -> bool) {
        for (pool, _) in self.pools() {
            if which(&pool.key) {
                pool.renew();
            }
        }
        self.close_idle(|pool, connection| pool.is_outdated(connection.born));
    }

    /// Whether the connection was made with what the config says now (the budget aside), and to an
    /// address that the server still has.
    pub(super) fn is_current(&self, connection: &ServerConnection) -> bool {
        self.is_there(connection.server(), connection.peer)
    }

    /// The same of a connection that was made to this server, at this address if its host is a
    /// name.
    fn is_there(&self, then: &Server, peer: Option<IpAddr>) -> bool {
        let now = self.server.load();
        (std::ptr::eq(&**now, then) || (now.address == then.address && now.tls == then.tls))
            && peer.is_none_or(|peer| self.names.has(peer))
    }

    /// The pool for `key`; made when it is first asked for.
    pub fn pool(self: &Arc<Self>, key: &PoolKey, limits: PoolLimits) -> Arc<Pool> {
        let mut by_key = lock(&self.by_key);
        let pool = by_key.get(key).and_then(Weak::upgrade).unwrap_or_else(|| {
            let pool = Arc::new(Pool {
                id: PoolId(self.next_pool.fetch_add(1, Relaxed)),
                key: key.clone(),
                instance: self.clone(),
                size: AtomicUsize::new(limits.size),
                reserve: AtomicUsize::new(limits.reserve),
                min: AtomicUsize::new(limits.min),
                spare_failed: AtomicU64::new(0),
                retired: AtomicBool::new(false),
                renewed: AtomicU64::new(0),
                made: Instant::now(),
                connections: Mutex::default(),
                hides_locks: AtomicBool::new(false),
                statements: Interner::default(),
                functions: Functions::default(),
                leftovers: Leftovers::default(),
                policies: Arc::default(),
                last_failure: Mutex::default(),
                profiles: Mutex::default(),
            });
            by_key.insert(key.clone(), Arc::downgrade(&pool));
            pool
        });
        let grew = pool.size.swap(limits.size, Relaxed) < limits.size;
        pool.reserve.store(limits.reserve, Relaxed);
        pool.min.store(limits.min, Relaxed);
        pool.retired.store(false, Relaxed);
        let mut queue = self.queue();
        queue.add_pool(pool.clone());
        if grew {
            queue.dispatch_all();
        }
        drop(queue);
        pool
    }

    /// Takes note that a connection was made, or of why not.
    fn note_login(&self, key: &PoolKey, error: Option<&Error>) {
        let mut failures = lock(&self.failures);
        if failures.is_empty() && error.is_none() {
            return;
        }
        let login = (key.database.clone(), key.login.user.clone());
        match error {
            None => _ = failures.remove(&login),
            Some(error) => {
                let failure = Failure {
                    when: SystemTime::now(),
                    error: error.clone(),
                };
                failures.insert(login, failure);
            }
        }
    }

    /// The logins by which no connection could be made last, as database and user, and why.
    pub fn failures(&self) -> Vec<((String, String), Failure)> {
        let failures = lock(&self.failures);
        failures
            .iter()
            .map(|(login, failure)| (login.clone(), failure.clone()))
            .collect()
    }

    /// A place in the budget for a connection of the control plane. Clients go first: at most one
    /// idle connection is closed for it. None: there was none in time.
    ///
    /// Cancel safe.
    pub async fn room(self: &Arc<Self>, patience: Duration) -> Option<Room> {
        let deadline = Instant::now() + patience;
        let mut asked = false;
        loop {
            if self.queue().reserve() {
                return Some(Room(self.clone()));
            }
            if Instant::now() >= deadline {
                return None;
            }
            self.close_idle(|_, _| !std::mem::replace(&mut asked, true));
            timer::sleep(ROOM_POLL).await;
        }
    }

    /// Why the server takes no connections, as clients found out lately.
    pub fn trouble(&self) -> Option<Error> {
        self.queue().trouble().cloned()
    }

    /// Server connections open now, being made or being closed.
    pub fn connections(&self) -> usize {
        self.queue().total()
    }

    /// Every pool with its numbers, for the admin console and the metrics.
    pub fn pools(&self) -> Vec<(Arc<Pool>, PoolCounts)> {
        self.queue()
            .pools()
            .map(|(pool, counts)| (pool.clone(), counts))
            .collect()
    }

    /// Calls `look` on every idle connection, under the lock: for the admin console.
    pub fn for_each_idle(&self, mut look: impl FnMut(&Arc<Pool>, &ServerConnection)) {
        self.queue()
            .idle()
            .for_each(|(pool, connection)| look(pool, connection));
    }

    /// Closes `connection` in the background; its slot is free when the server has let it go.
    pub(super) fn close(
        self: &Arc<Self>,
        pool: PoolId,
        connection: Box<ServerConnection>,
        busy: bool,
    ) {
        let instance = self.clone();
        self.workers.spawn(connection.worker, async move {
            connection.close(busy).await;
            instance.queue().release(pool);
        });
    }

    /// Sees to it that no connection is kept for a client that does not come.
    pub(super) fn watch_lingering(self: &Arc<Self>, pool: PoolId) {
        let instance = Arc::downgrade(self);
        timer::spawn(async move {
            let look = |instance: Arc<Self>| instance.end_lingering(pool);
            while let Some(left) = instance.upgrade().and_then(look) {
                timer::sleep(left).await;
            }
        });
    }

    /// How long something is kept at most. None: nothing is, and nobody watches any more.
    fn end_lingering(&self, pool: PoolId) -> Option<Duration> {
        let mut queue = self.queue();
        let left = queue.end_lingering(pool, Instant::now());
        if left.is_none() {
            queue.unwatch(pool);
        }
        left
    }

    /// Serves who waits, after limits were raised.
    pub fn wake(&self) {
        self.queue().dispatch_all();
    }

    /// Drops all connections and pools, which hold this instance as it holds them.
    pub fn abandon(&self) {
        self.queue().clear();
    }

    fn close_idle(self: &Arc<Self>, unwanted: impl FnMut(&Pool, &mut ServerConnection) -> bool) {
        let taken = self.queue().take_idle(unwanted);
        self.close_all(taken);
    }

    /// Closes what was taken out of the queue, which is not locked meanwhile.
    fn close_all(self: &Arc<Self>, taken: Vec<(Arc<Pool>, Box<ServerConnection>)>) {
        for (pool, connection) in taken {
            self.close(pool.id, connection, false);
        }
    }

    fn sweep(self: &Arc<Self>) {
        let timeouts = self.timeouts();
        let over = self.queue().is_over();
        let now = Instant::now();
        let surplus = self.queue().take_surplus(now);
        self.close_all(surplus);
        let mut spares = self.queue().spares();
        self.close_idle(|pool, connection| {
            let is_old = connection.idle_since.elapsed() > timeouts.server_idle;
            over || (is_old && may_go(&mut spares, pool.id))
                || connection.has_outlived(timeouts.server_lifetime, now)
                || !connection.is_alive()
        });
        self.queue()
            .pools()
            .for_each(|(pool, _)| pool.policies.expire(now));
        self.queue().drop_unused_pools();
        lock(&self.by_key).retain(|_, pool| pool.strong_count() > 0);
    }
}

/// Whether a pool has one connection more than it keeps, which is then counted out. `spares`: how
/// many more pools have that keep any.
fn may_go(spares: &mut HashMap<PoolId, usize>, pool: PoolId) -> bool {
    match spares.get_mut(&pool) {
        None => true,
        Some(0) => false,
        Some(more) => {
            *more -= 1;
            true
        }
    }
}

async fn sweep(instance: Weak<Instance>) {
    loop {
        timer::sleep(SWEEP_INTERVAL).await;
        match instance.upgrade() {
            Some(instance) => instance.sweep(),
            None => return,
        }
    }
}

/// Serves who waits when a level that was full has room again: a connection of it came back
/// elsewhere.
async fn take_turns(instance: Weak<Instance>, turns: Arc<Turns>) {
    loop {
        turns.wait().await;
        let levels = turns.take();
        let Some(instance) = instance.upgrade() else {
            levels.iter().for_each(Level::end_turn);
            return;
        };
        instance.queue().take_turns(levels);
    }
}

/// Sees to it that the server's name is resolved again in time, and closes what is idle and goes
/// elsewhere.
async fn watch_name(instance: Weak<Instance>) {
    loop {
        timer::sleep(SWEEP_INTERVAL).await;
        let Some(here) = instance.upgrade() else {
            return;
        };
        let (server, names) = (here.server(), here.names.clone());
        let life = here.timeouts().dns_max_ttl;
        drop(here);
        let Some(name) = dns::name_of(&server).filter(|name| names.is_due(name, life)) else {
            continue;
        };
        // What cannot be resolved keeps its addresses.
        let _ = names.resolve(name).await;
        if let Some(instance) = instance.upgrade() {
            instance.close_idle(|_, connection| !instance.is_current(connection));
        }
    }
}

impl Pool {
    /// How many connections it has at most, and at least.
    pub fn limits(&self) -> PoolLimits {
        PoolLimits {
            size: self.size.load(Relaxed),
            reserve: self.reserve.load(Relaxed),
            min: self.min.load(Relaxed),
        }
    }

    /// Whether its login was refused `pg_locks`.
    pub fn hides_locks(&self) -> bool {
        self.hides_locks.load(Relaxed)
    }

    pub fn hide_locks(&self) {
        self.hides_locks.store(true, Relaxed);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Relaxed)
    }

    fn renew(&self) {
        let now = u64::try_from(self.made.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.renewed.store(now.max(1), Relaxed);
    }

    /// Whether a connection that was begun at `born` is not to be kept, since others are to be
    /// made.
    pub(super) fn is_outdated(&self, born: Instant) -> bool {
        let renewed = self.renewed.load(Relaxed);
        renewed != 0 && born <= self.made + Duration::from_micros(renewed)
    }

    /// Its open connections that will be closed as soon as they are given back, by their fences.
    pub fn closing(&self) -> Vec<Arc<Fence>> {
        let mut connections = lock(&self.connections);
        connections.retain(|(_, fence)| fence.strong_count() > 0);
        let open = connections.iter();
        let open = open.filter_map(|(born, fence)| Some((*born, fence.upgrade()?)));
        open.filter(|(born, fence)| self.will_close(*born, fence))
            .map(|(_, fence)| fence)
            .collect()
    }

    fn will_close(&self, born: Instant, fence: &Fence) -> bool {
        self.is_retired()
            || self.is_outdated(born)
            || !self.instance.is_there(fence.server(), fence.peer())
    }

    fn note_connection(&self, connection: &ServerConnection) {
        let mut connections = lock(&self.connections);
        connections.retain(|(_, fence)| fence.strong_count() > 0);
        connections.push((connection.born, Arc::downgrade(connection.fence())));
    }

    pub(super) fn metrics(&self) -> &InstanceMetrics {
        &self.instance.metrics
    }

    /// Makes a connection, whose slot the caller holds; with parameters of the client's own, as
    /// `key` has them. `worker`: this one. `deadline`: how long it may take.
    pub(super) async fn connect(
        &self,
        key: &PoolKey,
        worker: WorkerId,
        deadline: Duration,
    ) -> Result<Box<ServerConnection>> {
        if let Some((when, error)) = &*lock(&self.last_failure)
            && when.elapsed() < BACKOFF
        {
            return Err(error.clone());
        }
        let server = self.instance.server();
        let began = Instant::now();
        match connect::connect(&server, &self.instance.names, key, deadline).await {
            Ok(mut connection) => {
                connection.worker = worker;
                connection.born = began;
                self.instance.note_login(&self.key, None);
                self.note_connection(&connection);
                self.metrics().connects.add(1);
                self.instance
                    .queue()
                    .note_connected(self.id, began.elapsed());
                forget_other_servers(&mut lock(&self.profiles), &connection.parameters);
                tracing::debug!(server = %server.name, pid = connection.fence().pid(), "connected");
                Ok(Box::new(connection))
            }
            Err(error) => {
                self.metrics().failed_connects.add(1);
                tracing::warn!(server = %server.name, address = %server.address,
                    user = %self.key.login.user, database = %self.key.database, %error,
                    "could not connect");
                // What is wrong with one client's parameters is no reason to refuse others.
                if error.blame() != Blame::Client {
                    self.instance.note_login(&self.key, Some(&error));
                    // What passes is waited for.
                    if !error.is_passing() {
                        *lock(&self.last_failure) = Some((Instant::now(), error.clone()));
                    }
                }
                Err(error)
            }
        }
    }

    /// Whether who got this error as it connected, and holds the slot for it still, is to wait in
    /// line again. The pool then tries again by itself.
    pub(super) fn waits_out(&self, error: &Error) -> bool {
        if !error.is_passing() {
            return false;
        }
        if self.instance.queue().note_refused(self.id, error) {
            let (instance, pool) = (Arc::downgrade(&self.instance), self.id);
            timer::spawn(async move {
                let try_again = |instance: Arc<Instance>| instance.queue().try_again(pool);
                while let Some(pause) = instance.upgrade().and_then(try_again) {
                    timer::sleep(pause).await;
                }
            });
        }
        !self.instance.server().fail_fast
    }

    /// What the server reports to a client with `settings`, and the shared copy of the settings, if
    /// a client had them before.
    pub fn profile(&self, settings: &Settings) -> Option<(Arc<Settings>, Arc<Parameters>)> {
        lock(&self.profiles)
            .get_key_value(settings)
            .map(|(settings, known)| (settings.clone(), known.reported.clone()))
    }

    /// Whether it is time to ask what the server reports to a client with `settings`, of which
    /// something is known. Who is told so is to ask; nobody else need for a while.
    pub fn is_profile_due(&self, settings: &Settings) -> bool {
        let mut profiles = lock(&self.profiles);
        let Some(known) = profiles.get_mut(settings) else {
            return false;
        };
        let due = known.asked.elapsed() >= PROFILE_LIFE;
        if due {
            known.asked = Instant::now();
        }
        due
    }

    /// Remembers what the server reported.
    pub fn remember_profile(&self, settings: &Arc<Settings>, reported: &Arc<Parameters>) {
        let mut profiles = lock(&self.profiles);
        forget_other_servers(&mut profiles, reported);
        if profiles.len() >= MAX_PROFILES {
            profiles.clear();
        }
        let known = Remembered {
            reported: reported.clone(),
            asked: Instant::now(),
        };
        profiles.insert(settings.clone(), known);
    }

    /// Puts the shared copy in place of equal parameters, so that telling them apart later is a
    /// comparison of pointers.
    pub(super) fn share_parameters(&self, settings: &Settings, parameters: &mut Arc<Parameters>) {
        if let Some((_, shared)) = self.profile(settings)
            && shared == *parameters
        {
            *parameters = shared;
        }
    }

    /// An idle connection that carries the tenant's context on `route` and the client's `settings`,
    /// and is at `worker`, which must be this one; at once or never.
    ///
    /// # Errors
    /// What else was granted, if anything was.
    pub fn try_lease(
        self: &Arc<Self>,
        tenant: &Arc<TenantState>,
        route: &Arc<Route>,
        settings: &Arc<Settings>,
        worker: WorkerId,
    ) -> Result<Lease, Option<Grant>> {
        let mut granted = self
            .instance
            .queue()
            .try_take(self.id, tenant, worker)
            .ok_or(None)?;
        if let Granted::Ready(connection) = &mut granted
            && self.is_ready(connection, worker, &tenant.id, route, settings)
            && let Granted::Ready(connection) = granted
        {
            return Ok(Lease::of(self.clone(), tenant.clone(), connection));
        }
        Err(Some(Grant::new(
            self.clone(),
            tenant.clone(),
            worker,
            granted,
        )))
    }

    /// Whether an idle connection needs nothing before a client on `worker` can use it.
    pub(super) fn is_ready(
        &self,
        connection: &mut ServerConnection,
        worker: WorkerId,
        tenant: &TenantId,
        route: &Arc<Route>,
        settings: &Arc<Settings>,
    ) -> bool {
        connection.worker == worker
            && context::carries(connection, tenant, route, settings)
            && self.instance.is_current(connection)
            && connection.is_alive()
            && !self.policies.is_stale()
    }

    /// The same, or room for a new one, whatever it carries: at once or never, and without closing
    /// another.
    pub fn try_checkout(
        self: &Arc<Self>,
        tenant: &Arc<TenantState>,
        worker: WorkerId,
    ) -> Option<Grant> {
        let granted = self.instance.queue().try_take(self.id, tenant, worker)?;
        let closes_another = matches!(granted, Granted::Evict { .. });
        let grant = Grant::new(self.clone(), tenant.clone(), worker, granted);
        (!closes_another).then_some(grant)
    }

    /// A server connection or room for one, when it is this tenant's turn, to be used on `worker`,
    /// which must be this one. `since`: when the client began to wait.
    ///
    /// Cancel safe: a grant that nobody takes goes back.
    ///
    /// # Errors
    /// After the checkout deadline, or at once if the server is to fail fast: why its server lets
    /// nobody in, or else 53300.
    pub async fn checkout(
        self: &Arc<Self>,
        tenant: &Arc<TenantState>,
        worker: WorkerId,
        since: Instant,
    ) -> Result<Grant> {
        let grant = |granted| Grant::new(self.clone(), tenant.clone(), worker, granted);
        let receiver = {
            let mut queue = self.instance.queue();
            match queue.try_take(self.id, tenant, worker) {
                Some(granted) => return Ok(grant(granted)),
                None => {
                    if self.instance.server().fail_fast
                        && !tenant.is_paused()
                        && let Some(error) = queue.refusal(self.id)
                    {
                        return Err(error.clone());
                    }
                    if !tenant.may_wait(queue.waiting(self.id, &tenant.id)) {
                        let message = format!(
                            "too many clients of tenant \"{}\" wait for a server connection",
                            tenant.id
                        );
                        return Err(Error::new(Kind::TooManyConnections, message));
                    }
                    queue.wait(self.id, tenant, worker)
                }
            }
        };
        let mut line = Line {
            pool: self,
            tenant,
            worker,
            receiver,
        };
        let deadline = tenant.checkout_timeout(&self.instance.timeouts());
        let _waiting = tenant.metrics.waiting.enter();
        let began = Instant::now();
        let granted = line.granted(since, deadline).await;
        tenant.metrics.waits.record(began.elapsed());
        granted.map(grant)
    }

    /// A new connection for a client alone, with its own parameters as `key` has them. It is never
    /// given back.
    ///
    /// Cancel safe: what was begun is closed.
    ///
    /// # Errors
    /// Those of [`checkout`](Self::checkout); 08006 and what the server gave as it refused.
    pub async fn connect_alone(
        self: &Arc<Self>,
        tenant: &Arc<TenantState>,
        worker: WorkerId,
        key: &PoolKey,
    ) -> Result<Lease> {
        let since = Instant::now();
        loop {
            let grant = self.checkout(tenant, worker, since).await?;
            if let Some(lease) = grant.connect(key).await? {
                return Ok(lease);
            }
        }
    }
}

/// Forgets all that was reported before the server became what it now says that it is: promoted,
/// upgraded, another one.
fn forget_other_servers(profiles: &mut HashMap<Arc<Settings>, Remembered>, reported: &Parameters) {
    let is_other = |known: &Remembered| {
        OF_SERVER
            .iter()
            .any(|&name| known.reported.get(name) != reported.get(name))
    };
    // What is there is all of one server.
    if profiles.values().next().is_some_and(is_other) {
        profiles.clear();
    }
}

/// A place in the line. What is delivered in the moment it is given up goes back.
struct Line<'a> {
    pool: &'a Arc<Pool>,
    tenant: &'a Arc<TenantState>,
    worker: WorkerId,
    receiver: tokio::sync::oneshot::Receiver<Granted>,
}

impl Line<'_> {
    /// What comes free, or what the reserve has.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// After the `deadline`, counted from `since` or the end of a pause: why the server lets nobody
    /// in, or else 53300.
    async fn granted(&mut self, since: Instant, deadline: Duration) -> Result<Granted> {
        let mut end = since + deadline;
        let mut now = Instant::now();
        let mut patience = match self.tenant.active() {
            0 => RESERVE_AFTER,
            _ => RESERVE_AGAIN,
        };
        loop {
            // A pause is not waited for by the clock.
            if now >= end {
                end = self.tenant.waits_until(since, deadline);
            }
            if now >= end {
                return Err(self.in_vain());
            }
            // One timer for both: to set and take back one costs as much as the rest of a
            // hand-over.
            let next = match self.pool.limits().reserve {
                0 => end,
                _ => end.min(now + patience),
            };
            match timer::timeout_at(next, &mut self.receiver).await {
                Ok(granted) => {
                    let broke =
                        |_| Error::new(Kind::Internal, "the line for server connections broke");
                    return granted.map_err(broke);
                }
                Err(_) => {
                    // What was delivered meanwhile is there: that happens under the same lock.
                    let mut queue = self.pool.instance.queue();
                    let granted = self.receiver.try_recv().ok();
                    let granted = granted.or_else(|| {
                        queue.take_reserve(self.pool.id, self.tenant, self.worker, RESERVE_AFTER)
                    });
                    if let Some(granted) = granted {
                        return Ok(granted);
                    }
                    now = next;
                    patience = (2 * patience).min(RESERVE_AGAIN);
                }
            }
        }
    }

    fn in_vain(&self) -> Error {
        let instance = &self.pool.instance;
        let refusal = instance.queue().refusal(self.pool.id).cloned();
        refusal.unwrap_or_else(|| {
            let deadline = self.tenant.checkout_timeout(&instance.timeouts());
            let message = format!("no server connection became free within {deadline:?}");
            Error::new(Kind::TooManyConnections, message)
        })
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.receiver.close();
        if let Ok(granted) = self.receiver.try_recv() {
            let (pool, tenant) = (self.pool.clone(), self.tenant.clone());
            drop(Grant::new(pool, tenant, self.worker, granted));
        }
    }
}
