//! The characteristics of a transaction that no server has yet, and what PostgreSQL lets it change
//! of them.

use crate::error::{Error, Kind, Result};

/// What a transaction is by the texts that are held for it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Characteristics<'h> {
    isolation: &'h str,
    read_only: bool,
    /// A savepoint is open.
    is_in_subtransaction: bool,
    /// Those of the texts that say so, the BEGIN first: what the next transaction begins with if it
    /// is chained to this one (xact.c: SaveTransactionCharacteristics). What was set behind a
    /// savepoint that was rolled back to is gone.
    pub said_by: Vec<&'h str>,
}

/// A mode of BEGIN and SET TRANSACTION.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode<'t> {
    Isolation(&'t str),
    ReadOnly,
    ReadWrite,
    Deferrable,
}

/// PostgreSQL's own default; another is not known before a server is asked.
const USUAL: &str = "read committed";

impl<'h> Characteristics<'h> {
    /// `held`: the texts, in lower case but for names.
    pub fn of(held: &'h [String]) -> Self {
        let (mut said_by, mut savepoints) = (Vec::new(), Vec::<(&str, usize)>::new());
        for (at, text) in held.iter().enumerate() {
            let last = |savepoints: &[(&str, usize)], name: &str| {
                savepoints.iter().rposition(|(known, _)| *known == name)
            };
            if at == 0 || text.starts_with("set transaction") {
                said_by.push(&**text);
            } else if let Some(name) = text.strip_prefix("SAVEPOINT ") {
                savepoints.push((name, said_by.len()));
            } else if let Some(name) = text.strip_prefix("RELEASE ") {
                let released = last(&savepoints, name);
                savepoints.truncate(released.unwrap_or(savepoints.len()));
            } else if let Some(name) = text.strip_prefix("ROLLBACK TO ")
                && let Some(back) = last(&savepoints, name)
            {
                said_by.truncate(savepoints[back].1);
                savepoints.truncate(back + 1);
            }
        }
        let (mut isolation, mut read_only) = (USUAL, false);
        for mode in said_by.iter().flat_map(|text| modes(text)) {
            match mode {
                Mode::Isolation(level) => isolation = level,
                Mode::ReadOnly => read_only = true,
                Mode::ReadWrite => read_only = false,
                Mode::Deferrable => {}
            }
        }
        Self {
            isolation,
            read_only,
            is_in_subtransaction: !savepoints.is_empty(),
            said_by,
        }
    }

    /// Whether the modes of a text can be set. `has_queried`: a query was answered in the
    /// transaction.
    ///
    /// # Errors
    /// 25001, as variable.c has it (check_transaction_isolation, _read_only, _deferrable).
    pub fn check(mut self, text: &'h str, has_queried: bool) -> Result<()> {
        let in_subtransaction = self.is_in_subtransaction;
        for mode in modes(text) {
            let message = match mode {
                Mode::Isolation(level) if level == self.isolation => "",
                Mode::Isolation(_) if has_queried => {
                    "SET TRANSACTION ISOLATION LEVEL must be called before any query"
                }
                Mode::Isolation(_) if in_subtransaction => {
                    "SET TRANSACTION ISOLATION LEVEL must not be called in a subtransaction"
                }
                Mode::Isolation(level) => {
                    self.isolation = level;
                    ""
                }
                Mode::ReadWrite if self.read_only && in_subtransaction => {
                    "cannot set transaction read-write mode inside a read-only transaction"
                }
                Mode::ReadWrite if self.read_only && has_queried => {
                    "transaction read-write mode must be set before any query"
                }
                Mode::ReadOnly | Mode::ReadWrite => {
                    self.read_only = mode == Mode::ReadOnly;
                    ""
                }
                Mode::Deferrable if in_subtransaction => {
                    "SET TRANSACTION [NOT] DEFERRABLE cannot be called within a subtransaction"
                }
                Mode::Deferrable if has_queried => {
                    "SET TRANSACTION [NOT] DEFERRABLE must be called before any query"
                }
                Mode::Deferrable => "",
            };
            if !message.is_empty() {
                return Err(Error::new(Kind::ActiveTransaction, message));
            }
        }
        Ok(())
    }
}

