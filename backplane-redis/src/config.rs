//! How a Redis bus is set up: every option with its unit, bound and default.

use std::fmt;
use std::time::Duration;

use backplane_core::{Error, ErrorKind, Result};

use backplane_tls::Tls;

/// Where Redis is and how to speak to it. Start from `default()` or [`RedisConfig::from_url`] and set what differs.
/// `Debug` hides credentials.
///
/// ```
/// use backplane_redis::RedisConfig;
///
/// let config = RedisConfig { host: "redis.internal".into(), password: Some("secret".into()), ..RedisConfig::default() };
/// assert!(!format!("{config:?}").contains("secret"));
/// ```
#[derive(Clone)]
pub struct RedisConfig {
    /// Host name or IP address. Default `127.0.0.1`.
    pub host: String,
    /// TCP port. Default 6379.
    pub port: u16,
    /// The ACL user. Needs a password. Default: Redis' own `default` user.
    pub username: Option<String>,
    /// The password. Default: none is sent.
    pub password: Option<String>,
    /// The database. Pub/sub is the same in all of them; a number above 0 is still selected, so that a wrong one is
    /// noticed. Default 0.
    pub database: u32,
    /// The protocol version. Default [`Resp::V2`].
    pub resp: Resp,
    /// TLS; `None` speaks plain TCP. Default: none.
    pub tls: Option<Tls>,
    /// Whether the server is one node of a Redis Cluster. Then [`Capabilities::order`] promises no more than one
    /// order per publisher. A cluster node that this does not announce is served too, and logged as a warning.
    /// Default: no.
    ///
    /// [`Capabilities::order`]: backplane_core::Capabilities::order
    pub cluster: bool,
    /// Largest frame, and largest topic, in bytes; at most 512 MiB. Default 16 MiB: half of Redis' default limit for
    /// what may wait for one subscriber (`client-output-buffer-limit pubsub 32mb 8mb 60`). It must not exceed the
    /// server's `proto-max-bulk-len`, which ends a connection that does.
    pub max_frame: usize,
    /// Most bytes that wait between our reader and whoever polls `inbound`. When it is full we stop reading, so that
    /// Redis' limit for slow subscribers and not our memory decides. An arriving frame above both this and
    /// `max_frame` is skipped and reported as `Lost`. At least 64 KiB. Default 16 MiB.
    pub max_undelivered: usize,
    /// How long a publish, a subscription or an orderly close may wait for Redis' answer before it fails with
    /// `Timeout`; from 10 ms to 1 hour. Default: the heartbeat bound of the link.
    pub command_timeout: Option<Duration>,
}

/// Version of the Redis protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resp {
    /// RESP 2: every Redis.
    #[default]
    V2,
    /// RESP 3: Redis 6 and later.
    V3,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 6379,
            username: None,
            password: None,
            database: 0,
            resp: Resp::V2,
            tls: None,
            cluster: false,
            max_frame: 16 << 20,
            max_undelivered: 16 << 20,
            command_timeout: None,
        }
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |present: bool| if present { "(hidden)" } else { "(none)" };
        f.debug_struct("RedisConfig")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("username", &hidden(self.username.is_some()))
            .field("password", &hidden(self.password.is_some()))
            .field("database", &self.database)
            .field("resp", &self.resp)
            .field("tls", &self.tls)
            .field("cluster", &self.cluster)
            .field("max_frame", &self.max_frame)
            .field("max_undelivered", &self.max_undelivered)
            .field("command_timeout", &self.command_timeout)
            .finish()
    }
}

impl RedisConfig {
    /// Checks the bounds.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) naming the field and its bound.
    pub fn validate(&self) -> Result<()> {
        let wrong = |what: &'static str| Err(Error::new(ErrorKind::InvalidConfig, "open").with_context(what));
        if self.host.is_empty() {
            return wrong("host must not be empty");
        }
        if self.port == 0 {
            return wrong("port must not be 0");
        }
        if self.username.is_some() && self.password.is_none() {
            return wrong("a user needs a password (one whose user has `nopass` may be any)");
        }
        if !(1..=512 << 20).contains(&self.max_frame) {
            return wrong("max_frame must be from 1 byte to 512 MiB");
        }
        if self.max_undelivered < 64 << 10 {
            return wrong("max_undelivered must be at least 64 KiB");
        }
        let bounds = Duration::from_millis(10)..=Duration::from_secs(3_600);
        if self.command_timeout.is_some_and(|timeout| !bounds.contains(&timeout)) {
            return wrong("command_timeout must be from 10 ms to 1 hour");
        }
        Ok(())
    }

    /// How errors and logs name the server. Holds no credentials.
    pub(crate) fn address(&self) -> String {
        let scheme = if self.tls.is_some() { "rediss" } else { "redis" };
        if self.host.contains(':') {
            format!("{scheme}://[{}]:{}", self.host, self.port)
        } else {
            format!("{scheme}://{}:{}", self.host, self.port)
        }
    }
}
