//! Sealing: the context of a connection with a MAC that policies verify inside PostgreSQL, so that no SQL of a
//! tenant can name another one.
//!
//! ```text
//!   pgtenant.challenge(…) ──► epoch of this session, pid, start of the server, its clock
//!   pgtenant.next_epoch() ──► a new epoch: the rest is known
//!   pgtenant.context = tenant|expires|key|HMAC(tenant|expires|key epoch pid start)
//! ```
//!
//! The *epoch* is a number that the database gives a session anew each time that the session is to serve another tenant,
//! and never to two: a value that leaks is good on no other connection, for no other binding of the same connection,
//! and not after a restart. Only functions of the schema can change a session's epoch; when the session loses it (DISCARD
//! SEQUENCES), its policies deny. `src/control/sql/seal.sql` is the other half.

use std::time::{Duration, Instant};

use memchr::memmem;

use crate::config::Seal;
use crate::error::{Error, Kind};
use crate::protocol::reply::ErrorFields;

/// Of `src/control/sql/seal.sql`.
const VERSION: &str = "2";

/// From 1970 to 2000, where PostgreSQL counts from, in µs.
const EPOCH_OF_POSTGRESQL: i64 = 946_684_800_000_000;

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
    /// The number of its binding. None: the session was scrubbed.
    epoch: Option<i64>,
    pid: i32,
    /// When the server started, µs since 1970.
    started: i64,
    /// The server's clock, s since 1970, when it was asked.
    clock: u64,
    asked: Instant,
    /// The oid of `pgtenant.next_epoch()`.
    next_epoch: u32,
    /// The id of the key that the database knew then.
    key: String,
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

    /// The session was scrubbed: it has no epoch any more, and no value.
    pub fn discard(&mut self) {
        self.renew_at = None;
        if let Some(session) = &mut self.session {
            session.epoch = None;
        }
    }

    /// The function to call for a new epoch, if all else that a value is bound to is known, and was asked for lately: the
    /// server's clock may be set, and the key be retired.
    pub fn short_question(&self, seal: &Seal) -> Option<u32> {
        let session = self.session.as_ref()?;
        let is_late = session.asked.elapsed() >= seal.lifetime / 2;
        (!is_late && session.key == seal.key.id()).then_some(session.next_epoch)
    }

    /// As [`seal`](Self::seal), from the answer to the short question.
    ///
    /// # Errors
    /// 08006: it is none.
    pub fn seal_next(&mut self, seal: &Seal, answer: Option<&str>) -> Result<String, Error> {
        let epoch = answer.and_then(|answer| answer.parse().ok());
        match (&mut self.session, epoch) {
            (Some(session), Some(epoch)) => {
                session.epoch = Some(epoch);
                self.value(seal)
            }
            _ => Err(not_sealed(
                "pgtenant.next_epoch() gave an answer that is none",
            )),
        }
    }

    /// Asks for the session's epoch, outside a transaction. Nothing in it is a secret. A session may be read-only by default.
    pub fn question(&self, seal: &Seal, keep: bool) -> String {
        let known = self.session.as_ref().filter(|_| keep);
        format!(
            "BEGIN READ WRITE; SELECT pgtenant.challenge({}, '{}'); COMMIT",
            known.and_then(|session| session.epoch).unwrap_or(0),
            seal.key.id()
        )
    }

    /// The value of the variable, from the database's answer to the question.
    ///
    /// # Errors
    /// 08006: the database is not prepared for this proxy.
    pub fn seal(&mut self, seal: &Seal, answer: Option<&str>) -> Result<String, Error> {
        self.session = Some(Session::read(answer.unwrap_or_default(), seal.key.id())?);
        self.value(seal)
    }

    fn value(&mut self, seal: &Seal) -> Result<String, Error> {
        let Some((session, epoch)) = self.session.as_ref().and_then(|s| Some((s, s.epoch?))) else {
            return Err(not_sealed("the session has no epoch"));
        };
        let lifetime = seal.lifetime;
        // Both by whole seconds since the server was asked, so that it is renewed well before it expires.
        let since = session.asked.elapsed().as_secs();
        let expires = session.clock + since + lifetime.as_secs();
        let signed = format!("{}|{expires}|{}", seal.tenant, seal.key.id());
        // As int8send(), int4send() and timestamptz_send() write them.
        let mac = seal.key.sign(
            &[
                signed.as_bytes(),
                &epoch.to_be_bytes(),
                &session.pid.to_be_bytes(),
                &(session.started - EPOCH_OF_POSTGRESQL).to_be_bytes(),
            ]
            .concat(),
        );
        self.renew_at = Some(session.asked + Duration::from_secs(since) + lifetime / 2);
        seal.key.id().clone_into(&mut self.key);
        Ok(format!("{signed}|{mac}"))
    }
}

