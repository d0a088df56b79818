//! The config file as it is written: one struct for each section, and [`ConfigFile::read`], which
//! makes them from text. `config/pgtenant.yaml` shows every setting in use.
//!
//! What is checked here is the form: known settings, values of the right type, variables that are
//! set. What the values mean together is `resolve`'s. A setting without which an entry makes no
//! sense is an `Option` all the same, so that its absence is one mistake among the others and not
//! the end of reading.
//!
//! This module and those below it are the only ones that know the YAML library.

mod environment;
mod known;
mod read;

use std::time::Duration;

use indexmap::IndexMap;
use serde::Deserialize;

use super::units::{Count, Limit, Moment, Period, RateFile, Size};
use super::{
    Access, LogFormat, Pooling, Posture, RequireAuth, Secret, Shared, SslMode, State, Tier,
};

/// The whole file. An entry that is `None` has mistakes that are already reported; its name is
/// kept, so that what refers to it is not reported as dangling.
#[derive(Debug, Default)]
pub struct ConfigFile {
    /// Main ports. Default: `127.0.0.1:6432` without TLS.
    pub listen: Option<Vec<Option<ListenFile>>>,
    /// Metrics and health. Default: none.
    pub http: Option<HttpFile>,
    /// The admin console. Default: none.
    pub admin: Option<AdminConsoleFile>,
    pub log: LogFile,
    pub audit: AuditFile,
    pub usage: UsageFile,
    /// Threads that serve clients. Default: one for each core. Those of one server use more than
    /// one when one has too much to do.
    pub workers: Option<Count>,
    /// Whether workers may send by io_uring, where the operating system lets them. Default: true.
    pub io_uring: Option<bool>,
    pub identify: IdentifyFile,
    pub limits: LimitsFile,
    pub metrics: MetricsFile,
    pub timeouts: TimeoutsFile,
    pub tcp_keepalives: TcpKeepalivesFile,
    pub doctor: DoctorFile,
    /// Where tenants are kept as data. Default: none, and they are those of this file alone.
    pub catalog: Option<CatalogFile>,
    /// PostgreSQL instances by name. Required.
    pub servers: Option<IndexMap<String, Option<ServerFile>>>,
    /// Kinds of places by name. Required.
    pub placements: Option<IndexMap<String, Option<PlacementFile>>>,
    /// Applications that act for tenants, by name. Default: none.
    pub applications: Option<IndexMap<String, Option<ApplicationFile>>>,
    /// Tenants by id. Required, though it may be `{}`: a file that was cut short must not be read
    /// as one that removes all tenants.
    pub tenants: Option<IndexMap<String, Option<TenantFile>>>,
}

/// An entry of `listen`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct ListenFile {
    /// IP address and port, e.g. `0.0.0.0:6432`. Required.
    pub address: Option<String>,
    /// Default: clients cannot use TLS.
    pub tls: Option<ListenTlsFile>,
}

/// `listen[].tls`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct ListenTlsFile {
    /// PEM file of the certificate chain, leaf first. Required.
    pub cert: Option<String>,
    /// PEM file of its private key. Required.
    pub key: Option<String>,
    /// Refuse clients without TLS. Default: false.
    pub required: bool,
}

/// `http`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct HttpFile {
    /// IP address and port. Required.
    pub address: Option<String>,
}

/// `admin`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct AdminConsoleFile {
    /// Who may log in to the console. Required.
    pub users: IndexMap<String, CredentialFile>,
    /// Who may log in to it and only look, as PgBouncer's `stats_users`. Default: nobody.
    pub stats_users: IndexMap<String, CredentialFile>,
}

/// What a user proves itself with: exactly one of the two.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, expecting = "a mapping with `scram` or `password`")]
pub struct CredentialFile {
    /// A SCRAM-SHA-256 verifier.
    pub scram: Option<Secret>,
    /// The password itself.
    pub password: Option<Secret>,
}

/// `log`.
#[derive(Debug, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct LogFile {
    /// Default: text.
    pub format: LogFormat,
    /// A `tracing` filter. Default: info.
    pub filter: String,
    /// A statement or transaction that takes this long has a line in the log; 0: none has.
    /// Default: 0.
    pub slow: Option<Limit>,
}

impl Default for LogFile {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            filter: "info".to_owned(),
            slow: None,
        }
    }
}

