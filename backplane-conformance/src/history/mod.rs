//! Judges what a run under faults delivered.
//!
//! Every message has a sender and a number. It was delivered once to everybody it was meant for, or failed at its
//! sender, or was lost inside a [`Gap`] that its receiver was told of. Anything else convicts the run:
//!
//! - **lost**: accepted by the broker, owed to a receiver, never delivered, and no gap excuses it;
//! - **repeated**: delivered to the same receiver twice;
//! - **reordered**: delivered after a later message of the same sender to the same audience;
//! - **phantom**: delivered although it certainly failed, was never sent, or was meant for others;
//! - **unreadable**: bytes that no sender wrote.
//!
//! # What a gap excuses
//! A gap that node N was told of at the time T excuses the loss of a message to a receiver of N when
//! 1. it concerns the message: its origin is the sender's node or nobody in particular, and its topics, where it
//!    names some without an origin, include one of the audience's (where those are known);
//! 2. the message was sent before T: what is sent after a gap was told has to arrive;
//! 3. T is not much later than the *evidence* of the loss, by at most the grace ([`History::with_grace`]). Evidence
//!    is the first arrival that the lost message should have preceded: a later message of the same sender to the same
//!    audience at the same receiver, or any message of the same origin, by way of the broker, at the same node, that
//!    was sent after the lost one had been accepted. From that moment on the node could know; a gap told long
//!    afterwards is about something else. A loss that nothing followed may be told at any time.
//!
//! A message from a node to a connection of its own does not travel over the broker; no gap excuses its loss.
//!
//! # Use
//! One [`SenderLog`] per sending task, one [`ReceiverLog`] per connection, one [`NodeLog`] per node for its gaps. They
//! may be filled on any thread, each at the cost of an uncontended lock; [`History::judge`] reads them all.
//!
//! ```
//! use backplane_conformance::history::{AudienceKind, History, Outcome};
//! use backplane_core::NodeId;
//!
//! let history = History::new();
//! let (a, b) = (history.node(NodeId::random()), history.node(NodeId::random()));
//! let sender = a.sender();
//! let receiver = b.receiver();
//! let everybody = history.audience(AudienceKind::All, "everybody");
//! everybody.joined(&receiver);
//!
//! let stamp = sender.begin(&everybody);
//! let message = stamp.message(128); // what to give to `Backplane::send`
//! sender.settle(stamp, Outcome::Accepted);
//! receiver.delivered(message.get(&backplane_core::Protocol::JSON).unwrap());
//!
//! let verdict = history.judge();
//! assert!(verdict.is_clean(), "{verdict}");
//! ```

mod evidence;
mod judge;
mod log;
mod stamp;
mod verdict;

use std::sync::Arc;
use std::time::{Duration, Instant};

use backplane_core::{Gap, NodeId, Topic};
use parking_lot::Mutex;

pub use log::{Audience, AudienceKind, NodeLog, Outcome, ReceiverLog, SenderLog};
pub use stamp::{Stamp, Unreadable, stamps};
pub use verdict::{Counts, Findings, Lost, Phantom, Reordered, Repeated, Strange, Verdict};

/// The record of one run. Cloning shares it.
#[derive(Clone, Debug)]
pub struct History {
    grace: Duration,
    records: Arc<Mutex<Records>>,
}

/// Everything registered, by index. What grows during the run lies behind a lock of its own each.
#[derive(Debug, Default)]
struct Records {
    nodes: Vec<Arc<log::Node>>,
    audiences: Vec<Arc<log::Addressed>>,
    senders: Vec<Arc<log::Sent>>,
    receivers: Vec<Arc<log::Received>>,
}

impl Default for History {
    fn default() -> Self {
        Self::new()
    }
}

impl History {
    /// An empty one, with a grace of 1 s.
    #[must_use]
    pub fn new() -> Self {
        Self { grace: Duration::from_secs(1), records: Arc::default() }
    }

    /// Sets how long after the evidence of a loss a gap may be recorded and still count: what the scheduler may put
    /// between an arrival and the reader of events. It also bounds how long an accepted message may be under way when
    /// a receiver leaves. Default 1 s.
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Adds a node: senders, receivers and gaps belong to one. `id` is what [`Gap::origin`] calls it.
    #[must_use]
    pub fn node(&self, id: NodeId) -> NodeLog {
        let node = Arc::new(log::Node::new(id));
        let mut records = self.records.lock();
        records.nodes.push(node.clone());
        NodeLog::new(records.nodes.len() - 1, node, self.clone())
    }

    /// Adds an audience: those who are owed what is sent to one target. `name` is for people.
    #[must_use]
    pub fn audience(&self, kind: AudienceKind, name: &str) -> Audience {
        self.audience_on(kind, name, None)
    }

    /// Adds an audience whose topics are known, so that a gap which names other topics does not excuse its losses.
    #[must_use]
    pub fn audience_on_topics(&self, kind: AudienceKind, name: &str, topics: Vec<Topic>) -> Audience {
        self.audience_on(kind, name, Some(topics))
    }

    fn audience_on(&self, kind: AudienceKind, name: &str, topics: Option<Vec<Topic>>) -> Audience {
        let addressed = Arc::new(log::Addressed::new(kind, name.to_owned(), topics));
        let mut records = self.records.lock();
        records.audiences.push(addressed.clone());
        Audience::new(records.audiences.len() - 1, addressed)
    }

    fn sender(&self, node: usize) -> SenderLog {
        let sent = Arc::new(log::Sent::new(node));
        let mut records = self.records.lock();
        records.senders.push(sent.clone());
        SenderLog::new(small(records.senders.len() - 1), sent)
    }

    fn receiver(&self, node: usize) -> ReceiverLog {
        let received = Arc::new(log::Received::new(node));
        let mut records = self.records.lock();
        records.receivers.push(received.clone());
        ReceiverLog::new(records.receivers.len() - 1, received)
    }

    /// Judges everything recorded so far. What is still under way counts as lost: wait for it first, as
    /// [`settle`](History::settle) does.
    #[must_use]
    pub fn judge(&self) -> Verdict {
        judge::judge(&self.records.lock(), self.grace)
    }

    /// Judges again and again until the run is clean or something is wrong that more deliveries cannot mend or
    /// `deadline` has passed, and returns the last verdict.
    pub async fn settle(&self, deadline: Duration) -> Verdict {
        let end = Instant::now() + deadline;
        loop {
            let verdict = self.judge();
            if !verdict.only_lost() || Instant::now() >= end {
                return verdict;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Indices and numbers are stored in 32 bits: logs of a load test hold millions of them.
fn small(number: usize) -> u32 {
    u32::try_from(number).expect("no run has 2^32 senders or messages of one sender")
}

/// Whether a gap can hold any message at all.
fn is_empty(gap: &Gap) -> bool {
    gap.origin.is_some() && gap.after >= gap.through
}
