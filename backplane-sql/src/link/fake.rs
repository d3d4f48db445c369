//! A database in memory with every misfortune of a real one: late commits, rollbacks, trimming, truncation, restoring an
//! older state, reinstallation, statements that hang, connections that break, doorbells that are deaf.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use backplane_core::{Capabilities, Error, ErrorKind, Result, Topic, TopicSyntax};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::position::Mark;
use crate::store::{
    Bounds, Content, Database, Doorbell, Entry, Keeper, Opened, Reader, Row, Want, Writer, WriterId,
};

/// What becomes of the next appends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Commit {
    /// They are there at once.
    Now,
    /// They have ids and are not visible before [`Fake::commit`].
    Late,
    /// So many times the database cannot take them: ids are used up, and no row comes.
    Deadlock(u32),
    /// Permission denied.
    Denied,
    /// Whoever wrote the dialect made a mistake.
    Panic,
}

/// A doorbell of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bell {
    None,
    Works,
    Deaf,
}

#[derive(Clone, Debug)]
pub(super) struct Stored {
    writer: WriterId,
    seq: i64,
    key: i64,
    content: Content,
    at: Instant,
}

#[derive(Debug)]
pub(super) struct Log {
    pub(super) rows: BTreeMap<i64, Stored>,
    /// The id of every row that ever was, by its number.
    numbers: BTreeMap<(WriterId, i64), i64>,
    pub(super) next_id: i64,
    pub(super) epoch: [u8; 16],
    pub(super) commit: Commit,
    lease: Option<(WriterId, Instant)>,
    /// The keeper's connection fails.
    pub(super) keeper_fails: bool,
    /// Most bytes of frames that one statement brought, all that came, and the statements, since somebody set this to 0.
    pub(super) most_read: usize,
    pub(super) all_read: usize,
    pub(super) reads: usize,
    /// How long it takes to find the oldest row, in front of which many deleted ones lie.
    pub(super) oldest_takes: Duration,
}

impl Log {
    fn count<'a>(&mut self, contents: impl Iterator<Item = &'a Content>) {
        let bytes = contents.map(|content| content.frames.len()).sum();
        self.most_read = self.most_read.max(bytes);
        self.all_read += bytes;
        self.reads += 1;
    }

    fn newest(&self) -> Option<Mark> {
        let (id, row) = self.rows.iter().next_back()?;
        Some(Mark { id: *id, writer: row.writer, seq: row.seq })
    }
}

/// See the module. Clones are the same database.
#[derive(Clone)]
pub(super) struct Fake(Arc<World>);

struct World {
    log: Mutex<Log>,
    bell: Bell,
    rings: watch::Sender<u64>,
    /// Counts cuts: connections of an older one are broken.
    cuts: watch::Sender<u64>,
    /// Counts cuts of doorbells alone.
    bell_cuts: watch::Sender<u64>,
    frozen: watch::Sender<bool>,
    /// Counts commits of late rows.
    commits: watch::Sender<u64>,
    refuses: watch::Sender<bool>,
    statements: AtomicUsize,
    connections: watch::Sender<usize>,
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fake")
    }
}

fn broken() -> Error {
    Error::new(ErrorKind::Unavailable, "statement").with_context("the connection broke")
}

impl Fake {
    pub(super) fn new(bell: Bell) -> Self {
        let log = Log {
            rows: BTreeMap::new(),
            numbers: BTreeMap::new(),
            next_id: 1,
            epoch: [1; 16],
            commit: Commit::Now,
            lease: None,
            keeper_fails: false,
            most_read: 0,
            all_read: 0,
            reads: 0,
            oldest_takes: Duration::ZERO,
        };
        Self(Arc::new(World {
            log: Mutex::new(log),
            bell,
            rings: watch::channel(0).0,
            cuts: watch::channel(0).0,
            bell_cuts: watch::channel(0).0,
            frozen: watch::channel(false).0,
            commits: watch::channel(0).0,
            refuses: watch::channel(false).0,
            statements: AtomicUsize::new(0),
            connections: watch::channel(0).0,
        }))
    }

    /// Changes the log behind everyone's back.
    pub(super) fn with<T>(&self, change: impl FnOnce(&mut Log) -> T) -> T {
        change(&mut self.0.log.lock())
    }

    /// Makes late rows visible, and from now on all at once.
    pub(super) fn commit(&self) {
        self.with(|log| log.commit = Commit::Now);
        self.0.commits.send_modify(|commits| *commits += 1);
    }

    /// Rows that are there all at once, each with one of these frames.
    pub(super) fn fill(&self, topic: &Topic, frames: impl IntoIterator<Item = Bytes>) {
        let key = super::topic_key(topic.as_bytes());
        let row = |(frames, seq)| Row { seq, topic: topic.clone(), key, frames };
        let rows: Vec<Row> = frames.into_iter().zip(1..).map(row).collect();
        self.with(|log| {
            let first = log.next_id;
            log.next_id += i64::try_from(rows.len()).expect("few");
            let ids: Vec<i64> = (first..log.next_id).collect();
            insert(log, &ids, WriterId(super::random()), &rows);
        });
    }

