//! A tenant whose services live in several places: the login's database, or the application, names
//! the service.

use tokio_postgres::SimpleQueryMessage;

use crate::harness::{Running, SECRET, Setup, connect};
use crate::wire::{Wire, errors};

const WHERE: &str = "SELECT current_database() || ' ' || current_setting('app.tenant_id', true)";

async fn proxy() -> Running {
    let login = format!("login: {{ user: app, password: {SECRET} }}");
    Setup {
        placements: format!(
            "meta: {{ tier: pool, server: shared, database: app, {login}, posture: guarded, \
               context: {{ app.tenant_id: \"{{tenant}}\", app.meta: \"1\" }} }}\n\
             files: {{ tier: pool, server: shared, database: postgres, {login}, \
               context: {{ app.tenant_id: \"{{tenant}}\" }} }}"
        ),
        tenants: "corp: { placements: { core: meta, records: files }, users: { app: { password: corp } } }".into(),
        sections: "admin: { users: { root: { password: root } } }
applications:
  desk:
    users: { desk: { password: desk-secret } }
    tenants: all
    service: core
    home: meta
    choose: { variables: [app.tenant_id] }
  vault:
    users: { vault: { password: vault-secret } }
    tenants: [corp]
    service: records
    choose: { variables: [app.tenant_id] }"
            .into(),
        ..Setup::default()
    }
    .start()
    .await
}

async fn log_in(proxy: &Running, pairs: &[(&str, &str)], password: &str) -> Result<Wire, String> {
    let mut wire = Wire::tcp(proxy.address).await;
    let logged_in = wire.log_in(pairs, password).await;
    logged_in.map(|_| wire).map_err(|error| error.sqlstate())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_names_the_service_of_a_tenants_own_login() {
    let proxy = proxy().await;
    for (database, expected) in [
        ("core", Ok("app corp")),
        ("records", Ok("postgres corp")),
        ("postgres", Ok("postgres corp")),
        ("app", Ok("app corp")),
        ("corp", Err("3D000")),
        ("other", Err("3D000")),
    ] {
        let pairs = [("user", "app.corp"), ("database", database)];
        let found = match log_in(&proxy, &pairs, "corp").await {
            Ok(mut wire) => Ok(wire.column(WHERE).await.concat()),
            Err(state) => Err(state),
        };
        assert_eq!(found.as_deref().map_err(|e| &**e), expected, "{database}");
    }
    let wrong = log_in(
        &proxy,
        &[("user", "app.corp"), ("database", "core")],
        "wrong",
    )
    .await;
    assert_eq!(wrong.err().as_deref(), Some("28P01"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_works_in_its_service() {
    let proxy = proxy().await;
    let mut desk = log_in(&proxy, &[("user", "desk")], "desk-secret")
        .await
        .expect("logs in");
    let mut vault = log_in(&proxy, &[("user", "vault")], "vault-secret")
        .await
        .expect("logs in");
    for wire in [&mut desk, &mut vault] {
        wire.query("SET app.tenant_id = 'corp'").await;
    }
    assert_eq!(desk.column(WHERE).await, ["app corp"]);
    assert_eq!(vault.column(WHERE).await, ["postgres corp"]);
    assert_eq!(
        errors(&vault.query("SET app.tenant_id = 't05'").await),
        ["42501"]
    );
    desk.query("SET app.tenant_id = 't05'").await;
    assert_eq!(
        desk.column(WHERE).await,
        ["app t05"],
        "a tenant with one place"
    );

    // Each service is served, paused and counted by itself.
    let dsn = format!("postgresql://root:root@{}/pgtenant", proxy.address);
    let console = connect(&dsn.parse().expect("a DSN"))
        .await
        .expect("the console");
    let say = async |sql: &str| {
        let messages = console.simple_query(sql).await.expect(sql);
        let first = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
            _ => None,
        };
        messages.iter().filter_map(first).collect::<Vec<_>>()
    };
    say("PAUSE TENANT \"corp:records\"").await;
    desk.query("SET app.tenant_id = 'corp'").await;
    assert_eq!(desk.column(WHERE).await, ["app corp"]);
    let shown = say("SHOW TENANTS").await;
    for id in ["corp:core", "corp:records"] {
        assert!(shown.iter().any(|shown| shown == id), "{shown:?}");
    }
    say("RESUME TENANT \"corp:records\"").await;
    let mut own = log_in(
        &proxy,
        &[("user", "app.corp"), ("database", "records")],
        "corp",
    )
    .await
    .expect("logs in");
    assert_eq!(own.column(WHERE).await, ["postgres corp"]);
}
