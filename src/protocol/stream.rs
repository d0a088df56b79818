//! A socket of either kind, with or without TLS, to a client or to a server.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime;
use tokio_rustls::TlsStream;

pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// The other end, where it has an address.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(tcp) => tcp.peer_addr().ok(),
            Self::Tls(tls) => tls.get_ref().0.peer_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// The certificate of the other end in TLS, in DER.
    pub fn peer_certificate(&self) -> Option<&[u8]> {
        match self {
            Self::Tls(tls) => tls.get_ref().1.peer_certificates()?.first().map(|c| &**c),
            Self::Tcp(_) | Self::Unix(_) => None,
        }
    }

    /// Whether nothing came that was not read, as far as the runtime knows without a system call. Of a TLS session it is not
    /// known: false.
    pub fn is_silent(&self) -> bool {
        match self {
            Self::Tcp(tcp) => tcp.try_io(Interest::READABLE, || Ok(())).is_err(),
            Self::Unix(unix) => unix.try_io(Interest::READABLE, || Ok(())).is_err(),
            Self::Tls(_) => false,
        }
    }

    /// Registers the socket with the runtime this is called on, unless that is `from`.
    ///
    /// # Errors
    /// As [`adopt`](Self::adopt).
    pub fn move_here(&mut self, from: runtime::Id) -> io::Result<()> {
        match runtime::Handle::current().id() == from {
            true => Ok(()),
            false => self.adopt(),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(tcp) => tcp.as_fd(),
            Self::Unix(unix) => unix.as_fd(),
            Self::Tls(tls) => tls.get_ref().0.as_fd(),
        }
    }

    /// Whether the socket holds something that was not read, or was closed by the other end. It asks the operating system:
    /// for when the runtime does not know yet.
    ///
    /// # Errors
    /// The operating system's: the connection is lost.
    pub fn has_unread(&self) -> io::Result<bool> {
        let mut byte = [MaybeUninit::uninit()];
        match SockRef::from(&self.fd()).peek(&mut byte) {
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
        match self {
            Self::Tcp(tcp) => tcp.readable().await,
            Self::Unix(unix) => unix.readable().await,
            Self::Tls(tls) => tls.get_ref().0.readable().await,
        }
    }

    /// Registers the socket with the runtime this is called on, so that a connection accepted on one
    /// worker is served on another: the socket is exchanged for a duplicate of its descriptor, under a TLS session
    /// that stays as it is. What the runtime knew of its readiness is forgotten until that has looked.
    ///
    /// # Errors
    /// The operating system's, when a descriptor cannot be duplicated or registered.
    pub fn adopt(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(tcp) => adopt_tcp(tcp),
            Self::Unix(unix) => {
                let duplicate = unix.as_fd().try_clone_to_owned()?;
                *unix = UnixStream::from_std(duplicate.into())?;
                Ok(())
            }
            Self::Tls(tls) => match &mut **tls {
                TlsStream::Client(tls) => adopt_tcp(tls.get_mut().0),
                TlsStream::Server(tls) => adopt_tcp(tls.get_mut().0),
            },
        }
    }
}

fn adopt_tcp(tcp: &mut TcpStream) -> io::Result<()> {
    let duplicate = tcp.as_fd().try_clone_to_owned()?;
    *tcp = TcpStream::from_std(duplicate.into())?;
    Ok(())
}

macro_rules! delegate {
    ($self:ident, $method:ident($($arg:expr),*)) => {
        match $self.get_mut() {
            Stream::Tcp(io) => Pin::new(io).$method($($arg),*),
            Stream::Unix(io) => Pin::new(io).$method($($arg),*),
            Stream::Tls(io) => Pin::new(io).$method($($arg),*),
        }
    };
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
