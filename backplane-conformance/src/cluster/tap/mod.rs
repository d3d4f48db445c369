//! What one node says to its bus, seen and disturbed from outside: a bus around another one.

mod link;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use backplane_core::{Bus, Limits, Topic};
use tokio::sync::watch;

use super::wait::within;
use crate::Broken;

/// Wraps any bus for one node: counts what the node asks of it and disturbs it on command, so that a contract can
/// assert "does not publish" or provoke a lost frame on every bus alike. Cloning shares the wrapper.
#[derive(Clone)]
pub struct Tap {
    inner: Arc<dyn Bus>,
    seen: watch::Sender<Seen>,
    switches: watch::Sender<Switches>,
}

/// What a [`Tap`] has seen so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Frames handed to the bus, by topic. Those that were too large are not among them.
    pub published: BTreeMap<Topic, u64>,
    /// Length of the largest of them, in bytes.
    pub largest: usize,
    /// Frames handed to the node, by topic.
    pub received: BTreeMap<Topic, u64>,
    /// Calls of `subscribe`; the topics of `connect` are not counted.
    pub subscribe_calls: u64,
    /// Calls of `subscribe` that are under way or held.
    pub subscribing: u64,
    /// Topics that the live link is subscribed to.
    pub subscribed: BTreeSet<Topic>,
    /// Links that are open.
    pub links: u64,
    /// What the last link can carry.
    pub limits: Option<Limits>,
    attempt: u64,
}

impl Seen {
    /// Frames handed to the bus on topics other than `except`.
    #[must_use]
    pub fn published_beside(&self, except: Option<&Topic>) -> u64 {
        self.published.iter().filter(|(topic, _)| Some(*topic) != except).map(|(_, frames)| frames).sum()
    }
}

#[derive(Debug, Default)]
struct Switches {
    cuts: u64,
    refuse_links: bool,
    refuse_topic: Option<Topic>,
    refuse_publish: Option<Topic>,
    hold_subscribe: bool,
    hold_acceptance: bool,
    mute: bool,
    tardy: u32,
    max_frame: Option<usize>,
    lose: Option<Topic>,
    repeat: Option<Topic>,
}

impl Tap {
    /// Around `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Bus>) -> Self {
        Self { inner, seen: watch::Sender::default(), switches: watch::Sender::default() }
    }

    /// What was seen so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits until what was seen fulfils `condition`.
    ///
    /// # Errors
    /// [`Broken`] naming `what` when that does not happen within [`patience`](super::patience).
    pub async fn until(&self, what: &str, condition: impl FnMut(&Seen) -> bool) -> Result<(), Broken> {
        let mut seen = self.seen.subscribe();
        let waited = async { seen.wait_for(condition).await.map(drop) };
        let told = within(what, waited).await.map_err(|Broken(text)| {
            let seen = self.seen.borrow();
            Broken(format!("{text}; links {}, subscribed {:?}", seen.links, seen.subscribed))
        });
        told?.map_err(|_| Broken(format!("nobody is left who could bring about {what}")))
    }

    /// Ends the live link as a broken connection does. What was in flight has an unknown outcome.
    pub fn cut(&self) {
        self.switches.send_modify(|switches| switches.cuts += 1);
    }

    /// Whether attempts to connect are refused.
    pub fn refuse_links(&self, refuse: bool) {
        self.switches.send_modify(|switches| switches.refuse_links = refuse);
    }

    /// The topic that the broker refuses to subscribe; a call that names it fails as a whole.
    pub fn refuse_topic(&self, topic: Option<Topic>) {
        self.switches.send_modify(|switches| switches.refuse_topic = topic);
    }

    /// The topic to which the broker lets nobody publish; other frames of a batch are not concerned.
    pub fn refuse_publish(&self, topic: Option<Topic>) {
        self.switches.send_modify(|switches| switches.refuse_publish = topic);
    }

    /// Whether calls of `subscribe` wait before they reach the bus.
    pub fn hold_subscribe(&self, hold: bool) {
        self.switches.send_modify(|switches| switches.hold_subscribe = hold);
    }

    /// Whether accepted frames are reported only later. The frames themselves reach the bus.
    pub fn hold_acceptance(&self, hold: bool) {
        self.switches.send_modify(|switches| switches.hold_acceptance = hold);
    }

    /// Whether nothing arrives any more although the link stays open, as with a half-open connection.
    pub fn mute(&self, mute: bool) {
        self.switches.send_modify(|switches| switches.mute = mute);
    }

    /// How often each call steps back before it proceeds, to give cancellation more places to happen.
    pub fn tardy(&self, steps: u32) {
        self.switches.send_modify(|switches| switches.tardy = steps);
    }

    /// Lowers the largest frame, from the next link on.
    pub fn limit_frames(&self, max_frame: usize) {
        self.switches.send_modify(|switches| switches.max_frame = Some(max_frame));
    }

    /// The next frame that arrives on `topic` is lost.
    pub fn lose_next(&self, topic: Topic) {
        self.switches.send_modify(|switches| switches.lose = Some(topic));
    }

    /// The next frame that arrives on `topic` arrives twice.
    pub fn repeat_next(&self, topic: Topic) {
        self.switches.send_modify(|switches| switches.repeat = Some(topic));
    }

    async fn step_back(&self) {
        let steps = self.switches.borrow().tardy;
        for _ in 0..steps {
            tokio::task::yield_now().await;
        }
    }

    /// Waits until the switches fulfil `condition`, however long that takes: the suite itself sets them.
    async fn switched(&self, condition: impl FnMut(&Switches) -> bool) {
        let mut switches = self.switches.subscribe();
        let known = switches.wait_for(condition).await.is_ok();
        debug_assert!(known, "`self` holds a sender");
    }
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap").field("inner", &self.inner).field("switches", &*self.switches.borrow()).finish()
    }
}
