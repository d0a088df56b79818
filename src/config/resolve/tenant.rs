//! Tenants: their routes, and the proof that no two of them share a place by mistake.

use std::collections::HashMap;
use std::sync::Arc;

use indexmap::IndexMap;

use super::acts_for::ActsFor;
use super::placement::{Password, Plan, PlanLogin, Plans};
use super::places::{Conflict, Places};
use super::timeouts::Layers;
use super::{
    MAX_CONNECTIONS, MAX_CONTEXT_VALUE, NO_MINIMUM, Resolver, name_mistake, password_mistake,
    rendezvous,
};
use crate::config::file::TenantFile;
use crate::config::outline::At;
use crate::config::said::Said;
use crate::config::template::is_name;
use crate::config::units::{Count, Moment};
use crate::config::{
    Identify, Lifecycle, Login, PoolKey, Route, Seal, Secret, Sharded, State, Template, Tenant,
    TenantLimits, Terms, Users,
};
use crate::id::{PlacementName, ServerName, TenantId};
use crate::sql::quoted_if_needed;

/// The database names of the admin console, so not those of a tenant.
pub(super) const CONSOLE: [&str; 2] = ["pgtenant", "pgbouncer"];

/// The placeholder that every tenant has.
const TENANT: &str = "tenant";

/// What all tenants are looked at with.
pub(super) struct Rules {
    pub plans: Plans,
    pub layers: Layers,
    pub identify: Identify,
    pub has_console: bool,
    /// Most clients of a tenant that is given no limit.
    pub most_clients: Option<usize>,
    pub acts_for: Vec<ActsFor>,
}

impl Resolver<'_, '_> {
    pub(super) fn tenants(
        &mut self,
        files: &IndexMap<String, Option<TenantFile>>,
        rules: &Rules,
        places: &mut Places,
    ) -> Sharded<Arc<Tenant>> {
        let at = At::ROOT.key("tenants");
        let mut tenants = Sharded::default();
        for (name, file) in files {
            let at = at.key(&**name);
            for tenant in self.tenant(&at, name, file.as_ref(), None, rules, places) {
                tenants.insert(Arc::new(tenant));
            }
        }
        self.minimums_of_shared_pools(&tenants);
        tenants
    }

    /// One tenant, or each of its services. `users`: who may log in, where that is known already.
    pub(super) fn tenant(
        &mut self,
        at: &At<'_>,
        name: &str,
        file: Option<&TenantFile>,
        users: Option<Users>,
        rules: &Rules,
        places: &mut Places,
    ) -> Vec<Tenant> {
        let id = self.name(at, TenantId::new(name));
        if rules.has_console && CONSOLE.contains(&name) {
            let message = "the name is taken by the database of the admin console";
            self.mistakes.add(at, message);
        }
        let Some(file) = file else { return Vec::new() };
        let users = match users {
            Some(users) => users,
            None => {
                let separator = rules.identify.by_user;
                self.users(&at.key("users"), &file.users, separator).into()
            }
        };
        self.attributes(&at.key("attributes"), file);
        let settings = self.own_settings(&at.key("settings"), &file.settings);
        let lifecycle = self.lifecycle(at, file);
        let mut limits = self.tenant_limits(at, file, rules);
        let weight = file.weight;
        let weight = weight.map(|weight| self.weight(&at.key("weight"), weight));
        let mut tenants = Vec::new();
        for (service, plan) in self.plans_of(at, file, &rules.plans) {
            limits.weight = weight.or(plan.map(|plan| plan.weight)).unwrap_or(1);
            let (Some(name), Some(plan)) = (&id, plan) else {
                continue;
            };
            let service = service.map(|service| (name.clone(), service.into()));
            let known = Known {
                at,
                name,
                service: service.as_ref(),
                limits: &limits,
                settings: &settings,
                state: lifecycle.now(),
            };
            let Some(route) = self.route_of(&known, file, plan, places) else {
                continue;
            };
            let (timeouts, own_timeouts) = rules.layers.of(
                route.pool.server.as_str(),
                route.placement.tier,
                [plan.timeouts, file.timeouts],
            );
            let terms = Terms {
                limits,
                timeouts,
                slow: (rules.layers).slow(route.pool.server.as_str(), [plan.log, file.log]),
                own_timeouts,
                settings: settings.clone().into(),
                said: Said::of_tenant(file),
            };
            tenants.push(Tenant {
                id: known.id(),
                users: users.clone(),
                terms: places.terms(terms),
                route: Arc::new(route),
                service,
                lifecycle: places.lifecycle(lifecycle.clone()),
                attributes: places.attributes(file),
                listed: None,
            });
        }
        tenants
    }

    fn tenant_limits(&mut self, at: &At<'_>, file: &TenantFile, rules: &Rules) -> TenantLimits {
        let at = at.key("limits");
        let clients = self.optional_count(&at.key("clients"), file.limits.clients);
        TenantLimits {
            clients: clients.or(rules.most_clients),
            active: self.optional_count(&at.key("active"), file.limits.active),
            waiting: self.optional_count(&at.key("waiting"), file.limits.waiting),
            rates: self.rates(
                &at,
                file.limits.statements_per_second,
                file.limits.bytes_per_second,
            ),
            ..TenantLimits::default()
        }
    }

