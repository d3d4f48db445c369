//! A link over core NATS: one subscription per topic, and probes that prove what the server has done.
//!
//! NATS answers neither a publish nor a subscription, and the crate's `flush` only waits for the socket. So each run of
//! commands ends with a *probe*, a message to a subject of this link alone: the server handles the commands of one
//! connection in their order, and when the probe has come back it has handled all before it. What it refused it said
//! before it sent the probe back, see [`crate::ears`].

mod feeds;
mod flights;
mod interest;
mod link;
mod run;
mod subscriptions;
mod verdicts;

pub(crate) use link::CoreLink;
