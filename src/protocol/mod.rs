//! The PostgreSQL frontend/backend protocol as bytes: cutting frames, reading what must be looked
//! at, writing what the proxy itself says. No policy and no sockets to PostgreSQL; everything here
//! can be fuzzed alone.

pub mod buffer;
pub mod executed;
pub mod frame;
pub mod reply;
pub mod startup;
