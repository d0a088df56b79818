//! `SHOW CONFIG`.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::time::Duration;

use super::{Column, Row, View, row, text};
use crate::admin::command::set;
use crate::config::{self, Catalog, Config, LogFormat, Login, Rate, Rates, Server, SslMode};

pub const COLUMNS: &[Column] = &[
    text("key"),
    text("value"),
    text("default"),
    text("changeable"),
];

/// In place of a secret.
const HIDDEN: &str = "***";

/// The least that is a config: what it resolves to has every default.
const LEAST: &str = "servers: { s: { host: s, max_connections: 1 } }\n\
    placements: { p: { tier: database, server: s, database: d, login: { user: u } } }\n\
    tenants: {}\n";

/// Settings as they are named in the file. Tenants are in `SHOW TENANTS`; what is a template in the
/// file is shown there too, as it was filled in.
pub fn rows(view: &View) -> Vec<Row> {
    let defaults = config::load_text(LEAST, Path::new(""), &|_| None)
        .map(|least| globals(&least))
        .unwrap_or_default();
    let defaults: HashMap<_, _> = defaults
        .into_iter()
        .map(|setting| (setting.key, setting.value))
        .collect();
    let mut settings = all(&view.config);
    let named = set::pgbouncer_names().filter_map(|(name, key)| {
        let found = settings.iter().find(|setting| setting.key == key)?;
        let default = defaults.get(key).map(|value| plain(value));
        Some(row![name, plain(&found.value), default, "yes"])
    });
    let named: Vec<_> = named.collect();
    let rows = settings.drain(..).map(|setting| {
        let default = defaults.get(&setting.key).cloned();
        let changeable = if setting.changeable { "yes" } else { "no" };
        row![setting.key, setting.value, default, changeable]
    });
    rows.chain(named).collect()
}

fn all(config: &Config) -> Vec<Setting> {
    let mut settings = globals(config);
    settings.extend(config.catalog.iter().flat_map(|c| catalog(c)));
    settings.extend(config.servers.values().flat_map(|s| server(s)));
    settings.extend(placements(config));
    settings
}

/// The keys of all settings that are shown.
pub fn keys(config: &Config) -> impl Iterator<Item = String> {
    all(config).into_iter().map(|setting| setting.key)
}

/// The settings that are there before and after with another value, and that one. What comes and
/// goes with servers and placements is not told one by one.
pub fn changes(old: &Config, new: &Config) -> Vec<(String, String)> {
    let before: HashMap<_, _> = all(old).into_iter().map(|s| (s.key, s.value)).collect();
    let mut changes = Vec::new();
    for Setting { key, value, .. } in all(new) {
        if before.get(&key).is_some_and(|before| *before != value) {
            let change = format!("{} -> {value}", before[&key]);
            changes.push((key, change));
        }
    }
    for (users, old, new) in [
        ("admin.users", &old.admin_users, &new.admin_users),
        ("admin.stats_users", &old.stats_users, &new.stats_users),
    ] {
        if old != new {
            changes.push((users.to_owned(), "who may use the console".to_owned()));
        }
    }
    changes
}

/// A period in seconds, as PgBouncer has them; else as it is.
fn plain(value: &str) -> String {
    match config::duration(value) {
        Ok(period) => period.as_secs_f64().to_string(),
        Err(_) => value.to_owned(),
    }
}

struct Setting {
    key: String,
    value: String,
    /// By a reload.
    changeable: bool,
}

#[allow(clippy::needless_pass_by_value)] // numbers, names and literals alike
fn setting(key: impl Into<String>, value: impl ToString) -> Setting {
    Setting {
        key: key.into(),
        value: value.to_string(),
        changeable: true,
    }
}

fn fixed(key: impl Into<String>, value: impl ToString) -> Setting {
    Setting {
        changeable: false,
        ..setting(key, value)
    }
}

