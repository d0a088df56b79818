//! What the health check knows of a server: written by the control plane, read by `/readyz`, the
//! admin console and the metrics. Pools do not look at it: a client finds out for itself.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// Not asked yet, or the server has no `admin` login.
    #[default]
    Unknown,
    Up,
    Down,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// The result of the last check.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    pub state: State,
    /// When the state became this one.
    pub since: Option<SystemTime>,
    /// What is wrong: why it is down, or what the check could not find out.
    pub problem: Option<String>,
    /// `server_version`, as it was last seen.
    pub version: Option<String>,
    /// Connections that the server has for others than superusers, as it was last seen.
    pub capacity: Option<i64>,
}

#[derive(Debug, Default)]
pub struct Health(ArcSwap<Report>);

impl Health {
    pub fn report(&self) -> Arc<Report> {
        self.0.load_full()
    }

    pub fn set(&self, report: Report) {
        self.0.store(Arc::new(report));
    }
}
