//! The Redis bus of the backplane: Redis pub/sub as a [`Bus`](backplane_core::Bus).
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use backplane_core::{Router, RouterConfig};
//! use backplane_redis::{RedisBus, RedisConfig};
//!
//! # async fn open() -> backplane_core::Result<()> {
//! let config = RedisConfig::from_url("rediss://app:secret@redis.internal:6380?ca=ca.pem")?;
//! let node = Router::open(Arc::new(RedisBus::new(config)?), RouterConfig::default()).await?;
//! # Ok(()) }
//! ```
//!
//! # What it promises
//! - **Order** is total on one server: it runs one `PUBLISH` at a time, so all nodes see one order per topic.
//! - **Reach** is Redis' answer to `PUBLISH`: how many links had the topic at that moment. Zero proves absence.
//! - **Topics** are any bytes. A subscription is confirmed channel by channel before a call returns; many topics travel
//!   in few commands (up to 1,024 channels or 64 KiB each): 50,000 topics take 49.
//! - **Frames** never repeat and are never kept: Redis remembers nothing, so a new link cannot resume.
//! - **A dead or frozen server** ends the link within the heartbeat bound: each of the two connections sends a `PING`
//!   each third of it. What was in flight fails as `Unavailable` with an unknown outcome.
//! - **Memory is bounded.** While more than [`RedisConfig::max_undelivered`] waits for whoever polls `inbound`, we do not
//!   read; then Redis' own `client-output-buffer-limit pubsub` decides, and cuts us. The link ends with an error and
//!   the router raises a Gap. A link holds at most 64 MiB or 65,536 frames of unanswered publishes (more is
//!   `Overloaded`); the router keeps far below.
//!
//! # What it costs and what it cannot
//! - **A restart of Redis** ends every link. What was published in between reached nobody and failed at its sender; what
//!   was in flight is reported with an unknown outcome. The next link subscribes to all topics again before it counts.
//! - **Redis Cluster**: one node of it serves as entry point, since a cluster carries every `PUBLISH` to all nodes. Set
//!   [`RedisConfig::cluster`]; then order is promised per publisher only. Reach is not reported
//!   ([`Limits::reports_reach`](backplane_core::Limits::reports_reach) is false): a node answers for its own subscribers.
//!   Messages that a cluster loses between its nodes show as Gaps, by the router's numbers. Sharded pub/sub is not used.
//! - **Replicas** are refused as `Unavailable`: what is published there stays there. After a failover the router tries
//!   again until the address leads to the master. The reach does not count links that others hold at replicas.
//! - **Sentinel** is not spoken; give an address that follows the master.
//! - [`RedisConfig::max_frame`] must not exceed the server's `proto-max-bulk-len`.
//!
//! # Permissions
//! The link needs, for topics that start with `PREFIX`:
//! ```text
//! ACL SETUSER app on >secret resetchannels &PREFIX* -@all +publish +subscribe +unsubscribe +ping +client|setname
//! ```
//! and `+select` if a database is given. `HELLO` and `AUTH` are open to everyone. Without `+ping` and
//! `+client|setname` the link works as well: a refusal is a sign of life, and the name (`backplane-NODE-ATTEMPT`, on both
//! connections) only serves operators who look at `CLIENT LIST`.
//!
//! # URL
//! `redis://[user:password@]host[:port][/database]`, or `rediss://` for TLS. Anything else is refused by name.
//! Durations have a unit (`500ms`, `10s`, `2m`); sizes are bytes, or have one (`64KiB`, `16MiB`).
//!
//! | parameter | meaning | default |
//! |---|---|---|
//! | `resp` or `protocol` | protocol version: `2`, `3`, `resp2`, `resp3` | `2` |
//! | `ca` | file with the only CAs to trust, PEM | the system's |
//! | `cert`, `key` | files with our certificate and its key, PEM | none |
//! | `cluster` | `true`: the server is a node of a Redis Cluster | `false` |
//! | `max_frame` | largest frame | `16MiB` |
//! | `max_undelivered` | how much may wait for the reader | `16MiB` |
//! | `command_timeout` | how long a command may wait for its answer, from `10ms` to `60m` | the heartbeat bound |
//!
//! # How it is built
//! Set-up (addresses, authentication, `HELLO`) uses the `redis` crate. The two connections themselves are driven by one
//! task per link over streams of our own: the crate's subscriber buffers without bound, does not notice a frozen
//! server, and spends several times as long per message.

mod bus;
mod commands;
mod config;
mod heartbeat;
mod inbox;
mod publisher;
mod refusal;
mod resp;
mod setup;
mod shared;
mod socket;
mod subscriber;
mod subscriptions;
mod task;
mod url;

pub use backplane_tls::{Tls, TlsIdentity, TlsRoots};
pub use bus::RedisBus;
pub use config::{RedisConfig, Resp};
