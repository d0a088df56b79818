//! The tenant-switch workload: many tenants on few server connections, each transaction another tenant's. What it is
//! and how it is taken: `benches/README.md`.

mod client;
mod report;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pgtenant::cluster::{Error, Process, Result, dying_with_us};
use tokio::task::JoinSet;

use self::client::{Client, Talk, Tally};
use crate::cpu::Usage;
use crate::targets::{Bed, DATABASE, ENDING, Kind, Place, Programs, Target, USER};

pub use self::report::Report;

/// Tenants that have rows.
pub const TENANTS: u32 = 200;
/// Keys of each tenant, and rows of each key.
const KEYS: u32 = 500;
const ROWS: u32 = 3;
/// Who is not subject to the policies.
const BYPASSING: &str = "bare";
const SEALING: Duration = Duration::from_secs(30);
const WARM_UP: Duration = Duration::from_secs(1);
/// Logins, and the end, may take so much longer than what was asked for.
const PATIENCE: Duration = Duration::from_secs(60);

/// How the tenant of a transaction is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Nobody sets it: the ceiling.
    Bare,
    Application,
    Plain,
    Sealed,
}

impl Way {
    pub const ALL: [Self; 4] = [Self::Bare, Self::Application, Self::Plain, Self::Sealed];

    fn title(self) -> &'static str {
        match self {
            Self::Bare => "PgBouncer, tenant spelled out",
            Self::Application => "PgBouncer, application sets",
            Self::Plain => "pgtenant, plain",
            Self::Sealed => "pgtenant, sealed",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::Bare | Self::Application => Kind::PgBouncer,
            Self::Plain | Self::Sealed => Kind::Pgtenant,
        }
    }

    fn talk(self) -> Talk {
        match self {
            Self::Bare => Talk::Spelled,
            Self::Application => Talk::SetConfig,
            Self::Plain | Self::Sealed => Talk::Plain,
        }
    }

    /// Whom the client logs in as.
    fn user(self, tenant: &str) -> String {
        match self {
            Self::Bare => BYPASSING.to_owned(),
            Self::Application => USER.to_owned(),
            Self::Plain | Self::Sealed => format!("{USER}.{tenant}"),
        }
    }
}

/// A cell of the tables in one round.
pub struct Run {
    pub round: u32,
    pub tenants: u32,
    pub way: Way,
    pub cell: Cell,
}

impl Run {
    pub fn show(&self) {
        let Self {
            tenants, way, cell, ..
        } = self;
        eprintln!(
            "{tenants} tenants, {}: {:.0}/s, {:.1} µs of the server's CPU each, {:.1} of the proxy's",
            way.title(),
            cell.tps,
            cell.server_us,
            cell.proxy_us
        );
    }
}

#[derive(Debug, Clone)]
pub struct Cell {
    pub transactions: u64,
    pub seconds: f64,
    pub tps: f64,
    pub latency_ms: f64,
    /// CPU time for each transaction, µs: of all processes of the cluster, and of the proxy.
    pub server_us: f64,
    pub proxy_us: f64,
}

/// One table, read under two roles: `app` by the variable, `sealed` by the seal.
fn sql(password: &str) -> String {
    format!(
        "CREATE ROLE sealed LOGIN PASSWORD '{password}';
CREATE ROLE {BYPASSING} LOGIN BYPASSRLS PASSWORD '{password}';
CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id text NOT NULL, key integer NOT NULL, body text NOT NULL);
INSERT INTO orders (tenant_id, key, body)
    SELECT 't' || t, k, repeat('x', 80)
    FROM generate_series(1, {ROWS}), generate_series(0, {KEYS} - 1) k, generate_series(0, {TENANTS} - 1) t;
CREATE INDEX ON orders (tenant_id, key);
ALTER TABLE orders ENABLE ROW LEVEL SECURITY;
ALTER TABLE orders FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON orders TO {USER} USING (tenant_id = (SELECT current_setting('app.tenant_id', true)));
CREATE POLICY sealed ON orders TO sealed USING (tenant_id = (SELECT pgtenant.tenant_id()));
GRANT SELECT ON orders TO {USER}, sealed, {BYPASSING};"
    )
}

/// The proxies of this workload.
pub struct Targets(Vec<(Way, Target)>);

impl Targets {
    /// Fills the table, starts the proxies and waits until each serves.
    pub async fn start(bed: &Bed, programs: &Programs) -> Result<Self> {
        let sealed = pgtenant(bed, "sealed", "sealed")?;
        seal(&sealed.1).await?;
        bed.cluster.run(DATABASE, &sql(&bed.password)).await?;
        bed.cluster
            .run(DATABASE, "VACUUM (FREEZE, ANALYZE)")
            .await?;
        bed.cluster.run(DATABASE, "CHECKPOINT").await?;
        let serve = |place: Place, config: &Path| {
            let program = Path::new(env!("CARGO_BIN_EXE_pgtenant"));
            let user = Way::Plain.user("t0");
            place.start(Kind::Pgtenant, &user, Some(program), |command| {
                command.arg("serve").arg("--config").arg(config);
            })
        };
        let plain = pgtenant(bed, USER, "plain")?;
        let targets = vec![
            (
                Way::Bare,
                bed.pgbouncer(programs, false, &[USER, BYPASSING])?,
            ),
            (
                Way::Application,
                bed.pgbouncer(programs, false, &[USER, BYPASSING])?,
            ),
            (Way::Plain, serve(plain.0, &plain.1)?),
            (Way::Sealed, serve(sealed.0, &sealed.1)?),
        ];
        for (way, target) in &targets {
            let tenant = match way.kind() {
                Kind::Pgtenant => "t0",
                _ => "",
            };
            target.ready(&bed.password, tenant).await?;
        }
        Ok(Self(targets))
    }

