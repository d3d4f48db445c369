//! The one timer of a link.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

#[derive(Debug)]
pub(crate) struct Alarm {
    sleep: Pin<Box<Sleep>>,
    /// It rings at least this often, so that new work which nobody set it for is noticed before it is overdue.
    period: Duration,
}

impl Alarm {
    /// Rings at once. `timeout`: how long work may wait.
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(Duration::ZERO)), period: timeout / 4 }
    }

    /// Ready while it rings, which only [`Alarm::set`] ends.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.sleep.as_mut().poll(cx)
    }

    /// To the first of these that may be due.
    pub(crate) fn set(&mut self, due: impl IntoIterator<Item = Option<Instant>>) {
        let now = Instant::now();
        // Never in the past: each turn of the timer is a turn of the clock, too.
        let soonest = now + Duration::from_millis(1);
        let first = due.into_iter().flatten().fold(now + self.period, Instant::min);
        self.sleep.as_mut().reset(first.max(soonest));
    }
}
