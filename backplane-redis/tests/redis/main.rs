//! The Redis bus against a real, private `redis-server`.
//!
//! Without one the tests are skipped, visibly; when `BACKPLANE_TEST_REQUIRE` names `redis` they fail instead.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on says why and stops")]

mod access;
mod faults;
mod link;
mod server;
mod tls;
