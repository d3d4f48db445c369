//! The raw peer's own MessagePack: payloads written and described without ours.

use serde_json::{Value, json};

pub(crate) fn array(items: &[Vec<u8>]) -> Vec<u8> {
    let length = u8::try_from(items.len()).expect("short arrays");
    [vec![0x90 | length], items.concat()].concat()
}

pub(crate) fn text(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("short texts");
    let head = if length < 32 { vec![0xA0 | length] } else { vec![0xD9, length] };
    [head, text.as_bytes().to_vec()].concat()
}

pub(crate) fn bin(bytes: &[u8]) -> Vec<u8> {
    [vec![0xC4, u8::try_from(bytes.len()).expect("short blobs")], bytes.to_vec()].concat()
}

pub(crate) fn framed(body: Vec<u8>) -> Vec<u8> {
    [vec![u8::try_from(body.len()).expect("short frames")], body].concat()
}

pub(crate) fn blobs(json: &[u8], messagepack: &[u8]) -> Vec<u8> {
    [vec![0x82], text("json"), bin(json), text("messagepack"), bin(messagepack)].concat()
}

pub(crate) fn json_blob(argument: &str) -> Vec<u8> {
    format!("{{\"type\":1,\"target\":\"m\",\"arguments\":[\"{argument}\"]}}\u{1e}").into_bytes()
}

pub(crate) fn messagepack_blob(argument: &str) -> Vec<u8> {
    framed(array(&[vec![1], vec![0x80], vec![0xC0], text("m"), array(&[text(argument)]), array(&[])]))
}

pub(crate) fn message(excluded: &[&str], argument: &str) -> Vec<u8> {
    let excluded: Vec<Vec<u8>> = excluded.iter().map(|id| text(id)).collect();
    array(&[array(&excluded), blobs(&json_blob(argument), &messagepack_blob(argument))])
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What our reader makes of a message.
pub(crate) fn described(excluded: &[&str], argument: &str) -> Value {
    let blobs = json!({"map": {
        "json": {"bin": hex(&json_blob(argument))}, "messagepack": {"bin": hex(&messagepack_blob(argument))},
    }});
    json!([excluded, blobs])
}
