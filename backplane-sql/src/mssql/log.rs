//! Writing, reading and trimming.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backplane_core::{Error, ErrorKind, Result, Topic};
use bytes::Bytes;
use tiberius::{FromSql, ToSql};

use super::fault::fault;
use super::session::Session;
use super::statements::{Statements, padded};
use crate::store::{Bounds, Content, Entry, Keeper, Mark, Reader, Row, Want, Writer, WriterId};

/// Appends rows.
pub(super) struct SqlServerWriter {
    session: Session,
    statements: Arc<Statements>,
}

impl SqlServerWriter {
    pub(super) fn new(session: Session, statements: Arc<Statements>) -> Self {
        Self { session, statements }
    }

    /// Has the server make its plan now, while nobody waits for a message: by appending nothing.
    pub(super) async fn prepare(&mut self) -> Result<()> {
        self.write(WriterId([0; 16]), &[]).await.map_err(|error| fault("connect", error))
    }

    async fn write(&mut self, writer: WriterId, rows: &[Row]) -> tiberius::Result<()> {
        let (places, bytes) = packed(rows);
        let values: [&dyn ToSql; 3] = [&&writer.0[..], &places, &bytes];
        self.session.results(&self.statements.append, &values).await.map(drop)
    }
}

#[async_trait]
impl Writer for SqlServerWriter {
    async fn append(&mut self, writer: WriterId, rows: &[Row]) -> Result<()> {
        let Err(error) = self.write(writer, rows).await else { return Ok(()) };
        let error = fault("publish", error);
        if error.kind() == ErrorKind::Overloaded {
            // A deadlock has ended the transaction; make sure of it for every other reason.
            let rollback = self.session.batch("IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION").await;
            rollback.map_err(|error| fault("publish", error))?;
        }
        Err(error)
    }

    async fn ring(&mut self) -> Result<()> {
        Ok(())
    }
}

/// The rows as one value of bytes, topics and frames in turn, and one that says what lies where: seq, key, place from 1,
/// length of the topic, length of the frame.
fn packed(rows: &[Row]) -> (String, Vec<u8>) {
    let size = rows.iter().map(|row| row.topic.as_bytes().len() + row.frames.len()).sum();
    let mut bytes = Vec::with_capacity(size);
    let mut places = String::with_capacity(rows.len() * 80 + 2);
    for row in rows {
        let before = if places.is_empty() { '[' } else { ',' };
        let (place, topic) = (bytes.len() + 1, row.topic.as_bytes());
        write!(
            places,
            "{before}{{\"s\":{},\"k\":{},\"o\":{place},\"t\":{},\"f\":{}}}",
            row.seq,
            row.key,
            topic.len(),
            row.frames.len()
        )
        .expect("writing to a string cannot fail");
        bytes.extend_from_slice(topic);
        bytes.extend_from_slice(&row.frames);
    }
    places.push_str(if places.is_empty() { "[]" } else { "]" });
    (places, bytes)
}

/// Reads rows.
pub(super) struct SqlServerReader {
    session: Session,
    statements: Arc<Statements>,
}

impl SqlServerReader {
    pub(super) fn new(session: Session, statements: Arc<Statements>) -> Self {
        Self { session, statements }
    }

    /// Has the server make its plan now, while nobody waits for a message: by reading nothing.
    pub(super) async fn prepare(&mut self) -> Result<()> {
        let read = self.read(0, -1, 1, Want::Keys(&[0], usize::MAX)).await;
        read.map(drop).map_err(|error| Error::new(error.kind(), "connect").with_source(error))
    }

    async fn entries(&mut self, statement: &str, values: &[&dyn ToSql]) -> Result<Vec<Entry>> {
        let rows = self.session.rows(statement, values).await;
        rows.and_then(|rows| rows.iter().map(entry).collect()).map_err(|error| fault("read", error))
    }
}

/// The keys whose content is wanted, and its most bytes, as parameters.
fn wanted(want: Want<'_>) -> (Vec<i64>, i64) {
    match want {
        Want::Keys(keys, most) => (padded(keys), size(most)),
        Want::NoContent => (Vec::new(), 0),
    }
}

