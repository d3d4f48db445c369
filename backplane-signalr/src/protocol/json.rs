//! The JSON hub protocol (version 1 and 2): records of JSON text, each ended by the byte 0x1E.

mod envelope;
mod escape;
mod key;
mod number;
mod scan;
mod serializer;

#[cfg(test)]
mod recorded;
#[cfg(test)]
mod tests;

use backplane_core::Protocol;
use bytes::{Buf, Bytes, BytesMut};
use serde::ser::Error as _;

use super::{
    ClientMessage, EncodeError, HubProtocol, ProtocolError, ServerMessage, ServerOutcome, TransferFormat,
};
use crate::clients::Arguments;
use serializer::Serializer;

pub(in crate::protocol) use escape::write_string;
pub(in crate::protocol) use scan::{Broken, Scanner, integer, is_number, text};

/// Ends each record. It cannot stand in JSON text: a control character in a string is escaped.
const SEPARATOR: u8 = 0x1E;

/// The JSON hub protocol.
///
/// Values are read and written as `serde_json` does it, so serde's attributes decide how a type looks; member names of
/// structures are as declared (`#[serde(rename_all = "camelCase")]` makes them what .NET and JavaScript expect), and
/// case-sensitive. What is written differs from `serde_json` where .NET does: non-ASCII characters that are invisible,
/// private or unassigned are escaped, as are those beyond the basic plane; `3.0` is written `3`, and large or small
/// floats like `1E+300`; a value that is not a number, or infinite, is an error; a
/// [`RawValue`](serde_json::value::RawValue) is written anew, without white space and with the same escapes, its numbers
/// as they are. Bytes are arrays of numbers, where .NET has base64: give such a member a text of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Json;

impl HubProtocol for Json {
    fn protocol(&self) -> Protocol {
        Protocol::JSON
    }

    fn transfer_format(&self) -> TransferFormat {
        TransferFormat::Text
    }

    fn next_record(
        &self,
        input: &mut BytesMut,
        searched: &mut usize,
        max: usize,
    ) -> Result<Option<Bytes>, ProtocolError> {
        next_record(input, searched, max)
    }

    fn decode(&self, record: &Bytes) -> Result<ClientMessage, ProtocolError> {
        envelope::decode(record)
    }

    fn encode(&self, message: &ServerMessage<'_>, output: &mut BytesMut) -> Result<(), EncodeError> {
        let before = output.len();
        encode(message, output).map_err(|error| {
            output.truncate(before);
            EncodeError { protocol: Protocol::JSON, reason: error.to_string() }
        })
    }

    fn read(
        &self,
        value: &[u8],
        visit: &mut dyn FnMut(&mut dyn erased_serde::Deserializer<'_>) -> Result<(), erased_serde::Error>,
    ) -> Result<(), erased_serde::Error> {
        let mut deserializer = serde_json::Deserializer::from_slice(value);
        visit(&mut <dyn erased_serde::Deserializer<'_>>::erase(&mut deserializer))?;
        deserializer.end().map_err(erased_serde::Error::custom)
    }
}

/// Takes a record off `input`, without its separator. What was `searched` before is not searched again. The record does
/// not hold the memory of a much larger `input`.
pub(in crate::protocol) fn next_record(
    input: &mut BytesMut,
    searched: &mut usize,
    max: usize,
) -> Result<Option<Bytes>, ProtocolError> {
    let end = input.len().min(max);
    let from = (*searched).min(end);
    let Some(length) = memchr::memchr(SEPARATOR, &input[from..end]).map(|found| from + found) else {
        *searched = end;
        // Exactly `max` bytes without a separator are one too few for it.
        return if input.len() < max { Ok(None) } else { Err(ProtocolError::RecordTooLarge(max)) };
    };
    *searched = 0;
    let record = if length >= input.capacity() / 2 {
        input.split_to(length).freeze()
    } else {
        let record = Bytes::copy_from_slice(&input[..length]);
        input.advance(length);
        record
    };
    input.advance(1);
    Ok(Some(record))
}

fn encode(message: &ServerMessage<'_>, output: &mut BytesMut) -> Result<(), erased_serde::Error> {
    match *message {
        ServerMessage::Invocation { id, target, arguments } => {
            output.extend_from_slice(b"{\"type\":1");
            if let Some(id) = id.filter(|id| !id.is_empty()) {
                write_member("invocationId", id, output);
            }
            write_member("target", target, output);
            output.extend_from_slice(b",\"arguments\":[");
            write_arguments(arguments, output)?;
            output.extend_from_slice(b"]");
        }
        ServerMessage::Completion { id, outcome } => {
            output.extend_from_slice(b"{\"type\":3");
            write_member("invocationId", id, output);
            match outcome {
                ServerOutcome::Value(value) => {
                    output.extend_from_slice(b",\"result\":");
                    write_value(value, output)?;
                }
                ServerOutcome::Void => {}
                ServerOutcome::Error(error) => write_member("error", error, output),
            }
        }
        ServerMessage::Ping => output.extend_from_slice(b"{\"type\":6"),
        ServerMessage::Close { error, allow_reconnect } => {
            output.extend_from_slice(b"{\"type\":7");
            if let Some(error) = error {
                write_member("error", error, output);
            }
            if allow_reconnect {
                output.extend_from_slice(b",\"allowReconnect\":true");
            }
        }
    }
    output.extend_from_slice(&[b'}', SEPARATOR]);
    Ok(())
}

fn write_member(name: &'static str, value: &str, output: &mut BytesMut) {
    output.extend_from_slice(b",\"");
    output.extend_from_slice(name.as_bytes());
    output.extend_from_slice(b"\":");
    write_string(value, output);
}

fn write_arguments(arguments: &dyn Arguments, output: &mut BytesMut) -> Result<(), erased_serde::Error> {
    let mut first = true;
    arguments.each(&mut |argument| {
        if !std::mem::take(&mut first) {
            output.extend_from_slice(b",");
        }
        write_value(argument, output)
    })
}

fn write_value(
    value: &dyn erased_serde::Serialize,
    output: &mut BytesMut,
) -> Result<(), erased_serde::Error> {
    erased_serde::serialize(value, Serializer::new(output)).map_err(erased_serde::Error::custom)
}
