//! The statements, with the names of one log. They have parameters, and few texts, so that the server keeps their plans.

use std::fmt::Write as _;

use crate::config::{Durability, LogConfig, LogOrder};

/// The schema file, as operators have it.
const SCHEMA: &str = include_str!("../../schema/mssql.sql");

/// What the tables are called, quoted. The configuration has checked them: letters, digits and `_`.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// The schema, when one was named, not quoted.
    schema: Option<String>,
    pub(super) log: String,
    pub(super) meta: String,
}

impl Names {
    pub(super) fn of(config: &LogConfig) -> Self {
        let LogConfig { schema, table, .. } = config;
        let prefix = schema.as_ref().map_or_else(String::new, |schema| format!("[{schema}]."));
        Self {
            schema: schema.clone(),
            log: format!("{prefix}[{table}_log]"),
            meta: format!("{prefix}[{table}_meta]"),
        }
    }

    /// The schema file with these names, in a transaction that no other node installs in.
    pub(super) fn install_script(&self) -> String {
        // It must be the first statement of its batch.
        let schema = self.schema.as_ref().map_or_else(String::new, |schema| {
            format!("IF SCHEMA_ID(N'{schema}') IS NULL EXEC(N'CREATE SCHEMA [{schema}]');\n")
        });
        // In one pass: a new name may hold an old one.
        let mut tables = String::with_capacity(SCHEMA.len());
        let mut rest = SCHEMA;
        while let Some((before, after)) = rest.split_once("backplane_") {
            tables.push_str(before);
            let (name, old) = match after {
                after if after.starts_with("log") => (self.log.as_str(), "log"),
                after if after.starts_with("meta") => (self.meta.as_str(), "meta"),
                _ => ("backplane_", ""),
            };
            tables.push_str(name);
            rest = &after[old.len()..];
        }
        tables.push_str(rest);
        format!(
            "BEGIN TRANSACTION;\n\
             DECLARE @granted int;\n\
             EXEC @granted = sp_getapplock @Resource = N'backplane install', @LockMode = N'Exclusive', \
             @LockOwner = N'Transaction', @LockTimeout = 20000;\n\
             IF @granted < 0 THROW 51000, N'another node has been installing the log for 20 s', 1;\n\
             {schema}{tables}\nCOMMIT TRANSACTION;"
        )
    }
}

/// All statements of a link.
#[derive(Debug)]
pub(super) struct Statements {
    /// writer, rows as JSON, their bytes
    pub(super) append: String,
    pub(super) bounds: String,
    pub(super) newest: String,
    /// first and last id, most rows; then most bytes and keys, where there are keys
    read: String,
    /// first and last seq, most rows, writer; then most bytes and keys, where there are keys
    read_writer: String,
    /// most bytes, ids
    fetch: String,
    /// holder, milliseconds
    pub(super) lead: String,
    /// from, milliseconds, most rows
    pub(super) oldest: String,
    /// rows to keep
    pub(super) beyond: String,
    /// ids as JSON
    pub(super) delete: String,
}

impl Statements {
    pub(super) fn of(names: &Names, order: LogOrder, durability: Durability) -> Self {
        let Names { log, meta, .. } = names;
        let ends = |oldest: &str| {
            format!(
                "SELECT m.epoch, {oldest}, n.id, n.writer, n.seq \
                 FROM {meta} m LEFT JOIN (SELECT TOP (1) id, writer, seq FROM {log} ORDER BY id DESC) n ON 1 = 1 \
                 WHERE m.one = 1"
            )
        };
        Self {
            append: append(names, order, durability),
            bounds: ends(&format!("(SELECT MIN(id) FROM {log})")),
            newest: ends("CAST(NULL AS BIGINT)"),
            read: format!("FROM {log} WHERE id BETWEEN @P1 AND @P2 ORDER BY id"),
            read_writer: format!("FROM {log} WHERE writer = @P4 AND seq BETWEEN @P1 AND @P2 ORDER BY seq"),
            fetch: format!("SELECT id, topic, frames FROM {log} WHERE DATALENGTH(frames) <= @P1 AND id IN "),
            // One that was granted before the server's clock went back a day is void.
            lead: format!(
                "UPDATE {meta} SET holder = @P1, lease_until = DATEADD(millisecond, @P2, SYSUTCDATETIME()) \
                 WHERE one = 1 AND (holder IS NULL OR holder = @P1 OR lease_until IS NULL OR \
                 lease_until < SYSUTCDATETIME() OR lease_until > DATEADD(day, 1, SYSUTCDATETIME())); \
                 SELECT CAST(@@ROWCOUNT AS int)"
            ),
            oldest: format!(
                "SELECT TOP (@P3) id, CASE WHEN at < DATEADD(millisecond, -@P2, SYSUTCDATETIME()) THEN 1 ELSE 0 END, \
                 (SELECT MAX(id) FROM {log}) FROM {log} WHERE id >= @P1 ORDER BY id"
            ),
            beyond: format!("SELECT id FROM {log} ORDER BY id DESC OFFSET @P1 ROWS FETCH NEXT 1 ROWS ONLY"),
            delete: format!(
                "DELETE FROM {log} WHERE id IN (SELECT CAST(value AS bigint) FROM OPENJSON(@P1)); \
                 SELECT CAST(@@ROWCOUNT AS int)"
            ),
        }
    }

