//! `SHOW PREPARED_STATEMENTS`.

use super::{Column, Row, View, int, row, text};
use crate::sql::fingerprint::Fingerprint;

pub const COLUMNS: &[Column] = &[
    text("server"),
    text("database"),
    text("user"),
    text("name"),
    text("fingerprint"),
    int("references"),
];

/// The statements that clients in transaction pooling have prepared and share, by pool: `name` is
/// theirs on the server connections, `references` counts the clients and server connections that
/// know them. Never a literal: where it is not certain what is one, there is no fingerprint.
pub fn rows(view: &View) -> Vec<Row> {
    let instances = view.app.instances();
    let pools = instances.values().flat_map(|instance| instance.pools());
    let mut pools: Vec<_> = pools.map(|(pool, _)| pool).collect();
    pools.sort_by_cached_key(|pool| (pool.key.server.clone(), pool.id));
    let mut rows = Vec::new();
    for pool in pools {
        for (statement, references) in pool.statements.list() {
            let fingerprint = Fingerprint::of(statement.text());
            rows.push(row![
                pool.key.server.as_str(),
                pool.key.database.as_str(),
                pool.key.login.user.as_str(),
                statement.server_name(),
                fingerprint.map(|fingerprint| fingerprint.text),
                references,
            ]);
        }
    }
    rows
}
