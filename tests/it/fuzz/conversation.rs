//! Random conversations of a client that is logged in: mostly sensible, often wrong, always the
//! same for a seed.
//!
//! Left out is what has no one answer (process ids, times, rows of others) and what
//! docs/compatibility.md documents as different; each omission says so where it would have been.

use std::collections::HashMap;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngCore, SeedableRng};

use crate::wire::{
    bind_formats, close, copy_data, copy_done, copy_fail, describe, execute, flush, function_call,
    message, parse_typed, query, sync, terminate,
};

/// A message, or a few that belong together, and whether the client then reads all it is owed.
#[derive(Clone, PartialEq, Eq)]
pub struct Step {
    pub bytes: Vec<u8>,
    pub pause: bool,
    /// Ends with a query that shows this: whatever went on before is over when it is answered.
    pub mark: Option<String>,
}

/// How the client leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It does not: it says a last thing and gets its answer.
    Mark,
    Terminate,
    /// Closes its side and reads what it is owed.
    HalfClose,
    /// The same in the middle of a message.
    CutShort,
    /// Is gone. What it left undone may have been done or not.
    Drop,
}

/// All a client says from login to end: several conversations, each brought to an end before the
/// next.
#[derive(Clone)]
pub struct Session {
    pub seed: u64,
    /// Parameters of its StartupMessage.
    pub startup: &'static [(&'static str, &'static str)],
    pub steps: Vec<Step>,
    pub ending: Ending,
    pub conversations: usize,
}

const INT4: u32 = 23;
const TEXT: u32 = 25;
const LOWER: u32 = 870;
const SET_CONFIG: u32 = 2078;

/// Statements that read. `{b}` is the first of the hundred row numbers that are the session's own.
const READS: &[&str] = &[
    "SELECT 1",
    "SELECT 'one' AS a, 2 AS b, NULL",
    "SELECT generate_series(1, 5)",
    "SELECT",
    "SELECT id, body FROM items WHERE id >= {b} AND id < {b} + 100 ORDER BY id",
    "SELECT count(*), max(body) FROM plain WHERE id >= {b} AND id < {b} + 100",
    "SELECT repeat('long ', 3000)",
    "SELECT n, repeat('x', n) FROM generate_series(1, 300) n",
    "VALUES (1, 'a'), (2, 'b')",
    "TABLE pg_catalog.pg_enum LIMIT 0",
    "SHOW standard_conforming_strings",
    "SHOW TimeZone",
    "SHOW application_name",
    "SELECT current_setting('DateStyle')",
    "SELECT '2024-02-29 12:00:00+00'::timestamptz",
    "EXPLAIN (COSTS OFF) SELECT 1",
    "COPY (SELECT n FROM generate_series(1, 4) n) TO STDOUT",
    "COPY (SELECT n, 'x' FROM generate_series(1, 500) n) TO STDOUT (FORMAT csv, HEADER)",
    "COPY (SELECT 1) TO STDOUT (FORMAT binary)",
];

const WRITES: &[&str] = &[
    "INSERT INTO items (id, body) VALUES ({b} + 1, 'one')",
    "INSERT INTO items (id, body) VALUES ({b} + 2, 'two'), ({b} + 3, 'three') RETURNING id - {b}, body",
    "INSERT INTO plain (id, body) VALUES ({b} + 1, NULL)",
    "UPDATE items SET body = body || '!' WHERE id >= {b} AND id < {b} + 100",
    "DELETE FROM items WHERE id >= {b} AND id < {b} + 3 RETURNING 'gone'",
    "DELETE FROM plain WHERE id >= {b} AND id < {b} + 100",
    "CREATE TEMP TABLE mine ON COMMIT DROP AS SELECT 1 AS a",
];

/// Statements about the transaction they are in.
const BLOCKS: &[&str] = &[
    "BEGIN",
    "BEGIN",
    "BEGIN",
    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
    "COMMIT",
    "COMMIT",
    "COMMIT AND CHAIN",
    "ROLLBACK",
    "ROLLBACK",
    "SAVEPOINT a",
    "RELEASE a",
    "ROLLBACK TO a",
    "DECLARE c CURSOR FOR SELECT generate_series(1, 10)",
    "FETCH 2 FROM c",
    "MOVE 1 IN c",
    "CLOSE c",
];

