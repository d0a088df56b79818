//! Whether types have the same ids wherever an application may be served.
//!
//! An application has one login for tenants in many places, and its driver may remember the id of a
//! type from one of them.

use std::collections::BTreeMap;

use super::Inspected;
use super::case::{Mend, finding};
use crate::findings::Severity::Notice;

/// Most types that one finding names.
const NAMED: usize = 5;

/// Compares all places with the first of them that was inspected, and notes what differs in the
/// reports of the others.
pub fn compare(inspected: &mut [Inspected]) {
    let Some(first) = inspected.iter().position(|one| !one.types.is_empty()) else {
        return;
    };
    let known: BTreeMap<String, u32> = ids(&inspected[first]);
    let place = &inspected[first].report.place;
    let schema = place.schema.as_ref();
    let schema = schema.map_or_else(String::new, |schema| format!(", schema \"{schema}\""));
    let place = format!(
        "database \"{}\" of server {}{schema}",
        place.database, place.server
    );
    for other in &mut inspected[first + 1..] {
        let differing: Vec<String> = ids(other)
            .into_iter()
            .filter(|(name, id)| known.get(name).is_some_and(|known| known != id))
            .map(|(name, _)| name)
            .collect();
        if differing.is_empty() {
            continue;
        }
        let more = match differing.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let named: Vec<_> = differing.iter().take(NAMED).map(String::as_str).collect();
        let problem = format!("they have other ids than in {place}");
        let found = finding(
            Notice,
            "type-ids",
            format!("types {}{more}", named.join(", ")),
            problem,
            "an application that is served in both places, by a driver that remembers the ids of types, gets values as text \
             or an error where its tenant lives elsewhere",
        );
        let found = found.advice(
            "Have the driver take such values as text, or make databases from one template and schemas with \
             types in a common one: then the ids are the same.",
        );
        other.report.findings.push(found);
    }
}

/// A name that several types have is left out: which of them is meant depends on `search_path`.
fn ids(inspected: &Inspected) -> BTreeMap<String, u32> {
    let mut ids: BTreeMap<String, Option<u32>> = BTreeMap::new();
    for known in &inspected.types {
        let id = ids.entry(known.name.clone()).or_insert(Some(known.oid));
        if *id != Some(known.oid) {
            *id = None;
        }
    }
    let ids = ids.into_iter();
    ids.filter_map(|(name, id)| Some((name, id?))).collect()
}
