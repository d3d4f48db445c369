//! Flaws of what is published.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use backplane_core::{
    Attach, Bus, Delivery, Error, ErrorKind, Link, LinkSender, Outgoing, Reach, Result, Topic,
};
use bytes::Bytes;
use futures::task::AtomicWaker;
use futures::{FutureExt as _, Stream, StreamExt as _};
use parking_lot::Mutex;
use tokio::time::sleep;

use super::flaw::{Flaw, Inbound, Publishing};

/// Swaps neighbours within a batch.
#[derive(Debug)]
pub(super) struct SwapsNeighbours;

fn swap<T>(items: &mut [T]) {
    for pair in items.chunks_exact_mut(2) {
        pair.swap(0, 1);
    }
}

impl Flaw for SwapsNeighbours {
    fn publish(&self, whole: &Arc<dyn LinkSender>, mut batch: Vec<Outgoing>) -> Publishing {
        swap(&mut batch);
        whole
            .publish(batch)
            .map(|mut results| {
                swap(&mut results);
                results
            })
            .boxed()
    }
}

/// Sends every other call from a task of its own, so that the next one overtakes it.
#[derive(Debug, Default)]
pub(super) struct CallsOvertake(AtomicUsize);

impl Flaw for CallsOvertake {
    fn publish(&self, whole: &Arc<dyn LinkSender>, batch: Vec<Outgoing>) -> Publishing {
        if self.0.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            return whole.publish(batch);
        }
        let whole = whole.clone();
        let frames = batch.len();
        let late = tokio::spawn(async move {
            sleep(Duration::from_millis(2)).await;
            whole.publish(batch).await
        });
        late.map(move |results| {
            results.unwrap_or_else(|_| vec![Err(Error::new(ErrorKind::Unavailable, "publish")); frames])
        })
        .boxed()
    }
}

/// Does nothing before it is polled.
#[derive(Debug)]
pub(super) struct SendsWhenPolled;

impl Flaw for SendsWhenPolled {
    fn publish(&self, whole: &Arc<dyn LinkSender>, batch: Vec<Outgoing>) -> Publishing {
        let whole = whole.clone();
        async move { whole.publish(batch).await }.boxed()
    }
}

/// Accepts one frame in twenty without sending it.
#[derive(Debug, Default)]
pub(super) struct AcceptsUnsent(AtomicUsize);

impl Flaw for AcceptsUnsent {
    fn publish(&self, whole: &Arc<dyn LinkSender>, mut batch: Vec<Outgoing>) -> Publishing {
        let first = self.0.fetch_add(batch.len(), Ordering::Relaxed);
        let unsent = |index: &usize| (first + index + 1).is_multiple_of(20);
        let gone: Vec<usize> = (0..batch.len()).filter(unsent).collect();
        for index in gone.iter().rev() {
            batch.remove(*index);
        }
        whole
            .publish(batch)
            .map(|mut results| {
                for index in gone {
                    results.insert(index, Ok(Reach::Nodes(1)));
                }
                results
            })
            .boxed()
    }
}

/// Says Ok at once and sends a little later; what is unsent when the link closes is forgotten.
#[derive(Debug, Default)]
pub(super) struct AcceptsBeforeSending {
    unsent: Arc<Mutex<VecDeque<Vec<Outgoing>>>>,
    closed: AtomicBool,
}

#[async_trait]
impl Flaw for AcceptsBeforeSending {
    fn publish(&self, whole: &Arc<dyn LinkSender>, batch: Vec<Outgoing>) -> Publishing {
        if self.closed.load(Ordering::Relaxed) {
            return whole.publish(batch);
        }
        let results = batch.iter().map(|_| Ok(Reach::Unknown)).collect();
        self.unsent.lock().push_back(batch);
        let (unsent, whole) = (self.unsent.clone(), whole.clone());
        tokio::spawn(async move {
            sleep(Duration::from_millis(2)).await;
            let Some(next) = unsent.lock().pop_front() else { return };
            // Nobody waits for the outcome: that is the fault.
            drop(whole.publish(next).await);
        });
        std::future::ready(results).boxed()
    }

