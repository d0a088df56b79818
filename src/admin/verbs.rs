//! PAUSE, RESUME, DISABLE, ENABLE, RECONNECT, KILL, KILL_CLIENT, WAIT_CLOSE and SHUTDOWN, with
//! PgBouncer's meaning.
//!
//! What waits ends when the user cancels it. Then a PAUSE is taken back: it would stay where nobody
//! waits for it any more.

use std::sync::Arc;
use std::time::Duration;

use crate::admin::command::{Target, Verb};
use crate::app::{App, OpenConsole, Scope};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::id::{PlacementName, ServerName, TenantId};
use crate::timer;

/// How often it is looked whether what a command waits for has come: soon at first, and then less
/// often, since a look takes longer with more tenants.
const SOONEST: Duration = Duration::from_millis(5);
const LATEST: Duration = Duration::from_millis(100);

/// Carries a command out. Returns when all has happened that it says.
///
/// # Errors
/// 3D000 and 42704 for what there is not, 55000 for what is not paused, 57014 if the user cancels a
/// wait.
pub async fn carry_out(
    app: &Arc<App>,
    console: &OpenConsole,
    verb: Verb,
    target: &Target,
) -> Result<()> {
    if verb == Verb::Disable && *target == Target::All {
        return Err(Error::new(Kind::SyntaxError, "a database is required"));
    }
    let scope = scope(&app.config(), verb, target)?;
    tracing::info!(command = verb.word(), scope = %scope, "asked for on the admin console");
    match verb {
        Verb::Pause => {
            let is_new = app.pause(scope.clone());
            let done = until(console, app, scope.clone(), App::is_paused_out).await;
            if done.is_err() && is_new {
                app.resume(&scope);
            }
            done
        }
        Verb::Resume => match app.resume(&scope) {
            true => Ok(()),
            false => Err(not_paused(app, &scope)),
        },
        Verb::Disable => {
            app.disable(scope);
            Ok(())
        }
        Verb::Enable => {
            app.enable(&scope);
            still_disabled(app, &scope)
        }
        Verb::Reconnect => {
            app.reconnect(&scope);
            Ok(())
        }
        Verb::Kill => {
            let killed = app.kill(&scope);
            tracing::warn!(scope = %scope, clients = killed, "killed on the admin console");
            Ok(())
        }
        Verb::WaitClose => {
            let is_closed = |app: &App, scope: &Scope| app.closing(scope) == 0;
            until(console, app, scope, is_closed).await
        }
    }
}

/// Ends one client, wherever it is, and its server connection.
///
/// # Errors
/// 42704 if there is none with this number, or this process is of another generation.
pub fn kill_client(app: &App, id: u64, generation: Option<u64>) -> Result<()> {
    let is_of_now = generation.is_none_or(|generation| generation == app.generation());
    let client = app.client_by_id(id).filter(|_| is_of_now);
    let Some(client) = client else {
        let error = Error::new(Kind::UndefinedObject, "client not found");
        return Err(match is_of_now {
            true => error,
            false => error.with_detail("The generation is that of a process that has ended."),
        });
    };
    tracing::warn!(client = id, tenant = %client.tenant, user = %client.user, "killed on the admin console");
    client.kill();
    Ok(())
}

/// Waits until `is_done`, which may take a while to find out.
async fn until(
    console: &OpenConsole,
    app: &Arc<App>,
    scope: Scope,
    is_done: impl Fn(&App, &Scope) -> bool + Copy + Send + 'static,
) -> Result<()> {
    let done = async {
        let mut pause = SOONEST;
        loop {
            let (app, scope) = (app.clone(), scope.clone());
            let look = tokio::task::spawn_blocking(move || is_done(&app, &scope));
            let broken = |e| Error::new(Kind::Internal, "the command failed").caused_by(e);
            if look.await.map_err(broken)? {
                return Ok(());
            }
            timer::sleep(pause).await;
            pause = (pause * 2).min(LATEST);
        }
    };
    tokio::select! {
        biased;
        () = console.cancelled() => Err(Error::new(
            Kind::QueryCanceled,
            "canceling statement due to user request",
        )),
        done = done => done,
    }
}

