//! Flaws of what arrives.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use backplane_core::{Attach, Bus, Delivery, Error, ErrorKind, Link, LinkSender, Outgoing, Result, Topic};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::flaw::{Flaw, Inbound, Publishing, each, each_frame};

/// Drops every so manieth frame.
#[derive(Debug)]
pub(super) struct Drops(pub(super) usize);

impl Flaw for Drops {
    fn inbound(self: Arc<Self>, whole: Inbound) -> Inbound {
        each_frame(whole, move |count, frame| if count.is_multiple_of(self.0) { vec![] } else { vec![frame] })
    }
}

/// Delivers every so manieth frame twice.
#[derive(Debug)]
pub(super) struct Repeats(pub(super) usize);

impl Flaw for Repeats {
    fn inbound(self: Arc<Self>, whole: Inbound) -> Inbound {
        each_frame(
            whole,
            move |count, frame| {
                if count.is_multiple_of(self.0) { vec![frame.clone(), frame] } else { vec![frame] }
            },
        )
    }
}

/// Delivers only the start of frames longer than 4 KiB: a read that was not repeated.
#[derive(Debug)]
pub(super) struct Truncates;

impl Flaw for Truncates {
    fn inbound(self: Arc<Self>, whole: Inbound) -> Inbound {
        each_frame(whole, |_, mut delivery| {
            if let Delivery::Frame { frame, .. } = &mut delivery {
                frame.truncate(4_096);
            }
            vec![delivery]
        })
    }
}

/// Changes the last byte of one frame in five hundred.
#[derive(Debug)]
pub(super) struct Corrupts;

impl Flaw for Corrupts {
    fn inbound(self: Arc<Self>, whole: Inbound) -> Inbound {
        each_frame(whole, |count, mut delivery| {
            if let Delivery::Frame { frame, .. } = &mut delivery
                && count.is_multiple_of(500)
            {
                let mut bytes = frame.to_vec();
                if let Some(last) = bytes.last_mut() {
                    *last ^= 1;
                }
                *frame = Bytes::from(bytes);
            }
            vec![delivery]
        })
    }
}

/// Loses frames without bytes.
#[derive(Debug)]
pub(super) struct SwallowsEmpty;

impl Flaw for SwallowsEmpty {
    fn inbound(self: Arc<Self>, whole: Inbound) -> Inbound {
        each_frame(whole, |_, delivery| match &delivery {
            Delivery::Frame { frame, .. } if frame.is_empty() => vec![],
            _ => vec![delivery],
        })
    }
}

/// Delivers every tenth frame under the topic of the one before.
#[derive(Debug)]
pub(super) struct MixesTopics;

impl Flaw for MixesTopics {
    fn inbound(self: Arc<Self>, whole: Inbound) -> Inbound {
        let mut last: Option<Topic> = None;
        each_frame(whole, move |count, mut delivery| {
            if let Delivery::Frame { topic, .. } = &mut delivery {
                let own = last.replace(topic.clone());
                if let Some(before) = own.filter(|_| count.is_multiple_of(10)) {
                    *topic = before;
                }
            }
            vec![delivery]
        })
    }
}

/// Says nothing when the link dies.
#[derive(Debug)]
pub(super) struct GoesQuiet;

impl Flaw for GoesQuiet {
    fn inbound(self: Arc<Self>, whole: Inbound) -> Inbound {
        whole
            .flat_map(|item| match item {
                Err(_) => stream::pending().boxed(),
                item => stream::iter([item]).boxed(),
            })
            .boxed()
    }
}

/// Ends a dead link as if it had been closed.
#[derive(Debug)]
pub(super) struct EndsWithoutError;

impl Flaw for EndsWithoutError {
    fn inbound(self: Arc<Self>, whole: Inbound) -> Inbound {
        whole.take_while(|item| std::future::ready(item.is_ok())).boxed()
    }
}

/// Goes on after the error.
#[derive(Debug)]
pub(super) struct DeliversAfterError;

impl Flaw for DeliversAfterError {
    fn inbound(self: Arc<Self>, whole: Inbound) -> Inbound {
        let mut last = None;
        each(whole, move |item| match item {
            Err(error) => std::iter::once(Err(error)).chain(last.take().map(Ok)).collect(),
            Ok(delivery) => {
                last = Some(delivery.clone());
                vec![Ok(delivery)]
            }
        })
    }
}

/// Takes silence for death.
#[derive(Debug, Default)]
pub(super) struct EndsIdleLinks(Mutex<Duration>);

#[async_trait]
impl Flaw for EndsIdleLinks {
    async fn connect(&self, whole: &Arc<dyn Bus>, attach: Attach<'_>) -> Result<Link> {
        *self.0.lock() = attach.heartbeat;
        whole.connect(attach).await
    }

    fn inbound(self: Arc<Self>, whole: Inbound) -> Inbound {
        let patience = *self.0.lock();
        stream::unfold(Some(whole), move |whole| async move {
            let mut whole = whole?;
            match tokio::time::timeout(patience, whole.next()).await {
                Ok(item) => Some((item?, Some(whole))),
                Err(_) => Some((Err(Error::new(ErrorKind::Unavailable, "receive")), None)),
            }
        })
        .boxed()
    }
}

