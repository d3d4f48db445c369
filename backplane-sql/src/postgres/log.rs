//! Writing, reading and trimming.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backplane_core::{Error, ErrorKind, Result, Topic};
use bytes::Bytes;
use sqlx::postgres::{PgRow, PgValueFormat};
use sqlx::{Row as _, ValueRef as _};

use super::copy;
use super::fault::fault;
use super::session::{Session, Value};
use super::statements::Statements;
use crate::store::{Bounds, Content, Entry, Keeper, Mark, Reader, Row, Want, Writer, WriterId};

/// From so many rows on COPY pays.
const COPY_FROM: usize = 16;

/// Appends rows.
pub(super) struct PgWriter {
    session: Session,
    statements: Arc<Statements>,
}

impl PgWriter {
    pub(super) fn new(session: Session, statements: Arc<Statements>) -> Self {
        Self { session, statements }
    }
}

#[async_trait]
impl Writer for PgWriter {
    async fn append(&mut self, writer: WriterId, rows: &[Row]) -> Result<()> {
        self.insert(writer, rows).await.map_err(|error| {
            let error = fault("publish", error);
            match error.kind() {
                ErrorKind::Unavailable | ErrorKind::Timeout => error.with_outcome_unknown(),
                _ => error,
            }
        })
    }

    async fn ring(&mut self) -> Result<()> {
        self.session.rows(&self.statements.ring, &[]).await.map(drop).map_err(|error| fault("publish", error))
    }
}

impl PgWriter {
    /// Many rows travel by COPY, few by a statement, which takes one round trip less. Rows that are there already are met
    /// only when something is sent again: then the server has to look for each.
    async fn insert(&mut self, writer: WriterId, rows: &[Row]) -> sqlx::Result<()> {
        if rows.len() >= COPY_FROM
            && let Some(copy) = &self.statements.copy
        {
            match self.session.copy(copy, &copy::encode(writer, rows)).await {
                Err(error) if is_there_already(&error) => {}
                copied => return copied.map(drop),
            }
        }
        let seqs: Vec<i64> = rows.iter().map(|row| row.seq).collect();
        let keys: Vec<i64> = rows.iter().map(|row| row.key).collect();
        let topics: Vec<&[u8]> = rows.iter().map(|row| row.topic.as_bytes()).collect();
        let frames: Vec<&[u8]> = rows.iter().map(|row| &row.frames[..]).collect();
        let values = [
            Value::Bytes(&writer.0),
            Value::Ints(&seqs),
            Value::Ints(&keys),
            Value::Blobs(&topics),
            Value::Blobs(&frames),
        ];
        if rows.len() < COPY_FROM || self.statements.copy.is_none() {
            match self.session.changed(&self.statements.append, &values).await {
                Err(error) if is_there_already(&error) => {}
                appended => return appended.map(drop),
            }
        }
        self.session.changed(&self.statements.append_again, &values).await.map(drop)
    }
}

/// Nothing was written, for a row has the writer and the number of one of ours.
fn is_there_already(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation)
}

/// Reads rows.
pub(super) struct PgReader {
    session: Session,
    statements: Arc<Statements>,
    /// Stands for the server's run, see [`Statements::run`]. Part of the epoch.
    run: [u8; 16],
}

impl PgReader {
    pub(super) async fn new(mut session: Session, statements: Arc<Statements>) -> Result<Self> {
        // Not every service like PostgreSQL tells these: then the log's own row is all there is to know it by.
        let run = match session.rows(&statements.run, &[]).await {
            Ok(rows) => rows.first().map_or(Ok([0; 16]), |row| bytes16(row, 0)),
            Err(error) if error.as_database_error().is_some() => {
                tracing::debug!(%error, "the server does not tell its timeline");
                Ok([0; 16])
            }
            Err(error) => Err(error),
        };
        let run = run.map_err(|error| fault("connect", error))?;
        Ok(Self { session, statements, run })
    }

    async fn ends(&mut self, statement: &Arc<str>) -> Result<Bounds> {
        let rows = self.session.rows(statement, &[]).await.map_err(|error| fault("read", error))?;
        let Some(row) = rows.first() else {
            return Err(Error::new(ErrorKind::Unavailable, "read").with_context("the log was removed"));
        };
        let mut bounds = bounds(row).map_err(|error| fault("read", error))?;
        for (byte, run) in bounds.epoch.iter_mut().zip(self.run) {
            *byte ^= run;
        }
        Ok(bounds)
    }

