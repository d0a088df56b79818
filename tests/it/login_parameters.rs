//! What a StartupMessage sets: every parameter that the server has, with values that are good, bad
//! or on the edge, is answered as PostgreSQL answers it direct, by an error in the same words or by
//! what SHOW says then.

use std::collections::BTreeMap;
use std::sync::Arc;

use pgtenant::cli::hash_password::verifier;

use crate::harness::{POOLINGS, Running, Setup, Tenant, World, in_time, tenant, world};
use crate::wire::{Frame, Wire, query, rows};

/// So many logins at once.
const AT_ONCE: usize = 6;

/// A parameter and a value that a client gives at login.
type Pair = (String, String);

/// Parameters that `pg_settings` does not show.
const HIDDEN: [&str; 8] = [
    "is_superuser",
    "my_app",
    "my_app.own",
    "my-app.own",
    "role",
    "seed",
    "session_authorization",
    "no_such_parameter",
];

/// Whether a value would hinder what asks for it: by making the login wait, or by ending what is
/// asked.
fn is_in_the_way(name: &str, value: &str) -> bool {
    let is_short = matches!(value, "1" | "1.5" | "0x10" | "10ms");
    name == "post_auth_delay" || (name.ends_with("_timeout") && is_short)
}

/// Values worth trying of a parameter, as `pg_settings` describes it.
fn values(kind: &str, present: &str, bounds: [&str; 2], choices: &[String]) -> Vec<String> {
    let mut values = vec![present.to_owned(), String::new(), "gar'bage".to_owned()];
    match kind {
        "bool" => values.extend(["on", "off", "t", "2"].map(str::to_owned)),
        "enum" => {
            values.extend(choices.iter().cloned());
            values.extend(choices.first().map(|choice| choice.to_uppercase()));
        }
        "integer" | "real" => {
            for bound in bounds {
                values.push(bound.to_owned());
                if let Ok(number) = bound.parse::<i64>() {
                    values.extend([number - 1, number + 1].map(|number| number.to_string()));
                }
            }
            values.extend(["1.5", "0x10", "10kB", "10ms"].map(str::to_owned));
        }
        _ => values.extend(
            [
                "postgres",
                "pg_default",
                "pg_global, nowhere",
                "\"\"",
                "a,\"b c\",d",
                "latin1",
                "UTC",
            ]
            .map(str::to_owned),
        ),
    }
    values.sort();
    values.dedup();
    values
}

