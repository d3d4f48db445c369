//! The bus over AMQP 1.0: on private RabbitMQ servers, and on an in-process peer that plays Azure Service Bus.
#![cfg(all(feature = "servicebus", unix))]
#![allow(clippy::unwrap_used, reason = "a test fails by it, also outside of its own function")]

mod azure;
mod contracts;
mod harness;
mod link;
mod misfortune;
mod peer;
