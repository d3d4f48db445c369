//! Does every message have a known fate while links come and go under load?

use std::time::Duration;

use backplane_core::{
    Backplane as _, BackplaneExt as _, Event, Gap, LocalConnection, MembershipChange, OutboundLimits,
    OverflowPolicy, Protocol, Registration, Target, UserId, outbound,
};
use tokio::sync::{broadcast, watch};

use super::fleet::{Fleet, Node, Stage};
use super::wait::{Events, Task, patience, within};
use crate::history::{Audience, AudienceKind, History, NodeLog, Outcome as Fate, Verdict};
use crate::{Broken, Outcome, bound, ensure};

const SENDERS: usize = 4;
const RECEIVERS: usize = 3;

/// Readers of this suite keep up, but share two cores with all else.
const ROOMY: OutboundLimits =
    OutboundLimits { messages: 1 << 22, bytes: 1 << 30, overflow: OverflowPolicy::Disconnect };

/// Every node sends all it can, to all connections, to a group and to users, and a history is kept of it.
#[derive(Debug)]
pub struct Load {
    history: History,
    accepted: watch::Sender<u64>,
    running: watch::Sender<bool>,
    senders: Vec<Task<Result<(), Broken>>>,
    readers: Vec<Task<()>>,
    registrations: Vec<Registration>,
}

impl Load {
    /// Starts it on all nodes of the fleet.
    ///
    /// # Errors
    /// [`Broken`] when a node takes no receiver.
    pub async fn start(fleet: &Fleet) -> Result<Self, Broken> {
        let history = History::new().with_grace(bound(Duration::from_secs(1)));
        let topics =
            [fleet.all_topic(), fleet.group_topic("g"), fleet.user_topic("u")].map(|topic| vec![topic]);
        let [all, group, user] = topics;
        let audiences = [
            (Target::all(), history.audience_on_topics(AudienceKind::All, "all", all)),
            (Target::group("g"), history.audience_on_topics(AudienceKind::Group, "group g", group)),
            (Target::user("u"), history.audience_on_topics(AudienceKind::User, "user u", user)),
        ];
        let mut load = Self {
            history,
            accepted: watch::Sender::default(),
            running: watch::Sender::new(true),
            senders: Vec::new(),
            readers: Vec::new(),
            registrations: Vec::new(),
        };
        let logs: Vec<NodeLog> =
            fleet.nodes.iter().map(|node| load.history.node(node.router.node_id())).collect();
        for (node, log) in fleet.nodes.iter().zip(&logs) {
            load.readers.push(Task::spawn(record_gaps(node.router.events(), log.clone())));
            for _ in 0..RECEIVERS {
                load.receive(node, log, &audiences).await?;
            }
        }
        for (node, log) in fleet.nodes.iter().zip(&logs) {
            for number in 0..SENDERS {
                load.send(node, log, audiences[number % audiences.len()].clone());
            }
        }
        Ok(load)
    }

    async fn receive(
        &mut self,
        node: &Node,
        log: &NodeLog,
        audiences: &[(Target, Audience)],
    ) -> Result<(), Broken> {
        let (sender, mut receiver) = outbound(ROOMY);
        let connection = LocalConnection {
            id: node.router.new_connection_id(),
            user: Some(UserId::from("u")),
            protocol: Protocol::JSON,
            outbound: sender,
        };
        let registration = node.router.register(connection).await?;
        node.router.update_group(MembershipChange::join(registration.connection(), "g")).await?;
        let log = log.receiver();
        for (_, audience) in audiences {
            audience.joined(&log);
        }
        self.registrations.push(registration);
        self.readers.push(Task::spawn(async move {
            while let Ok(item) = receiver.next_joined().await {
                log.delivered(&item.bytes);
            }
        }));
        Ok(())
    }

    fn send(&mut self, node: &Node, log: &NodeLog, (target, audience): (Target, Audience)) {
        let (router, log, accepted) = (node.router.clone(), log.sender(), self.accepted.clone());
        let mut running = self.running.subscribe();
        self.senders.push(Task::spawn(async move {
            while *running.borrow() {
                let stamp = log.begin(&audience);
                let outcome = within("a send to end", router.send(&target, &[], stamp.message(64))).await?;
                log.settle(stamp, Fate::of(&outcome));
                if outcome.is_ok() {
                    accepted.send_modify(|accepted| *accepted += 1);
                    continue;
                }
                tokio::select! {
                    up = router.wait_until_up() => up?,
                    _ = running.wait_for(|running| !running) => return Ok(()),
                }
            }
            Ok(())
        }));
    }

    /// Waits until `count` more messages were accepted, of all nodes together.
    ///
    /// # Errors
    /// [`Broken`] when they are not in time.
    pub async fn progress(&self, count: u64) -> Result<(), Broken> {
        let mut accepted = self.accepted.subscribe();
        let enough = *accepted.borrow() + count;
        let waited = async { accepted.wait_for(|accepted| *accepted >= enough).await.map(drop) };
        within("messages to be accepted", waited).await?.map_err(|_| Broken("the load ended".into()))
    }

    /// Stops sending, waits for what is under way and judges the run.
    ///
    /// # Errors
    /// [`Broken`] with the verdict when a message has no known fate.
    pub async fn judge(self) -> Result<Verdict, Broken> {
        self.running.send_replace(false);
        for sender in self.senders {
            sender.outcome("a sender").await??;
        }
        let verdict = self.history.settle(patience()).await;
        ensure!(verdict.is_clean(), "{verdict}");
        Ok(verdict)
    }
}

async fn record_gaps(mut events: broadcast::Receiver<Event>, log: NodeLog) {
    loop {
        match events.recv().await {
            Ok(Event::Gap(gap)) => log.gap(gap),
            Ok(_) => {}
            Err(broadcast::error::RecvError::Lagged(_)) => log.gap(Gap::lagged()),
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// One link after another is cut while three nodes send all they can. Each message is delivered once and in order, or
/// failed at its sender, or lies inside a gap that the receiver was told of; gaps are few.
pub(super) async fn links_cut_under_load_lose_nothing_in_silence(stage: Stage) -> Outcome {
    const CUTS: u64 = 6;
    const PROGRESS: u64 = 500;
    const SOON: Duration = Duration::from_secs(2);
    let fleet = Fleet::open(&stage, 3).await?;
    let load = Load::start(&fleet).await?;
    for cut in 0..CUTS {
        load.progress(PROGRESS).await?;
        let node = &fleet.nodes[usize::try_from(cut % 3).expect("a small number")];
        let mut events = Events::of(&node.router);
        node.tap.cut();
        let start = std::time::Instant::now();
        events
            .until("the link to be back", |event| matches!(event, Event::LinkUp { .. }).then_some(()))
            .await?;
        ensure!(start.elapsed() < bound(SOON), "a cut link was back after {:?}", start.elapsed());
    }
    load.progress(PROGRESS).await?;
    let nodes = fleet.nodes.len() as u64;
    let gaps: u64 = fleet.nodes.iter().map(|node| node.router.stats().gaps).sum();
    let verdict = load.judge().await?;
    // The node that was cut may miss something of each origin, the others something of that one.
    ensure!(gaps <= CUTS * (2 * nodes), "{CUTS} cuts of {nodes} nodes raised {gaps} gaps: {verdict}");
    fleet.end_disturbed().await
}
