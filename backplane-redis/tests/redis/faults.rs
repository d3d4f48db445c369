//! Redis killed, frozen, slow, and a reader that does not read: never silence, never memory without bound.

use std::time::{Duration, Instant};

use backplane_conformance::bound;
use backplane_core::{Attach, Bus, ErrorKind, Reach, Topic};
use backplane_redis::{RedisBus, RedisConfig};
use bytes::Bytes;

use crate::server::*;

#[tokio::test]
async fn a_killed_server_ends_the_link_with_an_error() {
    let mut server = server!();
    let mut link = connect(&server.bus(), &[Topic::from("room")]).await;
    server.freeze();
    let in_flight = link.sender.publish(vec![outgoing("room", "x"), outgoing("room", vec![1; 12 << 20])]);
    let subscribing = tokio::spawn({
        let sender = link.sender.clone();
        async move { sender.subscribe(&[Topic::from("y")]).await }
    });
    tokio::task::yield_now().await;
    let start = Instant::now();
    server.kill();
    assert_eq!(end(&mut link).await, Some(ErrorKind::Unavailable));
    assert!(start.elapsed() < bound(Duration::from_secs(1)), "{:?}", start.elapsed());
    for outcome in in_flight.await {
        let error = outcome.unwrap_err();
        assert_eq!((error.kind(), error.operation()), (ErrorKind::Unavailable, "publish"));
        assert!(error.outcome_unknown(), "{error}");
    }
    let error = subscribing.await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.operation()), (ErrorKind::Unavailable, "subscribe"));
    assert_eq!(publish(&link, "room", "x").await.unwrap_err().kind(), ErrorKind::Closed);
    link.sender.close().await.unwrap();
}

