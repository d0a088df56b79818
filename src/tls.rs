//! What a main port offers its clients before it knows who they are: TLS and SASL mechanisms.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::auth::Offer;
use crate::config::{Listen, ListenTls};
use crate::error::{Error, Kind, Result};

/// ALPN name that a direct TLS connection must negotiate (PostgreSQL 17, `PG_ALPN_PROTOCOL`).
pub const ALPN: &[u8] = b"postgresql";

pub struct Door {
    pub tls: Option<TlsAcceptor>,
    /// Refuse clients that do not use TLS.
    pub tls_required: bool,
    pub offer: Offer,
}

impl Door {
    /// # Errors
    /// A certificate or key that does not fit; a loaded config has been checked for that.
    pub fn new(listen: &Listen) -> Result<Self> {
        let tls = listen.tls.as_ref();
        let cert = tls.map(|tls| &*tls.cert_pem);
        let offer = Offer::new(cert).or_else(|e| {
            tracing::warn!(address = %listen.address, error = %e,
                "SCRAM-SHA-256-PLUS is not offered: the certificate gives no channel binding");
            Offer::new(None).map_err(|e| unusable(listen, e))
        })?;
        Ok(Self {
            tls: tls
                .map(|tls| acceptor(tls).map_err(|e| unusable(listen, e)))
                .transpose()?,
            tls_required: tls.is_some_and(|tls| tls.required),
            offer,
        })
    }
}

fn unusable(listen: &Listen, cause: impl std::fmt::Display) -> Error {
    Error::new(
        Kind::Internal,
        format!("cannot use the TLS settings of {}", listen.address),
    )
    .caused_by(cause)
}

fn acceptor(tls: &ListenTls) -> Result<TlsAcceptor, Box<dyn std::error::Error + Send + Sync>> {
    let certs = CertificateDer::pem_slice_iter(&tls.cert_pem).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(tls.key_pem.expose().as_bytes())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certs, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
