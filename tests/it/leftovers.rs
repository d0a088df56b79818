//! What DISCARD ALL leaves in a server process must not meet another tenant: connections of dblink,
//! the seed of random(), whatever else libraries keep. Nor is one tenant held up by the temporary
//! objects of another.

use pgtenant::backend::residue::Pins;
use pgtenant::cluster::{Cluster, Options};

use crate::harness::{Running, SECRET, cluster, eventually, server_line, tenant};
use crate::wire::{Wire, bind, column, errors, execute, function_call, parse, sync};

/// Ways to a function, which is called `does` here. Each is a statement of a tenant; all but the
/// first two go by what the statement does not name.
const WAYS: [(&str, &str); 11] = [
    ("a call", "SELECT does()"),
    ("a function", "SELECT calls_it()"),
    ("a view", "SELECT * FROM by_view"),
    ("a default", "INSERT INTO by_default (a) VALUES (1)"),
    ("a trigger", "INSERT INTO by_trigger VALUES (1)"),
    ("a rule", "INSERT INTO by_rule VALUES (1)"),
    ("a policy", "SELECT * FROM by_policy"),
    ("an operator", "SELECT 1 <<<>>> 2"),
    ("a cast", "SELECT 'x'::pair::int4"),
    ("a check", "INSERT INTO by_check VALUES (1)"),
    ("a generated name", "SELECT does_by_string()"),
];

/// What the ways need. `does`: what the function returns, which is an int.
fn ways(does: &str) -> String {
    format!(
        "CREATE FUNCTION does() RETURNS int LANGUAGE plpgsql AS $f$ BEGIN {does}; RETURN 1; END $f$;
        CREATE FUNCTION calls_it() RETURNS int LANGUAGE sql AS 'SELECT does()';
        CREATE FUNCTION does_by_string() RETURNS int LANGUAGE plpgsql AS
            $f$ BEGIN EXECUTE concat('SEL', 'ECT do', 'es()'); RETURN 1; END $f$;
        CREATE VIEW by_view AS SELECT does();
        CREATE TABLE by_default (a int, b int DEFAULT does());
        CREATE TABLE by_trigger (a int);
        CREATE FUNCTION triggered() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM does(); RETURN NEW; END';
        CREATE TRIGGER t BEFORE INSERT ON by_trigger FOR EACH ROW EXECUTE FUNCTION triggered();
        CREATE TABLE by_rule (a int);
        CREATE RULE r AS ON INSERT TO by_rule DO ALSO INSERT INTO by_default (a) VALUES (1);
        CREATE TABLE by_policy (a int);
        INSERT INTO by_policy VALUES (1);
        ALTER TABLE by_policy ENABLE ROW LEVEL SECURITY;
        CREATE POLICY p ON by_policy USING (does() = 1);
        CREATE FUNCTION compares(int, int) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN does(); END';
        CREATE OPERATOR <<<>>> (leftarg = int, rightarg = int, function = compares);
        CREATE TYPE pair AS ENUM ('x');
        CREATE FUNCTION of_pair(pair) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN does(); END';
        CREATE CAST (pair AS int) WITH FUNCTION of_pair(pair);
        CREATE TABLE by_check (a int CHECK (does() = 1));
        GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO app"
    )
}

/// A server of the test's own, whose database `app` has `sql`, as a superuser ran it.
async fn server(name: &str, sql: &str) -> Cluster {
    let server = cluster(Options::named(name)).await;
    let role = format!(
        "CREATE ROLE app LOGIN PASSWORD '{SECRET}'; CREATE ROLE other LOGIN PASSWORD '{SECRET}'"
    );
    server.run("postgres", &role).await.unwrap();
    server
        .run("postgres", "CREATE DATABASE app OWNER app")
        .await
        .unwrap();
    server.run("app", sql).await.unwrap();
    server
}

