//! The statements, with the names of one log.

use std::sync::Arc;

use crate::config::{Durability, LogConfig, LogOrder};

/// The schema file, as operators have it.
const SCHEMA: &str = include_str!("../../schema/postgres.sql");

/// What the tables are called, quoted. The configuration has checked them: letters, digits and `_`.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// The schema, when one was named.
    pub(super) schema: Option<String>,
    pub(super) log: String,
    pub(super) meta: String,
}

impl Names {
    pub(super) fn of(config: &LogConfig) -> Self {
        let schema = config.schema.as_ref().map(|schema| format!("\"{schema}\""));
        let prefix = schema.as_ref().map_or_else(String::new, |schema| format!("{schema}."));
        let LogConfig { table, .. } = config;
        Self { log: format!("{prefix}\"{table}_log\""), meta: format!("{prefix}\"{table}_meta\""), schema }
    }

    /// The schema file with these names.
    pub(super) fn schema_script(&self) -> String {
        // In one pass, for the new names may hold the old ones.
        let mut script = String::with_capacity(SCHEMA.len() * 2);
        let mut rest = SCHEMA;
        while let Some((before, after)) = rest.split_once("backplane_") {
            script.push_str(before);
            rest = if let Some(after) = after.strip_prefix("log") {
                script.push_str(&self.log);
                after
            } else if let Some(after) = after.strip_prefix("meta") {
                script.push_str(&self.meta);
                after
            } else {
                script.push_str("backplane_");
                after
            };
        }
        script + rest
    }
}

/// All statements of a link.
#[derive(Debug)]
pub(super) struct Statements {
    /// Many rows at once, where nothing has to be done besides in their transaction. The server takes them in half the time
    /// that `append` needs, and writes less to its own log.
    pub(super) copy: Option<Arc<str>>,
    /// writer, seqs, keys, topics, frames
    pub(super) append: Arc<str>,
    /// As `append`, where some of the rows are there already: those are skipped, for which the server looks before it
    /// writes each row.
    pub(super) append_again: Arc<str>,
    pub(super) ring: Arc<str>,
    pub(super) bounds: Arc<str>,
    pub(super) newest: Arc<str>,
    /// 16 bytes that are others after a replica took over, which may not have received the end of the log; where commits do
    /// not wait for the disk, after a restart of the server too.
    pub(super) run: Arc<str>,
    /// first, last, limit, keys, most bytes
    pub(super) read_wanted: Arc<str>,
    /// first, last, limit
    pub(super) read: Arc<str>,
    /// first, last, limit, keys, most bytes, writer
    pub(super) read_writer_wanted: Arc<str>,
    /// first, last, limit, writer
    pub(super) read_writer: Arc<str>,
    /// ids, most bytes
    pub(super) fetch: Arc<str>,
    /// holder, microseconds
    pub(super) lead: Arc<str>,
    /// rows to keep, first id to look at
    pub(super) beyond: Arc<str>,
    /// microseconds, the newest id beyond the count, most, first id to look at
    pub(super) trim: Arc<str>,
    /// What is notified.
    pub(super) channel: String,
}

