//! Counters that anybody may add to and the admin console and the metrics endpoint read. Plain
//! atomics: adding costs a few nanoseconds and never waits.

pub mod busiest;
pub mod numbers;
mod recent;
pub mod sqlstates;
mod totals;

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use self::busiest::{Busiest, Busy};
use self::recent::Recent;
use self::sqlstates::Sqlstates;
pub use self::totals::Totals;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Counts one in for as long as the guard lives.
    pub fn enter(&self) -> GaugeGuard<'_> {
        self.0.fetch_add(1, Relaxed);
        GaugeGuard(self)
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

pub struct GaugeGuard<'a>(&'a Gauge);

impl Drop for GaugeGuard<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

/// Upper bounds of the latency buckets in microseconds; above the last is the open bucket.
pub const LATENCY_BOUNDS_US: [u64; 14] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000,
    5_000_000, 30_000_000,
];

/// How long things took, in the buckets of [`LATENCY_BOUNDS_US`].
#[derive(Debug, Default)]
pub struct Latency {
    buckets: [AtomicU64; LATENCY_BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Latency {
    pub fn record(&self, time: Duration) {
        self.record_us(microseconds(time));
    }

    fn record_us(&self, us: u64) {
        let bucket = LATENCY_BOUNDS_US.partition_point(|&bound| bound < us);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    /// Sum in microseconds.
    pub fn sum_us(&self) -> u64 {
        self.sum_us.load(Relaxed)
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Relaxed)).sum()
    }

    /// Count of each bucket (not cumulative), the open one last.
    pub fn buckets(&self) -> [u64; LATENCY_BOUNDS_US.len() + 1] {
        std::array::from_fn(|i| self.buckets[i].load(Relaxed))
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The same, and percentiles of late ([`Recent`]).
#[derive(Debug, Default)]
pub struct Times {
    all: Latency,
    /// From the first of them on.
    recent: OnceLock<Box<Recent>>,
}

impl Deref for Times {
    type Target = Latency;

    fn deref(&self) -> &Latency {
        &self.all
    }
}

impl Times {
    pub fn record(&self, time: Duration) {
        let us = microseconds(time);
        self.all.record_us(us);
        self.recent.get_or_init(Box::default).record(us);
    }

    /// The times, in microseconds, that so many percent did not exceed since the last whole period
    /// began, off by a fifth at most. None: there were none.
    pub fn percentiles<const N: usize>(&self, percent: [u64; N]) -> Option<[u64; N]> {
        self.recent.get()?.percentiles(percent)
    }

    fn end_period(&self) {
        if let Some(recent) = self.recent.get() {
            recent.end_period();
        }
    }
}

/// What one tenant has done.
#[derive(Debug, Default)]
pub struct TenantMetrics {
    /// Logins that succeeded.
    pub logins: Counter,
    /// From accept to the end of such a login.
    pub login_times: Latency,
    /// Logins refused after the tenant was known: wrong password, limits.
    pub refused: Counter,
    /// ReadyForQuery messages: simple queries and Syncs.
    pub queries: Counter,
    /// Times a client was given a server connection.
    pub assignments: Counter,
    /// Statements that ended without an error, and their rows, as `pg_stat_statements` counts calls
    /// and rows.
    pub executed: Counter,
    pub rows: Counter,
    /// Times a server connection came back at a clean point (in session pooling: transactions too).
    pub transactions: Times,
    /// From what a client sent first, or the ReadyForQuery before where it had sent more by then,
    /// to the ReadyForQuery.
    pub statements: Times,
    /// Statements with names that clients prepared, that servers did, and that were bound.
    pub client_parses: Counter,
    pub server_parses: Counter,
    pub binds: Counter,
    /// ErrorResponses from servers.
    pub errors: Counter,
    /// By their codes.
    pub sqlstates: Sqlstates,
    /// Bytes from clients and to clients.
    pub received: Counter,
    pub sent: Counter,
    /// Clients waiting for a server connection now.
    pub waiting: Gauge,
    /// How long those that had to wait did.
    pub waits: Times,
    /// Server connections that changed to this tenant.
    pub switches: Counter,
    /// CancelRequests passed on.
    pub cancels: Counter,
    /// Statements and clients that were ended since they took too long.
    pub timeouts: Counter,
    /// Events of the audit, written or not.
    pub audited: Counter,
    /// Statements that had to wait for a rate, at each level, and that were refused since they
    /// would have had to wait too long.
    pub rate_waits: Counter,
    pub rate_refusals: Counter,
    /// Times a result was held back for the rate of bytes.
    pub rate_pauses: Counter,
    /// How it compares with other tenants.
    busy: Busy,
    /// What had been counted when the last whole period began, and when it ended.
    snapshots: Mutex<Option<Box<[Totals; 2]>>>,
}

impl TenantMetrics {
    /// A period is over ([`Times::percentiles`]). One caller at a time.
    pub fn end_period(&self) {
        for times in [&self.transactions, &self.statements, &self.waits] {
            times.end_period();
        }
        let now = Totals::of(self);
        let mut snapshots = self.snapshots();
        let [older, newer] = &mut **snapshots.get_or_insert_default();
        *older = std::mem::replace(newer, now);
    }

    /// What had been counted when the last whole period began.
    pub fn before(&self) -> Totals {
        let snapshots = self.snapshots();
        snapshots
            .as_ref()
            .map_or_else(Totals::default, |snapshots| snapshots[0])
    }

    fn snapshots(&self) -> MutexGuard<'_, Option<Box<[Totals; 2]>>> {
        self.snapshots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the whole proxy has done outside of any tenant.
#[derive(Debug, Default)]
pub struct ProxyMetrics {
    /// Connections accepted.
    pub accepted: Counter,
    /// Logins refused: nobody in particular, or before it could be told who.
    pub refused: Counter,
    /// Reloads that took effect, and that did not.
    pub reloads: Counter,
    pub failed_reloads: Counter,
    /// Attempts to write the file of usage that failed, and lines of it that are in no file.
    pub usage_failures: Counter,
    pub usage_lost: Counter,
    /// Which tenants have series of their own.
    pub busiest: Busiest,
    log: OnceLock<Arc<LogCounts>>,
}

impl ProxyMetrics {
    /// What the log of the process counts is told with the rest. One that was given before stays.
    pub fn watch_log(&self, counts: Arc<LogCounts>) {
        let _ = self.log.set(counts);
    }

    /// None where the process has no log of its own: in tests.
    pub fn log(&self) -> Option<&LogCounts> {
        self.log.get().map(|counts| &**counts)
    }
}

/// What the log of a process counts.
#[derive(Debug, Default)]
pub struct LogCounts {
    /// Lines that could not be written.
    pub lost: Counter,
    /// Tasks and threads that panicked.
    pub panics: Counter,
}

/// What one instance has seen.
#[derive(Debug, Default)]
pub struct InstanceMetrics {
    pub connects: Counter,
    pub failed_connects: Counter,
    /// Idle connections of one pool closed because another pool needed the slot.
    pub evictions: Counter,
    /// Times an idle connection went to a client of another worker.
    pub moves: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_falls_into_the_first_bucket_that_holds_it() {
        let latency = Latency::default();
        for us in [0, 100, 101, 30_000_000, 30_000_001] {
            latency.record(Duration::from_micros(us));
        }
        let buckets = latency.buckets();
        assert_eq!(
            (buckets[0], buckets[1], buckets[13], buckets[14]),
            (2, 1, 1, 1)
        );
        assert_eq!((latency.count(), latency.sum_us()), (5, 60_000_202));
    }

    #[test]
    fn a_gauge_falls_when_its_guard_goes() {
        let gauge = Gauge::default();
        let guard = gauge.enter();
        assert_eq!(gauge.get(), 1);
        drop(guard);
        assert_eq!(gauge.get(), 0);
    }
}
