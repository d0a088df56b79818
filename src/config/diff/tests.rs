use std::path::Path;

use super::*;
use crate::config::load_text;

const BASE: &str = "\
listen: [{ address: 127.0.0.1:6432 }]
http: { address: 127.0.0.1:9187 }
workers: 2
servers:
  a: { host: 10.0.0.1, max_connections: 10, admin: { user: root } }
  b: { host: 10.0.0.2, max_connections: 10 }
placements:
  free: { tier: pool, server: a, database: app, login: { user: app, password: x }, context: { app.t: '{tenant}' } }
  own: { tier: database, server: b, database: 'db_{tenant}', login: { user: '{tenant}' } }
tenants:
  one: { placement: free, users: { app: { password: one } } }
  two: { placement: free, users: { app: { password: two } }, limits: { clients: 5 } }
  three: { placement: own, users: { app: { password: three } } }
";

/// What changes when `from` becomes `to` in the file, as the Debug text of all that is not empty.
fn change(from: &str, to: &str) -> String {
    assert!(BASE.contains(from), "{from}");
    let load = |text: &str| load_text(text, Path::new(""), &|_| None).unwrap();
    let old = load(BASE);
    let new = load(&BASE.replace(from, to));
    let diff = diff(&old, &new);
    let is_empty = diff.is_empty();
    let Diff {
        servers_added,
        servers_removed,
        servers_changed,
        servers_resized,
        servers_admin_changed,
        servers_seal_changed,
        pools_removed,
        placements_resized,
        tenants_added,
        tenants_removed,
        tenants_moved,
        tenants_users_changed,
        tenants_limits_changed,
        listen_tls_changed,
        needs_restart,
    } = diff;
    let pools: Vec<String> = pools_removed
        .iter()
        .map(|p| format!("{}/{}/{}", p.server, p.database, p.login.user))
        .collect();
    let all = [
        ("server+", format!("{servers_added:?}")),
        ("server-", format!("{servers_removed:?}")),
        ("server changed", format!("{servers_changed:?}")),
        ("server resized", format!("{servers_resized:?}")),
        ("server admin", format!("{servers_admin_changed:?}")),
        ("server seal", format!("{servers_seal_changed:?}")),
        ("pool-", format!("{pools:?}")),
        ("placement resized", format!("{placements_resized:?}")),
        ("tenant+", format!("{tenants_added:?}")),
        ("tenant-", format!("{tenants_removed:?}")),
        ("moved", format!("{tenants_moved:?}")),
        ("users", format!("{tenants_users_changed:?}")),
        ("limits", format!("{tenants_limits_changed:?}")),
        (
            "tls",
            if listen_tls_changed {
                "yes".to_owned()
            } else {
                "[]".to_owned()
            },
        ),
        ("restart", format!("{needs_restart:?}")),
    ];
    let told: Vec<String> = all
        .iter()
        .filter(|(_, list)| list != "[]")
        .map(|(name, list)| format!("{name} {}", list.replace('"', "")))
        .collect();
    assert_eq!(is_empty, told.is_empty());
    told.join("; ")
}

#[test]
fn a_change_of_the_file_changes_what_it_must_and_nothing_else() {
    for (from, to, told) in [
        ("workers: 2", "workers: 2 ", ""),
        ("workers: 2", "workers: 3", "restart [workers]"),
        ("workers: 2", "workers: 2\nio_uring: true", ""),
        (
            "workers: 2",
            "workers: 2\nio_uring: false",
            "restart [io_uring]",
        ),
        ("workers: 2", "workers: 2\naudit: { file: audit.jsonl }", ""),
        (
            "workers: 2",
            "workers: 2\ncatalog: { server: a, database: c, login: { user: r } }",
            // Where tenants may come, a pool has its reserve.
            "placement resized [own]; restart [catalog]",
        ),
        ("127.0.0.1:6432", "127.0.0.1:6433", "restart [listen]"),
        ("127.0.0.1:9187", "127.0.0.1:9188", "restart [http]"),
        (
            "workers: 2",
            "workers: 2\nlog: { format: json }",
            "restart [log.format]",
        ),
        ("workers: 2", "workers: 2\nlog: { slow: 1s }", ""),
        ("10.0.0.1", "10.0.0.3", "server changed [a]"),
        (
            "10.0.0.2,",
            "10.0.0.2, sslmode: require,",
            "server changed [b]",
        ),
        (
            "10.0.0.2,",
            "10.0.0.2, require_auth: scram-sha-256,",
            "server changed [b]",
        ),
        (
            "10.0.0.2, max_connections: 10",
            "10.0.0.2, max_connections: 11",
            "server resized [b]",
        ),
        (
            "10.0.0.2,",
            "10.0.0.2, seal: { key: 0123456789abcdef0123456789abcdef },",
            "server seal [b]",
        ),
        ("user: root", "user: toor", "server admin [a]"),
        (
            "placements:",
            "  c: { host: c, max_connections: 1 }\nplacements:",
            "server+ [c]",
        ),
        (
            "tier: pool,",
            "tier: pool, pool: { size: 5 },",
            "placement resized [free]",
        ),
        (
            "password: x",
            "password: y",
            "pool- [a/app/app]; moved [one, two]",
        ),
        (
            "'{tenant}' } }\n  own",
            "'{tenant}.x' } }\n  own",
            "moved [one, two]",
        ),
        ("app.t:", "app.u:", "pool- [a/app/app]; moved [one, two]"),
        (
            "tier: pool,",
            "tier: pool, pooling: session,",
            "moved [one, two]",
        ),
        ("password: one", "password: eins", "users [one]"),
        (
            "limits: { clients: 5 }",
            "limits: { clients: 6 }",
            "limits [two]",
        ),
        (
            "one: { placement: free, users",
            "four: { placement: free, users",
            "tenant+ [four]; tenant- [one]",
        ),
        (
            "three: { placement: own",
            "three: { placement: free",
            "pool- [b/db_three/three]; moved [three]",
        ),
    ] {
        assert_eq!(change(from, to), told, "{from} → {to}");
    }
}

#[test]
fn another_tenant_does_not_move_those_of_its_placement() {
    let told = change(
        "  three:",
        "  six: { placement: free, users: { a: { password: b } } }\n  three:",
    );
    assert_eq!(told, "tenant+ [six]");
}
