//! `SHOW CLIENTS`.

use super::links;
use super::{Cell, Column, Row, View, int, row, text, tls, wait};
use std::time::SystemTime;

use crate::client::{Activity, ClientHandle, Phase};
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
    int("generation"),
    text("tenant"),
    text("placement"),
    text("server"),
    text("pinned"),
    int("worker"),
    int("parked"),
    text("activity"),
    text("since"),
    int("seconds"),
    text("fingerprint"),
    text("serves"),
];

/// Oldest first. `pinned` says what keeps a client on its server connection beyond its transaction.
/// `remote_pid` is that of the server connection it uses, `link` names it. `worker` is the thread
/// that serves it, counted from 0, as in the metrics; `parked` is 1 while it is idle without a
/// task.
///
/// `activity` says more than PgBouncer's `state`, `since` (and in whole seconds `seconds`) how long
/// it has been so: clients are looked at once a second, so it may have begun up to a second before.
/// `fingerprint` is of the statement that is run, or was run last in the transaction, without
/// literals; where its text is at hand. `serves` is the tenant that an application's client was
/// served for last, or is; of others it is their own. `id` and `generation` name a client for good.
pub fn rows(view: &View) -> Vec<Row> {
    let generation = view.app.generation();
    let now = SystemTime::now();
    view.app
        .clients()
        .into_iter()
        .map(|client| {
            let lasts = client.note_phase();
            let since = utc(now.checked_sub(lasts).unwrap_or(now));
            let progress = client.progress();
            let fence = client.fence();
            let (waited, waited_us) = wait(client.waiting().unwrap_or_default());
            let tenant = view.config.login(client.tenant.as_str());
            row![
                "C",
                &*client.user,
                &*client.database,
                links::replication(progress.phase),
                state(client.activity()),
                client.peer.map(|peer| peer.ip().to_string()),
                client.peer.map(|peer| peer.port()),
                None::<String>,
                None::<u64>,
                utc(client.connected),
                since.clone(),
                waited,
                waited_us,
                u64::from(client.is_revoked()),
                links::to_client(client.id),
                fence.as_ref().map_or_else(String::new, |fence| {
                    links::to_server(&fence.server().name, fence.pid())
                }),
                fence
                    .as_ref()
                    .map_or(Cell::Null, |fence| fence.pid().into()),
                tls(client.tls),
                client.application().as_deref().unwrap_or_default(),
                None::<u64>,
                client.id,
                generation,
                client.tenant.as_str(),
                tenant.map(|tenant| tenant.route.placement.name.as_str()),
                tenant.map(|tenant| tenant.route.pool.server.as_str()),
                client.pins().describe(),
                client.worker().number(),
                u64::from(client.is_parked()),
                activity(&client),
                since,
                lasts.as_secs(),
                client.told().and_then(|told| told.fingerprint),
                client.serves().as_str(),
            ]
        })
        .collect()
}

/// What it does, in the words of `pg_stat_activity` where that has some.
pub fn activity(client: &ClientHandle) -> &'static str {
    if client.waiting().is_some() {
        return "waiting";
    }
    match client.progress().phase {
        Phase::Streaming => "replication",
        Phase::Running if client.is_copying() => "COPY",
        Phase::Running => "running",
        Phase::InTransaction => "idle in transaction",
        Phase::Idle if !client.pins().is_empty() => "idle, pinned",
        Phase::Idle => "idle",
    }
}

fn state(activity: Activity) -> &'static str {
    match activity {
        Activity::Idle => "idle",
        Activity::Waiting => "waiting",
        Activity::Active => "active",
    }
}
