//! The bus between the servers, and how its links are broken without touching a broker.

use std::sync::Arc;
use std::time::Duration;

use backplane::memory::MemoryFaults;
use backplane::{
    Backplane as _, Error, ErrorKind, MemoryBus, Resolved, Result, Router, Schemes, Start, Wire,
};
use backplane_conformance::proxy::FaultProxy;
use tokio::net::TcpStream;
use url::{Host, Url};

/// The name of the bus that needs no broker.
const EMBEDDED: &str = "an embedded bus";

/// How long the broker, which has just answered, may take to accept one more connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// What stands between the servers.
pub(crate) struct SharedBus {
    resolved: Resolved,
    name: String,
    /// `None`: the links of this bus cannot be broken from here.
    pub(crate) fault: Option<Fault>,
}

impl SharedBus {
    /// One more node on it.
    pub(crate) async fn node(&self) -> Result<Router> {
        self.resolved.open().await
    }

    /// How a reader calls it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it ends at this process.
    pub(crate) fn is_embedded(&self) -> bool {
        self.name == EMBEDDED
    }

    /// Whether its wire format can end a connection of another server.
    pub(crate) fn aborts_remotely(&self) -> bool {
        !matches!(self.resolved.config.wire, Wire::AspNetCore { .. })
    }
}

/// Breaks the links of all servers. The broker itself belongs to somebody else and never notices more than two
/// connections that end.
#[derive(Clone)]
pub(crate) enum Fault {
    /// The switches of the embedded bus.
    Memory(MemoryFaults),
    /// A proxy between the servers and the broker.
    Proxy(Arc<FaultProxy>),
}

impl Fault {
    /// Ends all links; no new one is possible.
    pub(crate) fn down(&self) {
        match self {
            Self::Memory(faults) => {
                faults.refuse(true);
                faults.cut();
            }
            Self::Proxy(proxy) => {
                proxy.refuse();
                proxy.cut();
            }
        }
    }

    /// New links are possible again.
    pub(crate) fn up(&self) {
        match self {
            Self::Memory(faults) => faults.refuse(false),
            Self::Proxy(proxy) => proxy.accept(),
        }
    }
}

/// Resolves the URL. What it names is not asked yet. Only the embedded bus can be broken then.
pub(crate) fn open(url: &str) -> Result<SharedBus> {
    let (resolved, fault) = match scheme(url).as_str() {
        "memory" => open_memory(url)?,
        _ => (backplane::resolve(url)?, None),
    };
    Ok(SharedBus { resolved, name: name(url), fault })
}

/// Resolves the URL, makes sure that a node can be opened on it, and puts something between that can break it, where
/// that is known how.
pub(crate) async fn open_breakable(url: &str) -> Result<SharedBus> {
    // One address without TLS: whoever checks a certificate would not find the proxy in it.
    let port = match scheme(url).as_str() {
        "redis" => Some(6379),
        "amqp" => Some(5672),
        "nats" => Some(4222),
        "servicebus" if is_plain(url) => Some(5672),
        _ => None,
    };
    let (mut resolved, fault) = match (scheme(url).as_str(), port) {
        ("memory", _) => open_memory(url)?,
        (_, Some(port)) if !url.contains(',') => open_behind_proxy(url, port).await?,
        _ => {
            let resolved = backplane::resolve(url)?;
            look(&resolved).await?;
            (resolved, None)
        }
    };
    resolved.config.start = Start::Strict;
    Ok(SharedBus { resolved, name: name(url), fault })
}

/// The connection strings of .NET have none.
fn scheme(url: &str) -> String {
    let before_colon = url.split(':').next().unwrap_or_default();
    match before_colon.split_once('=') {
        Some((key, _)) if key.trim().eq_ignore_ascii_case("endpoint") => "servicebus".to_owned(),
        Some(_) => "mssql".to_owned(),
        None => before_colon.to_ascii_lowercase(),
    }
}

/// Whether this bus, which uses TLS unless told not to, was told not to.
fn is_plain(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| url.query_pairs().any(|pair| pair == ("tls".into(), "false".into())))
}

/// Without host, user and password: it is shown on the page.
fn name(url: &str) -> String {
    match scheme(url).as_str() {
        "memory" => EMBEDDED.to_owned(),
        "redis" => "Redis".to_owned(),
        "rediss" => "Redis over TLS".to_owned(),
        "postgres" | "postgresql" => "PostgreSQL".to_owned(),
        "mysql" | "mariadb" => "MySQL or MariaDB".to_owned(),
        "sqlite" => "a file of SQLite".to_owned(),
        "mssql" | "sqlserver" => "SQL Server".to_owned(),
        "amqp" => "RabbitMQ".to_owned(),
        "amqps" => "RabbitMQ over TLS".to_owned(),
        "nats" => "NATS".to_owned(),
        "tls" => "NATS over TLS".to_owned(),
        "servicebus" => "Azure Service Bus".to_owned(),
        other => other.to_owned(),
    }
}

/// The facade reads the URL; the bus itself is made here, to have its fault switches.
fn open_memory(url: &str) -> Result<(Resolved, Option<Fault>)> {
    let bus = MemoryBus::new();
    let fault = Fault::Memory(bus.faults());
    let schemes = Schemes::compiled().with("memory", move |rest| {
        // Whatever is wrong about it is told by the facade.
        backplane::open_bus(rest)?;
        if rest.contains('?') {
            return Err(wrong("this demonstration takes no bounds of the memory bus"));
        }
        Ok(Arc::new(bus.clone()))
    });
    Ok((schemes.resolve(url)?, Some(fault)))
}

async fn open_behind_proxy(url: &str, usual_port: u16) -> Result<(Resolved, Option<Fault>)> {
    // First past the proxy: what is wrong with the broker or the URL is then told by the bus itself.
    look(&backplane::resolve(url)?).await?;
    let mut url = Url::parse(url).map_err(|_| wrong("the URL cannot be read"))?;
    let host = match url.host() {
        Some(Host::Ipv4(address)) => address.to_string(),
        Some(Host::Ipv6(address)) => address.to_string(),
        Some(Host::Domain(name)) => name.to_owned(),
        None => return Err(wrong("the URL names no host")),
    };
    let unavailable = |error| Error::new(ErrorKind::Unavailable, "open").with_source(error);
    // The one of the host's addresses at which somebody listens.
    let reached = TcpStream::connect((host, url.port().unwrap_or(usual_port)));
    let upstream = tokio::time::timeout(CONNECT_DEADLINE, reached)
        .await
        .map_err(|_| Error::new(ErrorKind::Timeout, "open"))?
        .and_then(|stream| stream.peer_addr())
        .map_err(unavailable)?;
    let proxy = FaultProxy::start(upstream).map_err(unavailable)?;
    let address = proxy.address();
    url.set_host(Some(&address.ip().to_string())).map_err(|_| wrong("the URL cannot name another host"))?;
    url.set_port(Some(address.port())).map_err(|()| wrong("the URL cannot name another port"))?;
    Ok((backplane::resolve(url.as_str())?, Some(Fault::Proxy(Arc::new(proxy)))))
}

/// Opens a node and ends it again.
async fn look(resolved: &Resolved) -> Result<()> {
    let mut strict = resolved.clone();
    strict.config.start = Start::Strict;
    strict.open().await?.shutdown().await
}

fn wrong(why: &'static str) -> Error {
    Error::new(ErrorKind::InvalidConfig, "open").with_context(why)
}
