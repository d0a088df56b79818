//! The bookkeeping of one instance: which pools have which connections, and who waits for one.
//! Pure data under the instance's lock; nothing here waits or touches a socket.
//!
//! A connection is found in this order: an idle one that carries the tenant's context; an idle one
//! that carries none; a new one within the pool's size and the instance's budget; the least
//! recently used idle one of another tenant in the same pool; the slot of the least recently used
//! idle one of another pool. Else the tenant waits, behind its own clients only: of the tenants
//! that wait, the one goes first that has had the least server time for its weight.
//!
//! Clients are on several workers, and a connection is used where its client is. One that is there
//! already is taken first, and what comes back goes to a client of the same worker before others,
//! within narrow bounds ([`NEAR`]): the numbers and limits here are of all workers together, and
//! exact.
//!
//! One tenant cannot keep the others away, whatever it holds for however long: who holds no
//! connection gets one of the pool's reserve after a moment, and the last places of the instance
//! are for such tenants. What a pool has over its size stays for a while, for tenants that hold
//! none.
//!
//! Where the budget is used up, a place goes from pool to pool in turns: a new connection costs the
//! server far more than a statement, so a pool that its clients keep busy has its place for a while
//! ([`Queue::place_turn`]).

mod door;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use tokio::sync::oneshot;

use crate::backend::connection::{Kept, ServerConnection};
use crate::backend::instance::Pool;
use crate::config::PoolLimits;
use crate::error::{Error, Kind};
use crate::id::{PoolId, TenantId};
use crate::tenant::level::{Asking, Level, Turns};
use crate::tenant::state::TenantState;
use crate::workers::WorkerId;

use self::door::Door;

/// Leases in a row that a tenant may take on one connection while other tenants wait, and for how
/// long: changing the tenant costs more than a short transaction.
const TURN: u32 = 32;
const TURN_TIME: Duration = Duration::from_millis(20);

/// How long a connection is kept for the client that gave it back while other tenants wait: most
/// send the next transaction as soon as they have the answer to the last.
const LINGER: Duration = Duration::from_millis(3);
/// Without success, it is tried each so many times.
const LINGER_TRIAL: u32 = 16;
/// What was kept in vain counts twice: it must have helped two times of three.
const LINGER_SCORES: std::ops::RangeInclusive<i32> = -16..=16;

/// How long a place is kept for its pool while other pools wait for one. It is longer than
/// [`LINGER`] since more is at stake: to fork, to log in, and to read the catalogs.
const PLACE_LINGER: Duration = Duration::from_millis(10);
/// In so much time every pool that waits for a place shall have had one.
const PLACE_ROUND: Duration = Duration::from_millis(1200);
/// A turn of a place takes at most so long, and at least so many times as long as to connect.
const LONGEST_PLACE_TURN: Duration = Duration::from_millis(500);
const PLACE_TURN_IN_CONNECTS: u32 = 4;

/// A pool whose server lets in no more has connections there, if one has come back within this
/// time.
const WORKS_FOR: Duration = Duration::from_secs(5);

/// How long a connection over its pool's size stays idle.
const SURPLUS_LIFE: Duration = Duration::from_secs(5);

/// So many microseconds of server time a tenant that waits can have had before the others, at most:
/// what it used while nobody waited was nobody else's.
const MOST_OWED: u64 = 1_000_000;

/// What comes back may go to who is near, on the same worker, past so many at most that came
/// before: no client is overtaken by more than so many of its tenant's that came later, and no
/// tenant by more than so many others in one turn.
const NEAR: u64 = 16;

/// What a checkout is given.
pub enum Granted {
    /// An idle connection; whose context it carries must still be checked.
    Ready(Box<ServerConnection>),
    /// Room for a new one.
    Slot,
    /// Room for a new one, once this idle one of another pool is closed.
    Evict {
        from: PoolId,
        connection: Box<ServerConnection>,
    },
}

struct Waiter {
    tenant: Arc<TenantState>,
    worker: WorkerId,
    /// The how-manieth of its line.
    number: u64,
    sender: oneshot::Sender<Granted>,
}

/// The waiting clients of a tenant in a pool.
#[derive(Default)]
struct Line {
    waiters: VecDeque<Waiter>,
    /// How many have come.
    count: u64,
}

