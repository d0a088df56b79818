//! A client that has proved who it is, and is not served yet.

use std::sync::Arc;
use std::time::Instant;

use tokio::runtime;

use crate::app::{App, Registered};
use crate::backend::binding::Settings;
use crate::config::{Credential, Route};
use crate::frontend::standing::Guards;
use crate::net::stream::Stream;
use crate::protocol::buffer::Buffer;
use crate::protocol::reply::Replies;
use crate::protocol::startup::{Replication, Startup};
use crate::tenant::state::TenantState;

/// What login hands over.
pub struct LoggedIn {
    pub app: Arc<App>,
    pub stream: Stream,
    /// What the client has said since it proved who it is.
    pub inbox: Buffer,
    pub accepted: Instant,
    /// The runtime that the stream is registered with.
    pub accepted_by: runtime::Id,
    pub registered: Registered,
    pub tenant: Arc<TenantState>,
    pub route: Arc<Route>,
    pub credential: Arc<Credential>,
    pub settings: Settings,
    /// Names of these as the client spells them, where that is not in lower case.
    pub spelled: Vec<String>,
    /// What the client is to be told before it is ready: the end of authentication.
    pub greeting: Replies,
    /// It asks for a replication connection.
    pub replication: Option<Wanted>,
    pub guards: Guards,
}

/// A replication connection as the client asks for it.
pub struct Wanted {
    pub mode: Replication,
    /// The run-time parameters of its StartupMessage, spelled and ordered as it gave them.
    pub parameters: Vec<(String, String)>,
}

impl Wanted {
    /// None: it asks for an ordinary connection.
    pub fn of(startup: &Startup) -> Option<Self> {
        startup.replication.map(|mode| Self {
            mode,
            parameters: startup.parameters.clone(),
        })
    }
}
