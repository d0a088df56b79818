//! Ways around tables: functions of the server that show or hinder neighbours, files, languages,
//! other servers, and settings of roles and databases that undo what the proxy sets.

use super::case::{Case, Mend, finding, quoted, some};
use crate::config::Posture;
use crate::findings::Severity::{Critical, Notice, Warning};
use crate::findings::{Finding, Severity, Step};

/// Functions of one kind.
struct Kind {
    check: &'static str,
    severity: Severity,
    /// Whether it matters where every tenant has a role of its own.
    always: bool,
    /// Who needs it still.
    keep_for: Option<&'static str>,
    problem: &'static str,
    why: &'static str,
    functions: &'static [&'static str],
}

const KINDS: [Kind; 8] = [
    Kind {
        check: "side-channel-activity",
        severity: Warning,
        always: false,
        keep_for: Some("pg_read_all_stats"),
        problem: "the application's role may see the sessions of its role",
        why: "all tenants are that role: pg_stat_activity shows each one's running SQL, values included, to the others",
        functions: &["pg_stat_get_activity", "pg_stat_get_backend_activity"],
    },
    Kind {
        check: "side-channel-signal",
        severity: Warning,
        always: false,
        keep_for: Some("pg_signal_backend"),
        problem: "the application's role may end and cancel the sessions of its role",
        why: "all tenants are that role: each can end the others' sessions",
        functions: &["pg_terminate_backend", "pg_cancel_backend"],
    },
    Kind {
        check: "side-channel-notify",
        severity: Notice,
        always: false,
        keep_for: None,
        problem: "the application's role may execute pg_notify",
        why: "channels are the database's: a tenant can send into another's, and LISTEN to it (LISTEN itself cannot be revoked)",
        functions: &["pg_notify"],
    },
    Kind {
        check: "side-channel-large-objects",
        severity: Notice,
        always: false,
        keep_for: None,
        problem: "the application's role may make large objects",
        why: "large objects have an owner and no row level security: what one tenant keeps there, all can read",
        functions: &["lo_create", "lo_creat", "lo_from_bytea"],
    },
    Kind {
        check: "server-files",
        severity: Critical,
        always: true,
        keep_for: None,
        problem: "the application's role may use the server's files",
        why: "the data of all tenants is in them",
        functions: &[
            "pg_read_file",
            "pg_read_binary_file",
            "pg_ls_dir",
            "pg_stat_file",
            "lo_import",
            "lo_export",
            "pg_file_write",
            "pg_file_read",
            "pg_file_unlink",
            "pg_file_rename",
            "pg_file_sync",
        ],
    },
    Kind {
        check: "dblink-unchecked",
        severity: Critical,
        always: true,
        keep_for: None,
        problem: "the application's role may connect from the server without a password",
        why: "the server connects as whom pg_hba.conf trusts, which may be a superuser",
        functions: &["dblink_connect_u"],
    },
    Kind {
        check: "dblink",
        severity: Warning,
        always: true,
        keep_for: None,
        problem: "the application's role may connect from the server to others",
        why: "such a connection is not the proxy's: it carries no tenant, and goes where clients cannot",
        functions: &[
            "dblink",
            "dblink_connect",
            "dblink_exec",
            "dblink_send_query",
            "dblink_open",
        ],
    },
    Kind {
        check: "stat-statements",
        severity: Warning,
        always: false,
        keep_for: Some("pg_read_all_stats"),
        problem: "the application's role may read pg_stat_statements",
        why: "it shows the SQL of all tenants, and values where statements are not normalized",
        functions: &["pg_stat_statements"],
    },
];

/// Every function that is looked for.
pub fn names() -> Vec<&'static str> {
    KINDS
        .iter()
        .flat_map(|kind| kind.functions)
        .copied()
        .collect()
}

pub fn judge(case: &Case<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    needs(case, &mut findings);
    settings(case, &mut findings);
    findings.extend(lock_table(case));
    if case.is_superuser() {
        return findings;
    }
    // A tenant alone on its server has no neighbours.
    if case.target.has_company() {
        functions(case, &mut findings);
        reach(case, &mut findings);
    }
    if case.target.by_policies() {
        making(case, &mut findings);
    }
    findings
}

