//! The completion message inside a [`CompletionEnvelope`](super::CompletionEnvelope), in the hub protocols `json` and
//! `messagepack`: only id, kind and the spans of value and headers are read, which stay as the client wrote them.

use std::collections::HashMap;
use std::fmt;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use serde::Deserializer as _;
use serde::de::{Deserialize, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::msgpack::{Reader, Writer, malformed};
use crate::error::Result;
use crate::id::{InvocationId, Protocol};
use crate::message::ClientResult;
use crate::wire::Completion;

/// Ends each record of the `json` hub protocol.
const RECORD_SEPARATOR: u8 = 0x1E;

/// The hub protocols' number of the completion message.
const COMPLETION: i32 = 3;

/// Result kinds of a MessagePack completion.
const KIND_ERROR: i32 = 1;
const KIND_VOID: i32 = 2;
const KIND_RESULT: i32 = 3;

/// The error text by which an owner says that the asked connection is gone.
const DISCONNECTED: &str = "Connection disconnected.";

/// How a question ended, as the first hub message in `blob` says; a value and headers are slices of `blob`. `None`: it
/// is another message than a completion. An empty map of headers is none.
///
/// Once the question's id is known, an answer that breaks the hub protocol's rules is
/// [`Completion::Unreadable`], so that the asker need not wait for its deadline (a .NET server drops it).
///
/// # Errors
/// [`Malformed`](crate::ErrorKind::Malformed): neither `json` nor `messagepack`, no complete message, no id.
pub fn read_completion(protocol: &Protocol, blob: &Bytes) -> Result<Option<(InvocationId, Completion)>> {
    match protocol.as_str() {
        "json" => read_json(blob),
        "messagepack" => read_messagepack(blob),
        unknown => Err(malformed(format!(
            "client result in the hub protocol {unknown:?}, which this node cannot read"
        ))),
    }
}

/// The message that tells the asker how question `id` ended, and the hub protocol it is written in: the value's own;
/// without a value `protocol`, that of the asked client. Where that is neither `json` nor `messagepack`, the answer is
/// in `json`, which every server reads, and a value, which it could not carry, is replaced by an error. Headers, which
/// are in `protocol`, are left out of an answer in another one.
#[must_use]
pub fn write_completion(
    protocol: &Protocol,
    id: &InvocationId,
    completion: &Completion,
) -> (Protocol, Bytes) {
    let (wanted, outcome) = match completion {
        Completion::Answered { result, .. } => match result {
            ClientResult::Value { protocol, value } => (protocol, Outcome::Value(value)),
            ClientResult::Void => (protocol, Outcome::Void),
            ClientResult::Error(text) => (protocol, Outcome::Error(text)),
        },
        Completion::Unreadable(text) => (protocol, Outcome::Error(text)),
        // The layout has one text for a connection that is gone, whether it left before or after it was asked.
        Completion::Disconnected | Completion::NotFound => (protocol, Outcome::Error(DISCONNECTED)),
    };
    let headers = match completion {
        Completion::Answered { headers, .. } if wanted == protocol => headers.as_ref(),
        _ => None,
    };
    match (wanted.as_str(), &outcome) {
        ("json", _) => (Protocol::JSON, write_json(headers, id, &outcome)),
        ("messagepack", _) => (Protocol::MESSAGEPACK, write_messagepack(headers, id, &outcome)),
        (unknown, Outcome::Value(_)) => {
            let text =
                format!("The client answered in the hub protocol '{unknown}', which cannot be forwarded.");
            (Protocol::JSON, write_json(None, id, &Outcome::Error(&text)))
        }
        _ => (Protocol::JSON, write_json(None, id, &outcome)),
    }
}

/// The three forms of a completion.
enum Outcome<'a> {
    Value(&'a Bytes),
    Void,
    Error(&'a str),
}

fn error(text: impl Into<String> + AsRef<str>, headers: Option<Bytes>) -> Completion {
    if text.as_ref() == DISCONNECTED {
        Completion::Disconnected
    } else {
        Completion::Answered { result: ClientResult::Error(text.into()), headers }
    }
}

/// What answers with other headers end with.
const NO_TEXTS: &str = "the answer's headers are no map of texts";

fn unreadable(text: &str) -> Completion {
    Completion::Unreadable(text.to_owned())
}

// -- json: an object and 0x1E

/// The members of a completion that matter, raw. Of a repeated member the last wins, as in .NET.
#[derive(Default)]
struct Members<'a> {
    kind: Option<&'a RawValue>,
    headers: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    error: Option<&'a RawValue>,
    result: Option<&'a RawValue>,
}

#[derive(serde::Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum Member {
    Type,
    Headers,
    InvocationId,
    Error,
    Result,
    #[serde(other)]
    Other,
}

