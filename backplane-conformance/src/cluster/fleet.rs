//! Nodes for the contracts: routers over one bus, each behind its own [`Tap`].

use std::sync::Arc;
use std::time::Duration;

use backplane_core::{
    Backplane, BackplaneExt, ClientResult, ConnectionId, ErrorKind, GroupName, HubName, NodeId, Protocol,
    Router, RouterConfig, Target, Topic, Wire, WireFormat, wire,
};

use super::client::{Client, Manner};
use super::messages::{message, question};
use super::tap::Tap;
use super::wait::{Task, until_stats, within};
use crate::{Broken, Harness, Kept, Outcome, bound, ensure};

type Checked<T> = std::result::Result<T, Broken>;

/// The heartbeat bound of the nodes, unless a contract sets another one: 2 s, and more where [`bound`] says so.
#[must_use]
pub fn heartbeat() -> Duration {
    bound(Duration::from_secs(2))
}

/// What a contract runs on.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The bus under test.
    pub harness: Arc<dyn Harness>,
    /// The wire format of the nodes.
    pub wire: Wire,
}

impl Stage {
    /// On the native wire format.
    #[must_use]
    pub fn native(harness: Arc<dyn Harness>) -> Self {
        Self { harness, wire: Wire::Native }
    }

    /// On the `aspnetcore` wire format; every node names itself.
    #[must_use]
    pub fn aspnetcore(harness: Arc<dyn Harness>) -> Self {
        Self { harness, wire: Wire::AspNetCore { server_name: None } }
    }

    /// Whether frames carry provenance, nodes have beats, and commands go to the owner's node.
    #[must_use]
    pub fn is_native(&self) -> bool {
        matches!(self.wire, Wire::Native)
    }
}

/// One node of a fleet, or another hub of it. Cloning shares the node.
#[derive(Clone, Debug)]
pub struct Node {
    /// The node under test.
    pub router: Router,
    /// Its bus.
    pub tap: Tap,
    common: Option<Topic>,
}

impl Node {
    /// A new client without a user.
    ///
    /// # Errors
    /// [`Broken`] when it cannot be registered.
    pub async fn client(&self) -> Checked<Client> {
        self.client_like(Manner::default()).await
    }

    /// A new client of `user`.
    ///
    /// # Errors
    /// [`Broken`] when it cannot be registered.
    pub async fn client_of(&self, user: &str) -> Checked<Client> {
        self.client_like(Manner { user: Some(user.into()), ..Manner::default() }).await
    }

    /// A new client.
    ///
    /// # Errors
    /// [`Broken`] when it cannot be registered.
    pub async fn client_like(&self, manner: Manner) -> Checked<Client> {
        Ok(Client::register(&self.router, self.router.new_connection_id(), manner).await?)
    }

    /// Several new clients.
    ///
    /// # Errors
    /// [`Broken`] when one cannot be registered.
    pub async fn clients<const N: usize>(&self) -> Checked<[Client; N]> {
        let mut clients = Vec::with_capacity(N);
        for _ in 0..N {
            clients.push(self.client().await?);
        }
        Ok(clients.try_into().expect("as many as were asked for"))
    }

    /// Sends `text`.
    ///
    /// # Errors
    /// As [`Backplane::send`].
    pub async fn send(&self, target: &Target, text: &str) -> backplane_core::Result<()> {
        self.router.send(target, &[], message(text)).await
    }

    /// Sends `text` to all but `except`.
    ///
    /// # Errors
    /// As [`Backplane::send`].
    pub async fn send_except(
        &self,
        target: &Target,
        except: &[&Client],
        text: &str,
    ) -> backplane_core::Result<()> {
        let except: Vec<ConnectionId> = except.iter().map(|client| client.id().clone()).collect();
        self.router.send(target, &except, message(text)).await
    }

    /// Makes `client`, of any node, a member of `group`.
    ///
    /// # Errors
    /// As [`Backplane::update_group`].
    pub async fn join(&self, client: &Client, group: &str) -> backplane_core::Result<()> {
        self.router.join(client.id(), &GroupName::from(group)).await
    }

    /// Ends the membership of `client`, of any node, in `group`.
    ///
    /// # Errors
    /// As [`Backplane::update_group`].
    pub async fn leave(&self, client: &Client, group: &str) -> backplane_core::Result<()> {
        self.router.leave(client.id(), &GroupName::from(group)).await
    }

    /// Puts the question `text` to `connection`. Dropping the task forgets it.
    #[must_use]
    pub fn ask(&self, connection: &ConnectionId, text: &str) -> Task<backplane_core::Result<ClientResult>> {
        let (router, connection, call) = (self.router.clone(), connection.clone(), question(text));
        Task::spawn(async move { router.invoke(&connection, call).await })
    }

    /// Frames that the node has published so far, beats excluded: they go to the common topic at their own pace.
    #[must_use]
    pub fn published(&self) -> u64 {
        self.tap.seen().published_beside(self.common.as_ref())
    }

    /// Whether its bus proves absence by a reach of zero.
    #[must_use]
    pub fn reports_reach(&self) -> bool {
        self.tap.seen().limits.is_some_and(|limits| limits.reports_reach)
    }

    /// Another hub of this node.
    ///
    /// # Errors
    /// [`Broken`] when it cannot be opened.
    pub async fn hub(&self, name: &str) -> Checked<Self> {
        Ok(Self { router: self.router.hub(HubName::from(name)).await?, ..self.clone() })
    }

