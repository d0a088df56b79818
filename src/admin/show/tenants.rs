//! `SHOW TENANTS`.

use super::{Column, Row, View, int, row, text};
use crate::timestamp::utc;

pub const COLUMNS: &[Column] = &[
    text("tenant"),
    text("placement"),
    text("tier"),
    text("server"),
    text("database"),
    text("schema"),
    text("pool_mode"),
    text("posture"),
    int("clients"),
    int("active"),
    int("waiting"),
    int("max_clients"),
    int("max_active"),
    text("users"),
    int("log_slow_ms"),
    int("statements_per_second"),
    int("bytes_per_second"),
    int("rate_waits"),
    int("rate_refusals"),
    int("rate_pauses"),
    text("state"),
    text("reason"),
    text("until"),
    text("expires"),
    int("generation"),
    text("version"),
];

/// Every tenant of the config by name, seen or not.
pub fn rows(view: &View) -> Vec<Row> {
    let mut tenants: Vec<_> = view.config.tenants.values().collect();
    tenants.sort_by(|a, b| a.id.cmp(&b.id));
    tenants
        .into_iter()
        .map(|tenant| {
            let route = &tenant.route;
            let rates = tenant.terms.limits.rates;
            let seen = view.seen.get(&tenant.id);
            let users: Vec<&str> = tenant.users.keys().collect();
            row![
                tenant.id.as_str(),
                route.placement.name.as_str(),
                route.placement.tier.to_string(),
                route.pool.server.as_str(),
                route.pool.database.as_str(),
                route.schema.clone(),
                route.pooling.to_string(),
                route.posture().to_string(),
                seen.map_or(0, |tenant| tenant.clients()),
                seen.map_or(0, |tenant| tenant.active()),
                seen.map_or(0, |tenant| tenant.metrics.waiting.get()),
                tenant.terms.limits.clients,
                tenant.terms.limits.active,
                users.join(","),
                tenant
                    .terms
                    .slow
                    .map(|slow| u64::try_from(slow.as_millis()).unwrap_or(u64::MAX)),
                rates.statements.map(|rate| rate.per_second),
                rates.bytes.map(|rate| rate.per_second),
                seen.map_or(0, |tenant| tenant.metrics.rate_waits.get()),
                seen.map_or(0, |tenant| tenant.metrics.rate_refusals.get()),
                seen.map_or(0, |tenant| tenant.metrics.rate_pauses.get()),
                tenant.lifecycle.now().word(),
                tenant.lifecycle.reason.as_deref(),
                tenant.lifecycle.until.map(utc),
                tenant.lifecycle.expires.map(utc),
                tenant.listed.as_ref().map(|listed| listed.generation),
                tenant
                    .listed
                    .as_ref()
                    .and_then(|listed| listed.version.as_deref()),
            ]
        })
        .collect()
}