impl Line {
    /// Who is next: the first, or one soon after it that is near; passes over those that have left.
    fn next(&self, near: Option<WorkerId>) -> Option<(usize, &Waiter)> {
        let waiters = self.waiters.iter().enumerate();
        let mut waiters = waiters.filter(|(_, waiter)| !waiter.sender.is_closed());
        let (at, first) = waiters.next()?;
        if near.is_none_or(|near| near == first.worker) {
            return Some((at, first));
        }
        let mut soon = waiters.take_while(|(_, waiter)| waiter.number <= first.number + NEAR);
        let one_near = soon.find(|(_, waiter)| near == Some(waiter.worker));
        Some(one_near.unwrap_or((at, first)))
    }
}

/// A tenant with waiting clients.
struct Turn {
    pool: PoolId,
    tenant: TenantId,
    /// The server time that it has had, in microseconds for a weight of 1, or what those have had
    /// that were served lately, if that is more: who did nothing for a while saves nothing up.
    used: u64,
    /// So many others went before since they were near.
    overtaken: u64,
}

pub struct PoolState {
    pub pool: Arc<Pool>,
    /// Least recently used first.
    idle: VecDeque<Box<ServerConnection>>,
    /// Connections, idle or not, also those that are just being made or closed.
    total: usize,
    waiting: FxHashMap<TenantId, Line>,
    /// How often lingering helped lately, and how often it could have.
    score: i32,
    chances: u32,
    /// Somebody sees to it that lingering ends.
    watched: bool,
    /// When a connection last came back; before the first does, when the pool was made.
    last_back: Instant,
    /// One has come back.
    works: bool,
    door: Door,
}

impl PoolState {
    /// Whether a connection that comes back is to be kept for its tenant for a moment: only while
    /// the others keep the server busy, and where that was worth it before.
    fn may_linger(&mut self) -> bool {
        let busy = self.busy();
        if busy < 2 || 3 * busy < self.pool.limits().size {
            return false;
        }
        self.chances = self.chances.wrapping_add(1);
        self.score > 0 || self.chances.is_multiple_of(LINGER_TRIAL)
    }

    fn note_lingering(&mut self, helped: bool) {
        let score = self.score + if helped { 1 } else { -2 };
        self.score = score.clamp(*LINGER_SCORES.start(), *LINGER_SCORES.end());
    }

    fn is_lingering(&self) -> bool {
        self.idle.iter().any(|idle| idle.kept != Kept::No)
    }

    /// An idle connection that carries the tenant's context, or none. The one that was used last on
    /// `worker`; else the one used longest ago elsewhere, where it is missed least. To set the
    /// context costs more than to come from another worker.
    fn free(&self, tenant: &TenantState, worker: WorkerId) -> Option<usize> {
        let (mut own_elsewhere, mut clean, mut clean_elsewhere) = (None, None, None);
        for (at, connection) in self.idle.iter().enumerate().rev() {
            let here = connection.worker == worker;
            match connection.context.tenant() {
                Some(owner) if *owner == tenant.id => match here {
                    true => return Some(at),
                    false => own_elsewhere = Some(at),
                },
                Some(_) => {}
                None if here => clean = clean.or(Some(at)),
                None => clean_elsewhere = Some(at),
            }
        }
        own_elsewhere.or(clean).or(clean_elsewhere)
    }

    /// The idle connection that was used longest ago; one of `worker`, if that is among the older
    /// half.
    fn of_others(&self, worker: WorkerId, lingering_too: bool) -> Option<usize> {
        let mut idle = self.idle.iter().enumerate();
        let mut may_go = idle
            .by_ref()
            .filter(|(_, idle)| lingering_too || !matches!(idle.kept, Kept::ForTenant(_)));
        let (oldest, _) = may_go.next()?;
        let is_here = |at: usize| self.idle[at].worker == worker;
        let older = self.idle.len().div_ceil(2);
        let here = (!is_here(oldest)).then(|| {
            may_go
                .take_while(|(at, _)| *at < older)
                .find(|(at, _)| is_here(*at))
        });
        Some(here.flatten().map_or(oldest, |(at, _)| at))
    }

    fn busy(&self) -> usize {
        self.total - self.idle.len()
    }

    /// More connections than its size and its reserve: they were lowered.
    fn is_over(&self) -> bool {
        let PoolLimits { size, reserve, .. } = self.pool.limits();
        self.total > size + reserve
    }

    /// The idle connection that may be closed for another pool, the one used longest ago.
    fn dispensable(&self, lingering_too: bool) -> Option<(Instant, usize)> {
        let mut idle = self.idle.iter().enumerate();
        let (at, oldest) = idle.find(|(_, idle)| lingering_too || idle.kept == Kept::No)?;
        Some((oldest.idle_since, at))
    }
}

/// Numbers of a pool for the admin console.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolCounts {
    pub total: usize,
    pub idle: usize,
    pub waiting: usize,
}

