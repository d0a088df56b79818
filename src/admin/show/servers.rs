//! `SHOW SERVERS`.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use super::{Cell, Column, Row, View, int, row, text, tls};
use crate::backend::cancel::Fence;
use crate::backend::connection::ServerConnection;
use crate::backend::context::Context;
use crate::backend::instance::{Instance, Pool};
use crate::config::{Server, ServerAddress};
use crate::id::ServerName;
use crate::timestamp::utc;

pub const COLUMNS: &[Column] = &[
    text("type"),
    text("user"),
    text("database"),
    text("state"),
    text("addr"),
    int("port"),
    text("connect_time"),
    text("ptr"),
    text("link"),
    int("remote_pid"),
    text("tls"),
    text("server"),
    text("tenant"),
    text("context"),
    int("idle_seconds"),
    text("problem"),
];

/// What names a server connection in `ptr`, and in `link` of `SHOW CLIENTS`.
pub fn pointer(server: &ServerName, pid: i32) -> String {
    format!("{server}/{pid}")
}

/// One row of the table.
struct Line {
    kind: &'static str,
    user: Cell,
    database: Cell,
    state: &'static str,
    since: Option<SystemTime>,
    client: Option<u64>,
    pid: Option<i32>,
    tls: bool,
    tenant: Cell,
    context: &'static str,
    idle_seconds: Option<u64>,
    problem: Option<String>,
}

impl Line {
    fn row(self, server: &Server) -> Row {
        let (addr, port) = match &server.address {
            ServerAddress::Tcp { host, port } => (host.clone(), Some(*port)),
            ServerAddress::Unix { path } => (path.display().to_string(), None),
        };
        row![
            self.kind,
            self.user,
            self.database,
            self.state,
            addr,
            port,
            self.since.map(utc),
            self.pid.map(|pid| pointer(&server.name, pid)),
            self.client
                .map_or_else(String::new, super::clients::pointer),
            self.pid,
            tls(self.tls),
            server.name.as_str(),
            self.tenant,
            self.context,
            self.idle_seconds,
            self.problem,
        ]
    }
}

/// By server: its health if it is checked, then the connections in use, then the idle ones. Not
/// listed are those that are just being made, changed to another tenant or closed.
pub fn rows(view: &View) -> Vec<Row> {
    let instances = view.app.instances();
    let mut rows: BTreeMap<&ServerName, Vec<Row>> = instances
        .iter()
        .map(|(name, instance)| (name, health(instance).into_iter().collect()))
        .collect();
    for client in view.app.clients() {
        let Some(fence) = client.fence() else {
            continue;
        };
        let tenant = view.config.tenants.get(&client.tenant);
        let pool = tenant.map(|tenant| &tenant.route.pool);
        let line = Line {
            user: pool.map(|pool| pool.login.user.as_str()).into(),
            database: pool.map(|pool| pool.database.as_str()).into(),
            tenant: client.tenant.as_str().into(),
            ..used(&fence, client.id)
        };
        // A server that a reload has removed may be used to the end of a transaction.
        if let Some(rows) = rows.get_mut(&fence.server().name) {
            rows.push(line.row(fence.server()));
        }
    }
    for (name, instance) in instances.iter() {
        let mut lines = Vec::new();
        instance.for_each_idle(|pool, connection| {
            lines.push(idle(pool, connection).row(connection.server()));
        });
        rows.entry(name).or_default().extend(lines);
    }
    rows.into_values().flatten().collect()
}

fn health(instance: &Instance) -> Option<Row> {
    let server = instance.server();
    let login = server.admin.as_ref()?;
    let report = instance.health.report();
    let line = Line {
        kind: "H",
        user: login.user.as_str().into(),
        database: server.admin_database.as_str().into(),
        state: report.state.as_str(),
        since: report.since,
        client: None,
        pid: None,
        tls: false,
        tenant: Cell::Null,
        context: "",
        idle_seconds: None,
        problem: report.problem.clone(),
    };
    Some(line.row(&server))
}

fn used(fence: &Fence, client: u64) -> Line {
    Line {
        kind: "S",
        user: Cell::Null,
        database: Cell::Null,
        state: "active",
        since: Some(fence.born()),
        client: Some(client),
        pid: Some(fence.pid()),
        tls: fence.is_tls(),
        tenant: Cell::Null,
        context: "bound",
        idle_seconds: None,
        problem: None,
    }
}

fn idle(pool: &Pool, connection: &ServerConnection) -> Line {
    let idle = Instant::now().saturating_duration_since(connection.idle_since);
    Line {
        kind: "S",
        user: pool.key.login.user.as_str().into(),
        database: pool.key.database.as_str().into(),
        state: "idle",
        since: Some(connection.fence().born()),
        client: None,
        pid: Some(connection.fence().pid()),
        tls: connection.stream.is_tls(),
        tenant: connection
            .context
            .tenant()
            .map(crate::id::TenantId::as_str)
            .into(),
        context: match connection.context {
            Context::Clean => "clean",
            Context::Bound(_) => "bound",
            Context::Unknown => "unknown",
        },
        idle_seconds: Some(idle.as_secs()),
        problem: None,
    }
}
