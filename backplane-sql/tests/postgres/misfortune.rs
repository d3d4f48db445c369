//! What an operator does to a log while nodes use it.

use std::time::Duration;

use backplane_conformance::broker::Broker as _;
use backplane_core::{Attach, Bus, Delivery, Link, LossReason, NodeId, Outgoing, Position, Topic};
use bytes::Bytes;
use futures::StreamExt as _;

use crate::harness::{FaultsBy, PostgresHarness};

const DEADLINE: Duration = Duration::from_secs(20);

fn attach<'a>(topics: &'a [Topic], resume: Option<&'a Position>) -> Attach<'a> {
    Attach { node: NodeId::random(), attempt: 1, topics, resume, deadline: DEADLINE, heartbeat: DEADLINE }
}

async fn publish(link: &Link, frame: &str) {
    let frame = Outgoing { topic: Topic::from("room"), frame: Bytes::copy_from_slice(frame.as_bytes()) };
    for outcome in link.sender.publish(vec![frame]).await {
        outcome.unwrap();
    }
}

async fn next(link: &mut Link) -> Delivery {
    tokio::time::timeout(DEADLINE, link.inbound.next()).await.expect("a delivery in time").unwrap().unwrap()
}

async fn frame(link: &mut Link, expected: &str) -> Position {
    match next(link).await {
        Delivery::Frame { frame, position, .. } if frame == expected.as_bytes() => position.unwrap(),
        other => panic!("{other:?} instead of {expected}"),
    }
}

async fn lost(link: &mut Link) -> LossReason {
    match next(link).await {
        Delivery::Lost { reason, .. } => reason,
        other => panic!("{other:?} instead of a loss"),
    }
}

#[tokio::test]
async fn a_log_that_lost_its_end_is_told_of_and_goes_on() {
    let Some(harness) = PostgresHarness::require(FaultsBy::Server, "").await else { return };
    let (topics, bus) = ([Topic::from("room")], harness.open());
    for forget in [
        // As a crash of a server with durability=relaxed, or a failover: the newest rows are gone.
        "DELETE FROM backplane_log WHERE id > 1",
        // As a restore of an old copy: the numbers went back too.
        "TRUNCATE backplane_log RESTART IDENTITY",
    ] {
        let mut link = bus.connect(attach(&topics, None)).await.unwrap();
        for number in 0..5 {
            publish(&link, &number.to_string()).await;
            frame(&mut link, &number.to_string()).await;
        }
        harness.postgres().query(forget).await.unwrap();
        publish(&link, "after").await;
        assert_eq!(lost(&mut link).await, LossReason::Reset, "{forget}");
        // Whether the row by which it was noticed is delivered is not promised; the next one is.
        publish(&link, "next").await;
        loop {
            match next(&mut link).await {
                Delivery::Frame { frame, .. } if frame == "next" => break,
                Delivery::Frame { frame, .. } => assert_eq!(frame, "after"),
                other => panic!("{other:?}"),
            }
        }
        link.sender.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_reader_resumes_after_a_kill_and_not_on_another_log() {
    let Some(harness) = PostgresHarness::require(FaultsBy::Server, "").await else { return };
    let (topics, bus) = ([Topic::from("room")], harness.open());
    let mut link = bus.connect(attach(&topics, None)).await.unwrap();
    let other = bus.connect(attach(&[], None)).await.unwrap();
    publish(&other, "one").await;
    let position = frame(&mut link, "one").await;
    drop(link);
    publish(&other, "two").await;
    harness.postgres().kill();
    harness.postgres().restart().await.unwrap();
    let mut link = bus.connect(attach(&topics, Some(&position))).await.unwrap();
    assert!(link.resumed);
    // What was handled may come again, and nothing that was not is missing.
    loop {
        match next(&mut link).await {
            Delivery::Frame { frame, .. } if frame == "two" => break,
            Delivery::Frame { frame, .. } => assert_eq!(frame, "one"),
            other => panic!("{other:?}"),
        }
    }
    drop(link);
    harness.postgres().query("DROP TABLE backplane_log, backplane_meta").await.unwrap();
    let link = bus.connect(attach(&topics, Some(&position))).await.unwrap();
    assert!(!link.resumed);
}

#[tokio::test]
async fn a_foreign_transaction_that_stays_open_stops_no_delivery() {
    let Some(harness) = PostgresHarness::require(FaultsBy::Server, "").await else { return };
    let (topics, bus) = ([Topic::from("room")], harness.open());
    let mut link = bus.connect(attach(&topics, None)).await.unwrap();
    // A row of the log that is not committed for as long as this lasts, and takes a number.
    let insert = "INSERT INTO backplane_log (writer, seq, key, topic, frames) \
                  VALUES (uuid_send(gen_random_uuid()), 1, 1, '', ''); SELECT pg_sleep(60)";
    let foreign = harness.postgres().query(insert);
    let delivered = async {
        let busy = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        while harness.postgres().query(busy).await.unwrap() != "1" {}
        for number in 0..200 {
            let start = std::time::Instant::now();
            publish(&link, &number.to_string()).await;
            frame(&mut link, &number.to_string()).await;
            assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        }
    };
    tokio::select! {
        _ = foreign => panic!("it stays open"),
        () = delivered => {}
    }
}

#[tokio::test]
async fn an_idle_node_asks_little() {
    let Some(harness) = PostgresHarness::require(FaultsBy::Server, "").await else { return };
    // It commits, too, when it comes to look.
    for quiet in ["ALTER SYSTEM SET autovacuum = off", "SELECT pg_reload_conf()"] {
        harness.postgres().query(quiet).await.unwrap();
    }
    let commits = "SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres'";
    let bus = harness.open();
    let link = bus.connect(attach(&[], None)).await.unwrap();
    publish(&link, "x").await;
    let count = async || harness.postgres().query(commits).await.unwrap().parse::<u64>().unwrap();
    let start = std::time::Instant::now();
    let before = count().await;
    // How much is asked in a time is the question here.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let asked = count().await - before;
    let time = start.elapsed();
    assert!(asked < 5 * time.as_secs(), "{asked} statements in {time:?}");
    drop(link);
}

#[tokio::test]
async fn a_doorbell_that_was_terminated_comes_back_within_the_link() {
    let Some(harness) = PostgresHarness::require(FaultsBy::Server, "").await else { return };
    let (topics, bus) = ([Topic::from("room")], harness.open());
    let mut link = bus.connect(attach(&topics, None)).await.unwrap();
    publish(&link, "one").await;
    frame(&mut link, "one").await;
    let listening = "FROM pg_stat_activity WHERE query LIKE 'LISTEN%'";
    let first = harness.postgres().query(&format!("SELECT pid {listening}")).await.unwrap();
    assert!(first.parse::<u32>().is_ok(), "one listens: {first}");
    harness.postgres().query(&format!("SELECT pg_terminate_backend({first})")).await.unwrap();
    let another = format!("SELECT count(*) {listening} AND pid <> {first}");
    let back = async { while harness.postgres().query(&another).await.unwrap() != "1" {} };
    tokio::time::timeout(Duration::from_secs(20), back).await.expect("another one listens");
    // The link is the same, and so is what it carries.
    publish(&link, "two").await;
    frame(&mut link, "two").await;
}
