//! Replication through the proxy: PostgreSQL's own clients, a logical subscriber, and what the wire
//! says.

use std::path::Path;
use std::process::Stdio;

use pgtenant::cluster::{Cluster, Options};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio_postgres::Client;

use crate::harness::{
    POOLINGS, Running, SECRET, Setup, Tenant, all_tenants, assert_no_panics, binaries, cluster,
    eventually, in_time, server_line, tenant,
};
use crate::wire::{
    Frame, PROTOCOL_3_0, PROTOCOL_3_2, Wire, bind, cancel_request, copy_data, copy_done, errors,
    execute, function_call, parse as parse_message, query, rows, startup, sync, terminate,
};

const ROLE: &str = "replicator";
const ADMIN_SHUTDOWN: &str = "57P01";

/// A server that can be replicated from, with a role that may, and a table in the database of
/// tenant acme.
async fn primary(name: &str, hba: &[&str]) -> Cluster {
    let settings = [("wal_level", "logical"), ("max_wal_senders", "8")];
    let cluster = cluster(Options {
        settings: settings
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        hba: hba.iter().map(|line| (*line).to_owned()).collect(),
        ..Options::named(name)
    })
    .await;
    for sql in [
        format!("CREATE ROLE {ROLE} LOGIN REPLICATION PASSWORD '{SECRET}'"),
        format!("CREATE ROLE nobody LOGIN PASSWORD '{SECRET}'"),
        "CREATE DATABASE acme_app".to_owned(),
    ] {
        cluster.run("postgres", &sql).await.expect("a role");
    }
    let sql = format!(
        "CREATE TABLE notes (id int PRIMARY KEY, body text); GRANT ALL ON notes TO {ROLE}, nobody; \
         CREATE PUBLICATION all_notes FOR TABLE notes;"
    );
    cluster.run("acme_app", &sql).await.expect("a table");
    cluster
}

/// A config with tenant acme alone on a server.
struct Silo<'a> {
    primary: &'a Cluster,
    role: &'static str,
    pooling: &'static str,
    max_connections: usize,
    /// What else is said: of the proxy, of the tenant, other tenants and their placements.
    sections: &'static str,
    about: &'static str,
    tenants: &'static str,
    placements: &'static str,
}

impl<'a> Silo<'a> {
    fn new(primary: &'a Cluster) -> Self {
        Self {
            primary,
            role: ROLE,
            pooling: "transaction",
            max_connections: 8,
            sections: "",
            about: "",
            tenants: "",
            placements: "",
        }
    }

    fn yaml(&self) -> String {
        let server = |name| server_line(name, self.primary, self.max_connections);
        format!(
            "listen: [{{ address: \"127.0.0.1:0\" }}]\nworkers: 2\n{}\nservers:\n{}{}placements:\n  \
             acme: {{ tier: instance, server: primary, database: acme_app, pooling: {}, \
             login: {{ user: {}, password: {SECRET} }} }}\n{}tenants:\n  \
             acme: {{ placement: acme, users: {{ app: {{ password: acme-secret }} }}{} }}\n{}",
            self.sections,
            server("primary"),
            server("again"),
            self.pooling,
            self.role,
            self.placements,
            self.about,
            self.tenants,
        )
    }

    fn start(&self) -> Running {
        Running::start(&self.yaml())
    }
}

fn acme() -> Tenant {
    tenant("acme")
}

/// A program of PostgreSQL, of the version of the servers.
fn program(name: &str) -> Command {
    let path = binaries().dir().join(name);
    assert!(
        path.exists(),
        "there is no {name} beside the servers: install PostgreSQL's client programs, or for version 18 let \
         scripts/postgres18 fetch them"
    );
    let mut command = Command::new(path);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// The same with what connects it to the proxy, where `-d` takes it.
fn client(proxy: &Running, name: &str, more: &str) -> Command {
    let acme = acme();
    let mut command = program(name);
    let dsn = format!(
        "host=127.0.0.1 port={} user={} password={} {more}",
        proxy.address.port(),
        acme.user(),
        acme.password(),
    );
    command.args(["-d", &dsn]);
    command
}

/// What a program prints when it succeeds.
async fn run(command: &mut Command) -> String {
    let label = format!("{:?}", command.as_std());
    let output = in_time(&label, command.output()).await.expect("runs");
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{label}: {err}");
    out
}

async fn value(client: &Client, sql: &str) -> String {
    let row = client.query_one(sql, &[]).await.expect(sql);
    row.get::<_, Option<String>>(0).unwrap_or_default()
}

async fn walsenders(admin: &Client) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'";
    admin.query_one(sql, &[]).await.expect(sql).get(0)
}

