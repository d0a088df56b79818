//! SQL that names prepared statements (PREPARE, EXECUTE, DEALLOCATE, DISCARD), in every form and
//! place, among the protocol's own messages about them: PostgreSQL and the proxy answer alike,
//! whichever server connection the client gets.

use std::time::Duration;

use crate::harness::{Running, Setup, Tenant, direct, tenant, world};
use crate::wire::{
    Frame, Wire, bind, close, column, describe, execute, flush, parse, query, rows, sync,
};

/// A generator of numbers that is the same in each run (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn is_one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).expect("small")]
    }
}

/// One write, and how many ReadyForQuery answer it.
#[derive(Clone)]
struct Step {
    said: String,
    bytes: Vec<u8>,
    ready: usize,
}

/// Names as the protocol has them, and ways to write each in SQL.
const NAMES: [(&str, &[&str]); 4] = [
    (
        "a",
        &["a", "A", "\"a\"", "U&\"\\0061\"", "U&\"!0061\" UESCAPE '!'"],
    ),
    ("b", &["b", "\"b\"", "B"]),
    ("A b\"", &["\"A b\"\"\"", "U&\"A\\+000020b\"\"\""]),
    ("\u{e9}", &["\u{e9}", "\"\u{e9}\"", "U&\"\\00e9\""]),
];

fn name(numbers: &mut Numbers) -> (&'static str, &'static str) {
    // Few names, so that many messages are about the same.
    let (name, spellings) = NAMES[match numbers.below(8) {
        0..5 => 0,
        5..6 => 1,
        6 => 2,
        _ => 3,
    }];
    (name, numbers.one_of(spellings))
}

/// A statement, with white space and comments anywhere between its words.
fn statement(numbers: &mut Numbers) -> String {
    let (_, name) = name(numbers);
    let n = numbers.below(1000);
    let body = match numbers.below(7) {
        0 => format!("SELECT set_config('my.q', 'v{n}', false)"),
        1 => format!("SELECT set_config('my.q', 'local{n}', true)"),
        2 => "SELECT 1/0".to_owned(),
        3 => "SELECT $1::text".to_owned(),
        _ => format!("SELECT 'sql{n}'"),
    };
    let words: &[&str] = match numbers.below(30) {
        0..7 => &["DEALLOCATE", name],
        7 => &["deallocate", "prepare", name],
        8 => &["DEALLOCATE", "ALL"],
        9 => &["Deallocate", "Prepare", "all"],
        10 => &["DISCARD", "ALL"],
        11 => &["DISCARD", "PLANS"],
        12..16 => &["PREPARE", name, "AS", &body],
        16..19 => &["EXECUTE", name],
        19 => &["EXECUTE", name, "(", "'x'", ")"],
        20 => &["EXPLAIN (COSTS OFF) EXECUTE", name],
        21 => &["SELECT", "1/0"],
        22 => &["SAVEPOINT", "s"],
        23 => &["ROLLBACK TO", "s"],
        24 => &["BEGIN"],
        25 => &["ROLLBACK"],
        26 => &["COMMIT"],
        _ => &["SELECT coalesce(current_setting('my.q', true), '')"],
    };
    let mut text = String::new();
    for word in words {
        text += numbers.one_of(&["", "", "", "/* DEALLOCATE x; */", "-- b\n", "\n/* ' */ "]);
        text += word;
        text += " ";
    }
    text
}

/// One that executes nothing by name: a circle of EXPLAIN EXECUTE ends PostgreSQL.
fn plain_statement(numbers: &mut Numbers) -> String {
    loop {
        let text = statement(numbers);
        if !text.contains("EXECUTE") {
            return text;
        }
    }
}

fn query_step(numbers: &mut Numbers) -> Step {
    let mut text = String::new();
    for at in 0..=numbers.one_of(&[0, 0, 1, 2]) {
        if at > 0 || numbers.is_one_in(12) {
            text += ";";
        }
        text += &statement(numbers);
    }
    text += numbers.one_of(&["", "", ";", "-- end", "/* end */;;"]);
    // In a transaction that has failed, a text that ends it cannot execute what the protocol
    // prepared.
    let ends = ["ROLLBACK", "COMMIT"].iter().any(|end| text.contains(end));
    if ends && text.contains("EXECUTE") {
        return query_step(numbers);
    }
    Step {
        bytes: query(&text),
        said: format!("Query {text:?}"),
        ready: 1,
    }
}

