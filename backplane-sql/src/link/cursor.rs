//! How far a link has read the log, and what is to be read next: all decisions about order, repeats, late rows and losses,
//! without a clock and without a database.
//!
//! # Why it is complete
//! Ids are given out before a row is committed, so a row may appear below others that were read. Two facts close that
//! gap without a lock. Ids that are missing between rows are kept and read again ([`Gaps`]). And a writer has one
//! statement in flight: when a row of it is visible, all its earlier ones are committed, so a hole in *its* numbers can be
//! read at once by them. Every row after the beginning is therefore handed out once, in the order of its writer, or lies in
//! a loss that was told.

use std::collections::BTreeMap;
use std::collections::hash_map::{Entry as MapEntry, HashMap};
use std::time::Duration;

use backplane_core::LossReason;
use tokio::time::Instant;

use super::gaps::{Gaps, Range};
use super::position::{Floor, Mark, ROWLESS};
use crate::store::{Bounds, Entry, WriterId};

/// How far before its first row a writer that is new to us is asked for rows that we passed by unseen.
const LOOK_BACK: i64 = 512;
/// Most rows of one read of gaps or of a writer.
pub(super) const PAGE: u32 = 512;
/// Most writers that are known at a time. Beyond it those that were not heard for longest are forgotten.
const MOST_WRITERS: usize = 65_536;
/// First pause before a hole that was not filled is read again, doubling up to the second.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// What to read, besides what is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Epoch and both ends: the row by which we know the log is not where it was. Answered by [`Cursor::judge`].
    Bounds,
    /// Ids that were missing. Answered by [`Cursor::reread`].
    Ids(Range),
    /// Rows of one writer by its numbers. Answered by [`Cursor::read_writer`].
    Writer { writer: WriterId, first: i64, last: i64 },
}

/// What was found, in the order of delivery.
#[derive(Debug)]
pub(super) enum Found {
    /// A row, and the floor of the link once it is handled.
    Row(Entry, Floor),
    /// Rows of any topic were lost here.
    Lost(LossReason),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Cursor {
    epoch: [u8; 16],
    /// The newest row that was read, or the place where we began.
    last: Mark,
    gaps: Gaps,
    writers: HashMap<WriterId, Track>,
    /// Writers with rows that wait for earlier ones.
    waiting: Vec<WriterId>,
    /// Whether nobody may overtake a row that waits.
    total: bool,
    /// Waiting rows, each with the row before it or before its gap: no position may pass them.
    held: BTreeMap<i64, Mark>,
    held_bytes: usize,
    /// What was read without the row by which we know the log.
    doubt: Option<Vec<Entry>>,
    found: Vec<Found>,
    /// Of a hole.
    deadline: Duration,
    memory: Duration,
    swept: Option<Instant>,
    looked: Option<Instant>,
}

/// One writer as far as we know it.
#[derive(Debug)]
struct Track {
    /// Number of the row that comes next; `None`: it was met amid gaps that may hide earlier ones.
    next: Option<i64>,
    heard: Instant,
    hole: Option<Box<Hole>>,
}

/// Rows that wait for earlier ones.
#[derive(Debug)]
struct Hole {
    /// By number.
    rows: BTreeMap<i64, Entry>,
    since: Instant,
    due: Instant,
    pause: Duration,
}

impl Cursor {
    /// Behind the row or place `start`, in the log of `epoch`. Gaps and holes are given up after `deadline`; what is
    /// known about writers and given up gaps is kept for `memory`, for as long as rows are kept at least.
    pub(super) fn new(epoch: [u8; 16], start: Mark, deadline: Duration, memory: Duration) -> Self {
        Self {
            epoch,
            last: start,
            gaps: Gaps::new(deadline, memory),
            writers: HashMap::new(),
            waiting: Vec::new(),
            total: false,
            held: BTreeMap::new(),
            held_bytes: 0,
            doubt: None,
            found: Vec::new(),
            deadline,
            memory,
            swept: None,
            looked: None,
        }
    }

    /// Hands out rows in the order of their ids when `total`, whoever wrote them: where writers take turns, that is the order
    /// of all nodes. One that did not know a writer yet, and asks for its earlier rows, is not to differ.
    pub(super) fn in_total_order(mut self, total: bool) -> Self {
        self.total = total;
        self
    }

