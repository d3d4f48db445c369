//! One flow of messages from a publishing to a subscribing process, bare or ours, flat out or paced.

use std::time::{Duration, Instant};

use backplane::GroupName;
use backplane_conformance::broker::{Broker as _, Redis};
use serde::{Deserialize, Serialize};

use crate::node::{self, Client};
use crate::part::{Cue, Part, Side};
use crate::payload::Ledger;
use crate::{Result, bare, machine};

/// Names of the parts.
pub(crate) const PUBLISHER: &str = "publisher";
pub(crate) const SUBSCRIBER: &str = "subscriber";

/// What flows before the subscriber measures, and after.
pub(crate) const WARM_UP: Duration = Duration::from_millis(300);

/// The group, and the channel that the bare loop uses: the one that ours has for the group.
const GROUP: &str = "bench";
const CHANNEL: &str = "backplane.h.hub.g.bench";

/// What both processes are told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    url: String,
    side: Side,
    measured: Duration,
    /// Messages per second; `None`: flat out.
    pace: Option<u32>,
}

/// What the publisher found.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Sent {
    pub(crate) messages: u64,
    pub(crate) processor: Duration,
}

/// What the subscriber found.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Received {
    messages: u64,
    processor: Duration,
    rate: f64,
    complaint: Option<String>,
    /// p50 and p99 in microseconds, of a paced flow.
    latencies: Option<(f64, f64)>,
}

impl Received {
    /// What stands in the ledger of a flow that has ended, and what it took to read it.
    pub(crate) fn of(mut ledger: Ledger, processor: Duration, paced: bool) -> Result<Self> {
        let latencies = match paced {
            false => None,
            true => Some((
                ledger.latency(0.50).ok_or("nothing arrived while it was measured")?,
                ledger.latency(0.99).ok_or("nothing arrived while it was measured")?,
            )),
        };
        Ok(Self {
            messages: ledger.received(),
            processor,
            rate: ledger.rate().ok_or("the flow ended before it was measured")?,
            complaint: ledger.complaint(),
            latencies,
        })
    }
}

/// One round.
#[derive(Debug)]
pub(crate) struct Round {
    /// Deliveries per second.
    pub(crate) rate: f64,
    /// Processor time per message in microseconds.
    pub(crate) publisher: f64,
    pub(crate) subscriber: f64,
    pub(crate) broker: f64,
    /// How many cores were busy with something else.
    pub(crate) elsewhere: f64,
    /// p50 and p99 in microseconds, of a paced flow.
    pub(crate) latencies: Option<(f64, f64)>,
}

/// Runs one round; whatever was lost is an error.
pub(crate) async fn round(redis: &Redis, side: Side, measured: Duration, pace: Option<u32>) -> Result<Round> {
    let task = Task { url: redis.url(), side, measured, pace };
    let subscriber = Part::start(SUBSCRIBER, &task).await?;
    let publisher = Part::start(PUBLISHER, &task).await?;
    let round = measure(publisher, subscriber, measured, async || machine::processor_time_of(redis).await);
    round.await.map_err(|error| format!("{side:?}: {error}").into())
}

/// Lets two parts that are ready play a round, between which stands a broker that has taken `broker_time` so far.
pub(crate) async fn measure(
    mut publisher: Part,
    mut subscriber: Part,
    measured: Duration,
    broker_time: impl AsyncFn() -> Result<Duration>,
) -> Result<Round> {
    let broker = broker_time().await?;
    let (all, begun) = (machine::processor_time_of_all()?, Instant::now());
    subscriber.go().await?;
    publisher.go().await?;
    let sent: Sent = publisher.outcome(measured).await?;
    let received: Received = subscriber.outcome(measured).await?;
    let (all, elapsed) = (machine::processor_time_of_all()?.saturating_sub(all), begun.elapsed());
    let broker = broker_time().await?.saturating_sub(broker);
    let elsewhere = all.saturating_sub(sent.processor + received.processor + broker);
    if let Some(complaint) = received.complaint {
        return Err(complaint.into());
    }
    let each = |time: Duration, messages: u64| time.as_secs_f64() * 1e6 / messages.max(1) as f64;
    Ok(Round {
        rate: received.rate,
        publisher: each(sent.processor, sent.messages),
        subscriber: each(received.processor, received.messages),
        broker: each(broker, sent.messages),
        elsewhere: elsewhere.as_secs_f64() / elapsed.as_secs_f64(),
        latencies: received.latencies,
    })
}

/// The publishing process.
pub(crate) async fn publish(task: Task, cue: Cue) -> Result<Sent> {
    let Task { url, side, measured, pace } = task;
    let duration = measured + 2 * WARM_UP;
    let group = GroupName::from(GROUP);
    let (messages, before) = match side {
        Side::Bare => {
            cue.ready().await?;
            let before = machine::processor_time()?;
            let messages = match pace {
                None => bare::publish_flat_out(&url, CHANNEL, duration).await?,
                Some(pace) => bare::publish_paced(&url, CHANNEL, duration, pace).await?,
            };
            (messages, before)
        }
        Side::Ours => {
            let router = backplane::open(&url).await?;
            cue.ready().await?;
            let before = machine::processor_time()?;
            let messages = match pace {
                None => node::post_flat_out(&router, &group, duration).await?,
                Some(pace) => node::post_paced(&router, &group, duration, pace).await?,
            };
            (messages, before)
        }
    };
    Ok(Sent { messages, processor: machine::processor_time()? - before })
}

/// The subscribing process.
pub(crate) async fn subscribe(task: Task, cue: Cue) -> Result<Received> {
    let Task { url, side, measured, pace } = task;
    let mut ledger = Ledger::new(WARM_UP, measured, pace.is_some());
    let before = match side {
        Side::Bare => {
            let subscription = bare::subscribed(&url, CHANNEL).await?;
            cue.ready().await?;
            let before = machine::processor_time()?;
            bare::receive(subscription, &mut ledger, pace.is_some()).await?;
            before
        }
        Side::Ours => {
            let router = backplane::open(&url).await?;
            let mut client = Client::register(&router).await?;
            client.join(&router, &GroupName::from(GROUP)).await?;
            cue.ready().await?;
            let before = machine::processor_time()?;
            client.receive(&mut ledger).await?;
            before
        }
    };
    let processor = machine::processor_time()? - before;
    Received::of(ledger, processor, pace.is_some())
}
