//! Whether a tenant's role reaches the places of others, or theirs its own.

use super::case::{Case, Mend, finding, quoted, some};
use crate::config::Tier;
use crate::findings::Severity::{Critical, Warning};
use crate::findings::{Finding, Step};

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
    findings
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
