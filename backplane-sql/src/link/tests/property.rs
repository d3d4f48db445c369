//! Whatever happens in whatever order: each committed row is handed out once, in the order of its writer, or a loss was
//! told.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use backplane_core::LossReason;
use proptest::prelude::*;
use tokio::time::Instant;

use super::super::cursor::{Ask, Cursor, Found, PAGE};
use super::super::position::{Floor, Mark};
use crate::store::{Bounds, Entry, WriterId};

const EPOCH: [u8; 16] = [7; 16];
const DEADLINE: Duration = Duration::from_secs(10);
const MEMORY: Duration = Duration::from_secs(60);
/// Rows are committed within this time: less than the deadline of a gap.
const SLOWEST: Duration = Duration::from_secs(5);
const WRITERS: usize = 4;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A writer begins a statement of so many rows.
    Begin(usize, i64),
    Commit(usize),
    /// Nothing was written; the same rows are appended again later.
    Rollback(usize),
    /// A writer comes back as another attempt.
    Reopen(usize),
    Look(usize),
    /// Does one thing that the cursor asks for.
    Answer,
    Wait(u64),
    /// Deletes so many of the oldest rows.
    Trim(usize),
    /// A new link continues behind one of the last deliveries.
    Resume(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (0..WRITERS, 1..4_i64).prop_map(|(writer, rows)| Step::Begin(writer, rows)),
        5 => (0..WRITERS).prop_map(Step::Commit),
        1 => (0..WRITERS).prop_map(Step::Rollback),
        1 => (0..WRITERS).prop_map(Step::Reopen),
        5 => (1..6_usize).prop_map(Step::Look),
        4 => Just(Step::Answer),
        2 => (0..3_000_u64).prop_map(Step::Wait),
        1 => (1..10_usize).prop_map(Step::Trim),
        1 => (0..8_usize).prop_map(Step::Resume),
    ];
    prop::collection::vec(step, 1..160)
}

#[derive(Debug)]
struct Author {
    id: WriterId,
    seq: i64,
    /// Ids given out, numbers from `seq + 1` on, and since when.
    pending: Option<(Vec<i64>, Instant)>,
}

