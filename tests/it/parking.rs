//! Clients that are idle for a while are kept without a task. Nobody may notice.

use std::sync::Arc;
use std::time::Duration;

use pgtenant::app::App;
use pgtenant::client::ClientHandle;
use pgtenant::workers::WorkerId;

use crate::harness::{
    Running, Setup, Tenant, assert_no_panics, eventually, in_time, tenant, world,
};
use crate::wire::{
    Wire, bind, column, errors, execute, message, parse, query, rows, sync, terminate,
};

const ALL: &str = "SELECT body FROM items WHERE id < 900 ORDER BY id";
const STOPPED: &str = "57P01";

async fn start(setup: &Setup) -> Running {
    Running::start(&setup.yaml(world().await))
}

fn parked(app: &App) -> usize {
    let clients = app.clients();
    clients.iter().filter(|client| client.is_parked()).count()
}

/// The only client there is.
fn only(app: &App) -> Arc<ClientHandle> {
    let mut clients = app.clients();
    assert_eq!(clients.len(), 1);
    clients.remove(0)
}

/// Does not wait until clients are idle for a while.
async fn park_all(app: &App) {
    eventually("all clients are parked", async || {
        let clients = app.clients();
        let awake = clients.iter().filter(|client| !client.is_parked());
        awake.map(|client| client.ask_to_park()).count() == 0
    })
    .await;
}

async fn a_parked_client(proxy: &Running, tenant: &Tenant) -> Wire {
    let wire = proxy.raw(tenant).await;
    park_all(proxy.proxy.app()).await;
    wire
}

