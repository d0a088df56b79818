//! Is a server there, and is it what the config takes it for? Asked every few seconds with the
//! server's `admin` login, over one connection that counts in its budget.
//!
//! A change is logged once. What was found is kept in [`Instance::health`]; nothing here closes a
//! connection or keeps a client away.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use deadpool_postgres::{Manager, ManagerConfig, Pool, PoolError, Runtime};
use tokio::task::JoinHandle;

use crate::app::App;
use crate::backend::health::{Report, State};
use crate::backend::instance::Instance;
use crate::config::{Login, Server};
use crate::control::door::{self, Door, words};
use crate::id::ServerName;
use crate::timer;

/// From one check of a server to the next.
const INTERVAL: Duration = Duration::from_secs(5);

/// How often the config is compared with what is watched.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

/// The function by which tenant contexts are set is called by this number (`SET_CONFIG_OID`); a
/// server on which it is another one must not go unnoticed. `reserved_connections` is there since
/// PostgreSQL 16.
const QUESTION: &str = "SELECT \
    'pg_catalog.set_config(text,text,boolean)'::pg_catalog.regprocedure::pg_catalog.oid \
        OPERATOR(pg_catalog.=) 2078, \
    pg_catalog.current_setting('max_connections')::pg_catalog.int8 \
        OPERATOR(pg_catalog.-) pg_catalog.current_setting('superuser_reserved_connections')::pg_catalog.int8 \
        OPERATOR(pg_catalog.-) coalesce(pg_catalog.current_setting('reserved_connections', true)::pg_catalog.int8, 0), \
    pg_catalog.current_setting('server_version')";

/// Watches until the proxy is gone or stops: one task for each server with an `admin` login, as
/// reloads bring and take them.
pub async fn watch(app: Weak<App>) {
    let mut watched: HashMap<ServerName, Watched> = HashMap::new();
    loop {
        let Some(app) = app.upgrade().filter(|app| !app.is_draining()) else {
            return;
        };
        follow(&app, &mut watched).await;
        drop(app);
        timer::sleep(FOLLOW_INTERVAL).await;
    }
}

