//! Malformed and hostile clients: each gets its typed end, the others are served meanwhile, and the memory comes back.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backplane_conformance::bound;
use backplane_tests::transcripts::file::{Ending, Framing, TcpEnd};
use backplane_tests::transcripts::server::Server;
use backplane_tests::transcripts::socket::{Fill, Socket};
use backplane_tests::transcripts::websocket::{Got, WebSocket, frame};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// How many come at once.
const CLIENTS: usize = 2_000;
/// How much more than before the server may hold when all of them are gone. The allocator keeps some pages for itself.
const KEPT: u64 = 8 << 20;

const TEXT: u8 = 1;
const HANDSHAKE: &str = "{\"protocol\":\"json\",\"version\":1}\u{1e}";
const UPGRADE: &str = "GET /chatHub HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// What one of them does.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Half an HTTP request.
    HalfRequest,
    /// An upgrade, and then nothing.
    NoHandshake,
    /// A handshake that never ends, byte by byte.
    SlowHandshake,
    /// A hub message where the handshake is due.
    WrongOrder,
    /// A record beyond the limit.
    Oversize,
    /// Half a frame that promises a gigabyte.
    HalfFrame,
    /// A frame that breaks the rules.
    BadFrame,
    /// A record that is no JSON.
    Garbage,
    /// Many calls, of which it reads no answer.
    Flood,
    /// Connects, and is gone.
    Gone,
}

const KINDS: [Kind; 10] = [
    Kind::HalfRequest,
    Kind::NoHandshake,
    Kind::SlowHandshake,
    Kind::WrongOrder,
    Kind::Oversize,
    Kind::HalfFrame,
    Kind::BadFrame,
    Kind::Garbage,
    Kind::Flood,
    Kind::Gone,
];

fn deadline() -> Instant {
    Instant::now() + bound(Duration::from_secs(20))
}

async fn open(address: SocketAddr) -> WebSocket {
    let mut socket = Socket::connect(address).await.expect("it is accepted");
    socket.send(UPGRADE.as_bytes()).await;
    let end = loop {
        if let Some(end) = socket.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        assert_eq!(socket.fill(deadline()).await, Fill::More, "the upgrade is answered");
    };
    let head = socket.buffer.split_to(end);
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    WebSocket::new(socket, true)
}

async fn say(socket: &mut WebSocket, text: &str) {
    socket.send(TEXT, &frame(TEXT, true, false, true, text.as_bytes())).await;
}

async fn expect(socket: &mut WebSocket, record: &str) {
    let got = socket.record(Framing::Separator, deadline()).await;
    let Got::Record(bytes, _) = &got else { panic!("{record} is expected, {got:?} came") };
    assert_eq!(String::from_utf8_lossy(bytes).trim_end_matches('\u{1e}'), record);
}

async fn expect_end(socket: &mut WebSocket, code: u16) {
    let got = socket.record(Framing::Separator, deadline()).await;
    assert_eq!(got, Got::End(Ending::Frame(Some(code), String::new())));
}

async fn shaken(address: SocketAddr) -> WebSocket {
    let mut socket = open(address).await;
    say(&mut socket, HANDSHAKE).await;
    expect(&mut socket, "{}").await;
    socket
}

const CLOSE: &str = "{\"type\":7,\"error\":\"Connection closed with an error.\",\"allowReconnect\":true}";

