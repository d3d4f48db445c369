//! The bounded queue in front of the link: what was posted and is not yet accepted.
//!
//! Two semaphores bound it, in frames and in bytes, from the post until the broker's acceptance. While the link is
//! down nothing enters (fail fast); what had entered and was not handed over fails when the link is lost.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::{Notify, Semaphore};

use crate::bus::{Limits, Reach};
use crate::error::{Error, ErrorKind, Partial, Result};
use crate::topic::Topic;
use crate::wire::Draft;

/// The frames of one send; nearly always one.
pub(crate) type Drafts = SmallVec<[Draft; 1]>;

/// Most replies (acknowledgements, answers) that may be queued or unconfirmed beside the bounds, and as many bytes of
/// them as of everything else; beyond it they are dropped and counted.
const MAX_REPLIES: usize = 65_536;

/// Awaits the acceptance of one send, which may be several frames.
pub(crate) struct AcceptanceSlot(Arc<Mutex<Slot>>);

struct Slot {
    undecided: u32,
    accepted: u32,
    frames: u32,
    /// Connections of this node were served at once, whatever becomes of the frames.
    served_here: bool,
    /// Links reached by all frames together; `None` once one frame's reach is unknown.
    reached: Option<u32>,
    failure: Option<Box<Error>>,
    waker: Option<Waker>,
}

impl AcceptanceSlot {
    fn new(frames: usize) -> Self {
        let frames = u32::try_from(frames).unwrap_or(u32::MAX);
        Self(Arc::new(Mutex::new(Slot {
            undecided: frames,
            accepted: 0,
            frames,
            served_here: false,
            reached: Some(0),
            failure: None,
            waker: None,
        })))
    }

