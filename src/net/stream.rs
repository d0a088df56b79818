//! A socket of either kind, with or without TLS, to a client or to a server.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime;
use tokio_rustls::TlsStream;

use crate::net::socket::Socket;

pub enum Stream {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

impl Stream {
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }

    /// The other end, where it has an address.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.socket().peer_addr()
    }

    /// The certificate of the other end in TLS, in DER.
    pub fn peer_certificate(&self) -> Option<&[u8]> {
        match self {
            Self::Tls(tls) => tls.get_ref().1.peer_certificates()?.first().map(|c| &**c),
            Self::Plain(_) => None,
        }
    }

    /// Whether nothing came that was not read, as far as the runtime knows without a system call. Of a TLS session it is not
    /// known: false.
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

    /// Whether the socket holds something that was not read, or was closed by the other end. It asks the operating system:
    /// for when the runtime does not know yet.
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

    /// Registers the socket with the runtime this is called on, so that a connection accepted on one
    /// worker is served on another: the socket is exchanged for a duplicate of its descriptor, under a TLS session
    /// that stays as it is.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// As [`Socket::adopt`].
    pub async fn adopt(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.adopt().await,
            Self::Tls(tls) => match &mut **tls {
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
            Stream::Tls(io) => Pin::new(io).$method($($arg),*),
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