    /// Cuts the node off for good: for the others it is dead.
    pub fn kill(&self) {
        self.tap.refuse_links(true);
        self.tap.cut();
    }
}

/// Nodes that share a bus and a prefix.
#[derive(Debug)]
pub struct Fleet {
    /// The nodes, in the order in which they were opened.
    pub nodes: Vec<Node>,
    /// Names the topics as the nodes do.
    pub format: Arc<dyn WireFormat>,
    stage: Stage,
    config: RouterConfig,
}

impl Fleet {
    /// The hub of the nodes.
    pub const HUB: &str = "Contracts.Hub";

    /// `count` nodes.
    ///
    /// # Errors
    /// [`Broken`] when one cannot be opened.
    pub async fn open(stage: &Stage, count: usize) -> Checked<Self> {
        Self::open_with(stage, count, |_, _| {}).await
    }

    /// `count` nodes, each set up by `prepare`.
    ///
    /// # Errors
    /// [`Broken`] when one cannot be opened.
    pub async fn open_with(
        stage: &Stage,
        count: usize,
        prepare: impl Fn(&mut RouterConfig, &Tap),
    ) -> Checked<Self> {
        let prefix = format!("t{}", NodeId::random());
        let format: Arc<dyn WireFormat> = if stage.is_native() {
            Arc::new(wire::Native::new(&prefix)?)
        } else {
            Arc::new(wire::AspNetCore::new(&prefix, None))
        };
        let config = RouterConfig {
            prefix: Some(prefix),
            hub: HubName::from(Self::HUB),
            wire: stage.wire.clone(),
            heartbeat: heartbeat(),
            reconnect_min: Duration::from_millis(10),
            reconnect_max: Duration::from_millis(100),
            ..RouterConfig::default()
        };
        let mut fleet = Self { nodes: Vec::with_capacity(count), format, stage: stage.clone(), config };
        for _ in 0..count {
            fleet.grow(&prepare).await?;
        }
        Ok(fleet)
    }

    /// Opens one more node.
    ///
    /// # Errors
    /// [`Broken`] when it cannot be opened.
    pub async fn grow(&mut self, prepare: impl Fn(&mut RouterConfig, &Tap)) -> Checked<()> {
        let tap = Tap::new(self.stage.harness.bus().await?);
        let mut config = self.config.clone();
        prepare(&mut config, &tap);
        let router = within("a node to open", Router::open(Arc::new(tap.clone()), config)).await??;
        self.nodes.push(Node { router, tap, common: self.common() });
        Ok(())
    }

    /// The topic of beats, where the wire format has them.
    #[must_use]
    pub fn common(&self) -> Option<Topic> {
        let mut topics = self.format.node_topics().into_iter();
        topics.find(|(_, route)| matches!(route, wire::Route::Common)).map(|(topic, _)| topic)
    }

    /// The topic of all connections.
    ///
    /// # Panics
    /// When the wire format has none.
    #[must_use]
    pub fn all_topic(&self) -> Topic {
        let mut topics = self.format.hub_topics(&HubName::from(Self::HUB)).into_iter();
        let all = topics.find(|(_, route)| matches!(route, wire::Route::All(_)));
        all.expect("every wire format has a topic of all connections").0
    }

    /// The topic of a group.
    #[must_use]
    pub fn group_topic(&self, group: &str) -> Topic {
        self.format.group_topic(&HubName::from(Self::HUB), &group.into())
    }

    /// The topic of a user.
    #[must_use]
    pub fn user_topic(&self, user: &str) -> Topic {
        self.format.user_topic(&HubName::from(Self::HUB), &user.into())
    }

    /// Ends a contract that provoked no fault: nothing waits or is queued, nothing was lost, repeated or unreadable,
    /// and each node leaves in order and frees its link.
    ///
    /// # Errors
    /// [`Broken`] with what is not so.
    pub async fn end(self) -> Outcome {
        for (number, node) in self.nodes.iter().enumerate() {
            let stats = node.router.stats();
            ensure!(
                stats.gaps == 0 && stats.repeats_removed == 0 && stats.malformed == 0,
                "node {number} saw faults where there were none: {stats:?}"
            );
        }
        self.end_disturbed().await
    }

    /// Like [`end`](Fleet::end) for a contract that provoked faults.
    ///
    /// # Errors
    /// [`Broken`] with what is not so.
    pub async fn end_disturbed(self) -> Outcome {
        for node in &self.nodes {
            let idle = "nothing to wait or to be queued any more";
            until_stats(&node.router, idle, |stats| {
                stats.pending == 0 && stats.queued_frames == 0 && stats.queued_bytes == 0
            })
            .await?;
        }
        for node in &self.nodes {
            match within("a node to shut down", node.router.shutdown()).await? {
                Ok(()) => {}
                // A node that was cut off cannot take its leave; that it ends is what counts.
                Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Closed) => {}
                Err(error) => return Err(error.into()),
            }
            node.tap.until("a link to be freed", |seen| seen.links == 0).await?;
        }
        Ok(Kept::Yes)
    }
}

/// One value of a client that speaks `json`.
#[must_use]
pub fn value(text: &'static str) -> ClientResult {
    ClientResult::value(Protocol::JSON, text)
}
