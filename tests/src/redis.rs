//! A private Redis with faults: what the suite needs to run on it, and what the tests under faults share.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
pub use backplane_conformance::bound;
use backplane_conformance::broker::{Broker as _, Redis, RedisOptions};
use backplane_conformance::proxy::FaultProxy;
use backplane_conformance::{Faults, Harness};
use backplane_core::{Bus, Result, Router, RouterConfig};
use backplane_redis::{RedisBus, RedisConfig, Resp};

/// How often a fact that nothing announces is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// Waits until `holds` and returns how long it took.
///
/// # Panics
/// Naming `what`, when that takes longer than [`bound`]`(most)`.
pub async fn until(what: &str, most: Duration, mut holds: impl AsyncFnMut() -> bool) -> Duration {
    let start = Instant::now();
    let looked = tokio::time::timeout(bound(most), async {
        while !holds().await {
            tokio::time::sleep(LOOK).await;
        }
    });
    assert!(looked.await.is_ok(), "waited {:?} in vain for {what}", bound(most));
    start.elapsed()
}

/// Which hand provokes the faults of a [`RedisHarness`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultsBy {
    /// The broker's own process: killed and restarted, stopped by SIGSTOP; links are cut by `CLIENT KILL`.
    Broker,
    /// A proxy in front of it: connections reset, refused, or half-open.
    Proxy,
}

/// The suite's view of a private Redis.
#[derive(Debug)]
pub struct RedisHarness {
    name: String,
    redis: Arc<Redis>,
    proxy: Arc<FaultProxy>,
    by: FaultsBy,
    resp: Resp,
}

impl RedisHarness {
    /// Starts a Redis. `None`: it is not installed; the skip was printed.
    ///
    /// # Panics
    /// When it is missing although `BACKPLANE_TEST_REQUIRE` names it, or does not start.
    pub async fn require(resp: Resp, by: FaultsBy) -> Option<Self> {
        let redis = Arc::new(Redis::require(RedisOptions::default()).await?);
        let proxy = Arc::new(FaultProxy::start(redis.address()).expect("a loopback port is free"));
        let name = format!("redis, {resp:?}, faults by the {by:?}").to_lowercase();
        Some(Self { name, redis, proxy, by, resp })
    }

    /// The server itself.
    #[must_use]
    pub fn redis(&self) -> &Arc<Redis> {
        &self.redis
    }

    /// The proxy in front of it, through which every bus of this harness goes.
    #[must_use]
    pub fn proxy(&self) -> &Arc<FaultProxy> {
        &self.proxy
    }

    /// A bus through `proxy`: this harness' own, or another one in front of the same server.
    ///
    /// # Panics
    /// Never: the configuration is one that works.
    #[must_use]
    pub fn bus_through(&self, proxy: &FaultProxy) -> RedisBus {
        let url = self.redis.url_at(proxy.address());
        let config = RedisConfig { resp: self.resp, ..RedisConfig::from_url(&url).expect("a private URL") };
        RedisBus::new(config).expect("only the host, the port and the protocol are set")
    }

    /// The URL of the server itself, past the proxy.
    #[must_use]
    pub fn redis_url(&self) -> String {
        self.redis.url()
    }

    /// A node through this harness' proxy.
    ///
    /// # Panics
    /// When it cannot be opened.
    pub async fn node(&self, config: RouterConfig) -> Router {
        let bus = Arc::new(self.bus_through(&self.proxy));
        Router::open(bus, config).await.expect("the private server is there")
    }

    /// The connections that the server has now, but for the one that asks, one line each.
    ///
    /// # Panics
    /// When the server does not answer.
    pub async fn clients(&self) -> Vec<String> {
        let list = self.redis.command(&["CLIENT", "LIST"]).await.expect("the server answers").text();
        list.lines().filter(|line| !line.contains("cmd=client|list")).map(str::to_owned).collect()
    }
}

#[async_trait]
impl Harness for RedisHarness {
    fn name(&self) -> &str {
        &self.name
    }

    async fn bus(&self) -> Result<Arc<dyn Bus>> {
        Ok(Arc::new(self.bus_through(&self.proxy)))
    }

    fn faults(&self) -> Option<Arc<dyn Faults>> {
        Some(match self.by {
            FaultsBy::Broker => Arc::new(BrokerFaults(self.redis.clone())),
            FaultsBy::Proxy => self.proxy.clone(),
        })
    }
}

/// Faults of the server's own process.
struct BrokerFaults(Arc<Redis>);

impl fmt::Debug for BrokerFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BrokerFaults")
    }
}

#[async_trait]
impl Faults for BrokerFaults {
    async fn cut(&self) {
        for kind in ["pubsub", "normal"] {
            self.0.command(&["CLIENT", "KILL", "TYPE", kind]).await.expect("the server runs");
        }
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
