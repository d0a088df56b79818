//! The keys that contexts are sealed with.

use std::fmt;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::Secret;

/// Bytes of a block of SHA-256, and so of the pads of HMAC (RFC 2104).
const BLOCK: usize = 64;

/// `servers.*.seal`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSeal {
    /// What the keys of the server's databases are made of.
    pub key: Secret,
    /// For how long a sealed value is good.
    pub lifetime: Duration,
}

/// What the context of one tenant is sealed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// What `pgtenant.tenant_id()` returns.
    pub tenant: String,
    pub key: SealKey,
    pub lifetime: Duration,
}

/// The key of one database.
#[derive(Clone, PartialEq, Eq)]
pub struct SealKey {
    id: String,
    key: [u8; 32],
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealKey({}, ***)", self.id)
    }
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        unreachable!("HMAC takes keys of any length")
    };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl SealKey {
    /// The key of `database`: who can read the keys of one database has those of no other.
    pub fn derive(secret: &Secret, database: &str) -> Self {
        let secret = secret.expose().as_bytes();
        let key = hmac(secret, &[b"pgtenant seal 1 key\0", database.as_bytes()]);
        let [a, b, c, d, e, f, g, h, ..] = hmac(&key, &[b"pgtenant seal 1 id"]);
        Self {
            id: hex(&[a, b, c, d, e, f, g, h]),
            key,
        }
    }

    /// Its name, which is no secret.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// HMAC-SHA-256 in hexadecimal digits.
    pub fn sign(&self, message: &[u8]) -> String {
        hex(&hmac(&self.key, &[message]))
    }

    /// The key as the inner and the outer pad of HMAC, which is how the database keeps it.
    pub fn pads(&self) -> [[u8; BLOCK]; 2] {
        [0x36, 0x5c].map(|pad| {
            let mut block = [pad; BLOCK];
            block.iter_mut().zip(self.key).for_each(|(b, k)| *b ^= k);
            block
        })
    }
}

#[cfg(test)]
mod tests {
    use sha2::Digest;

    use super::*;

    #[test]
    fn the_pads_make_the_same_hmac() {
        let key = SealKey::derive(&Secret::new("secret".to_owned()), "app");
        let [inner, outer] = key.pads();
        let digest = |pad: &[u8], text: &[u8]| {
            Sha256::new()
                .chain_update(pad)
                .chain_update(text)
                .finalize()
        };
        let by_hand = digest(&outer, &digest(&inner, b"message"));
        assert_eq!(key.sign(b"message"), hex(&by_hand));
    }

    #[test]
    fn each_database_and_secret_has_a_key_of_its_own() {
        let of =
            |secret: &str, database| SealKey::derive(&Secret::new(secret.to_owned()), database);
        let keys = [of("a", "app"), of("a", "other"), of("b", "app")];
        for (i, one) in keys.iter().enumerate() {
            for other in &keys[i + 1..] {
                assert_ne!(one.id(), other.id());
                assert_ne!(one.sign(b"x"), other.sign(b"x"));
            }
        }
        assert_eq!(of("a", "app"), keys[0]);
    }

    #[test]
    fn a_key_in_a_debug_print_is_three_stars() {
        let key = SealKey::derive(&Secret::new("secret".to_owned()), "app");
        assert_eq!(format!("{key:?}"), format!("SealKey({}, ***)", key.id()));
    }
}
