//! The whole document: what was measured on what, a section for each workload, and which goals are
//! met.

mod goals;
mod table;

use std::path::PathBuf;

use pgtenant::cluster::{Error, Result};
use serde_json::{Map, Value, json};

pub use self::table::{Cell, Run, Section, Table};
use crate::Args;
use crate::machine::Machine;
use crate::targets::{Kind, POOL_SIZE};

pub const MEGABYTE: f64 = 1e6;

/// Targets that are shown in relation to others.
pub type Ratios = &'static [(&'static str, &'static str)];

const DIRECT: &str = Kind::Direct.title();
const HAPROXY: &str = Kind::Haproxy.title();
const PGBOUNCER: &str = Kind::PgBouncer.title();
const PGTENANT: &str = Kind::Pgtenant.title();
pub const VERSUS: Ratios = &[(PGTENANT, HAPROXY), (PGTENANT, PGBOUNCER)];
pub const VERSUS_PGBOUNCER: Ratios = &[(PGTENANT, PGBOUNCER)];
const VERSUS_DIRECT: Ratios = &[(PGTENANT, DIRECT), (PGTENANT, PGBOUNCER)];

// Tables that several workloads have.

pub const TPS: Table = Table {
    title: "Transactions per second (more is better)",
    figure: "tps",
    scale: 1.0,
    decimals: 0,
    ratios: VERSUS_DIRECT,
};
pub const CPU: Table = Table {
    title: "CPU time of the proxy per transaction, µs (less is better)",
    figure: "cpu_us_per_transaction",
    scale: 1.0,
    decimals: 1,
    ratios: VERSUS,
};
pub const SERVER_CPU: Table = Table {
    title: "CPU time of all processes of PostgreSQL per transaction, µs (less is better)",
    figure: "server_cpu_us_per_transaction",
    scale: 1.0,
    decimals: 1,
    ratios: VERSUS_PGBOUNCER,
};
pub const LATENCY: Table = Table {
    title: "Average latency, ms (less is better)",
    figure: "latency_ms",
    scale: 1.0,
    decimals: 2,
    ratios: VERSUS_DIRECT,
};

pub struct Report<'a> {
    pub args: &'a Args,
    pub machine: &'a Machine,
    pub sections: Vec<Section>,
}

impl Report<'_> {
    /// For a README.
    pub fn markdown(&self) -> String {
        let sections = self.sections.iter().map(Section::markdown);
        format!(
            "{}\n\n{}{}",
            self.conditions(),
            sections.collect::<String>(),
            goals::markdown(&self.sections)
        )
    }

    fn conditions(&self) -> String {
        let machine = self.machine;
        let versions: Vec<_> = self
            .args
            .targets
            .iter()
            .map(|&kind| match kind {
                Kind::Direct => format!("PostgreSQL {}", machine.postgresql),
                kind => format!("{} {}", kind.title(), machine.version(kind)),
            })
            .collect();
        format!(
            "{}; {} cores of {}, Linux {}; all on one machine over loopback TCP, without TLS where nothing else is said. {} round(s) of \
             {} s, targets interleaved; medians, and for the ratios medians of each round's ratio. Made by `{}`.",
            versions.join(", "),
            machine.cores,
            machine.cpu,
            machine.kernel,
            self.args.rounds(),
            self.args.seconds(),
            command()
        )
    }

    pub fn json(&self) -> String {
        let versions: Map<String, Value> = self
            .args
            .targets
            .iter()
            .map(|&kind| match kind {
                Kind::Direct => (
                    "postgresql".to_owned(),
                    self.machine.postgresql.as_str().into(),
                ),
                kind => (kind.to_string(), self.machine.version(kind).into()),
            })
            .collect();
        let whole = json!({
            "command": command(),
            "rounds": self.args.rounds(),
            "seconds": self.args.seconds(),
            "scale": self.args.scale,
            "pool_size": POOL_SIZE,
            "versions": versions,
            "machine": self.machine.json(),
            "goals": goals::json(&self.sections),
            "workloads": self.sections.iter().map(Section::json).collect::<Vec<_>>(),
        });
        format!("{whole:#}\n")
    }

    /// Writes `load.md` and `load.json`.
    ///
    /// # Errors
    /// The operating system's.
    pub fn write(&self) -> Result<()> {
        let dir = dir();
        let written = std::fs::create_dir_all(&dir)
            .and_then(|()| std::fs::write(dir.join("load.md"), self.markdown()))
            .and_then(|()| std::fs::write(dir.join("load.json"), self.json()));
        written.map_err(|error| Error::new(format!("cannot write in {}: {error}", dir.display())))
    }
}

/// As it would be typed.
fn command() -> String {
    let arguments = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench");
    std::iter::once("cargo bench --bench load --".to_owned())
        .chain(arguments)
        .collect::<Vec<_>>()
        .join(" ")
}

/// In cargo's target directory, wherever that is.
pub fn dir() -> PathBuf {
    let temporary = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    temporary.parent().unwrap_or(&temporary).join("bench")
}
