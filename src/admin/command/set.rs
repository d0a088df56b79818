//! `SET`: the few settings that can be changed while the proxy runs. They hold until the next
//! reload, which reads the file.

use std::time::Duration;

use crate::admin::command::Command;
use crate::app::App;
use crate::config::{self, Config, descriptors};
use crate::error::{Error, Kind, Result};

/// A setting: its key in the config file, PgBouncer's name for it, and what is changed.
struct Setting {
    key: &'static str,
    pgbouncer: &'static str,
    kind: SettingKind,
}

enum SettingKind {
    Period(fn(&mut Config) -> &mut Duration),
    Count(fn(&mut Config) -> &mut usize),
    /// It takes the config file.
    InFile,
}

use SettingKind::{Count, InFile, Period};

const fn setting(key: &'static str, pgbouncer: &'static str, kind: SettingKind) -> Setting {
    Setting {
        key,
        pgbouncer,
        kind,
    }
}

/// What PgBouncer has under another name is found by both.
static SETTINGS: [Setting; 30] = [
    setting("limits.logins", "", Count(|c| &mut c.limits.logins)),
    setting("limits.console", "", Count(|c| &mut c.limits.console)),
    setting(
        "limits.clients",
        "max_client_conn",
        Count(|c| &mut c.limits.clients),
    ),
    setting(
        "timeouts.checkout",
        "query_wait_timeout",
        Period(|c| &mut c.timeouts.checkout),
    ),
    setting(
        "timeouts.login",
        "client_login_timeout",
        Period(|c| &mut c.timeouts.login),
    ),
    setting(
        "timeouts.connect",
        "server_connect_timeout",
        Period(|c| &mut c.timeouts.connect),
    ),
    setting("timeouts.revoked", "", Period(|c| &mut c.timeouts.revoked)),
    setting("timeouts.paused", "", Period(|c| &mut c.timeouts.paused)),
    setting(
        "timeouts.shutdown",
        "",
        Period(|c| &mut c.timeouts.shutdown),
    ),
    setting(
        "timeouts.server_idle",
        "server_idle_timeout",
        Period(|c| &mut c.timeouts.server_idle),
    ),
    setting(
        "timeouts.server_lifetime",
        "server_lifetime",
        Period(|c| &mut c.timeouts.server_lifetime),
    ),
    setting(
        "timeouts.dns_max_ttl",
        "dns_max_ttl",
        Period(|c| &mut c.timeouts.dns_max_ttl),
    ),
    setting(
        "metrics.period",
        "stats_period",
        Period(|c| &mut c.stats_period),
    ),
    setting("timeouts.statement", "query_timeout", InFile),
    setting("timeouts.transaction", "transaction_timeout", InFile),
    setting(
        "timeouts.idle_in_transaction",
        "idle_transaction_timeout",
        InFile,
    ),
    setting("timeouts.idle_session", "client_idle_timeout", InFile),
    setting("placements.*.pool.size", "default_pool_size", InFile),
    setting("placements.*.pool.reserve", "reserve_pool_size", InFile),
    setting("placements.*.pooling", "pool_mode", InFile),
    setting(
        "placements.*.limits.clients",
        "max_db_client_connections",
        InFile,
    ),
    setting("servers.*.max_connections", "max_db_connections", InFile),
    setting("servers.*.sslmode", "server_tls_sslmode", InFile),
    setting("listen", "listen_addr", InFile),
    setting("listen", "listen_port", InFile),
    setting("listen[0].tls", "client_tls_sslmode", InFile),
    setting("admin.users", "admin_users", InFile),
    setting("admin.stats_users", "stats_users", InFile),
    setting("log.filter", "verbose", InFile),
    setting("workers", "", InFile),
];

/// Parameters of PostgreSQL that drivers set unasked.
const OF_DRIVERS: [&str; 18] = [
    "application_name",
    "bytea_output",
    "client_encoding",
    "client_min_messages",
    "datestyle",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "intervalstyle",
    "lock_timeout",
    "names",
    "search_path",
    "standard_conforming_strings",
    "statement_timeout",
    "synchronous_commit",
    "timezone",
    "xmloption",
];

/// Longest time and greatest number that can be set.
const MAX_PERIOD: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const MAX_COUNT: usize = 10_000_000;

