//! The one task of a link, and its sending half.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backplane_core::{Error, ErrorKind, LinkSender, Outgoing, Result, Topic};
use futures::future::{BoxFuture, FutureExt as _};
use tokio::time::{Instant, sleep};

use super::bindings::Bindings;
use super::connection::Line;
use super::publisher::{Publisher, refuse};
use super::routing::carries;
use super::shared::{Outcomes, Shared, Verb};
use super::watch::Watch;

/// How long a link that nobody wants any more tries to say goodbye before it is cut.
const FAREWELL: Duration = Duration::from_millis(500);

/// Everything that a link consists of at our side. Dropping it cuts both connections and leaves nobody waiting.
pub(super) struct LinkTask {
    pub(super) publisher: Publisher,
    pub(super) bindings: Bindings,
    pub(super) watch: Watch,
    pub(super) publishing: Arc<Line>,
    pub(super) consuming: Arc<Line>,
    pub(super) shared: Arc<Shared>,
    pub(super) ended: bool,
}

impl LinkTask {
    /// Serves the link until it ends.
    pub(super) async fn run(mut self) {
        let how = {
            let (publisher, bindings, watch) = (self.publisher.run(), self.bindings.run(), self.watch.run());
            let (mut publisher, mut bindings, mut watch) = (pin!(publisher), pin!(bindings), pin!(watch));
            tokio::select! {
                finished = &mut publisher => finished,
                failed = &mut bindings => failed,
                failed = &mut watch => failed.map(|_| ()),
            }
        };
        if let Err(error) = &how {
            tracing::debug!(%error, "rabbitmq link ended");
            // What the broker does with the rest is its own matter: the connections are cut below. Who closes it is
            // answered as if it had ended before.
            return self.end(&how, &Ok(()));
        }
        let how = say_goodbye(&self.shared, &self.publishing, &self.consuming).await;
        self.end(&how, &how);
    }

    /// Settles everything that waits. Only the first call counts.
    fn end(&mut self, how: &Result<()>, closed: &Result<()>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let failed = |operation| match how {
            Ok(()) => Error::new(ErrorKind::Closed, operation).with_context("the link was closed"),
            Err(error) => Error::new(ErrorKind::Unavailable, operation).with_source(error.clone()),
        };
        let rest = self.shared.end();
        self.publisher.end(&failed("publish"));
        for batch in rest.batches {
            refuse(&self.shared, batch, &failed("publish"));
        }
        for call in rest.calls {
            self.shared.call_answered(call.topics.len());
            let _ = call.done.send(Err(failed(call.verb.operation())));
        }
        for closer in rest.closers {
            let _ = closer.send(closed.clone());
        }
        // What did not end in time is cut, which is an end as well.
        for closer in rest.late_closers {
            let _ = closer.send(Ok(()));
        }
        self.shared.end_inbound(how.clone());
    }
}

/// Ends both connections in order, as far as the broker lets us.
async fn say_goodbye(shared: &Shared, publishing: &Line, consuming: &Line) -> Result<()> {
    let published = async {
        // While it is blocked lapin writes nothing on it, not even a farewell: it is cut. Nothing at the broker belongs to
        // it; the queues are the other one's.
        if shared.blocked("close").is_none() {
            publishing.close().await;
        }
    };
    // Neither goodbye waits for the other.
    let closed = async { tokio::join!(published, consuming.close()) };
    tokio::select! {
        biased;
        _ = closed => Ok(()),
        () = patience(shared) => Err(Error::new(ErrorKind::Timeout, "close")
            .with_context("the broker did not free the connections in time; they were cut")),
    }
}

/// Lasts as long as a command while somebody waits for the goodbye, who may give up at any time; else not for long.
async fn patience(shared: &Shared) {
    let end = Instant::now() + shared.timeout;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        sleep(if shared.is_awaited() { FAREWELL.min(left) } else { FAREWELL }).await;
        if !shared.is_awaited() || Instant::now() >= end {
            return;
        }
    }
}

impl Drop for LinkTask {
    /// When its runtime ends, or it panicked: nobody is left waiting, and nobody takes it for an orderly end.
    fn drop(&mut self) {
        let stopped =
            Error::new(ErrorKind::Unavailable, "receive").with_context("the task of the link was stopped");
        self.end(&Err(stopped), &Ok(()));
    }
}

/// The sending half of a link.
pub(super) struct RabbitSender {
    pub(super) shared: Arc<Shared>,
    pub(super) max_frame: usize,
    pub(super) address: String,
}

impl fmt::Debug for RabbitSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitSender").field("server", &self.address).finish_non_exhaustive()
    }
}

impl RabbitSender {
    /// Why a frame cannot be sent.
    fn refusal(&self, outgoing: &Outgoing) -> Option<Error> {
        let length = outgoing.frame.len();
        if length > self.max_frame {
            let context = format!("a frame of {length} bytes; max_frame is {}", self.max_frame);
            return Some(Error::new(ErrorKind::TooLarge, "publish").with_context(context));
        }
        carries("publish", &outgoing.topic).err()
    }

    async fn call(&self, verb: Verb, topics: &[Topic]) -> Result<()> {
        topics.iter().try_for_each(|topic| carries(verb.operation(), topic))?;
        let confirmed = self.shared.call(verb, topics.to_vec())?;
        match tokio::time::timeout(self.shared.timeout, confirmed).await {
            Ok(confirmed) => confirmed.unwrap_or_else(|_| Err(ended(verb.operation()))),
            Err(_) => Err(Error::new(ErrorKind::Timeout, verb.operation())
                .with_context("the broker did not confirm in time")
                .with_outcome_unknown()),
        }
    }
}

/// The task settles everything when it ends; this answers should it ever not.
fn ended(operation: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, operation).with_context("the link ended").with_outcome_unknown()
}

#[async_trait]
impl LinkSender for RabbitSender {
    fn publish(&self, mut batch: Vec<Outgoing>) -> BoxFuture<'static, Outcomes> {
        // Refused frames keep their place among the outcomes; the others go.
        let mut refused = Vec::new();
        if batch.iter().any(|outgoing| self.refusal(outgoing).is_some()) {
            let mut place = 0;
            batch.retain(|outgoing| {
                let refusal = self.refusal(outgoing);
                let fits = refusal.is_none();
                refused.extend(refusal.map(|error| (place, error)));
                place += 1;
                fits
            });
        }
        let frames = batch.len();
        let accepted = if frames == 0 { None } else { Some(self.shared.publish(batch)) };
        async move {
            let mut outcomes = match accepted {
                None => Vec::new(),
                Some(Ok(outcomes)) => outcomes.await.unwrap_or_else(|_| vec![Err(ended("publish")); frames]),
                Some(Err(error)) => vec![Err(error); frames],
            };
            for (place, error) in refused {
                outcomes.insert(place, Err(error));
            }
            outcomes
        }
        .boxed()
    }

    async fn subscribe(&self, topics: &[Topic]) -> Result<()> {
        self.call(Verb::Subscribe, topics).await
    }

    async fn unsubscribe(&self, topics: &[Topic]) -> Result<()> {
        self.call(Verb::Unsubscribe, topics).await
    }

    async fn close(&self) -> Result<()> {
        match self.shared.close() {
            // Gone without a word: it has ended, and the connections with it.
            Some(closed) => closed.await.unwrap_or(Ok(())),
            None => Ok(()),
        }
    }

    fn impediment(&self) -> Option<Error> {
        self.shared.blocked("publish")
    }
}
