//! Where the hub sits in an axum application, and what each request to it gets.
//!
//! Answers are those of ASP.NET Core, with the transports that are not served yet answered as disabled ones.

mod answer;
mod hint;
mod path;
pub(crate) mod query;

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::extract::Request;
use axum::response::Response;
use futures::future::Either;
use http::request::Parts;
use http::{Method, StatusCode};
use tower::Service;

use crate::dispatch::panic_text;
use crate::seldom::Seldom;
use crate::server::Server;
use crate::sessions::{Found, Refused};
use crate::transport::websocket::Upgrade;
use crate::transport::{negotiate, websocket};
use answer::{Headers, get_of_polls, json, text};
use hint::Hint;
use path::{MountPath, Place};

/// The names of transports that are not served yet.
const LONG_POLLING: &str = "LongPolling";
const SERVER_SENT_EVENTS: &str = "ServerSentEvents";

/// How much of a body that nobody wants is read at most, and for how long: see [`Endpoint::read_away`].
const UNWANTED_BYTES: usize = 1 << 20;
const UNWANTED_TIME: Duration = Duration::from_secs(5);

/// An application with the hub at `path` in front of it.
///
/// # Panics
/// When `path` does not start with `/`, is `/` alone, or ends with `/`.
pub(crate) fn mount(server: Arc<Server>, path: &str, app: axum::Router) -> axum::Router {
    let endpoint = Arc::new(Endpoint {
        server,
        path: MountPath::new(path),
        hint: Hint::default(),
        full: Seldom::default(),
    });
    axum::Router::new().fallback_service(Mounted { endpoint, app })
}

/// Serves requests for the hub, and hands all others to the application.
#[derive(Clone)]
struct Mounted {
    endpoint: Arc<Endpoint>,
    app: axum::Router,
}

impl Service<Request> for Mounted {
    type Response = Response;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response, Infallible>>, <axum::Router as Service<Request>>::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request>::poll_ready(&mut self.app, context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        match self.endpoint.path.locate(request.uri().path()) {
            Some(place) => {
                // What the application gave to the hub (`user_id`, `items`, a selector) may panic: an error of this
                // request alone.
                let answer = catch_unwind(AssertUnwindSafe(|| self.endpoint.answer(place, request)));
                Either::Left(ready(Ok(answer.unwrap_or_else(|panic| {
                    tracing::error!(panic = panic_text(panic.as_ref()), "a function of the hub panicked");
                    text(StatusCode::INTERNAL_SERVER_ERROR, "")
                }))))
            }
            None => Either::Right(self.app.call(request)),
        }
    }
}

/// What a request lacks.
#[derive(Clone, Copy, Debug)]
enum Missing {
    Token,
    Connection,
}

/// The hub's side of HTTP. Nothing in it waits.
struct Endpoint {
    server: Arc<Server>,
    path: MountPath,
    hint: Hint,
    /// Warnings about negotiations that were refused.
    full: Seldom,
}

impl Endpoint {
    fn answer(&self, place: Place, request: Request) -> Response {
        let (mut parts, body) = request.into_parts();
        let empty = body.is_end_stream();
        self.read_away(body);
        if self.server.stopping.is_cancelled() {
            return text(StatusCode::SERVICE_UNAVAILABLE, "The server is shutting down.");
        }
        match (place, &parts.method) {
            (Place::Negotiate, &Method::POST) => self.negotiate(&parts),
            (Place::Hub, &Method::GET) => self.get(&mut parts),
            (Place::Hub, &Method::POST) => self.post(&parts, empty),
            (Place::Hub, &Method::DELETE) => self.delete(&parts),
            _ => text(StatusCode::METHOD_NOT_ALLOWED, ""),
        }
    }

    fn negotiate(&self, request: &Parts) -> Response {
        let options = &self.server.options;
        let version = match negotiate::version(query_of(request), options.min_negotiate_version) {
            Ok(version) => version,
            Err(refusal) => return json(refusal.to_json()),
        };
        let connection = self.server.new_connection_id();
        match self.server.sessions.negotiate(connection.clone(), version) {
            Ok(token) => {
                json(negotiate::Answer::new(version, &connection, &token, options.transports).to_json())
            }
            Err(crate::sessions::Full) => {
                if let Some(suppressed) = self.full.due() {
                    tracing::warn!(suppressed, "negotiations are refused: too many wait for their transport");
                }
                text(StatusCode::SERVICE_UNAVAILABLE, "Too many connections wait for their transport.")
            }
        }
    }

    fn get(&self, request: &mut Parts) -> Response {
        if accepts_events(request) {
            return self.not_served(request, SERVER_SENT_EVENTS);
        }
        match Upgrade::of(request) {
            Some(upgrade) => self.web_socket(request, upgrade),
            None => get_of_polls(self.not_served(request, LONG_POLLING)),
        }
    }