/// What the proxy itself needs.
fn needs(case: &Case<'_>, findings: &mut Vec<Finding>) {
    if !case.target.by_policies() {
        return;
    }
    let database = &case.facts.database;
    if !database.set_config_is_2078 {
        findings.push(finding(
            Critical,
            "set-config-number",
            "function pg_catalog.set_config(text,text,boolean)",
            "it is not function 2078 of this server",
            "the proxy sets the tenant by calling that number: here it would call something else",
        ));
    } else if !database.set_config_executable {
        findings.push(
            finding(
                Warning,
                "set-config-executable",
                "function pg_catalog.set_config(text,text,boolean)",
                "the application's role may not execute it",
                "nothing leaks: the proxy cannot set the tenant, and no client is served",
            )
            .fix(
                Step::Grants,
                [format!(
                    "GRANT EXECUTE ON FUNCTION pg_catalog.set_config(text, text, boolean) TO {}",
                    case.login()
                )],
            ),
        );
    }
}

fn functions(case: &Case<'_>, findings: &mut Vec<Finding>) {
    for kind in KINDS {
        if !kind.always && !case.target.by_policies() {
            continue;
        }
        let found: Vec<_> = case
            .facts
            .executable
            .iter()
            .filter(|function| kind.functions.contains(&&*function.name))
            .collect();
        if found.is_empty() {
            continue;
        }
        let mut sql = Vec::new();
        for function in &found {
            let signature = &function.signature;
            sql.push(format!(
                "REVOKE EXECUTE ON FUNCTION {signature} FROM {}",
                case.grantees()
            ));
            if let Some(role) = kind.keep_for {
                sql.push(format!("GRANT EXECUTE ON FUNCTION {signature} TO {role}"));
            }
        }
        let mut signatures: Vec<_> = found.iter().map(|f| f.signature.clone()).collect();
        signatures.sort();
        findings.push(
            finding(
                kind.severity,
                kind.check,
                format!("function {}", some(&signatures)),
                kind.problem,
                kind.why,
            )
            .fix(Step::Grants, sql),
        );
    }
}

/// Ways out of the database.
fn reach(case: &Case<'_>, findings: &mut Vec<Finding>) {
    let database = &case.facts.database;
    for (word, names) in [
        ("FOREIGN DATA WRAPPER", &database.wrappers),
        ("FOREIGN SERVER", &database.foreign_servers),
    ] {
        for name in names {
            findings.push(
                finding(
                    Warning,
                    "foreign-server",
                    format!("{} {name}", word.to_lowercase()),
                    "the application's role may use it",
                    "such a connection is not the proxy's: it carries no tenant, and goes where clients cannot",
                )
                .fix(
                    Step::Grants,
                    [format!("REVOKE USAGE ON {word} {} FROM {}", quoted(name), case.grantees())],
                ),
            );
        }
    }
}

/// What the role may make in a database that tenants share.
#[expect(clippy::too_many_lines, reason = "one finding after the other")]
fn making(case: &Case<'_>, findings: &mut Vec<Finding>) {
    let database = &case.facts.database;
    let this = format!("database {}", database.database);
    // The guard cannot see it, and the seal need not.
    let unseen = match case.target.posture {
        Posture::Guarded => Warning,
        Posture::Plain | Posture::Sealed => Notice,
    };
    for schema in &database.creatable {
        findings.push(
            finding(
                Warning,
                "schema-create",
                format!("schema {schema}"),
                "the application's role may make objects in it",
                "a table or function there, named as one that others use, is used by other tenants",
            )
            .fix(
                Step::Grants,
                [format!(
                    "REVOKE CREATE ON SCHEMA {} FROM {}",
                    quoted(schema),
                    case.grantees()
                )],
            ),
        );
    }
    if database.create && !database.owned {
        findings.push(
            finding(
                Warning,
                "database-create",
                &*this,
                "the application's role may make schemas",
                "in a schema of its own it can keep what all tenants can reach",
            )
            .fix(
                Step::Grants,
                [format!(
                    "REVOKE CREATE ON DATABASE {} FROM {}",
                    quoted(&database.database),
                    case.grantees()
                )],
            ),
        );
    }
    if database.temp && !database.owned {
        findings.push(
            finding(
                unseen,
                "database-temp",
                this,
                "the application's role may make temporary objects",
                "a function in pg_temp can call set_config out of sight of who reads the SQL",
            )
            .fix(
                Step::Grants,
                [format!(
                    "REVOKE TEMPORARY ON DATABASE {} FROM {}",
                    quoted(&database.database),
                    case.grantees()
                )],
            ),
        );
    }
    if database.update_settings {
        findings.push(
            finding(
                unseen,
                "settings-update",
                "view pg_catalog.pg_settings",
                "the application's role may UPDATE it",
                "that sets variables, the tenant's too, without the words SET and set_config",
            )
            .fix(
                Step::Grants,
                [format!(
                    "REVOKE UPDATE ON pg_catalog.pg_settings FROM {}",
                    case.grantees()
                )],
            ),
        );
    }
    if !database.statistics.is_empty() {
        let views = database.statistics.iter();
        let views: Vec<_> = views
            .map(|name| format!("pg_catalog.{}", quoted(name)))
            .collect();
        findings.push(
            finding(
                Warning,
                "side-channel-statistics",
                format!("view {}", some(&database.statistics)),
                "the application's role may read it",
                "all tenants are that role: it shows each one the values of temporary tables that others have analyzed",
            )
            .fix(
                Step::Grants,
                [format!("REVOKE SELECT ON {} FROM {}", views.join(", "), case.grantees())],
            ),
        );
    }
    if database.lo_compat {
        findings.push(
            finding(
                Warning,
                "large-object-privileges",
                "setting lo_compat_privileges",
                "it is on",
                "every role reads and writes every large object",
            )
            .fix(
                Step::Settings,
                [format!(
                    "ALTER DATABASE {} SET lo_compat_privileges = off",
                    quoted(&database.database)
                )],
            ),
        );
    }
    if database.large_objects > 0 {
        findings.push(
            finding(
                Warning,
                "large-objects",
                format!("{} large objects", database.large_objects),
                "the application's role owns them",
                "they have no row level security: every tenant can list, read and change them",
            )
            .advice("Keep such data in a bytea column of a table with a policy."),
        );
    }
}

