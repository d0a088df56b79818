//! `SHOW DATABASES` and `SHOW USERS`: tenants, as what PgBouncer's operators know.

use std::collections::HashMap;

use super::{Column, Row, View, int, row, text};
use crate::config::ServerAddress;
use crate::id::TenantId;

pub const COLUMNS: &[Column] = &[
    text("name"),
    text("host"),
    int("port"),
    text("database"),
    text("force_user"),
    int("pool_size"),
    int("min_pool_size"),
    int("reserve_pool_size"),
    int("server_lifetime"),
    text("pool_mode"),
    text("load_balance_hosts"),
    int("max_connections"),
    int("current_connections"),
    int("max_client_connections"),
    int("current_client_connections"),
    int("paused"),
    int("disabled"),
    text("placement"),
    text("server"),
    // Of old versions of PgBouncer, for exporters of their time. As text that is padded, since
    // exporters of newer versions have one metric for both and would count it twice: they pass over
    // what is no number to them.
    text("reserve_pool"),
];

/// A row for each tenant, whose name is what commands name. 0 for what has no limit, as in
/// PgBouncer.
pub fn rows(view: &View) -> Vec<Row> {
    let mut tenants: Vec<_> = view.config.tenants.values().collect();
    tenants.sort_by(|a, b| a.id.cmp(&b.id));
    let lifetime = view.config.timeouts.server_lifetime.as_secs();
    let row = |tenant: &std::sync::Arc<crate::config::Tenant>| {
        let route = &tenant.route;
        let server = view.config.servers.get(&route.pool.server);
        let (host, port) = match server.map(|server| &server.address) {
            Some(ServerAddress::Tcp { host, port }) => (Some(host.clone()), Some(*port)),
            Some(ServerAddress::Unix { path }) => (Some(path.display().to_string()), None),
            None => (None, None),
        };
        let seen = view.seen.get(&tenant.id);
        let pool = route.pool_limits();
        row![
            tenant.id.as_str(),
            host,
            port,
            route.pool.database.as_str(),
            route.pool.login.user.as_str(),
            pool.size,
            pool.min,
            pool.reserve,
            lifetime,
            route.pooling.to_string(),
            None::<String>,
            tenant.terms.limits.active.unwrap_or(0),
            seen.map_or(0, |tenant| tenant.active()),
            tenant.terms.limits.clients.unwrap_or(0),
            seen.map_or(0, |tenant| tenant.clients()),
            u64::from(view.app.paused_by(&tenant.id).is_some()),
            u64::from(view.app.disabled_by(&tenant.id).is_some()),
            route.placement.name.as_str(),
            route.pool.server.as_str(),
            format!("{:9}", pool.reserve),
        ]
    };
    tenants.into_iter().map(row).collect()
}

pub const USERS_COLUMNS: &[Column] = &[
    text("name"),
    text("pool_size"),
    text("reserve_pool_size"),
    text("pool_mode"),
    int("max_user_connections"),
    int("current_connections"),
    int("max_user_client_connections"),
    int("current_client_connections"),
    text("tenant"),
];

/// A row for each user of each tenant: users have no limits of their own.
pub fn users(view: &View) -> Vec<Row> {
    let mut counts: HashMap<(&TenantId, &str), (u64, u64)> = HashMap::new();
    let clients = view.app.clients();
    for client in &clients {
        let count = counts.entry((&client.tenant, &client.user)).or_default();
        count.0 += 1;
        count.1 += u64::from(client.fence().is_some());
    }
    let mut tenants: Vec<_> = view.config.tenants.values().collect();
    tenants.sort_by(|a, b| a.id.cmp(&b.id));
    let mut rows = Vec::new();
    for tenant in tenants {
        for user in tenant.users.keys() {
            let count = counts.get(&(&tenant.id, user));
            let (clients, servers) = count.copied().unwrap_or_default();
            rows.push(row![
                user,
                "",
                "",
                None::<String>,
                0_u64,
                servers,
                0_u64,
                clients,
                tenant.id.as_str(),
            ]);
        }
    }
    rows
}
