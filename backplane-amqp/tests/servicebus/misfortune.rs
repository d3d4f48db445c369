//! What befalls a broker: TLS with strangers, death, frost, cut connections, and nodes that vanish.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backplane_amqp::{ServiceBus, ServiceBusConfig};
use backplane_conformance::broker::{Broker as _, RabbitMq, RabbitMqHoldings, RabbitMqOptions};
use backplane_core::{Backplane as _, ErrorKind, Event, Health, Router, RouterConfig};
use tokio::time::timeout;

use crate::harness::{options, start, url};
use crate::link::{PATIENCE, bus, connect, end, next, publish, refused};

fn tls_url(rabbitmq: &RabbitMq, ca: &Path) -> String {
    url(rabbitmq, rabbitmq.address(), &format!("&ca={}", ca.display()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_ca_is_trusted_for_the_right_name_only() {
    let options = RabbitMqOptions { tls: true, tls_names: vec!["localhost".to_owned()], ..options() };
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
    // Each look takes half a second. Connections are not compared: those of AMQP 1.0 are not counted after a restart.
    let look =
        async || RabbitMqHoldings { connections: wanted.connections, ..rabbitmq.holdings().await.unwrap() };
    let mut seen = look().await;
    let give_up = Instant::now() + PATIENCE;
    while seen != *wanted && Instant::now() < give_up {
        seen = look().await;
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_was_killed_is_found_again_and_keeps_nothing_of_a_node() {
    let Some(rabbitmq) = start(options()).await else { return };
    let none = rabbitmq.holdings().await.unwrap();
    let address = url(&rabbitmq, rabbitmq.address(), "");
    let nodes = [node(&address).await, node(&address).await];
    let with_nodes = rabbitmq.holdings().await.unwrap();
    assert_eq!((with_nodes.queues, with_nodes.consumers), (2, 2), "{with_nodes:?}");

    // Killed and restarted.
    let mut events = nodes[0].events();
    rabbitmq.kill();
    for node in &nodes {
        timeout(PATIENCE, node.health().wait_for(Health::is_down)).await.unwrap().unwrap();
    }
    rabbitmq.restart().await.unwrap();
    let accepting = Instant::now();
    for node in &nodes {
        timeout(PATIENCE, node.health().wait_for(Health::is_up)).await.unwrap().unwrap();
    }
    let recovered = accepting.elapsed();
    assert!(
        recovered < backplane_conformance::bound(Duration::from_secs(2)),
        "recovered after {recovered:?}"
    );
    let mut gap = false;
    while let Ok(event) = events.try_recv() {
        gap |= matches!(event, Event::Gap(_));
    }
    assert!(gap, "an outage without a gap");

    // A node that is gone without a word leaves nothing.
    let [stays, goes] = nodes;
    drop(goes);
    let with_one = RabbitMqHoldings {
        queues: 1,
        bindings: with_nodes.bindings / 2,
        consumers: 1,
        connections: 2,
        ..none
    };
    assert_eq!(settled(&rabbitmq, &with_one).await, with_one);
    stays.shutdown().await.unwrap();
    assert_eq!(settled(&rabbitmq, &none).await, none);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_froze_for_three_seconds_loses_no_link() {
    let Some(rabbitmq) = start(options()).await else { return };
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
