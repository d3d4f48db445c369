//! PostgreSQL: `postgres://` and `postgresql://`.
//!
//! A link holds four connections: one each to write, to read and to keep the log short, and one that listens. Behind a
//! pooler that lends its sessions (PgBouncer in transaction mode) nothing that belongs to a session can be used: neither
//! prepared statements nor settings nor LISTEN. That is noticed when the link is opened: statements then carry their
//! values as literals in one message, and without `listen_url` the log is polled.
//!
//! # What a crash or a failover takes away
//! With `durability=full` a row that was accepted survives a crash of the server. With `durability=relaxed`, or when a
//! replica takes over that had not yet received everything, the newest rows can vanish, while the epoch stays, for it is
//! old and was replicated long ago. A reader still notices, always: it looks from its last row on, and that row must be
//! the first one of the answer. When it is not there, the log's end tells the rest: numbers that went back, or a gap in
//! place of a row that was there, are a reset, which readers are told of; then they go on at the newest row. The
//! same holds for a table that was truncated, restored or made anew.

mod copy;
mod doorbell;
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
use parking_lot::Mutex;

use crate::config::{LogConfig, LogOrder};
use crate::store::{Database, Doorbell, Opened};
use doorbell::PgDoorbell;
use log::{PgKeeper, PgReader, PgWriter};
use options::Settings;
use session::{Manner, Session, Sessions};
use statements::{Names, Statements};

/// Largest frame: its value, written as hexadecimal digits where no parameters can be used, must stay below the
/// gibibyte that a message may have.
const MOST_FRAME: usize = 256 << 20;

/// The database that `url` names.
pub(crate) fn open(url: &str, rest: &mut Parameters<'_>, config: &LogConfig) -> Result<Arc<dyn Database>> {
    let settings = Settings::read(url, rest)?;
    let names = Names::of(config);
    Ok(Arc::new(Postgres {
        settings,
        names,
        config: config.clone(),
        said_that_it_polls: AtomicBool::new(false),
        listening: Mutex::new(None),
    }))
}

/// A log on a PostgreSQL server.
struct Postgres {
    settings: Settings,
    names: Names,
    config: LogConfig,
    /// Once is enough, however often a link is opened.
    said_that_it_polls: AtomicBool,
    /// How the last link talked to the server, and what is notified.
    listening: Mutex<Option<(Manner, String)>>,
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres")
            .field("server", &self.settings)
            .field("log", &self.names.log)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Database for Postgres {
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
        let mut writer = Session::open(&self.settings).await?;
        let log = schema::ensure(&mut writer, &self.names, self.config.create).await?;
        let manner = writer.manner();
        let statements = Arc::new(Statements::of(&self.names, &self.config, log));
        let (reader, keeper, doorbell) = futures::try_join!(
            Session::open_as(&self.settings, manner),
            Session::open_as(&self.settings, manner),
            async { Ok(self.doorbell(manner, &statements.channel).await) },
        )?;
        *self.listening.lock() = Some((manner, statements.channel.clone()));
        let doorbell = doorbell.unwrap_or_else(|error| {
            tracing::warn!(log = %self.names.log, %error, "no connection to listen on: the log is polled for now");
            None
        });
        Ok(Opened {
            writer: Box::new(PgWriter::new(writer, statements.clone())),
            reader: Box::new(PgReader::new(reader, statements.clone()).await?),
            keeper: Box::new(PgKeeper::new(keeper, statements)),
            doorbell,
            max_frame: MOST_FRAME,
        })
    }

    async fn listen(&self) -> Result<Option<Box<dyn Doorbell>>> {
        let listening = self.listening.lock().clone();
        match listening {
            Some((manner, channel)) => self.doorbell(manner, &channel).await,
            None => Ok(None),
        }
    }
}

impl Postgres {
    /// The doorbell, where there can be one. Without it the log still works: a failure is said, and ends no link.
    async fn doorbell(&self, manner: Manner, channel: &str) -> Result<Option<Box<dyn Doorbell>>> {
        if !self.config.doorbell {
            return Ok(None);
        }
        if self.settings.listen.is_none() && manner.sessions == Sessions::Lent {
            if !self.said_that_it_polls.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    log = %self.names.log,
                    "a pooler stands before this server and lends its sessions: nothing can ring here, so the log is \
                     polled; `listen_url` names the server itself"
                );
            }
            return Ok(None);
        }
        let doorbell = PgDoorbell::listen(self.settings.listening(), channel).await?;
        Ok(Some(Box::new(doorbell)))
    }
}
