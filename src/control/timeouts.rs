//! Ends clients, and statements, that take too long. All clients are looked at now and then; their
//! tasks read no clock and set no timer for this. So what is over its time is found a moment later,
//! by a tenth of the time or a second at most.
//!
//! What a client sets for itself, and what it pipelines, changes nothing here.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::app::App;
use crate::client::{ClientHandle, Phase, Progress, Reason};
use crate::config::ClientTimeouts;
use crate::timer;

/// From one look to the next, at least and at most.
const SOONEST: Duration = Duration::from_millis(20);
const LATEST: Duration = Duration::from_secs(1);

/// Who is busy with the same for so long is to look whether the other ends of its sockets are there
/// still.
const LOOKED_AT_AFTER: Duration = Duration::from_secs(1);

/// Watches until the proxy is gone or stops.
pub async fn watch(app: Weak<App>) {
    let mut watched = Watched::default();
    loop {
        let Some(app) = app.upgrade().filter(|app| !app.is_draining()) else {
            return;
        };
        let pause = watched.look(&app, Instant::now());
        if app.pass_time() {
            // A long file takes a while to read; its mistakes are logged there.
            tokio::task::spawn_blocking(move || drop(app.reload_file()));
        } else {
            drop(app);
        }
        timer::sleep(pause).await;
    }
}

/// What was seen of clients, by their ids.
#[derive(Default)]
struct Watched {
    seen: HashMap<u64, Seen>,
    /// Looks so far.
    looks: u64,
}

struct Seen {
    progress: Progress,
    phase_began: Instant,
    transaction_began: Instant,
    look: u64,
    /// Its statement is being cancelled.
    is_told: bool,
}

impl Seen {
    fn note(&mut self, progress: Progress, now: Instant) {
        if progress.transactions != self.progress.transactions {
            self.transaction_began = now;
        }
        if progress.phases != self.progress.phases {
            self.phase_began = now;
            self.is_told = false;
        }
        self.progress = progress;
    }
}

impl Watched {
    /// Looks at every client that has limits or is busy; returns after what time to look again.
    fn look(&mut self, app: &App, now: Instant) -> Duration {
        let config = app.config();
        let mut shortest = LATEST * 10;
        self.looks += 1;
        app.each_client(|client| {
            // For the console, which tells since when.
            client.note_phase();
            let Some(tenant) = config.login(client.tenant.as_str()) else {
                return;
            };
            let progress = client.progress();
            let limit = tenant.terms.timeouts.shortest();
            if limit.is_none() && progress.phase == Phase::Idle {
                return;
            }
            shortest = shortest.min(limit.unwrap_or(shortest));
            let seen = self.seen.entry(client.id).or_insert(Seen {
                progress,
                phase_began: now,
                transaction_began: now,
                look: 0,
                is_told: false,
            });
            seen.look = self.looks;
            seen.note(progress, now);
            let pinned = !client.pins().is_empty();
            let times = (now - seen.phase_began, now - seen.transaction_began);
            if progress.phase != Phase::Idle && times.0 >= LOOKED_AT_AFTER {
                client.ask_to_look();
            }
            if client.waiting().is_none()
                && !seen.is_told
                && let Some(reason) = verdict(&tenant.terms.timeouts, progress.phase, pinned, times)
            {
                seen.is_told = true;
                end(app, client, reason);
            }
        });
        let look = self.looks;
        self.seen.retain(|_, seen| seen.look == look);
        (shortest / 10).clamp(SOONEST, LATEST)
    }
}

/// Whether a client is over a limit. `times`: how long it has been in this phase, and in this
/// transaction.
fn verdict(
    limits: &ClientTimeouts,
    phase: Phase,
    pinned: bool,
    times: (Duration, Duration),
) -> Option<Reason> {
    let (phase_for, transaction_for) = times;
    let is_over = |limit: Option<Duration>, time: Duration| limit.is_some_and(|limit| time > limit);
    let (is_phase_over, reason) = match phase {
        Phase::Streaming => return None,
        Phase::Idle => {
            let over = is_over(limits.idle_session, phase_for)
                || (pinned && is_over(limits.pinned, phase_for));
            return over.then_some(Reason::IdleSession);
        }
        Phase::Running => (is_over(limits.statement, phase_for), Reason::Statement),
        Phase::InTransaction => (
            is_over(limits.idle_in_transaction, phase_for),
            Reason::IdleInTransaction,
        ),
    };
    match is_over(limits.transaction, transaction_for) {
        true => Some(Reason::Transaction),
        false => is_phase_over.then_some(reason),
    }
}

fn end(app: &App, client: &Arc<ClientHandle>, reason: Reason) {
    let tenant = app.tenant(&client.tenant);
    tenant.metrics.timeouts.add(1);
    tracing::info!(tenant = %client.tenant, user = %client.user, client = client.id, ?reason, "timed out");
    match (reason, client.fence()) {
        (Reason::Statement, Some(fence)) => {
            client.note_timeout();
            let id = client.id;
            let deadline = tenant.connect_timeout(&app.config().timeouts);
            tokio::spawn(async move {
                if let Err(error) = fence.cancel(id, deadline).await {
                    tracing::warn!(client = id, %error, "could not cancel a statement that timed out");
                }
            });
        }
        (Reason::Statement, None) => {}
        (reason, _) => client.end_for(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_phase_has_its_limit_and_a_transaction_one_over_all() {
        let seconds = |n| Some(Duration::from_secs(n));
        let limits = ClientTimeouts {
            statement: seconds(2),
            transaction: seconds(8),
            idle_in_transaction: seconds(4),
            idle_session: seconds(16),
            pinned: seconds(3),
        };
        use Phase::{Idle, InTransaction, Running, Streaming};
        for (phase, pinned, phase_for, transaction_for, expected) in [
            (Running, false, 1, 1, None),
            (Running, false, 3, 3, Some(Reason::Statement)),
            (Running, false, 1, 9, Some(Reason::Transaction)),
            (InTransaction, true, 3, 3, None),
            (InTransaction, false, 5, 5, Some(Reason::IdleInTransaction)),
            (InTransaction, false, 1, 9, Some(Reason::Transaction)),
            (Idle, false, 15, 99, None),
            (Idle, false, 17, 99, Some(Reason::IdleSession)),
            (Idle, true, 4, 4, Some(Reason::IdleSession)),
            (Streaming, true, 99, 99, None),
        ] {
            let times = (
                Duration::from_secs(phase_for),
                Duration::from_secs(transaction_for),
            );
            let found = verdict(&limits, phase, pinned, times);
            assert_eq!(found, expected, "{phase:?} {phase_for} {transaction_for}");
            assert_eq!(
                verdict(&ClientTimeouts::default(), phase, pinned, times),
                None
            );
        }
    }
}
