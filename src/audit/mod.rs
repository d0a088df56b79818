//! The audit: every attempt to reach what is another tenant's that the proxy sees, as an event.
//!
//! ```text
//!   login, relay ──record()──► bucket of the tenant ──► bounded queue ──► one thread ──► log, file
//!                                     │ empty                │ full
//!                                     └──────► counted ◄─────┘   the next event of the tenant says how many
//! ```
//!
//! [`Audit::record`] is called from the way of queries and logins: it neither waits nor fails.
//! Whatever becomes of the file (a full disk, a directory that is gone), traffic goes on, and what
//! could not be written is counted.
//!
//! Deliberately absent: literals. Of a statement an event has the
//! [`Fingerprint`](crate::sql::fingerprint::Fingerprint), and of a server's error its SQLSTATE:
//! both can be kept where the customers' data may not.

mod event;
pub mod file;
mod writer;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

pub use event::{Event, Kind, Who};

use crate::config;
use crate::id::TenantId;
use crate::metrics::Counter;
use event::Entry;
use event::bucket::{Buckets, Key, Stage};
use writer::Writer;

/// Events that wait for the writer. Beyond that they are dropped.
const QUEUE: usize = 1024;
/// How long the end of the proxy waits for the last events to be written.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What the metrics endpoint reads.
#[derive(Debug, Default)]
pub struct Metrics {
    events: [Counter; Kind::ALL.len()],
    /// Events that are in no file and no log: over the tenant's rate, with the queue full, left
    /// when the proxy ended.
    pub over_rate: Counter,
    pub queue_full: Counter,
    pub unwritten: Counter,
    /// Attempts to write that failed.
    pub write_failures: Counter,
}

impl Metrics {
    /// Events of a kind, whether they were written or not.
    pub fn events(&self, kind: Kind) -> u64 {
        self.events[kind as usize].get()
    }
}

/// What the writer shares with those that record.
#[derive(Debug)]
struct Shared {
    settings: ArcSwap<config::Audit>,
    /// Counts calls of [`Audit::reconfigure`].
    generation: AtomicU64,
    closing: AtomicBool,
    buckets: Buckets,
    /// Of the lines of the log about logins that were refused.
    logged: Buckets,
    metrics: Metrics,
}

enum Message {
    Entry(Box<Entry>),
    /// Look at the settings, and whether this is the end.
    Wake,
}

/// A handle of the audit; the writer ends with the last one.
#[derive(Clone)]
pub struct Audit(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    queue: SyncSender<Message>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Audit {
    /// Starts the writer. A file that cannot be opened is logged, and tried again.
    ///
    /// # Errors
    /// A thread that the operating system refuses.
    pub fn start(settings: config::Audit) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            settings: ArcSwap::from_pointee(settings),
            generation: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            buckets: Buckets::default(),
            logged: Buckets::default(),
            metrics: Metrics::default(),
        });
        let (queue, received) = sync_channel(QUEUE);
        let writer = Writer::new(shared.clone(), received);
        let writer = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(|| writer.run())?;
        Ok(Self(Arc::new(Inner {
            shared,
            queue,
            writer: Mutex::new(Some(writer)),
        })))
    }

    pub fn metrics(&self) -> &Metrics {
        &self.0.shared.metrics
    }

    /// Whether so much of honest work is recorded.
    pub fn records(&self, access: config::Access) -> bool {
        self.0.shared.settings.load().access >= access
    }

    /// Counts and writes who acts for a tenant, however often. `done`: `login` or `transaction`.
    pub fn record_access(&self, who: Who<'_>, done: &str) {
        let event = Event {
            kind: Kind::Access,
            who,
            sqlstate: None,
            detail: Some(done),
            statement: None,
        };
        self.0.shared.metrics.events[Kind::Access as usize].add(1);
        self.write(&event, event::Dropped::default());
    }

    /// Counts an event, and writes it unless its tenant has too many.
    pub fn record(&self, event: &Event<'_>) {
        let shared = &self.0.shared;
        shared.metrics.events[event.kind as usize].add(1);
        if let Some((_, metrics)) = event.who.tenant {
            metrics.audited.add(1);
        }
        let key = event.bucket();
        let rate = shared.settings.load();
        let admitted = shared
            .buckets
            .admit(&key, event.kind, &rate, Instant::now());
        let Some(dropped) = admitted else {
            shared.metrics.over_rate.add(1);
            return;
        };
        self.write(event, dropped);
    }

    fn write(&self, event: &Event<'_>, dropped: event::Dropped) {
        let shared = &self.0.shared;
        let entry = Entry::new(event, dropped);
        let refused = self.0.queue.try_send(Message::Entry(Box::new(entry)));
        if let Err(
            TrySendError::Full(Message::Entry(entry))
            | TrySendError::Disconnected(Message::Entry(entry)),
        ) = refused
        {
            shared.metrics.queue_full.add(1);
            let mut dropped = entry.dropped;
            dropped.add(event.kind);
            let settings = shared.settings.load();
            (shared.buckets).note_dropped(event.bucket(), &dropped, &settings);
        }
    }

    /// Whether the log has room for a line about a refused login, by the rate that events are
    /// written at: so many of each tenant, and of all that name none. Some: how many lines were
    /// left out before it.
    pub fn may_log(&self, tenant: Option<&TenantId>) -> Option<u64> {
        let shared = &self.0.shared;
        let key = Key {
            tenant: tenant.cloned(),
            stage: Stage::Door,
        };
        let rate = shared.settings.load();
        let dropped = (shared.logged).admit(&key, Kind::Password, &rate, Instant::now());
        dropped.map(|dropped| dropped.total())
    }

    /// Takes other settings over, and opens the file anew.
    pub fn reconfigure(&self, settings: config::Audit) {
        self.0.shared.settings.store(Arc::new(settings));
        self.0.shared.generation.fetch_add(1, Ordering::Release);
        self.0.wake();
    }

    /// Ends the writer once it has written what was recorded. Blocks for as long as that takes, up
    /// to a few seconds.
    pub fn close(&self) {
        self.0.end();
        let writer = self
            .0
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(writer) = writer else { return };
        let deadline = Instant::now() + LAST_WORDS;
        while !writer.is_finished() {
            if Instant::now() >= deadline {
                tracing::warn!("the last events of the audit were not written in time");
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        if writer.join().is_err() {
            tracing::error!("the audit thread panicked");
        }
    }
}

impl Inner {
    /// The writer waits for the queue, or for a while after a failure.
    fn wake(&self) {
        let _ = self.queue.try_send(Message::Wake);
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writer) = &*writer {
            writer.thread().unpark();
        }
    }

    fn end(&self) {
        self.shared.closing.store(true, Ordering::Release);
        self.wake();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests;
