//! `fan-out` and `fan-out-latency`: one server publishes, another has many WebSocket clients, Redis lies between them.
//! The hub server beside a bare loop that knows neither hubs nor connections.

pub(crate) mod bare;
pub(crate) mod clients;
pub(crate) mod hub;
pub(crate) mod publisher;
mod record;
pub(crate) mod websocket;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use backplane_conformance::broker::{Broker as _, Redis};

use self::clients::Received;
use self::publisher::Sent;
use crate::options::Options;
use crate::part::{Part, Side};
use crate::table::{Bound, Table, Verdict};
use crate::{Result, machine};

/// Names of the parts.
pub(crate) const PUBLISHER: &str = "fan-out-publisher";
pub(crate) const CLIENTS: &str = "fan-out-clients";
pub(crate) const BARE_SERVER: &str = "fan-out-bare-server";
pub(crate) const OUR_SERVER: &str = "fan-out-our-server";

/// What a server says when all clients are connected.
const CONNECTED: &str = "connected";

/// The channel that the bare loop uses: the one that ours has for all clients of the hub.
const CHANNEL: &str = "backplane.h.hub.all";

/// What flows before the clients measure, and after.
const WARM_UP: Duration = Duration::from_millis(300);

/// Flat out: how many clients, and how much of the bare loop's deliveries ours must reach.
const FLAT_OUT: [(usize, f64); 3] = [(1, 0.4), (100, 0.5), (1_000, 0.4)];

/// Paced: messages per second, clients, and how much more than the bare loop's p99 ours may be.
const PACE: u32 = 500;
const PACED_CLIENTS: usize = 100;
const LATENCY_BOUND: Bound = Bound::RatioAtMost(2.0);

/// `fan-out`: deliveries per second, flat out.
pub(crate) async fn flat_out(redis: &Redis, options: &Options) -> Result<Vec<Verdict>> {
    println!("fan-out: deliveries/s, publisher > redis > server > WebSocket clients");
    println!("  bare: pipelines of 512 awaited one by one; ours: 512 acceptances outstanding");
    describe();
    let mut verdicts = Vec::new();
    for (clients, bound) in FLAT_OUT {
        verdicts.push(flat_out_to(redis, options, clients, Bound::RatioAtLeast(bound)).await?);
    }
    Ok(verdicts)
}

fn describe() {
    println!(
        "  records of {} bytes; a current-thread runtime each for publisher, server, and all clients",
        record::LEN
    );
    println!("  bare: takes what has arrived, joins it, writes each socket once, waits for a full one");
    println!("  ours: `clients().all().post` > hub server in axum, JSON");
    println!("  every client checks every number: a hole, a repeat or a disconnection ends the run");
}

async fn flat_out_to(redis: &Redis, options: &Options, clients: usize, bound: Bound) -> Result<Verdict> {
    println!("  {clients} clients");
    let measured = options.measured(5.0);
    let mut rates = Table::new(&[("bare /s", 0), ("ours /s", 0), ("ratio", 3)]);
    let mut busy = busy_table();
    for _ in 0..options.rounds(5) {
        let bare = round(redis, Side::Bare, clients, measured, None).await?;
        let ours = round(redis, Side::Ours, clients, measured, None).await?;
        rates.round([bare.rate, ours.rate, ours.rate / bare.rate]);
        busy.round(busy_row(&bare, &ours));
    }
    println!("{rates}\n  cores that each process kept busy\n{busy}");
    let what = format!("fan-out to {clients} clients, ratio of medians");
    let verdict = Verdict::new(what, rates.median(1) / rates.median(0), bound);
    println!("  {verdict}");
    Ok(verdict)
}

