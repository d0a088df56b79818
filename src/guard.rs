//! What a tenant may not run in the posture `guarded` and up: statements that could change whose
//! context the connection carries, and what cannot be read well enough to tell.
//!
//! It reads what [`Effects`] tells. It cannot see inside of functions, so it is no wall by itself:
//! the seal is.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::config::{Application, Pooling, Route, SEALED_VARIABLE, Shared};
use crate::error::{Error, Kind};
use crate::sql::Finder;
use crate::sql::choice::{self, Chosen, SetConfig, Step, Term};
use crate::sql::effects::{Effects, What, is_safe_encoding};
use crate::sql::policies::{PolicyVariables, ReadByPolicies};

/// Parameters that are the proxy's, whatever the context: roles, and what changes how SQL is read.
const PROTECTED: [&str; 5] = [
    "role",
    "session_authorization",
    "standard_conforming_strings",
    "backslash_quote",
    "escape_string_warning",
];

/// What it is from the start, drivers and pg_dump say again.
const STRINGS: &str = "standard_conforming_strings";
const STARTS_WITH: &str = "on";

/// Why a statement is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offence {
    /// In one word, for the audit.
    pub kind: &'static str,
    /// For the client, as PostgreSQL would put it.
    pub message: String,
    pub hint: &'static str,
    error: Kind,
}

impl Offence {
    /// What the client is told.
    pub fn into_error(self) -> Error {
        Error::new(self.error, self.message).with_hint(self.hint)
    }
}

const ASK_FOR_PRIVILEGE: &str =
    "It acts for all tenants: an application may, to which the operator gave this (all_tenants).";
const ASK_OPERATOR: &str = "It is set by pgtenant for the tenant that is logged in.";
const NAME_IT: &str = "Where it tells apart users of one tenant, the operator may name it in the placement's user_variables.";
const BE_PLAIN: &str =
    "Write it as a plain statement; pgtenant must be able to read what could change the tenant.";

/// How much is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Extent {
    /// Only other values for variables of the context, where the text shows them: what posture
    /// plain refuses.
    Context,
    /// And what could hide a choice from the reader: of an application in posture plain.
    Choice,
    /// All that could change the tenant: posture guarded and up.
    Whole,
}

/// What a variable may be set to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum May {
    /// Only the proxy sets it.
    Nothing,
    /// What it is: it is of the tenant's context.
    Own(Box<str>),
    /// What acts for one tenant only; and these values, which act for all, by whom may, at home.
    ForOne { or: Arc<[Box<str>]>, at_home: bool },
}

#[derive(Debug)]
struct Variable {
    /// In lower case.
    name: Box<str>,
    may: May,
}

/// A text may run, or parameters may be bound.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Whether that is so is decided by the parameters of the text ([`Guard::check_bound`]).
    pub by_parameters: bool,
    /// It sets this variable to act for all tenants.
    pub for_all: Option<Box<str>>,
}

/// What one placement's tenants may not run.
#[derive(Debug)]
pub struct Guard {
    variables: Box<[Variable]>,
    allow: BTreeSet<Shared>,
    extent: Extent,
    /// What the server resets a variable of the context to is the tenant's own value: in session
    /// pooling.
    resets_to_own: bool,
    /// In posture plain: what a text has that is worth to be read.
    finder: Option<Finder>,
    /// In posture guarded and up, where policies tell the tenants apart: the variables that these
    /// read.
    policies: Option<Policies>,
}

/// What the policies of a tenant's database read.
#[derive(Debug)]
struct Policies {
    read: Arc<PolicyVariables>,
    /// Of these, what clients may set nevertheless, in lower case.
    free: Arc<[Box<str>]>,
}

fn offence(kind: &'static str, message: &str, hint: &'static str) -> Offence {
    Offence {
        kind,
        message: message.to_owned(),
        hint,
        error: Kind::InsufficientPrivilege,
    }
}

/// Whether a client may set this variable, in a database whose policies read these; `free` are
/// those that it may set nevertheless.
///
/// # Errors
/// Policies read it, or may.
pub fn check_policies(
    name: &str,
    read: &PolicyVariables,
    free: &[Box<str>],
) -> Result<(), Offence> {
    // All parameters without a dot are PostgreSQL's own.
    if !name.contains('.') {
        return Ok(());
    }
    let name = name.to_ascii_lowercase();
    if free.iter().any(|free| **free == *name) {
        return Ok(());
    }
    let why = match read.reads(&name) {
        ReadByPolicies::No => return Ok(()),
        ReadByPolicies::Yes => "row level security policies read it",
        ReadByPolicies::Unknown => "pgtenant could not look up whether policies read it",
    };
    let message = format!("permission denied to set parameter \"{name}\": {why}");
    Err(offence("policy", &message, NAME_IT))
}

