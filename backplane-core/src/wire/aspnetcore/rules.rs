//! The rules of spec/signalr.md section 2 that no vector shows: what is read leniently, what is refused, what the layout
//! cannot say, how channels and ids look.

use bytes::Bytes;

use super::golden::bytes;
use super::*;
use crate::AbortReason;
use crate::id::Protocol;
use crate::message::ClientResult;
use crate::wire::{Beat, Completion};

#[test]
fn payloads_are_slices_of_the_frame() {
    let frame = bytes("92 90 81 A4 6A 73 6F 6E C4 03 01 02 03");
    let blob = Invocation::decode(&frame).unwrap().message.get(&Protocol::JSON).unwrap().clone();
    assert_eq!(blob.as_ptr(), frame[10..].as_ptr());

    let blob = Bytes::from_static(b"{\"type\":3,\"result\":\t[1],\"invocationId\":\"i\"}\x1E");
    let Some((_, Completion::Answered { result: ClientResult::Value { value, .. }, .. })) =
        read_completion(&Protocol::JSON, &blob).unwrap()
    else {
        panic!("a value")
    };
    assert_eq!((&value[..], value.as_ptr()), (&b"\t[1]"[..], blob[19..].as_ptr()));
}

#[test]
fn too_few_items_are_named_as_dotnet_names_them() {
    fn context<T: std::fmt::Debug>(result: Result<T>) -> String {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Malformed);
        error.context().unwrap().to_owned()
    }
    assert_eq!(context(Invocation::decode(&bytes("91 90"))), "Insufficient items in Invocation array.");
    assert_eq!(
        context(GroupCommand::decode(&bytes("94 01 A0 01 A0"))),
        "Insufficient items in GroupCommand array."
    );
    assert_eq!(context(Ack::decode(&bytes("90"))), "Insufficient items in Ack array.");
    assert_eq!(
        context(CompletionEnvelope::decode(&bytes("91 A0"))),
        "Insufficient items in Completion array."
    );
}

#[test]
fn a_group_command_of_another_action_changes_nothing_and_a_nil_connection_is_malformed() {
    let wire = AspNetCore::new("", None);
    let route = Route::GroupCommands("Hub".into());
    for action in ["00", "03", "CC FF"] {
        let command = bytes(&format!("95 01 A1 53 {action} A1 47 A1 43"));
        let body = wire.decode(&route, command).unwrap().body;
        assert!(matches!(body, Inbound::NoChange { ack: AckId(1), .. }), "{action}: {body:?}");
    }
    for wrong in ["95 01 A1 53 CD 01 2C A1 47 A1 43", "95 01 A1 53 FF A1 47 A1 43", "95 01 A1 53 01 A1 47 C0"]
    {
        assert_eq!(wire.decode(&route, bytes(wrong)).unwrap_err().kind(), ErrorKind::Malformed, "{wrong}");
    }
    let Inbound::ChangeGroup { reply, change, .. } =
        wire.decode(&route, bytes("95 01 C0 01 C0 A1 43")).unwrap().body
    else {
        panic!("a command")
    };
    assert_eq!(reply, ReplyTo("Hub:internal:ack:".into()), "a nil server is the empty name");
    assert_eq!(change.group.as_str(), "", "a nil group is the empty name");
}

#[test]
fn excluded_ids_count_on_all_and_groups_only() {
    let wire = AspNetCore::new("", None);
    let frame = bytes("92 92 A1 61 C0 80");
    let hub = HubName::from("Hub");
    for (route, expected) in [
        (Route::All(hub.clone()), vec![ConnectionId::from("a")]),
        (Route::Group(hub.clone(), "g".into()), vec!["a".into()]),
        (Route::User(hub.clone(), "u".into()), vec![]),
        (Route::Connection(hub, "a".into()), vec![]),
    ] {
        let Inbound::Message { except, .. } = wire.decode(&route, frame.clone()).unwrap().body else {
            panic!("a message")
        };
        assert_eq!(except, expected, "{route:?}");
    }
}

