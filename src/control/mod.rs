//! The control plane: what the proxy itself asks of servers, by tokio-postgres, apart from the way
//! of clients' queries.

pub mod catalog;
pub mod catalog_watch;
pub mod doctor;
pub mod door;
mod gate;
pub mod harden;
pub mod health;
pub mod periods;
pub mod seal;
pub mod tenancy;
pub mod timeouts;
pub mod usage;
pub mod warm;