    fn web_socket(&self, request: &Parts, upgrade: Upgrade) -> Response {
        let Server { sessions, options, .. } = &*self.server;
        let token = token(request);
        if token.as_ref().is_some_and(|token| sessions.find(token).is_none()) {
            return self.unknown(Headers::WithoutType);
        }
        if !options.transports.web_sockets {
            return not_supported(websocket::NAME);
        }
        let claimed = match token {
            None => Ok(sessions.skip(self.server.new_connection_id(), websocket::NAME)),
            Some(token) => sessions.claim(&token, websocket::NAME),
        };
        let session = match claimed {
            Ok(session) => session,
            Err(Refused::Unknown) => return self.unknown(Headers::WithoutType),
            Err(Refused::InUse(websocket::NAME)) => return text(StatusCode::CONFLICT, ""),
            Err(Refused::InUse(_)) => return other_transport(),
        };
        let response = upgrade.accept(request, options.subprotocol.as_ref());
        // Not cut short by a shutdown: whoever got this answer is told of it in order. Within its time all the same.
        let opened = upgrade.open(options.close_timeout.min(options.handshake_timeout));
        self.server.start(request, session, opened);
        response
    }

    /// A request for a transport that this version does not have.
    fn not_served(&self, request: &Parts, transport: &'static str) -> Response {
        match self.find(request) {
            Err(missing) => self.missing(missing),
            Ok(Found::InUse(_)) => other_transport(),
            Ok(Found::Waiting) => not_supported(transport),
        }
    }

    /// What other transports send by POST.
    fn post(&self, request: &Parts, empty: bool) -> Response {
        match self.find(request) {
            Err(missing) => self.missing(missing),
            Ok(Found::InUse(_)) => text(
                StatusCode::METHOD_NOT_ALLOWED,
                "POST requests are not allowed for WebSocket connections.",
            ),
            // Nothing would ever read it: better an answer than a loss.
            Ok(Found::Waiting) if !empty => not_supported(LONG_POLLING),
            Ok(Found::Waiting) => text(StatusCode::OK, ""),
        }
    }

    fn delete(&self, request: &Parts) -> Response {
        match self.find(request) {
            Err(missing) => self.missing(missing),
            Ok(_) => {
                text(StatusCode::BAD_REQUEST, "Cannot terminate this connection using the DELETE endpoint.")
            }
        }
    }

    /// What the token of a request that must have one stands for.
    fn find(&self, request: &Parts) -> Result<Found, Missing> {
        let token = token(request).ok_or(Missing::Token)?;
        self.server.sessions.find(&token).ok_or(Missing::Connection)
    }

    fn missing(&self, missing: Missing) -> Response {
        match missing {
            Missing::Token => text(StatusCode::BAD_REQUEST, "Connection ID required"),
            Missing::Connection => self.unknown(Headers::WithType),
        }
    }

    fn unknown(&self, headers: Headers) -> Response {
        self.hint.on(answer::unknown(headers))
    }

    /// Reads a body that nobody wants. Without it the HTTP server would close the connection over unread bytes, and the
    /// client might lose the answer. The answer does not wait for it; a client that sends on without end is cut off. Over
    /// HTTP/1.1, which serves one request after the other, at most one such task lives for each open connection.
    fn read_away(&self, mut body: Body) {
        if body.is_end_stream() {
            return;
        }
        let stopping = self.server.stopping.clone();
        let read = async move {
            let mut left = UNWANTED_BYTES;
            let next =
                |body: &mut Body, context: &mut Context<'_>| std::pin::Pin::new(body).poll_frame(context);
            while let Some(Ok(frame)) = std::future::poll_fn(|context| next(&mut body, context)).await {
                let size = frame.data_ref().map_or(0, |bytes| bytes.len());
                if size > left {
                    break;
                }
                left -= size;
            }
        };
        tokio::spawn(stopping.run_until_cancelled_owned(tokio::time::timeout(UNWANTED_TIME, read)));
    }
}

/// 404 for a transport that this hub does not serve.
fn not_supported(transport: &str) -> Response {
    text(StatusCode::NOT_FOUND, format!("{transport} transport not supported by this end point type"))
}

fn other_transport() -> Response {
    text(StatusCode::BAD_REQUEST, "Cannot change transports mid-connection")
}

fn query_of(request: &Parts) -> &str {
    request.uri.query().unwrap_or_default()
}

/// The connection token; `None` when it is missing or empty. Two of them are joined, which no token is.
fn token(request: &Parts) -> Option<String> {
    let mut ids = query::values(query_of(request), "id");
    let mut token = ids.next()?.into_owned();
    let mut several = false;
    for id in ids {
        several = true;
        token = token + "," + &id;
    }
    (several || !token.is_empty()).then_some(token)
}

/// Whether a request asks for server-sent events: by the bare type, without parameters.
fn accepts_events(request: &Parts) -> bool {
    let lines = request.headers.get_all(http::header::ACCEPT).into_iter();
    let mut types = lines.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(','));
    types.any(|media| media.trim().eq_ignore_ascii_case("text/event-stream"))
}

#[cfg(test)]
mod tests;
