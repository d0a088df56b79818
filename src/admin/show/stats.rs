//! `SHOW STATS`, `STATS_TOTALS`, `STATS_AVERAGES` and `TOTALS`.

use std::sync::MutexGuard;
use std::time::Instant;

use super::{Cell, Column, Row, View, int, row, text};
use crate::app::Periods;
use crate::metrics::{Latency, TenantMetrics, Totals};

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
pub const PERCENT: [u64; 3] = [50, 95, 99];

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

/// PgBouncer's names in `TOTALS`, in the order of [`Totals::in_order`].
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

/// Since when averages are: the beginning of the last whole period. While this is there, no period
/// ends.
struct Span<'a> {
    periods: MutexGuard<'a, Periods>,
    now: Instant,
}

impl<'a> Span<'a> {
    fn of(view: &'a View) -> Self {
        let periods = view.app.periods();
        Self {
            periods,
            now: Instant::now(),
        }
    }

    fn averages(&self, totals: &Totals, before: &Totals) -> [u64; 12] {
        let span = self.now.saturating_duration_since(self.periods.older);
        totals.averages(before, span).in_order()
    }

    fn averages_of(&self, metrics: &TenantMetrics) -> [u64; 12] {
        self.averages(&Totals::of(metrics), &metrics.before())
    }
}

fn cells(numbers: impl IntoIterator<Item = u64>) -> impl Iterator<Item = Cell> {
    numbers.into_iter().map(Cell::from)
}

/// A row for each tenant that has been seen since the start, by name, also for those that a reload
/// removed.
pub fn rows(view: &View) -> Vec<Row> {
    let span = Span::of(view);
    each(view, |id, metrics| {
        let route = view
            .config
            .tenants
            .get(id.as_str())
            .map(|tenant| &tenant.route);
        let mut row = row![id.as_str()];
        row.extend(cells(Totals::of(metrics).in_order()));
        row.extend(cells(span.averages_of(metrics)));
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
        row.extend(cells(Totals::of(metrics).in_order()));
        row
    })
}

pub fn averages_of_each(view: &View) -> Vec<Row> {
    let span = Span::of(view);
    each(view, |id, metrics| {
        let mut row = row![id.as_str()];
        row.extend(cells(span.averages_of(metrics)));
        row
    })
}

/// Of all tenants together.
pub fn totals(view: &View) -> Vec<Row> {
    let span = Span::of(view);
    let (mut all, mut before) = (Totals::default(), Totals::default());
    for tenant in view.seen.values() {
        all = all.and(&Totals::of(&tenant.metrics));
        before = before.and(&tenant.metrics.before());
    }
    let named = |prefix: &'static str, numbers: [u64; 12]| {
        let named = TOTALS.into_iter().zip(numbers);
        named.map(move |(name, number)| row![format!("{prefix}_{name}"), number])
    };
    let averages = span.averages(&all, &before);
    named("total", all.in_order())
        .chain(named("avg", averages))
        .collect()
}
