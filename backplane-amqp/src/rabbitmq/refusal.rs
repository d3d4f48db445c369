//! What an error of lapin or of the broker means in the words of the seam.

use backplane_core::{Error, ErrorKind};
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};

/// The error of `operation`, which was about `subject`. The broker's text is kept: it names users, queues and exchanges,
/// never a password.
pub(super) fn refusal(operation: &'static str, subject: &str, error: lapin::Error) -> Error {
    if let lapin::ErrorKind::IOError(io) = error.kind()
        && let Some(refused) = backplane_tls::late_refusal(io)
    {
        return refused;
    }
    let kind = kind(&error);
    Error::new(kind, operation).with_context(subject.to_owned()).with_source(error)
}

fn kind(error: &lapin::Error) -> ErrorKind {
    let lapin::ErrorKind::ProtocolError(error) = error.kind() else { return ErrorKind::Unavailable };
    let text = error.get_message().as_str();
    match error.kind() {
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => ErrorKind::Denied,
        // Of an exchange that has another type, or a body above the server's `max_message_size`.
        AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => ErrorKind::InvalidConfig,
        // `vhost x not found`, in words only.
        AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if text.contains("not found") => {
            ErrorKind::InvalidConfig
        }
        // A limit of connections or channels may have room later.
        AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if text.contains("limit") || text.contains("down") => {
            ErrorKind::Unavailable
        }
        AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => ErrorKind::Denied,
        _ => ErrorKind::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::AMQPError;

    use super::*;

    #[test]
    fn what_a_real_broker_says_gets_its_kind() {
        let soft = |error: AMQPSoftError, text: &str| AMQPError::new(error.into(), text.into());
        let hard = |error: AMQPHardError, text: &str| AMQPError::new(error.into(), text.into());
        for (error, expected) in [
            (
                soft(
                    AMQPSoftError::ACCESSREFUSED,
                    "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN",
                ),
                ErrorKind::Denied,
            ),
            (
                soft(
                    AMQPSoftError::PRECONDITIONFAILED,
                    "PRECONDITION_FAILED - inequivalent arg 'type' for exchange",
                ),
                ErrorKind::InvalidConfig,
            ),
            (hard(AMQPHardError::NOTALLOWED, "NOT_ALLOWED - vhost nope not found"), ErrorKind::InvalidConfig),
            (
                hard(AMQPHardError::NOTALLOWED, "NOT_ALLOWED - access to vhost 'x' refused for user 'y'"),
                ErrorKind::Denied,
            ),
            (
                hard(
                    AMQPHardError::NOTALLOWED,
                    "NOT_ALLOWED - access to vhost 'x' refused: connection limit (0) is reached",
                ),
                ErrorKind::Unavailable,
            ),
            (
                hard(AMQPHardError::CONNECTIONFORCED, "CONNECTION_FORCED - closed by the operator"),
                ErrorKind::Unavailable,
            ),
            (soft(AMQPSoftError::NOTFOUND, "NOT_FOUND - no exchange 'backplane'"), ErrorKind::Unavailable),
        ] {
            let error = refusal("connect", "somewhere", lapin::ErrorKind::ProtocolError(error).into());
            assert_eq!(error.kind(), expected, "{error}");
            assert!(error.to_string().contains("somewhere"), "{error}");
        }
    }
}
