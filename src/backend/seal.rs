//! Sealing: binding a session to its tenant by a value with a MAC that is verified inside
//! PostgreSQL, so that no SQL of a tenant can name another one.
//!
//! ```text
//!   once      pgtenant.challenge(…) ──► pid, start of the server, its clock
//!   a change  DISCARD ALL, pgtenant.bind_<key>(tenant|until|hash|hash|in time|HMAC(… pid start))
//!             └─ the session's tenant is set, where only that function can: the tenant's queries find it there
//! ```
//!
//! The value is known to this process and to the function, and is never where a tenant could read
//! it: so it is not the tenant's to use again. It takes no exchange: all that it is bound to is
//! known. `src/control/sql/seal.sql` is the other half.

use std::time::{Duration, Instant};

use memchr::memmem;
use sha2::{Digest, Sha256};

use crate::backend::binding::not_set_for;
use crate::config::Seal;
use crate::error::{Error, Kind};
use crate::protocol::reply::ErrorFields;

/// Of `src/control/sql/seal.sql`.
const VERSION: &str = "3";

/// From 1970 to 2000, where PostgreSQL counts from, in µs.
const EPOCH_OF_POSTGRESQL: i64 = 946_684_800_000_000;

/// For how long a value can be used to bind, at most. It is used at once, behind what a busy server
/// has still to do.
const IN_TIME: Duration = Duration::from_secs(60);

/// The SQLSTATEs of `pgtenant.tenant_id()`, as fields of an ErrorResponse: not valid, not bound.
const REFUSALS: [&[u8]; 2] = [b"\0C42501\0", b"\0C55000\0"];

/// What `pgtenant.tenant_id()` raises for a context that is not valid.
const NOT_VALID: &str = "the tenant context of this session is not valid";

/// Whether an error says that a sealed context was forged, has expired or is lost. A tenant that
/// may define functions can raise the same: it is then what that tenant wants known of itself.
pub fn is_refusal(fields: &ErrorFields) -> bool {
    match &*fields.sqlstate {
        "42501" => fields.routine == "exec_stmt_raise" && fields.message == NOT_VALID,
        "55000" => fields.routine == "currval_oid" && fields.context.contains("tenant_id()"),
        _ => false,
    }
}

/// What a server connection is bound with.
#[derive(Debug, Default)]
pub struct Sealed {
    session: Option<Session>,
    /// When it is to be bound anew.
    renew_at: Option<Instant>,
    key: String,
}

/// What the database says of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Session {
    pid: i32,
    /// When the server started, µs since 1970.
    started: i64,
    /// The server's clock, s since 1970, when it was asked.
    clock: u64,
    asked: Instant,
    /// The id of the key that the database knew then.
    key: String,
}

/// What binds a session to a tenant.
pub struct Credential {
    /// The function to call, of `pgtenant`; an identifier.
    pub function: String,
    /// Its argument. Never to be in the text of a statement, which other sessions could see.
    pub sealed: String,
}

impl Sealed {
    /// Whether less than half of its life is left.
    pub fn is_due(&self) -> bool {
        self.renew_at.is_some_and(|at| Instant::now() >= at)
    }

    /// Whether it must be bound (again) to be good for `seal` for a while.
    pub fn needs(&self, seal: &Seal) -> bool {
        self.renew_at.is_none() || self.key != seal.key.id() || self.is_due()
    }

    /// Whether a statement may have failed because the session is not bound any more: by a DISCARD
    /// SEQUENCES that was hidden in a function, say. Then the context is to be set again. `body`:
    /// of an ErrorResponse.
    pub fn may_be_refused_by(&self, body: &[u8]) -> bool {
        let mut refusals = REFUSALS.iter();
        self.session.is_some() && refusals.any(|code| memmem::find(body, code).is_some())
    }

    /// The session was scrubbed: it is not bound any more.
    pub fn discard(&mut self) {
        self.renew_at = None;
    }

    /// What is to be asked before a value can be made, outside a transaction; nothing, if all is
    /// known, and was asked for lately: the server's clock may be set, and the key be retired.
    /// Nothing in it is a secret. It fails on a standby, which can bind nobody.
    pub fn question(&self, seal: &Seal) -> Option<String> {
        let known = self.session.as_ref().is_some_and(|session| {
            session.key == seal.key.id() && session.asked.elapsed() < seal.lifetime / 2
        });
        (!known).then(|| {
            format!(
                "BEGIN READ WRITE; SELECT pgtenant.challenge(0, '{}'); COMMIT",
                seal.key.id()
            )
        })
    }

    /// Takes the database's answer to the question.
    ///
    /// # Errors
    /// 08006: the database is not prepared for this proxy.
    pub fn learn(&mut self, seal: &Seal, answer: Option<&str>) -> Result<(), Error> {
        self.session = Some(Session::read(answer.unwrap_or_default(), seal.key.id())?);
        Ok(())
    }

