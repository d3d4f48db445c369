//! The pump stands still while a gigabyte is published: Redis' limit decides, not our memory, and the loss is told.
//!
//! Alone in its process, whose memory is measured.
#![cfg(target_os = "linux")]
// Measured numbers are printed.
#![allow(clippy::print_stdout)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use backplane_conformance::broker::Broker as _;
use backplane_core::{
    Attach, Backplane as _, Bus, Capabilities, EncodedMessage, Event, HubName, Link, LinkState,
    LocalConnection, LossReason, OutboundLimits, Protocol, Result, Router, RouterConfig, Target,
    WireFormat as _, outbound, wire,
};
use backplane_redis::Resp;
use backplane_tests::redis::{FaultsBy, RedisHarness, bound};
use futures::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, watch};

/// How long the pump stands still, and how much is published meanwhile.
const HELD: Duration = Duration::from_secs(10);
const PUBLISHED: usize = 1 << 30;

/// One message of the flood, and how many are written at once.
const FRAME: usize = 16 << 10;
const AT_ONCE: usize = 16;

/// By how much the resident memory may grow.
const MOST_MEMORY: usize = 64 << 20;

/// How often the memory is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Far more than a lost link and the next one need.
const PATIENCE: Duration = Duration::from_secs(20);

/// Both tests measure the same process.
static ALONE: Mutex<()> = Mutex::const_new(());

/// A bus whose links are not polled while the pump is held. Everything else of the node goes on.
#[derive(Debug)]
struct HeldPump {
    bus: Arc<dyn Bus>,
    held: watch::Receiver<bool>,
}

#[async_trait]
impl Bus for HeldPump {
    fn capabilities(&self) -> Capabilities {
        self.bus.capabilities()
    }

    async fn connect(&self, attach: Attach<'_>) -> Result<Link> {
        let link = self.bus.connect(attach).await?;
        let polled =
            futures::stream::unfold((link.inbound, self.held.clone()), |(mut inbound, mut held)| async {
                // An error says that the switch is gone: nothing is held any more.
                let _ = held.wait_for(|held| !held).await;
                inbound.next().await.map(|delivery| (delivery, (inbound, held)))
            });
        Ok(Link { inbound: polled.boxed(), ..link })
    }
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let pages: usize =
        pages.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("the second number");
    pages * page_size()
}

/// `statm` counts pages; `smaps_rollup` counts kilobytes and tells how large one is.
fn page_size() -> usize {
    let sizes = std::fs::read_to_string("/proc/self/smaps").expect("Linux has it");
    let line =
        sizes.lines().find_map(|line| line.strip_prefix("KernelPageSize:")).expect("every mapping has one");
    let kilobytes: usize = line.trim().trim_end_matches("kB").trim().parse().expect("a number of kB");
    kilobytes << 10
}

/// Publishes the flood from a bare connection, with memory that does not grow. Returns how many of its messages reached
/// a subscriber.
async fn flood(redis: std::net::SocketAddr, topic: &[u8]) -> usize {
    let start = Instant::now();
    let head = format!("*3\r\n$7\r\nPUBLISH\r\n${}\r\n", topic.len());
    let mut command = [head.as_bytes(), topic, format!("\r\n${FRAME}\r\n").as_bytes()].concat();
    command.extend(std::iter::repeat_n(b'x', FRAME));
    command.extend_from_slice(b"\r\n");
    let chunk = command.repeat(AT_ONCE);
    let (mut from, mut to) = TcpStream::connect(redis).await.expect("the server is there").into_split();
    let messages = PUBLISHED / FRAME;
    let writing = async {
        let chunks = messages / AT_ONCE;
        for number in 0..chunks {
            // Spread over the pause.
            tokio::time::sleep_until((start + HELD.mul_f64(number as f64 / chunks as f64)).into()).await;
            to.write_all(&chunk).await.expect("the server reads");
        }
    };
    let reading = async {
        // Each reply is `:0` or `:1` and a line end.
        let (mut replies, mut reached) = (0, 0);
        let mut buffer = [0; 4_096];
        while replies < messages {
            let read = from.read(&mut buffer).await.expect("the server answers");
            assert!(read > 0, "the server ended the publisher's connection after {replies} replies");
            replies += buffer[..read].iter().filter(|byte| **byte == b'\n').count();
            reached += buffer[..read].iter().filter(|byte| **byte == b'1').count();
        }
        reached
    };
    tokio::join!(writing, reading).1
}

