//! The place of one tenant on its server: making it, step by step, and dropping it.
//!
//! | step | when | what |
//! |---|---|---|
//! | `role` | the login has the tenant in its name | a role that may log in and nothing more |
//! | `schema` | tier schema | a schema, with what `provision.sql` makes in it |
//! | `database` | tier database | a copy of a template, with what `provision.sql` makes in it |
//! | `seal` | posture sealed | what `pgtenant seal` installs |
//! | `after` | `provision.after` | statements in the database, with parameters |
//! | `check` | always | what `pgtenant doctor` finds there |
//!
//! Each can be taken again after it was interrupted. What is made is marked by a comment in the
//! same transaction, and nothing that has no such mark is ever taken over or dropped: a role or
//! database of somebody else's may have the name that a tenant would have.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use sha2::{Digest, Sha256};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};

use super::{Failure, Kind, OPERATION_LOCK, Result, log_in_as_admin};
use crate::auth;
use crate::config::{Config, Provision, Server, Statement, Tenant, Tier};
use crate::control::doctor::{self, Plan};
use crate::control::door::words;
use crate::control::seal::{self, Target};
use crate::findings::{Place, Severity};
use crate::sql::{literal, quoted};
use crate::timer;

/// What a database is copied from where the config names none: nothing is in it but the server's
/// own.
const EMPTY: &str = "template0";

/// How often a copy is tried while somebody is connected to its template, and how long after.
const COPY_TRIES: u32 = 50;
const COPY_PAUSE: Duration = Duration::from_millis(200);

/// How often files are read until two readings are the same, and how long after.
const READ_TRIES: u32 = 50;
const READ_PAUSE: Duration = Duration::from_millis(100);

/// For how long keys of the seal that the config no longer has are good, as `pgtenant seal` has it.
const RETIRE_AFTER: Duration = Duration::from_secs(3600);

/// Bytes of a digest that name a version.
const VERSION_BYTES: usize = 8;

/// What a new role may: be logged in as.
const NOTHING_MORE: &str =
    "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT";

/// Two transactions that change the rights on one database at once are an error of the server
/// (`tuple concurrently updated`). The key is one that nothing else here takes.
const ONE_BY_ONE: &str = "SELECT pg_advisory_xact_lock(8101998763812345)";

/// What a database holds, for a digest: columns, constraints, indexes, functions, views, triggers,
/// policies and enumerations, but those of extensions and of the server.
const CONTENT: &str = include_str!("sql/content.sql");
/// The statements that make a schema like another.
const COPY_SCHEMA: &str = include_str!("sql/copy_schema.sql");
/// Makes a role the owner of what was copied.
const HAND_OVER: &str = include_str!("sql/hand_over.sql");

/// What a step made.
#[derive(Debug, Default)]
pub struct Made {
    /// Of the template and the files, if there are any.
    pub version: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Role,
    Schema,
    Database,
    Seal,
    After,
    Check,
}

impl Step {
    pub fn name(self) -> &'static str {
        match self {
            Self::Role => "role",
            Self::Schema => "schema",
            Self::Database => "database",
            Self::Seal => "seal",
            Self::After => "after",
            Self::Check => "check",
        }
    }
}

/// Makes and drops the place of one tenant, or of one of its services.
pub struct Maker<'c> {
    config: &'c Config,
    tenant: Arc<Tenant>,
    server: Arc<Server>,
}

/// A parameter that the server reads as a literal of whatever type it takes there.
#[derive(Debug)]
struct Text<'t>(&'t str);

impl ToSql for Text<'_> {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> std::result::Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

/// What was found under a name.
enum Found {
    Nothing,
    /// Made for this tenant, of this version.
    Ours(Option<String>),
    Foreign,
}

impl<'c> Maker<'c> {
    pub fn new(config: &'c Config, tenant: Arc<Tenant>, server: Arc<Server>) -> Self {
        Self {
            config,
            tenant,
            server,
        }
    }

    fn provision(&self) -> &Provision {
        &self.tenant.route.placement.provision
    }

