//! The periods over which averages and percentiles are told (`metrics.period`): as in PgBouncer,
//! from the beginning of the last whole one until now.

use std::sync::{MutexGuard, PoisonError};
use std::time::Instant;

use super::App;

/// When the last whole period began, and the one at hand. Until one is over, both are when the
/// process did.
#[derive(Debug, Clone, Copy)]
pub struct Periods {
    pub older: Instant,
    pub newer: Instant,
}

impl Periods {
    pub(super) fn from(started: Instant) -> Self {
        Self {
            older: started,
            newer: started,
        }
    }
}

impl App {
    /// While this is held, no period ends: so long do the numbers of all tenants belong together.
    pub fn periods(&self) -> MutexGuard<'_, Periods> {
        self.periods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A period is over.
    pub fn end_period(&self, now: Instant) {
        let mut periods = self.periods();
        periods.older = periods.newer;
        periods.newer = now;
        for tenant in &self.tenants {
            tenant.metrics.end_period();
        }
    }
}
