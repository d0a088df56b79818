//! CALL in posture guarded: what a procedure does is looked up, whatever it is called, wherever the
//! CALL stands.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::harness::{POOLINGS, Running, SECRET, Setup, world};
use crate::wire::{Wire, bind, errors, execute, parse, query, sync};

const DENIED: &str = "42501";
const OWN: &str = "SELECT current_setting('app.tenant_id')";

async fn proxy(pooling: &'static str, size: usize) -> Running {
    Setup {
        pooling,
        placements: format!(
            "calls: {{ tier: pool, server: shared, database: app, login: {{ user: app, password: {SECRET} }}, posture: guarded, \
             pooling: {pooling}, context: {{ app.tenant_id: \"{{tenant}}\", app.calls: \"{{tenant}}\" }}, pool: {{ size: {size} }} }}"
        ),
        tenants: "pc0: { placement: calls, users: { app: { password: pc0 } } }\n\
                  pc1: { placement: calls, users: { app: { password: pc1 } } }"
            .into(),
        ..Setup::default()
    }
    .start()
    .await
}

async fn client(proxy: &Running, name: &str) -> Wire {
    let mut wire = Wire::tcp(proxy.address).await;
    wire.log_in(
        &[("user", &format!("app.{name}")), ("database", "app")],
        name,
    )
    .await
    .expect("logs in");
    wire
}

/// Makes a schema anew, with this in it, that the tenants' role may use.
async fn make(schema: &str, sql: &str) {
    let sql = format!(
        "DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}; GRANT USAGE ON SCHEMA {schema} TO PUBLIC; \
         SET search_path = {schema}, public; SET check_function_bodies = off; {sql}"
    );
    let run = world().await.shared.run("app", &sql).await;
    run.expect("a schema of procedures");
}

/// A CALL, and the SQLSTATE of its error.
const CALLS: [(&str, Option<&str>); 16] = [
    ("CALL pr.plain()", None),
    ("/* x */ call\n pr.plain /* y */ ( )", None),
    ("SELECT 1; CALL pr.plain()", None),
    ("CALL pr.commits()", None),
    ("CALL pr.atomic()", None),
    ("CALL pr.\"Mixed\"()", None),
    ("CALL pr.outer_fine()", None),
    ("CALL pr.nothing()", Some("42883")),
    ("CALL pr.sets()", Some(DENIED)),
    ("CALL pr.lower()", Some(DENIED)),
    ("CALL pr.\"Sets\"()", Some(DENIED)),
    ("CALL pr.outer_sets()", Some(DENIED)),
    ("CALL pr.calls_function()", Some(DENIED)),
    ("CALL pr.strings()", Some(DENIED)),
    ("CALL pr.atomic_sets()", Some(DENIED)),
    ("CALL pr.plain(pr.f())", Some(DENIED)),
];

