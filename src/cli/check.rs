//! `pgtenant check`: what a config file says, or all that is wrong with it.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use crate::config::{self, Config, Mistake, PoolKey, ServerAddress, SslMode, descriptors};
use crate::id::ServerName;

/// `EX_CONFIG`: the configuration is not valid.
pub const EX_CONFIG: u8 = 78;

/// Loads the file at `path`. A summary goes to `out`, warnings go to `err`, and the result is 0, or
/// each mistake goes to `err` as `path:line: setting: message`, where editors find it, and the
/// result is [`EX_CONFIG`].
///
/// # Errors
/// Those of `out` and `err`.
pub fn run(path: &Path, out: &mut impl Write, err: &mut impl Write) -> io::Result<u8> {
    match load(path) {
        Ok(config) => {
            summary(&config, out)?;
            for warning in &config.warnings {
                place(path, warning, err)?;
                writeln!(err, " warning: {}", warning.message)?;
            }
            Ok(0)
        }
        Err(mistakes) => {
            report(path, &mistakes, err)?;
            Ok(EX_CONFIG)
        }
    }
}

/// The config at `path`, if this process could serve it.
fn load(path: &Path) -> Result<Config, Vec<Mistake>> {
    let config = config::load(path)?;
    match descriptors::too_few(&config) {
        Some(mistake) => Err(vec![mistake]),
        None => Ok(config),
    }
}

/// The config at `path` for a command that needs one; else its mistakes go to standard error and
/// the exit code comes back.
///
/// # Errors
/// [`EX_CONFIG`].
pub fn load_or_report(path: &Path) -> Result<Config, ExitCode> {
    config::load(path).map_err(|mistakes| fail(path, &mistakes))
}

/// The same for the command that serves it.
///
/// # Errors
/// [`EX_CONFIG`].
pub fn load_to_serve(path: &Path) -> Result<Config, ExitCode> {
    load(path).map_err(|mistakes| fail(path, &mistakes))
}

fn fail(path: &Path, mistakes: &[Mistake]) -> ExitCode {
    // Nowhere to report that standard error is gone.
    let _ = report(path, mistakes, &mut io::stderr());
    ExitCode::from(EX_CONFIG)
}

/// Writes each mistake as `path:line: setting: message`, and how many there are.
///
/// # Errors
/// Those of `err`.
pub fn report(path: &Path, mistakes: &[Mistake], err: &mut impl Write) -> io::Result<()> {
    for mistake in mistakes {
        place(path, mistake, err)?;
        writeln!(err, " {}", mistake.message)?;
    }
    let number = mistakes.len();
    let plural = if number == 1 { "" } else { "s" };
    writeln!(err, "{number} mistake{plural}")
}

/// `path:line: setting:`.
fn place(path: &Path, mistake: &Mistake, err: &mut impl Write) -> io::Result<()> {
    write!(err, "{}:", path.display())?;
    if let Some(line) = mistake.line {
        write!(err, "{line}:")?;
    }
    if !mistake.path.is_empty() {
        write!(err, " {}:", mistake.path)?;
    }
    Ok(())
}

fn summary(config: &Config, out: &mut impl Write) -> io::Result<()> {
    let pools: HashSet<&PoolKey> = config.logins().map(|t| &*t.route.pool).collect();
    let mut pools_of: BTreeMap<&ServerName, usize> = BTreeMap::new();
    for pool in &pools {
        *pools_of.entry(&pool.server).or_default() += 1;
    }

    let mut table = Table::new(&["server", "address", "sslmode", "max_connections", "pools"]);
    for (name, server) in &config.servers {
        let sslmode = match server.address {
            ServerAddress::Tcp { .. } => sslmode(server.tls.mode),
            ServerAddress::Unix { .. } => "-",
        };
        table.row([
            name.to_string(),
            server.address.to_string(),
            sslmode.to_owned(),
            server.max_connections.to_string(),
            pools_of.get(name).copied().unwrap_or_default().to_string(),
        ]);
    }
    table.print(out)?;
    writeln!(out)?;

    let mut table = Table::new(&[
        "placement",
        "tier",
        "servers",
        "pooling",
        "posture",
        "tenants",
    ]);
    for (name, placement) in &config.placements {
        let servers: Vec<&str> = placement.servers.iter().map(ServerName::as_str).collect();
        table.row([
            name.to_string(),
            placement.tier.to_string(),
            servers.join(" "),
            placement.pooling.to_string(),
            placement.posture.to_string(),
            placement.tenants.to_string(),
        ]);
    }
    table.print(out)?;

    let users: usize = config
        .tenants
        .values()
        .map(|tenant| tenant.users.len())
        .sum();
    writeln!(
        out,
        "\n{} tenants, {users} users, {} pools",
        config.tenants.len(),
        pools.len()
    )
}

