//! The embedded bus: nodes of one process share it. The default, the reference for every other bus, and the fake with
//! fault switches for tests.
//!
//! Order is total, reach is exact, any topic is carried, nothing repeats. With [`MemoryConfig::history`] it keeps that
//! many frames and a new link can resume (B12).

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use foldhash::fast::RandomState;
use futures::future::BoxFuture;
use futures::{FutureExt as _, Stream, StreamExt as _};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, Sleep};

use crate::bus::{
    Attach, Bus, Capabilities, Delivery, Limits, Link, LinkSender, LossReason, Order, Outgoing, Position,
    Reach,
};
use crate::error::{Error, ErrorKind, Result};
use crate::id::random_bytes;
use crate::topic::{Topic, TopicSyntax};

/// Bounds of a [`MemoryBus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryConfig {
    /// Largest frame in bytes. Default 16 MiB.
    pub max_frame: usize,
    /// Most undelivered frames of one link; beyond it frames are lost and the link says so. Default 65,536.
    pub inbox_frames: usize,
    /// Most undelivered bytes of one link. Default 64 MiB.
    pub inbox_bytes: usize,
    /// How many of the latest frames are kept for links that resume. Default 0: no resume.
    pub history: usize,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { max_frame: 16 << 20, inbox_frames: 65_536, inbox_bytes: 64 << 20, history: 0 }
    }
}

/// The embedded bus. Cloning shares it.
#[derive(Clone, Default)]
pub struct MemoryBus(Arc<Broker>);

#[derive(Default)]
struct Broker {
    config: MemoryConfig,
    state: Mutex<State>,
    /// Told whenever a link ended or the bus thawed, so that waiting calls look again.
    changed: Notify,
}

#[derive(Default)]
struct State {
    links: HashMap<u64, Arc<Inbox>>,
    topics: HashMap<Topic, Vec<(u64, Arc<Inbox>)>, RandomState>,
    next_link: u64,
    epoch: u64,
    last_position: u64,
    history: VecDeque<(u64, Topic, Bytes)>,
    refusing: bool,
    frozen_since: Option<Instant>,
    /// Batches published while frozen, in order.
    held: VecDeque<Held>,
}

struct Held {
    link: u64,
    batch: Vec<Outgoing>,
    outcome: oneshot::Sender<Vec<Result<Reach>>>,
}

#[derive(Default)]
struct Inbox {
    state: Mutex<InboxState>,
}

#[derive(Default)]
struct InboxState {
    items: VecDeque<Delivery>,
    bytes: usize,
    /// Why the link ended; `None` within: closed in order.
    ended: Option<Option<Error>>,
    waker: Option<Waker>,
}

impl MemoryBus {
    /// A new, empty bus with default bounds.
    #[must_use]
    pub fn new() -> Self {
        Self::with_config(MemoryConfig::default())
    }

    /// A new, empty bus.
    #[must_use]
    pub fn with_config(config: MemoryConfig) -> Self {
        let state = State { epoch: u64::from_be_bytes(random_bytes()), ..State::default() };
        Self(Arc::new(Broker { config, state: Mutex::new(state), changed: Notify::new() }))
    }

    /// Its fault switches.
    #[must_use]
    pub fn faults(&self) -> MemoryFaults {
        MemoryFaults(self.0.clone())
    }
}

impl fmt::Debug for MemoryBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.state.lock();
        f.debug_struct("MemoryBus")
            .field("links", &state.links.len())
            .field("topics", &state.topics.len())
            .field("frozen", &state.frozen_since.is_some())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Bus for MemoryBus {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            order: Order::Total,
            resume: self.0.config.history > 0,
            topics: TopicSyntax::Any,
            ..Capabilities::default()
        }
    }

    async fn connect(&self, attach: Attach<'_>) -> Result<Link> {
        let late = || Error::new(ErrorKind::Timeout, "connect").with_context("the memory bus is frozen");
        let opened = self.0.when_moving(None, |state| {
            if state.refusing {
                return Err(Error::new(ErrorKind::Unavailable, "connect")
                    .with_context("the memory bus refuses links"));
            }
            Ok(state.open(&self.0.config, &attach))
        });
        let (id, inbox, resumed) =
            tokio::time::timeout(attach.deadline, opened).await.map_err(|_| late())??;
        let end = LinkEnd { broker: self.0.clone(), id };
        Ok(Link {
            sender: Arc::new(MemorySender { broker: self.0.clone(), id, heartbeat: attach.heartbeat }),
            inbound: Inbound { inbox, end, heartbeat: attach.heartbeat, alarm: None, finished: false }
                .boxed(),
            resumed,
            limits: Limits { max_frame: self.0.config.max_frame, reports_reach: true },
        })
    }
}

