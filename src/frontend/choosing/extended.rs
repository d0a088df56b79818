//! Extended messages of an application's client.

use super::bound::{self, Bound, bound};
use super::local::Mode;
use super::model::Event;
use super::say::Said;
use super::{
    Around, Choosing, MAX_KEPT, MAX_KEPT_BYTES, Portal, Verdict, aborted, answered, is_exit,
    no_statement, too_much, unclear,
};
use crate::backend::binding::is_reported;
use crate::error::Result;
use crate::protocol::frame::{HEADER, split_cstr};
use crate::sql::choice::Step;

impl Choosing {
    /// The one statement of a definition, if it is of those that the proxy may answer.
    fn step_of(&self, text: &[u8], around: &Around<'_>) -> Step {
        let mut steps = self.read(text, around.backslashes);
        match (steps.pop(), steps.is_empty()) {
            (None, _) => Step::Empty,
            (Some(step), true) => step,
            (Some(step), false) if step.may_choose() || steps.iter().any(Step::may_choose) => {
                Step::Unclear
            }
            _ => Step::Other,
        }
    }

    /// Whether its Parse, Describe and Close are the proxy's to answer.
    fn is_known(&self, step: &Step) -> bool {
        self.is_always_local(step)
            || matches!(
                step,
                Step::Set(_)
                    | Step::Reset(_)
                    | Step::SetConfig(..)
                    | Step::SetConfigs(_)
                    | Step::FromJson(_)
                    | Step::Call(..)
            )
            || (self.served.is_none() && self.may_hold(step))
    }

    /// Whether it can be carried out without a server, while none has the transaction.
    pub(super) fn may_hold(&self, step: &Step) -> bool {
        match step {
            Step::Begin { .. } | Step::Commit { .. } | Step::Rollback { .. } | Step::Empty => true,
            Step::Savepoint(_)
            | Step::Release(_)
            | Step::RollbackTo(_)
            | Step::Characteristics(_) => self.model.is_explicit(),
            Step::SetsLocally(name, _) => {
                let is_role = matches!(&**name, "role" | "session_authorization");
                self.model.is_explicit() && !is_role && !is_reported(name)
            }
            _ => false,
        }
    }

    pub(super) fn parse(&mut self, frame: &[u8], around: &mut Around<'_>) -> Result<Verdict> {
        let definition = frame.get(HEADER..).and_then(split_cstr);
        let Some((text, types)) = definition.and_then(|(_, definition)| split_cstr(definition))
        else {
            return Ok(Verdict::Passes);
        };
        let step = self.step_of(text, around);
        if self.is_aborted() && !is_exit(&step) {
            return Err(aborted());
        }
        if step == Step::Unclear
            || (self.is_known(&step) && bound::types_of(&step, types).is_none())
        {
            return Err(unclear());
        }
        if !self.is_known(&step) {
            return Ok(Verdict::Passes);
        }
        if matches!(
            step,
            Step::SetConfig(..) | Step::SetConfigs(_) | Step::FromJson(_)
        ) {
            // What else it sets is for the guard of the place where it runs.
            around.statements.check_binds();
        }
        (around.statements).define(frame, around.settings, around.interner, around.backslashes)?;
        let mut said = Said::default();
        said.parse_complete();
        Ok(answered(said))
    }

    pub(super) fn bind(&mut self, body: &[u8], around: &mut Around<'_>) -> Result<Verdict> {
        let Some((portal, rest)) = split_cstr(body) else {
            return Ok(Verdict::Passes);
        };
        let Some((name, rest)) = split_cstr(rest) else {
            return Ok(Verdict::Passes);
        };
        let definition = around.statements.definition(name);
        let Some((text, types)) = definition else {
            self.portals.remove(portal);
            return match self.is_aborted() && self.served.is_none() {
                true => Err(no_statement(name)),
                false => Ok(Verdict::Passes),
            };
        };
        let step = self.step_of(text, around);
        // A transaction that has failed takes the Parse of an empty text, and not its Bind
        // (postgres.c).
        if self.is_aborted() && (!is_exit(&step) || step == Step::Empty) {
            return Err(aborted());
        }
        let is_local =
            self.is_always_local(&step) || (self.served.is_none() && self.may_hold(&step));
        let event = match self.is_known(&step) {
            true => {
                let types = bound::types_of(&step, types).ok_or_else(unclear)?;
                let bound = bound(rest, types.len(), name)?;
                let event = self.event(&step, &bound)?;
                // A call that sets something else is a statement like any other.
                let is_ours = match &step {
                    Step::SetConfig(call, _) => {
                        event != Event::Nothing && self.is_local_call(call, &bound)
                    }
                    _ => true,
                };
                if is_local && is_ours {
                    let local = Portal::Local {
                        step,
                        bound,
                        is_done: false,
                    };
                    self.insert_portal(portal, local)?;
                    let mut said = Said::default();
                    said.bind_complete();
                    return Ok(answered(said));
                }
                event
            }
            false => self.event(&step, &Bound::default())?,
        };
        if let Event::Choose { value, .. } = &event {
            self.check(value.as_ref())?;
            // Where a tenant is served, its variable is not reset.
            if value.is_none() && self.served.as_ref().is_some_and(Option::is_some) {
                return Err(unclear());
            }
            // It is served for the tenant that it chooses.
            self.enter();
            self.served.get_or_insert(value.clone());
        }
        // Of one that is not known, nothing is expected.
        match event {
            Event::Nothing => self.portals.remove(portal),
            event => self.insert_portal(portal, Portal::Server(event))?,
        };
        Ok(Verdict::Passes)
    }

