//! Ids that are missing between rows that were read: perhaps not committed yet, perhaps rolled back for ever.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::position::Mark;

/// First pause before a gap is read again, doubling up to the second.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// From this many gaps on, a new one joins its neighbour when that opened at nearly the same time.
const CROWD: usize = 512;
/// How many times that may happen, in effect, within the deadline of a gap: with `CROWD` the bound of all gaps.
const AGES: u32 = 64;
/// Gaps that were given up and are remembered: only they can hide rows of a writer that is met for the first time.
const REMEMBERED: usize = 1_024;
/// Gaps that lie together within so many ids are read by one statement.
pub(super) const SPAN: i64 = 512;

/// See the module.
#[derive(Debug)]
pub(super) struct Gaps {
    open: BTreeMap<i64, Gap>,
    /// Ascending by when.
    given_up: VecDeque<GivenUp>,
    deadline: Duration,
    memory: Duration,
}

#[derive(Debug)]
struct Gap {
    last: i64,
    /// The row before it.
    before: Mark,
    since: Instant,
    due: Instant,
    pause: Duration,
    /// Whether rows lie inside that were delivered: several gaps in one.
    coarse: bool,
}

/// A gap that nobody waits for any longer.
#[derive(Debug)]
struct GivenUp {
    first: i64,
    last: i64,
    /// The row before it.
    before: Mark,
    when: Instant,
}

impl GivenUp {
    fn holds(&self, id: i64) -> bool {
        (self.first..=self.last).contains(&id)
    }
}

/// Ids to read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: i64,
    pub(super) last: i64,
    /// Whether rows lie between that are known.
    pub(super) mixed: bool,
}

impl Gaps {
    /// A gap is given up after `deadline` and remembered for `memory` more.
    pub(super) fn new(deadline: Duration, memory: Duration) -> Self {
        Self { open: BTreeMap::new(), given_up: VecDeque::new(), deadline, memory }
    }

    /// The ids from `first` to `last` are missing behind the row `before`. They lie above all other gaps.
    pub(super) fn add(&mut self, first: i64, last: i64, before: Mark, now: Instant) {
        let crowded = self.open.len() >= CROWD;
        if crowded
            && let Some(mut neighbour) = self.open.last_entry()
            && now.duration_since(neighbour.get().since) < self.deadline / AGES
        {
            let neighbour = neighbour.get_mut();
            neighbour.last = last;
            neighbour.coarse = true;
            return;
        }
        let due = now + PAUSE_MIN;
        self.open.insert(first, Gap { last, before, since: now, due, pause: PAUSE_MIN, coarse: false });
    }

    fn holding(&self, id: i64) -> Option<(i64, &Gap)> {
        let (first, gap) = self.open.range(..=id).next_back()?;
        (gap.last >= id).then_some((*first, gap))
    }

    /// Whether `id` is still awaited.
    pub(super) fn is_open(&self, id: i64) -> bool {
        self.holding(id).is_some()
    }

    /// Whether a row of that id was passed by unseen.
    pub(super) fn hides(&self, id: i64) -> bool {
        self.is_open(id) || self.given_up.iter().any(|gap| gap.holds(id))
    }

    /// Whether any row below `id` was passed by unseen, so far as is known.
    pub(super) fn may_hide_below(&self, id: i64) -> bool {
        self.open.first_key_value().is_some_and(|(first, _)| *first < id)
            || self.given_up.iter().any(|gap| gap.first < id)
    }

    /// The row before the lowest gap.
    pub(super) fn floor(&self) -> Option<Mark> {
        self.open.first_key_value().map(|(_, gap)| gap.before)
    }

    /// The row before the gap in which `id` is awaited, or was until it was given up.
    pub(super) fn before(&self, id: i64) -> Option<Mark> {
        let open = self.holding(id).map(|(_, gap)| gap.before);
        open.or_else(|| Some(self.given_up.iter().find(|gap| gap.holds(id))?.before))
    }

    /// The row `mark` has come.
    pub(super) fn fill(&mut self, mark: Mark) {
        let Some((first, gap)) = self.holding(mark.id) else { return };
        if gap.coarse {
            return;
        }
        let Some(mut gap) = self.open.remove(&first) else { return };
        if mark.id < gap.last {
            let right = Gap { before: mark, ..gap };
            self.open.insert(mark.id + 1, right);
        }
        if mark.id > first {
            gap.last = mark.id - 1;
            self.open.insert(first, gap);
        }
    }

    /// Forgets what was given up long ago.
    pub(super) fn forget(&mut self, now: Instant) {
        while let Some(oldest) = self.given_up.front()
            && (now.duration_since(oldest.when) > self.memory || self.given_up.len() > REMEMBERED)
        {
            self.given_up.pop_front();
        }
    }

    /// The next ids that should be read again by now.
    pub(super) fn due(&self, now: Instant) -> Option<Range> {
        let mut due = self.open.iter().filter(|(_, gap)| gap.due <= now);
        let (first, gap) = due.next()?;
        let mut range = Range { first: *first, last: gap.last, mixed: gap.coarse };
        for (_, gap) in due {
            if gap.last - range.first >= SPAN {
                break;
            }
            range = Range { last: gap.last, mixed: true, ..range };
        }
        Some(range)
    }

