//! What is told of the times that a tenant's statements take.

use std::time::Duration;

use crate::harness::{Running, Setup, tenant, world};
use crate::wire::{bind, execute, flush, message, parse, query, sync};

fn ms(us: u64) -> u64 {
    us / 1000
}

/// Of a tenant: statements and transactions, how many and how many milliseconds.
fn times(proxy: &Running, name: &str) -> [(u64, u64); 2] {
    let id = pgtenant::id::TenantId::new(name).expect("a name");
    let metrics = &proxy.proxy.app().tenant(&id).metrics;
    [&metrics.statements, &metrics.transactions].map(|times| (times.count(), ms(times.sum_us())))
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_are_timed_without_what_their_client_lets_pass_between_them() {
    let pause = Duration::from_millis(150);
    let slow = "SELECT pg_sleep(0.1)";
    let batch = |text: &str| [parse("", text), bind("", "", &[]), execute("", 0), sync()].concat();
    for pooling in ["transaction", "session"] {
        let setup = Setup {
            pooling,
            ..Setup::default()
        };
        let tenants = [tenant("t00"), tenant("t01"), tenant("t02"), tenant("t03")];
        let proxy = Running::start(&setup.yaml_for(world().await, &tenants));

        // A transaction of four statements, two of them slow, with pauses.
        let mut client = proxy.raw(&tenants[0]).await;
        client.query("BEGIN").await;
        tokio::time::sleep(pause).await;
        client.query(slow).await;
        tokio::time::sleep(pause).await;
        client.send(&batch(slow)).await;
        client.until_ready().await;
        tokio::time::sleep(pause).await;
        client.query("COMMIT").await;
        let [statements, transactions] = times(&proxy, "t00");
        assert_eq!((statements.0, transactions.0), (4, 1), "{pooling}");
        assert!(
            (199..400).contains(&statements.1),
            "{pooling}: {statements:?}"
        );
        assert!(transactions.1 >= 649, "{pooling}: {transactions:?}");

        // A pipeline: each has its own time, and none that of another.
        let mut client = proxy.raw(&tenants[1]).await;
        client
            .send(&[batch(slow), query("SELECT 1"), batch(slow)].concat())
            .await;
        for _ in 0..3 {
            client.until_ready().await;
        }
        let [statements, transactions] = times(&proxy, "t01");
        assert_eq!((statements.0, transactions.0), (3, 3), "{pooling}");
        assert!(
            (199..300).contains(&statements.1),
            "{pooling}: {statements:?}"
        );
        assert!(
            (199..300).contains(&transactions.1),
            "{pooling}: {transactions:?}"
        );

        // Half a message is not sent, and what fails has a time, too.
        let mut client = proxy.raw(&tenants[2]).await;
        let whole = query("SELECT 1 / (pg_sleep(0.1) IS NULL)::int");
        let (start, rest) = whole.split_at(whole.len() / 2);
        client.send(start).await;
        tokio::time::sleep(pause).await;
        client.send(rest).await;
        client.until_ready().await;
        let [statements, _] = times(&proxy, "t02");
        assert_eq!(statements.0, 1, "{pooling}");
        if pooling == "transaction" {
            assert!(
                (99..200).contains(&statements.1),
                "{pooling}: {statements:?}"
            );
        }

        // A Flush of nothing begins nothing.
        let mut client = proxy.raw(&tenants[3]).await;
        client.query("BEGIN").await;
        client
            .send(&[flush(), message(b'd', &[b"stray"])].concat())
            .await;
        tokio::time::sleep(pause).await;
        client.query("COMMIT").await;
        let [statements, _] = times(&proxy, "t03");
        assert_eq!(statements.0, 2, "{pooling}");
        assert!(statements.1 < 100, "{pooling}: {statements:?}");
    }
}
