//! Named prepared statements in transaction pooling: a client's statement is known to the proxy by
//! its text and parameter types, and to a server connection under a name of the proxy's own.
//!
//! ```text
//!   client A "s1" ─┐
//!                  ├─► Statement 7 ──► "pgtenant_7" on the connections that have parsed it
//!   client B "q"  ─┘
//! ```
//!
//! Shared are statements of the same text, parameter types and meaning: PostgreSQL settles names
//! and constants when it parses, under the parameters of that moment. So clients with other
//! `search_path`, `DateStyle` or role have another statement, and what was parsed before the schema
//! changed is parsed anew for a client that prepares it after.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::backend::binding::Settings;
use crate::protocol::frame::{frame, split_cstr};
use crate::sql::effects::Effects;

/// A statement as Parse defines it, shared by all clients of a pool that prepare the same.
#[derive(Debug)]
pub struct Statement {
    id: u64,
    server_name: Box<str>,
    /// The body of the Parse message after the statement's name: query, parameter types.
    definition: Bytes,
    meaning: u64,
    /// Whether `standard_conforming_strings` is off, which is a part of the meaning.
    backslashes: bool,
    /// What an execution may do to its session.
    pub effects: Effects,
}

/// The bit of a meaning that says that it is one client's alone.
const PRIVATE: u64 = 1;

impl Statement {
    /// How names on servers begin.
    pub const NAME_PREFIX: &str = "pgtenant_";

    /// One that no server connection has, for names that nothing may be found by.
    pub fn of_nobody() -> Arc<Self> {
        Arc::new(Self {
            id: 0,
            server_name: format!("{}0", Self::NAME_PREFIX).into(),
            definition: Bytes::new(),
            meaning: 0,
            backslashes: false,
            effects: Effects::default(),
        })
    }

    /// The name it has on every server connection of its pool.
    pub fn server_name(&self) -> &str {
        &self.server_name
    }

    /// Its query.
    pub fn text(&self) -> &[u8] {
        split_cstr(&self.definition).map_or(&[], |(text, _)| text)
    }

    /// The body of its Parse message behind the name.
    pub fn definition(&self) -> &[u8] {
        &self.definition
    }

    /// Length of the definition in bytes.
    pub fn size(&self) -> usize {
        self.definition.len()
    }

    /// The same statement in another pool.
    pub fn intern_in(&self, interner: &Interner) -> Arc<Statement> {
        interner.intern(&self.definition, self.meaning, self.backslashes)
    }

    /// Whether it is one client's alone, read as the server reads it now.
    pub fn is_private(&self, backslashes: bool) -> bool {
        self.meaning & PRIVATE != 0 && self.backslashes == backslashes
    }

    /// Whether it means the same to a client of this [meaning](Interner::meaning).
    pub fn means(&self, meaning: u64, backslashes: bool) -> bool {
        (self.meaning, self.backslashes) == (meaning, backslashes)
    }

    /// The statement of the same definition with another meaning.
    pub fn intern_as(&self, interner: &Interner, meaning: u64, backslashes: bool) -> Arc<Self> {
        interner.intern(&self.definition, meaning, backslashes)
    }

    /// The Parse frame that makes it on a server connection.
    pub fn parse_frame(&self) -> Vec<u8> {
        let name = self.server_name();
        frame(b'P', &[name.as_bytes(), b"\0", &self.definition])
    }

    /// The Close frame that removes it from a server connection.
    pub fn close_frame(&self) -> Vec<u8> {
        let name = self.server_name();
        frame(b'C', &[b"S", name.as_bytes(), b"\0"])
    }
}

/// The statements of one pool. A statement lives as long as a client or a server connection knows
/// it.
#[derive(Debug)]
pub struct Interner {
    interned: Mutex<Interned>,
    /// Counts changes of the schema that passed.
    epoch: AtomicU64,
    /// Counts meanings that are one client's alone.
    private: AtomicU64,
    hasher: RandomState,
}

impl Default for Interner {
    fn default() -> Self {
        Self {
            interned: Mutex::default(),
            epoch: AtomicU64::new(1),
            private: AtomicU64::new(0),
            hasher: RandomState::new(),
        }
    }
}

#[derive(Debug, Default)]
struct Interned {
    /// By what changes their meaning, then by definition.
    statements: FxHashMap<u64, HashMap<Bytes, Weak<Statement>>>,
    len: usize,
    last_id: u64,
    /// Dead entries are swept when there are so many.
    sweep_at: usize,
}

/// Whether a parameter of this name, in lower case, changes no statement's meaning, though clients
/// often have it differ.
pub fn is_meaningless(name: &str) -> bool {
    matches!(
        name,
        "application_name" | "client_min_messages" | "extra_float_digits"
    ) || name.ends_with("_timeout")
}

