//! The bare loop over RabbitMQ: `lapin` alone, with confirms; prefetch and acknowledgements as ours has them.

use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::try_join_all;
use futures::stream::{FuturesUnordered, StreamExt as _};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer, ExchangeKind};
use tokio::time::{MissedTickBehavior, interval};

use crate::Result;
use crate::payload::{self, LEN, Ledger};

/// Frames on their way at a time.
const WINDOW: u64 = 512;
const EXCHANGE: &str = "bare";
const KEY: &str = "backplane.h.hub.g.bench";
const PREFETCH: u16 = 1_000;
const ACK_EVERY: usize = 250;

async fn channel(url: &str) -> Result<(Connection, Channel)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let options = ExchangeDeclareOptions { auto_delete: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(EXCHANGE.into(), ExchangeKind::Direct, options, FieldTable::default()).await?;
    Ok((connection, channel))
}

/// Publishes with confirms.
pub(crate) struct Publisher {
    _connection: Connection,
    channel: Channel,
}

impl Publisher {
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        let (connection, channel) = channel(url).await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { _connection: connection, channel })
    }

    /// Until the broker has confirmed it.
    async fn publish(&self, payload: [u8; LEN]) -> Result<()> {
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let sent = self.channel.basic_publish(EXCHANGE.into(), KEY.into(), options, &payload, properties);
        sent.await?.await?;
        Ok(())
    }

    pub(crate) async fn flat_out(self, duration: Duration) -> Result<u64> {
        let mut sent = 0;
        let until = Instant::now() + duration;
        while Instant::now() < until {
            try_join_all((sent..sent + WINDOW).map(|number| self.publish(payload::numbered(number)))).await?;
            sent += WINDOW;
        }
        self.publish(payload::end(sent)).await?;
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
                    outstanding.push(self.publish(payload::stamped(sent)));
                    sent += 1;
                }
                Some(confirmed) = outstanding.next() => confirmed?,
            }
        }
        while let Some(confirmed) = outstanding.next().await {
            confirmed?;
        }
        self.publish(payload::end(sent)).await?;
        Ok(sent)
    }
}

/// Consumes a queue of its own.
pub(crate) struct Subscriber {
    _connection: Connection,
    consumer: Consumer,
}

impl Subscriber {
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        let (connection, channel) = channel(url).await?;
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare("".into(), options, FieldTable::default()).await?;
        let (name, none) = (queue.name().clone(), FieldTable::default());
        let bind = QueueBindOptions::default();
        channel.queue_bind(name.clone(), EXCHANGE.into(), KEY.into(), bind, none.clone()).await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let consumer = channel.basic_consume(name, "".into(), BasicConsumeOptions::default(), none).await?;
        Ok(Self { _connection: connection, consumer })
    }

    pub(crate) async fn receive(mut self, ledger: &mut Ledger) -> Result<()> {
        let mut unacknowledged = 0;
        loop {
            let delivery = self.consumer.next().await.ok_or("the consumer ended")??;
            ledger.look(Instant::now());
            let mut next = Some(delivery);
            while let Some(delivery) = next.take() {
                if ledger.read(&delivery.data) {
                    return Ok(());
                }
                unacknowledged += 1;
                next = self.consumer.next().now_or_never().flatten().transpose()?;
                if unacknowledged >= ACK_EVERY || next.is_none() {
                    delivery.acker.ack(BasicAckOptions { multiple: true }).await?;
                    unacknowledged = 0;
                }
            }
        }
    }
}
