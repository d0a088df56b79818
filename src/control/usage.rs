//! What each tenant has used in each hour, as lines of JSON in a file, for bills.
//!
//! A line has all of an hour that one process has counted by then, so that a later line of the same
//! process, hour and tenant takes the place of an earlier one: whoever reads a line twice, or a
//! file again from its beginning, comes to the same amounts. Lines are written every
//! `usage.interval`, and at the end of the hour and of the process, so that a crash costs one
//! interval at most. The process after it counts from zero, under a number of its own, and its
//! lines are added.
//!
//! Nothing of this is on the way of a statement: the counters are there, and are read here.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::app::App;
use crate::audit::file::LogFile;
use crate::config;
use crate::id::TenantId;
use crate::metrics::TenantMetrics;
use crate::tenant::state::TenantState;
use crate::timer;
use crate::timestamp::rfc3339;

const HOUR: u64 = 3600;
/// From one look at the clock and the settings to the next.
const LOOK: Duration = Duration::from_secs(1);
/// Lines that wait for a file that cannot be written. Those that come then are lost, and counted.
const MAX_WAITING: usize = 1 << 20;

/// What is counted of a tenant since the start of the process, or in an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Amounts {
    /// In microseconds.
    server_time: u64,
    received: u64,
    sent: u64,
    statements: u64,
    rows: u64,
    transactions: u64,
}

impl Amounts {
    fn of(metrics: &TenantMetrics) -> Self {
        Self {
            server_time: metrics.statements.sum_us(),
            received: metrics.received.get(),
            sent: metrics.sent.get(),
            statements: metrics.executed.get(),
            rows: metrics.rows.get(),
            transactions: metrics.transactions.count(),
        }
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            server_time: self.server_time.saturating_sub(before.server_time),
            received: self.received.saturating_sub(before.received),
            sent: self.sent.saturating_sub(before.sent),
            statements: self.statements.saturating_sub(before.statements),
            rows: self.rows.saturating_sub(before.rows),
            transactions: self.transactions.saturating_sub(before.transactions),
        }
    }
}

/// One tenant, of which something was told or that was there when the file was first named.
#[derive(Debug, Default)]
struct Known {
    /// When the hour began.
    base: Amounts,
    /// Of this hour, with the most clients at once.
    told: (Amounts, usize),
}

/// Why a look is taken, beside that an interval is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    None,
    Process,
}

/// Writes the lines. One look at a time.
#[derive(Default)]
pub struct Usage(Mutex<Recorder>);

#[derive(Default)]
struct Recorder {
    /// Whole hours of Unix time. None: nothing is recorded.
    hour: Option<u64>,
    known: HashMap<TenantId, Known>,
    /// Of the last line.
    sequence: u64,
    /// Lines that are not written yet.
    waiting: VecDeque<Vec<u8>>,
    file: Option<(config::Usage, LogFile)>,
    is_failing: bool,
    has_looked: bool,
    is_closed: bool,
}

/// Writes them until the proxy is gone or stops.
pub async fn watch(app: Weak<App>, usage: Arc<Usage>) {
    let mut looked = Instant::now();
    // From the start on it is known when the hour began.
    let mut hour = None;
    loop {
        let Some(app) = app.upgrade() else {
            return;
        };
        let interval = app.config().usage.interval;
        let now = hours(SystemTime::now());
        let is_due = looked.elapsed() >= interval || hour.is_none_or(|hour| hour != now);
        if is_due || usage.is_behind(&app) {
            looked = Instant::now();
            hour = Some(now);
            let usage = usage.clone();
            let look = tokio::task::spawn_blocking(move || {
                usage.look(&app, SystemTime::now(), End::None);
            });
            if look.await.is_err() {
                tracing::error!("could not record usage");
            }
        } else {
            drop(app);
        }
        let left = interval.saturating_sub(looked.elapsed());
        let sleep = left.min(until_next_hour(SystemTime::now())).min(LOOK);
        timer::sleep(sleep.max(Duration::from_millis(1))).await;
    }
}

fn hours(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs() / HOUR
}

fn until_next_hour(time: SystemTime) -> Duration {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_secs((since.as_secs() / HOUR + 1) * HOUR).saturating_sub(since)
}

impl Usage {
    fn recorder(&self) -> std::sync::MutexGuard<'_, Recorder> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is something to do before the interval is over: the settings are others, or
    /// lines wait for a file that could not be written.
    fn is_behind(&self, app: &App) -> bool {
        let recorder = self.recorder();
        let settings = &app.config().usage;
        let known = recorder.file.as_ref().map(|(known, _)| known);
        known != settings.file.as_ref().map(|_| settings) || !recorder.waiting.is_empty()
    }

    fn look(&self, app: &App, now: SystemTime, end: End) {
        self.recorder().look(app, now, end);
    }

