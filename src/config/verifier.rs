//! SCRAM-SHA-256 verifiers as text, the form of `pg_authid.rolpassword`:
//! `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{SCRAM_KEY, ScramVerifier};

/// Most iterations accepted. A client computes them all at login; PostgreSQL's default is 4096.
pub const MAX_ITERATIONS: u32 = 1_000_000;

/// Why a text is not a verifier. It does not repeat the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidVerifier {
    #[error(
        "must be a verifier, SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey> \
         (`pgtenant hash-password` makes one)"
    )]
    Form,
    #[error("has iterations that are not a number from 1 to {MAX_ITERATIONS}")]
    Iterations,
    #[error("has a salt that is empty or not base64")]
    Salt,
    #[error("has a StoredKey or ServerKey that is not the base64 of {SCRAM_KEY} bytes")]
    Key,
}

impl ScramVerifier {
    /// Takes a verifier apart.
    ///
    /// # Errors
    /// The first part that is not as it should be.
    pub fn parse(text: &str) -> Result<Self, InvalidVerifier> {
        let (cost, keys) = text
            .strip_prefix("SCRAM-SHA-256$")
            .and_then(|rest| rest.split_once('$'))
            .ok_or(InvalidVerifier::Form)?;
        let (iterations, salt) = cost.split_once(':').ok_or(InvalidVerifier::Form)?;
        let (stored_key, server_key) = keys.split_once(':').ok_or(InvalidVerifier::Form)?;
        let iterations = iterations
            .parse()
            .ok()
            .filter(|i| (1..=MAX_ITERATIONS).contains(i))
            .ok_or(InvalidVerifier::Iterations)?;
        let salt = STANDARD.decode(salt).unwrap_or_default();
        if salt.is_empty() {
            return Err(InvalidVerifier::Salt);
        }
        Ok(Self {
            iterations,
            salt: salt.into(),
            stored_key: key(stored_key)?,
            server_key: key(server_key)?,
        })
    }

    /// The text that [`parse`](Self::parse) reads. It is as good as the password to somebody who
    /// wants to be the server, and lets anybody guess the password: not for logs.
    pub fn to_text(&self) -> impl fmt::Display + use<> {
        format!(
            "SCRAM-SHA-256${}:{}${}:{}",
            self.iterations,
            STANDARD.encode(&self.salt),
            STANDARD.encode(self.stored_key),
            STANDARD.encode(self.server_key),
        )
    }
}

fn key(text: &str) -> Result<[u8; SCRAM_KEY], InvalidVerifier> {
    STANDARD
        .decode(text)
        .ok()
        .and_then(|key| key.try_into().ok())
        .ok_or(InvalidVerifier::Key)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of PostgreSQL 15: the password "pencil" with the salt of RFC 7677.
    const PENCIL: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==\
        $WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    #[test]
    fn a_verifier_survives_being_taken_apart_and_put_together() {
        let verifier = ScramVerifier::parse(PENCIL).unwrap();
        assert_eq!((verifier.iterations, verifier.salt.len()), (4096, 16));
        assert_eq!(verifier.to_text().to_string(), PENCIL);
        assert_eq!(format!("{verifier:?}"), "ScramVerifier(***)");
    }

    #[test]
    fn a_verifier_with_a_broken_part_is_refused() {
        for (from, to, why) in [
            ("SCRAM-SHA-256$", "md5", InvalidVerifier::Form),
            ("==$", "==", InvalidVerifier::Form),
            ("=:", "=", InvalidVerifier::Form),
            ("4096:", "4096", InvalidVerifier::Form),
            ("4096", "0", InvalidVerifier::Iterations),
            ("4096", "1000001", InvalidVerifier::Iterations),
            ("4096", "-1", InvalidVerifier::Iterations),
            ("W22ZaJ0SNY7soEsUEjb6gQ==", "", InvalidVerifier::Salt),
            ("W22ZaJ0SNY7soEsUEjb6gQ==", "*", InvalidVerifier::Salt),
            ("qY=:", "qY:", InvalidVerifier::Key),
            ("WG5d", "", InvalidVerifier::Key),
            ("wfPL", "", InvalidVerifier::Key),
        ] {
            assert!(PENCIL.contains(from), "{from}");
            assert_eq!(
                ScramVerifier::parse(&PENCIL.replace(from, to)),
                Err(why),
                "{from}"
            );
        }
    }
}
