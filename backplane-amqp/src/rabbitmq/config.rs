//! How a RabbitMQ bus is set up: every option with its unit, bound and default.

use std::fmt;
use std::time::Duration;

use backplane_core::{Error, ErrorKind, Result};
use backplane_tls::Tls;

/// Where RabbitMQ is and how it is used. Start from `default()` or [`RabbitConfig::from_url`] and set what differs.
/// `Debug` hides credentials.
///
/// ```
/// use backplane_amqp::RabbitConfig;
///
/// let config = RabbitConfig { password: "secret".into(), ..RabbitConfig::default() };
/// assert!(!format!("{config:?}").contains("secret"));
/// ```
#[derive(Clone)]
pub struct RabbitConfig {
    /// The nodes of the broker, at least one. Each attempt tries them once, in a random order, until one gives a link; both
    /// connections of a link lead to the same node. Default `127.0.0.1:5672`.
    pub addresses: Vec<RabbitAddress>,
    /// The user. Default `guest`.
    pub username: String,
    /// The user's password. Default `guest`.
    pub password: String,
    /// The virtual host. Default `/`.
    pub vhost: String,
    /// TLS; `None` speaks plain TCP. Default: none.
    pub tls: Option<Tls>,
    /// The exchange through which all nodes speak: direct, durable, 1 to 127 bytes. Topics carry the application's prefix, so
    /// applications may share it. Default `backplane`.
    pub exchange: String,
    /// Whether the exchange is declared. `false`: an operator has made it, and it is only looked up. Default: yes.
    pub create: bool,
    /// Binds this many hash buckets, from 2 to 4,096, instead of each topic: each node then receives what shares a
    /// bucket with its topics, and drops what it did not ask for. For applications whose groups come and go faster than
    /// the broker can change bindings. The same on all nodes that use the exchange. Default: none, one binding for each
    /// topic.
    pub buckets: Option<u16>,
    /// How many frames the broker may send ahead of what was read, at least 1. The bus holds at most that many. Default
    /// 1,000.
    pub prefetch: u16,
    /// Most bytes that wait in the node's queue at the broker. More drops the oldest frames, and the node is told. At
    /// least 64 KiB. Default 64 MiB.
    pub max_queue_bytes: u64,
    /// How long a frame may wait in that queue before it is dropped, and the node told; from 1 s to 1 day. Default 60 s.
    pub message_ttl: Duration,
    /// How long a binding outlives the interest in it, so that a topic that is soon wanted again costs nothing. At most
    /// 1 hour; 0 unbinds at once. Default 30 s.
    pub unbind_after: Duration,
    /// Largest frame in bytes, at most 128 MiB. It must not exceed the server's `max_message_size`, which ends a link that
    /// does. Default 16 MiB less 64 KiB: the server's own default is 16 MiB since RabbitMQ 4.0.
    pub max_frame: usize,
    /// How long a publish, a change of bindings or an orderly close may wait for the broker's answer; from 10 ms to 1 hour.
    /// Default: the heartbeat bound of the link, at least 5 s.
    pub command_timeout: Option<Duration>,
}

/// A node of the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RabbitAddress {
    /// Host name or IP address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for RabbitAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Default for RabbitConfig {
    fn default() -> Self {
        Self {
            addresses: vec![RabbitAddress { host: "127.0.0.1".to_owned(), port: 5672 }],
            username: "guest".to_owned(),
            password: "guest".to_owned(),
            vhost: "/".to_owned(),
            tls: None,
            exchange: "backplane".to_owned(),
            create: true,
            buckets: None,
            prefetch: 1_000,
            max_queue_bytes: 64 << 20,
            message_ttl: Duration::from_secs(60),
            unbind_after: Duration::from_secs(30),
            max_frame: (16 << 20) - (64 << 10),
            command_timeout: None,
        }
    }
}

impl fmt::Debug for RabbitConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitConfig")
            .field("addresses", &self.addresses)
            .field("username", &"(hidden)")
            .field("password", &"(hidden)")
            .field("vhost", &self.vhost)
            .field("tls", &self.tls)
            .field("exchange", &self.exchange)
            .field("create", &self.create)
            .field("buckets", &self.buckets)
            .field("prefetch", &self.prefetch)
            .field("max_queue_bytes", &self.max_queue_bytes)
            .field("message_ttl", &self.message_ttl)
            .field("unbind_after", &self.unbind_after)
            .field("max_frame", &self.max_frame)
            .field("command_timeout", &self.command_timeout)
            .finish()
    }
}

impl RabbitConfig {
    /// Checks the bounds.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) naming the field and its bound.
    pub fn validate(&self) -> Result<()> {
        let second = Duration::from_secs(1);
        let bounds = [
            (!self.addresses.is_empty(), "addresses must name at least one"),
            (
                self.addresses.iter().all(|one| !one.host.is_empty() && one.port != 0),
                "an address needs host and port",
            ),
            (self.vhost.len() <= 255, "vhost must not exceed 255 bytes"),
            ((1..=127).contains(&self.exchange.len()), "exchange must be from 1 to 127 bytes"),
            (
                !self.exchange.starts_with("amq."),
                "exchange must not start with `amq.`, which is the broker's own",
            ),
            (
                self.buckets.is_none_or(|buckets| (2..=4_096).contains(&buckets)),
                "buckets must be from 2 to 4,096",
            ),
            (self.prefetch >= 1, "prefetch must be at least 1"),
            (self.max_queue_bytes >= 64 << 10, "max_queue_bytes must be at least 64 KiB"),
            (i64::try_from(self.max_queue_bytes).is_ok(), "max_queue_bytes is too large"),
            ((second..=86_400 * second).contains(&self.message_ttl), "message_ttl must be from 1 s to 1 day"),
            (self.unbind_after <= 3_600 * second, "unbind_after must be at most 1 hour"),
            ((1..=128 << 20).contains(&self.max_frame), "max_frame must be from 1 byte to 128 MiB"),
            (
                self.command_timeout
                    .is_none_or(|timeout| (Duration::from_millis(10)..=3_600 * second).contains(&timeout)),
                "command_timeout must be from 10 ms to 1 hour",
            ),
        ];
        match bounds.into_iter().find(|(kept, _)| !kept) {
            Some((_, bound)) => Err(Error::new(ErrorKind::InvalidConfig, "open").with_context(bound)),
            None => Ok(()),
        }
    }
}
