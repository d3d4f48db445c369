//! The links of a tapped bus: every call is seen and, where a switch says so, disturbed.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use backplane_core::{
    Attach, Bus, Capabilities, Delivery, Error, ErrorKind, Link, LinkSender, Outgoing, Reach, Result, Topic,
};
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::watch;

use super::{Switches, Tap};

#[async_trait]
impl Bus for Tap {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn connect(&self, attach: Attach<'_>) -> Result<Link> {
        if self.switches.borrow().refuse_links {
            return Err(Error::new(ErrorKind::Unavailable, "connect").with_context("refused by the contract"));
        }
        let mut link = self.inner.connect(attach).await?;
        let (cuts, max_frame) = {
            let switches = self.switches.borrow();
            (switches.cuts, switches.max_frame)
        };
        link.limits.max_frame = max_frame.unwrap_or(usize::MAX).min(link.limits.max_frame);
        self.seen.send_modify(|seen| {
            seen.links += 1;
            seen.attempt = attach.attempt;
            seen.limits = Some(link.limits);
            seen.subscribed = attach.topics.iter().cloned().collect();
        });
        let open = OpenLink { tap: self.clone(), attempt: attach.attempt, cuts };
        let sender = TapSender {
            inner: link.sender,
            tap: self.clone(),
            attempt: attach.attempt,
            cuts,
            max_frame: link.limits.max_frame,
        };
        let inbound = Inbound { inner: link.inbound, open, again: None };
        Ok(Link { sender: Arc::new(sender), inbound: inbound.stream(), ..link })
    }
}

/// Counts the link as open while it lives.
struct OpenLink {
    tap: Tap,
    attempt: u64,
    cuts: u64,
}

impl Drop for OpenLink {
    fn drop(&mut self) {
        self.tap.seen.send_modify(|seen| {
            seen.links -= 1;
            if seen.attempt == self.attempt {
                seen.subscribed.clear();
            }
        });
    }
}

struct Inbound {
    inner: BoxStream<'static, Result<Delivery>>,
    open: OpenLink,
    again: Option<Delivery>,
}

impl Inbound {
    fn stream(self) -> BoxStream<'static, Result<Delivery>> {
        stream::unfold(Some(self), |inbound| async move {
            let mut inbound = inbound?;
            let next = inbound.next().await?;
            let rest = if next.is_ok() { Some(inbound) } else { None };
            Some((next, rest))
        })
        .boxed()
    }

    async fn next(&mut self) -> Option<Result<Delivery>> {
        if let Some(again) = self.again.take() {
            return Some(Ok(again));
        }
        let OpenLink { tap, cuts, .. } = &self.open;
        loop {
            let delivery = tokio::select! {
                biased;
                () = tap.switched(|switches| switches.cuts != *cuts) => {
                    return Some(Err(Error::new(ErrorKind::Unavailable, "receive").with_context("cut by the contract")));
                }
                delivery = self.inner.next() => delivery,
            };
            let Some(Ok(Delivery::Frame { topic, frame, position })) = delivery else {
                return delivery;
            };
            if tap.switches.borrow().mute || taken(&tap.switches, |switches| &mut switches.lose, &topic) {
                continue;
            }
            tap.seen.send_modify(|seen| *seen.received.entry(topic.clone()).or_default() += 1);
            if taken(&tap.switches, |switches| &mut switches.repeat, &topic) {
                self.again = Some(Delivery::Frame { topic: topic.clone(), frame: frame.clone(), position });
            }
            return Some(Ok(Delivery::Frame { topic, frame, position }));
        }
    }
}

/// Takes a one-shot switch if it names `topic`.
fn taken(
    switches: &watch::Sender<Switches>,
    field: impl Fn(&mut Switches) -> &mut Option<Topic>,
    topic: &Topic,
) -> bool {
    switches.send_if_modified(|switches| {
        let field = field(switches);
        let named = field.as_ref() == Some(topic);
        if named {
            *field = None;
        }
        named
    })
}

#[derive(Debug)]
struct TapSender {
    inner: Arc<dyn LinkSender>,
    tap: Tap,
    attempt: u64,
    cuts: u64,
    max_frame: usize,
}

