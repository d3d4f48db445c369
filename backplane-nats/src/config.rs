//! How a NATS bus is set up: every option with its unit, bound and default.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::ConnectOptions;
use backplane_core::{Error, ErrorKind, Result};
use backplane_tls::Tls;
use nkeys::KeyPairType;

/// Where NATS is and how to speak to it. Start from `default()` or [`NatsConfig::from_url`] and set what differs.
/// `Debug` hides credentials.
///
/// ```
/// use backplane_nats::{Credentials, NatsConfig};
///
/// let credentials = Credentials::Token("secret".into());
/// let config = NatsConfig { credentials, ..NatsConfig::default() };
/// assert!(!format!("{config:?}").contains("secret"));
/// ```
#[derive(Clone, Debug)]
pub struct NatsConfig {
    /// The servers of one NATS system. An attempt to connect tries each once, beginning with another one each time.
    /// Default: `127.0.0.1:4222`.
    pub servers: Vec<NatsServer>,
    /// Who we are. Default: nobody in particular.
    pub credentials: Credentials,
    /// TLS; `None` speaks plain TCP. Default: none.
    pub tls: Option<Tls>,
    /// First tokens of every subject: topic `chat.all` travels as `SUBJECT.chat.all`, and permissions are granted for
    /// `SUBJECT.>`. One to eight dot-separated tokens of `[A-Za-z0-9_-]`, at most 100 bytes. Default `backplane`.
    pub subject: String,
    /// First tokens of the subjects on which a link hears answers (its probes, acknowledgements, consumers). Form as
    /// `subject`. Default `_INBOX`.
    pub inbox: String,
    /// Largest frame in bytes, where that is less than the server takes (`max_payload`, 1 MiB unless configured
    /// otherwise). Default: what the server takes.
    pub max_frame: Option<usize>,
    /// Most bytes that wait between our reader and whoever polls `inbound`, at least 64 KiB. Core: what arrives while it
    /// is full is dropped and reported as `Lost`. Durable: the stream waits. Default 16 MiB.
    pub max_undelivered: usize,
    /// Core: how long the other servers of a cluster may take to learn of a new subscription. `connect` and `subscribe`
    /// return that much later, so that whoever publishes then reaches us through any server. At most 2 s. Default: 250 ms
    /// where the server says that it belongs to a cluster, else nothing.
    pub propagation: Option<Duration>,
    /// JetStream: frames are kept for a while, and a link resumes where the last one ended. Default: core NATS.
    pub durable: Option<Durable>,
}

/// The address of one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsServer {
    /// Host name or IP address (an IPv6 one without brackets).
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// Who we are for the server.
#[derive(Clone, Default)]
pub enum Credentials {
    /// Nobody in particular.
    #[default]
    None,
    /// A user and a password.
    User {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// A token that all clients share.
    Token(String),
    /// The seed of an nkey (`SU...`).
    NkeySeed(String),
    /// A credentials file: a JWT and the seed of its nkey. Read again by each attempt to connect, so that a file that is
    /// renewed before its JWT expires is all that a renewal takes.
    CredentialsFile(PathBuf),
    /// What stands in a credentials file, for whoever keeps it elsewhere.
    CredentialsText(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::User { .. } => "User (hidden)",
            Self::Token(_) => "Token (hidden)",
            Self::NkeySeed(_) => "NkeySeed (hidden)",
            Self::CredentialsFile(path) => return f.debug_tuple("CredentialsFile").field(path).finish(),
            Self::CredentialsText(_) => "CredentialsText (hidden)",
        })
    }
}

/// The JetStream stream of a durable bus. All nodes of an application share one, over `SUBJECT.>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Durable {
    /// Its name: 1 to 64 of `[A-Za-z0-9_-]`. Default: the subject, its dots replaced by `-`.
    pub stream: Option<String>,
    /// Where it is kept. Default [`Storage::Memory`].
    pub storage: Storage,
    /// On how many servers of a cluster it is kept, 1 to 5. Default 1.
    pub replicas: usize,
    /// How long a frame is kept: how far back a link can resume. 1 s to 24 h. Default 2 min.
    pub max_age: Duration,
    /// How many bytes are kept; beyond, the oldest go. At least 1 MiB. Default 256 MiB.
    pub max_bytes: u64,
    /// Whether to make the stream where there is none. One that is there is taken as it is, whatever its storage and
    /// limits. Default: yes.
    pub create: bool,
}

/// Where a stream is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Storage {
    /// In the servers' memory: a restart of the only replica forgets it.
    #[default]
    Memory,
    /// In files: survives a restart.
    File,
}

