//! A durable link resumes where the last one ended, and is told where it cannot.

use std::time::Duration;

use backplane_conformance::bound;
use backplane_conformance::broker::Broker as _;
use backplane_core::{Attach, Bus as _, Delivery, ErrorKind, Link, LossReason, Position, Topic};

use crate::harness::*;

const ROOM: &str = "room";

fn room() -> [Topic; 1] {
    [Topic::from(ROOM)]
}

/// What an operator does, over a connection of his own.
async fn operator(harness: &NatsHarness) -> async_nats::jetstream::Context {
    let client = async_nats::connect(harness.nats.address().to_string()).await.unwrap();
    async_nats::jetstream::new(client)
}

async fn stream(harness: &NatsHarness) -> async_nats::jetstream::stream::Stream {
    operator(harness).await.get_stream("backplane").await.unwrap()
}

/// Publishes and reads `count` frames; the position of the last.
async fn handle(link: &mut Link, count: usize) -> Position {
    let mut position = None;
    for number in 0..count {
        publish(link, ROOM, number.to_string()).await.unwrap();
        position = frame(link, number.to_string()).await;
    }
    position.unwrap()
}

async fn end(link: &mut Link) -> backplane_core::Error {
    loop {
        match next(link).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return error,
            None => panic!("an end without an error"),
        }
    }
}

#[tokio::test]
async fn a_link_that_was_cut_resumes_without_loss_or_repeat() {
    let Some(harness) = NatsHarness::require(FaultsBy::Proxy, "durable=true").await else { return };
    let bus = harness.open();
    let mut link = bus.connect(attach(&room(), None)).await.unwrap();
    let other = crate::harness::bus(&format!("{}?durable=true", harness.nats.url()));
    let other = other.connect(attach(&[], None)).await.unwrap();
    let mut position = handle(&mut link, 3).await;
    for round in 0..5 {
        harness.proxy.cut();
        end(&mut link).await;
        for number in 0..10 {
            publish(&other, ROOM, format!("{round} {number}")).await.unwrap();
        }
        link = bus.connect(attach(&room(), Some(&position))).await.unwrap();
        assert!(link.resumed);
        for number in 0..10 {
            position = frame(&mut link, format!("{round} {number}")).await.unwrap();
        }
    }
    publish(&other, ROOM, "live").await.unwrap();
    frame(&mut link, "live").await;
}

#[tokio::test]
async fn a_restart_resumes_from_files_and_tells_where_memory_forgot() {
    for (storage, resumes) in [("file", true), ("memory", false)] {
        let parameters = format!("durable=true&storage={storage}");
        let Some(harness) = NatsHarness::require(FaultsBy::Server, &parameters).await else { return };
        let bus = harness.open();
        let mut link = bus.connect(attach(&room(), None)).await.unwrap();
        let position = handle(&mut link, 5).await;
        publish(&link, ROOM, "unread").await.unwrap();
        drop(link);
        harness.nats.kill();
        harness.nats.restart().await.unwrap();
        let mut link = bus.connect(attach(&room(), Some(&position))).await.unwrap();
        assert_eq!(link.resumed, resumes, "{storage}");
        if resumes {
            frame(&mut link, "unread").await;
        }
        publish(&link, ROOM, "after").await.unwrap();
        frame(&mut link, "after").await;
    }
}

#[tokio::test]
async fn a_stream_that_is_another_or_lost_its_end_is_not_resumed() {
    let Some(harness) = NatsHarness::require(FaultsBy::Proxy, "durable=true").await else { return };
    let bus = harness.open();
    let mut link = bus.connect(attach(&room(), None)).await.unwrap();
    let position = handle(&mut link, 5).await;
    let other = bus.connect(attach(&room(), None)).await.unwrap();

    // Nothing unread went with it: a purge costs nothing.
    link.sender.close().await.unwrap();
    stream(&harness).await.purge().await.unwrap();
    let mut link = bus.connect(attach(&room(), Some(&position))).await.unwrap();
    assert!(link.resumed);
    let position = handle(&mut link, 5).await;
    link.sender.close().await.unwrap();
    publish(&other, ROOM, "purged before it is read").await.unwrap();
    stream(&harness).await.purge().await.unwrap();
    let mut link = bus.connect(attach(&room(), Some(&position))).await.unwrap();
    assert!(!link.resumed);
    let position = handle(&mut link, 5).await;

    // Deleted under a living link: it ends instead of going deaf, and the next one makes a new stream.
    operator(&harness).await.delete_stream("backplane").await.unwrap();
    let error = tokio::time::timeout(DEADLINE, async {
        loop {
            if let Err(error) = publish(&link, ROOM, "x").await {
                break error;
            }
        }
    });
    let error = error.await.unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    end(&mut link).await;
    let mut link = bus.connect(attach(&room(), Some(&position))).await.unwrap();
    assert!(!link.resumed, "the numbers begin anew");
    let position = handle(&mut link, 7).await;
    drop(link);

    // The same numbers with other messages behind them, as after a restore: recognised by when they were stored.
    let mut bytes = position.as_bytes().to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let link = bus.connect(attach(&room(), Position::new(&bytes).as_ref())).await.unwrap();
    assert!(!link.resumed);
}

