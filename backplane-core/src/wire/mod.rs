//! How frames and topics look: a policy that the router follows and knows nothing else about.

use std::fmt::{self, Debug};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::error::Result;
use crate::id::{AckId, ConnectionId, GroupName, HubName, InvocationId, NodeId, Protocol, UserId};
use crate::message::{AbortReason, ClientResult, EncodedMessage, MembershipChange};
use crate::topic::{Topic, TopicSyntax};

pub mod aspnetcore;
mod native;

pub use aspnetcore::AspNetCore;
pub use native::Native;

/// Mints ids, names topics, and maps commands to frames and back. One value for each node; synchronous and pure but
/// for the ids it mints.
pub trait WireFormat: Debug + Send + Sync + 'static {
    /// `native`, `aspnetcore`, ...
    fn name(&self) -> &'static str;

    /// The node that this value speaks for.
    fn node(&self) -> NodeId;

    /// What its topics look like; the bus must be able to carry them.
    fn topic_syntax(&self) -> TopicSyntax;

    /// Whether frames carry their provenance and the format has beats. Without, the router neither filters repeats
    /// nor proves gaps, sends no beat, and learns of a node's death only by deadlines.
    fn provenance(&self) -> bool;

    /// Mints the id of a new connection of this node.
    fn new_connection_id(&self) -> ConnectionId;

    /// Mints the id of a question to a client; unique in the fleet.
    fn new_invocation_id(&self) -> InvocationId;

    /// Mints the id of an acknowledged command; unique among the pending ones of this node.
    fn new_ack_id(&self) -> AckId;

    /// Where a connection lives, as far as its id tells.
    fn home(&self, hub: &HubName, connection: &ConnectionId) -> Home;

    /// Topics that the node needs as long as it lives.
    fn node_topics(&self) -> Vec<(Topic, Route)>;

    /// Topics that a hub needs as long as the node lives.
    fn hub_topics(&self, hub: &HubName) -> Vec<(Topic, Route)>;

    /// The topic of one connection, where the format has such.
    fn connection_topic(&self, hub: &HubName, connection: &ConnectionId) -> Option<Topic>;

    /// The topic of a group.
    fn group_topic(&self, hub: &HubName, group: &GroupName) -> Topic;

    /// The topic of a user.
    fn user_topic(&self, hub: &HubName, user: &UserId) -> Topic;

    /// Encodes a command of `hub`. With provenance, the frame holds room that [`stamp`](WireFormat::stamp) fills.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for what the format cannot express.
    fn encode(&self, hub: &HubName, command: Command<'_>) -> Result<Draft>;

    /// Writes number and predecessor into an encoded frame, just before it is handed to the link. Does nothing without
    /// provenance.
    fn stamp(&self, frame: &mut [u8], seq: u64, prev: u64);

    /// Decodes a frame that arrived on a topic with this route. Payloads are slices of `frame`.
    ///
    /// # Errors
    /// [`Malformed`](crate::ErrorKind::Malformed). Never panics, whatever the bytes.
    fn decode(&self, route: &Route, frame: Bytes) -> Result<Decoded>;
}

/// Where a connection lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Home {
    /// On that node; commands go to its node topic.
    Node(NodeId),
    /// Not known; commands go to topics that its owner subscribes.
    Unknown,
    /// No node can have a connection of this id.
    Nowhere,
}

/// What a subscribed topic means to us.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// All nodes: beats.
    Common,
    /// This node: commands and answers.
    Node,
    /// All connections of a hub.
    All(HubName),
    /// The members of a group.
    Group(HubName, GroupName),
    /// The connections of a user.
    User(HubName, UserId),
    /// One connection.
    Connection(HubName, ConnectionId),
    /// Group commands to all servers of a hub (`aspnetcore`).
    GroupCommands(HubName),
    /// Acknowledgements to this server (`aspnetcore`).
    Acks(HubName),
    /// Client results returned to this server (`aspnetcore`).
    Results(HubName),
}

