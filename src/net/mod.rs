//! Sockets, as the rest of the proxy sees them: with and without TLS, and how what they send
//! leaves.
//!
//! ```text
//!   Stream ──(TLS)──► Socket ──► at once, by a system call
//!                        └────► Batch: with what others send in this turn of the worker, in one system call (Ring)
//! ```
//!
//! Sockets that hardly ever have anything to read are left to one [`watch`].

use std::os::fd::AsFd;

use socket2::{SockRef, TcpKeepalive};

use crate::config::TcpKeepalives;

mod ring;
pub mod silence;
pub mod socket;
pub mod stream;
pub mod watch;

/// Has TCP find out when the other end is gone without a word, as PostgreSQL and its clients do.
///
/// # Errors
/// The operating system's.
pub fn keep_alive(tcp: &impl AsFd, times: &TcpKeepalives) -> std::io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(times.idle)
        .with_interval(times.interval)
        .with_retries(times.count);
    SockRef::from(tcp).set_tcp_keepalive(&keepalive)
}
