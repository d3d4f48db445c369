//! What goes in comes out.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn name() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), any::<String>(), "[a-z]{1,12}", "[a-z]{100,300}"]
}

fn connection_ids() -> impl Strategy<Value = Vec<ConnectionId>> {
    vec(prop_oneof!["[A-Za-z0-9_-]{22}", any::<String>()].prop_map(ConnectionId::from), 0..20)
}

/// Ids that some node has: any sixteen bytes.
fn live_connection() -> impl Strategy<Value = ConnectionId> {
    any::<[u8; 16]>().prop_map(|id| URL_SAFE_NO_PAD.encode(id).into())
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just("json".to_owned()), Just("messagepack".to_owned()), any::<String>()]
        .prop_map(|name| Protocol::named(&name))
}

fn payload() -> impl Strategy<Value = Bytes> {
    prop_oneof![vec(any::<u8>(), 0..200), vec(any::<u8>(), 16_380..16_390)].prop_map(Bytes::from)
}

fn message() -> impl Strategy<Value = EncodedMessage> {
    vec((protocol(), payload()), 0..4).prop_map(EncodedMessage::new)
}

fn millis() -> impl Strategy<Value = Duration> {
    (1..=u64::MAX).prop_map(Duration::from_millis)
}

fn completion() -> impl Strategy<Value = Completion> {
    prop_oneof![
        Just(Completion::answered(ClientResult::Void)),
        (protocol(), payload())
            .prop_map(|(protocol, value)| Completion::answered(ClientResult::value(protocol, value))),
        any::<String>().prop_map(|text| Completion::answered(ClientResult::error(text))),
        Just(Completion::Disconnected),
        Just(Completion::NotFound),
        any::<String>().prop_map(Completion::Unreadable),
    ]
}

/// Where answers to a frame of [`ORIGIN`] go.
fn reply() -> ReplyTo {
    ReplyTo(native(ORIGIN).node_topic.clone())
}

