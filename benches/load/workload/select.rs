//! `pgbench -S`, all clients of one tenant, without TLS or in it.

use pgtenant::cluster::Result;

use super::{Ground, Name, Workload, rounds};
use crate::pgbench::{Load, Pgbench, Protocol};
use crate::report::{CPU, Cell, LATENCY, Section, TPS};
use crate::targets::{Bed, Kind, POOL_SIZE, Setup, Target, start, titles};

/// Most clients in TLS: beyond, the logins take longer than what is measured.
const MOST_IN_TLS: u32 = 64;

struct Select<'a> {
    bed: &'a Bed,
    targets: Vec<Target>,
    loads: Vec<Load>,
    seconds: u64,
}

/// The clients' protocols and numbers.
pub fn loads(ground: &Ground<'_>, tls: bool) -> Vec<Load> {
    let args = ground.args;
    // PgBouncer without prepared statements leaves nothing to compare in TLS.
    let protocols = args.protocols.iter().copied().filter(|&protocol| {
        !tls || protocol != Protocol::Prepared || ground.machine.pgbouncer_prepares()
    });
    let clients = args
        .clients
        .iter()
        .copied()
        .filter(move |&clients| !tls || (2..=MOST_IN_TLS).contains(&clients));
    protocols
        .flat_map(|protocol| {
            clients
                .clone()
                .map(move |clients| Load { protocol, clients })
        })
        .collect()
}

pub async fn run(ground: &Ground<'_>, tls: bool) -> Result<Section> {
    let setup = Setup {
        tls,
        ..Setup::default()
    };
    let kinds = ground.kinds(|kind| !tls || kind.pools());
    let select = Select {
        bed: ground.bed,
        targets: start(ground, &kinds, &setup).await?,
        loads: loads(ground, tls),
        seconds: ground.args.seconds(),
    };
    let (name, title) = match tls {
        false => (Name::Select, "One tenant: `pgbench -S`"),
        true => (
            Name::Tls,
            "TLS on the client's side: `pgbench -S`, sslmode=require",
        ),
    };
    let note = match tls {
        false => note(ground),
        true => tls_note(&select.targets).await,
    };
    Ok(Section {
        name: name.to_string(),
        title,
        heads: &["protocol", "clients"],
        targets: ground.titles(),
        tables: vec![TPS, CPU, LATENCY],
        note,
        runs: rounds(name, &select, ground).await?,
    })
}

fn note(ground: &Ground<'_>) -> String {
    let without_prepared = match ground.has(Kind::PgBouncer) && !ground.machine.pgbouncer_prepares()
    {
        true => {
            " –: PgBouncer before 1.21 has no prepared statements in transaction pooling, and in session pooling it would \
             need a server connection for each client."
        }
        false => "",
    };
    format!(
        "Scale {}. haproxy is a plain TCP relay with one thread; PgBouncer (transaction pooling) and pgtenant have {POOL_SIZE} \
         server connections, direct and haproxy one for each client. pgtenant serves a tenant of the pool tier, with its \
         variable injected; the tables have no row level security, so that the server's work is the same for all.{without_prepared}",
        ground.args.scale
    )
}

async fn tls_note(targets: &[Target]) -> String {
    let mut ciphers = Vec::new();
    for target in targets {
        if let Some(cipher) = target.cipher().await {
            ciphers.push(format!("{} {cipher}", target.kind.title()));
        }
    }
    let ciphers = match ciphers.is_empty() {
        true => String::new(),
        false => format!(" What OpenSSL's client is given: {}.", ciphers.join("; ")),
    };
    format!(
        "The same, with a certificate of ECDSA P-256; between proxy and server there is no TLS. haproxy does not know \
         PostgreSQL's SSLRequest and can end no TLS here; direct is not measured: –.{ciphers}"
    )
}

impl Workload for Select<'_> {
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
        if !target.serves(load.protocol) {
            return Ok(None);
        }
        let cell = Pgbench::new(self.bed)
            .run(target, *load, self.seconds)
            .await?;
        Ok(Some(cell))
    }
}
