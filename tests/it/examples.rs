//! What the config directory shows is true.

use std::path::Path;

#[test]
fn every_config_file_loads() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut files = 0;
    for entry in std::fs::read_dir(&dir).expect("config/").flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        files += 1;
        if let Err(mistakes) = pgtenant::config::load(&path) {
            let list: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
            panic!("{}:\n{}", path.display(), list.join("\n"));
        }
    }
    assert!(files >= 2, "{files} files in {}", dir.display());
}
