//! The reader of SQL beside PostgreSQL's own scanner and grammar (libpg_query, of PostgreSQL 18):
//! what the tree of a text says that it does, and what matters to the guard or has to be carried,
//! the reader must say, too; and both must cut a text into the same tokens.
//!
//! The tests run some ten thousand texts. `make soak` runs as many as one likes:
//!
//! - `PGTENANT_ORACLE_SCANS`, `PGTENANT_ORACLE_PARSES`: so many texts (0 is none);
//! - `PGTENANT_ORACLE_SEED`: where chance begins;
//! - `PGTENANT_ORACLE_SECONDS`: it ends after so long, if that is sooner;
//! - `PGTENANT_ORACLE_SQL`: a directory of SQL, such as PostgreSQL's `src/test/regress/sql`, to be
//!   mutated, too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // that is how a test fails

mod generate;
mod tokens;
mod tree;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pg_query::ParserOptions;
use pg_query::protobuf::{ParseResult, ScanToken};
use pgtenant::config::Shared;
use pgtenant::guard::Guard;
use pgtenant::sql::effects::Effects;
use rand::SeedableRng;
use rand::rngs::StdRng;

use generate::Generator;
use tree::Required;

const SEED: u64 = 0x6f72_6163;

/// PostgreSQL's tokens. None: it cannot scan the text, and would run nothing of it.
pub fn scanned(sql: &str) -> Option<Vec<ScanToken>> {
    // `scan_tokens` makes a slice of a null pointer where there is no token.
    let mut tokens = pg_query::scan_tokens(&format!("{sql}\n;")).ok()?;
    tokens.pop();
    Some(tokens)
}

/// What two guards must be: nothing is allowed; all is, but what is never.
fn guards() -> [Guard; 2] {
    let all = [
        Shared::Channels,
        Shared::AdvisoryLocks,
        Shared::TableLocks,
        Shared::PreparedTransactions,
        Shared::Catalogs,
        Shared::LargeObjects,
    ];
    [Vec::new(), all.to_vec()].map(|allow| {
        let context = ["app.tenant_id", "pgtenant.context"];
        Guard::new(context.into_iter(), allow.into_iter().collect())
    })
}

/// How the lexer reads a text differently. None also where PostgreSQL cannot scan it.
fn scan_difference(sql: &str) -> Option<String> {
    tokens::difference(sql, &scanned(sql)?)
}

/// PostgreSQL's tree. `backslashes`: as with `standard_conforming_strings` off. None: it runs
/// nothing of the text, or the tree is deeper than `pg_query` passes on.
fn parsed(sql: &str, backslashes: bool) -> Option<ParseResult> {
    let options = match backslashes {
        true => ParserOptions::DISABLE_STANDARD_CONFORMING_STRINGS,
        false => ParserOptions::DEFAULT,
    };
    Some(pg_query::parse(sql, options).ok()?.protobuf)
}

/// What the reader does not say of a text that PostgreSQL's tree says.
fn tree_difference(sql: &str, backslashes: bool, guards: &[Guard]) -> Option<String> {
    let tree = parsed(sql, backslashes)?;
    let required = Required::of(sql, &tree);
    let told = Effects::of(sql.as_bytes(), backslashes);
    if let Some(missing) = tree::missing(&required, &told) {
        return Some(missing);
    }
    let is_lax =
        |guard: &&Guard| guard.check(&required.effects).is_err() && guard.check(&told).is_ok();
    let lax = guards.iter().find(is_lax)?;
    let offence = lax.check(&required.effects).unwrap_err();
    Some(format!("the guard misses {}", offence.kind))
}

