//! The bodies of the fuzz targets in `fuzz/`, without cargo-fuzz: on the corpus, and on some
//! thousands of mutations of it.

use std::fs;
use std::path::Path;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

#[path = "../../fuzz/bodies.rs"]
mod bodies;

const SEED: u64 = 0x6675_7a7a;
const MUTATIONS: usize = 20_000;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut paths: Vec<_> = fs::read_dir(dir)
        .expect("a corpus")
        .map(|entry| entry.expect("a file").path())
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| fs::read(path).expect("a file"))
        .collect()
}

/// A mutation or a few of one of `seeds`: bytes changed, dropped, doubled, or of another.
fn mutated(rng: &mut StdRng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds.choose(rng).cloned().unwrap_or_default();
    for _ in 0..rng.random_range(1..8) {
        let at = rng.random_range(0..=bytes.len());
        match rng.random_range(0..6) {
            0 => bytes.insert(at, rng.random()),
            1 => bytes.truncate(at),
            2 => bytes.drain(at.saturating_sub(3)..at).for_each(drop),
            3 => bytes.extend_from_within(at..bytes.len().min(at + 20)),
            4 => bytes.extend(seeds.choose(rng).into_iter().flatten()),
            _ if at < bytes.len() => bytes[at] = rng.random(),
            _ => {}
        }
    }
    bytes
}

fn run(target: &str, body: fn(&[u8])) {
    let seeds = corpus(target);
    seeds.iter().for_each(|bytes| body(bytes));
    let mut rng = StdRng::seed_from_u64(SEED);
    for _ in 0..MUTATIONS {
        let bytes = mutated(&mut rng, &seeds);
        if std::panic::catch_unwind(|| body(&bytes)).is_err() {
            panic!("{target} fails on \"{}\"", bytes.escape_ascii());
        }
    }
}

#[test]
fn any_first_packet_is_read_or_refused_and_nothing_behind_it_is_touched() {
    run("startup", bodies::startup);
}

#[test]
fn any_bytes_are_cut_into_frames_within_their_limits() {
    run("frames", bodies::frames);
}

#[test]
fn statements_of_clients_that_share_connections_are_as_if_each_had_its_own() {
    run("statements", bodies::statements);
}
