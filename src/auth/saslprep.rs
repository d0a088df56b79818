//! What PostgreSQL makes of a password before it is hashed for SCRAM: `pg_saslprep` in
//! src/common/saslprep.c.
//!
//! It is SASLprep (RFC 4013) with a difference: what is prohibited or unassigned, and which way it
//! reads, is decided by the characters before normalization. A password that SASLprep does not take
//! is used as it is.

use std::borrow::Cow;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use stringprep::tables;
use unicode_normalization::UnicodeNormalization;

/// Bytes of a block of SHA-256.
const BLOCK: usize = 64;

/// The bytes that PostgreSQL and libpq hash for `password`.
fn prepare(password: &str) -> Cow<'_, str> {
    if password.is_ascii() {
        return Cow::Borrowed(password);
    }
    let mapped: Vec<char> = password
        .chars()
        .map(|c| match tables::non_ascii_space_character(c) {
            true => ' ',
            false => c,
        })
        .filter(|&c| !tables::commonly_mapped_to_nothing(c))
        .collect();
    let is_taken = |&c: &char| !is_prohibited(c) && !tables::unassigned_code_point(c);
    match !mapped.is_empty() && mapped.iter().all(is_taken) && reads_one_way(&mapped) {
        true => Cow::Owned(mapped.into_iter().nfkc().collect()),
        false => Cow::Borrowed(password),
    }
}

/// RFC 4013, section 2.3.
fn is_prohibited(c: char) -> bool {
    tables::non_ascii_space_character(c)
        || tables::ascii_control_character(c)
        || tables::non_ascii_control_character(c)
        || tables::private_use(c)
        || tables::non_character_code_point(c)
        || tables::inappropriate_for_plain_text(c)
        || tables::inappropriate_for_canonical_representation(c)
        || tables::change_display_properties_or_deprecated(c)
        || tables::tagging_character(c)
}

/// RFC 3454, section 6: a text with a character that is read from right to left begins and ends
/// with one, and has none that is read from left to right.
fn reads_one_way(text: &[char]) -> bool {
    let is_leftward = |c: Option<&char>| c.is_some_and(|&c| tables::bidi_r_or_al(c));
    !text.iter().any(|&c| tables::bidi_r_or_al(c))
        || (is_leftward(text.first())
            && is_leftward(text.last())
            && !text.iter().any(|&c| tables::bidi_l(c)))
}

/// The SaltedPassword of RFC 5802, of a password as PostgreSQL takes it.
pub fn salted_password(password: &str, salt: &[u8], iterations: u32) -> [u8; 32] {
    let keyed = keyed(prepare(password).as_bytes());
    let round = |parts: [&[u8]; 2]| {
        let mut hmac = keyed.clone();
        parts.iter().for_each(|part| hmac.update(part));
        <[u8; 32]>::from(hmac.finalize().into_bytes())
    };
    let mut last = round([salt, &1_u32.to_be_bytes()]);
    let mut salted = last;
    for _ in 1..iterations {
        last = round([&last, &[]]);
        salted
            .iter_mut()
            .zip(last)
            .for_each(|(sum, new)| *sum ^= new);
    }
    salted
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    // An HMAC takes keys of any length.
    Hmac::new_from_slice(key).unwrap_or_else(|_| Hmac::new(&Default::default()))
}

/// A password that postgres-protocol hashes to what PostgreSQL makes of `password`. It normalizes
/// what it is given, by RFC 4013 to the letter, unless that has a character which is prohibited, as
/// NUL is. An HMAC fills its key with NULs, and of one that is longer than a block it takes the
/// hash: so a NUL at the end is no other key. One of exactly a block has no room for it.
pub fn for_client(password: &str) -> Vec<u8> {
    let prepared = prepare(password);
    let mut key = match prepared.len() {
        0..=BLOCK => prepared.as_bytes().to_vec(),
        _ => Sha256::digest(prepared.as_bytes()).to_vec(),
    };
    if key.len() < BLOCK {
        key.push(0);
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_what_postgresql_makes_of_it() {
        let same = |password: &'static str| (password, password);
        for (password, prepared) in [
            same("pencil"),
            // ASCII is never looked at, control characters neither.
            same("a\u{7}b\t\n"),
            ("I\u{ad}X", "IX"),
            ("a\u{a0}\u{2003}\u{200b}b", "a   b"),
            ("\u{2168}", "IX"),
            ("e\u{301}", "é"),
            ("\u{fb01}", "fi"),
            ("\u{ff21}", "A"),
            // Nothing is left.
            same("\u{ad}"),
            // Prohibited, unassigned in Unicode 3.2.
            same("é\u{7}"),
            same("\u{e000}\u{fb01}"),
            same("\u{1f600}\u{fb01}"),
            // These would be good once they are normalized.
            same("\u{340}\u{fb01}"),
            same("\u{1f100}"),
            // Both ways.
            same("\u{627}1\u{fb01}"),
            same("\u{627}\u{31}"),
            ("\u{627}1\u{628}", "\u{627}1\u{628}"),
            // An alef that is a symbol, and reads from left to right.
            ("\u{2135}x", "\u{5d0}x"),
        ] {
            assert_eq!(prepare(password), prepared, "{password:?}");
        }
    }

    #[test]
    fn what_a_client_hashes_is_the_same_password() {
        for length in [0, 1, 63, 64, 65, 1000] {
            let password = "p".repeat(length);
            let hash = |key: &[u8]| {
                let mut hmac = keyed(key);
                hmac.update(b"salt");
                hmac.finalize().into_bytes()
            };
            assert_eq!(
                hash(&for_client(&password)),
                hash(password.as_bytes()),
                "{length}"
            );
        }
    }

    #[test]
    fn a_salted_password_is_that_of_rfc_7677() {
        let salt = base64::Engine::decode(
            &base64::engine::general_purpose::STANDARD,
            "W22ZaJ0SNY7soEsUEjb6gQ==",
        )
        .unwrap();
        let salted = salted_password("pencil", &salt, 4096);
        let pgwire = pgwire::api::auth::sasl::scram::gen_salted_password("pencil", &salt, 4096);
        assert_eq!(salted.as_slice(), pgwire);
    }
}
