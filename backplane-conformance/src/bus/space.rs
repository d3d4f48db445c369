//! Where a contract works: a part of the address space, ways to open links into it, and the faults of its harness.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backplane_core::{NodeId, Reach, Topic};

use super::probe::Probe;
use super::publisher::Publisher;
use crate::harness::{Faults, Harness};
use crate::report::{Broken, Kept};

/// The heartbeat bound of links that are not about death.
const PATIENT: Duration = Duration::from_secs(10);

/// A part of the address space that no other run touches, and a way to open links into it.
#[derive(Clone, Debug)]
pub(super) struct Space {
    pub(super) harness: Arc<dyn Harness>,
    prefix: String,
}

impl Space {
    pub(super) fn new(harness: Arc<dyn Harness>) -> Self {
        // Lower case only, so that a bus that confuses cases fails at the contract about cases and at no other.
        let random: String = NodeId::random().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { harness, prefix: format!("cf-{random}") }
    }

    /// The faults of the harness, undone when the contract is over, however it ends.
    pub(super) fn faults(&self) -> Option<Restored> {
        let faults = self.harness.faults()?;
        Some(Restored { faults, disturbed: AtomicBool::new(false) })
    }

    /// `cf-<random>.<name>`.
    pub(super) fn topic(&self, name: impl Display) -> Topic {
        Topic::from(format!("{}.{name}", self.prefix))
    }

    /// `cf-<random>.<name>0` ... as many as asked for.
    pub(super) fn topics(&self, name: &str, count: usize) -> Vec<Topic> {
        (0..count).map(|index| self.topic(format_args!("{name}{index}"))).collect()
    }

    /// A link as one more process would open it, attached to `topics`.
    pub(super) async fn link(&self, topics: &[Topic]) -> Result<Probe, Broken> {
        self.link_with_heartbeat(topics, PATIENT).await
    }

    /// A link attached to `topics` and to one more, for contracts that are not about subscribing: it does not matter
    /// to them if a bus forgets the last topic.
    pub(super) async fn reader(&self, topics: &[Topic]) -> Result<Probe, Broken> {
        let reader = self.link(&[topics, &[self.topic("spare")]].concat()).await?;
        reader.propagated().await;
        Ok(reader)
    }

    /// A publisher whose reports of reach are tried first: where they are wrong, which is another contract's matter, it
    /// counts as one that reports none.
    pub(super) async fn witness(&self) -> Result<Publisher, Broken> {
        let mut witness = self.publisher().await?;
        if witness.limits.reports_reach {
            witness.limits.reports_reach =
                matches!(witness.reach(&self.topic("nobody")).await, Ok(Reach::Nodes(0)) | Err(_));
        }
        Ok(witness)
    }

    /// A link that only publishes.
    pub(super) async fn publisher(&self) -> Result<Publisher, Broken> {
        Ok(Publisher::of(self.link(&[]).await?))
    }

    /// A link with a heartbeat bound of its own.
    pub(super) async fn link_with_heartbeat(
        &self,
        topics: &[Topic],
        heartbeat: Duration,
    ) -> Result<Probe, Broken> {
        let bus = self.harness.bus().await?;
        Probe::open(bus, NodeId::random(), 1, topics, None, heartbeat).await
    }
}

/// What a contract about faults says when the harness has none.
pub(super) const NO_FAULTS: Kept = Kept::NotApplicable("the harness cannot provoke faults");

/// Faults that end with the contract: a broker left frozen or down by one would break all that follow.
#[derive(Debug)]
pub(super) struct Restored {
    faults: Arc<dyn Faults>,
    disturbed: AtomicBool,
}

impl Restored {
    pub(super) async fn cut(&self) {
        self.faults.cut().await;
    }

    pub(super) async fn down(&self) {
        self.disturbed.store(true, Ordering::Relaxed);
        self.faults.down().await;
    }

    pub(super) async fn up(&self) {
        self.faults.up().await;
        self.disturbed.store(false, Ordering::Relaxed);
    }

    pub(super) async fn freeze(&self) {
        self.disturbed.store(true, Ordering::Relaxed);
        self.faults.freeze().await;
    }

    pub(super) async fn thaw(&self) {
        self.faults.thaw().await;
        self.disturbed.store(false, Ordering::Relaxed);
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        // Only a contract that panicked or ran out of time leaves the broker disturbed.
        if *self.disturbed.get_mut() {
            let faults = self.faults.clone();
            tokio::spawn(async move {
                faults.thaw().await;
                faults.up().await;
            });
        }
    }
}