async fn make_procedures() {
    make(
        "pr",
        "CREATE PROCEDURE plain() LANGUAGE plpgsql AS 'BEGIN PERFORM 1; END'; \
         CREATE PROCEDURE plain(text) LANGUAGE plpgsql AS 'BEGIN PERFORM 1; END'; \
         CREATE PROCEDURE commits() LANGUAGE plpgsql AS 'BEGIN COMMIT; PERFORM 1; COMMIT; END'; \
         CREATE PROCEDURE atomic() BEGIN ATOMIC SELECT 1; END; \
         CREATE PROCEDURE \"Mixed\"() LANGUAGE sql AS 'SELECT 1'; \
         CREATE PROCEDURE outer_fine() LANGUAGE plpgsql AS 'BEGIN CALL pr.plain(); END'; \
         CREATE PROCEDURE sets() LANGUAGE plpgsql AS 'BEGIN SET app.tenant_id = ''x''; END'; \
         CREATE PROCEDURE lower() LANGUAGE plpgsql AS 'BEGIN SET app.tenant_id = ''x''; END'; \
         CREATE PROCEDURE \"Sets\"() LANGUAGE plpgsql AS 'BEGIN SET app.tenant_id = ''x''; END'; \
         CREATE PROCEDURE outer_sets() LANGUAGE plpgsql AS 'BEGIN CALL pr.\"Sets\"(); END'; \
         CREATE FUNCTION f() RETURNS text LANGUAGE sql AS 'SELECT set_config(''app.tenant_id'', ''x'', false)'; \
         CREATE PROCEDURE calls_function() LANGUAGE plpgsql AS 'BEGIN PERFORM pr.f(); END'; \
         CREATE PROCEDURE strings() LANGUAGE plpgsql AS 'BEGIN EXECUTE ''SELECT '' || 1; END'; \
         CREATE PROCEDURE atomic_sets() BEGIN ATOMIC SELECT set_config('app.tenant_id', 'x', false); END;",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_procedure_that_is_looked_up_and_harmless_is_called() {
    make_procedures().await;
    for pooling in POOLINGS {
        for (sql, expected) in CALLS {
            // Nothing of it is known yet, then all of it.
            let proxy = proxy(pooling, 4).await;
            for round in 0..2 {
                let mut wire = client(&proxy, "pc0").await;
                let expected: Vec<_> = expected.into_iter().collect();
                let told = errors(&wire.query(sql).await);
                assert_eq!(told, expected, "{pooling}, {round}: {sql}");
                assert_eq!(wire.column(OWN).await, ["pc0"], "{pooling}, {round}: {sql}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_may_stand_in_a_transaction_a_pipeline_and_a_batch() {
    make_procedures().await;
    for pooling in POOLINGS {
        for (call, expected) in [("CALL pr.plain()", None), ("CALL pr.sets()", Some(DENIED))] {
            let expected: Vec<_> = expected.into_iter().collect();
            let batch = [parse("", call), bind("", "", &[]), execute("", 0), sync()].concat();
            let named = [parse("s", call), bind("", "s", &[]), execute("", 0), sync()].concat();
            for (what, sent, ready) in [
                ("a transaction", [query("BEGIN"), query(call)].concat(), 2),
                ("a batch", batch.clone(), 1),
                ("a batch with a name", named, 1),
                (
                    "a pipeline",
                    [query("SELECT 1"), batch, query("SELECT 2")].concat(),
                    3,
                ),
            ] {
                let proxy = proxy(pooling, 1).await;
                if pooling == "transaction" {
                    // The connection is another tenant's: it changes with the first message.
                    assert_eq!(client(&proxy, "pc1").await.column(OWN).await, ["pc1"]);
                }
                let mut wire = client(&proxy, "pc0").await;
                wire.send(&sent).await;
                let mut told = Vec::new();
                for _ in 0..ready {
                    told.extend(errors(&wire.until_ready().await));
                }
                assert_eq!(told, expected, "{pooling}, {what}: {call}");
                wire.query("ROLLBACK").await;
                assert_eq!(wire.column(OWN).await, ["pc0"], "{pooling}, {what}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_messages_without_a_sync_only_what_is_known_is_called() {
    make_procedures().await;
    let proxy = proxy("transaction", 1).await;
    let mut wire = client(&proxy, "pc0").await;
    let behind = [
        [parse("", "SELECT 1"), bind("", "", &[]), execute("", 0)].concat(),
        [
            parse("", "CALL pr.plain()"),
            bind("", "", &[]),
            execute("", 0),
            sync(),
        ]
        .concat(),
    ]
    .concat();
    for expected in [&[DENIED][..], &[]] {
        wire.send(&behind).await;
        assert_eq!(errors(&wire.until_ready().await), expected);
        assert!(errors(&wire.query("CALL pr.plain()").await).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_says_call_and_goodbye_has_called() {
    make(
        "pb",
        "CREATE TABLE done (a int); GRANT ALL ON done TO PUBLIC; \
        CREATE PROCEDURE does() LANGUAGE sql AS 'INSERT INTO pb.done VALUES (1)'",
    )
    .await;
    let proxy = proxy("transaction", 2).await;
    let mut wire = client(&proxy, "pc0").await;
    let goodbye = [query("CALL pb.does()"), crate::wire::terminate()].concat();
    wire.send(&goodbye).await;
    let mut other = client(&proxy, "pc0").await;
    crate::harness::eventually("the row", async || {
        other.column("SELECT count(*) FROM pb.done").await == ["1"]
    })
    .await;
}

/// Procedures and functions that call each other at random, some of which do what a tenant may not.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_calls_what_may_not_be_called_may_not_be_called() {
    const COUNT: usize = 60;
    const FINE: [&str; 5] = [
        "PERFORM 1;",
        "IF true THEN PERFORM lower('A'); END IF;",
        "CREATE TEMP TABLE IF NOT EXISTS t_pg (a int);",
        "BEGIN PERFORM 1/0; EXCEPTION WHEN OTHERS THEN NULL; END;",
        "SET LOCAL work_mem = '5MB';",
    ];
    const BAD: [&str; 5] = [
        "SET LOCAL app.tenant_id = 'x';",
        "PERFORM set_config('app.' || 'tenant_id', 'x', true);",
        "EXECUTE 'SELECT 1';",
        "PERFORM query_to_xml('SELECT 1', true, true, '');",
        "FOR i IN 1..1 LOOP RESET app.tenant_id; END LOOP;",
    ];
    const SEED: u64 = 15;
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut sql = String::new();
    let mut may = Vec::new();
    for i in 0..COUNT {
        let mut body = String::new();
        let mut is_fine = true;
        let mut is_shallow = 0;
        for _ in 0..rng.random_range(1..4) {
            match rng.random_range(0..8) {
                0 => {
                    body += BAD.choose(&mut rng).unwrap();
                    is_fine = false;
                }
                1..4 if i > 0 => {
                    let other = rng.random_range(i.saturating_sub(20)..i);
                    let (fine, depth): (bool, usize) = may[other];
                    is_fine &= fine;
                    is_shallow = is_shallow.max(depth + 1);
                    body += &match other % 2 {
                        0 => format!("CALL pg.p{other}();"),
                        _ => format!("PERFORM pg.p{other}();"),
                    };
                }
                _ => body += FINE.choose(&mut rng).unwrap(),
            }
        }
        may.push((is_fine, is_shallow));
        sql += &match i % 2 {
            0 => format!("CREATE PROCEDURE p{i}() LANGUAGE plpgsql AS $p$ BEGIN {body} END $p$;"),
            _ => format!(
                "CREATE FUNCTION p{i}() RETURNS void LANGUAGE plpgsql AS $p$ BEGIN {body} END $p$;"
            ),
        };
    }
    make("pg", &sql).await;
    let proxy = proxy("transaction", 4).await;
    let mut wire = client(&proxy, "pc0").await;
    let mut called = 0;
    for (i, (is_fine, depth)) in may.into_iter().enumerate().filter(|(i, _)| i % 2 == 0) {
        let told = errors(&wire.query(&format!("CALL pg.p{i}()")).await);
        let expected = if is_fine && depth < 8 {
            None
        } else {
            Some(DENIED)
        };
        called += usize::from(expected.is_none());
        assert_eq!(
            told.first().map(String::as_str),
            expected,
            "seed {SEED}, p{i}: {sql}"
        );
        assert_eq!(wire.column(OWN).await, ["pc0"]);
    }
    assert!(called > 5, "only {called} were called");
}
