//! What a failure of the driver or the server means.

use backplane_core::{Error, ErrorKind};
use sqlx::mysql::MySqlDatabaseError;

/// The error of `operation`.
pub(super) fn fault(operation: &'static str, error: sqlx::Error) -> Error {
    use ErrorKind::{Denied, InvalidConfig, Malformed, Overloaded, Timeout, TooLarge, Unavailable};

    let (kind, context) = match &error {
        sqlx::Error::Database(database) => match number(database.as_ref()) {
            // A deadlock (also one that a cluster found at the commit), or a lock that was not granted in time: nothing
            // was written once the transaction is rolled back.
            1213 | 1205 => (Overloaded, ""),
            1045 | 1698 => (Denied, "this user or its password is not known to the server"),
            1044 => (Denied, "this user has no access to the database"),
            1142 | 1143 | 1227 => {
                (Denied, "this user lacks a privilege; schema/mysql.sql lists those it needs")
            }
            1049 => (InvalidConfig, "there is no such database"),
            1146 | 1054 => (InvalidConfig, "the tables of the log are not there, or of another format"),
            1153 => (TooLarge, "above the server's `max_allowed_packet`, which was lowered meanwhile"),
            1118 => (TooLarge, "the server's redo log is too small for such a frame"),
            1665 => {
                (InvalidConfig, "`binlog_format=STATEMENT` does not take what is written in READ COMMITTED")
            }
            2061 | 3159 => (InvalidConfig, "the server lets this user in over TLS only: `ssl-mode=required`"),
            1290 | 1792 | 1836 => {
                (Unavailable, "the server takes no writes: it is a replica, or set to be read only")
            }
            1040 | 1203 | 1226 => (Unavailable, "the server has no connection left"),
            1461 => (Unavailable, "the server's `max_prepared_stmt_count` is reached"),
            1021 | 1114 => (Unavailable, "the server's disk or its table space is full"),
            1047 => (Unavailable, "this server of a cluster is not ready"),
            1317 | 1969 | 3024 => (Timeout, "the server ended the statement"),
            _ => (Unavailable, ""),
        },
        sqlx::Error::Tls(_) => (InvalidConfig, "no TLS with this server"),
        sqlx::Error::Io(io) if io.kind() == std::io::ErrorKind::InvalidData => {
            (InvalidConfig, "no TLS with this server")
        }
        sqlx::Error::Configuration(_) => (InvalidConfig, ""),
        // Among them: a way to authenticate that the driver does not know.
        sqlx::Error::Protocol(_) if operation == "connect" => (
            InvalidConfig,
            "the server speaks or authenticates otherwise (`caching_sha2_password` needs TLS)",
        ),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
            (Malformed, "a row is not what was written")
        }
        _ => (Unavailable, ""),
    };
    let fault = Error::new(kind, operation).with_source(error);
    if context.is_empty() { fault } else { fault.with_context(context) }
}

/// Whether nothing was written because a row has the writer and the number of one of ours.
pub(super) fn is_there_already(error: &sqlx::Error) -> bool {
    // An id that was handed out twice is another matter: skipping it would lose the row.
    matches!(error, sqlx::Error::Database(database)
        if number(database.as_ref()) == 1062 && !database.message().contains("PRIMARY"))
}

/// Whether the session may still be in the transaction that the statement failed in, and is to be used again.
pub(super) fn leaves_the_transaction(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(database) if matches!(number(database.as_ref()), 1062 | 1205 | 1213))
}

/// Whether a table is not there.
pub(super) fn is_missing(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(database) if number(database.as_ref()) == 1146)
}

fn number(error: &dyn sqlx::error::DatabaseError) -> u16 {
    error.try_downcast_ref::<MySqlDatabaseError>().map_or(0, MySqlDatabaseError::number)
}
