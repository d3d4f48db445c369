//! The golden vectors G1-G20 of spec/signalr.md section 2.5, both ways.

use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::id::Protocol;
use crate::message::{ClientResult, Membership};
use crate::wire::Completion;

pub(super) fn bytes(hex: &str) -> Bytes {
    let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect::<Vec<_>>().into()
}

fn message<const N: usize>(blobs: [(&str, &[u8]); N]) -> EncodedMessage {
    EncodedMessage::new(
        blobs.map(|(protocol, blob)| (Protocol::named(protocol), Bytes::copy_from_slice(blob))),
    )
}

fn excluding<const N: usize>(excluded: [&str; N], message: EncodedMessage) -> Invocation {
    Invocation { excluded: excluded.map(ConnectionId::from).to_vec(), message, ..Invocation::default() }
}

/// G14's invocation id.
const ID: &str = "AQIDBAUGBwgJCgsMDQ4PEA";

#[test]
fn acks_g1_to_g5_and_g20_both_ways() {
    for (id, hex) in [
        (0, "91 00"),
        (42, "91 2A"),
        (180, "91 CC B4"),
        (384, "91 CD 01 80"),
        (70_000, "91 CE 00 01 11 70"),
        (-1, "91 FF"),
        (-33, "91 D0 DF"),
        (i32::MAX, "91 CE 7F FF FF FF"),
        (i32::MIN, "91 D2 80 00 00 00"),
    ] {
        assert_eq!(Ack { id }.encode(), bytes(hex), "{id}");
        assert_eq!(Ack::decode(&bytes(hex)).unwrap(), Ack { id });
    }
}

#[test]
fn group_commands_g6_g7_g18_g19_both_ways() {
    let command = |id, server: &str, membership, group: &str, connection: &str| GroupCommand {
        id,
        server: server.to_owned(),
        action: GroupCommand::action_of(membership),
        group: group.into(),
        connection: connection.into(),
    };
    let server = "MyServerName_02db60e5fab243b890a847fa5c4dcb29";
    for (command, hex) in [
        (command(42, "S", Membership::Join, "G", "C"), "95 2A A1 53 01 A1 47 A1 43"),
        (command(42, "S", Membership::Leave, "G", "C"), "95 2A A1 53 02 A1 47 A1 43"),
        (
            command(1, server, Membership::Join, "room", "abcdefghijklmnopqrstuv"),
            "95 01 D9 2D 4D 79 53 65 72 76 65 72 4E 61 6D 65 5F 30 32 64 62 36 30 65 35 66 61 62 32 34 33 62 38 39 \
             30 61 38 34 37 66 61 35 63 34 64 63 62 32 39 01 A4 72 6F 6F 6D B6 61 62 63 64 65 66 67 68 69 6A 6B 6C \
             6D 6E 6F 70 71 72 73 74 75 76",
        ),
        (command(300, "S", Membership::Leave, "é", "C"), "95 CD 01 2C A1 53 02 A2 C3 A9 A1 43"),
    ] {
        assert_eq!(command.encode(), bytes(hex), "{command:?}");
        assert_eq!(GroupCommand::decode(&bytes(hex)).unwrap(), command);
    }
}

#[test]
fn invocations_g8_to_g10_and_g13_both_ways() {
    let dummies = || message([("p1", &[0x2A]), ("p2", &[0x2A])]);
    let hello_json = b"{\"type\":1,\"target\":\"Hello\",\"arguments\":[\"World\"]}\x1E";
    let hello_messagepack = bytes("12 96 01 80 C0 A5 48 65 6C 6C 6F 91 A5 57 6F 72 6C 64 90");
    for (invocation, hex) in [
        (excluding([], dummies()), "92 90 82 A2 70 31 C4 01 2A A2 70 32 C4 01 2A"),
        (excluding(["a"], dummies()), "92 91 A1 61 82 A2 70 31 C4 01 2A A2 70 32 C4 01 2A"),
        (
            excluding(["a", "b", "c", "d", "e", "f"], dummies()),
            "92 96 A1 61 A1 62 A1 63 A1 64 A1 65 A1 66 82 A2 70 31 C4 01 2A A2 70 32 C4 01 2A",
        ),
        (
            excluding([], message([("json", hello_json), ("messagepack", &hello_messagepack)])),
            "92 90 82 A4 6A 73 6F 6E C4 32 7B 22 74 79 70 65 22 3A 31 2C 22 74 61 72 67 65 74 22 3A 22 48 65 6C 6C \
             6F 22 2C 22 61 72 67 75 6D 65 6E 74 73 22 3A 5B 22 57 6F 72 6C 64 22 5D 7D 1E AB 6D 65 73 73 61 67 65 \
             70 61 63 6B C4 13 12 96 01 80 C0 A5 48 65 6C 6C 6F 91 A5 57 6F 72 6C 64 90",
        ),
        (excluding([], EncodedMessage::default()), "92 90 80"),
    ] {
        assert_eq!(invocation.encode(), bytes(hex), "{invocation:?}");
        assert_eq!(Invocation::decode(&bytes(hex)).unwrap(), invocation);
    }
}

