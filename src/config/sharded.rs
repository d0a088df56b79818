//! A map by name that is cheap to copy with a change: how a configuration has its tenants.
//!
//! The entries lie in shards, each of which is shared by all copies that have the same entries in
//! it. A copy with one change costs a pointer for each shard and a new shard of some hundred
//! entries, with a million tenants as with ten; a look-up takes no lock.

use std::fmt;
use std::hash::BuildHasher as _;
use std::sync::Arc;

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;

/// Entries of one shard on average, before there are more shards.
const SHARD: usize = 256;

/// What an entry is found by.
pub trait Named {
    fn name(&self) -> &str;
}

/// See the module.
#[derive(Clone)]
pub struct Sharded<T> {
    /// As many as a power of two.
    shards: Box<[Arc<HashTable<T>>]>,
    len: usize,
}

fn hash(name: &str) -> u64 {
    FxBuildHasher.hash_one(name)
}

impl<T> Sharded<T> {
    fn index(&self, hash: u64) -> usize {
        // The table itself takes the lowest and the highest bits.
        let middle = usize::try_from((hash >> 24) & 0xffff_ffff).unwrap_or_default();
        middle & (self.shards.len() - 1)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// In no order.
    pub fn values(&self) -> impl Iterator<Item = &T> + Clone {
        self.shards.iter().flat_map(|shard| shard.iter())
    }
}

impl<T: Named + Clone> Sharded<T> {
    pub fn get(&self, name: &str) -> Option<&T> {
        let hash = hash(name);
        let shard = self.shards.get(self.index(hash))?;
        shard.find(hash, |entry| entry.name() == name)
    }

    pub fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Returns the entry that had the name before.
    pub fn insert(&mut self, entry: T) -> Option<T> {
        if self.len >= self.shards.len() * SHARD * 2 {
            self.grow();
        }
        let hash = hash(entry.name());
        let index = self.index(hash);
        let shard = Arc::make_mut(self.shards.get_mut(index)?);
        if let Some(old) = shard.find_mut(hash, |old| old.name() == entry.name()) {
            return Some(std::mem::replace(old, entry));
        }
        shard.insert_unique(hash, entry, |entry| self::hash(entry.name()));
        self.len += 1;
        None
    }

    pub fn remove(&mut self, name: &str) -> Option<T> {
        let hash = hash(name);
        let index = self.index(hash);
        let shard = self.shards.get_mut(index)?;
        shard.find(hash, |entry| entry.name() == name)?;
        let found = Arc::make_mut(shard).find_entry(hash, |entry| entry.name() == name);
        let (removed, _) = found.ok()?.remove();
        self.len -= 1;
        Some(removed)
    }

    /// Makes four times as many shards.
    fn grow(&mut self) {
        let old = std::mem::take(&mut self.shards);
        let count = old.len() * 4;
        self.shards = (0..count).map(|_| Arc::default()).collect();
        for shard in old {
            for entry in Arc::unwrap_or_clone(shard) {
                let hash = hash(entry.name());
                let index = self.index(hash);
                if let Some(shard) = self.shards.get_mut(index) {
                    let shard = Arc::make_mut(shard);
                    shard.insert_unique(hash, entry, |entry| self::hash(entry.name()));
                }
            }
        }
    }
}

impl<T> Default for Sharded<T> {
    fn default() -> Self {
        Self {
            shards: Box::new([Arc::default()]),
            len: 0,
        }
    }
}

impl<T: Named + Clone> FromIterator<T> for Sharded<T> {
    fn from_iter<I: IntoIterator<Item = T>>(entries: I) -> Self {
        let mut all = Self::default();
        for entry in entries {
            all.insert(entry);
        }
        all
    }
}

/// As of a map of the standard library.
#[expect(clippy::panic, reason = "what is asked for so must be there")]
impl<T: Named + Clone> std::ops::Index<&str> for Sharded<T> {
    type Output = T;

    /// # Panics
    /// If there is none of the name.
    fn index(&self, name: &str) -> &T {
        match self.get(name) {
            Some(entry) => entry,
            None => panic!("there is no {name}"),
        }
    }
}

impl<T: Named + Clone + PartialEq> PartialEq for Sharded<T> {
    fn eq(&self, other: &Self) -> bool {
        let alike = self.shards.len() == other.shards.len();
        let mut pairs = self.shards.iter().zip(&other.shards);
        if alike && pairs.all(|(one, two)| Arc::ptr_eq(one, two)) {
            return true;
        }
        self.len == other.len
            && self
                .values()
                .all(|entry| other.get(entry.name()) == Some(entry))
    }
}

impl<T: Named + Clone + Eq> Eq for Sharded<T> {}

impl<T: fmt::Debug> fmt::Debug for Sharded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.values()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Entry(String, u32);

    impl Named for Entry {
        fn name(&self) -> &str {
            &self.0
        }
    }

    fn contents(map: &Sharded<Entry>) -> BTreeMap<String, u32> {
        map.values().cloned().map(|Entry(k, v)| (k, v)).collect()
    }

    /// Random changes, beside a plain map; copies that were made before a change stay as they were.
    #[test]
    fn it_is_a_map_and_copies_do_not_see_later_changes() {
        for seed in 0..20 {
            let mut rng = StdRng::seed_from_u64(seed);
            let names = 1 << rng.random_range(1..13);
            let (mut map, mut plain) = (Sharded::default(), BTreeMap::new());
            let mut copies = Vec::new();
            for step in 0..5000 {
                let name = format!("t{}", rng.random_range(0..names));
                if rng.random_range(0..3) == 0 {
                    let removed = map.remove(&name).map(|Entry(_, value)| value);
                    assert_eq!(removed, plain.remove(&name));
                } else {
                    let before = map.insert(Entry(name.clone(), step));
                    let before = before.map(|Entry(_, value)| value);
                    assert_eq!(before, plain.insert(name.clone(), step));
                }
                assert_eq!(map.get(&name).map(|entry| &entry.1), plain.get(&name));
                assert_eq!(map.len(), plain.len());
                if rng.random_range(0..500) == 0 {
                    copies.push((map.clone(), plain.clone()));
                }
            }
            copies.push((map, plain));
            for (map, plain) in &copies {
                assert_eq!(contents(map), *plain, "seed {seed}");
                let again: Sharded<Entry> = map.values().cloned().collect();
                assert_eq!(again, *map, "seed {seed}");
            }
        }
    }
}
