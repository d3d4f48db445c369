//! What the senders of a link and its thread share: work that waits for the thread, and how the link ended.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use backplane_core::{Error, ErrorKind, Outgoing, Reach, Result, Topic};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::errors::{closed, failed, not_sent};

/// Most bytes of frames, and most frames, that one link holds unanswered. The router keeps far below (4,096 frames and
/// 8 MiB by default); this protects whoever uses a link without it.
const MAX_BYTES: usize = 64 << 20;
const MAX_FRAMES: usize = 65_536;
/// Most calls of subscribe and unsubscribe, and most topics in them, that one link holds unanswered.
const MAX_CALLS: usize = 16_384;
const MAX_TOPICS: usize = 4 << 20;

/// The outcomes of a batch, in its order.
pub(crate) type Outcomes = Vec<Result<Reach>>;

/// Something to do, in the order of the calls.
#[derive(Debug)]
pub(crate) enum Work {
    Batch(Batch),
    Call(Call),
}

impl Work {
    /// When its sender no longer waits for it to be sent.
    pub(crate) fn deadline(&self) -> Instant {
        match self {
            Self::Batch(batch) => batch.deadline,
            Self::Call(call) => call.deadline,
        }
    }
}

/// A batch on its way to the server. All of its frames fit, and their topics have the right form.
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
    load: Load,
    /// How long work may wait for its answer.
    pub(crate) timeout: Duration,
}

/// What is unanswered. Taken by the senders under the queue's lock, given back by the thread.
#[derive(Debug, Default)]
struct Load {
    bytes: AtomicUsize,
    frames: AtomicUsize,
    calls: AtomicUsize,
    topics: AtomicUsize,
}

#[derive(Debug, Default)]
struct Queue {
    works: VecDeque<Work>,
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
    /// `inbound` was dropped: the thread stops at once.
    Abandoned,
    /// The thread has stopped.
    Ended,
}

/// Whether `amount` more fits; a single larger one passes when nothing else is there.
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
            queue.works.push_back(Work::Batch(Batch { frames, bytes, done, deadline }));
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
            queue.works.push_back(Work::Call(Call { verb, topics, done, deadline }));
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

    /// Gives back what an answered batch took.
    pub(crate) fn batch_answered(&self, bytes: usize, frames: usize) {
        self.load.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.load.frames.fetch_sub(frames, Ordering::Relaxed);
    }

    /// Answers a call. `topics`: how many it had.
    pub(crate) fn answer(&self, done: oneshot::Sender<Result<()>>, topics: usize, answer: Result<()>) {
        self.load.calls.fetch_sub(1, Ordering::Relaxed);
        self.load.topics.fetch_sub(topics, Ordering::Relaxed);
        let _ = done.send(answer);
    }

    /// Answers work of which nothing was sent.
    pub(crate) fn refuse(&self, work: Work, error: impl Fn(&'static str) -> Error) {
        match work {
            Work::Batch(batch) => {
                self.batch_answered(batch.bytes, batch.frames.len());
                let _ = batch.done.send(vec![Err(error("publish")); batch.frames.len()]);
            }
            Work::Call(call) => {
                self.answer(call.done, call.topics.len(), Err(error(call.verb.operation())));
            }
        }
    }

    /// Answers what could not be sent in time.
    pub(crate) fn refuse_overdue(&self, queue: &mut VecDeque<Work>, now: Instant) {
        while let Some(work) = queue.pop_front_if(|work| work.deadline() <= now) {
            self.refuse(work, not_sent);
        }
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
                // The thread stops at its next turn and answers.
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

    /// Takes over what is to do. The task is woken when there is more.
    pub(crate) fn take(&self, cx: &Context<'_>, works: &mut VecDeque<Work>) -> Phase {
        let mut queue = self.queue.lock();
        match &mut queue.task {
            Some(task) => task.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        if works.is_empty() {
            std::mem::swap(works, &mut queue.works);
        } else {
            works.append(&mut queue.works);
        }
        queue.phase
    }

    /// Until `inbound` is dropped.
    pub(crate) async fn abandoned(&self) {
        std::future::poll_fn(|cx| {
            let mut queue = self.queue.lock();
            if queue.phase == Phase::Abandoned {
                return std::task::Poll::Ready(());
            }
            queue.task = Some(cx.waker().clone());
            std::task::Poll::Pending
        })
        .await;
    }

    /// The thread has stopped. Settles what it had not taken over, and tells who waits for the end.
    pub(crate) fn end(&self, how: &Result<()>) {
        let (works, closers) = {
            let mut queue = self.queue.lock();
            queue.phase = Phase::Ended;
            queue.task = None;
            (std::mem::take(&mut queue.works), std::mem::take(&mut queue.closers))
        };
        for work in works {
            self.refuse(work, |operation| failed(how, operation));
        }
        // A link that broke has ended, which is what was asked; only a goodbye that failed is news.
        let closed =
            how.clone().or_else(|error| if error.operation() == "close" { Err(error) } else { Ok(()) });
        for closer in closers {
            let _ = closer.send(closed.clone());
        }
    }
}
