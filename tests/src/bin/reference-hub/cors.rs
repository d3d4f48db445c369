//! The CORS policy of the recordings: `http://example.com`, any header and method, credentials; answered as ASP.NET Core
//! does, where a preflight is 204 whoever asks.

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

const ALLOWED: &str = "http://example.com";

/// Answers preflights, and marks the answers that the page may read.
pub(crate) async fn policy(request: Request, next: Next) -> Response {
    let origin = asked(&request, &header::ORIGIN);
    let method = asked(&request, &header::ACCESS_CONTROL_REQUEST_METHOD);
    let headers = asked(&request, &header::ACCESS_CONTROL_REQUEST_HEADERS);
    let is_preflight = request.method() == Method::OPTIONS && origin.is_some() && method.is_some();

    let mut response =
        if is_preflight { StatusCode::NO_CONTENT.into_response() } else { next.run(request).await };
    let Some(origin) = origin.filter(|origin| origin == ALLOWED) else { return response };
    let answer = response.headers_mut();
    answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    answer.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    if is_preflight {
        answer.extend(method.map(|method| (header::ACCESS_CONTROL_ALLOW_METHODS, method)));
        answer.extend(headers.map(|headers| (header::ACCESS_CONTROL_ALLOW_HEADERS, headers)));
    }
    response
}

fn asked(request: &Request, name: &HeaderName) -> Option<HeaderValue> {
    request.headers().get(name).cloned()
}
