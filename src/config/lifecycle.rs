//! In which state a tenant is: what its logins and clients get.

use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// What becomes of a tenant's clients.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Its place is being made: logins are refused.
    Provisioning,
    #[default]
    Active,
    /// It is served by a role of the server that may only read.
    ReadOnly,
    /// Its clients log in and wait.
    Paused,
    /// Logins are refused, idle clients are ended, open transactions are after a grace.
    Suspended,
    /// Logins are refused, its clients are ended at the end of their transactions.
    Draining,
    /// There is no such tenant any more, as far as clients can tell.
    Deleted,
}

impl State {
    pub const ALL: [Self; 7] = [
        Self::Provisioning,
        Self::Active,
        Self::ReadOnly,
        Self::Paused,
        Self::Suspended,
        Self::Draining,
        Self::Deleted,
    ];

    /// As the config and the catalog write it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Provisioning => "provisioning",
            Self::Active => "active",
            Self::ReadOnly => "read_only",
            Self::Paused => "paused",
            Self::Suspended => "suspended",
            Self::Draining => "draining",
            Self::Deleted => "deleted",
        }
    }

    /// Of that word.
    pub fn read(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.word() == word)
    }

    /// Whether new clients, and new transactions of applications, are let in; they may have to
    /// wait.
    pub fn lets_in(self) -> bool {
        matches!(self, Self::Active | Self::ReadOnly | Self::Paused)
    }

    /// Whether its open transactions are ended after the grace of `timeouts.revoked`.
    pub fn ends_transactions(self) -> bool {
        matches!(self, Self::Provisioning | Self::Suspended | Self::Deleted)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The state of a tenant, and what was said with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Lifecycle {
    /// As it was set; [`now`](Self::now) is what it is by now.
    pub state: State,
    /// Why, for whoever is refused.
    pub reason: Option<Box<str>>,
    /// When the state ends by itself, and the tenant is active.
    pub until: Option<SystemTime>,
    /// From then on it is suspended, whatever else it would be.
    pub expires: Option<SystemTime>,
}

impl Lifecycle {
    /// The state at a time.
    pub fn at(&self, now: SystemTime) -> State {
        if self.state == State::Deleted {
            return State::Deleted;
        }
        if self.has_expired(now) {
            return State::Suspended;
        }
        match self.until {
            Some(until) if until <= now => State::Active,
            _ => self.state,
        }
    }

    /// The state now.
    pub fn now(&self) -> State {
        // Most tenants have neither time, and then there is no clock to be read.
        match (self.until, self.expires) {
            (None, None) => self.state,
            _ => self.at(SystemTime::now()),
        }
    }

    /// Whether its time is over.
    pub fn has_expired(&self, now: SystemTime) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    /// The next times at which the state changes by itself.
    pub fn times(&self) -> impl Iterator<Item = SystemTime> {
        [self.until, self.expires].into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_state_ends_by_itself_and_a_tenant_expires() {
        let time = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let mut life = Lifecycle {
            state: State::Paused,
            reason: None,
            until: Some(time(10)),
            expires: Some(time(20)),
        };
        let states = |life: &Lifecycle| [9, 10, 19, 20].map(|at| life.at(time(at)).word());
        assert_eq!(states(&life), ["paused", "active", "active", "suspended"]);
        life.until = None;
        assert_eq!(states(&life), ["paused", "paused", "paused", "suspended"]);
        life.state = State::Deleted;
        assert_eq!(states(&life), ["deleted"; 4]);
    }

    #[test]
    fn a_state_is_read_by_its_word() {
        for state in State::ALL {
            assert_eq!(State::read(state.word()), Some(state));
        }
        assert_eq!(State::read("Active"), None);
    }
}