impl Broker {
    /// Runs `act` under the lock as soon as the bus is not frozen, or `link` has ended.
    async fn when_moving<T>(
        &self,
        link: Option<u64>,
        mut act: impl FnMut(&mut State) -> Result<T>,
    ) -> Result<T> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.state.lock();
                if state.frozen_since.is_none() || link.is_some_and(|id| !state.links.contains_key(&id)) {
                    return act(&mut state);
                }
            }
            changed.await;
        }
    }

    /// Ends a link; `None`: in order.
    fn end(&self, id: u64, error: Option<Error>) {
        let waker = {
            let mut state = self.state.lock();
            let Some(inbox) = state.links.remove(&id) else { return };
            state.topics.retain(|_, subscribers| {
                subscribers.retain(|(subscriber, _)| *subscriber != id);
                !subscribers.is_empty()
            });
            state.held.retain(|held| held.link != id);
            inbox.end(error)
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        self.changed.notify_waiters();
    }
}

impl State {
    fn open(&mut self, config: &MemoryConfig, attach: &Attach<'_>) -> (u64, Arc<Inbox>, bool) {
        self.next_link += 1;
        let id = self.next_link;
        let inbox = Arc::new(Inbox::default());
        self.links.insert(id, inbox.clone());
        self.subscribe(id, attach.topics);
        let resumed =
            attach.resume.is_some_and(|position| self.replay(config, *position, attach.topics, &inbox));
        (id, inbox, resumed)
    }

    /// Puts everything behind `position` into a new inbox; `false` if the history does not reach back to it.
    fn replay(&self, config: &MemoryConfig, position: Position, topics: &[Topic], inbox: &Inbox) -> bool {
        let Some((epoch, after)) = parse_position(position) else { return false };
        let oldest = self.history.front().map_or(self.last_position + 1, |(number, ..)| *number);
        if config.history == 0 || epoch != self.epoch || after > self.last_position || after + 1 < oldest {
            return false;
        }
        for (number, topic, frame) in self.history.iter().skip_while(|(number, ..)| *number <= after) {
            if topics.contains(topic) {
                let _ = inbox.push(
                    config,
                    topic.clone(),
                    frame.clone(),
                    Some(make_position(self.epoch, *number)),
                );
            }
        }
        true
    }

    fn subscribe(&mut self, id: u64, topics: &[Topic]) {
        let Some(inbox) = self.links.get(&id) else { return };
        for topic in topics {
            let subscribers = self.topics.entry(topic.clone()).or_default();
            if !subscribers.iter().any(|(subscriber, _)| *subscriber == id) {
                subscribers.push((id, inbox.clone()));
            }
        }
    }

    fn publish(
        &mut self,
        config: &MemoryConfig,
        batch: Vec<Outgoing>,
        wakers: &mut Vec<Waker>,
    ) -> Vec<Result<Reach>> {
        let mut results = Vec::with_capacity(batch.len());
        for Outgoing { topic, frame } in batch {
            if frame.len() > config.max_frame {
                let context = format!("{} > {} bytes", frame.len(), config.max_frame);
                results.push(Err(Error::new(ErrorKind::TooLarge, "publish").with_context(context)));
                continue;
            }
            let position = (config.history > 0).then(|| {
                self.last_position += 1;
                if self.history.len() == config.history {
                    self.history.pop_front();
                }
                self.history.push_back((self.last_position, topic.clone(), frame.clone()));
                make_position(self.epoch, self.last_position)
            });
            let subscribers = self.topics.get(&topic).map_or(&[][..], Vec::as_slice);
            for (_, inbox) in subscribers {
                wakers.extend(inbox.push(config, topic.clone(), frame.clone(), position));
            }
            results.push(Ok(Reach::Nodes(u32::try_from(subscribers.len()).unwrap_or(u32::MAX))));
        }
        results
    }
}

