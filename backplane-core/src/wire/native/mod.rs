//! Our own wire format: home-node addressing, provenance in every frame, beats. Version 1.
//!
//! What follows is all that another implementer needs. It is fixed: whatever could not be read by the rule "unknown
//! trailing bytes are ignored" needs another version byte.
//!
//! # Topics
//! Dot-separated tokens, at most [`Topic::MAX_TOKENS_LEN`] bytes, each name at most 64:
//!
//! | topic                        | route                       | kinds             |
//! |------------------------------|-----------------------------|-------------------|
//! | `{prefix}.c`                 | all nodes                   | 9                 |
//! | `{prefix}.n.{node}`          | one node; base64url, 8 chars| 2 to 8            |
//! | `{prefix}.h.{hub}.all`       | all connections of a hub    | 1                 |
//! | `{prefix}.h.{hub}.g.{group}` | the members of a group      | 1                 |
//! | `{prefix}.h.{hub}.u.{user}`  | the connections of a user   | 1                 |
//!
//! `prefix`, `hub`, `group` and `user` are spelled in one of three forms that exclude each other:
//! - *escaped*, when that is 1 to 64 bytes: ASCII letters, digits and `-` stand for themselves, every other byte,
//!   `_` included, is `_` and two upper-case hexadecimal digits;
//! - *empty*: a single `_`;
//! - *hashed*, when escaping takes more than 64 bytes: `__` and the base64url (no padding) of SHA-256 of the name. The
//!   name then travels in the frame, and a receiver whose name differs ignores the frame. A prefix is never hashed.
//!
//! # Frames
//! Fixed numbers are big-endian. *varint*: LEB128, unsigned, at most 64 bits. *text*: varint length in bytes, UTF-8.
//! *bytes*: varint length, bytes. *list*: varint count, items. *protocol*: `1` json, `2` messagepack, `0` and the name as
//! text for all others. *message*: one byte count, then for each encoding protocol and bytes. *timeout*: varint in
//! milliseconds, rounded up; `0`: not told.
//!
//! | offset | length | header                                                             |
//! |--------|--------|--------------------------------------------------------------------|
//! | 0      | 1      | version, `1`; a frame of any other version is malformed            |
//! | 1      | 1      | kind; a frame of an unknown kind is ignored                        |
//! | 2      | 6      | origin: the node that published it                                 |
//! | 8      | 8      | seq: its number, one counter for each origin, from 1               |
//! | 16     | 8      | prev: number of the origin's previous frame on this topic, `0` unknown |
//! | 24     |        | body                                                               |
//!
//! | kind | what          | body                                                                                |
//! |------|---------------|-------------------------------------------------------------------------------------|
//! | 1    | message       | flags; hub: text, if flag 2; group or user: text, if flag 4; except: list of text, if flag 1; message |
//! | 2    | direct        | hub: text; connections: list of text; message                                       |
//! | 3    | change group  | hub: text; ack: varint; `1` join or `0` leave; connection: text; group: text; timeout |
//! | 4    | ack           | ack: varint; `0` done, `1` connection not found, `2` failed                         |
//! | 5    | invoke        | hub: text; connection: text; invocation: text; timeout; message                     |
//! | 6    | cancel invoke | hub: text; connection: text; invocation: text                                       |
//! | 7    | complete      | invocation: text; `0` void, `1` value: protocol, bytes, `2` error: text, `3` disconnected, `4` connection not found, `5` unreadable: text |
//! | 8    | abort         | hub: text; ack: varint; flags; connection: text; reason: text, if flag 2. Flag 1: may reconnect |
//! | 9    | beat          | flags; seq: varint; topics: list of (eight bytes [`topic_hash`](super::topic_hash), varint seq). Flag 1: leaving |
//!
//! Flags are one byte; unknown ones are ignored, and so are bytes behind the body. A known kind on a topic where the
//! first table does not have it is ignored. Kind 1 names its hub, group or user exactly when the topic has it hashed.
//! Answers to kinds 3, 5 and 8 go to the node topic of the origin.

