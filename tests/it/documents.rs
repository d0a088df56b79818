//! What the documents say is true: links lead somewhere, examples load and run, and the reference
//! has all that the code has. Each rule is a function of texts, and is seen to fail on a planted
//! text.

mod configs;
mod markdown;
mod play;
mod reference;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use self::markdown::{anchors, fenced, links, prose};

/// Files of this project by their paths in it.
type Files = BTreeMap<PathBuf, String>;

/// The most that README may have, in bytes.
const README: usize = 8192;
/// The longest line of prose, in characters.
const COLUMNS: usize = 100;
/// Documents beside those of docs/.
const AT_THE_ROOT: [&str; 6] = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "ARCHITECTURE.md",
    "SECURITY.md",
    "benches/README.md",
];
/// Where comments name documents.
const NAMES_DOCUMENTS: [&str; 5] = ["src", "tests", "benches", "config", "scripts"];

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn read(path: &str) -> String {
    std::fs::read_to_string(project().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The files below `dir` of this project whose names end in one of `endings`.
fn files_below(dir: &str, endings: &[&str]) -> Files {
    let mut files = Files::new();
    let mut dirs = vec![project().join(dir)];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).expect("a directory").flatten() {
            let path = entry.path();
            let ending = path.extension().unwrap_or_default().to_string_lossy();
            if path.is_dir() && !path.ends_with("docs/book") {
                dirs.push(path);
            } else if endings.contains(&&*ending) {
                let text = std::fs::read(&path).expect("a file");
                let text = String::from_utf8_lossy(&text).into_owned();
                let name = path.strip_prefix(project()).expect("below the project");
                files.insert(name.to_owned(), text);
            }
        }
    }
    files
}

fn documents() -> Files {
    let mut files = files_below("docs", &["md"]);
    files.extend(AT_THE_ROOT.map(|path| (PathBuf::from(path), read(path))));
    files
}

/// `path` without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::Normal(part) => plain.push(part),
            _ => (),
        }
    }
    plain
}

/// Links that lead nowhere: no such file of the project, or no such heading in it.
fn broken_links(files: &Files) -> Vec<String> {
    let mut broken = Vec::new();
    for (file, text) in files {
        for link in links(text) {
            if link.contains("://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match path {
                "" => file.clone(),
                path => plain(&file.parent().unwrap_or(Path::new("")).join(path)),
            };
            let exists = files.contains_key(&target) || project().join(&target).exists();
            let has_anchor = anchor.is_empty()
                || files
                    .get(&target)
                    .is_some_and(|text| anchors(text).contains(anchor));
            if !exists || !has_anchor {
                broken.push(format!("{}: {link}", file.display()));
            }
        }
    }
    broken
}

/// Names of documents in code and config, `docs/….md`, that there are not.
fn unknown_documents(code: &Files, documents: &Files) -> Vec<String> {
    let mut unknown = Vec::new();
    for (file, text) in code {
        for (at, _) in text.match_indices("docs/") {
            let is_of_path = |c: &char| c.is_ascii_alphanumeric() || "/-_.".contains(*c);
            let name: String = text[at..].chars().take_while(is_of_path).collect();
            let Some(end) = name.rfind(".md") else {
                continue;
            };
            if !documents.contains_key(Path::new(&name[..end + 3])) {
                unknown.push(format!("{}: {name}", file.display()));
            }
        }
    }
    unknown
}

/// Pages that the book's contents lack, or name and there are not.
fn not_in_the_book(files: &Files) -> Vec<String> {
    let docs = Path::new("docs");
    let summary = &files[Path::new("docs/SUMMARY.md")];
    let named: BTreeSet<PathBuf> = links(summary).iter().map(|link| docs.join(link)).collect();
    let pages = files.keys().filter(|path| path.starts_with(docs));
    let pages: BTreeSet<_> = pages
        .filter(|path| !path.ends_with("SUMMARY.md"))
        .cloned()
        .collect();
    let difference = named.symmetric_difference(&pages);
    difference.map(|path| path.display().to_string()).collect()
}