const ERRORS: &[&str] = &[
    "SELEC 1",
    "SELECT 1/0",
    "SELECT * FROM nowhere",
    "SELECT nothing FROM items",
    "SELECT 'a'::int",
    "INSERT INTO items (id, body) VALUES (-1, 'x')",
    "SELECT 1/(n - 3) FROM generate_series(1, 5) n",
    "COPY nowhere FROM STDIN",
    "COPY (SELECT 1/(n - 3) FROM generate_series(1, 5) n) TO STDOUT",
    "EXECUTE nothing",
    "DEALLOCATE nothing",
    "DO $$ BEGIN RAISE EXCEPTION 'mine' USING ERRCODE = 'ZZ123', DETAIL = 'a detail', HINT = 'a hint'; END $$",
    "SELECT \u{e4} FROM items",
];

/// Statements about the session: those whose effect follows the client (docs/pooling.md). Not among
/// them: other SETs, LISTEN that is relied on, PREPARE, temporary tables that last, which "stay on
/// the server connection".
const SETTINGS: &[&str] = &[
    "SET TimeZone = 'Asia/Tokyo'",
    "SET TimeZone = 'UTC'",
    "SET application_name = 'fuzzed'",
    "SET DateStyle = 'German'",
    "SET LOCAL TimeZone = 'America/New_York'",
    "SET LOCAL work_mem = '1MB'",
    "SELECT set_config('TimeZone', 'Europe/Paris', true)",
    "SET nothing.at_all TO DEFAULT",
    "SET work_mem = 'nonsense'",
    "NOTIFY nobody, 'x'",
    "DO $$ BEGIN RAISE NOTICE 'a notice'; RAISE WARNING 'a warning' USING HINT = 'a hint'; END $$",
];

/// What ends or undoes settings. Not of parameters that the client gave at startup
/// (docs/session-state.md: "`RESET` of a parameter that the client gave at startup returns to the
/// server's default").
const RESETS: &[&str] = &[
    "RESET TimeZone",
    "RESET application_name",
    "SET TimeZone TO DEFAULT",
    "DISCARD ALL",
    "DEALLOCATE ALL",
    "DISCARD PLANS",
];

const EMPTY: &[&str] = &["", ";", "  -- nothing\n", "/* */ ;;"];

const COPIES_IN: &[&str] = &[
    "COPY plain (id, body) FROM STDIN",
    "COPY plain (id, body) FROM STDIN",
    "COPY plain FROM STDIN (FORMAT csv)",
    "COPY plain (id) FROM STDIN",
    "COPY plain FROM STDIN (FORMAT binary)",
];

/// Statements with parameters, and how many.
const PARAMETERIZED: &[(&str, usize)] = &[
    ("SELECT $1::int + 1", 1),
    ("SELECT $1::text, $2::int", 2),
    ("SELECT generate_series(1, $1::int)", 1),
    ("SELECT 10 / $1::int", 1),
    ("SELECT body FROM items WHERE id = {b} + $1::int % 100", 1),
    (
        "INSERT INTO items (id, body) VALUES ({b} + abs($1::int % 100), $2) RETURNING id - {b}, body",
        2,
    ),
    (
        "UPDATE plain SET body = $1 WHERE id >= {b} AND id < {b} + 100",
        1,
    ),
    ("SELECT $1, $2, $3", 3),
];

const STATEMENT_NAMES: &[&str] = &["", "", "", "a", "a", "b", "b", "c", "\u{fc}"];
const PORTAL_NAMES: &[&str] = &["", "", "", "p", "q"];

const STARTUPS: &[&[(&str, &str)]] = &[
    &[],
    &[],
    &[],
    &[("TimeZone", "Asia/Tokyo")],
    &[("application_name", "fuzz")],
];

/// Row numbers of a session: a hundred of its own, below 2³¹.
pub fn first_row(seed: u64) -> u64 {
    (seed % 20_000_000 + 1) * 100
}

