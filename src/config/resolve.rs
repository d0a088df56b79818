//! From the file to a valid [`Config`], or to all mistakes at once.
//!
//! Every function here takes the place it looks at ([`At`]), adds what is wrong to one list, and
//! returns `None` if nothing usable is left. `None` alone is never reported again by a caller, so
//! one cause gives one mistake.

mod acts_for;
mod application;
mod catalog;
mod own_settings;
mod pem;
mod placement;
mod places;
mod provision;
mod rates;
mod roster;
mod server;
mod tenant;
mod timeouts;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;
use sha2::{Digest, Sha256};

use super::file::{
    AdminConsoleFile, AuditFile, By, ConfigFile, CredentialFile, DoctorFile, HttpFile,
    IdentifyFile, LimitsFile, ListenFile, LogFile, TcpKeepalivesFile, TimeoutsFile, UsageFile,
};
use super::outline::{At, Mistakes};
use super::said::SaidAbove;
use super::units::{Count, Limit, Period};
use super::{
    Access, Audit, ClientLimits, Config, Credential, Doctor, Identify, Listen, Log, Mistake,
    ScramVerifier, Secret, Server, Services, Sharded, TcpKeepalives, Tenant, Timeouts, Usage,
};
use crate::id::{self, ServerName, TenantId};
pub use roster::{Change, Entry, Roster};

use places::Places;
use tenant::Rules;

/// Where a file without `listen` listens.
const DEFAULT_LISTEN: &str = "127.0.0.1:6432";

/// More OS threads than any machine has use for.
const MAX_WORKERS: usize = 1024;

/// PostgreSQL's own bound on `max_connections` (`MAX_BACKENDS` in postmaster.h).
const MAX_CONNECTIONS: usize = 262_143;

/// Why `pool.min` is a mistake there.
const NO_MINIMUM: &str =
    "has no effect in session pooling without pool.reuse: connections are made for each client";

/// Longest value of a context variable, in bytes.
const MAX_CONTEXT_VALUE: usize = 1024;

/// More often is a load on the servers.
const MIN_DOCTOR_INTERVAL: Duration = Duration::from_secs(1);

/// What Linux takes: `MAX_TCP_KEEPIDLE` and `MAX_TCP_KEEPINTVL`, which are the same, and
/// `MAX_TCP_KEEPCNT`.
const MAX_KEEPALIVE_SECONDS: u64 = 32_767;
const MAX_KEEPALIVE_COUNT: usize = 127;

/// More files and events than anybody reads.
const MAX_AUDIT_FILES: usize = 1000;
const MAX_AUDIT_EVENTS: usize = 1_000_000;

/// More clients than file descriptors can be had.
const MAX_CLIENTS: usize = 10_000_000;
const MAX_WEIGHT: usize = 1000;
/// Logins at once, unless the config says less.
const LEAST_LOGINS: usize = 100;

/// Loads the file at `path`. Relative paths in it are relative to its directory, variables are
/// those of the process.
///
/// # Errors
/// All mistakes, in the order of the file.
pub fn load(path: &Path) -> Result<Config, Vec<Mistake>> {
    load_changed(path, &mut |_, _| {})
}

/// The same with what a catalog has beside the file, and with what is needed to put its tenants
/// into the configuration.
///
/// # Errors
/// As there, and what is wrong with the others.
pub fn load_with_roster(path: &Path, extras: &Extras) -> Result<(Config, Roster), Vec<Mistake>> {
    let environment = |name: &str| std::env::var(name).ok();
    load_whole(path, &mut |file, mistakes| {
        file.add(extras, mistakes, &environment);
    })
}

/// Servers and placements beside those of the file, which count where both have one of a name: by
/// name, the settings of `servers.*` and `placements.*` as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extras {
    pub servers: BTreeMap<String, String>,
    pub placements: BTreeMap<String, String>,
}

