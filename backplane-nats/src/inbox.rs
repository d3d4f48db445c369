//! What waits between the thread that reads from NATS and whoever polls `inbound`: bounded in bytes.
//!
//! Deliveries change hands in runs, one lock and one wake-up per run. What happens when the bound is reached is for the
//! reading side to say: core NATS cannot be told to wait, so what arrives then is dropped and reported where it is
//! missing ([`Inbox::push_or_drop`]); a stream can, so the durable link stops taking ([`Inbox::has_room`]).

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use backplane_core::{Delivery, Error, LossReason, Result, Topic};
use bytes::Bytes;
use futures::Stream;
use parking_lot::Mutex;

use crate::shared::Shared;

/// Most deliveries that a reader takes at once.
const RUN: usize = 1_024;

/// Most topics that a loss names one by one.
const NAMED: usize = 16;

/// The writing side, held by the thread.
#[derive(Debug)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    bound: usize,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Delivery>,
    /// Bytes of `ready` and of the run that the reader took last.
    charged: usize,
    /// The thread takes no more until there is room.
    full: bool,
    /// Frames are being dropped: what they were published to. `ready` is what came before them.
    dropping: Option<Dropped>,
    /// Set once: nothing follows what is in `ready`, and how it ended.
    ended: Option<Result<()>>,
    reader: Option<Waker>,
}

/// The topics of dropped frames; empty once there are too many to name.
#[derive(Debug)]
struct Dropped {
    topics: Vec<Topic>,
    any: bool,
}

impl Dropped {
    fn add(&mut self, topic: &Topic) {
        if self.any || self.topics.contains(topic) {
            return;
        }
        if self.topics.len() == NAMED {
            self.any = true;
            self.topics.clear();
        } else {
            self.topics.push(topic.clone());
        }
    }

    fn told(self) -> Delivery {
        Delivery::Lost { topics: (!self.any).then_some(self.topics), reason: LossReason::Overflow }
    }
}

/// What a delivery costs in memory, its own allocation included.
fn charge(delivery: &Delivery) -> usize {
    const ALLOCATION: usize = 48;
    let payload = match delivery {
        Delivery::Frame { frame, .. } => frame.len(),
        Delivery::Lost { .. } => 0,
    };
    payload + ALLOCATION + size_of::<Delivery>()
}

/// A frame that pins no buffer much larger than itself: the crate cuts its frames out of a read buffer of 64 KiB.
pub(crate) fn own(frame: Bytes) -> Bytes {
    const WORTH_KEEPING: usize = 32 << 10;
    if frame.len() < WORTH_KEEPING { Bytes::copy_from_slice(&frame) } else { frame }
}

