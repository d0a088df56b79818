//! Tenants that wait share the time of a server by their weights.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::harness::{Running, Setup, tenant};
use crate::wire::errors;

/// Clients of each tenant: far more than server connections, so that both always wait.
const CLIENTS: usize = 12;

/// What the docs promise is 10 %. A server that shares two cores with other tests answers unevenly,
/// and a turn may take some of what the next one pays back, so that a few seconds can be further
/// off.
const TOLERANCE: f64 = 0.2;

/// The server time that each tenant has had, in seconds, and how many statements.
fn had(proxy: &Running) -> BTreeMap<String, (f64, f64)> {
    let tenants = proxy.proxy.app().seen_tenants();
    let tenants = tenants.iter().map(|tenant| {
        let transactions = &tenant.metrics.transactions;
        let time = Duration::from_micros(transactions.sum_us()).as_secs_f64();
        let count = u32::try_from(transactions.count()).expect("few");
        (tenant.id.as_str().to_owned(), (time, f64::from(count)))
    });
    tenants.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tenants_with_the_same_load_get_a_server_s_time_by_their_weights() {
    let setup = Setup {
        pool_size: 2,
        sections: "timeouts: { checkout: 60s, login: 60s }".into(),
        about: |name| match name {
            "t11" => "weight: 3",
            _ => "",
        },
        ..Setup::default()
    };
    let proxy = setup.start().await;
    let stops = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for number in 0..2 * CLIENTS {
        let name = ["t10", "t11"][number % 2];
        let mut wire = proxy.raw(&tenant(name)).await;
        let stops = stops.clone();
        clients.spawn(async move {
            while !stops.load(Relaxed) {
                assert!(errors(&wire.query("SELECT pg_sleep(0.005)").await).is_empty());
            }
        });
    }
    // Until all have come, and what came first is paid back.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let before = had(&proxy);
    tokio::time::sleep(Duration::from_secs(7)).await;
    let after = had(&proxy);
    stops.store(true, Relaxed);
    clients.join_all().await;
    let meanwhile = |name: &str| {
        let (before, after) = (before[name], after[name]);
        (after.0 - before.0, after.1 - before.1)
    };
    let (one, three) = (meanwhile("t10"), meanwhile("t11"));
    let off = |share: f64| (share / 3.0 - 1.0).abs();
    assert!(
        off(three.0 / one.0) < TOLERANCE,
        "server time {one:?} {three:?}"
    );
    // Each statement takes as long as the others, so that it is the same of them.
    assert!(
        off(three.1 / one.1) < TOLERANCE,
        "statements {one:?} {three:?}"
    );
}
