//! Servers and clients that die at the worst moment, and the end of the proxy itself.

use std::time::Duration;

use pgtenant::cluster::{Cluster, Options, Shutdown};
use pgtenant::server::Proxy;

use crate::harness::{
    POOLINGS, Running, SECRET, Setup, assert_no_panics, backends, connect, eventually, in_time,
    parse as parse_config, server_line, tenant, watch_for_panics, world,
};
use crate::wire::{
    Frame, Wire, bind, column, copy_data, errors, execute, flush, message, parse, query, rows, sync,
};

const ADMIN_SHUTDOWN: &str = "57P01";

/// A server of the test's own, with a table that every tenant of it may read.
async fn own_server(name: &str) -> Cluster {
    let cluster = crate::harness::cluster(Options {
        max_connections: 30,
        settings: vec![("shared_buffers".into(), "16MB".into())],
        ..Options::named(name)
    })
    .await;
    cluster
        .run(
            "postgres",
            &format!("CREATE ROLE own LOGIN PASSWORD '{SECRET}'"),
        )
        .await
        .expect("a role");
    cluster
}

/// The world, and the tenant `alone` on a server of its own.
async fn with_own(own: &Cluster, pooling: &'static str, sections: &str) -> Running {
    let setup = Setup {
        pooling,
        sections: sections.into(),
        placements: format!(
            "own: {{ tier: instance, server: own, database: postgres, login: {{ user: own, password: {SECRET} }}, pooling: {pooling} }}"
        ),
        tenants: "alone: { placement: own, users: { app: { password: alone-secret } } }".into(),
        ..Setup::default()
    };
    let silo = server_line("silo", &world().await.silo, setup.max_connections);
    let yaml = setup.yaml(world().await).replace(
        &silo,
        &format!("{silo}{}", server_line("own", own, setup.max_connections)),
    );
    Running::start(&yaml)
}

async fn alone(proxy: &Running) -> Wire {
    let mut wire = Wire::tcp(proxy.address).await;
    wire.log_in(
        &[("user", "app.alone"), ("database", "postgres")],
        "alone-secret",
    )
    .await
    .unwrap_or_else(|error| panic!("{error}"));
    wire
}

