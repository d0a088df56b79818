//! Server connections that a pool has at least, made when nobody waits for one.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::Pool;
use crate::workers::WorkerId;

/// After one could not be made, no other is tried for so long: nobody waits for it.
const AGAIN: Duration = Duration::from_secs(15);

/// The place of a connection that is being made; given back unless that was kept.
struct Spare<'a>(Option<&'a Pool>);

impl Drop for Spare<'_> {
    fn drop(&mut self) {
        if let Some(pool) = self.0 {
            pool.instance.queue().release(pool.id);
        }
    }
}

impl Pool {
    /// Makes the connections that it has too few, one after the other, at its instance's home. None
    /// is made any more if all were to be made anew since `asked`: the pool may be paused.
    pub fn keep_warm(self: &Arc<Self>, asked: Instant) {
        let failed = self.spare_failed.load(Relaxed);
        let may_try = failed == 0 || self.made.elapsed() > Duration::from_millis(failed) + AGAIN;
        if !may_try || !self.instance.queue().lacks_spares(self.id) {
            return;
        }
        let (pool, worker) = (self.clone(), self.instance.home);
        self.instance.workers.spawn(worker, async move {
            while !pool.is_outdated(asked) && pool.instance.queue().take_spare(pool.id) {
                if !pool.connect_spare(worker).await {
                    return;
                }
            }
        });
    }

    /// From now on it has none that it must have.
    pub fn keep_no_more(&self) {
        self.min.store(0, Relaxed);
    }

    /// Makes one, whose place is taken. Whether it did.
    ///
    /// Cancel safe: what was begun is closed.
    async fn connect_spare(&self, worker: WorkerId) -> bool {
        let mut spare = Spare(Some(self));
        let deadline = self.instance.timeouts().connect;
        let connection = match self.connect(&self.key, worker, deadline).await {
            Ok(connection) => connection,
            Err(error) => {
                self.waits_out(&error);
                let now = u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX);
                self.spare_failed.store(now.max(1), Relaxed);
                return false;
            }
        };
        self.spare_failed.store(0, Relaxed);
        spare.0 = None;
        let mut queue = self.instance.queue();
        if self.is_retired() || self.is_outdated(connection.born) || queue.is_over() {
            drop(queue);
            self.instance.close(self.id, connection, false);
            return false;
        }
        queue.put_spare(self.id, connection);
        true
    }
}
