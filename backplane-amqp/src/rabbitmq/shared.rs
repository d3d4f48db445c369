//! What the senders of a link, its reader and its task share: work that waits for the task, and how the link ended.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use backplane_core::{Error, ErrorKind, Outgoing, Reach, Result, Topic};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// Most bytes of frames, and most frames, that one link holds unanswered. The router keeps far below (4,096 frames and
/// 8 MiB by default); this protects whoever uses a link without it. Bytes of a frame that lingers at the broker do not count.
const MAX_BYTES: usize = 64 << 20;
const MAX_FRAMES: usize = 65_536;
/// Most calls of subscribe and unsubscribe, and most topics in them, that one link holds unanswered.
const MAX_CALLS: usize = 16_384;
const MAX_TOPICS: usize = 1 << 20;

/// The outcomes of a batch, in its order.
pub(super) type Outcomes = Vec<Result<Reach>>;

/// A batch on its way to the broker. All of its frames fit.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) frames: Vec<Outgoing>,
    pub(super) bytes: usize,
    pub(super) done: oneshot::Sender<Outcomes>,
    pub(super) deadline: Instant,
}

/// Subscribe or unsubscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Subscribe,
    Unsubscribe,
}

impl Verb {
    /// The operation as errors name it.
    pub(super) fn operation(self) -> &'static str {
        match self {
            Self::Subscribe => "subscribe",
            Self::Unsubscribe => "unsubscribe",
        }
    }
}

/// A call of subscribe or unsubscribe.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) verb: Verb,
    pub(super) topics: Vec<Topic>,
    pub(super) done: oneshot::Sender<Result<()>>,
}

/// How far a link has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// Work is taken.
    #[default]
    Open,
    /// `close` was called: no new work, what is there is finished.
    Closing,
    /// `inbound` was dropped: the task stops at once.
    Abandoned,
    /// The task has stopped.
    Ended,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shared {
    queue: Mutex<Queue>,
    end: Mutex<End>,
    /// Batches wait, or the phase changed.
    pub(super) work: Notify,
    /// Calls wait.
    pub(super) calls: Notify,
    /// Why the broker takes no publishes now.
    blocked: Mutex<Option<String>>,
    load: Load,
    /// How long a command may wait for its answer.
    pub(super) timeout: Duration,
}

/// What is unanswered. Taken by the senders under the queue's lock, given back by the task.
#[derive(Debug, Default)]
struct Load {
    bytes: AtomicUsize,
    frames: AtomicUsize,
    calls: AtomicUsize,
    topics: AtomicUsize,
}

#[derive(Debug, Default)]
struct Queue {
    batches: VecDeque<Batch>,
    calls: VecDeque<Call>,
    /// Who asked for an orderly end while the link lived.
    closers: Vec<oneshot::Sender<Result<()>>>,
    /// Who asked after `inbound` was dropped, when the end need not be in order any more.
    late_closers: Vec<oneshot::Sender<Result<()>>>,
    phase: Phase,
}

#[derive(Debug, Default)]
struct End {
    how: Option<Result<()>>,
    reader: Option<Waker>,
}

/// What was not taken over when the task stopped, and who waits for the end.
#[derive(Debug)]
pub(super) struct Rest {
    pub(super) batches: VecDeque<Batch>,
    pub(super) calls: VecDeque<Call>,
    pub(super) closers: Vec<oneshot::Sender<Result<()>>>,
    pub(super) late_closers: Vec<oneshot::Sender<Result<()>>>,
}

fn closed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Closed, operation).with_context("the link has ended")
}

/// Whether `amount` fits beside what is `used`; a single larger one passes when nothing else is there.
fn fits(used: &AtomicUsize, amount: usize, most: usize) -> bool {
    let used = used.load(Ordering::Relaxed);
    used == 0 || used.saturating_add(amount) <= most
}

impl Shared {
    pub(super) fn new(timeout: Duration) -> Self {
        Self {
            queue: Mutex::default(),
            end: Mutex::default(),
            work: Notify::new(),
            calls: Notify::new(),
            blocked: Mutex::default(),
            load: Load::default(),
            timeout,
        }
    }

    /// Queues a batch. The lock makes the order of the calls the order of the frames.
    pub(super) fn publish(&self, frames: Vec<Outgoing>) -> Result<oneshot::Receiver<Outcomes>> {
        let bytes = frames.iter().map(|outgoing| outgoing.frame.len()).sum();
        let (done, outcomes) = oneshot::channel();
        let deadline = Instant::now() + self.timeout;
        {
            let mut queue = self.open_queue("publish")?;
            if !fits(&self.load.bytes, bytes, MAX_BYTES) || !fits(&self.load.frames, frames.len(), MAX_FRAMES)
            {
                return Err(Error::new(ErrorKind::Overloaded, "publish")
                    .with_context(format!("{MAX_BYTES} bytes or {MAX_FRAMES} frames are unanswered")));
            }
            self.load.bytes.fetch_add(bytes, Ordering::Relaxed);
            self.load.frames.fetch_add(frames.len(), Ordering::Relaxed);
            queue.batches.push_back(Batch { frames, bytes, done, deadline });
        }
        self.work.notify_one();
        Ok(outcomes)
    }

