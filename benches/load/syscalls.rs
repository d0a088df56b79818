//! System calls of each proxy for a transaction, counted by strace. It slows the proxy down several
//! times, so more comes in one read than without: a profile, not a measurement.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use pgtenant::cluster::{Dir, Ending, Error, Process, Result, dying_with_us};

use crate::pgbench::{Load, Pgbench};
use crate::targets::{Setup, Target, program, start};
use crate::workload::{Ground, select};

/// It detaches and writes its table on SIGINT.
const ENDING: Ending = &[(Signal::SIGINT, Duration::from_secs(5))];
const ATTACHING: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(120);
/// Calls that are fewer are not of a transaction.
const SHOWN: f64 = 0.01;

pub async fn show(ground: &Ground<'_>) -> Result<()> {
    let (bed, seconds) = (ground.bed, ground.args.seconds());
    let targets = start(ground, &ground.args.targets, &Setup::default()).await?;
    let strace = program("strace")?;
    println!("| workload | proxy | calls per transaction | which |\n|---|---|---:|---|");
    for load in select::loads(ground, false) {
        for target in targets.iter().filter(|target| target.serves(load.protocol)) {
            let Some(pid) = target.pid() else { continue };
            let dir = Dir::create()?;
            let table = dir.path().join("strace");
            let mut command: Command = dying_with_us(&strace, Signal::SIGINT);
            command
                .args(["-f", "-c", "-p", &pid.to_string(), "-o"])
                .arg(&table)
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null());
            let tracer = Process::start("strace", command, ENDING)?;
            tokio::time::sleep(ATTACHING).await;
            let output = Pgbench::new(bed)
                .start(target, load, seconds)?
                .finish(PATIENCE)
                .await
                .map_err(|error| target.failed(&error.to_string()))?;
            tracer.end().await?;
            let transactions = output
                .total()
                .filter(|&total| total > 0)
                .ok_or_else(|| Error::new("pgbench counts no transaction"))?;
            let text = std::fs::read_to_string(&table)
                .map_err(|error| Error::new(format!("cannot read what strace wrote: {error}")))?;
            println!("{}", row(load, target, &text, transactions));
        }
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "counts of a few seconds")]
fn row(load: Load, target: &Target, table: &str, transactions: u64) -> String {
    let calls: BTreeMap<&str, f64> = counts(table)
        .into_iter()
        .map(|(name, calls)| (name, calls as f64 / transactions as f64))
        .collect();
    let mut most: Vec<_> = calls.iter().filter(|&(_, &calls)| calls >= SHOWN).collect();
    most.sort_by(|a, b| b.1.total_cmp(a.1));
    let which: Vec<_> = most
        .iter()
        .map(|(name, calls)| format!("{name} {calls:.2}"))
        .collect();
    format!(
        "| {}, {} clients | {} | {:.2} | {} |",
        load.protocol,
        load.clients,
        target.kind.title(),
        calls.values().sum::<f64>(),
        which.join(", ")
    )
}

/// Lines of `strace -c`: % time, seconds, usecs/call, calls, errors (or nothing), name. Calls that
/// failed are counted too; those of a read or write that found nothing are EAGAIN.
fn counts(table: &str) -> Vec<(&str, u64)> {
    table
        .lines()
        .filter_map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let name = *words.last()?;
            words.first()?.parse::<f64>().ok()?;
            let calls = words.get(3)?.parse().ok()?;
            (name != "total").then_some((name, calls))
        })
        .collect()
}
