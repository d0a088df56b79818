//! Warnings that name parameters: a client is told of its own, and never of those that another
//! tenant left on the server connection.

use crate::harness::{Running, Setup, direct, tenant, world};
use crate::wire::{Frame, Wire, bind, execute, function_call, parse, query, sync};

/// The database's first code in PL/pgSQL loads the language, which reserves its prefix: "plpgsql".
const LOADS: &str = "DO $$BEGIN END$$";

/// `pg_catalog.set_config(text, text, boolean)` (pg_proc.dat).
const SET_CONFIG_OID: u32 = 2078;

/// A proxy with one server connection, for one kind of pooling that shares it.
async fn proxy(pooling: &str) -> Running {
    let world = world().await;
    let yaml = Setup {
        pooling: match pooling {
            "transaction" => "transaction",
            _ => "session",
        },
        pool_size: 1,
        ..Setup::default()
    }
    .yaml(world);
    Running::start(&match pooling {
        "transaction" => yaml,
        _ => yaml.replace("pool: { size: 1,", "pool: { reuse: true, size: 1,"),
    })
}

fn prepared(sql: &str, values: &[Option<&str>]) -> Vec<u8> {
    [parse("", sql), bind("", "", values), execute("", 0), sync()].concat()
}

/// Every way in which a session gets a parameter with this name.
fn ways(name: &str) -> Vec<(&'static str, Vec<u8>)> {
    let set = format!("SET {name} = 'secret'");
    let set_config = format!("SELECT set_config('{name}', 'secret', false)");
    let set_local = format!("BEGIN; SELECT set_config('{name}', 'secret', true); ROLLBACK");
    let hidden = format!(
        "CREATE TEMP TABLE notices_hidden AS SELECT '{name}'::text AS n;
         SELECT set_config(n, 'secret', false) FROM notices_hidden; DROP TABLE notices_hidden"
    );
    let call = [Some(name), Some("secret"), Some("false")];
    vec![
        ("SET", query(&set)),
        ("SET, prepared", prepared(&set, &[])),
        ("SET LOCAL", query(&set_local)),
        ("set_config", query(&set_config)),
        (
            "set_config of a bound name",
            prepared("SELECT set_config($1, 'secret', false)", &[Some(name)]),
        ),
        ("set_config of a hidden name", query(&hidden)),
        ("a function call", function_call(SET_CONFIG_OID, &call)),
    ]
}

fn notices(frames: &[Frame]) -> Vec<String> {
    let notices = frames.iter().filter(|frame| frame.tag == b'N');
    notices.map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warning_never_names_a_parameter_of_another_tenant() {
    let long = format!("plpgsql.project_{}", "x".repeat(200_000));
    let (one, two) = (tenant("t00"), tenant("t01"));
    for pooling in ["transaction", "session, reused"] {
        let mut ways = ways("plpgsql.project_of_t01");
        ways.push((
            "a long name",
            prepared("SELECT set_config($1, 'secret', false)", &[Some(&long)]),
        ));
        // The last are given at login.
        ways.push(("the StartupMessage", query("SELECT 1")));
        for (way, message) in ways {
            let proxy = proxy(pooling).await;
            let (user, database) = (two.user(), two.database.clone());
            let mut pairs = vec![("user", &*user), ("database", &*database)];
            if way == "the StartupMessage" {
                pairs.push(("plpgsql.project_of_t01", "secret"));
            }
            let mut other = Wire::tcp(proxy.address).await;
            other.log_in(&pairs, &two.password()).await.unwrap();
            other.send(&message).await;
            let answered = other.until_ready().await;
            assert!(
                answered.iter().all(|f| f.tag != b'E'),
                "{way}: {answered:?}"
            );
            drop(other);
            let mut client = proxy.raw(&one).await;
            for sql in [LOADS, "DO $$BEGIN RAISE WARNING 'my own'; END$$"] {
                let answered = client.query(sql).await;
                let told = notices(&answered);
                let is_own = |notice: &String| notice.contains("my own");
                assert!(told.iter().all(is_own), "{pooling}, {way}: {told:?}");
                assert_eq!(told.len(), usize::from(sql != LOADS), "{pooling}, {way}");
                assert_eq!(answered.last().unwrap().tag, b'Z');
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warning_of_parameters_of_the_clients_own_is_passed() {
    let world = world().await;
    let one = tenant("t00");
    let scripts: [&[&str]; 6] = [
        &["SET plpgsql.own = 1; DO $$BEGIN END$$"],
        &["SET plpgsql.own = 1", LOADS],
        &["SET plpgsql.Own = 1", "SET \"plpgsql.second\" = 1", LOADS],
        &["BEGIN", "SET LOCAL plpgsql.own = 1", LOADS, "COMMIT"],
        &["SELECT set_config('plpgsql.own', '1', false)", LOADS],
        &["SET lc_messages = 'C'", LOADS],
    ];
    for pooling in ["transaction", "session, reused"] {
        for script in scripts {
            let is_later = script.len() == 2 || script.len() == 3;
            if pooling != "transaction" && is_later {
                // What a client of a reused connection set earlier is not noted.
                continue;
            }
            let proxy = proxy(pooling).await;
            let mut client = proxy.raw(&one).await;
            let mut direct = direct(world, &one).await;
            for sql in script {
                let expected = notices(&direct.query(sql).await);
                let told = notices(&client.query(sql).await);
                assert_eq!(told, expected, "{pooling}: {sql} of {script:?}");
            }
        }
    }
}
