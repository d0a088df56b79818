//! The attacks. Their words in braces are made in [`stage`](super::stage).
//!
//! | word | stands for |
//! |---|---|
//! | `loot` | a query that shows B's rows to who may see them |
//! | `table`, `b_table`, `name` | A's table, B's, and both without their schema |
//! | `variable`, `a`, `b` | the variable that tells tenants apart, and its values |
//! | `head`, `tail`, `upper`, `hex`, `unicode` | the variable in two parts, in capitals, and in escapes of E'' and U&'' |
//! | `context` | the variable of the seal |
//! | `a_tenant`, `b_tenant` | whose a row is |
//! | `secret`, `number`, `planted` | B's canaries, and A's |
//! | `b_role`, `b_schema`, `b_database`, `b_user` | where they are not A's, too |
//! | `setter` | a function of the database that sets the variable |
//! | `acting`, `application` | the user and the database of an application that may act for A alone |
//! | `choice`, `a_id`, `b_id` | the variable by which it chooses, and what it calls A and B |
//! | `sjis` | a character of Shift-JIS that ends in a backslash |

use super::Category::{Direct, Door, Hidden, Neighbours, Residue};
use super::Connections::{One, Several};
use super::Sign::{Changed, Hindered, Planted, Read};
use super::Step::{
    Await, Batch, Begin, BindOnly, Bound, Call, CopyIn, Crowd, Leave, LogIn, Pid, Prepare, Query,
    Run, Work,
};
use super::Variant::{Scene, Trick};
use super::Who::{A, B};
use super::{Attack, Category, Connections, Sign, Variant};

/// `pg_catalog.set_config`.
const SET_CONFIG: u32 = 2078;
/// `pg_catalog.query_to_xml`.
const QUERY_TO_XML: u32 = 2924;

const fn attack(
    category: Category,
    name: &'static str,
    gives: &'static str,
    sign: Sign,
    connections: Connections,
    variants: &'static [Variant],
) -> Attack {
    Attack {
        name,
        category,
        gives,
        variants,
        sign,
        connections,
        is_harmless: true,
    }
}

const fn direct(name: &'static str, gives: &'static str, variants: &'static [Variant]) -> Attack {
    attack(Direct, name, gives, Read, One, variants)
}

const fn hidden(name: &'static str, gives: &'static str, variants: &'static [Variant]) -> Attack {
    attack(Hidden, name, gives, Read, One, variants)
}

const fn harmful(attack: Attack) -> Attack {
    Attack {
        is_harmless: false,
        ..attack
    }
}

