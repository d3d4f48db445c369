//! From an inbound frame to its local effect. Never waits: what must wait for the broker is handed back as a request.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::bus::{Delivery, Position as LogPosition};
use crate::error::{Error, ErrorKind, Result};
use crate::health::{Event, Gap};
use crate::id::{AckId, ConnectionId, HubName, InvocationId, NodeId, Protocol};
use crate::message::{ClientResult, EncodedMessage};
use crate::outbound::{CloseReason, OutboundItem, Pushed};
use crate::router::Node;
use crate::router::calls::change_here;
use crate::router::connections::{Connection, Members};
use crate::router::positions::{Findings, Positions, Verdict};
use crate::router::questions::Asker;
use crate::topic::Topic;
use crate::wire::{AckOutcome, Beat, Command, Completion, Inbound, Provenance, ReplyTo, Route};

/// What a remote command still has to wait for.
pub(super) type Request = BoxFuture<'static, ()>;

/// A run ends at so many messages or bytes: it is one item of an outbound queue, whose bounds are counted in both.
const RUN_MESSAGES: usize = 128;
const RUN_BYTES: usize = 64 << 10;
/// After so many frames, or about so many bytes of them, clients' writers have their turn: a fraction of what the queue of a
/// client holds by default.
const TURN: usize = 1_024;
const TURN_BYTES: usize = 256 << 10;
/// Messages longer than this are shared with the received frame instead of copied out of it.
const COPY_BELOW: usize = 4_096;

/// Handles deliveries in order; owned by the supervisor's task.
pub(super) struct Pump {
    node: Arc<Node>,
    positions: Positions,
    /// Position of the last delivery handled, on a bus that can resume.
    pub(super) position: Option<LogPosition>,
    /// Remote commands to wait for.
    pub(super) requests: Vec<Request>,
    /// How many more of them there may be; beyond it a command is refused.
    pub(super) room: usize,
    /// Frames and bytes handled since the clients' writers had their turn.
    turn: (usize, usize),
}

/// Consecutive messages of one topic: their audience is resolved once.
struct Run {
    topic: Topic,
    route: Arc<Route>,
    judged: bool,
    bytes: usize,
    messages: SmallVec<[EncodedMessage; 8]>,
}

impl Pump {
    /// `window`: how many numbers of an origin and topic are remembered to recognise repeats; `repeating`: whether the bus
    /// repeats frames.
    pub(super) fn new(node: Arc<Node>, window: usize, repeating: bool) -> Self {
        let positions = Positions::new(node.config.tracked_positions, window, repeating);
        Self { node, positions, position: None, requests: Vec::new(), room: 0, turn: (0, 0) }
    }

    /// A new link that starts anew.
    pub(super) fn restart(&mut self) {
        self.positions.clear();
        self.position = None;
    }

    /// A tick passed.
    pub(super) fn age(&mut self) {
        self.positions.age();
    }

    /// These topics were freed.
    pub(super) fn forget_topics(&mut self, topics: &[Topic]) {
        for topic in topics {
            self.positions.forget_topic(topic);
        }
    }

    /// That node is gone: waits on it end. Its positions stay: if it was only silent, what was lost is still found.
    pub(super) fn node_gone(&self, gone: NodeId) {
        self.node.each_hub(|hub| hub.questions.lock().node_gone(gone));
        self.node.acks.node_gone(gone);
        self.node.results.node_gone(gone);
        tracing::info!(node = %self.node.id, %gone, "a node is gone");
        let _ = self.node.events.send(Event::NodeGone(gone));
    }

    /// Handles what was ready until there is no more, or others are to have their turn. `Err`: the link ended; everything
    /// before it was handled.
    pub(super) fn handle(&mut self, deliveries: &mut impl Iterator<Item = Result<Delivery>>) -> Result<()> {
        let mut run: Option<Run> = None;
        let mut received = 0;
        let mut end = Ok(());
        while !self.is_turn_over() {
            let Some(delivery) = deliveries.next() else { break };
            match delivery {
                Ok(Delivery::Frame { topic, frame, position }) => {
                    received += 1;
                    self.turn.0 += 1;
                    self.turn.1 += frame.len();
                    self.frame(topic, frame, &mut run);
                    self.position = position.or(self.position);
                }
                Ok(Delivery::Lost { topics, reason }) => {
                    self.finish(run.take());
                    self.positions.lost(topics.as_deref());
                    self.node.raise(Gap { topics, ..Gap::unknown(reason) });
                }
                Err(error) => {
                    end = Err(error);
                    break;
                }
            }
        }
        self.finish(run);
        self.node.counters.received.add(received);
        end
    }

