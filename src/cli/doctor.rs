//! `pgtenant doctor`: do the databases keep tenants apart as the config says?

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::check;
use crate::config::{self, Config};
use crate::control::doctor::{self, Plan, script};
use crate::findings::{Finding, Place, Report, Severity};

/// Findings that are warnings or critical.
const FOUND: u8 = 1;
/// A place could not be inspected.
const FAILED: u8 = 2;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The config file.
    #[arg(short, long, value_name = "FILE", env = "PGTENANT_CONFIG")]
    pub config: PathBuf,
    /// Inspect this placement alone.
    #[arg(long, value_name = "NAME")]
    pub placement: Option<String>,
    /// How the findings are written.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Print one SQL script that mends the findings, in place of them. It is not run.
    #[arg(long, conflicts_with = "format")]
    pub fix: bool,
    /// Most places (database, login, schema) of a placement that are inspected.
    #[arg(long, value_name = "N", default_value_t = doctor::SAMPLE, value_parser = at_least_one)]
    pub sample: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Text,
    Json,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("must be a number from 1".to_owned()),
        Ok(number) => Ok(number),
    }
}

/// Inspects and writes what was found. 0: nothing above the notices; 1: warnings or critical
/// findings; 2: a place could not be inspected, or the config could not be read.
pub async fn run(args: &Args, out: &mut impl Write, err: &mut impl Write) -> ExitCode {
    let code = match examine(args, out, err).await {
        Ok(code) => code,
        Err(error) => {
            // Nowhere to report that standard error is gone.
            let _ = writeln!(err, "pgtenant: {error}");
            FAILED
        }
    };
    ExitCode::from(code)
}

/// [`run`] with its exit code as a number.
///
/// # Errors
/// Those of `out` and `err`.
pub async fn examine(args: &Args, out: &mut impl Write, err: &mut impl Write) -> io::Result<u8> {
    let config = match config::load(&args.config) {
        Ok(config) => config,
        Err(mistakes) => {
            check::report(&args.config, &mistakes, err)?;
            return Ok(FAILED);
        }
    };
    if let Some(unknown) = unknown_placement(args, &config) {
        writeln!(err, "pgtenant: there is no placement \"{unknown}\"")?;
        return Ok(FAILED);
    }
    let plan = Plan::of(&config, args.placement.as_deref(), args.sample);
    let reports = doctor::run(&plan, config.timeouts.connect).await;
    match (args.fix, args.format) {
        (true, _) => {
            write!(out, "{}", script::of(&reports))?;
            for report in &reports {
                if let Some(problem) = &report.problem {
                    writeln!(err, "pgtenant: {}: not inspected: {problem}", title(report))?;
                }
            }
        }
        (false, Format::Json) => json(&reports, &plan.notes, out)?,
        (false, Format::Text) => text(&reports, &plan.notes, out)?,
    }
    Ok(exit_code(&reports))
}

fn unknown_placement<'a>(args: &'a Args, config: &Config) -> Option<&'a str> {
    let name = args.placement.as_deref()?;
    let known = config.placements.keys().any(|known| known.as_str() == name);
    (!known).then_some(name)
}

fn exit_code(reports: &[Report]) -> u8 {
    let found = |report: &Report| {
        let findings = report.findings.iter();
        findings.map(|f| f.severity).any(|s| s >= Severity::Warning)
    };
    if reports.iter().any(|report| report.problem.is_some()) {
        FAILED
    } else if reports.iter().any(found) {
        FOUND
    } else {
        0
    }
}

/// How many of a severity, in all places.
fn total(reports: &[Report], severity: Severity) -> usize {
    reports.iter().map(|report| report.count(severity)).sum()
}

fn title(report: &Report) -> String {
    let Place {
        server,
        database,
        login,
        schema,
    } = &report.place;
    let schema = schema.as_ref().map(|schema| format!(", schema {schema}"));
    format!(
        "{} ({}): server {server}, database {database}, login {login}{}",
        report.placements.join(", "),
        report.tier,
        schema.unwrap_or_default()
    )
}