    /// Reads by id, with the content of `keys` keys, behind the most bytes; see [`padded`].
    pub(super) fn read(&self, keys: usize) -> String {
        select(&self.read, 4, keys)
    }

    /// Reads by writer and seq, with the content of `keys` keys, behind the most bytes; see [`padded`].
    pub(super) fn read_writer(&self, keys: usize) -> String {
        select(&self.read_writer, 5, keys)
    }

    /// Fetches `ids` ids, behind the most bytes; see [`padded`].
    pub(super) fn fetch(&self, ids: usize) -> String {
        let mut text = self.fetch.clone();
        list(&mut text, 2, ids);
        text
    }
}

/// The values, the last of them repeated until their number is a power of two, so that there are few texts.
pub(super) fn padded<T: Copy>(values: &[T]) -> Vec<T> {
    let mut padded = values.to_vec();
    if let Some(last) = values.last() {
        padded.resize(values.len().next_power_of_two(), *last);
    }
    padded
}

/// Whatever the number of rows, three values: the texts and plans of a statement with values for each row would be as
/// many as there are numbers of rows and sizes of frames. Rows that are there already are left out; only a row of a
/// statement that still runs elsewhere could be missed, and then the index refuses it.
fn append(names: &Names, order: LogOrder, durability: Durability) -> String {
    let Names { log, meta, .. } = names;
    let insert = format!(
        "INSERT INTO {log} (writer, seq, [key], topic, frames) \
         SELECT @P1, r.s, r.k, SUBSTRING(@P3, r.o, r.t), SUBSTRING(@P3, r.o + r.t, r.f) \
         FROM OPENJSON(@P2) WITH (s bigint, k bigint, o bigint, t bigint, f bigint) r \
         WHERE NOT EXISTS (SELECT 1 FROM {log} l WHERE l.writer = @P1 AND l.seq = r.s) ORDER BY r.s"
    );
    let commit = match durability {
        Durability::Full => "COMMIT TRANSACTION",
        Durability::Relaxed => "COMMIT TRANSACTION WITH (DELAYED_DURABILITY = ON)",
    };
    match (order, durability) {
        (LogOrder::PerPublisher, Durability::Full) => insert,
        (LogOrder::PerPublisher, Durability::Relaxed) => format!("BEGIN TRANSACTION; {insert}; {commit}"),
        (LogOrder::Total, _) => {
            format!("BEGIN TRANSACTION; UPDATE {meta} SET turn = turn + 1 WHERE one = 1; {insert}; {commit}")
        }
    }
}

/// `from` says which rows; the most bytes and the keys are the parameters from `first` on.
fn select(from: &str, first: usize, keys: usize) -> String {
    let mut text = String::with_capacity(200 + 12 * keys);
    text.push_str("SELECT TOP (@P3) id, writer, seq, [key]");
    if keys > 0 {
        for column in ["topic", "frames"] {
            text.push_str(", CASE WHEN [key] IN ");
            list(&mut text, first + 1, keys);
            write!(text, " AND DATALENGTH(frames) <= @P{first} THEN ")
                .expect("writing to a string cannot fail");
            text.push_str(column);
            text.push_str(" END");
        }
    }
    text.push(' ');
    text.push_str(from);
    text
}

fn list(text: &mut String, first: usize, count: usize) {
    for place in 0..count {
        let before = if place == 0 { '(' } else { ',' };
        write!(text, "{before}@P{}", first + place).expect("writing to a string cannot fail");
    }
    text.push(')');
}

#[cfg(test)]
mod units {
    use super::*;

    #[test]
    fn the_schema_is_installed_under_other_names() {
        let config =
            LogConfig { schema: Some("s".into()), table: "backplane_log".into(), ..LogConfig::default() };
        let script = Names::of(&config).install_script();
        assert!(script.contains("OBJECT_ID(N'[s].[backplane_log_log]', N'U')"), "{script}");
        assert!(script.contains("CREATE TABLE [s].[backplane_log_meta] ("), "{script}");
        assert!(script.contains("EXEC(N'CREATE SCHEMA [s]')"), "{script}");
    }

    #[test]
    fn content_is_read_where_its_key_is_wanted() {
        let names = Names::of(&LogConfig { table: "chat".into(), ..LogConfig::default() });
        let statements = Statements::of(&names, LogOrder::PerPublisher, Durability::Full);
        let from = "FROM [chat_log] WHERE writer = @P4 AND seq BETWEEN @P1 AND @P2 ORDER BY seq";
        let columns = "SELECT TOP (@P3) id, writer, seq, [key]";
        assert_eq!(statements.read_writer(0), format!("{columns} {from}"));
        let wanted = "CASE WHEN [key] IN (@P6,@P7) AND DATALENGTH(frames) <= @P5 THEN";
        let expected = format!("{columns}, {wanted} topic END, {wanted} frames END {from}");
        assert_eq!(statements.read_writer(2), expected);
    }

    #[test]
    fn numbers_of_values_are_powers_of_two() {
        assert_eq!(padded(&[7, 8, 9]), [7, 8, 9, 9]);
        assert_eq!(padded(&[1]), [1]);
        assert_eq!(padded(&[0_i64; 256]).len(), 256);
        assert!(padded::<i64>(&[]).is_empty());
    }
}
