//! The tenant context of a server connection: which tenant's variables and which client's settings
//! it carries, and how it changes from one to the next.
//!
//! ```text
//!            connect                     adopt(T)
//!   (new) ───────────► Clean ─────────────────────────────► Bound(T)
//!                        │                                   │  ▲
//!                        ▲                                   │  │ adopt(T): variables again, if stale; the
//!                        │ the client's DISCARD ALL          ▼  │ settings that differ from the last client's
//!                        └──────────────────────────────── Bound(T), Bound(S), Unknown
//!                                                              adopt(T) from the last two: DISCARD ALL first
//! ```
//!
//! In transaction pooling a change of tenant goes ahead of the client's first bytes, in a batch
//! that guards them ([`crate::backend::switch`]). Else, and where the last client's own settings
//! could disturb that, a change is acknowledged before any byte of the client is sent: everything
//! goes out in one write, and all its ReadyForQuery come back, or the connection is closed.
//! Variables are set with a FunctionCall message of `pg_catalog.set_config`, which is a transaction
//! of its own, leaves the client's unnamed statement alone and shows no text in `pg_stat_activity`.
//!
//! In posture sealed the session is bound to its tenant before the variables are set, by a value
//! that only this process can make ([`crate::backend::seal`]); it is bound anew with half of its
//! life left. What the value needs of the database is asked once.

use std::sync::Arc;
use std::time::Duration;

use crate::backend::ahead::{self, Setting};
use crate::backend::binding::{
    Binding, Context, Refusal, SET_CONFIG_OID, Settings, not_set, not_set_for,
};
use crate::backend::connection::{Frame, Parameters, ServerConnection};
use crate::backend::leftovers;
use crate::backend::seal::{self, Credential};
use crate::backend::switch::Batch;
use crate::config::Route;
use crate::error::{Error, Kind, Result};
use crate::id::TenantId;
use crate::protocol::buffer::Buffer;
use crate::protocol::frame::{BackendTag, FrontendTag, frame};
use crate::protocol::reply::ErrorFields;
use crate::timer;

/// In what a client sends its texts, and is sent what is text.
const ENCODING: &str = "client_encoding";

/// `pg_catalog.setseed(double precision)` (pg_proc.dat).
const SETSEED_OID: u32 = 1599;

/// What is sent for a change, and how to read what comes back.
#[derive(Default)]
struct Plan {
    request: Vec<u8>,
    /// ReadyForQuery to wait for.
    answers: usize,
    /// The first answers up to here decide over the context; what fails later is a setting of the
    /// client's.
    required: usize,
    /// The answer that comes when this many did is of the seal.
    seal: Option<usize>,
}

/// What is to be done.
struct Change<'c> {
    scrub: bool,
    /// The variables of the context are to be set.
    variables: bool,
    /// Another tenant may have set the state of `random()`, which DISCARD ALL leaves.
    reseed: bool,
    /// The settings that are in force.
    applied: Option<&'c Arc<Settings>>,
}

impl<'c> Change<'c> {
    fn new(wanted: &Binding, context: &'c Context) -> Self {
        let (scrub, variables, applied) = match context {
            Context::Bound(bound)
                if bound.tenant == wanted.tenant && same_variables(&bound.route, &wanted.route) =>
            {
                (false, bound.stale, Some(&bound.settings))
            }
            Context::Clean => (false, true, None),
            Context::Bound(_) | Context::Unknown => (true, true, None),
        };
        Self {
            scrub,
            variables,
            reseed: false,
            applied,
        }
    }

    /// What is to be set.
    fn sets<'s>(&self, wanted: &'s Binding) -> impl Iterator<Item = (&'s str, &'s str)> {
        let variables = self.variables.then_some(&wanted.route.context);
        // Of nobody, on a connection on which nobody has set them: as in a session that has just
        // begun.
        let is_nobodys = |value: &str| value.is_empty() && self.applied.is_none() && !self.scrub;
        let variables = variables.into_iter().flatten();
        let variables = variables.filter(move |(_, value)| !is_nobodys(value));
        let settings = match self.applied {
            Some(applied) if Arc::ptr_eq(applied, &wanted.settings) => Vec::new(),
            Some(applied) => to_set(applied, wanted),
            None => to_set(&Settings::new(), wanted),
        };
        variables
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .chain(settings)
    }
}

