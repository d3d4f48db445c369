//! Frames to the client: which is next, and how much of it was written.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::AsyncWrite;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

use crate::protocol::TransferFormat;

/// The longest header of a frame without a mask.
const MAX_HEADER: usize = 10;
/// How much of header and payload are copied together for a stream that cannot write two slices at once.
const JOINED: usize = 1 << 10;

/// Writes a header and a shared payload without copying the payload. Holds the frame that is being written and at most
/// one of each kind behind it; of pings only the newest is answered, as RFC 6455 section 5.5.3 allows.
#[derive(Default)]
pub(super) struct Writer {
    header: [u8; MAX_HEADER],
    /// The part of `header` that is not written: `header[written..header_len]`.
    written: u8,
    header_len: u8,
    /// The part of the payload that is not written.
    payload: Bytes,
    /// Whether something was written behind which the stream was not flushed.
    unflushed: bool,
    pong: Option<Bytes>,
    records: Option<(Bytes, Data)>,
    close: Close,
    /// Bytes written so far.
    total: u64,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Close {
    #[default]
    No,
    Waits(CloseCode),
    Taken,
}

impl Writer {
    /// Takes the payload of a data frame. Nothing is sent behind a close frame.
    pub(super) fn send(&mut self, records: Bytes, format: TransferFormat) {
        debug_assert!(self.records.is_none(), "the caller flushes between two sends");
        if self.close == Close::No {
            let kind = match format {
                TransferFormat::Text => Data::Text,
                TransferFormat::Binary => Data::Binary,
            };
            self.records = Some((records, kind));
        }
    }

    /// Answers a ping, instead of an earlier one that was not answered yet.
    pub(super) fn pong(&mut self, payload: Bytes) {
        if self.close == Close::No {
            self.pong = Some(payload);
        }
    }

    /// Puts a close frame behind everything; the first one counts.
    pub(super) fn close(&mut self, code: CloseCode) {
        if self.close == Close::No {
            self.close = Close::Waits(code);
        }
    }

    /// A close frame instead of all that waits and was not begun; the first one counts.
    pub(super) fn close_now(&mut self, code: CloseCode) {
        self.close(code);
        self.pong = None;
        self.records = None;
    }

    /// Writes what waits.
    pub(super) fn poll<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            while self.written < self.header_len || !self.payload.is_empty() {
                let count = ready!(self.poll_write(stream, context))?;
                if count == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.unflushed = true;
                self.advance(count);
            }
            // Lets go of the shared payload.
            self.payload = Bytes::new();
            if !self.begin() {
                break;
            }
        }
        if self.unflushed {
            ready!(Pin::new(stream).poll_flush(context))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Whether nothing waits and nothing is held.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.payload.is_empty() && self.records.is_none() && self.pong.is_none() && !self.unflushed
    }

    /// Makes the next frame the one that is written.
    fn begin(&mut self) -> bool {
        let (opcode, payload) = if let Some(payload) = self.pong.take() {
            (OpCode::Control(Control::Pong), payload)
        } else if let Some((records, kind)) = self.records.take() {
            (OpCode::Data(kind), records)
        } else if let Close::Waits(code) = self.close {
            self.close = Close::Taken;
            (OpCode::Control(Control::Close), Bytes::copy_from_slice(&u16::from(code).to_be_bytes()))
        } else {
            return false;
        };
        let header = FrameHeader { opcode, ..FrameHeader::default() };
        let mut room = &mut self.header[..];
        header
            .format(payload.len() as u64, &mut room)
            .expect("a header without a mask has at most ten bytes");
        let left = room.len();
        self.written = 0;
        self.header_len = u8::try_from(MAX_HEADER - left).expect("it is at most ten");
        self.payload = payload;
        true
    }

    fn poll_write<S: AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let header = &self.header[usize::from(self.written)..usize::from(self.header_len)];
        let stream = Pin::new(stream);
        if header.is_empty() {
            stream.poll_write(context, &self.payload)
        } else if stream.is_write_vectored() {
            stream.poll_write_vectored(context, &[IoSlice::new(header), IoSlice::new(&self.payload)])
        } else {
            // A header on its own would be a packet, or a TLS record, on its own.
            let mut joined = [0; JOINED];
            let payload = &self.payload[..self.payload.len().min(JOINED - header.len())];
            joined[..header.len()].copy_from_slice(header);
            joined[header.len()..][..payload.len()].copy_from_slice(payload);
            stream.poll_write(context, &joined[..header.len() + payload.len()])
        }
    }

    /// How many bytes were written so far.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    fn advance(&mut self, count: usize) {
        self.total += count as u64;
        let of_header = count.min(usize::from(self.header_len - self.written));
        self.written += u8::try_from(of_header).expect("a header has at most ten bytes");
        self.payload.advance(count - of_header);
    }
}
