//! The functions that every PostgreSQL has.

use std::collections::HashSet;
use std::sync::OnceLock;

/// Names of functions in `pg_catalog` that SQL can call, of PostgreSQL 15 and 18 together: `SELECT DISTINCT proname FROM pg_proc`
/// less those that take or return `internal` and the handlers.
const NAMES: &str = include_str!("builtin_functions.txt");

/// Whether `name`, in lower case, is one of them. Another function may have the same name: PostgreSQL
/// finds this one first, unless `search_path` says otherwise.
pub fn is_builtin(name: &str) -> bool {
    static SET: OnceLock<HashSet<&'static str>> = OnceLock::new();
    SET.get_or_init(|| NAMES.lines().collect()).contains(name)
}
