//! The management interface of Service Bus: entities as Atom entries over HTTP.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backplane_core::{Error, ErrorKind, Result};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;

use super::connection::dial;
use super::token::Signer;

const API_VERSION: &str = "2021-05";
/// Answers beyond this are not read.
const MAX_ANSWER: usize = 64 << 10;
/// How long the token of one request lasts.
const TOKEN_LIFETIME: Duration = Duration::from_secs(300);
/// The shortest that Service Bus takes: a subscription without a receiver for so long is deleted.
pub(super) const AUTO_DELETE_ON_IDLE: &str = "PT5M";

/// See the module.
#[derive(Debug)]
pub(super) struct Management {
    host: String,
    port: u16,
    tls: Option<Arc<rustls::ClientConfig>>,
    signer: Signer,
    /// The namespace, which tokens are for.
    namespace: String,
}

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// The entity was made, changed or deleted.
    Now,
    /// It was like that before.
    Already,
    /// What it stands in is not there.
    Missing,
}

impl Management {
    pub(super) fn new(
        host: &str,
        port: u16,
        tls: Option<Arc<rustls::ClientConfig>>,
        signer: Signer,
        namespace: &str,
    ) -> Self {
        Self { host: host.to_owned(), port, tls, signer, namespace: namespace.to_owned() }
    }

    /// Makes a topic whose messages live for `ttl`, unless there is one.
    pub(super) async fn create_topic(&self, topic: &str, ttl: Duration) -> Result<Done> {
        // The elements stand in the order of the service's schema.
        let entry = entry(
            "TopicDescription",
            &[
                ("DefaultMessageTimeToLive", &iso_seconds(ttl)),
                ("RequiresDuplicateDetection", "false"),
                ("EnableBatchedOperations", "true"),
                ("SupportOrdering", "true"),
                ("EnablePartitioning", "false"),
            ],
        );
        self.request(Method::PUT, topic, Some(entry)).await
    }

    /// Makes a subscription that deletes itself when it is idle.
    pub(super) async fn create_subscription(
        &self,
        topic: &str,
        subscription: &str,
        ttl: Duration,
    ) -> Result<Done> {
        let entry = entry(
            "SubscriptionDescription",
            &[
                ("RequiresSession", "false"),
                ("DefaultMessageTimeToLive", &iso_seconds(ttl)),
                ("DeadLetteringOnMessageExpiration", "false"),
                ("DeadLetteringOnFilterEvaluationExceptions", "false"),
                ("EnableBatchedOperations", "true"),
                ("AutoDeleteOnIdle", AUTO_DELETE_ON_IDLE),
            ],
        );
        self.request(Method::PUT, &subscription_path(topic, subscription), Some(entry)).await
    }

    /// Deletes a subscription.
    pub(super) async fn delete_subscription(&self, topic: &str, subscription: &str) -> Result<Done> {
        self.request(Method::DELETE, &subscription_path(topic, subscription), None).await
    }

    /// Host and port, as a request names them.
    fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let default = if self.tls.is_some() { 443 } else { 80 };
        if self.port == default { host } else { format!("{host}:{}", self.port) }
    }

    async fn request(&self, method: Method, path: &str, body: Option<String>) -> Result<Done> {
        let broken = |error: hyper::Error| {
            Error::new(ErrorKind::Unavailable, "connect")
                .with_context("the management interface did not answer")
                .with_source(error)
        };
        let resource = format!("https://{}/{path}", self.namespace);
        let token = self.signer.sign(&resource, SystemTime::now(), TOKEN_LIFETIME);
        let request = Request::builder()
            .method(method.clone())
            .uri(format!("/{path}?api-version={API_VERSION}"))
            .header(HOST, self.authority())
            .header(AUTHORIZATION, token.text)
            .header(CONTENT_TYPE, "application/atom+xml;type=entry;charset=utf-8")
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| {
                Error::new(ErrorKind::InvalidConfig, "connect")
                    .with_context("the entity's name makes no path")
                    .with_source(error)
            })?;
        let stream = dial(&self.host, self.port, self.tls.as_ref()).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let exchange = async {
            let answer = sender.send_request(request).await.map_err(broken)?;
            let status = answer.status();
            // What it says is for the error alone; a body that is too long or breaks off says nothing.
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
            let body = body.map(|body| body.to_bytes()).unwrap_or_default();
            judge(&method, status, &body)
        };
        tokio::pin!(connection);
        tokio::pin!(exchange);
        tokio::select! {
            outcome = &mut exchange => outcome,
            // It may end before the answer was looked at.
            _ = &mut connection => exchange.await,
        }
    }
}