    /// Whether what is new must wait for what was asked: it would not be taken.
    pub(super) fn is_blocked(&self) -> bool {
        self.total && !self.waiting.is_empty()
    }

    /// The id from which to read what is new: the row that was read last, by which we know that it is still the same log.
    pub(super) fn look_from(&self) -> i64 {
        if self.last.seq == ROWLESS { self.last.id + 1 } else { self.last.id }
    }

    /// Whether the first row of what is read there must be a known one.
    pub(super) fn is_anchored(&self) -> bool {
        self.last.seq != ROWLESS
    }

    /// Bytes of frames that wait for earlier rows.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Everything that was found since the last call.
    pub(super) fn take_found(&mut self, into: &mut Vec<Found>) {
        into.append(&mut self.found);
    }

    /// What is to be read by now.
    pub(super) fn ask(&mut self, now: Instant) -> Option<Ask> {
        if self.doubt.is_some() {
            return Some(Ask::Bounds);
        }
        self.gaps.forget(now);
        self.sweep(now);
        let hole = self.waiting.iter().find_map(|writer| {
            let track = self.writers.get(writer)?;
            let hole = track.hole.as_ref().filter(|hole| hole.due <= now)?;
            let (lowest, _) = hole.rows.first_key_value()?;
            let first = track.next.unwrap_or_else(|| (lowest - LOOK_BACK).max(1));
            Some(Ask::Writer { writer: *writer, first, last: lowest - 1 })
        });
        hole.or_else(|| self.gaps.due(now).map(Ask::Ids))
    }

    /// When [`ask`](Self::ask) has something to say at the latest.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let holes =
            self.waiting.iter().filter_map(|writer| Some(self.writers.get(writer)?.hole.as_ref()?.due));
        holes.chain(self.gaps.next_due()).min()
    }

    /// Takes what was read from [`look_from`](Self::look_from) on. Returns how many rows were new.
    pub(super) fn looked(&mut self, entries: Vec<Entry>, now: Instant) -> usize {
        let looked_before = self.looked.replace(now);
        if !self.is_anchored() {
            // No row tells whether the keeper was here meanwhile; but it spares what is young.
            let skips = entries.first().is_some_and(|first| first.id > self.last.id + 1);
            if skips && looked_before.is_some_and(|before| now.duration_since(before) >= self.memory) {
                self.found.push(Found::Lost(LossReason::Retention));
            }
            return self.pass(entries, now);
        }
        if entries.first().is_some_and(|first| Mark::of(first) == self.last) {
            return self.pass(entries.into_iter().skip(1), now);
        }
        self.doubt = Some(entries);
        0
    }

    /// The log as of now, asked for because our row was not where it was. Returns whether its numbers may have
    /// gone back.
    pub(super) fn judge(&mut self, bounds: &Bounds, now: Instant) -> bool {
        let Some(entries) = self.doubt.take() else { return false };
        let is_behind = bounds.epoch == self.epoch
            && bounds.newest.is_some_and(|newest| newest.id >= self.last.id)
            && entries.first().is_none_or(|first| first.id > self.last.id);
        if !is_behind {
            let start = bounds.newest.unwrap_or(Mark::place(0));
            tracing::warn!(
                was = self.last.id,
                now = start.id,
                "the log started anew; continuing at its newest row"
            );
            self.epoch = bounds.epoch;
            self.restart(start, LossReason::Reset, now);
            return true;
        }
        // Without a row, what follows came after the read: the next one decides.
        let Some(first) = entries.first() else { return false };
        let start = Mark::place(first.id - 1);
        tracing::warn!(
            was = self.last.id,
            now = first.id,
            "the log no longer holds the row that was read last"
        );
        // Rows older than ours are kept, and ours is gone: that was not the keeper.
        let vanished = bounds.oldest.is_some_and(|oldest| oldest < self.last.id);
        self.restart(start, if vanished { LossReason::Reset } else { LossReason::Retention }, now);
        self.pass(entries, now);
        vanished
    }