    async fn close(&self, whole: &Arc<dyn LinkSender>) -> Result<()> {
        self.closed.store(true, Ordering::Relaxed);
        self.unsent.lock().clear();
        whole.close().await
    }
}

/// Accepts frames that are too large, and drops them.
#[derive(Debug)]
pub(super) struct DropsOversize;

impl Flaw for DropsOversize {
    fn publish(&self, whole: &Arc<dyn LinkSender>, batch: Vec<Outgoing>) -> Publishing {
        let whole = whole.publish(batch);
        whole
            .map(|mut results| {
                for result in &mut results {
                    if matches!(result, Err(error) if error.kind() == ErrorKind::TooLarge) {
                        *result = Ok(Reach::Unknown);
                    }
                }
                results
            })
            .boxed()
    }
}

/// States a limit and takes frames beyond it.
#[derive(Debug)]
pub(super) struct SendsOversize;

#[async_trait]
impl Flaw for SendsOversize {
    async fn connect(&self, whole: &Arc<dyn Bus>, attach: Attach<'_>) -> Result<Link> {
        let mut link = whole.connect(attach).await?;
        link.limits.max_frame -= 1;
        Ok(link)
    }
}

/// States a limit and carries less.
#[derive(Debug)]
pub(super) struct CarriesLessThanItSays;

#[async_trait]
impl Flaw for CarriesLessThanItSays {
    async fn connect(&self, whole: &Arc<dyn Bus>, attach: Attach<'_>) -> Result<Link> {
        let mut link = whole.connect(attach).await?;
        link.limits.max_frame += 16;
        Ok(link)
    }
}

/// Refuses a whole batch for one frame.
#[derive(Debug)]
pub(super) struct OversizeTakesAll(pub(super) usize);

impl Flaw for OversizeTakesAll {
    fn publish(&self, whole: &Arc<dyn LinkSender>, batch: Vec<Outgoing>) -> Publishing {
        if batch.iter().all(|out| out.frame.len() <= self.0) {
            return whole.publish(batch);
        }
        let refused = batch.iter().map(|_| Err(Error::new(ErrorKind::TooLarge, "publish"))).collect();
        std::future::ready(refused).boxed()
    }
}

/// Answers a batch with one result.
#[derive(Debug)]
pub(super) struct OneResult;

impl Flaw for OneResult {
    fn publish(&self, whole: &Arc<dyn LinkSender>, batch: Vec<Outgoing>) -> Publishing {
        whole
            .publish(batch)
            .map(|mut results| {
                results.truncate(1);
                results
            })
            .boxed()
    }
}

/// Passes every result through a function.
fn answers(
    whole: Publishing,
    answer: impl Fn(Result<Reach>) -> Result<Reach> + Send + 'static,
) -> Publishing {
    whole.map(move |results| results.into_iter().map(answer).collect()).boxed()
}

/// Says that every frame reached one link.
#[derive(Debug)]
pub(super) struct ReachIsOne;

impl Flaw for ReachIsOne {
    fn publish(&self, whole: &Arc<dyn LinkSender>, batch: Vec<Outgoing>) -> Publishing {
        answers(whole.publish(batch), |result| result.map(|_| Reach::Nodes(1)))
    }
}

/// Takes a topic without subscribers for a failure.
#[derive(Debug)]
pub(super) struct NobodyIsAnError;

impl Flaw for NobodyIsAnError {
    fn publish(&self, whole: &Arc<dyn LinkSender>, batch: Vec<Outgoing>) -> Publishing {
        answers(whole.publish(batch), |result| match result {
            Ok(Reach::Nodes(0)) => {
                Err(Error::new(ErrorKind::Unavailable, "publish").with_context("no subscriber"))
            }
            other => other,
        })
    }
}

/// Waits for a dead link to answer.
#[derive(Debug)]
pub(super) struct HangsWhenDead;

