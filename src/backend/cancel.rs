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

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use crate::backend::connect;
use crate::config::Server;
use crate::error::{Error, Kind, Result};
use crate::protocol::startup::CancelKey;

/// The gate of one server connection through which cancels must pass.
#[derive(Debug)]
pub struct Fence {
    server: Arc<Server>,
    key: CancelKey,
    /// When the server connection was made, and whether in TLS: for the admin console.
    born: SystemTime,
    tls: bool,
    state: Mutex<State>,
    changed: Notify,
    /// Cancels under way, for a look without the lock.
    in_flight: AtomicUsize,
    /// The relay that holds the next query back until they have struck.
    relay: AtomicWaker,
}

#[derive(Debug, Default)]
struct State {
    /// The client whose query runs here and may be cancelled.
    holder: Option<u64>,
    in_flight: usize,
    /// A cancel was sent and its end was not seen: it may strike at any time.
    unsure: bool,
}

impl Fence {
    pub fn new(server: Arc<Server>, key: CancelKey, tls: bool) -> Self {
        Self {
            server,
            key,
            born: SystemTime::now(),
            tls,
            state: Mutex::default(),
            changed: Notify::new(),
            in_flight: AtomicUsize::new(0),
            relay: AtomicWaker::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Process id of the server's backend.
    pub fn pid(&self) -> i32 {
        self.key.pid
    }

    /// The server as it was configured when the connection was made.
    pub fn server(&self) -> &Server {
        &self.server
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
        self.state().holder = Some(client);
    }

    /// Lets no more cancels through. True if none is under way.
    pub fn close(&self) -> bool {
        let mut state = self.state();
        state.holder = None;
        state.in_flight == 0 && !state.unsure
    }

    /// Ready while no cancel is under way: then the next query may begin, which none was meant for.
    pub fn poll_quiet(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.in_flight.load(Ordering::Acquire) == 0 {
            return Poll::Ready(());
        }
        self.relay.register(cx.waker());
        match self.in_flight.load(Ordering::Acquire) {
            0 => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }

    /// Waits until no cancel is under way. False if one may still strike: the connection must then
    /// be closed.
    ///
    /// Cancel safe.
    pub async fn settled(&self) -> bool {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.state();
                if state.in_flight == 0 {
                    return !state.unsure;
                }
            }
            changed.await;
        }
    }

    /// Cancels what runs here if `client` still holds the connection. False: it does not.
    ///
    /// # Errors
    /// 08006 if the server could not be told, or did not say that it has.
    pub async fn cancel(self: Arc<Self>, client: u64, deadline: Duration) -> Result<bool> {
        {
            let mut state = self.state();
            if state.holder != Some(client) {
                return Ok(false);
            }
            state.in_flight += 1;
            self.in_flight.store(state.in_flight, Ordering::Release);
        }
        // The request goes on if whoever asked for it does not stay to see its end.
        let fence = self.clone();
        let sending = tokio::spawn(async move {
            let mut guard = InFlight {
                fence: &fence,
                seen: false,
            };
            let sent = tokio::time::timeout(deadline, fence.send()).await;
            guard.seen = matches!(sent, Ok(Ok(())));
            sent.unwrap_or_else(|_| Err(failed("timed out")))
        });
        sending.await.unwrap_or_else(|e| Err(failed(e)))?;
        Ok(true)
    }

    /// Sends the request and waits until the server has closed the connection.
    async fn send(&self) -> Result<()> {
        let mut stream = connect::open(&self.server).await?;
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

struct InFlight<'a> {
    fence: &'a Fence,
    seen: bool,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let mut state = self.fence.state();
        state.in_flight -= 1;
        state.unsure |= !self.seen;
        self.fence
            .in_flight
            .store(state.in_flight, Ordering::Release);
        drop(state);
        self.fence.changed.notify_waiters();
        self.fence.relay.wake();
    }
}
