//! Which functions and triggers a session can reach, as parts of a
//! [question](crate::backend::residue::Question).
//!
//! What a tenant makes must not count for others, who would be taken for having done what its
//! functions do. So neither what is in the temporary schema of another session counts, nor what
//! belongs to a role that cannot act here. The answer is the same for all sessions of a login,
//! whatever role they have taken on: it is remembered for all of them.
//!
//! All names are qualified: the session's `search_path` is the client's.

/// So many functions of a session's own are looked up, and the functions of so many triggers; what
/// more of them do is not known.
pub const MAX_OWN: usize = 64;

/// So many characters of a source are read.
pub const MAX_SOURCE: usize = 100_000;

/// - `roles`: whose rights a session of this login can have.
/// - `spaces`: schemas that these may use, but for temporary ones.
/// - `actors`: who else acts in such a session: owners of functions with SECURITY DEFINER, and of
///   relations that the roles may write to: of views, whose tables are written to in their owner's
///   name, and of tables, whose foreign keys are.
pub const WITH: &str = "\
    WITH roles AS MATERIALIZED (SELECT oid FROM pg_catalog.pg_roles \
        WHERE pg_catalog.pg_has_role(session_user, oid, 'MEMBER'::pg_catalog.text)), \
    spaces AS MATERIALIZED (SELECT n.oid FROM pg_catalog.pg_namespace n \
        WHERE NOT pg_catalog.pg_is_other_temp_schema(n.oid) AND n.oid OPERATOR(pg_catalog.<>) pg_catalog.pg_my_temp_schema() \
        AND EXISTS (SELECT FROM roles r WHERE pg_catalog.has_schema_privilege(r.oid, n.oid, 'USAGE'::pg_catalog.text))), \
    actors AS MATERIALIZED (SELECT p.proowner AS oid FROM pg_catalog.pg_proc p \
        WHERE p.prosecdef AND p.pronamespace OPERATOR(pg_catalog.=) ANY (SELECT oid FROM spaces) \
        AND EXISTS (SELECT FROM roles r WHERE pg_catalog.has_function_privilege(r.oid, p.oid, 'EXECUTE'::pg_catalog.text)) \
        UNION SELECT c.relowner FROM pg_catalog.pg_class c \
        WHERE c.relkind OPERATOR(pg_catalog.=) ANY (ARRAY['r', 'p', 'v', 'f']::pg_catalog.\"char\"[]) \
        AND c.relnamespace OPERATOR(pg_catalog.=) ANY (SELECT oid FROM spaces) \
        AND EXISTS (SELECT FROM roles r WHERE \
            pg_catalog.has_table_privilege(r.oid, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE'::pg_catalog.text) \
            OR pg_catalog.has_any_column_privilege(r.oid, c.oid, 'INSERT, UPDATE'::pg_catalog.text))) ";

/// Name and language of a function `p`, and the beginning of its source. One in standard SQL (BEGIN
/// ATOMIC) is kept as a tree.
fn source() -> String {
    format!(
        "p.proname::pg_catalog.text OPERATOR(pg_catalog.||) ' ' OPERATOR(pg_catalog.||) l.lanname, \
         pg_catalog.substr(CASE WHEN p.prosqlbody IS NULL THEN p.prosrc \
         ELSE pg_catalog.pg_get_function_sqlbody(p.oid) END, 1, {MAX_SOURCE}) FROM pg_catalog.pg_proc p \
         JOIN pg_catalog.pg_language l ON l.oid OPERATOR(pg_catalog.=) p.prolang"
    )
}

/// Not in a temporary schema, nor only within reach of others.
fn is_reached(schema: &str, owner: &str, right: &str) -> String {
    format!(
        "NOT pg_catalog.pg_is_other_temp_schema({schema}) \
         AND {schema} OPERATOR(pg_catalog.<>) pg_catalog.pg_my_temp_schema() \
         AND ({schema} OPERATOR(pg_catalog.=) ANY (SELECT oid FROM spaces) AND EXISTS (SELECT FROM roles r WHERE {right}) \
         OR {owner} OPERATOR(pg_catalog.=) ANY (SELECT oid FROM actors))"
    )
}

