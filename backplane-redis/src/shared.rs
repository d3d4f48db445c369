//! What the senders of a link and its task share: work that waits for the task, and how the link ended.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use backplane_core::{Error, ErrorKind, Outgoing, Reach, Result, Topic};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Most bytes of frames, and most frames, that one link holds unanswered. The router keeps far below (4,096 frames and
/// 8 MiB by default); this protects whoever uses a link without it.
const MAX_BYTES: usize = 64 << 20;
const MAX_FRAMES: usize = 65_536;
/// Most calls of subscribe and unsubscribe, and most topics in them, that one link holds unanswered.
const MAX_CALLS: usize = 16_384;
const MAX_TOPICS: usize = 4 << 20;

/// The outcomes of a batch, in its order.
pub(crate) type Outcomes = Vec<Result<Reach>>;

/// A batch on its way to the server. All of its frames fit.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) frames: Vec<Outgoing>,
    pub(crate) bytes: usize,
    pub(crate) done: oneshot::Sender<Outcomes>,
    pub(crate) deadline: Instant,
}

/// Subscribe or unsubscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Subscribe,
    Unsubscribe,
}

impl Verb {
    /// The operation as errors name it.
    pub(crate) fn operation(self) -> &'static str {
        match self {
            Self::Subscribe => "subscribe",
            Self::Unsubscribe => "unsubscribe",
        }
    }

    /// The command.
    pub(crate) fn command(self) -> &'static str {
        match self {
            Self::Subscribe => "SUBSCRIBE",
            Self::Unsubscribe => "UNSUBSCRIBE",
        }
    }
}

/// A call of subscribe or unsubscribe on its way to the server.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) verb: Verb,
    pub(crate) topics: Vec<Topic>,
    pub(crate) done: oneshot::Sender<Result<()>>,
    pub(crate) deadline: Instant,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    queue: Mutex<Queue>,
    pub(crate) load: Load,
    /// How long a command may wait for its answer.
    pub(crate) timeout: Duration,
}

/// What is unanswered. Taken by the senders under the queue's lock, given back by the task.
#[derive(Debug, Default)]
pub(crate) struct Load {
    bytes: AtomicUsize,
    frames: AtomicUsize,
    calls: AtomicUsize,
    topics: AtomicUsize,
}

#[derive(Debug, Default)]
struct Queue {
    batches: VecDeque<Batch>,
    calls: VecDeque<Call>,
    closers: Vec<oneshot::Sender<Result<()>>>,
    phase: Phase,
    task: Option<Waker>,
}

/// How far a link has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
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

/// What the task takes over when it runs.
pub(crate) struct Intake {
    pub(crate) batches: VecDeque<Batch>,
    pub(crate) calls: VecDeque<Call>,
    pub(crate) phase: Phase,
}

fn closed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Closed, operation).with_context("the link has ended")
}

impl Load {
    /// Gives back what an answered batch took.
    pub(crate) fn batch_answered(&self, bytes: usize, frames: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.frames.fetch_sub(frames, Ordering::Relaxed);
    }

    /// Gives back what an answered call took.
    pub(crate) fn call_answered(&self, topics: usize) {
        self.calls.fetch_sub(1, Ordering::Relaxed);
        self.topics.fetch_sub(topics, Ordering::Relaxed);
    }
}

/// Takes `amount` of `used` unless that passes `most`; a single larger one passes when nothing else is there.
fn fits(used: &AtomicUsize, amount: usize, most: usize) -> bool {
    let used = used.load(Ordering::Relaxed);
    used == 0 || used.saturating_add(amount) <= most
}

