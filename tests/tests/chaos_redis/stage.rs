//! A private Redis and two nodes, each behind a proxy of its own, and what the nodes say of their links.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backplane_conformance::broker::Redis;
use backplane_conformance::history::NodeLog;
use backplane_conformance::proxy::FaultProxy;
use backplane_core::{
    Backplane as _, Error, Event, Gap, HubName, Order, Router, RouterConfig, WireFormat, wire,
};
use backplane_core::{Bus as _, NodeId};
use backplane_redis::Resp;
use backplane_tests::redis::{FaultsBy, RedisHarness, bound, until};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

/// The heartbeat bound of the nodes where bounds are not multiplied.
pub(crate) const BOUND: Duration = Duration::from_secs(2);

/// The heartbeat bound of the nodes. Other bounds may grow by more: it stays below the deadline of a send, and every
/// scenario waits for it.
pub(crate) fn heartbeat() -> Duration {
    bound(BOUND).min(2 * BOUND)
}

/// How long nodes may take to say that a dead link is dead.
pub(crate) const NOTICED: Duration = Duration::from_secs(3);

/// The hub of the load.
pub(crate) const HUB: &str = "chaos";

/// Far more than it takes Redis to free a connection that was closed.
const FREED: Duration = Duration::from_secs(5);

pub(crate) struct Stage {
    harness: RedisHarness,
    pub(crate) nodes: [Node; 2],
    format: wire::Native,
}

pub(crate) struct Node {
    pub(crate) router: Router,
    pub(crate) proxy: FaultProxy,
}

impl Stage {
    /// `None`: Redis is not installed; the skip was printed.
    pub(crate) async fn open() -> Option<Self> {
        let harness = RedisHarness::require(Resp::V3, FaultsBy::Broker).await?;
        let prefix = format!("chaos-{}", NodeId::random());
        let format = wire::Native::new(&prefix).expect("a prefix of few bytes");
        let config = RouterConfig {
            prefix: Some(prefix),
            hub: HubName::from(HUB),
            heartbeat: heartbeat(),
            ..RouterConfig::default()
        };
        let nodes = [Node::open(&harness, &config).await, Node::open(&harness, &config).await];
        Some(Self { harness, nodes, format })
    }

    pub(crate) fn redis(&self) -> &Redis {
        self.harness.redis()
    }

    pub(crate) fn format(&self) -> &dyn WireFormat {
        &self.format
    }

    /// Both nodes leave, and nothing of them stays on the server.
    pub(crate) async fn close(self) {
        for node in &self.nodes {
            until("no call to wait and no frame to be queued", FREED, async || {
                let stats = node.router.stats();
                stats.pending == 0 && stats.queued_frames == 0 && stats.queued_bytes == 0
            })
            .await;
            node.router.shutdown().await.expect("the link is up again, so the node leaves in order");
        }
        let Self { harness, nodes, .. } = self;
        drop(nodes);
        until("every connection to be freed", FREED, async || harness.clients().await.is_empty()).await;
        let channels = harness.redis().channels().await.expect("the server answers");
        assert!(channels.is_empty(), "nobody is there, and yet these are subscribed: {channels:?}");
    }
}

impl Node {
    async fn open(harness: &RedisHarness, config: &RouterConfig) -> Self {
        let proxy = FaultProxy::start(harness.redis().address()).expect("a loopback port is free");
        let bus = Arc::new(harness.bus_through(&proxy));
        assert_eq!(bus.capabilities().order, Order::Total);
        let router = Router::open(bus, config.clone()).await.expect("the private server is there");
        Self { router, proxy }
    }
}

/// Writes down what a node says: its gaps into the history, its links here.
pub(crate) struct Watch {
    links: watch::Receiver<Vec<Change>>,
    task: JoinHandle<()>,
}

/// What became of a node's link, and when.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Up,
    Down(Instant, Error),
}

impl Watch {
    pub(crate) fn of(node: &Node, log: NodeLog) -> Self {
        let mut events = node.router.events();
        let (changed, links) = watch::channel(Vec::new());
        let task = tokio::spawn(async move {
            loop {
                let change = match events.recv().await {
                    Ok(Event::Gap(gap)) => {
                        log.gap(gap);
                        continue;
                    }
                    Ok(Event::LinkUp { .. }) => Change::Up,
                    Ok(Event::LinkDown { error }) => Change::Down(Instant::now(), error),
                    Ok(_) => continue,
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        log.gap(Gap::lagged());
                        continue;
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                };
                changed.send_modify(|links| links.push(change));
            }
        });
        Self { links, task }
    }

    /// Waits until the link is lost after `fault`; how long after, and why.
    pub(crate) async fn lost(&self, fault: Instant) -> (Duration, Error) {
        let mut links = self.links.clone();
        let first = |links: &Vec<Change>| {
            links.iter().find_map(|change| match change {
                Change::Down(at, error) if *at >= fault => Some((*at - fault, error.clone())),
                _ => None,
            })
        };
        let waited = tokio::time::timeout(bound(NOTICED), links.wait_for(|links| first(links).is_some()));
        let seen = waited.await.unwrap_or_else(|_| panic!("a dead link was not noticed in {NOTICED:?}"));
        first(&seen.expect("the node lives")).expect("it was just found")
    }

    /// How many links were lost, or attempts failed, so far.
    pub(crate) fn downs(&self) -> usize {
        self.links.borrow().iter().filter(|change| matches!(change, Change::Down(..))).count()
    }

    /// How many links came up after the first.
    pub(crate) fn ups(&self) -> usize {
        self.links.borrow().iter().filter(|change| matches!(change, Change::Up)).count()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
