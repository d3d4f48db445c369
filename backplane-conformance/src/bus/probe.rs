//! One link under test: a deadline on every wait, and fences instead of pauses as proof that nothing more will come.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backplane_core::{Attach, Bus, Delivery, ErrorKind, Link, NodeId, Position, Result, Topic};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::time::{Instant, sleep, timeout};

use super::publisher::Publisher;
use crate::ensure;
use crate::report::{Broken, bound};

/// How long anything may take that a healthy bus does in milliseconds, where no other allowance is set.
pub(super) const WAIT: Duration = Duration::from_secs(5);

/// How often a fence is repeated: it must prove an end even on a bus that loses frames.
const FENCE_EVERY: Duration = Duration::from_millis(300);

/// How long frames that a fence overtook may still take. Only waited for when something is missing.
const LATE: Duration = Duration::from_secs(1);

const FENCE: &[u8] = b"\0fence:";

/// A frame that arrived.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    pub(super) topic: Topic,
    pub(super) frame: Bytes,
    pub(super) position: Option<Position>,
}

/// One link under test.
pub(super) struct Probe {
    pub(super) bus: Arc<dyn Bus>,
    pub(super) node: NodeId,
    pub(super) attempt: u64,
    pub(super) heartbeat: Duration,
    pub(super) out: Publisher,
    pub(super) inbound: BoxStream<'static, Result<Delivery>>,
    pub(super) resumed: bool,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

impl Probe {
    /// Opens a link.
    pub(super) async fn open(
        bus: Arc<dyn Bus>,
        node: NodeId,
        attempt: u64,
        topics: &[Topic],
        resume: Option<&Position>,
        heartbeat: Duration,
    ) -> Result<Self, Broken> {
        let attach = Attach { node, attempt, topics, resume, deadline: bound(WAIT), heartbeat };
        let link: Link = within(WAIT * 2, "connect", bus.connect(attach)).await??;
        let id = u32::try_from(NEXT.fetch_add(1, Ordering::Relaxed) % u64::from(u32::MAX)).unwrap_or(0);
        let Link { sender, inbound, resumed, limits } = link;
        let out = Publisher::new(sender, limits, id);
        Ok(Self { bus, node, attempt, heartbeat, out, inbound, resumed })
    }

    // These borrow nothing of the link, whose inbound cannot be shared between threads.