/// What changes a file once it was read.
type Changing<'c> = &'c mut dyn FnMut(&mut ConfigFile, &mut Mistakes<'_>);

/// The same of what `change` makes of the file once it was read.
pub(super) fn load_changed(path: &Path, change: Changing<'_>) -> Result<Config, Vec<Mistake>> {
    load_whole(path, change).map(|(config, _)| config)
}

fn load_whole(path: &Path, change: Changing<'_>) -> Result<(Config, Roster), Vec<Mistake>> {
    let whole_file = |line, message| {
        vec![Mistake {
            path: String::new(),
            line,
            message,
        }]
    };
    let bytes =
        std::fs::read(path).map_err(|error| whole_file(None, format!("cannot read: {error}")))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let before = error.as_bytes().iter().take(valid);
        let line = before.filter(|byte| **byte == b'\n').count() + 1;
        whole_file(Some(line), "is not UTF-8".to_owned())
    })?;
    let dir = path.parent().unwrap_or(Path::new(""));
    let environment = |name: &str| std::env::var(name).ok();
    load_text_changed(&text, dir, &environment, change)
}

/// [`load`] of a text that need not be a file: `dir` is what relative paths start from,
/// `environment` looks variables up.
///
/// # Errors
/// All mistakes, in the order of the text.
pub fn load_text(
    text: &str,
    dir: &Path,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, Vec<Mistake>> {
    load_text_with_roster(text, dir, environment).map(|(config, _)| config)
}

/// [`load_with_roster`] of a text.
///
/// # Errors
/// All mistakes, in the order of the text.
pub fn load_text_with_roster(
    text: &str,
    dir: &Path,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<(Config, Roster), Vec<Mistake>> {
    load_text_changed(text, dir, environment, &mut |_, _| {})
}

fn load_text_changed(
    text: &str,
    dir: &Path,
    environment: &dyn Fn(&str) -> Option<String>,
    change: Changing<'_>,
) -> Result<(Config, Roster), Vec<Mistake>> {
    let (mut file, mut mistakes) = ConfigFile::read(text, environment);
    if let Some(file) = &mut file {
        change(file, &mut mistakes);
    }
    let mut resolver = Resolver {
        mistakes,
        dir,
        has_catalog: false,
        is_catalog: false,
    };
    match file.and_then(|file| resolver.config(file)) {
        Some(loaded) if resolver.mistakes.is_empty() => Ok(loaded),
        _ => Err(resolver.mistakes.into_sorted()),
    }
}

/// The server of a tenant by rendezvous hashing: the one whose SHA-256 of `server 0x00 tenant`,
/// read as a big-endian number of its first eight bytes, is the highest. The order of `servers`
/// does not matter. Adding a server moves only the tenants that it wins, one in `n`; removing one
/// moves only its own. `None` if there are no servers.
pub fn rendezvous<'a>(servers: &'a [ServerName], tenant: &TenantId) -> Option<&'a ServerName> {
    let weight = |server: &ServerName| -> [u8; 8] {
        let hash = Sha256::new()
            .chain_update(server.as_str())
            .chain_update([0])
            .chain_update(tenant.as_str())
            .finalize();
        // Big-endian numbers compare as their bytes do.
        let mut weight = [0; 8];
        weight
            .iter_mut()
            .zip(hash)
            .for_each(|(to, from)| *to = from);
        weight
    };
    servers
        .iter()
        .max_by_key(|server| (weight(server), *server))
}

/// What there is for each service of the tenants that have several.
fn services(tenants: &Sharded<Arc<Tenant>>) -> Sharded<Arc<Services>> {
    let mut services: BTreeMap<TenantId, BTreeMap<_, _>> = BTreeMap::new();
    for tenant in tenants.values() {
        if let Some((name, service)) = &tenant.service {
            let known = services.entry(name.clone()).or_default();
            known.insert(service.clone(), tenant.id.clone());
        }
    }
    let services = services.into_iter();
    services
        .map(|(tenant, ids)| Arc::new(Services { tenant, ids }))
        .collect()
}

type Users = BTreeMap<String, Arc<Credential>>;

struct Resolver<'t, 'd> {
    mistakes: Mistakes<'t>,
    dir: &'d Path,
    /// There are tenants that the file does not have.
    has_catalog: bool,
    /// What is looked at is in the catalog.
    is_catalog: bool,
}

