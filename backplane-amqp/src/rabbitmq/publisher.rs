//! The publishing connection: many frames on their way at once, their confirms collected in order.
//!
//! `basic_publish` of lapin completes when its thread has written the frame, so awaiting each would cost two changes of
//! thread. Its first poll queues the frame; so each frame is polled once when it is launched, and again when it is the
//! oldest one. A confirm that nobody awaits is kept by lapin for ever, so every one is awaited here.

use std::collections::VecDeque;
use std::future::{Future, poll_fn, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use backplane_core::{Error, ErrorKind, Outgoing, Reach, Result};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, Event};
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::refusal::refusal;
use super::routing::Routing;
use super::shared::{Batch, Outcomes, Phase, Shared};

/// Most frames, and most bytes unless it is one, that lapin holds unconfirmed. It searches all of them for each confirm
/// of several.
const WINDOW: usize = 1_024;
const WINDOW_BYTES: usize = 8 << 20;

/// A frame on its way.
type Flight = Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send>>;

/// A batch of which frames were launched.
struct InFlight {
    /// Frames that were or will be launched.
    launched: usize,
    /// The other ones, which the broker never saw, and why.
    kept_back: Option<(usize, Error)>,
    bytes: usize,
    outcomes: Outcomes,
    /// `None` once it is overdue: the confirms are still to come.
    done: Option<oneshot::Sender<Outcomes>>,
    deadline: Instant,
}

/// See the module.
pub(super) struct Publisher {
    channel: Arc<Channel>,
    exchange: ShortString,
    routing: Arc<Routing>,
    shared: Arc<Shared>,
    events: BoxStream<'static, Event>,
    /// Batches of which nothing was launched yet.
    queue: VecDeque<Batch>,
    /// The rest of the batch that is being launched; it is the last one in `batches`.
    launching: std::vec::IntoIter<Outgoing>,
    batches: VecDeque<InFlight>,
    flights: VecDeque<(Flight, usize)>,
    aloft_bytes: usize,
}

