//! CALL in posture guarded and up: what a procedure does is asked of the server before the message
//! that calls it goes on.
//!
//! The question is a Query of the proxy's own. It is sent while nothing of the client's is owed, be
//! a transaction open or not, and the client is not heard until it is answered. It may go behind a
//! change of tenant that is under way, like a message of the client's: where that fails, the server
//! skips both.

use std::time::Instant;

use crate::backend::connection::{MAX_ANSWER, ServerConnection};
use crate::backend::residue::{Answer, Question};
use crate::config::Shared;
use crate::error::{Error, Kind, Result};
use crate::guard::Offence;
use crate::protocol::frame::{BackendTag, HEADER};
use crate::protocol::reply::ErrorFields;
use crate::sql::effects::{Effects, What};

use super::Relay;
use super::replies::lost;

/// Procedures call functions, which call functions: so often sources are asked for before a message
/// is refused.
const MAX_ROUNDS: u8 = 8;

/// What is asked about the message that the client's inbox begins with.
#[derive(Default)]
pub(super) struct Inquiry {
    pending: Option<Box<Pending>>,
    /// Questions so far.
    rounds: u8,
    /// Why the server did not say.
    failure: Option<Error>,
}

struct Pending {
    question: Question,
    answer: Answer,
    /// Bytes of the answer so far.
    size: usize,
}

impl Inquiry {
    pub(super) fn is_pending(&self) -> bool {
        self.pending.is_some()
    }
}

/// Whether a text may be judged by now.
pub(super) enum Known {
    Yes,
    /// The server was asked, or what was sent before is to be answered first.
    NotYet,
}

impl Relay<'_> {
    /// Sees to it that what a text calls is known, if that matters and can be.
    pub(super) fn look_up_calls(&mut self, effects: &Effects) -> Known {
        if !self.must_judge_calls(effects) || self.inquiry.failure.is_some() {
            return Known::Yes;
        }
        let functions = &self.pool.functions;
        let unknown = functions.judge_for_guard(effects, Instant::now()).unknown;
        if unknown.is_empty() || self.inquiry.rounds == MAX_ROUNDS {
            return Known::Yes;
        }
        if self.ledger.owes_ready() {
            self.name_is_open = true;
            return Known::NotYet;
        }
        if !self.ledger.can_be_asked() {
            return Known::Yes;
        }
        let question = Question {
            functions: unknown,
            ..Question::default()
        };
        self.server.outbox.extend(&question.message());
        if let Some(statements) = &mut self.client.statements {
            // A simple Query ends the unnamed statement.
            statements.begin_lease();
        }
        self.inquiry.rounds += 1;
        self.inquiry.pending = Some(Box::new(Pending {
            question,
            answer: Answer::default(),
            size: 0,
        }));
        Known::NotYet
    }

    /// Whether the procedures that a text calls may be run. After
    /// [`look_up_calls`](Self::look_up_calls).
    ///
    /// # Errors
    /// 42501.
    pub(super) fn permit_calls(&self, effects: &Effects) -> Result<()> {
        if !self.must_judge_calls(effects) {
            return Ok(());
        }
        let Some(guard) = &self.client.guard else {
            return Ok(());
        };
        let functions = &self.pool.functions;
        let verdict = functions.judge_for_guard(effects, Instant::now());
        let is_known = verdict.unknown.is_empty();
        let is_read = is_known && !(effects.what | verdict.effects.what).contains(What::OPAQUE);
        match guard.check(&verdict.effects) {
            Ok(()) if is_read => Ok(()),
            Ok(()) => Err(self.inquiry.failure.clone().unwrap_or_else(|| {
                denied(match is_known {
                    true => "It runs code that pgtenant does not read.",
                    false => "pgtenant cannot look it up here.",
                })
            })),
            Err(Offence { message, .. }) => Err(denied(&format!("It does this: {message}."))),
        }
    }

    /// The text is judged; what was asked about it is of no use for others.
    pub(super) fn end_inquiry(&mut self, effects: &Effects) {
        if effects.what.contains(What::CALLS) {
            self.inquiry = Inquiry::default();
        }
    }

    fn must_judge_calls(&self, effects: &Effects) -> bool {
        effects.what.contains(What::CALLS)
            && (self.client.guard.as_ref()).is_some_and(|guard| !guard.allows(Shared::Code))
    }

    /// Takes a message that answers the question, which the server's inbox begins with. None: it is
    /// not whole, or nobody is owed anything any more. False: it is for the client.
    pub(super) fn note_inquiry(&mut self) -> Result<Option<bool>> {
        let Some((tag, size)) = self.server.whole()? else {
            return Ok(None);
        };
        let Self {
            server, inquiry, ..
        } = self;
        let ServerConnection { inbox, .. } = &mut **server;
        let Some(pending) = &mut inquiry.pending else {
            return Err(lost("an answer to no question"));
        };
        let body = &inbox.bytes()[HEADER..size];
        pending.size += size;
        if pending.size > MAX_ANSWER {
            return Err(lost("the server answers more than was asked for"));
        }
        match tag {
            BackendTag::PARAMETER_STATUS | BackendTag::NOTIFICATION_RESPONSE => {
                return Ok(Some(false));
            }
            BackendTag::DATA_ROW => pending.answer.take(body),
            BackendTag::ERROR_RESPONSE => {
                let fields = ErrorFields::read(body);
                if fields.severity != "ERROR" {
                    return Ok(Some(false));
                }
                let is_canceled = fields.sqlstate == Kind::QueryCanceled.sqlstate();
                let error = fields.into_error(Kind::QueryCanceled);
                if std::mem::take(&mut self.just_switched) {
                    // As in the case of a message of the client's: it may be skipped, and never
                    // answered.
                    inquiry.pending = None;
                    self.give_up_switch(&error);
                    return Ok(None);
                }
                inquiry.failure = Some(match is_canceled {
                    true => error,
                    false => denied("pgtenant could not look it up.").caused_by(error.message()),
                });
            }
            BackendTag::READY_FOR_QUERY => {
                let Pending {
                    question, answer, ..
                } = &**pending;
                let failed = inquiry.failure.is_some();
                if !failed {
                    self.pool.functions.learn(question, answer, Instant::now());
                }
                inquiry.pending = None;
                self.ledger.note_question(failed);
            }
            // Notices are about the question.
            BackendTag::ROW_DESCRIPTION
            | BackendTag::COMMAND_COMPLETE
            | BackendTag::NOTICE_RESPONSE => {}
            _ => return Err(lost("the server says what it was not asked")),
        }
        self.just_switched = false;
        self.server.inbox.consume(size);
        Ok(Some(true))
    }
}

fn denied(detail: &str) -> Error {
    Error::new(
        Kind::InsufficientPrivilege,
        "permission denied to call this procedure",
    )
    .with_detail(detail)
    .with_hint("The operator may allow code.")
}
