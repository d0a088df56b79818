//! Whether the guard knows the statements that the server knows.

use super::case::{Case, Mend, finding};
use crate::config::Posture;
use crate::findings::Finding;
use crate::findings::Severity::{Notice, Warning};
use crate::sql::NEWEST_POSTGRESQL;

pub fn judge(case: &Case<'_>) -> Option<Finding> {
    judge_version(case.target.posture, case.facts.database.version_num)
}

/// `version_num`: as `server_version_num` tells it.
fn judge_version(posture: Posture, version_num: i32) -> Option<Finding> {
    if version_num / 10_000 <= NEWEST_POSTGRESQL {
        return None;
    }
    let severity = match posture {
        Posture::Plain => return None,
        Posture::Guarded => Warning,
        Posture::Sealed => Notice,
    };
    let problem = format!(
        "it is PostgreSQL {}, and the guard knows the statements of versions up to {NEWEST_POSTGRESQL}",
        version_num / 10_000
    );
    Some(
        finding(
            severity,
            "guard-older-than-server",
            "server",
            problem,
            "a statement that is new in this version passes the guard, whatever it does",
        )
        .advice(
            "Use a pgtenant that knows this version, or posture: sealed, in which rows stay apart.",
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_newer_than_the_guard_is_told() {
        for (posture, version_num, expected) in [
            (Posture::Guarded, 150_018, None),
            (Posture::Guarded, 180_099, None),
            (Posture::Guarded, 190_000, Some(Warning)),
            (Posture::Sealed, 200_001, Some(Notice)),
            (Posture::Plain, 190_000, None),
        ] {
            let found = judge_version(posture, version_num).map(|finding| finding.severity);
            assert_eq!(found, expected, "{posture} {version_num}");
        }
    }
}
