//! One connection.

use backplane_core::{Error, ErrorKind, Result};
use sqlx::mysql::{MySqlArguments, MySqlConnection, MySqlRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Executor as _, MySql, Row as _, SqlSafeStr as _};

use super::fault::fault;
use super::options::Settings;
use crate::store::{Row, WriterId};

/// Of our sessions: what does not fit is an error, never cut off; nothing waits long for a lock of a row; each statement
/// is a transaction, and reads what is committed when it begins.
const SETTINGS: &str = "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', autocommit = 1, \
                        innodb_lock_wait_timeout = 5, sql_auto_is_null = 0; \
                        SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";

/// Least `max_allowed_packet`: the bytes of a batch.
const LEAST_PACKET: u64 = 1 << 20;

/// What the server lets us do.
pub(super) struct Server {
    /// `max_allowed_packet`, in bytes.
    pub(super) largest_packet: usize,
    /// `auto_increment_increment`: above 1, there are several primaries.
    pub(super) id_step: u64,
}

/// One connection.
pub(super) struct Session(MySqlConnection);

impl Session {
    pub(super) async fn open(settings: &Settings) -> Result<Self> {
        let failed = |error| fault("connect", error);
        let mut connection = settings.options.connect().await.map_err(failed)?;
        connection.execute(sqlx::raw_sql(SETTINGS)).await.map_err(failed)?;
        Ok(Self(connection))
    }

    /// Asks what the server lets us do.
    pub(super) async fn server(&mut self) -> Result<Server> {
        let statement = "SELECT @@max_allowed_packet, @@auto_increment_increment, @@read_only";
        let rows = self.rows(statement.to_owned()).await;
        let read = |rows: Vec<MySqlRow>| {
            let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
            Ok((number(row, 0)?, number(row, 1)?, number(row, 2)?))
        };
        let (largest_packet, id_step, read_only) =
            rows.and_then(read).map_err(|error| fault("connect", error))?;
        if read_only != 0 {
            return Err(Error::new(ErrorKind::Unavailable, "connect")
                .with_context("the server takes no writes: it is a replica, or set to be read only"));
        }
        if largest_packet < LEAST_PACKET {
            let context = format!(
                "the server's `max_allowed_packet` is {largest_packet} bytes; at least 1 MiB is needed"
            );
            return Err(Error::new(ErrorKind::InvalidConfig, "connect").with_context(context));
        }
        Ok(Server { largest_packet: usize::try_from(largest_packet).unwrap_or(usize::MAX), id_step })
    }

    /// The rows that statements answer, all of them in one message.
    pub(super) async fn rows(&mut self, text: String) -> sqlx::Result<Vec<MySqlRow>> {
        self.0.fetch_all(sqlx::raw_sql(AssertSqlSafe(text))).await
    }

    /// How many rows a statement found to change, changed or not.
    pub(super) async fn changed(&mut self, text: String) -> sqlx::Result<u64> {
        self.0.execute(sqlx::raw_sql(AssertSqlSafe(text))).await.map(|result| result.rows_affected())
    }

    /// Prepares a statement that stays.
    pub(super) async fn prepare(&mut self, statement: &str) -> sqlx::Result<()> {
        self.0.prepare(AssertSqlSafe(statement.to_owned()).into_sql_str()).await.map(drop)
    }

    /// Appends one row by a statement that was prepared.
    pub(super) async fn append_one(
        &mut self,
        statement: &str,
        writer: WriterId,
        row: &Row,
    ) -> sqlx::Result<()> {
        self.0.execute(with_values(statement.to_owned(), writer, row)).await.map(drop)
    }

    /// Appends one row by a statement that is prepared for it and forgotten.
    pub(super) async fn append_one_unprepared(
        &mut self,
        statement: String,
        writer: WriterId,
        row: &Row,
    ) -> sqlx::Result<()> {
        self.0.execute(with_values(statement, writer, row).persistent(false)).await.map(drop)
    }
}

fn with_values<'a>(statement: String, writer: WriterId, row: &'a Row) -> Query<'a, MySql, MySqlArguments> {
    sqlx::query(AssertSqlSafe(statement))
        .bind(writer.0.to_vec())
        .bind(row.seq)
        .bind(row.key)
        .bind(row.topic.as_bytes())
        .bind(&row.frames[..])
}

/// A number of the server's, signed or not.
fn number(row: &MySqlRow, place: usize) -> sqlx::Result<u64> {
    row.try_get::<u64, _>(place).or_else(|_| {
        let signed: i64 = row.try_get(place)?;
        u64::try_from(signed).map_err(|error| sqlx::Error::Decode(error.into()))
    })
}
