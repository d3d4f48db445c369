//! One flow of messages through whatever a URL names, from a publishing to a subscribing process, bare or ours.

use std::time::{Duration, Instant};

use backplane::{Backplane as _, EncodedMessage, GroupName, Router, Target};
use futures::stream::{FuturesUnordered, StreamExt as _};
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval};

use crate::flow::{self, Received, Round, Sent, WARM_UP};
use crate::loops;
use crate::node::{self, Client};
use crate::part::{Cue, Part, Side};
use crate::payload::{self, Ledger};
use crate::{Result, machine};

/// Names of the parts.
pub(crate) const PUBLISHER: &str = "through-publisher";
pub(crate) const SUBSCRIBER: &str = "through-subscriber";

/// The group.
const GROUP: &str = "bench";

/// What both processes are told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    url: String,
    side: Side,
    measured: Duration,
    /// Messages per second; `None`: flat out.
    pace: Option<u32>,
}

/// Runs one round through `url`; whatever was lost is an error. `server_time`: what the server has taken so far.
pub(crate) async fn round(
    url: String,
    side: Side,
    measured: Duration,
    pace: Option<u32>,
    server_time: impl AsyncFn() -> Result<Duration>,
) -> Result<Round> {
    let task = Task { url, side, measured, pace };
    let subscriber = Part::start(SUBSCRIBER, &task).await?;
    let publisher = Part::start(PUBLISHER, &task).await?;
    let round = flow::measure(publisher, subscriber, measured, server_time);
    round.await.map_err(|error| format!("{side:?}: {error}").into())
}

/// The publishing process.
pub(crate) async fn publish(task: Task, cue: Cue) -> Result<Sent> {
    let Task { url, side, measured, pace } = task;
    let duration = measured + 2 * WARM_UP;
    let group = GroupName::from(GROUP);
    let (messages, before) = match side {
        Side::Bare => {
            let publisher = loops::Publisher::connect(&url).await?;
            cue.ready().await?;
            let before = machine::processor_time()?;
            let messages = match pace {
                None => publisher.flat_out(duration).await?,
                Some(pace) => publisher.paced(duration, pace).await?,
            };
            (messages, before)
        }
        Side::Ours => {
            let router = backplane::open(&url).await?;
            cue.ready().await?;
            let before = machine::processor_time()?;
            let messages = match pace {
                None => node::post_flat_out(&router, &group, duration).await?,
                Some(pace) => post_paced(&router, &group, duration, pace).await?,
            };
            (messages, before)
        }
    };
    Ok(Sent { messages, processor: machine::processor_time()? - before })
}

/// Posts so many per second, whether or not earlier ones are accepted: a commit takes longer than the time between two.
async fn post_paced(router: &Router, group: &GroupName, duration: Duration, pace: u32) -> Result<u64> {
    let target = Target::Group(group.clone());
    let mut outstanding = FuturesUnordered::new();
    let mut sent = 0;
    let mut ticks = interval(Duration::from_secs(1) / pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let until = Instant::now() + duration;
    while Instant::now() < until {
        tokio::select! {
            _ = ticks.tick() => {
                let message = EncodedMessage::json(payload::stamped(sent).to_vec());
                outstanding.push(router.post(&target, &[], message)?);
                sent += 1;
            }
            Some(accepted) = outstanding.next() => drop(accepted?),
        }
    }
    while let Some(accepted) = outstanding.next().await {
        accepted?;
    }
    router.post(&target, &[], EncodedMessage::json(payload::end(sent).to_vec()))?.await?;
    Ok(sent)
}

/// The subscribing process.
pub(crate) async fn subscribe(task: Task, cue: Cue) -> Result<Received> {
    let Task { url, side, measured, pace } = task;
    let mut ledger = Ledger::new(WARM_UP, measured, pace.is_some());
    let before = match side {
        Side::Bare => {
            let subscriber = loops::Subscriber::connect(&url).await?;
            cue.ready().await?;
            let before = machine::processor_time()?;
            subscriber.receive(&mut ledger).await?;
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
