//! Cause and cure of a token that is unknown here: for the client in a header, for the operator in the log.

use axum::response::Response;
use http::header::{HeaderName, HeaderValue};

use crate::seldom::Seldom;

/// The header with the hint. Clients ignore it; people and proxies' logs see it.
pub(super) const NAME: HeaderName = HeaderName::from_static("x-signalr-hint");

/// What it says.
pub(super) const TEXT: &str = "the connection was negotiated on another server, or has ended or expired; \
    with several servers use session affinity, or skip negotiation and use WebSockets only";

/// Tells the hint, in the log not too often.
#[derive(Debug, Default)]
pub(super) struct Hint(Seldom);

impl Hint {
    /// Adds the header, and warns.
    pub(super) fn on(&self, mut response: Response) -> Response {
        response.headers_mut().insert(NAME, HeaderValue::from_static(TEXT));
        if let Some(suppressed) = self.0.due() {
            tracing::warn!(suppressed, "no connection with that id: {TEXT}");
        }
        response
    }
}
