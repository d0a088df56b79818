//! Applications: as whom they log in, for whom they may act, and the proof that no login reads both
//! as a tenant's and as an application's.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use indexmap::IndexMap;

use super::acts_for::{ActsFor, says_otherwise};
use super::placement::Plan;
use super::tenant::{CONSOLE, Rules};
use super::{Resolver, Users};
use crate::config::file::{
    ActsForFile, ApplicationFile, ChooseFile, ChoosingFunctionFile, ClientLogFile,
    ClientTimeoutsFile, FunctionScope, TenantFile, ThoseFile,
};
use crate::config::outline::At;
use crate::config::said::Said;
use crate::config::{
    Affixes, Application, Called, Choices, Login, PoolKey, Pooling, Route, Secret, Sharded, Tenant,
    TenantLimits, Terms, Tier, Way,
};
use crate::id::TenantId;
use crate::sql::choice::ChoosingFunction;

use super::placement::Password;

/// Most arguments of a function (pg_config_manual.h: FUNC_MAX_ARGS).
const MAX_ARGUMENTS: usize = 100;

/// What the value is by which an application chooses, if it is not the tenant's id.
const ATTRIBUTES: &str = "attributes.";

/// What applications are looked at beside.
pub(super) struct Context<'c> {
    pub tenants: &'c Sharded<Arc<Tenant>>,
    pub files: &'c IndexMap<String, Option<TenantFile>>,
    pub rules: &'c Rules,
}

/// The names by which a login may mean this application alone: its user's, and its home's database.
pub(super) fn own_names<'a>(application: &'a Application, user: &'a str) -> HashSet<&'a str> {
    let home = &application.login.route.pool.database;
    let home = application.has_home().then_some(home.as_str());
    home.into_iter().chain([user]).collect()
}

/// Variables, in lower case, by which one of them acts for all tenants.
pub(super) fn privileged(files: &IndexMap<String, Option<ApplicationFile>>) -> Arc<[Box<str>]> {
    let names = files
        .values()
        .flatten()
        .flat_map(|file| file.all_tenants.keys());
    let names: BTreeSet<Box<str>> = names.map(|name| name.to_ascii_lowercase().into()).collect();
    names.into_iter().collect()
}

impl Resolver<'_, '_> {
    pub(super) fn applications(
        &mut self,
        files: &IndexMap<String, Option<ApplicationFile>>,
        context: &Context<'_>,
    ) -> Vec<(Arc<Application>, ActsFor)> {
        let section = At::ROOT.key("applications");
        let mut applications = Vec::new();
        let mut taken: HashMap<&str, &str> = HashMap::new();
        for (name, file) in files {
            let at = section.key(&**name);
            let id = self.name(&at, TenantId::new(name));
            self.own_name(&at, name, context);
            let Some(file) = file else { continue };
            for user in file.users.keys() {
                if let Some(other) = taken.insert(user, name) {
                    let message = format_args!(
                        "is a user of application {other}, too: its login would be both's"
                    );
                    self.mistakes.add(&at.key("users").key(&**user), message);
                }
            }
            let users = self.users(
                &at.key("users"),
                &file.users,
                context.rules.identify.by_user,
            );
            if let Some(application) =
                id.and_then(|id| self.application(&at, id, file, users, context))
            {
                applications.push(application);
            }
        }
        applications
    }

    /// An application logs in by its name, which is nobody else's.
    fn own_name(&mut self, at: &At<'_>, name: &str, context: &Context<'_>) {
        if context.files.contains_key(name) {
            self.mistakes.add(
                at,
                "is the name of a tenant, too: its login would be both's",
            );
        }
        if context.rules.has_console && CONSOLE.contains(&name) {
            let message = "the name is taken by the database of the admin console";
            self.mistakes.add(at, message);
        }
    }

