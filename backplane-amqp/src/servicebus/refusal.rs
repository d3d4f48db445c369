//! What an error of the peer or of the protocol engine means to us.

use backplane_core::{Error, ErrorKind};
use backplane_tls::late_refusal;
use fe2o3_amqp::connection::{self, ConnectionStopReason, OpenError};
use fe2o3_amqp::link::{
    DetachError, LinkStateError, ReceiverAttachError, RecvError, SendError, SenderAttachError,
    SessionStopReason,
};
use fe2o3_amqp::session::BeginError;
use fe2o3_amqp::types::definitions::{self, AmqpError, ConnectionError, ErrorCondition, LinkError};
use fe2o3_amqp::types::messaging::Outcome;
use fe2o3_amqp::types::sasl::SaslCode;

/// The condition that Service Bus names when it throttles.
const SERVER_BUSY: &str = "com.microsoft:server-busy";

/// An error that the peer spelled out.
pub(super) fn condition(operation: &'static str, told: &definitions::Error) -> Error {
    let kind = match &told.condition {
        ErrorCondition::AmqpError(AmqpError::UnauthorizedAccess | AmqpError::NotAllowed) => ErrorKind::Denied,
        ErrorCondition::AmqpError(AmqpError::ResourceLimitExceeded) => ErrorKind::Overloaded,
        ErrorCondition::AmqpError(AmqpError::NotImplemented) => ErrorKind::Unsupported,
        ErrorCondition::LinkError(LinkError::MessageSizeExceeded) => ErrorKind::TooLarge,
        ErrorCondition::ConnectionError(ConnectionError::Redirect) => ErrorKind::Unsupported,
        ErrorCondition::Custom(symbol) => match symbol.as_str() {
            SERVER_BUSY | "com.microsoft:entity-quota-exceeded" => ErrorKind::Overloaded,
            "com.microsoft:timeout" => ErrorKind::Timeout,
            "com.microsoft:auth-failed" | "com.microsoft:entity-disabled" => ErrorKind::Denied,
            "com.microsoft:argument-error" | "com.microsoft:argument-out-of-range" => {
                ErrorKind::InvalidConfig
            }
            _ => ErrorKind::Unavailable,
        },
        _ => ErrorKind::Unavailable,
    };
    let name = name_of(&told.condition);
    Error::new(kind, operation).with_context(match &told.description {
        Some(description) => format!("the server says {name}: {description}"),
        None => format!("the server says {name}"),
    })
}

fn name_of(condition: &ErrorCondition) -> String {
    match condition {
        ErrorCondition::Custom(symbol) => symbol.as_str().to_owned(),
        ErrorCondition::AmqpError(error) => format!("{error:?}"),
        ErrorCondition::ConnectionError(error) => format!("{error:?}"),
        ErrorCondition::SessionError(error) => format!("{error:?}"),
        ErrorCondition::LinkError(error) => format!("{error:?}"),
    }
}

/// Whether the entity that we use is no longer there, so that only a new one helps.
pub(super) fn is_gone(told: &definitions::Error) -> bool {
    matches!(told.condition, ErrorCondition::AmqpError(AmqpError::NotFound | AmqpError::ResourceDeleted))
}

fn unavailable(operation: &'static str, context: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Unavailable, operation).with_context(context)
}

fn stopped(operation: &'static str, reason: &SessionStopReason) -> Error {
    match reason {
        SessionStopReason::RemoteEndedWithError(told)
        | SessionStopReason::EndedWithError(told)
        | SessionStopReason::ConnectionStopped(
            ConnectionStopReason::RemoteClosedWithError(told) | ConnectionStopReason::ClosedWithError(told),
        ) => condition(operation, told),
        SessionStopReason::Ended | SessionStopReason::RemoteEnded => {
            unavailable(operation, "the session ended")
        }
        SessionStopReason::ConnectionStopped(_) => unavailable(operation, "the connection ended"),
    }
}

/// Why a connection could not be opened.
pub(super) fn open(error: OpenError) -> Error {
    const OPERATION: &str = "connect";
    match error {
        OpenError::SaslError { code: SaslCode::Auth, .. } => {
            Error::new(ErrorKind::Denied, OPERATION).with_context("the server refused our credentials")
        }
        OpenError::RemoteClosedWithError(told) => condition(OPERATION, &told),
        OpenError::ProtocolHeaderMismatch(_) => unavailable(
            OPERATION,
            "the server does not speak AMQP 1.0 here (RabbitMQ needs the plugin rabbitmq_amqp1_0; TLS or not?)",
        ),
        OpenError::Io(error) => match late_refusal(&error) {
            Some(refused) => refused,
            None => unavailable(OPERATION, "the connection broke while it was opened").with_source(error),
        },
        other => unavailable(OPERATION, "the connection could not be opened").with_source(other),
    }
}

