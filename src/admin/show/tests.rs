use super::*;
use crate::admin::testing::{CONFIG, app};

/// A cell of the table, found by what another column of its row holds.
fn cell<'a>(show: &Show, rows: &'a [Row], key: (&str, &str), column: &str) -> &'a Cell {
    let position = |name: &str| show.columns.iter().position(|c| c.name == name).unwrap();
    let row = rows
        .iter()
        .find(|row| row[position(key.0)] == Cell::from(key.1))
        .unwrap();
    &row[position(column)]
}

/// Tables that have no rows without clients.
const MAY_BE_EMPTY: [&str; 13] = [
    "CATALOG",
    "CLIENTS",
    "SOCKETS",
    "ACTIVE_SOCKETS",
    "FDS",
    "PREPARED_STATEMENTS",
    "DNS_HOSTS",
    "DNS_ZONES",
    "PEERS",
    "PEER_POOLS",
    "APPLICATIONS",
    "PAUSED",
    "DISABLED",
];

#[tokio::test]
async fn every_row_has_the_columns_of_its_table_and_no_secret() {
    let app = app(CONFIG, None);
    let tenant = app.config().tenants.values().next().unwrap().clone();
    app.tenant(&tenant.id);
    app.pool(&tenant.route).unwrap();
    for show in &SHOWS {
        let rows = show.rows(&app);
        assert!(
            !rows.is_empty() || MAY_BE_EMPTY.contains(&show.name),
            "SHOW {}",
            show.name
        );
        for row in rows {
            assert_eq!(row.len(), show.columns.len(), "SHOW {}", show.name);
            for (cell, column) in row.iter().zip(show.columns) {
                let fits = match cell {
                    Cell::Null => true,
                    Cell::Int(_) => column.kind == ColumnKind::Int,
                    Cell::Text(text) => {
                        assert!(!text.contains("secret"), "SHOW {}: {text}", show.name);
                        column.kind == ColumnKind::Text
                    }
                };
                assert!(fits, "SHOW {} {}: {cell:?}", show.name, column.name);
            }
        }
    }
}

#[tokio::test]
async fn all_tenants_are_listed_by_name_whether_they_were_seen_or_not() {
    let app = app(CONFIG, None);
    let show = find("tenants").unwrap();
    let rows = show.rows(&app);
    let names: Vec<_> = rows.iter().map(|row| row[0].clone()).collect();
    assert_eq!(names, [Cell::from("acme"), Cell::from("globex")]);
    for (tenant, column, expected) in [
        ("acme", "schema", Cell::from("t_acme")),
        ("acme", "pool_mode", Cell::from("session")),
        ("acme", "users", Cell::from("app,report")),
        ("acme", "max_clients", Cell::Int(7500)),
        ("globex", "schema", Cell::Null),
        ("globex", "tier", Cell::from("pool")),
        ("globex", "server", Cell::from("main")),
        ("globex", "max_clients", Cell::Int(3)),
    ] {
        let found = cell(show, &rows, ("tenant", tenant), column);
        assert_eq!(*found, expected, "{tenant} {column}");
    }
    assert_eq!(app.seen_tenants().len(), 0);
}

#[tokio::test]
async fn settings_are_shown_with_their_defaults_and_without_secrets() {
    let app = app(&format!("timeouts: {{ login: 90s }}\n{CONFIG}"), None);
    let show = find("CONFIG").unwrap();
    let rows = show.rows(&app);
    for (key, column, expected) in [
        ("timeouts.login", "value", "90s"),
        ("timeouts.login", "default", "15s"),
        ("timeouts.login", "changeable", "yes"),
        ("timeouts.server_idle", "value", "10m"),
        ("workers", "changeable", "no"),
        ("listen[0].address", "default", "127.0.0.1:6432"),
        ("admin.users.admin", "value", "***"),
        ("servers.main.admin.password", "value", "***"),
        ("servers.main.max_connections", "value", "5"),
        ("placements.own.tier", "value", "schema"),
        ("identify.by", "value", "user,database"),
        ("max_client_conn", "value", "10000"),
        ("client_login_timeout", "value", "90"),
        ("query_wait_timeout", "default", "10"),
    ] {
        let found = cell(show, &rows, ("key", key), column);
        assert_eq!(*found, Cell::from(expected), "{key} {column}");
    }
}

#[tokio::test]
async fn only_servers_with_an_admin_login_have_a_row_of_health() {
    let app = app(CONFIG, None);
    let show = find("SERVERS").unwrap();
    let rows = show.rows(&app);
    assert_eq!(rows.len(), 1);
    let state = cell(show, &rows, ("server", "main"), "state");
    assert_eq!(*state, Cell::from("unknown"));
}

#[tokio::test]
async fn percentiles_are_of_the_last_periods_and_null_without_any() {
    let app = app(CONFIG, None);
    let id = crate::id::TenantId::new("globex").unwrap();
    let tenant = app.tenant(&id);
    let show = find("STATS").unwrap();
    let told = |column: &str| {
        let rows = show.rows(&app);
        match cell(show, &rows, ("tenant", "globex"), column) {
            Cell::Int(told) => Some(*told),
            _ => None,
        }
    };
    assert_eq!(told("p50_query_time"), None);
    for ms in 1..=100 {
        let time = std::time::Duration::from_millis(ms);
        tenant.metrics.statements.record(time);
        tenant.metrics.transactions.record(2 * time);
    }
    for _ in 0..2 {
        for (column, exact) in [
            ("p50_query_time", 50_000),
            ("p95_query_time", 95_000),
            ("p99_query_time", 99_000),
            ("p50_xact_time", 100_000),
            ("p99_xact_time", 198_000),
        ] {
            let told = told(column).unwrap();
            assert!((told - exact).abs() * 5 <= exact, "{column}: {told}");
        }
        assert_eq!(told("p99_wait_time"), None);
        app.end_period(std::time::Instant::now());
    }
    assert_eq!(told("p99_query_time"), None);
}
