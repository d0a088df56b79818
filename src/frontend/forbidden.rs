//! Parameters that a client may not give at its login.

use crate::config::{Config, Tenant};
use crate::error::{Error, Kind};
use crate::guard::Guard;
use crate::protocol::startup::Startup;

/// The first of a client's parameters that is not its to set, and what it is told. Only the proxy
/// says whose context it is, whichever way the client spells it.
pub(super) fn forbidden_parameter<'a>(
    config: &Config,
    tenant: &Tenant,
    startup: &'a Startup,
) -> Option<(&'a str, Error)> {
    let route = &tenant.route;
    if let Some(name) = route.foreign_parameter(&startup.parameters) {
        let error = Error::new(
            Kind::InsufficientPrivilege,
            format!("permission denied to set parameter \"{name}\""),
        )
        .with_detail("It is set by pgtenant for the tenant that is logged in.");
        return Some((name, error));
    }
    let application = config.applications.get(&tenant.id);
    let guard = match application {
        Some(application) => Some(Guard::of_application(route, Some(application))),
        None => Guard::of(route),
    }?;
    startup.parameters.iter().find_map(|(name, value)| {
        let error = guard.check_parameter(name, value).err()?.into_error();
        Some((&**name, error))
    })
}
