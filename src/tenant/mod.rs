//! Tenants: who a login claims to be, what is known of each, how much it may use.

pub mod identify;
pub mod level;
pub mod meter;
pub mod state;
