//! What waits between the reader and whoever polls `inbound`: bounded in bytes. When the bound is reached the reader rests;
//! the log keeps what it has not read.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use backplane_core::{Delivery, Result};
use futures::Stream;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::shared::Shared;

/// The writing side, held by the reader task.
#[derive(Debug)]
pub(super) struct Inbox {
    state: Mutex<State>,
    bound: usize,
    /// Told when there is room again.
    pub(super) drained: Notify,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Delivery>,
    /// Bytes of `ready` and of the run that was taken last.
    charged: usize,
    /// The reader rests.
    full: bool,
    /// Set once: nothing follows what is in `ready`, and how it ended.
    ended: Option<Result<()>>,
    waker: Option<Waker>,
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
        Arc::new(Self { state: Mutex::default(), bound, drained: Notify::new() })
    }

    /// Whether the reader may go on. If not, `drained` tells when.
    pub(super) fn has_room(&self) -> bool {
        let mut state = self.state.lock();
        state.full = state.charged >= self.bound;
        !state.full
    }

    /// Hands over all of `run`.
    pub(super) fn push(&self, run: &mut Vec<Delivery>) {
        if run.is_empty() {
            return;
        }
        let charged: usize = run.iter().map(charge).sum();
        let waker = {
            let mut state = self.state.lock();
            state.charged += charged;
            state.ready.extend(run.drain(..));
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Nothing more will come. Called once.
    pub(super) fn end(&self, how: Result<()>) {
        let waker = {
            let mut state = self.state.lock();
            state.ended = Some(how);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The reading side: [`Link::inbound`](backplane_core::Link::inbound). Dropping it ends the link.
#[derive(Debug)]
pub(super) struct Inbound {
    shared: Arc<Shared>,
    run: VecDeque<Delivery>,
    /// What `run` was charged with: given back when it is used up.
    charged: usize,
    finished: bool,
}

impl Inbound {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, run: VecDeque::new(), charged: 0, finished: false }
    }

    /// Takes what is ready, or registers to be woken. `Some`: how the link ended.
    fn take_run(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<()>>> {
        let inbox = &self.shared.inbox;
        let mut state = inbox.state.lock();
        state.charged -= std::mem::take(&mut self.charged);
        std::mem::swap(&mut state.ready, &mut self.run);
        self.charged = self.run.iter().map(charge).sum();
        let room = state.full && state.charged < inbox.bound;
        state.full &= !room;
        let outcome = if !self.run.is_empty() {
            Poll::Ready(None)
        } else if let Some(how) = &state.ended {
            Poll::Ready(Some(how.clone()))
        } else {
            match &mut state.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            Poll::Pending
        };
        drop(state);
        if room {
            inbox.drained.notify_one();
        }
        outcome
    }
}

impl Stream for Inbound {
    type Item = Result<Delivery>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.finished {
            return Poll::Ready(None);
        }
        if this.run.is_empty() {
            match this.take_run(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => {}
                Poll::Ready(Some(how)) => {
                    this.finished = true;
                    return Poll::Ready(how.err().map(Err));
                }
            }
        }
        Poll::Ready(this.run.pop_front().map(Ok))
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        self.shared.end(Ok(()));
    }
}
