//! `SHOW SOCKETS`, `ACTIVE_SOCKETS` and `FDS`: clients and server connections in one table.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Cell, Column, Row, View, clients, int, row, servers, text};

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
    int("recv_pos"),
    int("pkt_pos"),
    int("pkt_remain"),
    int("send_pos"),
    int("send_remain"),
    int("pkt_avail"),
    int("send_avail"),
];

/// Clients, then server connections. What PgBouncer tells of its buffers is not known here.
pub fn rows(view: &View) -> Vec<Row> {
    let clients = clients::rows(view).into_iter();
    let clients = clients.map(|row| pick(clients::COLUMNS, row, "cl_"));
    let servers = servers::rows(view).into_iter();
    let servers = servers.filter(|row| row.first() == Some(&Cell::from("S")));
    clients
        .chain(servers.map(|row| pick(servers::COLUMNS, row, "sv_")))
        .collect()
}

/// Those of them that a client uses, or waits for.
pub fn active(view: &View) -> Vec<Row> {
    let mut rows = rows(view);
    let is_active = |cell: &Cell| match cell {
        Cell::Text(state) => !state.ends_with("idle"),
        _ => false,
    };
    rows.retain(|row| row.get(STATE).is_some_and(is_active));
    rows
}

const STATE: usize = 4;

/// The columns of [`COLUMNS`] from a row that has some of them.
fn pick(columns: &[Column], row: Row, prefix: &str) -> Row {
    let mut cells: HashMap<&str, Cell> =
        columns.iter().map(|column| column.name).zip(row).collect();
    COLUMNS
        .iter()
        .map(|column| match cells.remove(column.name) {
            Some(Cell::Text(state)) if column.name == "state" => format!("{prefix}{state}").into(),
            Some(cell) => cell,
            None => Cell::Null,
        })
        .collect()
}

pub const FDS_COLUMNS: &[Column] = &[
    int("fd"),
    text("task"),
    text("user"),
    text("database"),
    text("addr"),
    int("port"),
    text("cancel"),
    int("link"),
];

/// The descriptors of TCP sockets by what the operating system says of them. Keys to cancel by are
/// not shown.
pub fn fds(view: &View) -> Vec<Row> {
    let clients = view.app.clients();
    let clients: HashMap<SocketAddr, _> = clients
        .iter()
        .filter_map(|client| Some((client.peer?, client)))
        .collect();
    let listens: Vec<SocketAddr> = view.config.listen.iter().map(|l| l.address).collect();
    let sockets = sockets();
    let mut rows = Vec::new();
    for (fd, Socket { local, peer }) in sockets {
        let none = None::<String>;
        let of = match peer {
            None => ("pooler", none.clone(), none.clone(), local),
            Some(peer) => match clients.get(&peer) {
                Some(client) => (
                    "client",
                    Some(client.user.to_string()),
                    Some(client.database.to_string()),
                    peer,
                ),
                None if listens.iter().any(|l| l.port() == local.port()) => {
                    ("login", none.clone(), none.clone(), peer)
                }
                None => ("server", none.clone(), none.clone(), peer),
            },
        };
        let (task, user, database, address) = of;
        let ip = address.ip().to_string();
        rows.push(row![
            fd,
            task,
            user,
            database,
            ip,
            address.port(),
            none,
            None::<u64>
        ]);
    }
    rows
}

struct Socket {
    local: SocketAddr,
    /// None: it listens.
    peer: Option<SocketAddr>,
}

/// The TCP sockets of this process by descriptor (proc(5): `fd`, `net/tcp`, `net/tcp6`).
fn sockets() -> Vec<(u64, Socket)> {
    let mut by_inode = HashMap::new();
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        let lines = std::fs::read_to_string(table).unwrap_or_default();
        by_inode.extend(lines.lines().skip(1).filter_map(socket));
    }
    let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") else {
        return Vec::new();
    };
    let mut sockets: Vec<_> = descriptors
        .flatten()
        .filter_map(|entry| {
            let target = std::fs::read_link(entry.path()).ok()?;
            let target = target
                .to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')?;
            let socket = by_inode.remove(&target.parse::<u64>().ok()?)?;
            let fd = entry.file_name().to_str()?.parse().ok()?;
            Some((fd, socket))
        })
        .collect();
    sockets.sort_by_key(|(fd, _)| *fd);
    sockets
}

/// A line of `net/tcp`: its inode, and what it is.
fn socket(line: &str) -> Option<(u64, Socket)> {
    /// `TCP_LISTEN` in the kernel's `tcp_states.h`.
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, local, peer, state, _, _, _, _, _, inode, ..] = fields[..] else {
        return None;
    };
    let socket = Socket {
        local: address(local)?,
        peer: (state != LISTEN).then(|| address(peer)).flatten(),
    };
    Some((inode.parse().ok()?, socket))
}

/// `0100007F:1938`: words of four bytes in the machine's order, and a port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = ip.get(at * 8..at * 8 + 8)?;
        u32::from_str_radix(word, 16).ok().map(u32::to_ne_bytes)
    };
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
            let bytes: [u8; 16] = words.try_into().ok()?;
            // As clients of a port for both have it.
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_kernel_are_read() {
        let is_little = cfg!(target_endian = "little");
        let local = if is_little { "0100007F" } else { "7F000001" };
        let found = address(&format!("{local}:1920"));
        assert_eq!(found, "127.0.0.1:6432".parse().ok());
        for text in ["", "0100007F", "01:1920", "0100007F:x", "0100007G:1920"] {
            assert_eq!(address(text), None, "{text}");
        }
    }
}
