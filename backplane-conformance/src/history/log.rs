//! What is recorded while the run goes on: sends, deliveries, gaps, and who is owed what.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use backplane_core::{Gap, NodeId, Result, Topic};
use parking_lot::Mutex;

use super::stamp::{Stamp, Unreadable, stamps};
use super::{History, small};

/// What became of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The broker accepted it: everybody in the audience is owed it.
    Accepted,
    /// It failed and reached nobody: nobody may get it.
    Failed,
    /// It may have reached some: everybody may get it once.
    Unknown,
}

impl Outcome {
    /// The outcome of [`Backplane::send`](backplane_core::Backplane::send) or of an awaited acceptance.
    #[must_use]
    pub fn of(result: &Result<()>) -> Self {
        match result {
            Ok(()) => Self::Accepted,
            Err(error) if error.outcome_unknown() => Self::Unknown,
            Err(error) if error.partial().is_some_and(|partial| partial.accepted > 0) => Self::Unknown,
            Err(_) => Self::Failed,
        }
    }
}

/// What kind of target an audience stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AudienceKind {
    /// Every connection, or all but some.
    All,
    /// One group, or all its members but some.
    Group,
    /// One user.
    User,
    /// Named connections. Those of the sender's own node are served without the broker.
    Connections,
}

/// A node: its gaps, and the place where its senders and receivers are added. Cloning shares the log.
#[derive(Clone, Debug)]
pub struct NodeLog {
    index: usize,
    node: Arc<Node>,
    history: History,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) gaps: Mutex<Vec<(Instant, Gap)>>,
}

impl Node {
    pub(super) fn new(id: NodeId) -> Self {
        Self { id, gaps: Mutex::default() }
    }
}

impl NodeLog {
    pub(super) fn new(index: usize, node: Arc<Node>, history: History) -> Self {
        Self { index, node, history }
    }

    /// The node was told of `gap`, just now.
    pub fn gap(&self, gap: Gap) {
        self.gap_at(gap, Instant::now());
    }

    /// The node was told of `gap` at `told`.
    pub fn gap_at(&self, gap: Gap, told: Instant) {
        self.node.gaps.lock().push((told, gap));
    }

    /// Adds a sender on this node.
    #[must_use]
    pub fn sender(&self) -> SenderLog {
        self.history.sender(self.index)
    }

    /// Adds a receiver (a connection) on this node. It is owed nothing until it joins an audience.
    #[must_use]
    pub fn receiver(&self) -> ReceiverLog {
        self.history.receiver(self.index)
    }
}

/// Those who are owed what is sent to one target. Order is judged per sender and audience. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Audience {
    index: u32,
    addressed: Arc<Addressed>,
}

#[derive(Debug)]
pub(super) struct Addressed {
    pub(super) kind: AudienceKind,
    pub(super) name: String,
    pub(super) topics: Option<Vec<Topic>>,
    pub(super) members: Mutex<HashMap<usize, Vec<Membership>>>,
}

/// One stay in an audience.
#[derive(Clone, Copy, Debug)]
pub(super) struct Membership {
    pub(super) joined: Instant,
    pub(super) left: Option<Instant>,
}

impl Addressed {
    pub(super) fn new(kind: AudienceKind, name: String, topics: Option<Vec<Topic>>) -> Self {
        Self { kind, name, topics, members: Mutex::default() }
    }
}

impl Audience {
    pub(super) fn new(index: usize, addressed: Arc<Addressed>) -> Self {
        Self { index: small(index), addressed }
    }

    /// `receiver` is a member, just now: its registration or its join has returned. It is owed what is sent from now
    /// on, and may get what was sent before.
    pub fn joined(&self, receiver: &ReceiverLog) {
        self.joined_at(receiver, Instant::now());
    }

    /// As [`joined`](Audience::joined), at another time.
    pub fn joined_at(&self, receiver: &ReceiverLog, joined: Instant) {
        let mut members = self.addressed.members.lock();
        members.entry(receiver.index).or_default().push(Membership { joined, left: None });
    }

    /// `receiver` is about to leave (or to disconnect), just now. It may get what is sent from now on, and is owed
    /// only what had been accepted by then, longer ago than the grace.
    pub fn leaving(&self, receiver: &ReceiverLog) {
        self.leaving_at(receiver, Instant::now());
    }

    /// As [`leaving`](Audience::leaving), at another time.
    pub fn leaving_at(&self, receiver: &ReceiverLog, left: Instant) {
        let mut members = self.addressed.members.lock();
        if let Some(stay) = members.get_mut(&receiver.index).and_then(|stays| stays.last_mut()) {
            stay.left.get_or_insert(left);
        }
    }
}

