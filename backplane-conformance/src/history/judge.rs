//! The judge: one pass over each receiver's log, a second one only where something is missing.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use backplane_core::Gap;
use parking_lot::MutexGuard;

use super::evidence::{NodeEvidence, OwnEvidence};
use super::log::{AudienceKind, Membership, Message, Outcome};
use super::stamp::Stamp;
use super::verdict::{Lost, Phantom, Reordered, Repeated, Strange, Verdict};
use super::{Records, is_empty};

/// Everything but the deliveries, read for the judgement.
pub(super) struct Case<'a> {
    pub(super) records: &'a Records,
    grace: Duration,
    /// Of each sender; held, so that nothing is sent while deliveries are compared with it.
    pub(super) messages: Vec<MutexGuard<'a, Vec<Message>>>,
    /// Of each audience.
    members: Vec<HashMap<usize, Vec<Membership>>>,
    /// Of each node, without those that concern nothing.
    gaps: Vec<Vec<(Instant, Gap)>>,
}

pub(super) fn judge(records: &Records, grace: Duration) -> Verdict {
    let case = Case {
        records,
        grace,
        messages: records.senders.iter().map(|sender| sender.messages.lock()).collect(),
        members: records.audiences.iter().map(|audience| audience.members.lock().clone()).collect(),
        gaps: records.nodes.iter().map(|node| node.gaps.lock().clone()).collect(),
    };
    let mut verdict = Verdict::default();
    case.count(&mut verdict);

    let mut missing = Vec::new();
    let mut evidence = NodeEvidence::new(&case);
    for receiver in 0..records.receivers.len() {
        case.examine(receiver, &mut evidence, &mut missing, &mut verdict);
    }
    evidence.complete();
    for of_receiver in missing.chunk_by(|one, next| one.receiver == next.receiver) {
        case.excuse(of_receiver, &evidence, &mut verdict);
    }
    verdict
}

/// An accepted message that was owed and did not arrive.
#[derive(Clone, Copy)]
pub(super) struct Missing {
    pub(super) receiver: usize,
    pub(super) stamp: Stamp,
}

