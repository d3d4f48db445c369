//! The servers as a stranger starts them: as a process, judged by what it serves, prints, and ends with.
#![allow(clippy::unwrap_used, reason = "a test fails by it, also outside of its own function")]

use std::collections::HashSet;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use backplane_conformance::bound;
use backplane_conformance::broker::{Broker as _, Redis, RedisOptions, free_port};
use futures::{SinkExt as _, StreamExt as _};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

type Socket = WebSocketStream<TcpStream>;

fn deadline() -> Duration {
    bound(Duration::from_secs(10))
}

/// A run of the program.
struct Run {
    process: Child,
    output: BufReader<ChildStdout>,
    /// Where its servers listen, and its front behind them.
    addresses: Vec<SocketAddr>,
}

impl Run {
    /// Starts it and waits until it has said everything.
    async fn start(arguments: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_two-servers"))
            .args(arguments)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("it can be run");
        let mut output = BufReader::new(process.stdout.take().expect("it is piped"));
        let mut addresses = Vec::new();
        let ready = async {
            let mut line = String::new();
            while output.read_line(&mut line).await.expect("it prints UTF-8") > 0 {
                if line.starts_with("Ctrl-C") {
                    return true;
                }
                // Those that stand alone: of the servers, then of the front.
                if let Some(url) = line.trim().strip_prefix("http://") {
                    let address = url.split('/').next().expect("there is something before the path");
                    addresses.push(address.parse().expect("it is an address"));
                }
                line.clear();
            }
            false
        };
        assert!(
            timeout(deadline(), ready).await.expect("it is ready in time"),
            "it ended: {:?}",
            process.wait().await
        );
        Self { process, output, addresses }
    }

