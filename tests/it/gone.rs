//! Clients that go while the server works for them, and clients that must go: their server
//! connections are free again soon, and what they had said is done as by PostgreSQL where that
//! takes no longer than a moment.

use std::time::Duration;

use crate::harness::{
    POOLINGS, Running, Setup, all_tenants, direct, eventually, in_time, tenant, world,
};
use crate::wire::{Wire, bind, errors, execute, parse, query, rows, sync, terminate};

const SLEEPING: &str = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(61)%' \
     AND pid <> pg_backend_pid()";

/// What a client may be at when it goes.
fn doings() -> [(&'static str, Vec<Vec<u8>>); 6] {
    let run = |sql: &str| [parse("", sql), bind("", "", &[]), execute("", 0)].concat();
    [
        ("a statement", vec![query("SELECT pg_sleep(61)")]),
        (
            "a transaction",
            vec![query("BEGIN"), query("SELECT pg_sleep(61)")],
        ),
        (
            "a statement that holds what comes",
            vec![query("SET work_mem = '5MB'; SELECT pg_sleep(61)")],
        ),
        (
            "a batch",
            vec![[run("SELECT pg_sleep(61)"), sync()].concat()],
        ),
        (
            "a batch without an end",
            vec![[run("SELECT pg_sleep(61)"), run("SELECT 1")].concat()],
        ),
        (
            "half a message",
            vec![
                query("SELECT pg_sleep(61)"),
                query("SELECT 2")[..7].to_vec(),
            ],
        ),
    ]
}

async fn proxy(pooling: &'static str) -> Running {
    Setup {
        pooling,
        pool_size: 2,
        sections: "timeouts: { checkout: 30s, revoked: 500ms }".into(),
        ..Setup::default()
    }
    .start()
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_while_a_statement_runs_takes_no_server_connection_with_it() {
    let world = world().await;
    let own = tenant("d4");
    let watching = world.shared.connect("postgres").await.expect("connects");
    for pooling in POOLINGS {
        let proxy = proxy(pooling).await;
        for (doing, said) in doings() {
            for says_so in [false, true] {
                let mut gone = Vec::new();
                for _ in 0..2 {
                    let mut wire = proxy.raw(&own).await;
                    wire.send(&said.concat()).await;
                    gone.push(wire);
                }
                eventually("both sleep", async || {
                    let row = watching.query_one(SLEEPING, &[]).await.expect("a row");
                    row.get::<_, i64>(0) == 2
                })
                .await;
                for mut wire in gone {
                    if says_so {
                        wire.send(&terminate()).await;
                    }
                }
                let next = async {
                    let mut next = proxy.raw(&own).await;
                    rows(&next.query("SELECT 1").await)
                };
                // One that stays for the statement's own time is found out by this.
                assert_eq!(in_time(doing, next).await, ["1"], "{pooling}: {doing}");
                eventually("no statement goes on", async || {
                    let row = watching.query_one(SLEEPING, &[]).await.expect("a row");
                    row.get::<_, i64>(0) == 0
                })
                .await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_said_before_it_went_is_done_if_it_takes_no_longer_than_a_moment() {
    let world = world().await;
    let own = tenant("d4");
    let owner = world.shared.connect(&own.database).await.expect("connects");
    owner
        .batch_execute(
            "CREATE TABLE gone (id int); GRANT SELECT, INSERT ON gone TO PUBLIC;
             CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(1.5); RETURN NULL; END';
             CREATE CONSTRAINT TRIGGER late AFTER INSERT ON gone DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
             WHEN (NEW.id >= 100) EXECUTE FUNCTION late()",
        )
        .await
        .expect("makes a table");
    let mut plain = direct(world, &own).await;
    for (at, pooling) in POOLINGS.into_iter().enumerate() {
        let proxy = proxy(pooling).await;
        let insert = format!("INSERT INTO gone SELECT {at} FROM pg_sleep(0.15)");
        let mut wire = proxy.raw(&own).await;
        wire.send(&[query(&insert), terminate()].concat()).await;
        drop(wire);
        // A COMMIT is never cancelled, however long it takes.
        let mut wire = proxy.raw(&own).await;
        let id = 100 + at;
        wire.query(&format!("BEGIN; INSERT INTO gone VALUES ({id})"))
            .await;
        wire.send(&query("COMMIT")).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(wire);
        // What waits for an answer when it goes is said, too.
        let held = 200 + at;
        let mut wire = proxy.raw(&own).await;
        let set = query("SET work_mem = '5MB'; SELECT pg_sleep(0.15)");
        let insert = query(&format!("INSERT INTO gone SELECT {held} - 150"));
        wire.send(&[set, insert].concat()).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(wire);
        for id in [at, id, held - 150] {
            eventually("the row is there", async || {
                let sql = format!("SELECT count(*) FROM gone WHERE id = {id}");
                plain.column(&sql).await == ["1"]
            })
            .await;
        }
    }
    owner
        .batch_execute("DROP TABLE gone; DROP FUNCTION late")
        .await
        .expect("drops it");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_of_a_tenant_that_is_removed_end_whatever_they_do() {
    let world = world().await;
    for pooling in POOLINGS {
        let setup = Setup {
            pooling,
            pool_size: 6,
            sections: "timeouts: { revoked: 500ms }".into(),
            ..Setup::default()
        };
        let proxy = Running::start(&setup.yaml(world));
        let own = tenant("d5");
        let mut clients: Vec<Wire> = Vec::new();
        for said in [
            vec![],
            vec![query("LISTEN removed")],
            vec![query("BEGIN")],
            vec![query("BEGIN"), query("SELECT 1/0")],
            vec![query("SELECT pg_sleep(61)")],
        ] {
            let mut wire = proxy.raw(&own).await;
            let waits = said.len() - usize::from(clients.len() == 4);
            wire.send(&said.concat()).await;
            for _ in 0..waits {
                wire.until_ready().await;
            }
            clients.push(wire);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let left: Vec<_> = all_tenants()
            .into_iter()
            .filter(|tenant| tenant.name != own.name)
            .collect();
        proxy.reload(&setup.yaml_for(world, &left));
        for (at, mut wire) in clients.into_iter().enumerate() {
            let told = in_time("it ends", wire.rest()).await;
            assert_eq!(errors(&told), ["57P01"], "{pooling}: client {at}");
        }
        let watching = world.shared.connect("postgres").await.expect("connects");
        eventually("no statement goes on", async || {
            let row = watching.query_one(SLEEPING, &[]).await.expect("a row");
            row.get::<_, i64>(0) == 0
        })
        .await;
    }
}
