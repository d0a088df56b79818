//! Placements: what can be checked of them without a tenant, and what their templates become.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::Read as _;
use std::sync::Arc;

use indexmap::IndexMap;

use super::{MAX_CONNECTIONS, NO_MINIMUM, Resolver, password_mistake, repeated};
use crate::config::file::{
    ClientLogFile, ClientTimeoutsFile, LoginFile, PlacementFile, SchemaFile, ServerFile, TenantFile,
};
use crate::config::outline::At;
use crate::config::units::Count;
use crate::config::{
    Placement, PoolLimits, Pooling, Posture, SEALED_VARIABLE, Secret, Shared, Template, Tier,
    TransactionLimits, template,
};
use crate::id::{PlacementName, ServerName};

/// Longest password file read, in bytes: with a newline, the longest password that PostgreSQL takes
/// in clear text (PG_MAX_AUTH_TOKEN_LENGTH in auth.c).
const MAX_PASSWORD_FILE: u64 = 65_537;

/// Enough that several tenants at once are not kept out by others, and little beside the 20
/// connections of a pool.
const DEFAULT_RESERVE: usize = 5;

/// Most locks of one transaction where a server is shared. PostgreSQL's own lock table has room for
/// 6400 by default (`max_locks_per_transaction` × `max_connections`).
const DEFAULT_LOCKS: u32 = 1000;

/// Largest limit of prepared statements of one client.
const MAX_STATEMENTS: usize = 1_000_000;

/// Largest limit of locks: as many as a lock table may have for each connection.
const MAX_LOCKS: usize = i32::MAX as usize;

/// Run-time parameters of every StartupMessage. A role may have others by `ALTER ROLE … SET`; the
/// startup packet beats that, and is what RESET and DISCARD ALL return to.
const PINNED: [(&str, &str); 2] = [
    ("row_security", "on"),
    ("standard_conforming_strings", "on"),
];

/// A placement with its templates still unfilled.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub placement: Arc<Placement>,
    pub shard_map: HashMap<String, ServerName>,
    pub database: Template,
    /// The tenant's own, and others behind it in `search_path`. Empty in other tiers.
    pub schemas: Vec<Template>,
    pub login: PlanLogin,
    /// Of tenants in state `read_only`.
    pub read_only: Option<PlanLogin>,
    /// By variable, in the order of the file. The names are in lower case, because PostgreSQL
    /// compares them so.
    pub context: Vec<(String, Template)>,
    pub timeouts: ClientTimeoutsFile,
    pub log: ClientLogFile,
    /// Of a tenant that is given none.
    pub weight: u32,
    /// In posture sealed: the tenant's name in the database.
    pub seal_tenant: Option<Template>,
    /// Run-time parameters that do not depend on the tenant, in a fixed order: equal settings give
    /// equal pools.
    pub startup: Vec<(String, String)>,
}

/// What is known of a placement before its own settings are looked at.
struct Known {
    /// None: it is a mistake.
    name: Option<PlacementName>,
    servers: Vec<ServerName>,
    shard_map: HashMap<String, ServerName>,
    posture: Posture,
    privileged: Arc<[Box<str>]>,
    tenants: usize,
}

/// Which of a placement's servers have what contexts are sealed with.
struct Sealable {
    some: bool,
    without: Vec<ServerName>,
}

impl Sealable {
    /// A server with mistakes is reported where it is defined.
    fn of(targets: &[ServerName], servers: &IndexMap<String, Option<ServerFile>>) -> Self {
        let file = |target: &ServerName| servers.get(target.as_str())?.as_ref();
        let (with, without): (Vec<_>, Vec<_>) = targets
            .iter()
            .filter_map(|target| Some((target, file(target)?)))
            .partition(|(_, file)| file.seal.is_some());
        Self {
            some: !with.is_empty(),
            without: without.into_iter().map(|(name, _)| name.clone()).collect(),
        }
    }
}

/// As whom tenants are served.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PlanLogin {
    pub user: Template,
    pub password: Option<Password>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Password {
    Text(Template),
    /// A file for each tenant.
    File(Template),
}

/// Placements by name. `None`: has mistakes.
pub(super) type Plans = IndexMap<String, Option<Plan>>;

