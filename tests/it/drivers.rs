//! Conversations as drivers have them that are no part of these tests: pgjdbc, Npgsql, pgx, lib/pq,
//! asyncpg. What each sends at login, to prepare, to fetch in parts, in batches and when its pool
//! takes a connection back was read in its sources; here it is sent to PostgreSQL and through the
//! proxy, and answered by the same frames. In transaction pooling other clients see to it that each
//! transaction finds another server connection; and there a reset is reported as what the server
//! falls back to, and then as what the client began with. All that it is told in the end is as
//! direct.

use std::collections::BTreeMap;

use crate::differential::{Script, Step, difference, masked, steps};
use crate::harness::{POOLINGS, SECRET, Setup, TIERS, Tenant, World, tenant, world};
use crate::session_state::Others;
use crate::wire::{
    Frame, Wire, bind, bind_formats, close, copy_data, copy_done, copy_fail, describe, execute,
    flush, parse, parse_typed, query, sync,
};

const INT4: u32 = 23;
const TEXT: u32 = 25;

struct Driver {
    script: Script,
    /// What it puts into its StartupMessage beside user and database.
    startup: &'static [(&'static str, &'static str)],
}

/// A write that is answered by so many ReadyForQuery.
fn write(ready: usize, parts: &[Vec<u8>]) -> Step {
    Step(parts.concat(), b'Z', ready)
}

fn say(sql: &str) -> Step {
    Step(query(sql), b'Z', 1)
}

const BY_ID: &str = "SELECT id, body FROM items WHERE id = $1";

/// A row of `plain` in COPY's binary format, and its end.
const COPIED: &[u8] =
    b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\0\x02\0\0\0\x04\0\0\x02\xee\0\0\0\x01z\xff\xff"; // 750

