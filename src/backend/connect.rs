//! Making a server connection: socket, TLS as libpq's `sslmode` says, login.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName as TlsName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::{TlsConnector, TlsStream};

use crate::backend::connection::{Frame, ServerConnection};
use crate::backend::prepared::frame;
use crate::config::{PoolKey, Server, ServerAddress, ServerTls, SslMode};
use crate::error::{Error, Kind, Result};
use crate::protocol::frame::{BackendTag, FrontendTag, split_cstr};
use crate::protocol::reply::ErrorFields;
use crate::protocol::startup::CancelKey;
use crate::protocol::stream::Stream;

/// SSLRequest, whole.
const SSL_REQUEST: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];
const PROTOCOL_3_0: [u8; 4] = [0, 3, 0, 0];

fn failed(cause: impl std::fmt::Display) -> Error {
    Error::new(
        Kind::ConnectionFailure,
        "could not connect to the tenant's server",
    )
    .caused_by(cause)
}

/// Connects and logs in. The connection is idle and carries no tenant's context.
///
/// Not cancel safe: what was made is closed.
///
/// # Errors
/// 08006 for the network, TLS, or a login the server refuses (its words go to the log, not to the client);
/// 53300, 57P03 and 3D000 as the server gave them.
pub async fn connect(
    server: &Arc<Server>,
    key: &PoolKey,
    deadline: Duration,
) -> Result<ServerConnection> {
    let attempt = async {
        let stream = open(server).await?;
        let in_tls = stream.is_tls();
        let refused = match log_in_on(stream, server, key).await {
            Ok(connection) => return Ok(connection),
            Err(error) => error,
        };
        match &server.address {
            // As libpq: what pg_hba.conf does not let in by TLS it may let in without.
            ServerAddress::Tcp { host, port }
                if in_tls && server.tls.mode == SslMode::Prefer && refused.kind() == BARRED =>
            {
                let plain = Stream::Tcp(dial(host, *port).await?);
                log_in_on(plain, server, key).await
            }
            _ => Err(refused),
        }
    };
    tokio::time::timeout(deadline, attempt)
        .await
        .unwrap_or_else(|_| Err(failed(format_args!("timed out after {deadline:?}"))))
}

/// The kind of a login that pg_hba.conf does not let in (28000).
const BARRED: Kind = Kind::InvalidAuthorization;

async fn log_in_on(
    stream: Stream,
    server: &Arc<Server>,
    key: &PoolKey,
) -> Result<ServerConnection> {
    let mut connection = ServerConnection::new(stream, server.clone());
    connection.send(&startup_message(key)).await?;
    log_in(&mut connection, key).await?;
    Ok(connection)
}

/// A socket to `server`, in TLS if its `sslmode` wants it, with nothing said on it yet.
///
/// # Errors
/// 08006.
pub async fn open(server: &Server) -> Result<Stream> {
    let (host, mut tcp) = match &server.address {
        ServerAddress::Unix { path } => {
            let unix = UnixStream::connect(path).await.map_err(failed)?;
            return Ok(Stream::Unix(unix));
        }
        ServerAddress::Tcp { host, port } => (host, dial(host, *port).await?),
    };
    if server.tls.mode == SslMode::Disable {
        return Ok(Stream::Tcp(tcp));
    }
    tcp.write_all(SSL_REQUEST).await.map_err(failed)?;
    // Exactly one byte: anything more would be plain text taken for TLS.
    match tcp.read_u8().await.map_err(failed)? {
        b'S' => {}
        b'N' if server.tls.mode == SslMode::Prefer => return Ok(Stream::Tcp(tcp)),
        b'N' => return Err(failed("the server does not offer TLS")),
        other => {
            return Err(failed(format_args!(
                "unexpected answer {other:#04x} to SSLRequest"
            )));
        }
    }
    let name = TlsName::try_from(host.clone()).map_err(failed)?;
    let connector = TlsConnector::from(client_config(&server.tls)?);
    let tls = connector.connect(name, tcp).await.map_err(failed)?;
    Ok(Stream::Tls(Box::new(TlsStream::Client(tls))))
}

