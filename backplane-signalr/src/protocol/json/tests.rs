//! Properties: nothing that a client sends brings the protocol down, nothing that is written reads back differently.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::serializer::Serializer;
use super::{Json, next_record};
use crate::protocol::{ClientMessage, HubProtocol, ProtocolError, ServerMessage, ServerOutcome};

const VALID: &str = concat!(
    r#"{"type":1,"headers":{"a":"b"},"invocationId":"1","target":"S\u0065nd","arguments":[1,"x\ud83d\ude00",[],"#,
    r#"{"a":[null,true,-1.5e+7]}],"streamIds":["s"],"other":{"x":[false]}}"#
);

const TOKENS: [&str; 16] = [
    "{", "}", "[", "]", ":", ",", "\"a\"", "\"\\n\"", "1", "-0", "0", "1.5e+2", "true", "null", "false", " ",
];

fn written(value: &impl Serialize) -> Result<String, serde_json::Error> {
    let mut output = BytesMut::new();
    value.serialize(Serializer::new(&mut output))?;
    Ok(String::from_utf8(output.to_vec()).unwrap())
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_or_refused(record: Vec<u8>) {
        let _ = Json.decode(&Bytes::from(record));
    }

    #[test]
    fn mutated_records_are_decoded_or_refused(
        edits in prop::collection::vec((0..VALID.len(), "[\\[\\]{}\",:\\\\ue0-9tfn \\-.]"), 1..6),
        end in 0..=VALID.len(),
    ) {
        let mut record = VALID.as_bytes().to_vec();
        for (at, byte) in edits {
            record[at] = byte.as_bytes()[0];
        }
        record.truncate(end);
        if let Ok(ClientMessage::Invocation(call)) = Json.decode(&Bytes::from(record)) {
            // Whatever got through is a value as serde_json sees it.
            for argument in call.arguments {
                prop_assert!(serde_json::from_slice::<IgnoredAny>(&argument).is_ok(), "{argument:?}");
            }
        }
    }

    #[test]
    fn values_are_measured_as_serde_json_does(
        text in prop_oneof![
            "[\\[\\]{}\",:\\\\abu0-9.eE+\\-tfn ]{0,12}",
            prop::collection::vec(prop::sample::select(&TOKENS[..]), 0..10).prop_map(|tokens| tokens.concat()),
        ],
    ) {
        let record = format!(r#"{{"type":2,"invocationId":"i","item":{text}}}"#);
        let ours = Json.decode(&Bytes::from(record.clone()));
        let theirs = serde_json::Deserializer::from_str(&record).into_iter::<IgnoredAny>().next().unwrap();
        match ours {
            Ok(ClientMessage::StreamItem { item, .. }) => {
                prop_assert!(theirs.is_ok(), "{}", record);
                prop_assert!(serde_json::from_slice::<IgnoredAny>(&item).is_ok(), "{}", record);
            }
            // The text may have closed the object and begun another member.
            Ok(other) => prop_assert!(theirs.is_ok(), "{other:?}"),
            Err(ProtocolError::Malformed(reason)) => {
                prop_assert!(theirs.is_err() || reason.contains('\''), "{} {}", reason, record);
            }
            Err(error) => prop_assert!(false, "{}", error),
        }
    }

    #[test]
    fn what_is_written_reads_back(value in values()) {
        let text = written(&value).unwrap();
        let back: Value = serde_json::from_str(&text).unwrap();
        // A float without a fraction is written as an integer, so numbers are compared by value.
        prop_assert!(equal(&value, &back), "{value} {back}");
        prop_assert!(!text.bytes().any(|byte| byte < b' '));
    }

    #[test]
    fn a_text_is_escaped_character_by_character(text in ".{0,40}|[ -~é\u{2028}中😀\"\\\\]{0,80}") {
        let alone: String = text
            .chars()
            .map(|character| written(&character).unwrap()[1..].strip_suffix('"').unwrap().to_owned())
            .collect();
        prop_assert_eq!(written(&text).unwrap(), format!("\"{alone}\""));
    }

    #[test]
    fn a_message_that_is_written_is_one_record(id: String, target: String, texts: Vec<String>) {
        let mut output = BytesMut::new();
        let message = ServerMessage::Invocation { id: Some(&id), target: &target, arguments: &texts };
        Json.encode(&message, &mut output).unwrap();
        let record = next_record(&mut output, &mut 0, usize::MAX).unwrap().unwrap();
        prop_assert!(output.is_empty());
        let Ok(ClientMessage::Invocation(call)) = Json.decode(&record) else { panic!("{record:?}") };
        prop_assert_eq!(call.id.unwrap_or_default(), id);
        prop_assert_eq!(call.target, target);
        let read: Vec<String> =
            call.arguments.iter().map(|argument| serde_json::from_slice(argument).unwrap()).collect();
        prop_assert_eq!(read, texts);
    }

    #[test]
    fn records_do_not_depend_on_chunks(
        records in prop::collection::vec(prop::collection::vec(b'a'..=b'z', 0..24), 0..8),
        chunks in prop::collection::vec(1usize..16, 1..16),
        max in 1usize..24,
    ) {
        let mut sent = Vec::new();
        for record in &records {
            sent.extend_from_slice(record);
            sent.push(0x1E);
        }
        let mut input = BytesMut::new();
        let (mut received, mut refused, mut searched) = (Vec::new(), false, 0);
        let mut rest = &sent[..];
        for size in chunks.iter().cycle() {
            if rest.is_empty() || refused {
                break;
            }
            let (chunk, tail) = rest.split_at((*size).min(rest.len()));
            input.extend_from_slice(chunk);
            rest = tail;
            loop {
                match next_record(&mut input, &mut searched, max) {
                    Ok(Some(record)) => received.push(record.to_vec()),
                    Ok(None) => break,
                    Err(error) => {
                        prop_assert_eq!(error, ProtocolError::RecordTooLarge(max));
                        refused = true;
                        break;
                    }
                }
            }
        }
        let fits = records.iter().take_while(|record| record.len() < max).count();
        prop_assert_eq!(&received, &records[..fits]);
        prop_assert_eq!(refused, fits < records.len());
    }
}

fn equal(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one == other || one.as_f64() == other.as_f64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| equal(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(name, one)| other.get(name).is_some_and(|other| equal(one, other)))
        }
        _ => one == other,
    }
}

