//! Much data through one connection, out of the server and into it, and what a proxy needs for
//! that.

use std::time::Instant;

use pgtenant::cluster::Result;
use pgtenant::protocol::frame::{FrontendTag, frame};

use super::{Ground, Name, Workload, rounds};
use crate::client::{Client, query};
use crate::cpu::{self, Usage};
use crate::memory;
use crate::report::{Cell, MEGABYTE, Ratios, Section, Table, VERSUS};
use crate::targets::{Bed, DATABASE, Setup, Target, USER, start, titles};

/// Rows of a transfer, and bytes of each beside what the protocol adds.
const ROWS: usize = 1_000_000;
const WIDTH: usize = 200;
/// What psql puts into a CopyData.
const COPY_DATA: usize = 8192;
/// What the client writes and reads at once.
const CHUNK: usize = 256 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    CopyOut,
    Rows,
    CopyIn,
}

impl Way {
    const ALL: [Self; 3] = [Self::CopyOut, Self::Rows, Self::CopyIn];

    fn title(self) -> &'static str {
        match self {
            Self::CopyOut => "out, COPY (SELECT …) TO STDOUT",
            Self::Rows => "out, SELECT",
            Self::CopyIn => "in, COPY … FROM STDIN",
        }
    }
}

struct Bulk<'a> {
    bed: &'a Bed,
    targets: Vec<Target>,
    /// CopyData messages of whole lines.
    lines: Vec<u8>,
}

pub async fn run(ground: &Ground<'_>) -> Result<Section> {
    let sql = format!(
        "CREATE UNLOGGED TABLE bulk (id bigint, body text); GRANT INSERT ON bulk TO {USER}"
    );
    ground.bed.cluster.run(DATABASE, &sql).await?;
    let bulk = Bulk {
        bed: ground.bed,
        targets: start(ground, &ground.args.targets, &Setup::default()).await?,
        lines: lines(),
    };
    let table = |title, figure, scale, decimals, ratios: Ratios| Table {
        title,
        figure,
        scale,
        decimals,
        ratios,
    };
    Ok(Section {
        name: Name::Bulk.to_string(),
        title: "Bulk: 200 MB through one connection",
        heads: &["what"],
        targets: ground.titles(),
        tables: vec![
            table(
                "CPU time of the proxy per GB, s (less is better)",
                "cpu_s_per_gb",
                1.0,
                3,
                VERSUS,
            ),
            table("GB per second (more is better)", "gb_per_s", 1.0, 3, VERSUS),
            table(
                "Resident memory of the proxy before, MB",
                "resident_before",
                1.0 / MEGABYTE,
                1,
                &[],
            ),
            table(
                "The most that it rises by meanwhile, MB (less is better)",
                "resident_growth",
                1.0 / MEGABYTE,
                2,
                &[],
            ),
        ],
        note: format!(
            "{ROWS} rows of {WIDTH} bytes, which the server makes out of nothing (`generate_series`, `repeat`), or takes in \
             and throws away (`COPY … WHERE false`): neither a disk nor a table is waited for. In: CopyData of {COPY_DATA} bytes, as psql \
             sends them. A GB is 10⁹ bytes of the protocol. Memory: VmRSS before, and VmHWM, which is set back before each transfer."
        ),
        runs: rounds(Name::Bulk, &bulk, ground).await?,
    })
}

fn lines() -> Vec<u8> {
    let line = format!("1\t{}\n", "x".repeat(WIDTH - 3));
    let message = frame(
        FrontendTag::COPY_DATA.0,
        &[line.repeat(COPY_DATA / line.len()).as_bytes()],
    );
    message.repeat(CHUNK / message.len())
}

impl Bulk<'_> {
    /// Returns the bytes that went through.
    async fn transfer(&self, client: &mut Client, way: Way) -> Result<usize> {
        let rows = format!(
            "SELECT generate_series(1, {ROWS}), repeat('x', {})",
            WIDTH - 7
        );
        match way {
            Way::CopyOut => {
                client
                    .exchange(&query(&format!("COPY ({rows}) TO STDOUT")))
                    .await
            }
            Way::Rows => client.exchange(&query(&rows)).await,
            Way::CopyIn => {
                client
                    .exchange(&query("COPY bulk FROM STDIN WHERE false"))
                    .await?;
                let mut sent = 0;
                while sent < ROWS * WIDTH {
                    client.send(&self.lines).await?;
                    sent += self.lines.len();
                }
                client
                    .exchange(&frame(FrontendTag::COPY_DONE.0, &[]))
                    .await?;
                Ok(sent)
            }
        }
    }
}

impl Workload for Bulk<'_> {
    type Row = Way;

    fn rows(&self) -> &[Way] {
        &Way::ALL
    }

    fn labels(way: &Way) -> Vec<String> {
        vec![way.title().to_owned()]
    }

    fn targets(&self) -> Vec<&'static str> {
        titles(&self.targets)
    }

    async fn measure(&self, way: &Way, target: usize) -> Result<Option<Cell>> {
        let target = &self.targets[target];
        let failed = |error| target.failed_under(&Self::labels(way), &error);
        let mut client = target.door.log_in(&target.user).await.map_err(failed)?;
        client.make_room(CHUNK);
        // What a connection costs at first is not of the transfer.
        client.exchange(&query("SELECT 1")).await.map_err(failed)?;
        let pid = target.pid();
        if let Some(pid) = pid {
            memory::forget_peak(pid);
        }
        let resident = pid.and_then(memory::resident);
        let used = pid.and_then(cpu::used);
        let server = self
            .bed
            .cluster
            .pid()
            .map(Usage::of_family)
            .unwrap_or_default();
        let began = Instant::now();
        let bytes = self.transfer(&mut client, *way).await.map_err(failed)?;
        let seconds = began.elapsed().as_secs_f64();
        let used = pid
            .and_then(cpu::used)
            .zip(used)
            .map(|(now, then)| now.saturating_sub(then));
        let server_now = self
            .bed
            .cluster
            .pid()
            .map(Usage::of_family)
            .unwrap_or_default();
        let peak = pid.and_then(memory::peak);
        client.close().await?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let gigabytes = bytes as f64 / 1e9;
        Ok(Some(
            Cell::default()
                .with("gigabytes", gigabytes)
                .with("seconds", seconds)
                .with("gb_per_s", gigabytes / seconds)
                .with(
                    "cpu_s_per_gb",
                    used.map(|used| used.as_secs_f64() / gigabytes),
                )
                .with(
                    "server_cpu_s_per_gb",
                    server_now.since(&server).as_secs_f64() / gigabytes,
                )
                .with("resident_before", resident)
                .with("resident_peak", peak)
                .with(
                    "resident_growth",
                    peak.zip(resident)
                        .map(|(peak, before)| (peak - before).max(0.0)),
                ),
        ))
    }
}
