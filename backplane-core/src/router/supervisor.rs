//! The one task that owns the link: connects, pumps, publishes, beats, and starts anew when the link is lost.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::bus::{Attach, Bus, Link, LinkSender, LossReason, Outgoing, Reach};
use crate::error::{Error, ErrorKind, Result};
use crate::health::{Event, Gap, LinkState};
use crate::id::random_bytes;
use crate::router::Node;
use crate::router::inbound::{Pump, Request};
use crate::router::interest::Change;
use crate::router::outbox::Ticket;
use crate::router::positions::Numbering;
use crate::topic::Topic;
use crate::wire::{Beat, Command};

/// Most ready deliveries taken at once.
const PUMP_BATCH: usize = 1_024;
/// Most frames, and about how many bytes, handed to the link in one batch. A batch is answered as a whole, so larger ones
/// make publisher and broker wait for each other: measured 1.23 to 1.53 of a bare Redis loop at 128, 0.75 at 1,024.
const PUBLISH_BATCH: usize = 128;
const PUBLISH_BYTES: usize = 1 << 20;
/// Most topics of one `subscribe` or `unsubscribe`.
const CHANGE_BATCH: usize = 10_000;
/// Most commands of other nodes that wait for the broker at once; a further one is refused.
const MAX_REQUESTS: usize = 65_536;
/// Repeats are recognised among this many numbers of an origin and topic, on a bus that may repeat and on one that
/// does not.
const WINDOW_REPEATING: usize = 4_096;
const WINDOW: usize = 64;

/// See the module.
pub(super) struct Supervisor {
    node: Arc<Node>,
    bus: Arc<dyn Bus>,
    stop: watch::Receiver<bool>,
    pump: Pump,
    numbering: Numbering,
    attempt: u64,
    was_up: bool,
}

type InFlight = FuturesUnordered<BoxFuture<'static, (Undecided, Vec<Result<Reach>>)>>;
type Changing = BoxFuture<'static, std::result::Result<Vec<(Change, Result<()>)>, Elapsed>>;

enum End {
    Stopped,
    Lost(Error),
}

impl Supervisor {
    pub(super) fn new(node: Arc<Node>, bus: Arc<dyn Bus>, stop: watch::Receiver<bool>) -> Self {
        let capabilities = bus.capabilities();
        let repeating = capabilities.repeats || capabilities.resume;
        let window = if repeating { WINDOW_REPEATING } else { WINDOW };
        let numbering = Numbering::new(node.config.tracked_positions);
        let pump = Pump::new(node.clone(), window, repeating);
        Self { pump, node, bus, stop, numbering, attempt: 0, was_up: false }
    }

    /// One attempt to connect. With its success the node is up; somebody must serve the link then.
    pub(super) async fn connect(&mut self) -> Result<Link> {
        self.attempt += 1;
        let attempts = self.attempt;
        self.node.health.send_modify(|health| health.attempts = attempts);
        let topics = self.node.interest.lock().wanted();
        let deadline = self.node.config.connect_timeout;
        // A bus that resumes may repeat; without provenance nobody could tell the repeats, and clients would see them.
        let tells_repeats = self.node.wire.provenance() || !self.bus.capabilities().repeats;
        let attach = Attach {
            node: self.node.id,
            attempt: self.attempt,
            topics: &topics,
            resume: self.pump.position.as_ref().filter(|_| tells_repeats),
            deadline,
            heartbeat: self.node.config.heartbeat,
        };
        // The bus keeps the deadline itself (B9); one that does not shall not hang us.
        let grace = deadline + Duration::from_millis(250);
        let late = |_| {
            Error::new(ErrorKind::Timeout, "connect").with_context(format!("no link within {deadline:?}"))
        };
        let link = timeout(grace, self.bus.connect(attach)).await.map_err(late)??;
        self.up(&link, &topics);
        Ok(link)
    }

