//! The configurations that the proxy has: one at the beginning, others by reloads.

use std::path::Path;
use std::sync::OnceLock;

use pgtenant::auth::verifier;
use pgtenant::config::{self, Config};

use crate::client::PASSWORD;
use crate::plan::TENANTS;

pub const PROXY_PORT: u16 = 6432;
/// Of the servers.
pub const PORTS: [u16; 2] = [5001, 5002];
/// Connections that each server may have.
pub const MOST: [usize; 2] = [3, 4];

/// The placement of each tenant, by configuration. None: there is no such tenant.
const PLACES: [[Option<&str>; TENANTS]; 3] = [
    [F, F, F, F, S, S, F, W],
    [F, S, F, W, S, F, F, W],
    [F, F, S, F, None, S, W, F],
];
/// A pool that is shared, on the first server; on the second; and session pooling, on the second.
const F: Option<&str> = Some("first");
const S: Option<&str> = Some("second");
const W: Option<&str> = Some("whole");

pub fn server_number(name: &str) -> Option<usize> {
    ["s0", "s1"].iter().position(|known| *known == name)
}

/// Whether a configuration does not have all tenants.
pub fn lacks_tenants(config: usize) -> bool {
    PLACES[config].contains(&None)
}

/// Whether statements of a tenant may be run on a server.
pub fn may_live(tenant: &str, server: usize, reloaded: bool) -> bool {
    let Some(number) = tenant
        .strip_prefix('t')
        .and_then(|n| n.parse::<usize>().ok())
    else {
        return server == 0;
    };
    let _ = reloaded;
    let mut places = PLACES.iter().filter_map(|places| places[number]);
    places.any(|place| (place == "first") == (server == 0))
}

fn text(places: &[Option<&str>; TENANTS]) -> String {
    let verifier = verifier(PASSWORD, b"0123456789abcdef", 1).to_text();
    let users = format!("scram: \"{verifier}\"");
    let mut text = format!(
        "listen: [{{ address: 127.0.0.1:{PROXY_PORT} }}]
workers: 1
io_uring: false
doctor: {{ enabled: false }}
timeouts: {{ checkout: 100s, connect: 5s, revoked: 2s, login: 60s }}
servers:
  s0: {{ host: 127.0.0.1, port: {}, sslmode: disable, max_connections: {} }}
  s1: {{ host: 127.0.0.1, port: {}, sslmode: disable, max_connections: {} }}
placements:
  first: {{ tier: pool, server: s0, database: app, login: {{ user: app }}, posture: plain, context: {{ app.tenant_id: \"{{tenant}}\" }} }}
  second: {{ tier: pool, server: s1, database: app, login: {{ user: app }}, posture: plain, context: {{ app.tenant_id: \"{{tenant}}\" }} }}
  whole: {{ tier: pool, server: s1, database: whole, login: {{ user: app }}, posture: plain, pooling: session, context: {{ app.tenant_id: \"{{tenant}}\" }} }}
applications:
  web: {{ users: {{ web: {{ {users} }} }}, tenants: all, home: first, choose: {{ variables: [app.tenant_id] }} }}
tenants:
",
        PORTS[0], MOST[0], PORTS[1], MOST[1]
    );
    for (number, place) in places.iter().enumerate() {
        if let Some(place) = place {
            text.push_str(&format!(
                "  t{number}: {{ placement: {place}, users: {{ app: {{ {users} }} }} }}\n"
            ));
        }
    }
    text
}

/// All of them, read once.
pub fn all() -> &'static [Config] {
    static ALL: OnceLock<Vec<Config>> = OnceLock::new();
    ALL.get_or_init(|| {
        let read = |places| match config::load_text(&text(places), Path::new(""), &|_| None) {
            Ok(config) => config,
            Err(mistakes) => panic!("{mistakes:?}"),
        };
        PLACES.iter().map(read).collect()
    })
}
