//! Provenance: numbering what we send, and judging what arrives by its number and predecessor.
//!
//! Owned by the supervisor's task, so without locks. Tables are bounded; eviction weakens detection (predecessor 0, or
//! a new start), is counted, and never drops a frame.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::RandomState;

use crate::bus::LossReason;
use crate::health::Gap;
use crate::id::NodeId;
use crate::topic::Topic;
use crate::wire::{Provenance, topic_hash};

/// Most topics that one beat names.
pub(crate) const BEAT_TOPICS: usize = 256;

/// Numbers our frames.
pub(crate) struct Numbering {
    last: u64,
    topics: HashMap<Topic, Sent, RandomState>,
    capacity: usize,
}

struct Sent {
    last: u64,
    hash: Option<u64>,
}

impl Numbering {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { last: 0, topics: HashMap::default(), capacity }
    }

    /// The next number, and the previous one on this topic. The second result counts evicted topics.
    pub(crate) fn next(&mut self, topic: &Topic) -> (u64, u64, u64) {
        self.last += 1;
        if let Some(sent) = self.topics.get_mut(topic) {
            return (self.last, std::mem::replace(&mut sent.last, self.last), 0);
        }
        let evicted = if self.topics.len() >= self.capacity { self.evict() } else { 0 };
        self.topics.insert(topic.clone(), Sent { last: self.last, hash: None });
        (self.last, 0, evicted)
    }

    /// A number for a frame whose topic is not followed (beats).
    pub(crate) fn next_unfollowed(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// The last number given.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Hashes and last numbers of the topics sent to most recently.
    pub(crate) fn recent(&mut self) -> Vec<(u64, u64)> {
        let newest = self.newest(BEAT_TOPICS);
        self.topics
            .iter_mut()
            .filter(|(_, sent)| sent.last >= newest)
            .map(|(topic, sent)| (*sent.hash.get_or_insert_with(|| topic_hash(topic)), sent.last))
            .collect()
    }

    /// The number from which on there are at most `count` topics. (Numbers are unique.)
    fn newest(&self, count: usize) -> u64 {
        if self.topics.len() <= count {
            return 0;
        }
        let mut numbers: Vec<u64> = self.topics.values().map(|sent| sent.last).collect();
        let index = numbers.len() - count;
        *numbers.select_nth_unstable(index).1
    }

    fn evict(&mut self) -> u64 {
        let before = self.topics.len();
        let keep_from = self.newest(self.capacity - self.capacity.div_ceil(8));
        self.topics.retain(|_, sent| sent.last >= keep_from && keep_from > 0);
        (before - self.topics.len()) as u64
    }
}

/// What to do with a frame that arrived.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accept,
    Repeat,
}

/// Judges what arrives, by origin and topic.
pub(crate) struct Positions {
    topics: HashMap<Topic, Vec<(NodeId, Position)>, RandomState>,
    entries: usize,
    capacity: usize,
    /// How many numbers of one origin and topic are remembered to recognise repeats.
    window: usize,
    /// Per origin: up to where a gap was already told. What is lost below needs no other one.
    told: HashMap<NodeId, u64, RandomState>,
    clock: u64,
}

#[derive(Default)]
struct Position {
    /// Highest number seen, or taken as the start.
    last: u64,
    /// Numbers seen, ascending, the newest [`Positions::window`] of them.
    seen: VecDeque<u64>,
    /// A beat announced this topic number, and everything before that beat number, while we were behind.
    suspect: Option<(u64, u64)>,
    used: u64,
}

/// What judging found besides its verdict.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    pub(crate) gap: Option<Gap>,
    pub(crate) evicted: u64,
}

impl Positions {
    pub(crate) fn new(capacity: usize, window: usize) -> Self {
        Self { topics: HashMap::default(), entries: 0, capacity, window, told: HashMap::default(), clock: 0 }
    }

    /// A frame arrived on `topic`.
    pub(crate) fn judge(&mut self, topic: &Topic, frame: Provenance) -> (Verdict, Findings) {
        let told = self.told.get(&frame.origin).copied().unwrap_or(0);
        let window = self.window;
        let mut findings = Findings::default();
        let Some(position) = self.find(topic, frame.origin) else {
            // A late joiner starts at the first predecessor it sees.
            findings.evicted = self.insert(topic, frame.origin, frame.seq, Some(frame.seq));
            return (Verdict::Accept, findings);
        };
        if frame.seq > position.last {
            if frame.prev > position.last.max(told) {
                findings.gap = Some(Gap {
                    origin: Some(frame.origin),
                    topics: Some(vec![topic.clone()]),
                    after: position.last,
                    through: frame.seq - 1,
                    reason: LossReason::Missing,
                });
            }
            position.last = frame.seq;
            position.seen.push_back(frame.seq);
        } else {
            match position.seen.binary_search(&frame.seq) {
                Ok(_) => return (Verdict::Repeat, findings),
                Err(index) => position.seen.insert(index, frame.seq),
            }
        }
        if position.seen.len() > window {
            position.seen.pop_front();
        }
        if position.suspect.is_some_and(|(seq, _)| position.last >= seq) {
            position.suspect = None;
        }
        if let Some(gap) = &findings.gap {
            self.told.insert(frame.origin, gap.through);
        }
        (Verdict::Accept, findings)
    }

