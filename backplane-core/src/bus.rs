//! The seam that each message system implements: opaque frames between topics, and nothing else.
//!
//! # Contracts
//! Everything above relies on these; `backplane-conformance` proves them for any bus.
//!
//! - **B1** After [`LinkSender::subscribe`] returned `Ok`, every later publish to that topic by any node arrives (on a
//!   broker cluster: after [`Capabilities::propagation`]).
//! - **B2** Any bytes arrive intact, up to [`Limits::max_frame`]; one byte more is
//!   [`TooLarge`](crate::ErrorKind::TooLarge) before anything is sent.
//! - **B3** Per publisher and topic, order is kept within a link. [`Order::Total`] additionally promises one order on
//!   all nodes.
//! - **B4** A frame's `Ok` means that the broker accepted it.
//! - **B5** Frames may repeat only where [`Capabilities::repeats`] says so; the router removes repeats.
//! - **B6** A dead link ends [`Link::inbound`] with an error within the heartbeat bound ([`Attach::heartbeat`], default
//!   10 s); it never just goes quiet.
//! - **B7** A link is freed on the broker when `inbound` is dropped or [`LinkSender::close`] returned, whichever is
//!   first; a sender that outlives it answers [`Closed`](crate::ErrorKind::Closed).
//! - **B8** Polling `inbound` is cancel-safe.
//! - **B9** [`Bus::connect`] tries once, within [`Attach::deadline`].
//! - **B10** A bus may deliver topics that nobody asked for (hash buckets, logs): the router drops them.
//!   [`LinkSender::unsubscribe`] frees.
//! - **B11** Loss is never silent: overflow, retention, slow-consumer cuts end the link or yield [`Delivery::Lost`].
//! - **B12** When [`Link::resumed`], every frame not yet delivered at the given position arrives.

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use crate::error::{Error, Result};
use crate::id::NodeId;
use crate::topic::{Topic, TopicSyntax};

/// A message system. One value serves any number of links; each [`connect`](Bus::connect) opens one.
#[async_trait]
pub trait Bus: Debug + Send + Sync + 'static {
    /// What this kind of bus promises at best. Fixed; asks nobody.
    fn capabilities(&self) -> Capabilities;

    /// Opens one link: one attempt, no retry, no sleep (B9). When it returns `Ok`, all of [`Attach::topics`] are
    /// subscribed and confirmed, in as few commands as the broker allows.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable) when the broker cannot be reached,
    /// [`Timeout`](crate::ErrorKind::Timeout) at the deadline, [`Denied`](crate::ErrorKind::Denied) when it refuses
    /// us, [`InvalidConfig`](crate::ErrorKind::InvalidConfig) or [`Unsupported`](crate::ErrorKind::Unsupported) when
    /// trying again cannot help. Of several addresses that all failed, each for its own reason, one that can pass decides
    /// ([`Error::of_several`]). Dropping the future frees all that it had opened.
    async fn connect(&self, attach: Attach<'_>) -> Result<Link>;
}

/// What a new link is for.
#[derive(Clone, Copy, Debug)]
pub struct Attach<'a> {
    /// The node that attaches.
    pub node: NodeId,
    /// Number of this attempt, from 1, growing for the life of the node. `(node, attempt)` names the link.
    pub attempt: u64,
    /// Topics to subscribe before `connect` returns.
    pub topics: &'a [Topic],
    /// After a lost link: the position of the last delivery that was handled. A bus that can resume (B12) does so and
    /// says [`Link::resumed`]; others ignore it.
    pub resume: Option<&'a Position>,
    /// How long `connect` may take.
    pub deadline: Duration,
    /// The heartbeat bound of B6.
    pub heartbeat: Duration,
}

/// One live connection to the broker.
pub struct Link {
    /// Publishes and subscribes. Shared: calls may overlap.
    pub sender: Arc<dyn LinkSender>,
    /// What arrives. Ends with an error when the link died, without one after [`LinkSender::close`]. Nothing follows
    /// an error.
    pub inbound: BoxStream<'static, Result<Delivery>>,
    /// Whether everything since [`Attach::resume`] will be delivered (B12). `false`: start anew.
    pub resumed: bool,
    /// What this link can carry, known once connected.
    pub limits: Limits,
}

impl Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("sender", &self.sender)
            .field("resumed", &self.resumed)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// The sending half of a link.
