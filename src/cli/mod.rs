//! The subcommands that are not the proxy itself. Each is a plain function of its arguments and
//! its output, and gives an exit code of `sysexits.h`.

pub mod check;
pub mod demo;
pub mod doctor;
pub mod hash_password;
pub mod healthcheck;
pub mod log;
pub mod seal;
pub mod selftest;
pub mod serve;
pub mod sql;
pub mod tenant;
