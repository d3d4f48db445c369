//! When a connection is pinged, when it has been silent for too long, and when a write has been stuck for too long.

use std::time::Duration;

use tokio::time::Instant;

use crate::options::HubOptions;

/// What is due.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nothing until then.
    Nothing(Instant),
    /// A ping.
    Ping,
    /// The client is gone: it used to ping and fell silent.
    ClientTimeout,
    /// A write did not get through.
    SendTimeout,
}

/// The clocks of one connection.
#[derive(Debug)]
pub(crate) struct KeepAlive {
    interval: Option<Duration>,
    client_timeout: Duration,
    send_timeout: Duration,
    next_ping: Instant,
    /// The last sign of life, once the client has sent a ping; a client that never does is never timed out.
    heard: Option<Instant>,
    /// Nothing is read while a call waits for its turn: silence is not the client's fault then.
    resting: bool,
    /// Since when a write waits, and how much was written until then.
    stuck: Option<(Instant, u64)>,
}

/// So many bytes in [`send_timeout`](HubOptions::send_timeout) are enough for a write not to be stuck.
const PROGRESS: u64 = 64 << 10;

impl KeepAlive {
    pub(crate) fn new(options: &HubOptions, pings: bool, now: Instant) -> Self {
        Self {
            interval: pings.then_some(options.keep_alive),
            client_timeout: options.client_timeout,
            send_timeout: options.send_timeout,
            next_ping: now + options.keep_alive,
            heard: None,
            resting: false,
            stuck: None,
        }
    }

    /// The client sent something.
    pub(crate) fn heard(&mut self, now: Instant) {
        if let Some(heard) = &mut self.heard {
            *heard = now;
        }
    }

    /// The client sent a ping: from now on its silence counts.
    pub(crate) fn pinged(&mut self, now: Instant) {
        self.heard = Some(now);
    }

    /// Reading rests, or goes on.
    pub(crate) fn rest(&mut self, resting: bool, now: Instant) {
        if self.resting && !resting {
            self.heard(now);
        }
        self.resting = resting;
    }

    /// A write waits for the client, or none does; `written` bytes have got through so far.
    pub(crate) fn stuck(&mut self, stuck: bool, written: u64, now: Instant) {
        match (stuck, self.stuck) {
            (true, None) => self.stuck = Some((now, written)),
            (true, Some((_, before))) if written - before >= PROGRESS => self.stuck = Some((now, written)),
            (false, Some(_)) => self.stuck = None,
            _ => {}
        }
    }

    /// What is due now; a ping is due once.
    pub(crate) fn due(&mut self, now: Instant) -> Due {
        let mut next = now + Duration::from_secs(3_600);
        if let Some((stuck, _)) = self.stuck {
            if now >= stuck + self.send_timeout {
                return Due::SendTimeout;
            }
            next = next.min(stuck + self.send_timeout);
        }
        if let (Some(heard), false) = (self.heard, self.resting) {
            if now >= heard + self.client_timeout {
                return Due::ClientTimeout;
            }
            next = next.min(heard + self.client_timeout);
        }
        if let Some(interval) = self.interval {
            if now >= self.next_ping {
                self.next_ping = now + interval;
                // While a write is stuck the client has enough to read.
                if self.stuck.is_none() {
                    return Due::Ping;
                }
            }
            next = next.min(self.next_ping);
        }
        Due::Nothing(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clocks() -> (KeepAlive, Instant) {
        let now = Instant::now();
        (KeepAlive::new(&HubOptions::default(), true, now), now)
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pings_come_at_the_interval() {
        let (mut clocks, start) = clocks();
        assert_eq!(clocks.due(start), Due::Nothing(start + 15 * SECOND));
        assert_eq!(clocks.due(start + 15 * SECOND), Due::Ping);
        assert_eq!(clocks.due(start + 15 * SECOND), Due::Nothing(start + 30 * SECOND));
    }

    #[test]
    fn only_a_client_that_pings_is_timed_out() {
        let (mut clocks, start) = clocks();
        clocks.interval = None;
        clocks.heard(start);
        assert!(matches!(clocks.due(start + 100 * SECOND), Due::Nothing(_)));
        clocks.pinged(start + 100 * SECOND);
        clocks.heard(start + 110 * SECOND);
        assert!(matches!(clocks.due(start + 139 * SECOND), Due::Nothing(_)));
        assert_eq!(clocks.due(start + 140 * SECOND), Due::ClientTimeout);
    }

    #[test]
    fn silence_does_not_count_while_nothing_is_read() {
        let (mut clocks, start) = clocks();
        clocks.interval = None;
        clocks.pinged(start);
        clocks.rest(true, start);
        assert!(matches!(clocks.due(start + 100 * SECOND), Due::Nothing(_)));
        clocks.rest(false, start + 100 * SECOND);
        assert_eq!(clocks.due(start + 101 * SECOND), Due::Nothing(start + 130 * SECOND));
    }

    #[test]
    fn a_stuck_write_ends_it_and_holds_back_pings() {
        let (mut clocks, start) = clocks();
        clocks.stuck(true, 0, start + 14 * SECOND);
        assert!(matches!(clocks.due(start + 16 * SECOND), Due::Nothing(_)));
        assert_eq!(clocks.due(start + 24 * SECOND), Due::SendTimeout);
        clocks.stuck(false, 0, start + 24 * SECOND);
        assert!(matches!(clocks.due(start + 24 * SECOND), Due::Nothing(_)));
    }
}
