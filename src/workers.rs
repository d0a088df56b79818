//! The threads that serve clients, as the rest of the proxy sees them: each a runtime of its own,
//! and how busy it is.
//!
//! A client and the server connection it holds are always on the same worker: its task polls both,
//! and what another thread's reactor has to tell it would come late. One worker is cheaper than two
//! for as long as it can do the work, so the clients of an instance begin on one, its home, and
//! others take some over when that has too much to do (`server::balance`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use tokio::runtime::Handle;
use tokio::sync::watch;

/// A worker that uses so much of a core, in thousandths, has too much to do.
pub const HOT: u32 = 800;

/// Where something runs: the position of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct WorkerId(u16);

impl WorkerId {
    pub fn number(self) -> usize {
        usize::from(self.0)
    }
}

impl From<u16> for WorkerId {
    fn from(number: u16) -> Self {
        Self(number)
    }
}

pub struct Workers {
    workers: Vec<Worker>,
    /// New connections are accepted by all, not by the first alone.
    all_accept: watch::Sender<bool>,
}

struct Worker {
    handle: Handle,
    load: AtomicU32,
}

impl Workers {
    /// At least one.
    pub fn new(handles: Vec<Handle>) -> Arc<Self> {
        let worker = |handle| Worker {
            handle,
            load: AtomicU32::new(0),
        };
        Arc::new(Self {
            workers: handles.into_iter().map(worker).collect(),
            all_accept: watch::Sender::new(false),
        })
    }

    pub fn ids(&self) -> impl Iterator<Item = WorkerId> + use<> {
        (0..u16::try_from(self.workers.len()).unwrap_or(u16::MAX)).map(WorkerId)
    }

    fn worker(&self, id: WorkerId) -> &Worker {
        &self.workers[id.number() % self.workers.len()]
    }

    pub fn handle(&self, id: WorkerId) -> &Handle {
        &self.worker(id).handle
    }

    /// Runs `task` there.
    pub fn spawn(&self, id: WorkerId, task: impl Future<Output = ()> + Send + 'static) {
        self.handle(id).spawn(task);
    }

    /// The worker of what is made as the `count`th: in turn.
    pub fn in_turn(&self, count: usize) -> WorkerId {
        WorkerId(u16::try_from(count % self.workers.len()).unwrap_or(0))
    }

    /// How much of a core it used lately, in thousandths.
    pub fn load(&self, id: WorkerId) -> u32 {
        self.worker(id).load.load(Relaxed)
    }

    pub fn set_load(&self, id: WorkerId, load: u32) {
        self.worker(id).load.store(load, Relaxed);
    }

    /// Whether all are to accept new connections: the first has too much to do to do it alone.
    pub fn set_all_accept(&self, all: bool) {
        self.all_accept
            .send_if_modified(|now| std::mem::replace(now, all) != all);
    }

    pub fn all_accept(&self) -> bool {
        *self.all_accept.borrow()
    }

    /// Ready when all are to accept new connections, or when the first is to do it alone.
    ///
    /// Cancel safe.
    pub async fn until_all_accept(&self, all: bool) {
        let mut told = self.all_accept.subscribe();
        // The sender lives as long as self.
        let _ = told.wait_for(|now| *now == all).await;
    }

    /// Where a client is to begin: the first that `wanted` names that has not too much to do; else
    /// the one that has least.
    pub fn place(&self, wanted: &[WorkerId]) -> WorkerId {
        let cool = wanted.iter().copied().find(|&id| self.load(id) < HOT);
        let least = || self.ids().min_by_key(|&id| self.load(id));
        cool.or_else(least).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_begins_where_it_is_wanted_unless_there_is_too_much_to_do() {
        let workers = Workers::new(vec![Handle::current(); 3]);
        let [a, b, c] = [0, 1, 2].map(WorkerId);
        assert_eq!(workers.place(&[b, a]), b);
        workers.set_load(b, HOT);
        assert_eq!(workers.place(&[b, a]), a);
        workers.set_load(a, HOT + 1);
        assert_eq!(workers.place(&[b, a]), c);
        workers.set_load(c, HOT + 2);
        assert_eq!(workers.place(&[b, a]), b);
        assert_eq!(workers.place(&[]), b);
    }

    #[tokio::test]
    async fn what_is_made_in_turn_is_spread() {
        let workers = Workers::new(vec![Handle::current(); 3]);
        let numbers = [0, 1, 2, 3, 4].map(|count| workers.in_turn(count).number());
        assert_eq!(numbers, [0, 1, 2, 0, 1]);
    }
}
