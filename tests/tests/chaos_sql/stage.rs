//! A private database and three nodes on it, and what the nodes say of their links.

use std::time::{Duration, Instant};

use backplane_conformance::bound;
use backplane_conformance::history::NodeLog;
use backplane_conformance::proxy::FaultProxy;
use backplane_core::{Backplane as _, Error, Event, Gap, HubName, LossReason, NodeId, Router, RouterConfig};
use backplane_tests::redis::until;
use backplane_tests::sql::Database;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

/// How many nodes there are.
pub(crate) const NODES: usize = 3;

/// How long nodes may take to say that a dead link is dead: the heartbeat bound of the runs with faults, and what the
/// machine adds.
const NOTICED: Duration = Duration::from_secs(3);

/// Far more than it takes to answer what was under way.
const SETTLED: Duration = Duration::from_secs(5);

pub(crate) struct Stage {
    pub(crate) database: Database,
    pub(crate) nodes: Vec<Node>,
}

pub(crate) struct Node {
    pub(crate) router: Router,
    pub(crate) watch: Watch,
    /// Its own, if it has one.
    pub(crate) proxy: Option<FaultProxy>,
}

impl Stage {
    /// Nodes that are up, each with a bus of its own: with `parameters` in its URL, through a proxy or not.
    pub(crate) async fn open(
        database: Database,
        parameters: &str,
        config: RouterConfig,
        with_proxies: bool,
    ) -> Self {
        // A database that is not ours may hold the log of another run.
        let prefix = format!("chaos-{}", NodeId::random());
        let config = RouterConfig { prefix: Some(prefix), hub: HubName::from("chaos"), ..config };
        let mut nodes = Vec::new();
        for _ in 0..NODES {
            let proxy = if with_proxies { database.proxy() } else { None };
            let bus = match &proxy {
                Some(proxy) => database.bus_through(proxy, parameters),
                None => database.bus(parameters),
            };
            let router = Router::open(bus, config.clone()).await.expect("the database lets us in");
            let watch = Watch::of(&router);
            nodes.push(Node { router, watch, proxy });
        }
        Self { database, nodes }
    }

    /// The nodes leave.
    pub(crate) async fn close(self) {
        for node in &self.nodes {
            until("no frame to be queued", SETTLED, async || {
                let stats = node.router.stats();
                stats.queued_frames == 0 && stats.queued_bytes == 0
            })
            .await;
            node.router.shutdown().await.expect("the link is up, so the node leaves in order");
        }
    }
}

/// Writes down what a node says.
pub(crate) struct Watch {
    said: watch::Receiver<Vec<Said>>,
    /// Where gaps go besides.
    log: watch::Sender<Option<NodeLog>>,
    task: JoinHandle<()>,
}

/// What a node said, and when.
#[derive(Clone, Debug)]
enum Said {
    Up { resumed: bool },
    Down(Instant, Error),
    Gap(LossReason),
}

impl Watch {
    fn of(router: &Router) -> Self {
        let mut events = router.events();
        let (say, said) = watch::channel(Vec::new());
        let (log, gaps) = watch::channel(None::<NodeLog>);
        let task = tokio::spawn(async move {
            loop {
                let gap = match events.recv().await {
                    Ok(Event::Gap(gap)) => gap,
                    Ok(Event::LinkUp { resumed, .. }) => {
                        say.send_modify(|said| said.push(Said::Up { resumed }));
                        continue;
                    }
                    Ok(Event::LinkDown { error }) => {
                        say.send_modify(|said| said.push(Said::Down(Instant::now(), error)));
                        continue;
                    }
                    Ok(_) => continue,
                    Err(broadcast::error::RecvError::Lagged(_)) => Gap::lagged(),
                    Err(broadcast::error::RecvError::Closed) => return,
                };
                let reason = gap.reason;
                if let Some(log) = &*gaps.borrow() {
                    log.gap(gap);
                }
                say.send_modify(|said| said.push(Said::Gap(reason)));
            }
        });
        Self { said, log, task }
    }

    /// From now on gaps are part of a history too.
    pub(crate) fn record(&self, log: NodeLog) {
        self.log.send_replace(Some(log));
    }

    /// Waits until the link is lost after `fault`; how long after, and why.
    pub(crate) async fn lost(&self, fault: Instant) -> (Duration, Error) {
        let mut said = self.said.clone();
        let first = |said: &Vec<Said>| {
            said.iter().find_map(|said| match said {
                Said::Down(at, error) if *at >= fault => Some((*at - fault, error.clone())),
                _ => None,
            })
        };
        let waited = tokio::time::timeout(bound(NOTICED), said.wait_for(|said| first(said).is_some())).await;
        let seen = waited.unwrap_or_else(|_| panic!("a dead link was not noticed in {NOTICED:?}"));
        first(&seen.expect("the node lives")).expect("it was just found")
    }

    /// Of each link after the first: whether it continued where the one before it had ended.
    pub(crate) fn resumed(&self) -> Vec<bool> {
        let resumed = |said: &Said| if let Said::Up { resumed } = said { Some(*resumed) } else { None };
        self.said.borrow().iter().filter_map(resumed).collect()
    }

    /// Why something may have been lost, as often as it was told.
    pub(crate) fn gaps(&self) -> Vec<LossReason> {
        let reason = |said: &Said| if let Said::Gap(reason) = said { Some(*reason) } else { None };
        self.said.borrow().iter().filter_map(reason).collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