    /// Sends a signal and waits for the end: code and error output.
    async fn end(mut self, signal: Signal) -> (Option<i32>, String) {
        let id = self.process.id().and_then(|id| Pid::from_raw(id.cast_signed())).expect("it runs");
        kill_process(id, signal).expect("it takes signals");
        let ended = async {
            let mut rest = String::new();
            self.output.read_to_string(&mut rest).await.expect("it prints UTF-8");
            let output = self.process.wait_with_output().await.expect("it can be waited for");
            (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        timeout(bound(Duration::from_secs(20)), ended).await.expect("it ends in time")
    }
}

/// One request on a connection of its own: status line with headers, and body.
async fn request(server: SocketAddr, method: &str, path: &str) -> (String, String) {
    let exchange = async {
        let mut stream = TcpStream::connect(server).await.unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {server}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        (head.to_lowercase(), body.to_owned())
    };
    timeout(deadline(), exchange).await.expect("it answers in time")
}

async fn json(server: SocketAddr, path: &str) -> serde_json::Value {
    let (head, body) = request(server, "GET", path).await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    serde_json::from_str(&body).unwrap()
}

/// A client without negotiation, that what is sent to all reaches.
async fn connect(server: SocketAddr, user: &str) -> Socket {
    let stream = TcpStream::connect(server).await.unwrap();
    let (mut socket, _) = client_async(format!("ws://{server}/chatHub?user={user}"), stream).await.unwrap();
    socket.send(Message::text("{\"protocol\":\"json\",\"version\":1}\u{1e}")).await.unwrap();
    assert_eq!(next(&mut socket).await, "{}\u{1e}");
    // The handshake is answered before the server registers the connection, calls behind that.
    socket
        .send(Message::text(
            "{\"type\":1,\"invocationId\":\"1\",\"target\":\"Server\",\"arguments\":[]}\u{1e}",
        ))
        .await
        .unwrap();
    let answer = next(&mut socket).await;
    assert!(answer.starts_with("{\"type\":3,\"invocationId\":\"1\",\"result\":"), "{answer}");
    socket
}

async fn next(socket: &mut Socket) -> String {
    let message = timeout(deadline(), socket.next()).await.expect("something arrives").unwrap().unwrap();
    match message {
        Message::Close(close) => format!("closed {}", u16::from(close.unwrap().code)),
        other => other.into_text().unwrap().as_str().to_owned(),
    }
}

/// What one side says, all hear.
async fn talk(from: &mut Socket, all: &mut [&mut Socket]) {
    let call = "{\"type\":1,\"target\":\"SendMessage\",\"arguments\":[\"ann\",\"hi\"]}\u{1e}";
    from.send(Message::text(call)).await.unwrap();
    let heard = "{\"type\":1,\"target\":\"ReceiveMessage\",\"arguments\":[\"ann\",\"hi\"]}\u{1e}";
    assert_eq!(next(from).await, heard);
    for socket in all {
        assert_eq!(next(socket).await, heard);
    }
}

#[tokio::test]
async fn two_servers_serve_the_page_and_end_in_order_at_sigterm() {
    let run = Run::start(&["--ports", "0,0"]).await;
    let [north, south] = run.addresses[..] else { panic!("two servers: {:?}", run.addresses) };
    for server in [north, south] {
        for (path, kind) in
            [("/", "html"), ("/app.js", "javascript"), ("/signalr.js", "javascript"), ("/style.css", "css")]
        {
            let (head, body) = request(server, "GET", path).await;
            assert!(
                head.starts_with("http/1.1 200") && head.contains(kind) && !body.is_empty(),
                "{path}: {head}"
            );
        }
        assert_eq!(json(server, "/health").await["status"], "up");
    }
    let (mut ann, mut bob) = (connect(north, "ann").await, connect(south, "bob").await);
    talk(&mut ann, &mut [&mut bob]).await;
    let stats = json(north, "/stats").await;
    assert_eq!((&stats["server"], &stats["connections"]), (&north.port().to_string().into(), &1.into()));
    assert_eq!((&stats["link"]["up"], &stats["bus"]), (&true.into(), &"an embedded bus".into()));
    assert!(stats["stats"]["published"].as_u64() > Some(0), "{stats}");

    let ended = tokio::spawn(run.end(Signal::TERM));
    for socket in [&mut ann, &mut bob] {
        let mut heard = String::new();
        let closed = loop {
            match next(socket).await {
                closed if closed.starts_with("closed") => break closed,
                records => heard.push_str(&records),
            }
        };
        // Somebody else's farewell may come first, also in the same message.
        let close = heard.split_inclusive('\u{1e}').filter(|record| !record.contains("Bye"));
        assert_eq!(close.collect::<String>(), "{\"type\":7,\"allowReconnect\":true}\u{1e}", "{heard}");
        assert!(heard.ends_with("{\"type\":7,\"allowReconnect\":true}\u{1e}"), "{heard}");
        assert_eq!(closed, "closed 1000");
        // Answers it.
        assert!(timeout(deadline(), socket.next()).await.expect("it ends").is_none());
    }
    assert_eq!(ended.await.unwrap(), (Some(0), String::new()));
}

#[tokio::test]
async fn half_a_request_does_not_delay_the_end() {
    let run = Run::start(&["--ports", "0,0"]).await;
    let mut halves = Vec::new();
    for begin in ["", "P", "GET / HTTP/1.1\r\nHo"] {
        let mut half = TcpStream::connect(run.addresses[0]).await.unwrap();
        half.write_all(begin.as_bytes()).await.unwrap();
        halves.push(half);
    }
    // Accepted in turn: with this one the server has those before it.
    json(run.addresses[0], "/health").await;
    let start = Instant::now();
    assert_eq!(run.end(Signal::INT).await, (Some(0), String::new()));
    assert!(start.elapsed() < bound(Duration::from_secs(4)), "it waited {:?}", start.elapsed());
}

#[tokio::test]
async fn two_processes_are_one_pair_through_redis() {
    let Some(redis) = Redis::require(RedisOptions::default()).await else { return };
    let url = redis.url();
    let north = Run::start(&["--port", "0", "--url", &url]).await;
    let south = Run::start(&["--port", "0", "--url", &url]).await;
    let (mut ann, mut bob) =
        (connect(north.addresses[0], "ann").await, connect(south.addresses[0], "bob").await);
    talk(&mut ann, &mut [&mut bob]).await;
    talk(&mut bob, &mut [&mut ann]).await;
    let stats = json(north.addresses[0], "/stats").await;
    assert_eq!(stats["bus"], "Redis");
    drop((ann, bob));
    assert_eq!(north.end(Signal::INT).await, (Some(0), String::new()));
    assert_eq!(south.end(Signal::INT).await, (Some(0), String::new()));
}

#[tokio::test]
async fn the_front_gives_each_request_to_the_next_server() {
    let run = Run::start(&["--ports", "0,0", "--balance", "0"]).await;
    let front = run.addresses[2];
    let mut seen = HashSet::new();
    for _ in 0..2 {
        seen.insert(json(front, "/stats").await["server"].as_str().unwrap().to_owned());
    }
    assert_eq!(seen.len(), 2);
    let (_, offer) = request(front, "POST", "/chatHub/negotiate?negotiateVersion=1").await;
    let offer: serde_json::Value = serde_json::from_str(&offer).unwrap();
    let stream = TcpStream::connect(front).await.unwrap();
    let url = format!("ws://{front}/chatHub?id={}", offer["connectionToken"].as_str().unwrap());
    let refused = client_async(url, stream).await.unwrap_err().to_string();
    assert!(refused.contains("404"), "{refused}");
    let (mut ann, mut bob) = (connect(front, "ann").await, connect(front, "bob").await);
    talk(&mut ann, &mut [&mut bob]).await;
    for server in &run.addresses[..2] {
        assert_eq!(json(*server, "/stats").await["connections"], 1);
    }
}

/// One line on the error output, nothing but that, and exit code 2.
async fn refused(arguments: &[&str], says: &str) {
    let run = Command::new(env!("CARGO_BIN_EXE_two-servers"))
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(deadline(), run).await.expect("it ends in time").expect("it can be run");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.contains(says) && !error.contains("hunter2"), "{error}\ndoes not say {says:?}");
    assert!(output.stdout.is_empty());
}

#[tokio::test]
async fn a_port_in_use_is_one_line_and_code_2() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    refused(&["--ports", &format!("0,{port}")], "address already in use").await;
    refused(&["--port", &port], "address already in use").await;
    refused(&["--ports", "0,0", "--balance", &port], "address already in use").await;
}

#[tokio::test]
async fn an_absent_broker_is_one_line_and_code_2() {
    let port = free_port().expect("there is a free port");
    let url = format!("redis://:hunter2@127.0.0.1:{port}");
    refused(&["--ports", "0,0", "--url", &url], "unavailable").await;
}

#[tokio::test]
async fn a_wrong_url_is_one_line_and_code_2() {
    for (url, says) in [
        ("carrier-pigeon://roof", "not a known scheme"),
        ("redis://:hunter2@localhost?hartbeat=1s", "hartbeat"),
        ("memory:?history=1", "no bounds"),
    ] {
        refused(&["--ports", "0,0", "--url", url], says).await;
    }
}

#[tokio::test]
async fn a_wrong_command_line_is_one_line_and_code_2() {
    refused(&["--prots", "5001,5002"], "--prots").await;
    refused(&["--host", "roof"], "not an IP address").await;
}