    async fn entries(&mut self, statement: &Arc<str>, values: &[Value<'_>]) -> Result<Vec<Entry>> {
        let rows = self.session.rows(statement, values).await;
        rows.and_then(|rows| rows.iter().map(entry).collect()).map_err(|error| fault("read", error))
    }
}

#[async_trait]
impl Reader for PgReader {
    async fn bounds(&mut self) -> Result<Bounds> {
        self.ends(&self.statements.bounds.clone()).await
    }

    async fn newest(&mut self) -> Result<([u8; 16], Option<Mark>)> {
        let Bounds { epoch, newest, .. } = self.ends(&self.statements.newest.clone()).await?;
        Ok((epoch, newest))
    }

    async fn read(&mut self, first: i64, last: i64, limit: u32, want: Want<'_>) -> Result<Vec<Entry>> {
        let statements = self.statements.clone();
        let (first, last, limit) = (Value::Int(first), Value::Int(last), Value::Int(limit.into()));
        match want {
            Want::Keys(keys, most) if !keys.is_empty() => {
                let values = [first, last, limit, Value::Ints(keys), size(most)];
                self.entries(&statements.read_wanted, &values).await
            }
            _ => self.entries(&statements.read, &[first, last, limit]).await,
        }
    }

    async fn read_writer(
        &mut self,
        writer: WriterId,
        first: i64,
        last: i64,
        limit: u32,
        want: Want<'_>,
    ) -> Result<Vec<Entry>> {
        let statements = self.statements.clone();
        let (first, last, limit) = (Value::Int(first), Value::Int(last), Value::Int(limit.into()));
        let writer = Value::Bytes(&writer.0);
        match want {
            Want::Keys(keys, most) if !keys.is_empty() => {
                let values = [first, last, limit, Value::Ints(keys), size(most), writer];
                self.entries(&statements.read_writer_wanted, &values).await
            }
            _ => self.entries(&statements.read_writer, &[first, last, limit, writer]).await,
        }
    }

    async fn fetch(&mut self, ids: &[i64], most: usize) -> Result<Vec<(i64, Content)>> {
        let rows = self.session.rows(&self.statements.fetch, &[Value::Ints(ids), size(most)]).await;
        let read = |row: &PgRow| {
            let missing = || sqlx::Error::Decode("a row without content".into());
            Ok((row.try_get(0)?, content(row, 1)?.ok_or_else(missing)?))
        };
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(|error| fault("read", error))
    }
}

/// Keeps the log short.
pub(super) struct PgKeeper {
    session: Session,
    statements: Arc<Statements>,
    /// Where the rows begin: what lies before was deleted, and looking there again would meet every dead row that no
    /// vacuum has cleared yet.
    from: i64,
    /// The newest row beyond those that are kept; counted once for all steps of a round.
    beyond: Option<i64>,
}

impl PgKeeper {
    pub(super) fn new(session: Session, statements: Arc<Statements>) -> Self {
        Self { session, statements, from: 0, beyond: None }
    }

    async fn count(&mut self, rows: u64) -> sqlx::Result<i64> {
        let rows = Value::Int(i64::try_from(rows).unwrap_or(i64::MAX));
        let answer = self.session.rows(&self.statements.beyond, &[rows, Value::Int(self.from)]).await?;
        let beyond: Option<i64> = answer.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)?;
        Ok(beyond.unwrap_or(i64::MIN))
    }

    async fn step(&mut self, age: Duration, rows: u64, most: u32) -> sqlx::Result<u64> {
        let beyond = match self.beyond {
            Some(beyond) => beyond,
            None => self.count(rows).await?,
        };
        self.beyond = Some(beyond);
        let values = [microseconds(age), Value::Int(beyond), Value::Int(most.into()), Value::Int(self.from)];
        let answer = self.session.rows(&self.statements.trim, &values).await?;
        let row = answer.first().ok_or(sqlx::Error::RowNotFound)?;
        let deleted: i64 = row.try_get(0)?;
        if let Some(from) = row.try_get(1)? {
            self.from = from;
        }
        Ok(u64::try_from(deleted).unwrap_or_default())
    }
}