struct Record;

impl<'a> Visitor<'a> for Record {
    type Value = Members<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a hub message")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Members<'a>, A::Error> {
        let mut members = Members::default();
        while let Some(member) = map.next_key()? {
            match member {
                Member::Type => members.kind = Some(map.next_value()?),
                Member::Headers => members.headers = Some(map.next_value()?),
                Member::InvocationId => members.id = Some(map.next_value()?),
                Member::Error => members.error = Some(map.next_value()?),
                Member::Result => members.result = Some(map.next_value()?),
                Member::Other => {
                    map.next_value::<serde::de::IgnoredAny>()?;
                }
            }
        }
        Ok(members)
    }
}

fn read_json(blob: &Bytes) -> Result<Option<(InvocationId, Completion)>> {
    let end = blob.iter().position(|byte| *byte == RECORD_SEPARATOR);
    let record =
        &blob[..end.ok_or_else(|| malformed("a json client result without its record separator"))?];
    // What follows the object inside the record is ignored, as in .NET: `end()` is not asked for.
    let members = serde_json::Deserializer::from_slice(record)
        .deserialize_map(Record)
        .map_err(|error| malformed("a json client result").with_source(error))?;
    let kind: i32 = member(members.kind).ok_or_else(|| malformed("a json hub message without a type"))?;
    if kind != COMPLETION {
        return Ok(None);
    }
    let id: String = member(members.id).ok_or_else(|| malformed("a json client result without an id"))?;
    let Ok(headers) = json_headers(blob, members.headers) else {
        return Ok(Some((id.into(), unreadable(NO_TEXTS))));
    };
    let completion = match (members.error, members.result) {
        (Some(_), Some(_)) => unreadable("the answer holds both an error and a result"),
        (Some(text), None) => match member::<String>(Some(text)) {
            Some(text) => error(text, headers),
            None => unreadable("the answer's error is no text"),
        },
        (None, Some(result)) => {
            let value = span_from_colon(blob, result);
            Completion::Answered { result: ClientResult::value(Protocol::JSON, value), headers }
        }
        (None, None) => Completion::Answered { result: ClientResult::Void, headers },
    };
    Ok(Some((id.into(), completion)))
}

fn member<'a, T: Deserialize<'a>>(raw: Option<&'a RawValue>) -> Option<T> {
    serde_json::from_str(raw?.get()).ok()
}

/// The headers as they stand there. `Err`: they are no object of texts.
fn json_headers(blob: &Bytes, raw: Option<&RawValue>) -> Result<Option<Bytes>, serde_json::Error> {
    let Some(raw) = raw else { return Ok(None) };
    let headers: HashMap<String, String> = serde_json::from_str(raw.get())?;
    Ok((!headers.is_empty()).then(|| blob.slice_ref(raw.get().as_bytes())))
}

/// The value with the blanks between its colon and itself, which .NET servers forward too.
fn span_from_colon(blob: &Bytes, value: &RawValue) -> Bytes {
    let value = blob.slice_ref(value.get().as_bytes());
    let end = value.as_ptr() as usize - blob.as_ptr() as usize + value.len();
    let blanks = blob[..end - value.len()].iter().rev().take_while(|byte| byte.is_ascii_whitespace()).count();
    blob.slice(end - value.len() - blanks..end)
}

