//! The interest of a link: what it wants, what the server was asked for, and what has arrived of it.

use std::task::Context;

use async_nats::{Message, Subscriber};
use backplane_core::Topic;

use super::feeds::Feeds;
use super::subscriptions::{Claim, Subscriptions};

#[derive(Debug, Default)]
pub(super) struct Interest {
    subscriptions: Subscriptions,
    feeds: Feeds,
    /// Subscriptions that nobody wants any more, to be taken back with the next run.
    unwanted: Vec<Subscriber>,
}

impl Interest {
    /// A call of subscribe: which of its topics are not confirmed yet.
    pub(super) fn claim(&mut self, topics: Vec<Topic>) -> Vec<Claim> {
        self.subscriptions.claim(topics)
    }

    /// The server was asked for it.
    pub(super) fn asked(&mut self, claim: Claim, subscriber: Subscriber) {
        let slot = self.feeds.add(claim.topic.clone(), subscriber);
        self.subscriptions.asked(&claim.topic, claim.serial, slot);
    }

    /// A call of subscribe is answered.
    pub(super) fn settle(&mut self, claims: &[Claim], confirmed: bool) {
        for slot in self.subscriptions.settle(claims, confirmed) {
            self.unwanted.extend(self.feeds.remove(slot));
        }
    }

    /// A call of unsubscribe: what the server has to be told of.
    pub(super) fn release(&mut self, topics: &[Topic]) -> Vec<Subscriber> {
        let slots = self.subscriptions.release(topics);
        slots.into_iter().filter_map(|slot| self.feeds.remove(slot)).collect()
    }

    /// Everything there is.
    pub(super) fn release_all(&mut self) -> Vec<Subscriber> {
        self.feeds.remove_all()
    }

    pub(super) fn take_unwanted(&mut self) -> Vec<Subscriber> {
        std::mem::take(&mut self.unwanted)
    }

    /// Hands everything that has arrived to `take`; the task is woken when there is more.
    pub(super) fn empty(&mut self, cx: &Context<'_>, take: impl FnMut(&Topic, Message)) {
        self.feeds.empty(cx, take);
    }
}
