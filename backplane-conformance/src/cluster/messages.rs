//! What the clients of the contracts are sent, as bytes of the hub protocols, and how they read it.

use backplane_core::{ClientInvocation, EncodedMessage, InvocationId, Protocol};
use bytes::Bytes;

use crate::{Broken, ensure};

type Checked<T> = std::result::Result<T, Broken>;

const END_OF_JSON: char = '\u{1e}';
const BEFORE_TEXT: &str = "\"arguments\":[\"";
const BEFORE_ID: &str = "\"invocationId\":\"";

/// The hub message `m(text)` for `json` and `messagepack` clients. `text` needs no escapes in JSON.
#[must_use]
pub fn message(text: &str) -> EncodedMessage {
    encoded(None, text)
}

/// The question `m(text)` for `json` and `messagepack` clients.
#[must_use]
pub fn question(text: &str) -> ClientInvocation {
    let text = text.to_owned();
    ClientInvocation::new(move |id| encoded(Some(id), &text))
}

fn encoded(id: Option<&InvocationId>, text: &str) -> EncodedMessage {
    EncodedMessage::new([(Protocol::JSON, json(id, text)), (Protocol::MESSAGEPACK, messagepack(id, text))])
}

fn json(id: Option<&InvocationId>, text: &str) -> Bytes {
    let id = id.map(|id| format!("{BEFORE_ID}{id}\",")).unwrap_or_default();
    Bytes::from(format!("{{\"type\":1,{id}\"target\":\"m\",{BEFORE_TEXT}{text}\"]}}{END_OF_JSON}"))
}

/// `[1, {}, id or nil, "m", [text], []]`, with the length in front, as the hub protocol has it.
fn messagepack(id: Option<&InvocationId>, text: &str) -> Bytes {
    let mut body = vec![0x96, 0x01, 0x80];
    let put = |body: &mut Vec<u8>, text: &str| {
        body.push(0xdb);
        body.extend_from_slice(&u32::try_from(text.len()).expect("contracts send short texts").to_be_bytes());
        body.extend_from_slice(text.as_bytes());
    };
    match id {
        Some(id) => put(&mut body, id.as_str()),
        None => body.push(0xc0),
    }
    body.extend_from_slice(&[0xa1, b'm', 0x91]);
    put(&mut body, text);
    body.push(0x90);
    let mut framed = Vec::with_capacity(body.len() + 5);
    let mut rest = body.len();
    while rest >= 0x80 {
        framed.push(u8::try_from(rest & 0x7f).expect("seven bits") | 0x80);
        rest >>= 7;
    }
    framed.push(u8::try_from(rest).expect("seven bits"));
    framed.extend_from_slice(&body);
    framed.into()
}

/// A message as a client read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Its one argument.
    pub text: String,
    /// For a question: its id.
    pub asked: Option<InvocationId>,
}

/// The messages in `bytes`, joined as they came, for a client that speaks `protocol`.
pub(super) fn read(protocol: &Protocol, bytes: &[u8]) -> Checked<Vec<Arrived>> {
    if *protocol == Protocol::MESSAGEPACK { read_messagepack(bytes) } else { read_json(bytes) }
}

fn read_json(bytes: &[u8]) -> Checked<Vec<Arrived>> {
    let unreadable = || Broken(format!("a client cannot read {:?}", String::from_utf8_lossy(bytes)));
    let text = std::str::from_utf8(bytes).map_err(|_| unreadable())?;
    let between = |message: &str, before: &str| {
        let (_, rest) = message.split_once(before)?;
        rest.split_once('"').map(|(found, _)| found.to_owned())
    };
    let messages = text.strip_suffix(END_OF_JSON).ok_or_else(unreadable)?;
    let read = |message: &str| {
        let text = between(message, BEFORE_TEXT).ok_or_else(unreadable)?;
        Ok(Arrived { text, asked: between(message, BEFORE_ID).map(InvocationId::from) })
    };
    messages.split(END_OF_JSON).map(read).collect()
}

fn read_messagepack(mut bytes: &[u8]) -> Checked<Vec<Arrived>> {
    let mut arrived = Vec::new();
    while !bytes.is_empty() {
        let (one, length) = first_of_messagepack(bytes)
            .ok_or_else(|| Broken(format!("a client cannot read {} bytes of messagepack", bytes.len())))?;
        ensure!(
            messagepack(one.asked.as_ref(), &one.text) == bytes[..length],
            "a client read other bytes than were sent"
        );
        arrived.push(one);
        bytes = &bytes[length..];
    }
    Ok(arrived)
}

/// The first message in `bytes` and its length.
fn first_of_messagepack(bytes: &[u8]) -> Option<(Arrived, usize)> {
    let text = |bytes: &[u8]| {
        let length = usize::try_from(u32::from_be_bytes(bytes.get(1..5)?.try_into().ok()?)).ok()?;
        let text = std::str::from_utf8(bytes.get(5..5 + length)?).ok()?;
        Some((text.to_owned(), 5 + length))
    };
    let varint = bytes.iter().position(|byte| byte & 0x80 == 0)? + 1;
    let length = bytes[..varint].iter().rev().try_fold(0_usize, |length, byte| {
        length.checked_mul(128).map(|length| length + usize::from(byte & 0x7f))
    })?;
    let end = varint.checked_add(length)?;
    let body = bytes.get(varint + 3..end)?;
    let (asked, used) = match body.first()? {
        0xc0 => (None, 1),
        _ => text(body).map(|(id, used)| (Some(InvocationId::from(id)), used))?,
    };
    let (text, _) = text(body.get(used + 3..)?)?;
    Some((Arrived { text, asked }, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_read_what_is_sent_in_either_protocol() {
        for text in ["", "x", &"y".repeat(20_000)] {
            let twice = |protocol| [&message(text).get(&protocol).unwrap()[..]; 2].concat();
            let arrived = vec![Arrived { text: text.to_owned(), asked: None }; 2];
            assert_eq!(read_json(&twice(Protocol::JSON)).unwrap(), arrived);
            assert_eq!(read_messagepack(&twice(Protocol::MESSAGEPACK)).unwrap(), arrived);
        }
    }

    #[test]
    fn clients_read_the_id_of_a_question() {
        let id = InvocationId::from("A+/b");
        let asked = (question("why").encode)(&id);
        let json = read_json(asked.get(&Protocol::JSON).unwrap()).unwrap();
        let messagepack = read_messagepack(asked.get(&Protocol::MESSAGEPACK).unwrap()).unwrap();
        let arrived = [Arrived { text: "why".into(), asked: Some(id) }];
        assert_eq!((&json[..], &messagepack[..]), (&arrived[..], &arrived[..]));
    }

    #[test]
    fn clients_do_not_read_what_is_cut_off() {
        let whole = message("whole");
        let cut = |protocol| whole.get(&protocol).unwrap().slice(1..whole.get(&protocol).unwrap().len() - 1);
        assert!(read_json(&cut(Protocol::JSON)).is_err());
        assert!(read_messagepack(&cut(Protocol::MESSAGEPACK)).is_err());
    }
}
