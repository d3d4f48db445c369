//! A recording as a script: what the clients and the foreign publisher do, cut into actions.

use std::ops::Range;

use backplane_core::Protocol;
use backplane_tests::recording::{Actor, Event, Recording};
use bytes::Bytes;
use serde_json::Value;

/// What a client does.
#[derive(Debug)]
pub(crate) enum Deed<'a> {
    Connect { protocol: Protocol, user: Option<String>, path: &'a str, rejected: bool },
    Disconnect,
    Invoke { call: u64, method: &'a str, arguments: Vec<Value> },
    Complete,
}

impl<'a> Deed<'a> {
    pub(crate) fn read(text: &'a str) -> Self {
        if let Some(options) = text.strip_prefix("connect, protocol ") {
            return Self::connect(options);
        }
        if text.starts_with("disconnects (") {
            return Self::Disconnect;
        }
        if text.starts_with("completes invocation id ") {
            return Self::Complete;
        }
        let invoke = || {
            let (call, rest) = text.strip_prefix("invoke ")?.split_once(' ')?;
            let (method, arguments) = rest.strip_suffix(')')?.split_once('(')?;
            let arguments = serde_json::from_str(&format!("[{arguments}]")).ok()?;
            Some(Self::Invoke { call: call.parse().ok()?, method, arguments })
        };
        invoke().unwrap_or_else(|| panic!("an action of no known kind: {text}"))
    }

    fn connect(options: &'a str) -> Self {
        let mut options = options.split(", ");
        let protocol = Protocol::named(options.next().unwrap_or_default());
        let (mut user, mut path, mut rejected) = (None, "/chatHub", false);
        for option in options {
            if let Some(quoted) = option.strip_prefix("user id ") {
                user = Some(unescape_url(quoted.trim_matches('"')));
            } else if let Some(hub) = option.strip_prefix("hub ") {
                path = hub;
            } else if option == "query &reject=1" {
                rejected = true;
            } else {
                panic!("an unknown option: {option}");
            }
        }
        Self::Connect { protocol, user, path, rejected }
    }
}

/// The user id stands in the URL.
fn unescape_url(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).expect("two digits");
                bytes.push(u8::from_str_radix(digits, 16).expect("two hexadecimal digits"));
                rest = tail;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).expect("a user id in UTF-8")
}

/// The full name of the hub behind a path.
pub(crate) fn hub_at(path: &str) -> &'static str {
    match path {
        "/chatHub" => "Demo.ChatHub",
        "/types" => "Demo.TypesHub",
        "/second" => "Demo.SecondHub",
        "/nested" => "Demo.Outer+Inner",
        "/jsononly" => "Demo.JsonOnlyHub",
        "/none" => "Demo.NoneHub",
        "/generic" => {
            "Demo.GenericHub`1[[Demo.Point, reference, Version=1.0.0.0, Culture=neutral, PublicKeyToken=null]]"
        }
        "/generics" => {
            "Demo.GenericHub`1[[System.String, System.Private.CoreLib, Version=10.0.0.0, Culture=neutral, \
             PublicKeyToken=7cec85d7bea7798e]]"
        }
        unknown => panic!("no hub at {unknown}"),
    }
}

