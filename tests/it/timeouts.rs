//! What takes too long is ended, whatever the client sets and pipelines, with PostgreSQL's own words.

use std::time::Duration;

use crate::harness::{PATIENCE, POOLINGS, Running, Setup, in_time, tenant};
use crate::wire::{Frame, Wire, errors, query};

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
