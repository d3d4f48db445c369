//! The plain answers of the hub's endpoint, headers as recorded from ASP.NET Core.

use axum::body::Body;
use axum::response::Response;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, EXPIRES, HeaderValue, PRAGMA};
use http::{HeaderMap, StatusCode};

const TEXT: HeaderValue = HeaderValue::from_static("text/plain");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Whether an answer names the type of its body. (A WebSocket request to an unknown token gets none.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Headers {
    WithType,
    WithoutType,
}

fn plain(status: StatusCode, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response
}

pub(super) fn text(status: StatusCode, body: impl Into<Body>) -> Response {
    let mut response = plain(status, body);
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    response
}

/// 200, also for an error of negotiation.
pub(super) fn json(body: String) -> Response {
    let mut response = plain(StatusCode::OK, body);
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

/// 404 for a token that means nothing here.
pub(super) fn unknown(headers: Headers) -> Response {
    const BODY: &str = "No Connection with that ID";
    match headers {
        Headers::WithType => text(StatusCode::NOT_FOUND, BODY),
        Headers::WithoutType => plain(StatusCode::NOT_FOUND, BODY),
    }
}

/// Makes it the answer to a poll: nobody may keep it.
pub(super) fn get_of_polls(mut response: Response) -> Response {
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store"));
    headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
    headers.insert(EXPIRES, HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"));
    response
}
