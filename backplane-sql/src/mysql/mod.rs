//! MySQL and MariaDB: `mysql://` and `mariadb://`.
//!
//! A link holds three connections: one each to write, to read and to keep the log short. Nothing can ring here, so the log
//! is polled. Statements travel as text in one message each and leave nothing in the session (numbers and hexadecimal
//! digits are their only values); but a single row is appended by a prepared statement, with its frame as bytes.
//!
//! # What is relied on
//! - InnoDB hands out the ids of a multi-row `INSERT ... VALUES` at once, in every `innodb_autoinc_lock_mode`, so they
//!   ascend in the order of the rows. That they are dense is not relied on: a gap is taken for a row that is not
//!   committed yet.
//! - Sessions read in READ COMMITTED, each statement from a snapshot of its own.
//! - A session cannot choose whether a commit waits for the disk: `innodb_flush_log_at_trx_commit` is the operator's, so
//!   `durability=relaxed` is refused.
//! - A server that restarts may hand out again the ids of rows that were deleted at the end of the table (MySQL 5.7). So
//!   the newest row is never deleted, and a row that is not the one that was read last is a reset.

mod fault;
mod log;
mod options;
mod schema;
mod session;
mod statements;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use backplane_core::parameters::{Parameters, invalid};
use backplane_core::{Capabilities, Order, Result, TopicSyntax};

use self::log::{MySqlKeeper, MySqlReader, MySqlWriter};
use self::options::Settings;
use self::session::Session;
use self::statements::Names;
use crate::config::{Durability, LogConfig, LogOrder};
use crate::store::{Database, Opened};

/// The database that `url` names.
pub(crate) fn open(url: &str, rest: &mut Parameters<'_>, config: &LogConfig) -> Result<Arc<dyn Database>> {
    if config.schema.is_some() {
        return Err(invalid("MySQL knows no schemas: the database of the URL holds the tables"));
    }
    if config.durability == Durability::Relaxed {
        return Err(invalid(
            "MySQL knows no `durability=relaxed`: whether a commit waits for the disk is decided for the whole server, by \
             `innodb_flush_log_at_trx_commit`",
        ));
    }
    let settings = Settings::read(url, rest)?;
    let names = Names::of(config);
    Ok(Arc::new(MySql {
        settings,
        names,
        config: config.clone(),
        said_many_primaries: AtomicBool::new(false),
    }))
}

/// A log on a MySQL or MariaDB server.
struct MySql {
    settings: Settings,
    names: Names,
    config: LogConfig,
    /// Once is enough, however often a link is opened.
    said_many_primaries: AtomicBool,
}

impl fmt::Debug for MySql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MySql")
            .field("server", &self.settings)
            .field("log", &self.names.log)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Database for MySql {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            order: match self.config.order {
                LogOrder::PerPublisher => Order::PerPublisher,
                LogOrder::Total => Order::Total,
            },
            repeats: true,
            resume: true,
            topics: TopicSyntax::Any,
            ..Capabilities::default()
        }
    }

    async fn open(&self) -> Result<Opened> {
        let open = || Session::open(&self.settings);
        let (mut writer, reader, keeper) = futures::try_join!(open(), open(), open())?;
        let server = writer.server().await?;
        if server.id_step != 1 && !self.said_many_primaries.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                log = %self.names.log,
                auto_increment_increment = server.id_step,
                "this server looks like one of several primaries: all nodes of the application must use the same one"
            );
        }
        schema::ensure(&mut writer, &self.names, self.config.create).await?;
        let mut writer = MySqlWriter::new(writer, &self.names, self.config.order, server.largest_packet);
        writer.prepare().await?;
        Ok(Opened {
            writer: Box::new(writer),
            reader: Box::new(MySqlReader::new(reader, &self.names)),
            keeper: Box::new(MySqlKeeper::new(keeper, &self.names)),
            doorbell: None,
            max_frame: log::max_frame(server.largest_packet),
        })
    }
}
