//! Nobody goes faster than the config says, and who has to wait keeps nobody else waiting.
//!
//! Times are checked from below, which no busy machine makes wrong, and from above only where that
//! is generous.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::harness::{POOLINGS, Running, Setup, eventually, in_time, tenant, world};
use crate::wire::{
    Wire, bind, cancel_request, errors, execute, flush, function_call, parse, query, sync,
    terminate,
};

/// Statements per second, and how many at once.
const RATE: u32 = 100;
const BURST: u32 = 5;
/// So many statements are sent, and take so long at least.
const SENT: u32 = 45;

fn slowest() -> Duration {
    Duration::from_secs(1) * (SENT - BURST) / RATE
}

/// `pg_backend_pid`: a FunctionCall may name it by its oid.
const BACKEND_PID: u32 = 2026;

fn metric(proxy: &Running, name: &str, read: fn(&pgtenant::metrics::TenantMetrics) -> u64) -> u64 {
    let tenants = proxy.proxy.app().seen_tenants();
    let found = tenants.iter().find(|t| t.id.as_str() == name);
    found.map_or(0, |tenant| read(&tenant.metrics))
}

fn rate_waits(proxy: &Running, name: &str) -> u64 {
    metric(proxy, name, |metrics| metrics.rate_waits.get())
}

/// All statements of `t00` are limited, at the level of this.
async fn limited(level: &str, pooling: &'static str, limits: &str) -> Running {
    let setup = Setup {
        pooling,
        sections: match level {
            "proxy" => format!("timeouts: {{ checkout: 60s }}\nlimits: {{ {limits} }}"),
            _ => "timeouts: { checkout: 60s }".to_owned(),
        },
        ..Setup::default()
    };
    let yaml = setup.yaml(world().await);
    let limits = format!("limits: {{ {limits} }}");
    let yaml = match level {
        "tenant" => yaml.replace("t00: { ", &format!("t00: {{ {limits}, ")),
        "placement" => yaml.replace("free: { ", &format!("free: {{ {limits}, ")),
        "server" => yaml.replace("shared: { ", &format!("shared: {{ {limits}, ")),
        _ => yaml,
    };
    assert!(yaml.contains(&limits));
    Running::start(&yaml)
}

