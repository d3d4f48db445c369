//! Flaws of the beginning and the end of a link.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use backplane_core::{
    Attach, Bus, Capabilities, Delivery, Error, ErrorKind, Link, LinkSender, NodeId, Outgoing, Result, Topic,
};
use futures::{FutureExt as _, Stream, StreamExt as _};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::flaw::{Flaw, Inbound, Publishing, each_frame};

/// Tries again and again: so many times its deadline long.
#[derive(Debug)]
pub(super) struct Retries(pub(super) f32);

#[async_trait]
impl Flaw for Retries {
    async fn connect(&self, whole: &Arc<dyn Bus>, attach: Attach<'_>) -> Result<Link> {
        let give_up = Instant::now() + attach.deadline.mul_f32(self.0);
        loop {
            match whole.connect(attach).await {
                Err(_) if Instant::now() < give_up => sleep(Duration::from_millis(50)).await,
                ended => return ended,
            }
        }
    }
}

/// Does not care how long it may take.
#[derive(Debug)]
pub(super) struct IgnoresDeadline;

#[async_trait]
impl Flaw for IgnoresDeadline {
    async fn connect(&self, whole: &Arc<dyn Bus>, attach: Attach<'_>) -> Result<Link> {
        whole.connect(Attach { deadline: Duration::from_secs(3_600), ..attach }).await
    }
}

/// Does not care how soon death is to be noticed.
#[derive(Debug)]
pub(super) struct IgnoresHeartbeat;

#[async_trait]
impl Flaw for IgnoresHeartbeat {
    async fn connect(&self, whole: &Arc<dyn Bus>, attach: Attach<'_>) -> Result<Link> {
        whole.connect(Attach { heartbeat: Duration::from_secs(3_600), ..attach }).await
    }
}

/// Says that trying again cannot help.
#[derive(Debug)]
pub(super) struct GivesUp;

#[async_trait]
impl Flaw for GivesUp {
    async fn connect(&self, whole: &Arc<dyn Bus>, attach: Attach<'_>) -> Result<Link> {
        let gone = |error: Error| Error::new(ErrorKind::InvalidConfig, "connect").with_source(error);
        whole.connect(attach).await.map_err(gone)
    }
}

/// Goes on connecting when nobody waits for it, and keeps what comes of it.
#[derive(Debug)]
pub(super) struct ConnectsForNobody;

#[async_trait]
impl Flaw for ConnectsForNobody {
    async fn connect(&self, whole: &Arc<dyn Bus>, attach: Attach<'_>) -> Result<Link> {
        let Attach { node, attempt, deadline, heartbeat, .. } = attach;
        let (whole, topics, resume) = (whole.clone(), attach.topics.to_vec(), attach.resume.copied());
        let (opened, link) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let resume = resume.as_ref();
            let attach = Attach { node, attempt, topics: &topics, resume, deadline, heartbeat };
            let linked = whole.connect(attach).await;
            if let Err(Ok(link)) = opened.send(linked) {
                leak(link.inbound);
            }
        });
        link.await.map_err(|_| Error::new(ErrorKind::Unavailable, "connect"))?
    }
}

/// Keeps a link that nobody has any more until it ends.
fn leak(inbound: Inbound) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(inbound.for_each(|_| std::future::ready(())));
    }
}

/// Closes for its caller, and not for the broker.
#[derive(Debug, Default)]
pub(super) struct LeaksWhenClosed {
    closed: AtomicBool,
    told: Arc<Notify>,
}

impl LeaksWhenClosed {
    fn check(&self, operation: &'static str) -> Result<()> {
        let closed = self.closed.load(Ordering::Relaxed);
        if closed { Err(Error::new(ErrorKind::Closed, operation)) } else { Ok(()) }
    }
}

#[async_trait]
impl Flaw for LeaksWhenClosed {
    fn inbound(self: Arc<Self>, whole: Inbound) -> Inbound {
        let told = self.told.clone();
        whole.take_until(async move { told.notified().await }).boxed()
    }

    fn publish(&self, whole: &Arc<dyn LinkSender>, batch: Vec<Outgoing>) -> Publishing {
        match self.check("publish") {
            Ok(()) => whole.publish(batch),
            Err(closed) => std::future::ready(vec![Err(closed); batch.len()]).boxed(),
        }
    }

    async fn subscribe(&self, whole: &Arc<dyn LinkSender>, topics: &[Topic]) -> Result<()> {
        self.check("subscribe")?;
        whole.subscribe(topics).await
    }

    async fn close(&self, _: &Arc<dyn LinkSender>) -> Result<()> {
        self.closed.store(true, Ordering::Relaxed);
        self.told.notify_one();
        Ok(())
    }
}

/// Keeps the link when inbound is dropped.
#[derive(Debug)]
pub(super) struct LeaksWhenDropped;

struct Leaking(Option<Inbound>);

impl Stream for Leaking {
    type Item = Result<Delivery>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().map_or(Poll::Ready(None), |whole| whole.poll_next_unpin(context))
    }
}

impl Drop for Leaking {
    fn drop(&mut self) {
        if let Some(whole) = self.0.take() {
            leak(whole);
        }
    }
}