/// Extended all the way, also for BEGIN; statements named `S_n` after a few executions, portals
/// `C_n`; closes what was garbage collected before the next query.
fn pgjdbc() -> Driver {
    let run = |sql: &str| [parse("", sql), bind("", "", &[]), execute("", 1)].concat();
    let asked = |sql: &str| {
        let parts = [
            parse("", sql),
            bind("", "", &[]),
            describe(b'P', ""),
            execute("", 0),
            sync(),
        ];
        write(1, &parts)
    };
    let one = |id| bind_formats("", "S_2", &[1], &[Some(&[0, 0, 0, id])], &[1, 0]);
    Driver {
        startup: &[
            ("client_encoding", "UTF8"),
            ("DateStyle", "ISO"),
            ("TimeZone", "America/New_York"),
            ("extra_float_digits", "2"),
            ("application_name", "PostgreSQL JDBC Driver"),
        ],
        script: steps(
            "pgjdbc",
            vec![
                write(1, &[run("SET extra_float_digits = 3"), sync()]),
                write(1, &[run("SET application_name = 'another'"), sync()]),
                asked(
                    "SELECT current_setting('TimeZone'), current_setting('application_name'), 0.1::float8 + 0.2",
                ),
                // isValid()
                write(1, &[run(""), sync()]),
                // autocommit off
                write(
                    1,
                    &[
                        run("BEGIN"),
                        parse("", "SELECT 1"),
                        bind("", "", &[]),
                        describe(b'P', ""),
                        execute("", 0),
                        sync(),
                    ],
                ),
                write(1, &[run("COMMIT"), sync()]),
                // named from the fifth execution on
                write(
                    1,
                    &[
                        parse("S_1", "BEGIN"),
                        bind("", "S_1", &[]),
                        execute("", 0),
                        parse_typed("S_2", BY_ID, &[INT4]),
                        one(1),
                        describe(b'P', ""),
                        execute("", 0),
                        sync(),
                    ],
                ),
                write(
                    1,
                    &[
                        parse("S_3", "COMMIT"),
                        bind("", "S_3", &[]),
                        execute("", 1),
                        sync(),
                    ],
                ),
                write(
                    1,
                    &[
                        bind("", "S_1", &[]),
                        execute("", 0),
                        one(2),
                        execute("", 0),
                        sync(),
                    ],
                ),
                write(1, &[bind("", "S_3", &[]), execute("", 1), sync()]),
                // the types of parameters that are not known
                write(
                    1,
                    &[
                        parse("S_4", BY_ID),
                        describe(b'S', "S_4"),
                        bind("", "S_4", &[Some("2")]),
                        execute("", 0),
                        sync(),
                    ],
                ),
                // a fetch size
                write(
                    1,
                    &[
                        bind("", "S_1", &[]),
                        execute("", 0),
                        parse("S_5", "SELECT generate_series(1, 8)"),
                        bind("C_6", "S_5", &[]),
                        describe(b'P', "C_6"),
                        execute("C_6", 3),
                        sync(),
                    ],
                ),
                write(1, &[execute("C_6", 3), sync()]),
                write(1, &[execute("C_6", 3), sync()]),
                write(
                    1,
                    &[
                        close(b'P', "C_6"),
                        bind("", "S_3", &[]),
                        execute("", 1),
                        sync(),
                    ],
                ),
                write(1, &[execute("C_6", 3), sync()]),
                // a batch, and one that fails half-way
                write(
                    1,
                    &[
                        bind("", "S_1", &[]),
                        execute("", 0),
                        parse_typed(
                            "S_7",
                            "INSERT INTO plain (id, body) VALUES ($1, $2)",
                            &[INT4, TEXT],
                        ),
                        bind("", "S_7", &[Some("750"), Some("a")]),
                        execute("", 1),
                        bind("", "S_7", &[Some("751"), Some("b")]),
                        execute("", 1),
                        sync(),
                    ],
                ),
                write(
                    1,
                    &[
                        bind("", "S_7", &[Some("752"), Some("c")]),
                        execute("", 1),
                        bind("", "S_7", &[Some("750"), Some("again")]),
                        execute("", 1),
                        bind("", "S_7", &[Some("753"), None]),
                        execute("", 1),
                        sync(),
                    ],
                ),
                write(1, &[bind("", "S_3", &[]), execute("", 1), sync()]),
                write(
                    1,
                    &[
                        parse("S_8", "ROLLBACK"),
                        bind("", "S_8", &[]),
                        execute("", 1),
                        sync(),
                    ],
                ),
                // autosave
                write(
                    1,
                    &[
                        bind("", "S_1", &[]),
                        execute("", 0),
                        parse("S_9", "SAVEPOINT PGJDBC_AUTOSAVE"),
                        bind("", "S_9", &[]),
                        execute("", 1),
                        run("SELECT 1/0"),
                        sync(),
                    ],
                ),
                write(
                    1,
                    &[
                        parse("S_10", "ROLLBACK TO SAVEPOINT PGJDBC_AUTOSAVE"),
                        bind("", "S_10", &[]),
                        execute("", 1),
                        sync(),
                    ],
                ),
                write(
                    1,
                    &[
                        bind("", "S_9", &[]),
                        execute("", 1),
                        one(1),
                        execute("", 0),
                        sync(),
                    ],
                ),
                write(
                    1,
                    &[
                        run("RELEASE SAVEPOINT PGJDBC_AUTOSAVE"),
                        bind("", "S_3", &[]),
                        execute("", 1),
                        sync(),
                    ],
                ),
                // setReadOnly, setTransactionIsolation, setSchema
                write(
                    1,
                    &[
                        run("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"),
                        sync(),
                    ],
                ),
                write(
                    1,
                    &[
                        run(
                            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
                        ),
                        sync(),
                    ],
                ),
                asked("SHOW TRANSACTION ISOLATION LEVEL"),
                write(
                    1,
                    &[run("BEGIN READ ONLY"), run("DELETE FROM items"), sync()],
                ),
                write(1, &[bind("", "S_8", &[]), execute("", 1), sync()]),
                write(
                    1,
                    &[
                        run("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE"),
                        sync(),
                    ],
                ),
                write(
                    1,
                    &[
                        run(
                            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED",
                        ),
                        sync(),
                    ],
                ),
                write(1, &[run("SET SESSION search_path TO 'pg_catalog'"), sync()]),
                asked("select current_schema()"),
                write(1, &[run("SET SESSION search_path TO DEFAULT"), sync()]),
                asked("select current_schema()"),
                // XA
                write(
                    1,
                    &[run("BEGIN"), run("PREPARE TRANSACTION '1_a_b'"), sync()],
                ),
                write(1, &[run("ROLLBACK PREPARED '1_a_b'"), sync()]),
                // what was garbage collected goes with the next query; a simple query follows
                // without waiting
                write(
                    2,
                    &[
                        close(b'S', "S_2"),
                        close(b'S', "S_4"),
                        run("SELECT 'closed'"),
                        sync(),
                        query("SELECT 'simple'; SELECT 2"),
                    ],
                ),
                write(1, &[one(1), execute("", 0), sync()]),
                write(1, &[bind("", "S_5", &[]), execute("", 0), sync()]),
                write(1, &[run("DEALLOCATE ALL"), sync()]),
                write(1, &[bind("", "S_5", &[]), execute("", 0), sync()]),
                write(
                    1,
                    &[
                        parse("S_11", "SELECT 'anew'"),
                        bind("", "S_11", &[]),
                        execute("", 0),
                        sync(),
                    ],
                ),
                write(1, &[run("DISCARD ALL"), sync()]),
                write(1, &[bind("", "S_11", &[]), execute("", 0), sync()]),
                asked("SELECT current_setting('TimeZone'), current_setting('extra_float_digits')"),
            ],
        ),
    }
}

