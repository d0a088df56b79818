//! The tables of the console. To add one: a function that makes its rows, and an entry in [`SHOWS`].
//!
//! Columns have PgBouncer's names where they mean what they mean there; what is not known here is left
//! out rather than made up. Nothing shows a password or a verifier.

mod clients;
mod config;
mod dns;
mod doctor;
mod pools;
mod servers;
mod stats;
mod tenants;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::app::App;
use crate::config::Config;
use crate::id::TenantId;
use crate::tenant::state::TenantState;

/// One `SHOW`.
#[derive(Debug)]
pub struct Show {
    pub name: &'static str,
    pub help: &'static str,
    pub columns: &'static [Column],
    rows: fn(&View) -> Vec<Row>,
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

const fn int(name: &'static str) -> Column {
    Column {
        name,
        kind: ColumnKind::Int,
    }
}

const fn text(name: &'static str) -> Column {
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
use row;

/// What the tables look at: one config for all rows of an answer.
pub struct View<'a> {
    app: &'a App,
    config: Arc<Config>,
    /// Tenants that have been seen since the start.
    seen: HashMap<TenantId, Arc<TenantState>>,
}

/// Every `SHOW`, in the order of the help.
pub static SHOWS: [Show; 11] = [
    Show {
        name: "HELP",
        help: "this list",
        columns: &[text("command"), text("description")],
        rows: help,
    },
    Show {
        name: "TENANTS",
        help: "every tenant: where it lives, how much it uses and may use",
        columns: tenants::COLUMNS,
        rows: tenants::rows,
    },
    Show {
        name: "POOLS",
        help: "server connections with the same server, database and login, and their clients",
        columns: pools::COLUMNS,
        rows: pools::rows,
    },
    Show {
        name: "CLIENTS",
        help: "every client that is logged in",
        columns: clients::COLUMNS,
        rows: clients::rows,
    },
    Show {
        name: "SERVERS",
        help: "every server connection (type S), and the health of servers (type H)",
        columns: servers::COLUMNS,
        rows: servers::rows,
    },
    Show {
        name: "STATS",
        help: "what tenants have done since the start; averages are over that time too",
        columns: stats::COLUMNS,
        rows: stats::rows,
    },
    Show {
        name: "DOCTOR",
        help: "what keeps tenants from being kept apart, by the last inspection",
        columns: doctor::COLUMNS,
        rows: doctor::rows,
    },
    Show {
        name: "DNS_HOSTS",
        help: "the addresses of servers whose hosts are names, as they were resolved last",
        columns: dns::COLUMNS,
        rows: dns::rows,
    },
    Show {
        name: "CONFIG",
        help: "the settings in force, but for tenants",
        columns: config::COLUMNS,
        rows: config::rows,
    },
    Show {
        name: "VERSION",
        help: "the version of pgtenant",
        columns: &[text("version")],
        rows: |_| vec![row![version()]],
    },
    Show {
        name: "STATE",
        help: "whether the proxy serves or shuts down, and for how long it has been there",
        columns: &[text("key"), text("value")],
        rows: state,
    },
];

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

fn help(_: &View) -> Vec<Row> {
    let shows = SHOWS
        .iter()
        .map(|show| row![format!("SHOW {}", show.name), show.help]);
    let others = [
        row!["RELOAD", "read the config file again and put it in force"],
        row!["SET …", "accepted from drivers; does nothing"],
    ];
    shows.chain(others).collect()
}

fn state(view: &View) -> Vec<Row> {
    let app = view.app;
    let state = if app.is_draining() {
        "shutting down"
    } else {
        "active"
    };
    vec![
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
