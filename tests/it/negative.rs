//! Tenant A tries to be B, or to learn of B, at the door; and changes of the config that let nobody
//! see what is another's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use tokio::task::JoinSet;

use crate::harness::{
    Running, Setup, Tenant, all_tenants, assert_no_panics, eventually, in_time, parse_in, tenant,
    world,
};
use crate::wire::{
    Frame, PROTOCOL_3_0, Wire, column, errors, message, packet, query, rows, startup,
};

const INVALID_PASSWORD: &str = "28P01";
const UNKNOWN_DATABASE: &str = "3D000";
const ADMIN_SHUTDOWN: &str = "57P01";

type Pairs<'a> = &'a [(&'a str, &'a str)];

/// Logs in and says whose rows it sees.
async fn whose(proxy: &Running, pairs: Pairs<'_>, password: &str) -> Result<String, Frame> {
    let mut wire = Wire::tcp(proxy.address).await;
    if let Err(error) = wire.log_in(pairs, password).await {
        assert!(wire.rest().await.is_empty(), "closed after the error");
        return Err(error);
    }
    let seen = wire.column("SELECT DISTINCT tenant FROM items").await;
    assert_eq!(seen.len(), 1, "{seen:?}");
    Ok(seen[0].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_password_of_a_nobody_becomes_b_in_any_way_of_asking() {
    let setup = Setup {
        sections: "identify: { by: [user, database, options] }".into(),
        ..Setup::default()
    };
    let proxy = setup.start().await;
    for (a, b) in [
        ("t30", "t31"),
        ("b0", "b1"),
        ("d0", "d1"),
        ("c0", "c1"),
        ("s0", "s1"),
        ("acme", "c0"),
    ] {
        let (a, b) = (tenant(a), tenant(b));
        let option = |tenant: &Tenant| format!("-c pgtenant.tenant={}", tenant.name);
        let (to_a, to_b) = (option(&a), option(&b));
        let both = format!("{to_a} {to_b}");
        let both_reversed = format!("{to_b} {to_a}");
        let twice = format!("{}.{}", a.user(), b.name);
        let in_options = format!("-c app.tenant_id={}", b.name);
        let long_option = format!("--pgtenant.tenant={}", b.name);
        let long_upper = format!("--PGTENANT.TENANT={}", b.name);
        let spaced = format!("-cpgtenant.tenant={}", b.name);
        let tries: Vec<(&str, Vec<(&str, &str)>)> = vec![
            ("B's user", vec![("user", "app.b"), ("database", &b.name)]),
            ("B by name", vec![("user", "app"), ("database", &b.name)]),
            ("B's option", vec![("user", "app"), ("options", &to_b)]),
            (
                "user and database",
                vec![("user", "app"), ("database", &b.name), ("options", &to_b)],
            ),
            (
                "A's user, B's option",
                vec![("user", "app.A"), ("options", &to_b)],
            ),
            ("two options", vec![("user", "app"), ("options", &both)]),
            (
                "two options reversed",
                vec![("user", "app"), ("options", &both_reversed)],
            ),
            (
                "user twice suffixed",
                vec![("user", &twice), ("database", &a.database)],
            ),
            (
                "a long option",
                vec![("user", "app"), ("options", &long_option)],
            ),
            (
                "a long option in capitals",
                vec![("user", "app"), ("options", &long_upper)],
            ),
            (
                "an option without space",
                vec![("user", "app"), ("options", &spaced)],
            ),
            (
                "a parameter",
                vec![("user", "app"), ("pgtenant.tenant", &b.name)],
            ),
        ];
        let (a_user, b_user) = (a.user(), b.user());
        for (what, mut pairs) in tries {
            for pair in &mut pairs {
                match pair.1 {
                    "app.b" => pair.1 = &b_user,
                    "app.A" => pair.1 = &a_user,
                    _ => {}
                }
            }
            match whose(&proxy, &pairs, &a.password()).await {
                Err(error) => assert_eq!(
                    error.sqlstate(),
                    INVALID_PASSWORD,
                    "{what} {pairs:?}: {error}"
                ),
                Ok(seen) => panic!("{what} {pairs:?}: rows of {seen}"),
            }
        }
        // A itself, with hints that agree; and what it asks for of B is not given.
        for pairs in [
            vec![
                ("user", &*a_user),
                ("database", &*a.database),
                ("options", &*to_a),
            ],
            vec![
                ("user", "app"),
                ("database", &a.database),
                ("options", &to_a),
            ],
            vec![("user", &a_user), ("database", &a.name)],
            vec![("user", &a_user)],
        ] {
            let seen = whose(&proxy, &pairs, &a.password()).await;
            assert_eq!(seen.ok().as_ref(), Some(&a.name), "{pairs:?}");
        }
        for pairs in [
            vec![
                ("user", &*a_user),
                ("database", &*a.database),
                ("options", &*in_options),
            ],
            vec![
                ("user", &a_user),
                ("database", &a.database),
                ("app.tenant_id", &b.name),
            ],
            vec![
                ("user", &a_user),
                ("database", &a.database),
                ("App.Tenant_ID", &b.name),
            ],
        ] {
            if let Ok(seen) = whose(&proxy, &pairs, &a.password()).await {
                assert_eq!(seen, a.name, "{pairs:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_option_that_is_not_asked_for_names_nobody() {
    let proxy = Setup::default().start().await;
    let a = tenant("t30");
    let user = a.user();
    for option in ["-c pgtenant.tenant=t31", "-c pgtenant.tenant=t30"] {
        let pairs = [("user", &*user), ("database", "app"), ("options", option)];
        let error = whose(&proxy, &pairs, &a.password())
            .await
            .expect_err(option);
        assert_eq!(error.sqlstate(), INVALID_PASSWORD);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_of_another_tenant_does_not_exist_any_more_than_one_that_does_not() {
    let proxy = Setup::default().start().await;
    for (a, others) in [
        ("t30", ["t31", "bridge", "db_d0", "postgres"]),
        ("d0", ["d1", "db_d1", "bridge", "template1"]),
        ("b0", ["b1", "t_b1", "db_d0", "r_b1"]),
        ("acme", ["c0", "clinic", "bridge", "postgres"]),
    ] {
        let a = tenant(a);
        let user = a.user();
        let mut answers = Vec::new();
        for database in others
            .into_iter()
            .chain(["nonexistent", "Ünknown", "App", "APP"])
        {
            let pairs = [("user", &*user), ("database", database)];
            let error = whose(&proxy, &pairs, &a.password()).await;
            let error = error.expect_err(database);
            assert_eq!(error.sqlstate(), UNKNOWN_DATABASE, "{database}");
            let text = String::from_utf8_lossy(&error.body).into_owned();
            answers.push(text.replace(database, "X"));
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "{answers:?}");
    }
}

/// Every message of a login with a wrong password, until the connection closes; with what is random
/// or the user's own name taken out.
async fn shape(proxy: &Running, pairs: Pairs<'_>, password: &str) -> (Vec<String>, Vec<u8>) {
    let mut wire = Wire::tcp(proxy.address).await;
    let login = wire.log_in(pairs, password).await;
    login.expect_err("a wrong password");
    let mut frames = wire.greeting.clone();
    frames.append(&mut wire.rest().await);
    let mut salt = Vec::new();
    let shape = frames
        .iter()
        .map(|frame| {
            let text = String::from_utf8_lossy(&frame.body).into_owned();
            if !(frame.tag == b'R' && frame.body[3] == 11) {
                return format!("{}{}", frame.tag as char, text.replace(pairs[0].1, "USER"));
            }
            let parts: Vec<_> = text[4..].split(',').collect();
            let [nonce, its_salt, iterations] = parts[..] else {
                panic!("{text}")
            };
            salt = its_salt.as_bytes().to_vec();
            format!(
                "R nonce {} salt {} {iterations}",
                nonce.len(),
                its_salt.len()
            )
        })
        .collect();
    (shape, salt)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_an_unknown_user_and_an_unknown_tenant_look_the_same() {
    let proxy = Setup::default().start().await;
    let logins: &[Pairs<'_>] = &[
        &[("user", "app.t32"), ("database", "app")],
        &[("user", "app"), ("database", "t32")],
        &[("user", "nobody.t32"), ("database", "app")],
        &[("user", "app.nowhere"), ("database", "app")],
        &[("user", "app"), ("database", "nowhere")],
        &[("user", "app"), ("database", "db_d1")],
        &[("user", "app"), ("database", "app")],
        &[("user", "app")],
        &[("user", "postgres"), ("database", "postgres")],
        &[("user", "app.t32"), ("database", "nonexistent")],
        &[("user", "app.T32"), ("database", "app")],
        &[("user", "app.d0"), ("database", "db_d1")],
        &[("user", "."), ("database", "app")],
        &[("user", "ä.ö"), ("database", "app")],
    ];
    let mut shapes = Vec::new();
    for pairs in logins {
        let (first, salt) = shape(&proxy, pairs, "not the password").await;
        let (second, salt_again) = shape(&proxy, pairs, "nor this one").await;
        assert_eq!(first, second, "{pairs:?}");
        assert_eq!(salt, salt_again, "{pairs:?}: the salt changes");
        shapes.push(first);
    }
    for (pairs, shape) in logins.iter().zip(&shapes) {
        assert_eq!(*shape, shapes[0], "{pairs:?}");
    }
    // And an empty password is none.
    for pairs in logins {
        let (empty, _) = shape(&proxy, pairs, "").await;
        assert_eq!(empty, shapes[0], "{pairs:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_no_tenants_are_refused_and_nothing_else() {
    let proxy = Setup::default().start().await;
    let a = tenant("t33");
    let long = "t".repeat(9_000);
    for name in [
        "T33",
        "t33 ",
        " t33",
        "t33\u{200b}",
        "ｔ33",
        "t3３",
        "t33.",
        ".t33",
        "t33/..",
        "*",
        "%",
        "t33'--",
        "{tenant}",
        "t33\\",
        "t33\n",
        "",
        "t33\u{301}",
        &long,
    ] {
        for pairs in [
            vec![
                ("user", format!("app.{name}")),
                ("database", "app".to_owned()),
            ],
            vec![("user", "app".to_owned()), ("database", name.to_owned())],
        ] {
            let pairs: Vec<_> = pairs.iter().map(|(k, v)| (*k, &**v)).collect();
            let error = whose(&proxy, &pairs, &a.password()).await;
            let error = error.expect_err(name);
            assert_eq!(error.sqlstate(), INVALID_PASSWORD, "{name:?}: {error}");
        }
    }
}

/// What a startup packet that is not logged in at all is answered with.
async fn refusal(proxy: &Running, bytes: &[u8]) -> String {
    let mut wire = Wire::tcp(proxy.address).await;
    wire.send(bytes).await;
    let frames = in_time("an answer", wire.rest()).await;
    assert!(frames.iter().all(|frame| frame.tag == b'E'), "{frames:?}");
    errors(&frames).concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_startup_packet_that_can_be_read_in_two_ways_is_refused() {
    let proxy = Setup::default().start().await;
    for pairs in [
        &[("user", "app.t00"), ("user", "app.t01")][..],
        &[("user", "app"), ("database", "t00"), ("database", "t01")],
        &[
            ("user", "app.t00"),
            ("options", "-c a.b=c"),
            ("options", "-c a.b=d"),
        ],
    ] {
        assert_eq!(
            refusal(&proxy, &startup(PROTOCOL_3_0, pairs)).await,
            "08P01"
        );
    }
    // A NUL ends a name: what follows would be the next name.
    for body in [
        &b"user\0app.t00\0.t01\0\0"[..],
        b"user\0app.t00\0database\0app\0\0user\0app.t01\0\0",
        b"user\0app.t00\0",
        b"user\0app.t00",
        b"user\0app\xff\0\0",
    ] {
        assert_eq!(
            refusal(&proxy, &packet(PROTOCOL_3_0, body)).await,
            "08P01",
            "{body:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_startup_message_inside_authentication_changes_nobody() {
    let proxy = Setup::default().start().await;
    let other = startup(PROTOCOL_3_0, &[("user", "app.t35"), ("database", "app")]);
    let own = startup(PROTOCOL_3_0, &[("user", "app.t34"), ("database", "app")]);

    // In place of the first password message, or together with the first StartupMessage.
    for bytes in [
        vec![own.clone(), other.clone()],
        vec![[&own[..], &other].concat()],
    ] {
        let mut wire = Wire::tcp(proxy.address).await;
        for part in bytes {
            wire.send(&part).await;
        }
        let frames = in_time("an answer", wire.rest()).await;
        assert_eq!(errors(&frames), ["08P01"], "{frames:?}");
    }

    // Between the two password messages.
    let mut wire = Wire::tcp(proxy.address).await;
    wire.send(&own).await;
    wire.expect().await;
    let password = tenant("t34").password();
    let client = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
    let first = client.message();
    let length = u32::try_from(first.len()).expect("short").to_be_bytes();
    wire.send(&message(b'p', &[b"SCRAM-SHA-256\0", &length, first]))
        .await;
    wire.expect().await;
    wire.send(&other).await;
    let frames = in_time("an answer", wire.rest()).await;
    assert_eq!(errors(&frames), ["08P01"], "{frames:?}");

    // And afterwards, as a message: it is none.
    let mut wire = proxy.raw(&tenant("t34")).await;
    wire.send(&other).await;
    let frames = in_time("an answer", wire.rest()).await;
    assert!(rows(&frames).is_empty(), "{frames:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_before_the_login_is_over_is_not_run() {
    let proxy = Setup::default().start().await;
    let own = startup(PROTOCOL_3_0, &[("user", "app.t34"), ("database", "app")]);
    let mut wire = Wire::tcp(proxy.address).await;
    wire.send(&[own, query("SELECT body FROM items")].concat())
        .await;
    let frames = in_time("an answer", wire.rest()).await;
    assert_eq!(errors(&frames), ["08P01"]);
    assert!(rows(&frames).is_empty());
}

// ---- reloads ----

const MINE: &str = "SELECT body FROM items WHERE id < 900 ORDER BY id";

/// Clients of A and B in transactions, while the config moves them to and fro.
#[tokio::test(flavor = "multi_thread")]
async fn reloads_under_load_show_nobody_a_row_of_another() {
    const RELOADS: usize = 50;
    let world = world().await;
    // s2 is pinned to either server by turns (its rows say where they are), t36 moves between a
    // pool and one of another size and name.
    let yaml = |turn: usize| {
        let server = ["shared", "silo"][turn % 2];
        let setup = Setup {
            pool_size: 3,
            sections: "timeouts: { checkout: 60s }".into(),
            placements: "other: { tier: pool, server: shared, database: app, login: { user: app, password: secret }, \
                posture: plain, context: { app.tenant_id: \"{tenant}\", app.more: \"x\" }, pool: { size: 2 } }"
                .into(),
            about: match turn % 2 {
                0 => |name| if name == "s2" { "server: shared" } else { "" },
                _ => |name| if name == "s2" { "server: silo" } else { "" },
            },
            ..Setup::default()
        };
        let yaml = setup.yaml(world);
        assert!(yaml.contains(&format!("server: {server} }}")));
        if turn.is_multiple_of(2) {
            yaml
        } else {
            yaml.replace("t36: { placement: free", "t36: { placement: other")
        }
    };
    let proxy = Arc::new(Running::start(&yaml(0)));
    let over = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for number in 0..12 {
        let tenant = tenant(["t36", "t37", "s2", "s1"][number % 4]);
        let (proxy, over, done) = (proxy.clone(), over.clone(), done.clone());
        clients.spawn(async move {
            let mut wire = proxy.raw(&tenant).await;
            let mut rounds = 0;
            while !over.load(Ordering::Relaxed) {
                rounds += 1;
                let (seen, again) = if rounds % 2 == 0 {
                    let seen = wire.column(MINE).await;
                    (seen.clone(), seen)
                } else {
                    // Within a transaction nothing moves.
                    assert_eq!(errors(&wire.query("BEGIN").await), [""; 0]);
                    let seen = wire.column(MINE).await;
                    tokio::task::yield_now().await;
                    let again = wire.column(MINE).await;
                    assert_eq!(errors(&wire.query("COMMIT").await), [""; 0]);
                    (seen, again)
                };
                let own = |bodies: &[String]| {
                    !bodies.is_empty()
                        && bodies
                            .iter()
                            .all(|b| b.starts_with(&format!("{} item", tenant.name)))
                };
                assert!(
                    own(&seen) && own(&again),
                    "{}: {seen:?} {again:?}",
                    tenant.name
                );
                assert_eq!(seen, again, "{} moved within a transaction", tenant.name);
                done.fetch_add(1, Ordering::Relaxed);
            }
            wire
        });
    }
    for turn in 1..=RELOADS {
        let before = done.load(Ordering::Relaxed);
        proxy.reload(&yaml(turn));
        eventually("transactions go on", async || {
            if let Some(Err(error)) = clients.try_join_next() {
                std::panic::resume_unwind(error.into_panic());
            }
            done.load(Ordering::Relaxed) > before + 8
        })
        .await;
    }
    over.store(true, Ordering::Relaxed);
    for ended in clients.join_all().await {
        drop(ended);
    }
    assert_no_panics();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_of_a_tenant_that_is_removed_end_and_the_others_stay_as_they_are() {
    let world = world().await;
    for pooling in ["transaction", "session"] {
        let setup = Setup {
            pooling,
            ..Setup::default()
        };
        let proxy = Running::start(&setup.yaml(world));
        let mut gone_idle = proxy.raw(&tenant("d2")).await;
        let mut gone_busy = proxy.raw(&tenant("d2")).await;
        let mut stays = proxy.raw(&tenant("d3")).await;
        let mut pooled = proxy.raw(&tenant("t38")).await;
        gone_busy.query("BEGIN").await;
        let pid = "SELECT pg_backend_pid()";
        let pids = (stays.column(pid).await, pooled.column(pid).await);
        let logins = |name: &str| -> u64 {
            let tenants = proxy.proxy.app().seen_tenants();
            tenants
                .iter()
                .filter(|t| t.id.as_str() == name)
                .map(|t| t.metrics.logins.get())
                .sum()
        };
        assert_eq!(logins("d3"), 1);

        let left: Vec<_> = all_tenants()
            .into_iter()
            .filter(|t| t.name != "d2")
            .collect();
        let without = setup.yaml_for(world, &left);
        proxy.reload(&without);

        assert_eq!(
            errors(&in_time("it is told", gone_idle.rest()).await),
            [ADMIN_SHUTDOWN]
        );
        // A transaction that is open may finish.
        assert_eq!(gone_busy.column("SELECT 'in it'").await, ["in it"]);
        gone_busy.query("COMMIT").await;
        assert_eq!(
            errors(&in_time("it is told", gone_busy.rest()).await),
            [ADMIN_SHUTDOWN]
        );
        let pairs = [("user", "app.d2"), ("database", "db_d2")];
        let error = whose(&proxy, &pairs, &tenant("d2").password()).await;
        assert_eq!(error.expect_err("it is gone").sqlstate(), INVALID_PASSWORD);

        assert_eq!((stays.column(pid).await, pooled.column(pid).await), pids);
        assert_eq!(logins("d3"), 1);

        // Nothing of the removed one's connections is left.
        let watching = world.shared.connect("postgres").await.expect("connects");
        let own = proxy.proxy.app().instances();
        eventually("its server connections are closed", async || {
            let held: usize = own
                .values()
                .flat_map(|instance| instance.pools())
                .filter(|(pool, _)| pool.key.database == "db_d2")
                .map(|(_, counts)| counts.total)
                .sum();
            held == 0
        })
        .await;
        drop(watching);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_ends_the_clients_that_used_the_old_one() {
    let world = world().await;
    let yaml = Setup::default().yaml(world);
    let proxy = Running::start(&yaml);
    let mut old = proxy.raw(&tenant("t39")).await;
    let mut other = proxy.raw(&tenant("t40")).await;
    proxy.reload(&yaml.replace("password: t39-secret", "password: changed"));
    assert_eq!(
        errors(&in_time("it is told", old.rest()).await),
        [ADMIN_SHUTDOWN]
    );
    let pairs = [("user", "app.t39"), ("database", "app")];
    whose(&proxy, &pairs, "t39-secret")
        .await
        .expect_err("the old password");
    assert_eq!(
        whose(&proxy, &pairs, "changed").await.ok().as_deref(),
        Some("t39")
    );
    assert_eq!(other.column(MINE).await, tenant("t40").bodies());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_changes_nothing() {
    let world = world().await;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("pgtenant.yaml");
    let yaml = Setup::default().yaml(world);
    std::fs::write(&path, &yaml).expect("a file");
    let proxy = Running::with(parse_in(&yaml, dir.path()), Some(path.clone()));
    let mut client = proxy.raw(&tenant("d3")).await;
    let pid = client.column("SELECT pg_backend_pid()").await;
    let before = proxy.proxy.app().config();
    let tenants = yaml.find("tenants:").expect("tenants");
    for broken in [
        String::new(),
        yaml[..tenants].to_owned(),
        yaml[..yaml.len() - 30].to_owned(),
        yaml.replace("placement: business", "placement: busines"),
        yaml.replace("max_connections: 20", "max_connections: many"),
        format!("{yaml}\nunknown: 1\n"),
        format!("{yaml}  d3: {{ placement: free, users: {{ app: {{ password: x }} }} }}\n"),
    ] {
        std::fs::write(&path, broken).expect("a file");
        let mistakes = proxy.proxy.app().reload_file().expect_err("is broken");
        assert!(!mistakes.is_empty());
        assert!(Arc::ptr_eq(&before, &proxy.proxy.app().config()));
        assert_eq!(client.column("SELECT pg_backend_pid()").await, pid);
    }
    std::fs::write(&path, &yaml).expect("a file");
    proxy.proxy.app().reload_file().expect("is whole again");
    assert_eq!(client.column("SELECT pg_backend_pid()").await, pid);
    assert_eq!(column(&client.query(MINE).await), tenant("d3").bodies());
}