    /// A beat of `origin`, published after its frame `beat_seq`, announced that its last frame on `topic` is `seq`.
    pub(crate) fn announced(&mut self, topic: &Topic, origin: NodeId, seq: u64, beat_seq: u64) -> Findings {
        let told = self.told.get(&origin).copied().unwrap_or(0);
        let mut findings = Findings::default();
        let Some(position) = self.find(topic, origin) else {
            findings.evicted = self.insert(topic, origin, seq, None);
            return findings;
        };
        if position.last.max(told) >= seq {
            position.suspect = None;
            return findings;
        }
        match position.suspect {
            // Still behind what an earlier beat announced: it had a whole beat's time to arrive.
            Some((suspected, through)) if position.last < suspected => {
                let after = position.last;
                position.last = suspected;
                position.suspect = (suspected < seq).then_some((seq, beat_seq));
                if suspected > told {
                    self.told.insert(origin, through.max(told));
                    findings.gap = Some(Gap {
                        origin: Some(origin),
                        topics: Some(vec![topic.clone()]),
                        after,
                        through,
                        reason: LossReason::Missing,
                    });
                }
            }
            _ => position.suspect = Some((seq, beat_seq)),
        }
        findings
    }

    /// The topic is no longer ours.
    pub(crate) fn forget_topic(&mut self, topic: &Topic) {
        if let Some(positions) = self.topics.remove(topic) {
            self.entries -= positions.len();
        }
    }

    /// The origin is gone for good.
    pub(crate) fn forget_origin(&mut self, origin: NodeId) {
        let mut removed = 0;
        self.topics.retain(|_, positions| {
            let before = positions.len();
            positions.retain(|(node, _)| *node != origin);
            removed += before - positions.len();
            !positions.is_empty()
        });
        self.entries -= removed;
        self.told.remove(&origin);
    }

    /// A new link starts anew.
    pub(crate) fn clear(&mut self) {
        self.topics.clear();
        self.told.clear();
        self.entries = 0;
    }

    fn find(&mut self, topic: &Topic, origin: NodeId) -> Option<&mut Position> {
        self.clock += 1;
        let clock = self.clock;
        let positions = self.topics.get_mut(topic)?;
        let (_, position) = positions.iter_mut().find(|(node, _)| *node == origin)?;
        position.used = clock;
        Some(position)
    }

    fn insert(&mut self, topic: &Topic, origin: NodeId, last: u64, seen: Option<u64>) -> u64 {
        let evicted = if self.entries >= self.capacity { self.evict() } else { 0 };
        let position = Position { last, seen: seen.into_iter().collect(), suspect: None, used: self.clock };
        match self.topics.get_mut(topic) {
            Some(positions) => positions.push((origin, position)),
            None => {
                self.topics.insert(topic.clone(), vec![(origin, position)]);
            }
        }
        self.entries += 1;
        evicted
    }

