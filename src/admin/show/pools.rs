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
    int("cl_active_cancel_req"),
    int("cl_waiting_cancel_req"),
    int("sv_active"),
    int("sv_active_cancel"),
    int("sv_being_canceled"),
    int("sv_idle"),
    int("sv_used"),
    int("sv_tested"),
    int("sv_login"),
    int("maxwait"),
    int("maxwait_us"),
    text("pool_mode"),
    text("load_balance_hosts"),
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
/// lives now. `sv_active` holds connections that are being made or closed, too; cancels are not
/// counted, and there are no connections that must be tested before they are used. Exporters tell
/// pools by `database` and `user`: `database` is the server's, with what else it takes to tell one
/// pool from another.
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
    let routes = view.config.logins().map(|t| &*t.route.pool);
    let names = Names::of(routes.chain(pools.iter().map(|(pool, _)| &pool.key)));
    pools
        .iter()
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
                names.name(key),
                key.login.user.as_str(),
                used.active,
                counts.waiting.max(used.waiting),
                0_u64,
                0_u64,
                counts.total.saturating_sub(counts.idle),
                0_u64,
                0_u64,
                counts.idle,
                0_u64,
                0_u64,
                0_u64,
                maxwait,
                maxwait_us,
                join(&used.modes),
                None::<String>,
                key.server.as_str(),
                join(&used.placements),
                join(&used.tiers),
                pool.limits().size,
                startup.join(" "),
            ]
        })
        .collect()
}

/// Parameters of a StartupMessage.
type Startup = [(String, String)];

/// What it takes to tell pools from each other by `database` and `user`.
struct Names<'a> {
    /// The servers, and the startup parameters, that there are with the same database and user.
    servers: HashMap<(&'a str, &'a str), BTreeSet<&'a str>>,
    startups: HashMap<(&'a str, &'a str, &'a str), BTreeSet<&'a Startup>>,
}

impl<'a> Names<'a> {
    fn of(keys: impl Iterator<Item = &'a PoolKey>) -> Self {
        let mut names = Self {
            servers: HashMap::new(),
            startups: HashMap::new(),
        };
        for key in keys {
            let (database, user) = (key.database.as_str(), key.login.user.as_str());
            let server = key.server.as_str();
            let servers = names.servers.entry((database, user)).or_default();
            servers.insert(server);
            let startups = names.startups.entry((database, user, server)).or_default();
            startups.insert(&key.startup);
        }
        names
    }

    /// `database`, or `database@server`, or `database@server:name=value` where that is not enough.
    fn name(&self, key: &PoolKey) -> String {
        let (database, user) = (key.database.as_str(), key.login.user.as_str());
        let server = key.server.as_str();
        let servers = self.servers.get(&(database, user));
        let startups = self.startups.get(&(database, user, server));
        let mut name = database.to_owned();
        if servers.is_some_and(|servers| servers.len() > 1) {
            name.push('@');
            name.push_str(server);
        }
        if startups.is_some_and(|startups| startups.len() > 1) {
            for (parameter, value) in &key.startup {
                name.push_str(&format!(":{parameter}={value}"));
            }
        }
        name
    }
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
        let tenant = view.config.login(client.tenant.as_str());
        let Some(used) = tenant.and_then(|tenant| uses.get_mut(&*tenant.route.pool)) else {
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
