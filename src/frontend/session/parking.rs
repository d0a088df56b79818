//! Clients that say nothing for a while, kept without a task and without a place in the runtime: of
//! most clients of a pool that is what there is most of the time.
//!
//! ```text
//!   in its task ──idle: asked──► parked ──it speaks or leaves, or must go elsewhere or end──► in a task
//!                                  │  ▲
//!                                  └──┘ a call that changes nothing for it
//! ```
//!
//! Each worker has a lot for its clients, and a task that keeps it. Nothing of another client is
//! touched when one is parked or comes back: a place in the lot is the client's own, with its own
//! socket. All that is to be done for many is done in rounds, and what else the worker has to do
//! comes between them.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::TcpStream;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use slab::Slab;
use tokio::time::{Instant, Sleep};

use crate::backend::binding::Settings;
use crate::backend::connection::Parameters;
use crate::client::{Activity, ClientHandle};
use crate::error::Error;
use crate::frontend::choosing::Choosing;
use crate::frontend::session::{Session, live};
use crate::frontend::standing::Standing;
use crate::frontend::state::SessionState;
use crate::frontend::statements::Statements;
use crate::net::watch::Watch;
use crate::timer;

/// How often is looked who is idle.
const LOOK: Duration = Duration::from_millis(100);
/// Looks after which one is idle that has just logged in. To park and to come back costs some
/// microseconds, far less than the login did.
const FRESH: u8 = 1;
/// Looks for which it has just done so.
const FRESH_FOR: u8 = 10;
/// Of the others one in so many is looked at each time: everybody once a second.
const SLICES: usize = 10;
/// Looks at one of these after which it is idle: eight seconds, so that it costs next to nothing
/// even if all keep coming back.
const STEADY: u8 = 8;
/// Most clients in a round.
const ROUND: usize = 128;

thread_local! {
    static LOT: RefCell<Option<Lot>> = const { RefCell::new(None) };
}

/// What is left of a client.
pub struct Parked {
    pub standing: Standing,
    pub socket: TcpStream,
    pub settings: Arc<Settings>,
    pub reported: Arc<Parameters>,
    pub state: SessionState,
    /// None: it has none.
    pub statements: Option<Box<Statements>>,
    pub choosing: Option<Box<Choosing>>,
}

/// What calls mean for a client that is parked.
enum Verdict {
    Stays,
    Goes,
    Ends(Error),
}

impl Parked {
    /// Answers calls; the next one rings.
    fn answer(&mut self, ring: &Waker) -> Verdict {
        while self.standing.registered.calls(ring) != self.standing.answered {
            match self.standing.look_around(self.statements.as_deref_mut()) {
                Ok(false) => {}
                Ok(true) => return Verdict::Goes,
                Err(error) => return Verdict::Ends(error),
            }
        }
        Verdict::Stays
    }

    /// Goes on in a task where it belongs, or ends there with an error.
    fn resume(mut self, ends: Option<Error>) {
        let registered = &self.standing.registered;
        let (id, worker) = (registered.id, registered.worker());
        let workers = self.standing.app().workers().clone();
        self.standing.worker = worker;
        let begins = async move {
            match (Session::resume(self), ends) {
                (Ok(session), None) => return Some(Box::new(session)),
                (Ok(mut session), Some(error)) => session.refuse_and_close(&error).await,
                (Err(error), _) => {
                    tracing::warn!(client = id, %error, "could not go on with a client that was idle");
                }
            }
            None
        };
        workers.spawn(worker, live(Box::pin(begins)));
    }
}

/// A client that has a task.
struct Awake {
    client: Arc<ClientHandle>,
    /// Of this watch of it: if there was another since, this is over.
    number: u32,
    /// Times it had used a server connection at the last look.
    uses: u32,
    /// Looks since it did something, and in all.
    quiet: u8,
    looks: u8,
}

/// What is seen at a look.
enum Seen {
    Gone,
    Busy,
    Quiet,
    /// It was quiet for long enough.
    Idle,
}

