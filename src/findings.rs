//! What the doctor found, and where: written by the control plane, read at login, by the console,
//! the metrics and `pgtenant doctor`. Data only: how it is found is in `control::doctor`.

use std::collections::HashSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::Serialize;

use crate::config::{Route, Tier};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Costs time, tells what exists, or helps who has found another way.
    Notice,
    /// Tells tenants of each other, lets one hinder another, or needs one more mistake to leak
    /// rows.
    Warning,
    /// Rows of one tenant are, or can be put, within reach of another.
    Critical,
}

impl Severity {
    pub const ALL: [Self; 3] = [Self::Critical, Self::Warning, Self::Notice];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Notice => "notice",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// A stable name, e.g. `rls-disabled`.
    pub check: &'static str,
    /// Kind and name, e.g. `table public.orders`.
    pub object: String,
    pub problem: String,
    /// Why that leaks.
    pub why: &'static str,
    /// What mends it, if statements alone can.
    pub fix: Option<Fix>,
    /// What a person has to decide.
    pub advice: Option<&'static str>,
}

/// Statements that mend a finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fix {
    pub step: Step,
    /// Each without its semicolon.
    pub sql: Vec<String>,
}

/// In which order mistakes are mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    Roles,
    Settings,
    Owners,
    Policies,
    Tables,
    Views,
    Functions,
    Grants,
    /// Outside of a transaction.
    Indexes,
}

/// Where a role meets a database: what is inspected once, however many tenants are there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Place {
    pub server: String,
    pub database: String,
    pub login: String,
    pub schema: Option<String>,
}

impl Place {
    pub fn of(route: &Route) -> Self {
        Self {
            server: route.pool.server.to_string(),
            database: route.pool.database.clone(),
            login: route.pool.login.user.clone(),
            schema: route.schema.clone(),
        }
    }
}

/// The result for one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub place: Place,
    pub placements: Vec<String>,
    pub tier: Tier,
    /// Row level security keeps its tenants apart.
    pub by_policies: bool,
    pub tenants: usize,
    /// Whom the doctor was logged in as.
    pub inspected_as: Option<String>,
    pub server_version: Option<String>,
    /// Worst first.
    pub findings: Vec<Finding>,
    /// Why it could not be inspected; the findings are then those of the last time it could.
    pub problem: Option<String>,
}

impl Report {
    pub fn count(&self, severity: Severity) -> usize {
        let same = |finding: &&Finding| finding.severity == severity;
        self.findings.iter().filter(same).count()
    }

    /// Policies are all that keeps its tenants apart, and they do not.
    fn leaks(&self) -> bool {
        self.by_policies && self.count(Severity::Critical) > 0
    }
}

/// The last results.
#[derive(Debug, Default)]
pub struct Findings(ArcSwap<Snapshot>);

#[derive(Debug, Default)]
pub struct Snapshot {
    pub reports: Vec<Report>,
    leaking: HashSet<Place>,
}

impl Findings {
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }

    pub fn set(&self, reports: Vec<Report>) {
        let leaking = reports.iter().filter(|report| report.leaks());
        let leaking = leaking.map(|report| report.place.clone()).collect();
        self.0.store(Arc::new(Snapshot { reports, leaking }));
    }

    /// Whether a tenant of this route is kept apart by policies that do not hold.
    pub fn leaks(&self, route: &Route) -> bool {
        let snapshot = self.0.load();
        !snapshot.leaking.is_empty() && snapshot.leaking.contains(&Place::of(route))
    }
}