impl Flaw for LeaksWhenDropped {
    fn inbound(self: Arc<Self>, whole: Inbound) -> Inbound {
        Leaking(Some(whole)).boxed()
    }
}

/// Fails when it is closed again.
#[derive(Debug, Default)]
pub(super) struct ClosesOnce(AtomicBool);

#[async_trait]
impl Flaw for ClosesOnce {
    async fn close(&self, whole: &Arc<dyn LinkSender>) -> Result<()> {
        if self.0.swap(true, Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Closed, "close"));
        }
        whole.close().await
    }
}

/// Answers the error that ended the link to whoever closes it.
#[derive(Debug, Default)]
pub(super) struct ClosesWithTheEnd(Mutex<Option<Error>>);

#[async_trait]
impl Flaw for ClosesWithTheEnd {
    fn inbound(self: Arc<Self>, whole: Inbound) -> Inbound {
        whole
            .inspect(move |delivery| {
                if let Err(error) = delivery {
                    *self.0.lock() = Some(error.clone());
                }
            })
            .boxed()
    }

    async fn close(&self, whole: &Arc<dyn LinkSender>) -> Result<()> {
        let end = self.0.lock().take();
        end.map_or(Ok(()), Err)?;
        whole.close().await
    }
}

/// Closes all links of a bus with the first.
#[derive(Default)]
pub(super) struct ClosesTogether(pub(super) Arc<Mutex<Vec<Arc<dyn LinkSender>>>>);

impl fmt::Debug for ClosesTogether {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClosesTogether")
    }
}

#[async_trait]
impl Flaw for ClosesTogether {
    async fn connect(&self, whole: &Arc<dyn Bus>, attach: Attach<'_>) -> Result<Link> {
        let link = whole.connect(attach).await?;
        self.0.lock().push(link.sender.clone());
        Ok(link)
    }

    async fn close(&self, _: &Arc<dyn LinkSender>) -> Result<()> {
        let all = std::mem::take(&mut *self.0.lock());
        for link in all {
            link.close().await?;
        }
        Ok(())
    }
}

/// Starts anew, and says that it has resumed.
#[derive(Debug)]
pub(super) struct ClaimsToResume;

#[async_trait]
impl Flaw for ClaimsToResume {
    async fn connect(&self, whole: &Arc<dyn Bus>, attach: Attach<'_>) -> Result<Link> {
        let mut link = whole.connect(Attach { resume: None, ..attach }).await?;
        link.resumed = attach.resume.is_some();
        Ok(link)
    }
}

/// Says that it has resumed whenever a node comes back, although it promises nothing of the kind.
#[derive(Debug)]
pub(super) struct ClaimsUnpromised;

#[async_trait]
impl Flaw for ClaimsUnpromised {
    fn capabilities(&self, whole: Capabilities) -> Capabilities {
        Capabilities { resume: false, ..whole }
    }

    async fn connect(&self, whole: &Arc<dyn Bus>, attach: Attach<'_>) -> Result<Link> {
        let mut link = whole.connect(Attach { resume: None, ..attach }).await?;
        link.resumed = attach.attempt > 1;
        Ok(link)
    }
}

/// Promises to resume, and never does.
#[derive(Debug)]
pub(super) struct NeverResumes;

#[async_trait]
impl Flaw for NeverResumes {
    async fn connect(&self, whole: &Arc<dyn Bus>, attach: Attach<'_>) -> Result<Link> {
        whole.connect(Attach { resume: None, ..attach }).await
    }
}

/// Resumes one frame behind the position it was given.
#[derive(Debug, Default)]
pub(super) struct ResumesTooFar(AtomicBool);

#[async_trait]
impl Flaw for ResumesTooFar {
    async fn connect(&self, whole: &Arc<dyn Bus>, attach: Attach<'_>) -> Result<Link> {
        let link = whole.connect(attach).await?;
        self.0.store(link.resumed, Ordering::Relaxed);
        Ok(link)
    }

    fn inbound(self: Arc<Self>, whole: Inbound) -> Inbound {
        let resumed = self.0.load(Ordering::Relaxed);
        each_frame(whole, move |count, delivery| if resumed && count == 1 { vec![] } else { vec![delivery] })
    }
}

/// Frees the link that a node had before when it opens another: one link per node, whatever its attempt.
#[derive(Default)]
pub(super) struct OneLinkPerNode(pub(super) Arc<Mutex<Option<LastLink>>>);

type LastLink = (NodeId, Arc<dyn LinkSender>);

impl fmt::Debug for OneLinkPerNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OneLinkPerNode")
    }
}

#[async_trait]
impl Flaw for OneLinkPerNode {
    async fn connect(&self, whole: &Arc<dyn Bus>, attach: Attach<'_>) -> Result<Link> {
        let link = whole.connect(attach).await?;
        let before = self.0.lock().replace((attach.node, link.sender.clone()));
        if let Some((_, before)) = before.filter(|(node, _)| *node == attach.node) {
            before.close().await?;
        }
        Ok(link)
    }
}
