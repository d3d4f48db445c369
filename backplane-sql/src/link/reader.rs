//! The task that reads: asks the cursor what to read, reads it, and hands on what is wanted.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backplane_core::{Delivery, LossReason, Result, Topic};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::cursor::{Ask, Cursor, Found, PAGE};
use super::frames::unpack;
use super::interest::Interest;
use super::pace::Pace;
use super::position::Floor;
use super::sender::Change;
use super::shared::{Phase, Shared, reached, stopped};
use super::within;
use crate::store::{Content, Database, Doorbell, MOST_KEYS, Reader, Want};

/// Fewest and most rows of a look.
const ROWS_MIN: usize = 8;
const ROWS_MAX: usize = 1_024;
/// Rows of the first look: until something is known about the size of frames.
const ROWS: usize = 128;
/// From this many bytes on, the row by which we know the log is not read again with every look.
const HEAVY: usize = 16 << 10;
/// How many times larger rows may be, the next time they are fetched, than those among which they did not come: so many
/// fewer are asked for.
const LARGER: usize = 4;
/// About how many deliveries are handed over before the inbox is asked again whether it has room.
const MOST_RUN: usize = 4_096;
/// First pause before another doorbell is called for, doubling up to the second as long as none rings, and how long it may
/// take.
pub(super) const BELL_AGAIN_MIN: Duration = Duration::from_secs(1);
const BELL_AGAIN_MAX: Duration = Duration::from_secs(60);
const BELL_PATIENCE: Duration = Duration::from_secs(5);

/// A doorbell on its way; `None`: there cannot be one.
pub(super) type Again = BoxFuture<'static, Result<Option<Box<dyn Doorbell>>>>;

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
    /// Where a doorbell that broke is had anew.
    pub(super) database: Arc<dyn Database>,
    /// Another one is on its way.
    pub(super) again: Option<Again>,
    /// How long the next one is waited for at least.
    pub(super) bell_pause: Duration,
    pub(super) found: Vec<Found>,
    /// What was found and is not handed on yet.
    pub(super) pending: VecDeque<Pending>,
    /// Bytes that came of what was found last.
    pub(super) brought: usize,
    /// Whether the last look brought as many rows as it asked for, of some of which the content is fetched.
    pub(super) full: bool,
    /// Bytes that were fetched and wait in `pending` for others before them.
    pub(super) kept: usize,
    pub(super) run: Vec<Delivery>,
    /// Everything up to there was handed on.
    pub(super) before: Floor,
    /// Bytes of the newest row's frame, where it was read.
    pub(super) anchor_bytes: usize,
    /// Dropped last: then the connections are gone.
    pub(super) watch: watch::Receiver<Phase>,
}

/// A row on its way, or a loss.
#[derive(Debug)]
pub(super) struct Pending {
    found: Found,
    /// It did not come among rows of so many bytes at most: it is larger, or gone.
    above: usize,
    /// Bytes that were fetched for it.
    fetched: usize,
}

impl Pending {
    /// The id of a row that may be wanted and whose content has still to be fetched.
    fn missing(&self, interest: &Interest) -> Option<i64> {
        match &self.found {
            Found::Row(entry, _)
                if entry.content.is_none()
                    && self.above < usize::MAX
                    && interest.may_want(entry.key, entry.id) =>
            {
                Some(entry.id)
            }
            _ => None,
        }
    }

    /// What a fetch of rows that hold `most` bytes at most brought for it.
    fn take(&mut self, fetched: Option<Content>, most: usize) {
        match (&mut self.found, fetched) {
            (Found::Row(entry, _), Some(content)) => {
                self.fetched = content.frames.len();
                entry.content = Some(content);
            }
            _ => self.above = most,
        }
    }
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
            // One fewer: a look reads the row before them too, and all of them are to come with it.
            self.0 = (self.0 * bearable / bytes).saturating_sub(1).max(ROWS_MIN);
        } else if full && bytes < bearable / 4 {
            self.0 = (self.0 * 2).min(ROWS_MAX);
        }
    }
}

/// However it stops, the link ends.
impl Drop for ReaderTask {
    fn drop(&mut self) {
        self.shared.end(Err(stopped()));
    }
}

