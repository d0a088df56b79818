//! The configuration as immutable, valid data.
//!
//! `file` mirrors the YAML, `outline` knows the line of each setting, `resolve` turns the file into
//! a [`Config`] or lists every mistake, `diff` compares two of them for a reload. Nothing here
//! opens a socket or starts a task, and nothing here imports a live thing: the pools read the
//! config, never the other way round.

mod catalog;
pub mod descriptors;
pub mod diff;
mod file;
pub mod guests;
pub mod lifecycle;
mod outline;
mod provision;
mod require_auth;
mod resolve;
pub mod said;
mod seal;
mod secret;
mod sharded;
mod template;
mod units;
mod verifier;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;
use serde::Deserialize;

pub use catalog::{Catalog, CatalogCopy, CopyKey};
pub use lifecycle::{Lifecycle, State};
pub use provision::{Provision, Statement};
pub use require_auth::{AuthMethod, RequireAuth};
pub use resolve::{Change, Entry, Extras, Roster, load, load_text, load_with_roster, rendezvous};
pub use seal::{Seal, SealKey, ServerSeal};
pub use secret::Secret;
pub use sharded::{Named, Sharded};
pub use template::Template;
pub use units::duration;
pub use verifier::{InvalidVerifier, MAX_ITERATIONS};

use crate::id::{PlacementName, ServerName, TenantId};
use crate::sql::choice::ChoosingFunction;
use said::{Said, SaidAbove};

/// One mistake in a config file: where, and what is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Dotted path of the setting, e.g. `placements.free.pool.size`; empty for the whole file.
    pub path: String,
    /// Line in the file, from 1; absent when the mistake is not in one place.
    pub line: Option<usize>,
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// A whole, valid configuration. Made by [`load`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub listen: Vec<Listen>,
    /// Where `/metrics`, `/healthz` and `/readyz` are served.
    pub http: Option<SocketAddr>,
    /// Users of the admin console (database `pgtenant`); empty: no console.
    pub admin_users: BTreeMap<String, Arc<Credential>>,
    /// Users of the console that may only look.
    pub stats_users: BTreeMap<String, Arc<Credential>>,
    pub log: Log,
    pub audit: Audit,
    pub usage: Usage,
    /// OS threads that serve clients, each a runtime of its own.
    pub workers: usize,
    /// They send by io_uring, where the operating system lets them.
    pub io_uring: bool,
    pub identify: Identify,
    pub limits: ClientLimits,
    /// Of all clients together.
    pub rates: Rates,
    pub timeouts: Timeouts,
    /// Tenants, and pools, that have metrics of their own.
    pub named_tenants: usize,
    /// Averages and percentiles on the console are over the last one or two of these.
    pub stats_period: Duration,
    pub tcp_keepalives: TcpKeepalives,
    pub doctor: Doctor,
    /// Where tenants are kept as data. None: they are those of the file alone.
    pub catalog: Option<Arc<Catalog>>,
    pub servers: IndexMap<ServerName, Arc<Server>>,
    pub placements: IndexMap<PlacementName, Arc<Placement>>,
    pub tenants: Sharded<Arc<Tenant>>,
    /// Which settings are said above the tenants, and where.
    pub said: SaidAbove,
    /// Of tenants with several services: what is in `tenants` for each.
    pub services: Sharded<Arc<Services>>,
    /// Tenants whose pools have minimums of their own.
    pub own_minimums: usize,
    /// By the id that they log in as, which is no tenant's.
    pub applications: BTreeMap<TenantId, Arc<Application>>,
    /// What may be meant as it is, and should be known.
    pub warnings: Vec<Mistake>,
}

impl Config {
    /// A tenant, or an application as whom it logs in.
    pub fn login(&self, id: &str) -> Option<&Arc<Tenant>> {
        let application = || Some(&self.applications.get(id)?.login);
        self.tenants.get(id).or_else(application)
    }

    /// Of all tenants and applications.
    pub fn logins(&self) -> impl Iterator<Item = &Arc<Tenant>> {
        let applications = self.applications.values();
        (self.tenants.values()).chain(applications.map(|application| &application.login))
    }

