//! WebSockets: messages and control frames over any stream.
//!
//! # Why no WebSocket library's connection
//! tungstenite supplies the grammar (headers of frames, opcodes, close codes, the accept key); its `WebSocket` is not used.
//! - SignalR ignores the borders of WebSocket messages, and a message may be longer than any record. Libraries assemble
//!   whole messages, so their limit would have to be a second one beside `max_record`. Here the payload is unmasked and
//!   appended to the caller's input as it arrives, and only the caller's bound holds.
//! - An idle connection should hold no buffer. A library's read buffer lives as long as its connection; here the bytes
//!   are read into a piece of the stack, and what outlives the call is part of a header, of a character or of a control
//!   frame.
//! - A broadcast is one shared piece of memory for all connections. A library copies it behind each one's header; here
//!   header and payload are written as two slices.
//!
//! What the client did wrong is answered as recorded from ASP.NET Core: 1002, for text that is not UTF-8 1007; the reason
//! is always empty.

#[cfg(test)]
mod client;
mod open;
mod reader;
mod utf8;
mod writer;

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tungstenite::protocol::frame::coding::CloseCode;

use super::{Ended, Transport};
use crate::protocol::TransferFormat;
pub(crate) use open::Upgrade;
use reader::{Found, Reader, Violation};
use writer::Writer;

/// Its name in a negotiation.
pub(crate) const NAME: &str = "WebSockets";

/// How much is read at once.
const CHUNK: usize = 4 << 10;
/// How often a stream is read in one poll without any data for the caller, before other tasks have their turn.
const ROUNDS: usize = 16;

/// One open WebSocket, server side.
pub(crate) struct WebSocket<S> {
    stream: S,
    /// What arrived together with the request for the upgrade.
    early: Bytes,
    reader: Reader,
    writer: Writer,
    over: Option<Over>,
}

/// Nothing more will be received.
#[derive(Clone, Copy, Debug)]
enum Over {
    ByClient,
    Violation(&'static str),
    /// Reading failed with this, or the stream ended without a close frame.
    Lost(io::ErrorKind),
}

impl From<Over> for Ended {
    fn from(over: Over) -> Self {
        match over {
            Over::ByClient => Self::ByClient,
            Over::Violation(what) => Self::Violation(what),
            Over::Lost(kind) => Self::Lost(kind.into()),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// A WebSocket whose handshake is over. `early` came before `stream` does.
    pub(crate) fn new(stream: S, early: Bytes) -> Self {
        Self { stream, early, reader: Reader::default(), writer: Writer::default(), over: None }
    }

    /// Reads once. Nothing in `buffer`: the stream ended.
    fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let count = self.early.len().min(buffer.remaining());
        buffer.put_slice(&self.early[..count]);
        self.early.advance(count);
        if self.early.is_empty() {
            self.early = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Takes in what was read. Whether there was data in it.
    fn take_in(&mut self, mut bytes: &[u8], input: &mut BytesMut) -> bool {
        let mut data = false;
        loop {
            match self.reader.next(&mut bytes, input) {
                Ok(None) => return data,
                Ok(Some(Found::Data)) => data = true,
                Ok(Some(Found::Ping(payload))) => self.writer.pong(payload),
                Ok(Some(Found::Close)) => {
                    self.writer.close_now(CloseCode::Normal);
                    self.over = Some(Over::ByClient);
                    return data;
                }
                Err(Violation { code, what }) => {
                    self.writer.close_now(code);
                    self.over = Some(Over::Violation(what));
                    return data;
                }
            }
        }
    }

    /// Receives until there is data, or nothing more to come.
    fn poll_input(&mut self, context: &mut Context<'_>, input: &mut BytesMut) -> Poll<Result<(), Over>> {
        for _ in 0..ROUNDS {
            if let Some(over) = self.over {
                return Poll::Ready(Err(over));
            }
            let mut chunk = [MaybeUninit::uninit(); CHUNK];
            let mut buffer = ReadBuf::uninit(&mut chunk);
            let lost = match ready!(self.poll_read(context, &mut buffer)) {
                Ok(()) if buffer.filled().is_empty() => io::ErrorKind::UnexpectedEof,
                Ok(()) => {
                    if self.take_in(buffer.filled(), input) {
                        return Poll::Ready(Ok(()));
                    }
                    continue;
                }
                Err(error) => error.kind(),
            };
            self.over = Some(Over::Lost(lost));
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Receives and forgets until there is nothing more to come.
    fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<Over> {
        for _ in 0..ROUNDS {
            if let Err(over) = ready!(self.poll_input(context, &mut BytesMut::new())) {
                return Poll::Ready(over);
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads bytes that nobody understands any more until the stream ends: closing a socket over unread bytes resets the
    /// connection, and the client might never see why.
    fn poll_end_of_stream(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.early = Bytes::new();
        for _ in 0..ROUNDS {
            let mut chunk = [MaybeUninit::uninit(); CHUNK];
            let mut buffer = ReadBuf::uninit(&mut chunk);
            if ready!(self.poll_read(context, &mut buffer)).is_err() || buffer.filled().is_empty() {
                return Poll::Ready(());
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_shutdown(&mut self, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.stream).poll_shutdown(context).map(drop)
    }
}

impl<S> fmt::Debug for WebSocket<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocket")
            .field("stream", &std::any::type_name::<S>())
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Transport for WebSocket<S> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn carries(&self, _: TransferFormat) -> bool {
        true
    }

    fn poll_receive(&mut self, context: &mut Context<'_>, input: &mut BytesMut) -> Poll<Result<(), Ended>> {
        self.poll_input(context, input).map_err(Ended::from)
    }

    fn send(&mut self, records: Bytes, format: TransferFormat) {
        self.writer.send(records, format);
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        self.writer.poll(&mut self.stream, context).map_err(Ended::Lost)
    }

    fn written(&self) -> u64 {
        self.writer.total()
    }

    /// Writes what waits and the close frame, while what still arrives is read and forgotten; waits for the client's
    /// close frame (after a violation: for its end of the stream) and ends ours.
    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.writer.close(CloseCode::Normal);
        let written = self.writer.poll(&mut self.stream, context);
        if let Poll::Ready(Err(_)) = written {
            return Poll::Ready(());
        }
        let over = self.poll_over(context);
        if let Poll::Ready(Over::Lost(_)) = over {
            return Poll::Ready(());
        }
        if ready!(written).is_err() {
            return Poll::Ready(());
        }
        let over = ready!(over);
        ready!(self.poll_shutdown(context));
        match over {
            Over::Violation(_) => self.poll_end_of_stream(context),
            Over::ByClient | Over::Lost(_) => Poll::Ready(()),
        }
    }
}

#[cfg(test)]
mod tests;