    /// Serves the link, and the links after it, until the node is stopped.
    pub(super) async fn run(mut self, first: Option<Link>) {
        let mut connected = first;
        loop {
            let link = match connected.take() {
                Some(link) => link,
                None => match self.reconnect().await {
                    Some(link) => link,
                    None => return,
                },
            };
            match self.serve(link).await {
                End::Stopped => return,
                End::Lost(error) => self.lost(error),
            }
        }
    }

    /// Tries until it succeeds, with a growing pause and jitter in between. `None`: stopped.
    async fn reconnect(&mut self) -> Option<Link> {
        let mut pause = self.node.config.reconnect_min;
        let mut stop = self.stop.clone();
        let mut ticks = interval(self.node.config.heartbeat / 10);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let node = self.node.clone();
        loop {
            let result = {
                let attempt = async {
                    // Between half the pause and all of it.
                    let jitter = f64::from(u32::from_be_bytes(random_bytes())) / f64::from(u32::MAX);
                    tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * jitter)).await;
                    self.connect().await
                };
                tokio::pin!(attempt);
                loop {
                    tokio::select! {
                        _ = stop.wait_for(|stop| *stop) => return None,
                        result = &mut attempt => break result,
                        now = ticks.tick() => node.expire_questions(now),
                    }
                }
            };
            match result {
                Ok(link) => return Some(link),
                Err(error) => self.failed(error),
            }
            pause = (pause * 2).min(self.node.config.reconnect_max);
        }
    }

    /// An attempt failed.
    pub(super) fn failed(&mut self, error: Error) {
        // The first of an outage is worth a line, the others only a whisper.
        let known = matches!(&self.node.health.borrow().state, LinkState::Down { error: Some(_) });
        if known {
            tracing::debug!(node = %self.node.id, attempt = self.attempt, %error, "no link to the broker");
        } else {
            tracing::warn!(node = %self.node.id, attempt = self.attempt, %error, "no link to the broker");
        }
        self.down(&error);
    }

    /// The link was lost.
    fn lost(&mut self, error: Error) {
        tracing::warn!(node = %self.node.id, attempt = self.attempt, %error, "the link to the broker was lost");
        let waits = Error::new(ErrorKind::Unavailable, "await")
            .with_context("the link to the broker was lost")
            .with_source(error.clone());
        // Where the next link resumes, the answers still come; else nobody will bring them.
        if !self.bus.capabilities().resume {
            let waits = waits.with_outcome_unknown();
            self.node.acks.fail_all(&waits);
            self.node.results.fail_all(&waits);
        }
        self.down(&error);
    }

    fn down(&self, error: &Error) {
        let refused = |operation| {
            let refused =
                Error::new(ErrorKind::Unavailable, operation).with_context("the link to the broker is down");
            refused.with_source(error.clone())
        };
        self.node.liveness.lock().link_down();
        self.node.interest.lock().offline(&refused("subscribe"));
        self.node.outbox.close(&refused("publish"));
        self.node.health.send_modify(|health| {
            health.state = LinkState::Down { error: Some(error.clone()) };
            health.impediment = None;
        });
        let _ = self.node.events.send(Event::LinkDown { error: error.clone() });
    }

    fn up(&mut self, link: &Link, topics: &[Topic]) {
        let node = &self.node;
        node.liveness.lock().link_up(Instant::now());
        if self.was_up {
            node.counters.reconnects.add(1);
            if !link.resumed {
                self.pump.restart();
                node.raise(Gap::unknown(LossReason::Reconnect));
            }
        }
        self.was_up = true;
        node.interest.lock().online(topics);
        node.interest_changed.notify_one();
        node.outbox.open(link.limits);
        tracing::info!(node = %node.id, attempt = self.attempt, resumed = link.resumed, "the link to the broker is up");
        node.health.send_modify(|health| health.state = LinkState::Up);
        let _ = node.events.send(Event::LinkUp { attempt: self.attempt, resumed: link.resumed });
    }

    /// Serves one link until it ends or the node is stopped.
    async fn serve(&mut self, link: Link) -> End {
        let Link { sender, inbound, .. } = link;
        let mut inbound = inbound.ready_chunks(PUMP_BATCH);
        let mut in_flight = InFlight::new();
        let mut requests: FuturesUnordered<Request> = FuturesUnordered::new();
        let mut changing: Option<Changing> = None;
        let mut stop = self.stop.clone();
        let mut ticks = interval(self.node.config.heartbeat / 10);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tick = 0_u64;
        // Whether the last look found our own echo missing, and no backlog has been read since.
        let mut in_doubt = false;
        let node = self.node.clone();
        let end = loop {
            if changing.is_none() {
                let change = node.interest.lock().next_change(CHANGE_BATCH);
                let patience = node.config.heartbeat.max(node.config.ack_timeout);
                changing = change.map(|change| timeout(patience, carry_out(sender.clone(), change)).boxed());
            }
            tokio::select! {
                in_order = async { stop.wait_for(|stop| *stop).await.is_ok() } => {
                    if in_order {
                        self.leave(sender.as_ref(), &mut inbound, &mut in_flight).await;
                    }
                    break End::Stopped;
                }
                deliveries = inbound.next() => {
                    let Some(deliveries) = deliveries else {
                        break End::Lost(Error::new(ErrorKind::Unavailable, "receive").with_context("the link ended"));
                    };
                    in_doubt &= deliveries.len() < PUMP_BATCH;
                    let mut deliveries = deliveries.into_iter();
                    let mut handled = Ok(());
                    while handled.is_ok() && deliveries.len() > 0 {
                        self.pump.room = MAX_REQUESTS.saturating_sub(requests.len());
                        handled = self.pump.handle(&mut deliveries);
                        requests.extend(self.pump.requests.drain(..));
                        self.pump.give_way().await;
                    }
                    if let Err(error) = handled {
                        break End::Lost(error);
                    }
                }
                () = node.outbox.ready.notified() => self.publish(sender.as_ref(), &in_flight),
                Some((batch, results)) = in_flight.next() => batch.settle(results),
                Some(()) = requests.next() => {}
                changes = async { changing.as_mut().expect("guarded").await }, if changing.is_some() => {
                    changing = None;
                    // Without an answer the outcome is open, and only a new link settles it.
                    let Ok(changes) = changes else {
                        let error = Error::new(ErrorKind::Unavailable, "subscribe");
                        break End::Lost(error.with_context("the bus did not answer a change of interest in time"));
                    };
                    if !self.changed(changes) {
                        let error = Error::new(ErrorKind::Unavailable, "subscribe");
                        break End::Lost(error.with_context("a topic that is relied on could not be subscribed"));
                    }
                }
                () = node.interest_changed.notified(), if changing.is_none() => {}
                now = ticks.tick() => {
                    let impeded = self.look_for_impediment(sender.as_ref());
                    if impeded {
                        in_doubt = false;
                    } else if node.wire.provenance() {
                        let dead = node.liveness.lock().is_link_in_doubt(now);
                        if dead && in_doubt {
                            let context = format!("our own beat was not heard for {:?}", node.config.heartbeat);
                            break End::Lost(Error::new(ErrorKind::Unavailable, "receive").with_context(context));
                        }
                        in_doubt = dead;
                        if tick.is_multiple_of(3) {
                            self.beat(sender.as_ref(), &in_flight, false);
                        }
                    }
                    tick += 1;
                    self.look_around(now);
                }
            }
        };
        // Frees the link on the broker (B7), which decides what is in flight.
        drop(inbound);
        drop(changing);
        drop(requests);
        let decided = async {
            while let Some((batch, results)) = in_flight.next().await {
                batch.settle(results);
            }
        };
        let patience = node.config.heartbeat.min(Duration::from_secs(1)).min(node.config.send_timeout / 10);
        if timeout(patience, decided).await.is_err() {
            tracing::debug!(node = %node.id, batches = in_flight.len(), "the bus left publishes undecided");
        }
        end
    }

    /// Hands what is queued to the link.
    fn publish(&mut self, sender: &dyn LinkSender, in_flight: &InFlight) {
        let items = self.node.outbox.take(PUBLISH_BATCH, PUBLISH_BYTES);
        if items.is_empty() {
            return;
        }
        let provenance = self.node.wire.provenance();
        let mut batch = Vec::with_capacity(items.len());
        let mut tickets = Vec::with_capacity(items.len());
        for item in items {
            let (topic, mut frame, ticket) = item.into_parts();
            if provenance {
                let (seq, prev, evicted) = self.numbering.next(&topic);
                self.node.wire.stamp(&mut frame, seq, prev);
                self.node.counters.evictions.add(evicted);
            }
            batch.push(Outgoing { topic, frame: frame.freeze() });
            tickets.push(ticket);
        }
        let accepted = sender.publish(batch);
        let undecided = Undecided { node: self.node.clone(), tickets };
        in_flight.push(async move { (undecided, accepted.await) }.boxed());
    }

    /// Publishes a beat, past the queue.
    fn beat(&mut self, sender: &dyn LinkSender, in_flight: &InFlight, leaving: bool) {
        let beat = Beat { leaving, seq: self.numbering.last(), topics: self.numbering.recent() };
        let hub = &self.node.config.hub;
        let draft = match self.node.wire.encode(hub, Command::Beat(&beat)) {
            Ok(draft) => draft,
            Err(error) => return tracing::error!(%error, "a beat could not be encoded"),
        };
        let mut frame: BytesMut = draft.frame;
        let seq = self.numbering.next_unfollowed();
        self.node.wire.stamp(&mut frame, seq, 0);
        let accepted = sender.publish(vec![Outgoing { topic: draft.topic, frame: frame.freeze() }]);
        self.node.liveness.lock().sent(seq, Instant::now());
        let undecided = Undecided { node: self.node.clone(), tickets: Vec::new() };
        in_flight.push(async move { (undecided, accepted.await) }.boxed());
    }

    /// Changes of interest were carried out. `false`: the link must be opened anew.
    fn changed(&mut self, changes: Vec<(Change, Result<()>)>) -> bool {
        let mut settled = true;
        for (change, mut result) in changes {
            lost_not_closed(&mut result, "subscribe");
            match change {
                Change::Subscribe(topics) => {
                    settled &= self.node.interest.lock().subscribed(&topics, &result)
                }
                Change::Unsubscribe(topics) => {
                    let gone = self.node.interest.lock().unsubscribed(topics);
                    self.pump.forget_topics(&gone);
                    if let Err(error) = result {
                        tracing::debug!(node = %self.node.id, %error, "topics could not be freed");
                    }
                }
            }
        }
        settled
    }

    /// Whether the broker takes nothing from us now; health says why.
    fn look_for_impediment(&self, sender: &dyn LinkSender) -> bool {
        let impediment = sender.impediment();
        let impeded = impediment.is_some();
        if impeded {
            self.node.liveness.lock().impeded();
        }
        self.node.health.send_if_modified(|health| {
            let news = health.impediment.is_some() != impeded;
            if news {
                match &impediment {
                    Some(error) => {
                        tracing::warn!(node = %self.node.id, %error, "the broker takes nothing from us")
                    }
                    None => tracing::info!(node = %self.node.id, "the broker takes what we send again"),
                }
                health.impediment = impediment;
            }
            news
        });
        impeded
    }

    /// Notices who is gone and what has expired.
    fn look_around(&mut self, now: Instant) {
        self.pump.age();
        let silent = {
            let mut liveness = self.node.liveness.lock();
            let mut silent = liveness.silent(now);
            // Nodes that never were heard, though somebody waits for them.
            let waited_for = self.node.acks.nodes().into_iter().chain(self.node.results.nodes());
            let absent = waited_for.filter(|(node, since)| liveness.is_absent(*node, *since, now));
            silent.extend(absent.map(|(node, _)| node));
            // One for whom an acknowledgement and an answer are awaited comes twice.
            silent.sort_unstable();
            silent.dedup();
            silent
        };
        for node in silent {
            self.pump.node_gone(node);
        }
        self.node.expire_questions(now);
    }

    /// Leaves in order: sends what is queued and a farewell, closes the link. Within the send deadline.
    async fn leave(
        &mut self,
        sender: &dyn LinkSender,
        inbound: &mut (impl futures::Stream<Item = Vec<Result<crate::bus::Delivery>>> + Unpin),
        in_flight: &mut InFlight,
    ) {
        self.node.closed.store(true, std::sync::atomic::Ordering::Release);
        let node = self.node.clone();
        let leaving = async {
            while node.outbox.holds_frames() {
                self.publish(sender, in_flight);
            }
            if node.wire.provenance() {
                self.beat(sender, in_flight, true);
            }
            while !in_flight.is_empty() {
                tokio::select! {
                    Some((batch, results)) = in_flight.next() => batch.settle(results),
                    Some(_) = inbound.next() => {}
                    else => break,
                }
            }
            sender.close().await
        };
        match timeout(node.config.send_timeout.mul_f64(0.8), leaving).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(node = %node.id, %error, "the link did not close in order"),
            Err(_) => tracing::debug!(node = %node.id, "the link did not close in time"),
        }
    }
}

