//! What a failure of the driver or the server means.

use backplane_core::ErrorKind::{Denied, InvalidConfig, Malformed, Overloaded, Timeout, Unavailable};
use backplane_core::{Error, ErrorKind};
use tiberius::error::IoErrorKind;

/// The error of `operation`.
pub(super) fn fault(operation: &'static str, error: tiberius::error::Error) -> Error {
    let (kind, context) = meaning(&error);
    let fault = Error::new(kind, operation).with_source(error);
    if context.is_empty() { fault } else { fault.with_context(context) }
}

/// A deadlock, or a lock that was not granted in time: nothing was written, and the connection is as it was.
pub(super) fn is_worth_another_try(error: &tiberius::error::Error) -> bool {
    meaning(error).0 == Overloaded
}

fn meaning(error: &tiberius::error::Error) -> (ErrorKind, &'static str) {
    match error {
        tiberius::error::Error::Server(server) => match server.code() {
            1205 | 1222 => (Overloaded, ""),
            // Servers that are compatible with it do not have all of its numbers.
            _ if server.message().contains("due to lock timeout") => (Overloaded, ""),
            18452 | 18456 | 18470 | 18486 | 18487 | 18488 => {
                (Denied, "this user or its password is not known to the server")
            }
            229 | 230 | 262 | 297 | 916 => {
                (Denied, "this user lacks a privilege; schema/mssql.sql lists those it needs")
            }
            911 | 4060 => (InvalidConfig, "there is no such database, or this user has no access to it"),
            2759 | 2760 => (InvalidConfig, "there is no such schema, and this user may not create it"),
            207 | 208 => (InvalidConfig, "the tables of the log are not there, or of another format"),
            40501 | 40613 | 40197 | 10928 | 10929 | 49918 | 49919 | 49920 => {
                (Unavailable, "the service is busy")
            }
            976 | 978 | 983 | 3906 => {
                (Unavailable, "the database takes no writes: it is a replica, or read only")
            }
            1105 | 9002 | 1101 => (Unavailable, "the database or its transaction log is full"),
            17809 | 17803 => (Unavailable, "the server has no connection left"),
            _ => (Unavailable, ""),
        },
        tiberius::error::Error::Io { kind: IoErrorKind::TimedOut, .. } => (Timeout, ""),
        tiberius::error::Error::Tls(_) => (InvalidConfig, "no TLS with this server"),
        tiberius::error::Error::Conversion(_)
        | tiberius::error::Error::Encoding(_)
        | tiberius::error::Error::Utf8
        | tiberius::error::Error::Utf16
        | tiberius::error::Error::ParseInt(_) => (Malformed, "a row is not what was written"),
        _ => (Unavailable, ""),
    }
}
