//! Frames on their way to the broker, and the batches that they belong to.

use std::collections::VecDeque;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Context, Poll, Waker};

use backplane_core::{Error, ErrorKind, Reach, Result};
use bytes::Bytes;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::shared::Outcomes;

/// A frame on its way.
pub(super) struct Flight {
    pub(super) confirmed: Confirmed,
    /// What it takes of the bytes that may be unanswered.
    pub(super) bytes: usize,
    /// The number of its batch, and its place in it.
    pub(super) batch: u64,
    pub(super) place: usize,
    pub(super) launched: Instant,
}

/// Ready when the broker has confirmed a frame.
pub(super) enum Confirmed {
    /// lapin holds the frame.
    Writing(Pin<Box<dyn Future<Output = lapin::Result<PublisherConfirm>> + Send>>),
    /// lapin has written it and holds nothing of it any more.
    Written(PublisherConfirm),
}

impl Confirmed {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<lapin::Result<Confirmation>> {
        loop {
            match self {
                Self::Writing(writing) => *self = Self::Written(task::ready!(writing.as_mut().poll(cx))?),
                Self::Written(confirmed) => return Pin::new(confirmed).poll(cx),
            }
        }
    }
}

/// A flight that is over.
pub(super) type Landed = (Flight, lapin::Result<Confirmation>);

/// A batch of which frames were launched.
pub(super) struct InFlight {
    /// How many of its frames were or will be launched.
    pub(super) launches: usize,
    /// One for each of those, `None` until it is known. Empty once the batch was answered.
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
    pub(super) fn new(frames: usize, done: oneshot::Sender<Outcomes>, deadline: Instant) -> Self {
        let mut outcomes = Vec::new();
        outcomes.resize_with(frames, || None);
        Self { launches: frames, outcomes, missing: frames, kept_back: None, done: Some(done), deadline }
    }

    /// The last `frames` of it are not launched, because of `error`. It is answered when nothing else is missing, which is
    /// told.
    pub(super) fn keep_back(&mut self, frames: usize, error: &Error) -> bool {
        self.launches -= frames;
        self.outcomes.truncate(self.launches);
        self.kept_back = Some((frames, error.clone()));
        self.miss_fewer(frames)
    }

    /// The frame at `place` got its outcome. The batch is over when none is missing, which is told.
    pub(super) fn landed(&mut self, place: usize, outcome: Result<Reach>) -> bool {
        // One that comes late is for nobody.
        if let Some(slot) = self.outcomes.get_mut(place) {
            *slot = Some(outcome);
        }
        self.miss_fewer(1)
    }

    /// That many frames less are missing. It is answered when none is, which is told.
    fn miss_fewer(&mut self, fewer: usize) -> bool {
        self.missing -= fewer;
        let complete = self.missing == 0;
        if complete {
            self.answer(&Error::new(ErrorKind::Unavailable, "publish"));
        }
        complete
    }

    /// Answers it, once. What is not known has failed with `unknown`; its outcomes are not kept.
    pub(super) fn answer(&mut self, unknown: &Error) {
        let Some(done) = self.done.take() else { return };
        let unknown = || Err(unknown.clone().with_outcome_unknown());
        let mut outcomes: Outcomes = std::mem::take(&mut self.outcomes)
            .into_iter()
            .map(|outcome| outcome.unwrap_or_else(unknown))
            .collect();
        if let Some((rest, error)) = self.kept_back.take() {
            outcomes.extend(std::iter::repeat_n(Err(error), rest));
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
    let mut writing = Box::pin(async move {
        let options = BasicPublishOptions::default();
        channel.basic_publish(exchange, key, options, &frame, properties).await
    });
    match writing.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(written)) => Confirmed::Written(written),
        Poll::Ready(Err(error)) => Confirmed::Writing(Box::pin(ready(Err(error)))),
        Poll::Pending => Confirmed::Writing(writing),
    }
}

/// Takes the oldest frames that have landed; pending while the oldest one has not.
pub(super) fn land(flights: &mut VecDeque<Flight>, cx: &mut Context<'_>) -> Poll<Vec<Landed>> {
    let mut landed = Vec::new();
    while let Some(flight) = flights.front_mut()
        && let Poll::Ready(confirmation) = flight.confirmed.poll(cx)
    {
        landed.extend(flights.pop_front().map(|flight| (flight, confirmation)));
    }
    if landed.is_empty() { Poll::Pending } else { Poll::Ready(landed) }
}

/// Takes those that have landed, wherever they are.
pub(super) fn land_any(flights: &mut Vec<Flight>) -> Vec<Landed> {
    let mut landed = Vec::new();
    for mut flight in std::mem::take(flights) {
        match flight.confirmed.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(confirmation) => landed.push((flight, confirmation)),
            Poll::Pending => flights.push(flight),
        }
    }
    landed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unavailable() -> Error {
        Error::new(ErrorKind::Unavailable, "publish")
    }

    #[test]
    fn a_batch_that_was_answered_keeps_no_outcomes_and_later_ones_are_for_nobody() {
        // Given a batch of which one frame was not launched, and one has landed.
        let (done, mut answer) = oneshot::channel();
        let mut batch = InFlight::new(1_000, done, Instant::now());
        assert!(!batch.keep_back(1, &unavailable()));
        assert!(!batch.landed(0, Ok(Reach::Unknown)));
        // When it is overdue.
        batch.answer(&Error::new(ErrorKind::Timeout, "publish"));
        let outcomes = answer.try_recv().unwrap();
        let kinds: Vec<_> = outcomes.iter().map(|outcome| outcome.as_ref().err().map(Error::kind)).collect();
        assert_eq!(kinds.len(), 1_000);
        assert_eq!(
            (kinds[0], kinds[998], kinds[999]),
            (None, Some(ErrorKind::Timeout), Some(ErrorKind::Unavailable))
        );
        // Then nothing is held for it, and what comes late ends it with the last one.
        assert_eq!((batch.outcomes.capacity(), batch.launches), (0, 999));
        batch.answer(&unavailable());
        for place in 1..998 {
            assert!(!batch.landed(place, Ok(Reach::Unknown)));
        }
        assert!(batch.landed(998, Ok(Reach::Unknown)));
    }
}
