//! Who waits for a server connection, and for how long: beside a tenant that holds all it gets, on
//! a small budget, and where a server takes no more connections, or none.

use std::time::{Duration, Instant};

use pgtenant::cluster::{Cluster, Options, Shutdown};
use tokio::task::JoinSet;

use crate::harness::{Running, SECRET, in_time};
use crate::wire::{Wire, column, errors, query};

/// Tests of a promised time give it so many times as long.
const GENEROUS: u32 = 10;

async fn own_server(name: &str, setup: &str) -> Cluster {
    let cluster = crate::harness::cluster(Options {
        max_connections: 60,
        settings: vec![("shared_buffers".into(), "16MB".into())],
        ..Options::named(name)
    })
    .await;
    let sql = format!("CREATE ROLE own LOGIN PASSWORD '{SECRET}'; {setup}");
    cluster.run("postgres", &sql).await.expect("a role");
    cluster
}

/// A proxy with one placement on this server, and tenants `w0`, `w1`, ….
fn proxy(own: &Cluster, server: &str, placement: &str, tenants: usize, sections: &str) -> Running {
    let mut yaml = format!(
        "listen: [{{ address: \"127.0.0.1:0\" }}]\nworkers: 2\n{sections}\nservers:\n  own: {{ host: {}, port: {}, \
         sslmode: disable, {server} }}\nplacements:\n  p: {{ server: own, login: {{ user: own, password: {SECRET} }}, {placement} }}\ntenants:\n",
        own.host(),
        own.port()
    );
    for number in 0..tenants {
        yaml += &format!(
            "  w{number}: {{ placement: p, users: {{ app: {{ password: w{number} }} }} }}\n"
        );
    }
    Running::start(&yaml)
}

const POOL: &str =
    "tier: pool, database: postgres, posture: plain, context: { app.tenant_id: \"{tenant}\" }";

async fn client(proxy: &Running, number: usize) -> Wire {
    let mut wire = Wire::tcp(proxy.address).await;
    let name = format!("w{number}");
    let user = format!("app.{name}");
    let login = [("user", user.as_str()), ("database", "postgres")];
    wire.log_in(&login, &name).await.expect("logs in");
    wire
}

fn connects(proxy: &Running) -> u64 {
    let instances = proxy.proxy.app().instances();
    let connects = instances
        .values()
        .map(|instance| instance.metrics.connects.get());
    connects.sum()
}

