//! One client that sends a SELECT, waits for the answer and sends the next: how much later that
//! comes through a proxy.

use std::time::Instant;

use pgtenant::cluster::Result;

use super::tenants::select;
use super::{Ground, Name, Workload, rounds};
use crate::pgbench::Protocol;
use crate::report::{Cell, Section, Table, VERSUS_PGBOUNCER};
use crate::targets::{Setup, Target, start, titles};

/// Transactions of a cell.
const TIMES: usize = 10_000;
/// Before, which are not measured.
const WARM_UP: usize = 500;

struct Latency {
    targets: Vec<Target>,
    /// Of pgbench_accounts.
    rows: u32,
}

pub async fn run(ground: &Ground<'_>) -> Result<Section> {
    let latency = Latency {
        targets: start(ground, &ground.args.targets, &Setup::default()).await?,
        rows: ground.args.scale * 100_000,
    };
    let table = |title, figure| Table {
        title,
        figure,
        scale: 1.0,
        decimals: 1,
        ratios: VERSUS_PGBOUNCER,
    };
    Ok(Section {
        name: Name::Latency.to_string(),
        title: "Latency of one client",
        heads: &["protocol"],
        targets: ground.titles(),
        tables: vec![
            table("Median, µs (less is better)", "median_us"),
            table("99 of 100 are not slower, µs (less is better)", "p99_us"),
        ],
        note: format!(
            "{TIMES} SELECTs of one row by its primary key, one after the other on one connection, by the bench's own client."
        ),
        runs: rounds(Name::Latency, &latency, ground).await?,
    })
}

impl Workload for Latency {
    type Row = Protocol;

    fn rows(&self) -> &[Protocol] {
        &[Protocol::Simple, Protocol::Extended]
    }

    fn labels(protocol: &Protocol) -> Vec<String> {
        vec![protocol.to_string()]
    }

    fn targets(&self) -> Vec<&'static str> {
        titles(&self.targets)
    }

    async fn measure(&self, protocol: &Protocol, target: usize) -> Result<Option<Cell>> {
        let target = &self.targets[target];
        let failed = |error| target.failed_under(&Self::labels(protocol), &error);
        let mut client = target.door.log_in(&target.user).await.map_err(failed)?;
        let mut took = Vec::with_capacity(TIMES);
        for time in 0..WARM_UP + TIMES {
            let messages = select(*protocol, self.rows);
            let began = Instant::now();
            client.exchange(&messages).await.map_err(failed)?;
            if time >= WARM_UP {
                took.push(began.elapsed().as_secs_f64() * 1e6);
            }
        }
        client.close().await?;
        took.sort_by(f64::total_cmp);
        Ok(Some(
            Cell::default()
                .with("median_us", took[TIMES / 2])
                .with("p99_us", took[TIMES * 99 / 100]),
        ))
    }
}
