//! A cancel reaches the query it is for, and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use crate::harness::{Running, Setup, Tenant, assert_no_panics, eventually, tenant, world};
use crate::wire::{
    PROTOCOL_3_0, PROTOCOL_3_2, Wire, cancel_request, column, errors, query, startup,
};

const CANCELED: &str = "57014";

async fn client(proxy: &Running, tenant: &Tenant, version: u32) -> Wire {
    let mut wire = Wire::tcp(proxy.address).await;
    let (user, password) = (tenant.user(), tenant.password());
    wire.send(&startup(
        version,
        &[("user", &user), ("database", &tenant.database)],
    ))
    .await;
    wire.authenticate(&password, None).await.expect("logs in");
    wire
}

/// Sends a cancel and waits until the proxy has closed the connection.
async fn cancel(proxy: &Running, key: &(i32, Vec<u8>)) {
    let mut wire = Wire::tcp(proxy.address).await;
    wire.send(&cancel_request(key)).await;
    assert!(wire.rest().await.is_empty(), "a cancel has no answer");
}

/// Waits until a query with this mark runs on the server.
async fn running(mark: &str) {
    let watching = world()
        .await
        .shared
        .connect("postgres")
        .await
        .expect("connects");
    eventually("the query runs", async || {
        let sql = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE $1 AND pid <> pg_backend_pid()";
        let rows = watching.query(sql, &[&format!("%{mark}%")]).await;
        !rows.expect("pg_stat_activity").is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_ends_the_query_of_its_client_and_no_other() {
    for pooling in ["transaction", "session"] {
        let proxy = Setup {
            pooling,
            ..Setup::default()
        }
        .start()
        .await;
        for (version, length) in [(PROTOCOL_3_0, 4), (PROTOCOL_3_2, 32)] {
            let mut mine = client(&proxy, &tenant("t00"), version).await;
            let mut neighbour = client(&proxy, &tenant("t00"), version).await;
            let mut other = client(&proxy, &tenant("t01"), version).await;
            assert_eq!(mine.key.1.len(), length, "{version:#x}");
            for (wire, mark) in [
                (&mut mine, "cancel mine"),
                (&mut neighbour, "cancel neighbour"),
                (&mut other, "cancel other"),
            ] {
                wire.send(&query(&format!(
                    "SELECT 'done' FROM pg_sleep(60) /* {mark} */"
                )))
                .await;
                running(mark).await;
            }
            cancel(&proxy, &mine.key).await;
            assert_eq!(errors(&mine.until_ready().await), [CANCELED]);
            assert_eq!(mine.column("SELECT 'goes on'").await, ["goes on"]);
            // The others still sleep; theirs end by their own keys.
            for wire in [&mut neighbour, &mut other] {
                assert!(wire.is_silent(Duration::from_millis(50)).await);
                let key = wire.key.clone();
                cancel(&proxy, &key).await;
                assert_eq!(errors(&wire.until_ready().await), [CANCELED]);
                assert_eq!(wire.column("SELECT 'goes on'").await, ["goes on"]);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_wrong_in_any_part_does_nothing() {
    let proxy = Setup::default().start().await;
    let mut victim = client(&proxy, &tenant("t02"), PROTOCOL_3_0).await;
    victim
        .send(&query("SELECT 'whole' FROM pg_sleep(1) /* wrong keys */"))
        .await;
    running("wrong keys").await;
    let (pid, secret) = victim.key.clone();
    let flipped: Vec<u8> = secret.iter().map(|byte| byte ^ 1).collect();
    let longer = [&secret[..], &[0]].concat();
    for key in [
        (pid, flipped),
        (pid.wrapping_add(1), secret.clone()),
        (-pid, secret.clone()),
        (pid, vec![0; 32]),
        (pid, longer),
        (0, vec![0; 4]),
    ] {
        cancel(&proxy, &key).await;
    }
    assert_eq!(column(&victim.until_ready().await), ["whole"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_of_an_idle_client_or_one_that_left_does_nothing() {
    let setup = Setup {
        pool_size: 1,
        ..Setup::default()
    };
    let proxy = setup.start().await;
    let mut idle = client(&proxy, &tenant("t03"), PROTOCOL_3_0).await;
    let mut gone = client(&proxy, &tenant("t03"), PROTOCOL_3_0).await;
    assert_eq!(idle.column("SELECT 1").await, ["1"]);
    assert_eq!(gone.column("SELECT 1").await, ["1"]);
    let keys = [idle.key.clone(), gone.key.clone()];
    drop(gone);
    // The same server connection now works for another.
    let mut working = client(&proxy, &tenant("t04"), PROTOCOL_3_0).await;
    working
        .send(&query("SELECT 'whole' FROM pg_sleep(0.5) /* idle keys */"))
        .await;
    running("idle keys").await;
    for key in &keys {
        cancel(&proxy, key).await;
    }
    assert_eq!(column(&working.until_ready().await), ["whole"]);
    assert_eq!(idle.column("SELECT 1").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_ends_the_wait_for_a_server_connection() {
    let setup = Setup {
        pool_size: 1,
        sections: "timeouts: { checkout: 60s }".into(),
        ..Setup::default()
    };
    let proxy = setup.start().await;
    let mut holder = client(&proxy, &tenant("t05"), PROTOCOL_3_0).await;
    let mut waiter = client(&proxy, &tenant("t06"), PROTOCOL_3_0).await;
    holder.query("BEGIN").await;
    waiter.send(&query("SELECT 1")).await;
    let app = proxy.proxy.app();
    eventually("it waits", async || {
        app.seen_tenants()
            .iter()
            .any(|t| t.id.as_str() == "t06" && t.metrics.waiting.get() == 1)
    })
    .await;
    cancel(&proxy, &waiter.key.clone()).await;
    assert_eq!(errors(&waiter.until_ready().await), [CANCELED]);
    assert_eq!(holder.column("SELECT 'in it'").await, ["in it"]);
    holder.query("COMMIT").await;
    assert_eq!(waiter.column("SELECT 1").await, ["1"]);
}

/// What the server was to do first was to change the tenant; whether it had is not known of each
/// cancel.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_cancelled_right_behind_a_change_of_tenant_is_over() {
    let setup = Setup {
        pool_size: 1,
        ..Setup::default()
    };
    let proxy = setup.start().await;
    let mut clients = Vec::new();
    for name in ["t03", "t04"] {
        clients.push((
            tenant(name),
            client(&proxy, &tenant(name), PROTOCOL_3_0).await,
        ));
    }
    for statement in [
        "SELECT pg_sleep(60) /* first */",
        "SET LOCAL statement_timeout = 60000; SELECT pg_sleep(60) /* first */",
        "BEGIN; SELECT pg_sleep(60) /* first */",
    ] {
        for (tenant, wire) in &mut clients {
            wire.send(&query(statement)).await;
            running("first").await;
            cancel(&proxy, &wire.key.clone()).await;
            assert_eq!(errors(&wire.until_ready().await), [CANCELED], "{statement}");
            wire.query("ROLLBACK").await;
            let seen = wire.column("SELECT body FROM items ORDER BY id").await;
            assert_eq!(seen, tenant.bodies());
        }
    }
}

/// Clients of A are cancelled all the time, at every stage of their queries, on server connections
/// that they share with clients of B.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_cancels_disturbs_nobody_else() {
    const CANCELS: usize = 10_000;
    let setup = Setup {
        pool_size: 3,
        sections: "timeouts: { checkout: 60s }".into(),
        ..Setup::default()
    };
    let proxy = Arc::new(setup.start().await);
    let over = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    let mut keys = Vec::new();
    for number in 0..6 {
        let tenant = tenant(["t07", "t08"][number % 2]);
        let mut wire = client(&proxy, &tenant, PROTOCOL_3_0).await;
        let cancelled = number % 2 == 0;
        if cancelled {
            keys.push(wire.key.clone());
        }
        let over = over.clone();
        tasks.spawn(async move {
            let mut finished = 0;
            while !over.load(Ordering::Relaxed) {
                let frames = wire
                    .query("SELECT body FROM items, pg_sleep(0.001) WHERE id < 900 ORDER BY id")
                    .await;
                let errors = errors(&frames);
                if errors.is_empty() {
                    assert_eq!(column(&frames), tenant.bodies());
                    finished += 1;
                } else {
                    assert!(cancelled, "{} was disturbed: {frames:?}", tenant.name);
                    assert_eq!(errors, [CANCELED]);
                }
            }
            finished
        });
    }
    let mut rng = StdRng::seed_from_u64(7);
    let mut storm = JoinSet::new();
    for _ in 0..CANCELS {
        let key = keys[rng.random_range(0..keys.len())].clone();
        let proxy = proxy.clone();
        storm.spawn(async move { cancel(&proxy, &key).await });
        if storm.len() >= 16 {
            storm.join_next().await;
        }
    }
    storm.join_all().await;
    over.store(true, Ordering::Relaxed);
    for finished in tasks.join_all().await {
        assert!(finished > 0, "a client came to nothing");
    }
    assert_no_panics();
}