/// The session of a seed.
pub fn session(seed: u64) -> Session {
    let mut rng = StdRng::seed_from_u64(seed);
    let startup = STARTUPS.choose(&mut rng).copied().unwrap_or_default();
    let conversations = rng.random_range(1..=6);
    let mut writer = Writer {
        rng,
        first_row: first_row(seed).to_string(),
        may_reset: startup.is_empty(),
        arity: HashMap::new(),
        steps: Vec::new(),
    };
    for number in 0..conversations {
        if number > 0 {
            writer.steps.push(mark(&format!("{seed}.{number}")));
        }
        for _ in 0..writer.rng.random_range(1..=7) {
            writer.passage();
        }
    }
    let ending = writer.ending();
    Session {
        seed,
        startup,
        steps: writer.steps,
        ending,
        conversations,
    }
}

/// Ends whatever is going on, and shows `text`. CopyFail ends a COPY and is ignored else, Sync ends
/// what is skipped after an error.
pub fn mark(text: &str) -> Step {
    Step {
        bytes: [
            copy_fail("enough"),
            sync(),
            query(&format!("ROLLBACK; SELECT 'mark {text}'")),
        ]
        .concat(),
        pause: true,
        mark: Some(format!("mark {text}")),
    }
}

struct Writer {
    rng: StdRng,
    first_row: String,
    may_reset: bool,
    /// Parameters of the statements as far as the client knows.
    arity: HashMap<String, usize>,
    steps: Vec<Step>,
}

impl Writer {
    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    fn pick(&mut self, from: &[&str]) -> String {
        let text = from.choose(&mut self.rng).copied().unwrap_or_default();
        text.replace("{b}", &self.first_row)
    }

    fn say(&mut self, bytes: Vec<u8>) {
        self.steps.push(Step {
            bytes,
            pause: false,
            mark: None,
        });
    }

    /// The client may read what it is owed before it goes on.
    fn may_pause(&mut self, percent: u32) {
        let pause = self.chance(percent);
        if let Some(last) = self.steps.last_mut() {
            last.pause |= pause;
        }
    }

    /// A few messages that make sense together.
    fn passage(&mut self) {
        match self.rng.random_range(0..100) {
            0..30 => self.simple(),
            30..65 => self.extended(),
            65..72 => self.portal_in_parts(),
            72..80 => self.copy_in(),
            80..84 => self.call(),
            84..87 => self.pipeline(),
            87..95 => self.stray(),
            _ => self.malformed(),
        }
    }

    fn statement(&mut self) -> String {
        match self.rng.random_range(0..100) {
            0..35 => self.pick(READS),
            35..50 => self.pick(WRITES),
            50..75 => self.pick(BLOCKS),
            75..85 => self.pick(ERRORS),
            85..93 => self.pick(SETTINGS),
            93..96 if self.may_reset => self.pick(RESETS),
            _ => self.pick(EMPTY),
        }
    }

    fn simple(&mut self) {
        let sql = match self.chance(25) {
            false => self.statement(),
            true => {
                let count = self.rng.random_range(2..=4);
                let parts: Vec<_> = (0..count).map(|_| self.statement()).collect();
                parts.join("; ")
            }
        };
        self.say(query(&sql));
        self.may_pause(75);
    }

    fn pipeline(&mut self) {
        for _ in 0..self.rng.random_range(3..15) {
            let from = self.steps.len();
            match self.chance(30) {
                true => self.simple(),
                false => self.extended(),
            }
            for step in &mut self.steps[from..] {
                step.pause = false;
            }
        }
        self.say(sync());
        self.may_pause(90);
    }

