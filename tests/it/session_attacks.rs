//! Attacks on how session state is tracked: what a client hides, or puts where nobody looks, must
//! not take the tenant context from another client, nor reach one.

use pgtenant::backend::residue::Pins;

use crate::harness::{Running, Setup, direct, eventually, tenant, world};
use crate::wire::{
    Frame, Wire, bind, column, errors, execute, function_call, parse, query, rows, sync,
};

const BODIES: &str = "SELECT body FROM items ORDER BY id";
/// `pg_catalog.setseed`.
const SETSEED: u32 = 1599;

/// A proxy whose pools have one server connection: whoever comes next gets it.
async fn one_connection(pooling: &'static str) -> Running {
    Setup {
        pooling,
        pool_size: 1,
        ..Setup::default()
    }
    .start()
    .await
}

/// Makes a function that acts as another tenant out of the guard's sight: posture plain does not
/// read functions.
async fn make_acts_as() {
    static MADE: tokio::sync::OnceCell<()> = tokio::sync::OnceCell::const_new();
    MADE.get_or_init(async || {
        let sql = "CREATE FUNCTION attacks_acts_as(a text) RETURNS text LANGUAGE sql AS \
            $$ SELECT set_config('app.tenant_id', a, false) $$";
        world()
            .await
            .shared
            .run("app", sql)
            .await
            .expect("a function");
    })
    .await;
}

/// Parse, Bind, Execute of the unnamed statement, without Sync.
fn step(sql: &str) -> Vec<u8> {
    [parse("", sql), bind("", "", &[]), execute("", 0)].concat()
}

fn run(name: &str) -> Vec<u8> {
    [bind("", name, &[]), execute("", 0), sync()].concat()
}