fn globals(config: &Config) -> Vec<Setting> {
    let mut settings = Vec::new();
    for (position, listen) in config.listen.iter().enumerate() {
        let key = |name: &str| format!("listen[{position}].{name}");
        settings.push(fixed(key("address"), listen.address));
        if let Some(tls) = &listen.tls {
            settings.push(setting(key("tls.cert"), tls.cert_file.display()));
            settings.push(setting(key("tls.key"), tls.key_file.display()));
            settings.push(setting(key("tls.required"), tls.required));
        }
    }
    let format = match config.log.format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    settings.push(fixed(
        "http.address",
        config
            .http
            .map_or_else(String::new, |http| http.to_string()),
    ));
    for user in config.admin_users.keys() {
        settings.push(setting(format!("admin.users.{user}"), HIDDEN));
    }
    for user in config.stats_users.keys() {
        settings.push(setting(format!("admin.stats_users.{user}"), HIDDEN));
    }
    settings.push(fixed("log.format", format));
    settings.push(fixed("log.filter", &config.log.filter));
    let slow = config.log.slow.map_or_else(|| "0".to_owned(), period);
    settings.push(setting("log.slow", slow));
    settings.extend(audit(config));
    settings.extend(usage(config));
    settings.push(fixed("workers", config.workers));
    settings.extend(identify(config));
    let limits = config.limits;
    settings.push(setting("limits.clients", limits.clients));
    settings.push(setting("limits.logins", limits.logins));
    settings.push(setting("limits.console", limits.console));
    settings.push(setting("limits.active", optional(limits.active)));
    settings.push(setting("limits.waiting", optional(limits.waiting)));
    settings.extend(rates("limits", config.rates));
    settings.push(setting("metrics.tenants", config.named_tenants));
    settings.push(setting("metrics.period", period(config.stats_period)));
    let timeouts = &config.timeouts;
    for (name, time) in [
        ("login", timeouts.login),
        ("checkout", timeouts.checkout),
        ("connect", timeouts.connect),
        ("revoked", timeouts.revoked),
        ("paused", timeouts.paused),
        ("shutdown", timeouts.shutdown),
        ("server_idle", timeouts.server_idle),
        ("server_lifetime", timeouts.server_lifetime),
        ("dns_max_ttl", timeouts.dns_max_ttl),
    ] {
        settings.push(setting(format!("timeouts.{name}"), period(time)));
    }
    let keepalives = &config.tcp_keepalives;
    for (name, value) in [
        ("idle", period(keepalives.idle)),
        ("interval", period(keepalives.interval)),
        ("count", keepalives.count.to_string()),
    ] {
        settings.push(setting(format!("tcp_keepalives.{name}"), value));
    }
    let doctor = &config.doctor;
    settings.push(setting("doctor.enabled", doctor.enabled));
    settings.push(setting("doctor.interval", period(doctor.interval)));
    settings.push(setting("doctor.refuse", doctor.refuse));
    settings
}

fn catalog(catalog: &Catalog) -> Vec<Setting> {
    let mut settings = vec![
        fixed("catalog.server", &catalog.server),
        fixed("catalog.database", &catalog.database),
        fixed("catalog.poll", period(catalog.poll)),
    ];
    let logins = [
        ("login", Some(&catalog.login)),
        ("writer", catalog.writer.as_ref()),
    ];
    for (name, login) in logins {
        let Some(login) = login else { continue };
        settings.push(fixed(format!("catalog.{name}.user"), &login.user));
        if login.password.is_some() {
            settings.push(fixed(format!("catalog.{name}.password"), HIDDEN));
        }
    }
    if let Some(copy) = &catalog.copy {
        settings.push(fixed("catalog.copy.file", copy.file.display()));
        settings.push(fixed("catalog.copy.max_age", period(copy.max_age)));
    }
    settings
}

fn audit(config: &Config) -> Vec<Setting> {
    let audit = &config.audit;
    let file = audit.file.as_deref().map(Path::display);
    let file = file.map_or_else(String::new, |file| file.to_string());
    vec![
        setting("audit.file", file),
        setting("audit.max_size", format!("{}kB", audit.max_size >> 10)),
        setting("audit.keep", audit.keep),
        setting("audit.rate", audit.rate),
        setting("audit.burst", audit.burst),
    ]
}

fn usage(config: &Config) -> [Setting; 4] {
    let usage = &config.usage;
    let file = usage.file.as_deref().map(Path::display);
    let file = file.map_or_else(String::new, |file| file.to_string());
    [
        setting("usage.file", file),
        setting("usage.interval", period(usage.interval)),
        setting("usage.max_size", format!("{}kB", usage.max_size >> 10)),
        setting("usage.keep", usage.keep),
    ]
}

fn identify(config: &Config) -> Vec<Setting> {
    let identify = &config.identify;
    let by = [
        ("user", identify.by_user.is_some()),
        ("database", identify.by_database),
        ("sni", identify.by_sni.is_some()),
        ("options", identify.by_options),
    ];
    let by: Vec<_> = by.iter().filter(|(_, on)| *on).map(|(by, _)| *by).collect();
    let separator = identify.by_user.map(String::from).unwrap_or_default();
    vec![
        setting("identify.by", by.join(",")),
        setting("identify.user_separator", separator),
        setting(
            "identify.sni_suffix",
            identify.by_sni.as_deref().unwrap_or_default(),
        ),
    ]
}

