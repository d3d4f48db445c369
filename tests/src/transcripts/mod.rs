//! Plays the recordings of .NET's hub server (`tests/transcripts/http`, format in [`mod@file`]) against a server of ours, as
//! a raw client: sockets, HTTP and WebSocket frames by hand, no SignalR library.
//!
//! What is compared, and how, stands in [`compare`]; what may differ for good stands in `deviations.md`, what is not
//! served yet in `pending.md` (both read by [`lists`]).

pub mod compare;
#[cfg(test)]
mod conversations;
pub mod cut;
pub mod file;
pub mod http;
pub mod json;
pub mod lists;
#[cfg(test)]
mod mirror;
pub mod msgpack;
pub mod play;
pub mod run;
pub mod server;
pub mod socket;
pub mod sse;
pub mod template;
pub mod websocket;
