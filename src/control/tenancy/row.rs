//! What is known of tenants: of those in the catalog and those in the file.

use std::sync::Arc;

use serde::Serialize;
use tokio_postgres::Row as SqlRow;

use super::{Failure, Kind, Result, Tenancy, state_now};
use crate::config::{Route, Tenant};

/// Rows that are read at once.
const PAGE: i64 = 1000;

/// Where a tenant is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    Catalog,
    File,
}

/// A tenant of the catalog. Times are in UTC.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub tenant: String,
    /// As it was set; `now` is what it is by `until` and `expires`.
    pub state: String,
    pub now: String,
    pub reason: Option<String>,
    pub until: Option<String>,
    pub expires: Option<String>,
    pub retention: Option<String>,
    pub deleted_at: Option<String>,
    pub generation: i64,
    pub version: Option<String>,
    pub revision: i64,
    pub created_at: String,
    pub changed_at: String,
    pub changed_by: String,
    /// JSON.
    #[serde(skip)]
    pub spec: String,
}

const COLUMNS: &str = "tenant, state, CASE WHEN state = 'deleted' THEN state \
    WHEN expires <= now() THEN 'suspended' WHEN until <= now() THEN 'active' ELSE state END, \
    reason, until::text, expires::text, retention::text, deleted_at::text, generation, version, revision, \
    created_at::text, changed_at::text, changed_by, spec::text";

impl Row {
    fn of(row: &SqlRow) -> Self {
        Self {
            tenant: row.get(0),
            state: row.get(1),
            now: row.get(2),
            reason: row.get(3),
            until: row.get(4),
            expires: row.get(5),
            retention: row.get(6),
            deleted_at: row.get(7),
            generation: row.get(8),
            version: row.get(9),
            revision: row.get(10),
            created_at: row.get(11),
            changed_at: row.get(12),
            changed_by: row.get(13),
            spec: row.get(14),
        }
    }
}

/// Where a tenant, or one of its services, lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// None: the tenant has one place.
    pub service: Option<String>,
    pub placement: String,
    pub tier: String,
    pub server: String,
    pub database: String,
    pub schema: Option<String>,
    pub login: String,
    pub posture: String,
}

impl Place {
    fn of(tenant: &Tenant) -> Self {
        let route: &Route = &tenant.route;
        Self {
            service: tenant
                .service
                .as_ref()
                .map(|(_, service)| service.to_string()),
            placement: route.placement.name.to_string(),
            tier: route.placement.tier.to_string(),
            server: route.pool.server.to_string(),
            database: route.pool.database.clone(),
            schema: route.schema.clone(),
            login: route.pool.login.user.clone(),
            posture: route.posture().to_string(),
        }
    }
}

/// A step of the operation that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    pub operation: String,
    pub step: String,
    pub begun_at: String,
    pub done_at: Option<String>,
    /// Why it is not done.
    pub error: Option<String>,
}

/// A tenant on one page.
#[derive(Debug, Clone, Serialize)]
pub struct Listing {
    pub tenant: String,
    pub source: Source,
    pub state: String,
    pub placements: Vec<String>,
    /// The one that it is pinned to in the catalog, or where its places are.
    pub server: Option<String>,
    /// Of the catalog.
    #[serde(rename = "catalog", skip_serializing_if = "Option::is_none")]
    pub row: Option<Row>,
    /// Only where one tenant is asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub places: Vec<Place>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
    /// Why its places are not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mistake: Option<String>,
}

impl Listing {
    fn of_row(row: Row) -> Self {
        let spec: serde_json::Value = serde_json::from_str(&row.spec).unwrap_or_default();
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let placements = match spec.get("placements").and_then(|all| all.as_object()) {
            Some(all) => all.values().filter_map(text).collect(),
            None => spec.get("placement").and_then(text).into_iter().collect(),
        };
        let users = spec.get("users").and_then(|users| users.as_object());
        Self {
            tenant: row.tenant.clone(),
            source: Source::Catalog,
            state: row.now.clone(),
            placements,
            server: spec.get("server").and_then(text),
            places: Vec::new(),
            users: users
                .map(|users| users.keys().cloned().collect())
                .unwrap_or_default(),
            steps: Vec::new(),
            mistake: None,
            row: Some(row),
        }
    }

    /// Of a tenant of the file, or of each of its services.
    fn of_file(tenants: &[Arc<Tenant>]) -> Option<Self> {
        let first = tenants.first()?;
        let routes = tenants.iter().map(|tenant| &tenant.route);
        Some(Self {
            tenant: first.name().to_string(),
            source: Source::File,
            state: state_now(&first.lifecycle).word().to_owned(),
            placements: routes
                .map(|route| route.placement.name.to_string())
                .collect(),
            server: Some(first.route.pool.server.to_string()),
            row: None,
            places: tenants.iter().map(|tenant| Place::of(tenant)).collect(),
            users: first.users.keys().map(str::to_owned).collect(),
            steps: Vec::new(),
            mistake: None,
        })
    }
}

