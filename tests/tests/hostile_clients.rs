//! Malformed and hostile clients: each gets its typed end, the others are served meanwhile, and the memory comes back.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
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
use tokio::time::{Instant, sleep, timeout};

/// How many come at once.
const CLIENTS: usize = 2_000;
/// The first wave fills what the process keeps for itself: arenas, tables, stacks. Of the others each is compared with the
/// second before it: so many at least, and further ones when the allocator took more, for what leaks grows in all of them.
const WAVES: RangeInclusive<usize> = 4..=6;
/// How much more the server may hold after two further waves.
const KEPT: u64 = 2 << 20;
/// How long the server gives a client for a request's head.
const HEADS: Duration = Duration::from_secs(3);
/// And for a handshake; those that behave make theirs while all of them come at once. Every wave lasts as long.
const HANDSHAKES: Duration = Duration::from_secs(6);
/// Most files that the server has open while nobody is connected.
const IDLE_FILES: usize = 20;

const TEXT: u8 = 1;
const PING: u8 = 9;
const HANDSHAKE: &str = "{\"protocol\":\"json\",\"version\":1}\u{1e}";
const PING_RECORD: &str = "{\"type\":6}";
const UPGRADE: &str = "GET /chatHub HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// What one of them does.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Half an HTTP request.
    HalfRequest,
    /// The beginning of an HTTP request, and then nothing.
    SlowHead(&'static str),
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
    /// Thousands of calls that ask the same client, which does not answer.
    AskFlood,
    /// Pings of the WebSocket and of the hub.
    PingFlood,
    /// Calls with large answers, of which it reads none.
    Unread,
    /// Connects, and is gone.
    Gone,
}

const KINDS: [Kind; 13] = [
    Kind::HalfRequest,
    Kind::SlowHead(""),
    // It might become HTTP/2.
    Kind::SlowHead("P"),
    Kind::SlowHead("GET /chatHub HTTP/1.1\r\nHost: loc"),
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

/// Those that cost the server much, beyond the others.
const HEAVY: [Kind; 3] = [Kind::AskFlood, Kind::PingFlood, Kind::Unread];
/// How many there are of each: in the first wave, and in the others, so that none needs more memory at a time than the
/// first has.
const HEAVY_CLIENTS: [usize; 2] = [8, 3];

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

/// A call with the id 1; `arguments` are written as in JSON.
fn call(target: &str, arguments: &str) -> String {
    format!("{{\"type\":1,\"invocationId\":\"1\",\"target\":\"{target}\",\"arguments\":[{arguments}]}}\u{1e}")
}

/// The next record that is no ping.
async fn next(socket: &mut WebSocket) -> String {
    loop {
        let got = socket.record(Framing::Separator, deadline()).await;
        let Got::Record(bytes, _) = &got else { panic!("a record is expected, {got:?} came") };
        let record = String::from_utf8_lossy(bytes);
        let record = record.trim_end_matches('\u{1e}');
        if record != PING_RECORD {
            return record.to_owned();
        }
    }
}

async fn expect(socket: &mut WebSocket, record: &str) {
    assert_eq!(next(socket).await, record);
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
        Kind::SlowHead(begin) => {
            // The server's time begins with the connection.
            let start = Instant::now();
            let mut socket = Socket::connect(address).await.expect("it is accepted");
            socket.send(begin.as_bytes()).await;
            assert_eq!(socket.fill(deadline()).await, Fill::End(TcpEnd::Fin), "after {begin:?}");
            // Ended by the server in its time, not at once: how soon a busy machine gets to it is bounded above.
            let waited = start.elapsed();
            assert!(waited >= HEADS / 2, "{begin:?}: ended after {waited:?}");
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
            let calls = call("Echo", "\"flood\"").repeat(50);
            for _ in 0..20 {
                say(&mut socket, &calls).await;
            }
            socket.end(TcpEnd::Rst).await;
        }
        Kind::AskFlood => ask_flood(shaken(address).await).await,
        Kind::PingFlood => ping_flood(shaken(address).await).await,
        Kind::Unread => unread(shaken(address).await).await,
        Kind::Gone => shaken(address).await.end(TcpEnd::Rst).await,
    }
}

