use std::collections::HashSet;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::metrics::numbers::COUNTERS;

struct Tenant {
    id: TenantId,
    metrics: TenantMetrics,
}

fn tenants(count: usize) -> Vec<Tenant> {
    let tenant = |number| Tenant {
        id: TenantId::new(&format!("t{number:07}")).unwrap(),
        metrics: TenantMetrics::default(),
    };
    (0..count).map(tenant).collect()
}

fn parts(tenant: &Tenant) -> (&TenantId, &TenantMetrics) {
    (&tenant.id, &tenant.metrics)
}

fn work(tenant: &Tenant, us: u64, random: &mut StdRng) {
    let metrics = &tenant.metrics;
    metrics.queries.add(1);
    metrics.statements.record(Duration::from_micros(us));
    metrics.transactions.record(Duration::from_micros(2 * us));
    metrics.sent.add(random.random_range(0..5000));
    metrics.errors.add(random.random_range(0..2));
}

/// What the last look told, by the label; the rest is "".
type Told = HashMap<String, Numbers>;

fn told<T>(look: &Look<'_, T>, id: impl Fn(&T) -> &TenantId) -> Told {
    let named = look.named.iter().map(|(t, n)| (id(t).to_string(), *n));
    let rest = look.rest.map(|rest| (String::new(), rest));
    named.chain(rest).collect()
}

/// What Prometheus makes of two scrapes: the sum of all increases of series that are in both.
fn increase(before: &Told, now: &Told) -> Numbers {
    let mut sum = Numbers::default();
    for (label, numbers) in now {
        let Some(was) = before.get(label) else {
            continue;
        };
        assert!(numbers.lacking(was).is_zero(), "\"{label}\" goes back");
        sum.add(numbers);
        sum.subtract(was);
    }
    sum
}

/// Whoever works when, and however the limit changes: each tenant's own series is the truth, no
/// series goes back, and the increases of all series are what the tenants did, each once.
#[test]
fn increases_of_all_series_are_the_truth_at_each_scrape_and_nothing_goes_back() {
    let mut changes = 0;
    for seed in 0..60 {
        let mut random = StdRng::seed_from_u64(seed);
        let all = tenants(2 + random.random_range(0..30) as usize);
        let busiest = Busiest::default();
        let mut most = 1 + random.random_range(0..6) as usize;
        let mut now = Instant::now();
        // Tenants are seen from their first login on.
        let mut seen = 1;
        let mut before: Option<Told> = None;
        let mut last: Vec<Numbers> = Vec::new();
        for _ in 0..120 {
            now += Duration::from_secs(random.random_range(0..900));
            seen = (seen + random.random_range(0..2) as usize).min(all.len());
            if random.random_range(0..20) == 0 {
                most = 1 + random.random_range(0..6) as usize;
            }
            let favourite = random.random_range(0..seen as u64);
            for _ in 0..random.random_range(0..40) {
                let at = match random.random_range(0..2) {
                    0 => favourite,
                    _ => random.random_range(0..seen as u64),
                };
                let us = 1 << random.random_range(0..22);
                work(&all[at as usize], us, &mut random);
            }
            let look = busiest.look(most, now, &all[..seen], parts);
            assert!(look.named.len() == most.min(seen));
            assert_eq!(look.named.len() + look.others.len(), seen);
            for (tenant, numbers) in &look.named {
                assert_eq!(*numbers, Numbers::of(&tenant.metrics), "not its own totals");
            }
            let told = told(&look, |tenant| &tenant.id);
            let totals: Vec<_> = all.iter().map(|t| Numbers::of(&t.metrics)).collect();
            if let Some(before) = &before {
                let mut truth = Numbers::default();
                let rest_was_there = before.contains_key("");
                for (tenant, (total, was)) in all.iter().zip(totals.iter().zip(&last)) {
                    // What a series begins with is not an increase, of the rest neither.
                    let has_series = told.contains_key(tenant.id.as_str());
                    let was_seen = tenant.metrics.busy.was_in_rest.load(Relaxed)
                        || before.contains_key(tenant.id.as_str());
                    if (!has_series && !rest_was_there) || !was_seen {
                        continue;
                    }
                    truth.add(total);
                    truth.subtract(was);
                }
                assert_eq!(increase(before, &told), truth, "seed {seed}");
                let names = |told: &Told| told.keys().cloned().collect::<HashSet<_>>();
                changes += names(&told).difference(&names(before)).count();
            }
            (before, last) = (Some(told), totals);
        }
    }
    assert!(changes > 500, "the list hardly ever changed: {changes}");
}