fn make_position(epoch: u64, number: u64) -> Position {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&epoch.to_be_bytes());
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    Position::new(&bytes).expect("sixteen bytes fit")
}

fn parse_position(position: Position) -> Option<(u64, u64)> {
    let bytes: [u8; 16] = position.as_bytes().try_into().ok()?;
    let (epoch, number) = bytes.split_at(8);
    Some((u64::from_be_bytes(epoch.try_into().ok()?), u64::from_be_bytes(number.try_into().ok()?)))
}

impl Inbox {
    /// Queues a frame, or, when full, one notice of loss in the place of all that follow until there is room.
    fn push(
        &self,
        config: &MemoryConfig,
        topic: Topic,
        frame: Bytes,
        position: Option<Position>,
    ) -> Option<Waker> {
        let mut state = self.state.lock();
        if state.ended.is_some() {
            return None;
        }
        let full = state.items.len() >= config.inbox_frames
            || (state.bytes + frame.len() > config.inbox_bytes && !state.items.is_empty());
        if full {
            if matches!(state.items.back(), Some(Delivery::Lost { .. })) {
                return None;
            }
            state.items.push_back(Delivery::Lost { topics: None, reason: LossReason::Overflow });
        } else {
            state.bytes += frame.len();
            state.items.push_back(Delivery::Frame { topic, frame, position });
        }
        state.waker.take()
    }

    fn end(&self, error: Option<Error>) -> Option<Waker> {
        let mut state = self.state.lock();
        state.ended.get_or_insert(error);
        state.waker.take()
    }
}

/// Frees the link on the bus when the inbound stream is dropped (B7).
struct LinkEnd {
    broker: Arc<Broker>,
    id: u64,
}

impl Drop for LinkEnd {
    fn drop(&mut self) {
        self.broker.end(self.id, None);
    }
}

struct Inbound {
    inbox: Arc<Inbox>,
    end: LinkEnd,
    heartbeat: Duration,
    /// Runs while the bus is frozen, since when.
    alarm: Option<(Instant, Pin<Box<Sleep>>)>,
    finished: bool,
}

impl Stream for Inbound {
    type Item = Result<Delivery>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.finished {
            return Poll::Ready(None);
        }
        let inbox = self.inbox.clone();
        let frozen_since = {
            let broker = self.end.broker.state.lock();
            let mut state = inbox.state.lock();
            // Registered before anything is looked at under the same lock: no freeze or thaw can slip in between.
            state.waker = Some(context.waker().clone());
            broker.frozen_since
        };
        if frozen_since.is_none()
            || self.alarm.as_ref().is_some_and(|(since, _)| Some(*since) != frozen_since)
        {
            self.alarm = None;
        }
        if let Some(since) = frozen_since {
            let dead_at = since + self.heartbeat;
            let (_, alarm) =
                self.alarm.get_or_insert_with(|| (since, Box::pin(tokio::time::sleep_until(dead_at))));
            if alarm.as_mut().poll(context).is_ready() {
                self.finished = true;
                self.end.broker.end(self.end.id, None);
                let error = Error::new(ErrorKind::Unavailable, "receive");
                return Poll::Ready(Some(Err(error.with_context("no answer within the heartbeat bound"))));
            }
        }
        let mut state = inbox.state.lock();
        if frozen_since.is_none()
            && let Some(delivery) = state.items.pop_front()
        {
            if let Delivery::Frame { frame, .. } = &delivery {
                state.bytes -= frame.len();
            }
            return Poll::Ready(Some(Ok(delivery)));
        }
        if let Some(ended) = state.ended.clone() {
            self.finished = true;
            return Poll::Ready(ended.map(Err));
        }
        Poll::Pending
    }
}

struct MemorySender {
    broker: Arc<Broker>,
    id: u64,
    heartbeat: Duration,
}

impl fmt::Debug for MemorySender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemorySender({})", self.id)
    }
}

