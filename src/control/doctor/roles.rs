//! The role that the proxy logs in as: what it is, and what it can become.

use super::case::{Case, Mend, finding, quoted, some};
use super::facts::Role;
use crate::findings::Severity::{Critical, Notice, Warning};
use crate::findings::{Finding, Severity, Step};

/// Roles of the server that give more than any application needs, and how bad each is among
/// tenants.
const PREDEFINED: [(&str, Severity, &str); 14] = [
    (
        "pg_read_all_data",
        Critical,
        "reads every table of the database, other tenants' schemas too",
    ),
    (
        "pg_write_all_data",
        Critical,
        "writes every table of the database, other tenants' schemas too",
    ),
    (
        "pg_read_server_files",
        Critical,
        "reads the server's files, the tables among them, past every policy",
    ),
    (
        "pg_write_server_files",
        Critical,
        "writes the server's files",
    ),
    (
        "pg_execute_server_program",
        Critical,
        "runs programs as the server",
    ),
    (
        "pg_database_owner",
        Warning,
        "owns the schema public, and may drop what is in it",
    ),
    ("pg_monitor", Warning, "sees what all sessions run"),
    ("pg_read_all_stats", Warning, "sees what all sessions run"),
    ("pg_signal_backend", Warning, "ends other tenants' sessions"),
    (
        "pg_signal_autovacuum_worker",
        Notice,
        "ends the server's housekeeping",
    ),
    ("pg_maintain", Warning, "locks other tenants' tables"),
    (
        "pg_create_subscription",
        Warning,
        "makes the server connect elsewhere",
    ),
    (
        "pg_stat_scan_tables",
        Warning,
        "locks and scans other tenants' tables",
    ),
    (
        "pg_use_reserved_connections",
        Warning,
        "takes the connections that are kept for the operator",
    ),
];

/// What the roles are told.
pub fn judge(case: &Case<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for role in &case.facts.roles {
        if role.is_login {
            of_login(case, role, &mut findings);
        } else {
            of_membership(case, role, &mut findings);
        }
    }
    if case.facts.database.owned {
        let database = &case.facts.database.database;
        findings.push(
            finding(
                in_company(case, Critical),
                "database-owner",
                format!("database {database}"),
                format!("the application's role \"{}\" owns it", case.target.place.login),
                "the owner may change the database's settings, and drop schemas, tables and policies in it",
            )
            .fix(
                Step::Owners,
                // What it had as the owner goes to the next one.
                [
                    format!("ALTER DATABASE {} OWNER TO CURRENT_USER", quoted(database)),
                    format!("GRANT CONNECT ON DATABASE {} TO {}", quoted(database), case.login()),
                ],
            ),
        );
    }
    findings
}

/// On a server that one tenant has to itself, nobody else is concerned.
fn in_company(case: &Case<'_>, severity: Severity) -> Severity {
    match case.target.has_company() {
        true => severity,
        false => Notice,
    }
}

fn of_login(case: &Case<'_>, role: &Role, findings: &mut Vec<Finding>) {
    let alone = !case.target.has_company();
    // Since PostgreSQL 16 only what was granted to it, or what it made, can be granted on.
    let create_role = match case.facts.database.version_num < 160_000 {
        true => Critical,
        false => Warning,
    };
    for (has, severity, check, word, why) in [
        (
            role.superuser,
            if alone { Warning } else { Critical },
            "role-superuser",
            "SUPERUSER",
            "no policy and no GRANT holds a superuser, who also reads files and runs programs on the server",
        ),
        (
            role.bypass_rls && !role.superuser,
            in_company(case, Critical),
            "role-bypassrls",
            "BYPASSRLS",
            "row level security is not applied to it",
        ),
        (
            role.create_role && !role.superuser,
            in_company(case, create_role),
            "role-createrole",
            "CREATEROLE",
            "it can grant itself other roles, or change their passwords",
        ),
        (
            // A tenant alone on its server may replicate it.
            role.replication && !role.superuser && !alone,
            Critical,
            "role-replication",
            "REPLICATION",
            "replication streams the data of all tenants of the server, past every policy",
        ),
        (
            role.create_db && !role.superuser,
            Notice,
            "role-createdb",
            "CREATEDB",
            "it can fill the server with databases, and copy one that nobody is connected to if it owns it",
        ),
    ] {
        if has {
            findings.push(
                finding(
                    severity,
                    check,
                    format!("role {}", role.name),
                    format!("has {word}"),
                    why,
                )
                .fix(
                    Step::Roles,
                    [format!("ALTER ROLE {} NO{word}", quoted(&role.name))],
                ),
            );
        }
    }
}

fn of_membership(case: &Case<'_>, role: &Role, findings: &mut Vec<Finding>) {
    let mut tell = |severity, check, problem: String, why| {
        let found = finding(
            severity,
            check,
            format!("role {}", case.target.place.login),
            problem,
            why,
        );
        findings.push(match role.via.is_empty() {
            // The owner of a database is a member of pg_database_owner without a grant.
            true => found,
            false => {
                let revoke = |via: &String| format!("REVOKE {} FROM {}", quoted(via), case.login());
                found.fix(Step::Roles, role.via.iter().map(revoke))
            }
        });
    };
    let member = format!(
        "is a member of \"{}\"{}",
        role.name,
        match &*role.via {
            [] => String::new(),
            [via] if *via == role.name => String::new(),
            via => format!(" (through {})", some(via)),
        }
    );
    if let Some((_, severity, why)) = PREDEFINED.iter().find(|(name, ..)| *name == role.name) {
        if !role.via.is_empty() {
            tell(
                in_company(case, *severity),
                "role-member-predefined",
                member,
                why,
            );
        }
        return;
    }
    let attributes: Vec<String> = [
        (role.superuser, "SUPERUSER"),
        (role.bypass_rls, "BYPASSRLS"),
        (role.create_role, "CREATEROLE"),
        (role.replication, "REPLICATION"),
    ]
    .iter()
    .filter(|(has, _)| *has)
    .map(|(_, word)| (*word).to_owned())
    .collect();
    if !attributes.is_empty() {
        tell(
            in_company(case, Critical),
            "role-member-privileged",
            format!("{member}, which has {}", attributes.join(", ")),
            "SET ROLE gives it those attributes",
        );
    } else if case.target.other_logins().contains(&role.name) {
        tell(
            Critical,
            "role-member-tenant",
            format!("{member}, which is the login of another tenant"),
            "SET ROLE makes it that tenant, RESET ROLE makes it itself again",
        );
    }
}
