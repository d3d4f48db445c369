//! Which frames the broker is to hand us: the keys of messages, and the rules of our subscription.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use backplane_core::{Error, ErrorKind, Result, Topic};
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::messaging::{AmqpValue, ApplicationProperties};
use fe2o3_amqp::types::primitives::{OrderedMap, Value};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::request::{Answer, Request, RequestLink};
use super::throttle::Throttle;

/// What the broker filters by, on a subscription of Service Bus. Every node of an application must use the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filters {
    /// Nothing: each node receives every message and keeps what it subscribed to. The default: joins cost the broker
    /// nothing and frames of any topics share messages, which for a handful of nodes saves more than filters would.
    #[default]
    None,
    /// Topics fall into this many buckets, and each has a rule: a node receives the buckets of its topics. 1 to 1,000.
    Buckets(u16),
    /// A correlation rule for each topic. A join is a command to the broker, and only frames of one topic share a
    /// message. Service Bus allows 100,000 such rules on a topic.
    Topics,
}

/// What a message is marked with (as `subject`) and a rule asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key(u128);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Filters {
    /// The key of a topic's messages.
    pub(super) fn key(self, topic: &Topic) -> Option<Key> {
        let hash = || {
            let hash = digest(&SHA256, topic.as_bytes());
            let bytes = hash.as_ref().first_chunk().expect("32 bytes have a first 16");
            u128::from_be_bytes(*bytes)
        };
        match self {
            Self::None => None,
            Self::Buckets(buckets) => Some(Key(hash() % u128::from(buckets.max(1)))),
            Self::Topics => Some(Key(hash())),
        }
    }
}

/// The topics that are subscribed.
#[derive(Debug, Default)]
pub(super) struct Interest {
    topics: Mutex<HashSet<Topic>>,
}

impl Interest {
    pub(super) fn new(topics: &[Topic]) -> Arc<Self> {
        Arc::new(Self { topics: Mutex::new(topics.iter().cloned().collect()) })
    }

    pub(super) fn add(&self, topics: &[Topic]) {
        self.topics.lock().extend(topics.iter().cloned());
    }

    pub(super) fn remove(&self, topics: &[Topic]) {
        let mut subscribed = self.topics.lock();
        for topic in topics {
            subscribed.remove(topic);
        }
    }

    /// Calls `found` with a look-up that interns topics, for the frames of one message.
    pub(super) fn look<R>(&self, found: impl FnOnce(&dyn Fn(&[u8]) -> Option<Topic>) -> R) -> R {
        let subscribed = self.topics.lock();
        found(&|topic| subscribed.get(topic).cloned())
    }
}

/// A change of interest that waits for the broker.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) subscribe: bool,
    pub(super) topics: Vec<Topic>,
    /// Whether the broker was asked at all: rules may be there already.
    pub(super) done: oneshot::Sender<Result<bool>>,
}

/// A detach for idleness comes after 10 minutes; a link that rested this long is opened anew before it is used.
const REST: Duration = Duration::from_secs(240);
/// Azure's name of the rule that lets everything pass.
const DEFAULT_RULE: &str = "$Default";

/// Keeps the rules of our subscription equal to our topics.
#[derive(Debug)]
pub(super) struct Rules {
    filters: Filters,
    node: String,
    session: SessionHandle<()>,
    link: Option<(RequestLink, Instant)>,
    opened: u64,
    topics: HashSet<Topic>,
    keys: HashMap<Key, usize>,
    /// Rules that the broker could not yet be made to remove.
    unwanted: HashSet<Key>,
    throttle: Arc<Throttle>,
    patience: Duration,
}

impl Rules {
    /// For the subscription at `address`, which the connection of `session` may manage.
    pub(super) fn new(
        filters: Filters,
        address: &str,
        session: SessionHandle<()>,
        throttle: Arc<Throttle>,
        patience: Duration,
    ) -> Self {
        Self {
            filters,
            node: format!("{address}/$management"),
            session,
            link: None,
            opened: 0,
            topics: HashSet::new(),
            keys: HashMap::new(),
            unwanted: HashSet::new(),
            throttle,
            patience,
        }
    }

    /// Adds rules for `topics`, and only then takes away the one that lets everything pass.
    pub(super) async fn start(&mut self, topics: &[Topic]) -> Result<()> {
        let _ = self.subscribe(topics).await?;
        let removed = self.ask(vec![removal(DEFAULT_RULE.to_owned())]).await?;
        settle(removed, &[404])
    }

    /// Carries out changes one after another until the senders are gone.
    pub(super) async fn run(&mut self, mut changes: mpsc::Receiver<Change>, interest: &Interest) {
        while let Some(change) = changes.recv().await {
            let outcome = if change.subscribe {
                // Known before the broker hands out the first frame.
                interest.add(&change.topics);
                self.subscribe(&change.topics).await
            } else {
                interest.remove(&change.topics);
                self.unsubscribe(&change.topics).await
            };
            if outcome.is_err() && change.subscribe {
                let new: Vec<Topic> =
                    change.topics.into_iter().filter(|topic| !self.topics.contains(topic)).collect();
                interest.remove(&new);
            }
            let _ = change.done.send(outcome);
        }
    }