/// Lines of prose that are too long. Tables, and lines of nothing but a link, cannot be broken.
fn long_lines(files: &Files) -> Vec<String> {
    let mut long = Vec::new();
    for (file, text) in files {
        for (number, line) in prose(text) {
            let is_one_word = !line.trim_start_matches(['-', ' ']).contains(' ');
            let may_be_long = line.trim_start().starts_with('|') || is_one_word;
            if line.chars().count() > COLUMNS && !may_be_long {
                long.push(format!("{}:{number}", file.display()));
            }
        }
    }
    long
}

/// A fence that is not closed hides all that follows it from every other rule.
fn unclosed(files: &Files) -> Vec<String> {
    let odd = files.iter().filter(|(_, text)| {
        let fences = text
            .lines()
            .filter(|line| line.trim_start().starts_with("```"));
        fences.count() % 2 == 1
    });
    odd.map(|(file, _)| file.display().to_string()).collect()
}

/// benches/README.md and the changelog of what is not released yet are for developers.
fn of_the_manual() -> Files {
    let mut files = documents();
    files.retain(|path, _| !path.starts_with("benches"));
    files
}

#[test]
fn every_link_leads_somewhere() {
    assert_eq!(broken_links(&documents()), [""; 0]);
    let mut code = Files::new();
    for dir in NAMES_DOCUMENTS {
        code.extend(files_below(dir, &["rs", "yaml", "sh", "py", "sql", ""]));
    }
    // What this file plants for itself.
    code.retain(|path, _| path != Path::new("tests/it/documents.rs"));
    assert!(code.len() > 200);
    assert_eq!(unknown_documents(&code, &documents()), [""; 0]);
}

#[test]
fn the_book_has_every_page() {
    assert_eq!(not_in_the_book(&documents()), [""; 0]);
}

#[test]
fn readme_is_short_and_lines_fit_a_screen() {
    let readme = read("README.md").len();
    assert!(readme < README, "README.md has {readme} bytes");
    assert_eq!(unclosed(&documents()), [""; 0]);
    assert_eq!(long_lines(&of_the_manual()), [""; 0]);
}

#[test]
fn each_rule_of_texts_fails_on_a_planted_one() {
    let files = |texts: &[(&str, &str)]| -> Files {
        let texts = texts.iter();
        texts
            .map(|(path, text)| (PathBuf::from(path), (*text).to_owned()))
            .collect()
    };
    let planted = files(&[
        ("docs/SUMMARY.md", "- [A](a.md)\n- [Gone](gone.md)\n"),
        (
            "docs/a.md",
            "# Who *is* `it`?\n\n[good](#who-is-it) [bad](#who) [none](nowhere.md)\n\
             ```sh\n[not a link](x.md)\n```\n`[nor](y.md)`\n",
        ),
        (
            "docs/b.md",
            "[good](a.md#who-is-it) [bad](a.md#what)\n```\n",
        ),
        (
            "docs/c.md",
            &format!("{}\n| {} |\n", "long ".repeat(21), "cell ".repeat(30)),
        ),
    ]);
    assert_eq!(
        broken_links(&planted),
        [
            "docs/SUMMARY.md: gone.md",
            "docs/a.md: #who",
            "docs/a.md: nowhere.md",
            "docs/b.md: a.md#what"
        ]
    );
    assert_eq!(
        not_in_the_book(&planted),
        ["docs/b.md", "docs/c.md", "docs/gone.md"]
    );
    assert_eq!(long_lines(&planted), ["docs/c.md:1"]);
    assert_eq!(unclosed(&planted), ["docs/b.md"]);
    let code = files(&[("src/x.rs", "// docs/a.md, docs/d.md.\n// docs/**/*.md")]);
    assert_eq!(unknown_documents(&code, &planted), ["src/x.rs: docs/d.md."]);
    let fences = fenced("- x:\n\n  ```yaml\n  a: 1\n    b: 2\n  ```\n");
    assert_eq!(fences[0].info, "yaml");
    assert_eq!(fences[0].text, "a: 1\n  b: 2\n");
}