impl Interner {
    /// What of a client's settings changes the meaning of the statements that it prepares.
    pub fn meaning(&self, settings: &Settings) -> u64 {
        let meaningful: Vec<_> = settings
            .iter()
            .filter(|(name, _)| !is_meaningless(name))
            .collect();
        self.hasher.hash_one(meaningful) & !PRIVATE
    }

    /// A meaning that nothing else has: of what is prepared while it is not known what is set.
    pub fn private_meaning(&self) -> u64 {
        let number = self.private.fetch_add(1, Relaxed);
        self.hasher.hash_one(("private", number)) | PRIVATE
    }

    /// How often the schema has changed: a statement parsed before that may mean something else
    /// now.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Relaxed)
    }

    /// The schema changes, or has just changed.
    pub fn begin_epoch(&self) {
        self.epoch.fetch_add(1, Relaxed);
    }

    /// Every statement that is known, oldest first, and by how many clients and server connections:
    /// for the console.
    pub fn list(&self) -> Vec<(Arc<Statement>, usize)> {
        let inner = self.interned.lock().unwrap_or_else(PoisonError::into_inner);
        let known = inner.statements.values().flat_map(HashMap::values);
        let mut list: Vec<_> = known
            .filter_map(|statement| {
                let references = statement.strong_count();
                Some((statement.upgrade()?, references))
            })
            .collect();
        list.sort_by_key(|(statement, _)| statement.id);
        list
    }

    /// The statement with this definition (a Parse body after the name) and
    /// [meaning](Self::meaning). `backslashes`: with these settings `standard_conforming_strings`
    /// is off.
    pub fn intern(&self, definition: &[u8], meaning: u64, backslashes: bool) -> Arc<Statement> {
        let mut inner = self.interned.lock().unwrap_or_else(PoisonError::into_inner);
        let known = inner.statements.get(&meaning);
        if let Some(statement) = known.and_then(|known| known.get(definition)?.upgrade()) {
            return statement;
        }
        inner.make_room();
        inner.last_id += 1;
        inner.len += 1;
        let definition = Bytes::copy_from_slice(definition);
        let text = split_cstr(&definition).map_or(&[][..], |(text, _)| text);
        let statement = Arc::new(Statement {
            id: inner.last_id,
            server_name: format!("{}{}", Statement::NAME_PREFIX, inner.last_id).into(),
            effects: Effects::of(text, backslashes),
            definition: definition.clone(),
            meaning,
            backslashes,
        });
        inner
            .statements
            .entry(meaning)
            .or_default()
            .insert(definition, Arc::downgrade(&statement));
        statement
    }
}

impl Interned {
    fn make_room(&mut self) {
        if self.len < self.sweep_at {
            return;
        }
        for known in self.statements.values_mut() {
            known.retain(|_, statement| statement.strong_count() > 0);
        }
        self.statements.retain(|_, known| !known.is_empty());
        self.len = self.statements.values().map(HashMap::len).sum();
        self.sweep_at = (self.len * 2).max(64);
    }
}

/// What one server connection has parsed, least recently used first out.
#[derive(Debug, Default)]
pub struct Parsed {
    /// By id, which is the proxy's own.
    statements: FxHashMap<u64, Entry>,
    clock: u64,
    /// The connection may have others too, since a Parse or Close was skipped.
    doubtful: bool,
}

#[derive(Debug)]
struct Entry {
    statement: Arc<Statement>,
    used: u64,
    /// The schema's epoch when it was parsed.
    epoch: u64,
}

/// Whether a connection has a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Has {
    Yes,
    No,
    /// It was parsed before the schema changed: it must be closed and parsed anew.
    Outdated,
}

/// Most named statements kept on one server connection, as PgBouncer's `max_prepared_statements`
/// defaults to 200.
const CAPACITY: usize = 200;

impl Parsed {
    /// Whether the connection has `statement`, parsed in epoch `since` or later; marks it as used.
    pub fn touch(&mut self, statement: &Statement, since: u64) -> Has {
        self.clock += 1;
        match self.statements.get_mut(&statement.id) {
            Some(entry) if entry.epoch >= since => {
                entry.used = self.clock;
                Has::Yes
            }
            Some(_) => Has::Outdated,
            None => Has::No,
        }
    }

    /// Records that a Parse of `statement` was sent in `epoch`. Returns the statement that has to
    /// make room, if any: it is to be closed.
    pub fn insert(&mut self, statement: &Arc<Statement>, epoch: u64) -> Option<Arc<Statement>> {
        self.clock += 1;
        let evicted = (self.statements.len() >= CAPACITY)
            .then(|| {
                self.statements
                    .iter()
                    .min_by_key(|(_, entry)| entry.used)
                    .map(|(&id, _)| id)
            })
            .flatten()
            .and_then(|id| self.statements.remove(&id));
        let entry = Entry {
            statement: statement.clone(),
            used: self.clock,
            epoch,
        };
        self.statements.insert(statement.id, entry);
        evicted.map(|entry| entry.statement)
    }