/// Tenants `t00` and `t01` of one pool with `size` connections.
fn proxy(server: &Cluster, pooling: &str, pool: &str) -> Running {
    let line = server_line("shared", server, 20);
    let tenants: String = ["t00", "t01"]
        .iter()
        .map(|name| {
            let password = tenant(name).password();
            format!(
                "  {name}: {{ placement: free, users: {{ app: {{ password: {password} }} }} }}\n"
            )
        })
        .collect();
    Running::start(&format!(
        "listen: [{{ address: \"127.0.0.1:0\" }}]\nworkers: 2\nservers:\n{line}placements:\n  \
         free: {{ tier: pool, server: shared, database: app, login: {{ user: app, password: {SECRET} }}, \
         pooling: {pooling}, pool: {{ {pool} }}, posture: plain, context: {{ app.tenant_id: \"{{tenant}}\" }} }}\ntenants:\n{tenants}"
    ))
}

/// Every pooling mode in which a connection meets two tenants.
const MODES: [(&str, &str); 2] = [
    ("transaction", "size: 1, reserve: 0"),
    ("session", "size: 1, reserve: 0, reuse: true"),
];

async fn run(wire: &mut Wire, sql: &str, extended: bool) -> Vec<String> {
    match extended {
        false => column(&wire.query(sql).await),
        true => {
            let batch = [parse("", sql), bind("", "", &[]), execute("", 0), sync()].concat();
            wire.send(&batch).await;
            column(&wire.until_ready().await)
        }
    }
}

