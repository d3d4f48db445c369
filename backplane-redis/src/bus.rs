//! The bus: opens links, and what their senders do.

use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use async_trait::async_trait;
use backplane_core::{
    Attach, Bus, Capabilities, Error, ErrorKind, Limits, Link, LinkSender, Order, Outgoing, Result, Topic,
    TopicSyntax,
};
use futures::FutureExt;
use futures::StreamExt;
use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::config::RedisConfig;
use crate::heartbeat::Heartbeat;
use crate::inbox::{Inbound, Inbox};
use crate::publisher::Publisher;
use crate::setup;
use crate::shared::{Outcomes, Shared, Verb};
use crate::subscriber::Subscriber;
use crate::task::LinkTask;

/// Redis pub/sub as a bus. Each link has two connections, one to publish and one to subscribe, and one task.
#[derive(Debug)]
pub struct RedisBus {
    config: RedisConfig,
}

impl RedisBus {
    /// A bus over the server that `config` names. Connects nothing yet.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) when a field is out of its bounds.
    pub fn new(config: RedisConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self { config })
    }

    async fn open(&self, attach: Attach<'_>) -> Result<Link> {
        let config = &self.config;
        let name = format!("backplane-{}-{}", attach.node, attach.attempt);
        let (publishing, subscribing) =
            tokio::try_join!(setup::open(config, &name), setup::open(config, &name))?;
        let cluster = publishing.cluster || subscribing.cluster || config.cluster;
        if cluster && !config.cluster {
            tracing::warn!(
                server = config.address(),
                "a Redis Cluster node: no order over all publishers, no reach; say so in the configuration (cluster)"
            );
        }

        let shared = Arc::new(Shared::new(config.command_timeout.unwrap_or(attach.heartbeat)));
        let inbox = Inbox::new(config.max_undelivered);
        let now = Instant::now();
        let heartbeat = || Heartbeat::new(attach.heartbeat, now);
        let publisher = Publisher::new(publishing.socket, shared.clone(), heartbeat(), !cluster);
        let max_frame = config.max_frame.max(config.max_undelivered);
        let subscriber =
            Subscriber::new(subscribing.socket, shared.clone(), inbox.clone(), heartbeat(), max_frame);
        let mut task = LinkTask::new(publisher, subscriber, shared.clone(), inbox.clone(), attach.heartbeat);
        let sender =
            RedisSender { shared: shared.clone(), max_frame: config.max_frame, address: config.address() };
        attach_topics(&mut task, &sender, attach.topics).await?;
        task.deliver();
        // Its owner is `inbound`: dropping that stops it.
        tokio::spawn(task);
        tracing::debug!(
            server = config.address(),
            name,
            topics = attach.topics.len(),
            resp = ?config.resp,
            cluster,
            "redis link connected"
        );
        Ok(Link {
            sender: Arc::new(sender),
            inbound: Inbound::new(inbox, shared).boxed(),
            resumed: false,
            limits: Limits { max_frame: config.max_frame, reports_reach: !cluster },
        })
    }
}

/// Runs the task here until the topics are confirmed: as long as `connect` is not done, dropping it drops everything.
async fn attach_topics(task: &mut LinkTask, sender: &RedisSender, topics: &[Topic]) -> Result<()> {
    if topics.is_empty() {
        return Ok(());
    }
    let mut confirmed = pin!(sender.subscribe(topics));
    poll_fn(|cx| {
        if let Poll::Ready(outcome) = confirmed.as_mut().poll(cx) {
            return Poll::Ready(outcome);
        }
        // When the task ends it has settled the call as well.
        let _ = Pin::new(&mut *task).poll(cx);
        confirmed.as_mut().poll(cx)
    })
    .await
}

