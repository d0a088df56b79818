//! A model of what a client's session holds, against the truth: PostgreSQL's own session.
//!
//! Each program has three clients, two of one tenant and one of another, whose steps are
//! interleaved, so that server connections change hands between them. Each client has a session of
//! PostgreSQL's own beside it that is told the same. Answers are compared frame by frame, and so is
//! what each session holds when it is asked. A failure prints the seed and the shortest program
//! that still differs; `PGTENANT_MODEL_SEED` and `PGTENANT_MODEL_COUNT` (programs) say what is
//! played instead of the usual.

mod program;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use pgtenant::backend::residue::Pins;
use pgtenant::client::Activity;
use pgtenant::cluster::{Cluster, Options};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use self::program::{LEAVES, Program, Step, program};
use crate::harness::{Running, SECRET, assert_no_panics, cluster, server_line};
use crate::wire::{Frame, Wire};

/// Programs of a usual run.
const COUNT: u64 = 120;
const SEED: u64 = 1;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// After so many failures nothing new is begun.
const ENOUGH: usize = 6;
/// Most tries to make a program shorter.
const TRIES: usize = 250;

/// A pool and what it is compared with, both with a database of their own.
#[derive(Debug, Clone, Copy)]
struct Lane {
    name: &'static str,
    pooling: &'static str,
    size: usize,
}

const LANES: [Lane; 4] = [
    Lane {
        name: "one",
        pooling: "transaction",
        size: 1,
    },
    Lane {
        name: "two",
        pooling: "transaction",
        size: 2,
    },
    Lane {
        name: "three",
        pooling: "transaction",
        size: 3,
    },
    Lane {
        name: "session",
        pooling: "session",
        size: 4,
    },
];

/// Who a client of a program is.
fn tenant(lane: Lane, client: usize) -> String {
    match client {
        2 => format!("{}-other", lane.name),
        _ => format!("{}-own", lane.name),
    }
}

const FILLING: &str = "
    CREATE SCHEMA s_a; CREATE SCHEMA s_b;
    CREATE TABLE public.marker (v) AS SELECT 'public'::text;
    CREATE TABLE s_a.marker (v) AS SELECT 'a'::text;
    CREATE TABLE s_b.marker (v) AS SELECT 'b'::text;
    CREATE FUNCTION m_set(n text, v text) RETURNS text LANGUAGE plpgsql AS
        $$ BEGIN RETURN set_config(n, v, false); END $$;
    CREATE FUNCTION m_set_local(n text, v text) RETURNS text LANGUAGE plpgsql AS
        $$ BEGIN RETURN set_config(n, v, true); END $$;
    CREATE FUNCTION m_set_fixed(n text, v text) RETURNS text LANGUAGE plpgsql AS
        $$ BEGIN SET DateStyle = 'SQL, DMY'; PERFORM set_config('app.x', v, false); RETURN n; END $$;
    CREATE FUNCTION m_set_and_fail(n text, v text) RETURNS text LANGUAGE plpgsql AS
        $$ BEGIN PERFORM set_config('work_mem', '3MB', false); PERFORM 1 / 0; RETURN n; END $$;
    CREATE FUNCTION m_set_and_catch(n text, v text) RETURNS text LANGUAGE plpgsql AS
        $$ BEGIN
            PERFORM set_config('app.z', 'kept', false);
            BEGIN PERFORM set_config('work_mem', '3MB', false); PERFORM 1 / 0;
            EXCEPTION WHEN others THEN NULL; END;
            RETURN n;
        END $$;
    CREATE FUNCTION m_clause(n text, v text) RETURNS text LANGUAGE plpgsql SET work_mem = '2MB' AS
        $$ BEGIN PERFORM set_config('app.y', v, false); RETURN current_setting('work_mem'); END $$;
    CREATE FUNCTION m_run(n text, v text) RETURNS text LANGUAGE plpgsql AS
        $$ BEGIN EXECUTE format('SET %s = %L', n, v); RETURN v; END $$;
    CREATE FUNCTION m_temp() RETURNS void LANGUAGE plpgsql AS
        $$ BEGIN CREATE TEMP TABLE tmp5 (a int); END $$;
    CREATE FUNCTION m_lock(k int) RETURNS void LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_advisory_lock(k); END $$;
    CREATE FUNCTION m_watch() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM set_config('app.y', 'watched', false); RETURN NEW; END $$;";

