//! pgtenant: a tenant-routing PostgreSQL proxy.
#![doc = include_str!("../docs/map.md")]

pub mod cli;
pub mod cluster;
pub mod config;
pub mod error;
pub mod id;
