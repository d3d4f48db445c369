//! The task that reads: asks the cursor what to read, reads it, and hands on what is wanted.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backplane_core::{Delivery, LossReason, Result};
use futures::FutureExt as _;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::cursor::{Ask, Cursor, Found, PAGE};
use super::interest::Interest;
use super::pace::Pace;
use super::sender::Change;
use super::shared::{Ending, Phase, Shared, reached};
use super::within;
use crate::store::{Content, Doorbell, MOST_KEYS, Reader, Want};

/// Fewest and most rows of a look.
const ROWS_MIN: usize = 8;
const ROWS_MAX: usize = 1_024;
/// Rows of the first look: until something is known about the size of frames.
const ROWS: usize = 128;
/// From this many bytes on, the row by which we know the log is not read again with every look.
const HEAVY: usize = 16 << 10;

/// See the module.
pub(super) struct ReaderTask {
    pub(super) reader: Box<dyn Reader>,
    pub(super) doorbell: Option<Box<dyn Doorbell>>,
    pub(super) shared: Arc<Shared>,
    pub(super) changes: mpsc::Receiver<Change>,
    /// Whether `changes` still has a sender.
    pub(super) may_change: bool,
    /// Changes that wait for the next word of the database, in their order; no more than `changes` holds.
    pub(super) waiting: Vec<Change>,
    pub(super) cursor: Cursor,
    pub(super) interest: Interest,
    pub(super) pace: Pace,
    pub(super) patience: Duration,
    /// Most bytes that may wait for earlier rows, and about how many one look may bring.
    pub(super) bound: usize,
    pub(super) rows: Rows,
    /// Whether this bus has complained about its doorbell already.
    pub(super) warned: Arc<AtomicBool>,
    pub(super) found: Vec<Found>,
    pub(super) run: Vec<Delivery>,
    /// Bytes of the newest row's frame, where it was read.
    pub(super) anchor_bytes: usize,
}

/// How many rows the next look asks for: so many that they bring about the bytes that are bearable.
#[derive(Debug)]
pub(super) struct Rows(usize);

impl Default for Rows {
    fn default() -> Self {
        Self(ROWS)
    }
}

impl Rows {
    fn limit(&self) -> u32 {
        u32::try_from(self.0).unwrap_or(u32::MAX)
    }

    /// A look brought so many bytes; `full`: and as many rows as it asked for.
    fn learn(&mut self, bytes: usize, full: bool, bearable: usize) {
        if bytes > bearable {
            self.0 = (self.0 * bearable / bytes).max(ROWS_MIN);
        } else if full && bytes < bearable / 4 {
            self.0 = (self.0 * 2).min(ROWS_MAX);
        }
    }
}

impl ReaderTask {
    /// Runs until the link ends, and ends it when reading fails.
    pub(super) async fn run(mut self, mut watch: watch::Receiver<Phase>) {
        let shared = self.shared.clone();
        let ending = Ending(shared.clone());
        tokio::select! {
            biased;
            () = reached(&mut watch, Phase::Ended) => {}
            how = self.serve() => shared.end(how),
        }
        // `watch` goes last: then the connections are gone.
        drop(self);
        drop(ending);
        drop(watch);
    }

