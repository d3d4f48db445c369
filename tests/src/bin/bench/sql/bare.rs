//! The bare loops: `sqlx` alone, doing as little as the job allows. One publisher, so the order of ids is that of
//! commits; no identity of rows, no retention, no filter.

use std::time::Duration;

use sqlx::postgres::PgListener;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, MySqlConnection, PgConnection,
    Row as _, SqliteConnection,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use crate::Result;
use crate::payload::{self, LEN, Ledger};

/// Most rows of one insert.
pub(super) const MOST_ROWS: usize = 512;
/// Most rows of one select.
pub(super) const PAGE: usize = 1_024;

/// The topic of all rows.
const TOPIC: &[u8] = b"backplane.h.hub.g.bench";

/// What is notified on PostgreSQL, and the shortest time between two.
const RING: &str = "SELECT pg_notify('bare', '')";
const RING_EVERY: Duration = Duration::from_millis(1);
/// Longest wait for a notification before a look.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks where nobody notifies.
const PAUSE: Duration = Duration::from_millis(1);

/// Of this database.
pub(super) fn schema(url: &str) -> Result<&'static str> {
    match url.split_once(':') {
        Some(("postgres", _)) => Ok(
            "CREATE TABLE bare_log (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, topic bytea NOT NULL, \
             frame bytea NOT NULL)",
        ),
        Some(("mysql", _)) => Ok(
            "CREATE TABLE bare_log (id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY, topic varbinary(255) NOT NULL, \
             frame blob NOT NULL) ENGINE = InnoDB",
        ),
        Some(("sqlite", _)) => Ok(
            "CREATE TABLE bare_log (id INTEGER PRIMARY KEY AUTOINCREMENT, topic BLOB NOT NULL, frame BLOB NOT NULL)",
        ),
        _ => Err(format!("no bare loop over {url}").into()),
    }
}

/// Makes the table, where the database has no program for that.
pub(super) async fn create(url: &str) -> Result<()> {
    let mut connection = sqlite(url).create_if_missing(true).connect().await?;
    connection.execute(sqlx::raw_sql(schema(url)?)).await?;
    Ok(())
}

fn sqlite(url: &str) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(url.trim_start_matches("sqlite:"))
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5))
        .row_buffer_size(PAGE)
}

type Payload = [u8; LEN];

enum Connection {
    Postgres(PgConnection),
    MySql(MySqlConnection),
    Sqlite(SqliteConnection),
}

impl Connection {
    async fn connect(url: &str) -> Result<Self> {
        Ok(match url.split_once(':') {
            Some(("postgres", _)) => Self::Postgres(PgConnection::connect(url).await?),
            Some(("mysql", _)) => Self::MySql(MySqlConnection::connect(url).await?),
            _ => Self::Sqlite(sqlite(url).connect().await?),
        })
    }

    /// One statement, one transaction.
    async fn insert(&mut self, payloads: &[Payload]) -> Result<()> {
        match self {
            Self::Postgres(connection) => {
                let frames: Vec<&[u8]> = payloads.iter().map(<[u8; LEN]>::as_slice).collect();
                let statement = "INSERT INTO bare_log (topic, frame) SELECT $1, frame \
                                 FROM unnest($2::bytea[]) WITH ORDINALITY AS r (frame, place) ORDER BY place";
                connection.execute(sqlx::query(statement).bind(TOPIC).bind(frames)).await?;
            }
            Self::MySql(connection) => {
                let query = sqlx::query(AssertSqlSafe(values(payloads.len())));
                let query =
                    payloads.iter().fold(query, |query, payload| query.bind(TOPIC).bind(&payload[..]));
                connection.execute(query).await?;
            }
            Self::Sqlite(connection) => {
                let query = sqlx::query(AssertSqlSafe(values(payloads.len())));
                let query =
                    payloads.iter().fold(query, |query, payload| query.bind(TOPIC).bind(payload.to_vec()));
                connection.execute(query).await?;
            }
        }
        Ok(())
    }

    /// Whether anybody can be told; if so he is.
    async fn ring(&mut self) -> Result<()> {
        if let Self::Postgres(connection) = self {
            connection.execute(sqlx::query(RING)).await?;
        }
        Ok(())
    }

    /// Reads what follows `last` into the ledger. How many rows, and whether the flow has ended.
    async fn read(&mut self, last: &mut i64, ledger: &mut Ledger) -> Result<(usize, bool)> {
        // Of three unrelated types of rows.
        macro_rules! rows {
            ($connection:expr, $statement:expr) => {{
                let rows =
                    $connection.fetch_all(sqlx::query($statement).bind(*last).bind(PAGE as i64)).await?;
                if !rows.is_empty() {
                    ledger.look(std::time::Instant::now());
                }
                for row in &rows {
                    *last = row.try_get(0)?;
                    let (topic, frame): (&[u8], &[u8]) = (row.try_get(1)?, row.try_get(2)?);
                    if topic != TOPIC {
                        return Err("a row of another topic".into());
                    }
                    if ledger.read(frame) {
                        return Ok((rows.len(), true));
                    }
                }
                Ok((rows.len(), false))
            }};
        }
        match self {
            Self::Postgres(connection) => {
                rows!(connection, "SELECT id, topic, frame FROM bare_log WHERE id > $1 ORDER BY id LIMIT $2")
            }
            Self::MySql(connection) => {
                rows!(connection, "SELECT id, topic, frame FROM bare_log WHERE id > ? ORDER BY id LIMIT ?")
            }
            Self::Sqlite(connection) => {
                rows!(connection, "SELECT id, topic, frame FROM bare_log WHERE id > ? ORDER BY id LIMIT ?")
            }
        }
    }
}

