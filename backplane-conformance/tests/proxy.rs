//! The fault proxy provokes each fault, exactly when told, and counts what passes.
#![allow(clippy::unwrap_used, reason = "a test fails by it, also outside of its own function")]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use backplane_conformance::proxy::{CommandCount, Direction, FaultProxy, Traffic};
use backplane_conformance::{Faults, bound};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(10);

/// Long enough that a byte which may move on loopback has moved.
const MUTE: Duration = Duration::from_millis(100);

/// A proxy in front of a listener of the test's own.
struct Setup {
    proxy: FaultProxy,
    listener: TcpListener,
}

impl Setup {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = FaultProxy::start(listener.local_addr().unwrap()).unwrap();
        Self { proxy, listener }
    }

    /// A client and the server's end of its connection.
    async fn connect(&self) -> (TcpStream, TcpStream) {
        let client = self.dial().await;
        (client, self.accept().await)
    }

    async fn dial(&self) -> TcpStream {
        within(TcpStream::connect(self.proxy.address())).await.unwrap()
    }

    async fn accept(&self) -> TcpStream {
        within(self.listener.accept()).await.unwrap().0
    }

    /// Waits for a fact that the proxy's own thread brings about.
    async fn until(&self, fact: impl Fn(&Traffic) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !fact(&self.proxy.traffic()) {
            assert!(Instant::now() < deadline, "{:?}", self.proxy);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(DEADLINE, future).await.expect("the deadline passed")
}

async fn says(from: &mut TcpStream, text: &str) {
    within(from.write_all(text.as_bytes())).await.unwrap();
}

async fn hears(at: &mut TcpStream, text: &str) {
    let mut heard = vec![0; text.len()];
    within(at.read_exact(&mut heard)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&heard), text);
}

async fn hears_nothing(at: &mut TcpStream) {
    let mut byte = [0];
    let heard = timeout(MUTE, at.read(&mut byte)).await;
    assert!(heard.is_err(), "{heard:?}: {byte:?}");
}

