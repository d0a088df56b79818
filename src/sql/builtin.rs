//! The functions that every PostgreSQL has.

use std::collections::HashSet;
use std::sync::OnceLock;

/// Names of functions in `pg_catalog` that SQL can call, of PostgreSQL 15 and 18 together: `SELECT
/// DISTINCT proname FROM pg_proc` less those that take or return `internal` and the handlers.
const NAMES: &str = include_str!("builtin_functions.txt");

/// Whether `name`, in lower case, is one of them. A function of the application's may have the same
/// name, for other types of arguments or in a schema that `search_path` puts before `pg_catalog`:
/// without its schema it is taken for this one.
pub fn is_builtin(name: &str) -> bool {
    static SET: OnceLock<HashSet<&'static str>> = OnceLock::new();
    SET.get_or_init(|| NAMES.lines().collect()).contains(name)
}
