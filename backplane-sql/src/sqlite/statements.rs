//! The statements, with the names of one log.

use std::sync::Arc;

use crate::config::LogConfig;

/// The schema file, as operators have it.
const SCHEMA: &str = include_str!("../../schema/sqlite.sql");

/// Milliseconds since 1970, the same for all of a statement.
const NOW: &str = "CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER)";

/// What the tables are called. The configuration has checked them: letters, digits and `_`.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) log: String,
    pub(super) meta: String,
}

impl Names {
    pub(super) fn of(config: &LogConfig) -> Self {
        let LogConfig { table, .. } = config;
        Self { log: format!("{table}_log"), meta: format!("{table}_meta") }
    }

    /// What the schema file makes, with these names.
    pub(super) fn schema_script(&self) -> String {
        // Without the mode of the journal, which cannot be changed in a transaction; in one pass, for the new names may
        // hold the old ones.
        let schema = SCHEMA.replace("PRAGMA journal_mode = WAL;", "");
        let mut parts = schema.split("backplane_");
        let mut script = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (name, rest) = match (part.strip_prefix("log"), part.strip_prefix("meta")) {
                (Some(rest), _) => (self.log.as_str(), rest),
                (_, Some(rest)) => (self.meta.as_str(), rest),
                (None, None) => ("backplane_", part),
            };
            script.push_str(name);
            script.push_str(rest);
        }
        script
    }

    /// Writer, then seq, key, topic and frames of each row, of which there may be up to `rows`: without a seq it is none.
    pub(super) fn append(&self, rows: usize) -> String {
        // In their order, without numbers: SQLite looks each number up among all before it.
        let rows = vec!["(?, ?, ?, ?)"; rows].join(", ");
        format!(
            "INSERT INTO {} (writer, seq, key, topic, frames) SELECT ?, column1, column2, column3, column4 \
             FROM (VALUES {rows}) WHERE column1 IS NOT NULL ON CONFLICT DO NOTHING",
            self.log
        )
    }
}

/// The statements of a link that are always the same.
#[derive(Debug)]
pub(super) struct Statements {
    pub(super) bounds: Arc<str>,
    pub(super) newest: Arc<str>,
    /// first, last, limit, keys as JSON, most bytes
    pub(super) read_wanted: Arc<str>,
    /// first, last, limit
    pub(super) read: Arc<str>,
    /// first, last, limit, keys as JSON, most bytes, writer
    pub(super) read_writer_wanted: Arc<str>,
    /// first, last, limit, writer
    pub(super) read_writer: Arc<str>,
    /// ids as JSON, most bytes
    pub(super) fetch: Arc<str>,
    /// holder, milliseconds
    pub(super) lead: Arc<str>,
    /// rows to keep
    pub(super) beyond: Arc<str>,
    /// milliseconds, the newest id beyond the count, most
    pub(super) trim: Arc<str>,
    pub(super) checkpoint: Arc<str>,
    pub(super) cut: Arc<str>,
}

impl Statements {
    pub(super) fn of(names: &Names) -> Self {
        let Names { log, meta } = names;
        // Asked twice rather than in an inner query, which would read the frames of all rows.
        let wanted = "key IN (SELECT value FROM json_each(?4)) AND length(frames) <= ?5";
        let content = format!(
            "id, writer, seq, key, CASE WHEN {wanted} THEN topic END, CASE WHEN {wanted} THEN frames END FROM {log}"
        );
        let ends = |oldest: &str| {
            format!(
                "SELECT m.epoch, {oldest}, n.id, n.writer, n.seq FROM {meta} m \
                 LEFT JOIN (SELECT id, writer, seq FROM {log} ORDER BY id DESC LIMIT 1) n ON true"
            )
        };
        Self {
            bounds: ends(&format!("(SELECT min(id) FROM {log})")).into(),
            newest: ends("NULL").into(),
            read_wanted: format!("SELECT {content} WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT ?3").into(),
            read: format!("SELECT id, writer, seq, key FROM {log} WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT ?3").into(),
            read_writer_wanted: format!(
                "SELECT {content} WHERE writer = ?6 AND seq BETWEEN ?1 AND ?2 ORDER BY seq LIMIT ?3"
            )
            .into(),
            read_writer: format!(
                "SELECT id, writer, seq, key FROM {log} WHERE writer = ?4 AND seq BETWEEN ?1 AND ?2 ORDER BY seq LIMIT ?3"
            )
            .into(),
            fetch: format!("SELECT id, topic, frames FROM {log} WHERE id IN (SELECT value FROM json_each(?1)) AND length(frames) <= ?2").into(),
            // A lease that ends later than any is granted stems from a clock that was set back since.
            lead: format!(
                "UPDATE {meta} SET holder = ?1, lease_until = {NOW} + ?2 WHERE holder = ?1 OR lease_until IS NULL \
                 OR lease_until <= {NOW} OR lease_until > {NOW} + 3600000"
            )
            .into(),
            // Numbers that lie closer together than that many rows need not be counted.
            beyond: format!(
                "SELECT CASE WHEN (SELECT max(id) FROM {log}) - (SELECT min(id) FROM {log}) >= ?1 \
                 THEN (SELECT id FROM {log} ORDER BY id DESC LIMIT 1 OFFSET ?1) END"
            )
            .into(),
            trim: format!(
                "WITH head AS MATERIALIZED (SELECT id, at < {NOW} - ?1 AS old FROM {log} ORDER BY id LIMIT ?3 + 1) \
                 DELETE FROM {log} WHERE id IN (SELECT id FROM head WHERE (old OR id <= ?2) \
                 AND id IS NOT (SELECT max(id) FROM head WHERE old) AND id < (SELECT max(id) FROM {log}) \
                 ORDER BY id LIMIT ?3)"
            )
            .into(),
            checkpoint: "PRAGMA wal_checkpoint(PASSIVE)".into(),
            cut: "PRAGMA wal_checkpoint(TRUNCATE)".into(),
        }
    }
}
