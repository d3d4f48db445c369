//! The calls of [`Backplane`]: what happens here, what is asked of another node.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use smallvec::SmallVec;
use tokio::sync::{broadcast, oneshot, watch};
use tokio::time::{Instant, timeout};

use crate::backplane::{Acceptance, Backplane, LocalConnection, Registration, RegistrationOwner};
use crate::bus::Reach;
use crate::error::{Error, ErrorKind, Result};
use crate::health::{Event, Health, Stats};
use crate::id::{ConnectionId, GroupName, InvocationId, NodeId, UserId};
use crate::message::{
    AbortReason, ClientInvocation, ClientResult, EncodedMessage, Membership, MembershipChange,
};
use crate::outbound::{CloseReason, Pushed};
use crate::router::connections::Connection;
use crate::router::outbox::Drafts;
use crate::router::questions::{Asker, outcome};
use crate::router::{Handle, Hub, Node, Router, not_found};
use crate::target::Target;
use crate::topic::Topic;
use crate::wire::{AckOutcome, Command, Completion, Draft, Home, Recipient, Route};

#[async_trait]
impl Backplane for Router {
    fn new_connection_id(&self) -> ConnectionId {
        self.node().wire.new_connection_id()
    }

    async fn register(&self, connection: LocalConnection) -> Result<Registration> {
        let (node, hub) = (self.node(), &self.0.hub);
        node.check_open("register")?;
        node.outbox.limits()?;
        let LocalConnection { id, user, protocol, outbound } = connection;
        match node.wire.home(&hub.name, &id) {
            Home::Unknown => {}
            Home::Node(home) if home == node.id => {}
            Home::Node(_) | Home::Nowhere => {
                let context = format!(
                    "no other node could reach a connection called '{id}' here; mint its id with new_connection_id"
                );
                return Err(Error::new(ErrorKind::InvalidConfig, "register").with_context(context));
            }
        }
        let user = user.filter(|user| !user.as_str().is_empty());
        let connection = Arc::new(Connection { id: id.clone(), user, protocol, outbound });
        hub.connections.lock().insert(connection.clone())?;
        // From here on dropping it, also by dropping this future, leaves nothing behind.
        let registration = Registration::new(id.clone(), self.0.clone());
        // The topics of the connection itself and of its user, where there are such.
        let own = node.wire.connection_topic(&hub.name, &id);
        let own = own.map(|topic| (topic, Route::Connection(hub.name.clone(), id.clone())));
        let users = connection
            .user
            .as_ref()
            .map(|user| (node.wire.user_topic(&hub.name, user), Route::User(hub.name.clone(), user.clone())));
        let topics: SmallVec<[(Topic, Route); 2]> = own.into_iter().chain(users).collect();
        let wants = topics.iter().map(|(topic, route)| node.want(topic, || route.clone()));
        let confirmed = futures::future::try_join_all(wants);
        let late = |_| {
            Error::new(ErrorKind::Timeout, "register").with_context("its topics were not confirmed in time")
        };
        let interests = timeout(node.config.ack_timeout, confirmed).await.map_err(late)??;
        let returned = hub.connections.lock().keep(&id, interests);
        debug_assert!(returned.is_none(), "it is registered as long as its registration lives");
        drop(returned);
        Ok(registration)
    }

    fn post(&self, target: &Target, except: &[ConnectionId], message: EncodedMessage) -> Result<Acceptance> {
        self.node().check_open("send")?;
        let plan = self.plan(target, except, &message)?;
        let acceptance = if plan.drafts.is_empty() {
            Acceptance::ready(Ok(()))
        } else {
            let slot = self.node().outbox.post(plan.drafts)?;
            if !plan.here.is_empty() {
                slot.served_here();
            }
            Acceptance::queued(slot)
        };
        self.deliver_here(&plan.here, &message);
        Ok(acceptance)
    }

