//! The face to PostgreSQL: connecting, pooling, and changing whose context a connection carries.
//! Hands out leases; never holds a client.

pub mod ahead;
pub mod binding;
pub mod cancel;
pub mod channel_binding;
pub mod connect;
pub mod connection;
pub mod context;
pub mod demand;
pub mod dial;
pub mod dns;
pub mod functions;
pub mod health;
pub mod instance;
pub mod leftovers;
pub mod prepared;
mod reach;
pub mod residue;
pub mod seal;
pub mod switch;

pub use instance::queue::PoolCounts;
