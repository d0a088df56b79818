//! What a database is to take away from the roles of tenants so that they can neither watch nor
//! hinder each other: printed, not run, because it takes a superuser and the operator's judgement.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use clap::ValueEnum;

use crate::config::Config;
use crate::control::door::SCRIPT_HEAD;
use crate::sql::literal;

/// Rights that some applications need. They are printed as comments unless asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// Temporary tables.
    Temp,
    /// DO blocks and functions of the application's own.
    Languages,
    /// pg_notify(); NOTIFY itself cannot be revoked.
    Notify,
    /// Advisory locks, which are common to all tenants.
    AdvisoryLocks,
    /// Large objects, which no row policy governs.
    LargeObjects,
    /// Everything above.
    All,
}

/// Functions that show or end other sessions. Nothing but monitoring needs them.
const WATCHING: &[&str] = &[
    "pg_blocking_pids",
    "pg_cancel_backend",
    "pg_isolation_test_session_is_blocked",
    "pg_lock_status",
    "pg_prepared_xact",
    "pg_safe_snapshot_blocking_pids",
    "pg_stat_get_activity",
    "pg_stat_get_backend_activity",
    "pg_stat_get_backend_activity_start",
    "pg_stat_get_backend_client_addr",
    "pg_stat_get_backend_client_port",
    "pg_stat_get_backend_dbid",
    "pg_stat_get_backend_idset",
    "pg_stat_get_backend_io",
    "pg_stat_get_backend_pid",
    "pg_stat_get_backend_start",
    "pg_stat_get_backend_subxact",
    "pg_stat_get_backend_userid",
    "pg_stat_get_backend_wait_event",
    "pg_stat_get_backend_wait_event_type",
    "pg_stat_get_backend_wal",
    "pg_stat_get_backend_xact_start",
    "pg_stat_get_progress_info",
    "pg_stat_get_wal_senders",
    "pg_stat_statements",
    "pg_stat_statements_info",
    "pg_stat_statements_reset",
    "pg_terminate_backend",
];

/// Patterns of function names, as of `LIKE`.
const NOTIFY: &[&str] = &["pg_notify"];
const ADVISORY_LOCKS: &[&str] = &["pg_advisory%", "pg_try_advisory%"];
const LARGE_OBJECTS: &[&str] = &["lo_%", "loread", "lowrite", "lo"];

/// The SQL for a placement. `owner`: who is to own tables and run migrations.
///
/// # Errors
/// There is no such placement, or it has no tenants.
pub fn harden(
    config: &Config,
    placement: &str,
    owner: Option<&str>,
    also: &[Group],
) -> Result<String, String> {
    let known = config.placements.keys();
    if !known.into_iter().any(|name| name.as_str() == placement) {
        return Err(format!("there is no placement {placement:?}"));
    }
    let routes = config.tenants.values().map(|tenant| &tenant.route);
    let routes: Vec<_> = routes
        .filter(|route| route.placement.name.as_str() == placement)
        .collect();
    let set = |of: &dyn Fn(&crate::config::Route) -> String| -> BTreeSet<String> {
        routes.iter().map(|route| of(route)).collect()
    };
    let roles = set(&|route| route.pool.login.user.clone());
    let databases = set(&|route| route.pool.database.clone());
    let servers = set(&|route| route.pool.server.to_string());
    let schemas = set(&|route| route.schema.clone().unwrap_or_else(|| "public".to_owned()));
    if roles.is_empty() {
        return Err(format!(
            "placement {placement} has no tenants: its roles are not known"
        ));
    }
    let owner = match (owner, roles.first()) {
        (Some(owner), _) => owner.to_owned(),
        (None, Some(role)) if roles.len() == 1 => format!("{role}_owner"),
        _ => format!("{placement}_owner"),
    };
    let printing = Printing {
        roles: list(&roles, quoted),
        owner: quoted(&owner),
        also,
    };
    let mut sql = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        sql,
        "-- What takes from the roles of placement {placement} what they need not have. Run it as a superuser in each\n\
         -- of its databases: {} (servers: {}). It can be run again.\n\
         -- Lines that begin with `--   ` are left out because applications may need what they take away: --also GROUP.\n",
        list(&databases, Clone::clone),
        list(&servers, Clone::clone),
    );
    sql += SCRIPT_HEAD;
    sql.push('\n');
    sql += &printing.roles(&owner, &roles);
    sql += &printing.schemas(&databases, &schemas);
    sql += &printing.functions();
    sql += WHAT_REMAINS;
    Ok(sql)
}

fn list(items: &BTreeSet<String>, show: impl Fn(&String) -> String) -> String {
    items.iter().map(show).collect::<Vec<_>>().join(", ")
}

#[allow(clippy::ptr_arg)] // for `list`
fn quoted(name: &String) -> String {
    crate::sql::quoted(name)
}

struct Printing<'a> {
    /// Quoted, with commas.
    roles: String,
    owner: String,
    also: &'a [Group],
}

