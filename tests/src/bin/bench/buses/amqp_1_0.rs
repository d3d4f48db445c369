//! The bare loop over AMQP 1.0: `fe2o3-amqp` alone, each message settled by the broker, and receive-and-delete.

use std::time::{Duration, Instant};

use backplane_amqp::{Credentials, Entities, ServiceBusConfig};
use fe2o3_amqp::connection::ConnectionHandle;
use fe2o3_amqp::link::SendError;
use fe2o3_amqp::link::delivery::DeliveryFut;
use fe2o3_amqp::link::receiver::CreditMode;
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::definitions::SenderSettleMode;
use fe2o3_amqp::types::messaging::{Data, Message, Outcome};
use fe2o3_amqp::{Connection, Receiver, Sender, Session};
use futures::future::try_join_all;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval};

use crate::Result;
use crate::payload::{self, LEN, Ledger};

/// Messages on their way at a time.
const WINDOW: u64 = 512;
const PREFETCH: u32 = 1_000;

/// A connection with a session, and the addresses that the bus would use.
struct Opened {
    _connection: ConnectionHandle<()>,
    session: SessionHandle<()>,
    publish_to: String,
    receive_from: String,
}

async fn open(url: &str) -> Result<Opened> {
    let config = ServiceBusConfig::from_url(url)?;
    let (Credentials::Plain { user, password }, Entities::Addresses { publish_to, receive_from }) =
        (config.credentials, config.entities)
    else {
        return Err("the bare loop knows a broker without entities alone".into());
    };
    let stream = TcpStream::connect((config.host.as_str(), config.port.unwrap_or(5672))).await?;
    stream.set_nodelay(true)?;
    let mut connection = Connection::builder()
        .container_id("bare")
        .hostname(config.host.as_str())
        .scheme("amqp")
        .sasl_profile(SaslProfile::Plain { username: user, password })
        .open_with_stream(stream)
        .await?;
    let session = Session::begin(&mut connection).await?;
    Ok(Opened { _connection: connection, session, publish_to, receive_from })
}

type Settled = DeliveryFut<std::result::Result<Outcome, SendError>>;

async fn accepted(settled: Settled) -> Result<()> {
    match settled.await? {
        Outcome::Accepted(_) => Ok(()),
        other => Err(format!("not accepted: {other:?}").into()),
    }
}

/// Publishes, and waits until the broker accepted.
pub(crate) struct Publisher {
    _opened: Opened,
    sender: Sender,
}

impl Publisher {
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        let mut opened = open(url).await?;
        let address = opened.publish_to.clone();
        let sender = Sender::attach(&mut opened.session, "publisher", address).await?;
        Ok(Self { _opened: opened, sender })
    }

    /// On its way when it returns.
    async fn send(&mut self, payload: [u8; LEN]) -> Result<Settled> {
        Ok(self.sender.send_batchable(Message::from(Data::from(payload.to_vec()))).await?)
    }

    pub(crate) async fn flat_out(mut self, duration: Duration) -> Result<u64> {
        let mut sent = 0;
        let until = Instant::now() + duration;
        while Instant::now() < until {
            let mut window = Vec::new();
            for number in sent..sent + WINDOW {
                window.push(accepted(self.send(payload::numbered(number)).await?));
            }
            try_join_all(window).await?;
            sent += WINDOW;
        }
        accepted(self.send(payload::end(sent)).await?).await?;
        Ok(sent)
    }

    pub(crate) async fn paced(mut self, duration: Duration, pace: u32) -> Result<u64> {
        let mut outstanding = FuturesUnordered::new();
        let mut sent = 0;
        let mut ticks = interval(Duration::from_secs(1) / pace);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let until = Instant::now() + duration;
        while Instant::now() < until {
            tokio::select! {
                _ = ticks.tick() => {
                    outstanding.push(accepted(self.send(payload::stamped(sent)).await?));
                    sent += 1;
                }
                Some(settled) = outstanding.next() => settled?,
            }
        }
        while let Some(settled) = outstanding.next().await {
            settled?;
        }
        accepted(self.send(payload::end(sent)).await?).await?;
        Ok(sent)
    }
}

/// Receives from a queue of its own.
pub(crate) struct Subscriber {
    _opened: Opened,
    receiver: Receiver,
}

impl Subscriber {
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        let mut opened = open(url).await?;
        let receiver = Receiver::builder()
            .name("subscriber")
            .source(opened.receive_from.clone())
            .sender_settle_mode(SenderSettleMode::Settled)
            .auto_accept(true)
            .credit_mode(CreditMode::Auto(PREFETCH))
            .attach(&mut opened.session)
            .await?;
        Ok(Self { _opened: opened, receiver })
    }

    pub(crate) async fn receive(mut self, ledger: &mut Ledger) -> Result<()> {
        loop {
            let delivery = self.receiver.recv::<Data>().await?;
            ledger.look(Instant::now());
            if ledger.read(&delivery.into_body().0) {
                return Ok(());
            }
        }
    }
}
