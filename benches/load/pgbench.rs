//! Runs pgbench and takes one cell of the tables from it.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use pgtenant::cluster::{Ending, Error, Process, Result, dying_with_us};
use tokio::sync::oneshot;

use crate::Workload;
use crate::cpu;
use crate::targets::{Bed, DATABASE, Target, USER};

const ENDING: Ending = &[(Signal::SIGTERM, Duration::from_secs(2))];
const FILLING: Duration = Duration::from_secs(600);
/// Logins, and the end, may take so much longer than what was asked for.
const PATIENCE: Duration = Duration::from_secs(60);
/// The first report of progress ends the time that is not measured: pools fill, statements are parsed.
const WARM_UP: u64 = 1;
/// What pgbench does itself when the time of -T is over: it ends in good order. Its own time has the logins in
/// it, which take seconds at many clients, so it is ended by its reports instead.
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

/// The figures of one run.
#[derive(Debug, Clone)]
pub struct Cell {
    /// In the time that was measured.
    pub transactions: f64,
    pub seconds: f64,
    pub tps: f64,
    /// Average.
    pub latency_ms: f64,
    /// CPU time of the proxy for each transaction; none without a proxy.
    pub cpu_us: Option<f64>,
    /// What pgbench says at its end, the time that was not measured included.
    pub total_transactions: u64,
    pub total_tps: f64,
}

/// Makes and fills the tables.
pub async fn fill(bed: &Bed, scale: u32) -> Result<()> {
    let mut command = command(bed, bed.cluster.port(), USER);
    command.args(["-i", "-q", "-s", &scale.to_string(), DATABASE]);
    let output = Running::start(command, None, u64::MAX)?
        .finish(FILLING)
        .await?;
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
    pub async fn run(&self, target: &Target, workload: Workload, seconds: u64) -> Result<Cell> {
        let failed = |error: &dyn fmt::Display| {
            target.failed(&format!(
                "under {} clients, {}: {error}",
                workload.clients, workload.protocol
            ))
        };
        let running = self
            .start(target, workload, seconds)
            .map_err(|error| failed(&error))?;
        let output = running
            .finish(Duration::from_secs(WARM_UP + seconds) + PATIENCE)
            .await
            .map_err(|error| failed(&error))?;
        output.cell().ok_or_else(|| {
            failed(&format_args!(
                "pgbench says nothing to read:\n{}",
                output.text
            ))
        })
    }

    /// Starts it and does not wait.
    pub fn start(&self, target: &Target, workload: Workload, seconds: u64) -> Result<Running> {
        let threads = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(2)
            .min(workload.clients as usize);
        let mut command = command(self.bed, target.port, &target.user);
        command
            .args(["-S", "-n", "-P", "1", "--progress-timestamp"])
            .args(["-M", &workload.protocol.to_string()])
            .args(["-c", &workload.clients.to_string()])
            .args(["-j", &threads.to_string()])
            .args([
                "-T",
                &(WARM_UP + seconds + 2 * PATIENCE.as_secs()).to_string(),
            ])
            .arg(DATABASE);
        Running::start(command, target.pid(), WARM_UP + seconds)
    }
}

fn command(bed: &Bed, port: u16, user: &str) -> Command {
    let mut command = dying_with_us(&bed.pgbench, Signal::SIGTERM);
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("PG") {
            command.env_remove(variable);
        }
    }
    command
        .env("LC_ALL", "C")
        .env("PGPASSWORD", &bed.password)
        .env("PGSSLMODE", "disable")
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
    /// `proxy`: the process whose CPU time is taken with each report of progress. After `reports` of them
    /// it has run long enough.
    fn start(mut command: Command, proxy: Option<i32>, reports: u64) -> Result<Self> {
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
                if output.progress.len() as u64 == reports
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
        Some(Cell {
            transactions,
            seconds,
            tps: transactions / seconds,
            latency_ms: waited / transactions,
            cpu_us: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / transactions),
            total_transactions: self.total()?,
            total_tps: self.value("tps =")?.parse().ok()?,
        })
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
