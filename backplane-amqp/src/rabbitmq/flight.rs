//! Frames on their way to the broker, and the batches that they belong to.

use std::collections::VecDeque;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use backplane_core::{Error, ErrorKind, Reach, Result};
use bytes::Bytes;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::shared::Outcomes;

/// A frame on its way.
pub(super) struct Flight {
    pub(super) confirmed: Confirmed,
    pub(super) bytes: usize,
    /// The number of its batch, and its place in it.
    pub(super) batch: u64,
    pub(super) place: usize,
    pub(super) launched: Instant,
}

pub(super) type Confirmed = Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send>>;

/// A flight that is over.
pub(super) type Landed = (Flight, lapin::Result<Confirmation>);

/// A batch of which frames were launched.
pub(super) struct InFlight {
    /// One for each frame that was or will be launched; `None` until it is known.
    pub(super) outcomes: Vec<Option<Result<Reach>>>,
    /// How many are not known.
    pub(super) missing: usize,
    /// The other frames, which the broker never saw, and why.
    pub(super) kept_back: Option<(usize, Error)>,
    /// `None` once it was answered. If it was overdue, confirms are still to come.
    pub(super) done: Option<oneshot::Sender<Outcomes>>,
    pub(super) deadline: Instant,
}

impl InFlight {
    /// That many frames less are missing. It is answered when none is, which is told.
    pub(super) fn miss_fewer(&mut self, fewer: usize) -> bool {
        self.missing -= fewer;
        let complete = self.missing == 0;
        if complete {
            self.answer(&Error::new(ErrorKind::Unavailable, "publish"));
        }
        complete
    }

    /// Answers it. What is not known has failed with `unknown`.
    pub(super) fn answer(&mut self, unknown: &Error) {
        let Some(done) = self.done.take() else { return };
        let unknown = || Err(unknown.clone().with_outcome_unknown());
        let mut outcomes: Outcomes =
            self.outcomes.iter_mut().map(|outcome| outcome.take().unwrap_or_else(unknown)).collect();
        if let Some((rest, error)) = &self.kept_back {
            outcomes.extend(std::iter::repeat_n(Err(error.clone()), *rest));
        }
        let _ = done.send(outcomes);
    }
}

/// Launches a frame: lapin has it when this returns.
pub(super) fn fly(
    channel: Arc<Channel>,
    exchange: ShortString,
    key: ShortString,
    properties: BasicProperties,
    frame: Bytes,
) -> Confirmed {
    let mut confirmed = Box::pin(async move {
        let options = BasicPublishOptions::default();
        let written = channel.basic_publish(exchange, key, options, &frame, properties).await?;
        drop(frame);
        written.await
    });
    match confirmed.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(landed) => Box::pin(ready(landed)),
        Poll::Pending => confirmed,
    }
}

/// Takes the oldest frames that have landed; pending while the oldest one has not.
pub(super) fn land(flights: &mut VecDeque<Flight>, cx: &mut Context<'_>) -> Poll<Vec<Landed>> {
    let mut landed = Vec::new();
    while let Some(flight) = flights.front_mut()
        && let Poll::Ready(confirmation) = flight.confirmed.as_mut().poll(cx)
    {
        landed.extend(flights.pop_front().map(|flight| (flight, confirmation)));
    }
    if landed.is_empty() { Poll::Pending } else { Poll::Ready(landed) }
}

/// Takes those that have landed, wherever they are.
pub(super) fn land_any(flights: &mut Vec<Flight>) -> Vec<Landed> {
    let mut landed = Vec::new();
    for mut flight in std::mem::take(flights) {
        match flight.confirmed.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(confirmation) => landed.push((flight, confirmation)),
            Poll::Pending => flights.push(flight),
        }
    }
    landed
}
