//! What a tenant has done, in PgBouncer's terms, and averages of it.

use std::time::Duration;

use super::TenantMetrics;

/// Numbers since the start of the process, or averages of them. Times are in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    pub assignments: u64,
    pub transactions: u64,
    pub queries: u64,
    pub received: u64,
    pub sent: u64,
    pub transaction_time: u64,
    pub query_time: u64,
    pub wait_time: u64,
    pub client_parses: u64,
    pub server_parses: u64,
    pub binds: u64,
    pub logins: u64,
}

impl Totals {
    pub fn of(metrics: &TenantMetrics) -> Self {
        Self {
            assignments: metrics.assignments.get(),
            transactions: metrics.transactions.count(),
            queries: metrics.queries.get(),
            received: metrics.received.get(),
            sent: metrics.sent.get(),
            transaction_time: metrics.transactions.sum_us(),
            query_time: metrics.statements.sum_us(),
            wait_time: metrics.waits.sum_us(),
            client_parses: metrics.client_parses.get(),
            server_parses: metrics.server_parses.get(),
            binds: metrics.binds.get(),
            logins: metrics.logins.get(),
        }
    }

    /// Of both together.
    pub fn and(&self, other: &Self) -> Self {
        self.with(other, |one, other| one + other)
    }

    /// Over `span`, at whose beginning these were `before`: per second, but the times of
    /// transactions and queries per transaction and query (`calc_average` in PgBouncer's stats.c).
    pub fn averages(&self, before: &Self, span: Duration) -> Self {
        let new = self.with(before, u64::saturating_sub);
        let per_second = |count: u64| {
            let average = u128::from(count) * 1_000_000;
            let average = average.checked_div(span.as_micros()).unwrap_or(0);
            u64::try_from(average).unwrap_or(u64::MAX)
        };
        Self {
            transaction_time: new.transaction_time / new.transactions.max(1),
            query_time: new.query_time / new.queries.max(1),
            ..new.with(&new, |count, _| per_second(count))
        }
    }

    /// In the order of PgBouncer's columns.
    pub fn in_order(&self) -> [u64; 12] {
        [
            self.assignments,
            self.transactions,
            self.queries,
            self.received,
            self.sent,
            self.transaction_time,
            self.query_time,
            self.wait_time,
            self.client_parses,
            self.server_parses,
            self.binds,
            self.logins,
        ]
    }

    fn with(&self, other: &Self, each: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            assignments: each(self.assignments, other.assignments),
            transactions: each(self.transactions, other.transactions),
            queries: each(self.queries, other.queries),
            received: each(self.received, other.received),
            sent: each(self.sent, other.sent),
            transaction_time: each(self.transaction_time, other.transaction_time),
            query_time: each(self.query_time, other.query_time),
            wait_time: each(self.wait_time, other.wait_time),
            client_parses: each(self.client_parses, other.client_parses),
            server_parses: each(self.server_parses, other.server_parses),
            binds: each(self.binds, other.binds),
            logins: each(self.logins, other.logins),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_are_those_of_pgbouncer() {
        let mut counts = [0; 12];
        let before = Totals {
            queries: 1000,
            query_time: 9_000_000,
            ..Totals::default()
        };
        let now = Totals {
            assignments: 240,
            transactions: 120,
            queries: 1240,
            received: 60_000,
            sent: 90_000,
            transaction_time: 6_000_000,
            query_time: 9_480_000,
            wait_time: 30_000_000,
            client_parses: 61,
            server_parses: 59,
            binds: 600,
            logins: 0,
        };
        let averages = now.averages(&before, Duration::from_secs(60));
        counts.copy_from_slice(&averages.in_order());
        let expected = [4, 2, 4, 1000, 1500, 50_000, 2000, 500_000, 1, 0, 10, 0];
        assert_eq!(counts, expected);
        assert_eq!(now.averages(&now, Duration::ZERO), Totals::default());
        assert_eq!(now.averages(&before, Duration::ZERO).queries, 0);
    }
}
