//! Tenants: their routes, and the proof that no two of them share a place by mistake.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use indexmap::IndexMap;

use super::placement::{Password, Plan, Plans};
use super::timeouts::Layers;
use super::{MAX_CONNECTIONS, NO_MINIMUM, Resolver, name_mistake, password_mistake, rendezvous};
use crate::config::file::TenantFile;
use crate::config::outline::At;
use crate::config::template::is_name;
use crate::config::units::Count;
use crate::config::{
    Identify, Login, PoolKey, Route, Seal, SealKey, Secret, Server, ServerSeal, Template, Tenant,
    TenantLimits, Tier,
};
use crate::id::{PlacementName, ServerName, TenantId};
use crate::sql::quoted_if_needed;

/// The database names of the admin console, so not those of a tenant.
pub(super) const CONSOLE: [&str; 2] = ["pgtenant", "pgbouncer"];

/// The placeholder that every tenant has.
const TENANT: &str = "tenant";

/// Longest value of a context variable, in bytes.
pub(super) const MAX_CONTEXT_VALUE: usize = 1024;

impl Resolver<'_, '_> {
    pub(super) fn tenants(
        &mut self,
        files: &IndexMap<String, Option<TenantFile>>,
        plans: &Plans,
        servers: &IndexMap<ServerName, Arc<Server>>,
        layers: &Layers<'_>,
        identify: &Identify,
        console: bool,
    ) -> HashMap<TenantId, Arc<Tenant>> {
        let at = At::ROOT.key("tenants");
        let sealed = servers.iter();
        let mut places = Places {
            keys: sealed
                .filter_map(|(name, server)| Some((name.clone(), server.seal.clone()?)))
                .collect(),
            ..Places::default()
        };
        let mut tenants = HashMap::with_capacity(files.len());
        for (name, file) in files {
            let at = at.key(&**name);
            let id = self.name(&at, TenantId::new(name));
            if console && CONSOLE.contains(&&**name) {
                self.mistakes.add(
                    &at,
                    "the name is taken by the database of the admin console",
                );
            }
            let Some(file) = file else { continue };
            let users = self.users(&at.key("users"), &file.users, identify.by_user);
            self.attributes(&at.key("attributes"), file);
            let limits_at = at.key("limits");
            let weight = file.weight;
            let weight = weight.map(|weight| self.weight(&at.key("weight"), weight));
            let mut limits = TenantLimits {
                clients: self.optional_count(&limits_at.key("clients"), file.limits.clients),
                active: self.optional_count(&limits_at.key("active"), file.limits.active),
                waiting: self.optional_count(&limits_at.key("waiting"), file.limits.waiting),
                rates: self.rates(
                    &limits_at,
                    file.limits.statements_per_second,
                    file.limits.bytes_per_second,
                ),
                ..TenantLimits::default()
            };
            for (service, plan) in self.plans_of(&at, file, plans) {
                limits.weight = weight.or(plan.map(|plan| plan.weight)).unwrap_or(1);
                let (Some(name), Some(plan)) = (&id, plan) else {
                    continue;
                };
                let service = service.map(|service| (name.clone(), service.into()));
                let known = Known {
                    at: &at,
                    name,
                    service: service.as_ref(),
                    limits: &limits,
                };
                let Some(route) = self.route_of(&known, file, plan, &mut places) else {
                    continue;
                };
                let (timeouts, own_timeouts) = layers.of(
                    route.pool.server.as_str(),
                    route.placement.tier,
                    [plan.timeouts, file.timeouts],
                );
                let tenant = Tenant {
                    id: known.id(),
                    users: users.clone(),
                    limits,
                    timeouts,
                    slow: layers.slow(route.pool.server.as_str(), [plan.log, file.log]),
                    own_timeouts,
                    route: Arc::new(route),
                    service,
                };
                tenants.insert(tenant.id.clone(), Arc::new(tenant));
            }
        }
        self.minimums_of_shared_pools(&tenants);
        tenants
    }

    /// The place of a tenant, or of one of its services.
    fn route_of(
        &mut self,
        known: &Known<'_>,
        file: &TenantFile,
        plan: &Plan,
        places: &mut Places,
    ) -> Option<Route> {
        let Known {
            at, name, limits, ..
        } = *known;
        let route = self.route(at, name, file, plan, places)?;
        let mut route = self.sealed(known, route, file, plan, places)?;
        if let Some(min) = file.pool.min {
            let min = self.tenant_min(&at.key("pool").key("min"), min, limits, &route);
            route.pool_min = Some(min);
        }
        self.claim(at, &known.id(), &route, places);
        Some(route)
    }

