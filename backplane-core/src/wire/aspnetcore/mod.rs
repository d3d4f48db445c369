//! The layout of ASP.NET Core SignalR's Redis backplane (spec/signalr.md section 2): a Rust node in a .NET fleet.
//!
//! | Channel | Payload |
//! |---|---|
//! | `H:all`, `H:group:{name}`, `H:user:{id}`, `H:connection:{id}` | [`Invocation`] |
//! | `H:internal:groups` | [`GroupCommand`] |
//! | `H:internal:ack:{server}` | [`Ack`] |
//! | `H:internal:return:{server}` | [`CompletionEnvelope`] around a hub message ([`read_completion`]) |
//!
//! `H` is the full name of the hub type. The application prefix stands in front of every channel on the bus, but not
//! in front of the names inside payloads.
//!
//! What the layout cannot say is [`Unsupported`](ErrorKind::Unsupported): a beat, the abort of a remote connection, a
//! withdrawn question, a refusal (`Ack` says only "done"), exceptions to a user or a connection.

use std::fmt::Display;
use std::sync::atomic::{AtomicI32, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::{Bytes, BytesMut};

use super::{AckOutcome, Command, Decoded, Draft, Home, Inbound, Recipient, ReplyTo, Route, WireFormat};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{AckId, ConnectionId, GroupName, HubName, InvocationId, NodeId, UserId, random_bytes};
use crate::message::{EncodedMessage, MembershipChange};
use crate::topic::{Topic, TopicSyntax};

mod completion;
mod envelope;
#[cfg(test)]
mod golden;
mod msgpack;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod rules;

pub use completion::{read_completion, write_completion};
pub use envelope::{Ack, CompletionEnvelope, GroupCommand, Invocation};

/// Speaks the layout for one node. Every hub of the node goes by the same server name, which peers take as opaque.
#[derive(Debug)]
pub struct AspNetCore {
    prefix: String,
    server: String,
    node: NodeId,
    last_ack: AtomicI32,
}

impl AspNetCore {
    /// `prefix` is put in front of every channel as it is; all servers of a fleet need the same. `server_name` must be
    /// unique in the fleet; `None`: `rust_` and 32 random hex digits.
    ///
    /// # Panics
    /// When the operating system has no randomness to give.
    #[must_use]
    pub fn new(prefix: &str, server_name: Option<String>) -> Self {
        let server =
            server_name.unwrap_or_else(|| format!("rust_{:032x}", u128::from_be_bytes(random_bytes())));
        Self { prefix: prefix.to_owned(), server, node: NodeId::random(), last_ack: AtomicI32::new(0) }
    }

    /// The name by which other servers answer this one.
    #[must_use]
    pub fn server_name(&self) -> &str {
        &self.server
    }

    /// The topic of a channel: `{prefix}{hub}:{kind}{name}`.
    fn topic(&self, hub: &HubName, kind: &str, name: impl Display) -> Topic {
        Topic::from(format!("{}{hub}:{kind}{name}", self.prefix))
    }

    fn connection_channel(&self, hub: &HubName, connection: &ConnectionId) -> Topic {
        self.topic(hub, "connection:", connection)
    }

    fn ack_topic(&self, hub: &HubName, server: &str) -> Topic {
        self.topic(hub, "internal:ack:", server)
    }

    fn groups_topic(&self, hub: &HubName) -> Topic {
        self.topic(hub, "internal:groups", "")
    }

    /// Without the prefix, as it stands inside payloads.
    fn return_channel(&self, hub: &HubName) -> String {
        format!("{hub}:internal:return:{}", self.server)
    }

    /// The topic of a channel that a payload names.
    fn named_topic(&self, channel: &str) -> Topic {
        Topic::from(format!("{}{channel}", self.prefix))
    }

    fn encode_send(
        &self,
        hub: &HubName,
        to: Recipient<'_>,
        except: &[ConnectionId],
        message: &EncodedMessage,
    ) -> Result<(Topic, BytesMut)> {
        let (topic, excluded) = match to {
            Recipient::All => (self.topic(hub, "all", ""), except),
            Recipient::Group(group) => (self.group_topic(hub, group), except),
            Recipient::User(user) if except.is_empty() => (self.user_topic(hub, user), except),
            Recipient::User(_) => {
                return Err(unsupported(
                    "exceptions in a send to a user: receivers of this layout ignore them there; address the \
                     connections instead",
                ));
            }
            Recipient::Connection(connection) if except.contains(connection) => {
                return Err(unsupported(
                    "a send to a connection that is excepted: receivers of this layout ignore exceptions there",
                ));
            }
            // Exceptions that name others change nothing.
            Recipient::Connection(connection) => (self.connection_channel(hub, connection), &[][..]),
            Recipient::Node(..) => {
                return Err(unsupported("a send to a node: this layout has channels of connections only"));
            }
        };
        Ok((topic, envelope::encode_invocation(excluded, message, None)))
    }

    /// An invocation on the channel of one connection: a question, if it says where the answer goes.
    fn decode_direct(&self, hub: &HubName, connection: &ConnectionId, frame: &Bytes) -> Result<Inbound> {
        let Invocation { message, invocation_id, return_channel, .. } = Invocation::decode(frame)?;
        // A question without an id, or without a channel to answer on, reaches the client all the same; its answer
        // has nowhere to go.
        let id = invocation_id.filter(|id| !id.as_str().is_empty());
        let channel = return_channel.filter(|channel| !channel.is_empty());
        Ok(match (id, channel) {
            (Some(id), Some(channel)) => Inbound::Invoke {
                hub: hub.clone(),
                connection: connection.clone(),
                id,
                reply: ReplyTo(self.named_topic(&channel)),
                message,
                timeout: None,
            },
            _ => Inbound::Message { except: Vec::new(), message },
        })
    }

    fn decode_group_command(&self, hub: &HubName, frame: &Bytes) -> Result<Inbound> {
        let command = GroupCommand::decode(frame)?;
        let (hub, ack) = (hub.clone(), AckId(command.id.into()));
        let reply = ReplyTo(self.ack_topic(&hub, &command.server));
        let Some(membership) = command.membership() else {
            return Ok(Inbound::NoChange { hub, ack, reply, connection: command.connection });
        };
        Ok(Inbound::ChangeGroup {
            hub,
            ack,
            reply,
            change: MembershipChange {
                connection: command.connection,
                group: command.group,
                membership,
                timeout: None,
            },
        })
    }
}

impl WireFormat for AspNetCore {
    fn name(&self) -> &'static str {
        "aspnetcore"
    }

    fn node(&self) -> NodeId {
        self.node
    }

    fn topic_syntax(&self) -> TopicSyntax {
        TopicSyntax::Any
    }

    fn provenance(&self) -> bool {
        false
    }

    /// 16 random bytes as 22 base64url characters.
    fn new_connection_id(&self) -> ConnectionId {
        URL_SAFE_NO_PAD.encode(random_bytes::<16>()).into()
    }

    /// 16 random bytes as 22 base64 characters, as .NET servers do.
    fn new_invocation_id(&self) -> InvocationId {
        STANDARD_NO_PAD.encode(random_bytes::<16>()).into()
    }

    /// Counts from 1 and, after the largest 32-bit number, on from the smallest.
    fn new_ack_id(&self) -> AckId {
        AckId(self.last_ack.fetch_add(1, Ordering::Relaxed).wrapping_add(1).into())
    }

    fn home(&self, _: &HubName, _: &ConnectionId) -> Home {
        Home::Unknown
    }

    fn node_topics(&self) -> Vec<(Topic, Route)> {
        Vec::new()
    }

    fn hub_topics(&self, hub: &HubName) -> Vec<(Topic, Route)> {
        vec![
            (self.topic(hub, "all", ""), Route::All(hub.clone())),
            (self.groups_topic(hub), Route::GroupCommands(hub.clone())),
            (self.ack_topic(hub, &self.server), Route::Acks(hub.clone())),
            (self.named_topic(&self.return_channel(hub)), Route::Results(hub.clone())),
        ]
    }

    fn connection_topic(&self, hub: &HubName, connection: &ConnectionId) -> Option<Topic> {
        Some(self.connection_channel(hub, connection))
    }

    fn group_topic(&self, hub: &HubName, group: &GroupName) -> Topic {
        self.topic(hub, "group:", group)
    }

    fn user_topic(&self, hub: &HubName, user: &UserId) -> Topic {
        self.topic(hub, "user:", user)
    }

    fn encode(&self, hub: &HubName, command: Command<'_>) -> Result<Draft> {
        let (topic, frame) = match command {
            Command::Send { to, except, message } => self.encode_send(hub, to, except, message)?,
            Command::ChangeGroup { ack, change } => {
                let command = GroupCommand {
                    id: int32(ack)?,
                    server: self.server.clone(),
                    action: GroupCommand::action_of(change.membership),
                    group: change.group.clone(),
                    connection: change.connection.clone(),
                };
                (self.groups_topic(hub), command.encode())
            }
            Command::Invoke { connection, id, message, timeout: _ } => {
                let question = Some((Some(id), &*self.return_channel(hub)));
                let frame = envelope::encode_invocation(&[], message, question);
                (self.connection_channel(hub, connection), frame)
            }
            Command::Ack { to, ack, outcome: AckOutcome::Done } => {
                (to.0.clone(), Ack { id: int32(ack)? }.encode())
            }
            Command::Complete { to, id, protocol, completion } => {
                let (protocol, blob) = write_completion(protocol, id, completion);
                (to.0.clone(), CompletionEnvelope { protocol, blob }.encode())
            }
            Command::Ack { outcome: AckOutcome::NotFound | AckOutcome::Failed, .. } => {
                return Err(unsupported(
                    "a negative acknowledgement: servers of this layout stay silent instead, and the asker's \
                     deadline ends its wait",
                ));
            }
            Command::CancelInvoke { .. } => {
                return Err(unsupported("withdrawing a question: this layout has no such command"));
            }
            Command::Abort { .. } => {
                return Err(unsupported(
                    "the abort of a connection of another server: this layout has no such command",
                ));
            }
            Command::Beat(_) => return Err(unsupported("a beat: this layout has none")),
        };
        Ok(Draft { topic, frame })
    }

    fn stamp(&self, _: &mut [u8], _: u64, _: u64) {}

    fn decode(&self, route: &Route, frame: Bytes) -> Result<Decoded> {
        let body = match route {
            Route::All(_) | Route::Group(..) => {
                let Invocation { excluded, message, .. } = Invocation::decode(&frame)?;
                Inbound::Message { except: excluded, message }
            }
            // Servers of this layout ignore the excluded ids here.
            Route::User(..) => {
                Inbound::Message { except: Vec::new(), message: Invocation::decode(&frame)?.message }
            }
            Route::Connection(hub, connection) => self.decode_direct(hub, connection, &frame)?,
            Route::GroupCommands(hub) => self.decode_group_command(hub, &frame)?,
            Route::Acks(_) => {
                Inbound::Ack { ack: AckId(Ack::decode(&frame)?.id.into()), outcome: AckOutcome::Done }
            }
            Route::Results(_) => {
                let CompletionEnvelope { protocol, blob } = CompletionEnvelope::decode(&frame)?;
                match read_completion(&protocol, &blob)? {
                    Some((id, completion)) => Inbound::Complete { id, completion },
                    None => Inbound::Unwanted,
                }
            }
            // Topics that this layout does not have.
            Route::Common | Route::Node => Inbound::Unwanted,
        };
        Ok(Decoded { provenance: None, body })
    }
}

fn unsupported(context: &'static str) -> Error {
    Error::new(ErrorKind::Unsupported, "encode").with_context(context)
}

fn int32(ack: AckId) -> Result<i32> {
    i32::try_from(ack.0)
        .map_err(|_| unsupported("an acknowledgement id beyond 32 bits: this layout's are 32-bit integers"))
}
