use std::time::Duration;

use super::*;
use crate::config::{OwnTimeouts, Pooling, Rate, Rates, Tier};

const BASE: &str = "\
listen: [{ address: 127.0.0.1:6432 }]
http: { address: 127.0.0.1:9187 }
identify: { by: [user, database] }
limits: { clients: 10000 }
servers:
  s1: { host: 10.0.0.1, max_connections: 10 }
  s2: { host: 10.0.0.2, max_connections: 10 }
placements:
  free:
    { tier: pool, server: s1, database: app, login: { user: app, password: x }, context: { app.t: '{tenant}' } }
  spread:
    { tier: pool, servers: [s1, s2], database: wide, login: { user: app }, context: { app.t: '{tenant}' } }
  pro:
    { tier: schema, server: s1, database: app, schema: 't_{tenant}', login: { user: 't_{tenant}' } }
  own:
    { tier: database, server: s1, database: 'db_{tenant}', login: { user: 'db_{tenant}' } }
  box:
    { tier: instance, server: s2, database: app, login: { user: app } }
tenants:
  f1: { placement: free, users: { app: { password: f1 } } }
  f2: { placement: free, users: { app: { password: f2 } } }
  w1: { placement: spread, users: { app: { password: w1 } } }
  p1: { placement: pro, users: { app: { password: p1 } } }
  p2: { placement: pro, users: { app: { password: p2 } } }
  o1: { placement: own, users: { app: { password: o1 } } }
  o2: { placement: own, users: { app: { password: o2 } } }
  b1: { placement: box, users: { app: { password: b1 } } }
";

fn resolve(text: &str) -> Result<Config, Vec<String>> {
    let result = load_text(text, Path::new("/nonexistent"), &|_| None);
    result.map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
}

/// The base with each `from` replaced by its `to`.
fn changed(changes: &[(&str, &str)]) -> String {
    changes.iter().fold(BASE.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    })
}

fn route<'c>(config: &'c Config, tenant: &str) -> &'c crate::config::Route {
    &config.tenants[tenant].route
}

fn pairs(list: &[(String, String)]) -> Vec<(&str, &str)> {
    list.iter()
        .map(|(name, value)| (&**name, &**value))
        .collect()
}

#[test]
fn each_tier_gives_the_route_that_its_isolation_needs() {
    let config = resolve(BASE).unwrap();
    let pinned = [
        ("row_security", "on"),
        ("standard_conforming_strings", "on"),
    ];

    let free = route(&config, "f1");
    assert_eq!(
        (free.pool.server.as_str(), &*free.pool.database),
        ("s1", "app")
    );
    assert_eq!(pairs(&free.context), [("app.t", "f1")]);
    assert_eq!(
        pairs(&free.pool.startup),
        [("app.t", ""), pinned[0], pinned[1]]
    );
    assert_eq!(free.pool, route(&config, "f2").pool);
    assert!(Arc::ptr_eq(
        &free.pool.login,
        &route(&config, "f2").pool.login
    ));
    assert_eq!(
        (free.placement.tier, free.placement.tenants),
        (Tier::Pool, 2)
    );

    let pro = route(&config, "p1");
    assert_eq!(
        (pro.schema.as_deref(), &*pro.pool.login.user),
        (Some("t_p1"), "t_p1")
    );
    assert_eq!(
        pairs(&pro.pool.startup),
        [pinned[0], pinned[1], ("search_path", "t_p1")]
    );

    let own = route(&config, "o1");
    assert_eq!(
        (&*own.pool.database, &*own.pool.login.user),
        ("db_o1", "db_o1")
    );
    assert_eq!(pairs(&own.pool.startup), pinned);

    let instance = route(&config, "b1");
    assert_eq!(instance.pool.server.as_str(), "s2");
    assert_eq!(instance.pooling, Pooling::Transaction);
}