    async fn serve(&mut self) -> Result<()> {
        let shared = self.shared.clone();
        loop {
            while let Ok(change) = self.changes.try_recv() {
                self.change(change);
            }
            if !self.waiting.is_empty() {
                self.confirm().await?;
            }
            let room = shared.inbox.has_room();
            let now = Instant::now();
            if room {
                if let Some(ask) = self.cursor.ask(now) {
                    self.read(ask).await?;
                    self.hand_on().await?;
                    continue;
                }
                self.listen();
                if self.pace.next() <= Instant::now() && !self.must_wait() {
                    self.look().await?;
                    self.hand_on().await?;
                    continue;
                }
            }
            let look = if self.must_wait() { None } else { Some(self.pace.next()) };
            let due = self.cursor.next_due().into_iter().chain(look).min();
            let Self { changes, doorbell, .. } = self;
            let rang = async {
                match doorbell {
                    Some(doorbell) => doorbell.rang().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                change = changes.recv(), if self.may_change => match change {
                    Some(change) => self.change(change),
                    // Nobody can subscribe any more, but somebody still reads.
                    None => self.may_change = false,
                },
                () = sleep_until(due.unwrap_or(now)), if room && due.is_some() => {}
                () = shared.inbox.drained.notified(), if !room => {}
                rang = rang => self.heard(rang),
            }
        }
    }

    /// Whether nothing new may be read before what was asked is answered.
    fn must_wait(&self) -> bool {
        self.cursor.is_blocked() || self.cursor.held_bytes() >= self.bound
    }

    /// Hears what rang meanwhile: while rows keep coming nobody waits for it, and it is not deaf for that.
    fn listen(&mut self) {
        let rang = self.doorbell.as_mut().and_then(|doorbell| doorbell.rang().now_or_never());
        if let Some(rang) = rang {
            self.heard(rang);
        }
    }

    fn heard(&mut self, rang: Result<()>) {
        match rang {
            Ok(()) => self.pace.rang(Instant::now()),
            Err(error) => self.silence(&format!("it broke: {error}")),
        }
    }

    /// A subscription waits for the database, and what comes behind one waits for it.
    fn change(&mut self, change: Change) {
        if change.wanted || !self.waiting.is_empty() {
            self.waiting.push(change);
        } else {
            self.interest.remove(&change.topics);
            let _ = change.done.send(());
        }
    }

    /// Makes the changes that wait. The newest row that the database has now was published before; what is published from
    /// now on has a larger number, and no read with the old interest is under way.
    async fn confirm(&mut self) -> Result<()> {
        let (_, newest) = within(self.patience, "read", self.reader.newest()).await?;
        let after = newest.map_or(i64::MIN, |newest| newest.id);
        for Change { topics, wanted, done } in self.waiting.drain(..) {
            if wanted {
                self.interest.add(&topics, after);
            } else {
                self.interest.remove(&topics);
            }
            // Whoever dropped the future does not want to know.
            let _ = done.send(());
        }
        Ok(())
    }

    /// Polls from now on.
    fn silence(&mut self, why: &str) {
        self.doorbell = None;
        self.pace.silenced(Instant::now());
        if self.warned.swap(true, Ordering::Relaxed) {
            tracing::debug!(why, "the doorbell of the database is not used; polling");
        } else {
            tracing::warn!(
                why,
                "the doorbell of the database is not used; polling, which takes longer to notice rows"
            );
        }
    }

    /// Reads what is new.
    async fn look(&mut self) -> Result<()> {
        let first = self.cursor.look_from();
        let anchored = self.cursor.is_anchored();
        let limit = self.rows.limit().saturating_add(u32::from(anchored));
        let heavy = anchored && self.anchor_bytes >= HEAVY;
        if heavy {
            // The row by which we know the log, without its frame, and whether anything follows.
            let read = self.reader.read(first, i64::MAX, 2, Want::NoContent);
            let entries = within(self.patience, "read", read).await?;
            if entries.len() < 2 || entries[0].id != first {
                let rows = self.cursor.looked(entries, Instant::now());
                self.looked(rows, false);
                return Ok(());
            }
            let anchor = entries.into_iter().next();
            let read = self.reader.read(first + 1, i64::MAX, limit, self.interest.want());
            let rest = within(self.patience, "read", read).await?;
            return self.take(anchor.into_iter().chain(rest).collect(), limit as usize + 1);
        }
        let read = self.reader.read(first, i64::MAX, limit, self.interest.want());
        let entries = within(self.patience, "read", read).await?;
        self.take(entries, limit as usize)
    }

    /// Takes what a look brought, of at most `limit` rows.
    fn take(&mut self, entries: Vec<crate::store::Entry>, limit: usize) -> Result<()> {
        let full = entries.len() >= limit;
        let size =
            |entry: &crate::store::Entry| entry.content.as_ref().map_or(0, |content| content.frame.len());
        let bytes: usize = entries.iter().map(size).sum();
        self.rows.learn(bytes, full, (self.bound / 2).max(64 << 10));
        if entries.len() > 1 || !self.cursor.is_anchored() {
            self.anchor_bytes = entries.last().map_or(0, size);
        }
        let rows = self.cursor.looked(entries, Instant::now());
        self.looked(rows, full);
        Ok(())
    }

    fn looked(&mut self, rows: usize, full: bool) {
        // What was left is read as soon as it may be.
        let full = full || self.cursor.is_blocked();
        if self.pace.looked(rows, full, Instant::now()) {
            self.silence("rows came and it did not ring; does a pooler stand between?");
        }
    }

    /// Reads what the cursor asks for.
    async fn read(&mut self, ask: Ask) -> Result<()> {
        let (patience, reader) = (self.patience, &mut self.reader);
        match ask {
            Ask::Bounds => {
                let bounds = within(patience, "read", reader.bounds()).await?;
                if self.cursor.judge(&bounds, Instant::now()) {
                    self.interest.renumbered();
                }
            }
            Ask::Ids(range) => {
                // Rows that are known already are not worth their frames.
                let want = if range.mixed { Want::NoContent } else { self.interest.want() };
                let read = reader.read(range.first, range.last, PAGE, want);
                let entries = within(patience, "read", read).await?;
                let full = entries.len() >= PAGE as usize;
                self.cursor.reread(range, entries, full, Instant::now());
            }
            Ask::Writer { writer, first, last } => {
                let read = reader.read_writer(writer, first, last, PAGE, Want::NoContent);
                let entries = within(patience, "read", read).await?;
                self.cursor.read_writer(writer, first, entries, Instant::now());
            }
        }
        Ok(())
    }

    /// Hands on what was found and is wanted, and fetches the frames that were not read yet: some at a time, each of them
    /// handed on before the next ones are fetched.
    async fn hand_on(&mut self) -> Result<()> {
        self.cursor.take_found(&mut self.found);
        let mut found = std::mem::take(&mut self.found);
        let mut left = found.drain(..).peekable();
        while left.peek().is_some() {
            let (mut part, mut missing) = (Vec::new(), Vec::new());
            let most = self.rows.0.min(MOST_KEYS);
            while missing.len() < most
                && let Some(next) = left.next()
            {
                if let Found::Row(entry, _) = &next
                    && entry.content.is_none()
                    && self.interest.may_want(entry.key, entry.id)
                {
                    missing.push(entry.id);
                }
                part.push(next);
            }
            let mut fetched = HashMap::new();
            if !missing.is_empty() {
                let contents = within(self.patience, "fetch", self.reader.fetch(&missing)).await?;
                let bytes = contents.iter().map(|(_, content)| content.frame.len()).sum();
                self.rows.learn(bytes, true, (self.bound / 2).max(64 << 10));
                fetched.extend(contents);
            }
            self.hand_on_part(part, fetched);
        }
        drop(left);
        self.found = found;
        Ok(())
    }

    fn hand_on_part(&mut self, part: Vec<Found>, mut fetched: HashMap<i64, Content>) {
        for found in part {
            match found {
                Found::Lost(reason) => self.run.push(Delivery::Lost { topics: None, reason }),
                Found::Row(entry, floor) => {
                    let content = entry.content.or_else(|| fetched.remove(&entry.id));
                    if let Some(Content { topic, frame }) = content {
                        if let Some(topic) = self.interest.intern(entry.key, entry.id, &topic) {
                            let position = Some(floor.to_position());
                            self.run.push(Delivery::Frame { topic, frame, position });
                        }
                    } else if self.interest.may_want(entry.key, entry.id) {
                        // Deleted between the two reads.
                        let topics = Some(self.interest.topics(entry.key, entry.id));
                        self.run.push(Delivery::Lost { topics, reason: LossReason::Retention });
                    }
                }
            }
        }
        self.shared.inbox.push(&mut self.run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_ask_for_fewer_rows_when_frames_are_large_and_for_more_when_they_are_small() {
        let mut rows = Rows::default();
        rows.learn(8 << 20, true, 1 << 20);
        assert_eq!(rows.limit(), 16);
        rows.learn(1 << 30, true, 1 << 20);
        assert_eq!(rows.limit(), 8);
        for _ in 0..20 {
            rows.learn(1_000, true, 1 << 20);
        }
        assert_eq!(rows.limit(), 1_024);
        rows.learn(1_000, false, 1 << 20);
        assert_eq!(rows.limit(), 1_024);
    }
}
