//! A private NATS server with faults.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backplane_conformance::broker::{Broker as _, Nats, NatsOptions, free_port};
use backplane_conformance::proxy::FaultProxy;
use backplane_conformance::{Faults, Harness};
use backplane_core::{Attach, Bus, Delivery, Link, NodeId, Outgoing, Position, Reach, Result, Topic};
use backplane_nats::{NatsBus, NatsConfig};
use bytes::Bytes;
use futures::StreamExt as _;

/// Far more than anything here takes.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Which hand provokes the faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultsBy {
    /// The server's own process: killed and restarted, stopped by SIGSTOP. It cannot cut connections one by one: it is
    /// killed and restarted for that.
    Server,
    /// A proxy in front of it: connections reset, refused, or half-open.
    Proxy,
}

/// The suite's view of a private NATS server.
#[derive(Debug)]
pub(crate) struct NatsHarness {
    name: String,
    by: FaultsBy,
    pub(crate) nats: Arc<Nats>,
    pub(crate) proxy: Arc<FaultProxy>,
    parameters: String,
}

impl NatsHarness {
    /// Starts a server that knows JetStream. `None`: it is not installed; the skip was printed.
    pub(crate) async fn require(by: FaultsBy, parameters: &str) -> Option<Self> {
        Self::with(NatsOptions { jetstream: true, ..NatsOptions::default() }, by, parameters).await
    }

    /// Starts a server.
    pub(crate) async fn with(options: NatsOptions, by: FaultsBy, parameters: &str) -> Option<Self> {
        let nats = Arc::new(Nats::require(options).await?);
        let proxy = Arc::new(FaultProxy::start(nats.address()).expect("a loopback port is free"));
        let name = format!("nats, {parameters}, faults by the {by:?}").to_lowercase();
        Some(Self { name, by, nats, proxy, parameters: parameters.to_owned() })
    }

    /// Replaces the parameters of the URL.
    pub(crate) fn set_parameters(&mut self, parameters: &str) {
        parameters.clone_into(&mut self.parameters);
    }

    /// What a node opens.
    pub(crate) fn url(&self) -> String {
        format!("{}?{}", self.nats.url_at(self.proxy.address()), self.parameters)
    }

    /// A node's bus.
    pub(crate) fn open(&self) -> NatsBus {
        bus(&self.url())
    }

    /// Until the server's own word is this, or it is too late.
    pub(crate) async fn until(&self, what: &str, fact: impl AsyncFn(&Nats) -> bool) {
        let waiting = async {
            while !fact(&self.nats).await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
    }
}

pub(crate) fn bus(url: &str) -> NatsBus {
    NatsBus::new(NatsConfig::from_url(url).unwrap()).unwrap()
}

#[async_trait]
impl Harness for NatsHarness {
    fn name(&self) -> &str {
        &self.name
    }

    async fn bus(&self) -> Result<Arc<dyn Bus>> {
        Ok(Arc::new(NatsBus::new(NatsConfig::from_url(&self.url())?)?))
    }

    fn faults(&self) -> Option<Arc<dyn Faults>> {
        Some(match self.by {
            FaultsBy::Proxy => self.proxy.clone(),
            FaultsBy::Server => Arc::new(ServerFaults(self.nats.clone())),
        })
    }
}

#[derive(Debug)]
struct ServerFaults(Arc<Nats>);

#[async_trait]
impl Faults for ServerFaults {
    async fn cut(&self) {
        self.0.restart().await.expect("the server starts again on its port");
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

/// For a link with patience.
pub(crate) fn attach<'a>(topics: &'a [Topic], resume: Option<&'a Position>) -> Attach<'a> {
    Attach { node: NodeId::random(), attempt: 1, topics, resume, deadline: DEADLINE, heartbeat: DEADLINE }
}

pub(crate) fn outgoing(topic: &str, frame: impl Into<Bytes>) -> Outgoing {
    Outgoing { topic: Topic::from(topic), frame: frame.into() }
}

pub(crate) async fn publish(link: &Link, topic: &str, frame: impl Into<Bytes>) -> Result<Reach> {
    link.sender.publish(vec![outgoing(topic, frame)]).await.remove(0)
}

/// What comes next on a link.
pub(crate) async fn next(link: &mut Link) -> Option<Result<Delivery>> {
    tokio::time::timeout(DEADLINE, link.inbound.next()).await.expect("a delivery or the end in time")
}

/// The next frame, which has to be this one; its position.
pub(crate) async fn frame(link: &mut Link, expected: impl AsRef<[u8]>) -> Option<Position> {
    match next(link).await {
        Some(Ok(Delivery::Frame { frame, position, .. })) if frame == expected.as_ref() => position,
        other => panic!("{other:?} instead of {}", expected.as_ref().escape_ascii()),
    }
}

/// Two servers that know each other.
pub(crate) async fn cluster() -> Option<[Nats; 2]> {
    let ports = [free_port().unwrap(), free_port().unwrap()];
    let options = |own: u16, other: u16| NatsOptions {
        config: vec![
            format!(
                "cluster {{ name: two, listen: \"127.0.0.1:{own}\", routes: [\"nats://127.0.0.1:{other}\"] }}"
            ),
            "lame_duck_duration: \"30s\"".to_owned(),
            "lame_duck_grace_period: \"10s\"".to_owned(),
        ],
        ..NatsOptions::default()
    };
    let one = Nats::require(options(ports[0], ports[1])).await?;
    let two = Nats::require(options(ports[1], ports[0])).await?;
    let routed = async {
        for server in [&one, &two] {
            while !server.monitor("/routez").await.unwrap().contains("\"num_routes\": 1") {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    };
    tokio::time::timeout(DEADLINE, routed).await.expect("the servers find each other");
    Some([one, two])
}
