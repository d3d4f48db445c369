//! Frames that are broken, hostile or from the future.

use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;

fn routes() -> Vec<Route> {
    let (hub, long) = (HubName::from("Hub"), HubName::from(long_name("h")));
    vec![
        Route::Common,
        Route::Node,
        Route::All(hub.clone()),
        Route::All(long.clone()),
        Route::Group(hub.clone(), "a.b".into()),
        Route::User(long, long_name("u").into()),
        Route::Connection(hub.clone(), connection()),
        Route::GroupCommands(hub.clone()),
        Route::Acks(hub.clone()),
        Route::Results(hub),
    ]
}

/// Decodes on every route: it may fail, but only as malformed, and must not panic.
fn survive(frame: &Bytes) {
    let native = native(OTHER);
    for route in routes() {
        if let Err(error) = native.decode(&route, frame.clone()) {
            assert_eq!(error.kind(), ErrorKind::Malformed);
        }
    }
}

fn malformed(route: &Route, frame: impl Into<Bytes>) -> String {
    let error = native(OTHER).decode(route, frame.into()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Malformed);
    error.to_string()
}

/// A frame of this kind with this body.
fn forged(kind: u8, body: &[u8]) -> Bytes {
    let mut frame = BytesMut::from(&[0; 24][..]);
    frame[0] = 1;
    frame[1] = kind;
    frame.extend_from_slice(body);
    frame.freeze()
}

#[test]
fn every_truncation_is_malformed() {
    for Sample { what, route, frame, .. } in samples() {
        for length in 0..frame.len() {
            let cut = frame.slice(..length);
            let error = native(OTHER).decode(&route, cut.clone()).expect_err(what);
            assert_eq!(error.kind(), ErrorKind::Malformed, "{what} cut to {length}");
            survive(&cut);
        }
    }
}

#[test]
fn every_mutation_of_one_byte_is_survived() {
    for Sample { frame, .. } in samples() {
        let mut bytes = frame.to_vec();
        for at in 0..bytes.len() {
            let right = bytes[at];
            for wrong in 0..=u8::MAX {
                bytes[at] = wrong;
                survive(&Bytes::copy_from_slice(&bytes));
            }
            bytes[at] = right;
        }
    }
}

#[test]
fn trailing_bytes_are_ignored() {
    for Sample { what, route, frame, says, .. } in samples() {
        for trailing in [&b"\0"[..], b"\xFF\xFF\xFF", b"a field of a later day"] {
            let longer = [&frame, trailing].concat();
            assert_eq!(native(OTHER).decode(&route, longer.into()).unwrap().body, says, "{what}");
        }
    }
}

#[test]
fn unknown_flags_are_ignored() {
    for (kind, route) in [(1, Route::All("Hub".into())), (9, Route::Common)] {
        let plain = native(OTHER).decode(&route, forged(kind, b"\x00\x00\x00")).unwrap();
        let flagged = native(OTHER).decode(&route, forged(kind, b"\xF8\x00\x00")).unwrap();
        assert_eq!(flagged, plain);
        assert_ne!(flagged.body, Inbound::Unwanted);
    }
    let abort = |flags| forged(8, &[0, 0, flags, 0]);
    let native = native(OTHER);
    let decode = |flags| native.decode(&Route::Node, abort(flags)).unwrap();
    assert_eq!(decode(0xFC), decode(0));
}

#[test]
fn other_versions_are_malformed() {
    for Sample { route, frame, .. } in samples() {
        for version in [0, 2, 255] {
            let mut other = frame.to_vec();
            other[0] = version;
            assert!(malformed(&route, other).contains("version"));
        }
    }
    assert!(malformed(&Route::Node, vec![2]).contains("version"), "even of another length");
}