/// A server that is asked.
struct Watched {
    /// As it was when the task began.
    server: Arc<Server>,
    instance: Weak<Instance>,
    task: JoinHandle<()>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watched {
    /// Whether its task asks what it would ask if it began now.
    fn still_fits(&self, instance: &Arc<Instance>, server: &Server) -> bool {
        let then = &self.server;
        self.instance.as_ptr() == Arc::as_ptr(instance)
            && then.address == server.address
            && then.tls == server.tls
            && then.require_auth == server.require_auth
            && then.admin == server.admin
            && then.admin_database == server.admin_database
    }

    /// Ends its task and its connection, so that the next one does not take a second place.
    async fn end(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

/// Makes what is watched fit the config. Not cancel safe: a server may be left unwatched.
async fn follow(app: &App, watched: &mut HashMap<ServerName, Watched>) {
    let instances = app.instances();
    let mut keep = HashMap::new();
    for (name, instance) in instances.iter() {
        let server = instance.server();
        let before = watched.remove(name);
        match (before, &server.admin) {
            (Some(before), Some(_)) if before.still_fits(instance, &server) => {
                keep.insert(name.clone(), before);
            }
            (before, login) => {
                if let Some(before) = before {
                    before.end().await;
                    instance.health.set(Report::default());
                }
                if let Some(login) = login {
                    let instance = Arc::downgrade(instance);
                    let check = Check::new(instance.clone(), server.clone(), login);
                    let task = tokio::spawn(check.run());
                    let watched = Watched {
                        server,
                        instance,
                        task,
                    };
                    keep.insert(name.clone(), watched);
                }
            }
        }
    }
    // What is left is of servers that are gone.
    *watched = keep;
}

/// The check of one server.
struct Check {
    instance: Weak<Instance>,
    name: ServerName,
    /// None: the pool could not be made, which needs a bug of ours.
    pool: Option<Pool>,
    /// The budget and the server's capacity that were last complained about.
    too_many: Option<(usize, i64)>,
    oid_warned: bool,
}

/// What a server answered.
struct Answer {
    set_config: bool,
    capacity: i64,
    version: String,
}

/// Why it did not.
struct Failure {
    /// It speaks PostgreSQL, so clients may well be served: only the check is refused.
    answers: bool,
    problem: String,
}

impl Check {
    fn new(instance: Weak<Instance>, server: Arc<Server>, login: &Login) -> Self {
        let name = server.name.clone();
        let config = door::config(login, &server.admin_database, "pgtenant health check");
        let manager = Manager::from_connect(config, Door(server), ManagerConfig::default());
        let pool = Pool::builder(manager)
            .max_size(1)
            .runtime(Runtime::Tokio1)
            .build();
        Self {
            instance,
            name,
            pool: pool.ok(),
            too_many: None,
            oid_warned: false,
        }
    }

    /// Asks until the instance is gone.
    async fn run(mut self) {
        loop {
            let Some(instance) = self.instance.upgrade() else {
                return;
            };
            let deadline = instance.timeouts().connect;
            let answered = self.ask(deadline).await;
            self.report(&instance, answered);
            drop(instance);
            timer::sleep(INTERVAL).await;
        }
    }

    async fn ask(&self, deadline: Duration) -> Result<Answer, Failure> {
        let silent = |problem: String| Failure {
            answers: false,
            problem,
        };
        let pool = self
            .pool
            .as_ref()
            .ok_or_else(|| silent("the health check could not be set up".to_owned()))?;
        let client = timer::timeout(deadline, pool.get())
            .await
            .map_err(|_| silent(format!("no connection within {deadline:?}")))?
            .map_err(|e| match e {
                PoolError::Backend(e) => failure(&e),
                e => silent(e.to_string()),
            })?;
        match timer::timeout(deadline, client.query_one(QUESTION, &[])).await {
            Ok(Ok(row)) => Ok(Answer {
                set_config: row.try_get(0).map_err(|e| failure(&e))?,
                capacity: row.try_get(1).map_err(|e| failure(&e))?,
                version: row.try_get(2).map_err(|e| failure(&e))?,
            }),
            Ok(Err(e)) => Err(failure(&e)),
            Err(_) => {
                // What it still owes would be taken for the next answer.
                drop(deadpool_postgres::Object::take(client));
                Err(silent(format!("no answer within {deadline:?}")))
            }
        }
    }

    /// Keeps the result and logs what changed.
    fn report(&mut self, instance: &Instance, answered: Result<Answer, Failure>) {
        let before = instance.health.report();
        let mut report = Report {
            problem: None,
            ..(*before).clone()
        };
        report.state = match &answered {
            Ok(_) | Err(Failure { answers: true, .. }) => State::Up,
            Err(_) => State::Down,
        };
        match answered {
            Ok(answer) => {
                self.compare(&answer, instance.server().max_connections);
                report.version = Some(answer.version);
                report.capacity = Some(answer.capacity);
            }
            Err(failure) => report.problem = Some(failure.problem),
        }
        let server = &self.name;
        let problem = report.problem.as_deref().unwrap_or_default();
        if report.state != before.state {
            report.since = Some(SystemTime::now());
            match report.state {
                State::Down => tracing::warn!(%server, problem, "server is down"),
                _ => tracing::info!(%server, version = report.version, "server is up"),
            }
        }
        let new_problem = report.problem.is_some() && report.problem != before.problem;
        if report.state == State::Up && new_problem {
            tracing::warn!(%server, problem, "server answers and refuses the health check");
        }
        if report != *before {
            instance.health.set(report);
        }
    }

    /// Whether the server is what the config takes it for; warns once for each way in which it is
    /// not.
    fn compare(&mut self, answer: &Answer, budget: usize) {
        let server = &self.name;
        if !answer.set_config && !self.oid_warned {
            tracing::warn!(%server, "pg_catalog.set_config is not function 2078 of this server: \
                tenant contexts cannot be set on it");
        }
        self.oid_warned = !answer.set_config;
        let capacity = answer.capacity;
        let too_many =
            (i64::try_from(budget).is_ok_and(|b| b > capacity)).then_some((budget, capacity));
        if too_many.is_some() && self.too_many != too_many {
            tracing::warn!(%server, max_connections = budget, server_allows = capacity,
                "max_connections of the config is more than the server allows");
        }
        self.too_many = too_many;
    }
}

/// A refusal in the server's own words, unless those are that it is not there (class 57) or broken
/// (58, XX); else the innermost reason.
fn failure(error: &tokio_postgres::Error) -> Failure {
    if let Some(refusal) = error.as_db_error() {
        let code = refusal.code().code();
        return Failure {
            answers: !["57", "58", "XX"]
                .iter()
                .any(|class| code.starts_with(class)),
            problem: words(error),
        };
    }
    Failure {
        answers: false,
        problem: words(error),
    }
}

#[cfg(test)]
mod tests;
