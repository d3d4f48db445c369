//! Writing, reading and trimming.

use std::time::Duration;

use async_trait::async_trait;
use backplane_core::{Error, ErrorKind, Result, Topic};
use bytes::Bytes;
use sqlx::Row as _;
use sqlx::mysql::MySqlRow;

use super::fault::{fault, is_there_already, leaves_the_transaction};
use super::session::Session;
use super::statements::{self, Names};
use crate::config::LogOrder;
use crate::store::{Bounds, Content, Entry, Keeper, Mark, Reader, Row, Want, Writer, WriterId};

/// From so many bytes on a row is sent alone, by the prepared statement: as a digit for each half of a byte it would be
/// twice as long.
const LARGE: usize = 256 << 10;

/// What the head of a statement takes, and each row besides its topic and frame, in bytes; all rounded up.
const HEAD: usize = 8 << 10;
const ROW: usize = 64;
const TEXT_ROW: usize = 128;
/// Longest topic that goes with a frame of the largest size.
const TOPIC: usize = 64 << 10;

/// Largest frame of a server that takes `largest_packet` bytes.
pub(super) fn max_frame(largest_packet: usize) -> usize {
    largest_packet - HEAD - ROW - TOPIC
}

/// Appends rows.
///
/// One row travels by a statement that was prepared when the link opened, several as text. A statement for each number of
/// rows would have to be prepared again and again: that costs two round trips and, with the descriptions of all its
/// parameters in the answer, 40 ms of delayed acknowledgements, in which the next rows pile up to another number.
pub(super) struct MySqlWriter {
    session: Session,
    names: Names,
    order: LogOrder,
    /// Most bytes of rows in a statement.
    room: usize,
    /// Appends one row.
    single: String,
}

impl MySqlWriter {
    pub(super) fn new(session: Session, names: &Names, order: LogOrder, largest_packet: usize) -> Self {
        let single = statements::append_one(names);
        Self { session, names: names.clone(), order, room: largest_packet - HEAD, single }
    }

    /// Has the server prepare what appends one row, while nobody waits for a message.
    pub(super) async fn prepare(&mut self) -> Result<()> {
        self.session.prepare(&self.single).await.map_err(|error| fault("connect", error))
    }

    async fn insert(&mut self, writer: WriterId, part: &Part<'_>, known: Known) -> sqlx::Result<()> {
        match (part, known) {
            (Part::One(row), Known::No) => self.session.append_one(&self.single, writer, row).await,
            (Part::One(row), Known::Perhaps) => {
                // Not worth a place among the prepared ones: rows are hardly ever sent again.
                let statement = format!("{}{}", self.single, statements::SKIP);
                self.session.append_one_unprepared(statement, writer, row).await
            }
            (Part::Text(rows), _) => {
                let statement = statements::append(&self.names, writer, rows, known == Known::Perhaps);
                self.session.changed(statement).await.map(drop)
            }
        }
    }

    /// All of `parts`, in one transaction, and in one message where there is only one.
    async fn transaction(&mut self, writer: WriterId, parts: &[Part<'_>], known: Known) -> sqlx::Result<()> {
        let begin = match self.order {
            LogOrder::PerPublisher => "START TRANSACTION".to_owned(),
            LogOrder::Total => statements::take_turn(&self.names),
        };
        if let [Part::Text(rows)] = parts {
            let append = statements::append(&self.names, writer, rows, known == Known::Perhaps);
            return self.session.changed(format!("{begin}; {append}; COMMIT")).await.map(drop);
        }
        self.session.rows(begin).await?;
        for part in parts {
            self.insert(writer, part, known).await?;
        }
        self.session.rows("COMMIT".to_owned()).await.map(drop)
    }

    async fn attempt(&mut self, writer: WriterId, parts: &[Part<'_>], known: Known) -> sqlx::Result<()> {
        match parts {
            [part] if self.order == LogOrder::PerPublisher => self.insert(writer, part, known).await,
            _ => {
                let outcome = self.transaction(writer, parts, known).await;
                // A row that is there, or a lock that was not granted, ends the statement, not the transaction.
                if outcome.as_ref().is_err_and(leaves_the_transaction) {
                    self.session.rows("ROLLBACK".to_owned()).await?;
                }
                outcome
            }
        }
    }
}

/// Whether rows may be there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// They were not sent before, as far as we know: one that is there is an error, and nothing is written.
    No,
    /// Those that are there are skipped.
    Perhaps,
}

#[async_trait]
impl Writer for MySqlWriter {
    async fn append(&mut self, writer: WriterId, rows: &[Row]) -> Result<()> {
        let parts = parts(rows, self.order, self.room)?;
        let appended = match self.attempt(writer, &parts, Known::No).await {
            Err(error) if is_there_already(&error) => self.attempt(writer, &parts, Known::Perhaps).await,
            appended => appended,
        };
        appended.map_err(|error| fault("publish", error))
    }

