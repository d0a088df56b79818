//! Whole-process comparison, in one run on one PostgreSQL cluster: direct, haproxy as a TCP relay,
//! PgBouncer and pgtenant. What is measured and how: `benches/README.md`.
//!
//! ```text
//!  main ─► workload::*  a kind of load each: starts its targets, measures cells round by round
//!            │  targets, pgbench, client   what is compared, and who talks to it
//!            │  cpu, memory, machine       what is read of processes, and where
//!            ▼
//!          report       tables, JSON, goals
//! ```
//!
//! Everything that is started is ended again, also after an error or Ctrl-C.

mod client;
mod cpu;
mod machine;
mod memory;
mod pgbench;
mod report;
mod syscalls;
mod targets;
mod workload;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pgtenant::cluster::{Result, interrupted};

use crate::machine::Machine;
use crate::pgbench::Protocol;
use crate::report::Report;
use crate::targets::{Bed, Kind};
use crate::workload::{Ground, Name, switch};

/// Compare direct PostgreSQL, haproxy, PgBouncer and pgtenant in one run.
#[derive(Debug, Parser)]
#[command(name = "load", max_term_width = 100)]
struct Args {
    /// Rounds; what is shown are medians over them. In each round the targets take turns, and every
    /// round another one begins. Default: 5.
    #[arg(long, env = "BENCH_ROUNDS", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Seconds measured for each cell that is a matter of time, after a moment that is not.
    /// Default: 2.
    #[arg(long, env = "BENCH_SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: Option<u64>,
    /// All in a few minutes, for a look: 1 round of 1 second, 2000 idle clients.
    #[arg(long)]
    quick: bool,
    /// Kinds of load.
    #[arg(long, value_delimiter = ',', default_values_t = Name::ALL)]
    only: Vec<Name>,
    /// Targets.
    #[arg(long, value_delimiter = ',', default_values_t = Kind::ALL)]
    targets: Vec<Kind>,
    /// Numbers of clients for select, tenants (those above 1) and tls (those from 2 to 64).
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64, 256], value_parser = clap::value_parser!(u32).range(1..=500))]
    clients: Vec<u32>,
    /// Protocols for select, tenants and tls, as pgbench's -M.
    #[arg(long, value_delimiter = ',', default_values_t = Protocol::ALL)]
    protocols: Vec<Protocol>,
    /// Scale of the pgbench tables: 100 000 rows each.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    scale: u32,
    /// Numbers of tenants for switch, a client of each.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 200], value_parser = clap::value_parser!(u32).range(1..=i64::from(switch::TENANTS)))]
    tenants: Vec<u32>,
    /// Number of clients for idle, without TLS. Default: 10000.
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=25_000))]
    idle: Option<u32>,
    /// The same, in TLS. Default: 2000.
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=25_000))]
    idle_tls: Option<u32>,
    /// Count system calls instead, with strace: no times, they would be strace's.
    #[arg(long)]
    syscalls: bool,
    /// Of cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Args {
    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 1 } else { 5 })
    }

    fn seconds(&self) -> u64 {
        self.seconds.unwrap_or(if self.quick { 1 } else { 2 })
    }

    fn idle(&self) -> u32 {
        self.idle.unwrap_or(if self.quick { 2000 } else { 10_000 })
    }

    fn idle_tls(&self) -> u32 {
        self.idle_tls.unwrap_or(if self.quick { 500 } else { 2000 })
    }
}

/// What a shell says of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;
/// For the server to let go of what the last cell used.
pub const PAUSE: Duration = Duration::from_millis(100);

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
    open_many_files();
    eprintln!("Starting PostgreSQL, filling tables …");
    let bed = Bed::make(&programs, args.scale).await?;
    let ground = Ground {
        args,
        bed: &bed,
        programs: &programs,
        machine: &machine,
    };
    if args.syscalls {
        return syscalls::show(&ground).await;
    }
    let mut report = Report {
        args,
        machine: &machine,
        sections: Vec::new(),
    };
    for name in Name::ALL.iter().filter(|name| args.only.contains(name)) {
        report.sections.push(name.run(&ground).await?);
        // What was measured is kept, whatever becomes of the rest.
        report.write()?;
    }
    println!("{}", report.markdown());
    eprintln!(
        "Tables and all figures: load.md and load.json in {}",
        report::dir().display()
    );
    Ok(())
}

/// As many as are allowed, here and in what is started from here. Whoever needs more than that says
/// so.
fn open_many_files() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
