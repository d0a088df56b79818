//! Every tier, with both ways of pooling, through every kind of client.

use std::process::{Output, Stdio};

use tokio::process::Command;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::harness::{POOLINGS, Running, Setup, TIERS, Tenant, connect, in_time, tenant, world};

async fn proxy(pooling: &'static str) -> Running {
    Setup {
        pooling,
        ..Setup::default()
    }
    .start()
    .await
}

/// The first column of a simple query.
async fn simple(client: &Client, sql: &str) -> Vec<String> {
    let messages = client.simple_query(sql).await.expect(sql);
    messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
            _ => None,
        })
        .collect()
}

/// The first column of an extended query with a parameter.
async fn extended(client: &Client, sql: &str, parameter: i32) -> Vec<String> {
    let rows = client.query(sql, &[&parameter]).await.expect(sql);
    rows.iter().map(|row| row.get(0)).collect()
}

const BODIES: &str = "SELECT body FROM items WHERE id < 900 ORDER BY id";

#[tokio::test(flavor = "multi_thread")]
async fn every_tier_shows_a_tenant_its_own_rows_in_its_own_place() {
    let world = world().await;
    for pooling in POOLINGS {
        let proxy = proxy(pooling).await;
        for (tier, a, b) in TIERS {
            for name in [a, b, a] {
                let tenant = proxy.home(&tenant(name));
                let client = proxy.connect(&tenant).await;
                let label = format!("{name} in {tier}, {pooling} pooling");
                assert_eq!(simple(&client, BODIES).await, tenant.bodies(), "{label}");
                assert_eq!(
                    extended(
                        &client,
                        "SELECT body FROM items WHERE id >= $1 AND id < 900 ORDER BY id",
                        2
                    )
                    .await,
                    tenant.bodies()[1..],
                    "{label}"
                );
                let place = simple(
                    &client,
                    "SELECT concat_ws('/', current_setting('cluster_name'), current_database(), current_schema(), \
                     current_user, session_user, current_setting('app.tenant_id', true))",
                )
                .await;
                let variable = if tenant.is_pooled() { name } else { "" };
                let expected = [
                    world.home(&tenant).name(),
                    &tenant.database,
                    &tenant.schema,
                    &tenant.role,
                    &tenant.role,
                    variable,
                ]
                .join("/");
                assert_eq!(
                    place[0].trim_end_matches('/'),
                    expected.trim_end_matches('/'),
                    "{label}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_may_name_the_tenant_instead_of_the_user() {
    let proxy = proxy("transaction").await;
    for (tier, a, b) in TIERS {
        for name in [a, b] {
            let tenant = proxy.home(&tenant(name));
            let mut config = proxy.config(&tenant);
            config.user("app").dbname(name);
            let client = connect(&config).await.expect(tier);
            assert_eq!(simple(&client, BODIES).await, tenant.bodies(), "{tier}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_tier_takes_writes_and_rolls_back() {
    for (pooling, id) in POOLINGS.into_iter().zip([1000, 2000]) {
        let proxy = proxy(pooling).await;
        for (tier, a, b) in TIERS {
            let tenants = [a, b].map(|name| proxy.home(&tenant(name)));
            let mut client = proxy.connect(&tenants[0]).await;
            let other = proxy.connect(&tenants[1]).await;
            let label = format!("{tier}, {pooling} pooling");
            let find = format!("SELECT body FROM items WHERE id = {id}");

            let insert = "INSERT INTO items (id, body) VALUES ($1, $2)";
            let n = client.execute(insert, &[&id, &"written"]).await;
            assert_eq!(n.expect(&label), 1, "{label}");
            assert_eq!(simple(&client, &find).await, ["written"], "{label}");
            assert!(simple(&other, &find).await.is_empty(), "{label}");

            // The same key is free for the other tenant, where tables are shared too.
            let n = other.execute(insert, &[&id, &"other"]).await;
            assert_eq!(n.expect(&label), 1, "{label}");
            assert_eq!(simple(&client, &find).await, ["written"], "{label}");

            let transaction = client.transaction().await.expect(&label);
            let changed = transaction
                .execute("UPDATE items SET body = 'changed' WHERE id = $1", &[&id])
                .await;
            assert_eq!(changed.expect(&label), 1);
            transaction.rollback().await.expect(&label);
            assert_eq!(simple(&client, &find).await, ["written"], "{label}");

            let transaction = client.transaction().await.expect(&label);
            transaction
                .execute("DELETE FROM items WHERE id = $1", &[&id])
                .await
                .expect(&label);
            let error = transaction.batch_execute("SELECT 1/0").await.unwrap_err();
            assert_eq!(error.code(), Some(&SqlState::DIVISION_BY_ZERO), "{label}");
            let error = transaction.batch_execute("SELECT 1").await.unwrap_err();
            assert_eq!(
                error.code(),
                Some(&SqlState::IN_FAILED_SQL_TRANSACTION),
                "{label}"
            );
            drop(transaction);
            assert_eq!(simple(&client, &find).await, ["written"], "{label}");

            // Everything it can delete is its own.
            for (client, body) in [(&client, "written"), (&other, "other")] {
                let gone = simple(
                    client,
                    &format!("DELETE FROM items WHERE id = {id} RETURNING body"),
                )
                .await;
                assert_eq!(gone, [body], "{label}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_tier_lets_a_tenant_write_rows_of_another() {
    let proxy = proxy("transaction").await;
    for (tier, a, b) in TIERS {
        let client = proxy.connect(&tenant(a)).await;
        let error = client
            .batch_execute(&format!(
                "INSERT INTO items (tenant, id, body) VALUES ('{b}', 5000, 'foreign')"
            ))
            .await
            .expect_err(tier);
        let code = error.code().expect(tier).code();
        assert!(["42501", "23514"].contains(&code), "{tier}: {code}");
        assert_eq!(
            simple(
                &client,
                &format!("UPDATE items SET body = 'x' WHERE tenant = '{b}' RETURNING body")
            )
            .await,
            [""; 0],
            "{tier}"
        );
    }
}

// ---- programs ----

async fn output(what: &str, command: &mut Command) -> Output {
    command.stdin(Stdio::null()).kill_on_drop(true);
    in_time(what, command.output())
        .await
        .unwrap_or_else(|error| panic!("{what} does not run ({error}): run `make test`"))
}

/// What a program that succeeds writes.
async fn succeed(what: &str, command: &mut Command) -> String {
    let output = output(what, command).await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{what}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

fn psql(proxy: &Running, tenant: &Tenant) -> Command {
    let mut command = Command::new("psql");
    command.args(["-X", "-At", "-v", "ON_ERROR_STOP=1", "-d"]);
    command.arg(proxy.dsn(tenant));
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_works_in_every_tier() {
    let dir = tempfile::tempdir().expect("a directory");
    for (pooling, id) in POOLINGS.into_iter().zip([3000, 4000]) {
        let proxy = proxy(pooling).await;
        for (tier, a, _) in TIERS {
            let tenant = proxy.home(&tenant(a));
            let label = format!("psql in {tier}, {pooling} pooling");
            let out = succeed(&label, psql(&proxy, &tenant).args(["-c", BODIES])).await;
            assert_eq!(out.lines().collect::<Vec<_>>(), tenant.bodies(), "{label}");

            let out = succeed(&label, psql(&proxy, &tenant).args(["-c", "\\d items"])).await;
            for column in ["tenant|text", "id|integer", "body|text"] {
                assert!(out.contains(column), "{label}: {out}");
            }

            let file = dir.path().join("rows");
            std::fs::write(&file, format!("{id}\tcopied\n{}\t\\N\n", id + 1)).expect("a file");
            let path = file.display();
            let copies = [
                format!("\\copy plain (id, body) FROM '{path}'"),
                format!(
                    "\\copy (SELECT body FROM plain WHERE id IN ({id}, {id} + 1) ORDER BY id) TO '{path}'"
                ),
                format!("DELETE FROM plain WHERE id IN ({id}, {id} + 1)"),
            ];
            let mut command = psql(&proxy, &tenant);
            for copy in &copies {
                command.args(["-c", copy]);
            }
            let out = succeed(&label, &mut command).await;
            assert_eq!(out, "COPY 2\nCOPY 2\nDELETE 2\n", "{label}");
            let copied = std::fs::read_to_string(&file).expect("a file");
            assert_eq!(copied, "copied\n\\N\n", "{label}");

            let failed = output(&label, psql(&proxy, &tenant).args(["-c", "SELECT 1/0"])).await;
            assert_eq!(failed.status.code(), Some(1), "{label}");
            let error = String::from_utf8_lossy(&failed.stderr);
            assert_eq!(error, "ERROR:  division by zero\n", "{label}");
        }
    }
}

fn environment(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `make test`"))
}

/// Runs a script of `tests/it/scripts` once for every tenant of `TIERS`: its arguments are the DSN
/// and the rows it must find, as JSON.
async fn run_script(program: &str, script: &str, variable: Option<(&str, String)>) {
    let script = format!("{}/tests/it/scripts/{script}", env!("CARGO_MANIFEST_DIR"));
    for (pooling, id) in POOLINGS.into_iter().zip([6000, 7000]) {
        let proxy = proxy(pooling).await;
        for (tier, a, _) in TIERS {
            let tenant = proxy.home(&tenant(a));
            let label = format!("{script} in {tier}, {pooling} pooling");
            let mut command = Command::new(program);
            command.arg(&script).args([
                proxy.dsn(&tenant),
                serde_json::to_string(&tenant.bodies()).expect("JSON"),
                // Rows of its own, so that the programs do not meet.
                (id + if script.ends_with("js") { 500 } else { 0 }).to_string(),
            ]);
            if let Some((name, value)) = &variable {
                command.env(name, value);
            }
            assert_eq!(succeed(&label, &mut command).await, "ok\n", "{label}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn psycopg_works_in_every_tier() {
    run_script(
        &environment("PGTENANT_TEST_PYTHON"),
        "psycopg_client.py",
        None,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_pg_works_in_every_tier() {
    let path = environment("PGTENANT_TEST_NODE_PATH");
    run_script("node", "node_client.js", Some(("NODE_PATH", path))).await;
}
