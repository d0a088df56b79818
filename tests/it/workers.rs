//! Clients of one instance on several workers: they are sent from one to another all the time and
//! parked as soon as they are idle, wherever they are in what they do, and their server connections
//! go after them. Nobody may notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgtenant::app::App;
use pgtenant::workers::WorkerId;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::{JoinHandle, JoinSet};

use crate::harness::{
    Running, SECRET, Setup, Tenant, World, all_tenants, assert_no_panics, backends, eventually,
    tenant, world,
};
use crate::wire::{
    Frame, Wire, bind, cancel_request, column, copy_data, copy_done, errors, execute, parse, query,
    rows, sync,
};

const WORKERS: u16 = 4;
const POOL: usize = 3;
const ALL: &str = "SELECT body FROM items WHERE id < 900 ORDER BY id";
const CANCELED: &str = "57014";
const ROLE: &str = "app_sent_around";

fn yaml(setup: &Setup, world: &World) -> String {
    let yaml = setup.yaml(world);
    let more = yaml.replace("\nworkers: 2\n", &format!("\nworkers: {WORKERS}\n"));
    assert_ne!(yaml, more);
    more
}

/// The pool of the placement `free` with a login that no other test has.
fn with_role(yaml: &str) -> String {
    let (free, rest) = yaml.split_once("  pro:").expect("the placement after it");
    let free = free.replace("user: \"app\"", &format!("user: {ROLE}"));
    assert!(free.contains(ROLE));
    format!("{free}  pro:{rest}")
}

fn setup() -> Setup {
    Setup {
        pool_size: POOL,
        sections: "timeouts: { checkout: 60s }".into(),
        about: |name| match name {
            "t10" => "limits: { active: 2 }",
            _ => "",
        },
        ..Setup::default()
    }
}

async fn start(setup: &Setup) -> Running {
    Running::start(&yaml(setup, world().await))
}

