use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;

fn settings(dir: &Path, key: u8) -> CatalogCopy {
    CatalogCopy {
        file: dir.join("copy"),
        key: CopyKey::new(&[key; 32]),
        max_age: Duration::from_secs(3600),
    }
}

fn entry(name: usize, revision: u64) -> Entry {
    Entry {
        name: format!("t{name}"),
        spec: format!("{{\"of\": {revision}}}"),
        lifecycle: Lifecycle::default(),
        generation: 1,
        revision,
        version: None,
    }
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// What a copy has by its marks: for each the length of the file, the revision and the entries.
fn written(rng: &mut StdRng, settings: &CatalogCopy) -> Vec<(u64, u64, usize)> {
    let mut copy = Copy::begin(settings).unwrap();
    let mut marks = Vec::new();
    let mut entries = 0;
    for revision in 1..rng.random_range(3..12) {
        let count = rng.random_range(0..1500);
        let batch: Vec<_> = (0..count).map(|name| entry(name, revision)).collect();
        copy.add_tenants(&batch);
        entries += count;
        copy.mark(revision, at(1000)).unwrap();
        let length = std::fs::metadata(&settings.file).unwrap().len();
        marks.push((length, revision, entries));
    }
    marks
}

#[test]
fn a_copy_that_ends_anywhere_is_good_up_to_the_mark_before() {
    for seed in 0..10 {
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path(), 1);
        let marks = written(&mut rng, &settings);
        assert_eq!(
            std::fs::metadata(&settings.file).unwrap().mode() & 0o777,
            0o600
        );
        let bytes = std::fs::read(&settings.file).unwrap();
        for _ in 0..30 {
            let end = rng.random_range(0..=bytes.len());
            let mut cut = bytes[..end].to_vec();
            // As a machine leaves it that lost its power: long enough, and empty.
            if rng.random() {
                cut.resize(bytes.len(), 0);
            }
            std::fs::write(&settings.file, &cut).unwrap();
            let good = marks.iter().rfind(|(length, _, _)| *length <= end as u64);
            let read = read(&settings, at(1001));
            let read = read.map(|copied| (copied.revision, copied.tenants.len()));
            assert_eq!(
                read.ok(),
                good.map(|(_, revision, entries)| (*revision, *entries)),
                "seed {seed} end {end}"
            );
        }
    }
}

#[test]
fn nothing_that_was_changed_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path(), 1);
    let mut rng = StdRng::seed_from_u64(1);
    let marks = written(&mut rng, &settings);
    let bytes = std::fs::read(&settings.file).unwrap();
    for _ in 0..200 {
        let mut changed = bytes.clone();
        let place = rng.random_range(0..changed.len());
        changed[place] ^= 1 << rng.random_range(0..8);
        std::fs::write(&settings.file, &changed).unwrap();
        let good = marks.iter().rfind(|(length, _, _)| *length <= place as u64);
        let read = read(&settings, at(1001)).map(|copied| copied.revision);
        assert_eq!(read.ok(), good.map(|(_, revision, _)| *revision), "{place}");
    }
}

#[test]
fn another_key_and_an_old_copy_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mine = settings(dir.path(), 1);
    written(&mut StdRng::seed_from_u64(2), &mine);
    assert!(read(&mine, at(1000 + 3600)).is_ok());
    let old = read(&mine, at(1000 + 3601)).unwrap_err();
    assert!(old.contains("max_age"), "{old}");
    let other = read(&settings(dir.path(), 2), at(1001)).unwrap_err();
    assert!(other.contains("this key"), "{other}");
}
