//! The face to clients. A client's life has six stages, each a file:
//!
//! 1. `handshake`: TLS and the StartupMessage; a CancelRequest ends here.
//! 2. `login`: whose login is it (`tenant::identify`), is it true (`auth`), may it (limits).
//! 3. The connection moves to a worker of its instance; `welcome` tells it the parameters of its
//!    server. What it is to the proxy from then on is its `standing`.
//! 4. `session` waits for a message without holding a server connection, then checks one out. If
//!    none comes for a while, the client is parked without a task until one does (`parking`).
//! 5. `relay` passes frames both ways until a clean point; `ledger` knows when that is, by what is
//!    `owed`. What the client's session holds beside its transaction is carried along, or keeps the
//!    connection: `state`, `statements`. A replication client has a server connection of its own
//!    instead, and `replication` does 3 to 6 for it.
//! 6. The end: what is owed is played out, what is not clean is closed.
//!
//! What of it all the audit hears is in `attempts`; what keeps a client within the rates of the
//! config is in `throttle`.

pub mod application;
pub mod attempts;
pub mod choosing;
pub mod forbidden;
pub mod handshake;
pub mod ledger;
pub mod locks;
pub mod logged_in;
pub mod login;
pub mod owed;
pub mod prepared;
pub mod relay;
pub mod replication;
pub mod session;
pub mod standing;
pub mod state;
pub mod statements;
pub mod tablespaces;
pub mod text;
pub mod throttle;
pub mod welcome;
