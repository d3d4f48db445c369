//! The RabbitMQ bus against real, private brokers.
//!
//! Without one the tests are skipped, visibly; when `BACKPLANE_TEST_REQUIRE` names `rabbitmq` they fail instead.
#![cfg(all(feature = "amqp", unix))]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on says why and stops")]

mod access;
mod contracts;
mod faults;
mod harness;
mod link;
