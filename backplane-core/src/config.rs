//! How a node is set up. Every bound and deadline of the router stands here.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::id::HubName;

/// Longest time that any field may hold.
const LONGEST: Duration = Duration::from_secs(24 * 3_600);

/// Configuration of a node ([`Router::open`](crate::Router::open)). Start from `default()` and set what differs.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// The application prefix: nodes meet only within one. Default `backplane`; any UTF-8. `native` escapes it to at
    /// most 64 bytes; `aspnetcore` puts it in front of every channel as it is, and its default there is empty.
    pub prefix: Option<String>,
    /// The hub of the handle that [`Router::open`](crate::Router::open) returns; more by
    /// [`Router::hub`](crate::Router::hub). Default `hub`.
    pub hub: HubName,
    /// How frames and topics look. Default [`Wire::Native`].
    pub wire: Wire,
    /// Whether to fail when the first attempt to connect fails, or to start down and keep trying. Default
    /// [`Start::Strict`].
    pub start: Start,
    /// The heartbeat bound: how long a dead link may go unnoticed. A beat is sent each 0.3 of it. Default 10 s, at
    /// least 100 ms.
    pub heartbeat: Duration,
    /// How long one attempt to connect may take. Default 5 s.
    pub connect_timeout: Duration,
    /// How long `send` waits for room and acceptance. Default 5 s.
    pub send_timeout: Duration,
    /// How long an acknowledged command (`update_group`, `abort`) and a registration wait. Default 5 s.
    pub ack_timeout: Duration,
    /// How long `invoke` waits for the client's answer. Default 30 s.
    pub result_timeout: Duration,
    /// First pause before a reconnect; doubles up to `reconnect_max`, with jitter. Default 50 ms.
    pub reconnect_min: Duration,
    /// Longest pause before a reconnect. Default 1 s.
    pub reconnect_max: Duration,
    /// Most frames that may be queued or unconfirmed. When full, `post` is refused and `send` waits. Default 4,096.
    pub queue_frames: usize,
    /// Most bytes that may be queued or unconfirmed. A single larger frame passes when the queue is empty. Default
    /// 8 MiB.
    pub queue_bytes: usize,
    /// Most positions (origin and topic) kept for loss detection, and most topics whose last number is kept for
    /// sending. Beyond it detection weakens, which is counted in [`Stats::evictions`](crate::Stats::evictions); no
    /// frame is dropped. Default 65,536, at least 16.
    pub tracked_positions: usize,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            prefix: None,
            hub: HubName::from("hub"),
            wire: Wire::default(),
            start: Start::default(),
            heartbeat: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            send_timeout: Duration::from_secs(5),
            ack_timeout: Duration::from_secs(5),
            result_timeout: Duration::from_secs(30),
            reconnect_min: Duration::from_millis(50),
            reconnect_max: Duration::from_secs(1),
            queue_frames: 4_096,
            queue_bytes: 8 << 20,
            tracked_positions: 65_536,
        }
    }
}

impl RouterConfig {
    /// Checks the bounds.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) naming the field and its bound.
    pub fn validate(&self) -> Result<()> {
        let wrong = |what: &'static str| Err(Error::new(ErrorKind::InvalidConfig, "open").with_context(what));
        if self.heartbeat < Duration::from_millis(100) {
            return wrong("heartbeat must be at least 100 ms");
        }
        let deadlines = [
            self.connect_timeout,
            self.send_timeout,
            self.ack_timeout,
            self.result_timeout,
            self.reconnect_min,
        ];
        if deadlines.iter().any(Duration::is_zero) {
            return wrong(
                "connect_timeout, send_timeout, ack_timeout, result_timeout and reconnect_min must be above 0",
            );
        }
        if deadlines.iter().chain([&self.heartbeat, &self.reconnect_max]).any(|time| *time > LONGEST) {
            return wrong("no time may exceed a day");
        }
        if self.reconnect_max < self.reconnect_min {
            return wrong("reconnect_max must not be below reconnect_min");
        }
        if self.queue_frames == 0 || self.queue_bytes == 0 {
            return wrong("queue_frames and queue_bytes must be above 0");
        }
        if self.tracked_positions < 16 {
            return wrong("tracked_positions must be at least 16");
        }
        if self.queue_frames > u32::MAX as usize || self.queue_bytes > u32::MAX as usize {
            return wrong("queue_frames and queue_bytes must fit 32 bits");
        }
        Ok(())
    }
}

/// How frames and topics look.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Wire {
    /// Ours: home-node addressing, provenance, beats. See [`wire::Native`](crate::wire::Native).
    #[default]
    Native,
    /// The layout of ASP.NET Core SignalR's Redis backplane, to join a .NET fleet. Needs a bus that carries any topic.
    /// See [`wire::AspNetCore`](crate::wire::AspNetCore).
    AspNetCore {
        /// How this server is named in a .NET fleet; `None`: `rust_` and 32 random hex digits.
        server_name: Option<String>,
    },
}

/// What to do when the broker is not there at start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// One attempt; `open` fails with its error.
    #[default]
    Strict,
    /// `open` returns a node that is down and keeps trying. Errors that trying again cannot mend still fail it.
    Degraded,
}
