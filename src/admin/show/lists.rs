//! `SHOW LISTS` and `SHOW MEM`: how much there is of everything.

use std::mem::size_of;

use super::{Column, Row, View, int, row, text};
use crate::backend::connection::ServerConnection;
use crate::backend::instance::Pool;
use crate::client::ClientHandle;
use crate::tenant::state::TenantState;

pub const COLUMNS: &[Column] = &[text("list"), int("items")];

pub const MEM_COLUMNS: &[Column] = &[
    text("name"),
    int("size"),
    int("used"),
    int("free"),
    int("memtotal"),
];

/// As many clients, pools and so on as there are now. Nothing is kept for later, so nothing is
/// free.
pub fn rows(view: &View) -> Vec<Row> {
    let instances = view.app.instances();
    let clients = view.app.clients().len();
    let logged_in = clients + view.app.open_consoles();
    let tenants = view.config.tenants.values();
    let users: usize = tenants.map(|tenant| tenant.users.len()).sum();
    let pools: usize = instances.values().map(|i| i.pools().len()).sum();
    let servers: usize = instances.values().map(|i| i.connections()).sum();
    let names = instances
        .values()
        .filter(|instance| instance.names.known().is_some())
        .count();
    [
        ("databases", view.config.tenants.len()),
        ("users", users),
        ("peers", 0),
        ("pools", pools),
        ("peer_pools", 0),
        ("free_clients", 0),
        ("used_clients", clients),
        (
            "login_clients",
            view.app.connections().saturating_sub(logged_in),
        ),
        ("free_servers", 0),
        ("used_servers", servers),
        ("dns_names", names),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
    ]
    .into_iter()
    .map(|(list, items)| row![list, items])
    .collect()
}

/// What is kept for each of these things at least, in bytes: buffers and the like come on top.
/// `process` is all that the operating system counts as the process's own memory.
pub fn memory(view: &View) -> Vec<Row> {
    let instances = view.app.instances();
    let pools: usize = instances.values().map(|i| i.pools().len()).sum();
    let servers: usize = instances.values().map(|i| i.connections()).sum();
    let mut rows: Vec<Row> = [
        (
            "client",
            size_of::<ClientHandle>(),
            view.app.clients().len(),
        ),
        ("server_connection", size_of::<ServerConnection>(), servers),
        ("pool", size_of::<Pool>(), pools),
        ("tenant", size_of::<TenantState>(), view.seen.len()),
    ]
    .into_iter()
    .map(|(name, size, used)| row![name, size, used, 0_u64, size * used])
    .collect();
    if let Some(bytes) = resident() {
        rows.push(row!["process", bytes, 1_u64, 0_u64, bytes]);
    }
    rows
}

/// Memory of the process that is in RAM, in bytes (`VmRSS` of proc(5)).
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}
