//! What a client's session holds beside its transaction, in transaction pooling: carried to every
//! server connection, or a reason to keep one, or refused. The table in docs/session-state.md has a
//! row for each of these.

use std::sync::Arc;

use pgtenant::backend::residue::Pins;
use pgtenant::client::{Activity, ClientHandle};

use crate::harness::{POOLINGS, Running, Setup, Tenant, direct, eventually, tenant, world};
use crate::wire::{
    Frame, Wire, bind, column, describe, errors, execute, function_call, parse, query, rows, sync,
};

async fn proxy(pooling: &'static str, pool_size: usize) -> Running {
    Setup {
        pooling,
        pool_size,
        ..Setup::default()
    }
    .start()
    .await
}

/// The client that logged in last.
fn newest(proxy: &Running) -> Arc<ClientHandle> {
    proxy.proxy.app().clients().pop().expect("a client")
}

/// Waits until every client is as far as its `pins` say: the proxy looks at what a client holds
/// after it was answered.
async fn is_held_by(handle: &ClientHandle, pins: Pins) -> bool {
    let idle = match pins.is_empty() {
        true => Activity::Idle,
        false => Activity::Active,
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while handle.pins() != pins || handle.activity() != idle {
        if std::time::Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    true
}

/// Waits until nobody uses a server connection.
async fn all_idle(proxy: &Running) {
    eventually("all clients are idle", async || {
        let clients = proxy.proxy.app().clients();
        clients
            .iter()
            .all(|client| client.activity() == Activity::Idle)
    })
    .await;
}

/// Others of the same tenant, who see to it that a client gets another server connection each time,
/// unless it keeps its own.
pub struct Others {
    holding: Wire,
    free: Wire,
}

impl Others {
    pub async fn of(proxy: &Running, tenant: &Tenant) -> Self {
        let mut others = Self {
            holding: proxy.raw(tenant).await,
            free: proxy.raw(tenant).await,
        };
        others.holding.query("BEGIN").await;
        others
    }

    /// Takes the connection that was given back last.
    pub async fn move_on(&mut self) {
        column(&self.free.query("BEGIN").await);
        column(&self.holding.query("COMMIT").await);
        std::mem::swap(&mut self.free, &mut self.holding);
    }

    /// What the next client would see on any free connection.
    async fn ask(&mut self, sql: &str) -> Vec<Vec<String>> {
        let first = seen(&self.free.query(sql).await);
        self.move_on().await;
        vec![first, seen(&self.free.query(sql).await)]
    }
}

/// Rows, and errors by their SQLSTATE.
fn seen(frames: &[Frame]) -> Vec<String> {
    let mut seen = errors(frames);
    for frame in frames.iter().filter(|frame| frame.tag == b'D') {
        let values = frame.values().into_iter();
        seen.push(
            values
                .map(|v| v.unwrap_or("NULL".into()))
                .collect::<Vec<_>>()
                .join(","),
        );
    }
    seen
}

/// Sends a statement as a Query, or by Parse, Bind, Execute.
async fn run(wire: &mut Wire, sql: &str, extended: bool) -> Vec<Frame> {
    match extended {
        false => wire.query(sql).await,
        true => {
            let batch = [parse("", sql), bind("", "", &[]), execute("", 0), sync()].concat();
            wire.send(&batch).await;
            wire.until_ready().await
        }
    }
}

struct Row {
    what: &'static str,
    /// What ties the client to its connection afterwards; none if it is carried.
    pins: Pins,
    statements: &'static [&'static str],
    /// Tells whether the state is there.
    ask: &'static str,
    /// After these nothing is left.
    undo: &'static [&'static str],
}

const NOTHING: Pins = Pins::empty();

