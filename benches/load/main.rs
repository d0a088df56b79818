//! Whole-process comparison, in one run on one PostgreSQL cluster: direct, haproxy as a TCP relay,
//! PgBouncer and pgtenant, under `pgbench -S`. How the figures are taken: `benches/README.md`.
//!
//! Everything that is started is ended again, also after an error or Ctrl-C.

mod cpu;
mod machine;
mod pgbench;
mod report;
mod switch;
mod syscalls;
mod targets;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use pgtenant::cluster::{Error, Result, interrupted};

use crate::machine::Machine;
use crate::pgbench::{Cell, Pgbench, Protocol};
use crate::report::{Report, Run};
use crate::targets::{Bed, Kind, Target};

/// Compare direct PostgreSQL, haproxy, PgBouncer and pgtenant in one run.
#[derive(Debug, Parser)]
#[command(name = "load", max_term_width = 100)]
struct Args {
    /// Rounds; what is shown are medians over them. In each round the targets take turns, and every round
    /// another one begins.
    #[arg(long, env = "BENCH_ROUNDS", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds measured for each cell, after one second that is not.
    #[arg(long, env = "BENCH_SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Scale of the pgbench tables: 100 000 rows each.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    scale: u32,
    /// Numbers of clients.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64, 256], value_parser = clap::value_parser!(u32).range(1..=500))]
    clients: Vec<u32>,
    /// Protocols, as pgbench's -M.
    #[arg(long, value_delimiter = ',', default_values_t = Protocol::ALL)]
    protocols: Vec<Protocol>,
    /// Targets.
    #[arg(long, value_delimiter = ',', default_values_t = Kind::ALL)]
    targets: Vec<Kind>,
    /// Numbers of tenants that take turns on the server connections, a client of each; 0 leaves that workload out.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 200], value_parser = clap::value_parser!(u32).range(0..=i64::from(switch::TENANTS)))]
    tenants: Vec<u32>,
    /// Only that workload.
    #[arg(long)]
    only_tenants: bool,
    /// Count system calls instead, with strace: no times, they would be strace's.
    #[arg(long)]
    syscalls: bool,
    /// Of cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A row of the tables: what the clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    pub protocol: Protocol,
    pub clients: u32,
}

/// What a shell says of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;
/// What a cell costs beside the seconds that are measured: logins, the second that is not measured, the end.
const OVERHEAD: Duration = Duration::from_millis(1700);
/// For the server to let go of what the last cell used.
pub const PAUSE: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("load: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        // Dropped half-way, the run ends what it has started.
        tokio::select! {
            biased;
            () = interrupted() => ExitCode::from(INTERRUPTED),
            done = run(&args) => match done {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("load: {error}");
                    ExitCode::FAILURE
                }
            },
        }
    })
}

async fn run(args: &Args) -> Result<()> {
    let programs = targets::Programs::find(&args.targets)?;
    let machine = Machine::look(&programs)?;
    if machine.load > 0.5 {
        eprintln!(
            "This machine is busy (load {}): the figures will be worth little.",
            machine.load
        );
    }
    let protocols: &[Protocol] = if args.only_tenants {
        &[]
    } else {
        &args.protocols
    };
    let workloads: Vec<Workload> = protocols
        .iter()
        .flat_map(|&protocol| {
            args.clients
                .iter()
                .map(move |&clients| Workload { protocol, clients })
        })
        .collect();
    eprintln!("Starting PostgreSQL, filling tables …");
    let scale = (!args.only_tenants).then_some(args.scale);
    let bed = Bed::make(&programs, scale).await?;
    let kinds: &[Kind] = if args.only_tenants {
        &[]
    } else {
        &args.targets
    };
    let targets = bed.targets(&programs, &machine, kinds).await?;
    if args.syscalls {
        return syscalls::show(&bed, &targets, &workloads, args.seconds).await;
    }
    let runs = measure(args, &bed, &targets, &workloads).await?;
    drop(targets);
    let tenants: Vec<u32> = args.tenants.iter().copied().filter(|&n| n > 0).collect();
    let switch_runs = switch_tenants(args, &bed, &programs, &tenants).await?;
    let switch = switch::Report {
        tenants: &tenants,
        runs: &switch_runs,
    };
    let report = Report {
        machine: &machine,
        rounds: args.rounds,
        seconds: args.seconds,
        scale: args.scale,
        kinds: &args.targets,
        workloads: &workloads,
        runs: &runs,
        switch: (!tenants.is_empty()).then_some(&switch),
    };
    println!("{}", report.markdown());
    let file = json_file();
    let written = file
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::write(&file, report.json()));
    written.map_err(|error| Error::new(format!("cannot write {}: {error}", file.display())))?;
    eprintln!("All figures: {}", file.display());
    Ok(())
}

/// Round by round, workload by workload, each target once.
async fn measure(
    args: &Args,
    bed: &Bed,
    targets: &[Target],
    workloads: &[Workload],
) -> Result<Vec<Run>> {
    let in_a_round = workloads
        .iter()
        .flat_map(|workload| targets.iter().filter(|target| target.serves(*workload)))
        .count();
    let cells = in_a_round * args.rounds as usize;
    let each = Duration::from_secs(args.seconds) + OVERHEAD;
    let estimate = each * u32::try_from(cells).unwrap_or(u32::MAX);
    eprintln!(
        "{cells} cells of {} s: about {:.0} min.",
        args.seconds,
        (estimate.as_secs_f64() / 60.0).max(1.0)
    );
    let started = Instant::now();
    let pgbench = Pgbench::new(bed);
    let mut runs = Vec::with_capacity(cells);
    for round in 0..args.rounds {
        for &workload in workloads {
            for turn in 0..targets.len() {
                let target = &targets[(turn + round as usize) % targets.len()];
                if !target.serves(workload) {
                    continue;
                }
                let cell: Cell = pgbench.run(target, workload, args.seconds).await?;
                runs.push(Run {
                    round,
                    workload,
                    kind: target.kind,
                    cell,
                });
                progress(runs.len(), cells, started, &runs);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    Ok(runs)
}

/// The workload of tenants that take turns, round by round.
async fn switch_tenants(
    args: &Args,
    bed: &Bed,
    programs: &targets::Programs,
    tenants: &[u32],
) -> Result<Vec<switch::Run>> {
    let mut runs = Vec::new();
    if tenants.is_empty() {
        return Ok(runs);
    }
    eprintln!("Tenants that take turns: filling their table …");
    let targets = switch::Targets::start(bed, programs).await?;
    for round in 0..args.rounds {
        for &tenants in tenants {
            targets
                .run(bed, round, tenants, args.seconds, |run| {
                    run.show();
                    runs.push(run);
                })
                .await?;
        }
    }
    Ok(runs)
}

fn progress(done: usize, cells: usize, started: Instant, runs: &[Run]) {
    let Some(Run {
        workload,
        kind,
        cell,
        ..
    }) = runs.last()
    else {
        return;
    };
    let cpu = cell
        .cpu_us
        .map(|cpu| format!(", {cpu:.1} µs of CPU each"))
        .unwrap_or_default();
    let _ = writeln!(
        std::io::stderr(),
        "[{done}/{cells}, {:.0} s] {} {} clients, {kind}: {:.0}/s{cpu}",
        started.elapsed().as_secs_f64(),
        workload.protocol,
        workload.clients,
        cell.tps
    );
}

/// In cargo's target directory, wherever that is.
fn json_file() -> PathBuf {
    let temporary = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    temporary
        .parent()
        .unwrap_or(&temporary)
        .join("bench/load.json")
}
