//! How a Service Bus is set up: every option with its unit, bound and default.

use std::fmt;
use std::time::Duration;

use backplane_core::Result;
use backplane_core::parameters::invalid;
use backplane_tls::Tls;

use super::filters::Filters;

/// Where the namespace is, who we are there, and which entities we use. Start from `default()` or
/// [`ServiceBusConfig::from_url`] and set what differs. `Debug` hides credentials.
///
/// ```
/// use backplane_amqp::{Credentials, ServiceBusConfig};
///
/// let config = ServiceBusConfig {
///     host: "chat.servicebus.windows.net".into(),
///     credentials: Credentials::Key { name: "app".into(), key: "secret".into() },
///     ..ServiceBusConfig::default()
/// };
/// assert!(!format!("{config:?}").contains("secret"));
/// ```
#[derive(Clone, Debug)]
pub struct ServiceBusConfig {
    /// Host name of the namespace, `NAME.servicebus.windows.net`, or of a broker. Required.
    pub host: String,
    /// TCP port, not 0. Default: 5671, without TLS 5672.
    pub port: Option<u16>,
    /// Whether to connect without TLS: for a broker on this machine, and for the emulator. Default: no.
    pub plain: bool,
    /// TLS settings. Default: trusts the system's CAs.
    pub tls: Option<Tls>,
    /// Who we are. Default: [`Credentials::Anonymous`].
    pub credentials: Credentials,
    /// The topic: one for each application. Letters, digits, `.`, `-`, `_` and `/`, at most 260. Default `backplane`.
    pub topic: String,
    /// What we receive from. Default: [`Entities::Created`].
    pub entities: Entities,
    /// Where the management interface is. Only [`Entities::Created`] needs it. Default: HTTPS on port 443 of `host`.
    pub management: Option<ManagementAddress>,
    /// What the broker filters by; only with [`Entities::Created`]. Default: [`Filters::None`].
    pub filters: Filters,
    /// How long messages wait for a node that does not receive, 1 s to 1 day; set on entities that we create. Default
    /// 60 s.
    pub ttl: Duration,
    /// How long a token lasts; it is renewed after three quarters of that. 2 s to 1 day. Default 1 h.
    pub token_lifetime: Duration,
    /// Most messages that the broker may send ahead, 1 to 5,000. Default 1,000.
    pub prefetch: u32,
    /// Frames share a message while that has at most so many bytes, up to 16 MiB. 0: each frame has its own message.
    /// Default 60 KiB: what Service Bus counts as one message.
    pub pack: usize,
    /// Largest frame in bytes, 1 KiB to 64 MiB. The link's limit is lower where the entity takes less. Default 1 MiB.
    pub max_frame: usize,
    /// Most bytes of frames that wait for whoever polls `inbound`; then no more are received. Default 16 MiB.
    pub max_undelivered: usize,
    /// How long a frame may wait for its outcome, above 0 and at most 1 hour. Default: the heartbeat bound of the link.
    pub publish_timeout: Option<Duration>,
}

/// Who we are to the server.
#[derive(Clone, Default)]
pub enum Credentials {
    /// A shared access key: signs tokens that are put to `$cbs`. What Azure and its emulator take.
    Key {
        /// Name of the policy.
        name: String,
        /// Its key, as the portal shows it.
        key: String,
    },
    /// User and password over SASL PLAIN: for brokers.
    Plain {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// Nobody in particular.
    #[default]
    Anonymous,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key { .. } => "Key(..)",
            Self::Plain { .. } => "Plain(..)",
            Self::Anonymous => "Anonymous",
        })
    }
}

/// What we send to and receive from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Entities {
    /// The topic, made unless it is there, and a subscription of its own for each node and attempt, made by us, deleted
    /// by us in the end, and by Service Bus after 5 minutes without a receiver. Needs the Manage claim.
    #[default]
    Created,
    /// The topic and a subscription that somebody provided. It belongs to one node alone: two would each receive a part.
    Provisioned {
        /// The subscription's name.
        subscription: String,
    },
    /// Addresses of a broker that is not Service Bus, whose source makes a queue for each link that attaches, as
    /// `/topic/NAME` and `/exchange/NAME/KEY` of RabbitMQ's AMQP 1.0 plugin do.
    Addresses {
        /// Where to send.
        publish_to: String,
        /// What to receive from.
        receive_from: String,
    },
}

