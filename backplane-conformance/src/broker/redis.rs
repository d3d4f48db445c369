//! A private Redis server.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use backplane_core::{Error, ErrorKind, Result};

use super::Broker;
use super::folder::Folder;
use super::port::{free_port, random};
use super::process::{Launch, Process, StartError};
use super::require::find;
use super::resp::{Reply, ask};
use super::tls::TlsFiles;

/// With how many ports a start is tried.
const PORTS: usize = 5;

/// How long a restart waits for its port, when somebody else has it.
const PORT_DEADLINE: Duration = Duration::from_secs(5);

/// The suite's own user: tests may take any right from the default one.
const SUITE_USER: &str = "conformance-suite";

/// How a private Redis is set up.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// Whether [`url`](Broker::url) is `rediss://`, with a certificate of a private authority. Default: no.
    pub tls: bool,
    /// The names in that certificate. Default `localhost` and `127.0.0.1`; the server listens on the latter.
    pub tls_names: Vec<String>,
    /// The default user's password. Default: none.
    pub password: Option<String>,
    /// Access-control lines, without the word `user`: `bob on >secret resetchannels &news.* +subscribe`.
    pub users: Vec<String>,
    /// More lines of its configuration file.
    pub config: Vec<String>,
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self {
            tls: false,
            tls_names: vec!["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string()],
            password: None,
            users: Vec::new(),
            config: Vec::new(),
        }
    }
}

/// A private `redis-server` that keeps nothing on disk. It ends when dropped.
#[derive(Debug)]
pub struct Redis {
    options: RedisOptions,
    address: SocketAddr,
    /// Where the suite itself asks: the same as `address` unless that speaks TLS.
    plain: SocketAddr,
    tls: Option<TlsFiles>,
    suite_password: String,
    process: Process,
}

impl Broker for Redis {
    type Options = RedisOptions;
    const NAME: &'static str = "redis";
    const PROGRAM: &'static str = "redis-server";

    async fn start(options: RedisOptions) -> Result<Self> {
        let mut taken = None;
        for _ in 0..PORTS {
            let redis = Self::prepare(options.clone())?;
            match redis.run().await {
                Ok(()) => return Ok(redis),
                Err(StartError::PortTaken(error)) => taken = Some(error),
                Err(StartError::Failed(error)) => return Err(error),
            }
        }
        Err(taken.expect("PORTS is above 0"))
    }

    fn process(&self) -> &Process {
        &self.process
    }

    fn url(&self) -> String {
        self.url_at(self.address)
    }

    async fn restart(&self) -> Result<()> {
        let deadline = Instant::now() + PORT_DEADLINE;
        loop {
            match self.run().await {
                Err(StartError::PortTaken(_)) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                run => return Ok(run?),
            }
        }
    }
}

impl Redis {
    fn prepare(options: RedisOptions) -> Result<Self> {
        let program = find(Self::PROGRAM)
            .map_err(|missing| Error::new(ErrorKind::Unsupported, "start").with_source(missing))?;
        let folder = Folder::new(Self::NAME)?;
        let address = loopback()?;
        let tls = options.tls.then(|| TlsFiles::create(&folder, &options.tls_names)).transpose()?;
        let plain = if options.tls { loopback()? } else { address };
        let suite_password = format!("{:016x}{:016x}", random(), random());
        let config = configuration(&options, address, plain, tls.as_ref(), &suite_password);
        let config = folder.write("redis.conf", config)?;
        let launch = Launch::new(Self::NAME, program).argument(config);
        Ok(Self { options, address, plain, tls, suite_password, process: Process::new(launch, folder) })
    }

    async fn run(&self) -> Result<(), StartError> {
        // Its own word that it is the process we started, for another Redis may have taken the port.
        self.process
            .start(async |id| {
                self.command(&["INFO", "server"]).await.is_ok_and(|server| {
                    field(&server.text(), "process_id").is_some_and(|own| own == id.to_string())
                })
            })
            .await
    }

    /// Where it listens for clients.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port of [`address`](Redis::address).
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The URL for the default user when reached at another address, such as that of a
    /// [`FaultProxy`](crate::proxy::FaultProxy).
    #[must_use]
    pub fn url_at(&self, address: SocketAddr) -> String {
        let credentials = self
            .options
            .password
            .as_ref()
            .map_or_else(String::new, |password| format!(":{}@", escape(password)));
        self.url_with(&credentials, address)
    }

