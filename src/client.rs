//! A client as others see it: the cancel path, the admin console, a reload, a shutdown.

use std::net::SocketAddr;
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering,
};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime};

use futures_util::task::AtomicWaker;

use crate::backend::cancel::Fence;
use crate::backend::residue::Pins;
use crate::id::TenantId;
use crate::protocol::startup::{CancelKey, Secret};
use crate::workers::WorkerId;

/// Of `cancelled`: a cancel is for the wait that the client is in, and one has come.
const MAY_BE_CANCELLED: u8 = 2;
const CANCELLED: u8 = 1;

/// What a client is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Connected, with no server connection.
    Idle,
    /// Waiting for a server connection.
    Waiting,
    /// Using one.
    Active,
}

/// What a client's session is at, as its task last said; with a number that each change of it takes
/// on, so that whoever looks now and then sees how long it has been so without a clock being read
/// for each statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub phase: Phase,
    /// Of this phase, and of the transaction (or what runs outside of one).
    pub phases: u32,
    pub transactions: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Between transactions.
    Idle,
    /// The server has something to do.
    Running,
    /// A transaction waits for the client.
    InTransaction,
    /// Replication: it has neither statements nor transactions.
    Streaming,
}

/// What a client's task says of it when it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The number of the phase in which it was asked ([`Progress`]).
    pub phases: u32,
    /// Of the statement that is run, or was run last in the transaction. None: its text is not at
    /// hand, or it is not certain what a literal is in it.
    pub fingerprint: Option<String>,
}

/// Why a client is ended, or its statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Statement,
    Transaction,
    IdleInTransaction,
    IdleSession,
}

/// The least process id that no operating system gives a server's process (Linux' PID_MAX_LIMIT is
/// 2^22): what a client takes for its server's must not be another's.
pub const FIRST_PID: i32 = 4_194_305;

/// Of [`ClientHandle::heard`]: there is no waker.
const NEVER: u32 = u32::MAX;

/// Shared by a client's task and whoever looks at it or calls it.
#[derive(Debug)]
pub struct ClientHandle {
    /// Unique for the life of the process; never 0.
    pub id: u64,
    /// The process id that the client was told: one of the proxy's own, or its server connection's.
    pid: AtomicI32,
    /// What the client knows to cancel by; no other client has it.
    pub secret: Secret,
    pub tenant: TenantId,
    pub user: Arc<str>,
    /// The database as the client named it.
    pub database: Arc<str>,
    pub peer: Option<SocketAddr>,
    pub tls: bool,
    pub connected: SystemTime,
    pub since: Instant,
    activity: AtomicU8,
    /// The worker that serves it, or where it is asked to go.
    worker: AtomicU16,
    /// Times it used a server connection, and how many these were when they were last counted.
    uses: AtomicU32,
    counted: AtomicU32,
    /// When it last began to wait, in microseconds after `since`.
    wait_began: AtomicU64,
    /// Of the server connection it holds.
    fence: Mutex<Option<Arc<Fence>>>,
    /// Counts calls; the client's task compares it with what it has answered.
    calls: AtomicU32,
    /// Calls that are being made.
    calling: AtomicU32,
    /// Calls there were when the task last left its waker: it is still there if there were none
    /// since.
    heard: AtomicU32,
    /// What ties it to the server connection it holds ([`Pins`]).
    pins: AtomicU16,
    /// [`Progress`]: the phase in the last two bits, the number in the others.
    phase: AtomicU32,
    transactions: AtomicU32,
    /// The [`Reason`] that it is ended for, or its statement; 0 for none.
    reason: AtomicU8,
    killed: AtomicU8,
    revoked: AtomicU8,
    cancelled: AtomicU8,
    asked_to_park: AtomicU8,
    /// Counts who looks whether it is idle.
    watches: AtomicU32,
    parked: AtomicU8,
    is_to_look: AtomicBool,
    /// Its `application_name`.
    application: Mutex<Option<Arc<str>>>,
    /// Of an application's: for which tenant it was served last, or is.
    serves: Mutex<Option<TenantId>>,
    /// The number of the phase that was seen last, and when it was first seen, in microseconds
    /// after `since`.
    seen_phases: AtomicU32,
    seen_at: AtomicU64,
    /// The number of the phase in which the server last began a COPY.
    copy: AtomicU32,
    /// It is asked what it does, and what it said last.
    asked: AtomicU8,
    told: Mutex<Option<Box<Told>>>,
    waker: AtomicWaker,
}