/// Each call is begun until too many are; then each is refused.
async fn ask_flood(mut socket: WebSocket) {
    const CALLS: usize = 3_000;
    say(&mut socket, &call("Id", "")).await;
    let answer = next(&mut socket).await;
    let id = answer.strip_prefix("{\"type\":3,\"invocationId\":\"1\",\"result\":\"").expect("an id");
    let id = id.strip_suffix("\"}").expect("nothing but an id").to_owned();
    let ask = call("Ask", &format!("\"{id}\",\"?\""));
    let (mut asked, mut refused) = (0, 0);
    for _ in 0..CALLS / 100 {
        say(&mut socket, &ask.repeat(100)).await;
        for _ in 0..100 {
            let record = next(&mut socket).await;
            if record.starts_with("{\"type\":1,") && record.contains("\"target\":\"Answer\"") {
                asked += 1;
            } else {
                let says = "Too many calls of this connection have not ended.";
                assert!(record.starts_with("{\"type\":3,") && record.contains(says), "{record}");
                refused += 1;
            }
        }
    }
    assert!((1_000..=1_001).contains(&asked), "{asked} calls were begun, {refused} refused");
    socket.end(TcpEnd::Rst).await;
}

/// They are answered, or pass by; a call behind them is answered too.
async fn ping_flood(mut socket: WebSocket) {
    let mut pings = frame(PING, true, false, true, &[b'x'; 125]).repeat(50);
    pings.extend(frame(TEXT, true, false, true, "{\"type\":6}\u{1e}".repeat(50).as_bytes()));
    for _ in 0..100 {
        socket.send(PING, &pings).await;
    }
    say(&mut socket, &call("Echo", "\"still\"")).await;
    expect(&mut socket, "{\"type\":3,\"invocationId\":\"1\",\"result\":\"still\"}").await;
    socket.end(TcpEnd::Rst).await;
}

/// The server takes no more calls when nobody reads the answers: what it and the kernel hold is bounded.
async fn unread(mut socket: WebSocket) {
    const MOST: usize = 24 << 20;
    let call = call("EchoAny", &format!("\"{}\"", "x".repeat(30_000)));
    let call = frame(TEXT, true, false, true, call.as_bytes());
    let mut sent = 0;
    while timeout(bound(Duration::from_secs(1)), socket.send(TEXT, &call)).await.is_ok() {
        sent += call.len();
        assert!(sent < MOST, "{sent} bytes were taken, of which no answer was read");
    }
    socket.end(TcpEnd::Rst).await;
}

/// Calls again and again until told to stop. How often it was answered, and the longest it waited.
async fn well_behaved(address: SocketAddr, stop: Arc<AtomicBool>) -> (u64, Duration) {
    let mut socket = shaken(address).await;
    let (mut answered, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        say(&mut socket, &call("Echo", "\"hi\"")).await;
        expect(&mut socket, "{\"type\":3,\"invocationId\":\"1\",\"result\":\"hi\"}").await;
        longest = longest.max(start.elapsed());
        answered += 1;
    }
    (answered, longest)
}

/// All of them at once, while somebody else is served.
async fn wave(address: SocketAddr, heavy: usize) -> (u64, Duration) {
    let stop = Arc::new(AtomicBool::new(false));
    let served = tokio::spawn(well_behaved(address, stop.clone()));
    let mut attacks = JoinSet::new();
    for number in 0..CLIENTS {
        attacks.spawn(attack(address, KINDS[number % KINDS.len()]));
    }
    for kind in HEAVY.into_iter().cycle().take(HEAVY.len() * heavy) {
        attacks.spawn(attack(address, kind));
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

/// Resident memory of a process that has ended its connections: files of it are closed, the last ones perhaps this moment.
async fn quiet(process: u32) -> u64 {
    let files = || std::fs::read_dir(format!("/proc/{process}/fd")).expect("it runs").count();
    let end = deadline();
    while files() > IDLE_FILES {
        assert!(Instant::now() < end, "{} files are open", files());
        // Nothing announces it from outside.
        sleep(Duration::from_millis(50)).await;
    }
    resident(process)
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
    let seconds = |time: Duration| time.as_secs().to_string();
    let switches = ["--handshake", &seconds(HANDSHAKES), "--heads", &seconds(HEADS)].map(str::to_owned);
    let server = Server::start(program, &switches).await.unwrap();
    let process = server.process_id().expect("we started it");

    let mut held = Vec::new();
    loop {
        let (answered, longest) = wave(server.address, HEAVY_CLIENTS[held.len().min(1)]).await;
        println!(
            "{CLIENTS} hostile clients; another was answered {answered} times, longest wait {longest:?}"
        );
        assert!(answered > 10, "{answered}");
        assert!(longest < bound(Duration::from_secs(3)), "somebody waited {longest:?}");
        held.push(quiet(process).await);
        println!("resident {} kB", held[held.len() - 1] >> 10);
        if held.len() < *WAVES.start() {
            continue;
        }
        let grown = held[held.len() - 1].saturating_sub(held[held.len() - 3]);
        if grown <= KEPT {
            break;
        }
        assert!(held.len() < *WAVES.end(), "{} kB more than two waves before; ever: {held:?}", grown >> 10);
    }
}