    fn tier(&self) -> Tier {
        self.tenant.route.placement.tier
    }

    fn database(&self) -> &str {
        &self.tenant.route.pool.database
    }

    fn role(&self) -> &str {
        &self.tenant.route.pool.login.user
    }

    fn has_own_role(&self) -> bool {
        !self.tenant.route.placement.shares_role
    }

    /// In their order.
    pub fn steps(&self) -> impl Iterator<Item = Step> + use<> {
        [
            (Step::Role, self.has_own_role()),
            (Step::Schema, self.tier() == Tier::Schema),
            (Step::Database, self.tier() == Tier::Database),
            (Step::Seal, self.tenant.route.seal.is_some()),
            (Step::After, !self.provision().after.is_empty()),
            (Step::Check, true),
        ]
        .into_iter()
        .filter_map(|(step, is_taken)| is_taken.then_some(step))
    }

    /// Whether a place could be made at all, as far as that is known without a server.
    pub fn is_ready(&self) -> Result<()> {
        if self.server.admin.is_none() {
            let message = format!(
                "servers.{}.admin is not set: nobody can make places there",
                self.server.name
            );
            return Err(Failure::new(Kind::Refused, message));
        }
        let statements = self.provision().after.iter();
        for statement in statements.chain(&self.provision().delete) {
            self.parameters(statement)?;
        }
        Ok(())
    }

    pub async fn take(&self, step: Step) -> Result<Made> {
        match step {
            Step::Role => self.make_role().await,
            Step::Schema => self.make_schema().await,
            Step::Database => self.make_database().await,
            Step::Seal => self.seal().await,
            Step::After => self.run(&self.provision().after).await,
            Step::Check => self.check().await,
        }
    }

    fn failed(&self, database: &str, error: &tokio_postgres::Error) -> Failure {
        let message = format!("{}/{database}: {}", self.server.name, words(error));
        Failure::new(Kind::Place, message)
    }

    async fn admin(&self, database: &str) -> Result<Client> {
        log_in_as_admin(&self.server, database, self.config).await
    }

    /// A session that nobody else makes or drops anything of this place in at the same time. The
    /// server goes on with what it was told after who told it was killed: that is waited for.
    async fn admin_alone(&self, database: &str) -> Result<Client> {
        let client = self.admin(database).await?;
        let sql = "SELECT pg_advisory_lock($1, hashtext($2))";
        let locked = client
            .execute(sql, &[&OPERATION_LOCK, &self.tenant.id.as_str()])
            .await;
        locked.map_err(|error| self.failed(database, &error))?;
        Ok(client)
    }

    /// The comment on what is made for this tenant.
    fn mark(&self, version: Option<&str>) -> String {
        let mut mark = format!("pgtenant tenant {}", self.tenant.id);
        if let Some(version) = version {
            let _ = write!(mark, ", version {version}");
        }
        mark
    }

    /// `sql` asks for the comment on what has the name `$1`.
    async fn find(&self, client: &Client, database: &str, sql: &str, name: &str) -> Result<Found> {
        let row = client.query_opt(sql, &[&name]).await;
        let row = row.map_err(|error| self.failed(database, &error))?;
        let Some(row) = row else {
            return Ok(Found::Nothing);
        };
        let comment: Option<String> = row.get(0);
        let comment = comment.unwrap_or_default();
        let rest = comment.strip_prefix(&self.mark(None));
        Ok(
            match rest.map(|rest| (rest, rest.strip_prefix(", version "))) {
                Some(("", _)) => Found::Ours(None),
                Some((_, Some(version))) => Found::Ours(Some(version.to_owned())),
                _ => Found::Foreign,
            },
        )
    }

    async fn find_role(&self, client: &Client) -> Result<Found> {
        let sql = "SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = $1";
        self.find(client, self.database(), sql, self.role()).await
    }

    async fn find_schema(&self, client: &Client, schema: &str) -> Result<Found> {
        let sql =
            "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = $1";
        self.find(client, self.database(), sql, schema).await
    }

