//! The topics this node needs now: wanted (counted) against confirmed by the broker.
//!
//! Synchronous; the supervisor carries the changes to the link, all that are waiting in one call, one call at a time,
//! so that changes of one topic keep their order and joins share round trips.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Result};
use crate::topic::Topic;
use crate::wire::{Route, topic_hash};

/// See the module.
pub(crate) struct Interest {
    topics: HashMap<Topic, Entry, RandomState>,
    /// By the hash that beats use; kept only with provenance.
    hashes: Option<HashMap<u64, Topic, RandomState>>,
    missing: Vec<Topic>,
    unneeded: Vec<Topic>,
    /// Subscriptions and unsubscriptions take turns, so that neither starves behind a flood of the other.
    free_next: bool,
    /// `Some`: why the link is down.
    offline: Option<Error>,
}

struct Entry {
    /// `None`: left over from an attempt to connect, wanted by nobody.
    route: Option<Arc<Route>>,
    wanted: u32,
    state: State,
    waiting: Vec<oneshot::Sender<Result<()>>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Absent,
    Subscribing,
    Confirmed,
    Unsubscribing,
}

/// What came of wanting a topic.
pub(crate) enum Wanted {
    /// The broker had confirmed it before.
    Confirmed,
    /// The broker will say; a dropped sender means that the link was lost.
    Soon(oneshot::Receiver<Result<()>>),
}

/// What the link shall do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Subscribe(Vec<Topic>),
    Unsubscribe(Vec<Topic>),
}

impl Entry {
    fn left_over() -> Self {
        Self { route: None, wanted: 0, state: State::Absent, waiting: Vec::new() }
    }
}

impl Interest {
    pub(crate) fn new(hashed: bool) -> Self {
        Self {
            topics: HashMap::default(),
            hashes: hashed.then(HashMap::default),
            missing: Vec::new(),
            unneeded: Vec::new(),
            free_next: false,
            offline: Some(
                Error::new(ErrorKind::Unavailable, "subscribe").with_context("the link is not up yet"),
            ),
        }
    }

    /// One more wants `topic`. Fails at once while the link is down; then nothing has changed.
    pub(crate) fn want(&mut self, topic: &Topic, route: impl FnOnce() -> Route) -> Result<Wanted> {
        if let Some(error) = &self.offline {
            return Err(error.clone());
        }
        let entry = self.entry(topic, route);
        entry.wanted += 1;
        match entry.state {
            State::Confirmed => Ok(Wanted::Confirmed),
            State::Absent => {
                entry.state = State::Subscribing;
                let (sender, receiver) = oneshot::channel();
                entry.waiting.push(sender);
                self.missing.push(topic.clone());
                Ok(Wanted::Soon(receiver))
            }
            // After the unsubscription under way it is subscribed again.
            State::Subscribing | State::Unsubscribing => {
                let (sender, receiver) = oneshot::channel();
                entry.waiting.push(sender);
                Ok(Wanted::Soon(receiver))
            }
        }
    }

    /// Wants `topic` for good, link or no link.
    pub(crate) fn want_always(&mut self, topic: &Topic, route: Route) {
        let online = self.offline.is_none();
        let entry = self.entry(topic, || route);
        entry.wanted += 1;
        if entry.state == State::Absent && online {
            entry.state = State::Subscribing;
            self.missing.push(topic.clone());
        }
    }

    /// One less wants `topic`.
    pub(crate) fn release(&mut self, topic: &Topic) {
        let Some(entry) = self.topics.get_mut(topic) else { return };
        entry.wanted = entry.wanted.saturating_sub(1);
        if entry.wanted > 0 {
            return;
        }
        match entry.state {
            State::Absent => self.forget(topic),
            State::Confirmed => self.unneeded.push(topic.clone()),
            // Settled when the call under way is done.
            State::Subscribing | State::Unsubscribing => {}
        }
    }

