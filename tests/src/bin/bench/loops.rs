//! The bare loop of whatever a URL names: its client crate alone, doing as little as the job allows.

use std::time::Duration;

use crate::buses::{self, amqp_1_0, jetstream, nats, rabbitmq};
use crate::payload::Ledger;
use crate::{Result, sql};

/// Publishes.
pub(crate) enum Publisher {
    RabbitMq(rabbitmq::Publisher),
    Amqp10(Box<amqp_1_0::Publisher>),
    Nats(nats::Publisher),
    JetStream(jetstream::Publisher),
    Sql(sql::bare::Publisher),
}

impl Publisher {
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        Ok(match url.split_once(':') {
            Some(("amqp", _)) => Self::RabbitMq(rabbitmq::Publisher::connect(url).await?),
            Some(("nats", rest)) if rest.ends_with(buses::DURABLE) => {
                Self::JetStream(jetstream::Publisher::connect(url).await?)
            }
            Some(("servicebus", _)) => Self::Amqp10(Box::new(amqp_1_0::Publisher::connect(url).await?)),
            Some(("nats", _)) => Self::Nats(nats::Publisher::connect(url).await?),
            _ => Self::Sql(sql::bare::Publisher::connect(url).await?),
        })
    }

    /// Publishes as fast as acceptances allow, and the end. How many.
    pub(crate) async fn flat_out(self, duration: Duration) -> Result<u64> {
        match self {
            Self::RabbitMq(publisher) => publisher.flat_out(duration).await,
            Self::Amqp10(publisher) => publisher.flat_out(duration).await,
            Self::Nats(publisher) => publisher.flat_out(duration).await,
            Self::JetStream(publisher) => publisher.flat_out(duration).await,
            Self::Sql(publisher) => publisher.flat_out(duration).await,
        }
    }

    /// Publishes so many per second, whether or not earlier ones are accepted, and the end. How many.
    pub(crate) async fn paced(self, duration: Duration, pace: u32) -> Result<u64> {
        match self {
            Self::RabbitMq(publisher) => publisher.paced(duration, pace).await,
            Self::Amqp10(publisher) => publisher.paced(duration, pace).await,
            Self::Nats(publisher) => publisher.paced(duration, pace).await,
            Self::JetStream(publisher) => publisher.paced(duration, pace).await,
            Self::Sql(publisher) => publisher.paced(duration, pace).await,
        }
    }
}

/// Receives.
pub(crate) enum Subscriber {
    RabbitMq(rabbitmq::Subscriber),
    Amqp10(Box<amqp_1_0::Subscriber>),
    Nats(nats::Subscriber),
    JetStream(jetstream::Subscriber),
    Sql(sql::bare::Subscriber),
}

impl Subscriber {
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        Ok(match url.split_once(':') {
            Some(("amqp", _)) => Self::RabbitMq(rabbitmq::Subscriber::connect(url).await?),
            Some(("nats", rest)) if rest.ends_with(buses::DURABLE) => {
                Self::JetStream(jetstream::Subscriber::connect(url).await?)
            }
            Some(("servicebus", _)) => Self::Amqp10(Box::new(amqp_1_0::Subscriber::connect(url).await?)),
            Some(("nats", _)) => Self::Nats(nats::Subscriber::connect(url).await?),
            _ => Self::Sql(sql::bare::Subscriber::connect(url).await?),
        })
    }

    /// Receives up to the end.
    pub(crate) async fn receive(self, ledger: &mut Ledger) -> Result<()> {
        match self {
            Self::RabbitMq(subscriber) => subscriber.receive(ledger).await,
            Self::Amqp10(subscriber) => subscriber.receive(ledger).await,
            Self::Nats(subscriber) => subscriber.receive(ledger).await,
            Self::JetStream(subscriber) => subscriber.receive(ledger).await,
            Self::Sql(subscriber) => subscriber.receive(ledger).await,
        }
    }
}
