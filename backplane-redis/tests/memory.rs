//! A reader that does not read costs bounded memory. A process of its own: it measures the memory of all of it.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on says why and stops")]

use std::time::Duration;

use backplane_conformance::bound;
use backplane_conformance::broker::{Broker as _, Redis, RedisOptions};
use backplane_core::{Attach, Bus as _, Delivery, ErrorKind, Link, NodeId, Outgoing, Topic};
use backplane_redis::{RedisBus, RedisConfig};
use bytes::Bytes;
use futures::StreamExt as _;

/// No wait is longer. The links live as long without a word: a busy machine is no dead server.
fn deadline() -> Duration {
    bound(Duration::from_secs(20))
}

async fn open(bus: &RedisBus, topics: &[Topic]) -> Link {
    let (node, resume) = (NodeId::random(), None);
    bus.connect(Attach { node, attempt: 1, topics, resume, deadline: deadline(), heartbeat: deadline() })
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_does_not_read_costs_bounded_memory_and_is_told() {
    let Some(redis) = Redis::require(RedisOptions::default()).await else { return };
    let bus = RedisBus::new(RedisConfig::from_url(&redis.url()).unwrap()).unwrap();
    let topics = [Topic::from("flood")];
    let mut held = open(&bus, &topics).await;
    let publisher = open(&bus, &[]).await;
    let frame = Bytes::from(vec![1; 1_000]);
    let before = resident();
    let mut most = before;
    for _ in 0..400 {
        let batch = vec![Outgoing { topic: topics[0].clone(), frame: frame.clone() }; 500];
        let outcomes = publisher.sender.publish(batch).await;
        assert!(outcomes.iter().all(Result::is_ok));
        most = most.max(resident());
    }
    let grown = most.saturating_sub(before) >> 20;
    println!("200 MB published to a held reader: resident memory grew by {grown} MiB");
    assert!(grown < 48, "{grown} MiB");

    let mut arrived = 0_usize;
    let end = loop {
        match tokio::time::timeout(deadline(), held.inbound.next()).await.expect("frames or the end in time")
        {
            Some(Ok(Delivery::Frame { .. })) => arrived += 1,
            Some(Ok(lost)) => panic!("{lost:?}"),
            Some(Err(error)) => break error,
            None => panic!("an end without an error"),
        }
    };
    println!("{arrived} of 200,000 arrived, then: {end}");
    assert!(arrived < 200_000);
    assert_eq!(end.kind(), ErrorKind::Unavailable);
}

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4_096
}
