//! What a link declares at the broker: the shared exchange, and two queues of its own that go with its connection.
//!
//! The node's queue is bounded in bytes and in time; what it drops, oldest first, is dead-lettered through the same
//! exchange into a second queue that holds one message. A message there means that frames were lost (B11). Nothing else
//! in AMQP 0-9-1 tells a consumer of drops; the counters of the management plugin are seconds old and need its API.

use std::hash::{BuildHasher as _, Hasher as _};

use backplane_core::{Attach, Error, ErrorKind, Result};
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Consumer, ExchangeKind};

use super::config::RabbitConfig;
use super::refusal::refusal;

/// The names of a link's queues, made here: a name made by the broker could not be told before it is needed, and a name
/// that is used again may still belong to a connection that the broker has not missed yet.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// The node's queue.
    pub(super) queue: ShortString,
    /// The queue that tells of losses.
    pub(super) losses: ShortString,
}

impl Names {
    pub(super) fn new(attach: &Attach<'_>) -> Self {
        // A new `RandomState` is keyed differently each time.
        let random = std::hash::RandomState::new().build_hasher().finish();
        let queue = format!("backplane.{}.{}.{random:016x}", attach.node, attach.attempt);
        // The colon keeps it apart from topics, for it is a routing key too.
        Self { losses: format!("{queue}:losses").into(), queue: queue.into() }
    }
}

/// Makes the exchange, or looks whether it is there.
pub(super) async fn declare_exchange(channel: &Channel, config: &RabbitConfig) -> Result<()> {
    let options = ExchangeDeclareOptions {
        durable: true,
        passive: !config.create,
        ..ExchangeDeclareOptions::default()
    };
    let exchange = ShortString::from(config.exchange.as_str());
    let declared =
        channel.exchange_declare(exchange, ExchangeKind::Direct, options, FieldTable::default()).await;
    declared.map_err(|error| {
        let subject = format!("exchange `{}`", config.exchange);
        let error = refusal("connect", &subject, error);
        if !config.create && error.kind() == ErrorKind::Unavailable && error.to_string().contains("NOT_FOUND")
        {
            return Error::new(ErrorKind::InvalidConfig, "connect")
                .with_context(format!("{subject} is not there, and `create=false`"))
                .with_source(error);
        }
        error
    })
}

/// Makes both queues.
pub(super) async fn declare(channel: &Channel, config: &RabbitConfig, names: &Names) -> Result<()> {
    let exchange = ShortString::from(config.exchange.as_str());
    // It goes with its consumer, or else with its connection.
    let options =
        QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };

    let mut losses = arguments();
    losses.insert("x-max-length".into(), AMQPValue::LongLongInt(1));
    losses.insert("x-overflow".into(), text("drop-head"));
    let mut queue = arguments();
    queue.insert("x-max-length-bytes".into(), number(config.max_queue_bytes));
    queue.insert("x-overflow".into(), text("drop-head"));
    let ttl = u64::try_from(config.message_ttl.as_millis()).unwrap_or(u64::MAX);
    queue.insert("x-message-ttl".into(), number(ttl));
    queue.insert("x-dead-letter-exchange".into(), text(&config.exchange));
    queue.insert("x-dead-letter-routing-key".into(), text(names.losses.as_str()));

    let failed = |error| refusal("connect", "the node's own queue", error);
    channel.queue_declare(names.losses.clone(), options, losses).await.map_err(failed)?;
    let bind = QueueBindOptions::default();
    channel
        .queue_bind(names.losses.clone(), exchange, names.losses.clone(), bind, FieldTable::default())
        .await
        .map_err(failed)?;
    channel.queue_declare(names.queue.clone(), options, queue).await.map_err(failed)?;
    Ok(())
}

/// Whether there is a message in a queue; it is taken.
pub(super) async fn holds(channel: &Channel, queue: &ShortString) -> Result<bool> {
    let got = channel.basic_get(queue.clone(), BasicGetOptions { no_ack: true }).await;
    Ok(got.map_err(|error| refusal("connect", "read from the node's own queue", error))?.is_some())
}

/// Reads from a queue, on a channel of its own: acknowledging several frames would include whatever else was read there.
pub(super) async fn consume(channel: &Channel, prefetch: u16, queue: &ShortString) -> Result<Consumer> {
    let failed = |error| refusal("connect", "read from the node's own queue", error);
    qos(channel, prefetch).await.map_err(failed)?;
    let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
    let consumer = channel.basic_consume(queue.clone(), queue.clone(), options, FieldTable::default());
    consumer.await.map_err(failed)
}

/// Sets the prefetch of consumers to come. Also the cheapest question to a channel that has an answer.
pub(super) async fn qos(channel: &Channel, prefetch: u16) -> lapin::Result<()> {
    channel.basic_qos(prefetch, BasicQosOptions::default()).await
}

/// The type is named, for some hosts make another one the default, and none of those can be exclusive.
fn arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("classic"));
    arguments
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn number(number: u64) -> AMQPValue {
    AMQPValue::LongLongInt(i64::try_from(number).unwrap_or(i64::MAX))
}