/// Whom one frame is for.
#[derive(Clone, Copy, Debug)]
pub enum Recipient<'a> {
    /// All connections of the hub.
    All,
    /// The members of a group.
    Group(&'a GroupName),
    /// The connections of a user.
    User(&'a UserId),
    /// Connections that live on one node ([`Home::Node`]).
    Node(NodeId, &'a [ConnectionId]),
    /// One connection of unknown home.
    Connection(&'a ConnectionId),
}

/// What a node tells others.
#[derive(Debug)]
pub enum Command<'a> {
    /// Deliver a message.
    Send {
        /// Whom to.
        to: Recipient<'a>,
        /// Whom not to.
        except: &'a [ConnectionId],
        /// What.
        message: &'a EncodedMessage,
    },
    /// Change a membership and acknowledge.
    ChangeGroup {
        /// Correlates the acknowledgement.
        ack: AckId,
        /// Which change; its `timeout` is set.
        change: &'a MembershipChange,
    },
    /// Ask a client.
    Invoke {
        /// Whom.
        connection: &'a ConnectionId,
        /// The question's id.
        id: &'a InvocationId,
        /// The encoded question.
        message: &'a EncodedMessage,
        /// After which the asker no longer waits.
        timeout: Duration,
    },
    /// Forget a question; no acknowledgement.
    CancelInvoke {
        /// Who was asked.
        connection: &'a ConnectionId,
        /// The question's id.
        id: &'a InvocationId,
    },
    /// End a connection and acknowledge.
    Abort {
        /// Correlates the acknowledgement.
        ack: AckId,
        /// Which.
        connection: &'a ConnectionId,
        /// Why.
        reason: &'a AbortReason,
    },
    /// Acknowledge.
    Ack {
        /// To whom.
        to: &'a ReplyTo,
        /// What.
        ack: AckId,
        /// How it went.
        outcome: AckOutcome,
    },
    /// Return a client's answer.
    Complete {
        /// To whom.
        to: &'a ReplyTo,
        /// Which question.
        id: &'a InvocationId,
        /// The protocol of the client that was asked.
        protocol: &'a Protocol,
        /// The answer.
        completion: &'a Completion,
    },
    /// Tell all nodes that we live and what we sent (with provenance only).
    Beat(&'a Beat),
}

/// An encoded frame, not yet numbered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// Where to.
    pub topic: Topic,
    /// The frame.
    pub frame: BytesMut,
}

/// Where an answer goes. Made by the wire format of the asker, opaque to the router.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReplyTo(pub Topic);

/// How an acknowledged command went at its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckOutcome {
    /// Done.
    Done,
    /// The owner does not have that connection.
    NotFound,
    /// The owner could not do it: its link or broker failed it, or it is overloaded.
    Failed,
}

/// How a question ended.
#[derive(Clone, PartialEq, Eq)]
pub enum Completion {
    /// The client answered.
    Answered {
        /// What.
        result: ClientResult,
        /// The headers of the client's hub message: the whole map, not empty, encoded in the protocol of the client
        /// that was asked, as the client wrote it (a JSON object, a MessagePack map). Nobody on the asking side reads
        /// them, since SignalR gives them no meaning; `aspnetcore` carries them all the same, as .NET servers do,
        /// `native` does not.
        headers: Option<Bytes>,
    },
    /// The connection left before it answered.
    Disconnected,
    /// The owner does not have that connection.
    NotFound,
    /// The answer came in a form that we cannot read; the text says what.
    Unreadable(String),
}

impl Completion {
    /// The client answered, without headers.
    #[must_use]
    pub fn answered(result: ClientResult) -> Self {
        Self::Answered { result, headers: None }
    }
}

impl fmt::Debug for Completion {
    /// Of headers the length; like payloads they are never printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered { result, headers: None } => write!(f, "Answered({result:?})"),
            Self::Answered { result, headers: Some(headers) } => {
                write!(f, "Answered({result:?}, headers of {} bytes)", headers.len())
            }
            Self::Disconnected => f.write_str("Disconnected"),
            Self::NotFound => f.write_str("NotFound"),
            Self::Unreadable(text) => write!(f, "Unreadable({text:?})"),
        }
    }
}

