//! What must follow: each recorded event against what our node did.

use std::time::Duration;

use backplane_conformance::bound;
use backplane_core::{ClientResult, CloseReason, Protocol, Topic};
use backplane_tests::recording::{Actor, Client};
use backplane_tests::wiretap::PATIENCE;
use bytes::Bytes;
use serde_json::Value;
use tokio::time::timeout;

use crate::deviations::Change;
use crate::outcome::{Outcome, Recorded, agrees, value_of};
use crate::player::{Call, Gone, Player};

impl Player<'_> {
    /// Something reaches a client of ours. `true`: a hub message, to be compared with what arrived.
    pub(crate) async fn receives(&mut self, step: usize, client: &Client, what: &str) -> bool {
        let name = client.name.as_str();
        let place = self.place(step);
        if let Some(rest) = what.strip_prefix("completion ") {
            let (call, text) = rest.split_once(": ").expect("a completion of a call");
            self.completed(step, name, call.parse().expect("a call's number"), text).await;
            return false;
        }
        if what.starts_with("end of connection (") {
            assert!(self.gone.contains_key(name), "{place}: {name} is gone");
            return false;
        }
        if what.starts_with("handshake error ") {
            assert_eq!(self.gone.get(name), Some(&Gone::Refused), "{place}");
            return false;
        }
        if what == "Close message, error \"Connection closed with an error.\", allowReconnect" {
            if self.gone.get(name) != Some(&Gone::Denied) {
                self.closes(step, name).await;
                assert_eq!(self.gone[name], Gone::Closed(CloseReason::MissingProtocol), "{place}");
            }
            return false;
        }
        match self.gone.get(name) {
            None => true,
            Some(Gone::Left) => {
                assert!(what.contains("HubException: rejected"), "{place}: {name} left before");
                false
            }
            Some(Gone::Closed(CloseReason::Aborted(_))) => {
                assert_eq!(what, "Close message", "{place}");
                false
            }
            Some(gone) => panic!("{place}: {gone:?}"),
        }
    }

    pub(crate) async fn completed(&mut self, step: usize, name: &str, call: u64, text: &str) {
        let place = self.place(step);
        let found = self.calls.remove(&(name.to_owned(), call));
        let Call { task, kind, question, deadline } =
            found.unwrap_or_else(|| panic!("{place}: no such call"));
        let (outcome, took) = timeout(PATIENCE, task)
            .await
            .unwrap_or_else(|_| panic!("{place}: it hangs"))
            .expect("the hub does not panic");
        if outcome == Outcome::TimedOut {
            let deadline = deadline.unwrap_or_else(|| panic!("{place}: it has no deadline"));
            assert!(
                took >= deadline && took < deadline + bound(Duration::from_secs(2)),
                "{place}: {took:?} of {deadline:?}"
            );
        }
        self.tally.calls += 1;
        let wanted = self.deviates(step, |change| match change {
            Change::TimesOut => Some(Outcome::TimedOut),
            Change::Disconnected => Some(Outcome::NotFound("disconnected".to_owned())),
            Change::Answers(text) => {
                Some(Outcome::Answer(ClientResult::value(Protocol::named("text"), *text)))
            }
            _ => None,
        });
        let recorded = Recorded::read(text, kind.as_deref());
        if let Some(wanted) = wanted {
            assert!(!agrees(&outcome, &recorded, None), "{place}: {outcome:?} no longer differs from {text}");
            let same = match (&wanted, &outcome) {
                (Outcome::NotFound(_), Outcome::NotFound(context)) => context.ends_with("disconnected"),
                (Outcome::Answer(ClientResult::Value { value, .. }), Outcome::Answer(result)) => {
                    value_of(result) == std::str::from_utf8(value).ok().map(Value::from)
                }
                (wanted, outcome) => wanted == outcome,
            };
            assert!(same, "{place}: {outcome:?}");
            return;
        }
        let sent = question.and_then(|id| self.answers.get(&id));
        assert!(
            agrees(&outcome, &recorded, sent),
            "{place}: {outcome:?} instead of {text}; sent was {sent:?}"
        );
    }

    /// Our node's next PUBLISH is this one. Returns its reach; `None`: it was left out on purpose.
    pub(crate) async fn published(&mut self, step: usize, channel: &str, payload: &Bytes) -> Option<u32> {
        if self.is_missing(step) {
            return None;
        }
        let place = self.place(step);
        let next = self.stage.node.next_published().await;
        let (topic, frame, reach) =
            next.unwrap_or_else(|| panic!("{place}: nothing is published on {channel}"));
        self.assert_bytes(step, (channel, payload), (&topic, &frame));
        self.tally.publishes += 1;
        Some(reach)
    }

    pub(crate) fn assert_bytes(&self, step: usize, recorded: (&str, &Bytes), ours: (&Topic, &Bytes)) {
        let place = self.place(step);
        let (channel, payload) = recorded;
        let (topic, frame) = (ours.0, self.to_recorded(ours.1));
        assert_eq!(*topic, Topic::from(channel), "{place}: {}", frame.escape_ascii());
        assert!(
            frame == *payload,
            "{place}: {}\ninstead of {}",
            frame.escape_ascii(),
            payload.escape_ascii()
        );
    }

    pub(crate) fn reached(&mut self, step: usize, recorded: u64, reach: u32) {
        let place = self.place(step);
        let differs = self.deviates(step, |change| match change {
            Change::Reaches(reach) => Some(*reach),
            _ => None,
        });
        if let Some(ours) = differs {
            assert_ne!(u64::from(ours), recorded, "{place}: a deviation that is none");
        }
        assert_eq!(u64::from(reach), differs.map_or(recorded, u64::from), "{place}: receivers");
        self.tally.reaches += 1;
    }

    pub(crate) async fn pushed(&mut self, step: usize, to: &Actor, channel: &str, payload: &Bytes) {
        if self.is_missing(step) {
            return;
        }
        let place = self.place(step);
        let topic = Topic::from(channel);
        let ear = if self.ours(to) {
            &mut self.stage.node
        } else {
            match self.stage.others.get_mut(to) {
                Some(other) => &mut other.ear,
                None => panic!("{place}: {to:?} is not there"),
            }
        };
        let frame = ear.take(&topic).await.unwrap_or_else(|| panic!("{place}: nothing arrives on {channel}"));
        self.assert_bytes(step, (channel, payload), (&topic, &frame));
        self.tally.pushes += 1;
    }

    /// A line of the log of the server in whose place our node stands.
    pub(crate) fn logged(&mut self, step: usize, line: &str) {
        let reads = self.deviates(step, |change| (*change == Change::Reads).then_some(())).is_some();
        let unreadable =
            [10, 11, 12, 15].iter().any(|event| line.contains(&format!("RedisHubLifetimeManager[{event}]")));
        assert!(unreadable || !reads, "{}: {line}", self.place(step));
        if unreadable && !reads {
            self.refused += 1;
        }
        if line.contains("HubConnectionContext[6]") {
            self.lacking += 1;
        }
    }
}
