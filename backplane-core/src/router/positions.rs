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

/// Most numbers remembered in all windows together (32 MiB); beyond it the windows stay at [`SMALL_WINDOW`].
const MAX_REMEMBERED: usize = 4 << 20;
const SMALL_WINDOW: usize = 16;
/// A freed topic is remembered for so many ticks (tenths of the heartbeat bound): two beats and a little.
const FREED_TICKS: u8 = 7;

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
    /// Whether the bus repeats frames, after a resume even far back. What is older than all that is remembered is then a
    /// repeat, or was published before we subscribed: a bus keeps the order of a publisher (B3).
    repeating: bool,
    /// How often the bus told of a loss that may concern any topic.
    losses: u64,
    /// Per origin: the extent of the gaps told so far, by us or by the bus. What is lost inside needs no other one.
    told: HashMap<NodeId, Told, RandomState>,
    clock: u64,
    /// Numbers remembered in all windows together.
    remembered: usize,
    /// Topics that were freed a short while ago. Frames of the old subscription may still come after a new one is
    /// confirmed, and what was sent in between was not ours: the first hole of each origin is a start.
    freed: HashMap<Topic, Freed, RandomState>,
}

#[derive(Default)]
struct Freed {
    ticks: u8,
    started: Vec<NodeId>,
}

/// Numbers above `after`, up to `through`.
#[derive(Clone, Copy, Default)]
struct Told {
    after: u64,
    through: u64,
    /// Of [`Positions::losses`] those that are in it.
    losses: u64,
}

impl Told {
    fn covers(self, after: u64, through: u64) -> bool {
        self.after <= after && through <= self.through
    }

    fn widen(self, after: u64, through: u64) -> Self {
        if self.through == 0 {
            return Self { after, through, ..self };
        }
        Self { after: self.after.min(after), through: self.through.max(through), ..self }
    }
}

#[derive(Default)]
struct Position {
    /// Highest number seen, or taken as the start.
    last: u64,
    /// Numbers seen, ascending, the newest [`Positions::window`] of them.
    seen: VecDeque<u64>,
    /// A beat announced this topic number, and everything before that beat number, while we were behind.
    suspect: Option<(u64, u64)>,
    /// The bus told of a loss on this topic: the next hole is no news.
    lost: bool,
    used: u64,
}

/// What judging found besides its verdict.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    pub(crate) gap: Option<Gap>,
    pub(crate) evicted: u64,
}

impl Positions {
    /// `window`: how many numbers of one origin and topic are remembered; `repeating`: whether the bus repeats frames.
    pub(crate) fn new(capacity: usize, window: usize, repeating: bool) -> Self {
        Self {
            topics: HashMap::default(),
            entries: 0,
            capacity,
            window,
            repeating,
            losses: 0,
            told: HashMap::default(),
            clock: 0,
            remembered: 0,
            freed: HashMap::default(),
        }
    }

    /// A frame arrived on `topic`.
    pub(crate) fn judge(&mut self, topic: &Topic, frame: Provenance) -> (Verdict, Findings) {
        let told = self.told_before(frame.origin, frame.seq);
        let window =
            if self.remembered < MAX_REMEMBERED { self.window } else { self.window.min(SMALL_WINDOW) };
        let repeating = self.repeating;
        let mut findings = Findings::default();
        let Some(position) = self.find(topic, frame.origin) else {
            // A late joiner starts at the first predecessor it sees.
            findings.evicted = self.insert(topic, frame.origin, frame.seq, Some(frame.seq));
            return (Verdict::Accept, findings);
        };
        let before = position.seen.len();
        let mut hole = None;
        let place = if frame.seq > position.last {
            let told = told.covers(position.last, frame.prev) || position.lost;
            if frame.prev > position.last && !told {
                hole = Some(position.last);
            }
            position.last = frame.seq;
            position.lost = false;
            before
        } else {
            match position.seen.binary_search(&frame.seq) {
                Ok(_) => return (Verdict::Repeat, findings),
                Err(0) if repeating && before > 0 => return (Verdict::Repeat, findings),
                Err(place) => place,
            }
        };
        // Room first, so that the window never grows past its size.
        let surplus = (before + 1).saturating_sub(window);
        position.seen.drain(..surplus);
        if let Some(place) = place.checked_sub(surplus) {
            position.seen.insert(place, frame.seq);
        }
        if position.suspect.is_some_and(|(seq, _)| position.last >= seq) {
            position.suspect = None;
        }
        let now = position.seen.len();
        self.remembered = self.remembered + now - before;
        if let Some(after) = hole
            && !self.starts_anew(topic, frame.origin)
        {
            findings.gap = Some(self.tell(topic, frame.origin, after, frame.seq - 1));
        }
        (Verdict::Accept, findings)
    }

