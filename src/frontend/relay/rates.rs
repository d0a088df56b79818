//! Where a relay waits for the rates of its client: before a statement goes to the server, and
//! before more of a result is read.

use std::task::Context as TaskContext;

use crate::frontend::throttle::{Throttle, Toll};
use crate::protocol::frame::FrontendTag;

use crate::error::{Error, Kind};

use super::Relay;
use super::inspect::{LOOKED_AT_WHOLE, Looked};

/// Whether a message of the client may pass.
pub(super) enum Passage {
    Open,
    /// Not yet.
    Closed,
    /// Something else goes in its place.
    Refused,
}

impl Relay<'_> {
    /// Pays for a message of `size` bytes, of which `here` are there, if it is a statement.
    ///
    /// A Sync is not refused, since the client counts on its answer, and what is too long to be
    /// thrown away whole is not either: they wait for however long it takes.
    #[cold]
    pub(super) fn pay(&mut self, tag: FrontendTag, here: usize, size: usize) -> Passage {
        let throttle = self.client.throttle.as_mut();
        let Some(throttle) = throttle.filter(|throttle| throttle.is_due(tag)) else {
            return Passage::Open;
        };
        // The rest of what is short comes soon; then it can be refused.
        let is_short = size <= LOOKED_AT_WHOLE;
        if is_short && here < size {
            return Passage::Closed;
        }
        let may_refuse = tag != FrontendTag::SYNC && here >= size;
        let error = if may_refuse && self.handle.is_cancelled() {
            throttle.give_up();
            Error::new(
                Kind::QueryCanceled,
                "canceling statement due to user request",
            )
        } else {
            match throttle.pay(may_refuse) {
                Toll::Paid => {
                    // A cancel that came too late.
                    self.handle.take_cancelled();
                    return Passage::Open;
                }
                Toll::Waits => {
                    self.awaits_rate = true;
                    return Passage::Closed;
                }
                Toll::Refused(error) => error,
            }
        };
        self.handle.take_cancelled();
        tracing::info!(tenant = %self.handle.tenant, user = %self.handle.user, client = self.handle.id,
            sqlstate = error.sqlstate(), %error, "statement refused");
        self.metrics.refused.add(1);
        match tag {
            FrontendTag::EXECUTE => {
                let refused = self.refuse_message(here, size, error);
                debug_assert!(matches!(refused, Ok(Looked::Answered)), "it is there whole");
            }
            // A FunctionCall leaves the unnamed statement alone.
            _ => self.send_refused(tag, tag == FrontendTag::FUNCTION_CALL, &error),
        }
        Passage::Refused
    }

    /// Puts other rates in force.
    pub fn set_throttle(&mut self, throttle: Option<Box<Throttle>>) {
        self.client.throttle = throttle;
        self.awaits_rate = false;
        self.is_slowed = false;
    }

    /// Sees to the waits that have ended. True: one has, so that there is something to do.
    #[cold]
    pub(super) fn poll_rates(&mut self, cx: &mut TaskContext<'_>) -> bool {
        let Some(throttle) = &mut self.client.throttle else {
            return false;
        };
        if self.awaits_rate && self.ledger.runs_nothing() {
            self.handle.may_be_cancelled();
        }
        let is_over = throttle.poll(cx).is_ready() || self.handle.is_cancelled();
        let pays = self.awaits_rate && is_over;
        let flows = self.is_slowed && throttle.poll_slow(cx).is_ready();
        self.awaits_rate &= !pays;
        self.is_slowed &= !flows;
        pays || flows
    }
}
