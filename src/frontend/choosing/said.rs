//! What an application's client says: which of it the proxy answers, and what a text does.

use super::bound::Bound;
use super::local::Mode;
use super::model::{Block, Event, Value};
use super::say::Said;
use super::{
    Around, BLOCKS_IN_PIPELINES, Choosing, Portal, Verdict, aborted, answered, barred, is_control,
    is_exit, pairs_of, unclear,
};
use crate::config::{Choices, Way};
use crate::error::{Error, Kind, Result};
use crate::protocol::frame::{FrontendTag, HEADER, split_cstr};
use crate::sql::choice;
use crate::sql::choice::{Chosen, Scope, SetConfig, Step, Term};
use crate::sql::finds;

impl Choosing {
    /// Whether the proxy would answer this message, of which `frame` is the whole, while a server
    /// has the transaction. If so, what that owes must be answered first.
    pub fn answers(&self, tag: FrontendTag, frame: &[u8], around: &Around<'_>) -> bool {
        let body = &frame[HEADER..];
        let is_local =
            |portal: &[u8]| matches!(self.portals.get(portal), Some(Portal::Local { .. }));
        match tag {
            FrontendTag::QUERY => self.may_matter(body),
            FrontendTag::PARSE | FrontendTag::BIND => {
                text_of(tag, frame, around).is_some_and(|text| self.may_matter(text))
            }
            FrontendTag::DESCRIBE | FrontendTag::CLOSE => match body.split_first() {
                Some((b'S', name)) => {
                    let name = split_cstr(name).map(|(name, _)| name);
                    let definition = name.and_then(|name| around.statements.definition(name));
                    definition.is_some_and(|(text, _)| self.may_matter(text))
                }
                Some((_, name)) => split_cstr(name).is_some_and(|(name, _)| is_local(name)),
                None => false,
            },
            FrontendTag::EXECUTE => split_cstr(body).is_some_and(|(name, _)| is_local(name)),
            _ => false,
        }
    }

    /// Whether a message that passes may set a variable of the application's: what it sets it to
    /// was looked at.
    pub fn chooses(&self, tag: FrontendTag, frame: &[u8], around: &Around<'_>) -> bool {
        let has_text = matches!(tag, FrontendTag::QUERY | FrontendTag::PARSE);
        let text = text_of(tag, frame, around).filter(|_| has_text);
        let steps = |text: &[u8]| self.read(text, around.backslashes);
        text.filter(|text| self.may_matter(text))
            .is_some_and(|text| steps(text).iter().any(Step::may_choose))
    }

    /// Whether messages are passed over up to the Sync, or are of a COPY that is none.
    pub fn passes_over(&self, tag: FrontendTag) -> bool {
        let is_of_copy = matches!(
            tag,
            FrontendTag::COPY_DATA | FrontendTag::COPY_DONE | FrontendTag::COPY_FAIL
        );
        self.served.is_none() && (is_of_copy || (self.skips && tag != FrontendTag::SYNC))
    }

