//! pgtenant: a tenant-routing PostgreSQL proxy.

pub mod cli;
pub mod cluster;
pub mod config;
pub mod error;
pub mod id;
pub mod protocol;
pub mod backend;
pub mod metrics;
pub mod tenant;
pub mod app;
pub mod auth;
pub mod frontend;
