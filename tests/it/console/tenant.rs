//! `SHOW TENANT`: one tenant on one page.

use std::collections::BTreeMap;

use super::{ADMIN, Console, setup, text};
use crate::harness::{Setup, eventually, tenant};
use crate::wire::{bind, execute, parse, sync};

/// Values and limits by section and key.
async fn page(console: &mut Console, name: &str) -> BTreeMap<String, (Option<String>, String)> {
    let rows = console.rows(&format!("SHOW TENANT {name}")).await;
    let mut page = BTreeMap::new();
    for row in rows {
        let key = format!("{} {}", text(&row, "section"), text(&row, "key"));
        let cells = (row["value"].clone(), text(&row, "limit").to_owned());
        assert!(page.insert(key.clone(), cells).is_none(), "{key} twice");
    }
    page
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_on_one_page_with_what_it_does_and_how_near_its_limits_are() {
    let proxy = Setup {
        sections: ADMIN.into(),
        about: |name| match name {
            "t00" => {
                "limits: { clients: 7, active: 3, statements_per_second: 1000 }, \
                 timeouts: { idle_in_transaction: 90s }"
            }
            _ => "",
        },
        ..setup()
    }
    .start()
    .await;
    let mut console = Console::open_as(proxy.address, "viewer", "pgbouncer").await;
    // Before anybody uses it, it has a page, too.
    let before = page(&mut console, "t00").await;
    assert_eq!(before["state state"].0.as_deref(), Some("active"));
    assert_eq!(before["totals queries"].0.as_deref(), Some("0"));
    assert_eq!(before["times p50_query_time"].0, None);

    let mut client = proxy.raw(&tenant("t00")).await;
    let mut other = proxy.raw(&tenant("t00")).await;
    for sql in [
        "SELECT 1 / 0",
        "SELECT nothing",
        "SELECT 1 / 0",
        "SELECT generate_series(1, 9)",
    ] {
        client.query(sql).await;
    }
    let failing = [
        parse("", "SELECT 1 / 0"),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ]
    .concat();
    other.send(&failing).await;
    other.until_ready().await;
    client.query("BEGIN").await;
    let page_now = page(&mut console, "t00").await;
    for (key, value, limit) in [
        ("tenant tenant", "t00", ""),
        ("tenant placement", "free", ""),
        ("tenant tier", "pool", ""),
        ("tenant server", "shared", ""),
        ("tenant database", "app", ""),
        ("tenant posture", "plain", ""),
        ("tenant context app.tenant_id", "t00", ""),
        ("state state", "active", ""),
        ("state source", "file", ""),
        ("clients logged_in", "2", "7"),
        ("clients waiting", "0", ""),
        ("clients idle", "1", ""),
        ("clients idle in transaction", "1", ""),
        ("clients longest_idle_in_transaction_seconds", "0", "90"),
        ("connections in_use", "1", "3"),
        ("totals logins", "2", ""),
        ("totals queries", "6", ""),
        ("totals statements", "2", ""),
        ("totals rows", "9", ""),
        ("errors all", "4", ""),
        ("errors 22012", "3", ""),
        ("errors 42703", "1", ""),
    ] {
        let expected = (Some(value.to_owned()), limit.to_owned());
        assert_eq!(page_now[key], expected, "{key}");
    }
    assert_eq!(page_now["rates avg_query_count"].1, "1000");
    assert_eq!(page_now["connections of_pool"].1, "8");
    assert!(page_now["times p95_query_time"].0.is_some());
    assert_eq!(page_now["doctor inspected"].0, None, "nobody has looked");

    let mut admin = Console::open(&proxy).await;
    admin.say("DISABLE t00").await;
    admin.begin("PAUSE PLACEMENT free").await;
    eventually("it is paused", async || {
        let page = page(&mut console, "t00").await;
        page["state state"].0.as_deref() == Some("active, paused, disabled")
            && page["state paused_by"].0.as_deref() == Some("placement free")
    })
    .await;
    client.query("COMMIT").await;
    admin.end().await;

    for unknown in ["nobody", "\"t00:x\"", "\"\""] {
        let refusal = console.refusal(&format!("SHOW TENANT {unknown}")).await;
        assert_eq!(refusal.0, "42704", "{unknown}");
    }
    assert_eq!(console.refusal("SHOW TENANT").await.0, "08P01");
}
