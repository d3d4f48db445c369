//! What the clients are sent: invocations of SignalR's JSON hub protocol, each ending with a record separator.

use backplane::{EncodedMessage, InvocationId};
use serde_json::{Value, json};

const RECORD_SEPARATOR: u8 = 0x1e;

/// One message, as a client reads it.
pub(crate) enum Heard {
    /// Something was said.
    Say(String),
    /// Something was asked, and an answer is awaited.
    Ask { id: InvocationId, question: String },
}

pub(crate) fn say(text: &str) -> EncodedMessage {
    encode(&json!({ "type": 1, "target": "say", "arguments": [text] }))
}

pub(crate) fn ask(id: &InvocationId, question: &str) -> EncodedMessage {
    encode(&json!({ "type": 1, "invocationId": id.as_str(), "target": "ask", "arguments": [question] }))
}

fn encode(message: &Value) -> EncodedMessage {
    let mut bytes = message.to_string().into_bytes();
    bytes.push(RECORD_SEPARATOR);
    EncodedMessage::json(bytes)
}

/// Reads messages that were joined into one write. What is no message of ours comes back as its text.
pub(crate) fn read(bytes: &[u8]) -> impl Iterator<Item = Result<Heard, String>> {
    bytes
        .split(|byte| *byte == RECORD_SEPARATOR)
        .filter(|record| !record.is_empty())
        .map(|record| parse(record).ok_or_else(|| format!("unreadable: {}", String::from_utf8_lossy(record))))
}

fn parse(record: &[u8]) -> Option<Heard> {
    let message: Value = serde_json::from_slice(record).ok()?;
    let text = message["arguments"][0].as_str()?.to_owned();
    match message["target"].as_str()? {
        "say" => Some(Heard::Say(text)),
        "ask" => Some(Heard::Ask { id: message["invocationId"].as_str()?.into(), question: text }),
        _ => None,
    }
}
