//! Acknowledged calls from either node to the other, all the time: each has to end before its deadline, with an answer
//! or with an error that says what happened.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backplane_core::{
    AbortReason, Backplane as _, BackplaneExt as _, ClientInvocation, ClientResult, ConnectionId,
    EncodedMessage, ErrorKind, LocalConnection, MembershipChange, OutboundLimits, Protocol, Registration,
    Result, Router, outbound,
};
use backplane_tests::redis::bound;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::stage::Stage;

/// The hub of the calls: away from the load, whose messages no answering client wants to read.
const HUB: &str = "calls";

/// How long a call may wait. Longer than a short freeze and what a slow machine needs after it, shorter than a long one.
fn deadline() -> Duration {
    bound(Duration::from_millis(2_500)).min(ACK_DEADLINE)
}

/// The router's own deadline, of calls that have none of their own.
const ACK_DEADLINE: Duration = Duration::from_secs(5);

/// What the machine may add.
const LATE: Duration = Duration::from_millis(250);

/// Between two calls of one task.
const PAUSE: Duration = Duration::from_millis(20);

/// What is called, each kind by a task of its own on each node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Ask a client that answers.
    Invoke,
    /// Ask a client that never does.
    InvokeSilent,
    /// Join and leave in turn.
    UpdateGroup,
    /// End a connection that is not there.
    Abort,
    /// Register a connection and drop it.
    Register,
}

const ALL: [Kind; 5] = [Kind::Invoke, Kind::InvokeSilent, Kind::UpdateGroup, Kind::Abort, Kind::Register];