fn connections(proxy: &Running) -> usize {
    let instances = proxy.proxy.app().instances();
    instances
        .values()
        .map(|instance| instance.connections())
        .sum()
}

/// Nothing is left of replication clients, on either side.
async fn nothing_is_left(proxy: &Running, admin: &Client) {
    eventually("the walsenders have ended", async || {
        walsenders(admin).await == 0
    })
    .await;
    let app = proxy.proxy.app();
    eventually("the slots are given back", async || {
        let is_idle = app.seen_tenants().iter().all(|tenant| tenant.active() == 0);
        is_idle
            && app.instances().values().all(|instance| {
                let pools = instance.pools();
                let mut replicating = pools.iter().filter(|(pool, _)| pool.key.is_replicating());
                replicating.all(|(_, counts)| counts.total == 0)
            })
    })
    .await;
}

/// A client of bytes that asks for replication.
async fn replica(
    proxy: &Running,
    version: u32,
    replication: &str,
    more: &[(&str, &str)],
) -> Result<Wire, Frame> {
    let acme = acme();
    let mut wire = Wire::tcp(proxy.address).await;
    let user = acme.user();
    let own = [
        ("user", &*user),
        ("database", &*acme.database),
        ("replication", replication),
    ];
    wire.send(&startup(version, &[&own[..], more].concat()))
        .await;
    wire.authenticate(&acme.password(), None)
        .await
        .map(|()| wire)
}

async fn streaming(proxy: &Running, version: u32) -> Wire {
    let mut wire = replica(proxy, version, "true", &[]).await.expect("logs in");
    start_streaming(&mut wire).await;
    wire
}

/// Starts to stream from where the server is.
async fn start_streaming(wire: &mut Wire) {
    let system = wire.query("IDENTIFY_SYSTEM").await;
    let row = system
        .iter()
        .find(|frame| frame.tag == b'D')
        .expect("a row");
    let place = row.values()[2].clone().expect("a place");
    let start = format!("START_REPLICATION PHYSICAL {place}");
    wire.send(&query(&start)).await;
    assert_eq!(wire.expect().await.tag, b'W', "CopyBothResponse");
}

/// A standby's status update; the server is to answer it with a keepalive.
fn status_update() -> Vec<u8> {
    let nowhere = [0_u8; 8];
    copy_data(&[&b"r"[..], &nowhere, &nowhere, &nowhere, &nowhere, &[1]].concat())
}

async fn hears_a_keepalive(wire: &mut Wire) {
    wire.send(&status_update()).await;
    loop {
        let frame = wire.expect().await;
        assert_eq!(frame.tag, b'd', "{frame}");
        if frame.body[0] == b'k' {
            return;
        }
    }
}

// ---- programs ----

#[tokio::test(flavor = "multi_thread")]
async fn pg_basebackup_takes_a_whole_backup() {
    let primary = primary("backup", &[]).await;
    let admin = primary.connect("postgres").await.expect("connects");
    for pooling in POOLINGS {
        let proxy = Silo {
            pooling,
            ..Silo::new(&primary)
        }
        .start();
        let dir = TempDir::new().expect("a directory");
        let target = dir.path().join("backup");
        let mut backup = client(&proxy, "pg_basebackup", "");
        // It streams the WAL that the backup needs on a connection of its own.
        run(backup
            .args(["-X", "stream", "-c", "fast", "-D"])
            .arg(&target))
        .await;
        assert!(target.join("backup_manifest").exists());
        run(program("pg_verifybackup")
            .arg("--no-parse-wal")
            .arg(&target))
        .await;
        assert!(has_wal(&target.join("pg_wal")));
        nothing_is_left(&proxy, &admin).await;
    }
    assert_no_panics();
}

/// Whether there is a whole segment.
fn has_wal(dir: &Path) -> bool {
    let files = std::fs::read_dir(dir).expect("a directory").flatten();
    let names: Vec<_> = files
        .map(|file| file.file_name().into_string().expect("text"))
        .collect();
    names.iter().any(|name| name.len() == 24)
}