    /// The next call to the link, if any.
    pub(crate) fn next_change(&mut self, at_most: usize) -> Option<Change> {
        self.free_next = !self.free_next;
        if !self.missing.is_empty() && (self.unneeded.is_empty() || !self.free_next) {
            let count = self.missing.len().min(at_most);
            let batch: Vec<Topic> = self.missing.drain(..count).collect();
            return Some(Change::Subscribe(batch));
        }
        while !self.unneeded.is_empty() {
            let count = self.unneeded.len().min(at_most);
            let mut batch: Vec<Topic> = self.unneeded.drain(..count).collect();
            batch.retain(|topic| match self.topics.get_mut(topic) {
                Some(entry) if entry.wanted == 0 && entry.state == State::Confirmed => {
                    entry.state = State::Unsubscribing;
                    true
                }
                _ => false,
            });
            if !batch.is_empty() {
                return Some(Change::Unsubscribe(batch));
            }
        }
        None
    }

    /// Whether [`next_change`](Interest::next_change) may have something.
    pub(crate) fn has_changes(&self) -> bool {
        !self.missing.is_empty() || !self.unneeded.is_empty()
    }

    /// A subscription ended: confirmed, or failed for all of `topics`. `false`: it failed, and somebody who relied on
    /// it does not wait for the outcome; the link must be opened anew then.
    #[must_use]
    pub(crate) fn subscribed(&mut self, topics: &[Topic], result: &Result<()>) -> bool {
        let mut settled = true;
        for topic in topics {
            let Some(entry) = self.topics.get_mut(topic) else { continue };
            if entry.state != State::Subscribing {
                continue;
            }
            settled &= result.is_ok() || entry.wanted as usize <= entry.waiting.len();
            for waiting in entry.waiting.drain(..) {
                // Who no longer waits has released its interest.
                let _ = waiting.send(result.clone());
            }
            match (result.is_ok(), entry.wanted) {
                (true, 0) => {
                    entry.state = State::Confirmed;
                    self.unneeded.push(topic.clone());
                }
                (true, _) => entry.state = State::Confirmed,
                (false, 0) => self.forget(topic),
                // Those who waited release it when they hear of the failure; whoever wants it next tries again.
                (false, _) => entry.state = State::Absent,
            }
        }
        settled
    }

    /// An unsubscription ended. Returns the topics that were freed, if only for a moment: what was sent to them
    /// meanwhile was not ours.
    pub(crate) fn unsubscribed(&mut self, topics: Vec<Topic>) -> Vec<Topic> {
        let mut freed = Vec::with_capacity(topics.len());
        for topic in topics {
            let Some(entry) = self.topics.get_mut(&topic) else { continue };
            if entry.state != State::Unsubscribing {
                continue;
            }
            if entry.wanted == 0 {
                self.forget(&topic);
            } else {
                entry.state = State::Subscribing;
                self.missing.push(topic.clone());
            }
            freed.push(topic);
        }
        freed
    }

    /// The link was lost: nothing is confirmed, all who wait are told.
    pub(crate) fn offline(&mut self, error: &Error) {
        self.offline = Some(error.clone());
        self.missing.clear();
        self.unneeded.clear();
        let hashes = &mut self.hashes;
        self.topics.retain(|topic, entry| {
            entry.state = State::Absent;
            for waiting in entry.waiting.drain(..) {
                let _ = waiting.send(Err(error.clone()));
            }
            let keep = entry.wanted > 0;
            if !keep && let Some(hashes) = hashes {
                hashes.remove(&topic_hash(topic));
            }
            keep
        });
    }

    /// What a new link must subscribe.
    pub(crate) fn wanted(&self) -> Vec<Topic> {
        self.topics.iter().filter(|(_, entry)| entry.wanted > 0).map(|(topic, _)| topic.clone()).collect()
    }