fn write_json(headers: Option<&Bytes>, id: &InvocationId, outcome: &Outcome<'_>) -> Bytes {
    let value = if let Outcome::Value(value) = outcome { value.len() } else { 0 };
    let headers_len = headers.map_or(0, Bytes::len);
    let mut record = BytesMut::with_capacity(headers_len + value + id.as_str().len() + 100);
    record.put_slice(br#"{"type":3"#);
    if let Some(headers) = headers {
        record.put_slice(br#","headers":"#);
        record.put_slice(headers);
    }
    record.put_slice(br#","invocationId":"#);
    put_json_text(&mut record, id.as_str());
    match outcome {
        Outcome::Value(value) => {
            record.put_slice(br#","result":"#);
            record.put_slice(value);
        }
        Outcome::Void => {}
        Outcome::Error(text) => {
            record.put_slice(br#","error":"#);
            put_json_text(&mut record, text);
        }
    }
    record.put_u8(b'}');
    record.put_u8(RECORD_SEPARATOR);
    record.freeze()
}

fn put_json_text(record: &mut BytesMut, text: &str) {
    serde_json::to_writer(record.writer(), text).expect("a text is written to memory");
}

// -- messagepack: a length in groups of seven bits, and [3, headers, id, kind, value?]

fn read_messagepack(blob: &Bytes) -> Result<Option<(InvocationId, Completion)>> {
    let body = framed_body(blob)?;
    let mut reader = Reader::new(&body);
    let items = reader.array_len()?;
    if reader.int32()? != COMPLETION {
        return Ok(None);
    }
    let headers = reader.headers()?;
    let id = reader.text()?.ok_or_else(|| malformed("a messagepack client result without an id"))?;
    let id = InvocationId::from(&*id);
    // From here on the asker is known: what is wrong ends its wait.
    let Headers::Texts(headers) = headers else { return Ok(Some((id, unreadable(NO_TEXTS)))) };
    let completion = match reader.int32() {
        Ok(KIND_VOID) if items >= 4 => Completion::Answered { result: ClientResult::Void, headers },
        Ok(KIND_ERROR) if items >= 5 => match reader.text() {
            Ok(Some(text)) => error(text.into_owned(), headers),
            _ => unreadable("the answer's error is no text"),
        },
        Ok(KIND_RESULT) if items >= 5 => match reader.value() {
            Ok(value) => {
                Completion::Answered { result: ClientResult::value(Protocol::MESSAGEPACK, value), headers }
            }
            Err(_) => unreadable("the answer's result is no MessagePack value"),
        },
        Ok(KIND_VOID | KIND_ERROR | KIND_RESULT) => unreadable("the answer ends before its result"),
        Ok(_) => unreadable("the answer's kind is unknown"),
        Err(_) => unreadable("the answer has no kind"),
    };
    Ok(Some((id, completion)))
}

/// What stands in the place of the headers.
enum Headers {
    /// A map of texts, as it stands there; an empty one is `None`.
    Texts(Option<Bytes>),
    /// A map of other things.
    Others,
}

impl Reader<'_> {
    /// The headers. Anything but a map, nil too, is not allowed in their place.
    fn headers(&mut self) -> Result<Headers> {
        let map = self.value()?;
        let mut texts = Reader::new(&map);
        let pairs = texts.map_len()?;
        if (0..2 * u64::from(pairs)).any(|_| !matches!(texts.text(), Ok(Some(_)))) {
            return Ok(Headers::Others);
        }
        Ok(Headers::Texts((pairs > 0).then_some(map)))
    }
}

/// The first message of a framed stream. Lengths that are not minimal pass.
fn framed_body(blob: &Bytes) -> Result<Bytes> {
    const CUT: &str = "a messagepack client result that is cut off";
    let mut rest = blob.clone();
    let mut length: u64 = 0;
    for group in 0..5 {
        if rest.is_empty() {
            return Err(malformed(CUT));
        }
        let byte = rest.get_u8();
        length |= u64::from(byte & 0x7F) << (7 * group);
        if byte & 0x80 == 0 {
            return match usize::try_from(length) {
                Ok(length) if length <= rest.len() => Ok(rest.slice(..length)),
                _ => Err(malformed(CUT)),
            };
        }
    }
    Err(malformed("a messagepack client result whose length has more than five bytes"))
}

fn write_messagepack(headers: Option<&Bytes>, id: &InvocationId, outcome: &Outcome<'_>) -> Bytes {
    let payload = match outcome {
        Outcome::Value(value) => value.len(),
        Outcome::Void => 0,
        Outcome::Error(text) => text.len() + 5,
    };
    let headers_len = headers.map_or(0, Bytes::len);
    let mut body = Writer::with_capacity(headers_len + payload + id.as_str().len() + 16);
    body.array(if matches!(outcome, Outcome::Void) { 4 } else { 5 });
    body.int(COMPLETION.into());
    match headers {
        Some(headers) => body.raw(headers),
        None => body.map(0),
    }
    body.text(id.as_str());
    match outcome {
        Outcome::Value(value) => {
            body.int(KIND_RESULT.into());
            body.raw(value);
        }
        Outcome::Void => body.int(KIND_VOID.into()),
        Outcome::Error(text) => {
            body.int(KIND_ERROR.into());
            body.text(text);
        }
    }
    let body = body.finish();
    let mut framed = BytesMut::with_capacity(body.len() + 5);
    let mut length = body.len();
    while length > 0x7F {
        framed.put_u8((length & 0x7F) as u8 | 0x80);
        length >>= 7;
    }
    framed.put_u8(length as u8);
    framed.put_slice(&body);
    framed.freeze()
}
