//! Medians, ratios, and how they are written.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::Workload;
use crate::machine::Machine;
use crate::pgbench::Cell;
use crate::switch;
use crate::targets::{Kind, POOL_SIZE};

/// One cell in one round.
pub struct Run {
    pub round: u32,
    pub workload: Workload,
    pub kind: Kind,
    pub cell: Cell,
}

pub struct Report<'a> {
    pub machine: &'a Machine,
    pub rounds: u32,
    pub seconds: u64,
    pub scale: u32,
    pub kinds: &'a [Kind],
    pub workloads: &'a [Workload],
    pub runs: &'a [Run],
    pub switch: Option<&'a switch::Report<'a>>,
}

type Figure = fn(&Cell) -> Option<f64>;

/// A table: a figure of each target, then pgtenant's in relation to others.
struct Table {
    title: &'static str,
    figure: Figure,
    decimals: usize,
    against: &'static [Kind],
    /// Of a target without a proxy there is none.
    of_direct: bool,
}

const TABLES: [Table; 3] = [
    Table {
        title: "Transactions per second (more is better)",
        figure: |cell| Some(cell.tps),
        decimals: 0,
        against: &[Kind::Direct, Kind::PgBouncer],
        of_direct: true,
    },
    Table {
        title: "CPU time of the proxy per transaction, µs (less is better)",
        figure: |cell| cell.cpu_us,
        decimals: 1,
        against: &[Kind::Haproxy, Kind::PgBouncer],
        of_direct: false,
    },
    Table {
        title: "Average latency, ms (less is better)",
        figure: |cell| Some(cell.latency_ms),
        decimals: 2,
        against: &[Kind::Direct, Kind::PgBouncer],
        of_direct: true,
    },
];

