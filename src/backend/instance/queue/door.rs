//! Whether a pool may make new connections: not for a while after its server let none in.
//!
//! ```text
//!              let in                      time is over
//!   open ◄──────────────── ajar ◄──────────────────────── shut
//!     │                     │  one knocks, the others wait   ▲
//!     └──── not let in ─────┴────────── not let in ──────────┘
//! ```

use std::time::{Duration, Instant};

use rand::Rng;

use crate::error::Error;

/// How long it is shut after the first refusal; each further one doubles it.
const FIRST: Duration = Duration::from_millis(50);
const LAST: Duration = Duration::from_secs(1);
/// The same for a server that is full while the pool has connections there: clients are served by
/// those, and to be refused costs the server a fork.
const FIRST_OF_FULL: Duration = Duration::from_secs(1);
const LAST_OF_FULL: Duration = Duration::from_secs(16);
/// How long who knocks is waited for before another one does.
const KNOCK: Duration = Duration::from_secs(1);
/// How often it is looked whether somebody knocks, and how long nobody does before it is taken for
/// open.
const LOOK: Duration = Duration::from_millis(250);
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);
/// As long as clients wait, somebody knocks at least so often.
const IS_TRIED_WITHIN: Duration = Duration::from_secs(2);

/// Open, unless a server has let nobody in.
#[derive(Debug, Default)]
pub struct Door(Option<Box<Shut>>);

#[derive(Debug)]
struct Shut {
    until: Instant,
    /// In a row.
    refusals: u32,
    /// Why the last one was not let in.
    error: Error,
}

impl Door {
    /// Whether a connection may be tried.
    pub fn lets_in(&self) -> bool {
        let shut = self.0.as_ref();
        shut.is_none_or(|shut| Instant::now() >= shut.until)
    }

    /// A connection is tried. Unless the door is open, the others wait to hear of it.
    pub fn knock(&mut self) {
        if let Some(shut) = &mut self.0 {
            shut.until = Instant::now() + KNOCK;
        }
    }

    /// A connection was made. True: the door was not open.
    pub fn open(&mut self) -> bool {
        self.0.take().is_some()
    }

    /// The server let nobody in; `is_full`: it has no place for more than the pool has. True: it
    /// was open.
    pub fn shut(&mut self, error: Error, is_full: bool) -> bool {
        let (first, last) = match is_full {
            true => (FIRST_OF_FULL, LAST_OF_FULL),
            false => (FIRST, LAST),
        };
        let refusals = self.0.as_ref().map_or(0, |shut| shut.refusals);
        let pause = (first * 2_u32.saturating_pow(refusals.min(16))).min(last);
        // Those that were refused together do not come back together.
        let pause = pause.mul_f64(rand::rng().random_range(0.75..1.25));
        let shut = Box::new(Shut {
            until: Instant::now() + pause,
            refusals: refusals + 1,
            error,
        });
        self.0.replace(shut).is_none()
    }

    /// When it is to be looked at again whether somebody may knock. None: it is open.
    pub fn look(&mut self, now: Instant) -> Option<Duration> {
        let until = self.0.as_ref()?.until;
        if now.saturating_duration_since(until) > FORGOTTEN_AFTER {
            self.open();
            return None;
        }
        match until.saturating_duration_since(now) {
            Duration::ZERO => Some(LOOK),
            left => Some(left),
        }
    }

    /// Why it is not open.
    pub fn error(&self) -> Option<&Error> {
        self.0.as_ref().map(|shut| &shut.error)
    }

    /// Why nobody is let in, as was found out lately.
    pub fn trouble(&self, now: Instant) -> Option<&Error> {
        let shut = self.0.as_ref()?;
        (now < shut.until + IS_TRIED_WITHIN).then_some(&shut.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn refused() -> Error {
        Error::new(Kind::CannotConnectNow, "the database system is starting up")
    }

    #[test]
    fn it_stays_shut_longer_each_time_up_to_a_limit() {
        for (is_full, first, last) in [(false, FIRST, LAST), (true, FIRST_OF_FULL, LAST_OF_FULL)] {
            let mut door = Door::default();
            assert!(door.lets_in() && door.look(Instant::now()).is_none());
            let mut pauses = Vec::new();
            for refusals in 0..40 {
                assert_eq!(door.shut(refused(), is_full), refusals == 0);
                assert!(!door.lets_in());
                pauses.push(door.look(Instant::now()).unwrap());
            }
            assert!(pauses[0] <= first.mul_f64(1.25) && pauses[0] > first / 2);
            assert!(pauses.iter().all(|&pause| pause <= last.mul_f64(1.25)));
            assert!(pauses[39] > last / 2);
            assert!(door.open() && !door.open());
            assert!(door.lets_in() && door.error().is_none());
        }
    }

    #[test]
    fn what_nobody_wants_is_forgotten() {
        let mut door = Door::default();
        let now = Instant::now();
        door.shut(refused(), false);
        assert!(door.trouble(now).is_some());
        let later = now + Duration::from_secs(5);
        assert!(door.trouble(later).is_none() && door.error().is_some());
        assert_eq!(door.look(later), Some(LOOK));
        assert_eq!(door.look(now + 2 * FORGOTTEN_AFTER), None);
        assert!(door.error().is_none());
    }

    #[test]
    fn one_knocks_while_the_others_wait() {
        let mut door = Door::default();
        door.knock();
        assert!(door.lets_in());
        door.shut(refused(), false);
        std::thread::sleep(2 * FIRST);
        assert!(door.lets_in());
        door.knock();
        assert!(!door.lets_in());
    }
}
