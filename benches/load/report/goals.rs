//! What pgtenant wants to reach, each goal beside what was measured.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::table::Section;
use super::{HAPROXY, MEGABYTE, PGBOUNCER, PGTENANT};
use crate::workload::Name;
use crate::workload::cores::{ONE_WORKER, TWO_WORKERS};
use crate::workload::switch::Way;

/// A bound on a figure.
#[derive(Debug, Clone, Copy)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    fn holds(self, figure: f64) -> bool {
        match self {
            Self::AtMost(most) => figure <= most,
            Self::AtLeast(least) => figure >= least,
        }
    }

    /// The figure that is furthest from the goal.
    fn worst(self, figures: impl Iterator<Item = (String, f64)>) -> Option<(String, f64)> {
        figures.max_by(|(_, a), (_, b)| match self {
            Self::AtMost(_) => a.total_cmp(b),
            Self::AtLeast(_) => b.total_cmp(a),
        })
    }
}

/// What is to hold in each row of a workload that the goal is about.
struct Goal {
    name: &'static str,
    workload: Name,
    rows: fn(&[String]) -> bool,
    figure: &'static str,
    ours: &'static str,
    /// None: the figure itself counts, in its unit.
    theirs: Option<&'static str>,
    unit: (&'static str, f64),
    bound: Bound,
}

const fn goal(
    name: &'static str,
    workload: Name,
    figure: &'static str,
    theirs: &'static str,
    bound: Bound,
) -> Goal {
    Goal {
        name,
        workload,
        rows: |_| true,
        figure,
        ours: PGTENANT,
        theirs: Some(theirs),
        unit: ("×", 1.0),
        bound,
    }
}

/// Clients of a row of `pgbench -S`.
fn clients(row: &[String]) -> u32 {
    row.last()
        .and_then(|clients| clients.parse().ok())
        .unwrap_or_default()
}

const CPU: &str = "cpu_us_per_transaction";

const GOALS: [Goal; 16] = [
    goal(
        "One tenant: CPU per transaction ≤ 0.9 × PgBouncer's",
        Name::Select,
        CPU,
        PGBOUNCER,
        Bound::AtMost(0.9),
    ),
    Goal {
        rows: |row| clients(row) >= 16,
        ..goal(
            "One tenant: transactions per second ≥ 1.05 × PgBouncer's where the cores are what is short (16 clients and more)",
            Name::Select,
            "tps",
            PGBOUNCER,
            Bound::AtLeast(1.05),
        )
    },
    goal(
        "One tenant: CPU per transaction ≤ 1.5 × haproxy's",
        Name::Select,
        CPU,
        HAPROXY,
        Bound::AtMost(1.5),
    ),
    goal(
        "Every client another tenant: CPU per transaction ≤ 1.0 × that of PgBouncer, which sets nothing",
        Name::Tenants,
        CPU,
        PGBOUNCER,
        Bound::AtMost(1.0),
    ),
    Goal {
        ours: Way::Plain.title(),
        ..goal(
            "Tenant switch: transactions per second ≥ 3 × the application's through PgBouncer, plain",
            Name::Switch,
            "tps",
            Way::Application.title(),
            Bound::AtLeast(3.0),
        )
    },
    Goal {
        ours: Way::Sealed.title(),
        ..goal(
            "Tenant switch: transactions per second ≥ 2 × the application's through PgBouncer, sealed",
            Name::Switch,
            "tps",
            Way::Application.title(),
            Bound::AtLeast(2.0),
        )
    },
    Goal {
        ours: Way::Chosen.title(),
        ..goal(
            "An application that sets the tenant, four messages: transactions per second ≥ 1.5 × through PgBouncer",
            Name::Switch,
            "tps",
            Way::Application.title(),
            Bound::AtLeast(1.5),
        )
    },
    goal(
        "Bulk: CPU per GB ≤ 1.3 × haproxy's",
        Name::Bulk,
        "cpu_s_per_gb",
        HAPROXY,
        Bound::AtMost(1.3),
    ),
    goal(
        "Bulk: CPU per GB ≤ 0.7 × PgBouncer's",
        Name::Bulk,
        "cpu_s_per_gb",
        PGBOUNCER,
        Bound::AtMost(0.7),
    ),
    Goal {
        theirs: None,
        unit: ("MB", 1.0 / MEGABYTE),
        ..goal(
            "Bulk: memory is flat (200 MB pass, it rises by ≤ 2 MB)",
            Name::Bulk,
            "resident_growth",
            "",
            Bound::AtMost(2.0),
        )
    },
    goal(
        "TLS: CPU per transaction ≤ PgBouncer's",
        Name::Tls,
        CPU,
        PGBOUNCER,
        Bound::AtMost(1.0),
    ),
    goal(
        "Connect: CPU per connection ≤ 0.8 × PgBouncer's",
        Name::Connect,
        CPU,
        PGBOUNCER,
        Bound::AtMost(0.8),
    ),
    goal(
        "Idle: bytes per client ≤ 2 × PgBouncer's",
        Name::Idle,
        "bytes_per_client",
        PGBOUNCER,
        Bound::AtMost(2.0),
    ),
    goal(
        "Latency of one client: median ≤ PgBouncer's",
        Name::Latency,
        "median_us",
        PGBOUNCER,
        Bound::AtMost(1.0),
    ),
    goal(
        "Latency of one client: p99 ≤ 1.2 × PgBouncer's",
        Name::Latency,
        "p99_us",
        PGBOUNCER,
        Bound::AtMost(1.2),
    ),
    Goal {
        ours: TWO_WORKERS,
        ..goal(
            "From one core to two: queries per second ≥ 1.7 ×",
            Name::Cores,
            "tps",
            ONE_WORKER,
            Bound::AtLeast(1.7),
        )
    },
];

/// A goal in this run.
struct Found {
    goal: &'static Goal,
    /// Of each row that it is about.
    rows: Vec<(String, f64)>,
}

impl Found {
    fn holds(&self) -> usize {
        self.rows
            .iter()
            .filter(|(_, figure)| self.goal.bound.holds(*figure))
            .count()
    }

