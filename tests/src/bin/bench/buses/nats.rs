//! The bare loop over NATS: `async-nats` alone, with one probe behind each batch, for its `flush` proves nothing.

use std::time::{Duration, Instant};

use async_nats::{Client, ConnectOptions};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use tokio::time::{MissedTickBehavior, interval};

use crate::Result;
use crate::payload::{self, Ledger};

/// Frames behind which a probe is sent.
const BATCH: u64 = 512;
const SUBJECT: &str = "backplane.h.hub.g.bench";
const PROBE: &str = "probe.bench";
/// The crate drops what a subscription does not read in time.
const CAPACITY: usize = 4 << 20;

/// Publishes.
pub(crate) struct Publisher {
    client: Client,
    probes: async_nats::Subscriber,
}

impl Publisher {
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        let client = async_nats::connect(url).await?;
        let probes = client.subscribe(PROBE).await?;
        Ok(Self { client, probes })
    }

    async fn publish(&self, payload: &[u8]) -> Result<()> {
        Ok(self.client.publish(SUBJECT, Bytes::copy_from_slice(payload)).await?)
    }

    /// Until the server has handled everything before.
    async fn probe(&mut self) -> Result<()> {
        self.client.publish(PROBE, Bytes::new()).await?;
        self.probes.next().await.ok_or("the connection ended")?;
        Ok(())
    }

    pub(crate) async fn flat_out(mut self, duration: Duration) -> Result<u64> {
        let mut sent = 0;
        let until = Instant::now() + duration;
        while Instant::now() < until {
            for number in sent..sent + BATCH {
                self.publish(&payload::numbered(number)).await?;
            }
            sent += BATCH;
            self.probe().await?;
        }
        self.publish(&payload::end(sent)).await?;
        self.probe().await?;
        Ok(sent)
    }

    pub(crate) async fn paced(mut self, duration: Duration, pace: u32) -> Result<u64> {
        let mut sent = 0;
        let mut ticks = interval(Duration::from_secs(1) / pace);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let until = Instant::now() + duration;
        while Instant::now() < until {
            ticks.tick().await;
            self.publish(&payload::stamped(sent)).await?;
            sent += 1;
        }
        self.publish(&payload::end(sent)).await?;
        self.probe().await?;
        Ok(sent)
    }
}

/// Receives.
pub(crate) struct Subscriber {
    _client: Client,
    messages: async_nats::Subscriber,
}

impl Subscriber {
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        let client = ConnectOptions::new().subscription_capacity(CAPACITY).connect(url).await?;
        let messages = client.subscribe(SUBJECT).await?;
        let inbox = client.new_inbox();
        let mut probes = client.subscribe(inbox.clone()).await?;
        client.publish(inbox, Bytes::new()).await?;
        probes.next().await.ok_or("the connection ended")?;
        Ok(Self { _client: client, messages })
    }

    pub(crate) async fn receive(mut self, ledger: &mut Ledger) -> Result<()> {
        loop {
            let message = self.messages.next().await.ok_or("the subscription ended")?;
            ledger.look(Instant::now());
            let mut next = Some(message);
            while let Some(message) = next.take() {
                if ledger.read(&message.payload) {
                    return Ok(());
                }
                next = self.messages.next().now_or_never().flatten();
            }
        }
    }
}