pub struct Queue {
    /// Most connections over all pools.
    limit: usize,
    total: usize,
    /// Connections that tenants hold.
    active: usize,
    pools: FxHashMap<PoolId, PoolState>,
    /// Tenants with waiting clients, those that have used least first.
    ring: VecDeque<Turn>,
    /// What the one has used whose turn was next when one was served last, or before if that was
    /// more.
    used: u64,
    /// What it took to connect lately.
    price: Duration,
    /// Its turns at levels that were full, and whether it has one just now.
    turns: Arc<Turns>,
    in_turn: bool,
}

impl Queue {
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            total: 0,
            active: 0,
            pools: FxHashMap::default(),
            ring: VecDeque::new(),
            used: 0,
            price: Duration::ZERO,
            turns: Arc::default(),
            in_turn: false,
        }
    }

    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
        self.dispatch_all();
    }

    pub fn total(&self) -> usize {
        self.total
    }

    /// Takes a place for a connection that is not a client's, if one is free;
    /// [`give_back`](Self::give_back) ends it.
    pub fn reserve(&mut self) -> bool {
        let free = self.total < self.limit;
        self.total += usize::from(free);
        free
    }

    pub fn give_back(&mut self) {
        self.total = self.total.saturating_sub(1);
        self.dispatch_all();
    }

    /// Over a limit that was lowered: connections are closed instead of kept.
    pub fn is_over(&self) -> bool {
        self.total > self.limit
    }

    pub fn pools(&self) -> impl Iterator<Item = (&Arc<Pool>, PoolCounts)> {
        self.pools.values().map(|state| {
            let lines = state.waiting.values();
            let waiting = lines.map(|line| line.waiters.len()).sum();
            let counts = PoolCounts {
                total: state.total,
                idle: state.idle.len(),
                waiting,
            };
            (&state.pool, counts)
        })
    }

    /// Idle connections, for the admin console and the sweeper.
    pub fn idle(&self) -> impl Iterator<Item = (&Arc<Pool>, &ServerConnection)> {
        self.pools
            .values()
            .flat_map(|state| state.idle.iter().map(|c| (&state.pool, &**c)))
    }

    pub fn add_pool(&mut self, pool: Arc<Pool>) {
        self.pools.entry(pool.id).or_insert_with(|| PoolState {
            pool,
            idle: VecDeque::new(),
            total: 0,
            waiting: FxHashMap::default(),
            score: 1,
            chances: 0,
            watched: false,
            last_back: Instant::now(),
            works: false,
            door: Door::default(),
        });
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.pools.clear();
        self.ring.clear();
    }

    /// Drops pools that have no connection and that nobody else holds.
    pub fn drop_unused_pools(&mut self) {
        self.pools.retain(|_, state| {
            state.total > 0 || !state.waiting.is_empty() || Arc::strong_count(&state.pool) > 1
        });
    }

    /// A connection or room for one, if `tenant` need not wait.
    pub fn try_take(
        &mut self,
        pool: PoolId,
        tenant: &TenantState,
        worker: WorkerId,
    ) -> Option<Granted> {
        let behind_its_own = self.pools.get(&pool)?.waiting.contains_key(&tenant.id);
        if behind_its_own || !self.may_activate(pool, tenant) {
            return None;
        }
        let found = self.find(pool, tenant, worker, Share::Usual)?;
        self.take_for(pool, tenant, found)
    }

    /// A connection or room for one from the pool's reserve, for a tenant that holds none, if none
    /// came back to the pool for `patience`: else it waits because there is much to do, and gets
    /// its turn.
    pub fn take_reserve(
        &mut self,
        pool: PoolId,
        tenant: &TenantState,
        worker: WorkerId,
        patience: Duration,
    ) -> Option<Granted> {
        let last_back = self.pools.get(&pool)?.last_back;
        let has_waited = tenant.active() == 0 && last_back.elapsed() >= patience;
        if !has_waited || !self.may_activate(pool, tenant) {
            return None;
        }
        let found = self.find(pool, tenant, worker, Share::Reserve)?;
        self.take_for(pool, tenant, found)
    }

    /// Takes what was found, counted as the tenant's. None: it is there no more, or a level of the
    /// tenant has become full.
    fn take_for(&mut self, pool: PoolId, tenant: &TenantState, found: Found) -> Option<Granted> {
        if !self.activate(pool, tenant) {
            return None;
        }
        let granted = self.take(pool, found);
        if granted.is_none() {
            self.count_out(tenant);
        }
        granted
    }

    fn asking(&self, pool: PoolId) -> Asking<'_> {
        let state = self.pools.get(&pool);
        Asking {
            turns: &self.turns,
            in_turn: self.in_turn,
            reserve: state.map_or(0, |state| state.pool.limits().reserve),
        }
    }

    fn may_activate(&self, pool: PoolId, tenant: &TenantState) -> bool {
        tenant.may_activate() && (!tenant.has_levels() || tenant.levels_let_in(&self.asking(pool)))
    }

    fn activate(&mut self, pool: PoolId, tenant: &TenantState) -> bool {
        let may = tenant.activate(&self.asking(pool));
        self.active += usize::from(may);
        may
    }

    /// Counts out what was not used after all.
    fn count_out(&mut self, tenant: &TenantState) {
        tenant.deactivate(None);
        self.active -= 1;
    }

    /// Counts out what a client gave back. Returns the levels at which it is this instance's
    /// [turn](Self::take_turn).
    fn count_back(&mut self, tenant: &TenantState) -> Vec<Arc<Level>> {
        self.active -= 1;
        tenant.deactivate(Some(&self.turns))
    }

    /// Where the turns of this instance are told.
    pub fn turns(&self) -> &Arc<Turns> {
        &self.turns
    }

    /// Takes the turns at levels that were full before.
    pub fn take_turns(&mut self, levels: Vec<Arc<Level>>) {
        for level in levels {
            if level.begin_turn(&self.turns) {
                self.in_turn = true;
                self.dispatch_all();
                self.in_turn = false;
            }
            level.end_turn();
        }
    }

    /// Clients of a tenant that wait in a pool.
    pub fn waiting(&self, pool: PoolId, tenant: &TenantId) -> usize {
        let state = self.pools.get(&pool);
        let line = state.and_then(|state| state.waiting.get(tenant));
        line.map_or(0, |line| line.waiters.len())
    }

    /// Stands in line.
    pub fn wait(
        &mut self,
        pool: PoolId,
        tenant: &Arc<TenantState>,
        worker: WorkerId,
    ) -> oneshot::Receiver<Granted> {
        let (sender, receiver) = oneshot::channel();
        let Some(state) = self.pools.get_mut(&pool) else {
            return receiver;
        };
        let is_new = !state.waiting.contains_key(&tenant.id);
        let line = state.waiting.entry(tenant.id.clone()).or_default();
        line.count += 1;
        line.waiters.push_back(Waiter {
            tenant: tenant.clone(),
            worker,
            number: line.count,
            sender,
        });
        if is_new {
            self.line_up(pool, tenant);
        }
        receiver
    }

    fn line_up(&mut self, pool: PoolId, tenant: &TenantState) {
        let used = tenant.account(self.used..=self.used.saturating_add(MOST_OWED));
        let at = self.ring.partition_point(|turn| turn.used <= used);
        let turn = Turn {
            pool,
            tenant: tenant.id.clone(),
            used,
            overtaken: 0,
        };
        self.ring.insert(at, turn);
    }

    /// What there is for a client of `tenant` on `worker`.
    fn find(
        &self,
        pool: PoolId,
        tenant: &TenantState,
        worker: WorkerId,
        share: Share,
    ) -> Option<Found> {
        let room = self.total < self.limit;
        let state = self.pools.get(&pool)?;
        let PoolLimits { size, reserve, .. } = state.pool.limits();
        let kept = reserve.min(self.limit / 4);
        if tenant.active() > 0 && (state.busy() >= size || self.active + kept >= self.limit) {
            return None;
        }
        if let Some(at) = state.free(tenant, worker) {
            return Some(Found::Free(at));
        }
        let below_size = match share {
            Share::Usual => state.total < size,
            Share::Reserve => state.total < size + reserve,
        };
        let may_connect = below_size && state.door.lets_in();
        if may_connect && room {
            return Some(Found::Room);
        }
        let nobody_waits = self.ring.is_empty();
        if let Some(at) = state.of_others(worker, nobody_waits) {
            return Some(Found::OfOthers(at));
        }
        if may_connect && self.total == self.limit {
            let pools = self.pools.iter();
            let idle = pools.filter_map(|(&from, state)| {
                let (since, at) = state.dispensable(nobody_waits)?;
                Some((since, from, at))
            });
            let (_, from, at) = idle.min()?;
            return Some(Found::Elsewhere { from, at });
        }
        None
    }

    /// Takes what was found, under the same lock.
    fn take(&mut self, pool: PoolId, found: Found) -> Option<Granted> {
        let state = self.pools.get_mut(&pool)?;
        match found {
            Found::Free(at) => {
                let mut connection = state.idle.remove(at)?;
                if let Kept::ForTenant(_) = std::mem::take(&mut connection.kept) {
                    state.note_lingering(true);
                }
                Some(Granted::Ready(connection))
            }
            Found::Room => {
                state.door.knock();
                state.total += 1;
                self.total += 1;
                Some(Granted::Slot)
            }
            Found::OfOthers(at) => {
                let mut connection = state.idle.remove(at)?;
                connection.kept = Kept::No;
                connection.turn = 0;
                Some(Granted::Ready(connection))
            }
            Found::Elsewhere { from, at } => {
                let victim = self.pools.get_mut(&from)?;
                let mut connection = victim.idle.remove(at)?;
                // Nobody may be watching any more when it comes back.
                connection.kept = Kept::No;
                victim.total -= 1;
                victim.pool.metrics().evictions.add(1);
                let state = self.pools.get_mut(&pool)?;
                state.door.knock();
                state.total += 1;
                Some(Granted::Evict { from, connection })
            }
        }
    }

    /// Puts back what a lease or an unused grant held, and serves who waits. What is returned is to
    /// be closed: the pool has more than it may.
    #[must_use]
    pub fn put_back(
        &mut self,
        pool: PoolId,
        tenant: &TenantState,
        connection: Box<ServerConnection>,
        now: Instant,
    ) -> Option<Box<ServerConnection>> {
        let turns = self.count_back(tenant);
        let surplus = self.pass_on(pool, tenant, connection, now);
        self.take_turns(turns);
        surplus
    }

    /// Gives what came back to who is next, or keeps it.
    fn pass_on(
        &mut self,
        pool: PoolId,
        tenant: &TenantState,
        mut connection: Box<ServerConnection>,
        now: Instant,
    ) -> Option<Box<ServerConnection>> {
        connection.idle_since = now;
        let place_turn = self.place_turn();
        let budget_is_used_up = self.total >= self.limit;
        let state = self.pools.get_mut(&pool)?;
        state.last_back = now;
        state.works = true;
        if self.ring.is_empty() {
            if state.is_over() {
                return Some(connection);
            }
            state.idle.push_back(connection);
            return None;
        }
        if connection.turn == 0 {
            connection.turn_began = now;
        }
        let waits = state.waiting.contains_key(&tenant.id);
        let others_wait_here = state.waiting.len() > usize::from(waits);
        // For others of its pool its context would be changed; for those of other pools it would be
        // closed.
        let its_turn = match others_wait_here {
            true => connection.turn < TURN && now - connection.turn_began < TURN_TIME,
            false => now.saturating_duration_since(connection.born) < place_turn,
        };
        let stays = its_turn && connection.context.tenant() == Some(&tenant.id);
        connection.turn += 1;
        // Most that come back have nobody of their tenant in line, and the ring may be long.
        let is_its = |turn: &Turn| turn.pool == pool && turn.tenant == tenant.id;
        let position = (stays && waits)
            .then(|| self.ring.iter().position(is_its))
            .flatten();
        connection.kept = match others_wait_here {
            _ if !stays || position.is_some() => Kept::No,
            true if state.may_linger() => Kept::ForTenant(now + LINGER),
            false if budget_is_used_up => Kept::ForPool(now + PLACE_LINGER),
            _ => Kept::No,
        };
        let lingers = connection.kept != Kept::No;
        let near = Some(connection.worker);
        state.idle.push_back(connection);
        let served = position.is_some_and(|position| self.serve(position, near) == Served::Granted);
        if !served && !lingers {
            self.dispatch(near);
        }
        self.end_lingering(pool, now);
        let state = self.pools.get_mut(&pool)?;
        match state.is_over() {
            true => state.idle.pop_front(),
            false => None,
        }
    }

    /// Gives what was kept for nobody to who waits. Returns how long something is still kept at
    /// most before this is to be called again.
    pub fn end_lingering(&mut self, pool: PoolId, now: Instant) -> Option<Duration> {
        let state = self.pools.get_mut(&pool)?;
        let mut ended = Vec::new();
        let mut next = None;
        let mut in_vain = 0;
        for connection in &mut state.idle {
            let (Kept::ForTenant(until) | Kept::ForPool(until)) = connection.kept else {
                continue;
            };
            match until.checked_duration_since(now) {
                Some(left) if !left.is_zero() => {
                    next = Some(next.map_or(left, |next| left.min(next)));
                }
                _ => {
                    in_vain += usize::from(matches!(connection.kept, Kept::ForTenant(_)));
                    connection.kept = Kept::No;
                    ended.push(connection.worker);
                }
            }
        }
        for _ in 0..in_vain {
            state.note_lingering(false);
        }
        for near in ended {
            self.dispatch(Some(near));
        }
        next
    }

    /// Whether the caller is to call [`end_lingering`](Self::end_lingering) from now on until
    /// nothing is kept.
    pub fn must_be_watched(&mut self, pool: PoolId) -> bool {
        let Some(state) = self.pools.get_mut(&pool) else {
            return false;
        };
        !state.watched && state.is_lingering() && {
            state.watched = true;
            true
        }
    }

    /// Nobody watches any more.
    pub fn unwatch(&mut self, pool: PoolId) {
        if let Some(state) = self.pools.get_mut(&pool) {
            state.watched = false;
        }
    }

    /// How long a pool that its clients keep busy has a place, now that others wait for one.
    fn place_turn(&self) -> Duration {
        let rounds = self.ring.len().div_ceil(self.limit.max(1)).max(1);
        let rounds = u32::try_from(rounds).unwrap_or(u32::MAX);
        let turn = (PLACE_ROUND / rounds).min(LONGEST_PLACE_TURN);
        turn.max(self.price * PLACE_TURN_IN_CONNECTS)
    }

    /// A connection of `pool` was made, in this time.
    pub fn note_connected(&mut self, pool: PoolId, took: Duration) {
        self.price = match self.price.is_zero() {
            true => took,
            false => (self.price * 7 + took) / 8,
        };
        let state = self.pools.get_mut(&pool);
        if state.is_some_and(|state| state.door.open()) {
            self.dispatch_all();
        }
    }

    /// The server let no connection of `pool` in, for a reason that passes; the slot for it is
    /// counted still. True: the caller is to call [`try_again`](Self::try_again) from now on.
    pub fn note_refused(&mut self, pool: PoolId, error: &Error) -> bool {
        let Some(state) = self.pools.get_mut(&pool) else {
            return false;
        };
        let works = state.works && state.last_back.elapsed() < WORKS_FOR;
        let is_full = works && error.kind() == Kind::TooManyConnections;
        state.door.shut(error.clone(), is_full)
    }

    /// Why the server lets no connection of `pool` in, if it does not.
    pub fn refusal(&self, pool: PoolId) -> Option<&Error> {
        self.pools.get(&pool)?.door.error()
    }

    /// After a refusal: finds who may try again. Returns when this is to be called again; None: the
    /// server lets clients in.
    pub fn try_again(&mut self, pool: PoolId) -> Option<Duration> {
        self.dispatch_all();
        self.pools.get_mut(&pool)?.door.look(Instant::now())
    }

    /// Why the server lets nobody in, as some pool found out lately.
    pub fn trouble(&self) -> Option<&Error> {
        let now = Instant::now();
        let mut pools = self.pools.values();
        pools.find_map(|state| state.door.trouble(now))
    }

    /// Takes out what pools have had over their sizes for a while and do not use; it counts until
    /// [`release`](Self::release).
    pub fn take_surplus(&mut self, now: Instant) -> Vec<(Arc<Pool>, Box<ServerConnection>)> {
        let mut taken = Vec::new();
        for state in self.pools.values_mut() {
            let over = state.total.saturating_sub(state.pool.limits().size);
            let is_old = |idle: &ServerConnection| {
                now.saturating_duration_since(idle.idle_since) > SURPLUS_LIFE
            };
            let old = state.idle.iter().take_while(|idle| is_old(idle)).count();
            let surplus = state.idle.drain(..old.min(over));
            taken.extend(surplus.map(|connection| (state.pool.clone(), connection)));
        }
        taken
    }

    /// Whether a pool has fewer connections than it keeps, and one can be made that nobody waits
    /// for: it takes no place that others wait for, and closes no other connection.
    pub fn lacks_spares(&self, pool: PoolId) -> bool {
        self.pools.get(&pool).is_some_and(|state| {
            let has_room = self.total < self.limit && self.ring.is_empty();
            state.total < state.pool.limits().min && has_room && state.door.lets_in()
        })
    }

    /// Takes the place of such a connection: [`put_spare`](Self::put_spare) or
    /// [`release`](Self::release) follows. False: there is none to be made.
    pub fn take_spare(&mut self, pool: PoolId) -> bool {
        if !self.lacks_spares(pool) {
            return false;
        }
        let Some(state) = self.pools.get_mut(&pool) else {
            return false;
        };
        state.door.knock();
        state.total += 1;
        self.total += 1;
        true
    }

    /// Puts such a connection in its place, and serves who has come to wait meanwhile.
    pub fn put_spare(&mut self, pool: PoolId, connection: Box<ServerConnection>) {
        let near = Some(connection.worker);
        if let Some(state) = self.pools.get_mut(&pool) {
            state.idle.push_back(connection);
        }
        self.dispatch(near);
    }

    /// Of each pool that keeps connections: how many more it has.
    pub fn spares(&self) -> HashMap<PoolId, usize> {
        let keeping = self.pools.iter();
        keeping
            .map(|(&id, state)| (id, state.total, state.pool.limits().min))
            .filter(|(_, _, min)| *min > 0)
            .map(|(id, total, min)| (id, total.saturating_sub(min)))
            .collect()
    }

    /// Counts a connection of `pool` out that is closed now.
    pub fn release(&mut self, pool: PoolId) {
        self.uncount(pool);
        self.dispatch(None);
    }

    fn uncount(&mut self, pool: PoolId) {
        self.total -= 1;
        if let Some(state) = self.pools.get_mut(&pool) {
            state.total -= 1;
        }
    }

    /// Counts the server connection of a lease that ends without giving it back.
    pub fn deactivate(&mut self, tenant: &TenantState) {
        let turns = self.count_back(tenant);
        self.dispatch(None);
        self.take_turns(turns);
    }

    /// Takes out idle connections that `unwanted` names; they still count until
    /// [`release`](Self::release).
    pub fn take_idle(
        &mut self,
        mut unwanted: impl FnMut(&Pool, &mut ServerConnection) -> bool,
    ) -> Vec<(Arc<Pool>, Box<ServerConnection>)> {
        let mut taken = Vec::new();
        for state in self.pools.values_mut() {
            let (out, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut state.idle)
                .into_iter()
                .map(|mut c| (unwanted(&state.pool, &mut c), c))
                .partition(|(out, _)| *out);
            state.idle = kept.into_iter().map(|(_, c)| c).collect();
            taken.extend(out.into_iter().map(|(_, c)| (state.pool.clone(), c)));
        }
        taken
    }

    /// Serves waiting tenants for as long as there is something to give.
    pub fn dispatch_all(&mut self) {
        while self.dispatch(None) {}
    }

    /// Serves the first waiting tenant that can be, or one soon after it that has a client near and
    /// can be given what is there. Called once for whatever comes free, since that serves no more
    /// than one. False: nothing could be given.
    fn dispatch(&mut self, near: Option<WorkerId>) -> bool {
        let mut position = 0;
        while position < self.ring.len() {
            let (position_now, at, found) = match self.next_at(position, near) {
                Next::Nobody => {
                    self.end_turn(position);
                    continue;
                }
                Next::Blocked => {
                    position += 1;
                    continue;
                }
                Next::Served { at, found, is_near } => {
                    // Of who goes on with its turn, or before others since it is near, this is not
                    // said: it has used more than others that wait, and they would be taken for
                    // having used as much.
                    self.used = self.used.max(self.ring[position].used);
                    let better = (!is_near).then(|| self.one_near(position, near)).flatten();
                    self.ring[position].overtaken += u64::from(better.is_some());
                    better.unwrap_or((position, at, found))
                }
            };
            match self.give(position_now, at, found) {
                Served::Granted => return true,
                Served::Gone => {}
                Served::Blocked => position += 1,
            }
        }
        false
    }

    /// A tenant that may go before the one at `position`, since it has a client near and can be
    /// given what is there.
    fn one_near(&self, position: usize, near: Option<WorkerId>) -> Option<(usize, usize, Found)> {
        if self.ring.get(position)?.overtaken >= NEAR {
            return None;
        }
        let mut soon = (position + 1..self.ring.len()).take(NEAR as usize);
        soon.find_map(|other| match self.next_at(other, near) {
            Next::Served {
                at,
                found,
                is_near: true,
            } => Some((other, at, found)),
            _ => None,
        })
    }

    /// Serves the tenant at `position` of the ring once, if it can be.
    fn serve(&mut self, position: usize, near: Option<WorkerId>) -> Served {
        match self.next_at(position, near) {
            Next::Served { at, found, .. } => self.give(position, at, found),
            Next::Blocked => Served::Blocked,
            Next::Nobody => {
                self.end_turn(position);
                Served::Gone
            }
        }
    }

    /// Gives what was found to the client at `at` in the line of the tenant at `position` of the
    /// ring; the tenant then lines up again, unless none of its clients waits any more.
    fn give(&mut self, position: usize, at: usize, found: Found) -> Served {
        let Some(Turn { pool, tenant, .. }) = self.ring.get(position) else {
            return Served::Blocked;
        };
        let (pool, id) = (*pool, tenant.clone());
        let line = self.pools.get(&pool).and_then(|p| p.waiting.get(&id));
        let Some(tenant) = line.and_then(|line| line.waiters.get(at)) else {
            return Served::Blocked;
        };
        let tenant = tenant.tenant.clone();
        let Some(granted) = self.take_for(pool, &tenant, found) else {
            return Served::Blocked;
        };
        match self.hand_over(pool, &id, at, granted) {
            None => {
                self.end_turn(position);
                Served::Granted
            }
            // It left in this very moment.
            Some(granted) => {
                self.take_back(pool, granted);
                self.count_out(&tenant);
                Served::Gone
            }
        }
    }

    /// Whom of the tenant at `position` of the ring what is to be served with, if it can be.
    fn next_at(&self, position: usize, near: Option<WorkerId>) -> Next {
        let Some(Turn { pool, tenant, .. }) = self.ring.get(position) else {
            return Next::Blocked;
        };
        let Some(state) = self.pools.get(pool) else {
            return Next::Nobody;
        };
        let line = state.waiting.get(tenant);
        let Some((at, waiter)) = line.and_then(|line| line.next(near)) else {
            return Next::Nobody;
        };
        if !self.may_activate(*pool, &waiter.tenant) {
            return Next::Blocked;
        }
        match self.find(*pool, &waiter.tenant, waiter.worker, Share::Usual) {
            None => Next::Blocked,
            Some(found) => {
                let connection = match found {
                    Found::Free(at) | Found::OfOthers(at) => state.idle.get(at),
                    Found::Room | Found::Elsewhere { .. } => None,
                };
                let stays = connection.is_none_or(|c| c.worker == waiter.worker);
                let is_near = near.is_none_or(|near| near == waiter.worker && stays);
                Next::Served { at, found, is_near }
            }
        }
    }

    /// The tenant at `position` of the ring lines up again, or is out with its line if none of its
    /// clients waits any more.
    fn end_turn(&mut self, position: usize) {
        let Some(Turn { pool, tenant, .. }) = self.ring.remove(position) else {
            return;
        };
        let Some(state) = self.pools.get_mut(&pool) else {
            return;
        };
        if let Some(line) = state.waiting.get_mut(&tenant) {
            let waiters = &mut line.waiters;
            while waiters
                .front()
                .is_some_and(|first| first.sender.is_closed())
            {
                waiters.pop_front();
            }
            match waiters.front().map(|first| first.tenant.clone()) {
                None => _ = state.waiting.remove(&tenant),
                Some(tenant) => self.line_up(pool, &tenant),
            }
        }
    }

    /// Gives to the one at `at` of the line; what could not be delivered comes back.
    fn hand_over(
        &mut self,
        pool: PoolId,
        tenant: &TenantId,
        at: usize,
        granted: Granted,
    ) -> Option<Granted> {
        let line = self
            .pools
            .get_mut(&pool)
            .and_then(|state| state.waiting.get_mut(tenant));
        let Some(waiter) = line.and_then(|line| line.waiters.remove(at)) else {
            return Some(granted);
        };
        waiter.sender.send(granted).err()
    }

    /// Takes back what was not used.
    pub fn take_back(&mut self, pool: PoolId, granted: Granted) {
        match granted {
            Granted::Ready(connection) => {
                if let Some(state) = self.pools.get_mut(&pool) {
                    state.idle.push_back(connection);
                }
            }
            Granted::Slot => self.uncount(pool),
            Granted::Evict { from, connection } => {
                self.uncount(pool);
                if let Some(state) = self.pools.get_mut(&from) {
                    self.total += 1;
                    state.total += 1;
                    state.idle.push_front(connection);
                }
            }
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.turns.close();
    }
}

/// What there is for a client; positions are of its pool's idle connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// One that carries its tenant's context, or none.
    Free(usize),
    Room,
    /// One that carries another tenant's context.
    OfOthers(usize),
    /// The slot of an idle connection of that pool.
    Elsewhere {
        from: PoolId,
        at: usize,
    },
}

/// Whether a tenant in the ring can be served.
#[derive(Debug)]
enum Next {
    /// With what was found, the client at this position of its line; `is_near`: nobody behind it is
    /// to go before.
    Served {
        at: usize,
        found: Found,
        is_near: bool,
    },
    Blocked,
    Nobody,
}

/// Of how many connections of a pool a tenant may have one.
#[derive(Debug, Clone, Copy)]
enum Share {
    Usual,
    Reserve,
}

#[derive(Debug, PartialEq, Eq)]
enum Served {
    Granted,
    /// Who waited has left; another of the tenant may wait.
    Gone,
    /// Nothing can be given to it now; it keeps its place.
    Blocked,
}

#[cfg(test)]
mod tests;
