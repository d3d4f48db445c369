//! What travels: messages already encoded for clients, questions to clients and their answers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::id::{ConnectionId, GroupName, InvocationId, Protocol};

/// One hub message, encoded once for each client protocol by the sender: complete frames, exactly as they go on a
/// client's wire. Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct EncodedMessage {
    encodings: SmallVec<[(Protocol, Bytes); 2]>,
}

impl EncodedMessage {
    /// From its encodings, in the order in which they shall stand on the wire.
    #[must_use]
    pub fn new(encodings: impl IntoIterator<Item = (Protocol, Bytes)>) -> Self {
        Self { encodings: encodings.into_iter().collect() }
    }

    /// With a single encoding, for `json` clients.
    #[must_use]
    pub fn json(bytes: impl Into<Bytes>) -> Self {
        Self::new([(Protocol::JSON, bytes.into())])
    }

    /// The bytes for a client that speaks `protocol`, if the sender encoded them.
    #[must_use]
    pub fn get(&self, protocol: &Protocol) -> Option<&Bytes> {
        self.encodings.iter().find(|(name, _)| name == protocol).map(|(_, bytes)| bytes)
    }

    /// All encodings, in order.
    pub fn encodings(&self) -> impl ExactSizeIterator<Item = (&Protocol, &Bytes)> {
        self.encodings.iter().map(|(name, bytes)| (name, bytes))
    }

    /// Adds an encoding behind the others.
    pub fn push(&mut self, protocol: Protocol, bytes: Bytes) {
        self.encodings.push((protocol, bytes));
    }

    /// The sum of all encodings in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.encodings.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    /// Whether it holds no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for EncodedMessage {
    /// Names and lengths; payloads are never printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.encodings.iter().map(|(name, bytes)| (name, bytes.len()))).finish()
    }
}

/// The encoder of a question: the invocation id is part of the encoded bytes, and the wire format mints it.
pub type InvocationEncoder = Arc<dyn Fn(&InvocationId) -> EncodedMessage + Send + Sync>;

/// A question to one client: an invocation that wants a result.
#[derive(Clone)]
pub struct ClientInvocation {
    /// Encodes the invocation with the id it was given.
    pub encode: InvocationEncoder,
    /// How long to wait for the answer; `None`: the configured default (30 s).
    pub timeout: Option<Duration>,
}

impl ClientInvocation {
    /// A question with the default timeout.
    pub fn new(encode: impl Fn(&InvocationId) -> EncodedMessage + Send + Sync + 'static) -> Self {
        Self { encode: Arc::new(encode), timeout: None }
    }

    /// Sets how long to wait for the answer.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

impl fmt::Debug for ClientInvocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientInvocation").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// What a client answered.
#[derive(Clone, PartialEq, Eq)]
pub enum ClientResult {
    /// A value, still encoded as the client sent it.
    Value {
        /// The encoding of `value`.
        protocol: Protocol,
        /// The encoded value alone, without the message around it.
        value: Bytes,
    },
    /// The call completed without a value.
    Void,
    /// The client's error text.
    Error(String),
}

impl ClientResult {
    /// A value in an encoding.
    #[must_use]
    pub fn value(protocol: Protocol, value: impl Into<Bytes>) -> Self {
        Self::Value { protocol, value: value.into() }
    }

    /// An error text.
    #[must_use]
    pub fn error(text: impl Into<String>) -> Self {
        Self::Error(text.into())
    }
}

impl fmt::Debug for ClientResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value { protocol, value } => write!(f, "Value({protocol}, {} bytes)", value.len()),
            Self::Void => f.write_str("Void"),
            Self::Error(text) => write!(f, "Error({text:?})"),
        }
    }
}

/// Whether a membership begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Membership {
    /// The connection becomes a member.
    Join,
    /// The connection stops being one.
    Leave,
}

/// A change of one connection's membership in one group, wherever that connection lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipChange {
    /// The connection.
    pub connection: ConnectionId,
    /// The group.
    pub group: GroupName,
    /// Join or leave.
    pub membership: Membership,
    /// How long to wait for the owner's acknowledgement; `None`: the configured default (5 s).
    pub timeout: Option<Duration>,
}

impl MembershipChange {
    /// `connection` becomes a member of `group`.
    pub fn join(connection: impl Into<ConnectionId>, group: impl Into<GroupName>) -> Self {
        Self {
            connection: connection.into(),
            group: group.into(),
            membership: Membership::Join,
            timeout: None,
        }
    }

    /// `connection` leaves `group`.
    pub fn leave(connection: impl Into<ConnectionId>, group: impl Into<GroupName>) -> Self {
        Self {
            connection: connection.into(),
            group: group.into(),
            membership: Membership::Leave,
            timeout: None,
        }
    }

    /// Sets how long to wait for the acknowledgement.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

/// Why a connection shall be ended, for the client to see.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct AbortReason {
    /// Text for the client; `None`: a plain close.
    pub message: Option<String>,
    /// Whether the client is told that it may reconnect.
    pub allow_reconnect: bool,
}
