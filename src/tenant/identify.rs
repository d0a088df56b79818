//! Whose login is it? Only a claim: the credential, which belongs to the tenant, proves it.

use std::sync::Arc;

use crate::config::{Config, Tenant};
use crate::id::TenantId;
use crate::protocol::startup::Startup;

/// Database name of the admin console.
pub const ADMIN_DATABASE: &str = "pgtenant";

/// The same under PgBouncer's name, which its exporters and scripts connect to.
pub const PGBOUNCER_DATABASE: &str = "pgbouncer";

/// The name of the option that may name the tenant.
pub const TENANT_OPTION: &str = "pgtenant.tenant";

/// Who a client says it is.
#[derive(Debug)]
pub enum Claim {
    Tenant {
        tenant: Arc<Tenant>,
        /// Without the tenant's name, if that came with it.
        user: String,
        /// Whether the database it asked for is one that this tenant has.
        database_known: bool,
    },
    /// A user of the admin console.
    Admin {
        user: String,
    },
    Nobody(Unknown),
}

/// Why a login is nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// It names no tenant, or one that there is not.
    Tenant,
    /// Its parts name two tenants, or one names a tenant that may not.
    Hints,
}

/// Reads the claim from a login. The tenant's option is taken out of the startup parameters.
///
/// Every part of the login that may name a tenant, and does, must name the same one. A database
/// that is not a tenant's name is no hint when another part names the tenant; whether the tenant
/// has it is told after the login.
pub fn identify(config: &Config, startup: &mut Startup, sni: Option<&str>) -> Claim {
    let options = take_option(startup);
    let names_console = matches!(
        startup.database.as_deref(),
        Some(ADMIN_DATABASE | PGBOUNCER_DATABASE)
    );
    if names_console && !config.admin_users.is_empty() {
        return Claim::Admin {
            user: startup.user.clone(),
        };
    }
    let by = &config.identify;
    let (user, user_hint) = match by
        .by_user
        .and_then(|separator| startup.user.rsplit_once(separator))
    {
        Some((user, tenant)) => (user, Some(tenant.to_owned())),
        None => (startup.user.as_str(), None),
    };
    let sni_hint = by.by_sni.as_ref().and_then(|suffix| {
        let host = sni?.to_ascii_lowercase();
        host.strip_suffix(&suffix.to_ascii_lowercase())
            .map(str::to_owned)
    });
    if !options.is_empty() && !by.by_options {
        return Claim::Nobody(Unknown::Hints);
    }
    let database = startup.database.as_deref();
    let mut hints = user_hint.into_iter().chain(sni_hint).chain(options);
    let first = hints.next();
    if hints.any(|hint| Some(&hint) != first.as_ref()) {
        return Claim::Nobody(Unknown::Hints);
    }
    if first.is_none()
        && let Some(claim) = application(config, startup, by.by_database)
    {
        return claim;
    }
    let named = match (&first, database) {
        (Some(hint), _) => hint,
        (None, Some(database)) if by.by_database => database,
        (None, _) => return Claim::Nobody(Unknown::Tenant),
    };
    let Some(tenant) = config.tenants.get(named) else {
        let service = service(config, named, database);
        let Some((tenant, database_known)) = service else {
            return Claim::Nobody(Unknown::Tenant);
        };
        return Claim::Tenant {
            tenant: tenant.clone(),
            user: user.to_owned(),
            database_known,
        };
    };
    let database_known = database.is_none_or(|database| {
        database == tenant.id.as_str()
            || database == tenant.route.pool.database
            || database == startup.user
    });
    Claim::Tenant {
        tenant: tenant.clone(),
        user: user.to_owned(),
        database_known,
    }
}

/// The service of a tenant that has several: the database names it, or is its own. False: it does
/// neither, which is told after the login.
fn service<'c>(
    config: &'c Config,
    tenant: &str,
    database: Option<&str>,
) -> Option<(&'c Arc<Tenant>, bool)> {
    let services = &config.services.get(tenant)?.ids;
    let find = |id: &TenantId| config.tenants.get(id.as_str());
    if let Some(id) = services.get(database.unwrap_or_default()) {
        return Some((find(id)?, true));
    }
    let mut all = services.values().filter_map(find);
    let mut there = all
        .clone()
        .filter(|tenant| Some(&*tenant.route.pool.database) == database);
    match (there.next(), there.next()) {
        (Some(tenant), None) => Some((tenant, true)),
        _ => Some((all.next()?, false)),
    }
}

