//! Writing, reading and trimming.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backplane_core::{Error, ErrorKind, Result, Topic};
use bytes::Bytes;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::fault::{fault, is_busy};
use super::file::LogFile;
use super::session::{Query, Session, query, query_once};
use super::statements::{Names, Statements};
use crate::store::{Bounds, Content, Entry, Keeper, Mark, Reader, Row, Want, Writer, WriterId};

/// From how many pages of the write-ahead log on (64 MiB) it is cut back.
const LONG_WAL: i64 = 16_384;

/// Rows of the statements that are prepared once: writing a long one anew takes longer than running it.
const SIZES: [usize; 4] = [1, 8, 64, 512];

/// Appends rows.
pub(super) struct SqliteWriter {
    session: Session,
    names: Names,
    /// For so many rows of [`SIZES`] each, prepared.
    appends: [Arc<str>; SIZES.len()],
    file: Arc<LogFile>,
}

impl SqliteWriter {
    pub(super) fn new(session: Session, names: Names, file: Arc<LogFile>) -> Self {
        let appends = SIZES.map(|rows| names.append(rows).into());
        Self { session, appends, names, file }
    }
}

#[async_trait]
impl Writer for SqliteWriter {
    /// One statement by itself is a transaction that writes from its beginning: it waits for its turn before it reads
    /// anything, as after `BEGIN IMMEDIATE`.
    async fn append(&mut self, writer: WriterId, rows: &[Row]) -> Result<()> {
        self.file.check("publish")?;
        if rows.is_empty() {
            return Ok(());
        }
        // What stays unbound is no row.
        let statement = match SIZES.iter().position(|size| *size >= rows.len()) {
            Some(place) => query(&self.appends[place]),
            None => query_once(self.names.append(rows.len())),
        };
        let statement = rows.iter().fold(statement.bind(writer.0.to_vec()), |statement, row| {
            statement
                .bind(row.seq)
                .bind(row.key)
                .bind(row.topic.as_bytes().to_vec())
                .bind(row.frames.to_vec())
        });
        self.session.changed(statement).await.map_err(|error| {
            let error = fault("publish", error);
            if error.kind() == ErrorKind::Unavailable { error.with_outcome_unknown() } else { error }
        })?;
        // Replaced meanwhile, it took the rows with it.
        self.file.check("publish").map_err(Error::with_outcome_unknown)
    }

