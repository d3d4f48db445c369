//! From commands to frames. Each body is written twice by the same code, first into a counter: so every frame is
//! allocated once, in its exact size, and size and content cannot disagree.

use std::time::Duration;

use bytes::BytesMut;

use super::layout::{self, HEADER_LEN, Kind};
use super::{Native, home_node, topics};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{ConnectionId, HubName, NodeId, Protocol};
use crate::message::{AbortReason, ClientResult, EncodedMessage, Membership, MembershipChange};
use crate::topic::Topic;
use crate::wire::{AckOutcome, Beat, Command, Completion, Recipient};

impl Native {
    /// Where a command goes.
    pub(super) fn address(&self, hub: &HubName, command: &Command<'_>) -> Result<Topic> {
        match command {
            Command::Send { to, .. } => match to {
                Recipient::All => Ok(self.topics.all(hub)),
                Recipient::Group(group) => Ok(self.topics.group(hub, group)),
                Recipient::User(user) => Ok(self.topics.user(hub, user)),
                Recipient::Node(node, _) => Ok(self.topics.node(*node)),
                Recipient::Connection(_) => {
                    Err(unsupported("the native format addresses connections by their node"))
                }
            },
            Command::ChangeGroup { change, .. } => self.home_topic(&change.connection),
            Command::Invoke { connection, .. }
            | Command::CancelInvoke { connection, .. }
            | Command::Abort { connection, .. } => self.home_topic(connection),
            Command::Ack { to, .. } | Command::Complete { to, .. } => Ok(to.0.clone()),
            Command::Beat(_) => Ok(self.common_topic.clone()),
        }
    }

    fn home_topic(&self, connection: &ConnectionId) -> Result<Topic> {
        home_node(connection).map(|node| self.topics.node(node)).ok_or_else(|| {
            Error::new(ErrorKind::ConnectionNotFound, "encode").with_context("no node mints such an id")
        })
    }
}

fn unsupported(what: &'static str) -> Error {
    Error::new(ErrorKind::Unsupported, "encode").with_context(what)
}

/// A whole frame, not yet numbered.
pub(super) fn frame(origin: NodeId, hub: &HubName, command: &Command<'_>) -> Result<BytesMut> {
    if let Command::Send { message, .. } | Command::Invoke { message, .. } = command
        && message.encodings().len() > usize::from(u8::MAX)
    {
        return Err(unsupported("a message has more than 255 encodings"));
    }
    let mut size = Count(HEADER_LEN);
    write_body(&mut size, hub, command);
    let mut frame = BytesMut::with_capacity(size.0);
    frame.extend_from_slice(&layout::header(kind(command), origin));
    write_body(&mut frame, hub, command);
    debug_assert_eq!(frame.len(), size.0, "counted as written");
    Ok(frame)
}

fn kind(command: &Command<'_>) -> Kind {
    match command {
        Command::Send { to: Recipient::Node(..) | Recipient::Connection(_), .. } => Kind::Direct,
        Command::Send { .. } => Kind::Message,
        Command::ChangeGroup { .. } => Kind::ChangeGroup,
        Command::Invoke { .. } => Kind::Invoke,
        Command::CancelInvoke { .. } => Kind::CancelInvoke,
        Command::Abort { .. } => Kind::Abort,
        Command::Ack { .. } => Kind::Ack,
        Command::Complete { .. } => Kind::Complete,
        Command::Beat(_) => Kind::Beat,
    }
}

fn write_body(out: &mut impl Sink, hub: &HubName, command: &Command<'_>) {
    match command {
        Command::Send { to, except, message } => {
            match to {
                Recipient::All => write_audience(out, hub, None, except),
                Recipient::Group(group) => write_audience(out, hub, Some(group.as_str()), except),
                Recipient::User(user) => write_audience(out, hub, Some(user.as_str()), except),
                Recipient::Node(_, connections) => write_connections(out, hub, connections, except),
                Recipient::Connection(connection) => {
                    write_connections(out, hub, std::slice::from_ref(*connection), except);
                }
            }
            out.message(message);
        }
        Command::ChangeGroup { ack, change } => {
            let MembershipChange { connection, group, membership, timeout } = change;
            out.text(hub.as_str());
            out.varint(ack.0.cast_unsigned());
            out.byte(match membership {
                Membership::Leave => layout::membership::LEAVE,
                Membership::Join => layout::membership::JOIN,
            });
            out.text(connection.as_str());
            out.text(group.as_str());
            out.varint(timeout.map_or(0, whole_millis));
        }
        Command::Invoke { connection, id, message, timeout } => {
            out.text(hub.as_str());
            out.text(connection.as_str());
            out.text(id.as_str());
            out.varint(whole_millis(*timeout));
            out.message(message);
        }
        Command::CancelInvoke { connection, id } => {
            out.text(hub.as_str());
            out.text(connection.as_str());
            out.text(id.as_str());
        }
        Command::Abort { ack, connection, reason: AbortReason { message, allow_reconnect } } => {
            out.text(hub.as_str());
            out.varint(ack.0.cast_unsigned());
            out.byte(
                flag(layout::abort::ALLOW_RECONNECT, *allow_reconnect)
                    | flag(layout::abort::REASON, message.is_some()),
            );
            out.text(connection.as_str());
            if let Some(message) = message {
                out.text(message);
            }
        }
        Command::Ack { to: _, ack, outcome } => {
            out.varint(ack.0.cast_unsigned());
            out.byte(match outcome {
                AckOutcome::Done => layout::outcome::DONE,
                AckOutcome::NotFound => layout::outcome::NOT_FOUND,
                AckOutcome::Failed => layout::outcome::FAILED,
            });
        }
        // The protocol of the client is for formats that must build an envelope in it.
        Command::Complete { to: _, id, protocol: _, completion } => {
            out.text(id.as_str());
            write_completion(out, completion);
        }
        Command::Beat(Beat { leaving, seq, topics }) => {
            out.byte(flag(layout::beat::LEAVING, *leaving));
            out.varint(*seq);
            out.length(topics.len());
            for (hash, seq) in topics {
                out.bytes(&hash.to_be_bytes());
                out.varint(*seq);
            }
        }
    }
}

