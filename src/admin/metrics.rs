//! The metrics in OpenMetrics text. A registry is not kept: the numbers are where they are counted,
//! and are read when somebody asks.
//!
//! Tenants are listed from their first login on, so that ten thousand that nobody uses cost
//! nothing; their counters stay when a reload removes them. [`crate::metrics::busiest`] has who of
//! them has series of its own.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::app::App;
use crate::audit::Kind;
use crate::backend::PoolCounts;
use crate::backend::health::State;
use crate::backend::instance::Instance;
use crate::catalog::Source;
use crate::findings::Severity;
use crate::metrics::LATENCY_BOUNDS_US;
use crate::metrics::numbers::{COUNTERS, TIMES};
use crate::tenant::state::TenantState;

/// Of OpenMetrics 1.0, which Prometheus reads since 2.5.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of `app` as text.
///
/// # Errors
/// None that a String can have.
pub fn encode(app: Arc<App>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("pgtenant");
    registry.register_collector(Box::new(AppCollector(app)));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

struct AppCollector(Arc<App>);

impl fmt::Debug for AppCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AppCollector")
    }
}

impl Collector for AppCollector {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut out = Output(encoder);
        proxy(&self.0, &mut out)?;
        usage(&self.0, &mut out)?;
        workers(&self.0, &mut out)?;
        audit(&self.0, &mut out)?;
        tenants(&self.0, &mut out)?;
        servers(&self.0, &mut out)?;
        doctor(&self.0, &mut out)?;
        catalog(&self.0, &mut out)?;
        pools(&self.0, &mut out)
    }
}

/// One metric family after the other. Each takes its series as labels and value.
struct Output<'a>(DescriptorEncoder<'a>);

impl Output<'_> {
    fn counter<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in series {
            metric
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }

    /// A counter or gauge without labels.
    fn number(&mut self, kind: MetricType, name: &str, help: &str, value: u64) -> fmt::Result {
        self.some(kind, name, help, Some(value))
    }

    /// The same, or only that there may be one.
    fn some(
        &mut self,
        kind: MetricType,
        name: &str,
        help: &str,
        value: Option<u64>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, kind)?;
        match (value, kind) {
            (None, _) => Ok(()),
            (Some(value), MetricType::Counter) => {
                metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
            }
            (Some(value), _) => metric.encode_gauge(&value),
        }
    }

    fn gauge<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, usize)>,
    ) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in series {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// `series`: of each its counts (not cumulative), and the sum in microseconds.
    fn histogram<'l, L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, (&'l [u64], u64))>,
    ) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, (counts, sum)) in series {
            let bounds = LATENCY_BOUNDS_US.iter().map(|&us| seconds(us));
            let bounds = bounds.chain([f64::INFINITY]);
            let buckets: Vec<_> = bounds.zip(counts.iter().copied()).collect();
            // The count must be that of the buckets, though more may have come in meanwhile.
            metric
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(
                    seconds(sum),
                    counts.iter().sum(),
                    &buckets,
                    None,
                )?;
        }
        Ok(())
    }
}

