//! A million messages from node to node through Redis, without a fault: all arrive, in order, once, and no Gap is told.

// Measured numbers are printed.
#![allow(clippy::print_stdout)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use backplane_core::{
    Acceptance, Backplane as _, EncodedMessage, ErrorKind, Event, LocalConnection, MembershipChange,
    OutboundLimits, OutboundReceiver, OverflowPolicy, Protocol, Registration, Router, RouterConfig, Target,
    outbound,
};
use backplane_redis::Resp;
use backplane_tests::redis::{FaultsBy, RedisHarness, bound};
use bytes::Bytes;

const MESSAGES: u64 = 1_000_000;

/// Acceptances that the sender leaves outstanding.
const OUTSTANDING: usize = 2_048;

/// The test must not hang; a debug build needs some 15 s.
const PATIENCE: Duration = Duration::from_secs(120);

async fn member(node: &Router, group: &str) -> (Registration, OutboundReceiver) {
    let limits = OutboundLimits { messages: 1 << 20, bytes: 1 << 27, overflow: OverflowPolicy::Disconnect };
    let (sender, inbox) = outbound(limits);
    let id = node.new_connection_id();
    let connection = LocalConnection { id, user: None, protocol: Protocol::JSON, outbound: sender };
    let registration = node.register(connection).await.expect("the link is up");
    let join = MembershipChange::join(registration.connection(), group);
    node.update_group(join).await.expect("the link is up");
    (registration, inbox)
}

/// Sends the numbers from 0, in order.
async fn send(node: Router) {
    let target = Target::group("group");
    let mut outstanding: VecDeque<Acceptance> = VecDeque::with_capacity(OUTSTANDING);
    for number in 0..MESSAGES {
        let message = EncodedMessage::json(Bytes::copy_from_slice(&number.to_be_bytes()));
        while outstanding.len() >= OUTSTANDING {
            outstanding.pop_front().expect("it is not empty").await.expect("it is accepted");
        }
        match node.post(&target, &[], message) {
            Ok(acceptance) => outstanding.push_back(acceptance),
            Err(error) => panic!("message {number}: {error} ({:?})", error.kind() == ErrorKind::Overloaded),
        }
    }
    for acceptance in outstanding {
        acceptance.await.expect("it is accepted");
    }
}

/// Reads the numbers from 0, in order.
async fn receive(mut inbox: OutboundReceiver) {
    let mut expected = 0_u64;
    while expected < MESSAGES {
        let item = inbox.next_joined().await.expect("the reader keeps up");
        for number in item.bytes.chunks_exact(8) {
            assert_eq!(number, expected.to_be_bytes(), "message {expected} was expected");
            expected += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_messages_arrive_once_and_in_order() {
    let Some(harness) = RedisHarness::require(Resp::V2, FaultsBy::Broker).await else { return };
    // No proxy between: it would cost as much as the server.
    let bus = backplane::open_bus(&harness.redis_url()).expect("a private URL");
    let config = RouterConfig::default;
    let (from, to) = (
        Router::open(bus.clone(), config()).await.expect("the server is there"),
        Router::open(bus, config()).await.expect("the server is there"),
    );
    let mut events = [from.events(), to.events()];
    let (_registration, inbox) = member(&to, "group").await;
    let start = Instant::now();
    let receiving = tokio::spawn(receive(inbox));
    let sending = tokio::spawn(send(from.clone()));
    let both = async { tokio::try_join!(sending, receiving).expect("both ended as they should") };
    tokio::time::timeout(bound(PATIENCE), both).await.expect("a million messages in time");
    let took = start.elapsed();
    println!("{MESSAGES} messages in {took:.2?}: {:.0} a second", MESSAGES as f64 / took.as_secs_f64());
    for (node, events) in [&from, &to].into_iter().zip(&mut events) {
        let stats = node.stats();
        assert_eq!(
            (stats.gaps, stats.repeats_removed, stats.malformed, stats.publish_failures, stats.reconnects),
            (0, 0, 0, 0, 0),
            "{stats:?}"
        );
        while let Ok(event) = events.try_recv() {
            assert!(matches!(event, Event::NodeJoined(_)), "without a fault: {event:?}");
        }
    }
    assert_eq!(to.stats().delivered, MESSAGES);
    for node in [from, to] {
        node.shutdown().await.expect("it leaves in order");
    }
}
