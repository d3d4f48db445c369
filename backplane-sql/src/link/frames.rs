//! The frames of a row: those that one node sent one after the other to one topic, as many as are small. A row costs a
//! database far more than the bytes in it.
//!
//! Each frame is its length in four bytes, the highest first, and its bytes.

use bytes::{Buf as _, Bytes};

/// Bytes of a frame in a row besides its own.
pub(super) const HEAD: usize = 4;
/// Most bytes of a row that holds several frames: with a topic of any usual length two such rows fit a page of 8 KiB.
const MOST: usize = 3_584;

/// Frames on their way into a row.
#[derive(Debug)]
pub(super) struct Packing(Vec<u8>);

impl Packing {
    /// With a first frame, however large.
    pub(super) fn new(frame: &[u8]) -> Self {
        let mut packing = Self(Vec::with_capacity(HEAD + frame.len()));
        packing.add(frame);
        packing
    }

    /// Whether a frame of so many bytes goes with those that are there.
    pub(super) fn fits(&self, frame: usize) -> bool {
        self.0.len() + HEAD + frame <= MOST
    }

    pub(super) fn add(&mut self, frame: &[u8]) {
        // The bus takes no frame that is anywhere near this long.
        let length = u32::try_from(frame.len()).expect("frames are shorter than 4 GiB");
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(frame);
    }

    pub(super) fn finish(self) -> Bytes {
        self.0.into()
    }
}

/// The frames of a row, in their order; `None` at the end of what can be read, should it not be the end of the row.
pub(super) fn unpack(mut row: Bytes) -> impl Iterator<Item = Option<Bytes>> {
    let is_alone =
        row.first_chunk().is_some_and(|head| row.len() - HEAD == u32::from_be_bytes(*head) as usize);
    std::iter::from_fn(move || {
        if row.is_empty() {
            return None;
        }
        let length = row.try_get_u32().ok().and_then(|length| usize::try_from(length).ok());
        let Some(length) = length.filter(|length| *length <= row.len()) else {
            row.clear();
            return Some(None);
        };
        let frame = row.split_to(length);
        // Where there are several each has a buffer of its own: one that is kept for long must not keep all of them.
        Some(Some(if is_alone { frame } else { Bytes::copy_from_slice(&frame) }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in() {
        for frames in [&[&b""[..]][..], &[b"a", b"", b"bcd"], &[&[7; 10_000]]] {
            let mut packing = Packing::new(frames[0]);
            frames[1..].iter().for_each(|frame| packing.add(frame));
            let unpacked: Option<Vec<Bytes>> = unpack(packing.finish()).collect();
            assert_eq!(unpacked.unwrap(), frames);
        }
        assert_eq!(unpack(Bytes::new()).count(), 0);
    }

    #[test]
    fn a_row_takes_small_frames_until_it_is_full_and_one_large_one() {
        let mut packing = Packing::new(&[0; 100]);
        let mut frames = 1;
        while packing.fits(100) {
            packing.add(&[0; 100]);
            frames += 1;
        }
        assert_eq!(frames, MOST / 104);
        assert!(packing.finish().len() <= MOST);
        assert!(!Packing::new(&[0; MOST]).fits(0));
    }

    #[test]
    fn what_nobody_packed_is_told_and_ends() {
        for row in [&b"x"[..], b"\0\0\0\x05four", b"\xff\xff\xff\xff"] {
            assert_eq!(unpack(Bytes::copy_from_slice(row)).collect::<Vec<_>>(), [None]);
        }
        let row = Bytes::from_static(b"\0\0\0\x02ok\0\0\0\x09cut");
        assert_eq!(unpack(row).collect::<Vec<_>>(), [Some(Bytes::from_static(b"ok")), None]);
    }
}
