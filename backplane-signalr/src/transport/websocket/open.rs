//! From an HTTP request to an open WebSocket (RFC 6455 section 4.2; HTTP/1.1 only).

use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use http::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use tokio::net::TcpStream;
use tungstenite::handshake::derive_accept_key;

use super::WebSocket;
use crate::options::SubprotocolSelector;
use crate::transport::Transport;

/// Keys are 16 bytes; how their last character was made up does not matter.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// A request that may become a WebSocket.
pub(crate) struct Upgrade {
    stream: OnUpgrade,
    accept: String,
}

impl Upgrade {
    /// Looks for a complete and correct request for an upgrade; anything less is none, as in ASP.NET Core. Takes the
    /// stream out of the request.
    pub(crate) fn of(request: &mut Parts) -> Option<Self> {
        let headers = &request.headers;
        let key = single(headers, &SEC_WEBSOCKET_KEY)?;
        let asks = request.version == Version::HTTP_11
            && items(headers, &CONNECTION).any(|item| item.eq_ignore_ascii_case("upgrade"))
            && items(headers, &UPGRADE).any(|item| item.eq_ignore_ascii_case("websocket"))
            && single(headers, &SEC_WEBSOCKET_VERSION)? == "13"
            && BASE64.decode(key).is_ok_and(|key| key.len() == 16);
        if !asks {
            return None;
        }
        let accept = derive_accept_key(key.as_bytes());
        Some(Self { stream: request.extensions.remove::<OnUpgrade>()?, accept })
    }

    /// The answer that accepts it. No extension is accepted.
    pub(crate) fn accept(&self, request: &Parts, selector: Option<&SubprotocolSelector>) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        let accept = HeaderValue::try_from(&self.accept).expect("base64 is a valid value of a header");
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        if let Some(selector) = selector {
            let offered: Vec<&str> = items(&request.headers, &SEC_WEBSOCKET_PROTOCOL).collect();
            let chosen = if offered.is_empty() { None } else { selector(&offered) };
            match chosen.map(HeaderValue::from_str) {
                Some(Ok(chosen)) => drop(headers.insert(SEC_WEBSOCKET_PROTOCOL, chosen)),
                Some(Err(_)) => {
                    tracing::warn!("the chosen sub-protocol cannot stand in a header and was left out")
                }
                None => {}
            }
        }
        response
    }

    /// The transport, once the answer was written. `deadline` is for a layer of the application that keeps the answer
    /// back, or replaces it.
    ///
    /// Of a plain TCP stream under [`axum::serve()`], or any server on `hyper_util::server::conn::auto`, Nagle's algorithm is switched off: it would hold small messages back
    /// until the client's system acknowledges the one before, up to 40 ms. Streams of another type cannot be reached
    /// from here; there the listener has to do it.
    pub(crate) async fn open(self, deadline: Duration) -> io::Result<Box<dyn Transport>> {
        let upgraded = tokio::time::timeout(deadline, self.stream).await?.map_err(io::Error::other)?;
        Ok(match downcast::<TokioIo<TcpStream>>(upgraded) {
            Ok(parts) => {
                let stream = parts.io.into_inner();
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY could not be set");
                }
                // An empty buffer would still hold its memory.
                let early = if parts.read_buf.is_empty() { Bytes::new() } else { parts.read_buf };
                Box::new(WebSocket::new(stream, early))
            }
            Err(upgraded) => Box::new(WebSocket::new(TokioIo::new(upgraded), Bytes::new())),
        })
    }
}

/// The items of a header that is a list, over all its lines.
fn items<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|item| !item.is_empty())
}

/// The value of a header that must not be there twice.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut lines = headers.get_all(name).into_iter();
    let first = lines.next()?.to_str().ok()?;
    lines.next().is_none().then(|| first.trim())
}

#[cfg(test)]
mod tests {
    use axum::extract::Request;
    use axum::routing::get;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    type Opened = io::Result<Box<dyn Transport>>;

    /// Accepts the upgrade and hands over what was opened.
    fn upgrade(request: Request, opened: mpsc::Sender<Opened>) -> Response {
        let (mut parts, _) = request.into_parts();
        let upgrade = Upgrade::of(&mut parts).expect("a correct upgrade");
        let response = upgrade.accept(&parts, None);
        tokio::spawn(async move { opened.send(upgrade.open(DEADLINE).await).await });
        response
    }

    async fn next(opened: &mut mpsc::Receiver<Opened>) -> Box<dyn Transport> {
        tokio::time::timeout(DEADLINE, opened.recv()).await.unwrap().unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_tcp_stream_under_axum_serve_is_reached_and_the_answer_has_no_length() {
        let (sender, mut opened) = mpsc::channel(1);
        let app: axum::Router = axum::Router::new().route("/", get(async |request| upgrade(request, sender)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let serving = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        client.write_all(REQUEST).await.unwrap();
        let transport = next(&mut opened).await;
        let kind = format!("{transport:?}");
        assert!(kind.contains("TcpStream") && !kind.contains("Upgraded"), "{kind}");
        drop(transport);
        let mut head = String::new();
        tokio::time::timeout(DEADLINE, client.read_to_string(&mut head)).await.unwrap().unwrap();
        assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
        assert!(!head.to_lowercase().contains("content-length"), "RFC 9110 section 8.6: {head}");
        serving.abort();
    }

    #[tokio::test]
    async fn any_other_stream_works_as_it_is() {
        let (sender, mut opened) = mpsc::channel(1);
        let (ours, mut client) = duplex(1 << 10);
        let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let response = upgrade(request.map(Body::new), sender.clone());
            async move { Ok::<_, std::convert::Infallible>(response) }
        });
        let serving =
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(ours), service).with_upgrades());
        client.write_all(REQUEST).await.unwrap();
        let transport = next(&mut opened).await;
        assert!(format!("{transport:?}").contains("Upgraded"));
        serving.await.unwrap().unwrap();
    }
}