    /// Drops the eighth that was used least recently.
    fn evict(&mut self) -> u64 {
        let mut uses: Vec<u64> = self.topics.values().flatten().map(|(_, position)| position.used).collect();
        let (_, &mut limit, _) =
            uses.select_nth_unstable((self.capacity.div_ceil(8) - 1).min(self.entries - 1));
        let before = self.entries;
        let mut left = 0;
        self.topics.retain(|_, positions| {
            positions.retain(|(_, position)| position.used > limit);
            left += positions.len();
            !positions.is_empty()
        });
        self.entries = left;
        (before - left) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId::from_bytes([1; 6]);

    fn topic(name: &str) -> Topic {
        Topic::from(name)
    }

    fn frame(seq: u64, prev: u64) -> Provenance {
        Provenance { origin: A, seq, prev }
    }

    fn positions() -> Positions {
        Positions::new(100, 64)
    }

    #[test]
    fn a_clean_run_raises_nothing() {
        let mut numbering = Numbering::new(100);
        let mut positions = positions();
        for number in 0..1_000 {
            let topic = topic(["a", "b", "c"][number % 3]);
            let (seq, prev, _) = numbering.next(&topic);
            assert_eq!(positions.judge(&topic, frame(seq, prev)), (Verdict::Accept, Findings::default()));
        }
    }

    #[test]
    fn a_missing_frame_is_one_gap_for_its_origin() {
        let mut positions = positions();
        for name in ["a", "b"] {
            positions.judge(&topic(name), frame(if name == "a" { 1 } else { 2 }, 0));
        }
        // 3 on `a` and 4 on `b` are lost.
        let (verdict, findings) = positions.judge(&topic("a"), frame(5, 3));
        let gap = findings.gap.unwrap();
        assert_eq!((verdict, gap.after, gap.through, gap.origin), (Verdict::Accept, 1, 4, Some(A)));
        assert_eq!(positions.judge(&topic("b"), frame(6, 4)).1.gap, None, "told already");
        assert!(positions.judge(&topic("b"), frame(9, 8)).1.gap.is_some(), "a new loss");
    }

    #[test]
    fn a_late_joiner_starts_where_it_is() {
        assert_eq!(positions().judge(&topic("a"), frame(100, 90)), (Verdict::Accept, Findings::default()));
    }

    #[test]
    fn repeats_are_removed_and_late_frames_are_not() {
        let mut positions = positions();
        for (seq, prev) in [(1, 0), (2, 1), (4, 3)] {
            positions.judge(&topic("a"), frame(seq, prev));
        }
        assert_eq!(positions.judge(&topic("a"), frame(2, 1)).0, Verdict::Repeat);
        assert_eq!(positions.judge(&topic("a"), frame(3, 2)).0, Verdict::Accept);
        assert_eq!(positions.judge(&topic("a"), frame(3, 2)).0, Verdict::Repeat);
    }

    #[test]
    fn the_last_frame_lost_is_found_at_the_second_beat() {
        let mut positions = positions();
        positions.judge(&topic("a"), frame(1, 0));
        assert_eq!(positions.announced(&topic("a"), A, 2, 2).gap, None, "it may still be on its way");
        let gap = positions.announced(&topic("a"), A, 2, 3).gap.unwrap();
        assert_eq!((gap.after, gap.through), (1, 2));
        assert_eq!(positions.announced(&topic("a"), A, 2, 4).gap, None, "told once");
    }

    #[test]
    fn a_frame_that_arrives_between_two_beats_is_no_loss() {
        let mut positions = positions();
        positions.judge(&topic("a"), frame(1, 0));
        positions.announced(&topic("a"), A, 2, 2);
        positions.judge(&topic("a"), frame(2, 1));
        assert_eq!(positions.announced(&topic("a"), A, 2, 3).gap, None);
        assert_eq!(positions.announced(&topic("a"), A, 5, 5).gap, None);
        positions.judge(&topic("a"), frame(5, 2));
        assert_eq!(positions.announced(&topic("a"), A, 9, 9).gap, None);
    }

    #[test]
    fn an_announced_position_is_the_start_of_a_late_joiner() {
        let mut positions = positions();
        assert_eq!(positions.announced(&topic("a"), A, 7, 8), Findings::default());
        assert_eq!(positions.judge(&topic("a"), frame(7, 6)).0, Verdict::Accept, "it was on its way");
        assert!(positions.judge(&topic("a"), frame(12, 11)).1.gap.is_some());
    }

    #[test]
    fn tables_are_bounded_and_eviction_never_drops_a_frame() {
        let mut positions = Positions::new(16, 64);
        let mut numbering = Numbering::new(16);
        let mut evicted = (0, 0);
        for number in 0..1_000 {
            let topic = topic(&format!("t{}", number % 50));
            let (seq, prev, evicted_sending) = numbering.next(&topic);
            let (verdict, findings) = positions.judge(&topic, frame(seq, prev));
            assert_eq!((verdict, findings.gap), (Verdict::Accept, None));
            evicted = (evicted.0 + evicted_sending, evicted.1 + findings.evicted);
        }
        assert!(evicted.0 > 0 && evicted.1 > 0);
        assert!(positions.entries <= 16 && numbering.topics.len() <= 16);
    }

    #[test]
    fn beats_name_the_most_recent_topics() {
        let mut numbering = Numbering::new(10_000);
        for number in 0..1_000 {
            numbering.next(&topic(&format!("t{number}")));
        }
        let recent = numbering.recent();
        assert_eq!(recent.len(), BEAT_TOPICS);
        assert!(recent.iter().all(|(_, seq)| *seq > 1_000 - BEAT_TOPICS as u64));
    }
}
