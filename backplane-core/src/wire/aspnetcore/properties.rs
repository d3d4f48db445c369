//! Whatever the bytes, decoding answers; whatever was encoded decodes to itself, and no part of it passes for all.

use bytes::Bytes;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::id::Protocol;
use crate::message::ClientResult;
use crate::wire::Completion;

fn blob() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn message() -> impl Strategy<Value = EncodedMessage> {
    let named = option::of(blob()).prop_map(|blob| blob.map(|blob| (Protocol::named("custom"), blob)));
    (option::of(blob()), option::of(blob()), named).prop_map(|(json, messagepack, named)| {
        let json = json.map(|blob| (Protocol::JSON, blob));
        let messagepack = messagepack.map(|blob| (Protocol::MESSAGEPACK, blob));
        EncodedMessage::new([messagepack, named, json].into_iter().flatten())
    })
}

prop_compose! {
    fn invocation()(
        excluded in vec("\\PC{0,40}", 0..20),
        message in message(),
        question in option::of((option::of(".{0,40}"), ".{0,300}")),
    ) -> Invocation {
        let (id, return_channel) = question.map_or((None, None), |(id, channel)| (id, Some(channel)));
        Invocation {
            excluded: excluded.into_iter().map(ConnectionId::from).collect(),
            message,
            invocation_id: id.map(InvocationId::from),
            return_channel,
        }
    }
}

prop_compose! {
    fn group_command()(
        id in any::<i32>(),
        server in ".{0,70}",
        action in any::<u8>(),
        group in ".{0,300}",
        connection in ".{0,40}",
    ) -> GroupCommand {
        GroupCommand { id, server, action, group: group.into(), connection: connection.into() }
    }
}

/// A JSON value as text.
fn json_value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<f64>()
            .prop_filter("JSON has no such number", |number| number.is_finite())
            .prop_map(|n| n.to_string()),
        ".{0,20}".prop_map(|text| serde_json::to_string(&text).unwrap()),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(|items| format!("[{}]", items.join(" , "))),
            vec((".{0,8}", inner), 0..6).prop_map(|members| {
                let members = members
                    .iter()
                    .map(|(name, value)| format!("{}: {value}", serde_json::to_string(name).unwrap()));
                format!("{{{}}}", members.collect::<Vec<_>>().join(","))
            }),
        ]
    })
}

/// A MessagePack value, in forms of any length.
fn messagepack_value() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        Just(vec![0xC0]),
        (0_u8..0x80).prop_map(|number| vec![number]),
        any::<[u8; 8]>().prop_map(|bytes| [&[0xCF][..], &bytes].concat()),
        vec(any::<u8>(), 0..20).prop_map(|bytes| [&[0xC5, 0, bytes.len() as u8][..], &bytes].concat()),
        vec(any::<u8>(), 0..20).prop_map(|bytes| [&[0xD9, bytes.len() as u8][..], &bytes].concat()),
        any::<[u8; 5]>().prop_map(|bytes| [&[0xD6][..], &bytes].concat()),
    ];
    leaf.prop_recursive(5, 60, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(|items| [
                &[0xDD, 0, 0, 0, items.len() as u8][..],
                &items.concat()
            ]
            .concat()),
            vec(inner, 0..3).prop_map(|items| {
                let pairs: Vec<u8> = items.iter().flat_map(|item| [&[0x01][..], item].concat()).collect();
                [&[0x80 | items.len() as u8][..], &pairs].concat()
            }),
        ]
    })
}

/// Headers as a client of `protocol` writes them; an empty map is none.
fn headers(protocol: &Protocol) -> impl Strategy<Value = Option<Bytes>> + use<> {
    let json = *protocol == Protocol::JSON;
    btree_map(".{0,8}", ".{0,300}", 0..4).prop_map(move |headers| {
        let written = if json {
            serde_json::to_vec(&headers).unwrap()
        } else {
            let texts = headers.iter().flat_map(|(name, value)| [name, value]);
            let texts =
                texts.map(|text| [&[0xDA][..], &(text.len() as u16).to_be_bytes(), text.as_bytes()].concat());
            [vec![0x80 | headers.len() as u8], texts.collect::<Vec<_>>().concat()].concat()
        };
        (!headers.is_empty()).then(|| written.into())
    })
}

fn completion() -> impl Strategy<Value = (Protocol, Completion)> {
    let protocol = prop_oneof![Just(Protocol::JSON), Just(Protocol::MESSAGEPACK)];
    let json = json_value().prop_map(|value| (Protocol::JSON, Bytes::from(value)));
    let messagepack = messagepack_value().prop_map(|value| (Protocol::MESSAGEPACK, Bytes::from(value)));
    let result = prop_oneof![
        prop_oneof![json, messagepack].prop_map(|(protocol, value)| {
            let result = ClientResult::value(protocol.clone(), value);
            (protocol, result)
        }),
        (protocol.clone(), ".{0,300}").prop_map(|(protocol, text)| (protocol, ClientResult::Error(text))),
        protocol.clone().prop_map(|protocol| (protocol, ClientResult::Void)),
    ];
    let answered = result.prop_flat_map(|(protocol, result)| {
        headers(&protocol).prop_map(move |headers| {
            (protocol.clone(), Completion::Answered { result: result.clone(), headers })
        })
    });
    prop_oneof![3 => answered, 1 => protocol.prop_map(|protocol| (protocol, Completion::Disconnected))]
}

