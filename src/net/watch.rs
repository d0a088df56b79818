//! Many sockets that hardly ever have anything to read, watched by one descriptor: each takes no
//! memory of the process, where a socket of tokio's has a registration of 270 bytes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::task::{Context, Poll};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Most sockets that are told at once.
const MOST: usize = 128;

/// An epoll of its own, which is one more descriptor to the runtime.
pub struct Watch(AsyncFd<Owned>);

struct Owned(Epoll);

impl AsRawFd for Owned {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

impl Watch {
    /// Registered with the runtime this is called on.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new() -> io::Result<Self> {
        let epoll = Owned(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        #[expect(
            deprecated,
            reason = "for descriptors that something else may close; this one lives as long as it is registered, and its successor is unsafe"
        )]
        let watch = AsyncFd::with_interest(epoll, Interest::READABLE)?;
        Ok(Self(watch))
    }

    /// From now on `key` is [told](Self::poll_told) while there is something to read, or the other
    /// end has left.
    ///
    /// # Errors
    /// The operating system's.
    pub fn add(&self, socket: impl AsFd, key: usize) -> io::Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, key as u64);
        Ok(self.0.get_ref().0.add(socket, event)?)
    }

    /// What was [added](Self::add) is watched no more.
    pub fn remove(&self, socket: impl AsFd) {
        // Nothing but a descriptor that is not there can be wrong.
        let _ = self.0.get_ref().0.delete(socket);
    }

    /// The keys of some sockets that have something: each must be removed before this is asked
    /// again, or it is told again.
    pub fn poll_told(&self, cx: &mut Context<'_>) -> Poll<Vec<usize>> {
        loop {
            let Poll::Ready(Ok(mut ready)) = self.0.poll_read_ready(cx) else {
                return Poll::Pending;
            };
            let mut events = [EpollEvent::empty(); MOST];
            let count = match self.0.get_ref().0.wait(&mut events, EpollTimeout::ZERO) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(_) => 0,
            };
            if count < MOST {
                ready.clear_ready();
            }
            if count > 0 {
                let keys = events.iter().take(count).map(|event| event.data() as usize);
                return Poll::Ready(keys.collect());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;
    use crate::timer;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    async fn told(watch: &Watch) -> Vec<usize> {
        let told = poll_fn(|cx| watch.poll_told(cx));
        let told = timer::timeout(Duration::from_secs(10), told);
        told.await.expect("somebody is told")
    }

    async fn nobody_is_told(watch: &Watch) {
        let told = poll_fn(|cx| watch.poll_told(cx));
        let told = timer::timeout(Duration::from_millis(50), told);
        assert!(told.await.is_err());
    }

    #[tokio::test]
    async fn who_has_something_is_told_until_it_is_removed() {
        let watch = Watch::new().unwrap();
        let pairs: Vec<_> = (0..3).map(|_| pair()).collect();
        for (key, (_, near)) in pairs.iter().enumerate() {
            watch.add(near, key).unwrap();
        }
        nobody_is_told(&watch).await;
        (&pairs[1].0).write_all(b"x").unwrap();
        assert_eq!(told(&watch).await, [1]);
        watch.remove(&pairs[1].1);
        nobody_is_told(&watch).await;
        // What was there before it was added.
        watch.add(&pairs[1].1, 7).unwrap();
        assert_eq!(told(&watch).await, [7]);
        watch.remove(&pairs[1].1);
        pairs[2].0.shutdown(std::net::Shutdown::Both).unwrap();
        assert_eq!(told(&watch).await, [2]);
    }

    #[tokio::test]
    async fn more_than_are_told_at_once_are_told_after_one_another() {
        let watch = Watch::new().unwrap();
        let pairs: Vec<_> = (0..MOST + 5).map(|_| pair()).collect();
        for (key, (far, near)) in pairs.iter().enumerate() {
            watch.add(near, key).unwrap();
            (&*far).write_all(b"x").unwrap();
        }
        let mut all = Vec::new();
        while all.len() < pairs.len() {
            let keys = told(&watch).await;
            keys.iter().for_each(|&key| watch.remove(&pairs[key].1));
            all.extend(keys);
        }
        all.sort_unstable();
        assert!(all.into_iter().eq(0..pairs.len()));
        nobody_is_told(&watch).await;
    }
}
