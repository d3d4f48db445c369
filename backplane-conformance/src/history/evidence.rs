//! Since when a node could know that something is missing: the first arrival that should have come later.

use std::collections::HashMap;
use std::time::Instant;

use super::judge::{Case, Missing};
use super::log::{Arrivals, Message};
use super::stamp::Stamp;

/// How finely the times of sends are told apart in the evidence of a whole node.
const TICK_MILLIS: u32 = 10;
const TICKS_PER_SECOND: u64 = 1_000 / TICK_MILLIS as u64;

/// Of one receiver: the arrivals of those senders and audiences of which something is missing.
pub(super) struct OwnEvidence(HashMap<(u32, u32), Vec<(u32, Instant)>>);

impl OwnEvidence {
    pub(super) fn new(case: &Case<'_>, missing: &[Missing], arrivals: &Arrivals) -> Self {
        let key = |stamp: Stamp| Some((stamp.sender, case.message(stamp)?.audience));
        let mut of: HashMap<(u32, u32), Vec<(u32, Instant)>> =
            missing.iter().filter_map(|missing| Some((key(missing.stamp)?, Vec::new()))).collect();
        for (at, stamp) in arrivals.timed() {
            if let Some(arrived) = key(stamp).and_then(|key| of.get_mut(&key)) {
                arrived.push((stamp.number, at));
            }
        }
        for arrived in of.values_mut() {
            arrived.sort_unstable_by_key(|(number, _)| *number);
            earliest_from_behind(arrived, |(_, at)| at);
        }
        Self(of)
    }

    /// When the first later message of the same sender and audience arrived.
    pub(super) fn of(&self, stamp: Stamp, message: &Message) -> Option<Instant> {
        let arrived = self.0.get(&(stamp.sender, message.audience))?;
        let later = arrived.partition_point(|(number, _)| *number < stamp.number);
        arrived.get(later).map(|(_, at)| *at)
    }
}

/// Of each receiving node and each origin: when something that was sent in or after a tick of time first arrived.
pub(super) struct NodeEvidence {
    start: Instant,
    nodes: usize,
    ticks: Vec<Vec<Option<Instant>>>,
}

impl NodeEvidence {
    pub(super) fn new(case: &Case<'_>) -> Self {
        let begun = case.messages.iter().flat_map(|messages| messages.iter().map(|message| message.begun));
        let nodes = case.records.nodes.len();
        Self {
            start: begun.min().unwrap_or_else(Instant::now),
            nodes,
            ticks: vec![Vec::new(); nodes * nodes],
        }
    }

    fn index(&self, case: &Case<'_>, receiver: usize, stamp: Stamp) -> usize {
        let origin = case.records.senders[stamp.sender as usize].node;
        case.records.receivers[receiver].node * self.nodes + origin
    }

    /// The tick that a time lies in.
    fn tick(&self, at: Instant) -> usize {
        let since = at.saturating_duration_since(self.start);
        // Not by `as_millis`, whose 128 bits are felt when millions of deliveries are judged.
        let ticks = since.as_secs() * TICKS_PER_SECOND + u64::from(since.subsec_millis() / TICK_MILLIS);
        usize::try_from(ticks).expect("no run lasts that long")
    }

    pub(super) fn add(
        &mut self,
        case: &Case<'_>,
        receiver: usize,
        stamp: Stamp,
        message: &Message,
        at: Instant,
    ) {
        let index = self.index(case, receiver, stamp);
        let tick = self.tick(message.begun);
        let ticks = &mut self.ticks[index];
        if ticks.len() <= tick {
            ticks.resize(tick + 1, None);
        }
        ticks[tick] = Some(ticks[tick].map_or(at, |first| first.min(at)));
    }

    /// To be called between the last `add` and the first `of`.
    pub(super) fn complete(&mut self) {
        for ticks in &mut self.ticks {
            let mut first: Option<Instant> = None;
            for tick in ticks.iter_mut().rev() {
                first = [first, *tick].into_iter().flatten().min();
                *tick = first;
            }
        }
    }

    /// When the first message of the same origin arrived at the receiver's node that was sent after this one was
    /// accepted; up to a tick of time later than that, never earlier.
    pub(super) fn of(
        &self,
        case: &Case<'_>,
        receiver: usize,
        stamp: Stamp,
        message: &Message,
    ) -> Option<Instant> {
        let ticks = &self.ticks[self.index(case, receiver, stamp)];
        ticks.get(self.tick(message.settled) + 1).copied().flatten()
    }
}

/// Replaces each time by the earliest of itself and all behind it.
fn earliest_from_behind<T>(items: &mut [T], time: impl Fn(&mut T) -> &mut Instant) {
    let mut earliest: Option<Instant> = None;
    for item in items.iter_mut().rev() {
        let own = time(item);
        *own = earliest.map_or(*own, |earliest| earliest.min(*own));
        earliest = Some(*own);
    }
}
