//! The bus on private MariaDB servers.
#![cfg(all(feature = "mysql", unix))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says why and stops")]

mod contracts;
mod harness;
mod misfortune;
