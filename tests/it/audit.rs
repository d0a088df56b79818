//! Every attempt to reach what is another tenant's is an event in a file, without a literal,
//! whatever becomes of the file.

use std::path::{Path, PathBuf};

use pgtenant::audit::Kind;
use serde_json::Value;

use crate::harness::{POOLINGS, Running, SECRET, Setup, eventually, in_time, world};
use crate::wire::{
    Wire, bind, cancel_request, describe, errors, execute, function_call, parse, query, sync,
};

/// The file that a test's proxy writes.
pub struct AuditFile {
    dir: tempfile::TempDir,
}

impl AuditFile {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        Self { dir }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("audit.jsonl")
    }

    /// The section of the config; `more`: other settings of it.
    pub fn section(&self, more: &str) -> String {
        format!("audit: {{ file: \"{}\"{more} }}\n", self.path().display())
    }

    pub fn text(&self) -> String {
        std::fs::read_to_string(self.path()).unwrap_or_default()
    }

    pub fn events(&self) -> Vec<Value> {
        events(&self.path())
    }

    /// Waits until so many events are there.
    pub async fn wait(&self, count: usize) -> Vec<Value> {
        eventually("the events are written", async || {
            self.events().len() >= count
        })
        .await;
        self.events()
    }

    /// Waits for the one event that is there since the first `before`.
    pub async fn next(&self, before: &mut usize) -> Value {
        let mut events = self.wait(*before + 1).await;
        *before += 1;
        assert_eq!(events.len(), *before, "{events:#?}");
        events.pop().expect("an event")
    }
}

fn events(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // The last line may be on its way.
    let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect()
}

fn text<'e>(event: &'e Value, key: &str) -> &'e str {
    event[key].as_str().unwrap_or("-")
}

fn watched(pooling: &'static str, file: &AuditFile, more: &str) -> Setup {
    Setup {
        pooling,
        sections: format!(
            "{}admin: {{ users: {{ root: {{ password: root }} }} }}\n",
            file.section(more)
        ),
        placements: format!(
            "watched: {{ tier: pool, server: shared, database: app, login: {{ user: app, password: {SECRET} }}, \
             pooling: {pooling}, context: {{ app.tenant_id: \"{{tenant}}\" }}, posture: guarded, pool: {{ size: 8 }} }}"
        ),
        tenants: "g0: { placement: watched, users: { app: { password: g0-secret } } }".into(),
        ..Setup::default()
    }
}

/// A login with these startup parameters that is to be refused.
async fn refused(proxy: &Running, pairs: &[(&str, &str)], password: &str) -> String {
    let mut wire = Wire::tcp(proxy.address).await;
    let refused = wire.log_in(pairs, password).await;
    refused.expect_err("is refused").sqlstate()
}

async fn log_in(proxy: &Running, name: &str) -> Wire {
    let mut wire = Wire::tcp(proxy.address).await;
    let database = if name.starts_with('b') {
        "bridge"
    } else {
        "app"
    };
    let user = format!("app.{name}");
    wire.log_in(
        &[("user", &user), ("database", database)],
        &format!("{name}-secret"),
    )
    .await
    .expect("logs in");
    wire
}

