//! `SHOW STATS`.

use super::{Column, Row, View, int, row, text};
use crate::metrics::Latency;

pub const COLUMNS: &[Column] = &[
    text("database"),
    int("total_xact_count"),
    int("total_query_count"),
    int("total_received"),
    int("total_sent"),
    int("total_xact_time"),
    int("total_wait_time"),
    int("avg_xact_count"),
    int("avg_query_count"),
    int("avg_recv"),
    int("avg_sent"),
    int("avg_xact_time"),
    int("avg_wait_time"),
    text("tenant"),
    text("placement"),
    int("total_login_count"),
    int("total_refused_count"),
    int("total_error_count"),
    int("total_wait_count"),
    int("total_switch_count"),
    int("total_cancel_count"),
    int("total_audit_count"),
];

/// Tenants that have been seen since the start, also those that a reload removed. Times are in
/// microseconds; rates are per second since the start.
pub fn rows(view: &View) -> Vec<Row> {
    let uptime = view.app.started.elapsed().as_secs().max(1);
    let mut seen: Vec<_> = view.seen.values().collect();
    seen.sort_by(|a, b| a.id.cmp(&b.id));
    seen.into_iter()
        .map(|tenant| {
            let metrics = &tenant.metrics;
            let route = view.config.tenants.get(&tenant.id).map(|t| &t.route);
            let transactions = metrics.transactions.count();
            let queries = metrics.queries.get();
            let (received, sent) = (metrics.received.get(), metrics.sent.get());
            row![
                route.map(|route| route.pool.database.as_str()),
                transactions,
                queries,
                received,
                sent,
                metrics.transactions.sum_us(),
                metrics.waits.sum_us(),
                transactions / uptime,
                queries / uptime,
                received / uptime,
                sent / uptime,
                mean(&metrics.transactions),
                mean(&metrics.waits),
                tenant.id.as_str(),
                route.map(|route| route.placement.name.as_str()),
                metrics.logins.get(),
                metrics.refused.get(),
                metrics.errors.get(),
                metrics.waits.count(),
                metrics.switches.get(),
                metrics.cancels.get(),
                metrics.audited.get(),
            ]
        })
        .collect()
}

fn mean(latency: &Latency) -> u64 {
    latency.sum_us() / latency.count().max(1)
}
