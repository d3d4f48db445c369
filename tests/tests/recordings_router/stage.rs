//! Who stands on a bus when a recording is played: our node in the place of one server, bare links in the place of the
//! others, and one that tells when all is quiet.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use backplane_core::wire::AspNetCore;
use backplane_core::{
    Backplane as _, Bus, HubName, Reach, Router, RouterConfig, Target, Topic, WireFormat as _,
};
use backplane_tests::recording::{Actor, Event, Recording};
use backplane_tests::wiretap::{BareLink, Wiretap};
use bytes::Bytes;

use crate::client::LocalClient;
use crate::hub::both;
use crate::script::{places, server_name};

/// Marks the frames that only say "everything before this was handled".
const MARK: &str = "everything before this was handled";
/// The channel on which bare links hear them.
const QUIET: &str = "quiet";

/// See the module.
pub(crate) struct Stage {
    pub(crate) routers: BTreeMap<String, Router>,
    pub(crate) node: Ear,
    pub(crate) clients: BTreeMap<String, LocalClient>,
    pub(crate) others: HashMap<Actor, Other>,
    conductor: BareLink,
    marks: u64,
}

/// A bare link in the place of a server or of the foreign publisher.
pub(crate) struct Other {
    pub(crate) link: BareLink,
    pub(crate) ear: Ear,
}

/// What a link has heard and published, each taken once.
pub(crate) struct Ear {
    pub(crate) tap: Wiretap,
    received: Vec<bool>,
    published: usize,
    changes: usize,
}

impl Ear {
    fn new(tap: Wiretap) -> Self {
        Self { tap, received: Vec::new(), published: 0, changes: 0 }
    }

    /// Takes the first frame on `topic` that was not taken yet, waiting for it.
    pub(crate) async fn take(&mut self, topic: &Topic) -> Option<Bytes> {
        let taken = &mut self.received;
        let mut found = None;
        let arrived = self.tap.until(|heard| {
            taken.resize(heard.received.len(), false);
            let mut frames = heard.received.iter().zip(taken.iter()).enumerate();
            found = frames
                .find(|(_, ((on, frame), taken))| !**taken && on == topic && !is_mark(frame))
                .map(|(at, ((_, frame), _))| (at, frame.clone()));
            found.is_some()
        });
        if !arrived.await {
            return None;
        }
        let (at, frame) = found?;
        self.received[at] = true;
        Some(frame)
    }

    /// What arrived and nobody took.
    pub(crate) fn left(&mut self) -> Vec<(Topic, Bytes)> {
        let taken = &mut self.received;
        self.tap.look(|heard| {
            taken.resize(heard.received.len(), false);
            let left = heard.received.iter().zip(taken.iter_mut()).filter(|(_, taken)| !**taken);
            let left: Vec<_> =
                left.map(|(delivery, taken)| (delivery, std::mem::replace(taken, true))).collect();
            left.into_iter()
                .filter(|((_, frame), _)| !is_mark(frame))
                .map(|(delivery, _)| delivery.clone())
                .collect()
        })
    }

    /// The next frame that was published, and how many got it, waiting for both.
    pub(crate) async fn next_published(&mut self) -> Option<(Topic, Bytes, u32)> {
        let at = &mut self.published;
        let mut next = None;
        let said = self.tap.until(|heard| {
            while heard.published.get(*at).is_some_and(|said| is_mark(&said.frame)) {
                *at += 1;
            }
            next = heard.published.get(*at).and_then(|said| match said.reach {
                Some(Reach::Nodes(reach)) => Some((said.topic.clone(), said.frame.clone(), reach)),
                _ => None,
            });
            next.is_some()
        });
        if !said.await {
            return None;
        }
        self.published += 1;
        next
    }

    /// What was published and not asked for.
    pub(crate) fn left_published(&mut self) -> Vec<(Topic, Bytes)> {
        let from = self.published;
        let left: Vec<_> = self.tap.look(|heard| {
            self.published = heard.published.len();
            heard.published[from..].iter().map(|said| (said.topic.clone(), said.frame.clone())).collect()
        });
        left.into_iter().filter(|(_, frame)| !is_mark(frame)).collect()
    }

