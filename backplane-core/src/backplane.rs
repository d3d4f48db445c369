//! What the hub server and applications call: publish/subscribe of invocations, connection registration and group
//! membership, wherever the recipients live.

use std::fmt::{self, Debug};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt as _};
use tokio::sync::{broadcast, watch};

use crate::error::Result;
use crate::health::{Event, Gap, Health, Stats};
use crate::id::{ConnectionId, GroupName, InvocationId, Protocol, UserId};
use crate::message::{AbortReason, ClientInvocation, ClientResult, EncodedMessage, MembershipChange};
use crate::outbound::OutboundSender;
use crate::target::Target;

/// The backplane of one hub. [`Router`](crate::Router) implements it over any [`Bus`](crate::Bus); a managed service
/// that is no bus can implement it directly.
#[async_trait]
pub trait Backplane: Debug + Send + Sync + 'static {
    /// A new id for a connection of this node: 22 base64url characters.
    fn new_connection_id(&self) -> ConnectionId;

    /// Makes a connection reachable from every node: when it returns `Ok`, a send from any node to the connection or
    /// to its user arrives. Dropping the [`Registration`] takes it away again, with its memberships and open questions.
    ///
    /// # Errors
    /// [`Unavailable`](crate::ErrorKind::Unavailable) while the link is down, [`Timeout`](crate::ErrorKind::Timeout)
    /// when the broker did not confirm in time, [`InvalidConfig`](crate::ErrorKind::InvalidConfig) when the id is
    /// already registered here, or says that the connection lives elsewhere. Nothing is left behind then, nor when the future is dropped.
    async fn register(&self, connection: LocalConnection) -> Result<Registration>;

    /// Queues a message now, in the order of the calls. The returned future awaits the broker's acceptance and may be
    /// dropped. Acceptance says nothing about presence.
    ///
    /// # Errors
    /// [`Overloaded`](crate::ErrorKind::Overloaded) when the bounded queue is full (nothing was queued),
    /// [`Unavailable`](crate::ErrorKind::Unavailable) at once while the link is down,
    /// [`TooLarge`](crate::ErrorKind::TooLarge), [`Unsupported`](crate::ErrorKind::Unsupported) for exceptions that
    /// the wire format cannot express, [`Closed`](crate::ErrorKind::Closed) after shutdown.
    fn post(&self, target: &Target, except: &[ConnectionId], message: EncodedMessage) -> Result<Acceptance>;

    /// Like [`post`](Backplane::post), but waits for room and for acceptance, both within the send deadline (5 s).
    /// Dropping the future before it was queued sends nothing.
    ///
    /// # Errors
    /// As `post`, and [`Timeout`](crate::ErrorKind::Timeout). [`Unavailable`](crate::ErrorKind::Unavailable) with
    /// [`outcome_unknown`](crate::Error::outcome_unknown) when it was in flight as the link broke; a send of several
    /// frames that failed in part says so ([`Error::partial`](crate::Error::partial)).
    async fn send(&self, target: &Target, except: &[ConnectionId], message: EncodedMessage) -> Result<()>;

    /// Changes a membership, here or on another node. `Ok` for a join means that the owner's subscription is
    /// confirmed: the next send from any node arrives. Joining twice or leaving a group one is not in is `Ok`.
    ///
    /// # Errors
    /// [`ConnectionNotFound`](crate::ErrorKind::ConnectionNotFound), [`Timeout`](crate::ErrorKind::Timeout) (default
    /// 5 s), [`Unavailable`](crate::ErrorKind::Unavailable). A failed call leaves membership as it was, as far as this
    /// node can know.
    async fn update_group(&self, change: MembershipChange) -> Result<()>;

    /// Asks one client, here or on another node, and awaits its answer. Dropping the future forgets the question,
    /// also at the owner.
    ///
    /// # Errors
    /// [`ConnectionNotFound`](crate::ErrorKind::ConnectionNotFound) (with context `disconnected` when it left while
    /// asked), [`Timeout`](crate::ErrorKind::Timeout) (default 30 s),
    /// [`Unavailable`](crate::ErrorKind::Unavailable). An error that the *client* reports is
    /// `Ok(ClientResult::Error(text))`.
    async fn invoke(&self, connection: &ConnectionId, call: ClientInvocation) -> Result<ClientResult>;

    /// Ends a connection, here or on another node. `Ok`: its owner closed its outbound queue with the reason.
    ///
    /// # Errors
    /// [`ConnectionNotFound`](crate::ErrorKind::ConnectionNotFound), [`Timeout`](crate::ErrorKind::Timeout),
    /// [`Unavailable`](crate::ErrorKind::Unavailable), [`Unsupported`](crate::ErrorKind::Unsupported) for a remote
    /// connection where the wire format has no such command.
    async fn abort(&self, connection: &ConnectionId, reason: AbortReason) -> Result<()>;

    /// The state of the link, now and at each change.
    fn health(&self) -> watch::Receiver<Health>;

    /// What happens from now on. A receiver that falls behind gets `Lagged(n)`, which counts as a gap of unknown
    /// extent; [`BackplaneExt::gaps`] does that for you.
    fn events(&self) -> broadcast::Receiver<Event>;

    /// Counters since the start of the node.
    fn stats(&self) -> Stats;

    /// Leaves in order: tells the other nodes, ends all waits with [`Closed`](crate::ErrorKind::Closed), closes the
    /// link. Ends the whole node, all its hubs included. Idempotent; returns within the send deadline.
    async fn shutdown(&self) -> Result<()>;
}

