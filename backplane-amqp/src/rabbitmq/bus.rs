//! The bus: opens links.

use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backplane_core::{Attach, Bus, Capabilities, Error, ErrorKind, Limits, Link, Order, Result, TopicSyntax};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Event};
use tokio::time::Instant;

use super::bindings::Bindings;
use super::config::{RabbitAddress, RabbitConfig};
use super::connection::Line;
use super::inbound::Inbound;
use super::link::{LinkTask, RabbitSender};
use super::publisher::Publisher;
use super::queues::{Names, consume, declare, declare_exchange, holds};
use super::refusal::refusal;
use super::routing::{Routing, carries};
use super::shared::Shared;
use super::watch::Watch;

/// How long a command may at least wait for its answer, if nothing else is said: a busy broker binds some thousand topics
/// each second. A dead link answers sooner.
const PATIENCE: Duration = Duration::from_secs(5);

/// RabbitMQ as a bus. Each link has two connections, one to publish and one to read, and one task; lapin adds a thread
/// for each connection.
#[derive(Debug)]
pub struct RabbitBus {
    config: RabbitConfig,
    routing: Arc<Routing>,
}

impl RabbitBus {
    /// A bus over the broker that `config` names. Connects nothing yet.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) when a field is out of its bounds.
    pub fn new(config: RabbitConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self { routing: Arc::new(Routing::new(config.buckets)), config })
    }

    /// Tries the addresses, each once, in a random order, until one gives a link.
    async fn open_any(&self, attach: Attach<'_>, deadline: Instant) -> Result<Link> {
        attach.topics.iter().try_for_each(|topic| carries("connect", topic))?;
        let mut addresses: Vec<&RabbitAddress> = self.config.addresses.iter().collect();
        let mut failures = Vec::new();
        while !addresses.is_empty() {
            let random = std::hash::RandomState::new().build_hasher().finish();
            let chosen = usize::try_from(random % addresses.len() as u64).unwrap_or_default();
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(addresses.len()).unwrap_or(u32::MAX);
            let address = addresses.swap_remove(chosen);
            // One that answers gets all the time that is left: bindings may be many. Boxed: two connections make a large
            // future.
            let opened = async {
                let reached = tokio::time::timeout(share, Box::pin(self.reach(attach, address)));
                let reached = reached.await.unwrap_or_else(|_| Err(late(address, share)))?;
                let opened = tokio::time::timeout_at(deadline, Box::pin(self.open(attach, reached)));
                opened.await.unwrap_or_else(|_| Err(not_bound(address, attach.topics.len())))
            };
            let error = match opened.await {
                Ok(link) => return Ok(link),
                Err(error) => error,
            };
            tracing::debug!(%address, %error, "no link");
            // One alone may have a wrong certificate, or be no RabbitMQ: the others are asked all the same.
            failures.push(error);
            if Instant::now() >= deadline {
                failures.extend(addresses.first().map(|address| not_asked(address, attach.deadline)));
                break;
            }
        }
        Err(Error::of_several(failures).expect("there is an address, and it failed"))
    }

    /// Opens both connections to one node of the broker, and what a link has there beside bindings.
    async fn reach<'a>(&self, attach: Attach<'_>, address: &'a RabbitAddress) -> Result<Reached<'a>> {
        let config = &self.config;
        let heartbeat = heartbeat(attach.heartbeat);
        let line = |what| {
            let name = format!("backplane-{}-{} {what}", attach.node, attach.attempt);
            Line::open(config, address, name, heartbeat)
        };
        let (publishing, consuming) = tokio::try_join!(line("publishes"), line("reads"))?;
        // Before anything can happen on them.
        let publishing_events = publishing.connection.events_listener().boxed();
        let consuming_events = consuming.connection.events_listener().boxed();
        let names = Names::new(&attach);
        let home = consuming.channel().await?;
        declare_exchange(&home, config).await?;
        let (publishes, ()) = tokio::try_join!(confirming(&publishing), declare(&home, config, &names))?;
        self.publish_to_nobody(&publishes, &names).await?;
        if !config.create && holds(&home, &names.losses).await? {
            return Err(Error::new(ErrorKind::InvalidConfig, "connect")
                .with_context(format!("exchange `{}` is not of the type direct", config.exchange)));
        }
        Ok(Reached {
            address,
            publishing: Arc::new(publishing),
            publishing_events,
            publishes,
            consuming: Arc::new(consuming),
            consuming_events,
            home,
            names,
        })
    }

    /// Binds and reads, and starts the task of the link.
    async fn open(&self, attach: Attach<'_>, reached: Reached<'_>) -> Result<Link> {
        let config = &self.config;
        let Reached {
            address,
            publishing,
            publishing_events,
            publishes,
            consuming,
            consuming_events,
            home,
            names,
        } = reached;
        let exchange = ShortString::from(config.exchange.as_str());
        let timeout = config.command_timeout.unwrap_or(attach.heartbeat.max(PATIENCE));
        let shared = Arc::new(Shared::new(timeout));
        let (binding, unbinding, told) =
            tokio::try_join!(consuming.channel(), consuming.channel(), consuming.channel())?;
        let mut bindings = Bindings::new(
            consuming.clone(),
            binding,
            unbinding,
            names.queue.clone(),
            exchange.clone(),
            self.routing.clone(),
            config.unbind_after,
            shared.clone(),
        );
        bindings.subscribe(attach.topics).await?;
        let losses = consume(&told, 1, &names.losses).await?;
        let frames = consume(&home, config.prefetch, &names.queue).await?;
        let inbound = Inbound::new(frames, losses, bindings.interest(), shared.clone(), config.prefetch);

        let publisher = Publisher::new(
            publishes.clone(),
            publishing_events,
            exchange,
            self.routing.clone(),
            shared.clone(),
        );
        let watch = Watch::new(
            attach.heartbeat,
            (publishing.clone(), publishes),
            (consuming.clone(), home),
            consuming_events,
            shared.clone(),
        );
        let task = LinkTask {
            publisher,
            bindings,
            watch,
            publishing,
            consuming,
            shared: shared.clone(),
            ended: false,
        };
        // Its owner is `inbound`: dropping that stops it.
        tokio::spawn(task.run());
        tracing::debug!(%address, queue = %names.queue, topics = attach.topics.len(), "rabbitmq link connected");
        let sender = RabbitSender { shared, max_frame: config.max_frame, address: address.to_string() };
        Ok(Link {
            sender: Arc::new(sender),
            inbound: inbound.boxed(),
            resumed: false,
            limits: Limits { max_frame: config.max_frame, reports_reach: false },
        })
    }

    /// Publishes a first frame, for which there is no binding: whoever may not publish is told now. What an exchange of
    /// another type makes of it is seen in our own queues.
    async fn publish_to_nobody(&self, channel: &Channel, names: &Names) -> Result<()> {
        let subject = format!("publish to exchange `{}`", self.config.exchange);
        let failed = |error| refusal("connect", &subject, error);
        let (exchange, nobody) = (self.config.exchange.as_str().into(), names.queue.clone());
        let options = BasicPublishOptions::default();
        let sent = channel.basic_publish(exchange, nobody, options, b"", BasicProperties::default());
        sent.await.map_err(failed)?.await.map_err(failed)?;
        Ok(())
    }
}

