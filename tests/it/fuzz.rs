//! Random conversations, direct and through the proxy: the same frames come back, and the same rows
//! are left.
//!
//! Several clients of a tenant share fewer server connections than they are. A failure prints the
//! seed and the shortest conversation that still differs; `PGTENANT_FUZZ_SEED` and
//! `PGTENANT_FUZZ_COUNT` (conversations) say what is run instead of the usual.

mod conversation;
mod play;
mod rest;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pgtenant::cluster::{Cluster, Options};

use self::conversation::{Ending, Session, session};
use self::play::{Patience, Thief, difference};
use crate::harness::{
    PATIENCE, POOLINGS, Running, SECRET, assert_no_panics, cluster, eventually, server_line,
};
use crate::wire::Wire;

/// Conversations of a usual run.
const COUNT: usize = 6000;
const SEED: u64 = 20_250_101;
/// Clients of each tenant at a time, and the server connections they share.
const CLIENTS: usize = 4;
const POOL: usize = 2;
/// A shorter conversation that hangs is taken for one that hangs after so long.
const SHORT: Patience = Patience(Duration::from_secs(3));
/// How long a conversation may hang that cannot be compared.
const EXCUSED: Patience = Patience(Duration::from_millis(500));
/// After so many failures nothing new is begun.
const ENOUGH: usize = 10;
/// Most tries to make a conversation shorter.
const TRIES: usize = 400;

fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is no number: {text}"))
    })
}

/// A tenant with a database of its own, and PostgreSQL without the proxy in a copy of that.
struct Place {
    tenant: String,
    tier: &'static str,
    pooling: &'static str,
    /// And the role.
    database: String,
    schema: String,
}

fn places() -> Vec<Place> {
    let mut places = Vec::new();
    for pooling in POOLINGS {
        for tier in ["pool", "schema", "instance"] {
            let tenant = format!("{tier}-{pooling}");
            places.push(Place {
                database: format!("fuzz_{tier}_{pooling}"),
                schema: match tier {
                    "schema" => format!("t_{tenant}"),
                    _ => "public".to_owned(),
                },
                tenant,
                tier,
                pooling,
            });
        }
    }
    places
}

impl Place {
    /// Startup options that do to a direct connection what the proxy does to its own.
    fn options(&self) -> String {
        let Self { tenant, schema, .. } = self;
        let own = match self.tier {
            "pool" => format!(" -c app.tenant_id={tenant}"),
            "schema" => format!(" -c search_path={schema}"),
            _ => String::new(),
        };
        format!("-c row_security=on -c standard_conforming_strings=on{own}")
    }

    /// Its entries of `placements` and `tenants`.
    fn yaml(&self) -> (String, String) {
        let Self {
            tenant,
            database,
            pooling,
            ..
        } = self;
        let tier = match self.tier {
            "pool" => {
                "tier: pool, server: one, posture: plain, context: { app.tenant_id: \"{tenant}\" }"
            }
            "schema" => "tier: schema, server: one, schema: \"t_{tenant}\"",
            _ => "tier: instance, server: two",
        };
        (
            format!(
                "  {tenant}: {{ {tier}, database: {database}, login: {{ user: {database}, password: {SECRET} }}, pooling: {pooling}, pool: {{ size: {POOL} }} }}\n"
            ),
            format!(
                "  {tenant}: {{ placement: {tenant}, users: {{ app: {{ password: {SECRET} }} }} }}\n"
            ),
        )
    }
}

const TABLES: &str = "
    CREATE TABLE items (id int PRIMARY KEY CHECK (id > 0), body text);
    CREATE TABLE plain (id int PRIMARY KEY CHECK (id > 0), body text)";
/// Under row level security COPY writes no table: `plain` has none.
const POOL_TABLES: &str = "
    CREATE TABLE items (
        tenant text NOT NULL DEFAULT current_setting('app.tenant_id', true),
        id int NOT NULL CHECK (id > 0),
        body text,
        PRIMARY KEY (tenant, id)
    );
    ALTER TABLE items ENABLE ROW LEVEL SECURITY;
    CREATE POLICY tenant ON items USING (tenant = (SELECT current_setting('app.tenant_id', true)));
    CREATE TABLE plain (id int PRIMARY KEY CHECK (id > 0), body text)";

