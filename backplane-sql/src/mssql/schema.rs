//! The tables: found, or installed once however many nodes start together.

use backplane_core::{Error, ErrorKind, Result};
use tiberius::Row;

use super::fault::fault;
use super::session::Session;
use super::statements::Names;

/// The format of the tables that this code knows.
const VERSION: i32 = 2;

/// How the database is set up.
pub(super) struct DatabaseOptions {
    /// READ_COMMITTED_SNAPSHOT.
    pub(super) snapshots: bool,
    /// DELAYED_DURABILITY is not DISABLED.
    pub(super) delays: bool,
}

/// Asks how the database is set up, and whether it can take rows apart.
pub(super) async fn database(session: &mut Session) -> Result<DatabaseOptions> {
    let statement = "SELECT CAST(is_read_committed_snapshot_on AS int), CAST(delayed_durability AS int), \
                     (SELECT COUNT(*) FROM OPENJSON(N'[1]')) FROM sys.databases WHERE name = DB_NAME()";
    let rows = session.rows(statement, &[]).await.map_err(|error| {
        let error = fault("connect", error);
        match error.kind() {
            // What there is not is OPENJSON.
            ErrorKind::InvalidConfig => Error::new(ErrorKind::InvalidConfig, "connect")
                .with_context("the database's compatibility level must be at least 130 (SQL Server 2016)")
                .with_source(error),
            _ => error,
        }
    })?;
    let read = |row: &Row| {
        let (snapshots, delays) = (row.try_get::<i32, _>(0)?, row.try_get::<i32, _>(1)?);
        Ok(DatabaseOptions {
            snapshots: snapshots != Some(0),
            delays: delays.is_some_and(|delays| delays != 0),
        })
    };
    // A user that may not see it learns nothing, and nothing is said then.
    let unseen = DatabaseOptions { snapshots: true, delays: false };
    rows.first().map_or(Ok(unseen), read).map_err(|error| fault("connect", error))
}

/// The tables as this user sees them.
enum Found {
    /// Not there, or hidden from this user.
    Nothing,
    /// There, but this user may not do with them what a node does.
    Forbidden,
    Usable,
}

/// Makes sure that the tables are there and of our format, and that this user may do what a node does.
pub(super) async fn ensure(session: &mut Session, names: &Names, create: bool) -> Result<()> {
    let mut found = find(session, names).await?;
    if create && matches!(found, Found::Nothing) {
        install(session, names).await?;
        found = find(session, names).await?;
    }
    let Names { log, meta, .. } = names;
    let refused = |kind, context: String| Err(Error::new(kind, "connect").with_context(context));
    match found {
        Found::Nothing => refused(
            ErrorKind::InvalidConfig,
            format!(
                "the tables {log} and {meta} are not there, or hidden from this user: install schema/mssql.sql, or let \
                 `create` be true"
            ),
        ),
        Found::Forbidden => refused(
            ErrorKind::Denied,
            format!(
                "this user needs SELECT, INSERT and DELETE on {log}, SELECT and UPDATE on {meta} (see schema/mssql.sql)"
            ),
        ),
        Found::Usable => check(session, names).await,
    }
}

async fn find(session: &mut Session, names: &Names) -> Result<Found> {
    let Names { log, meta, .. } = names;
    let privileges = [(log, "SELECT"), (log, "INSERT"), (log, "DELETE"), (meta, "SELECT"), (meta, "UPDATE")]
        .map(|(table, privilege)| format!("HAS_PERMS_BY_NAME(N'{table}', N'OBJECT', N'{privilege}') = 1"))
        .join(" AND ");
    let statement = format!(
        "SELECT OBJECT_ID(N'{log}', N'U'), OBJECT_ID(N'{meta}', N'U'), CASE WHEN {privileges} THEN 1 ELSE 0 END"
    );
    let rows = session.rows(&statement, &[]).await;
    let read = |row: &Row| {
        let numbers = (row.try_get::<i32, _>(0)?, row.try_get::<i32, _>(1)?, row.try_get::<i32, _>(2)?);
        Ok(match numbers {
            (Some(_), Some(_), Some(1)) => Found::Usable,
            (Some(_), Some(_), _) => Found::Forbidden,
            _ => Found::Nothing,
        })
    };
    rows.and_then(|rows| rows.first().map_or(Ok(Found::Nothing), read))
        .map_err(|error| fault("connect", error))
}

/// In one transaction, under a lock that every installing node takes first.
async fn install(session: &mut Session, names: &Names) -> Result<()> {
    session.batch(&names.install_script()).await.map_err(|error| {
        let error = fault("connect", error);
        match error.kind() {
            ErrorKind::Denied => Error::new(ErrorKind::Denied, "connect")
                .with_context(
                    "this user may not create the tables of the log: install schema/mssql.sql for it",
                )
                .with_source(error),
            _ => error,
        }
    })
}

async fn check(session: &mut Session, names: &Names) -> Result<()> {
    let Names { log, meta, .. } = names;
    let rows = session.rows(&format!("SELECT version FROM {meta} WHERE one = 1"), &[]).await;
    let read = |rows: Vec<Row>| rows.first().map_or(Ok(None), |row| row.try_get::<i32, _>(0));
    let wrong = |context: String| Err(Error::new(ErrorKind::InvalidConfig, "connect").with_context(context));
    match rows.and_then(read).map_err(|error| fault("connect", error))? {
        Some(VERSION) => Ok(()),
        Some(other) => wrong(format!(
            "{log} has format {other}, and this node knows format {VERSION}: name another `table`, or drop {log} and \
             {meta} (what they hold is as old as `retention` at most)"
        )),
        None => wrong(format!("{meta} has no row: install schema/mssql.sql anew")),
    }
}
