//! Which pools have server connections before anybody asks for one.

use std::collections::HashSet;
use std::sync::Arc;

use super::App;
use super::halts::place;
use crate::backend::instance::Pool;

impl App {
    /// The pools that the config gives a minimum, without those that are paused as a whole.
    ///
    /// No reload comes between what the config says and what is found: a pool that nobody routes to
    /// is not made again.
    pub fn pools_to_keep_warm(&self) -> Vec<Arc<Pool>> {
        let _one = self.roster();
        let config = self.config();
        let mut placements = config.placements.values();
        if config.own_minimums == 0 && placements.all(|placement| placement.pool.min == 0) {
            return Vec::new();
        }
        let routes = config.tenants.values().map(|tenant| &tenant.route);
        let mut wanted = routes
            .filter(|route| route.pool_limits().min > 0 && !route.has_connections_of_their_own())
            .peekable();
        if wanted.peek().is_none() {
            return Vec::new();
        }
        let paused = self.wholly_paused(&config);
        let mut seen = HashSet::new();
        wanted
            .filter(|route| seen.insert(&route.pool) && !paused.contains(&place(&route.pool)))
            .filter_map(|route| self.pool(route).ok())
            .collect()
    }
}
