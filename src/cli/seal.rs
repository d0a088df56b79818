//! `pgtenant seal`: prepares databases for sealed contexts, and puts a new key in force.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::cli::check;
use crate::control::seal::{self, Target};

/// Prepares `databases`, or all databases of the server's sealed placements, one line each.
pub async fn run(
    path: &Path,
    server: &str,
    databases: &[String],
    retire_after: Duration,
) -> ExitCode {
    let config = match check::load_or_report(path) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let Some((name, server)) = config
        .servers
        .iter()
        .find(|(name, _)| name.as_str() == server)
    else {
        return fail(&format!(
            "there is no server {server:?} in {}",
            path.display()
        ));
    };
    let mut targets = seal::targets(&config, name);
    if !databases.is_empty() {
        targets = databases
            .iter()
            .map(|database| {
                let known = targets.iter().find(|target| target.database == *database);
                known.cloned().unwrap_or_else(|| Target {
                    database: database.clone(),
                    roles: Default::default(),
                })
            })
            .collect();
    }
    if targets.is_empty() {
        return fail(&format!(
            "no tenant is in a sealed placement on server {name}: give --database"
        ));
    }
    let mut code = ExitCode::SUCCESS;
    for target in &targets {
        let database = &target.database;
        match seal::install(server, target, retire_after).await {
            Ok(done) => {
                let is_new = if done.new { "new key" } else { "key" };
                let old = match done.retiring {
                    0 => String::new(),
                    n => format!(", {n} of old good until they expire"),
                };
                println!("{name}/{database}: sealed, {is_new} {}{old}", done.key);
            }
            Err(error) => code = fail(&format!("{name}/{database}: {error}")),
        }
    }
    code
}

pub(super) fn fail(message: &str) -> ExitCode {
    eprintln!("pgtenant: {message}");
    ExitCode::FAILURE
}