    /// The URL for another user.
    #[must_use]
    pub fn url_as(&self, user: &str, password: &str) -> String {
        self.url_with(&format!("{}:{}@", escape(user), escape(password)), self.address)
    }

    fn url_with(&self, credentials: &str, address: SocketAddr) -> String {
        let scheme = if self.options.tls { "rediss" } else { "redis" };
        format!("{scheme}://{credentials}{address}")
    }

    /// The files of its TLS identity, if it has one.
    #[must_use]
    pub fn tls(&self) -> Option<&TlsFiles> {
        self.tls.as_ref()
    }

    /// Asks the server itself, past every proxy, over a new connection with all rights.
    ///
    /// # Errors
    /// [`Denied`](ErrorKind::Denied) with the server's words, [`Unavailable`](ErrorKind::Unavailable) when it does
    /// not run, [`Timeout`](ErrorKind::Timeout) after 5 s.
    pub async fn command<A: AsRef<[u8]>>(&self, arguments: &[A]) -> Result<Reply> {
        let auth: Vec<&[u8]> = vec![b"AUTH", SUITE_USER.as_bytes(), self.suite_password.as_bytes()];
        ask(self.plain, &[auth, arguments.iter().map(AsRef::as_ref).collect()]).await
    }

    /// How often each command was called since the server started or `CONFIG RESETSTAT`, by name in lower case
    /// (`publish`, `client|list`).
    ///
    /// # Errors
    /// As [`command`](Redis::command).
    pub async fn calls(&self) -> Result<HashMap<String, u64>> {
        let statistics = self.command(&["INFO", "commandstats"]).await?.text();
        let calls = statistics.lines().filter_map(|line| {
            let (name, numbers) = line.strip_prefix("cmdstat_")?.split_once(':')?;
            let calls = numbers.split(',').find_map(|number| number.strip_prefix("calls="))?;
            Some((name.to_owned(), calls.parse().ok()?))
        });
        Ok(calls.collect())
    }

    /// The channels that have a subscriber, unsorted.
    ///
    /// # Errors
    /// As [`command`](Redis::command).
    pub async fn channels(&self) -> Result<Vec<bytes::Bytes>> {
        let channels = self.command(&["PUBSUB", "CHANNELS"]).await?;
        Ok(channels
            .elements()
            .iter()
            .filter_map(|channel| match channel {
                Reply::Text(name) => Some(name.clone()),
                _ => None,
            })
            .collect())
    }
}

fn loopback() -> Result<SocketAddr> {
    let port = free_port().map_err(|error| Error::new(ErrorKind::Unavailable, "start").with_source(error))?;
    Ok((Ipv4Addr::LOCALHOST, port).into())
}

fn configuration(
    options: &RedisOptions,
    address: SocketAddr,
    plain: SocketAddr,
    tls: Option<&TlsFiles>,
    suite_password: &str,
) -> String {
    let mut lines = vec![
        format!("bind {}", address.ip()),
        format!("port {}", plain.port()),
        "save \"\"".to_owned(),
        "appendonly no".to_owned(),
        "daemonize no".to_owned(),
        format!("user {SUITE_USER} on >{suite_password} ~* &* +@all"),
    ];
    if let Some(tls) = tls {
        lines.push(format!("tls-port {}", address.port()));
        lines.push(format!("tls-cert-file {}", quote(&tls.certificate.to_string_lossy())));
        lines.push(format!("tls-key-file {}", quote(&tls.key.to_string_lossy())));
        lines.push(format!("tls-ca-cert-file {}", quote(&tls.ca.to_string_lossy())));
        lines.push("tls-auth-clients no".to_owned());
    }
    lines.extend(options.password.as_ref().map(|password| format!("requirepass {}", quote(password))));
    lines.extend(options.users.iter().map(|user| format!("user {user}")));
    lines.extend(options.config.iter().cloned());
    lines.push(String::new());
    lines.join("\n")
}

/// As Redis reads a string in its configuration file.
fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => quoted.extend(['\\', char::from(byte)]),
            b' '..=b'~' => quoted.push(char::from(byte)),
            _ => write!(quoted, "\\x{byte:02x}").expect("writing to a string cannot fail"),
        }
    }
    quoted.push('"');
    quoted
}

/// As a user name or password stands in a URL.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte))
            }
            _ => write!(escaped, "%{byte:02X}").expect("writing to a string cannot fail"),
        }
    }
    escaped
}

/// A field of an `INFO` answer.
fn field<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}
