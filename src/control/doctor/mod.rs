//! Does the database keep tenants apart as the config says it does?
//!
//! Each place (server, database, login and schema) is asked once, in a read-only transaction, as
//! the server's `admin` login or else the placement's own. [`facts`] asks, the other files judge
//! what was answered; nothing is changed.
//!
//! | file | what it looks for |
//! |---|---|
//! | `roles` | what the login is, and what it can become |
//! | `tables` | row level security, and what its policies let through (`policy`) |
//! | `objects` | views, functions and others that read with other rights |
//! | `seal` | what sealed contexts need, and who could forge them |
//! | `grants` | functions that show or hinder neighbours, files, languages, settings |
//! | `leftovers` | libraries that keep something of a session which cannot be discarded |
//! | `neighbours` | schemas and databases of other tenants |
//! | `types` | types whose ids differ between the places of an application |
//! | `reader` | whether the guard knows the server's statements |
//!
//! What it cannot see: what functions do inside, what clients of the server other than the proxy
//! do, `pg_hba.conf`.

mod case;
mod facts;
mod grants;
mod leftovers;
mod neighbours;
mod objects;
mod policy;
mod reader;
mod roles;
pub mod script;
mod seal;
mod tables;
mod target;
mod types;
mod watch;

use std::time::Duration;

use deadpool_postgres::Connect;
use tokio_postgres::Client;

use crate::config::Login;
use crate::control::door::{self, Door, words};
use crate::findings::{Finding, Report};
use crate::timer;
use case::Case;
use facts::{Facts, Failure, Type};
pub use target::Plan;
use target::Target;
pub use watch::watch;

/// Most places of a placement that are inspected unless asked otherwise.
pub const SAMPLE: usize = 50;

/// What a session of the doctor has beside [`door::SEARCH_PATH`]: nothing is written, nothing waits
/// for long.
const OPTIONS: &str = "-c default_transaction_read_only=on \
    -c statement_timeout=60s -c lock_timeout=5s -c row_security=on -c standard_conforming_strings=on";

/// Inspects every place of a plan; those of one server after one another. `connect`: how long a
/// connection may take.
///
/// Cancel safe: nothing is changed.
pub async fn run(plan: &Plan, connect: Duration) -> Vec<Report> {
    let mut servers: Vec<(&str, Vec<&Target>)> = Vec::new();
    for target in &plan.targets {
        let name = target.server.name.as_str();
        match servers.iter_mut().find(|(known, _)| *known == name) {
            Some((_, targets)) => targets.push(target),
            None => servers.push((name, vec![target])),
        }
    }
    let mut running = tokio::task::JoinSet::new();
    for (_, targets) in servers {
        let targets: Vec<Target> = targets.into_iter().cloned().collect();
        running.spawn(async move { of_server(&targets, connect).await });
    }
    let mut inspected: Vec<Inspected> = running.join_all().await.into_iter().flatten().collect();
    inspected.sort_by(|a, b| {
        let (a, b) = (&a.report, &b.report);
        (&a.placements, &a.place).cmp(&(&b.placements, &b.place))
    });
    types::compare(&mut inspected);
    inspected.into_iter().map(|one| one.report).collect()
}

async fn of_server(targets: &[Target], connect: Duration) -> Vec<Inspected> {
    let mut reports: Vec<Inspected> = Vec::new();
    let mut down: Option<String> = None;
    for target in targets {
        let report = match &down {
            // It is not waited for again.
            Some(problem) => failed(target, problem.clone()).into(),
            None => match inspect(target, connect).await {
                Ok(inspected) => inspected,
                Err(Trouble::Down(problem)) => {
                    down = Some(problem.clone());
                    failed(target, problem).into()
                }
                Err(Trouble::Refused(problem)) => failed(target, problem).into(),
            },
        };
        reports.push(report);
    }
    reports
}

/// Why a place was not inspected.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The server cannot be reached.
    Down(String),
    /// It said no.
    Refused(String),
}

