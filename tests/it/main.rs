//! The integration tests: real PostgreSQL servers, the proxy in front of them in this process, and
//! clients of every kind. `make test` installs what they need; what is missing fails with one sentence.

// A helper of a test may fail as a test does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bad_input;
mod cancel;
mod differential;
mod faults;
mod handover;
mod harness;
mod layers;
mod limits;
mod negative;
mod tiers;
mod tls;
mod wire;
