//! What happens to a link: the server dies, is slow, leaves; the reader does not read; and nothing is left behind.

use std::time::{Duration, Instant};

use backplane_conformance::bound;
use backplane_conformance::broker::{Broker as _, Nats, NatsOptions};
use backplane_core::{Attach, Bus as _, Delivery, ErrorKind, Link, Topic};

use crate::harness::*;

/// How a link ends, after frames that do not matter here.
async fn end(link: &mut Link) -> Option<backplane_core::Error> {
    loop {
        match next(link).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Some(error),
            None => return None,
        }
    }
}

#[tokio::test]
async fn what_was_in_flight_when_the_server_died_is_never_sent_later() {
    let Some(harness) = NatsHarness::require(FaultsBy::Server, "").await else { return };
    let bus = harness.open();
    let topics = [Topic::from("room")];
    for kill in [true, false] {
        let mut link = bus.connect(attach(&[], None)).await.unwrap();
        harness.nats.freeze().unwrap();
        // More than the sockets, the crate and its queue hold.
        let batch = (0..200).map(|_| outgoing("room", vec![7; 100_000])).collect();
        let accepted = tokio::spawn(link.sender.publish(batch));
        let late = link.sender.clone();
        if kill {
            harness.nats.kill();
            harness.nats.restart().await.unwrap();
        } else {
            harness.proxy.cut();
            harness.nats.thaw().unwrap();
        }
        let error = end(&mut link).await.unwrap();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        for outcome in accepted.await.unwrap() {
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Unavailable);
        }
        let outcomes = late.publish(vec![outgoing("room", "late")]).await;
        assert_eq!(outcomes[0].as_ref().unwrap_err().kind(), ErrorKind::Closed);
        // The crate alone would be back within milliseconds, and would send what it still holds.
        let mut listening = bus.connect(attach(&topics, None)).await.unwrap();
        for _ in 0..20 {
            publish(&listening, "room", "marker").await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for _ in 0..20 {
            frame(&mut listening, "marker").await;
        }
        harness.until("one client is left", async |nats| nats.clients().await.unwrap().len() == 1).await;
    }
}