#[test]
fn a_mistake_names_its_setting_and_line() {
    for (from, to, mistake) in [
        (
            "127.0.0.1:6432",
            "localhost:6432",
            "line 1: listen[0].address: must be an IP address and a port, such as 127.0.0.1:6432 or [::1]:6432",
        ),
        (
            "127.0.0.1:6432 }",
            "127.0.0.1:6432 }, { address: 127.0.0.1:6432 }",
            "line 1: listen[1].address: is given twice, first in listen[0]",
        ),
        (
            "[{ address: 127.0.0.1:6432 }]",
            "[]",
            "line 1: listen: needs at least one address",
        ),
        (
            "address: 127.0.0.1:6432",
            "tls: { cert: c, key: k }, address: 127.0.0.1:6432",
            "line 1: listen[0].tls.cert: cannot read /nonexistent/c: No such file or directory (os error 2)",
        ),
        (
            "address: 127.0.0.1:6432",
            "tls: {}, address: 127.0.0.1:6432",
            "line 1: listen[0].tls.cert: is required",
        ),
        (
            "9187",
            "6432",
            "line 2: http.address: is also the address of listen[0]",
        ),
        (
            "{ address: 127.0.0.1:9187 }",
            "{}",
            "line 2: http.address: is required",
        ),
        (
            "http:",
            "workers: 0\nhttp:",
            "line 2: workers: must be at least 1",
        ),
        (
            "http:",
            "workers: 1025\nhttp:",
            "line 2: workers: must be at most 1024",
        ),
        (
            "http:",
            "admin: {}\nhttp:",
            "line 2: admin.users: needs at least one user",
        ),
        (
            "http:",
            "admin: { users: { a: {} } }\nhttp:",
            "line 2: admin.users.a: needs exactly one of scram and password",
        ),
        (
            "http:",
            "log: { filter: 'a=b=c' }\nhttp:",
            "line 2: log.filter: is not a log filter: error parsing level filter: expected one of \"off\", \"error\", \"warn\", \"info\", \"debug\", \"trace\", or a number 0-5",
        ),
        (
            "http:",
            "log: { filter: '' }\nhttp:",
            "line 2: log.filter: must not be empty",
        ),
        (
            "http:",
            "audit: { file: '' }\nhttp:",
            "line 2: audit.file: must not be empty",
        ),
        (
            "http:",
            "audit: { max_size: 100 }\nhttp:",
            "line 2: audit.max_size: needs a unit: 100kB, 100MB or 100GB",
        ),
        (
            "http:",
            "audit: { burst: 0 }\nhttp:",
            "line 2: audit.burst: must be at least 1",
        ),
        (
            "[user, database]",
            "[]",
            "line 3: identify.by: needs at least one of user, database, sni, options",
        ),
        (
            "[user, database]",
            "[sni]",
            "line 3: identify.sni_suffix: is required with sni in identify.by",
        ),
        (
            "[user, database]",
            "[user], sni_suffix: .db",
            "line 3: identify.sni_suffix: has no effect without sni in identify.by",
        ),
        (
            "[user, database]",
            "[sni], sni_suffix: db.example",
            "line 3: identify.sni_suffix: must be a domain with a dot before it: .db.example.com",
        ),
        (
            "[user, database]",
            "[user], user_separator: '::'",
            "line 3: identify.user_separator: must be one character",
        ),
        (
            "[user, database]",
            "[user], user_separator: '-'",
            "line 3: identify.user_separator: must not be a character that the name of a tenant may hold",
        ),
        (
            "clients: 10000",
            "clients: 0",
            "line 4: limits.clients: must be at least 1",
        ),
        (
            "s1: { host: 10.0.0.1, ",
            "s1: { ",
            "line 6: servers.s1.host: is required",
        ),
        (
            "10.0.0.1",
            "10.0.0.1:5432",
            "line 6: servers.s1.host: must be a host name, an IP address or the directory of a Unix socket, without a port",
        ),
        (
            "10.0.0.1",
            "''",
            "line 6: servers.s1.host: must be a host name, an IP address or the directory of a Unix socket, without a port",
        ),
        (
            "10.0.0.1,",
            "10.0.0.1, port: 0,",
            "line 6: servers.s1.port: must be at least 1",
        ),
        (
            "10.0.0.1,",
            "10.0.0.1, port: 65536,",
            "line 6: servers.s1.port: must be at most 65535",
        ),
        (
            "10.0.0.1,",
            "/run, sslmode: require,",
            "line 6: servers.s1.sslmode: a Unix socket has no TLS: must be disable",
        ),
        (
            "10.0.0.1,",
            "10.0.0.1, require_auth: scram,",
            "line 6: servers.s1.require_auth: has no method \"scram\": there are none, password, md5, gss, sspi, scram-sha-256",
        ),
        (
            "10.0.0.1,",
            "10.0.0.1, sslmode: require, require_auth: \"!md5\",",
            "line 6: servers.s1.require_auth: allows password, which needs sslmode verify-full, verify-ca with root_cert, or a Unix socket",
        ),
        (
            "10.0.0.1,",
            "10.0.0.1, sslmode: verify-ca, require_auth: password,",
            "line 6: servers.s1.require_auth: allows password, which needs sslmode verify-full, verify-ca with root_cert, or a Unix socket",
        ),
        (
            "limits: { clients: 10000 }",
            "limits: { clients: 10000 }\nmetrics: { tenants: 0 }",
            "line 5: metrics.tenants: must be at least 1",
        ),
        (
            "context: { app.t: '{tenant}' } }",
            "context: { app.t: '{tenant}' }, limits: { statements: 0 } }",
            "line 10: placements.free.limits.statements: must be at least 1",
        ),
        (
            "10.0.0.1,",
            "10.0.0.1, root_cert: ca,",
            "line 6: servers.s1.root_cert: cannot read /nonexistent/ca: No such file or directory (os error 2)",
        ),
        (
            "10.0.0.1, max_connections: 10",
            "10.0.0.1",
            "line 6: servers.s1.max_connections: is required",
        ),
        (
            "max_connections: 10",
            "max_connections: 0",
            "line 6: servers.s1.max_connections: must be at least 1",
        ),
        (
            "max_connections: 10",
            "max_connections: 1, admin: { user: root }",
            "line 6: servers.s1.max_connections: must be at least 2, because the admin login takes one",
        ),
        (
            "max_connections: 10",
            "max_connections: 10, admin: {}",
            "line 6: servers.s1.admin.user: is required",
        ),
        (
            "max_connections: 10",
            "max_connections: 10, admin: { user: a, password: '' }",
            "line 6: servers.s1.admin.password: must not be empty",
        ),
        (
            "s2: {",
            "s.3: { host: x, max_connections: 1 }\n  s2: {",
            "line 7: servers.s.3: the name may hold only letters, digits, '_' and '-', and not '.'",
        ),
        (
            "tier: pool, server: s1",
            "tier: pool, server: s9",
            "line 10: placements.free.server: there is no server \"s9\"",
        ),
        (
            "tier: pool, server: s1",
            "tier: pool",
            "line 9: placements.free: needs exactly one of server and servers",
        ),
        (
            "tier: pool, server: s1",
            "tier: pool, server: s1, servers: [s1]",
            "line 9: placements.free: needs exactly one of server and servers",
        ),
        (
            "tier: pool, server: s1",
            "tier: pool, server: s1, shard_map: { f1: s1 }",
            "line 10: placements.free.shard_map: has no effect without servers",
        ),
        (
            "[s1, s2]",
            "[]",
            "line 12: placements.spread.servers: needs at least one server",
        ),
        (
            "[s1, s2]",
            "[s1, s1]",
            "line 12: placements.spread.servers[1]: is given twice",
        ),
        (
            "[s1, s2]",
            "[s1, s9]",
            "line 12: placements.spread.servers[1]: there is no server \"s9\"",
        ),
        (
            "[s1, s2]",
            "[s1], shard_map: { w1: s2 }",
            "line 12: placements.spread.shard_map.w1: \"s2\" is not one of the placement's servers",
        ),
        (
            "[s1, s2]",
            "[s1], shard_map: { w9: s1 }",
            "line 12: placements.spread.shard_map.w9: there is no such tenant",
        ),
        (
            "{ tier: pool, server: s1",
            "{ server: s1",
            "line 9: placements.free.tier: is required",
        ),
        (
            "database: app, login",
            "login",
            "line 9: placements.free.database: is required",
        ),
        (
            "login: { user: app, password: x }, ",
            "",
            "line 9: placements.free.login: is required",
        ),
        (
            "{ user: app, password: x }",
            "{ password: x }",
            "line 10: placements.free.login.user: is required",
        ),
        (
            "{ user: app, password: x }",
            "{ user: app, password: x, password_file: y }",
            "line 10: placements.free.login: needs only one of password and password_file",
        ),
        (
            "{ user: app, password: x }",
            "{ user: app, password_file: y }",
            "line 10: placements.free.login.password_file: /nonexistent/y: No such file or directory (os error 2)",
        ),
        (
            "{ user: app, password: x }",
            "{ user: 'a{', password: x }",
            "line 10: placements.free.login.user: has a '{' without a '}' (a brace itself is written '{{')",
        ),
        (
            ", context: { app.t: '{tenant}' } }",
            " }",
            "line 9: placements.free.context: is required in tier pool: without it nothing tells tenants apart",
        ),
        (
            "app.t:",
            "search_path:",
            "line 10: placements.free.context.search_path: must be a variable of an application, such as app.tenant_id: names of letters, digits and '_', with a dot between them",
        ),
        (
            "app.t:",
            "app.:",
            "line 10: placements.free.context.app.: must be a variable of an application, such as app.tenant_id: names of letters, digits and '_', with a dot between them",
        ),
        (
            "app.t:",
            "App.T: x, app.t:",
            "line 10: placements.free.context.app.t: is given twice: upper and lower case are the same",
        ),
        (
            "tier: pool,",
            "tier: pool, schema: x,",
            "line 10: placements.free.schema: has no meaning in tier pool, only in tier schema",
        ),
        (
            "schema: 't_{tenant}', ",
            "",
            "line 13: placements.pro.schema: is required in tier schema",
        ),
        (
            "tier: pool,",
            "tier: pool, pool: { size: 0 },",
            "line 10: placements.free.pool.size: must be at least 1",
        ),
        (
            "tier: pool,",
            "tier: pool, limits: { clients: 0 },",
            "line 10: placements.free.limits.clients: must be at least 1",
        ),
        (
            "tenants:\n",
            "tenants:\n  -t: { placement: free, users: { a: { password: b } } }\n",
            "line 20: tenants.-t: the name must begin with a letter or a digit",
        ),
        (
            "f1: { placement: free",
            "f1: { placement: fre",
            "line 20: tenants.f1.placement: there is no placement \"fre\"",
        ),
        (
            "f1: { placement: free, ",
            "f1: { ",
            "line 20: tenants.f1.placement: is required",
        ),
        (
            "users: { app: { password: f1 } }",
            "users: {}",
            "line 20: tenants.f1.users: needs at least one user",
        ),
        (
            ", users: { app: { password: f1 } }",
            "",
            "line 20: tenants.f1.users: needs at least one user",
        ),
        (
            "password: f1",
            "password: ''",
            "line 20: tenants.f1.users.app.password: must not be empty",
        ),
        (
            "password: f1",
            "password: \"a\\0b\"",
            "line 20: tenants.f1.users.app.password: must not hold a NUL",
        ),
        (
            "password: f1",
            "password: f1, scram: x",
            "line 20: tenants.f1.users.app: needs exactly one of scram and password",
        ),
        (
            "password: f1",
            "scram: md5abc",
            "line 20: tenants.f1.users.app.scram: must be a verifier, SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey> (`pgtenant hash-password` makes one)",
        ),
        (
            "app: { password: f1",
            "a.b: { password: f1",
            "line 20: tenants.f1.users.a.b: must not hold '.', which is identify.user_separator",
        ),
        (
            "app: { password: f1",
            "\"a\\0\": { password: f1",
            "line 20: tenants.f1.users.a\0: must not hold '\\0'",
        ),
        (
            "app: { password: f1",
            "'': { password: f1",
            "line 20: tenants.f1.users.: a user's name must not be empty",
        ),
        (
            "f1: { ",
            "f1: { server: s2, ",
            "line 20: tenants.f1.server: \"s2\" is not a server of placement free",
        ),
        (
            "f1: { ",
            "f1: { attributes: { tenant: x }, ",
            "line 20: tenants.f1.attributes.tenant: is the tenant's id and cannot be changed",
        ),
        (
            "f1: { ",
            "f1: { attributes: { 'a b': x }, ",
            "line 20: tenants.f1.attributes.a b: the name must be letters, digits, '_' and '-'",
        ),
        (
            "f1: { ",
            "f1: { limits: { active: 0 }, ",
            "line 20: tenants.f1.limits.active: must be at least 1",
        ),
        (
            "login: { user: 'db_{tenant}' }",
            "login: { user: 'db_{tenant}' }, pool: { size: 3, min: 4 }",
            "line 16: placements.own.pool.min: must be at most pool.size",
        ),
        (
            "login: { user: 'db_{tenant}' }",
            "login: { user: 'db_{tenant}' }, pooling: session, pool: { min: 1 }",
            "line 16: placements.own.pool.min: has no effect in session pooling without pool.reuse: connections are made for each client",
        ),
        (
            "f1: { ",
            "f1: { pool: { min: 1 }, ",
            "line 20: tenants.f1.pool.min: must be pool.min of the placement: the server connections are also those of tenant f2",
        ),
        (
            "f1: { ",
            "f1: { pool: { max: 1 }, ",
            "line 20: tenants.f1.pool.max: is limits.active of the tenant: most server connections that it uses at once",
        ),
        (
            "o1: { ",
            "o1: { limits: { active: 2 }, pool: { min: 3 }, ",
            "line 25: tenants.o1.pool.min: must be at most limits.active",
        ),
        (
            "o1: { ",
            "o1: { pooling: session, pool: { min: 3 }, ",
            "line 25: tenants.o1.pool.min: has no effect in session pooling without pool.reuse: connections are made for each client",
        ),
        (
            "o1: { ",
            "o1: { pool: { min: 20 }, ",
            "line 6: servers.s1.max_connections: must be at least 20: its pools keep 20 connections together (pool.min)",
        ),
        (
            "login: { user: 'db_{tenant}' }",
            "login: { user: 'db_{tenant}' }, limits: { active: 0 }",
            "line 16: placements.own.limits.active: must be at least 1",
        ),
        (
            "clients: 10000",
            "active: 0",
            "line 4: limits.active: must be at least 1",
        ),
        (
            "login: { user: 'db_{tenant}' }",
            "login: { user: 'db_{tenant}' }, pool: { min: 6 }",
            "line 6: servers.s1.max_connections: must be at least 12: its pools keep 12 connections together (pool.min)",
        ),
        (
            "10.0.0.1, ",
            "10.0.0.1, limits: { clients: 0 }, ",
            "line 6: servers.s1.limits.clients: must be at least 1",
        ),
        (
            "limits: { clients: 10000 }",
            "limits: { waiting: 0 }",
            "line 4: limits.waiting: must be at least 1",
        ),
        (
            "f1: { ",
            "f1: { limits: { statements_per_second: 0 }, ",
            "line 20: tenants.f1.limits.statements_per_second: must be from 1 to 10000000",
        ),
        (
            "f1: { ",
            "f1: { limits: { statements_per_second: { burst: 3 } }, ",
            "line 20: tenants.f1.limits.statements_per_second.rate: is required",
        ),
        (
            "f1: { ",
            "f1: { limits: { statements_per_second: { rate: 3, burst: 0 } }, ",
            "line 20: tenants.f1.limits.statements_per_second.burst: must be from 1 to 10000000",
        ),
        (
            "f1: { ",
            "f1: { limits: { statements_per_second: { rate: 3, bursts: 4 } }, ",
            "line 20: tenants.f1.limits.statements_per_second.bursts: unknown setting, did you mean `burst`?",
        ),
        (
            "f1: { ",
            "f1: { limits: { bytes_per_second: 100 }, ",
            "line 20: tenants.f1.limits.bytes_per_second: needs a unit: 100kB, 100MB or 100GB",
        ),
        (
            "f1: { ",
            "f1: { limits: { bytes_per_second: { rate: 1MB, burst: 8kB } }, ",
            "line 20: tenants.f1.limits.bytes_per_second.burst: must be at least 64kB",
        ),
        (
            "f1: { ",
            "f1: { limits: { bytes_per_second: [1MB] }, ",
            "line 20: tenants.f1.limits.bytes_per_second: must be a value for each second, or a mapping with `rate` and `burst`, not a list",
        ),
        (
            "limits: { clients: 10000 }",
            "limits: { statements_per_second: 99999999 }",
            "line 4: limits.statements_per_second: must be from 1 to 10000000",
        ),
        (
            "10.0.0.1, ",
            "10.0.0.1, limits: { bytes_per_second: 5kB }, ",
            "line 6: servers.s1.limits.bytes_per_second: must be at least 64kB",
        ),
        (
            "context: { app.t: '{tenant}' } }",
            "context: { app.t: '{tenant}' }, limits: { statements_per_second: fast } }",
            "line 10: placements.free.limits.statements_per_second: must be a whole number",
        ),
    ] {
        let found = resolve(&changed(&[(from, to)])).expect_err(to);
        assert_eq!(
            found.first().map(|m| &**m),
            Some(mistake),
            "{from} → {to}: {found:#?}"
        );
    }
}

