//! `SHOW SERVERS`.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::links;
use super::{Cell, Column, Row, View, int, row, text, tls};
use crate::backend::binding::Context;
use crate::backend::cancel::Fence;
use crate::backend::connection::ServerConnection;
use crate::backend::instance::{Instance, Pool};
use crate::client::ClientHandle;
use crate::config::{Server, ServerAddress};
use crate::id::ServerName;
use crate::timestamp::utc;

pub const COLUMNS: &[Column] = &[
    text("type"),
    text("user"),
    text("database"),
    text("replication"),
    text("state"),
    text("addr"),
    int("port"),
    text("local_addr"),
    int("local_port"),
    text("connect_time"),
    text("request_time"),
    int("wait"),
    int("wait_us"),
    int("close_needed"),
    text("ptr"),
    text("link"),
    int("remote_pid"),
    text("tls"),
    text("application_name"),
    int("prepared_statements"),
    int("id"),
    text("server"),
    text("tenant"),
    text("context"),
    int("idle_seconds"),
    text("problem"),
];

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
    replication: &'static str,
    request: Option<String>,
    close_needed: bool,
    application: String,
}

impl Line {
    /// One of which nothing else is known.
    fn of(kind: &'static str, state: &'static str) -> Self {
        Self {
            kind,
            user: Cell::Null,
            database: Cell::Null,
            state,
            since: None,
            client: None,
            pid: None,
            tls: false,
            tenant: Cell::Null,
            context: "",
            idle_seconds: None,
            problem: None,
            replication: "none",
            request: None,
            close_needed: false,
            application: String::new(),
        }
    }

    fn row(self, server: &Server) -> Row {
        let (addr, port) = match &server.address {
            ServerAddress::Tcp { host, port } => (host.clone(), Some(*port)),
            ServerAddress::Unix { path } => (path.display().to_string(), None),
        };
        row![
            self.kind,
            self.user,
            self.database,
            self.replication,
            self.state,
            addr,
            port,
            None::<String>,
            None::<u64>,
            self.since.map(utc),
            self.request,
            0_u64,
            0_u64,
            u64::from(self.close_needed),
            self.pid.map(|pid| links::to_server(&server.name, pid)),
            self.client.map_or_else(String::new, links::to_client),
            self.pid,
            tls(self.tls),
            self.application,
            None::<u64>,
            self.pid,
            server.name.as_str(),
            self.tenant,
            self.context,
            self.idle_seconds,
            self.problem,
        ]
    }
}

/// By server: its health if it is checked (type H), the logins that failed last (type L), then the
/// connections in use, then the idle ones (type S). Not listed are those that are just being made,
/// changed to another tenant or closed.
pub fn rows(view: &View) -> Vec<Row> {
    let instances = view.app.instances();
    let pools = instances.values().flat_map(|instance| instance.pools());
    let fences: Vec<_> = pools.flat_map(|(pool, _)| pool.closing()).collect();
    let closing: Closing = fences.iter().map(Arc::as_ptr).collect();
    let mut rows: BTreeMap<&ServerName, Vec<Row>> = instances
        .iter()
        .map(|(name, instance)| {
            let health = health(instance).into_iter();
            (name, health.chain(failures(view, instance)).collect())
        })
        .collect();
    for client in view.app.clients() {
        let Some(fence) = client.fence() else {
            continue;
        };
        let tenant = view.config.login(client.tenant.as_str());
        let pool = tenant.map(|tenant| &tenant.route.pool);
        let line = Line {
            user: pool.map(|pool| pool.login.user.as_str()).into(),
            database: pool.map(|pool| pool.database.as_str()).into(),
            tenant: client.tenant.as_str().into(),
            replication: links::replication(client.progress().phase),
            request: Some(since(&client)),
            application: client.application().unwrap_or_default().to_string(),
            ..used(&fence, client.id, &closing)
        };
        // A server that a reload has removed may be used to the end of a transaction.
        if let Some(rows) = rows.get_mut(&fence.server().name) {
            rows.push(line.row(fence.server()));
        }
    }
    for (name, instance) in instances.iter() {
        let mut lines = Vec::new();
        instance.for_each_idle(|pool, connection| {
            lines.push(idle(pool, connection, &closing).row(connection.server()));
        });
        rows.entry(name).or_default().extend(lines);
    }
    rows.into_values().flatten().collect()
}

/// By their addresses, the fences of connections that will be closed.
type Closing = HashSet<*const Fence>;

/// Since when a client has been seen to do what it does.
fn since(client: &ClientHandle) -> String {
    let now = SystemTime::now();
    utc(now.checked_sub(client.note_phase()).unwrap_or(now))
}

fn health(instance: &Instance) -> Option<Row> {
    let server = instance.server();
    let login = server.admin.as_ref()?;
    let report = instance.health.report();
    let line = Line {
        user: login.user.as_str().into(),
        database: server.admin_database.as_str().into(),
        since: report.since,
        problem: report.problem.clone(),
        ..Line::of("H", report.state.as_str())
    };
    Some(line.row(&server))
}

/// A row for each login by which no connection could be made last, if a tenant has it still.
fn failures(view: &View, instance: &Instance) -> Vec<Row> {
    let server = instance.server();
    let mut rows = Vec::new();
    for ((database, user), failure) in instance.failures() {
        let mut tenants = view.config.tenants.values();
        let is_wanted = tenants.any(|tenant| {
            let pool = &tenant.route.pool;
            pool.server == server.name && pool.database == database && pool.login.user == user
        });
        if !is_wanted {
            continue;
        }
        let line = Line {
            user: user.into(),
            database: database.into(),
            since: Some(failure.when),
            problem: Some(format!("{} {}", failure.error.sqlstate(), failure.error)),
            ..Line::of("L", "failed")
        };
        rows.push(line.row(&server));
    }
    rows
}

fn used(fence: &Fence, client: u64, closing: &Closing) -> Line {
    Line {
        since: Some(fence.born()),
        client: Some(client),
        pid: Some(fence.pid()),
        tls: fence.is_tls(),
        context: "bound",
        close_needed: closing.contains(&std::ptr::from_ref(fence)),
        ..Line::of("S", "active")
    }
}

fn idle(pool: &Pool, connection: &ServerConnection, closing: &Closing) -> Line {
    let idle = Instant::now().saturating_duration_since(connection.idle_since);
    Line {
        user: pool.key.login.user.as_str().into(),
        database: pool.key.database.as_str().into(),
        since: Some(connection.fence().born()),
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
        close_needed: closing.contains(&Arc::as_ptr(connection.fence())),
        ..Line::of("S", "idle")
    }
}
