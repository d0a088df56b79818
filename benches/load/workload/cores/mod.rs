//! From one core to two: as many cheap queries as go through a proxy that is what the machine is
//! short of.

mod server;

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use pgtenant::cluster::{Error, Result};

use self::server::Servers;
use super::steady::{Clients, Tally};
use super::{Ground, Name, Workload, rounds};
use crate::client::Client;
use crate::report::{Cell, Ratios, Section, Table};
use crate::targets::{Bed, Kind, Place, Setup, Target, USER};

/// Queries that a client sends at once, and the answers of which it waits for together.
const BATCH: u32 = 1000;
/// No more than a pool has server connections.
const CLIENTS: usize = 20;
/// How often clients and servers look at their sockets.
const TICK: Duration = Duration::from_millis(1);
const INSTANCES: usize = 2;
/// What a client reads at once.
const CHUNK: usize = 64 << 10;
/// For the answers to a batch.
const PATIENCE: Duration = Duration::from_secs(10);
/// Databases of PgBouncer and tenants of pgtenant, one on each instance.
const NAMES: [&str; INSTANCES] = ["one", "two"];

pub const ONE_WORKER: &str = "pgtenant, 1 worker";
pub const TWO_WORKERS: &str = "pgtenant, 2 workers";

const RATIOS: Ratios = &[
    (TWO_WORKERS, ONE_WORKER),
    (ONE_WORKER, Kind::PgBouncer.title()),
];

/// A target that is started for each cell: server connections of others would be looked at for
/// nothing.
#[derive(Debug, Clone, Copy)]
enum Way {
    PgBouncer,
    Pgtenant { workers: u32 },
}

impl Way {
    const ALL: [Self; 3] = [
        Self::PgBouncer,
        Self::Pgtenant { workers: 1 },
        Self::Pgtenant { workers: 2 },
    ];

    fn kind(self) -> Kind {
        match self {
            Self::PgBouncer => Kind::PgBouncer,
            Self::Pgtenant { .. } => Kind::Pgtenant,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::PgBouncer => Kind::PgBouncer.title(),
            Self::Pgtenant { workers: 1 } => ONE_WORKER,
            Self::Pgtenant { .. } => TWO_WORKERS,
        }
    }
}

struct Cores<'a> {
    ground: &'a Ground<'a>,
    servers: Servers,
    ways: Vec<Way>,
}

pub async fn run(ground: &Ground<'_>) -> Result<Section> {
    let cores = Cores {
        ground,
        servers: Servers::start(INSTANCES)?,
        ways: Way::ALL
            .into_iter()
            .filter(|way| ground.has(way.kind()))
            .collect(),
    };
    let table = |title, figure, scale, decimals| Table {
        title,
        figure,
        scale,
        decimals,
        ratios: RATIOS,
    };
    Ok(Section {
        name: Name::Cores.to_string(),
        title: "From one core to two",
        heads: &["PostgreSQL instances"],
        targets: cores.targets(),
        tables: vec![
            table(
                "Queries per second, thousands (more is better)",
                "tps",
                1e-3,
                0,
            ),
            table(
                "Queries per second of the proxy's CPU, thousands (more is better)",
                "per_cpu_second",
                1e-3,
                0,
            ),
            table("Cores that the proxy keeps busy", "proxy_cores", 1.0, 2),
            table(
                "Cores that clients and servers keep busy",
                "bench_cores",
                1.0,
                2,
            ),
        ],
        note: format!(
            "{CLIENTS} clients, each of which sends {BATCH} queries in one write and waits for all answers; a query is the empty one, as Parse, Bind, \
             Execute and Sync. The servers are no PostgreSQL: they are a thread of the bench that has the answers ready, and the clients only count \
             bytes. A proxy looks at each message all the same, so it is what this machine is short of."
        ),
        runs: rounds(Name::Cores, &cores, ground).await?,
    })
}

impl Cores<'_> {
    async fn start(&self, way: Way) -> Result<Target> {
        let bed = self.ground.bed;
        match way {
            Way::PgBouncer => {
                let databases = NAMES
                    .iter()
                    .zip(&self.servers.ports)
                    .map(|(name, port)| format!("{name} = host=127.0.0.1 port={port}\n"))
                    .collect::<String>();
                bed.pgbouncer_of(self.ground, &databases, &[USER], &Setup::default())
                    .await
            }
            Way::Pgtenant { workers } => pgtenant(bed, &self.servers, workers).await,
        }
    }
}

