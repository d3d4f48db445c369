//! Topics: every name gets one, no two share one, every broker can carry them; hashed names are compared on receipt.

use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;

/// What a topic belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    All(String),
    Group(String, String),
    User(String, String),
}

impl Owner {
    fn topic(&self) -> Topic {
        let native = native(ORIGIN);
        match self {
            Self::All(hub) => native.hub_topics(&hub.as_str().into()).remove(0).0,
            Self::Group(hub, group) => native.group_topic(&hub.as_str().into(), &group.as_str().into()),
            Self::User(hub, user) => native.user_topic(&hub.as_str().into(), &user.as_str().into()),
        }
    }
}

/// How `name` stands in a topic.
fn token(name: &str) -> String {
    let topic = Owner::Group("h".into(), name.into()).topic();
    let text = String::from_utf8(topic.as_bytes().to_vec()).unwrap();
    text.strip_prefix("app.h.h.g.").unwrap().to_owned()
}

fn unescape(token: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), token.bytes());
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'_' {
            let digits = [rest.next().unwrap(), rest.next().unwrap()];
            u8::from_str_radix(str::from_utf8(&digits).unwrap(), 16).unwrap()
        } else {
            byte
        });
    }
    String::from_utf8(bytes).unwrap()
}

fn hostile_names() -> Vec<String> {
    let mut names: Vec<String> = [
        "", "_", "__", "_00", "\0", "\0\0", " ", ".", "..", "a.b", "a_b", "a_2Eb", "a-b", "*", ">", "#", "?",
        "[a]", "room", "Room", "ROOM", "all", "g", "u", "é", "e\u{301}", "😀", "\u{feff}", "\r\n", "'", "\\",
        "/", ":", "h.all",
    ]
    .map(String::from)
    .to_vec();
    for letter in ["a", "A", ".", "😀"] {
        // Around every length at which the spelling changes.
        names.extend([15, 16, 17, 20, 21, 22, 63, 64, 65, 66, 10_000].map(|times| letter.repeat(times)));
    }
    // Names that look like the topics of others.
    let spelled: Vec<String> = names.iter().map(|name| token(name)).collect();
    names.extend(spelled);
    names.sort();
    names.dedup();
    names
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[aA2E_.\\-]{0,5}",
        2 => "\\PC{0,40}",
        2 => any::<String>(),
        1 => "[aA._]{60,70}",
        1 => prop::sample::select(hostile_names()),
        1 => any::<String>().prop_map(|name| token(&name)),
    ]
}

fn owner() -> impl Strategy<Value = Owner> {
    prop_oneof![
        name().prop_map(Owner::All),
        (name(), name()).prop_map(|(hub, group)| Owner::Group(hub, group)),
        (name(), name()).prop_map(|(hub, user)| Owner::User(hub, user)),
    ]
}

#[test]
fn no_two_hostile_names_share_a_topic() {
    let mut seen = std::collections::HashMap::new();
    let names = hostile_names();
    let hubs = names.iter().map(|hub| Owner::All(hub.clone()));
    let groups = names.iter().map(|group| Owner::Group("hub".into(), group.clone()));
    let users = names.iter().map(|user| Owner::User("hub".into(), user.clone()));
    let hub_groups = names.iter().map(|hub| Owner::Group(hub.clone(), "group".into()));
    for owner in hubs.chain(groups).chain(users).chain(hub_groups) {
        let topic = owner.topic();
        assert!(topic.is_tokens(), "{topic}");
        if let Some(other) = seen.insert(topic, owner.clone()) {
            panic!("{other:?} and {owner:?} share a topic");
        }
    }
}

#[test]
fn the_longest_topic_fits() {
    let native = Native::new(&"p".repeat(64)).unwrap();
    let longest = native.group_topic(&"h".repeat(64).into(), &"g".repeat(64).into());
    assert!(longest.is_tokens());
    assert_eq!(longest.as_bytes().len(), 198);
}

#[test]
fn a_prefix_is_escaped_and_bounded() {
    for (prefix, common) in
        [("app", "app.c"), ("my app", "my_20app.c"), ("a.c", "a_2Ec.c"), ("é", "_C3_A9.c"), ("_", "_5F.c")]
    {
        assert_eq!(Native::new(prefix).unwrap().node_topics()[0].0, common.into());
    }
    Native::new(&".".repeat(21)).unwrap();
    for prefix in [String::new(), ".".repeat(22), "p".repeat(65), "😀".repeat(6)] {
        assert_eq!(Native::new(&prefix).unwrap_err().kind(), ErrorKind::InvalidConfig, "{prefix}");
    }
}

