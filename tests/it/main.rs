//! The integration tests: real PostgreSQL servers, the proxy in front of them in this process, and
//! clients of every kind. `make test` installs what they need; what is missing fails with one
//! sentence.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // that is how a test fails

mod applications;
mod attacks;
mod audit;
mod bad_input;
mod batches;
mod cancel;
mod catalogs;
mod chaos;
mod console;
mod differential;
mod dns;
mod doctor;
mod documents;
mod drivers;
mod examples;
mod faults;
mod fuzz;
mod fuzz_bodies;
mod gone;
mod guard;
mod handover;
mod harness;
mod isolation;
mod layers;
mod leftovers;
mod limits;
mod locks;
mod log;
mod login_parameters;
mod memory;
mod negative;
mod notices;
mod parking;
mod passwords;
mod policies;
mod portals;
mod prepared_sql;
mod procedures;
mod process_ids;
mod promotion;
mod rates;
mod replication;
mod require_auth;
mod seal;
mod selftest;
mod services;
mod session_attacks;
mod session_model;
mod session_state;
mod slow_log;
mod strays;
mod tiers;
mod timeouts;
mod times;
mod tls;
mod tools;
mod waits;
mod warm;
mod weights;
#[allow(dead_code)] // a vocabulary: not every word is used by every test
mod wire;
mod workers;
