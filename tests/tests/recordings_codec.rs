//! The `aspnetcore` wire format against recordings of real .NET servers: every payload decodes to what the recording
//! says, and what servers sent encodes to the same bytes on the same channel.

#[path = "recordings_codec/describe.rs"]
mod describe;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use backplane_core::wire::{
    AckOutcome, AspNetCore, Command, Completion, Decoded, Inbound, Recipient, ReplyTo, Route,
};
use backplane_core::{
    ClientResult, ConnectionId, EncodedMessage, ErrorKind, HubName, Membership, Protocol, Topic,
    WireFormat as _,
};
use backplane_tests::recording::{Actor, Channel, ChannelKind, Event, Recording};
use bytes::Bytes;
use serde_json::Value;

/// Where the recorder's description is not what servers read: it kept the last of two equal names, servers the first
/// (the arrivals in the same file show it).
const DESCRIBED_OTHERWISE: [(&str, &str); 1] = [("foreign-accepted", "each name twice")];

/// Refused in silence: servers log nothing on these channels.
const REFUSED_IN_SILENCE: [(&str, &str, &str); 7] = [
    ("foreign-control", "internal:ack:", "empty array"),
    ("foreign-control", "internal:ack:", "empty payload"),
    ("foreign-control", "internal:ack:", "str"),
    ("foreign-control", "internal:ack:", "bad byte"),
    ("foreign-control", "internal:return:", "1 element"),
    ("foreign-control", "internal:return:", "empty payload"),
    ("foreign-questions", "connection:", "empty payload on a connection channel"),
];

/// Faults of .NET that ours does not share: a completion in a protocol that the asking hub does not offer is read all
/// the same, instead of leaving the asker waiting.
const BETTER_THAN_RECORDED: [(&str, &str); 1] =
    [("protocol-mismatch-result", "completion in messagepack for a server that has only json")];

fn route_of(channel: &Channel) -> Route {
    let hub = HubName::from(&*channel.hub);
    match &channel.kind {
        ChannelKind::All => Route::All(hub),
        ChannelKind::Groups => Route::GroupCommands(hub),
        ChannelKind::Ack(_) => Route::Acks(hub),
        ChannelKind::Return(_) => Route::Results(hub),
        ChannelKind::Connection(id) => Route::Connection(hub, id.as_str().into()),
        ChannelKind::Group(name) => Route::Group(hub, name.as_str().into()),
        ChannelKind::User(id) => Route::User(hub, id.as_str().into()),
    }
}