/// Bytes.
fn size(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

impl SqlServerReader {
    async fn ends(&mut self, newest: bool) -> Result<Bounds> {
        let statement = if newest { &self.statements.newest } else { &self.statements.bounds };
        let rows = self.session.rows(statement, &[]).await.map_err(|error| fault("read", error))?;
        let Some(row) = rows.first() else {
            return Err(Error::new(ErrorKind::Unavailable, "read").with_context("the log was removed"));
        };
        bounds(row).map_err(|error| fault("read", error))
    }
}

#[async_trait]
impl Reader for SqlServerReader {
    async fn bounds(&mut self) -> Result<Bounds> {
        self.ends(false).await
    }

    async fn newest(&mut self) -> Result<([u8; 16], Option<Mark>)> {
        let Bounds { epoch, newest, .. } = self.ends(true).await?;
        Ok((epoch, newest))
    }

    async fn read(&mut self, first: i64, last: i64, limit: u32, want: Want<'_>) -> Result<Vec<Entry>> {
        let (keys, most) = wanted(want);
        let limit = i64::from(limit);
        let mut values: Vec<&dyn ToSql> = vec![&first, &last, &limit];
        if !keys.is_empty() {
            values.push(&most);
        }
        values.extend(keys.iter().map(|key| key as &dyn ToSql));
        let statement = self.statements.read(keys.len());
        self.entries(&statement, &values).await
    }

    async fn read_writer(
        &mut self,
        writer: WriterId,
        first: i64,
        last: i64,
        limit: u32,
        want: Want<'_>,
    ) -> Result<Vec<Entry>> {
        let (keys, most) = wanted(want);
        let limit = i64::from(limit);
        let writer = &writer.0[..];
        let mut values: Vec<&dyn ToSql> = vec![&first, &last, &limit, &writer];
        if !keys.is_empty() {
            values.push(&most);
        }
        values.extend(keys.iter().map(|key| key as &dyn ToSql));
        let statement = self.statements.read_writer(keys.len());
        self.entries(&statement, &values).await
    }

    async fn fetch(&mut self, ids: &[i64], most: usize) -> Result<Vec<(i64, Content)>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let ids = padded(ids);
        let most = size(most);
        let mut values: Vec<&dyn ToSql> = vec![&most];
        values.extend(ids.iter().map(|id| id as &dyn ToSql));
        let rows = self.session.rows(&self.statements.fetch(ids.len()), &values).await;
        let read = |row: &tiberius::Row| {
            Ok((column(row, 0)?, content(row, 1)?.ok_or_else(|| unexpected("a row without content"))?))
        };
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(|error| fault("read", error))
    }
}

/// Keeps the log short.
pub(super) struct SqlServerKeeper {
    session: Session,
    statements: Arc<Statements>,
    /// Where the rows begin: what lies before was deleted, and looking there again would meet rows that the server has
    /// not cleaned up yet.
    from: i64,
    /// The newest row beyond those that are kept; counted once for all steps of a round.
    beyond: Option<i64>,
}

impl SqlServerKeeper {
    pub(super) fn new(session: Session, statements: Arc<Statements>) -> Self {
        Self { session, statements, from: i64::MIN, beyond: None }
    }

    async fn step(&mut self, age: Duration, rows: u64, most: u32) -> tiberius::Result<u64> {
        let values: [&dyn ToSql; 3] = [&self.from, &milliseconds(age), &(i64::from(most) + 1)];
        let head = self.session.rows(&self.statements.oldest, &values).await?;
        let head: Vec<(i64, bool, i64)> = head
            .iter()
            .map(|row| Ok((column(row, 0)?, column::<i32>(row, 1)? != 0, column(row, 2)?)))
            .collect::<tiberius::Result<_>>()?;
        let Some(&(first, _, newest)) = head.first() else { return Ok(0) };
        let beyond = self.beyond(first, newest, rows).await?;
        // The newest of all, and of the old ones, stay.
        let spared = head.iter().filter(|(_, old, _)| *old).map(|(id, ..)| *id).max();
        let goes =
            |&(id, old, _): &(i64, bool, i64)| (old || id <= beyond) && Some(id) != spared && id < newest;
        let gone: Vec<i64> =
            head.iter().filter(|row| goes(row)).map(|(id, ..)| *id).take(most as usize).collect();
        let Some(last) = gone.last() else { return Ok(0) };
        let ids = format!("{gone:?}");
        let counted = self.session.rows(&self.statements.delete, &[&ids]).await?;
        let stays = head.iter().map(|(id, ..)| *id).find(|id| gone.binary_search(id).is_err());
        self.from = stays.unwrap_or(last + 1);
        count(&counted)
    }