    /// The changes of subscriptions since the last call, sorted.
    pub(crate) fn new_changes(&mut self) -> Vec<backplane_tests::wiretap::Change> {
        let from = self.changes;
        let mut changes = self.tap.look(|heard| {
            self.changes = heard.changes.len();
            heard.changes[from..].to_vec()
        });
        changes.sort();
        changes
    }
}

impl Stage {
    /// Opens all links; `hubs` are those of every server.
    pub(crate) async fn open(
        recording: &Recording,
        server: &str,
        hubs: &[HubName],
        bus: &Arc<dyn Bus>,
    ) -> Self {
        let wire = |letter: &str| AspNetCore::new(recording.prefix(), Some(server_name(letter)));
        let tap = Wiretap::new(bus.clone());
        let config = RouterConfig { hub: hubs[0].clone(), ..RouterConfig::default() };
        let node = Router::open_with_wire(Arc::new(tap.clone()), config, Box::new(wire(server)));
        let node = node.await.expect("our node opens");
        let mut routers = BTreeMap::new();
        for hub in hubs {
            let router = node.hub(hub).await.expect("a further hub opens");
            routers.insert(hub.to_string(), router);
        }
        let mut others = HashMap::new();
        for actor in actors(recording, server) {
            let link = BareLink::open(bus.clone()).await.expect("a bare link opens");
            let mut topics = vec![Topic::from(QUIET)];
            if let Actor::Server(letter) = &actor {
                let wire = wire(letter);
                topics.extend(hubs.iter().flat_map(|hub| wire.hub_topics(hub)).map(|(topic, _)| topic));
            }
            link.subscribe(&topics).await.expect("a bare link subscribes");
            let ear = Ear::new(link.tap().clone());
            others.insert(actor, Other { link, ear });
        }
        let conductor = BareLink::open(bus.clone()).await.expect("a bare link opens");
        Self { routers, node: Ear::new(tap), clients: BTreeMap::new(), others, conductor, marks: 0 }
    }

    /// Returns when our node has handled everything that was published so far, its clients have read what came of it,
    /// everybody else has heard it, and what our node answered has reached the broker.
    pub(crate) async fn settle(&mut self, prefix: &str) {
        self.marks += 1;
        let message = both(&format!("{MARK} ({})", self.marks));
        let frame =
            backplane_core::wire::aspnetcore::Invocation { message: message.clone(), ..Default::default() };
        let frame = frame.encode().freeze();
        let mut topics: Vec<Topic> = vec![Topic::from(QUIET)];
        topics.extend(self.routers.keys().map(|hub| Topic::from(format!("{prefix}{hub}:all"))));
        for topic in &topics {
            let reached = self.conductor.publish(topic.clone(), frame.clone()).await;
            reached.expect("the mark is published");
        }
        for client in self.clients.values_mut() {
            let mark = message.get(&client.protocol).expect("the mark is in all protocols");
            if let Err(reason) = client.read_up_to(mark).await {
                panic!("{} was disconnected: {reason:?}", client.id);
            }
        }
        let heard = |topic: Topic| {
            let frame = &frame;
            move |heard: &backplane_tests::wiretap::Heard| {
                heard.received.iter().rev().any(|(on, received)| *on == topic && received == frame)
            }
        };
        for topic in &topics[1..] {
            assert!(self.node.tap.until(heard(topic.clone())).await, "our node hears the mark on {topic}");
        }
        for other in self.others.values() {
            assert!(other.ear.tap.until(heard(topics[0].clone())).await, "everybody hears the mark");
        }
        // What our node has queued is published in order, so behind this one there is nothing left.
        let router = self.routers.values().next().expect("there is a hub");
        router.send(&Target::group(QUIET), &[], message).await.expect("our node publishes");
    }
}

fn is_mark(frame: &[u8]) -> bool {
    places(frame, MARK.as_bytes()).next().is_some()
}

/// Everybody but `server` who speaks to Redis.
fn actors(recording: &Recording, server: &str) -> BTreeSet<Actor> {
    let speaks = |event: &Event| match event {
        Event::Publish { by, .. } | Event::Subscribe { by, .. } | Event::Unsubscribe { by, .. } => {
            Some(by.clone())
        }
        _ => None,
    };
    let mut actors: BTreeSet<Actor> = recording.steps.iter().filter_map(|step| speaks(&step.event)).collect();
    actors.extend(recording.servers.keys().cloned().map(Actor::Server));
    actors.remove(&Actor::Server(server.to_owned()));
    actors
}