/// In the order of the attack list: direct, hidden, at the door, residue, neighbours.
#[rustfmt::skip]
pub const ATTACKS: &[Attack] = &[
    direct("read", "B's rows, asked for by name", &[
        Trick(&[]),
        Scene(&[Bound(A, "SELECT secret FROM {b_table} WHERE tenant = $1", &["{b_tenant}"])]),
        Scene(&[Query(A, "COPY (SELECT secret FROM {b_table}) TO STDOUT")]),
        Scene(&[Query(A, "COPY {b_table} TO STDOUT")]),
        Scene(&[Query(A, "SELECT b FROM {b_table} b WHERE secret IS NOT NULL FOR UPDATE")]),
    ]),
    attack(Direct, "write", "rows changed, deleted or forged in B's name", Changed, One, &[
        Scene(&[Query(A, "UPDATE {b_table} SET secret = 'x' WHERE tenant = '{b_tenant}'")]),
        Scene(&[Query(A, "DELETE FROM {b_table} WHERE tenant = '{b_tenant}'")]),
        Scene(&[Query(A, "INSERT INTO {b_table} (tenant, id, secret) VALUES ('{b_tenant}', 1000, 'forged')")]),
        Scene(&[Query(A, "INSERT INTO {b_table} (tenant, id, secret) VALUES ('{b_tenant}', 1, 'x') \
                          ON CONFLICT (tenant, id) DO UPDATE SET secret = 'x'")]),
        Scene(&[Query(A, "MERGE INTO {b_table} t USING (SELECT 1) s ON t.tenant = '{b_tenant}' WHEN MATCHED THEN DELETE")]),
        Scene(&[Query(A, "UPDATE {b_table} SET tenant = '{b_tenant}', id = id + 1000 WHERE tenant = '{a_tenant}'")]),
        Scene(&[CopyIn(A, "COPY {b_table} (tenant, id, secret) FROM STDIN", "{b_tenant}\t1001\tforged\n")]),
    ]),
    attack(Direct, "truncate", "B's rows gone: policies do not govern TRUNCATE", Changed, One, &[
        Scene(&[Query(A, "TRUNCATE {b_table}")]),
    ]),
    direct("set", "acting as B by SET, SET SESSION, SET LOCAL", &[
        Trick(&["SET {variable} = '{b}'"]),
        Trick(&["SET SESSION {variable} TO '{b}'"]),
        Trick(&["SET LOCAL {variable} = '{b}'"]),
    ]),
    direct("set_config", "acting as B by set_config, for the session, the transaction, by parameters", &[
        Trick(&["SELECT set_config('{variable}', '{b}', false)"]),
        Trick(&["SELECT pg_catalog.set_config('{variable}', '{b}', true)"]),
        Scene(&[
            Query(A, "BEGIN"),
            Bound(A, "SELECT set_config($1, $2, false)", &["{variable}", "{b}"]),
            Query(A, "{loot}"),
            Query(A, "ROLLBACK"),
        ]),
        Scene(&[Query(A, "{loot} UNION ALL SELECT set_config('{variable}', '{b}', false)"), Query(A, "{loot}")]),
    ]),
    direct("function call", "acting as B by the protocol's FunctionCall of set_config", &[
        Scene(&[Query(A, "BEGIN"), Call(A, SET_CONFIG, &["{variable}", "{b}", "f"]), Query(A, "{loot}"), Query(A, "ROLLBACK")]),
        Scene(&[Call(A, SET_CONFIG, &["{variable}", "{b}", "f"]), Query(A, "{loot}")]),
        Scene(&[
            Query(A, "BEGIN"),
            Call(A, QUERY_TO_XML, &["SELECT set_config('{variable}', '{b}', false)", "t", "t", ""]),
            Query(A, "{loot}"),
            Query(A, "ROLLBACK"),
        ]),
    ]),
    direct("reset", "acting as whoever the connection was opened for, by RESET and DISCARD", &[
        Trick(&["RESET {variable}"]),
        Trick(&["RESET ALL"]),
        Trick(&["SET {variable} TO DEFAULT"]),
        Scene(&[Query(A, "DISCARD ALL"), Query(A, "{loot}")]),
    ]),
    direct("rollback", "going back to whose turn it was before, by ending the transaction that carries the context", &[
        Trick(&["ROLLBACK"]),
        Trick(&["ABORT AND CHAIN"]),
        Scene(&[Batch(A, &["ROLLBACK", "{loot}"])]),
    ]),
    direct("role", "B's role, or the login's own, by SET and RESET of ROLE and SESSION AUTHORIZATION", &[
        Trick(&["SET ROLE {b_role}"]),
        Trick(&["SET SESSION AUTHORIZATION {b_role}"]),
        Trick(&["RESET ROLE"]),
        Trick(&["SET ROLE NONE"]),
        Trick(&["RESET SESSION AUTHORIZATION"]),
        Trick(&["SET SESSION AUTHORIZATION DEFAULT"]),
        Trick(&["SET SESSION SESSION AUTHORIZATION {b_role}"]),
        Trick(&["SET SESSION ROLE {b_role}"]),
    ]),
    direct("search_path", "B's tables by their schema", &[
        Trick(&["SET search_path = {b_schema}", "SELECT secret FROM {name}"]),
    ]),
    direct("function with SET", "acting as B inside of a function with a SET clause", &[
        Trick(&[
            "CREATE FUNCTION pg_temp.peek() RETURNS SETOF text LANGUAGE sql SET {variable} = '{b}' AS 'SELECT secret FROM {table}'",
            "SELECT pg_temp.peek()",
        ]),
        Trick(&[
            "CREATE FUNCTION pg_temp.peek2() RETURNS SETOF text LANGUAGE sql AS 'SELECT secret FROM {table}'",
            "ALTER FUNCTION pg_temp.peek2() SET {variable} = '{b}'",
            "SELECT pg_temp.peek2()",
        ]),
    ]),
    direct("alter table", "policies switched off, or one more that lets everything through", &[
        Scene(&[Query(A, "BEGIN"), Query(A, "ALTER TABLE {table} DISABLE ROW LEVEL SECURITY"), Query(A, "{loot}"), Query(A, "ROLLBACK")]),
        Scene(&[Query(A, "BEGIN"), Query(A, "CREATE POLICY everyone ON {table} USING (true)"), Query(A, "{loot}"), Query(A, "ROLLBACK")]),
    ]),
    direct("leaky function", "B's rows, told by a cheap function in the condition before the policy has judged them", &[
        Scene(&[
            Query(A, "CREATE FUNCTION pg_temp.tell(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS \
                      $$ BEGIN RAISE NOTICE '%', $1; RETURN true; END $$"),
            Query(A, "SELECT 1 FROM {table} WHERE pg_temp.tell(secret)"),
        ]),
    ]),
    direct("statistics", "B's values in what the planner keeps of the table", &[
        Scene(&[Query(A, "SELECT histogram_bounds, most_common_vals FROM pg_stats WHERE tablename = '{name}'")]),
        Scene(&[Query(A, "SELECT stavalues1, stavalues2 FROM pg_statistic WHERE starelid = '{table}'::regclass")]),
    ]),
    harmful(direct("alter role", "acting as B in every later session of the role", &[
        Scene(&[
            Query(A, "ALTER ROLE CURRENT_USER SET {variable} = '{b}'"),
            Query(A, "SELECT pg_terminate_backend(pg_backend_pid())"),
            Query(A, "{loot}"),
            Query(A, "RESET {variable}; {loot}"),
            Query(A, "ALTER ROLE CURRENT_USER RESET {variable}"),
        ]),
    ])),
    harmful(attack(Direct, "spoil the role", "B's sessions, where tenants share a role: what it begins with changed", Hindered, One, &[
        Scene(&[
            Query(A, "ALTER ROLE CURRENT_USER SET default_transaction_read_only = on"),
            Query(A, "SELECT pg_terminate_backend(pg_backend_pid())"),
            Leave(A),
            Work,
            Leave(B),
            Query(A, "BEGIN READ WRITE; ALTER ROLE CURRENT_USER RESET default_transaction_read_only; COMMIT"),
            // The connection began with it.
            Query(A, "SELECT pg_terminate_backend(pg_backend_pid())"),
        ]),
    ])),
    harmful(direct("alter database", "acting as B in every later session of the database", &[
        Scene(&[
            Query(A, "ALTER DATABASE {database} SET {variable} = '{b}'"),
            Query(A, "SELECT pg_terminate_backend(pg_backend_pid())"),
            Query(A, "RESET {variable}; {loot}"),
            Query(A, "ALTER DATABASE {database} RESET {variable}"),
        ]),
    ])),

    hidden("comments and case", "acting as B by a SET that is hard to find", &[
        Trick(&["/* /* SELECT */ */ sEt/**/Session--\n \"{variable}\"/* = */=\n'{b}'"]),
        Trick(&["SET {upper} = '{b}'"]),
        Trick(&["SELECT 1; ; SET {variable} = '{b}'"]),
        Trick(&["SELECT pg_catalog . SET_CONFIG /* ( */\n ( '{variable}' ::text, '{b}', false)"]),
    ]),
    hidden("escapes", "acting as B by names in U&\"\" and E''", &[
        Trick(&["SELECT U&\"set\\005fconfig\"('{variable}', '{b}', false)"]),
        Trick(&["SELECT set_config(U&'{unicode}', '{b}', false)"]),
        Trick(&["SELECT set_config(E'{hex}', '{b}', false)"]),
        Trick(&["SELECT set_config(U&'{unicode!}' UESCAPE '!', '{b}', false)"]),
    ]),
    hidden("dollar quotes", "acting as B by names in dollar quotes", &[
        Trick(&["SELECT $x$'$x$, set_config($${variable}$$, $b${b}$b$, false)"]),
    ]),
    hidden("put together", "acting as B by a name that is put together", &[
        Trick(&["SELECT set_config('{head}' || '{tail}', '{b}', false)"]),
        Trick(&["SELECT set_config('{head}'\n'{tail}', '{b}', false)"]),
        Trick(&["SELECT set_config('{head}'--\n'{tail}', '{b}', false)"]),
        Trick(&["SELECT set_config(format('%s%s', '{head}', '{tail}'), '{b}', false)"]),
        Trick(&["SELECT set_config(name, '{b}', false) FROM (VALUES ('{variable}')) v(name)"]),
    ]),
    hidden("inside of others", "acting as B by a call within other statements", &[
        Trick(&["COPY (SELECT set_config('{variable}', '{b}', false)) TO STDOUT"]),
        Trick(&["SELECT set_config('{variable}', set_config('become.tenant', '{b}', false), false)"]),
        Trick(&["EXPLAIN ANALYZE SELECT set_config('{variable}', '{b}', false)"]),
        Trick(&["VALUES (set_config('{variable}', '{b}', false))"]),
        Trick(&["SELECT * FROM set_config('{variable}', '{b}', false) WITH ORDINALITY"]),
        Scene(&[
            Query(A, "BEGIN"),
            Query(A, "DECLARE c CURSOR FOR SELECT set_config('{variable}', '{b}', false)"),
            Query(A, "FETCH c"),
            Query(A, "{loot}"),
            Query(A, "ROLLBACK"),
        ]),
    ]),
    hidden("prepare", "acting as B by SQL's PREPARE, or a named statement that is run later", &[
        Trick(&["PREPARE become AS SELECT set_config('{variable}', $1, false)", "EXECUTE become('{b}')", "DEALLOCATE become"]),
        Scene(&[
            Prepare(A, "become", "SELECT set_config('{variable}', '{b}', false)"),
            Query(A, "BEGIN"), Run(A, "become"), Query(A, "{loot}"), Query(A, "ROLLBACK"),
        ]),
    ]),
    hidden("bind", "acting as B by a cast that runs during Bind, with nothing executed", &[
        Scene(&[
            Query(A, "BEGIN"),
            Query(A, "CREATE DOMAIN pg_temp.become AS text CHECK (set_config('{variable}', VALUE, false) IS NOT NULL)"),
            BindOnly(A, "SELECT $1::pg_temp.become", &["{b}"]),
            Query(A, "{loot}"),
            Query(A, "ROLLBACK"),
        ]),
    ]),
    hidden("do", "acting as B by a DO block", &[
        Trick(&["DO $$ BEGIN PERFORM set_config('{variable}', '{b}', false); END $$"]),
        Trick(&["DO $$ BEGIN EXECUTE 'S' || 'ET {head}' || '{tail} = ''{b}'''; END $$"]),
        Trick(&["DO 'BEGIN PERFORM set_config(''{variable}'', ''{b}'', false); END'"]),
        Trick(&["DO $$ BEGIN NULL; END -- $$; SELECT set_config('{variable}', '{b}', false) --\n"]),
        Trick(&["DO $$ BEGIN PERFORM CASE WHEN true THEN set_config('{variable}', '{b}', false) END; END $$"]),
        Trick(&["DO $$ DECLARE f text := 'set_con'; BEGIN EXECUTE 'SELECT ' || f || 'fig($1, $2, false)' USING '{variable}', '{b}'; END $$"]),
    ]),
    hidden("temporary function", "acting as B by a function or an aggregate in pg_temp", &[
        Trick(&[
            "CREATE FUNCTION pg_temp.become() RETURNS text LANGUAGE sql AS $$ SELECT set_config('{variable}', '{b}', false) $$",
            "SELECT pg_temp.become()",
            "DROP FUNCTION pg_temp.become()",
        ]),
        Trick(&[
            "CREATE AGGREGATE pg_temp.become(text, boolean) (sfunc = pg_catalog.set_config, stype = text, initcond = '{variable}')",
            "SELECT pg_temp.become('{b}', false)",
            "DROP AGGREGATE pg_temp.become(text, boolean)",
        ]),
    ]),
    hidden("a function of the database", "acting as B by a function that sets the variable and is there already", &[
        Trick(&["SELECT {setter}('{b}')"]),
    ]),
    hidden("xml", "acting as B by query_to_xml and its like, which run SQL in strings", &[
        Trick(&["SELECT query_to_xml('SELECT set_config(''{variable}'', ''{b}'', false)', true, true, '')"]),
        Trick(&["SELECT query_to_xml_and_xmlschema('SELECT set_' || 'config(''{variable}'', ''{b}'', false)', true, true, '')"]),
    ]),
    hidden("text search", "acting as B by ts_stat and ts_rewrite, which run SQL in strings", &[
        Trick(&["SELECT * FROM ts_stat('SELECT to_tsvector(set_config(''{variable}'', ''{b}'', false))')"]),
        Trick(&["SELECT ts_rewrite('a'::tsquery, 'SELECT ''x''::tsquery, ''y''::tsquery FROM set_config(''{variable}'', ''{b}'', false)')"]),
    ]),
    hidden("pg_settings", "acting as B in an UPDATE of pg_settings", &[
        Trick(&["UPDATE pg_settings SET setting = set_config('{variable}', '{b}', false) WHERE name = 'application_name'"]),
    ]),
    hidden("backslashes", "acting as B by a call that looks like a string, with standard_conforming_strings off", &[
        Scene(&[
            LogIn(&[("standard_conforming_strings", "off")]),
            Query(A, "BEGIN"),
            Query(A, "SELECT 'x\\'', set_config('{variable}', '{b}', false), 'y\\''"),
            Query(A, "{loot}"),
            Query(A, "ROLLBACK"),
        ]),
        Scene(&[
            LogIn(&[("options", "-c standard_conforming_strings=off")]),
            Query(A, "BEGIN"),
            Query(A, "SELECT 'x\\'', set_config('{variable}', '{b}', false), 'y\\''"),
            Query(A, "{loot}"),
            Query(A, "ROLLBACK"),
        ]),
        Scene(&[
            Query(A, "SET standard_conforming_strings = off"),
            Query(A, "BEGIN"),
            Query(A, "SELECT 'x\\'', set_config('{variable}', '{b}', false), 'y\\''"),
            Query(A, "{loot}"),
            Query(A, "ROLLBACK"),
        ]),
    ]),
    hidden("encoding", "acting as B by a call that looks like a string in Shift-JIS", &[
        Scene(&[
            LogIn(&[("client_encoding", "SJIS")]),
            Query(A, "BEGIN"),
            Query(A, "SELECT E'{sjis}', set_config('{variable}', '{b}', false)"),
            Query(A, "{loot}"),
            Query(A, "ROLLBACK"),
        ]),
        Scene(&[
            LogIn(&[("options", "-c client_encoding=shift_jis_2004")]),
            Query(A, "BEGIN"),
            Query(A, "SELECT E'{sjis}', set_config('{variable}', '{b}', false)"),
            Query(A, "{loot}"),
            Query(A, "ROLLBACK"),
        ]),
        Scene(&[
            Query(A, "SET client_encoding = 'SJIS'"),
            Query(A, "BEGIN"),
            Query(A, "SELECT E'{sjis}', set_config('{variable}', '{b}', false)"),
            Query(A, "{loot}"),
            Query(A, "ROLLBACK"),
        ]),
        Scene(&[
            Query(A, "SET client_encoding = $$SJIS$$"),
            Query(A, "BEGIN"),
            Query(A, "SELECT E'{sjis}', set_config('{variable}', '{b}', false)"),
            Query(A, "{loot}"),
            Query(A, "ROLLBACK"),
        ]),
        Scene(&[
            Query(A, "SET NAMES E'\\x53JIS'"),
            Query(A, "BEGIN"),
            Query(A, "SELECT E'{sjis}', set_config('{variable}', '{b}', false)"),
            Query(A, "{loot}"),
            Query(A, "ROLLBACK"),
        ]),
    ]),
    hidden("forged seal", "acting as B by the name of the sealed context", &[
        Trick(&["SET {context} = '{b_tenant}'"]),
        Trick(&["SELECT set_config('{context}', replace(current_setting('{context}'), '{a_tenant}', '{b_tenant}'), false)"]),
    ]),

    attack(Door, "startup parameters", "acting as B by the variable in the StartupMessage or its options", Read, One, &[
        Scene(&[LogIn(&[("{variable}", "{b}")]), Query(A, "{loot}")]),
        Scene(&[LogIn(&[("{upper}", "{b}")]), Query(A, "{loot}")]),
        Scene(&[LogIn(&[("options", "-c {variable}={b}")]), Query(A, "{loot}")]),
        Scene(&[LogIn(&[("options", "--{variable}={b}")]), Query(A, "{loot}")]),
        Scene(&[LogIn(&[("{context}", "{b_tenant}")]), Query(A, "{loot}")]),
    ]),
    attack(Door, "login as B", "B's session with A's password", Read, One, &[
        Scene(&[LogIn(&[("user", "{b_user}")]), Query(A, "{loot}"), Query(A, "SELECT secret FROM {name}")]),
        Scene(&[LogIn(&[("database", "{b_database}")]), Query(A, "SELECT secret FROM {name}")]),
    ]),
    attack(Door, "application", "B's rows by the login of an application that may act for A only", Read, One, &[
        Scene(&[LogIn(&[("user", "{acting}"), ("database", "{application}")]), Query(A, "SET {choice} = '{b_id}'"), Query(A, "{loot}")]),
        Scene(&[
            LogIn(&[("user", "{acting}"), ("database", "{application}")]),
            Query(A, "BEGIN"), Query(A, "SET LOCAL {choice} TO $${b_id}$$"), Query(A, "{loot}"), Query(A, "ROLLBACK"),
        ]),
        Scene(&[
            LogIn(&[("user", "{acting}"), ("database", "{application}")]),
            Query(A, "SET {choice} = '{a_id}'"), Query(A, "{loot}"),
            Query(A, "SELECT set_config('{choice}', '{b_id}', false)"), Query(A, "{loot}"),
        ]),
        Scene(&[
            LogIn(&[("user", "{acting}"), ("database", "{application}")]),
            Query(A, "SET {choice} = '{a_id}'"),
            Bound(A, "SELECT set_config($1, $2, false)", &["{choice}", "{b_id}"]), Query(A, "{loot}"),
        ]),
        Scene(&[
            LogIn(&[("user", "{acting}"), ("database", "{application}")]),
            Query(A, "SET {choice} = '{a_id}'"),
            Bound(A, "select set_config(el->>0, el->>1, false) from json_array_elements($1::json) el", &["[[\"{choice}\",\"{b_id}\"]]"]),
            Query(A, "{loot}"),
        ]),
        Scene(&[LogIn(&[("user", "{acting}"), ("database", "{application}"), ("{choice}", "{b_id}")]), Query(A, "{loot}")]),
        Scene(&[LogIn(&[("user", "{acting}"), ("database", "{application}"), ("options", "-c {choice}={b_id}")]), Query(A, "{loot}")]),
    ]),
    attack(Door, "application's second choice", "the same by a choice of B that is hidden behind one of A", Read, One, &[
        Scene(&[
            LogIn(&[("user", "{acting}"), ("database", "{application}")]),
            Query(A, "SET {choice} = '{a_id}'; {loot}; SET {choice} = '{b_id}'; {loot}"),
            Query(A, "{loot}"),
        ]),
        Scene(&[
            LogIn(&[("user", "{acting}"), ("database", "{application}")]),
            Query(A, "BEGIN; SET LOCAL {choice} = '{a_id}'; {loot}"),
            Query(A, "SELECT set_config('a.b', '', true), set_config('{choice}', '{b_id}', true)"),
            Query(A, "{loot}"), Query(A, "ROLLBACK"),
        ]),
        Scene(&[
            LogIn(&[("user", "{acting}"), ("database", "{application}")]),
            Query(A, "SET {choice} = '{a_id}'; DO $$ BEGIN PERFORM set_config('{choice}', '{b_id}', false); END $$; {loot}"),
            Query(A, "{loot}"),
        ]),
        Scene(&[
            LogIn(&[("user", "{acting}"), ("database", "{application}")]),
            Query(A, "SET {choice} = '{a_id}'; SELECT E'a' --\n'b\\', ' ; SET {choice} = $${b_id}$$; {loot}; --'"),
        ]),
        Scene(&[
            LogIn(&[("user", "{acting}"), ("database", "{application}")]),
            Query(A, "SET client_encoding = 'SJIS'"), Query(A, "SET {choice} = '{a_id}'"),
            Query(A, "SELECT E'{sjis}', set_config('{choice}', '{b_id}', false)"), Query(A, "{loot}"),
        ]),
        Scene(&[
            LogIn(&[("user", "{acting}"), ("database", "{application}")]),
            Query(A, "SET standard_conforming_strings = off"), Query(A, "SET {choice} = '{a_id}'"),
            Query(A, "SELECT 'x\\'', set_config('{choice}', '{b_id}', false), 'y\\''"), Query(A, "{loot}"),
        ]),
        Scene(&[
            LogIn(&[("user", "{acting}"), ("database", "{application}")]),
            Query(A, "SET {choice} = '{a_id}'"),
            Prepare(A, "chooses", "SELECT set_config('{choice}', '{b_id}', false)"), Run(A, "chooses"), Query(A, "{loot}"),
        ]),
        Scene(&[
            LogIn(&[("user", "{acting}"), ("database", "{application}")]),
            Query(A, "SET {choice} = '{a_id}'"),
            Prepare(A, "chooses", "SELECT set_config('{choice}', '{b_id}', false)"), Query(A, "EXECUTE chooses; {loot}"), Query(A, "{loot}"),
        ]),
        Scene(&[
            LogIn(&[("user", "{acting}"), ("database", "{application}")]),
            Query(A, "SET {choice} = '{a_id}'"),
            Query(A, "PREPARE chooses AS SELECT set_config('{choice}', $1, false)"), Query(A, "EXECUTE chooses('{b_id}')"), Query(A, "{loot}"),
        ]),
        Scene(&[
            LogIn(&[("user", "{acting}"), ("database", "{application}")]),
            Query(A, "SET {choice} = '{a_id}'"),
            Query(A, "SELECT U&\"set\\005fconfig\"('{choice}', '{b_id}', false)"), Query(A, "{loot}"),
        ]),
        Scene(&[
            LogIn(&[("user", "{acting}"), ("database", "{application}")]),
            Query(A, "SET {choice} = '{a_id}'"),
            Query(A, "WITH x AS MATERIALIZED (SELECT set_config('{choice}', '{b_id}', false)) SELECT * FROM x"), Query(A, "{loot}"),
        ]),
        Scene(&[
            LogIn(&[("user", "{acting}"), ("database", "{application}")]),
            Query(A, "SET {choice} = '{a_id}'"),
            Call(A, SET_CONFIG, &["{choice}", "{b_id}", "f"]), Query(A, "{loot}"),
        ]),
        Scene(&[
            LogIn(&[("user", "{acting}"), ("database", "{application}")]),
            Query(A, "BEGIN; SET LOCAL {choice} = '{a_id}'; {loot}"),
            Call(A, QUERY_TO_XML, &["SELECT set_config('{choice}', '{b_id}', false)", "t", "t", ""]),
            Query(A, "{loot}"), Query(A, "ROLLBACK"),
        ]),
    ]),

    attack(Residue, "variables left", "what B kept in variables of its own", Read, One, &[
        Scene(&[Query(B, "SET my_app.kept = '{secret}'"), Leave(B), Query(A, "SELECT current_setting('my_app.kept', true)")]),
        Scene(&[Query(B, "SELECT set_config('my_app.kept', '{secret}', false)"), Query(A, "SELECT current_setting('my_app.kept', true)")]),
    ]),
    attack(Residue, "temporary tables left", "what B kept in temporary tables", Read, One, &[
        Scene(&[Query(B, "CREATE TEMP TABLE kept AS SELECT '{secret}'::text AS secret"), Leave(B), Query(A, "SELECT * FROM kept")]),
    ]),
    attack(Residue, "prepared statements left", "the texts of B's statements, and running them", Read, One, &[
        Scene(&[Query(B, "PREPARE kept AS SELECT '{secret}'::text"), Leave(B), Query(A, "EXECUTE kept")]),
        Scene(&[Query(B, "PREPARE kept2 AS SELECT '{secret}'::text"), Leave(B), Query(A, "SELECT statement FROM pg_prepared_statements")]),
        Scene(&[Prepare(B, "kept3", "SELECT '{secret}'::text"), Run(B, "kept3"), Leave(B), Run(A, "kept3"), Query(A, "SELECT statement FROM pg_prepared_statements")]),
        Scene(&[Prepare(B, "", "SELECT '{secret}'::text"), Leave(B), Run(A, "")]),
    ]),
    attack(Residue, "plans left", "B's rows by a plan that was made for B", Read, One, &[
        Scene(&[
            Prepare(B, "own", "SELECT secret FROM {table}"),
            Run(B, "own"), Run(B, "own"), Run(B, "own"), Run(B, "own"), Run(B, "own"), Run(B, "own"), Run(B, "own"),
            Leave(B),
            Prepare(A, "own", "SELECT secret FROM {table}"),
            Run(A, "own"), Run(A, "own"),
        ]),
    ]),
    attack(Residue, "cursors left", "what B's cursors WITH HOLD show", Read, One, &[
        Scene(&[Query(B, "DECLARE kept CURSOR WITH HOLD FOR SELECT '{secret}'::text"), Leave(B), Query(A, "FETCH ALL FROM kept")]),
    ]),
    attack(Residue, "sequence values left", "numbers that B took, by lastval() and currval()", Read, One, &[
        Scene(&[Query(B, "SELECT nextval('{sequence}')"), Leave(B), Query(A, "SELECT lastval()")]),
        Scene(&[Query(B, "SELECT nextval('{sequence}')"), Query(A, "SELECT currval('{sequence}')")]),
    ]),
    attack(Residue, "locks left", "advisory locks of B's on a connection that A gets", Read, One, &[
        Scene(&[Query(B, "SELECT pg_advisory_lock({number})"), Leave(B), Query(A, "SELECT objid FROM pg_locks WHERE pid = pg_backend_pid()")]),
    ]),
    attack(Residue, "channels left", "what B listened to", Read, One, &[
        Scene(&[Query(B, "LISTEN kept_{secret}"), Leave(B), Query(A, "SELECT pg_listening_channels()")]),
    ]),
    attack(Residue, "traps left", "B working with what A has put in its way", Planted, One, &[
        Scene(&[Query(A, "CREATE TEMP TABLE pg_database AS SELECT '{planted}'::text AS datname"), Leave(A), Query(B, "SELECT datname FROM pg_database")]),
        Scene(&[Query(A, "CREATE TEMP TABLE {name} AS SELECT '{planted}'::text AS secret"), Leave(A), Query(B, "SELECT secret FROM {name}")]),
        Scene(&[Query(A, "PREPARE trap AS SELECT '{planted}'::text"), Leave(A), Query(B, "EXECUTE trap")]),
        Scene(&[Query(A, "SET application_name = '{planted}'"), Leave(A), Query(B, "SHOW application_name")]),
    ]),
    attack(Residue, "settings left", "B's writes, made to fail", Hindered, One, &[
        Scene(&[Query(A, "SET default_transaction_read_only = on"), Leave(A), Work]),
        Scene(&[Query(A, "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"), Work]),
    ]),

    attack(Neighbours, "watch", "what B runs at the moment", Read, Several, &[
        Scene(&[Query(B, "BEGIN"), Query(B, "SELECT '{secret}'"), Query(A, "SELECT query FROM pg_stat_activity"), Query(B, "COMMIT")]),
        Scene(&[
            Query(B, "BEGIN"), Query(B, "SELECT '{secret}'"),
            Query(A, "SELECT pg_stat_get_backend_activity(n) FROM pg_stat_get_backend_idset() n"),
            Query(B, "COMMIT"),
        ]),
        Scene(&[Query(B, "BEGIN"), Query(B, "SELECT '{secret}'"), Query(A, "SELECT query FROM pg_stat_get_activity(NULL)"), Query(B, "COMMIT")]),
    ]),
    attack(Neighbours, "watch locks", "which advisory locks B holds", Read, Several, &[
        Scene(&[Query(B, "BEGIN"), Query(B, "SELECT pg_advisory_xact_lock({number})"), Query(A, "SELECT objid FROM pg_locks"), Query(B, "COMMIT")]),
        Scene(&[Query(B, "BEGIN"), Query(B, "SELECT pg_advisory_xact_lock({number})"), Query(A, "SELECT objid FROM pg_lock_status()"), Query(B, "COMMIT")]),
    ]),
    attack(Neighbours, "terminate", "B's connection ended", Hindered, Several, &[
        Scene(&[Query(B, "BEGIN"), Pid, Query(A, "SELECT pg_terminate_backend({b_pid})"), Query(B, "SELECT pg_sleep(0.2)"), Query(B, "COMMIT")]),
    ]),
    attack(Neighbours, "cancel", "B's statement ended", Hindered, Several, &[
        Scene(&[
            Query(B, "BEGIN"), Pid, Begin(B, "SELECT pg_sleep(1)"),
            Query(A, "SELECT pg_sleep(0.1), pg_cancel_backend({b_pid})"),
            Query(A, "SELECT pg_sleep(0.2), pg_cancel_backend({b_pid})"),
            Await(B),
        ]),
    ]),
    attack(Neighbours, "take a lock", "B waiting for an advisory lock that A took with B's key", Hindered, Several, &[
        Scene(&[
            Query(A, "BEGIN"), Query(A, "SELECT pg_advisory_xact_lock({number})"),
            Query(B, "BEGIN"), Query(B, "SELECT pg_advisory_xact_lock({number})"), Query(B, "COMMIT"),
        ]),
        Scene(&[
            Query(A, "BEGIN"), Query(A, "SELECT TREAT({number} AS pg_advisory_xact_lock)"),
            Query(B, "BEGIN"), Query(B, "SELECT pg_advisory_xact_lock({number})"), Query(B, "COMMIT"),
        ]),
    ]),
    attack(Neighbours, "large objects", "what B kept in large objects, which no policy governs", Read, Several, &[
        Scene(&[
            Query(B, "SELECT lo_from_bytea({number}, '{secret}')"),
            Query(A, "SELECT convert_from(lo_get({number}), 'UTF8')"),
            Query(A, "SELECT data FROM pg_largeobject"),
            Query(B, "SELECT lo_unlink({number})"),
        ]),
    ]),
    attack(Neighbours, "listen", "what B notifies itself of", Read, Several, &[
        Scene(&[
            Query(A, "LISTEN heard_{number}"), Query(B, "NOTIFY heard_{number}, '{secret}'"),
            Query(A, "SELECT pg_sleep(0.1)"), Query(A, "SELECT pg_sleep(0.1)"),
        ]),
    ]),
    attack(Neighbours, "notify", "B told something by A", Planted, Several, &[
        Scene(&[
            Query(B, "LISTEN told_{number}"), Query(A, "NOTIFY told_{number}, '{planted}'"),
            Query(B, "SELECT pg_sleep(0.1)"), Query(B, "SELECT pg_sleep(0.1)"),
        ]),
        Scene(&[
            Query(B, "LISTEN told_{number}"), Query(A, "SELECT pg_notify('told_{number}', '{planted}')"),
            Query(B, "SELECT pg_sleep(0.1)"), Query(B, "SELECT pg_sleep(0.1)"),
        ]),
    ]),
    attack(Neighbours, "lock a table", "B waiting for a table that A has locked", Hindered, Several, &[
        Scene(&[Query(A, "BEGIN"), Query(A, "LOCK TABLE {b_table} IN ACCESS EXCLUSIVE MODE"), Work]),
    ]),
    harmful(attack(Neighbours, "hold the pool", "B waiting for a connection, while A holds all of them in transactions", Hindered, Several, &[
        Scene(&[Crowd(4), Work]),
    ])),
];
