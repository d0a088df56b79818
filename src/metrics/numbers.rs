//! What `/metrics` tells of each tenant: the names of its counters and histograms, and where they
//! are read. To add one: an entry in [`COUNTERS`] or [`TIMES`], and a row in `docs/metrics.md`.

use super::{LATENCY_BOUNDS_US, Latency, TenantMetrics};

/// A counter of each tenant.
#[derive(Debug)]
pub struct CounterOf {
    pub name: &'static str,
    pub help: &'static str,
    read: fn(&TenantMetrics) -> u64,
}

/// A histogram of each tenant.
#[derive(Debug)]
pub struct TimesOf {
    pub name: &'static str,
    pub help: &'static str,
    read: fn(&TenantMetrics) -> &Latency,
}

const fn counter(
    name: &'static str,
    help: &'static str,
    read: fn(&TenantMetrics) -> u64,
) -> CounterOf {
    CounterOf { name, help, read }
}

const fn times(
    name: &'static str,
    help: &'static str,
    read: fn(&TenantMetrics) -> &Latency,
) -> TimesOf {
    TimesOf { name, help, read }
}

pub const COUNTERS: [CounterOf; 15] = [
    counter("tenant_logins", "Logins that succeeded", |t| t.logins.get()),
    counter(
        "tenant_refused",
        "Logins refused after the tenant was known, and queries that got no server connection",
        |t| t.refused.get(),
    ),
    counter(
        "tenant_queries",
        "Simple queries and Syncs that were answered",
        |t| t.queries.get(),
    ),
    counter(
        "tenant_statements",
        "Statements that ended without an error, as pg_stat_statements counts calls",
        |t| t.executed.get(),
    ),
    counter(
        "tenant_rows",
        "Rows of them, as pg_stat_statements counts rows",
        |t| t.rows.get(),
    ),
    counter("tenant_errors", "Errors that servers answered", |t| {
        t.errors.get()
    }),
    counter("tenant_received_bytes", "Bytes from clients", |t| {
        t.received.get()
    }),
    counter("tenant_sent_bytes", "Bytes to clients", |t| t.sent.get()),
    counter(
        "tenant_switches",
        "Server connections that changed to this tenant from another",
        |t| t.switches.get(),
    ),
    counter(
        "tenant_timeouts",
        "Statements and clients that were ended since they took too long",
        |t| t.timeouts.get(),
    ),
    counter("tenant_cancels", "Cancel requests passed on", |t| {
        t.cancels.get()
    }),
    counter(
        "tenant_audit_events",
        "Events of the audit, written or not",
        |t| t.audited.get(),
    ),
    counter(
        "tenant_rate_waits",
        "Statements that had to wait for a rate, at each level",
        |t| t.rate_waits.get(),
    ),
    counter(
        "tenant_rate_refusals",
        "Statements refused since they would have had to wait too long for a rate",
        |t| t.rate_refusals.get(),
    ),
    counter(
        "tenant_rate_pauses",
        "Times a result was held back for the rate of bytes",
        |t| t.rate_pauses.get(),
    ),
];

pub const TIMES: [TimesOf; 4] = [
    times(
        "tenant_login_seconds",
        "From accept to the end of logins that succeeded",
        |t| &t.login_times,
    ),
    times(
        "tenant_statement_seconds",
        "How long servers took for simple queries and batches up to a Sync",
        |t| &t.statements,
    ),
    times(
        "tenant_transaction_seconds",
        "Duration of transactions",
        |t| &t.transactions,
    ),
    times(
        "tenant_wait_seconds",
        "How long clients waited for a server connection, of those that had to",
        |t| &t.waits,
    ),
];

/// Buckets of a histogram, the open one included.
pub const BUCKETS: usize = LATENCY_BOUNDS_US.len() + 1;

/// A histogram's buckets (not cumulative) and then its sum in microseconds.
const TIMES_WIDTH: usize = BUCKETS + 1;
const WIDTH: usize = COUNTERS.len() + TIMES.len() * TIMES_WIDTH;

/// All counters and histograms of a tenant at one moment, or sums of such.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers([u64; WIDTH]);

impl Default for Numbers {
    fn default() -> Self {
        Self([0; WIDTH])
    }
}

impl Numbers {
    pub fn of(metrics: &TenantMetrics) -> Self {
        let mut numbers = [0; WIDTH];
        let (counters, histograms) = numbers.split_at_mut(COUNTERS.len());
        for (number, counter) in counters.iter_mut().zip(&COUNTERS) {
            *number = (counter.read)(metrics);
        }
        for (numbers, times) in histograms.chunks_exact_mut(TIMES_WIDTH).zip(&TIMES) {
            let latency = (times.read)(metrics);
            numbers[..BUCKETS].copy_from_slice(&latency.buckets());
            numbers[BUCKETS] = latency.sum_us();
        }
        Self(numbers)
    }

    /// In the order of [`COUNTERS`].
    pub fn counters(&self) -> &[u64] {
        &self.0[..COUNTERS.len()]
    }

    /// In the order of [`TIMES`]: the buckets (not cumulative), and the sum in microseconds.
    pub fn times(&self) -> impl Iterator<Item = (&[u64], u64)> {
        let histograms = self.0[COUNTERS.len()..].chunks_exact(TIMES_WIDTH);
        histograms.map(|numbers| (&numbers[..BUCKETS], numbers[BUCKETS]))
    }

    pub fn is_zero(&self) -> bool {
        self.0.iter().all(|number| *number == 0)
    }

    /// Modulo 2^64, so that a sum comes out right in which something is taken away before it is
    /// added.
    pub fn add(&mut self, other: &Self) {
        self.combine(other, u64::wrapping_add);
    }

    /// Modulo 2^64.
    pub fn subtract(&mut self, other: &Self) {
        self.combine(other, u64::wrapping_sub);
    }

    /// What each number of `other` has more than this one.
    pub fn lacking(&self, other: &Self) -> Self {
        let mut lacking = *self;
        lacking.combine(other, |this, other| other.saturating_sub(this));
        lacking
    }

    fn combine(&mut self, other: &Self, each: impl Fn(u64, u64) -> u64) {
        for (number, other) in self.0.iter_mut().zip(&other.0) {
            *number = each(*number, *other);
        }
    }
}
