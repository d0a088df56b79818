//! Tenants of a catalog: they come, change and go in a running proxy, whatever happens to the
//! catalog.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pgtenant::cluster::{Cluster, Options, Shutdown};
use pgtenant::config::load_text;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_postgres::Client;

use crate::harness::{Running, SECRET, eventually};
use crate::wire::{Wire, column, errors, query, rows};

/// What makes the tables.
const SQL: &str = include_str!("../../src/control/sql/catalog.sql");

/// A server with the catalog, and with a pool, a schema tier and two roles for it.
struct Fleet {
    cluster: Cluster,
    admin: Client,
    dir: tempfile::TempDir,
    yaml: String,
}

const PLACES: &str = r#"
placements:
  free: { tier: pool, server: own, database: app, posture: guarded, context: { app.tenant_id: "{tenant}" },
          login: { user: app, password: SECRET }, read_only_login: { user: reader, password: SECRET } }
  pro: { tier: schema, server: own, database: app, schema: "s_{tenant}", login: { user: app, password: SECRET } }
applications:
  web: { users: { web: { password: web } }, tenants: { attributes: { web: "yes" } }, home: free,
         choose: { variables: [app.tenant_id] } }
tenants:
  fixed: { placement: free, users: { app: { password: fixed } } }
"#;

impl Fleet {
    async fn new(name: &str) -> Self {
        let cluster = crate::harness::cluster(Options {
            max_connections: 60,
            settings: vec![("shared_buffers".into(), "16MB".into())],
            ..Options::named(name)
        })
        .await;
        let run = async |database, sql: &str| {
            cluster.run(database, sql).await.expect("valid SQL");
        };
        run("postgres", "CREATE DATABASE catalog").await;
        run("postgres", "CREATE DATABASE app").await;
        run("catalog", SQL).await;
        let roles = format!(
            "CREATE ROLE app LOGIN PASSWORD '{SECRET}'; CREATE ROLE reader LOGIN PASSWORD '{SECRET}';
             CREATE ROLE looker LOGIN PASSWORD '{SECRET}' IN ROLE pgtenant_catalog_reader;
             CREATE TABLE items (tenant_id text DEFAULT current_setting('app.tenant_id'), v int);
             ALTER TABLE items ENABLE ROW LEVEL SECURITY;
             CREATE POLICY p ON items USING (tenant_id = current_setting('app.tenant_id'));
             GRANT SELECT, INSERT, UPDATE, DELETE ON items TO app; GRANT SELECT ON items TO reader;"
        );
        run("app", &roles).await;
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("catalog.key"), [7; 32]).expect("a file");
        let admin = cluster.connect("catalog").await.expect("connects");
        let yaml = format!(
            "listen: [{{ address: \"127.0.0.1:0\" }}]\nworkers: 2\ndoctor: {{ enabled: false }}\n\
             timeouts: {{ revoked: 1s, paused: 2s }}\n\
             catalog: {{ server: catalog, database: catalog, login: {{ user: looker, password: {SECRET} }}, \
             poll: 500ms, copy: {{ file: catalog.copy, key_file: catalog.key }} }}\nservers:\n\
             \x20 own: {{ host: {host}, port: {port}, sslmode: disable, max_connections: 20 }}\n\
             \x20 catalog: {{ host: {host}, port: {port}, sslmode: disable, max_connections: 5 }}\n{}",
            PLACES.replace("SECRET", SECRET),
            host = cluster.host(),
            port = cluster.port(),
        );
        Self {
            cluster,
            admin,
            dir,
            yaml,
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("pgtenant.yaml")
    }

    fn start(&self) -> Running {
        self.start_as(&self.yaml)
    }

    fn start_as(&self, yaml: &str) -> Running {
        std::fs::write(self.path(), yaml).expect("a file");
        let config = load_text(yaml, self.dir.path(), &|_| None).expect("a valid config");
        Running::with(config, Some(self.path()))
    }

