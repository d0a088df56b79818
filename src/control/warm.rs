//! Keeps the server connections that pools have at least (`pool.min`), so that who comes first need
//! not wait for a login.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::app::App;
use crate::backend::instance::Pool;
use crate::timer;

/// How often is looked whether any are missing.
const LOOK: Duration = Duration::from_secs(1);

/// Watches until the proxy is gone or stops.
pub async fn watch(app: Weak<App>) {
    // Nothing else holds a pool without connections and clients: what it knows of its server would
    // be lost with it.
    let mut pools: Vec<Arc<Pool>> = Vec::new();
    loop {
        let Some(app) = app.upgrade().filter(|app| !app.is_draining()) else {
            return;
        };
        let now = Instant::now();
        let before = std::mem::replace(&mut pools, app.pools_to_keep_warm());
        drop(app);
        // They are paused now, or the config says so no more: that does not tell a pool that nobody
        // asks for.
        for pool in before {
            if !pools.iter().any(|other| Arc::ptr_eq(other, &pool)) {
                pool.keep_no_more();
            }
        }
        for pool in &pools {
            pool.keep_warm(now);
        }
        timer::sleep(LOOK).await;
    }
}
