//! What the senders of a link and its task share: work that waits for the task, and how far the link has come.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use backplane_core::{Error, ErrorKind, Outgoing, Reach, Result};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// Most bytes of frames, and most frames, that one link holds unanswered. The router keeps far below (4,096 frames and
/// 8 MiB by default); this protects whoever uses a link without it.
const MAX_BYTES: usize = 64 << 20;
const MAX_FRAMES: usize = 65_536;

/// The outcomes of a batch, in its order.
pub(super) type Outcomes = Vec<Result<Reach>>;

/// A batch on its way to the broker. All of its frames fit.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) frames: Vec<Outgoing>,
    pub(super) deadline: Instant,
    pub(super) ticket: Ticket,
}

/// Who waits for the outcomes of a batch.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) frames: usize,
    bytes: usize,
    done: oneshot::Sender<Outcomes>,
}

/// How far a link has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// Work is taken.
    #[default]
    Open,
    /// `close` was called: no new work, what is there is finished.
    Closing,
    /// `inbound` was dropped: the task stops at once.
    Abandoned,
    /// The task takes no work any more, and frees what the link holds.
    Ended,
    /// Everything is freed.
    Freed,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shared {
    queue: Mutex<Queue>,
    /// Unanswered frames and their bytes. Taken by the senders under the queue's lock, given back by the task.
    frames: AtomicUsize,
    bytes: AtomicUsize,
    /// Work waits, or the phase changed.
    work: Notify,
    /// The phase changed, or the last frame was answered while closing.
    turn: Notify,
    /// How long a frame may wait for its outcome.
    timeout: Duration,
}

#[derive(Debug, Default)]
struct Queue {
    batches: VecDeque<Batch>,
    closers: Vec<oneshot::Sender<Result<()>>>,
    phase: Phase,
    /// Why the link ended, if not in order.
    lost: Option<Error>,
}

/// Why the owner of a link wants its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// `close` was called and everything is answered.
    Closed,
    /// `inbound` was dropped.
    Abandoned,
}

fn fits(used: &AtomicUsize, amount: usize, most: usize) -> bool {
    let used = used.load(Ordering::Relaxed);
    used == 0 || used.saturating_add(amount) <= most
}

impl Shared {
    pub(super) fn new(timeout: Duration) -> Arc<Self> {
        Arc::new(Self {
            queue: Mutex::default(),
            frames: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            work: Notify::new(),
            turn: Notify::new(),
            timeout,
        })
    }

    #[cfg(test)]
    pub(super) fn for_tests() -> Arc<Self> {
        Self::new(Duration::from_secs(1))
    }

    /// Queues a batch. The lock makes the order of the calls the order of the frames.
    pub(super) fn publish(&self, frames: Vec<Outgoing>) -> Result<oneshot::Receiver<Outcomes>> {
        let count = frames.len();
        let bytes = frames.iter().map(|outgoing| outgoing.frame.len()).sum();
        let (done, outcomes) = oneshot::channel();
        let ticket = Ticket { frames: count, bytes, done };
        let deadline = Instant::now() + self.timeout;
        {
            let mut queue = self.queue.lock();
            queue.admit("publish")?;
            if !fits(&self.bytes, bytes, MAX_BYTES) || !fits(&self.frames, count, MAX_FRAMES) {
                return Err(Error::new(ErrorKind::Overloaded, "publish")
                    .with_context(format!("{MAX_BYTES} bytes or {MAX_FRAMES} frames are unanswered")));
            }
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            self.frames.fetch_add(count, Ordering::Relaxed);
            queue.batches.push_back(Batch { frames, deadline, ticket });
        }
        self.work.notify_one();
        Ok(outcomes)
    }

    /// Queues a frame whose outcome nobody waits for, if the link takes work and has room for it.
    pub(super) fn post(&self, outgoing: Outgoing) {
        let _ = self.publish(vec![outgoing]);
    }

    /// Whether the link takes work.
    pub(super) fn admit(&self, operation: &'static str) -> Result<()> {
        self.queue.lock().admit(operation)
    }

    /// Everything that is queued; waits until there is something. One waiter only.
    pub(super) async fn batches(&self) -> VecDeque<Batch> {
        loop {
            let batches = self.ready_batches();
            if !batches.is_empty() {
                return batches;
            }
            self.work.notified().await;
        }
    }

    /// Everything that is queued now.
    pub(super) fn ready_batches(&self) -> VecDeque<Batch> {
        std::mem::take(&mut self.queue.lock().batches)
    }