/// Whether a query mark runs on a server.
async fn runs(cluster: &Cluster, mark: &str) {
    let watching = cluster.connect("postgres").await.expect("connects");
    eventually("the query runs", async || {
        let sql = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE $1 AND pid <> pg_backend_pid()";
        let rows = watching.query(sql, &[&format!("%{mark}%")]).await;
        !rows.expect("pg_stat_activity").is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_ends_the_query_it_ran_and_no_other_and_serves_again_when_it_is_back() {
    let own = own_server("own").await;
    for (pooling, how) in [
        ("transaction", Shutdown::Immediate),
        ("session", Shutdown::Immediate),
        ("transaction", Shutdown::Fast),
        ("transaction", Shutdown::Kill),
    ] {
        let label = format!("{how:?}, {pooling} pooling");
        let proxy = with_own(&own, pooling, "timeouts: { checkout: 1s }").await;
        let mut victim = alone(&proxy).await;
        let mut idle = alone(&proxy).await;
        let mut elsewhere = proxy.raw(&tenant("t20")).await;
        if pooling == "transaction" {
            assert_eq!(idle.column("SELECT 1").await, ["1"]);
        }
        let long = query("SELECT 'through' FROM pg_sleep(1) /* elsewhere */");
        elsewhere.send(&long).await;
        let long = query("SELECT 'never' FROM pg_sleep(60) /* dies with it */");
        victim.send(&long).await;
        runs(&own, "dies with it").await;
        own.shut_down(how).await.expect("ends");

        let frames = in_time("the victim is told", victim.rest()).await;
        // As direct: what the server says, if it can, and the end.
        let mut said: Vec<_> = frames
            .iter()
            .map(|frame| (frame.tag as char, frame.sqlstate()))
            .collect();
        said.retain(|(tag, _)| *tag != 'T');
        let expected: &[(char, String)] = match how {
            Shutdown::Kill => &[],
            Shutdown::Immediate => &[('N', "57P01".to_owned())],
            Shutdown::Fast => &[('E', "57P01".to_owned())],
        };
        assert_eq!(said, expected, "{label}: {frames:?}");
        assert_eq!(column(&elsewhere.until_ready().await), ["through"]);

        if pooling == "session" {
            // As direct: its connection was that server's.
            let frames = in_time("an idle client is told", idle.rest()).await;
            assert!(
                frames.iter().all(|frame| frame.sqlstate() == "57P01"),
                "{frames:?}"
            );
            own.start_again().await.expect("starts");
        } else {
            // While it is away, clients are told so, and stay.
            let frames = in_time("an idle client is told", idle.query("SELECT 1")).await;
            assert_eq!(frames.len(), 2, "{label}: {frames:?}");
            assert!(
                ["08006", "57P03"].contains(&&*errors(&frames)[0]),
                "{label}: {frames:?}"
            );
            own.start_again().await.expect("starts");
            eventually("it serves again", async || {
                rows(&idle.query("SELECT 'back'").await) == ["back"]
            })
            .await;
        }
        assert_eq!(alone(&proxy).await.column("SELECT 'new'").await, ["new"]);
    }
    own.stop().await.expect("ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_an_idle_server_is_not_noticed_by_its_clients() {
    let own = own_server("idle").await;
    let proxy = with_own(&own, "transaction", "").await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut wire = alone(&proxy).await;
        wire.send(&[parse("kept", "SELECT 'kept'"), sync()].concat())
            .await;
        wire.until_ready().await;
        clients.push(wire);
    }
    own.restart().await.expect("starts");
    for wire in &mut clients {
        assert_eq!(wire.column("SELECT 'after'").await, ["after"]);
        wire.send(&[bind("", "kept", &[]), execute("", 0), sync()].concat())
            .await;
        assert_eq!(column(&wire.until_ready().await), ["kept"]);
    }
    drop(proxy);
    own.stop().await.expect("ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_terminated_ends_its_client_with_the_words_of_the_server() {
    for pooling in POOLINGS {
        let proxy = Setup {
            pooling,
            ..Setup::default()
        }
        .start()
        .await;
        let mut victim = proxy.raw(&tenant("d2")).await;
        let mut neighbour = proxy.raw(&tenant("d2")).await;
        let pid = victim.column("BEGIN; SELECT pg_backend_pid()").await;
        let admin = world().await.shared.connect("postgres").await;
        let sql = format!("SELECT pg_terminate_backend({})", pid[0]);
        admin
            .expect("connects")
            .batch_execute(&sql)
            .await
            .expect("is told");
        let frames = in_time("the victim is told", victim.rest()).await;
        assert_eq!(errors(&frames), [ADMIN_SHUTDOWN]);
        assert_eq!(frames[0].field(b'R').as_deref(), Some("ProcessInterrupts"));
        assert_eq!(neighbour.column("SELECT 1").await, ["1"]);
    }
}

/// How a client leaves: after these bytes, and maybe an answer that it has begun to read.
fn ways_to_die() -> Vec<(&'static str, Vec<u8>, Option<u8>)> {
    let insert = "INSERT INTO items (id, body) VALUES (990, 'left behind')";
    vec![
        (
            "idle in a transaction",
            query(&format!("BEGIN; {insert}")),
            Some(b'Z'),
        ),
        (
            "in a failed transaction",
            query("BEGIN; SELECT 1/0"),
            Some(b'Z'),
        ),
        (
            "in the middle of a query",
            query("SELECT pg_sleep(0.2), body FROM items"),
            None,
        ),
        (
            "while an answer comes",
            query("SELECT repeat('x', 1000) FROM generate_series(1, 100000)"),
            Some(b'T'),
        ),
        (
            "in a COPY to the server",
            query("COPY plain FROM STDIN"),
            Some(b'G'),
        ),
        (
            "half a COPY sent",
            [
                query("COPY plain FROM STDIN"),
                copy_data(b"995\tleft"),
                copy_data(b" behind\n"),
            ]
            .concat(),
            Some(b'G'),
        ),
        (
            "before the COPY it asked for began",
            [
                query("SELECT pg_sleep(0.05)"),
                query("COPY plain FROM STDIN"),
                copy_data(b"997\tleft\n"),
            ]
            .concat(),
            None,
        ),
        (
            "before the COPY of a pipeline began",
            [
                parse("", "SELECT pg_sleep(0.05)"),
                bind("", "", &[]),
                execute("", 0),
                parse("", "COPY plain FROM STDIN"),
                bind("", "", &[]),
                execute("", 0),
                sync(),
            ]
            .concat(),
            None,
        ),
        (
            "in a COPY from the server",
            query("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 100000)) TO STDOUT"),
            Some(b'd'),
        ),
        (
            "in a pipeline without Sync",
            [parse("", insert), bind("", "", &[]), execute("", 0)].concat(),
            None,
        ),
        (
            "in a pipeline without Sync, flushed",
            [
                parse("", insert),
                bind("", "", &[]),
                execute("", 0),
                flush(),
            ]
            .concat(),
            Some(b'C'),
        ),
        (
            "after an error without Sync",
            [parse("", "SELEC"), flush()].concat(),
            Some(b'E'),
        ),
        (
            "in a suspended portal",
            [
                parse("", "SELECT generate_series(1, 9)"),
                bind("p", "", &[]),
                execute("p", 1),
                flush(),
            ]
            .concat(),
            Some(b's'),
        ),
        ("in half a message", query(insert)[..20].to_vec(), None),
        ("in half a header", b"Q\0\0".to_vec(), None),
        (
            "in half a Parse",
            parse("named", insert)[..30].to_vec(),
            None,
        ),
        (
            "in half a Bind",
            [
                parse("", "SELECT $1"),
                bind("", "", &[Some("a long value")])[..20].to_vec(),
            ]
            .concat(),
            None,
        ),
        (
            "in half a COPY message",
            [
                query("COPY plain FROM STDIN"),
                copy_data(b"996\tleft behind\n")[..9].to_vec(),
            ]
            .concat(),
            Some(b'G'),
        ),
        (
            "while queries wait",
            [
                query("SELECT pg_sleep(0.1)"),
                query(insert),
                query("DELETE FROM items WHERE id = 990"),
            ]
            .concat(),
            None,
        ),
        (
            "with its session changed",
            query(
                "SET search_path = nowhere; SET ROLE NONE; SET statement_timeout = 1; SET row_security = off",
            ),
            Some(b'Z'),
        ),
        (
            "with things left in its session",
            query(
                "CREATE TEMP TABLE items (body text); PREPARE left AS SELECT 1; LISTEN left; SELECT pg_advisory_lock(99)",
            ),
            Some(b'Z'),
        ),
        (
            "with another tenant's name",
            query("SET app.tenant_id = 't00'"),
            Some(b'Z'),
        ),
        (
            "in a transaction with another tenant's name",
            query("BEGIN; SET LOCAL app.tenant_id = 't00'"),
            Some(b'Z'),
        ),
        (
            "after a message of no kind",
            message(b'!', &[b"what"]),
            Some(b'E'),
        ),
    ]
}

/// One server connection for everybody; each client that dies is followed by one of another tenant.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_dies_in_any_state_leaves_nothing_to_the_next() {
    for pooling in POOLINGS {
        for abrupt in [true, false] {
            let setup = Setup {
                pooling,
                pool_size: 1,
                ..Setup::default()
            };
            let proxy = setup.start().await;
            for (dying, next) in [("t21", "t22"), ("c0", "c1"), ("b2", "b2")] {
                let (dying, next) = (tenant(dying), tenant(next));
                for (how, bytes, read_to) in ways_to_die() {
                    let label = format!("{} {how}, {pooling} pooling", dying.name);
                    let mut wire = proxy.raw(&dying).await;
                    wire.send(&bytes).await;
                    if let Some(tag) = read_to {
                        in_time(&label, wire.until(tag)).await;
                    }
                    if abrupt {
                        drop(wire);
                    } else {
                        // Its side closed first, as a program that exits does.
                        wire.shutdown().await;
                        in_time(&label, wire.rest()).await;
                    }
                    let mut wire = proxy.raw(&next).await;
                    let frames = in_time(
                        &label,
                        wire.query("SELECT body FROM items WHERE id < 900 OR id = 990 ORDER BY id"),
                    )
                    .await;
                    assert_eq!(rows(&frames), next.bodies(), "{label}: {frames:?}");
                    let frames = wire
                        .query("SELECT count(*) FROM plain WHERE id BETWEEN 990 AND 999")
                        .await;
                    assert_eq!(column(&frames), ["0"], "{label}");
                }
            }
            let watching = world()
                .await
                .shared
                .connect("postgres")
                .await
                .expect("connects");
            assert!(backends(&watching, "r_b2").await <= 1);
        }
    }
    assert_no_panics();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_session_is_left_to_another_tenant() {
    for pooling in POOLINGS {
        let setup = Setup {
            pooling,
            pool_size: 1,
            ..Setup::default()
        };
        let proxy = setup.start().await;
        let state = "SELECT concat_ws(', ', current_setting('search_path'), current_setting('statement_timeout'), \
            current_setting('role'), current_setting('TimeZone'), current_setting('work_mem'), current_setting('my.own', true), \
            (SELECT count(*) FROM pg_prepared_statements WHERE name NOT LIKE 'pgtenant\\_%'), (SELECT count(*) FROM pg_cursors), \
            (SELECT count(*) FROM pg_listening_channels()), \
            (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()), \
            (SELECT count(*) FROM pg_class WHERE relname = 'mine'))";
        let mut b = proxy.raw(&tenant("t24")).await;
        let before = b.column(state).await;
        drop(b);
        let mut a = proxy.raw(&tenant("t23")).await;
        a.query(
            "SET search_path = pg_catalog; SET statement_timeout = '9s'; SET TimeZone = 'Asia/Tokyo'; SET work_mem = '9MB'; \
             SET my.own = 'secret of t23'; PREPARE mine AS SELECT 'secret'; LISTEN mine; SELECT pg_advisory_lock(7); \
             CREATE TEMP TABLE mine (t text); DECLARE mine CURSOR WITH HOLD FOR SELECT 1",
        )
        .await;
        a.send(&[parse("secret", "SELECT 'secret of t23'"), sync()].concat())
            .await;
        a.until_ready().await;
        a.shutdown().await;
        a.rest().await;
        let mut b = proxy.raw(&tenant("t24")).await;
        let after = b.column(state).await;
        // A custom variable that was ever set is empty, not absent, after DISCARD ALL.
        let plain = |texts: &[String]| texts[0].replace(", , ", ", ");
        assert_eq!(plain(&after), plain(&before), "{pooling}");
        let left = b
            .column("SELECT statement FROM pg_prepared_statements WHERE statement LIKE '%secret of%' AND statement NOT LIKE '%pg_prepared%'")
            .await;
        assert!(left.is_empty(), "{pooling}: {left:?}");
    }
}

fn fatal(frames: &[Frame]) -> Vec<String> {
    frames
        .iter()
        .filter(|frame| frame.field(b'V').as_deref() == Some("FATAL"))
        .map(Frame::sqlstate)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_stops_ends_idle_clients_at_once_and_lets_transactions_finish() {
    for pooling in POOLINGS {
        let world = world().await;
        let setup = Setup {
            pooling,
            ..Setup::default()
        };
        let proxy = Proxy::start(parse_config(&setup.yaml(world)), None).expect("starts");
        let address = proxy.addresses()[0];
        let client = async |name: &str| {
            let tenant = tenant(name);
            let mut wire = Wire::tcp(address).await;
            let login = [("user", &*tenant.user()), ("database", &tenant.database)];
            let logged_in = wire.log_in(&login, &tenant.password()).await;
            logged_in.expect("logs in");
            wire
        };
        let mut never_used = client("d3").await;
        let mut idle = client("t25").await;
        idle.query("SELECT 1").await;
        let mut busy = client("t26").await;
        busy.query("BEGIN").await;
        let mut querying = client("b3").await;
        querying
            .send(&query("SELECT 'whole' FROM pg_sleep(0.5) /* drain */"))
            .await;
        runs(&world.shared, "drain").await;

        let stopping = tokio::spawn(proxy.stop());
        for wire in [&mut never_used, &mut idle] {
            let frames = in_time("an idle client is told", wire.rest()).await;
            assert_eq!(fatal(&frames), [ADMIN_SHUTDOWN], "{pooling}");
        }
        assert_eq!(column(&querying.until_ready().await), ["whole"]);
        assert_eq!(fatal(&querying.rest().await), [ADMIN_SHUTDOWN]);
        // The listener is closed, or says that it takes nobody.
        if let Ok(tcp) = tokio::net::TcpStream::connect(address).await {
            let mut late = Wire::over(tcp);
            let login = late
                .try_send(&crate::wire::startup(
                    crate::wire::PROTOCOL_3_0,
                    &[("user", "app.t25")],
                ))
                .await;
            if login.is_ok() {
                assert!(fatal(&late.rest().await).iter().all(|code| code == "57P03"));
            }
        }
        assert_eq!(busy.column("SELECT 'still in it'").await, ["still in it"]);
        assert!(!stopping.is_finished());
        let frames = busy.query("COMMIT").await;
        assert_eq!(frames.last().map(|f| f.tag), Some(b'Z'), "{frames:?}");
        assert_eq!(fatal(&busy.rest().await), [ADMIN_SHUTDOWN]);
        assert!(in_time("stop", stopping).await.expect("no panic"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_does_not_end_is_ended_after_the_deadline() {
    let world = world().await;
    let setup = Setup {
        sections: "timeouts: { shutdown: 300ms }".into(),
        ..Setup::default()
    };
    let proxy = Proxy::start(parse_config(&setup.yaml(world)), None).expect("starts");
    let tenant = tenant("t27");
    let mut wire = Wire::tcp(proxy.addresses()[0]).await;
    let login = [("user", &*tenant.user()), ("database", &tenant.database)];
    wire.log_in(&login, &tenant.password())
        .await
        .expect("logs in");
    wire.query("BEGIN").await;
    assert!(!in_time("stop", proxy.stop()).await);
    assert_eq!(fatal(&wire.rest().await), [ADMIN_SHUTDOWN]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_dropped_lets_its_server_connections_go() {
    let own = own_server("dropped").await;
    own.run(
        "postgres",
        &format!("CREATE ROLE app_dropped LOGIN PASSWORD '{SECRET}'"),
    )
    .await
    .expect("a role");
    let yaml = format!(
        "listen: [{{ address: \"127.0.0.1:0\" }}]\nservers:\n{}placements:\n  p: {{ tier: instance, server: own, \
         database: postgres, login: {{ user: app_dropped, password: {SECRET} }} }}\ntenants:\n  x: {{ placement: p, users: {{ app: {{ password: x }} }} }}\n",
        server_line("own", &own, 10)
    );
    let proxy = Proxy::start(parse_config(&yaml), None).expect("starts");
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(proxy.addresses()[0].port());
    config.user("app.x").password("x").dbname("postgres");
    let client = connect(&config).await.expect("connects");
    client.batch_execute("SELECT 1").await.expect("runs");
    let watching = own.connect("postgres").await.expect("connects");
    assert_eq!(backends(&watching, "app_dropped").await, 1);
    drop(proxy);
    eventually("its connections are closed", async || {
        backends(&watching, "app_dropped").await == 0
    })
    .await;
    drop(watching);
    own.stop().await.expect("ends");
}

/// A client whose answers nobody reads holds up itself, and no memory without bounds.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_holds_up_nobody_else() {
    let proxy = Setup::default().start().await;
    let mut slow = proxy.raw(&tenant("t28")).await;
    let before = resident();
    slow.send(&query(
        "SELECT repeat('x', 1000) FROM generate_series(1, 200000)",
    ))
    .await;
    let mut other = proxy.raw(&tenant("t29")).await;
    for _ in 0..50 {
        let seen = other
            .column("SELECT body FROM items WHERE id < 900 ORDER BY id")
            .await;
        assert_eq!(seen, tenant("t29").bodies());
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let grown = resident().saturating_sub(before);
    assert!(
        grown < 100 << 20,
        "{grown} bytes for 200 MB that nobody reads"
    );
}

/// Memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = status
        .split(' ')
        .nth(1)
        .and_then(|n| n.parse::<usize>().ok());
    pages.expect("a number") * 4096
}

/// In how many centiseconds TCP asks whether the other end is there, of each connection of this
/// machine between two ports that are `wanted` (Linux: the timer 02 of `/proc/net/tcp`).
fn keepalives(wanted: impl Fn(u16, u16) -> bool) -> Vec<u64> {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
    let hex = |text: &str| u64::from_str_radix(text, 16).expect("a hexadecimal number");
    let port = |address: &str| u16::try_from(hex(&address[address.len() - 4..])).expect("a port");
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let is_wanted = wanted(port(fields[1]), port(fields[2]));
            let when = fields[5].strip_prefix("02:").filter(|_| is_wanted)?;
            Some(hex(when))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_gone_without_a_word_is_looked_for() {
    let setup = |sections: &str| Setup {
        sections: sections.to_owned(),
        ..Setup::default()
    };
    let acme = tenant("acme");
    let server = world().await.home(&acme).port();
    for (sections, soon) in [
        ("", false),
        (
            "tcp_keepalives: { idle: 40s, interval: 2s, count: 3 }\n",
            true,
        ),
    ] {
        let proxy = Running::start(&setup(sections).yaml(world().await));
        let mut wire = proxy.raw(&acme).await;
        assert_eq!(wire.column("SELECT 1").await, ["1"]);
        let port = proxy.address.port();
        // While what was sent is not acknowledged, another timer is shown.
        let is_soon = |when: &u64| *when <= 4000;
        eventually("the client's connection is looked after", async || {
            let times = keepalives(|own, _| own == port);
            !times.is_empty() && times.iter().all(|when| is_soon(when) == soon)
        })
        .await;
        // Other tests' are among them.
        eventually("the server's connection is, too", async || {
            let times = keepalives(|_, peer| peer == server);
            times.iter().any(|when| is_soon(when) == soon)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_says_why_and_ends_what_it_had_begun() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = holder.local_addr().expect("its address");
    let setup = Setup {
        sections: format!("http: {{ address: \"{taken}\" }}"),
        ..Setup::default()
    };
    let yaml = setup.yaml(world().await);
    watch_for_panics();
    for _ in 0..30 {
        let started = Proxy::start(parse_config(&yaml), None);
        let error = started.err().expect("the port is taken");
        assert!(
            error
                .to_string()
                .starts_with(&format!("http: cannot bind {taken}")),
            "{error}"
        );
    }
    assert_no_panics();
}

/// A login as `alone`, or as its role direct, with one more parameter; in the end what it was
/// refused for.
async fn log_in_with(mut wire: Wire, user: &str, password: &str, own: (&str, &str)) -> Wire {
    let pairs = [("user", user), ("database", "postgres"), own];
    let _ = wire.log_in(&pairs, password).await;
    wire
}

/// SQLSTATE and message of the login's refusal.
fn refusal(wire: &Wire) -> Option<(String, Option<String>)> {
    let refused = wire.greeting.iter().find(|frame| frame.tag == b'E')?;
    Some((refused.sqlstate(), refused.field(b'M')))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_parameter_that_the_server_refuses_is_refused_as_direct_and_harms_nobody_else() {
    let own = own_server("login-parameters").await;
    for pooling in POOLINGS {
        let proxy = with_own(&own, pooling, "").await;
        for parameter in [
            ("TimeZone", "JST"),
            ("DateStyle", "foo"),
            ("client_encoding", "mule_internal"),
            ("no_such_parameter", "1"),
            ("options", "-c role=nosuch"),
            ("options", "-c session_authorization=postgres"),
            ("options", "-c local_preload_libraries=nosuch"),
            ("options", "-c shared_buffers=1"),
        ] {
            let direct = log_in_with(Wire::unix(&own).await, "own", SECRET, parameter).await;
            let expected = refusal(&direct);
            assert!(expected.is_some(), "{parameter:?} is refused direct");
            let tcp = Wire::tcp(proxy.address).await;
            let refused = log_in_with(tcp, "app.alone", "alone-secret", parameter).await;
            assert_eq!(refusal(&refused), expected, "{pooling} {parameter:?}");
            let mut other = alone(&proxy).await;
            assert_eq!(other.column("SELECT 'served'").await, ["served"]);
        }
    }
    // Who may be anybody is still who logged in.
    own.run("postgres", "ALTER ROLE own SUPERUSER")
        .await
        .expect("a superuser");
    for pooling in POOLINGS {
        let proxy = with_own(&own, pooling, "").await;
        let tcp = Wire::tcp(proxy.address).await;
        let parameter = ("options", "-c session_authorization=postgres");
        let mut wire = log_in_with(tcp, "app.alone", "alone-secret", parameter).await;
        assert_eq!(wire.column("SELECT session_user").await, ["own"]);
    }
    assert_no_panics();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_login_is_told_of_its_server_is_not_stale() {
    let own = own_server("reported").await;
    let proxy = with_own(&own, "transaction", "").await;
    let told = |wire: &Wire| {
        let named = |frame: &&Frame| {
            frame.tag == b'S' && frame.body.starts_with(b"default_transaction_read_only\0")
        };
        wire.greeting
            .iter()
            .find(named)
            .map(|frame| frame.body.clone())
    };
    let on = || Some(b"default_transaction_read_only\0on\0".to_vec());
    let before = told(&alone(&proxy).await);
    assert_ne!(before, on());
    for sql in [
        "ALTER SYSTEM SET default_transaction_read_only = on",
        "SELECT pg_reload_conf()",
    ] {
        own.run("postgres", sql).await.expect("is changed");
    }
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(told(&alone(&proxy).await), on());
    // The next is told the same without asking.
    assert_eq!(told(&alone(&proxy).await), on());
    assert_no_panics();
}