    async fn sql(&self, sql: &str) {
        let done = self.admin.batch_execute(sql).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Puts a tenant whose password is its name.
    async fn put(&self, name: &str, placement: &str, more: &str) {
        let spec = spec(placement, name, more);
        self.sql(&format!(
            "SELECT pgtenant_catalog.put_tenant('{name}', '{spec}')"
        ))
        .await;
    }

    async fn state(&self, name: &str, state: &str) {
        self.sql(&format!(
            "SELECT pgtenant_catalog.set_state('{name}', '{state}', 'of a test')"
        ))
        .await;
    }
}

fn spec(placement: &str, password: &str, more: &str) -> String {
    let scram = verifier(password);
    format!(r#"{{"placement": "{placement}", "users": {{"app": {{"scram": "{scram}"}}}}{more}}}"#)
}

fn verifier(password: &str) -> String {
    let made = std::process::Command::new(env!("CARGO_BIN_EXE_pgtenant"))
        .arg("hash-password")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .and_then(|mut child| {
            use std::io::Write as _;
            let mut input = child.stdin.take().expect("a pipe");
            input.write_all(password.as_bytes())?;
            drop(input);
            child.wait_with_output()
        })
        .expect("a verifier");
    String::from_utf8(made.stdout)
        .expect("text")
        .trim()
        .to_owned()
}

/// A login. The error is `SQLSTATE message`, with the detail if there is one.
async fn log_in(proxy: &Running, tenant: &str, password: &str) -> Result<Wire, String> {
    let mut wire = Wire::tcp(proxy.address).await;
    let login = [("user", "app"), ("database", tenant)];
    match wire.log_in(&login, password).await {
        Ok(()) => Ok(wire),
        Err(frame) => {
            let text = |code| frame.field(code).unwrap_or_default();
            let told = format!("{} {} {}", text(b'C'), text(b'M'), text(b'D'));
            Err(told.trim().to_owned())
        }
    }
}

async fn is_in(proxy: &Running, tenant: &str) -> bool {
    log_in(proxy, tenant, tenant).await.is_ok()
}

fn state_of(proxy: &Running, tenant: &str) -> Option<&'static str> {
    let config = proxy.proxy.app().config();
    let tenant = config.tenants.get(tenant)?;
    Some(tenant.lifecycle.now().word())
}

async fn reaches(proxy: &Running, tenant: &str, state: Option<&str>) {
    eventually(&format!("{tenant} is {state:?}"), async || {
        state_of(proxy, tenant) == state
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_come_change_and_go_while_others_work() {
    let fleet = Fleet::new("catalogcomes").await;
    fleet.put("early", "free", "").await;
    let proxy = fleet.start();
    // It was there before anybody could ask.
    let mut early = log_in(&proxy, "early", "early").await.expect("logs in");
    let mut fixed = log_in(&proxy, "fixed", "fixed").await.expect("logs in");
    early.query("INSERT INTO items (v) VALUES (1)").await;
    let refused = log_in(&proxy, "late", "late").await.err();
    let unknown = "28P01 password authentication failed for user \"app\"";
    assert_eq!(refused.as_deref(), Some(unknown));
    fleet.put("late", "free", "").await;
    reaches(&proxy, "late", Some("active")).await;
    let mut late = log_in(&proxy, "late", "late").await.expect("logs in");
    assert_eq!(late.column("SELECT count(*) FROM items").await, ["0"]);
    assert_eq!(early.column("SELECT count(*) FROM items").await, ["1"]);
    // Another password: who knows the old one is ended at once.
    let other = spec("free", "other", "");
    fleet
        .sql(&format!(
            "SELECT pgtenant_catalog.put_tenant('late', '{other}')"
        ))
        .await;
    let end = late.rest().await;
    assert_eq!(errors(&end), ["57P01"]);
    assert!(log_in(&proxy, "late", "late").await.is_err());
    assert!(log_in(&proxy, "late", "other").await.is_ok());
    // It is gone, and one that is there again is another.
    let mut late = log_in(&proxy, "late", "other").await.expect("logs in");
    fleet.state("late", "deleted").await;
    assert_eq!(errors(&late.rest().await), ["57P01"]);
    let refused = log_in(&proxy, "late", "other").await.err();
    assert_eq!(refused.as_deref(), Some(unknown));
    // A tenant of the file is not the catalog's.
    fleet.put("fixed", "pro", "").await;
    fleet.put("after", "free", "").await;
    reaches(&proxy, "after", Some("active")).await;
    let catalog = proxy.proxy.app().catalog.view();
    assert_eq!((catalog.losses, &catalog.error), (0, &None));
    let refused: Vec<_> = catalog.refused.keys().map(|(_, name)| &**name).collect();
    assert_eq!(refused, ["fixed"]);
    assert_eq!(fixed.column("SELECT 1").await, ["1"]);
    assert_eq!(early.column("SELECT count(*) FROM items").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_with_mistakes_stays_as_it_was_and_harms_nobody() {
    let fleet = Fleet::new("catalogbad").await;
    fleet.put("good", "free", "").await;
    // The tables take what only the proxy can judge.
    fleet.put("bad", "nowhere", "").await;
    let proxy = fleet.start();
    assert!(is_in(&proxy, "good").await);
    assert!(!is_in(&proxy, "bad").await);
    let mut client = log_in(&proxy, "good", "good").await.expect("logs in");
    // What was good before is good still.
    fleet.put("good", "nowhere", "").await;
    let app = proxy.proxy.app().clone();
    eventually("it is told", async || app.catalog.view().refused.len() == 2).await;
    let refused = app.catalog.view().refused;
    let told = &refused[&("tenant", "good".to_owned())].mistakes;
    assert_eq!(
        told,
        "tenants.good.placement: there is no placement \"nowhere\""
    );
    assert_eq!(client.column("SELECT 1").await, ["1"]);
    assert!(is_in(&proxy, "good").await);
    // A reload does not lose it, and the mistake goes with its cause.
    app.reload_file().expect("a valid file");
    assert!(is_in(&proxy, "good").await);
    fleet.put("good", "free", "").await;
    fleet.put("bad", "free", "").await;
    eventually("all is well", async || {
        app.catalog.view().refused.is_empty()
    })
    .await;
    assert!(is_in(&proxy, "bad").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_state_says_what_logins_and_clients_get() {
    let fleet = Fleet::new("catalogstates").await;
    fleet.put("t", "free", "").await;
    let proxy = fleet.start();
    let detail = "The reason is: of a test.";
    for (state, login, idle, open) in [
        ("read_only", None, None, None),
        ("paused", None, None, None),
        (
            "draining",
            Some("57P03 tenant \"t\" is being drained"),
            Some("57P01"),
            None,
        ),
        (
            "suspended",
            Some("28000 tenant \"t\" is suspended"),
            Some("57P01"),
            Some("57P01"),
        ),
    ] {
        let mut idle_client = log_in(&proxy, "t", "t").await.expect("logs in");
        let mut open_client = log_in(&proxy, "t", "t").await.expect("logs in");
        open_client
            .query("BEGIN; INSERT INTO items (v) VALUES (1)")
            .await;
        fleet.state("t", state).await;
        reaches(&proxy, "t", Some(state)).await;
        let told = log_in(&proxy, "t", "t").await.err();
        let wanted = login.map(|login| format!("{login} {detail}"));
        assert_eq!(told, wanted, "{state}");
        match idle {
            Some(sqlstate) => assert_eq!(errors(&idle_client.rest().await), [sqlstate], "{state}"),
            None => assert!(idle_client.is_silent(Duration::from_millis(100)).await),
        }
        // Longer than the grace.
        match open {
            Some(sqlstate) => assert_eq!(errors(&open_client.rest().await), [sqlstate], "{state}"),
            None => {
                tokio::time::sleep(Duration::from_millis(1500)).await;
                assert_eq!(open_client.column("SELECT 1").await, ["1"], "{state}");
                open_client.query("ROLLBACK").await;
            }
        }
        if state == "draining" {
            assert_eq!(errors(&open_client.rest().await), ["57P01"]);
        }
        fleet.state("t", "active").await;
        reaches(&proxy, "t", Some("active")).await;
    }
    let counted = fleet.cluster.connect("app").await.expect("connects");
    let count = counted.query_one("SELECT count(*) FROM items", &[]).await;
    assert_eq!(count.expect("a row").get::<_, i64>(0), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_may_only_read_is_kept_from_writing_by_its_server() {
    let fleet = Fleet::new("catalogreads").await;
    fleet.put("t", "free", "").await;
    fleet.put("other", "pro", "").await;
    let proxy = fleet.start();
    let mut client = log_in(&proxy, "t", "t").await.expect("logs in");
    client.query("INSERT INTO items (v) VALUES (7)").await;
    fleet.state("t", "read_only").await;
    reaches(&proxy, "t", Some("read_only")).await;
    for before in [
        "SELECT 1",
        "SET default_transaction_read_only = off",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
        "BEGIN READ WRITE",
        "BEGIN; SET TRANSACTION READ WRITE",
        "BEGIN; SELECT set_config('transaction_read_only', 'off', true)",
        "RESET ALL",
    ] {
        client.query(before).await;
        let written = client.query("INSERT INTO items (v) VALUES (8)").await;
        assert_eq!(errors(&written), ["42501"], "{before}");
        client.query("ROLLBACK").await;
        assert_eq!(
            client.column("SELECT v FROM items").await,
            ["7"],
            "{before}"
        );
    }
    fleet.state("t", "active").await;
    reaches(&proxy, "t", Some("active")).await;
    let written = client.query("INSERT INTO items (v) VALUES (9)").await;
    assert_eq!(errors(&written), [""; 0]);
    // Where there is no such role, nothing changes.
    fleet.state("other", "read_only").await;
    let app = proxy.proxy.app();
    eventually("it is told", async || {
        !app.catalog.view().refused.is_empty()
    })
    .await;
    assert_eq!(state_of(&proxy, "other"), Some("active"));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_paused_tenant_wait_for_its_end_and_not_for_ever() {
    let fleet = Fleet::new("catalogpauses").await;
    fleet.put("t", "free", "").await;
    let proxy = fleet.start();
    let mut client = log_in(&proxy, "t", "t").await.expect("logs in");
    for (waits, expected) in [(500, ""), (4000, "53300")] {
        fleet.state("t", "paused").await;
        reaches(&proxy, "t", Some("paused")).await;
        client.send(&query("SELECT 1")).await;
        assert!(
            client
                .is_silent(Duration::from_millis(waits.min(500)))
                .await
        );
        if expected.is_empty() {
            fleet.state("t", "active").await;
        }
        let frames = client.until_ready().await;
        match expected {
            "" => assert_eq!(column(&frames), ["1"]),
            expected => assert_eq!(errors(&frames), [expected]),
        }
        fleet.state("t", "active").await;
        reaches(&proxy, "t", Some("active")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn states_end_and_tenants_expire_by_themselves() {
    let fleet = Fleet::new("catalogtimes").await;
    for name in ["trial", "paused", "held"] {
        fleet.put(name, "free", "").await;
    }
    let proxy = fleet.start();
    let mut trial = log_in(&proxy, "trial", "trial").await.expect("logs in");
    let mut paused = log_in(&proxy, "paused", "paused").await.expect("logs in");
    fleet
        .sql(
            "SELECT pgtenant_catalog.set_expires('trial', now() + interval '2 s');
             SELECT pgtenant_catalog.set_state('paused', 'paused', NULL, now() + interval '2 s');
             SELECT pgtenant_catalog.set_state('held', 'read_only', NULL, now() + interval '2 s');",
        )
        .await;
    reaches(&proxy, "paused", Some("paused")).await;
    reaches(&proxy, "held", Some("read_only")).await;
    let mut held = log_in(&proxy, "held", "held").await.expect("logs in");
    let write = "INSERT INTO items (v) VALUES (1)";
    assert_eq!(errors(&held.query(write).await), ["42501"]);
    assert_eq!(paused.column("SELECT 1").await, ["1"]);
    assert_eq!(errors(&trial.rest().await), ["57P01"]);
    let refused = log_in(&proxy, "trial", "trial").await.err();
    let refused = refused.expect("it is suspended");
    assert!(
        refused.starts_with("28000 tenant \"trial\" is suspended It expired at 20"),
        "{refused}"
    );
    eventually("it may write", async || {
        errors(&held.query(write).await).is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_is_told_the_state_of_whom_it_chooses() {
    let fleet = Fleet::new("catalogapplication").await;
    for name in ["one", "two"] {
        fleet
            .put(name, "free", r#", "attributes": {"web": "yes"}"#)
            .await;
    }
    fleet
        .put("not", "free", r#", "attributes": {"web": "no"}"#)
        .await;
    let proxy = fleet.start();
    let mut web = Wire::tcp(proxy.address).await;
    let login = [("user", "web"), ("database", "web")];
    web.log_in(&login, "web").await.expect("logs in");
    let serve = async |web: &mut Wire, tenant: &str| {
        let text = format!("SET app.tenant_id = '{tenant}'");
        let chosen = errors(&web.query(&text).await);
        let shown = web.query("SELECT current_setting('app.tenant_id')").await;
        let answer = (chosen, errors(&shown), rows(&shown));
        web.query("RESET app.tenant_id").await;
        answer
    };
    let good = |name: &str| (vec![], vec![], vec![name.to_owned()]);
    assert_eq!(serve(&mut web, "one").await, good("one"));
    assert_eq!(serve(&mut web, "not").await.0, ["42501"]);
    // By its attributes it becomes one of the set, and is no more.
    fleet
        .put("not", "free", r#", "attributes": {"web": "yes"}"#)
        .await;
    eventually("it may be chosen", async || {
        serve(&mut web, "not").await == good("not")
    })
    .await;
    for (state, expected) in [
        ("suspended", "28000"),
        ("draining", "57P03"),
        ("deleted", "42501"),
    ] {
        fleet.state("one", state).await;
        eventually(state, async || serve(&mut web, "one").await.0 == [expected]).await;
        assert_eq!(serve(&mut web, "two").await, good("two"));
        if state != "deleted" {
            fleet.state("one", "active").await;
            reaches(&proxy, "one", Some("active")).await;
        }
    }
    // In the middle of a transaction it is ended after the grace.
    web.query("BEGIN; SET LOCAL app.tenant_id = 'two'").await;
    assert_eq!(web.column("SELECT 1").await, ["1"]);
    fleet.state("two", "suspended").await;
    assert_eq!(errors(&web.rest().await), ["57P01"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_and_placements_come_with_the_catalog() {
    let fleet = Fleet::new("catalogplaces").await;
    let proxy = fleet.start();
    let mut fixed = log_in(&proxy, "fixed", "fixed").await.expect("logs in");
    let password = fleet.dir.path().join("password");
    std::fs::write(&password, SECRET).expect("a file");
    let (host, port) = (fleet.cluster.host(), fleet.cluster.port());
    fleet
        .sql(&format!(
            r#"SELECT pgtenant_catalog.put_server('silo', '{{"host": "{host}", "port": {port}, "sslmode": "disable", "max_connections": 5}}');
            SELECT pgtenant_catalog.put_placement('own', '{{"tier": "instance", "server": "silo", "database": "app",
                "login": {{"user": "app", "password_file": "{}"}}}}');
            SELECT pgtenant_catalog.put_placement('broken', '{{"tier": "instance", "server": "none", "database": "app",
                "login": {{"user": "app"}}}}');"#,
            password.display()
        ))
        .await;
    let app = proxy.proxy.app();
    eventually("it is told", async || {
        !app.catalog.view().refused.is_empty()
    })
    .await;
    assert!(
        app.catalog
            .view()
            .refused
            .contains_key(&("placement", "broken".to_owned()))
    );
    fleet.put("alone", "own", "").await;
    reaches(&proxy, "alone", Some("active")).await;
    let mut alone = log_in(&proxy, "alone", "alone").await.expect("logs in");
    assert_eq!(alone.column("SELECT current_database()").await, ["app"]);
    assert_eq!(fixed.column("SELECT 1").await, ["1"]);
    // A file that is read again does not lose them.
    app.reload_file().expect("a valid file");
    assert_eq!(alone.column("SELECT 1").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_changes_at_once_leave_no_gap() {
    let fleet = Fleet::new("catalogburst").await;
    let proxy = fleet.start();
    let spec = spec("free", "x", "");
    // Several writers at once, each change a transaction of its own.
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let client = fleet.cluster.connect("catalog").await.expect("connects");
        let spec = spec.clone();
        writers.spawn(async move {
            for number in 0..250 {
                let name = format!("w{writer}x{}", number % 100);
                let sql = match number % 10 {
                    9 => format!("SELECT pgtenant_catalog.set_state('{name}', 'paused')"),
                    _ => format!("SELECT pgtenant_catalog.put_tenant('{name}', '{spec}')"),
                };
                // A state of one that is not there is refused.
                let _ = client.batch_execute(&sql).await;
            }
        });
    }
    while writers.join_next().await.is_some() {}
    let truth = fleet
        .admin
        .query("SELECT tenant, state FROM pgtenant_catalog.tenants", &[])
        .await
        .expect("rows");
    assert!(truth.len() >= 350, "{}", truth.len());
    let revision = revision(&fleet).await;
    let app = proxy.proxy.app();
    eventually("all is there", async || app.catalog.revision() == revision).await;
    for row in &truth {
        let (name, state): (&str, &str) = (row.get(0), row.get(1));
        assert_eq!(state_of(&proxy, name), Some(state), "{name}");
    }
    assert_eq!(app.config().tenants.len(), truth.len() + 1);
}

/// The last revision that the catalog has given.
async fn revision(fleet: &Fleet) -> u64 {
    let about = "SELECT revision FROM pgtenant_catalog.about";
    let about = fleet.admin.query_one(about, &[]).await.expect("a row");
    u64::try_from(about.get::<_, i64>(0)).expect("a number")
}

/// Passes bytes on to a server until it is told to say nothing more.
async fn between(host: &'static str, port: u16) -> (u16, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let own = listener.local_addr().expect("an address").port();
    let silent = Arc::new(AtomicBool::new(false));
    let is_silent = silent.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = TcpStream::connect((host, port)).await else {
                continue;
            };
            let born_silent = is_silent.load(Ordering::Acquire);
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            for (from, mut to) in [(from_client, to_server), (from_server, to_client)] {
                let silent = is_silent.clone();
                tokio::spawn(async move {
                    let mut buffer = [0; 8192];
                    loop {
                        let Ok(()) = from.readable().await else {
                            return;
                        };
                        match from.try_read(&mut buffer) {
                            Ok(0) => return,
                            // What came while it was silent stays lost on this connection.
                            Ok(_) if silent.load(Ordering::Acquire) && !born_silent => {
                                std::future::pending::<()>().await;
                            }
                            Ok(n) => {
                                if to.write_all(&buffer[..n]).await.is_err() {
                                    return;
                                }
                            }
                            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                            Err(_) => return,
                        }
                    }
                });
            }
        }
    });
    (own, silent)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_dies_with_or_without_a_word_costs_a_few_seconds() {
    let fleet = Fleet::new("catalogdies").await;
    let (port, silent) = between(fleet.cluster.host(), fleet.cluster.port()).await;
    let own = format!(
        "catalog: {{ host: {}, port: {}",
        fleet.cluster.host(),
        fleet.cluster.port()
    );
    let through = format!("catalog: {{ host: 127.0.0.1, port: {port}");
    assert!(fleet.yaml.contains(&own));
    let proxy = fleet.start_as(&fleet.yaml.replace(&own, &through));
    let soon = async |name: &str| {
        let started = Instant::now();
        fleet.put(name, "free", "").await;
        reaches(&proxy, name, Some("active")).await;
        started.elapsed()
    };
    soon("a").await;
    fleet
        .sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgtenant catalog'")
        .await;
    let terminated = soon("b").await;
    silent.store(true, Ordering::Release);
    // Whoever connects from now on is heard.
    let lost = soon("c").await;
    // The promise is five seconds.
    assert!(
        terminated.max(lost) < Duration::from_secs(25),
        "{terminated:?} {lost:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_starts_and_goes_on_without_the_catalog() {
    let fleet = Fleet::new("catalogdown").await;
    fleet.put("kept", "free", "").await;
    let away = Fleet::new("catalogaway").await;
    // The catalog on a server of its own, the places on the other.
    let own = format!(
        "own: {{ host: {}, port: {}",
        fleet.cluster.host(),
        fleet.cluster.port()
    );
    let there = format!(
        "own: {{ host: {}, port: {}",
        away.cluster.host(),
        away.cluster.port()
    );
    let yaml = fleet.yaml.replace(&own, &there);
    let proxy = fleet.start_as(&yaml);
    assert!(is_in(&proxy, "kept").await);
    let app = proxy.proxy.app().clone();
    fleet.put("later", "free", "").await;
    reaches(&proxy, "later", Some("active")).await;
    let revision = revision(&fleet).await;
    let copy = fleet.dir.path().join("catalog.copy");
    eventually("the copy is written", async || {
        let config = app.config();
        let settings = config
            .catalog
            .as_ref()
            .and_then(|catalog| catalog.copy.clone());
        let size = std::fs::metadata(&copy).map_or(0, |file| file.len());
        let error = app.catalog.view().copy_error;
        assert_eq!(error, None);
        settings.is_some() && size > 0 && app.catalog.revision() == revision
    })
    .await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let bytes = std::fs::read(&copy).expect("a file");
    let clear = bytes.windows(8).any(|window| window == b"password");
    assert!(!clear, "no password stands in the copy");
    fleet
        .cluster
        .shut_down(Shutdown::Fast)
        .await
        .expect("stops");
    eventually("it is noticed", async || app.catalog.view().error.is_some()).await;
    assert!(is_in(&proxy, "later").await);
    drop(proxy);
    let started = Instant::now();
    let proxy = fleet.start_as(&yaml);
    // The promise is five seconds.
    assert!(started.elapsed() < Duration::from_secs(25));
    assert!(is_in(&proxy, "kept").await && is_in(&proxy, "later").await);
    let view = proxy.proxy.app().catalog.view();
    assert_eq!((view.source.word(), view.revision), ("copy", revision));
    // It is back, and an older one than the copy: as after a restore.
    fleet.cluster.start_again().await.expect("starts");
    let admin = fleet.cluster.connect("catalog").await.expect("connects");
    admin
        .batch_execute(
            "DELETE FROM pgtenant_catalog.tenants WHERE tenant = 'later';
             UPDATE pgtenant_catalog.about SET revision = revision - 1",
        )
        .await
        .expect("a superuser");
    reaches(&proxy, "later", None).await;
    assert!(is_in(&proxy, "kept").await);
}