/// A message for `to` of `hub`, as it arrives at a node that has `route` on the same topic.
fn arrive(hub: &str, to: Recipient<'_>, route: &Route) -> Inbound {
    let message = EncodedMessage::json("{}");
    carry(&hub.into(), Command::Send { to, except: &[], message: &message }, route)
}

#[test]
fn names_of_the_same_hash_are_told_apart_by_the_frame() {
    let (hub, name) = (long_name("h"), long_name("1"));
    let (group, user) = (GroupName::from(name.as_str()), UserId::from(name.as_str()));
    let message = Inbound::Message { except: Vec::new(), message: EncodedMessage::json("{}") };
    let here = HubName::from(hub.as_str());
    let elsewhere = HubName::from(long_name("other"));
    let another = long_name("2");

    assert_eq!(arrive(&hub, Recipient::All, &Route::All(here.clone())), message);
    assert_eq!(arrive(&hub, Recipient::All, &Route::All(elsewhere.clone())), Inbound::Unwanted);

    let to = Recipient::Group(&group);
    assert_eq!(arrive(&hub, to, &Route::Group(here.clone(), group.clone())), message);
    assert_eq!(arrive(&hub, to, &Route::Group(here.clone(), another.as_str().into())), Inbound::Unwanted);
    assert_eq!(arrive(&hub, to, &Route::Group(elsewhere.clone(), group.clone())), Inbound::Unwanted);
    assert_eq!(arrive("h", to, &Route::Group("h".into(), another.as_str().into())), Inbound::Unwanted);

    let to = Recipient::User(&user);
    assert_eq!(arrive(&hub, to, &Route::User(here.clone(), user.clone())), message);
    assert_eq!(arrive(&hub, to, &Route::User(here.clone(), another.as_str().into())), Inbound::Unwanted);
    assert_eq!(arrive(&hub, to, &Route::User(elsewhere, user.clone())), Inbound::Unwanted);
}

#[test]
fn a_hashed_topic_demands_the_name_in_the_frame() {
    let native = native(ORIGIN);
    let message = EncodedMessage::json("{}");
    let unnamed = native
        .encode(&"h".into(), Command::Send { to: Recipient::All, except: &[], message: &message })
        .unwrap()
        .frame
        .freeze();
    for route in [
        Route::All(long_name("h").into()),
        Route::Group("h".into(), long_name("g").into()),
        Route::User("h".into(), long_name("u").into()),
    ] {
        assert_eq!(native.decode(&route, unnamed.clone()).unwrap_err().kind(), ErrorKind::Malformed);
    }
}

#[test]
fn names_that_the_topic_spells_are_not_repeated() {
    let name = "n".repeat(64);
    let message = EncodedMessage::json("{}");
    let native = native(ORIGIN);
    let of = |hub: &str, group: &str| {
        let group = GroupName::from(group);
        let send = Command::Send { to: Recipient::Group(&group), except: &[], message: &message };
        native.encode(&hub.into(), send).unwrap().frame.len()
    };
    assert_eq!(of(&name, &name), of("h", ""));
    // The hashed ones are, also where only escaping made them too long.
    for hashed in [".".repeat(22), ".".repeat(64), long_name("")] {
        assert_eq!(of("h", &hashed), of("h", "") + 1 + hashed.len());
        assert_eq!(of(&hashed, "g"), of("h", "") + 1 + hashed.len());
    }
}

proptest! {
    #[test]
    fn different_owners_have_different_topics(one in owner(), other in owner()) {
        prop_assert_eq!(one.topic() == other.topic(), one == other);
    }

    #[test]
    fn every_topic_is_made_of_tokens(owner in owner(), prefix in "[a-z.]{1,21}") {
        prop_assert!(owner.topic().is_tokens());
        let native = Native::new(&prefix).unwrap();
        for (topic, _) in native.node_topics() {
            prop_assert!(topic.is_tokens());
        }
    }

    /// Which proves that no two names share a token, as far as they are not hashed.
    #[test]
    fn escaped_names_can_be_read_back(name in name()) {
        let token = token(&name);
        prop_assert!(token.len() <= 64);
        if token == "_" {
            prop_assert_eq!(name, "");
        } else if token.starts_with("__") {
            prop_assert_eq!(token.len(), 45);
            prop_assert!(name.len() > 21);
            prop_assert!(topics::is_hashed(&name));
        } else {
            prop_assert!(!topics::is_hashed(&name));
            prop_assert_eq!(unescape(&token), name);
        }
    }
}