    /// Opens the next link of the same process, after this one ended or while it still lives.
    pub(super) fn again<'a>(
        &self,
        topics: &'a [Topic],
        resume: Option<&'a Position>,
    ) -> impl Future<Output = Result<Self, Broken>> + Send + use<'a> {
        let (bus, node, attempt, heartbeat) = (self.bus.clone(), self.node, self.attempt + 1, self.heartbeat);
        async move { Self::open(bus, node, attempt, topics, resume, heartbeat).await }
    }

    /// Subscribes, and waits as long as a broker cluster may need to spread the word.
    pub(super) fn subscribe<'a>(
        &self,
        topics: &'a [Topic],
    ) -> impl Future<Output = Result<(), Broken>> + Send + use<'a> {
        let (sender, propagated) = (self.out.sender.clone(), self.propagated());
        async move {
            within(WAIT, "subscribe", sender.subscribe(topics)).await??;
            propagated.await;
            Ok(())
        }
    }

    pub(super) fn unsubscribe<'a>(
        &self,
        topics: &'a [Topic],
    ) -> impl Future<Output = Result<(), Broken>> + Send + use<'a> {
        let sender = self.out.sender.clone();
        async move { Ok(within(WAIT, "unsubscribe", sender.unsubscribe(topics)).await??) }
    }

    pub(super) fn close(&self) -> impl Future<Output = Result<(), Broken>> + Send + use<> {
        let sender = self.out.sender.clone();
        async move { Ok(within(WAIT, "close", sender.close()).await??) }
    }

    /// The wait that [`Capabilities::propagation`](backplane_core::Capabilities::propagation) asks for.
    pub(super) fn propagated(&self) -> impl Future<Output = ()> + Send + use<> {
        let bound = self.bus.capabilities().propagation;
        async move {
            if !bound.is_zero() {
                sleep(bound).await;
            }
        }
    }

    /// The next frame. A loss, an error, the end and silence are all broken promises here.
    pub(super) async fn next(&mut self, awaited: &str) -> Result<Arrival, Broken> {
        match timeout(bound(WAIT), self.inbound.next()).await {
            Ok(Some(Ok(Delivery::Frame { topic, frame, position }))) => {
                Ok(Arrival { topic, frame, position })
            }
            Ok(Some(Ok(Delivery::Lost { reason, .. }))) => {
                Err(Broken(format!("told of a loss ({reason:?}) while waiting for {awaited}")))
            }
            Ok(Some(Err(error))) => Err(Broken(format!("link ended while waiting for {awaited}: {error}"))),
            Ok(None) => Err(Broken(format!("inbound ended while waiting for {awaited}"))),
            Err(_) => Err(Broken(format!("{awaited} did not arrive within {WAIT:?}"))),
        }
    }

    /// Waits for exactly that frame under exactly that topic; passes over everything else.
    pub(super) async fn expect(&mut self, topic: &Topic, frame: &Bytes) -> Result<(), Broken> {
        let awaited = format!("a frame of {} bytes on {topic}", frame.len());
        let give_up = Instant::now() + bound(WAIT);
        loop {
            let arrival = self.next(&awaited).await?;
            if arrival.topic == *topic && arrival.frame == *frame {
                return Ok(());
            }
            ensure!(Instant::now() < give_up, "{awaited} did not arrive within {WAIT:?}");
        }
    }

    /// Publishes while it reads, and returns what arrived before every fence did. A fence is published by each
    /// publisher on each of its topics after `publishing` is done; by B3 nothing can follow it. Fences are repeated
    /// until they arrive.
    pub(super) async fn collect(
        &mut self,
        fences: &[(&Publisher, &Topic)],
        publishing: impl Future<Output = Result<(), Broken>> + Send,
    ) -> Result<Vec<Arrival>, Broken> {
        let fences: Vec<(Publisher, Topic, Bytes)> = fences
            .iter()
            .map(|(publisher, topic)| {
                let name = [FENCE, &NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes()].concat();
                ((*publisher).clone(), (*topic).clone(), Bytes::from(name))
            })
            .collect();
        let mut waiting: HashSet<Bytes> = fences.iter().map(|(_, _, name)| name.clone()).collect();
        let sending = async {
            publishing.await?;
            for attempt in 0_u32.. {
                for (publisher, topic, name) in &fences {
                    publisher.send(topic, [&name[..], &attempt.to_be_bytes()].concat()).await?;
                }
                sleep(FENCE_EVERY).await;
            }
            Ok(())
        };
        let mut sending = std::pin::pin!(sending);
        let mut arrivals = Vec::new();
        // Repeated fences do not count as progress.
        let mut progress = Instant::now();
        while !waiting.is_empty() {
            tokio::select! {
                // Whoever reads first keeps up: no more than a batch of each publisher is ever unread.
                biased;
                arrival = self.next("a fence") => {
                    let arrival = arrival?;
                    if !arrival.frame.starts_with(FENCE) {
                        arrivals.push(arrival);
                        progress = Instant::now();
                    } else if waiting.remove(fence_name(&arrival.frame)) {
                        progress = Instant::now();
                    }
                    let stuck = progress.elapsed() > bound(WAIT);
                    ensure!(!stuck, "{} of {} fences did not arrive within {WAIT:?}", waiting.len(), fences.len());
                }
                failed = &mut sending => {
                    let failed: Result<(), Broken> = failed;
                    failed?;
                }
            }
        }
        Ok(arrivals)
    }

    /// Reads on until `complete` says that nothing is missing, at most a moment longer: for contracts about loss,
    /// which are not to fail because of order.
    pub(super) async fn read_late(
        &mut self,
        arrivals: &mut Vec<Arrival>,
        complete: impl Fn(&[Arrival]) -> bool,
    ) {
        while !complete(arrivals) {
            let Ok(Some(Ok(delivery))) = timeout(bound(LATE), self.inbound.next()).await else { return };
            if let Delivery::Frame { topic, frame, position } = delivery
                && !frame.starts_with(FENCE)
            {
                arrivals.push(Arrival { topic, frame, position });
            }
        }
    }

    /// Reads until the link ends with an error, and that must be within `time`.
    pub(super) async fn ends_with_an_error(&mut self, time: Duration) -> Result<(), Broken> {
        let end = async {
            loop {
                match self.inbound.next().await {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => break Ok(error),
                    None => break Err(Broken("inbound ended without an error".to_owned())),
                }
            }
        };
        let time = bound(time);
        let Ok(ended) = timeout(time, end).await else {
            return Err(Broken(format!("went quiet: no error within {time:?}")));
        };
        let error = ended?;
        ensure!(is_gone(error.kind()), "a broken link ended as {:?}, which nobody can act on", error.kind());
        match timeout(bound(WAIT), self.inbound.next()).await {
            Ok(None) => Ok(()),
            Ok(Some(more)) => Err(Broken(format!("{more:?} followed the error"))),
            Err(_) => Err(Broken("inbound went quiet after the error instead of ending".to_owned())),
        }
    }
}

/// Whether that is how an operation on a broken link may fail.
pub(super) fn is_gone(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Closed)
}

/// A fence without the number of its attempt.
fn fence_name(frame: &[u8]) -> &[u8] {
    &frame[..frame.len().min(FENCE.len() + 8)]
}

/// Awaits with a deadline that counts as a broken promise.
pub(super) async fn within<T>(
    time: Duration,
    what: &str,
    future: impl Future<Output = T>,
) -> Result<T, Broken> {
    let time = bound(time);
    timeout(time, future).await.map_err(|_| Broken(format!("{what} did not return within {time:?}")))
}