impl Resolver<'_, '_> {
    pub(super) fn placements(
        &mut self,
        files: &IndexMap<String, Option<PlacementFile>>,
        servers: &IndexMap<String, Option<ServerFile>>,
        tenants: &IndexMap<String, Option<TenantFile>>,
        privileged: &Arc<[Box<str>]>,
    ) -> Plans {
        let at = At::ROOT.key("placements");
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for placement in tenants
            .values()
            .flatten()
            .flat_map(|t| t.placement.iter().chain(t.placements.values()))
        {
            *counts.entry(placement).or_default() += 1;
        }
        let mut plans = IndexMap::with_capacity(files.len());
        for (name, file) in files {
            let at = at.key(&**name);
            let count = counts.get(&**name).copied().unwrap_or_default();
            let placement_name = self.name(&at, PlacementName::new(name));
            let plan = file.as_ref().and_then(|file| {
                let shard_map = self.shard_map(&at.key("shard_map"), file, tenants);
                let targets = self.targets(&at, file, servers);
                let sealable = Sealable::of(targets.as_deref().unwrap_or_default(), servers);
                let known = Known {
                    name: placement_name,
                    posture: self.posture(&at, file, &sealable),
                    servers: targets?,
                    shard_map,
                    privileged: privileged.clone(),
                    tenants: count,
                };
                self.placement(&at, file, known)
            });
            plans.insert(name.clone(), plan);
        }
        plans
    }

