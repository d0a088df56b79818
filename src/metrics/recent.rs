//! How long things took lately: enough to tell percentiles of the last one or two periods.
//!
//! Two counters for each doubling of a time, from 1 µs to 71 minutes: what is told is off by a
//! fifth at most. There is one for each kind of time of each tenant that has had such times, so it
//! is small: 512 bytes.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

const BUCKETS: usize = 64;

/// Times, in microseconds, of the period at hand and of the one before.
#[derive(Debug)]
pub struct Recent {
    now: [AtomicU32; BUCKETS],
    before: [AtomicU32; BUCKETS],
}

impl Default for Recent {
    fn default() -> Self {
        Self {
            now: std::array::from_fn(|_| AtomicU32::new(0)),
            before: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }
}

impl Recent {
    pub(super) fn record(&self, us: u64) {
        self.now[bucket(us)].fetch_add(1, Relaxed);
    }

    /// A period is over. One caller at a time.
    pub(super) fn end_period(&self) {
        for (now, before) in self.now.iter().zip(&self.before) {
            before.store(now.swap(0, Relaxed), Relaxed);
        }
    }

    /// The times, in microseconds, that so many percent did not exceed. None: there were none.
    pub(super) fn percentiles<const N: usize>(&self, percent: [u64; N]) -> Option<[u64; N]> {
        let counts = self.now.iter().zip(&self.before);
        let counts = counts
            .map(|(now, before)| u64::from(now.load(Relaxed)) + u64::from(before.load(Relaxed)));
        let counts: Vec<u64> = counts.collect();
        let all: u64 = counts.iter().sum();
        (all > 0).then(|| {
            percent.map(|percent| {
                let mut left = (all * percent).div_ceil(100).max(1);
                let at = counts.iter().position(|count| {
                    left = left.saturating_sub(*count);
                    left == 0
                });
                middle(at.unwrap_or(BUCKETS - 1))
            })
        })
    }
}

/// The first two bits of a time that are not zero, and how many come behind them, say which bucket
/// is its.
fn bucket(us: u64) -> usize {
    let Some(octave) = us.checked_ilog2().filter(|octave| *octave > 0) else {
        return usize::from(us == 1);
    };
    let half = usize::from(us >> (octave - 1) & 1 == 1);
    (2 * octave as usize + half).min(BUCKETS - 1)
}

/// What is told of all times in a bucket: the number that is off from its first and its last by the
/// same share.
fn middle(bucket: usize) -> u64 {
    let first = |bucket: usize| match bucket {
        0 | 1 => bucket as u64,
        _ => (2 + bucket as u64 % 2) << (bucket / 2 - 1),
    };
    let (first, last) = (first(bucket), first(bucket + 1) - 1);
    match first + last {
        0 => 0,
        sum => first + (first * (last - first) + sum / 2) / sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_time_is_off_by_a_fifth_at_most() {
        // Each time up to 4 ms, and those beside each power of two and the halves between.
        let edges = (11..32).flat_map(|octave| [1 << octave, 3 << (octave - 1)]);
        let edges = edges.flat_map(|edge: u64| [edge - 1, edge, edge + 1]);
        let mut last = 0;
        for us in (0..4096).chain(edges) {
            let at = bucket(us);
            assert!(at >= last || us < 4096 + 2, "{us}");
            last = at;
            let told = middle(at);
            assert!(told.abs_diff(us) * 5 <= us, "{us} is told as {told}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_times_within_a_fifth() {
        let mut random = 1_u64;
        for count in [1_u64, 2, 3, 10, 99, 100, 101, 5000] {
            let recent = Recent::default();
            let mut times: Vec<u64> = (0..count)
                .map(|_| {
                    // Of all magnitudes alike (Knuth's MMIX generator).
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    (1 << ((random >> 33) % 31)) + (random >> 40) % 1000
                })
                .collect();
            times.iter().for_each(|us| recent.record(*us));
            times.sort_unstable();
            let percent = [1, 50, 95, 99, 100];
            let told = recent.percentiles(percent).unwrap();
            for (percent, told) in percent.into_iter().zip(told) {
                let rank = usize::try_from((count * percent).div_ceil(100)).unwrap();
                let exact = times[rank - 1];
                assert!(
                    told.abs_diff(exact) * 5 <= exact,
                    "p{percent} of {count}: {told}, not {exact}"
                );
            }
        }
    }

    #[test]
    fn what_was_before_the_last_period_does_not_count() {
        let recent = Recent::default();
        assert_eq!(recent.percentiles([50]), None);
        recent.record(3);
        recent.end_period();
        assert_eq!(recent.percentiles([50, 100]), Some([3, 3]));
        recent.record(1);
        assert_eq!(recent.percentiles([50, 100]), Some([1, 3]));
        recent.end_period();
        assert_eq!(recent.percentiles([50, 100]), Some([1, 1]));
        recent.end_period();
        assert_eq!(recent.percentiles([50]), None);
    }
}