/// A database for each place, and a copy with the same oids.
async fn fill(server: &Cluster, places: &[Place]) {
    let run = async |database: &str, sql: &str| {
        let ran = server.run(database, sql).await;
        ran.unwrap_or_else(|error| panic!("{sql}: {error}"));
    };
    for Place {
        database,
        schema,
        tier,
        ..
    } in places
    {
        let tables = if *tier == "pool" { POOL_TABLES } else { TABLES };
        run("postgres", &format!("CREATE DATABASE {database}")).await;
        let sql = format!(
            "CREATE ROLE {database} LOGIN PASSWORD '{SECRET}';
             CREATE SCHEMA IF NOT EXISTS \"{schema}\"; SET search_path = \"{schema}\"; {tables};
             GRANT USAGE ON SCHEMA \"{schema}\" TO {database};
             GRANT ALL ON ALL TABLES IN SCHEMA \"{schema}\" TO {database}"
        );
        run(database, &sql).await;
        let copy = format!("CREATE DATABASE {database}_direct TEMPLATE {database}");
        run("postgres", &copy).await;
    }
}

fn yaml(server: &Cluster, places: &[Place]) -> String {
    let (placements, tenants): (String, String) = places.iter().map(Place::yaml).unzip();
    format!(
        "listen: [{{ address: \"127.0.0.1:0\" }}]\nworkers: 2\nlog: {{ filter: info }}\ntimeouts: {{ checkout: 10m }}\nservers:\n{}{}placements:\n{placements}tenants:\n{tenants}",
        server_line("one", server, 40),
        server_line("two", server, 40),
    )
}

struct Fuzz {
    server: Cluster,
    proxy: Running,
    places: Vec<Place>,
    failures: Mutex<Vec<(Session, String)>>,
    /// Sessions that differ, perhaps only since a client that closed its side while it waited for a
    /// server connection has left (docs/compatibility.md): to be tried again without others.
    doubtful: Mutex<Vec<Session>>,
    /// Seeds of sessions whose rows may differ: their clients left in the middle, or cannot be
    /// compared.
    incomparable: Mutex<HashSet<u64>>,
    begun: Mutex<Begun>,
}

#[derive(Debug)]
struct Begun {
    /// The seed of the next session.
    next: u64,
    conversations: usize,
}

impl Fuzz {
    async fn direct(&self, place: &Place, session: &Session) -> Wire {
        let mut wire = Wire::unix(&self.server).await;
        let database = format!("{}_direct", place.database);
        let pairs = [
            ("user", &*place.database),
            ("database", &*database),
            ("options", &*place.options()),
        ];
        let pairs = [&pairs, session.startup].concat();
        wire.log_in(&pairs, SECRET)
            .await
            .unwrap_or_else(|error| panic!("direct: {error}"));
        wire
    }

    async fn proxied(&self, place: &Place, session: &Session) -> Wire {
        let mut wire = Wire::tcp(self.proxy.address).await;
        let user = format!("app.{}", place.tenant);
        let pairs = [("user", &*user), ("database", &*place.database)];
        let pairs = [&pairs, session.startup].concat();
        wire.log_in(&pairs, SECRET)
            .await
            .unwrap_or_else(|error| panic!("{}: {error}", place.tenant));
        wire
    }

    /// Plays a session to both.
    async fn play(
        &self,
        place: &Place,
        session: &Session,
        patience: Patience,
        thief: Option<&mut Thief>,
    ) -> Option<String> {
        let mut wire = self.direct(place, session).await;
        let expected = play::direct(&mut wire, session, patience).await;
        drop(wire);
        let mut wire = self.proxied(place, session).await;
        let exactly = place.pooling == "session";
        // What is excused below must not keep the others from its server connection.
        let mut patience = patience;
        if expected.lost && !exactly {
            self.incomparable.lock().unwrap().insert(session.seed);
            patience = EXCUSED;
        }
        let seen = play::proxied(&mut wire, session, &expected, patience, thief).await;
        difference(session, &expected, &seen, exactly)
    }

