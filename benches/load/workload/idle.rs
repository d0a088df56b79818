//! Clients that have logged in, have run one query and do nothing: what each of them keeps of the
//! proxy's memory. The proxies are started anew for each cell.

use std::time::Duration;

use pgtenant::cluster::{Error, Result};
use tokio::task::JoinSet;

use super::{Ground, Name, Workload, rounds};
use crate::client::{Client, Door, query};
use crate::memory;
use crate::report::{Cell, MEGABYTE, Section, Table, VERSUS_PGBOUNCER};
use crate::targets::{Kind, Setup, Target, start_one};

/// That log in at the same time.
const AT_ONCE: u32 = 32;
/// For the proxy to let go of what logins took.
const SETTLING: Duration = Duration::from_secs(1);
/// Beside the clients, for who looks whether the proxy serves.
const SPARE: u32 = 100;

#[derive(Debug, Clone, Copy)]
struct Crowd {
    clients: u32,
    tls: bool,
}

struct Idle<'a> {
    ground: &'a Ground<'a>,
    kinds: Vec<Kind>,
    crowds: Vec<Crowd>,
}

pub async fn run(ground: &Ground<'_>) -> Result<Section> {
    let args = ground.args;
    let crowd = |clients, tls| Crowd { clients, tls };
    let crowds = [crowd(args.idle(), false), crowd(args.idle_tls(), true)];
    let idle = Idle {
        ground,
        kinds: ground.kinds(Kind::pools),
        crowds: crowds
            .into_iter()
            .filter(|crowd| crowd.clients > 0)
            .collect(),
    };
    let most = idle.crowds.iter().map(|crowd| crowd.clients).max();
    enough_files(u64::from(most.unwrap_or(0) + SPARE))?;
    let table = |title, figure, scale, decimals| Table {
        title,
        figure,
        scale,
        decimals,
        ratios: VERSUS_PGBOUNCER,
    };
    Ok(Section {
        name: Name::Idle.to_string(),
        title: "Idle clients",
        heads: &["clients", "TLS"],
        targets: ground.titles(),
        tables: vec![
            table("Resident memory of the proxy per client, bytes (less is better)", "bytes_per_client", 1.0, 0),
            table("All of it, MB", "resident", 1.0 / MEGABYTE, 1),
        ],
        note: "All have logged in and run one query, on 20 server connections that they share. VmRSS with all clients, less that \
               without any, by their number; what the kernel keeps for sockets is not in it. Two rounds at most. Direct and behind haproxy each client \
               has a process of the server: –."
            .to_owned(),
        runs: rounds(Name::Idle, &idle, ground).await?,
    })
}

/// # Errors
/// This process may not open so many; what it starts has the same limit.
fn enough_files(wanted: u64) -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit};
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    match limit >= wanted {
        true => Ok(()),
        false => Err(Error::new(format!(
            "{wanted} open files are needed and {limit} allowed (ulimit -n): ask for fewer clients with --idle"
        ))),
    }
}

/// They share the work of logging in, and none of them does anything else.
async fn log_in_all(door: &Door, user: &str, clients: u32) -> Result<Vec<Client>> {
    let mut tasks = JoinSet::new();
    for first in 0..AT_ONCE.min(clients) {
        let (door, user) = (door.clone(), user.to_owned());
        tasks.spawn(async move {
            let mut mine = Vec::new();
            for _ in (first..clients).step_by(AT_ONCE as usize) {
                let mut client = door.log_in(&user).await?;
                client.exchange(&query("SELECT 1")).await?;
                mine.push(client);
            }
            Ok::<_, Error>(mine)
        });
    }
    let mut all = Vec::new();
    while let Some(done) = tasks.join_next().await {
        all.extend(done.map_err(|error| Error::new(error.to_string()))??);
    }
    Ok(all)
}

impl Workload for Idle<'_> {
    type Row = Crowd;
    const ROUNDS: u32 = 2;

    fn rows(&self) -> &[Crowd] {
        &self.crowds
    }

    fn labels(crowd: &Crowd) -> Vec<String> {
        let tls = if crowd.tls { "yes" } else { "no" };
        vec![crowd.clients.to_string(), tls.to_owned()]
    }

    fn targets(&self) -> Vec<&'static str> {
        self.kinds.iter().map(|kind| kind.title()).collect()
    }

    async fn measure(&self, crowd: &Crowd, target: usize) -> Result<Option<Cell>> {
        let setup = Setup {
            tls: crowd.tls,
            clients: crowd.clients + SPARE,
            ..Setup::default()
        };
        let target: Target = start_one(self.ground, self.kinds[target], &setup).await?;
        let failed = |error| target.failed_under(&Self::labels(crowd), &error);
        let resident = || target.pid().and_then(memory::resident);
        let before = resident();
        let clients = log_in_all(&target.door, &target.user, crowd.clients)
            .await
            .map_err(failed)?;
        tokio::time::sleep(SETTLING).await;
        let after = resident();
        // Before the proxy, which would wait for them.
        drop(clients);
        let each = |(after, before): (f64, f64)| (after - before) / f64::from(crowd.clients);
        Ok(Some(
            Cell::default()
                .with("resident_before", before)
                .with("resident", after)
                .with("bytes_per_client", after.zip(before).map(each)),
        ))
    }
}