impl Shared {
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { queue: Mutex::default(), load: Load::default(), timeout }
    }

    /// Queues a batch. The lock makes the order of the calls the order of the frames.
    pub(crate) fn publish(&self, frames: Vec<Outgoing>) -> Result<oneshot::Receiver<Outcomes>> {
        let bytes = frames.iter().map(|outgoing| outgoing.frame.len()).sum();
        let (done, outcomes) = oneshot::channel();
        let deadline = Instant::now() + self.timeout;
        self.enqueue("publish", |queue| {
            if !fits(&self.load.bytes, bytes, MAX_BYTES) || !fits(&self.load.frames, frames.len(), MAX_FRAMES)
            {
                return Err(Error::new(ErrorKind::Overloaded, "publish")
                    .with_context(format!("{MAX_BYTES} bytes or {MAX_FRAMES} frames are unanswered")));
            }
            self.load.bytes.fetch_add(bytes, Ordering::Relaxed);
            self.load.frames.fetch_add(frames.len(), Ordering::Relaxed);
            queue.batches.push_back(Batch { frames, bytes, done, deadline });
            Ok(())
        })?;
        Ok(outcomes)
    }

    /// Queues a call.
    pub(crate) fn call(&self, verb: Verb, topics: Vec<Topic>) -> Result<oneshot::Receiver<Result<()>>> {
        let (done, outcome) = oneshot::channel();
        let deadline = Instant::now() + self.timeout;
        self.enqueue(verb.operation(), |queue| {
            if !fits(&self.load.calls, 1, MAX_CALLS) || !fits(&self.load.topics, topics.len(), MAX_TOPICS) {
                return Err(Error::new(ErrorKind::Overloaded, verb.operation())
                    .with_context(format!("{MAX_CALLS} calls or {MAX_TOPICS} topics are unanswered")));
            }
            self.load.calls.fetch_add(1, Ordering::Relaxed);
            self.load.topics.fetch_add(topics.len(), Ordering::Relaxed);
            queue.calls.push_back(Call { verb, topics, done, deadline });
            Ok(())
        })?;
        Ok(outcome)
    }

    fn enqueue(&self, operation: &'static str, add: impl FnOnce(&mut Queue) -> Result<()>) -> Result<()> {
        let task = {
            let mut queue = self.queue.lock();
            if queue.phase != Phase::Open {
                return Err(closed(operation));
            }
            add(&mut queue)?;
            queue.task.take()
        };
        if let Some(task) = task {
            task.wake();
        }
        Ok(())
    }

    /// Asks for an orderly end; `None` when the link has ended already.
    pub(crate) fn close(&self) -> Option<oneshot::Receiver<Result<()>>> {
        let (done, closed) = oneshot::channel();
        {
            let mut queue = self.queue.lock();
            match queue.phase {
                Phase::Open | Phase::Closing => {
                    queue.phase = Phase::Closing;
                    queue.closers.push(done);
                }
                // The task stops at its next turn; dropping `done` then answers.
                Phase::Abandoned => queue.closers.push(done),
                Phase::Ended => return None,
            }
        }
        self.wake();
        Some(closed)
    }

    /// `inbound` was dropped.
    pub(crate) fn abandon(&self) {
        {
            let mut queue = self.queue.lock();
            if queue.phase != Phase::Ended {
                queue.phase = Phase::Abandoned;
            }
        }
        self.wake();
    }

    pub(crate) fn wake(&self) {
        let task = self.queue.lock().task.take();
        if let Some(task) = task {
            task.wake();
        }
    }

    /// What the task is to do. It is woken when there is more.
    pub(crate) fn intake(&self, cx: &Context<'_>) -> Intake {
        let mut queue = self.queue.lock();
        match &mut queue.task {
            Some(task) => task.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Intake {
            batches: std::mem::take(&mut queue.batches),
            calls: std::mem::take(&mut queue.calls),
            phase: queue.phase,
        }
    }

    /// The task has stopped. Returns what it had not taken over, and who waits for the end.
    pub(crate) fn end(&self) -> (Intake, Vec<oneshot::Sender<Result<()>>>) {
        let mut queue = self.queue.lock();
        queue.phase = Phase::Ended;
        queue.task = None;
        let rest = Intake {
            batches: std::mem::take(&mut queue.batches),
            calls: std::mem::take(&mut queue.calls),
            phase: Phase::Ended,
        };
        (rest, std::mem::take(&mut queue.closers))
    }
}
