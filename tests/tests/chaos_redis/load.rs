//! A hundred connections on each of two nodes, every one of them sending to everybody, groups, users and connections,
//! and a history of what was sent and what arrived.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use backplane_conformance::history::{
    Audience, AudienceKind, History, NodeLog, Outcome, ReceiverLog, SenderLog, Stamp, Verdict, stamps,
};
use backplane_core::{
    Backplane as _, BackplaneExt as _, ConnectionId, ErrorKind, GroupName, HubName, LocalConnection,
    MembershipChange, OutboundLimits, OverflowPolicy, Protocol, Registration, Router, Target, UserId,
    outbound,
};
use backplane_tests::redis::{bound, until};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::stage::{HUB, Node, Stage};

/// Connections of each node.
const CONNECTIONS: usize = 100;

/// Groups, with ten members each, five on either node.
const GROUPS: usize = 20;

/// Users, with four connections each, two on either node.
const USERS: usize = 50;

/// How often a connection sends. With 200 of them that is 1,000 messages and some 18,000 deliveries a second: a load
/// that leaves two cores the time to be on time.
const PACE: Duration = Duration::from_millis(200);

/// How long a send may wait (the default of the router), and what the machine may add to it.
const SEND_DEADLINE: Duration = Duration::from_secs(5);
const LATE: Duration = Duration::from_millis(500);

/// Readers keep up, but share two cores with all else.
const ROOMY: OutboundLimits =
    OutboundLimits { messages: 1 << 20, bytes: 1 << 26, overflow: OverflowPolicy::Disconnect };

/// The name of the group and of the user of the two probes.
const PROBE: &str = "probe";

type Address = (Target, Audience);

pub(crate) struct Load {
    history: History,
    pub(crate) logs: [NodeLog; 2],
    running: watch::Sender<bool>,
    senders: JoinSet<()>,
    readers: JoinSet<()>,
    /// By connection: what it received, and how many of its messages were accepted.
    receivers: Vec<Arc<ReceiverLog>>,
    accepted: Vec<watch::Receiver<u64>>,
    registrations: Vec<Registration>,
    probes: [Probe; 2],
}

/// A further connection of each node, for messages that are waited for one by one.
struct Probe {
    router: Router,
    sender: SenderLog,
    addresses: Vec<Address>,
    /// Those of its own connection.
    own: Address,
    seen: watch::Receiver<HashSet<Stamp>>,
}

impl Load {
    pub(crate) async fn start(stage: &Stage) -> Self {
        let history = History::new().with_grace(bound(Duration::from_secs(1)));
        let logs = [0, 1].map(|node| history.node(stage.nodes[node].router.node_id()));
        let names = Names::of(stage, &history);
        let mut readers = JoinSet::new();
        let mut receivers = Vec::new();
        let mut registrations = Vec::new();
        // The first two senders of the history: that is how the probes' readers know their stamps.
        let probing = [0, 1].map(|node| logs[node].sender());
        let mut probes = Vec::new();
        for ((node, log), sender) in stage.nodes.iter().zip(&logs).zip(probing) {
            let (registration, probe) = names.probe(node, log, sender, &history, &mut readers).await;
            registrations.push(registration);
            probes.push(probe);
        }
        let mut addresses = Vec::new();
        for index in 0..2 * CONNECTIONS {
            let (node, log) = (&stage.nodes[index % 2], &logs[index % 2]);
            let (registration, receiver, own) =
                names.connect(index / 2, node, log, &history, &mut readers).await;
            registrations.push(registration);
            receivers.push(receiver);
            addresses.push(own);
        }
        let addresses = Arc::new(names.addresses(&history, &addresses, &receivers));
        let mut load = Self {
            history,
            logs,
            running: watch::Sender::new(true),
            senders: JoinSet::new(),
            readers,
            receivers,
            accepted: Vec::new(),
            registrations,
            probes: probes.try_into().ok().expect("one for each node"),
        };
        let start = Instant::now();
        for index in 0..2 * CONNECTIONS {
            let offset = PACE.mul_f64(index as f64 / (2 * CONNECTIONS) as f64);
            load.send(index, &stage.nodes[index % 2].router, addresses.clone(), start + offset);
        }
        load
    }

