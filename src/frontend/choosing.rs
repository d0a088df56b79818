//! An application's client: for which tenant it works, by the SQL that it sends.
//!
//! ```text
//!   client ──► message: a choice, or the beginning or end of a transaction that no server has
//!                 │ yes: the proxy answers it, as PostgreSQL would        │ no: it needs a place
//!                 ▼                                                       ▼
//!            [`Model`]: what is chosen                    the chosen tenant's place, with its context;
//!                                                         what was held (BEGIN …) goes ahead of it
//! ```
//!
//! A choice never reaches a server alone: there the variable is what the tenant's context says, and
//! cannot be another tenant's. Where a choice stands in a statement that does more, the statement
//! runs at the place of the tenant that it chooses, where it sets what is set already.
//!
//! What counts is what was carried out: what a server is sent is noted as [pending](Choosing::expect)
//! and takes effect with its CommandComplete.

mod bound;
mod model;
mod say;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::app::App;
use crate::backend::context::{Settings, is_reported};
use crate::backend::prepared::Interner;
use crate::config::{Application, Route, Tenant};
use crate::error::{Error, Kind, Result};
use crate::frontend::statements::Statements;
use crate::id::TenantId;
use crate::protocol::frame::{FrontendTag, HEADER, split_cstr};
use crate::sql::choice::{self, Chosen, Scope, SetConfig, Step, Term, quoted};

use self::bound::{Bound, bound};
use self::model::{Block, Event, Model, Value};
use self::say::{Said, TEXT_OID};

/// What Query and Parse messages are longer, in bytes, pass without being looked at here; the guard
/// sees to it that they choose nobody.
pub const MAX_MESSAGE: usize = choice::MAX_TEXT + 64;

/// Most statements that are held for a transaction, and portals that are known, of one client.
const MAX_KEPT: usize = 1000;
/// Most bytes of the former.
const MAX_KEPT_BYTES: usize = 256 * 1024;

const HOW: &str = "Send the choice as a statement of its own: SET name = 'value', or SELECT set_config('name', $1, true).";

/// What becomes of a message.
#[derive(Debug)]
pub enum Verdict {
    /// The proxy answers it with this, whole. `refused`: with this error.
    Answered {
        said: Vec<u8>,
        refused: Option<Error>,
    },
    /// It goes to the server.
    Passes,
}

/// What is needed of the client beside its choice.
pub struct Around<'a> {
    pub statements: &'a mut Statements,
    pub settings: &'a Arc<Settings>,
    pub interner: &'a Interner,
    /// `standard_conforming_strings` is off.
    pub backslashes: bool,
    /// Of the server, such as `18.1`.
    pub server_version: Option<&'a str>,
}

/// Since this version a statement in a pipeline, but for the first, is in a transaction block as far as
/// warnings go (xact.c: CheckTransactionBlock).
const BLOCKS_IN_PIPELINES: u32 = 17;

/// A portal of the client's.
#[derive(Debug, Clone)]
enum Portal {
    /// Of a statement that the proxy answers.
    Local {
        step: Step,
        bound: Bound,
        is_done: bool,
    },
    /// What an Execute of it does.
    Server(Event),
}

/// Where an application is served now.
pub struct Place {
    pub tenant: TenantId,
    pub route: Arc<Route>,
}

#[derive(Clone)]
pub struct Choosing {
    app: Arc<App>,
    application: TenantId,
    variables: Arc<[Box<str>]>,
    model: Model,
    /// Statements of the open transaction that were answered and no server has had, in order.
    held: Vec<String>,
    /// Of those that are about to be sent to a server, so that nothing is lost if none has them.
    sent: Vec<String>,
    /// For whom the open transaction or pipeline is served, once it is.
    served: Option<Option<Value>>,
    /// A query was answered in the open transaction: what it began with cannot be changed any more.
    has_queried: bool,
    /// For whom it was served last.
    last: Option<Value>,
    /// It keeps its server connection, and so is served for that tenant and no other.
    is_kept: bool,
    /// The message that comes next was heard already, and passes.
    passes_next: bool,
    /// The last choice was refused, and nothing is served until another succeeds.
    barred: bool,
    /// What was sent to the server and is not answered.
    pending: VecDeque<Event>,
    portals: HashMap<Box<[u8]>, Portal>,
    /// An Execute came before in the pipeline, and the server takes what follows for a block.
    is_pipelined: bool,
    /// An extended message was answered by an error: those up to the Sync are passed over.
    skips: bool,
}

