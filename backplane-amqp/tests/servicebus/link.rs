//! Links as tests use them.

use std::time::Duration;

use backplane_amqp::{ServiceBus, ServiceBusConfig};
use backplane_conformance::bound;
use backplane_core::{Attach, Bus as _, Delivery, Error, Link, NodeId, Outgoing, Result, Topic};
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::time::timeout;

/// Far more than anything here needs.
pub(crate) fn patience() -> Duration {
    bound(Duration::from_secs(20))
}

pub(crate) fn bus(url: &str) -> ServiceBus {
    ServiceBus::new(ServiceBusConfig::from_url(url).unwrap()).unwrap()
}

/// One attempt of a node to attach to `topics`.
pub(crate) async fn attach(
    bus: &ServiceBus,
    node: NodeId,
    attempt: u64,
    topics: &[&str],
    heartbeat: Duration,
) -> Result<Link> {
    let topics: Vec<Topic> = topics.iter().map(|topic| Topic::from(*topic)).collect();
    let attach = Attach { node, attempt, topics: &topics, resume: None, deadline: patience(), heartbeat };
    bus.connect(attach).await
}

pub(crate) async fn connect(bus: &ServiceBus, topics: &[&str]) -> Link {
    attach(bus, NodeId::random(), 1, topics, Duration::from_secs(10)).await.unwrap()
}

pub(crate) async fn refused(bus: &ServiceBus) -> Error {
    attach(bus, NodeId::random(), 1, &[], Duration::from_secs(10)).await.unwrap_err()
}

pub(crate) async fn publish(link: &Link, topic: &str, frame: &'static [u8]) -> Result<()> {
    let outgoing = Outgoing { topic: Topic::from(topic), frame: Bytes::from_static(frame) };
    let outcomes = timeout(patience(), link.sender.publish(vec![outgoing])).await.unwrap();
    outcomes.into_iter().next().unwrap().map(drop)
}

/// The next frame.
pub(crate) async fn next(link: &mut Link) -> Bytes {
    match timeout(patience(), link.inbound.next()).await.unwrap() {
        Some(Ok(Delivery::Frame { frame, .. })) => frame,
        other => panic!("a frame was expected: {other:?}"),
    }
}

/// How the link ends, past whatever arrives before.
pub(crate) async fn end(link: &mut Link) -> Option<Error> {
    loop {
        match timeout(patience(), link.inbound.next()).await.unwrap() {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Some(error),
            None => return None,
        }
    }
}
