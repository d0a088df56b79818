//! The commands of `pgtenant`.

pub mod demo;
