//! Recordings in which one thing is wrong, to prove that each comparison can fail.

use backplane_tests::recording::{Actor, Event, Step};
use bytes::Bytes;

use crate::script::places;

/// What is wrong, in which recording, with our node in whose place.
pub(crate) type Falsified = (&'static str, &'static str, &'static str, fn(&mut Vec<Step>));

pub(crate) const FALSIFIED: &[Falsified] = &[
    ("a byte of our PUBLISH", "groups-remote", "A", |steps| payload(steps, "A")),
    ("a byte of an acknowledgement of ours", "groups-remote", "B", |steps| payload(steps, "B")),
    ("a PUBLISH of ours that is not recorded", "sends", "A", |steps| {
        remove(steps, |event| matches!(event, Event::Publish { .. }));
    }),
    ("a PUBLISH that ours does not make", "groups-remote", "A", |steps| {
        repeat(steps, |event| matches!(event, Event::Publish { by, .. } if *by == server("A")));
    }),
    ("a number of receivers", "sends", "B", |steps| {
        change(steps, |event| match event {
            Event::Publish { receivers, .. } => {
                *receivers += 1;
                true
            }
            _ => false,
        });
    }),
    ("the channel of a SUBSCRIBE", "groups", "A", |steps| {
        change(steps, |event| match event {
            Event::Subscribe { channels, .. } => {
                channels[0].push('x');
                true
            }
            _ => false,
        });
    }),
    ("an UNSUBSCRIBE that is not recorded", "groups", "A", |steps| {
        remove(steps, |event| matches!(event, Event::Unsubscribe { .. }));
    }),
    ("a SUBSCRIBE and an UNSUBSCRIBE that ours does not make", "groups", "A", |steps| {
        let at = position(steps, |event| matches!(event, Event::Unsubscribe { .. }));
        let mut step = steps[at].clone();
        let Event::Unsubscribe { by, channels } = step.event else { unreachable!("it was looked for") };
        step.event = Event::Subscribe { by, channels };
        steps.insert(at, step);
    }),
    ("a message to our node that is not recorded", "sends", "B", |steps| {
        remove(steps, |event| matches!(event, Event::Push { to, .. } if *to == server("B")));
    }),
    ("a message to the other that is not recorded", "sends", "A", |steps| {
        remove(steps, |event| matches!(event, Event::Push { to, .. } if *to == server("B")));
    }),
    ("a message to the other that does not come", "sends", "A", |steps| {
        repeat(steps, |event| matches!(event, Event::Push { to, .. } if *to == server("B")));
    }),
    ("an arrival that is not recorded", "sends", "B", |steps| remove(steps, |event| arrives(event, "B"))),
    ("an arrival that does not come", "sends", "B", |steps| repeat(steps, |event| arrives(event, "B"))),
    ("the text of an arrival", "sends", "B", |steps| {
        change(steps, |event| match event {
            Event::Receives { client, what, .. } if client.server == "B" => {
                *what = what.replace("to all", "to some");
                true
            }
            _ => false,
        });
    }),
    ("a byte of an arrival", "client-results", "B", |steps| {
        change(steps, |event| match event {
            Event::Receives { client, wire: Some(wire), .. } if client.server == "B" => {
                *wire = flipped(wire);
                true
            }
            _ => false,
        });
    }),
    ("the headers of a client result", "client-results", "B", |steps| {
        change(steps, |event| match event {
            Event::Publish { by, payload, .. } if *by == server("B") => {
                let headers = places(payload, br#"{"h":"v"}"#).next();
                let Some(at) = headers else { return false };
                let mut other = payload.to_vec();
                other[at + 2] = b'g';
                *payload = other.into();
                true
            }
            _ => false,
        });
    }),
    ("the value of a client result", "client-results", "A", |steps| {
        completion(
            steps,
            "completion 4: result \"value Int32 42\"",
            "completion 4: result \"value Int32 43\"",
        );
    }),
    ("the text of a client's error", "client-results", "A", |steps| {
        completion(
            steps,
            "completion 12: result \"exception Microsoft.AspNetCore.SignalR.HubException: client said no\"",
            "completion 12: result \"exception Microsoft.AspNetCore.SignalR.HubException: client said yes\"",
        );
    }),
    ("a connection that does not exist", "client-results", "A", |steps| {
        completion(
            steps,
            "completion 26: result \"exception System.IO.IOException: Connection 'nobodyAAAAAAAAAAAAAAAA' does not exist.\"",
            "completion 26: result \"exception System.IO.IOException: Connection 'nobodyAAAAAAAAAAAAAAAA' disconnected.\"",
        );
    }),
    ("a deviation that no longer occurs", "groups-unknown-connection", "A", |steps| {
        completion(
            steps,
            "completion 1: error \"An unexpected error occurred invoking 'JoinOther' on the server. \
             TaskCanceledException: A task was canceled.\"",
            "completion 1: result \"exception Microsoft.AspNetCore.SignalR.HubException: Invocation canceled by the server.\"",
        );
    }),
    ("a frame that should have been refused", "foreign-control", "B", |steps| {
        let at = position(steps, |event| matches!(event, Event::Log { server, .. } if server == "B"));
        steps.insert(at, steps[at].clone());
    }),
];

fn server(letter: &str) -> Actor {
    Actor::Server(letter.to_owned())
}

fn arrives(event: &Event, letter: &str) -> bool {
    matches!(event, Event::Receives { client, what, .. }
        if client.server == letter && !what.starts_with("completion "))
}

fn position(steps: &[Step], is: impl Fn(&Event) -> bool) -> usize {
    steps.iter().position(|step| is(&step.event)).expect("there is such a step")
}

fn remove(steps: &mut Vec<Step>, is: impl Fn(&Event) -> bool) {
    steps.remove(position(steps, is));
}

fn repeat(steps: &mut Vec<Step>, is: impl Fn(&Event) -> bool) {
    let at = position(steps, is);
    steps.insert(at, steps[at].clone());
}

fn change(steps: &mut [Step], mut changes: impl FnMut(&mut Event) -> bool) {
    assert!(steps.iter_mut().any(|step| changes(&mut step.event)), "there is such a step");
}

fn flipped(bytes: &[u8]) -> Bytes {
    let mut bytes = bytes.to_vec();
    *bytes.last_mut().expect("a byte") ^= 1;
    bytes.into()
}

fn payload(steps: &mut [Step], letter: &str) {
    change(steps, |event| match event {
        Event::Publish { by, payload, .. } if *by == server(letter) => {
            *payload = flipped(payload);
            true
        }
        _ => false,
    });
}

fn completion(steps: &mut [Step], recorded: &str, instead: &str) {
    change(steps, |event| match event {
        Event::Receives { what, .. } if what == recorded => {
            *what = instead.to_owned();
            true
        }
        _ => false,
    });
}
