//! Clients that stay for one query: connect, log in with SCRAM-SHA-256, `SELECT 1`, Terminate.

use std::time::Instant;

use pgtenant::cluster::Result;

use super::steady::Clients;
use super::{Ground, Name, Workload, rounds};
use crate::client::{Door, query};
use crate::report::{CPU, Cell, LATENCY, Section, TPS, Table};
use crate::targets::{Bed, Setup, Target, start, titles};

/// Connectors, each of which makes one connection after the other.
const CONNECTORS: [u32; 2] = [1, 16];

struct Connect<'a> {
    bed: &'a Bed,
    targets: Vec<Target>,
    seconds: u64,
}

pub async fn run(ground: &Ground<'_>) -> Result<Section> {
    let connect = Connect {
        bed: ground.bed,
        targets: start(ground, &ground.args.targets, &Setup::default()).await?,
        seconds: ground.args.seconds(),
    };
    let titled = |title, table: Table| Table { title, ..table };
    Ok(Section {
        name: Name::Connect.to_string(),
        title: "Connect, log in, `SELECT 1`, disconnect",
        heads: &["connectors"],
        targets: ground.titles(),
        tables: vec![
            titled("CPU time of the proxy per connection, µs (less is better)", CPU),
            titled("Connections per second (more is better)", TPS),
            titled("From the first packet to the last answer, ms (less is better)", LATENCY),
        ],
        note: "SCRAM-SHA-256 without TLS. PgBouncer's auth_file and pgtenant's config have the SCRAM secret, as PostgreSQL's pg_authid has it, \
               which is what auth_query gives too; a password in PgBouncer's auth_file would cost it 4096 rounds of HMAC for each \
               login. The clients derive their keys once and not for each connection, which would take more than all else together. \
               Direct and behind haproxy each connection is a new process of the server."
            .to_owned(),
        runs: rounds(Name::Connect, &connect, ground).await?,
    })
}

impl Workload for Connect<'_> {
    type Row = u32;

    fn rows(&self) -> &[u32] {
        &CONNECTORS
    }

    fn labels(connectors: &u32) -> Vec<String> {
        vec![connectors.to_string()]
    }

    fn targets(&self) -> Vec<&'static str> {
        titles(&self.targets)
    }

    async fn measure(&self, connectors: &u32, target: usize) -> Result<Option<Cell>> {
        let target = &self.targets[target];
        let mut clients = Clients::new();
        for _ in 0..*connectors {
            clients.spawn_connector(target.door.clone(), target.user.clone());
        }
        let cell = clients.measure(self.bed, target, self.seconds).await;
        let failed = |error| target.failed_under(&[format!("{connectors} connectors")], &error);
        // A server process that ends takes what it has used along.
        let cell = cell.map_err(failed)?;
        Ok(Some(cell.without("server_cpu_us_per_transaction")))
    }
}

impl Clients {
    /// One connection after the other.
    fn spawn_connector(&mut self, door: Door, user: String) {
        let tally = self.tally.clone();
        self.tasks.spawn(async move {
            while !tally.is_enough() {
                let began = Instant::now();
                let mut client = door.log_in(&user).await?;
                client.exchange(&query("SELECT 1")).await?;
                tally.add(1, began);
                client.close().await?;
            }
            Ok(())
        });
    }
}