    /// The last lines of the process, once its clients are gone.
    pub fn close(&self, app: &App) {
        self.look(app, SystemTime::now(), End::Process);
    }
}

impl Recorder {
    fn look(&mut self, app: &App, now: SystemTime, end: End) {
        if self.is_closed {
            return;
        }
        self.is_closed = end == End::Process;
        let is_on = self.settle(app);
        let is_start = !std::mem::replace(&mut self.has_looked, true);
        if self.hour.is_none() && is_on {
            self.begin(app, hours(now), is_start);
        }
        let Some(hour) = self.hour else {
            return;
        };
        // A clock that goes back does not open an hour again.
        let next = hours(now).max(hour);
        let is_whole = next > hour || !is_on;
        let may_wait = !self.waiting.is_empty() && !is_whole && end == End::None;
        if !may_wait {
            for tenant in app.seen_in_no_order() {
                if let Some(line) = self.line(app, &tenant, (hour, now), is_whole) {
                    self.push(app, line);
                }
            }
        }
        self.hour = is_on.then_some(next);
        if !is_on {
            self.known = HashMap::new();
        }
        self.write(app, end);
        if !is_on && self.waiting.is_empty() {
            self.file = None;
        }
    }

    /// Takes over the settings. Whether usage is recorded.
    fn settle(&mut self, app: &App) -> bool {
        let settings = &app.config().usage;
        let path: Option<&PathBuf> = settings.file.as_ref();
        let is_known = self
            .file
            .as_ref()
            .is_some_and(|(known, _)| known == settings);
        if let Some(path) = path
            && !is_known
        {
            let file = LogFile::new(path, settings.max_size, settings.keep);
            self.file = Some((settings.clone(), file));
        }
        path.is_some()
    }

    /// From the start of the process on all counts; from a reload on only what comes from now on.
    fn begin(&mut self, app: &App, hour: u64, is_start: bool) {
        self.hour = Some(hour);
        if is_start {
            return;
        }
        for tenant in app.seen_in_no_order() {
            let known = Known {
                base: Amounts::of(&tenant.metrics),
                ..Known::default()
            };
            tenant.take_peak();
            self.known.insert(tenant.id.clone(), known);
        }
    }

    /// The line of a tenant, if there is anything new to tell of it.
    fn line(
        &mut self,
        app: &App,
        tenant: &TenantState,
        (hour, now): (u64, SystemTime),
        is_whole: bool,
    ) -> Option<Vec<u8>> {
        let total = Amounts::of(&tenant.metrics);
        let known = self.known.get_mut(&tenant.id);
        let (base, told) = known
            .as_ref()
            .map_or_else(Default::default, |known| (known.base, known.told));
        let clients = match is_whole {
            true => tenant.take_peak(),
            false => tenant.peak(),
        };
        let amounts = (total.since(&base), clients);
        let is_wanted = match is_whole {
            true => amounts != Default::default(),
            false => amounts != told,
        };
        if !is_wanted {
            return None;
        }
        let known = match known {
            Some(known) => known,
            None => self.known.entry(tenant.id.clone()).or_default(),
        };
        match is_whole {
            true => {
                *known = Known {
                    base: total,
                    ..Known::default()
                }
            }
            false => known.told = amounts,
        }
        self.sequence += 1;
        let (amounts, clients) = amounts;
        let line = json!({
            "hour": rfc3339(UNIX_EPOCH + Duration::from_secs(hour * HOUR)),
            "tenant": tenant.id.as_str(),
            "process": app.generation(),
            "sequence": self.sequence,
            "until": rfc3339(now),
            "whole": is_whole,
            "server_time_us": amounts.server_time,
            "received_bytes": amounts.received,
            "sent_bytes": amounts.sent,
            "statements": amounts.statements,
            "rows": amounts.rows,
            "transactions": amounts.transactions,
            "clients": clients,
        });
        Some(format!("{line}\n").into_bytes())
    }

    fn push(&mut self, app: &App, line: Vec<u8>) {
        match self.waiting.len() < MAX_WAITING {
            true => self.waiting.push_back(line),
            false => app.metrics.usage_lost.add(1),
        }
    }

    fn write(&mut self, app: &App, end: End) {
        let mut failure = None;
        while let Some(line) = self.waiting.front() {
            let Some((_, file)) = &mut self.file else {
                break;
            };
            if let Err(error) = file.append(line) {
                failure = Some(error);
                break;
            }
            self.waiting.pop_front();
        }
        if end == End::Process {
            app.metrics.usage_lost.add(self.waiting.len() as u64);
        }
        let was_failing = std::mem::replace(&mut self.is_failing, failure.is_some());
        match failure {
            Some(error) => {
                app.metrics.usage_failures.add(1);
                if !was_failing {
                    tracing::warn!(%error, "cannot write the file of usage; it is tried again");
                }
            }
            None if was_failing => tracing::info!("the file of usage is written again"),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests;
