//! The statements, with the names of one log. Values stand in them as numbers and hexadecimal digits, which cannot be
//! read as anything else; only [`append_one`] has parameters.

use std::fmt::Write as _;
use std::time::Duration;

use crate::config::LogConfig;
use crate::store::{Row, Want, WriterId};

/// The schema file, as operators have it.
const SCHEMA: &str = include_str!("../../schema/mysql.sql");

/// What the tables are called, quoted. The configuration has checked them: letters, digits and `_`.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) log: String,
    pub(super) meta: String,
}

impl Names {
    pub(super) fn of(config: &LogConfig) -> Self {
        let LogConfig { table, .. } = config;
        Self { log: format!("`{table}_log`"), meta: format!("`{table}_meta`") }
    }

    /// The schema file with these names.
    pub(super) fn schema_script(&self) -> String {
        SCHEMA.replace("`backplane_log`", &self.log).replace("`backplane_meta`", &self.meta)
    }
}

/// What an append ends with so that a row that is there already changes nothing. `INSERT IGNORE` would do so too, and turn
/// every other failure into a warning: a frame that was cut off among them.
pub(super) const SKIP: &str = " ON DUPLICATE KEY UPDATE id = id";

/// Appends one row; its parameters are writer, seq, key, topic and frame.
pub(super) fn append_one(names: &Names) -> String {
    format!("{}(?,?,?,?,?,UTC_TIMESTAMP(6))", insert(names))
}

/// Appends rows, in their order; `skip`: those that are there already are left as they are.
pub(super) fn append(names: &Names, writer: WriterId, rows: &[Row], skip: bool) -> String {
    let size: usize = rows.iter().map(|row| 128 + 2 * (row.topic.as_bytes().len() + row.frames.len())).sum();
    let mut text = insert(names);
    text.reserve(size + SKIP.len());
    let writer = bytes(&writer.0);
    for (place, row) in rows.iter().enumerate() {
        let comma = if place == 0 { "" } else { "," };
        write!(text, "{comma}({writer},{},{},", row.seq, row.key).expect("writing to a string cannot fail");
        digits(&mut text, row.topic.as_bytes());
        text.push(',');
        digits(&mut text, &row.frames);
        text.push_str(",UTC_TIMESTAMP(6))");
    }
    if skip {
        text.push_str(SKIP);
    }
    text
}

fn insert(names: &Names) -> String {
    format!("INSERT INTO {} (writer, seq, `key`, topic, frames, at) VALUES ", names.log)
}

/// Begins a transaction that no other writer of the log is in. Ids are handed out after it and are seen before the
/// next one gets here.
pub(super) fn take_turn(names: &Names) -> String {
    format!("START TRANSACTION; SELECT one FROM {} WHERE one = 1 FOR UPDATE", names.meta)
}

pub(super) fn bounds(names: &Names) -> String {
    ends(names, &format!("(SELECT MIN(id) FROM {})", names.log))
}

pub(super) fn newest(names: &Names) -> String {
    ends(names, "NULL")
}

fn ends(Names { log, meta }: &Names, oldest: &str) -> String {
    format!(
        "SELECT m.epoch, {oldest}, n.id, n.writer, n.seq \
         FROM {meta} m LEFT JOIN (SELECT id, writer, seq FROM {log} ORDER BY id DESC LIMIT 1) n ON TRUE WHERE m.one = 1"
    )
}

pub(super) fn read(names: &Names, first: i64, last: i64, limit: u32, want: Want<'_>) -> String {
    format!(
        "SELECT id, writer, seq, `key`{} FROM {} WHERE id BETWEEN {first} AND {last} ORDER BY id LIMIT {limit}",
        content(want),
        names.log
    )
}

pub(super) fn read_writer(
    names: &Names,
    writer: WriterId,
    first: i64,
    last: i64,
    limit: u32,
    want: Want<'_>,
) -> String {
    format!(
        "SELECT id, writer, seq, `key`{} FROM {} WHERE writer = {} AND seq BETWEEN {first} AND {last} \
         ORDER BY seq LIMIT {limit}",
        content(want),
        names.log,
        bytes(&writer.0)
    )
}

pub(super) fn fetch(names: &Names, ids: &[i64], most: usize) -> String {
    format!(
        "SELECT id, topic, frames FROM {} WHERE id IN ({}) AND LENGTH(frames) <= {most}",
        names.log,
        list(ids)
    )
}