#[test]
fn shapes_are_those_of_serde_json() {
    #[derive(Serialize)]
    struct Unit;
    #[derive(Serialize)]
    struct New(u8);
    #[derive(Serialize)]
    struct Tuple(u8, char);
    #[derive(Serialize)]
    struct Point {
        x: i8,
        #[serde(skip_serializing_if = "Option::is_none")]
        y: Option<i128>,
    }
    #[derive(Serialize, PartialEq, Eq, PartialOrd, Ord)]
    enum Shape {
        Dot,
        Line(u16),
        Pair(i16, String),
        Box { w: u32 },
    }
    #[derive(Serialize)]
    struct All {
        unit: Unit,
        new: New,
        tuple: Tuple,
        points: Vec<Point>,
        shapes: [Shape; 4],
        flat: (Option<u8>, Option<()>, &'static [u8]),
        bools: BTreeMap<bool, u128>,
        numbers: BTreeMap<i64, ()>,
        names: BTreeMap<Shape, char>,
        range: Range<u64>,
        #[serde(flatten)]
        rest: BTreeMap<String, Value>,
    }
    let all = All {
        unit: Unit,
        new: New(7),
        tuple: Tuple(1, '"'),
        points: vec![Point { x: -1, y: None }, Point { x: 0, y: Some(i128::MIN) }],
        shapes: [Shape::Dot, Shape::Line(3), Shape::Pair(-4, "é".into()), Shape::Box { w: 5 }],
        flat: (None, Some(()), b"ab"),
        bools: BTreeMap::from([(true, u128::MAX), (false, 0)]),
        numbers: BTreeMap::from([(-3, ()), (4, ())]),
        names: BTreeMap::from([(Shape::Dot, 'x')]),
        range: 1..2,
        rest: BTreeMap::from([("more".into(), json!([{}, []]))]),
    };
    assert_eq!(written(&all).unwrap(), serde_json::to_string(&all).unwrap());
}

#[test]
fn keys_of_a_map_are_text() {
    assert!(written(&BTreeMap::from([((1, 2), 3)])).is_err());
    assert!(written(&BTreeMap::from([(Some(1), 3)])).is_ok());
    assert!(written(&BTreeMap::from([(None::<u8>, 3)])).is_err());
}

#[test]
fn a_message_that_cannot_be_written_leaves_the_output_as_it_was() {
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut output = BytesMut::from("before");
        let message = ServerMessage::Invocation { id: None, target: "m", arguments: &(1, vec![value]) };
        let error = Json.encode(&message, &mut output).unwrap_err();
        assert!(error.to_string().contains("infinite or not a number"), "{error}");
        assert_eq!(output, "before");
        let outcome = ServerOutcome::Value(&value);
        assert!(Json.encode(&ServerMessage::Completion { id: "1", outcome }, &mut output).is_err());
        assert_eq!(output, "before");
    }
}

