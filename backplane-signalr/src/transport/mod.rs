//! Transports: the client leg. A transport moves bytes and knows no hub message; records may be split or joined on the way.

pub(crate) mod negotiate;
pub(crate) mod websocket;

use std::fmt::Debug;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};

use crate::protocol::TransferFormat;

/// One open transport of one connection. Polled by the connection's task alone; dropping it cuts the client off.
pub trait Transport: Debug + Send + Unpin + 'static {
    /// Its name in a negotiation: `WebSockets`, ...
    fn name(&self) -> &'static str;

    /// Whether it can carry a format.
    fn carries(&self, format: TransferFormat) -> bool;

    /// Whether a client that is connected but silent needs pings. Default `true`.
    fn wants_keep_alive(&self) -> bool {
        true
    }

    /// Appends some of what has arrived to `input`: at least one byte, or an empty chunk was received, when it is
    /// `Ready(Ok)`; some 4 KiB at most, so that the caller can bound what it holds. Also answers the transport's own
    /// control messages (a WebSocket's pings); their answers go out with the next [`poll_flush`](Transport::poll_flush).
    ///
    /// # Errors
    /// [`Ended`], for good: nothing more will arrive.
    fn poll_receive(&mut self, context: &mut Context<'_>, input: &mut BytesMut) -> Poll<Result<(), Ended>>;

    /// Takes complete records to send. Only when the last [`poll_flush`](Transport::poll_flush) was `Ready`, so that at
    /// most one piece waits here.
    fn send(&mut self, records: Bytes, format: TransferFormat);

    /// Writes what waits; `Ready` when all of it was handed to the operating system.
    ///
    /// # Errors
    /// [`Ended::Lost`]: it cannot be written any more.
    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Ended>>;

    /// How many bytes were handed to the operating system so far. A write that is large for its client is not stuck while
    /// this grows. Default 0: a transport that does not count.
    fn written(&self) -> u64 {
        0
    }

    /// Ends in order (what was sent is written, a WebSocket's close handshake); `Ready` when there is nothing left to
    /// do. The caller bounds it and drops the transport afterwards.
    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<()>;
}

/// How a transport came to its end, not by us.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The client ended it in order.
    #[error("closed by the client")]
    ByClient,
    /// The client broke the rules of the transport; it was told so.
    #[error("the client violated the transport's protocol: {0}")]
    Violation(&'static str),
    /// The connection was lost.
    #[error("the connection was lost: {0}")]
    Lost(#[from] std::io::Error),
}