impl Statements {
    /// Those of the log for which the number `key` stands: its channel and its lock are named by it.
    pub(super) fn of(names: &Names, config: &LogConfig, key: i64) -> Self {
        let Names { log, meta, .. } = names;
        let channel = format!("backplane_{key:016x}");
        let ends = |oldest: &str| {
            format!(
                "SELECT m.epoch, {oldest}, n.id, n.writer, n.seq \
                 FROM {meta} m LEFT JOIN (SELECT id, writer, seq FROM {log} ORDER BY id DESC LIMIT 1) n ON true"
            )
        };
        let wanted = "key IN (SELECT unnest($4::bigint[])) AND octet_length(frames) <= $5 AS wanted";
        let content = "r.id, r.writer, r.seq, r.key, CASE WHEN r.wanted THEN r.topic END, \
                       CASE WHEN r.wanted THEN r.frames END";
        Self {
            copy: is_plain(config)
                .then(|| format!("COPY {log} (writer, seq, key, topic, frames) FROM STDIN WITH (FORMAT binary)").into()),
            append: append(log, config, key, "").into(),
            append_again: append(log, config, key, " ON CONFLICT (writer, seq) DO NOTHING").into(),
            // What it tells of is on the disk already: that it was told need not be.
            ring: format!(
                "SELECT pg_notify('{channel}', '') FROM (SELECT set_config('synchronous_commit', 'off', true)) relaxed"
            )
            .into(),
            bounds: ends(&format!("(SELECT min(id) FROM {log})")).into(),
            newest: ends("NULL::bigint").into(),
            run: run(config.durability).into(),
            read_wanted: format!(
                "SELECT {content} FROM (SELECT *, {wanted} FROM {log} WHERE id BETWEEN $1 AND $2 ORDER BY id LIMIT $3) r \
                 ORDER BY r.id"
            )
            .into(),
            read: format!("SELECT id, writer, seq, key FROM {log} WHERE id BETWEEN $1 AND $2 ORDER BY id LIMIT $3").into(),
            read_writer_wanted: format!(
                "SELECT {content} FROM (SELECT *, {wanted} FROM {log} WHERE writer = $6 AND seq BETWEEN $1 AND $2 \
                 ORDER BY seq LIMIT $3) r ORDER BY r.seq"
            )
            .into(),
            read_writer: format!(
                "SELECT id, writer, seq, key FROM {log} WHERE writer = $4 AND seq BETWEEN $1 AND $2 ORDER BY seq LIMIT $3"
            )
            .into(),
            fetch: format!("SELECT id, topic, frames FROM {log} WHERE id = ANY($1) AND octet_length(frames) <= $2").into(),
            // A lease that ends later than any is granted stems from a clock that was set back since.
            lead: format!(
                "UPDATE {meta} SET holder = $1, lease_until = clock_timestamp() + $2 * interval '1 microsecond' \
                 WHERE holder = $1 OR lease_until IS NULL OR lease_until <= clock_timestamp() \
                 OR lease_until > clock_timestamp() + interval '1 hour'"
            )
            .into(),
            // Numbers that lie closer together than that many rows need not be counted.
            beyond: format!(
                "SELECT CASE WHEN (SELECT max(id) FROM {log}) - (SELECT min(id) FROM {log} WHERE id >= $2) >= $1 \
                 THEN (SELECT id FROM {log} WHERE id >= $2 ORDER BY id DESC OFFSET $1 LIMIT 1) END"
            )
            .into(),
            trim: format!(
                "WITH head AS MATERIALIZED (SELECT id, at < now() - $1 * interval '1 microsecond' AS old FROM {log} \
                 WHERE id >= $4 ORDER BY id LIMIT $3 + 1), \
                 gone AS MATERIALIZED (SELECT id FROM head WHERE (old OR id <= $2) \
                 AND id IS DISTINCT FROM (SELECT max(id) FROM head WHERE old) AND id < (SELECT max(id) FROM {log}) \
                 ORDER BY id LIMIT $3), \
                 deleted AS (DELETE FROM {log} WHERE id = ANY(ARRAY(SELECT id FROM gone)) RETURNING id) \
                 SELECT (SELECT count(*) FROM deleted), \
                 coalesce((SELECT min(id) FROM head WHERE id NOT IN (SELECT id FROM gone)), \
                 (SELECT max(id) + 1 FROM gone))"
            )
            .into(),
            channel,
        }
    }
}

fn run(durability: Durability) -> String {
    let start = match durability {
        Durability::Full => "",
        Durability::Relaxed => ", extract(epoch FROM pg_postmaster_start_time())::text",
    };
    // The first eight digits of a segment's name are the timeline.
    format!(
        "SELECT substring(sha256(convert_to(concat_ws('/', left(pg_walfile_name(pg_current_wal_lsn()), 8){start}), 'UTF8')) \
         FOR 16)"
    )
}

/// Whether rows are appended and nothing else is done in their transaction.
fn is_plain(config: &LogConfig) -> bool {
    config.order == LogOrder::PerPublisher && config.durability == Durability::Full
}

fn append(log: &str, config: &LogConfig, key: i64, conflict: &str) -> String {
    let mut first = Vec::new();
    if config.order == LogOrder::Total {
        // Held until the commit, and taken before the first number is.
        first.push(format!("turn AS MATERIALIZED (SELECT pg_advisory_xact_lock({key}))"));
    }
    if config.durability == Durability::Relaxed {
        // For this transaction only: behind a pooler the session is not ours.
        first.push(
            "relaxed AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))".to_owned(),
        );
    }
    let with = if first.is_empty() { String::new() } else { format!("WITH {} ", first.join(", ")) };
    let from: String =
        first.iter().filter_map(|part| part.split_once(' ')).map(|(name, _)| format!("{name}, ")).collect();
    format!(
        "{with}INSERT INTO {log} (writer, seq, key, topic, frames) SELECT $1, r.seq, r.key, r.topic, r.frames \
         FROM {from}unnest($2::bigint[], $3::bigint[], $4::bytea[], $5::bytea[]) \
         WITH ORDINALITY AS r (seq, key, topic, frames, place) ORDER BY r.place{conflict}"
    )
}
