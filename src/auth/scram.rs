//! SCRAM-SHA-256 toward clients, by pgwire's state machine.
//!
//! A user that does not exist goes through the same exchange as one that does, with a salt that is
//! always the same for the same name, so that neither the messages nor a second try tell them
//! apart.

use dashmap::DashMap;
use pgwire::api::auth::sasl::scram::{
    SCRAM_ITERATIONS, ScramSecret, ScramServerAuth, ScramServerAuthWaitingForClientFinal,
};
use pgwire::error::PgWireError;
use sha2::{Digest, Sha256};
use std::num::NonZeroU32;

use crate::auth::saslprep::salted_password;
use crate::config::{Credential, ScramVerifier, Secret};
use crate::error::{Error, Kind, Result};

const PLAIN: &str = "SCRAM-SHA-256";
const PLUS: &str = "SCRAM-SHA-256-PLUS";

/// Longest client message in bytes; a SCRAM message is a few hundred.
pub const MAX_MESSAGE: usize = 10_000;

/// The mechanisms that a listener offers: with TLS, also the one bound to its certificate.
#[derive(Debug, Clone)]
pub struct Offer {
    plain: ScramServerAuth,
    bound: Option<ScramServerAuth>,
}

impl Offer {
    /// `cert_pem`: the certificate of the listener, leaf first.
    ///
    /// # Errors
    /// A certificate whose signature algorithm gives no channel binding (RFC 5929).
    pub fn new(cert_pem: Option<&[u8]>) -> Result<Self, PgWireError> {
        let bound = cert_pem
            .map(|pem| {
                let mut auth = ScramServerAuth::new();
                auth.configure_certificate(pem).map(|()| auth)
            })
            .transpose()?;
        Ok(Self {
            plain: ScramServerAuth::new(),
            bound,
        })
    }

    /// Names of the mechanisms for a client, best first.
    pub fn mechanisms(&self, tls: bool) -> impl Iterator<Item = &'static str> {
        let bound = (tls && self.bound.is_some()).then_some(PLUS);
        bound.into_iter().chain([PLAIN])
    }

    /// Begins the exchange with the client's first message, a SASLInitialResponse body. Returns
    /// what to send and what waits for the answer.
    ///
    /// # Errors
    /// 08P01 for a message that is not SCRAM, or a mechanism that was not offered.
    pub fn begin(
        &self,
        tls: bool,
        body: &[u8],
        verifier: &ScramVerifier,
    ) -> Result<(String, Exchange)> {
        let malformed = || Error::new(Kind::ProtocolViolation, "malformed SCRAM message");
        let (mechanism, rest) = crate::protocol::frame::split_cstr(body).ok_or_else(malformed)?;
        let (_, message) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
        let auth = match (mechanism, &self.bound) {
            (m, Some(bound)) if tls && m == PLUS.as_bytes() => bound,
            // A client that says it could bind, though binding was offered, was lied to on the way.
            (m, Some(bound)) if tls && m == PLAIN.as_bytes() => bound,
            (m, _) if m == PLAIN.as_bytes() => &self.plain,
            _ => {
                return Err(Error::new(
                    Kind::ProtocolViolation,
                    "client selected an invalid SASL authentication mechanism",
                ));
            }
        };
        if (mechanism == PLUS.as_bytes()) != message.starts_with(b"p=") {
            return Err(malformed());
        }
        let secret = ScramSecret::Verifier {
            salt: verifier.salt.to_vec(),
            iterations: verifier.iterations as usize,
            stored_key: verifier.stored_key.to_vec(),
            server_key: verifier.server_key.to_vec(),
        };
        let (first, waiting) = auth
            .on_client_first_message_with_secret(message, secret)
            .map_err(|e| malformed().caused_by(e))?;
        Ok((first, Exchange(waiting)))
    }
}

/// Waits for the client's proof.
pub struct Exchange(ScramServerAuthWaitingForClientFinal);

impl Exchange {
    /// Checks the proof, a SASLResponse body. Returns what to send last; None: it is wrong.
    pub fn finish(&self, body: &[u8]) -> Option<String> {
        self.0.on_client_final_message(body).ok()
    }
}

/// Verifiers of users whose password the config gives as it is, and of users that do not exist.
pub struct Verifiers {
    /// Derived once for each user: 4096 rounds of HMAC are a millisecond.
    derived: DashMap<(String, String), (Secret, ScramVerifier)>,
    /// Gives users their salts, the same for each as long as the process runs.
    salt_key: [u8; 32],
}

impl Default for Verifiers {
    fn default() -> Self {
        Self::new()
    }
}

impl Verifiers {
    pub fn new() -> Self {
        Self {
            derived: DashMap::new(),
            salt_key: rand::random(),
        }
    }

    /// What to check a login against, if it need not be derived first.
    pub fn known(
        &self,
        tenant: &str,
        user: &str,
        credential: Option<&Credential>,
    ) -> Option<ScramVerifier> {
        match credential {
            None => Some(self.mock(tenant, user)),
            Some(Credential::Verifier(verifier)) => Some(verifier.clone()),
            Some(Credential::Password(password)) => self
                .derived
                .get(&(tenant.to_owned(), user.to_owned()))
                .filter(|known| known.0 == *password)
                .map(|known| known.1.clone()),
        }
    }

