//! Every config in the documents loads: a whole one as it is, and a part in the place of what
//! `config/pgtenant.yaml` says there.

use std::path::Path;

use pgtenant::config;
use serde_yaml::{Mapping, Value};

use super::markdown::{Fence, fenced};
use super::{documents, read};

/// YAML of other programs: only its form can be looked at.
const OF_OTHERS: [&str; 1] = ["yaml kubernetes"];
/// Sections whose entries are by name. An entry of a part that says this is whole.
const BY_NAME: [(&str, &[&str]); 4] = [
    ("servers", &["host"]),
    ("placements", &["tier"]),
    ("tenants", &["placement", "placements"]),
    ("applications", &["users"]),
];

/// The YAML of a text: blocks, and what `cat > NAME.yaml <<'EOF'` writes.
fn yaml(text: &str) -> Vec<Fence> {
    let mut found = Vec::new();
    for fence in fenced(text) {
        if fence.info.starts_with("yaml") {
            found.push(fence);
            continue;
        }
        for written in fence.text.split(".yaml <<'EOF'\n").skip(1) {
            let text = written.split("\nEOF\n").next().unwrap_or_default();
            found.push(Fence {
                info: "yaml".to_owned(),
                text: format!("{text}\n"),
                line: fence.line,
            });
        }
    }
    found
}

/// A directory with the files that examples name.
fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let secrets = dir.path().join("secrets");
    std::fs::create_dir(&secrets).expect("a directory");
    for tenant in ["stark", "nakatomi"] {
        std::fs::write(secrets.join(tenant), "secret").expect("a file");
    }
    std::fs::write(dir.path().join("seal.key"), "0".repeat(64)).expect("a file");
    dir
}

fn mistakes(yaml: &str, dir: &Path) -> Vec<String> {
    match config::load_text(yaml, dir, &|_| None) {
        Ok(_) => Vec::new(),
        Err(mistakes) => mistakes.iter().map(ToString::to_string).collect(),
    }
}

/// Puts `part` into `whole`: mappings key by key, all else in the place of what was there.
fn put(whole: &mut Value, part: Value) {
    match (whole, part) {
        (Value::Mapping(whole), Value::Mapping(part)) => {
            for (key, value) in part {
                put(whole.entry(key).or_insert(Value::Null), value);
            }
        }
        (whole, part) => *whole = part,
    }
}

/// `base` with the entries of `part` taken out that the part says anew.
fn without_what_is_whole(mut base: Mapping, part: &Mapping) -> Mapping {
    for (section, marks) in BY_NAME {
        let entries = part.get(section).and_then(Value::as_mapping);
        for (name, entry) in entries.into_iter().flatten() {
            let is_whole = marks.iter().any(|mark| entry.get(*mark).is_some());
            if let Some(Value::Mapping(section)) = base.get_mut(section)
                && is_whole
            {
                section.remove(name);
            }
        }
    }
    base
}

/// What is wrong with a block.
fn judge(block: &Fence, dir: &Path) -> Vec<String> {
    if OF_OTHERS.contains(&&*block.info) {
        use serde::Deserialize;
        // Behind an error the reader would find the same one for ever.
        let mut parts = serde_yaml::Deserializer::from_str(&block.text);
        let error = parts.find_map(|part| Value::deserialize(part).err());
        return error.map(|error| error.to_string()).into_iter().collect();
    }
    if block.info != "yaml" {
        return vec![format!("{:?} is no kind of block", block.info)];
    }
    let part: Value = match serde_yaml::from_str(&block.text) {
        Ok(part) => part,
        Err(error) => return vec![error.to_string()],
    };
    let Value::Mapping(part) = part else {
        return vec!["it does not begin at the top of a config".to_owned()];
    };
    let is_whole = ["servers", "placements", "tenants"]
        .iter()
        .all(|section| part.contains_key(*section));
    if is_whole {
        return mistakes(&block.text, dir);
    }
    let base = serde_yaml::from_str(&read("config/pgtenant.yaml")).expect("a config");
    let mut whole = Value::Mapping(without_what_is_whole(base, &part));
    put(&mut whole, Value::Mapping(part));
    mistakes(&serde_yaml::to_string(&whole).expect("YAML"), dir)
}

fn wrong_configs(name: &str, text: &str) -> Vec<String> {
    let dir = directory();
    let blocks = yaml(text).into_iter();
    let wrong = blocks.flat_map(|block| {
        let found = judge(&block, dir.path());
        found
            .into_iter()
            .map(move |mistake| format!("{name}:{}: {mistake}", block.line))
    });
    wrong.collect()
}

#[test]
fn every_config_in_the_documents_loads() {
    let mut wrong = Vec::new();
    let mut blocks = 0;
    for (path, text) in documents() {
        blocks += yaml(&text).len();
        wrong.extend(wrong_configs(&path.display().to_string(), &text));
    }
    assert!(blocks > 15, "{blocks} blocks");
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn a_config_with_a_mistake_is_found() {
    let whole = "```sh\ncat > a.yaml <<'EOF'\nservers: {}\nplacements: {}\ntenants: {}\nworkers: x\nEOF\n```\n";
    for (text, found) in [
        (whole, "x:1: line 4: workers: must be a whole number"),
        (
            "```yaml\nlimits: { client: 5 }\n```\n",
            "unknown setting, did you mean `clients`?",
        ),
        (
            "```yaml\nplacements: { free: { pool: { size: many } } }\n```\n",
            "must be a whole number",
        ),
        (
            "```yaml\ntenants: { a: { placement: nowhere, users: { b: { password: c } } } }\n```\n",
            "tenants.a.placement",
        ),
        ("```yaml\n- a\n```\n", "top of a config"),
        ("```yaml compose\na: 1\n```\n", "no kind of block"),
        ("```yaml kubernetes\na: [\n```\n", "x:1"),
    ] {
        let wrong = wrong_configs("x", text);
        assert!(
            wrong.iter().any(|wrong| wrong.contains(found)),
            "{text}: {wrong:?}"
        );
    }
    let good = "```yaml\nlimits: { clients: 5 }\n```\n```yaml kubernetes\na: 1\n---\nb: 2\n```\n";
    assert_eq!(wrong_configs("x", good), [""; 0]);
}