/// The actions: each begins with what clients, the foreign publisher or the recorder do (also several at once), and
/// holds what followed.
pub(crate) fn actions(recording: &Recording) -> Vec<Range<usize>> {
    let begins = |at: usize| {
        matches!(
            recording.steps[at].event,
            Event::Does { .. }
                | Event::Note(_)
                | Event::Publish { by: Actor::Foreign(_), .. }
                | Event::Subscribe { by: Actor::Foreign(_), .. }
        )
    };
    let mut starts: Vec<usize> =
        (0..recording.steps.len()).filter(|at| *at == 0 || begins(*at) && !begins(at - 1)).collect();
    starts.push(recording.steps.len());
    starts.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

/// What was done before the first step, or between two steps, and not recorded.
pub(crate) struct Unrecorded {
    pub(crate) file: &'static str,
    /// The step before which it is done, from 1.
    pub(crate) before: usize,
    /// The client and its server.
    pub(crate) client: (&'static str, &'static str),
    pub(crate) what: What,
}

pub(crate) enum What {
    Connects(Protocol, &'static str),
    Joins(&'static str),
}

const fn connects(
    file: &'static str,
    before: usize,
    client: (&'static str, &'static str),
    protocol: Protocol,
) -> Unrecorded {
    Unrecorded { file, before, client, what: What::Connects(protocol, "/chatHub") }
}

const fn joins(before: usize, client: (&'static str, &'static str), group: &'static str) -> Unrecorded {
    Unrecorded { file: "sends", before, client, what: What::Joins(group) }
}

/// As the `about` of each file and its arrivals tell.
pub(crate) const UNRECORDED: &[Unrecorded] = &[
    joins(12, ("a1", "A"), "room"),
    joins(12, ("a2", "A"), "room"),
    joins(12, ("b1", "B"), "room"),
    joins(12, ("b1", "B"), "hall"),
    joins(12, ("b2", "B"), "hall"),
    Unrecorded {
        file: "client-results-id",
        before: 1,
        client: ("a1", "A"),
        what: What::Connects(Protocol::JSON, "/types"),
    },
    Unrecorded {
        file: "client-results-id",
        before: 1,
        client: ("b2", "B"),
        what: What::Connects(Protocol::JSON, "/types"),
    },
    connects("foreign-accepted", 1, ("j1", "A"), Protocol::JSON),
    connects("foreign-accepted", 1, ("m1", "B"), Protocol::MESSAGEPACK),
    connects("foreign-malformed", 1, ("j1", "A"), Protocol::JSON),
    connects("foreign-malformed", 1, ("m1", "B"), Protocol::MESSAGEPACK),
    connects("foreign-malformed", 84, ("j2", "A"), Protocol::JSON),
    connects("foreign-malformed", 84, ("m2", "B"), Protocol::MESSAGEPACK),
    connects("foreign-malformed", 96, ("j3", "A"), Protocol::JSON),
    connects("foreign-malformed", 96, ("m3", "B"), Protocol::MESSAGEPACK),
    connects("foreign-malformed", 111, ("j4", "A"), Protocol::JSON),
    connects("foreign-malformed", 111, ("m4", "B"), Protocol::MESSAGEPACK),
    connects("foreign-malformed", 122, ("j5", "A"), Protocol::JSON),
    connects("foreign-malformed", 122, ("m5", "B"), Protocol::MESSAGEPACK),
    connects("foreign-control", 1, ("j1", "A"), Protocol::JSON),
    connects("foreign-control", 1, ("m1", "B"), Protocol::MESSAGEPACK),
    connects("foreign-questions", 1, ("j1", "A"), Protocol::JSON),
    connects("foreign-questions", 1, ("m1", "B"), Protocol::MESSAGEPACK),
];

/// The connection id of a client.
pub(crate) fn connection_id(client: &str) -> String {
    format!("{client:A<22}")
}

/// The server name of a process; of several hub types that of the first.
pub(crate) fn server_name(letter: &str) -> String {
    format!("HOST_{}", letter.to_lowercase().repeat(32))
}

/// A recording in which each process goes by one server name: .NET has one for each hub type, ours has one link and
/// one name for all.
pub(crate) fn with_one_name_each(mut recording: Recording) -> Recording {
    for step in &mut recording.steps {
        match &mut step.event {
            Event::Publish { channel, payload, .. } | Event::Push { channel, payload, .. } => {
                *channel = one_name_text(channel);
                *payload = one_name(payload);
            }
            Event::Subscribe { channels, .. } | Event::Unsubscribe { channels, .. } => {
                channels.iter_mut().for_each(|channel| *channel = one_name_text(channel));
            }
            _ => {}
        }
    }
    recording
}

fn one_name_text(text: &str) -> String {
    String::from_utf8(one_name(text.as_bytes()).to_vec()).expect("names of one length replace each other")
}

fn one_name(bytes: &[u8]) -> Bytes {
    let mut bytes = bytes.to_vec();
    for letter in ["a", "b"] {
        let (stem, tail) = (format!("HOST_{}", letter.repeat(30)), letter.repeat(2));
        let found: Vec<usize> = places(&bytes, stem.as_bytes()).collect();
        for at in found {
            let end = at + stem.len();
            bytes[end..end + 2].copy_from_slice(tail.as_bytes());
        }
    }
    bytes.into()
}

/// Where `part` stands in `bytes`.
pub(crate) fn places(bytes: &[u8], part: &[u8]) -> impl Iterator<Item = usize> {
    bytes.windows(part.len()).enumerate().filter(move |(_, window)| *window == part).map(|(at, _)| at)
}