/// Puts what resets the connection, BEGIN and SAVEPOINT in front of the next command, in the same
/// write; loads the types at login by several statements in one query; statements named `_p1` and
/// `_auto0`.
fn npgsql() -> Driver {
    const TYPES: &str = "SELECT 1;\n\n-- Load types\nSELECT ns.nspname, t.oid, t.typname, t.typtype FROM pg_type AS t \
        JOIN pg_namespace AS ns ON (ns.oid = typnamespace) WHERE nspname = 'pg_catalog' AND t.oid < 10000 ORDER BY t.oid;\n\n\
        -- Load enum fields\nSELECT t.oid, enumlabel FROM pg_enum JOIN pg_type AS t ON t.oid = enumtypid WHERE false ORDER BY oid, enumsortorder;";
    const RESET: &str = "SET SESSION AUTHORIZATION DEFAULT;RESET ALL;CLOSE ALL;UNLISTEN *;\
        SELECT pg_advisory_unlock_all();DISCARD SEQUENCES;DISCARD TEMP";
    let command = |sql: &str| {
        let parts = [
            parse("", sql),
            bind_formats("", "", &[], &[], &[1]),
            describe(b'P', ""),
            execute("", 0),
        ];
        parts.concat()
    };
    let by_id = |name: &str, id| {
        let parts = [
            bind_formats("", name, &[1], &[Some(&[0, 0, 0, id])], &[1]),
            execute("", 0),
        ];
        parts.concat()
    };
    let settings = "SELECT current_setting('TimeZone'), current_setting('work_mem'), current_setting('app.tenant_id', true)";
    Driver {
        startup: &[
            ("client_encoding", "UTF8"),
            ("application_name", "Npgsql"),
            ("TimeZone", "Europe/Berlin"),
        ],
        script: steps(
            "Npgsql",
            vec![
                say(TYPES),
                write(
                    1,
                    &[
                        command("SELECT id, body FROM items WHERE id < 950 ORDER BY id"),
                        sync(),
                    ],
                ),
                // only the schema
                write(1, &[parse("", BY_ID), describe(b'S', ""), sync()]),
                // BEGIN goes with the first command, SAVEPOINT with the next
                write(
                    2,
                    &[
                        query("BEGIN TRANSACTION ISOLATION LEVEL READ COMMITTED"),
                        command("SHOW transaction_isolation"),
                        sync(),
                    ],
                ),
                write(2, &[query("SAVEPOINT a"), command("SELECT 1/0"), sync()]),
                say("ROLLBACK TO SAVEPOINT a"),
                write(1, &[command("SELECT 'on'"), sync()]),
                say("COMMIT"),
                // Prepare() of two statements, and a batch of both
                write(
                    1,
                    &[
                        parse_typed("_p1", BY_ID, &[INT4]),
                        describe(b'S', "_p1"),
                        parse("_p2", "SELECT 'two'"),
                        describe(b'S', "_p2"),
                        sync(),
                    ],
                ),
                write(
                    1,
                    &[
                        by_id("_p1", 1),
                        bind("", "_p2", &[]),
                        execute("", 0),
                        by_id("_p1", 2),
                        sync(),
                    ],
                ),
                // a batch with error barriers
                write(
                    3,
                    &[
                        by_id("_p1", 1),
                        sync(),
                        command("SELECT 1/0"),
                        sync(),
                        by_id("_p1", 2),
                        sync(),
                    ],
                ),
                // several commands multiplexed
                write(
                    4,
                    &[
                        command("SELECT 1"),
                        sync(),
                        command("SELEC"),
                        sync(),
                        by_id("_p1", 1),
                        sync(),
                        command("SELECT 2"),
                        sync(),
                    ],
                ),
                // prepared by itself, another takes its place
                write(
                    1,
                    &[
                        parse("_auto0", "SELECT 'first'"),
                        bind("", "_auto0", &[]),
                        describe(b'P', ""),
                        execute("", 0),
                        sync(),
                    ],
                ),
                write(1, &[bind("", "_auto0", &[]), execute("", 0), sync()]),
                write(
                    1,
                    &[
                        close(b'S', "_auto0"),
                        parse("_auto0", "SELECT 'second'"),
                        bind("", "_auto0", &[]),
                        describe(b'P', ""),
                        execute("", 0),
                        sync(),
                    ],
                ),
                write(1, &[bind("", "_auto0", &[]), execute("", 0), sync()]),
                // The pool took it back: the reset goes with the next user's first command, which
                // may be prepared.
                say(
                    "SET work_mem = '7MB'; SET TimeZone = 'Asia/Tokyo'; CREATE TEMP TABLE mine (n int); SELECT pg_advisory_lock(750007); LISTEN npgsql",
                ),
                write(2, &[query(RESET), by_id("_p1", 1), sync()]),
                write(1, &[command(settings), sync()]),
                write(
                    1,
                    &[
                        command(
                            "SELECT to_regclass('mine')::text, (SELECT count(*) FROM pg_listening_channels())",
                        ),
                        sync(),
                    ],
                ),
                write(
                    3,
                    &[
                        query(RESET),
                        query("BEGIN TRANSACTION ISOLATION LEVEL SERIALIZABLE"),
                        by_id("_p1", 2),
                        sync(),
                    ],
                ),
                say("ROLLBACK"),
                // without prepared statements
                write(
                    1,
                    &[
                        close(b'S', "_p1"),
                        close(b'S', "_p2"),
                        close(b'S', "_auto0"),
                        sync(),
                    ],
                ),
                say("SET work_mem = '7MB'"),
                write(2, &[query("DISCARD ALL"), command(settings), sync()]),
                write(
                    3,
                    &[
                        query("DISCARD ALL"),
                        query("BEGIN TRANSACTION ISOLATION LEVEL READ COMMITTED"),
                        command(settings),
                        sync(),
                    ],
                ),
                say("ROLLBACK"),
                write(
                    2,
                    &[
                        query("DISCARD ALL"),
                        parse("_p3", "SELECT 3"),
                        describe(b'S', "_p3"),
                        sync(),
                    ],
                ),
                write(1, &[bind("", "_p3", &[]), execute("", 0), sync()]),
                say("DEALLOCATE ALL"),
                write(1, &[bind("", "_p3", &[]), execute("", 0), sync()]),
                // an import, one that is cancelled, an export
                Step(
                    query("COPY plain (id, body) FROM STDIN (FORMAT BINARY)"),
                    b'G',
                    1,
                ),
                write(1, &[copy_data(COPIED), copy_done()]),
                Step(
                    query("COPY plain (id, body) FROM STDIN (FORMAT BINARY)"),
                    b'G',
                    1,
                ),
                write(
                    1,
                    &[copy_data(&COPIED[..15]), copy_fail("cancelled by user")],
                ),
                say("COPY (SELECT id, body FROM plain WHERE id = 750) TO STDOUT (FORMAT BINARY)"),
                say("DELETE FROM plain WHERE id = 750"),
            ],
        ),
    }
}