/// What a status means.
fn judge(method: &Method, status: StatusCode, body: &[u8]) -> Result<Done> {
    let text = String::from_utf8_lossy(body);
    let kind = match status {
        StatusCode::NOT_FOUND | StatusCode::GONE if method == Method::DELETE => return Ok(Done::Already),
        StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(Done::Missing),
        // Somebody else made it first, or is making it now.
        StatusCode::CONFLICT if method == Method::PUT => return Ok(Done::Already),
        status if status.is_success() => return Ok(Done::Now),
        StatusCode::UNAUTHORIZED => ErrorKind::Denied,
        // As Microsoft's own clients read it: what the entity does not allow, or else a quota that is used up, such as
        // that of 2,000 subscriptions.
        StatusCode::FORBIDDEN if text.contains("SubCode=40301") => ErrorKind::InvalidConfig,
        StatusCode::FORBIDDEN => ErrorKind::Overloaded,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => ErrorKind::Overloaded,
        StatusCode::BAD_REQUEST => ErrorKind::InvalidConfig,
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => ErrorKind::Timeout,
        _ => ErrorKind::Unavailable,
    };
    let detail = element(&text, "Detail").unwrap_or("no detail");
    Err(Error::new(kind, "connect")
        .with_context(format!("the management interface answered {}: {detail}", status.as_u16())))
}

/// The text of the first element of that name.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}

fn subscription_path(topic: &str, subscription: &str) -> String {
    format!("{topic}/subscriptions/{subscription}")
}

/// An Atom entry. Names and values are ours and need no escaping.
fn entry(kind: &str, fields: &[(&str, &str)]) -> String {
    let mut entry =
        String::from("<entry xmlns=\"http://www.w3.org/2005/Atom\"><content type=\"application/xml\">");
    // Writing to a string does not fail.
    let _ = write!(
        entry,
        "<{kind} xmlns=\"http://schemas.microsoft.com/netservices/2010/10/servicebus/connect\">"
    );
    for (name, value) in fields {
        let _ = write!(entry, "<{name}>{value}</{name}>");
    }
    let _ = write!(entry, "</{kind}></content></entry>");
    entry
}

fn iso_seconds(duration: Duration) -> String {
    format!("PT{}S", duration.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_mean_what_they_say() {
        let of = |method, status: u16| {
            judge(&method, StatusCode::from_u16(status).unwrap(), b"<Detail>why</Detail>")
        };
        assert_eq!(of(Method::PUT, 201).unwrap(), Done::Now);
        assert_eq!(of(Method::PUT, 409).unwrap(), Done::Already);
        assert_eq!(of(Method::PUT, 404).unwrap(), Done::Missing);
        assert_eq!(of(Method::DELETE, 404).unwrap(), Done::Already);
        for (status, kind) in [
            (401, ErrorKind::Denied),
            (403, ErrorKind::Overloaded),
            (429, ErrorKind::Overloaded),
            (503, ErrorKind::Overloaded),
            (400, ErrorKind::InvalidConfig),
            (500, ErrorKind::Unavailable),
        ] {
            let error = of(Method::PUT, status).unwrap_err();
            assert_eq!(error.kind(), kind, "{status}");
            assert!(error.to_string().contains("why"), "{error}");
        }
    }

    #[test]
    fn what_is_forbidden_is_a_quota_unless_it_says_otherwise() {
        let told = |text: &str| judge(&Method::PUT, StatusCode::FORBIDDEN, text.as_bytes()).unwrap_err();
        let quota = told("<Detail>SubCode=40300. The maximum number of subscriptions was reached.</Detail>");
        assert_eq!(quota.kind(), ErrorKind::Overloaded, "{quota}");
        let invalid = told("<Detail>SubCode=40301. Not on this entity.</Detail>");
        assert_eq!(invalid.kind(), ErrorKind::InvalidConfig, "{invalid}");
    }

    #[test]
    fn a_request_names_host_and_port() {
        let of =
            |host: &str, port| Management::new(host, port, None, Signer::new("a", "b"), host).authority();
        assert_eq!(of("localhost", 5300), "localhost:5300");
        assert_eq!(of("localhost", 80), "localhost");
        assert_eq!(of("::1", 5300), "[::1]:5300");
    }

    #[test]
    fn an_entry_names_its_fields_in_order() {
        let entry =
            entry("SubscriptionDescription", &[("A", "1"), ("AutoDeleteOnIdle", AUTO_DELETE_ON_IDLE)]);
        assert!(
            entry.contains("<A>1</A><AutoDeleteOnIdle>PT5M</AutoDeleteOnIdle></SubscriptionDescription>")
        );
        assert_eq!(iso_seconds(Duration::from_secs(60)), "PT60S");
    }
}