    fn lifecycle(&mut self, at: &At<'_>, file: &TenantFile) -> Lifecycle {
        if file.state == State::Deleted && !self.is_catalog {
            let message = "a tenant of the file is deleted by taking its entry out";
            self.mistakes.add(&at.key("state"), message);
        }
        for (key, is_given) in [
            ("reason", file.reason.is_some()),
            ("until", file.until.is_some()),
        ] {
            if is_given && file.state == State::Active && !self.is_catalog {
                let message = "has no effect while the tenant is active";
                self.mistakes.add(&at.key(key), message);
            }
        }
        Lifecycle {
            state: file.state,
            reason: file.reason.as_deref().map(Into::into),
            until: file.until.map(|Moment(time)| time),
            expires: file.expires.map(|Moment(time)| time),
        }
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
        let login = self.login_of(known, plan)?;
        let route = self.route(at, name, file, (plan, login), places)?;
        let mut route = self.sealed(known, route, file, plan, places)?;
        if let Some(min) = file.pool.min {
            let min = self.tenant_min(&at.key("pool").key("min"), min, limits, &route);
            route.pool_min = Some(min);
        }
        let usual = match known.state {
            State::ReadOnly => {
                self.route(at, name, file, (plan, &plan.login), places)?
                    .pool
            }
            _ => route.pool.clone(),
        };
        // Not in the usual pool: it is not by having other settings that two tenants have nothing
        // in common.
        if !known.settings.is_empty() {
            let mut pool = PoolKey::clone(&route.pool);
            pool.startup.extend_from_slice(known.settings);
            route.pool = places.pool(pool);
        }
        self.claim((at, &known.id()), &route, &usual, places);
        Some(route)
    }

    /// As whom it is served in its state.
    fn login_of<'p>(&mut self, known: &Known<'_>, plan: &'p Plan) -> Option<&'p PlanLogin> {
        match (known.state, &plan.read_only) {
            (State::ReadOnly, None) => {
                let placement = &plan.placement.name;
                let message = format_args!(
                    "needs placements.{placement}.read_only_login: a role that may only read"
                );
                self.mistakes.add(&known.at.key("state"), message);
                None
            }
            (State::ReadOnly, Some(login)) => Some(login),
            _ => Some(&plan.login),
        }
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
    fn minimums_of_shared_pools(&mut self, tenants: &Sharded<Arc<Tenant>>) {
        let with_minimum = |tenant: &&Arc<Tenant>| tenant.route.pool_min.is_some();
        if !tenants.values().any(|tenant| with_minimum(&tenant)) {
            return;
        }
        let mut owners: HashMap<&PoolKey, Vec<&TenantId>> = HashMap::new();
        for tenant in tenants.values() {
            let owners = owners.entry(&*tenant.route.pool).or_default();
            owners.push(&tenant.id);
        }
        for tenant in tenants.values().filter(with_minimum) {
            let owners = owners.get(&*tenant.route.pool).into_iter().flatten();
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
        (plan, login): (&Plan, &PlanLogin),
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
        let user = fill.name("login.user", &login.user);
        let password = login
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
        let pool = places.pool(pool);
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
        // A server without one was reported with the placement.
        let PoolKey {
            server, database, ..
        } = &*route.pool;
        let seal = places.seals.get(server)?.clone();
        route.seal = Some(Box::new(Seal {
            tenant,
            key: places.seal_key(server, &seal, database),
            lifetime: seal.lifetime,
        }));
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
    fn claim(
        &mut self,
        (at, id): (&At<'_>, &TenantId),
        route: &Route,
        usual: &Arc<PoolKey>,
        places: &mut Places,
    ) {
        for conflict in places.claim(id, route, usual) {
            self.conflict(at, route, conflict, places);
        }
    }

    fn conflict(&mut self, at: &At<'_>, route: &Route, conflict: Conflict, places: &mut Places) {
        let placement = &route.placement.name;
        let pool = &route.pool;
        let message = match conflict {
            Conflict::Database(other) => format!(
                "has database {:?} of server {} in common with tenant {other}, and one of them \
                 must have it alone (is {{tenant}} missing in placements.{placement}.database?)",
                pool.database, pool.server,
            ),
            Conflict::Schema(other) => format!(
                "has schema {:?} in common with tenant {other} \
                 (is {{tenant}} missing in placements.{placement}.schema?)",
                route.schema.as_deref().unwrap_or_default(),
            ),
            Conflict::Seal(other) => format!(
                "is {:?} in the database like tenant {other}, and would see its rows \
                 (is {{tenant}} missing in placements.{placement}.seal_tenant?)",
                route.seal.as_ref().map_or("", |seal| &seal.tenant),
            ),
            Conflict::Context(other) => format!(
                "has the same context as tenant {other}, and would see its rows \
                 (is {{tenant}} missing in placements.{placement}.context?)",
            ),
            Conflict::PoolSize { first, size } => {
                let pair = (first.clone(), placement.clone());
                if places.sizes_differ.insert(pair) {
                    let placements = At::ROOT.key("placements");
                    let at = placements.key(placement.as_str());
                    let message = format_args!(
                        "must be {size} like that of placement {first}: they share server \
                         connections, because server, database, login and variables are the same",
                    );
                    self.mistakes.add(&at.key("pool").key("size"), message);
                }
                return;
            }
        };
        self.mistakes.add(at, message);
    }
}

/// A tenant, or one of its services.
#[derive(Clone, Copy)]
struct Known<'k> {
    at: &'k At<'k>,
    name: &'k TenantId,
    service: Option<&'k (TenantId, Box<str>)>,
    limits: &'k TenantLimits,
    /// Run-time parameters of its own.
    settings: &'k [(String, String)],
    /// The state it is in now.
    state: State,
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
