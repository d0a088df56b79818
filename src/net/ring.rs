//! Many sends in one system call, by Linux' io_uring.
//!
//! Only as a list of sends that do not wait: all are over when the call returns. So the kernel uses
//! nothing of the caller's afterwards, and whether a socket is ready stays the runtime's business.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, Probe, opcode, types};
use nix::libc::{MSG_DONTWAIT, MSG_NOSIGNAL};
use socket2::SockRef;

/// Sends in one call at most.
pub const MAX: usize = 64;

/// A send that was not made.
const NOT_SENT: i32 = 0;

pub struct Ring {
    /// None once it has failed: what it was given and has not sent is gone with it.
    ring: Option<IoUring>,
}

impl Ring {
    /// For the calling thread alone.
    ///
    /// # Errors
    /// The operating system's: it has no io_uring, or forbids it (`kernel.io_uring_disabled`;
    /// seccomp, in containers).
    pub fn new() -> io::Result<Self> {
        let entries = u32::try_from(MAX).unwrap_or(u32::MAX);
        let mut cheapest = IoUring::builder();
        cheapest.setup_single_issuer().setup_defer_taskrun();
        // Before Linux 6.1 there are no such rings.
        let ring = cheapest.build(entries).or_else(|_| IoUring::new(entries))?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        // Whether it may be used, too.
        ring.submit()?;
        match probe.is_supported(opcode::Send::CODE) {
            true => Ok(Self { ring: Some(ring) }),
            false => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Sends each of `sends`, of which there may be [`MAX`]; none waits for its socket. The results
    /// are in their order: how many bytes were taken, fewer than there are if the socket is full,
    /// as it is if this is `WouldBlock`.
    ///
    /// # Errors
    /// The operating system's, or that it has failed before: it is of no more use. Of what was not
    /// sent, no bytes were taken.
    pub fn send(
        &mut self,
        sends: &[(BorrowedFd<'_>, &[u8])],
        results: &mut Vec<io::Result<usize>>,
    ) -> io::Result<()> {
        if let [(fd, bytes)] = sends {
            // One alone is cheaper by the call that is for one.
            let flags = MSG_DONTWAIT | MSG_NOSIGNAL;
            results.push(SockRef::from(fd).send_with_flags(bytes, flags));
            return Ok(());
        }
        let mut raw = [NOT_SENT; MAX];
        let sent = match &mut self.ring {
            Some(ring) => send(ring, sends, &mut raw),
            None => Err(io::ErrorKind::Unsupported.into()),
        };
        if sent.is_err() {
            self.ring = None;
        }
        let raw = raw.into_iter().take(sends.len());
        results.extend(raw.map(|result| {
            usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
        }));
        sent
    }
}

/// On return, the kernel has done with all that it has taken.
fn send(
    ring: &mut IoUring,
    sends: &[(BorrowedFd<'_>, &[u8])],
    results: &mut [i32; MAX],
) -> io::Result<()> {
    for (position, (fd, bytes)) in (0_u64..).zip(sends) {
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let send = opcode::Send::new(types::Fd(fd.as_raw_fd()), bytes.as_ptr(), length)
            .flags(MSG_DONTWAIT | MSG_NOSIGNAL)
            .build()
            .user_data(position);
        // SAFETY: until a send is over, the kernel reads `bytes` and uses the descriptor. Both are
        // borrowed for longer: where this returns, and nothing here panics, either the kernel has
        // said of each send it has taken that it is over, or it has taken none, and the ring, from
        // which it takes only when it is told to, is used no more.
        #[expect(unsafe_code, reason = "io_uring has no safe interface")]
        let pushed = unsafe { ring.submission().push(&send) };
        pushed.map_err(io::Error::other)?;
    }
    let mut left = sends.len();
    while left > 0 {
        let entered = ring.submit_and_wait(left);
        for over in ring.completion() {
            left = left.saturating_sub(1);
            let position = usize::try_from(over.user_data()).unwrap_or(usize::MAX);
            if let Some(result) = results.get_mut(position) {
                *result = over.result();
            }
        }
        let Err(error) = entered else { continue };
        let not_taken = ring.submission().len();
        if left == not_taken && error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(())
}

#[cfg(test)]
impl Ring {
    /// One that has failed.
    pub fn failed() -> Self {
        Self { ring: None }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// None: not here. The rest of the proxy goes without, too.
    fn ring() -> Option<Ring> {
        let ring = Ring::new();
        ring.inspect_err(|error| eprintln!("no io_uring: {error}"))
            .ok()
    }

    fn send(
        ring: &mut Ring,
        sends: &[(BorrowedFd<'_>, &[u8])],
    ) -> impl Iterator<Item = io::Result<usize>> + use<> {
        let mut results = Vec::new();
        ring.send(sends, &mut results).unwrap();
        results.into_iter()
    }

    #[test]
    fn each_socket_gets_its_own() {
        let Some(mut ring) = ring() else { return };
        let pairs: Vec<_> = (0..MAX).map(|_| UnixStream::pair().unwrap()).collect();
        for round in 0..3 {
            let texts: Vec<_> = (0..MAX).map(|n| format!("{round} {n}")).collect();
            let sends: Vec<_> = pairs
                .iter()
                .zip(&texts)
                .map(|((near, _), text)| (near.as_fd(), text.as_bytes()))
                .collect();
            let sent: Vec<_> = send(&mut ring, &sends).map(Result::unwrap).collect();
            assert_eq!(sent, texts.iter().map(String::len).collect::<Vec<_>>());
            for ((_, far), text) in pairs.iter().zip(&texts) {
                let mut got = [0; 16];
                let n = (&*far).read(&mut got).unwrap();
                assert_eq!(&got[..n], text.as_bytes());
            }
        }
        assert_eq!(send(&mut ring, &[]).count(), 0);
    }

    #[test]
    fn a_full_socket_and_a_closed_one_do_not_hold_up_others() {
        let Some(mut ring) = ring() else { return };
        let (full, _far) = UnixStream::pair().unwrap();
        full.set_nonblocking(true).unwrap();
        while (&full).write(&[0; 4096]).is_ok() {}
        full.set_nonblocking(false).unwrap();
        let (closed, far) = UnixStream::pair().unwrap();
        drop(far);
        let (good, far) = UnixStream::pair().unwrap();
        let sends = [&full, &closed, &good].map(|socket| (socket.as_fd(), &b"x"[..]));
        let kinds: Vec<_> = send(&mut ring, &sends)
            .map(|result| result.map_err(|error| error.kind()))
            .collect();
        let expected = [
            Err(io::ErrorKind::WouldBlock),
            Err(io::ErrorKind::BrokenPipe),
            Ok(1),
        ];
        assert_eq!(kinds, expected);
        let mut got = [0; 2];
        assert_eq!((&far).read(&mut got).unwrap(), 1);
    }

    #[test]
    fn a_socket_that_has_room_for_a_part_takes_a_part() {
        let Some(mut ring) = ring() else { return };
        let (near, far) = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| {
                let near = std::net::TcpStream::connect(listener.local_addr()?)?;
                Ok((near, listener.accept()?.0))
            })
            .unwrap();
        let much = vec![7; 64 << 20];
        let sends = [(near.as_fd(), &much[..]), (near.as_fd(), &[])];
        let sent = send(&mut ring, &sends).next().unwrap();
        let sent = sent.unwrap();
        assert!(sent > 0 && sent < much.len(), "{sent}");
        drop(near);
        assert_eq!(
            std::io::copy(&mut &far, &mut io::sink()).unwrap(),
            sent as u64
        );
    }
}