/// A connection of this node, ready to be registered.
#[derive(Debug)]
pub struct LocalConnection {
    /// Its id, from [`Backplane::new_connection_id`]. Where ids do not tell the home (`aspnetcore`), any other that is
    /// unique in the fleet will do.
    pub id: ConnectionId,
    /// Its user; `None` or empty: none.
    pub user: Option<UserId>,
    /// The protocol its client speaks: which encoding it is sent.
    pub protocol: Protocol,
    /// Where its messages go.
    pub outbound: OutboundSender,
}

/// What a [`Registration`] needs from the implementation behind it.
pub trait RegistrationOwner: Debug + Send + Sync {
    /// See [`Registration::complete_with_headers`]; `headers` are not empty.
    ///
    /// # Errors
    /// See [`Registration::complete`].
    fn complete(
        &self,
        connection: &ConnectionId,
        id: &InvocationId,
        result: ClientResult,
        headers: Option<Bytes>,
    ) -> Result<()>;
    /// See [`Registration::expects`].
    fn expects(&self, connection: &ConnectionId, id: &InvocationId) -> bool;
    /// The registration was dropped.
    fn deregister(&self, connection: &ConnectionId);
}

/// A registered connection. Dropping it deregisters: memberships end, open questions fail, unused topics are freed.
#[derive(Debug)]
pub struct Registration {
    connection: ConnectionId,
    owner: Arc<dyn RegistrationOwner>,
}

impl Registration {
    /// For implementations of [`Backplane`].
    #[must_use]
    pub fn new(connection: ConnectionId, owner: Arc<dyn RegistrationOwner>) -> Self {
        Self { connection, owner }
    }

    /// The registered connection.
    #[must_use]
    pub fn connection(&self) -> &ConnectionId {
        &self.connection
    }

    /// The client answered the question `id`. An unknown question (late, cancelled, never asked) is `Ok` and dropped.
    ///
    /// # Errors
    /// [`Denied`](crate::ErrorKind::Denied) when the question was put to another connection; it stays open.
    /// [`TooLarge`](crate::ErrorKind::TooLarge) when the bus cannot carry the answer; the asker gets an error result.
    /// [`Overloaded`](crate::ErrorKind::Overloaded), [`Unavailable`](crate::ErrorKind::Unavailable) when the answer
    /// could not be sent to the node that asked; that node's deadline ends its wait.
    pub fn complete(&self, id: &InvocationId, result: ClientResult) -> Result<()> {
        self.owner.complete(&self.connection, id, result, None)
    }

    /// [`complete`](Registration::complete) for a hub message with headers, which other servers get as the client wrote
    /// them where the wire format carries them (`aspnetcore`). `headers`: the whole map, encoded in the protocol of this
    /// connection (a JSON object, a MessagePack map) and, like the value, not checked again; no bytes: no headers.
    /// [`read_completion`](crate::wire::aspnetcore::read_completion) gives both.
    ///
    /// # Errors
    /// As [`complete`](Registration::complete).
    pub fn complete_with_headers(
        &self,
        id: &InvocationId,
        result: ClientResult,
        headers: Bytes,
    ) -> Result<()> {
        let headers = (!headers.is_empty()).then_some(headers);
        self.owner.complete(&self.connection, id, result, headers)
    }

