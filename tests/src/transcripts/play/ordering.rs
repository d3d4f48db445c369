//! What may come at another place than recorded: a Completion that a deviation names, and pings where the runs of a
//! recording differed in them.

use super::{Act, Framing, Kind, Player, Step, describe, is_ping, written};
use crate::transcripts::file::Record;
use crate::transcripts::json::Json;
use crate::transcripts::lists::Deviation;
use crate::transcripts::websocket::Got;

impl Player<'_> {
    /// Whether `got` is the Completion of a later step, that a deviation `order` lets come before the invocation
    /// expected now. Only invocations without an id may stand between.
    pub(super) fn came_early(&mut self, step: &Step, got: &Got) -> bool {
        let transcript = self.transcript;
        let here = transcript.steps.iter().enumerate().skip(self.index);
        let mut before = None;
        for (index, later) in here.filter(|(_, later)| later.connection == step.connection) {
            let Act::Receive(record) = &later.act else { return false };
            if before.is_some() && self.is_free_completion(index, record) {
                let replaced = self.replacement_at(index).map(written);
                let expected = replaced.as_ref().unwrap_or(record);
                return self.matches(expected, got) && self.early.insert(index);
            }
            if !is_send(record) {
                return false;
            }
            before = Some(index);
        }
        false
    }

    /// Whether a deviation says so of the Completion at the step `index`, and it has not come yet.
    fn is_free_completion(&self, index: usize, record: &Record) -> bool {
        let order = |deviation: &Deviation| deviation.step == index + 1 && deviation.kind == Kind::Order;
        is_completion(record) && !self.early.contains(&index) && self.deviations.iter().any(order)
    }

    /// Whether `got` is a ping, which comes when it comes.
    pub(super) fn is_free(&mut self, step: &Step, got: &Got) -> bool {
        let ping = matches!(got, Got::Record(bytes, _) if is_ping(bytes));
        if ping {
            self.pings.entry(step.connection.clone()).or_default().got += 1;
        }
        ping
    }

    /// A ping in a recording whose runs differ: waited for only where it is the last that comes on its connection.
    pub(super) async fn free_ping(&mut self, step: &Step, framing: Framing) {
        self.pings.entry(step.connection.clone()).or_default().expected += 1;
        let mut later = self.transcript.steps[self.index + 1..].iter();
        if later.any(|later| later.connection == step.connection) {
            return;
        }
        let got = self.next_record(step, framing).await;
        if !got.as_ref().is_some_and(|got| self.is_free(step, got)) {
            self.differs("a ping", got.as_ref().map_or_else(String::new, describe));
        }
    }
}

fn member(record: &Record, name: &str) -> Option<Json> {
    let source = record.bytes.source();
    match Json::parse(source.trim_end_matches('\u{1e}'))? {
        Json::Object(mut members) => members.remove(name),
        _ => None,
    }
}

fn is_completion(record: &Record) -> bool {
    match record.framing {
        Framing::Separator => member(record, "type") == Json::parse("3"),
        Framing::Length => record.bytes.stand_in().get(2) == Some(&3),
    }
}

/// An invocation without an id: what `send` sends.
fn is_send(record: &Record) -> bool {
    match record.framing {
        Framing::Separator => {
            member(record, "type") == Json::parse("1") && member(record, "invocationId").is_none()
        }
        // List head, type 1, no headers, no id; a length below 128 before.
        Framing::Length => record.bytes.stand_in().get(1..5) == Some(&[0x96, 0x01, 0x80, 0xc0]),
    }
}
