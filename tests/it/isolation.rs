//! What a client leaves or smuggles in must not reach another, nor take its own tenant's context
//! away.

use crate::harness::{Running, Setup, Tenant, tenant, world};
use crate::wire::{
    PROTOCOL_3_0, Wire, bind, column, copy_data, copy_done, errors, execute, flush, parse, query,
    rows, startup, sync,
};

const BODIES: &str = "SELECT body FROM items ORDER BY id";
const VARIABLE: &str = "app.tenant_id";

/// A proxy whose pools have one server connection: whoever comes next gets it.
async fn one_connection(pooling: &'static str) -> Running {
    Setup {
        pooling,
        pool_size: 1,
        ..Setup::default()
    }
    .start()
    .await
}

async fn log_in_with(proxy: &Running, tenant: &Tenant, extra: (&str, &str)) -> Result<(), String> {
    let mut wire = Wire::tcp(proxy.address).await;
    let (user, password) = (tenant.user(), tenant.password());
    let pairs = [("user", &*user), ("database", &tenant.database), extra];
    wire.send(&startup(PROTOCOL_3_0, &pairs)).await;
    let answer = wire.authenticate(&password, None).await;
    answer.map(|_| ()).map_err(|error| error.sqlstate())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_startup_packet_cannot_name_the_context_of_another() {
    let proxy = one_connection("transaction").await;
    let (a, b) = (tenant("t40"), tenant("t41"));
    for (name, value) in [
        (VARIABLE, b.name.clone()),
        ("APP.Tenant_Id", b.name.clone()),
        ("options", format!("-c {VARIABLE}={}", b.name)),
        ("options", format!("-capp.tenant_id={}", b.name)),
        ("options", format!("--APP.tenant-id={}", b.name)),
    ] {
        let refused = log_in_with(&proxy, &a, (name, &value)).await;
        assert_eq!(refused, Err("42501".to_owned()), "{name}={value}");
    }
    let own = format!("-c {VARIABLE}={}", a.name);
    assert_eq!(log_in_with(&proxy, &a, ("options", &own)).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_reset_in_the_same_write_finds_its_context() {
    for pooling in ["transaction", "session"] {
        let proxy = one_connection(pooling).await;
        let a = tenant("t42");
        let extended = [parse("", BODIES), bind("", "", &[]), execute("", 0), sync()].concat();
        for command in [
            "DISCARD ALL",
            " reset all",
            "SET app.tenant_id = 't43'",
            "DEALLOCATE ALL",
        ] {
            for (next, readies) in [(query(BODIES), 2), (extended.clone(), 2)] {
                let mut wire = proxy.raw(&a).await;
                wire.send(&[query(command), next].concat()).await;
                let mut frames = Vec::new();
                for _ in 0..readies {
                    frames.extend(wire.until_ready().await);
                }
                assert_eq!(rows(&frames), a.bodies(), "{pooling}: {command}");
            }
            // The same by extended messages.
            let mut wire = proxy.raw(&a).await;
            let reset = [
                parse("", command),
                bind("", "", &[]),
                execute("", 0),
                sync(),
            ]
            .concat();
            wire.send(&[reset, extended.clone()].concat()).await;
            let mut frames = wire.until_ready().await;
            frames.extend(wire.until_ready().await);
            assert_eq!(rows(&frames), a.bodies(), "{pooling}, extended: {command}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_client_set_does_not_meet_another_of_its_tenant() {
    let proxy = one_connection("transaction").await;
    let a = tenant("t44");
    let mut first = proxy.raw(&a).await;
    let mut second = proxy.raw(&a).await;
    // What ties the first to its connection is undone before the second can have it.
    for (command, undo) in [
        ("SET search_path = nowhere", "SELECT 1"),
        ("PREPARE x AS SELECT 1", "DEALLOCATE x"),
        ("LISTEN x", "UNLISTEN x"),
        // The first client keeps its timeout: it comes last, and is longer than a busy machine
        // takes for a statement.
        ("SET statement_timeout = '300ms'", "SELECT 1"),
    ] {
        assert!(errors(&first.query(command).await).is_empty());
        first.query(undo).await;
        let frames = second.query("SELECT pg_sleep(0.4)").await;
        assert!(errors(&frames).is_empty(), "{command}: {frames:?}");
        assert_eq!(rows(&second.query(BODIES).await), a.bodies(), "{command}");
        let left = "SELECT name FROM pg_prepared_statements UNION SELECT pg_listening_channels()";
        assert!(column(&second.query(left).await).is_empty(), "{command}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_ask_for_nothing_take_no_server_connection() {
    let proxy = one_connection("transaction").await;
    let (a, b) = (tenant("t45"), tenant("t46"));
    let mut idle = proxy.raw(&a).await;
    let stray = [copy_data(&[b'x'; 70_000]), copy_done(), flush()].concat();
    idle.send(&stray).await;
    let mut other = proxy.raw(&b).await;
    assert_eq!(rows(&other.query(BODIES).await), b.bodies());
    assert_eq!(rows(&idle.query(BODIES).await), a.bodies());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_tenant_set_does_not_hinder_the_change_to_the_next() {
    let proxy = one_connection("transaction").await;
    let (a, b) = (tenant("t47"), tenant("t48"));
    let mut other = proxy.raw(&b).await;
    for _ in 0..5 {
        let mut spoiling = proxy.raw(&a).await;
        let tables = "DO $$ BEGIN FOR i IN 1..60 LOOP EXECUTE format('CREATE TEMP TABLE IF NOT EXISTS x%s ()', i); END LOOP; END $$";
        spoiling.query(tables).await;
        spoiling.query("SET statement_timeout = '1ms'").await;
        drop(spoiling);
        let frames = other.query(BODIES).await;
        assert_eq!(
            rows(&frames),
            b.bodies(),
            "{:?}",
            frames.iter().map(|f| f.field(b'M')).collect::<Vec<_>>()
        );
    }
}

/// What sets the tenant goes to the server in one write with what the client says: if it fails,
/// nothing of that may run, as nobody and least of all as the tenant before.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_tenant_that_fails_runs_nothing_of_the_client() {
    let proxy = one_connection("transaction").await;
    let (a, b) = (tenant("t38"), tenant("t39"));
    let server = &world().await.shared;
    let make = "CREATE TEXT SEARCH CONFIGURATION public.fleeting (COPY = pg_catalog.simple)";
    server.run("app", make).await.unwrap();
    let mut wire = Wire::tcp(proxy.address).await;
    let (user, password) = (b.user(), b.password());
    let startup = [
        ("user", &*user),
        ("database", &*b.database),
        ("default_text_search_config", "public.fleeting"),
    ];
    wire.log_in(&startup, &password).await.unwrap();
    let mut other = proxy.raw(&a).await;
    assert_eq!(rows(&other.query(BODIES).await), a.bodies());
    assert_eq!(rows(&wire.query(BODIES).await), b.bodies());

    let drop = "DROP TEXT SEARCH CONFIGURATION public.fleeting";
    server.run("app", drop).await.unwrap();
    let insert = "INSERT INTO items (id, body) VALUES (901, 'of nobody')";
    let extended = [parse("", insert), bind("", "", &[]), execute("", 0)].concat();
    for (said, readies) in [
        (query(insert), 1),
        ([query(insert), query(insert)].concat(), 2),
        ([extended.clone(), sync()].concat(), 1),
        ([extended.clone(), sync(), query(insert)].concat(), 2),
        (
            [extended.clone(), sync(), extended.clone(), sync()].concat(),
            2,
        ),
        ([parse("named", insert), sync()].concat(), 1),
    ] {
        // The connection is the other's again.
        assert_eq!(rows(&other.query(BODIES).await), a.bodies());
        wire.send(&said).await;
        for _ in 0..readies {
            let frames = wire.until_ready().await;
            assert_eq!(errors(&frames).len(), 1, "{frames:?}");
        }
    }
    // A batch that comes in two writes.
    assert_eq!(rows(&other.query(BODIES).await), a.bodies());
    wire.send(&[extended, flush()].concat()).await;
    wire.send(&sync()).await;
    assert_eq!(errors(&wire.until_ready().await).len(), 1);

    server.run("app", make).await.unwrap();
    assert_eq!(rows(&other.query(BODIES).await), a.bodies());
    assert_eq!(rows(&wire.query(BODIES).await), b.bodies());
    // What was never parsed is not there.
    wire.send(&[bind("", "named", &[]), execute("", 0), sync()].concat())
        .await;
    assert_eq!(errors(&wire.until_ready().await), ["26000"]);
    server.run("app", drop).await.unwrap();
    let written = server.connect("app").await.unwrap();
    let count = written
        .query_one("SELECT count(*) FROM items WHERE id = 901", &[])
        .await
        .unwrap();
    assert_eq!(count.get::<_, i64>(0), 0);
}
