//! The tables: found, or installed once however many nodes start together.

use backplane_core::{Error, ErrorKind, Result};
use sqlx::Row as _;

use super::fault::fault;
use super::session::Session;
use super::statements::Names;

/// The format of the tables that this code knows.
const VERSION: i32 = 2;

/// What is there.
struct Found {
    /// A hash of schema and name: the same for every node, whether it names the schema or finds it by its search path, and
    /// the same after a restore.
    log: Option<i64>,
    meta: bool,
    standby: bool,
}

/// Makes sure that the tables are there and of our format. Returns the number that stands for the log.
pub(super) async fn ensure(session: &mut Session, names: &Names, create: bool) -> Result<i64> {
    let mut found = find(session, names).await?;
    if found.standby {
        return Err(Error::new(ErrorKind::Unavailable, "connect")
            .with_context("the server is a standby and takes no writes: name the primary"));
    }
    if create && (found.log.is_none() || !found.meta) {
        install(session, names).await?;
        found = find(session, names).await?;
    }
    let (Some(log), true) = (found.log, found.meta) else {
        let context = format!(
            "the tables {} and {} are not there: install schema/postgres.sql, or let `create` be true",
            names.log, names.meta
        );
        return Err(Error::new(ErrorKind::InvalidConfig, "connect").with_context(context));
    };
    check(session, names).await?;
    Ok(log)
}

async fn find(session: &mut Session, names: &Names) -> Result<Found> {
    let statement = format!(
        "SELECT (SELECT hashtextextended(n.nspname || '.' || c.relname, 0) FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass('{}')), \
         to_regclass('{}') IS NOT NULL, pg_is_in_recovery()",
        names.log, names.meta
    );
    let rows = session.rows(&statement.into(), &[]).await.map_err(|error| fault("connect", error))?;
    let read = || {
        let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        Ok(Found { log: row.try_get(0)?, meta: row.try_get(1)?, standby: row.try_get(2)? })
    };
    read().map_err(|error| fault("connect", error))
}

/// In one transaction, under a lock that every installing node takes first.
async fn install(session: &mut Session, names: &Names) -> Result<()> {
    let schema = names.schema.as_ref().map_or_else(String::new, |schema| {
        // Asked first, for even a creation that finds it there needs the privilege.
        format!(
            "DO $make$ BEGIN IF to_regnamespace('{schema}') IS NULL THEN CREATE SCHEMA {schema}; END IF; END $make$;"
        )
    });
    let script = format!(
        "SET LOCAL client_min_messages = warning; SET LOCAL lock_timeout = '20s'; \
         SELECT pg_advisory_xact_lock(hashtextextended('backplane install', 0)); {schema}\n{}",
        names.schema_script()
    );
    session.script(script).await.map_err(|error| {
        let error = fault("connect", error);
        match error.kind() {
            ErrorKind::Denied => Error::new(ErrorKind::Denied, "connect")
                .with_context(
                    "this user may not create the tables of the log: install schema/postgres.sql for it",
                )
                .with_source(error),
            _ => error,
        }
    })
}

async fn check(session: &mut Session, names: &Names) -> Result<()> {
    let Names { log, meta, .. } = names;
    let privileges = [(log, "SELECT"), (log, "INSERT"), (log, "DELETE"), (meta, "SELECT"), (meta, "UPDATE")]
        .map(|(table, privilege)| format!("has_table_privilege('{table}', '{privilege}')"))
        .join(" AND ");
    let rights = session.rows(&format!("SELECT {privileges}").into(), &[]).await;
    let may: bool = rights
        .and_then(|rows| rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0))
        .map_err(|error| fault("connect", error))?;
    if !may {
        let context = format!(
            "this user needs SELECT, INSERT and DELETE on {log}, SELECT and UPDATE on {meta} (see schema/postgres.sql)"
        );
        return Err(Error::new(ErrorKind::Denied, "connect").with_context(context));
    }
    let rows = session
        .rows(&format!("SELECT version, octet_length(epoch) FROM {meta}").into(), &[])
        .await
        .map_err(|error| fault("connect", error))?;
    let wrong = |context: String| Err(Error::new(ErrorKind::InvalidConfig, "connect").with_context(context));
    let Some(row) = rows.first() else {
        return wrong(format!("{meta} has no row: install schema/postgres.sql anew"));
    };
    let read = || Ok((row.try_get::<i32, _>(0)?, row.try_get::<i32, _>(1)?));
    match read().map_err(|error| fault("connect", error))? {
        (VERSION, 16) => Ok(()),
        (VERSION, length) => wrong(format!("the epoch in {meta} has {length} bytes instead of 16")),
        (other, _) => wrong(format!(
            "{log} has format {other}, and this node knows format {VERSION}: name another `table`, or drop {log} and \
             {meta} (what they hold is as old as `retention` at most)"
        )),
    }
}
