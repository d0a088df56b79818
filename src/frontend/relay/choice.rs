//! What an application says while a server has its transaction.

use crate::error::{Error, Kind, Result};
use crate::frontend::choosing::{Around, MAX_MESSAGE, Verdict, text_of};
use crate::protocol::frame::FrontendTag;

use super::inspect::{Looked, has_text};
use super::{ClientSide, Hold, Relay};

/// What becomes of a message of an application's.
pub(super) enum Heard {
    Passes,
    /// More of it is needed, or answers to what was sent before it.
    Waits,
    /// The proxy has answered it, or sends something else in its place.
    Answered,
}

impl Relay<'_> {
    /// Looks at a message of `size` bytes at `at` in the client's inbox, of which `here` are there.
    ///
    /// # Errors
    /// What ends the client.
    #[expect(clippy::too_many_lines, reason = "the stages of a look, in order")]
    pub(super) fn look_at_choice(
        &mut self,
        tag: FrontendTag,
        at: usize,
        here: usize,
        size: usize,
    ) -> Result<Heard> {
        self.chooses = false;
        let concerns = matches!(
            tag,
            FrontendTag::QUERY
                | FrontendTag::PARSE
                | FrontendTag::BIND
                | FrontendTag::DESCRIBE
                | FrontendTag::EXECUTE
                | FrontendTag::CLOSE
                | FrontendTag::FUNCTION_CALL
        );
        let ClientSide {
            inbox,
            statements: Some(statements),
            choosing: Some(choosing),
            settings,
            ..
        } = &mut *self.client
        else {
            return Ok(Heard::Passes);
        };
        if !concerns || self.ledger.copy_is_open() || self.ledger.is_skipping() {
            return Ok(Heard::Passes);
        }
        if here < size && size <= MAX_MESSAGE {
            return Ok(Heard::Waits);
        }
        let backslashes = self.server.parameters.backslashes();
        let mut around = Around {
            statements,
            settings,
            interner: &self.pool.statements,
            backslashes,
            server_version: self.server.parameters.get("server_version").map(|v| &**v),
        };
        let frame = &inbox.bytes()[at..at + here.min(size)];
        if choosing.take_pass() {
            self.chooses = choosing.chooses(tag, frame, &around);
            return Ok(Heard::Passes);
        }
        let is_whole = here >= size;
        // Until the Sync it is not told whether backslashes are escapes now.
        let is_unsure = self.hold == Hold::AtSync && !self.ledger.is_empty();
        let text = text_of(tag, frame, &around);
        // What is too long to be looked at could be read in either way.
        let is_long = !is_whole && has_text(tag);
        let is_ambiguous = || text.is_some_and(|text| choosing.is_ambiguous(text));
        let is_read_anew = is_unsure && (is_long || is_ambiguous());
        if is_read_anew {
            return self.refuse_choice(tag, here, size, strings_unknown());
        }
        let must_follow =
            choosing.is_in_doubt() || (is_whole && choosing.answers(tag, frame, &around));
        if must_follow && !self.ledger.is_empty() {
            // PostgreSQL's answers to what was sent before it come first.
            self.choice_waits = true;
            return Ok(Heard::Waits);
        }
        let heard = match is_whole {
            true => choosing.hear(tag, frame, &mut around),
            false => choosing
                .hear_long(tag, frame, &around)
                .map(|()| Verdict::Passes),
        };
        match heard {
            Ok(Verdict::Passes) => {
                self.chooses = is_whole && choosing.chooses(tag, frame, &around);
                Ok(Heard::Passes)
            }
            Ok(Verdict::Answered { said, .. }) => {
                self.client.outbox.extend(&said);
                Ok(Heard::Answered)
            }
            Err(error) => self.refuse_choice(tag, here, size, error),
        }
    }

    /// Has the server fail in place of a message of `size` bytes, of which `here` are there.
    ///
    /// # Errors
    /// The same error, for a message that is too long to be thrown away.
    fn refuse_choice(
        &mut self,
        tag: FrontendTag,
        here: usize,
        size: usize,
        error: Error,
    ) -> Result<Heard> {
        self.note_refused("choice", None, &error);
        if matches!(tag, FrontendTag::QUERY | FrontendTag::FUNCTION_CALL) {
            if here < size {
                return Err(error);
            }
            self.send_refused(FrontendTag::QUERY, false, &error);
            return Ok(Heard::Answered);
        }
        Ok(match self.refuse_message(here, size, error)? {
            Looked::Answered => Heard::Answered,
            _ => Heard::Waits,
        })
    }
}

fn strings_unknown() -> Error {
    let message = "a text with backslashes cannot follow one that sets parameters in a pipeline";
    Error::new(Kind::FeatureNotSupported, message)
        .with_hint("Send a Sync behind what sets parameters.")
}
