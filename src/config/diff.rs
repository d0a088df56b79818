//! What changes from one configuration to the next: the plan of a reload, without carrying it out.

use std::collections::HashSet;

use super::{Config, Listen, PoolKey, Route, Server, Tenant};
use crate::id::{PlacementName, ServerName, TenantId};

/// The differences of two configurations. Everything that is not named here keeps its pools,
/// connections and statistics. Lists are in a stable order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diff {
    pub servers_added: Vec<ServerName>,
    /// Their pools are in `pools_removed`, unless no tenant used them.
    pub servers_removed: Vec<ServerName>,
    /// Address or TLS changed: connections that exist are to the wrong place or made under the
    /// wrong rules, and their pools must be emptied.
    pub servers_changed: Vec<ServerName>,
    /// `max_connections` changed: connections stay, the budget is another.
    pub servers_resized: Vec<ServerName>,
    /// Login or database of the health check changed: no pool is concerned.
    pub servers_admin_changed: Vec<ServerName>,
    /// Key or lifetime of the seal changed: tenants stay, what is sealed from now on is sealed with
    /// it.
    pub servers_seal_changed: Vec<ServerName>,
    /// Pools that no tenant uses any more. A new password of a login makes a new pool and removes
    /// the old one.
    pub pools_removed: Vec<PoolKey>,
    /// Size of pools or limit of clients changed: connections stay. That a placement is new, gone
    /// or spread otherwise shows in its tenants.
    pub placements_resized: Vec<PlacementName>,
    pub tenants_added: Vec<TenantId>,
    /// Their clients must go.
    pub tenants_removed: Vec<TenantId>,
    /// Placement, pool, context or pooling changed: clients must go where the new route leads.
    pub tenants_moved: Vec<TenantId>,
    /// Who may log in changed, or with what. Clients that have logged in may no longer be allowed.
    pub tenants_users_changed: Vec<TenantId>,
    /// Limits changed: they hold for the next client or checkout.
    pub tenants_limits_changed: Vec<TenantId>,
    /// The listening addresses are the same, and certificate, key or `required` of one is not:
    /// holds for the next client.
    pub listen_tls_changed: bool,
    /// Settings that a running process does not take over: `listen`, `http`, `workers`, `io_uring`,
    /// `catalog`, `log.format` and `log.filter`.
    pub needs_restart: Vec<&'static str>,
}

impl Diff {
    /// Whether the two configurations route and serve alike.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Compares. Settings that are read afresh each time they are used (identify, timeouts, TCP
/// keepalives, limits of the proxy, users of the console, the slow log), or at each reload (audit),
/// are not listed.
pub fn diff(old: &Config, new: &Config) -> Diff {
    let mut diff = Diff {
        pools_removed: pools_removed(old, new),
        listen_tls_changed: listen_tls_changed(&old.listen, &new.listen),
        needs_restart: needs_restart(old, new),
        ..Diff::default()
    };
    servers(old, new, &mut diff);
    placements(old, new, &mut diff);
    tenants(old, new, &mut diff);
    diff
}

fn servers(old: &Config, new: &Config, diff: &mut Diff) {
    let gone = old
        .servers
        .keys()
        .filter(|name| !new.servers.contains_key(*name));
    diff.servers_removed.extend(gone.cloned());
    for (name, server) in &new.servers {
        let Some(before) = old.servers.get(name) else {
            diff.servers_added.push(name.clone());
            continue;
        };
        let login = |server: &Server| (server.tls.clone(), server.require_auth);
        if before.address != server.address || login(before) != login(server) {
            diff.servers_changed.push(name.clone());
        }
        if limits(before) != limits(server) {
            diff.servers_resized.push(name.clone());
        }
        if admin(before) != admin(server) {
            diff.servers_admin_changed.push(name.clone());
        }
        if before.seal != server.seal {
            diff.servers_seal_changed.push(name.clone());
        }
    }
}

fn limits(server: &Server) -> impl PartialEq {
    (
        server.max_connections,
        server.max_clients,
        server.max_waiting,
        server.rates,
    )
}

fn admin(server: &Server) -> impl PartialEq {
    (&server.admin, &server.admin_database)
}

fn pools_removed(old: &Config, new: &Config) -> Vec<PoolKey> {
    let pools = |config: &'_ Config| -> HashSet<PoolKey> {
        config
            .logins()
            .map(|tenant| PoolKey::clone(&tenant.route.pool))
            .collect()
    };
    let mut removed: Vec<PoolKey> = pools(old).difference(&pools(new)).cloned().collect();
    removed.sort_by(|a, b| order(a).cmp(&order(b)));
    removed
}

