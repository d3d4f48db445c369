//! Frames on their way into the stream, each until the stream has acknowledged it.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use backplane_core::{Error, Outgoing, Reach, Result, Topic};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::shared::{Batch, Outcomes, Shared};

/// Batches in the order of their frames' numbers. The numbers of one link have no holes.
#[derive(Debug, Default)]
pub(super) struct Flights {
    batches: VecDeque<Flight>,
    next: u64,
    /// The highest number that was answered.
    answered: u64,
    frames: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Flight {
    first: u64,
    frames: Vec<Outgoing>,
    outcomes: Vec<Option<Result<Reach>>>,
    open: usize,
    bytes: usize,
    done: Option<oneshot::Sender<Outcomes>>,
    sent: Instant,
    sent_again: Instant,
    deadline: Instant,
}

impl Flights {
    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub(super) fn frames(&self) -> usize {
        self.frames
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes a batch that is about to be sent; the numbers of its frames.
    pub(super) fn add(&mut self, batch: Batch, now: Instant) -> Vec<(u64, Outgoing)> {
        let Batch { frames, bytes, done, deadline } = batch;
        let first = self.next + 1;
        self.next += frames.len() as u64;
        self.frames += frames.len();
        self.bytes += bytes;
        let numbered = (first..).zip(frames.iter().cloned()).collect();
        let outcomes = vec![None; frames.len()];
        let open = frames.len();
        let flight = Flight {
            first,
            frames,
            outcomes,
            open,
            bytes,
            done: Some(done),
            sent: now,
            sent_again: now,
            deadline,
        };
        self.batches.push_back(flight);
        numbered
    }

    /// The answer to one frame. One that is not awaited any more changes nothing.
    pub(super) fn answer(&mut self, number: u64, outcome: Result<Reach>, shared: &Shared) {
        self.answered = self.answered.max(number);
        let index = self.batches.partition_point(|flight| flight.first <= number);
        let Some(flight) = index.checked_sub(1).and_then(|index| self.batches.get_mut(index)) else { return };
        let place = usize::try_from(number - flight.first).unwrap_or(usize::MAX);
        let Some(slot @ None) = flight.outcomes.get_mut(place) else { return };
        *slot = Some(outcome);
        flight.open -= 1;
        if flight.open == 0 {
            flight.report();
            self.forget(shared);
        }
    }

    /// The server refused frames of these topics: those that are open.
    pub(super) fn refuse(&mut self, topics: &HashMap<Topic, Error>, shared: &Shared) {
        for flight in &mut self.batches {
            for (frame, outcome) in flight.frames.iter().zip(&mut flight.outcomes) {
                if outcome.is_none()
                    && let Some(error) = topics.get(&frame.topic)
                {
                    *outcome = Some(Err(error.clone()));
                    flight.open -= 1;
                }
            }
        }
        self.settle(shared);
    }

    /// Gives up what is overdue.
    pub(super) fn expire(&mut self, now: Instant, error: &Error, shared: &Shared) {
        for flight in &mut self.batches {
            if flight.deadline > now {
                break;
            }
            flight.give_up(error);
        }
        self.settle(shared);
    }

    /// Gives up everything.
    pub(super) fn give_up(&mut self, error: &Error, shared: &Shared) {
        for flight in &mut self.batches {
            flight.give_up(error);
        }
        self.settle(shared);
    }

    fn settle(&mut self, shared: &Shared) {
        for flight in self.batches.iter_mut().filter(|flight| flight.open == 0) {
            flight.report();
        }
        self.forget(shared);
    }

    /// Lets go of the oldest ones that are complete.
    fn forget(&mut self, shared: &Shared) {
        while self.batches.front().is_some_and(|flight| flight.open == 0) {
            let Some(flight) = self.batches.pop_front() else { break };
            self.frames -= flight.frames.len();
            self.bytes -= flight.bytes;
            shared.batch_answered(flight.bytes, flight.frames.len());
        }
    }

    /// When something is overdue.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.batches.front().map(|flight| flight.deadline)
    }

