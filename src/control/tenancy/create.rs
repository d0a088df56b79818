//! Making a tenant: choosing its place, writing it down, making the place, and letting it in.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::place::{Made, Maker};
use super::row::Row;
use super::{Failure, Kind, Result, TEMPLATE_LOCK, Tenancy};
use crate::auth;
use crate::config::{Placement, Provision, Secret, Tenant};
use crate::id::{ServerName, TenantId};

/// Rounds of hashing of a verifier, PostgreSQL's default of `scram_iterations`.
const ITERATIONS: u32 = 4096;

/// Random bytes of a password that is made up: more than can be guessed.
const PASSWORD_BYTES: usize = 24;

/// A user that a tenant is to have.
#[derive(Debug, Clone)]
pub struct User {
    pub name: String,
    /// None: one is made up, and told once.
    pub password: Option<Secret>,
}

impl User {
    /// The verifier that is written down, and the password if it was made up.
    fn made(&self) -> (Value, Option<Secret>) {
        let random = || URL_SAFE_NO_PAD.encode(rand::random::<[u8; PASSWORD_BYTES]>());
        let (password, is_new) = match &self.password {
            Some(password) => (password.clone(), false),
            None => (Secret::new(random()), true),
        };
        let salt = rand::random::<[u8; 16]>();
        let verifier = auth::verifier(password.expose(), &salt, ITERATIONS);
        let verifier = json!({ "scram": verifier.to_text().to_string() });
        (verifier, is_new.then_some(password))
    }
}

/// The verifiers of users as a spec has them, and the passwords that were made up.
pub fn verifiers(users: &[User]) -> (Value, BTreeMap<String, Secret>) {
    let mut verifiers = serde_json::Map::new();
    let mut passwords = BTreeMap::new();
    for user in users {
        let (verifier, password) = user.made();
        verifiers.insert(user.name.clone(), verifier);
        if let Some(password) = password {
            passwords.insert(user.name.clone(), password);
        }
    }
    (Value::Object(verifiers), passwords)
}

/// A tenant that is to be.
#[derive(Debug, Clone, Default)]
pub struct NewTenant {
    pub name: String,
    /// None: the first placement whose `provision.when` its attributes have.
    pub placement: Option<String>,
    /// Of a tenant with several services: the placement of each.
    pub placements: BTreeMap<String, String>,
    /// None: of a placement with several servers, the one with the fewest tenants there.
    pub server: Option<String>,
    pub attributes: BTreeMap<String, String>,
    pub users: Vec<User>,
    pub expires: Option<String>,
    pub retention: Option<String>,
}

/// What came of it.
#[derive(Debug)]
pub struct Created {
    pub revision: i64,
    /// Passwords that were made up, by user: told here and nowhere else.
    pub passwords: BTreeMap<String, Secret>,
    /// Why it is not active yet. Its place is gone on with when it is created again.
    pub pending: Option<Failure>,
}

impl Tenancy {
    /// Makes a tenant and its place, or goes on with what was interrupted. It is active only when
    /// its place keeps it apart from others.
    ///
    /// Not cancel safe: what was begun stays begun, and is gone on with by the same call.
    ///
    /// # Errors
    /// It is there already, or what was asked for does not fit the config: then nothing is changed.
    pub async fn create(&mut self, new: &NewTenant) -> Result<Created> {
        self.is_free(&new.name)?;
        self.lock(&new.name).await?;
        let known = self.find(&new.name).await?;
        if let Some(row) = &known
            && row.state != "provisioning"
        {
            let message = format!(
                "tenant {:?} is there already: it is {}",
                new.name, row.state
            );
            return Err(Failure::new(Kind::Conflict, message));
        }
        let (users, passwords) = verifiers(&new.users);
        let mut spec = match &known {
            Some(row) => resumed(row, new)?,
            None => self.planned(new).await?,
        };
        if let Some(spec) = spec.as_object_mut() {
            spec.insert("users".to_owned(), users);
        }
        let spec = spec.to_string();
        let tenants = self.resolve(&new.name, &spec)?;
        for tenant in &tenants {
            self.maker(tenant)?.is_ready()?;
        }
        let operation = self.begin(new, &spec).await?;
        let pending = match self.provision(operation, &tenants).await {
            Ok(version) => {
                if let Some(version) = version {
                    let sql = "SELECT pgtenant_catalog.set_version($1, $2, NULL, $3)";
                    self.ask(sql, &[&new.name, &version, &self.actor]).await?;
                }
                let sql = "SELECT pgtenant_catalog.finish_operation($1, $2)";
                self.ask(sql, &[&operation, &self.actor]).await.err()
            }
            Err(failure) => Some(failure),
        };
        let revision = match (&pending, self.row(&new.name).await) {
            (_, Ok(row)) => row.revision,
            (Some(_), Err(_)) => 0,
            (None, Err(failure)) => return Err(failure),
        };
        Ok(Created {
            revision,
            passwords,
            pending,
        })
    }