/// What a handle is made of.
pub struct NewClient {
    pub id: u64,
    pub key: CancelKey,
    pub tenant: TenantId,
    pub user: Arc<str>,
    pub database: Arc<str>,
    pub peer: Option<SocketAddr>,
    pub tls: bool,
}

impl ClientHandle {
    pub fn new(new: NewClient) -> Self {
        let NewClient {
            id,
            key,
            tenant,
            user,
            database,
            peer,
            tls,
        } = new;
        Self {
            id,
            pid: AtomicI32::new(key.pid),
            secret: key.secret,
            tenant,
            user,
            database,
            peer,
            tls,
            connected: SystemTime::now(),
            since: Instant::now(),
            activity: AtomicU8::new(Activity::Idle as u8),
            worker: AtomicU16::new(0),
            uses: AtomicU32::new(0),
            counted: AtomicU32::new(0),
            wait_began: AtomicU64::new(0),
            fence: Mutex::default(),
            calls: AtomicU32::new(0),
            calling: AtomicU32::new(0),
            heard: AtomicU32::new(NEVER),
            pins: AtomicU16::new(0),
            phase: AtomicU32::new(0),
            transactions: AtomicU32::new(0),
            reason: AtomicU8::new(0),
            killed: AtomicU8::new(0),
            revoked: AtomicU8::new(0),
            cancelled: AtomicU8::new(0),
            asked_to_park: AtomicU8::new(0),
            watches: AtomicU32::new(0),
            parked: AtomicU8::new(0),
            is_to_look: AtomicBool::new(false),
            application: Mutex::default(),
            serves: Mutex::default(),
            seen_phases: AtomicU32::new(0),
            seen_at: AtomicU64::new(0),
            copy: AtomicU32::new(NEVER),
            asked: AtomicU8::new(0),
            told: Mutex::default(),
            waker: AtomicWaker::new(),
        }
    }

    /// What the client cancels with.
    pub fn key(&self) -> CancelKey {
        CancelKey {
            pid: self.pid.load(Ordering::Relaxed),
            secret: self.secret.clone(),
        }
    }