async fn ask(wire: &mut Wire, batch: &[u8]) -> Vec<Frame> {
    wire.send(batch).await;
    wire.until_ready().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pipelined_behind_a_discard_all_reaches_nobody() {
    let (a, b) = (tenant("t10"), tenant("t11"));
    for behind in [
        step("LISTEN planted"),
        step("CREATE TEMP TABLE items AS SELECT 1 AS id, 'planted' AS body"),
        step("SET search_path = pg_temp"),
        step("SELECT set_config('my_app.planted', 'x', false)"),
        [parse("planted", "SELECT 1"), query("PREPARE p AS SELECT 2")].concat(),
    ] {
        let proxy = one_connection("transaction").await;
        let mut planting = proxy.raw(&a).await;
        ask(
            &mut planting,
            &[step("DISCARD ALL"), behind, sync()].concat(),
        )
        .await;
        // It may have been kept; then it is given back now.
        drop(planting);
        let mut other = proxy.raw(&b).await;
        assert_eq!(rows(&other.query(BODIES).await), b.bodies());
        let left = "SELECT pg_listening_channels() UNION SELECT name FROM pg_prepared_statements \
            UNION SELECT nullif(current_setting('my_app.planted', true), '') \
            UNION SELECT relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()";
        let left = column(&other.query(left).await);
        assert!(left.iter().all(String::is_empty), "{left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pipelined_behind_a_discard_all_is_kept_for_its_client() {
    let proxy = one_connection("transaction").await;
    let mut mine = proxy.raw(&tenant("t12")).await;
    mine.query("SET work_mem = '5MB'").await;
    let batch = [
        step("DISCARD ALL"),
        step("LISTEN kept"),
        step("SET lock_timeout = '7s'"),
        sync(),
    ];
    assert!(errors(&ask(&mut mine, &batch.concat()).await).is_empty());
    let all = "SELECT current_setting('work_mem') || current_setting('lock_timeout') || pg_listening_channels()";
    for _ in 0..2 {
        assert_eq!(mine.column(all).await, ["4MB7skept"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_behind_an_extended_set_without_sync_ends_it() {
    let proxy = one_connection("transaction").await;
    let (a, b) = (tenant("t19"), tenant("t20"));
    let mut mine = proxy.raw(&a).await;
    let set = format!(
        "SELECT set_config('app.' || 'tenant_id', '{}', false)",
        b.name
    );
    mine.send(&[step(&set), query("SELECT 1"), query(BODIES)].concat())
        .await;
    let first = mine.until_ready().await;
    let second = mine.until_ready().await;
    // Since PostgreSQL 18 the Query does not end it: all is one transaction up to Sync.
    if first.last().is_some_and(|ready| ready.body == b"T") {
        mine.send(&sync()).await;
        mine.until_ready().await;
        let frames = mine.query(BODIES).await;
        // What set it is not read here, and the client may be ended for it; it is nobody else's
        // rows that it sees.
        let is_ended = errors(&frames) == ["08006"];
        assert!(is_ended || rows(&frames) == a.bodies(), "{frames:?}");
    } else {
        assert_eq!(rows(&second), a.bodies());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_set_config_does_not_take_the_tenant_context_away() {
    for pooling in ["transaction", "session"] {
        let proxy = one_connection(pooling).await;
        let (a, b) = (tenant("t15"), tenant("t16"));
        let mut mine = proxy.raw(&a).await;
        let sets = format!("SELECT set_config('app.tenant_id', '{}', false)", b.name);
        let refused = ask(&mut mine, &[parse("s", &sets), sync()].concat()).await;
        assert_eq!(errors(&refused), ["42501"], "{pooling}");
        let sets = format!(
            "SELECT set_config('app.' || 'tenant_id', '{}', false)",
            b.name
        );
        ask(&mut mine, &[parse("s", &sets), sync()].concat()).await;
        assert_eq!(rows(&mine.query(BODIES).await), a.bodies());
        for _ in 0..2 {
            assert!(errors(&ask(&mut mine, &run("s")).await).is_empty());
            assert_eq!(rows(&mine.query(BODIES).await), a.bodies(), "{pooling}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_call_does_not_take_the_tenant_context_away() {
    for pooling in ["transaction", "session"] {
        let proxy = one_connection(pooling).await;
        let (a, b) = (tenant("t13"), tenant("t14"));
        let mut mine = proxy.raw(&a).await;
        make_acts_as().await;
        let oid = "SELECT 'attacks_acts_as'::regproc::oid";
        let oid = mine.column(oid).await.remove(0).parse();
        let call = function_call(oid.expect("a number"), &[Some(&b.name)]);
        mine.send(&[call.clone(), query(BODIES)].concat()).await;
        assert!(errors(&mine.until_ready().await).is_empty());
        assert_eq!(rows(&mine.until_ready().await), a.bodies(), "{pooling}");
        ask(&mut mine, &call).await;
        drop(mine);
        let mut next = proxy.raw(&a).await;
        assert_eq!(rows(&next.query(BODIES).await), a.bodies(), "{pooling}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_function_call_leaves_meets_nobody() {
    let proxy = one_connection("transaction").await;
    let a = tenant("t13");
    let mut mine = proxy.raw(&a).await;
    ask(&mut mine, &function_call(SETSEED, &[Some("0.5")])).await;
    let pid = mine.column("SELECT pg_backend_pid()").await;
    drop(mine);
    let mut next = proxy.raw(&a).await;
    assert_ne!(next.column("SELECT pg_backend_pid()").await, pid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_an_update_took_from_a_sequence_is_not_anothers() {
    let world = world().await;
    let sql = "CREATE TABLE attacks_serial (id serial); INSERT INTO attacks_serial DEFAULT VALUES; \
        GRANT ALL ON attacks_serial, attacks_serial_id_seq TO PUBLIC";
    world.shared.run("app", sql).await.expect("a table");
    let proxy = one_connection("transaction").await;
    let a = tenant("t29");
    let mut mine = proxy.raw(&a).await;
    let mut other = proxy.raw(&a).await;
    column(&mine.query("UPDATE attacks_serial SET id = DEFAULT").await);
    assert_eq!(errors(&other.query("SELECT lastval()").await), ["0A000"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_of_a_transaction_are_nobodys_afterwards() {
    let proxy = one_connection("transaction").await;
    let a = tenant("t23");
    let mut mine = proxy.raw(&a).await;
    let mut other = proxy.raw(&a).await;
    let levels = "SELECT current_setting('transaction_isolation') || current_setting('transaction_read_only')";
    for statements in [
        "BEGIN; SET transaction_isolation TO 'serializable'; COMMIT",
        "BEGIN; SET transaction_read_only = on; SET transaction_deferrable = on; COMMIT",
        "SELECT set_config('transaction_isolation', 'repeatable read', false)",
        "SET default_transaction_isolation = 'serializable'",
    ] {
        for statement in statements.split("; ") {
            mine.query(statement).await;
        }
        let expected = ["read committedoff"];
        assert_eq!(other.column(levels).await, expected, "{statements}");
    }
    assert_eq!(mine.column(levels).await, ["serializableoff"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_functions_do_is_found_wherever_they_are_called() {
    let world = world().await;
    let padding = "x".repeat(200);
    let sql = format!(
        "CREATE SCHEMA attacks; GRANT USAGE ON SCHEMA attacks TO PUBLIC;
         CREATE FUNCTION attacks_sets(a text) RETURNS text LANGUAGE plpgsql AS
            $$ BEGIN RETURN set_config('my_app.attacked', a, false); END $$;
         CREATE FUNCTION attacks.lower(a text) RETURNS text LANGUAGE sql AS 'SELECT attacks_sets(a)';
         CREATE FUNCTION attacks_next(a text) RETURNS SETOF text LANGUAGE plpgsql AS
            $$ BEGIN RETURN NEXT attacks_sets(a); END $$;
         CREATE FUNCTION attacks_long() RETURNS void LANGUAGE plpgsql AS
            $$ BEGIN EXECUTE 'CREATE TEMP TABLE IF NOT EXISTS attacks_t (a text DEFAULT ''{padding}'')'; END $$;
         CREATE FUNCTION attacks_escaped() RETURNS void LANGUAGE plpgsql AS
            $$ BEGIN EXECUTE E'CREATE\\tTEMP TABLE IF NOT EXISTS attacks_t (a text)'; END $$;"
    );
    world.shared.run("app", &sql).await.expect("functions");
    let proxy = one_connection("transaction").await;
    let a = tenant("t24");
    let mut mine = proxy.raw(&a).await;
    let handle = proxy.proxy.app().clients().pop().expect("a client");
    let mut other = proxy.raw(&a).await;
    let value = "SELECT coalesce(current_setting('my_app.attacked', true), '')";
    let mut n = 0;
    for statement in [
        "SELECT attacks_sets($)",
        "SELECT attacks.lower($)",
        "SELECT * FROM (SELECT 1) x CROSS JOIN attacks_sets($)",
        "SELECT DISTINCT ON (1) attacks_sets($) FROM (SELECT 1) x",
        "SELECT now() AT TIME ZONE attacks_sets($)",
        "SELECT 'a' BETWEEN SYMMETRIC attacks_sets($) AND 'b'",
        "SELECT 'a' OPERATOR(pg_catalog.=) attacks_sets($)",
        "SELECT * FROM attacks_next($)",
    ] {
        n += 1;
        // One that is a time zone, too.
        let statement = statement.replace('$', &format!("'UTC+{n}'"));
        assert!(errors(&mine.query(&statement).await).is_empty());
        assert_eq!(other.column(value).await, [""], "{statement}: another's");
        assert_eq!(
            mine.column(value).await,
            [format!("UTC+{n}")],
            "{statement}"
        );
    }
    for statement in ["SELECT attacks_long()", "SELECT attacks_escaped()"] {
        mine.query(statement).await;
        eventually("it is pinned", async || handle.pins() == Pins::TEMPORARY).await;
        mine.query("DROP TABLE attacks_t").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_with_backslash_escapes_hides_nothing() {
    let proxy = one_connection("transaction").await;
    let (a, b) = (tenant("t17"), tenant("t18"));
    let mut mine = proxy.raw(&a).await;
    let mut next = proxy.raw(&a).await;
    let sql = format!(
        r"SELECT 'x\'', set_config('app.tenant_id', '{}', false), 'y\''",
        b.name
    );
    for batch in [
        query(&sql),
        [parse("", &sql), run("")].concat(),
        [parse("s", &sql), run("s")].concat(),
    ] {
        mine.query("SET standard_conforming_strings = off").await;
        assert_eq!(errors(&ask(&mut mine, &batch).await)[0], "42501");
        assert_eq!(rows(&next.query(BODIES).await), a.bodies());
        mine.query("ROLLBACK").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deallocate_takes_no_statement_away_from_another() {
    let proxy = one_connection("transaction").await;
    let a = tenant("t21");
    let text = "SELECT 'it'";
    for attack in [
        // Prepared, run once too often.
        &[
            [parse("", "DEALLOCATE s"), sync()].concat(),
            run(""),
            run(""),
            [parse("s", text), run("s")].concat(),
            run(""),
        ][..],
        // Prepared only, while another completes.
        &[
            [parse("", "DEALLOCATE s"), sync()].concat(),
            query("PREPARE p AS SELECT 1"),
            query("DEALLOCATE p"),
        ],
        // By the name it has on the server.
        &[query("DEALLOCATE pgtenant_1")],
        &[[step("DEALLOCATE pgtenant_1"), sync()].concat()],
        // Prepared behind what drops all.
        &[[step("DEALLOCATE ALL"), parse("t", text), run("t")].concat()],
        &[[step("DISCARD ALL"), parse("t", text), run("t")].concat()],
    ] {
        let mut other = proxy.raw(&a).await;
        let mut mine = proxy.raw(&a).await;
        ask(&mut other, &[parse("q", text), sync()].concat()).await;
        ask(&mut mine, &[parse("s", text), run("s")].concat()).await;
        for batch in attack {
            ask(&mut mine, batch).await;
        }
        for _ in 0..2 {
            let frames = ask(&mut other, &run("q")).await;
            assert_eq!(
                column(&frames),
                ["it"],
                "{}",
                attack.concat().escape_ascii()
            );
        }
        ask(&mut other, &[parse("q2", text), run("q2")].concat()).await;
        assert_eq!(column(&ask(&mut other, &run("q2")).await), ["it"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_of_another_client_cannot_be_bound_by_its_name_on_the_server() {
    let proxy = one_connection("transaction").await;
    let a = tenant("t22");
    let mut other = proxy.raw(&a).await;
    let mut mine = proxy.raw(&a).await;
    ask(
        &mut other,
        &[parse("s", "SELECT 'other'"), run("s")].concat(),
    )
    .await;
    let name = mine
        .column("SELECT name FROM pg_prepared_statements")
        .await
        .remove(0);
    assert_eq!(errors(&ask(&mut mine, &run(&name)).await), ["26000"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_statement_is_refused_in_a_failed_transaction_as_direct() {
    let world = world().await;
    let a = tenant("t28");
    let proxy = one_connection("transaction").await;
    let mut seen = Vec::new();
    for mut wire in [proxy.raw(&a).await, direct(world, &a).await] {
        ask(
            &mut wire,
            &[parse("s", "SELECT 1"), parse("r", "ROLLBACK"), sync()].concat(),
        )
        .await;
        wire.query("BEGIN").await;
        wire.query("SELECT 1/0").await;
        let mut tags = Vec::new();
        for batch in [
            [parse("s2", "SELECT 1"), run("s2")].concat(),
            [parse("r2", "ROLLBACK"), run("r2")].concat(),
            [parse("s2", "SELECT 1"), run("s2")].concat(),
        ] {
            let frames = ask(&mut wire, &batch).await;
            tags.push(
                frames
                    .iter()
                    .map(|frame| frame.tag as char)
                    .collect::<String>(),
            );
        }
        seen.push(tags);
    }
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_notification_is_lost_while_the_context_is_renewed() {
    const ROUNDS: usize = 400;
    let setup = Setup {
        pool_size: 2,
        ..Setup::default()
    };
    let proxy = setup.start().await;
    let a = tenant("t26");
    let mut listening = proxy.raw(&a).await;
    listening.query("LISTEN t26_channel").await;
    let mut other = proxy.raw(&a).await;
    let notifying = tokio::spawn(async move {
        for _ in 0..ROUNDS {
            other.query("NOTIFY t26_channel").await;
        }
    });
    let mut told = 0;
    let count = |frames: &[Frame]| frames.iter().filter(|frame| frame.tag == b'A').count();
    while !notifying.is_finished() {
        told += count(&listening.query("SET work_mem = '5MB'").await);
    }
    notifying.await.expect("notifies");
    // What was sent before the last of it comes before this.
    for _ in 0..2 {
        told += count(&listening.query("SELECT pg_sleep(0.05)").await);
    }
    assert_eq!(told, ROUNDS);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_proxy_asks_is_not_heard_by_its_client() {
    let world = world().await;
    let a = tenant("t27");
    let proxy = one_connection("transaction").await;
    let mut heard = Vec::new();
    for mut wire in [proxy.raw(&a).await, direct(world, &a).await] {
        wire.query("SET client_min_messages = debug1").await;
        wire.query("SET my_app.x = 'y'; SET work_mem = '5MB'").await;
        wire.query("SET client_min_messages = debug5").await;
        let mut frames = Vec::new();
        for _ in 0..3 {
            frames.extend(wire.query("SET work_mem = '6MB'").await);
        }
        frames.extend(wire.query("SELECT 1").await);
        heard.push(frames.iter().filter(|frame| frame.tag == b'N').count());
    }
    assert_eq!(heard[0], heard[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parameter_may_be_long() {
    let proxy = one_connection("transaction").await;
    let a = tenant("t25");
    let mut mine = proxy.raw(&a).await;
    let length = "SELECT length(current_setting('my_app.long', true))";
    for n in [1000, 100_000, 3_000_000] {
        let set = format!("SELECT length(set_config('my_app.long', repeat('x', {n}), false))");
        assert_eq!(mine.column(&set).await, [n.to_string()]);
        assert_eq!(mine.column(length).await, [n.to_string()]);
    }
    // Many of them are not kept by the proxy.
    for n in 0..100 {
        let set = format!("SELECT length(set_config('my_app.l{n}', repeat('x', 20000), false))");
        mine.query(&set).await;
    }
    let handle = proxy.proxy.app().clients().pop().expect("a client");
    assert_eq!(handle.pins(), Pins::SETTINGS);
    let sum = "SELECT sum(length(current_setting('my_app.l' || n))) FROM generate_series(0, 99) n";
    assert_eq!(mine.column(sum).await, ["2000000"]);
}