async fn pgtenant(bed: &Bed, servers: &Servers, workers: u32) -> Result<Target> {
    let place = Place::make()?;
    let mut text = bed
        .filled(include_str!("../../cores.yaml.tmpl"), &place)
        .replace("@workers@", &workers.to_string());
    for (number, port) in servers.ports.iter().enumerate() {
        text = text.replace(&format!("@port_{number}@"), &port.to_string());
    }
    let secret = bed.secret(USER).await?;
    for name in NAMES {
        text.push_str(&format!(
            "  {name}: {{ placement: {name}, users: {{ {USER}: {{ scram: \"{secret}\" }} }} }}\n"
        ));
    }
    let config = place.file("pgtenant.yaml", &text)?;
    bed.serve(place, &config)
}

/// A client of an instance, once the target serves.
async fn log_in(target: &Target, instance: usize) -> Result<Client> {
    let mut door = target.door.clone();
    if target.kind == Kind::PgBouncer {
        door.database = NAMES[instance];
    }
    let user = target.user_of(NAMES[instance]);
    target.patiently(async || door.log_in(&user).await).await
}

impl Workload for Cores<'_> {
    /// Instances.
    type Row = usize;

    fn rows(&self) -> &[usize] {
        &[1, INSTANCES]
    }

    fn labels(instances: &usize) -> Vec<String> {
        vec![instances.to_string()]
    }

    fn targets(&self) -> Vec<&'static str> {
        self.ways.iter().map(|way| way.title()).collect()
    }

    async fn measure(&self, instances: &usize, target: usize) -> Result<Option<Cell>> {
        let way = self.ways[target];
        let row = [way.title().to_owned(), format!("{instances} instances")];
        let target = self.start(way).await?;
        let mut clients = Clients::new();
        let mut batchers = Vec::new();
        for number in 0..CLIENTS {
            let client = log_in(&target, number % instances).await?;
            batchers.push(Batcher::new(client.into_socket()?));
        }
        clients.spawn_batches(batchers);
        let cell = clients
            .measure(self.ground.bed, &target, self.ground.args.seconds())
            .await;
        let cell = cell.map_err(|error| target.failed_under(&row, &error))?;
        let per_cpu_second = cell.get("cpu_us_per_transaction").map(|cpu| 1e6 / cpu);
        // Of batches; and no PostgreSQL has part in it.
        let cell = cell
            .without("latency_ms")
            .without("server_cpu_us_per_transaction");
        Ok(Some(cell.with("per_cpu_second", per_cpu_second)))
    }
}

impl Clients {
    /// One batch after the other, of all clients on one thread, which looks at their sockets each
    /// [`TICK`]: waiting for each would cost a wake-up for everything that comes.
    fn spawn_batches(&mut self, mut batchers: Vec<Batcher>) {
        let tally = self.tally.clone();
        self.tasks.spawn_blocking(move || {
            let messages = server::query().repeat(BATCH as usize);
            let answers = server::answer().len() * BATCH as usize;
            let mut chunk = vec![0; CHUNK];
            while !tally.is_enough() {
                for batcher in &mut batchers {
                    batcher
                        .step(&messages, answers, &tally, &mut chunk)
                        .map_err(|error| {
                            Error::new(format!("a client lost its connection: {error}"))
                        })?;
                }
                std::thread::sleep(TICK);
            }
            Ok(())
        });
    }
}

/// A client that sends batches.
struct Batcher {
    socket: TcpStream,
    began: Instant,
    /// Bytes of the batch, and of its answers, that are still to come.
    unsent: usize,
    unread: usize,
}

impl Batcher {
    fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            began: Instant::now(),
            unsent: 0,
            unread: 0,
        }
    }

    /// Reads what is there, and sends the next batch when that was all.
    fn step(
        &mut self,
        messages: &[u8],
        answers: usize,
        tally: &Tally,
        chunk: &mut [u8],
    ) -> io::Result<()> {
        while self.unread > 0 {
            match self.socket.read(chunk) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    self.unread = self
                        .unread
                        .checked_sub(read)
                        .ok_or_else(|| io::Error::other("more was answered than asked"))?;
                    if self.unread == 0 {
                        tally.add(BATCH.into(), self.began);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if self.unread == 0 {
            (self.began, self.unsent, self.unread) = (Instant::now(), messages.len(), answers);
        }
        while self.unsent > 0 {
            match self.socket.write(&messages[messages.len() - self.unsent..]) {
                Ok(written) => self.unsent -= written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        match self.began.elapsed() < PATIENCE {
            true => Ok(()),
            false => Err(ErrorKind::TimedOut.into()),
        }
    }
}
