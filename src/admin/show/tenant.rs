//! `SHOW TENANT x`: one tenant on one page.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::clients::activity;
use super::stats::PERCENT;
use super::{Cell, Column, Row, row, text};
use crate::app::App;
use crate::backend::health::State;
use crate::config::{Rate, Tenant};
use crate::findings::{Place, Severity};
use crate::id::TenantId;
use crate::metrics::{TenantMetrics, Times, Totals};
use crate::tenant::state::TenantState;
use crate::timestamp::rfc3339;

pub const COLUMNS: &[Column] = &[text("section"), text("key"), text("value"), text("limit")];

/// The rows, and the section that is being written.
struct Page {
    section: &'static str,
    rows: Vec<Row>,
}

impl Page {
    fn begin(&mut self, section: &'static str) {
        self.section = section;
    }

    fn add(&mut self, key: &str, value: impl ToString) {
        self.limited(key, value, None::<u64>);
    }

    #[allow(clippy::needless_pass_by_value)] // numbers, names and literals alike
    fn limited(&mut self, key: &str, value: impl ToString, limit: Option<impl ToString>) {
        let limit = limit.map(|limit| limit.to_string());
        self.rows
            .push(row![self.section, key, value.to_string(), limit]);
    }

    fn unknown(&mut self, key: &str) {
        self.rows
            .push(row![self.section, key, Cell::Null, Cell::Null]);
    }
}

/// The page of the tenant, or of a tenant's service (`acme:records`), of this name. None: there is
/// none, and none has been seen since the start.
pub fn rows(app: &App, name: &str) -> Option<Vec<Row>> {
    let id = TenantId::read(name).ok()?;
    let config = app.config();
    let known = config.tenants.get(id.as_str()).cloned();
    let services = config.services.get(id.as_str());
    let seen = app.seen(&id);
    let is_application = config.applications.contains_key(&id);
    if is_application || (known.is_none() && services.is_none() && seen.is_none()) {
        return None;
    }
    let mut page = Page {
        section: "tenant",
        rows: Vec::new(),
    };
    page.add("tenant", &id);
    for (service, its) in services.into_iter().flat_map(|services| &services.ids) {
        page.add(&format!("service {service}"), its);
    }
    if services.is_some() {
        return Some(page.rows);
    }
    if let Some(known) = &known {
        place(&mut page, known);
    }
    state(&mut page, app, &id, known.as_deref());
    // Of a tenant that nobody has used, everything is zero.
    let seen = seen.unwrap_or_else(|| Arc::new(TenantState::new(id.clone())));
    clients(&mut page, app, &seen, known.as_deref());
    if let Some(known) = &known {
        connections(&mut page, app, &seen, known);
    }
    work(&mut page, app, &seen.metrics, known.as_deref());
    if let Some(known) = &known {
        doctor(&mut page, app, known);
    }
    Some(page.rows)
}

fn place(page: &mut Page, tenant: &Tenant) {
    let route = &tenant.route;
    if let Some((owner, service)) = &tenant.service {
        page.add("of_tenant", owner);
        page.add("service", service);
    }
    page.add("placement", &route.placement.name);
    page.add("tier", route.placement.tier);
    page.add("server", &route.pool.server);
    page.add("database", &route.pool.database);
    if let Some(schema) = &route.schema {
        page.add("schema", schema);
    }
    page.add("login", &route.pool.login.user);
    page.add("pool_mode", route.pooling);
    page.add("posture", route.posture());
    for (name, value) in &route.context {
        page.add(&format!("context {name}"), value);
    }
    let users: Vec<_> = tenant.users.keys().collect();
    page.add("users", users.join(","));
    page.add("weight", tenant.terms.limits.weight);
}

fn state(page: &mut Page, app: &App, id: &TenantId, known: Option<&Tenant>) {
    page.begin("state");
    let (paused, disabled) = (app.paused_by(id), app.disabled_by(id));
    // That of the config, and what the console has made of it.
    let word = known.map_or("removed", |known| known.lifecycle.now().word());
    let mut words = vec![word];
    words.extend(paused.as_ref().map(|_| "paused"));
    words.extend(disabled.as_ref().map(|_| "disabled"));
    words.dedup();
    page.add("state", words.join(", "));
    if let Some(known) = known {
        lifecycle(page, known);
    }
    if let Some(scope) = paused {
        page.add("paused_by", scope);
    }
    if let Some(scope) = disabled {
        page.add("disabled_by", scope);
    }
    let instances = app.instances();
    let Some(instance) = known.and_then(|known| instances.get(&known.route.pool.server)) else {
        return;
    };
    let health = instance.health.report();
    let health_state = match health.state {
        State::Up => "up",
        State::Down => "down",
        State::Unknown => "unknown",
    };
    page.add("server", health_state);
    let trouble = instance.trouble().map(|error| error.message().to_owned());
    if let Some(problem) = health.problem.clone().or(trouble) {
        page.add("server_problem", problem);
    }
}

/// Why the tenant is in its state, until when, and where it stands in the catalog.
fn lifecycle(page: &mut Page, known: &Tenant) {
    let lifecycle = &known.lifecycle;
    if let Some(reason) = &lifecycle.reason {
        page.add("reason", reason);
    }
    for (key, time) in [("until", lifecycle.until), ("expires", lifecycle.expires)] {
        if let Some(time) = time {
            page.add(key, rfc3339(time));
        }
    }
    let Some(listed) = &known.listed else {
        page.add("source", "file");
        return;
    };
    page.add("source", "catalog");
    page.add("generation", listed.generation);
    page.add("revision", listed.revision);
    if let Some(version) = &listed.version {
        page.add("version", version);
    }
}

