//! Tenants as operators make, change and remove them: the one implementation behind
//! `pgtenant tenant …`.
//!
//! ```text
//!  create ──► row in state provisioning ──► role, schema or database, …, check ──► active
//!  adopt  ──► check ──► row in state active
//!  delete ──► state deleted ──► purge: the place is dropped, the row is forgotten
//! ```
//!
//! The catalog says what is so, and its functions whether it may change. What takes several steps
//! is an operation there: each step is recorded before it is taken, can be taken again, and is gone
//! on with after a crash by giving the same command. Here is what the catalog cannot know: servers,
//! what a placement makes of a tenant, and how its place is made (`place`).
//!
//! Deliberately absent: moving a tenant. What would route one to a place that does not have its
//! data is refused.

mod create;
mod place;
mod purge;
mod row;

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use deadpool_postgres::Connect as _;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row as SqlRow};

pub use create::{Created, NewTenant, User, verifiers};
pub use purge::Data;
pub use row::{Filter, Listing, Place, Row, Source, Step};

use super::door::{self, Door, words};
use crate::config::{
    self, Catalog, Config, Entry, Extras, Lifecycle, Login, Mistake, Roster, Route, Server, Tenant,
};
use crate::timer;

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub kind: Kind,
    pub message: String,
}

/// What kind of failure it is, for whoever has to tell it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The config has mistakes.
    Config,
    /// The config has no catalog, or no login that writes.
    NoCatalog,
    /// What was asked for is wrong in itself, or does not fit the config.
    Refused,
    /// There is no such tenant.
    Missing,
    /// The tenant is in no state for that, or somebody else changed it meanwhile.
    Conflict,
    /// The catalog or a server did not do it.
    Server,
    /// The place of the tenant is not made, or does not keep it apart: it stays as it is.
    Place,
}

pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    fn new(kind: Kind, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { kind, message }
    }

    /// Of a function of the catalog.
    fn of_catalog(error: &tokio_postgres::Error) -> Self {
        let refusal = error.as_db_error();
        let kind = match refusal.map(|refusal| refusal.code().code()) {
            Some("P0002") => Kind::Missing,
            Some("40001" | "55000" | "23505") => Kind::Conflict,
            Some("22023" | "22007" | "22008" | "22P02") => Kind::Refused,
            _ => Kind::Server,
        };
        let message = match refusal {
            Some(refusal) if kind != Kind::Server => match refusal.hint() {
                Some(hint) => format!("{}\n{hint}", refusal.message()),
                None => refusal.message().to_owned(),
            },
            _ => format!("the catalog: {}", words(error)),
        };
        Self { kind, message }
    }

    fn of_mistakes(mistakes: &[Mistake]) -> Self {
        let mistakes: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
        Self::new(Kind::Refused, mistakes.join("\n"))
    }
}

/// What a caller is going to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// Tenants of one config, and of its catalog if it has one.
pub struct Tenancy {
    config: Config,
    roster: Roster,
    catalog: Option<Client>,
    /// On whose behalf changes are made, beside the login; for the catalog's record of changes.
    actor: Option<String>,
}

/// What a tenant is changed to.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// A JSON merge patch (RFC 7386) of its settings.
    pub patch: serde_json::Value,
    /// When it is suspended by itself; `None` within: never.
    pub expires: Option<Option<String>>,
    /// How long its data stays once it is deleted; `None` within: as long as by default.
    pub retention: Option<Option<String>>,
}

impl Tenancy {
    /// Loads the config at `path` and logs in to its catalog. To read, a config without a catalog
    /// will do.
    ///
    /// # Errors
    /// Mistakes in the config; to write, that it has no catalog or no writer; what the catalog
    /// says.
    pub async fn open(path: &Path, access: Access, actor: Option<String>) -> Result<Self> {
        let load = |extras: &Extras| {
            config::load_with_roster(path, extras).map_err(|found| Failure {
                kind: Kind::Config,
                ..Failure::of_mistakes(&found)
            })
        };
        let (config, roster) = load(&Extras::default())?;
        let mut tenancy = Self {
            config,
            roster,
            catalog: None,
            actor,
        };
        let Some((catalog, login)) = tenancy.login(access)? else {
            return Ok(tenancy);
        };
        let Some(server) = tenancy.config.servers.get(&catalog.server).cloned() else {
            let message = format!("there is no server {:?}", catalog.server.as_str());
            return Err(Failure::new(Kind::Refused, message));
        };
        let client = log_in(&server, &login, &catalog.database, &tenancy.config).await;
        let client = client.map_err(|why| {
            let message = format!("the catalog ({}/{}): {why}", server.name, catalog.database);
            Failure::new(Kind::Server, message)
        })?;
        let extras = extras(&client).await?;
        if extras != Extras::default() {
            (tenancy.config, tenancy.roster) = load(&extras)?;
        }
        tenancy.catalog = Some(client);
        Ok(tenancy)
    }

