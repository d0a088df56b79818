//! Runs pgbench and takes one cell of the tables from it.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use pgtenant::cluster::{Ending, Error, Process, Result, dying_with_us};
use tokio::sync::oneshot;

use crate::cpu;
use crate::report::Cell;
use crate::targets::{Bed, DATABASE, Target, USER};

const ENDING: Ending = &[(Signal::SIGTERM, Duration::from_secs(2))];
const FILLING: Duration = Duration::from_secs(600);
/// Logins, and the end, may take so much longer than what was asked for.
const PATIENCE: Duration = Duration::from_secs(60);
/// The first report of progress ends the time that is not measured: pools fill, statements are
/// parsed.
const WARM_UP: u64 = 1;
/// What pgbench does itself when the time of -T is over: it ends in good order. Its own time has
/// the logins in it, which take seconds at many clients, so it is ended by its reports instead.
const TIME_IS_OVER: Signal = Signal::SIGALRM;

/// How pgbench talks to the server: its -M.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    Simple,
    Extended,
    Prepared,
}

impl Protocol {
    pub const ALL: [Self; 3] = [Self::Simple, Self::Extended, Self::Prepared];
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Simple => "simple",
            Self::Extended => "extended",
            Self::Prepared => "prepared",
        })
    }
}

/// What the clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    pub protocol: Protocol,
    pub clients: u32,
}

impl Load {
    /// As a row of a table.
    pub fn labels(self) -> Vec<String> {
        vec![self.protocol.to_string(), self.clients.to_string()]
    }
}

/// Makes and fills the tables.
pub async fn fill(bed: &Bed, scale: u32) -> Result<()> {
    let mut command = command(bed, bed.cluster.port(), USER, false);
    command.args(["-i", "-q", "-s", &scale.to_string(), DATABASE]);
    let output = Running::start(command, None, None)?.finish(FILLING).await?;
    drop(output);
    Ok(())
}

pub struct Pgbench<'a> {
    bed: &'a Bed,
}

impl<'a> Pgbench<'a> {
    pub fn new(bed: &'a Bed) -> Self {
        Self { bed }
    }

    /// One run on `target`, measured for about `seconds`.
    ///
    /// # Errors
    /// pgbench fails, or a client of it; with what it said.
    pub async fn run(&self, target: &Target, load: Load, seconds: u64) -> Result<Cell> {
        let failed = |error| target.failed_under(&load.labels(), &error);
        let running = self.start(target, load, seconds).map_err(failed)?;
        let output = running
            .finish(Duration::from_secs(WARM_UP + seconds) + PATIENCE)
            .await
            .map_err(failed)?;
        output.cell().ok_or_else(|| {
            let why = format!("pgbench says nothing to read:\n{}", output.text);
            failed(Error::new(why))
        })
    }

    /// Starts it and does not wait.
    pub fn start(&self, target: &Target, load: Load, seconds: u64) -> Result<Running> {
        let threads = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(2)
            .min(load.clients as usize);
        let mut command = command(
            self.bed,
            target.door.port,
            &target.user,
            target.door.tls.is_some(),
        );
        command
            .args(["-S", "-n", "-P", "1", "--progress-timestamp"])
            .args(["-M", &load.protocol.to_string()])
            .args(["-c", &load.clients.to_string()])
            .args(["-j", &threads.to_string()])
            .args([
                "-T",
                &(WARM_UP + seconds + 2 * PATIENCE.as_secs()).to_string(),
            ])
            .arg(DATABASE);
        Running::start(command, target.pid(), Some(seconds))
    }
}

fn command(bed: &Bed, port: u16, user: &str, tls: bool) -> Command {
    let sslmode = if tls { "require" } else { "disable" };
    let mut command = dying_with_us(&bed.pgbench, Signal::SIGTERM);
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("PG") {
            command.env_remove(variable);
        }
    }
    command
        .env("LC_ALL", "C")
        .env("PGPASSWORD", &bed.password)
        .env("PGSSLMODE", sslmode)
        .env("PGGSSENCMODE", "disable")
        .args([
            "-h",
            bed.cluster.host(),
            "-p",
            &port.to_string(),
            "-U",
            user,
        ]);
    command
}

/// A pgbench that runs.
pub struct Running {
    process: Process,
    enough: oneshot::Receiver<()>,
    output: oneshot::Receiver<Output>,
}

