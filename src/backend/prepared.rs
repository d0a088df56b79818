//! Named prepared statements in transaction pooling: a client's statement is known to the proxy by
//! its text and parameter types, and to a server connection under a name of the proxy's own.
//!
//! ```text
//!   client A "s1" ─┐
//!                  ├─► Statement 7 ──► "pgtenant_7" on the connections that have parsed it
//!   client B "q"  ─┘
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;

/// A statement as Parse defines it, shared by all clients of a pool that prepare the same.
#[derive(Debug)]
pub struct Statement {
    id: u64,
    server_name: Box<str>,
    /// The body of the Parse message after the statement's name: query, parameter types.
    definition: Bytes,
}

impl Statement {
    /// How names on servers begin.
    pub const NAME_PREFIX: &str = "pgtenant_";

    /// One that no server connection has, for names that nothing may be found by.
    pub fn of_nobody() -> Arc<Self> {
        Arc::new(Self {
            id: 0,
            server_name: format!("{}0", Self::NAME_PREFIX).into(),
            definition: Bytes::new(),
        })
    }

    /// The name it has on every server connection of its pool.
    pub fn server_name(&self) -> &str {
        &self.server_name
    }

    /// Length of the definition in bytes.
    pub fn size(&self) -> usize {
        self.definition.len()
    }

    /// The same statement in another pool.
    pub fn intern_in(&self, interner: &Interner) -> Arc<Statement> {
        interner.intern(&self.definition)
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

/// A frame of `tag` around the given parts.
pub fn frame(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body: usize = parts.iter().map(|part| part.len()).sum();
    let mut frame = Vec::with_capacity(body + 5);
    frame.push(tag);
    frame.extend_from_slice(&u32::try_from(body + 4).unwrap_or(u32::MAX).to_be_bytes());
    for part in parts {
        frame.extend_from_slice(part);
    }
    frame
}

/// The statements of one pool. A statement lives as long as a client or a server connection knows
/// it.
#[derive(Debug, Default)]
pub struct Interner(Mutex<Interned>);

#[derive(Debug, Default)]
struct Interned {
    statements: HashMap<Bytes, Weak<Statement>>,
    last_id: u64,
    /// Dead entries are swept when the map has grown to this.
    sweep_at: usize,
}

impl Interner {
    /// The statement with this definition (a Parse body after the name).
    pub fn intern(&self, definition: &[u8]) -> Arc<Statement> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(statement) = inner.statements.get(definition).and_then(Weak::upgrade) {
            return statement;
        }
        if inner.statements.len() >= inner.sweep_at {
            inner
                .statements
                .retain(|_, statement| statement.strong_count() > 0);
            inner.sweep_at = (inner.statements.len() * 2).max(64);
        }
        inner.last_id += 1;
        let definition = Bytes::copy_from_slice(definition);
        let statement = Arc::new(Statement {
            id: inner.last_id,
            server_name: format!("{}{}", Statement::NAME_PREFIX, inner.last_id).into(),
            definition: definition.clone(),
        });
        inner
            .statements
            .insert(definition, Arc::downgrade(&statement));
        statement
    }
}

/// What one server connection has parsed, least recently used first out.
#[derive(Debug, Default)]
pub struct Parsed {
    statements: HashMap<u64, (Arc<Statement>, u64)>,
    clock: u64,
    /// The connection may have others too, since a Parse or Close was skipped.
    doubtful: bool,
}

/// Most named statements kept on one server connection, as PgBouncer's `max_prepared_statements`
/// defaults to 200.
const CAPACITY: usize = 200;

impl Parsed {
    /// Whether the connection has `statement`; marks it as used.
    pub fn touch(&mut self, statement: &Statement) -> bool {
        self.clock += 1;
        match self.statements.get_mut(&statement.id) {
            Some((_, used)) => {
                *used = self.clock;
                true
            }
            None => false,
        }
    }

    /// Records that a Parse of `statement` was sent. Returns the statement that has to make room, if
    /// any: it is to be closed.
    pub fn insert(&mut self, statement: &Arc<Statement>) -> Option<Arc<Statement>> {
        self.clock += 1;
        let evicted = (self.statements.len() >= CAPACITY)
            .then(|| {
                self.statements
                    .iter()
                    .min_by_key(|(_, (_, used))| *used)
                    .map(|(&id, _)| id)
            })
            .flatten()
            .and_then(|id| self.statements.remove(&id));
        self.statements
            .insert(statement.id, (statement.clone(), self.clock));
        evicted.map(|(statement, _)| statement)
    }

    /// Records that a Parse or Close of `statement` may have taken no effect.
    pub fn doubt(&mut self, statement: &Statement) {
        self.statements.remove(&statement.id);
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
            interner.intern(b"SELECT 1\0\0\0"),
            interner.intern(b"SELECT 1\0\0\0"),
        );
        assert!(Arc::ptr_eq(&a, &b));
        assert!(!Arc::ptr_eq(&a, &interner.intern(b"SELECT 2\0\0\0")));
        let id = a.id;
        drop((a, b));
        assert_ne!(
            interner.intern(b"SELECT 1\0\0\0").id,
            id,
            "names are never used twice"
        );
    }

    #[test]
    fn the_least_recently_used_statement_makes_room() {
        let interner = Interner::default();
        let mut parsed = Parsed::default();
        let all: Vec<_> = (0..CAPACITY)
            .map(|i| interner.intern(format!("{i}\0\0\0").as_bytes()))
            .collect();
        for statement in &all {
            assert!(parsed.insert(statement).is_none());
        }
        assert!(parsed.touch(&all[0]));
        let evicted = parsed.insert(&interner.intern(b"new\0\0\0")).unwrap();
        assert_eq!(evicted.close_frame(), frame(b'C', &[b"Spgtenant_2\0"]));
        assert!(parsed.touch(&all[0]) && !parsed.touch(&all[1]));
    }

    #[test]
    fn a_parse_frame_holds_the_name_and_the_definition() {
        let statement = Interner::default().intern(b"SELECT 1\0\0\0");
        assert_eq!(
            statement.parse_frame(),
            b"P\0\0\0\x1apgtenant_1\0SELECT 1\0\0\0"
        );
    }
}
