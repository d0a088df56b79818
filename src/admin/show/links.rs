//! What `SHOW CLIENTS` and `SHOW SERVERS` call each other's rows, and say alike.

use crate::client::Phase;
use crate::id::ServerName;

/// What names a client in `ptr`, and in `link` of `SHOW SERVERS`.
pub fn to_client(id: u64) -> String {
    format!("c{id}")
}

/// What names a server connection in `ptr`, and in `link` of `SHOW CLIENTS`.
pub fn to_server(server: &ServerName, pid: i32) -> String {
    format!("{server}/{pid}")
}

pub fn replication(phase: Phase) -> &'static str {
    match phase {
        Phase::Streaming => "physical",
        _ => "none",
    }
}