/// It was told why, and its connection is closed.
async fn is_stopped(wire: &mut Wire) {
    let last = in_time("the last word", wire.rest()).await;
    assert_eq!(errors(&last), [STOPPED], "{last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_idle_is_parked_and_comes_back_as_who_it_was() {
    let proxy = start(&Setup::default()).await;
    let app = proxy.proxy.app();
    let names = ["acme", "t00", "t01", "t02", "t03"];
    let mut clients = Vec::new();
    for name in names.into_iter().cycle().take(20) {
        let tenant = tenant(name);
        let mut wire = proxy.raw(&tenant).await;
        assert_eq!(rows(&wire.query(ALL).await), tenant.bodies());
        clients.push((tenant, wire));
    }
    // Nobody asks for it.
    eventually("they are parked", async || parked(app) == clients.len()).await;
    for round in 0..3 {
        for (tenant, wire) in &mut clients {
            assert_eq!(rows(&wire.query(ALL).await), tenant.bodies(), "{round}");
        }
        assert_eq!(app.clients().len(), clients.len());
        park_all(app).await;
    }
    // All at once.
    for (_, wire) in &mut clients {
        wire.send(&query(ALL)).await;
    }
    for (tenant, wire) in &mut clients {
        assert_eq!(rows(&wire.until_ready().await), tenant.bodies());
    }
    assert_no_panics();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_has_set_and_prepared_is_there_when_it_comes_back() {
    let proxy = start(&Setup::default()).await;
    let app = proxy.proxy.app();
    let tenant = tenant("t00");
    let mut wire = proxy.raw(&tenant).await;
    let set = wire
        .query("SET work_mem = '5MB'; SET TimeZone = 'Asia/Tokyo'")
        .await;
    assert!(errors(&set).is_empty(), "{set:?}");
    wire.send(&[parse("all", ALL), parse("", "SELECT 'unnamed'"), sync()].concat())
        .await;
    assert!(errors(&wire.until_ready().await).is_empty());
    for _ in 0..3 {
        park_all(app).await;
        let batch = [
            bind("", "", &[]),
            execute("", 0),
            bind("", "all", &[]),
            execute("", 0),
            sync(),
        ];
        wire.send(&batch.concat()).await;
        let mut expected = vec!["unnamed".to_owned()];
        expected.extend(tenant.bodies());
        assert_eq!(rows(&wire.until_ready().await), expected);
    }
    park_all(app).await;
    assert_eq!(wire.column("SHOW work_mem").await, ["5MB"]);
    park_all(app).await;
    assert_eq!(wire.column("SHOW TimeZone").await, ["Asia/Tokyo"]);
    // A name ends for good.
    let ended = wire.query("DEALLOCATE \"all\"").await;
    assert!(errors(&ended).is_empty(), "{ended:?}");
    park_all(app).await;
    wire.send(&[bind("", "all", &[]), sync()].concat()).await;
    assert_eq!(errors(&wire.until_ready().await), ["26000"]);
    assert_no_panics();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_may_come_in_pieces() {
    let proxy = start(&Setup::default()).await;
    let app = proxy.proxy.app();
    let tenant = tenant("t00");
    let mut wire = a_parked_client(&proxy, &tenant).await;
    let message = query(ALL);
    let (head, tail) = message.split_at(3);
    wire.send(head).await;
    let client = only(app);
    eventually("it has a task", async || !client.is_parked()).await;
    // Not in the middle of a message.
    for _ in 0..20 {
        client.ask_to_park();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(!client.is_parked());
    }
    wire.send(tail).await;
    assert_eq!(rows(&wire.until_ready().await), tenant.bodies());
    // What is passed over is no message.
    wire.send(&message_of_a_copy_that_failed()).await;
    park_all(app).await;
    assert_eq!(rows(&wire.query(ALL).await), tenant.bodies());
    assert_no_panics();
}

fn message_of_a_copy_that_failed() -> Vec<u8> {
    message(b'd', &[b"rest"])
}

/// What it has begun to say is not over, so it cannot be parked: it is asked now and then, not all
/// the time.
#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_be_parked_is_not_asked_all_the_time() {
    let proxy = start(&Setup::default()).await;
    let mut wire = proxy.raw(&tenant("t00")).await;
    let client = only(proxy.proxy.app());
    wire.send(&query(ALL)[..1]).await;
    eventually("it was asked", async || {
        client.called() > 0 || client.is_parked()
    })
    .await;
    let asked = client.called();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(client.called() <= asked + 1);
    assert!(!client.is_parked());
    wire.send(&query(ALL)[1..]).await;
    assert_eq!(rows(&wire.until_ready().await), tenant("t00").bodies());
    assert_no_panics();
}

/// It never ends the batch in which something was refused.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_in_the_middle_of_a_batch_can_be_ended() {
    let setup = Setup {
        pool_size: 1,
        sections: "timeouts: { checkout: 100ms }".into(),
        ..Setup::default()
    };
    for ends in [App::kill_clients, App::drain] {
        let proxy = start(&setup).await;
        let mut other = proxy.raw(&tenant("t00")).await;
        other.query("BEGIN").await;
        let mut wire = proxy.raw(&tenant("t00")).await;
        wire.send(&[parse("", ALL), bind("", "", &[])].concat())
            .await;
        assert_eq!(errors(&[wire.expect().await]), ["53300"]);
        ends(proxy.proxy.app());
        is_stopped(&mut wire).await;
    }
    assert_no_panics();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_in_a_transaction_or_keeps_its_server_connection_is_not_parked() {
    let proxy = start(&Setup::default()).await;
    let app = proxy.proxy.app();
    let mut wire = proxy.raw(&tenant("t00")).await;
    let client = only(app);
    for (begin, end) in [
        ("BEGIN", "COMMIT"),
        ("CREATE TEMP TABLE mine (n int)", "DROP TABLE mine"),
    ] {
        assert!(errors(&wire.query(begin).await).is_empty());
        for _ in 0..20 {
            client.ask_to_park();
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(!client.is_parked(), "{begin}");
        }
        assert!(errors(&wire.query(end).await).is_empty());
        // It is idle now, and somebody looks for that.
        eventually("it is parked", async || client.is_parked()).await;
    }
    assert_no_panics();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_client_that_leaves_is_gone() {
    let proxy = start(&Setup::default()).await;
    let app = proxy.proxy.app();
    for number in 0..3 {
        let mut wire = a_parked_client(&proxy, &tenant("t00")).await;
        match number {
            0 => drop(wire),
            1 => wire.send(&terminate()).await,
            _ => wire.shutdown().await,
        }
        eventually("it is gone", async || app.connections() == 0).await;
    }
    assert_no_panics();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_client_can_be_ended_and_ends_with_the_proxy() {
    let proxy = start(&Setup::default()).await;
    let app = proxy.proxy.app();
    let mut wire = a_parked_client(&proxy, &tenant("t00")).await;
    only(app).kill();
    is_stopped(&mut wire).await;
    let mut clients = Vec::new();
    for _ in 0..300 {
        clients.push(proxy.raw(&tenant("t00")).await);
    }
    park_all(app).await;
    app.drain();
    for wire in &mut clients {
        is_stopped(wire).await;
    }
    eventually("all are gone", async || app.connections() == 0).await;
    assert_no_panics();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_finds_those_who_are_parked() {
    let world = world().await;
    let setup = Setup::default();
    let proxy = start(&setup).await;
    let app = proxy.proxy.app();
    let mut clients = Vec::new();
    for number in 0..300 {
        let tenant = tenant(["t00", "t01", "t02"][number % 3]);
        clients.push((proxy.raw(&tenant).await, tenant));
    }
    park_all(app).await;
    // Who is not concerned stays.
    proxy.reload(&setup.yaml(world));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(parked(app), clients.len());
    // Who is not there any more is told so.
    let others = crate::harness::all_tenants();
    let others: Vec<_> = others.into_iter().filter(|t| t.name != "t01").collect();
    proxy.reload(&setup.yaml_for(world, &others));
    let (gone, here): (Vec<_>, Vec<_>) = clients
        .into_iter()
        .partition(|(_, tenant)| tenant.name == "t01");
    for (mut wire, _) in gone {
        is_stopped(&mut wire).await;
    }
    assert_eq!(parked(app), here.len());
    for (mut wire, tenant) in here {
        assert_eq!(rows(&wire.query(ALL).await), tenant.bodies());
    }
    assert_no_panics();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_client_goes_where_it_is_sent() {
    let proxy = start(&Setup::default()).await;
    let app = proxy.proxy.app();
    let tenant = tenant("t00");
    let mut wire = proxy.raw(&tenant).await;
    let client = only(app);
    for worker in [1, 0, 1].map(WorkerId::from) {
        park_all(app).await;
        client.go_to(worker);
        // It is parked there, too.
        eventually("it has left", async || !client.is_parked()).await;
        park_all(app).await;
        assert_eq!(client.worker(), worker);
        assert_eq!(column(&wire.query("SELECT 'here'").await), ["here"]);
        assert_eq!(rows(&wire.query(ALL).await), tenant.bodies());
    }
    assert_no_panics();
}
