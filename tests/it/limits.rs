//! Nobody gets more than the config gives, and everybody gets it in turn.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::harness::{Running, Setup, Tenant, all_tenants, eventually, server_line, tenant, world};
use crate::wire::{Wire, bind, column, errors, execute, parse, query, sync};

const TOO_MANY: &str = "53300";

/// A login that is to be refused.
async fn refused(proxy: &Running, tenant: &Tenant) -> String {
    let mut wire = Wire::tcp(proxy.address).await;
    let login = wire
        .log_in(
            &[("user", &tenant.user()), ("database", &tenant.database)],
            &tenant.password(),
        )
        .await;
    let error = login.expect_err("is refused");
    assert_eq!(error.field(b'V').as_deref(), Some("FATAL"));
    assert!(wire.rest().await.is_empty());
    error.sqlstate()
}

fn waiting(proxy: &Running, tenant: &str) -> u64 {
    let tenants = proxy.proxy.app().seen_tenants();
    tenants
        .iter()
        .filter(|t| t.id.as_str() == tenant)
        .map(|t| t.metrics.waiting.get())
        .sum()
}

async fn eventually_waiting(proxy: &Running, tenant: &str, clients: u64) {
    eventually("they wait", async || waiting(proxy, tenant) == clients).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_with_connections_of_their_own_never_have_more_together_than_their_server_may() {
    const LIMIT: usize = 5;
    let world = world().await;
    let setup = Setup {
        pool_size: 3,
        max_connections: LIMIT,
        sections: "timeouts: { checkout: 60s, login: 60s }".into(),
        ..Setup::default()
    };
    // Nobody else's: they are counted on the server.
    let roles = ["b4", "b5", "d4", "d5"];
    let proxy = Arc::new(Running::start(&setup.yaml(world)));
    let mut clients = JoinSet::new();
    for number in 0..24 {
        let proxy = proxy.clone();
        clients.spawn(async move {
            let tenant = tenant(roles[number % roles.len()]);
            let mut wire = proxy.raw(&tenant).await;
            for _ in 0..40 {
                let seen = wire
                    .column("SELECT body FROM items, pg_sleep(0.001) ORDER BY id")
                    .await;
                assert_eq!(seen, tenant.bodies());
            }
        });
    }
    let watching = world.shared.connect("postgres").await.expect("connects");
    let mut most = 0;
    while !clients.is_empty() {
        while let Some(ended) = clients.try_join_next() {
            if let Err(error) = ended {
                std::panic::resume_unwind(error.into_panic());
            }
        }
        let row = watching
            .query_one(
                "SELECT count(*) FROM pg_stat_activity WHERE usename IN ('r_b4', 'r_b5', 'db_d4', 'db_d5')",
                &[],
            )
            .await
            .expect("pg_stat_activity");
        most = most.max(row.get::<_, i64>(0));
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    assert_eq!(most, i64::try_from(LIMIT).expect("small"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_of_one_pool_is_given_up_for_another() {
    let world = world().await;
    let setup = Setup {
        max_connections: 1,
        ..Setup::default()
    };
    let proxy = Running::start(&setup.yaml(world));
    let mut wires = Vec::new();
    for name in ["b2", "d2", "b3", "d3"] {
        wires.push((proxy.raw(&tenant(name)).await, tenant(name)));
    }
    for _ in 0..3 {
        for (wire, tenant) in &mut wires {
            let seen = wire.column("SELECT body FROM items ORDER BY id").await;
            assert_eq!(seen, tenant.bodies());
            let instances = proxy.proxy.app().instances();
            let shared = instances.values().map(|i| i.connections()).max();
            assert_eq!(shared, Some(1));
        }
    }
}

/// A has 300 clients in line and one server connection; B has one client. B's turn comes after a
/// few of A's transactions, not after all of them.
#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_waiting_clients_of_one_tenant_do_not_stand_before_one_of_another() {
    const CROWD: usize = 300;
    // More than the transactions that a tenant may have in a row, and far fewer than the crowd's.
    const TURNS: usize = 40;
    let setup = Setup {
        pool_size: 1,
        sections: "timeouts: { checkout: 60s, login: 60s }".into(),
        ..Setup::default()
    };
    let proxy = Arc::new(setup.start().await);
    let mut holder = proxy.raw(&tenant("t10")).await;
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        crowd.push(proxy.raw(&tenant("t10")).await);
    }
    let mut single = proxy.raw(&tenant("t11")).await;
    holder.query("BEGIN").await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = JoinSet::new();
    for mut wire in crowd {
        let order = order.clone();
        tasks.spawn(async move {
            let name = wire.column("SELECT current_setting('app.tenant_id')").await;
            order.lock().expect("a lock").push(name[0].clone());
        });
    }
    eventually_waiting(&proxy, "t10", CROWD as u64).await;
    let last = order.clone();
    tasks.spawn(async move {
        let name = single
            .column("SELECT current_setting('app.tenant_id')")
            .await;
        last.lock().expect("a lock").push(name[0].clone());
    });
    eventually_waiting(&proxy, "t11", 1).await;
    holder.query("COMMIT").await;
    tasks.join_all().await;
    let order = order.lock().expect("a lock");
    assert_eq!(order.len(), CROWD + 1);
    let position = order.iter().position(|name| name == "t11");
    assert!(
        position.is_some_and(|position| position < TURNS),
        "t11 was served after {position:?} others"
    );
}

/// One tenant has transactions open on all that it can get, and its clients wait for more.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_gives_nothing_back_keeps_nobody_away() {
    // The pool is full; the server's budget is, which is less than the pool's size.
    for (pool_size, max_connections, hoard) in [(1, 20, 1), (3, 20, 3), (20, 12, 10)] {
        for pooling in ["transaction", "session"] {
            let setup = Setup {
                pool_size,
                reserve: 2,
                max_connections,
                pooling,
                sections: "timeouts: { checkout: 60s, login: 60s }".into(),
                ..Setup::default()
            };
            let proxy = Arc::new(setup.start().await);
            let mut hoarders = Vec::new();
            for _ in 0..hoard {
                let mut wire = proxy.raw(&tenant("t10")).await;
                wire.query("BEGIN").await;
                hoarders.push(wire);
            }
            let mut waiting = JoinSet::new();
            for _ in 0..3 {
                let proxy = proxy.clone();
                waiting.spawn(async move {
                    proxy.raw(&tenant("t10")).await.query("BEGIN").await;
                });
            }
            eventually_waiting(&proxy, "t10", 3).await;
            for name in ["t11", "t12", "t11"] {
                let mut victim = proxy.raw(&tenant(name)).await;
                let seen = victim
                    .column("SELECT current_setting('app.tenant_id')")
                    .await;
                assert_eq!(seen, [name]);
                drop(victim);
            }
            // When it gives back, all are served, and no more is kept than the pool's size.
            drop(hoarders);
            waiting.join_all().await;
            eventually("the pool has its size", async || {
                proxy.proxy.app().connections() <= pool_size
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waited_too_long_is_told_so_and_stays() {
    for pooling in ["transaction", "session"] {
        let setup = Setup {
            pool_size: 1,
            pooling,
            sections: "timeouts: { checkout: 200ms, login: 60s }".into(),
            ..Setup::default()
        };
        let proxy = setup.start().await;
        if pooling == "session" {
            // A client has its server connection from the start, or is refused there.
            let holder = proxy.raw(&tenant("t12")).await;
            assert_eq!(refused(&proxy, &tenant("t13")).await, TOO_MANY);
            drop(holder);
            let mut served = proxy.raw(&tenant("t13")).await;
            assert_eq!(served.column("SELECT 'served'").await, ["served"]);
            continue;
        }
        let mut waiter = proxy.raw(&tenant("t13")).await;
        let mut holder = proxy.raw(&tenant("t12")).await;
        holder.query("BEGIN").await;
        assert_eq!(errors(&waiter.query("SELECT 1").await), [TOO_MANY]);
        // A batch is answered once, at its Sync, and what follows is in step.
        let batch = [
            parse("", "SELECT 1"),
            bind("", "", &[]),
            execute("", 0),
            sync(),
        ]
        .concat();
        waiter.send(&batch).await;
        let frames = waiter.until_ready().await;
        assert_eq!(errors(&frames), [TOO_MANY]);
        assert_eq!(frames.len(), 2, "{frames:?}");
        assert_eq!(frames[0].field(b'V').as_deref(), Some("ERROR"));
        drop(holder);
        assert_eq!(waiter.column("SELECT 'served'").await, ["served"]);
        assert_eq!(proxy.proxy.app().connections(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_over_the_limit_of_their_tenant_are_refused_until_one_leaves() {
    let setup = Setup {
        about: |name| match name {
            "t14" => "limits: { clients: 2 }",
            _ => "",
        },
        ..Setup::default()
    };
    let proxy = setup.start().await;
    let first = proxy.raw(&tenant("t14")).await;
    let mut second = proxy.raw(&tenant("t14")).await;
    assert_eq!(refused(&proxy, &tenant("t14")).await, TOO_MANY);
    assert_eq!(second.column("SELECT 1").await, ["1"]);
    let mut other = proxy.raw(&tenant("t15")).await;
    assert_eq!(other.column("SELECT 1").await, ["1"]);
    drop(first);
    eventually("the first is gone", async || {
        let tenants = proxy.proxy.app().seen_tenants();
        tenants
            .iter()
            .any(|t| t.id.as_str() == "t14" && t.clients() == 1)
    })
    .await;
    let mut third = proxy.raw(&tenant("t14")).await;
    assert_eq!(third.column("SELECT 1").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_over_the_limit_of_their_placement_are_refused() {
    let world = world().await;
    let yaml = Setup::default()
        .yaml(world)
        .replace("clinic: { tier", "clinic: { limits: { clients: 2 }, tier");
    let proxy = Running::start(&yaml);
    let _first = proxy.raw(&tenant("c0")).await;
    let second = proxy.raw(&tenant("c1")).await;
    assert_eq!(refused(&proxy, &tenant("c0")).await, TOO_MANY);
    assert_eq!(refused(&proxy, &tenant("c1")).await, TOO_MANY);
    let _elsewhere = proxy.raw(&tenant("t00")).await;
    drop(second);
    let clinic = tenant("c0");
    eventually("there is room again", async || {
        let mut wire = Wire::tcp(proxy.address).await;
        let login = [("user", "app.c0"), ("database", "clinic")];
        wire.log_in(&login, &clinic.password()).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_over_the_limit_of_their_server_are_refused() {
    let world = world().await;
    let line = server_line("silo", &world.silo, 20);
    let limited = line.replace(" }\n", ", limits: { clients: 2 } }\n");
    let yaml = Setup::default().yaml(world).replace(&line, &limited);
    assert!(yaml.contains(&limited));
    let proxy = Running::start(&yaml);
    let _first = proxy.raw(&tenant("c0")).await;
    let second = proxy.raw(&tenant("s1")).await;
    for name in ["c0", "c1", "s1"] {
        assert_eq!(refused(&proxy, &tenant(name)).await, TOO_MANY);
    }
    let _elsewhere = proxy.raw(&tenant("t00")).await;
    drop(second);
    eventually("there is room again", async || {
        let mut wire = Wire::tcp(proxy.address).await;
        let login = [("user", "app.c1"), ("database", "clinic")];
        wire.log_in(&login, &tenant("c1").password()).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_clients_wait_as_the_proxy_the_server_the_placement_and_the_tenant_allow() {
    const LIMIT: &str = "limits: { waiting: 2 }";
    let world = world().await;
    // Who waits with t00, and who waits elsewhere.
    for (level, beside, elsewhere) in [
        ("tenant", "t00", Some("t01")),
        ("placement", "t01", Some("b2")),
        ("server", "b2", Some("c0")),
        ("proxy", "c0", None),
    ] {
        let setup = Setup {
            pool_size: 1,
            sections: match level {
                "proxy" => format!("timeouts: {{ checkout: 60s, login: 60s }}\n{LIMIT}"),
                _ => "timeouts: { checkout: 60s, login: 60s }".to_owned(),
            },
            ..Setup::default()
        };
        let yaml = setup.yaml(world);
        let yaml = match level {
            "tenant" => yaml.replace("t00: { ", &format!("t00: {{ {LIMIT}, ")),
            "placement" => yaml.replace("free: { ", &format!("free: {{ {LIMIT}, ")),
            "server" => yaml.replace("shared: { ", &format!("shared: {{ {LIMIT}, ")),
            _ => yaml,
        };
        assert!(yaml.contains(LIMIT));
        let proxy = Running::start(&yaml);
        // One holds the only connection of each pool, and others are logged in to wait for it.
        let mut holders = Vec::new();
        let mut waiters = Vec::new();
        for name in ["t00", beside, "t00"] {
            waiters.push(proxy.raw(&tenant(name)).await);
        }
        let mut free = match elsewhere {
            Some(name) => Some(proxy.raw(&tenant(name)).await),
            None => None,
        };
        for name in ["t02", "b2", "c1"] {
            let mut wire = proxy.raw(&tenant(name)).await;
            wire.query("BEGIN").await;
            holders.push(wire);
        }
        let mut refused = waiters.pop().expect("three");
        for wire in &mut waiters {
            wire.send(&query("SELECT 'served'")).await;
        }
        eventually("two wait", async || {
            let tenants = proxy.proxy.app().seen_tenants();
            tenants.iter().map(|t| t.metrics.waiting.get()).sum::<u64>() == 2
        })
        .await;
        assert_eq!(
            errors(&refused.query("SELECT 1").await),
            [TOO_MANY],
            "{level}"
        );
        if let Some(free) = &mut free {
            free.send(&query("SELECT 'served'")).await;
        }
        holders.clear();
        for wire in waiters.iter_mut().chain(&mut free) {
            assert_eq!(column(&wire.until_ready().await), ["served"], "{level}");
        }
        assert_eq!(refused.column("SELECT 'served'").await, ["served"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_over_the_limit_of_the_proxy_are_refused() {
    let setup = Setup {
        sections: "limits: { clients: 3 }".into(),
        ..Setup::default()
    };
    let proxy = setup.start().await;
    let mut wires = Vec::new();
    for name in ["t16", "b2", "c1"] {
        wires.push(proxy.raw(&tenant(name)).await);
    }
    assert_eq!(refused(&proxy, &tenant("t17")).await, TOO_MANY);
    for wire in &mut wires {
        assert_eq!(wire.column("SELECT 1").await, ["1"]);
    }
    wires.pop();
    eventually("there is room again", async || {
        proxy.proxy.app().connections() == 2
    })
    .await;
    let mut fourth = proxy.raw(&tenant("t17")).await;
    assert_eq!(fourth.column("SELECT 1").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_uses_no_more_server_connections_at_once_than_it_may() {
    let setup = Setup {
        sections: "timeouts: { checkout: 60s }".into(),
        about: |name| match name {
            "t18" => "limits: { active: 2 }",
            _ => "",
        },
        ..Setup::default()
    };
    let proxy = setup.start().await;
    let mut holders = Vec::new();
    for _ in 0..2 {
        let mut wire = proxy.raw(&tenant("t18")).await;
        wire.query("BEGIN").await;
        holders.push(wire);
    }
    let mut third = proxy.raw(&tenant("t18")).await;
    third.send(&query("SELECT 'third'")).await;
    eventually_waiting(&proxy, "t18", 1).await;
    // There is room in the pool, for others.
    let mut other = proxy.raw(&tenant("t19")).await;
    assert_eq!(other.column("SELECT 'other'").await, ["other"]);
    assert_eq!(waiting(&proxy, "t18"), 1);
    holders[0].query("COMMIT").await;
    assert_eq!(column(&third.until_ready().await), ["third"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_placement_and_the_proxy_use_no_more_server_connections_at_once_than_they_may() {
    const LIMIT: &str = "limits: { active: 2 }";
    let world = world().await;
    // Who holds, who waits for them, and who is not of the level that is full.
    for (level, holders, waits, elsewhere) in [
        ("placement", ["t16", "t17"], "t18", Some("b2")),
        // On three servers.
        ("proxy", ["t16", "b2"], "c1", None),
    ] {
        let waiting_long = "timeouts: { checkout: 60s, login: 60s }";
        let setup = Setup {
            sections: match level {
                "proxy" => format!("{waiting_long}\n{LIMIT}"),
                _ => waiting_long.to_owned(),
            },
            ..Setup::default()
        };
        let mut yaml = setup.yaml(world);
        if level == "placement" {
            yaml = yaml.replace("free: { ", &format!("free: {{ {LIMIT}, "));
        }
        let proxy = Running::start(&yaml);
        let mut third = proxy.raw(&tenant(waits)).await;
        let mut fourth = proxy.raw(&tenant(waits)).await;
        let mut held = Vec::new();
        for name in holders {
            let mut wire = proxy.raw(&tenant(name)).await;
            wire.query("BEGIN").await;
            held.push(wire);
        }
        for wire in [&mut third, &mut fourth] {
            wire.send(&query("SELECT 'served'")).await;
        }
        eventually_waiting(&proxy, waits, 2).await;
        if let Some(elsewhere) = elsewhere {
            let mut other = proxy.raw(&tenant(elsewhere)).await;
            assert_eq!(other.column("SELECT 'other'").await, ["other"]);
        }
        assert_eq!(waiting(&proxy, waits), 2, "{level}");
        held[0].query("COMMIT").await;
        // The place that came free is enough for both, one after the other.
        for wire in [&mut third, &mut fourth] {
            assert_eq!(column(&wire.until_ready().await), ["served"], "{level}");
        }
        // A reload that has no limit any more serves who waits.
        held[0].query("BEGIN").await;
        third.send(&query("SELECT 'reloaded'")).await;
        eventually_waiting(&proxy, waits, 1).await;
        proxy.reload(&yaml.replace(LIMIT, "limits: { clients: 99 }"));
        assert_eq!(column(&third.until_ready().await), ["reloaded"], "{level}");
        // And one that has it again counts those who hold.
        proxy.reload(&yaml);
        third.send(&query("SELECT 'again'")).await;
        eventually_waiting(&proxy, waits, 1).await;
        drop(held);
        assert_eq!(column(&third.until_ready().await), ["again"], "{level}");
    }
}

/// Two placements may be one pool of server connections: the limit is of one of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_placement_keeps_nobody_waiting_who_shares_its_pool_in_another() {
    let world = world().await;
    let setup = Setup {
        sections: "timeouts: { checkout: 60s }".into(),
        ..Setup::default()
    };
    let yaml = setup.yaml(world);
    let line = yaml.lines().find(|line| line.starts_with("  free: { "));
    let line = line.expect("the placement");
    let limited = line.replace("free: { ", "few: { limits: { active: 1 }, ");
    let yaml = yaml.replace(line, &format!("{line}\n{limited}"));
    let yaml = yaml.replace("t18: { placement: free", "t18: { placement: few");
    let yaml = yaml.replace("t19: { placement: free", "t19: { placement: few");
    let proxy = Running::start(&yaml);
    let mut second = proxy.raw(&tenant("t19")).await;
    let mut other = proxy.raw(&tenant("t17")).await;
    let mut holder = proxy.raw(&tenant("t18")).await;
    holder.query("BEGIN").await;
    second.send(&query("SELECT 'second'")).await;
    eventually_waiting(&proxy, "t19", 1).await;
    for _ in 0..20 {
        assert_eq!(other.column("SELECT 'other'").await, ["other"]);
    }
    assert_eq!(waiting(&proxy, "t19"), 1);
    // The tenant is moved in the middle of it: then the level that it left is not full any more.
    proxy.reload(&yaml.replace("t18: { placement: few", "t18: { placement: free"));
    assert_eq!(column(&second.until_ready().await), ["second"]);
    holder.query("COMMIT").await;
}

/// One server whose clients never stop, and another with one client: both have their turns at the
/// proxy's limit.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_server_does_not_use_up_what_all_servers_may_use_together() {
    let setup = Setup {
        sections: "limits: { active: 2 }".into(),
        ..Setup::default()
    };
    let proxy = setup.start().await;
    let mut quiet = proxy.raw(&tenant("c1")).await;
    let mut busy = Vec::new();
    for at in 0..12 {
        let mut wire = proxy.raw(&tenant(["t16", "t17", "t18"][at % 3])).await;
        busy.push(tokio::spawn(async move {
            for _ in 0..200 {
                wire.query("SELECT pg_sleep(0.002)").await;
            }
        }));
    }
    let mut longest = Duration::ZERO;
    for _ in 0..30 {
        let began = Instant::now();
        assert_eq!(quiet.column("SELECT 'quiet'").await, ["quiet"]);
        longest = longest.max(began.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(longest < Duration::from_millis(500), "{longest:?}");
    for task in busy {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_health_check_takes_one_of_the_connections_and_not_one_more() {
    let world = world().await;
    let own = format!(
        "  shared: {{ host: 127.0.0.1, port: {}, sslmode: disable, max_connections: 3, admin: {{ user: postgres, password: {} }} }}\n",
        world.shared.port(),
        world.shared.superuser_password()
    );
    let setup = Setup {
        max_connections: 3,
        ..Setup::default()
    };
    let tenants: Vec<_> = all_tenants()
        .into_iter()
        .filter(|tenant| tenant.placement != "spread")
        .collect();
    let yaml = setup
        .yaml_for(world, &tenants)
        .replace(&server_line("shared", &world.shared, 3), &own);
    let proxy = Running::start(&yaml);
    let mut holders = Vec::new();
    for name in ["d2", "d3"] {
        let mut wire = proxy.raw(&tenant(name)).await;
        wire.query("BEGIN").await;
        holders.push(wire);
    }
    let instances = proxy.proxy.app().instances();
    let most = instances.values().map(|i| i.connections()).max();
    assert_eq!(most, Some(2));
    // The next one's login waits for one of them.
    let waiting = tokio::spawn({
        let address = proxy.address;
        async move {
            let mut wire = Wire::tcp(address).await;
            let login = [("user", "app.b2"), ("database", "bridge")];
            wire.log_in(&login, &tenant("b2").password())
                .await
                .expect("logs in");
            wire.column("SELECT 'served'").await
        }
    });
    eventually_waiting(&proxy, "b2", 1).await;
    holders.pop();
    assert_eq!(waiting.await.expect("ends"), ["served"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_and_one_tenant_keep_nobody_out_and_least_of_all_the_console() {
    const SILENT: usize = 40;
    let setup = Setup {
        sections: "limits: { clients: 8, logins: 5, console: 2 }\n\
                   admin: { users: { root: { password: root } } }"
            .into(),
        ..Setup::default()
    };
    let proxy = setup.start().await;
    let app = proxy.proxy.app();
    // Sockets that say nothing, and some that stop in the middle of their login: the oldest give
    // way.
    let mut silent = Vec::new();
    for number in 0..SILENT {
        let mut wire = Wire::tcp(proxy.address).await;
        if number % 2 == 0 {
            let half = crate::wire::startup(crate::wire::PROTOCOL_3_0, &[("user", "app.t19")]);
            wire.send(&half).await;
        }
        silent.push(wire);
        if number % 7 == 0 {
            let mut wire = proxy.raw(&tenant("t19")).await;
            assert_eq!(wire.column("SELECT 1").await, ["1"]);
        }
    }
    eventually("the oldest are closed", async || {
        app.places.strangers_now() <= 5 && app.connections() <= 6
    })
    .await;
    // One tenant has three quarters of the places at most.
    let mut greedy = Vec::new();
    for _ in 0..6 {
        greedy.push(proxy.raw(&tenant("t20")).await);
    }
    assert_eq!(refused(&proxy, &tenant("t20")).await, TOO_MANY);
    let mut others = vec![proxy.raw(&tenant("t21")).await];
    others.push(proxy.raw(&tenant("b2")).await);
    assert_eq!(refused(&proxy, &tenant("c1")).await, TOO_MANY);
    // The console has its own.
    let console = async || {
        let mut wire = Wire::tcp(proxy.address).await;
        let login = [("user", "root"), ("database", "pgtenant")];
        wire.log_in(&login, "root").await.map(|_| wire)
    };
    let consoles = [
        console().await.expect("logs in"),
        console().await.expect("logs in"),
    ];
    let third = console().await.err().expect("there are two places");
    assert_eq!(third.sqlstate(), TOO_MANY);
    drop(consoles);
    eventually("there is a place again", async || console().await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_has_as_many_prepared_statements_as_its_placement_allows() {
    let setup = Setup::default();
    let yaml = setup.yaml(world().await).replace(
        "context: { app.tenant_id: \"{tenant}\" }",
        "context: { app.tenant_id: \"{tenant}\" }, limits: { statements: 3, statement_memory: 8kB }",
    );
    let proxy = Running::start(&yaml);
    let tenant = tenant("t00");
    let long = format!("SELECT 1 /* {} */", "x".repeat(5000));
    for (texts, refused) in [
        (["SELECT 1"; 3], false),
        (["SELECT 1"; 3], false),
        ([&*long, "SELECT 2", "SELECT 3"], false),
        ([&*long, "SELECT 2", &*long], true),
    ] {
        let mut wire = proxy.raw(&tenant).await;
        for (number, text) in texts.into_iter().enumerate() {
            let sql = format!("{text} + {number}");
            wire.send(&[parse(&format!("s{number}"), &sql), sync()].concat())
                .await;
        }
        let frames = match refused {
            true => wire.rest().await,
            false => {
                for _ in 0..3 {
                    assert!(errors(&wire.until_ready().await).is_empty());
                }
                wire.send(&[parse("more", "SELECT 4"), sync()].concat())
                    .await;
                wire.rest().await
            }
        };
        assert_eq!(errors(&frames), ["54000"], "{frames:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_waits_for_a_server_connection_is_seen_and_told_when_it_took_too_long() {
    for pooling in crate::harness::POOLINGS {
        let setup = Setup {
            pooling,
            pool_size: 1,
            sections: "timeouts: { login: 1s, checkout: 60s }".into(),
            ..Setup::default()
        };
        let proxy = setup.start().await;
        let mut holder = proxy.raw(&tenant("t00")).await;
        holder.query("BEGIN").await;
        let address = proxy.address;
        let late = tokio::spawn(async move {
            let tenant = tenant("t01");
            let mut wire = Wire::tcp(address).await;
            let (user, password) = (tenant.user(), tenant.password());
            // What a server reports to a client with this is not known yet.
            let pairs = [
                ("user", &*user),
                ("database", &*tenant.database),
                ("DateStyle", "German"),
            ];
            let error = wire.log_in(&pairs, &password).await.expect_err("refused");
            assert!(wire.rest().await.is_empty());
            error
        });
        eventually("it is seen to wait", async || {
            let clients = proxy.proxy.app().clients();
            let mut clients = clients.iter();
            clients.any(|client| client.tenant.as_str() == "t01" && client.waiting().is_some())
        })
        .await;
        let error = late.await.expect("no panic");
        assert_eq!(error.sqlstate(), TOO_MANY, "{pooling}");
        assert_eq!(error.field(b'V').as_deref(), Some("FATAL"));
    }
}
