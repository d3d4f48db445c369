//! The native format: that version 1 stays what it is, that whatever goes in comes out, that no bytes harm.

use super::*;
use std::time::Duration;

use crate::id::Protocol;
use crate::message::{AbortReason, ClientResult, EncodedMessage, MembershipChange};
use crate::wire::{AckOutcome, Beat, Completion, Inbound, Provenance, Recipient, ReplyTo};

mod golden;
mod hostile;
mod ids;
mod names;
mod round_trip;

/// Bytes 0 to 5.
const ORIGIN: NodeId = NodeId::from_bytes([0, 1, 2, 3, 4, 5]);
/// Bytes 250 to 255.
const OTHER: NodeId = NodeId::from_bytes([250, 251, 252, 253, 254, 255]);

fn native(node: NodeId) -> Native {
    Native::for_node("app", node).unwrap()
}

/// An id of [`OTHER`].
fn connection() -> ConnectionId {
    "-vv8_f7_AAAAAAAAAAAAAA".into()
}

fn numbered(origin: NodeId, seq: u64, prev: u64) -> Option<Provenance> {
    Some(Provenance { origin, seq, prev })
}

/// Encodes as [`ORIGIN`], numbers, and decodes as [`OTHER`], on the topic with this route.
fn carry(hub: &HubName, command: Command<'_>, route: &Route) -> Inbound {
    let origin = native(ORIGIN);
    let mut draft = origin.encode(hub, command).unwrap();
    origin.stamp(&mut draft.frame, 7, 6);
    let decoded = native(OTHER).decode(route, draft.frame.freeze()).unwrap();
    assert_eq!(decoded.provenance, numbered(ORIGIN, 7, 6));
    decoded.body
}

/// A name that is hashed.
fn long_name(end: &str) -> String {
    format!("{}{end}", "n".repeat(100))
}

/// What a valid frame is, where it arrives and what it says.
struct Sample {
    what: &'static str,
    topic: Topic,
    route: Route,
    frame: Bytes,
    says: Inbound,
}

/// At least one frame of each kind, numbered 0x0102030405060708 after 0x1112131415161718.
fn samples() -> Vec<Sample> {
    let origin = native(ORIGIN);
    let hub = HubName::from("Hub");
    let mut samples = Vec::new();
    let mut add = |what, hub: &HubName, command: Command<'_>, route, says| {
        let mut draft = origin.encode(hub, command).unwrap();
        origin.stamp(&mut draft.frame, 0x0102_0304_0506_0708, 0x1112_1314_1516_1718);
        samples.push(Sample { what, topic: draft.topic, route, frame: draft.frame.freeze(), says });
    };

    let json = EncodedMessage::json("{}\u{1e}");
    let three = EncodedMessage::new([
        (Protocol::JSON, Bytes::from_static(b"{}")),
        (Protocol::MESSAGEPACK, Bytes::from_static(b"\x01\x80")),
        (Protocol::named("cbor"), Bytes::from_static(b"\xA0")),
    ]);
    let connections = [connection(), ConnectionId::from("é")];

    add(
        "all",
        &hub,
        Command::Send { to: Recipient::All, except: &[], message: &json },
        Route::All(hub.clone()),
        Inbound::Message { except: Vec::new(), message: json.clone() },
    );
    let group = GroupName::from("a.b");
    add(
        "group except",
        &hub,
        Command::Send { to: Recipient::Group(&group), except: &connections, message: &three },
        Route::Group(hub.clone(), group.clone()),
        Inbound::Message { except: connections.to_vec(), message: three.clone() },
    );
    let long_hub = HubName::from(long_name("h"));
    let user = UserId::from(long_name("u"));
    add(
        "user, hashed",
        &long_hub,
        Command::Send { to: Recipient::User(&user), except: &[], message: &json },
        Route::User(long_hub.clone(), user.clone()),
        Inbound::Message { except: Vec::new(), message: json.clone() },
    );
    add(
        "direct",
        &hub,
        Command::Send { to: Recipient::Node(OTHER, &connections), except: &[], message: &json },
        Route::Node,
        Inbound::Direct { hub: hub.clone(), connections: connections.to_vec(), message: json.clone() },
    );
    let reply = ReplyTo(origin.node_topic.clone());
    for (what, change) in [
        ("join", MembershipChange::join(connection(), "g").with_timeout(Duration::from_secs(5))),
        ("leave", MembershipChange::leave(connection(), "")),
    ] {
        add(
            what,
            &hub,
            Command::ChangeGroup { ack: AckId(300), change: &change },
            Route::Node,
            Inbound::ChangeGroup {
                hub: hub.clone(),
                ack: AckId(300),
                reply: reply.clone(),
                change: change.clone(),
            },
        );
    }
    let back = ReplyTo(native(OTHER).node_topic.clone());
    for (what, outcome) in [
        ("ack", AckOutcome::Done),
        ("ack, not found", AckOutcome::NotFound),
        ("ack, failed", AckOutcome::Failed),
    ] {
        add(
            what,
            &hub,
            Command::Ack { to: &back, ack: AckId(1), outcome },
            Route::Node,
            Inbound::Ack { ack: AckId(1), outcome },
        );
    }
    let id = InvocationId::from("q");
    add(
        "invoke",
        &hub,
        Command::Invoke {
            connection: &connection(),
            id: &id,
            message: &three,
            timeout: Duration::from_secs(30),
        },
        Route::Node,
        Inbound::Invoke {
            hub: hub.clone(),
            connection: connection(),
            id: id.clone(),
            reply: reply.clone(),
            message: three.clone(),
            timeout: Some(Duration::from_secs(30)),
        },
    );
    add(
        "cancel invoke",
        &hub,
        Command::CancelInvoke { connection: &connection(), id: &id },
        Route::Node,
        Inbound::CancelInvoke { hub: hub.clone(), connection: connection(), id: id.clone() },
    );
    for (what, completion) in [
        ("complete, void", Completion::answered(ClientResult::Void)),
        ("complete, value", Completion::answered(ClientResult::value(Protocol::MESSAGEPACK, "\x2A"))),
        (
            "complete, foreign value",
            Completion::answered(ClientResult::value(Protocol::named("cbor"), "\x01")),
        ),
        ("complete, error", Completion::answered(ClientResult::error("no"))),
        ("complete, disconnected", Completion::Disconnected),
        ("complete, not found", Completion::NotFound),
        ("complete, unreadable", Completion::Unreadable("ü".into())),
    ] {
        add(
            what,
            &hub,
            Command::Complete { to: &back, id: &id, protocol: &Protocol::JSON, completion: &completion },
            Route::Node,
            Inbound::Complete { id: id.clone(), completion: completion.clone() },
        );
    }
    for (what, reason) in [
        ("abort", AbortReason::default()),
        ("abort, why", AbortReason { message: Some("bye".into()), allow_reconnect: true }),
    ] {
        add(
            what,
            &hub,
            Command::Abort { ack: AckId(2), connection: &connection(), reason: &reason },
            Route::Node,
            Inbound::Abort {
                hub: hub.clone(),
                ack: AckId(2),
                reply: reply.clone(),
                connection: connection(),
                reason: reason.clone(),
            },
        );
    }
    for (what, beat) in [
        (
            "beat",
            Beat { leaving: false, seq: 128, topics: vec![(0x0A0B_0C0D_0E0F_1011, 127), (u64::MAX, 1)] },
        ),
        ("last beat", Beat { leaving: true, seq: 0, topics: Vec::new() }),
    ] {
        add(what, &hub, Command::Beat(&beat), Route::Common, Inbound::Beat(beat.clone()));
    }
    samples
}