/// What one task sent, in the order in which it posted it. One task alone should use it: between two, the order of
/// [`begin`](SenderLog::begin) would not be the order of the posts.
#[derive(Debug)]
pub struct SenderLog {
    index: u32,
    sent: Arc<Sent>,
}

#[derive(Debug)]
pub(super) struct Sent {
    pub(super) node: usize,
    pub(super) messages: Mutex<Vec<Message>>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    pub(super) audience: u32,
    pub(super) outcome: Outcome,
    pub(super) begun: Instant,
    /// When its outcome was known. Until then it equals `begun`, and the outcome is unknown.
    pub(super) settled: Instant,
}

impl Sent {
    pub(super) fn new(node: usize) -> Self {
        Self { node, messages: Mutex::default() }
    }
}

impl SenderLog {
    pub(super) fn new(index: u32, sent: Arc<Sent>) -> Self {
        Self { index, sent }
    }

    /// The next message, about to be posted to `audience`. Until [`settle`](SenderLog::settle) its outcome is
    /// unknown: it may be delivered, and need not.
    pub fn begin(&self, audience: &Audience) -> Stamp {
        self.begin_at(audience, Instant::now())
    }

    /// As [`begin`](SenderLog::begin), at another time.
    pub fn begin_at(&self, audience: &Audience, begun: Instant) -> Stamp {
        let mut messages = self.sent.messages.lock();
        let number = small(messages.len());
        let message = Message { audience: audience.index, outcome: Outcome::Unknown, begun, settled: begun };
        messages.push(message);
        Stamp { sender: self.index, number }
    }

    /// The outcome of a message of this sender is known, just now.
    ///
    /// # Panics
    /// When `stamp` is another sender's.
    pub fn settle(&self, stamp: Stamp, outcome: Outcome) {
        self.settle_at(stamp, outcome, Instant::now());
    }

    /// As [`settle`](SenderLog::settle), at another time.
    ///
    /// # Panics
    /// When `stamp` is another sender's.
    pub fn settle_at(&self, stamp: Stamp, outcome: Outcome, settled: Instant) {
        assert_eq!(stamp.sender, self.index, "{stamp} belongs to another sender");
        let mut messages = self.sent.messages.lock();
        let message = &mut messages[stamp.number as usize];
        message.outcome = outcome;
        message.settled = settled;
    }
}

/// What one connection received, in order.
#[derive(Debug)]
pub struct ReceiverLog {
    index: usize,
    received: Arc<Received>,
}

#[derive(Debug)]
pub(super) struct Received {
    pub(super) node: usize,
    pub(super) arrivals: Mutex<Arrivals>,
}

/// The stamps in the order of their arrival; the time is kept once for each batch.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    pub(super) stamps: Vec<Stamp>,
    /// When, and up to which length of `stamps` (exclusive).
    pub(super) batches: Vec<(Instant, usize)>,
    pub(super) unreadable: Vec<Unreadable>,
}

impl Arrivals {
    /// Every stamp with the time of its arrival.
    pub(super) fn timed(&self) -> impl Iterator<Item = (Instant, Stamp)> + '_ {
        let mut from = 0;
        self.batches.iter().flat_map(move |&(at, to)| {
            let batch = &self.stamps[from..to];
            from = to;
            batch.iter().map(move |&stamp| (at, stamp))
        })
    }
}

impl Received {
    pub(super) fn new(node: usize) -> Self {
        Self { node, arrivals: Mutex::default() }
    }
}

impl ReceiverLog {
    pub(super) fn new(index: usize, received: Arc<Received>) -> Self {
        Self { index, received }
    }

    /// These payloads, joined one behind the other, were received just now: the bytes of one or more
    /// [`OutboundItem`](backplane_core::OutboundItem)s. Returns how many there were.
    pub fn delivered(&self, joined: &[u8]) -> usize {
        self.delivered_at(joined, Instant::now())
    }

    /// As [`delivered`](ReceiverLog::delivered), at another time; times must not go backwards.
    pub fn delivered_at(&self, joined: &[u8], at: Instant) -> usize {
        let mut arrivals = self.received.arrivals.lock();
        let mut payloads = 0;
        for stamp in stamps(joined) {
            payloads += 1;
            match stamp {
                Ok(stamp) => arrivals.stamps.push(stamp),
                Err(unreadable) => arrivals.unreadable.push(unreadable),
            }
        }
        let to = arrivals.stamps.len();
        arrivals.batches.push((at, to));
        payloads
    }

    /// How many messages were received so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.received.arrivals.lock().stamps.len()
    }
}