/// As in the file.
fn sslmode(mode: SslMode) -> &'static str {
    match mode {
        SslMode::Disable => "disable",
        SslMode::Prefer => "prefer",
        SslMode::Require => "require",
        SslMode::VerifyCa => "verify-ca",
        SslMode::VerifyFull => "verify-full",
    }
}

/// Left-aligned columns, as wide as they need to be.
struct Table<const N: usize>(Vec<[String; N]>);

impl<const N: usize> Table<N> {
    fn new(header: &[&str; N]) -> Self {
        Self(vec![header.map(str::to_owned)])
    }

    fn row(&mut self, row: [String; N]) {
        self.0.push(row);
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let mut widths = [0; N];
        for row in &self.0 {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        for row in &self.0 {
            let cells = row
                .iter()
                .zip(widths)
                .map(|(cell, width)| format!("{cell:width$}"));
            writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &Path) -> (u8, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = run(path, &mut out, &mut err).unwrap();
        (
            code,
            String::from_utf8(out).unwrap(),
            String::from_utf8(err).unwrap(),
        )
    }

    #[test]
    fn a_valid_file_is_summed_up_in_aligned_tables() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/minimal.yaml");
        let (code, out, err) = check(&path);
        assert_eq!((code, &*err), (0, ""));
        assert_eq!(
            out,
            "\
server  address         sslmode  max_connections  pools
local   127.0.0.1:5432  prefer   50               1

placement  tier  servers  pooling      posture  tenants
shared     pool  local    transaction  guarded  2

2 tenants, 2 users, 1 pools
"
        );
    }

    #[test]
    fn who_trusts_tenants_is_warned() {
        let minimal = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/minimal.yaml");
        let text = std::fs::read_to_string(minimal).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plain.yaml");
        std::fs::write(&path, text.replace("context:", "posture: plain, context:")).unwrap();
        let (code, _, err) = check(&path);
        assert_eq!(code, 0);
        let begins = format!(
            "{}:5: placements.shared.posture: warning: plain trusts",
            path.display()
        );
        assert!(
            err.starts_with(&begins) && err.lines().count() == 1,
            "{err}"
        );
    }

    #[test]
    fn every_mistake_is_a_line_that_an_editor_can_jump_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("broken.yaml");
        std::fs::write(
            &path,
            "worker: 2\nservers: {}\nplacements: {}\nworkers: 0\n",
        )
        .unwrap();
        let (code, out, err) = check(&path);
        assert_eq!((code, &*out), (EX_CONFIG, ""));
        let at = path.display();
        assert_eq!(
            err,
            format!(
                "{at}: tenants: is required\n\
                 {at}:1: worker: unknown setting, did you mean `workers`?\n\
                 {at}:4: workers: must be at least 1\n\
                 3 mistakes\n"
            )
        );
    }

    #[test]
    fn a_missing_file_is_one_mistake() {
        let (code, _, err) = check(Path::new("/nonexistent/pgtenant.yaml"));
        assert_eq!(code, EX_CONFIG);
        assert!(
            err.starts_with("/nonexistent/pgtenant.yaml: cannot read: "),
            "{err}"
        );
    }
}