#[async_trait]
pub trait LinkSender: Debug + Send + Sync + 'static {
    /// Publishes a batch. The call itself fixes the order: frames reach the broker in the order of the calls and of
    /// the batch (B3). The future only awaits acceptance, one result per frame in the order of the batch; dropping it
    /// loses the outcomes, never a frame.
    ///
    /// # Errors
    /// Per frame: [`TooLarge`](crate::ErrorKind::TooLarge) (B2), [`Denied`](crate::ErrorKind::Denied),
    /// [`Unavailable`](crate::ErrorKind::Unavailable) with `outcome_unknown` when the link broke meanwhile,
    /// [`Closed`](crate::ErrorKind::Closed) after the end of the link.
    fn publish(&self, batch: Vec<Outgoing>) -> BoxFuture<'static, Vec<Result<Reach>>>;

    /// Subscribes to all of `topics`; `Ok` means that the broker confirmed every one (B1). Already subscribed topics
    /// are no error. On an error none of those that were new counts as subscribed. Dropping the future leaves the
    /// outcome open; a later `unsubscribe` settles it.
    async fn subscribe(&self, topics: &[Topic]) -> Result<()>;

    /// Frees `topics` on the broker; unknown ones are no error. Frames already on their way may still arrive.
    async fn unsubscribe(&self, topics: &[Topic]) -> Result<()>;

    /// Ends the link in order and frees it on the broker (B7). Idempotent. A link that broke before, or breaks meanwhile,
    /// has ended, which is `Ok`: how is told by [`Link::inbound`] and by the outcomes. An error means that the broker may
    /// still hold something of the link, for it did not answer in time. Dropping [`Link::inbound`] does the same without
    /// waiting.
    async fn close(&self) -> Result<()>;

    /// Why the broker takes no frames now although the link lives, such as an alarm that blocks whoever publishes. Asks
    /// nobody. While there is a reason, publishes fail with it and deliveries go on; the router shows it in
    /// [`Health`](crate::Health), sends no beats and does not miss its own. Default: none.
    fn impediment(&self) -> Option<Error> {
        None
    }
}

/// One frame to publish.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Where to.
    pub topic: Topic,
    /// What; opaque.
    pub frame: Bytes,
}

/// How many subscribers the broker handed a frame to, where it says so ([`Limits::reports_reach`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The broker does not say.
    Unknown,
    /// That many links, our own included. Zero proves that nobody listened at that moment.
    Nodes(u32),
}

/// What arrives on a link.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// A frame.
    Frame {
        /// The topic it was published to.
        topic: Topic,
        /// Its bytes. Should not pin a buffer much larger than itself.
        frame: Bytes,
        /// Where in the log it stands, on a bus that can resume.
        position: Option<Position>,
    },
    /// Frames were lost on this link (B11).
    Lost {
        /// The topics concerned; `None`: any.
        topics: Option<Vec<Topic>>,
        /// Why.
        reason: LossReason,
    },
}

/// Why frames were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossReason {
    /// A bounded queue overflowed, at the broker or in the bus.
    Overflow,
    /// The log no longer holds what we had not read yet.
    Retention,
    /// The broker started anew: what it held before is gone.
    Reset,
    /// A hole in the log was not filled before its deadline.
    Hole,
    /// A new link could not continue where the old one ended.
    Reconnect,
    /// A frame that a publisher had sent did not arrive.
    Missing,
    /// A frame arrived that could not be read.
    Unreadable,
}

/// Where a delivery stands in the log of a bus that can resume: up to [`Position::MAX_LEN`] bytes that only that bus
/// understands.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    len: u8,
    bytes: [u8; Self::MAX_LEN],
}

impl Position {
    /// Longest position in bytes.
    pub const MAX_LEN: usize = 31;

    /// From bytes; `None` if there are more than [`Position::MAX_LEN`].
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut position = Self { len: u8::try_from(bytes.len()).ok()?, bytes: [0; Self::MAX_LEN] };
        position.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(position)
    }

    /// From a number, big-endian.
    #[must_use]
    pub fn from_u64(number: u64) -> Self {
        Self::new(&number.to_be_bytes()).expect("eight bytes fit")
    }

    /// The number it was made of, if it has eight bytes.
    #[must_use]
    pub fn to_u64(&self) -> Option<u64> {
        Some(u64::from_be_bytes(self.as_bytes().try_into().ok()?))
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Position({})", self.as_bytes().escape_ascii())
    }
}

/// What a kind of bus promises at best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Order of deliveries. Default: [`Order::PerPublisher`].
    pub order: Order,
    /// Whether a frame may arrive more than once (B5). Default: no.
    pub repeats: bool,
    /// Whether a new link may continue at a position (B12). Default: no.
    pub resume: bool,
    /// Which topics it carries. Default: [`TopicSyntax::Tokens`].
    pub topics: TopicSyntax,
    /// How long after `subscribe` returned a publish through another broker node may still miss us (B1). Default: 0.
    pub propagation: Duration,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            order: Order::PerPublisher,
            repeats: false,
            resume: false,
            topics: TopicSyntax::Tokens,
            propagation: Duration::ZERO,
        }
    }
}

/// Order of deliveries (B3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Frames of one publisher on one topic arrive in the order in which it published them.
    PerPublisher,
    /// All frames of one topic arrive in one order on all nodes.
    Total,
}

/// What one link can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest frame in bytes (B2).
    pub max_frame: usize,
    /// Whether [`LinkSender::publish`] reports [`Reach::Nodes`], and zero proves absence.
    pub reports_reach: bool,
}
