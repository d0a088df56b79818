//! Rules for the code that no compiler checks. Each says in a sentence what is wrong and where, and
//! is shown to find a planted case.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Files by module path below a root: `backend::instance`.
type Modules = BTreeMap<Vec<String>, String>;

/// What may be kept by a thread or a process, each with its reason.
const KEPT: [(&str, &str); 12] = [
    (
        "src/sql/builtin.rs SET",
        "names that are read from a file once",
    ),
    ("src/sql/lexer.rs CLASSES", "a table made by the compiler"),
    ("src/sql/lexer.rs IN_WORD", "a table made by the compiler"),
    (
        "src/sql/effects.rs SCANNER",
        "memory of the reader, for the next text",
    ),
    (
        "src/admin/command/set.rs SETTINGS",
        "a table made by the compiler",
    ),
    (
        "src/admin/show/mod.rs SHOWS",
        "a table made by the compiler",
    ),
    (
        "src/net/socket/batch.rs BATCH",
        "what a worker sends in one turn",
    ),
    (
        "src/frontend/owed.rs SPARE",
        "memory of queues, for the next client",
    ),
    (
        "src/frontend/session/parking.rs LOT",
        "a worker's parked clients",
    ),
    (
        "src/protocol/buffer.rs FREE",
        "memory of buffers, for the next client",
    ),
    (
        "src/backend/dial.rs PROVIDER",
        "rustls' provider, which is made once",
    ),
    ("src/timer.rs KEEPER", "who keeps a worker's timers"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// All Rust files below these folders, by their path from the project's root.
pub fn sources(folders: &[&str]) -> BTreeMap<String, String> {
    let mut paths = Vec::new();
    for folder in folders {
        rust_files(&root().join(folder), &mut paths);
    }
    let text = |path: &Path| fs::read_to_string(path).expect("is UTF-8");
    let name = |path: &Path| path.strip_prefix(root()).unwrap().display().to_string();
    paths.iter().map(|path| (name(path), text(path))).collect()
}

pub fn is_test(name: &str) -> bool {
    let mut parts = name.split('/');
    parts.any(|part| ["tests", "tests.rs", "testing.rs"].contains(&part))
}

/// The code of a file without its own tests and without comments.
pub fn code(text: &str) -> String {
    let code = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or(text);
    let lines = code.lines().map(|line| match line.find("//") {
        Some(at) => &line[..at],
        None => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

// ---- circles ----

pub fn module(name: &str) -> Vec<String> {
    let name = name.strip_prefix("src/").unwrap_or(name);
    let mut parts: Vec<String> = name
        .trim_end_matches(".rs")
        .split('/')
        .map(str::to_owned)
        .collect();
    if parts
        .last()
        .is_some_and(|last| ["mod", "lib", "main"].contains(&&**last))
    {
        parts.pop();
    }
    parts
}

/// The paths of a `use`, each as its words: `a::{b, c::{d, e}}` are three.
fn expanded(tree: &str) -> Vec<Vec<String>> {
    let Some(open) = tree.find('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        let words = path.split("::").map(|word| word.trim().to_owned());
        return vec![words.filter(|word| !word.is_empty()).collect()];
    };
    let before = expanded(&tree[..open]).remove(0);
    let inner = &tree[open + 1..tree.rfind('}').unwrap_or(tree.len())];
    let (mut depth, mut begin, mut branches) = (0, 0, Vec::new());
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                branches.push(&inner[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    let branches = branches
        .into_iter()
        .filter(|branch| !branch.trim().is_empty());
    let paths = branches.flat_map(expanded);
    paths.map(|path| [before.clone(), path].concat()).collect()
}

/// Which files a file uses, by the paths in its code.
fn used(name: &str, text: &str, modules: &Modules) -> BTreeSet<Vec<String>> {
    let (own, code) = (module(name), code(text));
    let code = format!("\n{code}");
    let mut paths = Vec::new();
    for (at, _) in code.match_indices('\n') {
        let line = code[at..].trim_start();
        let begins = ["use ", "pub use ", "pub(super) use ", "pub(crate) use "];
        let tree = begins.iter().find_map(|begin| line.strip_prefix(begin));
        if let Some((tree, _)) = tree.and_then(|rest| rest.split_once(';')) {
            paths.extend(expanded(tree));
        }
    }
    for start in ["crate::", "super::"] {
        paths.extend(code.match_indices(start).map(|(at, _)| {
            let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
            let path = code[at..].split(|c| !is_part(c)).next().unwrap_or_default();
            expanded(path).remove(0)
        }));
    }
    let mut found = BTreeSet::new();
    for path in paths {
        let ups = path.iter().take_while(|word| *word == "super").count();
        let mut full = match path.first().map(String::as_str) {
            Some("crate") => path[1..].to_vec(),
            Some("self") => [&own, &path[1..]].concat(),
            Some("super") if ups <= own.len() => [&own[..own.len() - ups], &path[ups..]].concat(),
            Some(_) => [&own[..], &path].concat(),
            None => continue,
        };
        while !full.is_empty() && !modules.contains_key(&full) {
            full.pop();
        }
        if !full.is_empty() && full != own {
            found.insert(full);
        }
    }
    found
}

fn is_parent(parent: &[String], child: &[String]) -> bool {
    parent.len() + 1 == child.len() && child.starts_with(parent)
}

/// Pairs of files that use each other, at once or by others, where neither is the other's parent.
fn circles(files: &BTreeMap<String, String>) -> Vec<String> {
    let files = files.iter().filter(|(name, _)| !is_test(name));
    let modules: Modules = files
        .clone()
        .map(|(name, _)| (module(name), name.clone()))
        .collect();
    let mut uses: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    for (name, text) in files {
        let own = module(name);
        let mut used = used(name, text, &modules);
        used.retain(|other| !is_parent(&own, other) && !is_parent(other, &own));
        uses.insert(own, used);
    }
    let reaches = |from: &Vec<String>| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(at) = next.pop() {
            for other in uses.get(&at).into_iter().flatten() {
                if seen.insert(other.clone()) {
                    next.push(other.clone());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<_, _> = uses.keys().map(|own| (own, reaches(own))).collect();
    let mut found = Vec::new();
    for (own, others) in &uses {
        for other in others
            .iter()
            .filter(|other| reached.get(other).is_some_and(|r| r.contains(own)))
        {
            let name = |module: &Vec<String>| modules[module].clone();
            found.push(format!(
                "{} uses {}, which uses it, too, or what does: move what both need into a file below them",
                name(own),
                name(other)
            ));
        }
    }
    found
}

#[test]
fn no_files_use_each_other_but_a_parent_and_its_child() {
    assert_eq!(circles(&sources(&["src"])), [""; 0]);
    let planted = |b: &str| {
        BTreeMap::from([
            (
                "src/a.rs".to_owned(),
                "use crate::b::{self, c::D};".to_owned(),
            ),
            ("src/b.rs".to_owned(), b.to_owned()),
            ("src/b/c.rs".to_owned(), "use super::E;".to_owned()),
        ])
    };
    assert_eq!(circles(&planted("mod c;\nuse self::c::D;")), [""; 0]);
    assert_eq!(circles(&planted("fn f() { crate::a::g() }")).len(), 2);
    assert_eq!(circles(&planted("// crate::a::g()")), [""; 0]);
}

// ---- lines ----

/// Columns of a comment.
const COLUMNS: usize = 100;

/// A table, or a drawing.
fn is_drawn(comment: &str) -> bool {
    let text = comment.trim_start_matches(['/', '!']);
    let is_indented = text.starts_with("    ");
    is_indented
        || text.trim_start().starts_with('|')
        || text.trim().contains("  ")
        || text.chars().any(|c| "│─►▼▲└┘┐┌".contains(c))
}

fn too_wide(files: &BTreeMap<String, String>) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in files {
        for (number, line) in text.lines().enumerate() {
            let comment = line.trim_start();
            let is_wide = comment.starts_with("//") && line.chars().count() > COLUMNS;
            if is_wide && !is_drawn(comment) {
                found.push(format!(
                    "{name}:{}: a comment ends at {COLUMNS} columns",
                    number + 1
                ));
            }
        }
    }
    found
}

#[test]
fn comments_end_at_a_hundred_columns() {
    assert_eq!(too_wide(&sources(&["src", "tests", "benches"])), [""; 0]);
    let planted = format!("fn f() {{}}\n/// {}", "word ".repeat(20).trim_end());
    let planted = BTreeMap::from([("a.rs".to_owned(), planted)]);
    assert_eq!(
        too_wide(&planted),
        ["a.rs:2: a comment ends at 100 columns"]
    );
}

// ---- what a thread or the process keeps ----

fn kept(files: &BTreeMap<String, String>) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in files.iter().filter(|(name, _)| !is_test(name)) {
        for line in code(text).lines() {
            let line = line.trim_start();
            let line = line.strip_prefix("pub ").unwrap_or(line);
            if let Some((kept, _)) = line
                .strip_prefix("static ")
                .and_then(|rest| rest.split_once(':'))
            {
                found.push(format!("{name} {}", kept.trim_start_matches("mut ")));
            }
        }
    }
    found
}

#[test]
fn no_state_is_kept_outside_of_what_is_passed() {
    let files = sources(&["src"]);
    let known: BTreeSet<_> = KEPT.iter().map(|(kept, _)| (*kept).to_owned()).collect();
    let found: BTreeSet<_> = kept(&files).into_iter().collect();
    let new: Vec<_> = found.difference(&known).collect();
    assert!(
        new.is_empty(),
        "pass it, or say why it is kept, in KEPT: {new:?}"
    );
    let gone: Vec<_> = known.difference(&found).collect();
    assert!(gone.is_empty(), "KEPT has what there is no more: {gone:?}");
    let planted =
        "thread_local! {\n    static A: Cell<u8> = Cell::new(0);\n}\n// static B: u8 = 0;";
    let planted = BTreeMap::from([("a.rs".to_owned(), planted.to_owned())]);
    assert_eq!(kept(&planted), ["a.rs A"]);
}

// ---- what is left for later ----

fn left_for_later(files: &BTreeMap<String, String>) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in files {
        for (number, line) in text.lines().enumerate() {
            for word in ["TODO", "FIXME", "XXX", "HACK"].map(|word| format!(" {word}")) {
                if line.contains("//") && line.contains(&word) {
                    let problem = "do it, or write it down where it is read";
                    found.push(format!("{name}:{}:{word}: {problem}", number + 1));
                }
            }
        }
    }
    found
}

#[test]
fn nothing_is_left_for_later() {
    let mut files = sources(&["src", "tests", "benches", "fuzz"]);
    files.remove("tests/it/tidy.rs");
    assert_eq!(left_for_later(&files), [""; 0]);
    let planted = BTreeMap::from([("a.rs".to_owned(), "f(); // TODO: g".to_owned())]);
    assert_eq!(left_for_later(&planted).len(), 1);
}

/// `unwrap`, `expect`, `panic`, `todo` and long functions are clippy's to find; that it does is
/// seen to here.
#[test]
fn clippy_looks_for_the_rest() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    for lint in ["unwrap_used", "expect_used", "panic", "todo"] {
        assert!(manifest.contains(&format!("\n{lint} = \"warn\"")), "{lint}");
    }
    let library = fs::read_to_string(root().join("src/lib.rs")).expect("lib.rs");
    assert!(library.contains("warn(clippy::too_many_lines)"));
    let makefile = fs::read_to_string(root().join("Makefile")).expect("Makefile");
    assert!(makefile.contains("clippy --locked --all-targets -- -D warnings"));
    let limit = fs::read_to_string(root().join("clippy.toml")).expect("clippy.toml");
    assert!(limit.contains("\ntoo-many-lines-threshold = 70"));
}
