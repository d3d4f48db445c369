//! The clock of one connection: when to ask whether it lives, and when it is dead.

use std::time::Duration;

use tokio::time::Instant;

/// Counts the silence of a connection. It rests while we ourselves do not read.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    /// Silence beyond this is death: a little below the bound, so that the news is out within it.
    limit: Duration,
    /// One `PING` each third of the bound.
    interval: Duration,
    heard: Instant,
    asked: Instant,
    unanswered: bool,
    /// Whether this silence was excused already: a machine that is always late must not keep the dead alive.
    excused: bool,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beat {
    /// Nothing.
    Wait,
    /// Send a `PING`; it is counted as sent.
    Ask,
    /// The connection is dead.
    Dead,
}

impl Heartbeat {
    pub(crate) fn new(bound: Duration, now: Instant) -> Self {
        Self {
            limit: bound * 19 / 20,
            interval: bound / 3,
            heard: now,
            asked: now,
            unanswered: false,
            excused: false,
        }
    }

    /// Bytes arrived.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.excused = false;
    }

    /// A `PING` was answered.
    pub(crate) fn answered(&mut self) {
        self.unanswered = false;
    }

    /// We were not running when we should have: leave the connection the time that a `PING` takes.
    pub(crate) fn excuse(&mut self, now: Instant) {
        if std::mem::replace(&mut self.excused, true) {
            return;
        }
        if let Some(earliest) = (now + self.interval).checked_sub(self.limit) {
            self.heard = self.heard.max(earliest);
        }
    }

    pub(crate) fn beat(&mut self, now: Instant) -> Beat {
        if now >= self.heard + self.limit {
            Beat::Dead
        } else if !self.unanswered && now >= self.asked + self.interval {
            self.asked = now;
            self.unanswered = true;
            Beat::Ask
        } else {
            Beat::Wait
        }
    }

    /// When [`Heartbeat::beat`] will have something to do, if nothing is heard until then.
    pub(crate) fn next(&self) -> Instant {
        let death = self.heard + self.limit;
        if self.unanswered { death } else { death.min(self.asked + self.interval) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(12);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn one_question_each_third_and_death_before_the_bound() {
        let start = Instant::now();
        let mut heartbeat = Heartbeat::new(BOUND, start);
        assert_eq!(heartbeat.next(), start + 4 * SECOND);
        assert_eq!(heartbeat.beat(start + 3 * SECOND), Beat::Wait);
        assert_eq!(heartbeat.beat(start + 4 * SECOND), Beat::Ask);
        assert_eq!(heartbeat.beat(start + 9 * SECOND), Beat::Wait, "one question at a time");
        assert!(heartbeat.next() < start + BOUND);
        assert_eq!(heartbeat.beat(heartbeat.next()), Beat::Dead);
    }

    #[test]
    fn anything_heard_is_life() {
        let start = Instant::now();
        let mut heartbeat = Heartbeat::new(BOUND, start);
        assert_eq!(heartbeat.beat(start + 4 * SECOND), Beat::Ask);
        heartbeat.heard(start + 10 * SECOND);
        assert_eq!(heartbeat.beat(start + 13 * SECOND), Beat::Wait);
        heartbeat.answered();
        assert_eq!(heartbeat.beat(start + 14 * SECOND), Beat::Ask);
    }

    #[test]
    fn a_process_that_slept_still_asks_before_it_judges() {
        let start = Instant::now();
        let mut heartbeat = Heartbeat::new(BOUND, start);
        let late = start + 100 * SECOND;
        heartbeat.excuse(late);
        assert_eq!(heartbeat.beat(late), Beat::Ask);
        assert_eq!(heartbeat.beat(late + 3 * SECOND), Beat::Wait);
        heartbeat.excuse(late + 4 * SECOND);
        assert_eq!(heartbeat.beat(late + 4 * SECOND), Beat::Dead);
    }
}