fn values(rows: usize) -> String {
    format!("INSERT INTO bare_log (topic, frame) VALUES (?, ?){}", ", (?, ?)".repeat(rows - 1))
}

/// Inserts, one statement at a time.
pub(crate) struct Publisher {
    connection: Connection,
    rang: Option<Instant>,
}

impl Publisher {
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        Ok(Self { connection: Connection::connect(url).await?, rang: None })
    }

    /// Inserts as fast as it can, and the end. How many.
    pub(crate) async fn flat_out(mut self, duration: Duration) -> Result<u64> {
        let mut sent = 0;
        let until = Instant::now() + duration;
        let mut payloads = Vec::with_capacity(MOST_ROWS);
        while Instant::now() < until {
            payloads.clear();
            payloads.extend((sent..).take(MOST_ROWS).map(payload::numbered));
            sent += MOST_ROWS as u64;
            self.connection.insert(&payloads).await?;
            if self.rang.is_none_or(|rang| rang.elapsed() >= RING_EVERY) {
                self.ring().await?;
            }
        }
        self.end(sent).await
    }

    /// Sends so many per second, whether or not earlier ones are committed, and the end. How many. What came meanwhile
    /// is one insert.
    pub(crate) async fn paced(mut self, duration: Duration, pace: u32) -> Result<u64> {
        let (send, mut queue) = mpsc::channel(MOST_ROWS * 8);
        let sending = tokio::spawn(async move {
            let mut sent = 0;
            let mut ticks = interval(Duration::from_secs(1) / pace);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let until = Instant::now() + duration;
            while Instant::now() < until {
                ticks.tick().await;
                if send.send(payload::stamped(sent)).await.is_err() {
                    break;
                }
                sent += 1;
            }
            sent
        });
        let mut payloads = Vec::with_capacity(MOST_ROWS);
        let mut ring_at: Option<Instant> = None;
        loop {
            payloads.clear();
            let at = ring_at.unwrap_or_else(Instant::now);
            tokio::select! {
                biased;
                () = sleep_until(at), if ring_at.is_some() => {
                    self.ring().await?;
                    ring_at = None;
                }
                rows = queue.recv_many(&mut payloads, MOST_ROWS) => {
                    if rows == 0 {
                        break;
                    }
                    self.connection.insert(&payloads).await?;
                    let earliest = self.rang.map_or_else(Instant::now, |rang| rang + RING_EVERY);
                    ring_at.get_or_insert(earliest);
                }
            }
        }
        let sent = sending.await?;
        self.end(sent).await
    }

    async fn end(mut self, sent: u64) -> Result<u64> {
        self.connection.insert(&[payload::end(sent)]).await?;
        self.ring().await?;
        Ok(sent)
    }

    async fn ring(&mut self) -> Result<()> {
        self.connection.ring().await?;
        self.rang = Some(Instant::now());
        Ok(())
    }
}

/// Selects, again and again.
pub(crate) struct Subscriber {
    connection: Connection,
    wait: Wait,
}

/// How one waits for rows.
enum Wait {
    Notified(PgListener),
    /// By a number that SQLite changes with each commit of others, asked over a connection of its own.
    Version(SqliteConnection, i64),
    Paused,
}

impl Subscriber {
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        let connection = Connection::connect(url).await?;
        let wait = match &connection {
            Connection::Postgres(_) => {
                let mut listener = PgListener::connect(url).await?;
                listener.listen("bare").await?;
                Wait::Notified(listener)
            }
            Connection::MySql(_) => Wait::Paused,
            Connection::Sqlite(_) => Wait::Version(sqlite(url).connect().await?, 0),
        };
        Ok(Self { connection, wait })
    }

    /// Reads up to the end.
    pub(crate) async fn receive(mut self, ledger: &mut Ledger) -> Result<()> {
        let mut last = 0;
        loop {
            match self.connection.read(&mut last, ledger).await? {
                (_, true) => return Ok(()),
                (PAGE, false) => {}
                (_, false) => self.wait.wait().await?,
            }
        }
    }
}

impl Wait {
    async fn wait(&mut self) -> Result<()> {
        match self {
            Self::Notified(listener) => {
                if let Ok(notified) = timeout(PATIENCE, listener.recv()).await {
                    notified?;
                }
                while listener.next_buffered().is_some() {}
            }
            Self::Version(connection, known) => loop {
                let version: i64 =
                    connection.fetch_one(sqlx::query("PRAGMA data_version")).await?.try_get(0)?;
                if *known != version {
                    *known = version;
                    return Ok(());
                }
                sleep(PAUSE).await;
            },
            Self::Paused => sleep(PAUSE).await,
        }
        Ok(())
    }
}
