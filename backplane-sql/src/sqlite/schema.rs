//! The tables: found, or installed once however many nodes start together.

use backplane_core::{Error, ErrorKind, Result};
use sqlx::Row as _;

use super::fault::fault;
use super::session::{Session, query_once};
use super::statements::Names;

/// The format of the tables that this code knows.
const VERSION: i64 = 2;

/// Makes sure that the tables are there and of our format.
pub(super) async fn ensure(session: &mut Session, names: &Names, create: bool) -> Result<()> {
    if create && !is_there(session, names).await? {
        session.begin().await?;
        // Another node may have been first; what is there is left as it is.
        session.run(names.schema_script()).await.map_err(|error| fault("connect", error))?;
        session.run("COMMIT".into()).await.map_err(|error| fault("connect", error))?;
    }
    if !is_there(session, names).await? {
        let context = format!(
            "the tables {} and {} are not there: install schema/sqlite.sql, or let `create` be true",
            names.log, names.meta
        );
        return Err(Error::new(ErrorKind::InvalidConfig, "connect").with_context(context));
    }
    check(session, names).await
}

async fn is_there(session: &mut Session, names: &Names) -> Result<bool> {
    let Names { log, meta } = names;
    let count =
        format!("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN ('{log}', '{meta}')");
    let row = session.row(query_once(count)).await;
    let tables: i64 = row.and_then(|row| row.try_get(0)).map_err(|error| fault("connect", error))?;
    Ok(tables == 2)
}

async fn check(session: &mut Session, names: &Names) -> Result<()> {
    let Names { log, meta } = names;
    let wrong = |context: String| Err(Error::new(ErrorKind::InvalidConfig, "connect").with_context(context));
    let rows = session.rows(query_once(format!("SELECT version, length(epoch) FROM {meta}"))).await;
    let rows = rows.map_err(|error| fault("connect", error))?;
    let Some(row) = rows.first() else {
        return wrong(format!("{meta} has no row: install schema/sqlite.sql anew"));
    };
    let read = || Ok((row.try_get::<i64, _>(0)?, row.try_get::<i64, _>(1)?));
    match read().map_err(|error| fault("connect", error))? {
        (VERSION, 16) => Ok(()),
        (VERSION, length) => wrong(format!("the epoch in {meta} has {length} bytes instead of 16")),
        (other, _) => wrong(format!(
            "{log} has format {other}, and this node knows format {VERSION}: name another `table`, or drop {log} and \
             {meta} (what they hold is as old as `retention` at most)"
        )),
    }
}
