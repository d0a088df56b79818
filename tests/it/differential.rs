//! The strongest test: the same bytes to PostgreSQL and through the proxy are answered by the same
//! frames, in every tier.

use std::fmt::Write as _;

use crate::harness::{POOLINGS, Setup, TIERS, binaries, direct, tenant, world};
use crate::wire::{
    Frame, PROTOCOL_3_0, PROTOCOL_3_2, Wire, bind, bind_formats, close, copy_data, copy_done,
    copy_fail, describe, execute, flush, function_call, message, parse, parse_typed, query,
    startup, sync,
};

/// Bytes to send, and up to what to read then: so many messages of a tag.
pub struct Step(pub Vec<u8>, pub u8, pub usize);

pub struct Script {
    pub name: &'static str,
    pub steps: Vec<Step>,
    /// Too much to be sent byte by byte.
    is_large: bool,
}

/// A script of one write that is answered by so many ReadyForQuery.
pub fn batch(name: &'static str, ready: usize, parts: &[Vec<u8>]) -> Script {
    steps(name, vec![Step(parts.concat(), b'Z', ready)])
}

pub fn steps(name: &'static str, steps: Vec<Step>) -> Script {
    Script {
        name,
        steps,
        is_large: false,
    }
}

fn queries(name: &'static str, sql: &[&str]) -> Script {
    steps(
        name,
        sql.iter().map(|sql| Step(query(sql), b'Z', 1)).collect(),
    )
}

const INT4: u32 = 23;
const SET_CONFIG: u32 = 2078;
const LOWER: u32 = 870;

/// Rows of every kind of value, as text and as binary.
const TYPES: &str = "SELECT 1::int2, -2::int4, 3::int8, 1.5::float4, 'NaN'::float8, 12345.6789::numeric, true, 'x'::char, \
    'täxt'::text, '\\x00ff'::bytea, '2024-02-29'::date, '12:34:56.789'::time, '2024-02-29 12:34:56+00'::timestamptz, \
    '1 day 2 hours'::interval, '{1,NULL,3}'::int[], '{\"a\": [1, null]}'::jsonb, \
    '00000000-0000-0000-0000-000000000001'::uuid, '10.0.0.1/8'::inet, '[1,5)'::int4range, ROW(1, 'a'), NULL, ''";

