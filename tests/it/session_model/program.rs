//! Random programs: what the clients of a session model say, step by step.

use std::fmt;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::wire::{
    bind, close, copy_data, copy_done, copy_fail, describe, execute, flush, function_call, parse,
    query, sync,
};

/// Something that a client says in one write.
#[derive(Clone)]
pub struct Step {
    pub said: String,
    pub bytes: Vec<u8>,
    /// ReadyForQuery messages that answer it.
    pub readies: usize,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said)
    }
}

/// A step in which a client leaves and comes again.
pub const LEAVES: &str = "leaves, and is back";

/// What one client does. Who it is, its number tells: 0 and 1 are of one tenant, 2 is of another.
#[derive(Clone, Debug)]
pub struct Client {
    pub startup: &'static [(&'static str, &'static str)],
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug)]
pub struct Program {
    pub seed: u64,
    pub clients: Vec<Client>,
}

const STARTUPS: [&[(&str, &str)]; 3] = [
    &[],
    &[("application_name", "started"), ("TimeZone", "Asia/Tokyo")],
    &[
        ("DateStyle", "SQL, DMY"),
        (
            "options",
            "-c work_mem=5MB -c app.x=began -c search_path=s_a",
        ),
    ],
];

/// Parameters, and values that PostgreSQL takes or does not take.
const PARAMETERS: &[(&str, &[&str])] = &[
    (
        "search_path",
        &[
            "public",
            "s_a, public",
            "s_b",
            "pg_temp, s_a",
            "nowhere",
            "",
        ],
    ),
    (
        "TimeZone",
        &["UTC", "Asia/Tokyo", "America/New_York", "Nowhere/Land"],
    ),
    (
        "DateStyle",
        &[
            "ISO, DMY",
            "SQL, MDY",
            "German",
            "Postgres, DMY",
            "nonsense",
        ],
    ),
    ("IntervalStyle", &["sql_standard", "iso_8601", "postgres"]),
    ("work_mem", &["5MB", "64kB", "1GB", "1"]),
    ("statement_timeout", &["0", "60s", "50min", "x"]),
    ("lock_timeout", &["30s", "0"]),
    ("application_name", &["one", "two", "", "it's me"]),
    (
        "default_transaction_isolation",
        &["serializable", "repeatable read", "none"],
    ),
    ("default_transaction_read_only", &["on", "off"]),
    ("default_transaction_deferrable", &["on", "off"]),
    ("client_encoding", &["UTF8", "LATIN1", "EUC_JP", "nothing"]),
    ("extra_float_digits", &["0", "-3", "3", "9"]),
    ("bytea_output", &["hex", "escape"]),
    ("standard_conforming_strings", &["on", "off"]),
    ("array_nulls", &["on", "off"]),
    ("client_min_messages", &["warning", "error", "notice"]),
    ("idle_in_transaction_session_timeout", &["1h", "0"]),
    ("app.x", &["1", "", "it's", "é", "Ã©", "a b"]),
    ("zz.top", &["é", "Ã©", "z"]),
    ("App.Y", &["1", "two"]),
    ("app.z", &["3", "é"]),
    ("role", &["m_other", "none", "postgres", "nobody_at_all"]),
    ("session_authorization", &["nobody_at_all", "postgres"]),
    ("session_preload_libraries", &["x"]),
    ("dynamic_library_path", &["x"]),
    ("log_statement", &["all"]),
    ("session_replication_role", &["replica"]),
    ("no_such_parameter", &["1"]),
    ("server_version", &["1"]),
    ("log_connections", &["on"]),
    ("max_connections", &["7"]),
    ("geqo", &["off"]),
    ("transaction_isolation", &["serializable"]),
    ("transaction_read_only", &["on"]),
    ("temp_tablespaces", &["", "nowhere"]),
    (
        "default_text_search_config",
        &["simple", "pg_catalog.english"],
    ),
    ("lc_monetary", &["C", "zz"]),
    ("xmloption", &["document", "content"]),
    ("plan_cache_mode", &["force_generic_plan", "auto"]),
    ("default_tablespace", &[""]),
    ("vacuum_cost_delay", &["1ms"]),
    ("backslash_quote", &["on", "off"]),
];

