//! What befalls a broker: TLS with strangers, death, frost, cut connections, and nodes that vanish.

// What was measured is printed.
#![allow(clippy::print_stdout)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backplane_amqp::{ServiceBus, ServiceBusConfig};
use backplane_conformance::bound;
use backplane_conformance::broker::{Broker as _, RabbitMq, RabbitMqHoldings, RabbitMqOptions};
use backplane_core::{
    Backplane as _, BackplaneExt as _, ErrorKind, Event, Health, Router, RouterConfig, Target, Topic,
};
use tokio::time::timeout;

use crate::harness::{calm, rough, start, url};
use crate::link::{bus, connect, end, next, patience, publish, refused};

fn tls_url(rabbitmq: &RabbitMq, ca: &Path) -> String {
    url(rabbitmq, rabbitmq.address(), &format!("&ca={}", ca.display()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_ca_is_trusted_for_the_right_name_only() {
    let options =
        RabbitMqOptions { tls: true, tls_names: vec!["localhost".to_owned()], ..RabbitMqOptions::amqp_1_0() };
    let Some(rabbitmq) = start(options).await else { return };
    let ca = rabbitmq.tls().unwrap().ca.clone();
    let trusted = tls_url(&rabbitmq, &ca);
    let mut link = connect(&bus(&trusted), &["room"]).await;
    publish(&link, "room", b"secret").await.unwrap();
    assert_eq!(next(&mut link).await, "secret");
    link.sender.close().await.unwrap();

    let error = refused(&bus(&trusted.replace("@localhost:", "@127.0.0.1:"))).await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    assert!(error.to_string().contains("not for the host name"), "{error}");

    let untrusting = url(&rabbitmq, rabbitmq.address(), "");
    if let Ok(bus) = ServiceBusConfig::from_url(&untrusting).and_then(ServiceBus::new) {
        let error = refused(&bus).await;
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
        assert!(error.to_string().contains("unknown CA"), "{error}");
    }

    let wrong = trusted.replace(rabbitmq.password(), "wrong");
    let error = refused(&bus(&wrong)).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
}

async fn node(url: &str) -> Router {
    let config = RouterConfig {
        reconnect_min: Duration::from_millis(50),
        reconnect_max: Duration::from_millis(500),
        ..RouterConfig::default()
    };
    let bus = ServiceBus::new(ServiceBusConfig::from_url(url).unwrap()).unwrap();
    Router::open(Arc::new(bus), config).await.unwrap()
}

async fn settled(rabbitmq: &RabbitMq, wanted: &RabbitMqHoldings) -> RabbitMqHoldings {
    // Connections are not compared: those of AMQP 1.0 are not counted after a restart.
    let look =
        async || RabbitMqHoldings { connections: wanted.connections, ..rabbitmq.holdings().await.unwrap() };
    let mut seen = look().await;
    let give_up = Instant::now() + patience();
    while seen != *wanted && Instant::now() < give_up {
        // The broker tells nobody: one looks now and then.
        tokio::time::sleep(Duration::from_millis(100)).await;
        seen = look().await;
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_was_killed_is_found_again_and_keeps_nothing_of_a_node() {
    let Some((rabbitmq, _turn)) = rough().await else { return };
    let none = rabbitmq.holdings().await.unwrap();
    let address = url(&rabbitmq, rabbitmq.address(), "");
    let nodes = [node(&address).await, node(&address).await];
    let with_nodes = rabbitmq.holdings().await.unwrap();
    let held = (with_nodes.queues, with_nodes.bindings, with_nodes.consumers);
    assert_eq!(held, (2, 2, 2), "{with_nodes:?}");

    // Killed and restarted.
    let mut events = nodes[0].events();
    rabbitmq.kill();
    for node in &nodes {
        timeout(patience(), node.health().wait_for(Health::is_down)).await.unwrap().unwrap();
    }
    rabbitmq.restart().await.unwrap();
    let accepting = Instant::now();
    for node in &nodes {
        timeout(patience(), node.health().wait_for(Health::is_up)).await.unwrap().unwrap();
    }
    let recovered = accepting.elapsed();
    assert!(recovered < bound(Duration::from_secs(2)), "recovered after {recovered:?}");
    let mut gap = false;
    while let Ok(event) = events.try_recv() {
        gap |= matches!(event, Event::Gap(_));
    }
    assert!(gap, "an outage without a gap");

    // A node that is gone without a word leaves nothing.
    let [stays, goes] = nodes;
    drop(goes);
    let with_one = RabbitMqHoldings { queues: 1, bindings: 1, consumers: 1, connections: 2, ..none };
    assert_eq!(settled(&rabbitmq, &with_one).await, with_one);
    stays.shutdown().await.unwrap();
    assert_eq!(settled(&rabbitmq, &none).await, none);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_memory_alarm_hangs_nothing_and_flow_returns() {
    let Some((rabbitmq, _turn)) = rough().await else { return };
    let none = rabbitmq.holdings().await.unwrap();
    let patient = bound(Duration::from_millis(500)).as_millis();
    let address = url(&rabbitmq, rabbitmq.address(), &format!("&publish_timeout={patient}ms"));
    let hello = || backplane_conformance::cluster::message("hello");
    let node = node(&address).await;
    let mut link = connect(&bus(&address), &["room"]).await;
    publish(&link, "room", b"before").await.unwrap();

    rabbitmq.raise_memory_alarm().await.unwrap();
    assert_eq!(rabbitmq.eval("length(rabbit_alarm:get_alarms()).").await.unwrap(), "1");
    // RabbitMQ 3.10 goes on taking frames over AMQP 1.0; one that stops reading shows as frames without an outcome.
    let late = connect(&bus(&address), &["room"]).await;
    let (mut taken, mut refused) = (0, 0);
    for round in 0..60 {
        let sent = Instant::now();
        let outcome = match round % 3 {
            0 => publish(&link, "room", b"into the alarm").await,
            1 => publish(&late, "room", b"into the alarm").await,
            _ => node.send(&Target::all(), &[], hello()).await,
        };
        assert!(sent.elapsed() < bound(Duration::from_secs(3)), "no outcome for {:?}", sent.elapsed());
        match outcome {
            Ok(()) => taken += 1,
            Err(error) if error.is_retryable() => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    println!("in the alarm {taken} were taken, {refused} refused");
    timeout(patience(), link.sender.subscribe(&[Topic::from("hall")])).await.unwrap().unwrap();
    // Whatever it does: links given up meanwhile end.
    for link in [&late, &link] {
        let given_up = Instant::now();
        timeout(patience(), link.sender.close()).await.unwrap().unwrap();
        assert!(given_up.elapsed() < bound(Duration::from_secs(4)), "{:?}", given_up.elapsed());
    }
    assert!(end(&mut link).await.is_none());

    rabbitmq.clear_memory_alarm().await.unwrap();
    let cleared = Instant::now();
    timeout(patience(), async { while node.send(&Target::all(), &[], hello()).await.is_err() {} })
        .await
        .unwrap();
    println!("flow is back {:?} after the alarm", cleared.elapsed());
    timeout(patience(), node.wait_until_up()).await.unwrap().unwrap();
    node.shutdown().await.unwrap();
    assert_eq!(settled(&rabbitmq, &none).await, none);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_froze_for_three_seconds_loses_no_link() {
    let Some((rabbitmq, _turn)) = rough().await else { return };
    let bus = bus(&url(&rabbitmq, rabbitmq.address(), ""));
    let mut link = connect(&bus, &["room"]).await;
    rabbitmq.freeze().unwrap();
    let publishing = publish(&link, "room", b"patient");
    let thawing = async {
        // How long the fault lasts; nothing is concluded from it.
        tokio::time::sleep(Duration::from_secs(3)).await;
        rabbitmq.thaw().unwrap();
    };
    let (published, ()) = tokio::join!(publishing, thawing);
    published.unwrap();
    assert_eq!(next(&mut link).await, "patient");
    link.sender.close().await.unwrap();
    assert!(end(&mut link).await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_the_plugin_is_named() {
    let Some(rabbitmq) = RabbitMq::require(RabbitMqOptions::default()).await else { return };
    let error = refused(&bus(&url(&rabbitmq, rabbitmq.address(), ""))).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("AMQP 1.0"), "{error}");
}

/// Opens a link on a runtime that ends with it, and asks it for everything.
async fn asks_an_orphan(runtime: fn() -> tokio::runtime::Builder) {
    let Some(rabbitmq) = calm().await else { return };
    let bus = bus(&url(&rabbitmq, rabbitmq.address(), ""));
    let connecting = std::thread::spawn(move || {
        let runtime = runtime().enable_all().build().unwrap();
        runtime.block_on(connect(&bus, &["orphan"]))
    });
    let mut link = connecting.join().unwrap();
    let error = publish(&link, "orphan", b"x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    timeout(patience(), link.sender.close()).await.expect("an answer").unwrap();
    let error = end(&mut link).await.expect("not an orderly end");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

/// Or panicked, which looks the same to those who wait.
#[tokio::test]
async fn a_link_whose_runtime_has_ended_leaves_nobody_waiting() {
    asks_an_orphan(|| {
        let mut threads = tokio::runtime::Builder::new_multi_thread();
        threads.worker_threads(1);
        threads
    })
    .await;
}

#[tokio::test]
async fn a_link_whose_task_was_never_run_leaves_nobody_waiting() {
    // It is polled when its thread has nothing else to do; what it does last here is to return the link.
    asks_an_orphan(tokio::runtime::Builder::new_current_thread).await;
}
