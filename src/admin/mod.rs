//! Seen from outside: the console (database `pgtenant`) and the metrics endpoint. Both only read
//! what the other parts keep anyway; a number that is shown costs nothing while nobody looks.

mod command;
pub mod console;
mod effective;
mod explain;
pub mod http;
mod inbox;
mod metrics;
mod reloaded;
mod show;
mod verbs;

#[cfg(test)]
pub(crate) mod testing;
