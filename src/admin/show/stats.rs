//! `SHOW STATS`, `STATS_TOTALS`, `STATS_AVERAGES` and `TOTALS`.

use std::ops::AddAssign;

use super::{Cell, Column, Row, View, int, row, text};
use crate::metrics::{Latency, TenantMetrics};

pub const COLUMNS: &[Column] = &[
    text("database"),
    int("total_server_assignment_count"),
    int("total_xact_count"),
    int("total_query_count"),
    int("total_received"),
    int("total_sent"),
    int("total_xact_time"),
    int("total_query_time"),
    int("total_wait_time"),
    int("total_client_parse_count"),
    int("total_server_parse_count"),
    int("total_bind_count"),
    int("total_client_login_count"),
    int("avg_server_assignment_count"),
    int("avg_xact_count"),
    int("avg_query_count"),
    int("avg_recv"),
    int("avg_sent"),
    int("avg_xact_time"),
    int("avg_query_time"),
    int("avg_wait_time"),
    int("avg_client_parse_count"),
    int("avg_server_parse_count"),
    int("avg_bind_count"),
    int("avg_client_login_count"),
    text("tenant"),
    text("placement"),
    int("total_login_count"),
    int("total_refused_count"),
    int("total_error_count"),
    int("total_wait_count"),
    int("total_switch_count"),
    int("total_cancel_count"),
    int("total_audit_count"),
    int("total_requests"),
    int("p50_query_time"),
    int("p95_query_time"),
    int("p99_query_time"),
    int("p50_xact_time"),
    int("p95_xact_time"),
    int("p99_xact_time"),
    int("p50_wait_time"),
    int("p95_wait_time"),
    int("p99_wait_time"),
];

/// Those that are told of times.
const PERCENT: [u64; 3] = [50, 95, 99];

pub const TOTALS_COLUMNS: &[Column] = &[text("name"), int("value")];

/// Of `STATS_TOTALS`, and of `STATS_AVERAGES`, whose last names PgBouncer spells otherwise.
pub const STATS_TOTALS_COLUMNS: &[Column] = &[
    text("database"),
    int("server_assignment_count"),
    int("xact_count"),
    int("query_count"),
    int("bytes_received"),
    int("bytes_sent"),
    int("xact_time"),
    int("query_time"),
    int("wait_time"),
    int("client_parse_count"),
    int("server_parse_count"),
    int("bind_count"),
    int("client_login_count"),
];
pub const STATS_AVERAGES_COLUMNS: &[Column] = &[
    text("database"),
    int("server_assignment_count"),
    int("xact_count"),
    int("query_count"),
    int("bytes_received"),
    int("bytes_sent"),
    int("xact_time"),
    int("query_time"),
    int("wait_time"),
    int("avg_client_parse_count"),
    int("avg_server_parse_count"),
    int("avg_bind_count"),
    int("avg_client_login_count"),
];

/// PgBouncer's names in `TOTALS`, in the order of [`Numbers::totals`].
const TOTALS: [&str; 12] = [
    "server_assignment_count",
    "xact_count",
    "query_count",
    "client_bytes",
    "server_bytes",
    "xact_time",
    "query_time",
    "wait_time",
    "ps_client_parse_count",
    "ps_server_parse_count",
    "ps_bind_count",
    "client_login_count",
];

/// What is counted of a tenant, or of all. Times are in microseconds. No clock is read for each
/// statement, so the time of queries is that of transactions; Parse and Bind messages are not
/// counted.
#[derive(Debug, Clone, Copy, Default)]
struct Numbers {
    transactions: u64,
    queries: u64,
    received: u64,
    sent: u64,
    transaction_time: u64,
    wait_time: u64,
    waits: u64,
    logins: u64,
}

impl Numbers {
    fn of(metrics: &TenantMetrics) -> Self {
        Self {
            transactions: metrics.transactions.count(),
            queries: metrics.queries.get(),
            received: metrics.received.get(),
            sent: metrics.sent.get(),
            transaction_time: metrics.transactions.sum_us(),
            wait_time: metrics.waits.sum_us(),
            waits: metrics.waits.count(),
            logins: metrics.logins.get(),
        }
    }

