//! A socket to a server, in TLS where its `sslmode` wants it.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName as TlsName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::config::{Server, ServerAddress, ServerTls, SslMode};
use crate::error::{Error, Kind, Result};
use crate::net::keep_alive;
use crate::net::socket::Socket;
use crate::net::stream::Stream;

/// SSLRequest, whole.
const SSL_REQUEST: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];

pub(super) fn failed(cause: impl std::fmt::Display) -> Error {
    Error::new(
        Kind::ConnectionFailure,
        "could not connect to the tenant's server",
    )
    .caused_by(cause)
}

/// The server may be there a moment later.
pub(super) fn unreachable(cause: impl std::fmt::Display) -> Error {
    failed(cause).passing()
}

/// A socket to `server`, in TLS if its `sslmode` wants it, with nothing said on it yet.
/// `addresses`: those of its name to try, in this order; with none the operating system resolves
/// it.
///
/// # Errors
/// 08006.
pub async fn open(server: &Server, addresses: &[IpAddr]) -> Result<Stream> {
    let (host, mut socket) = match &server.address {
        ServerAddress::Unix { path } => {
            let unix = UnixStream::connect(path).await.map_err(unreachable)?;
            return Ok(Stream::Plain(unix.into()));
        }
        ServerAddress::Tcp { host, port } => (host, dial(server, host, *port, addresses).await?),
    };
    if server.tls.mode == SslMode::Disable {
        return Ok(Stream::Plain(socket));
    }
    socket.write_all(SSL_REQUEST).await.map_err(unreachable)?;
    // Exactly one byte: anything more would be plain text taken for TLS.
    match socket.read_u8().await.map_err(unreachable)? {
        b'S' => {}
        b'N' if server.tls.mode == SslMode::Prefer => return Ok(Stream::Plain(socket)),
        b'N' => return Err(failed("the server does not offer TLS")),
        other => {
            return Err(failed(format_args!(
                "unexpected answer {other:#04x} to SSLRequest"
            )));
        }
    }
    let name = TlsName::try_from(host.clone()).map_err(failed)?;
    let connector = TlsConnector::from(client_config(&server.tls)?);
    let tls = connector.connect(name, socket).await.map_err(failed)?;
    Ok(Stream::tls(tls))
}

pub(super) async fn dial(
    server: &Server,
    host: &str,
    port: u16,
    addresses: &[IpAddr],
) -> Result<Socket> {
    let tcp = match addresses {
        [] => TcpStream::connect((host, port)).await,
        addresses => {
            let addresses: Vec<_> = addresses
                .iter()
                .map(|&address| SocketAddr::new(address, port))
                .collect();
            TcpStream::connect(&addresses[..]).await
        }
    };
    let tcp = tcp.map_err(unreachable)?;
    tcp.set_nodelay(true).map_err(failed)?;
    keep_alive(&tcp, &server.tcp_keepalives).map_err(failed)?;
    Ok(tcp.into())
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| Arc::new(rustls::crypto::ring::default_provider()))
        .clone()
}

fn client_config(tls: &ServerTls) -> Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(failed)?;
    let verifier: Arc<dyn ServerCertVerifier> = match tls.mode {
        SslMode::Disable | SslMode::Prefer | SslMode::Require => Arc::new(Checks::default()),
        SslMode::VerifyCa | SslMode::VerifyFull => Arc::new(Checks {
            chain: Some(chain_verifier(tls)?),
            roots: roots(tls)?,
            name: tls.mode == SslMode::VerifyFull,
        }),
    };
    let mut config = builder
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(Arc::new(config))
}

/// The certificates of `root_cert`.
fn roots(tls: &ServerTls) -> Result<Vec<CertificateDer<'static>>> {
    let pem = tls
        .root_cert_pem
        .iter()
        .flat_map(|pem| CertificateDer::pem_slice_iter(pem));
    pem.collect::<Result<_, _>>().map_err(failed)
}

fn chain_verifier(tls: &ServerTls) -> Result<Arc<WebPkiServerVerifier>> {
    let mut roots = RootCertStore::empty();
    for cert in self::roots(tls)? {
        roots.add(cert).map_err(failed)?;
    }
    if tls.root_cert_pem.is_none() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(failed)
}

/// What libpq checks: with `require` anything goes, with `verify-ca` any name does; and a
/// certificate that is itself one of the trusted ones is good, also where it says that it is an
/// authority.
#[derive(Debug, Default)]
struct Checks {
    chain: Option<Arc<WebPkiServerVerifier>>,
    roots: Vec<CertificateDer<'static>>,
    name: bool,
}

impl ServerCertVerifier for Checks {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &TlsName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use rustls::CertificateError::{NotValidForName, NotValidForNameContext, Other};
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        // The name is the last thing that webpki checks: a chain that does not hold fails before.
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(
                NotValidForName | NotValidForNameContext { .. },
            )) if !self.name => Ok(ServerCertVerified::assertion()),
            // Its dates were checked before its being an authority was found wrong.
            Err(rustls::Error::InvalidCertificate(Other(_))) if self.roots.contains(end_entity) => {
                if self.name {
                    let cert = ParsedCertificate::try_from(end_entity)?;
                    verify_server_name(&cert, server_name)?;
                }
                Ok(ServerCertVerified::assertion())
            }
            checked => checked,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            signed,
            &provider().signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            signed,
            &provider().signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