    /// How many connections the pool of one tenant keeps; 0 if it is a mistake.
    fn tenant_min(
        &mut self,
        at: &At<'_>,
        min: Count,
        limits: &TenantLimits,
        route: &Route,
    ) -> usize {
        if min == Count(0) {
            return 0;
        }
        let over = |most: Option<usize>| most.is_some_and(|most| min.0 > most as u64);
        if route.has_connections_of_their_own() {
            self.mistakes.add(at, NO_MINIMUM);
        } else if over(Some(route.placement.pool.size)) {
            self.mistakes
                .add(at, "must be at most pool.size of the placement");
        } else if over(limits.active) {
            self.mistakes.add(at, "must be at most limits.active");
        }
        self.count(at, min, MAX_CONNECTIONS).unwrap_or_default()
    }

    /// A minimum of one tenant means nothing where its server connections are other tenants', too.
    fn minimums_of_shared_pools(&mut self, tenants: &HashMap<TenantId, Arc<Tenant>>) {
        let with_minimum = |tenant: &&Arc<Tenant>| tenant.route.pool_min.is_some();
        if !tenants.values().any(|tenant| with_minimum(&tenant)) {
            return;
        }
        let mut owners: HashMap<&PoolKey, Vec<&TenantId>> = HashMap::new();
        for tenant in tenants.values() {
            let owners = owners.entry(&tenant.route.pool).or_default();
            owners.push(&tenant.id);
        }
        for tenant in tenants.values().filter(with_minimum) {
            let owners = owners.get(&tenant.route.pool).into_iter().flatten();
            let others = owners.filter(|other| ***other != tenant.id);
            let Some(other) = others.min() else { continue };
            let message = format_args!(
                "must be pool.min of the placement: the server connections are also those of tenant {other}"
            );
            let at = At::ROOT.key("tenants");
            let at = at.key(tenant.id.as_str());
            self.mistakes.add(&at.key("pool").key("min"), message);
        }
    }

    /// Where it lives, by the name of the service where it has several. Within: None is a mistake.
    fn plans_of<'p, 'f>(
        &mut self,
        at: &At<'_>,
        file: &'f TenantFile,
        plans: &'p Plans,
    ) -> Vec<(Option<&'f str>, Option<&'p Plan>)> {
        if file.placements.is_empty() {
            let name = self.required(at, "placement", file.placement.as_deref());
            let plan = name.and_then(|name| self.plan(&at.key("placement"), name, plans));
            return vec![(None, plan)];
        }
        for (key, is_given) in [
            ("placement", file.placement.is_some()),
            ("server", file.server.is_some()),
        ] {
            if is_given {
                let message = "has no meaning beside placements";
                self.mistakes.add(&at.key(key), message);
            }
        }
        let placements = file.placements.iter();
        placements
            .map(|(service, name)| {
                let at = at.key("placements");
                let at = at.key(&**service);
                self.name(&at, TenantId::new(service));
                (Some(service.as_str()), self.plan(&at, name, plans))
            })
            .collect()
    }

    fn plan<'p>(&mut self, at: &At<'_>, name: &str, plans: &'p Plans) -> Option<&'p Plan> {
        if let Some(plan) = plans.get(name) {
            return plan.as_ref();
        }
        let message = format_args!("there is no placement {name:?}");
        self.mistakes.add(at, message);
        None
    }

    fn attributes(&mut self, at: &At<'_>, file: &TenantFile) {
        for name in file.attributes.keys() {
            if name == TENANT {
                self.mistakes
                    .add(&at.key(&**name), "is the tenant's id and cannot be changed");
            } else if !is_name(name) {
                let message = "the name must be letters, digits, '_' and '-'";
                self.mistakes.add(&at.key(&**name), message);
            }
        }
    }

