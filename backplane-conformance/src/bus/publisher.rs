//! The sending half of a link under test.

use std::sync::Arc;
use std::time::Duration;

use backplane_core::{Limits, LinkSender, Outgoing, Reach, Result, Topic};
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use super::probe::{Probe, WAIT, within};
use crate::ensure;
use crate::report::{Broken, bound};

/// The sending half of a link under test, and the number by which frames name it.
#[derive(Clone, Debug)]
pub(super) struct Publisher {
    pub(super) sender: Arc<dyn LinkSender>,
    pub(super) id: u32,
    pub(super) limits: Limits,
    /// Who reads the link, where no contract does.
    #[expect(dead_code, reason = "held for its end")]
    pump: Option<Arc<Pump>>,
}

/// Reads a link for as long as its publisher lives, as every process does.
#[derive(Debug)]
struct Pump(AbortHandle);

impl Drop for Pump {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Publisher {
    /// Reads the link in the background and publishes over it.
    pub(super) fn of(link: Probe) -> Self {
        let Probe { out, mut inbound, .. } = link;
        let reading = tokio::spawn(async move { while let Some(Ok(_)) = inbound.next().await {} });
        Self { pump: Some(Arc::new(Pump(reading.abort_handle()))), ..out }
    }

    /// Publishes over a link that its owner reads.
    pub(super) fn new(sender: Arc<dyn LinkSender>, limits: Limits, id: u32) -> Self {
        Self { sender, id, limits, pump: None }
    }

    /// Publishes and returns what the bus answered.
    pub(super) async fn offer(&self, batch: Vec<Outgoing>) -> Result<Vec<Result<Reach>>, Broken> {
        let results = within(WAIT, "publish", self.sender.publish(batch)).await?;
        // A bus that accepts at once would never let anybody read in between.
        tokio::task::yield_now().await;
        Ok(results)
    }

    /// Publishes frames that the bus has to accept.
    pub(super) async fn accept(&self, batch: Vec<Outgoing>) -> Result<(), Broken> {
        for result in self.offer(batch).await? {
            result?;
        }
        Ok(())
    }

    /// Publishes one frame that the bus has to accept.
    pub(super) async fn send(&self, topic: &Topic, frame: impl Into<Bytes>) -> Result<(), Broken> {
        self.accept(vec![Outgoing { topic: topic.clone(), frame: frame.into() }]).await
    }

    /// How many links a frame to `topic` reached.
    pub(super) async fn reach(&self, topic: &Topic) -> Result<Reach, Broken> {
        let frame = Bytes::from_static(b"who listens?");
        let results = self.offer(vec![Outgoing { topic: topic.clone(), frame }]).await?;
        match results.into_iter().next() {
            Some(result) => Ok(result?),
            None => Err(Broken("publish gave no result for its frame".to_owned())),
        }
    }

    /// Waits until a frame to `topic` reaches `count` links; at once Ok where reach is not reported.
    pub(super) async fn until_reach(&self, topic: &Topic, count: u32) -> Result<(), Broken> {
        if !self.limits.reports_reach {
            return Ok(());
        }
        let give_up = Instant::now() + bound(WAIT);
        loop {
            // A frame that is refused reaches nobody.
            let reach = self.reach(topic).await.unwrap_or(Reach::Nodes(0));
            if reach == Reach::Nodes(count) {
                return Ok(());
            }
            let late = Instant::now() > give_up;
            ensure!(!late, "after {WAIT:?} a frame to {topic} still reaches {reach:?}, not {count}");
            sleep(Duration::from_millis(10)).await;
        }
    }
}
