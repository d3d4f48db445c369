//! The four payloads that servers exchange: invocation, group command, acknowledgement, completion. A payload has no
//! type tag; the channel tells. Readers ignore trailing items and trailing bytes.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};

use super::msgpack::{Reader, Writer, malformed};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{ConnectionId, GroupName, InvocationId, Protocol};
use crate::message::{EncodedMessage, Membership};

/// Most encodings kept from one invocation. Servers send one for each hub protocol, of which there are two; the bound
/// keeps a hostile map from costing more than its bytes.
const MAX_ENCODINGS: usize = 32;

/// Most room reserved for a list before its items were seen.
const MAX_RESERVED: usize = 1_024;

/// A message for clients: `[excludedIds, blobs]`, or as a question `[excludedIds, blobs, invocationId, returnChannel]`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Invocation {
    /// Who does not get it. Receivers look at it only on the channels of all and of groups. A nil among them, which
    /// names nobody, is left out.
    pub excluded: Vec<ConnectionId>,
    /// One blob for each hub protocol, in the order of the map; of a name that stands twice the first. At most 32 are
    /// kept.
    pub message: EncodedMessage,
    /// The id that the answer must carry. Written, as nil if absent, where there is a return channel.
    pub invocation_id: Option<InvocationId>,
    /// The channel of the asker, without the application prefix.
    pub return_channel: Option<String>,
}

impl Invocation {
    /// Decodes a payload; the blobs are slices of it.
    ///
    /// # Errors
    /// [`Malformed`](ErrorKind::Malformed): fewer than two items, or an item of another type. Items three and four are
    /// read only where there are both; of the wrong type they spoil the whole message.
    pub fn decode(payload: &Bytes) -> Result<Self> {
        let mut reader = Reader::new(payload);
        let items = at_least(reader.array_len()?, 2, "Invocation")?;
        let excluded = excluded(&mut reader)?;
        let message = blobs(&mut reader)?;
        let (mut invocation_id, mut return_channel) = (None, None);
        if items > 3 {
            invocation_id = reader.text()?.map(|id| InvocationId::from(&*id));
            return_channel = reader.text()?.map(Cow::into_owned);
        }
        Ok(Self { excluded, message, invocation_id, return_channel })
    }

    /// Encodes it: four items with a return channel, two without.
    #[must_use]
    pub fn encode(&self) -> BytesMut {
        let question = self.return_channel.as_deref().map(|channel| (self.invocation_id.as_ref(), channel));
        encode_invocation(&self.excluded, &self.message, question)
    }
}

/// The encoder of [`Invocation`] for parts that are only borrowed.
pub(super) fn encode_invocation(
    excluded: &[ConnectionId],
    message: &EncodedMessage,
    question: Option<(Option<&InvocationId>, &str)>,
) -> BytesMut {
    // At most five bytes for each header, and names of protocols are short.
    let room = message.len() + excluded.iter().map(|id| id.as_str().len() + 5).sum::<usize>() + 160;
    let mut writer = Writer::with_capacity(room);
    writer.array(if question.is_some() { 4 } else { 2 });
    writer.array(excluded.len());
    for id in excluded {
        writer.text(id.as_str());
    }
    writer.map(message.encodings().len());
    for (protocol, blob) in message.encodings() {
        writer.text(protocol.as_str());
        writer.blob(blob);
    }
    if let Some((id, return_channel)) = question {
        match id {
            Some(id) => writer.text(id.as_str()),
            None => writer.nil(),
        }
        writer.text(return_channel);
    }
    writer.finish()
}

fn excluded(reader: &mut Reader<'_>) -> Result<Vec<ConnectionId>> {
    let count = reader.array_len()? as usize;
    let mut excluded = Vec::with_capacity(count.min(reader.remaining()).min(MAX_RESERVED));
    for _ in 0..count {
        if let Some(id) = reader.text()? {
            excluded.push(ConnectionId::from(&*id));
        }
    }
    Ok(excluded)
}

fn blobs(reader: &mut Reader<'_>) -> Result<EncodedMessage> {
    let mut message = EncodedMessage::default();
    for _ in 0..reader.map_len()? {
        let name = reader.text()?.ok_or_else(|| malformed("nil instead of the name of a hub protocol"))?;
        let blob = reader.blob()?;
        if message.encodings().len() < MAX_ENCODINGS {
            let protocol = Protocol::named(&name);
            if message.get(&protocol).is_none() {
                message.push(protocol, blob);
            }
        }
    }
    Ok(message)
}