impl Printing<'_> {
    /// Lines of a group: as they are if it was asked for, else as comments.
    fn optional(&self, group: Group, sql: &str) -> String {
        if self.also.contains(&group) || self.also.contains(&Group::All) {
            return sql.to_owned();
        }
        sql.lines().map(|line| format!("--   {line}\n")).collect()
    }

    fn roles(&self, owner: &str, roles: &BTreeSet<String>) -> String {
        let Self {
            owner: quoted_owner,
            ..
        } = self;
        let mut sql = format!(
            "-- 1. Roles: one that owns tables and runs migrations, one that watches, and those that tenants act as.\n\
             DO $$ BEGIN\n    \
                 IF to_regrole({0}) IS NULL THEN CREATE ROLE {quoted_owner} NOLOGIN; END IF;\n    \
                 IF to_regrole('pgtenant_monitor') IS NULL THEN CREATE ROLE pgtenant_monitor NOLOGIN; END IF;\n\
             END $$;\n",
            literal(quoted_owner)
        );
        for role in roles {
            let role = quoted(role);
            let _ = writeln!(
                sql,
                "ALTER ROLE {role} NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION;"
            );
        }
        let names: Vec<_> = roles.iter().map(|role| literal(role)).collect();
        let _ = write!(
            sql,
            "-- Owners of tables are above row level security unless it is FORCEd, and can switch it off. What an application's\n\
             -- role owns goes to {owner}: REASSIGN OWNED BY {} TO {quoted_owner}; then GRANT what it needs.\n\
             DO $$ DECLARE r record; BEGIN\n    \
                 FOR r IN SELECT c.oid::regclass AS what, c.relowner::regrole AS owner FROM pg_class c JOIN pg_roles o ON o.oid = c.relowner\n            \
                     WHERE o.rolname IN ({1}) AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND c.relpersistence <> 't' LOOP\n        \
                     RAISE WARNING '% is owned by %', r.what, r.owner;\n    \
                 END LOOP;\n    \
                 FOR r IN SELECT m.member::regrole AS member, m.roleid::regrole AS role FROM pg_auth_members m JOIN pg_roles o ON o.oid = m.member\n            \
                     JOIN pg_roles g ON g.oid = m.roleid WHERE o.rolname IN ({1})\n            \
                     AND (g.rolsuper OR g.rolbypassrls OR g.rolname LIKE 'pg\\_%' OR g.rolname = {2}) LOOP\n        \
                     RAISE WARNING '% is a member of %', r.member, r.role;\n    \
                 END LOOP;\n\
             END $$;\n\n",
            self.roles,
            names.join(", "),
            literal(owner),
        );
        sql
    }

    fn schemas(&self, databases: &BTreeSet<String>, schemas: &BTreeSet<String>) -> String {
        let Self { roles, owner, .. } = self;
        let mut sql = format!(
            "-- 2. Objects. Row level security governs neither TRUNCATE nor foreign keys nor triggers. Whoever can create a\n\
             -- function or an operator can have others run it.\n\
             REVOKE CREATE ON SCHEMA public FROM PUBLIC, {roles};\n"
        );
        for schema in schemas {
            let schema = quoted(schema);
            let _ = write!(
                sql,
                "REVOKE CREATE ON SCHEMA {schema} FROM {roles};\n\
                 REVOKE TRUNCATE, REFERENCES, TRIGGER ON ALL TABLES IN SCHEMA {schema} FROM PUBLIC, {roles};\n\
                 REVOKE UPDATE ON ALL SEQUENCES IN SCHEMA {schema} FROM PUBLIC, {roles};\n\
                 GRANT USAGE, CREATE ON SCHEMA {schema} TO {owner};\n"
            );
        }
        let _ = writeln!(
            sql,
            "DO $$ BEGIN EXECUTE format('REVOKE CREATE ON DATABASE %I FROM PUBLIC, {roles}', current_database()); END $$;\n\
             REVOKE UPDATE ON pg_catalog.pg_settings FROM PUBLIC;\n\
             -- Catalogs of what is common to all: who has logged in, with which settings, replicating to where.\n\
             REVOKE SELECT ON pg_catalog.pg_db_role_setting, pg_catalog.pg_largeobject_metadata FROM PUBLIC;"
        );
        for database in databases {
            let database = quoted(database);
            sql += &self.optional(
                Group::Temp,
                &format!("REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC, {roles};\n"),
            );
        }
        sql += &self.optional(
            Group::Languages,
            &format!(
                "REVOKE USAGE ON LANGUAGE plpgsql, sql FROM PUBLIC, {roles};\n\
                 GRANT USAGE ON LANGUAGE plpgsql, sql TO {owner};\n"
            ),
        );
        sql.push('\n');
        sql
    }

    fn functions(&self) -> String {
        let Self { owner, .. } = self;
        let mut sql =
            "-- 3. Functions that show, stop or reach other sessions, in whatever versions this server has them.\n".to_owned();
        sql += &revoke(WATCHING, "pg_monitor, pgtenant_monitor");
        // Not every version has all of these views.
        sql += "-- What ANALYZE keeps of a table, its most common values among them, is shown to whoever may read the table: a\n\
                -- temporary table of one tenant is its role's, so every tenant's of that role.\n\
                DO $$ DECLARE v regclass; BEGIN\n    \
                FOR v IN SELECT c.oid FROM pg_class c WHERE c.relnamespace = 'pg_catalog'::regnamespace\n            \
                AND c.relname IN ('pg_stats', 'pg_stats_ext', 'pg_stats_ext_exprs') LOOP\n        \
                EXECUTE format('REVOKE SELECT ON %s FROM PUBLIC', v);\n        \
                EXECUTE format('GRANT SELECT ON %s TO pg_monitor, pgtenant_monitor', v);\n    \
                END LOOP;\nEND $$;\n";
        // The extension may be in any schema.
        sql += "DO $$ DECLARE v regclass; BEGIN\n    \
                FOR v IN SELECT c.oid FROM pg_class c JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid\n            \
                AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'\n            \
                JOIN pg_extension e ON e.oid = d.refobjid\n            \
                WHERE e.extname = 'pg_stat_statements' AND c.relkind = 'v' LOOP\n        \
                EXECUTE format('REVOKE SELECT ON %s FROM PUBLIC', v);\n        \
                EXECUTE format('GRANT SELECT ON %s TO pg_monitor, pgtenant_monitor', v);\n    \
                END LOOP;\nEND $$;\n";
        for (group, names) in [
            (Group::Notify, NOTIFY),
            (Group::AdvisoryLocks, ADVISORY_LOCKS),
            (Group::LargeObjects, LARGE_OBJECTS),
        ] {
            sql += &self.optional(group, &revoke(names, owner));
        }
        sql.push('\n');
        sql
    }
}