/// The roles, and for each lane a database and its copy.
async fn fill(server: &Cluster) {
    let run = async |database: &str, sql: &str| {
        let ran = server.run(database, sql).await;
        ran.unwrap_or_else(|error| panic!("{sql}: {error}"));
    };
    run("postgres", "CREATE ROLE m_other").await;
    for Lane { name, .. } in LANES {
        let database = format!("m_{name}");
        run("postgres", &format!("CREATE DATABASE {database}")).await;
        let mut sql = FILLING.to_owned();
        for n in 0..3 {
            let _ = write!(
                sql,
                "CREATE TABLE own{n} (a int, b text); CREATE SEQUENCE seq{n};
                 CREATE TABLE watched{n} (a int);
                 CREATE TABLE deferred{n} (a int UNIQUE DEFERRABLE INITIALLY DEFERRED);
                 CREATE TRIGGER t BEFORE INSERT ON watched{n} FOR EACH ROW EXECUTE FUNCTION m_watch();"
            );
        }
        let _ = write!(
            sql,
            "CREATE ROLE {database} LOGIN PASSWORD '{SECRET}'; GRANT m_other TO {database};
             GRANT USAGE ON SCHEMA s_a, s_b TO PUBLIC;
             GRANT ALL ON ALL TABLES IN SCHEMA public, s_a, s_b TO {database};
             GRANT SELECT ON ALL TABLES IN SCHEMA public, s_a, s_b TO m_other;
             GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {database};"
        );
        run(&database, &sql).await;
        let copy = format!("CREATE DATABASE {database}_direct TEMPLATE {database}");
        run("postgres", &copy).await;
    }
}

fn yaml(server: &Cluster) -> String {
    let mut placements = String::new();
    let mut tenants = String::new();
    for lane in LANES {
        let Lane {
            name,
            pooling,
            size,
        } = lane;
        let _ = writeln!(
            placements,
            "  {name}: {{ tier: pool, server: one, posture: plain, context: {{ app.tenant_id: \"{{tenant}}\" }}, database: m_{name}, login: {{ user: m_{name}, password: {SECRET} }}, pooling: {pooling}, pool: {{ size: {size}, reserve: 0 }} }}"
        );
        for client in [0, 2] {
            let tenant = tenant(lane, client);
            let _ = writeln!(
                tenants,
                "  {tenant}: {{ placement: {name}, users: {{ app: {{ password: {SECRET} }} }} }}"
            );
        }
    }
    format!(
        "listen: [{{ address: \"127.0.0.1:0\" }}]\nworkers: 2\nlog: {{ filter: error }}\nservers:\n{}placements:\n{placements}tenants:\n{tenants}",
        server_line("one", server, 40),
    )
}

/// A client of the proxy, and PostgreSQL's session beside it.
struct Pair {
    tenant: String,
    proxied: Side,
    direct: Side,
    /// The step that comes next.
    next: usize,
    holds: bool,
    /// It has said what ties it to its server connection until it discards all, or leaves.
    is_tied: bool,
    is_stuck: bool,
}

/// What of a step's text does that (docs/session-state.md), as far as programs say it.
const TIES: [&str; 5] = [
    "m_set(",
    "m_run(",
    "set_config($1",
    "UPDATE pg_settings",
    "lastval()",
];
const STUCK: &str = "FunctionCall";

/// What a side has said and been told.
struct Side {
    wire: Wire,
    /// By ParameterStatus.
    told: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The transaction's, of the last ReadyForQuery.
    status: u8,
}

impl Side {
    fn new(wire: Wire) -> Self {
        let mut side = Self {
            wire,
            told: BTreeMap::new(),
            status: b'I',
        };
        for frame in std::mem::take(&mut side.wire.greeting) {
            side.note(&frame);
        }
        side
    }