impl From<Failure> for Trouble {
    fn from(Failure(problem): Failure) -> Self {
        Self::Refused(problem)
    }
}

/// A place that was inspected.
pub(crate) struct Inspected {
    pub report: Report,
    /// To be compared with those of other places.
    types: Vec<Type>,
}

impl From<Report> for Inspected {
    fn from(report: Report) -> Self {
        let types = Vec::new();
        Self { report, types }
    }
}

/// Inspects one place.
pub(crate) async fn inspect(target: &Target, deadline: Duration) -> Result<Inspected, Trouble> {
    let (client, user) = log_in(target, deadline).await?;
    let facts = Facts::gather(&client, target, grants::names()).await?;
    let mut report = empty(target);
    report.inspected_as = Some(user);
    report.server_version = Some(facts.database.version.clone());
    report.findings = judge(target, &facts);
    Ok(Inspected {
        report,
        types: facts.types,
    })
}

/// All that is wrong, worst first.
fn judge(target: &Target, facts: &Facts) -> Vec<Finding> {
    let case = Case { target, facts };
    let mut findings = roles::judge(&case);
    if target.by_policies() {
        let columns = tables::TenantColumns::of(&case);
        findings.extend(tables::judge(&case, &columns));
        findings.extend(objects::judge(&case, &columns));
    }
    findings.extend(seal::judge(&case));
    findings.extend(grants::judge(&case));
    findings.extend(leftovers::judge(&case));
    findings.extend(neighbours::judge(&case));
    findings.extend(reader::judge(&case));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

fn empty(target: &Target) -> Report {
    Report {
        place: target.place.clone(),
        placements: target.placements.clone(),
        tier: target.tier,
        by_policies: target.by_policies(),
        tenants: target.tenants,
        inspected_as: None,
        server_version: None,
        findings: Vec::new(),
        problem: None,
    }
}

pub(crate) fn failed(target: &Target, problem: String) -> Report {
    Report {
        problem: Some(problem),
        ..empty(target)
    }
}

/// As the server's admin, or, where that may not connect, as the application does.
async fn log_in(target: &Target, deadline: Duration) -> Result<(Client, String), Trouble> {
    if let Some(admin) = &target.server.admin {
        match log_in_as(target, admin, deadline).await {
            Ok(client) => return Ok((client, admin.user.clone())),
            Err(Trouble::Refused(problem)) => {
                let server = &target.server.name;
                let database = &target.place.database;
                tracing::debug!(%server, database, problem, "the doctor's admin login was refused");
            }
            Err(down) => return Err(down),
        }
    }
    let client = log_in_as(target, &target.login, deadline).await?;
    Ok((client, target.login.user.clone()))
}

async fn log_in_as(target: &Target, login: &Login, deadline: Duration) -> Result<Client, Trouble> {
    let mut config = door::config(login, &target.place.database, "pgtenant doctor");
    config.options(format!("{} {OPTIONS}", door::SEARCH_PATH));
    let door = Door(target.server.clone());
    match timer::timeout(deadline, door.connect(&config)).await {
        Ok(Ok((client, _))) => {
            let asked = timer::timeout(deadline, client.query(door::FOREIGN_CREATE, &[])).await;
            let others = asked
                .map_err(|_| Trouble::Refused(format!("no answer within {deadline:?}")))?
                .map_err(|error| Trouble::Refused(words(&error)))?;
            if !others.is_empty() {
                return Err(Trouble::Refused(door::FOREIGN_CREATE_PROBLEM.to_owned()));
            }
            Ok(client)
        }
        Ok(Err(error)) => {
            let problem = words(&error);
            Err(match error.as_db_error() {
                Some(_) => Trouble::Refused(problem),
                None => Trouble::Down(problem),
            })
        }
        Err(_) => Err(Trouble::Down(format!("no connection within {deadline:?}"))),
    }
}

#[cfg(test)]
mod tests;
