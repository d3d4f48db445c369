//! Who is let in, what is permitted, and what kind of server it is.

use std::sync::Arc;
use std::time::Duration;

use backplane_conformance::bound;
use backplane_conformance::broker::{Broker as _, Nats, NatsOptions};
use backplane_core::{
    Attach, Backplane as _, Bus as _, Delivery, Error, ErrorKind, Router, RouterConfig, Start, Topic,
};

use crate::harness::*;

async fn refused(url: &str) -> Error {
    let Err(error) = bus(url).connect(attach(&[], None)).await else { panic!("it was let in") };
    error
}

#[tokio::test]
async fn wrong_credentials_are_denied_and_right_ones_are_not() {
    let user = Some(("us er".to_owned(), "pass:word".to_owned()));
    let Some(nats) = Nats::require(NatsOptions { user, ..NatsOptions::default() }).await else { return };
    for url in [
        nats.url_as("us er", "hunter2"),
        nats.url_as("nobody", "hunter2"),
        format!("nats://{}", nats.address()),
    ] {
        let error = refused(&url).await;
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(!format!("{error:?}").contains("hunter2"));
    }
    bus(&nats.url()).connect(attach(&[Topic::from("room")], None)).await.unwrap();

    let token = Some("a token".to_owned());
    let Some(nats) = Nats::require(NatsOptions { token, ..NatsOptions::default() }).await else { return };
    assert_eq!(refused(&format!("nats://wrong@{}", nats.address())).await.kind(), ErrorKind::Denied);
    bus(&nats.url()).connect(attach(&[Topic::from("room")], None)).await.unwrap();
}

/// The permissions that the crate documentation asks for, and no more.
fn limited(extra: &str) -> NatsOptions {
    let permissions = format!(
        "publish: {{ allow: [\"backplane.ours.>\", \"_INBOX.>\"{extra}] }}, \
         subscribe: {{ allow: [\"backplane.ours.>\", \"_INBOX.>\"] }}"
    );
    let config = vec![format!(
        "authorization {{ users: [ {{ user: app, password: secret, permissions: {{ {permissions} }} }}, \
                 {{ user: all, password: secret }} ] }}"
    )];
    NatsOptions { config, jetstream: true, ..NatsOptions::default() }
}

#[tokio::test]
async fn a_refused_frame_is_denied_alone() {
    let Some(nats) = Nats::require(limited("")).await else { return };
    let bus = bus(&nats.url_as("app", "secret"));
    let mut link = bus.connect(attach(&[Topic::from("ours.a")], None)).await.unwrap();
    for round in 0..200 {
        let batch = vec![outgoing("ours.a", "1"), outgoing("theirs", "2"), outgoing("ours.a", "3")];
        let outcomes = link.sender.publish(batch).await;
        assert!(outcomes[0].is_ok() && outcomes[2].is_ok(), "{round}: {outcomes:?}");
        let error = outcomes[1].as_ref().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{round}: {error}");
        frame(&mut link, "1").await;
        frame(&mut link, "3").await;
    }
}

#[tokio::test]
async fn of_refusals_beyond_number_none_is_taken_for_success() {
    let Some(nats) = Nats::require(limited("")).await else { return };
    let bus = bus(&nats.url_as("app", "secret"));
    let link = bus.connect(attach(&[], None)).await.unwrap();
    // Many more than the crate tells of at once.
    let start = std::time::Instant::now();
    let batch = (0..16_000).map(|number| outgoing(&format!("theirs.{number}"), "x")).collect();
    let outcomes = link.sender.publish(batch).await;
    println!("16,000 frames refused within {:?}", start.elapsed());
    assert!(outcomes.iter().all(Result::is_err));
    assert!(outcomes.iter().any(|outcome| outcome.as_ref().unwrap_err().kind() == ErrorKind::Denied));
    publish(&link, "ours.a", "afterwards").await.unwrap();
}

#[tokio::test]
async fn a_refused_subscription_takes_none_of_its_call_with_it_that_was_there() {
    let Some(nats) = Nats::require(limited("")).await else { return };
    let bus = bus(&nats.url_as("app", "secret"));
    let mut link = bus.connect(attach(&[Topic::from("ours.a")], None)).await.unwrap();
    let topics = ["ours.a", "ours.b", "theirs", "ours.c"].map(Topic::from);
    let error = link.sender.subscribe(&topics).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("theirs"), "{error}");
    // The next probe is behind the end of what was new.
    link.sender.subscribe(&topics[..1]).await.unwrap();
    link.sender.unsubscribe(&[Topic::from("never")]).await.unwrap();
    let left = nats.subscriptions().await.unwrap();
    let left: Vec<_> = left.iter().filter(|subject| subject.starts_with("backplane.")).collect();
    assert_eq!(left, ["backplane.ours.a"]);
    link.sender.subscribe(&topics[1..2]).await.unwrap();
    publish(&link, "ours.b", "x").await.unwrap();
    frame(&mut link, "x").await;

    let Err(error) = bus.connect(attach(&topics, None)).await else { panic!("it was let in") };
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
}