    fn note(&mut self, frame: &Frame) {
        match frame.tag {
            b'S' => {
                let mut parts = frame.body.split(|byte| *byte == 0);
                let mut part = || parts.next().unwrap_or_default().to_vec();
                self.told.insert(part(), part());
            }
            b'Z' => self.status = frame.body[0],
            _ => {}
        }
    }

    /// What answers a step, but for ParameterStatus and process ids.
    ///
    /// # Errors
    /// What came until then, if it does not end.
    async fn play(&mut self, step: &Step) -> Result<Vec<Frame>, String> {
        self.wire.send(&step.bytes).await;
        let mut frames = Vec::new();
        let mut readies = 0;
        while readies < step.readies {
            let frame = tokio::time::timeout(PATIENCE, self.wire.frame()).await;
            let Ok(Some(mut frame)) = frame else {
                let what = if frame.is_err() { "hangs" } else { "closed" };
                return Err(format!("{what} after {frames:?}"));
            };
            self.note(&frame);
            match frame.tag {
                b'S' => continue,
                b'A' => frame.body[..4].fill(0),
                b'T' => hide_oids(&mut frame.body),
                b'Z' => readies += 1,
                _ => {}
            }
            frames.push(frame);
        }
        Ok(frames)
    }
}

struct Model {
    server: Cluster,
    proxy: Running,
}

impl Model {
    /// # Errors
    /// Why the proxy does not let the client in.
    async fn pair(
        &self,
        lane: Lane,
        client: usize,
        startup: &[(&str, &str)],
    ) -> Result<Pair, String> {
        let tenant = tenant(lane, client);
        let database = format!("m_{}", lane.name);
        let mut wire = Wire::tcp(self.proxy.address).await;
        let user = format!("app.{tenant}");
        let own = [("user", &*user), ("database", &*database)];
        let logged_in = wire.log_in(&[&own, startup].concat(), SECRET).await;
        logged_in.map_err(|error| format!(" client {client}, login: {error}"))?;
        let mut plain = Wire::unix(&self.server).await;
        let copy = format!("{database}_direct");
        let given = startup.iter().find(|(name, _)| *name == "options");
        let options = format!(
            "-c row_security=on -c standard_conforming_strings=on -c app.tenant_id={tenant} {}",
            given.map_or("", |(_, options)| options)
        );
        let mut pairs = vec![
            ("user", &*database),
            ("database", &*copy),
            ("options", &*options),
        ];
        pairs.extend(startup.iter().filter(|(name, _)| *name != "options"));
        let logged_in = plain.log_in(&pairs, SECRET).await;
        logged_in.unwrap_or_else(|error| panic!("direct: {error}"));
        Ok(Pair {
            tenant,
            proxied: Side::new(wire),
            direct: Side::new(plain),
            next: 0,
            holds: lane.pooling == "session",
            is_tied: false,
            is_stuck: false,
        })
    }

