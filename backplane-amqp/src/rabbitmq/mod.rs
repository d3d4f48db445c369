//! RabbitMQ over AMQP 0-9-1, on the `lapin` crate.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use backplane_amqp::{RabbitBus, RabbitConfig};
//! use backplane_core::{Router, RouterConfig};
//!
//! # async fn open() -> backplane_core::Result<()> {
//! let config = RabbitConfig::from_url("amqps://app:secret@rabbit-1,rabbit-2/chat?ca=ca.pem")?;
//! let node = Router::open(Arc::new(RabbitBus::new(config)?), RouterConfig::default()).await?;
//! # Ok(()) }
//! ```
//!
//! # What it promises
//! - **Delivery** is at most once. A node reads from a queue of its own that is exclusive to its connection and dies with
//!   it; nothing is kept, so a new link cannot resume, and the router raises a Gap for what lies between.
//! - **Order** is kept for each publisher: a link publishes on one channel.
//! - **Acceptance** is a publisher confirm, one for each frame, many on their way at once. A frame that no node wants is
//!   confirmed too, so reach is not reported. A `nack` is `Unavailable` with an unknown outcome.
//! - **A subscription** is a binding of that queue to one durable direct exchange, confirmed by the broker; 1,000 travel at
//!   once. It outlives the interest in it for [`RabbitConfig::unbind_after`], and what it brings meanwhile is dropped.
//! - **Loss is told.** The queue is bounded in bytes and in time, oldest out first. What it drops is dead-lettered into a
//!   second queue that holds one message, and a message there is a `Lost`: `Overflow`, or `Retention` for what waited too
//!   long; which topics is not known. While drops go on one is told each 100 ms. A queue that is deleted, or dies with its
//!   node of the broker, ends the link.
//! - **A dead or frozen broker** ends the link within the heartbeat bound: a connection that brought nothing for a third of
//!   it is asked a question. To the broker a heartbeat of half the bound (at least 1 s) is offered; it frees the queues of
//!   a node that vanished after twice that.
//! - **An alarm** (memory, disk) makes the broker block who publishes, and only that: the two connections of a link are
//!   separate, so reading goes on. Publishes then fail at once as `Unavailable` with the broker's reason, those in flight
//!   within their deadline, and [`Health::impediment`](backplane_core::Health::impediment) shows it until the alarm ends.
//!   The link stays. Other nodes take a node for gone meanwhile, for its beats are publishes too.
//! - **Memory is bounded** by [`RabbitConfig::prefetch`] frames that were not read and by 64 MiB or 65,536 frames that were
//!   not confirmed (bytes that the broker was sent and did not confirm for a second are not ours any more). There is no
//!   option to read without acknowledgements: lapin would keep what nobody reads, without bound.
//! - **Topics** are dot-separated tokens of up to 200 bytes.
//! - **The largest frame** is [`RabbitConfig::max_frame`]: by default 16 MiB less 64 KiB, and up to 128 MiB where the
//!   server's `max_message_size` allows it.
//!
//! # What it costs
//! - **A restart of the broker** ends every link. What was published in between failed at its sender; what was in flight has
//!   an unknown outcome. Links are back within 2 s of the broker accepting connections; each raises one Gap. The exchange
//!   is durable.
//! - **A link** is two connections, five channels and two queues at the broker; at our side one task, two threads of lapin
//!   and about 4 MiB of its buffers.
//! - **Topics**: each is a binding, and each binding a transaction of the whole broker cluster. A broker with one core made
//!   about 5,000 each second, a cluster of two 2,000. A node binds all of its topics (groups and users with members here)
//!   within [`RouterConfig::connect_timeout`](backplane_core::RouterConfig::connect_timeout), 5 s by default, whenever it
//!   connects: with more than some thousands raise it, or set `buckets`, which bounds the bindings to that many for each
//!   node. So do where groups come and go by hundreds each second.
//!
//! # A cluster of brokers
//! List its nodes in the URL; both connections of a link lead to one of them, which holds the node's queue. They are tried in
//! a random order. When none gives a link, the error is final only if that of each is: one with a wrong certificate is
//! told, and keeps no node from waiting for the others (`start=degraded`). Tried by hand with two nodes of RabbitMQ 3.10.8
//! on one machine, links spread over both:
//! - Every contract of the seam and of whole nodes is kept. A new binding is valid on all nodes of the broker when it is
//!   confirmed (with Mnesia, the store of 3.x; not tried with Khepri).
//! - A node of the broker that is killed costs the links to it, which are back on the other one within 0.1 s, each with one
//!   Gap. Links to the others stay; what they had in flight is `Unavailable` with an unknown outcome (a nack).
//! - A node that stands still without being dead holds up all others until they declare it dead, which is a setting of the
//!   broker (`net_ticktime`, by default 60 s; with 8 s the others went on after 10): meanwhile no link can be opened and
//!   nothing bound anywhere, and frames that also go to a queue on that node end as `Timeout` with an unknown outcome.
//!   Frames of other calls of `publish` are accepted a second late for each 8 MiB or 1,024 frames of the former (those of
//!   the same call are answered with its slowest, at the latest after `command_timeout`), until some 400 of the former are
//!   under way: then RabbitMQ reads nothing more from who sent them. When it moves again after it was declared dead,
//!   frames that it had held may arrive late, behind newer ones of the same publisher; and the broker is partitioned,
//!   which `cluster_partition_handling` decides. Where nodes may stall, set `net_ticktime` near the heartbeat bound.
//!
//! # Permissions
//! With the exchange `backplane`, for a user `app` in its virtual host:
//! ```text
//! rabbitmqctl set_permissions -p VHOST app '^backplane' '^backplane' '^backplane'
//! ```
//! (configure, write, read). The queues are named `backplane.NODE.ATTEMPT.RANDOM`, one of them with `:losses` at the end; if
//! the exchange has another name, add it to each of the three. With `create=false` the exchange need not be configured; an
//! operator makes it: type `direct`, durable. A missing permission is `Denied` when the link is opened.
//!
//! # URL
//! `amqp://[user:password@]host[:port][,host[:port]...][/vhost]`, or `amqps://` for TLS. The virtual host is
//! percent-encoded (`/` in its name is `%2F`); without one it is `/`. Anything unknown is refused by name.
//! Durations have a unit (`500ms`, `10s`, `2m`); sizes are bytes, or have one (`64KiB`, `16MiB`).
//!
//! | parameter | meaning | default |
//! |---|---|---|
//! | `exchange` | the exchange that all nodes share | `backplane` |
//! | `create` | `false`: the exchange is there already | `true` |
//! | `buckets` | bind hash buckets instead of topics: 2 to 4,096, alike on all nodes; `0`: topics | `0` |
//! | `prefetch` | frames that the broker sends ahead of the reader | `1000` |
//! | `max_queue_bytes` | how much may wait in the node's queue | `64MiB` |
//! | `message_ttl` | how long a frame may wait there | `60s` |
//! | `unbind_after` | how long a binding outlives the interest in it | `30s` |
//! | `max_frame` | largest frame | 16 MiB less 64 KiB |
//! | `command_timeout` | how long a command may wait for its answer | the heartbeat bound, at least 5 s |
//! | `ca` | file with the only CAs to trust, PEM | the system's |
//! | `cert`, `key` | files with our certificate and its key, PEM | none |
//!
//! # Versions
//! RabbitMQ 3.10 and later. The tests run with 3.10.8, a single node; for a cluster of brokers see above. 4.x is not tried.
//!
//! # How it is built
//! lapin runs each connection on a thread of its own, over a socket that is ours: TLS is made by rustls with the provider
//! handed in, the last sign of life is known, and a link that is given up is cut at once, whatever the broker does. lapin's
//! own recovery and retries are off; they are the router's.

mod bindings;
mod bus;
mod config;
mod connection;
mod flight;
mod inbound;
mod link;
mod publisher;
mod queues;
mod refusal;
mod routing;
mod shared;
mod socket;
mod url;
mod watch;

pub use bus::RabbitBus;
pub use config::{RabbitAddress, RabbitConfig};
