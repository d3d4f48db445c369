//! The rules of a link on a database in memory.

mod links;
mod misfortune;
mod property;
mod suite;

use std::sync::Arc;
use std::time::Duration;

use backplane_core::{Attach, Bus, Delivery, Link, NodeId, Outgoing, Position, Reach, Topic};
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::time::timeout;

use super::fake::Fake;
use crate::SqlBus;
use crate::config::LogConfig;

/// Far more than anything here takes.
const WAIT: Duration = Duration::from_secs(30);

fn bus(fake: &Fake) -> SqlBus {
    SqlBus::new(Arc::new(fake.clone()), LogConfig::default())
}

/// One node of a test.
struct Node {
    bus: SqlBus,
    id: NodeId,
    attempt: u64,
}

impl Node {
    fn new(fake: &Fake) -> Self {
        Self { bus: bus(fake), id: NodeId::random(), attempt: 0 }
    }

    async fn link(&mut self, topics: &[&str], resume: Option<&Position>) -> Link {
        self.attempt += 1;
        let topics: Vec<Topic> = topics.iter().map(|topic| Topic::from(*topic)).collect();
        let attach = Attach {
            node: self.id,
            attempt: self.attempt,
            topics: &topics,
            resume,
            deadline: Duration::from_secs(5),
            heartbeat: Duration::from_secs(10),
        };
        self.bus.connect(attach).await.expect("a link")
    }
}

async fn link(fake: &Fake, topics: &[&str]) -> Link {
    Node::new(fake).link(topics, None).await
}

fn outgoing(topic: &str, frame: &str) -> Outgoing {
    Outgoing { topic: Topic::from(topic), frame: Bytes::copy_from_slice(frame.as_bytes()) }
}

/// Each in a row of its own.
async fn publish(link: &Link, topic: &str, frames: &[&str]) {
    for frame in frames {
        let outcome = link.sender.publish(vec![outgoing(topic, frame)]).await.remove(0);
        assert_eq!(outcome.expect("accepted"), Reach::Unknown);
    }
}

async fn next(link: &mut Link) -> Option<backplane_core::Result<Delivery>> {
    timeout(WAIT, link.inbound.next()).await.expect("a delivery in time")
}

/// The next frame as text, and its position.
async fn frame(link: &mut Link) -> (String, Position) {
    match next(link).await {
        Some(Ok(Delivery::Frame { frame, position, .. })) => {
            (String::from_utf8(frame.to_vec()).expect("text"), position.expect("a position"))
        }
        other => panic!("not a frame: {other:?}"),
    }
}

async fn frames(link: &mut Link, count: usize) -> Vec<String> {
    let mut frames = Vec::new();
    while frames.len() < count {
        frames.push(frame(link).await.0);
    }
    frames
}

async fn loss(link: &mut Link) -> backplane_core::LossReason {
    match next(link).await {
        Some(Ok(Delivery::Lost { reason, .. })) => reason,
        other => panic!("not a loss: {other:?}"),
    }
}
