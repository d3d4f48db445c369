//! The subscriptions of a link, of which only those are looked at that have something.
//!
//! The crate has one queue per subscription. Asking ten thousand of them in turn would cost more than the messages; each
//! has a bell of its own instead, and a ring puts it on the list of those to be emptied.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use async_nats::{Message, Subscriber};
use backplane_core::Topic;
use futures::StreamExt as _;
use parking_lot::Mutex;

#[derive(Debug, Default)]
pub(crate) struct Feeds {
    slots: Vec<Option<Feed>>,
    free: Vec<usize>,
    rung: Arc<Rung>,
    taken: Vec<usize>,
}

#[derive(Debug)]
struct Feed {
    topic: Topic,
    subscriber: Subscriber,
    bell: Arc<Bell>,
    waker: Waker,
}

/// The slots whose bells rang, and whom to tell.
#[derive(Debug, Default)]
struct Rung {
    state: Mutex<RungState>,
}

#[derive(Debug, Default)]
struct RungState {
    slots: Vec<usize>,
    task: Option<Waker>,
}

#[derive(Debug)]
struct Bell {
    slot: usize,
    /// It is on the list already.
    ringing: AtomicBool,
    rung: Arc<Rung>,
}

impl Bell {
    fn ring(&self) {
        if self.ringing.swap(true, Ordering::AcqRel) {
            return;
        }
        let task = {
            let mut state = self.rung.state.lock();
            state.slots.push(self.slot);
            state.task.take()
        };
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}

impl Feeds {
    /// Adds a subscription; returns its slot. It is looked at in the next [`Feeds::empty`].
    pub(crate) fn add(&mut self, topic: Topic, subscriber: Subscriber) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let bell = Arc::new(Bell { slot, ringing: AtomicBool::new(false), rung: self.rung.clone() });
        let waker = Waker::from(bell.clone());
        bell.ring();
        self.slots[slot] = Some(Feed { topic, subscriber, bell, waker });
        slot
    }

    /// Takes one out.
    pub(crate) fn remove(&mut self, slot: usize) -> Option<Subscriber> {
        let feed = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        Some(feed.subscriber)
    }

    /// Takes out all.
    pub(crate) fn remove_all(&mut self) -> Vec<Subscriber> {
        self.free.clear();
        self.slots.drain(..).flatten().map(|feed| feed.subscriber).collect()
    }

    /// Hands everything that has arrived to `take`; the task is woken when there is more.
    pub(crate) fn empty(&mut self, cx: &Context<'_>, mut take: impl FnMut(&Topic, Message)) {
        {
            let mut state = self.rung.state.lock();
            std::mem::swap(&mut state.slots, &mut self.taken);
            match &mut state.task {
                Some(task) => task.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
        }
        for slot in self.taken.drain(..) {
            // A bell may outlive its subscription; whoever has the slot now is asked in vain.
            let Some(Some(feed)) = self.slots.get_mut(slot) else { continue };
            feed.bell.ringing.store(false, Ordering::Release);
            let mut cx = Context::from_waker(&feed.waker);
            while let Poll::Ready(Some(message)) = feed.subscriber.poll_next_unpin(&mut cx) {
                take(&feed.topic, message);
            }
        }
    }
}
