//! What is written for bills is what PostgreSQL's own `pg_stat_statements` counts.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use pgtenant::cluster::{Cluster, Options};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;

use crate::harness::{Running, SECRET, cluster, eventually};
use crate::wire::{
    Wire, bind, close, copy_data, copy_done, describe, errors, execute, parse, query, sync,
};

/// A tenant, the role that PostgreSQL knows it by, and its database.
const TENANTS: [(&str, &str, &str); 3] = [
    ("shared", "app", "app"),
    ("own", "r_own", "db_own"),
    ("session", "r_session", "db_session"),
];

async fn server() -> Cluster {
    let cluster = cluster(Options {
        settings: vec![
            (
                "shared_preload_libraries".into(),
                "pg_stat_statements".into(),
            ),
            ("shared_buffers".into(), "16MB".into()),
        ],
        ..Options::named("usage")
    })
    .await;
    for (_, role, database) in TENANTS {
        for sql in [
            format!("CREATE ROLE {role} LOGIN PASSWORD '{SECRET}'"),
            format!("CREATE DATABASE {database}"),
        ] {
            cluster.run("postgres", &sql).await.expect("a role");
        }
        let sql = format!(
            "CREATE TABLE items0 (id int, name text); CREATE TABLE items1 (id int, name text); \
             GRANT ALL ON items0, items1 TO {role}; \
             GRANT CREATE ON SCHEMA public TO {role}"
        );
        cluster.run(database, &sql).await.expect("a table");
    }
    let extension = "CREATE EXTENSION pg_stat_statements";
    cluster.run("postgres", extension).await.expect("contrib");
    cluster
}

