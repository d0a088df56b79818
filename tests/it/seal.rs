//! Posture sealed: tenants who may run any SQL, in one database with one role, and cannot become
//! each other.

use std::collections::BTreeSet;
use std::time::Duration;

use pgtenant::cluster::{Cluster, Options};
use pgtenant::config::{SealKey, Secret};
use pgtenant::control::{harden, seal};
use pgtenant::id::ServerName;
use sha2::{Digest, Sha256};
use tokio_postgres::Client;

use crate::audit::AuditFile;
use crate::harness::{Running, SECRET, cluster, parse};
use crate::wire::{Wire, column, errors, query, rows};

const OLD: &str = "an old key of thirty-two characters";
const NEW: &str = "a new key of thirty-two characters!";
const BODIES: &str = "SELECT body FROM items ORDER BY 1";
const FORGED: &str = "the tenant context of this session is not valid";

/// What tenants own in `plain` is told apart by the variable, in `items` by the seal.
const SQL: &str = "
    CREATE TABLE plain (tenant text NOT NULL, body text);
    ALTER TABLE plain ENABLE ROW LEVEL SECURITY;
    CREATE POLICY tenant ON plain USING (tenant = (SELECT current_setting('app.tenant_id', true)));
    CREATE TABLE items (tenant text NOT NULL DEFAULT pgtenant.tenant_id(), body text);
    ALTER TABLE items ENABLE ROW LEVEL SECURITY;
    CREATE POLICY tenant ON items USING (tenant = (SELECT pgtenant.tenant_id()));
    INSERT INTO plain VALUES ('a', 'of a'), ('b', 'of b');
    INSERT INTO items VALUES ('a', 'of a'), ('b', 'of b');
    GRANT SELECT, INSERT, UPDATE, DELETE ON plain, items TO app;";

struct Config<'c> {
    key: &'c str,
    lifetime: &'c str,
    pooling: &'c str,
    size: usize,
}

const USUAL: Config<'static> = Config {
    key: OLD,
    lifetime: "10m",
    pooling: "transaction",
    size: 1,
};

