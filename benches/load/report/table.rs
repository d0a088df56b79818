//! What a workload has measured, and its tables: medians over the rounds, and of ratios the median
//! of each round's.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde_json::{Map, Value, json};

/// The figures of one target under one row of a workload in one round, by their names in the JSON
/// file.
#[derive(Debug, Clone, Default)]
pub struct Cell(BTreeMap<&'static str, f64>);

impl Cell {
    pub fn with(mut self, name: &'static str, figure: impl Into<Option<f64>>) -> Self {
        if let Some(figure) = figure.into() {
            self.0.insert(name, figure);
        }
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.0.remove(name);
        self
    }

    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }
}

/// For who watches.
impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figures = self.0.iter().map(|(name, figure)| {
            let decimals = match figure.abs() {
                100.0.. => 0,
                1.0.. => 2,
                _ => 4,
            };
            format!("{name} {figure:.decimals$}")
        });
        f.write_str(&figures.collect::<Vec<_>>().join(", "))
    }
}

/// A cell of the tables in one round.
pub struct Run {
    pub round: u32,
    /// One label for each of the section's heads.
    pub row: Vec<String>,
    pub target: &'static str,
    pub cell: Cell,
}

/// One figure of all targets.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    pub title: &'static str,
    pub figure: &'static str,
    /// Of the figure's unit in the table.
    pub scale: f64,
    pub decimals: usize,
    /// Targets that are shown in relation to others.
    pub ratios: &'static [(&'static str, &'static str)],
}

/// What one workload has measured.
pub struct Section {
    /// As on the command line.
    pub name: String,
    pub title: &'static str,
    /// What the labels of a row are.
    pub heads: &'static [&'static str],
    /// The columns. One without a run is shown as –.
    pub targets: Vec<&'static str>,
    pub tables: Vec<Table>,
    /// What it is, for the reader of the tables.
    pub note: String,
    pub runs: Vec<Run>,
}

impl Section {
    /// In the order they were measured.
    pub fn rows(&self) -> Vec<&[String]> {
        let mut rows: Vec<&[String]> = Vec::new();
        for run in &self.runs {
            if !rows.contains(&&run.row[..]) {
                rows.push(&run.row);
            }
        }
        rows
    }

    /// A row in words.
    pub fn named(&self, row: &[String]) -> String {
        let labels = self.heads.iter().zip(row);
        let named: Vec<_> = labels
            .map(|(head, label)| format!("{head} {label}"))
            .collect();
        named.join(", ")
    }

    /// In the order of the rounds.
    fn figures(&self, row: &[String], target: &str, figure: &str) -> Vec<f64> {
        self.runs
            .iter()
            .filter(|run| run.row == row && run.target == target)
            .filter_map(|run| run.cell.get(figure))
            .collect()
    }

    pub fn median(&self, row: &[String], target: &str, figure: &str) -> Option<f64> {
        median(self.figures(row, target, figure))
    }

    /// The median of the rounds' ratios, since what a machine does besides changes from round to
    /// round.
    pub fn ratio(&self, row: &[String], ours: &str, theirs: &str, figure: &str) -> Option<f64> {
        median_ratio(
            &self.figures(row, ours, figure),
            &self.figures(row, theirs, figure),
        )
    }

    /// Targets that have the figure, or that were not measured at all: a direct connection has no
    /// proxy whose CPU could be told, and is left out.
    fn columns(&self, figure: &str) -> Vec<&'static str> {
        let shown = |target: &&'static str| {
            let mut runs = self.runs.iter().filter(|run| run.target == *target);
            let measured = runs.clone().next().is_some();
            !measured || runs.any(|run| run.cell.get(figure).is_some())
        };
        self.targets.iter().copied().filter(shown).collect()
    }

    pub fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n{}\n\n", self.title, self.note);
        for table in &self.tables {
            self.table(&mut text, table);
        }
        text
    }

    fn table(&self, text: &mut String, table: &Table) {
        let columns = self.columns(table.figure);
        let ratios = table
            .ratios
            .iter()
            .filter(|(ours, theirs)| columns.contains(ours) && columns.contains(theirs));
        let mut heads: Vec<String> = self.heads.iter().map(ToString::to_string).collect();
        heads.extend(columns.iter().map(ToString::to_string));
        heads.extend(
            ratios
                .clone()
                .map(|(ours, theirs)| format!("{ours} ÷ {theirs}")),
        );
        // Writing to a String cannot fail.
        let _ = writeln!(text, "**{}**\n\n| {} |", table.title, heads.join(" | "));
        let labels = "---|".repeat(self.heads.len());
        let figures = "---:|".repeat(heads.len() - self.heads.len());
        let _ = writeln!(text, "|{labels}{figures}");
        for row in self.rows() {
            let mut cells = row.to_vec();
            cells.extend(columns.iter().map(|target| {
                let median = self.median(row, target, table.figure);
                shown(median.map(|median| median * table.scale), table.decimals)
            }));
            cells.extend(
                ratios
                    .clone()
                    .map(|(ours, theirs)| shown(self.ratio(row, ours, theirs, table.figure), 2)),
            );
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        }
        text.push('\n');
    }

    pub fn json(&self) -> Value {
        let medians = self.rows().into_iter().flat_map(|row| {
            self.targets
                .iter()
                .filter_map(move |&target| self.medians(row, target))
        });
        let runs = self.runs.iter().map(|run| {
            let mut cell = self.labels(&run.row, run.target);
            cell.insert("round".to_owned(), run.round.into());
            cell.extend(
                run.cell
                    .0
                    .iter()
                    .map(|(&name, &figure)| (name.to_owned(), json!(figure))),
            );
            Value::Object(cell)
        });
        json!({
            "workload": self.name,
            "title": self.title,
            "medians": medians.collect::<Vec<_>>(),
            "runs": runs.collect::<Vec<_>>(),
        })
    }

    /// Of all figures; none if the target was not measured.
    fn medians(&self, row: &[String], target: &'static str) -> Option<Value> {
        let run = self
            .runs
            .iter()
            .find(|run| run.row == row && run.target == target)?;
        let mut cell = self.labels(row, target);
        for &name in run.cell.0.keys() {
            cell.insert(name.to_owned(), json!(self.median(row, target, name)));
        }
        Some(Value::Object(cell))
    }

    fn labels(&self, row: &[String], target: &str) -> Map<String, Value> {
        let labels = self
            .heads
            .iter()
            .copied()
            .zip(row.iter().map(String::as_str));
        labels
            .chain([("target", target)])
            .map(|(head, label)| (head.to_owned(), label.into()))
            .collect()
    }
}

/// Of figures that are in the order of the rounds; none if they are not of the same ones.
fn median_ratio(ours: &[f64], theirs: &[f64]) -> Option<f64> {
    let ratios = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs);
    (ours.len() == theirs.len())
        .then(|| median(ratios.collect()))
        .flatten()
}

pub fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    let upper = *figures.get(middle)?;
    Some(match figures.len() % 2 {
        0 => f64::midpoint(figures[middle - 1], upper),
        _ => upper,
    })
}

fn shown(figure: Option<f64>, decimals: usize) -> String {
    figure.map_or_else(|| "–".to_owned(), |figure| format!("{figure:.decimals$}"))
}
