//! The catalog's SQL: what its functions let happen, to whom, and in which order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use pgtenant::cluster::{Cluster, Options};
use pgtenant::config::{self, State};
use pgtenant::control::catalog;
use tokio_postgres::{AsyncMessage, Client, NoTls};

use crate::harness::{SECRET, cluster, in_time};

const VERIFIER: &str = "SCRAM-SHA-256$4096:cGd0ZW5hbnQtZXhhbXBsZQ==$QwW9qyULWeNz2qkt7l01vWjIiyJou3geO8NM0WepSfI=:gX8sbBVnHaHPqmzHaPP/+rd26sxBZWgiPajLKMa+XLc=";

/// A server whose database `postgres` is a catalog, with a login that reads and one that writes.
async fn made(name: &str) -> Cluster {
    let cluster = cluster(Options::named(name)).await;
    cluster.run("postgres", catalog::SQL).await.unwrap();
    for (role, group) in [("reader", "reader"), ("writer", "writer"), ("tenant", "")] {
        let mut sql = format!("CREATE ROLE {role} LOGIN PASSWORD '{SECRET}';");
        if !group.is_empty() {
            sql += &format!("GRANT pgtenant_catalog_{group} TO {role}");
        }
        cluster.run("postgres", &sql).await.unwrap();
    }
    cluster
}

async fn login(cluster: &Cluster, role: &str) -> Client {
    let mut config = cluster.config("postgres");
    config.user(role).password(SECRET);
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A good spec, with more settings or others.
fn spec(more: &str) -> String {
    let mut spec = serde_json::json!({
        "placement": "free",
        "users": { "app": { "scram": VERIFIER } },
    });
    let more: serde_json::Value = serde_json::from_str(more).unwrap();
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    spec.to_string()
}

/// The first column of the only row, or the SQLSTATE and the message.
async fn ask(client: &Client, sql: &str) -> Result<String, String> {
    let rows = client.simple_query(sql).await.map_err(|error| {
        let error = error.as_db_error().unwrap();
        format!("{}: {}", error.code().code(), error.message())
    })?;
    let mut values = rows.iter().filter_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("").to_owned()),
        _ => None,
    });
    Ok(values.next().unwrap_or_default())
}

async fn put(client: &Client, name: &str, more: &str) -> Result<String, String> {
    let spec = spec(more);
    ask(
        client,
        &format!("SELECT pgtenant_catalog.put_tenant('{name}', $j${spec}$j$)"),
    )
    .await
}