impl Choosing {
    pub fn new(app: Arc<App>, application: &Application) -> Self {
        Self {
            app,
            application: application.login.id.clone(),
            variables: application.variables.clone(),
            model: Model::default(),
            held: Vec::new(),
            sent: Vec::new(),
            served: None,
            has_queried: false,
            last: None,
            is_kept: false,
            passes_next: false,
            barred: false,
            pending: VecDeque::new(),
            portals: HashMap::new(),
            is_pipelined: false,
            skips: false,
        }
    }

    pub fn application(&self) -> &TenantId {
        &self.application
    }

    /// The variables by which it chooses, in lower case.
    pub fn variables(&self) -> &Arc<[Box<str>]> {
        &self.variables
    }

    /// What ReadyForQuery says.
    pub fn status(&self) -> u8 {
        self.model.status()
    }

    /// Whether it neither has a transaction open nor is in the middle of a pipeline.
    pub fn is_at_rest(&self) -> bool {
        self.model.block() == Block::None && !self.skips && self.served.is_none()
    }

    /// What no server has had of the open transaction.
    pub fn held(&self) -> &[String] {
        &self.held
    }

    // ---- where it is served ----

    /// Where what comes next is served.
    ///
    /// # Errors
    /// 42501 where nobody is chosen and it has no home, or the last choice was refused; those of the
    /// tenant's state.
    pub fn place(&self) -> Result<Place> {
        if self.barred {
            let message = "no tenant is chosen: the last choice was refused";
            return Err(Error::new(Kind::InsufficientPrivilege, message).with_hint(HOW));
        }
        let config = self.app.config();
        let gone = crate::app::moved;
        let application = config
            .applications
            .get(&self.application)
            .ok_or_else(gone)?;
        let value = match &self.served {
            Some(served) => served.as_ref(),
            None => self.model.current(),
        };
        let Some(value) = value else {
            if !application.has_home {
                let message = "no tenant is chosen";
                return Err(Error::new(Kind::InsufficientPrivilege, message).with_hint(HOW));
            }
            return Ok(Place {
                tenant: application.login.id.clone(),
                route: application.login.route.clone(),
            });
        };
        let tenant = self.permitted(application, &config, value)?;
        Ok(Place {
            tenant: tenant.id.clone(),
            route: self.app.route_for(application, tenant, value),
        })
    }

