//! Topics, subscriptions and their rules.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use fe2o3_amqp::types::messaging::{Data, Message};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Which messages a subscription gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// All.
    True,
    /// Those with this subject.
    Label(String),
}

/// What waits in a subscription.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub(crate) messages: Mutex<VecDeque<Message<Data>>>,
    pub(crate) more: Notify,
}

#[derive(Debug)]
pub(crate) struct Subscription {
    /// The entry that it was made of.
    pub(crate) description: String,
    pub(crate) rules: BTreeMap<String, Rule>,
    pub(crate) queue: Arc<Queue>,
    /// Links that receive.
    pub(crate) receivers: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Entities {
    pub(crate) topics: BTreeMap<String, BTreeMap<String, Subscription>>,
}

impl Entities {
    /// Makes a subscription that everything passes into. `None`: there is no such topic.
    pub(crate) fn subscribe(&mut self, topic: &str, name: &str, description: &str) -> Option<bool> {
        let subscriptions = self.topics.get_mut(topic)?;
        if subscriptions.contains_key(name) {
            return Some(false);
        }
        let subscription = Subscription {
            description: description.to_owned(),
            rules: BTreeMap::from([("$Default".to_owned(), Rule::True)]),
            queue: Arc::default(),
            receivers: 0,
        };
        subscriptions.insert(name.to_owned(), subscription);
        Some(true)
    }

    /// The subscription of an address such as `TOPIC/Subscriptions/NAME`.
    pub(crate) fn at(&mut self, address: &str) -> Option<&mut Subscription> {
        let (topic, name) = address.split_once("/Subscriptions/")?;
        self.topics.get_mut(topic)?.get_mut(name)
    }

    /// Hands a message to every subscription that wants it.
    pub(crate) fn publish(&self, topic: &str, message: &Message<Data>) {
        let subject = message.properties.as_ref().and_then(|properties| properties.subject.as_deref());
        for subscription in self.topics.get(topic).into_iter().flat_map(BTreeMap::values) {
            let wanted = subscription.rules.values().any(|rule| match rule {
                Rule::True => true,
                Rule::Label(label) => subject == Some(label),
            });
            if wanted {
                subscription.queue.messages.lock().push_back(message.clone());
                subscription.queue.more.notify_one();
            }
        }
    }

    /// Lets so much time pass that idle subscriptions delete themselves, if they were made so.
    pub(crate) fn idle_time_passes(&mut self) {
        for subscriptions in self.topics.values_mut() {
            subscriptions.retain(|_, subscription| {
                let deletes_itself =
                    subscription.description.contains("<AutoDeleteOnIdle>PT5M</AutoDeleteOnIdle>");
                subscription.receivers > 0 || !deletes_itself
            });
        }
    }

    /// How many links receive.
    pub(crate) fn receivers(&self) -> usize {
        self.topics.values().flat_map(BTreeMap::values).map(|subscription| subscription.receivers).sum()
    }

    /// How many subscriptions there are.
    pub(crate) fn subscriptions(&self) -> usize {
        self.topics.values().map(BTreeMap::len).sum()
    }
}
