//! What the server's wish to be left alone costs: a pause, as long as it says, in which nothing is sent to it.

use std::time::Duration;

use backplane_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use tokio::time::Instant;

/// The pause when the server does not say how long: what Microsoft's own clients make of `server-busy`.
const UNTOLD: Duration = Duration::from_secs(10);
/// What is believed of what the server says.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// See the module. One for all links of a bus: the server counts all of them.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    /// When the last pause ends, or ended.
    until: Mutex<Option<Instant>>,
}

impl Throttle {
    /// Whether something may be sent now.
    pub(super) fn check(&self, operation: &'static str) -> Result<()> {
        let left = self.until.lock().map_or(Duration::ZERO, |until| until - Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Overloaded, operation)
            .with_context(format!("the server said that it is busy; nothing is sent for {left:.1?} more")))
    }

    /// How long ago the last pause ended; zero within one.
    pub(super) fn calm_for(&self) -> Duration {
        self.until.lock().map_or(Duration::MAX, |until| Instant::now() - until)
    }

    /// The server said that it is busy.
    pub(super) fn busy(&self, refusal: &Error) {
        let pause = told(&refusal.to_string()).unwrap_or(UNTOLD).clamp(SHORTEST, LONGEST);
        let mut until = self.until.lock();
        let now = Instant::now();
        // What was on its way when the pause began is refused too, and says nothing new.
        if until.is_none_or(|until| until <= now) {
            *until = Some(now + pause);
            drop(until);
            tracing::warn!(?pause, error = %refusal, "the server is busy: pausing");
        }
    }
}

/// How long the server wants to be left alone: `Please wait 10 seconds and try again.`
fn told(text: &str) -> Option<Duration> {
    text.split("wait ").skip(1).find_map(|rest| {
        let (number, unit) = rest.split_once(' ')?;
        if !unit.starts_with("second") {
            return None;
        }
        number.parse().ok().map(Duration::from_secs)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &'static str) -> Error {
        Error::new(ErrorKind::Overloaded, "publish").with_context(text)
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_as_long_as_the_server_says_and_ends() {
        for (text, seconds) in [
            (
                "The request was terminated because the entity is being throttled. Error code: 50009. \
                 Please wait 2 seconds and try again.",
                2,
            ),
            (
                "the namespace is being throttled. Error code: 50001. Please wait 10 seconds and try again.",
                10,
            ),
            ("too many subscriptions", 10),
            ("wait and see; please wait 3 seconds", 3),
            ("please wait 0 seconds", 1),
            ("please wait 86400 seconds", 60),
            ("please wait 99999999999999999999999 seconds", 10),
        ] {
            let throttle = Throttle::default();
            throttle.check("publish").unwrap();
            assert_eq!(throttle.calm_for(), Duration::MAX);
            throttle.busy(&refusal(text));
            tokio::time::advance(Duration::from_secs(seconds) - Duration::from_millis(1)).await;
            // Late refusals prolong nothing.
            throttle.busy(&refusal(text));
            assert_eq!(throttle.check("publish").unwrap_err().kind(), ErrorKind::Overloaded, "{text}");
            assert_eq!(throttle.calm_for(), Duration::ZERO, "{text}");
            tokio::time::advance(Duration::from_millis(11)).await;
            throttle.check("publish").unwrap();
            assert_eq!(throttle.calm_for(), Duration::from_millis(10), "{text}");
        }
    }
}