/// What a BEGIN sets in a transaction that is open already, as a statement that does. None:
/// nothing.
pub(super) fn set_by_begin(text: &str) -> Option<String> {
    let at = ["isolation ", "read ", "deferrable", "not "]
        .iter()
        .filter_map(|word| text.find(word))
        .min()?;
    Some(format!("set transaction {}", &text[at..]))
}

/// The modes of a text, in order.
fn modes(text: &str) -> impl Iterator<Item = Mode<'_>> {
    const LEVELS: [&str; 4] = [
        "serializable",
        "repeatable read",
        "read committed",
        "read uncommitted",
    ];
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            if rest.is_empty() {
                return None;
            }
            let level = rest.strip_prefix("isolation level ").and_then(|after| {
                let mut levels = LEVELS.into_iter();
                levels.find(|level| after.starts_with(level))
            });
            let (mode, length) = match level {
                Some(level) => (
                    Some(Mode::Isolation(level)),
                    "isolation level ".len() + level.len(),
                ),
                None if rest.starts_with("read only") => (Some(Mode::ReadOnly), 9),
                None if rest.starts_with("read write") => (Some(Mode::ReadWrite), 10),
                None if rest.starts_with("deferrable") => (Some(Mode::Deferrable), 10),
                None => (None, rest.chars().next().map_or(1, char::len_utf8)),
            };
            rest = &rest[length..];
            if mode.is_some() {
                return mode;
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn modes_are_read_in_order() {
        let text = "begin isolation level repeatable read , read only not deferrable";
        let found: Vec<_> = modes(text).collect();
        let level = Mode::Isolation("repeatable read");
        assert_eq!(found, [level, Mode::ReadOnly, Mode::Deferrable]);
        let set = "set transaction isolation level repeatable read , read only not deferrable";
        assert_eq!(set_by_begin(text).as_deref(), Some(set));
        assert_eq!(set_by_begin("start transaction"), None);
    }

    #[test]
    fn what_a_savepoint_takes_back_is_not_chained() {
        let held = held(&[
            "begin",
            "SAVEPOINT \"a\"",
            "set transaction read only",
            "SAVEPOINT \"b\"",
            "RELEASE \"b\"",
            "ROLLBACK TO \"a\"",
            "set transaction isolation level serializable",
            "set local work_mem = '1MB'",
        ]);
        let found = Characteristics::of(&held);
        assert_eq!(
            found.said_by,
            ["begin", "set transaction isolation level serializable"]
        );
        assert!(!found.read_only && found.is_in_subtransaction);
        assert_eq!(found.isolation, "serializable");
    }

    #[test]
    fn what_postgresql_lets_nobody_change_is_refused() {
        let read_only = held(&["begin read only"]);
        let behind = held(&["begin read only", "SAVEPOINT \"a\""]);
        let serializable = "set transaction isolation level serializable";
        for (held, text, has_queried, is_allowed) in [
            (&read_only, "set transaction read write", false, true),
            (&read_only, "set transaction read write", true, false),
            (&read_only, "set transaction read only", true, true),
            (&behind, "set transaction read write", false, false),
            (&read_only, serializable, true, false),
            (&read_only, serializable, false, true),
            (&behind, serializable, false, false),
            (
                &behind,
                "set transaction isolation level read committed",
                true,
                true,
            ),
            (&read_only, "set transaction not deferrable", true, false),
            (&behind, "set transaction deferrable", false, false),
        ] {
            let checked = Characteristics::of(held).check(text, has_queried);
            assert_eq!(checked.is_ok(), is_allowed, "{held:?} {text} {has_queried}");
        }
    }
}
