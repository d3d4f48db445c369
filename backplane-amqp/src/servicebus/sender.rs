//! What the sender of a link does: publishes, and changes what the link is interested in.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backplane_core::{Error, ErrorKind, LinkSender, Outgoing, Result, Topic};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::filters::{Change, Interest};
use super::packing::packed_len;
use super::shared::{Outcomes, Shared};
use super::task::Question;
use super::throttle::Throttle;

/// The sending half of a link.
pub(super) struct ServiceBusSender {
    pub(super) shared: Arc<Shared>,
    pub(super) interest: Arc<Interest>,
    pub(super) throttle: Arc<Throttle>,
    /// Where changes of interest go, if the broker filters.
    pub(super) changes: Option<mpsc::Sender<Change>>,
    /// Where one asks whether the way is open.
    pub(super) questions: mpsc::Sender<Question>,
    pub(super) max_frame: usize,
    /// Most bytes of a message's body.
    pub(super) room: usize,
    /// How long the server may take to show that it lives.
    pub(super) patience: Duration,
    pub(super) server: String,
}

impl fmt::Debug for ServiceBusSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceBusSender").field("server", &self.server).finish_non_exhaustive()
    }
}

impl ServiceBusSender {
    /// Why a frame cannot be sent.
    fn refusal(&self, outgoing: &Outgoing) -> Option<Error> {
        let frame = outgoing.frame.len();
        let packed = packed_len(&outgoing.topic, &outgoing.frame);
        if frame <= self.max_frame && packed < self.room {
            return None;
        }
        Some(Error::new(ErrorKind::TooLarge, "publish").with_context(format!(
            "a frame of {frame} bytes, {packed} with its topic; max_frame is {}",
            self.max_frame
        )))
    }

    /// Asks the broker for other rules. Whether it had to be asked.
    async fn change(
        &self,
        subscribe: bool,
        topics: &[Topic],
        changes: &mpsc::Sender<Change>,
    ) -> Result<bool> {
        let operation = if subscribe { "subscribe" } else { "unsubscribe" };
        let (done, changed) = oneshot::channel();
        let change = Change { subscribe, topics: topics.to_vec(), done };
        changes.try_send(change).map_err(|refused| self.refused(operation, &refused))?;
        changed.await.unwrap_or_else(|_| Err(self.shared.ended(operation)))
    }

    /// Returns when the server has shown that it can still reach us.
    async fn alive(&self) -> Result<()> {
        let (done, answered) = oneshot::channel();
        self.questions.try_send(done).map_err(|refused| self.refused("subscribe", &refused))?;
        match timeout(self.patience, answered).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(self.shared.ended("subscribe"))),
            Err(_) => Err(Error::new(ErrorKind::Timeout, "subscribe")
                .with_context(format!("the server said nothing for {:?}", self.patience))),
        }
    }

    fn refused<T>(&self, operation: &'static str, refused: &mpsc::error::TrySendError<T>) -> Error {
        match refused {
            mpsc::error::TrySendError::Full(_) => Error::new(ErrorKind::Overloaded, operation)
                .with_context("too many changes wait for the broker"),
            mpsc::error::TrySendError::Closed(_) => self.shared.ended(operation),
        }
    }
}

#[async_trait]
impl LinkSender for ServiceBusSender {
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
        let shared = self.shared.clone();
        async move {
            let mut outcomes = match accepted {
                None => Vec::new(),
                Some(Ok(outcomes)) => {
                    outcomes.await.unwrap_or_else(|_| vec![Err(shared.ended("publish")); frames])
                }
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
        self.shared.admit("subscribe")?;
        let asked = match &self.changes {
            Some(changes) => self.change(true, topics, changes).await?,
            // Every message comes to us anyway.
            None => {
                self.interest.add(topics);
                false
            }
        };
        // What a busy server said is proof enough that it lives, and it is not asked again so soon.
        if asked || self.impediment().is_some() { Ok(()) } else { self.alive().await }
    }

    async fn unsubscribe(&self, topics: &[Topic]) -> Result<()> {
        self.shared.admit("unsubscribe")?;
        match &self.changes {
            Some(changes) => self.change(false, topics, changes).await.map(drop),
            None => {
                self.interest.remove(topics);
                Ok(())
            }
        }
    }

    async fn close(&self) -> Result<()> {
        match self.shared.close() {
            // Gone without a word: it has ended, and the connections with it.
            Some(closed) => closed.await.unwrap_or(Ok(())),
            None => Ok(()),
        }
    }

    fn impediment(&self) -> Option<Error> {
        self.throttle.check("publish").err()
    }
}
