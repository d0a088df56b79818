//! How fast statements and bytes may go: what has been used of a rate, shared by all clients that
//! it is for.
//!
//! A meter keeps one time for each rate: until when all that was used is paid for (the theoretical
//! arrival time of GCRA, the algorithm of ATM's traffic contracts). Each use moves it on by what
//! the use costs at the rate. Who finds it no further ahead than the burst lasts goes on at once;
//! others wait until it is. A statement is paid for before it is sent; bytes are known only once
//! they have come, so they are a debt that the next statement, or the rest of the same result,
//! waits for.
//!
//! Nothing here waits: callers are told for how long they have to.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::config::{Rate, Rates};

const NANOSECONDS: u64 = 1_000_000_000;

/// What is used of a rate. Times are nanoseconds since the meter was made.
#[derive(Debug, Default)]
struct Bucket {
    /// 0: there is no limit.
    per_second: AtomicU64,
    burst: AtomicU64,
    /// Until when all is paid for.
    paid_until: AtomicU64,
}

impl Bucket {
    /// True: what is owed is forgiven, since the rate is another.
    fn set(&self, rate: Option<Rate>) -> bool {
        let Rate { per_second, burst } = rate.unwrap_or(Rate {
            per_second: 0,
            burst: 0,
        });
        let was = self.per_second.swap(per_second, Relaxed);
        self.burst.store(burst, Relaxed);
        if was != per_second {
            // A debt is a time, and means something else at another rate.
            self.paid_until.store(0, Relaxed);
        }
        was != per_second
    }

    fn is_on(&self) -> bool {
        self.per_second.load(Relaxed) > 0
    }

    /// The rate. None: there is no limit. It may change between two looks: who asks looks once.
    fn rate(&self) -> Option<Rate> {
        let per_second = self.per_second.load(Relaxed);
        let burst = self.burst.load(Relaxed);
        (per_second > 0).then_some(Rate { per_second, burst })
    }

    /// Uses `count`, and returns for how long to wait until that is within the rate; `Err` with
    /// that time, and nothing is used, if it is longer than `patience`.
    fn take(&self, count: u64, now: u64, patience: u64) -> Result<u64, u64> {
        let Some(rate) = self.rate() else {
            return Ok(0);
        };
        let cost = time(count, rate.per_second);
        let mut before = self.paid_until.load(Relaxed);
        loop {
            let paid_until = before.max(now).saturating_add(cost);
            let wait = wait(rate, paid_until, now);
            if wait > patience {
                return Err(wait);
            }
            let exchanged =
                (self.paid_until).compare_exchange_weak(before, paid_until, Relaxed, Relaxed);
            match exchanged {
                Ok(_) => return Ok(wait),
                Err(other) => before = other,
            }
        }
    }

    /// For how long to wait until what was used is within the rate.
    fn owed(&self, now: u64) -> u64 {
        let paid_until = self.paid_until.load(Relaxed);
        self.rate().map_or(0, |rate| wait(rate, paid_until, now))
    }
}

/// How long `count` take, in nanoseconds.
fn time(count: u64, per_second: u64) -> u64 {
    let time = u128::from(count) * u128::from(NANOSECONDS) / u128::from(per_second.max(1));
    u64::try_from(time).unwrap_or(u64::MAX)
}

/// For how long a debt that is paid at `paid_until` keeps somebody waiting.
fn wait(rate: Rate, paid_until: u64, now: u64) -> u64 {
    let free = now.saturating_add(time(rate.burst, rate.per_second));
    paid_until.saturating_sub(free)
}

/// Which rate keeps a statement waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Statements,
    Bytes,
}

/// A statement that would have to wait too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Over {
    pub unit: Unit,
    pub per_second: u64,
    pub wait: Duration,
}