#[test]
fn headers_of_an_answer_are_not_carried() {
    let (hub, id) = (HubName::from("hub"), InvocationId::from("1"));
    for (result, headers) in
        [(ClientResult::Void, r#"{"h":"v"}"#), (ClientResult::value(Protocol::JSON, "1"), r#"{"g":""}"#)]
    {
        let frame = |completion: &Completion| {
            let to = &reply();
            let answer = Command::Complete { to, id: &id, protocol: &Protocol::JSON, completion };
            native(ORIGIN).encode(&hub, answer).unwrap()
        };
        let without = frame(&Completion::answered(result.clone()));
        assert_eq!(frame(&Completion::Answered { result, headers: Some(headers.into()) }), without);
    }
}

#[test]
fn every_sample_decodes_to_what_it_says() {
    for Sample { what, route, frame, says, .. } in samples() {
        let decoded = native(OTHER).decode(&route, frame).unwrap();
        assert_eq!(decoded.body, says, "{what}");
        assert_eq!(decoded.provenance, numbered(ORIGIN, 0x0102_0304_0506_0708, 0x1112_1314_1516_1718));
    }
}

#[test]
fn answers_go_to_the_topic_that_the_asker_subscribes() {
    let (asker, owner) = (Native::new("an app").unwrap(), Native::new("an app").unwrap());
    let connection = owner.new_connection_id();
    let abort = Command::Abort { ack: AckId(1), connection: &connection, reason: &AbortReason::default() };
    let draft = asker.encode(&"Hub".into(), abort).unwrap();
    assert_eq!(draft.topic, owner.node_topics()[1].0);

    let Inbound::Abort { reply, .. } = owner.decode(&Route::Node, draft.frame.freeze()).unwrap().body else {
        panic!("an abort was sent");
    };
    let ack = Command::Ack { to: &reply, ack: AckId(1), outcome: AckOutcome::Done };
    assert_eq!(owner.encode(&"Hub".into(), ack).unwrap().topic, asker.node_topics()[1].0);
}

#[test]
fn frames_are_allocated_in_their_exact_size() {
    let origin = native(ORIGIN);
    for size in [0, 1, 127, 128, 16_384, 100_000] {
        let message = EncodedMessage::json(vec![b'x'; size]);
        let send = Command::Send { to: Recipient::All, except: &[], message: &message };
        let frame = origin.encode(&"Hub".into(), send).unwrap().frame;
        assert_eq!(frame.len(), frame.capacity());
    }
}

#[test]
fn payloads_are_slices_of_the_frame() {
    let message = EncodedMessage::new([
        (Protocol::JSON, Bytes::from_static(b"first")),
        (Protocol::MESSAGEPACK, Bytes::from_static(b"second")),
    ]);
    let send = Command::Send { to: Recipient::All, except: &[], message: &message };
    let frame = native(ORIGIN).encode(&"Hub".into(), send).unwrap().frame.freeze();
    let within = frame.as_ptr_range();
    let decoded = native(OTHER).decode(&Route::All("Hub".into()), frame.clone()).unwrap();
    let Inbound::Message { message: arrived, .. } = decoded.body else { panic!("a message was sent") };
    assert_eq!(arrived, message);
    assert!(arrived.encodings().all(|(_, payload)| within.contains(&payload.as_ptr())));
}

#[test]
fn who_is_excepted_is_left_out_of_direct_messages() {
    let message = EncodedMessage::json("{}");
    let named = ["a", "b", "c"].map(ConnectionId::from);
    let send = Command::Send {
        to: Recipient::Node(OTHER, &named),
        except: &["b".into(), "z".into()],
        message: &message,
    };
    let Inbound::Direct { connections, .. } = carry(&"Hub".into(), send, &Route::Node) else {
        panic!("a direct message was sent");
    };
    assert_eq!(connections, ["a", "c"].map(ConnectionId::from));
}

#[test]
fn timeouts_are_rounded_up_to_milliseconds() {
    let (id, message) = (InvocationId::from("q"), EncodedMessage::json("{}"));
    for (given, arrives) in [
        (Duration::ZERO, Duration::from_millis(1)),
        (Duration::from_nanos(1), Duration::from_millis(1)),
        (Duration::from_millis(1), Duration::from_millis(1)),
        (Duration::new(1, 1), Duration::from_millis(1_001)),
        (Duration::MAX, Duration::from_millis(u64::MAX)),
    ] {
        let invoke =
            Command::Invoke { connection: &connection(), id: &id, message: &message, timeout: given };
        let Inbound::Invoke { timeout, .. } = carry(&"Hub".into(), invoke, &Route::Node) else {
            panic!("a question was sent");
        };
        assert_eq!(timeout, Some(arrives), "{given:?}");
    }
}

#[test]
fn more_encodings_than_a_frame_can_count_are_refused() {
    let many =
        |count| EncodedMessage::new((0..count).map(|n| (Protocol::named(&n.to_string()), Bytes::new())));
    let hub = HubName::from("Hub");
    let message = many(255);
    let send = Command::Send { to: Recipient::All, except: &[], message: &message };
    let arrived = carry(&hub, send, &Route::All(hub.clone()));
    assert_eq!(arrived, Inbound::Message { except: Vec::new(), message });

    let message = many(256);
    let send = Command::Send { to: Recipient::All, except: &[], message: &message };
    assert_eq!(native(ORIGIN).encode(&hub, send).unwrap_err().kind(), crate::ErrorKind::Unsupported);
}

#[test]
fn stamping_leaves_alone_what_is_no_frame() {
    let mut short = [7; 23];
    native(ORIGIN).stamp(&mut short, 1, 2);
    assert_eq!(short, [7; 23]);
}

proptest! {
    #[test]
    fn messages_for_audiences(
        hub in name(), name in name(), except in connection_ids(), message in message(), which in 0..3,
    ) {
        let hub = HubName::from(hub);
        let (group, user) = (GroupName::from(name.as_str()), UserId::from(name.as_str()));
        let (to, route) = match which {
            0 => (Recipient::All, Route::All(hub.clone())),
            1 => (Recipient::Group(&group), Route::Group(hub.clone(), group.clone())),
            _ => (Recipient::User(&user), Route::User(hub.clone(), user.clone())),
        };
        let arrived = carry(&hub, Command::Send { to, except: &except, message: &message }, &route);
        prop_assert_eq!(arrived, Inbound::Message { except, message });
    }

    #[test]
    fn direct_messages(hub in name(), connections in connection_ids(), message in message()) {
        let hub = HubName::from(hub);
        let to = Recipient::Node(OTHER, &connections);
        let arrived = carry(&hub, Command::Send { to, except: &[], message: &message }, &Route::Node);
        prop_assert_eq!(arrived, Inbound::Direct { hub, connections, message });
    }

    #[test]
    fn group_changes(
        hub in name(), ack: i64, connection in live_connection(), group in name(), join: bool,
        timeout in prop::option::of(millis()),
    ) {
        let hub = HubName::from(hub);
        let change = if join { MembershipChange::join } else { MembershipChange::leave };
        let change = MembershipChange { timeout, ..change(connection, GroupName::from(group)) };
        let ack = AckId(ack);
        let arrived = carry(&hub, Command::ChangeGroup { ack, change: &change }, &Route::Node);
        prop_assert_eq!(arrived, Inbound::ChangeGroup { hub, ack, reply: reply(), change });
    }

    #[test]
    fn questions(
        hub in name(), connection in live_connection(), id: String, message in message(), timeout in millis(),
    ) {
        let (hub, id) = (HubName::from(hub), InvocationId::from(id));
        let cancel = Command::CancelInvoke { connection: &connection, id: &id };
        prop_assert_eq!(
            carry(&hub, cancel, &Route::Node),
            Inbound::CancelInvoke { hub: hub.clone(), connection: connection.clone(), id: id.clone() }
        );
        let invoke = Command::Invoke { connection: &connection, id: &id, message: &message, timeout };
        let arrived = carry(&hub, invoke, &Route::Node);
        prop_assert_eq!(
            arrived,
            Inbound::Invoke { hub, connection, id, reply: reply(), message, timeout: Some(timeout) }
        );
    }

    #[test]
    fn answers(id: String, protocol in protocol(), completion in completion()) {
        let (to, id) = (reply(), InvocationId::from(id));
        let command = Command::Complete { to: &to, id: &id, protocol: &protocol, completion: &completion };
        prop_assert_eq!(carry(&"Hub".into(), command, &Route::Node), Inbound::Complete { id, completion });
    }

    #[test]
    fn aborts(
        hub in name(), ack: i64, connection in live_connection(), message: Option<String>, allow_reconnect: bool,
    ) {
        let (hub, ack) = (HubName::from(hub), AckId(ack));
        let reason = AbortReason { message, allow_reconnect };
        let command = Command::Abort { ack, connection: &connection, reason: &reason };
        let arrived = carry(&hub, command, &Route::Node);
        prop_assert_eq!(arrived, Inbound::Abort { hub, ack, reply: reply(), connection, reason });
    }

    #[test]
    fn acknowledgements(ack: i64, which in 0..3) {
        let (to, ack) = (reply(), AckId(ack));
        let outcome = [AckOutcome::Done, AckOutcome::NotFound, AckOutcome::Failed][which as usize];
        let command = Command::Ack { to: &to, ack, outcome };
        prop_assert_eq!(carry(&"Hub".into(), command, &Route::Node), Inbound::Ack { ack, outcome });
    }

    #[test]
    fn beats(leaving: bool, seq: u64, topics in vec(any::<(u64, u64)>(), 0..300)) {
        let beat = Beat { leaving, seq, topics };
        prop_assert_eq!(carry(&"Hub".into(), Command::Beat(&beat), &Route::Common), Inbound::Beat(beat));
    }

    #[test]
    fn numbers(seq: u64, prev: u64) {
        let origin = native(ORIGIN);
        let beat = Beat { leaving: false, seq: 0, topics: Vec::new() };
        let mut frame = origin.encode(&"Hub".into(), Command::Beat(&beat)).unwrap().frame;
        origin.stamp(&mut frame, seq, prev);
        let decoded = native(OTHER).decode(&Route::Common, frame.freeze()).unwrap();
        prop_assert_eq!(decoded.provenance, numbered(ORIGIN, seq, prev));
    }
}