    /// What ties a client to its server connection now that it was answered; none if it is in a
    /// transaction.
    async fn pins(&self, pair: &Pair) -> Option<Pins> {
        if pair.proxied.status != b'I' {
            return None;
        }
        let pid = pair.proxied.wire.key.0;
        let clients = self.proxy.proxy.app().clients();
        let handle = clients.iter().find(|client| client.key().pid == pid);
        let handle = handle.expect("the client is there");
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if handle.activity() == Activity::Idle {
                return Some(Pins::empty());
            }
            if !handle.pins().is_empty() {
                return Some(handle.pins());
            }
            tokio::time::sleep(Duration::from_micros(300)).await;
        }
        None
    }

    /// Plays a step to both sides.
    ///
    /// # Errors
    /// What differs.
    async fn step(&self, pair: &mut Pair, step: &Step) -> Result<Outcome, String> {
        pair.is_tied |= TIES.iter().any(|text| step.said.contains(text));
        pair.is_stuck |= step.said.contains(STUCK);
        let had_failed = pair.direct.status == b'E';
        let expected = pair.direct.play(step).await;
        let seen = pair.proxied.play(step).await;
        let expected = expected.map_err(|why| format!("direct: {why}"))?;
        let seen = seen.map_err(|why| format!("it {why}\n    direct  {expected:?}"))?;
        let asked = Asked::read(&expected);
        if let Some(difference) = difference(&expected, &seen) {
            return match is_excused(had_failed, &expected, &seen) {
                true => Ok(Outcome::Excused),
                false => Err(difference),
            };
        }
        if step.said == "Q \"DISCARD ALL\"" && expected[0].tag == b'C' {
            pair.is_tied = false;
        }
        let (told, known) = (&pair.proxied.told, &pair.direct.told);
        if asked.is_some() && told != known {
            let mut text = "told parameters:".to_owned();
            for (name, value) in known
                .iter()
                .filter(|(name, value)| told.get(*name) != Some(value))
            {
                let other = told.get(name).map(|value| value.escape_ascii().to_string());
                let _ = write!(
                    text,
                    " {} = {}, told {other:?}",
                    name.escape_ascii(),
                    value.escape_ascii()
                );
            }
            return Err(text);
        }
        Ok(Outcome::Same(asked))
    }

    /// At a clean point the tenant's variable is its own.
    async fn own_context(&self, pair: &mut Pair) -> Result<(), String> {
        let sql = "SELECT pg_catalog.current_setting('app.tenant_id', true)";
        let frames = pair.proxied.wire.query(sql).await;
        for frame in &frames {
            pair.proxied.note(frame);
        }
        let seen: Vec<_> = frames
            .iter()
            .filter(|frame| frame.tag == b'D')
            .map(Frame::values)
            .collect();
        match seen == [[Some(pair.tenant.clone())]] {
            true => Ok(()),
            false => Err(format!("the context is {seen:?}, {frames:?}")),
        }
    }

    /// What a client holds at a clean point is no more than it should.
    async fn look_at(
        &self,
        lane: Lane,
        pair: &mut Pair,
        asked: Option<Asked>,
    ) -> Result<(), String> {
        let is_idle = pair.proxied.status == b'I';
        let mut pins = None;
        if lane.pooling == "transaction" {
            pins = self.pins(pair).await;
            if is_idle && pins.is_none() {
                return Err("the proxy does not settle".to_owned());
            }
            pair.holds = pins.is_none_or(|pins| !pins.is_empty());
        }
        let Some(asked) = asked.filter(|_| is_idle) else {
            return Ok(());
        };
        if let Some(pins) = pins
            && !pins.is_empty()
            && asked.holds_nothing
            && !pair.is_tied
            && !pair.is_stuck
        {
            return Err(format!("it is tied for nothing: {}", pins.describe()));
        }
        // Both sides forget their unnamed statements.
        pair.direct.wire.query("SELECT 1").await;
        self.own_context(pair).await?;
        if lane.pooling == "transaction" {
            pair.holds = self.pins(pair).await.is_none_or(|pins| !pins.is_empty());
        }
        Ok(())
    }

    /// Returns what differs.
    async fn play(&self, lane: Lane, program: &Program) -> Option<String> {
        self.wipe(lane).await;
        let mut pairs = Vec::new();
        for (number, client) in program.clients.iter().enumerate() {
            match self.pair(lane, number, client.startup).await {
                Ok(pair) => pairs.push(pair),
                Err(found) => return Some(found),
            }
        }
        let mut random = StdRng::seed_from_u64(program.seed);
        loop {
            let held = pairs.iter().filter(|pair| pair.holds).count();
            let mut ready = Vec::new();
            for (number, pair) in pairs.iter().enumerate() {
                let left = pair.next < program.clients[number].steps.len();
                if left && (pair.holds || held < lane.size) {
                    ready.push(number);
                }
            }
            if ready.is_empty() {
                // Clients that have nothing to say any more hold the rest: they leave.
                let is_done =
                    |number: usize, pair: &Pair| pair.next >= program.clients[number].steps.len();
                let all = pairs
                    .iter()
                    .enumerate()
                    .all(|(number, pair)| is_done(number, pair));
                if all {
                    return None;
                }
                for (number, pair) in pairs.iter_mut().enumerate() {
                    if is_done(number, pair) && pair.holds {
                        pair.proxied.wire.shutdown().await;
                        pair.holds = false;
                    }
                }
                continue;
            }
            let number = ready[random.random_range(0..ready.len())];
            let pair = &mut pairs[number];
            let step = &program.clients[number].steps[pair.next];
            pair.next += 1;
            if step.said == LEAVES {
                for side in [&mut pair.proxied, &mut pair.direct] {
                    side.wire.shutdown().await;
                }
                let next = pair.next;
                match self
                    .pair(lane, number, program.clients[number].startup)
                    .await
                {
                    Ok(back) => *pair = Pair { next, ..back },
                    Err(found) => return Some(found),
                }
                continue;
            }
            let found = match self.step(pair, step).await {
                Ok(Outcome::Excused) => return None,
                Ok(Outcome::Same(asked)) => self.look_at(lane, pair, asked).await,
                Err(found) => Err(found),
            };
            if let Err(found) = found {
                return Some(format!(
                    " client {number}, step {} ({step:?}): {found}",
                    pair.next
                ));
            }
        }
    }

    /// Tables and sequences are as they were made.
    async fn wipe(&self, lane: Lane) {
        for suffix in ["", "_direct"] {
            let database = format!("m_{}{suffix}", lane.name);
            let sql = "SET client_min_messages = error; SELECT pg_advisory_unlock_all(); TRUNCATE own0, own1, own2, deferred0, deferred1, deferred2;
                       ALTER SEQUENCE seq0 RESTART; ALTER SEQUENCE seq1 RESTART; ALTER SEQUENCE seq2 RESTART";
            self.server.run(&database, sql).await.expect("wiped");
        }
    }

    /// Drops steps of a program while it differs.
    async fn shrunk(&self, lane: Lane, program: &Program) -> Option<(Program, String)> {
        let mut best = program.clone();
        let mut difference = self.play(lane, &best).await?;
        let mut tries = 0;
        let mut size = 8;
        loop {
            for client in 0..best.clients.len() {
                let mut at = 0;
                while at < best.clients[client].steps.len() && tries < TRIES {
                    tries += 1;
                    let mut shorter = best.clone();
                    let steps = &mut shorter.clients[client].steps;
                    steps.drain(at..(at + size).min(steps.len()));
                    match self.play(lane, &shorter).await {
                        Some(found) => {
                            best = shorter;
                            difference = found;
                        }
                        None => at += size,
                    }
                }
            }
            if size == 1 || tries >= TRIES {
                return Some((best, difference));
            }
            size /= 2;
        }
    }

    async fn report(&self, lane: Lane, program: &Program, found: String) -> String {
        let (shown, what) = match self.shrunk(lane, program).await {
            Some(shrunk) => shrunk,
            None => (program.clone(), format!("once,{found}")),
        };
        let mut text = format!("seed {} on {}:{what}", program.seed, lane.name);
        for (number, client) in shown.clients.iter().enumerate() {
            if client.steps.is_empty() {
                continue;
            }
            let _ = write!(text, "\n  client {number} {:?}", client.startup);
            for (at, step) in client.steps.iter().enumerate() {
                let _ = write!(text, "\n    {} {step:?}", at + 1);
            }
        }
        text
    }
}