#[test]
fn waits_are_those_of_the_nearest_level_that_says_any() {
    let config = resolve(&changed(&[
        (
            "limits: { clients: 10000 }",
            "timeouts: { login: 1s, checkout: 2s, connect: 3s }",
        ),
        (
            "10.0.0.1, ",
            "10.0.0.1, timeouts: { login: 11s, checkout: 12s, connect: 13s }, ",
        ),
        (
            "context: { app.t: '{tenant}' } }",
            "context: { app.t: '{tenant}' }, timeouts: { login: 21s, checkout: 22s } }",
        ),
        ("f1: { ", "f1: { timeouts: { login: 31s }, "),
    ]))
    .expect("it is valid");
    let seconds = |n| Some(Duration::from_secs(n));
    for (tenant, login, checkout, connect) in [
        ("f1", seconds(31), seconds(22), seconds(13)),
        ("f2", seconds(21), seconds(22), seconds(13)),
        ("p1", seconds(11), seconds(12), seconds(13)),
        // What is said of all clients is not copied: the console may change it.
        ("b1", None, None, None),
    ] {
        let expected = OwnTimeouts {
            login,
            checkout,
            connect,
        };
        assert_eq!(
            config.tenants[tenant].terms.own_timeouts, expected,
            "{tenant}"
        );
    }
    let [login, checkout, connect] = [1, 2, 3].map(Duration::from_secs);
    let of_all = &config.timeouts;
    assert_eq!(
        (of_all.login, of_all.checkout, of_all.connect),
        (login, checkout, connect)
    );
}