#[test]
fn unknown_kinds_are_unwanted_and_still_counted() {
    for kind in [0, 10, 255] {
        for route in routes() {
            let mut frame = BytesMut::from(&forged(kind, b"whatever")[..]);
            native(ORIGIN).stamp(&mut frame, 9, 8);
            let decoded = native(OTHER).decode(&route, frame.freeze()).unwrap();
            assert_eq!(decoded.body, Inbound::Unwanted);
            assert_eq!(decoded.provenance, numbered(NodeId::from_bytes([0; 6]), 9, 8));
        }
    }
}

#[test]
fn kinds_on_topics_where_they_do_not_belong_are_unwanted() {
    for Sample { what, route, frame, .. } in samples() {
        for other in routes() {
            let audience =
                |route: &Route| matches!(route, Route::All(_) | Route::Group(..) | Route::User(..));
            if other == route || audience(&other) && audience(&route) {
                continue;
            }
            let decoded = native(OTHER).decode(&other, frame.clone()).unwrap();
            assert_eq!(decoded.body, Inbound::Unwanted, "{what} on {other:?}");
        }
    }
}

/// Had any of these lengths been believed, the allocation would have panicked or aborted.
#[test]
fn hostile_lengths_are_refused_before_anything_is_allocated() {
    let huge = [&[0xFF; 9][..], &[0x01]].concat();
    let almost = [&[0xFF; 8][..], &[0x7F]].concat();
    let all = Route::All("Hub".into());
    for length in [huge, almost, vec![0xFF, 0xFF, 0xFF, 0xFF, 0x7F], vec![0x20]] {
        let with = |before: &[u8]| [before, &length, b"end"].concat();
        for (what, route, kind, body) in [
            ("except", &all, 1, with(b"\x01")),
            ("payload", &all, 1, with(b"\x00\x01\x01")),
            ("protocol", &all, 1, with(b"\x00\x01\x00")),
            ("hub", &Route::Node, 2, with(b"")),
            ("connections", &Route::Node, 2, with(b"\x01h")),
            ("connection", &Route::Node, 2, with(b"\x01h\x01")),
            ("value", &Route::Node, 7, with(b"\x01q\x01\x01")),
            ("error", &Route::Node, 7, with(b"\x01q\x02")),
            ("reason", &Route::Node, 8, with(b"\x01h\x01\x02\x01c")),
            ("topics", &Route::Common, 9, with(b"\x00\x00")),
        ] {
            assert!(malformed(route, forged(kind, &body)).contains("length"), "{what}");
        }
    }
}

#[test]
fn numbers_beyond_64_bits_are_malformed() {
    let ack = |varint: &[u8]| forged(4, &[varint, &[0]].concat());
    let most = [&[0xFF; 9][..], &[0x01]].concat();
    let decoded = native(OTHER).decode(&Route::Node, ack(&most)).unwrap();
    assert_eq!(decoded.body, Inbound::Ack { ack: AckId(-1), outcome: AckOutcome::Done });
    for varint in
        [[&[0xFF; 9][..], &[0x02]].concat(), [&[0x80; 9][..], &[0x80, 0x00]].concat(), vec![0xFF; 20]]
    {
        assert!(malformed(&Route::Node, ack(&varint)).contains("64 bits"));
    }
}

#[test]
fn values_without_a_meaning_are_malformed() {
    for (what, kind, body) in [
        ("text", 2, &b"\x01\xFF\x00\x00"[..]),
        ("membership", 3, b"\x01h\x01\x02\x01c\x01g\x00"),
        ("outcome", 4, b"\x01\x03"),
        ("ending", 7, b"\x01q\x06"),
        ("protocol", 7, b"\x01q\x01\x03\x00"),
    ] {
        assert!(malformed(&Route::Node, forged(kind, body)).contains(what), "{what}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>) {
        survive(&bytes.into());
    }

    #[test]
    fn any_body_is_survived(kind in 0..11_u8, body: Vec<u8>) {
        survive(&forged(kind, &body));
    }

    /// Small numbers, so that lengths are often right and decoding gets far.
    #[test]
    fn plausible_bodies_are_survived(kind in 1..10_u8, body in prop::collection::vec(0..4_u8, 0..60)) {
        survive(&forged(kind, &body));
    }
}
