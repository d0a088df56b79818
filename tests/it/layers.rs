//! The shape of the source, and that the example configs are true.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use pgtenant::config;

/// A module may use those of its own group and of the groups above it here; between modules there are
/// no cycles. Change this when the design changes, and lib.rs with it.
const LAYERS: &[&[&str]] = &[
    &["id", "error", "metrics"],
    &["config", "protocol"],
    &["auth"],
    &["tls", "tenant"],
    &["backend"],
    &["client"],
    &["app"],
    &["control"],
    &["frontend"],
    &["admin", "server"],
    &["cluster", "cli"],
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The top-level modules that a text names by `crate::`, in a `use` or in passing, each with its line.
fn uses(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let code = line.split("//").next().unwrap_or_default();
        for (at, _) in code.match_indices("crate::") {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
                continue;
            }
            let rest = &code[at + "crate::".len()..];
            if let Some(list) = rest.strip_prefix('{') {
                let names = list.split('}').next().unwrap_or_default().split(',');
                found.extend(names.map(|name| (number, name.trim().to_owned())));
                continue;
            }
            let name: String = rest
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            found.push((number, name));
        }
    }
    found
}

/// Uses between top-level modules: who, whom, where.
fn all_uses() -> Vec<(String, String, String)> {
    let src = root().join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    let mut all = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&src).expect("below src");
        let first = relative.components().next().expect("a name");
        let module = Path::new(first.as_os_str());
        let module = module.file_stem().expect("a name").to_string_lossy();
        // Tests may use anything: real servers, for one.
        let is_test = file.file_stem().is_some_and(|name| name == "tests");
        if module == "lib" || module == "main" || is_test {
            continue;
        }
        let text = std::fs::read_to_string(&file).expect("UTF-8");
        let code = text
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default();
        for (line, used) in uses(code) {
            let place = format!("src/{}:{line}", relative.display());
            if used != module {
                all.push((module.to_string(), used, place));
            }
        }
    }
    all
}

#[test]
fn modules_use_only_what_is_below_them() {
    let layer = |module: &str| LAYERS.iter().position(|layer| layer.contains(&module));
    let mut wrong = Vec::new();
    for (module, used, place) in all_uses() {
        match (layer(&module), layer(&used)) {
            (Some(own), Some(other)) if other <= own => {}
            (Some(_), Some(_)) => {
                wrong.push(format!("{place}: {module} uses {used}, which is above it"))
            }
            (None, _) => wrong.push(format!("{place}: {module} is in no layer")),
            (_, None) => wrong.push(format!("{place}: {used} is in no layer")),
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\nThe layers are in tests/it/layers.rs.",
        wrong.join("\n")
    );
}

#[test]
fn top_level_modules_have_no_cycles() {
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (module, used, _) in all_uses() {
        uses.entry(module).or_default().insert(used);
    }
    // Modules that use no other are taken away until none is left but those in cycles.
    while let Some(leaf) = uses
        .values()
        .flatten()
        .find(|used| !uses.contains_key(*used))
        .cloned()
    {
        for used in uses.values_mut() {
            used.remove(&leaf);
        }
        uses.retain(|_, used| !used.is_empty());
    }
    assert!(uses.is_empty(), "these use each other: {uses:?}");
}

#[test]
fn every_config_file_loads() {
    let dir = root().join("config");
    let mut files = 0;
    for entry in std::fs::read_dir(&dir).expect("config/").flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        files += 1;
        if let Err(mistakes) = config::load(&path) {
            let list: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
            panic!("{}:\n{}", path.display(), list.join("\n"));
        }
    }
    assert!(files >= 2, "{files} files in {}", dir.display());
}
