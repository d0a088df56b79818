//! The names of all settings, as serde knows them, and which of them a misspelt one may have meant.

use std::cell::Cell;

use serde::de::{self, DeserializeOwned, Deserializer, Visitor};

use super::{
    AdminConsoleFile, ApplicationFile, ApplicationLimitsFile, AuditFile, CatalogCopyFile,
    CatalogFile, ChooseFile, ClientLogFile, ClientTimeoutsFile, CredentialFile, DoctorFile,
    HttpFile, IdentifyFile, LimitsFile, ListenFile, ListenTlsFile, LogFile, LoginFile, MetricsFile,
    PlacementFile, PlacementLimitsFile, PoolFile, ProvisionFile, SealFile, ServerAdminFile,
    ServerFile, ServerLimitsFile, TcpKeepalivesFile, TenantFile, TenantLimitsFile, TenantPoolFile,
    TimeoutsFile, UsageFile,
};

use crate::config::units::{Count, RateParts};

/// What to say of a setting that is none of the `known` ones.
pub fn unknown_setting(key: &str, known: &[&str]) -> String {
    match nearest(key, known) {
        Some(name) => format!("unknown setting, did you mean `{name}`?"),
        None if known.is_empty() => "unknown setting".to_owned(),
        None => format!("unknown setting; there are {}", known.join(", ")),
    }
}

/// What to say of a setting of this section that has another name, or is at another place.
pub fn said_elsewhere(section: &[&str], key: &str) -> Option<&'static str> {
    match (section, key) {
        (["servers", _, "limits"], "active") => {
            Some("is max_connections of the server: most of its connections, in use or not")
        }
        (["placements", _, "pool"], "max") => Some("is pool.size, of each pool of the placement"),
        (["tenants", _, "pool"], "max" | "size") => {
            Some("is limits.active of the tenant: most server connections that it uses at once")
        }
        _ => None,
    }
}

/// The settings of a section.
pub fn known_settings(section: &[&str]) -> &'static [&'static str] {
    match section {
        ["listen", _] => fields::<ListenFile>(),
        ["listen", _, "tls"] => fields::<ListenTlsFile>(),
        ["http"] => fields::<HttpFile>(),
        ["admin"] => fields::<AdminConsoleFile>(),
        ["admin", "users" | "stats_users", _] | ["tenants" | "applications", _, "users", _] => {
            fields::<CredentialFile>()
        }
        ["applications", _] => fields::<ApplicationFile>(),
        ["applications", _, "choose"] => fields::<ChooseFile>(),
        ["applications", _, "limits"] => fields::<ApplicationLimitsFile>(),
        ["log"] => fields::<LogFile>(),
        ["audit"] => fields::<AuditFile>(),
        ["usage"] => fields::<UsageFile>(),
        ["identify"] => fields::<IdentifyFile>(),
        ["limits"] => fields::<LimitsFile>(),
        ["metrics"] => fields::<MetricsFile>(),
        ["timeouts"] => fields::<TimeoutsFile>(),
        ["tcp_keepalives"] => fields::<TcpKeepalivesFile>(),
        ["doctor"] => fields::<DoctorFile>(),
        ["catalog"] => fields::<CatalogFile>(),
        ["catalog", "login" | "writer"] => fields::<LoginFile>(),
        ["catalog", "copy"] => fields::<CatalogCopyFile>(),
        ["servers", _] => fields::<ServerFile>(),
        [
            "servers" | "placements" | "tenants" | "applications",
            _,
            "timeouts",
        ] => fields::<ClientTimeoutsFile>(),
        ["servers" | "placements" | "tenants", _, "log"] => fields::<ClientLogFile>(),
        ["servers", _, "admin"] => fields::<ServerAdminFile>(),
        ["servers", _, "limits"] => fields::<ServerLimitsFile>(),
        ["servers", _, "seal"] => fields::<SealFile>(),
        ["placements", _] => fields::<PlacementFile>(),
        ["placements", _, "login"] => fields::<LoginFile>(),
        ["placements", _, "provision"] => fields::<ProvisionFile>(),
        ["placements", _, "pool"] => fields::<PoolFile>(),
        ["placements", _, "limits"] => fields::<PlacementLimitsFile>(),
        ["tenants", _] => fields::<TenantFile>(),
        ["tenants", _, "pool"] => fields::<TenantPoolFile>(),
        ["tenants", _, "limits"] => fields::<TenantLimitsFile>(),
        ["limits", "statements_per_second" | "bytes_per_second"]
        | [
            "servers" | "placements" | "tenants",
            _,
            "limits",
            "statements_per_second" | "bytes_per_second",
        ] => fields::<RateParts<Count>>(),
        _ => &[],
    }
}

/// The field names of a struct, as serde knows them.
fn fields<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Probe<'a>(&'a Cell<&'static [&'static str]>);

    impl<'de> Deserializer<'de> for Probe<'_> {
        type Error = de::value::Error;

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _name: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Self::Error> {
            self.0.set(fields);
            self.deserialize_any(visitor)
        }

        fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
            Err(de::Error::custom("only the names are wanted"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
            option unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier
            ignored_any
        }
    }

    let names = Cell::new(&[][..]);
    // Always an error: the probe has no value to give.
    let _ = T::deserialize(Probe(&names));
    names.get()
}

/// The known name that is a slip of the pen away, if there is one.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let close = (name.chars().count() / 3).max(1);
    known
        .iter()
        .map(|candidate| (edits(name, candidate), *candidate))
        .filter(|(distance, _)| *distance <= close)
        .min()
        .map(|(_, candidate)| candidate)
}

/// How many characters must be changed, put in or taken out (Levenshtein).
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    // A longer name than this is no slip of the pen, and would cost its square.
    for (i, a) in from.chars().take(64).enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (b, cell) in to.iter().zip(row.iter_mut().skip(1)) {
            let change = diagonal + usize::from(a != *b);
            diagonal = *cell;
            left = change.min(*cell + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}