#[test]
fn question_g14_and_its_completions_g15_to_g17_both_ways() {
    let question = bytes(
        "94 90 81 AB 6D 65 73 73 61 67 65 70 61 63 6B C4 29 28 96 01 80 B6 41 51 49 44 42 41 55 47 42 77 67 4A 43 \
         67 73 4D 44 51 34 50 45 41 A6 52 65 73 75 6C 74 91 A4 74 65 73 74 90 B6 41 51 49 44 42 41 55 47 42 77 67 \
         4A 43 67 73 4D 44 51 34 50 45 41 B6 48 75 62 3A 69 6E 74 65 72 6E 61 6C 3A 72 65 74 75 72 6E 3A 53 31",
    );
    let blob = question.slice(17..17 + 0x29);
    let wire = AspNetCore::new("app:", Some("S1".to_owned()));
    let (hub, connection) = (HubName::from("Hub"), ConnectionId::from("c"));
    let sent = wire
        .encode(
            &hub,
            Command::Invoke {
                connection: &connection,
                id: &ID.into(),
                message: &message([("messagepack", &blob)]),
                timeout: Duration::from_secs(30),
            },
        )
        .unwrap();
    assert_eq!((sent.topic, sent.frame.freeze()), (Topic::from("app:Hub:connection:c"), question.clone()));

    let route = Route::Connection(hub.clone(), connection.clone());
    let Inbound::Invoke { id, reply, message, timeout: None, .. } =
        wire.decode(&route, question).unwrap().body
    else {
        panic!("a question")
    };
    assert_eq!((id.as_str(), message.get(&Protocol::MESSAGEPACK)), (ID, Some(&blob)));
    assert_eq!(reply, ReplyTo(Topic::from("app:Hub:internal:return:S1")), "prefixed on the bus");

    let id_hex = "41 51 49 44 42 41 55 47 42 77 67 4A 43 67 73 4D 44 51 34 50 45 41";
    let json_blob = format!("{{\"type\":3,\"invocationId\":\"{ID}\",\"result\":10}}\x1E");
    assert_eq!(json_blob.len(), 63);
    let json = [&bytes("92 A4 6A 73 6F 6E C4 3F")[..], json_blob.as_bytes()].concat();
    for (protocol, completion, payload) in [
        (
            Protocol::MESSAGEPACK,
            Completion::answered(ClientResult::value(Protocol::MESSAGEPACK, bytes("0A"))),
            bytes(&format!("92 AB 6D 65 73 73 61 67 65 70 61 63 6B C4 1D 1C 95 03 80 B6 {id_hex} 03 0A")),
        ),
        (
            Protocol::MESSAGEPACK,
            Completion::Disconnected,
            bytes(&format!(
                "92 AB 6D 65 73 73 61 67 65 70 61 63 6B C4 35 34 95 03 80 B6 {id_hex} 01 B8 43 6F 6E 6E 65 63 74 69 \
                 6F 6E 20 64 69 73 63 6F 6E 6E 65 63 74 65 64 2E"
            )),
        ),
        (Protocol::JSON, Completion::answered(ClientResult::value(Protocol::JSON, "10")), Bytes::from(json)),
    ] {
        let answer =
            Command::Complete { to: &reply, id: &ID.into(), protocol: &protocol, completion: &completion };
        let sent = wire.encode(&hub, answer).unwrap();
        assert_eq!((sent.topic, sent.frame.freeze()), (reply.0.clone(), payload.clone()), "{completion:?}");
        let received = wire.decode(&Route::Results(hub.clone()), payload).unwrap().body;
        assert_eq!(received, Inbound::Complete { id: ID.into(), completion });
    }
}

#[test]
fn completion_envelopes_g11_g12_both_ways_and_their_unframed_blobs() {
    let json = br#"{"type":3,"invocationId":"1","result":1}"#;
    let json_payload = [&bytes("92 A4 6A 73 6F 6E C4 28")[..], json].concat();
    let messagepack = bytes("95 03 80 A3 78 79 7A 03 2A");
    for (protocol, blob, payload) in [
        (Protocol::JSON, Bytes::from_static(json), Bytes::from(json_payload)),
        (
            Protocol::MESSAGEPACK,
            messagepack,
            bytes("92 AB 6D 65 73 73 61 67 65 70 61 63 6B C4 09 95 03 80 A3 78 79 7A 03 2A"),
        ),
    ] {
        let envelope = CompletionEnvelope { protocol, blob };
        assert_eq!(envelope.encode(), payload);
        assert_eq!(CompletionEnvelope::decode(&payload).unwrap(), envelope);
        // These vectors leave the framing out; as a client result such a blob is cut off.
        let error = read_completion(&envelope.protocol, &envelope.blob).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Malformed);
    }
}