impl Resolver<'_, '_> {
    #[expect(
        clippy::too_many_lines,
        reason = "one section of the file after the other"
    )]
    fn config(&mut self, file: ConfigFile) -> Option<(Config, Roster)> {
        let said = SaidAbove::of(&file);
        self.has_catalog = file.catalog.is_some();
        let listen = self.listen(file.listen);
        let http = file.http.and_then(|http| self.http(http, &listen));
        let console = file.admin.is_some();
        let (admin_users, stats_users) =
            self.console_users(&file.admin.unwrap_or_default(), console);
        let slow = file.log.slow;
        let log = self.log(file.log);
        let audit = self.audit(file.audit);
        let usage = self.usage(file.usage);
        let workers = self.workers(file.workers);
        let identify = self.identify(&file.identify);
        let limits_at = At::ROOT.key("limits");
        let limits = self.client_limits(&limits_at, &file.limits);
        let rates = self.rates(
            &limits_at,
            file.limits.statements_per_second,
            file.limits.bytes_per_second,
        );
        let metrics_at = At::ROOT.key("metrics");
        let named_tenants = self.count(
            &metrics_at.key("tenants"),
            file.metrics.tenants,
            MAX_CLIENTS,
        );
        let doctor = self.doctor(&file.doctor);
        let server_files = self.required(&At::ROOT, "servers", file.servers);
        let placement_files = self.required(&At::ROOT, "placements", file.placements);
        let tenant_files = match self.has_catalog {
            true => file.tenants,
            false => self.required(&At::ROOT, "tenants", file.tenants),
        };
        let server_files = server_files.unwrap_or_default();
        let placement_files = placement_files.unwrap_or_default();
        let tenant_files = tenant_files.unwrap_or_default();
        let application_files = file.applications.unwrap_or_default();

        let tcp_keepalives = self.tcp_keepalives(&file.tcp_keepalives);
        let servers = self.servers(&server_files, tcp_keepalives);
        let plans = self.placements(
            &placement_files,
            &server_files,
            &tenant_files,
            &application::privileged(&application_files),
        );
        let catalog = file.catalog.map(|file| self.catalog(&file, &server_files));
        let layers = timeouts::Layers::new(&file.timeouts, slow, &server_files);
        let clients = limits.map_or(0, |limits| limits.clients);
        let most = self.clients_of_tenant(&file.limits, clients, tenant_files.len());
        let mut rules = Rules {
            plans,
            layers,
            identify: identify.clone(),
            has_console: console,
            most_clients: most,
            acts_for: Vec::new(),
        };
        let mut places = Places::new(&servers);
        let tenants = self.tenants(&tenant_files, &rules, &mut places);
        let context = application::Context {
            tenants: &tenants,
            files: &tenant_files,
            rules: &rules,
        };
        let applications = self.applications(&application_files, &context);
        self.kept_connections(&tenants, &servers);
        let (applications, acts_for): (Vec<_>, _) = applications.into_iter().unzip();
        rules.acts_for = acts_for;
        let plans = rules.plans.values().flatten();
        let placements = plans.map(|plan| (plan.placement.name.clone(), plan.placement.clone()));
        let config = Config {
            listen,
            http,
            admin_users,
            stats_users,
            log: log?,
            audit: audit?,
            usage: usage?,
            workers: workers?,
            io_uring: file.io_uring.unwrap_or(true),
            identify,
            limits: limits?,
            rates,
            named_tenants: named_tenants?,
            stats_period: file.metrics.period.0,
            timeouts: timeouts(&file.timeouts),
            tcp_keepalives,
            doctor: doctor?,
            catalog: catalog.flatten().map(Arc::new),
            servers,
            placements: placements.collect(),
            said,
            services: services(&tenants),
            own_minimums: roster::own_minimums(tenants.values()),
            tenants,
            applications: applications
                .into_iter()
                .map(|application| (application.login.id.clone(), application))
                .collect(),
            warnings: self.mistakes.take_warnings(),
        };
        let roster = Roster {
            rules,
            places,
            dir: self.dir.to_owned(),
        };
        Some((config, roster))
    }

    /// Pools must have room for the connections that they keep.
    fn kept_connections(
        &mut self,
        tenants: &Sharded<Arc<Tenant>>,
        servers: &IndexMap<ServerName, Arc<Server>>,
    ) {
        let routes = tenants.values().map(|tenant| &tenant.route);
        let keeping = routes.filter(|route| route.pool_limits().min > 0);
        let pools: HashMap<_, _> = keeping
            .filter(|route| !route.has_connections_of_their_own())
            .map(|route| (&*route.pool, route.pool_limits().min))
            .collect();
        for (name, server) in servers {
            let own = pools.iter().filter(|(pool, _)| pool.server == *name);
            let kept: usize = own.map(|(_, min)| min).sum();
            let least = kept + usize::from(server.admin.is_some());
            if least > server.max_connections {
                let at = At::ROOT.key("servers");
                let at = at.key(name.as_str());
                let message = format!(
                    "must be at least {least}: its pools keep {kept} connections together (pool.min)"
                );
                self.mistakes.add(&at.key("max_connections"), message);
            }
        }
    }

    fn required<T>(&mut self, at: &At<'_>, key: &'static str, value: Option<T>) -> Option<T> {
        if value.is_none() {
            self.mistakes.add(&at.key(key), "is required");
        }
        value
    }

    /// A number from 1 to `most`.
    fn count(&mut self, at: &At<'_>, count: Count, most: usize) -> Option<usize> {
        match usize::try_from(count.0) {
            Ok(0) => {
                self.mistakes.add(at, "must be at least 1");
                None
            }
            Ok(count) if count <= most => Some(count),
            _ => {
                self.mistakes
                    .add(at, format_args!("must be at most {most}"));
                None
            }
        }
    }

    fn optional_count(&mut self, at: &At<'_>, count: Option<Count>) -> Option<usize> {
        count.and_then(|count| self.count(at, count, MAX_CLIENTS))
    }

    /// 1 if it is a mistake.
    fn weight(&mut self, at: &At<'_>, weight: Count) -> u32 {
        let weight = self.count(at, weight, MAX_WEIGHT);
        weight.and_then(|n| u32::try_from(n).ok()).unwrap_or(1)
    }

    /// The path of a file named in the config, relative to the config itself.
    fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    fn listen(&mut self, files: Option<Vec<Option<ListenFile>>>) -> Vec<Listen> {
        let at = At::ROOT.key("listen");
        let default = || {
            vec![Some(ListenFile {
                address: Some(DEFAULT_LISTEN.to_owned()),
                tls: None,
            })]
        };
        let files = files.unwrap_or_else(default);
        if files.is_empty() {
            self.mistakes.add(&at, "needs at least one address");
        }
        let mut seen = HashMap::new();
        let mut listen = Vec::new();
        for (i, file) in files.into_iter().enumerate() {
            let Some(file) = file else { continue };
            let at = at.index(i);
            let address = self.required(&at, "address", file.address);
            let address = address.and_then(|text| self.address(&at.key("address"), &text));
            let tls = file.tls.map(|tls| self.listen_tls(&at.key("tls"), &tls));
            let Some(address) = address else { continue };
            // Port 0 is a free port each time.
            if address.port() != 0
                && let Some(first) = seen.insert(address, i)
            {
                let message = format_args!("is given twice, first in listen[{first}]");
                self.mistakes.add(&at.key("address"), message);
            }
            listen.push(Listen {
                address,
                tls: tls.flatten(),
            });
        }
        listen
    }

    fn address(&mut self, at: &At<'_>, text: &str) -> Option<SocketAddr> {
        let address = text.parse().ok();
        if address.is_none() {
            self.mistakes.add(
                at,
                "must be an IP address and a port, such as 127.0.0.1:6432 or [::1]:6432",
            );
        }
        address
    }

    fn http(&mut self, file: HttpFile, listen: &[Listen]) -> Option<SocketAddr> {
        let at = At::ROOT.key("http");
        let text = self.required(&at, "address", file.address)?;
        let at = at.key("address");
        let address = self.address(&at, &text)?;
        if address.port() != 0
            && let Some(i) = listen.iter().position(|listen| listen.address == address)
        {
            self.mistakes
                .add(&at, format_args!("is also the address of listen[{i}]"));
        }
        Some(address)
    }

    /// Who may do all on the console, and who may only look. `console`: there is one.
    fn console_users(&mut self, file: &AdminConsoleFile, console: bool) -> (Users, Users) {
        let at = At::ROOT.key("admin");
        let admins = match console {
            true => self.users(&at.key("users"), &file.users, None),
            false => Users::new(),
        };
        let stats_at = at.key("stats_users");
        let watchers = match file.stats_users.is_empty() {
            true => Users::new(),
            false => self.users(&stats_at, &file.stats_users, None),
        };
        for name in file.stats_users.keys() {
            if file.users.contains_key(name) {
                let at = stats_at.key(&**name);
                self.mistakes
                    .add(&at, "is in admin.users, too: a user is in one of them");
            }
        }
        (admins, watchers)
    }

    fn log(&mut self, file: LogFile) -> Option<Log> {
        let log = At::ROOT.key("log");
        let at = log.key("filter");
        if file.filter.trim().is_empty() {
            self.mistakes.add(&at, "must not be empty");
            return None;
        }
        if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(&file.filter) {
            self.mistakes
                .add(&at, format_args!("is not a log filter: {error}"));
            return None;
        }
        Some(Log {
            format: file.format,
            filter: file.filter,
            slow: file.slow.and_then(|Limit(slow)| slow),
        })
    }

    fn audit(&mut self, file: AuditFile) -> Option<Audit> {
        let at = At::ROOT.key("audit");
        let mut count = |key, count, most| {
            let count = self.count(&at.key(key), count, most)?;
            u32::try_from(count).ok()
        };
        let keep = count("keep", file.keep, MAX_AUDIT_FILES);
        let rate = count("rate", file.rate, MAX_AUDIT_EVENTS);
        let burst = count("burst", file.burst, MAX_AUDIT_EVENTS);
        if file.file.as_deref() == Some("") {
            self.mistakes.add(&at.key("file"), "must not be empty");
        }
        if file.access > Access::Nothing && file.file.is_none() {
            self.mistakes.add(
                &at.key("access"),
                "needs audit.file: it is written there only",
            );
        }
        Some(Audit {
            file: file.file.map(|path| self.path(&path)),
            max_size: file.max_size.0,
            keep: keep?,
            rate: rate?,
            burst: burst?,
            access: file.access,
        })
    }

    fn usage(&mut self, file: UsageFile) -> Option<Usage> {
        let at = At::ROOT.key("usage");
        let keep = self.count(&at.key("keep"), file.keep, MAX_AUDIT_FILES);
        if file.file.as_deref() == Some("") {
            self.mistakes.add(&at.key("file"), "must not be empty");
        }
        if file.interval.0 < Duration::from_secs(1) {
            self.mistakes
                .add(&at.key("interval"), "must be at least 1s");
        }
        Some(Usage {
            file: file.file.map(|path| self.path(&path)),
            interval: file.interval.0,
            max_size: file.max_size.0,
            keep: u32::try_from(keep?).ok()?,
        })
    }

    fn workers(&mut self, workers: Option<Count>) -> Option<usize> {
        match workers {
            Some(count) => self.count(&At::ROOT.key("workers"), count, MAX_WORKERS),
            None => Some(std::thread::available_parallelism().map_or(1, NonZero::get)),
        }
    }

    fn client_limits(&mut self, at: &At<'_>, file: &LimitsFile) -> Option<ClientLimits> {
        let clients = self.count(&at.key("clients"), file.clients, MAX_CLIENTS);
        let console = self.count(&at.key("console"), file.console, MAX_CLIENTS);
        let active = self.optional_count(&at.key("active"), file.active);
        let waiting = self.optional_count(&at.key("waiting"), file.waiting);
        let logins = match file.logins {
            Some(logins) => self.count(&at.key("logins"), logins, MAX_CLIENTS),
            None => Some((clients? / 10).max(LEAST_LOGINS)),
        };
        Some(ClientLimits {
            clients: clients?,
            logins: logins?,
            console: console?,
            active,
            waiting,
        })
    }

    /// Of one tenant that is given none. `clients`: of all.
    fn clients_of_tenant(
        &mut self,
        file: &LimitsFile,
        clients: usize,
        tenants: usize,
    ) -> Option<usize> {
        let at = At::ROOT.key("limits");
        match (file.tenant, tenants) {
            (None, _) if self.has_catalog => Some((clients * 3).div_ceil(4)),
            (Some(most), _) => self.count(&at.key("tenant"), most, MAX_CLIENTS),
            (None, 0 | 1) => None,
            (None, _) => Some((clients * 3).div_ceil(4)),
        }
    }

    fn tcp_keepalives(&mut self, file: &TcpKeepalivesFile) -> TcpKeepalives {
        let section = At::ROOT.key("tcp_keepalives");
        let mut seconds = |name, period: Option<Period>| {
            let Period(time) = period?;
            if time.subsec_nanos() != 0 || time.as_secs() > MAX_KEEPALIVE_SECONDS {
                let message = format!("must be whole seconds, at most {MAX_KEEPALIVE_SECONDS}s");
                self.mistakes.add(&section.key(name), message);
            }
            Some(time)
        };
        let idle = seconds("idle", file.idle);
        let interval = seconds("interval", file.interval);
        let count = file.count.and_then(|count| {
            let count = self.count(&section.key("count"), count, MAX_KEEPALIVE_COUNT)?;
            u32::try_from(count).ok()
        });
        let usual = TcpKeepalives::default();
        TcpKeepalives {
            idle: idle.unwrap_or(usual.idle),
            interval: interval.unwrap_or(usual.interval),
            count: count.unwrap_or(usual.count),
        }
    }

    fn doctor(&mut self, file: &DoctorFile) -> Option<Doctor> {
        let section = At::ROOT.key("doctor");
        if file.interval.0 < MIN_DOCTOR_INTERVAL {
            self.mistakes
                .add(&section.key("interval"), "must be at least 1s");
            return None;
        }
        if file.refuse && !file.enabled {
            let message = "has no effect with enabled: false";
            self.mistakes.add(&section.key("refuse"), message);
            return None;
        }
        Some(Doctor {
            enabled: file.enabled,
            interval: file.interval.0,
            refuse: file.refuse,
        })
    }

    fn identify(&mut self, file: &IdentifyFile) -> Identify {
        let at = At::ROOT.key("identify");
        let by = |part| file.by.contains(&part);
        if file.by.is_empty() {
            self.mistakes.add(
                &at.key("by"),
                "needs at least one of user, database, sni, options",
            );
        }
        let separator = self.separator(&at.key("user_separator"), &file.user_separator);
        let suffix = match &file.sni_suffix {
            Some(suffix) => self.sni_suffix(&at.key("sni_suffix"), suffix, by(By::Sni)),
            None if by(By::Sni) => {
                self.mistakes
                    .add(&at.key("sni_suffix"), "is required with sni in identify.by");
                None
            }
            None => None,
        };
        Identify {
            by_database: by(By::Database),
            by_user: separator.filter(|_| by(By::User)),
            by_sni: suffix,
            by_options: by(By::Options),
        }
    }

    fn separator(&mut self, at: &At<'_>, text: &str) -> Option<char> {
        let mut characters = text.chars();
        let (Some(separator), None) = (characters.next(), characters.next()) else {
            self.mistakes.add(at, "must be one character");
            return None;
        };
        // The last separator splits, so it must not be part of a tenant's name.
        if separator.is_control() || id::TenantId::new(&format!("a{separator}")).is_ok() {
            let message = "must not be a character that the name of a tenant may hold";
            self.mistakes.add(at, message);
            return None;
        }
        Some(separator)
    }

    fn sni_suffix(&mut self, at: &At<'_>, suffix: &str, used: bool) -> Option<String> {
        if !used {
            self.mistakes
                .add(at, "has no effect without sni in identify.by");
            return None;
        }
        let is_label = |label: &str| {
            !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        };
        match suffix.strip_prefix('.') {
            Some(domain) if domain.split('.').all(is_label) => Some(suffix.to_ascii_lowercase()),
            _ => {
                self.mistakes
                    .add(at, "must be a domain with a dot before it: .db.example.com");
                None
            }
        }
    }

    fn users(
        &mut self,
        at: &At<'_>,
        files: &IndexMap<String, CredentialFile>,
        separator: Option<char>,
    ) -> Users {
        if files.is_empty() {
            self.mistakes.add(at, "needs at least one user");
        }
        let mut users = BTreeMap::new();
        for (name, file) in files {
            let at = at.key(&**name);
            if name.is_empty() {
                self.mistakes.add(&at, "a user's name must not be empty");
            }
            if let Some(c) = name
                .chars()
                .find(|c| c.is_control() || Some(*c) == separator)
            {
                let why = if c.is_control() {
                    ""
                } else {
                    ", which is identify.user_separator"
                };
                self.mistakes
                    .add(&at, format_args!("must not hold {c:?}{why}"));
            }
            if let Some(credential) = self.credential(&at, file) {
                users.insert(name.clone(), Arc::new(credential));
            }
        }
        users
    }

    fn credential(&mut self, at: &At<'_>, file: &CredentialFile) -> Option<Credential> {
        match (&file.scram, &file.password) {
            (Some(scram), None) => match ScramVerifier::parse(scram.expose()) {
                Ok(verifier) => Some(Credential::Verifier(verifier)),
                Err(error) => {
                    self.mistakes.add(&at.key("scram"), error);
                    None
                }
            },
            (None, Some(password)) => {
                let valid = self.password(&at.key("password"), password);
                valid.then(|| Credential::Password(password.clone()))
            }
            _ => {
                self.mistakes
                    .add(at, "needs exactly one of scram and password");
                None
            }
        }
    }

    fn password(&mut self, at: &At<'_>, password: &Secret) -> bool {
        match password_mistake(password.expose()) {
            Some(mistake) => {
                self.mistakes.add(at, mistake);
                false
            }
            None => true,
        }
    }

    /// A name of ours, if it is one.
    fn name<T>(&mut self, at: &At<'_>, name: Result<T, id::InvalidName>) -> Option<T> {
        name.map_err(|error| self.mistakes.add(at, format_args!("the name {error}")))
            .ok()
    }
}