/// Statements named by a digest of their text; `begin` and all else without arguments as simple
/// queries; pipelines with several Syncs and with Flush; Close instead of DEALLOCATE, also in a
/// failed transaction.
fn pgx() -> Driver {
    const ONE: &str = "stmtcache_2f0c6b1f1c3b7b2b0a9d8e7f6a5b4c3d2e1f0a9b8c7d6e5f";
    const TWO: &str = "stmtcache_00112233445566778899aabbccddeeff0011223344556677";
    let prepare = |name: &str, sql: &str| [parse(name, sql), describe(b'S', name)].concat();
    let by_id = |name: &str, id| {
        let parts = [
            bind_formats("", name, &[1], &[Some(&[0, 0, 0, id])], &[1, 0]),
            describe(b'P', ""),
            execute("", 0),
        ];
        parts.concat()
    };
    Driver {
        startup: &[
            ("application_name", "pgx"),
            ("timezone", "UTC"),
            ("search_path", "public"),
        ],
        script: steps(
            "pgx",
            vec![
                say("-- ping"),
                // the statement cache
                write(1, &[prepare(ONE, BY_ID), sync()]),
                write(1, &[by_id(ONE, 1), sync()]),
                write(1, &[by_id(ONE, 2), sync()]),
                // the cache of descriptions, and none
                write(1, &[prepare("", BY_ID), sync()]),
                write(1, &[parse_typed("", BY_ID, &[INT4]), by_id("", 1), sync()]),
                write(
                    1,
                    &[
                        parse_typed("", BY_ID, &[INT4]),
                        bind("", "", &[Some("2")]),
                        describe(b'P', ""),
                        execute("", 0),
                        sync(),
                    ],
                ),
                // transactions, one in the other
                say("begin"),
                write(1, &[by_id(ONE, 1), sync()]),
                say("savepoint sp_1"),
                write(1, &[parse("", "select 1/0"), describe(b'S', ""), sync()]),
                write(
                    1,
                    &[
                        bind("", "", &[]),
                        describe(b'P', ""),
                        execute("", 0),
                        sync(),
                    ],
                ),
                write(1, &[prepare("failed", "selec"), sync()]),
                write(1, &[close(b'S', "failed"), sync()]),
                say("rollback to savepoint sp_1"),
                say("release savepoint sp_1"),
                say("commit"),
                say("begin isolation level serializable read only deferrable"),
                write(1, &[by_id(ONE, 1), sync()]),
                say("rollback"),
                // a batch: what is new is described first
                write(1, &[prepare(TWO, "select $1::int4 + 1, 'two'"), sync()]),
                write(1, &[by_id(ONE, 1), by_id(TWO, 1), by_id(ONE, 2), sync()]),
                write(
                    1,
                    &[
                        by_id(ONE, 1),
                        parse("", "select 1/0"),
                        bind("", "", &[]),
                        describe(b'P', ""),
                        execute("", 0),
                        by_id(TWO, 1),
                        sync(),
                    ],
                ),
                // a pipeline of several transactions; results are asked for before it ends
                Step([by_id(ONE, 1), flush()].concat(), b'C', 1),
                Step([by_id(TWO, 2), flush()].concat(), b'C', 1),
                write(1, &[sync()]),
                write(
                    3,
                    &[
                        prepare("a", "select 'a'"),
                        sync(),
                        bind("", "a", &[]),
                        describe(b'P', ""),
                        execute("", 0),
                        sync(),
                        close(b'S', "a"),
                        bind("", "a", &[]),
                        sync(),
                    ],
                ),
                // what is not valid any more is closed
                write(1, &[close(b'S', TWO), close(b'S', "never"), sync()]),
                write(1, &[by_id(TWO, 1), sync()]),
                say("deallocate all"),
                write(1, &[by_id(ONE, 1), sync()]),
                write(1, &[prepare(ONE, BY_ID), sync()]),
                write(1, &[by_id(ONE, 1), sync()]),
                // CopyFrom
                write(
                    1,
                    &[
                        prepare("", "select \"id\", \"body\" from \"plain\""),
                        sync(),
                    ],
                ),
                Step(
                    query("copy \"plain\" ( \"id\", \"body\" ) from stdin binary;"),
                    b'G',
                    1,
                ),
                write(1, &[copy_data(COPIED), copy_done()]),
                write(
                    1,
                    &[
                        query("copy \"plain\" ( \"id\", \"body\" ) from stdin binary;"),
                        copy_data(COPIED),
                        copy_done(),
                    ],
                ),
                say("delete from plain where id = 750"),
                // WaitForNotification
                say("listen pgx_said"),
                say("select pg_notify('pgx_said', 'hello')"),
                say("unlisten *"),
            ],
        ),
    }
}

