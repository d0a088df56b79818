//! `SHOW POOLS`.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::{Column, Row, View, int, row, text, wait};
use crate::config::PoolKey;

pub const COLUMNS: &[Column] = &[
    text("database"),
    text("user"),
    int("cl_active"),
    int("cl_waiting"),
    int("sv_active"),
    int("sv_idle"),
    int("maxwait"),
    int("maxwait_us"),
    text("pool_mode"),
    text("server"),
    text("placement"),
    text("tier"),
    int("pool_size"),
    text("startup"),
];

/// What the config and the clients say of a pool.
#[derive(Default)]
struct Use<'a> {
    modes: BTreeSet<String>,
    placements: BTreeSet<&'a str>,
    tiers: BTreeSet<String>,
    active: usize,
    waiting: usize,
    longest: Duration,
}

/// Pools that exist; one comes into being with its first client. Clients count where their tenant
/// lives now. `sv_active` holds connections that are being made or closed, too.
pub fn rows(view: &View) -> Vec<Row> {
    let uses = uses(view);
    let nobody = Use::default();
    let mut pools: Vec<_> = view
        .app
        .instances()
        .values()
        .flat_map(|instance| instance.pools())
        .collect();
    pools.sort_by_cached_key(|(pool, _)| {
        let key = &pool.key;
        let place = (key.server.clone(), key.database.clone());
        (place, key.login.user.clone(), pool.id)
    });
    pools
        .into_iter()
        .map(|(pool, counts)| {
            let key = &pool.key;
            let used = uses.get(key).unwrap_or(&nobody);
            let (maxwait, maxwait_us) = wait(used.longest);
            let startup: Vec<_> = key
                .startup
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            row![
                key.database.as_str(),
                key.login.user.as_str(),
                used.active,
                counts.waiting.max(used.waiting),
                counts.total.saturating_sub(counts.idle),
                counts.idle,
                maxwait,
                maxwait_us,
                join(&used.modes),
                key.server.as_str(),
                join(&used.placements),
                join(&used.tiers),
                pool.limits().size,
                startup.join(" "),
            ]
        })
        .collect()
}

fn join<T: AsRef<str>>(parts: &BTreeSet<T>) -> String {
    let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
    parts.join(",")
}

fn uses<'a>(view: &'a View) -> HashMap<&'a PoolKey, Use<'a>> {
    let mut uses: HashMap<&PoolKey, Use> = HashMap::new();
    for tenant in view.config.tenants.values() {
        let route = &tenant.route;
        let used = uses.entry(&route.pool).or_default();
        used.modes.insert(route.pooling.to_string());
        used.placements.insert(route.placement.name.as_str());
        used.tiers.insert(route.placement.tier.to_string());
    }
    for client in view.app.clients() {
        let tenant = view.config.tenants.get(&client.tenant);
        let Some(used) = tenant.and_then(|tenant| uses.get_mut(&tenant.route.pool)) else {
            continue;
        };
        match client.waiting() {
            Some(waited) => {
                used.waiting += 1;
                used.longest = used.longest.max(waited);
            }
            None => used.active += 1,
        }
    }
    uses
}
