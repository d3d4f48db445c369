//! What waits for a probe to come back.

use std::collections::VecDeque;

use backplane_core::{Result, Topic};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::subscriptions::Claim;
use crate::errors::failed;
use crate::shared::{Outcomes, Shared};

/// Bytes and frames whose probe is under way. More waits with us, where it is known not to have been sent.
const BYTES: usize = 4 << 20;
const FRAMES: usize = 16_384;

/// In the order of their probes.
#[derive(Debug, Default)]
pub(super) struct Flights {
    flights: VecDeque<Flight>,
    weight: Weight,
}

/// What waits for one probe.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) probe: u64,
    pub(super) works: Vec<Sent>,
    pub(super) weight: Weight,
    pub(super) deadline: Instant,
}

/// Work that was handed to the connection.
#[derive(Debug)]
pub(super) enum Sent {
    Batch { topics: Vec<Topic>, bytes: usize, done: oneshot::Sender<Outcomes> },
    Subscribe { claims: Vec<Claim>, topics: usize, done: oneshot::Sender<Result<()>> },
    Unsubscribe { topics: usize, done: oneshot::Sender<Result<()>> },
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weight {
    pub(super) frames: usize,
    pub(super) bytes: usize,
}

impl Flights {
    pub(super) fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }

    /// Whether no frame may be added to so much more.
    pub(super) fn is_full_with(&self, more: Weight) -> bool {
        self.weight.bytes + more.bytes >= BYTES || self.weight.frames + more.frames >= FRAMES
    }

    pub(super) fn add(&mut self, flight: Flight) {
        self.weight.frames += flight.weight.frames;
        self.weight.bytes += flight.weight.bytes;
        self.flights.push_back(flight);
    }

    /// The oldest one, if `probe` proves it.
    pub(super) fn landed(&mut self, probe: u64) -> Option<Flight> {
        let flight = self.flights.pop_front_if(|flight| flight.probe <= probe)?;
        self.weight.frames -= flight.weight.frames;
        self.weight.bytes -= flight.weight.bytes;
        Some(flight)
    }

    /// When the oldest is overdue.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.flights.front().map(|flight| flight.deadline)
    }

    /// The link has ended: what happened to the rest is not known.
    pub(super) fn give_up(&mut self, how: &Result<()>, shared: &Shared) {
        self.weight = Weight::default();
        for work in self.flights.drain(..).flat_map(|flight| flight.works) {
            match work {
                Sent::Batch { topics, bytes, done } => {
                    shared.batch_answered(bytes, topics.len());
                    let error = failed(how, "publish").with_outcome_unknown();
                    let _ = done.send(vec![Err(error); topics.len()]);
                }
                Sent::Subscribe { topics, done, .. } => {
                    shared.answer(done, topics, Err(failed(how, "subscribe")));
                }
                Sent::Unsubscribe { topics, done } => {
                    shared.answer(done, topics, Err(failed(how, "unsubscribe")));
                }
            }
        }
    }
}
