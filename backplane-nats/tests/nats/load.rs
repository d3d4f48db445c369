//! Nodes under load while their server suffers: how soon they are back, and a history that judges what arrived.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backplane_conformance::bound;
use backplane_conformance::broker::Broker as _;
use backplane_conformance::history::{Audience, AudienceKind, History, Outcome, Verdict};
use backplane_core::{
    Backplane as _, Event, Gap, GroupName, LocalConnection, LossReason, MembershipChange, OutboundLimits,
    OverflowPolicy, Protocol, Registration, Router, RouterConfig, Target, outbound,
};
use backplane_nats::NatsBus;
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;

use crate::harness::{DEADLINE, FaultsBy, NatsHarness, bus, cluster};

const NODES: usize = 3;
const WRITERS: usize = 12;

/// The heartbeat bound of the nodes. Other bounds may grow by more: a run waits until a freeze is noticed.
fn heartbeat() -> Duration {
    const SHORT: Duration = Duration::from_secs(2);
    bound(SHORT).min(2 * SHORT)
}

const ROOMY: OutboundLimits =
    OutboundLimits { messages: 1 << 20, bytes: 1 << 26, overflow: OverflowPolicy::Disconnect };

/// Three nodes, a receiver on each, writers on all.
struct Load {
    history: History,
    routers: Vec<Router>,
    registrations: Vec<Registration>,
    running: watch::Sender<bool>,
    tasks: JoinSet<()>,
    readers: JoinSet<()>,
    accepted: Vec<watch::Receiver<u64>>,
    /// What the nodes said of gaps and of links that are up.
    gaps: Arc<Mutex<Vec<LossReason>>>,
    resumed: Arc<Mutex<Vec<bool>>>,
}

impl Load {
    /// Three nodes over these buses.
    async fn start(buses: [NatsBus; NODES], heartbeat: Duration) -> Self {
        let mut load = Self {
            history: History::new().with_grace(bound(Duration::from_secs(1))),
            routers: Vec::new(),
            registrations: Vec::new(),
            running: watch::Sender::new(true),
            tasks: JoinSet::new(),
            readers: JoinSet::new(),
            accepted: Vec::new(),
            gaps: Arc::default(),
            resumed: Arc::default(),
        };
        let group = GroupName::from("room");
        let targets: Arc<[(Target, Audience)]> = Arc::new([
            (Target::all(), load.history.audience(AudienceKind::All, "all")),
            (Target::group("room"), load.history.audience(AudienceKind::Group, "room")),
        ]);
        for bus in buses {
            let config = RouterConfig { heartbeat, ..RouterConfig::default() };
            let router = Router::open(Arc::new(bus), config).await.unwrap();
            load.join(&router, &group, &targets).await;
            load.routers.push(router);
        }
        for index in 0..WRITERS {
            load.write(index, targets.clone());
        }
        load
    }

    async fn join(&mut self, router: &Router, group: &GroupName, targets: &[(Target, Audience)]) {
        let log = self.history.node(router.node_id());
        let (gaps, resumed, gap_log) = (self.gaps.clone(), self.resumed.clone(), log.clone());
        let mut events = router.events();
        self.readers.spawn(async move {
            loop {
                let gap = match events.recv().await {
                    Ok(Event::Gap(gap)) => gap,
                    Ok(Event::LinkUp { resumed: did, .. }) => {
                        resumed.lock().push(did);
                        continue;
                    }
                    Ok(Event::Closed) | Err(broadcast::error::RecvError::Closed) => return,
                    Ok(_) => continue,
                    Err(broadcast::error::RecvError::Lagged(_)) => Gap::lagged(),
                };
                gaps.lock().push(gap.reason);
                gap_log.gap(gap);
            }
        });
        let (sender, mut inbox) = outbound(ROOMY);
        let id = router.new_connection_id();
        let connection =
            LocalConnection { id: id.clone(), user: None, protocol: Protocol::JSON, outbound: sender };
        self.registrations.push(router.register(connection).await.unwrap());
        router.update_group(MembershipChange::join(&id, group)).await.unwrap();
        let receiver = log.receiver();
        for (_, audience) in targets {
            audience.joined(&receiver);
        }
        self.readers.spawn(async move {
            while let Ok(item) = inbox.next_joined().await {
                receiver.delivered(&item.bytes);
            }
        });
    }

    fn write(&mut self, index: usize, targets: Arc<[(Target, Audience)]>) {
        let router = self.routers[index % NODES].clone();
        let log = self.history.node(router.node_id()).sender();
        let (count, accepted) = watch::channel(0);
        self.accepted.push(accepted);
        let mut running = self.running.subscribe();
        self.tasks.spawn(async move {
            for number in index.. {
                let (target, audience) = &targets[number % targets.len()];
                let stamp = log.begin(audience);
                let sent = router.send(target, &[], stamp.message(128)).await;
                log.settle(stamp, Outcome::of(&sent));
                let pause = match sent {
                    Ok(()) => {
                        count.send_modify(|count| *count += 1);
                        Duration::from_millis(1)
                    }
                    Err(_) => Duration::from_millis(20),
                };
                if tokio::time::timeout(pause, running.wait_for(|running| !running)).await.is_ok() {
                    return;
                }
            }
        });
    }