    pub(super) fn route(
        &mut self,
        at: &At<'_>,
        id: &TenantId,
        file: &TenantFile,
        plan: &Plan,
        places: &mut Places,
    ) -> Option<Route> {
        let placement = &plan.placement.name;
        let mut fill = Filling {
            resolver: self,
            at,
            id,
            file,
            placement,
        };
        let database = fill.name("database", &plan.database);
        let schemas = plan.schemas.iter();
        let schemas: Vec<_> = schemas.map(|template| fill.schema(template)).collect();
        let user = fill.name("login.user", &plan.user);
        let password = plan
            .password
            .as_ref()
            .map(|password| fill.password(password, places));
        let context: Vec<_> = plan
            .context
            .iter()
            .map(|(name, template)| Some((name.clone(), fill.context(name, template)?)))
            .collect();
        let server = self.server_of(at, id, file, plan);

        let password = match password {
            Some(password) => Some(password?),
            None => None,
        };
        let schemas: Vec<String> = schemas.into_iter().collect::<Option<_>>()?;
        let mut startup = plan.startup.clone();
        if !schemas.is_empty() {
            let path: Vec<_> = schemas
                .iter()
                .map(|schema| quoted_if_needed(schema))
                .collect();
            startup.push(("search_path".to_owned(), path.join(", ")));
        }
        let pool = PoolKey {
            server: server?,
            database: database?,
            login: places.login(Login {
                user: user?,
                password,
            }),
            startup,
            has_own: false,
            application: None,
        };
        Some(Route {
            placement: Arc::clone(&plan.placement),
            pool,
            pool_min: None,
            schema: schemas.into_iter().next(),
            context: context.into_iter().collect::<Option<_>>()?,
            seal: None,
            pooling: file.pooling.unwrap_or(plan.placement.pooling),
        })
    }

    /// The route with what its context is sealed with, where it is.
    fn sealed(
        &mut self,
        known: &Known<'_>,
        mut route: Route,
        file: &TenantFile,
        plan: &Plan,
        places: &mut Places,
    ) -> Option<Route> {
        let Some(template) = &plan.seal_tenant else {
            return Some(route);
        };
        let placement = &plan.placement.name;
        let Known { at, name: id, .. } = *known;
        let mut fill = Filling {
            resolver: self,
            at,
            id,
            file,
            placement,
        };
        let tenant = fill.context("seal_tenant", template)?;
        if tenant.contains('|') {
            fill.wrong("seal_tenant", &tenant, "must not hold '|'");
            return None;
        }
        if let Some(other) = places.seal(&route.pool, &tenant, &known.id()) {
            let message = format_args!(
                "is {tenant:?} in the database like tenant {other}, and would see its rows \
                 (is {{tenant}} missing in placements.{placement}.seal_tenant?)",
            );
            self.mistakes.add(at, message);
        }
        // A server without one was reported with the placement.
        let seal = places.keys.get(&route.pool.server)?;
        route.seal = Some(Seal {
            tenant,
            key: SealKey::derive(&seal.key, &route.pool.database),
            lifetime: seal.lifetime,
        });
        Some(route)
    }

    /// Pinned, else by the map, else by the hash.
    fn server_of(
        &mut self,
        at: &At<'_>,
        id: &TenantId,
        file: &TenantFile,
        plan: &Plan,
    ) -> Option<ServerName> {
        let servers = &plan.placement.servers;
        let Some(pinned) = &file.server else {
            let mapped = plan.shard_map.get(id.as_str());
            return mapped.or_else(|| rendezvous(servers, id)).cloned();
        };
        let server = servers.iter().find(|server| server.as_str() == pinned);
        if server.is_none() {
            let placement = &plan.placement.name;
            let message = format_args!("{pinned:?} is not a server of placement {placement}");
            self.mistakes.add(&at.key("server"), message);
        }
        server.cloned()
    }

    /// Notes the place of a tenant, and what of it is not its own although the tier says so. All
    /// of this is a `{tenant}` forgotten in a template, and would show one tenant's rows to
    /// another.
    fn claim(&mut self, at: &At<'_>, id: &TenantId, route: &Route, places: &mut Places) {
        let placement = &route.placement.name;
        let tier = route.placement.tier;
        let pool = &route.pool;

        let by_context = tier == Tier::Pool || tier == Tier::Instance && !route.context.is_empty();
        let own_database = !by_context && tier != Tier::Schema;
        if let Some(other) = places.database(pool, id, own_database) {
            let message = format_args!(
                "has database {:?} of server {} in common with tenant {other}, and one of them \
                 must have it alone (is {{tenant}} missing in placements.{placement}.database?)",
                pool.database, pool.server,
            );
            self.mistakes.add(at, message);
        }
        if let Some(schema) = &route.schema
            && let Some(other) = places.schema(pool, schema, id)
        {
            let message = format_args!(
                "has schema {schema:?} in common with tenant {other} \
                 (is {{tenant}} missing in placements.{placement}.schema?)",
            );
            self.mistakes.add(at, message);
        }
        let number = self.pool_number(route, places);
        if by_context && let Some(other) = places.context(number, route, id) {
            let message = format_args!(
                "has the same context as tenant {other}, and would see its rows \
                 (is {{tenant}} missing in placements.{placement}.context?)",
            );
            self.mistakes.add(at, message);
        }
    }