    /// Each target once, the `round`th first.
    pub async fn run(
        &self,
        bed: &Bed,
        round: u32,
        tenants: u32,
        seconds: u64,
        mut done: impl FnMut(Run),
    ) -> Result<()> {
        for turn in 0..self.0.len() {
            let (way, target) = &self.0[(turn + round as usize) % self.0.len()];
            let failed = |error: Error| {
                target.failed(&format!(
                    "under {tenants} tenants, {}: {error}",
                    way.title()
                ))
            };
            let cell = cell(bed, *way, target, tenants, seconds)
                .await
                .map_err(failed)?;
            done(Run {
                round,
                tenants,
                way: *way,
                cell,
            });
            tokio::time::sleep(crate::PAUSE).await;
        }
        Ok(())
    }
}

/// A config with all tenants, whose placement is in `posture` and logs in as `login`.
fn pgtenant(bed: &Bed, login: &str, posture: &str) -> Result<(Place, std::path::PathBuf)> {
    let place = Place::make()?;
    let mut text = bed
        .filled(include_str!("../switch.yaml.tmpl"), &place)
        .replace("@login@", login)
        .replace("@posture@", posture)
        .replace("@admin_password@", bed.cluster.superuser_password());
    for tenant in 0..TENANTS {
        text.push_str(&format!(
            "  t{tenant}: {{ placement: shared, users: {{ {USER}: {{ password: \"{}\" }} }} }}\n",
            bed.password
        ));
    }
    let config = place.file("pgtenant.yaml", &text)?;
    Ok((place, config))
}

async fn seal(config: &Path) -> Result<()> {
    let mut command: Command =
        dying_with_us(Path::new(env!("CARGO_BIN_EXE_pgtenant")), Signal::SIGTERM);
    command
        .args(["seal", "--server", "postgresql", "--config"])
        .arg(config)
        .stdout(std::process::Stdio::null());
    let process = Process::start("pgtenant seal", command, ENDING)?;
    match process.ended(SEALING).await {
        Some(status) if status.success() => Ok(()),
        status => Err(Error::new(format!("pgtenant seal failed: {status:?}"))),
    }
}

/// One run: logins and a second that are not measured, then `seconds` that are.
async fn cell(bed: &Bed, way: Way, target: &Target, tenants: u32, seconds: u64) -> Result<Cell> {
    let tally = Arc::new(Tally::default());
    let mut clients = JoinSet::new();
    for tenant in 0..tenants {
        let tenant = format!("t{tenant}");
        let user = way.user(&tenant);
        let client = Client::log_in(target.port, &user, &bed.password, tenant, way.talk()).await?;
        clients.spawn(client.work(tally.clone()));
    }
    let measure = async {
        tokio::time::sleep(WARM_UP).await;
        let before = Snapshot::take(bed, target, &tally);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let after = Snapshot::take(bed, target, &tally);
        after.since(&before)
    };
    // A client that fails ends all: none ends of itself before it is told to.
    let cell = tokio::select! {
        cell = measure => cell,
        Some(ended) = clients.join_next() => return match ended {
            Ok(Err(error)) => Err(error),
            _ => Err(Error::new("a client ended early")),
        },
    };
    tally.enough.store(true, Relaxed);
    let ending = async {
        while let Some(ended) = clients.join_next().await {
            ended.map_err(|error| Error::new(error.to_string()))??;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, ending)
        .await
        .unwrap_or_else(|_| Err(Error::new("clients do not end")))?;
    Ok(cell)
}

struct Snapshot {
    at: Instant,
    transactions: u64,
    latency: u64,
    server: Usage,
    proxy: Usage,
}

impl Snapshot {
    fn take(bed: &Bed, target: &Target, tally: &Tally) -> Self {
        Self {
            at: Instant::now(),
            transactions: tally.transactions.load(Relaxed),
            latency: tally.latency.load(Relaxed),
            server: bed.cluster.pid().map(Usage::of_family).unwrap_or_default(),
            proxy: target.pid().map(Usage::of).unwrap_or_default(),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of a few seconds")]
    fn since(&self, before: &Self) -> Cell {
        let transactions = self.transactions - before.transactions;
        let seconds = (self.at - before.at).as_secs_f64();
        let each = |total: f64| total / transactions.max(1) as f64;
        Cell {
            transactions,
            seconds,
            tps: transactions as f64 / seconds,
            latency_ms: each((self.latency - before.latency) as f64 / 1e6),
            server_us: each(self.server.since(&before.server).as_secs_f64() * 1e6),
            proxy_us: each(self.proxy.since(&before.proxy).as_secs_f64() * 1e6),
        }
    }
}