    /// The same, alone with a client that takes the server connections away whenever it can.
    async fn play_with_thief(&self, place: &Place, session: &Session) -> Option<String> {
        self.wipe(place, session).await;
        let mut thief = Thief {
            wire: self.proxied(place, session).await,
            holds: false,
        };
        self.play(place, session, SHORT, Some(&mut thief)).await
    }

    /// Drops steps of a session while it differs. None: alone it does not differ.
    async fn shrunk(&self, place: &Place, session: &Session) -> Option<(Session, String)> {
        let mut best = session.clone();
        let mut difference = self.play_with_thief(place, &best).await?;
        let mut tries = 0;
        let mut size = best.steps.len().div_ceil(2);
        loop {
            let mut at = 0;
            while at < best.steps.len() && tries < TRIES {
                tries += 1;
                let mut shorter = best.clone();
                shorter.steps.drain(at..(at + size).min(best.steps.len()));
                // What this test cannot tell is no difference of the proxy's.
                match self.play_with_thief(place, &shorter).await {
                    Some(found) if !found.starts_with("PostgreSQL owes") => {
                        best = shorter;
                        difference = found;
                    }
                    _ => at += size,
                }
            }
            if size <= 1 || tries >= TRIES {
                return Some((best, difference));
            }
            size = size.div_ceil(2);
        }
    }

    /// Server connections that are neither idle nor closed.
    fn in_use(&self) -> usize {
        let instances = self.proxy.proxy.app().instances();
        let pools = instances.values().flat_map(|instance| instance.pools());
        pools.map(|(_, counts)| counts.total - counts.idle).sum()
    }

    /// The next session, until there are enough conversations or failures.
    fn next(&self, count: usize) -> Option<Session> {
        let mut begun = self.begun.lock().unwrap();
        if begun.conversations >= count || self.failures.lock().unwrap().len() >= ENOUGH {
            return None;
        }
        let session = session(begun.next);
        begun.next += 1;
        begun.conversations += session.conversations;
        Some(session)
    }

    async fn try_session(&self, session: &Session) {
        let place = self.place(session);
        if session.ending != Ending::Mark {
            self.incomparable.lock().unwrap().insert(session.seed);
        }
        let found = self
            .play(place, session, Patience(PATIENCE.mul_f32(0.75)), None)
            .await;
        let Some(found) = found else {
            return;
        };
        if matches!(session.ending, Ending::HalfClose | Ending::CutShort) {
            self.doubtful.lock().unwrap().push(session.clone());
            return;
        }
        eprintln!("seed {} on {} differs:{found}", session.seed, place.tenant);
        self.failures.lock().unwrap().push((session.clone(), found));
    }

    /// What is said of a failure.
    async fn report(&self, session: &Session, found: String) -> String {
        let place = self.place(session);
        let (shown, what) = match self.shrunk(place, session).await {
            Some((shrunk, difference)) => (shrunk, difference),
            None => (session.clone(), format!("among other clients only,{found}")),
        };
        format!(
            "seed {} on {}:{what}\n  {}",
            session.seed,
            place.tenant,
            play::describe(&shown)
        )
    }

    fn place(&self, session: &Session) -> &Place {
        let number = usize::try_from(session.seed).expect("a number");
        &self.places[number % self.places.len()]
    }

    /// Forgets what an earlier try has written.
    async fn wipe(&self, place: &Place, session: &Session) {
        let Place {
            database, schema, ..
        } = place;
        let first = conversation::first_row(session.seed);
        for database in [database, &format!("{database}_direct")] {
            for table in ["items", "plain"] {
                let sql = format!(
                    "DELETE FROM \"{schema}\".{table} WHERE id >= {first} AND id < {first} + 100"
                );
                self.server
                    .run(database, &sql)
                    .await
                    .expect("rows are deleted");
            }
        }
    }

