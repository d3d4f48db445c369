//! What the node's queue is bound to, and when that changes: at once when a topic is wanted, late when it is not any more.
//!
//! A binding is a transaction of the whole broker cluster, so a topic that comes and goes (the last member of a group
//! leaves, the next one joins) keeps its binding for a while.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use backplane_core::{Error, ErrorKind, Result, Topic};
use foldhash::fast::RandomState;
use lapin::Channel;
use lapin::options::QueueBindOptions;
use lapin::types::{FieldTable, ShortString};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::connection::Line;
use super::queues::qos;
use super::refusal::refusal;
use super::routing::Routing;
use super::shared::{Call, Shared, Verb};

/// Commands on their way at once.
const PIPELINE: usize = 1_000;
/// Bindings whose time is over that are unmade at once, while others may wait for new ones.
const UNBIND_AT_ONCE: usize = 250;
/// Most bindings that outlive the interest in them; the oldest then go at once.
const MAX_LINGERING: usize = 16_384;
/// lapin remembers each binding made on a channel, in case it had to make it again. After this many the channel is
/// replaced.
const BINDINGS_PER_CHANNEL: usize = 50_000;

/// The topics that this link reads. What arrives for others is dropped (B10).
#[derive(Debug, Default)]
pub(super) struct Interest(Mutex<HashSet<Topic, RandomState>>);

impl Interest {
    /// The interned topic of that name, if it is wanted.
    pub(super) fn find(&self, name: &[u8]) -> Option<Topic> {
        self.0.lock().get(name).cloned()
    }
}

/// Changes bindings, one change after the other.
pub(super) struct Bindings {
    line: Arc<Line>,
    /// Bindings are made here ...
    binding: Channel,
    made: usize,
    /// ... and unmade there, for lapin would search all of its memory for each. Neither reads: the broker serves a channel
    /// in order, and deliveries would wait behind the bindings.
    unbinding: Channel,
    queue: ShortString,
    exchange: ShortString,
    routing: Arc<Routing>,
    unbind_after: Duration,
    interest: Arc<Interest>,
    keys: HashMap<ShortString, Key>,
    /// Keys without users, and until when they are kept; one that is used again is passed over.
    lingering: VecDeque<(Instant, ShortString)>,
    shared: Arc<Shared>,
}

/// A routing key that is bound, or about to be.
#[derive(Debug, Default)]
struct Key {
    /// Topics that need it.
    users: usize,
    bound: bool,
    /// Without users: until when it is kept.
    kept_until: Option<Instant>,
}