/// Where the management interface is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagementAddress {
    /// Host name.
    pub host: String,
    /// TCP port, not 0.
    pub port: u16,
    /// Whether it speaks HTTPS, with the same TLS settings.
    pub tls: bool,
}

impl Default for ServiceBusConfig {
    fn default() -> Self {
        Self {
            host: String::new(),
            port: None,
            plain: false,
            tls: None,
            credentials: Credentials::default(),
            topic: "backplane".to_owned(),
            entities: Entities::default(),
            management: None,
            filters: Filters::default(),
            ttl: Duration::from_secs(60),
            token_lifetime: Duration::from_secs(3_600),
            prefetch: 1_000,
            pack: 60 << 10,
            max_frame: 1 << 20,
            max_undelivered: 16 << 20,
            publish_timeout: None,
        }
    }
}

impl ServiceBusConfig {
    /// Whether every field is in its bounds and they go together.
    pub(super) fn validate(&self) -> Result<()> {
        let day = Duration::from_secs(86_400);
        if self.host.is_empty() {
            return Err(invalid("the host is missing"));
        }
        if self.port == Some(0) || self.management.as_ref().is_some_and(|address| address.port == 0) {
            return Err(invalid("a port must not be 0"));
        }
        check_name("topic", &self.topic, 260, ".-_/")?;
        if let Credentials::Key { name: user, key: secret } | Credentials::Plain { user, password: secret } =
            &self.credentials
            && (user.is_empty() || secret.is_empty())
        {
            return Err(invalid("name or key, user or password are empty: was a variable not set?"));
        }
        if let Credentials::Key { name, key } = &self.credentials
            && name.chars().chain(key.chars()).any(char::is_whitespace)
        {
            return Err(invalid("the shared access key holds a space; in a URL a `+` is written %2B"));
        }
        if !(Duration::from_secs(1)..=day).contains(&self.ttl) {
            return Err(invalid("`ttl` must be 1 s to 1 day"));
        }
        if !(Duration::from_secs(2)..=day).contains(&self.token_lifetime) {
            return Err(invalid("`token_lifetime` must be 2 s to 1 day"));
        }
        if !(1..=5_000).contains(&self.prefetch) {
            return Err(invalid("`prefetch` must be 1 to 5,000"));
        }
        if self.pack > 16 << 20 {
            return Err(invalid("`pack` must be at most 16 MiB"));
        }
        if !(1 << 10..=64 << 20).contains(&self.max_frame) {
            return Err(invalid("`max_frame` must be 1 KiB to 64 MiB"));
        }
        if self.max_undelivered == 0 {
            return Err(invalid("`max_undelivered` must be above 0"));
        }
        let hour = Duration::from_secs(3_600);
        if self.publish_timeout.is_some_and(|timeout| timeout.is_zero() || timeout > hour) {
            return Err(invalid("`publish_timeout` must be above 0 and at most 1 hour"));
        }
        match self.filters {
            Filters::Buckets(0 | 1_001..) => return Err(invalid("`filters`: 1 to 1,000 buckets")),
            Filters::None => {}
            _ if self.entities != Entities::Created => {
                return Err(invalid(
                    "`filters` need a subscription that this bus makes itself (`create=true`)",
                ));
            }
            _ => {}
        }
        match &self.entities {
            Entities::Created if !matches!(self.credentials, Credentials::Key { .. }) => {
                Err(invalid("entities are created with a shared access key; give one, or `create=false`"))
            }
            Entities::Provisioned { subscription } => check_name("subscription", subscription, 50, ".-_"),
            Entities::Addresses { publish_to, receive_from }
                if publish_to.is_empty() || receive_from.is_empty() =>
            {
                Err(invalid("`publish_to` and `receive_from` must not be empty"))
            }
            _ => Ok(()),
        }
    }
}

fn check_name(what: &str, name: &str, most: usize, others: &str) -> Result<()> {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    let inside = bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || others.as_bytes().contains(byte));
    if edge(bytes.first()) && edge(bytes.last()) && inside && bytes.len() <= most {
        return Ok(());
    }
    Err(invalid(format!(
        "`{what}` must be 1 to {most} letters, digits and any of `{others}`, with a letter or digit at each end"
    )))
}