/// Reads what follows SET. None: it is no SET.
pub fn parse(text: &str) -> Option<Command> {
    let lower = text.trim().to_ascii_lowercase();
    let is_of_drivers = |start: &str| lower.starts_with(start);
    if lower.contains(';') {
        return None;
    }
    if is_of_drivers("session characteristics ") || is_of_drivers("time zone ") {
        return Some(Command::SetNothing);
    }
    let text = text.trim();
    let end = text.find(|c: char| c.is_whitespace() || c == '=')?;
    let (key, rest) = text.split_at(end);
    if key.eq_ignore_ascii_case("session") || key.eq_ignore_ascii_case("local") {
        return parse(rest);
    }
    if key.eq_ignore_ascii_case("names") {
        return Some(Command::SetNothing);
    }
    let rest = rest.trim_start();
    let value = match rest.strip_prefix('=') {
        Some(value) => value,
        None => {
            let (to, value) = rest.split_once(char::is_whitespace)?;
            to.eq_ignore_ascii_case("to").then_some(value)?
        }
    };
    let key = key.trim_matches('"').to_owned();
    if OF_DRIVERS.iter().any(|name| key.eq_ignore_ascii_case(name)) {
        return Some(Command::SetNothing);
    }
    let value = unquoted(value.trim())?;
    (!key.is_empty()).then_some(Command::Set { key, value })
}

fn unquoted(value: &str) -> Option<String> {
    if value.is_empty() {
        return None;
    }
    for quote in ['\'', '"'] {
        if let Some(quoted) = value.strip_prefix(quote) {
            let inner = quoted.strip_suffix(quote)?;
            let doubled: String = [quote; 2].iter().collect();
            return Some(inner.replace(&doubled, &quote.to_string()));
        }
    }
    Some(value.to_owned())
}

fn find(key: &str) -> Option<&'static Setting> {
    let is_it = |name: &str| !name.is_empty() && name.eq_ignore_ascii_case(key);
    SETTINGS
        .iter()
        .find(|setting| is_it(setting.key) || is_it(setting.pgbouncer))
}

/// PgBouncer's names for settings, with the keys that they have here.
pub fn pgbouncer_names() -> impl Iterator<Item = (&'static str, &'static str)> {
    let settings = SETTINGS.iter();
    let can_be_set = settings.filter(|setting| !matches!(setting.kind, InFile));
    can_be_set
        .filter(|setting| !setting.pgbouncer.is_empty())
        .map(|setting| (setting.pgbouncer, setting.key))
}

/// Puts `value` in force.
///
/// # Errors
/// 42704 for what is no setting, 55P02 for one that takes the config file, 22023 for a value that
/// it cannot have.
pub fn apply(app: &App, key: &str, value: &str) -> Result<()> {
    let unknown = || {
        let message = format!("unrecognized configuration parameter \"{key}\"");
        Error::new(Kind::UndefinedObject, message)
            .with_hint("SHOW CONFIG lists the settings; those that SET can change say \"yes\".")
    };
    let setting = find(key).ok_or_else(|| match is_key_of_file(app, key) {
        true => takes_the_file(key),
        false => unknown(),
    })?;
    app.change(|config| {
        match setting.kind {
            InFile => return Err(takes_the_file(setting.key)),
            Period(of) => *of(config) = period(setting.key, value)?,
            Count(of) => *of(config) = count(setting.key, value)?,
        }
        match descriptors::too_few(config) {
            Some(mistake) => Err(bad_value(setting.key, value, mistake.message)),
            None => Ok(()),
        }
    })?;
    tracing::info!(setting = setting.key, value, "set on the admin console");
    Ok(())
}

fn is_key_of_file(app: &App, key: &str) -> bool {
    super::show::setting_keys(&app.config()).any(|known| known.eq_ignore_ascii_case(key))
}

fn takes_the_file(key: &str) -> Error {
    // cant_change_runtime_param
    Error::new(
        Kind::FeatureNotSupported,
        format!("{key} cannot be set on the console"),
    )
    .with_sqlstate("55P02")
    .with_hint(format!("Change {key} in the config file, then RELOAD."))
}

fn bad_value(key: &str, value: &str, why: impl std::fmt::Display) -> Error {
    let message = format!("invalid value for {key}: \"{value}\"");
    Error::new(Kind::InvalidParameterValue, message).with_detail(format!("{key} {why}."))
}

/// As in the config file, or a number of seconds as in PgBouncer.
fn period(key: &str, value: &str) -> Result<Duration> {
    let seconds = value.parse::<f64>().ok();
    let read = match seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
        Some(period) => Ok(period),
        None => config::duration(value).map_err(|error| error.to_string()),
    };
    match read {
        Ok(period) if period.is_zero() || period > MAX_PERIOD => Err(bad_value(
            key,
            value,
            "must be more than 0, and a year at most",
        )),
        Ok(period) => Ok(period),
        Err(error) => Err(bad_value(key, value, error)),
    }
}

fn count(key: &str, value: &str) -> Result<usize> {
    match value.parse() {
        Ok(count) if (1..=MAX_COUNT).contains(&count) => Ok(count),
        _ => Err(bad_value(
            key,
            value,
            format_args!("must be a number from 1 to {MAX_COUNT}"),
        )),
    }
}
