//! The one task of a link: drives both connections, keeps their clocks, and settles everything when it ends.
//!
//! One task, because a wake-up across threads costs more than the work of a small batch; and a task at all (instead of
//! reading where `inbound` is polled), because confirmations, replies and heartbeats must not depend on who polls what:
//! a caller may await `subscribe` before it ever polls `inbound`, and a dropped publish must still be written.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use backplane_core::{Error, ErrorKind, Result};
use tokio::time::{Instant, Sleep};

use crate::inbox::Inbox;
use crate::publisher::{Publisher, refuse};
use crate::shared::{Intake, Phase, Shared};
use crate::subscriber::Subscriber;

pub(crate) struct LinkTask {
    publisher: Publisher,
    subscriber: Subscriber,
    shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    timer: Pin<Box<Sleep>>,
    /// A turn of the timer that comes later than this beyond its time means that we were not running.
    grace: Duration,
    closing: Option<Closing>,
    ended: bool,
}

struct Closing {
    deadline: Instant,
    publisher_done: bool,
    subscriber_done: bool,
}

impl LinkTask {
    pub(crate) fn new(
        publisher: Publisher,
        subscriber: Subscriber,
        shared: Arc<Shared>,
        inbox: Arc<Inbox>,
        heartbeat: Duration,
    ) -> Self {
        let mut task = Self {
            publisher,
            subscriber,
            shared,
            inbox,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            grace: heartbeat / 10,
            closing: None,
            ended: false,
        };
        task.arm(Instant::now());
        task
    }

    /// `connect` is about to return: frames count from now on.
    pub(crate) fn deliver(&mut self) {
        self.subscriber.deliver();
    }

    /// One turn. Ready when the link has ended, with an error if it died.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        loop {
            let Intake { batches, calls, phase } = self.shared.intake(cx);
            if phase == Phase::Abandoned {
                return Poll::Ready(Ok(()));
            }
            if !batches.is_empty() {
                self.publisher.accept(batches);
            }
            for call in calls {
                self.subscriber.accept(call);
            }
            if phase == Phase::Closing && self.closing.is_none() {
                self.inbox.end(Ok(()));
                self.subscriber.discard();
                let deadline = Instant::now() + self.shared.timeout;
                self.closing = Some(Closing { deadline, publisher_done: false, subscriber_done: false });
            }
            if self.closing.is_some() && self.publisher.is_idle() {
                return self.shut_down(cx);
            }
            let again = self.publisher.drive(cx)? | self.subscriber.drive(cx)?;
            if !self.keep_time(cx)? {
                if again {
                    cx.waker().wake_by_ref();
                } else if self.closing.is_some() && self.publisher.is_idle() {
                    continue;
                }
                return Poll::Pending;
            }
            // The timer had something to do: it may have to be written, and must be armed.
        }
    }

    /// Whether the timer fired.
    fn keep_time(&mut self, cx: &mut Context<'_>) -> Result<bool> {
        if self.timer.as_mut().poll(cx).is_pending() {
            return Ok(false);
        }
        let now = Instant::now();
        if now > self.timer.deadline() + self.grace {
            self.publisher.heartbeat.excuse(now);
            self.subscriber.heartbeat.excuse(now);
        }
        self.publisher.beat(now)?;
        self.subscriber.beat(now)?;
        self.publisher.expire(now);
        self.subscriber.commands.expire(now, &self.shared);
        if let Some(closing) = &self.closing
            && now >= closing.deadline
        {
            return Err(Error::new(ErrorKind::Timeout, "close")
                .with_context("the server did not answer in time; the connections were cut"));
        }
        self.arm(now);
        Ok(true)
    }

    /// Sets the timer to the next thing that could be due. New commands are noticed at its next turn: at the latest
    /// after a quarter of their time.
    fn arm(&mut self, now: Instant) {
        let next = [
            Some(now + self.shared.timeout / 4),
            Some(self.publisher.heartbeat.next()),
            Some(self.subscriber.heartbeat.next()),
            self.publisher.deadline(),
            self.subscriber.commands.deadline(),
            self.closing.as_ref().map(|closing| closing.deadline),
        ];
        // Never in the past: each turn of the timer is a turn of the clock, too.
        let soonest = now + Duration::from_millis(1);
        let next = next.into_iter().flatten().min().map_or(soonest, |next| next.max(soonest));
        self.timer.as_mut().reset(next);
    }

    /// The orderly end, once every publish has its outcome.
    fn shut_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let Some(closing) = &mut self.closing else { return Poll::Ready(Ok(())) };
        closing.publisher_done = closing.publisher_done || self.publisher.poll_shutdown(cx).is_ready();
        closing.subscriber_done = closing.subscriber_done || self.subscriber.poll_shutdown(cx).is_ready();
        if closing.publisher_done && closing.subscriber_done {
            return Poll::Ready(Ok(()));
        }
        self.timer.as_mut().reset(closing.deadline);
        ready!(self.timer.as_mut().poll(cx));
        Poll::Ready(Err(Error::new(ErrorKind::Timeout, "close")
            .with_context("the server did not free the connections in time; they were cut")))
    }

    /// Settles everything that waits. Only the first call counts.
    fn end(&mut self, how: Result<()>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        if let Err(error) = &how {
            tracing::debug!(%error, "redis link ended");
        }
        let failed = |operation| match &how {
            Ok(()) => Error::new(ErrorKind::Closed, operation).with_context("the link was closed"),
            Err(error) => Error::new(ErrorKind::Unavailable, operation).with_source(error.clone()),
        };
        let (rest, closers) = self.shared.end();
        self.publisher.end(&failed("publish"));
        self.subscriber.commands.end(failed, &self.shared);
        for batch in rest.batches {
            refuse(&self.shared, batch, &failed("publish"));
        }
        for call in rest.calls {
            self.shared.load.call_answered(call.topics.len());
            let _ = call.done.send(Err(failed(call.verb.operation())));
        }
        // A link that broke has ended, which is what was asked; only a goodbye that failed is news.
        let closed =
            how.clone().or_else(|error| if error.operation() == "close" { Err(error) } else { Ok(()) });
        for closer in closers {
            let _ = closer.send(closed.clone());
        }
        self.inbox.end(how);
    }
}

impl Future for LinkTask {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(());
        }
        let how = ready!(this.turn(cx));
        this.end(how);
        Poll::Ready(())
    }
}

impl Drop for LinkTask {
    /// Also when its runtime ends, or `connect` is given up: nobody is left waiting.
    fn drop(&mut self) {
        self.end(Ok(()));
    }
}