    /// A beat of `origin`, published after its frame `beat_seq`, announced that its last frame on `topic` is `seq`.
    pub(crate) fn announced(&mut self, topic: &Topic, origin: NodeId, seq: u64, beat_seq: u64) -> Findings {
        let told = self.told_before(origin, beat_seq.saturating_add(1));
        let mut findings = Findings::default();
        let Some(position) = self.find(topic, origin) else {
            findings.evicted = self.insert(topic, origin, seq, None);
            return findings;
        };
        if position.last >= seq || told.covers(position.last, seq) {
            position.suspect = None;
            return findings;
        }
        match position.suspect {
            // Still behind what an earlier beat announced: it had a whole beat's time to arrive.
            Some((suspected, through)) if position.last < suspected => {
                let after = position.last;
                let told = told.covers(after, suspected) || std::mem::take(&mut position.lost);
                position.last = suspected;
                position.suspect = (suspected < seq).then_some((seq, beat_seq));
                if !told && !self.starts_anew(topic, origin) {
                    findings.gap = Some(self.tell(topic, origin, after, through.max(suspected)));
                }
            }
            _ => position.suspect = Some((seq, beat_seq)),
        }
        findings
    }

    /// What was told of `origin`, of which the number `seq` has come: what the bus lost before that is in it, for it said
    /// so; what is lost from then on is not.
    fn told_before(&mut self, origin: NodeId, seq: u64) -> Told {
        let losses = self.losses;
        if let Some(told) = self.told.get(&origin).filter(|told| told.losses == losses) {
            return *told;
        }
        if losses == 0 {
            return Told::default();
        }
        let told = self.told.entry(origin).or_default();
        *told = Told { losses, ..told.widen(0, seq.saturating_sub(1)) };
        *told
    }

    fn tell(&mut self, topic: &Topic, origin: NodeId, after: u64, through: u64) -> Gap {
        let told = self.told.entry(origin).or_default();
        *told = told.widen(after, through);
        Gap {
            origin: Some(origin),
            topics: Some(vec![topic.clone()]),
            after,
            through,
            reason: LossReason::Missing,
        }
    }

    /// The topic was freed.
    pub(crate) fn forget_topic(&mut self, topic: &Topic) {
        if let Some(positions) = self.topics.remove(topic) {
            self.entries -= positions.len();
            self.remembered -= numbers(&positions);
            if self.freed.len() < self.capacity {
                self.freed.insert(topic.clone(), Freed::default());
            }
        }
    }

    /// The bus told of a loss, of these topics or of any: the hole that the next frame of each origin shows is no news. One
    /// that opens later is, however long a topic was quiet in between.
    pub(crate) fn lost(&mut self, topics: Option<&[Topic]>) {
        let Some(topics) = topics else {
            self.losses += 1;
            return;
        };
        for topic in topics {
            for (_, position) in self.topics.get_mut(topic).into_iter().flatten() {
                position.lost = true;
            }
        }
    }

    /// A tick passed.
    pub(crate) fn age(&mut self) {
        self.freed.retain(|_, freed| {
            freed.ticks += 1;
            freed.ticks <= FREED_TICKS
        });
    }

    fn starts_anew(&mut self, topic: &Topic, origin: NodeId) -> bool {
        let Some(freed) = self.freed.get_mut(topic) else { return false };
        let first = !freed.started.contains(&origin);
        if first {
            freed.started.push(origin);
        }
        first
    }

    /// The origin is gone for good.
    pub(crate) fn forget_origin(&mut self, origin: NodeId) {
        self.retain(|node, _| node != origin);
        self.told.remove(&origin);
    }

    /// A new link starts anew.
    pub(crate) fn clear(&mut self) {
        self.topics.clear();
        self.told.clear();
        self.freed.clear();
        self.entries = 0;
        self.remembered = 0;
    }

    fn retain(&mut self, keep: impl Fn(NodeId, &Position) -> bool) {
        let (mut entries, mut remembered) = (0, 0);
        self.topics.retain(|_, positions| {
            positions.retain(|(node, position)| keep(*node, position));
            entries += positions.len();
            remembered += numbers(positions);
            !positions.is_empty()
        });
        (self.entries, self.remembered) = (entries, remembered);
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
        let seen_now = seen.into_iter().collect();
        let position = Position { last, seen: seen_now, suspect: None, lost: false, used: self.clock };
        match self.topics.get_mut(topic) {
            Some(positions) => positions.push((origin, position)),
            None => {
                self.topics.insert(topic.clone(), vec![(origin, position)]);
            }
        }
        self.entries += 1;
        self.remembered += usize::from(seen.is_some());
        evicted
    }

    /// Drops the eighth that was used least recently.
    fn evict(&mut self) -> u64 {
        let mut uses: Vec<u64> = self.topics.values().flatten().map(|(_, position)| position.used).collect();
        let (_, &mut limit, _) =
            uses.select_nth_unstable((self.capacity.div_ceil(8) - 1).min(self.entries - 1));
        let before = self.entries;
        self.retain(|_, position| position.used > limit);
        (before - self.entries) as u64
    }
}