impl TapSender {
    fn is_cut(&self) -> bool {
        self.tap.switches.borrow().cuts != self.cuts
    }

    /// Notes a change of the live link's topics; an older link has none any more.
    fn note(&self, change: impl FnOnce(&mut BTreeSet<Topic>)) {
        self.tap.seen.send_modify(|seen| {
            if seen.attempt == self.attempt && seen.links > 0 {
                change(&mut seen.subscribed);
            }
        });
    }

    async fn try_subscribe(&self, topics: &[Topic]) -> Result<()> {
        self.tap.switched(|switches| !switches.hold_subscribe || switches.cuts != self.cuts).await;
        self.tap.step_back().await;
        let refused =
            self.tap.switches.borrow().refuse_topic.as_ref().is_some_and(|topic| topics.contains(topic));
        if refused {
            return Err(Error::new(ErrorKind::Denied, "subscribe").with_context("refused by the contract"));
        }
        tokio::select! {
            biased;
            () = self.tap.switched(|switches| switches.cuts != self.cuts) => {
                Err(Error::new(ErrorKind::Unavailable, "subscribe").with_context("cut by the contract"))
            }
            subscribed = self.inner.subscribe(topics) => subscribed,
        }
    }
}

#[async_trait]
impl LinkSender for TapSender {
    fn publish(&self, batch: Vec<Outgoing>) -> BoxFuture<'static, Vec<Result<Reach>>> {
        let frames = batch.len();
        if self.is_cut() {
            return Box::pin(async move { vec![Err(Error::new(ErrorKind::Closed, "publish")); frames] });
        }
        let refused = self.tap.switches.borrow().refuse_publish.clone();
        let (mut allowed, mut verdicts) = (Vec::with_capacity(frames), Vec::with_capacity(frames));
        for outgoing in batch {
            let kind = if outgoing.frame.len() > self.max_frame {
                Some(ErrorKind::TooLarge)
            } else {
                (refused.as_ref() == Some(&outgoing.topic)).then_some(ErrorKind::Denied)
            };
            verdicts.push(kind);
            if kind.is_none() {
                allowed.push(outgoing);
            }
        }
        self.tap.seen.send_modify(|seen| {
            for Outgoing { topic, frame } in &allowed {
                *seen.published.entry(topic.clone()).or_default() += 1;
                seen.largest = seen.largest.max(frame.len());
            }
        });
        let accepted = self.inner.publish(allowed);
        let (tap, cuts) = (self.tap.clone(), self.cuts);
        Box::pin(async move {
            let mut accepted = accepted.await.into_iter();
            tap.step_back().await;
            tap.switched(|switches| !switches.hold_acceptance || switches.cuts != cuts).await;
            let cut = tap.switches.borrow().cuts != cuts;
            let outcome = |verdict| match verdict {
                Some(kind) => Err(Error::new(kind, "publish").with_context("refused by the contract")),
                None if cut => Err(Error::new(ErrorKind::Unavailable, "publish").with_outcome_unknown()),
                None => accepted.next().expect("a bus answers each frame of a batch"),
            };
            verdicts.into_iter().map(outcome).collect()
        })
    }

    async fn subscribe(&self, topics: &[Topic]) -> Result<()> {
        let _under_way = UnderWay::new(&self.tap);
        let subscribed = self.try_subscribe(topics).await;
        if subscribed.is_ok() {
            self.note(|all| all.extend(topics.iter().cloned()));
        }
        subscribed
    }

    async fn unsubscribe(&self, topics: &[Topic]) -> Result<()> {
        self.tap.step_back().await;
        self.inner.unsubscribe(topics).await?;
        self.note(|all| all.retain(|topic| !topics.contains(topic)));
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }

    fn impediment(&self) -> Option<Error> {
        self.inner.impediment()
    }
}

/// Counts a call of `subscribe`, also one that is dropped.
struct UnderWay(Tap);

impl UnderWay {
    fn new(tap: &Tap) -> Self {
        tap.seen.send_modify(|seen| {
            seen.subscribe_calls += 1;
            seen.subscribing += 1;
        });
        Self(tap.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.seen.send_modify(|seen| seen.subscribing -= 1);
    }
}
