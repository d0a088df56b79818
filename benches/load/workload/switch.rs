//! A tenant switch for each transaction: many tenants on few server connections, each transaction
//! another tenant's, and what keeps them apart is read. What it is and how it is taken:
//! `benches/README.md`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pgtenant::cluster::{Error, Process, Result, dying_with_us};
use rand::Rng as _;

use super::steady::Clients;
use pgtenant::protocol::reply::SYNC;

use super::{Ground, Name, Workload, rounds};
use crate::client::{Client, query, unsynced};
use crate::report::{CPU, Cell, LATENCY, Ratios, SERVER_CPU, Section, TPS, Table};
use crate::targets::{Bed, DATABASE, ENDING, Kind, POOL_SIZE, Place, Setup, Target, USER, tenant};

/// Tenants that have rows.
pub const TENANTS: u32 = 200;
/// Keys of each tenant, and rows of each key.
const KEYS: u32 = 500;
const ROWS: u32 = 3;
/// Who is not subject to the policies.
const BYPASSING: &str = "bare";
/// Who logs in to pgtenant for all tenants.
const APPLICATION: &str = "web";
const SEALING: Duration = Duration::from_secs(30);

/// What pgtenant is compared with.
const RATIOS: Ratios = &[
    (Way::Plain.title(), Way::Application.title()),
    (Way::Sealed.title(), Way::Application.title()),
    (Way::Chosen.title(), Way::Application.title()),
    (Way::ChosenText.title(), Way::Text.title()),
    (Way::ChosenPipeline.title(), Way::Pipeline.title()),
    (Way::ChosenSession.title(), Way::Application.title()),
];

/// Ways of an application through pgtenant.
const CHOSEN: [Way; 4] = [
    Way::Chosen,
    Way::ChosenText,
    Way::ChosenPipeline,
    Way::ChosenSession,
];

/// How the tenant of a transaction is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Nobody sets it: the ceiling.
    Bare,
    Application,
    /// The same in one Query.
    Text,
    /// The same as extended messages with one Sync.
    Pipeline,
    Plain,
    Sealed,
    /// An application's own login, in posture plain.
    Chosen,
    /// The same in one Query.
    ChosenText,
    /// The same as extended messages with one Sync.
    ChosenPipeline,
    /// SET for the session, and the SELECT: two Queries.
    ChosenSession,
}

impl Way {
    pub const fn title(self) -> &'static str {
        match self {
            Self::Bare => "PgBouncer, tenant spelled out",
            Self::Application => "PgBouncer, application sets",
            Self::Text => "PgBouncer, application sets in one Query",
            Self::Pipeline => "PgBouncer, application sets in one pipeline",
            Self::Chosen => "pgtenant, application sets",
            Self::ChosenText => "pgtenant, application sets in one Query",
            Self::ChosenPipeline => "pgtenant, application sets in one pipeline",
            Self::ChosenSession => "pgtenant, application sets for its session",
            Self::Plain => "pgtenant, plain",
            Self::Sealed => "pgtenant, sealed",
        }
    }

    /// Whom the client logs in as.
    fn user(self, tenant: &str) -> String {
        match self {
            Self::Bare => BYPASSING.to_owned(),
            Self::Application | Self::Text | Self::Pipeline => USER.to_owned(),
            Self::Chosen | Self::ChosenText | Self::ChosenPipeline | Self::ChosenSession => {
                APPLICATION.to_owned()
            }
            Self::Plain | Self::Sealed => format!("{USER}.{tenant}"),
        }
    }
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

struct Switch<'a> {
    bed: &'a Bed,
    targets: Vec<(Way, Target)>,
    tenants: &'a [u32],
    seconds: u64,
}