impl Plan {
    fn scrub(&mut self) {
        self.query("DISCARD ALL");
    }

    /// The database is asked for what the seal needs, or told it.
    fn seal(&mut self, request: &[u8]) {
        self.seal = Some(self.answers);
        self.request.extend(request);
        self.answers += 1;
        self.required = self.answers;
    }

    fn bind(&mut self, credential: &Credential) {
        let mut batch = Batch::default();
        batch.set(Some(credential), None, &[]);
        batch.request.extend(frame(FrontendTag::SYNC.0, &[]));
        self.seal(&batch.request);
    }

    fn variables(&mut self, change: &Change<'_>, wanted: &Binding) {
        if change.reseed {
            self.call(SETSEED_OID, &[&leftovers::seed()]);
        }
        let recodes = change.sets(wanted).any(|(_, value)| !value.is_ascii());
        if recodes {
            // What is sent is in UTF-8, and the server reads it in the encoding of the client who
            // was there last.
            self.set_config(ENCODING, "UTF8");
        }
        if change.variables {
            let is_new = change.applied.is_none() && !change.scrub;
            let variables = wanted.route.context.iter();
            for (name, value) in variables.filter(|(_, value)| !(is_new && value.is_empty())) {
                self.set_config(name, value);
            }
        }
        self.required = self.answers;
        self.settings(change.applied, wanted, recodes);
        if recodes {
            match wanted.settings.get(ENCODING) {
                Some(encoding) => self.set_config(ENCODING, encoding),
                None => self.query(&format!("RESET {ENCODING}")),
            }
        }
    }

    /// The client's settings; what the context sets is not the client's to set. `but_encoding`: nor
    /// is its encoding set here.
    fn settings(&mut self, applied: Option<&Arc<Settings>>, binding: &Binding, but_encoding: bool) {
        let wanted = &binding.settings;
        let is_left =
            |name: &str| binding.route.pinned(name).is_some() || (but_encoding && name == ENCODING);
        if applied.is_some_and(|applied| Arc::ptr_eq(applied, wanted)) {
            return;
        }
        let empty = Settings::new();
        let applied = applied.map_or(&empty, |applied| &**applied);
        let mut dropped: Vec<_> = applied
            .keys()
            .filter(|name| !wanted.contains_key(*name) && !is_left(name))
            .collect();
        // What the role could not do is done before it is taken on and after it was laid down.
        dropped.sort_by_key(|name| std::cmp::Reverse(rank(name)));
        for name in dropped {
            self.query(&format!("RESET {}", quote_parameter(name)));
        }
        let changed = to_set(applied, binding).into_iter();
        for (name, value) in changed.filter(|(name, _)| !is_left(name)) {
            if name == "datestyle" && applied.contains_key(name) && !is_whole_date_style(value) {
                self.query("RESET \"datestyle\"");
            }
            self.set_config(name, value);
        }
    }

    fn query(&mut self, sql: &str) {
        self.request.extend(query(sql));
        self.answers += 1;
    }

    fn set_config(&mut self, name: &str, value: &str) {
        self.call(SET_CONFIG_OID, &[name, value, "false"]);
    }

    /// A FunctionCall: oid, no argument formats (all text), arguments, text result.
    fn call(&mut self, function: u32, arguments: &[&str]) {
        let count = u16::try_from(arguments.len()).unwrap_or(u16::MAX);
        let mut body = Vec::from(function.to_be_bytes());
        body.extend(0_u16.to_be_bytes());
        body.extend(count.to_be_bytes());
        for argument in arguments {
            let length = u32::try_from(argument.len()).unwrap_or(u32::MAX);
            body.extend(length.to_be_bytes());
            body.extend(argument.as_bytes());
        }
        body.extend(0_u16.to_be_bytes());
        self.request
            .extend(frame(FrontendTag::FUNCTION_CALL.0, &[&body]));
        self.answers += 1;
    }
}

fn query(sql: &str) -> Vec<u8> {
    frame(FrontendTag::QUERY.0, &[sql.as_bytes(), b"\0"])
}

