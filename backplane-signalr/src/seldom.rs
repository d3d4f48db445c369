//! What clients can cause at will is logged now and then, with the number of times that were passed over.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// At most one message in this time.
const BETWEEN: Duration = Duration::from_secs(10);

/// Says when it is time for one more message of a kind.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<Last>);

#[derive(Debug, Default)]
struct Last {
    time: Option<Instant>,
    suppressed: u64,
}

impl Seldom {
    /// `Some`: say it now; so many were passed over since the last one.
    pub(crate) fn due(&self) -> Option<u64> {
        let mut last = self.0.lock();
        let now = Instant::now();
        if last.time.is_some_and(|time| now < time + BETWEEN) {
            last.suppressed += 1;
            return None;
        }
        last.time = Some(now);
        Some(std::mem::take(&mut last.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_message_in_ten_seconds_counts_the_others() {
        let seldom = Seldom::default();
        assert_eq!(seldom.due(), Some(0));
        assert_eq!((seldom.due(), seldom.due()), (None, None));
        tokio::time::advance(BETWEEN - Duration::from_millis(1)).await;
        assert_eq!(seldom.due(), None);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(seldom.due(), Some(3));
        assert_eq!(seldom.due(), None);
    }
}
