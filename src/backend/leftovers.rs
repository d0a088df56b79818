//! What stays in a server process when all of its session is discarded, and so could meet another
//! tenant.
//!
//! DISCARD ALL undoes what PostgreSQL itself keeps of a session, but for the state of `random()`,
//! which is set anew before a connection changes hands. What libraries keep in variables of their
//! own it does not know of: connections of dblink and of foreign data wrappers, `%_SHARED` of
//! PL/Perl, `GD` of PL/Python, and the like. How a tenant got there (by a view, a default, an
//! operator, …) cannot be told from its statements. So a database is asked which libraries its
//! functions are in; where it has one that is not known to keep nothing, no connection goes from
//! one tenant to another: it is ended instead.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::residue::Answer;

/// For how long the answer is taken to be true. An extension that is made in a statement that
/// passes through the proxy is noticed at once.
const FRESH: Duration = Duration::from_secs(60);

/// Libraries that keep nothing of a session that DISCARD ALL leaves. From the sources of PostgreSQL
/// 15 to 18 (contrib), and of extensions that many databases have. Settings of libraries
/// (`pg_trgm.similarity_threshold`, `postgis.…`) are PostgreSQL's to reset. Not here, since they
/// keep something: `dblink`, `postgres_fdw`, `isn` (`isn_weak()`, up to 17), `sepgsql`, the
/// handlers of languages.
const CLEAN: [&str; 56] = [
    "_int",
    "adminpack",
    "amcheck",
    "autoinc",
    "bloom",
    "btree_gin",
    "btree_gist",
    "citext",
    "cube",
    "dict_int",
    "dict_xsyn",
    "earthdistance",
    "file_fdw",
    "fuzzystrmatch",
    "hll",
    "hstore",
    "insert_username",
    "ip4r",
    "lo",
    "ltree",
    "moddatetime",
    "old_snapshot",
    "pageinspect",
    "pg_buffercache",
    "pg_cron",
    "pg_freespacemap",
    "pg_logicalinspect",
    "pg_prewarm",
    "pg_repack",
    "pg_stat_statements",
    "pg_surgery",
    "pg_trgm",
    "pg_uuidv7",
    "pg_visibility",
    "pg_walinspect",
    "pgaudit",
    "pgcrypto",
    "pgrowlocks",
    "pgstattuple",
    "pgxml",
    "plpgsql",
    "postgis-3",
    "postgis_topology-3",
    "prefix",
    "refint",
    "rum",
    "seg",
    "semver",
    "sslinfo",
    "tablefunc",
    "tcn",
    "tsm_system_rows",
    "tsm_system_time",
    "unaccent",
    "uuid-ossp",
    "vector",
];

/// Of the libraries of a database's functions, by `pg_proc.probin`, those that may keep something;
/// by the names that `pool.tolerate` has.
pub fn keepers<'p>(paths: impl IntoIterator<Item = &'p str>) -> BTreeSet<String> {
    let name = |path: &str| {
        let file = path.rsplit('/').next().unwrap_or(path);
        file.strip_suffix(".so").unwrap_or(file).to_owned()
    };
    let names = paths.into_iter().map(name);
    names
        .filter(|name| CLEAN.binary_search(&&**name).is_err())
        .collect()
}

/// What is known of one pool's database.
#[derive(Debug, Default)]
pub struct Leftovers(Mutex<Option<(Known, Instant)>>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Known {
    keepers: BTreeSet<String>,
    may_seed: bool,
    /// Not all of what the server said could be read.
    is_hidden: bool,
}

/// Whether a connection may go from one tenant to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handover {
    /// After DISCARD ALL. `reseed`: the state of `random()` is to be set, and can be.
    Allowed { reseed: bool },
    /// Something may stay in it.
    Refused,
    /// The server is to be asked.
    Unknown,
}

impl Leftovers {
    fn known(&self) -> std::sync::MutexGuard<'_, Option<(Known, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `tolerated`: libraries that do not matter.
    pub fn judge(&self, tolerated: &BTreeSet<String>, now: Instant) -> Handover {
        match &*self.known() {
            Some((known, when)) if now - *when < FRESH => {
                match known.is_hidden || !known.keepers.is_subset(tolerated) {
                    true => Handover::Refused,
                    false => Handover::Allowed {
                        reseed: known.may_seed,
                    },
                }
            }
            _ => Handover::Unknown,
        }
    }

    /// Takes over what the server said. Nothing is learnt if it would not. Some: libraries that may
    /// keep something, where they were not known.
    pub fn learn(&self, answer: Option<&Answer>, now: Instant) -> Option<Vec<String>> {
        let answer = answer?;
        let found = Known {
            keepers: keepers(answer.libraries.iter().map(String::as_str)),
            may_seed: answer.may_seed,
            is_hidden: answer.unreadable,
        };
        let mut known = self.known();
        let is_new = known.as_ref().is_none_or(|(known, _)| *known != found);
        let told = found.keepers.iter().cloned().collect();
        let is_worth_telling = is_new && !found.keepers.is_empty();
        *known = Some((found, now));
        is_worth_telling.then_some(told)
    }

    /// An object was made or dropped: an extension, perhaps.
    pub fn forget(&self) {
        if let Some((_, when)) = &mut *self.known()
            && let Some(past) = when.checked_sub(FRESH)
        {
            *when = past;
        }
    }
}

/// A new state of `random()`, as an argument of `setseed()`.
pub fn seed() -> String {
    rand::random_range(-1.0..1.0_f64).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_that_keep_nothing_are_in_order() {
        assert!(CLEAN.is_sorted());
    }

    #[test]
    fn what_is_not_known_to_keep_nothing_may_keep_something() {
        let paths = [
            "$libdir/hstore",
            "$libdir/dblink",
            "/opt/lib/pgcrypto.so",
            "/opt/lib/mine.so",
            "$libdir/plpython3",
            "postgis-3",
        ];
        let found: Vec<_> = keepers(paths).into_iter().collect();
        assert_eq!(found, ["dblink", "mine", "plpython3"]);
    }

    #[test]
    fn a_connection_is_handed_over_only_where_the_server_said_what_it_has() {
        let leftovers = Leftovers::default();
        let (now, none) = (Instant::now(), BTreeSet::new());
        assert_eq!(leftovers.judge(&none, now), Handover::Unknown);
        leftovers.learn(None, now);
        assert_eq!(leftovers.judge(&none, now), Handover::Unknown);
        let mut answer = Answer {
            may_seed: true,
            ..Answer::default()
        };
        assert_eq!(leftovers.learn(Some(&answer), now), None);
        let allowed = Handover::Allowed { reseed: true };
        assert_eq!(leftovers.judge(&none, now), allowed);
        answer.libraries.push("$libdir/dblink".to_owned());
        let told = leftovers.learn(Some(&answer), now);
        assert_eq!(told, Some(vec!["dblink".to_owned()]));
        assert_eq!(leftovers.learn(Some(&answer), now), None);
        assert_eq!(leftovers.judge(&none, now), Handover::Refused);
        let tolerated = BTreeSet::from(["dblink".to_owned()]);
        assert_eq!(leftovers.judge(&tolerated, now), allowed);
        assert_eq!(leftovers.judge(&tolerated, now + FRESH), Handover::Unknown);
        leftovers.forget();
        assert_eq!(leftovers.judge(&tolerated, now), Handover::Unknown);
    }
}
