//! `EXPLAIN CONFIG FOR tenant`: each setting in force for a tenant, and which level of the config
//! says so.

use std::time::Duration;

use crate::admin::show::{Column, Row, row, settings, text};
use crate::app::App;
use crate::config::said::{Said, Setting};
use crate::config::{Config, Rate, Tenant};
use crate::id::TenantId;

pub const COLUMNS: &[Column] = &[text("setting"), text("value"), text("from")];

/// What the levels say that a tenant is of, the nearest first.
struct Levels<'c> {
    levels: [(&'c str, Said); 4],
    rows: Vec<Row>,
}

impl<'c> Levels<'c> {
    fn of(config: &'c Config, tenant: &'c Tenant) -> Self {
        let (placement, server) = (&tenant.route.placement.name, &tenant.route.pool.server);
        let said = &config.said;
        let of_placement = said.placements.get(placement).copied().unwrap_or_default();
        let of_server = said.servers.get(server).copied().unwrap_or_default();
        Self {
            levels: [
                ("tenant", tenant.terms.said),
                ("placement", of_placement),
                ("server", of_server),
                ("file", said.file),
            ],
            rows: Vec::new(),
        }
    }

    fn add(&mut self, name: &str, setting: Setting, value: impl ToString) {
        let found = self.levels.iter().find(|(_, said)| said.has(setting));
        let from = found.map_or("default", |(level, _)| level);
        self.said(name, value, from);
    }

    #[allow(clippy::needless_pass_by_value)] // numbers, names and literals alike
    fn said(&mut self, name: &str, value: impl ToString, from: &str) {
        self.rows.push(row![name, value.to_string(), from]);
    }
}

/// None: there is no such tenant.
pub fn rows(app: &App, name: &str) -> Option<Vec<Row>> {
    let config = app.config();
    let tenant = config.tenants.get(TenantId::read(name).ok()?.as_str())?;
    let mut levels = Levels::of(&config, tenant);
    place(&mut levels, tenant);
    limits(&mut levels, tenant);
    timeouts(&mut levels, &config, tenant);
    for (name, value) in &tenant.terms.settings {
        levels.said(&format!("settings.{name}"), value, "tenant");
    }
    Some(levels.rows)
}

fn place(levels: &mut Levels<'_>, tenant: &Tenant) {
    let route = &tenant.route;
    let placement = &route.placement;
    levels.said("placement", &placement.name, "tenant");
    levels.add("server", Setting::Server, &route.pool.server);
    levels.said("tier", placement.tier, "placement");
    levels.said("database", &route.pool.database, "placement");
    if let Some(schema) = &route.schema {
        levels.said("schema", schema, "placement");
    }
    levels.said("login.user", &route.pool.login.user, "placement");
    for (name, value) in &route.context {
        levels.said(&format!("context.{name}"), value, "placement");
    }
    levels.add("pooling", Setting::Pooling, route.pooling);
    levels.add("posture", Setting::Posture, placement.posture);
    levels.add("guard", Setting::Guard, placement.guard);
    let allow: Vec<_> = placement.allow.iter().map(ToString::to_string).collect();
    levels.add("allow", Setting::Allow, allow.join(", "));
    let pool = route.pool_limits();
    levels.add("pool.size", Setting::PoolSize, pool.size);
    levels.add("pool.reserve", Setting::PoolReserve, pool.reserve);
    levels.add("pool.min", Setting::PoolMin, pool.min);
    levels.add("pool.reuse", Setting::PoolReuse, placement.reuse);
}

/// Empty: there is none.
fn limits(levels: &mut Levels<'_>, tenant: &Tenant) {
    let limits = tenant.terms.limits;
    levels.add("weight", Setting::Weight, limits.weight);
    for (name, setting, limit) in [
        ("limits.clients", Setting::LimitClients, limits.clients),
        ("limits.active", Setting::LimitActive, limits.active),
        ("limits.waiting", Setting::LimitWaiting, limits.waiting),
    ] {
        let limit = limit.map_or_else(String::new, |limit| limit.to_string());
        levels.add(name, setting, limit);
    }
    let rates = limits.rates;
    for (name, setting, rate) in [
        (
            "limits.statements_per_second",
            Setting::LimitStatements,
            rates.statements,
        ),
        ("limits.bytes_per_second", Setting::LimitBytes, rates.bytes),
    ] {
        let rate = rate.map_or_else(String::new, |Rate { per_second, burst }| {
            format!("{{ rate: {per_second}, burst: {burst} }}")
        });
        levels.add(name, setting, rate);
    }
}

/// 0: there is no limit.
fn timeouts(levels: &mut Levels<'_>, config: &Config, tenant: &Tenant) {
    let clients = tenant.terms.timeouts;
    let (own, all) = (tenant.terms.own_timeouts, &config.timeouts);
    for (name, setting, time) in [
        ("statement", Setting::Statement, clients.statement),
        ("transaction", Setting::Transaction, clients.transaction),
        (
            "idle_in_transaction",
            Setting::IdleInTransaction,
            clients.idle_in_transaction,
        ),
        ("idle_session", Setting::IdleSession, clients.idle_session),
        ("pinned", Setting::Pinned, clients.pinned),
        ("login", Setting::Login, own.login.or(Some(all.login))),
        (
            "checkout",
            Setting::Checkout,
            own.checkout.or(Some(all.checkout)),
        ),
        (
            "connect",
            Setting::Connect,
            own.connect.or(Some(all.connect)),
        ),
    ] {
        levels.add(&format!("timeouts.{name}"), setting, shown(time));
    }
    levels.add("log.slow", Setting::Slow, shown(tenant.terms.slow));
}

fn shown(time: Option<Duration>) -> String {
    time.map_or_else(|| "0".to_owned(), settings::period)
}