/// The channel's route; a made-up return channel carries completions like any other.
fn route(recording: &Recording, channel: &str) -> Option<Route> {
    match recording.channel(channel) {
        Some(channel) => Some(route_of(&channel)),
        None if channel == "somewhere else" => Some(Route::Results("Demo.ChatHub".into())),
        None => None,
    }
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

fn text_of(reply: &ReplyTo) -> &str {
    std::str::from_utf8(reply.0.as_bytes()).expect("recorded names are UTF-8")
}

/// Asserts that a decoded body is what `decoded` describes.
fn assert_described(route: &Route, body: &Inbound, decoded: &Value, place: &str) {
    match body {
        Inbound::Message { except, message } => {
            let counts = matches!(route, Route::All(_) | Route::Group(..));
            let excluded: Vec<ConnectionId> = if counts {
                let excluded = decoded["excluded"].as_array().unwrap_or_else(|| panic!("{place}: excluded"));
                // A nil names nobody.
                excluded.iter().filter_map(Value::as_str).map(ConnectionId::from).collect()
            } else {
                Vec::new()
            };
            assert_eq!(*except, excluded, "{place}");
            assert_blobs(message, decoded, place);
            if let Route::Connection(..) = route {
                let question = text(decoded, "invocation_id").len() * text(decoded, "return_channel").len();
                assert_eq!(question, 0, "{place}: a question with id and channel is no plain message");
            }
        }
        Inbound::Invoke { hub, connection, id, reply, message, timeout } => {
            assert_eq!(*route, Route::Connection(hub.clone(), connection.clone()), "{place}");
            assert_eq!(id.as_str(), decoded["invocation_id"], "{place}");
            let channel = text_of(reply);
            assert!(channel.ends_with(&text(decoded, "return_channel")), "{place}: {channel}");
            assert_eq!(*timeout, None, "{place}");
            assert_blobs(message, decoded, place);
        }
        Inbound::ChangeGroup { hub, ack, reply, change } => {
            assert_eq!(decoded["id"], ack.0, "{place}");
            let membership = match &decoded["action"] {
                Value::String(action) if action == "add" => Membership::Join,
                Value::String(action) if action == "remove" => Membership::Leave,
                other => panic!("{place}: action {other} changes nothing"),
            };
            assert_eq!(change.membership, membership, "{place}");
            assert_eq!(change.group.as_str(), text(decoded, "group"), "{place}");
            assert_eq!(change.connection.as_str(), decoded["connection"], "{place}");
            let answer = format!("{hub}:internal:ack:{}", text(decoded, "server"));
            assert!(text_of(reply).ends_with(&answer), "{place}: {reply:?}");
        }
        Inbound::Ack { ack, outcome: AckOutcome::Done } => assert_eq!(decoded["ack"], ack.0, "{place}"),
        Inbound::Complete { id, completion } => {
            assert_completion(id.as_str(), completion, decoded, place);
        }
        Inbound::NoChange { hub, ack, reply, connection } => {
            // An action that is none of the known ones stands there as its number.
            assert!(decoded["action"].is_u64(), "{place}");
            assert_eq!(decoded["id"], ack.0, "{place}");
            assert_eq!(connection.as_str(), decoded["connection"], "{place}");
            let answer = format!("{hub}:internal:ack:{}", text(decoded, "server"));
            assert!(text_of(reply).ends_with(&answer), "{place}: {reply:?}");
        }
        Inbound::Unwanted => {
            let no_completion =
                decoded["message"].as_str().is_some_and(|message| message == "{\"type\":6}\u{1e}");
            assert!(no_completion, "{place}: unwanted");
        }
        other => panic!("{place}: {other:?}"),
    }
}

fn assert_blobs(message: &EncodedMessage, decoded: &Value, place: &str) {
    let described = decoded["blobs"].as_object().unwrap_or_else(|| panic!("{place}: blobs"));
    let blobs: BTreeMap<&str, &Bytes> =
        message.encodings().map(|(name, blob)| (name.as_str(), blob)).collect();
    assert_eq!(blobs.len(), described.len(), "{place}: {message:?}");
    for (name, expected) in described {
        let blob = blobs.get(&**name).unwrap_or_else(|| panic!("{place}: no blob for {name}"));
        let actual = match name.as_str() {
            "messagepack" => describe::frames(blob),
            _ => std::str::from_utf8(blob).ok().map(Value::from),
        };
        assert_eq!(actual.as_ref(), Some(expected), "{place}: {name}");
    }
}

fn assert_completion(id: &str, completion: &Completion, decoded: &Value, place: &str) {
    let message = &decoded["message"];
    // Both forms of a description, brought to one: id, error, value, headers.
    let (expected_id, error, value, expected_headers) = match message {
        Value::String(record) => {
            let record = record.split('\u{1e}').next().unwrap_or_default();
            let record: Value = serde_json::from_str(record).unwrap_or_else(|e| panic!("{place}: {e}"));
            let member = |name: &str| record.get(name).cloned();
            (record["invocationId"].clone(), member("error"), member("result"), member("headers"))
        }
        Value::Array(items) => {
            let of_kind = |kind: u64| (items[3] == kind).then(|| items[4].clone());
            let headers = Some(&items[1]).filter(|headers| **headers != serde_json::json!({"map": {}}));
            (items[2].clone(), of_kind(1), of_kind(3), headers.cloned())
        }
        other => panic!("{place}: {other}"),
    };
    assert_eq!(expected_id, id, "{place}");
    let described = |bytes: &Bytes| match decoded["completion_protocol"].as_str() {
        Some("json") => serde_json::from_slice(bytes).ok(),
        _ => describe::whole(bytes),
    };
    let Completion::Answered { result, headers } = completion else {
        assert_eq!(*completion, Completion::Disconnected, "{place}");
        let error = (error, value, expected_headers);
        assert_eq!(error, (Some("Connection disconnected.".into()), None, None), "{place}");
        return;
    };
    assert_eq!(headers.as_ref().and_then(described), expected_headers, "{place}: headers");
    match result {
        ClientResult::Value { protocol, value: bytes } => {
            assert_eq!(protocol.as_str(), decoded["completion_protocol"], "{place}");
            assert_eq!((described(bytes), error), (value, None), "{place}");
        }
        ClientResult::Void => assert_eq!((error, value), (None, None), "{place}"),
        ClientResult::Error(text) => {
            assert_ne!(text, "Connection disconnected.", "{place}");
            assert_eq!((error, value), (Some(Value::from(&**text)), None), "{place}");
        }
    }
}

/// Encodes what was decoded, as the server that is named in it.
fn encode_again(recording: &Recording, channel: &str, body: &Inbound, decoded: &Value) -> (Topic, Bytes) {
    let parts = recording.channel(channel);
    // An answer goes where the question says; no hub is needed for it.
    let hub = &HubName::from(parts.as_ref().map_or("", |parts| &*parts.hub));
    let to = &ReplyTo(channel.into());
    let as_server = |name: &str| AspNetCore::new(recording.prefix(), Some(name.to_owned()));
    let anyone = as_server("any");
    let draft = match body {
        Inbound::Message { except, message } => {
            let kind = parts.expect("a message has a channel of the layout").kind;
            let (group, user, connection);
            let to = match kind {
                ChannelKind::All => Recipient::All,
                ChannelKind::Group(name) => {
                    group = name.into();
                    Recipient::Group(&group)
                }
                ChannelKind::User(id) => {
                    user = id.into();
                    Recipient::User(&user)
                }
                ChannelKind::Connection(id) => {
                    connection = id.into();
                    Recipient::Connection(&connection)
                }
                other => panic!("a message on {other:?}"),
            };
            anyone.encode(hub, Command::Send { to, except, message })
        }
        Inbound::Invoke { connection, id, reply, message, .. } => {
            let Some(ChannelKind::Return(server)) =
                recording.channel(text_of(reply)).map(|channel| channel.kind)
            else {
                panic!("servers name their own return channels, not {reply:?}");
            };
            let timeout = Duration::from_secs(30);
            as_server(&server).encode(hub, Command::Invoke { connection, id, message, timeout })
        }
        Inbound::ChangeGroup { ack, change, .. } => {
            as_server(&text(decoded, "server")).encode(hub, Command::ChangeGroup { ack: *ack, change })
        }
        Inbound::Ack { ack, outcome } => {
            anyone.encode(hub, Command::Ack { to, ack: *ack, outcome: *outcome })
        }
        Inbound::Complete { id, completion } => {
            let protocol = &Protocol::named(&text(decoded, "completion_protocol"));
            anyone.encode(hub, Command::Complete { to, id, protocol, completion })
        }
        other => panic!("servers send no {other:?}"),
    };
    let draft = draft.expect("what a server sent can be encoded");
    (draft.topic, draft.frame.freeze())
}

/// Counts what was checked, for all to see.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    sends: usize,
    questions: usize,
    group_commands: usize,
    acks: usize,
    completions: usize,
    /// Of the completions.
    completions_with_headers: usize,
}

