//! Sealing: the context of a connection with a MAC that policies verify inside PostgreSQL, so that no SQL of a
//! tenant can name another one.
//!
//! ```text
//!   pgtenant.challenge(…) ──► epoch of this session, pid, start of the server, its clock
//!   pgtenant.context = tenant|expires|key|HMAC(1|tenant|expires|epoch|pid|start)
//! ```
//!
//! The *epoch* is a number that the database gives a session anew each time that the session is to serve another tenant,
//! and never to two: a value that leaks is good on no other connection, for no other binding of the same connection,
//! and not after a restart. Only functions of the schema can change a session's epoch; when the session loses it (DISCARD
//! SEQUENCES), its policies deny. `src/control/sql/seal.sql` is the other half.

use std::time::Instant;

use memchr::memmem;

use crate::config::Seal;
use crate::error::{Error, Kind};
use crate::protocol::reply::ErrorFields;

/// Of `src/control/sql/seal.sql`.
const VERSION: &str = "1";

/// The SQLSTATEs of `pgtenant.tenant_id()`, as fields of an ErrorResponse: not valid, no epoch.
const REFUSALS: [&[u8]; 2] = [b"\0C42501\0", b"\0C55000\0"];

/// What `pgtenant.tenant_id()` raises for a context that is not valid.
const NOT_VALID: &str = "the tenant context of this session is not valid";

/// Whether an error says that a sealed context was forged, has expired or has lost its epoch. A tenant that may define
/// functions can raise the same: it is then what that tenant wants known of itself.
pub fn is_refusal(fields: &ErrorFields) -> bool {
    match &*fields.sqlstate {
        "42501" => fields.routine == "exec_stmt_raise" && fields.message == NOT_VALID,
        "55000" => fields.routine == "currval_oid" && fields.context.contains("tenant_id()"),
        _ => false,
    }
}

/// What a server connection is sealed with.
#[derive(Debug, Default)]
pub struct Sealed {
    session: Option<Session>,
    /// When it is to be sealed anew.
    renew_at: Option<Instant>,
    key: String,
}

/// What the database says of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Session {
    /// The number of its binding.
    epoch: i64,
    pid: i32,
    /// When the server started, µs since 1970.
    started: i64,
    /// The server's clock, s since 1970, when it was asked.
    clock: u64,
    asked: Instant,
}

impl Sealed {
    /// Whether less than half of its life is left.
    pub fn is_due(&self) -> bool {
        self.renew_at.is_some_and(|at| Instant::now() >= at)
    }

    /// Whether it must be sealed (again) to be good for `seal` for a while.
    pub fn needs(&self, seal: &Seal) -> bool {
        self.renew_at.is_none() || self.key != seal.key.id() || self.is_due()
    }

    /// Whether a statement may have failed because the session has lost its epoch: by a DISCARD SEQUENCES that was hidden in a
    /// function, say. Then the context is to be set again. `body`: of an ErrorResponse.
    pub fn may_be_refused_by(&self, body: &[u8]) -> bool {
        let mut refusals = REFUSALS.iter();
        self.session.is_some() && refusals.any(|code| memmem::find(body, code).is_some())
    }

    /// Asks for the session's epoch, outside a transaction. Nothing in it is a secret. A session may be read-only by default.
    pub fn question(&self, seal: &Seal, keep: bool) -> String {
        let known = self.session.as_ref().filter(|_| keep);
        format!(
            "BEGIN READ WRITE; SELECT pgtenant.challenge({}, '{}'); COMMIT",
            known.map_or(0, |session| session.epoch),
            seal.key.id()
        )
    }

    /// The value of the variable, from the database's answer to the question.
    ///
    /// # Errors
    /// 08006: the database is not prepared for this proxy.
    pub fn seal(&mut self, seal: &Seal, answer: Option<&str>) -> Result<String, Error> {
        let session = Session::read(answer.unwrap_or_default())?;
        let lifetime = seal.lifetime;
        let expires = session.clock + lifetime.as_secs();
        let tenant = &seal.tenant;
        let Session {
            epoch,
            pid,
            started,
            ..
        } = &session;
        let mac = seal
            .key
            .sign(&format!("1|{tenant}|{expires}|{epoch}|{pid}|{started}"));
        self.renew_at = Some(session.asked + lifetime / 2);
        seal.key.id().clone_into(&mut self.key);
        self.session = Some(session);
        Ok(format!("{tenant}|{expires}|{}|{mac}", seal.key.id()))
    }
}

