//! A standby that becomes the primary, behind a proxy that knew it as a standby: who logs in is
//! told what the server is now.

use std::time::Duration;

use pgtenant::cluster::{Cluster, Options, Shutdown};

use crate::harness::{POOLINGS, Running, SECRET, Tenant, tenant};
use crate::wire::{Wire, column};

/// What a server reports of itself that changes with a promotion.
const FACTS: [&str; 2] = ["in_hot_standby", "default_transaction_read_only"];

/// A primary that was stopped, and comes back as a hot standby that follows nobody.
async fn standby() -> Cluster {
    let cluster = crate::harness::cluster(Options {
        settings: vec![("shared_buffers".into(), "16MB".into())],
        ..Options::named("promoted")
    })
    .await;
    let role = format!("CREATE ROLE app LOGIN PASSWORD '{SECRET}'");
    cluster.run("postgres", &role).await.unwrap();
    cluster.shut_down(Shutdown::Fast).await.unwrap();
    std::fs::write(cluster.data_dir().join("standby.signal"), "").unwrap();
    cluster.start_again().await.unwrap();
    cluster
}

fn yaml(cluster: &Cluster, pooling: &str) -> String {
    format!(
        "listen: [{{ address: \"127.0.0.1:0\" }}]
servers: {{ s: {{ host: 127.0.0.1, port: {}, sslmode: disable, max_connections: 20 }} }}
placements:
  p: {{ tier: pool, server: s, database: postgres, login: {{ user: app, password: {SECRET} }}, posture: plain, context: {{ app.t: \"{{tenant}}\" }}, pooling: {pooling}, pool: {{ size: 6 }} }}
tenants: {{ t00: {{ placement: p, users: {{ app: {{ password: t00-secret }} }} }} }}
",
        cluster.port()
    )
}

/// What a new client with these parameters is told.
async fn told(proxy: &Running, tenant: &Tenant, parameters: &[(&str, &str)]) -> [String; 2] {
    let user = tenant.user();
    let mut startup = vec![("user", &*user), ("database", "postgres")];
    startup.extend(parameters);
    let mut wire = Wire::tcp(proxy.address).await;
    wire.log_in(&startup, &tenant.password()).await.unwrap();
    FACTS.map(|name| {
        let head = format!("{name}\0");
        let told = wire
            .greeting
            .iter()
            .find(|frame| frame.tag == b'S' && frame.body.starts_with(head.as_bytes()));
        let value = &told.unwrap().body[head.len()..];
        String::from_utf8_lossy(value)
            .trim_end_matches('\0')
            .to_owned()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn who_logs_in_is_told_what_the_server_is_now() {
    let cluster = standby().await;
    let mut one = tenant("t00");
    one.database = "postgres".into();
    let parameters: [&[(&str, &str)]; 3] = [
        &[],
        &[("application_name", "x"), ("DateStyle", "ISO")],
        &[("options", "-c work_mem=5MB")],
    ];
    let proxies = POOLINGS.map(|pooling| (pooling, Running::start(&yaml(&cluster, pooling))));
    let all_are_told = async |expected: [&str; 2]| {
        let mut told_so = true;
        for (_, proxy) in &proxies {
            for parameters in parameters {
                told_so &= told(proxy, &one, parameters).await == expected;
            }
        }
        told_so
    };
    assert!(all_are_told(["on", "off"]).await);
    let mut client = proxies[0].1.raw(&one).await;
    assert_eq!(
        column(&client.query("SELECT pg_is_in_recovery()").await),
        ["t"]
    );
    cluster
        .run("postgres", "SELECT pg_promote()")
        .await
        .unwrap();
    // Connections are at hand, and what is known is asked again after a second.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(all_are_told(["off", "off"]).await);
    assert_eq!(
        column(&client.query("SELECT pg_is_in_recovery()").await),
        ["f"]
    );
    for (value, expected) in [("on", ["off", "on"]), ("off", ["off", "off"])] {
        let sql = format!("ALTER SYSTEM SET default_transaction_read_only = {value}");
        cluster.run("postgres", &sql).await.unwrap();
        cluster
            .run("postgres", "SELECT pg_reload_conf()")
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(1200)).await;
        assert!(all_are_told(expected).await, "{value}");
    }
}