    async fn find_database(&self, client: &Client) -> Result<Found> {
        let sql =
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = $1";
        let name = self.database();
        self.find(client, &self.server.admin_database, sql, name)
            .await
    }

    fn foreign(&self, what: &str, name: &str) -> Failure {
        let message = format!(
            "{what} {name:?} is there already and was not made for this tenant: `adopt` makes it the tenant's"
        );
        Failure::new(Kind::Place, message)
    }

    async fn make_role(&self) -> Result<Made> {
        let database = self.server.admin_database.clone();
        let client = self.admin_alone(&database).await?;
        let name = quoted(self.role());
        let mut sql = String::from("BEGIN;");
        // A verifier: what is sent may be logged.
        let password = self.tenant.route.pool.login.password.as_ref();
        let password = password.map_or_else(String::new, |password| {
            let salt = rand::random::<[u8; 16]>();
            let verifier = auth::verifier(password.expose(), &salt, 4096);
            format!(" PASSWORD {}", literal(&verifier.to_text().to_string()))
        });
        match self.find_role(&client).await? {
            Found::Foreign => return Err(self.foreign("role", self.role())),
            Found::Ours(_) => _ = write!(sql, "ALTER ROLE {name} LOGIN{password};"),
            Found::Nothing => {
                let mark = literal(&self.mark(None));
                let _ = write!(
                    sql,
                    "CREATE ROLE {name} {NOTHING_MORE}{password}; COMMENT ON ROLE {name} IS {mark};"
                );
            }
        }
        for group in &self.provision().member_of {
            let _ = write!(sql, "GRANT {} TO {name};", quoted(group));
        }
        if self.tier() != Tier::Database {
            let database = quoted(self.database());
            let _ = write!(
                sql,
                "{ONE_BY_ONE}; GRANT CONNECT ON DATABASE {database} TO {name};"
            );
        }
        let sql = sql + "COMMIT";
        let made = client.batch_execute(&sql).await;
        made.map_err(|error| self.failed(&database, &error))?;
        // Who is no superuser has to be a member of the role to make and drop what it owns. From
        // PostgreSQL 16 on who makes a role is one that may not act as it.
        let is_member = "SELECT pg_has_role($1, 'USAGE') AND pg_has_role($1, CASE WHEN \
             current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END)";
        let row = client.query_one(is_member, &[&self.role()]).await;
        let row = row.map_err(|error| self.failed(&database, &error))?;
        if !row.get::<_, bool>(0) {
            let sql = format!("GRANT {name} TO CURRENT_USER");
            let granted = client.batch_execute(&sql).await;
            granted.map_err(|error| self.failed(&database, &error))?;
        }
        Ok(Made::default())
    }

    /// What the files hold, all of one moment as far as can be told: two readings are the same.
    async fn files(&self) -> Result<Vec<String>> {
        let read = || -> Result<Vec<String>> {
            let paths = self.provision().sql.iter();
            paths
                .map(|path: &PathBuf| {
                    std::fs::read_to_string(path).map_err(|error| {
                        Failure::new(Kind::Refused, format!("{}: {error}", path.display()))
                    })
                })
                .collect()
        };
        let mut before = read()?;
        for _ in 0..READ_TRIES {
            if self.provision().sql.is_empty() {
                break;
            }
            timer::sleep(READ_PAUSE / 10).await;
            let now = read()?;
            if now == before {
                return Ok(now);
            }
            before = now;
            timer::sleep(READ_PAUSE).await;
        }
        match self.provision().sql.is_empty() {
            true => Ok(Vec::new()),
            false => Err(Failure::new(
                Kind::Place,
                "the files of provision.sql keep changing",
            )),
        }
    }