/// A change of a membership, to all servers of a hub: `[id, serverName, action, groupName, connectionId]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupCommand {
    /// Correlates the acknowledgement at the server that sent it.
    pub id: i32,
    /// That server; nil is read as the empty name.
    pub server: String,
    /// 1 joins, 2 leaves; other values do nothing, and are acknowledged all the same.
    pub action: u8,
    /// The group; nil is read as the empty name.
    pub group: GroupName,
    /// The connection.
    pub connection: ConnectionId,
}

impl GroupCommand {
    /// What the action asks for, if anything.
    #[must_use]
    pub fn membership(&self) -> Option<Membership> {
        match self.action {
            1 => Some(Membership::Join),
            2 => Some(Membership::Leave),
            _ => None,
        }
    }

    /// The action of a membership.
    #[must_use]
    pub fn action_of(membership: Membership) -> u8 {
        match membership {
            Membership::Join => 1,
            Membership::Leave => 2,
        }
    }

    /// Decodes a payload.
    ///
    /// # Errors
    /// [`Malformed`](ErrorKind::Malformed): fewer than five items, an item of another type, an id beyond 32 bits, an
    /// action beyond a byte, no connection.
    pub fn decode(payload: &Bytes) -> Result<Self> {
        let mut reader = Reader::new(payload);
        at_least(reader.array_len()?, 5, "GroupCommand")?;
        Ok(Self {
            id: reader.int32()?,
            server: reader.text()?.unwrap_or_default().into_owned(),
            action: reader.uint8()?,
            group: GroupName::from(&*reader.text()?.unwrap_or_default()),
            connection: reader
                .text()?
                .map(|id| ConnectionId::from(&*id))
                .ok_or_else(|| malformed("nil instead of a connection"))?,
        })
    }

    /// Encodes it.
    #[must_use]
    pub fn encode(&self) -> BytesMut {
        let mut writer = Writer::with_capacity(
            self.server.len() + self.group.as_str().len() + self.connection.as_str().len() + 24,
        );
        writer.array(5);
        writer.int(self.id.into());
        writer.text(&self.server);
        writer.int(self.action.into());
        writer.text(self.group.as_str());
        writer.text(self.connection.as_str());
        writer.finish()
    }
}

/// An owner did what a [`GroupCommand`] asked for: `[id]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The id of the command.
    pub id: i32,
}

impl Ack {
    /// Decodes a payload.
    ///
    /// # Errors
    /// [`Malformed`](ErrorKind::Malformed): no item, or no 32-bit integer.
    pub fn decode(payload: &Bytes) -> Result<Self> {
        let mut reader = Reader::new(payload);
        at_least(reader.array_len()?, 1, "Ack")?;
        Ok(Self { id: reader.int32()? })
    }

    /// Encodes it.
    #[must_use]
    pub fn encode(self) -> BytesMut {
        let mut writer = Writer::with_capacity(6);
        writer.array(1);
        writer.int(self.id.into());
        writer.finish()
    }
}

/// A client's answer on its way to the asker: `[protocolName, framed completion message]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompletionEnvelope {
    /// The hub protocol of the message: that of the client which answered.
    pub protocol: Protocol,
    /// The message as it goes on a client's wire. See [`read_completion`](super::read_completion).
    pub blob: Bytes,
}

impl CompletionEnvelope {
    /// Decodes a payload; the blob is a slice of it.
    ///
    /// # Errors
    /// [`Malformed`](ErrorKind::Malformed): fewer than two items, or an item of another type.
    pub fn decode(payload: &Bytes) -> Result<Self> {
        let mut reader = Reader::new(payload);
        at_least(reader.array_len()?, 2, "Completion")?;
        let protocol =
            reader.text()?.ok_or_else(|| malformed("nil instead of the name of a hub protocol"))?;
        Ok(Self { protocol: Protocol::named(&protocol), blob: reader.blob()? })
    }

    /// Encodes it.
    #[must_use]
    pub fn encode(&self) -> BytesMut {
        let mut writer = Writer::with_capacity(self.protocol.as_str().len() + self.blob.len() + 11);
        writer.array(2);
        writer.text(self.protocol.as_str());
        writer.blob(&self.blob);
        writer.finish()
    }
}

/// Checks the number of items; the text is the one that a .NET server logs.
fn at_least(items: u32, minimum: u32, payload: &str) -> Result<u32> {
    if items < minimum {
        return Err(Error::new(ErrorKind::Malformed, "decode")
            .with_context(format!("Insufficient items in {payload} array.")));
    }
    Ok(items)
}
