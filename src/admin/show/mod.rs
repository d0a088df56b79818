//! The tables of the console. To add one: a function that makes its rows, and an entry in
//! [`SHOWS`].
//!
//! Tables that PgBouncer has, too, begin with its columns in its order (of version 1.25), for
//! exporters and scripts: what is not known here is NULL, or 0 where there is none of it. What is
//! pgtenant's own follows. Nothing shows a password, a verifier, a cancel key or a literal of a
//! statement.

mod applications;
mod catalog;
mod clients;
mod databases;
mod dns;
mod doctor;
mod links;
mod lists;
mod pools;
mod prepared;
mod servers;
pub mod settings;
mod sockets;
mod stats;
pub mod tenant;
mod tenants;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::app::{App, Scope};
use crate::config::Config;
use crate::id::TenantId;
use crate::tenant::state::TenantState;

/// One `SHOW`.
#[derive(Debug)]
pub struct Show {
    pub name: &'static str,
    pub help: &'static str,
    pub columns: &'static [Column],
    /// Users who may only look may not see it.
    pub is_for_admins: bool,
    rows: fn(&View) -> Vec<Row>,
}

const fn show(
    name: &'static str,
    help: &'static str,
    columns: &'static [Column],
    rows: fn(&View) -> Vec<Row>,
) -> Show {
    Show {
        name,
        help,
        columns,
        is_for_admins: false,
        rows,
    }
}

pub type Row = Vec<Cell>;