#[tokio::test]
async fn a_frozen_server_ends_the_link_within_the_bound_and_not_before() {
    let Some(harness) = NatsHarness::require(FaultsBy::Server, "").await else { return };
    let heartbeat = Duration::from_secs(2);
    for parameters in ["", "?durable=true"] {
        let bus = bus(&format!("{}{parameters}", harness.nats.url()));
        let topics = [Topic::from("room")];
        let mut link = bus.connect(Attach { heartbeat, ..attach(&topics, None) }).await.unwrap();
        harness.nats.freeze().unwrap();
        let start = Instant::now();
        let in_flight = tokio::spawn(link.sender.publish(vec![outgoing("room", "x")]));
        assert_eq!(end(&mut link).await.unwrap().kind(), ErrorKind::Unavailable);
        let time = start.elapsed();
        println!("bound {heartbeat:?}: the link ended after {time:?}");
        assert!(time > heartbeat / 2 && time < heartbeat + bound(Duration::from_millis(500)), "{time:?}");
        let error = in_flight.await.unwrap().remove(0).unwrap_err();
        assert!(error.kind() == ErrorKind::Unavailable && error.outcome_unknown(), "{error}");
        harness.nats.thaw().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_the_server_cuts_for_slowness_ends_with_an_error() {
    let options = NatsOptions {
        max_pending: Some(1 << 20),
        write_deadline: Some(Duration::from_millis(500)),
        jetstream: true,
        ..NatsOptions::default()
    };
    let Some(harness) = NatsHarness::with(options, FaultsBy::Proxy, "").await else { return };
    let topics = [Topic::from("flood")];
    let mut slow = harness.open().connect(attach(&topics, None)).await.unwrap();
    let publisher = bus(&harness.nats.url()).connect(attach(&[], None)).await.unwrap();
    // Bytes to us crawl; the server's buffer for us fills.
    harness.proxy.throttle(Some(100_000));
    let flooding = async {
        loop {
            let batch = (0..100).map(|_| outgoing("flood", vec![1; 10_000])).collect();
            assert!(publisher.sender.publish(batch).await.iter().all(Result::is_ok));
            if harness.nats.monitor("/varz").await.unwrap().contains("\"slow_consumers\": 1") {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, flooding).await.expect("the server cuts a slow client");
    harness.proxy.throttle(None);
    let error = end(&mut slow).await.unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let mut again = harness.open().connect(attach(&topics, None)).await.unwrap();
    publish(&publisher, "flood", "after").await.unwrap();
    frame(&mut again, "after").await;
}

#[tokio::test]
async fn a_lame_duck_is_left_early_and_what_is_in_flight_is_decided() {
    let config = vec!["lame_duck_duration: \"30s\"".to_owned(), "lame_duck_grace_period: \"10s\"".to_owned()];
    let options = NatsOptions { config, jetstream: true, ..NatsOptions::default() };
    for parameters in ["", "?durable=true"] {
        let Some(nats) = Nats::require(options.clone()).await else { return };
        let bus = bus(&format!("{}{parameters}", nats.url()));
        let topics = [Topic::from("room")];
        let mut link = bus.connect(attach(&topics, None)).await.unwrap();
        // More than is sent at once: some is under way, some still with us.
        let frames = vec![outgoing("room", vec![7; 5_000]); 2_000];
        let outcomes = tokio::spawn(link.sender.publish(frames.clone()));
        let Some(Ok(Delivery::Frame { .. })) = next(&mut link).await else { panic!("no frame") };
        let more = tokio::spawn(link.sender.publish(frames));
        nats.lame_duck().unwrap();
        let start = Instant::now();
        let mut arrived = 1;
        let error = loop {
            match next(&mut link).await {
                Some(Ok(Delivery::Frame { .. })) => arrived += 1,
                Some(Err(error)) => break error,
                other => panic!("{other:?}"),
            }
        };
        let outcomes = [outcomes.await.unwrap(), more.await.unwrap()].concat();
        let accepted = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        for refusal in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            assert_eq!(refusal.kind(), ErrorKind::Unavailable, "{refusal}");
            assert!(!refusal.outcome_unknown(), "{refusal}");
        }
        println!(
            "{parameters}: left after {:?}, {accepted} accepted, {arrived} arrived: {error}",
            start.elapsed()
        );
        assert!(error.to_string().contains("lame duck"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(5), "long before it would have cut us");
        if parameters.is_empty() {
            assert_eq!(arrived, accepted);
        }
    }
}

/// Opens a link, ends it in one of the ways, and waits until the server knows nothing of it.
async fn leaves_nothing(way: &str, parameters: &str) {
    let Some(harness) = NatsHarness::require(FaultsBy::Proxy, parameters).await else { return };
    let own =
        |subjects: Vec<String>| subjects.into_iter().filter(|subject| !subject.starts_with('$')).count();
    let (nats, bus, durable) = (&harness.nats, harness.open(), !parameters.is_empty());
    let topics: Vec<_> = (0..500).map(|number| Topic::from(format!("room.{number}"))).collect();
    let link = bus.connect(attach(&topics, None)).await.unwrap();
    assert_eq!(nats.clients().await.unwrap().len(), 1, "{way}");
    assert_eq!(own(nats.subscriptions().await.unwrap()), if durable { 3 } else { 501 });
    link.sender.unsubscribe(&topics[..200]).await.unwrap();
    assert_eq!(own(nats.subscriptions().await.unwrap()), if durable { 3 } else { 301 }, "unsubscribe frees");
    match way {
        "closed" => link.sender.close().await.unwrap(),
        "dropped" => drop(link.inbound),
        "cut" => harness.proxy.cut(),
        _ => {
            drop(link);
            let attach = Attach { deadline: Duration::from_millis(2), ..attach(&topics, None) };
            let _ = bus.connect(attach).await;
        }
    }
    let start = Instant::now();
    harness.until("every client is gone", async |nats| nats.clients().await.unwrap().is_empty()).await;
    if durable {
        let gone = async |nats: &Nats| nats.streams_and_consumers().await.unwrap() == (1, 0);
        harness.until("the consumer is gone, and the stream is not", gone).await;
    }
    println!("{parameters} {way}: nothing left after {:?}", start.elapsed());
}

#[tokio::test]
async fn nothing_of_a_link_is_left_on_the_server() {
    // At once: the server forgets the consumers of lost links after five seconds.
    let ways = ["closed", "dropped", "cut", "abandoned"];
    let each = ways.iter().flat_map(|way| [leaves_nothing(way, ""), leaves_nothing(way, "durable=true")]);
    futures::future::join_all(each).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_topics_are_one_call_and_all_of_them_deliver() {
    let Some(nats) = Nats::require(NatsOptions::default()).await else { return };
    let bus = bus(&nats.url());
    let topics: Vec<_> = (0..10_000).map(|number| Topic::from(format!("room.{number}"))).collect();
    let start = Instant::now();
    let mut link = bus.connect(attach(&topics, None)).await.unwrap();
    println!("10,000 topics confirmed after {:?}", start.elapsed());
    let start = Instant::now();
    for some in topics.chunks(500) {
        let batch = some.iter().map(|topic| outgoing(&topic.to_string(), "x")).collect();
        assert!(link.sender.publish(batch).await.iter().all(Result::is_ok));
    }
    let mut seen = std::collections::HashSet::new();
    while seen.len() < topics.len() {
        let Some(Ok(Delivery::Frame { topic, .. })) = next(&mut link).await else { panic!("the link ended") };
        assert!(seen.insert(topic));
    }
    println!("a frame to each of them and back after {:?}", start.elapsed());
    link.sender.unsubscribe(&topics[1..]).await.unwrap();
    assert_eq!(nats.subscriptions().await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirmed_subscription_hears_what_another_server_of_the_cluster_is_told() {
    const TOPICS: usize = 300;
    let Some([one, two]) = cluster().await else { return };
    let mut reader = bus(&one.url()).connect(attach(&[], None)).await.unwrap();
    let publisher = bus(&two.url()).connect(attach(&[], None)).await.unwrap();
    let each = (0..TOPICS).map(|number| {
        let (reader, publisher) = (reader.sender.clone(), publisher.sender.clone());
        async move {
            let topic = format!("room.{number}");
            reader.subscribe(&[Topic::from(topic.as_str())]).await.unwrap();
            publisher.publish(vec![outgoing(&topic, "x")]).await.remove(0).unwrap();
        }
    });
    futures::future::join_all(each).await;
    for _ in 0..TOPICS {
        frame(&mut reader, "x").await;
    }
}
