//! A hundred writers on three nodes, each sending to everybody, to groups, users and connections, the next message as soon as
//! the last one was accepted, and a history of what was sent and what arrived.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backplane_conformance::bound;
use backplane_conformance::history::{
    Audience, AudienceKind, History, NodeLog, Outcome, ReceiverLog, SenderLog, Verdict,
};
use backplane_core::{
    Backplane as _, BackplaneExt as _, ErrorKind, GroupName, LocalConnection, MembershipChange,
    OutboundLimits, OverflowPolicy, Protocol, Registration, Router, Target, UserId, outbound,
};
use backplane_tests::redis::until;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::stage::{NODES, Node, Stage};

/// How many write at once, on all nodes together.
const WRITERS: usize = 100;

/// Receivers of each node.
const RECEIVERS: usize = 10;

/// Groups, with two members on each node, and users, with one connection on each.
const GROUPS: usize = RECEIVERS / 2;
const USERS: usize = RECEIVERS;

/// One message in so many goes to everybody.
const TO_ALL: usize = 25;

/// After a send that failed: the link is down, and nobody hammers at it.
const AFTER_FAILURE: Duration = Duration::from_millis(20);

/// How long a send may wait (the default of the router), and what the machine may add to it.
const SEND_DEADLINE: Duration = Duration::from_secs(5);
const LATE: Duration = Duration::from_millis(500);

/// How many more messages of each writer must be accepted before everything flows.
const PROGRESS: u64 = 3;

/// How long what was accepted may be under way at the end.
const ARRIVED: Duration = Duration::from_secs(10);

/// Readers keep up, but share two cores with all else.
const ROOMY: OutboundLimits =
    OutboundLimits { messages: 1 << 20, bytes: 1 << 26, overflow: OverflowPolicy::Disconnect };

type Address = (Target, Audience);

pub(crate) struct Load {
    history: History,
    running: watch::Sender<bool>,
    writers: JoinSet<()>,
    readers: JoinSet<()>,
    receivers: Vec<Arc<ReceiverLog>>,
    /// By writer: how many of its messages were accepted.
    accepted: Vec<watch::Receiver<u64>>,
    registrations: Vec<Registration>,
    start: Instant,
}

impl Load {
    pub(crate) async fn start(stage: &Stage) -> Self {
        let history = History::new().with_grace(bound(Duration::from_secs(1)));
        let all = (Target::all(), history.audience(AudienceKind::All, "all"));
        let groups: Vec<Address> = (0..GROUPS)
            .map(|index| format!("group {index}"))
            .map(|name| (Target::group(name.as_str()), history.audience(AudienceKind::Group, &name)))
            .collect();
        let users: Vec<Address> = (0..USERS)
            .map(|index| format!("user {index}"))
            .map(|name| (Target::user(name.as_str()), history.audience(AudienceKind::User, &name)))
            .collect();
        let mut load = Self {
            history,
            running: watch::Sender::new(true),
            writers: JoinSet::new(),
            readers: JoinSet::new(),
            receivers: Vec::new(),
            accepted: Vec::new(),
            registrations: Vec::new(),
            start: Instant::now(),
        };
        let mut connections = Vec::new();
        let mut logs = Vec::new();
        for node in &stage.nodes {
            let log = load.history.node(node.router.node_id());
            node.watch.record(log.clone());
            for index in 0..RECEIVERS {
                let (group, user) = (&groups[index % GROUPS], &users[index % USERS]);
                connections.push(load.receive(node, &log, &all.1, group, user).await);
            }
            logs.push(log);
        }
        let narrow: Arc<Vec<Address>> =
            Arc::new(groups.into_iter().chain(users).chain(connections).collect());
        load.start = Instant::now();
        for index in 0..WRITERS {
            let node = index % NODES;
            let log = logs[node].sender();
            load.write(index, stage.nodes[node].router.clone(), log, all.clone(), narrow.clone());
        }
        load
    }

