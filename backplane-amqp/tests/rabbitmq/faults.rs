//! RabbitMQ killed, frozen, and short of memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use backplane_amqp::{RabbitBus, RabbitConfig};
use backplane_conformance::broker::{Broker as _, RabbitMq};
use backplane_conformance::{Faults, Harness, Report, bound, cluster};
use backplane_core::{
    Backplane as _, BackplaneExt, Bus, EncodedMessage, ErrorKind, Health, Result, Router, RouterConfig,
    Target, Wire,
};
use futures::future::join_all;

use crate::harness::*;

/// The broker itself suffers, not the network.
#[derive(Debug)]
struct RoughHarness(Arc<RabbitMq>);

#[async_trait]
impl Harness for RoughHarness {
    fn name(&self) -> &str {
        "rabbitmq, faults by the server"
    }

    async fn bus(&self) -> Result<Arc<dyn Bus>> {
        Ok(Arc::new(RabbitBus::new(RabbitConfig::from_url(&self.0.url())?)?))
    }

    fn faults(&self) -> Option<Arc<dyn Faults>> {
        Some(Arc::new(ServerFaults(self.0.clone())))
    }
}

#[derive(Debug)]
struct ServerFaults(Arc<RabbitMq>);

#[async_trait]
impl Faults for ServerFaults {
    async fn cut(&self) {
        self.0.close_connections().await.expect("the server runs");
    }

    async fn down(&self) {
        self.0.kill();
    }

    async fn up(&self) {
        self.0.restart().await.expect("the server starts again on its port");
    }

    async fn freeze(&self) {
        self.0.freeze().expect("the server runs");
    }

    async fn thaw(&self) {
        self.0.thaw().expect("the server runs");
    }
}

/// The contracts in which the broker itself is killed under load, frozen, or ends connections.
const SUFFERING: [&str; 3] = [
    "a_broker_gone_under_load_loses_nothing_in_silence",
    "a_short_freeze_loses_nothing",
    "a_long_freeze_ends_the_links_within_the_bound",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_keep_their_contracts_when_the_server_itself_suffers() {
    let Some((broker, _turn)) = rough().await else { return };
    let contracts: Vec<_> = cluster::contracts(&Wire::Native)
        .into_iter()
        .filter(|contract| SUFFERING.contains(&contract.name))
        .collect();
    assert_eq!(contracts.len(), SUFFERING.len());
    let report = Report::of(Arc::new(RoughHarness(broker)), &contracts).await;
    println!("{report}");
    report.assert_clean();
}

fn config(heartbeat: Duration) -> RouterConfig {
    RouterConfig { heartbeat, ..RouterConfig::default() }
}

fn hello() -> EncodedMessage {
    EncodedMessage::json("{\"hello\":true}\u{1e}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_back_within_two_seconds_of_a_restart() {
    let Some((broker, _turn)) = rough().await else { return };
    let open = || Router::open(Arc::new(bus(&broker.url())), config(Duration::from_secs(10)));
    let nodes = [open().await.unwrap(), open().await.unwrap()];
    broker.kill();
    for node in &nodes {
        let mut health = node.health();
        let down =
            within("down", health.wait_for(Health::is_down)).await.map(|health| health.clone()).unwrap();
        println!("{:?}", down.state);
        let refused = node.send(&Target::all(), &[], hello()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    }
    broker.restart().await.unwrap();
    let start = Instant::now();
    for up in within("up", join_all(nodes.iter().map(BackplaneExt::wait_until_up))).await {
        up.unwrap();
    }
    let took = start.elapsed();
    println!("up {took:?} after the broker accepted");
    assert!(took < bound(Duration::from_secs(2)), "{took:?}");
    for node in &nodes {
        node.send(&Target::all(), &[], hello()).await.unwrap();
        node.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alarm_blocks_publishers_only_and_names_itself() {
    let Some((broker, _turn)) = rough().await else { return };
    let heartbeat = Duration::from_secs(2);
    let topics = [topic("alarmed")];
    let bus = Arc::new(bus(&format!("{}?command_timeout=1500ms", broker.url())));
    let node = Router::open(bus.clone(), config(heartbeat)).await.unwrap();
    let mut link = connect(&bus, &topics).await;

    broker.raise_memory_alarm().await.unwrap();
    // The broker notices a publisher by what it publishes.
    let start = Instant::now();
    let error = loop {
        let sent = Instant::now();
        let outcome = publish(&link, &topics[0], "x").await;
        assert!(sent.elapsed() < Duration::from_secs(3), "no outcome for {:?}", sent.elapsed());
        match outcome {
            Err(error) => break error,
            Ok(_) => assert!(start.elapsed() < DEADLINE, "it is never blocked"),
        }
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("blocked the connection"), "{error}");
    assert!(link.sender.impediment().unwrap().to_string().contains("memory"), "{error}");
    let mut health = node.health();
    let impeded =
        within("impeded", health.wait_for(Health::is_impeded)).await.map(|health| health.clone()).unwrap();
    println!("{:?}", impeded.impediment);
    let error = node.send(&Target::all(), &[], hello()).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome_unknown()), (ErrorKind::Unavailable, false), "{error}");
    assert!(error.to_string().contains("blocked the connection"), "{error}");

    // Reading goes on.
    let inject = format!(
        "rabbit_basic:publish({{resource,<<\"/\">>,exchange,<<\"backplane\">>}}, <<\"{}\">>, [], <<\"from within\">>).",
        topics[0]
    );
    broker.eval(&inject).await.unwrap();
    while frame(&mut link).await.1 != "from within" {}
    // A change of interest, too.
    let more = topic("more");
    link.sender.subscribe(std::slice::from_ref(&more)).await.unwrap();
    // For longer than a dead link could live.
    tokio::time::sleep(heartbeat * 2).await;
    let health = node.health().borrow().clone();
    assert!(health.is_impeded() && health.attempts == 1, "{health:?}");
    // A link that is given up now cannot even say goodbye, and is freed all the same.
    let given_up = connect(&bus, &[]).await;
    let impeded = async {
        while given_up.sender.impediment().is_none() {
            let _ = publish(&given_up, &more, "x").await;
        }
    };
    within("impeded", impeded).await;
    let start = Instant::now();
    given_up.sender.close().await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());

    broker.clear_memory_alarm().await.unwrap();
    within("up", node.wait_until_up()).await.unwrap();
    node.send(&Target::all(), &[], hello()).await.unwrap();
    publish(&link, &more, "after").await.unwrap();
    while frame(&mut link).await.1 != "after" {}
    assert_eq!(node.health().borrow().attempts, 1);
    node.shutdown().await.unwrap();
    link.sender.close().await.unwrap();
    until(&broker, "everything is freed", |now| now.connections == 0 && now.queues == 0).await;
}
