//! HTTP by hand: requests from chosen loopback addresses, and an upstream that only looks at what it is sent.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use backplane_conformance::bound;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const DEADLINE: Duration = Duration::from_secs(10);

/// The head of a request or an answer, and what came behind it.
#[derive(Debug, Default)]
pub(crate) struct Message {
    pub(crate) first_line: String,
    headers: Vec<(String, String)>,
    /// Of an answer; else 0.
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Message {
    /// `name` in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    fn parse(head: &str) -> Self {
        let mut lines = head.split("\r\n");
        let first_line = lines.next().unwrap_or_default().to_owned();
        let status = first_line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
        let headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        Self { first_line, headers, status, body: String::new() }
    }
}

/// What a client gets by negotiating.
#[derive(Debug)]
pub(crate) struct Negotiated {
    pub(crate) id: String,
    pub(crate) token: String,
}

impl Negotiated {
    /// The part of a native connection id that is its server's own.
    pub(crate) fn node(&self) -> &str {
        &self.id[..8]
    }
}

pub(crate) fn negotiate_request(host: &str) -> String {
    format!(
        "POST /chatHub/negotiate?negotiateVersion=1 HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n"
    )
}

pub(crate) fn upgrade_request(host: &str, token: &str) -> String {
    format!(
        "GET /chatHub?id={token} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// Negotiates from `127.0.0.<address>`.
pub(crate) async fn negotiate(port: u16, address: u8) -> Negotiated {
    let answer = request(port, address, &negotiate_request("localhost")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer: serde_json::Value = serde_json::from_str(&answer.body).expect("the answer is JSON");
    let text = |name: &str| answer[name].as_str().expect("the answer holds an id and a token").to_owned();
    Negotiated { id: text("connectionId"), token: text("connectionToken") }
}

/// Asks for a WebSocket from `127.0.0.<address>`.
pub(crate) async fn upgrade(port: u16, address: u8, token: &str) -> Message {
    request(port, address, &upgrade_request("localhost", token)).await
}

/// Sends a request from `127.0.0.<address>` on a new connection and reads the answer.
pub(crate) async fn request(port: u16, address: u8, text: &str) -> Message {
    within(async {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((Ipv4Addr::new(127, 0, 0, address), 0).into()).expect("every 127.x.x.x is this machine");
        let mut stream = socket.connect((Ipv4Addr::LOCALHOST, port).into()).await.expect("somebody listens");
        stream.write_all(text.as_bytes()).await.expect("the request is sent");
        read(&mut stream).await
    })
    .await
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(bound(DEADLINE), what).await.expect("it happens in time")
}

/// One message: its head, and the body that the head announces.
async fn read(stream: &mut TcpStream) -> Message {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = find(&bytes, b"\r\n\r\n") {
            break end;
        }
        assert!(more(stream, &mut bytes).await, "the connection ended within a head");
    };
    let mut body = bytes.split_off(end + 4);
    let mut message = Message::parse(&String::from_utf8_lossy(&bytes[..end]));
    if message.header("transfer-encoding") == Some("chunked") {
        while find(&body, b"0\r\n\r\n").is_none() {
            assert!(more(stream, &mut body).await, "the connection ended within a body");
        }
        body = unchunked(&body);
    } else if let Some(length) = message.header("content-length") {
        let length: usize = length.parse().expect("a number");
        while body.len() < length {
            assert!(more(stream, &mut body).await, "the connection ended within a body");
        }
    }
    message.body = String::from_utf8_lossy(&body).into_owned();
    message
}

async fn more(stream: &mut TcpStream, into: &mut Vec<u8>) -> bool {
    stream.read_buf(into).await.expect("the connection can be read") > 0
}

fn find(within: &[u8], what: &[u8]) -> Option<usize> {
    within.windows(what.len()).position(|window| window == what)
}

fn unchunked(mut chunks: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = find(chunks, b"\r\n") {
        let size = std::str::from_utf8(&chunks[..end]).expect("a size is text");
        let size = usize::from_str_radix(size, 16).expect("a size is a number");
        if size == 0 {
            break;
        }
        body.extend_from_slice(&chunks[end + 2..end + 2 + size]);
        chunks = &chunks[end + 4 + size..];
    }
    body
}

/// A server that answers nothing but 204 and keeps what it was asked.
#[derive(Debug)]
pub(crate) struct Upstream {
    listener: TcpListener,
}

impl Upstream {
    pub(crate) async fn start() -> Self {
        Self { listener: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free") }
    }

    pub(crate) fn port(&self) -> u16 {
        self.listener.local_addr().as_ref().map_or(0, SocketAddr::port)
    }

    /// The request that reaches it while `asking`.
    pub(crate) async fn sees(&self, asking: impl Future<Output = Message>) -> Message {
        let served = async {
            let (mut stream, _) = self.listener.accept().await.expect("a connection arrives");
            let seen = read(&mut stream).await;
            stream
                .write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
                .await
                .expect("the answer is sent");
            seen
        };
        let (seen, answer) = within(async { tokio::join!(served, asking) }).await;
        assert_eq!(answer.status, 204, "{answer:?}");
        seen
    }
}
