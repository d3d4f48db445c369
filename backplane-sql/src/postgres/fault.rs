//! What a failure of the driver or the server means.

use backplane_core::{Error, ErrorKind};

/// The error of `operation`.
pub(super) fn fault(operation: &'static str, error: sqlx::Error) -> Error {
    use ErrorKind::{Denied, InvalidConfig, Malformed, Overloaded, Timeout, Unavailable};

    let (kind, context) = match &error {
        sqlx::Error::Database(database) => match database.code().as_deref().unwrap_or_default() {
            // Deadlock, serialization failure, a lock that was not granted in time: nothing was written.
            "40P01" | "40001" | "55P03" => (Overloaded, ""),
            "57014" => (Timeout, "the server's `statement_timeout` ended the statement"),
            "25006" => (Unavailable, "the server takes no writes: it is a standby, or set to be read only"),
            "26000" | "42P05" => (
                InvalidConfig,
                "a pooler lends the sessions of this server and does not know prepared statements: add `prepared=false`",
            ),
            "3D000" => (InvalidConfig, "there is no such database"),
            "3F000" => (InvalidConfig, "there is no such schema, and this user may not create it"),
            "42P01" | "42703" => (InvalidConfig, "the tables of the log are not there, or of another format"),
            "42501" => (Denied, "this user lacks a privilege; schema/postgres.sql lists those it needs"),
            "53300" => (Unavailable, "the server has no connection left"),
            "53100" => (Unavailable, "the server's disk is full"),
            code if code.starts_with("28") => (Denied, ""),
            _ => (Unavailable, ""),
        },
        sqlx::Error::Tls(_) => (InvalidConfig, "no TLS with this server"),
        sqlx::Error::Io(io) if io.kind() == std::io::ErrorKind::InvalidData => {
            (InvalidConfig, "no TLS with this server")
        }
        sqlx::Error::Configuration(_) => (InvalidConfig, ""),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
            (Malformed, "a row is not what was written")
        }
        sqlx::Error::PoolTimedOut => (Timeout, ""),
        _ => (Unavailable, ""),
    };
    let fault = Error::new(kind, operation).with_source(error);
    if context.is_empty() { fault } else { fault.with_context(context) }
}