#[tokio::test]
async fn an_idle_reader_notices_a_deleted_stream_or_consumer_within_the_heartbeat_bound() {
    let Some(harness) = NatsHarness::require(FaultsBy::Proxy, "durable=true").await else { return };
    let bus = harness.open();
    let heartbeat = Duration::from_secs(2);
    let operator = operator(&harness).await;
    for what in ["consumer", "stream"] {
        let mut link = bus.connect(Attach { heartbeat, ..attach(&room(), None) }).await.unwrap();
        let position = handle(&mut link, 1).await;
        if what == "stream" {
            operator.delete_stream("backplane").await.unwrap();
        } else {
            let stream = operator.get_stream("backplane").await.unwrap();
            let mut names = stream.consumer_names();
            let name = futures::TryStreamExt::try_next(&mut names).await.unwrap().unwrap();
            stream.delete_consumer(&name).await.unwrap();
        }
        let start = std::time::Instant::now();
        let error = end(&mut link).await;
        println!("{what} deleted: told after {:?}: {error}", start.elapsed());
        assert!(start.elapsed() < heartbeat + bound(Duration::from_millis(500)));
        let link = bus.connect(attach(&room(), Some(&position))).await.unwrap();
        assert_eq!(link.resumed, what == "consumer");
    }
}

#[tokio::test]
async fn a_reader_slower_than_the_retention_is_told_and_goes_on() {
    let parameters = "durable=true&max_bytes=1048576&max_undelivered=65536";
    let Some(harness) = NatsHarness::require(FaultsBy::Proxy, parameters).await else { return };
    let bus = harness.open();
    let mut held = bus.connect(attach(&room(), None)).await.unwrap();
    let publisher = bus.connect(attach(&[], None)).await.unwrap();
    // Far more than the stream keeps, the consumer may have under way (32 MB), and the reader holds.
    for round in 0..60_u32 {
        let batch = (0..100_u32)
            .map(|number| {
                outgoing(ROOM, [(round * 100 + number).to_be_bytes().as_slice(), &[0; 10_000]].concat())
            })
            .collect();
        assert!(publisher.sender.publish(batch).await.iter().all(Result::is_ok));
    }
    let (mut expected, mut told) = (0_u32, false);
    while expected < 6_000 {
        match next(&mut held).await {
            Some(Ok(Delivery::Frame { frame, .. })) => {
                let number = u32::from_be_bytes(*frame.first_chunk().unwrap());
                assert!(number == expected || (told && number > expected), "{number} instead of {expected}");
                (expected, told) = (number + 1, false);
            }
            Some(Ok(Delivery::Lost { topics: None, reason: LossReason::Retention })) => told = true,
            other => panic!("{other:?}"),
        }
    }
    publish(&publisher, ROOM, "after").await.unwrap();
    frame(&mut held, "after").await;
}

#[tokio::test]
async fn what_is_sent_again_for_want_of_an_answer_is_kept_once() {
    const FRAMES: usize = 50;
    let Some(harness) = NatsHarness::require(FaultsBy::Server, "durable=true").await else { return };
    let heartbeat = Duration::from_secs(4);
    let bus = harness.open();
    let mut link = bus.connect(Attach { heartbeat, ..attach(&room(), None) }).await.unwrap();
    let received = async || {
        let answer = harness.nats.monitor("/varz").await.unwrap();
        let rest = answer.split("\"in_msgs\": ").nth(1).unwrap();
        rest.split(',').next().unwrap().parse::<usize>().unwrap()
    };
    let before = received().await;
    harness.nats.freeze().unwrap();
    let accepted = tokio::spawn(
        link.sender.publish((0..FRAMES).map(|number| outgoing(ROOM, number.to_string())).collect()),
    );
    // A quarter of the bound passes without an answer, and nothing dies of it.
    tokio::time::sleep(heartbeat / 2).await;
    harness.nats.thaw().unwrap();
    assert!(accepted.await.unwrap().iter().all(Result::is_ok));
    for number in 0..FRAMES {
        frame(&mut link, number.to_string()).await;
    }
    publish(&link, ROOM, "next").await.unwrap();
    frame(&mut link, "next").await;
    assert!(received().await >= before + 2 * FRAMES, "every frame was sent twice");
    assert_eq!(stream(&harness).await.cached_info().state.messages, FRAMES as u64 + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_nodes_at_once_make_one_stream() {
    let Some(harness) = NatsHarness::require(FaultsBy::Proxy, "").await else { return };
    let url = |index: usize| {
        // They disagree on limits: the first one's hold.
        format!("{}?durable=true&max_age={}ms", harness.nats.url(), 60_000 + index % 3)
    };
    let buses: Vec<_> = (0..16).map(|index| crate::harness::bus(&url(index))).collect();
    let topics = room();
    let mut links = futures::future::try_join_all(buses.iter().map(|bus| bus.connect(attach(&topics, None))))
        .await
        .unwrap();
    assert_eq!(harness.nats.streams_and_consumers().await.unwrap(), (1, 16));
    publish(&links[0], ROOM, "to all").await.unwrap();
    for link in &mut links {
        frame(link, "to all").await;
    }
}

#[tokio::test]
async fn a_stream_that_cannot_serve_is_a_wrong_configuration() {
    let Some(harness) = NatsHarness::require(FaultsBy::Proxy, "").await else { return };
    let context = operator(&harness).await;
    for (name, subjects) in [("backplane", "else.>"), ("other", "backplane.>")] {
        let config = async_nats::jetstream::stream::Config {
            name: name.to_owned(),
            subjects: vec![subjects.to_owned()],
            ..Default::default()
        };
        context.create_stream(config).await.unwrap();
        let bus = crate::harness::bus(&format!("{}?durable=true", harness.nats.url()));
        let Err(error) = bus.connect(attach(&[], None)).await else { panic!("it was let in") };
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
        assert!(error.to_string().contains("backplane"), "{error}");
        context.delete_stream(name).await.unwrap();
    }
}