    pub(super) fn cut(&self) {
        self.0.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Breaks the doorbells, and nothing else.
    pub(super) fn cut_bells(&self) {
        self.0.bell_cuts.send_modify(|cuts| *cuts += 1);
    }

    pub(super) fn freeze(&self, frozen: bool) {
        self.0.frozen.send_replace(frozen);
    }

    pub(super) fn refuse(&self, refuses: bool) {
        self.0.refuses.send_replace(refuses);
    }

    pub(super) fn statements(&self) -> usize {
        self.0.statements.load(Ordering::Relaxed)
    }

    pub(super) async fn until_connections(&self, count: usize) {
        let _ = self.0.connections.subscribe().wait_for(|open| *open == count).await;
    }

    fn connection(&self) -> Connection {
        self.0.connections.send_modify(|open| *open += 1);
        Connection { world: self.clone(), cuts: self.0.cuts.subscribe(), cut: *self.0.cuts.borrow() }
    }
}

/// One connection, whatever for.
struct Connection {
    world: Fake,
    cuts: watch::Receiver<u64>,
    cut: u64,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.world.0.connections.send_modify(|open| *open -= 1);
    }
}

impl Connection {
    /// A round trip: hangs while frozen, fails when cut.
    async fn statement(&mut self) -> Result<()> {
        self.world.0.statements.fetch_add(1, Ordering::Relaxed);
        let (mut frozen, cut) = (self.world.0.frozen.subscribe(), self.cut);
        tokio::task::yield_now().await;
        tokio::select! {
            biased;
            _ = self.cuts.wait_for(|now| *now != cut) => Err(broken()),
            _ = frozen.wait_for(|frozen| !*frozen) => Ok(()),
        }
    }

    fn log<T>(&self, use_it: impl FnOnce(&mut Log) -> T) -> T {
        self.world.with(use_it)
    }
}

#[async_trait]
impl Database for Fake {
    fn capabilities(&self) -> Capabilities {
        Capabilities { topics: TopicSyntax::Any, ..Capabilities::default() }
    }

    async fn open(&self) -> Result<Opened> {
        if *self.0.refuses.borrow() {
            return Err(Error::new(ErrorKind::Unavailable, "connect").with_context("refused"));
        }
        let mut first = self.connection();
        first.statement().await?;
        let doorbell = self.ear();
        Ok(Opened {
            writer: Box::new(first),
            reader: Box::new(self.connection()),
            keeper: Box::new(self.connection()),
            doorbell,
            max_frame: 4 << 20,
        })
    }

    async fn listen(&self) -> Result<Option<Box<dyn Doorbell>>> {
        if *self.0.refuses.borrow() {
            return Err(Error::new(ErrorKind::Unavailable, "listen").with_context("refused"));
        }
        Ok(self.ear())
    }
}

impl Fake {
    fn ear(&self) -> Option<Box<dyn Doorbell>> {
        match self.0.bell {
            Bell::None => None,
            Bell::Works | Bell::Deaf => Some(Box::new(Ear {
                connection: self.connection(),
                rings: self.0.rings.subscribe(),
                cuts: self.0.bell_cuts.subscribe(),
            })),
        }
    }
}

fn insert(log: &mut Log, ids: &[i64], writer: WriterId, rows: &[Row]) {
    for (id, row) in ids.iter().zip(rows) {
        assert!(log.numbers.insert((writer, row.seq), *id).is_none(), "a row was appended twice");
        let content = Content { topic: row.topic.clone(), frames: row.frames.clone() };
        log.rows.insert(*id, Stored { writer, seq: row.seq, key: row.key, content, at: Instant::now() });
    }
}

#[async_trait]
impl Writer for Connection {
    async fn append(&mut self, writer: WriterId, rows: &[Row]) -> Result<()> {
        self.statement().await?;
        let mut commits = self.world.0.commits.subscribe();
        commits.mark_unchanged();
        let (ids, commit) = self.log(|log| {
            let first = log.next_id;
            log.next_id += i64::try_from(rows.len()).expect("few");
            let ids: Vec<i64> = (first..log.next_id).collect();
            let commit = log.commit;
            match commit {
                Commit::Now => insert(log, &ids, writer, rows),
                Commit::Deadlock(times) => {
                    log.commit = if times > 1 { Commit::Deadlock(times - 1) } else { Commit::Now };
                }
                Commit::Late | Commit::Denied | Commit::Panic => {}
            }
            (ids, commit)
        });
        match commit {
            Commit::Now => Ok(()),
            Commit::Deadlock(_) => Err(Error::new(ErrorKind::Overloaded, "append").with_context("deadlock")),
            Commit::Denied => Err(Error::new(ErrorKind::Denied, "append")),
            Commit::Panic => panic!("a mistake of the dialect"),
            Commit::Late => {
                let _ = commits.changed().await;
                self.log(|log| insert(log, &ids, writer, rows));
                Ok(())
            }
        }
    }