    /// The servers of a placement, from `server` or `servers`.
    fn targets(
        &mut self,
        at: &At<'_>,
        file: &PlacementFile,
        servers: &IndexMap<String, Option<ServerFile>>,
    ) -> Option<Vec<ServerName>> {
        let mut known = |at: &At<'_>, name: &str| {
            if servers.contains_key(name) {
                // An invalid name is reported where the server is defined.
                return ServerName::new(name).ok();
            }
            self.mistakes
                .add(at, format_args!("there is no server {name:?}"));
            None
        };
        match (&file.server, &file.servers) {
            (Some(name), None) => Some(vec![known(&at.key("server"), name)?]),
            (None, Some(names)) => {
                let at = at.key("servers");
                let targets: Vec<Option<ServerName>> = names
                    .iter()
                    .enumerate()
                    .map(|(i, name)| known(&at.index(i), name))
                    .collect();
                if names.is_empty() {
                    self.mistakes.add(&at, "needs at least one server");
                    return None;
                }
                for i in repeated(names) {
                    self.mistakes.add(&at.index(i), "is given twice");
                }
                targets.into_iter().collect()
            }
            _ => {
                self.mistakes
                    .add(at, "needs exactly one of server and servers");
                None
            }
        }
    }

    fn shard_map(
        &mut self,
        at: &At<'_>,
        file: &PlacementFile,
        tenants: &IndexMap<String, Option<TenantFile>>,
    ) -> HashMap<String, ServerName> {
        let Some(servers) = &file.servers else {
            if !file.shard_map.is_empty() {
                self.mistakes.add(at, "has no effect without servers");
            }
            return HashMap::new();
        };
        let servers: HashSet<&str> = servers.iter().map(|name| &**name).collect();
        let mut map = HashMap::with_capacity(file.shard_map.len());
        for (tenant, server) in &file.shard_map {
            if !tenants.contains_key(tenant) && !self.has_catalog {
                self.mistakes
                    .add(&at.key(&**tenant), "there is no such tenant");
            }
            if !servers.contains(&**server) {
                let message = format_args!("{server:?} is not one of the placement's servers");
                self.mistakes.add(&at.key(&**tenant), message);
            } else if let Ok(server) = ServerName::new(server) {
                map.insert(tenant.clone(), server);
            }
        }
        map
    }

    #[expect(clippy::too_many_lines, reason = "a line for each setting")]
    fn placement(&mut self, at: &At<'_>, file: &PlacementFile, known: Known) -> Option<Plan> {
        let posture = known.posture;
        let tier = self.required(at, "tier", file.tier);
        let database = self.required(at, "database", file.database.as_deref());
        let database = database.and_then(|text| self.template(&at.key("database"), text));
        let schemas = file.schema.as_ref().map_or(&[][..], SchemaFile::names);
        let schemas: Vec<_> = schemas
            .iter()
            .map(|text| self.template(&at.key("schema"), text))
            .collect();
        match tier {
            Some(Tier::Schema) if schemas.is_empty() => {
                self.mistakes
                    .add(&at.key("schema"), "is required in tier schema");
            }
            Some(tier) if tier != Tier::Schema && file.schema.is_some() => {
                let message = format_args!("has no meaning in tier {tier}, only in tier schema");
                self.mistakes.add(&at.key("schema"), message);
            }
            _ => {}
        }
        let context = self.context(&at.key("context"), &file.context);
        if tier == Some(Tier::Pool) && file.context.is_empty() {
            let message = "is required in tier pool: without it nothing tells tenants apart";
            self.mistakes.add(&at.key("context"), message);
        }
        let guard = self.guard(at, file, posture);
        let seal_tenant = self.seal_tenant(at, file, posture);
        let login = self.required(at, "login", file.login.as_ref());
        let login = login.and_then(|login| self.login(&at.key("login"), login));
        let read_only = file.read_only_login.as_ref();
        let read_only = read_only.and_then(|login| self.login(&at.key("read_only_login"), login));
        let pool_size = self.count(&at.key("pool").key("size"), file.pool.size, MAX_CONNECTIONS);
        let pool_reserve = self.reserve(&at.key("pool").key("reserve"), file, known.tenants);
        let pool_min = self.pool_min(&at.key("pool").key("min"), file);
        let limits = at.key("limits");
        let max_clients = self.optional_count(&limits.key("clients"), file.limits.clients);
        let max_active = self.optional_count(&limits.key("active"), file.limits.active);
        let max_waiting = self.optional_count(&limits.key("waiting"), file.limits.waiting);
        let rates = self.rates(
            &limits,
            file.limits.statements_per_second,
            file.limits.bytes_per_second,
        );
        let statements = self.count(
            &limits.key("statements"),
            file.limits.statements,
            MAX_STATEMENTS,
        );
        let transaction = TransactionLimits {
            savepoints: self.locks(&limits.key("savepoints"), file.limits.savepoints, file.tier),
            objects: self.locks(&limits.key("objects"), file.limits.objects, file.tier),
            statements: statements.unwrap_or_default(),
            statement_memory: usize::try_from(file.limits.statement_memory.0).unwrap_or(usize::MAX),
        };

        let login = login?;
        let context = context?;
        let placement = Placement {
            name: known.name?,
            tier: tier?,
            servers: known.servers,
            pooling: file.pooling,
            posture,
            privileged: known.privileged.clone(),
            user_variables: self.user_variables(at, file, guard, &context),
            guard,
            allow: self.allow(at, file, guard),
            // Nothing of a tenant is in its name.
            shares_role: login.user.fill(|_| None).is_ok(),
            pool: PoolLimits {
                size: pool_size?,
                reserve: pool_reserve?,
                min: pool_min,
            },
            reuse: file.pool.reuse,
            tolerate: file.pool.tolerate.iter().cloned().collect(),
            max_clients,
            max_active,
            max_waiting,
            rates,
            transaction,
            provision: Arc::new(self.provision(&at.key("provision"), file)),
            tenants: known.tenants,
        };
        Some(Plan {
            placement: Arc::new(placement),
            shard_map: known.shard_map,
            database: database?,
            schemas: schemas.into_iter().collect::<Option<_>>()?,
            login,
            read_only,
            startup: startup(&context, posture),
            context,
            timeouts: file.timeouts,
            log: file.log,
            weight: self.weight(&at.key("weight"), file.weight),
            seal_tenant,
        })
    }

    /// A limit of what one transaction locks. Without one in the file it is for those that share a
    /// server.
    fn locks(&mut self, at: &At<'_>, count: Option<Count>, tier: Option<Tier>) -> Option<u32> {
        match count {
            Some(Count(0)) => None,
            Some(count) => self
                .count(at, count, MAX_LOCKS)
                .and_then(|count| u32::try_from(count).ok()),
            None => (tier != Some(Tier::Instance)).then_some(DEFAULT_LOCKS),
        }
    }

    fn guard(&mut self, at: &At<'_>, file: &PlacementFile, posture: Posture) -> bool {
        if file.guard.is_some() && posture != Posture::Sealed {
            self.mistakes.add(
                &at.key("guard"),
                "has no effect without posture: sealed; posture: guarded is the guard, posture: plain goes without",
            );
        }
        posture >= Posture::Guarded && file.guard != Some(false)
    }

    fn allow(&mut self, at: &At<'_>, file: &PlacementFile, guard: bool) -> BTreeSet<Shared> {
        if !file.allow.is_empty() && !guard {
            let message = "has no effect without posture: guarded or sealed: everything is allowed";
            self.mistakes.add(&at.key("allow"), message);
        }
        file.allow.iter().copied().collect()
    }

    /// Returned are the names in lower case.
    fn user_variables(
        &mut self,
        at: &At<'_>,
        file: &PlacementFile,
        guard: bool,
        context: &[(String, Template)],
    ) -> Arc<[Box<str>]> {
        let at = at.key("user_variables");
        if !file.user_variables.is_empty() && (!guard || context.is_empty()) {
            let message = "has no effect without context and posture: guarded or sealed: every variable may be set";
            self.mistakes.add(&at, message);
        }
        let mut names = BTreeSet::new();
        for (position, name) in file.user_variables.iter().enumerate() {
            let lower = name.to_ascii_lowercase();
            if !is_custom_variable(name) {
                let message = "must be a variable of an application, such as app.user_id";
                self.mistakes.add(&at.index(position), message);
            } else if context.iter().any(|(own, _)| *own == lower) {
                let message = "is a variable of the context, which only pgtenant sets";
                self.mistakes.add(&at.index(position), message);
            }
            names.insert(lower.into());
        }
        names.into_iter().collect()
    }

    /// Without one in the file: the strongest that the databases are prepared for, which is what a
    /// server with `seal` says of its own. Who trusts tenants' SQL must say so.
    fn posture(&mut self, at: &At<'_>, file: &PlacementFile, sealable: &Sealable) -> Posture {
        let at = at.key("posture");
        match (file.posture, &*sealable.without) {
            // The channels and locks of a database are common to its schemas, too.
            (Some(Posture::Guarded), _) if file.tier == Some(Tier::Schema) => {}
            (Some(_), _) if file.context.is_empty() => {
                let message = "has no meaning without context: there is nothing to protect";
                self.mistakes.add(&at, message);
            }
            (Some(Posture::Sealed), without) => {
                for server in without {
                    let message = format_args!("needs servers.{server}.seal");
                    self.mistakes.add(&at, message);
                }
            }
            (Some(Posture::Plain), _) => self.mistakes.warn(
                &at,
                "plain trusts whoever logs in as one of the placement's tenants with the context of all of them: functions and code may set it",
            ),
            (Some(_), _) => {}
            (None, _) if file.context.is_empty() => return Posture::Plain,
            (None, _) if !sealable.some => return Posture::Guarded,
            (None, []) => return Posture::Sealed,
            (None, [without, ..]) => {
                let message = format_args!(
                    "is required: servers.{without} has no seal, and others of the placement have one"
                );
                self.mistakes.add(&at, message);
            }
        }
        file.posture.unwrap_or(Posture::Plain)
    }

    fn seal_tenant(
        &mut self,
        at: &At<'_>,
        file: &PlacementFile,
        posture: Posture,
    ) -> Option<Template> {
        let at = at.key("seal_tenant");
        if posture == Posture::Sealed {
            let text = file.seal_tenant.as_deref().unwrap_or("{tenant}");
            return self.template(&at, text);
        }
        if file.seal_tenant.is_some() {
            self.mistakes
                .add(&at, "has no effect without posture: sealed");
        }
        None
    }

    fn reserve(&mut self, at: &At<'_>, file: &PlacementFile, tenants: usize) -> Option<usize> {
        match file.pool.reserve {
            None if tenants > 1 || self.has_catalog => Some(DEFAULT_RESERVE),
            None => Some(0),
            Some(count) if count.0 == 0 => Some(0),
            Some(count) => self.count(at, count, MAX_CONNECTIONS),
        }
    }

    /// How many connections each pool keeps; 0 if it is a mistake.
    fn pool_min(&mut self, at: &At<'_>, file: &PlacementFile) -> usize {
        let min = file.pool.min;
        if min == Count(0) {
            return 0;
        }
        if file.pooling == Pooling::Session && !file.pool.reuse {
            self.mistakes.add(at, NO_MINIMUM);
        } else if min.0 > file.pool.size.0 {
            self.mistakes.add(at, "must be at most pool.size");
        }
        self.count(at, min, MAX_CONNECTIONS).unwrap_or_default()
    }

    pub(super) fn template(&mut self, at: &At<'_>, text: &str) -> Option<Template> {
        Template::parse(text)
            .map_err(|error| self.mistakes.add(at, error))
            .ok()
    }

    fn login(&mut self, at: &At<'_>, file: &LoginFile) -> Option<PlanLogin> {
        let user = self.required(at, "user", file.user.as_deref());
        let user = user.and_then(|text| self.template(&at.key("user"), text));
        let password = match (&file.password, &file.password_file) {
            (None, None) => None,
            (Some(text), None) => {
                let at = at.key("password");
                Some(Password::Text(self.template(&at, text.expose())?))
            }
            (None, Some(file)) => {
                let at = at.key("password_file");
                let file = self.template(&at, file)?;
                Some(self.password_of_all(&at, file)?)
            }
            (Some(_), Some(_)) => {
                self.mistakes
                    .add(at, "needs only one of password and password_file");
                return None;
            }
        };
        Some(PlanLogin {
            user: user?,
            password,
        })
    }

    /// One file for all tenants is read once, here.
    fn password_of_all(&mut self, at: &At<'_>, file: Template) -> Option<Password> {
        let Ok(name) = file.fill(|_| None) else {
            return Some(Password::File(file));
        };
        match self.read_password(&name) {
            Ok(password) => {
                let text = template::escape(password.expose());
                Some(Password::Text(self.template(at, &text)?))
            }
            Err(error) => {
                self.mistakes.add(at, error);
                None
            }
        }
    }

    /// The password in a file, without the newline that editors put at the end.
    pub(super) fn read_password(&self, file: &str) -> Result<Secret, String> {
        let path = self.path(file);
        let say = |what: &dyn std::fmt::Display| format!("{}: {what}", path.display());
        let mut text = String::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_PASSWORD_FILE + 1).read_to_string(&mut text))
            .map_err(|error| say(&error))?;
        if text.len() as u64 > MAX_PASSWORD_FILE {
            return Err(say(&"is too long for a password"));
        }
        let password = text.strip_suffix('\n').unwrap_or(&text);
        let password = password.strip_suffix('\r').unwrap_or(password);
        match password_mistake(password) {
            Some(mistake) => Err(say(&mistake)),
            None => Ok(Secret::new(password.to_owned())),
        }
    }

    fn context(
        &mut self,
        at: &At<'_>,
        variables: &IndexMap<String, String>,
    ) -> Option<Vec<(String, Template)>> {
        let mut context = Vec::with_capacity(variables.len());
        let mut seen = HashSet::new();
        let mut whole = true;
        for (name, text) in variables {
            let at = at.key(&**name);
            let lower = name.to_ascii_lowercase();
            if lower.starts_with("pgtenant.") {
                self.mistakes.add(
                    &at,
                    "must not begin with pgtenant: such variables are pgtenant's own",
                );
                whole = false;
            } else if !is_custom_variable(name) {
                let message = "must be a variable of an application, such as app.tenant_id: \
                               names of letters, digits and '_', with a dot between them";
                self.mistakes.add(&at, message);
                whole = false;
            } else if !seen.insert(lower.clone()) {
                self.mistakes
                    .add(&at, "is given twice: upper and lower case are the same");
                whole = false;
            }
            match self.template(&at, text) {
                Some(template) => context.push((lower, template)),
                None => whole = false,
            }
        }
        whole.then_some(context)
    }
}

/// A custom variable as `valid_custom_variable_name` of PostgreSQL's guc.c has it, in ASCII.
/// Built-in parameters have no dot, and are not what tells tenants apart.
fn is_custom_variable(name: &str) -> bool {
    let is_identifier = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$')
    };
    name.contains('.') && name.split('.').all(is_identifier)
}

/// The pinned parameters, and every variable of the context as `''`: what a reset connection
/// carries. A policy must therefore deny on `''` as it does on NULL.
fn startup(context: &[(String, Template)], posture: Posture) -> Vec<(String, String)> {
    let sealed = (posture == Posture::Sealed).then(|| (SEALED_VARIABLE.to_owned(), String::new()));
    let pinned = PINNED
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let empty = context
        .iter()
        .map(|(name, _)| (name.clone(), String::new()));
    let mut startup: Vec<_> = pinned.chain(empty).chain(sealed).collect();
    startup.sort();
    startup
}