    fn is_met(&self) -> bool {
        self.holds() == self.rows.len()
    }

    fn worst(&self) -> Option<(String, f64)> {
        self.goal.bound.worst(self.rows.iter().cloned())
    }

    fn best(&self) -> f64 {
        let best = match self.goal.bound {
            Bound::AtMost(_) => f64::min,
            Bound::AtLeast(_) => f64::max,
        };
        self.rows
            .iter()
            .map(|(_, figure)| *figure)
            .reduce(best)
            .unwrap_or(f64::NAN)
    }
}

/// Those whose workload and targets were measured.
fn found(sections: &[Section]) -> impl Iterator<Item = Found> {
    GOALS.iter().filter_map(|goal| {
        let section = sections
            .iter()
            .find(|section| section.name == goal.workload.to_string())?;
        let figure = |row: &[String]| match goal.theirs {
            Some(theirs) => section.ratio(row, goal.ours, theirs, goal.figure),
            None => section.median(row, goal.ours, goal.figure),
        };
        let rows: Vec<_> = section
            .rows()
            .into_iter()
            .filter(|row| (goal.rows)(row))
            .filter_map(|row| Some((section.named(row), figure(row)? * goal.unit.1)))
            .collect();
        (!rows.is_empty()).then_some(Found { goal, rows })
    })
}

pub fn markdown(sections: &[Section]) -> String {
    let mut text = String::from("### Goals\n\n| goal | measured | met |\n|---|---|---|\n");
    for found in found(sections) {
        let Some((row, worst)) = found.worst() else {
            continue;
        };
        let unit = found.goal.unit.0;
        let measured = match found.rows.len() {
            1 => format!("{worst:.2} {unit}"),
            _ => format!(
                "{:.2} to {worst:.2} {unit} (the latter: {row})",
                found.best()
            ),
        };
        let met = match (found.is_met(), found.holds()) {
            (true, _) => "yes".to_owned(),
            (false, 0) => "no".to_owned(),
            (false, rows) => format!("in {rows} of {} rows", found.rows.len()),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| {} | {measured} | {met} |", found.goal.name);
    }
    text
}

pub fn json(sections: &[Section]) -> Value {
    let goals = found(sections).map(|found| {
        let rows = found
            .rows
            .iter()
            .map(|(row, figure)| json!({ "row": row, "measured": figure, "met": found.goal.bound.holds(*figure) }));
        json!({
            "goal": found.goal.name,
            "workload": found.goal.workload.to_string(),
            "met": found.is_met(),
            "rows": rows.collect::<Vec<_>>(),
        })
    });
    goals.collect()
}