    async fn beyond(&mut self, first: i64, newest: i64, rows: u64) -> tiberius::Result<i64> {
        if let Some(beyond) = self.beyond {
            return Ok(beyond);
        }
        // Counting is dear, and so many ids hold no more rows.
        let beyond = if newest.abs_diff(first) < rows {
            i64::MIN
        } else {
            let rows = i64::try_from(rows).unwrap_or(i64::MAX);
            let row = self.session.rows(&self.statements.beyond, &[&rows]).await?;
            row.first().map(|row| column(row, 0)).transpose()?.unwrap_or(i64::MIN)
        };
        Ok(*self.beyond.insert(beyond))
    }
}

#[async_trait]
impl Keeper for SqlServerKeeper {
    async fn lead(&mut self, me: WriterId, term: Duration) -> Result<bool> {
        // A new round looks at everything: a row may have been committed late.
        self.from = i64::MIN;
        self.beyond = None;
        let me = &me.0[..];
        let counted = self.session.rows(&self.statements.lead, &[&me, &milliseconds(term)]).await;
        counted.and_then(|rows| count(&rows)).map(|rows| rows > 0).map_err(|error| fault("lead", error))
    }

    async fn trim(&mut self, age: Duration, rows: u64, most: u32) -> Result<u64> {
        let deleted = self.step(age, rows, most).await.map_err(|error| fault("trim", error))?;
        if deleted < u64::from(most) {
            self.beyond = None;
        }
        Ok(deleted)
    }
}

/// The server adds no more than 32 bits can hold: 24 days.
fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

/// The number in the only row.
fn count(rows: &[tiberius::Row]) -> tiberius::Result<u64> {
    let row = rows.first().ok_or_else(|| unexpected("no count"))?;
    u64::try_from(column::<i32>(row, 0)?).map_err(|_| unexpected("a count below 0"))
}

fn entry(row: &tiberius::Row) -> tiberius::Result<Entry> {
    let content = if row.len() > 4 { content(row, 4)? } else { None };
    Ok(Entry {
        id: column(row, 0)?,
        writer: WriterId(bytes16(row, 1)?),
        seq: column(row, 2)?,
        key: column(row, 3)?,
        content,
    })
}

fn content(row: &tiberius::Row, place: usize) -> tiberius::Result<Option<Content>> {
    let topic: Option<&[u8]> = row.try_get(place)?;
    let frames: Option<&[u8]> = row.try_get(place + 1)?;
    Ok(topic
        .zip(frames)
        .map(|(topic, frames)| Content { topic: Topic::new(topic), frames: Bytes::copy_from_slice(frames) }))
}

fn bytes16(row: &tiberius::Row, place: usize) -> tiberius::Result<[u8; 16]> {
    let bytes: &[u8] = column(row, place)?;
    bytes.try_into().map_err(|_| unexpected("not 16 bytes"))
}

fn column<'a, T: FromSql<'a>>(row: &'a tiberius::Row, place: usize) -> tiberius::Result<T> {
    row.try_get(place)?.ok_or_else(|| unexpected("nothing where there must be something"))
}

fn unexpected(what: &'static str) -> tiberius::error::Error {
    tiberius::error::Error::Conversion(what.into())
}

fn bounds(row: &tiberius::Row) -> tiberius::Result<Bounds> {
    let newest: Option<i64> = row.try_get(2)?;
    let newest = match newest {
        Some(id) => Some(Mark { id, writer: WriterId(bytes16(row, 3)?), seq: column(row, 4)? }),
        None => None,
    };
    Ok(Bounds { epoch: bytes16(row, 0)?, oldest: row.try_get(1)?, newest })
}

#[cfg(test)]
mod units {
    use super::*;

    #[test]
    fn rows_are_packed_one_behind_the_other() {
        let row = |seq, key, topic: &str, frames: &'static [u8]| Row {
            seq,
            key,
            topic: Topic::from(topic),
            frames: Bytes::from_static(frames),
        };
        let (places, bytes) =
            packed(&[row(1, i64::MIN, "ab", b"c"), row(2, 7, "", b""), row(3, 7, "d", b"\"]")]);
        assert_eq!(
            places,
            "[{\"s\":1,\"k\":-9223372036854775808,\"o\":1,\"t\":2,\"f\":1},{\"s\":2,\"k\":7,\"o\":4,\"t\":0,\"f\":0},\
             {\"s\":3,\"k\":7,\"o\":4,\"t\":1,\"f\":2}]"
        );
        assert_eq!(bytes, b"abcd\"]");
        assert_eq!(packed(&[]).0, "[]");
    }
}
