//! Variables that row level security policies read beside the tenant's own: who sets one decides
//! which rows it sees, so in posture guarded nobody may, but where the operator names it.

use pgtenant::cluster::{Cluster, Options};

use crate::harness::{Running, SECRET, cluster, server_line, tenant};
use crate::wire::{Wire, bind, errors, execute, parse, sync};

/// Each lets a client that sets the variable to `on` see the rows of everybody.
const READ: [&str; 6] = [
    "t.in_using",
    "t.in_function",
    "t.in_nested",
    "t.in_atomic",
    "t.in_subselect",
    "t.In_Capitals",
];

const SETUP: &str = "
    CREATE FUNCTION reads() RETURNS bool LANGUAGE sql STABLE AS $$ SELECT current_setting('t.in_function', true) = 'on' $$;
    CREATE FUNCTION inner_one() RETURNS bool LANGUAGE plpgsql STABLE AS
        $$ BEGIN RETURN CURRENT_SETTING ( 't.in_nested', true) = 'on'; END $$;
    CREATE FUNCTION outer_one() RETURNS bool LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN public.inner_one(); END $$;
    CREATE FUNCTION atomic() RETURNS bool LANGUAGE sql STABLE BEGIN ATOMIC SELECT current_setting('t.in_atomic', true) = 'on'; END;
    CREATE TABLE notes (tenant_id text, body text);
    INSERT INTO notes VALUES ('t00', 'a'), ('t01', 'b');
    ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
    CREATE POLICY tenant ON notes USING (tenant_id = current_setting('app.tenant_id', true)
        OR current_setting('t.in_using', true) = 'on' OR current_setting('T.in_capitals', true) = 'on');
    CREATE POLICY functions ON notes USING (reads() OR outer_one() OR atomic());
    CREATE POLICY sub ON notes USING (EXISTS (SELECT 1 WHERE current_setting('t.in_subselect', true) = 'on'));
    CREATE POLICY writes ON notes FOR INSERT WITH CHECK (current_setting('t.in_check', true) = 'on');
    CREATE POLICY users ON notes AS RESTRICTIVE USING (current_setting('t.person', true) IS DISTINCT FROM 'nobody');
    CREATE TABLE plain (a text DEFAULT current_setting('t.in_default', true));
    GRANT SELECT, INSERT ON notes, plain TO app;";

const BODIES: &str = "SELECT count(*) FROM notes";

async fn server(name: &str) -> Cluster {
    let server = cluster(Options::named(name)).await;
    let role = format!("CREATE ROLE app LOGIN PASSWORD '{SECRET}'");
    server.run("postgres", &role).await.unwrap();
    server.run("postgres", "CREATE DATABASE app").await.unwrap();
    server.run("app", SETUP).await.unwrap();
    server
}

fn proxy(server: &Cluster, pooling: &str, posture: &str) -> Running {
    let line = server_line("shared", server, 20);
    let password = tenant("t00").password();
    Running::start(&format!(
        "listen: [{{ address: \"127.0.0.1:0\" }}]\nworkers: 2\nservers:\n{line}placements:\n  \
         free: {{ tier: pool, server: shared, database: app, login: {{ user: app, password: {SECRET} }}, \
         pooling: {pooling}, pool: {{ size: 2 }}, {posture}, context: {{ app.tenant_id: \"{{tenant}}\" }} }}\n\
         tenants:\n  t00: {{ placement: free, users: {{ app: {{ password: {password} }} }} }}\n"
    ))
}

/// Ways to set a variable, and to ask for the rows behind it: each is what is sent up to a Sync, or
/// is a Query.
fn ways(name: &str) -> Vec<Vec<Vec<u8>>> {
    let query = |sql: &str| crate::wire::query(sql);
    let extended = |sql: &str| [parse("", sql), bind("", "", &[]), execute("", 0)].concat();
    let batch = |sql: &str| [extended(sql), sync()].concat();
    let set = format!("SET {name} = 'on'");
    let quoted = name.split('.').collect::<Vec<_>>().join("\".\"");
    vec![
        vec![query(&set), query(BODIES)],
        vec![batch(&set), batch(BODIES)],
        vec![query(&format!("SET \"{quoted}\" TO 'on'")), query(BODIES)],
        vec![
            query("BEGIN"),
            query(&format!("SET LOCAL {} TO on", name.to_uppercase())),
            query(BODIES),
            query("ROLLBACK"),
        ],
        vec![
            query(&format!("SELECT set_config('{name}', 'on', false)")),
            batch(BODIES),
        ],
        vec![
            [
                extended(&format!("SELECT set_config('{name}', 'on', true)")),
                extended(BODIES),
                sync(),
            ]
            .concat(),
        ],
        vec![query(&format!("{set}; {BODIES}"))],
    ]
}

