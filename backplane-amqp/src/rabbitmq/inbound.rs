//! What arrives: taken from lapin's consumers by whoever polls, acknowledged as it is taken.
//!
//! A frame that was not taken is not acknowledged, so the broker sends at most the prefetch ahead, and everything else
//! waits in the node's queue, which is bounded. Without acknowledgements lapin would hold what nobody reads, without
//! bound; so there is no such option.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use backplane_core::{Delivery, Error, ErrorKind, LossReason, Result};
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use futures::{Stream, StreamExt as _};
use lapin::options::BasicAckOptions;
use lapin::types::AMQPValue;
use lapin::{Acker, Consumer};

use super::bindings::Interest;
use super::refusal::refusal;
use super::shared::Shared;

/// How often losses are told while they go on.
const TELL: Duration = Duration::from_millis(100);

/// The reading side: [`Link::inbound`](backplane_core::Link::inbound). Dropping it frees the link.
pub(super) struct Inbound {
    frames: Consumer,
    losses: Consumer,
    interest: Arc<Interest>,
    shared: Arc<Shared>,
    /// Acknowledged when this many were taken, or nothing more is there.
    ack_every: usize,
    taken: usize,
    last: Option<Acker>,
    /// One at a time: lapin runs each in a task of its own, and an older one that comes later is an error to the broker.
    acking: Option<BoxFuture<'static, ()>>,
    /// A loss that was told. It is acknowledged after a while, and the next one comes then.
    told: Option<BoxFuture<'static, ()>>,
    finished: bool,
}

impl Inbound {
    pub(super) fn new(
        frames: Consumer,
        losses: Consumer,
        interest: Arc<Interest>,
        shared: Arc<Shared>,
        prefetch: u16,
    ) -> Self {
        let ack_every = usize::from(prefetch).div_ceil(4);
        Self {
            frames,
            losses,
            interest,
            shared,
            ack_every,
            taken: 0,
            last: None,
            acking: None,
            told: None,
            finished: false,
        }
    }

    /// The next frame that somebody wants.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Delivery>> {
        loop {
            if self.taken >= self.ack_every {
                self.acknowledge(cx);
                if let Poll::Ready(loss) = self.poll_loss(cx) {
                    return Poll::Ready(loss);
                }
            }
            let delivery = match self.frames.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(delivery))) => delivery,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(broken(error))),
                Poll::Ready(None) => return Poll::Ready(Err(cancelled())),
                Poll::Pending => {
                    self.acknowledge(cx);
                    return self.poll_loss(cx);
                }
            };
            let name = delivery.properties.kind().as_ref().unwrap_or(&delivery.routing_key);
            let topic = self.interest.find(name.as_str().as_bytes());
            self.taken += 1;
            self.last = Some(delivery.acker);
            if let Some(topic) = topic {
                let mut data = delivery.data;
                // A body of several frames grew by doubling; it may live long.
                if data.capacity() - data.len() > data.len() / 4 {
                    data.shrink_to_fit();
                }
                return Poll::Ready(Ok(Delivery::Frame { topic, frame: Bytes::from(data), position: None }));
            }
        }
    }

    /// Whether frames were lost.
    fn poll_loss(&mut self, cx: &mut Context<'_>) -> Poll<Result<Delivery>> {
        if let Some(told) = &mut self.told {
            if told.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.told = None;
        }
        match self.losses.poll_next_unpin(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(Err(cancelled())),
            Poll::Ready(Some(Err(error))) => Poll::Ready(Err(broken(error))),
            Poll::Ready(Some(Ok(loss))) => {
                let headers = loss.properties.headers().as_ref();
                let why = headers.and_then(|headers| headers.inner().get("x-first-death-reason"));
                let expired = matches!(why, Some(AMQPValue::LongString(why)) if why.as_bytes() == b"expired");
                let reason = if expired { LossReason::Retention } else { LossReason::Overflow };
                let acknowledged = acknowledgement(loss.acker, false);
                self.told = Some(tokio::time::sleep(TELL).then(|()| acknowledged).boxed());
                // The message is one of any number: which topics lost frames is not known.
                Poll::Ready(Ok(Delivery::Lost { topics: None, reason }))
            }
        }
    }

    /// Acknowledges what was taken, unless the last time is not over yet.
    fn acknowledge(&mut self, cx: &mut Context<'_>) {
        loop {
            if let Some(acking) = &mut self.acking {
                if acking.as_mut().poll(cx).is_pending() {
                    return;
                }
                self.acking = None;
            }
            self.taken = 0;
            let Some(last) = self.last.take() else { return };
            self.acking = Some(acknowledgement(last, true));
        }
    }
}

/// How it ended does not matter: where it fails the channel has, too.
fn acknowledgement(acker: Acker, multiple: bool) -> BoxFuture<'static, ()> {
    async move {
        let _ = acker.ack(BasicAckOptions { multiple }).await;
    }
    .boxed()
}

fn broken(error: lapin::Error) -> Error {
    let error = refusal("receive", "the connection broke", error);
    Error::new(ErrorKind::Unavailable, "receive").with_source(error)
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Unavailable, "receive")
        .with_context("the broker cancelled the consumer: the node's queue is gone, with the broker's node or by an operator")
}

impl Stream for Inbound {
    type Item = Result<Delivery>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.finished {
            return Poll::Ready(None);
        }
        let delivery = this.poll_frame(cx);
        if let Poll::Ready(Ok(delivery)) = delivery {
            return Poll::Ready(Some(Ok(delivery)));
        }
        // The task's word about the end is the better one; a consumer's own comes when the connection ends under it.
        let how = match (this.shared.poll_end(cx), delivery) {
            (Poll::Ready(how), _) => how,
            (Poll::Pending, Poll::Ready(Err(error))) => {
                this.shared.end_inbound(Err(error.clone()));
                this.shared.abandon();
                Err(error)
            }
            (Poll::Pending, _) => return Poll::Pending,
        };
        this.finished = true;
        Poll::Ready(how.err().map(Err))
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        self.shared.abandon();
    }
}
