//! The router: the one implementation of [`Backplane`], over any [`Bus`].
//!
//! This module wires the parts; each part is a small synchronous struct with its own tests. [`supervisor`] is the one
//! task that owns the link.

mod calls;
mod connections;
mod counters;
mod groups;
mod inbound;
mod interest;
mod nodes;
mod outbox;
mod pending;
mod positions;
mod questions;
mod supervisor;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::Instant;

use crate::bus::Bus;
use crate::config::{RouterConfig, Start, Wire};
use crate::error::{Error, ErrorKind, Result};
use crate::health::{Event, Gap, Health, LinkState};
use crate::id::{AckId, ConnectionId, HubName, InvocationId, NodeId};
use crate::message::EncodedMessage;
use crate::outbound::{CloseReason, OutboundItem, Pushed};
use crate::topic::{Topic, TopicSyntax};
use crate::wire::{AckOutcome, AspNetCore, Completion, Native, Route, WireFormat};

use connections::{Connection, Connections};
use counters::Counters;
use interest::{Interest, Wanted};
use nodes::Nodes;
pub(crate) use outbox::AcceptanceSlot;
use outbox::Outbox;
use pending::Pending;
use questions::Questions;
use supervisor::Supervisor;

/// Events kept for a receiver that falls behind.
const EVENTS: usize = 1_024;

/// One hub of one node. Cloning shares the hub and the node; [`hub`](Router::hub) gives further hubs on the same link.
///
/// The node lives as long as any of its routers or [`Registration`](crate::Registration)s, or until
/// [`shutdown`](crate::Backplane::shutdown). Dropping the last one ends it at once, without farewell.
#[derive(Clone)]
pub struct Router(Arc<Handle>);

/// What keeps a node alive, and the hub one means.
struct Handle {
    owner: Arc<Owner>,
    hub: Arc<Hub>,
}

struct Owner {
    node: Arc<Node>,
    /// `true`: leave in order. Dropped: stop.
    stop: watch::Sender<bool>,
    /// `true` once the supervisor has ended.
    ended: watch::Receiver<bool>,
}

/// Everything that a node shares between its hubs and its supervisor.
struct Node {
    id: NodeId,
    config: RouterConfig,
    wire: Box<dyn WireFormat>,
    hubs: RwLock<HashMap<HubName, Arc<Hub>>>,
    interest: Mutex<Interest>,
    /// Told when `interest` has changes for the link.
    interest_changed: Notify,
    outbox: Outbox,
    acks: Arc<Pending<AckId, AckOutcome>>,
    results: Arc<Pending<InvocationId, Completion>>,
    liveness: Mutex<Nodes>,
    health: watch::Sender<Health>,
    events: broadcast::Sender<Event>,
    counters: Counters,
    closed: AtomicBool,
}

/// One hub's connections, groups and open questions on this node.
struct Hub {
    name: HubName,
    connections: Mutex<Connections>,
    questions: Mutex<Questions>,
}

impl Router {
    /// Starts a node on `bus`; the handle is for [`RouterConfig::hub`]. Makes one attempt to connect: with
    /// [`Start::Degraded`] a failed one leaves the node down and trying. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig); [`Unsupported`](ErrorKind::Unsupported) when the bus cannot carry
    /// the topics of the wire format; whatever [`Bus::connect`] says.
    pub async fn open(bus: Arc<dyn Bus>, config: RouterConfig) -> Result<Self> {
        let prefix = config.prefix.as_deref();
        let wire: Box<dyn WireFormat> = match &config.wire {
            Wire::Native => Box::new(Native::new(prefix.unwrap_or("backplane"))?),
            Wire::AspNetCore { server_name } => {
                Box::new(AspNetCore::new(prefix.unwrap_or_default(), server_name.clone()))
            }
        };
        Self::open_with_wire(bus, config, wire).await
    }

    /// As [`open`](Router::open), with a wire format of one's own; [`RouterConfig::wire`] and
    /// [`RouterConfig::prefix`] are ignored.
    ///
    /// # Errors
    /// As `open`.
    pub async fn open_with_wire(
        bus: Arc<dyn Bus>,
        config: RouterConfig,
        wire: Box<dyn WireFormat>,
    ) -> Result<Self> {
        config.validate()?;
        if wire.topic_syntax() == TopicSyntax::Any && bus.capabilities().topics == TopicSyntax::Tokens {
            let context = format!(
                "the wire format {} names topics freely, which this bus cannot carry; use the native one",
                wire.name()
            );
            return Err(Error::new(ErrorKind::Unsupported, "open").with_context(context));
        }
        let node = Arc::new(Node::new(config, wire));
        for (topic, route) in node.wire.node_topics() {
            node.want_always(&topic, route).keep();
        }
        let hub_topics = node.wire.hub_topics(&node.config.hub);
        let held = hub_topics.into_iter().map(|(topic, route)| node.want_always(&topic, route)).collect();
        let hub = node.insert_hub(&node.config.hub, held);
        let (stop, stopped) = watch::channel(false);
        let mut supervisor = Supervisor::new(node.clone(), bus, stopped);
        let first = match supervisor.connect().await {
            Ok(link) => Some(link),
            Err(error) if node.config.start == Start::Degraded && error.is_retryable() => {
                supervisor.failed(error);
                None
            }
            Err(error) => return Err(error),
        };
        let (ending, ended) = watch::channel(false);
        // Dropped last, also when the supervisor panics or its runtime ends before it ran at all: nobody shall wait for a
        // node that no task serves.
        let epilogue = Epilogue { node: node.clone(), ending };
        tokio::spawn(async move {
            supervisor.run(first).await;
            drop(epilogue);
        });
        Ok(Self(Arc::new(Handle { owner: Arc::new(Owner { node, stop, ended }), hub })))
    }