    /// What a user of the admin console proves itself with.
    pub fn console_user(&self, name: &str) -> Option<&Arc<Credential>> {
        (self.admin_users.get(name)).or_else(|| self.stats_users.get(name))
    }
}

/// A main port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    pub address: SocketAddr,
    pub tls: Option<ListenTls>,
}

/// TLS of a main port: PEM files, read (and checked) when the config is loaded so that a reload
/// can neither half succeed nor read a half-written file later.
#[derive(Clone, PartialEq, Eq)]
pub struct ListenTls {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    pub cert_pem: Arc<[u8]>,
    pub key_pem: Secret,
    /// Refuse clients that do not use TLS.
    pub required: bool,
}

impl fmt::Debug for ListenTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenTls")
            .field("cert_file", &self.cert_file)
            .field("key_file", &self.key_file)
            .field("required", &self.required)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub format: LogFormat,
    /// A `tracing` filter, e.g. `info` or `pgtenant=debug`.
    pub filter: String,
    /// Of tenants where nothing nearer says it: what takes so long is in the slow log. Each tenant
    /// has its own.
    pub slow: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    Text,
    Json,
}

/// Where attempts to reach other tenants are written, and how many of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    pub file: Option<PathBuf>,
    /// In bytes; a file that would be larger makes way for a new one.
    pub max_size: u64,
    /// Files that have made way and are kept.
    pub keep: u32,
    /// Events of one tenant that are written each minute.
    pub rate: u32,
    /// Events of one tenant that are written at once after a while without any.
    pub burst: u32,
    pub access: Access,
}

/// Where it is written what each tenant has used in each hour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    pub file: Option<PathBuf>,
    /// From one line of a tenant to the next.
    pub interval: Duration,
    /// In bytes; a file that would be larger makes way for a new one.
    pub max_size: u64,
    /// Files that have made way and are kept.
    pub keep: u32,
}

/// What is recorded of who acted for which tenant, in the file of the audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    Nothing,
    Logins,
    /// And each transaction of an application.
    Transactions,
}

/// Which parts of a login may name the tenant. All that are given must agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identify {
    /// The database name is the tenant.
    pub by_database: bool,
    /// The user name is `user<separator>tenant`; the separator splits at its last occurrence.
    pub by_user: Option<char>,
    /// The TLS server name is `<tenant><suffix>`, e.g. suffix `.db.example.com`.
    pub by_sni: Option<String>,
    /// `options=-c pgtenant.tenant=<tenant>`.
    pub by_options: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// From accept to a finished login.
    pub login: Duration,
    /// How long a client waits for a server connection, or for a rate.
    pub checkout: Duration,
    /// TCP, TLS and login to a server; also the time a change of tenant context may take.
    pub connect: Duration,
    /// How long transactions may go on whose tenant, user or password is gone.
    pub revoked: Duration,
    /// How long clients of a tenant in state paused wait for its end.
    pub paused: Duration,
    /// From SIGTERM to the end of the last client.
    pub shutdown: Duration,
    /// An idle server connection is closed after this time.
    pub server_idle: Duration,
    /// A server connection is closed at its next clean point after this age, or up to a fifth of it
    /// before.
    pub server_lifetime: Duration,
    /// The addresses of a server whose host is a name are looked up again after this time.
    pub dns_max_ttl: Duration,
}

/// What a tenant has of its own in place of [`Timeouts`]. None: it has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OwnTimeouts {
    pub login: Option<Duration>,
    pub checkout: Option<Duration>,
    pub connect: Option<Duration>,
}

/// What ends a client, or its statement, that takes too long. None: nothing does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientTimeouts {
    /// From a client's message to the end of its statement, which is cancelled.
    pub statement: Option<Duration>,
    /// From the beginning of a transaction to its end.
    pub transaction: Option<Duration>,
    /// While a transaction waits for its client.
    pub idle_in_transaction: Option<Duration>,
    /// While a client says nothing, outside of a transaction.
    pub idle_session: Option<Duration>,
    /// The same while it keeps its server connection.
    pub pinned: Option<Duration>,
}