#[test]
fn rates_are_given_at_every_level_as_a_number_or_with_a_burst() {
    let config = resolve(&changed(&[
        (
            "limits: { clients: 10000 }",
            "limits: { statements_per_second: 5000 }",
        ),
        (
            "10.0.0.1, ",
            "10.0.0.1, limits: { bytes_per_second: { rate: 1MB } }, ",
        ),
        (
            "context: { app.t: '{tenant}' } }",
            "context: { app.t: '{tenant}' }, limits: { statements_per_second: { rate: 70, burst: '7' } } }",
        ),
        (
            "f1: { ",
            "f1: { limits: { bytes_per_second: { rate: 100kB, burst: 64kB } }, ",
        ),
    ]))
    .expect("it is valid");
    let rate = |per_second, burst| Some(Rate { per_second, burst });
    let statements = |statements| Rates {
        statements,
        bytes: None,
    };
    let bytes = |bytes| Rates {
        statements: None,
        bytes,
    };
    assert_eq!(config.rates, statements(rate(5000, 5000)));
    assert_eq!(config.servers["s1"].rates, bytes(rate(1 << 20, 1 << 20)));
    assert_eq!(config.servers["s2"].rates, Rates::default());
    assert_eq!(config.placements["free"].rates, statements(rate(70, 7)));
    let own = |tenant| config.tenants[tenant].terms.limits.rates;
    assert_eq!(own("f1"), bytes(rate(100 << 10, 64 << 10)));
    assert_eq!(own("f2"), Rates::default());
}

#[test]
fn what_a_template_gives_is_checked_at_the_tenant() {
    for (from, to, mistake) in [
        (
            "app.t: '{tenant}'",
            "app.t: '{tenant}', app.r: '{region}'",
            "line 20: tenants.f1: has no attribute \"region\", which placements.free.context.app.r asks for",
        ),
        (
            "app.t: '{tenant}'",
            "app.t: '{tenant}', app.r: ''",
            "line 20: tenants.f1: placements.free.context.app.r gives \"\": must not be empty",
        ),
        (
            "app.t: '{tenant}'",
            "app.t: '{tenant}', app.r: ä",
            "line 20: tenants.f1: placements.free.context.app.r gives \"ä\": must be printable ASCII",
        ),
        (
            "database: app",
            "database: ''",
            "line 20: tenants.f1: placements.free.database gives \"\": must not be empty",
        ),
        (
            "password: x",
            "password: ''",
            "line 20: tenants.f1: placements.free.login.password must not be empty",
        ),
        (
            "password: x",
            "password_file: 'x/{tenant}'",
            "line 20: tenants.f1: placements.free.login.password_file: /nonexistent/x/f1: No such file or directory (os error 2)",
        ),
        (
            "'t_{tenant}', login",
            "'pg_{tenant}', login",
            "line 23: tenants.p1: placements.pro.schema gives \"pg_p1\": must not be a schema of the system",
        ),
        (
            "'t_{tenant}', login",
            "'$user', login",
            "line 23: tenants.p1: placements.pro.schema gives \"$user\": must not be a schema of the system",
        ),
    ] {
        let found = resolve(&changed(&[(from, to)])).expect_err(to);
        assert_eq!(
            found.first().map(|m| &**m),
            Some(mistake),
            "{from} → {to}: {found:#?}"
        );
    }
    let long = "x".repeat(64);
    let found = resolve(&changed(&[(
        "'db_{tenant}', login",
        &format!("{long}, login"),
    )]));
    assert!(found.unwrap_err()[0].ends_with("must be at most 63 bytes long"));
    let long = format!("app.t: '{{tenant}}{}'", "x".repeat(1024));
    let found = resolve(&changed(&[("app.t: '{tenant}'", &long)]));
    assert!(found.unwrap_err()[0].ends_with("must be at most 1024 bytes long"));
}

#[test]
fn two_tenants_in_one_place_are_a_mistake_wherever_the_tier_keeps_them_apart() {
    for (changes, mistake) in [
        (
            &[("app.t: '{tenant}'", "app.t: x")][..],
            "line 21: tenants.f2: has the same context as tenant f1, and would see its rows \
             (is {tenant} missing in placements.free.context?)",
        ),
        (
            &[("schema: 't_{tenant}'", "schema: x")],
            "line 24: tenants.p2: has schema \"x\" in common with tenant p1 \
             (is {tenant} missing in placements.pro.schema?)",
        ),
        (
            &[("database: 'db_{tenant}'", "database: x")],
            "line 26: tenants.o2: has database \"x\" of server s1 in common with tenant o1, and \
             one of them must have it alone (is {tenant} missing in placements.own.database?)",
        ),
        (
            &[("database: 'db_{tenant}'", "database: app")],
            "line 25: tenants.o1: has database \"app\" of server s1 in common with tenant f1, and \
             one of them must have it alone (is {tenant} missing in placements.own.database?)",
        ),
        (
            &[("o2: { placement: own", "o2: { placement: box")],
            "line 27: tenants.b1: has database \"app\" of server s2 in common with tenant o2, and \
             one of them must have it alone (is {tenant} missing in placements.box.database?)",
        ),
        (
            &[
                ("o2: { placement: own", "o2: { placement: box"),
                (
                    "database: app, login: { user: app } }",
                    "database: app, login: { user: app }, context: { a.b: c } }",
                ),
            ],
            "line 27: tenants.b1: has the same context as tenant o2, and would see its rows \
             (is {tenant} missing in placements.box.context?)",
        ),
    ] {
        let found = resolve(&changed(changes)).expect_err(mistake);
        assert_eq!(found.first().map(|m| &**m), Some(mistake), "{found:#?}");
    }
    let silo = changed(&[
        ("o2: { placement: own", "o2: { placement: box"),
        (
            "database: app, login: { user: app } }",
            "database: app, login: { user: app }, context: { a.b: '{tenant}' } }",
        ),
    ]);
    assert!(resolve(&silo).is_ok());
}

#[test]
fn the_same_values_in_another_order_of_variables_are_the_same_context() {
    let found = resolve(&changed(&[
        ("app.t: '{tenant}'", "app.a: x, app.b: '{tenant}'"),
        (
            "  spread:",
            "  also:\n    { tier: pool, server: s1, database: app, login: { user: app, password: x }, context: { app.b: f1, APP.A: x } }\n  spread:",
        ),
        (
            "tenants:\n",
            "tenants:\n  again: { placement: also, users: { a: { password: b } } }\n",
        ),
    ]));
    let found = found.unwrap_err();
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(
        found[0].contains("tenants.f1: has the same context as tenant again"),
        "{found:#?}"
    );
}

