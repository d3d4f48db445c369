//! SQLite: `sqlite:file.db`, for the processes of one host.
//!
//! A link holds four connections to the file: one each to write, to read, to keep the log short, and to notice that
//! somebody wrote (`PRAGMA data_version`). There is one writer at a time, so that the order of the rows is the order of
//! the commits and no row ever appears late.
//!
//! With `durability=full` a commit waits for the disk; with `relaxed` the operating system keeps it, and a failing
//! machine can lose the last moments: then numbers have gone back when readers return, which they are told of.

mod doorbell;
mod fault;
mod file;
mod log;
mod schema;
mod session;
mod statements;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use backplane_core::parameters::{Parameters, invalid, percent_decode};
use backplane_core::{Capabilities, Order, Result, TopicSyntax};

use crate::config::LogConfig;
use crate::store::{Database, Doorbell, Opened};
use doorbell::SqliteDoorbell;
use file::LogFile;
use log::{SqliteKeeper, SqliteReader, SqliteWriter};
use session::Session;
use statements::{Names, Statements};

/// Largest frame. A row may have 1,000,000,000 bytes.
const MOST_FRAME: usize = 512 << 20;

/// The database that `url` names.
pub(crate) fn open(url: &str, _rest: &mut Parameters<'_>, config: &LogConfig) -> Result<Arc<dyn Database>> {
    if config.schema.is_some() {
        return Err(invalid("SQLite knows no schemas: leave `schema` away"));
    }
    let path = path_of(url)?;
    let names = Names::of(config);
    let statements = Arc::new(Statements::of(&names));
    Ok(Arc::new(Sqlite { path, names, statements, config: config.clone() }))
}

/// The file in `sqlite:file.db`, `sqlite://file.db` or `sqlite:///folder/file.db`.
fn path_of(url: &str) -> Result<PathBuf> {
    let rest = url.split_once(':').map_or("", |(_, rest)| rest);
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    let name = percent_decode(rest).ok_or_else(|| invalid("the file's name is not percent-encoded UTF-8"))?;
    if name == ":memory:" {
        return Err(invalid(
            "`sqlite::memory:` reaches one process only: for that there is `memory:`; `sqlite:` takes a file",
        ));
    }
    if name.starts_with("file:") {
        return Err(invalid("`sqlite:` takes the name of a file, and no `file:` URI"));
    }
    if name.is_empty() || name.ends_with(['/', '\\']) || name.contains('\0') {
        return Err(invalid("`sqlite:` takes the name of a file, such as `sqlite:demo.db`"));
    }
    // Now: the process may change its folder later.
    std::path::absolute(name)
        .map_err(|error| invalid("the file's name cannot be made absolute").with_source(error))
}

/// A log in a file.
#[derive(Debug)]
struct Sqlite {
    path: PathBuf,
    names: Names,
    statements: Arc<Statements>,
    config: LogConfig,
}

#[async_trait]
impl Database for Sqlite {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            order: Order::Total,
            repeats: true,
            resume: true,
            topics: TopicSyntax::Any,
            ..Capabilities::default()
        }
    }

    async fn open(&self) -> Result<Opened> {
        let Self { path, names, statements, config } = self;
        file::refuse_network(path)?;
        if !config.create {
            file::must_exist(path)?;
        }
        // All connections are to the file that is there now, or this attempt fails.
        let before = LogFile::of(path).ok();
        let mut writer = Session::open(path, config.create, config.durability).await?;
        let file = Arc::new(before.map_or_else(|| LogFile::of(path), Ok)?);
        schema::ensure(&mut writer, names, config.create).await?;
        let reader = Session::open(path, false, config.durability).await?;
        let keeper = Session::open(path, false, config.durability).await?;
        let doorbell = if config.doorbell {
            let session = Session::open(path, false, config.durability).await?;
            Some(SqliteDoorbell::listen(session, file.clone()).await?.boxed())
        } else {
            None
        };
        writer.wait_for_nobody().await?;
        file.check("connect")?;
        Ok(Opened {
            writer: Box::new(SqliteWriter::new(writer, names.clone(), file.clone())),
            reader: Box::new(SqliteReader::new(reader, statements.clone(), file)),
            keeper: Box::new(SqliteKeeper::new(keeper, statements.clone())),
            doorbell,
            max_frame: MOST_FRAME,
        })
    }

    async fn listen(&self) -> Result<Option<Box<dyn Doorbell>>> {
        if !self.config.doorbell {
            return Ok(None);
        }
        let file = Arc::new(LogFile::of(&self.path)?);
        let session = Session::open(&self.path, false, self.config.durability).await?;
        Ok(Some(SqliteDoorbell::listen(session, file).await?.boxed()))
    }
}
