//! One SQL script of all that mends findings. It is printed, never run.

use std::collections::BTreeMap;

use super::case::{literal, quoted};
use crate::control::door::SCRIPT_HEAD;
use crate::findings::{Finding, Report, Step};

/// The script for psql, run by a superuser or whoever owns what is changed.
pub fn of(reports: &[Report]) -> String {
    // By server and database, in a stable order.
    let mut places: BTreeMap<(&str, &str), Vec<&Finding>> = BTreeMap::new();
    for report in reports {
        let place = (&*report.place.server, &*report.place.database);
        places.entry(place).or_default().extend(&report.findings);
    }
    places.retain(|_, findings| {
        findings
            .iter()
            .any(|f| f.fix.is_some() || f.advice.is_some())
    });
    if places.is_empty() {
        return "-- Nothing to mend.\n".to_owned();
    }
    let mut out = "\
-- What pgtenant doctor would change. Read it first: rights that are taken away here may be in use.
-- Run it with psql -v ON_ERROR_STOP=1, as a superuser or as whoever owns what is changed. Then run the doctor again.
"
    .to_owned();
    let several = places.len() > 1;
    for ((server, database), findings) in places {
        out += &format!(
            "\n-- ---- server {}, database {} ----\n",
            one_line(server),
            one_line(database)
        );
        if several {
            out += "-- Mind the server: connect to it before this part, if it is another one.\n";
            out += &format!("\\connect {}\n", quoted(database));
        }
        out += &part(database, &findings);
    }
    out
}

/// The part for one database.
fn part(database: &str, findings: &[&Finding]) -> String {
    let mut steps: BTreeMap<Step, Vec<(String, &[String])>> = BTreeMap::new();
    let mut by_hand = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for finding in findings {
        let about = format!(
            "-- {}: {}: {}",
            finding.severity.as_str(),
            one_line(&finding.object),
            one_line(&finding.problem)
        );
        match &finding.fix {
            Some(fix) if seen.insert((about.clone(), &*fix.sql)) => {
                steps.entry(fix.step).or_default().push((about, &fix.sql));
            }
            None if finding.advice.is_some() && seen.insert((about.clone(), &[])) => {
                let advice = finding.advice.unwrap_or_default();
                by_hand.push(format!("{about}\n--     {advice}\n"));
            }
            _ => {}
        }
    }
    let outside = steps.remove(&Step::Indexes).unwrap_or_default();
    // After each \connect, since it is the session's.
    let mut out = SCRIPT_HEAD.to_owned();
    let mut run = std::collections::HashSet::new();
    let mut say = |out: &mut String, fixes: Vec<(String, &[String])>| {
        for (about, sql) in fixes {
            *out += &about;
            *out += "\n";
            // What two findings ask for is done once.
            for statement in sql
                .iter()
                .filter(|statement| run.insert(statement.to_string()))
            {
                *out += statement;
                *out += ";\n";
            }
        }
    };
    if !steps.is_empty() {
        out += "BEGIN;\n";
        out += &guard(database);
        for (_, fixes) in steps {
            say(&mut out, fixes);
        }
        out += "COMMIT;\n";
    }
    if !outside.is_empty() {
        out += "-- Outside of a transaction, so that tables stay usable meanwhile.\n";
        out += &guard(database);
        say(&mut out, outside);
    }
    if !by_hand.is_empty() {
        out += "-- To be decided by hand:\n";
        out += &by_hand.concat();
    }
    out
}

/// Fails in another database than the one that was inspected.
fn guard(database: &str) -> String {
    format!(
        "DO $pgtenant$ BEGIN IF current_database() <> {} THEN RAISE EXCEPTION 'this is for another database'; END IF; END $pgtenant$;\n",
        literal(&database.replace("$pgtenant$", "$"))
    )
}

/// For a comment: a name may hold a line break.
fn one_line(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}
