//! Azure Service Bus, and other brokers of AMQP 1.0, as a [`Bus`](backplane_core::Bus).
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use backplane_amqp::{ServiceBus, ServiceBusConfig};
//! use backplane_core::{Router, RouterConfig};
//!
//! # async fn open() -> backplane_core::Result<()> {
//! let config = ServiceBusConfig::from_url("servicebus://app:c2VjcmV0@chat.servicebus.windows.net/live")?;
//! let node = Router::open(Arc::new(ServiceBus::new(config)?), RouterConfig::default()).await?;
//! # Ok(()) }
//! ```
//!
//! One topic serves an application; each node has a subscription of its own for each attempt to connect. A node receives
//! every message and keeps what it subscribed to, unless [`Filters`] let the broker choose.
//!
//! # What it promises
//! - **Delivery** is receive-and-delete: a frame arrives once or, when a connection breaks, never; the link ends and the
//!   router raises a Gap. Frames never repeat. A new link cannot resume.
//! - **Order** is kept per publisher: there is one sending link, and the topic is not partitioned.
//! - **Accepted** means that the server settled the message. What was on its way when a connection broke is reported with
//!   an unknown outcome. **Reach** is unknown.
//! - **Topics** are any bytes: they travel inside messages. Frames that are ready share a message of up to
//!   [`ServiceBusConfig::pack`] bytes, since Service Bus counts and throttles messages.
//! - **A subscription** is confirmed when the server, asked after the call, has said something on the receiving connection;
//!   with [`Filters`], when it changed the rules. What was sent just before it may arrive too. A link opens only after a message
//!   to itself came back.
//! - **A dead or frozen server** ends the link within the heartbeat bound. The idle time-out of AMQP is asked for (10 s or
//!   more, of Service Bus a minute, since it refuses less); a connection that was silent for 0.4 of the bound is probed by a message
//!   to ourselves.
//! - **Memory is bounded.** While more than [`ServiceBusConfig::max_undelivered`] waits for whoever polls `inbound`, nothing
//!   is received; up to [`ServiceBusConfig::prefetch`] messages then wait in the protocol engine, fewer where they are large.
//!   The rest waits in the subscription, until its `ttl` is over: what is then dropped shows as a Gap by the router's numbers.
//!   A link holds at most 64 MiB or 65,536 frames of unanswered publishes.
//! - **The largest frame** is [`ServiceBusConfig::max_frame`], or what the entity takes (256 KiB in the Standard tier) less
//!   4 KiB.
//!
//! # What it costs and what it cannot
//! - **A restart of the server** ends every link; the next one has a new subscription, and what was published in between is
//!   a Gap.
//! - **Throttling** (`server-busy`) is [`Overloaded`](backplane_core::ErrorKind::Overloaded): nothing is sent for as long as
//!   the server says (1 to 60 s; 10 s if it says nothing, as Microsoft's clients do). Meanwhile everything is refused at
//!   once, the node's health says why, and receiving and, without filters, joining go on. A server that dies within the
//!   pause is noticed after it. Nodes that are not throttled take one that is silent for longer than 3 beats for gone.
//! - **An entity that was deleted** ends the links; the next attempt makes it anew. Refused credentials are
//!   [`Denied`](backplane_core::ErrorKind::Denied), stand in the node's health, and are tried on.
//! - **Tokens** are renewed after three quarters of their life. A renewal that is refused ends the link.
//! - **Idle links** are detached by Service Bus after 10 minutes, idle subscriptions deleted. A node's beat goes through both
//!   links every 3 s; without beats (`aspnetcore`) the probes do.
//! - Each message costs one operation, and one more for each node that receives it.
//!
//! # Permissions
//! The policy needs the claims *Send* and *Listen*, and *Manage* to create entities. With `create=false` topic and
//! subscription are provided: one subscription for each node, without filter, with a time to live of a minute; what waited
//! in it before a link is left out. A connection that broke without a word may receive from it for some more minutes, until
//! Service Bus notices: what goes there is a Gap, and a link may need several attempts.
//!
//! # Filters
//! The default is none. A rule for each topic would make each join a command to the broker, allow only frames of one topic
//! to share a message, and count against the rules of the topic; what it saves is that nodes receive what they do not
//! want, which costs little in small fleets. `filters=N` (buckets) lies in between. Rules are added before `$Default` is removed.
//!
//! # RabbitMQ
//! With `management=none` any broker of AMQP 1.0 serves whose source makes a queue for each link, such as RabbitMQ with the
//! plugin `rabbitmq_amqp1_0`: `servicebus://user:password@host:5672/chat?auth=sasl&tls=false&management=none`. For RabbitMQ
//! alone prefer `amqp://`. **The plugin never deletes the queues of its links**; a policy has to:
//! ```text
//! rabbitmqctl set_policy backplane '^amq\.gen-' '{"expires":30000,"message-ttl":60000}' --apply-to queues
//! ```
//! Its alarm for memory does not stop the plugin of 3.10: frames go on being accepted. Where a broker stops reading
//! from us instead, publishes end in a Timeout, and the link within the heartbeat bound once the broker is silent too.
//!
//! The user needs the permissions of such a queue: configure and write on `amq.gen-*`, read on it and on `amq.topic`, write
//! on `amq.topic`.
//!
//! # URL
//! `servicebus://[key name:key@]host[:port][/topic]`, or Azure's connection string (`Endpoint=sb://...`). Anything else is
//! refused by name.
//! Durations have a unit (`500ms`, `10s`, `2m`); sizes are bytes, or have one (`64KiB`, `16MiB`).
//!
//! | parameter | meaning | default |
//! |---|---|---|
//! | `sas_name`, `sas_key` | name and key of the policy, instead of `name:key@` | none |
//! | `auth` | `cbs`: key and tokens; `sasl`: user and password; `anonymous` | `cbs` with credentials |
//! | `tls` | `false`: AMQP without TLS; `management` has its own scheme | `true` |
//! | `ca` | file with the only CAs to trust, PEM; for HTTPS too | the system's |
//! | `cert`, `key` | files with our certificate and its key, PEM | none |
//! | `create` | `false`: entities are provided, `subscription` names ours | `true` |
//! | `subscription` | the provided subscription | none |
//! | `management` | `http(s)://host[:port]` of the management interface; `none`: not Service Bus | HTTPS on the host |
//! | `publish_to`, `receive_from` | addresses, with `management=none` | `/topic/TOPIC` |
//! | `filters` | `none`, `topics` or a number of buckets, the same on all nodes | `none` |
//! | `ttl` | how long messages wait for a node | `60s` |
//! | `token_lifetime` | life of a token | `60m` |
//! | `prefetch` | most messages sent ahead | 1,000 |
//! | `pack` | frames share a message up to this size | `60KiB` |
//! | `max_frame` | largest frame | `1MiB` |
//! | `max_undelivered` | how much may wait for the reader | `16MiB` |
//! | `publish_timeout` | how long a frame waits for its outcome, at most `60m` | the heartbeat bound |
//!
//! # What was tested, and what only Azure can show
//! Every contract of the conformance suite runs on RabbitMQ 3.10 with its AMQP 1.0 plugin. Tokens, entities, rules, throttling
//! and detached links run against a peer inside the test process that does what Azure documents. **Not tested**, because
//! only Azure has it: whether its namespaces accept the tokens, Atom entries and rules as documented; its real limits, quotas
//! and throttling; latency of the tiers; how long after its creation a subscription receives (a message to ourselves is
//! awaited); AutoDeleteOnIdle itself; geo-recovery; the emulator.
//!
//! # How it is built
//! The protocol is `fe2o3-amqp`'s, over streams of ours that join its small writes and can be cut: the crate has neither
//! reconnection nor a time-out by default, and an engine of it that waits for a frozen peer cannot be stopped. Each link has
//! two connections, so that a server that stops reading from publishers does not keep us from receiving.

mod bus;
mod config;
mod connection;
mod filters;
mod inbox;
mod line;
mod management;
mod namespace;
mod packing;
mod publisher;
mod receiver;
mod refusal;
mod renewal;
mod request;
mod sender;
mod shared;
mod task;
mod throttle;
mod token;
mod url;

pub use bus::ServiceBus;
pub use config::{Credentials, Entities, ManagementAddress, ServiceBusConfig};
pub use filters::Filters;
