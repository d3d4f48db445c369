//! Every answer as recorded from ASP.NET Core, over real sockets: the HTTP server below is part of what is promised.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use backplane_core::{ConnectionId, MemoryBus, Router, RouterConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::{Hub, HubOptions, HubServer, Transports};

const DEADLINE: Duration = Duration::from_secs(10);
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const REQUIRED: &str = "Connection ID required";
const UNKNOWN: &str = "No Connection with that ID";

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("in time")
}

/// A hub at `/chatHub` in front of an application with one page.
struct Site {
    address: SocketAddr,
    hub: HubServer,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn hub(options: HubOptions) -> HubServer {
    let node = Router::open(Arc::new(MemoryBus::new()), RouterConfig::default()).await.unwrap();
    Hub::new(()).options(options).serve(Arc::new(node)).unwrap()
}

async fn serve(hub: HubServer, app: axum::Router) -> Site {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    Site { address, hub, serving }
}

async fn site(options: HubOptions) -> Site {
    let hub = hub(options).await;
    let page = axum::Router::new().route("/page", axum::routing::any(|| async { "the page" }));
    let app = hub.mount("/chatHub", page);
    serve(hub, app).await
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    fn json(&self) -> serde_json::Value {
        assert_eq!((self.status, self.header("content-type")), (200, Some("application/json")));
        serde_json::from_str(&self.body).unwrap()
    }

    #[track_caller]
    fn is(&self, status: u16, body: &str) -> &Self {
        assert_eq!((self.status, &*self.body), (status, body), "{self:?}");
        self
    }

    /// The headers that are compared, and no others: recordings have no more.
    #[track_caller]
    fn has(&self, expected: &[(&str, &str)]) -> &Self {
        let ignored = ["content-length", "date", "connection", "upgrade", "sec-websocket-accept"];
        let mut got: BTreeMap<_, _> = self.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        got.retain(|name, _| !ignored.contains(name));
        assert_eq!(got, expected.iter().copied().collect(), "{self:?}");
        self
    }
}

const PLAIN: &[(&str, &str)] = &[("content-type", "text/plain")];
const POLL: &[(&str, &str)] = &[
    ("content-type", "text/plain"),
    ("cache-control", "no-cache, no-store"),
    ("expires", "Thu, 01 Jan 1970 00:00:00 GMT"),
    ("pragma", "no-cache"),
];

fn with_hint(headers: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    let mut headers = headers.to_vec();
    headers.push((hint::NAME.as_str().to_owned().leak(), hint::TEXT));
    headers
}

/// Reads one answer; what follows it is left in the stream.
async fn answer(stream: &mut TcpStream, head_only: bool) -> Answer {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within(stream.read_u8()).await.expect("an answer"));
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.trim_end().split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: BTreeMap<_, _> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let length = match headers.get("content-length") {
        Some(length) if !head_only => length.parse().unwrap(),
        _ => 0,
    };
    let mut body = vec![0; length];
    within(stream.read_exact(&mut body)).await.unwrap();
    Answer { status, headers, body: String::from_utf8(body).unwrap() }
}

impl Site {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> (Answer, TcpStream) {
        let mut stream = self.connect().await;
        let head = format!("{method} {path} HTTP/1.1\r\nHost: hub\r\n{headers}\r\n");
        stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
        (answer(&mut stream, method == "HEAD").await, stream)
    }

    async fn request(&self, method: &str, path: &str) -> Answer {
        self.send(method, path, "", b"").await.0
    }

    async fn post(&self, path: &str, body: &str) -> Answer {
        let length = format!("Content-Length: {}\r\n", body.len());
        self.send("POST", path, &length, body.as_bytes()).await.0
    }

    async fn events(&self, path: &str, accept: &str) -> Answer {
        self.send("GET", path, &format!("Accept: {accept}\r\n"), b"").await.0
    }

    async fn web_socket(&self, path: &str) -> (Answer, TcpStream) {
        self.web_socket_with(path, "").await
    }

    async fn web_socket_with(&self, path: &str, headers: &str) -> (Answer, TcpStream) {
        let upgrade = format!(
            "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: {KEY}\r\n{headers}"
        );
        self.send("GET", path, &upgrade, b"").await
    }

    /// A connection id and its token, version 1.
    async fn negotiate(&self) -> (String, String) {
        let json = self.request("POST", "/chatHub/negotiate?negotiateVersion=1").await.json();
        (json["connectionId"].as_str().unwrap().into(), json["connectionToken"].as_str().unwrap().into())
    }

