//! What a server says to the control plane while it logs in: tokio-postgres sees it message by
//! message, after it was looked at. It would answer whatever it is asked for, and keep whatever it
//! is told.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::backend::connection::MAX_LOGIN;
use crate::backend::demand::Demands;
use crate::config::Server;
use crate::net::stream::Stream;
use crate::protocol::frame::{BackendTag, HEADER, Header};

pub struct Gate {
    stream: Stream,
    /// Until the login is over.
    demands: Option<Demands>,
    /// What has come; the first `good` bytes of it may pass.
    held: Vec<u8>,
    good: usize,
    /// Bytes that have passed.
    passed: usize,
}

impl Gate {
    /// `stream`: to `server`, and nothing is said on it yet.
    pub fn new(stream: Stream, server: &Server) -> Self {
        Self {
            stream,
            demands: Some(Demands::of(server)),
            held: Vec::new(),
            good: 0,
            passed: 0,
        }
    }

    /// Looks at the message that `held` begins with, if it is whole. False: more of it is to come.
    fn look(&mut self) -> Result<bool, String> {
        let Some(demands) = &mut self.demands else {
            self.good = self.held.len();
            return Ok(self.good > 0);
        };
        let Some(header) = Header::read(&self.held) else {
            return Ok(false);
        };
        let size = header
            .size(MAX_LOGIN)
            .filter(|size| self.passed + size <= MAX_LOGIN);
        let size = size.ok_or_else(|| {
            format!("the server says more than {MAX_LOGIN} bytes during a login, or no message")
        })?;
        let Some(body) = self.held.get(HEADER..size) else {
            return Ok(false);
        };
        match BackendTag(header.tag) {
            BackendTag::AUTHENTICATION => {
                demands.hear(body)?;
            }
            BackendTag::READY_FOR_QUERY => self.demands = None,
            _ => {}
        }
        self.passed += size;
        self.good = size;
        Ok(true)
    }
}

impl AsyncRead for Gate {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        while gate.good == 0 {
            if gate.demands.is_none() && gate.held.is_empty() {
                return Pin::new(&mut gate.stream).poll_read(cx, buf);
            }
            if gate.look().map_err(io::Error::other)? {
                break;
            }
            let mut bytes = [0; 4096];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut gate.stream).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            gate.held.extend_from_slice(read.filled());
        }
        let passing = gate.good.min(buf.remaining());
        buf.put_slice(&gate.held[..passing]);
        gate.held.drain(..passing);
        gate.good -= passing;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Gate {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
