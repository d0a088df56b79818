//! How much one transaction takes of the lock table, which all sessions of a server share.
//!
//! Each object that a transaction makes, changes or drops keeps an entry there until its end, and
//! so does each savepoint behind which something was written. When the table is full
//! (`max_locks_per_transaction` × `max_connections` entries), statements of everybody fail, and so
//! does binding a session to a tenant. What functions of the database lock, and how many tables and
//! indexes a query reads, is not seen here.

use crate::config::TransactionLimits;
use crate::error::{Error, Kind, Result};
use crate::sql::effects::Effects;

/// What the client's transaction has taken.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Locks {
    /// Savepoints that the server has made, less those that were released. Where one RELEASE ends
    /// several, or a ROLLBACK TO does, it is more than there are.
    savepoints: u32,
    /// Objects in the texts that were sent.
    objects: u32,
}

impl Locks {
    /// Whether a text with these effects may be sent.
    ///
    /// # Errors
    /// 53400: with it the transaction would be over a limit.
    pub fn check(&self, effects: &Effects, limits: &TransactionLimits) -> Result<()> {
        let savepoints = self.savepoints.saturating_add(effects.savepoints.into());
        let objects = self.objects.saturating_add(effects.objects.into());
        if let Some(limit) = limits.savepoints
            && effects.savepoints > 0
            && savepoints > limit
        {
            return Err(too_many("savepoints", limit));
        }
        if let Some(limit) = limits.objects
            && effects.objects > 0
            && objects > limit
        {
            return Err(too_many("objects", limit));
        }
        Ok(())
    }

    /// A text with these effects is sent, or what was prepared from it is run.
    pub fn note(&mut self, effects: &Effects) {
        self.objects = self.objects.saturating_add(effects.objects.into());
    }

    /// The server has completed a command of this tag.
    ///
    /// # Errors
    /// 53400: it was one too many. It was prepared before, or there would have been no need to find
    /// it out so late.
    pub fn complete(&mut self, tag: &[u8], limits: &TransactionLimits) -> Result<()> {
        match tag {
            b"SAVEPOINT" => self.savepoints = self.savepoints.saturating_add(1),
            b"RELEASE" => self.savepoints = self.savepoints.saturating_sub(1),
            b"COMMIT" => self.savepoints = 0,
            _ => return Ok(()),
        }
        match limits.savepoints {
            Some(limit) if self.savepoints > limit => Err(too_many("savepoints", limit)),
            _ => Ok(()),
        }
    }

    /// The server says that no transaction is open. `is_all`: nothing else was sent meanwhile.
    pub fn end(&mut self, is_all: bool) {
        self.savepoints = 0;
        if is_all {
            self.objects = 0;
        }
    }
}

fn too_many(what: &str, limit: u32) -> Error {
    Error::new(
        Kind::ConfigurationLimitExceeded,
        format!("too many {what} in one transaction"),
    )
    .with_hint(format!(
        "pgtenant allows {limit} here (limits.{what} of the placement), since all tenants share the server's lock table."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: TransactionLimits = TransactionLimits {
        savepoints: Some(3),
        objects: Some(5),
        ..TransactionLimits::NONE
    };

    #[test]
    fn what_a_text_takes_is_counted_before_it_is_sent() {
        let create = "CREATE TEMP TABLE t (a serial UNIQUE, b int PRIMARY KEY)";
        for (text, is_allowed) in [
            ("SELECT 1".to_owned(), true),
            (create.to_owned(), true),
            (format!("{create}; {create}"), false),
            ("SAVEPOINT a; SAVEPOINT b; SAVEPOINT c".to_owned(), true),
            ("SAVEPOINT a; ".repeat(4), false),
            ("DROP TABLE t; ".repeat(5), true),
            ("DROP TABLE t; ".repeat(6), false),
            ("LOCK TABLE t; ".repeat(6), false),
            ("ALTER TABLE t ADD UNIQUE (a); ".repeat(3), false),
            ("SELECT 1 INTO TEMP t; ".repeat(6), false),
            ("SELECT pg_advisory_xact_lock(1); ".repeat(6), false),
            ("SELECT 1; ".repeat(6), true),
        ] {
            let effects = Effects::of(text.as_bytes(), false);
            let checked = Locks::default().check(&effects, &LIMITS);
            assert_eq!(checked.is_ok(), is_allowed, "{text}");
            assert!(
                Locks::default()
                    .check(&effects, &TransactionLimits::NONE)
                    .is_ok()
            );
        }
    }

    #[test]
    fn it_adds_up_until_the_transaction_ends() {
        let mut locks = Locks::default();
        let create = Effects::of(b"CREATE TEMP TABLE t (a int)", false);
        for _ in 0..5 {
            assert!(locks.check(&create, &LIMITS).is_ok());
            locks.note(&create);
        }
        assert!(locks.check(&create, &LIMITS).is_err());
        locks.end(false);
        assert!(locks.check(&create, &LIMITS).is_err());
        locks.end(true);
        assert!(locks.check(&create, &LIMITS).is_ok());
        for _ in 0..10 {
            assert!(locks.complete(b"SAVEPOINT", &LIMITS).is_ok());
            assert!(locks.complete(b"RELEASE", &LIMITS).is_ok());
        }
        for _ in 0..3 {
            assert!(locks.complete(b"SAVEPOINT", &LIMITS).is_ok());
        }
        let savepoint = Effects::of(b"SAVEPOINT a", false);
        assert!(locks.check(&savepoint, &LIMITS).is_err());
        assert!(locks.complete(b"SAVEPOINT", &LIMITS).is_err());
        locks.end(false);
        assert!(locks.check(&savepoint, &LIMITS).is_ok());
    }
}
