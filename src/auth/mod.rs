//! Proving who a client is. One file a method; today SCRAM-SHA-256, with and without channel
//! binding.

mod saslprep;
mod scram;

pub use saslprep::for_client;
pub use scram::{Exchange, MAX_MESSAGE, Offer, Verifiers, verifier};
