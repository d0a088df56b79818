//! What a login is bound to in TLS: `tls-server-end-point` (RFC 5929), the hash of the server's
//! certificate.

use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

/// DER tags.
const SEQUENCE: u8 = 0x30;
const OID: u8 = 0x06;
const EXPLICIT_0: u8 = 0xa0;

/// The hash of a certificate in DER by the algorithm it is signed with, or by SHA-256 where that is
/// MD5 or SHA-1. None for an algorithm that has no hash of its own, such as Ed25519: PostgreSQL
/// cannot bind to such a certificate either.
pub fn tls_server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    Some(match signature_hash(certificate)? {
        Hash::Sha224 => Sha224::digest(certificate).to_vec(),
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// `Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm SEQUENCE { OID, parameters },
/// signature }`
fn signature_hash(certificate: &[u8]) -> Option<Hash> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (_, rest) = element(certificate, SEQUENCE)?;
    let (algorithm, _) = element(rest, SEQUENCE)?;
    let (oid, parameters) = element(algorithm, OID)?;
    match oid {
        // 1.2.840.113549.1.1 (PKCS #1)
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, scheme] => match scheme {
            4 | 5 | 11 => Some(Hash::Sha256),
            10 => pss_hash(parameters),
            12 => Some(Hash::Sha384),
            13 => Some(Hash::Sha512),
            14 => Some(Hash::Sha224),
            _ => None,
        },
        // 1.2.840.10045.4 (ECDSA)
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01] => Some(Hash::Sha256),
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, scheme] => match scheme {
            1 => Some(Hash::Sha224),
            2 => Some(Hash::Sha256),
            3 => Some(Hash::Sha384),
            4 => Some(Hash::Sha512),
            _ => None,
        },
        _ => None,
    }
}

/// `RSASSA-PSS-params ::= SEQUENCE { [0] hashAlgorithm DEFAULT sha1, … }` (RFC 8017)
fn pss_hash(parameters: &[u8]) -> Option<Hash> {
    let (parameters, _) = element(parameters, SEQUENCE)?;
    let Some((hash, _)) = element(parameters, EXPLICIT_0) else {
        return Some(Hash::Sha256);
    };
    let (hash, _) = element(hash, SEQUENCE)?;
    match element(hash, OID)?.0 {
        // 1.3.14.3.2.26 (SHA-1)
        [0x2b, 0x0e, 0x03, 0x02, 0x1a] => Some(Hash::Sha256),
        // 2.16.840.1.101.3.4.2
        [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, hash] => match hash {
            1 => Some(Hash::Sha256),
            2 => Some(Hash::Sha384),
            3 => Some(Hash::Sha512),
            4 => Some(Hash::Sha224),
            _ => None,
        },
        _ => None,
    }
}

/// The content of the DER element at the start of `bytes`, which must have this tag, and what
/// follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        // Of how many bytes the length is; a certificate is shorter than 16 MiB.
        0x81..=0x83 => {
            let (length, rest) = rest.split_at_checked(usize::from(length - 0x80))?;
            let length = length.iter().fold(0, |sum, &b| sum << 8 | usize::from(b));
            (length, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    (first == tag).then_some((content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[tag, 0x82], &length[..], content].concat()
    }

    fn certificate(algorithm: &[u8]) -> Vec<u8> {
        let parts = [
            der(SEQUENCE, &[0; 300]),
            der(SEQUENCE, algorithm),
            der(3, &[1, 2, 3]),
        ];
        der(SEQUENCE, &parts.concat())
    }

    fn pkcs1(scheme: u8) -> Vec<u8> {
        der(
            OID,
            &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, scheme],
        )
    }

    fn pss(hash: Option<&[u8]>) -> Vec<u8> {
        let hash = hash.map(|oid| der(EXPLICIT_0, &der(SEQUENCE, &der(OID, oid))));
        let parameters = der(SEQUENCE, &hash.unwrap_or_default());
        [pkcs1(10), parameters].concat()
    }

    #[test]
    fn the_hash_is_that_of_the_signature_and_never_weaker_than_sha_256() {
        let ecdsa = |tail: &[u8]| {
            let oid = [&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04][..], tail].concat();
            der(OID, &oid)
        };
        let sha2 = |hash| [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, hash];
        for (algorithm, hash) in [
            (pkcs1(4), Some(Hash::Sha256)),
            (pkcs1(5), Some(Hash::Sha256)),
            (pkcs1(11), Some(Hash::Sha256)),
            (pkcs1(12), Some(Hash::Sha384)),
            (pkcs1(13), Some(Hash::Sha512)),
            (pkcs1(14), Some(Hash::Sha224)),
            (pkcs1(1), None),
            (ecdsa(&[1]), Some(Hash::Sha256)),
            (ecdsa(&[3, 2]), Some(Hash::Sha256)),
            (ecdsa(&[3, 3]), Some(Hash::Sha384)),
            (ecdsa(&[3, 4]), Some(Hash::Sha512)),
            (pss(None), Some(Hash::Sha256)),
            (
                pss(Some(&[0x2b, 0x0e, 0x03, 0x02, 0x1a])),
                Some(Hash::Sha256),
            ),
            (pss(Some(&sha2(1))), Some(Hash::Sha256)),
            (pss(Some(&sha2(2))), Some(Hash::Sha384)),
            (pss(Some(&sha2(3))), Some(Hash::Sha512)),
            (pss(Some(&[1, 2, 3])), None),
            // Ed25519
            (der(OID, &[0x2b, 0x65, 0x70]), None),
            (Vec::new(), None),
        ] {
            let certificate = certificate(&algorithm);
            assert_eq!(signature_hash(&certificate), hash, "{algorithm:02x?}");
            let length = tls_server_end_point(&certificate).map(|hash| hash.len());
            let expected = hash.map(|hash| match hash {
                Hash::Sha224 => 28,
                Hash::Sha256 => 32,
                Hash::Sha384 => 48,
                Hash::Sha512 => 64,
            });
            assert_eq!(length, expected);
        }
    }

    #[test]
    fn a_certificate_that_is_cut_off_gives_no_hash() {
        let whole = certificate(&pkcs1(11));
        for length in 0..whole.len() {
            assert_eq!(signature_hash(&whole[..length]), None, "{length}");
        }
    }
}
