//! The variables that the row level security policies of a database read: whoever sets one decides
//! which rows it sees.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// For how long the answer of a server is taken to be true.
const FRESH: Duration = Duration::from_secs(60);

/// What is known of one pool's database.
#[derive(Debug, Default)]
pub struct PolicyVariables {
    /// The server is to be asked again, as soon as a connection changes hands.
    is_stale: AtomicBool,
    known: Mutex<Option<Known>>,
}

#[derive(Debug)]
struct Known {
    /// In lower case. None: the server would not say.
    names: Option<BTreeSet<Box<str>>>,
    since: Instant,
}

/// Whether policies read a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadByPolicies {
    Yes,
    No,
    /// The server would not say.
    Unknown,
}

impl PolicyVariables {
    fn known(&self) -> MutexGuard<'_, Option<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the answer is out of date. False where nobody has asked yet.
    pub fn is_stale(&self) -> bool {
        self.is_stale.load(Ordering::Relaxed)
    }

    /// Whether a server is to be asked before a client is served.
    pub fn must_ask(&self) -> bool {
        self.is_stale() || self.known().is_none()
    }

    /// Takes over the names that the server said. None: it would not say; what it said before still
    /// counts.
    pub fn learn(&self, names: Option<&[String]>, now: Instant) {
        let mut known = self.known();
        let names = names.map(|names| names.iter().map(|name| name.as_str().into()).collect());
        let before = known.take().and_then(|before| before.names);
        *known = Some(Known {
            names: names.or(before),
            since: now,
        });
        self.is_stale.store(false, Ordering::Relaxed);
    }

    /// To be called from time to time: what was said too long ago is asked for again.
    pub fn expire(&self, now: Instant) {
        let known = self.known();
        if let Some(known) = &*known
            && now.saturating_duration_since(known.since) > FRESH
        {
            self.is_stale.store(true, Ordering::Relaxed);
        }
    }

    /// Whether policies read this variable. `name` is in lower case.
    pub fn reads(&self, name: &str) -> ReadByPolicies {
        let known = self.known();
        match known.as_ref().and_then(|known| known.names.as_ref()) {
            Some(names) if names.contains(name) => ReadByPolicies::Yes,
            Some(_) => ReadByPolicies::No,
            None => ReadByPolicies::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_counts_until_something_else_is() {
        let (policies, now) = (PolicyVariables::default(), Instant::now());
        assert!(policies.must_ask() && !policies.is_stale());
        assert_eq!(policies.reads("app.a"), ReadByPolicies::Unknown);
        policies.learn(None, now);
        assert!(!policies.must_ask());
        assert_eq!(policies.reads("app.a"), ReadByPolicies::Unknown);
        policies.learn(Some(&["app.a".to_owned()]), now);
        assert_eq!(policies.reads("app.a"), ReadByPolicies::Yes);
        assert_eq!(policies.reads("app.b"), ReadByPolicies::No);
        policies.expire(now + FRESH);
        assert!(!policies.is_stale());
        policies.expire(now + FRESH * 2);
        assert!(policies.is_stale() && policies.must_ask());
        policies.learn(None, now + FRESH * 2);
        assert_eq!(policies.reads("app.a"), ReadByPolicies::Yes);
        policies.learn(Some(&[]), now + FRESH * 2);
        assert_eq!(policies.reads("app.a"), ReadByPolicies::No);
    }
}