/// `servers.*.log`, `placements.*.log` and `tenants.*.log`: of their clients.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct ClientLogFile {
    /// A statement or transaction that takes this long has a line in the log; 0: none has. Default:
    /// that of the placement, then of the server, then of the whole file.
    pub slow: Option<Limit>,
}

/// `audit`.
#[derive(Debug, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct AuditFile {
    /// Where attempts to reach other tenants are written, one JSON object a line. Default: none;
    /// they are counted and logged.
    pub file: Option<String>,
    /// A file that would grow beyond this is renamed to `<file>.1`, that one to `<file>.2` and so
    /// on. Default: 100MB.
    pub max_size: Size,
    /// So many old files are kept. Default: 5.
    pub keep: Count,
    /// Events of a tenant that are written each minute, once `burst` is used up; others are
    /// counted. Default: 60.
    pub rate: Count,
    /// Events of a tenant that are written at once. Default: 100.
    pub burst: Count,
    /// What of honest work is written there, too. Default: nothing.
    pub access: Access,
}

impl Default for AuditFile {
    fn default() -> Self {
        Self {
            file: None,
            max_size: Size(100 << 20),
            keep: Count(5),
            rate: Count(60),
            burst: Count(100),
            access: Access::Nothing,
        }
    }
}

/// `usage`.
#[derive(Debug, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct UsageFile {
    /// Where it is written what each tenant has used in each hour, one JSON object a line. Default:
    /// none.
    pub file: Option<String>,
    /// From one line of a tenant to the next within an hour; at least 1s. Default: 5m.
    pub interval: Period,
    /// A file that would grow beyond this is renamed to `<file>.1`, that one to `<file>.2` and so
    /// on. Default: 100MB.
    pub max_size: Size,
    /// So many old files are kept. Default: 100.
    pub keep: Count,
}

impl Default for UsageFile {
    fn default() -> Self {
        Self {
            file: None,
            interval: Period(Duration::from_secs(5 * 60)),
            max_size: Size(100 << 20),
            keep: Count(100),
        }
    }
}

/// `identify`.
#[derive(Debug, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct IdentifyFile {
    /// Which parts of a login may name the tenant. Default: user and database.
    pub by: Vec<By>,
    /// One character between user and tenant. Default: `.`
    pub user_separator: String,
    /// What follows the tenant in a TLS server name, e.g. `.db.example.com`. Required with `sni`.
    pub sni_suffix: Option<String>,
}

impl Default for IdentifyFile {
    fn default() -> Self {
        Self {
            by: vec![By::User, By::Database],
            user_separator: ".".to_owned(),
            sni_suffix: None,
        }
    }
}

/// A part of a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    User,
    Database,
    Sni,
    Options,
}

/// `limits` of the whole proxy.
#[derive(Debug, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct LimitsFile {
    /// Clients of all tenants that are logged in. Default: 10000.
    pub clients: Count,
    /// Connections whose client has not proved who it is; over it the one that has taken longest is
    /// closed. Default: a tenth of `clients`, at least 100.
    pub logins: Option<Count>,
    /// Clients of the console. Default: 10.
    pub console: Count,
    /// Clients of one tenant, where its own `limits` say nothing. Default: with several tenants
    /// three quarters of `clients`.
    pub tenant: Option<Count>,
    /// Server connections in use at once, of all servers together. Default: no limit.
    pub active: Option<Count>,
    /// Clients that wait for a server connection at once. Default: no limit.
    pub waiting: Option<Count>,
    /// Statements per second of all clients together, as a number or with a burst. Default: no
    /// limit.
    pub statements_per_second: Option<RateFile<Count>>,
    /// Bytes per second to them, the same. Default: no limit.
    pub bytes_per_second: Option<RateFile<Size>>,
}

impl Default for LimitsFile {
    fn default() -> Self {
        Self {
            clients: Count(10_000),
            logins: None,
            console: Count(10),
            tenant: None,
            active: None,
            waiting: None,
            statements_per_second: None,
            bytes_per_second: None,
        }
    }
}

/// `metrics`.
#[derive(Debug, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct MetricsFile {
    /// The busiest tenants, so many, have series of their own, and as many pools; the others are
    /// one. Default: 100.
    pub tenants: Count,
    /// Averages and percentiles on the console are over the last one or two of these. Default: 60s.
    pub period: Period,
}

impl Default for MetricsFile {
    fn default() -> Self {
        Self {
            tenants: Count(100),
            period: Period(Duration::from_secs(60)),
        }
    }
}