    /// All of it is to be parsed anew before it is used again.
    pub fn outdate(&mut self) {
        for entry in self.statements.values_mut() {
            entry.epoch = 0;
        }
    }

    /// Records that `statement` was closed.
    pub fn forget(&mut self, statement: &Statement) {
        self.statements.remove(&statement.id);
    }

    /// Records that a Parse or Close of `statement` may have taken no effect.
    pub fn doubt(&mut self, statement: &Statement) {
        self.statements.remove(&statement.id);
        self.doubtful = true;
    }

    /// Records that the server dropped all, and perhaps has some again.
    pub fn doubt_all(&mut self) {
        self.statements.clear();
        self.doubtful = true;
    }

    /// Whether what it does not have must be closed before it is parsed.
    pub fn is_doubtful(&self) -> bool {
        self.doubtful
    }

    /// Records that the server dropped them all (DISCARD ALL, DEALLOCATE ALL).
    pub fn clear(&mut self) {
        self.statements.clear();
        self.doubtful = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_definitions_are_one_statement_while_somebody_knows_it() {
        let interner = Interner::default();
        let (a, b) = (
            interner.intern(b"SELECT 1\0\0\0", 0, false),
            interner.intern(b"SELECT 1\0\0\0", 0, false),
        );
        assert!(Arc::ptr_eq(&a, &b));
        assert!(!Arc::ptr_eq(
            &a,
            &interner.intern(b"SELECT 2\0\0\0", 0, false)
        ));
        let id = a.id;
        drop((a, b));
        assert_ne!(
            interner.intern(b"SELECT 1\0\0\0", 0, false).id,
            id,
            "names are never used twice"
        );
    }

    #[test]
    fn a_private_meaning_is_shared_by_no_other_statement() {
        let interner = Interner::default();
        let private = |_| {
            let meaning = interner.private_meaning();
            interner.intern(b"SELECT 1\0\0\0", meaning, false)
        };
        let [a, b] = [(), ()].map(private);
        let shared = interner.meaning(&Settings::new());
        let c = interner.intern(b"SELECT 1\0\0\0", shared, false);
        assert!(a.id != b.id && b.id != c.id && a.id != c.id);
    }

    #[test]
    fn the_least_recently_used_statement_makes_room() {
        let interner = Interner::default();
        let mut parsed = Parsed::default();
        let all: Vec<_> = (0..CAPACITY)
            .map(|i| interner.intern(format!("{i}\0\0\0").as_bytes(), 0, false))
            .collect();
        for statement in &all {
            assert!(parsed.insert(statement, 1).is_none());
        }
        assert_eq!(parsed.touch(&all[0], 1), Has::Yes);
        let evicted = parsed
            .insert(&interner.intern(b"new\0\0\0", 0, false), 1)
            .unwrap();
        assert_eq!(evicted.close_frame(), frame(b'C', &[b"Spgtenant_2\0"]));
        assert_eq!(parsed.touch(&all[0], 1), Has::Yes);
        assert_eq!(parsed.touch(&all[1], 1), Has::No);
    }

    #[test]
    fn a_parse_frame_holds_the_name_and_the_definition() {
        let statement = Interner::default().intern(b"SELECT 1\0\0\0", 0, false);
        assert_eq!(
            statement.parse_frame(),
            b"P\0\0\0\x1apgtenant_1\0SELECT 1\0\0\0"
        );
    }

    #[test]
    fn statements_of_another_meaning_or_epoch_are_not_shared() {
        let interner = Interner::default();
        let settings = |pairs: &[(&str, &str)]| -> Settings {
            pairs
                .iter()
                .map(|&(n, v)| (n.to_owned(), v.to_owned()))
                .collect()
        };
        let plain = interner.meaning(&settings(&[]));
        assert_eq!(
            plain,
            interner.meaning(&settings(&[
                ("application_name", "x"),
                ("lock_timeout", "1")
            ]))
        );
        let other = interner.meaning(&settings(&[("search_path", "a")]));
        let (a, b) = (
            interner.intern(b"SELECT 1\0\0\0", plain, false),
            interner.intern(b"SELECT 1\0\0\0", other, false),
        );
        assert_ne!(a.id, b.id);
        let mut parsed = Parsed::default();
        parsed.insert(&a, interner.epoch());
        assert_eq!(parsed.touch(&a, interner.epoch()), Has::Yes);
        interner.begin_epoch();
        assert_eq!(parsed.touch(&a, interner.epoch()), Has::Outdated);
    }
}
