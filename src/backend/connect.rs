//! Making a server connection: socket, TLS as libpq's `sslmode` says, login.

use std::sync::Arc;
use std::time::Duration;

use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};

use crate::auth::for_client;
use crate::backend::channel_binding::tls_server_end_point;
use crate::backend::connection::{Frame, MAX_LOGIN, ServerConnection};
use crate::backend::demand::{self, Demands};
use crate::backend::dial::{dial, failed, open, unreachable};
use crate::backend::dns::{self, Names};
use crate::config::{PoolKey, Server, ServerAddress, SslMode};
use crate::error::{Error, Kind, Result};
use crate::net::stream::Stream;
use crate::protocol::frame::{BackendTag, FrontendTag, HEADER, frame, split_cstr};
use crate::protocol::reply::ErrorFields;
use crate::protocol::startup::{CancelKey, MAX_CANCEL_KEY, NEWEST, Version};
use crate::timer;

/// Length of a cancel key in bytes before protocol 3.2.
const SHORT_CANCEL_KEY: usize = 4;

const SCRAM: &[u8] = b"SCRAM-SHA-256";
const SCRAM_PLUS: &[u8] = b"SCRAM-SHA-256-PLUS";

/// Connects and logs in. The connection is idle and carries no tenant's context.
///
/// Not cancel safe: what was made is closed.
///
/// # Errors
/// 08006 for the network, TLS, or a login the server refuses (its words go to the log, not to the
/// client); 53300, 57P03 and 3D000 as the server gave them.
pub async fn connect(
    server: &Arc<Server>,
    names: &Names,
    key: &PoolKey,
    deadline: Duration,
) -> Result<ServerConnection> {
    let attempt = async {
        let addresses = match dns::name_of(server) {
            Some(name) => names.resolve(name).await.map_err(unreachable)?,
            None => Vec::new(),
        };
        let stream = open(server, &addresses).await?;
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
                let plain = Stream::Plain(dial(server, host, *port, &addresses).await?);
                log_in_on(plain, server, key).await
            }
            _ => Err(refused),
        }
    };
    timer::timeout(deadline, attempt)
        .await
        .unwrap_or_else(|_| Err(unreachable(format_args!("timed out after {deadline:?}"))))
}

/// The kind of a login that pg_hba.conf does not let in (28000).
const BARRED: Kind = Kind::InvalidAuthorization;

async fn log_in_on(
    stream: Stream,
    server: &Arc<Server>,
    key: &PoolKey,
) -> Result<ServerConnection> {
    let peer = dns::name_of(server).and_then(|_| Some(stream.peer_addr()?.ip()));
    let mut connection = ServerConnection::new(stream, server.clone(), peer);
    connection.send(&startup_message(key)).await?;
    log_in(&mut connection, key).await?;
    Ok(connection)
}

fn startup_message(key: &PoolKey) -> Vec<u8> {
    let own = [("user", &key.login.user), ("database", &key.database)];
    let pinned = key
        .startup
        .iter()
        .map(|(name, value)| (name.as_str(), value));
    let mut message = vec![0; 4];
    message.extend_from_slice(&NEWEST.code().to_be_bytes());
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
    let mut said = 0;
    let mut scram = None;
    let mut demands = Demands::of(connection.server());
    let mut older = None;
    let mut authenticated = false;
    loop {
        let Frame { tag, body } = connection.receive().await?;
        said += HEADER + body.len();
        if said > MAX_LOGIN {
            let cause = format_args!("the server says more than {MAX_LOGIN} bytes during login");
            return Err(failed(cause));
        }
        match tag {
            BackendTag::NEGOTIATE_PROTOCOL_VERSION if older.is_none() => {
                older = Some(negotiated(&body)?);
            }
            BackendTag::AUTHENTICATION => {
                let code = demands.hear(&body).map_err(failed)?;
                authenticate(connection, key, (code, &body[4..]), &mut scram).await?;
                authenticated = body == [0; 4];
            }
            BackendTag::BACKEND_KEY_DATA => {
                connection.set_key(cancel_key(&body, older.unwrap_or(NEWEST))?);
            }
            BackendTag::PARAMETER_STATUS => connection.note_parameter(&body)?,
            BackendTag::NOTICE_RESPONSE => {}
            BackendTag::ERROR_RESPONSE => {
                return Err(refused(&ErrorFields::read(&body), key, authenticated));
            }
            BackendTag::READY_FOR_QUERY => return Ok(()),
            tag => {
                return Err(failed(format_args!(
                    "unexpected message {tag:?} during login"
                )));
            }
        }
    }
}