    /// Takes what was read again of `range`; `full`: there may be more than was returned.
    pub(super) fn reread(&mut self, range: Range, entries: Vec<Entry>, full: bool, now: Instant) {
        let end = if full { entries.last().map(Mark::of) } else { None };
        for entry in entries {
            if self.gaps.is_open(entry.id) {
                self.meet(entry, None, now);
            }
        }
        self.gaps.reread(range.first, range.last, end, now);
    }

    /// Takes the rows of a writer with numbers from `first` to before those that wait.
    pub(super) fn read_writer(&mut self, writer: WriterId, first: i64, entries: Vec<Entry>, now: Instant) {
        let Some(track) = self.writers.get_mut(&writer) else { return };
        let Some(hole) = &mut track.hole else { return };
        let (mut more, was_known) = (false, track.next.is_some());
        match track.next {
            Some(_) => {
                more = !entries.is_empty();
                for entry in entries {
                    self.held_bytes += size(&entry);
                    self.held.extend(self.gaps.before(entry.id).map(|before| (entry.id, before)));
                    hole.rows.insert(entry.seq, entry);
                }
            }
            None => {
                // Only rows that were passed by unseen are ours: what is older lies before our beginning, and the rest
                // was handed out before the writer was forgotten.
                for entry in entries {
                    if self.gaps.hides(entry.id) {
                        more |= entry.seq == first && first > 1;
                        self.held_bytes += size(&entry);
                        self.held.extend(self.gaps.before(entry.id).map(|before| (entry.id, before)));
                        hole.rows.insert(entry.seq, entry);
                    }
                }
                if !more {
                    track.next = hole.rows.first_key_value().map(|(lowest, _)| *lowest);
                }
            }
        }
        if more {
            hole.due = now;
        } else if was_known && now.duration_since(hole.since) >= self.deadline {
            let missing = track.next;
            track.next = hole.rows.first_key_value().map(|(lowest, _)| *lowest);
            tracing::warn!(?missing, until = ?track.next, "rows of a writer were committed and are gone");
            self.found.push(Found::Lost(LossReason::Hole));
        } else {
            hole.due = (now + hole.pause).min(hole.since + self.deadline);
            hole.pause = (hole.pause * 2).min(PAUSE_MAX);
        }
        self.release(writer, now);
    }

    /// New rows, ascending. Where they must wait they are left, and read again.
    fn pass(&mut self, entries: impl IntoIterator<Item = Entry>, now: Instant) -> usize {
        let mut passed = 0;
        for entry in entries {
            if self.is_blocked() {
                break;
            }
            let mark = Mark::of(&entry);
            if mark.id <= self.last.id {
                debug_assert!(false, "rows were not read in the order of their ids");
                continue;
            }
            if mark.id > self.last.id + 1 {
                self.gaps.add(self.last.id + 1, mark.id - 1, self.last, now);
            }
            let before = std::mem::replace(&mut self.last, mark);
            self.meet(entry, Some(before), now);
            passed += 1;
        }
        passed
    }

    /// One row that was not seen before or lies in a gap. `before` is the row before it, unless it lies in a gap.
    fn meet(&mut self, entry: Entry, before: Option<Mark>, now: Instant) {
        let writer = entry.writer;
        let track = match self.writers.entry(writer) {
            MapEntry::Occupied(track) => track.into_mut(),
            MapEntry::Vacant(none) => {
                let is_first = entry.seq == 1 || !self.gaps.may_hide_below(entry.id);
                none.insert(Track { next: is_first.then_some(entry.seq), heard: now, hole: None })
            }
        };
        track.heard = now;
        match track.next {
            Some(next) if entry.seq == next => {
                track.next = Some(next + 1);
                let waited_for = track.hole.is_some();
                self.hand_out(entry);
                if waited_for {
                    self.release(writer, now);
                }
            }
            // Seen before, or given up.
            Some(next) if entry.seq < next => self.gaps.fill(Mark::of(&entry)),
            _ => {
                let hole = track.hole.get_or_insert_with(|| {
                    self.waiting.push(writer);
                    let rows = BTreeMap::new();
                    Box::new(Hole { rows, since: now, due: now, pause: PAUSE_MIN })
                });
                // A gap may be given up while the row waits.
                if let Some(before) = before.or_else(|| self.gaps.before(entry.id)) {
                    self.held.insert(entry.id, before);
                }
                let (bytes, seq) = (size(&entry), entry.seq);
                if let Some(same) = hole.rows.insert(seq, entry) {
                    self.held_bytes -= size(&same);
                }
                self.held_bytes += bytes;
                if seq == 1 {
                    track.next = Some(1);
                    self.release(writer, now);
                }
            }
        }
    }