fn text(reports: &[Report], notes: &[String], out: &mut impl Write) -> io::Result<()> {
    for report in reports {
        writeln!(out, "{}", title(report))?;
        if let Some(problem) = &report.problem {
            writeln!(out, "  not inspected: {problem}\n")?;
            continue;
        }
        writeln!(
            out,
            "  PostgreSQL {}, inspected as {}",
            report.server_version.as_deref().unwrap_or_default(),
            report.inspected_as.as_deref().unwrap_or_default()
        )?;
        if report.findings.is_empty() {
            writeln!(out, "  nothing found")?;
        }
        for finding in &report.findings {
            writeln!(
                out,
                "  {:<8}  {}: {}  [{}]",
                finding.severity.as_str(),
                finding.object,
                finding.problem,
                finding.check
            )?;
            writeln!(out, "            why: {}", finding.why)?;
            for statement in finding.fix.iter().flat_map(|fix| &fix.sql) {
                writeln!(out, "            fix: {statement};")?;
            }
            if let Some(advice) = finding.advice {
                writeln!(out, "            fix: {advice}")?;
            }
        }
        writeln!(out)?;
    }
    for note in notes {
        writeln!(out, "note: {note}")?;
    }
    let failed = reports.iter().filter(|r| r.problem.is_some()).count();
    let inspected = reports.len() - failed;
    writeln!(
        out,
        "{} critical, {} warnings, {} notices in {inspected} places; {failed} not inspected",
        total(reports, Severity::Critical),
        total(reports, Severity::Warning),
        total(reports, Severity::Notice),
    )
}

/// The names are stable: what is added later does not change what is there.
#[derive(Serialize)]
struct Document<'a> {
    pgtenant: &'static str,
    summary: Summary,
    notes: &'a [String],
    places: Vec<PlaceOut<'a>>,
}

#[derive(Serialize)]
struct Summary {
    critical: usize,
    warning: usize,
    notice: usize,
    inspected: usize,
    failed: usize,
}

#[derive(Serialize)]
struct PlaceOut<'a> {
    placements: &'a [String],
    #[serde(flatten)]
    place: &'a Place,
    tier: String,
    tenants: usize,
    inspected_as: Option<&'a str>,
    server_version: Option<&'a str>,
    /// Why it was not inspected.
    error: Option<&'a str>,
    findings: Vec<FindingOut<'a>>,
}

#[derive(Serialize)]
struct FindingOut<'a> {
    severity: Severity,
    check: &'a str,
    object: &'a str,
    problem: &'a str,
    why: &'a str,
    /// Statements that mend it, in order; empty: see `advice`.
    fix: &'a [String],
    advice: Option<&'a str>,
}

impl<'a> From<&'a Finding> for FindingOut<'a> {
    fn from(finding: &'a Finding) -> Self {
        Self {
            severity: finding.severity,
            check: finding.check,
            object: &finding.object,
            problem: &finding.problem,
            why: finding.why,
            fix: finding.fix.as_ref().map_or(&[], |fix| &fix.sql),
            advice: finding.advice,
        }
    }
}

fn json(reports: &[Report], notes: &[String], out: &mut impl Write) -> io::Result<()> {
    let failed = reports.iter().filter(|r| r.problem.is_some()).count();
    let document = Document {
        pgtenant: env!("CARGO_PKG_VERSION"),
        summary: Summary {
            critical: total(reports, Severity::Critical),
            warning: total(reports, Severity::Warning),
            notice: total(reports, Severity::Notice),
            inspected: reports.len() - failed,
            failed,
        },
        notes,
        places: reports
            .iter()
            .map(|report| PlaceOut {
                placements: &report.placements,
                place: &report.place,
                tier: report.tier.to_string(),
                tenants: report.tenants,
                inspected_as: report.inspected_as.as_deref(),
                server_version: report.server_version.as_deref(),
                error: report.problem.as_deref(),
                findings: report.findings.iter().map(FindingOut::from).collect(),
            })
            .collect(),
    };
    serde_json::to_writer_pretty(&mut *out, &document)?;
    writeln!(out)
}
