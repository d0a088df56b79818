//! What the checks look at, and how they say what they found.

use super::facts::{Facts, Relation, Role};
use super::target::Target;
use crate::config::Posture;
use crate::findings::{Finding, Fix, Severity, Step};

/// A place and what is known of it.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    pub target: &'a Target,
    pub facts: &'a Facts,
}

impl Case<'_> {
    /// A superuser has every right; saying so for each object would hide the one finding that
    /// counts.
    pub fn is_superuser(&self) -> bool {
        self.facts.login().is_some_and(|login| login.superuser)
    }

    /// The login, quoted.
    pub fn login(&self) -> String {
        quoted(&self.target.place.login)
    }

    /// The login and the roles that it has rights of, which a right must be taken from; PUBLIC too.
    pub fn grantees(&self) -> String {
        let of_users = |role: &&Role| role.oid >= FIRST_ROLE_OF_USERS && !role.superuser;
        let mut names: Vec<_> = self
            .facts
            .roles
            .iter()
            .filter(of_users)
            .map(|role| quoted(&role.name))
            .collect();
        names.sort();
        names.insert(0, "PUBLIC".to_owned());
        names.join(", ")
    }

    /// Whether the tenant is proven to the database.
    pub fn is_sealed(&self) -> bool {
        self.target.posture == Posture::Sealed
    }

    pub fn relation(&self, oid: u32) -> Option<&Relation> {
        self.facts.relations.iter().find(|r| r.oid == oid)
    }
}

/// `FirstNormalObjectId` of PostgreSQL's access/transam.h.
const FIRST_ROLE_OF_USERS: u32 = 16384;

impl Relation {
    /// For statements.
    pub fn sql(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }

    /// For people.
    pub fn title(&self) -> String {
        let kind = match &*self.kind {
            "v" => "view",
            "m" => "materialized view",
            "f" => "foreign table",
            _ => "table",
        };
        format!("{kind} {}", name(&self.schema, &self.name))
    }

    pub fn is_table(&self) -> bool {
        matches!(&*self.kind, "r" | "p")
    }

    pub fn is_writable(&self) -> bool {
        self.insert || self.update || self.delete
    }

    pub fn is_reachable(&self) -> bool {
        self.select || self.is_writable()
    }
}

use crate::sql::quoted_if_needed;
pub use crate::sql::{literal, quoted};

/// For people: quoted where it must be.
pub fn name(schema: &str, object: &str) -> String {
    let (schema, object) = (quoted_if_needed(schema), quoted_if_needed(object));
    format!("{schema}.{object}")
}

/// The first few of a list, and how many more there are.
pub fn some(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<_> = names.iter().take(SHOWN).map(String::as_str).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// A finding that nothing mends yet.
pub fn finding(
    severity: Severity,
    check: &'static str,
    object: impl Into<String>,
    problem: impl Into<String>,
    why: &'static str,
) -> Finding {
    Finding {
        severity,
        check,
        object: object.into(),
        problem: problem.into(),
        why,
        fix: None,
        advice: None,
    }
}

/// What mends it.
pub trait Mend {
    #[must_use]
    fn fix(self, step: Step, sql: impl IntoIterator<Item = String>) -> Self;
    #[must_use]
    fn advice(self, advice: &'static str) -> Self;
}

impl Mend for Finding {
    fn fix(mut self, step: Step, sql: impl IntoIterator<Item = String>) -> Self {
        self.fix = Some(Fix {
            step,
            sql: sql.into_iter().collect(),
        });
        self
    }

    fn advice(mut self, advice: &'static str) -> Self {
        self.advice = Some(advice);
        self
    }
}
