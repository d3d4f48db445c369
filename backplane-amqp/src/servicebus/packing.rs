//! How frames travel in messages: as many as are ready and fit share one, each with its topic.
//!
//! Service Bus counts, prices and throttles messages of up to 64 KiB, not bytes; so one message of a hundred frames
//! costs what one of a single frame does. The body is one data section:
//!
//! ```text
//! version: u8 = 1, then for each frame: topic length: u32, topic, frame length: u32, frame        (big-endian)
//! ```

use backplane_core::Topic;
use bytes::{Buf, BufMut, Bytes};

const VERSION: u8 = 1;
/// The lengths in front of a topic and of a frame.
const LENGTHS: usize = 8;

/// Bytes that a frame takes in a body.
pub(super) fn packed_len(topic: &Topic, frame: &Bytes) -> usize {
    LENGTHS + topic.as_bytes().len() + frame.len()
}

/// The body of a message, while it grows.
#[derive(Debug)]
pub(super) struct Pack {
    body: Vec<u8>,
    frames: usize,
}

impl Pack {
    pub(super) fn new() -> Self {
        Self { body: vec![VERSION], frames: 0 }
    }

    pub(super) fn frames(&self) -> usize {
        self.frames
    }

    /// Whether one more of `length` packed bytes stays within `limit`. The first always does.
    pub(super) fn fits(&self, length: usize, limit: usize) -> bool {
        self.frames == 0 || self.body.len() + length <= limit
    }

    pub(super) fn push(&mut self, topic: &Topic, frame: &Bytes) {
        self.body.reserve(packed_len(topic, frame));
        put(&mut self.body, topic.as_bytes());
        put(&mut self.body, frame);
        self.frames += 1;
    }

    pub(super) fn into_body(self) -> Vec<u8> {
        self.body
    }
}

fn put(body: &mut Vec<u8>, bytes: &[u8]) {
    // Nothing larger than a message passes the check before it, and messages end far below 4 GiB.
    body.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    body.put_slice(bytes);
}

/// Takes a body apart, into topic and frame of each. Nothing follows an error: the rest is not of this format.
#[derive(Debug)]
pub(super) struct Unpack {
    body: Bytes,
    whole: usize,
}

/// A body that is not of this format.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

impl Unpack {
    pub(super) fn new(mut body: Bytes) -> Result<Self, Unreadable> {
        let whole = body.len();
        if body.first() != Some(&VERSION) {
            return Err(Unreadable);
        }
        body.advance(1);
        Ok(Self { body, whole })
    }

    fn take(&mut self) -> Result<Bytes, Unreadable> {
        let length = self.body.try_get_u32().map_err(|_| Unreadable)?;
        let length = usize::try_from(length).map_err(|_| Unreadable)?;
        if length > self.body.len() {
            return Err(Unreadable);
        }
        Ok(self.body.split_to(length))
    }

    /// A frame that keeps no much larger body alive.
    pub(super) fn own(&self, frame: Bytes) -> Bytes {
        if frame.len() >= self.whole / 2 { frame } else { Bytes::copy_from_slice(&frame) }
    }
}

impl Iterator for Unpack {
    type Item = Result<(Bytes, Bytes), Unreadable>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.body.is_empty() {
            return None;
        }
        let read = self.take().and_then(|topic| Ok((topic, self.take()?)));
        if read.is_err() {
            self.body.clear();
        }
        Some(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpacked(body: Vec<u8>) -> Result<Vec<(Bytes, Bytes)>, Unreadable> {
        Unpack::new(body.into())?.collect()
    }

    #[test]
    fn frames_come_out_as_they_went_in() {
        let frames: [(&[u8], &[u8]); 4] =
            [(b"room", b"one"), (b"", b""), (b"a\0b", &[7; 300]), (b"room", b"two")];
        let mut pack = Pack::new();
        let mut length = 1;
        for (topic, frame) in frames {
            let (topic, frame) = (Topic::new(topic), Bytes::copy_from_slice(frame));
            length += packed_len(&topic, &frame);
            pack.push(&topic, &frame);
        }
        assert_eq!(pack.frames(), 4);
        let body = pack.into_body();
        assert_eq!(body.len(), length);
        let expected: Vec<_> = frames
            .map(|(topic, frame)| (Bytes::copy_from_slice(topic), Bytes::copy_from_slice(frame)))
            .into();
        assert_eq!(unpacked(body).unwrap(), expected);
    }

    #[test]
    fn foreign_and_truncated_bodies_are_unreadable() {
        assert_eq!(unpacked(vec![]), Err(Unreadable));
        assert_eq!(unpacked(b"hello".to_vec()), Err(Unreadable));
        let mut pack = Pack::new();
        pack.push(&Topic::from("room"), &Bytes::from_static(b"frame"));
        let body = pack.into_body();
        for cut in 2..body.len() {
            assert_eq!(unpacked(body[..cut].to_vec()), Err(Unreadable), "{cut}");
        }
    }

    #[test]
    fn a_small_frame_does_not_pin_the_body() {
        let mut pack = Pack::new();
        pack.push(&Topic::from("room"), &Bytes::from(vec![1; 10]));
        pack.push(&Topic::from("room"), &Bytes::from(vec![2; 1_000]));
        let body = Bytes::from(pack.into_body());
        let within = |frame: &Bytes| body.as_ptr_range().contains(&frame.as_ptr());
        let mut unpack = Unpack::new(body.clone()).unwrap();
        let (_, small) = unpack.next().unwrap().unwrap();
        let (_, large) = unpack.next().unwrap().unwrap();
        assert!(!within(&unpack.own(small)) && within(&unpack.own(large)));
    }
}