    /// Frames that were not answered for `patience` and may be sent again under their numbers: all that are open, from
    /// the oldest on, in their order. None while a later frame may still have been stored without them, for sending them
    /// now would put them behind it: one was answered, or was sent only now. And none when the server may have forgotten
    /// their numbers.
    pub(super) fn overdue(
        &mut self,
        now: Instant,
        patience: Duration,
        memory: Duration,
    ) -> Vec<(u64, Outgoing)> {
        let (Some(oldest), Some(newest)) = (self.batches.front(), self.batches.back()) else {
            return Vec::new();
        };
        let first_open = oldest.outcomes.iter().position(Option::is_none).unwrap_or(0) as u64 + oldest.first;
        if self.answered > first_open || now < newest.sent_again + patience || now > oldest.sent + memory {
            return Vec::new();
        }
        let mut again = Vec::new();
        for flight in &mut self.batches {
            flight.sent_again = now;
            let open = flight.frames.iter().zip(&flight.outcomes).zip(flight.first..);
            again.extend(
                open.filter(|((_, outcome), _)| outcome.is_none())
                    .map(|((frame, _), number)| (number, frame.clone())),
            );
        }
        again
    }

    /// When [`Flights::overdue`] may have something.
    pub(super) fn patience_ends(&self, patience: Duration) -> Option<Instant> {
        self.batches.back().map(|flight| flight.sent_again + patience)
    }
}

impl Flight {
    /// Tells the outcomes, once they are complete.
    fn report(&mut self) {
        if let Some(done) = self.done.take() {
            let _ = done.send(std::mem::take(&mut self.outcomes).into_iter().flatten().collect());
        }
    }

    fn give_up(&mut self, error: &Error) {
        for outcome in self.outcomes.iter_mut().filter(|outcome| outcome.is_none()) {
            *outcome = Some(Err(error.clone()));
        }
        self.open = 0;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(2);
    const MEMORY: Duration = Duration::from_secs(10);

    fn batch(topics: &[&str], deadline: Instant) -> (Batch, oneshot::Receiver<Outcomes>) {
        let (done, outcomes) = oneshot::channel();
        let frames = topics.iter().map(|topic| Outgoing { topic: Topic::from(*topic), frame: Bytes::new() });
        (Batch { frames: frames.collect(), bytes: 0, done, deadline }, outcomes)
    }

    fn numbers(frames: Vec<(u64, Outgoing)>) -> Vec<u64> {
        frames.into_iter().map(|(number, _)| number).collect()
    }

    #[test]
    fn what_is_sent_again_overtakes_nothing_that_was_sent_since() {
        let (shared, start) = (Shared::new(PATIENCE), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut flights = Flights::default();
        let (first, _outcomes) = batch(&["a", "b"], after(60));
        let (second, _outcomes) = batch(&["a"], after(60));
        assert_eq!(numbers(flights.add(first, start)), [1, 2]);
        assert_eq!(numbers(flights.add(second, after(1))), [3]);
        assert!(numbers(flights.overdue(after(2), PATIENCE, MEMORY)).is_empty(), "3 was sent a second ago");
        flights.answer(1, Ok(Reach::Unknown), &shared);
        assert_eq!(numbers(flights.overdue(after(3), PATIENCE, MEMORY)), [2, 3]);
        assert!(
            numbers(flights.overdue(after(4), PATIENCE, MEMORY)).is_empty(),
            "they were sent a second ago"
        );
        assert!(numbers(flights.overdue(after(11), PATIENCE, MEMORY)).is_empty(), "no longer known");
        flights.answer(3, Ok(Reach::Unknown), &shared);
        assert!(numbers(flights.overdue(after(5), PATIENCE, MEMORY)).is_empty(), "3 was stored without 2");
    }

    #[test]
    fn refused_topics_are_denied_in_their_places_and_the_rest_waits() {
        let (shared, start) = (Shared::new(PATIENCE), Instant::now());
        let mut flights = Flights::default();
        let (work, mut outcomes) = batch(&["a", "theirs", "a"], start + MEMORY);
        flights.add(work, start);
        let refused =
            HashMap::from([(Topic::from("theirs"), Error::new(backplane_core::ErrorKind::Denied, "x"))]);
        flights.refuse(&refused, &shared);
        flights.answer(1, Ok(Reach::Unknown), &shared);
        assert!(outcomes.try_recv().is_err() && flights.frames() == 3);
        flights.answer(3, Ok(Reach::Unknown), &shared);
        let outcomes = outcomes.try_recv().unwrap();
        assert!(outcomes[0].is_ok() && outcomes[1].is_err() && outcomes[2].is_ok());
        assert!(flights.is_empty() && flights.frames() == 0);
    }
}