/// Keeps losses to itself.
#[derive(Debug)]
pub(super) struct SwallowsLosses;

impl Flaw for SwallowsLosses {
    fn inbound(self: Arc<Self>, whole: Inbound) -> Inbound {
        each(whole, |item| if matches!(item, Ok(Delivery::Lost { .. })) { vec![] } else { vec![item] })
    }
}

/// Reads ahead into a queue and throws away what does not fit.
#[derive(Debug)]
pub(super) struct ShedsWhenSlow;

impl Flaw for ShedsWhenSlow {
    fn inbound(self: Arc<Self>, mut whole: Inbound) -> Inbound {
        let (ahead, read) = mpsc::channel(8_192);
        let mut reading = JoinSet::new();
        reading.spawn(async move {
            while let Some(item) = whole.next().await {
                if item.is_err() {
                    // The reader may be gone; then nobody misses the error.
                    let _ = ahead.send(item).await;
                } else {
                    let _ = ahead.try_send(item);
                }
            }
        });
        stream::unfold((read, reading), |(mut read, reading)| async move {
            Some((read.recv().await?, (read, reading)))
        })
        .boxed()
    }
}

/// Has a frame in its hands when it yields, and drops it if someone else polls next.
#[derive(Debug)]
pub(super) struct LosesOnCancelledPolls;

struct Hands {
    whole: Inbound,
    held: Option<(Waker, Result<Delivery>)>,
}

impl Stream for Hands {
    type Item = Result<Delivery>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.held.take() {
            Some((waker, item)) if waker.will_wake(context.waker()) => return Poll::Ready(Some(item)),
            _ => {}
        }
        match self.whole.poll_next_unpin(context) {
            Poll::Ready(Some(item)) => {
                self.held = Some((context.waker().clone(), item));
                context.waker().wake_by_ref();
                Poll::Pending
            }
            other => other,
        }
    }
}

impl Flaw for LosesOnCancelledPolls {
    fn inbound(self: Arc<Self>, whole: Inbound) -> Inbound {
        Hands { whole, held: None }.boxed()
    }
}

/// Wakes whoever polled first, not whoever polled last.
#[derive(Debug)]
pub(super) struct WakesTheFirst;

struct First {
    whole: Inbound,
    waker: Option<Waker>,
}

impl Stream for First {
    type Item = Result<Delivery>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let waker = self.waker.get_or_insert_with(|| context.waker().clone()).clone();
        let polled = self.whole.poll_next_unpin(&mut Context::from_waker(&waker));
        if polled.is_ready() {
            self.waker = None;
        }
        polled
    }
}

impl Flaw for WakesTheFirst {
    fn inbound(self: Arc<Self>, whole: Inbound) -> Inbound {
        First { whole, waker: None }.boxed()
    }
}

/// Does not deliver what the link itself published.
#[derive(Default)]
pub(super) struct HearsOnlyOthers(Arc<Mutex<HashSet<(Topic, Bytes)>>>);

impl fmt::Debug for HearsOnlyOthers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HearsOnlyOthers")
    }
}

impl Flaw for HearsOnlyOthers {
    fn publish(&self, whole: &Arc<dyn LinkSender>, batch: Vec<Outgoing>) -> Publishing {
        self.0.lock().extend(batch.iter().map(|out| (out.topic.clone(), out.frame.clone())));
        whole.publish(batch)
    }

    fn inbound(self: Arc<Self>, whole: Inbound) -> Inbound {
        each_frame(whole, move |_, delivery| match &delivery {
            Delivery::Frame { topic, frame, .. }
                if self.0.lock().contains(&(topic.clone(), frame.clone())) =>
            {
                vec![]
            }
            _ => vec![delivery],
        })
    }
}

/// Hands each frame to one of its subscribers, as a queue does.
#[derive(Debug)]
pub(super) struct SharesAmongSubscribers;

static TAKEN: LazyLock<(RandomState, Mutex<HashSet<u64>>)> = LazyLock::new(Default::default);

impl Flaw for SharesAmongSubscribers {
    fn inbound(self: Arc<Self>, whole: Inbound) -> Inbound {
        each_frame(whole, |_, delivery| match &delivery {
            Delivery::Frame { topic, frame, .. } => {
                let first = TAKEN.1.lock().insert(TAKEN.0.hash_one((topic, frame)));
                if first { vec![delivery] } else { vec![] }
            }
            Delivery::Lost { .. } => vec![delivery],
        })
    }
}

/// Delivers positions to nobody.
#[derive(Debug)]
pub(super) struct ForgetsPositions;

impl Flaw for ForgetsPositions {
    fn inbound(self: Arc<Self>, whole: Inbound) -> Inbound {
        each_frame(whole, |_, mut delivery| {
            if let Delivery::Frame { position, .. } = &mut delivery {
                *position = None;
            }
            vec![delivery]
        })
    }
}
