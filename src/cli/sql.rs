//! `pgtenant sql`: the SQL that databases are prepared with, to be read, or run by other means.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::cli::check;
use crate::cli::seal::fail;
use crate::config::Config;
use crate::control::catalog;
use crate::control::harden::{Group, harden};
use crate::control::seal;

/// For whom a key is printed with the SQL.
#[derive(Debug)]
pub struct KeyOf {
    pub config: PathBuf,
    pub server: String,
    pub database: String,
    pub retire_after: Duration,
}

/// `pgtenant sql seal`: without a config, everything but the key.
pub fn print_seal(key_of: Option<&KeyOf>) -> ExitCode {
    let Some(of) = key_of else {
        print!("{}", seal::SQL);
        return ExitCode::SUCCESS;
    };
    let config = match load(&of.config) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let Some(server) = config
        .servers
        .values()
        .find(|s| s.name.as_str() == of.server)
    else {
        return fail(&format!("there is no server {:?}", of.server));
    };
    match seal::key(server, &of.database) {
        Ok(key) => {
            print!("{}", seal::SQL);
            println!(
                "\n-- The key of database {:?}. Keep it secret.",
                of.database
            );
            print!("{}", seal::key_sql(&key, of.retire_after));
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

/// `pgtenant sql catalog`.
pub fn print_catalog() -> ExitCode {
    print!("{}", catalog::SQL);
    ExitCode::SUCCESS
}

/// `pgtenant sql harden`.
pub fn print_harden(path: &Path, placement: &str, owner: Option<&str>, also: &[Group]) -> ExitCode {
    let config = match load(path) {
        Ok(config) => config,
        Err(code) => return code,
    };
    match harden(&config, placement, owner, also) {
        Ok(sql) => {
            print!("{sql}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

fn load(path: &Path) -> Result<Config, ExitCode> {
    check::load_or_report(path)
}
