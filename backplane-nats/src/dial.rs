//! From an address to a connection that is ready, and what a failure of that means.

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, ServerAddr};
use backplane_core::{Error, ErrorKind, Result};
use backplane_tls::Tls;
use tokio::time::Instant;

use crate::config::{NatsConfig, NatsServer};
use crate::ears::Ears;

/// Commands that wait for the crate's connection. One command is one frame or one subscription.
const COMMANDS: usize = 2_048;

/// Far longer than any link lives on after its connection has ended.
const NEVER: Duration = Duration::from_secs(3_600);

/// What a connection is for.
pub(crate) struct Purpose<'a> {
    pub(crate) config: &'a NatsConfig,
    /// As operators see it.
    pub(crate) name: &'a str,
    pub(crate) attempt: u64,
    pub(crate) heartbeat: Duration,
    pub(crate) deadline: Instant,
    pub(crate) ears: &'a Arc<Ears>,
}

/// Tries each server once, beginning with another one at each attempt.
pub(crate) async fn dial(purpose: &Purpose<'_>) -> Result<Client> {
    let servers = &purpose.config.servers;
    let first = usize::try_from(purpose.attempt.wrapping_sub(1) % servers.len() as u64).unwrap_or(0);
    let mut failures = Vec::new();
    for index in 0..servers.len() {
        let server = &servers[(first + index) % servers.len()];
        let left = purpose.deadline.saturating_duration_since(Instant::now());
        // One that does not answer leaves the others their share of the time.
        let share = left / u32::try_from(servers.len() - index).unwrap_or(u32::MAX);
        let error = match tokio::time::timeout(share, connect(purpose, server, share)).await {
            Ok(Ok(client)) => return Ok(client),
            Ok(Err(error)) => error,
            Err(_) => Error::new(ErrorKind::Timeout, "connect")
                .with_context(format!("{server} did not let us in within {share:?}")),
        };
        tracing::debug!(%server, %error, "no connection");
        failures.push(error);
    }
    Err(Error::of_several(failures).unwrap_or_else(|| {
        Error::new(ErrorKind::InvalidConfig, "connect").with_context("no server is named")
    }))
}

async fn connect(purpose: &Purpose<'_>, server: &NatsServer, share: Duration) -> Result<Client> {
    let addresses = tokio::net::lookup_host((server.host.as_str(), server.port)).await.map_err(|error| {
        Error::new(ErrorKind::Unavailable, "connect")
            .with_context(format!("{server}: the name is not known"))
            .with_source(error)
    })?;
    // The crate tries each address of a name for that long: one that does not answer leaves the others their share.
    let patience = share / u32::try_from(addresses.count().max(1)).unwrap_or(u32::MAX);
    let scheme = if purpose.config.tls.is_some() { "tls" } else { "nats" };
    let address: ServerAddr = format!("{scheme}://{server}")
        .parse()
        .map_err(|error: io::Error| Error::new(ErrorKind::InvalidConfig, "connect").with_source(error))?;
    let connected = Arc::new(AtomicBool::new(false));
    let options = options(purpose, patience, connected.clone())?;
    let client = options.connect(address).await.map_err(|error| refusal(error, purpose.config, server))?;
    connected.store(true, Ordering::Relaxed);
    Ok(client)
}

fn options(purpose: &Purpose<'_>, patience: Duration, connected: Arc<AtomicBool>) -> Result<ConnectOptions> {
    let Purpose { config, ears, .. } = purpose;
    // The crate would build a configuration of its own by the process-wide provider, or panic where there are two.
    let tls = match &config.tls {
        Some(tls) => (**tls.config()).clone(),
        None => (**Tls::trusting_nobody()?.config()).clone(),
    };
    let ears = Arc::clone(ears);
    Ok(config
        .credentials
        .options()?
        .name(purpose.name)
        .custom_inbox_prefix(&config.inbox)
        .tls_client_config(tls)
        .require_tls(config.tls.is_some())
        .connection_timeout(patience)
        .request_timeout(Some(purpose.heartbeat))
        // The crate gives up at the third question without an answer: a little before the bound.
        .ping_interval((purpose.heartbeat * 3 / 10).max(Duration::from_millis(1)))
        .client_capacity(COMMANDS)
        // A full queue would drop in silence. Ours are emptied by the thread that fills them, at each of its turns.
        .subscription_capacity(tokio::sync::Semaphore::MAX_PERMITS)
        // Subjects are made of checked topics.
        .skip_subject_validation(true)
        .retain_servers_order()
        .ignore_discovered_servers()
        // A lost connection is the end of the link, and of the thread that would dial again: it never gets that far,
        // and with it ends what the crate would send later.
        .max_reconnects(1)
        .reconnect_delay_callback(
            move |_| {
                if connected.load(Ordering::Relaxed) { NEVER } else { Duration::ZERO }
            },
        )
        .event_callback(move |event| {
            ears.hear(&event);
            std::future::ready(())
        }))
}

fn refusal(error: ConnectError, config: &NatsConfig, server: &NatsServer) -> Error {
    let (kind, context) = meaning(&error, config, server);
    Error::new(kind, "connect").with_context(format!("{server}: {context}")).with_source(error)
}

fn meaning(error: &ConnectError, config: &NatsConfig, server: &NatsServer) -> (ErrorKind, String) {
    if let Some(tls) = tls_error(error) {
        return match (&config.tls, tls) {
            (None, rustls::Error::InvalidCertificate(_)) => {
                (ErrorKind::InvalidConfig, "the server wants TLS: write tls://".to_owned())
            }
            _ => backplane_tls::meaning(tls, &server.host),
        };
    }
    let said = error.to_string().to_lowercase();
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation => {
            (ErrorKind::Denied, "the server does not know these credentials".to_owned())
        }
        ConnectErrorKind::Authentication => {
            (ErrorKind::InvalidConfig, "the nkey seed cannot be used".to_owned())
        }
        ConnectErrorKind::Tls => (ErrorKind::InvalidConfig, "TLS cannot be set up".to_owned()),
        ConnectErrorKind::ServerParse => (ErrorKind::InvalidConfig, "no address".to_owned()),
        ConnectErrorKind::TimedOut => (ErrorKind::Timeout, "no answer in time".to_owned()),
        ConnectErrorKind::Dns => (ErrorKind::Unavailable, "the name is not known".to_owned()),
        // Expired or revoked credentials: `User Authentication Expired`, `User Authentication Revoked`.
        _ if said.contains("authentication") || said.contains("authorization") => {
            (ErrorKind::Denied, "the server refuses these credentials".to_owned())
        }
        _ => (ErrorKind::Unavailable, "no connection".to_owned()),
    }
}

/// The failure of TLS underneath, if that is what it is.
fn tls_error(error: &ConnectError) -> Option<&rustls::Error> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(error);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(error) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return Some(error);
        }
        cause = error.source();
    }
    None
}