    /// A batch as drivers send it; each part may be missing, and comes twice at times.
    fn extended(&mut self) {
        let name = self.pick(STATEMENT_NAMES);
        let portal = self.pick(PORTAL_NAMES);
        let known = self.arity.contains_key(&name);
        if !known || self.chance(35) {
            if known && !name.is_empty() && self.chance(60) {
                self.say(close(b'S', &name));
            }
            let parse = self.parse(&name);
            self.say_or_not(parse);
        }
        if self.chance(30) {
            self.say(describe(b'S', &name));
        }
        self.may_flush(10);
        let bind = self.bind(&portal, &name);
        self.say_or_not(bind);
        if self.chance(40) {
            self.say(describe(b'P', &portal));
        }
        self.may_flush(5);
        let limit = self.limit();
        self.say_or_not(execute(&portal, limit));
        if self.chance(10) {
            self.say(execute(&portal, 0));
        }
        if self.chance(8) {
            self.say(close(b'P', &portal));
        }
        if self.chance(8) {
            self.say(close(b'S', &name));
        }
        match self.rng.random_range(0..100) {
            0..80 => self.say(sync()),
            80..88 => self.say(flush()),
            88..92 => {
                let sql = self.statement();
                self.say(query(&sql));
            }
            _ => return,
        }
        self.may_pause(70);
    }

    fn say_or_not(&mut self, bytes: Vec<u8>) {
        match self.rng.random_range(0..100) {
            0..4 => {}
            4..6 => {
                self.say(bytes.clone());
                self.say(bytes);
            }
            _ => self.say(bytes),
        }
    }

    fn may_flush(&mut self, percent: u32) {
        if self.chance(percent) {
            self.say(flush());
            self.may_pause(70);
        }
    }

    fn limit(&mut self) -> i32 {
        *[0, 0, 0, 1, 2, 1000, -1]
            .choose(&mut self.rng)
            .unwrap_or(&0)
    }

    fn parse(&mut self, name: &str) -> Vec<u8> {
        let (sql, parameters) = match self.chance(50) {
            true => {
                let (sql, parameters) = PARAMETERIZED
                    .choose(&mut self.rng)
                    .copied()
                    .unwrap_or(("", 0));
                (sql.replace("{b}", &self.first_row), parameters)
            }
            false => (self.statement(), 0),
        };
        self.arity.insert(name.to_owned(), parameters);
        let types: &[u32] = match self.rng.random_range(0..100) {
            0..75 => &[],
            75..82 => &[INT4],
            82..88 => &[TEXT, 0],
            88..94 => &[0, INT4],
            94..97 => &[TEXT, TEXT, INT4],
            _ => &[1, 99_999],
        };
        parse_typed(name, &sql, types)
    }

    fn value(&mut self) -> Option<Vec<u8>> {
        Some(match self.rng.random_range(0..100) {
            0..10 => return None,
            10..60 => self.rng.random_range(-3..20_i32).to_string().into_bytes(),
            60..70 => 7_i32.to_be_bytes().to_vec(),
            70..80 => "t\u{e4}xt".as_bytes().to_vec(),
            80..84 => b"\xff\xfe".to_vec(),
            84..87 => b"nul\0within".to_vec(),
            87..90 => vec![b'x'; 20_000],
            _ => Vec::new(),
        })
    }

    fn bind(&mut self, portal: &str, name: &str) -> Vec<u8> {
        let mut count = self.arity.get(name).copied().unwrap_or_default();
        if self.chance(4) {
            count = self.rng.random_range(0..4);
        }
        let values: Vec<_> = (0..count).map(|_| self.value()).collect();
        let values: Vec<_> = values.iter().map(Option::as_deref).collect();
        let formats: &[i16] = match self.rng.random_range(0..100) {
            0..80 => &[],
            80..86 => &[1],
            86..92 => &[0],
            92..96 => &[0, 1],
            _ => &[2],
        };
        let results: &[i16] = match self.rng.random_range(0..100) {
            0..70 => &[],
            70..90 => &[1],
            90..96 => &[0, 1],
            _ => &[7],
        };
        bind_formats(portal, name, formats, &values, results)
    }

    fn portal_in_parts(&mut self) {
        if self.chance(70) {
            self.say(query("BEGIN"));
            self.may_pause(50);
        }
        self.say(parse_typed("", "SELECT generate_series(1, 9)", &[]));
        self.arity.insert(String::new(), 0);
        self.say(bind_formats("p", "", &[], &[], &[]));
        for _ in 0..self.rng.random_range(1..5) {
            let limit = self.limit();
            self.say(execute("p", limit));
            match self.rng.random_range(0..4) {
                0 => self.may_flush(100),
                1 => {
                    self.say(sync());
                    self.may_pause(80);
                }
                2 => {
                    let other = self.parse("");
                    self.say(other);
                }
                _ => {}
            }
        }
        self.say(sync());
        self.may_pause(80);
        if self.chance(60) {
            self.say(query("COMMIT"));
            self.may_pause(80);
        }
    }