/// What is wrong with a password, of a client or for a server.
fn password_mistake(password: &str) -> Option<&'static str> {
    if password.is_empty() {
        Some("must not be empty")
    } else if password.contains('\0') {
        Some("must not hold a NUL")
    } else {
        None
    }
}

/// What is wrong with the name of a database, role or schema. PostgreSQL cuts longer names off
/// without an error, which would make one place of two.
fn name_mistake(name: &str) -> Option<String> {
    if name.is_empty() {
        Some("must not be empty".to_owned())
    } else if name.len() > id::MAX_NAME {
        Some(format!("must be at most {} bytes long", id::MAX_NAME))
    } else {
        let control = name.chars().find(|c| c.is_control())?;
        Some(format!("must not hold {control:?}"))
    }
}

fn timeouts(file: &TimeoutsFile) -> Timeouts {
    Timeouts {
        login: file.login.0,
        checkout: file.checkout.0,
        connect: file.connect.0,
        revoked: file.revoked.0,
        paused: file.paused.0,
        shutdown: file.shutdown.0,
        server_idle: file.server_idle.0,
        server_lifetime: file.server_lifetime.0,
        dns_max_ttl: file.dns_max_ttl.0,
    }
}

/// Names that occur twice in a list.
fn repeated(names: &[String]) -> Vec<usize> {
    let mut seen = HashSet::new();
    (0..names.len())
        .filter(|&i| names.get(i).is_some_and(|name| !seen.insert(name)))
        .collect()
}

#[cfg(test)]
mod tests;
