//! Libraries that keep something of a session in the server process, where DISCARD ALL does not
//! reach it.

use super::case::{Case, Mend, finding, some};
use crate::backend::leftovers::keepers;
use crate::findings::Finding;
use crate::findings::Severity::Warning;

pub fn judge(case: &Case<'_>) -> Vec<Finding> {
    let target = case.target;
    if !target.shares_connections {
        return Vec::new();
    }
    let libraries = case.facts.database.libraries.iter().map(String::as_str);
    let (tolerated, others): (Vec<_>, Vec<_>) = keepers(libraries)
        .into_iter()
        .partition(|library| target.tolerated.contains(library));
    let database = format!("database {}", target.place.database);
    let mut findings = Vec::new();
    if !others.is_empty() {
        findings.push(
            finding(
                Warning,
                "library-keeps-state",
                &*database,
                format!(
                    "libraries may keep something of a session that DISCARD ALL leaves: {}",
                    some(&others)
                ),
                "nothing leaks: a server connection is ended, and another made, each time that it would go to another tenant",
            )
            .advice("Drop the extension or language, or move it to a database of its own; where no tenant can reach it by whatever way, name it in pool.tolerate."),
        );
    }
    if !tolerated.is_empty() {
        findings.push(
            finding(
                Warning,
                "library-tolerated",
                &*database,
                format!(
                    "pool.tolerate names libraries that may keep something of a session: {}",
                    some(&tolerated)
                ),
                "what one tenant leaves in them (connections, variables) is there for the next that gets the server connection",
            )
            .advice("Right where no tenant can reach them, neither by a call nor by a view, a function or a trigger."),
        );
    }
    findings
}