/// The version of an older server, which is all that it can have to negotiate: no extension was
/// asked for.
fn negotiated(body: &[u8]) -> Result<Version> {
    let malformed = || failed("malformed NegotiateProtocolVersion");
    let (version, rest) = body.split_first_chunk::<4>().ok_or_else(malformed)?;
    let [a, b, c, d] = *version;
    let version = Version {
        major: u16::from_be_bytes([a, b]),
        minor: u16::from_be_bytes([c, d]),
    };
    // There never was a 3.1.
    match version {
        Version { major: 3, minor: 0 } if rest == [0; 4] => Ok(version),
        Version { major, minor } => Err(malformed().caused_by(format_args!(
            "the server cannot speak protocol {}.{} and proposes {major}.{minor}",
            NEWEST.major, NEWEST.minor
        ))),
    }
}

fn cancel_key(body: &[u8], version: Version) -> Result<CancelKey> {
    let lengths = match version >= NEWEST {
        true => SHORT_CANCEL_KEY..=MAX_CANCEL_KEY,
        false => SHORT_CANCEL_KEY..=SHORT_CANCEL_KEY,
    };
    match body.split_first_chunk::<4>() {
        Some((pid, secret)) if lengths.contains(&secret.len()) => Ok(CancelKey {
            pid: i32::from_be_bytes(*pid),
            secret: secret.into(),
        }),
        _ => Err(failed("malformed BackendKeyData")),
    }
}