    fn insert_portal(&mut self, name: &[u8], portal: Portal) -> Result<Option<Portal>> {
        match self.portals.len() < MAX_KEPT || self.portals.contains_key(name) {
            true => Ok(self.portals.insert(name.into(), portal)),
            false => Err(too_much()),
        }
    }

    /// Keeps a statement for the server that will have the transaction.
    pub(super) fn keep_for_server(&mut self, text: String) -> Result<()> {
        let bytes = self.held.iter().map(String::len).sum::<usize>() + text.len();
        if self.held.len() >= MAX_KEPT || bytes > MAX_KEPT_BYTES {
            return Err(too_much());
        }
        self.held.push(text);
        Ok(())
    }

    pub(super) fn describe(&mut self, body: &[u8], around: &Around<'_>) -> Verdict {
        let mut said = Said::default();
        match body.split_first() {
            Some((b'S', name)) => {
                let name = split_cstr(name).map(|(name, _)| name);
                let definition = name.and_then(|name| around.statements.definition(name));
                let Some((text, types)) = definition else {
                    return Verdict::Passes;
                };
                let step = self.step_of(text, around);
                // What a function takes and returns, its server knows.
                let is_told = self.is_known(&step) && !matches!(step, Step::Call(..));
                let types = bound::types_of(&step, types).filter(|_| is_told);
                let Some(types) = types else {
                    return Verdict::Passes;
                };
                said.parameters(&types);
                self.say_columns(&step, &[0], &mut said);
            }
            Some((b'P', name)) => {
                let name = split_cstr(name).map_or(&[][..], |(name, _)| name);
                let Some(Portal::Local { step, bound, .. }) = self.portals.get(name) else {
                    return Verdict::Passes;
                };
                self.say_columns(step, bound.formats(), &mut said);
            }
            _ => return Verdict::Passes,
        }
        answered(said)
    }

    /// What a statement returns.
    fn say_columns(&self, step: &Step, formats: &[i16], said: &mut Said) {
        let names: Vec<&str> = match step {
            Step::SetConfig(_, column) => vec![column],
            Step::SetConfigs(calls) => calls.iter().map(|(_, column)| &**column).collect(),
            Step::FromJson(_) => vec!["set_config"],
            Step::Show(variable) => vec![&self.choices.names[*variable]],
            _ => return said.no_data(),
        };
        said.row_description(&names, formats);
    }

    pub(super) fn execute(&mut self, body: &[u8]) -> Result<Verdict> {
        let Some((name, rows)) = split_cstr(body) else {
            return Ok(Verdict::Passes);
        };
        let portal = self.portals.get(name).cloned();
        let (step, bound, was_done) = match portal {
            Some(Portal::Local {
                step,
                bound,
                is_done,
            }) => (step, bound, is_done),
            Some(Portal::Server(event)) => {
                self.expect(event);
                return Ok(Verdict::Passes);
            }
            None => {
                self.may_serve()?;
                self.expect(Event::Nothing);
                return Ok(Verdict::Passes);
            }
        };
        let mut said = Said::default();
        if was_done {
            said.complete(match step {
                Step::Show(_) => "SHOW",
                _ => "SELECT 0",
            });
            return Ok(answered(said));
        }
        // Of one row and no more, PostgreSQL does not look whether there is another.
        let is_one = rows
            .first_chunk()
            .is_some_and(|rows| i32::from_be_bytes(*rows) == 1);
        let mode = match is_one {
            true => Mode::OneRow,
            false => Mode::Execute,
        };
        self.enter();
        match self.run(&step, &bound, mode, &mut said) {
            Ok(true) => {}
            Ok(false) => return Err(unclear()),
            // A warning comes ahead of the error.
            Err(error) if self.served.is_none() => return Ok(self.failed_message(said, error)),
            Err(error) => return Err(error),
        }
        if let Some(Portal::Local { is_done, .. }) = self.portals.get_mut(name) {
            *is_done = true;
        }
        Ok(answered(said))
    }

    pub(super) fn close(&mut self, body: &[u8], around: &mut Around<'_>) -> Verdict {
        let mut said = Said::default();
        said.close_complete();
        match body.split_first() {
            Some((b'P', name)) => {
                let name = split_cstr(name).map_or(&[][..], |(name, _)| name);
                match (self.portals.remove(name), &self.served) {
                    (Some(Portal::Local { .. }), _) | (_, None) => answered(said),
                    _ => Verdict::Passes,
                }
            }
            Some((b'S', name)) if self.served.is_none() => {
                let name = split_cstr(name).map_or(&[][..], |(name, _)| name);
                // Where no server is, the name is all there is to it.
                around.statements.forget(name);
                answered(said)
            }
            _ => Verdict::Passes,
        }
    }
}