/// What prepared statements say, and how many parameters they have.
const TEXTS: &[(&str, &[&str])] = &[
    ("SELECT $1::int + 1", &["4"]),
    (
        "SELECT current_setting('TimeZone'), current_setting('work_mem')",
        &[],
    ),
    ("SELECT v FROM marker", &[]),
    ("SELECT now() > '2000-01-01'", &[]),
    ("SELECT 'a' || $1", &["b"]),
    ("SET work_mem = '7MB'", &[]),
    ("SET TimeZone = 'Europe/Paris'", &[]),
    ("SELECT set_config('app.x', $1, false)", &["bound"]),
    ("SELECT set_config($1, $2, false)", &["app.y", "unknown"]),
    ("BEGIN", &[]),
    ("COMMIT", &[]),
    ("SELECT 1 / $1::int", &["0"]),
    ("SELECT m_set('app.x', $1)", &["by function"]),
    ("SELECT generate_series(1, 3)", &[]),
    ("SELEC", &[]),
    ("", &[]),
];

/// Texts whose literals PostgreSQL reads when it parses them: they are prepared, run and closed in
/// one step.
const LITERALS: [&str; 6] = [
    "SELECT date '01/02/2020'",
    "SELECT timestamptz '2020-01-01 12:00'",
    "SELECT interval '-1 2:03:04' = interval '-1 day -2:03:04'",
    "SELECT ('{NULL}'::text[])[1] IS NULL",
    "SELECT 'a\\b'",
    "SELECT 'é' = chr(233)",
];

const NAMES: [&str; 3] = ["s1", "s2", "S 3"];

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

/// Whether a client began with parameters of its own: where RESET returns to them differs within a
/// transaction, which docs/session-state.md says.
pub struct Writer {
    random: StdRng,
    number: usize,
    resets: bool,
}

impl Writer {
    fn below(&mut self, limit: usize) -> usize {
        self.random.random_range(0..limit)
    }