async fn dial(host: &str, port: u16) -> Result<TcpStream> {
    let tcp = TcpStream::connect((host, port)).await.map_err(failed)?;
    tcp.set_nodelay(true).map_err(failed)?;
    Ok(tcp)
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

/// What libpq checks: with `require` anything goes, with `verify-ca` any name does; and a certificate that is
/// itself one of the trusted ones is good, also where it says that it is an authority.
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

fn startup_message(key: &PoolKey) -> Vec<u8> {
    let own = [("user", &key.login.user), ("database", &key.database)];
    let pinned = key
        .startup
        .iter()
        .map(|(name, value)| (name.as_str(), value));
    let mut message = vec![0; 4];
    message.extend_from_slice(&PROTOCOL_3_0);
    for (name, value) in own.into_iter().chain(pinned) {
        for text in [name, value.as_str()] {
            message.extend_from_slice(text.as_bytes());
            message.push(0);
        }
    }
    message.push(0);
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    message[..4].copy_from_slice(&length.to_be_bytes());
    message
}

/// From the StartupMessage to the first ReadyForQuery.
async fn log_in(connection: &mut ServerConnection, key: &PoolKey) -> Result<()> {
    let mut scram = None;
    loop {
        let Frame { tag, body } = connection.receive().await?;
        match tag {
            BackendTag::AUTHENTICATION => authenticate(connection, key, &body, &mut scram).await?,
            BackendTag::BACKEND_KEY_DATA => {
                let (pid, secret) = body
                    .split_first_chunk::<4>()
                    .ok_or_else(|| failed("malformed BackendKeyData"))?;
                connection.set_key(CancelKey {
                    pid: i32::from_be_bytes(*pid),
                    secret: secret.into(),
                });
            }
            BackendTag::PARAMETER_STATUS => connection.note_parameter(&body),
            BackendTag::NOTICE_RESPONSE => {}
            BackendTag::ERROR_RESPONSE => return Err(refused(&ErrorFields::read(&body))),
            BackendTag::READY_FOR_QUERY => return Ok(()),
            tag => {
                return Err(failed(format_args!(
                    "unexpected message {tag:?} during login"
                )));
            }
        }
    }
}

/// What a client may know of a refusal: that the server is full, starting or stopping, or that the database is
/// not there. Roles and passwords are the operator's.
fn refused(fields: &ErrorFields) -> Error {
    let error = match fields.sqlstate.as_str() {
        "57P03" | "57P01" | "57P02" => Error::new(Kind::CannotConnectNow, fields.message.clone()),
        "53300" => Error::new(Kind::TooManyConnections, fields.message.clone()),
        "3D000" => Error::new(
            Kind::UnknownDatabase,
            "the tenant's database does not exist",
        ),
        sqlstate => Error::new(
            match sqlstate {
                "28000" => BARRED,
                _ => Kind::ConnectionFailure,
            },
            "could not log in to the tenant's server",
        )
        .with_sqlstate(Kind::ConnectionFailure.sqlstate()),
    };
    error.caused_by(format_args!(
        "{} {}: {}",
        fields.severity, fields.sqlstate, fields.message
    ))
}

async fn authenticate(
    connection: &mut ServerConnection,
    key: &PoolKey,
    body: &[u8],
    scram: &mut Option<ScramSha256>,
) -> Result<()> {
    let malformed = || failed("malformed authentication request");
    let (code, data) = body.split_first_chunk::<4>().ok_or_else(malformed)?;
    let login = &key.login;
    let password = || {
        login
            .password
            .as_ref()
            .map(|password| password.expose().as_bytes())
            .ok_or_else(|| failed("the server wants a password and the config has none"))
    };
    let answer = match u32::from_be_bytes(*code) {
        0 => return Ok(()),
        3 => [password()?, b"\0"].concat(),
        5 => {
            let salt = data.try_into().map_err(|_| malformed())?;
            let hash = md5_hash(login.user.as_bytes(), password()?, salt);
            [hash.as_bytes(), b"\0"].concat()
        }
        10 => {
            let mut offered = data;
            let mut known = false;
            while let Some((mechanism, rest)) = split_cstr(offered)
                && !mechanism.is_empty()
            {
                known |= mechanism == b"SCRAM-SHA-256";
                offered = rest;
            }
            if !known {
                return Err(failed(
                    "the server offers no SASL mechanism but unknown ones",
                ));
            }
            let exchange = ScramSha256::new(password()?, ChannelBinding::unsupported());
            let first = exchange.message();
            let length = u32::try_from(first.len()).unwrap_or(u32::MAX).to_be_bytes();
            let answer = [&b"SCRAM-SHA-256\0"[..], &length, first].concat();
            *scram = Some(exchange);
            answer
        }
        11 => {
            let exchange = scram.as_mut().ok_or_else(malformed)?;
            exchange.update(data).map_err(failed)?;
            exchange.message().to_vec()
        }
        12 => {
            let exchange = scram.as_mut().ok_or_else(malformed)?;
            return exchange.finish(data).map_err(failed);
        }
        other => {
            return Err(failed(format_args!(
                "unknown authentication method {other}"
            )));
        }
    };
    connection
        .send(&frame(FrontendTag::PASSWORD.0, &[&answer]))
        .await
}
