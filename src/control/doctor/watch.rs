//! The doctor of a running proxy: looks at the start, after a reload and every `doctor.interval`,
//! logs what changed.
//!
//! It stands beside serving: it takes a connection only where the server's budget has room for one,
//! and what it cannot find out changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::target::{Plan, Target};
use super::{SAMPLE, Trouble, failed, inspect};
use crate::app::App;
use crate::backend::instance::Instance;
use crate::config::Config;
use crate::findings::{Finding, Place, Report, Severity};
use crate::timer;

/// How often it looks whether it is time, or the config another.
const TICK: Duration = Duration::from_secs(1);

/// How long it waits for room in a server's budget.
const PATIENCE: Duration = Duration::from_secs(10);

/// Most findings of a place that are logged one by one.
const MAX_LOGGED: usize = 20;

/// Watches until the proxy is gone or stops.
pub async fn watch(app: Weak<App>) {
    let mut last: Option<(Arc<Config>, Instant)> = None;
    loop {
        let Some(app) = app.upgrade().filter(|app| !app.is_draining()) else {
            return;
        };
        let config = app.config();
        let due = last.as_ref().is_none_or(|(seen, at)| {
            !Arc::ptr_eq(seen, &config) || at.elapsed() >= config.doctor.interval
        });
        if due {
            if config.doctor.enabled {
                round(&app, &config).await;
            } else {
                app.findings.set(Vec::new());
            }
            last = Some((config, Instant::now()));
        }
        drop(app);
        timer::sleep(TICK).await;
    }
}

/// Looks at every place once.
async fn round(app: &Arc<App>, config: &Arc<Config>) {
    let plan = Plan::of(config, None, SAMPLE);
    for note in &plan.notes {
        tracing::debug!("doctor: {note}");
    }
    let mut by_server: BTreeMap<String, Vec<Target>> = BTreeMap::new();
    for target in plan.targets {
        let of = by_server.entry(target.place.server.clone()).or_default();
        of.push(target);
    }
    let mut running = JoinSet::new();
    for (server, targets) in by_server {
        let instances = app.instances();
        let instance = instances.iter().find(|(name, _)| name.as_str() == server);
        if let Some((_, instance)) = instance {
            let (instance, connect) = (instance.clone(), config.timeouts.connect);
            running.spawn(async move { of_server(&instance, targets, connect).await });
        }
    }
    let before = app.findings.snapshot();
    let known: BTreeMap<&Place, &Report> = before
        .reports
        .iter()
        .map(|report| (&report.place, report))
        .collect();
    // What a server says is put in force when it has said it: one that hangs does not hold up the
    // others.
    let mut reports: BTreeMap<Place, Report> = BTreeMap::new();
    for report in &before.reports {
        reports.insert(report.place.clone(), report.clone());
    }
    let mut seen = BTreeSet::new();
    while let Some(done) = running.join_next().await {
        let Ok(done) = done else {
            tracing::error!("the doctor failed");
            continue;
        };
        for mut report in done {
            let last = known.get(&report.place).copied();
            if report.problem.is_some()
                && let Some(last) = last
            {
                // What was wrong then is taken to be wrong still.
                report.findings.clone_from(&last.findings);
                report.inspected_as.clone_from(&last.inspected_as);
                report.server_version.clone_from(&last.server_version);
            }
            tell(&report, last);
            seen.insert(report.place.clone());
            reports.insert(report.place.clone(), report);
        }
        app.findings.set(reports.values().cloned().collect());
    }
    // Those that are left are of places that the config no longer has.
    reports.retain(|place, _| seen.contains(place));
    app.findings.set(reports.into_values().collect());
}

async fn of_server(
    instance: &Arc<Instance>,
    targets: Vec<Target>,
    connect: Duration,
) -> Vec<Report> {
    let mut reports = Vec::new();
    let mut down: Option<String> = None;
    for target in targets {
        if let Some(problem) = &down {
            reports.push(failed(&target, problem.clone()));
            continue;
        }
        let Some(_room) = instance.room(PATIENCE).await else {
            let problem = "the server's max_connections left no room for the doctor";
            reports.push(failed(&target, problem.to_owned()));
            continue;
        };
        reports.push(match inspect(&target, connect).await {
            Ok(inspected) => inspected.report,
            Err(Trouble::Down(problem)) => {
                down = Some(problem.clone());
                failed(&target, problem)
            }
            Err(Trouble::Refused(problem)) => failed(&target, problem),
        });
    }
    reports
}

/// Logs what is new and what is mended.
#[expect(clippy::too_many_lines, reason = "one line of the log after the other")]
fn tell(report: &Report, before: Option<&Report>) {
    let Place {
        server,
        database,
        login,
        ..
    } = &report.place;
    let placement = report.placements.join(",");
    let problem_before = before.and_then(|before| before.problem.as_ref());
    if let Some(problem) = &report.problem {
        if problem_before != Some(problem) {
            tracing::warn!(
                placement,
                server,
                database,
                login,
                problem,
                "the doctor could not look"
            );
        }
        return;
    }
    let key = |finding: &Finding| {
        (
            finding.severity,
            finding.check,
            finding.object.clone(),
            finding.problem.clone(),
        )
    };
    let loud = |report: &Report| -> BTreeSet<_> {
        let findings = report.findings.iter();
        findings
            .filter(|f| f.severity > Severity::Notice)
            .map(key)
            .collect()
    };
    let (then, now) = (before.map(loud).unwrap_or_default(), loud(report));
    let new: Vec<_> = report
        .findings
        .iter()
        .filter(|f| f.severity > Severity::Notice && !then.contains(&key(f)))
        .collect();
    for finding in new.iter().take(MAX_LOGGED) {
        let Finding {
            check,
            object,
            problem,
            ..
        } = finding;
        match finding.severity {
            Severity::Critical => {
                tracing::error!(
                    placement,
                    server,
                    database,
                    login,
                    check,
                    object,
                    problem,
                    "tenants are not kept apart"
                );
            }
            _ => tracing::warn!(
                placement,
                server,
                database,
                login,
                check,
                object,
                problem,
                "tenants are not well kept apart"
            ),
        }
    }
    if new.len() > MAX_LOGGED {
        let more = new.len() - MAX_LOGGED;
        tracing::warn!(
            placement,
            server,
            database,
            login,
            more,
            "the doctor found more: see SHOW DOCTOR"
        );
    }
    let mended = then.difference(&now).count();
    if mended > 0 {
        tracing::info!(
            placement,
            server,
            database,
            login,
            mended,
            left = now.len(),
            "findings of the doctor are mended"
        );
    }
}