/// Its clients, and those of applications that are served for it.
fn clients(page: &mut Page, app: &App, seen: &TenantState, known: Option<&Tenant>) {
    page.begin("clients");
    let limits = known.map(|known| known.terms.limits);
    let most = limits.and_then(|limits| limits.clients);
    page.limited("logged_in", seen.clients(), most);
    let most = limits.and_then(|limits| limits.waiting);
    page.limited("waiting", seen.metrics.waiting.get(), most);
    let mut activities: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut of_applications, mut idle_longest) = (0, Duration::ZERO);
    app.each_client(|client| {
        let is_own = client.tenant == seen.id;
        if !is_own && client.serves() != seen.id {
            return;
        }
        of_applications += usize::from(!is_own);
        let activity = activity(client);
        *activities.entry(activity).or_default() += 1;
        if activity == "idle in transaction" {
            idle_longest = idle_longest.max(client.note_phase());
        }
    });
    for (activity, count) in activities {
        page.add(activity, count);
    }
    page.add("of_applications", of_applications);
    let most = known.and_then(|known| known.terms.timeouts.idle_in_transaction);
    page.limited(
        "longest_idle_in_transaction_seconds",
        idle_longest.as_secs(),
        most.map(|most| most.as_secs()),
    );
}

fn connections(page: &mut Page, app: &App, seen: &TenantState, known: &Tenant) {
    page.begin("connections");
    page.limited("in_use", seen.active(), known.terms.limits.active);
    let instances = app.instances();
    let Some(instance) = instances.get(&known.route.pool.server) else {
        return;
    };
    let pools = instance.pools();
    let pool = pools.iter().find(|(pool, _)| pool.key == *known.route.pool);
    let counts = pool.map(|(_, counts)| *counts).unwrap_or_default();
    let size = known.route.pool_limits().size;
    page.limited("of_pool", counts.total, Some(size));
    page.add("of_pool_idle", counts.idle);
    page.add("of_pool_waiting", counts.waiting);
    let most = instance.server().max_connections;
    page.limited("of_server", instance.connections(), Some(most));
}

/// Percentiles and rates of the last one or two periods, and totals since the start.
fn work(page: &mut Page, app: &App, metrics: &TenantMetrics, known: Option<&Tenant>) {
    page.begin("times");
    let times: [(&str, &Times); 3] = [
        ("query_time", &metrics.statements),
        ("xact_time", &metrics.transactions),
        ("wait_time", &metrics.waits),
    ];
    for (name, times) in times {
        let told = times.percentiles(PERCENT);
        for (at, percent) in PERCENT.into_iter().enumerate() {
            let key = format!("p{percent}_{name}");
            match told {
                Some(told) => page.add(&key, told[at]),
                None => page.unknown(&key),
            }
        }
    }
    page.begin("rates");
    let totals = Totals::of(metrics);
    let averages = {
        let periods = app.periods();
        let span = Instant::now().saturating_duration_since(periods.older);
        totals.averages(&metrics.before(), span)
    };
    let rates = known
        .map(|known| known.terms.limits.rates)
        .unwrap_or_default();
    let most = |rate: Option<Rate>| rate.map(|rate| rate.per_second);
    page.limited("avg_query_count", averages.queries, most(rates.statements));
    page.add("avg_xact_count", averages.transactions);
    page.add("avg_recv", averages.received);
    page.limited("avg_sent", averages.sent, most(rates.bytes));
    page.begin("totals");
    for (key, count) in [
        ("logins", totals.logins),
        ("refused", metrics.refused.get()),
        ("queries", totals.queries),
        ("statements", metrics.executed.get()),
        ("rows", metrics.rows.get()),
        ("transactions", totals.transactions),
        ("query_time_us", totals.query_time),
        ("received_bytes", totals.received),
        ("sent_bytes", totals.sent),
        ("waits", metrics.waits.count()),
        ("switches", metrics.switches.get()),
        ("timeouts", metrics.timeouts.get()),
        ("cancels", metrics.cancels.get()),
        ("rate_waits", metrics.rate_waits.get()),
        ("rate_refusals", metrics.rate_refusals.get()),
        ("rate_pauses", metrics.rate_pauses.get()),
        ("audit_events", metrics.audited.get()),
    ] {
        page.add(key, count);
    }
    page.begin("errors");
    page.add("all", metrics.errors.get());
    for (code, count) in metrics.sqlstates.all() {
        page.add(&code, count);
    }
}

/// What the doctor found last in its place.
fn doctor(page: &mut Page, app: &App, known: &Tenant) {
    page.begin("doctor");
    let place = Place::of(&known.route);
    let snapshot = app.findings.snapshot();
    let Some(report) = snapshot.reports.iter().find(|report| report.place == place) else {
        page.unknown("inspected");
        return;
    };
    if let Some(problem) = &report.problem {
        page.add("problem", problem);
    }
    for severity in Severity::ALL {
        page.add(severity.as_str(), report.count(severity));
    }
    let is_critical = |severity| severity == Severity::Critical;
    let findings = report.findings.iter();
    for finding in findings.filter(|finding| is_critical(finding.severity)) {
        page.add(&finding.object, &finding.problem);
    }
}