/// The part of a message before the message: names that the topic has only as hashes, and exceptions.
fn write_audience(out: &mut impl Sink, hub: &HubName, name: Option<&str>, except: &[ConnectionId]) {
    let hub = Some(hub.as_str()).filter(|hub| topics::is_hashed(hub));
    let name = name.filter(|name| topics::is_hashed(name));
    out.byte(
        flag(layout::message::EXCEPT, !except.is_empty())
            | flag(layout::message::HUB, hub.is_some())
            | flag(layout::message::NAME, name.is_some()),
    );
    if let Some(hub) = hub {
        out.text(hub);
    }
    if let Some(name) = name {
        out.text(name);
    }
    if !except.is_empty() {
        out.length(except.len());
        for connection in except {
            out.text(connection.as_str());
        }
    }
}

/// The part of a direct message before the message. Who is excepted is not named at all.
fn write_connections(
    out: &mut impl Sink,
    hub: &HubName,
    connections: &[ConnectionId],
    except: &[ConnectionId],
) {
    let except: foldhash::HashSet<&ConnectionId> = except.iter().collect();
    let named = connections.iter().filter(|connection| !except.contains(connection));
    out.text(hub.as_str());
    out.length(named.clone().count());
    for connection in named {
        out.text(connection.as_str());
    }
}

/// Headers are not carried: nobody reads them on the asking side.
fn write_completion(out: &mut impl Sink, completion: &Completion) {
    match completion {
        Completion::Answered { result: ClientResult::Void, .. } => out.byte(layout::completion::VOID),
        Completion::Answered { result: ClientResult::Value { protocol, value }, .. } => {
            out.byte(layout::completion::VALUE);
            out.protocol(protocol);
            out.length(value.len());
            out.bytes(value);
        }
        Completion::Answered { result: ClientResult::Error(text), .. } => {
            out.byte(layout::completion::ERROR);
            out.text(text);
        }
        Completion::Disconnected => out.byte(layout::completion::DISCONNECTED),
        Completion::NotFound => out.byte(layout::completion::NOT_FOUND),
        Completion::Unreadable(text) => {
            out.byte(layout::completion::UNREADABLE);
            out.text(text);
        }
    }
}

fn flag(flag: u8, set: bool) -> u8 {
    if set { flag } else { 0 }
}

/// Rounded up, at least 1: 0 means that no timeout is told. What exceeds 64 bits (half a billion years) is cut.
fn whole_millis(timeout: Duration) -> u64 {
    let started = !timeout.subsec_nanos().is_multiple_of(1_000_000);
    u64::try_from(timeout.as_millis() + u128::from(started)).unwrap_or(u64::MAX).max(1)
}

/// Takes a body piece by piece.
trait Sink {
    fn byte(&mut self, byte: u8);

    fn bytes(&mut self, bytes: &[u8]);

    #[inline]
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.byte(number as u8 | 0x80);
            number >>= 7;
        }
        self.byte(number as u8);
    }

    #[inline]
    fn length(&mut self, length: usize) {
        self.varint(length as u64);
    }

    #[inline]
    fn text(&mut self, text: &str) {
        self.length(text.len());
        self.bytes(text.as_bytes());
    }

    #[inline]
    fn protocol(&mut self, protocol: &Protocol) {
        match protocol.as_str() {
            "json" => self.byte(layout::protocol::JSON),
            "messagepack" => self.byte(layout::protocol::MESSAGEPACK),
            name => {
                self.byte(layout::protocol::NAMED);
                self.text(name);
            }
        }
    }

    #[inline]
    fn message(&mut self, message: &EncodedMessage) {
        let encodings = message.encodings();
        self.byte(u8::try_from(encodings.len()).expect("checked before anything is written"));
        for (protocol, payload) in encodings {
            self.protocol(protocol);
            self.length(payload.len());
            self.bytes(payload);
        }
    }
}

/// Only counts.
struct Count(usize);

impl Sink for Count {
    fn byte(&mut self, _: u8) {
        self.0 += 1;
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

impl Sink for BytesMut {
    #[inline]
    fn byte(&mut self, byte: u8) {
        self.extend_from_slice(&[byte]);
    }

    #[inline]
    fn bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}