/// A channel on which publishes are confirmed.
async fn confirming(line: &Line) -> Result<Channel> {
    let channel = line.channel().await?;
    let confirms = channel.confirm_select(ConfirmSelectOptions::default()).await;
    confirms.map_err(|error| refusal("connect", "ask for confirms", error))?;
    Ok(channel)
}

/// A node of the broker that answered.
struct Reached<'a> {
    address: &'a RabbitAddress,
    publishing: Arc<Line>,
    publishing_events: BoxStream<'static, Event>,
    /// Where frames are published.
    publishes: Channel,
    consuming: Arc<Line>,
    consuming_events: BoxStream<'static, Event>,
    /// Where the node's queue was declared, and is read.
    home: Channel,
    names: Names,
}

/// What is negotiated with the broker, in seconds: it gives a silent peer up after two of them, and frees the queue.
fn heartbeat(bound: Duration) -> u16 {
    u16::try_from(bound.as_secs() / 2).unwrap_or(u16::MAX).max(1)
}

fn late(address: &RabbitAddress, share: Duration) -> Error {
    Error::new(ErrorKind::Timeout, "connect").with_context(format!("{address} gave no link within {share:?}"))
}

fn not_asked(address: &RabbitAddress, deadline: Duration) -> Error {
    Error::new(ErrorKind::Timeout, "connect")
        .with_context(format!("{address} was not asked: others took all of {deadline:?}"))
}

