//! The incidents of `docs/incidents.md`, each found and ended from the console alone.

use super::{Console, number, setup, text};
use crate::harness::{Setup, eventually, in_time, tenant};
use crate::wire::{column, errors, query};

#[tokio::test(flavor = "multi_thread")]
async fn idle_transactions_hold_the_pool() {
    let proxy = Setup {
        pool_size: 2,
        sections: format!("{}\ntimeouts: {{ checkout: 60s }}", super::ADMIN),
        ..setup()
    };
    let proxy = proxy.start().await;
    let one = tenant("d0");
    let mut holders = Vec::new();
    for _ in 0..2 {
        let mut holder = proxy.raw(&one).await;
        holder
            .query("SET application_name = 'importer'; BEGIN")
            .await;
        holder.query("SELECT 1").await;
        holders.push(holder);
    }
    let mut victim = proxy.raw(&one).await;
    victim.send(&query("SELECT 2")).await;

    let mut console = Console::open(&proxy).await;
    eventually("SHOW POOLS says that a client waits", async || {
        let pool = console.row("SHOW POOLS", "database", "db_d0").await;
        number(&pool, "cl_waiting") == 1
            && number(&pool, "sv_idle") == 0
            && pool["sv_active"] == pool["pool_size"]
    })
    .await;
    let clients = console.rows("SHOW CLIENTS").await;
    let holders_of_it: Vec<_> = clients
        .iter()
        .filter(|row| text(row, "activity") == "idle in transaction")
        .collect();
    assert_eq!(holders_of_it.len(), 2, "{clients:?}");
    assert!(
        holders_of_it
            .iter()
            .all(|row| text(row, "application_name") == "importer")
    );
    for row in holders_of_it {
        let kill = format!(
            "KILL CLIENT {} {}",
            text(row, "id"),
            text(row, "generation")
        );
        console.say(&kill).await;
    }
    assert_eq!(
        column(&in_time("the victim", victim.until_ready()).await),
        ["2"]
    );
    for mut holder in holders {
        assert_eq!(errors(&in_time("it ends", holder.rest()).await), ["57P01"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_pinned_by_listen() {
    let proxy = Setup {
        pool_size: 2,
        sections: format!("{}\ntimeouts: {{ checkout: 60s }}", super::ADMIN),
        ..setup()
    };
    let proxy = proxy.start().await;
    let one = tenant("d1");
    let mut listeners = Vec::new();
    for _ in 0..2 {
        let mut listener = proxy.raw(&one).await;
        listener.query("LISTEN news").await;
        listeners.push(listener);
    }
    let mut victim = proxy.raw(&one).await;
    victim.send(&query("SELECT 3")).await;

    let mut console = Console::open(&proxy).await;
    eventually("SHOW CLIENTS says that a client waits", async || {
        let clients = console.rows("SHOW CLIENTS").await;
        clients.iter().any(|row| text(row, "activity") == "waiting")
    })
    .await;
    let clients = console.rows("SHOW CLIENTS").await;
    let pinned: Vec<_> = clients
        .iter()
        .filter(|row| text(row, "pinned").to_lowercase().contains("listen"))
        .collect();
    assert_eq!(pinned.len(), 2, "{clients:?}");
    assert!(
        pinned
            .iter()
            .all(|row| text(row, "activity") == "idle, pinned")
    );
    console
        .say(&format!("KILL_CLIENT {}", text(pinned[0], "id")))
        .await;
    assert_eq!(
        column(&in_time("the victim", victim.until_ready()).await),
        ["3"]
    );
}

/// The password of the placement's login is wrong after it was changed on the server.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_refuses_the_login() {
    let world = crate::harness::world().await;
    let good = setup().yaml(world);
    let line = good
        .lines()
        .find(|line| line.contains("db_{tenant}"))
        .expect("a placement");
    let bad = good.replace(line, &line.replace("password: secret", "password: wrong"));
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("pgtenant.yaml");
    std::fs::write(&file, &bad).expect("a file");
    let proxy = crate::harness::Running::with(crate::harness::parse(&bad), Some(file.clone()));
    let one = tenant("d1");
    let refused = crate::harness::connect(&proxy.config(&one)).await;
    assert!(refused.is_err());

    let mut console = Console::open(&proxy).await;
    let failed = console.row("SHOW SERVERS", "type", "L").await;
    assert_eq!(
        (text(&failed, "database"), text(&failed, "user")),
        ("db_d1", "db_d1")
    );
    let problem = text(&failed, "problem");
    assert!(
        problem.contains("password authentication failed"),
        "{problem}"
    );
    // New clients are told at once, and no other client waits for the server meanwhile.
    assert_eq!(console.say("DISABLE PLACEMENT business").await, "DISABLE");
    std::fs::write(&file, &good).expect("a file");
    let did = console.rows("RELOAD").await;
    assert!(
        did.iter().any(|row| text(row, "object") == "tenant"),
        "{did:?}"
    );
    assert_eq!(console.say("ENABLE PLACEMENT business").await, "ENABLE");
    let mut client = proxy.raw(&one).await;
    assert_eq!(column(&client.query("SELECT 4").await), ["4"]);
    let servers = console.rows("SHOW SERVERS").await;
    assert!(
        servers.iter().all(|row| text(row, "type") != "L"),
        "{servers:?}"
    );
}