    fn application(
        &mut self,
        at: &At<'_>,
        id: TenantId,
        file: &ApplicationFile,
        users: Users,
        context: &Context<'_>,
    ) -> Option<(Arc<Application>, ActsFor)> {
        let choices = self.choices(&at.key("choose"), file);
        let acts_for = self.acts_for(at, &id, file, context)?;
        let tenants = self.called(at, &acts_for, context);
        let clients = self.optional_count(&at.key("limits").key("clients"), file.limits.clients);
        let home = match &file.home {
            Some(name) => Some(self.home(&at.key("home"), name, context)?),
            None => None,
        };
        let route = self.first_route(&at.key("home"), home, tenants.as_ref(), context)?;
        let (variables, choices) = choices?;
        self.same_values(&at.key("choose"), &variables, tenants.as_ref(), context);
        self.both_ways(at, file, &route, home.is_some(), context);
        let route = route_of_nobody(&id, &variables, route);
        let placement = home.map_or_else(ClientTimeoutsFile::default, |plan| plan.timeouts);
        let (timeouts, own_timeouts) = context.rules.layers.of(
            route.pool.server.as_str(),
            Tier::Pool,
            [placement, file.timeouts],
        );
        let log = home.map_or_else(ClientLogFile::default, |plan| plan.log);
        let server = route.pool.server.as_str();
        let slow = context
            .rules
            .layers
            .slow(server, [log, ClientLogFile::default()]);
        let all_tenants = self.all_tenants(&at.key("all_tenants"), file, &variables, context);
        let application = Application {
            home: home.map(|plan| plan.placement.name.clone()),
            login: Arc::new(Tenant {
                id,
                users: users.into(),
                terms: Arc::new(Terms {
                    limits: TenantLimits {
                        clients,
                        ..TenantLimits::default()
                    },
                    timeouts,
                    slow,
                    own_timeouts,
                    settings: Box::default(),
                    said: Said::default(),
                }),
                route: Arc::new(route),
                service: None,
                lifecycle: Arc::default(),
                attributes: Box::default(),
                listed: None,
            }),
            variables,
            choices: Arc::new(choices),
            tenants,
            all_tenants,
        };
        Some((Arc::new(application), acts_for))
    }

    /// Where it is served while it has chosen nobody; without a home it is told the parameters of a
    /// server of its tenants.
    fn first_route(
        &mut self,
        at: &At<'_>,
        home: Option<&Plan>,
        tenants: Option<&Sharded<Called>>,
        context: &Context<'_>,
    ) -> Option<Route> {
        if let Some(home) = home {
            return self.home_route(at, home);
        }
        let route = first_route(tenants, context);
        if route.is_none() {
            let message = "is required while there is no tenant that it may act for";
            self.mistakes.add(at, message);
        }
        route
    }

    /// Variables by which it acts for all tenants.
    fn all_tenants(
        &mut self,
        at: &At<'_>,
        file: &ApplicationFile,
        variables: &[Box<str>],
        context: &Context<'_>,
    ) -> BTreeMap<Box<str>, Arc<[Box<str>]>> {
        if file.home.is_none() && !file.all_tenants.is_empty() {
            self.mistakes
                .add(at, "has no effect without home: it acts for all only there");
        }
        let mut all = BTreeMap::new();
        for (name, values) in &file.all_tenants {
            let at = at.key(&**name);
            let Some(name) = self.variable(&at, name) else {
                continue;
            };
            let plans = context.rules.plans.values().flatten();
            let is_of_context = |plan: &Plan| {
                let mut context = plan.context.iter();
                context.any(|(own, _)| own.eq_ignore_ascii_case(&name))
            };
            if variables.contains(&name) || plans.into_iter().any(is_of_context) {
                self.mistakes
                    .add(&at, "tells tenants apart: it cannot act for all of them");
            }
            if values.is_empty() {
                self.mistakes.add(&at, "needs the values that act for all");
            }
            let values: Vec<Box<str>> = values.iter().map(|value| value.as_str().into()).collect();
            all.insert(name, values.into());
        }
        all
    }

    /// What the application says is what the tenant's context says.
    fn same_values(
        &mut self,
        at: &At<'_>,
        variables: &[Box<str>],
        tenants: Option<&Sharded<Called>>,
        context: &Context<'_>,
    ) {
        let by_value = tenants.into_iter().flat_map(Sharded::values);
        let by_value = by_value.filter_map(|called| {
            let tenant = context.tenants.get(called.id.as_str())?;
            Some((&*called.value, tenant))
        });
        let all = context.tenants.values();
        let all = all.filter(|tenant| tenants.is_none() && tenant.service.is_none());
        let by_id = all.map(|tenant| (tenant.id.as_str(), tenant));
        let mut mistakes = by_value
            .chain(by_id)
            .filter_map(|(value, tenant)| says_otherwise(variables, value, tenant));
        if let Some(mistake) = mistakes.next() {
            self.mistakes.add(&at.key("key"), mistake);
        }
    }

