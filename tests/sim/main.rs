//! The data plane, played by one seed: see README.md.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // that is how a test fails

mod client;
mod configs;
mod direct;
mod found;
mod kernel;
mod plan;
mod postgres;
mod run;
mod server;
mod shrink;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use plan::Plan;
use run::play;

/// A number of the environment.
fn number(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().expect("a number"))
}

/// Plays so many seeds, on all cores. Returns the first of those that fail, and why.
fn play_all(from: u64, count: u64) -> Option<(u64, String)> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let next = AtomicU64::new(from);
    let failed = Mutex::new(Vec::new());
    let most = usize::try_from(number("SIM_FAILURES", 1)).expect("few");
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count || failed.lock().unwrap().len() >= most {
                        return;
                    }
                    if let Some(why) = play(&Plan::new(seed), false).failure {
                        println!("seed {seed}: {why}");
                        failed.lock().unwrap().push((seed, why));
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap().into_iter().min()
}

/// `SIM_SEED=… SIM_TOLD=1` plays that one alone, and tells all that happened.
#[test]
fn seeds_are_played_without_a_fault_of_the_proxy() {
    if let Ok(seed) = std::env::var("SIM_SEED") {
        let plan = Plan::new(seed.parse().expect("a number"));
        let outcome = play(&plan, true);
        if std::env::var("SIM_TOLD").is_ok() {
            outcome.told.iter().for_each(|line| println!("{line}"));
        }
        println!("{:?}", outcome.statistics);
        assert_eq!(outcome.failure, None);
        return;
    }
    let (from, count) = (number("SIM_FROM", 1), number("SIM_SEEDS", 5000));
    let began = Instant::now();
    let failed = play_all(from, count);
    println!("{count} seeds in {:?}", began.elapsed());
    if let Some((seed, why)) = failed {
        assert!(number("SIM_SHRINK", 1) > 0, "seed {seed}: {why}");
        let small = shrink::shrink(&Plan::new(seed), &why);
        let why = play(&small, false).failure.unwrap_or(why);
        panic!("seed {seed}: {why}\n{}", shrink::script(&small));
    }
}

#[test]
fn a_seed_is_the_same_each_time() {
    let mut events = 0;
    for seed in 1..40 {
        let [first, second] = [(); 2].map(|()| play(&Plan::new(seed), false));
        assert_eq!(first.trace, second.trace, "seed {seed}");
        events += first.statistics.events;
    }
    assert!(events > 10_000, "{events}");
}

#[test]
fn a_seed_has_tenants_connections_messages_and_a_fault() {
    for seed in 1..200 {
        let plan = Plan::new(seed);
        assert!(plan.clients.len() >= plan::TENANTS);
        assert!(!plan.faults.is_empty());
        assert!(plan.messages() >= 200, "seed {seed}: {}", plan.messages());
    }
}
