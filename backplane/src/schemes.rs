//! Which schemes there are and which bus each one opens.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use backplane_core::memory::MemoryConfig;
use backplane_core::parameters::{Parameters, invalid};
use backplane_core::{Bus, Error, ErrorKind, MemoryBus, Result, Router, RouterConfig};

use crate::open::Resolved;
use crate::query;

type Opener = Arc<dyn Fn(&str) -> Result<Arc<dyn Bus>> + Send + Sync>;

/// The schemes that a program can open, as a value: there is no global registry.
///
/// ```
/// use std::sync::Arc;
/// use backplane::{MemoryBus, Schemes};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> backplane::Result<()> {
/// let shared = Arc::new(MemoryBus::new());
/// let schemes = Schemes::compiled().with("shared", move |_url| Ok(shared.clone()));
/// let north = schemes.open("shared:?hub=chat").await?;
/// let south = schemes.open("shared:?hub=chat").await?;
/// # drop((north, south));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Schemes {
    openers: BTreeMap<String, Opener>,
}

impl Schemes {
    /// `memory:` and the schemes whose features are enabled.
    #[must_use]
    pub fn compiled() -> Self {
        let schemes = Self { openers: BTreeMap::new() }.with("memory", open_memory);
        #[cfg(feature = "redis")]
        let schemes = schemes.with("redis", open_redis).with("rediss", open_redis);
        #[cfg(feature = "postgres")]
        let schemes = schemes.with("postgres", open_sql).with("postgresql", open_sql);
        #[cfg(feature = "mysql")]
        let schemes = schemes.with("mysql", open_sql).with("mariadb", open_sql);
        #[cfg(feature = "sqlite")]
        let schemes = schemes.with("sqlite", open_sql);
        #[cfg(feature = "mssql")]
        let schemes = schemes.with("mssql", open_sql).with("sqlserver", open_sql);
        #[cfg(feature = "amqp")]
        let schemes = schemes.with("amqp", open_amqp).with("amqps", open_amqp);
        #[cfg(feature = "servicebus")]
        let schemes = schemes.with("servicebus", open_service_bus);
        #[cfg(feature = "nats")]
        let schemes = schemes.with("nats", open_nats).with("tls", open_nats);
        schemes
    }

    /// Adds a scheme, or replaces the one of that name. `opener` gets the URL without the parameters that configure the
    /// node; it should refuse parameters that it does not know, must not print user or password, and connects nothing:
    /// that is for [`Bus::connect`].
    ///
    /// # Panics
    /// When `scheme` is not a lower-case URL scheme: a letter, then letters, digits, `+`, `-` or `.`.
    #[must_use]
    pub fn with(
        mut self,
        scheme: &str,
        opener: impl Fn(&str) -> Result<Arc<dyn Bus>> + Send + Sync + 'static,
    ) -> Self {
        assert!(
            is_scheme(scheme) && !scheme.bytes().any(|byte| byte.is_ascii_uppercase()),
            "{scheme:?} is not a lower-case URL scheme"
        );
        self.openers.insert(scheme.to_owned(), Arc::new(opener));
        self
    }

    /// Their names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.openers.keys().map(String::as_str)
    }

    /// As [`resolve`](crate::resolve()), with these schemes.
    ///
    /// # Errors
    /// See [`resolve`](crate::resolve()).
    pub fn resolve(&self, url: &str) -> Result<Resolved> {
        let opener = self.opener(url)?;
        if connection_string(url).is_some() {
            return Ok(Resolved { bus: opener(url)?, config: RouterConfig::default() });
        }
        let (config, rest) = query::split(url)?;
        Ok(Resolved { bus: opener(&rest).map_err(query::tell_ours)?, config })
    }

    /// As [`open`](crate::open()), with these schemes.
    ///
    /// # Errors
    /// See [`open`](crate::open()).
    pub async fn open(&self, url: &str) -> Result<Router> {
        self.resolve(url)?.open().await
    }

    /// As [`open_bus`](crate::open_bus), with these schemes.
    ///
    /// # Errors
    /// See [`open_bus`](crate::open_bus).
    pub fn open_bus(&self, url: &str) -> Result<Arc<dyn Bus>> {
        let opener = self.opener(url)?;
        if connection_string(url).is_none() {
            query::refuse_router_parameters(url)?;
        }
        opener(url)
    }

    fn opener(&self, url: &str) -> Result<&Opener> {
        let scheme = scheme_of(url)?;
        self.openers.get(&scheme).ok_or_else(|| self.missing(&scheme))
    }

    fn missing(&self, scheme: &str) -> Error {
        match KNOWN.iter().find(|(known, _)| *known == scheme) {
            Some((_, Availability::Feature(feature))) => invalid(format!(
                "`{scheme}` is not compiled in: enable the feature `{feature}` of the crate `backplane`"
            )),
            Some((_, Availability::Never(why))) => {
                Error::new(ErrorKind::Unsupported, "open").with_context(format!("`{scheme}`: {why}"))
            }
            None => invalid(format!("`{scheme}` is not a known scheme; {}", self.listed())),
        }
    }

    fn listed(&self) -> String {
        format!("compiled in: {}", self.names().collect::<Vec<_>>().join(", "))
    }
}

impl Default for Schemes {
    /// [`Schemes::compiled`].
    fn default() -> Self {
        Self::compiled()
    }
}

impl fmt::Debug for Schemes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Schemes").field(&self.names().collect::<Vec<_>>()).finish()
    }
}