async fn is_reset(at: &mut TcpStream) {
    let error = within(at.read(&mut [0; 64])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// A reset can be as fast as the news that somebody accepted.
async fn dials_a_reset(proxy: &FaultProxy) {
    match within(TcpStream::connect(proxy.address())).await {
        Ok(mut accepted) => is_reset(&mut accepted).await,
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

async fn has_ended(at: &mut TcpStream) {
    assert_eq!(within(at.read(&mut [0; 64])).await.unwrap(), 0);
}

#[tokio::test]
async fn bytes_pass_both_ways_and_are_counted() {
    let setup = Setup::new().await;
    let (mut client, mut server) = setup.connect().await;
    says(&mut client, "question").await;
    hears(&mut server, "question").await;
    says(&mut server, "answer").await;
    hears(&mut client, "answer").await;
    let traffic = setup.proxy.traffic();
    assert_eq!((traffic.bytes_to_server, traffic.bytes_to_client), (8, 6));
    assert_eq!((traffic.accepted, traffic.open, traffic.refused), (1, 1, 0));
}

#[tokio::test]
async fn each_end_of_stream_passes_by_itself() {
    let setup = Setup::new().await;
    let (mut client, mut server) = setup.connect().await;
    says(&mut client, "last words").await;
    client.shutdown().await.unwrap();
    hears(&mut server, "last words").await;
    has_ended(&mut server).await;
    says(&mut server, "answer").await;
    drop(server);
    hears(&mut client, "answer").await;
    has_ended(&mut client).await;
    setup.until(|traffic| traffic.open == 0).await;
}

#[tokio::test]
async fn a_reset_passes() {
    let setup = Setup::new().await;
    let (mut client, server) = setup.connect().await;
    server.set_zero_linger().unwrap();
    drop(server);
    is_reset(&mut client).await;
}

#[tokio::test]
async fn cut_resets_both_sides_and_new_connections_pass() {
    let setup = Setup::new().await;
    let (mut client, mut server) = setup.connect().await;
    setup.proxy.cut();
    is_reset(&mut client).await;
    is_reset(&mut server).await;
    let (mut client, mut server) = setup.connect().await;
    says(&mut client, "again").await;
    hears(&mut server, "again").await;
}

#[tokio::test]
async fn hang_up_ends_both_streams_in_order() {
    let setup = Setup::new().await;
    let (mut client, mut server) = setup.connect().await;
    setup.proxy.hang_up();
    has_ended(&mut client).await;
    has_ended(&mut server).await;
}

#[tokio::test]
async fn refused_connections_are_reset_and_others_stay() {
    let setup = Setup::new().await;
    let (mut client, mut server) = setup.connect().await;
    setup.proxy.refuse();
    dials_a_reset(&setup.proxy).await;
    says(&mut client, "still here").await;
    hears(&mut server, "still here").await;
    assert_eq!(setup.proxy.traffic().refused, 1);

    setup.proxy.accept();
    setup.connect().await;
}

#[tokio::test]
async fn frozen_nothing_moves_and_nothing_is_closed_until_the_thaw() {
    let setup = Setup::new().await;
    let (mut client, mut server) = setup.connect().await;
    setup.proxy.freeze();
    says(&mut client, "held").await;
    says(&mut server, "back").await;
    tokio::join!(hears_nothing(&mut server), hears_nothing(&mut client));
    // New connections are accepted, and mute.
    let mut late = setup.dial().await;
    says(&mut late, "late").await;
    hears_nothing(&mut late).await;
    // An end of stream is held back too.
    client.shutdown().await.unwrap();
    hears_nothing(&mut server).await;

    setup.proxy.thaw();
    hears(&mut server, "held").await;
    has_ended(&mut server).await;
    hears(&mut client, "back").await;
    hears(&mut setup.accept().await, "late").await;
}

#[tokio::test]
async fn one_direction_freezes_alone() {
    let setup = Setup::new().await;
    let (mut client, mut server) = setup.connect().await;
    setup.proxy.freeze_to_client();
    says(&mut client, "question").await;
    hears(&mut server, "question").await;
    says(&mut server, "answer").await;
    hears_nothing(&mut client).await;
    setup.proxy.thaw();
    hears(&mut client, "answer").await;

    setup.proxy.freeze_to_server();
    says(&mut server, "news").await;
    hears(&mut client, "news").await;
    says(&mut client, "reply").await;
    hears_nothing(&mut server).await;
    setup.proxy.thaw();
    hears(&mut server, "reply").await;
}

#[tokio::test]
async fn after_freeze_returned_not_one_byte_moves() {
    let setup = Setup::new().await;
    let (mut client, mut server) = setup.connect().await;
    let flood = tokio::spawn(async move {
        let chunk = vec![0; 10_000];
        while client.write_all(&chunk).await.is_ok() {}
    });
    let drain = tokio::spawn(async move {
        let mut sink = vec![0; 100_000];
        while server.read(&mut sink).await.is_ok_and(|read| read > 0) {}
    });
    for round in 1..=20 {
        setup.until(|traffic| traffic.bytes_to_server > round * 1_000_000).await;
        setup.proxy.freeze();
        let then = setup.proxy.traffic().bytes_to_server;
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(setup.proxy.traffic().bytes_to_server, then);
        setup.proxy.thaw();
    }
    setup.proxy.cut();
    within(flood).await.unwrap();
    within(drain).await.unwrap();
}

#[tokio::test]
async fn cut_ends_frozen_connections_too() {
    let setup = Setup::new().await;
    let (mut client, mut server) = setup.connect().await;
    setup.proxy.freeze();
    let mut late = setup.dial().await;
    setup.until(|traffic| traffic.open == 2).await;
    setup.proxy.cut();
    for end in [&mut client, &mut server, &mut late] {
        is_reset(end).await;
    }
    setup.until(|traffic| traffic.open == 0).await;
}

#[tokio::test]
async fn delay_holds_each_chunk_in_order_without_bounding_the_rate() {
    const DELAY: Duration = Duration::from_millis(100);
    let setup = Setup::new().await;
    let (mut client, mut server) = setup.connect().await;
    setup.proxy.delay(DELAY);
    let start = Instant::now();
    says(&mut client, "a").await;
    hears(&mut server, "a").await;
    assert!(start.elapsed() >= DELAY, "{:?}", start.elapsed());

    // Twenty chunks one after another are under way together.
    let start = Instant::now();
    let expected: String = (0..20).map(|number| format!("{number},")).collect();
    for number in 0..20 {
        says(&mut client, &format!("{number},")).await;
    }
    hears(&mut server, &expected).await;
    assert!(start.elapsed() < DELAY * 20, "{:?}", start.elapsed());

    // What was delayed still comes first when the delay ends.
    says(&mut client, "slow").await;
    setup.proxy.delay(Duration::ZERO);
    says(&mut client, "quick").await;
    hears(&mut server, "slowquick").await;
}

#[tokio::test]
async fn throttle_bounds_the_rate() {
    const RATE: u64 = 1_000_000;
    let setup = Setup::new().await;
    let (mut client, mut server) = setup.connect().await;
    setup.proxy.throttle(Some(RATE));
    let start = Instant::now();
    let sent = tokio::spawn(async move { client.write_all(&[7; 300_000]).await });
    let mut heard = vec![0; 300_000];
    within(server.read_exact(&mut heard)).await.unwrap();
    within(sent).await.unwrap().unwrap();
    // The bucket was full at first: 20 ms of the rate.
    assert!(start.elapsed() >= Duration::from_millis(270), "{:?}", start.elapsed());
    assert!(heard.iter().all(|&byte| byte == 7));
}

#[tokio::test]
async fn dropped_bytes_are_lost_once_in_their_direction() {
    let setup = Setup::new().await;
    let (mut client, mut server) = setup.connect().await;
    setup.proxy.drop_bytes(3, Direction::ToServer);
    says(&mut server, "whole").await;
    hears(&mut client, "whole").await;
    says(&mut client, "abcdef").await;
    hears(&mut server, "def").await;
    says(&mut client, "ghi").await;
    hears(&mut server, "ghi").await;
    let traffic = setup.proxy.traffic();
    assert_eq!((traffic.bytes_to_server, traffic.bytes_dropped), (6, 3));
}

#[tokio::test]
async fn a_server_that_is_down_resets_the_client() {
    let setup = Setup::new().await;
    let Setup { proxy, listener } = setup;
    drop(listener);
    dials_a_reset(&proxy).await;
}

#[tokio::test]
async fn as_faults_it_goes_down_and_comes_up() {
    let setup = Setup::new().await;
    let (mut client, _server) = setup.connect().await;
    let faults: &dyn Faults = &setup.proxy;
    faults.down().await;
    is_reset(&mut client).await;
    dials_a_reset(&setup.proxy).await;
    faults.up().await;
    let (mut client, mut server) = setup.connect().await;
    faults.freeze().await;
    says(&mut client, "held").await;
    hears_nothing(&mut server).await;
    faults.thaw().await;
    hears(&mut server, "held").await;
    faults.cut().await;
    is_reset(&mut client).await;
}

#[tokio::test]
async fn commands_are_counted_once_the_server_has_them() {
    let setup = Setup::new().await;
    let (mut client, mut server) = setup.connect().await;
    let subscribe = "*4\r\n$9\r\nSUBSCRIBE\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n";
    let publish = "*3\r\n$7\r\npublish\r\n$1\r\na\r\n$2\r\nhi\r\n";
    for command in [subscribe, publish, publish] {
        says(&mut client, command).await;
        hears(&mut server, command).await;
    }
    let commands = setup.proxy.commands();
    assert_eq!(commands["SUBSCRIBE"], CommandCount { calls: 1, arguments: 3 });
    assert_eq!(commands["PUBLISH"], CommandCount { calls: 2, arguments: 4 });
    assert_eq!(commands.len(), 2);
    setup.proxy.reset_counts();
    assert!(setup.proxy.commands().is_empty());
}

#[tokio::test]
async fn dropped_it_leaves_nothing_behind() {
    let setup = Setup::new().await;
    let (mut client, mut server) = setup.connect().await;
    setup.proxy.freeze();
    let address: SocketAddr = setup.proxy.address();
    drop(setup);
    for end in [&mut client, &mut server] {
        // Closed one way or the other.
        assert!(matches!(within(end.read(&mut [0])).await, Ok(0) | Err(_)));
    }
    let error = within(TcpStream::connect(address)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_hundred_megabytes_pass_in_a_second() {
    const MEGABYTES: usize = 200;
    let setup = Setup::new().await;
    let (mut client, mut server) = setup.connect().await;
    let start = Instant::now();
    let sent = tokio::spawn(async move {
        // Commands of 128 bytes, so that counting them is part of the price.
        let command = format!("*3\r\n$7\r\nPUBLISH\r\n$1\r\na\r\n$94\r\n{}\r\n", "x".repeat(94));
        let chunk = command.repeat(512);
        for _ in 0..MEGABYTES * 1_000_000 / chunk.len() {
            client.write_all(chunk.as_bytes()).await.unwrap();
        }
        MEGABYTES * 1_000_000 / chunk.len() * 512
    });
    let mut heard = 0;
    let mut chunk = vec![0; 256 << 10];
    loop {
        match within(server.read(&mut chunk)).await.unwrap() {
            0 => break,
            read => heard += read,
        }
    }
    let commands = within(sent).await.unwrap();
    let rate = heard as f64 / start.elapsed().as_secs_f64() / 1e6;
    // A fifth of what it should be on this machine, and less on one whose bounds are longer.
    let least = 20.0 / bound(Duration::from_secs(1)).as_secs_f64();
    println!("{rate:.0} MB/s through the proxy (bound 100; below {least:.0} it fails)");
    assert!(rate >= least, "{rate:.0} MB/s");
    assert_eq!(setup.proxy.commands()["PUBLISH"].calls, commands as u64);
}