    fn hand_out(&mut self, entry: Entry) {
        let mark = Mark::of(&entry);
        if mark != self.last {
            self.gaps.fill(mark);
        }
        let floor = Floor::new(&self.epoch, self.floor());
        self.found.push(Found::Row(entry, floor));
    }

    /// The last row up to which everything was handed out.
    fn floor(&self) -> Mark {
        let held = self.held.first_key_value().map(|(_, before)| *before);
        let blocked = match (self.gaps.floor(), held) {
            (Some(gap), Some(held)) => Some(if gap.id < held.id { gap } else { held }),
            (gap, held) => gap.or(held),
        };
        blocked.unwrap_or(self.last)
    }

    /// Hands out the waiting rows of a writer up to its next hole, which has a time of its own.
    fn release(&mut self, writer: WriterId, now: Instant) {
        let mut progress = false;
        while let Some(track) = self.writers.get_mut(&writer)
            && let Some(next) = track.next
            && let Some(hole) = &mut track.hole
        {
            match hole.rows.first_entry() {
                Some(row) if *row.key() <= next => {
                    let entry = row.remove();
                    self.held.remove(&entry.id);
                    self.held_bytes -= size(&entry);
                    if entry.seq == next {
                        progress = true;
                        track.next = Some(next + 1);
                        self.hand_out(entry);
                    }
                }
                Some(_) => {
                    if progress {
                        (hole.since, hole.due, hole.pause) = (now, now, PAUSE_MIN);
                    }
                    return;
                }
                None => {
                    track.hole = None;
                    self.waiting.retain(|waiting| *waiting != writer);
                }
            }
        }
    }

    /// Continues behind `start`, after a loss of anything before it.
    fn restart(&mut self, start: Mark, reason: LossReason, now: Instant) {
        self.last = start;
        self.gaps.clear();
        self.held.clear();
        self.held_bytes = 0;
        self.found.push(Found::Lost(reason));
        // What waits was read, so it is delivered; nothing is left that it could wait for. Rows are missing before it and
        // behind it.
        let waiting = std::mem::take(&mut self.waiting);
        let is_between = !waiting.is_empty();
        for writer in waiting {
            let Some(hole) = self.writers.get_mut(&writer).and_then(|track| track.hole.take()) else {
                continue;
            };
            for entry in hole.rows.into_values() {
                self.hand_out(entry);
            }
        }
        if is_between {
            self.found.push(Found::Lost(reason));
        }
        self.writers.clear();
        self.swept = Some(now);
    }

    /// Forgets writers that were not heard for long; the gaps still tell whether rows of them were passed by.
    fn sweep(&mut self, now: Instant) {
        let age = match self.swept {
            Some(swept) if now.duration_since(swept) < self.memory && self.writers.len() < MOST_WRITERS => {
                return;
            }
            _ => self.memory,
        };
        self.swept = Some(now);
        self.writers.retain(|_, track| track.hole.is_some() || now.duration_since(track.heard) <= age);
        if self.writers.len() >= MOST_WRITERS {
            let mut heard: Vec<Instant> = self.writers.values().map(|track| track.heard).collect();
            let middle = heard.len() / 2;
            let (_, median, _) = heard.select_nth_unstable(middle);
            let median = *median;
            self.writers.retain(|_, track| track.hole.is_some() || track.heard > median);
        }
    }
}

