//! MessagePack as the envelopes use it: writes the shortest forms, reads every form, trusts no length.

use std::borrow::Cow;

use bytes::{BufMut as _, Bytes, BytesMut};
use rmp::Marker;

use crate::error::{Error, ErrorKind, Result};

/// What a wrong byte sequence is answered with.
pub(super) fn malformed(context: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Malformed, "decode").with_context(context)
}

/// Reads values from a frame, one after the other; blobs are slices of the frame. Never allocates by a length that
/// the bytes claim, never recurses.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    frame: &'a Bytes,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(frame: &'a Bytes) -> Self {
        Self { frame, rest: frame }
    }

    /// Bytes not read yet: no valid count of items is larger.
    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Length of the array that starts here. Nil is no array.
    pub(super) fn array_len(&mut self) -> Result<u32> {
        rmp::decode::read_array_len(&mut self.rest)
            .map_err(|error| malformed("an array was expected").with_source(error))
    }

    /// Number of pairs of the map that starts here. Nil is no map.
    pub(super) fn map_len(&mut self) -> Result<u32> {
        rmp::decode::read_map_len(&mut self.rest)
            .map_err(|error| malformed("a map was expected").with_source(error))
    }

    /// An integer that fits 32 bits, in any of its forms.
    pub(super) fn int32(&mut self) -> Result<i32> {
        rmp::decode::read_int(&mut self.rest)
            .map_err(|error| malformed("a 32-bit integer was expected").with_source(error))
    }

    /// An integer that fits one byte, in any of its forms.
    pub(super) fn uint8(&mut self) -> Result<u8> {
        rmp::decode::read_int(&mut self.rest)
            .map_err(|error| malformed("an integer of one byte was expected").with_source(error))
    }

    /// A text; nil is `None`. Bytes that are no UTF-8 become U+FFFD, as .NET reads them.
    pub(super) fn text(&mut self) -> Result<Option<Cow<'a, str>>> {
        if self.skip_nil() {
            return Ok(None);
        }
        let length = rmp::decode::read_str_len(&mut self.rest)
            .map_err(|error| malformed("a text was expected").with_source(error))?;
        self.take(length.into()).map(|bytes| Some(String::from_utf8_lossy(bytes)))
    }

    /// A byte string; nil is an empty one, a text is none.
    pub(super) fn blob(&mut self) -> Result<Bytes> {
        if self.skip_nil() {
            return Ok(Bytes::new());
        }
        let length = rmp::decode::read_bin_len(&mut self.rest)
            .map_err(|error| malformed("a byte string was expected").with_source(error))?;
        self.take(length.into()).map(|bytes| self.frame.slice_ref(bytes))
    }

    /// One value of any type and depth, as a slice of the frame.
    pub(super) fn value(&mut self) -> Result<Bytes> {
        let start = self.rest;
        self.skip()?;
        Ok(self.frame.slice_ref(&start[..start.len() - self.rest.len()]))
    }

    /// Passes over one value of any type and depth. Counts what is still to come instead of recursing: each round
    /// takes at least one byte, so a hostile count ends with the frame.
    pub(super) fn skip(&mut self) -> Result<()> {
        let mut pending: u64 = 1;
        while pending > 0 {
            pending -= 1;
            let marker = Marker::from_u8(self.take(1)?[0]);
            let (bytes, items) = match marker {
                Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::False | Marker::True => (0, 0),
                Marker::U8 | Marker::I8 => (1, 0),
                Marker::U16 | Marker::I16 | Marker::FixExt1 => (2, 0),
                Marker::FixExt2 => (3, 0),
                Marker::U32 | Marker::I32 | Marker::F32 => (4, 0),
                Marker::FixExt4 => (5, 0),
                Marker::U64 | Marker::I64 | Marker::F64 => (8, 0),
                Marker::FixExt8 => (9, 0),
                Marker::FixExt16 => (17, 0),
                Marker::FixStr(length) => (length.into(), 0),
                Marker::Str8 | Marker::Bin8 => (self.length(1)?, 0),
                Marker::Str16 | Marker::Bin16 => (self.length(2)?, 0),
                Marker::Str32 | Marker::Bin32 => (self.length(4)?, 0),
                Marker::Ext8 => (self.length(1)? + 1, 0),
                Marker::Ext16 => (self.length(2)? + 1, 0),
                Marker::Ext32 => (self.length(4)? + 1, 0),
                Marker::FixArray(length) => (0, length.into()),
                Marker::Array16 => (0, self.length(2)?),
                Marker::Array32 => (0, self.length(4)?),
                Marker::FixMap(length) => (0, 2 * u64::from(length)),
                Marker::Map16 => (0, 2 * self.length(2)?),
                Marker::Map32 => (0, 2 * self.length(4)?),
                Marker::Reserved => return Err(malformed("a byte that MessagePack never uses")),
            };
            self.take(bytes)?;
            pending = pending.saturating_add(items);
        }
        Ok(())
    }

    /// A big-endian length of `width` bytes.
    fn length(&mut self, width: u64) -> Result<u64> {
        Ok(self.take(width)?.iter().fold(0, |length, byte| length << 8 | u64::from(*byte)))
    }

    fn skip_nil(&mut self) -> bool {
        match self.rest.split_first() {
            Some((byte, rest)) if Marker::from_u8(*byte) == Marker::Null => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8]> {
        let taken = usize::try_from(length).ok().and_then(|length| self.rest.split_at_checked(length));
        let (taken, rest) = taken.ok_or_else(|| malformed("the frame ends inside a value"))?;
        self.rest = rest;
        Ok(taken)
    }
}

/// Writes values in their shortest forms.
#[derive(Debug)]
pub(super) struct Writer(BytesMut);

/// Writing to memory that grows has no failure of its own.
const GROWS: &str = "a growing buffer takes every write";

impl Writer {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self(BytesMut::with_capacity(bytes))
    }

    pub(super) fn array(&mut self, length: usize) {
        rmp::encode::write_array_len(&mut (&mut self.0).writer(), count(length)).expect(GROWS);
    }

    pub(super) fn map(&mut self, length: usize) {
        rmp::encode::write_map_len(&mut (&mut self.0).writer(), count(length)).expect(GROWS);
    }

    pub(super) fn int(&mut self, value: i64) {
        rmp::encode::write_sint(&mut (&mut self.0).writer(), value).expect(GROWS);
    }

    pub(super) fn nil(&mut self) {
        self.0.put_u8(Marker::Null.to_u8());
    }

    pub(super) fn text(&mut self, text: &str) {
        rmp::encode::write_str(&mut (&mut self.0).writer(), text).expect(GROWS);
    }

    pub(super) fn blob(&mut self, bytes: &[u8]) {
        rmp::encode::write_bin(&mut (&mut self.0).writer(), bytes).expect(GROWS);
    }

    /// A value that is encoded already.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.0.put_slice(bytes);
    }

    pub(super) fn finish(self) -> BytesMut {
        self.0
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).expect("no list in memory that is sent has four thousand million items")
}
