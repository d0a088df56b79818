//! A socket of either kind, with or without TLS, to a client or to a server.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::{self, Handle};
use tokio::task::unconstrained;
use tokio_rustls::TlsStream;

use crate::net::socket::Socket;

pub enum Stream {
    Plain(Socket),
    Tls(Box<Tls>),
}

/// A TLS session. However it comes to be dropped, the other end is told by a close_notify alert
/// that nothing follows: without one, OpenSSL takes the end of the connection for an attack
/// ("unexpected eof while reading").
pub struct Tls(TlsStream<Socket>);

impl Drop for Tls {
    fn drop(&mut self) {
        // Sockets need a runtime. One that ends while the process does may be gone already.
        if Handle::try_current().is_err() {
            return;
        }
        // What the socket does not take at once is lost, as it is when a process of PostgreSQL
        // ends.
        let session = &mut self.0;
        let goodbye = unconstrained(poll_fn(|cx| Pin::new(&mut *session).poll_shutdown(cx)));
        let _ = pin!(goodbye).poll(&mut Context::from_waker(Waker::noop()));
    }
}

/// Most bytes that are read of a client that is closed for what it said: PostgreSQL's
/// PQ_RECV_BUFFER_SIZE (pqcomm.c), which is what a process of PostgreSQL has read of it then.
const LAST_READ: usize = 8 * 1024;

impl Stream {
    pub fn tls(session: impl Into<TlsStream<Socket>>) -> Self {
        Self::Tls(Box::new(Tls(session.into())))
    }

    /// The name that a client asked for in its TLS handshake.
    pub fn sni(&self) -> Option<&str> {
        match self {
            Self::Tls(tls) => match &tls.0 {
                TlsStream::Server(tls) => tls.get_ref().1.server_name(),
                TlsStream::Client(_) => None,
            },
            Self::Plain(_) => None,
        }
    }

    /// Reads what has come already, without waiting. The operating system would answer what was not
    /// read when the connection is closed by a reset, which may overtake what the other end was
    /// told last.
    pub fn pass_over_unread(&mut self) {
        let mut bytes = [0; LAST_READ];
        let mut read = ReadBuf::new(&mut bytes);
        let reading = poll_fn(|cx| Pin::new(&mut *self).poll_read(cx, &mut read));
        let _ = pin!(unconstrained(reading)).poll(&mut Context::from_waker(Waker::noop()));
    }

    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => tls.0.get_ref().0,
        }
    }

    /// The other end, where it has an address.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.socket().peer_addr()
    }

    /// The certificate of the other end in TLS, in DER.
    pub fn peer_certificate(&self) -> Option<&[u8]> {
        match self {
            Self::Tls(tls) => tls.0.get_ref().1.peer_certificates()?.first().map(|c| &**c),
            Self::Plain(_) => None,
        }
    }

    /// Whether nothing came that was not read, as far as the runtime knows without a system call.
    /// Of a TLS session it is not known: false.
    pub fn is_silent(&self) -> bool {
        !self.is_tls() && self.socket().is_silent()
    }

    /// Registers the socket with the runtime this is called on, unless that is `from`.
    ///
    /// # Errors
    /// As [`adopt`](Self::adopt).
    pub async fn move_here(&mut self, from: runtime::Id) -> io::Result<()> {
        match runtime::Handle::current().id() == from {
            true => Ok(()),
            false => self.adopt().await,
        }
    }

    /// Whether the socket holds something that was not read, or was closed by the other end. It
    /// asks the operating system: for when the runtime does not know yet.
    ///
    /// # Errors
    /// The operating system's: the connection is lost.
    pub fn has_unread(&self) -> io::Result<bool> {
        let mut byte = [MaybeUninit::uninit()];
        match SockRef::from(self.socket()).peek(&mut byte) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits until the runtime knows that there is something to read.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket().readable().await
    }

    /// As [`Socket::can_detach`]; a TLS session cannot.
    pub fn can_detach(&self) -> bool {
        !self.is_tls() && self.socket().can_detach()
    }

    /// As [`Socket::detach`].
    ///
    /// # Errors
    /// As there.
    pub fn detach(self) -> io::Result<std::net::TcpStream> {
        match self {
            Self::Plain(socket) => socket.detach(),
            Self::Tls(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Registers what was [detached](Self::detach) with the runtime this is called on.
    ///
    /// # Errors
    /// The operating system's.
    pub fn attach(tcp: std::net::TcpStream) -> io::Result<Self> {
        let tcp = tokio::net::TcpStream::from_std(tcp)?;
        Ok(Self::Plain(tcp.into()))
    }

    /// Ready when all that was written and flushed has left for the operating system.
    pub fn poll_settled(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.socket().poll_settled(cx)
    }

    /// Registers the socket with the runtime this is called on, so that a connection accepted on
    /// one worker is served on another: the socket is exchanged for a duplicate of its descriptor,
    /// under a TLS session that stays as it is.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// As [`Socket::adopt`].
    pub async fn adopt(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.adopt().await,
            Self::Tls(tls) => match &mut tls.0 {
                TlsStream::Client(tls) => tls.get_mut().0.adopt().await,
                TlsStream::Server(tls) => tls.get_mut().0.adopt().await,
            },
        }
    }
}

macro_rules! delegate {
    ($self:ident, $method:ident($($arg:expr),*)) => {
        match $self.get_mut() {
            Stream::Plain(io) => Pin::new(io).$method($($arg),*),
            Stream::Tls(tls) => Pin::new(&mut tls.0).$method($($arg),*),
        }
    };
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().as_fd()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        delegate!(self, poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_shutdown(cx))
    }
}