    async fn send(&self, target: &Target, except: &[ConnectionId], message: EncodedMessage) -> Result<()> {
        self.node().check_open("send")?;
        let plan = self.plan(target, except, &message)?;
        let (drafts, here) = (plan.drafts, plan.here);
        if drafts.is_empty() {
            self.deliver_here(&here, &message);
            return Ok(());
        }
        let deadline = Instant::now() + self.node().config.send_timeout;
        let slot = self.node().outbox.send(drafts, self.node().config.send_timeout).await?;
        if !here.is_empty() {
            slot.served_here();
            self.deliver_here(&here, &message);
        }
        let late = |_| {
            Error::new(ErrorKind::Timeout, "send")
                .with_context("the broker did not accept in time")
                .with_outcome_unknown()
        };
        tokio::time::timeout_at(deadline, slot.decided()).await.map_err(late)?.map(drop)
    }

    async fn update_group(&self, change: MembershipChange) -> Result<()> {
        let (node, hub) = (self.node(), &self.0.hub);
        node.check_open("update_group")?;
        let deadline = change.timeout.unwrap_or(node.config.ack_timeout);
        let local = hub.connections.lock().get(&change.connection).cloned();
        if let Some(connection) = local {
            return change_here(node, hub, &connection, &change, deadline).await;
        }
        let owner = self.elsewhere("update_group", &change.connection)?;
        let change = change.with_timeout(deadline);
        let ack = node.wire.new_ack_id();
        let mut wait = node.acks.begin(ack, owner);
        let draft = node.wire.encode(&hub.name, Command::ChangeGroup { ack, change: &change })?;
        let outcome =
            self.ask("update_group", &change.connection, owner.is_some(), draft, deadline, wait.answer());
        acknowledged("update_group", &change.connection, outcome.await?)
    }

    async fn invoke(&self, connection: &ConnectionId, call: ClientInvocation) -> Result<ClientResult> {
        let (node, hub) = (self.node(), &self.0.hub);
        node.check_open("invoke")?;
        let deadline = call.timeout.unwrap_or(node.config.result_timeout);
        let id = node.wire.new_invocation_id();
        let message = (call.encode)(&id);
        let local = hub.connections.lock().get(connection).cloned();
        if let Some(connection) = local {
            return ask_here(node, hub, &connection, &id, &message, deadline).await;
        }
        let owner = self.elsewhere("invoke", connection)?;
        let mut wait = node.results.begin(id.clone(), owner);
        let command = Command::Invoke { connection, id: &id, message: &message, timeout: deadline };
        let draft = node.wire.encode(&hub.name, command)?;
        let mut cancel = CancelInvoke { handle: &self.0, connection, id: &id, armed: owner.is_some() };
        // A question goes to its connection's own topic in every format: nobody reached is nobody there.
        let completion = self.ask("invoke", connection, true, draft, deadline, wait.answer()).await;
        // Told, or nobody is there to be told.
        cancel.armed &= matches!(&completion, Err(error) if error.outcome_unknown());
        outcome(connection, completion?)
    }

    async fn abort(&self, connection: &ConnectionId, reason: AbortReason) -> Result<()> {
        let (node, hub) = (self.node(), &self.0.hub);
        node.check_open("abort")?;
        let local = hub.connections.lock().get(connection).cloned();
        if let Some(connection) = local {
            connection.outbound.close(CloseReason::Aborted(reason));
            return Ok(());
        }
        let owner = self.elsewhere("abort", connection)?;
        let ack = node.wire.new_ack_id();
        let draft = node.wire.encode(&hub.name, Command::Abort { ack, connection, reason: &reason })?;
        let mut wait = node.acks.begin(ack, owner);
        let deadline = node.config.ack_timeout;
        let outcome = self.ask("abort", connection, owner.is_some(), draft, deadline, wait.answer());
        acknowledged("abort", connection, outcome.await?)
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.node().health.subscribe()
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.node().events.subscribe()
    }

    fn stats(&self) -> Stats {
        let node = self.node();
        let questions: usize = node.hubs.read().values().map(|hub| hub.questions.lock().len()).sum();
        let (queued_frames, queued_bytes) = node.outbox.load();
        let mut stats = node.counters.read();
        stats.pending = (node.acks.len() + node.results.len() + questions) as u64;
        stats.queued_frames = queued_frames;
        stats.queued_bytes = queued_bytes;
        stats
    }