/// The database and one reader of it.
struct World {
    now: Instant,
    rows: BTreeMap<i64, (WriterId, i64)>,
    /// Every row that was ever committed.
    history: BTreeMap<i64, (WriterId, i64)>,
    next_id: i64,
    authors: Vec<Author>,
    attempts: u8,
    cursor: Cursor,
    /// Handed out on this link, in order, with the floor.
    link: Vec<((WriterId, i64), Floor)>,
    on_link: HashSet<(WriterId, i64)>,
    order: HashMap<WriterId, i64>,
    /// Handed out on earlier links and handled.
    handled: HashSet<(WriterId, i64)>,
    /// A loss was told that covers rows up to this id.
    excused: i64,
    goes_on: i64,
    /// The newest id that a look of this link returned, believed or still in doubt.
    read_to: i64,
    /// Rows that were deleted before a loss was told.
    told: HashSet<i64>,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let mut world = Self {
            now,
            rows: BTreeMap::new(),
            history: BTreeMap::new(),
            next_id: 1,
            authors: Vec::new(),
            attempts: 0,
            cursor: Cursor::new(EPOCH, Mark::place(0), DEADLINE, MEMORY),
            link: Vec::new(),
            on_link: HashSet::new(),
            order: HashMap::new(),
            handled: HashSet::new(),
            excused: 0,
            goes_on: 0,
            read_to: 0,
            told: HashSet::new(),
        };
        for _ in 0..WRITERS {
            let id = world.writer();
            world.authors.push(Author { id, seq: 0, pending: None });
        }
        world
    }

    fn writer(&mut self) -> WriterId {
        self.attempts += 1;
        WriterId([self.attempts; 16])
    }

    fn begin(&mut self, author: usize, rows: i64) {
        let (now, author) = (self.now, &mut self.authors[author]);
        if author.pending.is_none() {
            author.pending = Some(((self.next_id..self.next_id + rows).collect(), now));
            self.next_id += rows;
        }
    }

    fn commit(&mut self, author: usize) {
        let author = &mut self.authors[author];
        for id in author.pending.take().map_or(Vec::new(), |(ids, _)| ids) {
            author.seq += 1;
            self.rows.insert(id, (author.id, author.seq));
            self.history.insert(id, (author.id, author.seq));
        }
    }

    fn entries(&self, rows: impl Iterator<Item = (i64, (WriterId, i64))>) -> Vec<Entry> {
        rows.map(|(id, (writer, seq))| Entry { id, writer, seq, key: 0, content: None }).collect()
    }

    fn read(&self, first: i64, last: i64, limit: usize) -> Vec<Entry> {
        self.entries(self.rows.range(first..=last).take(limit).map(|(id, row)| (*id, *row)))
    }

    fn look(&mut self, limit: usize) -> usize {
        let entries = self.read(self.cursor.look_from(), i64::MAX, limit + 1);
        if let Some(first) = entries.first() {
            // Should our row be gone, this is where it goes on.
            self.goes_on = first.id - 1;
        }
        self.read_to = entries.last().map_or(self.read_to, |last| last.id);
        let rows = self.cursor.looked(entries, self.now);
        self.take();
        rows
    }

    fn answer(&mut self) -> bool {
        let Some(ask) = self.cursor.ask(self.now) else {
            self.take();
            return false;
        };
        match ask {
            Ask::Bounds => {
                let newest = self.rows.last_key_value();
                let newest = newest.map(|(id, (writer, seq))| Mark { id: *id, writer: *writer, seq: *seq });
                let oldest = self.rows.keys().next().copied();
                self.cursor.judge(&Bounds { epoch: EPOCH, oldest, newest }, self.now);
            }
            Ask::Ids(range) => {
                let entries = self.read(range.first, range.last, PAGE as usize);
                let full = entries.len() == PAGE as usize;
                self.cursor.reread(range, entries, full, self.now);
            }
            Ask::Writer { writer, first, last } => {
                assert!(first <= last, "{ask:?}");
                let theirs = |row: &(WriterId, i64)| row.0 == writer && (first..=last).contains(&row.1);
                let rows = self.rows.iter().filter(|(_, row)| theirs(row)).take(PAGE as usize);
                let entries = self.entries(rows.map(|(id, row)| (*id, *row)));
                self.cursor.read_writer(writer, first, entries, self.now);
            }
        }
        self.take();
        true
    }

    fn take(&mut self) {
        let mut found = Vec::new();
        self.cursor.take_found(&mut found);
        for found in found {
            match found {
                Found::Lost(reason) => {
                    assert_ne!(reason, LossReason::Hole);
                    self.excused = self.goes_on;
                    self.told.extend(self.history.keys().filter(|id| !self.rows.contains_key(id)));
                    self.order.clear();
                }
                Found::Row(entry, floor) => {
                    let row = (entry.writer, entry.seq);
                    assert!(self.on_link.insert(row), "{entry:?} was handed out twice");
                    let expected = self.order.insert(entry.writer, entry.seq).map(|last| last + 1);
                    assert!(expected.is_none_or(|expected| expected == entry.seq), "{entry:?} out of order");
                    self.link.push((row, floor));
                }
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Begin(author, rows) => self.begin(author, rows),
            Step::Commit(author) => self.commit(author),
            Step::Rollback(author) => self.authors[author].pending = None,
            Step::Reopen(author) => {
                let id = self.writer();
                // Its last statement may still be committed, or not.
                self.commit(author);
                self.authors[author] = Author { id, seq: 0, pending: None };
            }
            Step::Look(limit) => {
                self.look(limit);
            }
            Step::Answer => {
                self.answer();
            }
            Step::Wait(millis) => {
                self.now += Duration::from_millis(millis);
                for author in 0..WRITERS {
                    let late = |(_, since): &(Vec<i64>, Instant)| self.now - *since > SLOWEST;
                    if self.authors[author].pending.as_ref().is_some_and(late) {
                        self.commit(author);
                    }
                }
            }
            Step::Trim(rows) => self.trim(rows),
            Step::Resume(back) => self.resume(back),
        }
    }

    /// Late rows are committed, and re-read, long before they are old enough to be deleted.
    fn trim(&mut self, rows: usize) {
        // So is the first row of an empty log.
        if !self.cursor.is_anchored() {
            return;
        }
        let last = self.cursor.look_from().max(self.read_to);
        let unread = |row: &(WriterId, i64)| !self.on_link.contains(row) && !self.handled.contains(row);
        let pending =
            self.authors.iter().filter_map(|author| Some(*author.pending.as_ref()?.0.first()?)).min();
        let mut doomed: Vec<i64> = self
            .rows
            .range(..pending.unwrap_or(i64::MAX))
            .take(rows)
            .take_while(|(id, row)| **id > last || **id <= self.excused || !unread(row))
            .map(|(id, _)| *id)
            .collect();
        // The newest of the old ones stays.
        doomed.pop();
        for id in doomed {
            self.rows.remove(&id);
        }
    }

    fn resume(&mut self, back: usize) {
        let Some(place) = self.link.len().checked_sub(back + 1) else { return };
        let floor = Floor::of(&self.link[place].1.to_position()).expect("our own position");
        let row =
            self.rows.get(&floor.id).map(|(writer, seq)| Mark { id: floor.id, writer: *writer, seq: *seq });
        let start = match row.filter(|row| floor.stands_on(*row)) {
            Some(row) => row,
            None if floor.is_beginning() && self.rows.keys().next().is_none_or(|oldest| *oldest == 1) => {
                Mark::place(0)
            }
            None => {
                let newest = self.rows.last_key_value();
                let newest = newest.map(|(id, (writer, seq))| Mark { id: *id, writer: *writer, seq: *seq });
                // Told; what is given out from now on is not part of it.
                self.excused = self.excused.max(self.next_id - 1);
                newest.unwrap_or(Mark::place(0))
            }
        };
        self.handled.extend(self.link.drain(..=place).map(|(row, _)| row));
        self.link.clear();
        self.on_link.clear();
        self.order.clear();
        self.read_to = 0;
        self.cursor = Cursor::new(EPOCH, start, DEADLINE, MEMORY);
    }

    /// Lets everything come to rest, and looks whether something is missing.
    fn settle(&mut self) {
        for author in 0..WRITERS {
            self.commit(author);
        }
        // What was found last is given up after one of them, each gap at a time of its own.
        let rest = self.now + 2 * DEADLINE;
        while self.now < rest {
            let mut idle = true;
            while self.look(3) > 0 || self.answer() {
                idle = false;
            }
            if idle && self.cursor.next_due().is_none() {
                break;
            }
            self.now = self.cursor.next_due().unwrap_or(self.now).max(self.now + Duration::from_millis(1));
        }
        assert_eq!(self.cursor.next_due(), None, "it never comes to rest");
        assert_eq!(self.cursor.held_bytes(), 0);
        for (id, row) in &self.history {
            let there = self.on_link.contains(row) || self.handled.contains(row);
            assert!(
                there || *id <= self.excused || self.told.contains(id),
                "{id} {row:?} is missing, and no loss was told"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn every_committed_row_is_handed_out_once_and_in_the_order_of_its_writer(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.settle();
    }
}
