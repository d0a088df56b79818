//! What is known of a tenant while the proxy runs: counters, and the limits they are held against.
//! Survives reloads; kept for as long as the process runs, so that counters never go back.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::config::{OwnTimeouts, TenantLimits, Timeouts};
use crate::id::TenantId;
use crate::metrics::TenantMetrics;
use crate::tenant::level::{Asking, Level, Turns};
use crate::tenant::meter::Meter;
use crate::workers::WorkerId;

/// Names of a tenant's clients that are kept to be shared: more than an application uses, and few,
/// since clients choose them.
const NAMES: usize = 16;

/// How a tenant is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paused {
    /// By a command: until another ends it.
    OnConsole,
    /// By its state.
    ByState {
        /// How long its clients wait.
        patience: Duration,
    },
}

/// Whether a tenant is paused.
#[derive(Debug)]
struct Pause {
    /// Most server connections without one.
    limit: usize,
    on: Option<Paused>,
    /// When the last ended.
    ended: Option<Instant>,
}

#[derive(Debug)]
pub struct TenantState {
    pub id: TenantId,
    pub metrics: TenantMetrics,
    /// What all its clients have used of its rates.
    pub meter: Arc<Meter>,
    /// When it was first seen.
    pub since: Instant,
    clients: AtomicUsize,
    /// Most clients at once since it was asked for last.
    peak: AtomicUsize,
    active: AtomicUsize,
    /// The levels that have a `limits.active` of their own and count what it has in use. Whoever
    /// changes `active` holds the lock.
    levels: Mutex<Vec<Arc<Level>>>,
    has_levels: AtomicBool,
    client_limit: AtomicUsize,
    /// None while it is paused.
    active_limit: AtomicUsize,
    waiting_limit: AtomicUsize,
    weight: AtomicU32,
    /// What takes so long is in the slow log, in microseconds; `u64::MAX`: nothing is.
    slow: AtomicU64,
    /// In milliseconds; 0: as in the whole proxy.
    login: AtomicU64,
    checkout: AtomicU64,
    connect: AtomicU64,
    /// Of `metrics.transactions`, what is in `used` by now.
    accounted: AtomicU64,
    /// Server time in microseconds, for a weight of 1.
    used: AtomicU64,
    /// The same by the config, and whether it is paused.
    pause: Mutex<Pause>,
    /// Tells who waits for the end of a pause.
    resumed: Notify,
    /// Of its clients: users, databases.
    names: Mutex<Vec<Arc<str>>>,
    /// Where its last client was put: a worker's number and 1, or 0.
    worker: AtomicU32,
}

impl TenantState {
    pub fn new(id: TenantId) -> Self {
        Self {
            id,
            metrics: TenantMetrics::default(),
            meter: Arc::default(),
            since: Instant::now(),
            clients: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            names: Mutex::default(),
            active: AtomicUsize::new(0),
            levels: Mutex::default(),
            has_levels: AtomicBool::new(false),
            client_limit: AtomicUsize::new(usize::MAX),
            active_limit: AtomicUsize::new(usize::MAX),
            waiting_limit: AtomicUsize::new(usize::MAX),
            weight: AtomicU32::new(1),
            slow: AtomicU64::new(u64::MAX),
            login: AtomicU64::new(0),
            checkout: AtomicU64::new(0),
            connect: AtomicU64::new(0),
            accounted: AtomicU64::new(0),
            used: AtomicU64::new(0),
            pause: Mutex::new(Pause {
                limit: usize::MAX,
                on: None,
                ended: None,
            }),
            resumed: Notify::new(),
            worker: AtomicU32::new(0),
        }
    }

