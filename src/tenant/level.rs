//! How many server connections may be in use at once by all tenants of a placement, or of the whole
//! proxy (`limits.active`). Such a level reaches over several servers, each of which has its own
//! line of waiting tenants.
//!
//! A server that had to refuse a tenant because a level was full enlists here. When a connection of
//! the level is given back, the servers that have enlisted get a turn, one after the other and the
//! one that has waited longest first: within its turn a server serves its own line. Until that is
//! over, the other servers give nothing of the level away, so that a busy server does not keep the
//! others from ever having a share.
//!
//! Nothing here waits, and nobody who is not of a level ever asks it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;

/// The turns that a server has been given and has not taken yet.
#[derive(Debug, Default)]
pub struct Turns {
    due: Mutex<Vec<Arc<Level>>>,
    notify: Notify,
}

impl Turns {
    /// Ready when there is a turn to take, or when [`close`](Self::close) was called.
    ///
    /// Cancel safe.
    pub async fn wait(&self) {
        self.notify.notified().await;
    }

    /// Wakes who waits for turns: there will be none any more.
    pub fn close(&self) {
        self.notify.notify_one();
    }

    /// The levels at which it is this server's turn.
    pub fn take(&self) -> Vec<Arc<Level>> {
        std::mem::take(&mut *lock(&self.due))
    }

    fn give(&self, level: &Arc<Level>) {
        lock(&self.due).push(level.clone());
        self.notify.notify_one();
    }
}

/// Who asks for a place.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    /// The turns of the server that asks.
    pub turns: &'a Arc<Turns>,
    /// The server has its turn just now.
    pub in_turn: bool,
    /// So many places are left to tenants that hold no connection, but at most a quarter of all.
    pub reserve: usize,
}

/// A placement or the whole proxy.
#[derive(Debug, Default)]
pub struct Level(Mutex<State>);

#[derive(Debug)]
struct State {
    limit: usize,
    active: usize,
    /// Servers that have refused a tenant because of this level.
    line: VecDeque<Weak<Turns>>,
    /// So many more turns are given, unless the level is full before. While there are any, the
    /// first in line has one.
    turns: usize,
}

impl Default for State {
    fn default() -> Self {
        Self {
            limit: usize::MAX,
            active: 0,
            line: VecDeque::new(),
            turns: 0,
        }
    }
}

impl Level {
    /// `limit`: most server connections in use at once. None: as many as there are.
    pub fn set_limit(&self, limit: Option<usize>) {
        lock(&self.0).limit = limit.unwrap_or(usize::MAX);
    }

    /// Server connections of this level in use now.
    pub fn active(&self) -> usize {
        lock(&self.0).active
    }

    /// Whether a tenant may use one more. If not, the server that asks has a turn later. `holds`:
    /// the tenant has some already.
    pub fn lets_in(self: &Arc<Self>, asking: &Asking<'_>, holds: bool) -> bool {
        lock(&self.0).lets_in(self, asking, holds)
    }

    /// Counts a server connection in, if [`lets_in`](Self::lets_in) says so.
    pub fn enter(self: &Arc<Self>, asking: &Asking<'_>, holds: bool) -> bool {
        let mut state = lock(&self.0);
        let may = state.lets_in(self, asking, holds);
        state.active += usize::from(may);
        may
    }

    /// Counts a server connection out. True: it is the turn of `here`, the server that it was of,
    /// which is to [take](Self::begin_turn) it at once.
    pub fn leave(self: &Arc<Self>, here: Option<&Arc<Turns>>) -> bool {
        let mut state = lock(&self.0);
        state.active = state.active.saturating_sub(1);
        if state.active >= state.limit {
            return false;
        }
        if state.turns > 0 {
            // Who has its turn now may have seen it full again.
            state.turns = state.line.len() + 1;
            return false;
        }
        state.turns = state.line.len();
        let (Some(first), _) = state.first() else {
            return false;
        };
        let is_here = here.is_some_and(|here| Arc::ptr_eq(&first, here));
        if !is_here {
            first.give(self);
        }
        is_here
    }

    /// Counts connections that are in use in or out: their tenant has come to this level, or has
    /// left it. Whoever may be served now is to be looked for by the caller.
    pub fn shift(&self, comes: usize, leaves: usize) {
        let mut state = lock(&self.0);
        state.active = (state.active + comes).saturating_sub(leaves);
    }

    /// Begins the turn of `here`. False: there is no room any more, and it has its next turn after
    /// the others.
    pub fn begin_turn(&self, here: &Arc<Turns>) -> bool {
        let mut state = lock(&self.0);
        let has_room = state.active < state.limit;
        let before = state.line.len();
        state
            .line
            .retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(here)));
        if !has_room && state.line.len() < before {
            state.line.push_back(Arc::downgrade(here));
        }
        has_room
    }

    /// Ends a turn, and gives the next in line its own if there is room still.
    pub fn end_turn(self: &Arc<Self>) {
        let mut state = lock(&self.0);
        state.turns = match state.active < state.limit {
            true => state.turns.saturating_sub(1).min(2 * state.line.len()),
            false => 0,
        };
        if state.turns > 0
            && let (Some(first), _) = state.first()
        {
            first.give(self);
        }
    }
}