    async fn shutdown(&self) -> Result<()> {
        let owner = &self.0.owner;
        owner.stop.send_replace(true);
        let mut ended = owner.ended.clone();
        // An error means that the supervisor ended without a word, which is an end too.
        match timeout(owner.node.config.send_timeout, ended.wait_for(|ended| *ended)).await {
            Ok(_) => Ok(()),
            Err(_) => {
                owner.node.close();
                Err(Error::new(ErrorKind::Timeout, "shutdown").with_context("the link did not end in time"))
            }
        }
    }
}

/// Where one send goes.
struct Plan {
    drafts: Drafts,
    here: SmallVec<[Arc<Connection>; 1]>,
}

impl Router {
    fn plan(&self, target: &Target, except: &[ConnectionId], message: &EncodedMessage) -> Result<Plan> {
        let mut plan = Plan { drafts: SmallVec::new(), here: SmallVec::new() };
        let encode = |to: Recipient<'_>| -> Result<Draft> {
            self.node().wire.encode(&self.0.hub.name, Command::Send { to, except, message })
        };
        match target {
            Target::All => plan.drafts.push(encode(Recipient::All)?),
            Target::Group(group) => plan.drafts.push(encode(Recipient::Group(group))?),
            Target::User(user) => plan.drafts.push(encode(Recipient::User(user))?),
            Target::Groups(groups) => {
                for group in distinct::<GroupName>(groups).filter(|group| !group.as_str().is_empty()) {
                    plan.drafts.push(encode(Recipient::Group(group))?);
                }
            }
            Target::Users(users) => {
                for user in distinct::<UserId>(users).filter(|user| !user.as_str().is_empty()) {
                    plan.drafts.push(encode(Recipient::User(user))?);
                }
            }
            Target::Connection(id) => {
                self.plan_connections(std::slice::from_ref(id), except, message, &mut plan)?
            }
            Target::Connections(ids) => self.plan_connections(ids, except, message, &mut plan)?,
        }
        Ok(plan)
    }

    /// Connections of this node are served here; the others by one frame for each node, or one each where their home
    /// is not known.
    fn plan_connections(
        &self,
        ids: &[ConnectionId],
        except: &[ConnectionId],
        message: &EncodedMessage,
        plan: &mut Plan,
    ) -> Result<()> {
        let (wire, hub) = (&self.node().wire, &self.0.hub);
        let mut nodes: Vec<(NodeId, Vec<ConnectionId>)> = Vec::new();
        let mut unknown: Vec<&ConnectionId> = Vec::new();
        {
            let connections = hub.connections.lock();
            for id in distinct::<ConnectionId>(ids) {
                if except.contains(id) {
                    continue;
                }
                if let Some(connection) = connections.get(id) {
                    plan.here.push(connection.clone());
                    continue;
                }
                match wire.home(&hub.name, id) {
                    // It was here and left, or never was: nobody.
                    Home::Node(node) if node == self.node().id => {}
                    Home::Nowhere => {}
                    Home::Unknown => unknown.push(id),
                    Home::Node(node) => match nodes.iter_mut().find(|(known, _)| *known == node) {
                        Some((_, ids)) => ids.push(id.clone()),
                        None => nodes.push((node, vec![id.clone()])),
                    },
                }
            }
        }
        for (node, ids) in &nodes {
            let to = Recipient::Node(*node, ids);
            plan.drafts.push(wire.encode(&hub.name, Command::Send { to, except: &[], message })?);
        }
        for id in unknown {
            let to = Recipient::Connection(id);
            plan.drafts.push(wire.encode(&hub.name, Command::Send { to, except: &[], message })?);
        }
        Ok(())
    }

    /// A full queue is its connection's problem, not the sender's.
    fn deliver_here(&self, here: &[Arc<Connection>], message: &EncodedMessage) {
        for connection in here {
            let _ = self.node().push(connection, message);
        }
    }

    /// The node that has a connection which is not here; `None`: not known.
    fn elsewhere(&self, operation: &'static str, connection: &ConnectionId) -> Result<Option<NodeId>> {
        let node = self.node();
        match node.wire.home(&self.0.hub.name, connection) {
            Home::Unknown => Ok(None),
            Home::Node(owner) if owner != node.id && !node.liveness.lock().is_gone(owner) => Ok(Some(owner)),
            Home::Node(_) | Home::Nowhere => Err(not_found(operation, connection)),
        }
    }

    /// Sends a command and awaits its answer, all within `deadline`.
    async fn ask<T>(
        &self,
        operation: &'static str,
        connection: &ConnectionId,
        zero_reach_is_absence: bool,
        draft: Draft,
        deadline: Duration,
        answer: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let asked = async {
            let slot = self.node().outbox.send(SmallVec::from_iter([draft]), deadline).await?;
            let proves_absence = zero_reach_is_absence && self.node().outbox.limits()?.reports_reach;
            if slot.decided().await? == Reach::Nodes(0) && proves_absence {
                return Err(not_found(operation, connection));
            }
            answer.await
        };
        let late = |_| {
            let context = format!("no answer about connection '{connection}' within {deadline:?}");
            Error::new(ErrorKind::Timeout, operation).with_context(context).with_outcome_unknown()
        };
        timeout(deadline, asked).await.map_err(late)?
    }
}