/// One of them from beginning to end.
async fn attack(address: SocketAddr, kind: Kind) {
    match kind {
        Kind::HalfRequest => {
            let mut socket = Socket::connect(address).await.expect("it is accepted");
            socket.send(&UPGRADE.as_bytes()[..40]).await;
            socket.end(TcpEnd::Fin).await;
        }
        Kind::NoHandshake => {
            let mut socket = open(address).await;
            expect(&mut socket, "{\"error\":\"Handshake was canceled.\"}").await;
            expect_end(&mut socket, 1000).await;
        }
        Kind::SlowHandshake => {
            let mut socket = open(address).await;
            for byte in HANDSHAKE.trim_end_matches('\u{1e}').chars() {
                say(&mut socket, &byte.to_string()).await;
            }
            expect(&mut socket, "{\"error\":\"Handshake was canceled.\"}").await;
            expect_end(&mut socket, 1000).await;
        }
        Kind::WrongOrder => {
            let mut socket = open(address).await;
            say(&mut socket, "{\"type\":6}\u{1e}").await;
            expect(&mut socket, "{\"error\":\"An unexpected error occurred during connection handshake.\"}")
                .await;
            expect_end(&mut socket, 1000).await;
        }
        Kind::Oversize => {
            let mut socket = shaken(address).await;
            say(&mut socket, &"x".repeat(40_000)).await;
            expect(&mut socket, CLOSE).await;
            expect_end(&mut socket, 1000).await;
        }
        Kind::HalfFrame => {
            let mut socket = shaken(address).await;
            // A header that promises 1 GiB, and the first bytes of it.
            let mut half = vec![0x81, 0xff];
            half.extend((1_u64 << 30).to_be_bytes());
            half.extend([0, 0, 0, 0]);
            half.extend(b"{\"type\":6}");
            socket.send(TEXT, &half).await;
            socket.end(TcpEnd::Rst).await;
        }
        Kind::BadFrame => {
            let mut socket = shaken(address).await;
            socket.send(TEXT, &frame(TEXT, true, true, true, b"{}")).await;
            expect_end(&mut socket, 1002).await;
        }
        Kind::Garbage => {
            let mut socket = shaken(address).await;
            say(&mut socket, "{]\u{1e}").await;
            expect(&mut socket, CLOSE).await;
            expect_end(&mut socket, 1000).await;
        }
        Kind::Flood => {
            let mut socket = shaken(address).await;
            let call =
                "{\"type\":1,\"invocationId\":\"1\",\"target\":\"Echo\",\"arguments\":[\"flood\"]}\u{1e}";
            for _ in 0..20 {
                say(&mut socket, &call.repeat(50)).await;
            }
            socket.end(TcpEnd::Rst).await;
        }
        Kind::Gone => shaken(address).await.end(TcpEnd::Rst).await,
    }
}

/// Calls again and again until told to stop. How often it was answered, and the longest it waited.
async fn well_behaved(address: SocketAddr, stop: Arc<AtomicBool>) -> (u64, Duration) {
    let mut socket = shaken(address).await;
    let (mut answered, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        say(
            &mut socket,
            "{\"type\":1,\"invocationId\":\"1\",\"target\":\"Echo\",\"arguments\":[\"hi\"]}\u{1e}",
        )
        .await;
        expect(&mut socket, "{\"type\":3,\"invocationId\":\"1\",\"result\":\"hi\"}").await;
        longest = longest.max(start.elapsed());
        answered += 1;
    }
    (answered, longest)
}

/// All of them at once, while somebody else is served.
async fn wave(address: SocketAddr) -> (u64, Duration) {
    let stop = Arc::new(AtomicBool::new(false));
    let served = tokio::spawn(well_behaved(address, stop.clone()));
    let mut attacks = JoinSet::new();
    for number in 0..CLIENTS {
        attacks.spawn(attack(address, KINDS[number % KINDS.len()]));
    }
    while let Some(attacked) = attacks.join_next().await {
        attacked.expect("it ended as it should");
    }
    stop.store(true, Ordering::Relaxed);
    served.await.expect("the others are served")
}

/// Resident memory of a process in bytes.
fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel tells it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

fn raise_file_limit() {
    let wanted = 4 * CLIENTS as u64;
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    assert!(
        most >= wanted,
        "{wanted} open files are needed, {most} are allowed: raise the hard limit (ulimit -Hn)"
    );
    let raised = Rlimit { current: Some(limit.current.unwrap_or(u64::MAX).max(wanted).min(most)), ..limit };
    setrlimit(Resource::Nofile, raised).expect("up to the hard limit it may be raised");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_hostile_clients_at_once_end_typed_and_others_are_served() {
    raise_file_limit();
    let program = Path::new(env!("CARGO_BIN_EXE_reference-hub"));
    let server = Server::start(program, &["--handshake".into(), "3".into()]).await.unwrap();
    let process = server.process_id().expect("we started it");

    // The first wave fills what the process keeps for itself: arenas, tables, stacks.
    wave(server.address).await;
    let before = resident(process);
    let (answered, longest) = wave(server.address).await;
    println!("{CLIENTS} hostile clients; another was answered {answered} times, longest wait {longest:?}");
    assert!(answered > 10, "{answered}");
    assert!(longest < bound(Duration::from_secs(3)), "somebody waited {longest:?}");

    let end = deadline();
    let mut after = resident(process);
    while after > before + KEPT && Instant::now() < end {
        // Nothing announces that an allocator gave pages back.
        sleep(Duration::from_millis(100)).await;
        after = resident(process);
    }
    println!("resident before {} kB, after {} kB", before >> 10, after >> 10);
    assert!(after <= before + KEPT, "{} kB more than before", (after - before) >> 10);
}
