//! When to look for new rows: at once while they keep coming, ever more rarely while nothing happens, and when it rings.
//!
//! Without a doorbell a few rows, such as the beats of nodes, halve the pause and many end it: so an idle fleet is not woken
//! by its own beats, and a busy one waits milliseconds.
//!
//! A doorbell is believed as soon as it rang once, and no longer when rows come without it: behind a pooler that passes
//! connections around, a listener is deaf and nobody says so.

use std::time::Duration;

use tokio::time::Instant;

/// How long rows may be ahead of their ring.
const LATE: Duration = Duration::from_secs(1);
/// So many times must rows come without a ring.
const STRIKES: u32 = 3;
/// So many rows in one look are not the beats of a few idle nodes that happen to beat together.
const BUSY: usize = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Pace {
    min: Duration,
    max: Duration,
    /// The pause where a ring would wake us.
    bell_max: Duration,
    pause: Duration,
    next: Instant,
    bell: Bell,
    /// Since when rows are ahead of their ring, and how often they were too far ahead.
    unheralded: Option<Instant>,
    strikes: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bell {
    None,
    /// Did not ring yet.
    Untried,
    Works,
}

impl Pace {
    /// With pauses from `min` to `max`, and up to `bell_max` while a doorbell works.
    pub(super) fn new(
        min: Duration,
        max: Duration,
        bell_max: Duration,
        has_bell: bool,
        now: Instant,
    ) -> Self {
        let bell = if has_bell { Bell::Untried } else { Bell::None };
        Self { min, max, bell_max, pause: min, next: now, bell, unheralded: None, strikes: 0 }
    }

    /// When to look next.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// There is another doorbell.
    pub(super) fn has_bell(&mut self) {
        self.bell = Bell::Untried;
        self.unheralded = None;
        self.strikes = 0;
    }

    /// It rang. Returns whether for the first time.
    pub(super) fn rang(&mut self, now: Instant) -> bool {
        let first = self.bell == Bell::Untried;
        if first {
            self.bell = Bell::Works;
        }
        self.unheralded = None;
        self.strikes = 0;
        self.next = now;
        first
    }

    /// The doorbell broke.
    pub(super) fn silenced(&mut self, now: Instant) {
        self.bell = Bell::None;
        self.pause = self.min;
        self.next = self.next.min(now + self.min);
    }

    /// A look brought `rows`, and `full`: there are more. Returns whether the doorbell proved deaf.
    pub(super) fn looked(&mut self, rows: usize, full: bool, now: Instant) -> bool {
        if rows > 0 && self.bell != Bell::None {
            match self.unheralded {
                None => self.unheralded = Some(now),
                Some(since) if now.duration_since(since) >= LATE => {
                    self.strikes += 1;
                    self.unheralded = Some(now);
                }
                Some(_) => {}
            }
        }
        let deaf = self.strikes >= STRIKES && self.bell != Bell::None;
        if deaf {
            self.bell = Bell::None;
        }
        let pause = if full {
            Duration::ZERO
        } else if self.bell == Bell::Works {
            self.bell_max
        } else if rows > 0 {
            self.pause = if rows >= BUSY { self.min } else { (self.pause / 2).max(self.min) };
            self.pause
        } else {
            self.pause = (self.pause * 2).min(self.max);
            self.pause
        };
        self.next = now + pause;
        deaf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn pace(bell: bool, now: Instant) -> Pace {
        Pace::new(MS, 250 * MS, 1_000 * MS, bell, now)
    }

    #[test]
    fn without_a_doorbell_pauses_double_while_nothing_comes() {
        let now = Instant::now();
        let mut pace = pace(false, now);
        assert_eq!(pace.next(), now);
        let pauses: Vec<u128> = (0..10)
            .map(|_| {
                assert!(!pace.looked(0, false, now));
                (pace.next() - now).as_millis()
            })
            .collect();
        assert_eq!(pauses, [2, 4, 8, 16, 32, 64, 128, 250, 250, 250]);
        pace.looked(1, false, now);
        assert_eq!(pace.next(), now + 125 * MS);
        pace.looked(BUSY, false, now);
        assert_eq!(pace.next(), now + MS);
        pace.looked(512, true, now);
        assert_eq!(pace.next(), now);
    }

    #[test]
    fn an_idle_fleet_is_not_woken_by_its_beats() {
        let mut now = Instant::now();
        let mut pace = pace(false, now);
        let (mut looks, mut beats) = (0_u32, 0);
        for tick in 0_u32..60_000 {
            beats += usize::from(tick % 3_000 == 0) + usize::from(tick % 3_000 == 400);
            if pace.next() <= now {
                pace.looked(std::mem::take(&mut beats), false, now);
                looks += u32::from(tick >= 1_000);
            }
            now += MS;
        }
        assert!(looks < 59 * 9 / 2, "{looks} looks in 59 s");
    }

    #[test]
    fn a_doorbell_that_rang_lengthens_the_pause() {
        let now = Instant::now();
        let mut pace = pace(true, now);
        pace.looked(1, false, now);
        assert_eq!(pace.next(), now + MS, "not believed yet");
        pace.rang(now);
        assert_eq!(pace.next(), now);
        pace.looked(1, false, now);
        assert_eq!(pace.next(), now + 1_000 * MS);
        pace.silenced(now);
        assert_eq!(pace.next(), now + MS);
    }

    #[test]
    fn a_doorbell_is_deaf_when_rows_keep_coming_without_it() {
        for proven in [false, true] {
            let mut now = Instant::now();
            let mut pace = pace(true, now);
            if proven {
                pace.rang(now);
            }
            let mut looks = 0;
            while !pace.looked(1, false, now) {
                now += 1_000 * MS;
                looks += 1;
            }
            assert_eq!(looks, STRIKES);
            pace.looked(1, false, now);
            assert_eq!(pace.next(), now + MS);
        }
    }

    #[test]
    fn a_ring_that_is_late_now_and_then_is_forgiven() {
        let mut now = Instant::now();
        let mut pace = pace(true, now);
        for _ in 0..100 {
            assert!(!pace.looked(1, false, now));
            now += 900 * MS;
            pace.rang(now);
        }
    }
}
