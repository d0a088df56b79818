//! How fast clients may go.

use std::ops::RangeInclusive;

use super::Resolver;
use crate::config::outline::At;
use crate::config::units::{Count, RateFile, Size};
use crate::config::{Rate, Rates};

/// More than any server answers.
const STATEMENTS: RangeInclusive<u64> = 1..=10_000_000;

/// What is read of a server at once is sent at once (`protocol::buffer::CHUNK`): at less than this,
/// each read would be paid for over seconds. The most is what a `Size` can be.
const BYTES: RangeInclusive<u64> = 64 << 10..=1 << 40;

impl Resolver<'_, '_> {
    pub(super) fn rates(
        &mut self,
        limits: &At<'_>,
        statements: Option<RateFile<Count>>,
        bytes: Option<RateFile<Size>>,
    ) -> Rates {
        let statements = statements.map(|file| {
            let at = limits.key("statements_per_second");
            let file = (file.rate.map(|n| n.0), file.burst.map(|n| n.0));
            self.rate(&at, file, STATEMENTS, "must be from 1 to 10000000")
        });
        let bytes = bytes.map(|file| {
            let at = limits.key("bytes_per_second");
            let file = (file.rate.map(|n| n.0), file.burst.map(|n| n.0));
            self.rate(&at, file, BYTES, "must be at least 64kB")
        });
        Rates {
            statements: statements.flatten(),
            bytes: bytes.flatten(),
        }
    }

    fn rate(
        &mut self,
        at: &At<'_>,
        (rate, burst): (Option<u64>, Option<u64>),
        within: RangeInclusive<u64>,
        otherwise: &str,
    ) -> Option<Rate> {
        // A rate without a burst is given in one of two forms; its mistakes are told of the whole.
        let rate_at = at.key("rate");
        let rate_at = if burst.is_some() { &rate_at } else { at };
        let Some(per_second) = rate else {
            self.mistakes.add(&at.key("rate"), "is required");
            return None;
        };
        if !within.contains(&per_second) {
            self.mistakes.add(rate_at, otherwise);
            return None;
        }
        let burst = burst.unwrap_or(per_second);
        if !within.contains(&burst) {
            self.mistakes.add(&at.key("burst"), otherwise);
            return None;
        }
        Some(Rate { per_second, burst })
    }
}
