//! The catalog's SQL: the schema `pgtenant_catalog`, in which tenants are kept as data, and the
//! functions by which alone they are changed.

/// What makes the schema, and brings an older one up to date.
pub const SQL: &str = include_str!("sql/catalog.sql");

/// What the schema says of itself: the comment that `src/control/sql/catalog.sql` makes last.
pub const IDENTITY: &str = "pgtenant catalog, version 1";