impl Awake {
    fn look(&mut self, patience: u8) -> Seen {
        self.looks = self.looks.saturating_add(1);
        if self.client.watch() != self.number {
            return Seen::Gone;
        }
        let uses = self.client.uses();
        if self.client.activity() != Activity::Idle || uses != self.uses {
            self.uses = uses;
            self.quiet = 0;
            return Seen::Busy;
        }
        self.quiet += 1;
        match self.quiet < patience {
            true => Seen::Quiet,
            false => Seen::Idle,
        }
    }
}

/// Rung by calls to clients that are parked.
struct Bell {
    rung: AtomicBool,
    keeper: Waker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.keeper.wake_by_ref();
        }
    }
}

/// Of one worker.
struct Lot {
    parked: Slab<Box<Parked>>,
    /// Those who have just logged in; the others, and which slice of them comes next; those who are
    /// to be asked to park.
    fresh: Vec<Awake>,
    steady: Vec<Awake>,
    slice: usize,
    idle: Vec<Awake>,
    watch: Arc<Watch>,
    bell: Arc<Bell>,
    /// The first place where was not looked yet for a call, since somebody rang.
    sweep: Option<usize>,
    has_warned: bool,
}

impl Lot {
    fn new(watch: Arc<Watch>, keeper: Waker) -> Self {
        Self {
            parked: Slab::new(),
            fresh: Vec::new(),
            steady: Vec::new(),
            slice: 0,
            idle: Vec::new(),
            watch,
            bell: Arc::new(Bell {
                rung: AtomicBool::new(false),
                keeper,
            }),
            sweep: None,
            has_warned: false,
        }
    }

    fn enrol(&mut self, standing: &Standing) {
        if self.has_nobody_awake() {
            self.bell.keeper.wake_by_ref();
        }
        let client = Arc::clone(&standing.registered);
        let awake = Awake {
            number: client.new_watch(),
            uses: client.uses(),
            client,
            quiet: 0,
            looks: 0,
        };
        match standing.was_asked_to_park {
            true => self.steady.push(awake),
            false => self.fresh.push(awake),
        }
    }

    fn has_nobody_awake(&self) -> bool {
        self.fresh.is_empty() && self.steady.is_empty()
    }

    /// Looks who is idle.
    fn look(&mut self) {
        let mut at = 0;
        while let Some(awake) = self.fresh.get_mut(at) {
            match awake.look(FRESH) {
                Seen::Quiet | Seen::Busy if awake.looks < FRESH_FOR => at += 1,
                Seen::Quiet | Seen::Busy => self.steady.push(self.fresh.swap_remove(at)),
                Seen::Idle => self.idle.push(self.fresh.swap_remove(at)),
                Seen::Gone => _ = self.fresh.swap_remove(at),
            }
        }
        let (count, slice) = (self.steady.len(), self.slice);
        self.slice = (slice + 1) % SLICES;
        // From behind: who takes the place of one that goes is of a later slice.
        for at in (count * slice / SLICES..count * (slice + 1) / SLICES).rev() {
            match self.steady[at].look(STEADY) {
                Seen::Quiet | Seen::Busy => {}
                Seen::Idle => self.idle.push(self.steady.swap_remove(at)),
                Seen::Gone => _ = self.steady.swap_remove(at),
            }
        }
    }

    /// Asks some of those who are idle to park.
    fn ask(&mut self) {
        let rest = self.idle.len().saturating_sub(ROUND);
        for awake in self.idle.drain(rest..) {
            if awake.client.watch() == awake.number {
                awake.client.ask_to_park();
            }
        }
    }

    /// Has its next [place](Self::insert) told when the client speaks or leaves. None: that cannot
    /// be.
    fn expect(&mut self, session: &Session) -> Option<()> {
        let watched = session.watch_by(&self.watch, self.parked.vacant_key());
        if let Err(error) = &watched
            && !std::mem::replace(&mut self.has_warned, true)
        {
            tracing::warn!(%error, "not all idle clients can be parked: they take more memory");
        }
        watched.ok()
    }

    /// Some: it is called away.
    fn insert(&mut self, parked: Parked) -> Option<(Parked, Option<Error>)> {
        parked.standing.registered.set_parked(true);
        let key = self.parked.insert(Box::new(parked));
        // Whoever called meanwhile did not ring.
        self.answer(key)
    }

    fn take(&mut self, key: usize) -> Option<Parked> {
        let parked = self.parked.try_remove(key)?;
        self.watch.remove(&parked.socket);
        parked.standing.registered.set_parked(false);
        Some(*parked)
    }

