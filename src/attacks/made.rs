//! What is made on a server for a while, and taken away again whatever happens.

use std::sync::Arc;

use deadpool_postgres::Connect;
use tokio::sync::Mutex;
use tokio_postgres::Client;

use crate::config::Server;
use crate::control::door::{self, Door};

/// What went wrong, for the operator.
pub type Result<T> = std::result::Result<T, String>;

const APPLICATION: &str = "pgtenant selftest";
const BOUNDS: &str = "SET statement_timeout = '10s'; SET lock_timeout = '3s'";

/// What was made, and how it is undone.
#[derive(Debug)]
pub struct Made {
    pub server: Arc<Server>,
    /// Database, statement: in the order in which they were made.
    undo: Vec<(String, String)>,
    /// Held while something is made.
    making: Arc<Mutex<()>>,
}

impl Made {
    pub fn on(server: Arc<Server>) -> Self {
        Self {
            server,
            undo: Vec::new(),
            making: Arc::default(),
        }
    }

    /// A session of the server's admin login.
    ///
    /// # Errors
    /// There is no such login, or the server refuses it.
    pub async fn connect(&self, database: &str) -> Result<Client> {
        let name = &self.server.name;
        let login = self.server.admin.as_ref();
        let login = login.ok_or_else(|| format!("servers.{name}.admin is not set"))?;
        let config = door::config(login, database, APPLICATION);
        // Its task ends with the client.
        let (client, _) = Door(self.server.clone())
            .connect(&config)
            .await
            .map_err(|error| describe("connect", &error))?;
        client
            .batch_execute(BOUNDS)
            .await
            .map_err(|error| describe(BOUNDS, &error))?;
        Ok(client)
    }

    /// Makes something that must not be there yet: `exists` asks for it with its name. How it is
    /// undone is noted before it is made, so that nothing stays when this is dropped in the middle.
    pub(super) async fn make(
        &mut self,
        place: (&str, &Arc<Client>),
        thing: Thing<'_>,
    ) -> Result<()> {
        let (database, client) = place;
        let known = client
            .query(thing.exists, &[&thing.name])
            .await
            .map_err(|error| describe(thing.exists, &error))?;
        if !known.is_empty() {
            return Err(format!("{} exists already", thing.name));
        }
        self.undone_by(database, thing.undo);
        self.run(client, &thing.sql).await
    }

    /// Notes what undoes something that is made next.
    pub(super) fn undone_by(&mut self, database: &str, sql: String) {
        self.undo.push((database.to_owned(), sql));
    }

    /// Runs SQL to its end.
    ///
    /// Cancel safe: what was begun ends, and is undone after that.
    pub(super) async fn run(&self, client: &Arc<Client>, sql: &str) -> Result<()> {
        let guard = self.making.clone().lock_owned().await;
        let (client, text) = (client.clone(), sql.to_owned());
        let running = tokio::spawn(async move {
            let done = client.batch_execute(&text).await;
            drop(guard);
            done
        });
        match running.await {
            Ok(done) => done.map_err(|error| describe(sql, &error)),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Undoes all of it, last things first.
    ///
    /// # Errors
    /// What is left, a line each.
    pub async fn unmake(&mut self) -> std::result::Result<(), Vec<String>> {
        let mut left = Vec::new();
        drop(self.making.lock().await);
        while let Some((database, sql)) = self.undo.pop() {
            let undone = match self.connect(&database).await {
                Ok(client) => self.run(&Arc::new(client), &sql).await,
                Err(error) => Err(error),
            };
            if let Err(error) = undone {
                left.push(format!("{error}; in database {database}: {sql}"));
            }
        }
        match left.is_empty() {
            true => Ok(()),
            false => Err(left),
        }
    }
}

/// Something to be made.
pub(super) struct Thing<'t> {
    pub name: &'t str,
    /// Finds a row if there is one of the name, which is its parameter.
    pub exists: &'t str,
    pub sql: String,
    pub undo: String,
}

pub(super) fn describe(sql: &str, error: &tokio_postgres::Error) -> String {
    let what = sql.trim().lines().next().unwrap_or_default();
    format!("{} ({what})", door::words(error))
}

pub(super) use crate::sql::{quoted, safe_literal as literal};