    /// Deals with a message that is too long to be looked at whole.
    ///
    /// # Errors
    /// As [`hear`](Self::hear).
    pub fn hear_long(&mut self, tag: FrontendTag, start: &[u8], around: &Around<'_>) -> Result<()> {
        match tag {
            FrontendTag::QUERY | FrontendTag::FUNCTION_CALL => {
                let body = start.get(HEADER..).unwrap_or_default();
                if tag == FrontendTag::FUNCTION_CALL && !calls_large_object(body) {
                    return Err(unclear());
                }
                self.may_serve()?;
                self.enter();
            }
            FrontendTag::BIND => {
                let names = split_cstr(start.get(HEADER..).unwrap_or_default());
                let names = names.and_then(|(portal, rest)| Some((portal, split_cstr(rest)?.0)));
                let Some((portal, name)) = names else {
                    return Err(unclear());
                };
                let definition = around.statements.definition(name);
                if definition.is_some_and(|(text, _)| self.may_matter(text)) {
                    return Err(unclear());
                }
                self.portals.remove(portal);
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether a text may choose or show: cheap, and true for more than do.
    pub(super) fn may_matter(&self, text: &[u8]) -> bool {
        let finds = |word: &[u8]| finds(text, word);
        let last = |name: &'_ str| name.rfind('.').map_or(0, |dot| dot + 1);
        // With Unicode escapes it may be written in any way.
        let Choices {
            names, functions, ..
        } = &*self.choices;
        finds(b"set_config")
            || finds(b"u&\"")
            || names
                .iter()
                .any(|name| finds(&name.as_bytes()[last(name)..]))
            || functions
                .iter()
                .any(|function| finds(function.name.as_bytes()))
    }

    /// Whether the proxy answers it wherever the transaction is.
    pub(super) fn is_always_local(&self, step: &Step) -> bool {
        match step {
            Step::Set(Chosen { variable, .. }) | Step::Reset(variable) | Step::Show(variable) => {
                self.choices.ways[*variable].is_local()
            }
            Step::SetConfig(call, _) => match &call.name {
                Term::Literal(name) => self.way(name).is_none_or(Way::is_local),
                _ => true,
            },
            _ => false,
        }
    }

    /// What the value of a parameter says. None: nothing of the tenant.
    pub(super) fn way(&self, name: &str) -> Option<&Way> {
        let mut names = self.choices.names.iter();
        let at = names.position(|own| own.eq_ignore_ascii_case(name))?;
        self.choices.ways.get(at)
    }

    /// Whether it matters to what a text chooses whether backslashes are escapes.
    pub fn is_ambiguous(&self, text: &[u8]) -> bool {
        text.contains(&b'\\') && self.read(text, false) != self.read(text, true)
    }

    pub(super) fn read(&self, text: &[u8], backslashes: bool) -> Vec<Step> {
        let Choices {
            names, functions, ..
        } = &*self.choices;
        choice::read_all(text, names, functions, backslashes)
    }

    /// Deals with a message, of which `frame` is the whole.
    ///
    /// # Errors
    /// What the client is told in place of an answer.
    pub fn hear(
        &mut self,
        tag: FrontendTag,
        frame: &[u8],
        around: &mut Around<'_>,
    ) -> Result<Verdict> {
        let body = &frame[HEADER..];
        if self.skips && tag != FrontendTag::SYNC && self.served.is_none() {
            return Ok(answered(Said::default()));
        }
        match tag {
            FrontendTag::QUERY => {
                self.is_pipelined = false;
                let text = split_cstr(body).map_or(body, |(text, _)| text);
                self.query(text, around)
            }
            FrontendTag::PARSE => self.parse(frame, around),
            FrontendTag::BIND => self.bind(body, around),
            FrontendTag::DESCRIBE => Ok(self.describe(body, around)),
            FrontendTag::EXECUTE => {
                let executed = self.execute(body);
                let version = around.server_version.and_then(|version| {
                    let major = version.split(|c: char| !c.is_ascii_digit()).next()?;
                    major.parse::<u32>().ok()
                });
                let last = self.pending.back();
                let has_ended = self.model.block() == Block::None
                    || matches!(last, Some(Event::Commit { .. } | Event::Rollback { .. }));
                self.is_pipelined =
                    !has_ended && version.is_some_and(|major| major >= BLOCKS_IN_PIPELINES);
                executed
            }
            FrontendTag::CLOSE => Ok(self.close(body, around)),
            FrontendTag::SYNC if self.served.is_none() => {
                self.is_pipelined = false;
                self.skips = false;
                self.model.end_implicit();
                if self.model.block() == Block::None {
                    self.portals.clear();
                }
                let mut said = Said::default();
                said.ready(self.model.status());
                Ok(answered(said))
            }
            FrontendTag::FLUSH
            | FrontendTag::COPY_DATA
            | FrontendTag::COPY_DONE
            | FrontendTag::COPY_FAIL
                if self.served.is_none() =>
            {
                Ok(answered(Said::default()))
            }
            FrontendTag::FUNCTION_CALL => {
                if !calls_large_object(body) {
                    return Err(unclear());
                }
                self.may_serve()?;
                self.pending.clear();
                Ok(Verdict::Passes)
            }
            _ => Ok(Verdict::Passes),
        }
    }

    /// As [`hear`](Self::hear), while no server has the transaction: an error is an answer, too.
    pub fn hear_alone(
        &mut self,
        tag: FrontendTag,
        frame: &[u8],
        around: &mut Around<'_>,
    ) -> Verdict {
        match self.hear(tag, frame, around) {
            Ok(verdict) => verdict,
            Err(error) if matches!(tag, FrontendTag::QUERY | FrontendTag::FUNCTION_CALL) => {
                self.failed_query(Said::default(), error)
            }
            Err(error) => self.failed_message(Said::default(), error),
        }
    }

    /// Whether what needs a place may be sent to the server that has the transaction.
    pub(super) fn may_serve(&self) -> Result<()> {
        let is_elsewhere = match &self.served {
            Some(served) => served.as_ref() != self.model.current(),
            None => true,
        };
        match self.is_aborted() {
            true if is_elsewhere => Err(aborted()),
            // The server says so.
            true => Ok(()),
            false if self.served.is_some() && is_elsewhere => {
                self.check_bar().and(Err(self.another()))
            }
            false => self.check_bar(),
        }
    }

    /// After a choice that was refused nothing is served, also where the transaction or the server
    /// connection of the one before is still there.
    fn check_bar(&self) -> Result<()> {
        match self.barred {
            true => Err(barred()),
            false => Ok(()),
        }
    }

    /// Whether PostgreSQL runs nothing of a text, because the transaction has failed.
    fn passes_over_text(&self, steps: &[Step]) -> bool {
        let first = steps.first().filter(|first| **first != Step::Unclear);
        self.is_aborted() && first.is_some_and(|first| !is_exit(first))
    }

    pub(super) fn query(&mut self, text: &[u8], around: &mut Around<'_>) -> Result<Verdict> {
        let steps = self.read(text, around.backslashes);
        // One step that needs a server has changed nothing.
        let before = (steps.len() > 1).then(|| self.clone());
        if steps.is_empty() && self.served.is_some() {
            return Ok(Verdict::Passes);
        }
        let mut said = Said::default();
        if steps.is_empty() {
            said.empty_query();
        }
        for step in &steps {
            if steps.len() > 1 {
                self.enter();
            }
            let may_answer = self.served.is_none() || self.is_always_local(step);
            let run = match may_answer {
                true => self.run(step, &Bound::default(), Mode::Query, &mut said),
                false => Ok(false),
            };
            match run {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) if self.served.is_some() => return Err(error),
                // What it said before stands.
                Err(error) => return Ok(self.failed_query(said, error)),
            }
            // It needs a server, and goes there whole.
            if let Some(before) = before {
                *self = before;
            }
            return match self.pass(&steps) {
                Ok(()) => Ok(Verdict::Passes),
                Err(_) if self.passes_over_text(&steps) => Err(aborted()),
                Err(error) => {
                    // A choice that was refused in it bars the client as any other.
                    self.barred |= steps.iter().any(Step::may_choose);
                    Err(error)
                }
            };
        }
        self.model.end_implicit();
        around.statements.query();
        said.ready(self.model.status());
        Ok(answered(said))
    }

    /// An extended message has failed; `said` is what it said before.
    pub(super) fn failed_message(&mut self, mut said: Said, error: Error) -> Verdict {
        said.error(&error);
        self.enter();
        self.model.fail();
        self.skips = true;
        Verdict::Answered {
            said: said.0,
            refused: Some(error),
        }
    }

    fn failed_query(&mut self, mut said: Said, error: Error) -> Verdict {
        said.error(&error);
        self.model.fail();
        self.model.end_implicit();
        said.ready(self.model.status());
        Verdict::Answered {
            said: said.0,
            refused: Some(error),
        }
    }

    /// A text goes to a server whole: what it chooses must be the tenant that it is served for.
    fn pass(&mut self, steps: &[Step]) -> Result<()> {
        if self.is_aborted() && self.served.is_none() {
            // The server would have to be brought to the same failure first.
            let message =
                "a transaction that failed before it was served ends by a statement alone";
            return Err(Error::new(Kind::FeatureNotSupported, message)
                .with_hint("Send ROLLBACK as a statement of its own."));
        }
        let mut ahead = self.model.clone();
        ahead.begin_implicit();
        let mut events = Vec::new();
        let mut target = self.served.clone();
        let mut chosen: Vec<Option<Value>> = Vec::new();
        let mut needs_place = false;
        for step in steps {
            let event = self.event(step, &Bound::default())?;
            if let Event::Choose { value, .. } = &event {
                self.checked(value.as_ref())?;
                chosen.push(value.clone());
            }
            // What a statement chooses, it is served for.
            if matches!(event, Event::Choose { .. }) || is_control(step) {
                ahead.apply(&event);
            }
            let runs = matches!(
                step,
                Step::Other
                    | Step::SetConfigs(_)
                    | Step::FromJson(_)
                    | Step::Call(..)
                    | Step::Prepare
            );
            let runs = runs || (step.may_choose() && !self.is_always_local(step));
            if runs || matches!(step, Step::ResetAll | Step::Deallocate(_)) {
                if ahead.has_failed() && self.served.is_none() {
                    return Err(aborted());
                }
                needs_place = true;
                let current = ahead.current().cloned();
                if *target.get_or_insert_with(|| current.clone()) != current {
                    return Err(match self.barred && chosen.iter().all(Option::is_none) {
                        true => barred(),
                        false => self.another(),
                    });
                }
            }
            events.push(event);
        }
        let target = target.unwrap_or_else(|| ahead.current().cloned());
        if chosen.iter().any(|value| *value != target) {
            return Err(match chosen.iter().all(Option::is_some) {
                true => self.another(),
                false => unclear(),
            });
        }
        if !chosen.is_empty() {
            self.barred = false;
        } else if needs_place && !self.passes_over_text(steps) {
            self.check_bar()?;
        }
        self.enter();
        self.pending.extend(events);
        self.served.get_or_insert(target);
        Ok(())
    }

    /// What a step does when it is carried out by a server.
    pub(super) fn event(&self, step: &Step, bound: &Bound) -> Result<Event> {
        Ok(match step {
            Step::Begin { .. } => Event::Begin,
            Step::Commit { chain } => Event::Commit { chain: *chain },
            Step::Rollback { chain } => Event::Rollback { chain: *chain },
            Step::Prepare => Event::Commit { chain: false },
            Step::Savepoint(name) => Event::Savepoint(name.clone()),
            Step::Release(name) => Event::Release(name.clone()),
            Step::RollbackTo(name) => Event::RollbackTo(name.clone()),
            Step::Set(chosen) => self.set(chosen)?,
            Step::Call(at, term, _) => {
                let value = bound.argument(term).ok_or_else(unclear)?;
                Event::Choose {
                    value: value.filter(|value| !value.is_empty()).map(Value::from),
                    is_local: self.choices.functions[*at].is_local,
                }
            }
            Step::Reset(_) => Event::Choose {
                value: None,
                is_local: false,
            },
            Step::SetConfig(call, _) => self.chosen_by([call], bound)?,
            Step::SetConfigs(calls) => self.chosen_by(calls.iter().map(|(call, _)| call), bound)?,
            Step::FromJson(term) => self.chosen_by_json(term, bound)?,
            Step::ResetAll => Event::ResetAll,
            Step::Unclear => return Err(unclear()),
            Step::Characteristics(_)
            | Step::SetsLocally(..)
            | Step::Show(_)
            | Step::Deallocate(_)
            | Step::Empty
            | Step::Other => Event::Nothing,
        })
    }

    /// What SET chooses.
    pub(super) fn set(&self, chosen: &Chosen) -> Result<Event> {
        let way = &self.choices.ways[chosen.variable];
        Ok(Event::Choose {
            value: way.chosen(chosen.value.as_deref())?,
            is_local: chosen.scope == Scope::Local,
        })
    }

    /// What calls of `set_config` choose together.
    pub(super) fn chosen_by<'s>(
        &self,
        calls: impl IntoIterator<Item = &'s SetConfig>,
        bound: &Bound,
    ) -> Result<Event> {
        let mut event = Event::Nothing;
        for call in calls {
            let name = bound.text(&call.name).ok_or_else(unclear)?;
            let Some(way) = self.way(&name.unwrap_or_default()) else {
                continue;
            };
            let value = bound.text(&call.value).ok_or_else(unclear)?;
            let is_local = bound.boolean(&call.is_local).ok_or_else(unclear)?;
            let value = way.chosen_by_text(value.as_deref())?;
            if matches!(&event, Event::Choose { value: before, .. } if *before != value) {
                return Err(self.another());
            }
            event = Event::Choose { value, is_local };
        }
        Ok(event)
    }

    pub(super) fn chosen_by_json(&self, term: &Term, bound: &Bound) -> Result<Event> {
        let text = bound.text(term).ok_or_else(unclear)?.unwrap_or_default();
        let pairs = pairs_of(&text).ok_or_else(unclear)?;
        let literal = |text: &str| Term::Literal(text.to_owned());
        let calls: Vec<_> = pairs
            .iter()
            .map(|[name, value]| SetConfig {
                name: literal(name),
                value: literal(value),
                is_local: literal("true"),
            })
            .collect();
        self.chosen_by(&calls, &Bound::default())
    }
}

/// The text of a Query or Parse, or of the statement that a Bind names. `frame` may be the start of
/// it.
pub fn text_of<'f>(tag: FrontendTag, frame: &'f [u8], around: &'f Around<'_>) -> Option<&'f [u8]> {
    let (first, rest) = split_cstr(frame.get(HEADER..)?)?;
    match tag {
        FrontendTag::QUERY => Some(first),
        FrontendTag::PARSE => split_cstr(rest).map(|(text, _)| text),
        FrontendTag::BIND => {
            let (name, _) = split_cstr(rest)?;
            around.statements.definition(name).map(|(text, _)| text)
        }
        _ => None,
    }
}

/// Whether a FunctionCall is of those that drivers make: they handle large objects by it (libpq's
/// fe-lobj.c; oids of pg_proc.dat). Any other function could set a variable.
fn calls_large_object(body: &[u8]) -> bool {
    const FUNCTIONS: [u32; 14] = [
        715, 764, 952, 953, 954, 955, 956, 957, 958, 964, 1004, 3170, 3171, 3172,
    ];
    let oid = body.first_chunk().map(|oid| u32::from_be_bytes(*oid));
    oid.is_some_and(|oid| FUNCTIONS.contains(&oid))
}