/// What the next tenant is told by `ask`, after one that ran `statement` has left; and whether it
/// got the same connection.
async fn next_is_told(
    proxy: &Running,
    statement: &str,
    ask: &str,
    n: usize,
) -> (Vec<String>, bool) {
    let mut first = proxy.raw(&tenant("t00")).await;
    let pid = first.column("SELECT pg_backend_pid()").await;
    run(&mut first, statement, n % 2 == 1).await;
    drop(first);
    let mut next = proxy.raw(&tenant("t01")).await;
    let told = next.column(ask).await;
    (told, next.column("SELECT pg_backend_pid()").await == pid)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_seed_of_a_tenant_decides_over_no_number_of_another() {
    let server = server("seeds", &ways("PERFORM setseed(0.25)")).await;
    let (direct, _) = server
        .config("app")
        .connect(tokio_postgres::NoTls)
        .await
        .map(|(c, i)| (c, tokio::spawn(i)))
        .unwrap();
    let ask = "SELECT random()::text";
    direct.batch_execute("SELECT setseed(0.25)").await.unwrap();
    let foreseen: String = direct.query_one(ask, &[]).await.unwrap().get(0);
    let mut leaks = Vec::new();
    for (pooling, pool) in MODES {
        let proxy = proxy(&server, pooling, pool);
        for (n, (way, statement)) in WAYS.iter().enumerate() {
            let (told, same) = next_is_told(&proxy, statement, ask, n).await;
            if told == [&*foreseen] {
                leaks.push(format!("{pooling}: by {way}"));
            }
            // It is not held by luck: what nobody sees does not end the connection.
            assert!(same || *way != "a view", "{pooling}: by {way}");
        }
        let direct = "SELECT setseed(0.25)";
        let (told, same) = next_is_told(&proxy, direct, ask, 0).await;
        if told == [&*foreseen] || same {
            leaks.push(format!("{pooling}: direct"));
        }
    }
    assert_eq!(leaks, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_with_the_farewell_ends_the_connection_as_well() {
    let server = server("farewells", "SELECT 1").await;
    for (pooling, pool) in MODES {
        let proxy = proxy(&server, pooling, pool);
        let mut pids = Vec::new();
        let farewells = [
            crate::wire::query("SELECT setseed(0.25)"),
            function_call(1599, &[Some("0.25")]),
        ];
        for farewell in farewells {
            let mut first = proxy.raw(&tenant("t00")).await;
            pids.push(first.column("SELECT pg_backend_pid()").await);
            first
                .send(&[farewell, crate::wire::terminate()].concat())
                .await;
            first.rest().await;
        }
        let mut next = proxy.raw(&tenant("t00")).await;
        pids.push(next.column("SELECT pg_backend_pid()").await);
        assert!(
            pids[0] != pids[1] && pids[1] != pids[2],
            "{pooling}: {pids:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_of_dblink_meets_no_other_tenant() {
    let socket = |server: &Cluster| {
        format!(
            "host={} port={} user=app dbname=app",
            server.socket_dir().display(),
            server.port()
        )
    };
    let server = server(
        "links",
        "CREATE EXTENSION dblink; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO app",
    )
    .await;
    let does = format!(
        "IF dblink_get_connections() IS NULL THEN PERFORM dblink_connect_u('c', '{}'); END IF",
        socket(&server)
    );
    server.run("app", &ways(&does)).await.unwrap();
    let ask = "SELECT 'c' = ANY (dblink_get_connections())";
    let mut leaks = Vec::new();
    for (pooling, pool) in MODES {
        let proxy = proxy(&server, pooling, pool);
        for (n, (way, statement)) in WAYS.iter().enumerate() {
            let (told, same) = next_is_told(&proxy, statement, ask, n).await;
            if told == ["t"] || same {
                leaks.push(format!("{pooling}: by {way}"));
            }
        }
        // The same tenant keeps its connection: it is not ended for nothing.
        let mut one = proxy.raw(&tenant("t01")).await;
        let pid = one.column("SELECT pg_backend_pid()").await;
        drop(one);
        let mut one = proxy.raw(&tenant("t01")).await;
        assert_eq!(
            one.column("SELECT pg_backend_pid()").await,
            pid,
            "{pooling}"
        );
    }
    assert_eq!(leaks, [""; 0]);
    // What is tolerated changes hands, as it is said that it does.
    let tolerant = "size: 1, reserve: 0, tolerate: [dblink]";
    let proxy = proxy(&server, "transaction", tolerant);
    let (told, same) = next_is_told(&proxy, "SELECT * FROM by_view", ask, 0).await;
    assert!(told == ["t"] && same);
}

/// `isn_weak()` sets a variable of the library's own, up to PostgreSQL 17.
#[tokio::test(flavor = "multi_thread")]
async fn an_extension_that_a_tenant_makes_is_noticed_at_once() {
    let server = server("extensions", "CREATE EXTENSION pgcrypto").await;
    let proxy = proxy(&server, "transaction", "size: 1, reserve: 0");
    let (_, same) = next_is_told(&proxy, "SELECT 1", "SELECT 1", 0).await;
    assert!(same);
    for make in ["CREATE EXTENSION isn", "SELECT isn_weak(true)"] {
        let (_, same) = next_is_told(&proxy, make, "SELECT 1", 1).await;
        assert!(!same, "{make}");
    }
    let mut next = proxy.raw(&tenant("t01")).await;
    assert_eq!(next.column("SELECT isn_weak()").await, ["f"]);
}

/// What ties a client of a tenant to its connection after `write`, while another tenant has done
/// what `prepare` says.
async fn pins_of_a_writer(server: &Cluster, prepare: &[&str], write: &str) -> Pins {
    let proxy = proxy(server, "transaction", "size: 4, reserve: 0");
    let mut attacker = proxy.raw(&tenant("t00")).await;
    for statement in prepare {
        let frames = attacker.query(statement).await;
        assert_eq!(errors(&frames), [""; 0], "{statement}");
    }
    let mut writer = proxy.raw(&tenant("t01")).await;
    let handle = proxy.proxy.app().clients().pop().expect("a client");
    assert_eq!(errors(&writer.query(write).await), [""; 0], "{write}");
    // It is asked what it holds before the next statement is run.
    writer.query("SELECT 1").await;
    eventually("the client is seen to", async || {
        handle.activity() == pgtenant::client::Activity::Idle || !handle.pins().is_empty()
    })
    .await;
    handle.pins()
}

#[tokio::test(flavor = "multi_thread")]
async fn temporary_objects_of_a_tenant_hold_up_no_other() {
    let sql = "CREATE TABLE notes (a int); GRANT ALL ON notes TO app; CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'";
    let server = server("temporary", sql).await;
    let seeds = "LANGUAGE plpgsql AS 'BEGIN PERFORM setseed(0.5); RETURN NEW; END'";
    let temporary = [
        "CREATE TEMP TABLE g (x int)",
        &format!("CREATE FUNCTION pg_temp.seeds() RETURNS trigger {seeds}"),
        "CREATE TRIGGER t BEFORE INSERT ON g FOR EACH ROW EXECUTE FUNCTION pg_temp.seeds()",
    ];
    let write = "INSERT INTO notes VALUES (1)";
    assert_eq!(
        pins_of_a_writer(&server, &temporary, write).await,
        Pins::empty()
    );
    let function = [
        "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE plpgsql AS 'BEGIN PERFORM setseed(0.5); RETURN 1; END'",
    ];
    assert_eq!(
        pins_of_a_writer(&server, &function, "SELECT f()").await,
        Pins::empty()
    );
    // What is its own counts.
    let proxy = proxy(&server, "transaction", "size: 4, reserve: 0");
    let cases = [
        (&temporary[..], "INSERT INTO g VALUES (1)"),
        (&function[..], "SELECT pg_temp.f()"),
    ];
    for (prepare, own) in cases {
        let mut client = proxy.raw(&tenant("t00")).await;
        let handle = proxy.proxy.app().clients().pop().expect("a client");
        for statement in prepare.iter().chain([&own]) {
            assert_eq!(errors(&client.query(statement).await), [""; 0]);
        }
        eventually("it is seen", async || handle.pins().contains(Pins::STUCK)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_other_roles_that_a_session_cannot_reach_hold_it_up_as_little() {
    let trigger =
        "RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM setseed(0.5); RETURN NEW; END'";
    let sql = format!(
        "CREATE TABLE notes (a int); GRANT ALL ON notes TO app; CREATE SCHEMA theirs AUTHORIZATION other; SET ROLE other;
        CREATE TABLE theirs.g (x int); CREATE FUNCTION theirs.seeds() {trigger};
        CREATE TRIGGER t BEFORE INSERT ON theirs.g FOR EACH ROW EXECUTE FUNCTION theirs.seeds();
        CREATE FUNCTION theirs.f() RETURNS int LANGUAGE plpgsql AS 'BEGIN PERFORM setseed(0.5); RETURN 1; END';
        RESET ROLE; CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'"
    );
    let server = server("roles", &sql).await;
    let write = "INSERT INTO notes VALUES (1)";
    assert_eq!(pins_of_a_writer(&server, &[], write).await, Pins::empty());
    assert_eq!(
        pins_of_a_writer(&server, &[], "SELECT f()").await,
        Pins::empty()
    );
    // What is reached by a function that acts as its owner counts, as does what may be reached
    // directly.
    let definer = "SET ROLE other; CREATE FUNCTION theirs.private() RETURNS int LANGUAGE plpgsql AS 'BEGIN PERFORM setseed(0.5); RETURN 1; END';
        RESET ROLE; CREATE SCHEMA api; GRANT USAGE ON SCHEMA api TO app; GRANT CREATE, USAGE ON SCHEMA api TO other; SET ROLE other;
        CREATE FUNCTION api.public() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT theirs.private()'";
    server.run("app", definer).await.unwrap();
    let call = "SELECT api.public()";
    assert_eq!(pins_of_a_writer(&server, &[], call).await, Pins::STUCK);
    let grant = "REVOKE ALL ON FUNCTION api.public() FROM PUBLIC; GRANT USAGE ON SCHEMA theirs TO app; GRANT INSERT ON theirs.g TO app";
    server.run("app", grant).await.unwrap();
    assert_eq!(pins_of_a_writer(&server, &[], write).await, Pins::STUCK);
}
