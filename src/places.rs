//! Places for connections. Clients that have proved who they are and sockets that have not are
//! counted apart, so that who says nothing keeps nobody out, and the tenants together never take
//! the console's.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Who has a place now.
#[derive(Debug, Default)]
pub struct Places {
    sockets: AtomicUsize,
    tenants: AtomicUsize,
    console: AtomicUsize,
    strangers: Mutex<Strangers>,
}

/// Sockets whose client has not proved who it is, the oldest first.
#[derive(Debug, Default)]
struct Strangers {
    waiting: BTreeMap<u64, Arc<Notify>>,
    next: u64,
}

/// Whose place it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Socket,
    Tenant,
    Console,
}

/// A place, until dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    kind: Kind,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.of(self.kind).fetch_sub(1, Relaxed);
    }
}

impl Places {
    fn of(&self, kind: Kind) -> &AtomicUsize {
        match kind {
            Kind::Socket => &self.sockets,
            Kind::Tenant => &self.tenants,
            Kind::Console => &self.console,
        }
    }

    fn strangers(&self) -> MutexGuard<'_, Strangers> {
        self.strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub fn taken(&self, kind: Kind) -> usize {
        self.of(kind).load(Relaxed)
    }

    /// A place of this kind, of which there are `most`.
    pub fn take(self: &Arc<Self>, kind: Kind, most: usize) -> Option<Place> {
        let before = self.of(kind).fetch_add(1, Relaxed);
        let place = Place {
            places: self.clone(),
            kind,
        };
        (before < most).then_some(place)
    }

    /// Sockets whose client has not proved who it is.
    pub fn strangers_now(&self) -> usize {
        self.strangers().waiting.len()
    }

    /// Somebody comes who has not proved who it is. Of these there are `most`: one more, and the
    /// one that has taken longest must go.
    pub fn greet(self: &Arc<Self>, most: usize) -> Stranger {
        let must_go = Arc::new(Notify::new());
        let mut strangers = self.strangers();
        let number = strangers.next;
        strangers.next += 1;
        strangers.waiting.insert(number, must_go.clone());
        while strangers.waiting.len() > most.max(1) {
            if let Some((_, oldest)) = strangers.waiting.pop_first() {
                oldest.notify_one();
            }
        }
        drop(strangers);
        Stranger {
            places: self.clone(),
            number,
            must_go,
        }
    }
}

/// A socket whose client has not proved who it is, until dropped.
#[derive(Debug)]
pub struct Stranger {
    places: Arc<Places>,
    number: u64,
    must_go: Arc<Notify>,
}

impl Stranger {
    /// Ready when others need its place more.
    ///
    /// Cancel safe.
    pub async fn must_go(&self) {
        self.must_go.notified().await;
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.places.strangers().waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_kind_has_its_own_places() {
        let places = Arc::new(Places::default());
        let tenants: Vec<_> = (0..3).map(|_| places.take(Kind::Tenant, 2)).collect();
        assert_eq!(tenants.iter().flatten().count(), 2);
        assert!(places.take(Kind::Console, 1).is_some());
        assert_eq!(places.taken(Kind::Tenant), 2);
        drop(tenants);
        assert_eq!(places.taken(Kind::Tenant), 0);
        assert_eq!(places.taken(Kind::Console), 0);
    }

    #[tokio::test]
    async fn of_those_that_take_too_long_the_first_goes() {
        let places = Arc::new(Places::default());
        let goes = async |stranger: &Stranger| {
            let moment = Duration::from_millis(20);
            crate::timer::timeout(moment, stranger.must_go())
                .await
                .is_ok()
        };
        let first = places.greet(2);
        let second = places.greet(2);
        assert!(!goes(&first).await);
        let third = places.greet(2);
        assert!(goes(&first).await && !goes(&second).await && !goes(&third).await);
        drop(second);
        let fourth = places.greet(2);
        assert!(!goes(&third).await && !goes(&fourth).await);
        assert_eq!(places.strangers_now(), 2);
    }
}