#[async_trait]
impl Bus for RedisBus {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            // One server runs one PUBLISH at a time and appends it to every subscriber's buffer. The nodes of a
            // cluster pass messages on to each other: there only each publisher's own order is one.
            order: if self.config.cluster { Order::PerPublisher } else { Order::Total },
            topics: TopicSyntax::Any,
            ..Capabilities::default()
        }
    }

    async fn connect(&self, attach: Attach<'_>) -> Result<Link> {
        // Boxed: two TLS handshakes make a large future.
        let opened = tokio::time::timeout(attach.deadline, Box::pin(self.open(attach))).await;
        opened.unwrap_or_else(|_| {
            // A server without TLS waits for the end of the line that it takes our handshake for.
            let hint = if self.config.tls.is_some() { " (does it speak TLS on this port?)" } else { "" };
            Err(Error::new(ErrorKind::Timeout, "connect").with_context(format!(
                "{} did not let us in within {:?}{hint}",
                self.config.address(),
                attach.deadline
            )))
        })
    }
}

/// The sending half of a link.
struct RedisSender {
    shared: Arc<Shared>,
    max_frame: usize,
    address: String,
}

impl fmt::Debug for RedisSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSender").field("server", &self.address).finish_non_exhaustive()
    }
}

impl RedisSender {
    fn too_large(&self, operation: &'static str, what: &str, length: usize) -> Error {
        Error::new(ErrorKind::TooLarge, operation)
            .with_context(format!("a {what} of {length} bytes; max_frame is {}", self.max_frame))
    }

    /// Why a frame cannot be sent.
    fn refusal(&self, outgoing: &Outgoing) -> Option<Error> {
        if outgoing.frame.len() > self.max_frame {
            Some(self.too_large("publish", "frame", outgoing.frame.len()))
        } else if outgoing.topic.as_bytes().len() > self.max_frame {
            Some(self.too_large("publish", "topic", outgoing.topic.as_bytes().len()))
        } else {
            None
        }
    }

    async fn call(&self, verb: Verb, topics: &[Topic]) -> Result<()> {
        if let Some(topic) = topics.iter().find(|topic| topic.as_bytes().len() > self.max_frame) {
            return Err(self.too_large(verb.operation(), "topic", topic.as_bytes().len()));
        }
        let confirmed = self.shared.call(verb, topics.to_vec())?;
        confirmed.await.unwrap_or_else(|_| Err(ended(verb.operation())))
    }
}

/// The task settles everything when it ends; this answers should it ever not.
fn ended(operation: &'static str) -> Error {
    Error::new(ErrorKind::Closed, operation).with_outcome_unknown()
}

#[async_trait]
impl LinkSender for RedisSender {
    fn publish(&self, mut batch: Vec<Outgoing>) -> BoxFuture<'static, Outcomes> {
        // Refused frames keep their place among the outcomes; the others go.
        let mut refused = Vec::new();
        if batch.iter().any(|outgoing| self.refusal(outgoing).is_some()) {
            let mut place = 0;
            batch.retain(|outgoing| {
                let refusal = self.refusal(outgoing);
                let fits = refusal.is_none();
                refused.extend(refusal.map(|error| (place, error)));
                place += 1;
                fits
            });
        }
        let frames = batch.len();
        let accepted = if frames == 0 { None } else { Some(self.shared.publish(batch)) };
        async move {
            let mut outcomes = match accepted {
                None => Vec::new(),
                Some(Ok(outcomes)) => outcomes.await.unwrap_or_else(|_| vec![Err(ended("publish")); frames]),
                Some(Err(error)) => vec![Err(error); frames],
            };
            for (place, error) in refused {
                outcomes.insert(place, Err(error));
            }
            outcomes
        }
        .boxed()
    }

    async fn subscribe(&self, topics: &[Topic]) -> Result<()> {
        self.call(Verb::Subscribe, topics).await
    }

    async fn unsubscribe(&self, topics: &[Topic]) -> Result<()> {
        self.call(Verb::Unsubscribe, topics).await
    }

    async fn close(&self) -> Result<()> {
        match self.shared.close() {
            // Gone without a word: it has ended, and the connections with it.
            Some(closed) => closed.await.unwrap_or(Ok(())),
            None => Ok(()),
        }
    }
}