    /// One connection's own task: a message each [`PACE`], one at a time.
    fn send(&mut self, index: usize, router: &Router, addresses: Arc<Vec<Vec<Address>>>, start: Instant) {
        let (router, log) = (router.clone(), self.logs[index % 2].sender());
        let (count, accepted) = watch::channel(0);
        self.accepted.push(accepted);
        let mut running = self.running.subscribe();
        let mut ticks = interval_at(start, PACE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.senders.spawn(async move {
            for number in index.. {
                tokio::select! {
                    _ = running.wait_for(|running| !running) => return,
                    _ = ticks.tick() => {}
                }
                let of_kind = &addresses[KINDS[number % KINDS.len()]];
                let (target, audience) = &of_kind[(number * 7 + index * 13) % of_kind.len()];
                let stamp = log.begin(audience);
                let sent = router.send(target, &[], stamp.message(32));
                let deadline = SEND_DEADLINE + bound(LATE);
                let result =
                    tokio::time::timeout(deadline, sent).await.expect("no send outlives its deadline");
                log.settle(stamp, Outcome::of(&result));
                match result {
                    Ok(()) => count.send_modify(|count| *count += 1),
                    Err(error) => assert!(
                        matches!(
                            error.kind(),
                            ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Overloaded
                        ),
                        "a send failed as no outage explains: {error}"
                    ),
                }
            }
        });
    }

    /// From every node, by every kind of target, to every node; then to every connection and from every connection.
    pub(crate) async fn flows(&self) {
        for (from, to) in [(0, 1), (1, 0)] {
            self.probes[from].reaches([&self.probes[from], &self.probes[to]]).await;
        }
        let arrived: Vec<usize> = self.receivers.iter().map(|receiver| receiver.count()).collect();
        for (receiver, before) in self.receivers.iter().zip(arrived) {
            until("every connection to receive", SEND_DEADLINE, async || receiver.count() > before).await;
        }
        self.progress(1).await;
    }

    /// Waits until so many more messages were accepted of every connection.
    pub(crate) async fn progress(&self, messages: u64) {
        let enough: Vec<u64> = self.accepted.iter().map(|count| *count.borrow() + messages).collect();
        for (count, enough) in self.accepted.iter().zip(enough) {
            let mut count = count.clone();
            let waited = count.wait_for(|count| *count >= enough);
            let waited = tokio::time::timeout(bound(2 * SEND_DEADLINE), waited).await;
            waited.expect("every connection sends").expect("its task lives");
        }
    }

    /// Stops sending, waits for what is under way, and judges.
    pub(crate) async fn judge(mut self) -> Verdict {
        self.running.send_replace(false);
        while let Some(ended) = self.senders.join_next().await {
            ended.expect("a sender ended as it should");
        }
        let verdict = self.history.settle(bound(Duration::from_secs(10))).await;
        drop(self.registrations);
        while let Some(ended) = self.readers.join_next().await {
            ended.expect("a reader ended as it should");
        }
        verdict
    }
}

/// What kinds of targets a connection sends to in turn; an index into [`Names::addresses`].
const KINDS: [usize; 20] = [0, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 3, 1];

/// Who is owed what. The topics are known, so that a gap which names another one excuses nothing.
struct Names<'a> {
    stage: &'a Stage,
    hub: HubName,
    all: Address,
    groups: Vec<Address>,
    users: Vec<Address>,
    probe_group: Address,
    probe_user: Address,
}

impl<'a> Names<'a> {
    fn of(stage: &'a Stage, history: &History) -> Self {
        let hub = HubName::from(HUB);
        let all_topics = stage.format().hub_topics(&hub).into_iter().map(|(topic, _)| topic).collect();
        let group = |name: &str| {
            let topics = vec![stage.format().group_topic(&hub, &GroupName::from(name))];
            (Target::group(name), history.audience_on_topics(AudienceKind::Group, name, topics))
        };
        let user = |name: &str| {
            let topics = vec![stage.format().user_topic(&hub, &UserId::from(name))];
            (Target::user(name), history.audience_on_topics(AudienceKind::User, name, topics))
        };
        Self {
            stage,
            all: (Target::all(), history.audience_on_topics(AudienceKind::All, "all", all_topics)),
            groups: (0..GROUPS).map(|index| group(&format!("group {index}"))).collect(),
            users: (0..USERS).map(|index| user(&format!("user {index}"))).collect(),
            probe_group: group(PROBE),
            probe_user: user(PROBE),
            hub,
        }
    }