    /// The link is up with `attached` confirmed. What was released meanwhile is freed, what came is subscribed.
    pub(crate) fn online(&mut self, attached: &[Topic]) {
        self.offline = None;
        for topic in attached {
            match self.topics.get_mut(topic) {
                Some(entry) => entry.state = State::Confirmed,
                None => {
                    // Released during the attempt: the link has it all the same, so it must be freed there.
                    let entry = Entry { state: State::Confirmed, ..Entry::left_over() };
                    self.topics.insert(topic.clone(), entry);
                }
            }
        }
        for (topic, entry) in &mut self.topics {
            match (entry.state, entry.wanted) {
                (State::Absent, 1..) => {
                    entry.state = State::Subscribing;
                    self.missing.push(topic.clone());
                }
                (State::Confirmed, 0) => self.unneeded.push(topic.clone()),
                _ => {}
            }
        }
    }

    /// What a topic means to us, and whether frames on it can be judged by their numbers; `None`: it is not ours. A
    /// topic that nobody wants just now stays ours until it is freed, so that no number is missed if somebody does
    /// again.
    pub(crate) fn route(&self, topic: &Topic) -> Option<(&Arc<Route>, bool)> {
        let entry = self.topics.get(topic)?;
        let judged = matches!(entry.state, State::Confirmed | State::Unsubscribing);
        Some((entry.route.as_ref()?, judged))
    }

    /// The confirmed topic of that hash, if it is one of ours.
    pub(crate) fn confirmed_by_hash(&self, hash: u64) -> Option<&Topic> {
        let topic = self.hashes.as_ref()?.get(&hash)?;
        let entry = self.topics.get(topic)?;
        (entry.state == State::Confirmed && entry.wanted > 0).then_some(topic)
    }