    /// The router of another hub of the same node, on the same link; the same hub for the same name. While the link is
    /// up it returns when the hub's topics are confirmed.
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed) after shutdown; [`Timeout`](ErrorKind::Timeout), [`Denied`](ErrorKind::Denied),
    /// [`Unavailable`](ErrorKind::Unavailable) when the broker did not confirm; the hub is opened at the next attempt.
    pub async fn hub(&self, name: impl Into<HubName>) -> Result<Self> {
        let node = self.node();
        node.check_open("hub")?;
        let name = name.into();
        let hub = match node.hub(&name) {
            Some(hub) => hub,
            None => {
                let late = |_| {
                    Error::new(ErrorKind::Timeout, "hub")
                        .with_context("its topics were not confirmed in time")
                };
                let confirmed = tokio::time::timeout(node.config.ack_timeout, node.want_hub(&name));
                let held = confirmed.await.map_err(late)??;
                node.insert_hub(&name, held)
            }
        };
        Ok(Self(Arc::new(Handle { owner: self.0.owner.clone(), hub })))
    }

    /// The id of this node; new at each start.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.node().id
    }

    /// The name of this router's hub.
    #[must_use]
    pub fn hub_name(&self) -> &HubName {
        &self.0.hub.name
    }

    fn node(&self) -> &Arc<Node> {
        &self.0.owner.node
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router")
            .field("node", &self.node().id)
            .field("hub", &self.0.hub.name)
            .field("wire", &self.node().wire.name())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({} of {})", self.hub.name, self.owner.node.id)
    }
}

/// Ends everything that anybody could still wait for.
struct Epilogue {
    node: Arc<Node>,
    ending: watch::Sender<bool>,
}

impl Drop for Epilogue {
    fn drop(&mut self) {
        self.node.close();
        self.ending.send_replace(true);
    }
}

impl Node {
    fn new(config: RouterConfig, wire: Box<dyn WireFormat>) -> Self {
        let provenance = wire.provenance();
        let health = Health {
            state: LinkState::Down { error: None },
            attempts: 0,
            detects_loss: provenance,
            impediment: None,
        };
        Self {
            id: wire.node(),
            hubs: RwLock::default(),
            interest: Mutex::new(Interest::new(provenance)),
            interest_changed: Notify::new(),
            outbox: Outbox::new(config.queue_frames, config.queue_bytes),
            acks: Pending::new(),
            results: Pending::new(),
            liveness: Mutex::new(Nodes::new(config.heartbeat, Instant::now())),
            health: watch::Sender::new(health),
            events: broadcast::Sender::new(EVENTS),
            counters: Counters::default(),
            closed: AtomicBool::new(false),
            config,
            wire,
        }
    }

    /// Wants a hub's topics: confirmed where the link is up, else attached with the next one.
    async fn want_hub(self: &Arc<Self>, name: &HubName) -> Result<Vec<InterestGuard>> {
        let mut held = Vec::new();
        for (topic, route) in self.wire.hub_topics(name) {
            let guard = match self.want(&topic, || route.clone()).await {
                Ok(guard) => guard,
                Err(error) if error.kind() == ErrorKind::Unavailable => self.want_always(&topic, route),
                Err(error) => return Err(error),
            };
            held.push(guard);
        }
        Ok(held)
    }

    /// Adds a hub, which stays for the life of the node; the existing one if there is one by now.
    fn insert_hub(&self, name: &HubName, held: Vec<InterestGuard>) -> Arc<Hub> {
        let mut hubs = self.hubs.write();
        if let Some(hub) = hubs.get(name) {
            let hub = hub.clone();
            drop(hubs);
            return hub;
        }
        let hub =
            Arc::new(Hub { name: name.clone(), connections: Mutex::default(), questions: Mutex::default() });
        hubs.insert(name.clone(), hub.clone());
        held.into_iter().for_each(InterestGuard::keep);
        hub
    }

