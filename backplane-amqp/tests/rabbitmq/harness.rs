//! Private brokers, shared by the tests of this process since each takes seconds to start; and what tests ask of a link.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use backplane_amqp::{RabbitBus, RabbitConfig};
use backplane_conformance::broker::{Broker as _, RabbitMq, RabbitMqHoldings, RabbitMqOptions};
use backplane_conformance::proxy::FaultProxy;
use backplane_conformance::{Faults, Harness, bound};
use backplane_core::{Attach, Bus, Delivery, Error, Link, NodeId, Outgoing, Reach, Result, Topic};
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::sync::{Mutex, MutexGuard, OnceCell};

/// No test waits longer than this for anything.
pub(crate) fn deadline() -> Duration {
    bound(Duration::from_secs(30))
}

/// The heartbeat bound of tests that provoke faults.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(2);

/// The broker that no test disturbs. It ends with this process.
pub(crate) async fn calm() -> Option<Arc<RabbitMq>> {
    static CALM: OnceCell<Option<Arc<RabbitMq>>> = OnceCell::const_new();
    CALM.get_or_init(async || RabbitMq::require(RabbitMqOptions::default()).await.map(Arc::new)).await.clone()
}

/// The broker that tests kill, freeze, alarm and search: one test at a time.
pub(crate) async fn rough() -> Option<(Arc<RabbitMq>, MutexGuard<'static, ()>)> {
    static ROUGH: OnceCell<Option<Arc<RabbitMq>>> = OnceCell::const_new();
    static TURN: Mutex<()> = Mutex::const_new(());
    let turn = TURN.lock().await;
    let start = async || RabbitMq::require(RabbitMqOptions::default()).await.map(Arc::new);
    Some((ROUGH.get_or_init(start).await.clone()?, turn))
}

/// The suite's view of the calm broker, with a proxy for the faults.
#[derive(Debug)]
pub(crate) struct RabbitHarness {
    name: String,
    broker: Arc<RabbitMq>,
    proxy: Arc<FaultProxy>,
    parameters: String,
}

impl RabbitHarness {
    /// `None`: RabbitMQ is not installed; the skip was printed.
    pub(crate) async fn require(parameters: &str) -> Option<Self> {
        let broker = calm().await?;
        let proxy = Arc::new(FaultProxy::start(broker.address()).expect("a loopback port is free"));
        let name = format!("rabbitmq, {parameters}, faults by the proxy");
        Some(Self { name, broker, proxy, parameters: parameters.to_owned() })
    }

    /// What a node opens.
    pub(crate) fn url(&self) -> String {
        format!("{}?{}", self.broker.url_at(self.proxy.address()), self.parameters)
    }
}

#[async_trait]
impl Harness for RabbitHarness {
    fn name(&self) -> &str {
        &self.name
    }

    async fn bus(&self) -> Result<Arc<dyn Bus>> {
        Ok(Arc::new(RabbitBus::new(RabbitConfig::from_url(&self.url())?)?))
    }

    fn faults(&self) -> Option<Arc<dyn Faults>> {
        Some(self.proxy.clone())
    }
}

pub(crate) fn bus(url: &str) -> RabbitBus {
    RabbitBus::new(RabbitConfig::from_url(url).unwrap()).unwrap()
}

pub(crate) fn attach(topics: &[Topic]) -> Attach<'_> {
    Attach {
        node: NodeId::random(),
        attempt: 1,
        topics,
        resume: None,
        deadline: bound(Duration::from_secs(10)),
        heartbeat: HEARTBEAT,
    }
}

pub(crate) async fn connect(bus: &RabbitBus, topics: &[Topic]) -> Link {
    // A busy machine is no dead broker.
    let attach = Attach { heartbeat: Duration::from_secs(10), ..attach(topics) };
    bus.connect(attach).await.unwrap()
}

pub(crate) async fn refused(url: &str) -> Error {
    bus(url).connect(attach(&[])).await.expect_err("it is refused")
}

pub(crate) fn outgoing(topic: &Topic, frame: impl Into<Bytes>) -> Outgoing {
    Outgoing { topic: topic.clone(), frame: frame.into() }
}

/// A topic that no other test of this run has.
pub(crate) fn topic(name: &str) -> Topic {
    Topic::from(format!("{name}-{}", NodeId::random()))
}

/// Awaits what has no deadline of its own.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(deadline(), future).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// Publishes one frame.
pub(crate) async fn publish(link: &Link, topic: &Topic, frame: impl Into<Bytes>) -> Result<Reach> {
    let mut outcomes = tokio::time::timeout(deadline(), link.sender.publish(vec![outgoing(topic, frame)]))
        .await
        .expect("an outcome in time");
    assert_eq!(outcomes.len(), 1);
    outcomes.remove(0)
}

pub(crate) async fn next(link: &mut Link) -> Delivery {
    tokio::time::timeout(deadline(), link.inbound.next())
        .await
        .expect("a delivery in time")
        .expect("the link lives")
        .expect("the link lives")
}

/// The next frame, as topic and bytes.
pub(crate) async fn frame(link: &mut Link) -> (Topic, Bytes) {
    match next(link).await {
        Delivery::Frame { topic, frame, .. } => (topic, frame),
        other => panic!("{other:?}"),
    }
}

/// How the link ends, after whatever comes before.
pub(crate) async fn end(link: &mut Link) -> Option<Error> {
    let last = async {
        loop {
            match link.inbound.next().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => break Some(error),
                None => break None,
            }
        }
    };
    let last = tokio::time::timeout(deadline(), last).await.expect("the link ends in time");
    assert!(link.inbound.next().await.is_none(), "nothing follows the end");
    last
}

/// Asks again and again until the broker holds what it should.
pub(crate) async fn until(
    broker: &RabbitMq,
    what: &str,
    condition: impl Fn(&RabbitMqHoldings) -> bool,
) -> Duration {
    let start = Instant::now();
    loop {
        let holdings = broker.holdings().await.unwrap();
        if condition(&holdings) {
            return start.elapsed();
        }
        assert!(start.elapsed() < deadline() * 2, "never: {what}; the broker holds {holdings:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