/// What is used of the rates of a tenant, a placement, a server or the whole proxy.
#[derive(Debug)]
pub struct Meter {
    made: Instant,
    statements: Bucket,
    bytes: Bucket,
    /// How often one of the rates has changed.
    changes: AtomicU64,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            made: Instant::now(),
            statements: Bucket::default(),
            bytes: Bucket::default(),
            changes: AtomicU64::new(0),
        }
    }
}

impl Meter {
    /// Takes over the rates of the config. What is owed stays owed, unless its rate has changed.
    pub fn set(&self, rates: Rates) {
        let has_changed = self.statements.set(rates.statements) | self.bytes.set(rates.bytes);
        self.changes.fetch_add(u64::from(has_changed), Relaxed);
    }

    /// How often one of the rates has changed. Who was told before to wait need not any more: it is
    /// to ask again.
    pub fn changes(&self) -> u64 {
        self.changes.load(Relaxed)
    }

    /// Whether anything is limited.
    pub fn is_on(&self) -> bool {
        self.statements.is_on() || self.bytes.is_on()
    }

    fn nanoseconds(&self, now: Instant) -> u64 {
        nanoseconds(now.saturating_duration_since(self.made))
    }

    /// Pays for a statement. Returns for how long it has to wait, for its own sake and for that of
    /// the bytes that were sent before.
    ///
    /// # Errors
    /// It would have to wait for longer than `patience`, and is not paid for.
    pub fn take_statement(&self, now: Instant, patience: Duration) -> Result<Duration, Over> {
        let (now, patience) = (self.nanoseconds(now), nanoseconds(patience));
        let over = |unit, bucket: &Bucket, wait| Over {
            unit,
            per_second: bucket.per_second.load(Relaxed),
            wait: Duration::from_nanos(wait),
        };
        let owed = self.bytes.owed(now);
        if owed > patience {
            return Err(over(Unit::Bytes, &self.bytes, owed));
        }
        let wait = self.statements.take(1, now, patience);
        let wait = wait.map_err(|wait| over(Unit::Statements, &self.statements, wait))?;
        Ok(Duration::from_nanos(wait.max(owed)))
    }

    /// Takes note of bytes that were sent, and returns for how long to send no more.
    pub fn owe_bytes(&self, bytes: usize, now: Instant) -> Duration {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let wait = self.bytes.take(bytes, self.nanoseconds(now), u64::MAX);
        Duration::from_nanos(wait.unwrap_or_else(|wait| wait))
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn meter(statements: Option<(u64, u64)>, bytes: Option<(u64, u64)>) -> Meter {
        let rate = |(per_second, burst)| Rate { per_second, burst };
        let meter = Meter::default();
        meter.set(Rates {
            statements: statements.map(rate),
            bytes: bytes.map(rate),
        });
        meter
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_burst_goes_at_once_and_what_follows_goes_at_the_rate() {
        let meter = meter(Some((100, 5)), None);
        let now = meter.made + ms(70);
        let waits: Vec<_> = (0..8)
            .map(|_| meter.take_statement(now, PATIENCE))
            .collect();
        let expected = [0, 0, 0, 0, 0, 10, 20, 30].map(|n| Ok(ms(n)));
        assert_eq!(waits, expected);
        // What is not used for a while is saved up as far as the burst, and no further.
        let later = now + Duration::from_secs(60);
        let waits: Vec<_> = (0..7)
            .map(|_| meter.take_statement(later, PATIENCE))
            .collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 10, 20].map(|n| Ok(ms(n))));
    }

