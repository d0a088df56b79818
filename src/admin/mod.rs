//! Seen from outside: the console (database `pgtenant`) and the metrics endpoint.

pub mod console;
pub mod http;