#[test]
fn a_question_without_id_or_channel_is_a_plain_message() {
    let wire = AspNetCore::new("", None);
    let route = Route::Connection("Hub".into(), "c".into());
    for payload in ["93 90 80 A1 78", "94 90 80 C0 A1 78", "94 90 80 A0 A1 78", "94 90 80 A1 78 C0"] {
        let body = wire.decode(&route, bytes(payload)).unwrap().body;
        assert!(matches!(body, Inbound::Message { .. }), "{payload}: {body:?}");
    }
    assert_eq!(
        wire.decode(&route, bytes("94 90 80 01 02")).unwrap_err().kind(),
        ErrorKind::Malformed,
        "wrong types spoil the whole message"
    );
    let foreign = wire.decode(&route, bytes("95 90 80 A1 78 A1 79 C3")).unwrap().body;
    let Inbound::Invoke { reply, .. } = foreign else { panic!("a question") };
    assert_eq!(reply, ReplyTo("y".into()));
}

#[test]
fn of_a_hostile_map_only_so_many_encodings_are_kept() {
    let mut frame = bytes("92 90 DE 01 00").to_vec();
    for name in 0..=255_u8 {
        frame.extend([0xD9, 2, b'a' + name / 26, b'a' + name % 26, 0xC4, 0]);
    }
    let invocation = Invocation::decode(&frame.into()).unwrap();
    assert_eq!(invocation.message.encodings().len(), 32);
}

#[test]
fn lengths_beyond_the_frame_are_refused_without_room_for_them() {
    for hostile in
        ["DD FF FF FF FF", "92 DD FF FF FF FF", "92 90 DF 7F FF FF FF", "92 90 81 A1 61 C6 7F FF FF FF"]
    {
        assert_eq!(
            Invocation::decode(&bytes(hostile)).unwrap_err().kind(),
            ErrorKind::Malformed,
            "{hostile}"
        );
    }
}

fn read(protocol: Protocol, blob: impl Into<Bytes>) -> Result<Option<(InvocationId, Completion)>> {
    read_completion(&protocol, &blob.into())
}