    fn one_of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }

    fn parameter(&mut self) -> (&'static str, &'static str) {
        // The first ones more often.
        let count = PARAMETERS.len();
        let at = self.below(count).min(self.below(count));
        let (name, values) = PARAMETERS[at];
        (name, self.one_of(values))
    }

    fn setting(&mut self) -> String {
        let (name, value) = self.parameter();
        let value = quoted(value);
        let resets = if self.resets { 16 } else { 11 };
        match self.below(resets) {
            0..=3 => format!("SET {name} = {value}"),
            4 => format!("SET SESSION {name} TO {value}"),
            5 | 6 => format!("SET LOCAL {name} = {value}"),
            7 => format!("SELECT set_config('{name}', {value}, false)"),
            8 => format!("SELECT set_config('{name}', {value}, true)"),
            9 => self
                .one_of(&[
                    "SET TIME ZONE 'Asia/Tokyo'",
                    "SET TIME ZONE 3",
                    "SET LOCAL TIME ZONE 'UTC'",
                    "SET NAMES 'LATIN1'",
                    "SET NAMES 'UTF8'",
                    "SET SCHEMA 's_b'",
                    "SET ROLE m_other",
                    "SET LOCAL ROLE m_other",
                    "SET ROLE NONE",
                    "SET SESSION AUTHORIZATION DEFAULT",
                    "SET XML OPTION DOCUMENT",
                    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
                    "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
                    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ WRITE",
                    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED",
                    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
                    "SET LOCAL search_path FROM CURRENT",
                    "UPDATE pg_settings SET setting = '6MB' WHERE name = 'work_mem'",
                ])
                .to_owned(),
            10 => {
                let function = self.one_of(&[
                    "m_set", "m_set_local", "m_set_and_fail", "m_set_and_catch", "m_clause",
                    "m_set_fixed", "m_run",
                ]);
                format!("SELECT {function}('{name}', {value})")
            }
            11 => format!("SET {name} TO DEFAULT"),
            12 => format!("SET LOCAL {name} TO DEFAULT"),
            13 => "RESET ALL".to_owned(),
            _ => format!("RESET {name}"),
        }
    }

    fn transaction(&mut self) -> &'static str {
        self.one_of(&[
            "BEGIN",
            "BEGIN",
            "BEGIN",
            "START TRANSACTION READ ONLY",
            "BEGIN ISOLATION LEVEL REPEATABLE READ",
            "COMMIT",
            "COMMIT",
            "ROLLBACK",
            "ROLLBACK",
            "COMMIT AND CHAIN",
            "ROLLBACK AND CHAIN",
            "SAVEPOINT a",
            "SAVEPOINT a",
            "SAVEPOINT b",
            "ROLLBACK TO a",
            "ROLLBACK TO b",
            "RELEASE a",
        ])
    }

    fn failure(&mut self) -> &'static str {
        self.one_of(&[
            "SELEC 1",
            "SELECT 1 / 0",
            "SELECT * FROM no_such_table",
            "SELECT no_such_function(1)",
            "SELECT 'unfinished",
        ])
    }

    fn temporary(&mut self) -> &'static str {
        self.one_of(&[
            "CREATE TEMP TABLE tmp1 (a int)",
            "CREATE TEMP TABLE tmp1 (a int)",
            "CREATE TEMP TABLE tmp1 (a int) ON COMMIT DROP",
            "CREATE TEMP TABLE tmp1 (a int) ON COMMIT DELETE ROWS",
            "CREATE TEMP TABLE tmp2 AS SELECT 5 AS a",
            "SELECT 6 AS a INTO TEMP tmp2",
            "CREATE TABLE pg_temp.tmp3 (a int)",
            "CREATE TABLE tmp4 (a int)",
            "CREATE TEMP VIEW tmp_view AS SELECT 7 AS a",
            "CREATE TEMP SEQUENCE tmp_seq",
            "DROP TABLE tmp1",
            "DROP TABLE IF EXISTS tmp1, tmp2",
            "DROP TABLE tmp2",
            "DROP TABLE IF EXISTS tmp3, tmp4",
            "DROP VIEW tmp_view",
            "DROP SEQUENCE tmp_seq",
            "INSERT INTO tmp1 VALUES (1)",
            "SELECT a FROM tmp1",
            "SELECT a FROM tmp2",
            "SELECT m_temp()",
            "DISCARD TEMP",
        ])
    }

    fn cursor(&mut self) -> &'static str {
        self.one_of(&[
            "DECLARE c1 CURSOR WITH HOLD FOR SELECT generate_series(1, 5)",
            "DECLARE c1 SCROLL CURSOR WITH HOLD FOR SELECT v FROM marker",
            "DECLARE c2 CURSOR FOR SELECT generate_series(1, 5)",
            "FETCH 2 FROM c1",
            "FETCH c2",
            "MOVE c1",
            "CLOSE c1",
            "CLOSE ALL",
        ])
    }

    fn other_state(&mut self) -> String {
        let number = self.number;
        let sql = self.one_of(&[
            "LISTEN ch{n}",
            "LISTEN other{n}",
            "UNLISTEN ch{n}",
            "UNLISTEN *",
            "NOTIFY ch{n}, 'told'",
            "SELECT pg_notify('ch{n}', 'by function')",
            "SELECT pg_advisory_lock({n}01)",
            "SELECT pg_advisory_lock_shared({n}02)",
            "SELECT pg_try_advisory_lock_shared({n}02)",
            "SELECT pg_advisory_xact_lock({n}03)",
            "SELECT pg_advisory_unlock({n}01)",
            "SELECT pg_advisory_unlock_all()",
            "SELECT m_lock({n}04)",
            "DISCARD PLANS",
            "DISCARD SEQUENCES",
            "DISCARD ALL",
            "SELECT nextval('seq{n}'); SELECT lastval()",
            "SELECT nextval('seq{n}')",
            "INSERT INTO own{n} VALUES (1, 'a')",
            "INSERT INTO watched{n} VALUES (1)",
            "DELETE FROM own{n}",
            "SET app.x = 'é'; SET zz.top = 'é'; SET client_encoding = 'LATIN1'",
            "SET client_encoding = 'LATIN1'; SET zz.top = 'Ã©'; SET app.x = 'Ã©'",
            "SET app.z = 'höher'; SET application_name = 'ö'",
            "INSERT INTO deferred{n} VALUES (1), (1)",
            "INSERT INTO deferred{n} VALUES (2)",
            "SELECT count(*) FROM own{n}",
            "SELECT lo_open(lo_create(0), 131072) >= 0",
            "DO $$ BEGIN PERFORM set_config('app.z', 'done', false); END $$",
            "DO $$ BEGIN EXECUTE 'SET work_mem = ''9MB'''; END $$",
        ]);
        let is_reset = sql == "DISCARD ALL";
        match is_reset && !self.resets {
            true => "SELECT 1".to_owned(),
            false => sql.replace("{n}", &number.to_string()),
        }
    }

    fn sql_prepare(&mut self) -> &'static str {
        self.one_of(&[
            "PREPARE q1 AS SELECT 1",
            "PREPARE q2 (int) AS SELECT $1 + 1",
            "EXECUTE q1",
            "EXECUTE q2 (3)",
            "EXECUTE s1",
            "DEALLOCATE ALL",
            "DEALLOCATE q1",
            "DEALLOCATE q2",
            "DEALLOCATE s1",
            "DEALLOCATE \"S 3\"",
        ])
    }

    /// Any statement.
    fn sql(&mut self) -> String {
        match self.below(24) {
            0..=8 => self.setting(),
            9..=12 => self.transaction().to_owned(),
            13 => self.failure().to_owned(),
            14..=15 => self.temporary().to_owned(),
            16 => self.cursor().to_owned(),
            17..=18 => self.other_state(),
            19 => "SELECT v FROM marker".to_owned(),
            20..=21 => self
                .one_of(&[
                    "SELECT timestamptz '2020-02-01 12:00Z', interval '1 day -2:03', 0.1::float8 + 0.2, decode('ff5c', 'hex')",
                    "SELECT date '01/02/2020'",
                    "SELECT 'é', chr(233), 'a\\\\b'",
                    "SELECT '{NULL,1}'::text[]",
                    "SELECT",
                    "",
                    "SHOW transaction_isolation",
                    "SHOW transaction_read_only",
                ])
                .to_owned(),
            _ => self.sql_prepare().to_owned(),
        }
    }

    fn query(sql: &str) -> Step {
        Step {
            said: format!("Q {sql:?}"),
            bytes: query(sql),
            readies: 1,
        }
    }

    fn batch(parts: Vec<(String, Vec<u8>)>) -> Step {
        let readies = parts.iter().filter(|(said, _)| said == "Sync").count();
        let (said, bytes): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        Step {
            said: said.join(" "),
            bytes: bytes.concat(),
            readies,
        }
    }

    /// One or more messages that run something by the extended protocol, or prepare it.
    fn extended(&mut self, parts: &mut Vec<(String, Vec<u8>)>) {
        let run_unnamed = |parts: &mut Vec<(String, Vec<u8>)>, sql: &str| {
            parts.push((format!("P {sql:?}"), parse("", sql)));
            parts.push(("B".to_owned(), bind("", "", &[])));
            parts.push(("E".to_owned(), execute("", 0)));
        };
        let name = self.one_of(&NAMES);
        let (text, values) = TEXTS[self.below(TEXTS.len())];
        let values: Vec<_> = values.iter().map(|value| Some(*value)).collect();
        match self.below(13) {
            12 => {
                let text = self.one_of(&LITERALS);
                parts.push(("Close(literal)".to_owned(), close(b'S', "literal")));
                parts.push((format!("P(literal) {text:?}"), parse("literal", text)));
                parts.push(("B(literal)".to_owned(), bind("", "literal", &[])));
                parts.push(("E".to_owned(), execute("", 0)));
            }
            0..=4 => {
                let sql = self.sql();
                run_unnamed(parts, &sql);
            }
            5 => parts.push((format!("P({name}) {text:?}"), parse(name, text))),
            6 => parts.push((format!("Close({name})"), close(b'S', name))),
            7 => parts.push((format!("Describe({name})"), describe(b'S', name))),
            8 => {
                parts.push((format!("P({name}) {text:?}"), parse(name, text)));
                parts.push((format!("B({name}) {values:?}"), bind("", name, &values)));
                parts.push(("E".to_owned(), execute("", 0)));
            }
            9 | 10 => {
                // Of what text it is nobody knows here: the number of values may be wrong.
                let count = self.below(3);
                let values = vec![Some("1"); count.saturating_sub(1)];
                parts.push((format!("B({name}) {values:?}"), bind("", name, &values)));
                if self.below(3) == 0 {
                    parts.push(("Describe portal".to_owned(), describe(b'P', "")));
                }
                let limit = i32::from(self.below(4) == 0);
                parts.push((format!("E {limit}"), execute("", limit)));
            }
            _ => match self.below(3) {
                0 => parts.push((format!("P {text:?}"), parse("", text))),
                1 => {
                    parts.push((format!("B {values:?}"), bind("", "", &values)));
                    parts.push(("E".to_owned(), execute("", 0)));
                }
                _ => parts.push(("Flush".to_owned(), flush())),
            },
        }
    }

    fn copy(&mut self) -> Step {
        let n = self.number;
        let sql = self.one_of(&[
            "COPY own{n} FROM STDIN",
            "SET app.x = 'copied'; COPY own{n} FROM STDIN",
            "COPY own{n} FROM STDIN; SET work_mem = '8MB'",
            "COPY tmp1 FROM STDIN",
        ]);
        let sql = sql.replace("{n}", &n.to_string());
        let (what, data) = match self.below(4) {
            0 => ("bad row", [copy_data(b"nonsense\n"), copy_done()].concat()),
            1 => ("CopyFail", [copy_data(b"3\tc\n"), copy_fail("no")].concat()),
            _ => ("row", [copy_data(b"2\tb\n"), copy_done()].concat()),
        };
        Step {
            said: format!("Q {sql:?} {what}"),
            bytes: [query(&sql), data].concat(),
            readies: 1,
        }
    }

    /// A reset outside of a transaction, and what is sent behind it at once.
    fn reset(&mut self) -> Step {
        let (name, _) = self.parameter();
        let reset = match self.below(4) {
            0 => "RESET ALL".to_owned(),
            1 => "DISCARD ALL".to_owned(),
            2 => format!("SET {name} TO DEFAULT"),
            _ => format!("RESET {name}"),
        };
        let said = ["ROLLBACK", &reset, "SELECT v FROM marker"];
        Step {
            said: format!("Q {said:?}"),
            bytes: said.map(query).concat(),
            readies: said.len(),
        }
    }

    fn step(&mut self) -> Step {
        match self.below(40) {
            0..=14 => Self::query(&self.sql()),
            15..=20 => {
                let count = 2 + self.below(3);
                // RESET within a transaction returns to other than the client began with, until
                // that ends.
                let statements: Vec<_> = (0..count).map(|_| self.sql()).collect();
                Self::query(&statements.join("; "))
            }
            21..=33 => {
                let mut parts = Vec::new();
                for _ in 0..=self.below(3) {
                    self.extended(&mut parts);
                    if self.below(4) == 0 {
                        parts.push(("Sync".to_owned(), sync()));
                    }
                }
                parts.push(("Sync".to_owned(), sync()));
                Self::batch(parts)
            }
            34..=36 => self.copy(),
            37 if self.below(2) == 0 => Step {
                said: LEAVES.to_owned(),
                bytes: Vec::new(),
                readies: 0,
            },
            37 => Self::query(self.one_of(&[
                "COPY (SELECT generate_series(1, 3)) TO STDOUT",
                "COPY (SELECT 1 / (2 - g) FROM generate_series(1, 3) g) TO STDOUT",
            ])),
            38 if self.below(8) == 0 => Step {
                said: "FunctionCall set_config".to_owned(),
                bytes: function_call(2078, &[Some("app.y"), Some("called"), Some("false")]),
                readies: 1,
            },
            38 if !self.resets => self.reset(),
            _ => probe(self.below(2) == 0),
        }
    }
}