pub async fn run(ground: &Ground<'_>) -> Result<Section> {
    eprintln!("Tenants that take turns: filling their table …");
    let targets = start(ground).await?;
    let workload = Switch {
        bed: ground.bed,
        targets,
        tenants: &ground.args.tenants,
        seconds: ground.args.seconds(),
    };
    let against = |table: Table| Table {
        ratios: RATIOS,
        ..table
    };
    Ok(Section {
        name: Name::Switch.to_string(),
        title: "A tenant switch for each transaction",
        heads: &["tenants"],
        targets: workload.targets(),
        tables: [TPS, SERVER_CPU, CPU, LATENCY].map(against).into(),
        note: format!(
            "Each client is another tenant's; all share {POOL_SIZE} server connections. A transaction is one simple Query: \
             `SELECT tenant_id, body FROM orders WHERE key = …`, {ROWS} of {} rows, told apart by row level security on an \
             indexed column (FORCE; the role is not the owner). *Application sets*: BEGIN, set_config(…, true), SELECT and COMMIT, \
             each sent when the one before is answered; through pgtenant by the login of an application. *In one Query*: \
             BEGIN, SET LOCAL, SELECT and COMMIT as one text. *In one pipeline*: as extended messages with one Sync. *For its session*: SET \
             and the SELECT as two Queries, which no transaction pooler of PgBouncer's kind keeps apart. *Tenant spelled out*: the SELECT with `tenant_id = '…'`, by a role \
             without row level security, which is the most that a pooler of this kind can give.",
            ROWS * KEYS * TENANTS
        ),
        runs: rounds(Name::Switch, &workload, ground).await?,
    })
}

/// Fills the table, starts the proxies and waits until each serves.
async fn start(ground: &Ground<'_>) -> Result<Vec<(Way, Target)>> {
    let bed = ground.bed;
    let sealed = pgtenant(bed, "sealed", "sealed").await?;
    seal(&sealed.1).await?;
    bed.cluster.run(DATABASE, &sql(&bed.password)).await?;
    bed.settle().await?;
    let plain = pgtenant(bed, USER, "plain").await?;
    let mut chosen = Vec::new();
    for _ in CHOSEN {
        chosen.push(pgtenant(bed, USER, "plain").await?);
    }
    let mut targets = Vec::new();
    if ground.has(Kind::PgBouncer) {
        for way in [Way::Bare, Way::Application, Way::Text, Way::Pipeline] {
            let users = [USER, BYPASSING];
            let target = bed.pgbouncer(ground, &users, &Setup::default()).await?;
            targets.push((way, target));
        }
    }
    if ground.has(Kind::Pgtenant) {
        targets.push((Way::Plain, bed.serve(plain.0, &plain.1)?));
        targets.push((Way::Sealed, bed.serve(sealed.0, &sealed.1)?));
        for (way, (place, config)) in CHOSEN.into_iter().zip(chosen) {
            targets.push((way, bed.serve(place, &config)?));
        }
    }
    for (_, target) in &targets {
        target.ready(&tenant(0)).await?;
    }
    Ok(targets)
}

/// A config with all tenants, whose placement is in `posture` and logs in as `login`.
async fn pgtenant(bed: &Bed, login: &str, posture: &str) -> Result<(Place, PathBuf)> {
    let place = Place::make()?;
    let text = bed
        .filled(include_str!("../switch.yaml.tmpl"), &place)
        .replace("@login@", login)
        .replace("@posture@", posture)
        .replace("@admin_password@", bed.cluster.superuser_password());
    let config = bed.config(&place, text, (0..TENANTS).map(tenant)).await?;
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

impl Workload for Switch<'_> {
    /// Tenants, with a client each.
    type Row = u32;

    fn rows(&self) -> &[u32] {
        self.tenants
    }

    fn labels(tenants: &u32) -> Vec<String> {
        vec![tenants.to_string()]
    }

    fn targets(&self) -> Vec<&'static str> {
        self.targets.iter().map(|(way, _)| way.title()).collect()
    }

    async fn measure(&self, tenants: &u32, target: usize) -> Result<Option<Cell>> {
        let (way, target) = &self.targets[target];
        let row = [way.title().to_owned(), format!("{tenants} tenants")];
        let failed = |error| target.failed_under(&row, &error);
        let mut clients = Clients::new();
        for number in 0..*tenants {
            let tenant = tenant(number);
            let user = way.user(&tenant);
            let client = target.door.log_in(&user).await.map_err(failed)?;
            clients.spawn_turns(client, *way, tenant);
        }
        let cell = clients.measure(self.bed, target, self.seconds).await;
        Ok(Some(cell.map_err(failed)?))
    }
}

