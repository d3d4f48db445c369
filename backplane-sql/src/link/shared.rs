//! What the tasks of a link and its two ends share: how far it has come, and what is queued for the writer.

use std::collections::VecDeque;
use std::sync::Arc;

use backplane_core::{Error, ErrorKind, Outgoing, Reach, Result};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};

use super::inbox::Inbox;

/// Most bytes of frames, and most frames, that one link holds unanswered. The router keeps far below (4,096 frames and
/// 8 MiB by default); this protects whoever uses a link without it.
const MAX_BYTES: usize = 64 << 20;
const MAX_FRAMES: usize = 65_536;

/// The outcomes of a batch, in its order.
pub(super) type Outcomes = Vec<Result<Reach>>;

/// How far a link has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Work is taken.
    Open,
    /// `close` was called: what is queued is finished.
    Closing,
    /// Its tasks stop at once.
    Ended,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shared {
    /// Every task holds a receiver: when none is left, all connections are gone.
    phase: watch::Sender<Phase>,
    queue: Mutex<Queue>,
    /// Told when something is queued.
    pub(super) queued: Notify,
    pub(super) inbox: Arc<Inbox>,
}

#[derive(Debug, Default)]
struct Queue {
    batches: VecDeque<Batch>,
    /// Of everything unanswered, whether here or with the writer.
    bytes: usize,
    frames: usize,
    /// No more work is taken.
    closed: bool,
    /// Nor is any done.
    ended: bool,
    /// Why, if the link was lost.
    lost: Option<Error>,
}

/// A batch on its way into the log, as one call gave it.
#[derive(Debug)]
pub(super) struct Batch {
    /// What no statement has taken yet.
    pub(super) frames: std::vec::IntoIter<Outgoing>,
    /// How many frames are in the statement under way.
    pub(super) in_flight: usize,
    /// How many are in the log.
    pub(super) accepted: usize,
    bytes: usize,
    count: usize,
    done: oneshot::Sender<Outcomes>,
}

impl Batch {
    /// Answers: what is in the log, what may be there, and what reached nobody.
    fn answer(self, in_flight: Option<&Error>, unsent: Option<&Error>) {
        let closed = || Error::new(ErrorKind::Closed, "publish").with_context("the link has ended");
        let mut outcomes = Vec::with_capacity(self.count);
        outcomes.resize(self.accepted, Ok(Reach::Unknown));
        let unknown = || in_flight.cloned().unwrap_or_else(|| closed().with_outcome_unknown());
        outcomes.resize_with(self.accepted + self.in_flight, || Err(unknown()));
        outcomes.resize_with(self.count, || Err(unsent.cloned().unwrap_or_else(closed)));
        // Whoever dropped the future does not want to know.
        let _ = self.done.send(outcomes);
    }
}

impl Shared {
    pub(super) fn new(inbox: Arc<Inbox>) -> Self {
        let (phase, _) = watch::channel(Phase::Open);
        Self { phase, queue: Mutex::default(), queued: Notify::new(), inbox }
    }

    /// For a task, which holds it until its connections are gone.
    pub(super) fn watch(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Queues a batch. The lock makes the order of the calls the order of the rows.
    pub(super) fn publish(&self, frames: Vec<Outgoing>) -> Result<oneshot::Receiver<Outcomes>> {
        let bytes: usize = frames.iter().map(|outgoing| outgoing.frame.len()).sum();
        let count = frames.len();
        let (done, outcomes) = oneshot::channel();
        {
            let mut queue = self.queue.lock();
            if queue.closed {
                return Err(Error::new(ErrorKind::Closed, "publish").with_context("the link has ended"));
            }
            // A single larger batch passes when nothing else is there.
            let full = queue.bytes + bytes > MAX_BYTES || queue.frames + count > MAX_FRAMES;
            if queue.frames > 0 && full {
                return Err(Error::new(ErrorKind::Overloaded, "publish")
                    .with_context(format!("{MAX_BYTES} bytes or {MAX_FRAMES} frames are unanswered")));
            }
            queue.bytes += bytes;
            queue.frames += count;
            queue.batches.push_back(Batch {
                frames: frames.into_iter(),
                in_flight: 0,
                accepted: 0,
                bytes,
                count,
                done,
            });
        }
        self.queued.notify_one();
        Ok(outcomes)
    }

    /// Moves what is queued to the writer.
    pub(super) fn take(&self, into: &mut VecDeque<Batch>) {
        into.append(&mut self.queue.lock().batches);
    }

    /// Answers a batch that is in the log with all its frames, or was given up with `error`.
    pub(super) fn answer(&self, batch: Batch, in_flight: Option<&Error>, unsent: Option<&Error>) {
        {
            let mut queue = self.queue.lock();
            queue.bytes -= batch.bytes;
            queue.frames -= batch.count;
        }
        batch.answer(in_flight, unsent);
    }

    /// Takes no more work; what is queued is finished.
    pub(super) fn begin_close(&self) {
        self.queue.lock().closed = true;
        self.phase.send_if_modified(|phase| {
            let open = *phase == Phase::Open;
            if open {
                *phase = Phase::Closing;
            }
            open
        });
    }

    /// Ends the link; the first call decides how. What is queued reached nobody.
    pub(super) fn end(&self, how: Result<()>) {
        let (is_first, left) = {
            let mut queue = self.queue.lock();
            queue.closed = true;
            let is_first = !std::mem::replace(&mut queue.ended, true);
            if is_first {
                queue.lost = how.as_ref().err().cloned();
            }
            (is_first, std::mem::take(&mut queue.batches))
        };
        if is_first {
            self.inbox.end(how);
        }
        let unsent = self.lost("publish");
        for batch in left {
            self.answer(batch, None, unsent.as_ref());
        }
        self.phase.send_replace(Phase::Ended);
    }

    /// Says that the link was lost, to whoever waits for `operation`; `None`: it is not, or ended in order.
    pub(super) fn lost(&self, operation: &'static str) -> Option<Error> {
        self.queue.lock().lost.clone().map(|error| {
            Error::new(ErrorKind::Unavailable, operation).with_context("the link was lost").with_source(error)
        })
    }

    /// Until all tasks are gone and their connections with them.
    pub(super) async fn gone(&self) {
        self.phase.closed().await;
    }
}

/// How a link ends when a task stops without which it is none: by a panic, or because its runtime ended, be it before the
/// task ran at all. Where the link ended in order, this says nothing new.
pub(super) fn stopped() -> Error {
    Error::new(ErrorKind::Unavailable, "receive").with_context("a task of the link stopped")
}

/// Until the link has come to `phase` or past it.
pub(super) async fn reached(watch: &mut watch::Receiver<Phase>, phase: Phase) {
    // Its sender is gone: so is everyone who could use the link.
    let _ = watch.wait_for(|now| *now >= phase).await;
}