impl Report<'_> {
    /// For a README.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for table in TABLES.iter().filter(|_| !self.workloads.is_empty()) {
            self.table(&mut text, table);
        }
        text.push_str(&self.conditions());
        if !self.workloads.is_empty() {
            text.push_str(&self.conditions_of_pgbench());
        }
        text.push('\n');
        if let Some(switch) = self.switch {
            text.push('\n');
            text.push_str(&switch.markdown());
        }
        text
    }

    fn table(&self, text: &mut String, table: &Table) {
        let kinds: Vec<Kind> = self
            .kinds
            .iter()
            .copied()
            .filter(|&kind| table.of_direct || kind != Kind::Direct)
            .collect();
        let against: Vec<Kind> = table
            .against
            .iter()
            .copied()
            .filter(|kind| kinds.contains(kind) && kinds.contains(&Kind::Pgtenant))
            .collect();
        let mut heads = vec!["protocol".to_owned(), "clients".to_owned()];
        heads.extend(kinds.iter().map(|kind| kind.title().to_owned()));
        heads.extend(
            against
                .iter()
                .map(|kind| format!("pgtenant ÷ {}", kind.title())),
        );
        // Writing to a String cannot fail.
        let _ = writeln!(text, "**{}**\n\n| {} |", table.title, heads.join(" | "));
        let _ = writeln!(text, "|---|{}", "---:|".repeat(heads.len() - 1));
        for &workload in self.workloads {
            let mut row = vec![workload.protocol.to_string(), workload.clients.to_string()];
            row.extend(kinds.iter().map(|&kind| {
                shown(
                    median(self.figures(workload, kind, table.figure)),
                    table.decimals,
                )
            }));
            row.extend(
                against
                    .iter()
                    .map(|&kind| shown(self.ratio(workload, kind, table.figure), 2)),
            );
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
        text.push('\n');
    }

    fn conditions(&self) -> String {
        let machine = self.machine;
        let versions: Vec<_> = self
            .kinds
            .iter()
            .map(|&kind| match kind {
                Kind::Direct => format!("PostgreSQL {}", machine.postgresql),
                kind => format!("{} {}", kind.title(), machine.version(kind)),
            })
            .collect();
        format!(
            "{}; {} cores of {}, Linux {}; all on one machine over loopback TCP without TLS. {} round(s) of {} s, interleaved; \
             medians, and for the ratios medians of each round's ratio.",
            versions.join(", "),
            machine.cores,
            machine.cpu,
            machine.kernel,
            self.rounds,
            self.seconds
        )
    }

    fn conditions_of_pgbench(&self) -> String {
        let without_prepared = if self.kinds.contains(&Kind::PgBouncer)
            && !self.machine.pgbouncer_prepares()
        {
            " –: PgBouncer before 1.21 has no prepared statements in transaction pooling, and in session pooling \
             it would need a server connection for each client."
        } else {
            ""
        };
        format!(
            " `pgbench -S`, scale {}. haproxy is a \
             plain TCP relay with one thread; PgBouncer (transaction pooling) and pgtenant have {POOL_SIZE} server \
             connections, direct and haproxy one for each client. pgtenant serves a tenant of the pool tier, with its \
             variable injected; the tables have no row level security, so that the server's work is the same for all.{without_prepared}",
            self.scale
        )
    }

    /// In the order of the rounds.
    fn figures(&self, workload: Workload, kind: Kind, figure: Figure) -> Vec<f64> {
        self.runs
            .iter()
            .filter(|run| run.workload == workload && run.kind == kind)
            .filter_map(|run| figure(&run.cell))
            .collect()
    }

    /// pgtenant in relation to `other`: the median of the rounds' ratios, since what a machine does
    /// besides changes from round to round.
    fn ratio(&self, workload: Workload, other: Kind, figure: Figure) -> Option<f64> {
        let ours = self.figures(workload, Kind::Pgtenant, figure);
        let theirs = self.figures(workload, other, figure);
        median_ratio(&ours, &theirs)
    }

    pub fn json(&self) -> String {
        let medians: Vec<Value> = self
            .workloads
            .iter()
            .flat_map(|&workload| self.kinds.iter().map(move |&kind| (workload, kind)))
            .map(|(workload, kind)| {
                let of = |figure: Figure| median(self.figures(workload, kind, figure));
                json!({
                    "protocol": workload.protocol.to_string(),
                    "clients": workload.clients,
                    "target": kind.to_string(),
                    "tps": of(|cell| Some(cell.tps)),
                    "latency_ms": of(|cell| Some(cell.latency_ms)),
                    "cpu_us_per_transaction": of(|cell| cell.cpu_us),
                })
            })
            .collect();
        let runs: Vec<Value> = self.runs.iter().map(json_run).collect();
        let versions: serde_json::Map<String, Value> = self
            .kinds
            .iter()
            .map(|&kind| match kind {
                Kind::Direct => (
                    "postgresql".to_owned(),
                    self.machine.postgresql.clone().into(),
                ),
                kind => (kind.to_string(), self.machine.version(kind).into()),
            })
            .collect();
        let command: Vec<String> = std::iter::once("cargo bench --bench load --".to_owned())
            .chain(
                std::env::args()
                    .skip(1)
                    .filter(|argument| argument != "--bench"),
            )
            .collect();
        let whole = json!({
            "command": command.join(" "),
            "rounds": self.rounds,
            "seconds": self.seconds,
            "scale": self.scale,
            "pool_size": POOL_SIZE,
            "versions": versions,
            "machine": self.machine.json(),
            "medians": medians,
            "runs": runs,
            "switch": self.switch.map(switch::Report::json),
        });
        format!("{whole:#}\n")
    }
}

fn json_run(run: &Run) -> Value {
    json!({
        "round": run.round,
        "protocol": run.workload.protocol.to_string(),
        "clients": run.workload.clients,
        "target": run.kind.to_string(),
        "tps": run.cell.tps,
        "latency_ms": run.cell.latency_ms,
        "cpu_us_per_transaction": run.cell.cpu_us,
        "transactions": run.cell.transactions.round(),
        "seconds": run.cell.seconds,
        "total_transactions": run.cell.total_transactions,
        "total_tps": run.cell.total_tps,
    })
}

/// Of figures that are in the order of the rounds; none if they are not of the same ones.
pub fn median_ratio(ours: &[f64], theirs: &[f64]) -> Option<f64> {
    let ratios = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs);
    (ours.len() == theirs.len())
        .then(|| median(ratios.collect()))
        .flatten()
}

pub fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    let upper = *figures.get(middle)?;
    Some(match figures.len() % 2 {
        0 => f64::midpoint(figures[middle - 1], upper),
        _ => upper,
    })
}

pub fn shown(figure: Option<f64>, decimals: usize) -> String {
    figure.map_or_else(|| "–".to_owned(), |figure| format!("{figure:.decimals$}"))
}
