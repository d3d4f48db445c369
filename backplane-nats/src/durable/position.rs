//! Where a delivery stands: which stream, which message of it, and when that was stored.
//!
//! The sequence alone would not do. A stream that was deleted and made anew counts from 1 again; one whose server lost the
//! end of its file, or was restored from an older copy, gives the same numbers to other messages.

use backplane_core::Position;

/// Version of this form.
const FORM: u8 = 1;

/// A position, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// The identity of the stream: when it was made, in nanoseconds.
    pub(super) stream: i64,
    /// The sequence of the message.
    pub(super) sequence: u64,
    /// When it was stored, in nanoseconds.
    pub(super) stored: i64,
}

impl Standing {
    pub(super) fn position(self) -> Position {
        let mut bytes = [FORM; 25];
        bytes[1..9].copy_from_slice(&self.stream.to_be_bytes());
        bytes[9..17].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[17..].copy_from_slice(&self.stored.to_be_bytes());
        Position::new(&bytes).expect("25 bytes are fewer than 31")
    }

    /// `None`: not one of ours.
    pub(super) fn read(position: &Position) -> Option<Self> {
        let (&form, rest) = position.as_bytes().split_first()?;
        let (stream, rest) = rest.split_first_chunk()?;
        let (sequence, rest) = rest.split_first_chunk()?;
        let stored = rest.try_into().ok()?;
        (form == FORM).then(|| Self {
            stream: i64::from_be_bytes(*stream),
            sequence: u64::from_be_bytes(*sequence),
            stored: i64::from_be_bytes(stored),
        })
    }
}

/// The nanoseconds of a time as the server writes it. The crate's type comes from a crate that we do not name.
macro_rules! nanoseconds {
    ($time:expr) => {
        i64::try_from($time.unix_timestamp_nanos()).unwrap_or_default()
    };
}
pub(super) use nanoseconds;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_was_written_and_no_other_is() {
        let standing = Standing { stream: 1_700_000_000_123_456_789, sequence: u64::MAX, stored: -1 };
        assert_eq!(Standing::read(&standing.position()), Some(standing));
        for foreign in [&[0xff; 31][..], &[0xff; 25], &[1; 24], &[1; 26], b"", b"x"] {
            assert_eq!(Standing::read(&Position::new(foreign).unwrap()), None);
        }
    }
}