    /// Runs the files in a transaction that is open, as the tenant's role.
    async fn run_files(&self, client: &Client, files: &[String], path: &str) -> Result<()> {
        if files.is_empty() {
            return Ok(());
        }
        let database = self.database();
        let failed = |error| self.failed(database, &error);
        let transaction = "SELECT pg_current_xact_id()::text";
        let before: String = client
            .query_one(transaction, &[])
            .await
            .map_err(failed)?
            .get(0);
        let role = quoted(self.role());
        let sql = format!("SET LOCAL ROLE {role}; SET LOCAL search_path = {path}");
        client.batch_execute(&sql).await.map_err(failed)?;
        for (file, name) in files.iter().zip(&self.provision().sql) {
            client.batch_execute(file).await.map_err(|error| {
                let message = format!("{}: {}", name.display(), words(&error));
                Failure::new(Kind::Place, message)
            })?;
        }
        let sql = "RESET ROLE; SET LOCAL search_path = pg_catalog, pg_temp";
        client.batch_execute(sql).await.map_err(failed)?;
        let after: String = client
            .query_one(transaction, &[])
            .await
            .map_err(failed)?
            .get(0);
        match after == before {
            true => Ok(()),
            false => {
                let message = "a file of provision.sql ends the transaction that it runs in";
                Err(Failure::new(Kind::Place, message))
            }
        }
    }

    /// All of it is there, of one version, or nothing is.
    async fn make_schema(&self) -> Result<Made> {
        let Some(schema) = self.tenant.route.schema.as_deref() else {
            return Ok(Made::default());
        };
        let database = self.database();
        let failed = |error| self.failed(database, &error);
        let client = self.admin_alone(database).await?;
        client.batch_execute("BEGIN").await.map_err(failed)?;
        match self.find_schema(&client, schema).await? {
            Found::Foreign => return Err(self.foreign("schema", schema)),
            Found::Ours(version) => return Ok(Made { version }),
            Found::Nothing => {}
        }
        let files = self.files().await?;
        let (name, role) = (quoted(schema), quoted(self.role()));
        let sql = format!("CREATE SCHEMA {name} AUTHORIZATION {role}");
        client.batch_execute(&sql).await.map_err(failed)?;
        let content = self.copy_schema(&client, schema).await?;
        self.run_files(&client, &files, &format!("{name}, pg_catalog, pg_temp"))
            .await?;
        let version = version(&content, &files);
        let mark = literal(&self.mark(version.as_deref()));
        let sql = format!("COMMENT ON SCHEMA {name} IS {mark}; COMMIT");
        client.batch_execute(&sql).await.map_err(failed)?;
        Ok(Made { version })
    }

    /// The digest of what a schema holds, or the whole database if that is empty.
    async fn content(&self, client: &Client, schema: &str) -> Result<String> {
        let row = client.query_one(CONTENT, &[&schema]).await;
        let row = row.map_err(|error| self.failed(self.database(), &error))?;
        Ok(row.get(0))
    }

    /// Makes in a new schema what is in the template, if there is one, as the tenant's role, in a
    /// transaction that is open. Returns the digest of what was copied: the template had it before
    /// and has it after, and the copy has it.
    async fn copy_schema(&self, client: &Client, schema: &str) -> Result<String> {
        let Some(template) = self.provision().template_schema.as_deref() else {
            return Ok(String::new());
        };
        let failed = |error| self.failed(self.database(), &error);
        let refused = |why: &str| {
            let message = format!("the template schema {template:?} {why}");
            Err(Failure::new(Kind::Place, message))
        };
        let is_there = "SELECT FROM pg_namespace WHERE nspname = $1";
        let found = client.query_opt(is_there, &[&template]).await;
        if found.map_err(failed)?.is_none() {
            return refused("is not there");
        }
        let before = self.content(client, template).await?;
        let statements = client.query(COPY_SCHEMA, &[&template, &schema]).await;
        let statements = statements.map_err(failed)?;
        let role = quoted(self.role());
        let sql = format!("SET LOCAL ROLE {role}; SET LOCAL check_function_bodies = off");
        client.batch_execute(&sql).await.map_err(failed)?;
        for statement in &statements {
            let made = client.batch_execute(statement.get(0)).await;
            made.map_err(failed)?;
        }
        let sql = "RESET ROLE; SET LOCAL check_function_bodies = on";
        client.batch_execute(sql).await.map_err(failed)?;
        if self.content(client, template).await? != before {
            return refused("changed while it was copied");
        }
        match self.content(client, schema).await? == before {
            true => Ok(before),
            false => {
                refused("has something that is not copied (policies, partitions, other types)")
            }
        }
    }