/// `servers.*.timeouts`, `placements.*.timeouts` and `tenants.*.timeouts`: of their clients. What
/// is not given is as in the one before, and in `timeouts` first.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct ClientTimeoutsFile {
    /// Most time from a client's message to the end of its statement (57014); 0: no limit. Default:
    /// as said.
    pub statement: Option<Limit>,
    /// Most time from the beginning of a transaction to its end (25P04); 0: no limit. Default: as
    /// said.
    pub transaction: Option<Limit>,
    /// Most time that a transaction waits for its client (25P03); 0: no limit. Default: as said.
    pub idle_in_transaction: Option<Limit>,
    /// Most time that a client says nothing outside of a transaction (57P05); 0: no limit. Default:
    /// as said.
    pub idle_session: Option<Limit>,
    /// The same of a client that keeps its server connection meanwhile (57P05); 0: no limit.
    /// Default: as said.
    pub pinned: Option<Limit>,
    /// From accept to a finished login, once it is known whose login it is. Default: as said.
    pub login: Option<Period>,
    /// Waiting for a server connection or a rate. Default: as said.
    pub checkout: Option<Period>,
    /// Connecting to a server for a client, or changing the tenant of a server connection. Default:
    /// as said.
    pub connect: Option<Period>,
}

/// `timeouts`.
#[derive(Debug, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct TimeoutsFile {
    /// Most time from a client's message to the end of its statement (57014); 0: no limit. Default:
    /// none.
    pub statement: Option<Limit>,
    /// Most time from the beginning of a transaction to its end (25P04); 0: no limit. Default:
    /// none.
    pub transaction: Option<Limit>,
    /// Most time that a transaction waits for its client (25P03); 0: no limit. Default: 10m in tier
    /// pool, and else none.
    pub idle_in_transaction: Option<Limit>,
    /// Most time that a client says nothing outside of a transaction (57P05); 0: no limit. Default:
    /// none.
    pub idle_session: Option<Limit>,
    /// The same of a client that keeps its server connection meanwhile (57P05); 0: no limit.
    /// Default: none.
    pub pinned: Option<Limit>,
    /// From accept to a finished login. Default: 15s.
    pub login: Period,
    /// Waiting for a server connection or a rate. Default: 10s.
    pub checkout: Period,
    /// Connecting to a server. Default: 5s.
    pub connect: Period,
    /// How long transactions may go on whose tenant, user or password is gone. Default: 10s.
    pub revoked: Period,
    /// How long clients of a tenant in state `paused` wait for its end. Default: 1m.
    pub paused: Period,
    /// From SIGTERM until the last client is closed. Default: 30s.
    pub shutdown: Period,
    /// An idle server connection is closed after this. Default: 10m.
    pub server_idle: Period,
    /// A server connection is replaced after this, or up to a fifth of it before: each has an end
    /// of its own. Default: 1h.
    pub server_lifetime: Period,
    /// A server's name is resolved again after this. Default: 15s.
    pub dns_max_ttl: Period,
}

impl Default for TimeoutsFile {
    fn default() -> Self {
        let seconds = |seconds| Period(Duration::from_secs(seconds));
        Self {
            statement: None,
            transaction: None,
            idle_in_transaction: None,
            idle_session: None,
            pinned: None,
            login: seconds(15),
            checkout: seconds(10),
            connect: seconds(5),
            revoked: seconds(10),
            paused: seconds(60),
            shutdown: seconds(30),
            server_idle: seconds(10 * 60),
            server_lifetime: seconds(60 * 60),
            dns_max_ttl: seconds(15),
        }
    }
}

/// `tcp_keepalives`, of clients and servers.
#[derive(Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct TcpKeepalivesFile {
    /// Silence before the first probe, in whole seconds. Default: 60s.
    pub idle: Option<Period>,
    /// From one probe to the next, in whole seconds. Default: 10s.
    pub interval: Option<Period>,
    /// Unanswered probes after which the connection is over. Default: 6.
    pub count: Option<Count>,
}

/// `doctor`.
#[derive(Debug, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct DoctorFile {
    /// Inspect the databases at the start, after reloads and every interval. Default: true.
    pub enabled: bool,
    /// At least 1s. Default: 10m.
    pub interval: Period,
    /// Refuse new clients of places whose policies do not keep tenants apart. Default: false.
    pub refuse: bool,
}