    /// Makes a place that is there already a tenant's: nothing in it is changed.
    ///
    /// # Errors
    /// The place is not there, or does not keep the tenant apart; the tenant is there already.
    pub async fn adopt(&mut self, new: &NewTenant) -> Result<Created> {
        self.is_free(&new.name)?;
        self.lock(&new.name).await?;
        let (users, passwords) = verifiers(&new.users);
        let mut spec = self.planned(new).await?;
        if let Some(spec) = spec.as_object_mut() {
            spec.insert("users".to_owned(), users);
        }
        let spec = spec.to_string();
        for tenant in self.resolve(&new.name, &spec)? {
            let maker = self.maker(&tenant)?;
            maker.is_there().await?;
            maker.check().await?;
        }
        let revision = self.put(new, &spec, "active").await?;
        Ok(Created {
            revision,
            passwords,
            pending: None,
        })
    }

    fn is_free(&self, name: &str) -> Result<()> {
        if let Err(why) = TenantId::new(name) {
            let message = format!("the name of a tenant {why}");
            return Err(Failure::new(Kind::Refused, message));
        }
        match self.of_file(name).is_empty() {
            true => Ok(()),
            false => {
                let message = format!("tenant {name:?} stands in the config file");
                Err(Failure::new(Kind::Conflict, message))
            }
        }
    }

    async fn put(&self, new: &NewTenant, spec: &str, state: &str) -> Result<i64> {
        let row = self
            .ask(
                "SELECT pgtenant_catalog.put_tenant($1, $2::text::jsonb, 0, $3, \
                 $4::text::timestamptz, $5::text::interval, $6)",
                &[
                    &new.name,
                    &spec,
                    &state,
                    &new.expires,
                    &new.retention,
                    &self.actor,
                ],
            )
            .await?;
        Ok(row.get(0))
    }

    /// Writes the tenant down together with the operation that makes its place, so that it never
    /// stands there without one.
    async fn begin(&self, new: &NewTenant, spec: &str) -> Result<i64> {
        let begun = async {
            self.say("BEGIN").await?;
            match self.find(&new.name).await? {
                None => self.put(new, spec, "provisioning").await.map(drop)?,
                Some(row) => {
                    let sql =
                        "SELECT pgtenant_catalog.put_tenant($1, $2::text::jsonb, $3, actor => $4)";
                    self.ask(sql, &[&new.name, &spec, &row.revision, &self.actor])
                        .await?;
                }
            }
            let sql = "SELECT pgtenant_catalog.begin_operation($1, 'create', false, $2)";
            let operation = self.ask(sql, &[&new.name, &self.actor]).await?.get(0);
            self.say("COMMIT").await?;
            Ok(operation)
        };
        let begun = begun.await;
        if begun.is_err() {
            // What failed is told; that nothing has changed needs no answer.
            let _ = self.say("ROLLBACK").await;
        }
        begun
    }

    /// The spec of a tenant that was not there, without its users.
    async fn planned(&self, new: &NewTenant) -> Result<Value> {
        let mut spec = json!({ "attributes": new.attributes });
        let Some(map) = spec.as_object_mut() else {
            return Ok(spec);
        };
        let mut server = new.server.clone();
        if new.placements.is_empty() {
            let placement = self.placement_for(new)?;
            if server.is_none() && placement.servers.len() > 1 {
                server = self.least_used(placement).await?;
            }
            map.insert("placement".to_owned(), json!(placement.name.as_str()));
        } else {
            map.insert("placements".to_owned(), json!(new.placements));
        }
        if let Some(server) = server {
            map.insert("server".to_owned(), json!(server));
        }
        Ok(spec)
    }