/// SQLSTATEs, and the last row.
async fn play(wire: &mut Wire, messages: &[Vec<u8>]) -> (Vec<String>, Option<String>) {
    let (mut codes, mut last) = (Vec::new(), None);
    for message in messages {
        wire.send(message).await;
        let frames = wire.until_ready().await;
        codes.extend(errors(&frames));
        last = crate::wire::rows(&frames).pop().or(last);
    }
    wire.query("ROLLBACK").await;
    wire.query("DISCARD ALL").await;
    (codes, last)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_policies_read_is_set_by_nobody_in_posture_guarded() {
    let server = server("policies").await;
    for pooling in ["transaction", "session"] {
        let open = proxy(&server, pooling, "posture: plain");
        let closed = proxy(&server, pooling, "posture: guarded");
        let mut trusted = open.raw(&tenant("t00")).await;
        let mut guarded = closed.raw(&tenant("t00")).await;
        assert_eq!(guarded.column(BODIES).await, ["1"]);
        for name in READ {
            for (n, way) in ways(name).iter().enumerate() {
                let (codes, seen) = play(&mut trusted, way).await;
                assert!(codes.is_empty(), "{pooling}, {name} {n}: {codes:?}");
                assert_eq!(seen.as_deref(), Some("2"), "{pooling}, {name} {n}");
                let (codes, seen) = play(&mut guarded, way).await;
                assert_eq!(codes[0], "42501", "{pooling}, {name} {n}");
                assert_ne!(seen.as_deref(), Some("2"), "{pooling}, {name} {n}");
            }
            let reset = format!("RESET {name}");
            assert_eq!(errors(&guarded.query(&reset).await), [""; 0], "{name}");
        }
        // Not read where rows are chosen.
        let frames = guarded.query("SET t.in_check = 'on'").await;
        assert_eq!(errors(&frames), ["42501"], "{pooling}");
        for name in ["t.in_default", "t.other", "other.in_using"] {
            let frames = guarded.query(&format!("SET {name} = 'on'")).await;
            assert_eq!(errors(&frames), [""; 0], "{pooling}: {name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_sets_none_that_policies_read() {
    let server = server("policies-login").await;
    let log_in = async |proxy: &Running, name: &str| {
        let (owner, options) = (tenant("t00"), format!("-c {name}=on"));
        let mut wire = Wire::tcp(proxy.address).await;
        let parameters = [
            ("user", &*owner.user()),
            ("database", "app"),
            ("options", &*options),
        ];
        let password = owner.password();
        match wire.log_in(&parameters, &password).await {
            Ok(_) => Ok(wire.column(BODIES).await.concat()),
            Err(error) => Err(error),
        }
    };
    for pooling in ["transaction", "session"] {
        let open = proxy(&server, pooling, "posture: plain");
        let closed = proxy(&server, pooling, "posture: guarded");
        for name in READ {
            let seen = log_in(&open, name).await;
            assert_eq!(seen.unwrap(), "2", "{pooling}: {name}");
            let error = log_in(&closed, name).await.expect_err(name);
            assert!(format!("{error:?}").contains("42501"), "{error:?}");
        }
        assert_eq!(log_in(&closed, "t.other").await.unwrap(), "1");
        let named = proxy(
            &server,
            pooling,
            "posture: guarded, user_variables: [T.Person]",
        );
        assert_eq!(log_in(&named, "t.person").await.unwrap(), "1");
        assert!(log_in(&named, "t.in_using").await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_operator_names_is_the_clients_own() {
    let server = server("policies-named").await;
    for pooling in ["transaction", "session"] {
        let unnamed = proxy(&server, pooling, "posture: guarded");
        let mut wire = unnamed.raw(&tenant("t00")).await;
        let set = "SET t.person = 'nobody'";
        assert_eq!(errors(&wire.query(set).await), ["42501"]);
        let named = proxy(
            &server,
            pooling,
            "posture: guarded, user_variables: [t.person]",
        );
        let mut wire = named.raw(&tenant("t00")).await;
        for way in ways("t.person") {
            let (codes, seen) = play(&mut wire, &way).await;
            assert!(codes.is_empty(), "{codes:?}");
            assert_eq!(seen.as_deref(), Some("1"));
        }
        wire.query(set).await;
        assert_eq!(wire.column(BODIES).await, ["0"]);
        let frames = wire.query("SET t.in_using = 'on'").await;
        assert_eq!(errors(&frames), ["42501"]);
    }
}

/// Where the server does not say what its policies read, nothing may be set that they could read.
#[tokio::test(flavor = "multi_thread")]
async fn where_policies_cannot_be_read_every_variable_counts_as_read() {
    let server = server("policies-hidden").await;
    let hide = "REVOKE SELECT ON pg_catalog.pg_policy FROM PUBLIC";
    server.run("app", hide).await.unwrap();
    let closed = proxy(
        &server,
        "transaction",
        "posture: guarded, user_variables: [t.person]",
    );
    let mut wire = closed.raw(&tenant("t00")).await;
    assert_eq!(wire.column(BODIES).await, ["1"]);
    for (name, expected) in [
        ("t.in_using", &["42501"][..]),
        ("t.other", &["42501"]),
        ("t.person", &[]),
        ("work_mem", &[]),
    ] {
        let frames = wire.query(&format!("SET {name} = '1MB'")).await;
        assert_eq!(errors(&frames), expected, "{name}");
    }
}