    /// The commit itself rings.
    async fn ring(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Reads rows.
pub(super) struct SqliteReader {
    session: Session,
    statements: Arc<Statements>,
    file: Arc<LogFile>,
}

impl SqliteReader {
    pub(super) fn new(session: Session, statements: Arc<Statements>, file: Arc<LogFile>) -> Self {
        Self { session, statements, file }
    }

    async fn ends(&mut self, statement: &Arc<str>) -> Result<Bounds> {
        self.file.check("read")?;
        let rows = self.session.rows(query(statement)).await.map_err(|error| fault("read", error))?;
        let Some(row) = rows.first() else {
            return Err(Error::new(ErrorKind::Unavailable, "read").with_context("the log was removed"));
        };
        bounds(row).map_err(|error| fault("read", error))
    }

    async fn entries(&mut self, statement: Query) -> Result<Vec<Entry>> {
        self.file.check("read")?;
        let rows = self.session.rows(statement).await;
        rows.and_then(|rows| rows.iter().map(entry).collect()).map_err(|error| fault("read", error))
    }
}

#[async_trait]
impl Reader for SqliteReader {
    async fn bounds(&mut self) -> Result<Bounds> {
        self.ends(&self.statements.bounds.clone()).await
    }

    async fn newest(&mut self) -> Result<([u8; 16], Option<Mark>)> {
        let Bounds { epoch, newest, .. } = self.ends(&self.statements.newest.clone()).await?;
        Ok((epoch, newest))
    }

    async fn read(&mut self, first: i64, last: i64, limit: u32, want: Want<'_>) -> Result<Vec<Entry>> {
        let statement = match want {
            Want::Keys(keys, most) if !keys.is_empty() => {
                let statement = query(&self.statements.read_wanted).bind(first).bind(last).bind(limit);
                statement.bind(json(keys)).bind(size(most))
            }
            _ => query(&self.statements.read).bind(first).bind(last).bind(limit),
        };
        self.entries(statement).await
    }

    async fn read_writer(
        &mut self,
        writer: WriterId,
        first: i64,
        last: i64,
        limit: u32,
        want: Want<'_>,
    ) -> Result<Vec<Entry>> {
        let statement = match want {
            Want::Keys(keys, most) if !keys.is_empty() => {
                let statement = query(&self.statements.read_writer_wanted).bind(first).bind(last).bind(limit);
                statement.bind(json(keys)).bind(size(most))
            }
            _ => query(&self.statements.read_writer).bind(first).bind(last).bind(limit),
        };
        self.entries(statement.bind(writer.0.to_vec())).await
    }

    async fn fetch(&mut self, ids: &[i64], most: usize) -> Result<Vec<(i64, Content)>> {
        self.file.check("read")?;
        let rows = self.session.rows(query(&self.statements.fetch).bind(json(ids)).bind(size(most))).await;
        let read = |row: &SqliteRow| {
            let missing = || sqlx::Error::Decode("a row without content".into());
            Ok((row.try_get(0)?, content(row, 1)?.ok_or_else(missing)?))
        };
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(|error| fault("read", error))
    }
}

/// Keeps the log short. Where somebody writes just then, there is a next time.
pub(super) struct SqliteKeeper {
    session: Session,
    statements: Arc<Statements>,
    /// The newest row beyond those that are kept; counted once for all steps of a round.
    beyond: Option<i64>,
}

impl SqliteKeeper {
    pub(super) fn new(session: Session, statements: Arc<Statements>) -> Self {
        Self { session, statements, beyond: None }
    }

    /// Brings the write-ahead log into the file, without keeping anybody from anything; one that has become long all the
    /// same is cut back, for which others wait a moment.
    async fn checkpoint(&mut self) -> sqlx::Result<()> {
        let row = self.session.row(query(&self.statements.checkpoint)).await?;
        let (pages, done): (i64, i64) = (row.try_get(1)?, row.try_get(2)?);
        if pages >= LONG_WAL && done == pages {
            self.session.row(query(&self.statements.cut)).await?;
        }
        Ok(())
    }

    async fn step(&mut self, age: Duration, rows: u64, most: u32) -> sqlx::Result<u64> {
        let beyond = match self.beyond {
            Some(beyond) => beyond,
            None => {
                let keep = i64::try_from(rows).unwrap_or(i64::MAX);
                let row = self.session.row(query(&self.statements.beyond).bind(keep)).await?;
                row.try_get::<Option<i64>, _>(0)?.unwrap_or(i64::MIN)
            }
        };
        self.beyond = Some(beyond);
        let trim = query(&self.statements.trim).bind(milliseconds(age)).bind(beyond).bind(most);
        self.session.changed(trim).await
    }
}

#[async_trait]
impl Keeper for SqliteKeeper {
    async fn lead(&mut self, me: WriterId, term: Duration) -> Result<bool> {
        self.beyond = None;
        let lead = query(&self.statements.lead).bind(me.0.to_vec()).bind(milliseconds(term));
        let leads = match self.session.changed(lead).await {
            Err(error) if is_busy(&error) => false,
            changed => changed.map_err(|error| fault("lead", error))? > 0,
        };
        if leads {
            match self.checkpoint().await {
                Err(error) if !is_busy(&error) => return Err(fault("lead", error)),
                _ => {}
            }
        }
        Ok(leads)
    }

    async fn trim(&mut self, age: Duration, rows: u64, most: u32) -> Result<u64> {
        let deleted = match self.step(age, rows, most).await {
            Err(error) if is_busy(&error) => 0,
            step => step.map_err(|error| fault("trim", error))?,
        };
        if deleted < u64::from(most) {
            self.beyond = None;
        }
        Ok(deleted)
    }
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 2)
}

/// Numbers as a JSON array.
fn json(numbers: &[i64]) -> String {
    let mut text = String::with_capacity(numbers.len() * 21 + 2);
    text.push('[');
    for (place, number) in numbers.iter().enumerate() {
        let comma = if place == 0 { "" } else { "," };
        write!(text, "{comma}{number}").expect("writing to a string cannot fail");
    }
    text.push(']');
    text
}

fn entry(row: &SqliteRow) -> sqlx::Result<Entry> {
    let content = if row.len() > 4 { content(row, 4)? } else { None };
    let writer = WriterId(bytes16(row, 1)?);
    Ok(Entry { id: row.try_get(0)?, writer, seq: row.try_get(2)?, key: row.try_get(3)?, content })
}

/// Bytes.
fn size(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn content(row: &SqliteRow, place: usize) -> sqlx::Result<Option<Content>> {
    let topic: Option<Vec<u8>> = row.try_get(place)?;
    let frames: Option<Vec<u8>> = row.try_get(place + 1)?;
    Ok(topic
        .zip(frames)
        .map(|(topic, frames)| Content { topic: Topic::new(&topic), frames: Bytes::from(frames) }))
}

fn bytes16(row: &SqliteRow, place: usize) -> sqlx::Result<[u8; 16]> {
    let bytes: Vec<u8> = row.try_get(place)?;
    bytes.try_into().map_err(|_| sqlx::Error::Decode("not 16 bytes".into()))
}

fn bounds(row: &SqliteRow) -> sqlx::Result<Bounds> {
    let newest: Option<i64> = row.try_get(2)?;
    let newest = match newest {
        Some(id) => Some(Mark { id, writer: WriterId(bytes16(row, 3)?), seq: row.try_get(4)? }),
        None => None,
    };
    Ok(Bounds { epoch: bytes16(row, 0)?, oldest: row.try_get(1)?, newest })
}