/// The client's settings that are not in force, in the order to set them; what the context sets is
/// not the client's to set.
fn to_set<'b>(applied: &Settings, binding: &'b Binding) -> Vec<(&'b str, &'b str)> {
    let wanted = binding.settings.iter();
    let mut changed: Vec<_> = wanted
        .filter(|(name, value)| {
            applied.get(*name) != Some(value) && binding.route.pinned(name).is_none()
        })
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    changed.sort_by_key(|(name, _)| rank(name));
    changed
}

/// Whether a DateStyle gives both the style and the order of day and month, as a server reports it.
/// What it does not give is kept of the one that is in force.
fn is_whole_date_style(value: &str) -> bool {
    let order = value.split_once(", ").map(|(_, order)| order);
    matches!(order, Some("MDY" | "DMY" | "YMD"))
}

/// The order in which parameters are set: last what would hinder setting others, by ending it early
/// or by making its transaction wait; then roles.
fn rank(name: &str) -> u8 {
    match name {
        "role" => 3,
        "session_authorization" => 2,
        _ if name.ends_with("_timeout") || name.starts_with("default_transaction_") => 1,
        _ => 0,
    }
}

fn same_variables(bound: &Arc<Route>, wanted: &Arc<Route>) -> bool {
    Arc::ptr_eq(bound, wanted) || bound.same_context(wanted)
}

/// `app.x` as `"app"."x"`.
fn quote_parameter(name: &str) -> String {
    let parts: Vec<_> = name.split('.').map(crate::sql::quoted).collect();
    parts.join(".")
}

/// Whether `connection` already carries exactly this context: the variables of `tenant` on `route`,
/// and a client's `settings`.
pub fn carries(
    connection: &ServerConnection,
    tenant: &TenantId,
    route: &Arc<Route>,
    settings: &Arc<Settings>,
) -> bool {
    let needs_seal = || {
        let seal = route.seal.as_ref();
        seal.is_some_and(|seal| connection.sealed.needs(seal))
    };
    matches!(&connection.context, Context::Bound(bound)
        if !bound.stale
            && bound.tenant == *tenant
            && same_variables(&bound.route, route)
            && !needs_seal()
            && (Arc::ptr_eq(&bound.settings, settings) || bound.settings == *settings))
}

/// What it took to make a connection carry a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adopted {
    /// Nothing: it carried it.
    AsItWas,
    /// Variables or settings were set.
    Set,
    /// Another tenant's, or an unknown, context was scrubbed from it first.
    Scrubbed,
}

/// Makes `connection` carry the context of `wanted`; or, if `ahead` is given (what a server reports
/// to a client with these settings) and it can be, puts the change before what the client says next
/// ([`crate::backend::switch`]). Notifications that come meanwhile go to `aside`: for a client that
/// holds the connection already they are its own.
///
/// Not cancel safe: a connection that is left in the middle must be closed.
///
/// # Errors
/// See [`Refusal`].
pub async fn adopt(
    connection: &mut ServerConnection,
    wanted: &Binding,
    deadline: Duration,
    ahead: Option<Arc<Parameters>>,
    aside: &mut Buffer,
) -> Result<Adopted, Refusal> {
    if carries(connection, &wanted.tenant, &wanted.route, &wanted.settings) {
        return Ok(Adopted::AsItWas);
    }
    let changed = change(connection, wanted, ahead, aside);
    let scrubbed = match timer::timeout(deadline, changed).await {
        Ok(done) => done?,
        Err(_) => {
            return Err(Refusal::Broken(not_set(format_args!(
                "timed out after {deadline:?}"
            ))));
        }
    };
    if connection.switch.is_none() {
        connection.context = Context::Bound(Binding {
            stale: false,
            ..wanted.clone()
        });
    }
    Ok(match scrubbed {
        true => Adopted::Scrubbed,
        false => Adopted::Set,
    })
}

