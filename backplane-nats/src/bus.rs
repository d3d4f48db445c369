//! The bus: opens links, and what their senders do.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backplane_core::{
    Attach, Bus, Capabilities, Error, ErrorKind, Limits, Link, LinkSender, Order, Outgoing, Result, Topic,
    TopicSyntax,
};
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::StreamExt as _;
use tokio::time::Instant;

use crate::config::NatsConfig;
use crate::inbox::{Inbound, Inbox};
use crate::shared::{Outcomes, Shared, Verb};
use crate::thread::{self, Opening};

/// NATS as a bus. Each link has one connection and one thread.
#[derive(Debug)]
pub struct NatsBus {
    config: Arc<NatsConfig>,
}

impl NatsBus {
    /// A bus over the servers that `config` names. Connects nothing yet.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) when a field is out of its bounds.
    pub fn new(config: NatsConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self { config: Arc::new(config) })
    }

    async fn open(&self, attach: Attach<'_>) -> Result<Link> {
        let shared = Arc::new(Shared::new(attach.heartbeat));
        let inbox = Inbox::new(self.config.max_undelivered);
        // From here on dropping this frees everything.
        let mut inbound = Inbound::new(inbox.clone(), shared.clone());
        let opening = Opening {
            config: self.config.clone(),
            node: attach.node,
            attempt: attach.attempt,
            topics: attach.topics.to_vec(),
            resume: attach.resume.copied(),
            // A little before that of `connect`, which would otherwise cut off what the servers said.
            deadline: Instant::now() + attach.deadline * 19 / 20,
            heartbeat: attach.heartbeat,
            shared: shared.clone(),
            inbox,
        };
        refuse_topics("connect", attach.topics)?;
        let opened = thread::start(opening)?.await.unwrap_or_else(|_| Err(ended("connect")))?;
        let sender = NatsSender { shared, max_frame: opened.max_frame };
        // Without topics too: it proves that probes come back.
        if let Err(error) = sender.call(Verb::Subscribe, attach.topics).await {
            if error.kind() == ErrorKind::Closed {
                // It ended before it could be asked, and says why.
                while let Some(said) = inbound.next().await {
                    said?;
                }
            }
            return Err(error);
        }
        Ok(Link {
            limits: Limits { max_frame: opened.max_frame, reports_reach: false },
            sender: Arc::new(sender),
            inbound: inbound.boxed(),
            resumed: opened.resumed,
        })
    }

    fn servers(&self) -> String {
        let servers: Vec<_> = self.config.servers.iter().map(ToString::to_string).collect();
        servers.join(", ")
    }
}

#[async_trait]
impl Bus for NatsBus {
    fn capabilities(&self) -> Capabilities {
        if self.config.durable.is_some() {
            // One log, which all nodes read from its beginning to its end.
            return Capabilities { order: Order::Total, resume: true, ..Capabilities::default() };
        }
        Capabilities {
            // A server handles publishers side by side: two nodes may see two of them in different orders.
            order: Order::PerPublisher,
            topics: TopicSyntax::Tokens,
            // `subscribe` waits for it.
            propagation: Duration::ZERO,
            ..Capabilities::default()
        }
    }

    async fn connect(&self, attach: Attach<'_>) -> Result<Link> {
        let opened = tokio::time::timeout(attach.deadline, self.open(attach)).await;
        opened.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Timeout, "connect").with_context(format!(
                "{} did not let us in within {:?}",
                self.servers(),
                attach.deadline
            )))
        })
    }
}

/// The sending half of a link.
struct NatsSender {
    shared: Arc<Shared>,
    max_frame: usize,
}

impl fmt::Debug for NatsSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsSender").field("max_frame", &self.max_frame).finish_non_exhaustive()
    }
}

/// A wildcard, a space or an empty token would be another subject, or none.
fn refuse_topics(operation: &'static str, topics: &[Topic]) -> Result<()> {
    topics.iter().find(|topic| !topic.is_tokens()).map_or(Ok(()), |topic| Err(no_tokens(operation, topic)))
}

fn no_tokens(operation: &'static str, topic: &Topic) -> Error {
    let shown: String = topic.to_string().chars().take(80).collect();
    Error::new(ErrorKind::Unsupported, operation).with_context(format!(
        "the topic {shown} does not consist of dot-separated tokens of A-Z, a-z, 0-9, _ and - in {} bytes",
        Topic::MAX_TOKENS_LEN
    ))
}

/// The thread settles everything when it ends; this answers should it ever not.
fn ended(operation: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, operation).with_context("the link has ended").with_outcome_unknown()
}

impl NatsSender {
    /// Why a frame cannot be sent.
    fn refusal(&self, outgoing: &Outgoing) -> Option<Error> {
        if outgoing.frame.len() > self.max_frame {
            let (length, most) = (outgoing.frame.len(), self.max_frame);
            let error = Error::new(ErrorKind::TooLarge, "publish");
            Some(error.with_context(format!("a frame of {length} bytes; this server takes {most}")))
        } else if !outgoing.topic.is_tokens() {
            Some(no_tokens("publish", &outgoing.topic))
        } else {
            None
        }
    }

    async fn call(&self, verb: Verb, topics: &[Topic]) -> Result<()> {
        let answer = self.shared.call(verb, topics.to_vec())?;
        answer.await.unwrap_or_else(|_| Err(ended(verb.operation())))
    }
}

#[async_trait]
impl LinkSender for NatsSender {
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
        refuse_topics("subscribe", topics)?;
        self.call(Verb::Subscribe, topics).await
    }

    async fn unsubscribe(&self, topics: &[Topic]) -> Result<()> {
        self.call(Verb::Unsubscribe, topics).await
    }

    async fn close(&self) -> Result<()> {
        match self.shared.close() {
            // Gone without a word: it has ended, and the connection with it.
            Some(closed) => closed.await.unwrap_or(Ok(())),
            None => Ok(()),
        }
    }
}
