//! SQL Server and Azure SQL Database: `mssql://`, `sqlserver://` and ADO connection strings.
//!
//! A link holds three connections: one each to write, to read and to keep the log short. Nothing rings here, so the log is
//! polled. Statements have few texts and travel with parameters, so that the server keeps their plans.
//!
//! # What is relied on
//! - `INSERT ... SELECT ... ORDER BY` hands out identity values in that order. That they are dense is not relied on: a gap
//!   is taken for a row that is not committed yet.
//! - Sessions read in READ COMMITTED. With READ_COMMITTED_SNAPSHOT readers wait for nobody; without it they wait for a row
//!   that is being written, which is right too, and slower.
//! - A row that is updated stays locked until the end of the transaction: that gives writers their turn with `order=total`.
//!   (An application lock would do as well, and needs one more privilege and one more error to tell apart.)
//! - The driver leaves a connection unusable when an answer was not read to its end. Therefore a session has its
//!   connection only while nothing is under way: see [`session`].

mod ado;
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
use backplane_core::parameters::Parameters;
use backplane_core::{Capabilities, Order, Result, TopicSyntax};

use self::log::{SqlServerKeeper, SqlServerReader, SqlServerWriter};
use self::options::Settings;
use self::session::Session;
use self::statements::{Names, Statements};
use crate::config::{Durability, LogConfig, LogOrder};
use crate::store::{Database, Opened};

/// Largest frame: a value may have two gibibytes, and all frames of a statement are one value.
const MOST_FRAME: usize = 512 << 20;

/// The database that `url`, or an ADO connection string, names.
pub(crate) fn open(url: &str, rest: &mut Parameters<'_>, config: &LogConfig) -> Result<Arc<dyn Database>> {
    let settings = Settings::read(url, rest)?;
    let names = Names::of(config);
    Ok(Arc::new(SqlServer {
        settings,
        names,
        config: config.clone(),
        said_that_readers_wait: AtomicBool::new(false),
        said_that_rows_are_durable: AtomicBool::new(false),
    }))
}

/// A log on a SQL Server.
struct SqlServer {
    settings: Settings,
    names: Names,
    config: LogConfig,
    /// Once is enough, however often a link is opened.
    said_that_readers_wait: AtomicBool,
    said_that_rows_are_durable: AtomicBool,
}

impl fmt::Debug for SqlServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlServer")
            .field("server", &self.settings)
            .field("log", &self.names.log)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Database for SqlServer {
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
        let database = schema::database(&mut writer).await?;
        if !database.snapshots && !self.said_that_readers_wait.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                log = %self.names.log,
                "READ_COMMITTED_SNAPSHOT is off in this database, so readers of the log wait for its writers"
            );
        }
        let mut durability = self.config.durability;
        if durability == Durability::Relaxed && !database.delays {
            durability = Durability::Full;
            if !self.said_that_rows_are_durable.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    log = %self.names.log,
                    "durability=relaxed has no effect: DELAYED_DURABILITY is DISABLED in this database"
                );
            }
        }
        schema::ensure(&mut writer, &self.names, self.config.create).await?;
        let statements = Arc::new(Statements::of(&self.names, self.config.order, durability));
        let mut writer = SqlServerWriter::new(writer, statements.clone());
        let mut reader = SqlServerReader::new(reader, statements.clone());
        futures::try_join!(writer.prepare(), reader.prepare())?;
        Ok(Opened {
            writer: Box::new(writer),
            reader: Box::new(reader),
            keeper: Box::new(SqlServerKeeper::new(keeper, statements)),
            doorbell: None,
            max_frame: MOST_FRAME,
        })
    }
}
