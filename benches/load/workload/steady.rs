//! Clients that do the same for some seconds, of which all but the first are measured: pools fill,
//! statements are parsed. All clients are tasks of one thread, the same for every target; their own
//! CPU counts for nobody, but takes from all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use pgtenant::cluster::{Error, Result};
use tokio::task::JoinSet;

use crate::cpu::Usage;
use crate::report::Cell;
use crate::targets::{Bed, Target};

const WARM_UP: Duration = Duration::from_millis(500);
/// The end may take so much longer than what was asked for.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the clients have done so far.
#[derive(Debug, Default)]
pub struct Tally {
    transactions: AtomicU64,
    /// From the first message of a transaction to the end of the last answer, ns, summed up.
    latency: AtomicU64,
    enough: AtomicBool,
}

impl Tally {
    /// Time is over.
    pub fn is_enough(&self) -> bool {
        self.enough.load(Relaxed)
    }

    /// `transactions` of them together, since `began`.
    pub fn add(&self, transactions: u64, began: Instant) {
        let latency = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.latency.fetch_add(latency, Relaxed);
        self.transactions.fetch_add(transactions, Relaxed);
    }
}

/// Clients, each of which goes on until there is enough.
pub struct Clients {
    pub tally: Arc<Tally>,
    pub tasks: JoinSet<Result<()>>,
}

impl Clients {
    pub fn new() -> Self {
        Self {
            tally: Arc::default(),
            tasks: JoinSet::new(),
        }
    }

    /// A moment that is not measured, then `seconds` that are.
    ///
    /// # Errors
    /// A client fails.
    pub async fn measure(mut self, bed: &Bed, target: &Target, seconds: u64) -> Result<Cell> {
        let measured = async {
            tokio::time::sleep(WARM_UP).await;
            let before = Snapshot::take(bed, target, &self.tally);
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            Snapshot::take(bed, target, &self.tally).since(&before)
        };
        // A client that fails ends all: none ends of itself before it is told to.
        let cell = tokio::select! {
            cell = measured => cell,
            Some(ended) = self.tasks.join_next() => return match ended {
                Ok(Err(error)) => Err(error),
                _ => Err(Error::new("a client ended early")),
            },
        };
        self.tally.enough.store(true, Relaxed);
        let ending = async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.map_err(|error| Error::new(error.to_string()))??;
            }
            Ok(cell)
        };
        tokio::time::timeout(PATIENCE, ending)
            .await
            .unwrap_or_else(|_| Err(Error::new("clients do not end")))
    }
}

/// Those on threads of their own are only told that way.
impl Drop for Clients {
    fn drop(&mut self) {
        self.tally.enough.store(true, Relaxed);
    }
}

struct Snapshot {
    at: Instant,
    transactions: u64,
    latency: u64,
    server: Usage,
    proxy: Option<Usage>,
    /// This process: the clients.
    bench: Usage,
}

impl Snapshot {
    fn take(bed: &Bed, target: &Target, tally: &Tally) -> Self {
        Self {
            at: Instant::now(),
            transactions: tally.transactions.load(Relaxed),
            latency: tally.latency.load(Relaxed),
            server: bed.cluster.pid().map(Usage::of_family).unwrap_or_default(),
            proxy: target.pid().map(Usage::of),
            bench: Usage::of(std::process::id().cast_signed()),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of a few seconds")]
    fn since(&self, before: &Self) -> Cell {
        let transactions = (self.transactions - before.transactions) as f64;
        let seconds = (self.at - before.at).as_secs_f64();
        let each = |total: f64| total / transactions.max(1.0);
        let proxy = self
            .proxy
            .as_ref()
            .zip(before.proxy.as_ref())
            .map(|(now, then)| now.since(then).as_secs_f64());
        let bench = self.bench.since(&before.bench).as_secs_f64();
        let server = self.server.since(&before.server).as_secs_f64();
        Cell::default()
            .with("transactions", transactions)
            .with("seconds", seconds)
            .with("tps", transactions / seconds)
            .with(
                "latency_ms",
                each((self.latency - before.latency) as f64 / 1e6),
            )
            .with("cpu_us_per_transaction", proxy.map(|cpu| each(cpu * 1e6)))
            .with("proxy_cores", proxy.map(|cpu| cpu / seconds))
            .with("bench_cores", bench / seconds)
            .with("server_cpu_us_per_transaction", each(server * 1e6))
    }
}
