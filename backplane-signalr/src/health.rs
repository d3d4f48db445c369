//! The state of the backplane for load balancers and operators, over HTTP.

use std::sync::Arc;

use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, get};
use backplane_core::{Backplane, Health, LinkState};
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};

/// A handler for `GET` that says whether sends can succeed now: 200 while the link is up; 503 while it is down, or up
/// while the broker takes nothing from us (`impeded`), before it was up for the first time, and after the node was shut
/// down.
///
/// The body is JSON: `status` (`up`, `impeded`, `down`, `closed`), `attempts` to connect so far, `detects_loss`
/// ([`Health::detects_loss`]) and `error`, the kind of the last failure while down, else `null`. Texts of errors are not
/// told, because they can name hosts.
///
/// ```
/// # use std::sync::Arc;
/// # use backplane_core::Backplane;
/// # fn app(backplane: Arc<dyn Backplane>) -> axum::Router {
/// axum::Router::new().route("/health", backplane_signalr::health(backplane))
/// # }
/// ```
pub fn health<S>(backplane: Arc<dyn Backplane>) -> MethodRouter<S>
where
    S: Clone + Send + Sync + 'static,
{
    get(move || {
        let health = backplane.health().borrow().clone();
        async move { answer(&health) }
    })
}

fn answer(health: &Health) -> Response {
    let (status, error) = match &health.state {
        LinkState::Up => match &health.impediment {
            None => ("up", None),
            Some(error) => ("impeded", Some(error.kind().to_string())),
        },
        LinkState::Down { error } => ("down", error.as_ref().map(|error| error.kind().to_string())),
        LinkState::Closed => ("closed", None),
    };
    let code = if health.is_up() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::json!({
        "status": status,
        "attempts": health.attempts,
        "detects_loss": health.detects_loss,
        "error": error,
    });
    (code, [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")], body.to_string())
        .into_response()
}

#[cfg(test)]
mod tests {
    use backplane_core::{Error, ErrorKind, MemoryBus, Router, RouterConfig};
    use http::Request;
    use tower::ServiceExt as _;

    use super::*;

    async fn body(response: Response) -> serde_json::Value {
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 10).await.unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    #[tokio::test]
    async fn up_is_200_and_after_the_shutdown_503() {
        let node = Router::open(Arc::new(MemoryBus::new()), RouterConfig::default()).await.unwrap();
        let node: Arc<dyn Backplane> = Arc::new(node);
        let app: axum::Router = axum::Router::new().route("/health", health(node.clone()));
        let get = || Request::get("/health").body(axum::body::Body::empty()).unwrap();

        let response = app.clone().oneshot(get()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        let expected =
            serde_json::json!({"status": "up", "attempts": 1, "detects_loss": true, "error": null});
        assert_eq!(body(response).await, expected);

        node.shutdown().await.unwrap();
        let response = app.oneshot(get()).await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(body(response).await["status"], "closed");
    }

    #[tokio::test]
    async fn down_is_503_and_tells_the_kind_of_the_error_only() {
        let error = Error::new(ErrorKind::Denied, "connect").with_context("redis://user:secret@host");
        let health = |error| Health {
            state: LinkState::Down { error },
            attempts: 7,
            detects_loss: false,
            impediment: None,
        };
        let response = answer(&health(Some(error)));
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let expected =
            serde_json::json!({"status": "down", "attempts": 7, "detects_loss": false, "error": "denied"});
        assert_eq!(body(response).await, expected);
        assert_eq!(body(answer(&health(None))).await["error"], serde_json::Value::Null);
    }
}