#[tokio::test]
async fn a_client_killed_by_the_operator_ends_its_link_only() {
    let server = server!();
    let bus = server.bus();
    let mut cut = connect(&bus, &[Topic::from("room")]).await;
    server.ask::<()>(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    assert_eq!(end(&mut cut).await, Some(ErrorKind::Unavailable));
    let mut other = connect(&bus, &[Topic::from("room")]).await;
    publish(&other, "room", "alive").await.unwrap();
    assert_eq!(next(&mut other).await.1, "alive");
    server.ask::<()>(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    assert_eq!(
        end(&mut other).await,
        Some(ErrorKind::Unavailable),
        "the publishing connection is the link's, too"
    );
}

#[tokio::test]
async fn a_frozen_server_ends_the_link_within_the_bound() {
    let server = server!();
    let bus = server.bus();
    let mut idle = connect(&bus, &[Topic::from("room")]).await;
    let mut busy = connect(&bus, &[]).await;
    server.freeze();
    let start = Instant::now();
    let in_flight = busy.sender.publish(vec![outgoing("room", "x")]);
    assert_eq!(end(&mut idle).await, Some(ErrorKind::Unavailable));
    let first = start.elapsed();
    assert_eq!(end(&mut busy).await, Some(ErrorKind::Unavailable));
    println!("bound {HEARTBEAT:?}: idle link ended after {first:?}, busy one after {:?}", start.elapsed());
    assert!(first > HEARTBEAT / 2 && start.elapsed() < HEARTBEAT + bound(Duration::from_secs(1)));
    let error = in_flight.await.remove(0).unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.outcome_unknown(), "{error}");
    server.thaw();
}

#[tokio::test]
async fn a_short_freeze_costs_nothing() {
    let server = server!();
    let bus = server.bus();
    let heartbeat = Duration::from_secs(5);
    let topics = [Topic::from("room")];
    let mut link = bus.connect(Attach { heartbeat, ..attach(&topics) }).await.unwrap();
    server.freeze();
    let frames: Vec<_> = (0..100).map(|number| outgoing("room", number.to_string())).collect();
    let in_flight = link.sender.publish(frames);
    // The freeze itself is the passage of time.
    tokio::time::sleep(heartbeat / 2).await;
    server.thaw();
    assert!(in_flight.await.iter().all(|outcome| matches!(outcome, Ok(Reach::Nodes(1)))));
    for number in 0..100 {
        assert_eq!(next(&mut link).await.1, number.to_string());
    }
}

#[tokio::test]
async fn an_idle_link_pings_both_connections_and_lives() {
    let server = server!();
    let heartbeat = bound(Duration::from_secs(1));
    let topics = [Topic::from("room")];
    for resp in [backplane_redis::Resp::V2, backplane_redis::Resp::V3] {
        let bus = RedisBus::new(RedisConfig { resp, ..server.config() }).unwrap();
        let mut link = bus.connect(Attach { heartbeat, ..attach(&topics) }).await.unwrap();
        let before = server.calls("ping");
        server.until("both were asked again and again", |server| server.calls("ping") >= before + 6).await;
        let idle = server.ask::<String>(&["CLIENT", "LIST"]);
        assert_eq!(
            idle.lines().filter(|line| line.contains("backplane-") && line.contains("cmd=ping")).count(),
            2
        );
        publish(&link, "room", "alive").await.unwrap();
        assert_eq!(next(&mut link).await.1, "alive");
    }
}

#[tokio::test]
async fn every_command_has_its_deadline_and_the_link_survives_it() {
    let server = server!();
    let timeout = bound(Duration::from_millis(300));
    let bus = RedisBus::new(RedisConfig { command_timeout: Some(timeout), ..server.config() }).unwrap();
    let heartbeat = Duration::from_secs(20);
    let topics = [Topic::from("room")];
    let mut link = bus.connect(Attach { heartbeat, ..attach(&topics) }).await.unwrap();
    server.freeze();
    let start = Instant::now();
    let wanted = [Topic::from("late")];
    let publishing = link.sender.publish(vec![outgoing("room", "late"), outgoing("room", vec![7; 15 << 20])]);
    let stuck = link.sender.publish(vec![outgoing("room", "stuck")]);
    let (outcomes, stuck, subscribed) = tokio::join!(publishing, stuck, link.sender.subscribe(&wanted));
    assert!(start.elapsed() >= timeout && start.elapsed() < timeout + bound(Duration::from_secs(1)));
    for outcome in outcomes {
        let error = outcome.unwrap_err();
        assert_eq!((error.kind(), error.outcome_unknown()), (ErrorKind::Timeout, true));
    }
    let error = stuck.into_iter().next().unwrap().unwrap_err();
    assert_eq!((error.kind(), error.outcome_unknown()), (ErrorKind::Timeout, false), "it was never sent");
    assert_eq!(subscribed.unwrap_err().kind(), ErrorKind::Timeout);
    server.thaw();

    assert_eq!(next(&mut link).await.1, "late");
    assert_eq!(next(&mut link).await.1.len(), 15 << 20);
    assert_eq!(publish(&link, "room", "in time").await.unwrap(), 1);
    assert_eq!(next(&mut link).await.1, "in time");
    link.sender.unsubscribe(&[Topic::from("never")]).await.unwrap();
    server.until("a subscription that failed is taken back", |server| server.subscribers("late") == 0).await;
    link.sender.subscribe(&wanted).await.unwrap();
    assert_eq!(server.subscribers("late"), 1);
    assert_eq!(publish(&link, "late", "now").await.unwrap(), 1);
}

#[tokio::test]
async fn closing_a_frozen_link_ends_at_the_deadline() {
    let server = server!();
    let timeout = bound(Duration::from_millis(300));
    let bus = RedisBus::new(RedisConfig { command_timeout: Some(timeout), ..server.config() }).unwrap();
    let mut link = connect(&bus, &[]).await;
    server.freeze();
    let start = Instant::now();
    assert_eq!(link.sender.close().await.unwrap_err().kind(), ErrorKind::Timeout);
    assert!(start.elapsed() < timeout + bound(Duration::from_secs(1)));
    assert_eq!(end(&mut link).await, None);
    server.thaw();
    server.until("they are freed", |server| server.link_connections() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_of_the_reader_longer_than_the_heartbeat_loses_nothing_that_redis_keeps() {
    let server = server!("--client-output-buffer-limit", "pubsub 0 0 0");
    let heartbeat = bound(Duration::from_millis(500));
    let topics = [Topic::from("flood")];
    let mut held = server.bus().connect(Attach { heartbeat, ..attach(&topics) }).await.unwrap();
    let publisher = connect(&server.bus(), &[]).await;
    let frame = Bytes::from(vec![1; 50_000]);
    let start = Instant::now();
    let mut published = 0_usize;
    // Longer than the bound, and more than fits the inbox and the kernel's buffers.
    while start.elapsed() < 3 * heartbeat || published < 1_000 {
        let batch: Vec<_> = (0..10).map(|_| outgoing("flood", frame.clone())).collect();
        published += batch.len();
        assert!(publisher.sender.publish(batch).await.iter().all(Result::is_ok));
        tokio::task::yield_now().await;
        if published >= 2_000 {
            tokio::time::sleep(heartbeat / 50).await;
        }
    }
    for _ in 0..published {
        assert_eq!(next(&mut held).await.1.len(), 50_000);
    }
    publish(&publisher, "flood", "still here").await.unwrap();
    assert_eq!(next(&mut held).await.1, "still here");
}