impl Count {
    fn add(&mut self, body: &Inbound) {
        match body {
            Inbound::Message { .. } => self.sends += 1,
            Inbound::Invoke { .. } => self.questions += 1,
            Inbound::ChangeGroup { .. } => self.group_commands += 1,
            Inbound::Ack { .. } => self.acks += 1,
            Inbound::Complete { completion, .. } => {
                self.completions += 1;
                let with_headers = matches!(completion, Completion::Answered { headers: Some(_), .. });
                self.completions_with_headers += usize::from(with_headers);
            }
            other => panic!("servers send no {other:?}"),
        }
    }

    fn total(&self) -> usize {
        self.sends + self.questions + self.group_commands + self.acks + self.completions
    }
}

#[test]
fn what_servers_sent_decodes_as_described_and_encodes_to_the_same_bytes() {
    let mut count = Count::default();
    for recording in Recording::all() {
        let wire = AspNetCore::new(recording.prefix(), None);
        for (index, step) in recording.steps.iter().enumerate() {
            let Event::Publish { by: Actor::Server(_), channel, payload, decoded, .. } = &step.event else {
                continue;
            };
            let place = format!("{}, step {}", recording.name, index + 1);
            let decoded = decoded.as_ref().unwrap_or_else(|| panic!("{place} is described"));
            let route = route(&recording, channel).unwrap_or_else(|| panic!("{place}: {channel}"));
            let Decoded { provenance: None, body } =
                wire.decode(&route, payload.clone()).unwrap_or_else(|error| panic!("{place}: {error}"))
            else {
                panic!("{place}: the layout tells no provenance");
            };
            assert_described(&route, &body, decoded, &place);
            count.add(&body);

            let topic = Topic::from(channel.as_str());
            let again = encode_again(&recording, channel, &body, decoded);
            assert_eq!(again, (topic, payload.clone()), "{place}");
        }
    }
    println!("{} payloads of servers, decoded and encoded again: {count:?}", count.total());
    assert_eq!(
        count,
        Count {
            sends: 130,
            questions: 37,
            group_commands: 18,
            acks: 29,
            completions: 41,
            completions_with_headers: 2
        }
    );
}