    /// A pool that two placements share can have one size only.
    fn pool_number(&mut self, route: &Route, places: &mut Places) -> usize {
        let placement = &route.placement;
        let next = places.pools.len();
        let (number, first, size) = match places.pools.entry(route.pool.clone()) {
            Entry::Vacant(entry) => {
                entry.insert((next, placement.name.clone(), placement.pool.size));
                return next;
            }
            Entry::Occupied(entry) => entry.get().clone(),
        };
        if size != placement.pool.size
            && places
                .sizes_differ
                .insert((first.clone(), placement.name.clone()))
        {
            let placements = At::ROOT.key("placements");
            let at = placements.key(placement.name.as_str());
            let message = format_args!(
                "must be {size} like that of placement {first}: they share server connections, \
                 because server, database, login and variables are the same",
            );
            self.mistakes.add(&at.key("pool").key("size"), message);
        }
        number
    }
}

/// A tenant, or one of its services.
#[derive(Clone, Copy)]
struct Known<'k> {
    at: &'k At<'k>,
    name: &'k TenantId,
    service: Option<&'k (TenantId, Box<str>)>,
    limits: &'k TenantLimits,
}

impl Known<'_> {
    fn id(&self) -> TenantId {
        match self.service {
            Some((name, service)) => name.in_service(service),
            None => self.name.clone(),
        }
    }
}

/// Fills the templates of a placement for one tenant.
struct Filling<'f, 't, 'd> {
    resolver: &'f mut Resolver<'t, 'd>,
    at: &'f At<'f>,
    id: &'f TenantId,
    file: &'f TenantFile,
    placement: &'f PlacementName,
}

impl Filling<'_, '_, '_> {
    fn text(&mut self, key: &str, template: &Template) -> Option<String> {
        let value = |name: &str| match name {
            TENANT => Some(self.id.as_str()),
            name => self.file.attributes.get(name).map(|value| &**value),
        };
        match template.fill(value) {
            Ok(text) => Some(text),
            Err(missing) => {
                let message = format!(
                    "has no attribute {:?}, which placements.{}.{key} asks for",
                    missing.0, self.placement
                );
                self.resolver.mistakes.add(self.at, message);
                None
            }
        }
    }

    /// `mistake` is the end of a sentence that begins with the setting.
    fn wrong(&mut self, key: &str, value: &str, mistake: &str) {
        let message = format!(
            "placements.{}.{key} gives {value:?}: {mistake}",
            self.placement
        );
        self.resolver.mistakes.add(self.at, message);
    }

    fn name(&mut self, key: &str, template: &Template) -> Option<String> {
        let name = self.text(key, template)?;
        if let Some(mistake) = name_mistake(&name) {
            self.wrong(key, &name, &mistake);
            return None;
        }
        Some(name)
    }

    /// `search_path` would take `"$user"` for the role's name, and schemas of the system are no
    /// tenant's.
    fn schema(&mut self, template: &Template) -> Option<String> {
        let schema = self.name("schema", template)?;
        if schema == "$user" || schema.starts_with("pg_") || schema == "information_schema" {
            self.wrong("schema", &schema, "must not be a schema of the system");
            return None;
        }
        Some(schema)
    }

    fn password(&mut self, password: &Password, places: &mut Places) -> Option<Secret> {
        let template = match password {
            Password::Text(template) => template,
            Password::File(template) => return self.password_file(template, places),
        };
        let text = self.text("login.password", template)?;
        if let Some(mistake) = password_mistake(&text) {
            let message = format!("placements.{}.login.password {mistake}", self.placement);
            self.resolver.mistakes.add(self.at, message);
            return None;
        }
        Some(Secret::new(text))
    }

    fn password_file(&mut self, template: &Template, places: &mut Places) -> Option<Secret> {
        let name = self.text("login.password_file", template)?;
        if let Some(known) = places.password_files.get(&name) {
            return known.clone();
        }
        let password = self.resolver.read_password(&name);
        let password = password
            .map_err(|error| {
                let placement = self.placement;
                let message = format!("placements.{placement}.login.password_file: {error}");
                self.resolver.mistakes.add(self.at, message);
            })
            .ok();
        places.password_files.insert(name, password.clone());
        password
    }

    /// Printable ASCII only: a server converts the value from whatever encoding the client of the
    /// moment has chosen.
    fn context(&mut self, variable: &str, template: &Template) -> Option<String> {
        let key = match variable {
            "seal_tenant" => variable.to_owned(),
            _ => format!("context.{variable}"),
        };
        let value = self.text(&key, template)?;
        let printable = |c: char| c.is_ascii_graphic() || c == ' ';
        let mistake = if value.is_empty() {
            "must not be empty"
        } else if value.len() > MAX_CONTEXT_VALUE {
            "must be at most 1024 bytes long"
        } else if !value.chars().all(printable) {
            "must be printable ASCII"
        } else {
            return Some(value);
        };
        self.wrong(&key, &value, mistake);
        None
    }
}

