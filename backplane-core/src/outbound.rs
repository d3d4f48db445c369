//! The bounded queue between the router and one connection's writer. A slow client is its own problem: pushing never
//! waits.
//!
//! Spawn a connection's writer as a task of its own: run as the future that a current-thread runtime blocks on, it gets one
//! turn in some sixty, and its queue overflows at full speed.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use crate::message::AbortReason;

/// Bounds of one connection's queue, and what happens at them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboundLimits {
    /// Most messages that may wait. Default 16,384.
    pub messages: usize,
    /// Most bytes that may wait. Default 4 MiB. A single larger item passes when the queue is empty: one message, or
    /// a run of up to 128 messages and about 64 KiB that arrived together.
    pub bytes: usize,
    /// What happens when one more would not fit. Default [`OverflowPolicy::Disconnect`].
    pub overflow: OverflowPolicy,
}

impl Default for OutboundLimits {
    fn default() -> Self {
        Self { messages: 16_384, bytes: 4 << 20, overflow: OverflowPolicy::Disconnect }
    }
}

/// What happens when a queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverflowPolicy {
    /// The queue ends with [`CloseReason::Overflow`]: the client is disconnected and may reconnect. Loss is visible.
    Disconnect,
    /// The new messages are dropped and counted ([`OutboundReceiver::dropped`]).
    DropNewest,
    /// The oldest messages are dropped and counted until the new ones fit.
    DropOldest,
}

/// Why a queue ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// It overflowed; the client may reconnect.
    Overflow,
    /// Somebody ended the connection: [`Backplane::abort`](crate::Backplane::abort).
    Aborted(AbortReason),
    /// A message had no encoding for this client's protocol.
    MissingProtocol,
    /// All senders were dropped, or the owner closed it.
    Closed,
}

/// One item of the queue: complete frames of the client's protocol, joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundItem {
    /// The frames, one behind the other.
    pub bytes: Bytes,
    /// How many messages they are.
    pub messages: usize,
}

struct Queue {
    items: VecDeque<OutboundItem>,
    messages: usize,
    bytes: usize,
    dropped: u64,
    closed: Option<CloseReason>,
    receiver_gone: bool,
    senders: usize,
    waker: Option<Waker>,
}

struct Shared {
    limits: OutboundLimits,
    queue: Mutex<Queue>,
}

/// Creates a queue.
#[must_use]
pub fn outbound(limits: OutboundLimits) -> (OutboundSender, OutboundReceiver) {
    let shared = Arc::new(Shared {
        limits,
        queue: Mutex::new(Queue {
            items: VecDeque::new(),
            messages: 0,
            bytes: 0,
            dropped: 0,
            closed: None,
            receiver_gone: false,
            senders: 1,
            waker: None,
        }),
    });
    (OutboundSender(shared.clone()), OutboundReceiver(shared))
}

/// What became of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Pushed {
    /// Queued.
    Queued,
    /// The queue overflowed just now; its policy was applied (the connection ends, or messages were dropped).
    Overflowed,
    /// The queue had ended before.
    Closed,
}

/// The router's end. Cloning shares the queue.
pub struct OutboundSender(Arc<Shared>);

impl Clone for OutboundSender {
    fn clone(&self) -> Self {
        self.0.queue.lock().senders += 1;
        Self(self.0.clone())
    }
}

