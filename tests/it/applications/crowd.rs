//! Many clients of one application for many tenants in every tier, by drivers and by bytes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::process::Command;

use super::{BODIES, WEB, extended, log_in, of_each_tier};
use crate::harness::{Running, Setup, Tenant, all_tenants, in_time};
use crate::wire::{Wire, bind, errors, execute, parse, query, rows, sync};

const CLIENTS: u64 = 80;
const LASTS: Duration = Duration::from_secs(12);

/// One request, as an application makes it. Returns whether the client goes on.
async fn request(wire: &mut Wire, tenant: &Tenant, rng: &mut StdRng) -> bool {
    let name = &tenant.name;
    let local = format!("SELECT set_config('app.tenant_id', '{name}', true)");
    let session = format!("SET app.tenant_id = '{name}'");
    let text = format!("BEGIN; SET LOCAL app.tenant_id = '{name}'; {BODIES}; COMMIT");
    let mut asked = match rng.random_range(0..6) {
        0 => vec![query(&session), query(BODIES)],
        1 => vec![query(&text)],
        2 => vec![
            [
                extended(
                    "SELECT set_config('app.tenant_id', $1, true)",
                    &[Some(name)],
                ),
                extended(BODIES, &[]),
                sync(),
            ]
            .concat(),
        ],
        3 => vec![
            query("BEGIN ISOLATION LEVEL REPEATABLE READ"),
            query(&local),
            [parse("", BODIES), bind("", "", &[]), execute("", 0), sync()].concat(),
            query("COMMIT"),
        ],
        4 => vec![
            query("BEGIN"),
            query(&local),
            query("SAVEPOINT s"),
            query("SELECT 1/0"),
            query("ROLLBACK TO s"),
            query(BODIES),
            query("ROLLBACK"),
        ],
        _ => vec![
            query("BEGIN"),
            query(&local),
            query(BODIES),
            query("COMMIT"),
        ],
    };
    // Some say all of it at once.
    if rng.random_bool(0.2) {
        let all = asked.concat();
        wire.send(&all).await;
        asked = vec![Vec::new(); asked.len()];
    }
    let leaves_at = rng
        .random_bool(0.03)
        .then(|| rng.random_range(0..asked.len()));
    let mut seen = Vec::new();
    for (at, said) in asked.into_iter().enumerate() {
        if !said.is_empty() {
            wire.send(&said).await;
        }
        if leaves_at == Some(at) {
            return false;
        }
        let frames = wire.until_ready().await;
        let failed = errors(&frames);
        assert!(
            failed.is_empty() || failed == ["22012"],
            "{name}: {failed:?}"
        );
        seen.extend(rows(&frames));
    }
    seen.retain(|row| row != name);
    assert_eq!(seen, tenant.bodies(), "{name}");
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_sees_no_row_but_those_of_the_tenant_it_chose() {
    let proxy = Setup {
        sections: WEB.to_owned(),
        pool_size: 2,
        reserve: 1,
        max_connections: 12,
        ..Setup::default()
    }
    .start()
    .await;
    let tenants: Vec<_> = all_tenants()
        .iter()
        .map(|tenant| proxy.home(tenant))
        .collect();
    let until = Instant::now() + LASTS;
    let mut clients = tokio::task::JoinSet::new();
    for seed in 0..CLIENTS {
        let (address, tenants) = (proxy.address, tenants.clone());
        clients.spawn(async move {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut requests = 0;
            let mut wire = None;
            while Instant::now() < until {
                let mut own = match wire.take() {
                    Some(wire) => wire,
                    None => log_in_at(address).await,
                };
                let tenant = tenants.choose(&mut rng).expect("one");
                if in_time("a request", request(&mut own, tenant, &mut rng)).await {
                    wire = Some(own);
                    requests += 1;
                }
            }
            requests
        });
    }
    let mut requests = 0;
    while let Some(done) = clients.join_next().await {
        requests += done.expect("a client");
    }
    println!("{requests} requests of {CLIENTS} clients");
    assert!(requests > 200, "{requests} requests");
}

async fn log_in_at(address: std::net::SocketAddr) -> Wire {
    let mut wire = Wire::tcp(address).await;
    let logged_in = wire.log_in(&[("user", "web")], "web-secret").await;
    logged_in.unwrap_or_else(|error| panic!("web: {error}"));
    wire
}

async fn run(program: &str, script: &str, proxy: &Running, environment: Option<(&str, String)>) {
    let expected: BTreeMap<_, _> = of_each_tier(proxy)
        .into_iter()
        .map(|tenant| (tenant.name.clone(), tenant.bodies()))
        .collect();
    let dsn = format!("postgresql://web:web-secret@{}/web", proxy.address);
    let output = Command::new(program)
        .arg(format!(
            "{}/tests/it/scripts/{script}",
            env!("CARGO_MANIFEST_DIR")
        ))
        .args([dsn, serde_json::to_string(&expected).expect("JSON")])
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

#[tokio::test(flavor = "multi_thread")]
async fn drivers_and_orms_choose_as_their_users_write_it() {
    let proxy = super::setup(WEB).start().await;
    drop(log_in(&proxy, None).await);
    let python = variable("PGTENANT_TEST_PYTHON");
    run(&python, "application_client.py", &proxy, None).await;
    let path = variable("PGTENANT_TEST_NODE_PATH");
    run(
        "node",
        "application_client.js",
        &proxy,
        Some(("NODE_PATH", path)),
    )
    .await;
}
