//! Private RabbitMQs that speak AMQP 1.0, with faults; shared by the tests of this process, since each takes seconds to
//! start.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use backplane_amqp::{ServiceBus, ServiceBusConfig};
use backplane_conformance::broker::{Broker as _, RabbitMq, RabbitMqOptions};
use backplane_conformance::proxy::FaultProxy;
use backplane_conformance::{Faults, Harness};
use backplane_core::{Bus, Result};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use crate::link::patience;

/// Which hand provokes the faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultsBy {
    /// The server's own process: killed and restarted, stopped by SIGSTOP; a proxy resets connections.
    Server,
    /// A proxy in front of it: connections reset, refused, or half-open.
    Proxy,
}

/// Starts a server with the plugin, and the policy that makes it delete the queues of links that ended, which the plugin
/// itself never does. `None`: it is not installed; the skip was printed.
pub(crate) async fn start(options: RabbitMqOptions) -> Option<RabbitMq> {
    let rabbitmq = RabbitMq::require(options).await?;
    rabbitmq.url_of_amqp_1_0("suite").await.unwrap();
    Some(rabbitmq)
}

/// The server that no test disturbs. It ends with this process.
pub(crate) async fn calm() -> Option<Arc<RabbitMq>> {
    static CALM: OnceCell<Option<Arc<RabbitMq>>> = OnceCell::const_new();
    let start = async || start(RabbitMqOptions::amqp_1_0()).await.map(Arc::new);
    CALM.get_or_init(start).await.clone()
}

/// The server that tests kill, freeze, alarm and search, one at a time. Nothing of an earlier test is left on it.
pub(crate) async fn rough() -> Option<(Arc<RabbitMq>, MutexGuard<'static, ()>)> {
    static ROUGH: OnceCell<Option<Arc<RabbitMq>>> = OnceCell::const_new();
    static TURN: Mutex<()> = Mutex::const_new(());
    let turn = TURN.lock().await;
    let start = async || start(RabbitMqOptions::amqp_1_0()).await.map(Arc::new);
    let server = ROUGH.get_or_init(start).await.clone()?;
    let give_up = Instant::now() + patience();
    while server.holdings().await.unwrap().queues > 0 {
        assert!(Instant::now() < give_up, "queues of an earlier test are left");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Some((server, turn))
}

/// The URL of the bus for a server that is reached at `address`.
pub(crate) fn url(rabbitmq: &RabbitMq, address: SocketAddr, parameters: &str) -> String {
    let (user, password) = (rabbitmq.user(), rabbitmq.password());
    let tls = rabbitmq.tls().is_some();
    let host = if tls { "localhost".to_owned() } else { address.ip().to_string() };
    let port = address.port();
    format!(
        "servicebus://{user}:{password}@{host}:{port}/suite?auth=sasl&management=none&tls={tls}{parameters}"
    )
}

/// The suite's view of a private RabbitMQ.
#[derive(Debug)]
pub(crate) struct RabbitHarness {
    name: String,
    by: FaultsBy,
    rabbitmq: Arc<RabbitMq>,
    proxy: Arc<FaultProxy>,
    parameters: String,
}

impl RabbitHarness {
    /// A view of `rabbitmq`, behind a proxy of its own.
    pub(crate) fn new(rabbitmq: Arc<RabbitMq>, by: FaultsBy, parameters: &str) -> Self {
        let proxy = Arc::new(FaultProxy::start(rabbitmq.address()).expect("a loopback port is free"));
        let name = format!("AMQP 1.0 on RabbitMQ, {parameters}, faults by the {by:?}").to_lowercase();
        Self { name, by, rabbitmq, proxy, parameters: parameters.to_owned() }
    }

    /// A node's bus.
    pub(crate) fn open(&self) -> Result<ServiceBus> {
        ServiceBus::new(ServiceBusConfig::from_url(&url(
            &self.rabbitmq,
            self.proxy.address(),
            &self.parameters,
        ))?)
    }
}

#[async_trait]
impl Harness for RabbitHarness {
    fn name(&self) -> &str {
        &self.name
    }

    async fn bus(&self) -> Result<Arc<dyn Bus>> {
        Ok(Arc::new(self.open()?))
    }

    fn faults(&self) -> Option<Arc<dyn Faults>> {
        match self.by {
            FaultsBy::Server => {
                Some(Arc::new(ServerFaults { rabbitmq: self.rabbitmq.clone(), proxy: self.proxy.clone() }))
            }
            FaultsBy::Proxy => Some(self.proxy.clone()),
        }
    }
}

#[derive(Debug)]
struct ServerFaults {
    rabbitmq: Arc<RabbitMq>,
    proxy: Arc<FaultProxy>,
}

#[async_trait]
impl Faults for ServerFaults {
    async fn cut(&self) {
        self.proxy.cut();
    }

    async fn down(&self) {
        self.rabbitmq.kill();
    }

    async fn up(&self) {
        self.rabbitmq.restart().await.expect("the server starts again on its port");
    }

    async fn freeze(&self) {
        self.rabbitmq.freeze().expect("the server runs");
    }

    async fn thaw(&self) {
        self.rabbitmq.thaw().expect("the server runs");
    }
}