    /// A connection, member of a group and of a user; its own address.
    async fn receive(
        &mut self,
        node: &Node,
        log: &NodeLog,
        all: &Audience,
        (group, members): &Address,
        (user, sessions): &Address,
    ) -> Address {
        let (Target::User(user), Target::Group(group)) = (user, group) else {
            panic!("a user and a group: {user:?}, {group:?}");
        };
        let (user, group): (UserId, GroupName) = (user.clone(), group.clone());
        let (sender, mut inbox) = outbound(ROOMY);
        let id = node.router.new_connection_id();
        let connection =
            LocalConnection { id: id.clone(), user: Some(user), protocol: Protocol::JSON, outbound: sender };
        let registration = node.router.register(connection).await.expect("the link is up");
        node.router.update_group(MembershipChange::join(&id, &group)).await.expect("the link is up");
        let receiver = Arc::new(log.receiver());
        let own = self.history.audience(AudienceKind::Connections, "one connection");
        for audience in [all, members, sessions, &own] {
            audience.joined(&receiver);
        }
        self.readers.spawn({
            let receiver = receiver.clone();
            async move {
                while let Ok(item) = inbox.next_joined().await {
                    receiver.delivered(&item.bytes);
                }
            }
        });
        self.receivers.push(receiver);
        self.registrations.push(registration);
        (Target::connection(&id), own)
    }

    /// One writer's own task.
    fn write(
        &mut self,
        index: usize,
        router: Router,
        log: SenderLog,
        all: Address,
        narrow: Arc<Vec<Address>>,
    ) {
        let (count, accepted) = watch::channel(0);
        self.accepted.push(accepted);
        let mut running = self.running.subscribe();
        self.writers.spawn(async move {
            for number in index.. {
                let (target, audience) = match number % TO_ALL {
                    0 => &all,
                    _ => &narrow[(number * 7 + index * 13) % narrow.len()],
                };
                let stamp = log.begin(audience);
                let sent = router.send(target, &[], stamp.message(128));
                let sent = tokio::time::timeout(SEND_DEADLINE + bound(LATE), sent).await;
                let result = sent.expect("no send outlives its deadline");
                log.settle(stamp, Outcome::of(&result));
                let pause = match result {
                    Ok(()) => {
                        count.send_modify(|count| *count += 1);
                        Duration::ZERO
                    }
                    Err(error) => {
                        assert!(
                            matches!(
                                error.kind(),
                                ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Overloaded
                            ),
                            "a send failed as no outage explains: {error}"
                        );
                        AFTER_FAILURE
                    }
                };
                let stopped = running.wait_for(|running| !running);
                if tokio::time::timeout(pause, stopped).await.is_ok() {
                    return;
                }
            }
        });
    }

    /// How long it has lasted.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Waits until more messages of every writer were accepted, and every connection received.
    pub(crate) async fn flows(&self) {
        let arrived: Vec<usize> = self.receivers.iter().map(|receiver| receiver.count()).collect();
        let enough: Vec<u64> = self.accepted.iter().map(|count| *count.borrow() + PROGRESS).collect();
        for (count, enough) in self.accepted.iter().zip(enough) {
            let mut count = count.clone();
            let waited = count.wait_for(|count| *count >= enough);
            let waited = tokio::time::timeout(bound(2 * SEND_DEADLINE), waited).await;
            waited.expect("every writer writes").expect("its task lives");
        }
        for (receiver, before) in self.receivers.iter().zip(arrived) {
            until("every connection to receive", SEND_DEADLINE, async || receiver.count() > before).await;
        }
    }

    /// Stops writing, waits for what is under way, and judges.
    pub(crate) async fn judge(mut self, stage: &Stage) -> Verdict {
        self.running.send_replace(false);
        while let Some(ended) = self.writers.join_next().await {
            ended.expect("a writer ended as it should");
        }
        for node in &stage.nodes {
            node.router.wait_until_up().await.expect("the node lives");
        }
        let verdict = self.history.settle(bound(ARRIVED)).await;
        drop(self.registrations);
        while let Some(ended) = self.readers.join_next().await {
            ended.expect("a reader ended as it should");
        }
        verdict
    }
}
