//! What the sockets of a worker send in one turn of it, between two waits for something to do: it
//! leaves in one system call.
//!
//! Not to spare system calls, but what follows one: a send wakes whoever waits at the other end,
//! and where that runs on the same core it comes at once, and the worker is back only when it has
//! done. Of what is sent by one call, all is sent first. `benches/README.md` says what that wins.
//!
//! A turn with hardly anything to send is better off without: then each send is a call of its own,
//! at once.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::IoSlice;
use std::mem;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::net::ring::{self, Ring};
use crate::net::socket::Shared;

/// More than this in bytes is no message of a usual transaction, and copying it would cost more
/// than is won.
const LARGE: usize = 4 * 1024;

/// So many sends in a turn are worth a batch.
const WORTH: u32 = 2;

/// A turn in which much is to be done for each message, as for long pipelines, does not keep what
/// is ready to leave for longer than this, and what one task does.
const PATIENCE: Duration = Duration::from_micros(100);

thread_local! {
    static BATCH: RefCell<Option<Batch>> = const { RefCell::new(None) };
}

struct Batch {
    ring: Ring,
    queue: Queue,
    /// Of the task that sends what is queued.
    flusher: Option<Waker>,
    /// Sends in this turn, and in the one before.
    sends: u32,
    sends_before: u32,
}

#[derive(Default)]
struct Queue {
    /// None twice.
    sockets: Vec<(Arc<Shared>, Range<usize>)>,
    bytes: Vec<u8>,
    /// When the first of them was queued.
    since: Option<Instant>,
}

impl Batch {
    /// Whether what is queued can wait for more.
    fn has_room(&self) -> bool {
        let Queue { sockets, since, .. } = &self.queue;
        sockets.len() < ring::MAX && since.is_none_or(|since| since.elapsed() < PATIENCE)
    }
}

/// Lets the sockets of the calling thread send in batches, once what is returned runs on it as a
/// task; [`turn`] is to be told of its turns.
///
/// # Errors
/// The operating system's, where it has nothing for that; all is sent at once then.
pub fn install() -> std::io::Result<impl Future<Output = ()> + Send> {
    let batch = Batch {
        ring: Ring::new()?,
        queue: Queue::default(),
        flusher: None,
        sends: 0,
        sends_before: 0,
    };
    BATCH.set(Some(batch));
    Ok(flusher())
}

/// The calling thread has nothing to do, and is about to wait for something. One that always has
/// something to do is in one long turn.
pub fn turn() {
    BATCH.with_borrow_mut(|batch| {
        if let Some(batch) = batch {
            batch.sends_before = mem::take(&mut batch.sends);
        }
    });
}

/// The task that sends what was queued. It is woken when something is, and so runs behind all that
/// had something to do then.
async fn flusher() {
    poll_fn(|cx: &mut Context<'_>| {
        flush();
        BATCH.with_borrow_mut(|batch| {
            if let Some(batch) = batch {
                batch.flusher.get_or_insert_with(|| cx.waker().clone());
            }
        });
        Poll::<()>::Pending
    })
    .await;
}

/// Queues `parts` for `socket`, for which nothing is queued yet. False: they are to be sent at
/// once.
pub fn queue(socket: &Arc<Shared>, parts: &[IoSlice<'_>]) -> bool {
    let offered = BATCH.with_borrow_mut(|batch| {
        let batch = batch.as_mut()?;
        batch.sends = batch.sends.saturating_add(1);
        let is_worth_it = batch.sends_before.max(batch.sends) >= WORTH;
        let length: usize = parts.iter().map(|part| part.len()).sum();
        (is_worth_it && length <= LARGE).then(|| batch.has_room())
    });
    match offered {
        None => return false,
        Some(true) => {}
        Some(false) => flush(),
    }
    BATCH.with_borrow_mut(|batch| {
        let Some(batch) = batch else { return false };
        let Some(flusher) = &batch.flusher else {
            return false;
        };
        let Queue {
            sockets,
            bytes,
            since,
        } = &mut batch.queue;
        if sockets.is_empty() {
            flusher.wake_by_ref();
            *since = Some(Instant::now());
        }
        let start = bytes.len();
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        sockets.push((socket.clone(), start..bytes.len()));
        true
    })
}

/// Sends what the sockets of the calling thread have queued. On a runtime, or what a socket does
/// not take is lost.
pub fn flush() {
    // Nobody is told of anything while the batch is borrowed: they may want it.
    let Some((mut queue, results, failed)) = BATCH.with_borrow_mut(|batch| {
        let batch = batch.as_mut()?;
        if batch.queue.sockets.is_empty() {
            return None;
        }
        let queue = mem::take(&mut batch.queue);
        let sends: Vec<_> = queue
            .sockets
            .iter()
            .map(|(socket, range)| (socket.as_fd(), &queue.bytes[range.clone()]))
            .collect();
        let mut results = Vec::with_capacity(sends.len());
        let failed = batch.ring.send(&sends, &mut results).err();
        Some((queue, results, failed))
    }) else {
        return;
    };
    for ((socket, range), result) in queue.sockets.drain(..).zip(results) {
        socket.left(&queue.bytes[range], result);
    }
    queue.bytes.clear();
    queue.since = None;
    if let Some(error) = failed {
        tracing::error!(%error, "io_uring has failed: each message is sent by a system call of its own from now on");
        BATCH.set(None);
    }
    BATCH.with_borrow_mut(|batch| {
        if let Some(batch) = batch
            && batch.queue.sockets.is_empty()
        {
            // For its memory.
            batch.queue = queue;
        }
    });
}

#[cfg(test)]
pub fn let_the_ring_fail() {
    BATCH.with_borrow_mut(|batch| batch.as_mut().unwrap().ring = Ring::failed());
}
