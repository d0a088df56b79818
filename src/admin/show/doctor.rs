//! `SHOW DOCTOR`.

use super::{Column, Row, View, row, text};

pub const COLUMNS: &[Column] = &[
    text("placement"),
    text("server"),
    text("database"),
    text("user"),
    text("schema"),
    text("severity"),
    text("check"),
    text("object"),
    text("problem"),
    text("why"),
    text("fix"),
];

/// A row for each finding, one of severity `none` for a place without any, one of severity
/// `unknown` for a place that could not be inspected (its findings are then older), and for a
/// placement before its first inspection.
pub fn rows(view: &View) -> Vec<Row> {
    let snapshot = view.app.findings.snapshot();
    let mut rows = Vec::new();
    for report in &snapshot.reports {
        let placements = report.placements.join(",");
        let place = &report.place;
        let mut add = |severity: &str, check: &str, object: &str, problem: &str, why: &str, fix| {
            rows.push(row![
                placements.as_str(),
                place.server.as_str(),
                place.database.as_str(),
                place.login.as_str(),
                place.schema.clone(),
                severity,
                check,
                object,
                problem,
                why,
                fix,
            ]);
        };
        let none = None::<String>;
        if let Some(problem) = &report.problem {
            add("unknown", "", "", problem, "", none);
        } else if report.findings.is_empty() {
            add("none", "", "", "", "", none);
        }
        for finding in &report.findings {
            let fix = finding.fix.as_ref().map(|fix| fix.sql.join("; "));
            add(
                finding.severity.as_str(),
                finding.check,
                &finding.object,
                &finding.problem,
                finding.why,
                fix.or_else(|| finding.advice.map(str::to_owned)),
            );
        }
    }
    for name in view.config.placements.keys() {
        let mut known = snapshot.reports.iter().flat_map(|r| &r.placements);
        if !known.any(|known| known == name.as_str()) {
            let none = || None::<String>;
            let problem = match view.config.doctor.enabled {
                true => "not inspected yet, or without tenants",
                false => "doctor.enabled is false",
            };
            rows.push(row![
                name.as_str(),
                none(),
                none(),
                none(),
                none(),
                "unknown",
                "",
                "",
                problem,
                "",
                none(),
            ]);
        }
    }
    rows
}