impl Bindings {
    #[expect(clippy::too_many_arguments, reason = "each is a part of what a link is made of")]
    pub(super) fn new(
        line: Arc<Line>,
        binding: Channel,
        unbinding: Channel,
        queue: ShortString,
        exchange: ShortString,
        routing: Arc<Routing>,
        unbind_after: Duration,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            line,
            binding,
            made: 0,
            unbinding,
            queue,
            exchange,
            routing,
            unbind_after,
            interest: Arc::default(),
            keys: HashMap::new(),
            lingering: VecDeque::new(),
            shared,
        }
    }

    pub(super) fn interest(&self) -> Arc<Interest> {
        self.interest.clone()
    }

    /// Serves calls until the broker refuses a change, or does not answer it in time: nobody knows then what is bound, and
    /// only a new link does.
    pub(super) async fn run(&mut self) -> Result<()> {
        loop {
            let due = match self.lingering.front() {
                Some(_) if self.lingering.len() > MAX_LINGERING => Some(Instant::now()),
                first => first.map(|(until, _)| *until),
            };
            tokio::select! {
                () = self.shared.calls.notified() => {}
                () = async { match due { Some(due) => tokio::time::sleep_until(due).await, None => pending().await } } => {}
            }
            let mut calls = self.shared.take_calls();
            while let Some(call) = calls.pop_front() {
                let mut together = vec![call];
                while calls.front().is_some_and(|next| next.verb == together[0].verb) {
                    together.extend(calls.pop_front());
                }
                self.serve(together).await?;
            }
            // A few at a time: whoever wants a topic must not wait for all that nobody wants.
            self.unbind_lingering(Instant::now(), UNBIND_AT_ONCE).await?;
        }
    }

    /// Carries out calls of one kind.
    async fn serve(&mut self, calls: Vec<Call>) -> Result<()> {
        let verb = calls[0].verb;
        let topics = calls.iter().flat_map(|call| &call.topics);
        let changed = match verb {
            Verb::Subscribe => {
                let keys = self.want(topics);
                self.bind(keys).await
            }
            Verb::Unsubscribe => {
                self.release(topics, Instant::now());
                if self.unbind_after.is_zero() { self.unbind_all().await } else { Ok(()) }
            }
        };
        for call in calls {
            self.shared.call_answered(call.topics.len());
            let _ = call.done.send(changed.clone().map_err(|error| error.with_outcome_unknown()));
        }
        changed
    }

    /// Subscribes to topics; `Ok` when the broker confirmed.
    pub(super) async fn subscribe(&mut self, topics: &[Topic]) -> Result<()> {
        let keys = self.want(topics);
        self.bind(keys).await
    }

    /// Notes interest. Returns the keys to be bound for it.
    fn want<'a>(&mut self, topics: impl IntoIterator<Item = &'a Topic>) -> Vec<ShortString> {
        let mut missing = Vec::new();
        let mut interest = self.interest.0.lock();
        for topic in topics {
            if !interest.insert(topic.clone()) {
                continue;
            }
            let (name, _) = self.routing.key(topic);
            let key = self.keys.entry(name.clone()).or_default();
            key.users += 1;
            key.kept_until = None;
            if !key.bound {
                key.bound = true;
                missing.push(name);
            }
        }
        missing
    }

    /// Notes the end of interest; the keys linger.
    fn release<'a>(&mut self, topics: impl IntoIterator<Item = &'a Topic>, now: Instant) {
        let until = now + self.unbind_after;
        let mut interest = self.interest.0.lock();
        for topic in topics {
            if !interest.remove(topic) {
                continue;
            }
            let (name, _) = self.routing.key(topic);
            let Some(key) = self.keys.get_mut(&name) else { continue };
            key.users -= 1;
            if key.users == 0 {
                key.kept_until = Some(until);
                self.lingering.push_back((until, name));
            }
        }
    }

    async fn bind(&mut self, keys: Vec<ShortString>) -> Result<()> {
        if keys.is_empty() {
            // Bound already, as a topic that lingered or one that shares a bucket. That is only worth saying when the
            // broker is there.
            return self.answered("subscribe", qos(&self.binding, 1)).await;
        }
        let options = |nowait| QueueBindOptions { nowait };
        for keys in keys.chunks(PIPELINE) {
            if self.made > BINDINGS_PER_CHANNEL {
                self.binding = self.line.channel().await?;
                self.made = 0;
            }
            self.made += keys.len();
            let last = keys.len() - 1;
            // A channel works in order: the answer to the last one is the answer to all.
            let commands = keys.iter().enumerate().map(|(place, key)| {
                let (queue, exchange) = (self.queue.clone(), self.exchange.clone());
                let options = options(place < last);
                self.binding.queue_bind(queue, exchange, key.clone(), options, FieldTable::default())
            });
            self.answered("subscribe", pipeline(commands)).await?;
        }
        Ok(())
    }

    /// Unbinds what lingers, long or not.
    async fn unbind_all(&mut self) -> Result<()> {
        while !self.lingering.is_empty() {
            self.unbind_lingering(Instant::now(), PIPELINE).await?;
        }
        Ok(())
    }

    /// Unbinds up to `most` keys whose time is over.
    async fn unbind_lingering(&mut self, now: Instant, most: usize) -> Result<()> {
        let mut names = Vec::new();
        while let Some((until, _)) = self.lingering.front() {
            if names.len() == most || (*until > now && self.lingering.len() <= MAX_LINGERING) {
                break;
            }
            let Some((until, name)) = self.lingering.pop_front() else { break };
            // Unless it is used again, or was, and lingers anew.
            if self.keys.get(&name).is_some_and(|key| key.kept_until == Some(until)) {
                self.keys.remove(&name);
                names.push(name);
            }
        }
        let commands = names.iter().map(|name| {
            let (queue, exchange) = (self.queue.clone(), self.exchange.clone());
            self.unbinding.queue_unbind(queue, exchange, name.clone(), FieldTable::default())
        });
        self.answered("unsubscribe", pipeline(commands)).await
    }

    /// Awaits the answer to commands that were sent together.
    async fn answered(
        &self,
        operation: &'static str,
        commands: impl Future<Output = lapin::Result<()>>,
    ) -> Result<()> {
        let late = || {
            Error::new(ErrorKind::Timeout, operation)
                .with_context("the broker did not answer a change of bindings")
        };
        let answer = tokio::time::timeout(self.shared.timeout, commands).await.map_err(|_| late())?;
        answer.map_err(|error| refusal(operation, &format!("exchange `{}`", self.exchange), error))
    }
}

/// Sends commands in their order without waiting in between, then awaits the answers.
async fn pipeline<F: Future<Output = lapin::Result<()>>>(
    commands: impl Iterator<Item = F>,
) -> lapin::Result<()> {
    let mut waiting: Vec<Pin<Box<F>>> = Vec::new();
    for command in commands {
        let mut command = Box::pin(command);
        // The first poll sends it.
        match command.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result?,
            Poll::Pending => waiting.push(command),
        }
    }
    for command in waiting {
        command.await?;
    }
    Ok(())
}