    fn permitted<'c>(
        &self,
        application: &Application,
        config: &'c crate::config::Config,
        value: &str,
    ) -> Result<&'c Arc<Tenant>> {
        let tenant = application.tenant(config, value);
        let tenant = tenant.ok_or_else(|| {
            let message = format!("permission denied to choose tenant \"{value}\"");
            Error::new(Kind::InsufficientPrivilege, message)
                .with_hint("There is no such tenant, or the application may not act for it.")
        })?;
        self.app.takes_clients(&tenant.id)?;
        Ok(tenant)
    }

    /// Whether the application may choose this, now.
    fn check(&mut self, value: Option<&Value>) -> Result<()> {
        let checked = self.checked(value);
        self.barred = checked.is_err();
        checked
    }

    fn checked(&self, value: Option<&Value>) -> Result<()> {
        let Some(value) = value else { return Ok(()) };
        let config = self.app.config();
        let application = config.applications.get(&self.application);
        let application = application.ok_or_else(crate::app::moved)?;
        self.permitted(application, &config, value)?;
        match &self.served {
            Some(served) if served.as_ref() != Some(value) => Err(self.another()),
            _ => Ok(()),
        }
    }

    /// In one transaction, and while the client keeps its server connection, one tenant.
    fn another(&self) -> Error {
        let (message, hint) = match self.is_kept && self.model.block() == Block::None {
            true => (
                "another tenant cannot be chosen while the session keeps its server connection",
                "Drop temporary tables, UNLISTEN, and give back advisory locks and cursors WITH HOLD first.",
            ),
            false => (
                "another tenant cannot be chosen in a transaction that is served",
                "Choose the tenant before the first statement of a transaction.",
            ),
        };
        Error::new(Kind::ActiveTransaction, message).with_hint(hint)
    }

    // ---- what a server has said ----

    /// What goes to a server now is served for this tenant, up to the end of its transaction.
    pub fn begin_serving(&mut self) {
        self.enter();
        let current = self.model.current().cloned();
        self.served.get_or_insert(current);
        self.sent = std::mem::take(&mut self.held);
    }

    /// It keeps its server connection between transactions, or does not.
    pub fn keep(&mut self, keeps: bool) {
        self.is_kept = keeps;
        if keeps && self.served.is_none() {
            self.served = Some(self.last.clone());
        }
    }

    /// It has given its server connection back.
    pub fn let_go(&mut self) {
        self.is_kept = false;
        self.passes_next = false;
        if self.model.block() == Block::None {
            self.served = None;
        }
    }

    /// What was heard when no server had the transaction is not heard again.
    pub fn pass_next(&mut self) {
        self.passes_next = true;
    }

    pub fn take_pass(&mut self) -> bool {
        std::mem::take(&mut self.passes_next)
    }

    /// Nothing of what was to be served was run.
    pub fn not_served(&mut self) {
        self.pending.clear();
        self.served = None;
        self.passes_next = false;
        self.skips = false;
        if self.held.is_empty() {
            self.held = std::mem::take(&mut self.sent);
        }
        self.model.fail();
        if !self.model.is_explicit() {
            self.model.end_implicit();
        }
    }

    /// A command was carried out; `tag` is that of its CommandComplete.
    pub fn complete(&mut self, tag: &[u8]) {
        let event = match self.pending.pop_front() {
            Some(Event::Commit { chain }) if tag == b"ROLLBACK" => Event::Rollback { chain },
            Some(event) => event,
            None => return,
        };
        // Behind a COMMIT in a text the next transaction of it begins.
        self.enter();
        self.model.apply(&event);
    }

    /// The server has said that something failed.
    pub fn fail(&mut self) {
        self.pending.clear();
        self.model.fail();
    }

    /// The server is ready, with this status.
    pub fn ready(&mut self, status: u8) {
        // A transaction that is over was ended by something that was sent, or has failed.
        let is_over = status == b'I' && self.model.is_explicit();
        let is_certain = self.pending.is_empty() && (!is_over || self.model.has_failed());
        self.pending.clear();
        self.sent = Vec::new();
        self.is_pipelined = false;
        self.model.ready(status, is_certain);
        // What was chosen is not known for certain: nobody is.
        self.barred |= !is_certain;
        if status == b'I' {
            self.last = self.served.take().unwrap_or_default();
            self.served = self.is_kept.then(|| self.last.clone());
            self.portals.clear();
        }
    }

    /// What comes now is run in a transaction.
    fn enter(&mut self) {
        self.has_queried &= self.model.block() != Block::None;
        self.model.begin_implicit();
    }

    /// Whether the open transaction has failed, and so takes nothing but its end.
    fn is_aborted(&self) -> bool {
        self.model.is_explicit() && self.model.has_failed()
    }

    fn expect(&mut self, event: Event) {
        self.pending.push_back(event);
    }

    /// Whether something that was sent to the server may change what is chosen, or end the
    /// transaction: what comes next waits until that is known.
    pub fn is_in_doubt(&self) -> bool {
        self.pending.iter().any(|event| *event != Event::Nothing)
    }

    // ---- what the client says ----

    /// Whether the proxy would answer this message, of which `frame` is the whole, while a server
    /// has the transaction. If so, what that owes must be answered first.
    pub fn answers(&self, tag: FrontendTag, frame: &[u8], around: &Around<'_>) -> bool {
        let (body, statements) = (&frame[HEADER..], &around.statements);
        let is_local =
            |portal: &[u8]| matches!(self.portals.get(portal), Some(Portal::Local { .. }));
        match tag {
            FrontendTag::QUERY => self.may_matter(body),
            FrontendTag::PARSE => {
                let text = split_cstr(body).and_then(|(_, rest)| split_cstr(rest));
                text.is_some_and(|(text, _)| self.may_matter(text))
            }
            FrontendTag::BIND => {
                let names = split_cstr(body).and_then(|(_, rest)| split_cstr(rest));
                let definition = names.and_then(|(name, _)| statements.definition(name));
                definition.is_some_and(|(text, _)| self.may_matter(text))
            }
            FrontendTag::DESCRIBE | FrontendTag::CLOSE => match body.split_first() {
                Some((b'S', name)) => {
                    let name = split_cstr(name).map(|(name, _)| name);
                    let definition = name.and_then(|name| statements.definition(name));
                    definition.is_some_and(|(text, _)| self.may_matter(text))
                }
                Some((_, name)) => split_cstr(name).is_some_and(|(name, _)| is_local(name)),
                None => false,
            },
            FrontendTag::EXECUTE => split_cstr(body).is_some_and(|(name, _)| is_local(name)),
            _ => false,
        }
    }

    /// Whether a message that passes may set a variable of the application's: what it sets it to was
    /// looked at.
    pub fn chooses(&self, tag: FrontendTag, frame: &[u8], around: &Around<'_>) -> bool {
        let text = match tag {
            FrontendTag::QUERY => split_cstr(&frame[HEADER..]).map(|(text, _)| text),
            FrontendTag::PARSE => {
                let definition = split_cstr(&frame[HEADER..]);
                definition
                    .and_then(|(_, rest)| split_cstr(rest))
                    .map(|(text, _)| text)
            }
            _ => None,
        };
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
    fn may_matter(&self, text: &[u8]) -> bool {
        let finds = |word: &[u8]| {
            text.windows(word.len())
                .any(|window| window.eq_ignore_ascii_case(word))
        };
        let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
        // With Unicode escapes it may be written in any way.
        finds(b"set_config")
            || finds(b"u&\"")
            || self
                .variables
                .iter()
                .any(|name| finds(last(name).as_bytes()))
    }

    /// Whether it matters to what a text chooses whether backslashes are escapes.
    pub fn is_ambiguous(&self, text: &[u8]) -> bool {
        text.contains(&b'\\') && self.read(text, false) != self.read(text, true)
    }

    fn read(&self, text: &[u8], backslashes: bool) -> Vec<Step> {
        choice::read(text, &self.variables, backslashes)
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
                self.may_serve()?;
                self.expect(Event::Nothing);
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
            Err(error) => {
                let mut said = Said::default();
                said.error(&error);
                self.model.fail();
                match tag {
                    FrontendTag::QUERY | FrontendTag::FUNCTION_CALL => {
                        self.model.end_implicit();
                        said.ready(self.model.status());
                    }
                    _ => {
                        self.enter();
                        self.model.fail();
                        self.skips = true;
                    }
                }
                Verdict::Answered {
                    said: said.0,
                    refused: Some(error),
                }
            }
        }
    }

    /// Whether what needs a place may be sent to the server that has the transaction.
    fn may_serve(&self) -> Result<()> {
        if self.model.is_explicit() && self.model.has_failed() && self.served.is_none() {
            return Err(aborted());
        }
        match &self.served {
            Some(served) if served.as_ref() != self.model.current() => Err(self.another()),
            _ => Ok(()),
        }
    }

    fn query(&mut self, text: &[u8], around: &mut Around<'_>) -> Result<Verdict> {
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
            let may_answer = self.served.is_none() || is_always_local(step);
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
            let passed = self.pass(&steps);
            // A choice that was refused in it bars the client as any other.
            self.barred |= passed.is_err() && steps.iter().any(Step::may_choose);
            return passed.map(|()| Verdict::Passes);
        }
        self.model.end_implicit();
        around.statements.query();
        said.ready(self.model.status());
        Ok(answered(said))
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
            return Err(match is_exit(&steps[0]) {
                true => Error::new(
                    Kind::FeatureNotSupported,
                    "a transaction that failed before it was served ends by a statement alone",
                )
                .with_hint("Send ROLLBACK as a statement of its own."),
                false => aborted(),
            });
        }
        let mut ahead = self.model.clone();
        ahead.begin_implicit();
        let mut events = Vec::new();
        let mut target = self.served.clone();
        let mut chosen: Vec<Option<Value>> = Vec::new();
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
                Step::Other | Step::SetConfigs(_) | Step::FromJson(_) | Step::Prepare
            );
            if runs || matches!(step, Step::ResetAll | Step::Deallocate(_)) {
                if ahead.has_failed() && self.served.is_none() {
                    return Err(aborted());
                }
                let current = ahead.current().cloned();
                if *target.get_or_insert_with(|| current.clone()) != current {
                    return Err(self.another());
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
        }
        self.enter();
        self.pending.extend(events);
        self.served.get_or_insert(target);
        Ok(())
    }

    /// What a step does when it is carried out by a server.
    fn event(&self, step: &Step, bound: &Bound) -> Result<Event> {
        Ok(match step {
            Step::Begin { .. } => Event::Begin,
            Step::Commit { chain } => Event::Commit { chain: *chain },
            Step::Rollback { chain } => Event::Rollback { chain: *chain },
            Step::Prepare => Event::Commit { chain: false },
            Step::Savepoint(name) => Event::Savepoint(name.clone()),
            Step::Release(name) => Event::Release(name.clone()),
            Step::RollbackTo(name) => Event::RollbackTo(name.clone()),
            Step::Set(Chosen { scope, value, .. }) => Event::Choose {
                value: value_of(value.as_deref()),
                is_local: *scope == Scope::Local,
            },
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

    /// What calls of `set_config` choose together.
    fn chosen_by<'s>(
        &self,
        calls: impl IntoIterator<Item = &'s SetConfig>,
        bound: &Bound,
    ) -> Result<Event> {
        let mut event = Event::Nothing;
        for call in calls {
            let name = bound.text(&call.name).ok_or_else(unclear)?;
            let name = name.unwrap_or_default().to_ascii_lowercase();
            if !self.variables.iter().any(|own| **own == *name) {
                continue;
            }
            let value = bound.text(&call.value).ok_or_else(unclear)?;
            let is_local = bound.boolean(&call.is_local).ok_or_else(unclear)?;
            let value = value_of(value.as_deref());
            if matches!(&event, Event::Choose { value: before, .. } if *before != value) {
                return Err(self.another());
            }
            event = Event::Choose { value, is_local };
        }
        Ok(event)
    }

    fn chosen_by_json(&self, term: &Term, bound: &Bound) -> Result<Event> {
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

    // ---- extended messages ----

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
        is_always_local(step)
            || matches!(step, Step::SetConfigs(_) | Step::FromJson(_))
            || (self.served.is_none() && self.may_hold(step))
    }

    /// Whether it can be carried out without a server, while none has the transaction.
    fn may_hold(&self, step: &Step) -> bool {
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

    fn parse(&mut self, frame: &[u8], around: &mut Around<'_>) -> Result<Verdict> {
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

    fn bind(&mut self, body: &[u8], around: &mut Around<'_>) -> Result<Verdict> {
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
        if self.is_aborted() && !is_exit(&step) {
            return Err(aborted());
        }
        let is_local = is_always_local(&step) || (self.served.is_none() && self.may_hold(&step));
        let event = match self.is_known(&step) {
            true => {
                let types = bound::types_of(&step, types).ok_or_else(unclear)?;
                let bound = bound(rest, types.len(), name)?;
                let event = self.event(&step, &bound)?;
                // A call that sets something else is a statement like any other.
                let is_ours = !matches!(&step, Step::SetConfig(..)) || event != Event::Nothing;
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
            if value.is_none() {
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
    fn keep_for_server(&mut self, text: String) -> Result<()> {
        let bytes = self.held.iter().map(String::len).sum::<usize>() + text.len();
        if self.held.len() >= MAX_KEPT || bytes > MAX_KEPT_BYTES {
            return Err(too_much());
        }
        self.held.push(text);
        Ok(())
    }

    fn describe(&mut self, body: &[u8], around: &Around<'_>) -> Verdict {
        let mut said = Said::default();
        match body.split_first() {
            Some((b'S', name)) => {
                let name = split_cstr(name).map(|(name, _)| name);
                let definition = name.and_then(|name| around.statements.definition(name));
                let Some((text, types)) = definition else {
                    return Verdict::Passes;
                };
                let step = self.step_of(text, around);
                let types = bound::types_of(&step, types).filter(|_| self.is_known(&step));
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
            Step::Show(variable) => vec![&self.variables[*variable]],
            _ => return said.no_data(),
        };
        said.row_description(&names, formats);
    }

    fn execute(&mut self, body: &[u8]) -> Result<Verdict> {
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
                let is_control = !matches!(event, Event::Nothing | Event::Choose { .. });
                if !is_control && !matches!(event, Event::Choose { .. }) {
                    self.may_serve()?;
                }
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
        if !self.run(&step, &bound, mode, &mut said)? {
            return Err(unclear());
        }
        if let Some(Portal::Local { is_done, .. }) = self.portals.get_mut(name) {
            *is_done = true;
        }
        Ok(answered(said))
    }

    fn close(&mut self, body: &[u8], around: &mut Around<'_>) -> Verdict {
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

    // ---- what the proxy carries out itself ----

    /// Carries a step out, and says what PostgreSQL would. False: it needs a server.
    fn run(&mut self, step: &Step, bound: &Bound, mode: Mode, said: &mut Said) -> Result<bool> {
        if self.model.has_failed() && !is_exit(step) {
            return Err(aborted());
        }
        if self.served.is_none() && self.may_hold(step) {
            return self.hold(step, said).map(|()| true);
        }
        match step {
            Step::Set(chosen) => {
                let value = value_of(chosen.value.as_deref());
                let is_local = chosen.scope == Scope::Local;
                self.choose(value, is_local)?;
                let is_in_block = match mode {
                    Mode::Query => self.model.block() != Block::None,
                    _ => self.model.is_explicit() || self.is_pipelined,
                };
                if is_local && !is_in_block {
                    let message = "SET LOCAL can only be used in transaction blocks";
                    said.warning(Kind::NoActiveTransaction.sqlstate(), message);
                }
                said.complete("SET");
            }
            Step::Reset(_) => {
                self.choose(None, false)?;
                said.complete("RESET");
            }
            Step::SetConfig(call, column) => {
                if mode == Mode::Query && has_parameters(call) {
                    return Ok(false);
                }
                let Event::Choose { value, is_local } = self.chosen_by([call], bound)? else {
                    return Ok(false);
                };
                self.choose(value.clone(), is_local)?;
                self.has_queried = true;
                let value = value.as_deref().unwrap_or_default();
                mode.say_row(column, value, "SELECT 1", said);
            }
            Step::Show(variable) => {
                let name = self.variables[*variable].to_string();
                let Some(value) = self.model.current() else {
                    let message = format!("unrecognized configuration parameter \"{name}\"");
                    return Err(Error::new(Kind::UndefinedObject, message));
                };
                mode.say_row(&name, value, "SHOW", said);
            }
            Step::Unclear => return Err(unclear()),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn choose(&mut self, value: Option<Value>, is_local: bool) -> Result<()> {
        self.check(value.as_ref())?;
        self.model.apply(&Event::Choose { value, is_local });
        Ok(())
    }

    /// What PostgreSQL does not let a transaction be after its first query (xact.c, variable.c).
    fn check_characteristics(&self, text: &str) -> Result<()> {
        let is_read_only = || self.held.iter().any(|text| text.contains("only"));
        let message = match () {
            () if !self.has_queried => return Ok(()),
            () if text.contains("isolation") => {
                "SET TRANSACTION ISOLATION LEVEL must be called before any query"
            }
            () if text.contains("write") && is_read_only() => {
                "transaction read-write mode must be set before any query"
            }
            () if text.contains("deferrable") => {
                "SET TRANSACTION [NOT] DEFERRABLE must be called before any query"
            }
            () => return Ok(()),
        };
        Err(Error::new(Kind::ActiveTransaction, message))
    }

    /// Carries out what belongs to a transaction that no server has.
    fn hold(&mut self, step: &Step, said: &mut Said) -> Result<()> {
        let warns = |said: &mut Said, kind: Kind, message| said.warning(kind.sqlstate(), message);
        match step {
            Step::Begin { starts, text } => {
                match self.model.is_explicit() {
                    true => warns(
                        said,
                        Kind::ActiveTransaction,
                        "there is already a transaction in progress",
                    ),
                    false => {
                        self.has_queried &= self.model.block() != Block::None;
                        self.check_characteristics(text)?;
                        self.model.apply(&Event::Begin);
                        self.held.push(text.clone());
                    }
                }
                said.complete(if *starts {
                    "START TRANSACTION"
                } else {
                    "BEGIN"
                });
            }
            Step::Commit { chain } | Step::Rollback { chain } => {
                let commits = matches!(step, Step::Commit { .. });
                let word = if commits { "COMMIT" } else { "ROLLBACK" };
                if !self.model.is_explicit() {
                    if *chain {
                        let message =
                            format!("{word} AND CHAIN can only be used in transaction blocks");
                        return Err(Error::new(Kind::NoActiveTransaction, message));
                    }
                    let message = "there is no transaction in progress";
                    warns(said, Kind::NoActiveTransaction, message);
                }
                let is_committed = commits && !self.model.has_failed();
                let (begin, chain) = (self.held.first().cloned(), *chain);
                self.model.apply(&match commits {
                    true => Event::Commit { chain },
                    false => Event::Rollback { chain },
                });
                self.held.clear();
                // The next transaction has the characteristics of the last.
                self.held.extend(begin.filter(|_| chain));
                said.complete(if is_committed { "COMMIT" } else { "ROLLBACK" });
            }
            Step::Savepoint(name) => {
                self.keep_for_server(format!("SAVEPOINT {}", quoted(name)))?;
                self.model.apply(&Event::Savepoint(name.clone()));
                said.complete("SAVEPOINT");
            }
            Step::Release(name) => {
                self.find_savepoint(name)?;
                self.keep_for_server(format!("RELEASE {}", quoted(name)))?;
                self.model.apply(&Event::Release(name.clone()));
                said.complete("RELEASE");
            }
            Step::RollbackTo(name) => {
                self.find_savepoint(name)?;
                self.keep_for_server(format!("ROLLBACK TO {}", quoted(name)))?;
                self.model.apply(&Event::RollbackTo(name.clone()));
                said.complete("ROLLBACK");
            }
            Step::Empty => said.empty_query(),
            Step::Characteristics(text) | Step::SetsLocally(_, text) => {
                if matches!(step, Step::Characteristics(_)) {
                    self.check_characteristics(text)?;
                }
                self.keep_for_server(text.clone())?;
                said.complete("SET");
            }
            _ => {}
        }
        Ok(())
    }

    fn find_savepoint(&self, name: &str) -> Result<()> {
        if !self.model.is_explicit() {
            let message = "ROLLBACK TO SAVEPOINT can only be used in transaction blocks";
            return Err(Error::new(Kind::NoActiveTransaction, message));
        }
        match self.model.has_savepoint(name) {
            true => Ok(()),
            false => Err(Error::new(
                Kind::InvalidSavepoint,
                format!("savepoint \"{name}\" does not exist"),
            )),
        }
    }
}

fn answered(said: Said) -> Verdict {
    Verdict::Answered {
        said: said.0,
        refused: None,
    }
}

/// Names and values as PostGraphile gives them.
fn pairs_of(text: &str) -> Option<Vec<[String; 2]>> {
    serde_json::from_str(text).ok()
}

/// What a statement sets by `set_config`, by name: `text` and `types` of its Parse, the `rest` of a Bind
/// behind its names. None: it sets in another way, or to what is not known.
pub fn bound_values(
    text: &[u8],
    types: &[u8],
    rest: &[u8],
    name: &[u8],
    backslashes: bool,
) -> Option<Vec<(String, Option<String>)>> {
    let mut steps = choice::read(text, &[], backslashes);
    let (step, is_alone) = (steps.pop()?, steps.is_empty());
    let calls: Vec<&SetConfig> = match &step {
        Step::SetConfig(call, _) => vec![call],
        Step::SetConfigs(calls) => calls.iter().map(|(call, _)| call).collect(),
        Step::FromJson(_) => Vec::new(),
        // It names what it sets to.
        _ => return Some(Vec::new()),
    };
    let types = bound::types_of(&step, types).filter(|_| is_alone)?;
    let bound = bound(rest, types.len(), name).ok()?;
    if let Step::FromJson(term) = &step {
        let text = bound.text(term)?.unwrap_or_default();
        let pairs = pairs_of(&text)?.into_iter();
        return Some(pairs.map(|[name, value]| (name, Some(value))).collect());
    }
    calls
        .into_iter()
        .map(|call| {
            // PostgreSQL refuses NULL for a name.
            let name = bound.text(&call.name)?.unwrap_or_default().into_owned();
            let value = bound.text(&call.value)?;
            Some((name, value.map(std::borrow::Cow::into_owned)))
        })
        .collect()
}

/// How a statement is run, and so what of its answer is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Query,
    Execute,
    /// An Execute that asks for one row.
    OneRow,
}

impl Mode {
    fn say_row(self, column: &str, value: &str, tag: &str, said: &mut Said) {
        if self == Self::Query {
            said.row_description(&[column], &[0]);
        }
        said.row(value);
        match self {
            Self::OneRow => said.suspended(),
            _ => said.complete(tag),
        }
    }
}

/// Whether the proxy answers it wherever the transaction is.
fn is_always_local(step: &Step) -> bool {
    matches!(
        step,
        Step::Set(_) | Step::Reset(_) | Step::SetConfig(..) | Step::Show(_)
    )
}

/// Whether a transaction that has failed takes it (postgres.c: IsTransactionExitStmt), or it is
/// nothing at all.
fn is_exit(step: &Step) -> bool {
    matches!(
        step,
        Step::Commit { .. }
            | Step::Rollback { .. }
            | Step::RollbackTo(_)
            | Step::Prepare
            | Step::Empty
    )
}

/// Whether it begins or ends a transaction or a savepoint.
fn is_control(step: &Step) -> bool {
    matches!(
        step,
        Step::Begin { .. }
            | Step::Commit { .. }
            | Step::Rollback { .. }
            | Step::Savepoint(_)
            | Step::Release(_)
            | Step::RollbackTo(_)
    )
}

fn has_parameters(call: &SetConfig) -> bool {
    let SetConfig {
        name,
        value,
        is_local,
    } = call;
    [name, value, is_local]
        .iter()
        .any(|term| matches!(term, Term::Parameter(_)))
}

/// An empty value is nobody's, as `''` is to a policy.
fn value_of(value: Option<&str>) -> Option<Value> {
    value.filter(|value| !value.is_empty()).map(Value::from)
}

fn no_statement(name: &[u8]) -> Error {
    let message = match name.is_empty() {
        true => "unnamed prepared statement does not exist".to_owned(),
        false => format!(
            "prepared statement \"{}\" does not exist",
            String::from_utf8_lossy(name)
        ),
    };
    Error::new(Kind::UndefinedStatement, message)
}

fn too_much() -> Error {
    let message = "too many statements before the first that needs a server";
    Error::new(Kind::ProgramLimitExceeded, message)
}

fn unclear() -> Error {
    let message = "pgtenant cannot tell which tenant this statement chooses";
    Error::new(Kind::FeatureNotSupported, message).with_hint(HOW)
}

fn aborted() -> Error {
    let message = "current transaction is aborted, commands ignored until end of transaction block";
    Error::new(Kind::InFailedTransaction, message)
}