    fn copy_in(&mut self) {
        let sql = self.pick(COPIES_IN);
        let simple = self.chance(60);
        if simple {
            let sql = match self.rng.random_range(0..10) {
                0 => format!("{sql}; {sql}"),
                1 => format!("SELECT 1; {sql}; SELECT 2"),
                2 => {
                    let other = self.statement();
                    format!("{other}; {sql}")
                }
                _ => sql,
            };
            self.say(query(&sql));
        } else {
            let name = self.pick(STATEMENT_NAMES);
            self.arity.insert(name.clone(), 0);
            if !name.is_empty() {
                self.say(close(b'S', &name));
            }
            self.say(parse_typed(&name, &sql, &[]));
            self.say(bind_formats("", &name, &[], &[], &[]));
            self.say(execute("", 0));
            match self.rng.random_range(0..10) {
                0..5 => self.say(flush()),
                // docs/compatibility.md: "A COPY FROM STDIN that fails half-way, sent by a driver
                // that puts Sync before the data": the connection stays with its client, and
                // nothing differs for that one.
                5..7 => self.say(sync()),
                _ => {}
            }
        }
        self.may_pause(60);
        for _ in 0..self.rng.random_range(0..5) {
            let data = self.copied();
            self.say(copy_data(&data));
            if self.chance(10) {
                self.say(flush());
            }
        }
        match self.rng.random_range(0..20) {
            0..13 => self.say(copy_done()),
            13..16 => self.say(copy_fail("changed my mind")),
            16 => {
                self.say(copy_done());
                self.say(copy_done());
            }
            // A message that does not belong here ends the connection.
            17 => {
                let sql = self.statement();
                self.say(query(&sql));
            }
            _ => {}
        }
        if !simple && self.chance(90) {
            self.say(sync());
        }
        self.may_pause(75);
    }

    fn copied(&mut self) -> Vec<u8> {
        let row: u64 = self.rng.random_range(10..40);
        let id = self.first_row.parse::<u64>().unwrap_or_default() + row;
        match self.rng.random_range(0..20) {
            0 => b"not a row\n".to_vec(),
            1 => format!("{id}\ta\tb\tc\n").into_bytes(),
            2 => format!("{id}\thalf a r").into_bytes(),
            3 => b"\\.\n".to_vec(),
            4 => Vec::new(),
            5 => format!("{id},csv\n").into_bytes(),
            6 => format!("{id}\n").into_bytes(),
            7 => b"\xff\xff\n".to_vec(),
            8 => format!("{id}\t{}\n", "wide ".repeat(4000)).into_bytes(),
            9 => b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec(),
            10 => b"\xff\xff".to_vec(),
            _ => format!("{id}\tcopied\n").into_bytes(),
        }
    }

    fn call(&mut self) {
        let bytes = match self.rng.random_range(0..8) {
            0 => function_call(LOWER, &[None]),
            1 => function_call(1, &[]),
            2 => function_call(LOWER, &[]),
            3 => function_call(0, &[Some("x")]),
            4 => function_call(
                SET_CONFIG,
                &[Some("TimeZone"), Some("Asia/Kolkata"), Some("true")],
            ),
            5 => function_call(
                SET_CONFIG,
                &[Some("TimeZone"), Some("Asia/Kolkata"), Some("false")],
            ),
            _ => function_call(LOWER, &[Some("CALLED")]),
        };
        self.say(bytes);
        self.may_pause(75);
    }

