//! The calls of one client: how many run at once, and which one waits for its turn.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{FuturesUnordered, StreamExt as _};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

use crate::dispatch::{Prepared, Value};
use crate::error::HubResult;

/// The permit of a call, which the call may give away before its end.
pub(crate) type Place = Arc<Mutex<Option<OwnedSemaphorePermit>>>;

/// A call that has ended.
pub(crate) struct Done {
    /// The id it is answered under; `None`: it is not answered.
    pub(crate) id: Option<String>,
    /// The method as declared.
    pub(crate) name: Arc<str>,
    pub(crate) result: HubResult<Value>,
}

/// A call that waits for its turn; nothing behind it is read meanwhile.
struct Waiting {
    id: Option<String>,
    prepared: Prepared,
    place: Place,
}

/// The running calls of one client and the one that waits.
pub(crate) struct Calls {
    places: PollSemaphore,
    /// Allocated while something runs.
    running: Option<FuturesUnordered<BoxFuture<'static, Done>>>,
    waiting: Option<Box<Waiting>>,
    /// Most calls that may run, those that ask included.
    most: usize,
}

/// How many calls of one client may run beyond those that have a place: they ask clients.
const MOST_ASKING: usize = 1_000;

impl Calls {
    pub(crate) fn new(parallel: usize) -> Self {
        let places = PollSemaphore::new(Arc::new(Semaphore::new(parallel)));
        Self { places, running: None, waiting: None, most: parallel + MOST_ASKING }
    }

    /// Adds a call: it waits for its turn. Only when none waits.
    pub(crate) fn add(&mut self, id: Option<String>, prepared: Prepared, place: Place) {
        debug_assert!(self.waiting.is_none(), "nothing is read while a call waits");
        self.waiting = Some(Box::new(Waiting { id, prepared, place }));
    }

    /// Whether so many calls were begun and have not ended that no further one is taken. Those that ask clients have
    /// given their places away, so that the places do not bound them.
    pub(crate) fn are_too_many(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.len() >= self.most)
    }

    /// Whether a call waits for its turn.
    pub(crate) fn is_blocked(&self) -> bool {
        self.waiting.is_some()
    }

    /// Lets the waiting call begin, when it is its turn.
    pub(crate) fn poll_begin(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.waiting.is_none() {
            return Poll::Ready(());
        }
        let permit = ready!(self.places.poll_acquire(context));
        if let Some(call) = self.waiting.take() {
            let Waiting { id, prepared, place } = *call;
            *place.lock() = permit;
            let run = async move {
                let (name, result) = prepared.run().await;
                place.lock().take();
                Done { id, name, result }
            };
            self.running.get_or_insert_default().push(run.boxed());
        }
        Poll::Ready(())
    }

    /// The next call that ends; pending while none runs.
    pub(crate) fn poll_done(&mut self, context: &mut Context<'_>) -> Poll<Done> {
        let Some(running) = &mut self.running else { return Poll::Pending };
        match ready!(running.poll_next_unpin(context)) {
            Some(done) => Poll::Ready(done),
            None => {
                self.running = None;
                Poll::Pending
            }
        }
    }

    /// Drops the call that waits and runs the others to their end.
    pub(crate) async fn finish(&mut self) {
        self.waiting = None;
        if let Some(mut running) = self.running.take() {
            while running.next().await.is_some() {}
        }
    }
}
