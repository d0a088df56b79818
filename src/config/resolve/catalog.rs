//! The catalog of tenants: where it is, and who reads and changes it.

use std::fs::File;
use std::io::Read;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;

use super::{Resolver, name_mistake};
use crate::config::file::{CatalogCopyFile, CatalogFile, LoginFile, ServerFile};
use crate::config::outline::At;
use crate::config::{Catalog, CatalogCopy, CopyKey, Login};
use crate::id::ServerName;

/// More often is a load on the catalog; with longer waits a change that no notification tells of is
/// late.
const POLL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);

/// Bytes of the key of the copy's MAC: at least those of SHA-256, and at most what cannot be a file
/// named by mistake.
const COPY_KEY: RangeInclusive<usize> = 32..=4096;

impl Resolver<'_, '_> {
    pub(super) fn catalog(
        &mut self,
        file: &CatalogFile,
        servers: &IndexMap<String, Option<ServerFile>>,
    ) -> Option<Catalog> {
        let at = At::ROOT.key("catalog");
        let server = self.catalog_server(&at, file.server.as_deref(), servers);
        let database = self.required(&at, "database", file.database.clone());
        if let Some(mistake) = database.as_deref().and_then(name_mistake) {
            self.mistakes.add(&at.key("database"), mistake);
        }
        let login = self.required(&at, "login", file.login.as_ref());
        let login = login.and_then(|login| self.catalog_login(&at.key("login"), login));
        let writer = file.writer.as_ref();
        let writer = writer.and_then(|writer| self.catalog_login(&at.key("writer"), writer));
        if !POLL.contains(&file.poll.0) {
            self.mistakes
                .add(&at.key("poll"), "must be from 100ms to 1m");
        }
        let copy = file.copy.as_ref();
        let copy = copy.and_then(|copy| self.catalog_copy(&at.key("copy"), copy));
        Some(Catalog {
            server: server?,
            database: database?,
            login: Arc::new(login?),
            writer: writer.map(Arc::new),
            poll: file.poll.0,
            copy,
        })
    }

    fn catalog_server(
        &mut self,
        at: &At<'_>,
        name: Option<&str>,
        servers: &IndexMap<String, Option<ServerFile>>,
    ) -> Option<ServerName> {
        let name = self.required(at, "server", name)?;
        if !servers.contains_key(name) {
            let message = format_args!("there is no server {name:?}");
            self.mistakes.add(&at.key("server"), message);
            return None;
        }
        ServerName::new(name).ok()
    }

    /// Unlike that of a placement, no template.
    fn catalog_login(&mut self, at: &At<'_>, file: &LoginFile) -> Option<Login> {
        let user = self.required(at, "user", file.user.clone());
        if let Some(mistake) = user.as_deref().and_then(name_mistake) {
            self.mistakes.add(&at.key("user"), mistake);
        }
        let password = match (&file.password, &file.password_file) {
            (None, None) => None,
            (Some(password), None) => {
                self.password(&at.key("password"), password);
                Some(password.clone())
            }
            (None, Some(file)) => match self.read_password(file) {
                Ok(password) => Some(password),
                Err(error) => {
                    self.mistakes.add(&at.key("password_file"), error);
                    return None;
                }
            },
            (Some(_), Some(_)) => {
                self.mistakes
                    .add(at, "needs only one of password and password_file");
                return None;
            }
        };
        Some(Login {
            user: user?,
            password,
        })
    }

    fn catalog_copy(&mut self, at: &At<'_>, file: &CatalogCopyFile) -> Option<CatalogCopy> {
        let copy = self.required(at, "file", file.file.as_deref());
        if copy == Some("") {
            self.mistakes.add(&at.key("file"), "must not be empty");
        }
        let key = self.required(at, "key_file", file.key_file.as_deref());
        let key = key.and_then(|key| self.copy_key(&at.key("key_file"), key));
        Some(CatalogCopy {
            file: self.path(copy?),
            key: key?,
            max_age: file.max_age.0,
        })
    }