impl Drop for OutboundSender {
    fn drop(&mut self) {
        let waker = {
            let mut queue = self.0.queue.lock();
            queue.senders -= 1;
            if queue.senders > 0 {
                return;
            }
            queue.closed.get_or_insert(CloseReason::Closed);
            queue.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl OutboundSender {
    /// Queues `item` or applies the overflow policy. Never waits.
    pub fn push(&self, item: OutboundItem) -> Pushed {
        let (pushed, waker) = {
            let mut queue = self.0.queue.lock();
            if queue.closed.is_some() || queue.receiver_gone {
                return Pushed::Closed;
            }
            let mut pushed = Pushed::Queued;
            if !queue.fits(&item, self.0.limits) {
                pushed = Pushed::Overflowed;
                match self.0.limits.overflow {
                    OverflowPolicy::Disconnect => queue.end(CloseReason::Overflow),
                    OverflowPolicy::DropNewest => queue.dropped += item.messages as u64,
                    OverflowPolicy::DropOldest => {
                        while !queue.fits(&item, self.0.limits) {
                            queue.drop_oldest();
                        }
                        queue.add(item);
                    }
                }
            } else {
                queue.add(item);
            }
            (pushed, queue.waker.take())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        pushed
    }

    /// Ends the queue. What waits in it is dropped; the first reason stays.
    pub fn close(&self, reason: CloseReason) {
        let waker = {
            let mut queue = self.0.queue.lock();
            if queue.closed.is_some() {
                return;
            }
            queue.end(reason);
            queue.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Whether the queue has ended or its receiver is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let queue = self.0.queue.lock();
        queue.closed.is_some() || queue.receiver_gone
    }
}

impl fmt::Debug for OutboundSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.0.queue.lock();
        f.debug_struct("OutboundSender")
            .field("messages", &queue.messages)
            .field("bytes", &queue.bytes)
            .field("closed", &queue.closed)
            .finish()
    }
}

impl Queue {
    fn fits(&self, item: &OutboundItem, limits: OutboundLimits) -> bool {
        self.items.is_empty()
            || (self.messages + item.messages <= limits.messages
                && self.bytes + item.bytes.len() <= limits.bytes)
    }

    fn add(&mut self, item: OutboundItem) {
        self.messages += item.messages;
        self.bytes += item.bytes.len();
        self.items.push_back(item);
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.take() {
            self.dropped += oldest.messages as u64;
        }
    }

    fn take(&mut self) -> Option<OutboundItem> {
        let item = self.items.pop_front()?;
        self.messages -= item.messages;
        self.bytes -= item.bytes.len();
        Some(item)
    }

    fn end(&mut self, reason: CloseReason) {
        while self.take().is_some() {}
        self.items = VecDeque::new();
        self.closed = Some(reason);
    }
}

/// The connection writer's end.
pub struct OutboundReceiver(Arc<Shared>);

impl OutboundReceiver {
    /// The next item; `Err` once the queue has ended, with the reason. When the senders were merely dropped, what
    /// waits is still handed out. Cancel-safe.
    ///
    /// # Errors
    /// The reason of the end; the same at every further call.
    pub async fn next(&mut self) -> Result<OutboundItem, CloseReason> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// See [`next`](OutboundReceiver::next).
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<OutboundItem, CloseReason>> {
        let mut queue = self.0.queue.lock();
        if let Some(item) = queue.take() {
            return Poll::Ready(Ok(item));
        }
        if let Some(reason) = &queue.closed {
            return Poll::Ready(Err(reason.clone()));
        }
        match &queue.waker {
            Some(waker) if waker.will_wake(context.waker()) => {}
            _ => queue.waker = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// The next item if one waits.
    pub fn try_next(&mut self) -> Option<OutboundItem> {
        self.0.queue.lock().take()
    }

    /// Everything that waits, joined: one transport write. Waits for the first item only. Cancel-safe.
    ///
    /// # Errors
    /// See [`next`](OutboundReceiver::next).
    pub async fn next_joined(&mut self) -> Result<OutboundItem, CloseReason> {
        std::future::poll_fn(|context| self.poll_next_joined(context)).await
    }

    /// See [`next_joined`](OutboundReceiver::next_joined).
    pub fn poll_next_joined(&mut self, context: &mut Context<'_>) -> Poll<Result<OutboundItem, CloseReason>> {
        let first = std::task::ready!(self.poll_next(context))?;
        let rest: VecDeque<OutboundItem> = {
            let mut queue = self.0.queue.lock();
            queue.messages = 0;
            queue.bytes = 0;
            // Its room goes too: a burst shall not be held for the life of the connection.
            std::mem::take(&mut queue.items)
        };
        if rest.is_empty() {
            return Poll::Ready(Ok(first));
        }
        let mut joined = BytesMut::with_capacity(
            first.bytes.len() + rest.iter().map(|item| item.bytes.len()).sum::<usize>(),
        );
        let mut messages = first.messages;
        joined.extend_from_slice(&first.bytes);
        for item in &rest {
            joined.extend_from_slice(&item.bytes);
            messages += item.messages;
        }
        Poll::Ready(Ok(OutboundItem { bytes: joined.freeze(), messages }))
    }

    /// Messages dropped by the overflow policy so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.0.queue.lock().dropped
    }
}

impl Drop for OutboundReceiver {
    fn drop(&mut self) {
        let mut queue = self.0.queue.lock();
        queue.receiver_gone = true;
        while queue.take().is_some() {}
    }
}

impl fmt::Debug for OutboundReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.0.queue.lock();
        f.debug_struct("OutboundReceiver")
            .field("messages", &queue.messages)
            .field("bytes", &queue.bytes)
            .field("closed", &queue.closed)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(text: &'static str) -> OutboundItem {
        OutboundItem { bytes: Bytes::from_static(text.as_bytes()), messages: 1 }
    }

    fn limits(messages: usize, overflow: OverflowPolicy) -> OutboundLimits {
        OutboundLimits { messages, bytes: 1_000, overflow }
    }

    #[tokio::test]
    async fn everything_that_waits_is_joined_into_one_item() {
        let (sender, mut receiver) = outbound(OutboundLimits::default());
        for text in ["a", "b", "c"] {
            assert_eq!(sender.push(item(text)), Pushed::Queued);
        }
        let joined = receiver.next_joined().await.unwrap();
        assert_eq!((&joined.bytes[..], joined.messages), (&b"abc"[..], 3));
        assert!(receiver.try_next().is_none());
    }

    #[tokio::test]
    async fn overflow_disconnects_by_default() {
        let (sender, mut receiver) = outbound(limits(2, OverflowPolicy::Disconnect));
        assert_eq!(sender.push(item("a")), Pushed::Queued);
        assert_eq!(sender.push(item("b")), Pushed::Queued);
        assert_eq!(sender.push(item("c")), Pushed::Overflowed);
        assert_eq!(receiver.next().await, Err(CloseReason::Overflow));
        assert_eq!(sender.push(item("d")), Pushed::Closed);
    }

    #[tokio::test]
    async fn dropping_policies_count_what_they_drop() {
        let (sender, mut receiver) = outbound(limits(2, OverflowPolicy::DropOldest));
        for text in ["a", "b", "c"] {
            let _ = sender.push(item(text));
        }
        assert_eq!((receiver.next().await.unwrap(), receiver.dropped()), (item("b"), 1));

        let (sender, mut receiver) = outbound(limits(2, OverflowPolicy::DropNewest));
        for text in ["a", "b", "c"] {
            let _ = sender.push(item(text));
        }
        assert_eq!((receiver.next().await.unwrap(), receiver.dropped()), (item("a"), 1));
    }

    #[tokio::test]
    async fn bytes_are_bounded_too_but_one_large_message_passes() {
        let (sender, mut receiver) =
            outbound(OutboundLimits { messages: 9, bytes: 3, overflow: OverflowPolicy::Disconnect });
        assert_eq!(sender.push(item("large")), Pushed::Queued);
        assert_eq!(receiver.next().await.unwrap(), item("large"));
        assert_eq!(sender.push(item("ab")), Pushed::Queued);
        assert_eq!(sender.push(item("cd")), Pushed::Overflowed);
    }

    #[tokio::test]
    async fn dropped_senders_let_the_rest_drain() {
        let (sender, mut receiver) = outbound(OutboundLimits::default());
        let _ = sender.push(item("a"));
        drop(sender.clone());
        drop(sender);
        assert_eq!(receiver.next().await, Ok(item("a")));
        assert_eq!(receiver.next().await, Err(CloseReason::Closed));
    }
}