/// Of microseconds. Exact up to 2^53 of them, which is 285 years.
#[allow(clippy::cast_precision_loss)]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn proxy(app: &App, out: &mut Output) -> fmt::Result {
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    out.0
        .encode_descriptor("build", "The pgtenant that runs", None, MetricType::Info)?
        .encode_info(&version)?;
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    let config = app.config();
    for (name, help, value) in [
        (
            "uptime_seconds",
            "Time since the start of the process",
            app.started.elapsed().as_secs(),
        ),
        (
            "draining",
            "1 while the proxy shuts down",
            u64::from(app.is_draining()),
        ),
        (
            "connections",
            "Connections of clients, logged in or not",
            count(app.connections()),
        ),
        (
            "max_connections",
            "Most connections of clients, as configured",
            count(config.limits.clients),
        ),
        (
            "tenants",
            "Tenants that are configured",
            count(config.tenants.len()),
        ),
    ] {
        out.number(MetricType::Gauge, name, help, value)?;
    }
    let metrics = &app.metrics;
    for (name, help, counter) in [
        (
            "connections_accepted",
            "Connections accepted",
            &metrics.accepted,
        ),
        (
            "connections_refused",
            "Connections and logins refused, of tenants too",
            &metrics.refused,
        ),
        (
            "reloads",
            "Reloads of the config that took effect",
            &metrics.reloads,
        ),
        (
            "failed_reloads",
            "Reloads of the config that changed nothing because of a mistake",
            &metrics.failed_reloads,
        ),
    ] {
        out.number(MetricType::Counter, name, help, counter.get())?;
    }
    if let Some(log) = metrics.log() {
        let lost = "Lines of the log that could not be written";
        out.number(MetricType::Counter, "log_lines_lost", lost, log.lost.get())?;
        let panics = "Tasks that panicked, each by a mistake in pgtenant";
        out.number(MetricType::Counter, "panics", panics, log.panics.get())?;
    }
    Ok(())
}

fn usage(app: &App, out: &mut Output) -> fmt::Result {
    let metrics = &app.metrics;
    for (name, help, counter) in [
        (
            "usage_write_failures",
            "Attempts to write the file of usage that failed",
            &metrics.usage_failures,
        ),
        (
            "usage_lines_lost",
            "Lines of usage that are in no file",
            &metrics.usage_lost,
        ),
    ] {
        out.number(MetricType::Counter, name, help, counter.get())?;
    }
    Ok(())
}

fn workers(app: &App, out: &mut Output) -> fmt::Result {
    let workers = app.workers();
    let mut clients: BTreeMap<_, usize> = workers.ids().map(|id| (id, 0)).collect();
    for client in app.clients() {
        *clients.entry(client.worker()).or_default() += 1;
    }
    let labelled: Vec<_> = clients
        .into_iter()
        .map(|(id, clients)| ([("worker", id.number().to_string())], id, clients))
        .collect();
    out.gauge(
        "worker_clients",
        "Clients that the worker serves",
        labelled
            .iter()
            .map(|(label, _, clients)| (label.clone(), *clients)),
    )?;
    out.gauge(
        "worker_load_percent",
        "Of a core that the worker used lately; with one worker it is not measured",
        labelled
            .iter()
            .map(|(label, id, _)| (label.clone(), workers.load(*id) as usize / 10)),
    )
}

fn audit(app: &App, out: &mut Output) -> fmt::Result {
    let metrics = app.audit.metrics();
    out.counter(
        "audit_events",
        "Attempts to reach what is another tenant's, and logins refused, written or not",
        Kind::ALL.map(|kind| ([("kind", kind.name())], metrics.events(kind))),
    )?;
    let dropped = [
        ("rate", &metrics.over_rate),
        ("queue", &metrics.queue_full),
        ("end", &metrics.unwritten),
    ];
    out.counter(
        "audit_dropped",
        "Events that are in no file: over audit.rate, with the queue full, not written when the proxy ended",
        dropped.map(|(reason, counter)| ([("reason", reason)], counter.get())),
    )?;
    out.number(
        MetricType::Counter,
        "audit_write_failures",
        "Attempts to write the audit file that failed",
        metrics.write_failures.get(),
    )
}

