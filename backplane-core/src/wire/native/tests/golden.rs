//! Version 1, byte for byte: if one of these must change, the version must.

use super::*;

/// Bytes as hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sample(what: &str) -> Sample {
    samples().into_iter().find(|sample| sample.what == what).unwrap()
}

#[test]
fn every_frame_starts_with_version_kind_origin_seq_and_prev() {
    for sample in samples() {
        let header = hex(&sample.frame[..24]);
        assert_eq!(header[..2], *"01", "{}", sample.what);
        assert_eq!(header[4..], *"00010203040501020304050607081112131415161718", "{}", sample.what);
    }
}

/// Kind and body of each sample; texts as text, between quotes, for the eye.
#[test]
fn kinds_and_bodies_are_these() {
    let id = format!("16{}", hex(b"-vv8_f7_AAAAAAAAAAAAAA"));
    let other_id = "02c3a9";
    let hub = "03487562";
    let json = "0101037b7d1e";
    let three = "0301027b7d020201800004".to_owned() + &hex(b"cbor") + "01a0";
    let long = |end: &str| format!("65{}", hex(long_name(end).as_bytes()));
    let golden = [
        ("all", 1, format!("00{json}")),
        ("group except", 1, format!("0102{id}{other_id}{three}")),
        ("user, hashed", 1, format!("06{}{}{json}", long("h"), long("u"))),
        ("direct", 2, format!("{hub}02{id}{other_id}{json}")),
        ("join", 3, format!("{hub}ac0201{id}01678827")),
        ("leave", 3, format!("{hub}ac0200{id}0000")),
        ("ack", 4, "0100".into()),
        ("ack, not found", 4, "0101".into()),
        ("ack, failed", 4, "0102".into()),
        ("invoke", 5, format!("{hub}{id}0171b0ea01{three}")),
        ("cancel invoke", 6, format!("{hub}{id}0171")),
        ("complete, void", 7, "017100".into()),
        ("complete, value", 7, "01710102012a".into()),
        ("complete, foreign value", 7, "017101000463626f720101".into()),
        ("complete, error", 7, "017102026e6f".into()),
        ("complete, disconnected", 7, "017103".into()),
        ("complete, not found", 7, "017104".into()),
        ("complete, unreadable", 7, "01710502c3bc".into()),
        ("abort", 8, format!("{hub}0200{id}")),
        ("abort, why", 8, format!("{hub}0203{id}03627965")),
        ("beat", 9, "008001020a0b0c0d0e0f10117fffffffffffffffff01".into()),
        ("last beat", 9, "010000".into()),
    ];
    let samples = samples();
    assert_eq!(samples.len(), golden.len());
    for (sample, (what, kind, body)) in samples.iter().zip(golden) {
        assert_eq!(sample.what, what);
        assert_eq!(sample.frame[1], kind, "kind of {what}");
        assert_eq!(hex(&sample.frame[24..]), body, "body of {what}");
    }
}

#[test]
fn topics_are_these() {
    assert_eq!(sample("all").topic, "app.h.Hub.all".into());
    assert_eq!(sample("group except").topic, "app.h.Hub.g.a_2Eb".into());
    assert_eq!(
        sample("user, hashed").topic,
        "app.h.__akut97iLiyIykupwA719fd0ez3PNR-98yj-Y05ZyvKM.u.__xmitMj4MSuAlOubvdXLck65bU2001L7qZd3IcpfSVq8"
            .into()
    );
    for what in ["direct", "join", "leave", "ack", "invoke", "cancel invoke", "complete, void", "abort"] {
        assert_eq!(sample(what).topic, "app.n.-vv8_f7_".into(), "{what}");
    }
    assert_eq!(sample("beat").topic, "app.c".into());
}

#[test]
fn a_node_subscribes_these() {
    let native = native(ORIGIN);
    let hub = HubName::from("Demo.ChatHub");
    assert_eq!(
        native.node_topics(),
        [(Topic::from("app.c"), Route::Common), (Topic::from("app.n.AAECAwQF"), Route::Node)]
    );
    assert_eq!(native.hub_topics(&hub), [(Topic::from("app.h.Demo_2EChatHub.all"), Route::All(hub.clone()))]);
    assert_eq!(native.user_topic(&hub, &"ada".into()), "app.h.Demo_2EChatHub.u.ada".into());
    assert_eq!(native.group_topic(&hub, &"".into()), "app.h.Demo_2EChatHub.g._".into());
    assert_eq!(native.connection_topic(&hub, &connection()), None);
}
