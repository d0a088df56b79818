//! `pgtenant selftest`: the attacks of [`crate::attacks`] that harm nobody, played against an
//! operator's own servers through a proxy in this process, by two tenants that are made for it and
//! gone afterwards.
//!
//! It listens on a port of loopback alone, locks nothing that is not its own, and bounds every
//! statement. What it makes it takes away again, also after an error or Ctrl-C.

mod report;
mod tables;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use self::report::Report;
use self::report::place::{self, Place};
use crate::attacks::ATTACKS;
use crate::cli::check;
use crate::config::Config;
use crate::config::guests::shared_placements;

/// See `pgtenant selftest --help`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The config file.
    #[arg(short, long, value_name = "FILE", env = "PGTENANT_CONFIG")]
    pub config: PathBuf,
    /// Only this placement. Default: all.
    #[arg(long, value_name = "NAME")]
    pub placement: Option<String>,
    /// An attack that may succeed without being an error, such as those that docs/isolation.md
    /// calls possible.
    #[arg(long, value_name = "ATTACK")]
    pub allow: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

const ESCAPED: u8 = 1;
const NOT_PLAYED: u8 = 2;
/// What a shell says of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Runs the test to its end.
pub async fn run(args: &Args) -> ExitCode {
    let config = match check::load_or_report(&args.config) {
        Ok(config) => config,
        Err(_) => return ExitCode::from(NOT_PLAYED),
    };
    let mut reports = match chosen(args, &config) {
        Ok(reports) => reports,
        Err(error) => {
            eprintln!("pgtenant selftest: {error}");
            return ExitCode::from(NOT_PLAYED);
        }
    };
    let mut interrupted = false;
    for report in &mut reports {
        if report.is_to_be_played() && !interrupted {
            interrupted = place::play(&args.config, &config, report).await;
        }
        report.allow(&args.allow);
        if !args.json {
            print!("{report}");
        }
    }
    if args.json {
        println!("{}", report::json(&reports));
    }
    code(&reports, interrupted)
}

fn code(reports: &[Report], interrupted: bool) -> ExitCode {
    let any = |of: fn(&Report) -> bool| reports.iter().any(of);
    match () {
        () if interrupted => ExitCode::from(INTERRUPTED),
        () if any(Report::has_escapes) => ExitCode::from(ESCAPED),
        () if any(Report::has_trouble) || !any(Report::was_played) => ExitCode::from(NOT_PLAYED),
        () => ExitCode::SUCCESS,
    }
}

/// A report, still empty, for each server of each placement that was asked for.
fn chosen(args: &Args, config: &Config) -> Result<Vec<Report>, String> {
    let known = |name: &String| ATTACKS.iter().any(|attack| attack.name == name);
    if let Some(name) = args.allow.iter().find(|name| !known(name)) {
        return Err(format!("there is no attack {name:?}"));
    }
    let is_shared = shared(&args.config)?;
    let mut reports = Vec::new();
    for placement in config.placements.values() {
        let name = placement.name.as_str();
        if args.placement.as_deref().is_some_and(|asked| asked != name) {
            continue;
        }
        let is_shared = is_shared
            .iter()
            .any(|(known, shared)| known == name && *shared);
        for server in &placement.servers {
            let place = Place {
                placement: placement.name.clone(),
                server: server.clone(),
                tier: placement.tier,
                pooling: placement.pooling,
                posture: None,
            };
            reports.push(Report::new(place, is_shared));
        }
    }
    match (&args.placement, reports.is_empty()) {
        (Some(name), true) => Err(format!("there is no placement {name:?}")),
        _ => Ok(reports),
    }
}

fn shared(path: &Path) -> Result<Vec<(String, bool)>, String> {
    shared_placements(path).map_err(|mistakes| {
        let mistakes: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
        mistakes.join("; ")
    })
}