/// Each once, in the order of their first occurrence.
fn distinct<T: Eq + std::hash::Hash>(names: &[T]) -> impl Iterator<Item = &T> {
    let mut seen = HashSet::with_capacity(if names.len() > 1 { names.len() } else { 0 });
    names.iter().filter(move |name| names.len() == 1 || seen.insert(*name))
}

fn acknowledged(operation: &'static str, connection: &ConnectionId, outcome: AckOutcome) -> Result<()> {
    match outcome {
        AckOutcome::Done => Ok(()),
        AckOutcome::NotFound => Err(not_found(operation, connection)),
        AckOutcome::Failed => Err(Error::new(ErrorKind::Unavailable, operation)
            .with_context(format!("the node of connection '{connection}' could not do it"))),
    }
}

/// Changes a membership of a connection of this node. What must keep the order of the calls happens at once; the
/// returned future awaits the broker.
pub(super) fn change_here(
    node: &Arc<Node>,
    hub: &Arc<Hub>,
    connection: &Arc<Connection>,
    change: &MembershipChange,
    deadline: Duration,
) -> impl Future<Output = Result<()>> + Send + use<> {
    let (node, hub, connection, group) =
        (node.clone(), hub.clone(), connection.clone(), change.group.clone());
    let join = match change.membership {
        Membership::Leave => {
            let freed = hub.connections.lock().groups.leave(&connection.id, &group);
            drop(freed);
            None
        }
        Membership::Join => Some({
            let mut connections = hub.connections.lock();
            connections
                .get(&connection.id)
                .is_some()
                .then(|| connections.groups.begin_join(&connection.id, &group))
        }),
    };
    async move {
        let gone = || {
            let context = format!("connection '{}' disconnected", connection.id);
            Error::new(ErrorKind::ConnectionNotFound, "update_group").with_context(context)
        };
        let Some(ticket) = join else { return Ok(()) };
        let ticket = ticket.ok_or_else(gone)?;
        // Ends the join if this future is dropped or fails; after the commit there is nothing left to end.
        let _end = scopeguard(|| {
            hub.connections.lock().groups.end_join(ticket, &connection.id);
        });
        let topic = node.wire.group_topic(&hub.name, &group);
        let confirmed = node.want(&topic, || Route::Group(hub.name.clone(), group.clone()));
        let late = |_| {
            Error::new(ErrorKind::Timeout, "update_group")
                .with_context("the broker did not confirm the group's topic")
        };
        let interest = timeout(deadline, confirmed).await.map_err(late)??;
        let (unneeded, registered) = {
            let mut connections = hub.connections.lock();
            let registered = connections.get(&connection.id).is_some();
            (connections.groups.commit_join(ticket, &connection, &group, interest), registered)
        };
        drop(unneeded);
        if registered { Ok(()) } else { Err(gone()) }
    }
}

