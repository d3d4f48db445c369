//! What the consumer of a link sends: frames in the order of the stream, and words about itself.

use std::collections::HashSet;
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::header::NATS_LAST_CONSUMER;
use async_nats::{Message, StatusCode, Subject, Subscriber};
use backplane_core::{Delivery, LossReason, Topic};
use foldhash::fast::RandomState;
use futures::StreamExt as _;
use tokio::time::Instant;

use super::metadata::Metadata;
use super::position::Standing;
use crate::inbox::{Inbox, own};
use crate::shared::{Call, Verb};
use crate::subject::topic;

/// Messages and bytes that are taken before the bound of the inbox is looked at again.
const RUN: usize = 64;
const RUN_BYTES: usize = 256 << 10;

/// The header by which a consumer that waits for us says where it hears us.
const STALLED: &str = "Nats-Consumer-Stalled";

pub(super) struct Reader {
    deliveries: Subscriber,
    prefix: String,
    /// The identity of the stream.
    stream: i64,
    /// The topics that are delivered; the consumer sends those of all nodes.
    wanted: HashSet<Topic, RandomState>,
    /// Number of the consumer's last message.
    consumed: u64,
    /// The stream's next message.
    next: u64,
    /// When the consumer last said anything, or was not listened to.
    heard: Instant,
    /// Subjects on which the consumer waits for a word.
    replies: Vec<Subject>,
    arrived: Vec<Delivery>,
}

/// Why a consumer cannot be relied upon any more.
type Unreliable = String;

impl Reader {
    /// `next`: the sequence that the consumer starts with.
    pub(super) fn new(
        deliveries: Subscriber,
        prefix: &str,
        stream: i64,
        next: u64,
        wanted: impl IntoIterator<Item = Topic>,
    ) -> Self {
        Self {
            deliveries,
            prefix: prefix.to_owned(),
            stream,
            wanted: wanted.into_iter().collect(),
            consumed: 0,
            next,
            heard: Instant::now(),
            replies: Vec::new(),
            arrived: Vec::new(),
        }
    }

    /// Interest is ours alone: the consumer delivers every topic.
    pub(super) fn want(&mut self, call: &Call) {
        match call.verb {
            Verb::Subscribe => self.wanted.extend(call.topics.iter().cloned()),
            Verb::Unsubscribe => {
                for topic in &call.topics {
                    self.wanted.remove(topic);
                }
            }
        }
    }

    /// Takes what the consumer sent, while there is room; it is not told to go on before that was taken.
    pub(super) fn receive(&mut self, cx: &mut Context<'_>, inbox: &Inbox) -> Result<(), Unreliable> {
        let mut more = true;
        while more {
            if !inbox.has_room() {
                self.heard = Instant::now();
                break;
            }
            let run = self.take_run(cx);
            inbox.push(&mut self.arrived);
            more = run?;
        }
        Ok(())
    }

    /// Whether there may be more.
    fn take_run(&mut self, cx: &mut Context<'_>) -> Result<bool, Unreliable> {
        let (mut messages, mut bytes) = (0, 0);
        while messages < RUN && bytes < RUN_BYTES {
            let Poll::Ready(Some(message)) = self.deliveries.poll_next_unpin(cx) else { return Ok(false) };
            if messages == 0 {
                self.heard = Instant::now();
            }
            messages += 1;
            bytes += message.length;
            self.judge(message)?;
        }
        Ok(true)
    }

    fn judge(&mut self, message: Message) -> Result<(), Unreliable> {
        match message.status {
            None => self.deliver(message),
            Some(StatusCode::IDLE_HEARTBEAT) => {
                let headers = message.headers.as_ref();
                // A request for flow control has a reply, a heartbeat of a stalled consumer a header.
                let stalled = || Some(Subject::from(headers?.get(STALLED)?.as_str()));
                self.replies.extend(message.reply.or_else(stalled));
                let last = headers.and_then(|headers| headers.get(NATS_LAST_CONSUMER));
                match last.and_then(|last| last.as_str().parse::<u64>().ok()) {
                    Some(last) if last != self.consumed => {
                        Err("messages of the consumer are missing".to_owned())
                    }
                    _ => Ok(()),
                }
            }
            // Such as `409 Consumer Deleted`.
            Some(status) => {
                let said = message.description.unwrap_or_default();
                Err(format!("the consumer has ended: {status} {said}"))
            }
        }
    }

    fn deliver(&mut self, message: Message) -> Result<(), Unreliable> {
        let Some(metadata) = message.reply.as_ref().and_then(|reply| Metadata::read(reply)) else {
            return Err("a message of the consumer says not where it stands".to_owned());
        };
        if metadata.consumer != self.consumed + 1 {
            return Err("messages of the consumer are missing".to_owned());
        }
        self.consumed = metadata.consumer;
        if metadata.stream < self.next {
            return Ok(());
        }
        if metadata.stream > self.next {
            self.arrived.push(Delivery::Lost { topics: None, reason: LossReason::Retention });
        }
        self.next = metadata.stream + 1;
        let wanted = topic(&self.prefix, &message.subject).and_then(|topic| self.wanted.get(topic));
        if let Some(topic) = wanted {
            let standing =
                Standing { stream: self.stream, sequence: metadata.stream, stored: metadata.stored };
            self.arrived.push(Delivery::Frame {
                topic: topic.clone(),
                frame: own(message.payload),
                position: Some(standing.position()),
            });
        }
        Ok(())
    }

    /// Where the consumer waits for a word.
    pub(super) fn take_replies(&mut self) -> Vec<Subject> {
        std::mem::take(&mut self.replies)
    }

    /// When a consumer that says nothing more is given up.
    pub(super) fn silence(&self, heartbeat: Duration) -> Instant {
        self.heard + heartbeat * 9 / 10
    }
}
