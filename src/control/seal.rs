//! Preparing a database for sealed contexts: `src/control/sql/seal.sql`, and the key.
//!
//! Keys are changed while clients are served: the new one is put beside the old one, which is good
//! for a while more, in which proxies begin to seal with the new one. Nothing that is sealed with
//! either stops being good meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Connect;
use tokio_postgres::Client;

use super::door::{self, Door, words};
use crate::config::{Config, SealKey, Server};
use crate::id::ServerName;

/// Everything but the key.
pub const SQL: &str = include_str!("sql/seal.sql");

/// What the schema says of itself: the comment that `src/control/sql/seal.sql` makes last.
pub const IDENTITY: &str = "pgtenant seal, version 3";

/// What cannot be taken back is said before it is done.
type Result<T> = std::result::Result<T, String>;

/// A database with sealed placements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub database: String,
    /// Whom the proxy logs in as there.
    pub roles: BTreeSet<String>,
}

/// The databases of a server in which tenants' contexts are sealed.
pub fn targets(config: &Config, server: &ServerName) -> Vec<Target> {
    let mut roles: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for tenant in config.tenants.values() {
        let route = &tenant.route;
        if route.seal.is_some() && route.pool.server == *server {
            roles
                .entry(&route.pool.database)
                .or_default()
                .insert(route.pool.login.user.clone());
        }
    }
    roles
        .into_iter()
        .map(|(database, roles)| Target {
            database: database.to_owned(),
            roles,
        })
        .collect()
}

/// The key of a database.
///
/// # Errors
/// The server has none.
pub fn key(server: &Server, database: &str) -> Result<SealKey> {
    let seal = server.seal.as_ref();
    let seal = seal.ok_or_else(|| format!("servers.{}.seal is not set", server.name))?;
    Ok(SealKey::derive(&seal.key, database))
}

/// What installs a key where this program cannot connect. It holds the key.
pub fn key_sql(key: &SealKey, retire_after: Duration) -> String {
    let [inner, outer] = key.pads().map(|pad| {
        pad.iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    });
    let (id, seconds) = (key.id(), retire_after.as_secs());
    format!(
        "SET search_path = pg_catalog, pg_temp;
SELECT pgtenant.put_key('{id}', pg_catalog.decode('{inner}', 'hex'), pg_catalog.decode('{outer}', 'hex'));
SELECT pgtenant.retire_keys('{id}', '{seconds}s');
"
    )
}

/// What was found and done.
#[derive(Debug, PartialEq, Eq)]
pub struct Sealed {
    pub key: String,
    /// The key was not there before.
    pub new: bool,
    /// Keys that are good for a while more.
    pub retiring: i64,
}

/// Prepares a database with the server's admin login. What is there already is brought up to date.
///
/// # Errors
/// What went wrong, for the operator. A role that could read the key is one: then nothing is
/// changed.
pub async fn install(
    server: &Arc<Server>,
    target: &Target,
    retire_after: Duration,
) -> Result<Sealed> {
    let login = server.admin.as_ref();
    let login = login.ok_or_else(|| format!("servers.{}.admin is not set", server.name))?;
    let key = key(server, &target.database)?;
    let config = door::config(login, &target.database, "pgtenant seal");
    let (client, task) = Door(server.clone())
        .connect(&config)
        .await
        .map_err(|error| words(&error))?;
    let sealed = install_by(&client, target, &key, retire_after).await;
    drop(client);
    let _ = task.await;
    sealed
}

async fn install_by(
    client: &Client,
    target: &Target,
    key: &SealKey,
    retire_after: Duration,
) -> Result<Sealed> {
    let failed = |error: tokio_postgres::Error| words(&error);
    client.batch_execute(SQL).await.map_err(failed)?;
    for role in &target.roles {
        let reads = client
            .query_one(READS_KEYS, &[role])
            .await
            .map_err(failed)?
            .get::<_, bool>(0);
        if reads {
            return Err(format!(
                "role \"{role}\" can read the key: it must be no superuser, nor a member of pg_read_all_data, pg_write_all_data, \
                 the owner of schema pgtenant or a role that can act for it"
            ));
        }
    }
    // Also where the server logs every statement with its parameters; who may not say so may not
    // have it logged either.
    client.batch_execute(QUIET).await.map_err(failed)?;
    let [inner, outer] = key.pads();
    let (id, seconds) = (key.id(), retire_after.as_secs_f64());
    let new = client
        .query_one(
            "SELECT pgtenant.put_key($1, $2, $3)",
            &[&id, &&inner[..], &&outer[..]],
        )
        .await
        .map_err(failed)?
        .get(0);
    let retiring = client
        .query_one(
            "SELECT pgtenant.retire_keys($1, $2 * interval '1 second')",
            &[&id, &seconds],
        )
        .await
        .map_err(failed)?
        .get(0);
    client.batch_execute("COMMIT").await.map_err(failed)?;
    Ok(Sealed {
        key: id.to_owned(),
        new,
        retiring,
    })
}

/// Whether a role, which need not exist yet, can read the key, bind a session by itself, or become
/// who can.
const READS_KEYS: &str = "SELECT coalesce(bool_or(
        r.rolsuper
        OR has_sequence_privilege(r.oid, c.oid, 'SELECT, UPDATE, USAGE')
        OR pg_has_role(r.oid, n.nspowner, 'MEMBER')), false)
    FROM pg_roles r, pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind = 'S'
    WHERE r.rolname = $1 AND n.nspname = 'pgtenant'";

const QUIET: &str = "BEGIN;
    DO $$ BEGIN
        PERFORM pg_catalog.set_config('log_statement', 'none', true);
        PERFORM pg_catalog.set_config('log_min_duration_statement', '-1', true);
        PERFORM pg_catalog.set_config('log_min_duration_sample', '-1', true);
        PERFORM pg_catalog.set_config('log_duration', 'off', true);
    EXCEPTION WHEN insufficient_privilege THEN NULL;
    END $$";