    fn login(&self, access: Access) -> Result<Option<(Arc<Catalog>, Arc<Login>)>> {
        let missing = |what: &str| {
            let message =
                format!("the config has no {what}: tenants can be changed only in its file");
            Err(Failure::new(Kind::NoCatalog, message))
        };
        let Some(catalog) = self.config.catalog.clone() else {
            return match access {
                Access::Read => Ok(None),
                Access::Write => missing("catalog"),
            };
        };
        let login = match access {
            Access::Read => catalog.login.clone(),
            Access::Write => match catalog.writer.clone() {
                Some(writer) => writer,
                None => return missing("catalog.writer"),
            },
        };
        Ok(Some((catalog, login)))
    }

    fn client(&self) -> Result<&Client> {
        let none = || Failure::new(Kind::NoCatalog, "the config has no catalog");
        self.catalog.as_ref().ok_or_else(none)
    }

    async fn ask(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<SqlRow> {
        let answer = self.client()?.query_one(sql, parameters).await;
        answer.map_err(|error| Failure::of_catalog(&error))
    }

    async fn say(&self, sql: &str) -> Result<()> {
        let done = self.client()?.batch_execute(sql).await;
        done.map_err(|error| Failure::of_catalog(&error))
    }

    /// Puts a tenant into a state. `until`: when it is active again by itself, as PostgreSQL reads
    /// times. `only_from`: the states that it may be in now. Returns its revision.
    ///
    /// # Errors
    /// There is no such tenant, or it may not go from its state to this one.
    pub async fn set_state(
        &self,
        name: &str,
        state: config::State,
        reason: Option<&str>,
        until: Option<&str>,
        only_from: Option<config::State>,
    ) -> Result<i64> {
        let mut expected = None;
        if let Some(only) = only_from {
            let row = self.row(name).await?;
            if row.state != only.word() {
                let message = format!("tenant {name:?} is {}, not {only}", row.state);
                return Err(Failure::new(Kind::Conflict, message));
            }
            expected = Some(row.revision);
        }
        let row = self
            .ask(
                "SELECT pgtenant_catalog.set_state($1, $2, $3, $4::text::timestamptz, $5, $6)",
                &[
                    &name,
                    &state.word(),
                    &reason,
                    &until,
                    &expected,
                    &self.actor,
                ],
            )
            .await?;
        Ok(row.get(0))
    }

    /// Changes settings of a tenant. Returns its revision.
    ///
    /// # Errors
    /// There is no such tenant; the settings do not fit the config; it would live elsewhere.
    pub async fn set(&mut self, name: &str, changes: &Changes) -> Result<i64> {
        self.say("BEGIN").await?;
        match self.set_within(name, changes).await {
            Ok(revision) => {
                self.say("COMMIT").await?;
                Ok(revision)
            }
            Err(failure) => {
                // What failed is told; that nothing has changed needs no answer.
                let _ = self.say("ROLLBACK").await;
                Err(failure)
            }
        }
    }

    async fn set_within(&mut self, name: &str, changes: &Changes) -> Result<i64> {
        let before = self.row(name).await?;
        let mut revision = before.revision;
        if changes
            .patch
            .as_object()
            .is_some_and(|patch| !patch.is_empty())
        {
            let sql = "SELECT pgtenant_catalog.set_spec($1, $2::text::jsonb, NULL, $3)";
            let patch = changes.patch.to_string();
            revision = self.ask(sql, &[&name, &patch, &self.actor]).await?.get(0);
            let after = self.row(name).await?;
            let old = self.resolve(name, &before.spec)?;
            let new = self.resolve(name, &after.spec)?;
            let routes = |tenants: &[Arc<Tenant>]| -> Vec<_> {
                tenants
                    .iter()
                    .map(|tenant| whereabouts(&tenant.route))
                    .collect()
            };
            if routes(&old) != routes(&new) {
                let message = format!(
                    "tenant {name:?} would live elsewhere, where its data is not: a move is no setting"
                );
                return Err(Failure::new(Kind::Refused, message));
            }
        }
        if let Some(expires) = &changes.expires {
            let sql = "SELECT pgtenant_catalog.set_expires($1, $2::text::timestamptz, NULL, $3)";
            revision = self.ask(sql, &[&name, expires, &self.actor]).await?.get(0);
        }
        if let Some(retention) = &changes.retention {
            let sql = "SELECT pgtenant_catalog.set_retention($1, $2::text::interval, NULL, $3)";
            revision = self
                .ask(sql, &[&name, retention, &self.actor])
                .await?
                .get(0);
        }
        Ok(revision)
    }

    /// What a spec means for a tenant of this name: one for each of its services. It counts in this
    /// config from then on.
    fn resolve(&mut self, name: &str, spec: &str) -> Result<Vec<Arc<Tenant>>> {
        let entry = Entry {
            name: name.to_owned(),
            spec: spec.to_owned(),
            lifecycle: Lifecycle::default(),
            generation: 1,
            revision: 0,
            version: None,
        };
        let change = self.roster.put(&mut self.config, &entry);
        let change = change.map_err(|mistakes| Failure::of_mistakes(&mistakes))?;
        Ok(change.new)
    }

    fn server(&self, route: &Route) -> Result<Arc<Server>> {
        let name = &route.pool.server;
        let none = || {
            Failure::new(
                Kind::Refused,
                format!("there is no server {:?}", name.as_str()),
            )
        };
        self.config.servers.get(name).cloned().ok_or_else(none)
    }

    /// Waits until nobody else makes or drops the place of this tenant, and keeps others waiting as
    /// long as this session lasts.
    async fn lock(&self, name: &str) -> Result<()> {
        let sql = "SELECT pg_advisory_lock($1, hashtext($2))";
        self.ask(sql, &[&OPERATION_LOCK, &name]).await.map(drop)
    }
}

/// First key of the advisory locks in the catalog's database that operations on one tenant take.
const OPERATION_LOCK: i32 = 0x7067_7431;

/// First key of those that creations in one placement share, and that whoever changes its template
/// takes alone.
const TEMPLATE_LOCK: i32 = 0x7067_7432;

/// Longest wait for what somebody else does with the same tenant.
const LOCK_TIMEOUT: &str = "60s";

/// What says where a tenant's data is.
fn whereabouts(route: &Route) -> impl PartialEq + use<> {
    let pool = &route.pool;
    (
        pool.server.clone(),
        pool.database.clone(),
        pool.login.user.clone(),
        route.schema.clone(),
        route.context.clone(),
        route.seal.as_ref().map(|seal| seal.tenant.clone()),
    )
}

/// Servers and placements that the catalog has beside the file.
async fn extras(client: &Client) -> Result<Extras> {
    let mut extras = Extras::default();
    for (sql, all) in [
        (
            "SELECT server, spec::text FROM pgtenant_catalog.servers WHERE spec IS NOT NULL",
            &mut extras.servers,
        ),
        (
            "SELECT placement, spec::text FROM pgtenant_catalog.placements WHERE spec IS NOT NULL",
            &mut extras.placements,
        ),
    ] {
        let rows = client.query(sql, &[]).await;
        let rows = rows.map_err(|error| Failure::of_catalog(&error))?;
        all.extend(rows.iter().map(|row| (row.get(0), row.get(1))));
    }
    Ok(extras)
}

/// A session of a login, with the time zone and the formats that texts of times have here.
async fn log_in(
    server: &Arc<Server>,
    login: &Login,
    database: &str,
    config: &Config,
) -> std::result::Result<Client, String> {
    let mut session = door::config(login, database, "pgtenant tenant");
    session.options(format!(
        "{} -c TimeZone=UTC -c DateStyle=ISO -c IntervalStyle=postgres \
         -c standard_conforming_strings=on -c client_min_messages=warning -c lock_timeout={LOCK_TIMEOUT}",
        door::SEARCH_PATH
    ));
    let patience = config.timeouts.connect;
    let door = Door(server.clone());
    match timer::timeout(patience, door.connect(&session)).await {
        Ok(Ok((client, _))) => Ok(client),
        Ok(Err(error)) => Err(words(&error)),
        Err(_) => Err(format!("no connection within {patience:?}")),
    }
}

/// The same of a server's admin, who may be sure of the server's own schema.
async fn log_in_as_admin(server: &Arc<Server>, database: &str, config: &Config) -> Result<Client> {
    let failed = |why: String| {
        let message = format!("server {}, database {database:?}: {why}", server.name);
        Failure::new(Kind::Server, message)
    };
    let Some(admin) = &server.admin else {
        let message = format!(
            "servers.{}.admin is not set: nobody can make places there",
            server.name
        );
        return Err(Failure::new(Kind::Refused, message));
    };
    let client = log_in(server, admin, database, config)
        .await
        .map_err(failed)?;
    let others = client.query(door::FOREIGN_CREATE, &[]).await;
    let others = others.map_err(|error| failed(words(&error)))?;
    match others.is_empty() {
        true => Ok(client),
        false => Err(failed(door::FOREIGN_CREATE_PROBLEM.to_owned())),
    }
}

/// The state that a row is in by now, as the proxy sees it.
fn state_now(lifecycle: &Lifecycle) -> config::State {
    lifecycle.at(SystemTime::now())
}