/// Asks a connection of this node.
async fn ask_here(
    node: &Arc<Node>,
    hub: &Arc<Hub>,
    connection: &Arc<Connection>,
    id: &InvocationId,
    message: &EncodedMessage,
    deadline: Duration,
) -> Result<ClientResult> {
    if message.get(&connection.protocol).is_none() {
        let context = format!("the question was not encoded for the protocol {}", connection.protocol);
        return Err(Error::new(ErrorKind::Unsupported, "invoke").with_context(context));
    }
    let (asker, mut answer) = oneshot::channel();
    let opened = hub.questions.lock().open(id.clone(), &connection.id, Asker::Here(asker), None);
    opened.map_err(|(_, why)| Error::new(ErrorKind::Overloaded, "invoke").with_context(why))?;
    let _forget = scopeguard(|| drop(hub.questions.lock().close(id)));
    let registered = hub.connections.lock().get(&connection.id).is_some();
    if !registered || node.push(connection, message) == Pushed::Closed {
        return outcome(&connection.id, Completion::Disconnected);
    }
    let late = |_| {
        let context = format!("no answer from connection '{}' within {deadline:?}", connection.id);
        Error::new(ErrorKind::Timeout, "invoke").with_context(context).with_outcome_unknown()
    };
    match timeout(deadline, &mut answer).await.map_err(late)? {
        Ok(answer) => answer,
        Err(_) => outcome(&connection.id, Completion::Disconnected),
    }
}

/// Tells the owner to forget a question when the asker gave up.
struct CancelInvoke<'a> {
    handle: &'a Handle,
    connection: &'a ConnectionId,
    id: &'a InvocationId,
    armed: bool,
}

impl Drop for CancelInvoke<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let node = &self.handle.owner.node;
        let command = Command::CancelInvoke { connection: self.connection, id: self.id };
        // At best: the owner forgets it at its deadline too.
        if let Ok(draft) = node.wire.encode(&self.handle.hub.name, command) {
            node.outbox.reply(draft);
        }
    }
}

impl RegistrationOwner for Handle {
    fn complete(
        &self,
        connection: &ConnectionId,
        id: &InvocationId,
        result: ClientResult,
        headers: Option<Bytes>,
    ) -> Result<()> {
        let asker = self.hub.questions.lock().answer(connection, id)?;
        match asker {
            None => Ok(()),
            Some(Asker::Here(asker)) => {
                // An asker that no longer waits needs no answer.
                let _ = asker.send(Ok(result));
                Ok(())
            }
            Some(Asker::Remote { reply, .. }) => {
                let node = &self.owner.node;
                let Some(local) = self.hub.connections.lock().get(connection).cloned() else { return Ok(()) };
                let completion = Completion::Answered { result, headers };
                node.complete(&self.hub.name, &reply, id, &local.protocol, &completion)
            }
        }
    }

    fn expects(&self, connection: &ConnectionId, id: &InvocationId) -> bool {
        self.hub.questions.lock().expects(connection, id)
    }

    fn deregister(&self, connection: &ConnectionId) {
        let removed = self.hub.connections.lock().remove(connection);
        let questions = self.hub.questions.lock().connection_gone(connection);
        for (id, asker) in questions {
            match asker {
                Asker::Here(asker) => drop(asker.send(outcome(connection, Completion::Disconnected))),
                Asker::Remote { reply, .. } => {
                    if let Some(local) = &removed.connection {
                        let node = &self.owner.node;
                        // At best: the asker's deadline ends its wait too.
                        let _ = node.complete(
                            &self.hub.name,
                            &reply,
                            &id,
                            &local.protocol,
                            &Completion::Disconnected,
                        );
                    }
                }
            }
        }
    }
}

/// Runs `end` when dropped.
fn scopeguard<F: FnMut()>(end: F) -> impl Drop {
    struct Guard<F: FnMut()>(F);
    impl<F: FnMut()> Drop for Guard<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    Guard(end)
}