/// Takes all of a session that has ended off `connection`, which carries no context then. Whatever
/// it is told meanwhile is nobody's.
///
/// Not cancel safe: a connection that is left in the middle must be closed.
///
/// # Errors
/// 08006: it is to be closed.
pub async fn scrub(connection: &mut ServerConnection, deadline: Duration) -> Result<(), Error> {
    connection.context = Context::Unknown;
    connection.note_discard();
    let mut plan = Plan::default();
    plan.scrub();
    plan.required = plan.answers;
    let mut nobodys = Buffer::new();
    let done = exchange(connection, &plan, &mut nobodys);
    match timer::timeout(deadline, done).await {
        Ok(done) => done.map_err(Refusal::into_error)?,
        Err(_) => return Err(not_set(format_args!("timed out after {deadline:?}"))),
    };
    connection.context = Context::Clean;
    Ok(())
}

/// Returns whether it was scrubbed.
async fn change(
    connection: &mut ServerConnection,
    wanted: &Binding,
    ahead: Option<Arc<Parameters>>,
    aside: &mut Buffer,
) -> Result<bool, Refusal> {
    let ahead = ahead.filter(|reported| ahead::may_go_ahead(connection, wanted, reported));
    let context = std::mem::replace(&mut connection.context, Context::Unknown);
    let change = Change {
        reseed: std::mem::take(&mut connection.reseed),
        ..Change::new(wanted, &context)
    };
    let mut plan = Plan::default();
    let mut scrub = change.scrub;
    if scrub {
        connection.note_discard();
    }
    let mut credential = None;
    if let Some(seal) = &wanted.route.seal
        && (change.variables || connection.sealed.needs(seal))
    {
        if let Some(question) = connection.sealed.question(seal) {
            if std::mem::take(&mut scrub) {
                plan.scrub();
            }
            plan.seal(&query(&question));
            let answer = exchange(connection, &plan, aside).await?;
            let learnt = connection.sealed.learn(seal, answer.as_deref());
            learnt.map_err(Refusal::Broken)?;
            plan = Plan::default();
        }
        let made = connection.sealed.credential(seal);
        credential = Some(made.map_err(Refusal::Broken)?);
    }
    let credential = credential.as_ref();
    if let Some(reported) = ahead {
        let seed = change.reseed.then(leftovers::seed);
        let setting = Setting {
            scrub,
            credential,
            seed: seed.as_deref(),
            variables: &variables(wanted),
        };
        ahead::go_ahead(connection, wanted, &setting, reported);
        return Ok(change.scrub);
    }
    if scrub {
        plan.scrub();
    }
    if let Some(credential) = credential {
        plan.bind(credential);
    }
    plan.variables(&change, wanted);
    exchange(connection, &plan, aside).await?;
    Ok(change.scrub)
}

/// All that is set on a connection that carries nothing.
fn variables(wanted: &Binding) -> Vec<(&str, &str)> {
    let context = wanted.route.context.iter();
    context
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .chain(to_set(&Settings::new(), wanted))
        .collect()
}

/// Returns the first column of the last row that came.
async fn exchange(
    connection: &mut ServerConnection,
    plan: &Plan,
    aside: &mut Buffer,
) -> Result<Option<String>, Refusal> {
    if plan.answers == 0 {
        return Ok(None);
    }
    connection
        .send(&plan.request)
        .await
        .map_err(Refusal::Broken)?;
    let mut answered = 0;
    let mut refused = None;
    let mut row = None;
    // Whether the message to be answered next has been, up to its ReadyForQuery.
    let mut complete = false;
    while answered < plan.answers {
        let Frame { tag, body } = connection.receive().await.map_err(Refusal::Broken)?;
        match tag {
            BackendTag::READY_FOR_QUERY if body == b"I" && complete => {
                answered += 1;
                complete = false;
            }
            BackendTag::READY_FOR_QUERY => {
                let cause = "the server is in a transaction, or has not answered";
                return Err(Refusal::Broken(not_set(cause)));
            }
            BackendTag::DATA_ROW => row = first_column(&body),
            BackendTag::ERROR_RESPONSE if plan.seal == Some(answered) => {
                return Err(Refusal::Broken(seal::refused(&ErrorFields::read(&body))));
            }
            BackendTag::ERROR_RESPONSE if answered < plan.required => {
                let fields = ErrorFields::read(&body);
                return Err(Refusal::Broken(not_set_for(&fields)));
            }
            BackendTag::ERROR_RESPONSE => {
                refused.get_or_insert_with(|| ErrorFields::read(&body));
                complete = true;
            }
            BackendTag::COMMAND_COMPLETE | BackendTag::FUNCTION_CALL_RESPONSE => complete = true,
            BackendTag::PARAMETER_STATUS => {
                connection.note_parameter(&body).map_err(Refusal::Broken)?;
            }
            BackendTag::NOTIFICATION_RESPONSE => aside.extend(&frame(tag.0, &[&body])),
            BackendTag::ROW_DESCRIPTION
            | BackendTag::PARSE_COMPLETE
            | BackendTag::BIND_COMPLETE
            | BackendTag::NOTICE_RESPONSE => {}
            _ => {
                return Err(Refusal::Broken(not_set(
                    "the server says what it was not asked",
                )));
            }
        }
    }
    match refused {
        None => Ok(row),
        Some(fields) => Err(Refusal::Setting(
            fields.into_error(Kind::FeatureNotSupported),
        )),
    }
}