    fn placement_for(&self, new: &NewTenant) -> Result<&Arc<Placement>> {
        if let Some(name) = &new.placement {
            let none = || Failure::new(Kind::Refused, format!("there is no placement {name:?}"));
            return self.config.placements.get(&**name).ok_or_else(none);
        }
        let fits = |provision: &Provision| {
            let mut when = provision.when.iter();
            !provision.when.is_empty()
                && when.all(|(name, value)| new.attributes.get(name) == Some(value))
        };
        let mut placements = self.config.placements.values();
        placements
            .find(|placement| fits(&placement.provision))
            .ok_or_else(|| {
                let message = "no placement is named, and none has a provision.when that the \
                               attributes fit";
                Failure::new(Kind::Refused, message)
            })
    }

    /// The server of a placement that the fewest tenants of the catalog are pinned to there.
    async fn least_used(&self, placement: &Placement) -> Result<Option<String>> {
        let sql = "SELECT spec->>'server', count(*) FROM pgtenant_catalog.tenants \
                   WHERE spec->>'placement' = $1 AND spec ? 'server' AND state <> 'deleted' GROUP BY 1";
        let rows = self.client()?.query(sql, &[&placement.name.as_str()]).await;
        let rows = rows.map_err(|error| Failure::of_catalog(&error))?;
        let counts: BTreeMap<String, i64> =
            rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let used = |server: &str| counts.get(server).copied().unwrap_or_default();
        let servers = placement.servers.iter().map(ServerName::as_str);
        Ok(servers.min_by_key(|server| used(server)).map(str::to_owned))
    }

    pub(super) fn maker(&self, tenant: &Arc<Tenant>) -> Result<Maker<'_>> {
        let server = self.server(&tenant.route)?;
        Ok(Maker::new(&self.config, tenant.clone(), server))
    }

    /// Makes the places of a tenant, and says of which version of the templates they are.
    async fn provision(&self, operation: i64, tenants: &[Arc<Tenant>]) -> Result<Option<String>> {
        let mut versions = Vec::new();
        for tenant in tenants {
            let placement = tenant.route.placement.name.as_str();
            let sql = "SELECT pg_advisory_lock_shared($1, hashtext($2))";
            self.ask(sql, &[&TEMPLATE_LOCK, &placement]).await?;
            let maker = self.maker(tenant)?;
            for step in maker.steps() {
                // The place is looked at even if that was done: it is what lets the tenant in.
                let name = match &tenant.service {
                    None => step.name().to_owned(),
                    Some((_, service)) => format!("{service}: {}", step.name()),
                };
                let made = self.take(operation, &name, maker.take(step)).await?;
                versions.extend(made.version);
            }
        }
        Ok((!versions.is_empty()).then(|| versions.join(",")))
    }

    /// Takes a step, recorded before and after.
    pub(super) async fn take(
        &self,
        operation: i64,
        step: &str,
        taken: impl Future<Output = Result<Made>>,
    ) -> Result<Made> {
        let sql = "SELECT pgtenant_catalog.begin_step($1, $2)";
        self.ask(sql, &[&operation, &step]).await?;
        let made = taken.await;
        let (is_done, detail) = match &made {
            Ok(Made { version }) => (true, json!({ "version": version })),
            Err(failure) => (false, json!({ "error": failure.message })),
        };
        let sql = "SELECT pgtenant_catalog.end_step($1, $2, $3, $4::text::jsonb)";
        let ended = self
            .ask(sql, &[&operation, &step, &is_done, &detail.to_string()])
            .await;
        match made {
            Ok(made) => ended.map(|_| made),
            Err(failure) => Err(Failure::new(
                failure.kind,
                format!("{step}: {}", failure.message),
            )),
        }
    }
}

/// The spec of a tenant whose place is being made. What is given again must be the same.
fn resumed(row: &Row, new: &NewTenant) -> Result<Value> {
    let spec: Value = serde_json::from_str(&row.spec)
        .map_err(|error| Failure::new(Kind::Server, error.to_string()))?;
    let given = [
        ("placement", new.placement.as_ref().map(|name| json!(name))),
        (
            "placements",
            (!new.placements.is_empty()).then(|| json!(new.placements)),
        ),
        ("server", new.server.as_ref().map(|name| json!(name))),
        (
            "attributes",
            (!new.attributes.is_empty()).then(|| json!(new.attributes)),
        ),
    ];
    for (setting, value) in given {
        if let Some(value) = value
            && spec.get(setting) != Some(&value)
        {
            let message = format!(
                "tenant {:?} is being made with another {setting}: go on with that, or delete it",
                row.tenant
            );
            return Err(Failure::new(Kind::Conflict, message));
        }
    }
    Ok(spec)
}
