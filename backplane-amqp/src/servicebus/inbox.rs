//! What waits between the task that receives and whoever polls `inbound`: bounded in bytes.
//!
//! When the bound is reached the task receives no more; the credit that the broker has left runs out, and frames wait in
//! the subscription.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use backplane_core::{Delivery, Error, Result};
use futures::Stream;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::shared::Shared;

/// Most deliveries that a reader takes at once.
const RUN: usize = 1_024;

/// The writing side, held by the task.
#[derive(Debug)]
pub(super) struct Inbox {
    state: Mutex<State>,
    bound: usize,
    room: Notify,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Delivery>,
    /// Bytes of `ready` and of the run that the reader took last.
    charged: usize,
    /// Set once: nothing follows what is in `ready`, and how it ended.
    ended: Option<Result<()>>,
    reader: Option<Waker>,
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

impl Inbox {
    pub(super) fn new(bound: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), bound, room: Notify::new() })
    }

    fn has_room(&self) -> bool {
        self.state.lock().charged < self.bound
    }

    /// Returns when what waits is below the bound. One waiter only.
    pub(super) async fn room(&self) {
        while !self.has_room() {
            // A permit is kept when room was made in between.
            self.room.notified().await;
        }
    }

    /// Hands over all of `run`.
    pub(super) fn push(&self, run: &mut Vec<Delivery>) {
        if run.is_empty() {
            return;
        }
        let charged: usize = run.iter().map(charge).sum();
        let reader = {
            let mut state = self.state.lock();
            state.charged += charged;
            state.ready.extend(run.drain(..));
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Nothing more will come. The first call decides.
    pub(super) fn end(&self, how: Result<()>) {
        let reader = {
            let mut state = self.state.lock();
            if state.ended.is_some() {
                return;
            }
            state.ended = Some(how);
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

/// The reading side: [`Link::inbound`](backplane_core::Link::inbound). Dropping it frees the link.
#[derive(Debug)]
pub(super) struct Inbound {
    inbox: Arc<Inbox>,
    shared: Arc<Shared>,
    run: VecDeque<Delivery>,
    /// What `run` was charged with: given back when it is used up.
    charged: usize,
    finished: bool,
}

impl Inbound {
    pub(super) fn new(inbox: Arc<Inbox>, shared: Arc<Shared>) -> Self {
        Self { inbox, shared, run: VecDeque::new(), charged: 0, finished: false }
    }

    /// Takes the next run, or registers to be woken.
    fn take_run(&mut self, cx: &mut Context<'_>) -> Poll<Option<Error>> {
        let mut state = self.inbox.state.lock();
        let full = state.charged >= self.inbox.bound;
        state.charged -= std::mem::take(&mut self.charged);
        let taken = state.ready.len().min(RUN);
        if taken == state.ready.len() {
            std::mem::swap(&mut state.ready, &mut self.run);
        } else {
            self.run.extend(state.ready.drain(..taken));
        }
        self.charged = self.run.iter().map(charge).sum();
        let room = full && state.charged < self.inbox.bound;
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
            self.inbox.room.notify_one();
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
    use backplane_core::{ErrorKind, Topic};
    use bytes::Bytes;
    use futures::{FutureExt as _, StreamExt as _};

    use super::*;

    fn frames(count: usize) -> Vec<Delivery> {
        let delivery =
            Delivery::Frame { topic: Topic::from("t"), frame: Bytes::from(vec![0; 100]), position: None };
        vec![delivery; count]
    }

    #[tokio::test]
    async fn a_full_inbox_makes_the_task_wait_until_it_is_read() {
        let inbox = Inbox::new(1_000);
        let mut inbound = Inbound::new(inbox.clone(), Shared::for_tests());
        inbox.push(&mut frames(20));
        let mut room = Box::pin(inbox.room());
        assert!((&mut room).now_or_never().is_none());
        for _ in 0..20 {
            inbound.next().await.unwrap().unwrap();
        }
        assert!(inbound.next().now_or_never().is_none());
        room.await;
    }

    #[tokio::test]
    async fn what_arrived_comes_before_the_end_and_nothing_after() {
        let inbox = Inbox::new(1_000);
        let mut inbound = Inbound::new(inbox.clone(), Shared::for_tests());
        inbox.push(&mut frames(2));
        inbox.end(Err(Error::new(ErrorKind::Unavailable, "receive")));
        inbox.end(Ok(()));
        assert!(inbound.next().await.unwrap().is_ok() && inbound.next().await.unwrap().is_ok());
        assert_eq!(inbound.next().await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
        assert!(inbound.next().await.is_none());
    }
}