/// Takes or renews the lease. One that was granted before the server's clock went back a day is void.
pub(super) fn lead(names: &Names, me: WriterId, term: Duration) -> String {
    let me = bytes(&me.0);
    format!(
        "UPDATE {} SET holder = {me}, lease_until = UTC_TIMESTAMP(6) + INTERVAL {} MICROSECOND WHERE one = 1 AND \
         (holder IS NULL OR holder = {me} OR lease_until IS NULL OR lease_until < UTC_TIMESTAMP(6) OR \
         lease_until > UTC_TIMESTAMP(6) + INTERVAL 1 DAY)",
        names.meta,
        term.as_micros()
    )
}

/// The oldest rows from `from` on: id, whether it is older than `age`, and the newest id of all.
pub(super) fn oldest(Names { log, .. }: &Names, from: i64, age: Duration, most: u64) -> String {
    format!(
        "SELECT id, CAST(at < UTC_TIMESTAMP(6) - INTERVAL {} MICROSECOND AS SIGNED), (SELECT MAX(id) FROM {log}) \
         FROM {log} WHERE id >= {from} ORDER BY id LIMIT {most}",
        age.as_micros()
    )
}

/// The newest row beyond the newest `rows`.
pub(super) fn beyond(Names { log, .. }: &Names, rows: u64) -> String {
    format!("SELECT id FROM {log} ORDER BY id DESC LIMIT 1 OFFSET {rows}")
}

pub(super) fn delete(names: &Names, ids: &[i64]) -> String {
    format!("DELETE FROM {} WHERE id IN ({})", names.log, list(ids))
}

/// The columns of content, for those rows where they are wanted.
fn content(want: Want<'_>) -> String {
    match want {
        Want::Keys(keys, most) if !keys.is_empty() => {
            let wanted = format!("`key` IN ({}) AND LENGTH(frames) <= {most}", list(keys));
            format!(", IF({wanted}, topic, NULL), IF({wanted}, frames, NULL)")
        }
        _ => String::new(),
    }
}

/// `numbers`, at least one, with commas.
fn list(numbers: &[i64]) -> String {
    let mut text = String::with_capacity(numbers.len() * 21);
    for (place, number) in numbers.iter().enumerate() {
        let comma = if place == 0 { "" } else { "," };
        write!(text, "{comma}{number}").expect("writing to a string cannot fail");
    }
    text
}

fn bytes(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2 + 3);
    digits(&mut text, bytes);
    text
}

/// Adds bytes as hexadecimal digits.
fn digits(text: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    text.push_str("x'");
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text.push('\'');
}

#[cfg(test)]
mod units {
    use backplane_core::Topic;
    use bytes::Bytes;

    use super::*;

    #[test]
    fn values_are_digits_whatever_they_are() {
        let names = Names::of(&LogConfig { table: "chat".into(), ..LogConfig::default() });
        assert_eq!(
            read_writer(
                &names,
                WriterId(*b"'; DROP TABLE --"),
                -1,
                i64::MAX,
                9,
                Want::Keys(&[1, i64::MIN], 77)
            ),
            "SELECT id, writer, seq, `key`, IF(`key` IN (1,-9223372036854775808) AND LENGTH(frames) <= 77, topic, NULL), \
             IF(`key` IN (1,-9223372036854775808) AND LENGTH(frames) <= 77, frames, NULL) FROM `chat_log` \
             WHERE writer = x'273b2044524f50205441424c45202d2d' AND seq BETWEEN -1 AND 9223372036854775807 \
             ORDER BY seq LIMIT 9"
        );
        let row = |seq, frames: &'static [u8]| Row {
            seq,
            topic: Topic::from("');"),
            key: -1,
            frames: Bytes::from_static(frames),
        };
        let rows = [row(1, b"\\'\0\xff"), row(i64::MAX, b"")];
        let writer = "x'07070707070707070707070707070707'";
        let expected = format!(
            "INSERT INTO `chat_log` (writer, seq, `key`, topic, frames, at) VALUES \
             ({writer},1,-1,x'27293b',x'5c2700ff',UTC_TIMESTAMP(6)),\
             ({writer},9223372036854775807,-1,x'27293b',x'',UTC_TIMESTAMP(6))"
        );
        assert_eq!(append(&names, WriterId([7; 16]), &rows, false), expected);
        assert_eq!(append(&names, WriterId([7; 16]), &rows, true), expected + SKIP);
    }

    #[test]
    fn the_schema_is_installed_under_other_names() {
        let names = Names::of(&LogConfig { table: "backplane_meta".into(), ..LogConfig::default() });
        let script = names.schema_script();
        assert!(script.contains("IF NOT EXISTS `backplane_meta_log` ("), "{script}");
        assert!(script.contains("IF NOT EXISTS `backplane_meta_meta` ("), "{script}");
    }
}
