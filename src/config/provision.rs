//! How the place of a new tenant is made, as a placement has it.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// `placements.*.provision`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Provision {
    /// Tenants with all of these attributes are placed here when no placement is named; empty: none
    /// are.
    pub when: BTreeMap<String, String>,
    /// What a schema of a tenant's own is copied from, without rows. None: it begins empty.
    pub template_schema: Option<String>,
    /// What a database of a tenant's own is copied from. None: `template0`.
    pub template_database: Option<String>,
    /// Run in a schema or database of a tenant's own, as its role.
    pub sql: Vec<PathBuf>,
    /// What a role of a tenant's own is made a member of.
    pub member_of: Vec<String>,
    /// Run at last.
    pub after: Vec<Statement>,
    /// Take a tenant's rows away.
    pub delete: Vec<Statement>,
}

/// SQL with parameters that are filled by name: `tenant`, or an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    pub sql: String,
    /// Of `$1` and those after it.
    pub parameters: Vec<String>,
}
