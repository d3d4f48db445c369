//! One run of commands: everything that is ready, as far as it fits, and the probe behind it.

use async_nats::{Client, Subject, Subscriber};
use backplane_core::Result;
use bytes::Bytes;

use super::flights::{Sent, Weight};
use super::interest::Interest;
use super::subscriptions::Claim;
use crate::errors::lost;
use crate::shared::{Batch, Call, Verb};
use crate::subject::{Subjects, subject};

/// Bytes and frames of one run: what a probe covers. A larger batch is a run of its own.
const BYTES: usize = 1 << 20;
const FRAMES: usize = 2_048;

#[derive(Debug, Default)]
pub(super) struct Run {
    pub(super) commands: Vec<Command>,
    pub(super) works: Vec<Sent>,
    pub(super) weight: Weight,
    /// It holds subscriptions whose place among the feeds is known only when it is written.
    pub(super) subscribes: bool,
}

#[derive(Debug)]
pub(super) enum Command {
    Publish(Vec<(Subject, Bytes)>),
    Subscribe(Vec<(Claim, Subject)>),
    Unsubscribe(Vec<Subscriber>),
}

/// The subscriptions of a run that was handed over.
pub(super) type Written = Result<Vec<(Claim, Subscriber)>>;

impl Run {
    pub(super) fn is_empty(&self) -> bool {
        self.works.is_empty() && self.commands.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.weight.frames < FRAMES && self.weight.bytes < BYTES
    }

    pub(super) fn unsubscribe(&mut self, subscribers: Vec<Subscriber>) {
        self.commands.push(Command::Unsubscribe(subscribers));
    }

    pub(super) fn add_batch(&mut self, batch: Batch, subjects: &mut Subjects) {
        let Batch { frames, bytes, done, .. } = batch;
        self.weight.frames += frames.len();
        self.weight.bytes += bytes;
        let mut topics = Vec::with_capacity(frames.len());
        let mut publishes = Vec::with_capacity(frames.len());
        for outgoing in frames {
            publishes.push((subjects.of(&outgoing.topic), outgoing.frame));
            topics.push(outgoing.topic);
        }
        self.commands.push(Command::Publish(publishes));
        self.works.push(Sent::Batch { topics, bytes, done });
    }

    pub(super) fn add_call(&mut self, call: Call, interest: &mut Interest, prefix: &str) {
        let Call { verb, topics, done, .. } = call;
        let count = topics.len();
        // A topic costs the server about as much as a small frame.
        self.weight.frames += count;
        match verb {
            Verb::Subscribe => {
                self.subscribes = true;
                let claims = interest.claim(topics);
                let new = claims.iter().filter(|claim| claim.new);
                let asked = new.map(|claim| (claim.clone(), subject(prefix, &claim.topic))).collect();
                self.commands.push(Command::Subscribe(asked));
                self.works.push(Sent::Subscribe { claims, topics: count, done });
            }
            Verb::Unsubscribe => {
                self.unsubscribe(interest.release(&topics));
                self.works.push(Sent::Unsubscribe { topics: count, done });
            }
        }
    }
}

/// Hands one run and its probe to the connection; waits while that cannot take more.
pub(super) async fn write(client: Client, commands: Vec<Command>, probe: (Subject, Bytes)) -> Written {
    let mut subscribed = Vec::new();
    for command in commands {
        match command {
            Command::Publish(frames) => {
                for (subject, frame) in frames {
                    client.publish(subject, frame).await.map_err(lost)?;
                }
            }
            Command::Subscribe(topics) => {
                for (claim, subject) in topics {
                    let subscriber = client.subscribe(subject).await.map_err(lost)?;
                    subscribed.push((claim, subscriber));
                }
            }
            Command::Unsubscribe(subscribers) => {
                for mut subscriber in subscribers {
                    subscriber.unsubscribe().await.map_err(lost)?;
                }
            }
        }
    }
    client.publish(probe.0, probe.1).await.map_err(lost)?;
    Ok(subscribed)
}