impl Default for DoctorFile {
    fn default() -> Self {
        Self {
            enabled: true,
            interval: Period(Duration::from_secs(10 * 60)),
            refuse: false,
        }
    }
}

/// `catalog`.
#[derive(Debug, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct CatalogFile {
    /// One of `servers`. Required.
    pub server: Option<String>,
    /// Required.
    pub database: Option<String>,
    /// The login that reads. Required.
    pub login: Option<LoginFile>,
    /// The login that changes tenants. Default: none, and `pgtenant tenant` changes nothing.
    pub writer: Option<LoginFile>,
    /// Longest time between two looks for changes, from 100ms to 1m. Default: 2s.
    pub poll: Period,
    /// The last good state on disk. Default: none.
    pub copy: Option<CatalogCopyFile>,
}

impl Default for CatalogFile {
    fn default() -> Self {
        Self {
            server: None,
            database: None,
            login: None,
            writer: None,
            poll: Period(Duration::from_secs(2)),
            copy: None,
        }
    }
}

/// `catalog.copy`.
#[derive(Debug, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct CatalogCopyFile {
    /// Where it is. Required.
    pub file: Option<String>,
    /// A file of at least 32 bytes, the key of its MAC. Required.
    pub key_file: Option<String>,
    /// An older copy is not used. Default: 7d.
    pub max_age: Period,
}

impl Default for CatalogCopyFile {
    fn default() -> Self {
        Self {
            file: None,
            key_file: None,
            max_age: Period(Duration::from_secs(7 * 24 * 60 * 60)),
        }
    }
}

/// An entry of `servers`.
#[derive(Debug, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct ServerFile {
    /// A name, an address, or the directory of a Unix socket. Required.
    pub host: Option<String>,
    /// Default: 5432.
    pub port: Count,
    /// Default: prefer.
    pub sslmode: SslMode,
    /// PEM file of the authorities to trust. Default: the public ones.
    pub root_cert: Option<String>,
    /// How it may ask for a proof: libpq's `require_auth`. Default: [`RequireAuth::DEFAULT`].
    pub require_auth: String,
    /// Of all pools of this instance together. Required.
    pub max_connections: Option<Count>,
    /// Statements fail at once while it lets nobody in, instead of waiting up to
    /// `timeouts.checkout`. Default: false.
    pub fail_fast: bool,
    /// Login for health checks. Default: none, and no health checks.
    pub admin: Option<ServerAdminFile>,
    /// What contexts are sealed with. Required for placements of posture sealed.
    pub seal: Option<SealFile>,
    pub limits: ServerLimitsFile,
    pub timeouts: ClientTimeoutsFile,
    pub log: ClientLogFile,
}

impl Default for ServerFile {
    fn default() -> Self {
        Self {
            host: None,
            port: Count(5432),
            sslmode: SslMode::Prefer,
            root_cert: None,
            require_auth: RequireAuth::DEFAULT.to_owned(),
            max_connections: None,
            fail_fast: false,
            admin: None,
            seal: None,
            limits: ServerLimitsFile::default(),
            timeouts: ClientTimeoutsFile::default(),
            log: ClientLogFile::default(),
        }
    }
}

/// `servers.*.limits`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct ServerLimitsFile {
    /// Clients of all its tenants together. Default: no limit.
    pub clients: Option<Count>,
    /// Those of them that wait for a server connection at once. Default: no limit.
    pub waiting: Option<Count>,
    /// Statements per second of all its clients together, as a number or with a burst. Default: no
    /// limit.
    pub statements_per_second: Option<RateFile<Count>>,
    /// Bytes per second to them, the same. Default: no limit.
    pub bytes_per_second: Option<RateFile<Size>>,
}

/// `servers.*.seal`.
#[derive(Debug, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct SealFile {
    /// A secret of at least 32 characters. Either this or `key_file` is required.
    pub key: Option<Secret>,
    /// Instead of `key`: a file that holds it.
    pub key_file: Option<String>,
    /// For how long a sealed value is good. Default: 10m.
    pub lifetime: Period,
}

impl Default for SealFile {
    fn default() -> Self {
        Self {
            key: None,
            key_file: None,
            lifetime: Period(Duration::from_secs(10 * 60)),
        }
    }
}