    /// Wants a topic, link or no link, without waiting.
    fn want_always(self: &Arc<Self>, topic: &Topic, route: Route) -> InterestGuard {
        self.interest.lock().want_always(topic, route);
        self.interest_changed.notify_one();
        InterestGuard { node: Arc::downgrade(self), topic: Some(topic.clone()) }
    }

    fn each_hub(&self, act: impl FnMut(Arc<Hub>)) {
        let hubs: Vec<Arc<Hub>> = self.hubs.read().values().cloned().collect();
        hubs.into_iter().for_each(act);
    }

    fn hub(&self, name: &HubName) -> Option<Arc<Hub>> {
        self.hubs.read().get(name).cloned()
    }

    /// Wants a topic and waits until the broker confirmed it. Has no deadline of its own; dropping it releases.
    async fn want(self: &Arc<Self>, topic: &Topic, route: impl FnOnce() -> Route) -> Result<InterestGuard> {
        let wanted = self.interest.lock().want(topic, route)?;
        let guard = InterestGuard { node: Arc::downgrade(self), topic: Some(topic.clone()) };
        if let Wanted::Soon(confirmed) = wanted {
            self.interest_changed.notify_one();
            confirmed.await.map_err(|_| Error::new(ErrorKind::Closed, "subscribe"))??;
        }
        Ok(guard)
    }

    /// Puts a message into a connection's queue.
    fn push(&self, connection: &Connection, message: &EncodedMessage) -> Pushed {
        match message.get(&connection.protocol) {
            Some(bytes) => self.push_item(connection, OutboundItem { bytes: bytes.clone(), messages: 1 }),
            None => self.lacks_protocol(connection, 1),
        }
    }

    fn push_item(&self, connection: &Connection, item: OutboundItem) -> Pushed {
        let messages = item.messages as u64;
        let pushed = connection.outbound.push(item);
        match pushed {
            Pushed::Queued => self.counters.delivered.add(messages),
            Pushed::Overflowed => {
                self.counters.overflows.add(1);
                // Nobody listens to events: nothing to tell.
                let _ = self.events.send(Event::Overflow(connection.id.clone()));
            }
            Pushed::Closed => {}
        }
        pushed
    }

    /// The sender did not encode for this client's protocol: the bytes do not exist, the client must go.
    fn lacks_protocol(&self, connection: &Connection, messages: u64) -> Pushed {
        if let Some(count) = self.counters.missing_protocol.add_worth_a_line(messages) {
            tracing::warn!(
                node = %self.id, connection = %connection.id, protocol = %connection.protocol, count,
                "a message was not encoded for this client's protocol; every server must publish all protocols in use"
            );
        }
        connection.outbound.close(CloseReason::MissingProtocol);
        Pushed::Closed
    }

    fn raise(&self, gap: Gap) {
        self.counters.gaps.add(1);
        tracing::warn!(node = %self.id, ?gap, "messages may have been lost");
        let _ = self.events.send(Event::Gap(gap));
    }

    fn check_open(&self, operation: &'static str) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, operation).with_context("the node was shut down"));
        }
        Ok(())
    }

    /// From now on every call fails with `Closed`, and everything that waits ends.
    fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) && self.health.borrow().is_closed() {
            return;
        }
        let error = Error::new(ErrorKind::Closed, "await").with_context("the node was shut down");
        self.interest.lock().offline(&error);
        self.outbox.close(&error);
        self.acks.fail_all(&error);
        self.results.fail_all(&error);
        for hub in self.hubs.read().values() {
            hub.questions.lock().fail_local(&error);
        }
        self.health.send_modify(|health| health.state = LinkState::Closed);
        let _ = self.events.send(Event::Closed);
    }
}

/// Wants a topic for as long as it lives. Dropping it takes the interest table's lock.
pub(crate) struct InterestGuard {
    node: Weak<Node>,
    topic: Option<Topic>,
}

impl InterestGuard {
    /// Wants the topic for the life of the node.
    fn keep(mut self) {
        self.topic = None;
    }

    /// Of no node, for tests of the tables.
    #[cfg(test)]
    pub(crate) fn detached() -> Self {
        Self { node: Weak::new(), topic: None }
    }
}

impl Drop for InterestGuard {
    fn drop(&mut self) {
        if let (Some(node), Some(topic)) = (self.node.upgrade(), self.topic.take()) {
            let changed = {
                let mut interest = node.interest.lock();
                interest.release(&topic);
                interest.has_changes()
            };
            if changed {
                node.interest_changed.notify_one();
            }
        }
    }
}

impl fmt::Debug for InterestGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InterestGuard({:?})", self.topic)
    }
}

/// The connection does not exist anywhere, as far as anybody can know.
fn not_found(operation: &'static str, connection: &ConnectionId) -> Error {
    let context = format!("connection '{connection}' does not exist");
    Error::new(ErrorKind::ConnectionNotFound, operation).with_context(context)
}