    /// The client is told the process id of the server connection that it has to itself.
    pub fn set_pid(&self, pid: i32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    pub fn activity(&self) -> Activity {
        match self.activity.load(Ordering::Relaxed) {
            x if x == Activity::Waiting as u8 => Activity::Waiting,
            x if x == Activity::Active as u8 => Activity::Active,
            _ => Activity::Idle,
        }
    }

    pub fn set_activity(&self, activity: Activity) {
        if activity == Activity::Waiting {
            self.wait_began.store(self.age_us(), Ordering::Relaxed);
        }
        if activity == Activity::Active {
            // Nobody else writes it.
            let uses = self.uses.load(Ordering::Relaxed).wrapping_add(1);
            self.uses.store(uses, Ordering::Relaxed);
        }
        self.activity.store(activity as u8, Ordering::Relaxed);
    }

    /// Says what it is at now; only its own task does. A phase that is said again is a new one.
    pub fn enter(&self, phase: Phase) {
        let number = (self.phase.load(Ordering::Relaxed) | 3).wrapping_add(1);
        self.phase.store(number | phase as u32, Ordering::Relaxed);
        if phase == Phase::Idle {
            let number = self.transactions.load(Ordering::Relaxed).wrapping_add(1);
            self.transactions.store(number, Ordering::Relaxed);
        }
    }

    pub fn progress(&self) -> Progress {
        let phase = self.phase.load(Ordering::Relaxed);
        Progress {
            phase: match phase & 3 {
                1 => Phase::Running,
                2 => Phase::InTransaction,
                3 => Phase::Streaming,
                _ => Phase::Idle,
            },
            phases: phase >> 2,
            transactions: self.transactions.load(Ordering::Relaxed),
        }
    }

    /// Ends it for what it has taken too long for.
    pub fn end_for(&self, reason: Reason) {
        self.reason.store(reason as u8 + 1, Ordering::Release);
        self.kill();
    }

    /// Its statement is about to be cancelled for what it has taken.
    pub fn note_timeout(&self) {
        self.reason
            .store(Reason::Statement as u8 + 1, Ordering::Release);
    }

    /// Whether its statement was to be cancelled for what it has taken; asking answers it.
    pub fn take_timeout(&self) -> bool {
        let statement = Reason::Statement as u8 + 1;
        self.reason.load(Ordering::Relaxed) == statement
            && (self.reason)
                .compare_exchange(statement, 0, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
    }

    /// What it is ended for.
    pub fn reason(&self) -> Option<Reason> {
        match self.reason.load(Ordering::Acquire) {
            2 => Some(Reason::Transaction),
            3 => Some(Reason::IdleInTransaction),
            4 => Some(Reason::IdleSession),
            _ => None,
        }
    }

    /// Times it used a server connection, from zero again after the greatest number.
    pub fn uses(&self) -> u32 {
        self.uses.load(Ordering::Relaxed)
    }

    /// Times it used a server connection since this was last asked; 1 if it has used one all the
    /// time.
    pub fn count_uses(&self) -> u32 {
        let uses = self.uses.load(Ordering::Relaxed);
        let new = uses.wrapping_sub(self.counted.swap(uses, Ordering::Relaxed));
        new.max(u32::from(self.activity() == Activity::Active))
    }

    /// The worker that serves it, or that it is on its way to.
    pub fn worker(&self) -> WorkerId {
        WorkerId::from(self.worker.load(Ordering::Relaxed))
    }

    /// Says where it is to be served; it goes there when it next [looks around](Self::call).
    pub fn set_worker(&self, worker: WorkerId) {
        let number = u16::try_from(worker.number()).unwrap_or(0);
        self.worker.store(number, Ordering::Relaxed);
    }

    /// Asks it to go on at another worker.
    pub fn go_to(&self, worker: WorkerId) {
        self.set_worker(worker);
        self.call();
    }

    /// What keeps it on its server connection in transaction pooling.
    pub fn pins(&self) -> Pins {
        Pins::from_bits_truncate(self.pins.load(Ordering::Relaxed))
    }

    /// It is served for this tenant now.
    pub fn serve(&self, tenant: Option<TenantId>) {
        *self.serves.lock().unwrap_or_else(PoisonError::into_inner) = tenant;
    }

    /// For whom it was served last, or is: itself, unless it is an application's.
    pub fn serves(&self) -> TenantId {
        let serves = self.serves.lock().unwrap_or_else(PoisonError::into_inner);
        serves.clone().unwrap_or_else(|| self.tenant.clone())
    }

    pub fn set_pins(&self, pins: Pins) {
        self.pins.store(pins.bits(), Ordering::Relaxed);
    }

    fn age_us(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// How long it has waited for a server connection, if it waits.
    pub fn waiting(&self) -> Option<Duration> {
        let began = self.wait_began.load(Ordering::Relaxed);
        (self.activity() == Activity::Waiting)
            .then(|| Duration::from_micros(self.age_us().saturating_sub(began)))
    }

    fn link(&self) -> std::sync::MutexGuard<'_, Option<Arc<Fence>>> {
        self.fence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fence of the server connection it holds now.
    pub fn fence(&self) -> Option<Arc<Fence>> {
        self.link().clone()
    }

    /// Opens the fence of the server connection it now holds: cancels find their way.
    pub fn take_hold(&self, fence: &Arc<Fence>) {
        fence.open(self.id);
        *self.link() = Some(fence.clone());
    }

    /// Closes the fence. True: no cancel is under way.
    pub fn let_go(&self) -> bool {
        self.link().take().is_none_or(|fence| fence.close())
    }

    /// Asks the client's task to look around: the config changed, the proxy stops.
    pub fn call(&self) {
        self.calling.fetch_add(1, Ordering::AcqRel);
        self.calls.fetch_add(1, Ordering::AcqRel);
        self.waker.wake();
        self.calling.fetch_sub(1, Ordering::AcqRel);
    }

    /// Ends the client wherever it is.
    pub fn kill(&self) {
        self.killed.store(1, Ordering::Release);
        self.call();
    }

    /// Asks it to look whether the other ends of its sockets are there.
    pub fn ask_to_look(&self) {
        self.is_to_look.store(true, Ordering::Release);
        self.call();
    }

    /// Whether it is to look; asking answers it.
    pub fn take_look(&self) -> bool {
        self.is_to_look.load(Ordering::Acquire) && self.is_to_look.swap(false, Ordering::AcqRel)
    }

    /// What it logged in with is good no more: it ends at its next clean point.
    pub fn revoke(&self) {
        self.revoked.store(1, Ordering::Release);
        self.call();
    }

    pub fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire) != 0
    }

    /// Ends its wait for a server connection or for a rate, if it waits.
    pub fn cancel_wait(&self) {
        let holding = self.cancelled.compare_exchange(
            MAY_BE_CANCELLED,
            CANCELLED,
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
        if holding.is_err() && self.activity() == Activity::Waiting {
            self.cancelled.store(CANCELLED, Ordering::Release);
        } else if holding.is_err() {
            return;
        }
        self.call();
    }

    /// It holds a server connection that runs nothing for it, and waits for a rate: a cancel is for
    /// that wait, until [`take_cancelled`](Self::take_cancelled).
    pub fn may_be_cancelled(&self) {
        let _ = self.cancelled.compare_exchange(
            0,
            MAY_BE_CANCELLED,
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
    }

    /// Whether its wait was to end.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire) == CANCELLED
    }

    /// A number for who looks from now on whether it is idle. Who has another need not any more,
    /// and what was asked then is void.
    pub fn new_watch(&self) -> u32 {
        self.take_asked_to_park();
        self.watches.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// The number of who looks now.
    pub fn watch(&self) -> u32 {
        self.watches.load(Ordering::Relaxed)
    }

    /// Asks its task to end until it says something: it is idle.
    pub fn ask_to_park(&self) {
        self.asked_to_park.store(1, Ordering::Release);
        self.call();
    }

    /// Whether it was asked to; asking answers it.
    pub fn take_asked_to_park(&self) -> bool {
        self.asked_to_park.swap(0, Ordering::AcqRel) != 0
    }

    /// Whether it is idle without a task.
    pub fn is_parked(&self) -> bool {
        self.parked.load(Ordering::Relaxed) != 0
    }

    pub fn set_parked(&self, parked: bool) {
        self.parked.store(parked.into(), Ordering::Relaxed);
    }

    /// The server begins a COPY for it.
    pub fn note_copy(&self) {
        let phases = self.phase.load(Ordering::Relaxed) >> 2;
        self.copy.store(phases, Ordering::Relaxed);
    }

    /// Whether a COPY is under way in this phase.
    pub fn is_copying(&self) -> bool {
        let progress = self.progress();
        progress.phase == Phase::Running && self.copy.load(Ordering::Relaxed) == progress.phases
    }

    /// Takes note of the phase that it is in; returns for how long it has been seen in it. What a
    /// phase took before somebody looked is not in that.
    pub fn note_phase(&self) -> Duration {
        let phases = self.progress().phases;
        let now = self.age_us();
        if self.seen_phases.swap(phases, Ordering::Relaxed) != phases {
            self.seen_at.store(now, Ordering::Relaxed);
            return Duration::ZERO;
        }
        let since = self.seen_at.load(Ordering::Relaxed);
        Duration::from_micros(now.saturating_sub(since))
    }

    pub fn application(&self) -> Option<Arc<str>> {
        let name = self.application.lock();
        name.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_application(&self, name: Option<Arc<str>>) {
        *(self.application.lock()).unwrap_or_else(PoisonError::into_inner) = name;
    }

    /// Asks its task what it does. The task answers by [`tell`](Self::tell) when it holds a server
    /// connection, and else not.
    pub fn ask(&self) {
        self.asked.store(1, Ordering::Release);
        self.call();
    }

    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire) != 0
    }

    pub fn tell(&self, fingerprint: Option<String>) {
        let told = Told {
            phases: self.progress().phases,
            fingerprint,
        };
        *(self.told.lock()).unwrap_or_else(PoisonError::into_inner) = Some(Box::new(told));
        self.asked.store(0, Ordering::Release);
    }

    /// What it said of the phase that it is in.
    pub fn told(&self) -> Option<Told> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let told = told.as_deref()?;
        (told.phases == self.progress().phases).then(|| told.clone())
    }

    pub fn is_killed(&self) -> bool {
        self.killed.load(Ordering::Acquire) != 0
    }

    /// Whether its wait was to end; asking answers it.
    pub fn take_cancelled(&self) -> bool {
        self.cancelled.swap(0, Ordering::AcqRel) == CANCELLED
    }

    /// Number of calls so far; the next wakes `waker`, which must be of the task that asked before,
    /// or [moved in](Self::move_in).
    pub fn calls(&self, waker: &Waker) -> u32 {
        let calls = self.calls.load(Ordering::Acquire);
        if calls == self.heard.load(Ordering::Relaxed) {
            return calls;
        }
        // One that is just being made may take the waker although it is counted already.
        let is_made = self.calling.load(Ordering::Acquire) == 0;
        self.waker.register(waker);
        let heard = if is_made { calls } else { NEVER };
        self.heard.store(heard, Ordering::Relaxed);
        self.calls.load(Ordering::Acquire)
    }

    /// Number of calls so far.
    pub fn called(&self) -> u32 {
        self.calls.load(Ordering::Acquire)
    }

    /// Another task serves the client from now on.
    pub fn move_in(&self) {
        self.heard.store(NEVER, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::task::Wake;

    use super::*;

    fn handle() -> ClientHandle {
        ClientHandle::new(NewClient {
            id: 1,
            key: CancelKey {
                pid: 1,
                secret: Secret::from_slice(&[1, 2, 3, 4]),
            },
            tenant: TenantId::new("acme").unwrap(),
            user: "app".into(),
            database: "app".into(),
            peer: None,
            tls: false,
        })
    }

    /// Whether it was woken.
    #[derive(Default)]
    struct Flag(AtomicBool);

    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    /// Who asks may see a call before that wakes it.
    #[test]
    fn no_call_is_lost_whenever_it_is_seen() {
        const CALLS: u32 = 200_000;
        let handle = handle();
        let answered = AtomicU32::new(0);
        let flag = Arc::new(Flag::default());
        let waker = flag.clone().into();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // It is asked for other reasons, too.
                let mut unasked = 0;
                while answered.load(Ordering::SeqCst) < CALLS {
                    let calls = handle.calls(&waker);
                    if answered.swap(calls, Ordering::SeqCst) != calls {
                        unasked = calls % 97;
                    }
                    if unasked > 0 {
                        unasked -= 1;
                        continue;
                    }
                    let began = Instant::now();
                    while !flag.0.swap(false, Ordering::SeqCst) {
                        assert!(
                            began.elapsed() < Duration::from_secs(20),
                            "call {} woke nobody",
                            calls + 1
                        );
                        std::thread::yield_now();
                    }
                }
            });
            for call in 1..=CALLS {
                handle.call();
                let began = Instant::now();
                while answered.load(Ordering::SeqCst) < call {
                    assert!(began.elapsed() < Duration::from_secs(30), "nobody answers");
                    std::thread::yield_now();
                }
            }
        });
    }

    #[test]
    fn who_looks_later_is_the_one_who_looks() {
        let handle = handle();
        let first = handle.new_watch();
        handle.ask_to_park();
        let second = handle.new_watch();
        assert_ne!(first, second);
        assert_eq!(handle.watch(), second);
        assert!(!handle.take_asked_to_park());
    }
}