#[tokio::test(flavor = "multi_thread")]
async fn pg_receivewal_makes_a_slot_and_streams_from_it() {
    let primary = primary("receivewal", &[]).await;
    let admin = primary.connect("postgres").await.expect("connects");
    let proxy = Silo::new(&primary).start();
    let dir = TempDir::new().expect("a directory");
    let mut create = client(&proxy, "pg_receivewal", "");
    run(create.args(["--slot", "archive", "--create-slot"])).await;
    let slots = "SELECT slot_name || ' ' || active FROM pg_replication_slots";
    assert_eq!(value(&admin, slots).await, "archive false");
    let mut receive = client(&proxy, "pg_receivewal", "application_name=the_archive");
    receive
        .args(["--slot", "archive", "--synchronous", "--no-loop", "-D"])
        .arg(dir.path());
    let receiving = receive.spawn().expect("starts");
    // A walsender's connection has the client's own startup parameters.
    let name = "SELECT max(application_name) FROM pg_stat_replication WHERE state = 'streaming'";
    eventually("it streams", async || {
        value(&admin, name).await == "the_archive"
    })
    .await;
    for _ in 0..3 {
        let sql = "SELECT pg_logical_emit_message(false, 'x', repeat('x', 100000)); SELECT pg_switch_wal()";
        admin.batch_execute(sql).await.expect("WAL");
    }
    eventually("a whole segment", async || has_wal(dir.path())).await;
    kill(receiving).await;
    nothing_is_left(&proxy, &admin).await;
    assert_eq!(value(&admin, slots).await, "archive false");
    // To a given point: then it ends the stream itself.
    let again = TempDir::new().expect("a directory");
    let end = value(&admin, "SELECT pg_current_wal_lsn()::text").await;
    admin
        .batch_execute("SELECT pg_switch_wal()")
        .await
        .expect("WAL");
    let mut receive = client(&proxy, "pg_receivewal", "");
    receive
        .args(["--slot", "archive", "--no-loop", "--endpos", &end, "-D"])
        .arg(again.path());
    run(&mut receive).await;
    let mut remove = client(&proxy, "pg_receivewal", "");
    run(remove.args(["--slot", "archive", "--drop-slot"])).await;
    nothing_is_left(&proxy, &admin).await;
    assert_no_panics();
}

