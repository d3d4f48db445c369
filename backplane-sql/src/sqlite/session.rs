//! One connection to the file, with its own thread.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backplane_core::{Error, ErrorKind, Result};
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteRow, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Executor as _, Row as _, SqliteConnection};

use super::fault::{fault, is_busy};
use crate::config::Durability;

/// How long a statement waits for another writer. Shorter than any deadline of a statement: whoever runs into it may
/// try again. Not for appends: see [`Session::wait_for_nobody`].
const BUSY: Duration = Duration::from_millis(250);

/// How long installing waits for others who install.
const INSTALL: Duration = Duration::from_secs(5);

/// Pause between two tries where SQLite does not wait by itself.
const TRY_AGAIN: Duration = Duration::from_millis(5);

/// How far the write-ahead log is cut back after it was longer, in bytes.
const WAL_LIMIT: &str = "67108864";

/// A query with its values.
pub(super) type Query = sqlx::query::Query<'static, sqlx::Sqlite, SqliteArguments>;

/// One connection.
pub(super) struct Session {
    connection: SqliteConnection,
}

impl Session {
    /// Opens the file, makes it if `create`, and has it in WAL mode.
    pub(super) async fn open(path: &Path, create: bool, durability: Durability) -> Result<Self> {
        let synchronous = match durability {
            Durability::Full => SqliteSynchronous::Full,
            Durability::Relaxed => SqliteSynchronous::Normal,
        };
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(create)
            .busy_timeout(BUSY)
            .synchronous(synchronous)
            .pragma("journal_size_limit", WAL_LIMIT)
            .statement_cache_capacity(16)
            .row_buffer_size(1_024)
            .thread_name(|number| format!("backplane-sqlite-{number}"))
            // Statements can hold frames.
            .disable_statement_logging();
        let connection = Self::connect(&options).await.map_err(|error| {
            let folder_is_missing = path.parent().is_some_and(|folder| !folder.is_dir());
            let error = fault("connect", error);
            if folder_is_missing {
                let context = format!("the folder of {} is not there", path.display());
                return Error::new(ErrorKind::InvalidConfig, "connect")
                    .with_context(context)
                    .with_source(error);
            }
            error
        })?;
        let mut session = Self { connection };
        session.write_ahead().await?;
        Ok(session)
    }

    /// Connects, however long others are busy installing, or closing: whoever has the last connection to the file and
    /// closes it locks everybody out while it writes the log back. The first pragmas meet that lock, too.
    async fn connect(options: &SqliteConnectOptions) -> sqlx::Result<SqliteConnection> {
        let start = Instant::now();
        loop {
            match options.connect().await {
                Err(error) if is_busy(&error) && start.elapsed() < INSTALL => {
                    tokio::time::sleep(TRY_AGAIN).await
                }
                answer => return answer,
            }
        }
    }

    /// Readers and the writer do not wait for each other then. It stays with the file, and changing to it is the one
    /// thing for which SQLite does not wait by itself.
    async fn write_ahead(&mut self) -> Result<()> {
        for statement in ["PRAGMA journal_mode", "PRAGMA journal_mode = WAL"] {
            let row = self.patiently(statement).await?;
            let mode: String = row.try_get(0).map_err(|error| fault("connect", error))?;
            if mode.eq_ignore_ascii_case("wal") {
                return Ok(());
            }
        }
        Err(Error::new(ErrorKind::Unsupported, "connect")
            .with_context("the file cannot be brought into WAL mode: its file system has no shared memory"))
    }

    /// The row that a statement answers, however long others are busy installing.
    async fn patiently(&mut self, statement: &'static str) -> Result<SqliteRow> {
        let start = Instant::now();
        loop {
            match self.connection.fetch_one(sqlx::raw_sql(statement)).await {
                Err(error) if is_busy(&error) && start.elapsed() < INSTALL => {
                    tokio::time::sleep(TRY_AGAIN).await
                }
                answer => return answer.map_err(|error| fault("connect", error)),
            }
        }
    }

    /// Begins a transaction that may write, however long others are busy installing.
    pub(super) async fn begin(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            match self.run("BEGIN IMMEDIATE".into()).await {
                Err(error) if is_busy(&error) && start.elapsed() < INSTALL => {
                    tokio::time::sleep(TRY_AGAIN).await
                }
                answer => return answer.map_err(|error| fault("connect", error)),
            }
        }
    }

    /// From now on a statement that meets another writer fails at once.
    ///
    /// A statement that waits cannot be called back: it goes on waiting on its thread after its link has ended, and would
    /// write its rows behind those that the next link of the same node has written meanwhile. So whoever appends waits
    /// outside. One that has begun to write is no trouble: others come after it.
    pub(super) async fn wait_for_nobody(&mut self) -> Result<()> {
        self.run("PRAGMA busy_timeout = 0".into()).await.map_err(|error| fault("connect", error))
    }

    /// Statements without values.
    pub(super) async fn run(&mut self, text: String) -> sqlx::Result<()> {
        self.connection.execute(sqlx::raw_sql(AssertSqlSafe(text))).await.map(drop)
    }

    /// The rows that a query answers.
    pub(super) async fn rows(&mut self, query: Query) -> sqlx::Result<Vec<SqliteRow>> {
        self.connection.fetch_all(query).await
    }

    /// The first row that a query answers.
    pub(super) async fn row(&mut self, query: Query) -> sqlx::Result<SqliteRow> {
        self.connection.fetch_one(query).await
    }

    /// How many rows a query changed.
    pub(super) async fn changed(&mut self, query: Query) -> sqlx::Result<u64> {
        self.connection.execute(query).await.map(|result| result.rows_affected())
    }
}

/// A statement that is prepared once.
pub(super) fn query(statement: &Arc<str>) -> Query {
    sqlx::query(AssertSqlSafe(statement.clone()))
}

/// A statement that is used once.
pub(super) fn query_once(statement: String) -> Query {
    sqlx::query(AssertSqlSafe(statement)).persistent(false)
}