#[test]
fn what_reached_subscribers_decodes_as_described() {
    let (mut described, mut of_foreign) = (0, 0);
    for recording in Recording::all() {
        let wire = AspNetCore::new(recording.prefix(), None);
        // A push repeats a PUBLISH; the description stands there.
        let mut published: HashMap<(&str, &Bytes), (&Actor, Option<&Value>)> = HashMap::new();
        for (index, step) in recording.steps.iter().enumerate() {
            match &step.event {
                Event::Publish { by, channel, payload, decoded, .. } => {
                    published.insert((channel, payload), (by, decoded.as_ref()));
                }
                Event::Push { channel, payload, decoded, .. } => {
                    let place = format!("{}, step {}", recording.name, index + 1);
                    let (by, known) = published[&(channel.as_str(), payload)];
                    let route = route(&recording, channel).unwrap_or_else(|| panic!("{place}: {channel}"));
                    // What a foreign client published has its own test.
                    if let Actor::Foreign(_) = by {
                        of_foreign += 1;
                        continue;
                    }
                    let decoded =
                        decoded.as_ref().or(known).unwrap_or_else(|| panic!("{place} is described"));
                    let body =
                        wire.decode(&route, payload.clone()).unwrap_or_else(|e| panic!("{place}: {e}")).body;
                    assert_described(&route, &body, decoded, &place);
                    described += 1;
                }
                _ => {}
            }
        }
    }
    println!("{described} pushes of servers' payloads, {of_foreign} of foreign ones");
    assert_eq!((described, of_foreign), (301, 173));
}