    async fn ring(&mut self) -> Result<()> {
        if self.world.0.bell == Bell::None {
            return Ok(());
        }
        self.statement().await?;
        if self.world.0.bell == Bell::Works {
            self.world.0.rings.send_modify(|rings| *rings += 1);
        }
        Ok(())
    }
}

fn entry(id: i64, stored: &Stored, want: Want<'_>) -> Entry {
    let wanted = match want {
        Want::Keys(keys, most) => keys.contains(&stored.key) && stored.content.frames.len() <= most,
        Want::NoContent => false,
    };
    Entry {
        id,
        writer: stored.writer,
        seq: stored.seq,
        key: stored.key,
        content: wanted.then(|| stored.content.clone()),
    }
}

#[async_trait]
impl Reader for Connection {
    async fn newest(&mut self) -> Result<([u8; 16], Option<Mark>)> {
        self.statement().await?;
        Ok(self.log(|log| (log.epoch, log.newest())))
    }

    async fn bounds(&mut self) -> Result<Bounds> {
        self.statement().await?;
        tokio::time::sleep(self.log(|log| log.oldest_takes)).await;
        Ok(self.log(|log| Bounds {
            epoch: log.epoch,
            oldest: log.rows.keys().next().copied(),
            newest: log.newest(),
        }))
    }

    async fn read(&mut self, first: i64, last: i64, limit: u32, want: Want<'_>) -> Result<Vec<Entry>> {
        self.statement().await?;
        assert!(first <= last && limit > 0);
        Ok(self.log(|log| {
            let rows = log.rows.range(first..=last).take(limit as usize);
            let entries: Vec<Entry> = rows.map(|(id, row)| entry(*id, row, want)).collect();
            log.count(entries.iter().filter_map(|entry| entry.content.as_ref()));
            entries
        }))
    }

    async fn read_writer(
        &mut self,
        writer: WriterId,
        first: i64,
        last: i64,
        limit: u32,
        want: Want<'_>,
    ) -> Result<Vec<Entry>> {
        self.statement().await?;
        assert!(first <= last && limit > 0);
        Ok(self.log(|log| {
            let ids = log.numbers.range((writer, first)..=(writer, last)).map(|(_, id)| *id);
            let rows =
                ids.filter_map(|id| Some((id, log.rows.get(&id)?))).filter(|(_, row)| row.writer == writer);
            rows.take(limit as usize).map(|(id, row)| entry(id, row, want)).collect()
        }))
    }

    async fn fetch(&mut self, ids: &[i64], most: usize) -> Result<Vec<(i64, Content)>> {
        self.statement().await?;
        assert!(ids.len() <= crate::store::MOST_KEYS);
        Ok(self.log(|log| {
            let contents = ids.iter().rev().filter_map(|id| Some((*id, log.rows.get(id)?.content.clone())));
            let contents: Vec<(i64, Content)> =
                contents.filter(|(_, content)| content.frames.len() <= most).collect();
            log.count(contents.iter().map(|(_, content)| content));
            contents
        }))
    }
}

#[async_trait]
impl Keeper for Connection {
    async fn lead(&mut self, me: WriterId, term: Duration) -> Result<bool> {
        self.statement().await?;
        self.log(|log| {
            if log.keeper_fails {
                return Err(Error::new(ErrorKind::Denied, "lead").with_context("no right to delete"));
            }
            let now = Instant::now();
            let free = log.lease.is_none_or(|(leader, until)| leader == me || until < now);
            if free {
                log.lease = Some((me, now + term));
            }
            Ok(free)
        })
    }

    async fn trim(&mut self, age: Duration, rows: u64, most: u32) -> Result<u64> {
        self.statement().await?;
        Ok(self.log(|log| {
            let total = log.rows.len() as u64;
            let newest = log.rows.keys().next_back().copied();
            let old = |row: &Stored| row.at.elapsed() > age;
            let spared = log.rows.iter().take_while(|(_, row)| old(row)).map(|(id, _)| *id).last();
            let doomed: Vec<i64> = log
                .rows
                .iter()
                .zip(0..)
                .take_while(|((_, row), place)| old(row) || *place < total.saturating_sub(rows))
                .map(|((id, _), _)| *id)
                .filter(|id| Some(*id) != newest && Some(*id) != spared)
                .take(most as usize)
                .collect();
            for id in &doomed {
                log.rows.remove(id);
            }
            doomed.len() as u64
        }))
    }
}

/// A doorbell's connection.
struct Ear {
    connection: Connection,
    rings: watch::Receiver<u64>,
    cuts: watch::Receiver<u64>,
}

#[async_trait]
impl Doorbell for Ear {
    async fn rang(&mut self) -> Result<()> {
        let cut = self.connection.cut;
        tokio::select! {
            biased;
            _ = self.connection.cuts.wait_for(|now| *now != cut) => Err(broken()),
            _ = self.cuts.changed() => Err(broken()),
            rang = self.rings.changed() => rang.map_err(|_| broken()),
        }
    }
}
