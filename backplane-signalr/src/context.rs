//! What a hub method knows of its call: who calls, as whom, and whom it can reach.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use backplane_core::{ConnectionId, UserId};
use futures::task::AtomicWaker;
use http::Extensions;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::clients::{CallerClients, Clients, Groups, Outlet};

/// One connection as its hub sees it; shared by its task and its calls.
pub(crate) struct Connection {
    pub(crate) id: ConnectionId,
    pub(crate) user: Option<UserId>,
    pub(crate) query: Box<str>,
    pub(crate) items: Extensions,
    pub(crate) outlet: Outlet,
    /// Cancelled when the connection has ended.
    pub(crate) ended: CancellationToken,
    abort: AtomicBool,
    task: AtomicWaker,
}

impl Connection {
    pub(crate) fn new(
        id: ConnectionId,
        user: Option<UserId>,
        query: Box<str>,
        items: Extensions,
        outlet: Outlet,
    ) -> Self {
        Self {
            id,
            user,
            query,
            items,
            outlet,
            ended: CancellationToken::new(),
            abort: AtomicBool::new(false),
            task: AtomicWaker::new(),
        }
    }

    /// Asks the connection's task to end it.
    fn abort(&self) {
        self.abort.store(true, Ordering::Release);
        self.task.wake();
    }

    /// Whether somebody asked.
    pub(crate) fn is_aborted(&self) -> bool {
        self.abort.load(Ordering::Acquire)
    }

    /// Whether somebody asked; the task is woken when somebody does.
    pub(crate) fn poll_abort(&self, waker: &std::task::Waker) -> bool {
        self.task.register(waker);
        self.is_aborted()
    }
}

/// Where a call runs: decides whether it may ask clients, and what it gives away when it does.
#[derive(Clone)]
pub(crate) enum CallPlace {
    /// Not in a call of a client.
    Outside,
    /// In `on_connected`.
    Connecting,
    /// In a call, which holds one of its client's places until it ends or asks.
    Call(Arc<Mutex<Option<OwnedSemaphorePermit>>>),
}

impl CallPlace {
    /// Lets the next call of the client run. Once; later it has nothing to give.
    pub(crate) fn give_away(&self) {
        if let Self::Call(permit) = self {
            permit.lock().take();
        }
    }
}

/// The context of a call: handed to every hub method. Cheap to clone; may outlive the call.
pub struct HubContext<S> {
    pub(crate) state: Arc<S>,
    pub(crate) connection: Arc<Connection>,
    pub(crate) place: CallPlace,
}

impl<S> Clone for HubContext<S> {
    fn clone(&self) -> Self {
        Self { state: self.state.clone(), connection: self.connection.clone(), place: self.place.clone() }
    }
}

impl<S> HubContext<S> {
    /// The state that all calls of the hub share, as given to [`Hub::new`](crate::Hub::new).
    #[must_use]
    pub fn state(&self) -> &Arc<S> {
        &self.state
    }

    /// The connection that calls.
    #[must_use]
    pub fn connection_id(&self) -> &ConnectionId {
        &self.connection.id
    }

    /// Its user, as [`Hub::user_id`](crate::Hub::user_id) found it.
    #[must_use]
    pub fn user(&self) -> Option<&UserId> {
        self.connection.user.as_ref()
    }

    /// The query of the request that opened the transport, still percent-encoded; empty without one.
    #[must_use]
    pub fn query(&self) -> &str {
        &self.connection.query
    }

    /// What [`Hub::items`](crate::Hub::items) kept of the request that opened the transport.
    #[must_use]
    pub fn item<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.connection.items.get()
    }

    /// Whom it can send to.
    #[must_use]
    pub fn clients(&self) -> CallerClients {
        let clients = Clients { outlet: self.connection.outlet.clone(), place: self.place.clone() };
        CallerClients { clients, caller: self.connection.id.clone() }
    }

    /// Groups, of this connection and of others.
    #[must_use]
    pub fn groups(&self) -> Groups {
        Groups { backplane: self.connection.outlet.backplane.clone() }
    }

    /// Ends this connection: Close without permission to reconnect. Calls that run are not answered.
    pub fn abort(&self) {
        self.connection.abort();
    }

    /// Completes when the connection has ended. A call that still runs then is dropped after
    /// [`call_grace`](crate::HubOptions::call_grace).
    pub fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        self.connection.ended.clone().cancelled_owned()
    }
}

impl<S> fmt::Debug for HubContext<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubContext")
            .field("connection", &self.connection.id)
            .field("user", &self.connection.user)
            .finish_non_exhaustive()
    }
}

/// Why a connection ended, for `on_disconnected`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Disconnect {
    /// The client left, or this server ended it in order.
    Normal,
    /// The client said that it leaves because of an error.
    ClientError(String),
    /// The transport was lost, the client broke the rules, was silent for too long or fell behind.
    Failed(String),
}