use std::sync::atomic::{AtomicI64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;

use super::{Command, Decoded, Draft, Home, Route, WireFormat};
use crate::error::Result;
use crate::id::{AckId, ConnectionId, GroupName, HubName, InvocationId, NodeId, UserId, random_bytes};
use crate::topic::{Topic, TopicSyntax};

use topics::Topics;

mod decode;
mod encode;
mod layout;
mod topics;

#[cfg(test)]
mod tests;

/// Length of a minted id in bytes: the node's id and ten random bytes.
const ID_LEN: usize = 16;
/// Length of a minted id as base64url text.
const ID_TEXT_LEN: usize = 22;

/// Our own wire format, version 1: connection ids name their node, frames carry their provenance. The layout stands in
/// `wire/native/mod.rs`, as a table that another implementer can follow.
///
/// Beyond the errors of [`WireFormat::encode`], a command for a connection that no node can have ([`Home::Nowhere`])
/// is [`ConnectionNotFound`](crate::ErrorKind::ConnectionNotFound), and a message of more than 255 encodings is
/// `Unsupported`. Timeouts travel in whole milliseconds, rounded up.
#[derive(Debug)]
pub struct Native {
    node: NodeId,
    topics: Topics,
    node_topic: Topic,
    common_topic: Topic,
    last_ack: AtomicI64,
}

impl Native {
    /// For one node, whose id is minted here. Nodes meet only under equal prefixes: any UTF-8 that is not empty and,
    /// escaped, not longer than 64 bytes (letters, digits and `-` count one byte, all others three).
    ///
    /// # Errors
    /// [`InvalidConfig`](crate::ErrorKind::InvalidConfig) for another prefix.
    pub fn new(prefix: &str) -> Result<Self> {
        Self::for_node(prefix, NodeId::random())
    }

    fn for_node(prefix: &str, node: NodeId) -> Result<Self> {
        let topics = Topics::new(prefix)?;
        Ok(Self {
            node_topic: topics.node(node),
            common_topic: topics.common(),
            topics,
            node,
            last_ack: AtomicI64::new(0),
        })
    }

    /// A new id that carries this node. Each takes fresh randomness from the system rather than a buffer of it: it is
    /// needed once for each connection and question, and where id and token are one it guards the connection.
    fn mint<Id: for<'a> From<&'a str>>(&self) -> Id {
        let mut id = [0; ID_LEN];
        let (node, random) = id.split_at_mut(NodeId::LEN);
        node.copy_from_slice(self.node.as_bytes());
        random.copy_from_slice(&random_bytes::<{ ID_LEN - NodeId::LEN }>());
        let mut text = [0; ID_TEXT_LEN];
        URL_SAFE_NO_PAD.encode_slice(id, &mut text).expect("16 bytes are 22 base64url characters");
        Id::from(str::from_utf8(&text).expect("base64url is ASCII"))
    }
}

/// The node that an id carries; `None` for what this format never mints.
fn home_node(connection: &ConnectionId) -> Option<NodeId> {
    let text = connection.as_str();
    if text.len() != ID_TEXT_LEN {
        return None;
    }
    // 22 characters are 16 bytes or an error; the room is for the decoder's estimate, whole groups of three.
    let mut id = [0; ID_LEN.next_multiple_of(3)];
    URL_SAFE_NO_PAD.decode_slice(text, &mut id).ok()?;
    id.first_chunk().copied().map(NodeId::from_bytes)
}

impl WireFormat for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn node(&self) -> NodeId {
        self.node
    }

    fn topic_syntax(&self) -> TopicSyntax {
        TopicSyntax::Tokens
    }

    fn provenance(&self) -> bool {
        true
    }

    fn new_connection_id(&self) -> ConnectionId {
        self.mint()
    }

    fn new_invocation_id(&self) -> InvocationId {
        self.mint()
    }

    fn new_ack_id(&self) -> AckId {
        AckId(self.last_ack.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn home(&self, _hub: &HubName, connection: &ConnectionId) -> Home {
        home_node(connection).map_or(Home::Nowhere, Home::Node)
    }

    fn node_topics(&self) -> Vec<(Topic, Route)> {
        vec![(self.common_topic.clone(), Route::Common), (self.node_topic.clone(), Route::Node)]
    }

    fn hub_topics(&self, hub: &HubName) -> Vec<(Topic, Route)> {
        vec![(self.topics.all(hub), Route::All(hub.clone()))]
    }

    fn connection_topic(&self, _hub: &HubName, _connection: &ConnectionId) -> Option<Topic> {
        None
    }

    fn group_topic(&self, hub: &HubName, group: &GroupName) -> Topic {
        self.topics.group(hub, group)
    }

    fn user_topic(&self, hub: &HubName, user: &UserId) -> Topic {
        self.topics.user(hub, user)
    }

    fn encode(&self, hub: &HubName, command: Command<'_>) -> Result<Draft> {
        let topic = self.address(hub, &command)?;
        Ok(Draft { topic, frame: encode::frame(self.node, hub, &command)? })
    }

    fn stamp(&self, frame: &mut [u8], seq: u64, prev: u64) {
        layout::stamp(frame, seq, prev);
    }

    fn decode(&self, route: &Route, frame: Bytes) -> Result<Decoded> {
        decode::frame(&self.topics, route, frame)
    }
}