    fn totals(&self) -> [u64; 12] {
        [
            self.transactions,
            self.transactions,
            self.queries,
            self.received,
            self.sent,
            self.transaction_time,
            self.transaction_time,
            self.wait_time,
            0,
            0,
            0,
            self.logins,
        ]
    }

    /// Per second of `uptime`, and of times the mean.
    fn averages(&self, uptime: u64) -> [u64; 12] {
        let mean = |time: u64, count: u64| time / count.max(1);
        [
            self.transactions / uptime,
            self.transactions / uptime,
            self.queries / uptime,
            self.received / uptime,
            self.sent / uptime,
            mean(self.transaction_time, self.transactions),
            mean(self.transaction_time, self.queries.max(self.transactions)),
            mean(self.wait_time, self.waits),
            0,
            0,
            0,
            self.logins / uptime,
        ]
    }
}

impl AddAssign for Numbers {
    fn add_assign(&mut self, other: Self) {
        self.transactions += other.transactions;
        self.queries += other.queries;
        self.received += other.received;
        self.sent += other.sent;
        self.transaction_time += other.transaction_time;
        self.wait_time += other.wait_time;
        self.waits += other.waits;
        self.logins += other.logins;
    }
}

fn uptime(view: &View) -> u64 {
    view.app.started.elapsed().as_secs().max(1)
}

fn cells(numbers: impl IntoIterator<Item = u64>) -> impl Iterator<Item = Cell> {
    numbers.into_iter().map(Cell::from)
}

/// A row for each tenant that has been seen since the start, by name, also for those that a reload
/// removed. Averages are over the time since the start.
pub fn rows(view: &View) -> Vec<Row> {
    let uptime = uptime(view);
    each(view, |id, metrics| {
        let numbers = Numbers::of(metrics);
        let route = view.config.tenants.get(id).map(|tenant| &tenant.route);
        let mut row = row![id.as_str()];
        row.extend(cells(numbers.totals()));
        row.extend(cells(numbers.averages(uptime)));
        row.extend(row![
            id.as_str(),
            route.map(|route| route.placement.name.as_str()),
            metrics.logins.get(),
            metrics.refused.get(),
            metrics.errors.get(),
            count(&metrics.waits),
            metrics.switches.get(),
            metrics.cancels.get(),
            metrics.audited.get(),
            metrics.queries.get(),
        ]);
        for times in [&metrics.statements, &metrics.transactions, &metrics.waits] {
            let percentiles = times.percentiles(PERCENT).map(|told| told.map(Some));
            row.extend(percentiles.unwrap_or_default().map(Cell::from));
        }
        row
    })
}

fn count(latency: &Latency) -> u64 {
    latency.count()
}

fn each(view: &View, row: impl Fn(&crate::id::TenantId, &TenantMetrics) -> Row) -> Vec<Row> {
    let mut seen: Vec<_> = view.seen.values().collect();
    seen.sort_by(|a, b| a.id.cmp(&b.id));
    let seen = seen.into_iter();
    seen.map(|tenant| row(&tenant.id, &tenant.metrics))
        .collect()
}

pub fn totals_of_each(view: &View) -> Vec<Row> {
    each(view, |id, metrics| {
        let mut row = row![id.as_str()];
        row.extend(cells(Numbers::of(metrics).totals()));
        row
    })
}

pub fn averages_of_each(view: &View) -> Vec<Row> {
    let uptime = uptime(view);
    each(view, |id, metrics| {
        let mut row = row![id.as_str()];
        row.extend(cells(Numbers::of(metrics).averages(uptime)));
        row
    })
}

/// Of all tenants together.
pub fn totals(view: &View) -> Vec<Row> {
    let mut all = Numbers::default();
    for tenant in view.seen.values() {
        all += Numbers::of(&tenant.metrics);
    }
    let named = |prefix: &'static str, numbers: [u64; 12]| {
        let named = TOTALS.into_iter().zip(numbers);
        named.map(move |(name, number)| row![format!("{prefix}_{name}"), number])
    };
    let averages = all.averages(uptime(view));
    named("total", all.totals())
        .chain(named("avg", averages))
        .collect()
}
