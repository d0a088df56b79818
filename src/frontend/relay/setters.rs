//! In session pooling: prepared statements that set a variable of the tenant's context by a
//! parameter. Each Bind of one is looked at.
//!
//! The server keeps the statements, and which message it passes over is not known before it
//! answers. So one that may be there counts as being there: where a name was used twice, a Bind
//! must be right for both.

use thin_vec::ThinVec;

use crate::error::{Error, Kind, Result};
use crate::sql::effects::uses::{Use, Verb, Which};

/// Most of them that one client may have, and most bytes of each.
const MOST: usize = 100;
const MAX_BYTES: usize = 8 * 1024;

#[derive(Debug, Default)]
pub struct Setters(Vec<Setter>);

#[derive(Debug)]
struct Setter {
    name: Box<[u8]>,
    /// The text, its NUL, and the types of the Parse.
    definition: Box<[u8]>,
}

impl Setters {
    /// # Errors
    /// 42501 if there are too many.
    pub fn note(&mut self, name: &[u8], definition: &[u8]) -> Result<()> {
        let is_it = |known: &Setter| *known.name == *name && *known.definition == *definition;
        if self.0.iter().any(is_it) {
            return Ok(());
        }
        if self.0.len() == MOST || definition.len() > MAX_BYTES {
            let message =
                "permission denied to set a variable of the tenant's context by a parameter";
            return Err(Error::new(Kind::InsufficientPrivilege, message)
                .with_hint("Write the value into the statement."));
        }
        self.0.push(Setter {
            name: name.into(),
            definition: definition.into(),
        });
        Ok(())
    }

    /// The server drops what has this name for certain.
    pub fn forget(&mut self, name: &[u8]) {
        self.0.retain(|known| *known.name != *name);
    }

    /// What has this name, or may have.
    pub fn named<'s>(&'s self, name: &'s [u8]) -> impl Iterator<Item = &'s [u8]> {
        let named = self.0.iter().filter(move |known| *known.name == *name);
        named.map(|known| &*known.definition)
    }

    /// Whether SQL executes one: its parameters are not looked at there.
    ///
    /// # Errors
    /// 42501.
    pub fn check_uses(&self, uses: &ThinVec<Use>) -> Result<()> {
        let is_one = |used: &Use| match (&used.verb, &used.which) {
            (Verb::Execute, Which::Name(name)) => self.named(name).next().is_some(),
            (Verb::Execute, _) => true,
            _ => false,
        };
        if self.0.is_empty() || !uses.iter().any(is_one) {
            return Ok(());
        }
        let message = "permission denied to execute this statement by SQL";
        Err(Error::new(Kind::InsufficientPrivilege, message).with_hint(
            "It sets a variable of the tenant's context by a parameter, and the protocol has prepared it.",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::effects::Effects;

    #[test]
    fn what_may_be_there_is_there() {
        let mut setters = Setters::default();
        setters.note(b"a", b"one\0\0\0").unwrap();
        setters.note(b"a", b"two\0\0\0").unwrap();
        setters.note(b"a", b"two\0\0\0").unwrap();
        assert_eq!(setters.named(b"a").count(), 2);
        assert_eq!(setters.named(b"").count(), 0);
        let uses = |sql: &str| setters.check_uses(&Effects::of(sql.as_bytes(), false).uses);
        assert!(uses("SELECT 1; EXECUTE a('x')").is_err());
        assert!(uses("EXECUTE b('x')").is_ok());
        setters.forget(b"a");
        for i in 0..MOST {
            setters
                .note(i.to_string().as_bytes(), b"one\0\0\0")
                .unwrap();
        }
        assert!(setters.note(b"more", b"one\0\0\0").is_err());
    }
}