impl Config<'_> {
    fn yaml(&self, cluster: &Cluster) -> String {
        let Self {
            key,
            lifetime,
            pooling,
            size,
        } = self;
        format!(
            "listen: [{{ address: \"127.0.0.1:0\" }}]
workers: 1
servers:
  s: {{ host: 127.0.0.1, port: {}, sslmode: disable, max_connections: 20, admin: {{ user: postgres, password: {} }},
       seal: {{ key: {key:?}, lifetime: {lifetime} }} }}
placements:
  free: {{ tier: pool, server: s, database: app, login: {{ user: app, password: {SECRET} }}, pooling: {pooling},
          context: {{ app.tenant_id: \"{{tenant}}\" }}, posture: sealed, guard: false, pool: {{ size: {size} }} }}
  own: {{ tier: pool, server: s, database: app, login: {{ user: \"t_{{tenant}}\", password: {SECRET} }},
         context: {{ app.tenant_id: \"{{tenant}}\" }}, posture: sealed, guard: false, pool: {{ size: {size} }} }}
tenants:
  a: {{ placement: free, users: {{ app: {{ password: a }} }} }}
  b: {{ placement: free, users: {{ app: {{ password: b }} }} }}
  c: {{ placement: own, users: {{ app: {{ password: c }} }} }}
  d: {{ placement: own, users: {{ app: {{ password: d }} }} }}
",
            cluster.port(),
            cluster.superuser_password(),
        )
    }

    fn start(&self, cluster: &Cluster) -> Running {
        Running::start(&self.yaml(cluster))
    }

    async fn install(&self, cluster: &Cluster) -> Result<seal::Sealed, String> {
        let config = parse(&self.yaml(cluster));
        let name = ServerName::new("s").unwrap();
        let target = &seal::targets(&config, &name)[0];
        seal::install(&config.servers[&name], target, Duration::from_secs(3600)).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parallel_query_finds_its_tenant() {
    let cluster = sealed("parallel").await;
    let many = "INSERT INTO items SELECT 'a', 'of a' FROM generate_series(1, 20000); ANALYZE items";
    cluster.run("app", many).await.unwrap();
    let proxy = USUAL.start(&cluster);
    let mut a = connect(&proxy, "a").await;
    let settings = "BEGIN; SET LOCAL parallel_setup_cost = 0; SET LOCAL parallel_tuple_cost = 0; \
                    SET LOCAL min_parallel_table_scan_size = 0; SET LOCAL max_parallel_workers_per_gather = 2";
    assert!(errors(&a.query(settings).await).is_empty());
    let plan = a
        .column("EXPLAIN (ANALYZE, COSTS OFF) SELECT count(*) FROM items")
        .await;
    assert!(plan.iter().any(|line| line.contains("Gather")), "{plan:?}");
    assert_eq!(a.column("SELECT count(*) FROM items").await, ["20001"]);
}

/// A server with a database that is sealed.
async fn sealed(name: &str) -> Cluster {
    let cluster = unsealed(name).await;
    let done = USUAL.install(&cluster).await.unwrap();
    assert!(done.new);
    cluster.run("app", SQL).await.unwrap();
    cluster
}

async fn unsealed(name: &str) -> Cluster {
    let cluster = cluster(Options {
        max_connections: 40,
        settings: vec![("shared_buffers".into(), "16MB".into())],
        ..Options::named(name)
    })
    .await;
    cluster
        .run("postgres", "CREATE DATABASE app")
        .await
        .unwrap();
    for role in ["app", "t_c", "t_d"] {
        let sql = format!("CREATE ROLE {role} LOGIN PASSWORD '{SECRET}'");
        cluster.run("app", &sql).await.unwrap();
    }
    cluster
}

async fn try_connect(proxy: &Running, tenant: &str) -> Result<Wire, String> {
    let mut wire = Wire::tcp(proxy.address).await;
    let user = format!("app.{tenant}");
    wire.log_in(&[("user", &user), ("database", "app")], tenant)
        .await
        .map_err(|error| error.field(b'M').unwrap_or_default())?;
    Ok(wire)
}

async fn connect(proxy: &Running, tenant: &str) -> Wire {
    try_connect(proxy, tenant).await.unwrap()
}

async fn bodies(wire: &mut Wire) -> Vec<String> {
    let frames = wire.query(BODIES).await;
    assert!(errors(&frames).is_empty(), "{:?}", errors(&frames));
    column(&frames)
}

async fn value(wire: &mut Wire) -> String {
    wire.column("SELECT current_setting('pgtenant.context')")
        .await
        .remove(0)
}

/// What statements that are sent together in a transaction show of `table`.
async fn shown(wire: &mut Wire, trick: &str, table: &str) -> Vec<String> {
    let frames = wire
        .query(&format!("BEGIN; {trick}; SELECT body FROM {table}; COMMIT"))
        .await;
    let found = rows(&frames)
        .into_iter()
        .filter(|row| row.starts_with("of "))
        .collect();
    wire.query("ROLLBACK").await;
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_cannot_become_another_by_any_change_of_variables() {
    let cluster = sealed("variables").await;
    let proxy = USUAL.start(&cluster);
    let mut a = connect(&proxy, "a").await;
    let mut b = connect(&proxy, "b").await;
    assert_eq!(bodies(&mut b).await, ["of b"]);
    assert_eq!(value(&mut b).await, "b");
    assert_eq!(bodies(&mut a).await, ["of a"]);
    assert_eq!(value(&mut a).await, "a");

    // With a policy on the variable alone, all of these show what is b's.
    for trick in [
        "SELECT set_config('app.' || 'tenant_id', 'b', false)",
        "SELECT set_config('app.' || 'tenant_id', 'b', true)",
        "DO $$ BEGIN EXECUTE 'S' || 'ET app.tenant' || '_id = ''b'''; END $$",
        "SELECT query_to_xml('SELECT set_con' || 'fig(''app.tenant_id'', ''b'', false)', true, false, '')",
    ] {
        assert_eq!(shown(&mut a, trick, "plain").await, ["of b"], "{trick}");
        assert_eq!(shown(&mut a, trick, "items").await, ["of a"], "{trick}");
    }
    // And none of these shows anything that is not a's.
    for forged in [
        "b", "b|||", "|||", "a|b|c|d", "a|", "a ", " a", "A", "á", "aa",
    ] {
        let trick = format!("SET pgtenant.context = '{forged}'");
        assert!(shown(&mut a, &trick, "items").await.is_empty(), "{trick}");
        let frames = a.query(&format!("BEGIN; {trick}; {BODIES}")).await;
        assert_eq!(
            frames
                .iter()
                .find_map(|f| f.field(b'M').filter(|_| f.tag == b'E'))
                .as_deref(),
            Some(FORGED)
        );
        a.query("ROLLBACK").await;
    }
    for trick in [
        "SET pgtenant.context = ''",
        "RESET pgtenant.context",
        "RESET ALL",
        "SELECT set_config('pgtenant.context', NULL, false)",
        "DISCARD SEQUENCES",
    ] {
        assert!(shown(&mut a, trick, "items").await.is_empty(), "{trick}");
        assert_eq!(bodies(&mut a).await, ["of a"], "after {trick}");
    }
    // What only the database knows of costs one error.
    for trick in [
        "SELECT pgtenant.challenge(0, '')",
        "DO $$ BEGIN EXECUTE 'DISCARD ' || 'SEQUENCES'; END $$",
    ] {
        a.query(trick).await;
        let frames = a.query(BODIES).await;
        assert!(
            errors(&frames) == ["42501"]
                || errors(&frames) == ["55000"]
                || rows(&frames) == ["of a"],
            "{trick}"
        );
        assert_eq!(bodies(&mut a).await, ["of a"], "after {trick}");
    }
    // Everything in one message, so that nothing is set again in between.
    for trick in ["RESET ALL", "SET pgtenant.context = ''"] {
        let frames = a.query(&format!("{trick}; {BODIES}")).await;
        assert_eq!(errors(&frames), ["42501"], "{trick}");
        assert!(!rows(&frames).iter().any(|row| row.starts_with("of")));
    }
    a.query("DISCARD ALL").await;
    assert_eq!(bodies(&mut a).await, ["of a"]);
    assert_eq!(bodies(&mut b).await, ["of b"]);
    // Neither can it write what is another's.
    let frames = a.query("INSERT INTO items VALUES ('b', 'of b by a')").await;
    assert_eq!(errors(&frames).len(), 1);
    let frames = a.query("BEGIN; SELECT set_config('app.' || 'tenant_id', 'b', true); INSERT INTO items (body) VALUES ('x') RETURNING tenant; ROLLBACK").await;
    assert!(column(&frames).contains(&"a".to_owned()), "{frames:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_that_is_forged_or_lost_is_in_the_audit() {
    let cluster = sealed("audited").await;
    let file = AuditFile::new();
    let proxy = Running::start(&format!("{}{}", file.section(""), USUAL.yaml(&cluster)));
    let mut seen = 0;
    let mut a = connect(&proxy, "a").await;
    let forge = format!("BEGIN; SET LOCAL pgtenant.context = 'b|1|c|f0rg3d'; {BODIES}");
    assert_eq!(errors(&a.query(&forge).await), ["42501"]);
    a.query("ROLLBACK").await;
    let event = file.next(&mut seen).await;
    assert_eq!(
        (&event["kind"], &event["sqlstate"]),
        (&"seal".into(), &"42501".into())
    );
    assert_eq!(
        (&event["tenant"], &event["user"]),
        (&"a".into(), &"app".into())
    );
    assert_eq!(
        event["statement"],
        "begin; set local pgtenant.context = ?; select body from items order by ?"
    );
    let lose = format!("DISCARD SEQUENCES; {BODIES}");
    assert_eq!(errors(&a.query("BEGIN").await), [""; 0]);
    assert_eq!(errors(&a.query(&lose).await), ["55000"]);
    a.query("ROLLBACK").await;
    let event = file.next(&mut seen).await;
    assert_eq!(
        (&event["kind"], &event["sqlstate"]),
        (&"seal".into(), &"55000".into())
    );
    // Without a context; and with a foreign tenant in the row: row level security refuses.
    for (sql, kind) in [
        (
            "BEGIN; RESET pgtenant.context; INSERT INTO items VALUES ('b', 'x')",
            "seal",
        ),
        ("INSERT INTO items VALUES ('b', 'x')", "rls"),
    ] {
        assert_eq!(errors(&a.query(sql).await), ["42501"], "{sql}");
        a.query("ROLLBACK").await;
        let event = file.next(&mut seen).await;
        assert_eq!(event["kind"], kind, "{sql}");
    }
    assert_eq!(a.column(BODIES).await, ["of a"]);
    assert!(!file.text().contains("f0rg3d"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_and_what_a_session_is_bound_to_are_out_of_reach() {
    let cluster = sealed("reach").await;
    let proxy = USUAL.start(&cluster);
    let mut a = connect(&proxy, "a").await;
    for sql in [
        "SELECT * FROM pgtenant.keys",
        "SELECT pgtenant.put_key('0123456789abcdef', '', '')",
        "SELECT pgtenant.retire_keys('', '0s')",
        "SELECT pgtenant.define_key('0123456789abcdef')",
        "SELECT pgtenant.keep_to_owner()",
        "SELECT 'b'::pgtenant.bound_tenant",
        "CREATE TEMP TABLE x (x pgtenant.bound_tenant)",
        "ALTER DOMAIN pgtenant.bound_tenant DROP CONSTRAINT valid",
        "DROP DOMAIN pgtenant.bound_tenant",
        "CREATE FUNCTION pgtenant.x() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE OR REPLACE FUNCTION pgtenant.tenant_id() RETURNS text LANGUAGE sql AS $$SELECT 'b'$$",
        "DROP FUNCTION pgtenant.tenant_id()",
        "ALTER FUNCTION pgtenant.tenant_id() RESET search_path",
        "COPY pgtenant.keys TO STDOUT",
    ] {
        let codes: Vec<_> = errors(&a.query(sql).await);
        assert_eq!(codes, ["42501"], "{sql}");
    }
    let sequences = "SELECT relname FROM pg_class WHERE relnamespace = 'pgtenant'::regnamespace AND relkind = 'S'";
    let sequences = a.column(sequences).await;
    assert_eq!(sequences.len(), 11, "{sequences:?}");
    for sequence in sequences {
        for sql in [
            "SELECT nextval('pgtenant.{}')",
            "SELECT setval('pgtenant.{}', 1)",
            "SELECT currval('pgtenant.{}')",
            "SELECT last_value FROM pgtenant.{}",
            "ALTER SEQUENCE pgtenant.{} RESTART",
            "ALTER SEQUENCE pgtenant.{} OWNER TO app",
        ] {
            let sql = sql.replace("{}", &sequence);
            assert_eq!(errors(&a.query(&sql).await), ["42501"], "{sql}");
        }
        for sql in [
            "SELECT pg_sequence_last_value('pgtenant.{}')",
            "SELECT last_value FROM pg_sequences WHERE sequencename = '{}'",
        ] {
            let frames = a.query(&sql.replace("{}", &sequence)).await;
            let told = rows(&frames).concat();
            assert!(told.is_empty(), "{sequence}: {told}");
        }
    }
    // It may keep its connection, for its sequences.
    drop(a);
    // Objects of its own before those of the system; plans in the log that a client is told.
    let mut secrets = Vec::new();
    for pad in key(OLD).pads() {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        secrets.push(hex(&pad[..32]));
        // As a plan shows bytes, and as what is kept in sequences.
        let printed: Vec<_> = pad[..8]
            .iter()
            .map(|&b| i8::from_ne_bytes([b]).to_string())
            .collect();
        secrets.push(printed.join(" "));
        for part in pad[..32].chunks(8) {
            secrets.push(i64::from_be_bytes(part.try_into().unwrap()).to_string());
        }
    }
    for setting in [
        "SET search_path = pg_temp, public; CREATE FUNCTION pg_temp.sha256(bytea) RETURNS bytea LANGUAGE sql AS $$SELECT ''::bytea$$",
        "SET debug_print_parse = on; SET debug_print_rewritten = on; SET debug_print_plan = on; SET client_min_messages = log",
        "SET plan_cache_mode = force_custom_plan; SET debug_print_plan = on; SET client_min_messages = debug5",
        "SET transform_null_equals = on",
        "SET bytea_output = escape",
        "SET standard_conforming_strings = off",
        "SET client_encoding = SJIS",
    ] {
        let mut a = connect(&proxy, "a").await;
        for statement in setting.split_inclusive("; ") {
            a.query(statement).await;
        }
        let frames = a.query("SELECT body FROM public.items ORDER BY 1").await;
        assert_eq!(
            rows(&frames).first().map(String::as_str),
            Some("of a"),
            "{setting}"
        );
        let said = frames
            .iter()
            .map(|frame| String::from_utf8_lossy(&frame.body));
        let said = said.collect::<Vec<_>>().concat();
        for secret in &secrets {
            assert!(!said.contains(secret), "{setting}");
        }
    }
}

fn key(secret: &str) -> SealKey {
    SealKey::derive(&Secret::new(secret.to_owned()), "app")
}

/// What the database tells everybody of a session.
struct Session {
    pid: i32,
    /// Both in µs since 2000.
    started: i64,
    clock: i64,
}

impl Session {
    async fn of(client: &Client) -> Self {
        let row = client
            .query_one("SELECT pgtenant.challenge(0, '')", &[])
            .await
            .unwrap();
        let answer: String = row.get(0);
        let fields: Vec<i64> = answer
            .split('|')
            .map(|field| field.parse().unwrap())
            .collect();
        Self {
            pid: fields[1].try_into().unwrap(),
            started: fields[2] - 946_684_800_000_000,
            clock: (fields[3] - 946_684_800) * 1_000_000,
        }
    }

    /// What pgtenant would bind with, to be used within `in_time` s, for `until` s.
    fn sealed(&self, key: &SealKey, tenant: &str, until: i64, in_time: i64) -> String {
        let hash = Sha256::digest(tenant);
        let half = |at: usize| i64::from_be_bytes(hash[at..at + 8].try_into().unwrap());
        let signed = format!(
            "{tenant}|{}|{}|{}|{}",
            self.clock + until * 1_000_000,
            half(0),
            half(8),
            self.clock + in_time * 1_000_000
        );
        let (pid, started) = (self.pid.to_be_bytes(), self.started.to_be_bytes());
        let mac = key.sign(&[signed.as_bytes(), &pid, &started].concat());
        format!("{signed}|{mac}")
    }
}

/// Without pgtenant.
async fn as_app(cluster: &Cluster) -> Client {
    let mut config = cluster.config("app");
    let config = config.user("app").password(SECRET);
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn bind(client: &Client, key: &SealKey, sealed: &str) -> Result<(), String> {
    let sql = format!("SELECT pgtenant.bind_{}($1) IS NOT NULL", key.id());
    let done = client.query_one(&sql, &[&sealed]).await;
    done.map(|_| ()).map_err(|error| code(&error))
}

fn code(error: &tokio_postgres::Error) -> String {
    error
        .code()
        .map_or_else(|| error.to_string(), |code| code.code().to_owned())
}

fn refused<T>() -> Result<T, String> {
    Err("42501".to_owned())
}

async fn tenant(client: &Client) -> Result<Option<String>, String> {
    let row = client.query_one("SELECT pgtenant.tenant_id()", &[]).await;
    row.map(|row| row.get(0)).map_err(|error| code(&error))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_bound_by_what_is_sealed_for_it_and_by_nothing_else() {
    let cluster = sealed("binding").await;
    let other = as_app(&cluster).await;
    let client = as_app(&cluster).await;
    let (session, old, new) = (Session::of(&client).await, key(OLD), key(NEW));
    assert_eq!(tenant(&client).await, Ok(None));

    let good = session.sealed(&old, "b", 600, 60);
    let (signed, mac) = good.rsplit_once('|').unwrap();
    let elsewhere = |session: Session| session.sealed(&old, "b", 600, 60);
    let (pid, started, clock) = (session.pid, session.started, session.clock);
    for forged in [
        String::new(),
        "|".repeat(70),
        "b".to_owned(),
        signed.to_owned(),
        format!("{signed}|"),
        format!("{signed}|{}", "0".repeat(64)),
        format!("{signed}|{}", mac.to_uppercase()),
        format!("a|{signed}|{mac}"),
        good.replacen("b|", "a|", 1),
        good.replacen("b|", "b||", 1),
        good.replacen("b|", "b |", 1),
        format!("{good} "),
        session.sealed(&new, "b", 600, 60),
        session.sealed(&old, "b", 600, -1),
        elsewhere(Session {
            pid: pid + 1,
            started,
            clock,
        }),
        elsewhere(Session {
            pid,
            started: started + 1,
            clock,
        }),
        Session::of(&other).await.sealed(&old, "b", 600, 60),
    ] {
        assert_eq!(bind(&client, &old, &forged).await, refused(), "{forged}");
        assert_eq!(tenant(&client).await, Ok(None), "{forged}");
    }
    let null = format!("SELECT pgtenant.bind_{}(NULL)", old.id());
    assert_eq!(
        code(&client.query_one(&null, &[]).await.unwrap_err()),
        "42501"
    );
    // Not even with what is right, where the function is not what does it.
    let cast = format!("SELECT $1::text::pgtenant.credential_{}", old.id());
    assert!(client.query_one(&cast, &[&good]).await.is_err());
    assert_eq!(bind(&client, &new, &good).await, Err("42883".to_owned()));

    assert_eq!(bind(&client, &old, &good).await, Ok(()));
    assert_eq!(tenant(&client).await, Ok(Some("b".to_owned())));
    // Nobody else is; nor is the value good there.
    assert_eq!(tenant(&other).await, Ok(None));
    assert_eq!(bind(&other, &old, &good).await, refused());
    other
        .batch_execute("SET pgtenant.context = 'b'")
        .await
        .unwrap();
    assert_eq!(tenant(&other).await, Err("55000".to_owned()));

    // What ends it, and what does not.
    let run = async |sql: &str| {
        client
            .batch_execute(sql)
            .await
            .map_err(|error| code(&error))
    };
    for (sql, then) in [
        (
            "BEGIN READ ONLY; SELECT pgtenant.tenant_id(); COMMIT",
            Ok(Some("b".to_owned())),
        ),
        (
            "BEGIN; SAVEPOINT s; SET LOCAL pgtenant.context = 'a'; ROLLBACK TO s; COMMIT",
            Ok(Some("b".to_owned())),
        ),
        ("SET pgtenant.context = 'a'", refused()),
        (
            "RESET pgtenant.context; SET pgtenant.context = 'b'",
            Ok(Some("b".to_owned())),
        ),
        ("RESET ALL", refused()),
        (
            "SET pgtenant.context = 'b'; DISCARD SEQUENCES",
            Err("55000".to_owned()),
        ),
    ] {
        assert_eq!(run(sql).await, Ok(()), "{sql}");
        assert_eq!(tenant(&client).await, then, "{sql}");
    }
    // Another tenant's turn: what the first one could see of its own is good for nothing.
    let next = session.sealed(&old, "a", 600, 60);
    assert_eq!(bind(&client, &old, &next).await, Ok(()));
    assert_eq!(tenant(&client).await, Ok(Some("a".to_owned())));
    run("SET pgtenant.context = 'b'").await.unwrap();
    assert_eq!(tenant(&client).await, refused());

    // A transaction that is rolled back: whoever it was bound to, the name is the one before.
    run("DISCARD ALL").await.unwrap();
    run("BEGIN").await.unwrap();
    assert_eq!(bind(&client, &old, &good).await, Ok(()));
    run("ROLLBACK").await.unwrap();
    assert_eq!(tenant(&client).await, refused());
    // Where nothing can be written, nobody is bound.
    run("DISCARD ALL; ").await.unwrap();
    run("BEGIN READ ONLY").await.unwrap();
    assert_eq!(bind(&client, &old, &good).await, Err("25006".to_owned()));
    run("ROLLBACK").await.unwrap();
    assert!(tenant(&client).await.is_err());

    // Until its time is over, and until the key's.
    let short = session.sealed(&old, "b", -1, 60);
    assert_eq!(bind(&client, &old, &short).await, Ok(()));
    assert_eq!(tenant(&client).await, refused());
    cluster
        .run(
            "app",
            "SELECT pgtenant.retire_keys('none', '1s'); SELECT pg_sleep(1.1)",
        )
        .await
        .unwrap();
    assert_eq!(bind(&client, &old, &good).await, refused());
    cluster
        .run("app", "SELECT pgtenant.retire_keys('none', '1s')")
        .await
        .unwrap();
    assert_eq!(bind(&client, &old, &good).await, Err("42883".to_owned()));
    let left = "SELECT count(*) FROM pg_class WHERE relnamespace = 'pgtenant'::regnamespace AND relname LIKE 'key\\_%'";
    let left: i64 = cluster
        .connect("app")
        .await
        .unwrap()
        .query_one(left, &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(left, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_binds_a_session_is_told_no_tenant() {
    let cluster = sealed("untold").await;
    // All that makes a server tell its client what it is asked.
    cluster.run("app", "ALTER ROLE app SET log_statement = 'all'; ALTER ROLE app SET client_min_messages = 'debug5'; \
        ALTER ROLE app SET debug_print_plan = on; ALTER ROLE app SET debug_print_parse = on; ALTER ROLE app SET log_duration = on; \
        ALTER ROLE app SET log_min_duration_statement = 0; ALTER ROLE app SET log_parameter_max_length = -1").await.unwrap();
    for (pooling, size) in [("transaction", 1), ("transaction", 2)] {
        let proxy = Config {
            pooling,
            size,
            ..USUAL
        }
        .start(&cluster);
        let (mut a, mut b) = (connect(&proxy, "a").await, connect(&proxy, "b").await);
        for _ in 0..3 {
            for wire in [&mut a, &mut b] {
                let frames = wire.query(BODIES).await;
                let said = frames
                    .iter()
                    .map(|frame| String::from_utf8_lossy(&frame.body));
                let said = said.collect::<Vec<_>>().concat();
                assert!(said.contains("PLANNEDSTMT"), "{said}");
                assert!(!said.contains("bind_"), "{said}");
                let seen = "SELECT query FROM pg_stat_activity UNION ALL SELECT statement FROM pg_prepared_statements \
                            UNION ALL SELECT statement FROM pg_cursors UNION ALL SELECT setting FROM pg_settings";
                for text in wire.column(seen).await {
                    assert!(!text.contains("b|") && !text.contains("a|"), "{text}");
                }
            }
        }
    }
}

/// As it was left by version 2 of the seal, whose pads were in the table.
const VERSION_2: &str = "
    CREATE SCHEMA pgtenant;
    CREATE TABLE pgtenant.keys (id text PRIMARY KEY, inner_pad bytea NOT NULL, outer_pad bytea NOT NULL,
        made timestamptz NOT NULL DEFAULT now(), not_after timestamptz);
    CREATE SEQUENCE pgtenant.epoch;
    CREATE FUNCTION pgtenant.next_epoch() RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN RETURN nextval(''pgtenant.epoch''); END';
    CREATE FUNCTION pgtenant.challenge(known bigint, key text) RETURNS text LANGUAGE plpgsql VOLATILE SECURITY DEFINER
        AS 'BEGIN RETURN ''2|1|1|1000|500|1|99''; END';
    CREATE FUNCTION pgtenant.refuse() RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE ''no''; END';
    CREATE DOMAIN pgtenant.sealed_value AS bytea CONSTRAINT valid CHECK (pgtenant.refuse() IS NULL);
    CREATE FUNCTION pgtenant.tenant_id() RETURNS text LANGUAGE plpgsql STABLE SECURITY DEFINER AS 'BEGIN RETURN NULL; END';
    GRANT USAGE ON SCHEMA pgtenant TO PUBLIC;
    COMMENT ON SCHEMA pgtenant IS 'pgtenant seal, version 2'";

#[tokio::test(flavor = "multi_thread")]
async fn a_database_with_version_2_of_the_seal_is_brought_up_to_date() {
    let cluster = unsealed("upgrade").await;
    cluster.run("app", VERSION_2).await.unwrap();
    // What an operator meant for the application's own sequences.
    cluster
        .run(
            "app",
            "ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO app",
        )
        .await
        .unwrap();
    let admin = cluster.connect("app").await.unwrap();
    let [inner, outer] = key(NEW).pads();
    let insert = "INSERT INTO pgtenant.keys VALUES ($1, $2, $3, now(), now() + interval '1 hour')";
    let new = key(NEW).id().to_owned();
    admin
        .execute(insert, &[&new, &&inner[..], &&outer[..]])
        .await
        .unwrap();
    cluster.run("app", SQL).await.unwrap();
    let proxy = USUAL.start(&cluster);
    let error = try_connect(&proxy, "a").await.err().unwrap();
    assert!(
        error.contains("not prepared for a sealed tenant context"),
        "{error}"
    );

    for expected in [true, false] {
        let done = USUAL.install(&cluster).await.unwrap();
        assert_eq!((done.new, done.retiring), (expected, 1));
    }
    // Policies are as they were. Both keys are good.
    for config in [USUAL, Config { key: NEW, ..USUAL }] {
        let proxy = config.start(&cluster);
        assert_eq!(bodies(&mut connect(&proxy, "a").await).await, ["of a"]);
    }
    // A pgtenant of version 2 is told so, and gets no number.
    let answer: String = admin
        .query_one("SELECT pgtenant.challenge(0, '')", &[])
        .await
        .unwrap()
        .get(0);
    assert!(answer.starts_with("3|"), "{answer}");
    assert!(
        admin
            .query_one("SELECT pgtenant.next_epoch()", &[])
            .await
            .is_err()
    );
    let app = as_app(&cluster).await;
    let error = app
        .query_one("SELECT setval('pgtenant.bound_1', 1)", &[])
        .await
        .unwrap_err();
    assert_eq!(code(&error), "42501");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_good_for_none_but_whose_turn_it_is_and_not_later() {
    let cluster = sealed("replay").await;
    // One connection, that goes from tenant to tenant.
    let proxy = USUAL.start(&cluster);
    let mut b = connect(&proxy, "b").await;
    let leaked = value(&mut b).await;
    let trick = format!("SET pgtenant.context = '{leaked}'");
    let mut a = connect(&proxy, "a").await;
    let pid = |frames: &str| frames.to_owned();
    let before = pid(&b.column("SELECT pg_backend_pid()").await[0]);
    assert_eq!(
        a.column("SELECT pg_backend_pid()").await,
        [before],
        "one connection"
    );
    assert!(shown(&mut a, &trick, "items").await.is_empty());
    assert_eq!(bodies(&mut b).await, ["of b"]);
    drop((a, b, proxy));

    // Several connections at once.
    let proxy = Config { size: 4, ..USUAL }.start(&cluster);
    let (mut a, mut b) = (connect(&proxy, "a").await, connect(&proxy, "b").await);
    b.query("BEGIN").await;
    let leaked = value(&mut b).await;
    let trick = format!("SET pgtenant.context = '{leaked}'");
    assert!(shown(&mut a, &trick, "items").await.is_empty());
    assert!(shown(&mut b, "SELECT 1", "items").await == ["of b"]);
    drop((a, b, proxy));

    // After its life, on its own connection; also with the clock of the transaction at its start.
    let proxy = Config {
        lifetime: "2s",
        ..USUAL
    }
    .start(&cluster);
    let mut b = connect(&proxy, "b").await;
    b.query("BEGIN").await;
    assert_eq!(bodies(&mut b).await, ["of b"]);
    let leaked = value(&mut b).await;
    b.query("SELECT pg_sleep(3.1)").await;
    assert_eq!(
        bodies(&mut b).await,
        ["of b"],
        "a transaction keeps its tenant"
    );
    let frames = b
        .query(&format!(
            "COMMIT; BEGIN; SET pgtenant.context = '{leaked}'; {BODIES}"
        ))
        .await;
    assert_eq!(errors(&frames), ["42501"]);
    assert!(!rows(&frames).iter().any(|row| row == "of b"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_is_renewed_for_who_keeps_a_connection() {
    let cluster = sealed("renewal").await;
    cluster.run("app", "CREATE PROCEDURE p() LANGUAGE plpgsql AS $$ BEGIN
        FOR i IN 1..4 LOOP PERFORM pg_sleep(0.9); COMMIT; PERFORM FROM items; IF NOT FOUND THEN RAISE 'none'; END IF; END LOOP; END $$").await.unwrap();
    for (pooling, pin) in [
        ("session", "SELECT 1"),
        ("transaction", "CREATE TEMP TABLE t ()"),
    ] {
        let proxy = Config {
            lifetime: "2s",
            pooling,
            ..USUAL
        }
        .start(&cluster);
        let mut a = connect(&proxy, "a").await;
        a.query(pin).await;
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(800)).await;
            assert_eq!(bodies(&mut a).await, ["of a"], "{pooling}");
        }
        // Idle for longer than its life.
        tokio::time::sleep(Duration::from_millis(3200)).await;
        assert_eq!(bodies(&mut a).await, ["of a"], "{pooling}");
        // A long transaction, then the next; a procedure that commits.
        a.query("BEGIN").await;
        a.query("SELECT pg_sleep(3.1)").await;
        assert_eq!(bodies(&mut a).await, ["of a"], "{pooling}");
        a.query("COMMIT").await;
        assert_eq!(bodies(&mut a).await, ["of a"], "{pooling}");
        assert!(errors(&a.query("CALL p()").await).is_empty(), "{pooling}");
        assert_eq!(bodies(&mut a).await, ["of a"], "{pooling}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_take_turns_on_pooled_connections() {
    let cluster = sealed("turns").await;
    for (size, pooling) in [(1, "transaction"), (3, "transaction")] {
        let proxy = Config {
            size,
            pooling,
            ..USUAL
        }
        .start(&cluster);
        let mut clients = Vec::new();
        for tenant in ["a", "b", "a", "b", "a"] {
            clients.push((connect(&proxy, tenant).await, format!("of {tenant}")));
        }
        let turns = clients.into_iter().map(|(mut wire, body)| async move {
            for n in 0..60 {
                assert_eq!(bodies(&mut wire).await.join(","), body);
                if n % 7 == 0 {
                    wire.query("SET work_mem = '1MB'").await;
                }
            }
        });
        futures_util::future::join_all(turns).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_changed_while_clients_are_served() {
    let cluster = sealed("rotation").await;
    let proxy = Config { size: 2, ..USUAL }.start(&cluster);
    let mut held = connect(&proxy, "a").await;
    held.query("CREATE TEMP TABLE t ()").await;
    let mut b = connect(&proxy, "b").await;
    assert_eq!(bodies(&mut b).await, ["of b"]);

    let new = Config {
        key: NEW,
        size: 2,
        ..USUAL
    };
    let done = new.install(&cluster).await.unwrap();
    assert!(done.new && done.retiring == 1);
    let again = new.install(&cluster).await.unwrap();
    assert!(!again.new && again.retiring == 1, "it can be run again");
    for wire in [&mut held, &mut b] {
        assert_eq!(bodies(wire).await.len(), 1);
    }
    proxy.reload(&new.yaml(&cluster));
    assert_eq!(bodies(&mut held).await, ["of a"], "sealed with the old key");
    assert_eq!(bodies(&mut b).await, ["of b"]);

    // The old key is retired, and the proxy binds with the new one.
    cluster.run("app", "UPDATE pgtenant.keys SET not_after = now() - interval '1s' WHERE not_after IS NOT NULL").await.unwrap();
    assert_eq!(new.install(&cluster).await.unwrap().retiring, 0);
    assert_eq!(bodies(&mut b).await, ["of b"]);
    let mut late = connect(&proxy, "b").await;
    assert_eq!(bodies(&mut late).await, ["of b"]);
    assert!(!new.install(&cluster).await.unwrap().new);
    let rows = cluster
        .connect("app")
        .await
        .unwrap()
        .query("SELECT id FROM pgtenant.keys", &[])
        .await
        .unwrap();
    assert_eq!(rows.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_key_nobody_is_served() {
    let cluster = unsealed("keys").await;
    let proxy = USUAL.start(&cluster);
    let refused = |error: String| error.contains("not prepared for a sealed tenant context");
    assert!(
        try_connect(&proxy, "a").await.err().is_some_and(refused),
        "no schema"
    );
    USUAL.install(&cluster).await.unwrap();
    cluster.run("app", SQL).await.unwrap();
    assert_eq!(bodies(&mut connect(&proxy, "a").await).await, ["of a"]);
    let wrong = Config { key: NEW, ..USUAL }.start(&cluster);
    assert!(
        try_connect(&wrong, "a").await.err().is_some_and(refused),
        "another key"
    );
    // Nor is a role that could read the key let near it.
    cluster
        .run("app", "GRANT pg_read_all_data TO app")
        .await
        .unwrap();
    let error = USUAL.install(&cluster).await.unwrap_err();
    assert!(error.contains("role \"app\" can read the key"), "{error}");
    cluster
        .run("postgres", "CREATE DATABASE other")
        .await
        .unwrap();
    cluster
        .run("other", "CREATE SCHEMA pgtenant AUTHORIZATION app")
        .await
        .unwrap();
    let config = parse(&USUAL.yaml(&cluster));
    let target = seal::Target {
        database: "other".to_owned(),
        roles: Default::default(),
    };
    let error = seal::install(&config.servers[0], &target, Duration::from_secs(60))
        .await
        .unwrap_err();
    assert!(error.contains("belongs to another role"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_cannot_name_the_sealed_variable_at_its_start() {
    let cluster = sealed("door").await;
    let proxy = USUAL.start(&cluster);
    for (name, value) in [
        ("pgtenant.context", "b"),
        ("PGTENANT.Context", "b"),
        ("options", "-c pgtenant.context=b"),
    ] {
        let mut wire = Wire::tcp(proxy.address).await;
        let error = wire
            .log_in(
                &[("user", "app.a"), ("database", "app"), (name, value)],
                "a",
            )
            .await
            .unwrap_err();
        assert_eq!(error.sqlstate(), "42501", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_may_have_roles_of_their_own_on_shared_tables() {
    let cluster = sealed("roles").await;
    cluster.run("app", "INSERT INTO items VALUES ('c', 'of c'), ('d', 'of d'); GRANT SELECT ON items TO t_c, t_d").await.unwrap();
    let proxy = USUAL.start(&cluster);
    let mut clients = Vec::new();
    for tenant in ["a", "c", "d", "b"] {
        clients.push((tenant, connect(&proxy, tenant).await));
    }
    for _ in 0..2 {
        for (tenant, wire) in &mut clients {
            assert_eq!(bodies(wire).await, [format!("of {tenant}")]);
        }
    }
    let role = &clients[1].1.column("SELECT session_user").await;
    assert_eq!(role, &["t_c"]);
    let instances = proxy.proxy.app().instances();
    let pools = instances.values().next().unwrap().pools();
    assert_eq!(pools.len(), 3, "one for each role");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_hardened_still_serves_and_shows_nothing_of_others() {
    let cluster = sealed("hardened").await;
    let config = parse(&USUAL.yaml(&cluster));
    let sql = harden::harden(&config, "free", None, &[harden::Group::All]).unwrap();
    for _ in 0..2 {
        cluster
            .run("app", &sql)
            .await
            .unwrap_or_else(|e| panic!("{e}\n{sql}"));
    }
    USUAL.install(&cluster).await.unwrap();
    let proxy = Config { size: 3, ..USUAL }.start(&cluster);
    let (mut a, mut b) = (connect(&proxy, "a").await, connect(&proxy, "b").await);
    assert_eq!(bodies(&mut a).await, ["of a"]);
    assert_eq!(bodies(&mut b).await, ["of b"]);
    for sql in [
        "SELECT * FROM pg_stat_activity",
        "SELECT pg_terminate_backend(1)",
        "SELECT pg_cancel_backend(1)",
        "SELECT * FROM pg_locks",
        "SELECT pg_notify('x', 'y')",
        "SELECT pg_advisory_lock(1)",
        "SELECT lo_create(0)",
        "UPDATE pg_settings SET setting = 'b' WHERE name = 'app.tenant_id'",
        "DO $$ BEGIN END $$",
        "CREATE TEMP TABLE x ()",
        "CREATE TABLE x ()",
        "TRUNCATE items",
    ] {
        assert_eq!(errors(&a.query(sql).await), ["42501"], "{sql}");
    }
    a.send(&query(BODIES)).await;
    assert_eq!(rows(&a.until_ready().await), ["of a"]);
}

/// What `harden` takes away is what the proxy would ask by, too.
#[tokio::test(flavor = "multi_thread")]
async fn code_in_a_hardened_database_ties_nobody_to_a_connection() {
    let cluster = sealed("hardened_code").await;
    let unguarded = USUAL.yaml(&cluster);
    let sql = harden::harden(&parse(&unguarded), "free", None, &[]).unwrap();
    cluster.run("app", &sql).await.unwrap();
    for yaml in [unguarded.replace("guard: false, ", ""), unguarded] {
        let proxy = Running::start(&yaml);
        let mut one = connect(&proxy, "a").await;
        let mut two = connect(&proxy, "a").await;
        for client in [&mut one, &mut two] {
            for code in ["DO $$ BEGIN PERFORM 1; END $$", "EXPLAIN EXECUTE nothing"] {
                client.query(code).await;
            }
            assert_eq!(client.column("SELECT 'served'").await, ["served"]);
        }
    }
}

/// Runs the program itself.
fn run(args: &[&str]) -> (bool, String, String) {
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_pgtenant"))
        .args(args)
        .output()
        .expect("it starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (out.status.success(), text(out.stdout), text(out.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_prepared_by_the_commands_of_the_readme() {
    let cluster = unsealed("by_commands").await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pgtenant.yaml");
    std::fs::write(&file, USUAL.yaml(&cluster)).unwrap();
    let config = file.to_str().unwrap();

    let (done, out, err) = run(&["seal", "--config", config, "--server", "s"]);
    assert!(
        done && out.starts_with("s/app: sealed, new key "),
        "{out}{err}"
    );
    let (done, out, _) = run(&[
        "seal",
        "--config",
        config,
        "--server",
        "s",
        "--database",
        "app",
    ]);
    assert!(done && out.starts_with("s/app: sealed, key "), "{out}");
    for (server, database, problem) in [
        ("nowhere", "app", "there is no server \"nowhere\""),
        (
            "s",
            "none",
            "s/none: 3D000: database \"none\" does not exist",
        ),
    ] {
        let (done, _, err) = run(&[
            "seal",
            "--config",
            config,
            "--server",
            server,
            "--database",
            database,
        ]);
        assert!(!done && err.contains(problem), "{err}");
    }

    // What is printed does the same where this program cannot connect.
    cluster
        .run("app", "DROP SCHEMA pgtenant CASCADE")
        .await
        .unwrap();
    let (done, sql, _) = run(&[
        "sql",
        "seal",
        "--config",
        config,
        "--server",
        "s",
        "--database",
        "app",
    ]);
    assert!(done);
    cluster.run("app", &sql).await.unwrap();
    let (done, harden, _) = run(&["sql", "harden", "--config", config, "--placement", "free"]);
    assert!(done);
    cluster.run("app", &harden).await.unwrap();
    cluster.run("app", SQL).await.unwrap();
    let proxy = USUAL.start(&cluster);
    assert_eq!(bodies(&mut connect(&proxy, "a").await).await, ["of a"]);

    let (done, without_key, _) = run(&["sql", "seal"]);
    assert!(done && sql.starts_with(&without_key) && sql.len() > without_key.len());
    let (done, _, err) = run(&["sql", "harden", "--config", config, "--placement", "none"]);
    assert!(
        !done && err.contains("there is no placement \"none\""),
        "{err}"
    );
}

/// The functions run with their owner's rights: no name in them may mean what a tenant made of it.
/// Types are looked for among temporary objects first.
#[tokio::test(flavor = "multi_thread")]
async fn a_type_of_the_tenants_own_does_not_get_to_see_the_key() {
    let cluster = sealed("own_types").await;
    let proxy = USUAL.start(&cluster);
    let mut a = connect(&proxy, "a").await;
    for (name, of) in [
        ("bytea", "bytea"),
        ("text", "text"),
        ("bound_tenant", "text"),
        ("bool", "bool"),
        ("int8", "int8"),
    ] {
        for made in [
            format!(
                "CREATE FUNCTION pg_temp.see_{name}(pg_catalog.{of}) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN \
                 PERFORM pg_catalog.set_config('app.seen', coalesce(pg_catalog.current_setting('app.seen', true), '') || '{name} ', false); \
                 RETURN true; END $$"
            ),
            format!(
                "CREATE DOMAIN pg_temp.{name} AS pg_catalog.{of} CHECK (pg_temp.see_{name}(VALUE))"
            ),
        ] {
            assert!(errors(&a.query(&made).await).is_empty(), "{made}");
        }
    }
    // So that they are what is called, were it by a name alone.
    let seen = "SELECT 'x'::text; SELECT current_setting('app.seen', true)";
    assert!(
        errors(
            &a.query("SET search_path = pg_temp, public, pg_catalog")
                .await
        )
        .is_empty()
    );
    assert_eq!(
        a.column(seen).await.last().map(String::as_str),
        Some("text ")
    );
    assert!(errors(&a.query("SET app.seen = ''").await).is_empty());
    for sql in [
        "SELECT body FROM public.items",
        "SELECT pgtenant.tenant_id()",
        "SELECT pgtenant.challenge(0, 'x')",
        &format!("SELECT pgtenant.bind_{}('x')", key(OLD).id()),
    ] {
        let errors = errors(&a.query(sql).await);
        assert!(
            errors.is_empty() || sql.contains("bind_") && errors == ["42501"],
            "{sql}: {errors:?}"
        );
        let seen = a.column("SELECT current_setting('app.seen', true)").await;
        assert_eq!(seen, [""], "{sql}");
    }
}

/// Every name that is called and every operator in a text, however it is quoted: what is none of
/// the server's is left out when it is planted.
fn callables(text: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut functions, mut operators) = (BTreeSet::new(), BTreeSet::new());
    let (mut word, mut symbol) = (String::new(), String::new());
    for c in text.chars() {
        if c.is_ascii_alphanumeric() || c == '_' {
            word.push(c.to_ascii_lowercase());
        } else {
            let name = std::mem::take(&mut word);
            if c == '(' && !name.is_empty() {
                functions.insert(name);
            }
        }
        if "+-*/<>=~!@#%^&|`?".contains(c) {
            symbol.push(c);
        } else if !symbol.is_empty() {
            operators.insert(std::mem::take(&mut symbol));
        }
    }
    // What the server makes of LIKE, IN, BETWEEN and the like.
    operators.extend(["~~", "!~~", "=", "<>", "<", "<=", ">", ">="].map(str::to_owned));
    (functions, operators)
}

/// What a tenant that may create in public makes for the operator to run.
async fn plant(cluster: &Cluster, text: &str) -> i64 {
    let (functions, operators) = callables(text);
    let array = |names: BTreeSet<String>| {
        let names: Vec<_> = names.into_iter().map(|name| format!("'{name}'")).collect();
        names.join(", ")
    };
    let sql = format!(
        "SET search_path = pg_catalog; SET check_function_bodies = off; SET ROLE app;
        DO $plant$
        DECLARE
            types text[] := ARRAY['oid', 'regrole', 'regclass', 'regnamespace', 'regprocedure', 'name', 'text', 'bool', 'int4',
                'int8', '\"char\"', 'anyelement', 'anyarray', 'oid[]', 'text[]', 'aclitem[]', 'bytea', 'timestamptz'];
            r record;
            body text := 'LANGUAGE plpgsql AS $f$ BEGIN RAISE EXCEPTION ''planted ran as %'', session_user; END $f$';
        BEGIN
            FOR r IN SELECT o.oprname AS name, a, b FROM (SELECT DISTINCT oprname FROM pg_operator) o, unnest(types) a, unnest(types) b
                WHERE o.oprname IN ({operators})
            LOOP
                BEGIN
                    EXECUTE format('CREATE OR REPLACE FUNCTION public.planted(%s, %s) RETURNS bool %s', r.a, r.b, body);
                    EXECUTE format('CREATE OPERATOR public.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = public.planted)', r.name, r.a, r.b);
                EXCEPTION WHEN OTHERS THEN NULL;
                END;
            END LOOP;
            FOR r IN SELECT DISTINCT p.proname AS name, pg_get_function_identity_arguments(p.oid) AS arguments
                    FROM pg_proc p WHERE p.proname IN ({functions}) AND p.pronamespace = 'pg_catalog'::regnamespace
                UNION SELECT DISTINCT p.proname, t FROM pg_proc p, unnest(types) t
                    WHERE p.proname IN ({functions}) AND p.pronamespace = 'pg_catalog'::regnamespace
            LOOP
                BEGIN
                    EXECUTE format('CREATE FUNCTION public.%I(%s) RETURNS bool %s', r.name, r.arguments, body);
                EXCEPTION WHEN OTHERS THEN NULL;
                END;
            END LOOP;
        END
        $plant$",
        operators = array(operators),
        functions = array(functions),
    );
    cluster.run("app", &sql).await.unwrap();
    let client = cluster.connect("app").await.unwrap();
    let count = "SELECT pg_catalog.count(*) FROM pg_catalog.pg_operator o \
        WHERE o.oprnamespace OPERATOR(pg_catalog.=) 'public'::pg_catalog.regnamespace::pg_catalog.oid";
    client.query_one(count, &[]).await.unwrap().get(0)
}

/// Their types may fit better than the server's own, so that they would run with the
/// administrator's rights.
#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_runs_no_operator_or_function_of_a_tenant() {
    let cluster = unsealed("planted").await;
    let setup = "GRANT CREATE ON SCHEMA public TO app; CREATE TABLE bare (tenant_id text, body text); GRANT SELECT ON bare TO app";
    cluster.run("app", setup).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pgtenant.yaml");
    let yaml = USUAL.yaml(&cluster);
    std::fs::write(&file, &yaml).unwrap();
    let config = file.to_str().unwrap();
    let doctor = |more: &[&str]| run(&[&["doctor", "--config", config], more].concat());
    let harden = harden::harden(&parse(&yaml), "free", None, &[harden::Group::All]).unwrap();
    let fix = doctor(&["--fix"]).1;

    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/control");
    let mut text = [seal::SQL, &harden, &fix].join("\n");
    text += &std::fs::read_to_string(source.join("seal.rs")).unwrap();
    text += &std::fs::read_to_string(source.join("health.rs")).unwrap();
    for entry in std::fs::read_dir(source.join("doctor/sql")).unwrap() {
        text += &std::fs::read_to_string(entry.unwrap().path()).unwrap();
    }
    let planted = plant(&cluster, &text).await;
    assert!(planted > 1000, "{planted}");
    let bait = cluster.connect("app").await.unwrap();
    let error = bait.query("SELECT 10::oid = 10::regrole", &[]).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("db error"), "{error}");

    for path in ["\"$user\", public", "public, pg_catalog"] {
        let set = format!("ALTER DATABASE app SET search_path = {path}");
        cluster.run("postgres", &set).await.unwrap();
        USUAL.install(&cluster).await.unwrap();
        let (_, out, err) = doctor(&[]);
        assert!(
            out.contains("public.bare") && !out.contains("planted ran"),
            "{out}{err}"
        );
        let (_, fix, err) = doctor(&["--fix"]);
        assert!(
            fix.contains("CREATE POLICY") || path.starts_with("public"),
            "{fix}{err}"
        );
        // Rights stay as they are, for the next turn.
        let undone = fix
            .replace("COMMIT;", "ROLLBACK;")
            .replace("CONCURRENTLY ", "");
        cluster.run("app", &undone).await.unwrap();
        cluster
            .run("app", &harden.replace("REVOKE CREATE ON SCHEMA", "-- "))
            .await
            .unwrap();
    }

    // On the path there is only the server's schema: who may create there is not served.
    cluster
        .run(
            "app",
            "SET search_path = pg_catalog; GRANT CREATE ON SCHEMA pg_catalog TO app",
        )
        .await
        .unwrap();
    let refusal = "others than its owner can create objects in schema \"pg_catalog\"";
    let error = USUAL.install(&cluster).await.unwrap_err();
    assert!(error.contains(refusal), "{error}");
    let (done, out, err) = doctor(&[]);
    assert!(
        !done && format!("{out}{err}").contains(refusal),
        "{out}{err}"
    );
    assert!(cluster.run("app", &harden).await.is_err());
    cluster.stop().await.unwrap();
}
