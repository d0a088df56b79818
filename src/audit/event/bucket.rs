//! How many events of whom are written: a token bucket for each tenant, and what it had no room
//! for.

use std::time::Instant;

use dashmap::DashMap;

use super::{Dropped, Kind};
use crate::config;
use crate::id::TenantId;

/// Whose events share a bucket. There are as many as tenants at most: those that a login makes up
/// are one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// None: of nobody in particular.
    pub tenant: Option<TenantId>,
    pub stage: Stage,
}

/// How far somebody has come who causes an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Anybody who can connect.
    Door,
    Cancel,
    /// A client that knows a password.
    Session,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    /// When there were so many.
    at: Instant,
    dropped: Dropped,
}

impl Bucket {
    fn new(settings: &config::Audit, now: Instant) -> Self {
        Self {
            tokens: f64::from(settings.burst),
            at: now,
            dropped: Dropped::default(),
        }
    }

    fn take(&mut self, settings: &config::Audit, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        let more = passed * f64::from(settings.rate) / 60.0;
        self.tokens = (self.tokens + more).min(f64::from(settings.burst));
        self.at = now;
        let has = self.tokens >= 1.0;
        if has {
            self.tokens -= 1.0;
        }
        has
    }
}

#[derive(Debug, Default)]
pub struct Buckets(DashMap<Key, Bucket>);

impl Buckets {
    /// Some: the event may be written, and says that these were not before it.
    pub fn admit(
        &self,
        key: &Key,
        kind: Kind,
        settings: &config::Audit,
        now: Instant,
    ) -> Option<Dropped> {
        let mut bucket = self
            .0
            .entry(key.clone())
            .or_insert_with(|| Bucket::new(settings, now));
        if bucket.take(settings, now) {
            return Some(std::mem::take(&mut bucket.dropped));
        }
        bucket.dropped.add(kind);
        None
    }

    /// What was admitted and not written after all.
    pub fn note_dropped(&self, key: Key, dropped: &Dropped, settings: &config::Audit) {
        let bucket = self.0.entry(key);
        let mut bucket = bucket.or_insert_with(|| Bucket::new(settings, Instant::now()));
        bucket.dropped.add_all(dropped);
    }

    /// What was dropped of those that have room again, or of all.
    pub fn take_dropped(
        &self,
        settings: &config::Audit,
        now: Instant,
        all: bool,
    ) -> Vec<(Key, Dropped)> {
        let with_dropped = self
            .0
            .iter_mut()
            .filter(|bucket| !bucket.dropped.is_empty());
        with_dropped
            .filter_map(|mut bucket| {
                let take = all || bucket.take(settings, now);
                take.then(|| (bucket.key().clone(), std::mem::take(&mut bucket.dropped)))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn settings(rate: u32, burst: u32) -> config::Audit {
        config::Audit {
            file: None,
            max_size: 1 << 20,
            keep: 1,
            rate,
            burst,
            access: config::Access::Nothing,
        }
    }

    fn key(tenant: Option<&str>, stage: Stage) -> Key {
        Key {
            tenant: tenant.map(|tenant| TenantId::new(tenant).unwrap()),
            stage,
        }
    }

    #[test]
    fn after_a_burst_a_tenant_has_its_rate_and_what_is_dropped_is_told_next() {
        let buckets = Buckets::default();
        let settings = settings(60, 3);
        let key = key(Some("a"), Stage::Session);
        let start = Instant::now();
        let admit = |kind, ms| {
            let dropped = buckets.admit(&key, kind, &settings, start + Duration::from_millis(ms));
            dropped.map(|dropped| serde_json::to_string(&dropped).unwrap())
        };
        for _ in 0..3 {
            assert_eq!(admit(Kind::Guard, 0).as_deref(), Some("{}"));
        }
        assert_eq!(admit(Kind::Guard, 0), None);
        assert_eq!(admit(Kind::Rls, 900), None);
        assert_eq!(admit(Kind::Rls, 999), None);
        let told = admit(Kind::Guard, 1000);
        assert_eq!(told.as_deref(), Some(r#"{"guard":1,"rls":2}"#));
        assert_eq!(admit(Kind::Guard, 1001), None);
        // However long it was quiet, it has no more than a burst.
        for _ in 0..3 {
            assert!(admit(Kind::Guard, 3_600_000).is_some());
        }
        assert_eq!(admit(Kind::Guard, 3_600_000), None);
    }

    #[test]
    fn nobody_empties_the_bucket_of_another() {
        let buckets = Buckets::default();
        let settings = settings(1, 1);
        let now = Instant::now();
        for (tenant, stage) in [
            (Some("a"), Stage::Session),
            (Some("a"), Stage::Door),
            (Some("b"), Stage::Session),
            (None, Stage::Door),
            (None, Stage::Cancel),
        ] {
            let key = key(tenant, stage);
            let admit = || buckets.admit(&key, Kind::Password, &settings, now);
            assert!(admit().is_some(), "{key:?}");
            assert!(admit().is_none(), "{key:?}");
        }
        assert_eq!(buckets.0.len(), 5);
    }

    #[test]
    fn what_was_dropped_is_told_without_another_event_when_there_is_room() {
        let buckets = Buckets::default();
        let settings = settings(60, 1);
        let now = Instant::now();
        let (a, b) = (key(Some("a"), Stage::Session), key(None, Stage::Cancel));
        for key in [&a, &b] {
            buckets.admit(key, Kind::Guard, &settings, now);
        }
        buckets.admit(&a, Kind::Guard, &settings, now);
        assert!(buckets.take_dropped(&settings, now, false).is_empty());
        let later = now + Duration::from_secs(1);
        let told = buckets.take_dropped(&settings, later, false);
        assert_eq!(told.len(), 1);
        assert_eq!((&told[0].0, told[0].1.total()), (&a, 1));
        let mut lost = Dropped::default();
        lost.add(Kind::CancelKey);
        buckets.note_dropped(b.clone(), &lost, &settings);
        let told = buckets.take_dropped(&settings, now, true);
        assert_eq!(told, [(b, lost)]);
        assert!(buckets.take_dropped(&settings, now, true).is_empty());
    }
}