#[async_trait]
impl Keeper for PgKeeper {
    async fn lead(&mut self, me: WriterId, term: Duration) -> Result<bool> {
        // A new round looks at everything: a row may have been committed late.
        self.from = 0;
        self.beyond = None;
        let values = [Value::Bytes(&me.0), microseconds(term)];
        let changed = self.session.changed(&self.statements.lead, &values).await;
        changed.map(|rows| rows > 0).map_err(|error| fault("lead", error))
    }

    async fn trim(&mut self, age: Duration, rows: u64, most: u32) -> Result<u64> {
        let deleted = self.step(age, rows, most).await.map_err(|error| fault("trim", error))?;
        if deleted < u64::from(most) {
            self.beyond = None;
        }
        Ok(deleted)
    }
}

/// Bytes.
fn size(bytes: usize) -> Value<'static> {
    Value::Int(i64::try_from(bytes).unwrap_or(i64::MAX))
}

fn microseconds(duration: Duration) -> Value<'static> {
    Value::Int(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX))
}

fn entry(row: &PgRow) -> sqlx::Result<Entry> {
    let content = if row.len() > 4 { content(row, 4)? } else { None };
    Ok(Entry {
        id: row.try_get(0)?,
        writer: writer(row, 1)?,
        seq: row.try_get(2)?,
        key: row.try_get(3)?,
        content,
    })
}

fn content(row: &PgRow, place: usize) -> sqlx::Result<Option<Content>> {
    let topic = bytes(row, place)?;
    let frames = bytes(row, place + 1)?;
    Ok(topic
        .zip(frames)
        .map(|(topic, frames)| Content { topic: Topic::new(&topic), frames: Bytes::from(frames) }))
}

fn writer(row: &PgRow, place: usize) -> sqlx::Result<WriterId> {
    bytes16(row, place).map(WriterId)
}

fn bytes16(row: &PgRow, place: usize) -> sqlx::Result<[u8; 16]> {
    let bytes = bytes(row, place)?.unwrap_or_default();
    bytes.try_into().map_err(|_| sqlx::Error::Decode("not 16 bytes".into()))
}

/// Copied: the answer is one buffer, and a frame must not keep all of it.
fn bytes(row: &PgRow, place: usize) -> sqlx::Result<Option<Vec<u8>>> {
    let value = row.try_get_raw(place)?;
    if value.is_null() {
        return Ok(None);
    }
    let bytes = match value.format() {
        PgValueFormat::Binary => value.as_bytes().map(<[u8]>::to_vec),
        PgValueFormat::Text => value.as_bytes().and_then(|text| {
            from_hex(text)
                .ok_or_else(|| "not `\\x` and hexadecimal digits: is `bytea_output` not `hex`?".into())
        }),
    };
    bytes.map(Some).map_err(sqlx::Error::Decode)
}

/// As the server writes bytes in an answer to a statement that was not prepared.
fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.strip_prefix(b"\\x")?;
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    };
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let mut bytes = vec![0; digits.len() / 2];
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = value(digits[2 * place])? << 4 | value(digits[2 * place + 1])?;
    }
    Some(bytes)
}

fn bounds(row: &PgRow) -> sqlx::Result<Bounds> {
    let newest: Option<i64> = row.try_get(2)?;
    let newest = match newest {
        Some(id) => Some(Mark { id, writer: writer(row, 3)?, seq: row.try_get(4)? }),
        None => None,
    };
    Ok(Bounds { epoch: bytes16(row, 0)?, oldest: row.try_get(1)?, newest })
}

#[cfg(test)]
mod units {
    use super::*;

    #[test]
    fn hexadecimal_digits_are_read_and_nothing_else_is() {
        assert_eq!(from_hex(b"\\x00fFA9").unwrap(), [0, 0xff, 0xa9]);
        assert!(from_hex(b"\\x").unwrap().is_empty());
        for wrong in [&b""[..], b"\\x0", b"\\x0g", b"00", b"\\001"] {
            assert_eq!(from_hex(wrong), None);
        }
    }
}