/// What is taken so far, by whom.
#[derive(Default)]
pub(super) struct Places {
    logins: HashSet<Arc<Login>>,
    /// Read once each; `None`: reported.
    password_files: HashMap<String, Option<Secret>>,
    /// Of each database, a tenant in it, and whether that one must have it alone.
    databases: HashMap<(ServerName, String), (TenantId, bool)>,
    schemas: HashMap<(ServerName, String, String), TenantId>,
    /// Number of each pool, and the placement that it has its size from.
    pools: HashMap<PoolKey, (usize, PlacementName, usize)>,
    sizes_differ: HashSet<(PlacementName, PlacementName)>,
    /// What each server's contexts are sealed with.
    keys: HashMap<ServerName, ServerSeal>,
    seals: HashMap<(ServerName, String, String), TenantId>,
    /// By pool number and values in the order of the variables' names.
    contexts: HashMap<(usize, Vec<String>), TenantId>,
}

impl Places {
    /// The one `Arc` of equal logins.
    fn login(&mut self, login: Login) -> Arc<Login> {
        if let Some(known) = self.logins.get(&login) {
            return Arc::clone(known);
        }
        let login = Arc::new(login);
        self.logins.insert(Arc::clone(&login));
        login
    }

    /// Another tenant in this database, if one of the two must not have company.
    fn database(&mut self, pool: &PoolKey, id: &TenantId, alone: bool) -> Option<TenantId> {
        match self
            .databases
            .entry((pool.server.clone(), pool.database.clone()))
        {
            Entry::Vacant(entry) => {
                entry.insert((id.clone(), alone));
                None
            }
            Entry::Occupied(mut entry) => {
                let (other, other_alone) = entry.get().clone();
                if alone && !other_alone {
                    entry.insert((id.clone(), alone));
                }
                (alone || other_alone).then_some(other)
            }
        }
    }

    fn schema(&mut self, pool: &PoolKey, schema: &str, id: &TenantId) -> Option<TenantId> {
        let place = (
            pool.server.clone(),
            pool.database.clone(),
            schema.to_owned(),
        );
        first_of(self.schemas.entry(place), id)
    }

    fn seal(&mut self, pool: &PoolKey, tenant: &str, id: &TenantId) -> Option<TenantId> {
        let place = (
            pool.server.clone(),
            pool.database.clone(),
            tenant.to_owned(),
        );
        first_of(self.seals.entry(place), id)
    }

    fn context(&mut self, pool: usize, route: &Route, id: &TenantId) -> Option<TenantId> {
        let mut variables: Vec<_> = route.context.iter().collect();
        variables.sort();
        let values = variables
            .into_iter()
            .map(|(_, value)| value.clone())
            .collect();
        first_of(self.contexts.entry((pool, values)), id)
    }
}

/// Who had the place before `id`, which has it now if nobody did.
fn first_of<K>(place: Entry<'_, K, TenantId>, id: &TenantId) -> Option<TenantId> {
    match place {
        Entry::Occupied(entry) => Some(entry.get().clone()),
        Entry::Vacant(entry) => {
            entry.insert(id.clone());
            None
        }
    }
}
