//! The sending half of a link.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use backplane_core::{Error, ErrorKind, LinkSender, Outgoing, Result, Topic};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use super::shared::{Outcomes, Shared};

/// A change of interest on its way to the reader.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) topics: Vec<Topic>,
    /// Or no longer.
    pub(super) wanted: bool,
    pub(super) done: oneshot::Sender<()>,
}

/// See the module.
pub(super) struct SqlSender {
    pub(super) shared: Arc<Shared>,
    pub(super) changes: mpsc::Sender<Change>,
    pub(super) max_frame: usize,
}

impl fmt::Debug for SqlSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlSender").field("max_frame", &self.max_frame).finish_non_exhaustive()
    }
}

fn closed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Closed, operation).with_context("the link has ended")
}

impl SqlSender {
    /// Why a frame cannot be sent.
    fn refusal(&self, outgoing: &Outgoing) -> Option<Error> {
        let too_large = |what: &str, length: usize| {
            Error::new(ErrorKind::TooLarge, "publish")
                .with_context(format!("a {what} of {length} bytes; max_frame is {}", self.max_frame))
        };
        let (topic, frame) = (outgoing.topic.as_bytes().len(), outgoing.frame.len());
        if frame > self.max_frame {
            Some(too_large("frame", frame))
        } else if topic > self.max_frame {
            Some(too_large("topic", topic))
        } else {
            None
        }
    }

    /// `Ok`: no read with the old interest is under way any more.
    async fn change(&self, operation: &'static str, topics: &[Topic], wanted: bool) -> Result<()> {
        let (done, answer) = oneshot::channel();
        let change = Change { topics: topics.to_vec(), wanted, done };
        let ended = || self.shared.lost(operation).unwrap_or_else(|| closed(operation));
        self.changes.send(change).await.map_err(|_| ended())?;
        tokio::select! {
            biased;
            answer = answer => answer.map_err(|_| ended()),
            // What enters the channel in the moment in which the reader leaves it would lie there for as long as we live.
            () = self.shared.gone() => Err(ended()),
        }
    }
}

#[async_trait]
impl LinkSender for SqlSender {
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
                Some(Ok(outcomes)) => outcomes
                    .await
                    .unwrap_or_else(|_| vec![Err(closed("publish").with_outcome_unknown()); frames]),
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
        self.change("subscribe", topics, true).await
    }

    async fn unsubscribe(&self, topics: &[Topic]) -> Result<()> {
        self.change("unsubscribe", topics, false).await
    }

    async fn close(&self) -> Result<()> {
        self.shared.begin_close();
        self.shared.gone().await;
        Ok(())
    }
}