/// A question about all that the session holds.
pub fn probe(extended: bool) -> Step {
    const NAMES: [&str; 30] = [
        "search_path",
        "TimeZone",
        "DateStyle",
        "IntervalStyle",
        "work_mem",
        "statement_timeout",
        "lock_timeout",
        "application_name",
        "default_transaction_isolation",
        "default_transaction_read_only",
        "default_transaction_deferrable",
        "client_encoding",
        "extra_float_digits",
        "bytea_output",
        "standard_conforming_strings",
        "array_nulls",
        "client_min_messages",
        "idle_in_transaction_session_timeout",
        "role",
        "session_authorization",
        "log_statement",
        "session_replication_role",
        "geqo",
        "transaction_isolation",
        "transaction_read_only",
        "default_text_search_config",
        "lc_monetary",
        "xmloption",
        "plan_cache_mode",
        "backslash_quote",
    ];
    let settings: Vec<_> = NAMES.iter().map(|name| format!("('{name}')")).collect();
    let custom = "coalesce(pg_catalog.current_setting('app.x', true), '') || '|' \
                  || coalesce(pg_catalog.current_setting('app.y', true), '') || '|' \
                  || coalesce(pg_catalog.current_setting('app.z', true), '') || '|' \
                  || coalesce(pg_catalog.current_setting('zz.top', true), '')";
    let list = |what: &str, from: &str| {
        format!(
            "SELECT '{from}', coalesce(pg_catalog.string_agg({what}, ',' ORDER BY {what}), '') FROM {from}"
        )
    };
    let parts = [
        format!(
            "SELECT 'settings', pg_catalog.string_agg(n || '=' || pg_catalog.current_setting(n), E'\\n') FROM (VALUES {}) s (n)",
            settings.join(", ")
        ),
        format!("SELECT 'custom', {custom}"),
        "SELECT 'users', current_user || ' ' || session_user".to_owned(),
        list("pg_listening_channels", "pg_catalog.pg_listening_channels()"),
        list("name || is_holdable", "pg_catalog.pg_cursors"),
        "SELECT 'prepared', coalesce(pg_catalog.string_agg(name, ',' ORDER BY name), '') FROM pg_catalog.pg_prepared_statements WHERE from_sql".to_owned(),
        "SELECT 'temporary', coalesce(pg_catalog.string_agg(relname, ',' ORDER BY relname), '') \
         FROM pg_catalog.pg_class WHERE relnamespace = pg_catalog.pg_my_temp_schema()".to_owned(),
        "SELECT 'schemas', coalesce(pg_catalog.string_agg(s, ',' ORDER BY n), '') \
         FROM pg_catalog.unnest(pg_catalog.current_schemas(false)) WITH ORDINALITY u (s, n) WHERE s NOT LIKE 'pg_temp%'".to_owned(),
        "SELECT 'locks', pg_catalog.count(*)::text FROM pg_catalog.pg_locks \
         WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()".to_owned(),
        "SELECT 'shown', pg_catalog.concat_ws(' ', timestamptz '2020-02-01 12:00Z', interval '1 day -2:03', pg_catalog.decode('ff', 'hex'), pg_catalog.chr(233))".to_owned(),
    ];
    let sql = parts.join(" UNION ALL ");
    let bytes = match extended {
        true => [parse("", &sql), bind("", "", &[]), execute("", 0), sync()].concat(),
        false => query(&sql),
    };
    Step {
        said: format!("probe{}", if extended { ", extended" } else { "" }),
        bytes,
        readies: 1,
    }
}

fn can_join(step: &Step) -> bool {
    step.readies > 0 && !step.said.starts_with("probe")
}

/// The program of a seed.
pub fn program(seed: u64) -> Program {
    let mut random = StdRng::seed_from_u64(seed);
    let clients = (0..3)
        .map(|number| {
            let startup = STARTUPS[random.random_range(0..6_usize).saturating_sub(3)];
            let mut writer = Writer {
                random: StdRng::seed_from_u64(random.random()),
                number,
                resets: startup.is_empty(),
            };
            let count = if number == 0 { 14 } else { 7 };
            let mut steps: Vec<Step> = Vec::new();
            for _ in 0..count {
                let step = writer.step();
                match steps.last_mut() {
                    // Both in one write.
                    Some(last) if writer.below(8) == 0 && can_join(last) && can_join(&step) => {
                        last.said = format!("{} | {}", last.said, step.said);
                        last.bytes.extend(step.bytes);
                        last.readies += step.readies;
                    }
                    _ => steps.push(step),
                }
            }
            // Whatever was left open ends, and all is asked.
            steps.push(Writer::query("ROLLBACK"));
            steps.push(probe(false));
            Client { startup, steps }
        })
        .collect();
    Program { seed, clients }
}