/// `servers.*.admin`.
#[derive(Debug, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct ServerAdminFile {
    /// Required.
    pub user: Option<String>,
    /// Default: none.
    pub password: Option<Secret>,
    /// Default: postgres.
    pub database: String,
}

impl Default for ServerAdminFile {
    fn default() -> Self {
        Self {
            user: None,
            password: None,
            database: "postgres".to_owned(),
        }
    }
}

/// An entry of `placements`. `database`, `schema`, `login` and the values of `context` are
/// templates.
#[derive(Debug, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct PlacementFile {
    /// Required.
    pub tier: Option<Tier>,
    /// Either this or `servers` is required.
    pub server: Option<String>,
    /// Several servers over which the tenants are spread.
    pub servers: Option<Vec<String>>,
    /// With `servers`: tenants that have a server by name. Default: all by hash.
    pub shard_map: IndexMap<String, String>,
    /// Required.
    pub database: Option<String>,
    /// Required in tier schema, and only there. Of a list, which `search_path` is then, the first
    /// is the tenant's own.
    pub schema: Option<SchemaFile>,
    /// Required.
    pub login: Option<LoginFile>,
    /// As whom tenants in state `read_only` are served: a role that the server lets only read.
    /// Default: none, and no tenant can be in that state.
    pub read_only_login: Option<LoginFile>,
    /// Variables set before any statement of the tenant runs. Required in tier pool; default: none.
    pub context: IndexMap<String, String>,
    /// Variables that row level security policies read and that clients may set nevertheless, as
    /// they tell apart users of one tenant. In posture guarded and up others are refused. Default:
    /// none.
    pub user_variables: Vec<String>,
    /// How far a tenant's SQL is trusted with the context. Only with `context`. Default: sealed
    /// where the placement's servers have `seal`, else guarded.
    pub posture: Option<Posture>,
    /// In posture sealed: whether statements that could change the tenant are refused as in posture
    /// guarded. Default: true.
    pub guard: Option<bool>,
    /// In posture guarded and up: what all tenants of the database have in common, and may use
    /// nevertheless. Default: none.
    pub allow: Vec<Shared>,
    /// In posture sealed: what `pgtenant.tenant_id()` returns. Default: the tenant's id.
    pub seal_tenant: Option<String>,
    /// Default: transaction.
    pub pooling: Pooling,
    pub pool: PoolFile,
    pub limits: PlacementLimitsFile,
    /// How `pgtenant tenant create` makes a place here. Default: role, schema and database alone,
    /// and empty.
    pub provision: Option<ProvisionFile>,
    /// Of each of its tenants that is given none. Default: 1.
    pub weight: Count,
    pub timeouts: ClientTimeoutsFile,
    pub log: ClientLogFile,
}

impl Default for PlacementFile {
    fn default() -> Self {
        Self {
            tier: None,
            server: None,
            servers: None,
            shard_map: IndexMap::new(),
            database: None,
            schema: None,
            login: None,
            read_only_login: None,
            context: IndexMap::new(),
            user_variables: Vec::new(),
            posture: None,
            guard: None,
            allow: Vec::new(),
            seal_tenant: None,
            pooling: Pooling::Transaction,
            pool: PoolFile::default(),
            limits: PlacementLimitsFile::default(),
            provision: None,
            weight: Count(1),
            timeouts: ClientTimeoutsFile::default(),
            log: ClientLogFile::default(),
        }
    }
}

/// `placements.*.login`, `catalog.login` and `catalog.writer`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct LoginFile {
    /// Required.
    pub user: Option<String>,
    /// Default: none; the server must then trust the proxy.
    pub password: Option<Secret>,
    /// Instead of `password`: a file that holds it.
    pub password_file: Option<String>,
}

/// `placements.*.provision`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct ProvisionFile {
    /// Tenants with these attributes are placed here when no placement is named. Default: none are.
    pub when: IndexMap<String, String>,
    /// The schema that one of a tenant's own is copied from, without rows. Default: none.
    pub template_schema: Option<String>,
    /// The database that one of a tenant's own is copied from. Default: template0.
    pub template_database: Option<String>,
    /// Files that are run in a schema or database of a tenant's own, as its role. Default: none.
    pub sql: Vec<String>,
    /// Roles that a role of a tenant's own is made a member of. Default: none.
    pub member_of: Vec<String>,
    /// Statements that are run in the database at last; their placeholders are parameters. Default:
    /// none.
    pub after: StatementsFile,
    /// Statements that take a tenant's rows away; their placeholders are parameters. Default: none,
    /// and rows among those of others are not taken away.
    pub delete: StatementsFile,
}