/// Why a session could not be begun.
pub(super) fn begin(operation: &'static str, error: BeginError) -> Error {
    match error {
        BeginError::RemoteEndedWithError(told)
        | BeginError::ConnectionStopped(
            ConnectionStopReason::RemoteClosedWithError(told) | ConnectionStopReason::ClosedWithError(told),
        ) => condition(operation, &told),
        other => unavailable(operation, "a session could not be begun").with_source(other),
    }
}

/// How a connection ended that was open.
pub(super) fn ended(outcome: Result<(), connection::Error>) -> Error {
    const OPERATION: &str = "receive";
    match outcome {
        Ok(()) | Err(connection::Error::RemoteClosed) => {
            unavailable(OPERATION, "the server closed the connection")
        }
        Err(connection::Error::RemoteClosedWithError(told)) => condition(OPERATION, &told),
        Err(other) => unavailable(OPERATION, "the connection broke").with_source(other),
    }
}

/// Why the sending link was not attached.
pub(super) fn attach_sender(error: SenderAttachError) -> (Error, bool) {
    match error {
        SenderAttachError::RemoteClosedWithError(told) => (condition("connect", &told), is_gone(&told)),
        SenderAttachError::SessionStopped(reason) => (stopped("connect", &reason), stopped_gone(&reason)),
        other => (unavailable("connect", "the server attached no sending link").with_source(other), false),
    }
}

/// Why the receiving link was not attached.
pub(super) fn attach_receiver(error: ReceiverAttachError) -> (Error, bool) {
    match error {
        ReceiverAttachError::RemoteClosedWithError(told) => (condition("connect", &told), is_gone(&told)),
        ReceiverAttachError::SessionStopped(reason) => (stopped("connect", &reason), stopped_gone(&reason)),
        other => (unavailable("connect", "the server attached no receiving link").with_source(other), false),
    }
}

/// RabbitMQ answers an unknown address by ending the session.
fn stopped_gone(reason: &SessionStopReason) -> bool {
    matches!(reason, SessionStopReason::RemoteEndedWithError(told) if is_gone(told))
}

/// How a link ended, and whether its entity is gone.
pub(super) fn link(operation: &'static str, error: &LinkStateError) -> (Error, bool) {
    match error {
        LinkStateError::RemoteDetachedWithError(told) | LinkStateError::RemoteClosedWithError(told) => {
            (condition(operation, told), is_gone(told))
        }
        LinkStateError::RemoteDetached | LinkStateError::RemoteClosed => {
            (unavailable(operation, "the server detached the link"), false)
        }
        LinkStateError::SessionStopped(reason) => (stopped(operation, reason), stopped_gone(reason)),
        other => (unavailable(operation, "the link broke").with_source(other.clone()), false),
    }
}

/// What a failed send means: for its frames, and, where `Some`, that the link ended.
#[derive(Debug)]
pub(super) enum Sent {
    /// The message alone failed.
    Failed(Error),
    /// The link ended. Whether its entity is gone.
    Ended(Error, bool),
}

/// Why a message was not sent or has no outcome.
pub(super) fn send(error: SendError) -> Sent {
    const OPERATION: &str = "publish";
    match error {
        SendError::LinkStateError(state) => {
            let (error, gone) = link(OPERATION, &state);
            Sent::Ended(error, gone)
        }
        SendError::Detached(
            DetachError::RemoteClosedWithError(told) | DetachError::RemoteDetachedWithError(told),
        ) => Sent::Ended(condition(OPERATION, &told), is_gone(&told)),
        SendError::Detached(other) => {
            Sent::Ended(unavailable(OPERATION, "the server detached the link").with_source(other), false)
        }
        SendError::MessageSizeExceeded(size) => {
            Sent::Failed(Error::new(ErrorKind::TooLarge, OPERATION).with_source(size))
        }
        other => Sent::Failed(unavailable(OPERATION, "the outcome was unreadable").with_source(other)),
    }
}

/// Whether the peer accepted a message.
pub(super) fn outcome(outcome: &Outcome) -> Result<(), Error> {
    match outcome {
        Outcome::Accepted(_) => Ok(()),
        Outcome::Rejected(rejected) => Err(match &rejected.error {
            Some(told) => condition("publish", told),
            None => unavailable("publish", "the server rejected it without a reason"),
        }),
        // Nobody took it, in either case.
        Outcome::Released(_) | Outcome::Modified(_) => {
            Err(unavailable("publish", "the server released it untaken"))
        }
    }
}

/// How the receiving link ended, or `None` when one message alone was unreadable.
pub(super) fn receive(error: &RecvError) -> Option<(Error, bool)> {
    match error {
        RecvError::MessageDecode(_) => None,
        RecvError::LinkStateError(state) => Some(link("receive", state)),
        other => Some((unavailable("receive", format!("the receiving link broke: {other}")), false)),
    }
}