/// How calls ended: an answer (`None`) or an error.
type Ends = BTreeMap<(Kind, Option<&'static str>), u64>;

pub(crate) struct Calls {
    running: watch::Sender<bool>,
    callers: JoinSet<()>,
    clients: JoinSet<()>,
    ends: Arc<Mutex<Ends>>,
    kinds: Vec<Arc<Caller>>,
}

impl Calls {
    pub(crate) async fn start(stage: &Stage) -> Self {
        let mut calls = Self {
            running: watch::Sender::new(true),
            callers: JoinSet::new(),
            clients: JoinSet::new(),
            ends: Arc::default(),
            kinds: Vec::new(),
        };
        let mut hubs = Vec::new();
        let mut targets = Vec::new();
        for node in &stage.nodes {
            let hub = node.router.hub(HUB).await.expect("the link is up");
            targets.push([calls.client(&hub, true).await, calls.client(&hub, false).await]);
            hubs.push(hub);
        }
        for node in 0..2 {
            for kind in ALL {
                let caller = Arc::new(Caller {
                    node,
                    kind,
                    hub: hubs[node].clone(),
                    answering: targets[1 - node][0].clone(),
                    silent: targets[1 - node][1].clone(),
                    absent: hubs[1 - node].new_connection_id(),
                });
                calls.kinds.push(caller.clone());
                calls.call(caller);
            }
        }
        calls
    }

    async fn client(&mut self, hub: &Router, answers: bool) -> ConnectionId {
        let (registration, mut inbox) = register(hub).await.expect("the link is up");
        let id = registration.connection().clone();
        self.clients.spawn(async move {
            while let Ok(item) = inbox.next().await {
                let question = String::from_utf8(item.bytes.to_vec()).expect("a question is its own id");
                if answers {
                    // Refused while the link is down: the asker hears of that anyway.
                    let _ = registration
                        .complete(&question.as_str().into(), ClientResult::value(Protocol::JSON, question));
                }
            }
        });
        id
    }

    fn call(&mut self, caller: Arc<Caller>) {
        let mut running = self.running.subscribe();
        let ends = self.ends.clone();
        self.callers.spawn(async move {
            let mut number = 0;
            while *running.borrow() {
                number += 1;
                let (start, deadline) = (Instant::now(), caller.deadline());
                let late = deadline + bound(LATE);
                let ended = tokio::time::timeout(late, caller.once(number)).await;
                let ended = ended.unwrap_or_else(|_| {
                    panic!(
                        "{:?} still waits after {:?}, its deadline was {deadline:?}",
                        caller.kind,
                        start.elapsed()
                    )
                });
                let end = ended.as_ref().err().map(|error| caller.expected(error));
                *ends.lock().entry((caller.kind, end)).or_default() += 1;
                // The pace of the load; nothing is concluded from it.
                let _ = tokio::time::timeout(PAUSE, running.wait_for(|running| !running)).await;
            }
        });
    }

    /// Makes a new call of every kind that can be answered, from either node, until it is. (One that was under way in
    /// the outage may rightly wait until its deadline.)
    pub(crate) async fn flow(&self) {
        let answerable = self.kinds.iter().filter(|caller| caller.kind != Kind::InvokeSilent);
        futures::future::join_all(answerable.map(|caller| async {
            let mut number = u64::MAX / 2;
            loop {
                let ended = caller.once(number).await;
                if caller.is_answer(&ended) {
                    return;
                }
                number += 1;
                caller.hub.wait_until_up().await.expect("the node lives");
            }
        }))
        .await;
    }

    /// Stops calling and awaits the ends of what was under way.
    pub(crate) async fn end(mut self) -> Summary {
        self.running.send_replace(false);
        while let Some(ended) = self.callers.join_next().await {
            ended.expect("every call ended as it should");
        }
        drop(self.clients);
        Summary(std::mem::take(&mut *self.ends.lock()))
    }
}

/// One task's calls.
struct Caller {
    node: usize,
    kind: Kind,
    hub: Router,
    answering: ConnectionId,
    silent: ConnectionId,
    absent: ConnectionId,
}

impl Caller {
    fn deadline(&self) -> Duration {
        match self.kind {
            Kind::Invoke | Kind::InvokeSilent | Kind::UpdateGroup => deadline(),
            Kind::Abort | Kind::Register => ACK_DEADLINE,
        }
    }

    async fn once(&self, number: u64) -> Result<()> {
        let ask = || {
            ClientInvocation::new(|id| EncodedMessage::json(id.as_str().to_owned())).with_timeout(deadline())
        };
        match self.kind {
            Kind::Invoke => self.hub.invoke(&self.answering, ask()).await.map(drop),
            Kind::InvokeSilent => self.hub.invoke(&self.silent, ask()).await.map(drop),
            Kind::UpdateGroup => {
                let group = format!("{} {}", self.node, number / 2);
                let change = match number % 2 {
                    0 => MembershipChange::join(&self.answering, group),
                    _ => MembershipChange::leave(&self.answering, group),
                };
                self.hub.update_group(change.with_timeout(deadline())).await
            }
            Kind::Abort => self.hub.abort(&self.absent, AbortReason::default()).await,
            Kind::Register => register(&self.hub).await.map(drop),
        }
    }

    /// The name of an error that an outage explains.
    fn expected(&self, error: &backplane_core::Error) -> &'static str {
        match error.kind() {
            ErrorKind::Unavailable => "unavailable",
            ErrorKind::Timeout => "timed out",
            // A node that was not heard for three beats is gone, and its connections with it.
            ErrorKind::ConnectionNotFound => "not found",
            ErrorKind::Overloaded => "overloaded",
            _ => panic!("{:?} ended as no outage explains: {error}", self.kind),
        }
    }

    /// Whether the other node, or the broker for a registration, had its say.
    fn is_answer(&self, ended: &Result<()>) -> bool {
        match ended {
            Ok(()) => self.kind != Kind::Abort,
            Err(error) => self.kind == Kind::Abort && error.kind() == ErrorKind::ConnectionNotFound,
        }
    }
}

async fn register(hub: &Router) -> Result<(Registration, backplane_core::OutboundReceiver)> {
    let (sender, inbox) = outbound(OutboundLimits::default());
    let id = hub.new_connection_id();
    let connection = LocalConnection { id, user: None, protocol: Protocol::JSON, outbound: sender };
    Ok((hub.register(connection).await?, inbox))
}

/// How all calls ended.
pub(crate) struct Summary(Ends);

impl Summary {
    /// Whether all ended as they do without a fault.
    pub(crate) fn is_undisturbed(&self) -> bool {
        self.0.keys().all(|(kind, end)| match kind {
            Kind::Invoke | Kind::UpdateGroup | Kind::Register => end.is_none(),
            Kind::InvokeSilent => *end == Some("timed out"),
            Kind::Abort => *end == Some("not found"),
        })
    }

    /// How many ended because of the link.
    pub(crate) fn unavailable(&self) -> u64 {
        self.0.iter().filter(|((_, end), _)| *end == Some("unavailable")).map(|(_, count)| count).sum()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("calls:")?;
        for ((kind, end), count) in &self.0 {
            write!(f, " {count} {kind:?} {},", end.unwrap_or("answered"))?;
        }
        Ok(())
    }
}