impl ClientTimeouts {
    /// The shortest of them.
    pub fn shortest(&self) -> Option<Duration> {
        let Self {
            statement,
            transaction,
            idle_in_transaction,
            idle_session,
            pinned,
        } = self;
        [
            statement,
            transaction,
            idle_in_transaction,
            idle_session,
            pinned,
        ]
        .into_iter()
        .filter_map(|limit| *limit)
        .min()
    }
}

/// How soon it is noticed that the other end of a TCP connection is gone without a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpKeepalives {
    /// Silence before the first probe.
    pub idle: Duration,
    /// From one probe to the next.
    pub interval: Duration,
    /// Unanswered probes after which the connection is over.
    pub count: u32,
}

impl Default for TcpKeepalives {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(60),
            interval: Duration::from_secs(10),
            count: 6,
        }
    }
}

impl TcpKeepalives {
    /// After so long without an acknowledgement that is owed, a connection is over.
    pub fn patience(&self) -> Duration {
        self.idle + self.interval * self.count
    }
}

/// The inspection of the databases by a running proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doctor {
    pub enabled: bool,
    /// From one inspection to the next.
    pub interval: Duration,
    /// Refuse the clients of places whose policies do not keep tenants apart.
    pub refuse: bool,
}

/// A PostgreSQL instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub name: ServerName,
    pub address: ServerAddress,
    pub tcp_keepalives: TcpKeepalives,
    pub tls: ServerTls,
    /// How it may ask any login of pgtenant's for a proof.
    pub require_auth: RequireAuth,
    /// Most connections the proxy opens to this instance, over all its pools.
    pub max_connections: usize,
    /// Most clients of its tenants, and most of them that wait for a server connection at once.
    pub max_clients: Option<usize>,
    pub max_waiting: Option<usize>,
    /// Of all its clients together.
    pub rates: Rates,
    /// While it cannot be reached or takes no more connections, clients are told so at once.
    pub fail_fast: bool,
    /// Login of the health check; it takes one of `max_connections`.
    pub admin: Option<Arc<Login>>,
    /// Database of the health check.
    pub admin_database: String,
    /// What contexts are sealed with.
    pub seal: Option<ServerSeal>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ServerAddress {
    Tcp {
        host: String,
        port: u16,
    },
    /// The socket file itself, e.g. `/run/postgresql/.s.PGSQL.5432`.
    Unix {
        path: PathBuf,
    },
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix { path } => write!(f, "{}", path.display()),
        }
    }
}

/// TLS toward a server, as libpq's `sslmode` and `sslrootcert`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    pub mode: SslMode,
    /// PEM of the authorities to trust; none: the public ones.
    pub root_cert_pem: Option<Arc<[u8]>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SslMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// Role and password of a server login.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Login {
    pub user: String,
    pub password: Option<Secret>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// Shared tables under row level security.
    Pool,
    /// A schema per tenant.
    Schema,
    /// A database per tenant.
    Database,
    /// An instance of its own.
    Instance,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pool => "pool",
            Self::Schema => "schema",
            Self::Database => "database",
            Self::Instance => "instance",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// The server connection is the client's for one transaction.
    Transaction,
    /// The server connection is the client's until it leaves; it is made for it, with its own
    /// startup parameters, unless the placement says `pool.reuse`.
    Session,
}

impl fmt::Display for Pooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Transaction => "transaction",
            Self::Session => "session",
        })
    }
}

/// How far a tenant's own SQL is trusted with the context, from the least protection to the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Posture {
    /// The context is set; the application is trusted not to change it.
    Plain,
    /// And statements that could change it are refused.
    Guarded,
    /// And it carries a seal that policies verify in the database.
    Sealed,
}

impl fmt::Display for Posture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Guarded => "guarded",
            Self::Sealed => "sealed",
        })
    }
}