impl Credentials {
    /// The crate's options with these credentials. Reads their file.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) when the file cannot be read, or a seed or JWT cannot be used.
    pub(crate) fn options(&self) -> Result<ConnectOptions> {
        let options = match self {
            Self::None => ConnectOptions::new(),
            Self::User { user, password } => {
                ConnectOptions::with_user_and_password(user.clone(), password.clone())
            }
            Self::Token(token) => ConnectOptions::with_token(token.clone()),
            Self::NkeySeed(seed) => {
                if !nkeys::KeyPair::from_seed(seed)
                    .is_ok_and(|pair| pair.key_pair_type() == KeyPairType::User)
                {
                    return Err(invalid("the nkey seed must be that of a user (SU...), undamaged"));
                }
                ConnectOptions::with_nkey(seed.clone())
            }
            Self::CredentialsFile(path) => {
                let file = format!("the credentials file {}", path.display());
                let text = std::fs::read_to_string(path)
                    .map_err(|error| invalid(format!("{file} cannot be read")).with_source(error))?;
                ConnectOptions::with_credentials(&text).map_err(|_| unusable(&file))?
            }
            Self::CredentialsText(text) => {
                ConnectOptions::with_credentials(text).map_err(|_| unusable("the text of the credentials"))?
            }
        };
        Ok(options)
    }
}

impl Default for Durable {
    fn default() -> Self {
        Self {
            stream: None,
            storage: Storage::default(),
            replicas: 1,
            max_age: Duration::from_secs(120),
            max_bytes: 256 << 20,
            create: true,
        }
    }
}

impl Default for NatsConfig {
    fn default() -> Self {
        Self {
            servers: vec![NatsServer { host: "127.0.0.1".to_owned(), port: NatsServer::DEFAULT_PORT }],
            credentials: Credentials::None,
            tls: None,
            subject: "backplane".to_owned(),
            inbox: "_INBOX".to_owned(),
            max_frame: None,
            max_undelivered: 16 << 20,
            propagation: None,
            durable: None,
        }
    }
}

impl NatsServer {
    /// The port where none is given.
    pub const DEFAULT_PORT: u16 = 4222;
}

impl fmt::Display for NatsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Durable {
    /// The stream's name, for a bus with this subject.
    pub(crate) fn stream_name(&self, subject: &str) -> String {
        self.stream.clone().unwrap_or_else(|| subject.replace('.', "-"))
    }

    fn validate(&self) -> Result<()> {
        if self.stream.as_ref().is_some_and(|name| !(1..=64).contains(&name.len()) || !is_token(name)) {
            return wrong("stream must be 1 to 64 of A-Z, a-z, 0-9, _ and -");
        }
        if !(1..=5).contains(&self.replicas) {
            return wrong("replicas must be from 1 to 5");
        }
        if !(Duration::from_secs(1)..=Duration::from_secs(24 * 3_600)).contains(&self.max_age) {
            return wrong("max_age must be from 1 s to 24 h");
        }
        if !(1 << 20..=i64::MAX as u64).contains(&self.max_bytes) {
            return wrong("max_bytes must be at least 1 MiB");
        }
        Ok(())
    }
}

impl NatsConfig {
    /// Checks the bounds.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) naming the field and its bound.
    pub fn validate(&self) -> Result<()> {
        if self.servers.is_empty() || self.servers.len() > 64 {
            return wrong("from 1 to 64 servers must be named");
        }
        if self.servers.iter().any(|server| server.host.is_empty() || server.port == 0) {
            return wrong("a server needs a host and a port other than 0");
        }
        if !is_subject(&self.subject) {
            return wrong(
                "subject must be 1 to 8 dot-separated tokens of A-Z, a-z, 0-9, _ and -, at most 100 bytes",
            );
        }
        if !is_subject(&self.inbox) {
            return wrong(
                "inbox must be 1 to 8 dot-separated tokens of A-Z, a-z, 0-9, _ and -, at most 100 bytes",
            );
        }
        // The stream over `SUBJECT.>` would keep our answers, and answer them.
        let (subject, inbox) = (format!("{}.", self.subject), format!("{}.", self.inbox));
        if subject.starts_with(&inbox) || inbox.starts_with(&subject) {
            return wrong("subject and inbox must not lie within each other");
        }
        if self.propagation.is_some_and(|propagation| propagation > Duration::from_secs(2)) {
            return wrong("propagation must be at most 2 s");
        }
        if self.max_frame == Some(0) {
            return wrong("max_frame must be at least 1 byte");
        }
        if self.max_undelivered < 64 << 10 {
            return wrong("max_undelivered must be at least 64 KiB");
        }
        self.credentials.options()?;
        self.durable.as_ref().map_or(Ok(()), Durable::validate)
    }
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

fn is_subject(text: &str) -> bool {
    text.len() <= 100 && text.split('.').count() <= 8 && text.split('.').all(is_token)
}

fn wrong(what: &'static str) -> Result<()> {
    Err(invalid(what))
}

/// Without the crate's reason, which may quote it.
fn unusable(credentials: &str) -> Error {
    invalid(format!("{credentials} holds no JWT and seed that can be used"))
}

fn invalid(what: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidConfig, "open").with_context(what)
}