/// What runs to its end in a task of its own, and panics here.
async fn all(tasks: &mut JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_that_hold_nothing_are_served_beside_one_that_holds_the_pool() {
    const SIZE: usize = 4;
    const RESERVE: usize = 3;
    const OTHERS: usize = 12;
    const STATEMENTS: usize = 40;
    let own = own_server("held", "").await;
    let pool = format!("{POOL}, pool: {{ size: {SIZE}, reserve: {RESERVE} }}");
    let proxy = proxy(&own, "max_connections: 20", &pool, OTHERS + 1, "");
    let mut held = Vec::new();
    for _ in 0..SIZE {
        let mut wire = client(&proxy, 0).await;
        wire.query("BEGIN").await;
        held.push(wire);
    }
    // More of the same are in line, first of all.
    let mut waits = client(&proxy, 0).await;
    waits.send(&query("SELECT 'at last'")).await;
    let mut first = client(&proxy, 1).await;
    let began = Instant::now();
    assert_eq!(first.column("SELECT 1").await, ["1"]);
    assert!(
        began.elapsed() < GENEROUS * Duration::from_millis(20),
        "{:?}",
        began.elapsed()
    );

    let mut others = Vec::new();
    for number in 1..=OTHERS {
        others.push(client(&proxy, number).await);
    }
    let mut tasks = JoinSet::new();
    for (number, mut wire) in others.into_iter().enumerate() {
        tasks.spawn(async move {
            for _ in 0..STATEMENTS {
                let seen = wire.column("SELECT current_setting('app.tenant_id')").await;
                assert_eq!(seen, [format!("w{}", number + 1)]);
            }
        });
    }
    in_time("the others", all(&mut tasks)).await;
    // They share the reserve, which is not made anew for each statement.
    let connects = connects(&proxy);
    assert!(
        connects <= (SIZE + RESERVE) as u64 + 2,
        "{connects} connections were made"
    );
    held[0].query("COMMIT").await;
    assert_eq!(column(&waits.until_ready().await), ["at last"]);
    own.stop().await.expect("ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_take_turns_on_a_small_budget_without_a_new_connection_for_every_few_statements()
{
    const BUDGET: usize = 5;
    const DATABASES: usize = 15;
    const CLIENTS: usize = 45;
    const TIME: Duration = Duration::from_secs(5);
    let own = own_server("budget", "").await;
    for number in 0..DATABASES {
        let sql = format!("CREATE DATABASE db_w{number} TEMPLATE template0 STRATEGY wal_log");
        own.run("postgres", &sql).await.expect("a database");
    }
    let server = format!("max_connections: {BUDGET}");
    let place = "tier: database, database: \"db_{tenant}\", pool: { size: 4 }";
    let sections = "timeouts: { checkout: 30s, login: 30s }";
    let proxy = std::sync::Arc::new(proxy(&own, &server, place, DATABASES, sections));
    let mut tasks = JoinSet::new();
    for number in 0..CLIENTS {
        let proxy = proxy.clone();
        tasks.spawn(async move {
            let number = number % DATABASES;
            let mut wire = Wire::tcp(proxy.address).await;
            let (name, database) = (format!("w{number}"), format!("db_w{number}"));
            let user = format!("app.{name}");
            let login = [("user", user.as_str()), ("database", &database)];
            wire.log_in(&login, &name).await.expect("logs in");
            let end = Instant::now() + TIME;
            let mut longest = Duration::ZERO;
            while Instant::now() < end {
                let began = Instant::now();
                assert_eq!(
                    wire.column("SELECT current_database()").await,
                    [database.as_str()]
                );
                longest = longest.max(began.elapsed());
            }
            let goal = Duration::from_secs(2);
            assert!(longest < 4 * goal, "{name} waited for {longest:?}");
        });
    }
    let watching = own.connect("postgres").await.expect("connects");
    let mut most = 0;
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'own'";
    while !tasks.is_empty() {
        let count: i64 = watching.query_one(sql, &[]).await.expect("counts").get(0);
        most = most.max(count);
        tokio::time::sleep(Duration::from_millis(50)).await;
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }
    assert!(most <= BUDGET as i64, "{most} connections");
    let statements: u64 = proxy
        .proxy
        .app()
        .seen_tenants()
        .iter()
        .map(|tenant| tenant.metrics.queries.get())
        .sum();
    let connects = connects(&proxy);
    assert!(
        statements > 20 * connects,
        "{statements} statements on {connects} connections"
    );
    own.stop().await.expect("ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_fewer_connections_than_it_may_fails_no_statement() {
    let own = own_server("few", "ALTER ROLE own CONNECTION LIMIT 3").await;
    let pool = format!("{POOL}, pool: {{ size: 12 }}");
    let proxy = proxy(&own, "max_connections: 20", &pool, 4, "");
    let mut tasks = JoinSet::new();
    let mut clients = Vec::new();
    for number in 0..12 {
        clients.push(client(&proxy, number % 4).await);
    }
    for mut wire in clients {
        tasks.spawn(async move {
            for _ in 0..20 {
                let frames = wire.query("SELECT 'served' FROM pg_sleep(0.005)").await;
                assert_eq!(column(&frames), ["served"]);
            }
        });
    }
    in_time("all are served", all(&mut tasks)).await;
    let instances = proxy.proxy.app().instances();
    let refused: u64 = instances
        .values()
        .map(|i| i.metrics.failed_connects.get())
        .sum();
    assert!((1..40).contains(&refused), "{refused} were refused");
    own.stop().await.expect("ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_wait_for_a_server_that_is_away_until_their_checkout_ends() {
    let own = own_server("away", "").await;
    let pool = format!("{POOL}, pool: {{ size: 3 }}");
    let waits = proxy(&own, "max_connections: 20", &pool, 2, "");
    let ends = proxy(
        &own,
        "max_connections: 20",
        &pool,
        2,
        "timeouts: { checkout: 1s }",
    );
    let fails = proxy(&own, "max_connections: 20, fail_fast: true", &pool, 2, "");
    let mut clients = Vec::new();
    for proxy in [&waits, &waits, &waits, &waits, &waits, &ends, &fails] {
        let mut wire = client(proxy, clients.len() % 2).await;
        assert_eq!(wire.column("SELECT 1").await, ["1"]);
        clients.push(wire);
    }
    let mut fails_at_once = clients.pop().expect("a client");
    let mut ends_soon = clients.pop().expect("a client");
    own.shut_down(Shutdown::Fast).await.expect("ends");
    for wire in &mut clients {
        wire.send(&query("SELECT 'it was worth the wait'")).await;
    }
    let unreachable = ["08006", "57P03"];
    for _ in 0..2 {
        let began = Instant::now();
        let told = errors(&fails_at_once.query("SELECT 1").await);
        assert!(unreachable.contains(&told[0].as_str()), "{told:?}");
        assert!(
            began.elapsed() < Duration::from_secs(3),
            "{:?}",
            began.elapsed()
        );
    }
    let began = Instant::now();
    let told = errors(&ends_soon.query("SELECT 1").await);
    assert!(unreachable.contains(&told[0].as_str()), "{told:?}");
    assert!(
        began.elapsed() >= Duration::from_millis(900),
        "{:?}",
        began.elapsed()
    );
    // One that waits can be cancelled, and one that leaves is not waited for.
    let mut leaves = client_that_waits(&waits).await;
    leaves.shutdown().await;
    own.start_again().await.expect("starts");
    for wire in &mut clients {
        let frames = in_time("it is back", wire.until_ready()).await;
        assert_eq!(column(&frames), ["it was worth the wait"]);
    }
    for wire in [&mut fails_at_once, &mut ends_soon] {
        crate::harness::eventually("it serves again", async || {
            errors(&wire.query("SELECT 1").await).is_empty()
        })
        .await;
    }
    own.stop().await.expect("ends");
}

/// In the middle of its login: what a server reports is not known for its settings.
async fn client_that_waits(proxy: &Running) -> Wire {
    let mut wire = Wire::tcp(proxy.address).await;
    let startup = crate::wire::startup(
        crate::wire::PROTOCOL_3_0,
        &[("user", "app.w0"), ("database", "postgres")],
    );
    wire.send(&startup).await;
    wire
}