impl Session {
    fn read(answer: &str) -> Result<Self, Error> {
        let malformed = || not_sealed("pgtenant.challenge() gave an answer that is none");
        let fields: Vec<&str> = answer.split('|').collect();
        let [version, epoch, pid, started, clock, keys] = fields[..] else {
            return Err(malformed());
        };
        if version != VERSION {
            return Err(not_sealed(format_args!(
                "its seal has version {version}, not {VERSION}: run `pgtenant seal`"
            )));
        }
        if keys != "1" {
            return Err(not_sealed(
                "it does not know the key of servers.*.seal, or has retired it: run `pgtenant seal`",
            ));
        }
        let number = |text: &str| text.parse::<i64>().map_err(|_| malformed());
        Ok(Self {
            epoch: number(epoch)?,
            pid: pid.parse().map_err(|_| malformed())?,
            started: number(started)?,
            clock: clock.parse().map_err(|_| malformed())?,
            asked: Instant::now(),
        })
    }
}

fn not_sealed(cause: impl std::fmt::Display) -> Error {
    Error::new(
        Kind::ConnectionFailure,
        "the tenant's database is not prepared for a sealed tenant context",
    )
    .caused_by(cause)
}

/// Why a database does not answer the question.
pub fn refused(fields: &ErrorFields) -> Error {
    match &*fields.sqlstate {
        // The schema or a function is not there, or not for this role.
        "3F000" | "42883" | "42P01" | "42501" => not_sealed(format_args!(
            "{}: {}: run `pgtenant seal`",
            fields.sqlstate, fields.message
        )),
        "25006" | "0A000" => not_sealed(format_args!(
            "{}: {}: a sealed placement needs a primary server",
            fields.sqlstate, fields.message
        )),
        _ => Error::new(Kind::ConnectionFailure, "could not set the tenant context")
            .caused_by(format_args!("{}: {}", fields.sqlstate, fields.message)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{SealKey, Secret};

    fn seal(lifetime: u64) -> Seal {
        Seal {
            tenant: "globex".to_owned(),
            key: SealKey::derive(&Secret::new("x".repeat(32)), "app"),
            lifetime: Duration::from_secs(lifetime),
        }
    }

    #[test]
    fn a_value_is_bound_to_all_that_the_database_said() {
        let seal = seal(600);
        let value = |answer: &str| Sealed::default().seal(&seal, Some(answer)).unwrap();
        let one = value("1|7|42|1000|500|1");
        let id = seal.key.id();
        let mac = seal.key.sign("1|globex|1100|7|42|1000");
        assert_eq!(one, format!("globex|1100|{id}|{mac}"));
        for other in [
            "1|8|42|1000|500|1",
            "1|7|43|1000|500|1",
            "1|7|42|1001|500|1",
            "1|7|42|1000|501|1",
        ] {
            assert_ne!(value(other), one, "{other}");
        }
    }

    #[test]
    fn what_a_database_that_is_not_prepared_says_is_refused() {
        for answer in [
            "",
            "1|7|42|1000|500|0",
            "2|7|42|1000|500|1",
            "1|x|42|1000|500|1",
            "1|7|42|1000|500",
            "1|7|42|1|1|1|1",
        ] {
            let error = Sealed::default()
                .seal(&seal(600), Some(answer))
                .unwrap_err();
            assert!(
                error.to_string().contains("not prepared"),
                "{answer}: {error}"
            );
        }
    }

    #[test]
    fn it_is_renewed_with_half_of_its_life_left_and_for_another_key() {
        let mut sealed = Sealed::default();
        assert!(sealed.needs(&seal(600)) && !sealed.is_due());
        sealed.seal(&seal(600), Some("1|7|42|1000|500|1")).unwrap();
        assert!(!sealed.needs(&seal(600)));
        let other = Seal {
            key: SealKey::derive(&Secret::new("y".repeat(32)), "app"),
            ..seal(600)
        };
        assert!(sealed.needs(&other));
        sealed.seal(&seal(0), Some("1|7|42|1000|500|1")).unwrap();
        assert!(sealed.is_due() && sealed.needs(&seal(0)));
    }

    #[test]
    fn the_epoch_is_kept_only_where_that_is_asked_for() {
        let mut sealed = Sealed::default();
        assert!(sealed.question(&seal(600), true).contains("challenge(0,"));
        sealed.seal(&seal(600), Some("1|7|42|1000|500|1")).unwrap();
        assert!(sealed.question(&seal(600), true).contains("challenge(7,"));
        assert!(sealed.question(&seal(600), false).contains("challenge(0,"));
    }
}
