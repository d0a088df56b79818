//! `tenants.*.settings`: run-time parameters of a tenant's own server connections.
//!
//! They are parameters of the StartupMessage, so that RESET and DISCARD ALL return to them. A
//! tenant that has some shares a pool only with those that have the same: connections whose
//! beginning differs are never shared, and nothing has to be set or undone as they change hands.

use indexmap::IndexMap;

use super::Resolver;
use crate::config::outline::At;

/// Longest value, in bytes.
const MAX_VALUE: usize = 1024;

/// What is decided elsewhere, and why.
const TAKEN: [(&str, &str); 21] = [
    ("user", LOGIN),
    ("database", LOGIN),
    ("replication", LOGIN),
    ("options", LOGIN),
    ("role", LOGIN),
    ("session_authorization", LOGIN),
    ("is_superuser", LOGIN),
    ("search_path", "is the placement's schema"),
    ("row_security", APART),
    ("session_replication_role", APART),
    ("local_preload_libraries", APART),
    ("session_preload_libraries", APART),
    ("standard_conforming_strings", "is always on"),
    ("client_encoding", CLIENT),
    ("application_name", CLIENT),
    ("datestyle", CLIENT),
    ("intervalstyle", CLIENT),
    ("timezone", CLIENT),
    ("default_transaction_read_only", CLIENT),
    ("transaction_read_only", CLIENT),
    ("scram_iterations", CLIENT),
];
const LOGIN: &str = "is a matter of the placement's login";
const APART: &str = "is what keeps tenants apart";
const CLIENT: &str = "is the client's to say: it is told of it when it logs in";

impl Resolver<'_, '_> {
    /// By name. What is wrong is reported and left out.
    pub(super) fn own_settings(
        &mut self,
        at: &At<'_>,
        file: &IndexMap<String, String>,
    ) -> Vec<(String, String)> {
        let mut settings = Vec::new();
        for (name, value) in file {
            match mistake(name, value) {
                Some(message) => self.mistakes.add(&at.key(&**name), message),
                None => settings.push((name.clone(), value.clone())),
            }
        }
        settings.sort();
        settings
    }
}

fn mistake(name: &str, value: &str) -> Option<String> {
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if let Some((_, why)) = TAKEN
        .iter()
        .find(|(taken, _)| name.eq_ignore_ascii_case(taken))
    {
        return Some((*why).to_owned());
    }
    if name.contains('.') {
        return Some("belongs into the context of the placement".to_owned());
    }
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(is_name) {
        return Some("the name must be lower case letters, digits and '_'".to_owned());
    }
    if value.contains('\0') {
        return Some("must not hold a zero byte".to_owned());
    }
    (value.len() > MAX_VALUE).then(|| format!("must be at most {MAX_VALUE} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_decided_elsewhere_cannot_be_a_tenants_own() {
        for (name, value, expected) in [
            ("work_mem", "64MB", ""),
            ("jit", "off", ""),
            ("statement_timeout", "", ""),
            ("role", "postgres", LOGIN),
            ("Role", "postgres", LOGIN),
            ("row_security", "off", APART),
            ("ROW_SECURITY", "off", APART),
            ("search_path", "other", "is the placement's schema"),
            ("options", "-c row_security=off", LOGIN),
            ("timezone", "UTC", CLIENT),
            (
                "app.tenant_id",
                "x",
                "belongs into the context of the placement",
            ),
            (
                "pgtenant.tenant",
                "x",
                "belongs into the context of the placement",
            ),
            (
                "Work_Mem",
                "1MB",
                "the name must be lower case letters, digits and '_'",
            ),
            (
                "work mem",
                "1MB",
                "the name must be lower case letters, digits and '_'",
            ),
            (
                "",
                "1MB",
                "the name must be lower case letters, digits and '_'",
            ),
            ("work_mem", "\0", "must not hold a zero byte"),
        ] {
            let found = mistake(name, value).unwrap_or_default();
            assert_eq!(found, expected, "{name}");
        }
        let long = "x".repeat(MAX_VALUE + 1);
        assert!(mistake("work_mem", &long).is_some());
    }
}