impl Inbox {
    pub(crate) fn new(bound: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), bound })
    }

    /// Whether the thread may take more. If not, the reader will wake it.
    pub(crate) fn has_room(&self) -> bool {
        let mut state = self.state.lock();
        state.full = state.charged >= self.bound;
        !state.full
    }

    /// Hands over all of `run`, and drops what does not fit; the loss is told in its place.
    pub(crate) fn push_or_drop(&self, run: &mut Vec<Delivery>) {
        let reader = {
            let mut state = self.state.lock();
            for delivery in run.drain(..) {
                // Once it drops it drops until half is free, so that few losses are told.
                let most = if state.dropping.is_some() { self.bound / 2 } else { self.bound };
                if state.charged >= most {
                    if let Delivery::Frame { topic, .. } = &delivery {
                        let none = || Dropped { topics: Vec::new(), any: false };
                        state.dropping.get_or_insert_with(none).add(topic);
                    }
                    continue;
                }
                if let Some(dropped) = state.dropping.take() {
                    state.add(dropped.told());
                }
                state.add(delivery);
            }
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Hands over all of `run`.
    pub(crate) fn push(&self, run: &mut Vec<Delivery>) {
        if run.is_empty() {
            return;
        }
        let reader = {
            let mut state = self.state.lock();
            for delivery in run.drain(..) {
                state.add(delivery);
            }
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Nothing more will come. The first call decides.
    pub(crate) fn end(&self, how: Result<()>) {
        let reader = {
            let mut state = self.state.lock();
            if state.ended.is_some() {
                return;
            }
            if let Some(dropped) = state.dropping.take() {
                state.add(dropped.told());
            }
            state.ended = Some(how);
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl State {
    fn add(&mut self, delivery: Delivery) {
        self.charged += charge(&delivery);
        self.ready.push_back(delivery);
    }
}

/// The reading side: [`Link::inbound`](backplane_core::Link::inbound). Dropping it frees the link.
#[derive(Debug)]
pub(crate) struct Inbound {
    inbox: Arc<Inbox>,
    shared: Arc<Shared>,
    run: VecDeque<Delivery>,
    /// What `run` was charged with: given back when it is used up.
    charged: usize,
    finished: bool,
}

impl Inbound {
    pub(crate) fn new(inbox: Arc<Inbox>, shared: Arc<Shared>) -> Self {
        Self { inbox, shared, run: VecDeque::new(), charged: 0, finished: false }
    }

    /// Takes the next run, or registers to be woken.
    fn take_run(&mut self, cx: &mut Context<'_>) -> Poll<Option<Error>> {
        let mut state = self.inbox.state.lock();
        state.charged -= std::mem::take(&mut self.charged);
        if state.ready.is_empty()
            && let Some(dropped) = state.dropping.take()
        {
            // Nothing came since: the loss is told without waiting for what comes next.
            state.add(dropped.told());
        }
        let taken = state.ready.len().min(RUN);
        if taken == state.ready.len() {
            std::mem::swap(&mut state.ready, &mut self.run);
        } else {
            self.run.extend(state.ready.drain(..taken));
        }
        self.charged = self.run.iter().map(charge).sum();
        let room = state.full && state.charged < self.inbox.bound;
        if room {
            state.full = false;
        }
        let outcome = if taken > 0 {
            Poll::Ready(None)
        } else if let Some(how) = &state.ended {
            self.finished = true;
            Poll::Ready(how.as_ref().err().cloned())
        } else {
            match &mut state.reader {
                Some(reader) => reader.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            Poll::Pending
        };
        drop(state);
        if room {
            self.shared.wake();
        }
        outcome
    }
}

impl Stream for Inbound {
    type Item = Result<Delivery>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(delivery) = this.run.pop_front() {
            return Poll::Ready(Some(Ok(delivery)));
        }
        if this.finished {
            return Poll::Ready(None);
        }
        match this.take_run(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(error)) => Poll::Ready(Some(Err(error))),
            Poll::Ready(None) => Poll::Ready(this.run.pop_front().map(Ok)),
        }
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        self.shared.abandon();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::{FutureExt as _, StreamExt as _};

    use super::*;

    fn frame(topic: &str, size: usize) -> Delivery {
        Delivery::Frame { topic: Topic::from(topic), frame: Bytes::from(vec![0; size]), position: None }
    }

    fn next(inbound: &mut Inbound) -> Option<Result<Delivery>> {
        inbound.next().now_or_never().expect("something is ready")
    }

    fn pair(bound: usize) -> (Arc<Inbox>, Inbound) {
        let inbox = Inbox::new(bound);
        let shared = Arc::new(Shared::new(Duration::from_secs(1)));
        (inbox.clone(), Inbound::new(inbox, shared))
    }

    #[test]
    fn a_loss_is_told_where_it_happened_and_names_its_topics() {
        let (inbox, mut inbound) = pair(10_000);
        inbox.push_or_drop(&mut vec![
            frame("a", 9_000),
            frame("a", 1_000),
            frame("b", 1),
            frame("c", 1),
            frame("b", 1),
        ]);
        assert!(matches!(next(&mut inbound), Some(Ok(Delivery::Frame { .. }))));
        assert!(matches!(next(&mut inbound), Some(Ok(Delivery::Frame { .. }))));
        let Some(Ok(Delivery::Lost { topics: Some(topics), reason: LossReason::Overflow })) =
            next(&mut inbound)
        else {
            panic!("no loss")
        };
        assert_eq!(topics, [Topic::from("b"), Topic::from("c")]);
        inbox.push_or_drop(&mut vec![frame("d", 1)]);
        assert!(
            matches!(next(&mut inbound), Some(Ok(Delivery::Frame { topic, .. })) if topic == Topic::from("d"))
        );
    }

    #[test]
    fn a_loss_of_many_topics_is_one_of_any() {
        let (inbox, mut inbound) = pair(1_000);
        inbox.push_or_drop(&mut vec![frame("a", 1_000)]);
        inbox.push_or_drop(&mut (0..20).map(|number| frame(&number.to_string(), 1)).collect());
        inbox.end(Ok(()));
        next(&mut inbound);
        assert!(matches!(next(&mut inbound), Some(Ok(Delivery::Lost { topics: None, .. }))));
        assert!(next(&mut inbound).is_none());
    }

    #[test]
    fn what_may_wait_waits() {
        let (inbox, mut inbound) = pair(1_000);
        assert!(inbox.has_room());
        inbox.push(&mut vec![frame("a", 2_000)]);
        assert!(!inbox.has_room());
        next(&mut inbound);
        // Charged until the reader comes back for more.
        assert!(!inbox.has_room());
        assert!(inbound.next().now_or_never().is_none());
        assert!(inbox.has_room());
    }
}
