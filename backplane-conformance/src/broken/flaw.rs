//! How a whole bus is broken: every call passes through a flaw, which does what it was asked unless that is its fault.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use backplane_core::{
    Attach, Bus, Capabilities, Delivery, Error, Link, LinkSender, Outgoing, Reach, Result, Topic,
};
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt as _};

pub(super) type Inbound = BoxStream<'static, Result<Delivery>>;
pub(super) type Publishing = BoxFuture<'static, Vec<Result<Reach>>>;

/// What is wrong with one link. Every method that is not overridden does the right thing.
#[async_trait]
pub(super) trait Flaw: fmt::Debug + Send + Sync + 'static {
    fn capabilities(&self, whole: Capabilities) -> Capabilities {
        whole
    }

    async fn connect(&self, whole: &Arc<dyn Bus>, attach: Attach<'_>) -> Result<Link> {
        whole.connect(attach).await
    }

    fn inbound(self: Arc<Self>, whole: Inbound) -> Inbound {
        whole
    }

    fn publish(&self, whole: &Arc<dyn LinkSender>, batch: Vec<Outgoing>) -> Publishing {
        whole.publish(batch)
    }

    async fn subscribe(&self, whole: &Arc<dyn LinkSender>, topics: &[Topic]) -> Result<()> {
        whole.subscribe(topics).await
    }

    async fn unsubscribe(&self, whole: &Arc<dyn LinkSender>, topics: &[Topic]) -> Result<()> {
        whole.unsubscribe(topics).await
    }

    async fn close(&self, whole: &Arc<dyn LinkSender>) -> Result<()> {
        whole.close().await
    }
}

/// Breaks a bus: each link gets a flaw of its own.
pub(super) fn flawed(
    whole: Arc<dyn Bus>,
    flaw: impl Fn() -> Arc<dyn Flaw> + Send + Sync + 'static,
) -> Arc<dyn Bus> {
    Arc::new(FlawedBus { whole, flaw: Box::new(flaw) })
}

struct FlawedBus {
    whole: Arc<dyn Bus>,
    flaw: Box<dyn Fn() -> Arc<dyn Flaw> + Send + Sync>,
}

impl fmt::Debug for FlawedBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {:?}", (self.flaw)(), self.whole)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Bus for FlawedBus {
    fn capabilities(&self) -> Capabilities {
        (self.flaw)().capabilities(self.whole.capabilities())
    }

    async fn connect(&self, attach: Attach<'_>) -> Result<Link> {
        let flaw = (self.flaw)();
        let link = flaw.connect(&self.whole, attach).await?;
        let inbound = flaw.clone().inbound(link.inbound);
        let sender = Arc::new(FlawedSender { whole: link.sender, flaw });
        Ok(Link { sender, inbound, ..link })
    }
}

#[derive(Debug)]
struct FlawedSender {
    whole: Arc<dyn LinkSender>,
    flaw: Arc<dyn Flaw>,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl LinkSender for FlawedSender {
    fn publish(&self, batch: Vec<Outgoing>) -> Publishing {
        self.flaw.publish(&self.whole, batch)
    }

    async fn subscribe(&self, topics: &[Topic]) -> Result<()> {
        self.flaw.subscribe(&self.whole, topics).await
    }

    async fn unsubscribe(&self, topics: &[Topic]) -> Result<()> {
        self.flaw.unsubscribe(&self.whole, topics).await
    }

    async fn close(&self) -> Result<()> {
        self.flaw.close(&self.whole).await
    }

    fn impediment(&self) -> Option<Error> {
        self.whole.impediment()
    }
}

/// Turns each item of an inbound into none, one or several.
pub(super) fn each(
    whole: Inbound,
    mut act: impl FnMut(Result<Delivery>) -> Vec<Result<Delivery>> + Send + 'static,
) -> Inbound {
    whole.flat_map(move |item| stream::iter(act(item))).boxed()
}

/// The same for frames only; the number counts the frames of the link from 1.
pub(super) fn each_frame(
    whole: Inbound,
    mut act: impl FnMut(usize, Delivery) -> Vec<Delivery> + Send + 'static,
) -> Inbound {
    let mut count = 0;
    each(whole, move |item| match item {
        Ok(frame @ Delivery::Frame { .. }) => {
            count += 1;
            act(count, frame).into_iter().map(Ok).collect()
        }
        other => vec![other],
    })
}
