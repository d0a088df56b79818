//! Clients that say nothing for a while, kept without a task and without a place in the runtime: of most clients of a pool that is
//! what there is most of the time.
//!
//! ```text
//!   in its task ──idle for FIRST, or AGAIN: asked──► parked ──it speaks or leaves, or must go elsewhere──► in a task
//!                                                      │  ▲
//!                                                      └──┘ a call that changes nothing for it
//! ```
//!
//! Each worker has a lot for its clients, and a task that keeps it. Nothing of another client is touched when one is parked or comes back: a
//! place in the lot is the client's own, with its own socket.

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

use crate::backend::connection::Parameters;
use crate::backend::context::Settings;
use crate::client::{Activity, ClientHandle};
use crate::frontend::session::{Session, live};
use crate::frontend::standing::Standing;
use crate::frontend::state::SessionState;
use crate::frontend::statements::Statements;
use crate::net::watch::Watch;

/// How often is looked who is idle.
const LOOK: Duration = Duration::from_millis(100);
/// Looks after which a client is idle that was not parked before. To park and to come back costs some microseconds, far less than the login
/// did.
const FIRST: u8 = 2;
/// The same for one that came back: eight seconds, so that it costs next to nothing even if all keep coming back.
const AGAIN: u8 = 80;
/// So many clients are looked at for calls, and then the worker's others come first.
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
}

impl Parked {
    /// Answers calls. False: what they ask for takes a task of its own, which asks again.
    fn stays(&mut self, bell: &Waker) -> bool {
        loop {
            let calls = self.standing.registered.calls(bell);
            if calls == self.standing.answered {
                return true;
            }
            let statements = self.statements.as_deref_mut();
            if !matches!(self.standing.look_around(statements), Ok(false)) {
                self.standing.answered = calls.wrapping_sub(1);
                return false;
            }
        }
    }

    /// Goes on in a task on the calling worker.
    fn resume(self) {
        match Session::resume(self) {
            Ok(session) => {
                tokio::spawn(live(Box::pin(std::future::ready(Some(Box::new(session))))));
            }
            Err(error) => tracing::warn!(%error, "could not go on with a client that was idle"),
        }
    }
}

/// A client that has a task.
struct Awake {
    client: Arc<ClientHandle>,
    /// Times it had used a server connection at the last look.
    uses: u32,
    /// Looks since it did something.
    quiet: u8,
    patience: u8,
}

impl Awake {
    /// Whether it is to be looked at again. If not, it was asked to park, or has left.
    fn look(&mut self) -> bool {
        if Arc::strong_count(&self.client) == 1 {
            return false;
        }
        let uses = self.client.uses();
        if self.client.activity() != Activity::Idle || uses != self.uses {
            self.uses = uses;
            self.quiet = 0;
            return true;
        }
        self.quiet += 1;
        let is_idle = self.quiet >= self.patience;
        if is_idle {
            self.client.ask_to_park();
        }
        !is_idle
    }
}

/// Called by clients that are parked.
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
    awake: Vec<Awake>,
    watch: Arc<Watch>,
    keeper: Waker,
    bell: Arc<Bell>,
    /// The same, as those who are parked know it.
    called: Waker,
    /// While calls are looked for: the first place that was not looked at yet.
    sweep: Option<usize>,
}

impl Lot {
    fn new(watch: Arc<Watch>, keeper: Waker) -> Self {
        let bell = Arc::new(Bell {
            rung: AtomicBool::new(false),
            keeper: keeper.clone(),
        });
        Self {
            parked: Slab::new(),
            awake: Vec::new(),
            watch,
            keeper,
            called: bell.clone().into(),
            bell,
            sweep: None,
        }
    }