impl Publisher {
    pub(super) fn new(
        channel: Channel,
        events: BoxStream<'static, Event>,
        exchange: ShortString,
        routing: Arc<Routing>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            channel: Arc::new(channel),
            exchange,
            routing,
            shared,
            events,
            queue: VecDeque::new(),
            launching: Vec::new().into_iter(),
            batches: VecDeque::new(),
            flights: VecDeque::new(),
            aloft_bytes: 0,
        }
    }

    /// Publishes until the link is closed and every frame has its outcome, or is abandoned.
    pub(super) async fn run(&mut self) -> Result<()> {
        let period = (self.shared.timeout / 20).clamp(Duration::from_millis(5), Duration::from_millis(500));
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (batches, phase) = self.shared.take_batches();
            self.queue.extend(batches);
            if phase == Phase::Abandoned {
                return Ok(());
            }
            self.launch();
            if phase == Phase::Closing && self.all_answered() {
                return Ok(());
            }
            let shared = self.shared.clone();
            let (flights, batches) = (&mut self.flights, &mut self.batches);
            tokio::select! {
                landed = poll_fn(|cx| land(flights, cx)), if !batches.is_empty() => self.landed(landed)?,
                () = shared.work.notified() => {}
                event = self.events.next() => self.on(event)?,
                now = ticks.tick() => self.expire(now),
            }
        }
    }

    /// Whether nobody waits for an outcome. Confirms of what was overdue may still be missing, and while the broker blocks
    /// the connection they do not come.
    fn all_answered(&self) -> bool {
        self.queue.is_empty() && self.batches.iter().all(|batch| batch.done.is_none())
    }

    /// Hands frames to lapin as far as the window allows.
    fn launch(&mut self) {
        if let Some(error) = self.shared.blocked("publish") {
            return self.keep_back(&error);
        }
        while self.flights.len() < WINDOW && (self.aloft_bytes < WINDOW_BYTES || self.flights.is_empty()) {
            let Some(Outgoing { topic, frame }) = self.launching.next() else {
                let Some(batch) = self.queue.pop_front() else { return };
                self.begin(batch);
                continue;
            };
            let (key, name) = self.routing.key(&topic);
            let properties = match name {
                Some(name) => BasicProperties::default().with_type(name),
                None => BasicProperties::default(),
            };
            let bytes = frame.len();
            self.aloft_bytes += bytes;
            let flight = fly(self.channel.clone(), self.exchange.clone(), key, properties, frame);
            self.flights.push_back((flight, bytes));
        }
    }

    fn begin(&mut self, batch: Batch) {
        let Batch { frames, bytes, done, deadline } = batch;
        let (launched, outcomes) = (frames.len(), Vec::with_capacity(frames.len()));
        self.launching = frames.into_iter();
        let done = Some(done);
        self.batches.push_back(InFlight { launched, kept_back: None, bytes, outcomes, done, deadline });
    }

    /// Answers everything that was not launched.
    fn keep_back(&mut self, error: &Error) {
        let rest = self.launching.len();
        self.launching = Vec::new().into_iter();
        if rest > 0
            && let Some(batch) = self.batches.back_mut()
        {
            batch.launched -= rest;
            batch.kept_back = Some((rest, error.clone()));
        }
        self.finish();
        for batch in std::mem::take(&mut self.queue) {
            refuse(&self.shared, batch, error);
        }
    }

    /// Frames got their outcomes.
    fn landed(&mut self, landed: Vec<(lapin::Result<Confirmation>, usize)>) -> Result<()> {
        for (confirmation, bytes) in landed {
            self.aloft_bytes -= bytes;
            let outcome = match confirmation {
                Ok(Confirmation::Ack(_)) => Ok(Reach::Unknown),
                // A queue of several may have failed, and the others have it.
                Ok(Confirmation::Nack(_)) => Err(Error::new(ErrorKind::Unavailable, "publish")
                    .with_context("the broker could not keep it (nack)")
                    .with_outcome_unknown()),
                Ok(Confirmation::NotRequested) => {
                    return Err(Error::new(ErrorKind::Malformed, "publish")
                        .with_context("the channel stopped to confirm"));
                }
                Err(error) => {
                    let subject = format!("exchange `{}`", self.exchange);
                    return Err(refusal("publish", &subject, error));
                }
            };
            let Some(batch) = self.batches.iter_mut().find(|batch| batch.outcomes.len() < batch.launched)
            else {
                return Err(
                    Error::new(ErrorKind::Malformed, "publish").with_context("more confirms than frames")
                );
            };
            batch.outcomes.push(outcome);
        }
        self.finish();
        Ok(())
    }

    /// Answers the oldest batches that are complete.
    fn finish(&mut self) {
        while self.batches.front().is_some_and(|batch| batch.outcomes.len() == batch.launched) {
            let Some(InFlight { launched, kept_back, bytes, mut outcomes, done, .. }) =
                self.batches.pop_front()
            else {
                return;
            };
            let (rest, error) = match kept_back {
                Some((rest, error)) => (rest, Some(error)),
                None => (0, None),
            };
            self.shared.batch_answered(bytes, launched + rest);
            outcomes.extend(error.into_iter().flat_map(|error| std::iter::repeat_n(Err(error), rest)));
            if let Some(done) = done {
                let _ = done.send(outcomes);
            }
        }
    }

    fn on(&self, event: Option<Event>) -> Result<()> {
        match event {
            Some(Event::ConnectionBlocked(reason)) => {
                tracing::warn!(reason, "the broker blocked the connection that publishes");
                self.shared.set_blocked(Some(reason));
            }
            Some(Event::ConnectionUnblocked) => {
                tracing::info!("the broker takes publishes again");
                self.shared.set_blocked(None);
            }
            Some(Event::Error(error)) => {
                return Err(refusal("publish", "the connection that publishes", error));
            }
            Some(_) => {}
            None => {
                return Err(
                    Error::new(ErrorKind::Unavailable, "publish").with_context("the connection ended")
                );
            }
        }
        Ok(())
    }

    /// Answers what waited too long.
    fn expire(&mut self, now: Instant) {
        let blocked = self.shared.blocked("publish");
        let late = || {
            let late = Error::new(ErrorKind::Timeout, "publish");
            blocked.clone().unwrap_or_else(|| late.with_context("the broker did not confirm in time"))
        };
        for batch in &mut self.batches {
            if now >= batch.deadline
                && let Some(done) = batch.done.take()
            {
                let mut outcomes = std::mem::take(&mut batch.outcomes);
                let answered = outcomes.len();
                let total = batch.launched + batch.kept_back.as_ref().map_or(0, |(rest, _)| *rest);
                outcomes.resize_with(total, || Err(late().with_outcome_unknown()));
                let _ = done.send(outcomes);
                // They are only counted from now on.
                batch.outcomes = vec![Ok(Reach::Unknown); answered];
            }
        }
        while self.queue.front().is_some_and(|batch| now >= batch.deadline) {
            let Some(batch) = self.queue.pop_front() else { return };
            refuse(&self.shared, batch, &late());
        }
    }

    /// Answers everything, because the link has ended with `error`.
    pub(super) fn end(&mut self, error: &Error) {
        self.keep_back(error);
        for batch in std::mem::take(&mut self.batches) {
            let InFlight { launched, kept_back, bytes, mut outcomes, done, .. } = batch;
            outcomes.resize_with(launched, || Err(error.clone().with_outcome_unknown()));
            let rest = kept_back.map_or(0, |(rest, _)| rest);
            outcomes.resize_with(launched + rest, || Err(error.clone()));
            self.shared.batch_answered(bytes, launched + rest);
            if let Some(done) = done {
                let _ = done.send(outcomes);
            }
        }
        self.flights.clear();
    }
}

/// Answers a batch of which nothing was launched.
pub(super) fn refuse(shared: &Shared, batch: Batch, error: &Error) {
    shared.batch_answered(batch.bytes, batch.frames.len());
    let _ = batch.done.send(vec![Err(error.clone()); batch.frames.len()]);
}

/// Launches a frame: lapin has it when this returns.
fn fly(
    channel: Arc<Channel>,
    exchange: ShortString,
    key: ShortString,
    properties: BasicProperties,
    frame: Bytes,
) -> Flight {
    let mut flight = Box::pin(async move {
        let options = BasicPublishOptions::default();
        channel.basic_publish(exchange, key, options, &frame, properties).await?.await
    });
    match flight.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(landed) => Box::pin(ready(landed)),
        Poll::Pending => flight,
    }
}

/// Takes the oldest frames that have landed; pending while the oldest one has not.
fn land(
    flights: &mut VecDeque<(Flight, usize)>,
    cx: &mut Context<'_>,
) -> Poll<Vec<(lapin::Result<Confirmation>, usize)>> {
    let mut landed = Vec::new();
    while let Some((flight, bytes)) = flights.front_mut()
        && let Poll::Ready(confirmation) = flight.as_mut().poll(cx)
    {
        landed.push((confirmation, *bytes));
        flights.pop_front();
    }
    if landed.is_empty() { Poll::Pending } else { Poll::Ready(landed) }
}
