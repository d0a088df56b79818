//! A connected socket, to which what is written may leave a moment later, with what others write
//! ([`crate::net::socket::batch`]).
//!
//! ```text
//!            queue           flush: the kernel took all
//!   Free ───────────► Queued ─────────────────────────► Free
//!                       │ it took a part        ▲
//!                       └────────► Stuck ───────┘ a task has sent the rest
//! ```
//!
//! Whoever writes sees what it would see of the kernel's own buffer: what was taken leaves in
//! order, before the socket is closed, or the socket fails. Nothing more is taken before all of it
//! has left, so at most one message is held. A socket that is dropped while its other end takes
//! nothing is closed without the rest: who cares waits until it [is settled](Socket::poll_settled).

pub mod batch;

use std::future::poll_fn;
use std::io::{self, IoSlice, Read};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::AbortHandle;

/// The one that owns it writes.
pub struct Socket(Arc<Shared>);

/// With the batch that it is queued in, and with the task that sends the rest: so a descriptor
/// stays what it is for as long as something is to be sent to it.
pub struct Shared {
    io: Io,
    state: AtomicU8,
    held: Mutex<Option<Box<Held>>>,
}

enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Of [`Shared::state`]. To `STUCK` and to `LAST` with `held` locked.
const FREE: u8 = 0;
/// In a thread's batch.
const QUEUED: u8 = 1;
/// The same, and another thread waits: its waker is held.
const AWAITED: u8 = 2;
const STUCK: u8 = 3;
/// Something could not be sent: nothing that follows it may be.
const FAILED: u8 = 4;
/// In a thread's batch, and its owner has gone.
const LAST: u8 = 5;

#[derive(Default)]
struct Held {
    rest: Vec<u8>,
    /// Of the task that sends it.
    task: Option<AbortHandle>,
    /// Of who waits until it has left.
    waker: Option<Waker>,
}

macro_rules! on {
    ($io:expr, $socket:ident => $does:expr) => {
        match $io {
            Io::Tcp($socket) => $does,
            Io::Unix($socket) => $does,
        }
    };
}

impl From<TcpStream> for Socket {
    fn from(tcp: TcpStream) -> Self {
        Self::new(Io::Tcp(tcp))
    }
}

impl From<UnixStream> for Socket {
    fn from(unix: UnixStream) -> Self {
        Self::new(Io::Unix(unix))
    }
}

impl Socket {
    fn new(io: Io) -> Self {
        Self(Arc::new(Shared {
            io,
            state: AtomicU8::new(FREE),
            held: Mutex::default(),
        }))
    }