    /// Whether as much was handled as the queues of clients that read can surely take.
    fn is_turn_over(&self) -> bool {
        self.turn.0 >= TURN || self.turn.1 >= TURN_BYTES
    }

    /// The writers of clients that got something may wait for this very thread: a backlog that is longer than their queues
    /// must not be read past them.
    pub(super) async fn give_way(&mut self) {
        if self.is_turn_over() {
            self.turn = (0, 0);
            tokio::task::yield_now().await;
        }
    }

    fn frame(&mut self, topic: Topic, frame: Bytes, run: &mut Option<Run>) {
        let (route, judged) = match run {
            Some(run) if run.topic == topic => (run.route.clone(), run.judged),
            _ => match self.node.interest.lock().route(&topic) {
                Some((route, judged)) => (route.clone(), judged),
                None => return self.node.counters.unwanted.add(1),
            },
        };
        let decoded = match self.node.wire.decode(&route, frame) {
            Ok(decoded) => decoded,
            Err(error) => {
                if let Some(count) = self.node.counters.malformed.add_worth_a_line(1) {
                    tracing::warn!(node = %self.node.id, %topic, %error, count, "a frame could not be read");
                }
                return;
            }
        };
        if let Some(provenance) = decoded.provenance
            && judged
            && *route != Route::Common
        {
            let (verdict, findings) = self.positions.judge(&topic, provenance);
            if findings != Findings::default() {
                self.finish(run.take());
                self.tell(findings);
            }
            if verdict == Verdict::Repeat {
                return self.node.counters.repeats_removed.add(1);
            }
        }
        match decoded.body {
            Inbound::Message { except, message } if except.is_empty() => match run {
                Some(run)
                    if run.topic == topic && run.messages.len() < RUN_MESSAGES && run.bytes < RUN_BYTES =>
                {
                    run.bytes += message.len();
                    run.messages.push(message);
                }
                _ => {
                    let bytes = message.len();
                    let next = Run { topic, route, judged, bytes, messages: SmallVec::from_iter([message]) };
                    let previous = run.replace(next);
                    self.finish(previous);
                }
            },
            body => {
                self.finish(run.take());
                self.act(&route, decoded.provenance, body);
            }
        }
    }

    fn tell(&self, findings: Findings) {
        self.node.counters.evictions.add(findings.evicted);
        if let Some(gap) = findings.gap {
            self.node.raise(gap);
        }
    }

    fn finish(&self, run: Option<Run>) {
        if let Some(run) = run {
            self.deliver(&run.route, &[], &run.messages);
        }
    }

    /// Delivers messages to the audience of a topic.
    fn deliver(&self, route: &Route, except: &[ConnectionId], messages: &[EncodedMessage]) {
        let hub = match route {
            Route::All(hub) | Route::Group(hub, _) | Route::User(hub, _) | Route::Connection(hub, _) => hub,
            _ => return self.node.counters.unwanted.add(messages.len() as u64),
        };
        let Some(hub) = self.node.hub(hub) else {
            return self.node.counters.unwanted.add(messages.len() as u64);
        };
        let mut joined = Joined::new(messages);
        let connections = hub.connections.lock();
        let audience = match route {
            Route::All(_) => Some(connections.all()),
            Route::Group(_, group) => connections.of_group(group),
            Route::User(_, user) => connections.of_user(user),
            Route::Connection(_, id) => {
                if let Some(connection) = connections.get(id) {
                    joined.push(&self.node, connection);
                }
                return;
            }
            _ => None,
        };
        if let Some(audience) = audience {
            joined.push_all(&self.node, audience, except);
        }
    }