/// Sends any client anywhere, or has it parked, until told to stop.
fn send_around(app: &Arc<App>, over: &Arc<AtomicBool>) -> JoinHandle<u64> {
    let (app, over) = (app.clone(), over.clone());
    tokio::spawn(async move {
        let mut rng = StdRng::seed_from_u64(11);
        let mut sent = 0;
        while !over.load(Ordering::Relaxed) {
            for client in app.clients() {
                match rng.random_range(0..4) {
                    0 => {
                        client.go_to(WorkerId::from(rng.random_range(0..WORKERS)));
                        sent += 1;
                    }
                    1 => client.ask_to_park(),
                    _ => {}
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        sent
    })
}

fn moves(app: &App) -> u64 {
    let instances = app.instances();
    instances.values().map(|i| i.metrics.moves.get()).sum()
}

/// Waits until no client holds a server connection any more, and none is kept that nobody counts.
async fn at_rest(app: &App) {
    eventually("all server connections are idle", async || {
        app.instances().values().all(|instance| {
            let pools = instance.pools();
            let counted: usize = pools.iter().map(|(_, counts)| counts.total).sum();
            let idle: usize = pools.iter().map(|(_, counts)| counts.idle).sum();
            counted == idle && instance.connections() == counted
        })
    })
    .await;
    for tenant in app.seen_tenants() {
        assert_eq!(tenant.active(), 0, "{}", tenant.id);
    }
}

/// One transaction of some kind, whole and of its own tenant.
async fn transact(wire: &mut Wire, tenant: &Tenant, kind: usize) {
    let expect = |frames: &[Frame]| {
        assert!(errors(frames).is_empty(), "{}: {frames:?}", tenant.name);
        assert_eq!(rows(frames), tenant.bodies(), "{}, {kind}", tenant.name);
    };
    match kind {
        0 => expect(&wire.query(ALL).await),
        1 => {
            let batch = [parse("", ALL), bind("", "", &[]), execute("", 0), sync()];
            wire.send(&batch.concat()).await;
            expect(&wire.until_ready().await);
        }
        // A name of the session, wherever it is.
        2 => {
            let batch = [bind("", "all", &[]), execute("", 0), sync()];
            wire.send(&batch.concat()).await;
            expect(&wire.until_ready().await);
        }
        3 => {
            wire.query("BEGIN").await;
            expect(&wire.query(ALL).await);
            expect(&wire.query(ALL).await);
            assert!(errors(&wire.query("COMMIT").await).is_empty());
        }
        4 => {
            assert_eq!(errors(&wire.query("SELECT 1/0").await), ["22012"]);
            // A setting that goes along.
            let set = wire.query("SET work_mem = '5MB'").await;
            assert!(errors(&set).is_empty(), "{set:?}");
            assert_eq!(wire.column("SHOW work_mem").await, ["5MB"]);
        }
        // Larger than any buffer, both ways.
        5 => {
            let text = "x".repeat(200_000);
            let sent = query(&format!("SELECT '{text}'"));
            wire.send(&sent).await;
            assert_eq!(column(&wire.until_ready().await), [text]);
        }
        // It keeps its server connection for a while, and takes it along.
        6 => {
            wire.query("CREATE TEMP TABLE kept (n int)").await;
            let copy = [
                query("COPY kept FROM STDIN"),
                copy_data(b"1\n2\n"),
                copy_done(),
            ];
            wire.send(&copy.concat()).await;
            wire.until_ready().await;
            for _ in 0..5 {
                expect(&wire.query(ALL).await);
                assert_eq!(wire.column("SELECT sum(n) FROM kept").await, ["3"]);
            }
            assert!(errors(&wire.query("DROP TABLE kept").await).is_empty());
        }
        // All at once.
        _ => {
            let batch = [query(ALL), query("SELECT 'between'"), query(ALL)];
            wire.send(&batch.concat()).await;
            expect(&wire.until_ready().await);
            assert_eq!(rows(&wire.until_ready().await), ["between"]);
            expect(&wire.until_ready().await);
        }
    }
}

async fn prepare(wire: &mut Wire) {
    wire.send(&[parse("all", ALL), sync()].concat()).await;
    assert!(errors(&wire.until_ready().await).is_empty());
}

/// Clients of many tenants on one small pool, sent around, cancelled and under reloads.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_are_sent_from_worker_to_worker_see_their_own_tenant_and_all_of_it() {
    const CLIENTS: usize = 24;
    let setup = setup();
    // Its connections are counted on the server, where other tests have theirs.
    let role = format!("CREATE ROLE {ROLE} LOGIN PASSWORD '{SECRET}' IN ROLE app");
    let world = world().await;
    world.shared.run("app", &role).await.expect("a role");
    let proxy = Arc::new(Running::start(&with_role(&yaml(&setup, world))));
    let app = proxy.proxy.app().clone();
    let over = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicBool::new(false));
    let sender = send_around(&app, &over);

    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let proxy = proxy.clone();
        clients.spawn(async move {
            let tenant = tenant(&format!("t{:02}", 10 + number % 8));
            let mut rng = StdRng::seed_from_u64(number as u64);
            let mut wire = proxy.raw(&tenant).await;
            prepare(&mut wire).await;
            for round in 0..100 {
                transact(&mut wire, &tenant, rng.random_range(0..8)).await;
                if round % 25 == 24 {
                    wire = proxy.raw(&tenant).await;
                    prepare(&mut wire).await;
                }
            }
        });
    }
    // Whose own long queries are cancelled, and nothing else.
    let mut cancelled = JoinSet::new();
    for number in 0..2 {
        let (proxy, done) = (proxy.clone(), done.clone());
        cancelled.spawn(async move {
            let tenant = tenant(&format!("t{:02}", 18 + number));
            let mut wire = proxy.raw(&tenant).await;
            let mut times = 0;
            while !done.load(Ordering::Relaxed) {
                wire.send(&query("SELECT 'slept' FROM pg_sleep(60)")).await;
                let key = wire.key.clone();
                // Until it strikes: it may come before the query does.
                let strike = async {
                    loop {
                        let mut stranger = Wire::tcp(proxy.address).await;
                        stranger.send(&cancel_request(&key)).await;
                        stranger.rest().await;
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                let frames = tokio::select! {
                    frames = wire.until_ready() => frames,
                    () = strike => unreachable!(),
                };
                assert_eq!(errors(&frames), [CANCELED]);
                times += 1;
            }
            times
        });
    }
    // What the server sees of it.
    let watching = {
        let done = done.clone();
        tokio::spawn(async move {
            let client = world.shared.connect("postgres").await.expect("connects");
            let limited = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%/* limited */'
                AND pid <> pg_backend_pid()";
            let (mut most, mut most_limited) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                most = most.max(backends(&client, ROLE).await);
                let row = client.query_one(limited, &[]).await.expect("a count");
                most_limited = most_limited.max(row.get::<_, i64>(0));
            }
            (most, most_limited)
        })
    };
    let mut limited = JoinSet::new();
    for _ in 0..4 {
        let (proxy, done) = (proxy.clone(), done.clone());
        limited.spawn(async move {
            let mut wire = proxy.raw(&tenant("t10")).await;
            while !done.load(Ordering::Relaxed) {
                let frames = wire
                    .query("SELECT 'late' FROM pg_sleep(0.005) /* limited */")
                    .await;
                assert_eq!(column(&frames), ["late"]);
            }
        });
    }
    // What a reload finds unchanged stays, and a limit that comes and goes holds whoever is where.
    let reloads = {
        let (proxy, done) = (proxy.clone(), done.clone());
        let yamls = [
            with_role(&yaml(&setup, world)),
            with_role(&yaml(
                &Setup {
                    max_connections: 15,
                    ..self::setup()
                },
                world,
            )),
        ];
        tokio::spawn(async move {
            let mut count = 0;
            while !done.load(Ordering::Relaxed) {
                proxy.reload(&yamls[count % 2]);
                count += 1;
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
            count
        })
    };

    clients.join_all().await;
    done.store(true, Ordering::Relaxed);
    for times in cancelled.join_all().await {
        assert!(times > 0, "nothing was cancelled");
    }
    limited.join_all().await;
    assert!(reloads.await.unwrap() > 1);
    over.store(true, Ordering::Relaxed);
    assert!(sender.await.unwrap() > 0);
    let (most, most_limited) = watching.await.unwrap();
    // One that is closed may be seen for a moment beside the one that took its place.
    assert!(most <= POOL as i64 + 1, "{most} server connections");
    assert!(
        most_limited <= 2,
        "{most_limited} of a tenant that may have 2"
    );
    assert!(moves(&app) > 0, "no server connection was ever moved");
    at_rest(&app).await;
    assert_no_panics();
}

/// In session pooling a client takes its server connection along.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_a_server_connection_to_itself_takes_it_along() {
    let setup = Setup {
        pooling: "session",
        ..setup()
    };
    let proxy = start(&setup).await;
    let app = proxy.proxy.app();
    let tenant = tenant("t20");
    let mut wire = proxy.raw(&tenant).await;
    wire.query("CREATE TEMP TABLE mine AS SELECT pg_backend_pid() AS pid")
        .await;
    for number in (0..WORKERS).cycle().take(50) {
        for client in app.clients() {
            client.go_to(WorkerId::from(number));
        }
        assert_eq!(rows(&wire.query(ALL).await), tenant.bodies());
        let here = wire.column("SELECT pg_backend_pid()").await;
        assert_eq!(wire.column("SELECT pid FROM mine").await, here);
    }
    drop(wire);
    at_rest(app).await;
    assert_no_panics();
}

/// The server ends its connections while they are idle: a client of another worker finds that out
/// before it uses one.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_connection_that_died_is_not_given_to_a_client_of_another_worker() {
    let setup = Setup {
        pool_size: 1,
        ..setup()
    };
    let proxy = start(&setup).await;
    let app = proxy.proxy.app();
    let tenant = tenant("t21");
    let mut wire = proxy.raw(&tenant).await;
    let operator = world().await.shared.connect("app").await.expect("connects");
    for number in (0..WORKERS).cycle().take(20) {
        let pid = wire.column("SELECT pg_backend_pid()").await.remove(0);
        operator
            .query(
                "SELECT pg_terminate_backend($1, 5000)",
                &[&pid.parse::<i32>().unwrap()],
            )
            .await
            .expect("terminates");
        for client in app.clients() {
            client.go_to(WorkerId::from(number));
        }
        assert_eq!(rows(&wire.query(ALL).await), tenant.bodies());
    }
    assert_no_panics();
}

/// All that wait are served, on whichever worker, when the tenants before them have had their turn.
#[tokio::test(flavor = "multi_thread")]
async fn clients_of_all_placements_are_served_on_all_workers() {
    let setup = Setup {
        sections: "timeouts: { checkout: 60s }".into(),
        ..Setup::default()
    };
    let proxy = Arc::new(start(&setup).await);
    let app = proxy.proxy.app().clone();
    let over = Arc::new(AtomicBool::new(false));
    let sender = send_around(&app, &over);
    let mut clients = JoinSet::new();
    for tenant in all_tenants() {
        let proxy = proxy.clone();
        clients.spawn(async move {
            let mut wire = proxy.raw(&tenant).await;
            let tenant = proxy.home(&tenant);
            for _ in 0..20 {
                let seen = wire.column("SELECT body FROM items ORDER BY id").await;
                assert_eq!(seen, tenant.bodies(), "{}", tenant.name);
            }
        });
    }
    clients.join_all().await;
    over.store(true, Ordering::Relaxed);
    sender.await.unwrap();
    at_rest(&app).await;
    assert_no_panics();
}