    /// What every session that can be compared has written.
    async fn rows(&self, place: &Place, suffix: &str) -> Vec<String> {
        let database = format!("{}{suffix}", place.database);
        let client = self.server.connect(&database).await.expect("connects");
        let schema = &place.schema;
        let tenant = if place.tier == "pool" { "tenant" } else { "''" };
        let sql = format!(
            "SELECT 'items', {tenant}, id, body FROM \"{schema}\".items
             UNION ALL SELECT 'plain', '', id, body FROM \"{schema}\".plain ORDER BY 3, 1, 2"
        );
        let seeds = self.incomparable.lock().unwrap().clone();
        let incomparable: HashSet<_> = seeds
            .iter()
            .map(|seed| conversation::first_row(*seed) / 100)
            .collect();
        let rows = client.query(&sql, &[]).await.expect("rows");
        rows.iter()
            .map(|row| {
                let id: i32 = row.get(2);
                let texts: (&str, &str, Option<&str>) = (row.get(0), row.get(1), row.get(3));
                (
                    u64::try_from(id).unwrap_or_default(),
                    format!("{id} {texts:?}"),
                )
            })
            .filter(|(id, _)| !incomparable.contains(&(id / 100)))
            .map(|(_, text)| text)
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_conversations_are_answered_as_by_postgresql_and_leave_the_same_rows() {
    let seed = number("PGTENANT_FUZZ_SEED", SEED);
    let count = usize::try_from(number("PGTENANT_FUZZ_COUNT", COUNT as u64)).expect("a count");
    let places = places();
    let server = cluster(Options {
        settings: vec![
            ("shared_buffers".into(), "64MB".into()),
            ("log_min_messages".into(), "fatal".into()),
            ("log_min_error_statement".into(), "panic".into()),
        ],
        ..Options::named("fuzz")
    })
    .await;
    fill(&server, &places).await;
    let proxy = Running::start(&yaml(&server, &places));
    let fuzz = Arc::new(Fuzz {
        server,
        proxy,
        places,
        failures: Mutex::default(),
        doubtful: Mutex::default(),
        incomparable: Mutex::default(),
        begun: Mutex::new(Begun {
            next: seed,
            conversations: 0,
        }),
    });
    let started = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS * fuzz.places.len() {
        let fuzz = fuzz.clone();
        clients.spawn(async move {
            while let Some(session) = fuzz.next(count) {
                fuzz.try_session(&session).await;
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        if let Err(error) = ended {
            std::panic::resume_unwind(error.into_panic());
        }
    }
    eprintln!(
        "{:?} in {:?}",
        fuzz.begun.lock().unwrap(),
        started.elapsed()
    );
    assert_no_panics();
    let failures = std::mem::take(&mut *fuzz.failures.lock().unwrap());
    eventually("every server connection is idle or closed", async || {
        fuzz.in_use() == 0
    })
    .await;
    let mut reports = Vec::new();
    let doubtful = std::mem::take(&mut *fuzz.doubtful.lock().unwrap());
    eprintln!("{} tried again alone", doubtful.len());
    for session in doubtful {
        let place = fuzz.place(&session);
        if fuzz.play_with_thief(place, &session).await.is_some() && reports.len() < ENOUGH {
            reports.push(fuzz.report(&session, String::new()).await);
        }
    }
    for (session, found) in failures {
        reports.push(fuzz.report(&session, found).await);
    }
    assert!(
        reports.is_empty(),
        "{} differ:\n{}",
        reports.len(),
        reports.join("\n\n")
    );
    for place in &fuzz.places {
        let what = format!(
            "the rows of {} are those that PostgreSQL alone has",
            place.tenant
        );
        eventually(&what, async || {
            fuzz.rows(place, "").await == fuzz.rows(place, "_direct").await
        })
        .await;
    }
}