/// Whether servers refused the foreign payload of step `at`: before the next foreign PUBLISH they logged that they
/// could not read it (events 10, 11, 12, 15 of the Redis backplane).
fn logged_refusal(recording: &Recording, at: usize) -> bool {
    let until_next = recording.steps[at + 1..]
        .iter()
        .take_while(|step| !matches!(step.event, Event::Publish { by: Actor::Foreign(_), .. }));
    until_next.into_iter().any(|step| match &step.event {
        Event::Log { line, .. } => {
            [10, 11, 12, 15].iter().any(|event| line.contains(&format!("RedisHubLifetimeManager[{event}]")))
        }
        _ => false,
    })
}

#[test]
fn what_a_foreign_client_sent_is_taken_or_refused_as_recorded() {
    let (mut taken, mut refused, mut unknown_channels) = (0, 0, 0);
    let (mut silent, mut better, mut otherwise) = (0, 0, 0);
    for recording in Recording::all() {
        let wire = AspNetCore::new(recording.prefix(), None);
        for (index, step) in recording.steps.iter().enumerate() {
            let Event::Publish { by: Actor::Foreign(_), about, channel, payload, decoded, .. } = &step.event
            else {
                continue;
            };
            let about = about.as_deref().unwrap_or_default();
            let place = format!("{}, step {} ({about})", recording.name, index + 1);
            // A channel in other case is another channel, which nobody subscribes.
            let known = recording.channel(channel).filter(|channel| channel.hub != "demo.chathub");
            let Some(known) = known else {
                unknown_channels += 1;
                continue;
            };
            let in_silence = REFUSED_IN_SILENCE.iter().any(|(file, kind, what)| {
                (*file, *what) == (&*recording.name, about) && channel.contains(kind)
            });
            let is_better = BETTER_THAN_RECORDED.contains(&(&recording.name, about));
            silent += usize::from(in_silence);
            better += usize::from(is_better);
            let route = route_of(&known);
            let outcome = wire.decode(&route, payload.clone());
            if in_silence || (logged_refusal(&recording, index) && !is_better) {
                let error = outcome.map(|decoded| panic!("{place}: taken as {decoded:?}")).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Malformed, "{place}");
                assert!(error.context().is_some(), "{place}");
                refused += 1;
                continue;
            }
            let body = outcome.unwrap_or_else(|error| panic!("{place}: {error}")).body;
            taken += 1;
            if DESCRIBED_OTHERWISE.contains(&(&recording.name, about)) {
                let Inbound::Message { message, .. } = body else { panic!("{place}: a message") };
                let first = Value::from("{\"type\":1,\"target\":\"m\",\"arguments\":[\"first\"]}\u{1e}");
                assert_blobs(
                    &message,
                    &serde_json::json!({"blobs": {
                        "json": first, "messagepack": [1, {"map": {}}, null, "m", ["first"], []],
                    }}),
                    &place,
                );
                otherwise += 1;
            } else if let Some(decoded) = decoded {
                assert_described(&route, &body, decoded, &place);
            }
        }
    }
    println!(
        "{taken} foreign payloads taken, {refused} refused ({silent} of them in silence by .NET), {unknown_channels} \
         on channels nobody has, {better} read where .NET does not"
    );
    assert_eq!((silent, better, otherwise), (7, 1, 1), "each entry of the lists occurred");
    assert_eq!((taken, refused, unknown_channels), (69, 36, 2));
}

#[test]
fn every_cut_of_every_recorded_payload_is_survived() {
    let mut decoded = 0;
    for recording in Recording::all() {
        let wire = AspNetCore::new(recording.prefix(), None);
        for step in &recording.steps {
            let Event::Publish { channel, payload, .. } = &step.event else { continue };
            let Some(route) = route(&recording, channel) else { continue };
            for cut in 0..payload.len() {
                // Only "returns, and says malformed if anything" is asked: behind a payload there may be spare bytes.
                if let Err(error) = wire.decode(&route, payload.slice(..cut)) {
                    assert_eq!(error.kind(), ErrorKind::Malformed);
                }
                decoded += 1;
            }
        }
    }
    println!("{decoded} cut payloads decoded");
    assert_eq!(decoded, 33_316);
}
