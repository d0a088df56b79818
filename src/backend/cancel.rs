//! Cancelling what a server connection runs, and nothing else.
//!
//! A CancelRequest names a backend, not a query, and travels on a connection of its own. So it is
//! forwarded only while the client that asks holds the server connection, and the server connection
//! goes to nobody else until the server has closed the cancel connection: then its signal has been
//! sent, and a backend that is idle swallows it before it reads the next query.
//!
//! ```text
//!   Closed ──open(client)──► Open(client) ──enter(client)──► Open, n in flight
//!     ▲                          │ close()                        │ close()
//!     └──────────────────────────┴──── wait until 0 in flight ◄───┘
//! ```

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use crate::backend::dial;
use crate::config::Server;
use crate::error::{Error, Kind, Result};
use crate::protocol::startup::CancelKey;
use crate::timer;

/// The gate of one server connection through which cancels must pass.
///
/// A cancel counts itself in flight and then looks who holds the connection; who gives it back
/// takes the holder away and then looks what is in flight. In one order of all of these (`SeqCst`),
/// one of the two sees the other.
#[derive(Debug)]
pub struct Fence {
    server: Arc<Server>,
    /// Where the server connection goes, if its host is a name, which may mean another server now.
    peer: Option<IpAddr>,
    key: CancelKey,
    /// When the server connection was made, and whether in TLS: for the admin console.
    born: SystemTime,
    tls: bool,
    /// The client whose query runs here and may be cancelled, or [`NOBODY`].
    holder: AtomicU64,
    /// Cancels under way.
    in_flight: AtomicUsize,
    /// A cancel was sent and its end was not seen: it may strike at any time.
    unsure: AtomicBool,
    changed: Notify,
    /// The relay that holds the next query back until they have struck.
    relay: AtomicWaker,
}

/// No client's id.
const NOBODY: u64 = 0;
/// The holder of a connection that the proxy itself closes: no client's id either.
pub const PROXY: u64 = u64::MAX;

impl Fence {
    pub fn new(server: Arc<Server>, peer: Option<IpAddr>, key: CancelKey, tls: bool) -> Self {
        Self {
            server,
            peer,
            key,
            born: SystemTime::now(),
            tls,
            holder: AtomicU64::new(NOBODY),
            in_flight: AtomicUsize::new(0),
            unsure: AtomicBool::new(false),
            changed: Notify::new(),
            relay: AtomicWaker::new(),
        }
    }

    /// Process id of the server's backend.
    pub fn pid(&self) -> i32 {
        self.key.pid
    }

    /// The server as it was configured when the connection was made.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The address that the server connection was made to, if the server's host is a name.
    pub fn peer(&self) -> Option<IpAddr> {
        self.peer
    }

    /// When the server connection was made.
    pub fn born(&self) -> SystemTime {
        self.born
    }

    /// Whether the server connection is in TLS.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Lets cancels of `client` through.
    pub fn open(&self, client: u64) {
        self.holder.store(client, SeqCst);
    }

    /// Lets no more cancels through. True if none is under way.
    pub fn close(&self) -> bool {
        self.holder.store(NOBODY, SeqCst);
        self.is_quiet() && !self.unsure.load(SeqCst)
    }

    fn is_quiet(&self) -> bool {
        self.in_flight.load(SeqCst) == 0
    }

    /// Ready while no cancel is under way: then the next query may begin, which none was meant for.
    pub fn poll_quiet(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_quiet() {
            return Poll::Ready(());
        }
        self.relay.register(cx.waker());
        match self.is_quiet() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Waits until no cancel is under way. False if one may still strike: the connection must then
    /// be closed.
    ///
    /// Cancel safe.
    pub async fn settled(&self) -> bool {
        loop {
            let changed = self.changed.notified();
            if self.is_quiet() {
                return !self.unsure.load(SeqCst);
            }
            changed.await;
        }
    }

    /// Cancels what runs here if `client` still holds the connection. False: it does not.
    ///
    /// # Errors
    /// 08006 if the server could not be told, or did not say that it has.
    pub async fn cancel(self: Arc<Self>, client: u64, deadline: Duration) -> Result<bool> {
        let mut guard = InFlight::enter(self.clone());
        if client == NOBODY || self.holder.load(SeqCst) != client {
            guard.seen = true;
            return Ok(false);
        }
        // The request goes on if whoever asked for it does not stay to see its end.
        let sending = tokio::spawn(guard.strike(deadline));
        sending.await.unwrap_or_else(|e| Err(failed(e)))?;
        Ok(true)
    }

    /// Sends the request and waits until the server has closed the connection.
    async fn send(&self) -> Result<()> {
        let mut stream = dial::open(&self.server, self.peer.as_slice()).await?;
        stream
            .write_all(&self.key.request())
            .await
            .map_err(failed)?;
        stream.flush().await.map_err(failed)?;
        let mut rest = [0; 64];
        while let Ok(n) = stream.read(&mut rest).await
            && n > 0
        {}
        Ok(())
    }
}

fn failed(e: impl std::fmt::Display) -> Error {
    Error::new(Kind::ConnectionFailure, "could not send the cancel request").caused_by(e)
}

/// A cancel under way, until dropped.
struct InFlight {
    fence: Arc<Fence>,
    /// Its end was seen: it strikes no more.
    seen: bool,
}

impl InFlight {
    fn enter(fence: Arc<Fence>) -> Self {
        fence.in_flight.fetch_add(1, SeqCst);
        Self { fence, seen: false }
    }

    async fn strike(mut self, deadline: Duration) -> Result<()> {
        let sent = timer::timeout(deadline, self.fence.send()).await;
        self.seen = matches!(sent, Ok(Ok(())));
        sent.unwrap_or_else(|_| Err(failed("timed out")))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.seen {
            self.fence.unsure.store(true, SeqCst);
        }
        self.fence.in_flight.fetch_sub(1, SeqCst);
        self.fence.changed.notify_waiters();
        self.fence.relay.wake();
    }
}
