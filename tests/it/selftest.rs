//! `pgtenant selftest`, the program, against servers as operators have them.

use std::process::{Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::process::Command;

use crate::attacks::World;
use crate::harness::{eventually, in_time};

fn program(world: &World, placement: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgtenant"));
    command
        .args(["selftest", "--placement", placement, "--config"])
        .arg(world.path())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

async fn output(command: &mut Command) -> Output {
    in_time("selftest", command.output())
        .await
        .expect("it runs")
}

/// The exit code and the report of the one placement.
async fn report(world: &World, placement: &str, more: &[&str]) -> (Option<i32>, Value) {
    let output = output(program(world, placement).arg("--json").args(more)).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut report: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{output:?}"));
    (output.status.code(), report["placements"][0].take())
}

fn verdict(report: &Value, attack: &str) -> String {
    let attacks = report["attacks"].as_array().expect("attacks");
    let found = attacks.iter().find(|outcome| outcome["attack"] == attack);
    found.unwrap_or_else(|| panic!("{attack} in {report:#}"))["verdict"].to_string()
}

/// What the test makes is gone.
async fn leftovers(world: &World, database: &str) -> i64 {
    let client = world.cluster.connect(database).await.expect("a superuser");
    let sql = "SELECT (SELECT count(*) FROM pg_namespace WHERE nspname LIKE '%selftest%') \
        + (SELECT count(*) FROM pg_roles WHERE rolname LIKE '%selftest%') \
        + (SELECT count(*) FROM pg_largeobject_metadata) \
        + (SELECT count(*) FROM pg_database WHERE datname LIKE '%selftest%')";
    client.query_one(sql, &[]).await.expect("a number").get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_tells_what_escapes_and_which_tables_show_rows_to_whoever_has_none() {
    let world = World::new("selftest").await;
    world.prepare("plain").await;
    let sql = "CREATE TABLE good (tenant text); ALTER TABLE good ENABLE ROW LEVEL SECURITY; \
        CREATE POLICY tenant ON good USING (tenant = current_setting('app.tenant_id', true)); INSERT INTO good VALUES ('x'); \
        CREATE TABLE bad (tenant text); ALTER TABLE bad ENABLE ROW LEVEL SECURITY; CREATE POLICY everyone ON bad USING (true); \
        INSERT INTO bad VALUES ('x'); CREATE TABLE open (a int); CREATE TABLE hidden (a int); \
        GRANT SELECT ON good, bad, open TO plain";
    world.run("plain", sql).await;
    let (code, report) = report(&world, "plain", &[]).await;
    assert_eq!(code, Some(1), "{report:#}");
    assert_eq!(verdict(&report, "put together"), "\"escaped\"");
    assert_eq!(verdict(&report, "read"), "\"held\"");
    assert_eq!(report["leaking_tables"], serde_json::json!(["public.bad"]));
    let notices = report["notices"].to_string();
    assert!(
        notices.contains("open") && !notices.contains("hidden"),
        "{notices}"
    );
    assert_eq!(report["not_played"], serde_json::json!([]));
    assert_eq!(leftovers(&world, "plain").await, 0);
    let text = output(&mut program(&world, "plain")).await;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(
        text.contains("placement plain (pool, plain) on server s"),
        "{text}"
    );
    assert!(
        text.contains("escaped: a tenant that has no rows sees some in public.bad"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn it_plays_in_session_pooling_too() {
    let world = World::new("selftest").await;
    world.prepare("reused").await;
    let (_, report) = report(&world, "reused", &[]).await;
    assert_eq!(report["not_played"], serde_json::json!([]), "{report:#}");
    let attacks = report["attacks"].as_array().expect("attacks");
    for outcome in attacks {
        assert_ne!(outcome["verdict"], "not played", "{outcome:#}");
        let is_left = outcome["category"] == "residue";
        assert!(!is_left || outcome["verdict"] == "held", "{outcome:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_succeeds_where_all_is_held() {
    let world = World::new("selftest").await;
    for placement in ["sealed", "schema", "database"] {
        world.prepare(placement).await;
        let allowed: &[&str] = match placement {
            "sealed" => &[],
            "schema" => &["watch locks", "take a lock", "listen", "notify"],
            _ => &["watch locks"],
        };
        let allowed: Vec<_> = allowed.iter().flat_map(|name| ["--allow", name]).collect();
        let (code, report) = report(&world, placement, &allowed).await;
        assert_eq!(code, Some(0), "{report:#}");
        assert_eq!(verdict(&report, "read"), "\"held\"");
        let home = if placement == "database" {
            "postgres"
        } else {
            placement
        };
        assert_eq!(leftovers(&world, home).await, 0, "{placement}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_what_it_could_not_play() {
    let world = World::new("selftest").await;
    world.prepare("database").await;
    let limited = "CREATE ROLE limited LOGIN PASSWORD 'limited' CREATEROLE";
    world.run("postgres", limited).await;
    let yaml = world.yaml().replace(
        &format!(
            "user: postgres, password: {}",
            world.cluster.superuser_password()
        ),
        "user: limited, password: limited",
    );
    std::fs::write(world.path(), yaml).expect("a file");
    let (code, report) = report(&world, "database", &[]).await;
    assert_eq!(code, Some(2), "{report:#}");
    let why = report["not_played"].to_string();
    assert!(
        why.contains("permission denied to create database"),
        "{why}"
    );
    assert_eq!(leftovers(&world, "postgres").await, 0);
    let nowhere = output(&mut program(&world, "nowhere")).await;
    assert_eq!(nowhere.status.code(), Some(2));
    let why = String::from_utf8_lossy(&nowhere.stderr).into_owned();
    assert!(why.contains("there is no placement \"nowhere\""), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_takes_away_what_it_made_when_it_is_interrupted() {
    let world = World::new("selftest").await;
    world.prepare("schema").await;
    let mut child = program(&world, "schema")
        .stdout(Stdio::null())
        .spawn()
        .expect("it runs");
    let client = world.cluster.connect("schema").await.expect("a superuser");
    let made = "SELECT FROM pg_tables WHERE tablename = 'canaries'";
    eventually("it has begun", async || {
        !client.query(made, &[]).await.expect("tables").is_empty()
    })
    .await;
    let pid = i32::try_from(child.id().expect("it is there")).expect("a process id");
    kill(Pid::from_raw(pid), Signal::SIGINT).expect("a signal");
    let status = in_time("it ends", child.wait()).await.expect("a status");
    assert_eq!(status.code(), Some(130));
    assert_eq!(leftovers(&world, "schema").await, 0);
}