/// Prepares the unnamed statement, waits, and executes it in the next round trip; names statements
/// by numbers.
fn lib_pq() -> Driver {
    Driver {
        startup: &[
            ("client_encoding", "UTF8"),
            ("datestyle", "ISO, MDY"),
            ("extra_float_digits", "2"),
        ],
        script: steps(
            "lib/pq",
            vec![
                say(";"),
                say("SHOW transaction_read_only"),
                say("SELECT current_setting('datestyle'), current_setting('extra_float_digits')"),
                write(1, &[parse("", BY_ID), describe(b'S', ""), sync()]),
                write(1, &[bind("", "", &[Some("1")]), execute("", 0), sync()]),
                write(1, &[parse("", "SELEC"), describe(b'S', ""), sync()]),
                write(1, &[parse("1", BY_ID), describe(b'S', "1"), sync()]),
                write(1, &[bind("", "1", &[Some("2")]), execute("", 0), sync()]),
                write(1, &[bind("", "1", &[Some("x")]), execute("", 0), sync()]),
                write(1, &[bind("", "1", &[Some("1")]), execute("", 0), sync()]),
                write(1, &[close(b'S', "1"), sync()]),
                // binary_parameters=yes
                write(
                    1,
                    &[
                        parse("", BY_ID),
                        bind_formats("", "", &[1], &[Some(&[0, 0, 0, 1])], &[1]),
                        describe(b'P', ""),
                        execute("", 0),
                        sync(),
                    ],
                ),
                say("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"),
                write(1, &[parse("2", "SELECT 1/0"), describe(b'S', "2"), sync()]),
                write(1, &[bind("", "2", &[]), execute("", 0), sync()]),
                write(1, &[close(b'S', "2"), sync()]),
                say("ROLLBACK"),
                // CopyIn
                say("BEGIN"),
                Step(
                    query("COPY \"plain\" (\"id\", \"body\") FROM STDIN"),
                    b'G',
                    1,
                ),
                write(
                    1,
                    &[copy_data(b"750\ta\n"), copy_data(b"751\tb\n"), copy_done()],
                ),
                Step(
                    query("COPY \"plain\" (\"id\", \"body\") FROM STDIN"),
                    b'G',
                    1,
                ),
                write(1, &[copy_data(b"752\ta\n750\tb\n"), copy_done()]),
                say("ROLLBACK"),
            ],
        ),
    }
}