fn revoke(names: &[&str], grantees: &str) -> String {
    let names: Vec<_> = names
        .iter()
        .map(|name| literal(&name.replace('_', "\\_")))
        .collect();
    format!(
        "DO $$ DECLARE f regprocedure; BEGIN\n    \
             FOR f IN SELECT p.oid FROM pg_proc p WHERE p.proname LIKE ANY (ARRAY[{}])\n            \
                 AND (p.pronamespace = 'pg_catalog'::regnamespace OR p.proname LIKE 'pg\\_stat\\_statements%') LOOP\n        \
                 EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f);\n        \
                 EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO {grantees}', f);\n    \
             END LOOP;\n\
         END $$;\n",
        names.join(", ")
    )
}

/// What no GRANT governs.
const WHAT_REMAINS: &str = "\
-- 4. Left alone, and why.
-- set_config(): pgtenant itself sets the context by it. In posture sealed what a tenant sets is worth nothing without the
-- right MAC; in plain and guarded it is worth what `context` is.
-- What no right governs: LOCK TABLE on tables that the role may write; NOTIFY and LISTEN on any channel; ALTER ROLE
-- CURRENT_USER SET … and PASSWORD and DROP OWNED BY CURRENT_USER, which spoil the login that tenants have in common; large queries. A role of its own for
-- each tenant (login: { user: \"t_{tenant}\" }) ends what goes by the role; the rest is for posture guarded and limits.
";

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn sql(also: &[Group]) -> String {
        let text = "servers: { s: { host: localhost, max_connections: 10 } }
placements: { p: { tier: pool, server: s, database: app, login: { user: \"t_{tenant}\" }, context: { app.tenant: \"{tenant}\" } } }
tenants: { a: { placement: p, users: { u: { password: u } } }, b: { placement: p, users: { u: { password: u } } } }";
        let config = crate::config::load_text(text, Path::new("."), &|_| None).unwrap();
        assert!(harden(&config, "q", None, also).is_err());
        harden(&config, "p", None, also).unwrap()
    }

    #[test]
    fn what_applications_may_need_is_a_comment_unless_asked_for() {
        let taken = |sql: &str, what: &str| {
            let mut lines = sql.lines().filter(|line| line.contains(what));
            lines.next().map(|line| !line.starts_with("--"))
        };
        let (few, all) = (sql(&[]), sql(&[Group::All]));
        for (what, always) in [
            ("REVOKE CREATE ON SCHEMA public", true),
            ("pg\\_terminate\\_backend", true),
            ("ALTER ROLE \"t_b\" NOSUPERUSER", true),
            ("REVOKE TEMPORARY", false),
            ("ON LANGUAGE", false),
            ("pg\\_notify", false),
            ("advisory", false),
        ] {
            assert_eq!(taken(&few, what), Some(always), "{what}");
            assert_eq!(taken(&all, what), Some(true), "{what}");
        }
        let temp = sql(&[Group::Temp]);
        assert_eq!(taken(&temp, "REVOKE TEMPORARY"), Some(true));
        assert_eq!(taken(&temp, "ON LANGUAGE"), Some(false));
    }
}
