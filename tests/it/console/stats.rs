//! `SHOW STATS` means what PgBouncer's does.

use std::time::Duration;

use super::{Console, number, setup, text};
use crate::harness::{Running, Setup, eventually, tenant, world};
use crate::wire::{bind, close, describe, execute, parse, query, sync};

async fn start(setup: Setup) -> Running {
    Running::start(&setup.yaml_for(world().await, &[tenant("t00")]))
}

/// Two clients of one tenant with one server connection, or in session pooling with one each: what
/// they send, and what Parses of theirs, Parses at servers, and Binds that comes to.
#[tokio::test(flavor = "multi_thread")]
async fn statements_with_names_are_counted() {
    let prepare = |name: &str| [parse(name, "SELECT 1"), describe(b'S', name), sync()].concat();
    let bound = |name: &str| [bind("", name, &[]), execute("", 0)].concat();
    let run = |name: &str| [bound(name), sync()].concat();
    for (pooling, pool_size, expected, assignments) in [
        ("transaction", 1, [3, 1, 4], 8),
        ("session", 2, [3, 3, 4], 2),
    ] {
        let proxy = start(Setup {
            pooling,
            pool_size,
            ..setup()
        })
        .await;
        let (mut one, mut other) = (
            proxy.raw(&tenant("t00")).await,
            proxy.raw(&tenant("t00")).await,
        );
        for batch in [
            prepare("one"),
            run("one"),
            // What has no name does not count, nor what is no Parse or Bind.
            [parse("", "SELECT 2"), bound(""), sync()].concat(),
            query("SELECT 3"),
            [close(b'S', "one"), parse("one", "SELECT 1"), sync()].concat(),
        ] {
            one.send(&batch).await;
            one.until_ready().await;
        }
        for batch in [
            prepare("other"),
            run("other"),
            [bound("other"), bound("other"), sync()].concat(),
        ] {
            other.send(&batch).await;
            other.until_ready().await;
        }
        let mut console = Console::open(&proxy).await;
        let row = console.row("SHOW STATS", "database", "t00").await;
        let counts = [
            "total_client_parse_count",
            "total_server_parse_count",
            "total_bind_count",
        ];
        let counts = counts.map(|column| number(&row, column));
        assert_eq!(counts, expected, "{pooling}");
        assert_eq!(number(&row, "total_query_count"), 8, "{pooling}");
        let assigned = number(&row, "total_server_assignment_count");
        assert_eq!(assigned, assignments, "{pooling}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_queries_is_not_that_of_transactions_and_averages_are_of_the_last_periods() {
    let sections = format!("{}\nmetrics: {{ period: 10s }}", setup().sections);
    let proxy = start(Setup {
        sections,
        ..setup()
    })
    .await;
    let mut client = proxy.raw(&tenant("t00")).await;
    client.query("BEGIN").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    for _ in 0..100 {
        client.query("SELECT pg_sleep(0.002)").await;
    }
    client.query("COMMIT").await;
    let mut console = Console::open(&proxy).await;
    let row = console.row("SHOW STATS", "database", "t00").await;
    let (in_queries, in_all) = (
        number(&row, "total_query_time"),
        number(&row, "total_xact_time"),
    );
    assert!(in_queries >= 200_000, "{row:?}");
    assert!(in_all >= in_queries + 199_000, "{row:?}");
    assert_eq!(number(&row, "avg_query_time"), in_queries / 102);
    assert_eq!(number(&row, "avg_xact_time"), in_all);
    assert!(number(&row, "avg_query_count") > 0, "{row:?}");
    let median = number(&row, "p50_query_time");
    assert!((1600..20_000).contains(&median), "{row:?}");
    let totals = console.row("SHOW TOTALS", "name", "avg_query_time").await;
    assert_eq!(number(&totals, "value"), in_queries / 102);

    console.say("SET stats_period = 1").await;
    eventually("the periods have passed", async || {
        let row = console.row("SHOW STATS", "database", "t00").await;
        number(&row, "avg_query_time") == 0
    })
    .await;
    let row = console.row("SHOW STATS", "database", "t00").await;
    for column in ["avg_query_count", "avg_recv", "avg_xact_time"] {
        assert_eq!(number(&row, column), 0, "{column}");
    }
    assert_eq!(row["p50_query_time"], None);
    assert_eq!(number(&row, "total_query_time"), in_queries, "totals stay");
    let period = console.row("SHOW CONFIG", "key", "metrics.period").await;
    assert_eq!(
        (text(&period, "value"), text(&period, "default")),
        ("1s", "1m")
    );
}