    fn act(&mut self, route: &Route, provenance: Option<Provenance>, body: Inbound) {
        match body {
            Inbound::Message { except, message } => self.deliver(route, &except, &[message]),
            Inbound::Direct { hub, connections, message } => self.direct(&hub, &connections, &message),
            Inbound::ChangeGroup { hub, ack, reply, change } => {
                let node = self.node.clone();
                let found = node.hub(&hub).and_then(|hub| {
                    let connection = hub.connections.lock().get(&change.connection).cloned()?;
                    Some((hub, connection))
                });
                let Some((local, connection)) = found else {
                    return node.acknowledge(&hub, &reply, ack, AckOutcome::NotFound);
                };
                if self.room == 0 {
                    return node.acknowledge(&hub, &reply, ack, AckOutcome::Failed);
                }
                self.room -= 1;
                let deadline = change.timeout.unwrap_or(node.config.ack_timeout);
                let changed = change_here(&node, &local, &connection, &change, deadline);
                self.requests.push(Box::pin(async move {
                    let outcome = match changed.await {
                        Ok(()) => AckOutcome::Done,
                        Err(error) if error.kind() == ErrorKind::ConnectionNotFound => AckOutcome::NotFound,
                        Err(_) => AckOutcome::Failed,
                    };
                    node.acknowledge(&hub, &reply, ack, outcome);
                }));
            }
            Inbound::NoChange { hub, ack, reply, connection } => {
                let local =
                    self.node.hub(&hub).filter(|hub| hub.connections.lock().get(&connection).is_some());
                if local.is_some() {
                    self.node.acknowledge(&hub, &reply, ack, AckOutcome::Done);
                }
            }
            Inbound::Ack { ack, outcome } => {
                self.node.acks.answer(&ack, Ok(outcome));
            }
            Inbound::Invoke { hub, connection, id, reply, message, timeout } => {
                let expires = timeout.map(|timeout| Instant::now() + timeout);
                let asker = Asker::Remote { reply, node: provenance.map(|provenance| provenance.origin) };
                self.ask(&hub, &connection, id, asker, &message, expires);
            }
            Inbound::CancelInvoke { hub, id, .. } => {
                if let Some(hub) = self.node.hub(&hub) {
                    hub.questions.lock().close(&id);
                }
            }
            Inbound::Complete { id, completion } => {
                self.node.results.answer(&id, Ok(completion));
            }
            Inbound::Abort { hub, ack, reply, connection, reason } => {
                let found =
                    self.node.hub(&hub).and_then(|hub| hub.connections.lock().get(&connection).cloned());
                let outcome = match found {
                    Some(connection) => {
                        connection.outbound.close(CloseReason::Aborted(reason));
                        AckOutcome::Done
                    }
                    None => AckOutcome::NotFound,
                };
                self.node.acknowledge(&hub, &reply, ack, outcome);
            }
            Inbound::Beat(beat) => self.beat(provenance, beat),
            Inbound::Unwanted => self.node.counters.unwanted.add(1),
        }
    }

    fn direct(&self, hub: &HubName, ids: &[ConnectionId], message: &EncodedMessage) {
        let Some(hub) = self.node.hub(hub) else { return self.node.counters.unwanted.add(1) };
        let messages = std::slice::from_ref(message);
        let mut joined = Joined::new(messages);
        let connections = hub.connections.lock();
        for connection in ids.iter().filter_map(|id| connections.get(id)) {
            joined.push(&self.node, connection);
        }
    }

    /// Another node asks a connection of ours.
    fn ask(
        &self,
        hub_name: &HubName,
        connection: &ConnectionId,
        id: InvocationId,
        asker: Asker,
        message: &EncodedMessage,
        expires: Option<Instant>,
    ) {
        let Asker::Remote { reply, .. } = &asker else { return };
        let reply = reply.clone();
        let refuse = |protocol: &Protocol, completion: Completion| {
            // At best: the asker's deadline ends its wait too.
            let _ = self.node.complete(hub_name, &reply, &id, protocol, &completion);
        };
        let found = self.node.hub(hub_name).and_then(|hub| {
            let connection = hub.connections.lock().get(connection).cloned()?;
            Some((hub, connection))
        });
        // Whoever is not here speaks no protocol.
        let Some((hub, connection)) = found else { return refuse(&Protocol::JSON, Completion::NotFound) };
        let opened = hub.questions.lock().open(id.clone(), &connection.id, asker, expires);
        if let Err((_, why)) = opened {
            refuse(&connection.protocol, Completion::answered(ClientResult::error(why)));
            // The client is asked all the same, as by SignalR; its answer belongs to whoever asked first.
            let _ = self.node.push(&connection, message);
            return;
        }
        let asked = self.node.push(&connection, message);
        let registered = hub.connections.lock().get(&connection.id).is_some();
        if (asked == Pushed::Closed || !registered) && hub.questions.lock().close(&id).is_some() {
            refuse(&connection.protocol, Completion::Disconnected);
        }
    }

