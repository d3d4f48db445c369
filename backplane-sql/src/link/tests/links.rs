//! What a link does while all is well.

use std::sync::Arc;
use std::time::Duration;

use backplane_core::{Delivery, ErrorKind, LossReason, Outgoing, Topic};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use tokio::time::{sleep, timeout};

use super::super::fake::{Bell, Commit, Fake};
use super::{Node, frame, frames, link, next, outgoing, publish};
use crate::SqlBus;
use crate::config::LogConfig;
use crate::store::MOST_KEYS;

#[tokio::test(start_paused = true)]
async fn an_idle_link_costs_few_statements_and_fewer_with_a_doorbell() {
    for (bell, bound) in [(Bell::Works, 2), (Bell::None, 5)] {
        let fake = Fake::new(bell);
        let mut one = link(&fake, &["a"]).await;
        publish(&one, "a", &["x"]).await;
        frame(&mut one).await;
        sleep(Duration::from_secs(5)).await;
        let before = fake.statements();
        sleep(Duration::from_secs(60)).await;
        let cost = fake.statements() - before;
        assert!(cost < bound * 60, "{bell:?}: {cost} statements in a minute");
        assert!(cost > 50, "{bell:?}: {cost} statements in a minute: is anybody looking?");
    }
}

#[tokio::test(start_paused = true)]
async fn a_doorbell_wakes_at_once_and_without_one_polling_finds_rows() {
    for (bell, bound) in [(Bell::Works, 2), (Bell::None, 251), (Bell::Deaf, 251)] {
        let fake = Fake::new(bell);
        let (mut reader, writer) = (link(&fake, &["a"]).await, link(&fake, &[]).await);
        for round in 0..20 {
            sleep(Duration::from_millis(1_700)).await;
            let start = tokio::time::Instant::now();
            publish(&writer, "a", &["x"]).await;
            frame(&mut reader).await;
            let took = start.elapsed().as_millis();
            assert!(took <= bound, "{bell:?} round {round}: {took} ms");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_doorbell_that_broke_comes_back_within_the_link() {
    let fake = Fake::new(Bell::Works);
    let (mut reader, writer) = (link(&fake, &["a"]).await, link(&fake, &[]).await);
    let took = async |reader: &mut backplane_core::Link| {
        let start = tokio::time::Instant::now();
        publish(&writer, "a", &["x"]).await;
        frame(reader).await;
        start.elapsed().as_millis()
    };
    assert!(took(&mut reader).await <= 2);
    // For a while there is none to be had.
    fake.refuse(true);
    fake.cut_bells();
    sleep(Duration::from_secs(40)).await;
    assert!(took(&mut reader).await <= 301, "polled");
    fake.refuse(false);
    // Called for once a minute by now, and believed when it rang once.
    sleep(Duration::from_secs(61)).await;
    took(&mut reader).await;
    for _ in 0..10 {
        sleep(Duration::from_millis(1_700)).await;
        let took = took(&mut reader).await;
        assert!(took <= 2, "{took} ms");
    }
    sleep(Duration::from_secs(5)).await;
    let before = fake.statements();
    sleep(Duration::from_secs(60)).await;
    assert!(fake.statements() - before < 2 * 2 * 60, "believed: looks are rare again");
    drop((reader, writer));
    fake.until_connections(0).await;
}

#[tokio::test(start_paused = true)]
async fn frames_that_grow_a_thousandfold_come_within_the_bound() {
    for topics in [1, 2 * MOST_KEYS] {
        let fake = Fake::new(Bell::Works);
        let config = LogConfig { max_undelivered: 256 << 10, ..LogConfig::default() };
        let bus = SqlBus::new(Arc::new(fake.clone()), config);
        let topics: Vec<String> = (0..topics).map(|number| format!("t{number}")).collect();
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        let mut node = Node { bus, ..Node::new(&fake) };
        let (mut reader, writer) = (node.link(&names, None).await, link(&fake, &[]).await);
        for _ in 0..40 {
            // Alternating, each in its row: the reader learns that rows are small.
            let batch = (0..400).map(|number| outgoing(["t0", "other"][number % 2], "small")).collect();
            assert!(writer.sender.publish(batch).await.iter().all(Result::is_ok));
            frames(&mut reader, 200).await;
        }
        let large = "x".repeat(100 << 10);
        let sent: Vec<String> = (0..60).map(|number| format!("{number} {large}")).collect();
        let batch = sent.iter().map(|text| outgoing("t0", text)).collect();
        fake.with(|log| (log.most_read, log.all_read) = (0, 0));
        assert!(writer.sender.publish(batch).await.iter().all(Result::is_ok));
        sleep(Duration::from_secs(5)).await;
        // Of what the inbox takes, half may come at once, and one frame that is larger.
        assert!(fake.with(|log| log.most_read) <= 128 << 10, "{}", fake.with(|log| log.most_read));
        assert!(fake.with(|log| log.all_read) <= (256 + 128) << 10, "{}", fake.with(|log| log.all_read));
        for text in &sent {
            assert!(frame(&mut reader).await.0 == *text);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_backlog_of_frames_that_are_too_large_for_a_look_costs_few_statements() {
    const FRAMES: usize = 1_000;
    // Half of what may wait comes at once.
    const PORTION: usize = 8 << 20;
    for (size, topics, small) in [40, 100, 1_000].into_iter().flat_map(|size| {
        [1, 2 * MOST_KEYS]
            .into_iter()
            .flat_map(move |topics| [0, 20_000].map(|small| (size << 10, topics, small)))
    }) {
        let fake = Fake::new(Bell::None);
        let topics: Vec<String> = (0..topics).map(|number| format!("t{number}")).collect();
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        let (mut reader, topic) = (link(&fake, &names).await, Topic::from("t0"));
        // The reader learns that rows are small, or knows nothing.
        fake.fill(&topic, (0..small).map(|_| Bytes::from_static(b"\0\0\0\x05small")));
        frames(&mut reader, small).await;
        fake.with(|log| (log.most_read, log.reads) = (0, 0));
        let mut large = vec![b'x'; size];
        large[..4].copy_from_slice(&(u32::try_from(size).unwrap() - 4).to_be_bytes());
        let large = Bytes::from(large);
        fake.fill(&topic, (0..FRAMES).map(|_| large.clone()));
        for _ in 0..FRAMES {
            assert!(
                matches!(next(&mut reader).await, Some(Ok(Delivery::Frame { frame, .. })) if frame.len() == size - 4)
            );
        }
        let (most, reads) = fake.with(|log| (log.most_read, log.reads));
        assert!(most <= PORTION, "{size}: {most} bytes at once");
        // A portion may be used to a quarter, and is asked for in vain before; there are looks besides.
        let bound = 6 * FRAMES * size / PORTION + 20;
        assert!(reads <= bound, "{size}, {} topics, {small} before: {reads} of {bound}", names.len());
    }
}

#[tokio::test(start_paused = true)]
async fn tiny_frames_that_share_rows_stay_within_what_may_wait() {
    let fake = Fake::new(Bell::None);
    let config = LogConfig { max_undelivered: 4 << 20, ..LogConfig::default() };
    let mut node = Node { bus: SqlBus::new(Arc::new(fake.clone()), config), ..Node::new(&fake) };
    let mut reader = node.link(&["a"], None).await;
    // Rows of 700 frames of one byte, which cost many times as much in memory.
    let row = Bytes::from(b"\0\0\0\x01x".repeat(700));
    fake.fill(&Topic::from("a"), (0..1_000).map(|_| row.clone()));
    sleep(Duration::from_secs(5)).await;
    let waits = 2 * (4 << 20) / (48 + size_of::<Delivery>());
    let mut come = 0;
    while let Some(Some(Ok(Delivery::Frame { .. }))) = reader.inbound.next().now_or_never() {
        come += 1;
    }
    assert!(come < waits, "{come} deliveries waited");
    while come < 700_000 {
        assert!(matches!(next(&mut reader).await, Some(Ok(Delivery::Frame { .. }))));
        come += 1;
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_commit_is_delivered_when_it_comes_and_delays_nobody() {
    let fake = Fake::new(Bell::None);
    let (mut reader, slow, quick) =
        (link(&fake, &["a", "b"]).await, link(&fake, &[]).await, link(&fake, &[]).await);
    publish(&quick, "a", &["before"]).await;
    assert_eq!(frame(&mut reader).await.0, "before");
    fake.with(|log| log.commit = Commit::Late);
    let mut late = slow.sender.publish(vec![outgoing("a", "late 1"), outgoing("b", "late 2")]);
    while fake.with(|log| log.next_id) < 4 {
        assert!((&mut late).now_or_never().is_none());
        sleep(Duration::from_millis(1)).await;
    }
    fake.with(|log| log.commit = Commit::Now);
    publish(&quick, "a", &["after"]).await;
    assert_eq!(frame(&mut reader).await.0, "after");
    sleep(Duration::from_secs(3)).await;
    fake.commit();
    assert!(late.await.iter().all(Result::is_ok));
    assert_eq!(frames(&mut reader, 2).await, ["late 1", "late 2"]);
}

#[tokio::test(start_paused = true)]
async fn a_position_before_a_late_row_brings_it_to_the_next_link() {
    let fake = Fake::new(Bell::Works);
    let (mut node, slow, quick) = (Node::new(&fake), link(&fake, &[]).await, link(&fake, &[]).await);
    let mut reader = node.link(&["a"], None).await;
    fake.with(|log| log.commit = Commit::Late);
    let late = slow.sender.publish(vec![outgoing("a", "late")]);
    while fake.with(|log| log.next_id) < 2 {
        sleep(Duration::from_millis(1)).await;
    }
    fake.with(|log| log.commit = Commit::Now);
    publish(&quick, "a", &["one", "two"]).await;
    frame(&mut reader).await;
    let (_, position) = frame(&mut reader).await;
    drop(reader);
    fake.commit();
    late.await;
    let mut again = node.link(&["a"], Some(&position)).await;
    assert!(again.resumed);
    assert_eq!(frames(&mut again, 3).await, ["late", "one", "two"]);
}

#[tokio::test(start_paused = true)]
async fn rows_that_could_not_be_appended_right_now_come_once_and_in_order() {
    let fake = Fake::new(Bell::None);
    let mut one = link(&fake, &["a"]).await;
    fake.with(|log| log.commit = Commit::Deadlock(5));
    publish(&one, "a", &["x", "y"]).await;
    publish(&one, "a", &["z"]).await;
    assert_eq!(frames(&mut one, 3).await, ["x", "y", "z"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_queued_becomes_one_statement_up_to_its_bounds() {
    let fake = Fake::new(Bell::None);
    let mut one = link(&fake, &["a"]).await;
    sleep(Duration::from_secs(1)).await;
    let before = fake.statements();
    let accepted: Vec<_> = (0..512).map(|_| one.sender.publish(vec![outgoing("a", "x")])).collect();
    futures::future::join_all(accepted).await;
    let cost = fake.statements() - before;
    assert!(cost <= 4, "{cost} statements for 512 frames");
    // Larger than a statement should be, they still pass.
    let large = Bytes::from(vec![7; 3 << 20]);
    let batch = (0..4).map(|_| Outgoing { topic: Topic::from("a"), frame: large.clone() }).collect();
    assert!(one.sender.publish(batch).await.iter().all(Result::is_ok));
    frames(&mut one, 512).await;
    for _ in 0..4 {
        assert!(matches!(next(&mut one).await, Some(Ok(Delivery::Frame { frame, .. })) if frame == large));
    }
}

#[tokio::test(start_paused = true)]
async fn small_frames_to_one_topic_share_rows_and_a_position_within_one_repeats_all_of_it() {
    let fake = Fake::new(Bell::Works);
    let (mut node, writer) = (Node::new(&fake), link(&fake, &[]).await);
    let mut reader = node.link(&["a", "b"], None).await;
    let sent: Vec<String> = (0..100).map(|number| format!("{number}")).collect();
    let large = "x".repeat(10_000);
    let mut batch: Vec<Outgoing> = sent.iter().map(|text| outgoing("a", text)).collect();
    batch.extend([
        outgoing("b", "other"),
        outgoing("a", "same"),
        outgoing("a", &large),
        outgoing("a", "last"),
    ]);
    assert!(writer.sender.publish(batch).await.iter().all(Result::is_ok));
    assert_eq!(fake.with(|log| log.rows.len()), 5);
    let mut positions = Vec::new();
    for text in &sent {
        let (frame, position) = frame(&mut reader).await;
        assert_eq!(frame, *text);
        positions.push(position);
    }
    assert!(
        positions[..99].iter().all(|position| *position == positions[0]) && positions[99] != positions[0]
    );
    assert_eq!(frames(&mut reader, 4).await, ["other", "same", &large, "last"]);
    drop(reader);
    // The row before was none: the log was empty, and its beginning is a place to go on from.
    let mut reader = node.link(&["a", "b"], Some(&positions[50])).await;
    assert!(reader.resumed);
    assert_eq!(frames(&mut reader, 100).await, sent);
    drop(reader);
    let mut reader = node.link(&["a", "b"], Some(&positions[99])).await;
    assert!(reader.resumed);
    assert_eq!(frame(&mut reader).await.0, "other");
}

#[tokio::test(start_paused = true)]
async fn refused_frames_keep_their_place_among_the_outcomes() {
    let fake = Fake::new(Bell::None);
    let mut one = link(&fake, &["a"]).await;
    // A row of the database holds the length of its frame besides.
    assert_eq!(one.limits.max_frame, (4 << 20) - 4);
    let large = Outgoing { topic: Topic::from("a"), frame: Bytes::from(vec![0; (4 << 20) - 3]) };
    let outcomes = one.sender.publish(vec![outgoing("a", "x"), large, outgoing("a", "y")]).await;
    assert!(outcomes[0].is_ok() && outcomes[2].is_ok());
    assert_eq!(outcomes[1].as_ref().unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(frames(&mut one, 2).await, ["x", "y"]);
}

#[tokio::test(start_paused = true)]
async fn more_topics_than_fit_a_statement_are_read_all_the_same() {
    let fake = Fake::new(Bell::Works);
    let topics: Vec<String> = (0..3 * MOST_KEYS).map(|number| format!("t{number}")).collect();
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    let (mut reader, writer) = (link(&fake, &names).await, link(&fake, &[]).await);
    for topic in &names {
        publish(&writer, topic, &[topic]).await;
        publish(&writer, "other", &["unwanted"]).await;
    }
    assert_eq!(frames(&mut reader, names.len()).await, names);
    // With fewer topics they stand in the statement again.
    let some: Vec<Topic> = topics[MOST_KEYS..].iter().map(|name| Topic::from(name.as_str())).collect();
    reader.sender.unsubscribe(&some).await.unwrap();
    publish(&writer, names[MOST_KEYS], &["unwanted"]).await;
    publish(&writer, names[0], &["wanted"]).await;
    assert_eq!(frame(&mut reader).await.0, "wanted");
}

#[tokio::test(start_paused = true)]
async fn a_large_frame_is_not_read_again_with_every_look() {
    let fake = Fake::new(Bell::None);
    let mut one = link(&fake, &["a"]).await;
    let large = Outgoing { topic: Topic::from("a"), frame: Bytes::from(vec![7; 1 << 20]) };
    assert!(one.sender.publish(vec![large]).await[0].is_ok());
    assert!(next(&mut one).await.unwrap().is_ok());
    sleep(Duration::from_secs(2)).await;
    publish(&one, "a", &["x", "y"]).await;
    assert_eq!(frames(&mut one, 2).await, ["x", "y"]);
    fake.with(|log| log.rows.clear());
    assert_eq!(super::loss(&mut one).await, LossReason::Reset);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_not_polled_rests_and_misses_nothing() {
    let fake = Fake::new(Bell::Works);
    let (mut reader, writer) = (link(&fake, &["a"]).await, link(&fake, &[]).await);
    let frame = Bytes::from(vec![1; 1 << 20]);
    for _ in 0..40 {
        let sent = vec![Outgoing { topic: Topic::from("a"), frame: frame.clone() }];
        assert!(writer.sender.publish(sent).await[0].is_ok());
    }
    sleep(Duration::from_secs(5)).await;
    let before = fake.statements();
    sleep(Duration::from_secs(5)).await;
    // Keepers and the writer's own reader go on.
    assert!(fake.statements() - before < 12);
    // Changes of interest are heard all the same.
    reader.sender.subscribe(&[Topic::from("b")]).await.unwrap();
    for _ in 0..40 {
        assert!(matches!(next(&mut reader).await, Some(Ok(Delivery::Frame { .. }))));
    }
}

#[tokio::test(start_paused = true)]
async fn closing_and_dropping_leave_no_connection_behind() {
    let fake = Fake::new(Bell::Works);
    let one = link(&fake, &["a"]).await;
    let accepted: Vec<_> = (0..2_000).map(|_| one.sender.publish(vec![outgoing("a", "x")])).collect();
    one.sender.close().await.unwrap();
    fake.until_connections(0).now_or_never().expect("close returned: it is freed");
    for outcome in futures::future::join_all(accepted).await {
        assert!(outcome[0].is_ok(), "accepted before it was closed");
    }
    let two = link(&fake, &["a"]).await;
    fake.freeze(true);
    let accepted = two.sender.publish(vec![outgoing("a", "x")]);
    drop(two.inbound);
    timeout(Duration::from_secs(1), fake.until_connections(0)).await.expect("freed though nothing moves");
    assert_eq!(accepted.await[0].as_ref().unwrap_err().kind(), ErrorKind::Closed);
    two.sender.close().await.unwrap();
    fake.freeze(false);
    let mut three = link(&fake, &["a"]).await;
    drop(three.sender);
    sleep(Duration::from_secs(3)).await;
    let four = link(&fake, &[]).await;
    let accepted = four.sender.publish(vec![outgoing("a", "still read")]);
    assert!(accepted.await[0].is_ok());
    assert_eq!(frame_of(&mut three.inbound).await, "still read");
}

async fn frame_of(
    inbound: &mut futures::stream::BoxStream<'static, backplane_core::Result<Delivery>>,
) -> String {
    match timeout(super::WAIT, futures::StreamExt::next(inbound)).await {
        Ok(Some(Ok(Delivery::Frame { frame, .. }))) => String::from_utf8(frame.to_vec()).unwrap(),
        other => panic!("not a frame: {other:?}"),
    }
}