fn all_routes() -> [Route; 9] {
    let hub = HubName::from("Hub");
    [
        Route::Common,
        Route::Node,
        Route::All(hub.clone()),
        Route::Group(hub.clone(), "g".into()),
        Route::User(hub.clone(), "u".into()),
        Route::Connection(hub.clone(), "c".into()),
        Route::GroupCommands(hub.clone()),
        Route::Acks(hub.clone()),
        Route::Results(hub),
    ]
}

/// Decodes as everything it could be taken for; returning at all is what is asked.
fn decode_everywhere(frame: &Bytes) {
    let wire = AspNetCore::new("", None);
    for route in all_routes() {
        if let Err(error) = wire.decode(&route, frame.clone()) {
            assert_eq!(error.kind(), ErrorKind::Malformed);
        }
    }
    for protocol in [Protocol::JSON, Protocol::MESSAGEPACK] {
        if let Err(error) = read_completion(&protocol, frame) {
            assert_eq!(error.kind(), ErrorKind::Malformed);
        }
    }
}

/// Beginnings that lead a decoder on.
const PLAUSIBLE_HEADS: &[&[u8]] = &[
    b"\x92\x90",
    b"\x94\x90\x80",
    b"\x92\x90\x82\xA1",
    b"\x95\x01",
    b"\x92\xA4json\xC4",
    b"\x92\xA4json\xC4\x20{\"type\":3",
    b"\x92\xABmessagepack\xC4",
    b"\x10\x95\x03\x80\xA1i\x03",
    b"\x20\x95\x03\x82\xA1h",
    b"{\"type\":3,\"invocationId\":\"i\",\"headers\":",
    b"{\"type\":3,\"invocationId\":\"i\",\"result\":",
];

/// One frame of any kind.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        invocation().prop_map(|invocation| invocation.encode().to_vec()),
        group_command().prop_map(|command| command.encode().to_vec()),
        any::<i32>().prop_map(|id| Ack { id }.encode().to_vec()),
        (completion(), ".{0,40}").prop_map(|((protocol, completion), id)| {
            let (protocol, blob) = write_completion(&protocol, &id.into(), &completion);
            CompletionEnvelope { protocol, blob }.encode().to_vec()
        }),
    ]
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..600)) {
        decode_everywhere(&bytes.into());
    }

    #[test]
    fn bytes_behind_a_plausible_head_never_panic(
        head in prop::sample::select(PLAUSIBLE_HEADS),
        tail in vec(any::<u8>(), 0..300),
    ) {
        decode_everywhere(&[head, &tail[..]].concat().into());
    }

    #[test]
    fn mutated_frames_never_panic(
        frame in any_frame(),
        mutations in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut frame = frame;
        for (index, byte) in mutations {
            let at = index.index(frame.len());
            frame[at] = byte;
        }
        decode_everywhere(&frame.into());
    }

    #[test]
    fn every_payload_decodes_to_itself_and_its_truncations_are_refused(
        invocation in invocation(),
        command in group_command(),
        id in any::<i32>(),
        protocol in ".{0,40}",
        blob in blob(),
        cut in any::<prop::sample::Index>(),
    ) {
        let cut = |frame: &Bytes| frame.slice(..cut.index(frame.len()));

        let frame = invocation.encode().freeze();
        prop_assert_eq!(Invocation::decode(&frame).unwrap(), invocation);
        prop_assert!(Invocation::decode(&cut(&frame)).is_err());

        let frame = command.encode().freeze();
        prop_assert_eq!(GroupCommand::decode(&frame).unwrap(), command);
        prop_assert!(GroupCommand::decode(&cut(&frame)).is_err());

        let frame = Ack { id }.encode().freeze();
        prop_assert_eq!(Ack::decode(&frame).unwrap(), Ack { id });
        prop_assert!(Ack::decode(&cut(&frame)).is_err());

        let envelope = CompletionEnvelope { protocol: Protocol::named(&protocol), blob };
        let frame = envelope.encode().freeze();
        prop_assert_eq!(CompletionEnvelope::decode(&frame).unwrap(), envelope);
        prop_assert!(CompletionEnvelope::decode(&cut(&frame)).is_err());
    }

    #[test]
    fn every_completion_reads_back_and_its_truncations_are_refused(
        (protocol, completion) in completion(),
        id in ".{0,40}",
        cut in any::<prop::sample::Index>(),
    ) {
        let id = InvocationId::from(id);
        let (written_in, blob) = write_completion(&protocol, &id, &completion);
        prop_assert_eq!(&written_in, &protocol);
        prop_assert!(read_completion(&protocol, &blob.slice(..cut.index(blob.len()))).is_err());
        let read = read_completion(&protocol, &blob).unwrap();
        prop_assert_eq!(read, Some((id, completion)));
    }
}