    /// By what it chooses, and those of the names whose value is the tenant.
    fn choices(
        &mut self,
        at: &At<'_>,
        file: &ApplicationFile,
    ) -> Option<(Arc<[Box<str>]>, Choices)> {
        let nothing = ChooseFile::default();
        let choose = file.choose.as_ref().unwrap_or(&nothing);
        let mut names: Vec<Box<str>> = Vec::new();
        for (i, name) in choose.variables.iter().enumerate() {
            let at = at.key("variables");
            let name = self.variable(&at.index(i), name)?;
            if names.contains(&name) {
                self.mistakes.add(&at.index(i), "is given twice");
            }
            names.push(name);
        }
        let variables: Arc<[Box<str>]> = names.clone().into();
        let mut ways = vec![Way::Value; names.len()];
        if let Some(role) = &choose.role {
            ways.push(Way::Role(self.affixes(&at.key("role"), role)?));
            names.push("role".into());
        }
        if let Some(schema) = &choose.search_path {
            ways.push(Way::SearchPath(
                self.affixes(&at.key("search_path"), schema)?,
            ));
            names.push("search_path".into());
        }
        for (name, pointer) in &choose.json {
            let at = at.key("json");
            let at = at.key(&**name);
            let name = self.variable(&at, name)?;
            if names.contains(&name) {
                self.mistakes.add(&at, "is one of `variables`, too");
            }
            if !pointer.starts_with('/') {
                let message = "must be a JSON pointer, such as /org_id";
                self.mistakes.add(&at, message);
            }
            ways.push(Way::Json(pointer.as_str().into()));
            names.push(name);
        }
        let functions = choose.functions.iter();
        let functions: Option<Box<[_]>> = functions
            .map(|(name, file)| self.function(&at.key("functions").key(&**name), name, *file))
            .collect();
        let functions = functions?;
        if names.is_empty() && functions.is_empty() {
            self.mistakes.add(
                &at.key("variables"),
                "is required: what the application sets (or role, search_path, json, functions)",
            );
            return None;
        }
        let choices = Choices {
            names: names.into(),
            ways: ways.into(),
            functions,
        };
        Some((variables, choices))
    }

    /// What stands around the one `{tenant}` of a name.
    fn affixes(&mut self, at: &At<'_>, text: &str) -> Option<Affixes> {
        let parts = text.split_once("{tenant}");
        let parts =
            parts.filter(|(prefix, suffix)| !format!("{prefix}{suffix}").contains(['{', '}']));
        if parts.is_none() {
            let message = "must be a name with one {tenant} in it, such as tenant_{tenant}";
            self.mistakes.add(at, message);
        }
        let (prefix, suffix) = parts?;
        Some(Affixes {
            prefix: prefix.into(),
            suffix: suffix.into(),
        })
    }