const ROWS: &[Row] = &[
    Row {
        what: "SET of a reported parameter",
        pins: NOTHING,
        statements: &["SET DateStyle = 'SQL, DMY'"],
        ask: "SELECT current_setting('DateStyle'), date '2020-02-01'",
        undo: &["RESET DateStyle"],
    },
    Row {
        what: "SET of an unreported parameter",
        pins: NOTHING,
        statements: &["SET work_mem = '7MB'"],
        ask: "SHOW work_mem",
        undo: &["RESET work_mem"],
    },
    Row {
        what: "SET of search_path",
        pins: NOTHING,
        statements: &["SET search_path TO a, \"B c\", public"],
        ask: "SELECT current_setting('search_path'), current_schemas(false)",
        undo: &["SET search_path TO DEFAULT"],
    },
    Row {
        what: "SET of a parameter of the application's own",
        pins: NOTHING,
        statements: &["SET my_app.user = 'it''s me'", "SET my_app.other TO 1"],
        ask: "SELECT nullif(current_setting('my_app.user', true), ''), nullif(current_setting('my_app.other', true), '')",
        undo: &["SET my_app.user = ''", "SET my_app.other = ''"],
    },
    Row {
        what: "SET in a transaction",
        pins: NOTHING,
        statements: &[
            "BEGIN",
            "SET work_mem = '8MB'",
            "SAVEPOINT a",
            "SET lock_timeout = 5",
            "ROLLBACK TO a",
            "COMMIT",
        ],
        ask: "SELECT current_setting('work_mem'), current_setting('lock_timeout')",
        undo: &["RESET ALL"],
    },
    Row {
        what: "SET in a transaction that is rolled back",
        pins: NOTHING,
        statements: &[
            "SET work_mem = '9MB'",
            "BEGIN",
            "SET work_mem = '10MB'",
            "SET TimeZone = 'Asia/Tokyo'",
            "ROLLBACK",
        ],
        ask: "SELECT current_setting('work_mem'), current_setting('TimeZone')",
        undo: &["RESET work_mem"],
    },
    Row {
        what: "RESET in a transaction that is rolled back",
        pins: NOTHING,
        statements: &["SET work_mem = '9MB'", "BEGIN", "RESET ALL", "ROLLBACK"],
        ask: "SHOW work_mem",
        undo: &["RESET work_mem"],
    },
    Row {
        what: "SET LOCAL",
        pins: NOTHING,
        statements: &["BEGIN", "SET LOCAL work_mem = '9MB'", "COMMIT"],
        ask: "SHOW work_mem",
        undo: &[],
    },
    Row {
        what: "SET SESSION CHARACTERISTICS",
        pins: NOTHING,
        statements: &[
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY",
        ],
        ask: "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')",
        undo: &[
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE",
        ],
    },
    Row {
        what: "set_config in a query",
        pins: NOTHING,
        statements: &[
            "SELECT set_config('work_mem', '11MB', false), set_config('my_app.x', 'y', false)",
        ],
        ask: "SELECT current_setting('work_mem'), nullif(current_setting('my_app.x', true), '')",
        undo: &["SELECT set_config('my_app.x', '', false), set_config('work_mem', '4MB', false)"],
    },
    Row {
        what: "set_config for a transaction",
        pins: NOTHING,
        statements: &["SELECT set_config('work_mem', '11MB', true)"],
        ask: "SHOW work_mem",
        undo: &[],
    },
    Row {
        what: "set_config of a computed name",
        pins: Pins::SETTINGS,
        statements: &["SELECT set_config('work' || '_mem', '12MB', false)"],
        ask: "SHOW work_mem",
        undo: &["DISCARD ALL"],
    },
    Row {
        what: "parameters set in a DO block",
        pins: NOTHING,
        statements: &[
            "DO $$ BEGIN PERFORM set_config('my_app.z', 'y', false); EXECUTE 'SET work_mem = ''13MB'''; END $$",
        ],
        ask: "SELECT current_setting('work_mem'), nullif(current_setting('my_app.z', true), '')",
        undo: &["RESET work_mem", "SET my_app.z = ''"],
    },
    Row {
        what: "temporary table",
        pins: Pins::TEMPORARY,
        statements: &["CREATE TEMP TABLE t (a) AS SELECT 5"],
        ask: "SELECT a FROM t",
        undo: &["DROP TABLE t"],
    },
    Row {
        what: "temporary table that a DO block makes",
        pins: Pins::TEMPORARY,
        statements: &["DO $$ BEGIN EXECUTE 'CREATE TEMP ' || 'TABLE t (a) AS SELECT 5'; END $$"],
        ask: "SELECT a FROM t",
        undo: &["DISCARD TEMP"],
    },
    Row {
        what: "temporary view and function",
        pins: Pins::TEMPORARY,
        statements: &[
            "CREATE TEMP VIEW v AS SELECT 6 AS a",
            "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT a FROM v'",
            "DROP VIEW v",
        ],
        ask: "SELECT proname FROM pg_proc WHERE pronamespace = pg_my_temp_schema()",
        undo: &["DROP FUNCTION pg_temp.f()"],
    },
    Row {
        what: "temporary table that goes with its transaction",
        pins: NOTHING,
        statements: &[
            "BEGIN",
            "CREATE TEMP TABLE t (a int) ON COMMIT DROP",
            "COMMIT",
        ],
        ask: "SELECT a FROM t",
        undo: &[],
    },
    Row {
        what: "SELECT INTO a temporary table",
        pins: Pins::TEMPORARY,
        statements: &["SELECT 7 AS a INTO TEMPORARY t"],
        ask: "TABLE t",
        undo: &["DROP TABLE t"],
    },
    Row {
        what: "cursor WITH HOLD",
        pins: Pins::HOLD,
        statements: &["DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT 8"],
        ask: "FETCH ABSOLUTE 1 FROM c",
        undo: &["CLOSE c"],
    },
    Row {
        what: "cursor",
        pins: NOTHING,
        statements: &["BEGIN", "DECLARE c CURSOR FOR SELECT 8", "COMMIT"],
        ask: "FETCH ABSOLUTE 1 FROM c",
        undo: &[],
    },
    Row {
        what: "session-level advisory lock",
        pins: Pins::ADVISORY,
        statements: &["SELECT pg_advisory_lock_shared(4711)"],
        ask: "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        undo: &["SELECT pg_advisory_unlock_shared(4711)"],
    },
    Row {
        what: "transaction-level advisory lock",
        pins: NOTHING,
        statements: &[
            "BEGIN",
            "SELECT pg_advisory_xact_lock_shared(4712)",
            "COMMIT",
        ],
        ask: "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        undo: &[],
    },
    Row {
        what: "LISTEN",
        pins: Pins::LISTEN,
        statements: &["LISTEN a_channel"],
        ask: "SELECT pg_listening_channels()",
        undo: &["UNLISTEN *"],
    },
    Row {
        what: "LISTEN in a transaction that is rolled back",
        pins: NOTHING,
        statements: &["BEGIN", "LISTEN a_channel", "ROLLBACK"],
        ask: "SELECT pg_listening_channels()",
        undo: &[],
    },
    Row {
        what: "PREPARE in SQL",
        pins: Pins::PREPARED,
        statements: &["PREPARE p (int) AS SELECT $1 + 1"],
        ask: "EXECUTE p (1)",
        undo: &["DEALLOCATE p"],
    },
    Row {
        what: "PREPARE in SQL, all deallocated",
        pins: Pins::PREPARED,
        statements: &["PREPARE p AS SELECT 1", "PREPARE q AS SELECT 2"],
        ask: "EXECUTE q",
        undo: &["DEALLOCATE ALL"],
    },
    Row {
        what: "large object",
        pins: NOTHING,
        statements: &[
            "BEGIN",
            "SELECT lo_open(lo_create(0), 131072) >= 0",
            "ROLLBACK",
        ],
        ask: "SELECT loread(0, 1)",
        undo: &[],
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn state_of_a_session_is_its_clients_and_nobody_elses() {
    let world = world().await;
    let a = tenant("d0");
    let proxy = proxy("transaction", 3).await;
    let mut others = Others::of(&proxy, &a).await;
    for row in ROWS {
        for extended in [false, true] {
            let label = format!(
                "{}, {}",
                row.what,
                if extended { "extended" } else { "simple" }
            );
            let mut mine = proxy.raw(&a).await;
            let handle = newest(&proxy);
            let mut alone = direct(world, &a).await;
            let nothing_there = seen(&alone.query(row.ask).await);
            for statement in row.statements {
                let through = seen(&run(&mut mine, statement, extended).await);
                assert_eq!(
                    through,
                    seen(&run(&mut alone, statement, extended).await),
                    "{label}: {statement}"
                );
            }
            let expected = seen(&alone.query(row.ask).await);
            for _ in 0..3 {
                others.move_on().await;
                assert_eq!(
                    seen(&run(&mut mine, row.ask, extended).await),
                    expected,
                    "{label}"
                );
            }
            assert!(is_held_by(&handle, row.pins).await, "{label}");
            let met = others.ask(row.ask).await;
            assert!(
                met.iter().all(|met| *met == nothing_there),
                "{label}: another sees {met:?}"
            );
            for statement in row.undo {
                run(&mut mine, statement, extended).await;
            }
            assert!(is_held_by(&handle, NOTHING).await, "{label}: still kept");
            assert_eq!(
                seen(&mine.query(row.ask).await),
                nothing_there,
                "{label}: not undone"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_follows_its_client_and_stays_with_it() {
    let world = world().await;
    let a = tenant("d1");
    let sql = "CREATE ROLE d1_other; GRANT d1_other TO db_d1";
    world.home(&a).run(&a.database, sql).await.expect("a role");
    let proxy = proxy("transaction", 3).await;
    let mut others = Others::of(&proxy, &a).await;
    let mut mine = proxy.raw(&a).await;
    mine.query("SET work_mem = '5MB'; SET ROLE d1_other").await;
    for _ in 0..3 {
        others.move_on().await;
        assert_eq!(
            mine.column("SELECT current_user || current_setting('work_mem')")
                .await,
            ["d1_other5MB"]
        );
        let met = others.ask("SELECT current_user").await;
        assert_eq!(met, [["db_d1"], ["db_d1"]]);
    }
    mine.query("RESET ROLE").await;
    others.move_on().await;
    assert_eq!(mine.column("SELECT current_user").await, ["db_d1"]);
}

/// What PostgreSQL refused, or took back, is not carried: neither this client nor another hears of
/// it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_set_that_failed_or_was_rolled_back_has_not_happened() {
    let a = tenant("d3");
    let proxy = proxy("transaction", 3).await;
    let mut others = Others::of(&proxy, &a).await;
    let mut mine = proxy.raw(&a).await;
    let handle = newest(&proxy);
    mine.query("SET work_mem = '5MB'").await;
    for failing in [
        "SET session_replication_role = replica",
        "SET deadlock_timeout = '2s'",
        "SET autovacuum = off",
        "SELECT set_config('log_lock_waits', 'on', false)",
        "BEGIN; SET work_mem = '6MB'; SET lc_messages = 'C'",
        "SET work_mem = 'nonsense'",
        "BEGIN; SET work_mem = '7MB'; ROLLBACK; SELECT 1 / 0",
        "BEGIN; SET deadlock_timeout = '2s'",
        // What the role may not set it may not reset either: nobody must be made to.
        "RESET log_statement",
        "BEGIN; RESET session_replication_role",
        "SELECT set_config('log_statement', 'all', false); SET log_statement TO DEFAULT",
        "RESET work_mem; RESET log_lock_waits",
        "SET no_such_parameter TO DEFAULT",
        // Nor may it read these, which must not leave all else unknown.
        "SET session_preload_libraries = 'x'",
        "RESET dynamic_library_path",
        "BEGIN; SET work_mem = '8MB'; SET dynamic_library_path = 'x'",
    ] {
        let frames = mine.query(failing).await;
        assert!(frames.iter().any(|frame| frame.tag == b'E'), "{failing}");
        mine.query("ROLLBACK").await;
        for _ in 0..2 {
            others.move_on().await;
            let met = others.ask("SELECT current_setting('work_mem')").await;
            assert_eq!(met, [["4MB"], ["4MB"]], "{failing}");
            let seen = mine
                .column("SELECT current_setting('work_mem') || current_setting('deadlock_timeout')")
                .await;
            assert_eq!(seen, ["5MB1s"], "{failing}");
        }
        assert!(is_held_by(&handle, NOTHING).await, "{failing}");
    }
    proxy.raw(&a).await;
}

/// Where one part of an answer may not be read, the rest is told all the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_beside_what_may_not_be_read_is_carried() {
    let a = tenant("d3");
    let proxy = proxy("transaction", 3).await;
    let mut others = Others::of(&proxy, &a).await;
    let mut mine = proxy.raw(&a).await;
    let handle = newest(&proxy);
    // A Query a batch each, and one clean point behind all.
    let texts = [
        "BEGIN",
        "SET my_app.x = 'y'",
        "SET work_mem = '5MB'",
        "SAVEPOINT a",
        "SET session_preload_libraries = 'x'",
        "ROLLBACK TO a",
        "COMMIT",
    ];
    for text in texts {
        mine.query(text).await;
    }
    for _ in 0..3 {
        others.move_on().await;
        let ask = "SELECT current_setting('my_app.x'), current_setting('work_mem')";
        assert_eq!(seen(&mine.query(ask).await), ["y,5MB"]);
    }
    assert!(is_held_by(&handle, NOTHING).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn reset_returns_to_what_the_client_began_with() {
    for pooling in POOLINGS {
        let a = tenant("d2");
        let proxy = proxy(pooling, 2).await;
        let mut mine = Wire::tcp(proxy.address).await;
        let (user, password) = (a.user(), a.password());
        mine.log_in(
            &[
                ("user", &user),
                ("database", &a.database),
                ("TimeZone", "Asia/Tokyo"),
                ("options", "-c work_mem=5MB -c my_app.x=y"),
            ],
            &password,
        )
        .await
        .expect("logs in");
        let all = "SELECT current_setting('TimeZone'), current_setting('work_mem'), current_setting('my_app.x')";
        let began = ["Asia/Tokyo,5MB,y"];
        assert_eq!(seen(&mine.query(all).await), began, "{pooling}");
        for reset in [
            "RESET ALL",
            "DISCARD ALL",
            "RESET TimeZone; RESET work_mem; SET my_app.x TO DEFAULT",
        ] {
            mine.query("SET TimeZone = 'UTC'").await;
            mine.query("SET work_mem = '6MB'").await;
            mine.query("SET my_app.x = 'z'").await;
            assert_eq!(seen(&mine.query(all).await), ["UTC,6MB,z"], "{pooling}");
            mine.query(reset).await;
            assert_eq!(seen(&mine.query(all).await), began, "{pooling}: {reset}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_reach_a_client_that_waits_and_nobody_else() {
    let proxy = proxy("transaction", 3).await;
    let a = tenant("d3");
    let mut listening = proxy.raw(&a).await;
    let mut other = proxy.raw(&a).await;
    listening.query("LISTEN d3_channel").await;
    for n in 0..3 {
        let frames = other.query(&format!("NOTIFY d3_channel, '{n}'")).await;
        assert!(frames.iter().all(|frame| frame.tag != b'A'), "{frames:?}");
        let told = listening.expect().await;
        assert_eq!(told.tag, b'A', "{told}");
        assert!(told.body[4..].starts_with(format!("d3_channel\0{n}\0").as_bytes()));
    }
    listening.query("UNLISTEN d3_channel").await;
    assert!(is_held_by(&newest(&proxy), NOTHING).await);
}

/// Drivers compare the sender with the process id of BackendKeyData, to tell which notifications
/// are their own.
#[tokio::test(flavor = "multi_thread")]
async fn notifications_of_a_client_to_itself_come_from_its_own_process() {
    for pooling in POOLINGS {
        let proxy = proxy(pooling, 3).await;
        let a = tenant("d3");
        let mut mine = proxy.raw(&a).await;
        let mut other = proxy.raw(&a).await;
        mine.query("LISTEN d3_own").await;
        let sender = |frame: &Frame| i32::from_be_bytes(frame.body[..4].try_into().expect("a pid"));
        let frames = mine.query("NOTIFY d3_own, 'mine'").await;
        let told = frames.iter().find(|frame| frame.tag == b'A').expect("told");
        assert_eq!(sender(told), mine.key.0, "{pooling}");
        assert!(told.body[4..].starts_with(b"d3_own\0mine\0"), "{told}");
        other.query("NOTIFY d3_own, 'yours'").await;
        let told = mine.expect().await;
        assert_eq!(told.tag, b'A', "{told}");
        assert_ne!(sender(&told), mine.key.0, "{pooling}");
    }
}

/// Npgsql's pool resets so when it takes a connection back within a distributed transaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_reset_in_a_transaction_returns_to_the_tenant_in_session_pooling() {
    let proxy = proxy("session", 3).await;
    for name in ["t00", "c0", "s0"] {
        let tenant = proxy.home(&tenant(name));
        let mut wire = proxy.raw(&tenant).await;
        for reset in [
            "RESET ALL",
            "RESET app.tenant_id",
            "SET app.tenant_id TO DEFAULT",
            "SET SESSION AUTHORIZATION DEFAULT; RESET ALL; DISCARD TEMP",
        ] {
            wire.query("BEGIN").await;
            let another = "SELECT set_config('app.' || 'tenant_id', 'another', false)";
            assert_eq!(wire.column(another).await, ["another"]);
            wire.query(reset).await;
            let bodies = wire
                .column("SELECT body FROM items WHERE id < 900 ORDER BY id")
                .await;
            assert_eq!(bodies, tenant.bodies(), "{name} after {reset}");
            wire.query("COMMIT").await;
            assert_eq!(wire.column("SHOW app.tenant_id").await, [name], "{reset}");
        }
        wire.query("DISCARD ALL").await;
        assert_eq!(wire.column("SHOW app.tenant_id").await, [name]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_functions_and_triggers_do_is_known_from_their_sources() {
    let world = world().await;
    let a = tenant("d4");
    let sql = "
        CREATE FUNCTION d4_inert(a int) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN a + 1; END';
        CREATE FUNCTION d4_sets(a text) RETURNS void LANGUAGE plpgsql AS
            $$ BEGIN PERFORM set_config('my_app.d4', a, false); END $$;
        CREATE FUNCTION d4_outer(a text) RETURNS void LANGUAGE sql AS 'SELECT d4_sets(a)';
        CREATE FUNCTION d4_temp() RETURNS void LANGUAGE plpgsql AS
            $$ BEGIN EXECUTE 'CREATE TEMP TABLE d4_t (a int)'; END $$;
        CREATE PROCEDURE d4_locks() LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_lock(4713); END $$;
        CREATE TABLE d4_written (a int);
        CREATE FUNCTION d4_trigger() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM set_config('my_app.written', NEW.a::text, false); RETURN NEW; END $$;
        CREATE TRIGGER t BEFORE INSERT ON d4_written FOR EACH ROW EXECUTE FUNCTION d4_trigger();
        GRANT INSERT ON d4_written TO db_d4";
    world
        .home(&a)
        .run(&a.database, sql)
        .await
        .expect("functions");
    let proxy = proxy("transaction", 3).await;
    let mut others = Others::of(&proxy, &a).await;
    let mut mine = proxy.raw(&a).await;
    let handle = newest(&proxy);
    for (statement, ask, expected, pins, undo) in [
        ("SELECT d4_inert(1)", "SELECT 1", "1", NOTHING, "SELECT 1"),
        (
            "SELECT d4_sets('x')",
            "SELECT current_setting('my_app.d4')",
            "x",
            NOTHING,
            "SELECT 1",
        ),
        (
            "SELECT * FROM d4_outer('y')",
            "SELECT current_setting('my_app.d4')",
            "y",
            NOTHING,
            "SELECT 1",
        ),
        (
            "INSERT INTO d4_written VALUES (5)",
            "SELECT current_setting('my_app.written')",
            "5",
            NOTHING,
            "SELECT 1",
        ),
        (
            "SELECT d4_temp()",
            "SELECT count(*) FROM d4_t",
            "0",
            Pins::TEMPORARY,
            "DROP TABLE d4_t",
        ),
        (
            "CALL d4_locks()",
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
            "1",
            Pins::ADVISORY,
            "SELECT pg_advisory_unlock_all()",
        ),
    ] {
        column(&mine.query(statement).await);
        for _ in 0..3 {
            others.move_on().await;
            assert_eq!(mine.column(ask).await, [expected], "{statement}");
        }
        assert!(is_held_by(&handle, pins).await, "{statement}");
        mine.query(undo).await;
        assert!(is_held_by(&handle, NOTHING).await, "{statement}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sequence_values_are_the_clients_own_or_refused() {
    let world = world().await;
    let a = tenant("d5");
    let sql = "CREATE SEQUENCE d5_s; GRANT USAGE ON SEQUENCE d5_s TO db_d5";
    world
        .home(&a)
        .run(&a.database, sql)
        .await
        .expect("a sequence");
    let proxy = proxy("transaction", 2).await;
    let mut others = Others::of(&proxy, &a).await;
    let mut mine = proxy.raw(&a).await;
    let handle = newest(&proxy);
    let value = mine.column("SELECT nextval('d5_s')").await;
    assert!(is_held_by(&handle, NOTHING).await);
    assert_eq!(
        mine.column("SELECT lastval()").await,
        value,
        "on the same connection"
    );
    // It has asked once: from now on it keeps its connection after it got a value.
    let value = mine.column("SELECT nextval('d5_s')").await;
    assert!(is_held_by(&handle, Pins::SEQUENCE).await);
    others.holding.query("COMMIT").await;
    for other in [&mut others.free, &mut others.holding] {
        other.query("SELECT nextval('d5_s')").await;
    }
    assert_eq!(mine.column("SELECT currval('d5_s')").await, value);
    mine.query("SELECT 1").await;
    assert!(is_held_by(&handle, NOTHING).await);
    others.free.query("SELECT nextval('d5_s')").await;
    all_idle(&proxy).await;
    for batch in [
        query("SELECT lastval()"),
        [
            parse("", "SELECT currval('d5_s')"),
            describe(b'S', ""),
            bind("", "", &[]),
            execute("", 0),
            sync(),
        ]
        .concat(),
        [parse("named", "SELECT lastval()"), sync()].concat(),
    ] {
        others.free.query("SELECT nextval('d5_s')").await;
        all_idle(&proxy).await;
        mine.send(&batch).await;
        assert_eq!(errors(&mine.until_ready().await), ["0A000"]);
        assert_eq!(mine.column("SELECT 'goes on'").await, ["goes on"]);
    }
    // In one transaction it always works, and on a connection where nobody had one, as direct.
    let value = mine.column("BEGIN; SELECT nextval('d5_s')").await;
    assert_eq!(mine.column("SELECT lastval()").await, value);
    mine.query("COMMIT").await;
    drop((mine, others));
    drop(proxy);
    let proxy = self::proxy("transaction", 1).await;
    let mut fresh = proxy.raw(&a).await;
    assert_eq!(errors(&fresh.query("SELECT lastval()").await), ["55000"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_of_the_protocol_can_be_deallocated_in_sql() {
    for pooling in POOLINGS {
        let proxy = proxy(pooling, 2).await;
        let mut mine = proxy.raw(&tenant("t30")).await;
        for extended in [false, true] {
            let batch = [
                parse("Named", "SELECT 'it'"),
                bind("", "Named", &[]),
                execute("", 0),
                sync(),
            ]
            .concat();
            mine.send(&batch).await;
            assert_eq!(column(&mine.until_ready().await), ["it"]);
            let frames = run(&mut mine, "DEALLOCATE PREPARE \"Named\"", extended).await;
            let tags: Vec<_> = frames.iter().map(|frame| frame.tag as char).collect();
            assert_eq!(
                tags,
                if extended {
                    vec!['1', '2', 'C', 'Z']
                } else {
                    vec!['C', 'Z']
                },
                "{pooling}"
            );
            assert!(frames.iter().any(|frame| frame.body == b"DEALLOCATE\0"));
            mine.send(&[bind("", "Named", &[]), sync()].concat()).await;
            assert_eq!(errors(&mine.until_ready().await), ["26000"], "{pooling}");
            // The name is free again.
            mine.send(&[parse("Named", "SELECT 'new'"), sync()].concat())
                .await;
            assert!(errors(&mine.until_ready().await).is_empty());
            // In a transaction that has failed it is refused.
            mine.query("BEGIN; SELECT 1/0").await;
            assert_eq!(
                errors(&run(&mut mine, "DEALLOCATE \"Named\"", extended).await),
                ["25P02"],
                "{pooling}"
            );
            mine.query("ROLLBACK").await;
            mine.query("DEALLOCATE ALL").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_the_schema_left_behind_is_made_anew() {
    let world = world().await;
    let a = tenant("acme");
    let cluster = world.home(&a);
    let table = "CREATE TABLE acme_changes (a int); GRANT SELECT ON acme_changes TO acme_app; INSERT INTO acme_changes VALUES (1)";
    cluster.run(&a.database, table).await.expect("a table");
    let proxy = proxy("transaction", 2).await;
    let mut old = proxy.raw(&a).await;
    let text = "SELECT * FROM acme_changes";
    let run = [bind("", "s", &[]), execute("", 0), sync()].concat();
    old.send(&[parse("s", text), run.clone()].concat()).await;
    assert_eq!(column(&old.until_ready().await), ["1"]);
    cluster
        .run(&a.database, "ALTER TABLE acme_changes ADD b int DEFAULT 2")
        .await
        .expect("a column");
    // As direct, for who prepared it before.
    old.send(&run).await;
    assert_eq!(errors(&old.until_ready().await), ["0A000"]);
    // Who prepares it after that has no part in it.
    let mut new = proxy.raw(&a).await;
    new.send(&[parse("s", text), run.clone()].concat()).await;
    assert_eq!(seen(&new.until_ready().await), ["1,2"]);
    old.send(&run).await;
    assert_eq!(seen(&old.until_ready().await), ["1,2"], "healed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_is_not_shared_with_whom_it_means_something_else() {
    let proxy = proxy("transaction", 1).await;
    let a = tenant("d0");
    let (mut first, mut second) = (proxy.raw(&a).await, proxy.raw(&a).await);
    first.query("SET DateStyle = 'ISO, DMY'").await;
    second.query("SET DateStyle = 'ISO, MDY'").await;
    let batch = [
        parse("s", "SELECT date '01/02/2020'"),
        bind("", "s", &[]),
        execute("", 0),
        sync(),
    ]
    .concat();
    for _ in 0..2 {
        first.send(&batch).await;
        second.send(&batch).await;
        assert_eq!(rows(&first.until_ready().await), ["2020-02-01"]);
        assert_eq!(rows(&second.until_ready().await), ["2020-01-02"]);
        for wire in [&mut first, &mut second] {
            wire.query("DEALLOCATE s").await;
        }
    }
}

/// Values are carried as characters, whatever the encodings in which they are told and set.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_ascii_is_carried_in_any_client_encoding() {
    let a = tenant("d5");
    let proxy = proxy("transaction", 3).await;
    let mut others = Others::of(&proxy, &a).await;
    let ask = "SELECT ascii(current_setting('my_app.x')), length(current_setting('my_app.x')), current_setting('client_encoding')";
    for (texts, expected) in [
        // In LATIN1, these bytes are two characters.
        (
            &["SET client_encoding = 'LATIN1'", "SET my_app.x = 'é'"][..],
            "195,2,LATIN1",
        ),
        (
            &["SET my_app.x = 'é'", "SET client_encoding = 'LATIN1'"],
            "233,1,LATIN1",
        ),
        (
            &["SET my_app.x = '€'; SET client_encoding = 'LATIN1'"],
            "8364,1,LATIN1",
        ),
        (&["SET my_app.x = 'é'"], "233,1,UTF8"),
        (
            &["DO $$ BEGIN PERFORM set_config('my_app.x', chr(8364), false); END $$"],
            "8364,1,UTF8",
        ),
    ] {
        let mut mine = proxy.raw(&a).await;
        let handle = newest(&proxy);
        for text in texts {
            assert!(errors(&mine.query(text).await).is_empty(), "{text}");
        }
        for _ in 0..3 {
            others.move_on().await;
            assert_eq!(seen(&mine.query(ask).await), [expected], "{texts:?}");
        }
        assert!(is_held_by(&handle, NOTHING).await, "{texts:?}");
    }
}

/// What functions and triggers set counts as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_is_not_shared_that_was_prepared_behind_a_function_that_sets() {
    let world = world().await;
    let a = tenant("d2");
    let sql = "
        CREATE FUNCTION d2_sets() RETURNS void LANGUAGE plpgsql AS
            $$ BEGIN PERFORM set_config('array_nulls', 'off', true); END $$;
        CREATE FUNCTION d2_outer() RETURNS void LANGUAGE sql AS 'SELECT d2_sets()';
        CREATE FUNCTION d2_trigger() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM d2_sets(); RETURN NEW; END $$;
        CREATE TABLE d2_written (a int);
        CREATE TRIGGER t BEFORE INSERT ON d2_written FOR EACH ROW EXECUTE FUNCTION d2_trigger();
        GRANT INSERT ON d2_written TO db_d2";
    let cluster = world.home(&a);
    cluster.run(&a.database, sql).await.expect("functions");
    let proxy = proxy("transaction", 1).await;
    let (mut first, mut second) = (proxy.raw(&a).await, proxy.raw(&a).await);
    let text = "SELECT ('{NULL}'::text[])[1] IS NULL";
    let prepared = [parse("s", text), bind("", "s", &[]), execute("", 0), sync()].concat();
    // Before and after the sources are known.
    for call in [
        "SELECT d2_sets()",
        "SELECT d2_sets()",
        "SELECT d2_outer()",
        "INSERT INTO d2_written VALUES (1)",
        "INSERT INTO d2_written VALUES (1)",
    ] {
        second.query("BEGIN").await;
        column(&second.query(call).await);
        second.send(&prepared).await;
        assert_eq!(rows(&second.until_ready().await), ["f"], "{call}");
        second.query("COMMIT").await;
        first.send(&prepared).await;
        assert_eq!(rows(&first.until_ready().await), ["t"], "{call}");
        first.query("DEALLOCATE s").await;
        second.query("DEALLOCATE s").await;
    }
}

/// A statement that has to be parsed on another connection, under settings that were changed since,
/// is no other client's any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_is_parsed_anew_under_other_settings_is_not_shared_as_it_was() {
    let a = tenant("d0");
    let proxy = proxy("transaction", 2).await;
    let mut others = Others::of(&proxy, &a).await;
    let (mut first, mut second) = (proxy.raw(&a).await, proxy.raw(&a).await);
    for wire in [&mut first, &mut second] {
        wire.query("SET DateStyle = 'ISO, DMY'").await;
    }
    let define = parse("s", "SELECT date '01/02/2020'");
    let run = [bind("", "s", &[]), execute("", 0), sync()].concat();
    first.send(&[&define[..], &run].concat()).await;
    assert_eq!(rows(&first.until_ready().await), ["2020-02-01"]);
    first.query("SET DateStyle = 'ISO, MDY'").await;
    others.move_on().await;
    // On a connection that has it not.
    first.send(&run).await;
    assert!(errors(&first.until_ready().await).is_empty());
    second.send(&[&define[..], &run].concat()).await;
    assert_eq!(rows(&second.until_ready().await), ["2020-02-01"]);
}

/// A text that sets the tenant's variable only where backslashes are characters like others:
/// whoever comes next finds its own.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_statement_does_is_read_again_where_backslashes_mean_something_else() {
    let a = tenant("t07");
    let proxy = proxy("transaction", 2).await;
    let text = r"SELECT '\', set_config($$app.tenant_id$$, $$t08$$, false) --'";
    let run = |name: &str| [bind("", name, &[]), execute("", 0), sync()].concat();
    for name in ["s", ""] {
        let mut others = Others::of(&proxy, &a).await;
        let mut mine = proxy.raw(&a).await;
        // Prepared under another name first, since a Query would end the unnamed statement.
        mine.send(&[parse("on", "SET standard_conforming_strings = on"), sync()].concat())
            .await;
        mine.until_ready().await;
        mine.query("SET standard_conforming_strings = off").await;
        mine.send(&[parse(name, text), sync()].concat()).await;
        assert!(errors(&mine.until_ready().await).is_empty(), "{name:?}");
        mine.send(&run("on")).await;
        assert!(errors(&mine.until_ready().await).is_empty(), "{name:?}");
        others.move_on().await;
        mine.send(&run(name)).await;
        let frames = mine.until_ready().await;
        assert_eq!(
            frames
                .iter()
                .find(|f| f.tag == b'D')
                .map(|f| f.values().len()),
            Some(2)
        );
        let met = others.ask("SELECT current_setting('app.tenant_id')").await;
        assert_eq!(met, [["t07"], ["t07"]], "{name:?}");
    }
}

/// What a transaction, or the batch itself, has set counts as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_is_not_shared_while_it_is_open_what_it_means() {
    let proxy = proxy("transaction", 1).await;
    let a = tenant("d4");
    let (mut first, mut second) = (proxy.raw(&a).await, proxy.raw(&a).await);
    let run = |sql: &str| [parse("", sql), bind("", "", &[]), execute("", 0)].concat();
    for (set, text, usual, other) in [
        (
            "array_nulls = off",
            "SELECT ('{NULL}'::text[])[1] IS NULL",
            "t",
            "f",
        ),
        (
            "datestyle = 'ISO, DMY'",
            "SELECT date '01/02/2020'",
            "2020-01-02",
            "2020-02-01",
        ),
        (
            "intervalstyle = sql_standard",
            "SELECT interval '-1 2:03:04' = interval '-1 day -2:03:04'",
            "f",
            "t",
        ),
    ] {
        let prepared = [parse("s", text), bind("", "s", &[]), execute("", 0)].concat();
        first.send(&[&prepared[..], &sync()].concat()).await;
        assert_eq!(rows(&first.until_ready().await), [usual], "{set}");
        for scope in ["SET LOCAL", "SET"] {
            // In an open transaction,
            second.query("BEGIN").await;
            second.query(&format!("{scope} {set}")).await;
            second.send(&[&prepared[..], &sync()].concat()).await;
            assert_eq!(rows(&second.until_ready().await), [other], "{scope} {set}");
            second.query("ROLLBACK; DEALLOCATE ALL").await;
            // and in the same batch, where a transaction is open or not.
            let set = run(&format!("{scope} {set}"));
            for begin in ["BEGIN", "SELECT 1 WHERE false"] {
                if scope == "SET LOCAL" && begin != "BEGIN" {
                    continue;
                }
                second
                    .send(&[&run(begin)[..], &set, &prepared, &sync()].concat())
                    .await;
                assert_eq!(
                    rows(&second.until_ready().await),
                    [other],
                    "{scope}, {begin}"
                );
                second.query("ROLLBACK").await;
                second.query("DISCARD ALL").await;
            }
            first
                .send(&[bind("", "s", &[]), execute("", 0), sync()].concat())
                .await;
            assert_eq!(rows(&first.until_ready().await), [usual], "{scope}");
        }
        first.query("DEALLOCATE s").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_taken_back_ends_the_connection_with_its_client() {
    let proxy = proxy("transaction", 1).await;
    let a = tenant("t31");
    let mut mine = proxy.raw(&a).await;
    let handle = newest(&proxy);
    let pid = mine
        .column("SELECT setseed(0.5)::text || pg_backend_pid()")
        .await;
    assert!(is_held_by(&handle, Pins::STUCK).await);
    let random = mine.column("SELECT random()").await;
    drop(mine);
    let mut next = proxy.raw(&a).await;
    assert_ne!(next.column("SELECT pg_backend_pid()").await, pid);
    next.query("SELECT setseed(0.5)").await;
    assert_eq!(next.column("SELECT random()").await, random);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_leaves_with_its_connection_meets_nobody() {
    let proxy = proxy("transaction", 1).await;
    let a = tenant("d1");
    for row in ROWS.iter().filter(|row| row.pins != NOTHING) {
        let mut fresh = proxy.raw(&a).await;
        let nothing_there = seen(&fresh.query(row.ask).await);
        drop(fresh);
        let mut leaving = proxy.raw(&a).await;
        for statement in row.statements {
            leaving.query(statement).await;
        }
        drop(leaving);
        let mut next = proxy.raw(&a).await;
        assert_eq!(
            seen(&next.query(row.ask).await),
            nothing_there,
            "{}",
            row.what
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_session_pooling_a_client_is_told_the_process_id_of_its_server() {
    let proxy = proxy("session", 3).await;
    let mut mine = proxy.raw(&tenant("t32")).await;
    let pid = mine.key.0.to_string();
    assert_eq!(mine.column("SELECT pg_backend_pid()").await, [pid]);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_objects_work_by_function_calls() {
    for pooling in POOLINGS {
        let proxy = proxy(pooling, 2).await;
        let mut mine = proxy.raw(&tenant("acme")).await;
        mine.query("BEGIN").await;
        let oid = mine
            .column("SELECT lo_from_bytea(0, 'large')")
            .await
            .remove(0);
        // lo_open, loread and lo_close, as drivers call them.
        mine.send(&function_call(952, &[Some(&oid), Some("262144")]))
            .await;
        let opened = mine.until_ready().await;
        assert_eq!(opened[0].body, b"\0\0\0\x010", "{opened:?}");
        mine.send(&function_call(954, &[Some("0"), Some("5")]))
            .await;
        let read = mine.until_ready().await;
        assert!(read[0].body.ends_with(b"6c61726765"), "{read:?}");
        mine.send(&function_call(953, &[Some("0")])).await;
        mine.until_ready().await;
        mine.query("ROLLBACK").await;
        assert_eq!(newest(&proxy).pins(), NOTHING);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_keeps_its_connection_can_be_ended_and_gives_it_back() {
    let proxy = proxy("transaction", 1).await;
    let (a, b) = (tenant("t33"), tenant("t34"));
    let mut listening = proxy.raw(&a).await;
    listening.query("LISTEN x").await;
    newest(&proxy).kill();
    assert_eq!(errors(&listening.rest().await), ["57P01"]);
    let mut other = proxy.raw(&b).await;
    assert_eq!(other.column("SELECT 'served'").await, ["served"]);
    eventually("nobody keeps anything", async || {
        newest(&proxy).pins() == NOTHING
    })
    .await;
}

/// As direct: it does not wait for the next client to be scrubbed away.
#[tokio::test(flavor = "multi_thread")]
async fn what_ties_a_client_to_its_connection_ends_with_the_client() {
    for pooling in POOLINGS {
        let proxy = proxy(pooling, 8).await;
        let mut other = proxy.raw(&tenant("t04")).await;
        let free = "SELECT pg_try_advisory_xact_lock(4714)";
        for at_end in ["SELECT 1", "BEGIN; SELECT 1", "SELECT 1/0"] {
            let mut client = proxy.raw(&tenant("t03")).await;
            column(&client.query("SELECT pg_advisory_lock(4714)").await);
            client.query(at_end).await;
            assert_eq!(other.column(free).await, ["f"], "{pooling}");
            drop(client);
            eventually("the lock is free", async || {
                other.column(free).await == ["t"]
            })
            .await;
        }
    }
}

/// PostgreSQL reports what is other than when it last reported: not what a client sets as the last
/// tenant had it.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sets_what_the_last_tenant_had_set_has_it_everywhere() {
    let proxy = proxy("transaction", 1).await;
    let mut last = proxy.raw(&tenant("t05")).await;
    let mut client = proxy.raw(&tenant("t06")).await;
    for (name, value) in [
        ("application_name", "the same"),
        ("TimeZone", "Asia/Tokyo"),
        ("DateStyle", "SQL, DMY"),
    ] {
        // Also where its name is not in the text.
        for set in [
            format!("SET {name} = '{value}'"),
            format!("DO $$ BEGIN PERFORM set_config(lower('{name}'), '{value}', false); END $$"),
            format!("DO $$ BEGIN EXECUTE concat('SE', 'T {name} = ''{value}'''); END $$"),
            format!("SELECT set_config(lower('{name}'), '{value}', false)"),
        ] {
            last.query(&format!("SET {name} = '{value}'")).await;
            let mut frames = client.query(&set).await;
            frames.extend(client.query("SELECT 1").await);
            if !newest(&proxy).pins().contains(Pins::SETTINGS) {
                last.query("SELECT 1").await;
            }
            frames.extend(client.query(&format!("SHOW {name}")).await);
            assert_eq!(rows(&frames).last().map(|v| &**v), Some(value), "{set}");
            let told = [name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat();
            let is_told = |frame: &Frame| frame.tag == b'S' && frame.body == told;
            assert!(frames.iter().any(is_told), "{set}: {frames:?}");
            client.query("DISCARD ALL").await;
            last.query("DISCARD ALL").await;
        }
    }
}
