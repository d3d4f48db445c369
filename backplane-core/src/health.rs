//! What an operator and an application can see: the state of the link, events, counters.

use crate::bus::LossReason;
use crate::error::Error;
use crate::id::{ConnectionId, NodeId};
use crate::topic::Topic;

/// The state of a node's link.
#[derive(Clone, Debug)]
pub struct Health {
    /// Up, down or closed.
    pub state: LinkState,
    /// Attempts to connect so far.
    pub attempts: u64,
    /// Whether the wire format lets this node remove repeats and prove gaps. Without it (`aspnetcore`) only what the
    /// bus itself tells is known to be lost.
    pub detects_loss: bool,
    /// Why the broker takes nothing from us now although the link is up, such as an alarm of its own. Deliveries go on.
    pub impediment: Option<Error>,
}

impl Health {
    /// Whether sends can succeed now: the link is up, and the broker takes what we send.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(self.state, LinkState::Up) && self.impediment.is_none()
    }

    /// Whether the link is up and the broker takes nothing from us.
    #[must_use]
    pub fn is_impeded(&self) -> bool {
        matches!(self.state, LinkState::Up) && self.impediment.is_some()
    }

    /// Whether the link is down; the supervisor keeps trying.
    #[must_use]
    pub fn is_down(&self) -> bool {
        matches!(self.state, LinkState::Down { .. })
    }

    /// Whether the node was shut down.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.state, LinkState::Closed)
    }
}

/// See [`Health::state`].
#[derive(Clone, Debug)]
pub enum LinkState {
    /// Everything that this node wants is subscribed and confirmed.
    Up,
    /// No link. `error` is why the last one ended or the last attempt failed; `None` before the first attempt ended.
    Down {
        /// The last failure.
        error: Option<Error>,
    },
    /// The node was shut down.
    Closed,
}

/// What happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The link is up, everything wanted is subscribed.
    LinkUp {
        /// Number of the attempt that succeeded.
        attempt: u64,
        /// Whether the bus continued where the last link ended: nothing was lost.
        resumed: bool,
    },
    /// The link was lost or an attempt failed.
    LinkDown {
        /// Why.
        error: Error,
    },
    /// Messages from other nodes may have been lost.
    Gap(Gap),
    /// Another node was heard for the first time.
    NodeJoined(NodeId),
    /// Another node left or was not heard for three beats; waits on it ended.
    NodeGone(NodeId),
    /// A connection's outbound queue overflowed and the overflow policy was applied.
    Overflow(ConnectionId),
    /// The node was shut down.
    Closed,
}

/// Messages that may have been lost on their way to this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Whose messages; `None`: anybody's.
    pub origin: Option<NodeId>,
    /// The topics at which the loss was noticed; `None`: any. With an `origin`, other topics of that origin may be
    /// concerned too, up to `through`.
    pub topics: Option<Vec<Topic>>,
    /// Frames of `origin` numbered above this were or may have been lost ...
    pub after: u64,
    /// ... up to and including this one. `u64::MAX` when there is no `origin`.
    pub through: u64,
    /// Why, as far as known.
    pub reason: LossReason,
}

impl Gap {
    /// A gap of unknown extent: the receiver of events itself fell behind and missed some.
    #[must_use]
    pub fn lagged() -> Self {
        Self::unknown(LossReason::Overflow)
    }

    /// A gap of unknown extent.
    #[must_use]
    pub fn unknown(reason: LossReason) -> Self {
        Self { origin: None, topics: None, after: 0, through: u64::MAX, reason }
    }
}

/// Counters since the start of the node, and two gauges (`pending`, `queued_*`). All hubs of the node together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Frames that the broker accepted from us.
    pub published: u64,
    /// Frames that it refused or that were in flight when the link broke.
    pub publish_failures: u64,
    /// Frames that arrived.
    pub received: u64,
    /// Messages put into outbound queues, one for each recipient.
    pub delivered: u64,
    /// Frames that arrived although nobody here wanted them (B10), or of an unknown kind.
    pub unwanted: u64,
    /// Frames that could not be read.
    pub malformed: u64,
    /// Repeated frames that were removed.
    pub repeats_removed: u64,
    /// Gaps raised.
    pub gaps: u64,
    /// Entries evicted from bounded tables: loss detection was weakened that often, no frame was dropped.
    pub evictions: u64,
    /// Outbound queues that overflowed.
    pub overflows: u64,
    /// Messages that had no encoding for the recipient's protocol.
    pub missing_protocol: u64,
    /// Acknowledgements and answers to other nodes that could not be queued.
    pub replies_dropped: u64,
    /// Links established after the first one.
    pub reconnects: u64,
    /// Acknowledged calls that wait right now.
    pub pending: u64,
    /// Frames queued or unconfirmed right now.
    pub queued_frames: u64,
    /// Bytes queued or unconfirmed right now.
    pub queued_bytes: u64,
}