/// Those that are busiest have series by their names, and the others are one series.
fn tenants(app: &App, out: &mut Output) -> fmt::Result {
    let config = app.config();
    let seen = app.seen_in_no_order();
    let busiest = &app.metrics.busiest;
    let look = busiest.look(config.named_tenants, Instant::now(), &seen, |tenant| {
        (&tenant.id, &tenant.metrics)
    });
    let named = look.named.iter().map(|(tenant, numbers)| {
        let known = config.login(tenant.id.as_str());
        // No placement: it was removed.
        let placement = known.map_or("", |known| known.route.placement.name.as_str());
        let labels = [("tenant", tenant.id.as_str()), ("placement", placement)];
        (labels, std::slice::from_ref(tenant), numbers)
    });
    let rest = look.rest.as_ref();
    let rest = rest.map(|sum| ([("tenant", ""), ("placement", "")], &look.others[..], sum));
    let labelled: Vec<_> = named.chain(rest).collect();
    type Read = fn(&TenantState) -> usize;
    let gauges: [(&str, &str, Read); 3] = [
        ("tenant_clients", "Clients logged in", |t| t.clients()),
        ("tenant_active", "Server connections in use", |t| t.active()),
        (
            "tenant_waiting",
            "Clients that wait for a server connection",
            |t| usize::try_from(t.metrics.waiting.get()).unwrap_or(usize::MAX),
        ),
    ];
    for (name, help, read) in gauges {
        let sum = |tenants: &[&Arc<TenantState>]| tenants.iter().map(|t| read(t)).sum();
        out.gauge(name, help, labelled.iter().map(|&(l, t, _)| (l, sum(t))))?;
    }
    for (at, counter) in COUNTERS.iter().enumerate() {
        let series = labelled.iter().map(|&(l, _, n)| (l, n.counters()[at]));
        out.counter(counter.name, counter.help, series)?;
    }
    for (at, times) in TIMES.iter().enumerate() {
        let series = labelled.iter();
        let series = series.filter_map(|&(l, _, n)| n.times().nth(at).map(|times| (l, times)));
        out.histogram(times.name, times.help, series)?;
    }
    Ok(())
}

fn servers(app: &App, out: &mut Output) -> fmt::Result {
    let instances = app.instances();
    let by_name: BTreeMap<_, _> = instances.iter().collect();
    let labelled: Vec<_> = by_name
        .into_iter()
        .map(|(name, instance)| ([("server", name.as_str())], &**instance))
        .collect();
    out.gauge(
        "server_connections",
        "Connections to the server, those being made or closed included, the health check's not",
        labelled.iter().map(|&(l, i)| (l, i.connections())),
    )?;
    out.gauge(
        "server_max_connections",
        "Most connections to the server, as configured",
        labelled
            .iter()
            .map(|&(l, i)| (l, i.server().max_connections)),
    )?;
    type Read = fn(&Instance) -> u64;
    let counters: [(&str, &str, Read); 4] = [
        ("server_connects", "Connections made", |i| {
            i.metrics.connects.get()
        }),
        (
            "server_failed_connects",
            "Connections that could not be made",
            |i| i.metrics.failed_connects.get(),
        ),
        (
            "server_evictions",
            "Idle connections closed because another pool needed the room",
            |i| i.metrics.evictions.get(),
        ),
        (
            "server_moves",
            "Idle connections that went to a client of another worker",
            |i| i.metrics.moves.get(),
        ),
    ];
    for (name, help, read) in counters {
        out.counter(name, help, labelled.iter().map(|&(l, i)| (l, read(i))))?;
    }
    out.gauge(
        "server_up",
        "1 if the last health check of a server with an admin login found it up, else 0",
        labelled
            .iter()
            .filter_map(|&(l, i)| match i.health.report().state {
                State::Unknown => None,
                state => Some((l, usize::from(state == State::Up))),
            }),
    )
}

/// Of placements that were inspected at least once: a finding at two places counts twice.
fn doctor(app: &App, out: &mut Output) -> fmt::Result {
    let snapshot = app.findings.snapshot();
    let mut counts: BTreeMap<&str, ([usize; Severity::ALL.len()], usize)> = BTreeMap::new();
    for report in &snapshot.reports {
        for placement in &report.placements {
            let (found, failed) = counts.entry(placement).or_default();
            for (count, severity) in found.iter_mut().zip(Severity::ALL) {
                *count += report.count(severity);
            }
            *failed += usize::from(report.problem.is_some());
        }
    }
    let found = counts.iter().flat_map(|(placement, (found, _))| {
        found.iter().zip(Severity::ALL).map(|(count, severity)| {
            let labels = [("placement", *placement), ("severity", severity.as_str())];
            (labels, *count)
        })
    });
    out.gauge(
        "doctor_findings",
        "What keeps the tenants of a placement from being kept apart, by the last inspection",
        found,
    )?;
    out.gauge(
        "doctor_failed",
        "Places of a placement that could not be inspected the last time",
        counts
            .iter()
            .map(|(placement, (_, failed))| ([("placement", *placement)], *failed)),
    )
}

