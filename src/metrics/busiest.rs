//! Which tenants have series of their own in `/metrics`: the busiest, so that a million tenants are
//! some thousand series. All others are summed up in one series, the rest.
//!
//! Busy is who has server time (of statements), of which half is forgotten every [`HALF_LIFE`].
//! Whoever is in the list stays until another is [`MUCH`] times as busy as the least busy one
//! there: each change ends some series and begins others, which costs Prometheus memory.
//!
//! No counter ever goes back, and an increase is told once:
//!
//! - a tenant's own series has its true totals since the start of the process, whenever it is
//!   there;
//! - the rest has what tenants did while they were not in the list. Who enters leaves there what is
//!   told of it by then, and who leaves brings along only what it does from then on. So a tenant
//!   that comes and goes makes no jump in any `rate()`, and the sum of all rates is the true one.
//!
//! What follows from that: the sum of all values has what a tenant did in the rest before it
//! entered twice. So has `increase()` over a time in which a tenant left and came back.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::TenantMetrics;
use super::numbers::Numbers;
use crate::id::TenantId;

/// After so long, server time counts half. Long enough that a fleet of tenants that are equally
/// busy does not change places with every scrape; a tenant that becomes as busy as all others
/// together is in the list at the next one.
const HALF_LIFE: Duration = Duration::from_secs(15 * 60);

/// So many times busier somebody must be who takes the place of another.
const MUCH: f64 = 2.0;

/// How busy one tenant is. Written by one look at a time.
#[derive(Debug, Default)]
pub(super) struct Busy {
    /// Server time that is in `score`, in microseconds.
    counted: AtomicU64,
    /// The bits of a number of microseconds.
    score: AtomicU64,
    /// It has been part of the rest.
    was_in_rest: AtomicBool,
}

impl Busy {
    /// `remains`: of what was counted at the last look.
    fn update(&self, time: u64, remains: f64) -> f64 {
        let new = time.saturating_sub(self.counted.swap(time, Relaxed));
        #[expect(clippy::cast_precision_loss, reason = "exact up to 285 years")]
        let score = f64::from_bits(self.score.load(Relaxed)) * remains + new as f64;
        self.score.store(score.to_bits(), Relaxed);
        score
    }
}

/// The tenants that have series of their own, and what keeps the rest from going back.
#[derive(Debug, Default)]
pub struct Busiest(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    looked: Option<Instant>,
    /// Who is in the list, with what was told of each last.
    list: HashMap<TenantId, Numbers>,
    /// What belongs to the rest beside the totals of those who are in it, modulo 2^64.
    offset: Numbers,
    /// What was told of the rest last.
    rest: Numbers,
}

/// What there is to tell at one moment.
#[derive(Debug)]
pub struct Look<'t, T> {
    /// By id.
    pub named: Vec<(&'t T, Numbers)>,
    pub others: Vec<&'t T>,
    /// What all others have done, in the rest. None: there is no rest, and never was.
    pub rest: Option<Numbers>,
}

/// A tenant that is looked at, and how busy it is.
struct Candidate<'t, T> {
    tenant: &'t T,
    id: &'t TenantId,
    metrics: &'t TenantMetrics,
    score: f64,
}

impl Busiest {
    /// Looks at all tenants, with series of their own for at most `most` of them.
    pub fn look<'t, T>(
        &self,
        most: usize,
        now: Instant,
        tenants: &'t [T],
        of: impl Fn(&'t T) -> (&'t TenantId, &'t TenantMetrics),
    ) -> Look<'t, T> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = state.looked.replace(now);
        let since = since.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        let remains = (-since.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2();
        let candidates = tenants.iter().map(|tenant| {
            let (id, metrics) = of(tenant);
            let score = metrics.busy.update(metrics.statements.sum_us(), remains);
            Candidate {
                tenant,
                id,
                metrics,
                score,
            }
        });
        let is_listed = |candidate: &Candidate<T>| state.list.contains_key(candidate.id);
        let (mut listed, mut others): (Vec<_>, Vec<_>) = candidates.partition(is_listed);
        choose(&mut listed, &mut others, most);
        state.tell(listed, others)
    }
}

/// Changes who is in the list, which has at most `most` places.
fn choose<'t, T>(
    listed: &mut Vec<Candidate<'t, T>>,
    others: &mut Vec<Candidate<'t, T>>,
    most: usize,
) {
    busiest_first(listed);
    others.extend(listed.drain(most.min(listed.len())..));
    // No more of the others can be wanted.
    if others.len() > most {
        let by_score = |a: &Candidate<T>, b: &Candidate<T>| b.score.total_cmp(&a.score);
        others.select_nth_unstable_by(most, by_score);
    }
    let wanted = most.min(others.len());
    busiest_first(&mut others[..wanted]);
    let free = wanted.min(most - listed.len());
    let places = listed.iter_mut().rev().zip(&mut others[free..wanted]);
    for (least, other) in places {
        if other.score <= MUCH * least.score {
            break;
        }
        std::mem::swap(least, other);
    }
    listed.extend(others.drain(..free));
}

/// Of those who are as busy, by id.
fn busiest_first<T>(candidates: &mut [Candidate<'_, T>]) {
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.id.cmp(b.id)));
}

impl State {
    fn tell<'t, T>(
        &mut self,
        mut listed: Vec<Candidate<'t, T>>,
        others: Vec<Candidate<'t, T>>,
    ) -> Look<'t, T> {
        listed.sort_by(|a, b| a.id.cmp(b.id));
        let mut list = HashMap::with_capacity(listed.len());
        let mut named = Vec::with_capacity(listed.len());
        for Candidate {
            tenant,
            id,
            metrics,
            ..
        } in listed
        {
            let numbers = Numbers::of(metrics);
            let is_new = self.list.remove(id).is_none();
            // Who was never in the rest has told nothing there.
            if is_new && metrics.busy.was_in_rest.load(Relaxed) {
                self.offset.add(&numbers);
            }
            list.insert(id.clone(), numbers);
            named.push((tenant, numbers));
        }
        let mut rest = Numbers::default();
        for Candidate { id, metrics, .. } in &others {
            rest.add(&Numbers::of(metrics));
            metrics.busy.was_in_rest.store(true, Relaxed);
            if let Some(told) = self.list.remove(*id) {
                self.offset.subtract(&told);
            }
        }
        self.list = list;
        rest.add(&self.offset);
        // A tenant that is forgotten takes nothing back.
        let lacking = rest.lacking(&self.rest);
        self.offset.add(&lacking);
        rest.add(&lacking);
        self.rest = rest;
        let is_there = !others.is_empty() || !rest.is_zero();
        Look {
            named,
            others: others.into_iter().map(|other| other.tenant).collect(),
            rest: is_there.then_some(rest),
        }
    }
}

#[cfg(test)]
mod tests;
