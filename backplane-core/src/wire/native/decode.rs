//! From frames to what they say. The bytes are a stranger's: every length is checked against what is there before
//! anything is allocated for it, and payloads are slices of the frame.

use std::time::Duration;

use bytes::{Buf as _, Bytes};

use super::layout::{self, HEADER_LEN, Kind};
use super::topics::{self, Topics};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{AckId, ConnectionId, HubName, InvocationId, Protocol};
use crate::message::{AbortReason, ClientResult, EncodedMessage, Membership, MembershipChange};
use crate::wire::{AckOutcome, Beat, Completion, Decoded, Inbound, Provenance, ReplyTo, Route};

/// What is wrong with the bytes. Small, unlike [`Error`], which it becomes only at the end.
struct Broken(&'static str);

impl From<Broken> for Error {
    #[cold]
    fn from(Broken(what): Broken) -> Self {
        Self::new(ErrorKind::Malformed, "decode").with_context(what)
    }
}

type Parsed<T> = Result<T, Broken>;

/// A frame that arrived on a topic with this route.
pub(super) fn frame(topics: &Topics, route: &Route, frame: Bytes) -> Result<Decoded> {
    let version = frame.first().ok_or(Broken("the frame is empty"))?;
    if *version != layout::VERSION {
        return Err(Broken("the frame's version is not 1, the only one known here").into());
    }
    let header = frame.first_chunk::<HEADER_LEN>().ok_or(Broken("the frame ends within its header"))?;
    let (origin, seq, prev) = layout::origin_seq_prev(header);
    let provenance = Provenance { origin, seq, prev };
    let kind = Kind::from_byte(header[1]).filter(|kind| belongs(*kind, route));
    let reply = || ReplyTo(topics.node(origin));
    let mut body = Reader { frame, at: HEADER_LEN };
    let body = match kind {
        Some(Kind::Message) => body.audience_message(route)?,
        Some(Kind::Direct) => Inbound::Direct {
            hub: body.text()?.into(),
            connections: body.connections()?,
            message: body.message()?,
        },
        Some(Kind::ChangeGroup) => {
            let hub = body.text()?.into();
            let ack = body.ack()?;
            let membership = match body.byte()? {
                layout::membership::LEAVE => Membership::Leave,
                layout::membership::JOIN => Membership::Join,
                _ => return Err(Broken("a membership neither begins nor ends").into()),
            };
            let change = MembershipChange {
                connection: body.text()?.into(),
                group: body.text()?.into(),
                membership,
                timeout: body.timeout()?,
            };
            Inbound::ChangeGroup { hub, ack, reply: reply(), change }
        }
        Some(Kind::Ack) => Inbound::Ack { ack: body.ack()?, outcome: body.outcome()? },
        Some(Kind::Invoke) => {
            let hub = body.text()?.into();
            let connection = body.text()?.into();
            let id = body.text()?.into();
            let timeout = body.timeout()?;
            Inbound::Invoke { hub, connection, id, reply: reply(), message: body.message()?, timeout }
        }
        Some(Kind::CancelInvoke) => Inbound::CancelInvoke {
            hub: body.text()?.into(),
            connection: body.text()?.into(),
            id: body.text()?.into(),
        },
        Some(Kind::Complete) => {
            Inbound::Complete { id: InvocationId::from(body.text()?), completion: body.completion()? }
        }
        Some(Kind::Abort) => {
            let hub = body.text()?.into();
            let ack = body.ack()?;
            let flags = body.byte()?;
            let connection = body.text()?.into();
            let has_message = flags & layout::abort::REASON != 0;
            let message = if has_message { Some(body.text()?.to_owned()) } else { None };
            let allow_reconnect = flags & layout::abort::ALLOW_RECONNECT != 0;
            let reason = AbortReason { message, allow_reconnect };
            Inbound::Abort { hub, ack, reply: reply(), connection, reason }
        }
        Some(Kind::Beat) => Inbound::Beat(body.beat()?),
        None => Inbound::Unwanted,
    };
    Ok(Decoded { provenance: Some(provenance), body })
}

/// Whether frames of this kind travel on topics of this route. An acknowledgement that every node reads, say, would
/// be taken for that of another node's command.
fn belongs(kind: Kind, route: &Route) -> bool {
    match route {
        Route::Common => kind == Kind::Beat,
        Route::Node => !matches!(kind, Kind::Message | Kind::Beat),
        Route::All(_) | Route::Group(..) | Route::User(..) => kind == Kind::Message,
        Route::Connection(..) | Route::GroupCommands(_) | Route::Acks(_) | Route::Results(_) => false,
    }
}

/// Reads a body from front to back.
struct Reader {
    frame: Bytes,
    at: usize,
}

impl Reader {
    fn remaining(&self) -> usize {
        self.frame.len() - self.at
    }

    #[inline]
    fn byte(&mut self) -> Parsed<u8> {
        let byte = *self.frame.get(self.at).ok_or(Broken("the frame ends within its body"))?;
        self.at += 1;
        Ok(byte)
    }

    #[inline]
    fn varint(&mut self) -> Parsed<u64> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7F);
            if (bits << shift) >> shift != bits {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Broken("a number exceeds 64 bits"))
    }

    /// How many items of at least `least` bytes follow; there is room for them in the frame.
    #[inline]
    fn count(&mut self, least: usize) -> Parsed<usize> {
        match usize::try_from(self.varint()?) {
            Ok(count) if count <= self.remaining() / least => Ok(count),
            _ => Err(Broken("a length exceeds the frame")),
        }
    }

    fn text(&mut self) -> Parsed<&str> {
        let length = self.count(1)?;
        let start = self.at;
        self.at += length;
        str::from_utf8(&self.frame[start..self.at]).map_err(|_| Broken("a text is not UTF-8"))
    }

    /// A slice of the frame; the last one is the frame itself, which saves sharing it.
    #[inline]
    fn payload(&mut self) -> Parsed<Bytes> {
        let length = self.count(1)?;
        let start = self.at;
        if length < self.remaining() {
            self.at += length;
            return Ok(self.frame.slice(start..self.at));
        }
        let mut payload = std::mem::take(&mut self.frame);
        self.at = 0;
        payload.advance(start);
        Ok(payload)
    }

    #[inline]
    fn protocol(&mut self) -> Parsed<Protocol> {
        match self.byte()? {
            layout::protocol::JSON => Ok(Protocol::JSON),
            layout::protocol::MESSAGEPACK => Ok(Protocol::MESSAGEPACK),
            layout::protocol::NAMED => self.text().map(Protocol::named),
            _ => Err(Broken("a protocol has no name")),
        }
    }

    #[inline]
    fn message(&mut self) -> Parsed<EncodedMessage> {
        let mut message = EncodedMessage::default();
        for _ in 0..self.byte()? {
            let protocol = self.protocol()?;
            message.push(protocol, self.payload()?);
        }
        Ok(message)
    }

    fn connections(&mut self) -> Parsed<Vec<ConnectionId>> {
        /// Ids of ours take 23 bytes. Shorter ones only come from strangers, and reserve no more than a few times
        /// what they sent.
        const USUAL_LEN: usize = 16;
        let count = self.count(1)?;
        let mut connections = Vec::with_capacity(count.min(self.remaining() / USUAL_LEN));
        for _ in 0..count {
            connections.push(self.text()?.into());
        }
        Ok(connections)
    }

    fn ack(&mut self) -> Parsed<AckId> {
        self.varint().map(|ack| AckId(ack.cast_signed()))
    }

    fn timeout(&mut self) -> Parsed<Option<Duration>> {
        self.varint().map(|millis| (millis > 0).then(|| Duration::from_millis(millis)))
    }

    fn outcome(&mut self) -> Parsed<AckOutcome> {
        match self.byte()? {
            layout::outcome::DONE => Ok(AckOutcome::Done),
            layout::outcome::NOT_FOUND => Ok(AckOutcome::NotFound),
            layout::outcome::FAILED => Ok(AckOutcome::Failed),
            _ => Err(Broken("an acknowledgement has no known outcome")),
        }
    }

    fn completion(&mut self) -> Parsed<Completion> {
        Ok(match self.byte()? {
            layout::completion::VOID => Completion::answered(ClientResult::Void),
            layout::completion::VALUE => {
                let protocol = self.protocol()?;
                Completion::answered(ClientResult::Value { protocol, value: self.payload()? })
            }
            layout::completion::ERROR => Completion::answered(ClientResult::error(self.text()?)),
            layout::completion::DISCONNECTED => Completion::Disconnected,
            layout::completion::NOT_FOUND => Completion::NotFound,
            layout::completion::UNREADABLE => Completion::Unreadable(self.text()?.to_owned()),
            _ => return Err(Broken("a completion has no known ending")),
        })
    }

    fn beat(&mut self) -> Parsed<Beat> {
        /// A hash, and a number of one byte or more.
        const LEAST_LEN: usize = 9;
        let leaving = self.byte()? & layout::beat::LEAVING != 0;
        let seq = self.varint()?;
        let count = self.count(LEAST_LEN)?;
        let mut topics = Vec::with_capacity(count);
        for _ in 0..count {
            let hash = self.frame[self.at..].first_chunk().ok_or(Broken("the frame ends within its body"))?;
            let hash = u64::from_be_bytes(*hash);
            self.at += size_of::<u64>();
            topics.push((hash, self.varint()?));
        }
        Ok(Beat { leaving, seq, topics })
    }

    /// A message for the audience of a hub, group or user, if it is for this one and not for another of the same hash.
    #[inline]
    fn audience_message(&mut self, route: &Route) -> Parsed<Inbound> {
        let (hub, name): (&HubName, Option<&str>) = match route {
            Route::All(hub) => (hub, None),
            Route::Group(hub, group) => (hub, Some(group.as_str())),
            Route::User(hub, user) => (hub, Some(user.as_str())),
            _ => return Ok(Inbound::Unwanted),
        };
        let flags = self.byte()?;
        let same_hub = self.same_name(flags & layout::message::HUB != 0, Some(hub.as_str()))?;
        let same_name = self.same_name(flags & layout::message::NAME != 0, name)?;
        if !(same_hub && same_name) {
            return Ok(Inbound::Unwanted);
        }
        let has_except = flags & layout::message::EXCEPT != 0;
        let except = if has_except { self.connections()? } else { Vec::new() };
        Ok(Inbound::Message { except, message: self.message()? })
    }

    /// Reads a name, if the frame tells it, and compares it with ours. Only a topic that spells the name out proves
    /// that it is the same without being told.
    #[inline]
    fn same_name(&mut self, told: bool, ours: Option<&str>) -> Parsed<bool> {
        if told {
            let name = self.text()?;
            return Ok(ours == Some(name));
        }
        match ours {
            Some(ours) if topics::is_hashed(ours) => {
                Err(Broken("a topic holds only a hash and the frame no name"))
            }
            _ => Ok(true),
        }
    }
}
