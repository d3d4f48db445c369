//! Frames on their way into the stream, each until the stream has acknowledged it.

use std::collections::VecDeque;
use std::time::Duration;

use backplane_core::{Error, Outgoing, Reach, Result};
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

    /// The same answer to every open frame that `which` picks.
    pub(super) fn answer_each(&mut self, which: impl Fn(&Outgoing) -> bool, error: &Error, shared: &Shared) {
        for flight in &mut self.batches {
            for (frame, outcome) in flight.frames.iter().zip(&mut flight.outcomes) {
                if outcome.is_none() && which(frame) {
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
    /// the oldest on, in their order. None when a later frame was answered already (sending an earlier one now could
    /// change the order), or when the server may have forgotten their numbers.
    pub(super) fn overdue(
        &mut self,
        now: Instant,
        patience: Duration,
        memory: Duration,
    ) -> Vec<(u64, Outgoing)> {
        let Some(oldest) = self.batches.front() else { return Vec::new() };
        let first_open = oldest.outcomes.iter().position(Option::is_none).unwrap_or(0) as u64 + oldest.first;
        if self.answered > first_open || now < oldest.sent_again + patience || now > oldest.sent + memory {
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
        self.batches.front().map(|flight| flight.sent_again + patience)
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