    /// A name for a database that is not ready, which no other has.
    fn unfinished(&self) -> String {
        format!("pgtenant_{}", hex(&Sha256::digest(self.database())[..12]))
    }

    /// It has its name when all of it is there, of one version. Its owner is who made it, who alone
    /// can drop it and change its settings; what is in it is the role's.
    async fn make_database(&self) -> Result<Made> {
        let outside = self.server.admin_database.clone();
        let failed = |error| self.failed(&outside, &error);
        let client = self.admin_alone(&outside).await?;
        match self.find_database(&client).await? {
            Found::Foreign => return Err(self.foreign("database", self.database())),
            Found::Ours(version) => return Ok(Made { version }),
            Found::Nothing => {}
        }
        let unfinished = quoted(&self.unfinished());
        // Of an attempt that was interrupted.
        let sql = format!("DROP DATABASE IF EXISTS {unfinished} WITH (FORCE)");
        client.batch_execute(&sql).await.map_err(failed)?;
        let files = self.files().await?;
        self.copy_template(&client, &unfinished).await?;
        // Whoever connected before it has its name would see what it is made of, and keep it from
        // getting the name.
        let sql = format!("REVOKE ALL ON DATABASE {unfinished} FROM PUBLIC");
        client.batch_execute(&sql).await.map_err(failed)?;
        let version = self.fill_database(&files).await?;
        let (name, role) = (quoted(self.database()), quoted(self.role()));
        let mark = literal(&self.mark(version.as_deref()));
        let sql = format!(
            "BEGIN; ALTER DATABASE {unfinished} RENAME TO {name}; REVOKE ALL ON DATABASE {name} FROM PUBLIC;
             GRANT CONNECT, TEMPORARY ON DATABASE {name} TO {role};
             COMMENT ON DATABASE {name} IS {mark}; COMMIT"
        );
        client.batch_execute(&sql).await.map_err(failed)?;
        Ok(Made { version })
    }

    /// The server copies what was committed, while nobody is connected to the template: whoever
    /// changes it is done, or has not begun.
    async fn copy_template(&self, client: &Client, to: &str) -> Result<()> {
        let template = self.provision().template_database.as_deref();
        let template = quoted(template.unwrap_or(EMPTY));
        let sql = format!("CREATE DATABASE {to} TEMPLATE {template}");
        let mut tries = 0;
        loop {
            tries += 1;
            match client.batch_execute(&sql).await {
                Ok(()) => return Ok(()),
                Err(error)
                    if error.code() == Some(&SqlState::OBJECT_IN_USE) && tries < COPY_TRIES =>
                {
                    timer::sleep(COPY_PAUSE).await;
                }
                Err(error) => return Err(self.failed(&self.server.admin_database, &error)),
            }
        }
    }

    /// Makes the role the owner of what was copied, runs the files, and says which version it is.
    async fn fill_database(&self, files: &[String]) -> Result<Option<String>> {
        let client = self.admin(&self.unfinished()).await?;
        let failed = |error| self.failed(self.database(), &error);
        let template = match self.provision().template_database {
            None => String::new(),
            Some(_) => self.content(&client, "").await?,
        };
        client.batch_execute("BEGIN").await.map_err(failed)?;
        let role = literal(self.role());
        let sql = format!("SET LOCAL pgtenant.new_owner = {role}; {HAND_OVER}");
        client.batch_execute(&sql).await.map_err(failed)?;
        self.run_files(&client, files, "public, pg_catalog, pg_temp")
            .await?;
        client.batch_execute("COMMIT").await.map_err(failed)?;
        Ok(version(&template, files))
    }

