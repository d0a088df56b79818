//! What one transaction may take of the lock table that all tenants of a server share.

use crate::harness::{POOLINGS, Running, SECRET, Setup};
use crate::wire::{Wire, bind, errors, execute, parse, query, sync};

const TOO_MANY: &str = "53400";

async fn proxy(pooling: &'static str, limits: &str) -> Running {
    Setup {
        pooling,
        placements: format!(
            "few: {{ tier: pool, server: shared, database: app, login: {{ user: app, password: {SECRET} }}, \
             pooling: {pooling}, posture: plain, context: {{ app.tenant_id: \"{{tenant}}\" }}, pool: {{ size: 8 }}, limits: {{ {limits} }} }}"
        ),
        tenants: "k0: { placement: few, users: { app: { password: k0 } } }".into(),
        ..Setup::default()
    }
    .start()
    .await
}

async fn client(proxy: &Running) -> Wire {
    let mut wire = Wire::tcp(proxy.address).await;
    wire.log_in(&[("user", "app.k0"), ("database", "app")], "k0")
        .await
        .expect("logs in");
    wire
}

/// The errors of each of these in turn.
async fn told(wire: &mut Wire, statements: &[&str]) -> Vec<String> {
    let mut told = Vec::new();
    for sql in statements {
        told.extend(errors(&wire.query(sql).await));
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_makes_no_more_savepoints_and_objects_than_its_placement_allows() {
    for pooling in POOLINGS {
        let proxy = proxy(pooling, "savepoints: 5, objects: 5").await;
        let mut wire = client(&proxy).await;
        for _ in 0..2 {
            let mut statements = vec!["BEGIN"];
            statements.extend(["SAVEPOINT s"; 5]);
            statements.extend(["SAVEPOINT s; RELEASE s; SELECT 1", "ROLLBACK"]);
            assert_eq!(told(&mut wire, &statements).await, [TOO_MANY], "{pooling}");
        }
        let many = format!("BEGIN; {}", "SAVEPOINT s; ".repeat(6));
        assert_eq!(told(&mut wire, &[&many, "ROLLBACK"]).await, [TOO_MANY]);
        // Those that are released do not count.
        let pairs = ["SAVEPOINT s", "RELEASE s"].repeat(20);
        let statements = [&["BEGIN"][..], &pairs, &["COMMIT"]].concat();
        assert!(told(&mut wire, &statements).await.is_empty(), "{pooling}");

        let create = "CREATE TEMP TABLE t (a int); DROP TABLE t";
        for _ in 0..2 {
            let statements = ["BEGIN", create, create, create, "ROLLBACK"];
            assert_eq!(told(&mut wire, &statements).await, [TOO_MANY], "{pooling}");
        }
        let wide = "CREATE TEMP TABLE t (a int UNIQUE, b int UNIQUE, c int PRIMARY KEY, d serial, e int UNIQUE)";
        assert_eq!(told(&mut wire, &[wide]).await, [TOO_MANY], "{pooling}");
        for _ in 0..4 {
            assert!(told(&mut wire, &[create]).await.is_empty(), "{pooling}");
        }
        assert_eq!(told(&mut wire, &["SELECT 1"]).await, [""; 0], "{pooling}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_prepared_takes_no_more_than_what_is_said_at_once() {
    for pooling in POOLINGS {
        let proxy = proxy(pooling, "savepoints: 5, objects: 5").await;
        let mut wire = client(&proxy).await;
        let run = [bind("", "s", &[]), execute("", 0), sync()].concat();
        wire.send(&[query("BEGIN"), parse("s", "SAVEPOINT a"), sync()].concat())
            .await;
        wire.until_ready().await;
        wire.until_ready().await;
        let mut said = Vec::new();
        for _ in 0..6 {
            if wire.try_send(&run).await.is_err() {
                break;
            }
            while let Some(frame) = wire.frame().await {
                let is_ready = frame.tag == b'Z';
                said.push(frame);
                if is_ready {
                    break;
                }
            }
        }
        // In session pooling it is not known what a name stands for, so the client is ended when
        // there is one too many.
        said.extend(match pooling {
            "session" => wire.rest().await,
            _ => Vec::new(),
        });
        assert_eq!(errors(&said), [TOO_MANY], "{pooling}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_limits_a_transaction_takes_what_it_likes() {
    let proxy = proxy("transaction", "savepoints: 0, objects: 0").await;
    let mut wire = client(&proxy).await;
    let create = "CREATE TEMP TABLE t (a int); DROP TABLE t; ".repeat(600);
    let savepoints = "SAVEPOINT s; ".repeat(1100);
    let statements = ["BEGIN", &create, &savepoints, "COMMIT"];
    assert!(told(&mut wire, &statements).await.is_empty());
}