#[test]
fn a_tenant_with_a_pool_of_its_own_has_its_own_minimum_of_connections() {
    let size = (
        "login: { user: 'db_{tenant}' }",
        "login: { user: 'db_{tenant}' }, pool: { size: 4, min: 1 }",
    );
    let config = resolve(&changed(&[size, ("o1: { ", "o1: { pool: { min: 3 }, ")])).unwrap();
    let minimums = ["o1", "o2"].map(|tenant| route(&config, tenant).pool_limits().min);
    assert_eq!(minimums, [3, 1]);
    let found = resolve(&changed(&[size, ("o1: { ", "o1: { pool: { min: 5 }, ")]));
    assert_eq!(
        found.unwrap_err(),
        ["line 25: tenants.o1.pool.min: must be at most pool.size of the placement"]
    );
}

#[test]
fn placements_that_share_a_pool_must_agree_on_its_size() {
    let found = resolve(&changed(&[
        (
            "  spread:",
            "  also:\n    { tier: pool, server: s1, database: app, login: { user: app, password: x }, context: { app.t: 'x{tenant}' }, pool: { size: 3 } }\n  spread:",
        ),
        ("f2: { placement: free", "f2: { placement: also"),
    ]));
    assert_eq!(
        found.unwrap_err(),
        [
            "line 12: placements.also.pool.size: must be 20 like that of placement free: they share \
          server connections, because server, database, login and variables are the same"
        ]
    );
}

#[test]
fn the_console_takes_the_name_of_its_database() {
    let tenant = ("f1: {", "pgtenant: {");
    assert!(resolve(&changed(&[tenant])).is_ok());
    let console = (
        "http:",
        "admin: { users: { root: { password: x } } }\nhttp:",
    );
    let found = resolve(&changed(&[tenant, console])).unwrap_err();
    assert_eq!(
        found,
        ["line 21: tenants.pgtenant: the name is taken by the database of the admin console"]
    );
}

#[test]
fn mistakes_in_several_sections_come_together_in_the_order_of_the_file() {
    let found = resolve(&changed(&[
        ("clients: 10000", "clients: 0"),
        ("10.0.0.2", "''"),
        ("tier: pool, server: s1", "tier: pool, server: s9"),
        ("password: o2", "password: ''"),
        ("placement: box", "placement: bux"),
    ]));
    let settings: Vec<String> = found
        .unwrap_err()
        .iter()
        .map(|mistake| mistake.split(": ").nth(1).unwrap().to_owned())
        .collect();
    assert_eq!(
        settings,
        [
            "limits.clients",
            "servers.s2.host",
            "placements.free.server",
            "tenants.o2.users.app.password",
            "tenants.b1.placement",
        ]
    );
}

#[test]
fn an_entry_with_a_mistake_is_not_reported_as_missing_too() {
    let found = resolve(&changed(&[
        (
            "s1: { host: 10.0.0.1,",
            "s1: { host: 10.0.0.1, sslmode: maybe,",
        ),
        ("tier: database", "tier: databas"),
    ]));
    assert_eq!(found.unwrap_err().len(), 2);
}

#[test]
fn a_server_is_a_host_or_the_directory_of_a_socket() {
    for (host, address) in [
        ("db_1.example.com", "db_1.example.com:5432"),
        ("'::1'", "[::1]:5432"),
        ("'[::1]'", "[::1]:5432"),
        ("/run/postgresql", "/run/postgresql/.s.PGSQL.5432"),
    ] {
        let config = resolve(&changed(&[("10.0.0.1", host)])).unwrap();
        assert_eq!(config.servers["s1"].address.to_string(), address);
    }
    let long = format!("/{}", "x".repeat(100));
    assert!(resolve(&changed(&[("10.0.0.1", &long)])).is_err());
}

#[test]
fn a_pin_comes_before_the_map_and_the_map_before_the_hash() {
    let server = |changes: &[(&str, &str)]| {
        let config = resolve(&changed(changes)).unwrap();
        route(&config, "w1").pool.server.to_string()
    };
    let hashed = server(&[]);
    let other = if hashed == "s1" { "s2" } else { "s1" };
    let map = format!("[s1, s2], shard_map: {{ w1: {other} }}");
    assert_eq!(server(&[("[s1, s2]", &map)]), other);
    let pin = format!("w1: {{ server: {hashed}, ");
    assert_eq!(server(&[("[s1, s2]", &map), ("w1: { ", &pin)]), hashed);
    assert_eq!(server(&[("[s1, s2]", "[s2, s1]")]), hashed);
}

fn servers(names: &[&str]) -> Vec<ServerName> {
    names
        .iter()
        .map(|name| ServerName::new(name).unwrap())
        .collect()
}

#[test]
fn the_server_of_a_tenant_never_changes_with_a_release() {
    let three = servers(&["eu-1", "eu-2", "eu-3"]);
    for (tenant, server) in [
        ("umbrella", "eu-3"),
        ("hooli", "eu-3"),
        ("globex", "eu-2"),
        ("initech", "eu-3"),
        ("550e8400-e29b-41d4-a716-446655440000", "eu-3"),
    ] {
        let tenant = TenantId::new(tenant).unwrap();
        let found = rendezvous(&three, &tenant).map(ServerName::as_str);
        assert_eq!(found, Some(server), "{tenant}");
    }
    assert_eq!(rendezvous(&[], &TenantId::new("x").unwrap()), None);
}

#[test]
fn a_new_server_takes_its_share_and_moves_nobody_else() {
    let old = servers(&["a", "b", "c", "d"]);
    let new = servers(&["e", "d", "c", "b", "a"]);
    let mut moved = 0;
    for i in 0..2000 {
        let tenant = TenantId::new(&format!("t{i}")).unwrap();
        let (before, after) = (rendezvous(&old, &tenant), rendezvous(&new, &tenant));
        if before != after {
            assert_eq!(after.map(ServerName::as_str), Some("e"));
            moved += 1;
        }
    }
    assert!(
        (300..500).contains(&moved),
        "one in five should move, not {moved} of 2000"
    );
}

#[test]
fn two_thousand_tenants_are_two_thousand_routes_over_few_pools() {
    let mut text = BASE.to_owned();
    for i in 0..2000 {
        let placement = if i % 2 == 0 { "free" } else { "spread" };
        text +=
            &format!("  n{i}: {{ placement: {placement}, users: {{ a: {{ password: b }} }} }}\n");
    }
    let config = resolve(&text).unwrap();
    assert_eq!(config.tenants.len(), 2008);
    let pools: HashSet<_> = config.tenants.values().map(|t| &t.route.pool).collect();
    // free, spread on two servers, two schemas, two databases, an instance.
    assert_eq!(pools.len(), 8);
    let logins: HashSet<_> = config
        .tenants
        .values()
        .map(|t| Arc::as_ptr(&t.route.pool.login))
        .collect();
    assert_eq!(logins.len(), 6);

    let broken = text.replace("password: b }", "password: '' }");
    assert_eq!(resolve(&broken).unwrap_err().len(), 2000);
}

#[test]
fn braces_from_the_environment_are_not_placeholders() {
    let text = changed(&[("password: x", "password: \"${P}-{tenant}\"")]);
    let config = load_text(&text, Path::new(""), &|_| Some("{p}".to_owned())).unwrap();
    let password = route(&config, "f1").pool.login.password.clone();
    assert_eq!(password, Some(Secret::new("{p}-f1".to_owned())));
}

