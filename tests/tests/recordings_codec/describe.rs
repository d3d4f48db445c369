//! Describes MessagePack as the recordings' `decoded` does, by a reader of its own: items as JSON, a map as
//! `{"map":{...}}`, bytes as `{"bin":hex}`, floats as `{"float64":x}` or `{"float32":x}`.

use serde_json::{Map, Value, json};

/// The hub messages of a blob: one is described alone, any other number as `{"frames":[...]}`.
pub(crate) fn frames(mut blob: &[u8]) -> Option<Value> {
    let mut frames = Vec::new();
    while !blob.is_empty() {
        let length = frame_length(&mut blob)?;
        let mut frame = blob.split_off(..length)?;
        frames.push(value(&mut frame)?);
        if !frame.is_empty() {
            return None;
        }
    }
    match <[Value; 1]>::try_from(frames) {
        Ok([frame]) => Some(frame),
        Err(frames) => Some(json!({ "frames": frames })),
    }
}

/// One value, and nothing behind it.
pub(crate) fn whole(mut bytes: &[u8]) -> Option<Value> {
    value(&mut bytes).filter(|_| bytes.is_empty())
}

fn frame_length(bytes: &mut &[u8]) -> Option<usize> {
    let mut length = 0;
    for group in 0..5 {
        let byte = *bytes.split_off_first()?;
        length |= usize::from(byte & 0x7F) << (7 * group);
        if byte & 0x80 == 0 {
            return Some(length);
        }
    }
    None
}

fn value(bytes: &mut &[u8]) -> Option<Value> {
    let marker = *bytes.split_off_first()?;
    match marker {
        0x00..=0x7F => Some(json!(marker)),
        0x80..=0x8F => map(bytes, usize::from(marker & 0x0F)),
        0x90..=0x9F => array(bytes, usize::from(marker & 0x0F)),
        0xA0..=0xBF => text(bytes, usize::from(marker & 0x1F)),
        0xC0 => Some(Value::Null),
        0xC2 => Some(json!(false)),
        0xC3 => Some(json!(true)),
        0xC4..=0xC6 => {
            let length = size(bytes, 1 << (marker - 0xC4))?;
            let hex: String = bytes.split_off(..length)?.iter().map(|byte| format!("{byte:02x}")).collect();
            Some(json!({ "bin": hex }))
        }
        // The recorder's reader shows a float32 by its value as a float64.
        0xCA => Some(json!({ "float32": f64::from(f32::from_be_bytes(array_of(bytes)?)) })),
        0xCB => Some(json!({ "float64": f64::from_be_bytes(array_of(bytes)?) })),
        0xCC..=0xCF => unsigned(bytes, 1 << (marker - 0xCC)).map(Value::from),
        0xD0 => Some(json!(i8::from_be_bytes(array_of(bytes)?))),
        0xD1 => Some(json!(i16::from_be_bytes(array_of(bytes)?))),
        0xD2 => Some(json!(i32::from_be_bytes(array_of(bytes)?))),
        0xD3 => Some(json!(i64::from_be_bytes(array_of(bytes)?))),
        0xD9..=0xDB => {
            let length = size(bytes, 1 << (marker - 0xD9))?;
            text(bytes, length)
        }
        0xDC | 0xDD => {
            let length = size(bytes, 2 << (marker - 0xDC))?;
            array(bytes, length)
        }
        0xDE | 0xDF => {
            let length = size(bytes, 2 << (marker - 0xDE))?;
            map(bytes, length)
        }
        0xE0..=0xFF => Some(json!(i8::from_be_bytes([marker]))),
        // Extension types stand in no recording.
        _ => None,
    }
}

fn array(bytes: &mut &[u8], length: usize) -> Option<Value> {
    (0..length).map(|_| value(bytes)).collect::<Option<Vec<_>>>().map(Value::from)
}

fn map(bytes: &mut &[u8], length: usize) -> Option<Value> {
    let mut pairs = Map::new();
    for _ in 0..length {
        let Value::String(key) = value(bytes)? else { return None };
        pairs.insert(key, value(bytes)?);
    }
    Some(json!({ "map": pairs }))
}

fn text(bytes: &mut &[u8], length: usize) -> Option<Value> {
    std::str::from_utf8(bytes.split_off(..length)?).ok().map(Value::from)
}

fn unsigned(bytes: &mut &[u8], width: usize) -> Option<u64> {
    Some(bytes.split_off(..width)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn size(bytes: &mut &[u8], width: usize) -> Option<usize> {
    unsigned(bytes, width).and_then(|number| usize::try_from(number).ok())
}

fn array_of<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    bytes.split_off(..N)?.try_into().ok()
}