fn run(statement: &str, numbers: &mut Numbers) -> Vec<u8> {
    let described = match numbers.below(3) {
        0 => describe(b'P', ""),
        _ => Vec::new(),
    };
    [
        parse("", statement),
        bind("", "", &[]),
        described,
        execute("", 0),
    ]
    .concat()
}

fn extended_step(numbers: &mut Numbers) -> Step {
    let mut step = Step {
        said: String::new(),
        bytes: Vec::new(),
        ready: 1,
    };
    for _ in 0..=numbers.below(4) {
        let (name, _) = name(numbers);
        let n = numbers.below(1000);
        let (said, frames) = match numbers.below(17) {
            0..4 => {
                let text = match numbers.below(8) {
                    0 => "SELEC".to_owned(),
                    1 | 2 => plain_statement(numbers),
                    _ => format!("SELECT 'parsed{n}'"),
                };
                (format!("Parse {name:?} {text:?}"), parse(name, &text))
            }
            4..7 => (
                format!("Run {name:?}"),
                [bind("", name, &[]), execute("", 0)].concat(),
            ),
            7 => (format!("Describe {name:?}"), describe(b'S', name)),
            8 => (format!("Close {name:?}"), close(b'S', name)),
            9..12 => {
                let text = statement(numbers);
                (format!("Run unnamed {text:?}"), run(&text, numbers))
            }
            12 => ("Flush".to_owned(), flush()),
            13 => (format!("Bind p {name:?}"), bind("p", name, &[])),
            14 | 15 => ("Execute p".to_owned(), execute("p", 0)),
            _ => {
                step.ready += 1;
                ("Sync".to_owned(), sync())
            }
        };
        step.said += &format!("{said}; ");
        step.bytes.extend(frames);
    }
    step.said += "Sync";
    step.bytes.extend(sync());
    step
}

fn step(numbers: &mut Numbers) -> Step {
    let first = match numbers.below(2) {
        0 => query_step(numbers),
        _ => extended_step(numbers),
    };
    if !numbers.is_one_in(6) {
        return first;
    }
    // In one write with what follows.
    let second = step(numbers);
    Step {
        said: format!("{} | {}", first.said, second.said),
        bytes: [first.bytes, second.bytes].concat(),
        ready: first.ready + second.ready,
    }
}

/// What is said to a step, or so far when there was no more in time.
async fn answer(wire: &mut Wire, step: &Step) -> Vec<String> {
    if wire.try_send(&step.bytes).await.is_err() {
        return vec!["gone".to_owned()];
    }
    let mut said = Vec::new();
    let mut ready = 0;
    let all = async {
        while ready < step.ready {
            let Some(frame) = wire.frame().await else {
                said.push("closed".to_owned());
                return;
            };
            ready += usize::from(frame.tag == b'Z');
            said.extend(shown(&frame));
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(5), all).await;
    if done.is_err() {
        said.push("hangs".to_owned());
    }
    said
}

fn shown(frame: &Frame) -> Option<String> {
    match frame.tag {
        b'S' => None,
        b'E' => Some(format!(
            "E{} {:?} {:?}",
            frame.sqlstate(),
            frame.field(b'M'),
            frame.field(b'P')
        )),
        _ => Some(frame.to_string()),
    }
}

/// Others of the same pool, so that the client does not find the server connection it had.
struct Others<'a> {
    proxy: &'a Running,
    tenant: &'a Tenant,
    size: usize,
    blocker: Option<Wire>,
}

impl Others<'_> {
    async fn interfere(&mut self, numbers: &mut Numbers) {
        self.blocker = None;
        if self.size > 1 && numbers.is_one_in(2) {
            let mut blocker = self.proxy.raw(self.tenant).await;
            blocker.query("BEGIN").await;
            self.blocker = Some(blocker);
        }
        // A client that keeps the only connection keeps them waiting.
        if self.size > 1 || numbers.is_one_in(8) {
            let mut other = self.proxy.raw(self.tenant).await;
            let foreign = "SELECT name FROM pg_prepared_statements WHERE name NOT LIKE 'pgtenant%'";
            let steps = [
                query(foreign),
                parse("a", "SELECT 'of another'"),
                sync(),
                query("PREPARE b AS SELECT 'of another, too'"),
                query("DEALLOCATE a"),
                query("DEALLOCATE ALL"),
            ];
            let all = async {
                other.send(&steps.concat()).await;
                let found = column(&other.until_ready().await);
                for _ in 0..4 {
                    other.until_ready().await;
                }
                found
            };
            let found = tokio::time::timeout(Duration::from_millis(300), all).await;
            assert_eq!(
                found.unwrap_or_default(),
                [""; 0],
                "names of another client"
            );
        }
    }
}

