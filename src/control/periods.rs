//! Ends the periods over which averages and percentiles are told.

use std::sync::Weak;
use std::time::{Duration, Instant};

use crate::app::App;
use crate::timer;

/// From one look to the next at most, so that a period that a reload made shorter is noticed.
const LOOK: Duration = Duration::from_secs(1);

/// Ends them until the proxy is gone or stops.
pub async fn watch(app: Weak<App>) {
    loop {
        let Some(app) = app.upgrade().filter(|app| !app.is_draining()) else {
            return;
        };
        let began = app.periods().newer;
        let left = app.config().stats_period.saturating_sub(began.elapsed());
        if left.is_zero() {
            app.end_period(Instant::now());
        }
        drop(app);
        timer::sleep(left.clamp(Duration::from_millis(1), LOOK)).await;
    }
}