    /// The other end, where it has an address.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        match &self.0.io {
            Io::Tcp(tcp) => tcp.peer_addr().ok(),
            Io::Unix(_) => None,
        }
    }

    /// Whether nothing came that was not read, as far as the runtime knows without a system call.
    pub fn is_silent(&self) -> bool {
        on!(&self.0.io, socket => socket.try_io(Interest::READABLE, || Ok(())).is_err())
    }

    /// Waits until the runtime knows that there is something to read.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn readable(&self) -> io::Result<()> {
        on!(&self.0.io, socket => socket.readable().await)
    }

    /// Whether nothing that was written is held back.
    fn is_settled(&self) -> bool {
        matches!(self.0.state(), FREE | FAILED)
    }

    /// Ready when nothing that was written is held back. What this thread has queued leaves at
    /// once.
    pub fn poll_settled(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_until(cx, |state| matches!(state, FREE | FAILED))
    }

    fn poll_until(&self, cx: &mut Context<'_>, is_good: impl Fn(u8) -> bool) -> Poll<()> {
        let shared = &*self.0;
        if shared.state() == QUEUED {
            batch::flush();
        }
        if is_good(shared.state()) {
            return Poll::Ready(());
        }
        shared.held().get_or_insert_default().waker = Some(cx.waker().clone());
        let order = Ordering::AcqRel;
        let now = (shared.state).compare_exchange(QUEUED, AWAITED, order, Ordering::Acquire);
        match now.is_err_and(is_good) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Exchanged for a duplicate that is registered with the runtime this is called on. What the
    /// runtime knew of its readiness is forgotten until that has looked.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// The operating system's, when a descriptor cannot be duplicated or registered.
    pub async fn adopt(&mut self) -> io::Result<()> {
        let duplicate = self.as_fd().try_clone_to_owned()?;
        let new = Self::new(match &self.0.io {
            Io::Tcp(_) => Io::Tcp(TcpStream::from_std(duplicate.into())?),
            Io::Unix(_) => Io::Unix(UnixStream::from_std(duplicate.into())?),
        });
        // Another thread may have it queued.
        poll_fn(|cx| self.poll_until(cx, |state| !matches!(state, QUEUED | AWAITED))).await;
        match self.0.state() {
            FAILED => new.0.settle(FAILED),
            _ => {
                let rest = self.0.give_up();
                if !rest.is_empty() {
                    new.0.hold(rest);
                }
            }
        }
        *self = new;
        Ok(())
    }

    /// Whether it can be [detached](Self::detach): it is a TCP connection, and nothing that was
    /// written is held back.
    pub fn can_detach(&self) -> bool {
        let is_free = self.0.state() == FREE && Arc::strong_count(&self.0) == 1;
        is_free && matches!(self.0.io, Io::Tcp(_))
    }

    /// Without the runtime: what comes is seen by nobody until it is made one of a runtime again.
    ///
    /// # Errors
    /// The operating system's, or what [cannot be](Self::can_detach); the connection is closed
    /// then.
    pub fn detach(self) -> io::Result<std::net::TcpStream> {
        let shared = self.0.clone();
        drop(self);
        match Arc::into_inner(shared).map(|shared| shared.io) {
            Some(Io::Tcp(tcp)) => tcp.into_std(),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Sends at once, or leaves it to the batch.
    fn poll_send(&self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let shared = &self.0;
        if shared.state() != FREE {
            ready!(self.poll_settled(cx));
            if shared.state() == FAILED {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
        }
        if batch::queue(shared, parts) {
            shared.state.store(QUEUED, Ordering::Release);
            return Poll::Ready(Ok(parts.iter().map(|part| part.len()).sum()));
        }
        loop {
            let sent = on!(&shared.io, socket => {
                ready!(socket.poll_write_ready(cx))?;
                match parts {
                    [part] => socket.try_write(part),
                    _ => socket.try_write_vectored(parts),
                }
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.is_settled() {
            return;
        }
        let held = self.0.held();
        match self.0.state() {
            STUCK => {
                drop(held);
                self.0.give_up();
            }
            // To be sent, but no more than once.
            _ => self.0.state.store(LAST, Ordering::Release),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        on!(&self.io, socket => socket.as_fd())
    }
}

impl Shared {
    fn state(&self) -> u8 {
        self.state.load(Ordering::Acquire)
    }

    fn held(&self) -> MutexGuard<'_, Option<Box<Held>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was queued, `bytes`, has left the batch: `taken` says how much of it the kernel has.
    pub fn left(self: Arc<Self>, bytes: &[u8], taken: io::Result<usize>) {
        let taken = match taken {
            Ok(taken) => taken,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => 0,
                _ => return self.fail(),
            },
        };
        match bytes.get(taken..) {
            None | Some([]) => self.settle(FREE),
            Some(rest) => self.hold(rest.to_vec()),
        }
    }

    /// What was queued was not sent, or nobody knows how much of it.
    pub fn fail(&self) {
        // The other end is told; whoever reads sees the end.
        let _ = SockRef::from(self).shutdown(Shutdown::Both);
        self.settle(FAILED);
    }

    fn settle(&self, state: u8) {
        if self.state.swap(state, Ordering::AcqRel) != QUEUED
            && let Some(held) = self.held().take()
            && let Some(waker) = held.waker
        {
            waker.wake();
        }
    }

    /// Sends `rest` when the other end takes it, from a task of its own.
    fn hold(self: &Arc<Self>, rest: Vec<u8>) {
        let mut held = self.held();
        if self.state() == LAST {
            // Whoever cares has waited. This is for what the kernel would have taken.
            let _ = on!(&self.io, socket => socket.try_write(&rest));
            return;
        }
        let task = tokio::spawn(self.clone().send_rest());
        let held = held.get_or_insert_default();
        held.rest = rest;
        held.task = Some(task.abort_handle());
        self.state.store(STUCK, Ordering::Release);
        if let Some(waker) = held.waker.take() {
            waker.wake();
        }
    }

    async fn send_rest(self: Arc<Self>) {
        loop {
            let ready = on!(&self.io, socket => socket.writable().await);
            let mut lock = self.held();
            let Some(held) = lock.as_mut() else { return };
            let sent = ready.and_then(|()| on!(&self.io, socket => socket.try_write(&held.rest)));
            match sent {
                Ok(sent) => {
                    held.rest.drain(..sent);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    drop(lock);
                    return self.fail();
                }
            }
            if held.rest.is_empty() {
                drop(lock);
                return self.settle(FREE);
            }
        }
    }

    /// The rest, which is sent by nobody any more.
    fn give_up(&self) -> Vec<u8> {
        let held = self.held().take().map(|held| *held);
        let Held { rest, task, .. } = held.unwrap_or_default();
        if let Some(task) = task {
            task.abort();
        }
        rest
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let space = buf.initialize_unfilled();
        let room = space.len();
        loop {
            let mut taken = 0;
            let read = on!(&self.0.io, socket => {
                ready!(socket.poll_read_ready(cx))?;
                socket.try_io(Interest::READABLE, || {
                    taken = (&*SockRef::from(socket)).read(space)?;
                    // All there was: the runtime is told that it is not readable any more, as it
                    // would find out by another call (tokio's own `poll_read` does so, too, but not
                    // by a shared reference).
                    match taken > 0 && taken < room {
                        true => Err(io::ErrorKind::WouldBlock.into()),
                        false => Ok(()),
                    }
                })
            });
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && taken == 0 => {}
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Poll::Ready(Err(error));
                }
                _ => {
                    buf.advance(taken);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What was written leaves without more ado.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_settled(cx));
        match SockRef::from(&*self).shutdown(Shutdown::Write) {
            // The other end was faster.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            done => Poll::Ready(done),
        }
    }
}

#[cfg(test)]
mod tests;