    /// Answers a batch.
    pub(super) fn settle(&self, ticket: Ticket, outcomes: Outcomes) {
        // Nobody waits any more: its outcomes are lost, as agreed.
        let _ = ticket.done.send(outcomes);
        self.bytes.fetch_sub(ticket.bytes, Ordering::Relaxed);
        if self.frames.fetch_sub(ticket.frames, Ordering::Relaxed) == ticket.frames {
            self.turn.notify_one();
        }
    }

    /// Asks for an orderly end; `None` when the link has ended already and everything is freed.
    pub(super) fn close(&self) -> Option<oneshot::Receiver<Result<()>>> {
        let (done, closed) = oneshot::channel();
        {
            let mut queue = self.queue.lock();
            match queue.phase {
                Phase::Open | Phase::Closing => queue.phase = Phase::Closing,
                Phase::Abandoned | Phase::Ended => {}
                Phase::Freed => return None,
            }
            queue.closers.push(done);
        }
        self.turn.notify_one();
        Some(closed)
    }

    /// `inbound` was dropped.
    pub(super) fn abandon(&self) {
        {
            let mut queue = self.queue.lock();
            if !queue.has_ended() {
                queue.phase = Phase::Abandoned;
            }
        }
        self.turn.notify_one();
    }

    /// Returns when the owner wants the end of the link. One waiter only.
    pub(super) async fn leave(&self) -> Leave {
        loop {
            match self.queue.lock().phase {
                Phase::Closing if self.frames.load(Ordering::Relaxed) == 0 => return Leave::Closed,
                Phase::Abandoned => return Leave::Abandoned,
                _ => {}
            }
            self.turn.notified().await;
        }
    }

    /// No more work is taken, and what was not taken over is dropped unanswered: its callers are told why by
    /// [`ended`](Shared::ended).
    pub(super) fn stop(&self, lost: Option<&Error>) {
        let dropped = {
            let mut queue = self.queue.lock();
            queue.phase = Phase::Ended;
            queue.lost = lost.cloned();
            std::mem::take(&mut queue.batches)
        };
        drop(dropped);
    }

    /// The same, should the task have ended without it.
    pub(super) fn stop_unless_stopped(&self, lost: &Error) {
        let ended = self.queue.lock().has_ended();
        if !ended {
            self.stop(Some(lost));
        }
    }

    /// Everything is freed: answers whoever waits for that.
    pub(super) fn finish(&self) {
        let closers = {
            let mut queue = self.queue.lock();
            queue.phase = Phase::Freed;
            std::mem::take(&mut queue.closers)
        };
        for closer in closers {
            let _ = closer.send(Ok(()));
        }
    }

    /// What work is told that has no outcome because the link ended. Why it did is not known yet to who is faster than the task.
    pub(super) fn ended(&self, operation: &'static str) -> Error {
        let queue = self.queue.lock();
        let meanwhile = || {
            Error::new(ErrorKind::Unavailable, operation)
                .with_context("the link ended meanwhile")
                .with_outcome_unknown()
        };
        match (&queue.lost, queue.phase) {
            (Some(lost), _) => meanwhile().with_source(lost.clone()),
            (None, Phase::Open | Phase::Closing) => meanwhile(),
            (None, Phase::Abandoned | Phase::Ended | Phase::Freed) => {
                Error::new(ErrorKind::Closed, operation).with_outcome_unknown()
            }
        }
    }
}

impl Queue {
    fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended | Phase::Freed)
    }

    fn admit(&self, operation: &'static str) -> Result<()> {
        if self.phase == Phase::Open {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Closed, operation).with_context("the link has ended"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_is_dropped_before_the_end_is_known_is_not_told_that_it_was_in_order() {
        let shared = Shared::for_tests();
        let told = || {
            let error = shared.ended("publish");
            assert!(error.outcome_unknown(), "{error}");
            error.kind()
        };
        assert_eq!(told(), ErrorKind::Unavailable);
        let _closed = shared.close();
        assert_eq!(told(), ErrorKind::Unavailable);
        shared.stop(None);
        assert_eq!(told(), ErrorKind::Closed);
        shared.stop(Some(&Error::new(ErrorKind::Denied, "receive")));
        assert_eq!(told(), ErrorKind::Unavailable);
    }

    #[test]
    fn whoever_closes_while_the_link_is_freed_waits_for_it_too() {
        let shared = Shared::for_tests();
        shared.stop(None);
        let mut closed = shared.close().expect("something is to be freed");
        assert!(closed.try_recv().is_err());
        shared.finish();
        assert!(closed.try_recv().unwrap().is_ok());
        assert!(shared.close().is_none());
    }
}