impl State {
    fn lets_in(&mut self, level: &Arc<Level>, asking: &Asking<'_>, holds: bool) -> bool {
        let kept = match holds {
            true => asking.reserve.min(self.limit / 4),
            false => 0,
        };
        let is_full = self.active.saturating_add(kept) >= self.limit;
        let is_others_turn = !asking.in_turn && self.is_others_turn(level, asking.turns);
        if !is_full && !is_others_turn {
            return true;
        }
        let here = Arc::as_ptr(asking.turns);
        if !self.line.iter().any(|other| other.as_ptr() == here) {
            self.line.push_back(Arc::downgrade(asking.turns));
        }
        if !is_full {
            // What is in use may be given back by nobody else: it has its turn with those that are
            // being given now.
            self.turns = self.turns.max(self.line.len() + 1);
        }
        false
    }

    /// The first server in line, and whether others that are gone were before it.
    fn first(&mut self) -> (Option<Arc<Turns>>, bool) {
        let before = self.line.len();
        let first = loop {
            match self.line.front().map(Weak::upgrade) {
                Some(None) => _ = self.line.pop_front(),
                first => break first.flatten(),
            }
        };
        if first.is_none() {
            self.turns = 0;
        }
        (first, self.line.len() < before)
    }

    /// Whether the first in line is to be served now, and is not `here`.
    fn is_others_turn(&mut self, level: &Arc<Level>, here: &Arc<Turns>) -> bool {
        if self.turns == 0 {
            return false;
        }
        let (first, is_new) = self.first();
        if let Some(first) = &first
            && is_new
        {
            // The one before it is gone and has not taken its turn.
            first.give(level);
        }
        first.is_some_and(|first| !Arc::ptr_eq(&first, here))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(turns: &Arc<Turns>) -> Asking<'_> {
        Asking {
            turns,
            in_turn: false,
            reserve: 0,
        }
    }

    fn level(limit: usize) -> Arc<Level> {
        let level = Arc::<Level>::default();
        level.set_limit(Some(limit));
        level
    }

    #[test]
    fn servers_have_their_turns_one_after_the_other() {
        let level = level(1);
        let servers: Vec<Arc<Turns>> = (0..3).map(|_| Arc::default()).collect();
        assert!(level.enter(&asking(&servers[0]), false));
        for server in &servers {
            assert!(!level.enter(&asking(server), false));
        }
        let mut served = Vec::new();
        let mut holder = 0;
        for _ in 0..9 {
            let inline = level.leave(Some(&servers[holder]));
            // Whoever else comes in between is not served before its turn.
            let late = Arc::<Turns>::default();
            let first = (0..3).find(|&at| servers[at].take().len() == 1);
            let first = first.unwrap_or(holder);
            assert_eq!(inline, first == holder);
            assert!(!level.enter(&asking(&late), false));
            drop(late);
            let here = &servers[first];
            assert!(level.begin_turn(here));
            let in_turn = Asking {
                in_turn: true,
                ..asking(here)
            };
            assert!(level.enter(&in_turn, false));
            assert!(!level.enter(&in_turn, false));
            level.end_turn();
            served.push(first);
            holder = first;
        }
        assert_eq!(served, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
        assert_eq!(level.active(), 1);
    }

    #[test]
    fn a_server_that_is_gone_keeps_nobody_waiting() {
        let level = level(1);
        let (one, gone, two) = (Arc::default(), Arc::default(), Arc::default());
        assert!(level.enter(&asking(&one), false));
        assert!(!level.enter(&asking(&gone), false));
        assert!(!level.enter(&asking(&two), false));
        assert!(!level.leave(Some(&one)));
        assert_eq!(gone.take().len(), 1);
        drop(gone);
        // It has had its turn and did not take it.
        assert!(!level.lets_in(&asking(&one), false));
        assert_eq!(two.take().len(), 1);
        assert!(level.begin_turn(&two));
        let in_turn = Asking {
            in_turn: true,
            ..asking(&two)
        };
        assert!(level.enter(&in_turn, false));
        level.end_turn();
    }

    #[test]
    fn the_last_places_are_for_tenants_that_hold_none() {
        for (limit, reserve, most) in [(8, 5, 6), (8, 1, 7), (8, 0, 8), (3, 5, 3), (1, 5, 1)] {
            let (level, turns) = (level(limit), Arc::default());
            let ask = Asking {
                reserve,
                ..asking(&turns)
            };
            let mut held = 0;
            while level.enter(&ask, held > 0) {
                held += 1;
            }
            assert_eq!(held, most, "{limit} {reserve}");
            for _ in held..limit {
                assert!(level.enter(&ask, false));
            }
            assert!(!level.enter(&ask, false));
        }
    }
}
