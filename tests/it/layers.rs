//! The layers of the code: a module uses only its own layer and those below it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// From the bottom up. Modules of one layer may use each other where there is no cycle.
const LAYERS: &[&[&str]] = &[
    &[
        "error",
        "id",
        "metrics",
        "places",
        "sql",
        "timer",
        "timestamp",
        "workers",
    ],
    &["config", "net", "protocol", "findings"],
    &["auth", "guard", "tenant"],
    &["tls"],
    &["backend"],
    &["audit", "client"],
    &["app"],
    &["frontend"],
    &["control", "admin"],
    &["server"],
    &["attacks"],
    &["cluster", "cli"],
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

pub fn rust_files(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Which top-level module uses which, with a place where it does. Code of tests does not count.
fn uses() -> BTreeMap<(String, String), String> {
    let mut files = Vec::new();
    rust_files(&source(), &mut files);
    let mut uses = BTreeMap::new();
    for file in files {
        let relative = file.strip_prefix(source()).unwrap().to_owned();
        let name = relative.to_string_lossy().into_owned();
        let is_test = relative
            .iter()
            .any(|part| part == "tests.rs" || part == "tests" || part == "testing.rs");
        if is_test || name == "lib.rs" || name == "main.rs" {
            continue;
        }
        let module = name.split(['/', '.']).next().unwrap().to_owned();
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for (number, line) in code.lines().enumerate() {
            for used in line.split("crate::").skip(1) {
                let used: String = used
                    .chars()
                    .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                    .collect();
                if used != module && !used.is_empty() && !line.trim_start().starts_with("//") {
                    uses.entry((module.clone(), used))
                        .or_insert(format!("src/{name}:{}", number + 1));
                }
            }
        }
    }
    uses
}

#[test]
fn a_module_uses_only_the_layers_below_it() {
    let layer = |module: &str| LAYERS.iter().position(|layer| layer.contains(&module));
    let mut broken = Vec::new();
    for ((module, used), place) in uses() {
        match (layer(&module), layer(&used)) {
            (Some(above), Some(below)) if below <= above => {}
            (None, _) => broken.push(format!("{place}: {module} is in no layer")),
            (_, None) => broken.push(format!("{place}: {used} is in no layer")),
            _ => broken.push(format!("{place}: {module} uses {used}, which is above it")),
        }
    }
    assert!(
        broken.is_empty(),
        "layers (tests/it/layers.rs):\n{}",
        broken.join("\n")
    );
}

#[test]
fn modules_do_not_use_each_other_in_circles() {
    let uses: BTreeSet<_> = uses().into_keys().collect();
    let circles: Vec<_> = uses
        .iter()
        .filter(|(a, b)| a < b && uses.contains(&(b.clone(), a.clone())))
        .collect();
    assert!(
        circles.is_empty(),
        "modules that use each other: {circles:?}"
    );
}
