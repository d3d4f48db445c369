//! A reader that does not read. Alone in its process: it measures the memory of all of it.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on says why and stops")]

use std::time::Duration;

use backplane_conformance::broker::{Broker as _, Nats, NatsOptions};
use backplane_core::{Attach, Bus as _, Delivery, Link, LossReason, NodeId, Outgoing, Topic};
use backplane_nats::{NatsBus, NatsConfig};
use bytes::Bytes;
use futures::StreamExt as _;

const DEADLINE: Duration = Duration::from_secs(20);

async fn open(bus: &NatsBus, topics: &[Topic]) -> Link {
    let (node, resume) = (NodeId::random(), None);
    bus.connect(Attach { node, attempt: 1, topics, resume, deadline: DEADLINE, heartbeat: DEADLINE })
        .await
        .unwrap()
}

async fn publish(link: &Link, topic: &Topic, frame: Bytes, count: usize) {
    let batch = vec![Outgoing { topic: topic.clone(), frame }; count];
    assert!(link.sender.publish(batch).await.iter().all(Result::is_ok));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_does_not_read_costs_bounded_memory_and_is_told() {
    let Some(nats) = Nats::require(NatsOptions::default()).await else { return };
    let bus = NatsBus::new(NatsConfig::from_url(&format!("{}?max_undelivered=1000000", nats.url())).unwrap())
        .unwrap();
    let topics = ["flood", "fence"].map(Topic::from);
    let mut held = open(&bus, &topics).await;
    let publisher = open(&bus, &[]).await;
    let kilobyte = Bytes::from(vec![1; 1_000]);
    let before = resident();
    let mut most = before;
    for _ in 0..200 {
        publish(&publisher, &topics[0], kilobyte.clone(), 500).await;
        most = most.max(resident());
    }
    let grown = most.saturating_sub(before) >> 20;
    println!("100 MB published to a held reader: resident memory grew by {grown} MiB");
    assert!(grown < 48, "{grown} MiB");
    let (mut arrived, mut told) = (0, 0);
    let end = Bytes::from_static(b"end");
    publish(&publisher, &topics[1], end.clone(), 1).await;
    // The fence itself may not fit.
    loop {
        match tokio::time::timeout(Duration::from_secs(1), held.inbound.next()).await {
            Ok(Some(Ok(Delivery::Frame { topic, .. }))) if topic == topics[1] => break,
            Ok(Some(Ok(Delivery::Frame { .. }))) => arrived += 1,
            Ok(Some(Ok(Delivery::Lost { topics: lost, reason: LossReason::Overflow }))) => {
                assert!(lost.is_some_and(|lost| lost.contains(&topics[0])));
                told += 1;
            }
            Err(_) => {
                let end = Bytes::from_static(b"end");
                publish(&publisher, &topics[1], end.clone(), 1).await;
            }
            other => panic!("{other:?}"),
        }
    }
    println!("{arrived} of 100,000 arrived, {told} losses told");
    // What was still under way when the reader came back may overflow once more.
    assert!(arrived < 100_000 && (1..10).contains(&told));
    publish(&publisher, &topics[0], Bytes::from_static(b"after"), 1).await;
    loop {
        match held.inbound.next().await {
            Some(Ok(Delivery::Frame { frame, .. })) if frame == b"after"[..] => break,
            Some(Ok(Delivery::Frame { topic, .. })) if topic == topics[1] => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4_096
}
