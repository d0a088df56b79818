//! Applications as the users of drivers and ORMs write them.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::process::Command;

use super::places::{PLACES, Places, Sizes};
use super::{BODIES, WEB, extended, log_in, of_each_tier};
use crate::harness::{Running, connect, in_time};
use crate::wire::{errors, query, rows, sync};

/// Of each tenant the bodies of its rows.
type Expected = BTreeMap<String, Vec<String>>;

async fn run(
    program: &str,
    script: &str,
    proxy: &Running,
    expected: &Expected,
    environment: Option<(&str, String)>,
) {
    let dsn = format!("postgresql://web:web-secret@{}/web", proxy.address);
    let output = Command::new(program)
        .arg(format!(
            "{}/tests/it/scripts/{script}",
            env!("CARGO_MANIFEST_DIR")
        ))
        .args([dsn, serde_json::to_string(expected).expect("JSON")])
        .envs(environment)
        .kill_on_drop(true)
        .output();
    let output = in_time(script, output).await.expect(program);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said}");
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: see scripts/install"))
}

/// All scripts, one after the other.
async fn run_all(proxy: &Running, expected: &Expected) {
    let python = variable("PGTENANT_TEST_PYTHON");
    run(&python, "application_client.py", proxy, expected, None).await;
    let path = Some(("NODE_PATH", variable("PGTENANT_TEST_NODE_PATH")));
    run("node", "application_client.js", proxy, expected, path).await;
    run("ruby", "application_client.rb", proxy, expected, None).await;
    with_tokio_postgres(proxy, expected).await;
}