#[test]
fn while_nobody_has_changed_places_all_values_sum_up_to_the_truth() {
    let all = tenants(5);
    let busiest = Busiest::default();
    let now = Instant::now();
    let mut random = StdRng::seed_from_u64(1);
    for _ in 0..20 {
        for (tenant, us) in all.iter().zip([900, 800, 3, 2, 1]) {
            work(tenant, us, &mut random);
        }
        let look = busiest.look(2, now, &all, parts);
        let mut sum = look.rest.unwrap();
        look.named.iter().for_each(|(_, numbers)| sum.add(numbers));
        for tenant in &all {
            sum.subtract(&Numbers::of(&tenant.metrics));
        }
        assert!(sum.is_zero());
    }
    let look = busiest.look(5, now, &all[..0], parts);
    assert!(look.named.is_empty());
}

#[test]
fn without_more_tenants_than_places_there_is_no_rest() {
    let all = tenants(3);
    let busiest = Busiest::default();
    let look = busiest.look(3, Instant::now(), &all, parts);
    assert_eq!((look.named.len(), look.rest), (3, None));
}

#[test]
fn who_becomes_busy_is_listed_and_who_is_a_little_busier_has_to_wait() {
    let all = tenants(4);
    let busiest = Busiest::default();
    let mut now = Instant::now();
    let mut random = StdRng::seed_from_u64(1);
    let mut listed = |works: &[(usize, u64)], now: Instant| {
        for (at, us) in works {
            work(&all[*at], *us, &mut random);
        }
        let look = busiest.look(1, now, &all, parts);
        let at = all.iter().position(|t| t.id == look.named[0].0.id);
        at.unwrap()
    };
    assert_eq!(listed(&[(0, 1000), (1, 100)], now), 0);
    assert_eq!(listed(&[(1, 1850)], now), 0, "not twice as busy");
    assert_eq!(listed(&[(1, 100)], now), 1, "more than twice as busy");
    // What was long ago counts little.
    now += 4 * HALF_LIFE;
    assert_eq!(listed(&[(2, 200)], now), 1);
    assert_eq!(listed(&[(2, 100)], now), 2);
}

/// Tenants that are all as busy do not change places at each scrape.
#[test]
fn a_fleet_without_favourites_hardly_changes_its_list() {
    let all = tenants(1000);
    let busiest = Busiest::default();
    let mut now = Instant::now();
    let mut random = StdRng::seed_from_u64(3);
    let (mut entered, mut before) = (0, HashSet::new());
    // Four hours, a scrape each minute.
    for _ in 0..240 {
        now += Duration::from_secs(60);
        for tenant in &all {
            work(tenant, random.random_range(0..2000), &mut random);
        }
        let look = busiest.look(100, now, &all, parts);
        let ids: HashSet<_> = look.named.iter().map(|(t, _)| t.id.clone()).collect();
        entered += ids.difference(&before).count();
        before = ids;
    }
    assert!(entered < 100 + 100, "{entered}");
}

#[test]
fn a_tenant_that_is_forgotten_takes_nothing_back() {
    let all = tenants(6);
    let busiest = Busiest::default();
    let mut random = StdRng::seed_from_u64(5);
    let now = Instant::now();
    all.iter().for_each(|tenant| work(tenant, 50, &mut random));
    let before = busiest.look(2, now, &all, parts).rest.unwrap();
    let after = busiest.look(2, now, &all[..3], parts).rest.unwrap();
    assert!(after.lacking(&before).is_zero());
    assert_eq!(before.counters().len(), COUNTERS.len());
}
