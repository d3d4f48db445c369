//! The bus on files.
#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used, reason = "a test fails by it, also outside of its own function")]
// Reports are printed.
#![allow(clippy::print_stdout)]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backplane_conformance::{Harness, Report, bus, cluster};
use backplane_core::{
    Attach, Bus, Delivery, ErrorKind, Link, NodeId, Outgoing, Position, Result, Topic, Wire,
};
use backplane_sql::SqlBus;
use bytes::Bytes;
use futures::StreamExt as _;
use tempfile::TempDir;

/// The suite's view of a file.
#[derive(Debug)]
struct SqliteHarness {
    folder: TempDir,
    parameters: &'static str,
}

impl SqliteHarness {
    fn new(parameters: &'static str) -> Arc<Self> {
        Arc::new(Self { folder: tempfile::tempdir().unwrap(), parameters })
    }
}

#[async_trait]
impl Harness for SqliteHarness {
    fn name(&self) -> &str {
        "sqlite"
    }

    async fn bus(&self) -> Result<Arc<dyn Bus>> {
        let file = self.folder.path().join("log.db");
        Ok(Arc::new(SqlBus::from_url(&format!("sqlite:{}?{}", file.display(), self.parameters))?))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bus_keeps_every_contract() {
    for parameters in ["", "doorbell=false&durability=relaxed"] {
        let report = Report::of(SqliteHarness::new(parameters), &bus::contracts()).await;
        println!("{parameters} {report}");
        report.assert_clean();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_keep_every_contract() {
    for wire in [Wire::Native, Wire::AspNetCore { server_name: None }] {
        let report = Report::of(SqliteHarness::new(""), &cluster::contracts(&wire)).await;
        println!("{wire:?} on {report}");
        report.assert_clean();
    }
}

const DEADLINE: Duration = Duration::from_secs(20);

fn attach<'a>(topics: &'a [Topic], resume: Option<&'a Position>) -> Attach<'a> {
    Attach { node: NodeId::random(), attempt: 1, topics, resume, deadline: DEADLINE, heartbeat: DEADLINE }
}

async fn publish(link: &Link, frame: &'static str) {
    let frame = Outgoing { topic: Topic::from("room"), frame: Bytes::from_static(frame.as_bytes()) };
    for outcome in link.sender.publish(vec![frame]).await {
        outcome.unwrap();
    }
}

async fn next(link: &mut Link) -> Option<Result<Delivery>> {
    tokio::time::timeout(DEADLINE, link.inbound.next()).await.expect("a delivery in time")
}

async fn frame(link: &mut Link, expected: &str) -> Position {
    match next(link).await {
        Some(Ok(Delivery::Frame { frame, position, .. })) if frame == expected.as_bytes() => {
            position.unwrap()
        }
        other => panic!("{other:?} instead of {expected}"),
    }
}

#[tokio::test]
async fn a_file_that_is_replaced_ends_the_link_and_is_not_resumed() {
    let (harness, topics) = (SqliteHarness::new(""), [Topic::from("room")]);
    let bus = harness.bus().await.unwrap();
    let mut link = bus.connect(attach(&topics, None)).await.unwrap();
    publish(&link, "one").await;
    let position = frame(&mut link, "one").await;
    drop(link);

    // The same file: what came meanwhile is delivered.
    publish(&bus.connect(attach(&[], None)).await.unwrap(), "two").await;
    let mut link = bus.connect(attach(&topics, Some(&position))).await.unwrap();
    assert!(link.resumed);
    let position = frame(&mut link, "two").await;

    let file = harness.folder.path().join("log.db");
    for replace in [true, false] {
        if replace {
            std::fs::copy(&file, harness.folder.path().join("copy")).unwrap();
            std::fs::rename(harness.folder.path().join("copy"), &file).unwrap();
        } else {
            std::fs::remove_file(&file).unwrap();
        }
        let end = next(&mut link).await.expect("an error before the end").unwrap_err();
        assert_eq!(end.kind(), ErrorKind::Unavailable, "{end}");
        assert!(next(&mut link).await.is_none());
        let frame = Outgoing { topic: Topic::from("room"), frame: Bytes::new() };
        assert!(link.sender.publish(vec![frame]).await.iter().all(Result::is_err));
        link = bus.connect(attach(&topics, Some(&position))).await.unwrap();
    }
    assert!(!link.resumed, "the log was made anew");
    publish(&link, "three").await;
    frame(&mut link, "three").await;
}
