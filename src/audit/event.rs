//! What an event is, and how it is written down.

pub(super) mod bucket;

use std::net::SocketAddr;
use std::time::SystemTime;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use self::bucket::{Key, Stage};
use crate::id::TenantId;
use crate::metrics::TenantMetrics;
use crate::sql::fingerprint::Fingerprint;
use crate::timestamp::rfc3339;

/// Longest user or detail that is written, in bytes: they are what a client says.
const MAX_WORD: usize = 128;

/// What was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A statement or function call that posture guarded refuses: it could change the tenant.
    Guard,
    /// The database does not take the sealed context for valid: forged, expired, of another
    /// session, or its epoch is lost.
    Seal,
    /// Row level security refuses a new row.
    Rls,
    /// The database denies a permission.
    Privilege,
    /// A schema that is not there, or not for this tenant.
    Schema,
    /// A database that is not there, or not for this tenant.
    Database,
    /// A startup parameter that is not the client's to set: a variable of the tenant's context, or
    /// what the guard refuses.
    Parameter,
    /// A replication connection, where what it would show is of others too.
    Replication,
    /// A wrong password.
    Password,
    /// A user that the tenant does not have.
    UnknownUser,
    /// A login that names no tenant that there is.
    UnknownTenant,
    /// A login that names two tenants, or one where none may be named.
    Hints,
    /// A login to the admin console that failed.
    Console,
    /// A cancel request whose key is nobody's.
    CancelKey,
    /// No attempt: an application acts for all tenants, as it may.
    AllTenants,
    /// No attempt: a login, or a transaction of an application.
    Access,
}

impl Kind {
    pub const ALL: [Self; 16] = [
        Self::Guard,
        Self::Seal,
        Self::Rls,
        Self::Privilege,
        Self::Schema,
        Self::Database,
        Self::Parameter,
        Self::Replication,
        Self::Password,
        Self::UnknownUser,
        Self::UnknownTenant,
        Self::Hints,
        Self::Console,
        Self::CancelKey,
        Self::AllTenants,
        Self::Access,
    ];

    /// As files and metrics have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Guard => "guard",
            Self::Seal => "seal",
            Self::Rls => "rls",
            Self::Privilege => "privilege",
            Self::Schema => "schema",
            Self::Database => "database",
            Self::Parameter => "parameter",
            Self::Replication => "replication",
            Self::Password => "password",
            Self::UnknownUser => "unknown_user",
            Self::UnknownTenant => "unknown_tenant",
            Self::Hints => "hints",
            Self::Console => "console",
            Self::CancelKey => "cancel_key",
            Self::AllTenants => "all_tenants",
            Self::Access => "access",
        }
    }

    /// Who can cause it decides whose bucket it empties: a stranger must not be able to hide what a
    /// client does.
    const fn stage(self) -> Stage {
        match self {
            Self::Password
            | Self::UnknownUser
            | Self::UnknownTenant
            | Self::Hints
            | Self::Console => Stage::Door,
            Self::CancelKey => Stage::Cancel,
            _ => Stage::Session,
        }
    }
}

/// Whose attempt it was, as far as that is known.
#[derive(Clone, Copy, Default)]
pub struct Who<'a> {
    pub tenant: Option<(&'a TenantId, &'a TenantMetrics)>,
    /// The application that acts for the tenant.
    pub application: Option<&'a TenantId>,
    pub user: Option<&'a str>,
    pub peer: Option<SocketAddr>,
    /// The number that logs and the console have for the client.
    pub client: Option<u64>,
}

/// An attempt.
#[derive(Clone, Copy)]
pub struct Event<'a> {
    pub kind: Kind,
    pub who: Who<'a>,
    /// What the client was told.
    pub sqlstate: Option<&'a str>,
    /// A name: of the guard's rule, the parameter, the database. Never a value.
    pub detail: Option<&'a str>,
    /// Only its fingerprint is kept.
    pub statement: Option<&'a [u8]>,
}

impl Event<'_> {
    pub(super) fn bucket(&self) -> Key {
        Key {
            tenant: self.who.tenant.map(|(tenant, _)| tenant.clone()),
            stage: self.kind.stage(),
        }
    }
}

/// How many events of each kind were not written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dropped([u64; Kind::ALL.len()]);

impl Dropped {
    pub fn add(&mut self, kind: Kind) {
        self.0[kind as usize] += 1;
    }

    pub fn add_all(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count += more;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.total() == 0
    }

    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// By kind, of those that there are.
impl Serialize for Dropped {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (kind, count) in Kind::ALL.iter().zip(self.0).filter(|(_, count)| *count > 0) {
            map.serialize_entry(kind.name(), &count)?;
        }
        map.end()
    }
}

/// A line of the file. Every line has all of the keys.
#[derive(Debug, Serialize)]
pub struct Entry {
    time: String,
    kind: &'static str,
    tenant: Option<TenantName>,
    application: Option<TenantName>,
    user: Option<String>,
    peer: Option<SocketAddr>,
    client: Option<u64>,
    sqlstate: Option<String>,
    detail: Option<String>,
    /// The statement without literals, cut short.
    statement: Option<String>,
    /// The hash of all of it, as 16 hexadecimal digits.
    fingerprint: Option<String>,
    /// The length of the statement in bytes.
    length: Option<usize>,
    /// Events that this one's bucket has not had room for since the one before.
    pub dropped: Dropped,
}

#[derive(Debug)]
struct TenantName(TenantId);

impl Serialize for TenantName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_str())
    }
}

impl Entry {
    pub fn new(event: &Event<'_>, dropped: Dropped) -> Self {
        let who = event.who;
        let print = event.statement.and_then(Fingerprint::of);
        let hash = print.as_ref().map(|print| format!("{:016x}", print.hash));
        Self {
            time: rfc3339(SystemTime::now()),
            kind: event.kind.name(),
            tenant: who.tenant.map(|(tenant, _)| TenantName(tenant.clone())),
            application: who.application.map(|id| TenantName(id.clone())),
            user: who.user.map(cut),
            peer: who.peer,
            client: who.client,
            sqlstate: event.sqlstate.map(cut),
            detail: event.detail.map(cut),
            statement: print.map(|print| print.text),
            fingerprint: hash,
            length: event.statement.map(<[u8]>::len),
            dropped,
        }
    }

    /// Nothing but what was dropped of a bucket.
    pub fn of_dropped(tenant: Option<TenantId>, dropped: Dropped) -> Self {
        Self {
            time: rfc3339(SystemTime::now()),
            kind: "dropped",
            tenant: tenant.map(TenantName),
            application: None,
            user: None,
            peer: None,
            client: None,
            sqlstate: None,
            detail: None,
            statement: None,
            fingerprint: None,
            length: None,
            dropped,
        }
    }

    /// The line with its newline.
    pub fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }

    /// What is no attempt is in the file only.
    pub fn log(&self) {
        if [Kind::Access.name(), Kind::AllTenants.name()].contains(&self.kind) {
            return;
        }
        tracing::warn!(
            target: "pgtenant::audit",
            kind = self.kind,
            tenant = self.tenant.as_ref().map(|tenant| tenant.0.as_str()),
            user = self.user,
            peer = self.peer.map(tracing::field::display),
            client = self.client,
            sqlstate = self.sqlstate,
            detail = self.detail,
            statement = self.statement,
            dropped = self.dropped.total(),
            "audit"
        );
    }
}

fn cut(word: &str) -> String {
    let mut end = MAX_WORD.min(word.len());
    while !word.is_char_boundary(end) {
        end -= 1;
    }
    word[..end].to_owned()
}