#[test]
fn a_json_completion_is_read_as_dotnet_reads_it() {
    let value = |text: &'static str| Completion::answered(ClientResult::value(Protocol::JSON, text));
    let failed = |text: &str| Completion::answered(ClientResult::error(text));
    for (record, expected) in [
        (r#"{"type":3,"invocationId":"i"}"#, Completion::answered(ClientResult::Void)),
        (r#"{"type":3,"invocationId":"i","result":null}"#, value("null")),
        (
            r#"{"result" : { "z":"\u00e9é" } , "x":[{}], "invocationId":"i", "type":3}"#,
            value(r#" { "z":"\u00e9é" }"#),
        ),
        (r#"{"type":3,"headers": { },"invocationId":"i","result":1}"#, value("1")),
        (
            r#"{"type":6,"type":3,"invocationId":"x","invocationId":"\u0069","result":1,"result":2}"#,
            value("2"),
        ),
        (r#"{"type":3,"invocationId":"i","error":"\"no\" \u00e9"}"#, failed("\"no\" é")),
        (r#"{"type":3,"invocationId":"i","error":"Connection disconnected."}"#, Completion::Disconnected),
        (r#"{"type":3,"invocationId":"i","result":1} and text behind it"#, value("1")),
    ] {
        let (id, completion) = read(Protocol::JSON, format!("{record}\x1E more")).unwrap().unwrap();
        assert_eq!((id.as_str(), completion), ("i", expected), "{record}");
    }
    for record in [
        r#"{"type":3,"invocationId":"i","error":"a","result":1}"#,
        r#"{"type":3,"invocationId":"i","error":null}"#,
        r#"{"type":3,"headers":null,"invocationId":"i","result":1}"#,
        r#"{"type":3,"headers":["h"],"invocationId":"i","result":1}"#,
        r#"{"type":3,"invocationId":"i","result":1,"headers":{"h":1}}"#,
    ] {
        let (_, completion) = read(Protocol::JSON, format!("{record}\x1E")).unwrap().unwrap();
        assert!(matches!(completion, Completion::Unreadable(_)), "{record}: {completion:?}");
    }
    assert_eq!(read(Protocol::JSON, "{\"type\":6}\x1E").unwrap(), None, "a ping");
    for record in [
        "",
        "\x1E",
        "not json\x1E",
        "{\"type\":3",
        "{\"type\":3}\x1E",
        "{}\x1E",
        "[]\x1E",
        "null\x1E",
        "{\"type\":\"3\",\"invocationId\":\"i\"}\x1E",
        "{\"type\":3,\"invocationId\":null}\x1E",
        "{\"type\":3,\"invocationId\":7}\x1E",
        "\u{FEFF}{\"type\":3,\"invocationId\":\"i\"}\x1E",
        "{\"type\":3,\"invocationId\":\"i\",\"result\":[}\x1E",
    ] {
        assert_eq!(
            read(Protocol::JSON, record.to_owned()).unwrap_err().kind(),
            ErrorKind::Malformed,
            "{record:?}"
        );
    }
}

#[test]
fn a_messagepack_completion_is_read_as_dotnet_reads_it() {
    let value = |hex: &str| Completion::answered(ClientResult::value(Protocol::MESSAGEPACK, bytes(hex)));
    for (body, expected) in [
        ("94 03 80 A1 69 02", Completion::answered(ClientResult::Void)),
        ("95 03 80 A1 69 03 C0", value("C0")),
        ("95 CC 03 DE 00 00 DA 00 01 69 CC 03 D2 00 00 00 01", value("D2 00 00 00 01")),
        ("96 03 80 A1 69 03 92 01 81 A1 61 C7 01 05 00 C3", value("92 01 81 A1 61 C7 01 05 00")),
        ("95 03 80 A1 69 01 A2 6E 6F", Completion::answered(ClientResult::error("no"))),
    ] {
        let body = bytes(body);
        let framed = [&[body.len() as u8 | 0x80, 0][..], &body, b"more"].concat();
        let (id, completion) = read(Protocol::MESSAGEPACK, framed).unwrap().unwrap();
        assert_eq!((id.as_str(), completion), ("i", expected), "{body:02X?}");
    }
    for body in [
        "95 03 80 A1 69 04 01",
        "95 03 80 A1 69 01 05",
        "95 03 80 A1 69 01 C0",
        "95 03 80 A1 69 03 C1",
        "95 03 80 A1 69 03",
        "94 03 80 A1 69 03",
        "93 03 80 A1 69",
        "95 03 80 A1 69 A1 78 01",
        "95 03 81 A1 68 01 A1 69 03 01",
        "95 03 81 C0 A1 76 A1 69 03 01",
    ] {
        let body = bytes(body);
        let framed = [&[body.len() as u8][..], &body].concat();
        let (_, completion) = read(Protocol::MESSAGEPACK, framed).unwrap().unwrap();
        assert!(matches!(completion, Completion::Unreadable(_)), "{body:02X?}: {completion:?}");
    }
    assert_eq!(read(Protocol::MESSAGEPACK, bytes("02 91 06")).unwrap(), None, "a ping");
    for framed in [
        "",
        "80",
        "80 80 80 80 80 00",
        "FF FF FF FF 0F 94",
        "06 94 03 80 A1 69",
        "01 C0",
        "06 94 03 C0 A1 69 02",
        "05 94 03 80 C0 02",
    ] {
        let error = read(Protocol::MESSAGEPACK, bytes(framed)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Malformed, "{framed}");
    }
}

#[test]
fn headers_are_forwarded_as_the_client_wrote_them() {
    // As written, and with a value, without one and with an error behind them.
    let json = r#"{ "h":"\u0076", "g" : "" }"#;
    let messagepack = bytes("DE 00 01 D9 01 68 A1 76");
    for (protocol, headers, value) in [
        (Protocol::JSON, Bytes::from_static(json.as_bytes()), Bytes::from_static(b"1")),
        (Protocol::MESSAGEPACK, messagepack, bytes("01")),
    ] {
        for result in
            [ClientResult::value(protocol.clone(), value), ClientResult::Void, ClientResult::error("no")]
        {
            let answer = Completion::Answered { result: result.clone(), headers: Some(headers.clone()) };
            let (_, with) = write_completion(&protocol, &"i".into(), &answer);
            let (_, without) = write_completion(&protocol, &"i".into(), &Completion::answered(result));
            let expected = if protocol == Protocol::JSON {
                let rest = without.strip_prefix(br#"{"type":3"#).unwrap();
                [br#"{"type":3,"headers":"#, &headers[..], rest].concat()
            } else {
                // The length in front, and the map of no headers, which is one byte.
                let length = without[0] + headers.len() as u8 - 1;
                [&[length][..], &without[1..3], &headers, &without[4..]].concat()
            };
            assert_eq!(with, expected, "{answer:?}");
            let Some((_, read)) = read(protocol.clone(), with.clone()).unwrap() else { panic!("an answer") };
            assert_eq!(read, answer);
            let Completion::Answered { headers: Some(slice), .. } = read else { panic!("headers") };
            assert!(with.as_ptr_range().contains(&slice.as_ptr()), "a slice of the blob");
        }
    }
    let last = r#"{"headers":{"h":"1"},"type":3,"invocationId":"i","headers":{"h":"2"}}"#;
    let (_, completion) = read(Protocol::JSON, format!("{last}\x1E")).unwrap().unwrap();
    let headers = Some(Bytes::from_static(br#"{"h":"2"}"#));
    assert_eq!(completion, Completion::Answered { result: ClientResult::Void, headers });
}

#[test]
fn headers_in_another_encoding_than_the_answers_are_left_out() {
    let headers = Some(Bytes::from_static(b"\x81\xA1h\xA1v"));
    for (asked, result) in [
        (Protocol::MESSAGEPACK, ClientResult::value(Protocol::JSON, "1")),
        (Protocol::named("other"), ClientResult::Void),
    ] {
        let answer = Completion::Answered { result: result.clone(), headers: headers.clone() };
        let (protocol, blob) = write_completion(&asked, &"i".into(), &answer);
        assert_eq!(protocol, Protocol::JSON);
        assert_eq!(read(protocol, blob).unwrap().unwrap().1, Completion::answered(result));
    }
}

#[test]
fn headers_are_never_printed() {
    let headers = Some(Bytes::from_static(br#"{"h":"secret"}"#));
    let printed = format!("{:?}", Completion::Answered { result: ClientResult::Void, headers });
    assert_eq!(printed, "Answered(Void, headers of 14 bytes)");
}

#[test]
fn a_result_of_any_depth_is_passed_over() {
    const DEPTH: usize = 1_000_000;
    let json = format!(
        "{{\"type\":3,\"invocationId\":\"i\",\"result\":{}{}}}\x1E",
        "[".repeat(DEPTH),
        "]".repeat(DEPTH)
    );
    let nested = [vec![0x91; DEPTH], vec![0xC0]].concat();
    let (_, messagepack) = write_completion(
        &Protocol::MESSAGEPACK,
        &"i".into(),
        &Completion::answered(ClientResult::value(Protocol::MESSAGEPACK, nested)),
    );
    for (protocol, blob, length) in
        [(Protocol::JSON, json.into(), 2 * DEPTH), (Protocol::MESSAGEPACK, messagepack, DEPTH + 1)]
    {
        let Some((_, Completion::Answered { result: ClientResult::Value { value, .. }, .. })) =
            read(protocol, blob).unwrap()
        else {
            panic!("a value")
        };
        assert_eq!(value.len(), length);
    }
}

#[test]
fn a_client_result_of_an_unknown_protocol_is_refused_by_name() {
    for name in ["nosuch", "JSON"] {
        let error = read(Protocol::named(name), "{\"type\":3,\"invocationId\":\"i\"}\x1E").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Malformed);
        assert!(error.context().unwrap().contains(name), "{error}");
    }
}

#[test]
fn an_answer_that_cannot_be_carried_still_ends_the_wait() {
    let other = Protocol::named("other");
    let answers = [
        Completion::answered(ClientResult::value(other.clone(), "x")),
        Completion::answered(ClientResult::error("no")),
        Completion::answered(ClientResult::Void),
        Completion::NotFound,
        Completion::Unreadable("text".to_owned()),
    ];
    let read_back = answers.map(|completion| {
        let (protocol, blob) = write_completion(&other, &"i".into(), &completion);
        assert_eq!(protocol, Protocol::JSON);
        read(protocol, blob).unwrap().unwrap().1
    });
    let [Completion::Answered { result: ClientResult::Error(text), headers: None }, rest @ ..] = read_back
    else {
        panic!("an error first")
    };
    assert!(text.contains("'other'"), "{text}");
    assert_eq!(
        rest,
        [
            Completion::answered(ClientResult::error("no")),
            Completion::answered(ClientResult::Void),
            Completion::Disconnected,
            Completion::answered(ClientResult::error("text")),
        ]
    );
}

#[test]
fn what_the_layout_cannot_say_is_unsupported() {
    let wire = AspNetCore::new("", None);
    let (hub, connection, user) = (HubName::from("Hub"), ConnectionId::from("c"), UserId::from("u"));
    let (message, reply, id) = (EncodedMessage::json("{}"), ReplyTo("t".into()), InvocationId::from("i"));
    let except = [connection.clone()];
    let beat = Beat { leaving: false, seq: 0, topics: vec![] };
    let refused = [
        Command::Send { to: Recipient::User(&user), except: &except, message: &message },
        Command::Send { to: Recipient::Connection(&connection), except: &except, message: &message },
        Command::Send { to: Recipient::Node(wire.node(), &except), except: &[], message: &message },
        Command::Ack { to: &reply, ack: AckId(1), outcome: AckOutcome::NotFound },
        Command::Ack { to: &reply, ack: AckId(1), outcome: AckOutcome::Failed },
        Command::Ack { to: &reply, ack: AckId(1 << 31), outcome: AckOutcome::Done },
        Command::CancelInvoke { connection: &connection, id: &id },
        Command::Abort { ack: AckId(1), connection: &connection, reason: &AbortReason::default() },
        Command::Beat(&beat),
    ];
    for command in refused {
        let what = format!("{command:?}");
        let error = wire.encode(&hub, command).unwrap_err();
        assert_eq!((error.kind(), error.context().is_some()), (ErrorKind::Unsupported, true), "{what}");
    }
    let others = [ConnectionId::from("other")];
    let sent = Command::Send { to: Recipient::Connection(&connection), except: &others, message: &message };
    assert_eq!(&wire.encode(&hub, sent).unwrap().frame[..2], &bytes("92 90")[..], "no exception is written");
}

#[test]
fn channels_are_named_as_dotnet_names_them() {
    let wire = AspNetCore::new("app1:", Some("HOST_1".to_owned()));
    let hub = HubName::from("Demo.ChatHub");
    let topics: Vec<_> = wire.hub_topics(&hub).into_iter().map(|(topic, _)| topic.to_string()).collect();
    assert_eq!(
        topics,
        [
            "app1:Demo.ChatHub:all",
            "app1:Demo.ChatHub:internal:groups",
            "app1:Demo.ChatHub:internal:ack:HOST_1",
            "app1:Demo.ChatHub:internal:return:HOST_1",
        ]
    );
    assert_eq!(wire.group_topic(&hub, &"a:*".into()), "app1:Demo.ChatHub:group:a:*".into());
    assert_eq!(wire.user_topic(&hub, &"u".into()), "app1:Demo.ChatHub:user:u".into());
    assert_eq!(wire.connection_topic(&hub, &"c".into()), Some("app1:Demo.ChatHub:connection:c".into()));
    assert!(wire.node_topics().is_empty());
    assert_eq!(wire.home(&hub, &"c".into()), Home::Unknown);
}

#[test]
fn ids_have_the_lengths_that_dotnet_gives_them_and_acks_wrap() {
    let wire = AspNetCore::new("", None);
    assert!(
        wire.server_name().len() == 37 && wire.server_name().starts_with("rust_"),
        "{}",
        wire.server_name()
    );
    assert_ne!(wire.server_name(), AspNetCore::new("", None).server_name());
    let (id, other) = (wire.new_connection_id(), wire.new_connection_id());
    assert!(id != other && id.as_str().len() == 22, "{id}");
    assert!(
        id.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')),
        "{id}"
    );
    let (id, other) = (wire.new_invocation_id(), wire.new_invocation_id());
    assert!(id != other && id.as_str().len() == 22, "{id}");
    assert_eq!([wire.new_ack_id(), wire.new_ack_id()], [AckId(1), AckId(2)]);
    wire.last_ack.store(i32::MAX, Ordering::Relaxed);
    assert_eq!(
        [wire.new_ack_id(), wire.new_ack_id()],
        [AckId(i32::MIN.into()), AckId(i64::from(i32::MIN) + 1)]
    );
}
