//! Flaws of topics and subscriptions.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backplane_core::{Attach, Bus, Delivery, Error, ErrorKind, Link, LinkSender, Outgoing, Result, Topic};
use futures::FutureExt as _;
use parking_lot::Mutex;
use tokio::time::sleep;

use super::flaw::{Flaw, Inbound, Publishing, each_frame};

/// Forgets the last topic of a subscribe that names several.
#[derive(Debug)]
pub(super) struct ForgetsTheLast;

fn without_last(topics: &[Topic]) -> &[Topic] {
    match topics {
        [first @ .., _] if !first.is_empty() => first,
        all => all,
    }
}

#[async_trait]
impl Flaw for ForgetsTheLast {
    async fn subscribe(&self, whole: &Arc<dyn LinkSender>, topics: &[Topic]) -> Result<()> {
        whole.subscribe(without_last(topics)).await
    }
}

/// Forgets the last topic that a link attaches to.
#[derive(Debug)]
pub(super) struct ForgetsTheLastOfAttach;

#[async_trait]
impl Flaw for ForgetsTheLastOfAttach {
    async fn connect(&self, whole: &Arc<dyn Bus>, attach: Attach<'_>) -> Result<Link> {
        whole.connect(Attach { topics: without_last(attach.topics), ..attach }).await
    }
}

/// Takes a topic that it once subscribed to for subscribed for ever.
#[derive(Debug, Default)]
pub(super) struct SubscribesOnce(Mutex<HashSet<Topic>>);

#[async_trait]
impl Flaw for SubscribesOnce {
    async fn subscribe(&self, whole: &Arc<dyn LinkSender>, topics: &[Topic]) -> Result<()> {
        let new: Vec<Topic> = {
            let mut known = self.0.lock();
            topics.iter().filter(|topic| known.insert((*topic).clone())).cloned().collect()
        };
        whole.subscribe(&new).await
    }
}

/// Says that a topic is subscribed before the broker does.
#[derive(Debug)]
pub(super) struct ConfirmsTooEarly;

#[async_trait]
impl Flaw for ConfirmsTooEarly {
    async fn subscribe(&self, whole: &Arc<dyn LinkSender>, topics: &[Topic]) -> Result<()> {
        let (whole, topics) = (whole.clone(), topics.to_vec());
        tokio::spawn(async move {
            sleep(Duration::from_millis(20)).await;
            // Nobody hears whether it worked: that is the fault.
            let _ = whole.subscribe(&topics).await;
        });
        Ok(())
    }
}

/// Forgets what was subscribed when more is.
#[derive(Debug, Default)]
pub(super) struct SubscribeReplaces(Mutex<Vec<Topic>>);

#[async_trait]
impl Flaw for SubscribeReplaces {
    async fn connect(&self, whole: &Arc<dyn Bus>, attach: Attach<'_>) -> Result<Link> {
        *self.0.lock() = attach.topics.to_vec();
        whole.connect(attach).await
    }

    async fn subscribe(&self, whole: &Arc<dyn LinkSender>, topics: &[Topic]) -> Result<()> {
        let before = std::mem::replace(&mut *self.0.lock(), topics.to_vec());
        whole.unsubscribe(&before).await?;
        whole.subscribe(topics).await
    }
}

/// Never unsubscribes.
#[derive(Debug)]
pub(super) struct NeverUnsubscribes;

#[async_trait]
impl Flaw for NeverUnsubscribes {
    async fn unsubscribe(&self, _: &Arc<dyn LinkSender>, _: &[Topic]) -> Result<()> {
        Ok(())
    }
}

/// Unsubscribes from everything that begins with the name as well.
#[derive(Debug, Default)]
pub(super) struct UnsubscribesPrefixes(Mutex<HashSet<Topic>>);

#[async_trait]
impl Flaw for UnsubscribesPrefixes {
    async fn connect(&self, whole: &Arc<dyn Bus>, attach: Attach<'_>) -> Result<Link> {
        self.0.lock().extend(attach.topics.iter().cloned());
        whole.connect(attach).await
    }

    async fn subscribe(&self, whole: &Arc<dyn LinkSender>, topics: &[Topic]) -> Result<()> {
        self.0.lock().extend(topics.iter().cloned());
        whole.subscribe(topics).await
    }

    async fn unsubscribe(&self, whole: &Arc<dyn LinkSender>, topics: &[Topic]) -> Result<()> {
        let begins =
            |known: &Topic| topics.iter().any(|topic| known.as_bytes().starts_with(topic.as_bytes()));
        let all: Vec<Topic> = self.0.lock().extract_if(begins).collect();
        whole.unsubscribe(&all).await
    }
}

/// Counts how often a topic was subscribed and wants as many unsubscribes.
#[derive(Debug, Default)]
pub(super) struct CountsSubscriptions(Mutex<HashMap<Topic, usize>>);

impl CountsSubscriptions {
    fn count(&self, topics: &[Topic]) {
        let mut counts = self.0.lock();
        for topic in topics {
            *counts.entry(topic.clone()).or_default() += 1;
        }
    }
}

#[async_trait]
impl Flaw for CountsSubscriptions {
    async fn connect(&self, whole: &Arc<dyn Bus>, attach: Attach<'_>) -> Result<Link> {
        self.count(attach.topics);
        whole.connect(attach).await
    }

    async fn subscribe(&self, whole: &Arc<dyn LinkSender>, topics: &[Topic]) -> Result<()> {
        self.count(topics);
        whole.subscribe(topics).await
    }

