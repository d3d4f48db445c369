//! The receiving side of a link: credit, messages taken apart, and what nobody here asked for left out.

use std::sync::Arc;

use backplane_core::{Delivery, LossReason, Topic};
use bytes::Bytes;
use fe2o3_amqp::Receiver;
use fe2o3_amqp::link::{IllegalLinkStateError, LinkStateError, RecvError};
use fe2o3_amqp::types::messaging::Data;
use futures::FutureExt as _;

use super::filters::Interest;
use super::inbox::Inbox;
use super::packing::Unpack;
use super::publisher::End;
use super::refusal;

/// Most messages that are taken before their frames are handed over.
const RUN: u32 = 64;
/// Credit never falls below this, however large messages are.
const MIN_CREDIT: u32 = 4;

/// How many messages the broker may send ahead.
#[derive(Debug)]
pub(super) struct Credit {
    most: u32,
    /// Bytes that may be on their way or wait unread in the engine, about.
    bytes: usize,
    /// A moving average of the size of messages.
    average: usize,
    granted: u32,
    taken: u32,
}

impl Credit {
    /// `most` messages, and about `bytes` of them.
    pub(super) fn new(most: u32, bytes: usize) -> Self {
        Self { most, bytes, average: 0, granted: 0, taken: 0 }
    }

    /// What to grant at first.
    pub(super) fn first(&mut self) -> u32 {
        self.granted = self.most;
        self.granted
    }

    /// A message of `size` bytes was taken. Returns the credit to grant anew, if it is time.
    pub(super) fn took(&mut self, size: usize) -> Option<u32> {
        self.average = (self.average * 15 + size) / 16;
        self.taken += 1;
        if self.taken < self.granted.div_ceil(2) {
            return None;
        }
        self.taken = 0;
        let fitting = u32::try_from(self.bytes / self.average.max(1)).unwrap_or(u32::MAX);
        self.granted = fitting.clamp(MIN_CREDIT.min(self.most), self.most);
        Some(self.granted)
    }
}

/// The body of the next message; `None` if it is not ours.
pub(super) async fn next(receiver: &mut Receiver) -> Result<Option<Bytes>, End> {
    body(receiver.recv::<Data>().await)
}

fn body(received: Result<fe2o3_amqp::Delivery<Data>, RecvError>) -> Result<Option<Bytes>, End> {
    match received {
        Ok(delivery) => Ok(Some(Bytes::from(delivery.into_body().0.into_vec()))),
        Err(error) => match refusal::receive(&error) {
            Some(end) => Err(end),
            None => Ok(None),
        },
    }
}

/// Credit cannot be granted on a link that ended.
pub(super) fn not_granted(error: IllegalLinkStateError) -> End {
    refusal::link("receive", &LinkStateError::from(error))
}

/// Receives until the link ends.
pub(super) async fn receive(
    mut receiver: Receiver,
    mut credit: Credit,
    inbox: Arc<Inbox>,
    interest: Arc<Interest>,
) -> End {
    let mut run = Vec::new();
    loop {
        inbox.room().await;
        let mut received = Some(receiver.recv::<Data>().await);
        let mut taken = 0;
        let end = loop {
            let Some(one) = received else { break None };
            let size = match body(one) {
                Ok(message) => {
                    let size = message.as_ref().map_or(0, Bytes::len);
                    take_apart(message, &interest, &mut run);
                    size
                }
                Err(end) => break Some(end),
            };
            if let Some(grant) = credit.took(size)
                && let Err(error) = receiver.set_credit(grant).await
            {
                break Some(not_granted(error));
            }
            taken += 1;
            received = if taken < RUN { receiver.recv::<Data>().now_or_never() } else { None };
        };
        inbox.push(&mut run);
        if let Some(end) = end {
            return end;
        }
    }
}

/// The frames of a message that somebody here subscribed to.
fn take_apart(message: Option<Bytes>, interest: &Interest, run: &mut Vec<Delivery>) {
    let lost = Delivery::Lost { topics: None, reason: LossReason::Unreadable };
    let Some(Ok(frames)) = message.map(Unpack::new) else { return run.push(lost) };
    interest.look(|subscribed: &dyn Fn(&[u8]) -> Option<Topic>| {
        let mut frames = frames;
        while let Some(read) = frames.next() {
            match read {
                Ok((topic, frame)) => run.extend(subscribed(&topic).map(|topic| Delivery::Frame {
                    topic,
                    frame: frames.own(frame),
                    position: None,
                })),
                Err(_) => run.push(lost.clone()),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::packing::Pack;
    use super::*;

    #[test]
    fn credit_is_renewed_when_half_is_used_and_shrinks_for_large_messages() {
        let mut credit = Credit::new(1_000, 1 << 20);
        assert_eq!(credit.first(), 1_000);
        let renewed = (0..499).find_map(|_| credit.took(100));
        assert_eq!(renewed, None);
        assert_eq!(credit.took(100), Some(1_000));
        let large = (0..500).find_map(|_| credit.took(64 << 10)).unwrap();
        assert!((10..=20).contains(&large), "{large}");
        let huge = (0..500).filter_map(|_| credit.took(10 << 20)).last().unwrap();
        assert_eq!(huge, MIN_CREDIT);
        assert_eq!(Credit::new(1, 1).first(), 1);
    }

    #[test]
    fn only_subscribed_topics_come_through_and_foreign_messages_are_a_loss() {
        let mut pack = Pack::new();
        for topic in ["a", "b", "a"] {
            pack.push(&Topic::from(topic), &Bytes::from_static(b"frame"));
        }
        let interest = Interest::new(&[Topic::from("a")]);
        let mut run = Vec::new();
        take_apart(Some(pack.into_body().into()), &interest, &mut run);
        assert_eq!(run.len(), 2);
        take_apart(Some(Bytes::from_static(b"foreign")), &interest, &mut run);
        take_apart(None, &interest, &mut run);
        assert!(matches!(run[2..], [Delivery::Lost { .. }, Delivery::Lost { .. }]));
    }
}
