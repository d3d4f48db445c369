//! What the proxy is told to do, and what it has seen.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::commands::{CommandCount, Counts};

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the clients to the server.
    ToServer = 0,
    /// From the server to the clients.
    ToClient = 1,
}

/// What the proxy is told to do. Arrays are indexed by [`Direction`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Switches {
    /// Connections of an older generation have to end.
    pub(super) generation: u64,
    pub(super) ending: Ending,
    pub(super) refusing: bool,
    pub(super) frozen: [bool; 2],
    pub(super) delay: Duration,
    /// Bytes per second, each way.
    pub(super) rate: Option<u64>,
}

/// How connections end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Ending {
    #[default]
    Reset,
    Close,
}

/// What passed through a proxy since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Bytes that the server was sent.
    pub bytes_to_server: u64,
    /// Bytes that the clients were sent.
    pub bytes_to_client: u64,
    /// Bytes lost by [`FaultProxy::drop_bytes`](super::FaultProxy::drop_bytes), both ways.
    pub bytes_dropped: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections refused.
    pub refused: u64,
    /// Connections that there are right now.
    pub open: u64,
}

/// What the proxy has seen.
#[derive(Debug, Default)]
pub(super) struct Meters {
    moved: [AtomicU64; 2],
    to_lose: [AtomicU64; 2],
    lost: AtomicU64,
    accepted: AtomicU64,
    refused: AtomicU64,
    closed: AtomicU64,
    commands: Mutex<Counts>,
    allowance: [Mutex<Allowance>; 2],
}

impl Meters {
    pub(super) fn moved(&self, bytes: usize, direction: Direction) {
        self.moved[direction as usize].fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn lose(&self, bytes: u64, direction: Direction) {
        self.to_lose[direction as usize].fetch_add(bytes, Relaxed);
    }

    /// How many of the next `bytes` are lost; they are from now on.
    pub(super) fn lost_of(&self, bytes: usize, direction: Direction) -> usize {
        let to_lose = &self.to_lose[direction as usize];
        // Only the proxy's own thread takes from it, so it does not shrink in between.
        let lost = to_lose.load(Relaxed).min(bytes as u64);
        if lost > 0 {
            to_lose.fetch_sub(lost, Relaxed);
            self.lost.fetch_add(lost, Relaxed);
        }
        usize::try_from(lost).expect("at most `bytes`")
    }

    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    pub(super) fn opened(meters: &Arc<Self>) -> Open {
        meters.accepted.fetch_add(1, Relaxed);
        Open(meters.clone())
    }

    pub(super) fn traffic(&self) -> Traffic {
        // In this order `open` is never negative: a connection closes after it was accepted.
        let closed = self.closed.load(Relaxed);
        let accepted = self.accepted.load(Relaxed);
        Traffic {
            bytes_to_server: self.moved[Direction::ToServer as usize].load(Relaxed),
            bytes_to_client: self.moved[Direction::ToClient as usize].load(Relaxed),
            bytes_dropped: self.lost.load(Relaxed),
            accepted,
            refused: self.refused.load(Relaxed),
            open: accepted.saturating_sub(closed),
        }
    }

    pub(super) fn count_commands(&self, seen: impl FnOnce(&mut Counts)) {
        seen(&mut self.commands.lock());
    }

    pub(super) fn commands(&self) -> HashMap<String, CommandCount> {
        self.commands.lock().by_name()
    }

    pub(super) fn reset_commands(&self) {
        self.commands.lock().clear();
    }

    pub(super) fn allowance(&self, direction: Direction) -> &Mutex<Allowance> {
        &self.allowance[direction as usize]
    }
}

/// One open connection, counted until dropped.
#[derive(Debug)]
pub(super) struct Open(Arc<Meters>);

impl Open {
    pub(super) fn meters(&self) -> &Meters {
        &self.0
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.closed.fetch_add(1, Relaxed);
    }
}

/// What a throttled direction may still carry: a bucket that fills with the rate and holds 20 ms of it.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    bytes: f64,
    filled: Option<Instant>,
}

impl Allowance {
    const HOLDS: Duration = Duration::from_millis(20);

    /// How many of `wanted` bytes may pass now, or when to ask again.
    pub(super) fn of(&mut self, wanted: usize, rate: u64, now: Instant) -> Result<usize, Instant> {
        let rate = rate as f64;
        let full = (rate * Self::HOLDS.as_secs_f64()).max(1.0);
        let since =
            self.filled.replace(now).map_or(Self::HOLDS, |filled| now.saturating_duration_since(filled));
        self.bytes = (self.bytes + rate * since.as_secs_f64()).min(full);
        if self.bytes >= 1.0 {
            return Ok(wanted.min(self.bytes as usize));
        }
        // Half a bucket, so that a slow link is not woken for every byte.
        let wait = (full / 2.0).max(1.0) - self.bytes;
        Err(now + Duration::from_secs_f64(wait / rate))
    }

    pub(super) fn spend(&mut self, bytes: usize) {
        self.bytes -= bytes as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_fills_with_the_rate_and_holds_a_fiftieth_of_a_second() {
        let mut allowance = Allowance::default();
        let start = Instant::now();
        assert_eq!(allowance.of(1_000, 10_000, start), Ok(200));
        allowance.spend(200);
        let again = allowance.of(1_000, 10_000, start).unwrap_err();
        assert_eq!((again - start).as_millis(), 10);
        assert_eq!(allowance.of(1_000, 10_000, again), Ok(100));
        assert_eq!(allowance.of(1_000, 10_000, start + Duration::from_secs(9)), Ok(200));
        assert_eq!(allowance.of(7, 10_000, start + Duration::from_secs(9)), Ok(7));
    }

    #[test]
    fn what_is_to_be_lost_is_lost_once() {
        let meters = Meters::default();
        meters.lose(5, Direction::ToServer);
        assert_eq!(meters.lost_of(3, Direction::ToServer), 3);
        assert_eq!(meters.lost_of(3, Direction::ToClient), 0);
        assert_eq!(meters.lost_of(3, Direction::ToServer), 2);
        assert_eq!(meters.lost_of(3, Direction::ToServer), 0);
        assert_eq!(meters.traffic().bytes_dropped, 5);
    }
}