    async fn unsubscribe(&self, whole: &Arc<dyn LinkSender>, topics: &[Topic]) -> Result<()> {
        let free: Vec<Topic> = {
            let mut counts = self.0.lock();
            let mut last = |topic: &&Topic| {
                counts.get_mut(*topic).is_none_or(|count| {
                    *count = count.saturating_sub(1);
                    *count == 0
                })
            };
            topics.iter().filter(|topic| last(topic)).cloned().collect()
        };
        whole.unsubscribe(&free).await
    }
}

/// Delivers as often as a topic was subscribed.
#[derive(Debug, Default)]
pub(super) struct DeliversPerSubscription(CountsSubscriptions);

#[async_trait]
impl Flaw for DeliversPerSubscription {
    async fn connect(&self, whole: &Arc<dyn Bus>, attach: Attach<'_>) -> Result<Link> {
        self.0.count(attach.topics);
        whole.connect(attach).await
    }

    async fn subscribe(&self, whole: &Arc<dyn LinkSender>, topics: &[Topic]) -> Result<()> {
        self.0.count(topics);
        whole.subscribe(topics).await
    }

    async fn unsubscribe(&self, whole: &Arc<dyn LinkSender>, topics: &[Topic]) -> Result<()> {
        self.0.0.lock().retain(|topic, _| !topics.contains(topic));
        whole.unsubscribe(topics).await
    }

    fn inbound(self: Arc<Self>, whole: Inbound) -> Inbound {
        each_frame(whole, move |_, delivery| {
            let times = match &delivery {
                Delivery::Frame { topic, .. } => self.0.0.lock().get(topic).copied().unwrap_or(1),
                Delivery::Lost { .. } => 1,
            };
            vec![delivery; times]
        })
    }
}

/// Fails to unsubscribe from what it does not know.
#[derive(Debug, Default)]
pub(super) struct UnknownIsAnError(Mutex<HashSet<Topic>>);

#[async_trait]
impl Flaw for UnknownIsAnError {
    async fn connect(&self, whole: &Arc<dyn Bus>, attach: Attach<'_>) -> Result<Link> {
        self.0.lock().extend(attach.topics.iter().cloned());
        whole.connect(attach).await
    }

    async fn subscribe(&self, whole: &Arc<dyn LinkSender>, topics: &[Topic]) -> Result<()> {
        self.0.lock().extend(topics.iter().cloned());
        whole.subscribe(topics).await
    }

    async fn unsubscribe(&self, whole: &Arc<dyn LinkSender>, topics: &[Topic]) -> Result<()> {
        let known = topics.iter().all(|topic| self.0.lock().remove(topic));
        if !known {
            return Err(Error::new(ErrorKind::InvalidConfig, "unsubscribe").with_context("no such topic"));
        }
        whole.unsubscribe(topics).await
    }
}

/// Makes another topic of each on its way to the broker.
#[derive(Debug)]
pub(super) struct Renames(pub(super) fn(&[u8]) -> Vec<u8>);

impl Renames {
    fn name(&self, topic: &Topic) -> Topic {
        Topic::new(&(self.0)(topic.as_bytes()))
    }

    fn names(&self, topics: &[Topic]) -> Vec<Topic> {
        topics.iter().map(|topic| self.name(topic)).collect()
    }
}

#[async_trait]
impl Flaw for Renames {
    async fn connect(&self, whole: &Arc<dyn Bus>, attach: Attach<'_>) -> Result<Link> {
        whole.connect(Attach { topics: &self.names(attach.topics), ..attach }).await
    }

    fn publish(&self, whole: &Arc<dyn LinkSender>, mut batch: Vec<Outgoing>) -> Publishing {
        for out in &mut batch {
            out.topic = self.name(&out.topic);
        }
        whole.publish(batch)
    }

    async fn subscribe(&self, whole: &Arc<dyn LinkSender>, topics: &[Topic]) -> Result<()> {
        whole.subscribe(&self.names(topics)).await
    }

    async fn unsubscribe(&self, whole: &Arc<dyn LinkSender>, topics: &[Topic]) -> Result<()> {
        whole.unsubscribe(&self.names(topics)).await
    }
}

/// Delivers a frame to other topics too: those that its broker takes for patterns of this one.
#[derive(Debug)]
pub(super) struct AlsoMatches(pub(super) fn(&[u8]) -> Vec<Vec<u8>>);

impl Flaw for AlsoMatches {
    fn publish(&self, whole: &Arc<dyn LinkSender>, batch: Vec<Outgoing>) -> Publishing {
        let frames = batch.len();
        let matches: Vec<Outgoing> = batch
            .iter()
            .flat_map(|out| {
                let patterns = (self.0)(out.topic.as_bytes());
                patterns
                    .into_iter()
                    .map(|topic| Outgoing { topic: Topic::new(&topic), frame: out.frame.clone() })
            })
            .collect();
        let all = batch.into_iter().chain(matches).collect();
        whole
            .publish(all)
            .map(move |mut results| {
                results.truncate(frames);
                results
            })
            .boxed()
    }
}

/// The topic with its last token replaced by a wildcard of three brokers.
pub(super) fn wildcards(topic: &[u8]) -> Vec<Vec<u8>> {
    let Some(dot) = topic.iter().rposition(|byte| *byte == b'.') else { return vec![] };
    let patterns = [b'*', b'>', b'#'].map(|wildcard| [&topic[..=dot], &[wildcard]].concat());
    patterns.into_iter().filter(|pattern| pattern != topic).collect()
}

/// The topic without its last token.
pub(super) fn parent(topic: &[u8]) -> Vec<Vec<u8>> {
    topic.iter().rposition(|byte| *byte == b'.').map(|dot| topic[..dot].to_vec()).into_iter().collect()
}