/// A node tells that it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Whether this is its last.
    pub leaving: bool,
    /// Number of the last frame it published before this one; 0: none.
    pub seq: u64,
    /// Last numbers of the topics it sent to most recently, by [`topic_hash`].
    pub topics: Vec<(u64, u64)>,
}

/// The hash by which beats name topics: the first eight bytes of SHA-256, big-endian.
#[must_use]
pub fn topic_hash(topic: &Topic) -> u64 {
    use sha2::{Digest as _, Sha256};
    let digest = Sha256::digest(topic.as_bytes());
    u64::from_be_bytes(digest[..8].try_into().expect("a digest is longer than eight bytes"))
}

/// Where a frame comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// The node that published it.
    pub origin: NodeId,
    /// Its number: one counter for each node, never reused, from 1.
    pub seq: u64,
    /// Number of the origin's previous frame on the same topic; 0: unknown.
    pub prev: u64,
}

/// A frame as decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Where it comes from; `None` without provenance.
    pub provenance: Option<Provenance>,
    /// What it says.
    pub body: Inbound,
}

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Inbound {
    /// A message for the audience of the topic's route.
    Message {
        /// Whom not to.
        except: Vec<ConnectionId>,
        /// What.
        message: EncodedMessage,
    },
    /// A message for connections of this node.
    Direct {
        /// Their hub.
        hub: HubName,
        /// Whom to.
        connections: Vec<ConnectionId>,
        /// What.
        message: EncodedMessage,
    },
    /// See [`Command::ChangeGroup`].
    ChangeGroup {
        /// The hub.
        hub: HubName,
        /// Correlates the acknowledgement.
        ack: AckId,
        /// Where the acknowledgement goes.
        reply: ReplyTo,
        /// Which change; `timeout`: how long the asker waits, where the format tells.
        change: MembershipChange,
    },
    /// A group command that asks for nothing we know; the owner of the connection acknowledges it all the same
    /// (`aspnetcore`).
    NoChange {
        /// The hub.
        hub: HubName,
        /// Correlates the acknowledgement.
        ack: AckId,
        /// Where the acknowledgement goes.
        reply: ReplyTo,
        /// Whose owner acknowledges.
        connection: ConnectionId,
    },
    /// See [`Command::Invoke`].
    Invoke {
        /// The hub.
        hub: HubName,
        /// Whom.
        connection: ConnectionId,
        /// The question's id.
        id: InvocationId,
        /// Where the answer goes.
        reply: ReplyTo,
        /// The encoded question.
        message: EncodedMessage,
        /// How long the asker waits, where the format tells.
        timeout: Option<Duration>,
    },
    /// See [`Command::CancelInvoke`].
    CancelInvoke {
        /// The hub.
        hub: HubName,
        /// Who was asked.
        connection: ConnectionId,
        /// The question's id.
        id: InvocationId,
    },
    /// See [`Command::Abort`].
    Abort {
        /// The hub.
        hub: HubName,
        /// Correlates the acknowledgement.
        ack: AckId,
        /// Where the acknowledgement goes.
        reply: ReplyTo,
        /// Which.
        connection: ConnectionId,
        /// Why.
        reason: AbortReason,
    },
    /// See [`Command::Ack`].
    Ack {
        /// What.
        ack: AckId,
        /// How it went.
        outcome: AckOutcome,
    },
    /// See [`Command::Complete`].
    Complete {
        /// Which question.
        id: InvocationId,
        /// How it ended.
        completion: Completion,
    },
    /// See [`Command::Beat`].
    Beat(Beat),
    /// Nothing for us: another name of the same hash, an unknown kind, a command without effect.
    Unwanted,
}