fn is_of_strings(name: &str) -> bool {
    name.eq_ignore_ascii_case(STRINGS)
}

/// What PostgreSQL reads as true (bool.c), as far as anybody writes it.
fn is_on(value: &str) -> bool {
    let value = value.to_ascii_lowercase();
    [STARTS_WITH, "true", "yes", "1"].contains(&&*value)
}

/// What acts for nobody else: an empty value, and what PostgreSQL reads as false (bool.c).
fn is_off(value: &str) -> bool {
    let value = value.trim().to_ascii_lowercase();
    ["", "0", "off", "of"].contains(&&*value)
        || "false".starts_with(&*value)
        || "no".starts_with(&*value)
}

impl Guard {
    /// What a tenant may not run that lives there. None: it may run everything, as there is no
    /// context.
    pub fn of(route: &Route) -> Option<Self> {
        let placement = &route.placement;
        let own = route.context.iter().map(|(name, value)| Variable {
            name: name.to_ascii_lowercase().into(),
            may: May::Own(value.as_str().into()),
        });
        let nobodys = placement.privileged.iter().map(|name| Variable {
            name: name.clone(),
            may: May::ForOne {
                or: Arc::default(),
                at_home: false,
            },
        });
        let sealed = placement.guard.then(|| Variable {
            name: SEALED_VARIABLE.into(),
            may: May::Nothing,
        });
        let variables: Box<[_]> = own.chain(nobodys).chain(sealed).collect();
        if !placement.guard {
            let words = variables.iter().map(|variable| {
                let last = variable.name.rsplit('.').next();
                last.unwrap_or_default().as_bytes()
            });
            let finder = Finder::new(words.chain([&b"set_config"[..]]));
            return (!variables.is_empty()).then(|| Self {
                variables,
                allow: BTreeSet::new(),
                extent: Extent::Context,
                resets_to_own: route.pooling == Pooling::Session,
                finder: Some(finder),
                policies: None,
            });
        }
        let mut allow = placement.allow.clone();
        if !placement.shares_role {
            // What such a role leaves in catalogs is its own.
            allow.insert(Shared::Catalogs);
        }
        Some(Self {
            variables,
            allow,
            extent: Extent::Whole,
            resets_to_own: route.pooling == Pooling::Session,
            finder: None,
            policies: None,
        })
    }

