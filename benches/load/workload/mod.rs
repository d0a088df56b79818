//! The kinds of load, a module each. All have the same shape: targets that are started once, rows
//! of a table, and a cell that is measured for each row and target, round by round.

pub mod bulk;
pub mod connect;
pub mod cores;
pub mod idle;
pub mod latency;
pub mod select;
mod steady;
pub mod switch;
pub mod tenants;

use std::fmt;
use std::time::Instant;

use pgtenant::cluster::Result;

use crate::Args;
use crate::machine::Machine;
use crate::report::{Cell, Run, Section};
use crate::targets::{Bed, Kind, Programs};

/// As on the command line, in the order they are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Name {
    /// `pgbench -S`, one tenant.
    Select,
    /// The same load, each client another tenant.
    Tenants,
    /// A tenant switch for each transaction, with row level security.
    Switch,
    /// `pgbench -S` in TLS.
    Tls,
    /// Gigabytes through one connection.
    Bulk,
    /// Connect, log in, one query, disconnect.
    Connect,
    /// Memory of clients that do nothing.
    Idle,
    /// One client, one transaction after the other.
    Latency,
    /// From one core to two.
    Cores,
}

impl Name {
    pub const ALL: [Self; 9] = [
        Self::Select,
        Self::Tenants,
        Self::Switch,
        Self::Tls,
        Self::Bulk,
        Self::Connect,
        Self::Idle,
        Self::Latency,
        Self::Cores,
    ];

    /// Starts what it needs, measures, and ends it.
    pub async fn run(self, ground: &Ground<'_>) -> Result<Section> {
        match self {
            Self::Select => select::run(ground, false).await,
            Self::Tenants => tenants::run(ground).await,
            Self::Switch => switch::run(ground).await,
            Self::Tls => select::run(ground, true).await,
            Self::Bulk => bulk::run(ground).await,
            Self::Connect => connect::run(ground).await,
            Self::Idle => idle::run(ground).await,
            Self::Latency => latency::run(ground).await,
            Self::Cores => cores::run(ground).await,
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_ascii_lowercase())
    }
}

/// What all workloads are given.
pub struct Ground<'a> {
    pub args: &'a Args,
    pub bed: &'a Bed,
    pub programs: &'a Programs,
    pub machine: &'a Machine,
}

impl Ground<'_> {
    /// The columns of a workload that compares the targets as they are.
    fn titles(&self) -> Vec<&'static str> {
        self.args.targets.iter().map(|kind| kind.title()).collect()
    }

    /// Those of the targets that are wanted of which `holds` does.
    fn kinds(&self, holds: impl Fn(Kind) -> bool) -> Vec<Kind> {
        let kinds = self.args.targets.iter().copied();
        kinds.filter(|&kind| holds(kind)).collect()
    }

    fn has(&self, kind: Kind) -> bool {
        self.args.targets.contains(&kind)
    }
}

/// A kind of load, with its targets started.
trait Workload {
    type Row;
    /// Most rounds: what hardly differs from one to the next needs no more.
    const ROUNDS: u32 = u32::MAX;

    fn rows(&self) -> &[Self::Row];

    /// One label for each head of the tables.
    fn labels(row: &Self::Row) -> Vec<String>;

    /// Names of the targets.
    fn targets(&self) -> Vec<&'static str>;

    /// One cell, of the target at `target` of [`targets`](Self::targets). None: it does not do
    /// this.
    async fn measure(&self, row: &Self::Row, target: usize) -> Result<Option<Cell>>;
}

/// Round by round and row by row, each target once; each round another one begins.
async fn rounds<W: Workload>(name: Name, workload: &W, ground: &Ground<'_>) -> Result<Vec<Run>> {
    let rounds = ground.args.rounds().min(W::ROUNDS);
    let targets = workload.targets();
    let began = Instant::now();
    let mut runs = Vec::new();
    for round in 0..rounds {
        for row in workload.rows() {
            for turn in 0..targets.len() {
                let target = (turn + round as usize) % targets.len();
                let Some(cell) = workload.measure(row, target).await? else {
                    continue;
                };
                let (row, target) = (W::labels(row), targets[target]);
                eprintln!(
                    "[{name}, round {} of {rounds}, {:.0} s] {}, {target}: {cell}",
                    round + 1,
                    began.elapsed().as_secs_f64(),
                    row.join(", ")
                );
                runs.push(Run {
                    round,
                    row,
                    target,
                    cell,
                });
                tokio::time::sleep(crate::PAUSE).await;
            }
        }
    }
    Ok(runs)
}