/// `fan-out-latency`: from sending to receipt, at a moderate pace.
pub(crate) async fn paced(redis: &Redis, options: &Options) -> Result<Vec<Verdict>> {
    println!(
        "fan-out-latency: us from sending to receipt at {PACE} messages/s to {PACED_CLIENTS} clients, of all deliveries"
    );
    describe();
    let measured = options.measured(5.0);
    let mut latencies = Table::new(&[
        ("bare p50", 0),
        ("ours p50", 0),
        ("ratio", 2),
        ("bare p99", 0),
        ("ours p99", 0),
        ("ratio", 2),
    ]);
    let mut busy = busy_table();
    for _ in 0..options.rounds(5) {
        let bare = round(redis, Side::Bare, PACED_CLIENTS, measured, Some(PACE)).await?;
        let ours = round(redis, Side::Ours, PACED_CLIENTS, measured, Some(PACE)).await?;
        let (Some((bare_p50, bare_p99)), Some((ours_p50, ours_p99))) = (bare.latencies, ours.latencies)
        else {
            return Err("a paced flow has latencies".into());
        };
        latencies.round([bare_p50, ours_p50, ours_p50 / bare_p50, bare_p99, ours_p99, ours_p99 / bare_p99]);
        busy.round(busy_row(&bare, &ours));
    }
    println!("{latencies}\n  cores that each process kept busy\n{busy}");
    let what = format!("fan-out at {PACE}/s to {PACED_CLIENTS} clients, ratio of the medians of p99");
    let verdict = Verdict::new(what, latencies.median(4) / latencies.median(3), LATENCY_BOUND);
    println!("  {verdict}");
    Ok(vec![verdict])
}

/// One round.
struct Round {
    /// Deliveries per second.
    rate: f64,
    /// p50 and p99 in microseconds, of a paced flow.
    latencies: Option<(f64, f64)>,
    /// Cores that each process kept busy, in the order of [`busy_table`].
    busy: [f64; 5],
}

/// Tells who was the limit.
fn busy_table() -> Table {
    let processes = |side| [side, "redis", "server", "clients", "elsewhere"].map(|name| (name, 2));
    Table::new(&[processes("bare: publisher"), processes("ours: publisher")].concat())
}

fn busy_row(bare: &Round, ours: &Round) -> [f64; 10] {
    std::array::from_fn(|column| if column < 5 { bare.busy[column] } else { ours.busy[column - 5] })
}

/// Runs one round; whatever was lost is an error.
async fn round(
    redis: &Redis,
    side: Side,
    clients: usize,
    measured: Duration,
    pace: Option<u32>,
) -> Result<Round> {
    let url = redis.url();
    let part = match side {
        Side::Bare => BARE_SERVER,
        Side::Ours => OUR_SERVER,
    };
    let mut server = Part::start(part, &bare::Task { url: url.clone(), clients }).await?;
    server.go().await?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server.told().await?));
    let task = clients::Task { server: address, clients, warm_up: WARM_UP, measured };
    let mut receiving = Part::start(CLIENTS, &task).await?;
    server.said(CONNECTED).await?;
    receiving.go().await?;
    let progress = SocketAddr::from((Ipv4Addr::LOCALHOST, receiving.told().await?));
    let task = publisher::Task { url, side, duration: measured + 2 * WARM_UP, pace, progress };
    let mut publisher = Part::start(PUBLISHER, &task).await?;

    let taken = async || -> Result<[Duration; 3]> {
        Ok([
            machine::processor_time_of_all()?,
            machine::processor_time_of(redis).await?,
            machine::processor_time_of_process(server.process()?)?,
        ])
    };
    let (before, begun) = (taken().await?, Instant::now());
    publisher.go().await?;
    // Whichever fails first tells why.
    let (sent, received): (Sent, Received) =
        tokio::try_join!(publisher.outcome(measured), receiving.outcome(measured))?;
    let (after, elapsed) = (taken().await?, begun.elapsed());
    if received.messages != sent.messages {
        return Err(format!("{side:?}: {} messages of {} arrived", received.messages, sent.messages).into());
    }
    let [all, redis, server] = [0, 1, 2].map(|at| after[at].saturating_sub(before[at]));
    let elsewhere = all.saturating_sub(redis + server + sent.processor + received.processor);
    let busy = [sent.processor, redis, server, received.processor, elsewhere]
        .map(|processor| processor.as_secs_f64() / elapsed.as_secs_f64());
    Ok(Round { rate: received.rate, latencies: received.latencies, busy })
}