    /// Whether this connection was asked `id` and has not answered yet.
    #[must_use]
    pub fn expects(&self, id: &InvocationId) -> bool {
        self.owner.expects(&self.connection, id)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.owner.deregister(&self.connection);
    }
}

/// Awaits the broker's acceptance of what was queued. Dropping it loses the outcome, not the message.
#[must_use = "the outcome of a send is lost when its acceptance is dropped"]
pub struct Acceptance(AcceptanceState);

enum AcceptanceState {
    Ready(Option<Result<()>>),
    Queued(crate::router::AcceptanceSlot),
    Waiting(BoxFuture<'static, Result<()>>),
}

impl Acceptance {
    /// Already decided.
    pub fn ready(result: Result<()>) -> Self {
        Self(AcceptanceState::Ready(Some(result)))
    }

    /// Decided by a future.
    pub fn waiting(future: impl Future<Output = Result<()>> + Send + 'static) -> Self {
        Self(AcceptanceState::Waiting(Box::pin(future)))
    }

    pub(crate) fn queued(slot: crate::router::AcceptanceSlot) -> Self {
        Self(AcceptanceState::Queued(slot))
    }
}

impl Debug for Acceptance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Acceptance")
    }
}

impl Future for Acceptance {
    type Output = Result<()>;

    /// # Panics
    /// When polled again after it was ready.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            AcceptanceState::Ready(result) => {
                Poll::Ready(result.take().expect("an acceptance is not polled after it was ready"))
            }
            AcceptanceState::Queued(slot) => slot.poll(context).map(|outcome| outcome.map(|_| ())),
            AcceptanceState::Waiting(future) => future.as_mut().poll(context),
        }
    }
}

/// Convenience verbs over any [`Backplane`]; nobody implements this.
#[async_trait]
pub trait BackplaneExt: Backplane {
    /// To every connection of the hub.
    async fn send_to_all(&self, message: EncodedMessage) -> Result<()> {
        self.send(&Target::All, &[], message).await
    }

    /// To one connection.
    async fn send_to_connection(&self, id: &ConnectionId, message: EncodedMessage) -> Result<()> {
        self.send(&Target::Connection(id.clone()), &[], message).await
    }

    /// To the members of a group.
    async fn send_to_group(&self, group: &GroupName, message: EncodedMessage) -> Result<()> {
        self.send(&Target::Group(group.clone()), &[], message).await
    }

    /// To the connections of a user.
    async fn send_to_user(&self, user: &UserId, message: EncodedMessage) -> Result<()> {
        self.send(&Target::User(user.clone()), &[], message).await
    }

    /// Makes `connection` a member of `group`, with the default deadline.
    async fn join(&self, connection: &ConnectionId, group: &GroupName) -> Result<()> {
        self.update_group(MembershipChange::join(connection, group)).await
    }

    /// Ends `connection`'s membership in `group`, with the default deadline.
    async fn leave(&self, connection: &ConnectionId, group: &GroupName) -> Result<()> {
        self.update_group(MembershipChange::leave(connection, group)).await
    }

    /// Waits until the link is up.
    ///
    /// # Errors
    /// [`Closed`](crate::ErrorKind::Closed) when the node was shut down. Has no deadline of its own.
    async fn wait_until_up(&self) -> Result<()> {
        let mut health = self.health();
        let closed = || crate::Error::new(crate::ErrorKind::Closed, "wait_until_up");
        let state = health.wait_for(|now| now.is_up() || now.is_closed()).await.map_err(|_| closed())?;
        if state.is_up() { Ok(()) } else { Err(closed()) }
    }

    /// The gaps from now on, a lagging receiver's own included ([`Gap::lagged`]). Ends when the node was dropped.
    fn gaps(&self) -> BoxStream<'static, Gap> {
        let events = self.events();
        futures::stream::unfold(events, |mut events| async move {
            loop {
                match events.recv().await {
                    Ok(Event::Gap(gap)) => return Some((gap, events)),
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(_)) => return Some((Gap::lagged(), events)),
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        })
        .boxed()
    }
}

impl<B: Backplane + ?Sized> BackplaneExt for B {}
