//! Ids: minted unique, read back to their node, nothing else taken for one.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;

fn home(id: &str) -> Home {
    native(ORIGIN).home(&"Hub".into(), &id.into())
}

#[test]
fn connection_ids_carry_their_node() {
    let native = Native::new("app").unwrap();
    let id = native.new_connection_id();
    assert_eq!(id.as_str().len(), 22);
    assert_eq!(home(id.as_str()), Home::Node(native.node()));
}

#[test]
fn every_value_is_another_node() {
    assert_ne!(Native::new("app").unwrap().node(), Native::new("app").unwrap().node());
}

#[test]
fn ids_do_not_repeat() {
    let native = native(ORIGIN);
    let connections: HashSet<_> = (0..10_000).map(|_| native.new_connection_id()).collect();
    assert_eq!(connections.len(), 10_000);
    let questions: HashSet<_> = (0..10_000).map(|_| native.new_invocation_id()).collect();
    assert_eq!(questions.len(), 10_000);
    assert!(questions.iter().all(|id| id.as_str().len() == 22));
}

#[test]
fn ack_ids_count_from_one() {
    let native = native(ORIGIN);
    assert_eq!([native.new_ack_id(), native.new_ack_id()], [AckId(1), AckId(2)]);
}

#[test]
fn what_is_no_id_of_ours_lives_nowhere() {
    let id = "-vv8_f7_AAAAAAAAAAAAAA";
    assert_eq!(home(id), Home::Node(OTHER));
    for (what, id) in [
        ("empty", String::new()),
        ("a character short", id[..21].to_owned()),
        ("a character long", format!("{id}A")),
        ("as long, of three bytes more", format!("{id}AAAA")),
        ("bits beyond the last byte", "-vv8_f7_AAAAAAAAAAAAAB".to_owned()),
        ("of the other alphabet", id.replace('-', "+")),
        ("padded", "-vv8_f7_AAAAAAAAAAAA==".to_owned()),
        ("22 bytes of something else", "é".repeat(11)),
    ] {
        assert_eq!(home(&id), Home::Nowhere, "{what}");
    }
}

#[test]
fn commands_for_ids_that_live_nowhere_fail_typed() {
    let native = native(ORIGIN);
    let hub = HubName::from("Hub");
    let nobody = ConnectionId::from("nobody");
    let id = native.new_invocation_id();
    let message = EncodedMessage::json("{}");
    let change = MembershipChange::join(&nobody, "g");
    for command in [
        Command::ChangeGroup { ack: AckId(1), change: &change },
        Command::Invoke { connection: &nobody, id: &id, message: &message, timeout: Duration::from_secs(1) },
        Command::CancelInvoke { connection: &nobody, id: &id },
        Command::Abort { ack: AckId(1), connection: &nobody, reason: &AbortReason::default() },
    ] {
        assert_eq!(native.encode(&hub, command).unwrap_err().kind(), ErrorKind::ConnectionNotFound);
    }
    let unknown_home = Command::Send { to: Recipient::Connection(&nobody), except: &[], message: &message };
    assert_eq!(native.encode(&hub, unknown_home).unwrap_err().kind(), ErrorKind::Unsupported);
}

proptest! {
    /// An id is ours exactly when it is how its own sixteen bytes are written.
    #[test]
    fn only_the_one_spelling_of_an_id_is_read(id in "[A-Za-z0-9_-]{21,23}") {
        let bytes = URL_SAFE_NO_PAD.decode(&id).unwrap_or_default();
        let ours = bytes.len() == 16 && URL_SAFE_NO_PAD.encode(&bytes) == id;
        prop_assert_eq!(home(&id) != Home::Nowhere, ours);
    }

    #[test]
    fn any_sixteen_bytes_are_an_id(bytes: [u8; 16]) {
        let node = NodeId::from_bytes(bytes[..6].try_into().unwrap());
        prop_assert_eq!(home(&URL_SAFE_NO_PAD.encode(bytes)), Home::Node(node));
    }
}