    /// Until every writer was accepted some more.
    async fn flows(&self) {
        for accepted in &self.accepted {
            let mut accepted = accepted.clone();
            let enough = *accepted.borrow() + 5;
            let waited = tokio::time::timeout(DEADLINE, accepted.wait_for(|count| *count >= enough)).await;
            waited.expect("every writer writes").unwrap();
        }
    }

    async fn all(&self, up: bool) {
        for router in &self.routers {
            let mut health = router.health();
            let waited = tokio::time::timeout(DEADLINE, health.wait_for(|health| health.is_up() == up)).await;
            waited.expect("the nodes notice").unwrap();
        }
    }

    async fn judge(mut self) -> Verdict {
        self.running.send_replace(false);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        self.all(true).await;
        let verdict = self.history.settle(bound(Duration::from_secs(10))).await;
        for router in &self.routers {
            router.shutdown().await.unwrap();
        }
        verdict
    }
}

/// Killed and restarted, frozen until the nodes notice, cut: what it takes to come back, and what the history says.
async fn suffers(parameters: &str) -> Option<(Vec<LossReason>, Vec<bool>, u64)> {
    let harness = NatsHarness::require(FaultsBy::Server, parameters).await?;
    let load = Load::start(std::array::from_fn(|_| harness.open()), heartbeat()).await;
    load.flows().await;
    let most = bound(Duration::from_secs(2));

    harness.nats.kill();
    load.all(false).await;
    // The outage has to outlast a few attempts to connect.
    tokio::time::sleep(Duration::from_millis(500)).await;
    harness.nats.restart().await.unwrap();
    let accepting = Instant::now();
    load.all(true).await;
    let after_kill = accepting.elapsed();
    load.flows().await;

    harness.nats.freeze().unwrap();
    load.all(false).await;
    harness.nats.thaw().unwrap();
    let accepting = Instant::now();
    load.all(true).await;
    let after_freeze = accepting.elapsed();
    load.flows().await;

    let ups = load.resumed.lock().len();
    harness.proxy.cut();
    let accepting = Instant::now();
    // An end that nobody notices takes no time at all: every node says that it is up again.
    while load.resumed.lock().len() < ups + NODES {
        assert!(accepting.elapsed() < DEADLINE, "not every node came back");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let after_cut = accepting.elapsed();
    load.flows().await;

    println!(
        "{parameters}: back {after_kill:?} after a restart, {after_freeze:?} after a freeze, {after_cut:?} after a cut"
    );
    assert!(after_kill < most && after_freeze < most && after_cut < most);
    let (gaps, resumed) = (load.gaps.clone(), load.resumed.clone());
    let verdict = load.judge().await;
    println!("{verdict}");
    verdict.assert_clean();
    let found = (gaps.lock().clone(), resumed.lock().clone(), verdict.counts.excused);
    Some(found)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn core_nodes_come_back_and_lose_nothing_in_silence() {
    let Some((gaps, resumed, _)) = suffers("").await else { return };
    assert!(!gaps.is_empty() && resumed.iter().all(|resumed| !resumed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn durable_nodes_come_back_and_lose_nothing_at_all() {
    let Some((gaps, resumed, excused)) = suffers("durable=true&storage=file").await else { return };
    assert_eq!(excused, 0, "everything that was accepted arrived");
    // Frames that failed at their sender leave holes in its numbers.
    assert!(gaps.iter().all(|gap| *gap == LossReason::Missing), "{gaps:?}");
    assert!(resumed.len() >= 3 * NODES && resumed.iter().all(|resumed| *resumed), "{resumed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn durable_nodes_in_memory_are_told_of_a_restart_alone() {
    let Some((gaps, resumed, _)) = suffers("durable=true").await else { return };
    let told = gaps.iter().filter(|gap| **gap == LossReason::Reconnect).count();
    assert_eq!(told, NODES, "one per node and restart: {gaps:?}");
    assert_eq!(resumed.iter().filter(|resumed| !**resumed).count(), NODES, "{resumed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_a_cluster_leave_a_lame_duck_and_lose_nothing_in_silence() {
    let Some([one, two]) = cluster().await else { return };
    let there = bus(&format!("nats://{},{}", one.address(), two.address()));
    let also_there = bus(&format!("nats://{},{}", one.address(), two.address()));
    let elsewhere = bus(&format!("nats://{},{}", two.address(), one.address()));
    let load = Load::start([there, also_there, elsewhere], bound(Duration::from_secs(2))).await;
    load.flows().await;
    assert_eq!(one.clients().await.unwrap().len(), 2);
    one.lame_duck().unwrap();
    let start = Instant::now();
    // Two links end and come back, the third stays.
    while load.resumed.lock().len() < 2 {
        assert!(start.elapsed() < DEADLINE, "the nodes move");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let moved = start.elapsed();
    assert_eq!(two.clients().await.unwrap().len(), NODES);
    load.all(true).await;
    load.flows().await;
    let (gaps, resumed) = (load.gaps.clone(), load.resumed.clone());
    let verdict = load.judge().await;
    println!("moved within {moved:?}, told of {:?}: {verdict}", gaps.lock());
    assert!(moved < bound(Duration::from_secs(2)));
    verdict.assert_clean();
    assert_eq!(resumed.lock().len(), 2, "each moved once");
}