/// Carries a change to the link. A refused subscription is halved until the refused topics are alone, so that one
/// forbidden topic does not fail the joins that shared its call.
async fn carry_out(sender: Arc<dyn LinkSender>, change: Change) -> Vec<(Change, Result<()>)> {
    let topics = match change {
        Change::Subscribe(topics) => topics,
        Change::Unsubscribe(topics) => {
            let result = sender.unsubscribe(&topics).await;
            return vec![(Change::Unsubscribe(topics), result)];
        }
    };
    let mut done = Vec::with_capacity(1);
    let mut left = vec![topics];
    while let Some(mut topics) = left.pop() {
        let result = sender.subscribe(&topics).await;
        let refused =
            matches!(&result, Err(error) if !error.is_retryable() && error.kind() != ErrorKind::Closed);
        if refused && topics.len() > 1 {
            let half = topics.split_off(topics.len() / 2);
            left.push(half);
            left.push(topics);
        } else {
            done.push((Change::Subscribe(topics), result));
        }
    }
    done
}

/// A link that ended under our hands is an outage to whoever called, not its own shutdown.
fn lost_not_closed<T>(result: &mut Result<T>, operation: &'static str) {
    if let Err(error) = result
        && error.kind() == ErrorKind::Closed
    {
        let unknown = error.outcome_unknown();
        let lost =
            Error::new(ErrorKind::Unavailable, operation).with_context("the link to the broker was lost");
        *error = if unknown { lost.with_outcome_unknown() } else { lost };
    }
}