impl Running {
    /// `proxy`: the process whose CPU time is taken with each report of progress. When these cover
    /// `seconds`, it has run long enough.
    fn start(mut command: Command, proxy: Option<i32>, seconds: Option<u64>) -> Result<Self> {
        let failed = |error| Error::new(format!("cannot read from pgbench: {error}"));
        let (reader, writer) = std::io::pipe().map_err(failed)?;
        command
            .stdout(writer.try_clone().map_err(failed)?)
            .stderr(writer);
        let (sender, output) = oneshot::channel();
        let (say_enough, enough) = oneshot::channel();
        let mut say_enough = Some(say_enough);
        let process = Process::start("pgbench", command, ENDING)?;
        // Ends with the process: it has the other end of the pipe.
        std::thread::spawn(move || {
            let mut output = Output::default();
            for line in BufReader::new(reader).lines().map_while(Result::ok) {
                output.take(&line, proxy);
                if seconds.is_some_and(|seconds| output.covers(seconds))
                    && let Some(say_enough) = say_enough.take()
                {
                    let _ = say_enough.send(());
                }
            }
            let _ = sender.send(output);
        });
        Ok(Self {
            process,
            enough,
            output,
        })
    }

    pub async fn finish(mut self, patience: Duration) -> Result<Output> {
        let ending = async {
            if (&mut self.enough).await.is_ok() {
                self.process.signal(TIME_IS_OVER);
            }
            (&mut self.output).await
        };
        let Ok(Ok(output)) = tokio::time::timeout(patience, ending).await else {
            return Err(Error::new(format!("pgbench does not end in {patience:?}")));
        };
        match self.process.ended(ENDING[0].1).await {
            Some(status) if status.success() => Ok(output),
            status => Err(Error::new(format!(
                "pgbench ended with {status:?}:\n{}",
                output.text
            ))),
        }
    }
}

/// A report of progress.
#[derive(Debug, Clone, Copy)]
struct Progress {
    /// Seconds since the epoch.
    at: f64,
    /// Since the report before.
    tps: f64,
    latency_ms: f64,
    cpu: Option<Duration>,
}

/// What pgbench said.
#[derive(Debug, Default)]
pub struct Output {
    text: String,
    progress: Vec<Progress>,
}

impl Output {
    fn take(&mut self, line: &str, proxy: Option<i32>) {
        // First of all, so that the time fits.
        let cpu = proxy.and_then(cpu::used);
        match Progress::read(line) {
            Some(progress) => self.progress.push(Progress { cpu, ..progress }),
            None => {
                self.text.push_str(line);
                self.text.push('\n');
            }
        }
    }

    /// Whether the reports are of about `seconds`: on a busy machine the first one is late, and the
    /// second is not.
    #[expect(clippy::cast_precision_loss, reason = "no more than an hour")]
    fn covers(&self, seconds: u64) -> bool {
        let ends = self.progress.first().zip(self.progress.last());
        ends.is_some_and(|(first, last)| last.at - first.at > seconds as f64 - 0.5)
    }

    /// From the first report of progress to the last.
    fn cell(&self) -> Option<Cell> {
        let (first, measured) = self.progress.split_first()?;
        let last = measured.last()?;
        let (mut before, mut transactions, mut waited) = (first.at, 0.0, 0.0);
        for progress in measured {
            let count = progress.tps * (progress.at - before);
            transactions += count;
            waited += count * progress.latency_ms;
            before = progress.at;
        }
        let seconds = last.at - first.at;
        let cpu = match (first.cpu, last.cpu) {
            (Some(first), Some(last)) => Some(last.checked_sub(first)?),
            _ => None,
        };
        (transactions > 0.0).then_some(())?;
        let cpu = cpu.map(|cpu| cpu.as_secs_f64());
        Some(
            Cell::default()
                .with("transactions", transactions)
                .with("seconds", seconds)
                .with("tps", transactions / seconds)
                .with("latency_ms", waited / transactions)
                .with(
                    "cpu_us_per_transaction",
                    cpu.map(|cpu| cpu * 1e6 / transactions),
                )
                .with("proxy_cores", cpu.map(|cpu| cpu / seconds))
                .with("total_tps", self.value("tps =")?.parse::<f64>().ok()?),
        )
    }

    /// All transactions of the run.
    pub fn total(&self) -> Option<u64> {
        self.value("number of transactions actually processed:")?
            .parse()
            .ok()
    }

    /// The word after `name` at the start of a line.
    fn value(&self, name: &str) -> Option<&str> {
        self.text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.split_whitespace().next())
    }
}

impl Progress {
    /// `progress: 1700000000.123 s, 24135.3 tps, lat 0.662 ms stddev 0.340, 0 failed`
    fn read(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("progress: ")?.split_whitespace();
        let mut number = |skip: usize| words.nth(skip)?.parse::<f64>().ok();
        Some(Self {
            at: number(0)?,
            tps: number(1)?,
            latency_ms: number(2)?,
            cpu: None,
        })
    }
}
