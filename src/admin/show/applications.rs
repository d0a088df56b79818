//! `SHOW APPLICATIONS`.

use super::{Column, Row, View, int, row, text};

pub const COLUMNS: &[Column] = &[
    text("application"),
    text("users"),
    text("home"),
    text("variables"),
    int("tenants"),
    int("clients"),
    int("active"),
    int("waiting"),
    int("max_clients"),
];

/// Every application of the config by name. `tenants` is for how many it may act; `active` and
/// `waiting` are of its home, since elsewhere what it does is the tenant's.
pub fn rows(view: &View) -> Vec<Row> {
    let applications = view.config.applications.values();
    applications
        .map(|application| {
            let login = &application.login;
            let seen = view.seen.get(&login.id);
            let users: Vec<&str> = login.users.keys().collect();
            let home = application.has_home().then(|| &login.route.placement.name);
            let tenants = match &application.tenants {
                Some(known) => known.len(),
                None => view.config.tenants.len(),
            };
            row![
                login.id.as_str(),
                users.join(","),
                home.map(crate::id::PlacementName::as_str),
                application.chooses_by().join(","),
                tenants,
                seen.map_or(0, |tenant| tenant.clients()),
                seen.map_or(0, |tenant| tenant.active()),
                seen.map_or(0, |tenant| tenant.metrics.waiting.get()),
                login.terms.limits.clients,
            ]
        })
        .collect()
}
