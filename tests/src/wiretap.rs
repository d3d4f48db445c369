//! What one link says to its bus and hears from it, word for word: a bus around another one.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backplane_core::{
    Attach, Bus, Capabilities, Delivery, Error, Link, LinkSender, NodeId, Outgoing, Reach, Result, Topic,
};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// No test waits longer than this for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Writes down everything that goes through it. Cloning shares the notes. For a single link at a time.
#[derive(Clone)]
pub struct Wiretap {
    inner: Arc<dyn Bus>,
    heard: watch::Sender<Heard>,
}

/// The notes of a [`Wiretap`], each in the order of events.
#[derive(Debug, Default)]
pub struct Heard {
    /// What was published.
    pub published: Vec<Said>,
    /// What was handed to the link's owner.
    pub received: Vec<(Topic, Bytes)>,
    /// What is subscribed now.
    pub subscribed: BTreeSet<Topic>,
    /// How it came to that: confirmed changes, those of `connect` included.
    pub changes: Vec<Change>,
}

/// One frame that was published.
#[derive(Debug)]
pub struct Said {
    /// Where to.
    pub topic: Topic,
    /// What.
    pub frame: Bytes,
    /// How many got it; `None`: the broker has not answered yet, or refused.
    pub reach: Option<Reach>,
}

/// One confirmed change of a link's subscriptions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Subscribed.
    Subscribed(Topic),
    /// No longer subscribed.
    Unsubscribed(Topic),
}

impl Wiretap {
    /// Around `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Bus>) -> Self {
        Self { inner, heard: watch::Sender::default() }
    }

    /// Reads the notes.
    pub fn look<T>(&self, read: impl FnOnce(&Heard) -> T) -> T {
        read(&self.heard.borrow())
    }

    /// Waits until the notes fulfil `condition`; `false`: they did not within [`PATIENCE`].
    pub async fn until(&self, condition: impl FnMut(&Heard) -> bool) -> bool {
        let mut heard = self.heard.subscribe();
        let fulfilled = async { heard.wait_for(condition).await.is_ok() };
        tokio::time::timeout(PATIENCE, fulfilled).await.unwrap_or(false)
    }
}

impl fmt::Debug for Wiretap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wiretap({:?})", self.inner)
    }
}

#[async_trait]
impl Bus for Wiretap {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn connect(&self, attach: Attach<'_>) -> Result<Link> {
        let link = self.inner.connect(attach).await?;
        self.heard.send_modify(|heard| {
            heard.subscribed = attach.topics.iter().cloned().collect();
            heard.changes.extend(attach.topics.iter().cloned().map(Change::Subscribed));
        });
        let heard = self.heard.clone();
        let inbound = link.inbound.inspect(move |delivery| {
            if let Ok(Delivery::Frame { topic, frame, .. }) = delivery {
                heard.send_modify(|heard| heard.received.push((topic.clone(), frame.clone())));
            }
        });
        let sender = Arc::new(TappedSender { inner: link.sender, heard: self.heard.clone() });
        Ok(Link { sender, inbound: inbound.boxed(), ..link })
    }
}

#[derive(Debug)]
struct TappedSender {
    inner: Arc<dyn LinkSender>,
    heard: watch::Sender<Heard>,
}

#[async_trait]
impl LinkSender for TappedSender {
    fn publish(&self, batch: Vec<Outgoing>) -> BoxFuture<'static, Vec<Result<Reach>>> {
        let mut first = 0;
        self.heard.send_modify(|heard| {
            first = heard.published.len();
            let said = |Outgoing { topic, frame }: &Outgoing| Said {
                topic: topic.clone(),
                frame: frame.clone(),
                reach: None,
            };
            heard.published.extend(batch.iter().map(said));
        });
        let heard = self.heard.clone();
        let noted = move |results: Vec<Result<Reach>>| {
            heard.send_modify(|heard| {
                for (said, result) in heard.published[first..].iter_mut().zip(&results) {
                    said.reach = result.as_ref().ok().copied();
                }
            });
            results
        };
        self.inner.publish(batch).map(noted).boxed()
    }

    async fn subscribe(&self, topics: &[Topic]) -> Result<()> {
        self.inner.subscribe(topics).await?;
        self.heard.send_modify(|heard| {
            heard.subscribed.extend(topics.iter().cloned());
            heard.changes.extend(topics.iter().cloned().map(Change::Subscribed));
        });
        Ok(())
    }

    async fn unsubscribe(&self, topics: &[Topic]) -> Result<()> {
        self.inner.unsubscribe(topics).await?;
        self.heard.send_modify(|heard| {
            heard.subscribed.retain(|topic| !topics.contains(topic));
            heard.changes.extend(topics.iter().cloned().map(Change::Unsubscribed));
        });
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }

    fn impediment(&self) -> Option<Error> {
        self.inner.impediment()
    }
}

/// A bare link: no node, only topics and bytes, and notes of all that was said and heard. Dropping it ends the link.
#[derive(Debug)]
pub struct BareLink {
    tap: Wiretap,
    sender: Arc<dyn LinkSender>,
    listening: JoinHandle<()>,
}

impl BareLink {
    /// Opens a link to `bus`.
    ///
    /// # Errors
    /// As [`Bus::connect`].
    pub async fn open(bus: Arc<dyn Bus>) -> Result<Self> {
        let tap = Wiretap::new(bus);
        let attach = Attach {
            node: NodeId::random(),
            attempt: 1,
            topics: &[],
            resume: None,
            deadline: PATIENCE,
            heartbeat: PATIENCE,
        };
        let Link { sender, mut inbound, .. } = tap.connect(attach).await?;
        let listening = tokio::spawn(async move { while let Some(Ok(_)) = inbound.next().await {} });
        Ok(Self { tap, sender, listening })
    }

    /// Its notes.
    #[must_use]
    pub fn tap(&self) -> &Wiretap {
        &self.tap
    }

    /// Publishes and returns how many got it.
    ///
    /// # Errors
    /// As [`LinkSender::publish`].
    pub async fn publish(&self, topic: Topic, frame: Bytes) -> Result<Reach> {
        let mut results = self.sender.publish(vec![Outgoing { topic, frame }]).await;
        results.pop().unwrap_or_else(|| Err(Error::new(backplane_core::ErrorKind::Malformed, "publish")))
    }

    /// Subscribes.
    ///
    /// # Errors
    /// As [`LinkSender::subscribe`].
    pub async fn subscribe(&self, topics: &[Topic]) -> Result<()> {
        self.sender.subscribe(topics).await
    }

    /// Unsubscribes.
    ///
    /// # Errors
    /// As [`LinkSender::unsubscribe`].
    pub async fn unsubscribe(&self, topics: &[Topic]) -> Result<()> {
        self.sender.unsubscribe(topics).await
    }
}

impl Drop for BareLink {
    fn drop(&mut self) {
        self.listening.abort();
    }
}
