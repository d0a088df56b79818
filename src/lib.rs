//! pgtenant: a tenant-routing PostgreSQL proxy.
//!
//! ```text
//!  app, psql, driver ──► frontend: handshake ► login ► session ► relay ──► backend pool ──► PostgreSQL
//!                           │ who is it, where does it live │        one task owns client socket and lease
//!                           ▼                               ▼
//!                     tenant::identify, auth          tenant context: Clean → Bound(T)
//!                           ▲
//!                     config (YAML, in memory)
//! ```
//!
//! # Layers
//!
//! A module uses only those above it in this table; `tests/it/layers.rs` checks that.
//!
//! | layer | modules | job |
//! |---|---|---|
//! | words | [`id`], [`error`], [`metrics`], [`places`], [`sql`], [`timer`], [`timestamp`], [`workers`] | newtypes, the one error, counters, what SQL does, waiting, where tasks run |
//! | data | [`config`], [`net`], [`protocol`], [`findings`], [`catalog`] | no policy, no connections to PostgreSQL; bytes, and how they leave |
//! | decisions | [`auth`], [`guard`], [`tls`], [`tenant`] | who may, and as whom; what a statement may do |
//! | PostgreSQL side | [`backend`] | connects, pools, changes tenant context; hands out leases, never holds a client |
//! | handles | [`audit`], [`client`], [`app`] | what all parts share, built once |
//! | client side | [`frontend`] | the six stages of a client's life |
//! | process | [`control`], [`admin`], [`server`] | health, doctor, seal, console, metrics, wiring |
//! | attacks | [`attacks`] | what a tenant tries against another, as data, and how it is played |
//! | tools | [`cluster`], [`cli`] | subcommands; private servers for demo, tests and benches |
//!
//! # Deliberately absent
//!
//! - Statics and ambient configuration: two proxies can run in one process.
//! - Channels between tasks on the way of a query: one task owns a client and its server
//!   connection.
//! - Decoding of what passes: frames are bytes; only what must be looked at is.
//! - A way back to the pool but [`backend::lease::Lease::checkin`] at a clean point: `Drop` closes
//!   the connection.
//! - tokio-postgres in the data plane: its streams cannot be given back. It serves the control
//!   plane and the tools.
//!
//! # Where to start
//!
//! [`frontend`] (six stages on one page), `frontend/session.rs` and `relay.rs`,
//! `backend/instance/queue.rs` and `context.rs`, `tenant/identify.rs`, `tests/it/`.
//! `ARCHITECTURE.md` follows one query through all of them, and `docs/glossary.md` has the words.

#![warn(clippy::disallowed_methods)]
// Of functions outside tests: `clippy.toml` has how many.
#![cfg_attr(not(test), warn(clippy::too_many_lines))]

pub mod admin;
pub mod app;
pub mod attacks;
pub mod audit;
pub mod auth;
pub mod backend;
pub mod catalog;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod config;
pub mod control;
pub mod error;
pub mod findings;
pub mod frontend;
pub mod guard;
pub mod id;
pub mod metrics;
pub mod net;
pub mod places;
pub mod protocol;
pub mod server;
pub mod sql;
pub mod tenant;
pub mod timer;
pub mod timestamp;
pub mod tls;
pub mod workers;