/// Without a catalog there are no numbers of it.
fn catalog(app: &App, out: &mut Output) -> fmt::Result {
    let has_one = app.config().catalog.is_some();
    let known = app.catalog.view();
    let age = known.age().map_or(0, |age| age.as_secs());
    let is_reached = u64::from(known.source == Source::Catalog);
    for (name, help, value) in [
        (
            "catalog_reached",
            "1 while the catalog of tenants can be read",
            is_reached,
        ),
        (
            "catalog_revision",
            "The last change of the catalog that is in force",
            known.revision,
        ),
        (
            "catalog_age_seconds",
            "Since it was known that the catalog has nothing newer",
            age,
        ),
        (
            "catalog_refused",
            "Entries of the catalog that are not in force because of a mistake",
            known.refused.len() as u64,
        ),
    ] {
        out.some(MetricType::Gauge, name, help, has_one.then_some(value))?;
    }
    let help = "Connections to the catalog that were lost";
    let losses = has_one.then_some(known.losses);
    out.some(MetricType::Counter, "catalog_losses", help, losses)
}

type PoolNumbers = (PoolCounts, usize);

/// Pools that differ only in password or pinned parameters are one series.
fn all_pools(app: &App) -> BTreeMap<(String, String, String), PoolNumbers> {
    let mut pools: BTreeMap<_, PoolNumbers> = BTreeMap::new();
    for (name, instance) in app.instances().iter() {
        for (pool, counts) in instance.pools() {
            let key = &pool.key;
            let place = (
                name.to_string(),
                key.database.clone(),
                key.login.user.clone(),
            );
            // A replication client's connection is beside those that are shared.
            let shared = if key.is_replicating() {
                0
            } else {
                pool.limits().size
            };
            add_pool(pools.entry(place).or_default(), &(counts, shared));
        }
    }
    pools
}

fn add_pool((sum, size): &mut PoolNumbers, (counts, more): &PoolNumbers) {
    sum.total += counts.total;
    sum.idle += counts.idle;
    sum.waiting += counts.waiting;
    *size += more;
}

/// Those with most connections and waiting clients have series by their names, as many as tenants
/// may have; the others are one series. They are gauges, so that nothing has to be kept of who is
/// where.
fn pools(app: &App, out: &mut Output) -> fmt::Result {
    let mut pools: Vec<_> = all_pools(app).into_iter().collect();
    let most = app.config().named_tenants;
    if pools.len() > most {
        pools.sort_by_key(|(_, (counts, _))| Reverse(counts.total + counts.waiting));
        let mut rest = PoolNumbers::default();
        for (_, numbers) in pools.drain(most..) {
            add_pool(&mut rest, &numbers);
        }
        pools.push((<_>::default(), rest));
    }
    let labelled: Vec<_> = pools
        .iter()
        .map(|((server, database, user), numbers)| {
            let labels = [
                ("server", server.as_str()),
                ("database", database.as_str()),
                ("user", user.as_str()),
            ];
            (labels, numbers)
        })
        .collect();
    type Read = fn(&PoolNumbers) -> usize;
    let gauges: [(&str, &str, Read); 4] = [
        (
            "pool_connections",
            "Connections of the pool, idle or not",
            |(counts, _)| counts.total,
        ),
        (
            "pool_idle",
            "Connections that nobody uses",
            |(counts, _)| counts.idle,
        ),
        (
            "pool_waiting",
            "Clients that wait for a connection of the pool",
            |(counts, _)| counts.waiting,
        ),
        ("pool_size", "Most connections of the pool", |(_, size)| {
            *size
        }),
    ];
    for (name, help, read) in gauges {
        out.gauge(name, help, labelled.iter().map(|&(l, n)| (l, read(n))))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