/// What all tenants of a database have in common, without row level security: by it they can reach
/// or hinder each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shared {
    AdvisoryLocks,
    /// ANALYZE, COMMENT, and literals in definitions: all tenants that are one role read them in
    /// catalogs.
    Catalogs,
    /// LISTEN and NOTIFY.
    Channels,
    /// DO and CALL: what code does is not read, so it may act as any tenant where there is no seal.
    Code,
    LargeObjects,
    /// PREPARE TRANSACTION: whoever is the same role may end it.
    PreparedTransactions,
    /// LOCK TABLE in modes that keep others from reading or writing.
    TableLocks,
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AdvisoryLocks => "advisory-locks",
            Self::Catalogs => "catalogs",
            Self::Channels => "channels",
            Self::Code => "code",
            Self::LargeObjects => "large-objects",
            Self::PreparedTransactions => "prepared-transactions",
            Self::TableLocks => "table-locks",
        })
    }
}

/// The variable that a sealed context travels in, beside those of `context`.
pub const SEALED_VARIABLE: &str = "pgtenant.context";

/// How many server connections one pool has (one server, database and login).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolLimits {
    /// At most.
    pub size: usize,
    /// And how many more for tenants that hold none of them, one each.
    pub reserve: usize,
    /// At least, as long as others do not need the room.
    pub min: usize,
}

/// A named kind of place. What its templates mean for a tenant is in [`Route`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    pub name: PlacementName,
    pub tier: Tier,
    /// One, or several over which the tenants are spread.
    pub servers: Vec<ServerName>,
    pub pooling: Pooling,
    /// Plain where there is no context.
    pub posture: Posture,
    /// Variables, in lower case, by which an application acts for all tenants: nobody else may.
    pub privileged: Arc<[Box<str>]>,
    /// Variables, in lower case, that policies read and clients may set nevertheless.
    pub user_variables: Arc<[Box<str>]>,
    /// Whether statements that could change the tenant, or hinder others, are refused.
    pub guard: bool,
    /// What of the database's the guard lets tenants use nevertheless.
    pub allow: BTreeSet<Shared>,
    /// Its tenants' server connections log in as one role.
    pub shares_role: bool,
    pub pool: PoolLimits,
    /// In session pooling: a server connection is handed on, scrubbed, when its client leaves.
    pub reuse: bool,
    /// Libraries that may keep something of a session past DISCARD ALL, and do not matter.
    pub tolerate: BTreeSet<String>,
    /// Most clients of all tenants of this placement together.
    pub max_clients: Option<usize>,
    /// Most server connections that they use at once, in all its pools together.
    pub max_active: Option<usize>,
    /// Most of them that wait for a server connection at once.
    pub max_waiting: Option<usize>,
    /// Of all clients of this placement together.
    pub rates: Rates,
    pub transaction: TransactionLimits,
    /// How a place is made here.
    pub provision: Arc<Provision>,
    pub tenants: usize,
}

/// What one client may take: its transaction of the lock table that all sessions of a server share,
/// and its prepared statements of the proxy's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionLimits {
    /// Most savepoints at once. None: no limit.
    pub savepoints: Option<u32>,
    /// Most objects that it makes, changes, drops or locks by name. None: no limit.
    pub objects: Option<u32>,
    /// Most named statements in transaction pooling, and most bytes of them.
    pub statements: usize,
    pub statement_memory: usize,
}

impl TransactionLimits {
    pub const NONE: Self = Self {
        savepoints: None,
        objects: None,
        statements: usize::MAX,
        statement_memory: usize::MAX,
    };

    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

/// A tenant: who may log in, how much it may use, where it lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Of a tenant with several services, each is one by itself: `acme:records`.
    pub id: TenantId,
    /// Whose service this is, and which. None: the tenant has one place.
    pub service: Option<(TenantId, Box<str>)>,
    pub users: Users,
    /// What many tenants have alike.
    pub terms: Arc<Terms>,
    pub route: Arc<Route>,
    pub lifecycle: Arc<Lifecycle>,
    /// For templates, and for applications that choose by one of them.
    pub attributes: Box<[(Arc<str>, Box<str>)]>,
    /// Where it stands in the catalog. None: it is in the file.
    pub listed: Option<Listed>,
}