impl MemorySender {
    async fn when_moving<T>(
        &self,
        operation: &'static str,
        mut act: impl FnMut(&mut State) -> T + Send,
    ) -> Result<T> {
        let moving = self.broker.when_moving(Some(self.id), |state| {
            if !state.links.contains_key(&self.id) {
                return Err(Error::new(ErrorKind::Closed, operation));
            }
            Ok(act(state))
        });
        tokio::time::timeout(self.heartbeat, moving)
            .await
            .map_err(|_| Error::new(ErrorKind::Timeout, operation))?
    }
}

#[async_trait]
impl LinkSender for MemorySender {
    fn publish(&self, batch: Vec<Outgoing>) -> BoxFuture<'static, Vec<Result<Reach>>> {
        let frames = batch.len();
        let mut wakers = Vec::new();
        let outcome = {
            let mut state = self.broker.state.lock();
            if !state.links.contains_key(&self.id) {
                let closed = Error::new(ErrorKind::Closed, "publish");
                return std::future::ready(vec![Err(closed); frames]).boxed();
            }
            if state.frozen_since.is_some() {
                let (outcome, decided) = oneshot::channel();
                state.held.push_back(Held { link: self.id, batch, outcome });
                Err(decided)
            } else {
                Ok(state.publish(&self.broker.config, batch, &mut wakers))
            }
        };
        wakers.into_iter().for_each(Waker::wake);
        match outcome {
            Ok(results) => std::future::ready(results).boxed(),
            Err(decided) => decided
                .map(move |results| {
                    results.unwrap_or_else(|_| {
                        let lost = Error::new(ErrorKind::Unavailable, "publish").with_outcome_unknown();
                        vec![Err(lost); frames]
                    })
                })
                .boxed(),
        }
    }

    async fn subscribe(&self, topics: &[Topic]) -> Result<()> {
        self.when_moving("subscribe", |state| state.subscribe(self.id, topics)).await
    }

    async fn unsubscribe(&self, topics: &[Topic]) -> Result<()> {
        self.when_moving("unsubscribe", |state| {
            for topic in topics {
                if let Some(subscribers) = state.topics.get_mut(topic) {
                    subscribers.retain(|(subscriber, _)| *subscriber != self.id);
                    if subscribers.is_empty() {
                        state.topics.remove(topic);
                    }
                }
            }
        })
        .await
    }

    async fn close(&self) -> Result<()> {
        self.broker.end(self.id, None);
        Ok(())
    }
}

/// The fault switches of a [`MemoryBus`], for tests and demonstrations.
#[derive(Clone)]
pub struct MemoryFaults(Arc<Broker>);

impl MemoryFaults {
    /// Ends every link with an error; new ones are accepted at once.
    pub fn cut(&self) {
        let links: Vec<u64> = self.0.state.lock().links.keys().copied().collect();
        for link in links {
            let error = Error::new(ErrorKind::Unavailable, "receive").with_context("the link was cut");
            self.0.end(link, Some(error));
        }
    }

    /// Refuses new links while `true`. Open ones stay; [`cut`](MemoryFaults::cut) ends them.
    pub fn refuse(&self, refusing: bool) {
        self.0.state.lock().refusing = refusing;
    }

    /// Nothing moves and nothing is answered while `true`; links find out by their heartbeat bound.
    pub fn freeze(&self, frozen: bool) {
        let mut wakers = Vec::new();
        {
            let mut state = self.0.state.lock();
            if !frozen {
                state.frozen_since = None;
                for Held { batch, outcome, .. } in std::mem::take(&mut state.held) {
                    let results = state.publish(&self.0.config, batch, &mut wakers);
                    // The sender may have stopped waiting for the outcome; the frames are published all the same.
                    let _ = outcome.send(results);
                }
            } else if state.frozen_since.is_none() {
                state.frozen_since = Some(Instant::now());
            }
            wakers.extend(state.links.values().filter_map(|inbox| inbox.state.lock().waker.take()));
        }
        wakers.into_iter().for_each(Waker::wake);
        self.0.changed.notify_waiters();
    }

    /// How many links are open.
    #[must_use]
    pub fn links(&self) -> usize {
        self.0.state.lock().links.len()
    }

    /// How many topics have at least one subscriber.
    #[must_use]
    pub fn topics(&self) -> usize {
        self.0.state.lock().topics.len()
    }
}

impl fmt::Debug for MemoryFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryFaults({} links)", self.links())
    }
}
