//! What a tenant may not run in the posture `guarded` and up: statements that could change whose context the
//! connection carries, and what cannot be read well enough to tell.
//!
//! It reads what [`Effects`] tells. It cannot see inside of functions, so it is no wall by itself: the
//! seal is.

use super::effects::{Effects, What};

/// Parameters that are the proxy's, whatever the context: roles, and what changes how SQL is read.
const PROTECTED: [&str; 5] = [
    "role",
    "session_authorization",
    "standard_conforming_strings",
    "backslash_quote",
    "escape_string_warning",
];

/// Why a statement is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offence {
    /// In one word, for the audit.
    pub kind: &'static str,
    /// For the client, as PostgreSQL would put it.
    pub message: String,
    pub hint: &'static str,
}

const ASK_OPERATOR: &str = "It is set by pgtenant for the tenant that is logged in.";
const BE_PLAIN: &str =
    "Write it as a plain statement; pgtenant must be able to read what could change the tenant.";

/// Whether a text with these effects may run. `context`: names of the variables that only the proxy sets, in lower
/// case.
///
/// # Errors
/// The first offence.
pub fn check<'a>(
    effects: &Effects,
    mut context: impl Iterator<Item = &'a str> + Clone,
) -> Result<(), Offence> {
    let offence = |kind, message: &str, hint| {
        Err(Offence {
            kind,
            message: message.to_owned(),
            hint,
        })
    };
    let what = effects.what;
    if what.contains(What::HIDDEN) {
        let message = "permission denied for a statement that cannot be read";
        return offence("hidden", message, BE_PLAIN);
    }
    let settings = effects.settings.iter().map(|setting| &*setting.name);
    let mut named = settings.chain(effects.local.iter().map(|name| &**name));
    let protected = named.find(|name| {
        PROTECTED.contains(name) || context.clone().any(|own| own.eq_ignore_ascii_case(name))
    });
    if let Some(name) = protected {
        let message = format!("permission denied to set parameter \"{name}\"");
        return offence("set", &message, ASK_OPERATOR);
    }
    let is_unknown = what.intersects(What::SETS_UNKNOWN | What::SETS_UNKNOWN_LOCALLY);
    if is_unknown && context.next().is_some() {
        let message = "permission denied to set a parameter that is not named in the statement";
        return offence("set", message, BE_PLAIN);
    }
    if what.contains(What::ENCODING) {
        let message = "permission denied to set this client_encoding";
        let hint = "Use one in which no byte of a character is ASCII, such as UTF8.";
        return offence("encoding", message, hint);
    }
    if what.contains(What::RUNS_STRINGS) {
        let message = "permission denied to run SQL from a string";
        return offence("string", message, BE_PLAIN);
    }
    if what.contains(What::DEFINES) {
        let message = "permission denied to define code or settings";
        let hint = "Migrations run as a role of their own, not through a tenant's login.";
        return offence("define", message, hint);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(sql: &str) -> Option<&'static str> {
        let effects = Effects::of(sql.as_bytes(), false);
        let context = ["app.tenant_id", "pgtenant.context"];
        check(&effects, context.iter().copied())
            .err()
            .map(|offence| offence.kind)
    }

    #[test]
    fn what_could_change_the_tenant_is_refused() {
        for (sql, expected) in [
            ("SET app.tenant_id = 'b'", "set"),
            ("set session \"App\".\"Tenant_ID\" to 'b'", "set"),
            ("/* x */ SET/**/LOCAL app . tenant_id = 'b'", "set"),
            ("SELECT 1; RESET app.tenant_id", "set"),
            ("SET app.tenant_id TO DEFAULT", "set"),
            ("SELECT set_config('app.tenant_id', 'b', false)", "set"),
            ("SELECT set_config('app.tenant_id', 'b', true)", "set"),
            (
                "SELECT pg_catalog.\"set_config\" ('APP.TENANT_ID', 'b', true)",
                "set",
            ),
            ("SELECT set_config('app.' || 'tenant_id', 'b', true)", "set"),
            ("SELECT set_config($1, $2, $3)", "set"),
            ("SELECT set_config(E'app.tenant\\x5fid', 'b', true)", "set"),
            ("SELECT set_config($$app.tenant_id$$, 'b', true)", "set"),
            (
                "SELECT set_config(U&'app.tenant\\005fid', 'b', true)",
                "hidden",
            ),
            (
                "SELECT U&\"set\\005fconfig\"('app.tenant_id', 'b', true)",
                "hidden",
            ),
            (
                "SELECT DISTINCT ON (1) set_config('app.tenant_id', 'b', true)",
                "set",
            ),
            (
                "PREPARE x AS SELECT set_config('app.tenant_id', 'b', true)",
                "set",
            ),
            (
                "COPY (SELECT set_config('app.tenant_id', 'b', true)) TO STDOUT",
                "set",
            ),
            (
                "EXPLAIN ANALYZE SELECT set_config('app.tenant_id', 'b', true)",
                "set",
            ),
            (
                "SELECT $x$a$x$, set_config('app.tenant_id', 'b', true)",
                "set",
            ),
            ("SET ROLE b", "set"),
            ("RESET SESSION AUTHORIZATION", "set"),
            ("SET LOCAL SESSION AUTHORIZATION b", "set"),
            ("SET standard_conforming_strings = off", "set"),
            ("SET NAMES 'SJIS'", "encoding"),
            (
                "UPDATE pg_settings SET setting = 'b' WHERE name = 'app.tenant_id'",
                "set",
            ),
            ("UPDATE pg_catalog.pg_settings SET setting = 'b'", "set"),
            (
                "SELECT query_to_xml('SELECT set_config(''a.b'', ''c'', true)', true, true, '')",
                "string",
            ),
            ("SELECT * FROM ts_stat('SELECT 1')", "string"),
            (
                "DO $$ BEGIN EXECUTE 'SET app.tenant' || '_id = ''b'''; END $$",
                "string",
            ),
            (
                "DO $$ BEGIN PERFORM set_config('app.tenant_id', 'b', false); END $$",
                "set",
            ),
            ("DO 'BEGIN NULL; END'", "set"),
            (
                "CREATE FUNCTION pg_temp.f() RETURNS text LANGUAGE sql AS 'SELECT 1'",
                "define",
            ),
            (
                "CREATE OR REPLACE AGGREGATE x (text) (sfunc = set_config)",
                "define",
            ),
            (
                "CREATE OR REPLACE PROCEDURE p() LANGUAGE sql AS ''",
                "define",
            ),
            (
                "CREATE DOMAIN d AS text CHECK (set_config('a.b', VALUE, true) IS NULL)",
                "define",
            ),
            ("ALTER ROLE app SET app.tenant_id = 'b'", "define"),
            ("ALTER DATABASE app SET app.tenant_id = 'b'", "define"),
            ("ALTER FUNCTION f() SET app.tenant_id = 'b'", "define"),
            ("LOAD 'x'", "define"),
            ("SELECT 'a", "hidden"),
            ("SELECT 1 /* a", "hidden"),
        ] {
            assert_eq!(kind(sql), Some(expected), "{sql}");
        }
    }

    #[test]
    fn what_applications_and_drivers_do_is_let_through() {
        for sql in [
            "SELECT 1",
            "SELECT 'SET app.tenant_id = 1', set_config('app.user', $1, true)",
            "DISCARD ALL",
            "RESET ALL",
            "SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "SET application_name = 'x'; SET extra_float_digits = 3; SET TIME ZONE 'UTC'",
            "SET client_encoding TO 'UTF8'",
            "SET search_path = app, public",
            "SET LOCAL statement_timeout = 5",
            "CREATE TEMP TABLE t (a int)",
            "CREATE INDEX ON t (a)",
            "ALTER TABLE t ADD b int",
            "DO $$ BEGIN PERFORM 1; END $$",
            "EXECUTE p (1)",
            "UPDATE t SET a = 1",
        ] {
            assert_eq!(kind(sql), None, "{sql}");
        }
    }
}
