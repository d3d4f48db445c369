//! Frames that say who published them where and as which number, and the judgement of what arrived of them.

use std::collections::{BTreeMap, HashSet};

use backplane_core::{Outgoing, Topic};
use bytes::Bytes;

use super::probe::Arrival;
use super::publisher::Publisher;

/// Bytes of a numbered frame that are not filling.
pub(super) const OVERHEAD: usize = 24;

/// A frame that `publisher` numbers for `topic`, with `filling` more bytes if the bus can carry so many.
pub(super) fn numbered(publisher: &Publisher, topic: &Topic, number: u32, filling: usize) -> Outgoing {
    let filling = filling.min(publisher.limits.max_frame.saturating_sub(OVERHEAD));
    let mut frame = Vec::with_capacity(OVERHEAD + filling);
    frame.extend_from_slice(&digest(topic.as_bytes()).to_be_bytes());
    frame.extend_from_slice(&publisher.id.to_be_bytes());
    frame.extend_from_slice(&number.to_be_bytes());
    let mut state = u64::from(number) << 32 | u64::from(publisher.id) | 1;
    while frame.len() < OVERHEAD - 8 + filling {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let room = (OVERHEAD - 8 + filling - frame.len()).min(8);
        frame.extend_from_slice(&state.to_be_bytes()[..room]);
    }
    frame.extend_from_slice(&digest(&frame).to_be_bytes());
    Outgoing { topic: topic.clone(), frame: Bytes::from(frame) }
}

/// Frames `numbers` of `publisher` for `topic`; their sizes vary so that big and small ones meet.
pub(super) fn run(publisher: &Publisher, topic: &Topic, numbers: std::ops::Range<u32>) -> Vec<Outgoing> {
    numbers
        .map(|number| numbered(publisher, topic, number, [0, 3, 200, 17, 1500][number as usize % 5]))
        .collect()
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ bytes.len() as u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = (hash ^ u64::from_be_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }
    hash
}

/// What arrived, sorted by topic and publisher.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    runs: BTreeMap<(Topic, u32), Vec<u32>>,
    /// Frames that are not what anybody published.
    pub(super) damaged: Vec<String>,
    /// Intact frames that arrived under a topic they were not published to.
    pub(super) misplaced: Vec<String>,
}

impl Ledger {
    pub(super) fn of(arrivals: &[Arrival]) -> Self {
        let mut ledger = Self::default();
        for Arrival { topic, frame, .. } in arrivals {
            let Some((place, publisher, number)) = read(frame) else {
                ledger.damaged.push(format!("{} bytes on {topic}", frame.len()));
                continue;
            };
            if place == digest(topic.as_bytes()) {
                ledger.runs.entry((topic.clone(), publisher)).or_default().push(number);
            } else {
                ledger.misplaced.push(format!("frame {number} of another topic on {topic}"));
            }
        }
        ledger
    }

    /// The numbers that arrived, as they arrived.
    pub(super) fn numbers(&self, topic: &Topic, publisher: &Publisher) -> &[u32] {
        self.runs.get(&(topic.clone(), publisher.id)).map_or(&[], Vec::as_slice)
    }

    /// Which of the first `count` numbers did not arrive.
    pub(super) fn missing(&self, topic: &Topic, publisher: &Publisher, count: u32) -> Vec<u32> {
        let arrived: HashSet<u32> = self.numbers(topic, publisher).iter().copied().collect();
        (0..count).filter(|number| !arrived.contains(number)).collect()
    }

    /// The first number that arrived after a higher one had, repeats aside.
    pub(super) fn disorder(&self) -> Option<String> {
        self.runs.iter().find_map(|((topic, _), numbers)| {
            let mut seen = HashSet::new();
            let mut highest = 0;
            numbers.iter().find_map(|number| {
                let late = seen.insert(*number) && *number < highest;
                highest = highest.max(*number);
                late.then(|| format!("{number} arrived after {highest} on {topic}"))
            })
        })
    }

    /// The first number that arrived twice.
    pub(super) fn repeat(&self) -> Option<String> {
        self.runs.iter().find_map(|((topic, _), numbers)| {
            let mut seen = HashSet::new();
            let again = numbers.iter().find(|number| !seen.insert(**number))?;
            Some(format!("{again} arrived twice on {topic}"))
        })
    }
}

fn read(frame: &[u8]) -> Option<(u64, u32, u32)> {
    let (body, sum) = frame.split_last_chunk::<8>()?;
    if digest(body) != u64::from_be_bytes(*sum) {
        return None;
    }
    let (place, body) = body.split_first_chunk::<8>()?;
    let (publisher, body) = body.split_first_chunk::<4>()?;
    let (number, _) = body.split_first_chunk::<4>()?;
    Some((u64::from_be_bytes(*place), u32::from_be_bytes(*publisher), u32::from_be_bytes(*number)))
}

/// The first few of a list, for a sentence.
pub(super) fn few(numbers: &[u32]) -> String {
    let shown: Vec<String> = numbers.iter().take(8).map(u32::to_string).collect();
    let more = if numbers.len() > 8 { ", ..." } else { "" };
    format!("{} frames ({}{more})", numbers.len(), shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(numbers: &[u32]) -> Ledger {
        let runs = BTreeMap::from([((Topic::from("t"), 1), numbers.to_vec())]);
        Ledger { runs, ..Ledger::default() }
    }

    #[test]
    fn a_repeat_is_no_disorder_and_disorder_is_no_repeat() {
        assert!(ledger(&[0, 1, 2, 1, 3]).disorder().is_none());
        assert!(ledger(&[0, 1, 2, 1, 3]).repeat().is_some());
        assert!(ledger(&[0, 2, 1, 3]).disorder().is_some());
        assert!(ledger(&[0, 2, 1, 3]).repeat().is_none());
        assert!(ledger(&[0, 2, 3]).disorder().is_none());
    }
}
