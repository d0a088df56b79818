//! `EXPLAIN ROUTE`: where a login, or an application for a tenant, would be served, and why.

use crate::admin::show::{self, Column, Row, row, text};
use crate::app::App;
use crate::config::{Config, Route, Tenant};
use crate::protocol::startup::{Startup, Version};
use crate::tenant::identify::{Claim, Unknown, identify};

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pub user: String,
    pub database: Option<String>,
    /// What the application says that the tenant is.
    pub tenant: Option<String>,
}

pub const COLUMNS: &[Column] = &[
    text("served"),
    text("application"),
    text("tenant"),
    text("user"),
    text("placement"),
    text("tier"),
    text("server"),
    text("database"),
    text("login"),
    text("schema"),
    text("pool_mode"),
    text("posture"),
    text("context"),
    text("why"),
];

/// One row.
pub fn rows(app: &App, question: &Question) -> Vec<Row> {
    let config = app.config();
    let mut startup = Startup {
        version: Version { major: 3, minor: 0 },
        user: question.user.clone(),
        database: question.database.clone(),
        replication: None,
        parameters: Vec::new(),
        extensions: Vec::new(),
    };
    let claim = identify(&config, &mut startup, None);
    let (tenant, user) = match claim {
        Claim::Tenant { tenant, user, .. } => (tenant, user),
        Claim::Admin { user } => return vec![nobody(&user, "the login is the admin console's")],
        Claim::Nobody(Unknown::Tenant) => {
            let why = "the login names no tenant and no application";
            return vec![nobody(&question.user, why)];
        }
        Claim::Nobody(Unknown::Hints) => {
            let why = "the parts of the login name two tenants";
            return vec![nobody(&question.user, why)];
        }
    };
    if !tenant.users.contains_key(&user) {
        let why = format!("{} has no user of this name", tenant.id);
        return vec![nobody(&user, &why)];
    }
    vec![match config.applications.get(&tenant.id) {
        Some(_) => for_application(app, &config, &tenant, &user, question.tenant.as_deref()),
        None if question.tenant.is_some() => {
            nobody(&user, "the login is a tenant's, which may not choose")
        }
        None => {
            let why = "the login names the tenant";
            let refused = app.takes_clients(&tenant.id).err();
            let why = refused.map_or(why.to_owned(), |error| error.message().to_owned());
            served(None, Some(&tenant), &user, &tenant.route, &why)
        }
    }]
}

fn for_application(
    app: &App,
    config: &Config,
    login: &Tenant,
    user: &str,
    value: Option<&str>,
) -> Row {
    let name = Some(login.id.as_str());
    let Some(application) = config.applications.get(&login.id) else {
        return nobody(user, "there is no such application");
    };
    let Some(value) = value else {
        return match application.has_home() {
            true => {
                let why =
                    "no tenant is chosen: it is served at its home, with the context of nobody";
                served(name, None, user, &login.route, why)
            }
            false => nobody(user, "no tenant is chosen, and it has no home"),
        };
    };
    let Some(tenant) = application.tenant(config, value) else {
        let why = "there is no such tenant, or the application may not act for it";
        return nobody(user, why);
    };
    if let Err(error) = app.takes_clients(&tenant.id) {
        return nobody(user, error.message());
    }
    let why = format!(
        "it sets {} to {value}",
        application.chooses_by().join(" or ")
    );
    let route = app.route_for(application, tenant, value);
    served(name, Some(tenant), user, &route, &why)
}

fn nobody(user: &str, why: &str) -> Row {
    let mut row: Row = row!["no", None::<String>, None::<String>, user];
    row.resize_with(COLUMNS.len() - 1, || show::Cell::Null);
    row.push(why.into());
    row
}

fn served(
    application: Option<&str>,
    tenant: Option<&Tenant>,
    user: &str,
    route: &Route,
    why: &str,
) -> Row {
    let variables: Vec<_> = route
        .context
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    row![
        "yes",
        application,
        tenant.map(|tenant| tenant.id.as_str()),
        user,
        route.placement.name.as_str(),
        route.placement.tier.to_string(),
        route.pool.server.as_str(),
        &*route.pool.database,
        &*route.pool.login.user,
        route.schema.clone(),
        route.pooling.to_string(),
        route.posture().to_string(),
        variables.join(" "),
        why,
    ]
}