/// What a client may know of a refusal: that the server is full, starting or stopping, that the
/// database is not there, or what is wrong with a parameter of its own. Roles and passwords are the
/// operator's.
fn refused(fields: &ErrorFields, key: &PoolKey, authenticated: bool) -> Error {
    let error = match fields.sqlstate.as_str() {
        _ if names_a_parameter(fields, key) => {
            fields.clone().into_error(Kind::FeatureNotSupported)
        }
        sqlstate @ ("28000" | "42501") if key.is_replicating() => Error::new(
            match sqlstate {
                "28000" => BARRED,
                _ => Kind::InsufficientPrivilege,
            },
            "the tenant's server does not let pgtenant replicate",
        )
        .with_hint(
            "On the server, pgtenant's role needs the REPLICATION attribute, and pg_hba.conf a line that lets it in: \
             for \"replication\", or with replication=database for the database.",
        ),
        _ if authenticated && key.has_own && is_of_own_parameters(fields) => {
            fields.clone().into_error(Kind::FeatureNotSupported)
        }
        "57P03" | "57P01" | "57P02" => {
            Error::new(Kind::CannotConnectNow, fields.message.clone()).passing()
        }
        "53300" => Error::new(Kind::TooManyConnections, fields.message.clone()).passing(),
        "53200" => Error::new(Kind::OutOfMemory, fields.message.clone()),
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

/// Whether what is wrong is a run-time parameter that the StartupMessage gave.
fn names_a_parameter(fields: &ErrorFields, key: &PoolKey) -> bool {
    let is_about = |name: &str| {
        let quoted = format!("\"{name}\"");
        fields.message.contains(&quoted)
    };
    matches!(
        fields.sqlstate.as_str(),
        "22023" | "42501" | "42602" | "42704" | "55P02"
    ) && key.startup.iter().any(|(name, _)| is_about(name))
}

/// Whether a login that was authenticated can have been refused only for what the StartupMessage
/// sets: the server reads those parameters then, and loads the libraries that they name
/// (process_startup_options and process_session_preload_libraries in postinit.c). What it looks at
/// before is the login's.
fn is_of_own_parameters(fields: &ErrorFields) -> bool {
    let is_of_login = matches!(&*fields.routine, "InitPostgres" | "CheckMyDatabase");
    let is_of_server = matches!(
        fields.sqlstate.get(..2),
        None | Some("08" | "28" | "3D" | "53" | "57" | "58" | "XX")
    );
    match &*fields.sqlstate {
        // Undefined file: a library.
        "58P01" => fields.message.contains("plugins"),
        "55P02" => true,
        _ => !is_of_login && !is_of_server,
    }
}

async fn authenticate(
    connection: &mut ServerConnection,
    key: &PoolKey,
    (code, data): (u32, &[u8]),
    scram: &mut Option<ScramSha256>,
) -> Result<()> {
    let malformed = || failed("malformed authentication request");
    let login = &key.login;
    let no_password = || failed("the server wants a password and the config has none");
    let password = || {
        let password = login.password.as_ref().ok_or_else(no_password)?;
        Ok(password.expose().as_bytes())
    };
    let answer = match code {
        demand::OK => return Ok(()),
        demand::CLEARTEXT => [password()?, b"\0"].concat(),
        demand::MD5 => {
            let salt = data.try_into().map_err(|_| malformed())?;
            let hash = md5_hash(login.user.as_bytes(), password()?, salt);
            [hash.as_bytes(), b"\0"].concat()
        }
        demand::SASL => {
            let (mechanism, binding) = choose(data, connection)?;
            let password = login.password.as_ref().ok_or_else(no_password)?;
            let exchange = ScramSha256::new(&for_client(password.expose()), binding);
            let first = exchange.message();
            let length = u32::try_from(first.len()).unwrap_or(u32::MAX).to_be_bytes();
            let answer = [mechanism, b"\0", &length, first].concat();
            *scram = Some(exchange);
            answer
        }
        demand::SASL_CONTINUE => {
            let exchange = scram.as_mut().ok_or_else(malformed)?;
            exchange.update(data).map_err(failed)?;
            exchange.message().to_vec()
        }
        demand::SASL_FINAL => {
            let exchange = scram.as_mut().ok_or_else(malformed)?;
            return exchange.finish(data).map_err(failed);
        }
        other => {
            return Err(failed(format_args!(
                "pgtenant cannot do authentication method {other}"
            )));
        }
    };
    connection
        .send(&frame(FrontendTag::PASSWORD.0, &[&answer]))
        .await
}

/// The best SASL mechanism of those that a server offers. In TLS that is the one bound to the
/// certificate; where the server does not offer it, it is told that it could have been used, so
/// that nobody in between can hide it.
fn choose(
    mut offered: &[u8],
    connection: &ServerConnection,
) -> Result<(&'static [u8], ChannelBinding)> {
    let (mut plus, mut plain) = (false, false);
    while let Some((mechanism, rest)) = split_cstr(offered)
        && !mechanism.is_empty()
    {
        plus |= mechanism == SCRAM_PLUS;
        plain |= mechanism == SCRAM;
        offered = rest;
    }
    let certificate = connection.stream.peer_certificate();
    match certificate.and_then(tls_server_end_point) {
        Some(hash) if plus => Ok((SCRAM_PLUS, ChannelBinding::tls_server_end_point(hash))),
        Some(_) if plain => Ok((SCRAM, ChannelBinding::unrequested())),
        None if plain => Ok((SCRAM, ChannelBinding::unsupported())),
        _ => Err(failed(
            "the server offers no SASL mechanism but unknown ones",
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::net::TcpListener;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    /// A server that answers a StartupMessage with these messages, and then takes a cancel request.
    /// Returns both packets.
    async fn server(listener: TcpListener, answer: Vec<u8>) -> [Vec<u8>; 2] {
        let packet = async |tcp: &mut TcpStream| {
            let mut length = [0; 4];
            tcp.read_exact(&mut length).await.unwrap();
            let mut body = vec![0; u32::from_be_bytes(length) as usize - 4];
            tcp.read_exact(&mut body).await.unwrap();
            body
        };
        let (mut session, _) = listener.accept().await.unwrap();
        let startup = packet(&mut session).await;
        session.write_all(&answer).await.unwrap();
        let (mut cancel, _) = listener.accept().await.unwrap();
        [startup, packet(&mut cancel).await]
    }

    /// Logs in to such a server and cancels. Returns the version that was asked for and the cancel
    /// key that was sent.
    async fn log_in_and_cancel(version: Option<&[u8]>, key: &[u8]) -> Result<(Version, Vec<u8>)> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let text = format!(
            "servers: {{ s: {{ host: 127.0.0.1, port: {}, sslmode: disable, max_connections: 10 }} }}
placements: {{ p: {{ tier: instance, server: s, database: app, login: {{ user: app }} }} }}
tenants: {{ a: {{ placement: p, users: {{ app: {{ password: a }} }} }} }}",
            listener.local_addr().unwrap().port()
        );
        let config = crate::config::load_text(&text, Path::new("."), &|_| None).unwrap();
        let place = &config.tenants.values().next().unwrap().route.pool;
        let negotiate = version.map(|version| frame(b'v', &[version]));
        let answer = [
            negotiate.unwrap_or_default(),
            frame(b'R', &[&[0; 4]]),
            frame(b'K', &[&7_i32.to_be_bytes(), key]),
            frame(b'Z', &[b"I"]),
        ];
        let server = tokio::spawn(server(listener, answer.concat()));
        let deadline = Duration::from_secs(10);
        let names = Names::new(dns::Resolver::default());
        let connection = connect(&config.servers[0], &names, place, deadline).await?;
        let fence = connection.fence().clone();
        fence.open(1);
        assert!(fence.cancel(1, deadline).await.unwrap());
        let [startup, cancel] = server.await.unwrap();
        assert!(cancel.starts_with(&[4, 210, 22, 46, 0, 0, 0, 7]));
        let version = Version {
            major: u16::from_be_bytes([startup[0], startup[1]]),
            minor: u16::from_be_bytes([startup[2], startup[3]]),
        };
        Ok((version, cancel[8..].to_vec()))
    }

    #[tokio::test]
    async fn servers_are_asked_for_the_newest_protocol_and_cancelled_by_the_whole_key() {
        let older = [0, 3, 0, 0, 0, 0, 0, 0];
        for (version, length) in [(None, 4), (None, 32), (None, 256), (Some(&older[..]), 4)] {
            let key: Vec<u8> = (0..length).map(|n| u8::try_from(n).unwrap()).collect();
            let (asked, cancelled) = log_in_and_cancel(version, &key).await.unwrap();
            assert_eq!(asked, NEWEST);
            assert_eq!(cancelled, key, "{version:?}");
        }
    }

    #[tokio::test]
    async fn what_servers_may_not_negotiate_is_refused() {
        for (version, length) in [
            (None, 3),
            (None, 257),
            // 3.0 has short keys, there is no 3.1, and 3.2 needs no negotiation.
            (Some(&[0, 3, 0, 0, 0, 0, 0, 0][..]), 32),
            (Some(&[0, 3, 0, 1, 0, 0, 0, 0]), 4),
            (Some(&[0, 3, 0, 2, 0, 0, 0, 0]), 32),
            (Some(&[0, 3, 0, 3, 0, 0, 0, 0]), 32),
            (Some(&[0, 2, 0, 0, 0, 0, 0, 0]), 4),
            // An option that was never asked for; nothing at all.
            (Some(b"\0\x03\0\0\0\0\0\x01_pq_.x\0"), 4),
            (Some(&[0, 3]), 4),
            (Some(&[]), 4),
        ] {
            let error = log_in_and_cancel(version, &vec![1; length]).await;
            let error = error.expect_err("refused");
            assert_eq!(error.sqlstate(), "08006", "{version:?} {length}: {error}");
        }
    }
}