    /// Whatever the rate and whoever comes when: over any time no more goes than the rate and a
    /// burst.
    #[test]
    fn never_more_than_rate_and_burst_go_in_any_time() {
        let mut random = 1_u64;
        let mut draw = |most: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (random >> 33) % most
        };
        for _ in 0..50 {
            let (rate, burst) = (1 + draw(5000), 1 + draw(200));
            let meter = meter(Some((rate, burst)), None);
            let mut now = 0;
            let mut went: Vec<u64> = Vec::new();
            for _ in 0..2000 {
                now += draw(2 * NANOSECONDS / rate);
                let at = meter.made + Duration::from_nanos(now);
                if let Ok(wait) = meter.take_statement(at, Duration::from_secs(1)) {
                    went.push(now + nanoseconds(wait));
                }
            }
            for (i, from) in went.iter().enumerate().step_by(37) {
                for (count, to) in went[i..].iter().enumerate().step_by(11) {
                    let most = burst + (to - from) * rate / NANOSECONDS + 1;
                    assert!(count as u64 <= most, "{rate} {burst}: {count} > {most}");
                }
            }
        }
    }

    #[test]
    fn who_would_wait_too_long_is_told_so_and_uses_nothing() {
        let meter = meter(Some((10, 1)), None);
        let now = meter.made;
        assert_eq!(meter.take_statement(now, PATIENCE), Ok(ms(0)));
        assert_eq!(meter.take_statement(now, PATIENCE), Ok(ms(100)));
        let over = Over {
            unit: Unit::Statements,
            per_second: 10,
            wait: ms(200),
        };
        for _ in 0..3 {
            assert_eq!(meter.take_statement(now, ms(150)), Err(over));
        }
        assert_eq!(meter.take_statement(now + ms(50), ms(150)), Ok(ms(150)));
    }

    #[test]
    fn bytes_are_owed_after_they_went_and_paid_before_the_next_statement() {
        let meter = meter(Some((1000, 1000)), Some((100_000, 50_000)));
        let now = meter.made;
        assert_eq!(meter.owe_bytes(50_000, now), ms(0));
        assert_eq!(meter.take_statement(now, PATIENCE), Ok(ms(0)));
        assert_eq!(meter.owe_bytes(30_000, now), ms(300));
        assert_eq!(meter.take_statement(now + ms(100), PATIENCE), Ok(ms(200)));
        let over = Over {
            unit: Unit::Bytes,
            per_second: 100_000,
            wait: ms(200),
        };
        assert_eq!(meter.take_statement(now + ms(100), ms(199)), Err(over));
        assert_eq!(meter.take_statement(now + ms(300), PATIENCE), Ok(ms(0)));
    }

    #[test]
    fn a_changed_rate_forgives_what_is_owed_and_none_limits_nothing() {
        let meter = meter(Some((1, 1)), None);
        let now = meter.made;
        for _ in 0..2 {
            assert!(meter.take_statement(now, PATIENCE).is_ok());
        }
        assert!(meter.take_statement(now, ms(1)).is_err());
        meter.set(Rates {
            statements: Some(Rate {
                per_second: 2,
                burst: 1,
            }),
            bytes: None,
        });
        assert_eq!(meter.take_statement(now, ms(0)), Ok(ms(0)));
        meter.set(Rates::default());
        assert!(!meter.is_on());
        assert_eq!(meter.owe_bytes(usize::MAX, now), ms(0));
        assert_eq!(meter.take_statement(now, ms(0)), Ok(ms(0)));
    }

    /// A rate that comes and goes never makes a wait of what it costs at another.
    #[test]
    fn a_rate_that_changes_at_any_moment_makes_no_wait_longer_than_its_own() {
        let meter = meter(None, None);
        let rate = Some(Rate {
            per_second: 1_000_000,
            burst: 1,
        });
        let longest = std::thread::scope(|scope| {
            let changes = scope.spawn(|| {
                for round in 0..200_000 {
                    let bytes = rate.filter(|_| round % 2 == 0);
                    meter.set(Rates {
                        statements: None,
                        bytes,
                    });
                }
            });
            let mut longest = Duration::ZERO;
            while !changes.is_finished() {
                longest = longest.max(meter.owe_bytes(1000, Instant::now()));
                meter.bytes.paid_until.store(0, Relaxed);
            }
            longest
        });
        assert!(longest <= ms(10), "{longest:?}");
    }
}
