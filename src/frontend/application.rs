//! An application's client between transactions: its messages are looked at one by one, until one
//! needs a server.

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::Poll;

use crate::audit::{self, Event};
use crate::config::Access;
use crate::error::{Error, Kind, Result};
use crate::frontend::attempts;
use crate::frontend::choosing::{Around, MAX_MESSAGE, Place, Verdict};
use crate::frontend::relay::{ClientSide, frame_size};
use crate::frontend::session::{Session, guard_of};
use crate::frontend::standing::farewell;
use crate::guard::{Guard, Offence, Passed};
use crate::protocol::frame::{FrontendTag, HEADER, Header};
use crate::sql::effects::Effects;

impl Session {
    /// Answers what the client says as far as no server is needed, and then has it served where the
    /// chosen tenant lives. `Break`: the client has left.
    pub(super) async fn serve_application(&mut self) -> Result<ControlFlow<()>> {
        loop {
            let Some((tag, size)) = self.next_message().await? else {
                return Ok(ControlFlow::Break(()));
            };
            if tag == FrontendTag::TERMINATE {
                return Ok(ControlFlow::Break(()));
            }
            let choosing = self.side.choosing.as_ref();
            let is_passed_over = choosing.is_some_and(|choosing| choosing.passes_over(tag));
            if !is_passed_over && matches!(self.hear(tag, size)?, Verdict::Passes) {
                break;
            }
            let here = size.min(self.side.inbox.len());
            self.side.inbox.consume(here);
            self.stray = size - here;
            if Header::read(self.side.inbox.bytes()).is_none() {
                return Ok(ControlFlow::Continue(()));
            }
        }
        let held = match self.go_to_place() {
            Ok(held) => held,
            Err(error) => {
                self.note_choice(&error);
                return self.refuse_batch(&error).await;
            }
        };
        self.serve_here(&held).await
    }

    fn hear(&mut self, tag: FrontendTag, size: usize) -> Result<Verdict> {
        let backslashes = self.side.reported.backslashes();
        let ClientSide {
            inbox,
            outbox,
            statements: Some(statements),
            choosing: Some(choosing),
            settings,
            reported,
            ..
        } = &mut self.side
        else {
            return Ok(Verdict::Passes);
        };
        let mut around = Around {
            statements,
            settings,
            interner: &self.standing.pool.statements,
            backslashes,
            server_version: reported.get("server_version").map(|version| &**version),
        };
        let frame = &inbox.bytes()[..size.min(inbox.len())];
        let verdict = match frame.len() < size {
            true => match choosing.hear_long(tag, frame, &around) {
                Ok(()) => Verdict::Passes,
                // It is too long to be thrown away.
                Err(error) => return Err(error),
            },
            false => choosing.hear_alone(tag, frame, &mut around),
        };
        match &verdict {
            Verdict::Answered { said, refused } => {
                outbox.extend(said);
                if let Some(error) = refused {
                    let error = error.clone();
                    self.note_choice(&error);
                }
            }
            Verdict::Passes => choosing.pass_next(),
        }
        Ok(verdict)
    }

    /// An attempt to act for whom it may not is for the audit.
    fn note_choice(&self, error: &Error) {
        if error.sqlstate() != Kind::InsufficientPrivilege.sqlstate() {
            return;
        }
        let metrics = &self.standing.tenant.metrics;
        metrics.refused.add(1);
        self.side.audit.record(&Event {
            kind: audit::Kind::Guard,
            who: attempts::who(&self.standing.registered, metrics),
            sqlstate: Some(error.sqlstate()),
            detail: Some("choice"),
            statement: None,
        });
    }

    /// Makes the place of the chosen tenant the client's, and returns what its transaction begins
    /// with.
    fn go_to_place(&mut self) -> Result<Vec<String>> {
        let Some(choosing) = &mut self.side.choosing else {
            return Ok(Vec::new());
        };
        let place = choosing.place()?;
        let held = choosing.held().to_vec();
        self.settle_at(place)?;
        if let Some(guard) = &self.side.guard {
            for text in &held {
                let passed = permit(guard, text)?;
                if let Some(variable) = passed.for_all {
                    let standing = &self.standing;
                    let who = attempts::who(&standing.registered, &standing.tenant.metrics);
                    attempts::note_for_all(&self.side.audit, who, &variable, Some(text.as_bytes()));
                }
            }
        }
        if let Some(choosing) = &mut self.side.choosing {
            choosing.begin_serving();
        }
        if self.side.audit.records(Access::Transactions) {
            let tenant = &self.standing.tenant;
            let who = attempts::who_for(&self.standing.registered, &tenant.id, &tenant.metrics);
            self.side.audit.record_access(who, "transaction");
        }
        Ok(held)
    }

    fn settle_at(&mut self, place: Place) -> Result<()> {
        let Place { tenant, route } = place;
        if let Some(choosing) = &self.side.choosing {
            choosing.check_home(&route, &self.side.settings)?;
        }
        let standing = &mut self.standing;
        if Arc::ptr_eq(&standing.route, &route) && standing.tenant.id == tenant {
            return Ok(());
        }
        let app = standing.app().clone();
        let pool = app.pool(&route)?;
        if !Arc::ptr_eq(&pool, &standing.pool)
            && let Some(statements) = &mut self.side.statements
        {
            statements.rehome(&pool.statements);
        }
        if standing.tenant.id != tenant {
            standing.tenant = app.tenant(&tenant);
        }
        standing.registered.serve(Some(tenant));
        standing.pool = pool;
        standing.route = route;
        let choosing = self.side.choosing.as_deref();
        self.side.guard = guard_of(&standing.route, &standing.pool, choosing);
        self.side.limits = standing.route.placement.transaction;
        self.side.throttle = standing.throttle();
        Ok(())
    }

    /// Waits until the next message is there, or so much of it as is looked at. None: the client
    /// has left.
    ///
    /// # Errors
    /// 57P01 if it must go, 08P01 for what is no message.
    async fn next_message(&mut self) -> Result<Option<(FrontendTag, usize)>> {
        let registered = &self.standing.registered;
        let ClientSide {
            stream,
            inbox,
            outbox,
            ..
        } = &mut self.side;
        poll_fn(|cx| {
            loop {
                if let Some(header) = Header::read(inbox.bytes()) {
                    let size = frame_size(header)?;
                    if inbox.len() >= size.min(HEADER + MAX_MESSAGE) {
                        return Poll::Ready(Ok(Some((FrontendTag(header.tag), size))));
                    }
                }
                registered.calls(cx.waker());
                if registered.must_go() {
                    return Poll::Ready(Err(farewell(registered)));
                }
                if !outbox.is_drained() {
                    let _ = outbox.poll_drain(cx, stream);
                }
                match inbox.poll_fill(cx, stream) {
                    Poll::Ready(Ok(n)) if n > 0 => {}
                    Poll::Ready(_) => return Poll::Ready(Ok(None)),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }
}

/// Whether what was held may run where it is served.
///
/// # Errors
/// As the guard says.
fn permit(guard: &Guard, text: &str) -> Result<Passed> {
    let effects = Effects::of(text.as_bytes(), false);
    let checked = guard.check_text(&effects, text.as_bytes(), false, &[]);
    checked.map_err(Offence::into_error)
}