/// Flush after Parse and Describe, then the rest; resets by a query of many statements; loads types
/// in between.
fn asyncpg() -> Driver {
    let one = "__asyncpg_stmt_1__";
    let prepare = |name: &str, sql: &str| {
        Step(
            [parse(name, sql), describe(b'S', name), flush()].concat(),
            b'T',
            1,
        )
    };
    Driver {
        startup: &[
            ("client_encoding", "utf-8"),
            ("application_name", "asyncpg"),
            ("jit", "off"),
        ],
        script: steps(
            "asyncpg",
            vec![
                prepare(one, BY_ID),
                write(
                    1,
                    &[
                        bind_formats("", one, &[1], &[Some(&[0, 0, 0, 1])], &[1]),
                        execute("", 0),
                        sync(),
                    ],
                ),
                write(
                    1,
                    &[
                        bind_formats("", one, &[1], &[Some(&[0, 0, 0, 2])], &[1]),
                        execute("", 0),
                        sync(),
                    ],
                ),
                prepare("", "SELECT $1::text"),
                write(
                    1,
                    &[
                        bind_formats("", "", &[1], &[Some(b"x")], &[1]),
                        execute("", 0),
                        sync(),
                    ],
                ),
                Step(
                    [
                        parse("__asyncpg_stmt_2__", "SELEC"),
                        describe(b'S', "__asyncpg_stmt_2__"),
                        flush(),
                    ]
                    .concat(),
                    b'E',
                    1,
                ),
                write(1, &[sync()]),
                // executemany
                prepare("__asyncpg_stmt_3__", "SELECT $1::int4 * 2"),
                write(
                    1,
                    &(1..40)
                        .map(|n| {
                            [
                                bind_formats(
                                    "",
                                    "__asyncpg_stmt_3__",
                                    &[1],
                                    &[Some(&[0, 0, 0, n])],
                                    &[1],
                                ),
                                execute("", 1),
                            ]
                            .concat()
                        })
                        .chain([sync()])
                        .collect::<Vec<_>>(),
                ),
                // a cursor in a transaction
                say("BEGIN;"),
                prepare("__asyncpg_stmt_4__", "SELECT generate_series(1, 5)"),
                write(
                    1,
                    &[
                        bind("__asyncpg_portal_5__", "__asyncpg_stmt_4__", &[]),
                        execute("__asyncpg_portal_5__", 2),
                        sync(),
                    ],
                ),
                write(1, &[execute("__asyncpg_portal_5__", 2), sync()]),
                write(1, &[close(b'P', "__asyncpg_portal_5__"), sync()]),
                say("COMMIT;"),
                write(1, &[close(b'S', "__asyncpg_stmt_3__"), sync()]),
                // the pool takes it back
                say("SET work_mem = '7MB'; LISTEN asyncpg; SELECT pg_advisory_lock(750008)"),
                say("SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;"),
                say(
                    "SELECT current_setting('work_mem'), (SELECT count(*) FROM pg_listening_channels()), current_setting('app.tenant_id', true)",
                ),
                write(
                    1,
                    &[
                        bind_formats("", one, &[1], &[Some(&[0, 0, 0, 1])], &[1]),
                        execute("", 0),
                        sync(),
                    ],
                ),
            ],
        ),
    }
}