/// One tenant that holds all locks there are keeps everybody from reading.
fn lock_table(case: &Case<'_>) -> Option<Finding> {
    let database = &case.facts.database;
    if !case.target.has_company() || database.lockers == 0 {
        return None;
    }
    let capacity = database
        .locks_per_transaction
        .saturating_mul(database.lockers);
    // Half of the table is for others.
    let (object, problem) = match case.target.tenant_locks {
        Some(locks) if locks <= capacity / 2 => return None,
        Some(locks) => {
            let needed = (2 * locks).div_ceil(database.lockers).next_multiple_of(64);
            (
                format!("setting max_locks_per_transaction = {needed}"),
                format!(
                    "it is {}: the lock table has room for {capacity}, of which one tenant may take {locks}",
                    database.locks_per_transaction
                ),
            )
        }
        None => (
            "setting max_locks_per_transaction".to_owned(),
            format!("the lock table has room for {capacity}, of which one tenant may take all"),
        ),
    };
    let finding = finding(
        Notice,
        "lock-table",
        object,
        problem,
        "when it is full, statements of all tenants fail with 53200 (out of shared memory)",
    );
    Some(finding.advice(
        "Set max_locks_per_transaction in postgresql.conf as it is written here, which needs a restart and about 270 bytes of \
         shared memory for each lock; or lower the placement's pool.size, limits.savepoints or limits.objects.",
    ))
}

fn settings(case: &Case<'_>, findings: &mut Vec<Finding>) {
    let target = case.target;
    for setting in &case.facts.settings {
        let mut variables = target
            .tenant_variables
            .iter()
            .chain(&target.other_variables);
        let is_context = variables.any(|variable| variable.eq_ignore_ascii_case(&setting.name));
        let (severity, why) = match &*setting.name {
            _ if is_context => (
                Warning,
                "a connection that does not come through the proxy starts as that tenant",
            ),
            "row_security" if setting.value != "on" => (
                Warning,
                "connections that do not come through the proxy fail, or see all rows where their role may",
            ),
            "session_replication_role" if setting.value != "origin" => (
                Warning,
                "triggers and foreign keys do nothing: what keeps tenants' rows consistent is off",
            ),
            "role" => (
                Warning,
                "sessions are another role than the one that was inspected",
            ),
            "search_path" if target.by_policies() => (
                Notice,
                "names mean something else than in the rest of the database, until a client sets it again",
            ),
            _ => continue,
        };
        let database = setting.database.as_deref().map(quoted);
        let (object, sql) = match (&setting.role, database) {
            (Some(role), Some(database)) => (
                format!("role {role} in database {database}"),
                format!("ALTER ROLE {} IN DATABASE {database}", quoted(role)),
            ),
            (Some(role), None) => (
                format!("role {role}"),
                format!("ALTER ROLE {}", quoted(role)),
            ),
            (None, Some(database)) => (
                format!("database {database}"),
                format!("ALTER DATABASE {database}"),
            ),
            (None, None) => ("all roles".to_owned(), "ALTER ROLE ALL".to_owned()),
        };
        let variable: Vec<_> = setting.name.split('.').map(quoted).collect();
        findings.push(
            finding(
                severity,
                "setting",
                object,
                format!(
                    "{} is set to \"{}\" for its sessions",
                    setting.name, setting.value
                ),
                why,
            )
            .fix(
                Step::Settings,
                [format!("{sql} RESET {}", variable.join("."))],
            ),
        );
    }
}
