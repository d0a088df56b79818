//! From one core to two: as many cheap queries as go through a proxy that is what the machine is short of.

mod server;

use std::time::{Duration, Instant};

use pgtenant::cluster::{Error, Result};

use self::server::{QUERY, Servers};
use super::steady::Clients;
use super::{Ground, Name, Workload, rounds};
use crate::client::{Client, query};
use crate::report::{Cell, Ratios, Section, Table};
use crate::targets::{Bed, Kind, Place, Setup, Target, USER};

/// Queries that a client sends at once, and the answers of which it waits for together.
const BATCH: u32 = 500;
const CLIENTS: u32 = 16;
const INSTANCES: usize = 2;
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

struct Cores<'a> {
    bed: &'a Bed,
    targets: Vec<(&'static str, Target)>,
    seconds: u64,
}

pub async fn run(ground: &Ground<'_>) -> Result<Section> {
    let servers = Servers::start(INSTANCES)?;
    let cores = Cores {
        bed: ground.bed,
        targets: start(ground, &servers).await?,
        seconds: ground.args.seconds(),
    };
    let table = |title, figure, scale, decimals| Table {
        title,
        figure,
        scale,
        decimals,
        ratios: RATIOS,
    };
    let section = Section {
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
            "{CLIENTS} clients, each of which sends {BATCH} Queries `{QUERY}` in one write and waits for all answers. The servers are no PostgreSQL: they are a \
             thread of the bench that has the answer ready, and the clients only count its bytes. Each query is looked at by the proxy all \
             the same, so the proxy is what this machine is short of."
        ),
        runs: rounds(Name::Cores, &cores, ground).await?,
    };
    Ok(section)
}

async fn start(ground: &Ground<'_>, servers: &Servers) -> Result<Vec<(&'static str, Target)>> {
    let mut targets = Vec::new();
    if ground.has(Kind::PgBouncer) {
        let databases = NAMES
            .iter()
            .zip(&servers.ports)
            .map(|(name, port)| format!("{name} = host=127.0.0.1 port={port}\n"))
            .collect::<String>();
        let setup = Setup::default();
        let target = ground
            .bed
            .pgbouncer_of(ground, &databases, &[USER], &setup)
            .await?;
        targets.push((Kind::PgBouncer.title(), target));
    }
    if ground.has(Kind::Pgtenant) {
        for (title, workers) in [(ONE_WORKER, 1), (TWO_WORKERS, 2)] {
            targets.push((title, pgtenant(ground.bed, servers, workers).await?));
        }
    }
    for (_, target) in &targets {
        log_in(target, 0).await?;
    }
    Ok(targets)
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
        self.targets.iter().map(|(title, _)| *title).collect()
    }

    async fn measure(&self, instances: &usize, target: usize) -> Result<Option<Cell>> {
        let (title, target) = &self.targets[target];
        let row = [(*title).to_owned(), format!("{instances} instances")];
        let mut clients = Clients::new();
        for number in 0..CLIENTS as usize {
            let client = log_in(target, number % instances).await?;
            clients.spawn_batches(client);
        }
        let cell = clients.measure(self.bed, target, self.seconds).await;
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
    /// One batch after the other.
    fn spawn_batches(&mut self, mut client: Client) {
        let tally = self.tally.clone();
        self.tasks.spawn(async move {
            let messages = query(QUERY).repeat(BATCH as usize);
            let bytes = server::answer().len() * BATCH as usize;
            client.make_room(bytes);
            while !tally.is_enough() {
                let began = Instant::now();
                let done = client.exchange_blindly(&messages, bytes);
                tokio::time::timeout(PATIENCE, done)
                    .await
                    .unwrap_or_else(|_| {
                        Err(Error::new("fewer answers came than were asked for"))
                    })?;
                tally.add(BATCH.into(), began);
            }
            client.close().await
        });
    }
}