    /// Whether the broker was asked.
    async fn subscribe(&mut self, topics: &[Topic]) -> Result<bool> {
        let mut new: HashSet<&Topic> = HashSet::new();
        let mut keys: HashSet<Key> = HashSet::new();
        for topic in topics {
            if self.topics.contains(topic) || !new.insert(topic) {
                continue;
            }
            keys.extend(self.filters.key(topic).filter(|key| !self.keys.contains_key(key)));
        }
        let additions: Vec<_> = keys.into_iter().map(addition).collect();
        let asked = !additions.is_empty();
        // One that is there from an attempt whose answer was lost is as good.
        settle(self.ask(additions).await?, &[409])?;
        for topic in new {
            if let Some(key) = self.filters.key(topic) {
                *self.keys.entry(key).or_insert(0) += 1;
                self.unwanted.remove(&key);
            }
            self.topics.insert(topic.clone());
        }
        Ok(asked)
    }

    /// Whether the broker was asked.
    async fn unsubscribe(&mut self, topics: &[Topic]) -> Result<bool> {
        for topic in topics {
            if !self.topics.remove(topic) {
                continue;
            }
            let Some(key) = self.filters.key(topic) else { continue };
            if let Some(count) = self.keys.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.keys.remove(&key);
                    self.unwanted.insert(key);
                }
            }
        }
        let removals: Vec<_> = self.unwanted.iter().map(|key| removal(key.to_string())).collect();
        let asked = !removals.is_empty();
        settle(self.ask(removals).await?, &[404])?;
        self.unwanted.clear();
        Ok(asked)
    }

    async fn ask(&mut self, requests: Vec<Request<Body>>) -> Result<Vec<Answer>> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        const OPERATION: &str = "subscribe";
        self.throttle.check(OPERATION)?;
        let patience = self.patience;
        let asking = async {
            let rested = self.link.take().filter(|(_, used)| used.elapsed() < REST);
            let mut link = match rested {
                Some((link, _)) => link,
                None => {
                    self.opened += 1;
                    let name = format!("rules-{}", self.opened);
                    RequestLink::open(&mut self.session, &self.node, &name).await?
                }
            };
            let answers = link.calls(OPERATION, requests).await?;
            if let Some(error) = answers.iter().find_map(|answer| answer.overload(OPERATION)) {
                self.throttle.busy(&error);
            }
            // Kept only after everything went well: a call that failed half-way leaves answers behind.
            self.link = Some((link, Instant::now()));
            Ok(answers)
        };
        timeout(patience, asking).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Timeout, OPERATION).with_context("the rules were not changed in time"))
        })
    }
}

type Body = AmqpValue<OrderedMap<String, Value>>;

fn operation(name: &str) -> ApplicationProperties {
    ApplicationProperties::builder().insert("operation", name).build()
}

fn map<const N: usize>(entries: [(&str, Value); N]) -> OrderedMap<String, Value> {
    let mut map = OrderedMap::new();
    for (name, value) in entries {
        map.insert(name.to_owned(), value);
    }
    map
}

fn value<const N: usize>(entries: [(&str, Value); N]) -> Value {
    let mut map = OrderedMap::new();
    for (name, value) in entries {
        map.insert(Value::String(name.to_owned()), value);
    }
    Value::Map(map)
}

fn addition(key: Key) -> Request<Body> {
    let key = Value::String(key.to_string());
    let filter = value([("correlation-filter", value([("label", key.clone())]))]);
    Request {
        properties: operation("com.microsoft:add-rule"),
        body: AmqpValue(map([("rule-name", key), ("rule-description", filter)])),
    }
}

fn removal(name: String) -> Request<Body> {
    Request {
        properties: operation("com.microsoft:remove-rule"),
        body: AmqpValue(map([("rule-name", Value::String(name))])),
    }
}

/// The first refusal, if there is one that is not among `fine`.
fn settle(answers: Vec<Answer>, fine: &[i32]) -> Result<()> {
    answers
        .into_iter()
        .filter(|answer| !fine.contains(&answer.status))
        .try_for_each(|answer| answer.into_result("subscribe"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_topics_apart_and_buckets_do_not_differ_between_nodes() {
        let topics: Vec<Topic> = (0..1_000).map(|number| Topic::from(format!("room{number}"))).collect();
        let keys: HashSet<Key> = topics.iter().filter_map(|topic| Filters::Topics.key(topic)).collect();
        assert_eq!(keys.len(), 1_000);
        let buckets: HashSet<Key> =
            topics.iter().filter_map(|topic| Filters::Buckets(16).key(topic)).collect();
        assert_eq!(buckets.len(), 16);
        assert!(Filters::None.key(&topics[0]).is_none());
        let name = Filters::Buckets(256).key(&Topic::from("room")).unwrap().to_string();
        assert_eq!(name, Filters::Buckets(256).key(&Topic::from("room")).unwrap().to_string());
        assert!(name.len() <= 50, "Service Bus allows rule names of 50 characters");
    }
}