#[test]
fn passwords_come_from_files_without_their_last_newline() {
    let dir = tempfile::tempdir().unwrap();
    let load = |file: &str| {
        let text = changed(&[("password: x", &format!("password_file: '{file}'"))]);
        load_text(&text, dir.path(), &|_| None)
    };
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("f1", "one\n");
    write("f2", "two\r\n");
    write("all", "{all} \n\n");
    write("empty", "\n");
    write("long", &"x".repeat(70_000));
    let password = |config: &Config, tenant| {
        route(config, tenant)
            .pool
            .login
            .password
            .as_ref()
            .unwrap()
            .expose()
            .to_owned()
    };

    let each = load("{tenant}").unwrap();
    assert_eq!(
        (password(&each, "f1"), password(&each, "f2")),
        ("one".into(), "two".into())
    );
    let all = load("all").unwrap();
    assert_eq!(password(&all, "f1"), "{all} \n");
    for (file, why) in [
        ("empty", "must not be empty"),
        ("long", "is too long for a password"),
    ] {
        let mistakes = load(file).unwrap_err();
        assert!(mistakes[0].message.ends_with(why), "{mistakes:?}");
    }
}

#[test]
fn certificates_must_load_and_fit_their_keys() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let one = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let two = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    write("one.crt", &one.cert.pem());
    write("one.key", &one.signing_key.serialize_pem());
    write("two.key", &two.signing_key.serialize_pem());
    write("text", "hello");
    let load = |cert: &str, key: &str, root: &str| {
        let tls =
            format!("tls: {{ cert: {cert}, key: {key}, required: true }}, address: 127.0.0.1:6432");
        let root = format!("10.0.0.1, root_cert: {root},");
        let text = changed(&[("address: 127.0.0.1:6432", &tls), ("10.0.0.1,", &root)]);
        load_text(&text, dir.path(), &|_| None)
    };

    let config = load("one.crt", "one.key", "one.crt").unwrap();
    let tls = config.listen[0].tls.as_ref().unwrap();
    assert!(tls.required && tls.cert_pem.starts_with(b"-----BEGIN"));
    assert_eq!(tls.cert_file, dir.path().join("one.crt"));
    assert!(config.servers["s1"].tls.root_cert_pem.is_some());

    for (cert, key, root, path) in [
        ("one.crt", "two.key", "one.crt", "listen[0].tls"),
        ("text", "one.key", "one.crt", "listen[0].tls.cert"),
        ("one.key", "one.key", "one.crt", "listen[0].tls.cert"),
        ("one.crt", "one.crt", "one.crt", "listen[0].tls.key"),
        ("one.crt", "one.key", "text", "servers.s1.root_cert"),
    ] {
        let mistakes = load(cert, key, root).unwrap_err();
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        assert_eq!(mistakes[0].path, path, "{mistakes:?}");
    }
}

fn config_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
}

#[test]
fn every_file_in_the_config_directory_loads() {
    let mut loaded = 0;
    for entry in std::fs::read_dir(config_dir()).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            load(&path).unwrap_or_else(|mistakes| panic!("{}: {mistakes:#?}", path.display()));
            loaded += 1;
        }
    }
    assert!(loaded >= 2);
}

fn reference() -> String {
    std::fs::read_to_string(config_dir().join("pgtenant.yaml")).unwrap()
}

#[test]
fn the_minimal_file_is_minimal() {
    let text = std::fs::read_to_string(config_dir().join("minimal.yaml")).unwrap();
    assert!(text.lines().count() <= 10);
}

#[test]
fn keepalives_are_what_tcp_can_keep() {
    let wrong = "tcp_keepalives: { idle: 500ms, interval: 10h, count: 0 }\n";
    assert_eq!(
        resolve(&format!("{wrong}{BASE}")).unwrap_err(),
        [
            "line 1: tcp_keepalives.idle: must be whole seconds, at most 32767s",
            "line 1: tcp_keepalives.interval: must be whole seconds, at most 32767s",
            "line 1: tcp_keepalives.count: must be at least 1",
        ]
    );
}

#[test]
fn the_defaults_are_those_that_the_reference_file_shows() {
    let text = reference();
    let load = |text: &str| load_text(text, &config_dir(), &|_| None).unwrap();
    let with_defaults_left_out: String = {
        let default_sections = [
            "listen:",
            "log:",
            "audit:",
            "usage:",
            "identify:",
            "limits:",
            "timeouts:",
        ];
        let default_lines = [
            "    port: 5432",
            "    sslmode: prefer ",
            "    require_auth: ",
            "    pooling: transaction ",
            "    pool: {",
        ];
        let mut left_out = false;
        let mut removed = 0;
        let kept: Vec<&str> = text
            .lines()
            .filter(|line| {
                if line.starts_with(|c: char| c.is_ascii_alphabetic()) {
                    left_out = default_sections
                        .iter()
                        .any(|section| line.starts_with(section));
                }
                let remove = left_out
                    || default_lines
                        .iter()
                        .any(|default| line.starts_with(default));
                removed += usize::from(remove);
                !remove
            })
            .collect();
        assert!(removed > 20, "{removed} lines");
        kept.join("\n")
    };
    // But for who says so.
    let in_force = |text: &str| Config {
        said: SaidAbove::default(),
        ..load(text)
    };
    assert_eq!(in_force(&text), in_force(&with_defaults_left_out));

    let timeouts = load(&text).timeouts;
    assert_eq!(timeouts.login, Duration::from_secs(15));
    assert_eq!(timeouts.server_lifetime, Duration::from_secs(3600));
}

#[test]
fn every_setting_that_is_commented_out_in_the_reference_file_works() {
    let dir = tempfile::tempdir().unwrap();
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    for (name, text) in [
        ("server.crt", pair.cert.pem()),
        ("server.key", pair.signing_key.serialize_pem()),
        ("ca.crt", pair.cert.pem()),
    ] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let mut settings = 0;
    let lines: Vec<String> = reference()
        .lines()
        .map(|line| {
            let Some(setting) = line.trim_start().strip_prefix("# ") else {
                return line.to_owned();
            };
            let key = setting.trim_start().split(':').next().unwrap_or_default();
            let is_key = !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            if !is_key || !setting.contains(':') || !line.starts_with(' ') {
                return line.to_owned();
            }
            settings += 1;
            line.replacen("# ", "", 1)
        })
        .collect();
    assert_eq!(settings, 37);
    let text = lines
        .join("\n")
        .replace("by: [user, database]", "by: [user, database, sni, options]")
        // A reason and an end are of a state that is not the usual one.
        .replace("state: active", "state: suspended");
    let config = load_text(&text, dir.path(), &|name| {
        Some(name.to_lowercase().repeat(2))
    })
    .unwrap();
    assert_eq!(config.identify.by_sni.as_deref(), Some(".db.example.com"));
    assert!(config.listen[0].tls.is_some());
    assert_eq!(config.audit.file, Some(dir.path().join("audit.jsonl")));
    let keepalives = TcpKeepalives {
        idle: Duration::from_secs(60),
        interval: Duration::from_secs(10),
        count: 6,
    };
    assert_eq!(config.tcp_keepalives, keepalives);
    let shared = &config.servers["shared"];
    assert_eq!(shared.tcp_keepalives, keepalives);
    assert!(shared.admin.is_some() && shared.seal.is_some() && shared.tls.root_cert_pem.is_some());
}

