//! What takes too long is ended, whatever the client sets and pipelines, with PostgreSQL's own
//! words.

use std::time::{Duration, Instant};

use crate::harness::{PATIENCE, POOLINGS, Running, Setup, in_time, tenant, world};
use crate::wire::{Frame, PROTOCOL_3_0, Wire, errors, query, startup};

async fn proxy(pooling: &'static str) -> Running {
    Setup {
        pooling,
        about: |name| match name {
            "t30" => "timeouts: { statement: 300ms }",
            "t31" => "timeouts: { transaction: 400ms }",
            "t32" => "timeouts: { idle_in_transaction: 300ms }",
            "t33" => "timeouts: { idle_session: 300ms }",
            "t34" => "timeouts: { pinned: 300ms }",
            _ => "",
        },
        ..Setup::default()
    }
    .start()
    .await
}

fn told(frames: &[Frame]) -> Vec<(String, Option<String>)> {
    let errors = frames.iter().filter(|frame| frame.tag == b'E');
    errors
        .map(|error| (error.sqlstate(), error.field(b'M')))
        .collect()
}

/// What the client is told as it is ended.
async fn ended(wire: &mut Wire) -> Vec<(String, Option<String>)> {
    told(&in_time("it is ended", wire.rest()).await)
}

fn one(sqlstate: &str, message: &str) -> Vec<(String, Option<String>)> {
    vec![(sqlstate.to_owned(), Some(message.to_owned()))]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_takes_too_long_is_cancelled_and_the_client_goes_on() {
    let cancelled = one("57014", "canceling statement due to statement timeout");
    for pooling in POOLINGS {
        let proxy = proxy(pooling).await;
        let mut wire = proxy.raw(&tenant("t30")).await;
        // What the client sets for itself changes nothing.
        wire.query("SET statement_timeout = 0").await;
        for _ in 0..2 {
            let answer = tokio::time::timeout(PATIENCE, wire.query("SELECT pg_sleep(61)"));
            let answer = answer.await.expect("it is cancelled");
            assert_eq!(told(&answer), cancelled, "{pooling}");
            assert_eq!(wire.column("SELECT 1").await, ["1"]);
        }
        // Each of a pipeline has its own time.
        wire.send(&query("SELECT pg_sleep(0.02)").repeat(30)).await;
        for _ in 0..30 {
            assert!(errors(&wire.until_ready().await).is_empty(), "{pooling}");
        }
        // Neither a user's own cancel nor what is idle meanwhile is told so.
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(wire.column("SELECT 1").await, ["1"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_takes_too_long_ends_with_its_client() {
    for pooling in POOLINGS {
        let proxy = proxy(pooling).await;
        let mut busy = proxy.raw(&tenant("t31")).await;
        busy.query("BEGIN").await;
        let mut all = Vec::new();
        let statements = async {
            while busy.try_send(&query("SELECT pg_sleep(0.03)")).await.is_ok() {
                while let Some(frame) = busy.frame().await {
                    let is_ready = frame.tag == b'Z';
                    all.push(frame);
                    if is_ready {
                        break;
                    }
                }
                if !errors(&all).is_empty() {
                    break;
                }
            }
        };
        in_time("it is ended", statements).await;
        let expected = one("25P04", "terminating connection due to transaction timeout");
        assert_eq!(told(&all), expected, "{pooling}");
        // Many short ones may take as long as they like.
        let mut quick = proxy.raw(&tenant("t31")).await;
        for _ in 0..30 {
            let done = quick.query("BEGIN; SELECT pg_sleep(0.02); COMMIT").await;
            assert!(errors(&done).is_empty(), "{pooling}");
        }
        let mut waits = proxy.raw(&tenant("t32")).await;
        waits
            .query("SET idle_in_transaction_session_timeout = 0; BEGIN")
            .await;
        let expected = one(
            "25P03",
            "terminating connection due to idle-in-transaction timeout",
        );
        assert_eq!(ended(&mut waits).await, expected, "{pooling}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_says_nothing_for_too_long_is_ended() {
    let expected = one(
        "57P05",
        "terminating connection due to idle-session timeout",
    );
    for pooling in POOLINGS {
        let proxy = proxy(pooling).await;
        let mut silent = proxy.raw(&tenant("t33")).await;
        let mut used = proxy.raw(&tenant("t33")).await;
        assert_eq!(used.column("SELECT 1").await, ["1"]);
        assert_eq!(ended(&mut silent).await, expected, "{pooling}");
        assert_eq!(ended(&mut used).await, expected, "{pooling}");
        if pooling == "transaction" {
            let mut free = proxy.raw(&tenant("t34")).await;
            let mut pinned = proxy.raw(&tenant("t34")).await;
            pinned.query("LISTEN something").await;
            assert_eq!(ended(&mut pinned).await, expected);
            assert_eq!(free.column("SELECT 1").await, ["1"]);
        }
    }
}

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_waits_for_a_server_connection_as_long_as_its_own_timeout_says() {
    let setup = Setup {
        pool_size: 1,
        sections: "timeouts: { checkout: 1s }".into(),
        about: |name| match name {
            "t35" => "timeouts: { checkout: 200ms }",
            "t36" => "timeouts: { checkout: 60s }",
            _ => "",
        },
        ..Setup::default()
    };
    let proxy = setup.start().await;
    let mut waiting = Vec::new();
    for name in ["t35", "t37", "t36"] {
        waiting.push(proxy.raw(&tenant(name)).await);
    }
    let mut holder = proxy.raw(&tenant("t38")).await;
    holder.query("BEGIN").await;
    let began = Instant::now();
    for wire in &mut waiting {
        wire.send(&query("SELECT 1")).await;
    }
    let mut waiting = waiting.into_iter();
    let mut next = || waiting.next().expect("there are three");
    let (mut short, mut usual, mut long) = (next(), next(), next());
    assert_eq!(errors(&short.until_ready().await), ["53300"]);
    let first = began.elapsed();
    assert_eq!(errors(&usual.until_ready().await), ["53300"]);
    let second = began.elapsed();
    assert!(first >= Duration::from_millis(200) && second >= Duration::from_secs(1));
    assert!(first < second, "{first:?} {second:?}");
    holder.query("COMMIT").await;
    assert!(errors(&long.until_ready().await).is_empty());
}

/// Says who it is, and for a while no more.
async fn silent(proxy: &Running, name: &str) -> Wire {
    let mut wire = Wire::tcp(proxy.address).await;
    let tenant = tenant(name);
    let (user, database) = (tenant.user(), tenant.database);
    let pairs = [("user", &*user), ("database", &*database)];
    wire.send(&startup(PROTOCOL_3_0, &pairs)).await;
    wire
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_may_take_as_long_as_its_tenant_says() {
    let setup = Setup {
        sections: "timeouts: { login: 2s }".into(),
        about: |name| match name {
            "t35" => "timeouts: { login: 200ms }",
            "t36" => "timeouts: { login: 60s }",
            _ => "",
        },
        ..Setup::default()
    };
    let proxy = setup.start().await;
    let began = Instant::now();
    let (mut short, mut usual) = (silent(&proxy, "t35").await, silent(&proxy, "t37").await);
    let mut long = silent(&proxy, "t36").await;
    in_time("it is ended", short.rest()).await;
    let first = began.elapsed();
    in_time("it is ended", usual.rest()).await;
    let second = began.elapsed();
    assert!(first >= Duration::from_millis(200) && second >= Duration::from_secs(2));
    assert!(first < second, "{first:?} {second:?}");
    let password = tenant("t36").password();
    long.authenticate(&password, None).await.expect("logs in");
    assert_eq!(long.column("SELECT 1").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_is_given_as_long_as_the_nearest_timeout_says() {
    let hole = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let port = hole.local_addr().expect("an address").port();
    for (server, placement, own) in [
        ("timeouts: { connect: 300ms }", "", ""),
        (
            "timeouts: { connect: 60s }",
            "timeouts: { connect: 300ms }",
            "",
        ),
        (
            "",
            "timeouts: { connect: 60s }",
            "timeouts: { connect: 300ms }",
        ),
    ] {
        let comma = |text: &str| {
            if text.is_empty() {
                String::new()
            } else {
                format!(", {text}")
            }
        };
        let setup = Setup {
            sections: "timeouts: { connect: 60s, checkout: 60s, login: 60s }".into(),
            placements: format!(
                "hole: {{ tier: instance, server: hole, database: x, login: {{ user: x }}{} }}",
                comma(placement)
            ),
            tenants: format!(
                "h0: {{ placement: hole, users: {{ app: {{ password: h0 }} }}{} }}",
                comma(own)
            ),
            ..Setup::default()
        };
        let line = format!(
            "servers:\n  hole: {{ host: 127.0.0.1, port: {port}, sslmode: disable, max_connections: 3, fail_fast: true{} }}\n",
            comma(server)
        );
        let yaml = setup.yaml(world().await).replace("servers:\n", &line);
        let proxy = Running::start(&yaml);
        let began = Instant::now();
        let mut wire = Wire::tcp(proxy.address).await;
        let login = [("user", "app.h0"), ("database", "x")];
        let refused = in_time("it is refused", wire.log_in(&login, "h0")).await;
        let error = refused.expect_err("nobody answers there");
        assert_eq!(error.sqlstate(), "08006");
        let took = began.elapsed();
        assert!(
            took >= Duration::from_millis(300) && took < LONG,
            "{took:?}"
        );
    }
}