/// A batch that was handed to the link. Dropped undecided, its senders are told that nobody knows.
struct Undecided {
    node: Arc<Node>,
    tickets: Vec<Ticket>,
}

impl Undecided {
    /// Tells the outcomes, one for each frame.
    fn settle(mut self, mut results: Vec<Result<Reach>>) {
        let tickets = std::mem::take(&mut self.tickets);
        let accepted = results.iter().filter(|result| result.is_ok()).count() as u64;
        self.node.counters.published.add(accepted);
        self.node.counters.publish_failures.add(results.len() as u64 - accepted);
        for result in &mut results {
            lost_not_closed(result, "publish");
        }
        // A bus that answers for fewer frames than it was given leaves the others open.
        results.resize_with(tickets.len(), || Err(outcome_lost()));
        self.node.outbox.settle_all(tickets.into_iter().zip(results));
    }
}

impl Drop for Undecided {
    fn drop(&mut self) {
        let tickets = std::mem::take(&mut self.tickets);
        self.node.counters.publish_failures.add(tickets.len() as u64);
        self.node.outbox.settle_all(tickets.into_iter().map(|ticket| (ticket, Err(outcome_lost()))));
    }
}

fn outcome_lost() -> Error {
    Error::new(ErrorKind::Unavailable, "publish")
        .with_context("the link to the broker was lost while it was in flight")
        .with_outcome_unknown()
}