fn order(pool: &PoolKey) -> impl Ord {
    (
        &pool.server,
        &pool.database,
        &pool.login.user,
        &pool.startup,
    )
}

fn placements(old: &Config, new: &Config, diff: &mut Diff) {
    for (name, placement) in &new.placements {
        let Some(before) = old.placements.get(name) else {
            continue;
        };
        if before.pool != placement.pool
            || before.reuse != placement.reuse
            || before.tolerate != placement.tolerate
            || before.max_clients != placement.max_clients
            || before.max_active != placement.max_active
            || before.max_waiting != placement.max_waiting
            || before.rates != placement.rates
        {
            diff.placements_resized.push(name.clone());
        }
    }
}

fn tenants(old: &Config, new: &Config, diff: &mut Diff) {
    let gone = old.tenants.values().map(|tenant| &tenant.id);
    let gone = gone.filter(|id| !new.tenants.contains_key(id.as_str()));
    diff.tenants_removed.extend(gone.cloned());
    for tenant in new.tenants.values() {
        match old.tenants.get(tenant.id.as_str()) {
            None => diff.tenants_added.push(tenant.id.clone()),
            Some(before) => tenant_changes(before, tenant, diff),
        }
    }
    for list in [
        &mut diff.tenants_added,
        &mut diff.tenants_removed,
        &mut diff.tenants_moved,
        &mut diff.tenants_users_changed,
        &mut diff.tenants_limits_changed,
    ] {
        list.sort();
    }
}

/// What changes for some tenants, where nothing else does.
pub fn of_tenants(old: &Config, new: &Config, ids: &HashSet<TenantId>) -> Diff {
    let mut diff = Diff::default();
    for id in ids {
        let [old, new] = [old, new].map(|config| config.tenants.get(id.as_str()));
        match (old, new) {
            (None, Some(_)) => diff.tenants_added.push(id.clone()),
            (Some(_), None) => diff.tenants_removed.push(id.clone()),
            (Some(old), Some(new)) => tenant_changes(old, new, &mut diff),
            (None, None) => {}
        }
    }
    diff
}

fn tenant_changes(old: &Tenant, new: &Tenant, diff: &mut Diff) {
    if !same_route(&old.route, &new.route) {
        diff.tenants_moved.push(new.id.clone());
    }
    if old.users != new.users {
        diff.tenants_users_changed.push(new.id.clone());
    }
    if old.terms.limits != new.terms.limits || old.route.pool_min != new.route.pool_min {
        diff.tenants_limits_changed.push(new.id.clone());
    }
}

/// Not the whole placement: its size, and how many tenants it has, change without moving anybody.
fn same_route(old: &Route, new: &Route) -> bool {
    old.placement.name == new.placement.name
        && old.placement.tier == new.placement.tier
        && old.pool == new.pool
        && old.schema == new.schema
        && old.posture() == new.posture()
        && old.same_context(new)
        && old.pooling == new.pooling
}

fn same_sockets(old: &[Listen], new: &[Listen]) -> bool {
    let socket = |listen: &Listen| (listen.address, listen.tls.is_some());
    old.iter().map(socket).eq(new.iter().map(socket))
}

fn listen_tls_changed(old: &[Listen], new: &[Listen]) -> bool {
    same_sockets(old, new) && old != new
}

fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let changed = [
        ("listen", !same_sockets(&old.listen, &new.listen)),
        ("http", old.http != new.http),
        ("workers", old.workers != new.workers),
        ("io_uring", old.io_uring != new.io_uring),
        ("catalog", old.catalog != new.catalog),
        ("log.format", old.log.format != new.log.format),
        ("log.filter", old.log.filter != new.log.filter),
    ];
    changed
        .into_iter()
        .filter_map(|(name, changed)| changed.then_some(name))
        .collect()
}

#[cfg(test)]
mod tests;