    fn function(
        &mut self,
        at: &At<'_>,
        name: &str,
        file: ChoosingFunctionFile,
    ) -> Option<ChoosingFunction> {
        let (argument, scope) = match file {
            ChoosingFunctionFile::Argument(argument) => (argument, FunctionScope::Transaction),
            ChoosingFunctionFile::Scoped { argument, scope } => (argument, scope),
        };
        let argument = self.count(at, argument, MAX_ARGUMENTS)?;
        let is_name = |part: &str| {
            let mut chars = part.chars();
            chars
                .next()
                .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
                && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        let (schema, name) = match name.split_once('.') {
            Some((schema, name)) => (Some(schema), name),
            None => (None, name),
        };
        if !is_name(name) || !schema.is_none_or(is_name) {
            self.mistakes
                .add(at, "must be the name of a function, such as set_tenant");
            return None;
        }
        Some(ChoosingFunction {
            schema: schema.map(|schema| schema.to_ascii_lowercase().into()),
            name: name.to_ascii_lowercase().into(),
            argument,
            is_local: scope == FunctionScope::Transaction,
        })
    }

    /// The name of a variable of the application's own, in lower case.
    fn variable(&mut self, at: &At<'_>, name: &str) -> Option<Box<str>> {
        let is_part = |part: &str| {
            let mut chars = part.chars();
            let begins = |c: char| c.is_ascii_alphabetic() || c == '_';
            chars.next().is_some_and(begins)
                && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '$'))
        };
        // A parameter of PostgreSQL's own means something else to it.
        if !name.contains('.') || !name.split('.').all(is_part) || name.starts_with("pgtenant.") {
            let message = "must be a variable of the application's own, such as app.tenant_id";
            self.mistakes.add(at, message);
            return None;
        }
        Some(name.to_ascii_lowercase().into())
    }

    /// For whom it may act.
    fn acts_for(
        &mut self,
        at: &At<'_>,
        id: &TenantId,
        file: &ApplicationFile,
        context: &Context<'_>,
    ) -> Option<ActsFor> {
        let attribute = self.key(&at.key("choose").key("key"), file)?;
        let tenants_at = at.key("tenants");
        let tenants = self.required(at, "tenants", file.tenants.clone())?;
        let acts_for = ActsFor {
            application: id.clone(),
            tenants,
            attribute,
            service: file.service.clone(),
        };
        let mut all = context.tenants.values();
        let has_services = all.any(|tenant| tenant.service.is_some());
        if acts_for.service.is_some() && !has_services && !self.has_catalog {
            let message = "has no effect: no tenant has services (`placements`)";
            self.mistakes.add(&at.key("service"), message);
        }
        match &acts_for.tenants {
            ActsForFile::All(_) => {}
            ActsForFile::List(names) => {
                for (i, name) in names.iter().enumerate() {
                    let mut tenants = context.tenants.values();
                    let message = match context.files.contains_key(name) {
                        // It may come with the catalog.
                        false if self.has_catalog => continue,
                        false => format!("there is no tenant {name:?}"),
                        true if has_services
                            && !tenants.any(|tenant| {
                                tenant.name().as_str() == name && acts_for.covers(tenant)
                            }) =>
                        {
                            format!("tenant {name:?} has services, and none of them is `service`")
                        }
                        true => continue,
                    };
                    self.mistakes.add(&tenants_at.index(i), message);
                }
            }
            ActsForFile::Those(those) => {
                self.known_placements(&tenants_at.key("placements"), those, context);
            }
        }
        Some(acts_for)
    }

    /// Those for whom it may act, by the values that it says. None: all, by their ids.
    fn called(
        &mut self,
        at: &At<'_>,
        acts_for: &ActsFor,
        context: &Context<'_>,
    ) -> Option<Sharded<Called>> {
        if acts_for.is_all_by_id() {
            return None;
        }
        let choose = at.key("choose");
        let at = choose.key("key");
        let mut known: Sharded<Called> = Sharded::default();
        for tenant in context.tenants.values() {
            if !acts_for.covers(tenant) {
                continue;
            }
            match acts_for.value_of(tenant) {
                Err(mistake) => self.mistakes.add(&at, mistake),
                Ok(value) => {
                    let called = Called {
                        value: value.into(),
                        id: tenant.id.clone(),
                    };
                    if let Some(other) = known.insert(called) {
                        let message = acts_for.called_alike(&other.id, &tenant.id, value);
                        self.mistakes.add(&at, message);
                    }
                }
            }
        }
        Some(known)
    }

    /// The attribute that the value is of. Within: None for the id.
    fn key(&mut self, at: &At<'_>, file: &ApplicationFile) -> Option<Option<String>> {
        let key = file
            .choose
            .as_ref()
            .and_then(|choose| choose.key.as_deref());
        match key {
            None | Some("id") => Some(None),
            Some(key) => match key.strip_prefix(ATTRIBUTES) {
                Some(name) if !name.is_empty() => Some(Some(name.to_owned())),
                _ => {
                    self.mistakes.add(
                        at,
                        "must be `id` or an attribute, such as `attributes.org_id`",
                    );
                    None
                }
            },
        }
    }

    fn known_placements(&mut self, at: &At<'_>, those: &ThoseFile, context: &Context<'_>) {
        for (i, name) in those.placements.iter().flatten().enumerate() {
            if !context.rules.plans.contains_key(&**name) {
                let message = format_args!("there is no placement {name:?}");
                self.mistakes.add(&at.index(i), message);
            }
        }
    }

    fn home<'p>(&mut self, at: &At<'_>, name: &str, context: &Context<'p>) -> Option<&'p Plan> {
        let Some(plan) = context.rules.plans.get(name) else {
            self.mistakes
                .add(at, format_args!("there is no placement {name:?}"));
            return None;
        };
        let plan = plan.as_ref()?;
        if plan.placement.tier != Tier::Pool {
            let message =
                "must be a placement of tier pool: in others there is no place of nobody's";
            self.mistakes.add(at, message);
            return None;
        }
        Some(plan)
    }

    /// Where nobody is served: the placement's first server.
    fn home_route(&mut self, at: &At<'_>, plan: &Plan) -> Option<Route> {
        let text = |template: &crate::config::Template| template.fill(|_| None).ok();
        let password = match &plan.login.password {
            None => Some(None),
            Some(Password::Text(template)) => text(template).map(|text| Some(Secret::new(text))),
            Some(Password::File(template)) => match text(template) {
                Some(name) => match self.read_password(&name) {
                    Ok(password) => Some(Some(password)),
                    Err(error) => {
                        self.mistakes.add(at, error);
                        return None;
                    }
                },
                None => None,
            },
        };
        let (Some(database), Some(user), Some(password), Some(server)) = (
            text(&plan.database),
            text(&plan.login.user),
            password,
            plan.placement.servers.first(),
        ) else {
            let message =
                "must be a placement whose database and login are the same for all tenants";
            self.mistakes.add(at, message);
            return None;
        };
        Some(Route {
            placement: plan.placement.clone(),
            pool: Arc::new(PoolKey {
                server: server.clone(),
                database,
                login: Arc::new(Login { user, password }),
                startup: plan.startup.clone(),
                has_own: false,
                application: None,
            }),
            pool_min: None,
            schema: None,
            context: Vec::new(),
            seal: None,
            pooling: Pooling::Transaction,
        })
    }

    /// A login may name an application by its user alone, or with its home's database: that must
    /// not be a tenant's login as well.
    fn both_ways(
        &mut self,
        at: &At<'_>,
        file: &ApplicationFile,
        route: &Route,
        has_home: bool,
        context: &Context<'_>,
    ) {
        let database = has_home.then_some(&*route.pool.database);
        for user in file.users.keys() {
            let names: HashSet<&str> = database.into_iter().chain([user.as_str()]).collect();
            for name in names {
                let mut tenants = context.tenants.values();
                let is_user = |tenant: &Arc<Tenant>| {
                    tenant.name().as_str() == name && tenant.users.contains_key(user)
                };
                if context.rules.identify.by_database && tenants.any(is_user) {
                    let message = format_args!(
                        "is a user of tenant {name}, too, and the login to database {name} would be both's"
                    );
                    self.mistakes.add(&at.key("users").key(&**user), message);
                }
            }
        }
    }
}

/// The place of `route` with the context of nobody.
fn route_of_nobody(id: &TenantId, variables: &[Box<str>], route: Route) -> Route {
    let nobody = variables
        .iter()
        .map(|name| (name.to_string(), String::new()));
    Route {
        context: nobody.collect(),
        schema: None,
        seal: None,
        pooling: Pooling::Transaction,
        pool: Arc::new(PoolKey {
            application: Some(id.clone()),
            ..PoolKey::clone(&route.pool)
        }),
        pool_min: None,
        placement: route.placement,
    }
}

/// Without a home, an application is told the parameters of a server of its tenants.
fn first_route(tenants: Option<&Sharded<Called>>, context: &Context<'_>) -> Option<Route> {
    let first = match tenants {
        None => context.tenants.values().map(|tenant| &tenant.id).min(),
        Some(tenants) => tenants.values().map(|called| &called.id).min(),
    };
    let tenant = context.tenants.get(first?.as_str())?;
    Some((*tenant.route).clone())
}