fn not_bound(address: &RabbitAddress, topics: usize) -> Error {
    Error::new(ErrorKind::Timeout, "connect").with_context(format!(
        "{address} did not bind {topics} topics before the deadline; raise it, or bind hash buckets (`buckets`)"
    ))
}

#[async_trait]
impl Bus for RabbitBus {
    fn capabilities(&self) -> Capabilities {
        Capabilities { order: Order::PerPublisher, topics: TopicSyntax::Tokens, ..Capabilities::default() }
    }

    async fn connect(&self, attach: Attach<'_>) -> Result<Link> {
        let deadline = Instant::now() + attach.deadline;
        self.open_any(attach, deadline).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use backplane_core::{Backplane as _, NodeId, Router, RouterConfig, Start};
    use backplane_tls::Tls;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A node that says this to whoever speaks to it, and hangs up; with how often somebody did.
    async fn node(says: &'static [u8]) -> (RabbitAddress, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let _ = client.read(&mut [0; 16 << 10]).await;
                let _ = client.write_all(says).await;
            }
        });
        (RabbitAddress { host: "127.0.0.1".to_owned(), port }, asked)
    }

    fn attach(attempt: u64) -> Attach<'static> {
        Attach {
            node: NodeId::random(),
            attempt,
            topics: &[],
            resume: None,
            deadline: Duration::from_secs(10),
            heartbeat: Duration::from_secs(10),
        }
    }

    /// A bus that wants TLS, and trusts nobody.
    fn bus(addresses: Vec<RabbitAddress>) -> RabbitBus {
        let tls = Some(Tls::trusting_nobody().unwrap());
        RabbitBus::new(RabbitConfig { addresses, tls, ..RabbitConfig::default() }).unwrap()
    }

    /// What a node says that speaks no TLS, which only a change of configuration mends.
    const PLAIN: &[u8] = b"AMQP\0\0\x09\x01";

    #[tokio::test]
    async fn a_node_that_refuses_for_good_does_not_keep_the_others_from_being_asked() {
        // Given a node that refuses for good, and one that is about to start.
        let (plain, _) = node(PLAIN).await;
        let (starting, asked) = node(b"").await;
        let bus = bus(vec![plain, starting]);
        // The order is random: one attempt would prove nothing.
        for attempt in 1..=20 {
            let before = asked.load(Ordering::Relaxed);
            // When a link is opened, then both are asked, trying again may help, and told is what can be mended.
            let error = bus.connect(attach(attempt)).await.expect_err("nobody gives a link");
            assert!(asked.load(Ordering::Relaxed) > before, "in attempt {attempt}");
            assert!(error.is_retryable(), "{error}");
            assert!(error.to_string().contains("does not speak TLS"), "{error}");
        }
    }

    #[tokio::test]
    async fn nodes_that_all_refuse_for_good_are_not_tried_again() {
        let bus = bus(vec![node(PLAIN).await.0, node(PLAIN).await.0]);
        let error = bus.connect(attach(1)).await.expect_err("nobody gives a link");
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    }

    #[tokio::test]
    async fn a_degraded_start_waits_for_a_node_that_is_down_beside_one_that_cannot_work() {
        let bus = bus(vec![node(PLAIN).await.0, node(b"").await.0]);
        let config = RouterConfig { start: Start::Degraded, ..RouterConfig::default() };
        let node = Router::open(Arc::new(bus), config).await.expect("it is down, and tries again");
        assert!(!node.health().borrow().is_up());
        drop(node);
    }
}
