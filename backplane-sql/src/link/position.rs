//! Where a delivery stands in the log, so that another link can continue there and prove that it is the same log.

use backplane_core::Position;

pub(super) use crate::store::Mark;
use crate::store::{Entry, WriterId};

/// The number of a row that is none: rows count from 1.
pub(super) const ROWLESS: i64 = 0;

impl Mark {
    /// A place without a row, behind everything up to `id`.
    pub(super) fn place(id: i64) -> Self {
        Self { id, writer: WriterId([0; 16]), seq: ROWLESS }
    }

    /// Of a row.
    pub(super) fn of(entry: &Entry) -> Self {
        Self { id: entry.id, writer: entry.writer, seq: entry.seq }
    }
}

/// The floor of a link as a position holds it: everything up to `id` was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Floor {
    epoch: [u8; 8],
    pub(super) id: i64,
    /// Of the row with that id; 0: there is none.
    fingerprint: u64,
}

const LEN: usize = 24;

impl Floor {
    pub(super) fn new(epoch: &[u8; 16], mark: Mark) -> Self {
        Self { epoch: start_of(epoch), id: mark.id, fingerprint: fingerprint(mark) }
    }

    /// Whether it belongs to the log of that epoch.
    pub(super) fn is_of(&self, epoch: &[u8; 16]) -> bool {
        self.epoch == start_of(epoch)
    }

    /// Whether it stands before the first row of an empty log.
    pub(super) fn is_beginning(&self) -> bool {
        self.id == 0 && self.fingerprint == 0
    }

    /// Whether `mark` is the row that it stands on.
    pub(super) fn stands_on(&self, mark: Mark) -> bool {
        self.fingerprint != 0 && self.id == mark.id && self.fingerprint == fingerprint(mark)
    }

    pub(super) fn to_position(self) -> Position {
        let mut bytes = [0; LEN];
        bytes[..8].copy_from_slice(&self.epoch);
        bytes[8..16].copy_from_slice(&self.id.to_be_bytes());
        bytes[16..].copy_from_slice(&self.fingerprint.to_be_bytes());
        Position::new(&bytes).expect("24 bytes are fewer than 31")
    }

    /// `None`: no position of ours.
    pub(super) fn of(position: &Position) -> Option<Self> {
        let bytes: &[u8; LEN] = position.as_bytes().try_into().ok()?;
        let eight = |at: usize| -> [u8; 8] { bytes[at..at + 8].try_into().expect("eight bytes") };
        Some(Self {
            epoch: eight(0),
            id: i64::from_be_bytes(eight(8)),
            fingerprint: u64::from_be_bytes(eight(16)),
        })
    }
}

fn start_of(epoch: &[u8; 16]) -> [u8; 8] {
    epoch[..8].try_into().expect("eight of sixteen bytes")
}

/// Tells rows of one id apart; 0 only for no row. Lives no longer than a process, so it may change between versions.
fn fingerprint(mark: Mark) -> u64 {
    if mark.seq == ROWLESS {
        return 0;
    }
    let writer = u128::from_be_bytes(mark.writer.0);
    #[expect(clippy::cast_possible_truncation, reason = "both halves are mixed")]
    let halves = [(writer >> 64) as u64, writer as u64, mark.seq.cast_unsigned()];
    let mixed = halves.into_iter().fold(0x9e37_79b9_7f4a_7c15_u64, |mix, half| {
        let mix = (mix ^ half).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mix ^ (mix >> 29)
    });
    mixed | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(id: i64, writer: u8, seq: i64) -> Mark {
        Mark { id, writer: WriterId([writer; 16]), seq }
    }

    #[test]
    fn a_position_is_read_as_it_was_written() {
        let floor = Floor::new(&[7; 16], mark(i64::MAX, 9, 3));
        let position = floor.to_position();
        assert!(position.as_bytes().len() <= Position::MAX_LEN);
        assert_eq!(Floor::of(&position), Some(floor));
        assert!(floor.is_of(&[7; 16]) && !floor.is_of(&[8; 16]));
        assert!(floor.stands_on(mark(i64::MAX, 9, 3)));
        for other in [mark(i64::MAX, 9, 4), mark(i64::MAX, 8, 3), mark(1, 9, 3)] {
            assert!(!floor.stands_on(other), "{other:?}");
        }
    }

    #[test]
    fn what_is_no_position_of_ours_is_refused() {
        for bytes in [&b""[..], b"x", &[0xff; 8], &[0xff; 16], &[0xff; 31]] {
            assert_eq!(Floor::of(&Position::new(bytes).unwrap()), None);
        }
        let nowhere = Floor::new(&[7; 16], Mark::place(41));
        assert!(!nowhere.stands_on(Mark::place(41)) && !nowhere.is_beginning());
        assert!(Floor::new(&[7; 16], Mark::place(0)).is_beginning());
    }
}
