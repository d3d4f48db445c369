//! What waits between the task that reads from Redis and whoever polls `inbound`: bounded in bytes.
//!
//! Deliveries change hands in runs, one lock and one wake-up per run. When the bound is reached the task stops reading
//! until there is room; the kernel's buffers fill, then Redis' buffer for us, and Redis decides.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use backplane_core::{Delivery, Error, Result};
use futures::Stream;
use parking_lot::Mutex;

use crate::shared::Shared;

/// Most deliveries that a reader takes at once.
const RUN: usize = 1_024;

/// The writing side, held by the task.
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
    /// The task does not read until there is room.
    full: bool,
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
    pub(crate) fn new(bound: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), bound })
    }

    /// Whether the task may read on. If not, the reader will wake it.
    pub(crate) fn has_room(&self) -> bool {
        let mut state = self.state.lock();
        state.full = state.charged >= self.bound;
        !state.full
    }

    /// Hands over all of `run`.
    pub(crate) fn push(&self, run: &mut Vec<Delivery>) {
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
    pub(crate) fn end(&self, how: Result<()>) {
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
