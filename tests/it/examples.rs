//! What the config directory shows is true.

use std::path::Path;

/// The text behind `start` in a line of a file of this project, up to `end`.
fn named(file: &str, start: &str, end: char) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = std::fs::read_to_string(&path).expect(file);
    let mut found = text.lines().filter_map(|line| line.strip_prefix(start));
    let (Some(rest), None) = (found.next(), found.next()) else {
        panic!("{file}: there is not one line that begins with {start}");
    };
    rest.split(end).next().unwrap_or(rest).to_owned()
}

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

#[test]
fn the_compiler_and_the_version_are_the_same_wherever_they_are_named() {
    let toolchain = named("rust-toolchain.toml", "channel = \"", '"');
    let numbers = |version: &str| -> Vec<u32> {
        let parts = version.split('.').map(str::parse);
        parts.collect::<Result<_, _>>().expect("numbers")
    };
    assert_eq!(numbers(&toolchain).len(), 3, "{toolchain} is not exact");
    assert_eq!(named("Dockerfile", "ARG RUST=", '\n'), toolchain);
    let oldest = named("Cargo.toml", "rust-version = \"", '"');
    assert!(
        numbers(&oldest) <= numbers(&toolchain),
        "{oldest} {toolchain}"
    );
    let install =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/install"));
    assert!(
        install
            .expect("scripts/install")
            .contains("rust-toolchain.toml")
    );
    let version = named("Cargo.toml", "version = \"", '"');
    assert_eq!(named("Dockerfile", "ARG VERSION=", '\n'), version);
}

/// No tag that moves, no digest that nobody here has pulled, and nothing that makes a volume of its
/// own with each container.
#[test]
fn the_image_is_made_of_exact_versions() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("Dockerfile");
    let text = std::fs::read_to_string(path).expect("Dockerfile");
    let lines = |start: &'static str| text.lines().filter(move |line| line.starts_with(start));
    let images: Vec<_> = lines("FROM ").collect();
    assert_eq!(images.len(), 2);
    for image in images {
        assert!(image.contains("_DIGEST}"), "{image}");
    }
    for digest in lines("ARG ").filter(|line| line.contains("_DIGEST")) {
        assert!(digest.ends_with('='), "{digest}");
    }
    let debian = named("Dockerfile", "ARG DEBIAN=", '\n');
    assert!(debian.starts_with("12.") && debian.len() > 3, "{debian}");
    assert_eq!(lines("VOLUME").count(), 0);
}
