//! The seam to one kind of database: statements, and nothing else. What they mean together (cursor, holes, epochs,
//! resume, retention) is written once, in `link`.
//!
//! Every call is one round trip where the database allows it. The caller bounds each call in time and, after an error or
//! an overrun, drops the connection: nothing here retries, and nothing here sleeps.

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use backplane_core::{Capabilities, Result, Topic};
use bytes::Bytes;

/// One link as a writer: the node's id and the number of its attempt, so that numbers of rows never repeat.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct WriterId(pub(crate) [u8; 16]);

/// A row to append.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Dense, per writer, from 1.
    pub(crate) seq: i64,
    pub(crate) topic: Topic,
    /// [`topic_key`](crate::link::topic_key) of the topic.
    pub(crate) key: i64,
    /// One frame or several, as [`link`](crate::link) lays them out.
    pub(crate) frames: Bytes,
}

/// A row that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Given by the database, ascending in the order of allocation, not of commit.
    pub(crate) id: i64,
    pub(crate) writer: WriterId,
    pub(crate) seq: i64,
    pub(crate) key: i64,
    /// Topic and frames; `None` when the key was not wanted, or they are larger than was wanted.
    pub(crate) content: Option<Content>,
}

/// The part of a row that is fetched only where somebody wants it. The frames have a buffer of their own: they may be kept
/// for long, and must not keep a whole answer alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) topic: Topic,
    pub(crate) frames: Bytes,
}

/// A row by which a reader knows the log again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) id: i64,
    pub(crate) writer: WriterId,
    pub(crate) seq: i64,
}

/// The log as of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Drawn at random when the log was installed.
    pub(crate) epoch: [u8; 16],
    /// Smallest id that is still there; `None`: the log is empty.
    pub(crate) oldest: Option<i64>,
    /// The row with the largest id.
    pub(crate) newest: Option<Mark>,
}

/// Which rows are read with their content.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Want<'a> {
    /// Those with one of these keys, few enough to stand in a statement ([`MOST_KEYS`]), where `frames` takes so many bytes at
    /// most: the caller fetches larger ones.
    Keys(&'a [i64], usize),
    /// None: the caller fetches the content of those it needs by [`Reader::fetch`].
    NoContent,
}

/// Most keys in a [`Want::Keys`], and most ids of one [`Reader::fetch`].
pub(crate) const MOST_KEYS: usize = 256;

/// A database that holds a log. Connects; keeps no connection itself.
#[async_trait]
pub(crate) trait Database: Debug + Send + Sync + 'static {
    /// What the bus promises on it at best.
    fn capabilities(&self) -> Capabilities;

    /// One attempt: connects what a link needs, and installs the schema or checks that it is the right version
    /// (`create=false`). Safe when many nodes do it at once.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`, `InvalidConfig` (a schema of another version, or none and it may not be created).
    async fn open(&self) -> Result<Opened>;

    /// Another doorbell for an open link whose own one broke or was not to be had; `None`: there cannot be one.
    ///
    /// # Errors
    /// Those of [`open`](Database::open): it may be tried again.
    async fn listen(&self) -> Result<Option<Box<dyn Doorbell>>> {
        Ok(None)
    }
}

/// What a link works with: a connection for each, so that none waits for another.
pub(crate) struct Opened {
    pub(crate) writer: Box<dyn Writer>,
    pub(crate) reader: Box<dyn Reader>,
    pub(crate) keeper: Box<dyn Keeper>,
    /// What wakes the reader early; `None`: it polls.
    pub(crate) doorbell: Option<Box<dyn Doorbell>>,
    /// Most bytes of `frames` that this database takes in a row with its present settings.
    pub(crate) max_frame: usize,
}

/// Appends rows.
#[async_trait]
pub(crate) trait Writer: Send {
    /// Appends all rows or none, in this order, in one statement (with `order=total`: one transaction under a lock that
    /// all writers take). Rows of this writer that are there already are skipped, so that the same call may be made again.
    /// `Ok`: committed, as durably as configured.
    ///
    /// # Errors
    /// A deadlock or serialization failure is `Overloaded` (nothing was written, the same call may be made again on the
    /// same connection); everything else ends the connection.
    async fn append(&mut self, writer: WriterId, rows: &[Row]) -> Result<()>;

    /// Wakes readers. Called once when the link opens, so that it learns whether its own doorbell works, and after appends,
    /// at most once per millisecond. Where there is nothing to ring: `Ok`, and no round trip.
    ///
    /// # Errors
    /// As [`append`](Writer::append).
    async fn ring(&mut self) -> Result<()>;
}

/// Reads rows. Never inside a transaction that outlives a call.
#[async_trait]
pub(crate) trait Reader: Send {
    /// Epoch and both ends, from one snapshot.
    ///
    /// # Errors
    /// Any ends the connection.
    async fn bounds(&mut self) -> Result<Bounds>;

    /// Epoch and newest row, from one snapshot: [`bounds`](Reader::bounds) without the oldest one. To find that a database
    /// may have to pass by millions of deleted rows which it cannot clear yet.
    ///
    /// # Errors
    /// Any ends the connection.
    async fn newest(&mut self) -> Result<([u8; 16], Option<Mark>)>;

    /// Rows with `first <= id <= last`, ascending by id, at most `limit`.
    ///
    /// # Errors
    /// Any ends the connection.
    async fn read(&mut self, first: i64, last: i64, limit: u32, want: Want<'_>) -> Result<Vec<Entry>>;

    /// Rows of one writer with `first <= seq <= last`, ascending by seq, at most `limit`; by their own index.
    ///
    /// # Errors
    /// Any ends the connection.
    async fn read_writer(
        &mut self,
        writer: WriterId,
        first: i64,
        last: i64,
        limit: u32,
        want: Want<'_>,
    ) -> Result<Vec<Entry>>;

    /// The content of rows by id, as many as are still there and hold `most` bytes of `frames` at most, in any order. At most
    /// [`MOST_KEYS`] ids.
    ///
    /// # Errors
    /// Any ends the connection.
    async fn fetch(&mut self, ids: &[i64], most: usize) -> Result<Vec<(i64, Content)>>;
}

/// Keeps the log short: one node at a time, elected by a lease in the database's own time.
#[async_trait]
pub(crate) trait Keeper: Send {
    /// Takes or renews the lease for `term`; `false`: another node has it.
    ///
    /// # Errors
    /// Any ends the connection.
    async fn lead(&mut self, me: WriterId, term: Duration) -> Result<bool>;

    /// Deletes at most `most` of the oldest rows that are older than `age` or beyond the newest `rows`, and returns how
    /// many. Spares the newest row of all, and the newest of those that are older than `age`: readers that are up to
    /// date know the log again by it.
    ///
    /// # Errors
    /// Any ends the connection.
    async fn trim(&mut self, age: Duration, rows: u64, most: u32) -> Result<u64>;
}

/// Wakes a reader early.
#[async_trait]
pub(crate) trait Doorbell: Send {
    /// Waits until it rang; rings while nobody waited count as one. Cancel-safe.
    ///
    /// # Errors
    /// Any ends the doorbell; the reader then polls, says so once, and asks for another one.
    async fn rang(&mut self) -> Result<()>;
}
