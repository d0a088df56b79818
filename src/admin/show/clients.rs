//! `SHOW CLIENTS`.

use super::{Cell, Column, Row, View, int, row, text, tls, wait};
use crate::client::Activity;
use crate::timestamp::utc;

pub const COLUMNS: &[Column] = &[
    text("type"),
    text("user"),
    text("database"),
    text("state"),
    text("addr"),
    int("port"),
    text("connect_time"),
    int("wait"),
    int("wait_us"),
    text("ptr"),
    text("link"),
    int("remote_pid"),
    text("tls"),
    int("id"),
    text("tenant"),
    text("placement"),
    text("server"),
    text("pinned"),
    int("worker"),
    int("parked"),
];

/// What names a client in `ptr`, and in `link` of `SHOW SERVERS`.
pub fn pointer(id: u64) -> String {
    format!("c{id}")
}

/// Oldest first. `pinned` says what keeps a client on its server connection beyond its transaction. `remote_pid` is that of the
/// server connection it uses, `link` names it. `worker` is the thread that serves it, counted from 0, as in the metrics; `parked` is 1
/// while it is idle without a task.
pub fn rows(view: &View) -> Vec<Row> {
    view.app
        .clients()
        .into_iter()
        .map(|client| {
            let fence = client.fence();
            let (waited, waited_us) = wait(client.waiting().unwrap_or_default());
            let tenant = view.config.tenants.get(&client.tenant);
            row![
                "C",
                &*client.user,
                &*client.database,
                state(client.activity()),
                client.peer.map(|peer| peer.ip().to_string()),
                client.peer.map(|peer| peer.port()),
                utc(client.connected),
                waited,
                waited_us,
                pointer(client.id),
                fence.as_ref().map_or_else(String::new, |fence| {
                    super::servers::pointer(&fence.server().name, fence.pid())
                }),
                fence
                    .as_ref()
                    .map_or(Cell::Null, |fence| fence.pid().into()),
                tls(client.tls),
                client.id,
                client.tenant.as_str(),
                tenant.map(|tenant| tenant.route.placement.name.as_str()),
                tenant.map(|tenant| tenant.route.pool.server.as_str()),
                client.pins().describe(),
                client.worker().number(),
                u64::from(client.is_parked()),
            ]
        })
        .collect()
}

fn state(activity: Activity) -> &'static str {
    match activity {
        Activity::Idle => "idle",
        Activity::Waiting => "waiting",
        Activity::Active => "active",
    }
}
