//! What an action leaves: arrivals, nothing else, and the subscriptions.

use std::collections::{BTreeMap, BTreeSet};

use backplane_core::Topic;
use backplane_tests::recording::Event;

use crate::client::{Arrival, Message};
use crate::deviations::Change;
use crate::player::Player;

impl Player<'_> {
    pub(crate) fn compare_arrivals(&mut self, mut recorded: BTreeMap<String, Vec<usize>>) {
        let beside = self.beside(|change| match change {
            Change::Arrives(client, what) => Some((*client, *what)),
            _ => None,
        });
        let names: Vec<String> = self.stage.clients.keys().cloned().collect();
        for name in names {
            let arrived = self.stage.clients.get_mut(&name).expect("it is listed").take();
            let mut arrived = arrived.into_iter();
            for step in recorded.remove(&name).unwrap_or_default() {
                if self.is_missing(step) {
                    continue;
                }
                let place = self.place(step);
                let arrival = arrived.next().unwrap_or_else(|| panic!("{place}: nothing arrives at {name}"));
                self.compare_arrival(step, &arrival);
            }
            for (_, what) in beside.iter().filter(|(client, _)| *client == name) {
                let arrival = arrived.next().unwrap_or_else(|| panic!("{what} no longer arrives at {name}"));
                assert_eq!(arrival.what, Message::recorded(what));
                self.tally.arrivals += 1;
            }
            let left: Vec<Arrival> = arrived.collect();
            assert_eq!(left, [], "{}: {name} got more", self.place(self.action.start));
        }
        assert!(recorded.is_empty(), "{}: {recorded:?}", self.place(self.action.start));
    }

    pub(crate) fn compare_arrival(&mut self, step: usize, arrival: &Arrival) {
        let place = self.place(step);
        let Event::Receives { what, wire, .. } = &self.recording.steps[step].event else {
            unreachable!("only arrivals are collected")
        };
        let bytes = self.to_recorded(&arrival.wire);
        let (expected, mut actual) = (Message::recorded(what), arrival.what.clone());
        if let Message::Invocation { id: Some(id), .. } = &mut actual {
            *id = String::from_utf8(self.to_recorded(id.as_bytes()).to_vec()).expect("ids are text");
        }
        assert_eq!(actual, expected, "{place}: {}", bytes.escape_ascii());
        if let Some(wire) = wire {
            assert_eq!(bytes, *wire, "{place}: {}", bytes.escape_ascii());
        }
        self.tally.arrivals += 1;
    }

    /// Nothing else was published, and whatever else was heard is listed as a deviation.
    pub(crate) fn compare_leftovers(&mut self) {
        let place = self.place(self.action.start);
        let published = self.stage.node.left_published();
        assert!(published.is_empty(), "{place}: also publishes {published:?}");
        let mut gets = self.beside(|change| match change {
            Change::Gets(channel) => Some(Topic::from(*channel)),
            _ => None,
        });
        for (topic, frame) in self.stage.node.left() {
            let known = gets.iter().position(|channel| *channel == topic);
            let known =
                known.unwrap_or_else(|| panic!("{place}: also gets {} on {topic}", frame.escape_ascii()));
            gets.swap_remove(known);
        }
        assert!(gets.is_empty(), "{place}: nothing arrives on {gets:?} any more");
        for (actor, other) in &mut self.stage.others {
            let left = other.ear.left();
            assert!(left.is_empty(), "{place}: {actor:?} also gets {left:?}");
        }
    }

    /// After the action our node is subscribed to the same channels, and came to it by the same changes.
    pub(crate) async fn compare_subscriptions(&mut self) {
        let place = self.place(self.action.start);
        let subscribes = self.beside(|change| match change {
            Change::Subscribes(channel) => Some(*channel),
            _ => None,
        });
        subscribes.into_iter().for_each(|channel| self.subscribe(channel.to_owned()));
        let unsubscribes = self.beside(|change| match change {
            Change::Unsubscribes(channel) => Some(*channel),
            _ => None,
        });
        unsubscribes.into_iter().for_each(|channel| self.unsubscribe(channel));
        let expected: BTreeSet<Topic> =
            self.subscribed.iter().map(|channel| Topic::from(channel.as_str())).collect();
        // Channels are freed in the background.
        let equal = self.stage.node.tap.until(|heard| heard.subscribed == expected).await;
        let subscribed = self.stage.node.tap.look(|heard| heard.subscribed.clone());
        assert!(equal, "{place}: subscribed to {subscribed:#?}\ninstead of {expected:#?}");
        let mut changes = std::mem::take(&mut self.changes);
        changes.sort();
        assert_eq!(self.stage.node.new_changes(), changes, "{place}: the changes");
        self.tally.changes += changes.len();
        if let Some(redis) = self.redis {
            let mut all = expected;
            for other in self.stage.others.values() {
                all.extend(other.ear.tap.look(|heard| heard.subscribed.clone()));
            }
            let channels = redis.channels().await.expect("Redis answers");
            let channels: BTreeSet<Topic> = channels.iter().map(|channel| Topic::new(channel)).collect();
            assert_eq!(channels, all, "{place}: what Redis says");
        }
    }
}
