//! What .NET was seen to accept, to refuse and to write: the records of its recordings, played through the protocol.

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{Json, SEPARATOR};
use crate::clients::Arguments;
use crate::protocol::{
    ClientMessage, ClientOutcome, HubProtocol, Invocation, ProtocolError, ServerMessage, ServerOutcome,
};

fn decode(record: impl AsRef<[u8]>) -> Result<ClientMessage, ProtocolError> {
    Json.decode(&Bytes::copy_from_slice(record.as_ref()))
}

fn call(id: Option<&str>, target: &str, arguments: &[&'static str]) -> ClientMessage {
    ClientMessage::Invocation(Invocation {
        id: id.map(str::to_owned),
        target: target.to_owned(),
        arguments: arguments.iter().map(|argument| Bytes::from_static(argument.as_bytes())).collect(),
        streams: Vec::new(),
    })
}

fn completion(outcome: ClientOutcome) -> ClientMessage {
    ClientMessage::Completion { id: "nope".into(), outcome, headers: Bytes::new() }
}

fn encode(message: &ServerMessage<'_>) -> String {
    let mut output = BytesMut::new();
    Json.encode(message, &mut output).unwrap();
    assert_eq!(output.last(), Some(&SEPARATOR));
    output.truncate(output.len() - 1);
    String::from_utf8(output.to_vec()).unwrap()
}

fn invocation(target: &str, arguments: &dyn Arguments) -> String {
    encode(&ServerMessage::Invocation { id: None, target, arguments })
}

fn value(value: impl Serialize) -> String {
    let answer = encode(&ServerMessage::Completion { id: "1", outcome: ServerOutcome::Value(&value) });
    answer
        .strip_prefix(r#"{"type":3,"invocationId":"1","result":"#)
        .unwrap()
        .strip_suffix('}')
        .unwrap()
        .to_owned()
}

/// Reads a value as an argument of a hub method is read.
fn read<T: serde::de::DeserializeOwned>(value: &[u8]) -> Result<T, erased_serde::Error> {
    let mut read = None;
    Json.read(value, &mut |deserializer| {
        read = Some(erased_serde::deserialize(deserializer)?);
        Ok(())
    })?;
    Ok(read.unwrap())
}

/// The recording `json-envelope`, where the connection lives.
#[test]
fn odd_records_that_are_served() {
    let sum = || call(Some("1"), "Sum", &["1", "2"]);
    for (record, expected) in [
        (r#"{"type":99}"#, ClientMessage::Unknown(99)),
        (r#"{"type":0}"#, ClientMessage::Unknown(0)),
        (r#"{"type":-1}"#, ClientMessage::Unknown(-1)),
        (r#" {"type":1,"invocationId":"1","target":"Sum","arguments":[1,2]}"#, sum()),
        (r#"{"type":6}x"#, ClientMessage::Ping),
        (r#"{"type":6}{"type":6}"#, ClientMessage::Ping),
        (
            r#"{"x":[{"type":5}],"type":1,"invocationId":"1","target":"Sum","arguments":[1,2],"y":{"z":null}}"#,
            sum(),
        ),
        (r#"{"arguments":[1,2],"target":"Sum","invocationId":"1","type":1}"#, sum()),
        (r#"{"type":1,"arguments":[1,2],"invocationId":"1","target":"Sum"}"#, sum()),
        (r#"{"type":6,"type":1,"invocationId":"1","target":"Sum","arguments":[1,2]}"#, sum()),
        (r#"{"type":1,"invocationId":"1","target":"Echo","target":"Sum","arguments":[1,2]}"#, sum()),
        (
            r#"{"type":1,"invocationId":"1","target":"Sum","arguments":[1,2],"arguments":[3,4]}"#,
            call(Some("1"), "Sum", &["3", "4"]),
        ),
        (r#"{"typ\u0065":1,"invocationId":"1","target":"Sum","arguments":[1,2]}"#, sum()),
        (
            r#"{"type":1,"invocationId":"","target":"ToCaller","arguments":["m"]}"#,
            call(None, "ToCaller", &[r#""m""#]),
        ),
        (
            r#"{"type":1,"headers":{"a":"b","c":""},"invocationId":"1","target":"Sum","arguments":[1,2]}"#,
            sum(),
        ),
        (r#"{"type":1,"streamIds":[],"invocationId":"1","target":"Sum","arguments":[1,2]}"#, sum()),
        (
            r#"{"type":3,"invocationId":"nope","result":1}"#,
            completion(ClientOutcome::Value(Bytes::from_static(b"1"))),
        ),
        (r#"{"type":3,"invocationId":"nope","error":"e"}"#, completion(ClientOutcome::Error("e".into()))),
        (
            r#"{"type":2,"invocationId":"nope","item":1}"#,
            ClientMessage::StreamItem { id: "nope".into(), item: Bytes::from_static(b"1") },
        ),
        (r#"{"type":5,"invocationId":"nope"}"#, ClientMessage::CancelInvocation { id: "nope".into() }),
        (r#"{"type":6,"invocationId":"x"}"#, ClientMessage::Ping),
        (r#"{"type":8,"sequenceId":1}"#, ClientMessage::Ack(1)),
        (r#"{"type":9,"sequenceId":1}"#, ClientMessage::Sequence(1)),
        (r#"{"type":7}"#, ClientMessage::Close { error: None }),
        (r#"{"type":7,"error":"bye"}"#, ClientMessage::Close { error: Some("bye".into()) }),
        (r#"{"type":7,"allowReconnect":true}"#, ClientMessage::Close { error: None }),
        // From the recordings `invoke-name-case`, `ask-errors`, `invoke-errors` and `stream-counter`.
        (r#"{"type":1,"invocationId":"7","target":"","arguments":[]}"#, call(Some("7"), "", &[])),
        (r#"{"type":3,"invocationId":"nope"}"#, completion(ClientOutcome::Void)),
        (
            r#"{"type":3,"invocationId":"nope","result":null}"#,
            completion(ClientOutcome::Value(Bytes::from_static(b"null"))),
        ),
        (
            r#"{"type":1,"invocationId":"28","target":"UploadSum","arguments":[],"streamIds":["a","b"]}"#,
            ClientMessage::Invocation(Invocation {
                id: Some("28".into()),
                target: "UploadSum".into(),
                arguments: Vec::new(),
                streams: vec!["a".into(), "b".into()],
            }),
        ),
        (
            r#"{"type":4,"invocationId":"1","target":"Counter","arguments":[3,0]}"#,
            ClientMessage::StreamInvocation(Invocation {
                id: Some("1".into()),
                target: "Counter".into(),
                arguments: vec![Bytes::from_static(b"3"), Bytes::from_static(b"0")],
                streams: Vec::new(),
            }),
        ),
    ] {
        assert_eq!(decode(record), Ok(expected), "{record}");
    }
}

/// The recording `json-envelope`, where the connection is closed with an error, and its like in others.
#[test]
fn broken_records_end_the_connection() {
    for record in [
        r#"{"type":"1","target":"Nothing","arguments":[]}"#,
        r#"{"type":1.5}"#,
        r#"{"type":null}"#,
        r#"{"target":"Nothing","arguments":[]}"#,
        "{}",
        "5",
        "[]",
        "null",
        r#""x""#,
        "hello",
        r#"{"type":1"#,
        "",
        " ",
        r#"{"type":6,}"#,
        r#"{/*c*/"type":6}"#,
        "\u{feff}{\"type\":6}",
        r#"{"Type":1,"InvocationId":"1","Target":"Sum","Arguments":[1,2]}"#,
        r#"{"type":1,"invocationId":"1","arguments":[]}"#,
        r#"{"type":1,"invocationId":"1","target":null,"arguments":[]}"#,
        r#"{"type":1,"invocationId":"1","target":5,"arguments":[]}"#,
        r#"{"type":1,"invocationId":"1","target":"Nothing"}"#,
        r#"{"type":1,"invocationId":"1","target":"Nothing","arguments":null}"#,
        r#"{"type":1,"invocationId":"1","target":"Nothing","arguments":{}}"#,
        r#"{"type":1,"invocationId":1,"target":"Nothing","arguments":[]}"#,
        r#"{"type":1,"invocationId":null,"target":"ToCaller","arguments":["m"]}"#,
        r#"{"type":4,"target":"Counter","arguments":[1,1]}"#,
        r#"{"type":4,"invocationId":"","target":"Counter","arguments":[1,1]}"#,
        r#"{"type":1,"headers":{"a":1},"invocationId":"1","target":"Sum","arguments":[1,2]}"#,
        r#"{"type":1,"headers":null,"invocationId":"1","target":"Sum","arguments":[1,2]}"#,
        r#"{"type":1,"headers":[],"invocationId":"1","target":"Sum","arguments":[1,2]}"#,
        r#"{"type":1,"streamIds":null,"invocationId":"1","target":"Sum","arguments":[1,2]}"#,
        r#"{"type":1,"streamIds":[1],"invocationId":"1","target":"UploadSum","arguments":[]}"#,
        r#"{"type":1,"streamIds":"s","invocationId":"1","target":"UploadSum","arguments":[]}"#,
        r#"{"type":3,"invocationId":"1","error":"e","result":1}"#,
        r#"{"type":3}"#,
        r#"{"type":2,"invocationId":"nope"}"#,
        r#"{"type":2,"item":1}"#,
        r#"{"type":5}"#,
        r#"{"type":8}"#,
        r#"{"type":9}"#,
        r#"{"type":9,"sequenceId":"1"}"#,
        r#"{"type":7,"error":null}"#,
        // `handshake-twice`, and the last two of `json-surrogates`.
        r#"{"protocol":"json","version":1}"#,
        "{\"type\":1,\"invocationId\":\"1\",\"target\":\"Echo\",\"arguments\":[\"a\tb\"]}",
        r#"{"type":1,"invocationId":"1","target":"Ec\ud83dho","arguments":["a"]}"#,
    ] {
        assert!(matches!(decode(record), Err(ProtocolError::Malformed(_))), "{record}");
    }
}

/// The recording `json-depth`.
#[test]
fn nesting_is_bounded_for_the_whole_record() {
    for (levels, served) in [(60, true), (61, true), (62, true), (63, false), (64, false), (66, false)] {
        let nested = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let record = format!(r#"{{"type":1,"target":"EchoAny","arguments":[{nested}]}}"#);
        assert_eq!(decode(&record).is_ok(), served, "{levels}");
        let record = format!(r#"{{"type":6,"unknown":[{nested}]}}"#);
        assert_eq!(decode(&record).is_ok(), served, "{levels} in a member that is not known");
    }
}

/// The recording `json-surrogates`: such an argument fails its call alone.
#[test]
fn a_text_that_is_none_is_found_when_it_is_read() {
    for argument in [r#""a\ud83db""#.as_bytes(), r#""a\ude00b""#.as_bytes(), b"\"a\xffb\""] {
        let record = [br#"{"type":1,"target":"Echo","arguments":["#, argument, b"]}"].concat();
        let Ok(ClientMessage::Invocation(call)) = decode(&record) else { panic!("{argument:?}") };
        assert_eq!(call.arguments, [argument]);
        assert!(read::<String>(&call.arguments[0]).is_err());
    }
    assert_eq!(read::<String>(br#""a\u0000b""#).unwrap(), "a\0b");
}

/// The recording `json-numbers`: which arguments are an int.
#[test]
fn only_integers_in_range_are_integers() {
    for (argument, expected) in [("2147483647", i32::MAX), ("-2147483648", i32::MIN), ("0", 0), (" 1 ", 1)] {
        assert_eq!(read::<i32>(argument.as_bytes()).ok(), Some(expected), "{argument}");
    }
    for argument in [
        "2147483648",
        "1.0",
        "1e2",
        "1E0",
        "\"1\"",
        "9007199254740993",
        "1e400",
        "true",
        "[1]",
        "1 2",
        "",
        "null",
    ] {
        assert!(read::<i32>(argument.as_bytes()).is_err(), "{argument}");
    }
}

/// The recording `json-objects`: values that a method hands back without looking at them. (`-0` as an integer of
/// `serde_json` has no sign, so raw values stand in for .NET's `JsonElement`.)
#[test]
fn raw_values_come_back_normalized() {
    for (argument, expected) in [
        (
            r#"{"A":{"b":[1,2.5,null,true,"x"]},"__proto__":1}"#,
            r#"{"A":{"b":[1,2.5,null,true,"x"]},"__proto__":1}"#,
        ),
        ("null", "null"),
        ("[1, [2, [3]]]", "[1,[2,[3]]]"),
        (r#""<&>+'é\u00e9\ud83d\ude00""#, r#""<&>+'éé\uD83D\uDE00""#),
        ("1.0", "1.0"),
        ("1e2", "1e2"),
        (r#"{ "a" : 1 , "b" : [ 1 , 2 ] }"#, r#"{"a":1,"b":[1,2]}"#),
        ("-0", "-0"),
        ("0.1000", "0.1000"),
        ("12345678901234567890123456789", "12345678901234567890123456789"),
        ("1e400", "1e400"),
        (r#""\/\b\f\n\r\t\u0041""#, r#""/\b\f\n\r\tA""#),
        (r#"{"a\u0062":"\u003c"}"#, r#"{"ab":"<"}"#),
    ] {
        let record = format!(r#"{{"type":1,"target":"EchoAny","arguments":[{argument}]}}"#);
        let Ok(ClientMessage::Invocation(call)) = decode(&record) else { panic!("{argument}") };
        let raw: Box<RawValue> = read(&call.arguments[0]).unwrap();
        assert_eq!(value(raw), expected);
    }
    let lone: Box<RawValue> = read(br#""\ud83d""#).unwrap();
    let outcome = ServerOutcome::Value(&lone);
    assert!(Json.encode(&ServerMessage::Completion { id: "1", outcome }, &mut BytesMut::new()).is_err());
}

/// The recording `json-escape-out`.
#[test]
fn strings_are_escaped_as_dotnet_does_it() {
    let control: String = ('\0'..' ').collect();
    assert_eq!(
        value(&control),
        concat!(
            r#""\u0000\u0001\u0002\u0003\u0004\u0005\u0006\u0007\b\t\n\u000B\f\r\u000E\u000F\u0010\u0011\u0012\u0013"#,
            r#"\u0014\u0015\u0016\u0017\u0018\u0019\u001A\u001B\u001C\u001D\u001E\u001F""#
        )
    );
    let ascii: String = (' '..='\u{7f}').collect();
    assert_eq!(
        value(&ascii),
        concat!(
            r##"" !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`"##,
            r#"abcdefghijklmnopqrstuvwxyz{|}~\u007F""#
        )
    );
    let latin: String = ('\u{80}'..='\u{bf}').collect();
    let escaped: String = (0x80..=0xA0).map(|code| format!("\\u{code:04X}")).collect();
    let literal: String = ('\u{a1}'..='\u{bf}').collect();
    assert_eq!(value(&latin), format!("\"{escaped}{literal}\""));
    assert_eq!(value("éßñÿĀ"), "\"éßñÿĀ\"");
    assert_eq!(
        value(
            "\u{2028}|\u{2029}|\u{200b}|\u{200e}|\u{feff}|\u{fffe}|\u{ffff}|\u{e000}|\u{378}|\u{ad}|\u{3000}|中|\u{e01}|\u{5d0}|\u{fffd}"
        ),
        "\"\\u2028|\\u2029|\u{200b}|\u{200e}|\\uFEFF|\\uFFFE|\\uFFFF|\\uE000|\\u0378|\u{ad}|\\u3000|中|\u{e01}|\u{5d0}|\u{fffd}\""
    );
    assert_eq!(
        value("\u{1F600}|\u{1D4B3}|\u{10FFFF}|\u{E0001}|\u{20000}"),
        r#""\uD83D\uDE00|\uD835\uDCB3|\uDBFF\uDFFF|\uDB40\uDC01|\uD840\uDC00""#
    );
    assert_eq!(value("e\u{301} \u{600}"), "\"e\u{301} \u{600}\"");
}

/// The recording `json-escape-everywhere`.
#[test]
fn every_text_of_an_envelope_is_escaped() {
    let error = "Failed to invoke 'No\"such<é\u{1F600}'&+\u{2028}' due to an error on the server. HubException: Method does not exist.";
    assert_eq!(
        encode(&ServerMessage::Completion { id: "i\"<é\u{1F600}'&+", outcome: ServerOutcome::Error(error) }),
        r#"{"type":3,"invocationId":"i\"<é\uD83D\uDE00'&+","error":"Failed to invoke 'No\"such<é\uD83D\uDE00'&+\u2028' due to an error on the server. HubException: Method does not exist."}"#
    );
    assert_eq!(
        invocation("m", &("<é\u{1F600}'&+\"\\",)),
        r#"{"type":1,"target":"m","arguments":["<é\uD83D\uDE00'&+\"\\"]}"#
    );
    assert_eq!(
        invocation("ReceiveMessage", &("<é", "\u{2028}'")),
        r#"{"type":1,"target":"ReceiveMessage","arguments":["<é","\u2028'"]}"#
    );
}

/// The recording `types` (Redis), and the shapes of section 5.6.
#[test]
fn messages_are_written_as_dotnet_writes_them() {
    assert_eq!(
        invocation("t", &(1.5, 1.5f32, 0.1, 0.1f32, 3.0, -0.0, 1e300, 1e21)),
        r#"{"type":1,"target":"t","arguments":[1.5,1.5,0.1,0.1,3,-0,1E+300,1E+21]}"#
    );
    assert_eq!(
        invocation("t", &(i32::MAX, i32::MIN, u32::MAX, i64::MAX, i64::MIN, u64::MAX, true, ())),
        r#"{"type":1,"target":"t","arguments":[2147483647,-2147483648,4294967295,9223372036854775807,-9223372036854775808,18446744073709551615,true,null]}"#
    );
    assert_eq!(invocation("t", &()), r#"{"type":1,"target":"t","arguments":[]}"#);
    assert_eq!(
        encode(&ServerMessage::Invocation { id: Some("s1"), target: "Answer", arguments: &("q",) }),
        r#"{"type":1,"invocationId":"s1","target":"Answer","arguments":["q"]}"#
    );
    let completion = |outcome| encode(&ServerMessage::Completion { id: "123", outcome });
    assert_eq!(completion(ServerOutcome::Void), r#"{"type":3,"invocationId":"123"}"#);
    assert_eq!(completion(ServerOutcome::Value(&())), r#"{"type":3,"invocationId":"123","result":null}"#);
    assert_eq!(
        completion(ServerOutcome::Error("Whoops!")),
        r#"{"type":3,"invocationId":"123","error":"Whoops!"}"#
    );
    assert_eq!(encode(&ServerMessage::Ping), r#"{"type":6}"#);
    let close = |error, allow_reconnect| encode(&ServerMessage::Close { error, allow_reconnect });
    assert_eq!(close(None, false), r#"{"type":7}"#);
    assert_eq!(close(Some(""), false), r#"{"type":7,"error":""}"#);
    assert_eq!(close(Some("Error!"), true), r#"{"type":7,"error":"Error!","allowReconnect":true}"#);
}