impl Flaw for HangsWhenDead {
    fn publish(&self, whole: &Arc<dyn LinkSender>, batch: Vec<Outgoing>) -> Publishing {
        let whole = whole.publish(batch);
        async move {
            let results = whole.await;
            let dead = |error: &Error| matches!(error.kind(), ErrorKind::Closed | ErrorKind::Unavailable);
            if results.iter().any(|result| result.as_ref().is_err_and(dead)) {
                std::future::pending::<()>().await;
            }
            results
        }
        .boxed()
    }
}

/// Accepts frames on a link that has ended.
#[derive(Debug)]
pub(super) struct AcceptsWhenDead;

impl Flaw for AcceptsWhenDead {
    fn publish(&self, whole: &Arc<dyn LinkSender>, batch: Vec<Outgoing>) -> Publishing {
        answers(whole.publish(batch), |result| match result {
            Err(error) if error.kind() == ErrorKind::Closed => Ok(Reach::Unknown),
            other => other,
        })
    }
}

/// Accepts and forgets while the broker does not answer.
#[derive(Debug)]
pub(super) struct ForgetsWhileFrozen;

impl Flaw for ForgetsWhileFrozen {
    fn publish(&self, whole: &Arc<dyn LinkSender>, batch: Vec<Outgoing>) -> Publishing {
        let moves = whole.unsubscribe(&[]).now_or_never().is_some();
        if moves {
            return whole.publish(batch);
        }
        std::future::ready(batch.iter().map(|_| Ok(Reach::Unknown)).collect()).boxed()
    }
}

/// Delivers what the link itself publishes without waiting for the broker, ahead of what others published before.
#[derive(Default)]
pub(super) struct EchoOvertakes(Arc<Echo>);

#[derive(Default)]
struct Echo {
    state: Mutex<EchoState>,
    waker: AtomicWaker,
}

#[derive(Default)]
struct EchoState {
    subscribed: Vec<Topic>,
    ready: VecDeque<Delivery>,
    /// Own frames that the broker will deliver too.
    expected: HashMap<(Topic, Bytes), usize>,
}

impl fmt::Debug for EchoOvertakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EchoOvertakes")
    }
}

#[async_trait]
impl Flaw for EchoOvertakes {
    async fn connect(&self, whole: &Arc<dyn Bus>, attach: Attach<'_>) -> Result<Link> {
        self.0.state.lock().subscribed = attach.topics.to_vec();
        whole.connect(attach).await
    }

    fn publish(&self, whole: &Arc<dyn LinkSender>, batch: Vec<Outgoing>) -> Publishing {
        {
            let mut state = self.0.state.lock();
            for Outgoing { topic, frame } in &batch {
                if state.subscribed.contains(topic) {
                    *state.expected.entry((topic.clone(), frame.clone())).or_default() += 1;
                    let (topic, frame) = (topic.clone(), frame.clone());
                    state.ready.push_back(Delivery::Frame { topic, frame, position: None });
                }
            }
        }
        self.0.waker.wake();
        whole.publish(batch)
    }

    fn inbound(self: Arc<Self>, whole: Inbound) -> Inbound {
        Echoing { whole, echo: self.0.clone() }.boxed()
    }
}

struct Echoing {
    whole: Inbound,
    echo: Arc<Echo>,
}

impl Stream for Echoing {
    type Item = Result<Delivery>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.echo.waker.register(context.waker());
        if let Some(own) = self.echo.state.lock().ready.pop_front() {
            return Poll::Ready(Some(Ok(own)));
        }
        loop {
            let polled = self.whole.poll_next_unpin(context);
            if let Poll::Ready(Some(Ok(Delivery::Frame { topic, frame, .. }))) = &polled {
                let mut state = self.echo.state.lock();
                if let Some(count) = state.expected.get_mut(&(topic.clone(), frame.clone()))
                    && *count > 0
                {
                    *count -= 1;
                    continue;
                }
            }
            return polled;
        }
    }
}
