//! What is asked of a database, and the answers as plain data. One read-only transaction; nothing
//! here judges.

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::target::Target;
use crate::timer;

/// From the first question to the last answer. The statements themselves end sooner, by
/// `statement_timeout`.
const DEADLINE: Duration = Duration::from_secs(120);

/// What is known of a place.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The login, and every role whose rights it has or can take.
    pub roles: Vec<Role>,
    pub database: Database,
    pub relations: Vec<Relation>,
    pub policies: Vec<Policy>,
    pub policy_functions: Vec<PolicyFunction>,
    pub indexes: Vec<Index>,
    pub foreign_keys: Vec<ForeignKey>,
    pub views: Vec<View>,
    pub functions: Vec<Function>,
    pub sequences: Vec<Sequence>,
    pub executable: Vec<Executable>,
    pub settings: Vec<Setting>,
    pub neighbours: Neighbours,
    /// Where an application may be served.
    pub types: Vec<Type>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Role {
    pub oid: u32,
    pub name: String,
    pub is_login: bool,
    pub superuser: bool,
    pub bypass_rls: bool,
    pub create_role: bool,
    pub create_db: bool,
    pub replication: bool,
    /// The login's own memberships that lead to this role.
    pub via: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Database {
    pub version_num: i32,
    pub version: String,
    pub database: String,
    pub owned: bool,
    pub temp: bool,
    pub create: bool,
    pub public_connect: bool,
    pub update_settings: bool,
    pub set_config_is_2078: bool,
    pub set_config_executable: bool,
    /// `pgtenant.tenant_id()` is installed.
    pub has_tenant_id: bool,
    /// What its schema says of itself.
    pub seal: Option<String>,
    /// One of the roles can read the keys that contexts are sealed with, bind sessions without one,
    /// or become who can.
    pub reads_keys: bool,
    pub lo_compat: bool,
    /// `max_locks_per_transaction`.
    pub locks_per_transaction: u64,
    /// How many sessions and prepared transactions the lock table is made for.
    pub lockers: u64,
    pub large_objects: i64,
    pub creatable: Vec<String>,
    pub wrappers: Vec<String>,
    pub foreign_servers: Vec<String>,
    /// Catalogs and views by which the roles can read what ANALYZE keeps of tables.
    pub statistics: Vec<String>,
    /// Files of the functions that did not come with the server.
    pub libraries: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Relation {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    /// As `pg_class.relkind`.
    pub kind: String,
    pub rls: bool,
    pub forced: bool,
    pub owner: String,
    pub owned: bool,
    pub owner_bypasses: bool,
    pub invoker: bool,
    pub select: bool,
    pub insert: bool,
    pub update: bool,
    pub delete: bool,
    pub truncate: bool,
    pub trigger: bool,
    pub parent: Option<u32>,
    pub of_extension: bool,
    pub columns: Vec<Column>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Column {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Policy {
    pub relation: u32,
    pub name: String,
    /// As `pg_policy.polcmd`.
    pub command: String,
    pub permissive: bool,
    /// To the login, or a role whose rights it has.
    pub applies: bool,
    pub using: Option<String>,
    pub check: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct PolicyFunction {
    pub schema: String,
    pub name: String,
    pub signature: String,
    pub owned: bool,
    pub source: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Index {
    pub relation: u32,
    pub name: String,
    pub unique: bool,
    pub primary: bool,
    pub partial: bool,
    pub valid: bool,
    /// Key columns; `None` is an expression.
    pub columns: Vec<Option<String>>,
    /// The first of them that is drawn from a sequence, in a unique index, and that a role may also
    /// write itself.
    pub drawn: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct ForeignKey {
    pub relation: u32,
    pub target: u32,
    pub name: String,
    pub columns: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct View {
    pub view: u32,
    /// What it reads, directly or not.
    pub relations: Vec<u32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Function {
    pub schema: String,
    pub signature: String,
    pub kind: String,
    pub owner: String,
    pub owned: bool,
    pub owner_bypasses: bool,
    pub definer: bool,
    pub leakproof: bool,
    pub untrusted_language: Option<String>,
    pub search_path: Option<String>,
    pub executable: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Sequence {
    pub schema: String,
    pub name: String,
    /// May be set; else it may only be read.
    pub update: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Executable {
    pub name: String,
    pub signature: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Setting {
    pub role: Option<String>,
    pub database: Option<String>,
    pub name: String,
    pub value: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Neighbours {
    /// Schemas of other tenants that the roles can look into.
    pub schemas: Vec<String>,
    /// Logins of other tenants that can connect to this database.
    pub connect: Vec<String>,
    /// The roles can connect to the catalog of tenants.
    pub catalog: bool,
}

/// A type of the users' own.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Type {
    pub name: String,
    pub oid: u32,
}

/// Why a place could not be inspected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure(pub String);

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self(crate::control::door::words(&error))
    }
}

impl Facts {
    pub fn login(&self) -> Option<&Role> {
        self.roles.iter().find(|role| role.is_login)
    }

    /// Asks all there is to ask, in one transaction. `names`: functions of which it must be known
    /// who may call them.
    ///
    /// Not cancel safe: the connection is in a transaction.
    ///
    /// # Errors
    /// The server's, a role that it does not have, and no answer in time.
    pub async fn gather(
        client: &Client,
        target: &Target,
        names: Vec<&'static str>,
    ) -> Result<Self, Failure> {
        timer::timeout(DEADLINE, ask(client, target, names))
            .await
            .map_err(|_| Failure(format!("no answer within {DEADLINE:?}")))?
    }
}

async fn ask(client: &Client, target: &Target, names: Vec<&str>) -> Result<Facts, Failure> {
    client.batch_execute("BEGIN READ ONLY").await?;
    let login = &target.place.login;
    let roles: Vec<Role> = rows(client, include_str!("sql/roles.sql"), &[login]).await?;
    if roles.is_empty() {
        return Err(Failure(format!("role \"{login}\" does not exist")));
    }
    let ids: Vec<u32> = roles.iter().map(|role| role.oid).collect();
    let database: Vec<Database> =
        rows(client, include_str!("sql/database.sql"), &[&ids, login]).await?;
    let mut facts = Facts {
        database: database.into_iter().next().unwrap_or_default(),
        settings: rows(client, include_str!("sql/settings.sql"), &[login]).await?,
        executable: rows(client, include_str!("sql/executable.sql"), &[&ids, &names]).await?,
        functions: rows(client, include_str!("sql/functions.sql"), &[&ids]).await?,
        roles,
        ..Facts::default()
    };
    let schemas = target.other_schemas();
    let logins = target.other_logins();
    let neighbours: Vec<Neighbours> = rows(
        client,
        include_str!("sql/neighbours.sql"),
        &[&ids, login, &schemas, &logins, &target.catalog],
    )
    .await?;
    facts.neighbours = neighbours.into_iter().next().unwrap_or_default();
    if target.serves_applications {
        facts.types = rows(client, include_str!("sql/types.sql"), &[&schemas]).await?;
    }
    if target.by_policies() {
        facts.relations = rows(client, include_str!("sql/relations.sql"), &[&ids]).await?;
        facts.policies = rows(client, include_str!("sql/policies.sql"), &[&ids]).await?;
        facts.policy_functions =
            rows(client, include_str!("sql/policy_functions.sql"), &[&ids]).await?;
        facts.indexes = rows(client, include_str!("sql/indexes.sql"), &[&ids]).await?;
        facts.foreign_keys = rows(client, include_str!("sql/foreign_keys.sql"), &[]).await?;
        facts.views = rows(client, include_str!("sql/views.sql"), &[]).await?;
        facts.sequences = rows(client, include_str!("sql/sequences.sql"), &[&ids]).await?;
    }
    client.batch_execute("COMMIT").await?;
    Ok(facts)
}

/// The rows of a question, by the names of its columns.
async fn rows<T: DeserializeOwned>(
    client: &Client,
    question: &str,
    parameters: &[&(dyn ToSql + Sync)],
) -> Result<Vec<T>, Failure> {
    let sql =
        format!("SELECT coalesce(json_agg(row_to_json(q)), '[]')::text FROM (\n{question}\n) q");
    let row = client.query_one(&sql, parameters).await?;
    let text: &str = row.try_get(0)?;
    serde_json::from_str(text).map_err(|error| Failure(format!("unexpected answer: {error}")))
}