/// One statement, or a list of them.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a statement, or a list of them")]
pub enum StatementsFile {
    One(String),
    Several(Vec<String>),
}

impl Default for StatementsFile {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

impl StatementsFile {
    pub fn texts(&self) -> &[String] {
        match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Several(texts) => texts,
        }
    }
}

/// `placements.*.pool`.
#[derive(Debug, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct PoolFile {
    /// Server connections of one pool (server, database and login). Default: 20.
    pub size: Count,
    /// How many more of one pool, within the server's `max_connections`, for tenants that hold none
    /// of them, when none came back for 5 ms: one each. Default: 5, and 0 for a placement with one
    /// tenant.
    pub reserve: Option<Count>,
    /// So many server connections of one pool are made before anybody asks for them, and kept when
    /// they are idle, as long as no other pool needs their room. Default: 0.
    pub min: Count,
    /// In session pooling: hand a server connection on when its client leaves, scrubbed, instead of
    /// making a new one for each client. Default: false.
    pub reuse: bool,
    /// Libraries of extensions and languages (`dblink`, `plperl`) that may keep something of a
    /// session in the server process, where DISCARD ALL does not reach it, and with which
    /// connections go from one tenant to another nevertheless. Default: none. A connection to a
    /// database that has others is ended when another tenant would get it.
    pub tolerate: Vec<String>,
}

impl Default for PoolFile {
    fn default() -> Self {
        Self {
            size: Count(20),
            reserve: None,
            min: Count(0),
            reuse: false,
            tolerate: Vec::new(),
        }
    }
}

/// `placements.*.limits`.
#[derive(Debug, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct PlacementLimitsFile {
    /// Clients of all its tenants together. Default: no limit.
    pub clients: Option<Count>,
    /// Server connections that they use at once, of all its pools together. Default: no limit.
    pub active: Option<Count>,
    /// Those of them that wait for a server connection at once. Default: no limit.
    pub waiting: Option<Count>,
    /// Savepoints that one transaction may have at once; 0: no limit. Default: 1000, and none in
    /// tier instance.
    pub savepoints: Option<Count>,
    /// Objects that one transaction may make, change, drop or lock by name; 0: no limit. Default:
    /// 1000, and none in tier instance.
    pub objects: Option<Count>,
    /// Named statements of the protocol that one client may have in transaction pooling.
    /// Default: 10000.
    pub statements: Count,
    /// Bytes of them. Default: 16MB.
    pub statement_memory: Size,
    /// Statements per second of all clients of its tenants together, as a number or with a burst.
    /// Default: no limit.
    pub statements_per_second: Option<RateFile<Count>>,
    /// Bytes per second to them, the same. Default: no limit.
    pub bytes_per_second: Option<RateFile<Size>>,
}

impl Default for PlacementLimitsFile {
    fn default() -> Self {
        Self {
            clients: None,
            active: None,
            waiting: None,
            savepoints: None,
            objects: None,
            statements: Count(10_000),
            statement_memory: Size(16 << 20),
            statements_per_second: None,
            bytes_per_second: None,
        }
    }
}

/// An entry of `tenants`.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct TenantFile {
    /// Required, or `placements`.
    pub placement: Option<String>,
    /// Of a tenant whose services live in several places: the placement of each service. Default:
    /// none.
    pub placements: IndexMap<String, String>,
    /// One of the placement's servers, before map and hash. Default: by map or hash.
    pub server: Option<String>,
    /// For the templates of the placement. Default: none.
    pub attributes: IndexMap<String, String>,
    /// Who may log in. Required.
    pub users: IndexMap<String, CredentialFile>,
    pub limits: TenantLimitsFile,
    pub pool: TenantPoolFile,
    /// Where tenants wait for server connections, server time is shared out by their weights. From
    /// 1 to 1000. Default: the placement's.
    pub weight: Option<Count>,
    pub timeouts: ClientTimeoutsFile,
    pub log: ClientLogFile,
    /// Default: the placement's.
    pub pooling: Option<Pooling>,
    /// Run-time parameters with which its server connections begin. It shares them only with
    /// tenants that have the same. Default: none.
    pub settings: IndexMap<String, String>,
    /// What its logins and clients get. Default: active.
    pub state: State,
    /// Why, for whoever is refused. Default: none.
    pub reason: Option<String>,
    /// When the state ends by itself, and the tenant is active. Default: never.
    pub until: Option<Moment>,
    /// From then on it is suspended. Default: never.
    pub expires: Option<Moment>,
}