/// What a client sends, and how many of its statements are in it.
type Sending = (&'static str, Vec<Vec<u8>>);

/// The same statements in all the ways in which they can be sent. Each piece is answered before the
/// next is sent.
fn sendings() -> [Sending; 6] {
    let select = query("SELECT 'x'");
    let number = SENT as usize;
    let bound = [bind("", "s", &[]), execute("", 0)].concat();
    let mut in_transaction = vec![query("BEGIN")];
    in_transaction.extend(vec![select.clone(); number - 2]);
    in_transaction.push(query("COMMIT"));
    [
        ("one by one", vec![select.clone(); number]),
        ("in a transaction", in_transaction),
        ("pipelined", vec![select.repeat(number)]),
        (
            "in one batch",
            vec![[parse("s", "SELECT 'x'"), bound.repeat(number), sync()].concat()],
        ),
        (
            "prepared and never run",
            vec![[parse("", "SELECT 'x'"), sync()].concat(); number],
        ),
        (
            "by function calls",
            vec![function_call(BACKEND_PID, &[]); number],
        ),
    ]
}

/// So many ReadyForQuery messages answer a piece.
fn readies(what: &str) -> usize {
    if what == "pipelined" {
        SENT as usize
    } else {
        1
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_go_at_the_rate_however_they_are_sent() {
    let limits = format!("statements_per_second: {{ rate: {RATE}, burst: {BURST} }}");
    for pooling in POOLINGS {
        for (what, pieces) in sendings() {
            let proxy = limited("tenant", pooling, &limits).await;
            let mut wire = proxy.raw(&tenant("t00")).await;
            let began = Instant::now();
            let mut failed = Vec::new();
            for piece in &pieces {
                wire.send(piece).await;
                for _ in 0..readies(what) {
                    failed.extend(errors(&wire.until_ready().await));
                }
            }
            let took = began.elapsed();
            assert!(failed.is_empty(), "{pooling} {what}: {failed:?}");
            assert!(took >= slowest(), "{pooling} {what}: {took:?}");
            assert!(took < 10 * slowest(), "{pooling} {what}: {took:?}");
            // A machine that is slower than the rate has nothing to wait for.
            let is_slow = took >= Duration::from_secs(1) * SENT / RATE;
            assert!(rate_waits(&proxy, "t00") > 0 || is_slow, "{pooling} {what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_is_of_all_clients_of_its_level_together() {
    let limits = format!("statements_per_second: {{ rate: {RATE}, burst: {BURST} }}");
    for (level, names) in [
        ("tenant", ["t00", "t00", "t00"]),
        ("placement", ["t00", "t01", "t02"]),
        ("server", ["t00", "t01", "b0"]),
        ("proxy", ["t00", "b0", "c0"]),
    ] {
        let proxy = limited(level, "transaction", &limits).await;
        let mut wires = Vec::new();
        for name in names {
            wires.push(proxy.raw(&tenant(name)).await);
        }
        let began = Instant::now();
        let mut clients = tokio::task::JoinSet::new();
        for mut wire in wires {
            clients.spawn(async move {
                for _ in 0..SENT / 3 {
                    assert_eq!(wire.column("SELECT 1").await, ["1"]);
                }
            });
        }
        clients.join_all().await;
        let took = began.elapsed();
        assert!(took >= slowest(), "{level}: {took:?}");
        assert!(took < 10 * slowest(), "{level}: {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_over_its_rate_keeps_nobody_else_waiting() {
    for pooling in POOLINGS {
        let limits = "statements_per_second: { rate: 2, burst: 1 }";
        let proxy = limited("tenant", pooling, limits).await;
        let mut slow = Vec::new();
        // More of its clients wait than the pool has connections.
        let clients = if pooling == "session" { 4 } else { 30 };
        for _ in 0..clients {
            let mut wire = proxy.raw(&tenant("t00")).await;
            wire.send(&query("SELECT 1").repeat(2)).await;
            slow.push(wire);
        }
        eventually("they wait", async || {
            rate_waits(&proxy, "t00") >= clients - 1
        })
        .await;
        let mut other = proxy.raw(&tenant("t01")).await;
        let began = Instant::now();
        for _ in 0..50 {
            assert_eq!(other.column("SELECT 1").await, ["1"]);
        }
        // It would be 25 seconds at the rate of the other.
        assert!(began.elapsed() < Duration::from_secs(5), "{pooling}");
        assert_eq!(rate_waits(&proxy, "t01"), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_would_wait_too_long_is_refused_and_the_client_goes_on() {
    let batch = |sql: &str| [parse("", sql), bind("", "", &[]), execute("", 0), sync()].concat();
    let flushed = |sql: &str| {
        [
            parse("", sql),
            flush(),
            bind("", "", &[]),
            execute("", 0),
            flush(),
            sync(),
        ]
        .concat()
    };
    let refused: [(&str, Vec<u8>); 4] = [
        ("Query", query("SELECT 1")),
        ("batch", batch("SELECT 1")),
        ("batch with Flush", flushed("SELECT 1")),
        ("FunctionCall", function_call(BACKEND_PID, &[])),
    ];
    for pooling in POOLINGS {
        let setup = Setup {
            pooling,
            sections: "timeouts: { checkout: 300ms }".into(),
            about: |name| match name {
                "t00" | "t01" | "t02" | "t03" => {
                    "limits: { statements_per_second: { rate: 1, burst: 2 } }"
                }
                _ => "",
            },
            ..Setup::default()
        };
        let proxy = Arc::new(setup.start().await);
        let mut clients = tokio::task::JoinSet::new();
        for (name, (what, sent)) in ["t00", "t01", "t02", "t03"]
            .into_iter()
            .zip(refused.clone())
        {
            let proxy = proxy.clone();
            clients.spawn(async move {
                let mut wire = proxy.raw(&tenant(name)).await;
                is_refused(&mut wire, name, what, &sent).await;
                let refusals = metric(&proxy, name, |metrics| metrics.rate_refusals.get());
                assert_eq!(refusals, 3, "{pooling} {what}");
            });
        }
        clients.join_all().await;
    }
}

/// `sent` is refused in a transaction and outside of one. The rate is one statement a second, two
/// at once.
async fn is_refused(wire: &mut Wire, name: &str, what: &str, sent: &[u8]) {
    let burst = Duration::from_millis(2100);
    assert!(errors(&wire.query("BEGIN").await).is_empty());
    assert!(errors(&wire.query("SELECT 1").await).is_empty());
    wire.send(sent).await;
    let frames = in_time("it is answered", wire.until_ready()).await;
    assert_eq!(errors(&frames), ["53400"], "{what}");
    let error = frames.iter().find(|frame| frame.tag == b'E').expect("one");
    assert_eq!(error.field(b'V').as_deref(), Some("ERROR"));
    let message = format!("tenant \"{name}\" is over its rate of 1 statements per second");
    assert_eq!(error.field(b'M'), Some(message), "{what}");
    assert!(error.field(b'H').is_some());
    // The transaction has failed with it, as with any error.
    tokio::time::sleep(burst).await;
    assert_eq!(errors(&wire.query("SELECT 1").await), ["25P02"], "{what}");
    assert!(errors(&wire.query("ROLLBACK").await).is_empty());
    // Outside of one there is nothing to fail.
    wire.send(&sent.repeat(2)).await;
    for _ in 0..2 {
        let frames = in_time("it is answered", wire.until_ready()).await;
        assert_eq!(errors(&frames), ["53400"], "{what}");
    }
    tokio::time::sleep(burst).await;
    assert_eq!(wire.column("SELECT 'there'").await, ["there"], "{what}");
}

/// Outside of a transaction and in one, where the client keeps its server connection while it
/// waits.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_rate_can_cancel_and_leave() {
    let limits = "statements_per_second: { rate: 1, burst: 3 }";
    let sent: [(&str, Vec<u8>); 2] = [
        ("Query", query("SELECT 4")),
        (
            "batch",
            [
                parse("", "SELECT 4"),
                bind("", "", &[]),
                execute("", 0),
                sync(),
            ]
            .concat(),
        ),
    ];
    for (pooling, begin, (what, sent)) in POOLINGS
        .into_iter()
        .flat_map(|pooling| ["SELECT 0", "BEGIN"].map(|begin| (pooling, begin)))
        .flat_map(|(pooling, begin)| sent.clone().map(|sent| (pooling, begin, sent)))
    {
        let proxy = limited("tenant", pooling, limits).await;
        let mut wire = proxy.raw(&tenant("t00")).await;
        let key = wire.key.clone();
        for sql in [begin, "SELECT 1", "SELECT 2"] {
            assert!(errors(&wire.query(sql).await).is_empty());
        }
        // What fails a transaction is not cancelled in it again.
        let rounds = if begin == "BEGIN" { 1 } else { 2 };
        for round in 1..=rounds {
            wire.send(&sent).await;
            let case = format!("{pooling} {begin} {what} {round}");
            eventually("it waits", async || rate_waits(&proxy, "t00") == round).await;
            let began = Instant::now();
            let mut canceller = Wire::tcp(proxy.address).await;
            canceller.send(&cancel_request(&key)).await;
            let told = in_time("it is cancelled", wire.until_ready()).await;
            assert_eq!(errors(&told), ["57014"], "{case}");
            assert!(began.elapsed() < Duration::from_millis(600), "{case}");
        }
        // Nothing of the cancel is left for what comes next.
        let next = if begin == "BEGIN" {
            "ROLLBACK"
        } else {
            "SELECT 5"
        };
        let frames = in_time("it goes on", wire.query(next)).await;
        assert!(errors(&frames).is_empty(), "{pooling} {begin} {what}");
        wire.send(&[query("SELECT 6"), terminate()].concat()).await;
        drop(wire);
        eventually("it has left", async || {
            proxy.proxy.app().clients().is_empty()
        })
        .await;
    }
}

/// Whoever waits when the rate is taken away goes on at once, a statement and a result, in a
/// transaction, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_reload_ends_the_waits_for_a_rate_that_is_no_more() {
    let rows = "SELECT repeat('x', 1000) FROM generate_series(1, 1000)";
    let statements = "limits: { statements_per_second: { rate: 1, burst: 3 } }";
    for (pooling, limits, sql, count) in POOLINGS.into_iter().flat_map(|pooling| {
        [
            (pooling, statements, "SELECT 1", 25),
            (pooling, "limits: { bytes_per_second: 64kB }", rows, 1),
        ]
    }) {
        let setup = Setup {
            pooling,
            sections: "timeouts: { checkout: 60s }".into(),
            ..Setup::default()
        };
        let free = setup.yaml(world().await);
        let slow = free.replace("t00: { ", &format!("t00: {{ {limits}, "));
        let proxy = Running::start(&slow);
        let mut wire = proxy.raw(&tenant("t00")).await;
        wire.query("BEGIN").await;
        wire.send(&query(sql).repeat(count)).await;
        eventually("it is held back", async || {
            metric(&proxy, "t00", |m| m.rate_pauses.get() + m.rate_waits.get()) > 0
        })
        .await;
        let began = Instant::now();
        proxy.reload(&free);
        for _ in 0..count {
            let frames = in_time("all of it comes", wire.until_ready()).await;
            assert!(errors(&frames).is_empty());
        }
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{pooling} {limits}"
        );
        wire.query("COMMIT").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_result_is_slowed_while_it_flows() {
    // A megabyte and a half.
    let sql = "SELECT repeat('x', 1000) FROM generate_series(1, 1500)";
    let limits = "bytes_per_second: { rate: 1000kB, burst: 100kB }";
    let slowest = Duration::from_millis(1300);
    for pooling in POOLINGS {
        for level in ["tenant", "proxy"] {
            let proxy = limited(level, pooling, limits).await;
            let mut wire = proxy.raw(&tenant("t00")).await;
            let mut other = proxy.raw(&tenant("t01")).await;
            let began = Instant::now();
            wire.send(&query(sql)).await;
            if level == "tenant" {
                eventually("it is held back", async || {
                    metric(&proxy, "t00", |m| m.rate_pauses.get()) > 0
                })
                .await;
                let alone = Instant::now();
                for _ in 0..20 {
                    assert_eq!(other.column("SELECT 1").await, ["1"]);
                }
                assert!(alone.elapsed() < Duration::from_millis(1000), "{pooling}");
            }
            let frames = in_time("all of it comes", wire.until_ready()).await;
            assert_eq!(
                frames.iter().filter(|frame| frame.tag == b'D').count(),
                1500
            );
            let took = began.elapsed();
            assert!(took >= slowest, "{pooling} {level}: {took:?}");
            assert!(took < 5 * slowest, "{pooling} {level}: {took:?}");
            // Small results that add up are paid for by the statements after them.
            let began = Instant::now();
            for _ in 0..40 {
                wire.query("SELECT repeat('x', 10000)").await;
            }
            let took = began.elapsed();
            assert!(
                took >= Duration::from_millis(280),
                "{pooling} {level}: {took:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_in_a_slowed_result_leaves_nothing_behind() {
    for pooling in POOLINGS {
        let proxy = limited("tenant", pooling, "bytes_per_second: 64kB").await;
        let mut wire = proxy.raw(&tenant("t00")).await;
        wire.send(&query(
            "SELECT repeat('x', 1000) FROM generate_series(1, 100000)",
        ))
        .await;
        eventually("it is held back", async || {
            metric(&proxy, "t00", |m| m.rate_pauses.get()) > 0
        })
        .await;
        drop(wire);
        eventually("it has left", async || {
            let app = proxy.proxy.app();
            let active = app.seen_tenants().iter().map(|t| t.active()).sum::<usize>();
            app.clients().is_empty() && active == 0
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_puts_rates_in_force_for_clients_that_are_there() {
    for pooling in POOLINGS {
        let setup = Setup {
            pooling,
            ..Setup::default()
        };
        let free = setup.yaml(world().await);
        let limits = "limits: { statements_per_second: { rate: 10, burst: 1 } }";
        let slow = free.replace("t00: { ", &format!("t00: {{ {limits}, "));
        let proxy = Running::start(&free);
        let mut wire = proxy.raw(&tenant("t00")).await;
        for (yaml, is_slow) in [(&free, false), (&slow, true), (&free, false)] {
            proxy.reload(yaml);
            wire.query("SELECT 1").await;
            let began = Instant::now();
            for _ in 0..8 {
                assert_eq!(wire.column("SELECT 1").await, ["1"]);
            }
            let took = began.elapsed();
            assert_eq!(
                took >= Duration::from_millis(700),
                is_slow,
                "{pooling} {took:?}"
            );
        }
    }
}