    /// Some: it is given back, because it is called away, or the operating system cannot tell when it speaks.
    fn park(&mut self, parked: Parked) -> Option<Parked> {
        let place = self.parked.vacant_entry();
        if let Err(error) = self.watch.add(&parked.socket, place.key()) {
            tracing::warn!(%error, "cannot park a client");
            return Some(parked);
        }
        let key = place.key();
        parked.standing.registered.set_parked(true);
        place.insert(Box::new(parked));
        // Whoever called meanwhile did not ring.
        match self.parked[key].stays(&self.called) {
            true => None,
            false => self.take(key),
        }
    }

    fn take(&mut self, key: usize) -> Option<Parked> {
        let parked = self.parked.try_remove(key)?;
        self.watch.remove(&parked.socket);
        parked.standing.registered.set_parked(false);
        Some(*parked)
    }

    /// Some of those that are called and must go, and whether these are all.
    fn called(&mut self) -> (Vec<Parked>, bool) {
        let rung = &self.bell.rung;
        if self.sweep.is_none() && rung.swap(false, Ordering::AcqRel) {
            self.sweep = Some(0);
        }
        let mut going = Vec::new();
        if let Some(from) = self.sweep {
            let to = self.parked.capacity().min(from + ROUND);
            for key in from..to {
                let parked = self.parked.get_mut(key);
                if parked.is_some_and(|parked| !parked.stays(&self.called)) {
                    going.extend(self.take(key));
                }
            }
            self.sweep = (to < self.parked.capacity()).then_some(to);
        }
        let is_all = self.sweep.is_none() && !self.bell.rung.load(Ordering::Acquire);
        (going, is_all)
    }
}

/// Has a client asked to park when it is idle for a while. On its worker.
pub fn watch(standing: &Standing) {
    let client = Arc::clone(&standing.registered);
    client.take_asked_to_park();
    LOT.with_borrow_mut(|lot| {
        let Some(lot) = lot else { return };
        if lot.awake.is_empty() {
            lot.keeper.wake_by_ref();
        }
        lot.awake.push(Awake {
            uses: client.uses(),
            client,
            quiet: 0,
            patience: match standing.was_parked {
                true => AGAIN,
                false => FIRST,
            },
        });
    });
}

/// Keeps a client until it speaks, leaves or is called away; then it has a task again. On its worker.
pub fn park(session: Session) {
    let parked = match session.rest() {
        Ok(parked) => parked,
        Err(error) => return tracing::warn!(%error, "could not keep a client that is idle"),
    };
    let given_back = LOT.with_borrow_mut(|lot| match lot {
        Some(lot) => lot.park(parked),
        None => Some(parked),
    });
    if let Some(parked) = given_back {
        parked.resume();
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
    let mut look = pin!(tokio::time::sleep(Duration::ZERO));
    poll_fn(|cx| {
        poll_spoken(cx, &watch);
        poll_called(cx);
        poll_look(cx, look.as_mut());
        Poll::<()>::Pending
    })
    .await;
}

fn with_lot<T: Default>(does: impl FnOnce(&mut Lot) -> T) -> T {
    LOT.with_borrow_mut(|lot| lot.as_mut().map(does).unwrap_or_default())
}

fn poll_spoken(cx: &mut Context<'_>, watch: &Watch) {
    // Some only, and then the worker's others come first.
    if let Poll::Ready(keys) = watch.poll_told(cx) {
        for key in keys {
            if let Some(parked) = with_lot(|lot| lot.take(key)) {
                parked.resume();
            }
        }
        cx.waker().wake_by_ref();
    }
}

fn poll_called(cx: &mut Context<'_>) {
    let (going, is_all) = with_lot(Lot::called);
    going.into_iter().for_each(Parked::resume);
    if !is_all {
        cx.waker().wake_by_ref();
    }
}

/// Looks who is idle, as long as there is anybody who may be.
fn poll_look(cx: &mut Context<'_>, mut look: Pin<&mut Sleep>) {
    while with_lot(|lot| !lot.awake.is_empty()) && look.as_mut().poll(cx).is_ready() {
        look.as_mut().reset(Instant::now() + LOOK);
        with_lot(|lot| lot.awake.retain_mut(Awake::look));
    }
}
