//! The tables of the tenant-switch workload.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Cell, KEYS, ROWS, Run, TENANTS, Way};
use crate::report::{median, median_ratio, shown};
use crate::targets::POOL_SIZE;

pub struct Report<'a> {
    pub tenants: &'a [u32],
    pub runs: &'a [Run],
}

type Figure = fn(&Cell) -> f64;

/// Title, name in the JSON file, figure, decimals.
const TABLES: [(&str, &str, Figure, usize); 4] = [
    (
        "Transactions per second (more is better)",
        "tps",
        |cell| cell.tps,
        0,
    ),
    (
        "CPU time of all processes of PostgreSQL per transaction, µs (less is better)",
        "server_cpu_us_per_transaction",
        |cell| cell.server_us,
        1,
    ),
    (
        "CPU time of the proxy per transaction, µs (less is better)",
        "proxy_cpu_us_per_transaction",
        |cell| cell.proxy_us,
        1,
    ),
    (
        "Average latency, ms (less is better)",
        "latency_ms",
        |cell| cell.latency_ms,
        2,
    ),
];

/// What pgtenant is compared with.
const AGAINST: Way = Way::Application;
const OURS: [(Way, &str); 2] = [
    (Way::Plain, "plain ÷ application"),
    (Way::Sealed, "sealed ÷ application"),
];

impl Report<'_> {
    /// For a README.
    pub fn markdown(&self) -> String {
        let mut text = String::from("### A tenant switch for each transaction\n\n");
        for (title, _, figure, decimals) in TABLES {
            self.table(&mut text, title, figure, decimals);
        }
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "Each client is another tenant's; all share {POOL_SIZE} server connections. A transaction is one simple Query: \
             `SELECT tenant_id, body FROM orders WHERE key = …`, {ROWS} of {} rows, told apart by row level security on an \
             indexed column (FORCE; the role is not the owner). *Application sets*: BEGIN, set_config(…, true), SELECT and COMMIT, \
             each sent when the one before is answered. *Tenant spelled out*: the SELECT with `tenant_id = '…'`, by a role \
             without row level security, which is the most that a pooler of this kind can give.\n",
            ROWS * KEYS * TENANTS
        );
        text
    }

    fn table(&self, text: &mut String, title: &str, figure: Figure, decimals: usize) {
        let mut heads = vec!["tenants".to_owned()];
        heads.extend(Way::ALL.map(|way| way.title().to_owned()));
        heads.extend(OURS.map(|(_, title)| title.to_owned()));
        let _ = writeln!(text, "**{title}**\n\n| {} |", heads.join(" | "));
        let _ = writeln!(text, "|{}", "---:|".repeat(heads.len()));
        for &tenants in self.tenants {
            let of = |way| self.figures(tenants, way, figure);
            let mut row = vec![tenants.to_string()];
            row.extend(Way::ALL.map(|way| shown(median(of(way)), decimals)));
            row.extend(OURS.map(|(way, _)| shown(median_ratio(&of(way), &of(AGAINST)), 2)));
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
        text.push('\n');
    }

    /// In the order of the rounds.
    fn figures(&self, tenants: u32, way: Way, figure: Figure) -> Vec<f64> {
        self.runs
            .iter()
            .filter(|run| run.tenants == tenants && run.way == way)
            .map(|run| figure(&run.cell))
            .collect()
    }

    pub fn json(&self) -> Value {
        let medians = self.tenants.iter().flat_map(|&tenants| {
            Way::ALL.map(|way| {
                let mut cell = json!({ "tenants": tenants, "target": way.title() });
                for (_, name, figure, _) in TABLES {
                    cell[name] = json!(median(self.figures(tenants, way, figure)));
                }
                cell
            })
        });
        let runs = self.runs.iter().map(|run| {
            let mut cell = json!({
                "round": run.round,
                "tenants": run.tenants,
                "target": run.way.title(),
                "transactions": run.cell.transactions,
                "seconds": run.cell.seconds,
            });
            for (_, name, figure, _) in TABLES {
                cell[name] = json!(figure(&run.cell));
            }
            cell
        });
        json!({
            "medians": medians.collect::<Vec<_>>(),
            "runs": runs.collect::<Vec<_>>(),
        })
    }
}