    /// Of posture guarded. `context`: names of the variables that only the proxy sets.
    pub fn new<'a>(context: impl Iterator<Item = &'a str>, allow: BTreeSet<Shared>) -> Self {
        let nothing = |name: &str| Variable {
            name: name.to_ascii_lowercase().into(),
            may: May::Nothing,
        };
        Self {
            variables: context.map(nothing).collect(),
            allow,
            extent: Extent::Whole,
            resets_to_own: false,
            finder: None,
            policies: None,
        }
    }

    /// What an application may not run there: in posture plain it may all but choose by what is not
    /// understood, and act for all tenants without the privilege.
    pub fn of_application(route: &Route, application: Option<&Application>) -> Self {
        let mut guard =
            Self::of(route).unwrap_or_else(|| Self::new([].into_iter(), BTreeSet::new()));
        if !route.placement.guard {
            guard.extent = Extent::Choice;
        }
        let Some(application) = application else {
            return guard;
        };
        let at_home = application.is_home(&route.placement);
        for variable in &mut guard.variables {
            if let Some(values) = application.all_tenants.get(&variable.name) {
                variable.may = May::ForOne {
                    or: values.clone(),
                    at_home,
                };
            }
        }
        guard
    }

    /// Refuses what the policies of the tenant's database read, too, if it lives at `route`.
    #[must_use]
    pub fn with_policies(mut self, route: &Route, read: &Arc<PolicyVariables>) -> Self {
        let placement = &route.placement;
        self.policies = route.policies_matter().then(|| Policies {
            read: read.clone(),
            free: placement.user_variables.clone(),
        });
        self
    }

    /// Whether it is that of posture guarded and up.
    fn is_whole(&self) -> bool {
        self.extent == Extent::Whole
    }

    pub fn allows(&self, shared: Shared) -> bool {
        !self.is_whole() || self.allow.contains(&shared)
    }

    /// Whether what cannot be read is refused.
    pub fn refuses_unread(&self) -> bool {
        self.extent >= Extent::Choice
    }

    /// Whether functions may be called by their oid, where `set_config` does not set one of the
    /// variables.
    pub fn allows_calls_by_oid(&self) -> bool {
        self.extent == Extent::Context
    }

    /// Whether what has these effects passes for certain: in posture plain, what sets nothing.
    #[inline]
    pub fn passes(&self, effects: &Effects) -> bool {
        let unknown = What::SETS_UNKNOWN | What::SETS_UNKNOWN_LOCALLY;
        self.extent == Extent::Context
            && effects.settings.is_empty()
            && effects.local.is_empty()
            && !effects.what.intersects(unknown)
    }

    /// Whether there is nothing in a text to refuse, as far as that can be seen without reading it.
    pub fn passes_unread(&self, text: &[u8]) -> bool {
        let finder = self.finder.as_ref();
        self.extent == Extent::Context && finder.is_some_and(|finder| !finder.is_in(text))
    }

    /// A text in which what returns a variable of the context to its default, sets it to what it
    /// is: for the tenant's own client that is its default. None: it has nothing of that.
    pub fn returned(&self, text: &[u8], backslashes: bool) -> Option<String> {
        let own = self
            .variables
            .iter()
            .filter_map(|variable| match &variable.may {
                May::Own(value) => Some((variable.name.clone(), value.clone())),
                _ => None,
            });
        let (names, values): (Vec<_>, Vec<_>) = own.unzip();
        choice::returned(text, &names, &values, self.resets_to_own, backslashes)
    }

    /// The value of a variable of the context, if it is one.
    pub fn own(&self, name: &str) -> Option<&str> {
        match &self.variable(name)?.may {
            May::Own(value) => Some(value),
            _ => None,
        }
    }

    /// As [`check`](Self::check), for a text with these effects: one that sets a variable to what
    /// it may be, may do so. `chosen`, in lower case, are known to be set to what they are.
    ///
    /// # Errors
    /// The first offence.
    pub fn check_text(
        &self,
        effects: &Effects,
        text: &[u8],
        backslashes: bool,
        chosen: &[Box<str>],
    ) -> Result<Passed, Offence> {
        let mut passed = Passed::default();
        let Err(offence) = self.check_but(effects, chosen) else {
            // In posture plain, its parameters may name a variable.
            let unknown = What::SETS_UNKNOWN | What::SETS_UNKNOWN_LOCALLY;
            passed.by_parameters =
                self.extent == Extent::Context && effects.what.intersects(unknown);
            return Ok(passed);
        };
        if offence.kind != "set" {
            return Err(offence);
        }
        let is_chosen = |name: &str| chosen.iter().any(|own| own.eq_ignore_ascii_case(name));
        let may_be_set = self
            .variables
            .iter()
            .filter(|variable| variable.may != May::Nothing);
        let mut names: Vec<Box<str>> = may_be_set.map(|variable| variable.name.clone()).collect();
        if self.is_whole() {
            names.push(STRINGS.into());
            if let Some((name, value)) = choice::set_as_pg_dump(text, backslashes) {
                return self.check_call(&name, &value);
            }
        }
        let mut check = |name: &str, value: &str| match is_chosen(name) {
            true => Ok(()),
            false if is_of_strings(name) && !is_on(value) => self.check_name(STRINGS),
            false => self.check_value(name, value, &mut passed),
        };
        let mut by_parameters = false;
        for step in choice::read(text, &names, backslashes) {
            let calls: Vec<&SetConfig> = match &step {
                Step::Set(Chosen {
                    variable, value, ..
                }) if value.is_some()
                    || !self.resets_to_own
                    || is_of_strings(&names[*variable]) =>
                {
                    check(&names[*variable], value.as_deref().unwrap_or_default())?;
                    continue;
                }
                Step::Reset(variable) if is_of_strings(&names[*variable]) => return Err(offence),
                Step::Set(_) | Step::Reset(_) if self.resets_to_own => continue,
                Step::Reset(variable) => {
                    check(&names[*variable], "")?;
                    continue;
                }
                Step::SetConfig(call, _) => vec![call],
                Step::SetConfigs(calls) => calls.iter().map(|(call, _)| call).collect(),
                step if step.may_choose() => return Err(offence),
                _ => continue,
            };
            for call in calls {
                match (&call.name, &call.value) {
                    (Term::Literal(name), Term::Literal(value)) => check(name, value)?,
                    (Term::Literal(name), Term::Null) => check(name, "")?,
                    (Term::Literal(name), Term::Parameter(_)) if !is_of_strings(name) => {
                        by_parameters |= !is_chosen(name) && self.variable(name).is_some();
                    }
                    _ => return Err(offence),
                }
            }
        }
        passed.by_parameters = by_parameters;
        let known: Vec<_> = names.iter().chain(chosen).cloned().collect();
        self.check_but(effects, &known).map(|()| passed)
    }

    /// Whether these values may be set, by name.
    ///
    /// # Errors
    /// One is not what its variable may be.
    pub fn check_bound<'v>(
        &self,
        values: impl IntoIterator<Item = (&'v str, &'v str)>,
    ) -> Result<Passed, Offence> {
        let mut passed = Passed::default();
        let mut values = values.into_iter();
        values.try_for_each(|(name, value)| self.check_value(name, value, &mut passed))?;
        Ok(passed)
    }

    /// Whether a text with these effects names one of the variables.
    pub fn names(&self, effects: &Effects) -> bool {
        effects.sets().any(|name| self.variable(name).is_some())
    }

    fn variable(&self, name: &str) -> Option<&Variable> {
        let mut variables = self.variables.iter();
        variables.find(|variable| variable.name.eq_ignore_ascii_case(name))
    }

    /// Whether a parameter is none of the variables, or may be set to this.
    fn check_value(&self, name: &str, value: &str, passed: &mut Passed) -> Result<(), Offence> {
        let Some(variable) = self.variable(name) else {
            return self.check_policies(name);
        };
        match &variable.may {
            May::Own(own) if **own == *value => Ok(()),
            May::ForOne { .. } if is_off(value) => Ok(()),
            May::ForOne { or, at_home: false } if or.iter().any(|all| **all == *value) => {
                Err(not_at_home())
            }
            May::ForOne { or, .. } if or.iter().any(|all| **all == *value) => {
                passed.for_all = Some(variable.name.clone());
                Ok(())
            }
            May::ForOne { .. } => {
                let message = format!("permission denied to set parameter \"{name}\" to this");
                Err(offence("all_tenants", &message, ASK_FOR_PRIVILEGE))
            }
            _ => self.check_name(&variable.name),
        }
    }

    /// As [`check`](Self::check), for a statement that is known to set `chosen`, in lower case, to
    /// what they may be.
    ///
    /// # Errors
    /// The first offence.
    pub fn check_but(&self, effects: &Effects, chosen: &[Box<str>]) -> Result<(), Offence> {
        if chosen.is_empty() {
            return self.check(effects);
        }
        let is_chosen = |name: &str| chosen.iter().any(|own| **own == *name);
        let mut others = effects.clone();
        others.settings.retain(|setting| !is_chosen(&setting.name));
        others.local.retain(|name| !is_chosen(name));
        self.check(&others)
    }

    /// Whether a text with these effects may run.
    ///
    /// # Errors
    /// The first offence.
    pub fn check(&self, effects: &Effects) -> Result<(), Offence> {
        let what = effects.what;
        if !self.is_whole() {
            self.check_names(effects)?;
            // What chooses is read in an encoding in which no byte of a character is ASCII.
            return match what.contains(What::ENCODING) && self.extent == Extent::Choice {
                true => Err(unsafe_encoding()),
                false => Ok(()),
            };
        }
        if what.contains(What::HIDDEN) {
            let message = "permission denied for a statement that cannot be read";
            return Err(offence("hidden", message, BE_PLAIN));
        }
        if what.contains(What::CODE) && !self.allows(Shared::Code) {
            let message = "permission denied to run code";
            let hint = "pgtenant does not read code; the operator may allow it.";
            return Err(offence("code", message, hint));
        }
        // Who may run code may have it set whatever it likes.
        let runs_code = what.intersects(What::CODE | What::CALLS | What::RUNS_STRINGS)
            && self.allows(Shared::Code);
        self.check_names(effects)?;
        if what.intersects(What::SETS_UNKNOWN | What::SETS_UNKNOWN_LOCALLY) && !runs_code {
            let message = "permission denied to set a parameter that is not named in the statement";
            return Err(offence("set", message, BE_PLAIN));
        }
        if what.contains(What::ENCODING) {
            return Err(unsafe_encoding());
        }
        if what.contains(What::RUNS_STRINGS) && !runs_code {
            let message = "permission denied to run SQL from a string";
            return Err(offence("string", message, BE_PLAIN));
        }
        if what.contains(What::DEFINES) {
            let message = "permission denied to define code or settings";
            let hint = "Migrations run as a role of their own, not through a tenant's login.";
            return Err(offence("define", message, hint));
        }
        if what.contains(What::ROLE_WIDE) {
            let message = "permission denied to drop or reassign what the role owns";
            let hint = "All tenants of the placement may be that role.";
            return Err(offence("role", message, hint));
        }
        self.check_shared(what)
    }

    /// Whether a client may log in with this run-time parameter.
    ///
    /// # Errors
    /// It may not be set, or not so.
    pub fn check_parameter(&self, name: &str, value: &str) -> Result<(), Offence> {
        let name = name.to_ascii_lowercase();
        if self.refuses_unread() && name == "client_encoding" && !is_safe_encoding(value) {
            return Err(unsafe_encoding());
        }
        // Those of the context are compared with the tenant's own.
        if self.own(&name).is_none() {
            self.check_value(&name, value, &mut Passed::default())?;
        }
        if !self.is_whole() {
            return Ok(());
        }
        match PROTECTED.contains(&&*name) && value != STARTS_WITH {
            true => self.check_name(&name),
            false => Ok(()),
        }
    }

    /// Whether this parameter may be set to this by a call whose arguments are known.
    ///
    /// # Errors
    /// It is the proxy's.
    pub fn check_call(&self, name: &str, value: &str) -> Result<Passed, Offence> {
        let name = name.to_ascii_lowercase();
        if name == "client_encoding" && !is_safe_encoding(value) {
            return Err(unsafe_encoding());
        }
        match self.variable(&name).map(|variable| &variable.may) {
            Some(May::ForOne { .. }) => self.check_bound([(&*name, value)]),
            _ => {
                self.check_name(&name)?;
                self.check_policies(&name).map(|()| Passed::default())
            }
        }
    }

    fn check_names(&self, effects: &Effects) -> Result<(), Offence> {
        effects.sets().try_for_each(|name| self.check_name(name))?;
        // What the operator has set by default may be returned to.
        let settings = effects.settings.iter().filter(|setting| !setting.reset);
        let settings = settings.map(|setting| &setting.name);
        settings
            .chain(&effects.local)
            .try_for_each(|name| self.check_policies(name))
    }

    fn check_policies(&self, name: &str) -> Result<(), Offence> {
        match &self.policies {
            Some(policies) if self.variable(name).is_none() => {
                check_policies(name, &policies.read, &policies.free)
            }
            _ => Ok(()),
        }
    }

    fn check_name(&self, name: &str) -> Result<(), Offence> {
        let is_protected = self.is_whole() && PROTECTED.contains(&name);
        if is_protected || self.variable(name).is_some() {
            let message = format!("permission denied to set parameter \"{name}\"");
            return Err(offence("set", &message, ASK_OPERATOR));
        }
        Ok(())
    }

    /// What all tenants of a database have in common.
    fn check_shared(&self, what: What) -> Result<(), Offence> {
        for (does, shared, kind, message) in [
            (
                What::LISTEN | What::NOTIFIES,
                Shared::Channels,
                "channel",
                "permission denied for LISTEN and NOTIFY",
            ),
            (
                What::ANY_ADVISORY,
                Shared::AdvisoryLocks,
                "advisory_lock",
                "permission denied for advisory locks",
            ),
            (
                What::LOCKS_TABLE,
                Shared::TableLocks,
                "table_lock",
                "permission denied for LOCK in this mode",
            ),
            (
                What::TWO_PHASE,
                Shared::PreparedTransactions,
                "prepared_transaction",
                "permission denied for prepared transactions",
            ),
            (
                What::SHOWS,
                Shared::Catalogs,
                "catalog",
                "permission denied to leave values in catalogs: ANALYZE, COMMENT, views, and literals in defaults, checks, indexes and bounds of partitions",
            ),
            (
                What::LARGE_OBJECT,
                Shared::LargeObjects,
                "large_object",
                "permission denied for large objects",
            ),
        ] {
            if what.intersects(does) && !self.allows(shared) {
                let hint =
                    "All tenants of the database have them in common; the operator may allow them.";
                return Err(offence(kind, message, hint));
            }
        }
        Ok(())
    }
}