impl ReaderTask {
    /// Runs until the link ends, and ends it when reading fails.
    pub(super) async fn run(mut self) {
        let mut ended = self.watch.clone();
        tokio::select! {
            biased;
            () = reached(&mut ended, Phase::Ended) => {}
            how = self.serve() => self.shared.end(how),
        }
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
                if !self.pending.is_empty() {
                    self.hand_on().await?;
                    continue;
                }
                if let Some(ask) = self.cursor.ask(now) {
                    self.read(ask).await?;
                    self.gather();
                    continue;
                }
                self.listen();
                if self.pace.next() <= Instant::now() && !self.must_wait() {
                    self.look().await?;
                    self.gather();
                    continue;
                }
            }
            let look = if self.must_wait() { None } else { Some(self.pace.next()) };
            let due = self.cursor.next_due().into_iter().chain(look).min();
            let Self { changes, doorbell, again, .. } = self;
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
                came = async { again.as_mut().expect("guarded").await }, if again.is_some() => self.came(came),
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
        if let Some(came) = self.again.as_mut().and_then(|again| again.now_or_never()) {
            self.came(came);
        }
    }

    /// Another doorbell, in a while: first a short one, then ever longer ones.
    pub(super) fn call_again(&mut self) {
        let (database, pause) = (self.database.clone(), self.bell_pause);
        self.bell_pause = (pause * 2).min(BELL_AGAIN_MAX);
        self.again = Some(Box::pin(async move {
            sleep(pause).await;
            within(BELL_PATIENCE, "listen", database.listen()).await
        }));
    }

    /// Another doorbell, or none. It is believed when it rings.
    fn came(&mut self, came: Result<Option<Box<dyn Doorbell>>>) {
        self.again = None;
        match came {
            Ok(Some(doorbell)) => {
                self.doorbell = Some(doorbell);
                self.pace.has_bell();
            }
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%error, "no doorbell of the database for now");
                self.call_again();
            }
        }
    }

    fn heard(&mut self, rang: Result<()>) {
        match rang {
            Ok(()) => {
                if self.pace.rang(Instant::now()) {
                    tracing::debug!("the doorbell of the database works");
                    self.bell_pause = BELL_AGAIN_MIN;
                }
            }
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

    /// Polls until another doorbell rings.
    fn silence(&mut self, why: &str) {
        self.doorbell = None;
        self.call_again();
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
            let most = self.inline(limit);
            let read = self.reader.read(first + 1, i64::MAX, limit, self.interest.want(most));
            let rest = within(self.patience, "read", read).await?;
            return self.take(anchor.into_iter().chain(rest).collect(), limit as usize + 1);
        }
        let most = self.inline(limit);
        let read = self.reader.read(first, i64::MAX, limit, self.interest.want(most));
        let entries = within(self.patience, "read", read).await?;
        self.take(entries, limit as usize)
    }

    /// Takes what a look brought, of at most `limit` rows.
    fn take(&mut self, entries: Vec<crate::store::Entry>, limit: usize) -> Result<()> {
        let full = entries.len() >= limit;
        let size =
            |entry: &crate::store::Entry| entry.content.as_ref().map_or(0, |content| content.frames.len());
        let bytes: usize = entries.iter().map(size).sum();
        let anchored = self.cursor.is_anchored();
        let withheld = entries
            .iter()
            .skip(usize::from(anchored))
            .any(|entry| entry.content.is_none() && self.interest.may_want(entry.key, entry.id));
        // What was withheld says nothing before it has come.
        if !withheld {
            self.rows.learn(bytes, full, self.bearable());
        }
        self.full = full && withheld;
        self.brought = bytes;
        match entries.last() {
            Some(last) if last.content.is_some() => self.anchor_bytes = size(last),
            Some(_) if entries.len() > 1 || !anchored => self.anchor_bytes = 0,
            // Read without its content, because it is large.
            Some(_) | None => {}
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
        let most = self.inline(PAGE);
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
                let want = if range.mixed { Want::NoContent } else { self.interest.want(most) };
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

    /// How many bytes may come at once, a single larger frame excepted.
    fn bearable(&self) -> usize {
        (self.bound / 2).max(64 << 10)
    }

    /// Most bytes of a row that is read with its content, where so many rows are read. Larger ones are fetched.
    fn inline(&self, rows: u32) -> usize {
        self.bearable() / (rows as usize).max(1)
    }

    /// Takes over what was found.
    fn gather(&mut self) {
        self.cursor.take_found(&mut self.found);
        self.pending.extend(self.found.drain(..).map(|found| Pending { found, above: 0, fetched: 0 }));
    }

    /// Hands on a part of what is pending and wanted: up to the next row whose content has still to be fetched.
    async fn hand_on(&mut self) -> Result<()> {
        self.fetch().await?;
        while self.run.len() < MOST_RUN
            && self.pending.front().is_some_and(|next| next.missing(&self.interest).is_none())
            && let Some(next) = self.pending.pop_front()
        {
            self.kept -= next.fetched;
            self.hand_on_one(next.found);
        }
        if self.pending.is_empty() {
            let full = std::mem::take(&mut self.full);
            self.rows.learn(self.brought, full, self.bearable());
            self.brought = 0;
        }
        self.shared.inbox.push(&mut self.run);
        Ok(())
    }

    /// Fetches what the front of `pending` waits for, together with as many of those behind it as are bearable. What is too
    /// large to come among so many is asked for again among fewer, and at last alone.
    async fn fetch(&mut self) -> Result<()> {
        let front = self.pending.front().filter(|front| front.missing(&self.interest).is_some());
        let Some(above) = front.map(|front| front.above) else { return Ok(()) };
        let spare = self.bearable().saturating_sub(self.kept);
        let count = spare / above.saturating_mul(LARGER).max(1);
        let ids: Vec<i64> = self
            .pending
            .iter()
            .filter_map(|pending| Some((pending.missing(&self.interest)?, pending.above)))
            // What is larger would not come among these, and of what was not asked for yet nobody knows.
            .take_while(|(_, other)| *other == above)
            .map(|(id, _)| id)
            .take(count.clamp(1, self.rows.0.min(MOST_KEYS)))
            .collect();
        let most = if ids.len() == 1 { usize::MAX } else { spare / ids.len() };
        let contents = within(self.patience, "fetch", self.reader.fetch(&ids, most)).await?;
        let mut contents: HashMap<i64, Content> = contents.into_iter().collect();
        let asked =
            self.pending.iter_mut().filter_map(|pending| Some((pending.missing(&self.interest)?, pending)));
        for (id, pending) in asked.take(ids.len()) {
            pending.take(contents.remove(&id), most);
            self.kept += pending.fetched;
            self.brought += pending.fetched;
        }
        Ok(())
    }

    fn hand_on_one(&mut self, found: Found) {
        let (entry, floor) = match found {
            Found::Lost(reason) => return self.run.push(Delivery::Lost { topics: None, reason }),
            Found::Row(entry, floor) => (entry, floor),
        };
        if let Some(Content { topic, frames }) = entry.content {
            if let Some(topic) = self.interest.intern(entry.key, entry.id, &topic) {
                self.deliver(&topic, frames, floor);
            }
        } else if self.interest.may_want(entry.key, entry.id) {
            // Deleted between the two reads.
            let topics = Some(self.interest.topics(entry.key, entry.id));
            self.run.push(Delivery::Lost { topics, reason: LossReason::Retention });
        }
        self.before = floor;
    }

    /// The frames of a row. Only the last of them stands where the row is done.
    fn deliver(&mut self, topic: &Topic, row: Bytes, floor: Floor) {
        let before = self.before.to_position();
        let first = self.run.len();
        for frame in unpack(row) {
            self.run.push(match frame {
                Some(frame) => Delivery::Frame { topic: topic.clone(), frame, position: Some(before) },
                None => {
                    tracing::warn!(id = floor.id, "a row of the log holds what no node wrote");
                    Delivery::Lost { topics: Some(vec![topic.clone()]), reason: LossReason::Unreadable }
                }
            });
        }
        if let Some(Delivery::Frame { position, .. }) = self.run[first..].last_mut() {
            *position = Some(floor.to_position());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_ask_for_fewer_rows_when_frames_are_large_and_for_more_when_they_are_small() {
        let mut rows = Rows::default();
        rows.learn(8 << 20, true, 1 << 20);
        assert_eq!(rows.limit(), 15);
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