#[tokio::test]
async fn without_its_inbox_no_link_is_opened() {
    let Some(nats) = Nats::require(limited("")).await else { return };
    for parameters in ["inbox=_ELSEWHERE", "inbox=_ELSEWHERE&durable=true"] {
        let error = refused(&format!("{}?{parameters}", nats.url_as("app", "secret"))).await;
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    }
}

#[tokio::test]
async fn the_documented_permissions_are_enough_for_a_durable_link() {
    let api = ["STREAM.INFO.backplane", "STREAM.MSG.GET.backplane", "CONSUMER.CREATE.backplane.>"]
        .map(|request| format!(", \"$JS.API.{request}\""))
        .concat();
    let Some(nats) = Nats::require(limited(&format!("{api}, \"$JS.FC.backplane.>\""))).await else { return };
    let url = format!("{}?durable=true", nats.url_as("app", "secret"));
    // Without the stream, which it may not make.
    let error = refused(&url).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    let error = refused(&format!("{url}&create=false")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("no stream backplane"), "{error}");

    let other = bus(&format!("{}?durable=true", nats.url_as("all", "secret")));
    other.connect(attach(&[], None)).await.unwrap();
    let (bus, topics) = (bus(&format!("{url}&create=false")), [Topic::from("ours.a")]);
    let mut link = bus.connect(attach(&topics, None)).await.unwrap();
    let outcomes = link.sender.publish(vec![outgoing("theirs", "1"), outgoing("ours.a", "2")]).await;
    assert_eq!(outcomes[0].as_ref().unwrap_err().kind(), ErrorKind::Denied);
    assert!(outcomes[1].is_ok());
    let position = frame(&mut link, "2").await.unwrap();
    publish(&link, "ours.a", "3").await.unwrap();
    // It may not delete its consumer: closing ends all the same.
    let start = std::time::Instant::now();
    link.sender.close().await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(5));
    let mut link = bus.connect(attach(&topics, Some(&position))).await.unwrap();
    assert!(link.resumed);
    frame(&mut link, "3").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_may_not_be_told_to_go_on_ends_the_link_instead_of_going_quiet() {
    let api = [
        "STREAM.INFO.backplane",
        "STREAM.MSG.GET.backplane",
        "CONSUMER.CREATE.backplane.>",
        "CONSUMER.DELETE.backplane.>",
    ];
    let api = api.map(|request| format!(", \"$JS.API.{request}\"")).concat();
    let Some(nats) = Nats::require(limited(&api)).await else { return };
    let all = bus(&format!("{}?durable=true", nats.url_as("all", "secret")));
    let publisher = all.connect(attach(&[], None)).await.unwrap();
    let url = format!("{}?durable=true&create=false", nats.url_as("app", "secret"));
    let mut link = bus(&url).connect(attach(&[Topic::from("ours.a")], None)).await.unwrap();
    let flooding = async {
        loop {
            let batch = (0..100).map(|_| outgoing("ours.a", vec![1; 10_000])).collect();
            assert!(publisher.sender.publish(batch).await.iter().all(Result::is_ok));
        }
    };
    let reading = async {
        loop {
            if let Err(error) = next(&mut link).await.unwrap() {
                return error;
            }
        }
    };
    let error = tokio::select! { () = flooding => unreachable!(), error = reading => error };
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("$JS.FC."), "{error}");
}