/// Ends a program without a chance to say goodbye.
async fn kill(mut child: Child) {
    child.kill().await.expect("ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn pg_recvlogical_decodes_what_clients_of_the_tenant_write() {
    let primary = primary("recvlogical", &[]).await;
    let admin = primary.connect("postgres").await.expect("connects");
    let proxy = Silo::new(&primary).start();
    let logical = || {
        let mut command = client(&proxy, "pg_recvlogical", "dbname=acme_app");
        command.args(["--slot", "decoded"]);
        command
    };
    run(logical().args(["--create-slot", "--plugin", "test_decoding"])).await;
    let app = proxy.connect(&acme()).await;
    let sql = "INSERT INTO notes VALUES (1, 'through the proxy')";
    app.batch_execute(sql).await.expect(sql);
    let end = value(&admin, "SELECT pg_current_wal_lsn()::text").await;
    app.batch_execute("INSERT INTO notes VALUES (2, 'too late')")
        .await
        .expect("inserts");
    let out = run(logical().args(["--start", "-f", "-", "--endpos", &end])).await;
    let expected = "table public.notes: INSERT: id[integer]:1 body[text]:'through the proxy'";
    assert!(out.contains(expected) && !out.contains("too late"), "{out}");
    run(logical().args(["--drop-slot"])).await;
    nothing_is_left(&proxy, &admin).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_talks_to_a_walsender() {
    let primary = primary("psql", &[]).await;
    let admin = primary.connect("postgres").await.expect("connects");
    for pooling in POOLINGS {
        let proxy = Silo {
            pooling,
            ..Silo::new(&primary)
        }
        .start();
        let expected = value(
            &admin,
            "SELECT concat_ws('|', system_identifier, timeline_id) FROM pg_control_system(), pg_control_checkpoint()",
        )
        .await;
        for (more, database) in [
            ("replication=database dbname=acme_app", "acme_app"),
            ("replication=database dbname=acme", "acme_app"),
            ("replication=true dbname=replication", ""),
            ("replication=on", ""),
        ] {
            let mut psql = client(&proxy, "psql", more);
            let out = run(psql.args(["-XAtc", "IDENTIFY_SYSTEM"])).await;
            let fields: Vec<_> = out.trim().split('|').collect();
            assert_eq!(fields[..2].join("|"), expected, "{more}");
            assert_eq!(fields[3], database, "{more}");
        }
        // With a database it serves queries, too; without, it says no as it does direct.
        let mut psql = client(&proxy, "psql", "replication=database dbname=acme_app");
        let out = run(psql.args(["-XAtc", "SELECT count(*) FROM notes"])).await;
        assert_eq!(out.trim(), "0");
        // A boolean that is false asks for nothing.
        let mut psql = client(&proxy, "psql", "replication=off dbname=acme_app");
        let out = run(psql.args([
            "-XAtc",
            "SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid()",
        ]))
        .await;
        assert_eq!(out.trim(), "client backend");
        nothing_is_left(&proxy, &admin).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_follows_through_the_proxy() {
    let primary = primary("publisher", &[]).await;
    let subscriber = cluster(Options::named("subscriber")).await;
    let admin = primary.connect("postgres").await.expect("connects");
    let proxy = Silo::new(&primary).start();
    let app = proxy.connect(&acme()).await;
    let insert = "INSERT INTO notes SELECT n, repeat('x', n) FROM generate_series(1, 500) n";
    app.batch_execute(insert).await.expect(insert);
    let there = subscriber.connect("postgres").await.expect("connects");
    let table = "CREATE TABLE notes (id int PRIMARY KEY, body text)";
    there.batch_execute(table).await.expect(table);
    let subscribe = format!(
        "CREATE SUBSCRIPTION follower CONNECTION 'host=127.0.0.1 port={} user={} password={} dbname=acme_app' \
         PUBLICATION all_notes",
        proxy.address.port(),
        acme().user(),
        acme().password(),
    );
    there.batch_execute(&subscribe).await.expect("subscribes");
    let sum = "SELECT count(*) || ' ' || coalesce(sum(length(body)), 0) FROM notes";
    eventually("the first copy", async || {
        value(&there, sum).await == "500 125250"
    })
    .await;
    let large = "UPDATE notes SET body = repeat('y', 3000000) WHERE id = 1; DELETE FROM notes WHERE id > 10";
    app.batch_execute(large).await.expect(large);
    eventually("what changed", async || {
        value(&there, sum).await == "10 3000054"
    })
    .await;
    // It comes back by itself after its connection was lost.
    let victims =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender'";
    admin.batch_execute(victims).await.expect(victims);
    let more = "INSERT INTO notes VALUES (1000, 'again')";
    app.batch_execute(more).await.expect(more);
    eventually("what came later", async || {
        value(&there, sum).await == "11 3000059"
    })
    .await;
    there
        .batch_execute("DROP SUBSCRIPTION follower")
        .await
        .expect("unsubscribes");
    let slots = "SELECT count(*)::text FROM pg_replication_slots";
    assert_eq!(value(&admin, slots).await, "0");
    nothing_is_left(&proxy, &admin).await;
    assert_no_panics();
}

// ---- the wire ----

/// The messages after AuthenticationOk, with what differs from connection to connection taken out.
fn shape(wire: &Wire) -> Vec<String> {
    let mut shape: Vec<_> = wire
        .greeting
        .iter()
        .filter(|frame| !b"Rv".contains(&frame.tag))
        .map(|frame| match frame.tag {
            b'K' => format!("K of {}", frame.body.len()),
            _ => frame.to_string(),
        })
        .collect();
    // ReadyForQuery is last whatever comes before it in which order.
    assert_eq!(wire.greeting.last().expect("a greeting").tag, b'Z');
    shape.sort();
    shape
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replication_client_is_told_what_its_own_server_connection_says() {
    let primary = primary("greeting", &[]).await;
    let proxy = Silo::new(&primary).start();
    for replication in ["true", "database"] {
        for more in [
            &[][..],
            &[("TimeZone", "Asia/Tokyo"), ("application_name", "one")],
            &[("options", "-c datestyle=German -c search_path=nowhere")],
        ] {
            let label = format!("{replication} {more:?}");
            let through = replica(&proxy, PROTOCOL_3_0, replication, more).await;
            let mut through = through.expect("logs in");
            let mut direct = Wire::unix(&primary).await;
            let own = [
                ("user", ROLE),
                ("database", "acme_app"),
                ("replication", replication),
            ];
            let done = direct.log_in(&[&own[..], more].concat(), SECRET).await;
            done.expect("logs in");
            assert_eq!(shape(&through), shape(&direct), "{label}");
            let shown = [
                "SHOW search_path",
                "SHOW TimeZone",
                "SHOW nothing",
                "TIMELINE_HISTORY 9",
            ];
            for sql in shown {
                let (a, b) = (through.query(sql).await, direct.query(sql).await);
                assert_eq!(a, b, "{label}: {sql}");
            }
            if replication == "database" {
                let pid = through.column("SELECT pg_backend_pid()").await;
                assert_eq!(pid, [through.key.0.to_string()], "{label}");
            }
            for batch in [
                vec![function_call(2078, &[Some("a.b"), Some("c"), Some("f")])],
                vec![
                    parse_message("", "SELECT 1"),
                    bind("", "", &[]),
                    execute("", 0),
                    sync(),
                ],
            ] {
                through.send(&batch.concat()).await;
                direct.send(&batch.concat()).await;
                let (a, b) = (through.until_ready().await, direct.until_ready().await);
                assert_eq!(a, b, "{label}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_can_be_ended_by_either_side_and_begun_again() {
    let primary = primary("streams", &[]).await;
    let admin = primary.connect("postgres").await.expect("connects");
    let proxy = Silo::new(&primary).start();
    for version in [PROTOCOL_3_0, PROTOCOL_3_2] {
        let mut wire = streaming(&proxy, version).await;
        hears_a_keepalive(&mut wire).await;
        // WAL comes by itself.
        let sql = "SELECT pg_logical_emit_message(false, 'x', repeat('x', 2000000))";
        admin.batch_execute(sql).await.expect("WAL");
        let mut bytes = 0;
        while bytes < 2_000_000 {
            let frame = wire.expect().await;
            assert_eq!(frame.tag, b'd', "{frame}");
            bytes += frame.body.len();
        }
        // The client ends it.
        wire.send(&copy_done()).await;
        let end = wire.until_ready().await;
        let tags: String = end
            .iter()
            .filter(|frame| frame.tag != b'd')
            .map(|frame| frame.tag as char)
            .collect();
        assert!(tags == "cCZ" || tags == "cCCZ", "{end:?}");
        start_streaming(&mut wire).await;
        hears_a_keepalive(&mut wire).await;
        // A cancel is an error in the stream, and its end.
        let mut cancel = Wire::tcp(proxy.address).await;
        cancel.send(&cancel_request(&wire.key)).await;
        assert!(cancel.rest().await.is_empty());
        let end = wire.until_ready().await;
        assert_eq!(errors(&end), ["57014"]);
        // What the client still sends of it is passed over.
        wire.send(&[status_update(), copy_done()].concat()).await;
        start_streaming(&mut wire).await;
        hears_a_keepalive(&mut wire).await;
        // The server ends it.
        let victims = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'walsender'";
        admin.batch_execute(victims).await.expect(victims);
        let end = wire.rest().await;
        assert_eq!(errors(&end), [ADMIN_SHUTDOWN]);
        nothing_is_left(&proxy, &admin).await;
    }
    // A server that stops ends the stream as it does direct.
    let mut wire = streaming(&proxy, PROTOCOL_3_0).await;
    hears_a_keepalive(&mut wire).await;
    drop(admin);
    let stopping = tokio::spawn(async move {
        primary
            .shut_down(pgtenant::cluster::Shutdown::Fast)
            .await
            .expect("stops");
    });
    let mut end = Vec::new();
    while let Some(frame) = wire.frame().await {
        if frame.tag == b'd' && frame.body[0] == b'k' {
            // It waits until the standby has all.
            let place = &frame.body[1..9];
            let update = [b"r", place, place, place, &[0; 8], &[0]].concat();
            if wire.try_send(&copy_data(&update)).await.is_err() {
                break;
            }
        } else if frame.tag != b'd' {
            end.push(frame);
        }
    }
    assert_eq!(errors(&end), [""; 0], "{end:?}");
    stopping.await.expect("stops");
    assert_no_panics();
}

// ---- who may ----

#[tokio::test(flavor = "multi_thread")]
async fn only_a_tenant_with_a_server_of_its_own_may_replicate() {
    let proxy = Setup::default().start().await;
    let mut one_of_each = all_tenants();
    one_of_each.dedup_by_key(|tenant| tenant.placement);
    one_of_each.retain(|tenant| tenant.placement != "acme");
    for tenant in &one_of_each {
        for (replication, database) in [
            ("true", "replication"),
            ("database", &*tenant.database),
            ("1", &tenant.database),
        ] {
            let mut wire = Wire::tcp(proxy.address).await;
            let user = tenant.user();
            let pairs = [
                ("user", &*user),
                ("database", database),
                ("replication", replication),
            ];
            let error = wire.log_in(&pairs, &tenant.password()).await;
            let error = error.expect_err(&tenant.name);
            assert_eq!(error.sqlstate(), "0A000", "{}: {error}", tenant.name);
            let hint = error.field(b'H').unwrap_or_default();
            assert!(hint.contains("server of its own"), "{hint}");
            assert!(wire.rest().await.is_empty());
        }
    }
    let tenant = &one_of_each[0];
    let user = tenant.user();
    for (replication, password, sqlstate) in [
        // Before who it is, as PostgreSQL does.
        ("maybe", "wrong", "22023"),
        // Who it is comes before what it may.
        ("true", "wrong", "28P01"),
    ] {
        let mut wire = Wire::tcp(proxy.address).await;
        let pairs = [
            ("user", &*user),
            ("database", "app"),
            ("replication", replication),
        ];
        let error = wire.log_in(&pairs, password).await.expect_err("refused");
        assert_eq!(error.sqlstate(), sqlstate);
    }
    // With a database that it does not have.
    let mut wire = Wire::tcp(proxy.address).await;
    let pairs = [
        ("user", &*user),
        ("database", "bridge"),
        ("replication", "database"),
    ];
    let error = wire.log_in(&pairs, &tenant.password()).await;
    assert_eq!(error.expect_err("refused").sqlstate(), "3D000");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_console_does_not_replicate() {
    let setup = Setup {
        sections: "admin: { users: { root: { password: root } } }".into(),
        ..Setup::default()
    };
    let proxy = setup.start().await;
    let mut wire = Wire::tcp(proxy.address).await;
    let pairs = [
        ("user", "root"),
        ("database", "pgtenant"),
        ("replication", "true"),
    ];
    let error = wire.log_in(&pairs, "root").await.expect_err("refused");
    assert_eq!(error.sqlstate(), "0A000");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_refuses_the_client_learns_in_a_useful_form() {
    let hba = [
        &*format!("host acme_app {ROLE} 127.0.0.1/32 scram-sha-256"),
        "host replication replicator 127.0.0.1/32 reject",
    ];
    let primary = primary("refusals", &hba).await;
    let login = async |proxy: &Running, replication: &str, more: &[(&str, &str)]| {
        let error = replica(proxy, PROTOCOL_3_0, replication, more).await.err();
        error.expect("refused")
    };
    // pg_hba.conf has no line; what it says of hosts and roles is the operator's.
    let proxy = Silo::new(&primary).start();
    let error = login(&proxy, "true", &[]).await;
    assert_eq!(error.sqlstate(), "28000", "{error}");
    let hint = error.field(b'H').unwrap_or_default();
    assert!(
        hint.contains("pg_hba.conf") && hint.contains("REPLICATION"),
        "{hint}"
    );
    assert!(!error.to_string().contains(ROLE), "{error}");
    // Run-time parameters are the client's own.
    let mut direct = Wire::unix(&primary).await;
    let own = [
        ("user", ROLE),
        ("database", "acme_app"),
        ("replication", "database"),
    ];
    for more in [
        ("TimeZone", "Nowhere"),
        ("no_such_parameter", "1"),
        ("Database", "postgres"),
        ("USER", "postgres"),
        ("log_statement", "all"),
        ("options", "-c no_such.thing"),
        ("options", "--no-such"),
        ("options", "-cno_such=1"),
        ("options", "-c work_mem=lots"),
        ("options", "-c database=postgres"),
        ("options", "-c user=postgres"),
        ("options", "-c replication=true"),
    ] {
        let error = login(&proxy, "database", &[more]).await;
        let _ = direct.log_in(&[&own[..], &[more]].concat(), SECRET).await;
        let said = direct.greeting.iter().find(|frame| frame.tag == b'E');
        let said = said.expect("refused direct, too");
        assert_eq!(
            error.sqlstate(),
            said.sqlstate(),
            "{more:?}: {error} {said}"
        );
        assert_eq!(error.field(b'M'), said.field(b'M'), "{more:?}");
        direct = Wire::unix(&primary).await;
    }
    // None of this keeps others waiting.
    assert_eq!(proxy.raw(&acme()).await.column("SELECT 1").await, ["1"]);
    let wire = replica(&proxy, PROTOCOL_3_0, "database", &[]).await;
    assert_eq!(wire.expect("logs in").column("SELECT 1").await, ["1"]);
    // A role without the attribute.
    let proxy = Silo {
        role: "nobody",
        ..Silo::new(&primary)
    }
    .start();
    for replication in ["true", "database"] {
        let error = login(&proxy, replication, &[]).await;
        assert_eq!(error.sqlstate(), "42501", "{error}");
        let hint = error.field(b'H').unwrap_or_default();
        assert!(hint.contains("REPLICATION"), "{hint}");
    }
    assert_eq!(proxy.raw(&acme()).await.column("SELECT 1").await, ["1"]);
    // No walsender left.
    let admin = primary.connect("postgres").await.expect("connects");
    admin
        .batch_execute("ALTER SYSTEM SET max_wal_senders = 0")
        .await
        .expect("sets");
    admin
        .batch_execute("ALTER SYSTEM SET wal_level = replica")
        .await
        .expect("sets");
    drop(admin);
    primary.restart().await.expect("restarts");
    let proxy = Silo::new(&primary).start();
    let error = login(&proxy, "database", &[]).await;
    assert_eq!(error.sqlstate(), "53300", "{error}");
    let message = error.field(b'M').unwrap_or_default();
    assert!(message.contains("max_wal_senders"), "{message}");
}

// ---- limits and ends ----

#[tokio::test(flavor = "multi_thread")]
async fn replication_counts_in_the_budget_and_gives_it_back() {
    let primary = primary("budget", &[]).await;
    let admin = primary.connect("postgres").await.expect("connects");
    let silo = Silo {
        max_connections: 2,
        sections: "timeouts: { checkout: 300ms }",
        ..Silo::new(&primary)
    };
    let proxy = silo.start();
    // An idle connection of the pool gives its slot up.
    let mut ordinary = proxy.raw(&acme()).await;
    assert_eq!(ordinary.column("SELECT 1").await, ["1"]);
    let mut first = streaming(&proxy, PROTOCOL_3_0).await;
    let second = streaming(&proxy, PROTOCOL_3_0).await;
    assert_eq!(connections(&proxy), 2);
    let error = replica(&proxy, PROTOCOL_3_0, "true", &[]).await.err();
    assert_eq!(error.expect("refused").sqlstate(), "53300");
    assert_eq!(errors(&ordinary.query("SELECT 1").await), ["53300"]);
    // In the middle of a stream a client says goodbye, another is just gone.
    first.send(&terminate()).await;
    assert!(first.rest().await.iter().all(|frame| frame.tag == b'd'));
    eventually("there is room", async || connections(&proxy) == 1).await;
    assert_eq!(ordinary.column("SELECT 1").await, ["1"]);
    drop(second);
    nothing_is_left(&proxy, &admin).await;
    let third = streaming(&proxy, PROTOCOL_3_0).await;
    drop(third);
    nothing_is_left(&proxy, &admin).await;
    // The tenant's own limits.
    let limited = Silo {
        about: ", limits: { active: 1 }",
        ..silo
    };
    proxy.reload(&limited.yaml());
    let fourth = streaming(&proxy, PROTOCOL_3_0).await;
    let error = replica(&proxy, PROTOCOL_3_0, "true", &[]).await.err();
    assert_eq!(error.expect("refused").sqlstate(), "53300");
    drop(fourth);
    let limited = Silo {
        about: ", limits: { clients: 2 }",
        ..limited
    };
    proxy.reload(&limited.yaml());
    nothing_is_left_but(&proxy, 1).await;
    let _fifth = streaming(&proxy, PROTOCOL_3_0).await;
    let error = replica(&proxy, PROTOCOL_3_0, "true", &[]).await.err();
    assert_eq!(error.expect("refused").sqlstate(), "53300");
    assert_no_panics();
}

async fn nothing_is_left_but(proxy: &Running, clients: usize) {
    let app = proxy.proxy.app();
    eventually("the others have left", async || {
        app.seen_tenants()
            .iter()
            .map(|tenant| tenant.clients())
            .sum::<usize>()
            == clients
    })
    .await;
}

/// A client that reads nothing while WAL comes in, and is killed.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_killed_in_the_middle_of_a_message_leaves_nothing() {
    let primary = primary("killed", &[]).await;
    let admin = primary.connect("postgres").await.expect("connects");
    let proxy = Silo::new(&primary).start();
    for _ in 0..3 {
        let mut wire = streaming(&proxy, PROTOCOL_3_0).await;
        let sql = "SELECT pg_logical_emit_message(false, 'x', repeat('x', 5000000)) FROM generate_series(1, 4)";
        admin.batch_execute(sql).await.expect("WAL");
        wire.expect().await;
        wire.send(&status_update()[..10]).await;
        drop(wire);
        nothing_is_left(&proxy, &admin).await;
    }
    // A backup that is broken off.
    let mut wire = replica(&proxy, PROTOCOL_3_0, "true", &[])
        .await
        .expect("logs in");
    wire.send(&query("BASE_BACKUP (CHECKPOINT 'fast')")).await;
    while wire.expect().await.tag != b'd' {}
    drop(wire);
    nothing_is_left(&proxy, &admin).await;
    assert_no_panics();
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_and_the_end_of_the_proxy_end_replication_clients() {
    let primary = primary("ends", &[]).await;
    let admin = primary.connect("postgres").await.expect("connects");
    let silo = Silo::new(&primary);
    let proxy = silo.start();
    for change in [
        // The password, the place, the tenant itself.
        ("acme-secret", "changed"),
        ("database: acme_app", "database: postgres"),
        ("  acme: { placement", "  other: { placement"),
    ] {
        let mut stream = streaming(&proxy, PROTOCOL_3_0).await;
        let mut idle = replica(&proxy, PROTOCOL_3_0, "database", &[])
            .await
            .expect("logs in");
        proxy.reload(&silo.yaml().replace(change.0, change.1));
        for wire in [&mut stream, &mut idle] {
            let end = wire.rest().await;
            assert_eq!(errors(&end), [ADMIN_SHUTDOWN], "{change:?}");
        }
        proxy.reload(&silo.yaml());
        nothing_is_left(&proxy, &admin).await;
    }
    // While the proxy stops, a stream goes on until the deadline; who does nothing ends at once.
    let mut stream = streaming(&proxy, PROTOCOL_3_0).await;
    let mut idle = replica(&proxy, PROTOCOL_3_0, "true", &[])
        .await
        .expect("logs in");
    proxy.proxy.app().drain();
    assert_eq!(errors(&idle.rest().await), [ADMIN_SHUTDOWN]);
    hears_a_keepalive(&mut stream).await;
    proxy.proxy.app().kill_clients();
    assert_eq!(errors(&stream.rest().await), [ADMIN_SHUTDOWN]);
    nothing_is_left(&proxy, &admin).await;
    drop(proxy);
    // One whose stream ends meanwhile ends with it.
    let proxy = silo.start();
    let mut stream = streaming(&proxy, PROTOCOL_3_0).await;
    proxy.proxy.app().drain();
    hears_a_keepalive(&mut stream).await;
    stream.send(&copy_done()).await;
    let end = stream.rest().await;
    assert_eq!(errors(&end), [ADMIN_SHUTDOWN]);
    assert!(end.iter().any(|frame| frame.tag == b'Z'), "{end:?}");
    assert_no_panics();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_shows_replication_clients() {
    let primary = primary("console", &[]).await;
    let silo = Silo {
        sections: "admin: { users: { root: { password: root } } }",
        ..Silo::new(&primary)
    };
    let proxy = silo.start();
    let stream = streaming(&proxy, PROTOCOL_3_0).await;
    let mut console = Wire::tcp(proxy.address).await;
    let pairs = [("user", "root"), ("database", "pgtenant")];
    console.log_in(&pairs, "root").await.expect("logs in");
    let shown = console.query("SHOW SERVERS").await;
    let text = format!("{shown:?}");
    assert!(
        text.contains(&format!("primary/{}", stream.key.0)),
        "{text}"
    );
    let shown = console.query("SHOW POOLS").await;
    assert!(
        format!("{shown:?}").contains("replication=true"),
        "{shown:?}"
    );
    assert_eq!(rows(&console.query("SHOW CLIENTS").await).len(), 1);
}