    /// All targets of the load, by kind.
    fn addresses(
        &self,
        history: &History,
        own: &[Address],
        receivers: &[Arc<ReceiverLog>],
    ) -> Vec<Vec<Address>> {
        let pairs = (0..GROUPS / 2).map(|pair| {
            let names = [2 * pair, 2 * pair + 1].map(|index| format!("group {index}"));
            let topics = names
                .iter()
                .map(|name| self.stage.format().group_topic(&self.hub, &GroupName::from(name.as_str())));
            let audience =
                history.audience_on_topics(AudienceKind::Group, &names.join(" and "), topics.collect());
            for (index, receiver) in receivers.iter().enumerate() {
                if (index / 2 % GROUPS) / 2 == pair {
                    audience.joined(receiver);
                }
            }
            (Target::groups(names), audience)
        });
        let lists = (0..own.len()).map(|index| {
            let chosen = [index, (index + 31) % own.len(), (index + 62) % own.len()];
            let ids = chosen.iter().map(|&index| match &own[index].0 {
                Target::Connection(id) => id.clone(),
                other => panic!("a connection's own target is {other:?}"),
            });
            let ids: Vec<ConnectionId> = ids.collect();
            let audience = history.audience(AudienceKind::Connections, "three connections");
            for index in chosen {
                audience.joined(&receivers[index]);
            }
            (Target::connections(ids), audience)
        });
        let (pairs, lists) = (pairs.collect(), lists.collect());
        vec![vec![self.all.clone()], self.groups.clone(), self.users.clone(), own.to_vec(), pairs, lists]
    }

    /// Registers a connection of the load.
    async fn connect(
        &self,
        index: usize,
        node: &Node,
        log: &NodeLog,
        history: &History,
        readers: &mut JoinSet<()>,
    ) -> (Registration, Arc<ReceiverLog>, Address) {
        let (group, user) = (&self.groups[index % GROUPS], &self.users[index % USERS]);
        let (registration, mut inbox) = register(node, user, group).await;
        let id = registration.connection().clone();
        let receiver = Arc::new(log.receiver());
        let own = history.audience(AudienceKind::Connections, "one connection");
        for audience in [&self.all.1, &group.1, &user.1, &own] {
            audience.joined(&receiver);
        }
        readers.spawn({
            let receiver = receiver.clone();
            async move {
                while let Ok(item) = inbox.next_joined().await {
                    receiver.delivered(&item.bytes);
                }
            }
        });
        (registration, receiver, (Target::connection(id), own))
    }

    /// Registers a probe.
    async fn probe(
        &self,
        node: &Node,
        log: &NodeLog,
        sender: SenderLog,
        history: &History,
        readers: &mut JoinSet<()>,
    ) -> (Registration, Probe) {
        let (registration, mut inbox) = register(node, &self.probe_user, &self.probe_group).await;
        let receiver = log.receiver();
        let own = history.audience(AudienceKind::Connections, "a probe");
        for audience in [&self.all.1, &self.probe_group.1, &self.probe_user.1, &own] {
            audience.joined(&receiver);
        }
        let (arrived, seen) = watch::channel(HashSet::new());
        readers.spawn(async move {
            while let Ok(item) = inbox.next_joined().await {
                receiver.delivered(&item.bytes);
                let probes = stamps(&item.bytes).flatten().filter(|stamp| stamp.sender < 2);
                arrived.send_modify(|arrived| arrived.extend(probes));
            }
        });
        let addresses = vec![self.all.clone(), self.probe_group.clone(), self.probe_user.clone()];
        let own = (Target::connection(registration.connection()), own);
        (registration, Probe { router: node.router.clone(), sender, addresses, own, seen })
    }
}

async fn register(
    node: &Node,
    user: &Address,
    group: &Address,
) -> (Registration, backplane_core::OutboundReceiver) {
    let (Target::User(user), Target::Group(group)) = (&user.0, &group.0) else {
        panic!("a user and a group: {user:?}, {group:?}");
    };
    let (sender, inbox) = outbound(ROOMY);
    let id = node.router.new_connection_id();
    let connection =
        LocalConnection { id, user: Some(user.clone()), protocol: Protocol::JSON, outbound: sender };
    let registration = node.router.register(connection).await.expect("the link is up");
    let join = MembershipChange::join(registration.connection(), group);
    node.router.update_group(join).await.expect("the link is up");
    (registration, inbox)
}

impl Probe {
    /// Sends to every kind of target, again until it is accepted, and waits until it arrived at `probes`.
    async fn reaches(&self, probes: [&Probe; 2]) {
        for address in &self.addresses {
            let stamp = self.accepted(address).await;
            for probe in probes {
                probe.received(stamp).await;
            }
        }
        for probe in probes {
            let stamp = self.accepted(&probe.own).await;
            probe.received(stamp).await;
        }
    }

    async fn accepted(&self, (target, audience): &Address) -> Stamp {
        loop {
            let stamp = self.sender.begin(audience);
            let result = self.router.send(target, &[], stamp.message(32)).await;
            self.sender.settle(stamp, Outcome::of(&result));
            match result {
                Ok(()) => return stamp,
                Err(error) => assert!(error.is_retryable(), "a probe cannot be sent: {error}"),
            }
            self.router.wait_until_up().await.expect("the node lives");
        }
    }

    async fn received(&self, stamp: Stamp) {
        let mut seen = self.seen.clone();
        seen.wait_for(|seen| seen.contains(&stamp)).await.expect("its reader lives");
    }
}
