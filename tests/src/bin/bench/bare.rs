//! The bare loops: the `redis` crate alone, doing as little as the job allows.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use redis::IntoConnectionInfo as _;
use redis::io::tcp::TcpSettings;
use tokio::task::unconstrained;
use tokio::time::{MissedTickBehavior, interval};

use crate::Result;
use crate::payload::{self, Ledger};

/// Publishes per awaited round trip.
const PIPELINE: usize = 512;

/// The subscriber looks at the clock once per so many messages.
const LOOK_EVERY: u64 = 64;

/// The crate leaves Nagle's delay on unless told; a fair loop does not.
fn client(url: &str) -> Result<redis::Client> {
    let server = url.into_connection_info()?;
    let server = server.set_tcp_settings(TcpSettings::default().set_nodelay(true));
    Ok(redis::Client::open(server)?)
}

/// A connection for everything but subscriptions.
pub(crate) async fn connection(url: &str) -> Result<redis::aio::MultiplexedConnection> {
    Ok(client(url)?.get_multiplexed_async_connection().await?)
}

/// Publishes as fast as it can in pipelines for that long, and the end. How many.
pub(crate) async fn publish_flat_out(url: &str, channel: &str, duration: Duration) -> Result<u64> {
    let mut connection = connection(url).await?;
    let mut sent = 0;
    let until = Instant::now() + duration;
    while Instant::now() < until {
        let mut pipeline = redis::Pipeline::with_capacity(PIPELINE);
        for _ in 0..PIPELINE {
            pipeline.cmd("PUBLISH").arg(channel).arg(&payload::numbered(sent)[..]).ignore();
            sent += 1;
        }
        pipeline.exec_async(&mut connection).await?;
    }
    publish(&mut connection, channel, &payload::end(sent)).await?;
    Ok(sent)
}

/// Publishes so many per second, one at a time, for that long, and the end. How many.
pub(crate) async fn publish_paced(url: &str, channel: &str, duration: Duration, pace: u32) -> Result<u64> {
    let mut connection = connection(url).await?;
    let mut sent = 0;
    let mut ticks = interval(Duration::from_secs(1) / pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let until = Instant::now() + duration;
    while Instant::now() < until {
        ticks.tick().await;
        publish(&mut connection, channel, &payload::stamped(sent)).await?;
        sent += 1;
    }
    publish(&mut connection, channel, &payload::end(sent)).await?;
    Ok(sent)
}

async fn publish(
    connection: &mut redis::aio::MultiplexedConnection,
    channel: &str,
    payload: &[u8],
) -> Result<()> {
    Ok(redis::cmd("PUBLISH").arg(channel).arg(payload).exec_async(connection).await?)
}

/// A subscribed connection.
pub(crate) async fn subscribed(url: &str, channel: &str) -> Result<redis::aio::PubSub> {
    let mut subscription = client(url)?.get_async_pubsub().await?;
    subscription.subscribe(channel).await?;
    Ok(subscription)
}

/// Reads messages up to the end. Without tokio's budget: with it the stream hands out 128 messages per turn while the
/// crate's own task reads thousands in one of its, and nearly everything is delivered after the flow.
pub(crate) async fn receive(
    subscription: redis::aio::PubSub,
    ledger: &mut Ledger,
    paced: bool,
) -> Result<()> {
    unconstrained(receive_all(subscription, ledger, paced)).await
}

async fn receive_all(subscription: redis::aio::PubSub, ledger: &mut Ledger, paced: bool) -> Result<()> {
    let mut messages = subscription.into_on_message();
    while let Some(message) = messages.next().await {
        if paced || ledger.received().is_multiple_of(LOOK_EVERY) {
            ledger.look(Instant::now());
        }
        if ledger.read(message.get_payload_bytes()) {
            return Ok(());
        }
    }
    Err("the subscription ended".into())
}

/// Subscribes to ever new channels, so many per round trip, for that long. How many, and how long it took.
pub(crate) async fn subscribe_flat_out(
    url: &str,
    at_once: usize,
    duration: Duration,
) -> Result<(u64, Duration)> {
    let mut subscription = client(url)?.get_async_pubsub().await?;
    let begun = Instant::now();
    let mut subscribed = 0;
    while begun.elapsed() < duration {
        let channels: Vec<String> =
            (subscribed..).take(at_once).map(|number| format!("backplane.h.hub.g.room-{number}")).collect();
        subscription.subscribe(&channels).await?;
        subscribed += at_once as u64;
    }
    Ok((subscribed, begun.elapsed()))
}
