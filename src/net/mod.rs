//! Sockets, as the rest of the proxy sees them: with and without TLS, and how what they send leaves.
//!
//! ```text
//!   Stream ──(TLS)──► Socket ──► at once, by a system call
//!                        └────► Batch: with what others send in this turn of the worker, in one system call (Ring)
//! ```
//!
//! Sockets that hardly ever have anything to read are left to one [`watch`].

pub mod batch;
mod ring;
pub mod socket;
pub mod stream;
pub mod watch;
