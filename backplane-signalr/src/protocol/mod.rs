//! Hub protocols: how hub messages look on a client's wire. A protocol reads and writes records; it knows no hub, no
//! transport and no type of any argument.

pub(crate) mod handshake;
mod json;

use std::fmt::{self, Debug};

use backplane_core::Protocol;
use bytes::{Bytes, BytesMut};

pub use json::Json;

use crate::clients::Arguments;

/// What a transport must be able to carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferFormat {
    /// UTF-8 text.
    Text,
    /// Any bytes.
    Binary,
}

impl TransferFormat {
    /// Its name in a negotiation.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "Text",
            Self::Binary => "Binary",
        }
    }
}

/// A hub protocol. Object-safe; values pass through [`erased_serde`].
pub trait HubProtocol: Debug + Send + Sync + 'static {
    /// Its name. Clients ask for it in any case.
    fn protocol(&self) -> Protocol;

    /// What a transport must carry for it.
    fn transfer_format(&self) -> TransferFormat;

    /// Takes the next complete record off `input`, without separator or length prefix; `None`: there is no complete one
    /// yet. `max` bounds it, separator or prefix included. `searched` is 0 for a new record; a protocol may note there how
    /// much of `input` it has looked at in vain, so that a record that trickles in is looked at once.
    ///
    /// # Errors
    /// [`RecordTooLarge`](ProtocolError::RecordTooLarge) as soon as it is known that the record is or will be longer;
    /// [`Malformed`](ProtocolError::Malformed) when the framing is broken.
    fn next_record(
        &self,
        input: &mut BytesMut,
        searched: &mut usize,
        max: usize,
    ) -> Result<Option<Bytes>, ProtocolError>;

    /// Reads a record. Values stay encoded: arguments and results are slices of `record`.
    ///
    /// # Errors
    /// [`Malformed`](ProtocolError::Malformed): the connection ends. A value that does not fit its type is no error
    /// here; [`read`](HubProtocol::read) finds it.
    fn decode(&self, record: &Bytes) -> Result<ClientMessage, ProtocolError>;

    /// Appends a message to `output`, framed.
    ///
    /// # Errors
    /// [`EncodeError`] when a value cannot be written in this protocol; `output` is as it was.
    fn encode(&self, message: &ServerMessage<'_>, output: &mut BytesMut) -> Result<(), EncodeError>;

    /// Reads one encoded value: hands a deserializer to `visit`, once.
    ///
    /// # Errors
    /// What `visit` returned, or that the value is malformed or goes on behind its end.
    fn read(
        &self,
        value: &[u8],
        visit: &mut dyn FnMut(&mut dyn erased_serde::Deserializer<'_>) -> Result<(), erased_serde::Error>,
    ) -> Result<(), erased_serde::Error>;
}

/// A message from a client.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientMessage {
    /// Calls a hub method.
    Invocation(Invocation),
    /// Calls a streaming hub method.
    StreamInvocation(Invocation),
    /// An item of an upload stream.
    StreamItem {
        /// The stream.
        id: String,
        /// Its encoded item.
        item: Bytes,
    },
    /// Answers a question of the server, or ends an upload stream.
    Completion {
        /// The question or the stream.
        id: String,
        /// What was answered.
        outcome: ClientOutcome,
        /// The headers map as the client encoded it; empty: none.
        headers: Bytes,
    },
    /// Asks to stop a stream or a call.
    CancelInvocation {
        /// The stream or the call.
        id: String,
    },
    /// A sign of life.
    Ping,
    /// The client ends the connection.
    Close {
        /// Why, if it says so.
        error: Option<String>,
    },
    /// Stateful reconnect: received up to here.
    Ack(i64),
    /// Stateful reconnect: continues here.
    Sequence(i64),
    /// A type that this version does not know: ignored.
    Unknown(i64),
}

/// A call of a hub method.
#[derive(Clone, Debug, PartialEq)]
pub struct Invocation {
    /// The call's id; `None` (or empty on the wire): the client wants no answer, not even an error.
    pub id: Option<String>,
    /// The method's name as the client wrote it.
    pub target: String,
    /// The encoded arguments.
    pub arguments: Vec<Bytes>,
    /// Upload streams that belong to the call.
    pub streams: Vec<String>,
}

/// How a client answered.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientOutcome {
    /// An encoded value.
    Value(Bytes),
    /// Without a value.
    Void,
    /// With an error text.
    Error(String),
}

/// A message to a client.
#[derive(Clone, Copy)]
pub enum ServerMessage<'a> {
    /// Calls a method of the client.
    Invocation {
        /// The id of a question; `None`: no answer is wanted.
        id: Option<&'a str>,
        /// The client's method.
        target: &'a str,
        /// Its arguments.
        arguments: &'a dyn Arguments,
    },
    /// Answers a call of the client.
    Completion {
        /// The call.
        id: &'a str,
        /// Its outcome.
        outcome: ServerOutcome<'a>,
    },
    /// A sign of life.
    Ping,
    /// The server ends the connection.
    Close {
        /// Why.
        error: Option<&'a str>,
        /// Whether the client may reconnect by itself.
        allow_reconnect: bool,
    },
}

impl Debug for ServerMessage<'_> {
    /// Without payloads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invocation { id, target, .. } => write!(f, "Invocation({id:?}, {target})"),
            Self::Completion { id, .. } => write!(f, "Completion({id})"),
            Self::Ping => f.write_str("Ping"),
            Self::Close { error, allow_reconnect } => write!(f, "Close({error:?}, {allow_reconnect})"),
        }
    }
}

/// How a call ended.
#[derive(Clone, Copy)]
#[allow(missing_debug_implementations, reason = "values are never printed")]
pub enum ServerOutcome<'a> {
    /// With a value; a method that returns nothing answers with null.
    Value(&'a dyn erased_serde::Serialize),
    /// Without a value: the end of a stream.
    Void,
    /// With an error text.
    Error(&'a str),
}

/// A client's bytes cannot be understood: the connection ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A record is longer than allowed.
    #[error(
        "The maximum message size of {0}B was exceeded. The message size can be configured in AddHubOptions."
    )]
    RecordTooLarge(usize),
    /// Broken framing, a broken envelope, or a required member is missing or wrong.
    #[error("{0}")]
    Malformed(String),
}

impl ProtocolError {
    /// A record that cannot be read, with the reason.
    #[must_use]
    pub fn malformed(reason: impl Into<String>) -> Self {
        Self::Malformed(reason.into())
    }
}

/// A value that a protocol cannot write.
#[derive(Debug, thiserror::Error)]
#[error("a value cannot be written in the hub protocol {protocol}: {reason}")]
pub struct EncodeError {
    /// The protocol.
    pub protocol: Protocol,
    /// What its serializer said.
    pub reason: String,
}
