//! The first stage of a client: TLS or not, and its first packet.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::error::{Error, Kind, Result};
use crate::net::socket::Socket;
use crate::net::stream::Stream;
use crate::protocol::startup::{self, CancelKey, NEWEST, Packet, Startup, Version};
use crate::tls::ALPN;

/// First byte of a TLS record of a handshake, by which a direct TLS connection is told from a
/// packet.
const TLS_HANDSHAKE: u8 = 0x16;

/// Most bytes of the first packet that are looked at before it is read: enough for what most
/// drivers send.
const PEEK: usize = 512;

/// How a client begins.
pub enum Opening {
    Login {
        stream: Stream,
        startup: Startup,
        sni: Option<String>,
    },
    Cancel(CancelKey, Stream),
    /// It left without a word, or by Terminate.
    Nothing(Option<Stream>),
}

/// An opening that failed, with the stream if an error can still be said on it.
pub type Failed = (Option<Stream>, Error);

/// Negotiates TLS and reads the first packet.
///
/// Not cancel safe: the connection is then closed.
///
/// # Errors
/// 08P01 as [`startup::read`], 0A000 for a protocol version that is not spoken, 28000 where TLS is
/// required and not used, 08006 for a handshake that fails.
pub async fn open(
    tcp: TcpStream,
    tls: Option<&TlsAcceptor>,
    required: bool,
) -> Result<Opening, Failed> {
    let Some((first, mut size)) = poll_fn(|cx| peek(&tcp, cx)).await else {
        return Ok(Opening::Nothing(None));
    };
    let mut stream = match (first == TLS_HANDSHAKE, tls) {
        (true, Some(tls)) => {
            size = None;
            Box::pin(accept(tls, tcp.into(), true)).await?
        }
        (true, None) => return Err((None, failed("direct TLS is not offered"))),
        (false, _) => Stream::Plain(tcp.into()),
    };
    let (mut ssl_asked, mut gss_asked) = (false, false);
    loop {
        let packet = match startup::read(&mut stream, size.take()).await {
            Ok(Some(packet)) => packet,
            Ok(None) => return Ok(Opening::Nothing(Some(stream))),
            Err(error) => return Err((Some(stream), error)),
        };
        match packet {
            Packet::SslRequest => {
                // One request of each kind, and none inside TLS (ProcessStartupPacket).
                let again = std::mem::replace(&mut ssl_asked, true);
                let mut socket = match stream {
                    Stream::Plain(socket) if !again => socket,
                    stream => return Err((Some(stream), unsupported("1234.5679"))),
                };
                match tls {
                    Some(tls) => {
                        socket.write_all(b"S").await.map_err(gone)?;
                        stream = Box::pin(accept(tls, socket, false)).await?;
                    }
                    None => {
                        socket.write_all(b"N").await.map_err(gone)?;
                        stream = Stream::Plain(socket);
                    }
                }
            }
            Packet::GssEncRequest if !gss_asked => {
                gss_asked = true;
                stream.write_all(b"N").await.map_err(gone)?;
                stream.flush().await.map_err(gone)?;
            }
            Packet::GssEncRequest => return Err((Some(stream), unsupported("1234.5680"))),
            Packet::Unsupported(Version { major, minor }) => {
                let error = unsupported(&format!("{major}.{minor}"));
                if major >= NEWEST.major {
                    return Err((Some(stream), error));
                }
                // Protocol 2 has errors without length and fields.
                let text = format!("EFATAL:  {}\n\0", error.message());
                stream.write_all(text.as_bytes()).await.map_err(gone)?;
                stream.shutdown().await.map_err(gone)?;
                return Err((None, error));
            }
            Packet::Cancel(key) => return Ok(Opening::Cancel(key, stream)),
            Packet::Startup(_) if required && !stream.is_tls() => {
                let error = Error::new(Kind::InvalidAuthorization, "connection requires TLS")
                    .with_hint("Use sslmode=require or stronger.");
                return Err((Some(stream), error));
            }
            Packet::Startup(startup) => {
                let sni = stream.sni().map(str::to_owned);
                return Ok(Opening::Login {
                    stream,
                    startup,
                    sni,
                });
            }
        }
    }
}

/// The first byte, and the size of the first packet if all of it is here. None: the client left
/// without a word.
fn peek(tcp: &TcpStream, cx: &mut Context<'_>) -> Poll<Option<(u8, Option<usize>)>> {
    let mut here = [0; PEEK];
    let mut here = ReadBuf::new(&mut here);
    if ready!(tcp.poll_peek(cx, &mut here)).is_err() {
        return Poll::Ready(None);
    }
    let here = here.filled();
    Poll::Ready(
        here.first()
            .map(|&first| (first, startup::whole_packet(here))),
    )
}

async fn accept(tls: &TlsAcceptor, socket: Socket, direct: bool) -> Result<Stream, Failed> {
    let tls = tls.accept(socket).await.map_err(|e| (None, failed(e)))?;
    let has_alpn = tls.get_ref().1.alpn_protocol() == Some(ALPN);
    let stream = Stream::tls(tls);
    if direct && !has_alpn {
        return Err((None, failed("direct TLS without ALPN \"postgresql\"")));
    }
    Ok(stream)
}

/// What PostgreSQL says of a request that it takes for a version of the protocol.
fn unsupported(version: &str) -> Error {
    Error::new(
        Kind::FeatureNotSupported,
        format!(
            "unsupported frontend protocol {version}: server supports 3.0 to {}.{}",
            NEWEST.major, NEWEST.minor
        ),
    )
}

fn failed(cause: impl std::fmt::Display) -> Error {
    Error::new(Kind::ConnectionFailure, "TLS handshake failed").caused_by(cause)
}

fn gone(error: io::Error) -> Failed {
    (
        None,
        Error::new(Kind::ConnectionFailure, "the client left").caused_by(error),
    )
}
