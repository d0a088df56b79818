//! Keeps a client within the rates of its tenant, placement, server and proxy.
//!
//! Each statement is paid for at one level after the other, the tenant's own first, so that what
//! waits for its tenant's rate does not use what others share. Paid for is a Query, a FunctionCall,
//! an Execute, and a Sync with no Execute before it.
//!
//! Only clients that have a rate have a [`Throttle`]; for the others all this is one branch.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use crate::app::App;
use crate::backend::instance::Instance;
use crate::config::Route;
use crate::error::{Error, Kind};
use crate::protocol::frame::FrontendTag;
use crate::tenant::meter::{Meter, Over, Unit};
use crate::tenant::state::TenantState;
use crate::timer;

/// Whose rate it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Tenant,
    Placement,
    Server,
    Proxy,
}

/// Whether a statement may be sent.
#[derive(Debug)]
pub enum Toll {
    Paid,
    /// Not before [`Throttle::poll`] is ready; then it is to be asked again.
    Waits,
    Refused(Error),
}

pub struct Throttle {
    tenant: Arc<TenantState>,
    /// Those that have rates, the nearest first.
    levels: Vec<(Level, Arc<Meter>)>,
    /// Longest wait of a statement.
    patience: Duration,
    /// The level that the next statement is to be paid for at.
    next: usize,
    /// When it first had to be.
    since: Option<Instant>,
    wait: Option<Wait>,
    /// A statement that was not sent yet is paid for.
    has_paid: bool,
    /// An Execute was sent since the last Sync.
    has_executed: bool,
    /// Results are held back until then.
    slow_until: Option<Instant>,
    slow: Option<Wait>,
}

/// Until it is over, or the rates are others than when it began.
struct Wait {
    sleep: Pin<Box<Sleep>>,
    changes: u64,
}

impl Throttle {
    /// None: nothing is limited.
    pub fn new(
        app: &App,
        tenant: &Arc<TenantState>,
        route: &Route,
        instance: &Instance,
    ) -> Option<Box<Self>> {
        let levels = [
            (Level::Tenant, tenant.meter.clone()),
            (Level::Placement, app.placement_meter(&route.placement.name)),
            (Level::Server, instance.meter.clone()),
            (Level::Proxy, app.meter.clone()),
        ];
        if !levels.iter().any(|(_, meter)| meter.is_on()) {
            return None;
        }
        let levels = levels.into_iter().filter(|(_, meter)| meter.is_on());
        Some(Box::new(Self {
            tenant: tenant.clone(),
            levels: levels.collect(),
            patience: tenant.checkout_timeout(&app.config().timeouts),
            next: 0,
            since: None,
            wait: None,
            has_paid: false,
            has_executed: false,
            slow_until: None,
            slow: None,
        }))
    }

    /// Whether a message is to be paid for before it is sent.
    pub fn is_due(&self, tag: FrontendTag) -> bool {
        match tag {
            FrontendTag::QUERY | FrontendTag::FUNCTION_CALL | FrontendTag::EXECUTE => true,
            FrontendTag::SYNC => !self.has_executed,
            _ => false,
        }
    }

    /// Pays for the client's next statement, unless that was done. `may_refuse`: it need not be
    /// sent if it would have to wait too long.
    pub fn pay(&mut self, may_refuse: bool) -> Toll {
        if self.has_paid {
            return Toll::Paid;
        }
        if self.wait.is_some() {
            return Toll::Waits;
        }
        while let Some((level, meter)) = self.levels.get(self.next) {
            let now = Instant::now();
            let end = *self.since.get_or_insert(now) + self.patience;
            let patience = match may_refuse {
                true => end.saturating_duration_since(now),
                false => Duration::MAX,
            };
            match meter.take_statement(now, patience) {
                Ok(Duration::ZERO) => self.next += 1,
                Ok(wait) => {
                    self.next += 1;
                    self.tenant.metrics.rate_waits.add(1);
                    self.wait = Some(self.wait_for(wait));
                    return Toll::Waits;
                }
                Err(over) => {
                    let error = self.refusal(*level, over);
                    (self.next, self.since) = (0, None);
                    self.tenant.metrics.rate_refusals.add(1);
                    return Toll::Refused(error);
                }
            }
        }
        (self.next, self.since) = (0, None);
        self.has_paid = true;
        Toll::Paid
    }