#[tokio::test(flavor = "multi_thread")]
async fn every_login_that_is_refused_for_who_it_is_is_an_event() {
    let file = AuditFile::new();
    let proxy = watched("transaction", &file, "").start().await;
    let mut seen = 0;
    let foreign = "-c app.tenant_id=t01";
    let hint = "-c pgtenant.tenant=t01";
    let right = "t00-secret";
    for (pairs, password, kind, tenant, detail) in [
        (
            &[("user", "app.t00"), ("database", "app")][..],
            "t01-secret",
            "password",
            "t00",
            "-",
        ),
        (
            &[("user", "eve.t00"), ("database", "app")],
            right,
            "unknown_user",
            "t00",
            "-",
        ),
        (
            &[("user", "app.nobody"), ("database", "app")],
            right,
            "unknown_tenant",
            "-",
            "app",
        ),
        (
            &[("user", "app"), ("database", "nowhere")],
            right,
            "unknown_tenant",
            "-",
            "nowhere",
        ),
        (
            &[("user", "app.t00"), ("database", "app"), ("options", hint)],
            right,
            "hints",
            "-",
            "app",
        ),
        (
            &[("user", "app.t00"), ("database", "db_d0")],
            right,
            "database",
            "t00",
            "db_d0",
        ),
        (
            &[("user", "app.t00"), ("database", "t01")],
            right,
            "database",
            "t00",
            "t01",
        ),
        (
            &[
                ("user", "app.t00"),
                ("database", "app"),
                ("options", foreign),
            ],
            right,
            "parameter",
            "t00",
            "app.tenant_id",
        ),
        (
            &[
                ("user", "app.t00"),
                ("database", "app"),
                ("replication", "database"),
            ],
            right,
            "replication",
            "t00",
            "-",
        ),
        (
            &[("user", "root"), ("database", "pgtenant")],
            right,
            "console",
            "-",
            "-",
        ),
    ] {
        let sqlstate = refused(&proxy, pairs, password).await;
        let event = file.next(&mut seen).await;
        assert_eq!(text(&event, "kind"), kind, "{event}");
        assert_eq!(text(&event, "tenant"), tenant, "{event}");
        assert_eq!(text(&event, "user"), pairs[0].1, "{event}");
        assert_eq!(text(&event, "detail"), detail, "{event}");
        assert_eq!(text(&event, "sqlstate"), sqlstate, "{event}");
        assert!(text(&event, "peer").starts_with("127.0.0.1:"), "{event}");
        assert!(event["statement"].is_null(), "{event}");
    }
    // What is no attempt at anything is none.
    log_in(&proxy, "t00").await;
    let strange = [
        ("user", "app.t00"),
        ("database", "app"),
        ("options", "-c nowhere=1"),
    ];
    refused(&proxy, &strange, right).await;
    let mut cancel = Wire::tcp(proxy.address).await;
    cancel.send(&cancel_request(&(1, vec![0; 4]))).await;
    assert!(cancel.rest().await.is_empty());
    let event = file.next(&mut seen).await;
    assert_eq!(text(&event, "kind"), "cancel_key");
    assert!(event["tenant"].is_null() && event["user"].is_null());
    assert!(text(&event, "peer").starts_with("127.0.0.1:"));
    let metrics = proxy.proxy.app().audit.metrics();
    assert_eq!(metrics.events(Kind::UnknownTenant), 2);
    assert_eq!(metrics.events(Kind::CancelKey), 1);
    assert!(!file.text().contains("-secret"));
}

/// Statements of a tenant, what becomes of them, and what the audit says of them.
const ATTEMPTS: [(&str, &str, &str, &str, &str); 7] = [
    (
        "g0",
        "SET app.tenant_id = 'b1gs3cr3t' -- b1gs3cr3t",
        "guard",
        "42501",
        "set app.tenant_id = ?",
    ),
    (
        "g0",
        "SELECT set_config('app.tenant_id', 'b1gs3cr3t', false)",
        "guard",
        "42501",
        "select set_config(?, false)",
    ),
    (
        "t00",
        "INSERT INTO items (tenant, id, body) VALUES ('t01', 900, E'b1g\\x73cr3t')",
        "rls",
        "42501",
        "insert into items(tenant, id, body) values(?)",
    ),
    (
        "t00",
        "SELECT rolpassword /* b1gs3cr3t */ FROM pg_authid WHERE rolname = $$b1gs3cr3t$$",
        "privilege",
        "42501",
        "select rolpassword from pg_authid where rolname = ?",
    ),
    (
        "b0",
        "SELECT * FROM t_b1.items WHERE body = 'b1gs3cr3t'",
        "schema",
        "42501",
        "select * from t_b1.items where body = ?",
    ),
    (
        "b0",
        "CREATE TABLE nowhere.x AS SELECT 'b1gs3cr3t' AS y",
        "schema",
        "3F000",
        "create table nowhere.x as select ? as y",
    ),
    (
        "t00",
        "ALTER DATABASE nowhere SET a.b = b1gs3cr3t",
        "database",
        "3D000",
        "alter database nowhere set a.b = ?",
    ),
];