/// `applications.*`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct ApplicationFile {
    /// Who logs in. Required.
    pub users: IndexMap<String, CredentialFile>,
    /// For whom it may act. Required.
    pub tenants: Option<ActsForFile>,
    /// The placement where it is served while it has chosen no tenant, with the context of nobody.
    /// Default: its statements are refused then.
    pub home: Option<String>,
    /// How it says for which tenant it works. Required.
    pub choose: Option<ChooseFile>,
    /// In which service it works, where tenants have several. Default: none.
    pub service: Option<String>,
    /// Variables by which it acts for all tenants at its home, such as `app.bypass_rls`, each with
    /// the values that do. Nobody else may set them so. Default: none.
    pub all_tenants: IndexMap<String, Vec<String>>,
    pub limits: ApplicationLimitsFile,
    pub timeouts: ClientTimeoutsFile,
}

/// `applications.*.tenants`: `all`, a list of tenants, or where they live and what attributes they
/// have.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(
    untagged,
    expecting = "`all`, a list of tenants, or a mapping with `placements` or `attributes`"
)]
pub enum ActsForFile {
    All(AllTenants),
    List(Vec<String>),
    Those(ThoseFile),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AllTenants {
    All,
}

/// Tenants that have all of this.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ThoseFile {
    /// They live in one of these. Default: anywhere.
    pub placements: Option<Vec<String>>,
    /// They have these attributes. Default: any.
    pub attributes: IndexMap<String, String>,
}

/// `applications.*.choose`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct ChooseFile {
    /// The variables that it sets, such as `app.tenant_id`. Required.
    pub variables: Vec<String>,
    /// What the value is: `id`, the tenant's, or `attributes.<name>`, which no two tenants have in
    /// common. Default: id.
    pub key: Option<String>,
    /// `SET [LOCAL] ROLE` chooses: the role's name, with `{tenant}` in it. The role itself is not
    /// set. Default: it does not.
    pub role: Option<String>,
    /// `SET search_path` chooses: the name of its first schema, with `{tenant}` in it. Default: it
    /// does not.
    pub search_path: Option<String>,
    /// Variables whose value is a JSON document, each with the JSON pointer at which the tenant
    /// stands. Default: none.
    pub json: IndexMap<String, String>,
    /// Functions of the application's that choose, each with the argument that is the tenant.
    /// Default: none.
    pub functions: IndexMap<String, ChoosingFunctionFile>,
}

/// `applications.*.choose.functions.*`: the number of the argument, from 1, or a mapping.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(
    untagged,
    expecting = "the number of an argument, or a mapping with `argument` and `scope`"
)]
pub enum ChoosingFunctionFile {
    Argument(Count),
    Scoped {
        argument: Count,
        scope: FunctionScope,
    },
}

/// How long the choice of a function lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FunctionScope {
    Transaction,
    Session,
}

/// `applications.*.limits`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct ApplicationLimitsFile {
    /// Clients at once. Default: no limit but that of the proxy.
    pub clients: Option<Count>,
}

/// `tenants.*.pool`.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct TenantPoolFile {
    /// Server connections that its pool has at least, where it has one of its own. Default: the
    /// placement's.
    pub min: Option<Count>,
}

/// `placements.*.schema`: one schema, or those of the `search_path`.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a schema, or a list of them")]
pub enum SchemaFile {
    One(String),
    Several(Vec<String>),
}

impl SchemaFile {
    pub fn names(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Several(names) => names,
        }
    }
}

/// `tenants.*.limits`.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, expecting = "a mapping")]
pub struct TenantLimitsFile {
    /// Clients at once. Default: no limit.
    pub clients: Option<Count>,
    /// Server connections in use at once. Default: no limit.
    pub active: Option<Count>,
    /// Clients that wait for a server connection at once. Default: no limit.
    pub waiting: Option<Count>,
    /// Statements per second of all its clients together, as a number or with a burst. Default: no
    /// limit.
    pub statements_per_second: Option<RateFile<Count>>,
    /// Bytes per second to them, the same. Default: no limit.
    pub bytes_per_second: Option<RateFile<Size>>,
}

#[cfg(test)]
mod tests;
