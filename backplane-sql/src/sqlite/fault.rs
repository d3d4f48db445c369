//! What a failure of SQLite means.

use backplane_core::{Error, ErrorKind};

/// SQLITE_BUSY: somebody else writes.
const BUSY: i32 = 5;

/// The error of `operation`.
pub(super) fn fault(operation: &'static str, error: sqlx::Error) -> Error {
    use ErrorKind::{Denied, InvalidConfig, Malformed, Overloaded, TooLarge, Unavailable};

    let (kind, context) = match &error {
        sqlx::Error::Database(database) => match code(database.as_ref()) & 0xff {
            BUSY | 6 => (Overloaded, "somebody else writes into the file"),
            1 if database.message().starts_with("no such") => {
                (InvalidConfig, "the tables of the log are not there, or of another format")
            }
            3 | 8 | 23 => (Denied, "the file or its folder cannot be written"),
            10 => (Unavailable, "the disk fails"),
            11 => (Unavailable, "the file is damaged: move it away, and a new log is made"),
            13 => (Unavailable, "the disk is full"),
            14 => (Unavailable, "the file cannot be opened: its folder is missing, or not ours to write in"),
            18 => (TooLarge, ""),
            26 => (InvalidConfig, "the file is no SQLite database"),
            _ => (Unavailable, ""),
        },
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
            (Malformed, "a row is not what was written")
        }
        _ => (Unavailable, ""),
    };
    let fault = Error::new(kind, operation).with_source(error);
    if context.is_empty() { fault } else { fault.with_context(context) }
}

/// Whether somebody else was writing for longer than we wait.
pub(super) fn is_busy(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(database) if code(database.as_ref()) & 0xff == BUSY)
}

/// SQLite's extended result code.
fn code(error: &dyn sqlx::error::DatabaseError) -> i32 {
    error.code().and_then(|code| code.parse().ok()).unwrap_or_default()
}
