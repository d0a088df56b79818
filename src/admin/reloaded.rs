//! What RELOAD answers: what it did, row by row.

use crate::admin::show::{Column, Row, row, settings, text};
use crate::config::Config;
use crate::config::diff::Diff;

pub const COLUMNS: &[Column] = &[text("action"), text("object"), text("name"), text("detail")];

/// A row for each thing that was changed. `old`, `new`: the configs before and after.
pub fn rows(diff: &Diff, old: &Config, new: &Config) -> Vec<Row> {
    let mut rows = Vec::new();
    servers(diff, &mut rows);
    pools(diff, &mut rows);
    tenants(diff, &mut rows);
    changed_settings(diff, old, new, &mut rows);
    if rows.is_empty() {
        rows.push(row![
            "unchanged",
            "config",
            "",
            "the file says what is in force"
        ]);
    }
    rows
}

fn add<T: ToString>(rows: &mut Vec<Row>, names: &[T], action: &str, object: &str, detail: &str) {
    let names = names.iter();
    rows.extend(names.map(|name| row![action, object, name.to_string(), detail]));
}

fn servers(diff: &Diff, rows: &mut Vec<Row>) {
    add(rows, &diff.servers_added, "added", "server", "");
    let detail = "its connections close as they are given back";
    add(rows, &diff.servers_removed, "removed", "server", detail);
    let detail = "address or TLS: its connections close as they are given back";
    add(rows, &diff.servers_changed, "changed", "server", detail);
    add(
        rows,
        &diff.servers_resized,
        "changed",
        "server",
        "max_connections",
    );
    add(
        rows,
        &diff.servers_admin_changed,
        "changed",
        "server",
        "admin",
    );
    add(
        rows,
        &diff.servers_seal_changed,
        "changed",
        "server",
        "seal",
    );
}

fn pools(diff: &Diff, rows: &mut Vec<Row>) {
    for key in &diff.pools_removed {
        let detail = format!(
            "of {} on {}: its connections close as they are given back",
            key.login.user, key.server
        );
        rows.push(row!["removed", "pool", key.database.as_str(), detail]);
    }
    let detail = "size of pools, or limit of clients";
    add(
        rows,
        &diff.placements_resized,
        "changed",
        "placement",
        detail,
    );
}

fn tenants(diff: &Diff, rows: &mut Vec<Row>) {
    add(rows, &diff.tenants_added, "added", "tenant", "");
    let detail = "its clients end";
    add(rows, &diff.tenants_removed, "removed", "tenant", detail);
    let detail = "its clients go where it lives now";
    add(rows, &diff.tenants_moved, "moved", "tenant", detail);
    add(
        rows,
        &diff.tenants_users_changed,
        "changed",
        "tenant",
        "users",
    );
    add(
        rows,
        &diff.tenants_limits_changed,
        "changed",
        "tenant",
        "limits",
    );
    if diff.listen_tls_changed {
        rows.push(row!["changed", "listen", "", "TLS: for new clients"]);
    }
}

/// Settings that are one value each. Those of servers and placements are told above, but for what
/// is not told there.
fn changed_settings(diff: &Diff, old: &Config, new: &Config, rows: &mut Vec<Row>) {
    for (key, change) in settings::changes(old, new) {
        let needs_restart = diff.needs_restart.iter().any(|setting| {
            let rest = key.strip_prefix(setting);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        });
        if !needs_restart {
            rows.push(row!["changed", "setting", key, change]);
        }
    }
    let detail = "needs a restart: the old value stays in force";
    add(rows, &diff.needs_restart, "ignored", "setting", detail);
}