    /// A new value. It is to be used at once.
    ///
    /// # Errors
    /// 08006: the database was not asked.
    pub fn credential(&mut self, seal: &Seal) -> Result<Credential, Error> {
        let Some(session) = &self.session else {
            return Err(not_sealed("nothing is known of the session"));
        };
        // Both by whole seconds since the server was asked, so that it is renewed well before it
        // expires.
        let since = session.asked.elapsed().as_secs();
        let after = |time: Duration| {
            let seconds = session.clock + since + time.as_secs();
            i64::try_from(seconds).unwrap_or(i64::MAX / 2_000_000) * 1_000_000 - EPOCH_OF_POSTGRESQL
        };
        let [one, two] = halves(&seal.tenant);
        // A database tells whole seconds.
        let in_time = seal.lifetime.min(IN_TIME) + Duration::from_secs(1);
        let signed = format!(
            "{}|{}|{one}|{two}|{}",
            seal.tenant,
            after(seal.lifetime),
            after(in_time)
        );
        // As int4send() and timestamptz_send() write them.
        let mac = seal.key.sign(
            &[
                signed.as_bytes(),
                &session.pid.to_be_bytes(),
                &(session.started - EPOCH_OF_POSTGRESQL).to_be_bytes(),
            ]
            .concat(),
        );
        self.renew_at = Some(session.asked + Duration::from_secs(since) + seal.lifetime / 2);
        seal.key.id().clone_into(&mut self.key);
        Ok(Credential {
            function: format!("bind_{}", self.key),
            sealed: format!("{signed}|{mac}"),
        })
    }
}

/// The first 16 bytes of SHA-256, as two of PostgreSQL's bigint.
fn halves(tenant: &str) -> [i64; 2] {
    let hash: [u8; 32] = Sha256::digest(tenant).into();
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, ..] = hash;
    [[a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]].map(i64::from_be_bytes)
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
        let [_, pid, started, clock, keys] = fields[..] else {
            return Err(malformed());
        };
        if keys != "1" {
            return Err(not_sealed(
                "it does not know the key of servers.*.seal, or has retired it: run `pgtenant seal`",
            ));
        }
        Ok(Self {
            pid: pid.parse().map_err(|_| malformed())?,
            started: started.parse().map_err(|_| malformed())?,
            clock: clock.parse().map_err(|_| malformed())?,
            asked: Instant::now(),
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
        _ => not_set_for(fields),
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

    fn known(seal: &Seal, answer: &str) -> Sealed {
        let mut sealed = Sealed::default();
        sealed.learn(seal, Some(answer)).unwrap();
        sealed
    }

    #[test]
    fn a_value_is_bound_to_all_that_the_database_said() {
        let seal = seal(600);
        let value = |answer: &str| known(&seal, answer).credential(&seal).unwrap();
        // 500 s after 2000 began.
        let one = value("3|42|946684800000009|946685300|1");
        assert_eq!(one.function, format!("bind_{}", seal.key.id()));
        let hash: [u8; 32] = Sha256::digest("globex").into();
        let half = |at: usize| i64::from_be_bytes(hash[at..at + 8].try_into().unwrap());
        let signed = format!("globex|1100000000|{}|{}|561000000", half(0), half(8));
        let binary = [0, 0, 0, 42, 0, 0, 0, 0, 0, 0, 0, 9];
        let mac = seal.key.sign(&[signed.as_bytes(), &binary].concat());
        assert_eq!(one.sealed, format!("{signed}|{mac}"));
        for other in [
            "3|43|946684800000009|946685300|1",
            "3|42|946684800000008|946685300|1",
            "3|42|946684800000009|946685301|1",
        ] {
            assert_ne!(value(other).sealed, one.sealed, "{other}");
        }
    }

    #[test]
    fn what_a_database_that_is_not_prepared_says_is_refused() {
        for answer in [
            "",
            "3|42|1000|500|0",
            "2|7|42|1000|500|1|99",
            "1|7|42|1000|500|1",
            "3|x|1000|500|1",
            "3|42|1000|500",
            "3|1|1|1|1|1",
        ] {
            let error = Sealed::default()
                .learn(&seal(600), Some(answer))
                .unwrap_err();
            assert!(
                error.to_string().contains("not prepared"),
                "{answer}: {error}"
            );
        }
        assert!(Sealed::default().credential(&seal(600)).is_err());
    }

    #[test]
    fn it_is_renewed_with_half_of_its_life_left_and_for_another_key() {
        let mut sealed = known(&seal(600), "3|42|1000|500|1");
        assert!(sealed.needs(&seal(600)) && !sealed.is_due());
        sealed.credential(&seal(600)).unwrap();
        assert!(!sealed.needs(&seal(600)));
        let other = Seal {
            key: SealKey::derive(&Secret::new("y".repeat(32)), "app"),
            ..seal(600)
        };
        assert!(sealed.needs(&other));
        assert!(sealed.question(&other).is_some(), "is that key known?");
        sealed.credential(&seal(0)).unwrap();
        assert!(sealed.is_due() && sealed.needs(&seal(0)));
    }

    #[test]
    fn a_scrubbed_session_need_not_be_asked_again() {
        let seal = seal(600);
        assert!(Sealed::default().question(&seal).is_some());
        let mut sealed = known(&seal, "3|42|1000|500|1");
        sealed.credential(&seal).unwrap();
        sealed.discard();
        assert!(sealed.needs(&seal) && sealed.question(&seal).is_none());
        sealed.credential(&seal).unwrap();
        assert!(!sealed.needs(&seal));
        let late = Seal {
            lifetime: Duration::ZERO,
            ..seal
        };
        assert!(sealed.question(&late).is_some());
    }
}