    /// Ready when a statement that waits is to be [paid](Self::pay) for again.
    pub fn poll(&mut self, cx: &mut TaskContext<'_>) -> Poll<()> {
        let changes = self.changes();
        if let Some(wait) = &mut self.wait {
            ready!(wait.poll(changes, cx));
            self.wait = None;
        }
        Poll::Ready(())
    }

    /// The statement that waits is not sent. It has used up its turn.
    pub fn give_up(&mut self) {
        (self.wait, self.next, self.since) = (None, 0, None);
    }

    fn wait_for(&self, time: Duration) -> Wait {
        Wait {
            sleep: Box::pin(timer::sleep(time)),
            changes: self.changes(),
        }
    }

    fn changes(&self) -> u64 {
        self.levels.iter().map(|(_, meter)| meter.changes()).sum()
    }

    /// A message of this kind was sent.
    pub fn note_sent(&mut self, tag: FrontendTag) {
        match tag {
            FrontendTag::QUERY | FrontendTag::FUNCTION_CALL => self.has_paid = false,
            FrontendTag::EXECUTE => {
                self.has_paid = false;
                self.has_executed = true;
            }
            FrontendTag::SYNC => {
                let is_free = std::mem::take(&mut self.has_executed);
                self.has_paid &= is_free;
            }
            _ => {}
        }
    }

    /// Bytes were sent to the client. True: no more are to be until [`poll_slow`](Self::poll_slow)
    /// is ready.
    pub fn note_received(&mut self, bytes: usize) -> bool {
        let now = Instant::now();
        let waits = self
            .levels
            .iter()
            .map(|(_, meter)| meter.owe_bytes(bytes, now));
        let wait = waits.max().unwrap_or_default();
        self.slow = None;
        self.slow_until = (!wait.is_zero()).then(|| now + wait);
        self.slow_until.is_some()
    }

    /// Ready when results may flow again.
    pub fn poll_slow(&mut self, cx: &mut TaskContext<'_>) -> Poll<()> {
        if let Some(until) = self.slow_until.take() {
            self.tenant.metrics.rate_pauses.add(1);
            let left = until.saturating_duration_since(Instant::now());
            self.slow = Some(self.wait_for(left));
        }
        let changes = self.changes();
        if let Some(slow) = &mut self.slow {
            ready!(slow.poll(changes, cx));
            self.slow = None;
        }
        Poll::Ready(())
    }

    fn refusal(&self, level: Level, over: Over) -> Error {
        let whose = match level {
            Level::Tenant => "",
            Level::Placement => "the placement of ",
            Level::Server => "the server of ",
            Level::Proxy => "the proxy of ",
        };
        let unit = match over.unit {
            Unit::Statements => "statements",
            Unit::Bytes => "bytes",
        };
        let (id, per_second) = (&self.tenant.id, over.per_second);
        let message =
            format!("{whose}tenant \"{id}\" is over its rate of {per_second} {unit} per second");
        let detail = format!(
            "This statement would have had to wait for {:.1}s; the longest wait is {:?}.",
            over.wait.as_secs_f64(),
            self.patience
        );
        Error::new(Kind::ConfigurationLimitExceeded, message)
            .with_detail(detail)
            .with_hint("Send fewer statements at once, or try again later.")
    }
}

impl Wait {
    fn poll(&mut self, changes: u64, cx: &mut TaskContext<'_>) -> Poll<()> {
        if self.changes != changes {
            return Poll::Ready(());
        }
        self.sleep.as_mut().poll(cx)
    }
}
