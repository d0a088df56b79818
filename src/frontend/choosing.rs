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
//! What counts is what was carried out: what a server is sent is noted as
//! [pending](Choosing::expect) and takes effect with its CommandComplete.

mod bound;
mod characteristics;
mod extended;
mod local;
mod model;
mod said;
mod say;
mod way;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::app::App;
use crate::backend::binding::Settings;
use crate::backend::prepared::Interner;
use crate::config::{Application, Choices, Route, Tenant};
use crate::error::{Error, Kind, Result};
use crate::frontend::statements::Statements;
use crate::guard::Guard;
use crate::id::TenantId;
use crate::sql::choice::{self, SetConfig, Step, Term};

pub use self::bound::set_by_call;
pub use self::said::text_of;

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

/// Since this version a statement in a pipeline, but for the first, is in a transaction block as
/// far as warnings go (xact.c: CheckTransactionBlock).
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
    choices: Arc<Choices>,
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
            choices: application.choices.clone(),
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

    /// The variables whose value is for whom it works, in lower case.
    pub fn variables(&self) -> &Arc<[Box<str>]> {
        &self.variables
    }

    /// What it may not run there.
    pub fn guard(&self, route: &Route) -> Guard {
        let config = self.app.config();
        Guard::of_application(
            route,
            config.applications.get(&self.application).map(|a| &**a),
        )
    }

    /// Whether with these parameters it may be served there.
    ///
    /// # Errors
    /// 0A000 if it acts for all tenants by one, which it may at its home only.
    pub fn check_home(&self, route: &Route, settings: &Settings) -> Result<()> {
        let config = self.app.config();
        let Some(application) = config.applications.get(&self.application) else {
            return Ok(());
        };
        match application.acts_for_all(settings) {
            Some(name) if !application.is_home(&route.placement) => {
                let message = format!("\"{name}\" acts for all tenants, and does so only at home");
                let hint = "RESET it before a tenant is chosen that lives elsewhere.";
                Err(Error::new(Kind::FeatureNotSupported, message).with_hint(hint))
            }
            _ => Ok(()),
        }
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
    /// 42501 where nobody is chosen and it has no home, or the last choice was refused; those of
    /// the tenant's state.
    pub fn place(&self) -> Result<Place> {
        if self.barred {
            return Err(barred());
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
            if !application.has_home() {
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

/// What a statement sets by `set_config`, by name: `text` and `types` of its Parse, the `rest` of a
/// Bind behind its names. None: it sets in another way, or to what is not known.
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

/// The `rest` of a Bind, behind its names, in which a variable that is `own` and is set to an empty
/// value or NULL is set to what it is. None: it sets none so.
pub fn returned_bind<'o>(
    text: &[u8],
    rest: &[u8],
    own: &dyn Fn(&str) -> Option<&'o str>,
    backslashes: bool,
) -> Option<Vec<u8>> {
    let calls: Vec<SetConfig> = match choice::read(text, &[], backslashes).pop()? {
        Step::SetConfig(call, _) => vec![call],
        Step::SetConfigs(calls) => calls.into_iter().map(|(call, _)| call).collect(),
        _ => return None,
    };
    let values = calls
        .iter()
        .filter_map(|call| match (&call.name, &call.value) {
            (Term::Literal(name), Term::Parameter(number)) => Some((*number, own(name)?)),
            _ => None,
        });
    bound::filled(rest, &values.collect())
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

fn barred() -> Error {
    let message = "no tenant is chosen: the last choice was refused";
    Error::new(Kind::InsufficientPrivilege, message).with_hint(HOW)
}

fn aborted() -> Error {
    let message = "current transaction is aborted, commands ignored until end of transaction block";
    Error::new(Kind::InFailedTransaction, message)
}
