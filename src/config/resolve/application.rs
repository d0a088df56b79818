//! Applications: as whom they log in, for whom they may act, and the proof that no login reads both
//! as a tenant's and as an application's.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use indexmap::IndexMap;

use super::placement::{Plan, Plans};
use super::tenant::{CONSOLE, MAX_CONTEXT_VALUE};
use super::timeouts::Layers;
use super::{Resolver, Users};
use crate::config::file::{
    ActsForFile, ApplicationFile, ChooseFile, ChoosingFunctionFile, ClientLogFile,
    ClientTimeoutsFile, FunctionScope, TenantFile, ThoseFile,
};
use crate::config::outline::At;
use crate::config::{
    Affixes, Application, Choices, Identify, Login, PoolKey, Pooling, Route, Secret, Tenant,
    TenantLimits, Tier, Way,
};
use crate::id::TenantId;
use crate::sql::choice::ChoosingFunction;

use super::placement::Password;

/// Most arguments of a function (pg_config_manual.h: FUNC_MAX_ARGS).
const MAX_ARGUMENTS: usize = 100;

/// What the value is by which an application chooses, if it is not the tenant's id.
const ATTRIBUTES: &str = "attributes.";

/// What applications are looked at beside.
pub(super) struct Context<'c, 'l> {
    pub tenants: &'c HashMap<TenantId, Arc<Tenant>>,
    pub files: &'c IndexMap<String, Option<TenantFile>>,
    pub plans: &'c Plans,
    pub layers: &'c Layers<'l>,
    pub identify: &'c Identify,
    pub has_console: bool,
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
        context: &Context<'_, '_>,
    ) -> BTreeMap<TenantId, Arc<Application>> {
        let section = At::ROOT.key("applications");
        let mut applications = BTreeMap::new();
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
            let users = self.users(&at.key("users"), &file.users, context.identify.by_user);
            if let Some(application) =
                id.and_then(|id| self.application(&at, id, file, users, context))
            {
                applications.insert(application.login.id.clone(), Arc::new(application));
            }
        }
        applications
    }

    /// An application logs in by its name, which is nobody else's.
    fn own_name(&mut self, at: &At<'_>, name: &str, context: &Context<'_, '_>) {
        if context.files.contains_key(name) {
            self.mistakes.add(
                at,
                "is the name of a tenant, too: its login would be both's",
            );
        }
        if context.has_console && CONSOLE.contains(&name) {
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
        context: &Context<'_, '_>,
    ) -> Option<Application> {
        let choices = self.choices(&at.key("choose"), file);
        let tenants = self.acts_for(at, file, context)?;
        let clients = self.optional_count(&at.key("limits").key("clients"), file.limits.clients);
        let home = match &file.home {
            Some(name) => Some(self.home(&at.key("home"), name, context)?),
            None => None,
        };
        let route = match &home {
            Some(home) => self.home_route(&at.key("home"), home)?,
            None => {
                let route = first_route(tenants.as_ref(), context);
                if route.is_none() {
                    let message = "is required while there is no tenant that it may act for";
                    self.mistakes.add(&at.key("home"), message);
                }
                route?
            }
        };
        let (variables, choices) = choices?;
        self.same_values(&at.key("choose"), &variables, tenants.as_ref(), context);
        self.both_ways(at, file, &route, home.is_some(), context);
        let nobody = variables
            .iter()
            .map(|name| (name.to_string(), String::new()));
        let route = Route {
            context: nobody.collect(),
            schema: None,
            seal: None,
            pooling: Pooling::Transaction,
            pool: PoolKey {
                application: Some(id.clone()),
                ..route.pool
            },
            pool_min: None,
            placement: route.placement,
        };
        let placement = home.map_or_else(ClientTimeoutsFile::default, |plan| plan.timeouts);
        let (timeouts, own_timeouts) = context.layers.of(
            route.pool.server.as_str(),
            Tier::Pool,
            [placement, file.timeouts],
        );
        let log = home.map_or_else(ClientLogFile::default, |plan| plan.log);
        let server = route.pool.server.as_str();
        let slow = (context.layers).slow(server, [log, ClientLogFile::default()]);
        let all_tenants = self.all_tenants(&at.key("all_tenants"), file, &variables, context);
        Some(Application {
            home: home.map(|plan| plan.placement.name.clone()),
            login: Arc::new(Tenant {
                id,
                users,
                limits: TenantLimits {
                    clients,
                    ..TenantLimits::default()
                },
                timeouts,
                slow,
                own_timeouts,
                route: Arc::new(route),
                service: None,
            }),
            variables,
            choices: Arc::new(choices),
            tenants,
            all_tenants,
        })
    }

    /// Variables by which it acts for all tenants.
    fn all_tenants(
        &mut self,
        at: &At<'_>,
        file: &ApplicationFile,
        variables: &[Box<str>],
        context: &Context<'_, '_>,
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
            let plans = context.plans.values().flatten();
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

    /// What the application says is what the tenant's context says, or a text that runs with its
    /// choice in it would change the context.
    fn same_values(
        &mut self,
        at: &At<'_>,
        variables: &[Box<str>],
        tenants: Option<&HashMap<String, TenantId>>,
        context: &Context<'_, '_>,
    ) {
        let by_value = tenants.into_iter().flatten();
        let by_value = by_value.map(|(value, id)| (value.as_str(), id));
        let by_id = context.tenants.keys().filter(|_| tenants.is_none());
        for (value, id) in by_value.chain(by_id.map(|id| (id.as_str(), id))) {
            let route = context.tenants.get(id).map(|tenant| &tenant.route);
            let own = |name: &str| route.and_then(|route| route.pinned(name));
            let other = variables
                .iter()
                .find_map(|name| Some((name, own(name).filter(|own| *own != value)?)));
            if let Some((name, own)) = other {
                let message = format_args!(
                    "tenant {id} is {value:?} to the application, and its context has {own:?} in {name}: they must be the same"
                );
                self.mistakes.add(&at.key("key"), message);
                return;
            }
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

    /// For whom it may act, by the values that it says. Within: None for all, by their ids.
    fn acts_for(
        &mut self,
        at: &At<'_>,
        file: &ApplicationFile,
        context: &Context<'_, '_>,
    ) -> Option<Option<HashMap<String, TenantId>>> {
        let attribute = self.key(&at.key("choose").key("key"), file)?;
        let tenants_at = at.key("tenants");
        let acts_for = self.required(at, "tenants", file.tenants.as_ref())?;
        let service = file.service.as_deref();
        let is_there = |tenant: &&Arc<Tenant>| match &tenant.service {
            Some((_, own)) => Some(&**own) == service,
            None => true,
        };
        let mut all = context.tenants.values();
        let has_services = all.any(|tenant| tenant.service.is_some());
        if service.is_some() && !has_services {
            let message = "has no effect: no tenant has services (`placements`)";
            self.mistakes.add(&at.key("service"), message);
        }
        let tenants = context.tenants.values().filter(is_there);
        let tenants: Vec<&Arc<Tenant>> = match acts_for {
            ActsForFile::All(_) if attribute.is_none() && !has_services => return Some(None),
            ActsForFile::All(_) => tenants.collect(),
            ActsForFile::List(names) => {
                for (i, name) in names.iter().enumerate() {
                    let is_of_it = |tenant: &Arc<Tenant>| tenant.name().as_str() == name;
                    let message = match context.files.contains_key(name) {
                        false => format!("there is no tenant {name:?}"),
                        true if !tenants.clone().any(is_of_it) && has_services => {
                            format!("tenant {name:?} has services, and none of them is `service`")
                        }
                        true => continue,
                    };
                    self.mistakes.add(&tenants_at.index(i), message);
                }
                let is_listed =
                    |tenant: &&Arc<Tenant>| names.iter().any(|name| name == tenant.name().as_str());
                tenants.filter(is_listed).collect()
            }
            ActsForFile::Those(those) => {
                self.known_placements(&tenants_at.key("placements"), those, context);
                tenants
                    .filter(|tenant| is_one_of(tenant, those, context))
                    .collect()
            }
        };
        let mut known: HashMap<String, TenantId> = HashMap::with_capacity(tenants.len());
        for tenant in tenants {
            let id = &tenant.id;
            let Some(value) = self.value_of(at, tenant.name(), attribute.as_deref(), context)
            else {
                continue;
            };
            if let Some(other) = known.insert(value.clone(), id.clone()) {
                let key = attribute.as_deref().unwrap_or_default();
                let message = format_args!(
                    "tenants {other} and {id} have the same attribute {key:?}, {value:?}: a choice would be both's"
                );
                self.mistakes.add(&at.key("choose").key("key"), message);
            }
        }
        Some(Some(known))
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

    fn known_placements(&mut self, at: &At<'_>, those: &ThoseFile, context: &Context<'_, '_>) {
        for (i, name) in those.placements.iter().flatten().enumerate() {
            if !context.plans.contains_key(&**name) {
                let message = format_args!("there is no placement {name:?}");
                self.mistakes.add(&at.index(i), message);
            }
        }
    }

    /// What the application calls a tenant.
    fn value_of(
        &mut self,
        at: &At<'_>,
        id: &TenantId,
        attribute: Option<&str>,
        context: &Context<'_, '_>,
    ) -> Option<String> {
        let Some(attribute) = attribute else {
            return Some(id.as_str().to_owned());
        };
        let file = context.files.get(id.as_str())?.as_ref()?;
        let choose = at.key("choose");
        let at = choose.key("key");
        let Some(value) = file.attributes.get(attribute) else {
            let message = format_args!("tenant {id} has no attribute {attribute:?}");
            self.mistakes.add(&at, message);
            return None;
        };
        let printable = |c: char| c.is_ascii_graphic() || c == ' ';
        if value.is_empty() || value.len() > MAX_CONTEXT_VALUE || !value.chars().all(printable) {
            let message = format_args!(
                "attribute {attribute:?} of tenant {id} must be 1 to {MAX_CONTEXT_VALUE} bytes of printable ASCII"
            );
            self.mistakes.add(&at, message);
            return None;
        }
        Some(value.clone())
    }

    fn home<'p>(&mut self, at: &At<'_>, name: &str, context: &Context<'p, '_>) -> Option<&'p Plan> {
        let Some(plan) = context.plans.get(name) else {
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
        let password = match &plan.password {
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
            text(&plan.user),
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
            pool: PoolKey {
                server: server.clone(),
                database,
                login: Arc::new(Login { user, password }),
                startup: plan.startup.clone(),
                has_own: false,
                application: None,
            },
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
        context: &Context<'_, '_>,
    ) {
        let database = has_home.then_some(&*route.pool.database);
        for user in file.users.keys() {
            let names: HashSet<&str> = database.into_iter().chain([user.as_str()]).collect();
            for name in names {
                let mut tenants = context.tenants.values();
                let is_user = |tenant: &Arc<Tenant>| {
                    tenant.name().as_str() == name && tenant.users.contains_key(user)
                };
                if context.identify.by_database && tenants.any(is_user) {
                    let message = format_args!(
                        "is a user of tenant {name}, too, and the login to database {name} would be both's"
                    );
                    self.mistakes.add(&at.key("users").key(&**user), message);
                }
            }
        }
    }
}

fn is_one_of(tenant: &Tenant, those: &ThoseFile, context: &Context<'_, '_>) -> bool {
    let placement = &tenant.route.placement.name;
    let placements = those.placements.as_ref();
    let lives_there =
        placements.is_none_or(|names| names.iter().any(|name| name == placement.as_str()));
    let file = context.files.get(tenant.name().as_str());
    let Some(file) = file.and_then(Option::as_ref) else {
        return false;
    };
    let mut attributes = those.attributes.iter();
    lives_there && attributes.all(|(name, value)| file.attributes.get(name) == Some(value))
}

/// Without a home, an application is told the parameters of a server of its tenants.
fn first_route(
    tenants: Option<&HashMap<String, TenantId>>,
    context: &Context<'_, '_>,
) -> Option<Route> {
    let first = match tenants {
        None => context.tenants.keys().min(),
        Some(tenants) => tenants.values().min(),
    };
    let tenant = context.tenants.get(first?)?;
    Some((*tenant.route).clone())
}
