//! What brokers keep of a node whose process was killed (SIGKILL): nothing, 60 s later, while what nodes share stays.

// What was measured is printed.
#![allow(clippy::print_stdout)]

use std::process::Stdio;
use std::time::{Duration, Instant};

use backplane_conformance::bound;
use backplane_conformance::broker::{
    Broker as _, Nats, NatsOptions, RabbitMq, RabbitMqHoldings, RabbitMqOptions, Redis, RedisOptions,
};
use backplane_core::{
    Backplane as _, BackplaneExt as _, GroupName, LocalConnection, OutboundLimits, Protocol, UserId, outbound,
};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// Tells the other process the URL of its node.
const URL: &str = "BACKPLANE_TEST_KILLED_NODE_URL";

/// What it says when its node has everything.
const UP: &str = "up";

/// Clients of that node, each with a user and a group of its own.
const CLIENTS: usize = 20;

/// How long anything may take that takes no time.
const SOON: Duration = Duration::from_secs(20);

/// The promise.
const FREED: Duration = Duration::from_secs(60);

/// Not a test: what that process does.
#[tokio::test]
#[ignore = "started by other tests in a process of its own"]
async fn in_a_process_of_its_own() {
    let Ok(url) = std::env::var(URL) else { return };
    let node = backplane::open(&url).await.expect("a node");
    let mut kept = Vec::new();
    for number in 0..CLIENTS {
        let (sender, receiver) = outbound(OutboundLimits::default());
        let id = node.new_connection_id();
        let user = Some(UserId::from(format!("user-{number}")));
        let connection = LocalConnection { id: id.clone(), user, protocol: Protocol::JSON, outbound: sender };
        let registration = node.register(connection).await.expect("the link is up");
        node.join(&id, &GroupName::from(format!("group-{number}"))).await.expect("the link is up");
        kept.push((registration, receiver));
    }
    eprintln!("{UP}");
    // Until whoever started it dies, if it is not killed before.
    let end = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    let _ = end.await;
    drop(kept);
}

async fn other_process(url: &str) -> Child {
    let mut process = Command::new(std::env::current_exe().expect("a running program has a path"))
        .args(["in_a_process_of_its_own", "--exact", "--ignored", "--nocapture"])
        .env(URL, url)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("this program can be started once more");
    let mut said = BufReader::new(process.stderr.take().expect("it was piped")).lines();
    let up = async {
        let mut before = Vec::new();
        while let Some(line) = said.next_line().await.expect("its words can be read") {
            if line == UP {
                return;
            }
            before.push(line);
        }
        panic!("it ended, and said {before:?}");
    };
    timeout(bound(SOON), up).await.expect("it is up in time");
    process
}

/// Kills the process of a node on `url`, and compares what the broker holds before and after: `holds` tells it, `own` counts
/// what of it is a node's and not shared, and `belongs` says whether everything is there that a node has.
async fn leaves_nothing<T: PartialEq + std::fmt::Debug, O: PartialEq>(
    what: &str,
    url: &str,
    holds: impl AsyncFn() -> T,
    own: impl Fn(&T) -> O,
    belongs: impl FnOnce(&T, &T) -> bool,
) {
    let look = async |wanted: &T, most: Duration| {
        let start = Instant::now();
        loop {
            let held = holds().await;
            if held == *wanted || start.elapsed() > most {
                return (held, start.elapsed());
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    // What all nodes share is there from now on.
    let empty = holds().await;
    let first = timeout(bound(SOON), backplane::open(url)).await.expect("in time").expect("a node");
    timeout(bound(SOON), first.shutdown()).await.expect("in time").expect("it leaves in order");
    let mut before = holds().await;
    // A queue of AMQP 1.0 goes some time after its link.
    let start = Instant::now();
    while own(&before) != own(&empty) {
        assert!(start.elapsed() < FREED, "{what}: {before:?} after a node that left, {empty:?} without any");
        sleep(Duration::from_millis(200)).await;
        before = holds().await;
    }
    let mut process = other_process(url).await;
    let with = holds().await;
    assert!(belongs(&before, &with), "{what}: before {before:?}, with the node {with:?}");
    process.kill().await.expect("it runs and is ours");
    let (after, took) = look(&before, FREED).await;
    println!("{what}: with the node {with:?}, {took:.2?} after it was killed {after:?}");
    assert_eq!(after, before, "{what} still holds something of it after {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis() {
    let Some(redis) = Redis::require(RedisOptions::default()).await else { return };
    let holds = async || {
        let keys = redis.command(&["DBSIZE"]).await.expect("it runs");
        (redis.channels().await.expect("it runs").len(), format!("{keys:?}"))
    };
    let own = |held: &(usize, String)| held.0;
    leaves_nothing("redis", &redis.url(), holds, own, |before, with| {
        with.0 > before.0 + 2 * CLIENTS && with.1 == before.1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq() {
    let Some(rabbitmq) = RabbitMq::require(RabbitMqOptions::default()).await else { return };
    let holds = async || rabbitmq.holdings().await.expect("it runs");
    let own = |held: &RabbitMqHoldings| held.queues + held.consumers + held.connections;
    leaves_nothing("rabbitmq", &rabbitmq.url(), holds, own, |before, with| {
        with.queues == before.queues + 2
            && with.consumers == before.consumers + 2
            && with.connections == before.connections + 2
            && with.bindings > before.bindings + 2 * CLIENTS
            && with.exchanges == before.exchanges
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn amqp_1_0() {
    let Some(rabbitmq) = RabbitMq::require(RabbitMqOptions::amqp_1_0()).await else { return };
    let url = rabbitmq.url_of_amqp_1_0("killed").await.expect("it has the plugin");
    // Connections are those of AMQP 0-9-1 only.
    let holds = async || rabbitmq.holdings().await.expect("it runs");
    let own = |held: &RabbitMqHoldings| held.queues + held.consumers;
    leaves_nothing("AMQP 1.0", &url, holds, own, |before, with| {
        with.queues == before.queues + 1 && with.consumers == before.consumers + 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_and_jetstream() {
    let options = NatsOptions { jetstream: true, ..NatsOptions::default() };
    let Some(nats) = Nats::require(options).await else { return };
    let holds = async || {
        let clients = nats.clients().await.expect("it runs").len();
        let subscriptions = nats.subscriptions().await.expect("it runs").len();
        let (streams, consumers) = nats.streams_and_consumers().await.expect("it runs");
        (clients, subscriptions, streams, consumers)
    };
    let own = |held: &(usize, usize, u64, u64)| held.0 + held.1;
    leaves_nothing("NATS", &nats.url(), holds, own, |before, with| {
        with.0 == before.0 + 1 && with.1 > before.1 + 2 * CLIENTS && (with.2, with.3) == (before.2, before.3)
    })
    .await;
    let durable = format!("{}?subject=durable&durable=true", nats.url());
    // The stream stays, and with it perhaps subscriptions of the server's own.
    let own = |held: &(usize, usize, u64, u64)| held.0 as u64 + held.3;
    leaves_nothing("JetStream", &durable, holds, own, |before, with| {
        with.0 == before.0 + 1 && with.2 == before.2 && with.3 == before.3 + 1 && before.2 == 1
    })
    .await;
}
