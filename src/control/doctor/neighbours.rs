//! Whether a tenant's role reaches the places of others, or theirs its own.

use super::case::{Case, Mend, finding, quoted, some};
use crate::config::Tier;
use crate::findings::Severity::{Critical, Warning};
use crate::findings::{Finding, Step};

/// The roles that `pgtenant sql catalog` makes.
const CATALOG_ROLES: [&str; 2] = ["pgtenant_catalog_reader", "pgtenant_catalog_writer"];

pub fn judge(case: &Case<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let target = case.target;
    let login = &target.place.login;
    if case.is_superuser() {
        return findings;
    }
    let schemas = &case.facts.neighbours.schemas;
    if !schemas.is_empty() {
        let quoted: Vec<_> = schemas.iter().map(|schema| quoted(schema)).collect();
        findings.push(
            finding(
                Critical,
                "schema-of-others",
                format!("role {login}"),
                format!("it has rights in schemas of other tenants: {}", some(schemas)),
                "search_path decides only what names without a schema mean: the others' tables are one prefix away",
            )
            .fix(
                Step::Grants,
                [format!("REVOKE ALL ON SCHEMA {} FROM {}", quoted.join(", "), case.grantees())],
            ),
        );
    }
    if target.tier == Tier::Schema {
        for schema in case
            .facts
            .database
            .creatable
            .iter()
            .filter(|s| *s == "public")
        {
            findings.push(
                finding(
                    Warning,
                    "schema-create",
                    format!("schema {schema}"),
                    "a tenant's role may make objects in it",
                    "a table or function there, named as one that others use, is used by other tenants",
                )
                .fix(
                    Step::Grants,
                    [format!("REVOKE CREATE ON SCHEMA {} FROM {}", quoted(schema), case.grantees())],
                ),
            );
        }
    }
    if !target.by_policies() && target.login_places > 1 && target.tier != Tier::Instance {
        findings.push(
            finding(
                match target.tier {
                    Tier::Schema => Critical,
                    _ => Warning,
                },
                "login-shared",
                format!("role {login}"),
                format!("it is the login of {} tenants' places", target.login_places),
                "only the proxy tells those tenants apart: whatever one may do in its place, it may do in the others'",
            )
            .advice("Give each tenant a role: login: { user: \"t_{tenant}\" }."),
        );
    }
    if target.tier == Tier::Database {
        connect(case, &mut findings);
    }
    findings.extend(catalog(case));
    findings
}

/// Whether a tenant's role reaches the catalog of tenants: their verifiers stand in it, and where
/// each of them lives.
fn catalog(case: &Case<'_>) -> Option<Finding> {
    let database = case.target.catalog.as_ref()?;
    let login = &case.target.place.login;
    let mut roles = case.facts.roles.iter();
    let member = roles.find(|role| CATALOG_ROLES.contains(&&*role.name));
    if let Some(role) = member {
        let found = finding(
            Critical,
            "catalog-role",
            format!("role {login}"),
            format!("it has the rights of {}", role.name),
            "it reads the verifiers of all tenants, or says where they live and who may log in",
        );
        let revoke = format!("REVOKE {} FROM {}", quoted(&role.name), case.login());
        return Some(found.fix(Step::Grants, [revoke]));
    }
    let found = finding(
        Warning,
        "catalog-connect",
        format!("database {database}"),
        format!("role {login} can connect to the catalog of tenants"),
        "it gets in, and is stopped by what was granted inside alone",
    );
    let revoke = format!(
        "REVOKE CONNECT ON DATABASE {} FROM {}",
        quoted(database),
        case.grantees()
    );
    (case.facts.neighbours.catalog).then(|| found.fix(Step::Grants, [revoke]))
}

fn connect(case: &Case<'_>, findings: &mut Vec<Finding>) {
    let database = &case.facts.database.database;
    let on = quoted(database);
    let object = format!("database {database}");
    let login = case.login();
    let others = &case.facts.neighbours.connect;
    if case.facts.database.public_connect {
        findings.push(
            finding(
                Warning,
                "database-connect",
                object,
                "every role of the server can connect to it",
                "roles of other tenants get in, and are stopped by what was granted inside alone",
            )
            .fix(
                Step::Grants,
                [
                    format!("GRANT CONNECT ON DATABASE {on} TO {login}"),
                    format!("REVOKE CONNECT ON DATABASE {on} FROM PUBLIC"),
                ],
            ),
        );
    } else if !others.is_empty() {
        let roles: Vec<_> = others.iter().map(|role| quoted(role)).collect();
        findings.push(
            finding(
                Warning,
                "database-connect",
                object,
                format!("roles of other tenants can connect to it: {}", some(others)),
                "they get in, and are stopped by what was granted inside alone",
            )
            .fix(
                Step::Grants,
                [format!(
                    "REVOKE CONNECT ON DATABASE {on} FROM {}",
                    roles.join(", ")
                )],
            ),
        );
    }
}
