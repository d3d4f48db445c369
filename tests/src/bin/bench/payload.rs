//! What travels: 128 bytes that carry their number and when they were sent, and the ledger that reads them.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Length of every payload in bytes.
pub(crate) const LEN: usize = 128;

/// The number of the payload that follows the last one.
const END: u64 = u64::MAX;

/// A payload with a number, from 0.
pub(crate) fn numbered(number: u64) -> [u8; LEN] {
    let mut payload = [b'.'; LEN];
    payload[..8].copy_from_slice(&number.to_le_bytes());
    payload
}

/// As [`numbered`], with the time of day.
pub(crate) fn stamped(number: u64) -> [u8; LEN] {
    let mut payload = numbered(number);
    payload[8..16].copy_from_slice(&time_of_day().to_le_bytes());
    payload
}

/// Says that there were `count` payloads and no more will come.
pub(crate) fn end(count: u64) -> [u8; LEN] {
    let mut payload = numbered(END);
    payload[8..16].copy_from_slice(&count.to_le_bytes());
    payload
}

/// Nanoseconds since 1970: one clock for all processes of a machine.
fn time_of_day() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// What a subscriber received: counts, finds holes, measures a window behind a warm-up.
#[derive(Debug)]
pub(crate) struct Ledger {
    warm_up: Duration,
    measured: Duration,
    first: Option<Instant>,
    /// When the window began and how many had been received then; when it ended, likewise.
    begun: Option<(Instant, u64)>,
    ended: Option<(Instant, u64)>,
    received: u64,
    /// The number after the highest one received.
    next: u64,
    holes: u64,
    disordered: u64,
    /// How many the publisher says there were.
    sent: Option<u64>,
    /// Nanoseconds from sending to receipt, within the window.
    latencies: Option<Vec<u64>>,
}

impl Ledger {
    /// `stamped`: whether the payloads tell when they were sent.
    pub(crate) fn new(warm_up: Duration, measured: Duration, stamped: bool) -> Self {
        Self {
            warm_up,
            measured,
            first: None,
            begun: None,
            ended: None,
            received: 0,
            next: 0,
            holes: 0,
            disordered: 0,
            sent: None,
            latencies: stamped.then(Vec::new),
        }
    }

    /// Reads what arrived: any number of payloads. `true`: that was the last one.
    pub(crate) fn read(&mut self, arrived: &[u8]) -> bool {
        let (payloads, rest) = arrived.as_chunks::<LEN>();
        // What is cut in two is as bad as what is missing.
        self.disordered += u64::from(!rest.is_empty());
        for payload in payloads {
            let number = word(payload, 0);
            if number == END {
                self.sent = Some(word(payload, 8));
                return true;
            }
            self.received += 1;
            if number == self.next {
                self.next += 1;
            } else if number > self.next {
                self.holes += 1;
                self.next = number + 1;
            } else {
                self.disordered += 1;
            }
            if self.begun.is_some()
                && self.ended.is_none()
                && let Some(latencies) = &mut self.latencies
            {
                latencies.push(time_of_day().saturating_sub(word(payload, 8)));
            }
        }
        false
    }

    /// Looks at the clock: the window begins and ends here. To be called often, though not for each payload.
    pub(crate) fn look(&mut self, now: Instant) {
        let first = *self.first.get_or_insert(now);
        match (self.begun, self.ended) {
            (None, _) if now >= first + self.warm_up => self.begun = Some((now, self.received)),
            (Some((begun, _)), None) if now >= begun + self.measured => {
                self.ended = Some((now, self.received))
            }
            _ => {}
        }
    }

    /// How many arrived.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Deliveries per second within the window; `None`: it never ended.
    pub(crate) fn rate(&self) -> Option<f64> {
        let ((begun, before), (ended, after)) = (self.begun?, self.ended?);
        Some((after - before) as f64 / (ended - begun).as_secs_f64())
    }

    /// What is wrong with what arrived; `None`: each payload once and in order.
    pub(crate) fn complaint(&self) -> Option<String> {
        let Self { received, holes, disordered, sent, .. } = self;
        match sent {
            Some(sent) if received == sent && *holes == 0 && *disordered == 0 => None,
            Some(sent) => Some(format!(
                "{received} of {sent} arrived, with {holes} holes and {disordered} out of order"
            )),
            None => Some(format!("the end never arrived, {received} payloads did")),
        }
    }

    /// The latency that this share of the payloads did not exceed, in microseconds; `None`: of no payload.
    pub(crate) fn latency(&mut self, share: f64) -> Option<f64> {
        let latencies = self.latencies.as_mut().filter(|latencies| !latencies.is_empty())?;
        let rank = ((latencies.len() as f64 * share).ceil() as usize).clamp(1, latencies.len());
        let (_, nanoseconds, _) = latencies.select_nth_unstable(rank - 1);
        Some(*nanoseconds as f64 / 1_000.0)
    }
}

fn word(payload: &[u8; LEN], at: usize) -> u64 {
    u64::from_le_bytes(payload[at..at + 8].try_into().expect("eight bytes of a payload"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        Ledger::new(Duration::ZERO, Duration::from_secs(1), false)
    }

    #[test]
    fn a_clean_run_has_no_complaint_and_joined_payloads_count_each() {
        let mut ledger = ledger();
        assert!(!ledger.read(&[numbered(0), numbered(1)].concat()));
        assert!(ledger.read(&[numbered(2), end(3)].concat()));
        assert_eq!((ledger.received(), ledger.complaint()), (3, None));
    }

    #[test]
    fn holes_repeats_missing_tails_and_cut_payloads_are_told() {
        let runs: [&[[u8; LEN]]; 3] = [
            &[numbered(0), numbered(2), end(3)],
            &[numbered(0), numbered(0), end(2)],
            &[numbered(0), end(2)],
        ];
        for run in runs {
            let mut ledger = ledger();
            assert!(ledger.read(&run.concat()));
            assert!(ledger.complaint().is_some(), "{run:?}");
        }
        let mut ledger = ledger();
        ledger.read(&numbered(0)[..100]);
        ledger.read(&end(0));
        assert!(ledger.complaint().is_some());
    }

    #[test]
    fn the_rate_is_that_of_the_window() {
        let mut ledger = Ledger::new(Duration::from_secs(1), Duration::from_secs(2), false);
        let start = Instant::now();
        for second in 0..10 {
            ledger.look(start + Duration::from_secs(second));
            for _ in 0..100 {
                ledger.read(&numbered(0));
            }
        }
        assert_eq!(ledger.rate(), Some(100.0));
    }
}
