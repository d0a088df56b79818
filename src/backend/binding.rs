//! What a server connection carries of its client: whose it is, and which parameters it has.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::Route;
use crate::error::{Error, Kind};
use crate::id::TenantId;
use crate::protocol::reply::ErrorFields;

/// Run-time parameters that a client asked for, by lower-case name: from its StartupMessage, then
/// as the server reported the client's changes.
pub type Settings = BTreeMap<String, String>;

/// What PostgreSQL raises when its lock table is full ("out of shared memory").
const OUT_OF_MEMORY: &str = "53200";

/// Reported parameters that no client can set (guc_tables.c: PGC_INTERNAL, or a fact about the
/// server); the others follow their client.
const FIXED: [&str; 6] = [
    "in_hot_standby",
    "integer_datetimes",
    "is_superuser",
    "server_encoding",
    "server_version",
    "session_authorization",
];

/// Parameters that servers of every version report when they change (guc_tables.c: GUC_REPORT), and
/// clients can set.
pub const REPORTED: [&str; 7] = [
    "application_name",
    "client_encoding",
    "datestyle",
    "default_transaction_read_only",
    "intervalstyle",
    "standard_conforming_strings",
    "timezone",
];

/// Whether servers of every version report this parameter, given in lower case, when it changes
/// (guc_tables.c: GUC_REPORT).
pub fn is_reported(name: &str) -> bool {
    REPORTED.contains(&name)
}

/// Whether a reported parameter follows its client from one server connection to the next.
pub fn follows_client(name: &str) -> bool {
    !FIXED.contains(&name)
}

/// `pg_catalog.set_config(text, text, boolean)` (pg_proc.dat).
pub const SET_CONFIG_OID: u32 = 2078;
/// What a server connection carries.
#[derive(Debug, Default)]
pub enum Context {
    /// Nothing: as after login or a confirmed DISCARD ALL.
    #[default]
    Clean,
    Bound(Binding),
    /// Anything.
    Unknown,
}

#[derive(Debug, Clone)]
pub struct Binding {
    pub tenant: TenantId,
    /// Whose `context` is set.
    pub route: Arc<Route>,
    pub settings: Arc<Settings>,
    /// The client may have changed a variable: set them again before anything else of it runs.
    pub stale: bool,
}

impl Context {
    pub fn tenant(&self) -> Option<&TenantId> {
        match self {
            Self::Bound(binding) => Some(&binding.tenant),
            Self::Clean | Self::Unknown => None,
        }
    }

    /// Whether it must be set again before anything of the client runs.
    pub fn is_stale(&self) -> bool {
        match self {
            Self::Bound(binding) => binding.stale,
            Self::Clean | Self::Unknown => true,
        }
    }

    /// A variable may have been changed.
    pub fn make_stale(&mut self) {
        if let Self::Bound(binding) = self {
            binding.stale = true;
        }
    }
}

/// Why a connection could not be made a client's.
#[derive(Debug)]
pub enum Refusal {
    /// The connection is unusable, or its tenant context could not be set: close it.
    Broken(Error),
    /// A setting that the client asked for is not one the server accepts; the connection is good
    /// and carries nobody's context.
    Setting(Error),
}

impl Refusal {
    pub fn into_error(self) -> Error {
        match self {
            Self::Broken(error) | Self::Setting(error) => error,
        }
    }
}

pub(super) fn not_set(cause: impl std::fmt::Display) -> Error {
    Error::new(Kind::ConnectionFailure, "could not set the tenant context").caused_by(cause)
}

/// Of what the server says. That its lock table is full concerns everybody, and is told.
pub(super) fn not_set_for(fields: &ErrorFields) -> Error {
    let cause = format_args!("{}: {}", fields.sqlstate, fields.message);
    match fields.sqlstate.as_str() {
        OUT_OF_MEMORY => Error::new(
            Kind::OutOfMemory,
            "could not set the tenant context: the server is out of shared memory",
        )
        .with_hint("Try again. For the operator: max_locks_per_transaction may be too low for what transactions lock.")
        .caused_by(cause),
        _ => not_set(cause),
    }
}