/// Logged in as the driver does.
async fn log_in(
    world: &World,
    proxy: Option<&crate::harness::Running>,
    tenant: &Tenant,
    driver: &Driver,
) -> Wire {
    let options = tenant.direct_options();
    let (mut wire, mut pairs, password) = match proxy {
        None => (
            Wire::unix(world.home(tenant)).await,
            vec![("user", tenant.role.clone()), ("options", options)],
            SECRET.to_owned(),
        ),
        Some(proxy) => (
            Wire::tcp(proxy.address).await,
            vec![("user", tenant.user())],
            tenant.password(),
        ),
    };
    pairs.push(("database", tenant.database.clone()));
    let own: Vec<_> = pairs
        .iter()
        .map(|(name, value)| (*name, &**value))
        .collect();
    // Tiers with schemas have a search_path of their own.
    let startup = driver
        .startup
        .iter()
        .copied()
        .filter(|(name, _)| *name != "search_path" || tenant.schema == "public");
    let pairs: Vec<_> = own.into_iter().chain(startup).collect();
    wire.log_in(&pairs, &password)
        .await
        .unwrap_or_else(|error| panic!("{} as {}: {error}", driver.script.name, tenant.name));
    wire
}

/// What ParameterStatus messages say in the end.
fn told<'a>(frames: impl Iterator<Item = &'a Frame>) -> BTreeMap<String, String> {
    let told = frames.filter(|frame| frame.tag == b'S').map(|frame| {
        let text = String::from_utf8_lossy(&frame.body);
        let (name, value) = text.split_once('\0').expect("a name and a value");
        (name.to_owned(), value.to_owned())
    });
    told.collect()
}

