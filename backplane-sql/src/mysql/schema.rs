//! The tables: found, or installed however many nodes start together.
//!
//! No lock is taken for it: each statement of the script is atomic, and does nothing where its work is done. `GET_LOCK`
//! would add nothing to that on one server, does not reach the other servers of a cluster, and gets lost behind a proxy.

use backplane_core::{Error, ErrorKind, Result};
use sqlx::Row as _;

use super::fault::{fault, is_missing};
use super::session::Session;
use super::statements::Names;

/// The format of the tables that this code knows.
const VERSION: i32 = 2;

/// Makes sure that the tables are there and of our format, and that this user may do what a node does.
pub(super) async fn ensure(session: &mut Session, names: &Names, create: bool) -> Result<()> {
    let mut found = version(session, names).await?;
    if found.is_none() && create {
        install(session, names).await?;
        found = version(session, names).await?;
    }
    let wrong = |context: String| Err(Error::new(ErrorKind::InvalidConfig, "connect").with_context(context));
    let Names { log, meta } = names;
    match found {
        None => wrong(format!(
            "the tables {log} and {meta} are not there, or {meta} is empty: install schema/mysql.sql, or let `create` be true"
        )),
        Some(VERSION) => rights(session, names).await,
        Some(other) => wrong(format!(
            "{log} has format {other}, and this node knows format {VERSION}: name another `table`, or drop {log} and \
             {meta} (what they hold is as old as `retention` at most)"
        )),
    }
}

/// The format of the tables; `None`: they are not there, or not all of what was to be installed.
async fn version(session: &mut Session, names: &Names) -> Result<Option<i32>> {
    let Names { log, meta } = names;
    // The log too: another node may be between the two.
    let rows = session
        .rows(format!("SELECT version, (SELECT 1 FROM {log} LIMIT 1) FROM {meta} WHERE one = 1"))
        .await;
    match rows {
        Ok(rows) => {
            let version = rows.first().map(|row| row.try_get(0)).transpose();
            version.map_err(|error| fault("connect", error))
        }
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(fault("connect", error)),
    }
}

async fn install(session: &mut Session, names: &Names) -> Result<()> {
    session.rows(names.schema_script()).await.map(drop).map_err(|error| {
        let error = fault("connect", error);
        match error.kind() {
            ErrorKind::Denied => Error::new(ErrorKind::Denied, "connect")
                .with_context(
                    "this user may not create the tables of the log: install schema/mysql.sql for it",
                )
                .with_source(error),
            _ => error,
        }
    })
}

/// A statement that is only explained is refused to those who may not run it, and does nothing.
async fn rights(session: &mut Session, names: &Names) -> Result<()> {
    let Names { log, meta } = names;
    let statements = format!(
        "EXPLAIN INSERT INTO {log} (writer, seq, `key`, topic, frames, at) \
         VALUES (x'00', 0, 0, '', '', UTC_TIMESTAMP(6)) ON DUPLICATE KEY UPDATE id = id; \
         EXPLAIN DELETE FROM {log} WHERE id = 0; \
         EXPLAIN UPDATE {meta} SET holder = NULL, lease_until = NULL WHERE one = 1"
    );
    session.rows(statements).await.map(drop).map_err(|error| fault("connect", error))
}