/// Whom a command names. What is paused or disabled can be named after a reload has removed it,
/// too.
fn scope(config: &Config, verb: Verb, target: &Target) -> Result<Scope> {
    let may_be_gone = matches!(verb, Verb::Resume | Verb::Enable);
    match target {
        Target::All => Ok(Scope::All),
        Target::Name(name) => named(config, name, may_be_gone),
        Target::Tenant(name) => {
            let id = TenantId::read(name).ok();
            id.filter(|id| may_be_gone || config.tenants.contains_key(id.as_str()))
                .map(Scope::Tenant)
                .ok_or_else(|| unknown("tenant", name, "SHOW TENANTS"))
        }
        Target::Placement(name) => {
            let known = PlacementName::new(name).ok();
            known
                .filter(|known| may_be_gone || config.placements.contains_key(known))
                .map(Scope::Placement)
                .ok_or_else(|| unknown("placement", name, "SHOW TENANTS"))
        }
        Target::Server(name) => {
            let known = ServerName::new(name).ok();
            known
                .filter(|known| may_be_gone || config.servers.contains_key(known))
                .map(Scope::Server)
                .ok_or_else(|| unknown("server", name, "SHOW CONFIG"))
        }
    }
}

/// A tenant, which is what `SHOW DATABASES` has in `name`; else all that live in a database of this
/// name.
fn named(config: &Config, name: &str, may_be_gone: bool) -> Result<Scope> {
    if matches!(name, "pgtenant" | "pgbouncer") {
        let message = format!("this is the database of the console: {name}");
        return Err(Error::new(Kind::UnknownDatabase, message));
    }
    let id = TenantId::read(name).ok();
    if let Some(id) = id
        .clone()
        .filter(|id| config.tenants.contains_key(id.as_str()))
    {
        return Ok(Scope::Tenant(id));
    }
    let mut tenants = config.tenants.values();
    if tenants.any(|tenant| tenant.route.pool.database == name) {
        return Ok(Scope::Database(name.to_owned()));
    }
    id.filter(|_| may_be_gone)
        .map(Scope::Tenant)
        .ok_or_else(|| {
            Error::new(
                Kind::UnknownDatabase,
                format!("no such database: {name}"),
            )
            .with_hint("SHOW DATABASES has their names; TENANT, PLACEMENT or SERVER before a name says what it is.")
        })
}

pub fn unknown(what: &str, name: &str, listed: &str) -> Error {
    Error::new(Kind::UndefinedObject, format!("no such {what}: {name}"))
        .with_hint(format!("{listed} has their names."))
}

/// object_not_in_prerequisite_state
const NOT_SO: &str = "55000";

fn not_paused(app: &App, scope: &Scope) -> Error {
    let message = match scope {
        Scope::All => "pooler is not paused/suspended".to_owned(),
        Scope::Tenant(name) => format!("database {name} is not paused"),
        scope => format!("{scope} is not paused"),
    };
    let error = Error::new(Kind::FeatureNotSupported, message).with_sqlstate(NOT_SO);
    let by = match scope {
        Scope::Tenant(id) => app.paused_by(id),
        _ => app.pauses().1.then_some(Scope::All),
    };
    match by {
        Some(by) => error.with_hint(format!(
            "It is paused by a PAUSE of {by}, which RESUME of {by} ends.",
        )),
        None => error,
    }
}

/// # Errors
/// 55000: it was enabled, and something larger is disabled still.
fn still_disabled(app: &App, scope: &Scope) -> Result<()> {
    let Scope::Tenant(id) = scope else {
        return Ok(());
    };
    match app.disabled_by(id) {
        None => Ok(()),
        Some(by) => Err(Error::new(
            Kind::FeatureNotSupported,
            format!("database {id} is still disabled"),
        )
        .with_sqlstate(NOT_SO)
        .with_hint(format!(
            "It is disabled by a DISABLE of {by}, which ENABLE of {by} ends."
        ))),
    }
}