#[tokio::test]
async fn a_server_without_jetstream_cannot_be_durable() {
    let Some(nats) = Nats::require(NatsOptions::default()).await else { return };
    let error = refused(&format!("{}?durable=true", nats.url())).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[tokio::test]
async fn a_topic_that_is_no_subject_is_refused() {
    let Some(nats) = Nats::require(NatsOptions::default()).await else { return };
    let mut link = bus(&nats.url()).connect(attach(&[Topic::from("a.b")], None)).await.unwrap();
    let long = "x".repeat(201);
    for wrong in ["*", ">", "a.*", "a b", "a..b", ".a", "a.", "", "\u{e9}", "a\r\nPUB b 0\r\n", &long] {
        let topics = [Topic::from("fine"), Topic::from(wrong)];
        assert_eq!(
            link.sender.subscribe(&topics).await.unwrap_err().kind(),
            ErrorKind::Unsupported,
            "{wrong}"
        );
        let batch = vec![outgoing("a.b", "1"), outgoing(wrong, "2"), outgoing("a.b", "3")];
        let outcomes = link.sender.publish(batch).await;
        assert!(outcomes[0].is_ok() && outcomes[2].is_ok());
        assert_eq!(outcomes[1].as_ref().unwrap_err().kind(), ErrorKind::Unsupported, "{wrong}");
        frame(&mut link, "1").await;
        frame(&mut link, "3").await;
    }
}

#[tokio::test]
async fn the_servers_largest_message_is_the_largest_frame() {
    let options = NatsOptions { max_payload: Some(2_000), jetstream: true, ..NatsOptions::default() };
    let Some(nats) = Nats::require(options).await else { return };
    for (parameters, most) in [("", 2_000), ("max_frame=500", 500), ("durable=true", 2_000 - 128)] {
        let bus = bus(&format!("{}?{parameters}", nats.url()));
        let mut link = bus.connect(attach(&[Topic::from("a")], None)).await.unwrap();
        assert_eq!(link.limits.max_frame, most);
        let sizes = [most + 1, most, most + 100, 1];
        let batch = sizes.iter().map(|size| outgoing("a", vec![7; *size])).collect();
        let outcomes = link.sender.publish(batch).await;
        for (size, outcome) in sizes.iter().zip(&outcomes) {
            match outcome {
                Ok(_) => assert!(*size <= most),
                Err(error) => assert!(*size > most && error.kind() == ErrorKind::TooLarge, "{error}"),
            }
        }
        for size in [most, 1] {
            let Some(Ok(Delivery::Frame { frame, .. })) = next(&mut link).await else { panic!("no frame") };
            assert_eq!(frame, vec![7; size]);
        }
    }
}

#[tokio::test]
async fn of_several_servers_one_that_is_there_is_enough() {
    let Some(nats) = Nats::require(NatsOptions::default()).await else { return };
    // Bound, and nobody listens: no other process is given the port meanwhile.
    let unused = tokio::net::TcpSocket::new_v4().unwrap();
    unused.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let nobody = unused.local_addr().unwrap().port();
    // Mute: it accepts and says nothing.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://127.0.0.1:{nobody},{},{}", mute.local_addr().unwrap(), nats.address());
    for attempt in 1..=3 {
        let deadline = bound(Duration::from_millis(1_500));
        bus(&url).connect(Attach { attempt, deadline, ..attach(&[], None) }).await.unwrap();
    }
    let error = refused(&format!("nats://127.0.0.1:{nobody}")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let error = refused("nats://no-such-host.invalid").await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let deadline = Duration::from_millis(300);
    let bus = bus(&format!("nats://{}", mute.local_addr().unwrap()));
    let Err(error) = bus.connect(Attach { deadline, ..attach(&[], None) }).await else { panic!("let in") };
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
}

#[tokio::test]
async fn of_several_servers_one_that_may_come_back_is_waited_for_whatever_the_others_refuse() {
    let Some(nats) = Nats::require(NatsOptions {
        user: Some(("app".to_owned(), "pass".to_owned())),
        ..NatsOptions::default()
    })
    .await
    else {
        return;
    };
    let denies = nats.address();
    // Mute: it accepts and says nothing.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let both = format!("nats://stranger:secret@{denies},{}", mute.local_addr().unwrap());
    for attempt in 1..=2 {
        // A twentieth of it is what the answer may take.
        let deadline = bound(Duration::from_secs(4));
        let error = bus(&both).connect(Attach { attempt, deadline, ..attach(&[], None) }).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        assert!(error.to_string().contains("credentials"), "{error}");
    }
    let connect_timeout = bound(Duration::from_millis(1_500));
    let degraded = RouterConfig { start: Start::Degraded, connect_timeout, ..RouterConfig::default() };
    let node = Router::open(Arc::new(bus(&both)), degraded).await.unwrap();
    node.shutdown().await.unwrap();
    let alone = refused(&format!("nats://stranger:secret@{denies},{denies}")).await;
    assert_eq!(alone.kind(), ErrorKind::Denied, "{alone}");
}
