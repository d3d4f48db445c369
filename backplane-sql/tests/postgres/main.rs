//! The bus on private PostgreSQL servers.
#![cfg(all(feature = "postgres", unix))]
#![allow(clippy::unwrap_used, reason = "a test fails by it, also outside of its own function")]

mod contracts;
mod harness;
mod misfortune;