fn start(cluster: &Cluster, file: &Path) -> Running {
    let port = cluster.port();
    Running::start(&format!(
        "listen: [{{ address: \"127.0.0.1:0\" }}]
workers: 2
usage: {{ file: \"{}\", interval: 1s }}
servers: {{ s: {{ host: 127.0.0.1, port: {port}, sslmode: disable, max_connections: 20 }} }}
placements:
  pool: {{ tier: pool, server: s, database: app, login: {{ user: app, password: {SECRET} }},
          context: {{ app.tenant_id: \"{{tenant}}\" }}, posture: plain, pool: {{ size: 4 }} }}
  database: {{ tier: database, server: s, database: \"db_{{tenant}}\",
              login: {{ user: \"r_{{tenant}}\", password: {SECRET} }} }}
tenants:
  shared: {{ placement: pool, users: {{ app: {{ password: pw }} }} }}
  other: {{ placement: pool, users: {{ app: {{ password: pw }} }} }}
  own: {{ placement: database, users: {{ app: {{ password: pw }} }} }}
  session: {{ placement: database, pooling: session, users: {{ app: {{ password: pw }} }} }}
",
        file.display()
    ))
}

async fn client(proxy: &Running, tenant: &str, database: &str) -> Wire {
    let mut wire = Wire::tcp(proxy.address).await;
    let user = format!("app.{tenant}");
    let pairs = [("user", &*user), ("database", database)];
    wire.log_in(&pairs, "pw").await.expect("logs in");
    wire
}

/// What a client sends in one go, up to a ReadyForQuery.
///
/// `at`: which of two clients it is. Each has tables of its own, so that none waits for the other.
fn batch(random: &mut StdRng, version: u32, at: usize, is_open: &mut bool) -> Vec<u8> {
    let n = random.random_range(0..50);
    let select = format!("SELECT generate_series(1, {n})");
    let insert = format!("INSERT INTO items{at} SELECT g, 'x' FROM generate_series(1, {n}) g");
    let update = format!("UPDATE items{at} SET name = 'y' WHERE id < {n}");
    let delete = format!("DELETE FROM items{at} WHERE id > {n} RETURNING id");
    let failure = "SELECT 1 / 0".to_owned();
    let plain = [&select, &insert, &update, &delete, &failure];
    let one = plain[random.random_range(0..plain.len())];
    let run = |sql: &str| [parse("", sql), bind("", "", &[]), execute("", 0)].concat();
    // PostgreSQL forgets a SELECT that it has answered whose portal is open when its transaction
    // fails.
    let end = match *is_open {
        true => [close(b'P', ""), sync()].concat(),
        false => sync(),
    };
    match random.random_range(0..17) {
        0 | 1 => query(one),
        2 => query(&format!("{select}; {update};; {insert}")),
        3 => query(&format!("{select}; {failure}; {insert}")),
        4 => {
            *is_open = !*is_open;
            match *is_open {
                true => query("BEGIN"),
                false => query(["COMMIT", "ROLLBACK"][random.random_range(0..2)]),
            }
        }
        5 => query(""),
        6 => query(&format!(
            "DROP TABLE IF EXISTS made{at}; CREATE TABLE made{at} AS {select}"
        )),
        7 => query(&format!("EXPLAIN SELECT * FROM items{at}")),
        8 => query(&format!(
            "BEGIN; DECLARE c CURSOR FOR {select}; FETCH 3 FROM c; MOVE 2 IN c; FETCH ALL FROM c; CLOSE c; COMMIT"
        )),
        9 => query(&format!("COPY (SELECT generate_series(1, {n})) TO STDOUT")),
        10 => {
            let mut sent = query(&format!("COPY items{at} (id) FROM STDIN"));
            sent.extend((0..n).flat_map(|n| copy_data(format!("{n}\n").as_bytes())));
            sent.extend(copy_done());
            sent
        }
        11 | 12 => [run(one), end].concat(),
        13 => {
            // A pipeline, which may fail in the middle.
            let parts = (0..1 + random.random_range(0..5))
                .map(|_| run(plain[random.random_range(0..plain.len())]));
            [parts.collect::<Vec<_>>().concat(), end].concat()
        }
        14 => [
            close(b'S', "named"),
            parse("named", one),
            describe(b'S', "named"),
            bind("", "named", &[]),
            execute("", 0),
            bind("", "named", &[]),
            execute("", 0),
            end,
        ]
        .concat(),
        // Read in parts, to the end. Older versions have only the rows of the last part
        // (es_total_processed is new in 16).
        15 if version >= 16 => {
            let sql = "SELECT generate_series(1, 10)";
            let parts = [execute("", 4), execute("", 4), execute("", 4)].concat();
            [parse("", sql), bind("", "", &[]), parts, end].concat()
        }
        _ => query("PREPARE q AS SELECT generate_series(1, 5); EXECUTE q; DEALLOCATE q"),
    }
}

/// Statements of the proxy itself, which are of no tenant: a tenant's context, and what the proxy
/// asks of a database.
const OWN: [&str; 4] = ["%set_config%", "DISCARD%", "%pgtenant%", "%pg_catalog%"];

/// Calls, rows and milliseconds of a role.
async fn known(cluster: &Cluster, role: &str) -> (i64, i64, f64) {
    let admin = cluster.connect("postgres").await.expect("a superuser");
    let condition = OWN
        .map(|own| format!("query NOT ILIKE '{own}'"))
        .join(" AND ");
    let sql = format!(
        "SELECT coalesce(sum(calls), 0)::int8, coalesce(sum(rows), 0)::int8, coalesce(sum(total_exec_time), 0) \
         FROM pg_stat_statements WHERE userid = '{role}'::regrole AND {condition}"
    );
    let row = admin.query_one(&sql, &[]).await.expect("statistics");
    (row.get(0), row.get(1), row.get(2))
}

/// All that a server has of a role, for who wonders.
async fn statistics(cluster: &Cluster, role: &str) -> String {
    let admin = cluster.connect("postgres").await.expect("a superuser");
    let sql = format!(
        "SELECT string_agg(format('%s calls, %s rows: %s', calls, rows, query), chr(10)) \
         FROM pg_stat_statements WHERE userid = '{role}'::regrole"
    );
    let row = admin.query_one(&sql, &[]).await.expect("statistics");
    row.get(0)
}

/// Sums of a tenant over all hours, as a reader of the file has them.
fn billed(file: &Path, tenant: &str) -> HashMap<&'static str, i64> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let mut hours: HashMap<String, Value> = HashMap::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        if line["tenant"] == tenant {
            // The last line of an hour counts.
            hours.insert(line["hour"].to_string(), line);
        }
    }
    let fields = [
        "server_time_us",
        "received_bytes",
        "sent_bytes",
        "statements",
        "rows",
        "transactions",
        "clients",
    ];
    let values = |field| hours.values().filter_map(move |line| line[field].as_i64());
    let told = fields.map(|field| match field {
        "clients" => (field, values(field).max().unwrap_or_default()),
        _ => (field, values(field).sum()),
    });
    told.into()
}

async fn version(cluster: &Cluster) -> u32 {
    let admin = cluster.connect("postgres").await.expect("a superuser");
    let sql = "SELECT current_setting('server_version_num')::int4 / 10000";
    let row = admin.query_one(sql, &[]).await.expect("a version");
    u32::try_from(row.get::<_, i32>(0)).expect("a version")
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_and_rows_are_those_of_pg_stat_statements() {
    let cluster = server().await;
    let version = version(&cluster).await;
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("usage.jsonl");
    let proxy = start(&cluster, &file);
    // Another tenant of the same pool: connections change hands, which is on nobody's bill.
    let mut other = client(&proxy, "other", "app").await;
    for (position, (tenant, role, database)) in TENANTS.into_iter().enumerate() {
        let mut random = StdRng::seed_from_u64(position as u64);
        let mut wires = [
            client(&proxy, tenant, database).await,
            client(&proxy, tenant, database).await,
        ];
        let mut open = [false; 2];
        let (mut failed, mut deallocates) = (0, 0);
        for round in 0..400 {
            let at = round % 2;
            let sent = batch(&mut random, version, at, &mut open[at]);
            wires[at].send(&sent).await;
            let answer = wires[at].until_ready().await;
            failed += errors(&answer).len();
            let ends = answer.iter().filter(|frame| frame.tag == b'C');
            let tags = ends.filter(|frame| frame.body.starts_with(b"DEALLOCATE"));
            deallocates += tags.map(|_| 1_i64).sum::<i64>();
            if round % 10 == 0 && tenant == "shared" {
                other.query("SELECT 'of another'").await;
            }
        }
        assert!(failed > 20, "{failed}");
        // A portal that is open when its session ends is no call.
        for (wire, _) in wires.iter_mut().zip(open).filter(|(_, open)| *open) {
            wire.query("ROLLBACK").await;
        }
        drop(wires);
        let (mut calls, rows, _) = known(&cluster, role).await;
        // A DEALLOCATE is a statement of its own there since version 17.
        calls += if version >= 17 { 0 } else { deallocates };
        if tenant == "shared" {
            calls -= 40;
        }
        let rows = if tenant == "shared" { rows - 40 } else { rows };
        // What is too much is seen, too.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        let bill = billed(&file, tenant);
        let all = statistics(&cluster, role).await;
        assert_eq!(
            (bill["statements"], bill["rows"]),
            (calls, rows),
            "{tenant} {all}"
        );
        assert_eq!(bill["clients"], 2);
        assert!(bill["sent_bytes"] > bill["rows"] && bill["received_bytes"] > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn server_time_is_that_of_pg_stat_statements_within_a_tenth() {
    let cluster = server().await;
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("usage.jsonl");
    let proxy = start(&cluster, &file);
    for (tenant, role, database) in TENANTS {
        let mut wire = client(&proxy, tenant, database).await;
        // A machine that has other things to do adds to what the proxy measures: one round in which
        // it has none will do. Less than what the server says it never is.
        let (mut before, mut rounds) = ((0.0, 0.0), Vec::new());
        let is_near = async || {
            for round in 0..40 {
                wire.send(&slow_statement(round)).await;
                wire.until_ready().await;
            }
            let (calls, _, milliseconds) = known(&cluster, role).await;
            eventually("it is written", async || {
                billed(&file, tenant)["statements"] >= calls
            })
            .await;
            #[expect(clippy::cast_precision_loss, reason = "small")]
            let billed = billed(&file, tenant)["server_time_us"] as f64 / 1000.0;
            let round = (billed - before.0, milliseconds - before.1);
            before = (billed, milliseconds);
            rounds.push(round);
            assert!(round.0 >= round.1, "{tenant}: {rounds:?}");
            round.0 <= 1.1 * round.1
        };
        in_a_few_rounds(is_near, tenant).await;
    }
}

async fn in_a_few_rounds(mut is_near: impl AsyncFnMut() -> bool, tenant: &str) {
    for _ in 0..6 {
        if is_near().await {
            return;
        }
    }
    panic!("{tenant}: over a tenth more in each round");
}

/// Of over a millisecond, by the simple and the extended protocol in turns.
fn slow_statement(round: usize) -> Vec<u8> {
    let sql = match round % 4 {
        0 => "SELECT pg_sleep(0.003)",
        1 => "SELECT pg_sleep(0.02)",
        2 => "SELECT count(*) FROM generate_series(1, 200000)",
        _ => "SELECT pg_sleep(0.005), generate_series(1, 3)",
    };
    match round / 4 % 2 {
        0 => query(sql),
        _ => [parse("", sql), bind("", "", &[]), execute("", 0), sync()].concat(),
    }
}
