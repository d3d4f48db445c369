//! Opens a backplane from a URL.
//!
//! One line of configuration picks the bus, and the rest of the program does not know which one it is:
//!
//! ```
//! use backplane::{Backplane as _, BackplaneExt as _, EncodedMessage};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> backplane::Result<()> {
//! let node = backplane::open("memory:?hub=chat&heartbeat=5s").await?;
//! node.send_to_all(EncodedMessage::json("{\"type\":1,\"target\":\"hello\",\"arguments\":[]}\u{1e}")).await?;
//! node.shutdown().await?;
//! # Ok(()) }
//! ```
//!
//! # Schemes
//! | URL | Feature | Bus |
//! |---|---|---|
//! | `memory:` | always there | [`MemoryBus`]: inside this process; each [`open`] is a new bus |
//! | `redis://`, `rediss://` | `redis` | a Redis or Valkey server, the second one over TLS |
//! | `postgres://`, `postgresql://` | `postgres` | a log in a PostgreSQL database |
//! | `mysql://`, `mariadb://` | `mysql` | a log in a MySQL or MariaDB database |
//! | `sqlite:` | `sqlite` | a log in a file, for the processes of one machine |
//! | `mssql://`, `sqlserver://`, `Server=...;Database=...` | `mssql` | a log in a SQL Server database |
//! | `amqp://`, `amqps://` | `amqp` | RabbitMQ, the second one over TLS |
//! | `nats://`, `tls://` | `nats` | NATS, the second one over TLS; JetStream with `durable=true` |
//! | `servicebus://`, `Endpoint=sb://...` | `servicebus` | Azure Service Bus |
//!
//! [`Schemes`] holds them as a value; [`Schemes::with`] adds a bus of your own.
//!
//! # Parameters
//! A URL is read strictly: an unknown, misspelt, repeated or unreadable parameter is
//! [`InvalidConfig`](ErrorKind::InvalidConfig) and names what is known. These configure the node and mean the same with
//! every bus; what they do stands at the field of [`RouterConfig`] with the same name:
//!
//! | Parameter | Value | Default |
//! |---|---|---|
//! | `hub` | a name, not empty | `hub` |
//! | `prefix` | text | that of the wire format |
//! | `wire` | `native` or `aspnetcore` | `native` |
//! | `server_name` | text; only with `wire=aspnetcore` | random |
//! | `start` | `strict` or `degraded` | `strict` |
//! | `heartbeat` | duration | `10s` |
//! | `connect_timeout`, `send_timeout`, `ack_timeout` | duration | `5s` |
//! | `result_timeout` | duration | `30s` |
//! | `reconnect_min`, `reconnect_max` | duration | `50ms`, `1s` |
//! | `queue_frames` | number | `4096` |
//! | `queue_bytes` | size | `8MiB` |
//! | `tracked_positions` | number | `65536` |
//!
//! Everything else goes to the bus. `memory:` knows `max_frame` (size), `inbox_frames` (number), `inbox_bytes` (size) and
//! `history` (number); see [`MemoryConfig`](memory::MemoryConfig). `redis://` and `rediss://` are documented in the crate
//! `backplane-redis`, the databases in `backplane-sql`, RabbitMQ and Service Bus in `backplane-amqp`, NATS in `backplane-nats`. The connection
//! strings of .NET have no room for parameters: `mssql://` and `servicebus://` have.
//!
//! Durations are a whole number and a unit: `500ms`, `10s`, `2m`. Sizes are bytes, or a whole number and `KiB`, `MiB` or
//! `GiB`. Names and values are percent-decoded and must be UTF-8; `+` is a space, as in HTML forms. User and password
//! must be percent-encoded where they hold one of `/?#@%`, a user where it holds `:`, both where they hold `,`;
//! what is given and empty, as by a variable that is not set, is refused, but for the password of a database's user and
//! the user of Redis, which may be empty. No error and no `Debug` prints them.

mod open;
mod query;
mod schemes;

pub use backplane_core::*;
pub use open::{Resolved, open, open_bus, resolve};
pub use schemes::Schemes;

#[cfg(any(feature = "amqp", feature = "servicebus"))]
pub use backplane_amqp as amqp;
#[cfg(feature = "nats")]
pub use backplane_nats as nats;
#[cfg(feature = "redis")]
pub use backplane_redis as redis;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite", feature = "mssql"))]
pub use backplane_sql as sql;

/// The examples of the README compile and run.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