    async fn seal(&self) -> Result<Made> {
        let database = self.database();
        let key = seal::key(&self.server, database);
        let key = key.map_err(|why| Failure::new(Kind::Refused, why))?;
        let client = self.admin(database).await?;
        let is_there = "SELECT obj_description(to_regnamespace('pgtenant'), 'pg_namespace') = $1
            AND to_regclass('pgtenant.keys') IS NOT NULL";
        let row = client.query_one(is_there, &[&seal::IDENTITY]).await;
        let row = row.map_err(|error| self.failed(database, &error))?;
        if row.get::<_, Option<bool>>(0) == Some(true) {
            let has_key = "SELECT FROM pgtenant.keys WHERE id = $1 AND not_after IS NULL";
            let row = client.query_opt(has_key, &[&key.id()]).await;
            if row
                .map_err(|error| self.failed(database, &error))?
                .is_some()
            {
                return Ok(Made::default());
            }
        }
        let target = Target {
            database: database.to_owned(),
            roles: [self.role().to_owned()].into(),
        };
        let done = seal::install(&self.server, &target, RETIRE_AFTER).await;
        done.map_err(|why| {
            Failure::new(
                Kind::Place,
                format!("{}/{database}: {why}", self.server.name),
            )
        })?;
        Ok(Made::default())
    }

    /// The values of a statement's parameters.
    fn parameters<'t>(&'t self, statement: &'t Statement) -> Result<Vec<Text<'t>>> {
        let value = |name: &String| {
            if name == "tenant" {
                return Ok(Text(self.tenant.name().as_str()));
            }
            let mut attributes = self.tenant.attributes.iter();
            let found = attributes.find(|(own, _)| **own == **name);
            found.map(|(_, value)| Text(value)).ok_or_else(|| {
                let message =
                    format!("the tenant has no attribute {name:?}, which provision needs");
                Failure::new(Kind::Refused, message)
            })
        };
        statement.parameters.iter().map(value).collect()
    }

    /// Runs statements in one transaction, in the place's database.
    async fn run(&self, statements: &[Statement]) -> Result<Made> {
        let database = self.database();
        let failed = |error| self.failed(database, &error);
        let client = self.admin_alone(database).await?;
        client.batch_execute("BEGIN").await.map_err(failed)?;
        for statement in statements {
            let values = self.parameters(statement)?;
            let values: Vec<_> = values
                .iter()
                .map(|value| value as &(dyn ToSql + Sync))
                .collect();
            client
                .execute(&statement.sql, &values)
                .await
                .map_err(failed)?;
        }
        client.batch_execute("COMMIT").await.map_err(failed)?;
        Ok(Made::default())
    }

    /// Whether what would be made is there.
    ///
    /// # Errors
    /// What is missing.
    pub async fn is_there(&self) -> Result<()> {
        let missing = |what: &str, name: &str| {
            let message = format!("{what} {name:?} is not there");
            Err(Failure::new(Kind::Place, message))
        };
        let client = self.admin(&self.server.admin_database).await?;
        if let Found::Nothing = self.find_database(&client).await? {
            return missing("database", self.database());
        }
        if let Found::Nothing = self.find_role(&client).await? {
            return missing("role", self.role());
        }
        if let Some(schema) = self.tenant.route.schema.as_deref() {
            let client = self.admin(self.database()).await?;
            if let Found::Nothing = self.find_schema(&client, schema).await? {
                return missing("schema", schema);
            }
        }
        Ok(())
    }

    /// Whether the place keeps the tenant apart, as the doctor sees it.
    ///
    /// # Errors
    /// What is critical there, or why it could not be looked at.
    pub async fn check(&self) -> Result<Made> {
        let route = &self.tenant.route;
        let mut plan = Plan::of(self.config, Some(route.placement.name.as_str()), usize::MAX);
        let place = Place::of(route);
        plan.targets.retain(|target| target.place == place);
        let reports = doctor::run(&plan, self.config.timeouts.connect).await;
        let mut bad = Vec::new();
        for report in &reports {
            bad.extend(
                report
                    .problem
                    .iter()
                    .map(|why| format!("not inspected: {why}")),
            );
            let findings = report.findings.iter();
            let critical = findings.filter(|finding| finding.severity == Severity::Critical);
            bad.extend(critical.map(|finding| {
                format!(
                    "{}: {} [{}]",
                    finding.object, finding.problem, finding.check
                )
            }));
        }
        match bad.is_empty() {
            true => Ok(Made::default()),
            false => Err(Failure::new(Kind::Place, bad.join("\n"))),
        }
    }

