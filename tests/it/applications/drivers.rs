//! Applications as the users of drivers and ORMs write them.

use std::collections::BTreeMap;

use tokio::process::Command;

use super::{WEB, log_in, of_each_tier};
use crate::harness::{Running, in_time};

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
