//! Whether the other end of a TCP connection has gone while it owes acknowledgements.
//!
//! Keepalives are only sent where nothing is on its way. What was sent to somebody who is gone the
//! kernel sends again for a quarter of an hour (`tcp_retries2`). `TCP_USER_TIMEOUT` would end that
//! sooner, but also a connection whose other end is there and only does not read: a pager, or a
//! server that waits for a lock. So what the kernel knows is looked at now and then.

use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

/// What the kernel knows of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    /// Something that was sent, or a question whether there is room again, is not acknowledged.
    owes: bool,
    /// How long ago the last acknowledgement came, of whatever.
    last: Duration,
}

/// Of one connection, as long as somebody looks at it.
#[derive(Debug, Default)]
pub struct Silence {
    /// When it was first seen to owe what it has not acknowledged since.
    since: Option<Instant>,
}

impl Silence {
    /// How long the other end has acknowledged nothing while it was to, from the first look on that
    /// saw it.
    pub fn look(&mut self, socket: impl AsFd, now: Instant) -> Duration {
        self.note(known(socket), now)
    }

    fn note(&mut self, known: Option<Known>, now: Instant) -> Duration {
        let owes = known.filter(|known| known.owes);
        self.since = owes.map(|known| match self.since {
            Some(since) if known.last >= now.saturating_duration_since(since) => since,
            _ => now,
        });
        self.since
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

/// None: it is no TCP connection.
fn known(socket: impl AsFd) -> Option<Known> {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).ok()?;
    #[expect(unsafe_code, reason = "no crate that is used here has TCP_INFO")]
    // SAFETY: the kernel writes `length` bytes at most, all of them numbers, for which zeros are
    // good, too.
    let info = unsafe {
        let result = libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        );
        (result == 0).then(|| info.assume_init())?
    };
    Some(Known {
        owes: info.tcpi_unacked > 0 || info.tcpi_probes > 0,
        last: Duration::from_millis(info.tcpi_last_ack_recv.into()),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn only_who_acknowledges_nothing_from_look_to_look_is_silent() {
        let start = Instant::now();
        let seconds = Duration::from_secs;
        let mut silence = Silence::default();
        // When, whether it owes, how long ago the last acknowledgement came; how long it is silent.
        for (at, owes, last, expected) in [
            (0, false, 3600, 0),
            // Just sent, after an hour of silence on both sides.
            (1, true, 3601, 0),
            (2, true, 3602, 1),
            (6, true, 3606, 5),
            // An answer at last, and more is on its way.
            (8, true, 1, 0),
            (10, true, 3, 2),
            (11, false, 0, 0),
            (12, true, 1, 0),
            (20, true, 9, 8),
        ] {
            let known = Known {
                owes,
                last: seconds(last),
            };
            let silent = silence.note(Some(known), start + seconds(at));
            assert_eq!(silent, seconds(expected), "at {at}");
        }
        assert_eq!(silence.note(None, start + seconds(30)), Duration::ZERO);
    }

    #[test]
    fn who_does_not_read_is_there() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_reader, _) = listener.accept().unwrap();
        sender.set_nonblocking(true).unwrap();
        while sender.write(&[0; 65536]).is_ok() {}
        let mut silence = Silence::default();
        let mut longest = Duration::ZERO;
        for _ in 0..30 {
            std::thread::sleep(Duration::from_millis(100));
            longest = longest.max(silence.look(&sender, Instant::now()));
        }
        // Questions whether there is room are asked ever less often, and answered.
        assert!(longest < Duration::from_secs(2), "{longest:?}");
        let (unix, _other) = UnixStream::pair().unwrap();
        assert_eq!(known(&unix), None);
    }
}