/// The shortest text that still shows a difference of the same kind, by leaving out tokens.
fn shortest(sql: &str, differs: &dyn Fn(&str) -> Option<String>) -> String {
    let mut sql = sql.to_owned();
    let kind = |found: &str| {
        found
            .split(['"', '('])
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let Some(found) = differs(&sql).map(|found| kind(&found)) else {
        return sql;
    };
    let mut size = 16;
    while size > 0 {
        let tokens = scanned(&sql).unwrap_or_default();
        let shorter = tokens.windows(size).find_map(|run| {
            let (start, end) = (run[0].start as usize, run[size - 1].end as usize);
            let shorter = format!("{} {}", sql[..start].trim_end(), sql[end..].trim_start());
            let same = differs(&shorter).map(|found| kind(&found)) == Some(found.clone());
            (same && shorter.len() < sql.len()).then_some(shorter)
        });
        match shorter {
            Some(shorter) => sql = shorter,
            None => size /= 2,
        }
    }
    sql
}

/// Differences, one text for each kind.
#[derive(Default)]
struct Found {
    kinds: BTreeMap<String, (u64, String)>,
    texts: u64,
    /// Texts that PostgreSQL could read.
    read: u64,
}

impl Found {
    fn add(&mut self, sql: &str, found: String, differs: &dyn Fn(&str) -> Option<String>) {
        let entry = self.kinds.entry(found).or_insert_with(|| {
            let shortest = shortest(sql, differs);
            (0, shortest)
        });
        entry.0 += 1;
    }

    fn assert_none(&self) {
        let list = self.kinds.iter();
        let list = list.map(|(kind, (count, sql))| format!("{count} × {kind}: {sql:?}\n"));
        let list: String = list.take(200).collect();
        assert!(self.kinds.is_empty(), "in {} texts:\n{list}", self.texts);
    }
}

fn run_scans(count: u64, seed: u64, until: Instant) -> Found {
    let generator = Generator::new();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut found = Found::default();
    while found.texts < count && (found.texts % 64 != 0 || Instant::now() < until) {
        found.texts += 1;
        let sql = match found.texts % 4 {
            0 => generator.text(&mut rng),
            _ => generate::pieces(&mut rng),
        };
        if let Some(tokens) = scanned(&sql) {
            found.read += 1;
            if let Some(difference) = tokens::difference(&sql, &tokens) {
                found.add(&sql, difference, &scan_difference);
            }
        }
    }
    found
}

fn run_parses(count: u64, seed: u64, until: Instant) -> Found {
    let generator = Generator::new();
    let guards = guards();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut found = Found::default();
    while found.read < count && (found.texts % 64 != 0 || Instant::now() < until) {
        found.texts += 1;
        let sql = generator.text(&mut rng);
        let backslashes = found.texts % 8 == 0;
        let differs = |sql: &str| tree_difference(sql, backslashes, &guards);
        if parsed(&sql, backslashes).is_none() {
            continue;
        }
        found.read += 1;
        if let Some(difference) = differs(&sql) {
            found.add(&sql, difference, &differs);
        }
    }
    found
}

fn an_hour() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

#[test]
fn texts_are_cut_as_postgresql_cuts_them() {
    let found = run_scans(50_000, SEED, an_hour());
    assert!(found.read > 15_000, "only {} are no nonsense", found.read);
    found.assert_none();
}

#[test]
fn what_the_tree_of_a_text_says_is_told() {
    let found = run_parses(8_000, SEED, an_hour());
    assert!(
        found.texts < 24_000,
        "{} are too much nonsense",
        found.texts
    );
    found.assert_none();
}

/// What the grammar and the reader take for texts of 8 kB that are made to be slow, on a thread
/// with a stack of 2 MiB.
#[test]
#[ignore = "prints figures"]
fn what_slow_texts_cost() {
    const SIZE: usize = 8 * 1024;
    for (name, head, piece) in [
        ("parentheses", "SELECT ", "("),
        ("brackets", "SELECT a", "["),
        ("sums", "SELECT 1", "+1"),
        ("strings", "SELECT 'x'", "||'x'"),
        ("unions", "SELECT 1", " UNION ALL SELECT 1"),
        ("conjunctions", "SELECT 1 WHERE a", " AND a"),
        ("negations", "SELECT", " NOT"),
        ("minus", "SELECT", " -"),
        ("cases", "SELECT ", "CASE WHEN "),
        ("casts", "SELECT 1", "::int"),
        ("fields", "SELECT a", ".a"),
        ("joins", "SELECT 1 FROM a", " JOIN a ON 1=1"),
        ("columns", "SELECT 1", ",1"),
        ("statements", "", "SELECT 1;"),
        ("calls", "SELECT ", "f("),
        ("subqueries", "", "SELECT ("),
        ("set_config", "SELECT ", "set_config("),
        ("comments", "", "/*"),
        ("dollars", "SELECT $a$", "$a"),
    ] {
        let mut sql = head.to_owned();
        while sql.len() < SIZE {
            sql.push_str(piece);
        }
        let began = Instant::now();
        let parsed = pg_query::parse(&sql, 0).is_ok();
        let grammar = began.elapsed();
        let began = Instant::now();
        Effects::of(sql.as_bytes(), false);
        let reader = began.elapsed();
        println!("{name}: grammar {grammar:?} (read: {parsed}), reader {reader:?}");
    }
}

#[test]
#[ignore = "runs as long as one likes: make soak"]
fn soak() {
    let number = |name: &str, default: u64| {
        let value = std::env::var(format!("PGTENANT_ORACLE_{name}")).ok();
        value.map_or(default, |value| value.parse().expect("a number"))
    };
    let seed = number("SEED", SEED + 1);
    let until = Instant::now() + Duration::from_secs(number("SECONDS", 3600));
    let scans = run_scans(number("SCANS", 1_000_000), seed, until);
    println!(
        "{} scans, {} of them of texts that can be cut",
        scans.texts, scans.read
    );
    let parses = run_parses(number("PARSES", 100_000), seed, until);
    println!("{} parses, of {} texts", parses.read, parses.texts);
    scans.assert_none();
    parses.assert_none();
}