/// Holds the pump of a node with this heartbeat bound. `ends`: whether the router itself ends links whose echo is
/// missing, again and again, within the pause.
async fn hold_the_pump(heartbeat: Duration, ends: bool) {
    let _alone = ALONE.lock().await;
    let Some(harness) = RedisHarness::require(Resp::V2, FaultsBy::Broker).await else { return };
    let (hold, held) = watch::channel(false);
    let bus = backplane::open_bus(&harness.redis().url()).expect("a private URL");
    let bus = Arc::new(HeldPump { bus, held });
    let config = RouterConfig { heartbeat, prefix: Some("held".into()), ..RouterConfig::default() };
    let hub = HubName::from("hub");
    let node = Router::open(bus, config).await.expect("the server is there");
    let (sender, mut inbox) = outbound(OutboundLimits::default());
    let id = node.new_connection_id();
    let connection = LocalConnection { id, user: None, protocol: Protocol::JSON, outbound: sender };
    let _registration = node.register(connection).await.expect("the link is up");
    node.send(&Target::all(), &[], EncodedMessage::json("warm")).await.expect("the link is up");
    inbox.next().await.expect("the queue is open");
    let mut events = node.events();
    let topics = wire::Native::new("held").expect("a prefix").hub_topics(&hub);
    let topic = &topics.first().expect("a hub has a topic of all connections").0;

    let before = resident();
    hold.send_replace(true);
    let start = Instant::now();
    let (ended, mut running) = watch::channel(false);
    let measuring = tokio::spawn(async move {
        let mut most = 0;
        loop {
            most = most.max(resident());
            if tokio::time::timeout(LOOK, running.wait_for(|ended| *ended)).await.is_ok() {
                return most;
            }
        }
    });
    let reached = flood(harness.redis().address(), topic.as_bytes()).await;
    let flooded = start.elapsed();
    // How long the pump stands still.
    tokio::time::sleep_until((start + HELD).into()).await;
    let (reconnects, up) = (node.stats().reconnects, node.health().borrow().is_up());
    assert_eq!(reconnects > 0, ends, "{reconnects} reconnects, up: {up}");
    hold.send_replace(false);

    let told = async {
        let (mut down, mut gap) = (None, None);
        while gap.is_none() {
            match events.recv().await.expect("the node lives and few things happen") {
                Event::LinkDown { error } => down = Some(error),
                Event::Gap(told) => gap = Some(told),
                _ => {}
            }
        }
        (down, gap.expect("the loop ended with one"))
    };
    let (down, gap) = tokio::time::timeout(bound(PATIENCE), told).await.expect("the loss is told");
    let messages = PUBLISHED / FRAME;
    println!(
        "heartbeat bound {heartbeat:?}: Redis took {reached} of {messages} messages for us in {flooded:.2?}"
    );
    println!(
        "{reconnects} reconnects meanwhile; the link ended: {}; {gap:?}",
        down.as_ref().expect("before the gap")
    );
    assert!(ends || reached < messages, "Redis would have held all of it");
    assert!(down.is_some_and(|error| error.is_retryable()), "the link ended first");
    assert_eq!(gap.reason, LossReason::Reconnect);

    // And everything flows again.
    let up = async {
        let mut health = node.health();
        health.wait_for(|health| matches!(health.state, LinkState::Up)).await.expect("the node lives");
        node.send(&Target::all(), &[], EncodedMessage::json("again")).await.expect("the link is up");
        inbox.next().await.expect("the queue is open")
    };
    assert_eq!(tokio::time::timeout(bound(PATIENCE), up).await.expect("it flows").bytes, "again");
    ended.send_replace(true);
    let most = measuring.await.expect("it only reads a file");
    let grown = most.saturating_sub(before);
    println!("resident memory grew by {} KiB from {} KiB", grown >> 10, before >> 10);
    assert!(grown <= MOST_MEMORY, "{grown} bytes");
}

/// The bound is well above the pause: Redis ends the link, and the pump learns of it when it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_pump_costs_no_memory_and_the_loss_is_told() {
    hold_the_pump(6 * HELD, false).await;
}

/// The bound is well below the pause: the router misses its own echo and opens link after link, each of which fills up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_that_are_opened_while_the_pump_is_held_cost_no_memory_either() {
    hold_the_pump(HELD / 5, true).await;
}
