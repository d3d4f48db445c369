//! The NATS bus of the backplane: core NATS or JetStream as a [`Bus`](backplane_core::Bus).
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use backplane_core::{Router, RouterConfig};
//! use backplane_nats::{NatsBus, NatsConfig};
//!
//! # async fn open() -> backplane_core::Result<()> {
//! let config = NatsConfig::from_url("tls://app:secret@one.internal,two.internal?ca=ca.pem")?;
//! let node = Router::open(Arc::new(NatsBus::new(config)?), RouterConfig::default()).await?;
//! # Ok(()) }
//! ```
//!
//! # What it promises
//! | | core NATS (default) | `durable=true`: JetStream |
//! |---|---|---|
//! | delivery | at most once; a loss is told | every frame that the stream keeps, once |
//! | a publish is accepted | the server has handled it | the stream has stored it |
//! | order | per publisher and topic | one for all nodes |
//! | after a lost link | starts anew; the router raises a Gap | resumes behind the last frame handled |
//! | interest | one subscription per topic | every node reads every frame of the subject |
//! | largest frame | the server's `max_payload` (1 MiB by default) | that less 128 bytes |
//! | a restart of the server | what was published meanwhile failed at its sender | `storage=file`: costs nothing; `memory`: told as a Gap |
//! | a crash of its machine | the same | what it had not synced is lost and told (`sync_interval` of the server, 2 min) |
//! | a slow reader | what does not fit `max_undelivered` is dropped and told | the stream waits; past its retention told |
//!
//! - **Topics** are dot-separated tokens (`TopicSyntax::Tokens`), and subjects: `chat.all` is `backplane.chat.all`. A
//!   wildcard, a space or an empty token is `Unsupported`.
//! - **Confirmation.** NATS answers neither publishes nor subscriptions. Each run of commands ends with a probe, a message
//!   to a subject of this link alone: when it comes back on the same connection the server has handled all before it. One
//!   probe covers everything written in one go. What the server refuses by its permissions is `Denied`, frame by frame.
//! - **A dead or frozen server** ends the link within the heartbeat bound: it is asked each 0.3 of it. What was in flight
//!   fails as `Unavailable` with an unknown outcome, and is never sent later.
//! - **A server in lame duck mode** is left at once: what is in flight is decided first, then the link ends and the router
//!   connects elsewhere. (A server that all clients have left ends at once, so this shortens its restart.)
//! - **A server that cuts us for slowness** (`max_pending`, `write_deadline`) ends the link; the router raises a Gap, or
//!   the next durable link resumes.
//! - **Memory is bounded**: 64 MiB or 65,536 frames of unanswered publishes (more is `Overloaded`), `max_undelivered` of
//!   what arrived, what one turn of the connection reads in front of that, and for a durable link the 32 MB that
//!   JetStream's flow control lets be under way.
//! - **Several addresses** are tried in turn, each attempt beginning with the next one. Those that the servers announce of
//!   each other are not used: behind a translation of addresses they lead nowhere, and no certificate names them. When none
//!   gives a link, the error is final only if that of each is: one with a wrong certificate is told, and keeps no node from
//!   waiting for the others (`start=degraded`).
//! - **A cluster** tells its other servers of a subscription a moment later and says nothing of it: where the server belongs
//!   to one, `connect` and `subscribe` return 250 ms after it has confirmed (`propagation`). Leaf nodes and gateways are
//!   not recognised: say it there.
//!
//! # JetStream
//! All nodes share one stream over `SUBJECT.>`, made by whoever comes first (in memory, one replica, 2 min, 256 MiB unless
//! the parameters say otherwise); one that exists is taken as it is. Each link has a consumer of its own, which the server
//! forgets 5 s after the link. A position is the stream's time of creation, the sequence and the time of the message: a
//! stream that was deleted and made anew, lost its end or was restored is not resumed. Messages that the stream no longer
//! keeps when a reader comes to them are `Lost`. Each frame has an identity (`Nats-Msg-Id`), so that one whose
//! acknowledgement stays out can be sent again without repeat.
//!
//! What it costs: a write (with replicas, a vote) per frame, and every node receives the frames of all topics and drops
//! those it does not want, since servers before 2.10 filter by one subject only. Applications that share a server should
//! have different subjects.
//!
//! # Permissions
//! ```text
//! publish:   SUBJECT.>  _INBOX.>
//! subscribe: SUBJECT.>  _INBOX.>
//! ```
//! For a durable link publishing to these as well, where `STREAM` is `backplane` unless named otherwise:
//! ```text
//! $JS.API.STREAM.INFO.STREAM  $JS.API.STREAM.MSG.GET.STREAM  $JS.API.CONSUMER.CREATE.STREAM.>  $JS.FC.STREAM.>
//! $JS.API.STREAM.CREATE.STREAM       unless create=false
//! $JS.API.CONSUMER.DELETE.STREAM.>   to free the consumer at once when a link is closed
//! ```
//! but not subscribing to `SUBJECT.>`. A link that may not publish to one of them is not opened, or ends with `Denied` as
//! soon as it has to (`$JS.FC`: once so much was delivered that the server asks for a word).
//!
//! # URL
//! `nats://[user:password@|token@]host[:port][,host[:port]...]`, or `tls://` for TLS. Scheme and credentials may be repeated
//! in front of each host, as NATS' own tools write it, but hold for all. Anything else is refused by name.
//! Durations have a unit (`500ms`, `10s`, `2m`); sizes are bytes, or have one (`64KiB`, `16MiB`).
//!
//! | parameter | meaning | default |
//! |---|---|---|
//! | `subject` | first tokens of every subject | `backplane` |
//! | `inbox` | first tokens of the subjects of answers | `_INBOX` |
//! | `creds` | credentials file: a JWT and the seed of its nkey; read again by each attempt to connect | none |
//! | `nkey` | file with the seed of an nkey | none |
//! | `ca` | file with the only CAs to trust, PEM | the system's |
//! | `cert`, `key` | files with our certificate and its key, PEM | none |
//! | `max_frame` | largest frame, if less than the server takes | none |
//! | `max_undelivered` | how much may wait for the reader | `16MiB` |
//! | `propagation` | how long a cluster may take to spread a subscription | `250ms` in a cluster, else `0ms` |
//! | `durable` | `true`: JetStream; the following need it | `false` |
//! | `stream` | name of the stream | the subject, `-` for `.` |
//! | `storage` | `memory` or `file` | `memory` |
//! | `replicas` | servers that keep it, 1 to 5 | 1 |
//! | `max_age` | how long frames are kept | `2m` |
//! | `max_bytes` | how much is kept | `256MiB` |
//! | `create` | `false`: the stream must be there | `true` |
//!
//! # Versions
//! Tested with nats-server 2.9.10, single and two in a cluster; nothing that is newer is used. JetStream in clusters (two
//! servers with one replica, three with three) was tried by hand only: every contract held there, and nothing was lost when
//! servers were killed or left. When a leader of the cluster died, it took up to 20 s until all nodes could publish again:
//! the servers elect another one after 4 to 9 s, and refuse or do not answer meanwhile. Gateways and leaf nodes are not
//! tested. Where a certificate file of the system cannot be read, such as a wrong `SSL_CERT_FILE`, `tls://` fails even with
//! `ca`: the crate insists on loading them.
//!
//! # How it is built
//! On `async-nats`, with its reconnection kept from ever happening: each link runs the crate's client on a thread and
//! runtime of its own. The crate's connection dials again by itself, then sends what was queued for the lost connection,
//! and its tasks cannot be stopped; with the runtime they end, whatever they were about to do. On that one thread its
//! tasks and ours take turns, so that its queues (which drop silently when full) are emptied as often as they are filled,
//! and its events (which may overtake messages otherwise) are heard in time. Its ordered consumer is not used: it starts
//! anew by itself, where this bus has to say what was lost.

mod alarm;
mod bus;
mod config;
mod core;
mod dial;
mod durable;
mod ears;
mod errors;
mod inbox;
mod shared;
mod subject;
mod thread;
mod url;

pub use backplane_tls::{Tls, TlsIdentity, TlsRoots};
pub use bus::NatsBus;
pub use config::{Credentials, Durable, NatsConfig, NatsServer, Storage};