    /// Queues a call.
    pub(super) fn call(&self, verb: Verb, topics: Vec<Topic>) -> Result<oneshot::Receiver<Result<()>>> {
        let (done, outcome) = oneshot::channel();
        {
            let mut queue = self.open_queue(verb.operation())?;
            if !fits(&self.load.calls, 1, MAX_CALLS) || !fits(&self.load.topics, topics.len(), MAX_TOPICS) {
                return Err(Error::new(ErrorKind::Overloaded, verb.operation())
                    .with_context(format!("{MAX_CALLS} calls or {MAX_TOPICS} topics are unanswered")));
            }
            self.load.calls.fetch_add(1, Ordering::Relaxed);
            self.load.topics.fetch_add(topics.len(), Ordering::Relaxed);
            queue.calls.push_back(Call { verb, topics, done });
        }
        self.calls.notify_one();
        Ok(outcome)
    }

    fn open_queue(&self, operation: &'static str) -> Result<parking_lot::MutexGuard<'_, Queue>> {
        let queue = self.queue.lock();
        if queue.phase == Phase::Open { Ok(queue) } else { Err(closed(operation)) }
    }

    /// Gives back what was taken for bytes of which lapin holds nothing any more, and for frames that are over.
    pub(super) fn frames_answered(&self, bytes: usize, frames: usize) {
        self.load.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.load.frames.fetch_sub(frames, Ordering::Relaxed);
    }

    /// Gives back what an answered call took.
    pub(super) fn call_answered(&self, topics: usize) {
        self.load.calls.fetch_sub(1, Ordering::Relaxed);
        self.load.topics.fetch_sub(topics, Ordering::Relaxed);
    }

    /// The batches that wait, and how far the link has come.
    pub(super) fn take_batches(&self) -> (VecDeque<Batch>, Phase) {
        let mut queue = self.queue.lock();
        (std::mem::take(&mut queue.batches), queue.phase)
    }

    /// Whether somebody still waits for an orderly end, also if `inbound` was dropped since.
    pub(super) fn is_awaited(&self) -> bool {
        self.queue.lock().closers.iter().any(|closer| !closer.is_closed())
    }

    /// The calls that wait.
    pub(super) fn take_calls(&self) -> VecDeque<Call> {
        std::mem::take(&mut self.queue.lock().calls)
    }

    /// Asks for an orderly end; `None` when the link has ended already.
    pub(super) fn close(&self) -> Option<oneshot::Receiver<Result<()>>> {
        let (done, closed) = oneshot::channel();
        {
            let mut queue = self.queue.lock();
            match queue.phase {
                Phase::Open | Phase::Closing => {
                    queue.phase = Phase::Closing;
                    queue.closers.push(done);
                }
                Phase::Abandoned => queue.late_closers.push(done),
                Phase::Ended => return None,
            }
        }
        self.end_inbound(Ok(()));
        self.work.notify_one();
        Some(closed)
    }

    /// `inbound` was dropped.
    pub(super) fn abandon(&self) {
        {
            let mut queue = self.queue.lock();
            if queue.phase != Phase::Ended {
                queue.phase = Phase::Abandoned;
            }
        }
        self.work.notify_one();
    }

    /// The task has stopped.
    pub(super) fn end(&self) -> Rest {
        let mut queue = self.queue.lock();
        queue.phase = Phase::Ended;
        Rest {
            batches: std::mem::take(&mut queue.batches),
            calls: std::mem::take(&mut queue.calls),
            closers: std::mem::take(&mut queue.closers),
            late_closers: std::mem::take(&mut queue.late_closers),
        }
    }

    /// Nothing more is to be read. The first call decides.
    pub(super) fn end_inbound(&self, how: Result<()>) {
        let reader = {
            let mut end = self.end.lock();
            end.how.get_or_insert(how);
            end.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// How the link ended; until then the reader is woken when it does.
    pub(super) fn poll_end(&self, cx: &Context<'_>) -> Poll<Result<()>> {
        let mut end = self.end.lock();
        if let Some(how) = &end.how {
            return Poll::Ready(how.clone());
        }
        match &mut end.reader {
            Some(reader) => reader.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Notes why the broker takes no publishes now, or that it does.
    pub(super) fn set_blocked(&self, reason: Option<String>) {
        *self.blocked.lock() = reason;
    }

    /// The error for a publish that the broker does not take now.
    pub(super) fn blocked(&self, operation: &'static str) -> Option<Error> {
        let reason = self.blocked.lock().clone()?;
        Some(
            Error::new(ErrorKind::Unavailable, operation)
                .with_context(format!("the broker blocked the connection that publishes: {reason}")),
        )
    }
}
