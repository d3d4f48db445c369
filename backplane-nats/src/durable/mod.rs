//! A link over JetStream: a stream keeps the frames of all nodes, each link reads it through a consumer of its own.
//!
//! The consumer is ordered in the sense of NATS: kept in memory, without acknowledgements, with flow control and idle
//! heartbeats, and numbered without holes. Unlike the crate's own ordered consumer this one never starts anew in secret:
//! whatever is wrong with it ends the link, and the next one resumes behind the last frame that was handled.

mod flights;
mod link;
mod message;
mod metadata;
mod position;
mod reader;
mod stream;

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, ReplayPolicy, push};
use async_nats::{Client, jetstream};
use backplane_core::{Error, ErrorKind, Result};

use crate::config::Durable;
use crate::ears::Ears;
use crate::errors::{denied, lost};
use crate::thread::{Opening, Parts};
use message::Names;
use reader::Reader;
use stream::Start;

pub(crate) use link::DurableLink;

/// Bytes of a message that are not the frame: the header with its identity.
pub(crate) const HEADROOM: usize = 128;

/// When the server forgets the consumer of a link that is gone.
const FORGET: Duration = Duration::from_secs(5);

/// A link that is ready.
pub(crate) struct Opened {
    pub(crate) link: DurableLink,
    pub(crate) resumed: bool,
    pub(crate) max_frame: usize,
}

/// Finds or makes the stream, judges where to start, and starts a consumer there. `name` is that of this link alone.
pub(crate) async fn open(parts: Parts, opening: &Opening, settings: &Durable, name: &str) -> Result<Opened> {
    let (ears, client) = (parts.ears.clone(), parts.client.clone());
    let setting_up = async {
        let config = &opening.config;
        let mut context = jetstream::new(parts.client.clone());
        context.set_timeout(opening.heartbeat);
        let stream = stream::find(&context, settings, &config.subject).await?;
        let Start { sequence, resumed } = stream::start(&stream, opening.resume.as_ref()).await?;
        let info = stream.cached_info();
        // Both before anything can arrive.
        let inbox = format!("{}.{name}", config.inbox);
        let deliver = format!("{inbox}.d");
        let deliveries = parts.client.subscribe(deliver.clone()).await.map_err(lost)?;
        let acks = parts.client.subscribe(format!("{inbox}.a.*")).await.map_err(lost)?;
        let consumer = push::Config {
            deliver_subject: deliver,
            name: Some(name.to_owned()),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: sequence },
            ack_policy: AckPolicy::None,
            replay_policy: ReplayPolicy::Instant,
            max_deliver: 1,
            flow_control: true,
            idle_heartbeat: idle_heartbeat(opening.heartbeat),
            inactive_threshold: FORGET,
            memory_storage: true,
            num_replicas: 1,
            ..push::Config::default()
        };
        context
            .create_consumer_on_stream(consumer, &info.config.name)
            .await
            .map_err(|error| stream::failed("the consumer cannot be made", true, error))?;
        let created = position::nanoseconds!(info.created);
        let topics = opening.topics.iter().cloned();
        let reader = Reader::new(deliveries, &config.subject, created, sequence, topics);
        let known = link::Known {
            stream: info.config.name.clone(),
            consumer: name.to_owned(),
            subject: config.subject.clone(),
            names: Names { acks: format!("{inbox}.a"), message_id: name.to_owned() },
            duplicate_window: info.config.duplicate_window,
            heartbeat: opening.heartbeat,
        };
        let max_frame = match usize::try_from(info.config.max_message_size) {
            Ok(most) if most > 0 => most.saturating_sub(HEADROOM),
            _ => usize::MAX,
        };
        Ok((DurableLink::new(parts, context, known, reader, acks), resumed, max_frame))
    };
    let (link, resumed, max_frame) = unless_refused(&ears, &client, setting_up).await?;
    Ok(Opened { link, resumed, max_frame })
}

/// How often a consumer that has nothing to say says so. The server allows no less than 100 ms.
fn idle_heartbeat(bound: Duration) -> Duration {
    (bound / 4).max(Duration::from_millis(100))
}

/// A refused request is never answered: whoever waits for it is told what the server said.
async fn unless_refused<T>(ears: &Ears, client: &Client, work: impl Future<Output = Result<T>>) -> Result<T> {
    let refused = poll_fn(|cx| {
        let heard = ears.take(cx);
        if let Some(refused) = heard.refusals.first() {
            return Poll::Ready(denied("connect", &refused.text));
        }
        if heard.is_over(client) || heard.lame_duck {
            let error = Error::new(ErrorKind::Unavailable, "connect");
            return Poll::Ready(error.with_context("the server left while the link was set up"));
        }
        Poll::Pending
    });
    tokio::select! {
        biased;
        error = refused => Err(error),
        done = work => done,
    }
}