/// Of a DataRow: number of columns, then length and bytes of each.
fn first_column(body: &[u8]) -> Option<String> {
    let (length, rest) = body.get(2..)?.split_first_chunk::<4>()?;
    let length = usize::try_from(i32::from_be_bytes(*length)).ok()?;
    String::from_utf8(rest.get(..length)?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::protocol::frame::{HEADER, Header};

    #[test]
    fn a_lock_table_that_is_full_is_told_as_such() {
        let told = |sqlstate: &str| {
            not_set_for(&ErrorFields {
                sqlstate: sqlstate.to_owned(),
                ..ErrorFields::default()
            })
        };
        assert_eq!(told("53200").sqlstate(), "53200");
        assert_eq!(told("42P01").sqlstate(), "08006");
    }

    fn route() -> Arc<Route> {
        let text = "servers: { s: { host: localhost, max_connections: 10 } }
placements:
  p: { tier: pool, server: s, database: app, login: { user: app, password: x },
       context: { app.tenant: \"{tenant}\", app.region: \"{region}\" } }
tenants:
  a: { placement: p, attributes: { region: eu }, users: { app: { password: a } } }
";
        let config = crate::config::load_text(text, Path::new("."), &|_| None).unwrap();
        config.tenants.values().next().unwrap().route.clone()
    }

    fn binding(tenant: &str, settings: &[(&str, &str)]) -> Binding {
        Binding {
            tenant: TenantId::new(tenant).unwrap(),
            route: route(),
            settings: Arc::new(
                settings
                    .iter()
                    .map(|&(n, v)| (n.to_owned(), v.to_owned()))
                    .collect(),
            ),
            stale: false,
        }
    }

    /// What is sent, one message a word: `Q(sql)`, `F(name=value)`, `|` where the client's settings
    /// begin.
    fn plan(wanted: &Binding, context: &Context) -> String {
        let change = Change::new(wanted, context);
        let mut plan = Plan::default();
        if change.scrub {
            plan.scrub();
        }
        plan.variables(&change, wanted);
        let mut words = Vec::new();
        let mut rest = &plan.request[..];
        while let Some(header) = Header::read(rest) {
            if words.len() == plan.required {
                words.push("|".to_owned());
            }
            let size = header.size(1 << 20).unwrap();
            let body = &rest[HEADER..size];
            words.push(match header.tag {
                b'Q' => format!("Q({})", String::from_utf8_lossy(&body[..body.len() - 1])),
                _ => {
                    let length = |at: usize| {
                        u32::from_be_bytes(body[at..at + 4].try_into().unwrap()) as usize
                    };
                    let name = &body[12..12 + length(8)];
                    let at = 12 + name.len();
                    let value = &body[at + 4..at + 4 + length(at)];
                    format!(
                        "F({}={})",
                        String::from_utf8_lossy(name),
                        String::from_utf8_lossy(value)
                    )
                }
            });
            rest = &rest[size..];
        }
        words.join(" ")
    }

    #[test]
    fn a_change_of_context_sends_what_is_needed_and_no_more() {
        let a = || binding("a", &[("timezone", "UTC")]);
        let set = "F(app.region=eu) F(app.tenant=a)";
        let stale = Binding { stale: true, ..a() };
        for (context, expected) in [
            (Context::Clean, format!("{set} | F(timezone=UTC)")),
            (
                Context::Unknown,
                format!("Q(DISCARD ALL) {set} | F(timezone=UTC)"),
            ),
            (
                Context::Bound(binding("b", &[])),
                format!("Q(DISCARD ALL) {set} | F(timezone=UTC)"),
            ),
            (Context::Bound(a()), String::new()),
            (Context::Bound(stale), set.to_owned()),
            (
                Context::Bound(binding("a", &[("x.y", "1"), ("timezone", "CET")])),
                "| Q(RESET \"x\".\"y\") F(timezone=UTC)".to_owned(),
            ),
        ] {
            let sent = plan(&a(), &context);
            let sorted = |text: &str| {
                let mut words: Vec<_> = text.split(' ').map(str::to_owned).collect();
                words.sort();
                words
            };
            assert_eq!(sorted(&sent), sorted(&expected), "{context:?}: {sent}");
        }
    }

    #[test]
    fn what_is_not_ascii_is_set_in_utf_8_whatever_the_encoding() {
        let with = |settings: &[(&str, &str)]| Context::Bound(binding("a", settings));
        let latin = [("client_encoding", "LATIN1"), ("x.y", "é")];
        assert_eq!(
            plan(&binding("a", &latin), &with(&[("work_mem", "1MB")])),
            "F(client_encoding=UTF8) | Q(RESET \"work_mem\") F(x.y=é) F(client_encoding=LATIN1)"
        );
        assert_eq!(
            plan(
                &binding("a", &[("x.y", "é")]),
                &with(&[("client_encoding", "LATIN1")])
            ),
            "F(client_encoding=UTF8) | F(x.y=é) Q(RESET client_encoding)"
        );
        assert_eq!(
            plan(&binding("a", &latin), &with(&latin[1..])),
            "| F(client_encoding=LATIN1)"
        );
    }

    #[test]
    fn what_hinders_the_others_is_set_last_and_undone_first() {
        let limits = [("statement_timeout", "1"), ("timezone", "UTC")];
        assert_eq!(
            plan(&binding("a", &limits), &Context::Bound(binding("a", &[]))),
            "| F(timezone=UTC) F(statement_timeout=1)"
        );
        assert_eq!(
            plan(&binding("a", &[]), &Context::Bound(binding("a", &limits))),
            "| Q(RESET \"statement_timeout\") Q(RESET \"timezone\")"
        );
    }

    #[test]
    fn half_a_date_style_says_nothing_of_the_last_clients() {
        let other = Context::Bound(binding("a", &[("datestyle", "SQL, DMY")]));
        for (value, expected) in [
            ("ISO", "| Q(RESET \"datestyle\") F(datestyle=ISO)"),
            ("dmy", "| Q(RESET \"datestyle\") F(datestyle=dmy)"),
            ("ISO, ISO", "| Q(RESET \"datestyle\") F(datestyle=ISO, ISO)"),
            ("ISO, YMD", "| F(datestyle=ISO, YMD)"),
        ] {
            assert_eq!(
                plan(&binding("a", &[("datestyle", value)]), &other),
                expected
            );
        }
        assert_eq!(
            plan(
                &binding("a", &[("datestyle", "ISO")]),
                &Context::Bound(binding("a", &[]))
            ),
            "| F(datestyle=ISO)"
        );
    }

    #[test]
    fn a_role_is_taken_on_last_and_laid_down_first() {
        let with_role = Context::Bound(binding("a", &[("a.b", "1"), ("role", "r")]));
        assert_eq!(
            plan(&binding("a", &[]), &with_role),
            "| Q(RESET \"role\") Q(RESET \"a\".\"b\")"
        );
        let without = Context::Bound(binding("a", &[]));
        assert_eq!(
            plan(
                &binding("a", &[("role", "r"), ("work_mem", "1MB")]),
                &without
            ),
            "| F(work_mem=1MB) F(role=r)"
        );
    }
}
