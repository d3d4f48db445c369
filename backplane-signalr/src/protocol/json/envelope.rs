//! Reads the envelope of a record: its members in any order, repeated ones the last wins, unknown ones and text behind
//! the object ignored. Values stay slices of the record.

use bytes::Bytes;

use super::scan::{Broken, Scanner, integer, is_number, text};
use crate::protocol::{ClientMessage, ClientOutcome, Invocation, ProtocolError};

/// Reads a record.
pub(super) fn decode(record: &Bytes) -> Result<ClientMessage, ProtocolError> {
    let mut members = Members::read(record)?;
    let kind = members.kind.ok_or_else(|| missing("type"))?;
    Ok(match kind {
        1 => ClientMessage::Invocation(members.invocation()?),
        2 => ClientMessage::StreamItem {
            id: members.id()?,
            item: members.item.ok_or_else(|| missing("item"))?,
        },
        3 => ClientMessage::Completion {
            id: members.id()?,
            outcome: match (members.error, members.result) {
                (Some(_), Some(_)) => {
                    return Err(malformed("The 'error' and 'result' properties are mutually exclusive."));
                }
                (Some(error), None) => ClientOutcome::Error(error),
                (None, Some(result)) => ClientOutcome::Value(result),
                (None, None) => ClientOutcome::Void,
            },
            headers: members.headers,
        },
        4 => {
            // A stream without an id has no one to answer.
            let id = members.id()?;
            ClientMessage::StreamInvocation(Invocation { id: Some(id), ..members.invocation()? })
        }
        5 => ClientMessage::CancelInvocation { id: members.id()? },
        6 => ClientMessage::Ping,
        7 => ClientMessage::Close { error: members.error },
        8 => ClientMessage::Ack(members.sequence()?),
        9 => ClientMessage::Sequence(members.sequence()?),
        unknown => ClientMessage::Unknown(unknown.into()),
    })
}

/// What the envelope of any message may hold.
#[derive(Default)]
struct Members {
    kind: Option<i32>,
    id: Option<String>,
    target: Option<String>,
    arguments: Option<Vec<Bytes>>,
    streams: Vec<String>,
    item: Option<Bytes>,
    result: Option<Bytes>,
    error: Option<String>,
    headers: Bytes,
    sequence: Option<i64>,
}

impl Members {
    fn read(record: &Bytes) -> Result<Self, ProtocolError> {
        let mut scanner = Scanner::new(record);
        if !scanner.enter_object()? {
            let kind = scanner.kind()?;
            return Err(malformed(&format!("Unexpected JSON Token Type '{kind}'. Expected a JSON Object.")));
        }
        let mut members = Self::default();
        while let Some(name) = scanner.next_member()? {
            match &*name {
                b"type" => {
                    members.kind = Some(integer(number(&mut scanner, "type")?).ok_or_else(|| odd("type"))?);
                }
                b"invocationId" => members.id = Some(string(&mut scanner, "invocationId")?),
                b"target" => members.target = Some(string(&mut scanner, "target")?),
                b"arguments" => {
                    let mut arguments = Vec::new();
                    if !scanner.enter_array()? {
                        return Err(expected("arguments", "Array"));
                    }
                    while scanner.next_element()? {
                        arguments.push(record.slice_ref(scanner.value()?));
                    }
                    members.arguments = Some(arguments);
                }
                b"streamIds" => {
                    members.streams.clear();
                    if !scanner.enter_array()? {
                        return Err(expected("streamIds", "Array"));
                    }
                    while scanner.next_element()? {
                        members.streams.push(string(&mut scanner, "streamIds")?);
                    }
                }
                b"item" => members.item = Some(record.slice_ref(scanner.value()?)),
                b"result" => members.result = Some(record.slice_ref(scanner.value()?)),
                b"error" => members.error = Some(string(&mut scanner, "error")?),
                b"headers" => members.headers = record.slice_ref(headers(&mut scanner)?),
                b"sequenceId" => {
                    let number = number(&mut scanner, "sequenceId")?;
                    members.sequence = Some(integer(number).ok_or_else(|| odd("sequenceId"))?);
                }
                b"allowReconnect" => {
                    if !matches!(scanner.value()?, b"true" | b"false") {
                        return Err(malformed("Expected 'allowReconnect' to be true or false."));
                    }
                }
                _ => {
                    scanner.value()?;
                }
            }
        }
        Ok(members)
    }

    /// An id that must be there, and not empty.
    fn id(&mut self) -> Result<String, ProtocolError> {
        self.id.take().filter(|id| !id.is_empty()).ok_or_else(|| missing("invocationId"))
    }

    fn invocation(self) -> Result<Invocation, ProtocolError> {
        Ok(Invocation {
            id: self.id.filter(|id| !id.is_empty()),
            target: self.target.ok_or_else(|| missing("target"))?,
            arguments: self.arguments.ok_or_else(|| missing("arguments"))?,
            streams: self.streams,
        })
    }

    fn sequence(&self) -> Result<i64, ProtocolError> {
        self.sequence.ok_or_else(|| missing("sequenceId"))
    }
}

fn string(scanner: &mut Scanner<'_>, name: &str) -> Result<String, ProtocolError> {
    let value = scanner.value()?;
    if value.first() != Some(&b'"') {
        return Err(expected(name, "String"));
    }
    Ok(text(value)?.into_owned())
}

fn number<'a>(scanner: &mut Scanner<'a>, name: &str) -> Result<&'a [u8], ProtocolError> {
    let value = scanner.value()?;
    if is_number(value) { Ok(value) } else { Err(expected(name, "Number")) }
}

/// The whole map, which must be one of text to text.
fn headers<'a>(scanner: &mut Scanner<'a>) -> Result<&'a [u8], ProtocolError> {
    let map = scanner.value()?;
    let mut inside = Scanner::new(map);
    if !inside.enter_object()? {
        return Err(expected("headers", "Object"));
    }
    while let Some(name) = inside.next_member()? {
        let value = inside.value()?;
        if value.first() != Some(&b'"') {
            return Err(expected(&format!("headers.{}", String::from_utf8_lossy(&name)), "String"));
        }
        text(value)?;
    }
    Ok(map)
}

fn malformed(reason: &str) -> ProtocolError {
    ProtocolError::malformed(reason)
}

fn missing(name: &str) -> ProtocolError {
    ProtocolError::malformed(format!("Missing required property '{name}'."))
}

fn expected(name: &str, kind: &str) -> ProtocolError {
    ProtocolError::malformed(format!("Expected '{name}' to be of type {kind}."))
}

/// A number that is no integer, or too large.
fn odd(name: &str) -> ProtocolError {
    ProtocolError::malformed(format!("'{name}' is no integer in its range."))
}

impl From<Broken> for ProtocolError {
    fn from(broken: Broken) -> Self {
        Self::Malformed(broken.to_string())
    }
}
