//! The client's half of SCRAM-SHA-256 (RFC 5802, RFC 7677), which keeps what it derives of a
//! password: 4096 rounds of HMAC for each of thousands of logins would be all that is measured. A
//! driver derives them anew each time.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use pgtenant::cluster::{Error, Result};
use pgwire::api::auth::sasl::scram::{gen_salted_password, random_nonce};
use sha2::{Digest, Sha256};

/// What the client says first, without channel binding.
const GS2_HEADER: &str = "n,,";
/// That header in base64, as the last message repeats it.
const REPEATED: &str = "biws";

/// What proves the password to a server, and the server to us.
#[derive(Debug, Clone)]
struct Derived {
    client_key: Vec<u8>,
    server_key: Vec<u8>,
}

/// The password of all clients, with what was derived of it, by salt and iterations.
#[derive(Debug)]
pub struct Keys {
    password: String,
    derived: Mutex<HashMap<(String, usize), Derived>>,
}

fn malformed() -> Error {
    Error::new("the server's SCRAM message is none")
}

fn hmac(key: &[u8], parts: &[&str]) -> Result<Vec<u8>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(|_| malformed())?;
    for part in parts {
        mac.update(part.as_bytes());
    }
    Ok(mac.finalize().into_bytes().to_vec())
}

impl Keys {
    pub fn new(password: &str) -> Self {
        Self {
            password: password.to_owned(),
            derived: Mutex::default(),
        }
    }

    fn derive(&self, salt: &str, iterations: usize) -> Result<Derived> {
        let mut known = self.derived.lock().unwrap_or_else(PoisonError::into_inner);
        let name = (salt.to_owned(), iterations);
        if let Some(derived) = known.get(&name) {
            return Ok(derived.clone());
        }
        let bytes = STANDARD.decode(salt).map_err(|_| malformed())?;
        let salted = gen_salted_password(&self.password, &bytes, iterations);
        let derived = Derived {
            client_key: hmac(&salted, &["Client Key"])?,
            server_key: hmac(&salted, &["Server Key"])?,
        };
        known.insert(name, derived.clone());
        Ok(derived)
    }
}

/// One login.
pub struct Exchange {
    first: String,
    /// What the server must say last.
    signature: String,
}

impl Exchange {
    pub fn new() -> Self {
        Self {
            first: format!("n=,r={}", random_nonce()),
            signature: String::new(),
        }
    }

    /// client-first-message.
    pub fn first(&self) -> String {
        format!("{GS2_HEADER}{}", self.first)
    }

    /// client-final-message, for the server's first.
    ///
    /// # Errors
    /// The server's message is malformed.
    pub fn last(&mut self, server_first: &[u8], keys: &Keys) -> Result<String> {
        let server_first = std::str::from_utf8(server_first).map_err(|_| malformed())?;
        let of = |name: &str| {
            server_first
                .split(',')
                .find_map(|field| field.strip_prefix(name))
                .ok_or_else(malformed)
        };
        let iterations = of("i=")?.parse().map_err(|_| malformed())?;
        let derived = keys.derive(of("s=")?, iterations)?;
        let without_proof = format!("c={REPEATED},r={}", of("r=")?);
        let message = [&self.first, ",", server_first, ",", &without_proof];
        let signature = hmac(&Sha256::digest(&derived.client_key), &message)?;
        let proof: Vec<u8> = derived
            .client_key
            .iter()
            .zip(&signature)
            .map(|(key, signature)| key ^ signature)
            .collect();
        self.signature = STANDARD.encode(hmac(&derived.server_key, &message)?);
        Ok(format!("{without_proof},p={}", STANDARD.encode(proof)))
    }

    /// # Errors
    /// The server does not know the password.
    pub fn check(&self, server_last: &[u8]) -> Result<()> {
        match server_last.strip_prefix(b"v=") {
            Some(signature) if signature == self.signature.as_bytes() => Ok(()),
            _ => Err(malformed()),
        }
    }
}
