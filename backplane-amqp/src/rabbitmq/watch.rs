//! Whether both connections live: a broker that is not heard is asked, and one that does not answer is dead (B6).

use std::sync::Arc;
use std::time::Duration;

use backplane_core::{Error, ErrorKind, Result};
use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::BoxStream;
use lapin::options::ConfirmSelectOptions;
use lapin::{Channel, Event};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::connection::Line;
use super::queues::qos;
use super::refusal::refusal;
use super::shared::Shared;

/// How much of the bound is left to tell the news.
const SLACK: f64 = 0.05;
/// How long a live broker is silent at most while nobody asks it anything: several of the shortest heartbeats that can be
/// negotiated, of which it sends one each half second.
const HEARTBEATS: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct Watch {
    bound: Duration,
    publishing: Watched,
    consuming: Watched,
    events: BoxStream<'static, Event>,
    shared: Arc<Shared>,
}

/// One connection.
struct Watched {
    name: &'static str,
    line: Arc<Line>,
    channel: Channel,
    /// Time that does not count as silence: we were not running, or did not ask.
    excused_until: Instant,
    question: Option<BoxFuture<'static, lapin::Result<()>>>,
}

impl Watched {
    fn new(name: &'static str, line: Arc<Line>, channel: Channel) -> Self {
        Self { name, line, channel, excused_until: Instant::now(), question: None }
    }

    fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.line.heard().max(self.excused_until))
    }

    fn dead(&self, silence: Duration) -> Error {
        Error::new(ErrorKind::Unavailable, "receive").with_context(format!(
            "the broker was not heard for {silence:?} on the connection that {}",
            self.name
        ))
    }
}

impl Watch {
    pub(super) fn new(
        bound: Duration,
        (publishing, publishing_channel): (Arc<Line>, Channel),
        (consuming, consuming_channel): (Arc<Line>, Channel),
        events: BoxStream<'static, Event>,
        shared: Arc<Shared>,
    ) -> Self {
        let publishing = Watched::new("publishes", publishing, publishing_channel);
        let consuming = Watched::new("reads", consuming, consuming_channel);
        Self { bound, publishing, consuming, events, shared }
    }

    /// Watches until a connection is dead. Never returns `Ok`.
    pub(super) async fn run(&mut self) -> Result<std::convert::Infallible> {
        let period = self.bound / 20;
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked = Instant::now();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                answer = ask(&mut self.publishing.question) => self.answered(true, answer)?,
                answer = ask(&mut self.consuming.question) => self.answered(false, answer)?,
                event = self.events.next() => ended(event)?,
            }
            let now = Instant::now();
            // We were not running: leave the broker the time that an answer takes, once.
            if now.saturating_duration_since(looked) > period * 3 {
                let fair = now.checked_sub(self.bound.mul_f64(0.6)).unwrap_or(now);
                self.publishing.excused_until = self.publishing.excused_until.max(fair);
                self.consuming.excused_until = self.consuming.excused_until.max(fair);
            }
            looked = now;
            // What is asked on a blocked connection is not even written. The broker's heartbeats go on, two each second or
            // fewer.
            let bounds = match self.shared.blocked("publish") {
                Some(_) => [self.bound.max(HEARTBEATS), self.bound],
                None => [self.bound; 2],
            };
            for (watched, bound) in [&mut self.publishing, &mut self.consuming].into_iter().zip(bounds) {
                let silence = watched.silence(now);
                if silence >= bound.mul_f64(1.0 - SLACK) {
                    return Err(watched.dead(silence));
                }
                if silence >= self.bound / 3 && watched.question.is_none() {
                    let channel = watched.channel.clone();
                    watched.question = Some(if watched.name == "publishes" {
                        async move { channel.confirm_select(ConfirmSelectOptions::default()).await }.boxed()
                    } else {
                        async move { qos(&channel, 1).await }.boxed()
                    });
                }
            }
        }
    }

    fn answered(&mut self, publishing: bool, answer: lapin::Result<()>) -> Result<()> {
        let watched = if publishing { &mut self.publishing } else { &mut self.consuming };
        watched.question = None;
        let subject = format!("the connection that {}", watched.name);
        answer.map_err(|error| refusal("receive", &subject, error))
    }
}

async fn ask(question: &mut Option<BoxFuture<'static, lapin::Result<()>>>) -> lapin::Result<()> {
    match question {
        Some(question) => question.await,
        None => std::future::pending().await,
    }
}

fn ended(event: Option<Event>) -> Result<()> {
    match event {
        Some(Event::Error(error)) => Err(refusal("receive", "the connection that reads", error)),
        Some(_) => Ok(()),
        None => {
            Err(Error::new(ErrorKind::Unavailable, "receive").with_context("the connection that reads ended"))
        }
    }
}