    /// Has the one at `key` answer calls. Some: it cannot stay.
    fn answer(&mut self, key: usize) -> Option<(Parked, Option<Error>)> {
        let ring = self.bell.clone().into();
        let ends = match self.parked.get_mut(key)?.answer(&ring) {
            Verdict::Stays => return None,
            Verdict::Goes => None,
            Verdict::Ends(error) => Some(error),
        };
        Some((self.take(key)?, ends))
    }

    /// Has some of those who are parked answer calls, if somebody rang. Those who cannot stay.
    fn sweep(&mut self) -> Vec<(Parked, Option<Error>)> {
        if self.sweep.is_none() && self.bell.rung.swap(false, Ordering::AcqRel) {
            self.sweep = Some(0);
        }
        let Some(from) = self.sweep else {
            return Vec::new();
        };
        let to = self.parked.capacity().min(from + ROUND);
        let going = (from..to).filter_map(|key| self.answer(key)).collect();
        self.sweep = (to < self.parked.capacity()).then_some(to);
        going
    }

    fn has_more_to_do(&self) -> bool {
        let is_called = self.sweep.is_some() || self.bell.rung.load(Ordering::Acquire);
        is_called || !self.idle.is_empty()
    }
}

fn with_lot<T: Default>(does: impl FnOnce(&mut Lot) -> T) -> T {
    LOT.with_borrow_mut(|lot| lot.as_mut().map(does).unwrap_or_default())
}

/// Has a client asked to park when it is idle for a while. On its worker.
pub fn enrol(standing: &Standing) {
    with_lot(|lot| lot.enrol(standing));
}

/// Keeps a client until it speaks, leaves or is called away; then it has a task again. On its
/// worker.
pub fn park(session: Session) {
    // Before anything is given up.
    if with_lot(|lot| lot.expect(&session)).is_none() {
        tokio::spawn(live(Box::pin(async { Some(Box::new(session)) })));
        return;
    }
    match session.rest() {
        Ok(parked) => {
            if let Some((parked, ends)) = with_lot(|lot| lot.insert(parked)) {
                parked.resume(ends);
            }
        }
        Err(error) => tracing::warn!(%error, "could not keep a client that is idle"),
    }
}

/// Dropped with the task of the keeper.
struct Closes;

impl Drop for Closes {
    fn drop(&mut self) {
        // What it holds is dropped when it is borrowed no more.
        drop(LOT.take());
    }
}

/// Keeps the lot of the worker that this runs on.
pub async fn keep() {
    let watch = match Watch::new() {
        Ok(watch) => Arc::new(watch),
        Err(error) => {
            return tracing::warn!(%error, "idle clients cannot be parked: they take more memory");
        }
    };
    poll_fn(|cx| {
        LOT.set(Some(Lot::new(watch.clone(), cx.waker().clone())));
        Poll::Ready(())
    })
    .await;
    let _closes = Closes;
    let mut look = pin!(timer::sleep(Duration::ZERO));
    loop {
        poll_fn(|cx| poll_round(cx, &watch, look.as_mut())).await;
        // Whatever the runtime has to do meanwhile.
        tokio::task::yield_now().await;
    }
}

/// Does some of what there is to do. Ready: there may be more.
fn poll_round(cx: &mut Context<'_>, watch: &Watch, mut look: Pin<&mut Sleep>) -> Poll<()> {
    let told = watch.poll_told(cx);
    let spoken = told.is_ready();
    if let Poll::Ready(keys) = told {
        for key in keys {
            if let Some(parked) = with_lot(|lot| lot.take(key)) {
                parked.resume(None);
            }
        }
    }
    let going = with_lot(Lot::sweep);
    going
        .into_iter()
        .for_each(|(parked, ends)| parked.resume(ends));
    // As long as there is anybody who may be idle.
    while !with_lot(|lot| lot.has_nobody_awake()) && look.as_mut().poll(cx).is_ready() {
        look.as_mut().reset(Instant::now() + LOOK);
        with_lot(Lot::look);
    }
    with_lot(Lot::ask);
    match spoken || with_lot(|lot| lot.has_more_to_do()) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    }
}