    /// Ready when the last frame is decided.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Reach>> {
        let mut slot = self.0.lock();
        if slot.undecided > 0 {
            match &slot.waker {
                Some(waker) if waker.will_wake(context.waker()) => {}
                _ => slot.waker = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        let (accepted, frames) = (slot.accepted as usize, slot.frames as usize);
        Poll::Ready(match slot.failure.take() {
            Some(mut error) => {
                // What was accepted, or served here, has taken effect.
                if accepted > 0 || slot.served_here {
                    *error = error.with_outcome_unknown();
                }
                Err(if frames > 1 { error.with_partial(Partial { accepted, frames }) } else { *error })
            }
            None => Ok(slot.reached.map_or(Reach::Unknown, Reach::Nodes)),
        })
    }

    /// Connections of this node were served besides: a failure does not mean that nobody got it.
    pub(crate) fn served_here(&self) {
        self.0.lock().served_here = true;
    }

    /// As [`poll`](AcceptanceSlot::poll).
    pub(crate) async fn decided(mut self) -> Result<Reach> {
        std::future::poll_fn(move |context| self.poll(context)).await
    }

    fn share(&self) -> Self {
        Self(self.0.clone())
    }

    fn decide(&self, result: Result<Reach>) {
        let waker = {
            let mut slot = self.0.lock();
            slot.undecided = slot.undecided.saturating_sub(1);
            match result {
                Ok(Reach::Nodes(nodes)) => {
                    slot.accepted += 1;
                    slot.reached = slot.reached.map(|sum| sum.saturating_add(nodes));
                }
                Ok(Reach::Unknown) => {
                    slot.accepted += 1;
                    slot.reached = None;
                }
                // A failure with an unknown outcome says more than one that certainly reached nobody.
                Err(error) => {
                    if slot
                        .failure
                        .as_ref()
                        .is_none_or(|first| !first.outcome_unknown() && error.outcome_unknown())
                    {
                        slot.failure = Some(Box::new(error));
                    }
                }
            }
            if slot.undecided > 0 { None } else { slot.waker.take() }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A queued frame.
pub(crate) struct Item {
    pub(crate) topic: Topic,
    pub(crate) frame: BytesMut,
    ticket: Ticket,
}

/// What must be told and given back once a frame is decided.
pub(crate) struct Ticket {
    slot: Option<AcceptanceSlot>,
    frames: u32,
    bytes: u32,
}

/// See the module.
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    /// Told when something was queued.
    pub(crate) ready: Notify,
    frames: Semaphore,
    bytes: Semaphore,
    max_frames: u32,
    max_bytes: u32,
}

struct Queue {
    items: VecDeque<Item>,
    /// Replies queued or unconfirmed, and their bytes.
    replies: usize,
    reply_bytes: usize,
    /// `Err`: why nothing can be queued.
    link: std::result::Result<Limits, Error>,
}

impl Outbox {
    pub(crate) fn new(max_frames: usize, max_bytes: usize) -> Self {
        let down = Error::new(ErrorKind::Unavailable, "send").with_context("the link is not up yet");
        Self {
            queue: Mutex::new(Queue { items: VecDeque::new(), replies: 0, reply_bytes: 0, link: Err(down) }),
            ready: Notify::new(),
            frames: Semaphore::new(max_frames),
            bytes: Semaphore::new(max_bytes),
            max_frames: u32::try_from(max_frames).expect("validated configuration fits 32 bits"),
            max_bytes: u32::try_from(max_bytes).expect("validated configuration fits 32 bits"),
        }
    }

    /// The link is up.
    pub(crate) fn open(&self, limits: Limits) {
        self.queue.lock().link = Ok(limits);
    }

    /// The link is down or the node closed: everything queued fails, it reached nobody; nothing more enters.
    pub(crate) fn close(&self, error: &Error) {
        let items = {
            let mut queue = self.queue.lock();
            queue.link = Err(error.clone());
            std::mem::take(&mut queue.items)
        };
        for item in items {
            self.settle(item.ticket, Err(error.clone()));
        }
    }

    /// What the link can carry.
    pub(crate) fn limits(&self) -> Result<Limits> {
        self.queue.lock().link.clone()
    }

    /// Queues all drafts of one send now, or none.
    pub(crate) fn post(&self, drafts: Drafts) -> Result<AcceptanceSlot> {
        self.check(&drafts)?;
        let (frames, bytes) = self.cost(&drafts);
        let full = || {
            let context =
                format!("{} frames or {} bytes are already unconfirmed", self.max_frames, self.max_bytes);
            Error::new(ErrorKind::Overloaded, "send").with_context(context)
        };
        let frame_room = self.frames.try_acquire_many(frames).map_err(|_| full())?;
        let byte_room = self.bytes.try_acquire_many(bytes).map_err(|_| full())?;
        let slot = self.enqueue(drafts, frames, bytes)?;
        frame_room.forget();
        byte_room.forget();
        Ok(slot)
    }

    /// Queues all drafts of one send as soon as there is room. Dropping the future before queues nothing.
    pub(crate) async fn send(&self, drafts: Drafts, deadline: Duration) -> Result<AcceptanceSlot> {
        self.check(&drafts)?;
        let (frames, bytes) = self.cost(&drafts);
        let room = async {
            let closed = |_| Error::new(ErrorKind::Closed, "send");
            let frame_room = self.frames.acquire_many(frames).await.map_err(closed)?;
            let byte_room = self.bytes.acquire_many(bytes).await.map_err(closed)?;
            Ok::<_, Error>((frame_room, byte_room))
        };
        let late = |_| Error::new(ErrorKind::Timeout, "send").with_context("the queue was full all the time");
        let (frame_room, byte_room) = tokio::time::timeout(deadline, room).await.map_err(late)??;
        let slot = self.enqueue(drafts, frames, bytes)?;
        frame_room.forget();
        byte_room.forget();
        Ok(slot)
    }

    /// Queues an acknowledgement or answer beside the bounds. `false`: dropped.
    pub(crate) fn reply(&self, draft: Draft) -> bool {
        let mut queue = self.queue.lock();
        let fits = queue.link.as_ref().is_ok_and(|limits| draft.frame.len() <= limits.max_frame);
        let bytes = draft.frame.len();
        let full = queue.replies >= MAX_REPLIES
            || (queue.replies > 0 && queue.reply_bytes + bytes > self.max_bytes as usize);
        if !fits || full {
            return false;
        }
        queue.replies += 1;
        queue.reply_bytes += bytes;
        let ticket = Ticket { slot: None, frames: 0, bytes: u32::try_from(bytes).unwrap_or(u32::MAX) };
        queue.items.push_back(Item { topic: draft.topic, frame: draft.frame, ticket });
        drop(queue);
        self.ready.notify_one();
        true
    }

    /// The next frames to hand to the link, in order: at most `frames`, and none after `bytes` were reached.
    pub(crate) fn take(&self, frames: usize, bytes: usize) -> Vec<Item> {
        let mut queue = self.queue.lock();
        let mut total = 0;
        let mut count = 0;
        while count < frames.min(queue.items.len()) && total < bytes {
            total += queue.items[count].frame.len();
            count += 1;
        }
        let taken: Vec<Item> = queue.items.drain(..count).collect();
        if !queue.items.is_empty() {
            drop(queue);
            self.ready.notify_one();
        }
        taken
    }

    /// Whether anything is queued.
    pub(crate) fn holds_frames(&self) -> bool {
        !self.queue.lock().items.is_empty()
    }

    /// Tells the outcome of one frame and gives its room back.
    pub(crate) fn settle(&self, ticket: Ticket, result: Result<Reach>) {
        self.settle_all(std::iter::once((ticket, result)));
    }

    /// As [`settle`](Outbox::settle), for a batch: room is given back once.
    pub(crate) fn settle_all(&self, outcomes: impl IntoIterator<Item = (Ticket, Result<Reach>)>) {
        let (mut frames, mut bytes, mut replies, mut reply_bytes) = (0, 0, 0, 0);
        for (ticket, result) in outcomes {
            if let Some(slot) = ticket.slot {
                frames += ticket.frames as usize;
                bytes += ticket.bytes as usize;
                slot.decide(result);
            } else {
                replies += 1;
                reply_bytes += ticket.bytes as usize;
            }
        }
        if replies > 0 {
            let mut queue = self.queue.lock();
            queue.replies = queue.replies.saturating_sub(replies);
            queue.reply_bytes = queue.reply_bytes.saturating_sub(reply_bytes);
        }
        if frames > 0 {
            self.frames.add_permits(frames);
        }
        if bytes > 0 {
            self.bytes.add_permits(bytes);
        }
    }

    /// Frames and bytes queued or unconfirmed.
    pub(crate) fn load(&self) -> (u64, u64) {
        let used =
            |max: u32, room: &Semaphore| u64::from(max).saturating_sub(room.available_permits() as u64);
        (used(self.max_frames, &self.frames), used(self.max_bytes, &self.bytes))
    }

    fn check(&self, drafts: &[Draft]) -> Result<()> {
        let max = self.limits()?.max_frame;
        match drafts.iter().map(|draft| draft.frame.len()).max() {
            Some(largest) if largest > max => Err(Error::new(ErrorKind::TooLarge, "send")
                .with_context(format!("a frame of {largest} bytes, the bus carries at most {max}"))),
            _ => Ok(()),
        }
    }

    /// The room a send takes: never more than there is, so that a large one passes an empty queue.
    fn cost(&self, drafts: &[Draft]) -> (u32, u32) {
        let bytes: usize = drafts.iter().map(|draft| draft.frame.len()).sum();
        let clamp = |count: usize, max: u32| u32::try_from(count).unwrap_or(u32::MAX).min(max);
        (clamp(drafts.len(), self.max_frames), clamp(bytes, self.max_bytes))
    }

    fn enqueue(&self, drafts: Drafts, frames: u32, bytes: u32) -> Result<AcceptanceSlot> {
        let slot = AcceptanceSlot::new(drafts.len());
        let mut queue = self.queue.lock();
        if let Err(error) = &queue.link {
            return Err(error.clone());
        }
        let mut room = (frames, bytes);
        for Draft { topic, frame } in drafts {
            // The first frame carries the room of the whole send: all frames of one send are settled together or
            // nearly so, and one addition is cheaper than many.
            let ticket = Ticket { slot: Some(slot.share()), frames: room.0, bytes: room.1 };
            room = (0, 0);
            queue.items.push_back(Item { topic, frame, ticket });
        }
        drop(queue);
        self.ready.notify_one();
        Ok(slot)
    }
}

impl Item {
    pub(crate) fn into_parts(self) -> (Topic, BytesMut, Ticket) {
        (self.topic, self.frame, self.ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(bytes: usize) -> Draft {
        Draft { topic: Topic::from("t"), frame: BytesMut::zeroed(bytes) }
    }

    fn outbox(frames: usize, bytes: usize) -> Outbox {
        let outbox = Outbox::new(frames, bytes);
        outbox.open(Limits { max_frame: 100, reports_reach: true });
        outbox
    }

    #[tokio::test]
    async fn a_full_queue_refuses_posts_and_lets_sends_wait() {
        let outbox = outbox(2, 1_000);
        let _first = outbox.post(smallvec::smallvec![draft(1)]).unwrap();
        let _second = outbox.post(smallvec::smallvec![draft(1)]).unwrap();
        assert_eq!(outbox.post(smallvec::smallvec![draft(1)]).err().unwrap().kind(), ErrorKind::Overloaded);
        let late = outbox.send(smallvec::smallvec![draft(1)], Duration::from_millis(1)).await;
        assert_eq!(late.err().unwrap().kind(), ErrorKind::Timeout);

        let (.., ticket) = outbox.take(1, 1).pop().unwrap().into_parts();
        outbox.settle(ticket, Ok(Reach::Nodes(1)));
        assert!(outbox.send(smallvec::smallvec![draft(1)], Duration::from_secs(5)).await.is_ok());
        assert_eq!(outbox.load(), (2, 2));
    }

    #[tokio::test]
    async fn a_send_of_several_frames_says_how_many_were_accepted() {
        let outbox = outbox(10, 1_000);
        let slot = outbox.post(smallvec::smallvec![draft(1), draft(1), draft(1)]).unwrap();
        for (number, item) in outbox.take(10, 1_000).into_iter().enumerate() {
            let result = if number == 1 {
                Err(Error::new(ErrorKind::Unavailable, "publish").with_outcome_unknown())
            } else {
                Ok(Reach::Nodes(1))
            };
            outbox.settle(item.into_parts().2, result);
        }
        let error = slot.decided().await.unwrap_err();
        assert_eq!(error.partial(), Some(Partial { accepted: 2, frames: 3 }));
        assert!(error.outcome_unknown());
        assert_eq!(outbox.load(), (0, 0));
    }

    #[tokio::test]
    async fn a_lost_link_fails_what_was_queued_and_what_comes() {
        let outbox = outbox(10, 1_000);
        let slot = outbox.post(smallvec::smallvec![draft(1)]).unwrap();
        outbox.close(&Error::new(ErrorKind::Unavailable, "send"));
        let error = slot.decided().await.unwrap_err();
        assert_eq!((error.kind(), error.outcome_unknown()), (ErrorKind::Unavailable, false));
        assert_eq!(outbox.post(smallvec::smallvec![draft(1)]).err().unwrap().kind(), ErrorKind::Unavailable);
        assert_eq!(outbox.load(), (0, 0));
    }

    #[tokio::test]
    async fn a_send_larger_than_the_queue_passes_when_it_is_empty() {
        let outbox = outbox(2, 50);
        assert!(outbox.post(smallvec::smallvec![draft(40), draft(40), draft(40)]).is_ok());
        assert_eq!(outbox.post(smallvec::smallvec![draft(101)]).err().unwrap().kind(), ErrorKind::TooLarge);
    }
}