    async fn ring(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Rows of one statement.
#[derive(Debug)]
enum Part<'a> {
    /// By the prepared statement.
    One(&'a Row),
    /// As text.
    Text(&'a [Row]),
}

/// Cuts `rows` where a statement of `room` bytes is full, and around large ones.
fn parts(rows: &[Row], order: LogOrder, room: usize) -> Result<Vec<Part<'_>>> {
    let mut parts = Vec::with_capacity(1);
    let (mut start, mut used) = (0, 0);
    for (place, row) in rows.iter().enumerate() {
        let bytes = row.topic.as_bytes().len() + row.frames.len();
        if ROW + bytes > room {
            let context =
                format!("a frame of {} bytes with its topic is above `max_allowed_packet`", row.frames.len());
            return Err(Error::new(ErrorKind::TooLarge, "publish").with_context(context));
        }
        let size = TEXT_ROW + 2 * bytes;
        let alone = bytes >= LARGE || size > room;
        if (alone || used + size > room) && start < place {
            parts.push(Part::Text(&rows[start..place]));
            (start, used) = (place, 0);
        }
        if alone {
            parts.push(Part::One(row));
            start = place + 1;
        } else {
            used += size;
        }
    }
    match &rows[start..] {
        [] => {}
        // With a transaction around it, text takes one message and the prepared statement three.
        [row] if parts.is_empty() && order == LogOrder::PerPublisher => parts.push(Part::One(row)),
        rest => parts.push(Part::Text(rest)),
    }
    Ok(parts)
}

/// Reads rows.
pub(super) struct MySqlReader {
    session: Session,
    names: Names,
}

impl MySqlReader {
    pub(super) fn new(session: Session, names: &Names) -> Self {
        Self { session, names: names.clone() }
    }

    async fn entries(&mut self, statement: String) -> Result<Vec<Entry>> {
        let rows = self.session.rows(statement).await;
        rows.and_then(|rows| rows.iter().map(entry).collect()).map_err(|error| fault("read", error))
    }
}

impl MySqlReader {
    async fn ends(&mut self, statement: String) -> Result<Bounds> {
        let rows = self.session.rows(statement).await.map_err(|error| fault("read", error))?;
        let Some(row) = rows.first() else {
            return Err(Error::new(ErrorKind::Unavailable, "read").with_context("the log was removed"));
        };
        bounds(row).map_err(|error| fault("read", error))
    }
}

#[async_trait]
impl Reader for MySqlReader {
    async fn bounds(&mut self) -> Result<Bounds> {
        self.ends(statements::bounds(&self.names)).await
    }

    async fn newest(&mut self) -> Result<([u8; 16], Option<Mark>)> {
        let Bounds { epoch, newest, .. } = self.ends(statements::newest(&self.names)).await?;
        Ok((epoch, newest))
    }

    async fn read(&mut self, first: i64, last: i64, limit: u32, want: Want<'_>) -> Result<Vec<Entry>> {
        self.entries(statements::read(&self.names, first, last, limit, want)).await
    }

    async fn read_writer(
        &mut self,
        writer: WriterId,
        first: i64,
        last: i64,
        limit: u32,
        want: Want<'_>,
    ) -> Result<Vec<Entry>> {
        self.entries(statements::read_writer(&self.names, writer, first, last, limit, want)).await
    }

    async fn fetch(&mut self, ids: &[i64], most: usize) -> Result<Vec<(i64, Content)>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.session.rows(statements::fetch(&self.names, ids, most)).await;
        let read = |row: &MySqlRow| {
            let missing = || sqlx::Error::Decode("a row without content".into());
            Ok((row.try_get(0)?, content(row, 1)?.ok_or_else(missing)?))
        };
        rows.and_then(|rows| rows.iter().map(read).collect()).map_err(|error| fault("read", error))
    }
}

/// Keeps the log short.
pub(super) struct MySqlKeeper {
    session: Session,
    names: Names,
    /// Where the rows begin: what lies before was deleted, and looking there again would meet rows that the server has
    /// not purged yet.
    from: i64,
    /// The newest row beyond those that are kept; counted once for all steps of a round.
    beyond: Option<i64>,
}

impl MySqlKeeper {
    pub(super) fn new(session: Session, names: &Names) -> Self {
        Self { session, names: names.clone(), from: i64::MIN, beyond: None }
    }