/// What can be said about a scheme that is not compiled in.
enum Availability {
    /// This feature brings it.
    Feature(&'static str),
    /// It cannot be used, with a sentence that says what to write instead.
    Never(&'static str),
}

const NO_SENTINEL: &str =
    "Sentinel is not supported; give the address of the master as redis:// or rediss://";
const NO_CLUSTER: &str =
    "cluster discovery is not supported; give the address of one node as redis:// or rediss://";

/// Consulted only for schemes without an opener, so an application may bring its own.
const KNOWN: &[(&str, Availability)] = &[
    ("redis", Availability::Feature("redis")),
    ("rediss", Availability::Feature("redis")),
    ("redis+sentinel", Availability::Never(NO_SENTINEL)),
    ("rediss+sentinel", Availability::Never(NO_SENTINEL)),
    ("redis-sentinel", Availability::Never(NO_SENTINEL)),
    ("redis+cluster", Availability::Never(NO_CLUSTER)),
    ("rediss+cluster", Availability::Never(NO_CLUSTER)),
    ("redis-cluster", Availability::Never(NO_CLUSTER)),
    ("postgres", Availability::Feature("postgres")),
    ("postgresql", Availability::Feature("postgres")),
    ("mssql", Availability::Feature("mssql")),
    ("sqlserver", Availability::Feature("mssql")),
    ("mysql", Availability::Feature("mysql")),
    ("mariadb", Availability::Feature("mysql")),
    ("sqlite", Availability::Feature("sqlite")),
    ("amqp", Availability::Feature("amqp")),
    ("amqps", Availability::Feature("amqp")),
    ("nats", Availability::Feature("nats")),
    ("tls", Availability::Feature("nats")),
    ("servicebus", Availability::Feature("servicebus")),
];

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

/// The scheme that a connection string of .NET stands for: that of SQL Server (`Server=...;Database=...`) or that of
/// Azure Service Bus (`Endpoint=sb://...;SharedAccessKeyName=...`). Neither has a scheme or parameters of ours.
fn connection_string(text: &str) -> Option<&'static str> {
    const SQL_SERVER: [&str; 5] = ["server", "data source", "address", "addr", "network address"];
    if text.split_once(':').is_some_and(|(scheme, _)| is_scheme(scheme)) {
        return None;
    }
    let has = |names: &[&str]| {
        text.split(';').any(|pair| {
            pair.split_once('=')
                .is_some_and(|(key, _)| names.iter().any(|name| key.trim().eq_ignore_ascii_case(name)))
        })
    };
    if has(&["endpoint"]) {
        return Some("servicebus");
    }
    has(&SQL_SERVER).then_some("mssql")
}

/// The scheme in lower case. The error does not repeat the text: what is not a URL may be a password.
fn scheme_of(url: &str) -> Result<String> {
    if let Some(scheme) = connection_string(url) {
        return Ok(scheme.to_owned());
    }
    let (scheme, rest) = url.split_once(':').ok_or_else(|| {
        invalid("not a URL: it begins with a scheme and a colon, such as `memory:` or `redis://localhost`")
    })?;
    let credentials_without_scheme = rest.contains('@') && !rest.starts_with("//");
    if !is_scheme(scheme) || credentials_without_scheme {
        return Err(invalid(
            "not a URL: write a scheme in front, such as `redis://` or `memory:`; an `@` in a file's name or a parameter is \
             written %40",
        ));
    }
    Ok(scheme.to_ascii_lowercase())
}

fn open_memory(url: &str) -> Result<Arc<dyn Bus>> {
    let (address, mut parameters) = Parameters::of(url)?;
    if !matches!(address.split_once(':'), Some((_, "" | "//"))) {
        return Err(invalid("`memory:` has neither host nor path: the bus lives inside this process"));
    }
    let mut config = MemoryConfig::default();
    parameters.size("max_frame", &mut config.max_frame)?;
    parameters.number("inbox_frames", &mut config.inbox_frames)?;
    parameters.size("inbox_bytes", &mut config.inbox_bytes)?;
    parameters.number("history", &mut config.history)?;
    parameters.finish("memory")?;
    Ok(Arc::new(MemoryBus::with_config(config)))
}

#[cfg(feature = "redis")]
fn open_redis(url: &str) -> Result<Arc<dyn Bus>> {
    let config = backplane_redis::RedisConfig::from_url(url)?;
    Ok(Arc::new(backplane_redis::RedisBus::new(config)?))
}

#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite", feature = "mssql"))]
fn open_sql(url: &str) -> Result<Arc<dyn Bus>> {
    Ok(Arc::new(backplane_sql::SqlBus::from_url(url)?))
}

#[cfg(feature = "amqp")]
fn open_amqp(url: &str) -> Result<Arc<dyn Bus>> {
    let config = backplane_amqp::RabbitConfig::from_url(url)?;
    Ok(Arc::new(backplane_amqp::RabbitBus::new(config)?))
}

#[cfg(feature = "servicebus")]
fn open_service_bus(url: &str) -> Result<Arc<dyn Bus>> {
    let config = backplane_amqp::ServiceBusConfig::from_url(url)?;
    Ok(Arc::new(backplane_amqp::ServiceBus::new(config)?))
}

#[cfg(feature = "nats")]
fn open_nats(url: &str) -> Result<Arc<dyn Bus>> {
    let config = backplane_nats::NatsConfig::from_url(url)?;
    Ok(Arc::new(backplane_nats::NatsBus::new(config)?))
}
