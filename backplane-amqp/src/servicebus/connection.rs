//! One AMQP connection: how it is opened, watched and closed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use backplane_core::{Error, ErrorKind, Result};
use backplane_tls::handshake_failed;
use fe2o3_amqp::connection::ConnectionHandle;
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::{Connection as Protocol, Session};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::line::{Line, LineState};
use super::refusal;

/// How long an orderly end may take before the line is cut.
const FAREWELL: Duration = Duration::from_secs(1);
/// Transfers that the peer may send before it hears from us again. Credit bounds messages; this only has to hold them.
const WINDOW: u32 = 16_384;

/// Where to connect, and as whom.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: Option<Arc<rustls::ClientConfig>>,
    pub(super) sasl: SaslProfile,
    /// The shortest idle time-out that may be asked for.
    pub(super) shortest_idle: Duration,
}

impl Endpoint {
    pub(super) fn name(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// A connection with a session. Dropped, it is cut.
#[derive(Debug)]
pub(super) struct Connection {
    handle: ConnectionHandle<()>,
    pub(super) session: SessionHandle<()>,
    line: Cut,
}

/// Cuts its line when it is dropped.
#[derive(Debug)]
struct Cut(Arc<LineState>);

impl Drop for Cut {
    fn drop(&mut self) {
        self.0.cut();
    }
}

/// A stream to `host`, over TLS if there is a configuration for it.
pub(super) async fn dial(
    host: &str,
    port: u16,
    tls: Option<&Arc<rustls::ClientConfig>>,
) -> Result<Box<dyn Stream>> {
    let unreachable = |error: std::io::Error| {
        Error::new(ErrorKind::Unavailable, "connect")
            .with_context(format!("{host}:{port} cannot be reached"))
            .with_source(error)
    };
    let addresses: Vec<SocketAddr> =
        tokio::net::lookup_host((host, port)).await.map_err(unreachable)?.collect();
    let mut connected = Err(std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address"));
    for address in addresses {
        connected = TcpStream::connect(address).await;
        if connected.is_ok() {
            break;
        }
    }
    let stream = connected.map_err(unreachable)?;
    stream.set_nodelay(true).map_err(unreachable)?;
    let Some(tls) = tls else { return Ok(Box::new(stream)) };
    let name = ServerName::try_from(host.to_owned()).map_err(|error| {
        Error::new(ErrorKind::InvalidConfig, "connect")
            .with_context("the host is no name for TLS")
            .with_source(error)
    })?;
    match TlsConnector::from(tls.clone()).connect(name, stream).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => Err(handshake_failed(error, host)),
    }
}

/// What a connection runs over.
pub(super) trait Stream: AsyncRead + AsyncWrite + std::fmt::Debug + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + std::fmt::Debug + Send + Unpin> Stream for S {}

impl Connection {
    /// Opens one, with a session.
    ///
    /// The peer is asked to say something twice within `heartbeat`, or as often as it is willing to. `ahead` bounds what is
    /// read before somebody takes it.
    pub(super) async fn open(
        endpoint: &Endpoint,
        name: &str,
        heartbeat: Duration,
        ahead: usize,
    ) -> Result<Self> {
        let stream = dial(&endpoint.host, endpoint.port, endpoint.tls.as_ref()).await?;
        let line = LineState::new();
        let cut = Cut(line.clone());
        // The engine tells the peer half of it.
        let idle = heartbeat.max(2 * endpoint.shortest_idle);
        let idle = u32::try_from(idle.as_millis()).unwrap_or(u32::MAX);
        let mut handle = Protocol::builder()
            .container_id(name)
            .hostname(endpoint.host.as_str())
            .sasl_hostname(endpoint.host.as_str())
            // TLS, where there is any, is done already.
            .scheme("amqp")
            .idle_time_out(idle)
            .sasl_profile(endpoint.sasl.clone())
            .open_with_stream(Line::new(stream, line))
            .await
            .map_err(refusal::open)?;
        let session = Session::builder()
            .incoming_window(WINDOW)
            .buffer_size(ahead)
            .begin(&mut handle)
            .await
            .map_err(|error| refusal::begin("connect", error))?;
        Ok(Self { handle, session, line: cut })
    }

    /// One more session.
    pub(super) async fn session(&mut self) -> Result<SessionHandle<()>> {
        Session::begin(&mut self.handle).await.map_err(|error| refusal::begin("connect", error))
    }

    /// What is known of its line.
    pub(super) fn line(&self) -> Arc<LineState> {
        self.line.0.clone()
    }

    /// Returns when the connection ended by itself, with the reason.
    pub(super) async fn ended(&mut self) -> Error {
        refusal::ended(self.handle.on_close().await)
    }

    /// Ends in order, or by force when that takes too long.
    pub(super) async fn close(mut self) {
        let _ = timeout(FAREWELL, self.handle.close()).await;
    }
}