/// How a step was answered.
enum Outcome {
    Same(Option<Asked>),
    /// Other than by PostgreSQL, as is documented: what follows cannot be compared.
    Excused,
}

/// The answer to a probe.
struct Asked {
    /// The session holds nothing that only one server connection has.
    holds_nothing: bool,
}

impl Asked {
    fn read(frames: &[Frame]) -> Option<Self> {
        let rows = frames.iter().filter(|frame| frame.tag == b'D');
        let values: BTreeMap<_, _> = rows
            .filter_map(|frame| match &frame.values()[..] {
                [Some(name), Some(value)] => Some((name.clone(), value.clone())),
                _ => None,
            })
            .collect();
        values.get("settings")?;
        let is = |name: &str, nothing: &str| values.get(name).is_some_and(|v| v == nothing);
        let holds_nothing = is("pg_catalog.pg_listening_channels()", "")
            && !values.get("pg_catalog.pg_cursors")?.contains("true")
            && is("prepared", "")
            && is("temporary", "")
            && is("locks", "0");
        Some(Self { holds_nothing })
    }
}

/// What is documented of statements that have to be parsed on the server connection at hand
/// (docs/session-state.md): in a failed transaction they cannot be; what is wrong with one by now
/// is found before anything else; and it is parsed under a snapshot.
fn is_excused(had_failed: bool, direct: &[Frame], proxied: &[Frame]) -> bool {
    let at = direct.iter().zip(proxied).position(|(a, b)| a != b);
    let Some(at) = at.filter(|at| proxied[*at].tag == b'E') else {
        return false;
    };
    let failed = had_failed || direct[..=at].iter().any(|frame| frame.tag == b'E');
    let expected = match direct[at].tag {
        b'E' => direct[at].sqlstate(),
        _ => String::new(),
    };
    match (&*expected, &*proxied[at].sqlstate()) {
        (_, "25P02") => failed,
        ("08P01" | "42P05" | "42883", "42883" | "42P01") => true,
        (_, "25001") => proxied[at]
            .field(b'M')
            .is_some_and(|said| said.contains("before any query")),
        _ => false,
    }
}

