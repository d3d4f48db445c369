//! The NATS bus against real, private servers.
//!
//! Without one the tests are skipped, visibly; when `BACKPLANE_TEST_REQUIRE` names `nats` they fail instead.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on says why and stops")]

mod access;
mod contracts;
mod credentials;
mod durable;
mod harness;
mod liar;
mod load;
mod misfortune;
mod tls;