    /// The ids from `first` to `last` were read again at `now`; `end` is the last row, when there may be more behind.
    pub(super) fn reread(&mut self, first: i64, last: i64, end: Option<Mark>, now: Instant) {
        let last = end.map_or(last, |end| end.id.min(last));
        if let Some(end) = end
            && let Some((start, _)) = self.holding(end.id)
            && let Some(gap) = self.open.get_mut(&start)
            && gap.last > end.id
        {
            // What follows is read next.
            let rest = Gap { before: if gap.coarse { gap.before } else { end }, ..*gap };
            gap.last = end.id;
            self.open.insert(end.id + 1, rest);
        }
        let mut given_up = Vec::new();
        for (first, gap) in self.open.range_mut(first..=last) {
            // Only what was looked for at the end of its time is given up: whoever reads may have rested meanwhile.
            if now.duration_since(gap.since) >= self.deadline {
                given_up.push(*first);
            } else {
                gap.pause = (gap.pause * 2).min(PAUSE_MAX);
                gap.due = (now + gap.pause).min(gap.since + self.deadline);
            }
        }
        for first in given_up {
            let Some(gap) = self.open.remove(&first) else { continue };
            tracing::trace!(
                first,
                last = gap.last,
                "a gap in the log was given up: most likely a rolled back insert"
            );
            self.given_up.push_back(GivenUp { first, last: gap.last, before: gap.before, when: now });
        }
    }

    /// When there is something to do at the latest.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.open.values().map(|gap| gap.due).min()
    }

    /// Starts anew.
    pub(super) fn clear(&mut self) {
        self.open.clear();
        self.given_up.clear();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::WriterId;

    fn mark(id: i64) -> Mark {
        Mark { id, writer: WriterId([1; 16]), seq: id }
    }

    fn gaps() -> Gaps {
        Gaps::new(Duration::from_secs(10), Duration::from_secs(60))
    }

    #[test]
    fn a_row_in_the_middle_splits_a_gap_and_the_floor_follows() {
        let (mut gaps, now) = (gaps(), Instant::now());
        gaps.add(41, 45, mark(40), now);
        gaps.fill(mark(43));
        assert_eq!((gaps.len(), gaps.floor()), (2, Some(mark(40))));
        gaps.fill(mark(41));
        gaps.fill(mark(42));
        assert_eq!((gaps.len(), gaps.floor()), (1, Some(mark(43))));
        gaps.fill(mark(45));
        gaps.fill(mark(44));
        assert_eq!((gaps.len(), gaps.floor()), (0, None));
    }

    #[test]
    fn gaps_that_lie_together_are_read_at_once_and_then_rest() {
        let (mut gaps, now) = (gaps(), Instant::now());
        gaps.add(5, 5, mark(4), now);
        gaps.add(8, 9, mark(7), now);
        gaps.add(9_000, 9_000, mark(8_999), now);
        assert_eq!(gaps.due(now), None);
        let then = now + PAUSE_MIN;
        assert_eq!(gaps.due(then), Some(Range { first: 5, last: 9, mixed: true }));
        gaps.reread(5, 9, None, then);
        assert_eq!(gaps.due(then), Some(Range { first: 9_000, last: 9_000, mixed: false }));
        gaps.reread(9_000, 9_000, None, then);
        assert_eq!(gaps.due(then), None);
        assert_eq!(gaps.next_due(), Some(then + 2 * PAUSE_MIN));
    }

    #[test]
    fn a_page_that_was_full_leaves_the_rest_due() {
        let (mut gaps, now) = (gaps(), Instant::now());
        gaps.add(1, 10_000, mark(0), now);
        let then = now + PAUSE_MIN;
        gaps.reread(1, 10_000, Some(mark(100)), then);
        assert_eq!(gaps.due(then), Some(Range { first: 101, last: 10_000, mixed: false }));
    }

    #[test]
    fn what_is_given_up_still_hides_rows_until_it_is_forgotten() {
        let (mut gaps, now) = (gaps(), Instant::now());
        gaps.add(41, 41, mark(40), now);
        gaps.forget(now + Duration::from_secs(10));
        assert!(gaps.is_open(41), "nobody looked");
        gaps.reread(41, 41, None, now + Duration::from_secs(10));
        gaps.forget(now + Duration::from_secs(10));
        assert!(gaps.floor().is_none() && gaps.hides(41) && gaps.may_hide_below(42) && !gaps.hides(42));
        gaps.forget(now + Duration::from_secs(71));
        assert!(!gaps.hides(41) && !gaps.may_hide_below(42));
    }

    #[test]
    fn any_number_of_gaps_stays_few_and_none_is_forgotten_early() {
        let (mut gaps, start) = (gaps(), Instant::now());
        for number in 0..200_000_i64 {
            let now = start + Duration::from_micros(90) * u32::try_from(number).unwrap();
            gaps.forget(now);
            while let Some(due) = gaps.due(now).filter(|_| number % 100 == 0) {
                gaps.reread(due.first, due.last, None, now);
            }
            gaps.add(2 * number + 1, 2 * number + 1, mark(2 * number), now);
            assert!(gaps.len() <= CROWD + AGES as usize + 2);
            // What opened within the last five seconds is still looked for.
            let young = (number - 50_000).max(0);
            assert!(gaps.is_open(2 * young + 1), "{number}");
        }
    }
}
