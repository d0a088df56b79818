//! Every client another tenant: what `select` does, but pgtenant sets the context of one tenant
//! after the other on its server connections, while PgBouncer's clients are all the same user and
//! nobody sets anything.

use pgtenant::cluster::Result;
use rand::Rng as _;

use super::steady::Clients;
use super::{Ground, Name, Workload, rounds};
use crate::client;
use crate::pgbench::{Load, Protocol};
use crate::report::{CPU, Cell, LATENCY, SERVER_CPU, Section, TPS};
use crate::targets::{Bed, Kind, POOL_SIZE, Setup, Target, start, tenant, titles};

struct Tenants<'a> {
    bed: &'a Bed,
    targets: Vec<Target>,
    loads: Vec<Load>,
    seconds: u64,
    /// Of pgbench_accounts.
    rows: u32,
}

pub async fn run(ground: &Ground<'_>) -> Result<Section> {
    let loads: Vec<Load> = super::select::loads(ground, false)
        .into_iter()
        .filter(|load| load.clients > 1 && load.protocol != Protocol::Prepared)
        .collect();
    let setup = Setup {
        tenants: loads.iter().map(|load| load.clients).max().unwrap_or(0),
        ..Setup::default()
    };
    let workload = Tenants {
        bed: ground.bed,
        targets: start(ground, &ground.kinds(Kind::pools), &setup).await?,
        loads,
        seconds: ground.args.seconds(),
        rows: ground.args.scale * 100_000,
    };
    Ok(Section {
        name: Name::Tenants.to_string(),
        title: "Every client another tenant",
        heads: &["protocol", "clients"],
        targets: workload.targets(),
        tables: vec![TPS, CPU, SERVER_CPU, LATENCY],
        note: format!(
            "One row of pgbench_accounts by its primary key, by the bench's own client. Each client of pgtenant is another tenant, \
             whose variable is set before its statement; all share {POOL_SIZE} server connections. The clients of PgBouncer are all \
             one user, and nobody sets anything for them. No row level security, so the query's work is the same; what the \
             server does to change the tenant is in pgtenant's column of the server's CPU."
        ),
        runs: rounds(Name::Tenants, &workload, ground).await?,
    })
}

/// One row by its primary key, as `pgbench -S`.
pub fn select(protocol: Protocol, rows: u32) -> Vec<u8> {
    let id = rand::rng().random_range(1..=rows);
    let sql = "SELECT abalance FROM pgbench_accounts WHERE aid = ";
    match protocol {
        Protocol::Simple => client::query(&format!("{sql}{id}")),
        Protocol::Extended | Protocol::Prepared => {
            client::extended(&format!("{sql}$1"), &id.to_string())
        }
    }
}

impl Workload for Tenants<'_> {
    type Row = Load;

    fn rows(&self) -> &[Load] {
        &self.loads
    }

    fn labels(load: &Load) -> Vec<String> {
        load.labels()
    }

    fn targets(&self) -> Vec<&'static str> {
        titles(&self.targets)
    }

    async fn measure(&self, load: &Load, target: usize) -> Result<Option<Cell>> {
        let target = &self.targets[target];
        let failed = |error| target.failed_under(&load.labels(), &error);
        let mut clients = Clients::new();
        for number in 0..load.clients {
            let user = target.user_of(&tenant(number));
            let client = target.door.log_in(&user).await.map_err(failed)?;
            clients.spawn_selects(client, load.protocol, self.rows);
        }
        let cell = clients.measure(self.bed, target, self.seconds).await;
        Ok(Some(cell.map_err(failed)?))
    }
}

impl Clients {
    /// One SELECT after the other.
    fn spawn_selects(&mut self, mut client: client::Client, protocol: Protocol, rows: u32) {
        let tally = self.tally.clone();
        self.tasks.spawn(async move {
            while !tally.is_enough() {
                let messages = select(protocol, rows);
                let began = std::time::Instant::now();
                client.exchange(&messages).await?;
                tally.add(1, began);
            }
            client.close().await
        });
    }
}