fn not_at_home() -> Offence {
    Offence {
        error: Kind::FeatureNotSupported,
        ..offence(
            "all_tenants",
            "an application acts for all tenants only at its home",
            "Choose no tenant, or one that lives there, before.",
        )
    }
}

/// Of values that are not known.
pub fn unreadable() -> Offence {
    let message = "permission denied to set a variable to what cannot be read";
    offence("set", message, BE_PLAIN)
}

fn unsafe_encoding() -> Offence {
    offence(
        "encoding",
        "permission denied to set this client_encoding",
        "Use one in which no byte of a character is ASCII, such as UTF8.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(sql: &str) -> Option<&'static str> {
        let context = ["app.tenant_id", "pgtenant.context"];
        let guard = Guard::new(context.into_iter(), BTreeSet::new());
        let offence = guard.check(&Effects::of(sql.as_bytes(), false)).err();
        offence.map(|offence| offence.kind)
    }

    #[test]
    fn what_could_change_the_tenant_is_refused() {
        for (sql, expected) in [
            ("SET app.tenant_id = 'b'", "set"),
            ("set session \"App\".\"Tenant_ID\" to 'b'", "set"),
            ("/* x */ SET/**/LOCAL app . tenant_id = 'b'", "set"),
            ("SELECT 1; RESET app.tenant_id", "set"),
            ("SET app.tenant_id TO DEFAULT", "set"),
            ("SELECT set_config('app.tenant_id', 'b', false)", "set"),
            ("SELECT set_config('app.tenant_id', 'b', true)", "set"),
            (
                "SELECT pg_catalog.\"set_config\" ('APP.TENANT_ID', 'b', true)",
                "set",
            ),
            ("SELECT set_config('app.' || 'tenant_id', 'b', true)", "set"),
            ("SELECT set_config($1, $2, $3)", "set"),
            ("SELECT set_config(E'app.tenant\\x5fid', 'b', true)", "set"),
            ("SELECT set_config($$app.tenant_id$$, 'b', true)", "set"),
            (
                "SELECT set_config(U&'app.tenant\\005fid', 'b', true)",
                "hidden",
            ),
            (
                "SELECT U&\"set\\005fconfig\"('app.tenant_id', 'b', true)",
                "hidden",
            ),
            (
                "SELECT DISTINCT ON (1) set_config('app.tenant_id', 'b', true)",
                "set",
            ),
            (
                "PREPARE x AS SELECT set_config('app.tenant_id', 'b', true)",
                "set",
            ),
            (
                "COPY (SELECT set_config('app.tenant_id', 'b', true)) TO STDOUT",
                "set",
            ),
            (
                "EXPLAIN ANALYZE SELECT set_config('app.tenant_id', 'b', true)",
                "set",
            ),
            (
                "SELECT $x$a$x$, set_config('app.tenant_id', 'b', true)",
                "set",
            ),
            (
                "SELECT set_config('app.tenant_id', set_config('a.b', 'c', true), true)",
                "set",
            ),
            (
                "SELECT set_config(lower(set_config('a.b', 'c', true)), 'b', true)",
                "set",
            ),
            ("SET ROLE b", "set"),
            ("RESET SESSION AUTHORIZATION", "set"),
            ("SET LOCAL SESSION AUTHORIZATION b", "set"),
            ("SET standard_conforming_strings = off", "set"),
            ("SET NAMES 'SJIS'", "encoding"),
            (
                "UPDATE pg_settings SET setting = 'b' WHERE name = 'app.tenant_id'",
                "set",
            ),
            ("UPDATE pg_catalog.pg_settings SET setting = 'b'", "set"),
            ("UPDATE ONLY \"pg_settings\" SET setting = 'b'", "set"),
            (
                "WITH x AS (SELECT 1) UPDATE pg_settings SET setting = 'b'",
                "set",
            ),
            (
                "EXPLAIN ANALYZE UPDATE pg_settings SET setting = 'b'",
                "set",
            ),
            ("CREATE TEMP VIEW v AS SELECT * FROM pg_settings", "set"),
            ("NOTIFY orders, 'x'", "channel"),
            ("SELECT pg_notify('orders', 'x')", "channel"),
            ("LISTEN orders", "channel"),
            ("SELECT pg_try_advisory_xact_lock(1)", "advisory_lock"),
            ("SELECT pg_advisory_lock(1)", "advisory_lock"),
            ("LOCK orders", "table_lock"),
            (
                "LOCK TABLE ONLY orders IN SHARE ROW EXCLUSIVE MODE NOWAIT",
                "table_lock",
            ),
            ("LOCK TABLE orders IN EXCLUSIVE MODE", "table_lock"),
            (
                "LOCK TABLE in.row, exclusive IN ACCESS EXCLUSIVE MODE",
                "table_lock",
            ),
            (
                "LOCK TABLE \"in\" IN ROW SHARE MODE; LOCK TABLE a",
                "table_lock",
            ),
            ("SELECT lo_from_bytea(0, 'x')", "large_object"),
            ("SELECT TREAT(1 AS pg_advisory_lock)", "hidden"),
            ("SELECT a, treat ( 0.5 AS setseed ) FROM t", "hidden"),
            ("EXPLAIN ANALYZE CREATE VIEW v AS SELECT 'x'", "catalog"),
            ("CREATE INDEX ON t ((a || 'x'))", "catalog"),
            ("CREATE STATISTICS s ON a, (b = 'x') FROM t", "catalog"),
            (
                "CREATE TABLE p PARTITION OF t FOR VALUES IN ('x')",
                "catalog",
            ),
            (
                "ALTER TABLE t ATTACH PARTITION p FOR VALUES FROM (1) TO (2)",
                "catalog",
            ),
            ("ALTER TABLE t ALTER a SET EXPRESSION AS (5)", "catalog"),
            ("SECURITY LABEL ON TABLE t IS 'x'", "catalog"),
            (
                "CREATE SCHEMA s CREATE TRIGGER x BEFORE INSERT ON t EXECUTE FUNCTION f()",
                "define",
            ),
            (
                "CREATE DEFAULT CONVERSION c FOR 'UTF8' TO 'LATIN1' FROM f",
                "define",
            ),
            ("DROP OWNED BY CURRENT_USER", "role"),
            ("SELECT 1; drop/**/owned by app CASCADE", "role"),
            ("REASSIGN OWNED BY app TO other", "role"),
            ("PREPARE TRANSACTION 'x'", "prepared_transaction"),
            (
                "BEGIN; COMMIT; ROLLBACK PREPARED 'x'",
                "prepared_transaction",
            ),
            ("COMMIT PREPARED 'x'", "prepared_transaction"),
            ("SELECT pg_catalog.loread(1, 2)", "large_object"),
            (
                "SELECT query_to_xml('SELECT set_config(''a.b'', ''c'', true)', true, true, '')",
                "string",
            ),
            ("SELECT * FROM ts_stat('SELECT 1')", "string"),
            ("DO $$ BEGIN PERFORM 1; END $$", "code"),
            ("do language plpgsql 'BEGIN NULL; END'", "code"),
            ("/* x */ DO $x$ BEGIN NULL; END -- $x$", "code"),
            ("SELECT 1; DO LANGUAGE plpython3u $$ pass $$", "code"),
            ("CALL \"\"", "code"),
            ("CALL update(set_config('app.tenant_id', 'b', true))", "set"),
            (
                "CALL t.table(set_config('app.tenant_id', 'b', true))",
                "set",
            ),
            ("CALL execute(query_to_xml('x', true, true, ''))", "string"),
            ("CALL into.as(pg_advisory_lock(1))", "advisory_lock"),
            ("CALL set_config('app.tenant_id', 'b', true)", "set"),
            ("SELECT * FROM crosstab('SELECT 1')", "string"),
            ("SELECT dblink_exec('c', 'SELECT 1')", "string"),
            ("SET client_encoding = $$SJIS$$", "encoding"),
            ("SET client_encoding = E'\\x53JIS'", "encoding"),
            ("SET NAMES $a$SJIS$a$", "encoding"),
            ("SET NAMES whatever", "encoding"),
            ("SET client_encoding = \"Big5\"", "encoding"),
            (
                "SELECT set_config('client_encoding', $1, false)",
                "encoding",
            ),
            ("SET SESSION SESSION AUTHORIZATION b", "set"),
            ("SET LOCAL SESSION AUTHORIZATION DEFAULT", "set"),
            ("SET SESSION ROLE b", "set"),
            ("SET role TO b", "set"),
            ("SET app.tenant_id FROM CURRENT", "set"),
            ("ANALYZE report", "catalog"),
            ("VACUUM (ANALYZE) report", "catalog"),
            ("COMMENT ON TABLE t IS 'x'", "catalog"),
            ("CREATE TEMP VIEW v AS SELECT 'x'", "catalog"),
            ("CREATE TEMP TABLE t (a text DEFAULT 'x')", "catalog"),
            ("CREATE TEMP TABLE t (a int CHECK (a > 5))", "catalog"),
            ("CREATE INDEX ON t (a) WHERE b = 'x'", "catalog"),
            ("ALTER TABLE t ALTER a SET DEFAULT 5", "catalog"),
            (
                "CREATE FUNCTION pg_temp.f() RETURNS text LANGUAGE sql AS 'SELECT 1'",
                "define",
            ),
            (
                "CREATE OR REPLACE AGGREGATE x (text) (sfunc = set_config)",
                "define",
            ),
            (
                "CREATE OR REPLACE PROCEDURE p() LANGUAGE sql AS ''",
                "define",
            ),
            (
                "CREATE DOMAIN d AS text CHECK (set_config('a.b', VALUE, true) IS NULL)",
                "define",
            ),
            ("ALTER ROLE app SET app.tenant_id = 'b'", "define"),
            ("ALTER DATABASE app SET app.tenant_id = 'b'", "define"),
            ("ALTER FUNCTION f() SET app.tenant_id = 'b'", "define"),
            ("LOAD 'x'", "define"),
            ("SELECT 'a", "hidden"),
            ("SELECT 1 /* a", "hidden"),
        ] {
            assert_eq!(kind(sql), Some(expected), "{sql}");
        }
    }

    #[test]
    fn what_applications_and_drivers_do_is_let_through() {
        for sql in [
            "SELECT 1",
            "SELECT 'SET app.tenant_id = 1', set_config('app.user', $1, true)",
            "DISCARD ALL",
            "RESET ALL",
            "SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "SET application_name = 'x'; SET extra_float_digits = 3; SET TIME ZONE 'UTC'",
            "SET client_encoding TO 'UTF8'",
            "SET search_path = app, public",
            "SET LOCAL statement_timeout = 5",
            "CREATE TEMP TABLE t (a int)",
            "CREATE INDEX ON t (a)",
            "CREATE INDEX ON t (lower(a)) WITH (fillfactor = 70)",
            "CREATE TABLE p PARTITION OF t FOR VALUES WITH (MODULUS 4, REMAINDER 1)",
            "CREATE TABLE t (a int) PARTITION BY RANGE (a) WITH (fillfactor = 70)",
            "SELECT treat FROM t",
            "EXPLAIN (ANALYZE, COSTS off) SELECT 5",
            "ALTER TABLE t ADD b int",
            "SET NAMES UTF8; SET NAMES; SET client_encoding = $$LATIN1$$; SET NAMES DEFAULT",
            "CREATE TEMP TABLE t AS SELECT a, 'x' AS b, 5 FROM u WHERE c = 'y'",
            "CREATE TEMP TABLE t (a numeric(10, 2), b varchar(5))",
            "VACUUM t; EXPLAIN ANALYZE SELECT 1",
            "EXECUTE p (1)",
            "DROP TABLE owned; DROP VIEW IF EXISTS owned",
            "PREPARE prepared AS SELECT transaction FROM t; COMMIT; ROLLBACK AND CHAIN",
            "SELECT pg_advisory_unlock(1)",
            "LOCK TABLE a, b IN ACCESS SHARE MODE",
            "LOCK TABLE a IN ROW EXCLUSIVE MODE NOWAIT; LOCK b IN ROW SHARE MODE",
            "SELECT name FROM pg_settings",
            "SELECT notify, lock FROM listen FOR UPDATE",
            "UPDATE t SET a = 1",
        ] {
            assert_eq!(kind(sql), None, "{sql}");
        }
    }

    /// Each word that the grammar allows as a name behind SET stands for itself there, and the
    /// context is found behind every production of SET and RESET.
    #[test]
    fn the_context_is_found_whatever_words_its_name_is_made_of() {
        let words = [
            "app",
            "local",
            "session",
            "time",
            "zone",
            "schema",
            "catalog",
            "names",
            "role",
            "xml",
            "transaction",
            "constraints",
            "option",
            "characteristics",
            "reset",
            "set",
            "temp",
            "begin",
            "document",
            "current",
            "no",
            "\"all\"",
            "\"Session\"",
            "\"to\"",
        ];
        let plain = |word: &str| word.trim_matches('"').to_lowercase();
        for first in words {
            for second in words {
                let name = format!("{first}.{second}");
                let context = format!("{}.{}", plain(first), plain(second));
                let guard = Guard::new([&*context].into_iter(), BTreeSet::new());
                for statement in [
                    "SET {} = 'b'",
                    "SET {} TO b",
                    "SET {}=b",
                    "SET SESSION {} = 'b'",
                    "SET LOCAL {} TO 'b'",
                    "SET {} TO DEFAULT",
                    "SET {} FROM CURRENT",
                    "RESET {}",
                    "/**/SET/**/{}/**/TO/**/'b'",
                    "BEGIN; SET LOCAL {} = 1, 2; COMMIT",
                    "SELECT set_config('{}', 'b', true)",
                ] {
                    let written = match statement.contains("set_config") {
                        true => &context,
                        false => &name,
                    };
                    let sql = statement.replace("{}", written);
                    let offence = guard.check(&Effects::of(sql.as_bytes(), false)).err();
                    assert_eq!(offence.map(|o| o.kind), Some("set"), "{sql}");
                    // Another name is none of the guard's business.
                    let other = statement.replace("{}", &format!("{written}_"));
                    let other = other.replace("\"_", "_\"");
                    let offence = guard.check(&Effects::of(other.as_bytes(), false)).err();
                    assert_eq!(offence.map(|o| o.kind), None, "{other}");
                }
            }
        }
    }

    #[test]
    fn what_tenants_have_in_common_is_for_the_operator_to_allow() {
        let allow = [Shared::Channels, Shared::TableLocks];
        let guard = Guard::new(std::iter::empty(), allow.into());
        for (sql, allowed) in [
            ("LISTEN a; NOTIFY a", true),
            ("LOCK a", true),
            ("SELECT pg_advisory_xact_lock(1)", false),
            ("SELECT lo_create(0)", false),
        ] {
            let checked = guard.check(&Effects::of(sql.as_bytes(), false));
            assert_eq!(checked.is_ok(), allowed, "{sql}");
        }
    }

    #[test]
    fn a_client_cannot_log_in_with_what_it_may_not_set() {
        let guard = Guard::new(std::iter::empty(), BTreeSet::new());
        for (name, value, may) in [
            ("client_encoding", "UTF8", true),
            ("client_encoding", "Shift_JIS", false),
            ("Role", "x", false),
            ("session_authorization", "x", false),
            ("standard_conforming_strings", "off", false),
            ("standard_conforming_strings", "on", true),
            ("search_path", "x", true),
        ] {
            let checked = guard.check_parameter(name, value);
            assert_eq!(checked.is_ok(), may, "{name}={value}");
        }
    }
}
