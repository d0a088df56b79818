//! What the figures were taken on.

use std::fs;
use std::process::Command;

use pgtenant::cluster::{Error, Result};
use serde_json::{Value, json};

use crate::targets::{Kind, Programs};

pub struct Machine {
    pub cores: usize,
    pub cpu: String,
    pub kernel: String,
    /// Of the last minute, before anything was started.
    pub load: f64,
    pub postgresql: String,
    pub haproxy: Option<String>,
    pub pgbouncer: Option<String>,
    pub pgtenant: String,
}

impl Machine {
    pub fn look(programs: &Programs) -> Result<Self> {
        let version = |program: &std::path::Path, argument: &str, position: usize| {
            let line = first_line(Command::new(program).arg(argument))?;
            let word = line.split_whitespace().nth(position);
            word.map(str::to_owned).ok_or_else(|| {
                Error::new(format!("{} does not say its version", program.display()))
            })
        };
        Ok(Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu: cpu_model(),
            kernel: read("/proc/sys/kernel/osrelease"),
            load: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|load| load.parse().ok())
                .unwrap_or_default(),
            postgresql: version(&programs.postgres(), "--version", 2)?,
            haproxy: programs
                .haproxy
                .as_deref()
                .map(|program| version(program, "-v", 2))
                .transpose()?,
            pgbouncer: programs
                .pgbouncer
                .as_deref()
                .map(|program| version(program, "--version", 1))
                .transpose()?,
            pgtenant: described(),
        })
    }

    /// The version of a target, as the tables name it.
    pub fn version(&self, kind: Kind) -> &str {
        match kind {
            Kind::Direct => Some(&self.postgresql),
            Kind::Haproxy => self.haproxy.as_ref(),
            Kind::PgBouncer => self.pgbouncer.as_ref(),
            Kind::Pgtenant => Some(&self.pgtenant),
        }
        .map_or("–", String::as_str)
    }

    /// PgBouncer follows prepared statements in transaction pooling since 1.21.
    pub fn pgbouncer_prepares(&self) -> bool {
        let mut numbers = self
            .version(Kind::PgBouncer)
            .split('.')
            .map(str::parse::<u32>);
        let mut next = || numbers.next()?.ok();
        (next(), next()) >= (Some(1), Some(21))
    }

    pub fn json(&self) -> Value {
        json!({ "cores": self.cores, "cpu": self.cpu, "kernel": self.kernel, "load_before": self.load })
    }
}

fn first_line(command: &mut Command) -> Result<String> {
    let program = command.get_program().display().to_string();
    let output = command
        .output()
        .map_err(|error| Error::new(format!("cannot run {program}: {error}")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// What git says of this source; the version of the crate where there is no git.
fn described() -> String {
    let described = Command::new("git")
        .args(["describe", "--tags", "--always", "--dirty"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    described
        .ok()
        .filter(|output| output.status.success())
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned())
}

fn read(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn cpu_model() -> String {
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map(|(_, model)| model.trim().to_owned());
    model.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}
