//! How to write a bus: the least that keeps every contract of [`Bus`], over a message system that is not ours.
//!
//! The message system is [`tokio::sync::broadcast`]: every receiver sees every message, and one that is too slow is
//! told how many it missed. Brokers are like that too. A bus only translates: topics to filters, losses to
//! [`Delivery::Lost`], ends to errors. It does not reconnect, retry, buffer or remove repeats: the router does.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use backplane_core::{
    Attach, Bus, Capabilities, Delivery, Error, ErrorKind, Limits, Link, LinkSender, LossReason, Order,
    Outgoing, Reach, Result, Topic, TopicSyntax,
};
use futures::future::{BoxFuture, ready};
use futures::{FutureExt as _, StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

/// Largest frame in bytes, and how many frames a reader may fall behind before it loses some: queues have bounds.
const MAX_FRAME: usize = 128 << 10;
const CAPACITY: usize = 4_096;

/// A value of the bus is what one process opens. Here it holds the way to the broker; elsewhere an address and
/// credentials, which `Debug` must not show.
#[derive(Clone, Debug)]
pub struct BroadcastBus(broadcast::Sender<Outgoing>);

/// The default is a new broker. Buses that are to reach each other are clones of one.
impl Default for BroadcastBus {
    fn default() -> Self {
        Self(broadcast::Sender::new(CAPACITY))
    }
}

#[async_trait]
impl Bus for BroadcastBus {
    /// Promise only what the broker promises. The suite holds the bus to it: with `Order::Total` it compares what
    /// several receivers saw, with `TopicSyntax::Any` it tries topics with NUL, wildcards and 10,000 bytes.
    fn capabilities(&self) -> Capabilities {
        Capabilities { order: Order::Total, topics: TopicSyntax::Any, ..Capabilities::default() }
    }

    /// One attempt (B9). A bus with a network would give up at `attach.deadline` and notice a dead connection within
    /// `attach.heartbeat` (B6); this one has nothing that can die before its process does.
    async fn connect(&self, attach: Attach<'_>) -> Result<Link> {
        let wanted = Mutex::new(attach.topics.iter().cloned().collect());
        let state = Arc::new(LinkState { wanted, closed: watch::Sender::new(false) });
        let sender = Arc::new(BroadcastSender { broker: self.0.clone(), state: state.clone() });
        // Whatever is published from here on arrives: attached topics are confirmed when `connect` returns (B1).
        let inbound = Inbound { arrivals: self.0.subscribe(), closed: state.closed.subscribe(), state };
        let inbound = stream::unfold(inbound, |mut half| async { Some((half.next().await?, half)) });
        let limits = Limits { max_frame: MAX_FRAME, reports_reach: false };
        Ok(Link { sender, inbound: inbound.fuse().boxed(), resumed: false, limits })
    }
}

/// The receiving half. All its state is here and none in the future of `next`: a poll may be cancelled anywhere (B8).
struct Inbound {
    arrivals: broadcast::Receiver<Outgoing>,
    closed: watch::Receiver<bool>,
    state: Arc<LinkState>,
}

impl Inbound {
    async fn next(&mut self) -> Option<Result<Delivery>> {
        loop {
            tokio::select! {
                biased;
                _ = self.closed.wait_for(|closed| *closed) => return None, // Closed in order: no error.
                arrival = self.arrivals.recv() => match arrival {
                    Ok(Outgoing { topic, frame }) if self.state.wanted.lock().contains(&topic) => {
                        return Some(Ok(Delivery::Frame { topic, frame, position: None }));
                    }
                    Ok(_) => {}
                    // Loss is never silent (B11). Which topics lost something the broker does not say.
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        return Some(Ok(Delivery::Lost { topics: None, reason: LossReason::Overflow }));
                    }
                    // The broker is gone: an error, and nothing after it (B6).
                    Err(broadcast::error::RecvError::Closed) => {
                        self.state.closed.send_replace(true);
                        return Some(Err(Error::new(ErrorKind::Unavailable, "receive")));
                    }
                },
            }
        }
    }
}

/// Dropping the receiving half closes the link (B7).
impl Drop for Inbound {
    fn drop(&mut self) {
        self.state.closed.send_replace(true);
    }
}

/// What the two halves of a link share.
#[derive(Debug)]
struct LinkState {
    wanted: Mutex<HashSet<Topic>>,
    closed: watch::Sender<bool>,
}

#[derive(Debug)]
struct BroadcastSender {
    broker: broadcast::Sender<Outgoing>,
    state: Arc<LinkState>,
}

impl BroadcastSender {
    /// A sender that outlives its link answers `Closed` (B7).
    fn check(&self, operation: &'static str) -> Result<()> {
        if *self.state.closed.borrow() { Err(Error::new(ErrorKind::Closed, operation)) } else { Ok(()) }
    }

    fn send(&self, out: Outgoing) -> Result<Reach> {
        self.check("publish")?;
        if out.frame.len() > MAX_FRAME {
            return Err(Error::new(ErrorKind::TooLarge, "publish")); // And nothing is sent (B2).
        }
        let _ = self.broker.send(out); // Fails when nobody receives, which is Ok (B4).
        Ok(Reach::Unknown)
    }
}

#[async_trait]
impl LinkSender for BroadcastSender {
    /// Sends in the call and not in the future: the call fixes the order (B3), and a dropped future loses no frame.
    fn publish(&self, batch: Vec<Outgoing>) -> BoxFuture<'static, Vec<Result<Reach>>> {
        ready(batch.into_iter().map(|out| self.send(out)).collect()).boxed()
    }

    async fn subscribe(&self, topics: &[Topic]) -> Result<()> {
        self.check("subscribe")?;
        self.state.wanted.lock().extend(topics.iter().cloned());
        Ok(())
    }

    async fn unsubscribe(&self, topics: &[Topic]) -> Result<()> {
        self.state.wanted.lock().retain(|wanted| !topics.contains(wanted));
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        self.state.closed.send_replace(true);
        Ok(())
    }
}