    fn beat(&mut self, provenance: Option<Provenance>, beat: Beat) {
        let Some(Provenance { origin, seq, .. }) = provenance else { return };
        let now = Instant::now();
        if origin == self.node.id {
            self.node.liveness.lock().echoed(seq, now);
        } else if beat.leaving {
            if self.node.liveness.lock().left(origin) {
                self.node_gone(origin);
            }
            self.positions.forget_origin(origin);
            return;
        } else if self.node.liveness.lock().heard(origin, now) {
            let _ = self.node.events.send(Event::NodeJoined(origin));
        }
        let mut found = Vec::new();
        {
            let interest = self.node.interest.lock();
            for (hash, seq) in beat.topics {
                if let Some(topic) = interest.confirmed_by_hash(hash) {
                    found.push((topic.clone(), seq));
                }
            }
        }
        for (topic, seq) in found {
            let findings = self.positions.announced(&topic, origin, seq, beat.seq);
            self.tell(findings);
        }
    }
}

impl Node {
    /// Forgets questions that nobody waits for any more.
    pub(super) fn expire_questions(&self, now: Instant) {
        self.each_hub(|hub| hub.questions.lock().expire(now));
    }

    fn acknowledge(&self, hub: &HubName, to: &ReplyTo, ack: AckId, outcome: AckOutcome) {
        // A format that cannot say "not found" stays silent; the asker's deadline ends its wait.
        if let Ok(draft) = self.wire.encode(hub, Command::Ack { to, ack, outcome })
            && !self.outbox.reply(draft)
        {
            self.counters.replies_dropped.add(1);
        }
    }

    /// Returns an answer to the node that asked.
    pub(super) fn complete(
        &self,
        hub: &HubName,
        to: &ReplyTo,
        id: &InvocationId,
        protocol: &Protocol,
        completion: &Completion,
    ) -> Result<()> {
        let encode = |completion: &Completion| {
            self.wire.encode(hub, Command::Complete { to, id, protocol, completion })
        };
        let mut draft = encode(completion)?;
        let (length, most) = (draft.frame.len(), self.outbox.limits()?.max_frame);
        if length > most {
            draft = encode(&Completion::answered(ClientResult::error("The client's result is too large.")))?;
        }
        if !self.outbox.reply(draft) {
            self.counters.replies_dropped.add(1);
            let error = Error::new(ErrorKind::Overloaded, "complete");
            return Err(error.with_context("too many answers wait to be sent"));
        }
        if length > most {
            let context =
                format!("an answer of {length} bytes, the bus carries at most {most}; the asker was told");
            return Err(Error::new(ErrorKind::TooLarge, "complete").with_context(context));
        }
        Ok(())
    }
}

/// The messages of a run, joined once for each protocol of the audience.
struct Joined<'a> {
    messages: &'a [EncodedMessage],
    items: SmallVec<[(Protocol, Option<OutboundItem>); 2]>,
}

impl<'a> Joined<'a> {
    fn new(messages: &'a [EncodedMessage]) -> Self {
        Self { messages, items: SmallVec::new() }
    }

    fn push_all(&mut self, node: &Node, audience: &Members, except: &[ConnectionId]) {
        // A long list of exceptions is looked up, a short one compared.
        let many: Option<HashSet<&ConnectionId>> = (except.len() > 8).then(|| except.iter().collect());
        for (id, connection) in audience {
            let excepted = match &many {
                Some(many) => many.contains(id),
                None => except.contains(id),
            };
            if !excepted {
                self.push(node, connection);
            }
        }
    }

    fn push(&mut self, node: &Node, connection: &Connection) {
        let index = match self.items.iter().position(|(protocol, _)| *protocol == connection.protocol) {
            Some(index) => index,
            None => {
                self.items.push((connection.protocol.clone(), self.join(&connection.protocol)));
                self.items.len() - 1
            }
        };
        match &self.items[index].1 {
            Some(item) => drop(node.push_item(connection, item.clone())),
            None => drop(node.lacks_protocol(connection, self.messages.len() as u64)),
        }
    }

    /// `None`: one of the messages is not encoded for that protocol.
    fn join(&self, protocol: &Protocol) -> Option<OutboundItem> {
        let total = self
            .messages
            .iter()
            .map(|message| message.get(protocol).map(Bytes::len))
            .sum::<Option<usize>>()?;
        if let [message] = self.messages
            && total > COPY_BELOW
        {
            return Some(OutboundItem { bytes: message.get(protocol)?.clone(), messages: 1 });
        }
        // Copied, so that a slow client holds its own bytes and not the buffers they arrived in.
        let mut bytes = BytesMut::with_capacity(total);
        for message in self.messages {
            bytes.extend_from_slice(message.get(protocol)?);
        }
        Some(OutboundItem { bytes: bytes.freeze(), messages: self.messages.len() })
    }
}