    /// Waits until the token means what it should.
    async fn until(&self, token: &str, expected: Option<Found>) {
        within(async {
            while self.hub.0.sessions.find(token) != expected {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn negotiation_is_answered_in_the_recorded_order() {
    let site = site(HubOptions::default()).await;
    let offers = r#""availableTransports":[{"transport":"WebSockets","transferFormats":["Text","Binary"]}]}"#;
    let answer =
        site.request("POST", "/chatHub/negotiate?negotiateVersion=1&useStatefulReconnect=true").await;
    answer.has(&[("content-type", "application/json")]);
    let json = answer.json();
    let (id, token) = (json["connectionId"].as_str().unwrap(), json["connectionToken"].as_str().unwrap());
    assert_eq!((id.len(), token.len()), (22, 22));
    assert_ne!(id, token);
    let expected =
        format!(r#"{{"negotiateVersion":1,"connectionId":"{id}","connectionToken":"{token}",{offers}"#);
    assert_eq!(answer.body, expected);

    let answer = site.request("POST", "/chatHub/negotiate").await;
    let json = answer.json();
    let id = json["connectionId"].as_str().unwrap();
    assert_eq!(answer.body, format!(r#"{{"negotiateVersion":0,"connectionId":"{id}",{offers}"#));
    assert_eq!(site.hub.0.sessions.find(id), Some(Found::Waiting));
}

#[tokio::test]
async fn paths_lead_to_the_hub_or_to_the_application() {
    let site = site(HubOptions::default()).await;
    for path in ["/chatHub/negotiate/", "/CHATHUB/Negotiate", "/chathub/negotiate", "/chat%48ub/negotiate"] {
        site.request("POST", &format!("{path}?negotiateVersion=1")).await.json();
    }
    for path in [
        "/nothing/negotiate",
        "/chatHub/negotiate/x",
        "/chatHub/other",
        "//chatHub/negotiate",
        "/chatHub%2Fnegotiate",
    ] {
        site.request("POST", path).await.is(404, "").has(&[]);
    }
    site.request("GET", "/chatHub/").await.is(400, REQUIRED).has(POLL);
    site.request("GET", "/nothing").await.is(404, "");
    for method in ["GET", "PUT", "OPTIONS"] {
        site.request(method, "/page?x=1").await.is(200, "the page");
    }
}

#[tokio::test]
async fn other_methods_are_not_allowed() {
    let site = site(HubOptions::default()).await;
    for method in ["GET", "OPTIONS", "PUT", "HEAD", "DELETE", "PATCH"] {
        site.request(method, "/chatHub/negotiate?negotiateVersion=1").await.is(405, "").has(PLAIN);
    }
    for method in ["OPTIONS", "PUT", "HEAD", "PATCH", "TRACE"] {
        site.request(method, "/chatHub?id=x").await.is(405, "").has(PLAIN);
    }
}

#[tokio::test]
async fn bodies_of_negotiations_are_ignored_and_claimed_ones_not_awaited() {
    let site = site(HubOptions::default()).await;
    let path = "/chatHub/negotiate?negotiateVersion=1";
    site.post(path, r#"{"x":1}"#).await.json();
    site.post(path, &"x".repeat(200_000)).await.json();
    let chunked = site.send("POST", path, "Transfer-Encoding: chunked\r\n", b"0\r\n\r\n").await.0;
    chunked.json();
    let (claimed, stream) = site.send("POST", path, "Content-Length: 31000000\r\n", b"").await;
    claimed.json();
    drop(stream);
    // Behind a body that was read away the same connection serves the next request.
    let (first, mut stream) =
        site.send("POST", path, "Content-Length: 100000\r\n", "x".repeat(100_000).as_bytes()).await;
    first.json();
    stream.write_all(b"GET /page HTTP/1.1\r\nHost: hub\r\n\r\n").await.unwrap();
    answer(&mut stream, false).await.is(200, "the page");
}

#[tokio::test]
async fn a_body_without_end_is_cut_off() {
    let site = site(HubOptions::default()).await;
    let (negotiated, stream) =
        site.send("POST", "/chatHub/negotiate", "Content-Length: 1000000000\r\n", b"").await;
    negotiated.json();
    let (mut reading, mut writing) = stream.into_split();
    let mut sent = 0;
    let sending = async {
        while writing.write_all(&[0; 1 << 16]).await.is_ok() {
            sent += 1 << 16;
        }
    };
    let mut rest = Vec::new();
    // An end or a reset: whichever side notices first.
    within(async { tokio::join!(sending, reading.read_to_end(&mut rest)) }).await.1.ok();
    assert!(rest.is_empty(), "no second answer");
    // What the buffers of both sockets hold comes on top of what was read.
    assert!(sent < UNWANTED_BYTES + (32 << 20), "{sent} bytes");
}

#[tokio::test]
async fn a_version_below_the_lowest_is_an_error_with_status_200() {
    let site = site(HubOptions { min_negotiate_version: 1, ..HubOptions::default() }).await;
    let error =
        r#"{"error":"The client requested version '0', but the server does not support this version."}"#;
    for path in ["/chatHub/negotiate", "/chatHub/negotiate?negotiateVersion=0"] {
        site.request("POST", path).await.is(200, error).has(&[("content-type", "application/json")]);
    }
    site.negotiate().await;
}

#[tokio::test]
async fn requests_without_an_id_or_with_an_unknown_one() {
    let site = site(HubOptions::default()).await;
    for query in ["", "?id=", "?x=y"] {
        let path = &format!("/chatHub{query}");
        site.request("GET", path).await.is(400, REQUIRED).has(POLL);
        site.events(path, "text/event-stream").await.is(400, REQUIRED).has(PLAIN);
        site.post(path, "x").await.is(400, REQUIRED).has(PLAIN);
        site.request("DELETE", path).await.is(400, REQUIRED).has(PLAIN);
    }
    let (id, token) = site.negotiate().await;
    let swapped: String = token
        .chars()
        .map(|c| if c.is_ascii_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() })
        .collect();
    for query in ["AAAAAAAAAAAAAAAAAAAAAA", &id, &swapped, &format!("{token}&id={token}"), "&id="] {
        let path = &format!("/chatHub?id={query}");
        site.request("GET", path).await.is(404, UNKNOWN).has(&with_hint(POLL));
        site.events(path, "text/event-stream").await.is(404, UNKNOWN).has(&with_hint(PLAIN));
        site.post(path, "x").await.is(404, UNKNOWN).has(&with_hint(PLAIN));
        site.request("DELETE", path).await.is(404, UNKNOWN).has(&with_hint(PLAIN));
        site.web_socket(path).await.0.is(404, UNKNOWN).has(&with_hint(&[]));
    }
    assert_eq!(site.hub.0.sessions.find(&token), Some(Found::Waiting), "none of it touched the token");
}

#[tokio::test]
async fn transports_that_are_not_served_are_refused() {
    let site = site(HubOptions::default()).await;
    let (_, token) = site.negotiate().await;
    for key in ["id", "ID", "%69d"] {
        let path = &format!("/chatHub?{key}={token}");
        let polling = "LongPolling transport not supported by this end point type";
        site.request("GET", path).await.is(404, polling).has(POLL);
        site.send("GET", path, "Connection: Upgrade\r\nUpgrade: h2c\r\n", b"")
            .await
            .0
            .is(404, polling)
            .has(POLL);
        for accept in ["text/event-stream;q=0.5", "*/*", "text/*", "text/event-stream; charset=utf-8"] {
            site.events(path, accept).await.is(404, polling).has(POLL);
        }
        let events = "ServerSentEvents transport not supported by this end point type";
        for accept in ["text/event-stream", "TEXT/EVENT-STREAM", "application/json, text/event-stream"] {
            site.events(path, accept).await.is(404, events).has(PLAIN);
        }
        // A send before the transport: empty as recorded; one that nobody would ever read is not swallowed.
        site.post(path, "").await.is(200, "").has(PLAIN);
        site.post(path, "x").await.is(404, polling).has(PLAIN);
        let delete = "Cannot terminate this connection using the DELETE endpoint.";
        site.request("DELETE", path).await.is(400, delete).has(PLAIN);
    }
    site.web_socket(&format!("/chatHub?id={token}")).await.0.is(101, "");
}

#[tokio::test]
async fn a_hub_without_any_transport_says_so() {
    let options = HubOptions { transports: Transports { web_sockets: false }, ..HubOptions::default() };
    let site = site(options).await;
    let answer = site.request("POST", "/chatHub/negotiate?negotiateVersion=1").await;
    assert!(answer.body.ends_with(r#","availableTransports":[]}"#), "{answer:?}");
    let json = answer.json();
    let path = format!("/chatHub?id={}", json["connectionToken"].as_str().unwrap());
    for path in [&path[..], "/chatHub"] {
        let refused = "WebSockets transport not supported by this end point type";
        site.web_socket(path).await.0.is(404, refused).has(PLAIN);
    }
    site.post(&path, "").await.is(200, "").has(PLAIN);
}

#[tokio::test]
async fn a_token_in_use_is_refused_and_one_that_was_used_is_unknown() {
    let site = site(HubOptions::default()).await;
    let (_, token) = site.negotiate().await;
    let path = &format!("/chatHub?id={token}");
    let (opened, stream) = site.web_socket(path).await;
    opened.is(101, "").has(&[]);
    assert_eq!(opened.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(opened.header("upgrade"), Some("websocket"));

    site.web_socket(path).await.0.is(409, "").has(PLAIN);
    let other = "Cannot change transports mid-connection";
    site.events(path, "text/event-stream").await.is(400, other).has(PLAIN);
    site.request("GET", path).await.is(400, other).has(POLL);
    let post = "POST requests are not allowed for WebSocket connections.";
    site.post(path, "x").await.is(405, post).has(PLAIN);
    let delete = "Cannot terminate this connection using the DELETE endpoint.";
    site.request("DELETE", path).await.is(400, delete).has(PLAIN);

    drop(stream);
    site.until(&token, None).await;
    site.web_socket(path).await.0.is(404, UNKNOWN).has(&with_hint(&[]));
    site.request("GET", path).await.is(404, UNKNOWN).has(&with_hint(POLL));
}

#[tokio::test]
async fn negotiation_may_be_skipped_and_the_socket_speaks() {
    let site = site(HubOptions::default()).await;
    for path in ["/chatHub", "/chatHub?id=", "/chathub/?user=x"] {
        let (opened, mut stream) = site.web_socket(path).await;
        opened.is(101, "");
        let handshake = b"{\"protocol\":\"json\",\"version\":1}\x1e";
        let masked =
            [&[0x81, 0x80 | u8::try_from(handshake.len()).unwrap(), 0, 0, 0, 0][..], handshake].concat();
        stream.write_all(&masked).await.unwrap();
        let mut accepted = [0; 5];
        within(stream.read_exact(&mut accepted)).await.unwrap();
        assert_eq!(&accepted, b"\x81\x03{}\x1e");
        stream.write_all(&[0x88, 0x80, 0, 0, 0, 0]).await.unwrap();
        let mut rest = Vec::new();
        within(stream.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, [0x88, 2, 3, 0xE8]);
    }
}

#[tokio::test]
async fn a_client_that_broke_the_rules_sees_why_whatever_it_sends_behind() {
    let site = site(HubOptions::default()).await;
    let (opened, mut stream) = site.web_socket("/chatHub").await;
    opened.is(101, "");
    let unmasked = b"\x81\x01x";
    stream.write_all(&[&unmasked[..], &[0; 1 << 20]].concat()).await.unwrap();
    let mut rest = Vec::new();
    within(stream.read_to_end(&mut rest)).await.expect("an end, not a reset");
    assert_eq!(rest, [0x88, 2, 3, 0xEA]);
}

#[tokio::test]
async fn frames_that_come_with_the_request_are_not_lost() {
    let site = site(HubOptions::default()).await;
    let handshake = b"{\"protocol\":\"json\",\"version\":1}\x1e";
    let frame = [&[0x81, 0x80 | u8::try_from(handshake.len()).unwrap(), 0, 0, 0, 0][..], handshake].concat();
    let headers = format!(
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n"
    );
    let (opened, mut stream) = site.send("GET", "/chatHub", &headers, &frame).await;
    opened.is(101, "");
    let mut accepted = [0; 5];
    within(stream.read_exact(&mut accepted)).await.unwrap();
    assert_eq!(&accepted, b"\x81\x03{}\x1e");
}

#[tokio::test]
async fn a_bad_upgrade_is_none() {
    let site = site(HubOptions::default()).await;
    let upgrade = |connection: &str, upgrade: &str, version: &str, key: &str| {
        format!(
            "Connection: {connection}\r\nUpgrade: {upgrade}\r\nSec-WebSocket-Version: {version}\r\n\
             Sec-WebSocket-Key: {key}\r\n"
        )
    };
    for headers in [
        upgrade("Upgrade", "websocket", "12", KEY),
        upgrade("Upgrade", "websocket", "13", "short"),
        upgrade("Upgrade", "websocket", "13", "dGhlIHNhbXBsZSBub25jZTEy"),
        upgrade("Upgrade", "h2c", "13", KEY),
        upgrade("close", "websocket", "13", KEY),
        upgrade("Upgrade", "websocket", "13", KEY).replace("Sec-WebSocket-Key", "X"),
        upgrade("Upgrade", "websocket", "13", KEY) + "Sec-WebSocket-Key: " + KEY + "\r\n",
    ] {
        site.send("GET", "/chatHub", &headers, b"").await.0.is(400, REQUIRED).has(POLL);
    }
    let post = site.send("POST", "/chatHub", &upgrade("Upgrade", "websocket", "13", KEY), b"").await.0;
    post.is(400, REQUIRED).has(PLAIN);
}

#[tokio::test]
async fn sub_protocols_and_extensions() {
    let site_of = |subprotocol| site(HubOptions { subprotocol, ..HubOptions::default() });
    let offer = "Sec-WebSocket-Protocol: a, b\r\n";
    let without = site_of(None).await;
    let deflate = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
    without.web_socket_with("/chatHub", &format!("{offer}{deflate}")).await.0.is(101, "").has(&[]);

    let b_or_first: crate::SubprotocolSelector =
        Arc::new(|offered| offered.iter().copied().find(|name| *name == "b").or(offered.first().copied()));
    let with = site_of(Some(b_or_first)).await;
    for (headers, chosen) in [
        (offer, &[("sec-websocket-protocol", "b")][..]),
        ("Sec-WebSocket-Protocol: a\r\n", &[("sec-websocket-protocol", "a")]),
        ("Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: b\r\n", &[("sec-websocket-protocol", "b")]),
        ("", &[]),
    ] {
        with.web_socket_with("/chatHub", headers).await.0.is(101, "").has(chosen);
    }
}

#[tokio::test]
async fn a_full_waiting_room_is_503() {
    let site = site(HubOptions { max_negotiated: 1, ..HubOptions::default() }).await;
    let (_, token) = site.negotiate().await;
    let full = "Too many connections wait for their transport.";
    site.request("POST", "/chatHub/negotiate").await.is(503, full).has(PLAIN);
    let (opened, _stream) = site.web_socket(&format!("/chatHub?id={token}")).await;
    opened.is(101, "");
    site.negotiate().await;
}

#[tokio::test]
async fn a_server_that_shuts_down_takes_nothing_new_and_its_application_lives() {
    let site = site(HubOptions::default()).await;
    let (_, token) = site.negotiate().await;
    site.hub.shutdown().await;
    let stopping = "The server is shutting down.";
    site.request("POST", "/chatHub/negotiate").await.is(503, stopping).has(PLAIN);
    site.web_socket(&format!("/chatHub?id={token}")).await.0.is(503, stopping).has(PLAIN);
    site.web_socket("/chatHub").await.0.is(503, stopping).has(PLAIN);
    site.request("GET", "/page").await.is(200, "the page");
}

#[tokio::test]
async fn a_socket_that_is_accepted_as_the_server_begins_to_stop_is_told_so() {
    let hub = hub(HubOptions::default()).await;
    let stopping = hub.0.stopping.clone();
    // The shutdown comes when the answer is made and not yet written.
    let stop = axum::middleware::map_response(move |answer: Response| {
        stopping.cancel();
        async { answer }
    });
    let app = hub.mount("/chatHub", axum::Router::new()).layer(stop);
    let site = serve(hub, app).await;
    let (opened, mut stream) = site.web_socket("/chatHub").await;
    opened.is(101, "");
    let mut rest = Vec::new();
    while !rest.ends_with(&[0x88, 2, 3, 0xE8]) {
        rest.push(within(stream.read_u8()).await.expect("a close frame before the end"));
    }
}

#[tokio::test]
async fn several_hubs_share_an_application_and_it_may_be_nested() {
    let hub = hub(HubOptions::default()).await;
    let app = hub.mount("/b/hub", axum::Router::new());
    let app = axum::Router::new().nest("/api", hub.mount("/a", app));
    for (path, status) in [("/api/a/negotiate", 200), ("/api/b/hub/negotiate", 200), ("/a/negotiate", 404)] {
        let request = Request::post(path).body(Body::empty()).unwrap();
        let response = tower::ServiceExt::oneshot(app.clone(), request).await.unwrap();
        assert_eq!(response.status(), status, "{path}");
    }
}

#[tokio::test]
async fn an_upgrade_that_a_layer_takes_back_gives_the_token_back() {
    let options = HubOptions { handshake_timeout: Duration::from_millis(50), ..HubOptions::default() };
    let hub = hub(options).await;
    let refuse = axum::middleware::map_response(|_: Response| async { StatusCode::FORBIDDEN });
    let app = hub.mount("/chatHub", axum::Router::new()).layer(refuse);
    let site = serve(hub, app).await;

    let token = site.hub.0.sessions.negotiate(ConnectionId::from("id"), 1).unwrap();
    site.web_socket(&format!("/chatHub?id={token}")).await.0.is(403, "");
    site.until(&token, None).await;
}