/// How much a tenant may use, and for how long: with many tenants, few of these are different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    pub limits: TenantLimits,
    pub timeouts: ClientTimeouts,
    /// What takes so long is in the slow log. None: nothing is.
    pub slow: Option<Duration>,
    pub own_timeouts: OwnTimeouts,
    /// Run-time parameters of its own, by name; they are in `route.pool.startup`.
    pub settings: Box<[(String, String)]>,
    /// What it says itself of what other levels may say.
    pub said: Said,
}

/// Who may log in, in the order of their names. Most tenants have one user, and many have few.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Users(Box<[(Box<str>, Arc<Credential>)]>);

impl Users {
    pub fn get(&self, name: &str) -> Option<&Arc<Credential>> {
        let found = self.0.binary_search_by(|(own, _)| (**own).cmp(name)).ok()?;
        self.0.get(found).map(|(_, credential)| credential)
    }

    pub fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| &**name)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<BTreeMap<String, Arc<Credential>>> for Users {
    fn from(users: BTreeMap<String, Arc<Credential>>) -> Self {
        let users = users.into_iter();
        Self(
            users
                .map(|(name, credential)| (name.into(), credential))
                .collect(),
        )
    }
}

/// The entry of a tenant in the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Rises with each change of its place.
    pub generation: u64,
    /// Of the catalog, when it was changed last.
    pub revision: u64,
    /// Which version of the application's schema its place has.
    pub version: Option<Arc<str>>,
    /// Its settings, without users and attributes: many tenants have the same.
    pub(in crate::config) settings: Arc<file::TenantFile>,
}

impl Named for Arc<Tenant> {
    fn name(&self) -> &str {
        self.id.as_str()
    }
}

/// What a tenant with several services has for each of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Services {
    pub tenant: TenantId,
    /// By the service's name.
    pub ids: BTreeMap<Box<str>, TenantId>,
}

impl Named for Arc<Services> {
    fn name(&self) -> &str {
        self.tenant.as_str()
    }
}

/// What an application calls a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Called {
    pub value: Box<str>,
    pub id: TenantId,
}

impl Named for Called {
    fn name(&self) -> &str {
        &self.value
    }
}

impl Tenant {
    /// As the config calls the tenant, whichever of its services this is.
    pub fn name(&self) -> &TenantId {
        self.service.as_ref().map_or(&self.id, |(tenant, _)| tenant)
    }

    pub fn attribute(&self, name: &str) -> Option<&str> {
        let mut attributes = self.attributes.iter();
        let (_, value) = attributes.find(|(own, _)| **own == *name)?;
        Some(value)
    }
}

/// An application that logs in once and says by SQL for which tenant it works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Application {
    /// As whom it logs in, and where it is served while it has chosen nobody: its own users, limits
    /// and statistics, and a route whose context is empty values.
    pub login: Arc<Tenant>,
    /// Where it is served then. None: it is refused.
    pub home: Option<PlacementName>,
    /// The variables whose value says for whom it works, in lower case.
    pub variables: Arc<[Box<str>]>,
    pub choices: Arc<Choices>,
    /// For whom it may act, by what it calls them. None: for all, by their ids.
    pub tenants: Option<Sharded<Called>>,
    /// Variables, in lower case, by which it acts for all tenants at its home, each with the values
    /// that do.
    pub all_tenants: BTreeMap<Box<str>, Arc<[Box<str>]>>,
}

/// By what an application says for whom it works.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Choices {
    /// Names of parameters that it sets, in lower case: first [`Application::variables`].
    pub names: Box<[Box<str>]>,
    /// What the value of each of them says.
    pub ways: Box<[Way]>,
    pub functions: Box<[ChoosingFunction]>,
}