async fn answers(wire: &mut Wire, step: &Step) -> Vec<Frame> {
    let Step(bytes, tag, count) = step;
    wire.send(bytes).await;
    let mut frames = Vec::new();
    for _ in 0..*count {
        frames.append(&mut wire.until(*tag).await);
    }
    masked(frames)
}

async fn converses_as_direct(driver: fn() -> Driver) {
    // The conversations write the same rows.
    static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _one = ONE_AT_A_TIME.lock().await;
    let world = world().await;
    let driver = driver();
    let mut differences = Vec::new();
    for pooling in POOLINGS {
        let proxy = Setup {
            pooling,
            ..Setup::default()
        }
        .start()
        .await;
        for (tier, name, _) in TIERS {
            let tenant = proxy.home(&tenant(name));
            let mut others = Others::of(&proxy, &tenant).await;
            let mut plain = log_in(world, None, &tenant, &driver).await;
            let mut proxied = log_in(world, Some(&proxy), &tenant, &driver).await;
            let mut expected = Vec::new();
            for step in &driver.script.steps {
                expected.push(answers(&mut plain, step).await);
            }
            let end = told(plain.greeting.iter().chain(expected.iter().flatten()));
            drop(plain);
            let mut said = proxied.greeting.clone();
            for (number, (step, mut expected)) in
                driver.script.steps.iter().zip(expected).enumerate()
            {
                others.move_on().await;
                let mut seen = answers(&mut proxied, step).await;
                said.extend_from_slice(&seen);
                if pooling == "transaction" {
                    for frames in [&mut seen, &mut expected] {
                        frames.retain(|frame| frame.tag != b'S');
                    }
                }
                if let Some(difference) = difference(&expected, &seen) {
                    let sent = String::from_utf8_lossy(&step.0).into_owned();
                    differences.push(format!(
                        "{tier}, {pooling}, step {number} {sent:?}, {difference}"
                    ));
                }
            }
            if told(said.iter()) != end {
                differences.push(format!(
                    "{tier}, {pooling}: told {:?}, direct {end:?}",
                    told(said.iter())
                ));
            }
        }
    }
    assert!(
        differences.is_empty(),
        "{} is answered differently:\n{}",
        driver.script.name,
        differences.join("\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pgjdbc_is_answered_as_direct() {
    converses_as_direct(pgjdbc).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn npgsql_is_answered_as_direct() {
    converses_as_direct(npgsql).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pgx_is_answered_as_direct() {
    converses_as_direct(pgx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lib_pq_is_answered_as_direct() {
    converses_as_direct(lib_pq).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn asyncpg_is_answered_as_direct() {
    converses_as_direct(asyncpg).await;
}