impl Clients {
    /// One transaction after the other.
    fn spawn_turns(&mut self, mut client: Client, way: Way, tenant: String) {
        let tally = self.tally.clone();
        self.tasks.spawn(async move {
            while !tally.is_enough() {
                let began = Instant::now();
                transaction(&mut client, way, &tenant).await?;
                tally.add(1, began);
            }
            client.close().await
        });
    }
}

/// As an application makes it that sets the tenant, or as one that leaves that to the proxy.
async fn transaction(client: &mut Client, way: Way, tenant: &str) -> Result<()> {
    match way {
        Way::Application | Way::Chosen => {}
        Way::Pipeline | Way::ChosenPipeline => return pipeline(client, way, tenant).await,
        Way::ChosenSession => {
            let set = format!("SET app.tenant_id = '{tenant}'");
            client.exchange(&query(&set)).await?;
            return select(client, way, tenant, "", "").await;
        }
        Way::Text | Way::ChosenText => {
            let before = format!("BEGIN; SET LOCAL app.tenant_id = '{tenant}'; ");
            return select(client, way, tenant, &before, "; COMMIT").await;
        }
        _ => return select(client, way, tenant, "", "").await,
    }
    client.exchange(&query("BEGIN")).await?;
    let set = format!("SELECT set_config('app.tenant_id', '{tenant}', true)");
    client.exchange(&query(&set)).await?;
    select(client, way, tenant, "", "").await?;
    client.exchange(&query("COMMIT")).await?;
    Ok(())
}

/// The whole transaction as extended messages with one Sync.
async fn pipeline(client: &mut Client, way: Way, tenant: &str) -> Result<()> {
    let set = format!("SELECT set_config('app.tenant_id', '{tenant}', true)");
    let texts = ["BEGIN", &*set, &*selected(way, tenant), "COMMIT"];
    let mut messages: Vec<u8> = texts.into_iter().flat_map(unsynced).collect();
    messages.extend(SYNC);
    client.send(&messages).await?;
    check_rows(client, tenant).await
}

/// The rows of one key, all of which must be this tenant's; with what is said in the same Query.
async fn select(
    client: &mut Client,
    way: Way,
    tenant: &str,
    before: &str,
    after: &str,
) -> Result<()> {
    let sql = format!("{before}{}{after}", selected(way, tenant));
    client.send(&query(&sql)).await?;
    check_rows(client, tenant).await
}

/// The SELECT of the rows of one key.
fn selected(way: Way, tenant: &str) -> String {
    let key = rand::rng().random_range(0..KEYS);
    let spelled = match way {
        Way::Bare => format!("tenant_id = '{tenant}' AND "),
        _ => String::new(),
    };
    format!("SELECT tenant_id, body FROM orders WHERE {spelled}key = {key}")
}

/// Reads the answer, in which all rows must be the tenant's. A row of one column is that of
/// `set_config`.
async fn check_rows(client: &mut Client, tenant: &str) -> Result<()> {
    let mut rows = 0;
    // A DataRow: number of columns, then the length of the first one and its bytes.
    let length = u32::try_from(tenant.len()).unwrap_or(u32::MAX);
    let start = [&[0, 2], &length.to_be_bytes()[..], tenant.as_bytes()].concat();
    client
        .answer(|row| {
            if row.starts_with(&[0, 1]) {
                return Ok(());
            }
            rows += 1;
            match row.starts_with(&start) {
                true => Ok(()),
                false => Err(Error::new("a row of another tenant came")),
            }
        })
        .await?;
    match rows == ROWS {
        true => Ok(()),
        false => Err(Error::new(format!("{rows} rows came, not {ROWS}"))),
    }
}