fn size(entry: &Entry) -> usize {
    size_of::<Entry>() + entry.content.as_ref().map_or(0, |content| content.frames.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn cursor(start: Mark) -> Cursor {
        Cursor::new([1; 16], start, 10 * SECOND, 60 * SECOND)
    }

    fn entry(id: i64, writer: u8, seq: i64) -> Entry {
        Entry { id, writer: WriterId([writer; 16]), seq, key: 0, content: None }
    }

    /// Numbers of the rows that were handed out; a loss is 0.
    fn found(cursor: &mut Cursor) -> Vec<i64> {
        let mut found = Vec::new();
        cursor.take_found(&mut found);
        let number = |found: &Found| match found {
            Found::Row(entry, _) => entry.seq,
            Found::Lost(_) => 0,
        };
        found.iter().map(number).collect()
    }

    #[test]
    fn an_empty_log_that_skips_ids_is_no_loss_unless_nobody_looked_for_long() {
        for (slept, expected) in [(59, vec![5]), (60, vec![0, 5])] {
            let (mut cursor, now) = (cursor(Mark::place(0)), Instant::now());
            cursor.looked(vec![], now);
            cursor.looked(vec![entry(9, 1, 5)], now + slept * SECOND);
            // Ids are missing before it, so it is asked whether the writer has earlier rows there.
            let ask = cursor.ask(now + slept * SECOND).expect("rows that were passed by");
            assert_eq!(ask, Ask::Writer { writer: WriterId([1; 16]), first: 1, last: 4 });
            cursor.read_writer(WriterId([1; 16]), 1, vec![], now + slept * SECOND);
            let mut found = found(&mut cursor);
            found.sort_unstable();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn rows_of_a_writer_wait_for_earlier_ones_and_other_writers_do_not() {
        let (mut cursor, now) = (cursor(Mark::place(0)), Instant::now());
        cursor.looked(vec![entry(1, 1, 1), entry(2, 2, 1)], now);
        cursor.looked(vec![entry(2, 2, 1), entry(5, 1, 3), entry(6, 2, 2)], now);
        assert_eq!(found(&mut cursor), [1, 1, 2]);
        assert_eq!(cursor.ask(now), Some(Ask::Writer { writer: WriterId([1; 16]), first: 2, last: 2 }));
        cursor.read_writer(WriterId([1; 16]), 2, vec![entry(3, 1, 2)], now);
        assert_eq!(found(&mut cursor), [2, 3]);
        assert_eq!((cursor.held_bytes(), cursor.ask(now)), (0, None));
    }

    #[test]
    fn in_total_order_nobody_overtakes_the_row_of_a_writer_that_is_new_to_one_node() {
        let now = Instant::now();
        let rows = vec![entry(2, 1, 1), entry(4, 2, 7), entry(5, 1, 2), entry(6, 2, 8)];
        // One that knows the second writer.
        let mut knows = cursor(Mark::place(0)).in_total_order(true);
        knows.looked(vec![entry(1, 2, 6)], now);
        knows.looked([vec![entry(1, 2, 6)], rows.clone()].concat(), now);
        assert_eq!(found(&mut knows), [6, 1, 7, 2, 8]);
        // One that does not, and number 3 is missing, in which an earlier row of that writer could be.
        let mut new = cursor(Mark::place(1)).in_total_order(true);
        new.looked(rows.clone(), now);
        assert!(new.is_blocked());
        assert_eq!(new.ask(now), Some(Ask::Writer { writer: WriterId([2; 16]), first: 1, last: 6 }));
        new.read_writer(WriterId([2; 16]), 1, vec![entry(1, 2, 6)], now);
        assert!(!new.is_blocked());
        assert_eq!(new.look_from(), 4);
        new.looked(rows[1..].to_vec(), now);
        assert_eq!(found(&mut new), [1, 7, 2, 8]);
    }

    #[test]
    fn a_row_that_was_given_up_too_early_comes_with_the_next_of_its_writer() {
        let (mut cursor, mut now) = (cursor(Mark::place(0)), Instant::now());
        cursor.looked(vec![entry(1, 1, 1), entry(3, 2, 1)], now);
        while let Some(due) = cursor.next_due() {
            now = now.max(due);
            let Some(Ask::Ids(range)) = cursor.ask(now) else { panic!("not a gap") };
            cursor.reread(range, vec![], false, now);
        }
        cursor.looked(vec![entry(3, 2, 1), entry(4, 1, 3)], now);
        assert_eq!(cursor.ask(now), Some(Ask::Writer { writer: WriterId([1; 16]), first: 2, last: 2 }));
        cursor.read_writer(WriterId([1; 16]), 2, vec![entry(2, 1, 2)], now);
        assert_eq!(found(&mut cursor), [1, 1, 2, 3]);
    }

    #[test]
    fn no_position_passes_a_row_that_waits_in_a_gap_that_was_given_up() {
        let (mut cursor, mut now) = (cursor(Mark::place(0)), Instant::now());
        cursor.looked(vec![entry(1, 1, 1), entry(4, 2, 1)], now);
        while let Some(due) = cursor.next_due() {
            now = now.max(due);
            let Some(Ask::Ids(range)) = cursor.ask(now) else { panic!("not a gap") };
            cursor.reread(range, vec![], false, now);
        }
        cursor.looked(vec![entry(4, 2, 1), entry(5, 1, 4)], now);
        cursor.ask(now);
        // The third has come, and waits for the second.
        cursor.read_writer(WriterId([1; 16]), 2, vec![entry(3, 1, 3)], now);
        cursor.looked(vec![entry(5, 1, 4), entry(6, 2, 2)], now);
        let mut found = Vec::new();
        cursor.take_found(&mut found);
        let floor = found.iter().rev().find_map(|found| match found {
            Found::Row(entry, floor) if entry.id == 6 => Some(*floor),
            _ => None,
        });
        assert_eq!(floor.map(|floor| floor.id), Some(1));
    }

    #[test]
    fn rows_amid_a_crowd_of_gaps_are_handed_out_once() {
        let (mut cursor, now) = (cursor(Mark::place(0)), Instant::now());
        // Between the rows of one writer lie those of another, which are committed late.
        let early: Vec<Entry> = (1..=2_000).map(|seq| entry(2 * seq, 1, seq)).collect();
        let late: Vec<Entry> = (1..=2_000).map(|seq| entry(2 * seq - 1, 2, seq)).collect();
        cursor.looked(early.clone(), now);
        assert!(cursor.gaps.len() < 600);
        assert_eq!(found(&mut cursor), (1..=2_000).collect::<Vec<i64>>());
        let mut all = [early, late].concat();
        all.sort_by_key(|entry| entry.id);
        let later = now + SECOND;
        while let Some(Ask::Ids(range)) = cursor.ask(later) {
            let rows = all.iter().filter(|entry| (range.first..=range.last).contains(&entry.id));
            let page: Vec<Entry> = rows.take(PAGE as usize).cloned().collect();
            let full = page.len() == PAGE as usize;
            cursor.reread(range, page, full, later);
        }
        let handed_out = found(&mut cursor);
        assert_eq!(handed_out, (1..=2_000).collect::<Vec<i64>>());
    }

    #[test]
    fn a_forgotten_writer_is_known_again_without_repeats() {
        let (mut cursor, now) = (cursor(Mark::place(0)), Instant::now());
        cursor.looked(vec![entry(1, 1, 1), entry(2, 1, 2), entry(4, 2, 1)], now);
        assert_eq!(cursor.ask(now), None);
        let later = now + 61 * SECOND;
        let ask = cursor.ask(later);
        assert!(cursor.writers.is_empty() && matches!(ask, Some(Ask::Ids(_))));
        cursor.looked(vec![entry(4, 2, 1), entry(5, 1, 3)], later);
        let Some(Ask::Writer { first: 1, last: 2, .. }) = cursor.ask(later) else { panic!("not asked") };
        cursor.read_writer(WriterId([1; 16]), 1, vec![entry(1, 1, 1), entry(2, 1, 2)], later);
        assert_eq!(found(&mut cursor), [1, 2, 1, 3]);
    }

    #[test]
    fn writers_are_bounded() {
        let (mut cursor, now) = (cursor(Mark::place(0)), Instant::now());
        for id in 1..=200_000_u32 {
            let mut row = entry(i64::from(id), 0, 1);
            row.writer.0[..4].copy_from_slice(&id.to_be_bytes());
            let now = now + Duration::from_micros(10) * id;
            cursor.pass([row], now);
            cursor.ask(now);
        }
        assert!(cursor.writers.len() <= MOST_WRITERS && cursor.writers.len() > MOST_WRITERS / 3);
    }
}
