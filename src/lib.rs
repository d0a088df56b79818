//! pgtenant: a tenant-routing PostgreSQL proxy.

pub mod admin;
pub mod app;
pub mod auth;
pub mod backend;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod config;
pub mod control;
pub mod error;
pub mod frontend;
pub mod id;
pub mod metrics;
pub mod protocol;
pub mod server;
pub mod tenant;
pub mod tls;