fn numbers(positions: &[(NodeId, Position)]) -> usize {
    positions.iter().map(|(_, position)| position.seen.len()).sum()
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
        Positions::new(100, 64, false)
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
    fn a_gap_covers_only_what_it_says() {
        let mut positions = positions();
        positions.judge(&topic("b"), frame(1, 0));
        // 2 on `b` is lost, 3 on `a` arrives, 4 on `a` is lost.
        positions.judge(&topic("a"), frame(3, 0));
        let gap = positions.judge(&topic("a"), frame(6, 4)).1.gap.unwrap();
        assert_eq!((gap.after, gap.through), (3, 5));
        let gap = positions.judge(&topic("b"), frame(7, 2)).1.gap.unwrap();
        assert_eq!((gap.after, gap.through), (1, 6));
    }

    #[test]
    fn what_was_sent_between_two_subscriptions_is_no_loss() {
        let mut positions = positions();
        positions.judge(&topic("a"), frame(1, 0));
        positions.forget_topic(&topic("a"));
        // A straggler of the old subscription, then the first frame of the new one.
        positions.judge(&topic("a"), frame(2, 1));
        assert_eq!(positions.judge(&topic("a"), frame(9, 8)).1.gap, None);
        assert!(positions.judge(&topic("a"), frame(12, 11)).1.gap.is_some(), "only once");
        positions.forget_topic(&topic("a"));
        (0..=FREED_TICKS).for_each(|_| positions.age());
        positions.judge(&topic("a"), frame(13, 12));
        assert!(positions.judge(&topic("a"), frame(15, 14)).1.gap.is_some(), "only for a while");
    }

    #[test]
    fn windows_are_bounded() {
        let mut positions = Positions::new(16, 64, false);
        for seq in 1..1_000 {
            positions.judge(&topic(&format!("t{}", seq % 40)), frame(seq, 0));
            positions.judge(&topic("busy"), frame(seq, 0));
        }
        assert!(positions.remembered <= 16 * 64);
        assert_eq!(positions.remembered, positions.topics.values().map(|it| numbers(it)).sum::<usize>());
        positions.forget_origin(A);
        assert_eq!((positions.entries, positions.remembered), (0, 0));
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
    fn on_a_bus_that_repeats_nothing_older_than_the_window_is_news() {
        let mut positions = Positions::new(100, 64, true);
        positions.announced(&topic("a"), A, 10, 11);
        assert_eq!(positions.judge(&topic("a"), frame(10, 9)).0, Verdict::Accept, "it was on its way");
        assert_eq!(positions.judge(&topic("a"), frame(9, 8)).0, Verdict::Repeat, "from before we were there");
        for seq in (12..1_000).step_by(2) {
            positions.judge(&topic("a"), frame(seq, seq - 2));
        }
        for seq in 10..1_000 {
            let missed = seq % 2 == 1 && seq > 1_000 - 2 * 64;
            let verdict = if missed { Verdict::Accept } else { Verdict::Repeat };
            assert_eq!(positions.judge(&topic("a"), frame(seq, 0)).0, verdict, "{seq}");
        }
    }

    #[test]
    fn a_loss_that_the_bus_told_is_not_told_again() {
        for topics in [None, Some([topic("a")])] {
            let mut positions = positions();
            let both = |positions: &mut Positions, seq, prev| {
                let gap = positions.judge(&topic("a"), frame(seq, prev)).1.gap;
                (gap.is_some(), positions.judge(&topic("b"), frame(seq + 1, prev + 1)).1.gap.is_some())
            };
            both(&mut positions, 1, 0);
            positions.lost(topics.as_ref().map(<[Topic; 1]>::as_slice));
            let b_told = topics.is_none();
            assert_eq!(both(&mut positions, 5, 3), (false, !b_told));
            assert!(both(&mut positions, 9, 7).0, "a new loss");
            positions.lost(topics.as_ref().map(<[Topic; 1]>::as_slice));
            assert_eq!(positions.announced(&topic("a"), A, 20, 21).gap, None);
            assert_eq!(positions.announced(&topic("a"), A, 20, 24).gap, None, "told");
            positions.announced(&topic("a"), A, 30, 31);
            assert!(positions.announced(&topic("a"), A, 30, 34).gap.is_some(), "a new loss");
        }
    }

    #[test]
    fn a_loss_on_a_quiet_topic_long_after_one_that_the_bus_told_is_told() {
        for heard_by_a_beat in [false, true] {
            let mut positions = positions();
            positions.judge(&topic("quiet"), frame(1, 0));
            positions.judge(&topic("busy"), frame(2, 0));
            positions.lost(None);
            // The origin is heard again: what the bus lost was sent before this.
            if heard_by_a_beat {
                assert_eq!(positions.announced(&topic("busy"), A, 2, 5), Findings::default());
            } else {
                assert_eq!(positions.judge(&topic("busy"), frame(6, 4)).1.gap, None, "told by the bus");
            }
            // 8 on `quiet` is lost later, and not by the bus.
            let gap = positions.judge(&topic("quiet"), frame(9, 8)).1.gap;
            assert!(gap.is_some_and(|gap| gap.through == 8), "{heard_by_a_beat}");
        }
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
        let mut positions = Positions::new(16, 64, false);
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