/// An application in Rust, with a client that goes on from one tenant to the next.
async fn with_tokio_postgres(proxy: &Running, expected: &Expected) {
    let dsn = format!("postgresql://web:web-secret@{}/web", proxy.address);
    let mut client = connect(&dsn.parse().expect("a DSN")).await.expect("web");
    let read = client
        .prepare("SELECT body FROM items WHERE id < $1 ORDER BY id")
        .await
        .expect("is prepared");
    for (name, bodies) in (0..5).flat_map(|_| expected) {
        let transaction = client.transaction().await.expect("begins");
        let set = "SELECT set_config('app.tenant_id', $1, true)";
        transaction.execute(set, &[name]).await.expect("is chosen");
        let rows = transaction.query(&read, &[&900]).await.expect("reads");
        let found: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(&found, bodies, "{name}");
        transaction.commit().await.expect("commits");
        let mut transaction = client.transaction().await.expect("begins");
        let set = format!("SET LOCAL app.tenant_id = '{name}'");
        transaction.batch_execute(&set).await.expect("is chosen");
        // The inner one fails, and the outer one goes on for the same tenant.
        let inner = transaction.transaction().await.expect("a savepoint");
        let failed = inner.batch_execute("SELECT 1/0").await.expect_err("fails");
        assert_eq!(
            failed.code().map(tokio_postgres::error::SqlState::code),
            Some("22012")
        );
        inner.rollback().await.expect("is rolled back");
        let rows = transaction.query(&read, &[&900]).await.expect("reads");
        assert_eq!(rows.len(), bodies.len(), "{name}");
        // A client that drops it has it rolled back.
        drop(transaction);
    }
    let refused = client.batch_execute("SET app.tenant_id = 'nobody'").await;
    let refused = refused.expect_err("nobody's");
    assert_eq!(
        refused.code().map(tokio_postgres::error::SqlState::code),
        Some("42501")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn drivers_and_orms_choose_as_their_users_write_it() {
    let proxy = super::setup(WEB).start().await;
    drop(log_in(&proxy, None).await);
    let tenants = of_each_tier(&proxy).into_iter();
    let expected = tenants
        .map(|tenant| (tenant.name.clone(), tenant.bodies()))
        .collect();
    run_all(&proxy, &expected).await;
}

/// Tenants of every place, of which each has its rows in all of them.
const MOVERS: Sizes = Sizes {
    tenants: [1, 1, 1, 1, 1],
    movers: 1,
};

/// The config with each tenant so many places further.
fn moved(places: &Places, by: usize) -> String {
    places.yaml(&|member| {
        let at = PLACES.iter().position(|place| *place == member.place);
        PLACES[(at.unwrap_or_default() + by) % PLACES.len()]
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn drivers_and_orms_do_not_notice_that_tenants_move() {
    let places = Places::make("moves", &MOVERS).await;
    let proxy = places.start();
    let members = places.members.iter();
    let expected = members
        .map(|member| (member.name.clone(), member.bodies.clone()))
        .collect();
    let scripts = run_all(&proxy, &expected);
    let moves = async {
        for by in 1.. {
            tokio::time::sleep(Duration::from_millis(40)).await;
            proxy.reload(&moved(&places, by));
        }
    };
    tokio::select! {
        () = scripts => {}
        () = moves => {}
    }
}

/// What applications say before they read, as it is found in public code: statements by Query, and
/// with values by extended messages, a Sync behind each. `T` is the tenant, `{}` the place of the
/// read.
const FORMS: [&[(&str, &[&str])]; 16] = [
    &[
        ("SET SESSION app.tenant_id = 'T'", &[]),
        ("{}", &[]),
        ("RESET app.tenant_id", &[]),
    ],
    &[
        ("SET app.tenant_id = 'T'", &[]),
        ("SHOW app.tenant_id", &[]),
        ("{}", &[]),
        ("SET app.tenant_id TO DEFAULT", &[]),
    ],
    // By its name as a word.
    &[
        ("set app.tenant_id to T;", &[]),
        ("{}", &[]),
        ("RESET ALL", &[]),
    ],
    &[
        ("BEGIN", &[]),
        ("SET LOCAL app.tenant_id = 'T'", &[]),
        ("{}", &[]),
        ("RESET app.tenant_id", &[]),
        ("COMMIT", &[]),
    ],
    &[
        ("BEGIN", &[]),
        ("SET LOCAL app.tenant_id TO 'T'", &[]),
        ("{}", &[]),
        ("ROLLBACK", &[]),
    ],
    &[
        ("SELECT set_config($1, $2, false)", &["app.tenant_id", "T"]),
        ("{}", &[]),
        ("SELECT set_config('app.tenant_id', '', false)", &[]),
    ],
    // Prisma's batch.
    &[
        ("BEGIN", &[]),
        ("SELECT set_config('app.tenant_id', $1, TRUE)", &["T"]),
        ("{}", &["900"]),
        ("COMMIT", &[]),
    ],
    &[
        ("BEGIN", &[]),
        ("SELECT set_config('app.tenant_id', $1::text, true)", &["T"]),
        ("{}", &["900"]),
        ("COMMIT", &[]),
    ],
    &[
        ("SELECT set_config('app.tenant_id', $1, false)", &["T"]),
        ("{}", &["900"]),
        ("DISCARD ALL", &[]),
    ],
    // PostgREST.
    &[
        ("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY", &[]),
        (
            "select set_config('request.method', $1, true), set_config('request.path', $2, true), set_config('app.tenant_id', $3, true)",
            &["GET", "/items", "T"],
        ),
        ("{}", &["900"]),
        ("COMMIT", &[]),
    ],
    &[
        (
            "SELECT set_config('statement_timeout', '9s', true), set_config('app.tenant_id', 'T', true); {}",
            &[],
        ),
        ("ROLLBACK", &[]),
    ],
    // PostGraphile, in a transaction and in its savepoint.
    &[
        ("begin", &[]),
        (
            "select set_config(el->>0, el->>1, true) from json_array_elements($1::json) el",
            &[r#"[["app.tenant_id","T"],["a.b","c"]]"#],
        ),
        ("{}", &["900"]),
        ("commit", &[]),
    ],
    &[
        ("begin", &[]),
        ("savepoint tx", &[]),
        (
            "select set_config(el->>0, el->>1, true) from json_array_elements($1::json) el",
            &[r#"[["app.tenant_id","T"]]"#],
        ),
        ("{}", &["900"]),
        ("release savepoint tx", &[]),
        ("commit", &[]),
    ],
    // Hasura.
    &[
        ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", &[]),
        (
            r#"SET LOCAL "hasura.user" = '{"x-hasura-role":"user"}'"#,
            &[],
        ),
        (r#"SET LOCAL "app"."tenant_id" = 'T'"#, &[]),
        ("{}", &["900"]),
        ("COMMIT", &[]),
    ],
    &[("BEGIN; SET LOCAL app.tenant_id = 'T'; {}; COMMIT", &[])],
    // With a parameter of its own beside the tenant.
    &[
        ("BEGIN", &[]),
        ("SET LOCAL app.is_superuser = 'on'", &[]),
        ("SET LOCAL app.tenant_id = E'T'", &[]),
        ("{}", &[]),
        ("ROLLBACK", &[]),
    ],
];

#[tokio::test(flavor = "multi_thread")]
async fn forms_of_public_code_do_not_notice_that_tenants_move() {
    let places = Places::make("forms", &MOVERS).await;
    let proxy = places.start();
    let read = "SELECT body FROM items WHERE id < $1::int ORDER BY id";
    let mut wire = log_in(&proxy, None).await;
    for (by, form) in (0..PLACES.len()).flat_map(|by| FORMS.map(|form| (by, form))) {
        for member in &places.members {
            // Between two requests everybody moves on.
            proxy.reload(&moved(&places, by));
            let name = &member.name;
            let mut seen = Vec::new();
            for (sql, values) in form {
                let value = |value: &&str| match *value {
                    "T" => name.clone(),
                    other => other.replace("\"T\"", &format!("\"{name}\"")),
                };
                let values: Vec<_> = values.iter().map(value).collect();
                let values: Vec<_> = values.iter().map(|value| Some(&**value)).collect();
                // `T` alone is the tenant, and no part of a word.
                let sql = sql
                    .replace("'T'", &format!("'{name}'"))
                    .replace(" T;", &format!(" {name};"));
                let bytes = match values.is_empty() {
                    true => query(&sql.replace("{}", BODIES)),
                    false => [extended(&sql.replace("{}", read), &values), sync()].concat(),
                };
                wire.send(&bytes).await;
                let frames = wire.until_ready().await;
                assert_eq!(errors(&frames), [""; 0], "{name}: {sql}");
                if sql.contains("{}") {
                    seen = rows(&frames);
                    seen.retain(|row| row.contains("item"));
                }
            }
            assert_eq!(seen, member.bodies, "{form:?}");
            assert_eq!(
                wire.column(BODIES).await,
                [""; 0],
                "{form:?}: somebody is chosen"
            );
        }
    }
}