/// What the value of a parameter says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// It is the tenant.
    Value,
    /// `role`, whose name has the tenant in it.
    Role(Affixes),
    /// `search_path`, whose first schema has the tenant in its name.
    SearchPath(Affixes),
    /// A JSON document, with the tenant at this JSON pointer (RFC 6901).
    Json(Box<str>),
}

/// What stands before and behind the tenant in a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Affixes {
    pub prefix: Box<str>,
    pub suffix: Box<str>,
}

impl Application {
    /// What it sets and calls to choose, for people.
    pub fn chooses_by(&self) -> Vec<String> {
        let names = self.choices.names.iter().map(ToString::to_string);
        let functions = self.choices.functions.iter();
        let functions = functions.map(|function| match &function.schema {
            Some(schema) => format!("{schema}.{}()", function.name),
            None => format!("{}()", function.name),
        });
        names.chain(functions).collect()
    }

    pub fn has_home(&self) -> bool {
        self.home.is_some()
    }

    pub fn is_home(&self, placement: &Placement) -> bool {
        self.home.as_ref() == Some(&placement.name)
    }

    /// The first of these parameters of a client's that acts for all tenants, if there is one.
    pub fn acts_for_all<'s>(&self, settings: &'s BTreeMap<String, String>) -> Option<&'s str> {
        let mut privileged = self.all_tenants.iter();
        privileged.find_map(|(name, values)| {
            let (name, value) = settings.get_key_value(&**name)?;
            let acts = values.iter().any(|all| **all == *value);
            acts.then_some(name.as_str())
        })
    }

    /// The tenant that it calls so. None: there is none, or it may not act for it.
    pub fn tenant<'c>(&self, config: &'c Config, value: &str) -> Option<&'c Arc<Tenant>> {
        match &self.tenants {
            // A service by its own name is no tenant.
            None => {
                let tenant = config.tenants.get(value);
                tenant.filter(|tenant| tenant.service.is_none())
            }
            Some(known) => config.tenants.get(known.get(value)?.id.as_str()),
        }
    }
}

/// Most connections of clients to the whole proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientLimits {
    /// Of all tenants, logged in.
    pub clients: usize,
    /// Whose client has not proved who it is.
    pub logins: usize,
    /// Of the console.
    pub console: usize,
    /// Most server connections that all tenants use at once.
    pub active: Option<usize>,
    /// Of all tenants, waiting for a server connection.
    pub waiting: Option<usize>,
}

/// How much may go in each second, and how much of it at once after a while with nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub per_second: u64,
    pub burst: u64,
}

/// How fast clients may go. None: there is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rates {
    pub statements: Option<Rate>,
    /// Bytes of what servers answer.
    pub bytes: Option<Rate>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TenantLimits {
    /// Most clients logged in at once.
    pub clients: Option<usize>,
    /// Most server connections in use at once.
    pub active: Option<usize>,
    /// Most clients that wait for a server connection at once.
    pub waiting: Option<usize>,
    /// Of all its clients together.
    pub rates: Rates,
    /// Its share of the server time for which several tenants wait, beside those of the others.
    pub weight: u32,
}

impl Default for TenantLimits {
    fn default() -> Self {
        Self {
            clients: None,
            active: None,
            waiting: None,
            rates: Rates::default(),
            weight: 1,
        }
    }
}

/// What a user proves itself with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    Password(Secret),
    /// A SCRAM verifier as PostgreSQL stores it:
    /// `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`, already taken apart.
    Verifier(ScramVerifier),
}

/// Bytes of a key of SCRAM-SHA-256: those of the hash.
pub const SCRAM_KEY: usize = 32;

/// The parts of a SCRAM-SHA-256 verifier (RFC 5803).
#[derive(Clone, PartialEq, Eq)]
pub struct ScramVerifier {
    pub iterations: u32,
    pub salt: Box<[u8]>,
    pub stored_key: [u8; SCRAM_KEY],
    pub server_key: [u8; SCRAM_KEY],
}

impl fmt::Debug for ScramVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScramVerifier(***)")
    }
}