/// Plays programs; `PGTENANT_TEST_PROGRAMS` says how many in place of these.
async fn compare(pooling: &'static str, size: usize, first: u64, programs: u64) {
    let asked = std::env::var("PGTENANT_TEST_PROGRAMS");
    let programs = asked.map_or(programs, |asked| asked.parse().expect("a number"));
    let world = world().await;
    let setup = Setup {
        pooling,
        pool_size: size,
        ..Setup::default()
    };
    let proxy = setup.start().await;
    let a = proxy.home(&tenant("t00"));
    for program in first..first + programs {
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15 ^ (program + 1));
        for _ in 0..10 {
            numbers.below(2);
        }
        let mut plain = direct(world, &a).await;
        let mut wire = proxy.raw(&a).await;
        let mut others = Others {
            proxy: &proxy,
            tenant: &a,
            size,
            blocker: None,
        };
        let mut said = String::new();
        for _ in 0..10 {
            others.interfere(&mut numbers).await;
            let step = step(&mut numbers);
            said += &format!("  {}\n", step.said);
            let expected = answer(&mut plain, &step).await;
            let seen = answer(&mut wire, &step).await;
            assert_eq!(
                seen, expected,
                "program {program}, {pooling} pooling, {size} connections:\n{said}"
            );
            // EXECUTE of what the protocol prepared as SAVEPOINT is FATAL outside of a transaction.
            if expected.last().is_some_and(|last| last == "closed") {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_of_prepared_statements_run_as_direct_on_one_server_connection() {
    compare("transaction", 1, 0, 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_of_prepared_statements_run_as_direct_on_connections_that_change() {
    compare("transaction", 3, 1_000_000, 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_of_prepared_statements_run_as_direct_in_session_pooling() {
    compare("session", 4, 2_000_000, 40).await;
}

/// What applications and drivers do, each in a session of its own: writes that end with one
/// ReadyForQuery.
fn conversations() -> Vec<Vec<Vec<u8>>> {
    let prepared = |name: &str, sql: &str| [parse(name, sql), sync()].concat();
    let ran = |name: &str| [bind("", name, &[]), execute("", 0), sync()].concat();
    let once = |sql: &str| [parse("", sql), bind("", "", &[]), execute("", 0)].concat();
    let typed = |sql: &str| crate::wire::parse_typed("a", sql, &[23]);
    let long = format!("/* {} */ DEALLOCATE a", "x".repeat(20_000));
    let mut conversations = Vec::new();
    for sql in [
        "DEALLOCATE ALL",
        "DISCARD ALL",
        "DEALLOCATE a",
        "DISCARD PLANS",
        "/* app */ deallocate a",
        "deallocate a -- x",
        ";deallocate a",
        "deallocate a; select 5",
        "begin; deallocate a; commit",
        "begin; deallocate a; rollback",
        "savepoint s; deallocate \"a\"; release s",
        "deallocate U&\"\\0061\"",
        "deallocate b; deallocate a",
        "deallocate a; deallocate a",
        "select 1/0; deallocate a",
        "deallocate a; select 1/0",
        "do $$ begin deallocate a; end $$",
        "do $$ begin execute 'deallocate all'; end $$",
        "do $$ begin if false then deallocate a; end if; end $$",
        "execute a",
        "explain (costs off) execute a",
        "prepare a as select 'sql'",
        "deallocate a; prepare a as select 'sql'; execute a",
        "do $$ begin deallocate a; prepare a as select 'code'; end $$",
        "do $$ begin execute 'prepare b as select 1'; execute 'deallocate b'; end $$",
        &long,
    ] {
        let then = [ran("a"), prepared("a", "SELECT 'second'"), ran("a")];
        // In a transaction, what code has done to all names at once is not known before its end.
        let begins: &[bool] = match sql.contains("'deallocate all'") {
            true => &[false],
            false => &[false, true],
        };
        for &begin in begins {
            let begun = begin.then(|| query("BEGIN"));
            let said = [prepared("a", "SELECT 'first'"), query(sql)];
            let ended = begin.then(|| query("ROLLBACK"));
            let all = begun
                .into_iter()
                .chain(said)
                .chain(then.clone())
                .chain(ended);
            conversations.push(all.chain([ran("a")]).collect());
        }
        // In a batch, with what is prepared behind it.
        if begins.len() == 1 {
            continue;
        }
        for name in ["a", "b"] {
            let batch = [
                once(sql),
                parse(name, "SELECT 'behind'"),
                bind("", name, &[]),
                execute("", 0),
                sync(),
            ];
            let said = [prepared("a", "SELECT 'first'"), batch.concat(), ran(name)];
            conversations.push(said.into());
        }
    }
    conversations.extend([
        // psqlODBC
        vec![
            query("BEGIN;SELECT 1"),
            prepared("_PLAN1", "SELECT 'planned'"),
            ran("_PLAN1"),
            query("SAVEPOINT _EXEC_SVP_;DEALLOCATE \"_PLAN1\";RELEASE _EXEC_SVP_"),
            prepared("_PLAN1", "SELECT 'planned again'"),
            query("ROLLBACK"),
            ran("_PLAN1"),
        ],
        // Values, and what the statement that executes another is described as.
        vec![
            [typed("SELECT $1 + 1 AS next"), sync()].concat(),
            query("EXECUTE a(41)"),
            query("EXECUTE a"),
            query("BEGIN; CREATE TEMP TABLE made AS EXECUTE a(1); SELECT next + 1 AS n FROM made; ROLLBACK"),
            [parse("x", "EXECUTE a(2)"), describe(b'S', "x"), sync()].concat(),
            [
                bind("", "x", &[]),
                describe(b'P', ""),
                execute("", 0),
                sync(),
            ]
            .concat(),
            [
                bind("", "x", &[]),
                describe(b'P', ""),
                execute("", 0),
                sync(),
            ]
            .concat(),
        ],
        // A statement whose table is gone, in transactions and out of them.
        vec![
            query("CREATE TEMP TABLE gone (id int)"),
            prepared("a", "SELECT * FROM gone"),
            query("DROP TABLE gone"),
            query("EXECUTE a"),
            query("SELECT 'goes on'"),
            query("BEGIN"),
            query("EXECUTE a"),
            query("SELECT 'failed'"),
            query("ROLLBACK"),
            query("BEGIN; DEALLOCATE a; COMMIT"),
            prepared("a", "SELECT 'second'"),
            ran("a"),
        ],
        // A transaction that has failed, and ends in the same batch.
        vec![
            prepared("a", "SELECT 'first'"),
            query("BEGIN; SELECT 1/0"),
            query("EXECUTE a"),
            query("DEALLOCATE a"),
            [once("ROLLBACK"), once("EXECUTE a"), sync()].concat(),
            query("BEGIN; SELECT 1/0"),
            query("ROLLBACK; DEALLOCATE a"),
            ran("a"),
        ],
        // SQL prepares, the protocol uses, takes and closes.
        vec![
            query("PREPARE a AS SELECT 'sql'"),
            prepared("a", "SELECT 'protocol'"),
            ran("a"),
            [describe(b'S', "a"), sync()].concat(),
            [
                close(b'S', "a"),
                parse("a", "SELECT 'protocol'"),
                bind("", "a", &[]),
                execute("", 0),
                sync(),
            ]
            .concat(),
            query("EXECUTE a"),
            query("PREPARE a AS SELECT 'sql'"),
        ],
    ]);
    conversations
}

#[tokio::test(flavor = "multi_thread")]
async fn what_drivers_do_with_prepared_statements_in_sql_is_answered_as_direct() {
    let world = world().await;
    for (pooling, size) in [("transaction", 1), ("transaction", 3), ("session", 4)] {
        let setup = Setup {
            pooling,
            pool_size: size,
            ..Setup::default()
        };
        let proxy = setup.start().await;
        let a = proxy.home(&tenant("t00"));
        for writes in conversations() {
            let mut plain = direct(world, &a).await;
            let mut wire = proxy.raw(&a).await;
            let mut said = String::new();
            for bytes in writes {
                said += &format!("  {:.300}\n", bytes.escape_ascii().to_string());
                let step = Step {
                    said: String::new(),
                    bytes,
                    ready: 1,
                };
                let expected = answer(&mut plain, &step).await;
                let seen = answer(&mut wire, &step).await;
                assert_eq!(seen, expected, "{pooling}, {size} connections:\n{said}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_executed_statement_sets_follows_its_client() {
    const SHOW: &str = "SELECT current_setting('my.set', true)";
    let setup = Setup {
        pool_size: 3,
        ..Setup::default()
    };
    let proxy = setup.start().await;
    let (a, b) = (tenant("t00"), tenant("t01"));
    let prepared = "PREPARE q(text) AS SELECT set_config('my.set', $1, false)";
    let by_name = [
        parse("q", "SELECT set_config('my.set', 'v', false)"),
        sync(),
    ]
    .concat();
    let bound = [bind("", "q", &[Some("v")]), execute("", 0), sync()].concat();
    let execute_it = query("EXECUTE q('v')");
    let in_batch = [
        parse("", "EXECUTE q('v')"),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ];
    for (first, then) in [
        (query(prepared), execute_it.clone()),
        (query(prepared), in_batch.concat()),
        (query(prepared), bound),
        (
            query(prepared),
            query("BEGIN; EXECUTE q('v'); DEALLOCATE q; COMMIT"),
        ),
        (query(prepared), query("EXPLAIN ANALYZE EXECUTE q('v')")),
        (by_name, query("EXECUTE q")),
    ] {
        let mut wire = proxy.raw(&a).await;
        for bytes in [first, then, query("DEALLOCATE ALL")] {
            wire.send(&bytes).await;
            wire.until_ready().await;
        }
        // Other connections, and those that had it with another tenant.
        let mut others = Vec::new();
        for _ in 0..2 {
            let mut other = proxy.raw(&b).await;
            other.query("BEGIN").await;
            assert_ne!(other.column(SHOW).await, ["v"]);
            others.push(other);
            assert_eq!(wire.column(SHOW).await, ["v"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_does_not_reach_a_statement_of_another_tenant_by_the_name_the_proxy_gave_it() {
    let setup = Setup {
        pool_size: 1,
        ..Setup::default()
    };
    let proxy = setup.start().await;
    let mut b = proxy.raw(&tenant("t01")).await;
    for n in 0..5 {
        let text = format!("SELECT 'of another tenant', {n}");
        b.send(&[parse(&format!("s{n}"), &text), sync()].concat())
            .await;
        b.until_ready().await;
    }
    let mut a = proxy.raw(&tenant("t00")).await;
    for n in 0..30 {
        for name in [
            format!("pgtenant_{n}"),
            format!("\"pgtenant_{n}\""),
            format!("U&\"pgtenant\\005f{n}\""),
        ] {
            for sql in [
                format!("EXECUTE {name}"),
                format!("/* x */ SELECT 1; EXECUTE {name}"),
                format!("EXPLAIN EXECUTE {name}"),
                format!("DEALLOCATE {name}"),
                format!("DO $$ BEGIN EXECUTE 'EXECUTE {name}'; END $$"),
            ] {
                let batch = [parse("", &sql), bind("", "", &[]), execute("", 0), sync()];
                for bytes in [query(&sql), batch.concat()] {
                    a.send(&bytes).await;
                    let frames = a.until_ready().await;
                    let error = frames.iter().find(|frame| frame.tag == b'E');
                    assert_eq!(error.expect(&sql).sqlstate(), "26000", "{sql}");
                    assert_eq!(rows(&frames), [""; 0], "{sql}");
                }
            }
        }
    }
    a.query("PREPARE pgtenant_1000 AS SELECT 1").await;
    assert_eq!(a.column("SELECT 'alive'").await, ["alive"]);
}

/// PostgreSQL follows a circle of EXPLAIN EXECUTE until its process, and with it the server, dies.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_executes_itself_ends_nothing() {
    let proxy = Setup::default().start().await;
    let mut wire = proxy.raw(&tenant("t00")).await;
    let taken_again = [parse("a", "EXPLAIN EXECUTE a"), sync()].concat();
    for first in [
        vec![taken_again.clone()],
        vec![
            [parse("a", "SELECT 1"), sync()].concat(),
            query("BEGIN"),
            query("DO $$ BEGIN DEALLOCATE a; END $$"),
            taken_again,
        ],
    ] {
        for bytes in first {
            wire.send(&bytes).await;
            wire.until_ready().await;
        }
        let run = [bind("", "a", &[]), execute("", 0), sync()].concat();
        for bytes in [
            query("EXPLAIN EXECUTE a"),
            run,
            query("ROLLBACK; DEALLOCATE ALL"),
        ] {
            wire.send(&bytes).await;
            wire.until_ready().await;
        }
        assert_eq!(wire.column("SELECT 'alive'").await, ["alive"]);
    }
}
