//! A private NATS server.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use backplane_core::{Error, ErrorKind, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Broker;
use super::folder::Folder;
use super::port::{free_port, random};
use super::process::{Launch, Process, StartError};
use super::require::find;
use super::tls::TlsFiles;

/// With how many ports a start is tried.
const PORTS: usize = 5;

/// How long a restart waits for its ports, when somebody else has one.
const PORT_DEADLINE: Duration = Duration::from_secs(5);

/// How long the monitoring port may take to answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// Largest answer of the monitoring port.
const LARGEST: u64 = 64 << 20;

/// How a private NATS server is set up.
#[derive(Clone, Debug)]
pub struct NatsOptions {
    /// Whether [`url`](Broker::url) is `tls://`, with a certificate of a private authority. Default: no.
    pub tls: bool,
    /// The names in that certificate. Default `localhost` and `127.0.0.1`; the server listens on the latter.
    pub tls_names: Vec<String>,
    /// Whether it keeps streams, in its own folder. Default: no.
    pub jetstream: bool,
    /// The only user and his password. Default: everybody may connect.
    pub user: Option<(String, String)>,
    /// The token that everybody has to know. Default: none.
    pub token: Option<String>,
    /// Largest message in bytes (`max_payload`). Default: the server's, 1 MiB.
    pub max_payload: Option<usize>,
    /// Most bytes that may wait for one client before it is cut (`max_pending`). Default: the server's, 64 MiB.
    pub max_pending: Option<usize>,
    /// How long a write to a client may take before it is cut (`write_deadline`). Default: the server's, 10 s.
    pub write_deadline: Option<Duration>,
    /// More lines of its configuration file, such as users with permissions.
    pub config: Vec<String>,
}

impl Default for NatsOptions {
    fn default() -> Self {
        Self {
            tls: false,
            tls_names: vec!["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string()],
            jetstream: false,
            user: None,
            token: None,
            max_payload: None,
            max_pending: None,
            write_deadline: None,
            config: Vec::new(),
        }
    }
}

/// A private `nats-server`. What it keeps is in its own folder and outlives a restart, not itself. It ends when dropped.
#[derive(Debug)]
pub struct Nats {
    options: NatsOptions,
    address: SocketAddr,
    monitor: SocketAddr,
    name: String,
    tls: Option<TlsFiles>,
    process: Process,
}

impl Broker for Nats {
    type Options = NatsOptions;
    const NAME: &'static str = "nats";
    const PROGRAM: &'static str = "nats-server";