/// Puts a tenant into a state, whatever was before.
async fn force(superuser: &Client, name: &str, state: &str) {
    let sql = format!(
        "UPDATE pgtenant_catalog.tenants SET state = '{state}', reason = NULL, until = NULL WHERE tenant = '{name}'"
    );
    superuser.batch_execute(&sql).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn revisions_are_in_the_order_of_commits_and_without_a_gap_under_concurrent_writers() {
    const WRITERS: usize = 8;
    const EACH: usize = 60;
    let cluster = made("catalog-order").await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let client = login(&cluster, "writer").await;
        writers.spawn(async move {
            for n in 0..EACH {
                // Some in a transaction with several changes, of which every third is rolled back.
                let names: Vec<_> = (0..n % 3 + 1)
                    .map(|i| format!("t-{writer}-{n}-{i}"))
                    .collect();
                client.batch_execute("BEGIN").await.unwrap();
                for name in &names {
                    put(&client, name, "{}").await.unwrap();
                    let again = format!("SELECT pgtenant_catalog.set_state('{name}', 'paused')");
                    ask(&client, &again).await.unwrap();
                }
                let end = if n % 3 == 1 { "ROLLBACK" } else { "COMMIT" };
                client.batch_execute(end).await.unwrap();
            }
        });
    }
    // Meanwhile a reader goes on from the revision that it saw last, as a proxy does.
    let reader = login(&cluster, "reader").await;
    let reading = tokio::spawn(async move {
        let mut seen: BTreeMap<String, i64> = BTreeMap::new();
        let mut last = 0_i64;
        let mut idle = 0;
        while idle < 200 {
            let about: i64 = reader
                .query_one("SELECT revision FROM pgtenant_catalog.about", &[])
                .await
                .unwrap()
                .get(0);
            let sql = "SELECT tenant, revision FROM pgtenant_catalog.tenants WHERE revision > $1 AND revision <= $2";
            for row in reader.query(sql, &[&last, &about]).await.unwrap() {
                seen.insert(row.get(0), row.get(1));
            }
            idle = if about == last { idle + 1 } else { 0 };
            last = about;
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        (seen, last)
    });
    writers.join_all().await;
    let (seen, last) = in_time("the reader", reading).await.unwrap();
    let superuser = cluster.connect("postgres").await.unwrap();
    let rows = superuser
        .query("SELECT tenant, revision FROM pgtenant_catalog.tenants", &[])
        .await
        .unwrap();
    let there: BTreeMap<String, i64> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(seen, there);
    let kept: usize = (0..EACH).filter(|n| n % 3 != 1).map(|n| n % 3 + 1).sum();
    assert_eq!(there.len(), WRITERS * kept);
    let rows = superuser
        .query(
            "SELECT revision FROM pgtenant_catalog.changes ORDER BY 1",
            &[],
        )
        .await
        .unwrap();
    let revisions: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(revisions, (1..=last).collect::<Vec<_>>());
    assert_eq!(last as usize, 2 * WRITERS * kept);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_pair_of_states_is_a_transition_or_refused() {
    let cluster = made("catalog-states").await;
    let writer = login(&cluster, "writer").await;
    let superuser = cluster.connect("postgres").await.unwrap();
    put(&writer, "acme", "{}").await.unwrap();
    let free = ["active", "read_only", "paused", "suspended", "draining"];
    for was in State::ALL.map(State::word) {
        for state in State::ALL.map(State::word) {
            force(&superuser, "acme", was).await;
            let sql = format!("SELECT pgtenant_catalog.set_state('acme', '{state}')");
            let before = ask(&writer, "SELECT revision FROM pgtenant_catalog.about").await;
            let done = ask(&writer, &sql).await;
            let allowed = match (was, state) {
                _ if was == state => true,
                ("provisioning", "active" | "deleted") | ("deleted", "suspended") => true,
                (_, "deleted") => true,
                _ => free.contains(&was) && free.contains(&state),
            };
            let now = ask(&writer, "SELECT state FROM pgtenant_catalog.tenants").await;
            if allowed {
                assert_eq!(now.as_deref(), Ok(state), "{was} to {state}");
                assert!(done.is_ok());
            } else {
                let refusal = format!("55000: tenant \"acme\" is {was}: it cannot become {state}");
                assert_eq!(done, Err(refusal));
                assert_eq!(now.as_deref(), Ok(was));
                let after = ask(&writer, "SELECT revision FROM pgtenant_catalog.about").await;
                assert_eq!(after, before);
            }
        }
    }
    for (arguments, error) in [
        ("'acme', 'gone'", "22023: there is no such state"),
        ("'acme', NULL", "22023: there is no such state"),
        ("'other', 'active'", "P0002: there is no tenant \"other\""),
        (
            "'acme', 'active', NULL, now()",
            "22023: state active has no end of its own",
        ),
        (
            "'acme', 'deleted', NULL, now()",
            "22023: state deleted has no end of its own",
        ),
        (
            "'acme', 'suspended', E'a\\nb'",
            "22023: the reason must be one line of at most 500 characters",
        ),
        (
            "'acme', 'suspended', repeat('x', 501)",
            "22023: the reason must be one line of at most 500 characters",
        ),
    ] {
        let sql = format!("SELECT pgtenant_catalog.set_state({arguments})");
        assert_eq!(
            ask(&writer, &sql).await,
            Err(error.to_owned()),
            "{arguments}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spec_that_no_proxy_could_read_or_that_holds_a_secret_is_refused() {
    let cluster = made("catalog-specs").await;
    let writer = login(&cluster, "writer").await;
    let user = |user: &str| format!(r#"{{ "users": {{ "app": {user} }} }}"#);
    let tampered = |from: &str, to: &str| {
        assert!(VERIFIER.contains(from));
        user(&format!(
            r#"{{ "scram": "{}" }}"#,
            VERIFIER.replacen(from, to, 1)
        ))
    };
    for (more, word) in [
        (r#"{ "placement": null }"#.to_owned(), "placement"),
        (r#"{ "placement": "" }"#.to_owned(), "placement"),
        (r#"{ "placement": 5 }"#.to_owned(), "placement"),
        (
            r#"{ "placements": { "core": "free" } }"#.to_owned(),
            "exactly one",
        ),
        (r#"{ "server": 1 }"#.to_owned(), "server"),
        (r#"{ "attributes": { "a": 1 } }"#.to_owned(), "attributes"),
        (r#"{ "attributes": ["a"] }"#.to_owned(), "attributes"),
        (r#"{ "limits": 5 }"#.to_owned(), "limits"),
        (r#"{ "limmits": {} }"#.to_owned(), "limmits"),
        (r#"{ "state": "active" }"#.to_owned(), "column"),
        (r#"{ "reason": "x" }"#.to_owned(), "column"),
        (r#"{ "until": "2030-01-01" }"#.to_owned(), "column"),
        (r#"{ "expires": "2030-01-01" }"#.to_owned(), "column"),
        (r#"{ "users": null }"#.to_owned(), "users"),
        (r#"{ "users": {} }"#.to_owned(), "users"),
        (r#"{ "users": ["app"] }"#.to_owned(), "users"),
        (user("{}"), "users.app"),
        (user("null"), "users.app"),
        (user(r#""secret""#), "users.app"),
        (user(r#"{ "password": "secret" }"#), "users.app"),
        (user(r#"{ "scram": "secret" }"#), "users.app"),
        (user(r#"{ "scram": null }"#), "users.app"),
        (
            user(&format!(r#"{{ "scram": "{VERIFIER}", "password": "x" }}"#)),
            "users.app",
        ),
        (tampered("SCRAM-SHA-256", "SCRAM-SHA-1"), "users.app"),
        (tampered("4096", "0"), "users.app"),
        (tampered("4096", "-1"), "users.app"),
        (tampered("=:", ":"), "users.app"),
        (tampered("SCRAM", " SCRAM"), "users.app"),
        (tampered("XLc=", "XLc=\\n"), "users.app"),
        (
            format!(r#"{{ "log": {{ "x": "{}" }} }}"#, "y".repeat(65536)),
            "65536",
        ),
    ] {
        let error = put(&writer, "acme", &more).await.unwrap_err();
        assert!(error.starts_with("22023: "), "{more}: {error}");
        assert!(error.contains(word), "{more}: {error}");
    }
    let spec = spec("{}");
    for (name, is_good) in [
        ("", false),
        ("-a", false),
        ("_a", false),
        ("ä", false),
        ("a b", false),
        ("a\n", false),
        ("a:b", false),
        (&"a".repeat(64), false),
        (&"a".repeat(63), true),
        ("A-1_b", true),
    ] {
        let sql = format!("SELECT pgtenant_catalog.put_tenant('{name}', $j${spec}$j$)");
        assert_eq!(ask(&writer, &sql).await.is_ok(), is_good, "{name:?}");
    }
    for (function, spec) in [
        (
            "server",
            r#"{ "host": "h", "admin": { "user": "a", "password": "x" } }"#,
        ),
        ("server", r#"{ "host": "h", "seal": { "key": "x" } }"#),
        ("server", "[]"),
        (
            "placement",
            r#"{ "login": { "user": "a", "password": "x" } }"#,
        ),
        (
            "placement",
            r#"{ "read_only_login": { "user": "a", "password": "x${A}" } }"#,
        ),
    ] {
        let sql = format!("SELECT pgtenant_catalog.put_{function}('x', '{spec}')");
        let error = ask(&writer, &sql).await.unwrap_err();
        assert!(error.starts_with("22023: "), "{spec}: {error}");
    }
    let by_reference = r#"{ "login": { "user": "a", "password": "${APP}" } }"#;
    let sql = format!("SELECT pgtenant_catalog.put_placement('x', '{by_reference}')");
    ask(&writer, &sql).await.unwrap();
}

/// The settings of tenants that the loader knows.
fn settings_of_tenants() -> BTreeSet<String> {
    let yaml = "tenants: { x: { zzzzzzzzzzzz: 1 } }";
    let mistakes = config::load_text(yaml, Path::new("."), &|_| None).unwrap_err();
    let there_are = "unknown setting; there are ";
    let found = mistakes
        .iter()
        .find_map(|m| m.message.strip_prefix(there_are));
    found.unwrap().split(", ").map(str::to_owned).collect()
}

#[test]
fn the_settings_that_a_spec_may_have_are_those_of_tenants_in_the_file() {
    let (_, rest) = catalog::SQL.split_once("key <> ALL (ARRAY[").unwrap();
    let (list, _) = rest.split_once(']').unwrap();
    let in_sql = list
        .split(',')
        .map(|word| word.trim().trim_matches('\'').to_owned());
    let mut in_sql: BTreeSet<String> = in_sql.collect();
    // Columns of the table.
    in_sql.extend(["state", "reason", "until", "expires"].map(str::to_owned));
    assert_eq!(in_sql, settings_of_tenants());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_one_only_from_the_revision_that_it_expects() {
    let cluster = made("catalog-revisions").await;
    let writer = login(&cluster, "writer").await;
    let put = |expected: &str, more: &str| {
        let spec = spec(more);
        format!("SELECT pgtenant_catalog.put_tenant('acme', $j${spec}$j$, {expected})")
    };
    let ask = async |sql: &str| ask(&writer, sql).await;
    let conflict = |found: u32, expected: u32| {
        Err(format!(
            "40001: \"acme\" has revision {found}, not {expected}"
        ))
    };
    let ok = |revision: &str| Ok(revision.to_owned());
    assert_eq!(ask(&put("1", "{}")).await, conflict(0, 1));
    assert_eq!(ask(&put("0", "{}")).await, ok("1"));
    assert_eq!(ask(&put("0", "{}")).await, conflict(1, 0));
    // What changes nothing takes no revision.
    assert_eq!(ask(&put("1", "{}")).await, ok("1"));
    assert_eq!(ask(&put("1", r#"{ "weight": 3 }"#)).await, ok("2"));
    for change in [
        "set_state('acme', 'paused', NULL, NULL, 1)",
        "set_spec('acme', '{\"weight\": 4}', 1)",
        "set_expires('acme', now(), 1)",
        "set_retention('acme', '1 day', 1)",
        "set_version('acme', 'v2', 1)",
        "purge('acme', true, 1)",
    ] {
        let sql = format!("SELECT pgtenant_catalog.{change}");
        assert_eq!(ask(&sql).await, conflict(2, 1), "{change}");
    }
    let mut revision = 2;
    for (change, generation, what) in [
        ("set_state('acme', 'paused', 'why', NULL, $)", 1, "state"),
        ("set_spec('acme', '{\"weight\": 4}', $)", 1, "spec"),
        (
            "set_spec('acme', '{\"attributes\": {\"a\": \"b\"}}', $)",
            2,
            "spec",
        ),
        ("set_spec('acme', '{\"attributes\": null}', $)", 3, "spec"),
        ("set_spec('acme', '{\"placement\": \"own\"}', $)", 4, "spec"),
        ("set_spec('acme', '{\"server\": \"s\"}', $)", 5, "spec"),
        ("set_expires('acme', '2100-01-01', $)", 5, "expires"),
        ("set_retention('acme', '1 day', $)", 5, "retention"),
        ("set_version('acme', 'v2', $)", 5, "version"),
        ("set_state('acme', 'deleted', NULL, NULL, $)", 5, "state"),
    ] {
        let change = change.replace('$', &revision.to_string());
        revision += 1;
        let done = ask(&format!("SELECT pgtenant_catalog.{change}")).await;
        assert_eq!(done, ok(&revision.to_string()), "{change}");
        let told = "SELECT generation || ' ' || what || ' ' || by FROM pgtenant_catalog.tenants t \
                    JOIN pgtenant_catalog.changes c USING (revision)";
        assert_eq!(
            ask(told).await,
            Ok(format!("{generation} {what} writer")),
            "{change}"
        );
    }
    let early = ask("SELECT pgtenant_catalog.purge('acme')")
        .await
        .unwrap_err();
    assert!(
        early.starts_with("55000: the data of tenant \"acme\" stays until "),
        "{early}"
    );
    let again = ask(&put("NULL", "{}")).await;
    assert_eq!(again, Err("55000: tenant \"acme\" is deleted".to_owned()));
    let sql = "SELECT pgtenant_catalog.purge('acme', true, NULL, 'ada')";
    assert_eq!(ask(sql).await, ok("13"));
    let last =
        "SELECT what || ' ' || by FROM pgtenant_catalog.changes ORDER BY revision DESC LIMIT 1";
    assert_eq!(ask(last).await, ok("purged writer/ada"));
    assert_eq!(ask(&put("0", "{}")).await, ok("14"));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_patches_of_one_spec_at_once_both_count() {
    let cluster = made("catalog-patches").await;
    let first = login(&cluster, "writer").await;
    put(&first, "acme", "{}").await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let client = login(&cluster, "writer").await;
        tasks.spawn(async move {
            let sql = format!(
                "SELECT pgtenant_catalog.set_spec('acme', '{{\"attributes\": {{\"a{n}\": \"{n}\"}}}}')"
            );
            ask(&client, &sql).await.unwrap();
        });
    }
    tasks.join_all().await;
    let count =
        "SELECT count(*) FROM pgtenant_catalog.tenants, jsonb_object_keys(spec->'attributes')";
    assert_eq!(ask(&first, count).await.as_deref(), Ok("8"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_the_writer_changes_anything_and_that_one_only_by_functions() {
    let cluster = made("catalog-rights").await;
    let superuser = cluster.connect("postgres").await.unwrap();
    let of_schema = "FROM pg_proc p WHERE p.pronamespace = 'pgtenant_catalog'::regnamespace";
    let rows = superuser
        .query(
            &format!(
                "SELECT p.proname::text, p.prosecdef, coalesce(p.proconfig::text, ''),
                    has_function_privilege('tenant', p.oid, 'EXECUTE'),
                    has_function_privilege('reader', p.oid, 'EXECUTE'),
                    has_function_privilege('writer', p.oid, 'EXECUTE') {of_schema}"
            ),
            &[],
        )
        .await
        .unwrap();
    assert!(rows.len() > 25);
    let mut callable = BTreeSet::new();
    for row in &rows {
        let (name, is_definer, config): (&str, bool, &str) = (row.get(0), row.get(1), row.get(2));
        let (by_tenant, by_reader, by_writer): (bool, bool, bool) =
            (row.get(3), row.get(4), row.get(5));
        assert!(!by_tenant, "{name}");
        assert_eq!(by_reader, name == "changes_since", "{name}");
        // What is not for callers runs as who calls it, and is called as the owner.
        assert_eq!(by_writer, is_definer, "{name}");
        assert_eq!(config, "{\"search_path=pg_catalog, pg_temp\"}", "{name}");
        if by_writer {
            callable.insert(name.to_owned());
        }
    }
    assert_eq!(callable.len(), 17, "{callable:?}");
    put(&login(&cluster, "writer").await, "acme", "{}")
        .await
        .unwrap();
    let tables = [
        "about",
        "tenants",
        "servers",
        "placements",
        "changes",
        "operations",
        "steps",
    ];
    for role in ["tenant", "reader", "writer"] {
        let client = login(&cluster, role).await;
        for table in tables {
            let table = format!("pgtenant_catalog.{table}");
            for sql in [
                format!("DELETE FROM {table}"),
                format!("INSERT INTO {table} DEFAULT VALUES"),
                format!("TRUNCATE {table} CASCADE"),
                format!(
                    "CREATE TRIGGER t AFTER INSERT ON {table} EXECUTE FUNCTION suppress_redundant_updates_trigger()"
                ),
                format!("SELECT * FROM {table} FOR UPDATE"),
            ] {
                let refused = ask(&client, &sql).await.unwrap_err();
                assert!(refused.starts_with("42501: "), "{role}: {sql}: {refused}");
            }
            let read = ask(&client, &format!("SELECT count(*) FROM {table}")).await;
            assert_eq!(read.is_ok(), role != "tenant", "{role} {table}");
        }
        for sql in [
            "CREATE TABLE pgtenant_catalog.t ()",
            "SELECT pgtenant_catalog.next_revision('tenant', 'a', 'b', '{}', 'c')",
            "SELECT pgtenant_catalog.lock_catalog()",
        ] {
            let refused = ask(&client, sql).await.unwrap_err();
            assert!(refused.starts_with("42501: "), "{role}: {sql}: {refused}");
        }
        if role != "writer" {
            let refused = put(&client, "other", "{}").await.unwrap_err();
            assert!(refused.starts_with("42501: "), "{role}: {refused}");
        }
    }
}

/// What a caller has in its path or in temporary objects is not what the functions mean.
#[tokio::test(flavor = "multi_thread")]
async fn functions_use_nothing_of_the_callers() {
    let cluster = made("catalog-path").await;
    let superuser = cluster.connect("postgres").await.unwrap();
    superuser
        .batch_execute(
            "CREATE SCHEMA w AUTHORIZATION writer; GRANT TEMPORARY ON DATABASE postgres TO writer",
        )
        .await
        .unwrap();
    let writer = login(&cluster, "writer").await;
    let traps = "
        CREATE FUNCTION w.raise(jsonb) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'a trap'; END $$;
        CREATE FUNCTION w.jsonb_typeof(jsonb) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'a trap'; END $$;
        CREATE FUNCTION w.format(text, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'a trap'; END $$;
        CREATE FUNCTION w.eq(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'a trap'; END $$;
        CREATE OPERATOR w.= (LEFTARG = text, RIGHTARG = text, FUNCTION = w.eq);
        CREATE TEMPORARY TABLE tenants (tenant text); CREATE TEMPORARY TABLE about (revision bigint);
        SET search_path = w, pg_temp, pg_catalog";
    writer.batch_execute(traps).await.unwrap();
    assert_eq!(put(&writer, "acme", "{}").await.as_deref(), Ok("1"));
    let state = "SELECT pgtenant_catalog.set_state('acme', 'paused')";
    assert_eq!(ask(&writer, state).await.as_deref(), Ok("2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_feed_has_each_change_once_and_says_when_some_are_forgotten() {
    let cluster = made("catalog-feed").await;
    let writer = login(&cluster, "writer").await;
    let reader = login(&cluster, "reader").await;
    for n in 0..5 {
        put(&writer, &format!("t{n}"), "{}").await.unwrap();
    }
    let feed = async |since: i64, most: i32| {
        let sql = "SELECT revision, name FROM pgtenant_catalog.changes_since($1, $2)";
        let rows = reader.query(sql, &[&since, &most]).await;
        rows.map(|rows| {
            rows.iter()
                .map(|row| row.get::<_, i64>(0))
                .collect::<Vec<_>>()
        })
    };
    assert_eq!(feed(0, 2).await.unwrap(), [1, 2]);
    assert_eq!(feed(2, 1000).await.unwrap(), [3, 4, 5]);
    assert!(feed(5, 1000).await.unwrap().is_empty());
    let forget = "SELECT pgtenant_catalog.forget_changes(now() + interval '1 day')";
    assert_eq!(ask(&writer, forget).await.as_deref(), Ok("5"));
    let refused = feed(4, 1000).await.unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "55000");
    put(&writer, "t9", "{}").await.unwrap();
    assert_eq!(feed(5, 1000).await.unwrap(), [6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_many_changes_notifies_once_and_says_nothing() {
    let cluster = made("catalog-notify").await;
    let mut config = cluster.config("postgres");
    config.user("reader").password(SECRET);
    let (listener, mut connection) = config.connect(NoTls).await.unwrap();
    let (sender, mut heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) =
            std::future::poll_fn(|context| connection.poll_message(context)).await
        {
            if let AsyncMessage::Notification(notification) = message {
                let told = (
                    notification.channel().to_owned(),
                    notification.payload().to_owned(),
                );
                let _ = sender.send(told);
            }
        }
    });
    listener
        .batch_execute("LISTEN pgtenant_catalog")
        .await
        .unwrap();
    let writer = login(&cluster, "writer").await;
    for round in 0..2 {
        writer.batch_execute("BEGIN").await.unwrap();
        for n in 0..20 {
            put(&writer, &format!("t{round}-{n}"), "{}").await.unwrap();
        }
        writer.batch_execute("COMMIT").await.unwrap();
        let told = in_time("a notification", heard.recv()).await.unwrap();
        assert_eq!(told, ("pgtenant_catalog".to_owned(), String::new()));
    }
    listener.batch_execute("SELECT 1").await.unwrap();
    assert!(heard.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_are_taken_once_and_a_tenant_is_active_when_all_are_done() {
    let cluster = made("catalog-steps").await;
    let writer = login(&cluster, "writer").await;
    let spec = spec("{}");
    let call = async |call: &str| ask(&writer, &format!("SELECT pgtenant_catalog.{call}")).await;
    let put = format!("put_tenant('acme', $j${spec}$j$, 0, 'provisioning')");
    call(&put).await.unwrap();
    assert_eq!(
        call("begin_operation('acme', 'create')").await.as_deref(),
        Ok("1")
    );
    assert_eq!(
        call("begin_operation('acme', 'create')").await.as_deref(),
        Ok("1")
    );
    let refused = call("set_state('acme', 'active')").await;
    assert_eq!(
        refused,
        Err("55000: the place of tenant \"acme\" is not ready".to_owned())
    );
    assert_eq!(call("begin_step(1, 'role')").await.as_deref(), Ok("t"));
    assert_eq!(call("begin_step(1, 'role')").await.as_deref(), Ok("t"));
    let unfinished = "55000: operation 1 has steps that are not done".to_owned();
    assert_eq!(call("finish_operation(1)").await, Err(unfinished.clone()));
    call("end_step(1, 'role', false, '{\"error\": \"no\"}')")
        .await
        .unwrap();
    assert_eq!(call("finish_operation(1)").await, Err(unfinished));
    call("end_step(1, 'role', true)").await.unwrap();
    assert_eq!(call("begin_step(1, 'role')").await.as_deref(), Ok("f"));
    assert!(call("end_step(1, 'other', true)").await.is_err());
    assert_eq!(call("finish_operation(1)").await.as_deref(), Ok("2"));
    assert_eq!(
        ask(&writer, "SELECT state FROM pgtenant_catalog.tenants")
            .await
            .as_deref(),
        Ok("active")
    );
    assert!(call("begin_step(1, 'more')").await.is_err());
    assert!(call("begin_operation('acme', 'create')").await.is_err());
    assert!(call("begin_operation('acme', 'purge')").await.is_err());
    call("set_state('acme', 'deleted')").await.unwrap();
    assert!(call("begin_operation('acme', 'purge')").await.is_err());
    assert_eq!(
        call("begin_operation('acme', 'purge', true)")
            .await
            .as_deref(),
        Ok("2")
    );
    let refused = call("set_state('acme', 'suspended')").await;
    assert_eq!(
        refused,
        Err("55000: the data of tenant \"acme\" is being purged".to_owned())
    );
    call("finish_operation(2)").await.unwrap();
    assert_eq!(
        ask(&writer, "SELECT count(*) FROM pgtenant_catalog.tenants")
            .await
            .as_deref(),
        Ok("0")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_script_runs_again_over_a_catalog_in_use_and_not_over_a_newer_one_or_a_foreign_schema()
{
    let cluster = made("catalog-again").await;
    let writer = login(&cluster, "writer").await;
    put(&writer, "acme", "{}").await.unwrap();
    cluster.run("postgres", catalog::SQL).await.unwrap();
    assert_eq!(put(&writer, "other", "{}").await.as_deref(), Ok("2"));
    let identity = "SELECT obj_description('pgtenant_catalog'::regnamespace)";
    assert_eq!(
        ask(&writer, identity).await.as_deref(),
        Ok(catalog::IDENTITY)
    );
    // A grant of somebody's is not what the script leaves.
    let grant = "GRANT DELETE ON pgtenant_catalog.tenants TO pgtenant_catalog_reader; \
                 GRANT EXECUTE ON FUNCTION pgtenant_catalog.lock_catalog() TO PUBLIC";
    cluster.run("postgres", grant).await.unwrap();
    cluster.run("postgres", catalog::SQL).await.unwrap();
    let rights = "SELECT has_table_privilege('reader', 'pgtenant_catalog.tenants', 'DELETE')
        OR has_function_privilege('tenant', 'pgtenant_catalog.lock_catalog()', 'EXECUTE')";
    assert_eq!(ask(&writer, rights).await.as_deref(), Ok("f"));
    cluster
        .run("postgres", "UPDATE pgtenant_catalog.about SET version = 2")
        .await
        .unwrap();
    let refused = cluster.run("postgres", catalog::SQL).await.unwrap_err();
    assert!(
        refused.to_string().contains("newer than this script"),
        "{refused}"
    );
    cluster
        .run("postgres", "CREATE DATABASE foreign_one")
        .await
        .unwrap();
    cluster
        .run(
            "foreign_one",
            "CREATE SCHEMA pgtenant_catalog AUTHORIZATION tenant",
        )
        .await
        .unwrap();
    let refused = cluster.run("foreign_one", catalog::SQL).await.unwrap_err();
    assert!(
        refused.to_string().contains("belongs to another role"),
        "{refused}"
    );
}
