//! Pools have as many server connections as the config says at least, before anybody asks for one.

use std::time::Duration;

use crate::harness::{Running, Setup, Tenant, eventually, tenant, world};
use pgtenant::app::Scope;

fn tenants() -> Vec<Tenant> {
    ["d2", "d3", "b2", "s1"].map(tenant).into()
}

/// A proxy of a few tenants, where each pool of the tenants with a database keeps two.
async fn yaml(min: usize) -> String {
    let setup = Setup {
        sections: "timeouts: { server_idle: 1s }".into(),
        ..Setup::default()
    };
    let yaml = setup.yaml_for(world().await, &tenants());
    let lines = yaml
        .lines()
        .map(|line| match line.starts_with("  business:") {
            true => line.replace("reserve: 0 }", &format!("reserve: 0, min: {min} }}")),
            false => line.to_owned(),
        });
    let lines: Vec<_> = lines.collect();
    lines.join("\n")
}

/// The idle connections of each pool, by database.
fn idle(proxy: &Running) -> Vec<(String, usize)> {
    let instances = proxy.proxy.app().instances();
    let pools = instances.values().flat_map(|instance| instance.pools());
    let mut idle: Vec<_> = pools
        .filter(|(_, counts)| counts.total > 0)
        .map(|(pool, counts)| (pool.key.database.clone(), counts.idle))
        .collect();
    idle.sort();
    idle
}

fn two_each() -> Vec<(String, usize)> {
    ["db_d2", "db_d3"].map(|name| (name.to_owned(), 2)).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_there_before_anybody_comes_and_as_long_as_the_config_says() {
    let proxy = Running::start(&yaml(2).await);
    let app = proxy.proxy.app();
    eventually("they are made", async || idle(&proxy) == two_each()).await;
    // They are used, and what is more than they are ends when it is idle.
    let mut wires = Vec::new();
    for _ in 0..3 {
        let mut wire = proxy.raw(&tenant("d2")).await;
        wire.query("BEGIN").await;
        wires.push(wire);
    }
    let made = |name: &str| {
        let instances = app.instances();
        instances[name].metrics.connects.get()
    };
    assert_eq!(made("shared"), 5);
    for wire in &mut wires {
        wire.query("COMMIT").await;
    }
    eventually("one more is idle", async || idle(&proxy)[0].1 == 3).await;
    eventually("it is closed", async || idle(&proxy) == two_each()).await;
    // Longer than an idle connection stays.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((idle(&proxy), made("shared")), (two_each(), 5));
    // What the server ends is made anew.
    let admin = world()
        .await
        .shared
        .connect("postgres")
        .await
        .expect("connects");
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE usename IN ('db_d2', 'db_d3') AND application_name = ''";
    admin.query(sql, &[]).await.expect("a superuser");
    eventually("others are made", async || {
        made("shared") >= 9 && idle(&proxy) == two_each()
    })
    .await;
    // A pause ends them, and while it lasts there are none.
    app.pause(Scope::All);
    eventually("they end", async || app.is_paused_out(&Scope::All)).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(idle(&proxy), []);
    app.resume(&Scope::All);
    eventually("they are made", async || idle(&proxy) == two_each()).await;
    // A reload that takes the minimum back.
    proxy.reload(&yaml(0).await);
    eventually("they end", async || idle(&proxy).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_makes_room_for_who_needs_it() {
    let yaml = yaml(1)
        .await
        .replace("max_connections: 20", "max_connections: 2");
    let proxy = Running::start(&yaml);
    let one_each = ["db_d2", "db_d3"].map(|name| (name.to_owned(), 1));
    eventually("they are made", async || idle(&proxy) == one_each).await;
    let mut other = proxy.raw(&tenant("b2")).await;
    other.query("BEGIN").await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let evictions = || {
        let instances = proxy.proxy.app().instances();
        instances["shared"].metrics.evictions.get()
    };
    // Its place is not taken back before it is free.
    assert_eq!(evictions(), 1);
    assert_eq!(other.column("SELECT 1").await, ["1"]);
    other.query("COMMIT").await;
    drop(other);
    eventually("they are made again", async || idle(&proxy) == one_each).await;
    assert_eq!(evictions(), 1);
}

/// A minimum of one tenant's own, where each has a pool of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_with_a_pool_of_its_own_can_have_a_minimum_of_its_own() {
    let of = |minimum: &str| {
        let minimum = minimum.to_owned();
        async move {
            let yaml = yaml(1).await;
            let changed = yaml.replace("  d2: { ", &format!("  d2: {{ {minimum}, "));
            assert_ne!(changed, yaml);
            changed
        }
    };
    let counts = |d2, d3| {
        let all = [("db_d2", d2), ("db_d3", d3)].map(|(name, idle)| (name.to_owned(), idle));
        all.into_iter()
            .filter(|(_, idle)| *idle > 0)
            .collect::<Vec<_>>()
    };
    let proxy = Running::start(&of("pool: { min: 3 }").await);
    eventually("they are made", async || idle(&proxy) == counts(3, 1)).await;
    // It is as good as the placement's for who uses it.
    let mut wire = proxy.raw(&tenant("d2")).await;
    assert_eq!(wire.column("SELECT 1").await, ["1"]);
    drop(wire);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(idle(&proxy), counts(3, 1));
    // A reload with less, with none, and with nothing said.
    proxy.reload(&of("pool: { min: 2 }").await);
    eventually("one ends", async || idle(&proxy) == counts(2, 1)).await;
    proxy.reload(&of("pool: { min: 0 }").await);
    eventually("all end", async || idle(&proxy) == counts(0, 1)).await;
    proxy.reload(&of("pool: {}").await);
    eventually("as the placement says", async || {
        idle(&proxy) == counts(1, 1)
    })
    .await;
}
