//! The integration tests: real PostgreSQL servers, the proxy in front of them in this process, and
//! clients of every kind. `make test` installs what they need; what is missing fails with one sentence.

mod cancel;
mod differential;
mod handover;
mod harness;
mod limits;
mod tiers;
mod tls;
mod wire;
