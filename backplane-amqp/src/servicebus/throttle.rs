//! What the server's wish to be left alone costs: a growing pause in which nothing is sent to it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backplane_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use tokio::time::Instant;

/// The first pause; each further refusal after a pause doubles it.
const FIRST: Duration = Duration::from_millis(250);
/// The longest. It stays below the heartbeat bound, so that the router's beats come through in time.
const LONGEST: Duration = Duration::from_secs(4);

/// See the module. One for all links of a bus: the server counts all of them.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    /// Whether `state` has anything to say.
    busy: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pause: Duration,
    until: Option<Instant>,
}

impl Throttle {
    /// Whether something may be sent now.
    pub(super) fn check(&self, operation: &'static str) -> Result<()> {
        if !self.busy.load(Ordering::Relaxed) {
            return Ok(());
        }
        let left = self.state.lock().until.map_or(Duration::ZERO, |until| until - Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Overloaded, operation)
            .with_context(format!("the server said that it is busy; nothing is sent for {left:?} more")))
    }

    /// The server said that it is busy.
    pub(super) fn busy(&self) {
        let mut state = self.state.lock();
        let now = Instant::now();
        // What was on its way when the pause began is refused too, and says nothing new.
        if state.until.is_none_or(|until| until <= now) {
            state.pause = (state.pause * 2).clamp(FIRST, LONGEST);
            state.until = Some(now + state.pause);
            self.busy.store(true, Ordering::Relaxed);
            tracing::warn!(pause = ?state.pause, "the server is busy: pausing");
        }
    }

    /// The server took something.
    pub(super) fn calm(&self) {
        if self.busy.load(Ordering::Relaxed) {
            let mut state = self.state.lock();
            if state.until.is_none_or(|until| until <= Instant::now()) {
                *state = State::default();
                self.busy.store(false, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_while_the_server_is_busy_and_end_when_it_is_not() {
        let throttle = Throttle::default();
        throttle.check("publish").unwrap();
        let mut pauses = Vec::new();
        for _ in 0..7 {
            throttle.busy();
            throttle.busy();
            let start = Instant::now();
            while let Err(error) = throttle.check("publish") {
                assert_eq!(error.kind(), ErrorKind::Overloaded);
                tokio::time::advance(Duration::from_millis(50)).await;
            }
            pauses.push(start.elapsed().as_millis());
        }
        assert_eq!(pauses, [250, 500, 1_000, 2_000, 4_000, 4_000, 4_000]);
        throttle.calm();
        throttle.busy();
        tokio::time::advance(FIRST).await;
        throttle.check("publish").unwrap();
    }
}