/// Tables that the programs make have other oids on each side.
fn hide_oids(description: &mut [u8]) {
    let mut at = 2;
    while let Some(length) = description[at..].iter().position(|byte| *byte == 0) {
        at += length + 1;
        description[at..at + 4].fill(0);
        at += 18;
    }
}

/// Where two answers part.
fn difference(direct: &[Frame], proxied: &[Frame]) -> Option<String> {
    if direct == proxied {
        return None;
    }
    let mut frames = direct.iter().zip(proxied);
    let at = frames.position(|(a, b)| a != b);
    let at = at.unwrap_or(direct.len().min(proxied.len()));
    let shown = |frames: &[Frame]| {
        let frames = &frames[at.min(frames.len())..frames.len().min(at + 3)];
        let shown: Vec<_> = frames
            .iter()
            .map(|frame| {
                let body = String::from_utf8_lossy(&frame.body).replace('\0', "·");
                format!("{}({body})", frame.tag as char)
            })
            .collect();
        shown.join(" ")
    };
    Some(format!(
        "from message {at} on\n    direct  {}\n    proxied {}",
        shown(direct),
        shown(proxied)
    ))
}

fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is no number: {text}"))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_hold_what_they_would_hold_without_the_proxy() {
    let seed = number("PGTENANT_MODEL_SEED", SEED);
    let count = number("PGTENANT_MODEL_COUNT", COUNT);
    let server = cluster(Options {
        settings: vec![
            ("log_min_messages".into(), "fatal".into()),
            ("log_min_error_statement".into(), "panic".into()),
        ],
        ..Options::named("model")
    })
    .await;
    fill(&server).await;
    let proxy = Running::start(&yaml(&server));
    let model = Model { server, proxy };
    let failed = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    let begun = Instant::now();
    let run_lane = async |number: u64| {
        let lanes = LANES.len() as u64;
        let lane = LANES[usize::try_from(number).expect("small")];
        // The seed tells the lane.
        for seed in (seed..seed + count).filter(|seed| seed % lanes == number) {
            if failed.load(Relaxed) >= ENOUGH {
                return;
            }
            let program = program(seed);
            if let Some(found) = model.play(lane, &program).await {
                failed.fetch_add(1, Relaxed);
                let report = model.report(lane, &program, found).await;
                eprintln!("{report}\n");
                failures.lock().expect("a list").push(report);
            }
        }
    };
    tokio::join!(run_lane(0), run_lane(1), run_lane(2), run_lane(3));
    eprintln!("{count} programs from seed {seed} in {:?}", begun.elapsed());
    assert_no_panics();
    let failures = failures.into_inner().expect("a list");
    assert!(failures.is_empty(), "{} differ", failures.len());
}