#[test]
fn a_record_at_the_limit_passes_and_one_byte_more_does_not() {
    let mut input = BytesMut::from("123456789\x1e1234567890\x1e");
    assert_eq!(next_record(&mut input, &mut 0, 10), Ok(Some(Bytes::from_static(b"123456789"))));
    assert_eq!(next_record(&mut input, &mut 0, 10), Err(ProtocolError::RecordTooLarge(10)));
    assert_eq!(next_record(&mut BytesMut::from("123456789"), &mut 0, 10), Ok(None));
    assert_eq!(
        next_record(&mut BytesMut::from("1234567890"), &mut 0, 10),
        Err(ProtocolError::RecordTooLarge(10))
    );
    assert_eq!(next_record(&mut BytesMut::new(), &mut 0, 10), Ok(None));
}

#[test]
fn a_small_record_does_not_hold_a_large_buffer() {
    let mut input = BytesMut::with_capacity(64 << 10);
    input.put_slice(b"{\"type\":6}\x1e");
    let capacity = input.capacity();
    let record = next_record(&mut input, &mut 0, 32 << 10).unwrap().unwrap();
    assert!(input.try_reclaim(capacity - 16), "the buffer is still shared with {record:?}");
    // A record that fills its buffer is not copied.
    let mut input = BytesMut::from(&[b'x'; 4096][..]);
    input[4095] = 0x1E;
    let first = input.as_ptr();
    assert_eq!(next_record(&mut input, &mut 0, 32 << 10).unwrap().unwrap().as_ptr(), first);
}

#[test]
fn values_are_slices_of_the_record() {
    let record = Bytes::from_static(VALID.as_bytes());
    let Ok(ClientMessage::Invocation(call)) = Json.decode(&record) else { panic!() };
    let whole = record.as_ptr_range();
    assert_eq!(call.arguments.len(), 4);
    for argument in call.arguments {
        assert!(whole.contains(&argument.as_ptr()));
    }
    let record =
        Bytes::from_static(br#"{"type":3,"invocationId":"1","headers": {"a" : "b"},"result": [1, 2] }"#);
    let Ok(ClientMessage::Completion { outcome, headers, .. }) = Json.decode(&record) else { panic!() };
    assert_eq!(outcome, crate::protocol::ClientOutcome::Value(Bytes::from_static(b"[1, 2]")));
    assert_eq!(headers, br#"{"a" : "b"}"#[..]);
}
