//! How a log is set up, whatever the database: every option with its unit, bound and default.

use std::time::Duration;

use backplane_core::{Error, ErrorKind, Result};

/// Options of the log, the same for every database. All nodes of an application must agree on `schema`, `table`, `order`,
/// `retention` and `retention_rows` (whichever node deletes goes by its own); the rest is each node's own matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The schema that holds the tables (PostgreSQL, SQL Server; MySQL: the database of the URL; SQLite: none). Letters,
    /// digits and `_`, at most 48. Default: the connection's own.
    pub schema: Option<String>,
    /// What the names of the tables begin with: applications that share a database keep apart by it. Letters, digits and
    /// `_`, at most 32. Default `backplane`.
    pub table: String,
    /// Whether to install the schema when it is not there. Default `true`. With `false` it must be there, and the user
    /// needs no right to create anything.
    pub create: bool,
    /// How long rows are kept at least: a node that was away for longer is told of a loss. Default 60 s, from 1 s to 24 h.
    pub retention: Duration,
    /// How many rows are kept at most, whatever their age. Default 1,000,000, at least 1,000.
    pub retention_rows: u64,
    /// Shortest pause between two looks, while many rows come. Default 1 ms.
    pub poll_min: Duration,
    /// Longest pause between two looks when nothing happens; while a doorbell works it is at least one second. Default
    /// 300 ms, at most 10 s. No pause exceeds a quarter of the heartbeat bound.
    pub poll_max: Duration,
    /// How long rows that are missing between others are looked for: a row known to have been there is told as
    /// [`Lost`](backplane_core::Delivery) then. An insert that takes longer is delivered with the next one of its node at
    /// the latest. Default 10 s, from 100 ms to `retention`.
    pub hole_deadline: Duration,
    /// What order the log promises. Default [`LogOrder::PerPublisher`].
    pub order: LogOrder,
    /// How durable a row is when its publisher is told so. Default [`Durability::Full`].
    pub durability: Durability,
    /// Whether to use the doorbell of the database where it has one. Default `true`.
    pub doorbell: bool,
    /// Largest frame in bytes, if the database takes as much. Default 16 MiB.
    pub max_frame: usize,
    /// Most bytes that wait between the reader and whoever polls `inbound`; reading rests meanwhile. Default 16 MiB.
    pub max_undelivered: usize,
}

/// What order the log promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogOrder {
    /// The frames of one publisher in its order. Writers do not wait for each other.
    #[default]
    PerPublisher,
    /// One order on all nodes: each batch is written under a lock that all writers take, so that batches commit one
    /// after the other. Costs one commit at a time for all nodes together.
    Total,
}

/// How durable a row is when its publisher is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// As the database does by default: on disk.
    #[default]
    Full,
    /// The database may lose the last moments when its machine fails; readers are told of a loss then, never nothing.
    Relaxed,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            schema: None,
            table: "backplane".into(),
            create: true,
            retention: Duration::from_secs(60),
            retention_rows: 1_000_000,
            poll_min: Duration::from_millis(1),
            poll_max: Duration::from_millis(300),
            hole_deadline: Duration::from_secs(10),
            order: LogOrder::default(),
            durability: Durability::default(),
            doorbell: true,
            max_frame: 16 << 20,
            max_undelivered: 16 << 20,
        }
    }
}

impl LogConfig {
    /// Checks the bounds.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) naming the field and its bound.
    pub fn validate(&self) -> Result<()> {
        let wrong = |what: &'static str| Err(Error::new(ErrorKind::InvalidConfig, "open").with_context(what));
        let is_name = |name: &str, most: usize| {
            (1..=most).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
                && !name.as_bytes()[0].is_ascii_digit()
        };
        if self.schema.as_deref().is_some_and(|schema| !is_name(schema, 48)) {
            return wrong("schema must be 1 to 48 letters, digits and _, not beginning with a digit");
        }
        if !is_name(&self.table, 32) {
            return wrong("table must be 1 to 32 letters, digits and _, not beginning with a digit");
        }
        if !(Duration::from_secs(1)..=Duration::from_secs(24 * 3_600)).contains(&self.retention) {
            return wrong("retention must lie between 1 s and 24 h");
        }
        if self.retention_rows < 1_000 {
            return wrong("retention_rows must be at least 1,000");
        }
        if self.poll_min.is_zero() || self.poll_min > self.poll_max || self.poll_max > Duration::from_secs(10)
        {
            return wrong("poll_min must be above 0 and at most poll_max, and that at most 10 s");
        }
        if !(Duration::from_millis(100)..=self.retention).contains(&self.hole_deadline) {
            return wrong("hole_deadline must be at least 100 ms and at most retention");
        }
        if !(1..=512 << 20).contains(&self.max_frame) {
            return wrong("max_frame must be from 1 byte to 512 MiB");
        }
        if self.max_undelivered < 64 << 10 {
            return wrong("max_undelivered must be at least 64 KiB");
        }
        Ok(())
    }
}