async fn pairs(world: &World) -> Vec<Pair> {
    let (client, connection) = world
        .shared
        .config("postgres")
        .connect(tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let asked = client
        .query(
            "SELECT name, vartype, setting, coalesce(min_val, ''), coalesce(max_val, ''), coalesce(enumvals, '{}')
             FROM pg_settings ORDER BY name",
            &[],
        )
        .await
        .unwrap();
    let mut pairs = Vec::new();
    for row in asked {
        let text = |at: usize| row.get::<_, Option<String>>(at).unwrap_or_default();
        let bounds = [text(3), text(4)];
        let bounds = [&*bounds[0], &*bounds[1]];
        let name = text(0);
        for value in values(&text(1), &text(2), bounds, &row.get::<_, Vec<String>>(5)) {
            pairs.push((name.clone(), value));
        }
    }
    let strings = values("string", "", ["", ""], &[]);
    for name in HIDDEN {
        let values = strings.iter().map(String::as_str);
        for value in values.chain(["app", "none", "0.5", "default"]) {
            pairs.push((name.to_owned(), value.to_owned()));
        }
    }
    pairs.retain(|(name, value)| !is_in_the_way(name, value));
    pairs
}

/// As `options` has it.
fn option((name, value): &Pair) -> String {
    let escaped = value.replace('\\', "\\\\").replace(' ', "\\ ");
    format!("-c {name}={escaped}")
}

/// What the client is told: an error, or the parameters that are reported and what SHOW says.
async fn told(mut wire: Wire, startup: &[(&str, &str)], password: &str, name: &str) -> String {
    let words = |frame: &Frame| -> String {
        let fields = *b"SCMDH";
        let fields = fields.map(|code| frame.field(code).unwrap_or_default());
        fields.join("|")
    };
    if let Err(error) = wire.log_in(startup, password).await {
        return words(&error);
    }
    let reported: BTreeMap<_, _> = wire
        .greeting
        .iter()
        .filter(|frame| frame.tag == b'S')
        .map(|frame| String::from_utf8_lossy(&frame.body).replace('\0', "="))
        .filter(|status| !status.starts_with("session_authorization="))
        .map(|status| (status, ()))
        .collect();
    let quoted: Vec<_> = name.split('.').map(|part| format!("\"{part}\"")).collect();
    let mut said = format!("{:?}", reported.into_keys().collect::<Vec<_>>());
    for _ in 0..2 {
        let show = query(&format!("SHOW {}", quoted.join(".")));
        if wire.try_send(&show).await.is_err() {
            said += " closed";
            break;
        }
        let answered = wire.until_ready().await;
        said += &format!(" {:?}", rows(&answered));
        said.extend(answered.iter().filter(|f| f.tag == b'E').map(words));
    }
    said
}

/// The answers to all pairs, in order.
async fn answers(
    pairs: &Arc<Vec<Pair>>,
    log_in: impl AsyncFn(&Pair, bool) -> String + Clone + 'static,
) -> Vec<String> {
    let local = tokio::task::LocalSet::new();
    let tasks: Vec<_> = (0..AT_ONCE)
        .map(|first| {
            let (pairs, log_in) = (pairs.clone(), log_in.clone());
            local.spawn_local(async move {
                let mut answers = Vec::new();
                for (at, pair) in pairs.iter().enumerate().skip(first).step_by(AT_ONCE) {
                    let what = format!("a login with {pair:?}");
                    answers.push((at, in_time(&what, log_in(pair, at % 3 == 0)).await));
                }
                answers
            })
        })
        .collect();
    local
        .run_until(async {
            let mut all = BTreeMap::new();
            for task in tasks {
                all.extend(task.await.unwrap());
            }
            all.into_values().collect()
        })
        .await
}

async fn direct(world: &'static World, tenant: &Tenant, pairs: &Arc<Vec<Pair>>) -> Vec<String> {
    let tenant = tenant.clone();
    answers(pairs, async move |pair: &Pair, as_option: bool| {
        let mut options = tenant.direct_options();
        let mut startup = vec![("user", &*tenant.role), ("database", &*tenant.database)];
        if as_option {
            options += &format!(" {}", option(pair));
        } else {
            startup.push((&pair.0, &pair.1));
        }
        startup.push(("options", &options));
        let wire = Wire::unix(world.home(&tenant)).await;
        told(wire, &startup, "", &pair.0).await
    })
    .await
}

async fn through(proxy: &Running, tenant: &Tenant, pairs: &Arc<Vec<Pair>>) -> Vec<String> {
    let (tenant, address) = (tenant.clone(), proxy.address);
    answers(pairs, async move |pair: &Pair, as_option: bool| {
        let user = tenant.user();
        let mut startup = vec![("user", &*user), ("database", &*tenant.database)];
        let option = option(pair);
        match as_option {
            true => startup.push(("options", &option)),
            false => startup.push((&pair.0, &pair.1)),
        }
        told(
            Wire::tcp(address).await,
            &startup,
            &tenant.password(),
            &pair.0,
        )
        .await
    })
    .await
}

/// Differences that docs/conformance.md tells of.
fn is_told(pooling: &str, (name, value): &Pair, is_refused: bool) -> bool {
    match &**name {
        // Of the server connection, as the server's TCP has it.
        name if name.starts_with("tcp_") => true,
        // It can be set by a StartupMessage only, and is refused where it would be taken.
        "ignore_system_indexes" => {
            pooling == "transaction" && ["on", "off", "t"].contains(&&**value)
        }
        // Of tablespaces, SHOW has those that are there and that the role may use.
        "temp_tablespaces" => pooling == "transaction" && !is_refused,
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_parameter_at_login_is_answered_as_direct() {
    let world = world().await;
    let one = tenant("t00");
    let pairs = Arc::new(pairs(world).await);
    let expected = direct(world, &one, &pairs).await;
    let mut others = Vec::new();
    for pooling in POOLINGS {
        let yaml = Setup {
            pooling,
            ..Setup::default()
        }
        .yaml_for(world, std::slice::from_ref(&one));
        // One round of HMAC for each login, and not 4096.
        let cheap = verifier(&one.password(), [7; 16], 1).to_text();
        let proxy = Running::start(&yaml.replace(
            &format!("password: {} }}", one.password()),
            &format!("scram: \"{cheap}\" }}"),
        ));
        let told = through(&proxy, &one, &pairs).await;
        for ((pair, told), expected) in pairs.iter().zip(told).zip(&expected) {
            let is_refused = told.starts_with("FATAL");
            if told != *expected && !is_told(pooling, pair, is_refused) {
                others.push(format!(
                    "{pooling} {pair:?}\n  direct {expected}\n  told   {told}"
                ));
            }
        }
    }
    assert!(
        others.is_empty(),
        "{} of {} differ:\n{}",
        others.len(),
        2 * pairs.len(),
        others.join("\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_date_style_at_login_is_completed_by_the_servers_and_not_by_another_clients() {
    let one = tenant("t00");
    let proxy = Setup {
        pool_size: 1,
        ..Setup::default()
    }
    .start()
    .await;
    let mut other = proxy.raw(&one).await;
    for value in ["ISO", "SQL", "DMY", "", "ISO, ISO", "German, YMD"] {
        let world = world().await;
        let (user, database) = (one.user(), one.database.clone());
        let startup = [
            ("user", &*user),
            ("database", &*database),
            ("DateStyle", value),
        ];
        let mut wire = Wire::unix(world.home(&one)).await;
        let role = [
            ("user", &*one.role),
            ("database", &*database),
            ("DateStyle", value),
        ];
        wire.log_in(&role, "").await.unwrap();
        let expected = wire.column("SHOW DateStyle").await;
        let mut client = Wire::tcp(proxy.address).await;
        other.query("SET DateStyle = 'SQL, DMY'").await;
        client.log_in(&startup, &one.password()).await.unwrap();
        let status = format!("DateStyle\0{}\0", expected[0]);
        assert!(
            client
                .greeting
                .iter()
                .any(|frame| frame.body == status.as_bytes()),
            "{value}"
        );
        for theirs in ["Postgres, YMD", "SQL, DMY", "ISO, MDY"] {
            other.query(&format!("SET DateStyle = '{theirs}'")).await;
            let told = client.column("SHOW DateStyle").await;
            assert_eq!(told, expected, "{value} after {theirs}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_is_refused_for_its_parameters_is_no_others() {
    let proxy = Setup {
        pooling: "session",
        ..Setup::default()
    }
    .start()
    .await;
    let (one, two) = (tenant("t00"), tenant("t01"));
    let (user, database) = (one.user(), one.database.clone());
    for (name, value, sqlstate) in [
        ("transaction_isolation", "serializable", "25001"),
        ("transaction_deferrable", "on", "25001"),
        ("work_mem", "x", "22023"),
        ("zero_damaged_pages", "on", "42501"),
        ("port", "1", "55P02"),
        ("no_such_parameter", "1", "42704"),
        ("client_encoding", "MULE_INTERNAL", "0A000"),
        ("role", "nobody_at_all", "22023"),
    ] {
        let startup = [("user", &*user), ("database", &*database), (name, value)];
        let mut wire = Wire::tcp(proxy.address).await;
        match wire.log_in(&startup, &one.password()).await {
            Err(refused) => assert_eq!(refused.sqlstate(), sqlstate, "{name}"),
            // Since PostgreSQL 16 these are taken, and mean nothing.
            Ok(()) => assert_eq!(sqlstate, "25001", "{name}"),
        }
        proxy.raw(&two).await;
    }
}