#[test]
fn a_file_that_is_not_text_is_a_mistake_with_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broken.yaml");
    std::fs::write(&path, b"workers: 1\nlog: \xff\n").unwrap();
    let mistakes = load(&path).unwrap_err();
    assert_eq!(
        (mistakes[0].line, &*mistakes[0].message),
        (Some(2), "is not UTF-8")
    );
}

#[test]
fn the_slow_log_of_a_tenant_is_that_of_what_is_nearest() {
    let text = "log: { slow: 1s }\n\
        servers:\n  near: { host: h, max_connections: 10, log: { slow: 2s } }\n  far: { host: i, max_connections: 10 }\n\
        placements:\n  \
        a: { tier: database, server: near, database: d, login: { user: u } }\n  \
        b: { tier: database, server: near, database: e, login: { user: u }, log: { slow: 3s } }\n  \
        c: { tier: database, server: far, database: f, login: { user: u } }\n\
        tenants:\n  \
        a: { placement: a, users: { u: { password: p } } }\n  \
        b: { placement: b, users: { u: { password: p } } }\n  \
        c: { placement: c, users: { u: { password: p } } }\n";
    let slow = |text: &str, name: &str| {
        let config = load_text(text, Path::new(""), &|_| None).unwrap();
        config.tenants[name].terms.slow
    };
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    for (name, expected) in [("a", 2), ("b", 3), ("c", 1)] {
        assert_eq!(slow(text, name), seconds(expected), "{name}");
    }
    let own = text.replace("placement: b,", "placement: b, log: { slow: 4s },");
    assert_eq!(slow(&own, "b"), seconds(4));
    let off = text.replace("placement: b,", "placement: b, log: { slow: 0 },");
    assert_eq!(slow(&off, "b"), None);
    let unset = text.replace("log: { slow: 1s }\n", "");
    assert_eq!(slow(&unset, "c"), None);
}

#[test]
fn an_empty_file_is_a_mistake() {
    for text in ["", "~", "# nothing\n"] {
        assert_eq!(resolve(text).unwrap_err(), ["the file is empty"]);
    }
}

#[test]
fn no_secret_shows_in_a_debug_print_or_a_mistake() {
    let config = load_text(BASE, Path::new(""), &|_| None).unwrap();
    let text = format!("{:?}", config.tenants["f1"].route.pool.login);
    assert_eq!(text, "Login { user: \"app\", password: Some(***) }");

    let text = changed(&[
        ("login: { user: app, password: x }", "login: hunter2"),
        ("{ password: f1 }", "hunter2"),
        ("{ password: f2 }", "{ scram: hunter2 }"),
        ("{ password: p1 }", "[hunter2]"),
    ]);
    let found = resolve(&text).unwrap_err();
    assert_eq!(found.len(), 4);
    assert!(!found.join("\n").contains("hunter2"), "{found:#?}");
}

const SEALED: [(&str, &str); 3] = [
    (
        "s1: { host: 10.0.0.1,",
        "s1: { seal: { key: 0123456789abcdef0123456789abcdef, lifetime: 1m }, host: 10.0.0.1,",
    ),
    (
        "context: { app.t: '{tenant}' } }\n  spread",
        "context: { app.t: '{tenant}' }, posture: sealed }\n  spread",
    ),
    (
        "database: wide, login: { user: app },",
        "database: wide, login: { user: app }, posture: plain,",
    ),
];

#[test]
fn a_posture_is_what_the_servers_can_seal_unless_given_and_a_sealed_route_has_a_key() {
    use crate::config::{Posture, SEALED_VARIABLE};
    assert!(Posture::Plain < Posture::Guarded && Posture::Guarded < Posture::Sealed);
    let silent = resolve(BASE).unwrap();
    assert_eq!(route(&silent, "f1").posture(), Posture::Guarded);
    assert!(route(&silent, "f1").seal.is_none());
    assert_eq!(route(&silent, "p1").posture(), Posture::Plain, "no context");

    let sealed = resolve(&changed(&SEALED)).unwrap();
    let (f1, f2) = (route(&sealed, "f1"), route(&sealed, "f2"));
    assert_eq!(f1.posture(), Posture::Sealed);
    let (one, two) = (f1.seal.clone().unwrap(), f2.seal.clone().unwrap());
    assert_eq!((&*one.tenant, &*two.tenant), ("f1", "f2"));
    assert_eq!(one.key, two.key, "one for each database");
    assert_eq!(one.lifetime, Duration::from_secs(60));
    assert!(pairs(&f1.pool.startup).contains(&(SEALED_VARIABLE, "")));
    assert_eq!(f1.pinned("PgTenant.Context"), Some(""));
    assert!(!format!("{sealed:?}").contains("0123456789abcdef0123456789abcdef"));

    let other = changed(&[SEALED[0], SEALED[2]]);
    let guarded = other.replacen(
        "context: { app.t: '{tenant}' } }",
        "context: { app.t: '{tenant}' }, posture: guarded }",
        1,
    );
    let guarded = resolve(&guarded).unwrap();
    assert_eq!(route(&guarded, "f1").posture(), Posture::Guarded);
    assert!(route(&guarded, "f1").seal.is_none());

    let silent = resolve(&other).unwrap();
    assert_eq!(route(&silent, "f1").posture(), Posture::Sealed);
    assert!(route(&silent, "f1").seal.is_some());
}

#[test]
fn mistakes_about_seals_are_found() {
    let sealed = changed(&SEALED);
    for (from, to, mistake) in [
        (
            "login: { user: app } }\ntenants",
            "login: { user: app }, posture: sealed }\ntenants",
            "has no meaning without context",
        ),
        (
            "seal: { key: 0123456789abcdef0123456789abcdef, lifetime: 1m }, ",
            "",
            "placements.free.posture: needs servers.s1.seal",
        ),
        (
            "0123456789abcdef0123456789abcdef",
            "short",
            "servers.s1.seal.key: must have at least 32 characters",
        ),
        (
            "key: 0123456789abcdef0123456789abcdef",
            "key_file: none",
            "servers.s1.seal.key_file: /nonexistent/none: No such file",
        ),
        (
            "key: 0123456789abcdef0123456789abcdef, ",
            "",
            "servers.s1.seal: needs exactly one of key and key_file",
        ),
        (
            "lifetime: 1m",
            "lifetime: 1s",
            "servers.s1.seal.lifetime: must be at least 2s",
        ),
        (
            "lifetime: 1m",
            "life: 1m",
            "servers.s1.seal.life: unknown setting",
        ),
        (
            "posture: plain, ",
            "",
            "placements.spread.posture: is required: servers.s2 has no seal",
        ),
        (
            "posture: sealed",
            "posture: open",
            "placements.free.posture: must be one of `plain`, `guarded`, `sealed`",
        ),
        (
            "posture: sealed",
            "posture: guarded, seal_tenant: x",
            "placements.free.seal_tenant: has no effect without posture: sealed",
        ),
        (
            "posture: sealed",
            "posture: sealed, seal_tenant: x",
            "tenants.f2: is \"x\" in the database like tenant f1",
        ),
        (
            "posture: sealed",
            "posture: sealed, seal_tenant: '{tenant}|'",
            "must not hold '|'",
        ),
        (
            "app.t: '{tenant}'",
            "PgTenant.context: '{tenant}'",
            "must not begin with pgtenant",
        ),
    ] {
        assert!(sealed.contains(from), "{from}");
        let mistakes = resolve(&sealed.replacen(from, to, 1)).expect_err(to);
        assert!(
            mistakes.iter().any(|found| found.contains(mistake)),
            "{to}: {mistakes:?}"
        );
    }
}