/// Where a tenant's statements run: a placement with its templates filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub placement: Arc<Placement>,
    pub pool: Arc<PoolKey>,
    /// Connections that its pool has at least, if not those of the placement: where nobody else is
    /// of the pool.
    pub pool_min: Option<usize>,
    /// The tenant's schema, for `SHOW TENANTS` and errors; it acts through `pool.startup` or
    /// `context`.
    pub schema: Option<String>,
    /// Variables set before any statement of the tenant runs, in this order: name, value.
    pub context: Vec<(String, String)>,
    /// In posture sealed: what the context is sealed with.
    pub seal: Option<Box<Seal>>,
    pub pooling: Pooling,
}

impl Route {
    pub fn posture(&self) -> Posture {
        self.placement.posture
    }

    /// How many connections its pool has.
    pub fn pool_limits(&self) -> PoolLimits {
        let of_placement = self.placement.pool;
        PoolLimits {
            min: self.pool_min.unwrap_or(of_placement.min),
            ..of_placement
        }
    }

    /// What a variable is set to that is not the client's to set; the sealed one is never the same.
    pub fn pinned(&self, name: &str) -> Option<&str> {
        if name.eq_ignore_ascii_case(SEALED_VARIABLE) {
            return Some("");
        }
        let mut context = self.context.iter();
        context
            .find(|(own, _)| own.eq_ignore_ascii_case(name))
            .map(|(_, value)| &**value)
    }

    /// The first of a client's parameters that would have the tenant's context say something else.
    pub fn foreign_parameter<'a>(&self, parameters: &'a [(String, String)]) -> Option<&'a str> {
        let mut parameters = parameters.iter();
        let foreign =
            parameters.find(|(name, value)| self.pinned(name).is_some_and(|own| own != value));
        foreign.map(|(name, _)| &**name)
    }

    /// Whether what clients set can change which rows policies let them see: they are kept from it.
    pub fn policies_matter(&self) -> bool {
        self.placement.guard && !self.context.is_empty()
    }

    /// Whether both say the same of the tenant, by whatever key.
    pub fn same_context(&self, other: &Self) -> bool {
        let sealed = |route: &'_ Self| route.seal.as_ref().map(|seal| seal.tenant.clone());
        self.context == other.context && sealed(self) == sealed(other)
    }

    /// Whether each client has a server connection that was made for it.
    pub fn has_connections_of_their_own(&self) -> bool {
        self.pooling == Pooling::Session && !self.placement.reuse
    }
}

/// What server connections must have in common to be shared: one pool each.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PoolKey {
    pub server: ServerName,
    pub database: String,
    pub login: Arc<Login>,
    /// Run-time parameters of the StartupMessage, which are what RESET and DISCARD ALL return to.
    pub startup: Vec<(String, String)>,
    /// Whether some of them are a client's own, who may read what the server says of them.
    pub has_own: bool,
    /// The application whose own they are, on which no tenant's context is ever set.
    pub application: Option<TenantId>,
}

/// The parameter of a StartupMessage that asks for a replication connection.
const REPLICATION: &str = "replication";

impl PoolKey {
    /// The same place for a replication connection, asked for with these parameters; those given
    /// last count.
    pub fn replicating(&self, parameters: &[(String, String)], how: &str) -> Self {
        let mut key = self.clone();
        key.startup.extend_from_slice(parameters);
        key.has_own = !parameters.is_empty();
        key.startup.push((REPLICATION.to_owned(), how.to_owned()));
        key
    }

    /// The same place for a client that has its connection to itself: with parameters of its own,
    /// and the variables of its tenant's context.
    pub fn with_own(
        &self,
        own: impl IntoIterator<Item = (String, String)>,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let mut key = self.clone();
        key.startup.extend(own);
        key.has_own = key.startup.len() > self.startup.len();
        key.startup.extend(variables);
        key
    }

    /// Whether its connections are for replication, and never shared.
    pub fn is_replicating(&self) -> bool {
        self.startup.iter().any(|(name, _)| name == REPLICATION)
    }
}
