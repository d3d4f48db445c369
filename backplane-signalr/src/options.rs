//! Every bound and deadline of the hub server, with its default.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use backplane_core::{Error, ErrorKind, OutboundLimits, Result};

/// Chooses one of the sub-protocols that a WebSocket request offers, in the order of its header; `None`: none.
pub type SubprotocolSelector = Arc<dyn for<'a> Fn(&[&'a str]) -> Option<&'a str> + Send + Sync>;

/// Which transports a hub serves, among those this version can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transports {
    /// WebSockets. Default `true`.
    pub web_sockets: bool,
}

impl Default for Transports {
    fn default() -> Self {
        Self { web_sockets: true }
    }
}

/// Options of a hub server. Start from `default()` and set what differs; the defaults are those of ASP.NET Core SignalR
/// where it has the option.
#[derive(Clone)]
pub struct HubOptions {
    /// Time between two pings to a client. Default 15 s.
    pub keep_alive: Duration,
    /// A client that pings and was then not heard for this long is disconnected, with reconnect allowed. Default 30 s.
    /// A client that never sent a ping is not timed out, as in .NET.
    pub client_timeout: Duration,
    /// How long a client may take for its handshake. Default 15 s.
    pub handshake_timeout: Duration,
    /// How long a negotiated connection waits for its transport. Default 15 s.
    pub disconnect_timeout: Duration,
    /// How long the end of a transport may take (a WebSocket's close handshake). Default 5 s.
    pub close_timeout: Duration,
    /// How long one write to a client may be stuck before the connection is cut. Default 10 s.
    pub send_timeout: Duration,
    /// How long calls that still run when their connection ends may take to finish, and how long
    /// `on_disconnected` may take, before they are dropped. Default 5 s.
    pub call_grace: Duration,
    /// How long [`HubServer::shutdown`](crate::HubServer::shutdown) waits for the connections to end. Default 5 s more
    /// than `close_timeout`.
    pub shutdown_timeout: Duration,
    /// Longest record (one hub message with its separator, or the handshake) accepted from a client, in bytes. Default
    /// 32 KiB. A longer one closes the connection.
    pub max_record: usize,
    /// How many calls of one client run at the same time; further ones wait, and so does everything behind them.
    /// Default 1. A call that asks a client gives its place away.
    pub parallel_calls: usize,
    /// Whether clients are told the text of errors that are not public. Default `false`.
    pub detailed_errors: bool,
    /// The lowest version of negotiation that is served, 0 or 1. Default 0.
    pub min_negotiate_version: u32,
    /// Most connections that were negotiated and wait for their transport; beyond it negotiation is answered with 503.
    /// Default 65,536.
    pub max_negotiated: usize,
    /// What is served. Default all.
    pub transports: Transports,
    /// Bounds of each connection's outbound queue, and what happens at them.
    pub outbound: OutboundLimits,
    /// Chooses a WebSocket sub-protocol. Default: none is chosen.
    pub subprotocol: Option<SubprotocolSelector>,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(15),
            client_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(15),
            disconnect_timeout: Duration::from_secs(15),
            close_timeout: Duration::from_secs(5),
            send_timeout: Duration::from_secs(10),
            call_grace: Duration::from_secs(5),
            shutdown_timeout: Duration::from_secs(10),
            max_record: 32 << 10,
            parallel_calls: 1,
            detailed_errors: false,
            min_negotiate_version: 0,
            max_negotiated: 65_536,
            transports: Transports::default(),
            outbound: OutboundLimits::default(),
            subprotocol: None,
        }
    }
}

impl HubOptions {
    /// Checks the bounds: times between 1 ms and 24 h, `max_record` at least 64 bytes, `parallel_calls` at least 1,
    /// `min_negotiate_version` 0 or 1.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) naming the field and its bound.
    pub fn validate(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::new(ErrorKind::InvalidConfig, "serve").with_context(what));
        for (name, time) in [
            ("keep_alive", self.keep_alive),
            ("client_timeout", self.client_timeout),
            ("handshake_timeout", self.handshake_timeout),
            ("disconnect_timeout", self.disconnect_timeout),
            ("close_timeout", self.close_timeout),
            ("send_timeout", self.send_timeout),
            ("call_grace", self.call_grace),
            ("shutdown_timeout", self.shutdown_timeout),
        ] {
            if time < Duration::from_millis(1) || time > Duration::from_secs(24 * 3_600) {
                return wrong(format!("{name} must lie between 1 ms and 24 h"));
            }
        }
        if self.max_record < 64 {
            return wrong("max_record must be at least 64 bytes".into());
        }
        if self.parallel_calls == 0 || self.parallel_calls > 1 << 20 {
            return wrong("parallel_calls must lie between 1 and 1,048,576".into());
        }
        if self.min_negotiate_version > 1 {
            return wrong("min_negotiate_version must be 0 or 1".into());
        }
        Ok(())
    }
}

impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("keep_alive", &self.keep_alive)
            .field("client_timeout", &self.client_timeout)
            .field("handshake_timeout", &self.handshake_timeout)
            .field("max_record", &self.max_record)
            .field("parallel_calls", &self.parallel_calls)
            .field("detailed_errors", &self.detailed_errors)
            .field("transports", &self.transports)
            .field("outbound", &self.outbound)
            .finish_non_exhaustive()
    }
}