#[derive(Debug)]
pub struct Column {
    pub name: &'static str,
    pub kind: ColumnKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnKind {
    /// int8.
    Int,
    Text,
}

pub const fn int(name: &'static str) -> Column {
    Column {
        name,
        kind: ColumnKind::Int,
    }
}

pub const fn text(name: &'static str) -> Column {
    Column {
        name,
        kind: ColumnKind::Text,
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    Null,
    Int(i64),
    Text(String),
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Cell {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<i32> for Cell {
    fn from(number: i32) -> Self {
        Self::Int(number.into())
    }
}

impl From<u16> for Cell {
    fn from(number: u16) -> Self {
        Self::Int(number.into())
    }
}

/// What does not fit is as much as fits.
impl From<u64> for Cell {
    fn from(number: u64) -> Self {
        Self::Int(number.try_into().unwrap_or(i64::MAX))
    }
}

impl From<usize> for Cell {
    fn from(number: usize) -> Self {
        Self::Int(number.try_into().unwrap_or(i64::MAX))
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// `row![a, b]`: each made a cell.
macro_rules! row {
    ($($cell:expr),* $(,)?) => { vec![$($crate::admin::show::Cell::from($cell)),*] };
}
pub(crate) use row;

/// The keys of all settings that `SHOW CONFIG` has.
pub fn setting_keys(config: &Config) -> impl Iterator<Item = String> {
    settings::keys(config)
}

/// What the tables look at: one config for all rows of an answer.
pub struct View<'a> {
    app: &'a App,
    config: Arc<Config>,
    /// Tenants that have been seen since the start.
    seen: HashMap<TenantId, Arc<TenantState>>,
}

/// Every `SHOW`, in the order of the help.
pub static SHOWS: [Show; 29] = [
    show(
        "HELP",
        "this list",
        &[text("command"), text("description")],
        help,
    ),
    show(
        "TENANTS",
        "every tenant: where it lives, how much it uses and may use",
        tenants::COLUMNS,
        tenants::rows,
    ),
    show(
        "APPLICATIONS",
        "every application: as whom it logs in, and for how many tenants it may act",
        applications::COLUMNS,
        applications::rows,
    ),
    show(
        "CATALOG",
        "how current the tenants of the catalog are, and what of it is not in force",
        catalog::COLUMNS,
        catalog::rows,
    ),
    show(
        "DATABASES",
        "every tenant, as PgBouncer's databases: what commands name, and whether it is paused or disabled",
        databases::COLUMNS,
        databases::rows,
    ),
    show(
        "USERS",
        "every user of every tenant, and its connections",
        databases::USERS_COLUMNS,
        databases::users,
    ),
    show(
        "POOLS",
        "server connections with the same server, database and login, and their clients",
        pools::COLUMNS,
        pools::rows,
    ),
    show(
        "CLIENTS",
        "every client that is logged in, what it does and since when",
        clients::COLUMNS,
        clients::rows,
    ),
    show(
        "SERVERS",
        "every server connection (type S), the health of servers (H), and logins that failed last (L)",
        servers::COLUMNS,
        servers::rows,
    ),
    show(
        "SOCKETS",
        "clients and server connections in one table",
        sockets::COLUMNS,
        sockets::rows,
    ),
    show(
        "ACTIVE_SOCKETS",
        "those of them that are not idle",
        sockets::COLUMNS,
        sockets::active,
    ),
    Show {
        is_for_admins: true,
        ..show(
            "FDS",
            "the file descriptors of TCP sockets",
            sockets::FDS_COLUMNS,
            sockets::fds,
        )
    },
    show(
        "STATS",
        "what tenants have done since the start; averages and percentiles are of the last minute or two (metrics.period)",
        stats::COLUMNS,
        stats::rows,
    ),
    show(
        "STATS_TOTALS",
        "the totals of STATS",
        stats::STATS_TOTALS_COLUMNS,
        stats::totals_of_each,
    ),
    show(
        "STATS_AVERAGES",
        "the averages of STATS",
        stats::STATS_AVERAGES_COLUMNS,
        stats::averages_of_each,
    ),
    show(
        "TOTALS",
        "STATS of all tenants together",
        stats::TOTALS_COLUMNS,
        stats::totals,
    ),
    show(
        "LISTS",
        "how many of everything there are",
        lists::COLUMNS,
        lists::rows,
    ),
    show(
        "MEM",
        "what is kept in memory",
        lists::MEM_COLUMNS,
        lists::memory,
    ),
    show(
        "PREPARED_STATEMENTS",
        "statements that clients in transaction pooling have prepared",
        prepared::COLUMNS,
        prepared::rows,
    ),
    show(
        "DOCTOR",
        "what keeps tenants from being kept apart, by the last inspection",
        doctor::COLUMNS,
        doctor::rows,
    ),
    show(
        "DNS_HOSTS",
        "the addresses of servers whose hosts are names, as they were resolved last",
        dns::COLUMNS,
        dns::rows,
    ),
    show(
        "DNS_ZONES",
        "always empty: there is no transfer of zones",
        &[text("zonename"), int("serial"), int("count")],
        nothing,
    ),
    show(
        "PEERS",
        "always empty: cancel requests are not passed to other processes",
        &[int("peer_id"), text("host"), int("port"), int("pool_size")],
        nothing,
    ),
    show(
        "PEER_POOLS",
        "always empty, too",
        &[
            int("peer_id"),
            int("cl_active_cancel_req"),
            int("cl_waiting_cancel_req"),
            int("sv_active_cancel"),
            int("sv_login"),
        ],
        nothing,
    ),
    show(
        "CONFIG",
        "the settings in force, but for tenants",
        settings::COLUMNS,
        settings::rows,
    ),
    show(
        "VERSION",
        "the version of pgtenant",
        &[text("version")],
        |_| vec![row![version()]],
    ),
    show(
        "STATE",
        "whether the proxy serves, is paused or shuts down, and for how long it has been there",
        &[text("key"), text("value")],
        state,
    ),
    show("PAUSED", "what is paused", HALTS_COLUMNS, |view| {
        halts(&view.app.all_paused())
    }),
    show("DISABLED", "what is disabled", HALTS_COLUMNS, |view| {
        halts(&view.app.all_disabled())
    }),
];

const HALTS_COLUMNS: &[Column] = &[text("object"), text("name")];

fn halts(scopes: &[Scope]) -> Vec<Row> {
    let row = |scope: &Scope| match scope {
        Scope::All => row!["all", ""],
        Scope::Tenant(name) => row!["tenant", name.as_str()],
        Scope::Placement(name) => row!["placement", name.as_str()],
        Scope::Server(name) => row!["server", name.as_str()],
        Scope::Database(name) => row!["database", name.as_str()],
    };
    scopes.iter().map(row).collect()
}

fn nothing(_: &View) -> Vec<Row> {
    Vec::new()
}

/// The table of that name, in any case.
pub fn find(name: &str) -> Option<&'static Show> {
    SHOWS
        .iter()
        .find(|show| show.name.eq_ignore_ascii_case(name))
}

pub fn version() -> &'static str {
    concat!("pgtenant ", env!("CARGO_PKG_VERSION"))
}

impl Show {
    /// What is so now. Takes a while with many tenants: not for a worker's thread.
    pub fn rows(&self, app: &App) -> Vec<Row> {
        let seen = app.seen_tenants();
        let view = View {
            app,
            config: app.config(),
            seen: seen.into_iter().map(|t| (t.id.clone(), t)).collect(),
        };
        (self.rows)(&view)
    }
}

/// What is no SHOW. `name`: a row of `SHOW DATABASES`, or `TENANT x`, `PLACEMENT x`, `SERVER x`.
const OTHERS: [(&str, &str); 15] = [
    (
        "SHOW TENANT name",
        "one tenant: its place, state, clients, times, errors, findings, and how near its limits are",
    ),
    (
        "PAUSE [name]",
        "new statements wait; answers when all transactions have ended",
    ),
    (
        "RESUME [name]",
        "ends a PAUSE or a KILL; without a name every one",
    ),
    ("DISABLE name", "refuses new clients"),
    ("ENABLE [name]", "ends that"),
    (
        "RECONNECT [name]",
        "closes server connections as they are given back",
    ),
    (
        "WAIT_CLOSE [name]",
        "waits until all that RECONNECT or RELOAD has closed is closed",
    ),
    (
        "KILL [name]",
        "ends clients and their server connections at once; new ones wait for RESUME",
    ),
    (
        "KILL_CLIENT id",
        "ends one client, by its id in SHOW CLIENTS",
    ),
    (
        "KILL CLIENT id generation",
        "the same, and never one of a later process",
    ),
    (
        "RELOAD",
        "reads the config file again and says what has changed",
    ),
    (
        "EXPLAIN CONFIG FOR name",
        "each setting in force for a tenant, and which level of the config says so",
    ),
    (
        "SET key = value",
        "changes one of the settings that can be until the next RELOAD",
    ),
    ("SHUTDOWN", "ends the process and its clients at once"),
    (
        "SHUTDOWN WAIT_FOR_SERVERS | WAIT_FOR_CLIENTS",
        "ends it when transactions have ended, or when the clients have left",
    ),
];

fn help(_: &View) -> Vec<Row> {
    let shows = SHOWS
        .iter()
        .map(|show| row![format!("SHOW {}", show.name), show.help]);
    let others = OTHERS.iter().map(|(command, help)| row![*command, *help]);
    shows.chain(others).collect()
}

fn state(view: &View) -> Vec<Row> {
    let app = view.app;
    let is_ending = app.is_draining() || app.is_closing();
    let (_, all_paused) = app.pauses();
    let state = if is_ending { "shutting down" } else { "active" };
    let yes = |is: bool| if is { "yes" } else { "no" };
    vec![
        row!["active", yes(!all_paused)],
        row!["paused", yes(all_paused)],
        row!["suspended", "no"],
        row!["state", state],
        row!["uptime", format!("{} s", app.started.elapsed().as_secs())],
        row!["connections", app.connections().to_string()],
        row!["reloads", app.metrics.reloads.get().to_string()],
        row![
            "failed_reloads",
            app.metrics.failed_reloads.get().to_string()
        ],
    ]
}

/// Whole seconds, and the microseconds that are left, as PgBouncer shows waits.
fn wait(time: Duration) -> (Cell, Cell) {
    (
        time.as_secs().into(),
        i64::from(time.subsec_micros()).into(),
    )
}

/// As PgBouncer's `tls`: something if there is TLS.
fn tls(tls: bool) -> &'static str {
    if tls { "TLS" } else { "" }
}

#[cfg(test)]
mod tests;