    fn copy_key(&mut self, at: &At<'_>, file: &str) -> Option<CopyKey> {
        let path = self.path(file);
        let mut bytes = Vec::new();
        // One byte more than is good tells a file that is too long.
        let most = *COPY_KEY.end() as u64 + 1;
        let read = File::open(&path).and_then(|file| file.take(most).read_to_end(&mut bytes));
        let mistake = match read {
            Err(error) => error.to_string(),
            Ok(length) if !COPY_KEY.contains(&length) => format!(
                "must hold from {} to {} bytes (`openssl rand -hex 32` makes a good key)",
                COPY_KEY.start(),
                COPY_KEY.end()
            ),
            Ok(_) => return Some(CopyKey::new(&bytes)),
        };
        self.mistakes
            .add(at, format_args!("{}: {mistake}", path.display()));
        None
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::{Catalog, Config, load_text};

    use super::*;

    const REST: &str = "\
servers: { main: { host: 10.0.0.1, max_connections: 10 } }
placements: {}
tenants: {}
";
    const LEAST: &str = "server: main, database: pgtenant, login: { user: reader }";

    fn load(catalog: &str, dir: &Path) -> Result<Config, Vec<String>> {
        let text = format!("catalog: {{ {catalog} }}\n{REST}");
        let loaded = load_text(&text, dir, &|_| None);
        loaded.map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
    }

    fn catalog(settings: &str, dir: &Path) -> Catalog {
        let config = load(settings, dir).unwrap();
        Catalog::clone(config.catalog.as_ref().unwrap())
    }

    fn dir_with_files() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in [
            ("key", &[255; 32][..]),
            ("short", &[255; 31]),
            ("long", &[255; 4097]),
            ("password", b"from a file\n"),
        ] {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        dir
    }

    #[test]
    fn a_catalog_has_the_documented_defaults_and_what_it_is_given() {
        let dir = dir_with_files();
        let least = catalog(LEAST, dir.path());
        assert_eq!(least.poll, Duration::from_secs(2));
        assert_eq!((&least.writer, &least.copy), (&None, &None));
        let text = format!(
            "{LEAST}, poll: 500ms, writer: {{ user: writer, password_file: password }}, \
             copy: {{ file: copy, key_file: key }}"
        );
        let full = catalog(&text, dir.path());
        assert_eq!(full.server.as_str(), "main");
        assert_eq!(full.database, "pgtenant");
        assert_eq!(full.poll, Duration::from_millis(500));
        let writer = full.writer.unwrap();
        let password = writer.password.as_ref().unwrap();
        assert_eq!(
            (&*writer.user, password.expose()),
            ("writer", "from a file")
        );
        let copy = full.copy.unwrap();
        assert_eq!(copy.file, dir.path().join("copy"));
        assert_eq!(copy.key.expose(), [255; 32]);
        assert_eq!(copy.max_age, Duration::from_secs(7 * 24 * 60 * 60));
        assert_eq!(format!("{:?}", copy.key), "***");
        let without = load_text(REST, dir.path(), &|_| None).unwrap();
        assert_eq!(without.catalog, None);
    }

    #[test]
    fn each_mistake_about_a_catalog_is_found_where_it_is() {
        let dir = dir_with_files();
        let long = "x".repeat(64);
        let with = |more: &str| format!("{LEAST}, {more}");
        let instead = |from: &str, to: &str| LEAST.replacen(from, to, 1);
        for (settings, path, message) in [
            (instead("server: main, ", ""), "server", "is required"),
            (
                instead("main", "other"),
                "server",
                "there is no server \"other\"",
            ),
            (
                instead("database: pgtenant, ", ""),
                "database",
                "is required",
            ),
            (instead("pgtenant", "''"), "database", "must not be empty"),
            (
                instead("pgtenant", &long),
                "database",
                "must be at most 63 bytes long",
            ),
            (
                instead(", login: { user: reader }", ""),
                "login",
                "is required",
            ),
            (instead("user: reader", ""), "login.user", "is required"),
            (instead("reader", "''"), "login.user", "must not be empty"),
            (with("writer: {}"), "writer.user", "is required"),
            (
                with("writer: { user: w, password: '' }"),
                "writer.password",
                "must not be empty",
            ),
            (
                with("writer: { user: w, password: x, password_file: password }"),
                "writer",
                "needs only one of password and password_file",
            ),
            (
                with("writer: { user: w, password_file: none }"),
                "writer.password_file",
                "No such file",
            ),
            (with("poll: 99ms"), "poll", "must be from 100ms to 1m"),
            (with("poll: 61s"), "poll", "must be from 100ms to 1m"),
            (with("copy: { file: copy }"), "copy.key_file", "is required"),
            (with("copy: { key_file: key }"), "copy.file", "is required"),
            (
                with("copy: { file: '', key_file: key }"),
                "copy.file",
                "must not be empty",
            ),
            (
                with("copy: { file: copy, key_file: short }"),
                "copy.key_file",
                "from 32 to 4096 bytes",
            ),
            (
                with("copy: { file: copy, key_file: long }"),
                "copy.key_file",
                "from 32 to 4096 bytes",
            ),
            (
                with("copy: { file: copy, key_file: none }"),
                "copy.key_file",
                "No such file",
            ),
            (
                with("copy: { file: copy, key_file: key, max_age: 0d }"),
                "copy.max_age",
                "must be",
            ),
            (with("reader: x"), "reader", "unknown setting"),
            (
                with("copy: { fil: copy }"),
                "copy.fil",
                "did you mean `file`?",
            ),
        ] {
            let mistakes = load(&settings, dir.path()).unwrap_err();
            let expected = format!("line 1: catalog.{path}: ");
            let found = mistakes
                .iter()
                .any(|mistake| mistake.starts_with(&expected) && mistake.contains(message));
            assert!(found, "{settings}: {mistakes:?}");
        }
    }

    #[test]
    fn the_catalog_that_the_reference_file_has_as_a_comment_works() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(root.join("config/pgtenant.yaml")).unwrap();
        let from = text.find("# catalog:\n").unwrap();
        let (before, rest) = text.split_at(from);
        let (section, after) = rest.split_once("\n\n").unwrap();
        let section: Vec<_> = section
            .lines()
            .map(|line| line.strip_prefix("# ").unwrap())
            .collect();
        let text = format!("{before}{}\n\n{after}", section.join("\n"));
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("catalog.key"), [1; 32]).unwrap();
        let config = load_text(&text, dir.path(), &|_| None).unwrap();
        let catalog = config.catalog.unwrap();
        assert!(catalog.writer.is_some() && catalog.copy.is_some());
        assert_eq!(catalog.poll, CatalogFile::default().poll.0);
        let max_age = catalog.copy.as_ref().map(|copy| copy.max_age);
        assert_eq!(max_age, Some(CatalogCopyFile::default().max_age.0));
    }
}