impl Session {
    fn read(answer: &str, key: &str) -> Result<Self, Error> {
        let malformed = || not_sealed("pgtenant.challenge() gave an answer that is none");
        let fields: Vec<&str> = answer.split('|').collect();
        let version = fields.first().copied().unwrap_or_default();
        if !version.is_empty() && version != VERSION {
            return Err(not_sealed(format_args!(
                "its seal has version {version}, not {VERSION}: run `pgtenant seal`"
            )));
        }
        let [_, epoch, pid, started, clock, keys, next_epoch] = fields[..] else {
            return Err(malformed());
        };
        if keys != "1" {
            return Err(not_sealed(
                "it does not know the key of servers.*.seal, or has retired it: run `pgtenant seal`",
            ));
        }
        let number = |text: &str| text.parse::<i64>().map_err(|_| malformed());
        Ok(Self {
            epoch: Some(number(epoch)?),
            pid: pid.parse().map_err(|_| malformed())?,
            started: number(started)?,
            clock: clock.parse().map_err(|_| malformed())?,
            asked: Instant::now(),
            next_epoch: next_epoch.parse().map_err(|_| malformed())?,
            key: key.to_owned(),
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
        let one = value("2|7|42|946684800000009|500|1|99");
        let id = seal.key.id();
        let signed = format!("globex|1100|{id}");
        let binary = [0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 42, 0, 0, 0, 0, 0, 0, 0, 9];
        let mac = seal.key.sign(&[signed.as_bytes(), &binary].concat());
        assert_eq!(one, format!("{signed}|{mac}"));
        for other in [
            "2|8|42|946684800000009|500|1|99",
            "2|7|43|946684800000009|500|1|99",
            "2|7|42|946684800000008|500|1|99",
            "2|7|42|946684800000009|501|1|99",
        ] {
            assert_ne!(value(other), one, "{other}");
        }
    }

    #[test]
    fn what_a_database_that_is_not_prepared_says_is_refused() {
        for answer in [
            "",
            "2|7|42|1000|500|0|99",
            "1|7|42|1000|500|1",
            "2|x|42|1000|500|1|99",
            "2|7|42|1000|500|1",
            "2|7|42|1|1|1|1|1",
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
        sealed
            .seal(&seal(600), Some("2|7|42|1000|500|1|99"))
            .unwrap();
        assert!(!sealed.needs(&seal(600)));
        let other = Seal {
            key: SealKey::derive(&Secret::new("y".repeat(32)), "app"),
            ..seal(600)
        };
        assert!(sealed.needs(&other));
        sealed.seal(&seal(0), Some("2|7|42|1000|500|1|99")).unwrap();
        assert!(sealed.is_due() && sealed.needs(&seal(0)));
    }

    #[test]
    fn a_scrubbed_session_is_asked_for_its_epoch_alone() {
        let (mut sealed, seal) = (Sealed::default(), seal(600));
        assert_eq!(sealed.short_question(&seal), None);
        let first = sealed.seal(&seal, Some("2|7|42|1000|500|1|99")).unwrap();
        sealed.discard();
        assert!(sealed.needs(&seal) && sealed.question(&seal, true).contains("challenge(0,"));
        assert_eq!(sealed.short_question(&seal), Some(99));
        assert_ne!(sealed.seal_next(&seal, Some("8")).unwrap(), first);
        assert!(!sealed.needs(&seal));
        assert!(
            sealed.seal_next(&seal, Some("x")).is_err() && sealed.seal_next(&seal, None).is_err()
        );
        assert_eq!(
            sealed.short_question(&Seal {
                lifetime: Duration::ZERO,
                ..seal
            }),
            None
        );
    }

    #[test]
    fn the_epoch_is_kept_only_where_that_is_asked_for() {
        let mut sealed = Sealed::default();
        assert!(sealed.question(&seal(600), true).contains("challenge(0,"));
        sealed
            .seal(&seal(600), Some("2|7|42|1000|500|1|99"))
            .unwrap();
        assert!(sealed.question(&seal(600), true).contains("challenge(7,"));
        assert!(sealed.question(&seal(600), false).contains("challenge(0,"));
    }
}
