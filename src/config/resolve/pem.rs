//! Certificates and keys: read and tried out now, so that a connection never finds them broken.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::ring::default_provider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::Resolver;
use crate::config::file::ListenTlsFile;
use crate::config::outline::At;
use crate::config::{ListenTls, Secret};

impl Resolver<'_, '_> {
    pub(super) fn listen_tls(&mut self, at: &At<'_>, file: &ListenTlsFile) -> Option<ListenTls> {
        let cert = self.required(at, "cert", file.cert.as_deref());
        let key = self.required(at, "key", file.key.as_deref());
        let cert_pem = cert.and_then(|cert| self.read_file(&at.key("cert"), cert));
        let key_pem = key.and_then(|key| self.read_file(&at.key("key"), key));
        let chain = cert_pem
            .as_ref()
            .and_then(|pem| self.certificates(&at.key("cert"), pem));
        let private = key_pem
            .as_ref()
            .and_then(|pem| self.private_key(&at.key("key"), pem));
        if let Err(error) = CertifiedKey::from_der(chain?, private?, &default_provider()) {
            self.mistakes.add(
                at,
                format_args!("cert and key do not work together: {error}"),
            );
            return None;
        }
        let Ok(key_pem) = String::from_utf8(key_pem?) else {
            self.mistakes.add(&at.key("key"), "is not text");
            return None;
        };
        Some(ListenTls {
            cert_file: self.path(cert?),
            key_file: self.path(key?),
            cert_pem: cert_pem?.into(),
            key_pem: Secret::new(key_pem),
            required: file.required,
        })
    }

    /// Authorities to trust.
    pub(super) fn root_cert(&mut self, at: &At<'_>, file: &str) -> Option<Arc<[u8]>> {
        let pem = self.read_file(at, file)?;
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates(at, &pem)? {
            if let Err(error) = roots.add(certificate) {
                self.mistakes.add(
                    at,
                    format_args!("has a certificate that is unusable: {error}"),
                );
                return None;
            }
        }
        Some(pem.into())
    }

    fn read_file(&mut self, at: &At<'_>, file: &str) -> Option<Vec<u8>> {
        let path = self.path(file);
        std::fs::read(&path)
            .map_err(|error| {
                self.mistakes
                    .add(at, format_args!("cannot read {}: {error}", path.display()));
            })
            .ok()
    }

    fn certificates(&mut self, at: &At<'_>, pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
        match CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>() {
            Ok(certificates) if !certificates.is_empty() => Some(certificates),
            Ok(_) => {
                self.mistakes.add(at, "holds no PEM certificate");
                None
            }
            Err(error) => {
                self.mistakes
                    .add(at, format_args!("is not a PEM file: {error}"));
                None
            }
        }
    }

    /// The parser's error is left out: it may quote the key.
    fn private_key(&mut self, at: &At<'_>, pem: &[u8]) -> Option<PrivateKeyDer<'static>> {
        let key = PrivateKeyDer::from_pem_slice(pem).ok();
        if key.is_none() {
            self.mistakes
                .add(at, "holds no PEM private key (without a passphrase)");
        }
        key
    }
}