    async fn start(options: NatsOptions) -> Result<Self> {
        let mut taken = None;
        for _ in 0..PORTS {
            let nats = Self::prepare(options.clone())?;
            match nats.run().await {
                Ok(()) => return Ok(nats),
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

impl Nats {
    fn prepare(options: NatsOptions) -> Result<Self> {
        let program = find(Self::PROGRAM)
            .map_err(|missing| Error::new(ErrorKind::Unsupported, "start").with_source(missing))?;
        let folder = Folder::new(Self::NAME)?;
        let (address, monitor) = (loopback()?, loopback()?);
        let tls = options.tls.then(|| TlsFiles::create(&folder, &options.tls_names)).transpose()?;
        let name = format!("private-{:016x}", random());
        let config = configuration(&options, &name, address, monitor, tls.as_ref(), &folder);
        let config = folder.write("nats.conf", config)?;
        let launch = Launch::new(Self::NAME, program).argument("--config").argument(config);
        Ok(Self { options, address, monitor, name, tls, process: Process::new(launch, folder) })
    }

    async fn run(&self) -> Result<(), StartError> {
        // Its own word that it is ours, for another one may have taken the port. It listens for clients last.
        let named = format!("\"server_name\": \"{}\"", self.name);
        self.process
            .start(async |_| {
                self.monitor("/varz").await.is_ok_and(|answer| answer.contains(&named))
                    && TcpStream::connect(self.address).await.is_ok()
            })
            .await
    }

    /// Where it listens for clients.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port of [`address`](Nats::address).
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The URL when reached at another address, such as that of a [`FaultProxy`](crate::proxy::FaultProxy).
    #[must_use]
    pub fn url_at(&self, address: SocketAddr) -> String {
        let credentials = match (&self.options.user, &self.options.token) {
            (Some((user, password)), _) => format!("{}:{}@", escape(user), escape(password)),
            (None, Some(token)) => format!("{}@", escape(token)),
            (None, None) => String::new(),
        };
        self.url_with(&credentials, address)
    }

    /// The URL for another user.
    #[must_use]
    pub fn url_as(&self, user: &str, password: &str) -> String {
        self.url_with(&format!("{}:{}@", escape(user), escape(password)), self.address)
    }

    fn url_with(&self, credentials: &str, address: SocketAddr) -> String {
        let scheme = if self.options.tls { "tls" } else { "nats" };
        format!("{scheme}://{credentials}{address}")
    }

    /// The files of its TLS identity, if it has one.
    #[must_use]
    pub fn tls(&self) -> Option<&TlsFiles> {
        self.tls.as_ref()
    }

    /// Asks it to leave in order (SIGUSR2, as `nats-server --signal ldm`): it tells its clients to go elsewhere, takes no
    /// new ones, and ends once all have gone or its `lame_duck_duration` has passed.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) when it does not run.
    pub fn lame_duck(&self) -> Result<()> {
        let gone = || Error::new(ErrorKind::Unavailable, "lame_duck").with_context("nats does not run");
        // A child that was not waited for keeps its number.
        let id = self
            .process
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw)
            .ok_or_else(gone)?;
        kill_process(id, Signal::USR2).map_err(|error| gone().with_source(error))
    }

    /// What its monitoring port answers to `GET path`: JSON.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) when it does not run or does not know the path,
    /// [`Timeout`](ErrorKind::Timeout) after 5 s.
    pub async fn monitor(&self, path: &str) -> Result<String> {
        let failed = |error| {
            Error::new(ErrorKind::Unavailable, "monitor").with_context(path.to_owned()).with_source(error)
        };
        let asking = async {
            let mut stream = TcpStream::connect(self.monitor).await?;
            let request = format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.monitor);
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.take(LARGEST).read_to_string(&mut answer).await?;
            Ok(answer)
        };
        let answer = tokio::time::timeout(DEADLINE, asking)
            .await
            .map_err(|_| Error::new(ErrorKind::Timeout, "monitor").with_context(path.to_owned()))?
            .map_err(failed)?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
            _ => Err(failed(std::io::Error::other("no answer of the monitoring port"))),
        }
    }

    /// The names of its clients, in the order of their arrival.
    ///
    /// # Errors
    /// As [`monitor`](Nats::monitor).
    pub async fn clients(&self) -> Result<Vec<String>> {
        let answer = self.monitor("/connz?limit=65536&sort=cid").await?;
        let names =
            answer.lines().filter_map(|line| line.trim().strip_prefix("\"name\": \"")?.split('"').next());
        Ok(names.map(str::to_owned).collect())
    }

    /// The subjects that its clients subscribe to, unsorted, one for each subscription.
    ///
    /// # Errors
    /// As [`monitor`](Nats::monitor).
    pub async fn subscriptions(&self) -> Result<Vec<String>> {
        let answer = self.monitor("/connz?limit=65536&subs=1").await?;
        let mut subjects = Vec::new();
        for list in answer.split("\"subscriptions_list\": [").skip(1) {
            let list = list.split(']').next().unwrap_or_default();
            subjects.extend(list.split('"').skip(1).step_by(2).map(str::to_owned));
        }
        Ok(subjects)
    }

    /// How many streams it keeps, and how many consumers they have.
    ///
    /// # Errors
    /// As [`monitor`](Nats::monitor).
    pub async fn streams_and_consumers(&self) -> Result<(u64, u64)> {
        let answer = self.monitor("/jsz").await?;
        let number = |name: &str| {
            let rest = answer.split(&format!("\"{name}\": ")).nth(1)?;
            rest.split([',', '\n', '}']).next()?.trim().parse().ok()
        };
        number("streams").zip(number("consumers")).ok_or_else(|| {
            Error::new(ErrorKind::Malformed, "monitor").with_context("no count of streams and consumers")
        })
    }
}

fn loopback() -> Result<SocketAddr> {
    let port = free_port().map_err(|error| Error::new(ErrorKind::Unavailable, "start").with_source(error))?;
    Ok((Ipv4Addr::LOCALHOST, port).into())
}

fn configuration(
    options: &NatsOptions,
    name: &str,
    address: SocketAddr,
    monitor: SocketAddr,
    tls: Option<&TlsFiles>,
    folder: &Folder,
) -> String {
    let mut lines = vec![
        format!("server_name: {name}"),
        format!("listen: \"{address}\""),
        format!("http: \"{monitor}\""),
    ];
    if let Some(tls) = tls {
        let (certificate, key) = (tls.certificate.display(), tls.key.display());
        lines.push(format!("tls {{ cert_file: \"{certificate}\", key_file: \"{key}\" }}"));
    }
    if options.jetstream {
        let store = folder.path().join("jetstream");
        lines
            .push(format!("jetstream {{ store_dir: \"{}\", max_mem: 1GB, max_file: 1GB }}", store.display()));
    }
    if let Some((user, password)) = &options.user {
        lines.push(format!("authorization {{ user: {}, password: {} }}", quote(user), quote(password)));
    } else if let Some(token) = &options.token {
        lines.push(format!("authorization {{ token: {} }}", quote(token)));
    }
    lines.extend(options.max_payload.map(|bytes| format!("max_payload: {bytes}")));
    lines.extend(options.max_pending.map(|bytes| format!("max_pending: {bytes}")));
    lines.extend(options.write_deadline.map(|time| format!("write_deadline: \"{}ms\"", time.as_millis())));
    lines.extend(options.config.iter().cloned());
    lines.push(String::new());
    lines.join("\n")
}

/// As its configuration file writes a string.
fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// As user names and passwords stand in a URL.
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