#[test]
fn who_acts_for_all_tenants_does_so_at_a_home_by_a_variable_of_its_own() {
    let with = |more: &str| {
        resolve(&format!(
            "{BASE}applications:\n  web:\n    users: {{ web: {{ password: web-secret }} }}\n    tenants: all\n    choose: {{ variables: [app.t] }}\n    {more}\n"
        ))
    };
    let config = with("home: free\n    all_tenants: { App.All: ['on'] }").unwrap();
    let web = config.applications.values().next().unwrap();
    assert_eq!(web.all_tenants["app.all"].len(), 1);
    assert!(
        config
            .placements
            .values()
            .all(|place| *place.privileged == ["app.all".into()])
    );
    for (more, mistake) in [
        (
            "all_tenants: { app.all: ['on'] }",
            "all_tenants: has no effect without home",
        ),
        (
            "home: free\n    all_tenants: { app.all: [] }",
            "app.all: needs the values",
        ),
        (
            "home: free\n    all_tenants: { App.T: ['on'] }",
            "App.T: tells tenants apart",
        ),
        (
            "home: free\n    all_tenants: { role: [admin] }",
            "role: must be a variable",
        ),
    ] {
        let mistakes = with(more).expect_err(more);
        assert!(
            mistakes.iter().any(|found| found.contains(mistake)),
            "{mistakes:?}"
        );
    }
}

#[test]
fn an_application_chooses_by_what_has_the_tenant_in_it() {
    let with = |choose: &str| {
        resolve(&format!(
            "{BASE}applications:\n  web:\n    users: {{ web: {{ password: web-secret }} }}\n    tenants: all\n    home: free\n    choose: {{ {choose} }}\n"
        ))
    };
    let config = with(
        "role: 't_{tenant}', search_path: 's_{tenant}_x', json: { Jwt.claims: /org }, functions: { App.Set: { argument: 2, scope: session } }",
    );
    let config = config.unwrap();
    let web = config.applications.values().next().unwrap();
    assert_eq!(
        web.chooses_by(),
        ["role", "search_path", "jwt.claims", "app.set()"]
    );
    assert!(web.variables.is_empty() && !web.choices.functions[0].is_local);
    for (choose, mistake) in [
        ("key: id", "choose.variables: is required"),
        (
            "role: tenant",
            "choose.role: must be a name with one {tenant}",
        ),
        (
            "role: '{tenant}{tenant}'",
            "choose.role: must be a name with one {tenant}",
        ),
        (
            "json: { work_mem: /x }",
            "json.work_mem: must be a variable",
        ),
        ("json: { a.b: x }", "json.a.b: must be a JSON pointer"),
        (
            "variables: [a.b], json: { a.b: /x }",
            "json.a.b: is one of `variables`",
        ),
        ("functions: { f: 0 }", "functions.f: must be"),
        ("functions: { 'f(': 1 }", "functions.f(: must be the name"),
        (
            "functions: { f: { argument: 1, scope: forever } }",
            "functions.f: the number of an argument",
        ),
    ] {
        let mistakes = with(choose).expect_err(choose);
        assert!(
            mistakes.iter().any(|found| found.contains(mistake)),
            "{choose}: {mistakes:?}"
        );
    }
}

#[test]
fn a_tenant_may_have_a_place_for_each_of_its_services() {
    let base = BASE.replace(
        "tenants:\n",
        "tenants:\n  corp: { placements: { core: free, records: pro }, users: { u: { password: corp-secret } }, limits: { clients: 7 } }\n",
    );
    let with = |more: &str| {
        resolve(&format!(
            "{base}applications:\n  web:\n    users: {{ web: {{ password: web-secret }} }}\n    home: free\n    choose: {{ variables: [app.t] }}\n    {more}\n"
        ))
    };
    let config = with("tenants: all\n    service: records").unwrap();
    let tenant = |id: &str| config.tenants[id].clone();
    let (core, records) = (tenant("corp:core"), tenant("corp:records"));
    assert_eq!(
        core.route.context[0].1, "corp",
        "templates have the tenant's own name"
    );
    assert_eq!(records.route.schema.as_deref(), Some("t_corp"));
    assert_eq!(
        (core.terms.limits.clients, records.name().as_str()),
        (Some(7), "corp")
    );
    let web = config.applications.values().next().unwrap();
    let chosen = |value: &str| {
        web.tenant(&config, value)
            .map(|tenant| tenant.id.to_string())
    };
    assert_eq!(chosen("corp").as_deref(), Some("corp:records"));
    assert_eq!(chosen("f1").as_deref(), Some("f1"), "it has one place");
    assert_eq!(chosen("corp:core"), None, "that is another service's");

    for (more, mistake) in [
        (
            "tenants: [corp]",
            "tenants[0]: tenant \"corp\" has services, and none of them is `service`",
        ),
        (
            "tenants: [corp]\n    service: other",
            "tenants[0]: tenant \"corp\" has services",
        ),
    ] {
        let mistakes = with(more).expect_err(more);
        assert!(
            mistakes.iter().any(|found| found.contains(mistake)),
            "{mistakes:?}"
        );
    }
    for (from, to, mistake) in [
        (
            "records: pro",
            "records: gone",
            "tenants.corp.placements.records: there is no placement",
        ),
        (
            "records: pro",
            "'a.b': pro",
            "tenants.corp.placements.a.b: the name may hold only",
        ),
        (
            "records: pro",
            "records: free",
            "has the same context as tenant corp:core",
        ),
        (
            "corp: {",
            "corp: { placement: free,",
            "tenants.corp.placement: has no meaning beside placements",
        ),
        (
            "corp: {",
            "corp: { server: s1,",
            "tenants.corp.server: has no meaning beside placements",
        ),
    ] {
        let mistakes = resolve(&base.replacen(from, to, 1)).expect_err(to);
        assert!(
            mistakes.iter().any(|found| found.contains(mistake)),
            "{to}: {mistakes:?}"
        );
    }
    let silent = format!(
        "{BASE}applications:\n  web:\n    users: {{ web: {{ password: web-secret }} }}\n    tenants: all\n    service: x\n    home: free\n    choose: {{ variables: [app.t] }}\n"
    );
    let mistakes = resolve(&silent).expect_err("no services");
    assert!(
        mistakes[0].contains("service: has no effect"),
        "{mistakes:?}"
    );
}

#[test]
fn a_schema_may_have_others_behind_it() {
    let with = |schema: &str| resolve(&BASE.replace("schema: 't_{tenant}'", schema));
    let config = with("schema: ['t_{tenant}', Public, extensions]").unwrap();
    let p1 = route(&config, "p1");
    assert_eq!(p1.schema.as_deref(), Some("t_p1"));
    let path = pairs(&p1.pool.startup);
    assert!(
        path.contains(&("search_path", "t_p1, \"Public\", extensions")),
        "{path:?}"
    );
    for (schema, mistake) in [
        (
            "schema: []",
            "placements.pro.schema: is required in tier schema",
        ),
        (
            "schema: [public, 't_{tenant}']",
            "has schema \"public\" in common with tenant p1",
        ),
        (
            "schema: ['t_{tenant}', pg_catalog]",
            "must not be a schema of the system",
        ),
        ("schema: { a: b }", "placements.pro.schema: "),
    ] {
        let mistakes = with(schema).expect_err(schema);
        assert!(
            mistakes.iter().any(|found| found.contains(mistake)),
            "{schema}: {mistakes:?}"
        );
    }
}
