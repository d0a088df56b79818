//! What sealed contexts need of a database, and who could forge them there.

use super::case::{Case, Mend, finding};
use crate::config::Posture;
use crate::control::seal;
use crate::findings::Finding;
use crate::findings::Severity::{Critical, Notice, Warning};

const SCHEMA: &str = "schema pgtenant";
const RUN_SEAL: &str = "Run `pgtenant seal`.";

#[expect(clippy::too_many_lines, reason = "one finding after the other")]
pub fn judge(case: &Case<'_>) -> Vec<Finding> {
    let database = &case.facts.database;
    let mut findings = Vec::new();
    if case.target.posture == Posture::Plain && case.target.by_policies() {
        findings.push(
            finding(
                Warning,
                "posture-plain",
                format!("database {}", database.database),
                format!(
                    "posture plain trusts all who log in as one of its {} tenants with the context of the others",
                    case.target.tenants
                ),
                "a function, or code that is run, may set the variable that the policies read",
            )
            .advice("Set posture: guarded, or sealed where clients may run what nobody has read."),
        );
    }
    if case.target.posture != Posture::Sealed {
        if database.has_tenant_id && case.target.by_policies() {
            findings.push(
                finding(
                    Notice,
                    "seal-unused",
                    SCHEMA,
                    format!(
                        "the database is prepared for sealed contexts, and the placement's posture is {}",
                        case.target.posture
                    ),
                    "nothing leaks by it: policies on pgtenant.tenant_id() show no rows to these tenants",
                )
                .advice("Set posture: sealed."),
            );
        }
        return findings;
    }
    if !database.has_tenant_id {
        findings.push(
            finding(
                Warning,
                "seal-missing",
                SCHEMA,
                "it is not there, and the placement's posture is sealed",
                "nothing leaks: no client is served",
            )
            .advice(RUN_SEAL),
        );
    } else if database.seal.as_deref() != Some(seal::IDENTITY) {
        findings.push(
            finding(
                Warning,
                "seal-version",
                SCHEMA,
                format!(
                    "it says that it is \"{}\", not \"{}\"",
                    database.seal.as_deref().unwrap_or_default(),
                    seal::IDENTITY
                ),
                "what this version of pgtenant seals may not be accepted",
            )
            .advice(RUN_SEAL),
        );
    }
    if database.reads_keys && !case.is_superuser() {
        findings.push(
            finding(
                Critical,
                "seal-key-readable",
                SCHEMA,
                "the application's role can read its keys or set what sessions are bound to, or become who can",
                "with the key, any tenant can be forged",
            )
            .advice("Take the right or the membership away, then change servers.*.seal.key and run `pgtenant seal`."),
        );
    }
    findings
}