    /// What to check a login against. Takes a millisecond of CPU for a password that is not
    /// [`known`](Self::known) yet; call it where that does not stop others.
    pub fn verifier(
        &self,
        tenant: &str,
        user: &str,
        credential: Option<&Credential>,
    ) -> ScramVerifier {
        match (self.known(tenant, user, credential), credential) {
            (None, Some(Credential::Password(password))) => {
                let verifier = derive(password, &self.salt(tenant, user));
                let key = (tenant.to_owned(), user.to_owned());
                self.derived
                    .insert(key, (password.clone(), verifier.clone()));
                verifier
            }
            (Some(verifier), _) => verifier,
            (None, _) => self.mock(tenant, user),
        }
    }

    fn salt(&self, tenant: &str, user: &str) -> Vec<u8> {
        let mut hash = Sha256::new();
        for part in [
            &self.salt_key[..],
            tenant.as_bytes(),
            b"\0",
            user.as_bytes(),
        ] {
            hash.update(part);
        }
        hash.finalize()[..16].to_vec()
    }

    /// A verifier that no password fits: its StoredKey is the hash of nothing anybody knows.
    fn mock(&self, tenant: &str, user: &str) -> ScramVerifier {
        let random: [u8; 32] = rand::random();
        ScramVerifier {
            iterations: rounds(),
            salt: self.salt(tenant, user).into(),
            stored_key: random,
            server_key: random,
        }
    }
}

/// Rounds of HMAC of the verifiers that are made here: PostgreSQL's default of `scram_iterations`.
fn rounds() -> u32 {
    u32::try_from(SCRAM_ITERATIONS).unwrap_or(NonZeroU32::MIN.get())
}

fn derive(password: &Secret, salt: &[u8]) -> ScramVerifier {
    verifier(password.expose(), salt, rounds())
}

/// The verifier that PostgreSQL makes of a password.
pub fn verifier(password: &str, salt: &[u8], iterations: u32) -> ScramVerifier {
    let salted = salted_password(password, salt, iterations);
    // A usize holds 32 bits wherever this runs.
    let secret = ScramSecret::verifier_from_salted_password(
        salt.to_vec(),
        salted.to_vec(),
        iterations as usize,
    );
    let (stored_key, server_key) = match secret {
        ScramSecret::Verifier {
            stored_key,
            server_key,
            ..
        } => (stored_key, server_key),
        // Not what the constructor makes.
        ScramSecret::SaltedPassword { .. } => Default::default(),
    };
    // No proof fits a key that nobody knows.
    let key = |key: Vec<u8>| key.try_into().unwrap_or_else(|_| rand::random());
    ScramVerifier {
        iterations,
        salt: salt.into(),
        stored_key: key(stored_key),
        server_key: key(server_key),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};

    use super::*;

    fn attempt(verifier: &ScramVerifier, password: &str) -> bool {
        let offer = Offer::new(None).unwrap();
        let mut client = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
        let first = client.message();
        let length = u32::try_from(first.len()).unwrap().to_be_bytes();
        let body = [b"SCRAM-SHA-256\0".as_slice(), &length, first].concat();
        let (answer, exchange) = offer.begin(false, &body, verifier).unwrap();
        client.update(answer.as_bytes()).unwrap();
        match exchange.finish(client.message()) {
            Some(last) => {
                client.finish(last.as_bytes()).unwrap();
                true
            }
            None => false,
        }
    }

    #[test]
    fn only_the_password_of_that_tenant_logs_in() {
        let verifiers = Verifiers::new();
        let credential = Arc::new(Credential::Password(Secret::new("pw-a".into())));
        let verifier = verifiers.verifier("a", "app", Some(&credential));
        assert!(attempt(&verifier, "pw-a"));
        assert!(!attempt(&verifier, "pw-b"));
        assert!(!attempt(&verifiers.verifier("nobody", "app", None), "pw-a"));
    }

    #[test]
    fn an_unknown_user_has_the_same_salt_every_time_as_a_known_one_has() {
        let verifiers = Verifiers::new();
        let mock = |user| verifiers.verifier("x", user, None);
        assert_eq!(
            (mock("a").salt, mock("a").iterations),
            (mock("a").salt, 4096)
        );
        assert_ne!(mock("a").salt, mock("b").salt);
        assert_eq!(mock("a").salt.len(), 16);
    }

    #[test]
    fn what_is_not_scram_is_refused_and_not_a_panic() {
        let offer = Offer::new(None).unwrap();
        let verifier = Verifiers::new().verifier("a", "b", None);
        for body in [
            &b""[..],
            b"SCRAM-SHA-256",
            b"SCRAM-SHA-256\0\0\0",
            b"SCRAM-SHA-256\0\0\0\0\x04n,,",
            b"SCRAM-SHA-256\0\0\0\0\x04\xff\xff\xff\xff",
            b"SCRAM-SHA-256\0\0\0\0\x10p=tls-unique,,n=,r=a",
            b"SCRAM-SHA-256-PLUS\0\0\0\0\x10p=tls-server-end-point,,n=,r=a",
            b"OAUTHBEARER\0\0\0\0\x01a",
        ] {
            assert!(offer.begin(false, body, &verifier).is_err(), "{body:?}");
        }
    }
}