impl Case<'_> {
    pub(super) fn message(&self, stamp: Stamp) -> Option<&Message> {
        self.messages.get(stamp.sender as usize)?.get(stamp.number as usize)
    }

    /// Whether the message goes to the receiver without the broker.
    fn is_direct(&self, stamp: Stamp, message: &Message, receiver: usize) -> bool {
        self.records.audiences[message.audience as usize].kind == AudienceKind::Connections
            && self.records.senders[stamp.sender as usize].node == self.records.receivers[receiver].node
    }

    /// Whether it is owed to a receiver with these stays in its audience.
    fn is_owed(&self, message: &Message, stays: &[Membership]) -> bool {
        message.outcome == Outcome::Accepted
            && stays.iter().any(|stay| {
                stay.joined <= message.begun
                    && stay.left.is_none_or(|left| message.settled + self.grace <= left)
            })
    }

    fn count(&self, verdict: &mut Verdict) {
        let counts = &mut verdict.counts;
        for message in self.messages.iter().flat_map(|messages| messages.iter()) {
            *match message.outcome {
                Outcome::Accepted => &mut counts.accepted,
                Outcome::Failed => &mut counts.failed,
                Outcome::Unknown => &mut counts.unknown,
            } += 1;
        }
        counts.gaps = self.gaps.iter().map(|gaps| gaps.len() as u64).sum();
    }

    /// What one receiver got: repeats, order, phantoms; what it did not get goes into `missing`.
    fn examine(
        &self,
        receiver: usize,
        evidence: &mut NodeEvidence,
        missing: &mut Vec<Missing>,
        verdict: &mut Verdict,
    ) {
        let arrivals = self.records.receivers[receiver].arrivals.lock();
        verdict.counts.delivered += arrivals.stamps.len() as u64;
        for unreadable in &arrivals.unreadable {
            verdict.unreadable.add(|| Strange { bytes: unreadable.clone(), receiver });
        }
        // Looked up once: the loops below run for every delivery.
        let stays: Vec<&[Membership]> = self
            .members
            .iter()
            .map(|members| members.get(&receiver).map_or(&[][..], Vec::as_slice))
            .collect();
        let mut seen: Vec<Seen> = self.messages.iter().map(|_| Seen::default()).collect();
        for (at, stamp) in arrivals.timed() {
            let Some(message) = self.message(stamp) else {
                verdict.phantom.add(|| Phantom { stamp, receiver, why: "it was never sent" });
                continue;
            };
            if message.outcome == Outcome::Failed {
                verdict.phantom.add(|| Phantom {
                    stamp,
                    receiver,
                    why: "its sender was told that it failed",
                });
            }
            if stays[message.audience as usize].is_empty() {
                verdict.phantom.add(|| Phantom { stamp, receiver, why: "it was meant for others" });
            }
            let seen = &mut seen[stamp.sender as usize];
            if !seen.mark(stamp.number) {
                verdict.repeated.add(|| Repeated { stamp, receiver });
                continue;
            }
            if let Some(behind) = seen.later_than(stamp.number, message.audience) {
                verdict.reordered.add(|| Reordered { stamp, receiver, behind });
            }
            if !self.is_direct(stamp, message, receiver) {
                evidence.add(self, receiver, stamp, message, at);
            }
        }
        for (sender, messages) in self.messages.iter().enumerate() {
            for (number, message) in messages.iter().enumerate() {
                if self.is_owed(message, stays[message.audience as usize]) {
                    verdict.counts.owed += 1;
                    let (sender, number) = (super::small(sender), super::small(number));
                    if !seen[sender as usize].has(number) {
                        missing.push(Missing { receiver, stamp: Stamp { sender, number } });
                    }
                }
            }
        }
    }

    /// Which of one receiver's missing messages a gap excuses.
    fn excuse(&self, missing: &[Missing], node_evidence: &NodeEvidence, verdict: &mut Verdict) {
        let receiver = missing[0].receiver;
        let arrivals = self.records.receivers[receiver].arrivals.lock();
        let own_evidence = OwnEvidence::new(self, missing, &arrivals);
        drop(arrivals);
        for &Missing { stamp, .. } in missing {
            let message = self.message(stamp).expect("only messages that were sent are missing");
            let evident = [own_evidence.of(stamp, message), node_evidence.of(self, receiver, stamp, message)]
                .into_iter()
                .flatten()
                .min();
            match self.excused(stamp, message, receiver, evident) {
                Ok(()) => verdict.counts.excused += 1,
                Err(why) => verdict.lost.add(|| Lost {
                    stamp,
                    receiver,
                    audience: self.records.audiences[message.audience as usize].name.clone(),
                    why,
                }),
            }
        }
    }

    /// The rule of the module's documentation, or the step at which it came nearest to an excuse and failed.
    fn excused(
        &self,
        stamp: Stamp,
        message: &Message,
        receiver: usize,
        evident: Option<Instant>,
    ) -> Result<(), &'static str> {
        if self.is_direct(stamp, message, receiver) {
            return Err("it did not have to travel");
        }
        let origin = self.records.nodes[self.records.senders[stamp.sender as usize].node].id;
        let gaps = &self.gaps[self.records.receivers[receiver].node];
        if gaps.is_empty() {
            return Err("its node was told of no gap");
        }
        let topics = &self.records.audiences[message.audience as usize].topics;
        let mut nearest = "no gap that its node was told of concerns it";
        for (told, _) in gaps.iter().filter(|(_, gap)| concerns(gap, origin, topics.as_deref())) {
            if *told < message.begun {
                nearest = "it was sent after its node was told of the last gap";
            } else if evident.is_some_and(|evident| *told > evident + self.grace) {
                nearest = "later messages had arrived long before its node was told of a gap";
            } else {
                return Ok(());
            }
        }
        Err(nearest)
    }
}

fn concerns(gap: &Gap, origin: backplane_core::NodeId, topics: Option<&[backplane_core::Topic]>) -> bool {
    if is_empty(gap) {
        return false;
    }
    match (gap.origin, &gap.topics, topics) {
        (Some(concerned), _, _) => concerned == origin,
        (None, Some(concerned), Some(topics)) => topics.iter().any(|topic| concerned.contains(topic)),
        (None, _, _) => true,
    }
}

/// What one receiver has seen of one sender.
#[derive(Default)]
struct Seen {
    /// One bit for each number.
    numbers: Vec<u64>,
    /// The highest number of each audience; there are few.
    highest: Vec<(u32, u32)>,
}

impl Seen {
    /// Whether it is new.
    fn mark(&mut self, number: u32) -> bool {
        let (word, bit) = (number as usize / 64, 1 << (number % 64));
        if self.numbers.len() <= word {
            self.numbers.resize(word + 1, 0);
        }
        let new = self.numbers[word] & bit == 0;
        self.numbers[word] |= bit;
        new
    }

    fn has(&self, number: u32) -> bool {
        self.numbers.get(number as usize / 64).is_some_and(|word| word & (1 << (number % 64)) != 0)
    }

    /// The highest number of the audience so far, if it is higher than this one.
    fn later_than(&mut self, number: u32, audience: u32) -> Option<u32> {
        match self.highest.iter_mut().find(|(known, _)| *known == audience) {
            Some((_, highest)) if *highest > number => Some(*highest),
            Some((_, highest)) => {
                *highest = number;
                None
            }
            None => {
                self.highest.push((audience, number));
                None
            }
        }
    }
}