/// Functions of these names. `names`: quoted, with commas.
pub fn functions(names: &str) -> String {
    let reached = is_reached(
        "p.pronamespace",
        "p.proowner",
        "pg_catalog.has_function_privilege(r.oid, p.oid, 'EXECUTE'::pg_catalog.text)",
    );
    let source = source();
    format!(
        "SELECT 'function ' OPERATOR(pg_catalog.||) {source} \
         WHERE p.proname OPERATOR(pg_catalog.=) ANY (ARRAY[{names}]::pg_catalog.name[]) AND {reached}"
    )
}

/// Functions of the triggers of tables and views.
pub fn triggers() -> String {
    let reached = is_reached(
        "c.relnamespace",
        "c.relowner",
        "pg_catalog.has_table_privilege(r.oid, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE'::pg_catalog.text) \
         OR pg_catalog.has_any_column_privilege(r.oid, c.oid, 'INSERT, UPDATE'::pg_catalog.text)",
    );
    let source = source();
    format!(
        "SELECT 'trigger ' OPERATOR(pg_catalog.||) {source} WHERE EXISTS (SELECT FROM pg_catalog.pg_trigger t \
         JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.tgrelid \
         WHERE t.tgfoid OPERATOR(pg_catalog.=) p.oid AND NOT t.tgisinternal AND {reached})"
    )
}

/// Functions of the session's own temporary schema, and of the triggers of its temporary tables:
/// what lies in a schema depends on it, which there is an index of.
pub fn own() -> [String; 2] {
    let lies_there = |kind: &str| {
        format!(
            "SELECT d.objid FROM pg_catalog.pg_depend d \
             WHERE d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass \
             AND d.refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema() \
             AND d.classid OPERATOR(pg_catalog.=) '{kind}'::pg_catalog.regclass"
        )
    };
    let most = MAX_OWN + 1;
    let source = source();
    [
        format!(
            "(SELECT 'own-function ' OPERATOR(pg_catalog.||) {source} \
             WHERE p.oid OPERATOR(pg_catalog.=) ANY ({}) LIMIT {most})",
            lies_there("pg_catalog.pg_proc")
        ),
        format!(
            "(SELECT 'own-trigger ' OPERATOR(pg_catalog.||) {source} \
             WHERE p.oid OPERATOR(pg_catalog.=) ANY (SELECT t.tgfoid FROM pg_catalog.pg_trigger t \
             WHERE NOT t.tgisinternal AND t.tgrelid OPERATOR(pg_catalog.=) ANY ({})) LIMIT {most})",
            lies_there("pg_catalog.pg_class")
        ),
    ]
}

/// Names of the variables that policies read by `current_setting` with a constant, in their own
/// text or in that of functions that they call, and that those call. Which functions a policy
/// calls, the server knows; which ones a function calls is taken from its text. 16384 is the first
/// number of what is made after initdb (`FirstNormalObjectId`). There is no backslash in it, which
/// could mean another thing in the client's session.
pub const POLICY_VARIABLES: &str = "\
    SELECT 'policy-variable', pg_catalog.lower(m.name[1]) FROM (\
        WITH RECURSIVE called(oid) AS (\
            SELECT d.refobjid FROM pg_catalog.pg_depend d \
            WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_policy'::pg_catalog.regclass \
            AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass \
            UNION SELECT p.oid FROM called c \
            JOIN pg_catalog.pg_proc f ON f.oid OPERATOR(pg_catalog.=) c.oid \
            JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid \
            AND p.proname OPERATOR(pg_catalog.~) '^[a-z_][a-z0-9_]*$'::pg_catalog.text \
            AND f.prosrc OPERATOR(pg_catalog.~*) \
                ('[[:<:]]' OPERATOR(pg_catalog.||) p.proname::pg_catalog.text OPERATOR(pg_catalog.||) '[[:>:]]')) \
        SELECT pg_catalog.pg_get_expr(polqual, polrelid) FROM pg_catalog.pg_policy \
        UNION ALL SELECT pg_catalog.pg_get_expr(polwithcheck, polrelid) FROM pg_catalog.pg_policy \
        UNION ALL SELECT CASE WHEN p.prosqlbody IS NULL THEN p.prosrc \
            ELSE pg_catalog.pg_get_function_sqlbody(p.oid) END \
        FROM pg_catalog.pg_proc p JOIN called c ON p.oid OPERATOR(pg_catalog.=) c.oid) t(source), \
    LATERAL pg_catalog.regexp_matches(t.source, \
        'current_setting[[:space:]]*[(][[:space:]]*e?''([^'']+)'''::pg_catalog.text, 'gi'::pg_catalog.text) m(name)";