fn scripts() -> Vec<Script> {
    let all = "SELECT tenant, id, body FROM items WHERE id < 950 ORDER BY id";
    let million = "x".repeat(1 << 20);
    let mut scripts = vec![
        queries("a simple query", &[all]),
        queries(
            "several statements in a query",
            &["SELECT 1; SELECT 'two'; ; SELECT 3 WHERE false"],
        ),
        queries("empty queries", &["", ";", "  -- nothing\n"]),
        queries("rows without columns", &["SELECT FROM items WHERE id < 900"]),
        queries(
            "errors",
            &[
                "SELEC 1",
                "SELECT 1/0",
                "SELECT * FROM nowhere",
                "SELECT nothing FROM items",
                "INSERT INTO items (id, body) VALUES (-1, 'x')",
                "INSERT INTO items (id, body) VALUES (1, 'x')",
                "SELECT 1; SELECT 1/0; SELECT 2",
                "VACUUM; SELECT 1",
            ],
        ),
        queries(
            "a transaction",
            &[
                "BEGIN",
                "INSERT INTO items (id, body) VALUES (900, 'in it')",
                all,
                "SAVEPOINT a",
                "SELECT 1/0",
                "SELECT 1",
                "ROLLBACK TO a",
                all,
                "ROLLBACK",
                all,
            ],
        ),
        queries(
            "a failed transaction that commits",
            &["BEGIN", "SELECT 1/0", "SELECT 1", "COMMIT", "COMMIT"],
        ),
        queries(
            "an implicit transaction that becomes a block",
            &["BEGIN; SELECT 1", "SELECT 2; COMMIT; SELECT 3", "ROLLBACK"],
        ),
        queries(
            "isolation levels",
            &[
                "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE",
                "SHOW transaction_isolation",
                "DELETE FROM items",
                "ROLLBACK",
            ],
        ),
        queries(
            "notices",
            &[
                "DO $$ BEGIN RAISE NOTICE 'a notice'; RAISE WARNING 'a warning' USING HINT = 'a hint'; END $$",
                "BEGIN; BEGIN; ROLLBACK; ROLLBACK",
                "DO $$ BEGIN RAISE EXCEPTION 'mine' USING ERRCODE = 'ZZ123', DETAIL = 'a detail', HINT = 'ä'; END $$",
                "SET client_min_messages = error; COMMIT; RESET client_min_messages",
            ],
        ),
        queries(
            "a parameter that is reported",
            &[
                "SET TimeZone = 'Asia/Tokyo'",
                "SHOW TimeZone",
                "SET application_name = 'änother'",
                "SHOW application_name",
                "RESET application_name",
                "BEGIN; SET LOCAL DateStyle = 'German'",
                "SELECT '2024-02-29'::date",
                "ROLLBACK",
                "SELECT '2024-02-29'::date",
                "RESET TimeZone",
                "SHOW TimeZone",
            ],
        ),
        queries(
            "cursors",
            &[
                "BEGIN",
                "DECLARE c CURSOR FOR SELECT generate_series(1, 10)",
                "FETCH 3 FROM c",
                "MOVE 2 IN c",
                "FETCH ALL FROM c",
                "CLOSE c",
                "FETCH c",
                "ROLLBACK",
            ],
        ),
        queries(
            "notifications",
            &["BEGIN; LISTEN differential; NOTIFY differential, 'said'; UNLISTEN differential; COMMIT", "NOTIFY nobody"],
        ),
        queries("types as text", &[TYPES]),
        batch(
            "types as binary",
            1,
            &[
                parse("", TYPES),
                bind_formats("", "", &[], &[], &[1]),
                describe(b'P', ""),
                execute("", 0),
                sync(),
            ],
        ),
        batch(
            "formats by column and parameters of every kind",
            1,
            &[
                parse_typed("", "SELECT $1, $2::text, $3::bytea, $4::int8", &[INT4]),
                bind_formats(
                    "",
                    "",
                    &[1, 0, 1, 0],
                    &[Some(&[0, 0, 0, 7]), Some("ü".as_bytes()), Some(&[0, 255]), None],
                    &[0, 1, 1, 0],
                ),
                describe(b'S', ""),
                execute("", 0),
                sync(),
            ],
        ),
        batch(
            "the extended protocol",
            1,
            &[
                parse("", "SELECT body FROM items WHERE id >= $1 AND id < 950 ORDER BY id"),
                describe(b'S', ""),
                bind("", "", &[Some("2")]),
                describe(b'P', ""),
                execute("", 0),
                sync(),
            ],
        ),
        batch(
            "statements without rows, and none at all",
            3,
            &[
                parse("", "SET LOCAL work_mem = '1MB'"),
                describe(b'S', ""),
                bind("", "", &[]),
                describe(b'P', ""),
                execute("", 0),
                sync(),
                parse("", ""),
                bind("", "", &[]),
                describe(b'P', ""),
                execute("", 0),
                sync(),
                sync(),
            ],
        ),
        batch(
            "a portal in parts",
            3,
            &[
                query("BEGIN"),
                parse("", "SELECT generate_series(1, 7)"),
                bind("p", "", &[]),
                describe(b'P', "p"),
                execute("p", 3),
                execute("p", 3),
                execute("p", 3),
                execute("p", 3),
                close(b'P', "p"),
                sync(),
                query("COMMIT"),
            ],
        ),
        steps(
            "a portal that waits for its client",
            vec![
                Step([parse("", "SELECT generate_series(1, 5)"), bind("p", "", &[]), execute("p", 2), flush()].concat(), b's', 1),
                Step([execute("p", 2), flush()].concat(), b's', 1),
                Step([execute("p", 0), sync()].concat(), b'Z', 1),
                Step([execute("p", 0), sync()].concat(), b'Z', 1),
            ],
        ),
        steps(
            "Flush after each message",
            vec![
                Step([parse("", "SELECT $1::int + 1"), flush()].concat(), b'1', 1),
                Step([describe(b'S', ""), flush()].concat(), b'T', 1),
                Step([bind("", "", &[Some("41")]), flush()].concat(), b'2', 1),
                Step([execute("", 0), flush()].concat(), b'C', 1),
                Step(sync(), b'Z', 1),
            ],
        ),
        steps(
            "named statements over several transactions",
            vec![
                Step([parse("named", "SELECT body FROM items WHERE id = $1"), describe(b'S', "named"), sync()].concat(), b'Z', 1),
                Step([bind("", "named", &[Some("1")]), execute("", 0), sync()].concat(), b'Z', 1),
                Step(query("SELECT 1"), b'Z', 1),
                Step([bind("", "named", &[Some("2")]), describe(b'P', ""), execute("", 0), sync()].concat(), b'Z', 1),
                Step([parse("named", "SELECT 2"), sync()].concat(), b'Z', 1),
                Step([bind("", "named", &[Some("x")]), execute("", 0), sync()].concat(), b'Z', 1),
                Step([describe(b'S', "named"), close(b'S', "named"), sync()].concat(), b'Z', 1),
                Step([close(b'S', "named"), close(b'S', "never"), close(b'P', "never"), sync()].concat(), b'Z', 1),
            ],
        ),
        steps(
            "a named statement that fails and is made anew",
            vec![
                Step([parse("bad", "SELEC"), parse("good", "SELECT 1"), sync()].concat(), b'Z', 1),
                Step([parse("bad", "SELECT 'good now'"), bind("", "bad", &[]), execute("", 0), sync()].concat(), b'Z', 1),
                Step([parse("good", "SELECT 2"), bind("", "good", &[]), execute("", 0), sync()].concat(), b'Z', 1),
                Step([close(b'S', "bad"), close(b'S', "good"), sync()].concat(), b'Z', 1),
            ],
        ),
        steps(
            "closed and made anew in one batch",
            vec![
                Step([parse("n", "SELECT 1"), sync()].concat(), b'Z', 1),
                Step([close(b'S', "n"), parse("n", "SELECT 'another'"), bind("", "n", &[]), execute("", 0), close(b'S', "n"), sync()].concat(), b'Z', 1),
            ],
        ),
        steps(
            "statements made in a transaction that is rolled back stay",
            vec![
                Step(query("BEGIN"), b'Z', 1),
                Step([parse("kept", "SELECT 'kept'"), sync()].concat(), b'Z', 1),
                Step(query("ROLLBACK"), b'Z', 1),
                Step([bind("", "kept", &[]), execute("", 0), close(b'S', "kept"), sync()].concat(), b'Z', 1),
            ],
        ),
        steps(
            "a Close that is skipped after an error",
            vec![
                Step([parse("stays", "SELECT 'stays'"), sync()].concat(), b'Z', 1),
                Step([parse("", "SELEC"), close(b'S', "stays"), sync()].concat(), b'Z', 1),
                Step([bind("", "stays", &[]), execute("", 0), sync()].concat(), b'Z', 1),
                Step([parse("", "SELEC"), flush()].concat(), b'E', 1),
                Step([close(b'S', "stays"), sync()].concat(), b'Z', 1),
                Step([bind("", "stays", &[]), execute("", 0), close(b'S', "stays"), sync()].concat(), b'Z', 1),
            ],
        ),
        steps(
            "an unnamed statement that is skipped after an error",
            vec![
                Step([parse("", "SELECT 'stays'"), sync()].concat(), b'Z', 1),
                Step([bind("", "nothing", &[]), parse("", "SELECT 'skipped'"), sync()].concat(), b'Z', 1),
                Step([bind("", "", &[]), execute("", 0), sync()].concat(), b'Z', 1),
                Step([parse("", "SELEC"), sync()].concat(), b'Z', 1),
                Step([bind("", "", &[]), execute("", 0), sync()].concat(), b'Z', 1),
            ],
        ),
        batch(
            "the same statement prepared under two names",
            1,
            &[
                parse("a", "SELECT 'same'"),
                parse("b", "SELECT 'same'"),
                bind("", "a", &[]),
                execute("", 0),
                close(b'S', "a"),
                bind("", "b", &[]),
                execute("", 0),
                close(b'S', "b"),
                sync(),
            ],
        ),
        batch(
            "the unnamed statement is kept over Syncs and ends with a query",
            4,
            &[
                parse("", "SELECT 'kept'"),
                sync(),
                bind("", "", &[]),
                execute("", 0),
                sync(),
                query("SELECT 1"),
                bind("", "", &[]),
                execute("", 0),
                sync(),
            ],
        ),
        batch(
            "a long pipeline",
            43,
            &(0..40)
                .flat_map(|n| {
                    [
                        parse("", "SELECT $1::int * 2"),
                        bind("", "", &[Some(&n.to_string())]),
                        execute("", 0),
                        sync(),
                    ]
                })
                .chain([query("SELECT 1"), query("SELECT 1/0"), query("SELECT 2")])
                .collect::<Vec<_>>(),
        ),
        batch(
            "an error in a pipeline skips to the Sync",
            3,
            &[
                parse("", "SELECT 1"),
                bind("", "", &[]),
                execute("", 0),
                parse("", "SELECT 1/0"),
                bind("", "", &[]),
                execute("", 0),
                parse("skipped", "SELECT 2"),
                query("SELECT 'skipped too'"),
                function_call(LOWER, &[Some("SKIPPED")]),
                describe(b'S', ""),
                close(b'S', "skipped"),
                flush(),
                sync(),
                bind("", "skipped", &[]),
                execute("", 0),
                sync(),
                query("SELECT 3"),
            ],
        ),
        steps(
            "a Sync that comes late after an error",
            vec![
                Step([parse("", "SELEC"), flush()].concat(), b'E', 1),
                Step([parse("", "SELECT 1"), bind("", "", &[]), execute("", 0), query("SELECT 2"), sync()].concat(), b'Z', 1),
                Step(query("SELECT 3"), b'Z', 1),
            ],
        ),
        batch(
            "a pipeline is one transaction",
            3,
            &[
                parse("", "INSERT INTO items (id, body) VALUES (901, 'gone')"),
                bind("", "", &[]),
                execute("", 0),
                parse("", "SELECT count(*) FROM items WHERE id = 901"),
                bind("", "", &[]),
                execute("", 0),
                parse("", "SELECT 1/0"),
                bind("", "", &[]),
                execute("", 0),
                sync(),
                query("SELECT count(*) FROM items WHERE id = 901"),
                query("DELETE FROM items WHERE id = 901"),
            ],
        ),
        batch(
            "a query in the middle of an extended batch",
            2,
            &[
                parse("", "SELECT 1"),
                bind("x", "", &[]),
                query("SELECT 'simple'"),
                bind("", "", &[]),
                execute("", 0),
                sync(),
            ],
        ),
        batch(
            "names of nothing",
            4,
            &[
                bind("", "nothing", &[]),
                sync(),
                describe(b'S', "nothing"),
                sync(),
                describe(b'P', "nothing"),
                sync(),
                execute("nothing", 0),
                sync(),
            ],
        ),
        batch(
            "functions called",
            4,
            &[
                function_call(LOWER, &[Some("CALLED")]),
                function_call(LOWER, &[None]),
                function_call(1, &[]),
                query("SELECT 1"),
            ],
        ),
        batch(
            "a function that sets a variable",
            2,
            &[
                function_call(SET_CONFIG, &[Some("differential.x"), Some("y"), Some("true")]),
                query("SELECT 1"),
            ],
        ),
        queries(
            "COPY out",
            &[
                "COPY (SELECT id, body FROM items WHERE id < 950 ORDER BY id) TO STDOUT",
                "COPY (SELECT id, body FROM items WHERE id < 950 ORDER BY id) TO STDOUT (FORMAT csv, HEADER)",
                "COPY (SELECT id, body FROM items WHERE id < 950 ORDER BY id) TO STDOUT (FORMAT binary)",
                "COPY (SELECT 1 / (id - 2) FROM generate_series(1, 3) id) TO STDOUT",
                "COPY nowhere TO STDOUT",
            ],
        ),
        steps(
            "COPY in, text and binary",
            vec![
                Step(query("COPY plain (id, body) FROM STDIN"), b'G', 1),
                Step([copy_data(b"700\ta\n701"), copy_data(b"\t\\N\n"), copy_done()].concat(), b'Z', 1),
                Step(query("COPY plain (id, body) FROM STDIN (FORMAT binary)"), b'G', 1),
                Step([copy_data(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\0\x02\0\0\0\x04\0\0\x02\xbe\0\0\0\x01z\xff\xff"), copy_done()].concat(), b'Z', 1),
                Step(query("DELETE FROM plain WHERE id BETWEEN 700 AND 709 RETURNING id, body"), b'Z', 1),
            ],
        ),
        steps(
            "COPY in that fails",
            vec![
                Step(query("COPY plain (id, body) FROM STDIN"), b'G', 1),
                Step([copy_data(b"700\ta\n"), copy_fail("changed my mind")].concat(), b'Z', 1),
                Step(query("COPY plain (id, body) FROM STDIN"), b'G', 1),
                Step([copy_data(b"700\ta\nnot a row\n"), copy_data(b"701\tb\n"), copy_done()].concat(), b'Z', 1),
                Step(query("COPY plain (id, body) FROM STDIN; SELECT 'not reached'"), b'G', 1),
                Step([copy_data(b"700\ta\n700\tb\n"), copy_done()].concat(), b'Z', 1),
                Step(query("BEGIN"), b'Z', 1),
                Step(query("COPY plain (id, body) FROM STDIN"), b'G', 1),
                Step(copy_fail("in a transaction"), b'Z', 1),
                Step(query("ROLLBACK"), b'Z', 1),
                Step(query("SELECT id FROM plain WHERE id BETWEEN 700 AND 709"), b'Z', 1),
            ],
        ),
        steps(
            "COPY in ended at once, twice in one query",
            vec![
                Step([query("COPY plain FROM STDIN; COPY plain FROM STDIN"), copy_data(b"700\ta\n"), copy_done()].concat(), b'G', 2),
                Step([copy_data(b"701\tb\n"), copy_done()].concat(), b'Z', 1),
                Step(query("DELETE FROM plain WHERE id BETWEEN 700 AND 709 RETURNING id"), b'Z', 1),
            ],
        ),
        steps(
            "COPY in the extended protocol",
            vec![
                Step([parse("", "COPY plain FROM STDIN"), bind("", "", &[]), describe(b'P', ""), execute("", 0), flush()].concat(), b'G', 1),
                Step([copy_data(b"700\ta\n"), copy_done(), sync()].concat(), b'Z', 1),
                Step([parse("", "COPY plain FROM STDIN"), bind("", "", &[]), execute("", 0), flush()].concat(), b'G', 1),
                Step([copy_data(b"701\tb\n"), copy_fail("no"), sync()].concat(), b'Z', 1),
                Step([parse("", "COPY (SELECT id FROM plain WHERE id BETWEEN 700 AND 709) TO STDOUT"), bind("", "", &[]), execute("", 0), sync()].concat(), b'Z', 1),
                Step([parse("", "COPY plain FROM STDIN"), bind("", "", &[]), execute("", 0), sync()].concat(), b'G', 1),
                Step([copy_data(b"702\tc\n"), copy_done(), sync()].concat(), b'Z', 1),
                Step(query("DELETE FROM plain WHERE id BETWEEN 700 AND 709 RETURNING id"), b'Z', 1),
            ],
        ),
        steps(
            "COPY in pipelined with its data",
            vec![
                Step([parse("", "COPY plain FROM STDIN"), bind("", "", &[]), execute("", 0), copy_data(b"700\ta\n"), copy_done(), sync(), query("SELECT 'after'")].concat(), b'Z', 2),
                Step(query("DELETE FROM plain WHERE id BETWEEN 700 AND 709 RETURNING id"), b'Z', 1),
            ],
        ),
        batch(
            "COPY messages outside of a COPY",
            1,
            &[copy_data(b"stray"), copy_done(), copy_fail("stray"), query("SELECT 'in step'")],
        ),
        steps(
            "PREPARE in SQL within a transaction",
            vec![Step(
                query("BEGIN; PREPARE p AS SELECT $1::int + 1; EXECUTE p(1); DEALLOCATE p; COMMIT"),
                b'Z',
                1,
            )],
        ),
        queries(
            "a long transaction of DDL",
            &[
                "BEGIN",
                "CREATE TEMP TABLE mine (id serial, t text) ON COMMIT DROP",
                "INSERT INTO mine (t) SELECT 'row ' || n FROM generate_series(1, 100) n RETURNING id + 0, t || ''",
                "CREATE INDEX ON mine (t)",
                "SELECT id + 0, t || '' FROM mine WHERE t = 'row 50'",
                "COMMIT",
                "SELECT * FROM mine",
            ],
        ),
        queries("what cannot be in a block", &["BEGIN; VACUUM items", "ROLLBACK", "VACUUM plain"]),
        steps(
            "a setting and a COPY in one query",
            vec![
                Step(query("SET LOCAL work_mem = '1MB'; COPY plain FROM STDIN"), b'G', 1),
                Step([copy_data(b"700\ta\n"), copy_done()].concat(), b'Z', 1),
                Step(query("DELETE FROM plain WHERE id BETWEEN 700 AND 709 RETURNING id"), b'Z', 1),
            ],
        ),
        batch(
            "a name that is taken and a definition that is wrong too",
            4,
            &[
                parse("taken", "SELECT 1"),
                sync(),
                parse("taken", "SELEC"),
                sync(),
                parse("taken", "SELECT * FROM nowhere"),
                sync(),
                parse("taken", "SELECT 2"),
                bind("", "taken", &[]),
                close(b'S', "taken"),
                sync(),
            ],
        ),
        batch(
            "an error about a statement whose name is closed by then",
            3,
            &[
                parse("gone", "SELECT $1::int"),
                parse("also", "SELECT $1::int"),
                sync(),
                bind("", "gone", &[]),
                sync(),
                close(b'S', "gone"),
                close(b'S', "also"),
                sync(),
            ],
        ),
        batch(
            "a statement that another name prepared before, in a failed transaction",
            5,
            &[
                parse("early", "SELECT 'early'"),
                sync(),
                query("BEGIN; SELECT 1/0"),
                parse("late", "SELECT 'early'"),
                sync(),
                query("ROLLBACK"),
                close(b'S', "early"),
                sync(),
            ],
        ),
        batch(
            "a name that fails and is given anew in one pipeline",
            4,
            &[
                query("BEGIN; SELECT 1/0"),
                parse("anew", "SELECT 'refused'"),
                sync(),
                query("ROLLBACK"),
                parse("anew", "SELECT 'meant'"),
                bind("", "anew", &[]),
                execute("", 0),
                close(b'S', "anew"),
                sync(),
            ],
        ),
        batch(
            "the unnamed statement outlives a query that is skipped or malformed",
            4,
            &[
                parse("", "SELECT 'kept'"),
                sync(),
                bind("", "nothing", &[]),
                query("SELECT 1"),
                sync(),
                message(b'Q', &[b"SELECT 1"]),
                bind("", "", &[]),
                execute("", 0),
                sync(),
            ],
        ),
        batch(
            "malformed messages about statements",
            9,
            &[
                [parse("well", "SELECT 1"), sync()].concat(),
                [message(b'P', &[b"well"]), sync()].concat(),
                [message(b'P', &[b"\0SELECT 1\0\0\x05"]), sync()].concat(),
                [message(b'B', &[b"\0well"]), sync()].concat(),
                [message(b'D', &[b"Swell"]), sync()].concat(),
                [message(b'D', &[b"Swell\0more"]), sync()].concat(),
                [message(b'C', &[b"Swell\0more"]), sync()].concat(),
                [bind("", "well", &[]), execute("", 0), sync()].concat(),
                [close(b'S', "well"), sync()].concat(),
            ],
        ),
        batch(
            "a malformed Bind",
            2,
            &[
                parse("", "SELECT $1::int"),
                bind("", "", &[]),
                sync(),
                message(b'B', &[b"\0\0\0\0\0\x05"]),
                sync(),
            ],
        ),
    ];
    let mut large = vec![
        batch(
            "a megabyte each way",
            2,
            &[
                query(&format!("SELECT length('{million}'), '{million}'")),
                parse("", "SELECT $1::text, $1::text"),
                bind("", "", &[Some(&million)]),
                execute("", 0),
                sync(),
            ],
        ),
        queries(
            "very many rows",
            &[
                "SELECT n, repeat('x', n % 100) FROM generate_series(1, 20000) n",
                "SELECT repeat('y', 3000000), 1",
            ],
        ),
        steps(
            "a COPY of megabytes each way",
            vec![
                Step(query("COPY plain FROM STDIN"), b'G', 1),
                Step(
                    [
                        copy_data(format!("700\t{million}\n701\t{million}\n").as_bytes()),
                        copy_done(),
                    ]
                    .concat(),
                    b'Z',
                    1,
                ),
                Step(
                    query(
                        "COPY (SELECT * FROM plain WHERE id IN (700, 701) ORDER BY id) TO STDOUT",
                    ),
                    b'Z',
                    1,
                ),
                Step(query("DELETE FROM plain WHERE id IN (700, 701)"), b'Z', 1),
            ],
        ),
        batch(
            "a pipeline longer than any buffer",
            1,
            &std::iter::once(parse("long", "SELECT $1::int, $2::text"))
                .chain((0..3000).flat_map(|n: i32| {
                    [
                        bind(
                            "",
                            "long",
                            &[Some(&n.to_string()), Some("some text to make it longer")],
                        ),
                        execute("", 0),
                    ]
                }))
                .chain([close(b'S', "long"), sync()])
                .collect::<Vec<_>>(),
        ),
    ];
    for script in &mut large {
        script.is_large = true;
    }
    scripts.append(&mut large);
    scripts
}

/// What a server says to a script.
pub async fn play(wire: &mut Wire, script: &Script, slowly: bool) -> Vec<Frame> {
    let mut frames = Vec::new();
    for Step(bytes, tag, count) in &script.steps {
        if slowly {
            wire.send_slowly(bytes).await;
        } else {
            wire.send(bytes).await;
        }
        for _ in 0..*count {
            frames.append(&mut wire.until(*tag).await);
        }
    }
    frames
}

/// What may differ: the process id in a NotificationResponse.
pub fn masked(mut frames: Vec<Frame>) -> Vec<Frame> {
    for frame in frames.iter_mut().filter(|frame| frame.tag == b'A') {
        frame.body[..4].fill(0);
    }
    frames
}

/// Where two answers part.
pub fn difference(direct: &[Frame], proxied: &[Frame]) -> Option<String> {
    if direct == proxied {
        return None;
    }
    let at = direct
        .iter()
        .zip(proxied)
        .position(|(a, b)| a != b)
        .unwrap_or(direct.len().min(proxied.len()));
    let from = at.saturating_sub(2);
    let mut text = format!("from message {from} on:");
    for (who, frames) in [("direct", direct), ("proxied", proxied)] {
        let shown = &frames[from.min(frames.len())..frames.len().min(at + 4)];
        let _ = write!(text, "\n    {who:8} {shown:?}");
    }
    Some(text)
}

async fn compare(pooling: &'static str, slowly: bool) {
    // The scripts write the same rows.
    static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _one = ONE_AT_A_TIME.lock().await;
    let world = world().await;
    let proxy = Setup {
        pooling,
        ..Setup::default()
    }
    .start()
    .await;
    let scripts = scripts();
    let mut differences = Vec::new();
    for (tier, a, _) in TIERS {
        let tenant = proxy.home(&tenant(a));
        let mut plain = direct(world, &tenant).await;
        let mut proxied = proxy.raw(&tenant).await;
        for script in scripts.iter().filter(|script| !slowly || !script.is_large) {
            let expected = masked(play(&mut plain, script, false).await);
            let seen = masked(play(&mut proxied, script, slowly).await);
            if let Some(difference) = difference(&expected, &seen) {
                differences.push(format!("{} in {tier}, {difference}", script.name));
                proxied = proxy.raw(&tenant).await;
                plain = direct(world, &tenant).await;
            }
        }
        // Nothing was left over on either side.
        for wire in [&mut plain, &mut proxied] {
            assert_eq!(wire.column("SELECT 'end'").await, ["end"], "{tier}");
        }
    }
    assert!(
        differences.is_empty(),
        "{pooling} pooling differs:\n{}",
        differences.join("\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_bytes_have_the_same_answers_in_transaction_pooling() {
    compare(POOLINGS[0], false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_bytes_have_the_same_answers_in_session_pooling() {
    compare(POOLINGS[1], false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_bytes_one_by_one_have_the_same_answers() {
    compare(POOLINGS[0], true).await;
    compare(POOLINGS[1], true).await;
}

/// The negotiation, if there is one, and the length of the cancel key; or the error.
async fn greeting(mut wire: Wire, version: u32, pairs: &[(&str, &str)], password: &str) -> String {
    wire.send(&startup(version, pairs)).await;
    if let Err(error) = wire.authenticate(password, None).await {
        return format!("{} {:?}", error.sqlstate(), error.field(b'M'));
    }
    let first = &wire.greeting[0];
    let negotiation = match first.tag {
        b'v' => first.to_string(),
        _ => "no negotiation".to_owned(),
    };
    assert!(wire.greeting[1..].iter().all(|frame| frame.tag != b'v'));
    format!("{negotiation}, key of {}", wire.key.1.len())
}

/// Protocol 3.2 came with PostgreSQL 18: against an older server only what is written here is
/// compared.
#[tokio::test(flavor = "multi_thread")]
async fn versions_of_the_protocol_are_negotiated_as_postgresql_18_does() {
    let is_18 = {
        let postgres = binaries().dir().join("postgres");
        let output = std::process::Command::new(postgres)
            .arg("--version")
            .output();
        let output = output.expect("runs").stdout;
        String::from_utf8_lossy(&output).contains(" 18")
    };
    let proxy = Setup::default().start().await;
    let tenant = tenant("t00");
    for (version, options, expected) in [
        (PROTOCOL_3_0, &[][..], "no negotiation, key of 4"),
        (
            PROTOCOL_3_0,
            &["_pq_.one", "_pq_.two"],
            r"v(\x00\x03\x00\x00\x00\x00\x00\x02_pq_.one\x00_pq_.two\x00), key of 4",
        ),
        (0x0003_0001, &[], "no negotiation, key of 4"),
        (
            0x0003_0001,
            &["_pq_.one"],
            r"v(\x00\x03\x00\x01\x00\x00\x00\x01_pq_.one\x00), key of 4",
        ),
        (PROTOCOL_3_2, &[], "no negotiation, key of 32"),
        (
            PROTOCOL_3_2,
            &["_pq_.one", "_pq_.one"],
            r"v(\x00\x03\x00\x02\x00\x00\x00\x02_pq_.one\x00_pq_.one\x00), key of 32",
        ),
        (
            0x0003_0003,
            &[],
            r"v(\x00\x03\x00\x02\x00\x00\x00\x00), key of 32",
        ),
        (
            0x0003_270f,
            &["_pq_."],
            r"v(\x00\x03\x00\x02\x00\x00\x00\x01_pq_.\x00), key of 32",
        ),
        (
            0x0003_270f,
            &[],
            r"v(\x00\x03\x00\x02\x00\x00\x00\x00), key of 32",
        ),
        (
            0x0004_0000,
            &[],
            "0A000 Some(\"unsupported frontend protocol 4.0: server supports 3.0 to 3.2\")",
        ),
    ] {
        let label = format!("{version:#x} {options:?}");
        let options: Vec<_> = options.iter().map(|name| (*name, "1")).collect();
        let user = tenant.user();
        let own = [("user", &*user), ("database", &*tenant.database)];
        let mut wire = Wire::tcp(proxy.address).await;
        let pairs = [&own, &options[..]].concat();
        let through = greeting(wire, version, &pairs, &tenant.password()).await;
        assert_eq!(through, expected, "{label}");
        if is_18 {
            wire = Wire::unix(&world().await.shared).await;
            let own = [("user", "postgres"), ("database", "postgres")];
            let pairs = [&own, &options[..]].concat();
            let direct = greeting(wire, version, &pairs, "").await;
            assert_eq!(through, direct, "{label}");
        }
    }
    // Who speaks protocol 2 is told so in protocol 2: an error without length and fields.
    let mut answers = Vec::new();
    let shared = &world().await.shared;
    let direct = std::net::SocketAddr::from(([127, 0, 0, 1], shared.port()));
    for address in [proxy.address, direct] {
        let mut wire = Wire::tcp(address).await;
        wire.send(&startup(0x0002_0000, &[])).await;
        let mut answer = Vec::new();
        while let Some(byte) = wire.byte().await {
            answer.push(byte);
        }
        answers.push(String::from_utf8(answer).expect("text"));
    }
    let expected = "EFATAL:  unsupported frontend protocol 2.0: server supports 3.0 to 3.";
    assert!(answers[0].starts_with(expected), "{answers:?}");
    if is_18 {
        assert_eq!(answers[0], answers[1]);
    }
}
