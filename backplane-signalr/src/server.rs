//! A hub that is served: the handle of the application, and what its connections share.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;

use backplane_core::{Backplane, ConnectionId};
use http::request::Parts;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clients::{Clients, Groups, Outlet};
use crate::connection;
use crate::context::{CallPlace, Connection};
use crate::hub::AnyHub;
use crate::mount;
use crate::options::HubOptions;
use crate::protocol::HubProtocol;
use crate::seldom::Seldom;
use crate::sessions::{Session, Sessions};
use crate::transport::Transport;

/// A hub that is served. Cheap to clone; all clones are the same server.
///
/// Dropping all of them does not end the connections: call [`shutdown`](HubServer::shutdown).
#[derive(Clone)]
pub struct HubServer(pub(crate) Arc<Server>);

impl HubServer {
    pub(crate) fn new(
        hub: Arc<dyn AnyHub>,
        backplane: Arc<dyn Backplane>,
        options: HubOptions,
        protocols: Vec<Arc<dyn HubProtocol>>,
    ) -> Self {
        let sessions = Sessions::new(options.disconnect_timeout, options.max_negotiated);
        Self(Arc::new(Server {
            hub,
            outlet: Outlet { backplane, protocols: protocols.into() },
            options,
            sessions,
            unregistered: Seldom::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        }))
    }

    /// Puts the hub at `path` of an application: requests for it are served here, all others by `app`. Case,
    /// percent-encoding and a trailing slash of the path do not matter. Layers of `app` do not see the hub's requests;
    /// layers put on the result see both, so that is where authentication and CORS go.
    ///
    /// Nagle's algorithm is switched off for the plain TCP streams of [`axum::serve()`]; a listener of another kind (TLS) has
    /// to do it, or small messages wait up to 40 ms.
    ///
    /// To have several hubs in one application, mount the next one on the result of the first. (Two results cannot be
    /// `merge`d: each has a fallback.) The result may be nested.
    ///
    /// # Panics
    /// When `path` does not start with `/`, is `/` alone, ends with `/`, or holds one of `%`, `?`, `#`, `{`, `}` or an
    /// empty segment: it is written as it reads, not encoded and without parameters.
    pub fn mount(&self, path: &str, app: axum::Router) -> axum::Router {
        mount::mount(self.0.clone(), path, app)
    }

    /// The clients of this hub on all servers, for sends from outside a hub method.
    #[must_use]
    pub fn clients(&self) -> Clients {
        Clients { outlet: self.0.outlet.clone(), place: CallPlace::Outside }
    }

    /// Groups of this hub, from outside a hub method.
    #[must_use]
    pub fn groups(&self) -> Groups {
        Groups { backplane: self.0.outlet.backplane.clone() }
    }

    /// The backplane below.
    #[must_use]
    pub fn backplane(&self) -> &Arc<dyn Backplane> {
        &self.0.outlet.backplane
    }

    /// How many connections are open here, handshakes included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.0.tasks.len()
    }

    /// Ends all connections in order: each client gets Close with permission to reconnect, then its transport is closed;
    /// new requests get 503. Returns when all have ended, within [`HubOptions::shutdown_timeout`]. Idempotent. The
    /// backplane stays open: shut it down afterwards.
    pub async fn shutdown(&self) {
        self.0.stopping.cancel();
        self.0.tasks.close();
        if tokio::time::timeout(self.0.options.shutdown_timeout, self.0.tasks.wait()).await.is_err() {
            tracing::warn!(connections = self.0.tasks.len(), "connections did not end in time");
        }
    }
}

impl fmt::Debug for HubServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubServer")
            .field("connections", &self.connections())
            .field("options", &self.0.options)
            .finish_non_exhaustive()
    }
}

/// What the connections of one hub share.
pub(crate) struct Server {
    pub(crate) hub: Arc<dyn AnyHub>,
    pub(crate) outlet: Outlet,
    pub(crate) options: HubOptions,
    pub(crate) sessions: Arc<Sessions>,
    tasks: TaskTracker,
    /// Warnings about registrations that failed: as many as clients try again.
    pub(crate) unregistered: Seldom,
    /// Cancelled when the server shuts down.
    pub(crate) stopping: CancellationToken,
}

impl Server {
    pub(crate) fn new_connection_id(&self) -> ConnectionId {
        self.outlet.backplane.new_connection_id()
    }

    /// Starts the connection of a session whose transport is about to open, in a task of its own. What the hub wants to
    /// know of the request is taken from it now; nothing else of it is kept.
    pub(crate) fn start(
        self: &Arc<Self>,
        request: &Parts,
        session: Session,
        transport: impl Future<Output = io::Result<Box<dyn Transport>>> + Send + 'static,
    ) {
        let connection = Connection::new(
            session.connection().clone(),
            self.hub.user(request),
            request.uri.query().unwrap_or_default().into(),
            self.hub.items(request),
            self.outlet.clone(),
        );
        let server = self.clone();
        self.tasks.spawn(async move {
            match transport.await {
                Ok(transport) => connection::run(server, Arc::new(connection), transport, session).await,
                Err(error) => tracing::debug!(%error, "the transport did not open"),
            }
        });
    }
}