fn server(server: &Server) -> Vec<Setting> {
    let key = |name: &str| format!("servers.{}.{name}", server.name);
    let sslmode = match server.tls.mode {
        SslMode::Disable => "disable",
        SslMode::Prefer => "prefer",
        SslMode::Require => "require",
        SslMode::VerifyCa => "verify-ca",
        SslMode::VerifyFull => "verify-full",
    };
    let mut settings = vec![
        setting(key("address"), &server.address),
        setting(key("sslmode"), sslmode),
        setting(key("require_auth"), server.require_auth),
        setting(key("max_connections"), server.max_connections),
    ];
    for (name, limit) in [
        ("clients", server.max_clients),
        ("waiting", server.max_waiting),
    ] {
        settings.push(setting(key(&format!("limits.{name}")), optional(limit)));
    }
    settings.extend(rates(&key("limits"), server.rates));
    if let Some(Login { user, password }) = server.admin.as_deref() {
        settings.push(setting(key("admin.user"), user));
        if password.is_some() {
            settings.push(setting(key("admin.password"), HIDDEN));
        }
        settings.push(setting(key("admin.database"), &server.admin_database));
    }
    if let Some(seal) = &server.seal {
        settings.push(setting(key("seal.key"), HIDDEN));
        settings.push(setting(key("seal.lifetime"), period(seal.lifetime)));
    }
    settings
}

fn placements(config: &Config) -> Vec<Setting> {
    let placements = config.placements.values();
    placements
        .flat_map(|placement| {
            let key = |name: &str| format!("placements.{}.{name}", placement.name);
            let servers: Vec<_> = placement
                .servers
                .iter()
                .map(crate::id::ServerName::as_str)
                .collect();
            let rates = rates(&key("limits"), placement.rates);
            let settings = [
                setting(key("tier"), placement.tier),
                setting(key("servers"), servers.join(",")),
                setting(key("pooling"), placement.pooling),
                setting(key("posture"), placement.posture),
                setting(key("guard"), placement.guard),
                setting(key("allow"), joined(&placement.allow)),
                setting(key("pool.size"), placement.pool.size),
                setting(key("pool.reserve"), placement.pool.reserve),
                setting(key("pool.min"), placement.pool.min),
                setting(key("pool.reuse"), placement.reuse),
                setting(key("pool.tolerate"), joined(&placement.tolerate)),
                setting(key("limits.clients"), optional(placement.max_clients)),
                setting(key("limits.active"), optional(placement.max_active)),
                setting(key("limits.waiting"), optional(placement.max_waiting)),
                setting(
                    key("limits.savepoints"),
                    placement.transaction.savepoints.unwrap_or_default(),
                ),
                setting(
                    key("limits.objects"),
                    placement.transaction.objects.unwrap_or_default(),
                ),
                setting(key("limits.statements"), placement.transaction.statements),
                setting(
                    key("limits.statement_memory"),
                    placement.transaction.statement_memory,
                ),
            ];
            settings.into_iter().chain(rates)
        })
        .collect()
}

/// Empty: there is no limit.
fn optional(limit: Option<usize>) -> String {
    limit.map_or_else(String::new, |limit| limit.to_string())
}

/// Those of one level, whose `limits` are named so; empty where there is no limit.
fn rates(limits: &str, rates: Rates) -> [Setting; 2] {
    let plain: fn(u64) -> String = |n| n.to_string();
    [
        ("statements_per_second", rates.statements, plain),
        ("bytes_per_second", rates.bytes, |n| {
            format!("{}kB", n >> 10)
        }),
    ]
    .map(|(name, rate, shown)| {
        let value = rate.map_or_else(String::new, |Rate { per_second, burst }| {
            let (rate, burst) = (shown(per_second), shown(burst));
            match rate == burst {
                true => rate,
                false => format!("{{ rate: {rate}, burst: {burst} }}"),
            }
        });
        setting(format!("{limits}.{name}"), value)
    })
}

fn joined(items: &BTreeSet<impl ToString>) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    items.join(", ")
}

/// As it can be written in the file.
pub fn period(time: Duration) -> String {
    let seconds = time.as_secs();
    match time.subsec_millis() {
        0 if seconds >= 3600 && seconds.is_multiple_of(3600) => format!("{}h", seconds / 3600),
        0 if seconds >= 60 && seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        0 => format!("{seconds}s"),
        _ => format!("{}ms", time.as_millis()),
    }
}
