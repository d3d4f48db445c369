//! What the errors of a link say, whichever kind of link it is.

use backplane_core::{Error, ErrorKind, Result};

/// To work that comes after the end.
pub(crate) fn closed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Closed, operation).with_context("the link has ended")
}

/// To work whose link ended like this.
pub(crate) fn failed(how: &Result<()>, operation: &'static str) -> Error {
    match how {
        Ok(()) => Error::new(ErrorKind::Closed, operation).with_context("the link was closed"),
        Err(error) if error.kind() == ErrorKind::Denied => {
            Error::new(ErrorKind::Denied, operation).with_source(error.clone())
        }
        Err(error) => Error::new(ErrorKind::Unavailable, operation).with_source(error.clone()),
    }
}

/// To work that could not be sent before its deadline.
pub(crate) fn not_sent(operation: &'static str) -> Error {
    Error::new(ErrorKind::Timeout, operation).with_context("the server took nothing in time; it was not sent")
}

/// The server refused by its permissions.
pub(crate) fn denied(operation: &'static str, said: &str) -> Error {
    Error::new(ErrorKind::Denied, operation).with_context(format!("the server says: {said}"))
}

/// The connection took nothing any more.
pub(crate) fn lost(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Unavailable, "publish").with_context("the connection has ended").with_source(error)
}

/// How a link ended that nobody closed, and what the server complained of before.
pub(crate) fn died(how: &str, complaint: Option<&str>) -> Error {
    let error = Error::new(ErrorKind::Unavailable, "receive");
    match complaint {
        Some(complaint) => error.with_context(format!("{how}; the server says: {complaint}")),
        None => error.with_context(how.to_owned()),
    }
}

/// How a link ended whose server is about to.
pub(crate) fn lame_duck() -> Error {
    died("the server is leaving (lame duck) and asks us to go elsewhere", None)
}

/// To whoever closes a link whose server does not answer.
pub(crate) fn not_closed() -> Error {
    Error::new(ErrorKind::Timeout, "close")
        .with_context("the server did not answer in time; the connection was cut")
}