    /// `name`, of a user or a database, as one string for all clients that have it.
    pub fn shared_name(&self, name: &str) -> Arc<str> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.iter().find(|known| known.as_ref() == name) {
            return known.clone();
        }
        let new: Arc<str> = name.into();
        if names.len() < NAMES {
            names.push(new.clone());
        }
        new
    }

    pub fn set_limits(&self, limits: TenantLimits) {
        self.client_limit
            .store(limits.clients.unwrap_or(usize::MAX), Relaxed);
        self.waiting_limit
            .store(limits.waiting.unwrap_or(usize::MAX), Relaxed);
        self.weight.store(limits.weight, Relaxed);
        self.meter.set(limits.rates);
        let mut pause = self.pause();
        pause.limit = limits.active.unwrap_or(usize::MAX);
        self.apply(&pause);
    }

    /// From what time on what it does is in the slow log. None: nothing is.
    pub fn slow(&self) -> Option<Duration> {
        match self.slow.load(Relaxed) {
            u64::MAX => None,
            us => Some(Duration::from_micros(us)),
        }
    }

    pub fn set_slow(&self, slow: Option<Duration>) {
        let us = slow.and_then(|slow| u64::try_from(slow.as_micros()).ok());
        self.slow.store(us.unwrap_or(u64::MAX), Relaxed);
    }

    /// `own`: those that it has of its own, beside the proxy's.
    pub fn set_timeouts(&self, own: OwnTimeouts) {
        let milliseconds = |time: Option<Duration>| {
            let time = time.map_or(0, |time| time.as_millis());
            u64::try_from(time).unwrap_or(u64::MAX)
        };
        self.login.store(milliseconds(own.login), Relaxed);
        self.checkout.store(milliseconds(own.checkout), Relaxed);
        self.connect.store(milliseconds(own.connect), Relaxed);
    }

    /// From accept to a finished login. `of_all`: what the proxy says.
    pub fn login_timeout(&self, of_all: &Timeouts) -> Duration {
        own_or(&self.login, of_all.login)
    }

    /// How long its clients wait for a server connection, or for a rate.
    pub fn checkout_timeout(&self, of_all: &Timeouts) -> Duration {
        own_or(&self.checkout, of_all.checkout)
    }

    /// How long to connect for them, or to change the context of a connection, may take.
    pub fn connect_timeout(&self, of_all: &Timeouts) -> Duration {
        own_or(&self.connect, of_all.connect)
    }

    /// The server time that its transactions have had, in microseconds for a weight of 1, within
    /// `bounds`. Called under the lock of its instance.
    pub fn account(&self, bounds: RangeInclusive<u64>) -> u64 {
        let total = self.metrics.transactions.sum_us();
        let new = total.saturating_sub(self.accounted.swap(total, Relaxed));
        let weight = u64::from(self.weight.load(Relaxed).max(1));
        // What is less than a microsecond for its weight stays to be accounted.
        self.accounted.fetch_sub(new % weight, Relaxed);
        let used = self.used.load(Relaxed) + new / weight;
        let used = used.clamp(*bounds.start(), *bounds.end());
        self.used.store(used, Relaxed);
        used
    }

    /// Whether one more of its clients may wait for a server connection; so many do. All may while
    /// it is paused.
    pub fn may_wait(&self, waiting: usize) -> bool {
        waiting < self.waiting_limit.load(Relaxed) || self.is_paused()
    }

    fn pause(&self) -> MutexGuard<'_, Pause> {
        self.pause.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, pause: &Pause) {
        let limit = if pause.on.is_some() { 0 } else { pause.limit };
        self.active_limit.store(limit, Relaxed);
    }

    /// Pauses it, or ends that: while it is paused it is given no server connection. Whether that
    /// is new. Who waits for one is served once its instance is told.
    pub fn set_paused(&self, paused: Option<Paused>) -> bool {
        let mut pause = self.pause();
        let is_new = pause.on.is_some() != paused.is_some();
        pause.on = paused;
        if is_new {
            pause.ended = paused.is_none().then(Instant::now);
            self.apply(&pause);
            self.resumed.notify_waiters();
        }
        is_new
    }

    pub fn is_paused(&self) -> bool {
        self.pause().on.is_some()
    }

    /// When a wait is over that began at `since` and may take as long as `deadline`: a pause is not
    /// waited for by the clock, unless it is by the tenant's state.
    pub fn waits_until(&self, since: Instant, deadline: Duration) -> Instant {
        let pause = self.pause();
        match pause.on {
            Some(Paused::OnConsole) => Instant::now() + deadline,
            Some(Paused::ByState { patience }) => since + patience,
            None => pause.ended.map_or(since, |ended| ended.max(since)) + deadline,
        }
    }

    /// Waits for the end of a pause, if there is one.
    ///
    /// Cancel safe.
    pub async fn resumed(&self) {
        loop {
            let resumed = self.resumed.notified();
            if !self.is_paused() {
                return;
            }
            resumed.await;
        }
    }

    /// The worker its last client was put to: its clients are better off together.
    pub fn worker(&self) -> Option<WorkerId> {
        let number = self.worker.load(Relaxed).checked_sub(1)?;
        u16::try_from(number).ok().map(WorkerId::from)
    }

    pub fn set_worker(&self, worker: WorkerId) {
        let number = u32::try_from(worker.number()).unwrap_or(0);
        self.worker.store(number + 1, Relaxed);
    }

    /// Clients logged in now.
    pub fn clients(&self) -> usize {
        self.clients.load(Relaxed)
    }

    /// Most clients at once since [`take_peak`](Self::take_peak) last.
    pub fn peak(&self) -> usize {
        self.peak.load(Relaxed)
    }

    /// The same; from now on, others count, and those that are there.
    pub fn take_peak(&self) -> usize {
        let peak = self.peak.swap(0, Relaxed);
        self.peak.fetch_max(self.clients(), Relaxed);
        peak
    }

    /// Server connections in use now.
    pub fn active(&self) -> usize {
        self.active.load(Relaxed)
    }

    /// Counts a client in for as long as the guard lives, or refuses it over the limit.
    pub fn admit(self: &Arc<Self>) -> Option<ClientGuard> {
        let before = self.clients.fetch_add(1, Relaxed);
        let guard = ClientGuard(self.clone());
        let is_admitted = before < self.client_limit.load(Relaxed);
        if is_admitted {
            self.peak.fetch_max(before + 1, Relaxed);
        }
        is_admitted.then_some(guard)
    }

    fn levels(&self) -> MutexGuard<'_, Vec<Arc<Level>>> {
        self.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The levels that count what it has in use from now on. Who waits is served once the instances
    /// are told.
    pub fn set_levels(&self, new: Vec<Arc<Level>>) {
        let mut levels = self.levels();
        let active = self.active();
        levels.iter().for_each(|level| level.shift(0, active));
        new.iter().for_each(|level| level.shift(active, 0));
        self.has_levels.store(!new.is_empty(), Relaxed);
        *levels = new;
    }

    /// Whether it may use one more server connection, as far as its own limit goes.
    pub fn may_activate(&self) -> bool {
        self.active() < self.active_limit.load(Relaxed)
    }

    /// Whether it is of levels that have a limit, too.
    pub fn has_levels(&self) -> bool {
        self.has_levels.load(Relaxed)
    }

    /// The same as far as its levels go. If one of them is full, `asking` has a turn there later.
    pub fn levels_let_in(&self, asking: &Asking<'_>) -> bool {
        let holds = self.active() > 0;
        let levels = self.levels();
        levels.iter().all(|level| level.lets_in(asking, holds))
    }

    /// Counts a server connection in, unless a level of its is full;
    /// [`deactivate`](Self::deactivate) counts it out. Both are called under the instance's lock,
    /// by the pool alone.
    pub(crate) fn activate(&self, asking: &Asking<'_>) -> bool {
        let levels = self.levels();
        let holds = self.active() > 0;
        let full = levels.iter().position(|level| !level.enter(asking, holds));
        match full {
            Some(full) => levels[..full]
                .iter()
                .for_each(|level| _ = level.leave(None)),
            None => _ = self.active.fetch_add(1, Relaxed),
        }
        full.is_none()
    }

    /// `here`: the server that it was of, if that can take a turn at once. Returns the levels where
    /// it is to.
    pub(crate) fn deactivate(&self, here: Option<&Arc<Turns>>) -> Vec<Arc<Level>> {
        let levels = self.levels();
        self.active.fetch_sub(1, Relaxed);
        let turns = levels.iter().filter(|level| level.leave(here));
        turns.cloned().collect()
    }
}

fn own_or(own: &AtomicU64, of_all: Duration) -> Duration {
    match own.load(Relaxed) {
        0 => of_all,
        own => Duration::from_millis(own),
    }
}

/// A client that is counted.
#[derive(Debug)]
pub struct ClientGuard(Arc<TenantState>);

impl ClientGuard {
    pub fn tenant(&self) -> &Arc<TenantState> {
        &self.0
    }
}

impl Drop for ClientGuard {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Relaxed);
    }
}