    async fn step(&mut self, age: Duration, rows: u64, most: u32) -> sqlx::Result<u64> {
        let statement = statements::oldest(&self.names, self.from, age, u64::from(most) + 1);
        let head = self.session.rows(statement).await?;
        let head: Vec<(i64, bool, i64)> = head
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get::<i64, _>(1)? != 0, row.try_get(2)?)))
            .collect::<sqlx::Result<_>>()?;
        let Some(&(first, _, newest)) = head.first() else { return Ok(0) };
        let beyond = self.beyond(first, newest, rows).await?;
        // The newest of all, and of the old ones, stay.
        let spared = head.iter().filter(|(_, old, _)| *old).map(|(id, ..)| *id).max();
        let goes =
            |&(id, old, _): &(i64, bool, i64)| (old || id <= beyond) && Some(id) != spared && id < newest;
        let gone: Vec<i64> =
            head.iter().filter(|row| goes(row)).map(|(id, ..)| *id).take(most as usize).collect();
        let Some(last) = gone.last() else { return Ok(0) };
        let deleted = self.session.changed(statements::delete(&self.names, &gone)).await?;
        let stays = head.iter().map(|(id, ..)| *id).find(|id| gone.binary_search(id).is_err());
        self.from = stays.unwrap_or(last + 1);
        Ok(deleted)
    }

    async fn beyond(&mut self, first: i64, newest: i64, rows: u64) -> sqlx::Result<i64> {
        if let Some(beyond) = self.beyond {
            return Ok(beyond);
        }
        // Counting is dear, and so many ids hold no more rows.
        let beyond = if newest.abs_diff(first) < rows {
            i64::MIN
        } else {
            let row = self.session.rows(statements::beyond(&self.names, rows)).await?;
            row.first().map(|row| row.try_get(0)).transpose()?.unwrap_or(i64::MIN)
        };
        Ok(*self.beyond.insert(beyond))
    }
}

#[async_trait]
impl Keeper for MySqlKeeper {
    async fn lead(&mut self, me: WriterId, term: Duration) -> Result<bool> {
        // A new round looks at everything: a row may have been committed late.
        self.from = i64::MIN;
        self.beyond = None;
        let changed = self.session.changed(statements::lead(&self.names, me, term)).await;
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

fn entry(row: &MySqlRow) -> sqlx::Result<Entry> {
    let content = if row.len() > 4 { content(row, 4)? } else { None };
    Ok(Entry {
        id: row.try_get(0)?,
        writer: writer(row, 1)?,
        seq: row.try_get(2)?,
        key: row.try_get(3)?,
        content,
    })
}

fn content(row: &MySqlRow, place: usize) -> sqlx::Result<Option<Content>> {
    // Copied: a frame must not keep the buffer of the whole row.
    let topic: Option<&[u8]> = row.try_get(place)?;
    let frames: Option<&[u8]> = row.try_get(place + 1)?;
    Ok(topic
        .zip(frames)
        .map(|(topic, frames)| Content { topic: Topic::new(topic), frames: Bytes::copy_from_slice(frames) }))
}

fn writer(row: &MySqlRow, place: usize) -> sqlx::Result<WriterId> {
    bytes16(row, place).map(WriterId)
}

fn bytes16(row: &MySqlRow, place: usize) -> sqlx::Result<[u8; 16]> {
    let bytes: &[u8] = row.try_get(place)?;
    bytes.try_into().map_err(|_| sqlx::Error::Decode("not 16 bytes".into()))
}

fn bounds(row: &MySqlRow) -> sqlx::Result<Bounds> {
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
    fn a_batch_is_cut_where_a_statement_is_full_and_around_large_rows() {
        let row = |size: usize| Row { seq: 1, topic: Topic::from(""), key: 0, frames: vec![0; size].into() };
        let cut = |rows: &[Row], order, room| {
            let size = |part: &Part<'_>| match part {
                Part::One(_) => 0,
                Part::Text(rows) => rows.len(),
            };
            parts(rows, order, room).unwrap().iter().map(size).collect::<Vec<_>>()
        };
        let publisher = LogOrder::PerPublisher;
        let rows = [row(36), row(36), row(0), row(200), row(1)];
        assert_eq!(cut(&rows, publisher, 400), [2, 1, 0, 1]);
        assert_eq!(cut(&rows, publisher, 10_000), [5]);
        let rows = [row(LARGE), row(1), row(LARGE - 1), row(LARGE)];
        assert_eq!(cut(&rows, publisher, 16 << 20), [0, 2, 0]);
        assert_eq!(cut(&rows[1..2], publisher, 16 << 20), [0]);
        assert_eq!(cut(&rows[1..2], LogOrder::Total, 16 << 20), [1]);
        assert_eq!(cut(&rows[..1], LogOrder::Total, 16 << 20), [0]);
        let error = parts(&[row(137)], publisher, 200).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
    }
}