fn check(event: &Value, attempt: (&str, &str, &str, &str, &str), known: bool) {
    let (tenant, sql, kind, sqlstate, statement) = attempt;
    assert_eq!(text(event, "kind"), kind, "{sql}: {event}");
    assert_eq!(text(event, "tenant"), tenant, "{sql}: {event}");
    assert_eq!(text(event, "user"), "app", "{sql}: {event}");
    assert_eq!(text(event, "sqlstate"), sqlstate, "{sql}: {event}");
    assert!(text(event, "peer").starts_with("127.0.0.1:"), "{event}");
    let known = known || kind == "guard";
    let expected = if known { statement } else { "-" };
    assert_eq!(text(event, "statement"), expected, "{sql}: {event}");
    assert_eq!(event["fingerprint"].is_string(), known, "{event}");
    if known {
        assert_eq!(event["length"], sql.len(), "{event}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_statement_that_is_refused_for_whose_it_is_is_an_event_without_its_literals() {
    for pooling in POOLINGS {
        let file = AuditFile::new();
        let proxy = watched(pooling, &file, "").start().await;
        let mut seen = 0;
        for attempt in ATTEMPTS {
            let (tenant, sql, ..) = attempt;
            let mut wire = log_in(&proxy, tenant).await;
            let frames = wire.query(sql).await;
            assert_eq!(errors(&frames), [attempt.3], "{pooling}: {sql}");
            check(&file.next(&mut seen).await, attempt, true);
            // In transaction pooling the proxy has the texts of prepared statements; in session
            // pooling it keeps none.
            let known = pooling == "transaction";
            for name in ["", "s"] {
                let batch = [
                    parse(name, sql),
                    describe(b'S', name),
                    bind("", name, &[]),
                    execute("", 0),
                    sync(),
                ];
                wire.send(&batch.concat()).await;
                let frames = wire.until_ready().await;
                assert_eq!(errors(&frames), [attempt.3], "{pooling}, {name}: {sql}");
                check(&file.next(&mut seen).await, attempt, known);
            }
        }
        assert!(!file.text().contains("s3cr3t") && !file.text().contains("x73"));
        assert_eq!(file.events().len(), seen);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_is_bound_is_in_no_event() {
    let file = AuditFile::new();
    let proxy = watched("transaction", &file, "").start().await;
    let mut seen = 0;
    let mut wire = log_in(&proxy, "t00").await;
    let sql = "INSERT INTO items VALUES ($1, $2, $3)";
    wire.send(&[parse("s", sql), sync()].concat()).await;
    wire.until_ready().await;
    let values = [Some("t01"), Some("900"), Some("b1gs3cr3t")];
    // Alone, and behind another statement in a pipeline.
    let run = [bind("", "s", &values), execute("", 0), sync()].concat();
    let other = [parse("", "SELECT 1"), bind("", "", &[]), execute("", 0)].concat();
    for batch in [run.clone(), [other, run].concat()] {
        wire.send(&batch).await;
        assert_eq!(errors(&wire.until_ready().await), ["42501"]);
        let event = file.next(&mut seen).await;
        assert_eq!(text(&event, "kind"), "rls");
        assert_eq!(text(&event, "statement"), "insert into items values(?)");
    }
    assert!(!file.text().contains("b1gs3cr3t"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_sure_to_be_what_failed_is_not_told() {
    let file = AuditFile::new();
    let proxy = watched("transaction", &file, "").start().await;
    let mut seen = 0;
    let mut wire = log_in(&proxy, "t00").await;
    let insert = "INSERT INTO items VALUES ('t01', 900, 'b1gs3cr3t')";
    let pipelined = [query(insert), query("SELECT 1")].concat();
    let two_portals = [
        parse("a", insert),
        parse("b", "SELECT 1"),
        bind("p", "a", &[]),
        bind("", "b", &[]),
        execute("p", 0),
        sync(),
    ]
    .concat();
    wire.query(&format!("PREPARE c AS {insert}")).await;
    let in_sql = [
        parse("", "SELECT 2"),
        bind("", "c", &[]),
        execute("", 0),
        sync(),
    ]
    .concat();
    for (batch, answers) in [(pipelined, 2), (two_portals, 1), (in_sql, 1)] {
        wire.send(&batch).await;
        for _ in 0..answers {
            wire.until_ready().await;
        }
        let event = file.next(&mut seen).await;
        assert_eq!(text(&event, "kind"), "rls");
        assert!(event["statement"].is_null(), "{event}");
    }
    // What the lexer cannot read to its end: nothing of it is told but how long it is.
    let mut wire = log_in(&proxy, "g0").await;
    wire.query("SELECT 'b1gs3cr3t").await;
    let event = file.next(&mut seen).await;
    assert_eq!(text(&event, "detail"), "hidden");
    assert!(event["statement"].is_null() && event["fingerprint"].is_null());
    assert_eq!(event["length"], 17);
    wire.send(&function_call(
        2078,
        &[Some("app.tenant_id"), Some("b1gs3cr3t"), Some("f")],
    ))
    .await;
    wire.until_ready().await;
    let event = file.next(&mut seen).await;
    assert_eq!(text(&event, "detail"), "function");
    // Refused as it passes, with its client.
    let long = format!(
        "SELECT '{}'; SET app.tenant_id = 'b1gs3cr3t'",
        "x".repeat(100_000)
    );
    wire.send(&query(&long)).await;
    wire.rest().await;
    let event = file.next(&mut seen).await;
    assert_eq!(text(&event, "kind"), "guard");
    assert!(!file.text().contains("s3cr3t"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_counted_and_stops_neither_traffic_nor_what_others_have_to_tell() {
    const FLOOD: usize = 2000;
    let file = AuditFile::new();
    let proxy = watched("transaction", &file, ", rate: 1, burst: 5")
        .start()
        .await;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let mut wire = log_in(&proxy, "t02").await;
        clients.spawn(async move {
            for _ in 0..FLOOD / 4 {
                let frames = wire.query("SELECT * FROM pg_authid").await;
                assert_eq!(errors(&frames), ["42501"]);
            }
            assert_eq!(wire.column("SELECT 'goes on'").await, ["goes on"]);
        });
    }
    let strangers = async {
        for number in 0..50 {
            let user = format!("app.madeup{number}");
            refused(&proxy, &[("user", &user), ("database", "app")], "x").await;
        }
    };
    in_time("the flood", async {
        tokio::join!(clients.join_all(), strangers)
    })
    .await;
    let mut quiet = log_in(&proxy, "t03").await;
    quiet.query("SELECT * FROM pg_authid").await;
    let app = proxy.proxy.app();
    app.audit.close();
    let events = file.events();
    let told = |kind: &str| {
        let written = events.iter().filter(|event| text(event, "kind") == kind);
        let dropped = events
            .iter()
            .filter_map(|event| event["dropped"][kind].as_u64());
        (written.count(), dropped.sum::<u64>())
    };
    let (written, dropped) = told("privilege");
    assert!(written < FLOOD / 2, "{written}");
    assert_eq!(written + dropped as usize, FLOOD + 1);
    let (written, dropped) = told("unknown_tenant");
    assert_eq!(written + dropped as usize, 50);
    assert!(dropped > 0);
    assert!(events.iter().any(|event| text(event, "tenant") == "t03"));
    let metrics = app.audit.metrics();
    assert_eq!(metrics.events(Kind::Privilege), FLOOD as u64 + 1);
    assert!(metrics.over_rate.get() > 0);
    let tenants = app.seen_tenants();
    let counted = tenants.iter().find(|tenant| tenant.id.as_str() == "t02");
    assert_eq!(counted.map(|t| t.metrics.audited.get()), Some(FLOOD as u64));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_or_a_directory_that_is_gone_stops_nobody() {
    let gone = AuditFile::new();
    let missing = gone.dir.path().join("missing");
    for path in [Path::new("/dev/full"), &missing.join("audit.jsonl")] {
        let setup = Setup {
            sections: format!("audit: {{ file: \"{}\", burst: 100000 }}\n", path.display()),
            ..Setup::default()
        };
        let proxy = setup.start().await;
        let mut wire = log_in(&proxy, "t04").await;
        for _ in 0..2000 {
            assert_eq!(
                errors(&wire.query("SELECT * FROM pg_authid").await),
                ["42501"]
            );
        }
        assert_eq!(wire.column("SELECT 'goes on'").await, ["goes on"]);
        let metrics = proxy.proxy.app().audit.metrics();
        assert_eq!(metrics.events(Kind::Privilege), 2000);
        assert!(metrics.queue_full.get() > 0);
        eventually("it is tried", async || metrics.write_failures.get() > 0).await;
        if path.starts_with(&missing) {
            std::fs::create_dir(&missing).expect("a directory");
            eventually("what waited is written", async || {
                events(path).len() as u64 >= 2000 - metrics.queue_full.get()
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_makes_way_when_it_is_large_and_when_it_was_moved() {
    let file = AuditFile::new();
    let more = ", burst: 1000, max_size: 4kB, keep: 2";
    let setup = watched("transaction", &file, more);
    let proxy = setup.start().await;
    let mut wire = log_in(&proxy, "t05").await;
    for _ in 0..60 {
        wire.query("SELECT * FROM pg_authid").await;
    }
    let older = |number: usize| {
        let mut name = file.path().into_os_string();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    wire.query("SELECT 'the last' FROM pg_authid").await;
    eventually("all are written", async || {
        let events = file.events();
        events
            .last()
            .is_some_and(|event| text(event, "statement") == "select ? from pg_authid")
    })
    .await;
    // For logrotate: another file of the same name, after a move and after SIGHUP.
    let moved = file.dir.path().join("moved");
    std::fs::rename(file.path(), &moved).expect("is moved");
    proxy.reload(&setup.yaml(world().await));
    eventually("it is made anew", async || file.path().exists()).await;
    wire.query("SELECT * FROM pg_authid").await;
    eventually("an event is in it", async || !file.events().is_empty()).await;
    proxy.proxy.app().audit.close();
    assert!(!older(3).exists());
    for path in [file.path(), moved, older(1), older(2)] {
        let size = std::fs::metadata(&path).expect("is there").len();
        assert!(size > 0 && size <= 4096, "{}: {size}", path.display());
        assert!(!events(&path).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_other_settings_over() {
    let (file, other) = (AuditFile::new(), AuditFile::new());
    let proxy = watched("transaction", &file, "").start().await;
    let mut wire = log_in(&proxy, "t06").await;
    wire.query("SELECT * FROM pg_authid").await;
    file.wait(1).await;
    proxy.reload(&watched("transaction", &other, "").yaml(world().await));
    wire.query("SELECT * FROM pg_authid").await;
    other.wait(1).await;
    let none = Setup::default().yaml(world().await);
    proxy.reload(&none);
    wire.query("SELECT * FROM pg_authid").await;
    proxy.proxy.app().audit.close();
    assert_eq!((file.events().len(), other.events().len()), (1, 1));
    let metrics = proxy.proxy.app().audit.metrics();
    assert_eq!(metrics.events(Kind::Privilege), 3);
}
