//! Newtypes for the names of the product's things, so that a tenant can never be passed where a
//! server is meant. Names are checked once, when they are made.

use std::fmt;
use std::sync::Arc;

/// Longest name accepted, in bytes: PostgreSQL's NAMEDATALEN - 1, so that a name fits a role, a
/// schema or a database.
pub const MAX_NAME: usize = 63;

/// Why a string is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error("must not be empty")]
    Empty,
    #[error("must be at most {MAX_NAME} bytes long")]
    TooLong,
    #[error("may hold only letters, digits, '_' and '-', and not {0:?}")]
    Character(char),
    #[error("must begin with a letter or a digit")]
    Start,
}

fn check(name: &str) -> Result<(), InvalidName> {
    if name.is_empty() {
        return Err(InvalidName::Empty);
    }
    if name.len() > MAX_NAME {
        return Err(InvalidName::TooLong);
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if let Some(c) = name.chars().find(|&c| !allowed(c)) {
        return Err(InvalidName::Character(c));
    }
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(InvalidName::Start);
    }
    Ok(())
}

/// A pool of server connections, by a number that no other pool of its server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolId(pub u64);

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks and wraps `name`.
            ///
            /// # Errors
            /// What is wrong with it: empty, over [`MAX_NAME`] bytes, or a character that is not
            /// an ASCII letter, digit, `_` or `-`.
            pub fn new(name: &str) -> Result<Self, InvalidName> {
                check(name)?;
                Ok(Self(name.into()))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// A tenant: whose data it is. Case matters.
    TenantId
);
name!(
    /// A PostgreSQL instance as the config names it.
    ServerName
);
name!(
    /// A kind of place as the config names it.
    PlacementName
);

impl TenantId {
    /// What a tenant is called in one of its services: `tenant:service`, which no tenant's own name
    /// is.
    pub fn in_service(&self, service: &str) -> Self {
        Self(format!("{self}:{service}").into())
    }

    /// What an operator calls a tenant or one of its services.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn read(name: &str) -> Result<Self, InvalidName> {
        match name.split_once(':') {
            Some((tenant, service)) => {
                check(service)?;
                Ok(Self::new(tenant)?.in_service(service))
            }
            None => Self::new(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_mistaken_for_something_else_are_refused() {
        for (name, why) in [
            ("", InvalidName::Empty),
            ("a.b", InvalidName::Character('.')),
            ("a b", InvalidName::Character(' ')),
            ("a\0", InvalidName::Character('\0')),
            ("ä", InvalidName::Character('ä')),
            ("-a", InvalidName::Start),
        ] {
            assert_eq!(TenantId::new(name), Err(why), "{name:?}");
        }
        assert_eq!(TenantId::new(&"a".repeat(64)), Err(InvalidName::TooLong));
        assert_eq!(
            TenantId::read("a:b"),
            TenantId::new("a").map(|tenant| tenant.in_service("b"))
        );
        assert!(TenantId::read("a:b:c").is_err() && TenantId::read("a:").is_err());
        assert!(TenantId::new("550e8400-e29b-41d4-a716-446655440000").is_ok());
    }
}