    /// Topics wanted by somebody.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.topics.len()
    }

    fn entry(&mut self, topic: &Topic, route: impl FnOnce() -> Route) -> &mut Entry {
        let known = self.topics.get(topic).is_some_and(|entry| entry.route.is_some());
        if !known && let Some(hashes) = &mut self.hashes {
            hashes.insert(topic_hash(topic), topic.clone());
        }
        let entry = self.topics.entry(topic.clone()).or_insert_with(Entry::left_over);
        if !known {
            entry.route = Some(Arc::new(route()));
        }
        entry
    }

    fn forget(&mut self, topic: &Topic) {
        self.topics.remove(topic);
        if let Some(hashes) = &mut self.hashes {
            hashes.remove(&topic_hash(topic));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interest() -> Interest {
        let mut interest = Interest::new(true);
        interest.online(&[]);
        interest
    }

    fn want(interest: &mut Interest, topic: &str) -> Option<oneshot::Receiver<Result<()>>> {
        match interest.want(&Topic::from(topic), || Route::Common).unwrap() {
            Wanted::Confirmed => None,
            Wanted::Soon(receiver) => Some(receiver),
        }
    }

    #[test]
    fn waiting_joins_share_one_call() {
        let mut interest = interest();
        let waits: Vec<_> = ["a", "b", "a"].iter().map(|topic| want(&mut interest, topic).unwrap()).collect();
        let Some(Change::Subscribe(batch)) = interest.next_change(100) else { panic!("nothing to do") };
        assert_eq!(batch.len(), 2);
        assert!(interest.subscribed(&batch, &Ok(())));
        for mut wait in waits {
            assert!(wait.try_recv().unwrap().is_ok());
        }
        assert!(want(&mut interest, "a").is_none(), "confirmed before");
    }

    #[test]
    fn a_failed_subscription_leaves_nothing_behind() {
        let mut interest = interest();
        let mut wait = want(&mut interest, "a").unwrap();
        let Some(Change::Subscribe(batch)) = interest.next_change(100) else { panic!("nothing to do") };
        assert!(interest.subscribed(&batch, &Err(Error::new(ErrorKind::Denied, "subscribe"))));
        assert!(wait.try_recv().unwrap().is_err());
        interest.release(&Topic::from("a"));
        assert_eq!(interest.len(), 0);
        assert!(want(&mut interest, "a").is_some(), "the next one tries again");
        assert!(interest.next_change(100).is_some());
    }

    #[test]
    fn wanted_again_while_unsubscribing_is_subscribed_again() {
        let mut interest = interest();
        let _wait = want(&mut interest, "a");
        let Some(Change::Subscribe(batch)) = interest.next_change(100) else { panic!("nothing to do") };
        assert!(interest.subscribed(&batch, &Ok(())));
        interest.release(&Topic::from("a"));
        let Some(Change::Unsubscribe(batch)) = interest.next_change(100) else { panic!("nothing to do") };
        let mut wait = want(&mut interest, "a").expect("must wait");
        assert_eq!(interest.unsubscribed(batch), [Topic::from("a")], "what was sent meanwhile was not ours");
        let Some(Change::Subscribe(batch)) = interest.next_change(100) else { panic!("nothing to do") };
        assert!(interest.subscribed(&batch, &Ok(())));
        assert!(wait.try_recv().unwrap().is_ok());
    }

    #[test]
    fn released_while_subscribing_is_freed_afterwards() {
        let mut interest = interest();
        let _wait = want(&mut interest, "a");
        let Some(Change::Subscribe(batch)) = interest.next_change(100) else { panic!("nothing to do") };
        interest.release(&Topic::from("a"));
        assert!(interest.subscribed(&batch, &Ok(())));
        assert_eq!(interest.next_change(100), Some(Change::Unsubscribe(vec![Topic::from("a")])));
        assert_eq!(interest.unsubscribed(vec![Topic::from("a")]).len(), 1);
        assert_eq!(interest.len(), 0);
    }

    #[test]
    fn wanted_again_right_after_a_reconnect_a_topic_means_what_it_meant() {
        let mut interest = Interest::new(true);
        interest.online(&[Topic::from("a")]);
        assert!(interest.route(&Topic::from("a")).is_none(), "released during the attempt");
        let route = Route::All("hub".into());
        assert!(matches!(interest.want(&Topic::from("a"), || route.clone()), Ok(Wanted::Confirmed)));
        assert_eq!(interest.route(&Topic::from("a")), Some((&Arc::new(route), true)));
        assert!(interest.confirmed_by_hash(topic_hash(&Topic::from("a"))).is_some());
        assert_eq!(interest.next_change(100), None);
    }

    #[test]
    fn frees_do_not_starve_behind_joins() {
        let mut interest = interest();
        let _wait = want(&mut interest, "a");
        let Some(Change::Subscribe(batch)) = interest.next_change(100) else { panic!("nothing to do") };
        assert!(interest.subscribed(&batch, &Ok(())));
        interest.release(&Topic::from("a"));
        let _waits: Vec<_> = ["b", "c"].iter().map(|topic| want(&mut interest, topic)).collect();
        let changes: Vec<_> = (0..3).filter_map(|_| interest.next_change(1)).collect();
        assert!(changes.contains(&Change::Unsubscribe(vec![Topic::from("a")])), "{changes:?}");
    }

    #[test]
    fn a_lost_link_tells_all_who_wait_and_keeps_what_is_wanted() {
        let mut interest = interest();
        let mut wait = want(&mut interest, "a").unwrap();
        interest.offline(&Error::new(ErrorKind::Unavailable, "subscribe"));
        assert!(wait.try_recv().unwrap().is_err());
        assert!(interest.want(&Topic::from("b"), || Route::Common).is_err(), "fail fast");
        assert_eq!(interest.wanted(), [Topic::from("a")]);
        interest.release(&Topic::from("a"));
        interest.online(&[Topic::from("a")]);
        assert_eq!(interest.next_change(100), Some(Change::Unsubscribe(vec![Topic::from("a")])));
    }
}