    /// Whether the data can be taken away.
    pub fn can_drop(&self) -> Result<()> {
        let has_own_place = matches!(self.tier(), Tier::Schema | Tier::Database);
        if !has_own_place && self.provision().delete.is_empty() {
            let message = format!(
                "placements.{}.provision.delete is not set: nothing says which rows are the tenant's",
                self.tenant.route.placement.name
            );
            return Err(Failure::new(Kind::Refused, message));
        }
        self.is_ready()
    }

    /// Takes away the rows, or drops schema or database.
    pub async fn drop_data(&self) -> Result<Made> {
        match self.tier() {
            Tier::Pool | Tier::Instance => self.run(&self.provision().delete).await,
            Tier::Schema => self.drop_schema().await,
            Tier::Database => self.drop_database().await,
        }
    }

    async fn drop_schema(&self) -> Result<Made> {
        let Some(schema) = self.tenant.route.schema.as_deref() else {
            return Ok(Made::default());
        };
        let client = self.admin_alone(self.database()).await?;
        match self.find_schema(&client, schema).await? {
            Found::Nothing => {}
            Found::Foreign => return Err(self.not_ours("schema", schema)),
            Found::Ours(_) => {
                let sql = format!("DROP SCHEMA {} CASCADE", quoted(schema));
                let dropped = client.batch_execute(&sql).await;
                dropped.map_err(|error| self.failed(self.database(), &error))?;
            }
        }
        Ok(Made::default())
    }

    async fn drop_database(&self) -> Result<Made> {
        let outside = &self.server.admin_database;
        let client = self.admin_alone(outside).await?;
        let mut names = vec![self.unfinished()];
        match self.find_database(&client).await? {
            Found::Nothing => {}
            Found::Foreign => return Err(self.not_ours("database", self.database())),
            Found::Ours(_) => names.push(self.database().to_owned()),
        }
        for name in names {
            let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quoted(&name));
            let dropped = client.batch_execute(&sql).await;
            dropped.map_err(|error| self.failed(outside, &error))?;
        }
        Ok(Made::default())
    }

    fn not_ours(&self, what: &str, name: &str) -> Failure {
        let message = format!(
            "{what} {name:?} was not made by pgtenant: drop it by hand, and purge with the data kept"
        );
        Failure::new(Kind::Place, message)
    }

    /// Drops a role of the tenant's own, with what it has in the database.
    pub async fn drop_role(&self) -> Result<Made> {
        if !self.has_own_role() {
            return Ok(Made::default());
        }
        let has_database = self.tier() != Tier::Database;
        let database = match has_database {
            true => self.database(),
            false => &self.server.admin_database,
        };
        let client = self.admin_alone(database).await?;
        let name = quoted(self.role());
        match self.find_role(&client).await? {
            Found::Nothing => return Ok(Made::default()),
            Found::Foreign => return Err(self.not_ours("role", self.role())),
            Found::Ours(_) => {}
        }
        let sql = format!("BEGIN; {ONE_BY_ONE}; DROP OWNED BY {name}; DROP ROLE {name}; COMMIT");
        let dropped = client.batch_execute(&sql).await;
        dropped.map_err(|error| self.failed(database, &error))?;
        Ok(Made::default())
    }
}

/// A name for what a place was made of; none, if of nothing.
fn version(template: &str, files: &[String]) -> Option<String> {
    if template.is_empty() && files.is_empty() {
        return None;
    }
    let mut digest = Sha256::new().chain_update(template);
    for file in files {
        digest = digest
            .chain_update((file.len() as u64).to_be_bytes())
            .chain_update(file);
    }
    Some(hex(&digest.finalize()[..VERSION_BYTES]))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
