//! The layers of the code: a module uses only its own layer and those below it.

use std::collections::{BTreeMap, BTreeSet};

use crate::tidy::{code, is_test, module, sources};

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
    &["config", "net", "protocol", "findings", "catalog"],
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

/// Which top-level module uses which, with a place where it does. Code of tests does not count.
fn uses() -> BTreeMap<(String, String), String> {
    let mut uses = BTreeMap::new();
    for (name, text) in sources(&["src"]) {
        if is_test(&name) || name == "src/lib.rs" || name == "src/main.rs" {
            continue;
        }
        let module = module(&name).swap_remove(0);
        for (number, line) in code(&text).lines().enumerate() {
            for used in line.split("crate::").skip(1) {
                let used: String = used
                    .chars()
                    .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                    .collect();
                if used != module && !used.is_empty() {
                    uses.entry((module.clone(), used))
                        .or_insert(format!("{name}:{}", number + 1));
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
