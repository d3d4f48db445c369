//! The bare loop over JetStream: `async-nats` alone, acknowledgements pipelined, and its ordered consumer.

use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::push::{Ordered, OrderedConfig};
use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::stream::{Config, StorageType, Stream};
use async_nats::jetstream::{self, Context};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::try_join_all;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::{MissedTickBehavior, interval};

use crate::Result;
use crate::payload::{self, LEN, Ledger};

/// Frames whose acknowledgement is awaited at a time.
const WINDOW: u64 = 512;
const STREAM: &str = "bench";
const SUBJECT: &str = "bench.h.hub.g.bench";

/// As ours makes its own.
async fn stream(url: &str) -> Result<(Context, Stream)> {
    let address = url.split_once('?').map_or(url, |(address, _)| address);
    let context = jetstream::new(async_nats::connect(address).await?);
    let config = Config {
        name: STREAM.to_owned(),
        subjects: vec![format!("{STREAM}.>")],
        storage: StorageType::Memory,
        max_age: Duration::from_secs(120),
        max_bytes: 256 << 20,
        ..Config::default()
    };
    let stream = context.get_or_create_stream(config).await?;
    Ok((context, stream))
}

/// Publishes.
pub(crate) struct Publisher {
    context: Context,
}

impl Publisher {
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        let (context, _) = stream(url).await?;
        Ok(Self { context })
    }

    /// The acknowledgement of what is then on its way.
    async fn hand_over(&self, payload: [u8; LEN]) -> Result<<PublishAckFuture as IntoFuture>::IntoFuture> {
        let payload = Bytes::copy_from_slice(&payload);
        Ok(self.context.publish(SUBJECT, payload).await?.into_future())
    }

    pub(crate) async fn flat_out(self, duration: Duration) -> Result<u64> {
        let mut sent = 0;
        let until = Instant::now() + duration;
        while Instant::now() < until {
            let mut acknowledgements = Vec::with_capacity(WINDOW as usize);
            for number in sent..sent + WINDOW {
                acknowledgements.push(self.hand_over(payload::numbered(number)).await?);
            }
            try_join_all(acknowledgements).await?;
            sent += WINDOW;
        }
        self.hand_over(payload::end(sent)).await?.await?;
        Ok(sent)
    }

    pub(crate) async fn paced(self, duration: Duration, pace: u32) -> Result<u64> {
        let mut outstanding = FuturesUnordered::new();
        let mut sent = 0;
        let mut ticks = interval(Duration::from_secs(1) / pace);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let until = Instant::now() + duration;
        while Instant::now() < until {
            tokio::select! {
                _ = ticks.tick() => {
                    // Here, for the set polls its futures in no order.
                    let acknowledged = self.hand_over(payload::stamped(sent)).await?;
                    outstanding.push(acknowledged);
                    sent += 1;
                }
                Some(acknowledged) = outstanding.next() => {
                    acknowledged?;
                }
            }
        }
        while let Some(acknowledged) = outstanding.next().await {
            acknowledged?;
        }
        self.hand_over(payload::end(sent)).await?.await?;
        Ok(sent)
    }
}

/// Receives.
pub(crate) struct Subscriber {
    messages: Box<Ordered>,
}

impl Subscriber {
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        let (context, stream) = stream(url).await?;
        let config = OrderedConfig {
            deliver_subject: context.client().new_inbox(),
            deliver_policy: DeliverPolicy::New,
            ..OrderedConfig::default()
        };
        let messages = stream.create_consumer(config).await?.messages().await?;
        Ok(Self { messages: Box::new(messages) })
    }

    pub(crate) async fn receive(mut self, ledger: &mut Ledger) -> Result<()> {
        loop {
            let message = self.messages.next().await.ok_or("the consumer ended")??;
            ledger.look(Instant::now());
            let mut next = Some(message);
            while let Some(message) = next.take() {
                if ledger.read(&message.payload) {
                    return Ok(());
                }
                next = self.messages.next().now_or_never().flatten().transpose()?;
            }
        }
    }
}