/// The login of an application: by its name as the database, by its home's database, or without
/// any. A database that is a tenant's name is that tenant's.
fn application(config: &Config, startup: &Startup, by_database: bool) -> Option<Claim> {
    let database = startup.database.as_deref();
    let named = database.and_then(|name| config.applications.get(name));
    let application = match named {
        Some(application) => application,
        None => {
            let is_tenant = |name: &str| {
                let is_known =
                    config.tenants.contains_key(name) || config.services.contains_key(name);
                by_database && is_known
            };
            let mut applications = config.applications.values();
            applications.find(|application| {
                let login = &application.login;
                let is_home = database.is_none_or(|name| {
                    let own = application.has_home() && name == login.route.pool.database;
                    (own || name == startup.user) && !is_tenant(name)
                });
                is_home && login.users.contains_key(&startup.user)
            })?
        }
    };
    Some(Claim::Tenant {
        tenant: application.login.clone(),
        user: startup.user.clone(),
        database_known: true,
    })
}

fn take_option(startup: &mut Startup) -> Vec<String> {
    let mut hints = Vec::new();
    startup.parameters.retain(|(name, value)| {
        let is_hint = name.eq_ignore_ascii_case(TENANT_OPTION);
        if is_hint {
            hints.push(value.clone());
        }
        !is_hint
    });
    hints
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::protocol::startup::Version;

    fn config(by: &str) -> Config {
        let text = format!(
            "identify: {{ by: [{by}]{} }}
admin: {{ users: {{ root: {{ password: x }} }} }}
servers: {{ s: {{ host: localhost, max_connections: 10 }} }}
placements:
  p: {{ tier: pool, server: s, database: app, login: {{ user: app, password: x }},
       context: {{ app.tenant: \"{{tenant}}\" }} }}
tenants:
  a: {{ placement: p, users: {{ app: {{ password: a }} }} }}
  b: {{ placement: p, users: {{ app: {{ password: b }} }} }}
",
            if by.contains("sni") {
                ", sni_suffix: .db.test"
            } else {
                ""
            },
        );
        crate::config::load_text(&text, Path::new("."), &|_| None).unwrap()
    }

    /// `user database sni option`, with `-` for what is not given.
    fn claim(by: &str, login: &str) -> String {
        let given = |part: &str| (part != "-").then(|| part.to_owned());
        let [user, database, sni, option] = login.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{login}")
        };
        let mut startup = Startup {
            version: Version { major: 3, minor: 0 },
            user: user.to_owned(),
            database: given(database),
            replication: None,
            parameters: given(option)
                .map(|tenant| ("PGTENANT.tenant".to_owned(), tenant))
                .into_iter()
                .collect(),
            extensions: Vec::new(),
        };
        let claim = identify(&config(by), &mut startup, given(sni).as_deref());
        assert!(
            startup.parameters.is_empty(),
            "the hint is no run-time parameter"
        );
        match claim {
            Claim::Tenant {
                tenant,
                user,
                database_known,
            } => {
                format!(
                    "{}/{user}{}",
                    tenant.id,
                    if database_known { "" } else { " no database" }
                )
            }
            Claim::Admin { user } => format!("admin {user}"),
            Claim::Nobody(Unknown::Tenant) => "nobody".to_owned(),
            Claim::Nobody(Unknown::Hints) => "hints".to_owned(),
        }
    }

    #[test]
    fn every_part_of_a_login_that_names_a_tenant_must_name_the_same() {
        for (by, login, expected) in [
            ("database", "app a - -", "a/app"),
            ("database", "app c - -", "nobody"),
            ("database", "app - - -", "nobody"),
            ("database", "app.a - - -", "nobody"),
            ("user", "app.a - - -", "a/app"),
            ("user", "app.a app - -", "a/app"),
            ("user", "app.a app.a - -", "a/app"),
            ("user", "app.a a - -", "a/app"),
            ("user", "app.a b - -", "a/app no database"),
            ("user", "app.a nowhere - -", "a/app no database"),
            ("user", "x.a x - -", "a/x no database"),
            ("user", "app a - -", "nobody"),
            ("user", "app.c app - -", "nobody"),
            ("user", "x.b.a app - -", "a/x.b"),
            ("user", ".a app - -", "a/"),
            ("user", "app. app - -", "nobody"),
            ("user, database", "app b - -", "b/app"),
            ("user, database", "app.a b - -", "a/app no database"),
            ("sni", "app app a.db.test -", "a/app"),
            ("sni", "app app A.DB.Test -", "a/app"),
            ("sni", "app app a.db.other -", "nobody"),
            ("sni", "app app x.a.db.test -", "nobody"),
            ("sni, user", "app.a app a.db.test -", "a/app"),
            ("sni, user", "app.b app a.db.test -", "hints"),
            ("options", "app app - a", "a/app"),
            ("options", "app app - c", "nobody"),
            ("options, user", "app.a app - b", "hints"),
            ("user", "app.a app - a", "hints"),
            ("user", "root pgtenant - -", "admin root"),
            ("user", "root pgbouncer - -", "admin root"),
            ("database", "app pgbouncer - -", "admin app"),
        ] {
            assert_eq!(claim(by, login), expected, "[{by}] {login}");
        }
    }
}
