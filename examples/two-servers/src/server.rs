//! One server: a node of the backplane, the hub on it, and the page, on one port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use backplane::{Backplane as _, Router};
use backplane_signalr::HubServer;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::bus::SharedBus;
use crate::chat::{self, Chat, Shared};
use crate::http;
use crate::link::{self, Link};
use crate::page;

/// Where the hub of the page is.
pub(crate) const HUB: &str = "/chatHub";
/// How long a client may take to send a request's head.
const HEADS: Duration = Duration::from_secs(10);
/// How long requests that are being served when the server ends may take.
const GRACE: Duration = Duration::from_secs(5);

/// A server that runs. Cut off when it is dropped; [`shutdown`](Server::shutdown) ends it in order.
pub(crate) struct Server {
    pub(crate) node: Router,
    hubs: Vec<HubServer>,
    stop: CancellationToken,
    http: JoinHandle<()>,
    watch: JoinHandle<()>,
}

impl Server {
    /// Serves at `listener` what `node` is told. `further` hubs stand beside that of the page.
    /// `one_request_each`: every HTTP response ends its connection, so that a front has a choice at each request.
    pub(crate) fn start(
        listener: TcpListener,
        address: SocketAddr,
        bus: &SharedBus,
        node: Router,
        further: Vec<(&str, HubServer)>,
        one_request_each: bool,
    ) -> backplane::Result<Self> {
        let name = address.port().to_string();
        let shared = Shared::new(Link::of(&node.health().borrow()));
        let chat =
            Chat::new(name.clone(), bus.name().to_owned(), node.clone(), bus.fault.clone(), shared.clone());
        let backplane: Arc<Router> = Arc::new(node.clone());
        let hub = chat::hub(chat).serve(backplane.clone())?;
        let watch = tokio::spawn(link::watch(node.clone(), hub.clients(), shared.clone()));

        let counters = {
            let (node, bus) = (node.clone(), bus.name().to_owned());
            move || async move { Json(chat::stats(&name, &bus, &node, &shared)) }
        };
        let app = page::routes()
            .route("/health", get(backplane_signalr::health(backplane)))
            .route("/stats", get(counters));
        let mut app = hub.mount(HUB, app);
        let mut hubs = vec![hub];
        for (path, hub) in further {
            app = hub.mount(path, app);
            hubs.push(hub);
        }
        if one_request_each {
            app = app.layer(middleware::from_fn(close_after));
        }

        let stop = CancellationToken::new();
        let http = tokio::spawn(http::serve(listener, app, HEADS, stop.clone()));
        Ok(Self { node, hubs, stop, http, watch })
    }

    /// In order: clients are told to come back, requests end, the node leaves.
    ///
    /// # Errors
    /// The node's.
    pub(crate) async fn shutdown(mut self) -> backplane::Result<()> {
        futures::future::join_all(self.hubs.iter().map(HubServer::shutdown)).await;
        self.stop.cancel();
        if tokio::time::timeout(GRACE, &mut self.http).await.is_err() {
            tracing::warn!("requests did not end in time");
        }
        self.node.shutdown().await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.http.abort();
        self.watch.abort();
    }
}

async fn close_after(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