/// Which tenants are listed; all that is given must be so.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub state: Option<String>,
    pub placement: Option<String>,
}

impl Filter {
    fn takes(&self, listing: &Listing) -> bool {
        let state = self.state.as_ref();
        let placement = self.placement.as_ref();
        state.is_none_or(|state| listing.state == *state)
            && placement.is_none_or(|placement| listing.placements.contains(placement))
    }
}

impl Tenancy {
    /// Tells `each` of all tenants, those of the file first, each kind by name. It stops when
    /// `each` returns false.
    ///
    /// # Errors
    /// Those of the catalog.
    pub async fn list(&self, filter: &Filter, mut each: impl FnMut(Listing) -> bool) -> Result<()> {
        let mut of_file: Vec<Arc<Tenant>> = self.config.tenants.values().cloned().collect();
        of_file.sort_by(|a, b| a.id.cmp(&b.id));
        for tenants in of_file.chunk_by(|a, b| a.name() == b.name()) {
            let Some(mut listing) = Listing::of_file(tenants).filter(|one| filter.takes(one))
            else {
                continue;
            };
            listing.places.clear();
            listing.users.clear();
            if !each(listing) {
                return Ok(());
            }
        }
        if self.catalog.is_none() {
            return Ok(());
        }
        let sql = format!(
            "SELECT {COLUMNS} FROM pgtenant_catalog.tenants WHERE tenant > $1 ORDER BY tenant LIMIT $2"
        );
        let mut last = String::new();
        loop {
            let rows = self.client()?.query(&sql, &[&last, &PAGE]).await;
            let rows = rows.map_err(|error| Failure::of_catalog(&error))?;
            let Some(row) = rows.last() else {
                return Ok(());
            };
            last = row.get(0);
            for row in &rows {
                let mut listing = Listing::of_row(Row::of(row));
                listing.users.clear();
                if filter.takes(&listing) && !each(listing) {
                    return Ok(());
                }
            }
        }
    }

    /// One tenant with its places, users, and the steps of what is under way.
    ///
    /// # Errors
    /// There is none of this name.
    pub async fn show(&mut self, name: &str) -> Result<Listing> {
        let of_file = self.of_file(name);
        if let Some(listing) = Listing::of_file(&of_file) {
            return Ok(listing);
        }
        let row = self.row(name).await?;
        let mut listing = Listing::of_row(row);
        let spec = listing.row.as_ref().map(|row| row.spec.clone());
        match self.resolve(name, &spec.unwrap_or_default()) {
            Ok(tenants) => {
                listing.places = tenants.iter().map(|tenant| Place::of(tenant)).collect();
            }
            Err(failure) => listing.mistake = Some(failure.message),
        }
        let steps = self
            .client()?
            .query(
                "SELECT o.kind, s.step, s.begun_at::text, s.done_at::text, s.detail->>'error' \
                 FROM pgtenant_catalog.operations o JOIN pgtenant_catalog.steps s USING (operation) \
                 WHERE o.tenant = $1 AND o.finished_at IS NULL ORDER BY s.number",
                &[&name],
            )
            .await;
        let steps = steps.map_err(|error| Failure::of_catalog(&error))?;
        listing.steps = steps
            .iter()
            .map(|row| Step {
                operation: row.get(0),
                step: row.get(1),
                begun_at: row.get(2),
                done_at: row.get(3),
                error: row.get(4),
            })
            .collect();
        Ok(listing)
    }

    /// A tenant of the file, or each of its services.
    pub(super) fn of_file(&self, name: &str) -> Vec<Arc<Tenant>> {
        let tenants = self.config.tenants.values();
        let mut found: Vec<_> = tenants
            .filter(|tenant| tenant.listed.is_none() && tenant.name().as_str() == name)
            .cloned()
            .collect();
        found.sort_by(|a, b| a.id.cmp(&b.id));
        found
    }

    /// A tenant of the catalog, if there is one.
    pub(super) async fn find(&self, name: &str) -> Result<Option<Row>> {
        if self.catalog.is_none() {
            return Ok(None);
        }
        let sql = format!("SELECT {COLUMNS} FROM pgtenant_catalog.tenants WHERE tenant = $1");
        let row = self.client()?.query_opt(&sql, &[&name]).await;
        let row = row.map_err(|error| Failure::of_catalog(&error))?;
        Ok(row.as_ref().map(Row::of))
    }

    pub(super) async fn row(&self, name: &str) -> Result<Row> {
        if let Some(row) = self.find(name).await? {
            return Ok(row);
        }
        let message = match self.of_file(name).is_empty() {
            true => format!("there is no tenant {name:?}"),
            false => format!("tenant {name:?} stands in the config file, not in the catalog"),
        };
        Err(Failure::new(Kind::Missing, message))
    }
}