    /// One message from anywhere.
    fn stray(&mut self) {
        let name = self.pick(STATEMENT_NAMES);
        let portal = self.pick(PORTAL_NAMES);
        let bytes = match self.rng.random_range(0..14) {
            0 => self.parse(&name),
            1 => self.bind(&portal, &name),
            2 => describe(b'S', &name),
            3 => describe(b'P', &portal),
            4 => execute(&portal, 0),
            5 => close(b'S', &name),
            6 => close(b'P', &portal),
            7 => describe(b'S', "never"),
            8 => close(b'S', "never"),
            9 => flush(),
            10 => copy_data(b"stray\n"),
            11 => copy_done(),
            12 => copy_fail("stray"),
            _ => sync(),
        };
        self.say(bytes);
        self.may_pause(30);
    }

    /// A message whose header is right and whose body is not.
    fn malformed(&mut self) {
        let name = self.pick(STATEMENT_NAMES);
        let name = name.as_bytes();
        let bytes = match self.rng.random_range(0..20) {
            0 => message(b'Q', &[b"SELECT 1"]),
            1..3 => message(b'Q', &[]),
            3 => message(b'P', &[name]),
            4 => message(b'P', &[name, b"\0SELECT 1"]),
            5 => message(b'P', &[name, b"\0SELECT 1\0\0\x05\0\0"]),
            6 => message(b'P', &[name, b"\0SELECT 1\0\0\0extra"]),
            7 => message(b'B', &[b"p\0", name]),
            8 => message(b'B', &[b"\0", name, b"\0\0\x03\0"]),
            9 => message(b'B', &[b"\0", name, b"\0\0\0\0\x01\0\0\0\x09x\0\0"]),
            10 => message(b'B', &[b"\0", name, b"\0\0\0\0\0\0\0extra"]),
            11 => message(b'D', &[b"S", name]),
            12 => message(b'D', &[b"S", name, b"\0extra"]),
            13 => message(b'D', &[b"?", name, b"\0"]),
            14 => message(b'C', &[b"S", name, b"\0extra"]),
            15 => message(b'C', &[b"?", name, b"\0"]),
            16 => message(b'E', &[b"\0\0"]),
            17 => message(b'S', &[b"extra"]),
            18 => message(b'F', &[b"\0\0\x03\x66\0\0\0\x01"]),
            _ => self.damaged(),
        };
        self.say(bytes);
        if self.chance(70) {
            self.say(sync());
        }
        self.may_pause(60);
    }

    /// A good message with a byte changed; not of SQL, which could come to name the rows of others,
    /// and not of a function's oid, which could come to be that of any function.
    fn damaged(&mut self) -> Vec<u8> {
        let name = self.pick(STATEMENT_NAMES);
        let mut bytes = match self.rng.random_range(0..5) {
            0 => describe(b'S', &name),
            1 => close(b'S', &name),
            2 => execute("p", 5),
            3 => function_call(LOWER, &[Some("CALLED")]),
            _ => self.bind("p", &name),
        };
        let from = if bytes[0] == b'F' { 9 } else { 5 };
        let at = self.rng.random_range(from..bytes.len());
        bytes[at] = self.rng.random();
        bytes
    }

    fn ending(&mut self) -> Ending {
        match self.rng.random_range(0..100) {
            0..70 => return Ending::Mark,
            70..78 => {
                self.say(terminate());
                return Ending::Terminate;
            }
            78..86 => return Ending::HalfClose,
            86..92 => {
                let whole = query("SELECT 'never whole'");
                let length = self.rng.random_range(1..whole.len());
                self.say(whole[..length].to_vec());
                return Ending::CutShort;
            }
            92..96 => return Ending::Drop,
            _ => {}
        }
        // A frame that PostgreSQL does not take.
        let mut bytes = match self.rng.random_range(0..6) {
            0 => b"Q\0\0\0\x03".to_vec(),
            1 => b"S\0\0\0\0".to_vec(),
            2 => b"Q\xff\xff\xff\xff".to_vec(),
            3 => b"E\0\x0f\0\0".to_vec(),
            4 => b"p\0\0\0\x08\0\0\0\0".to_vec(),
            _ => b"!\0\0\0\x04".to_vec(),
        };
        let mut noise = [0; 8];
        self.rng.fill_bytes(&mut noise);
        bytes.extend(noise);
        self.say(bytes);
        Ending::HalfClose
    }
}
